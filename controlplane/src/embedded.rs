//! The embedded store: a folder of this machine is the truth, and this controller always leads.
//!
//! A thread of its own is the writer, since it waits for the disk. A write that failed leaves the disk
//! in an unknown state. The thread then ends, and the process with it: what is durable is found out by
//! opening the store again.

use std::{path::PathBuf, sync::Arc, thread, time::Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tracing::error;

use crate::{
    change::{self, Change, Decision},
    disk::{Disk, Loaded, OpenError, WriteError},
    events::{Draft, Journal},
    metrics::{CommitResult, Metrics},
    snapshot::Snapshot,
    store::{BUILD_VERSION, CommitError, Job, QUEUE, Standing, Store, Writer},
};

/// Opens or creates the store, and starts its writer in a new leader term.
pub async fn open(
    dir: PathBuf,
    cluster: String,
    metrics: Metrics,
) -> Result<(Store, Writer), OpenError> {
    let (jobs, queue) = mpsc::channel(QUEUE);
    let (opened, ready) = oneshot::channel();
    let (ended, done) = oneshot::channel();
    thread::Builder::new()
        .name("store".to_owned())
        .spawn(move || {
            let (disk, loaded) = match Disk::open(&dir, &cluster) {
                Ok(parts) => parts,
                Err(e) => return drop(opened.send(Err(e))),
            };
            let mut thread = Thread::new(disk, loaded, metrics);
            let elected = thread.commit(&|now| Ok(change::elect(now, BUILD_VERSION)));
            let handle = (
                thread.snapshots.subscribe(),
                Arc::clone(thread.journal.log()),
            );
            drop(
                opened.send(elected.map(|_| handle).map_err(|e| OpenError::Io {
                    dir,
                    fault: e.to_string(),
                })),
            );
            drop(ended.send(thread.run(queue)));
        })
        .expect("the process may start threads");
    let (snapshots, events) = ready.await.expect("the thread answers before it ends")?;
    let store = Store {
        jobs: jobs.clone(),
        snapshots,
        standings: watch::Sender::new(Standing::Leads).subscribe(),
        events,
    };
    Ok((store, Writer { jobs, done }))
}

/// What only the writer's thread touches.
struct Thread {
    disk: Disk,
    snapshots: watch::Sender<Arc<Snapshot>>,
    journal: Journal,
    metrics: Metrics,
}

impl Thread {
    fn new(disk: Disk, loaded: Loaded, metrics: Metrics) -> Self {
        Self {
            disk,
            snapshots: watch::Sender::new(Arc::new(loaded.snapshot)),
            journal: Journal::new(loaded.events, metrics.clone()),
            metrics,
        }
    }

    fn run(mut self, mut jobs: mpsc::Receiver<Job>) -> Result<(), WriteError> {
        while let Some(job) = jobs.blocking_recv() {
            match job {
                Job::Commit { decide, reply } => {
                    let result = self.commit(&*decide);
                    let failure = match &result {
                        Err(CommitError::Failed(e)) => Some(e.clone()),
                        _ => None,
                    };
                    drop(reply.send(result)); // an error: the caller gave up waiting
                    if let Some(failure) = failure {
                        return Err(failure);
                    }
                }
                Job::Note(draft) => self.note(draft)?,
                Job::Close => break,
            }
        }
        self.disk.flush()
    }

    fn commit(
        &mut self,
        decide: &dyn Fn(&Snapshot) -> Decision,
    ) -> Result<Arc<Snapshot>, CommitError> {
        let now = self.snapshots.borrow().clone();
        let change = decide(&now).map_err(|refusal| {
            self.metrics.committed(CommitResult::Refused);
            CommitError::Refused(refusal)
        })?;
        if change.is_empty() {
            return Ok(now);
        }
        self.write(&now, change).map_err(|e| {
            error!(error = %e, "store failed, the controller must be restarted");
            self.metrics.committed(CommitResult::Failed);
            CommitError::Failed(e)
        })
    }

    fn write(&mut self, now: &Snapshot, change: Change) -> Result<Arc<Snapshot>, WriteError> {
        let next = Arc::new(now.after(&change));
        let events = self.journal.place(&next, &change.events);
        let begun = Instant::now();
        self.disk
            .commit(now, &next, &change, &events, self.journal.stale())?;
        self.metrics.committed(CommitResult::Committed);
        self.metrics.commit_took(begun.elapsed());
        self.snapshots.send_replace(next.clone());
        self.journal.tell(events);
        Ok(next)
    }

    fn note(&mut self, draft: Draft) -> Result<(), WriteError> {
        let now = self.snapshots.borrow().clone();
        let events = self.journal.place(&now, &[draft]);
        self.disk
            .append(&events, self.journal.stale())
            .inspect_err(|e| {
                error!(error = %e, "store failed, the controller must be restarted");
            })?;
        self.journal.tell(events);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proto::reason::Reason;

    use super::*;
    use crate::{
        events::{Kind, Position},
        snapshot::tests::{group, with_groups},
    };

    async fn open(dir: &Path) -> (Store, Writer) {
        let metrics = Metrics::new();
        super::open(dir.to_owned(), "test".to_owned(), metrics)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn each_start_is_a_new_term_and_keeps_all() {
        let dir = tempfile::tempdir().unwrap();
        let (store, writer) = open(dir.path()).await;
        assert_eq!(store.snapshot().version().to_string(), "1.1");
        let after = store
            .commit(|now| change::create_group(now, &group("g1", 7000, 0)))
            .await
            .unwrap();
        assert_eq!(after.head.revision, 2);
        assert_eq!(store.snapshot(), after);
        writer.close().await.unwrap();

        let (again, writer) = open(dir.path()).await;
        let now = again.snapshot();
        assert_eq!(now.version().to_string(), "2.3");
        assert_eq!(now.groups, after.groups);
        let kinds = again.events().after(None, 9).unwrap();
        let kinds: Vec<Kind> = kinds.iter().map(|e| e.kind).collect();
        let started = Kind::ControllerStarted;
        assert_eq!(
            kinds,
            [started, Kind::GroupCreated, Kind::ServerCreated, started]
        );
        writer.close().await.unwrap();
    }

    #[tokio::test]
    async fn decisions_see_what_was_committed_before_them() {
        let dir = tempfile::tempdir().unwrap();
        let (store, writer) = open(dir.path()).await;
        let create = || store.commit(|now| change::create_group(now, &group("g1", 7000, 0)));
        let (one, two) = tokio::join!(create(), create());
        assert!(one.is_ok());
        let Err(CommitError::Refused(refusal)) = two else {
            panic!("the second must be refused: {two:?}");
        };
        assert_eq!(refusal.reason, Reason::GroupExists);
        assert_eq!(store.snapshot().head.revision, 2);
        writer.close().await.unwrap();
        assert!(matches!(create().await, Err(CommitError::Closed)));
    }

    #[tokio::test]
    async fn live_events_stand_between_the_durable_ones() {
        let dir = tempfile::tempdir().unwrap();
        let (store, writer) = open(dir.path()).await;
        let mut newest = store.events().subscribe();
        store.note(Draft::new("proxy/p1", Kind::ProxyConnected, "m"));
        newest.changed().await.unwrap();
        let events = store.events().after(None, 9).unwrap();
        assert_eq!(events[1].position, Position { term: 1, index: 2 });
        assert_eq!(
            (events[1].kind, events[1].revision),
            (Kind::ProxyConnected, 1)
        );
        assert_eq!(with_groups([]).head.revision, 2);
        writer.close().await.unwrap();
    }
}
