//! The store: one writer, and a snapshot for everybody else.
//!
//! A thread of its own runs the decisions (`change.rs`), one at a time, each against the newest
//! snapshot; writes what they change; and only when that is synced publishes the next snapshot, then
//! the events, then answers. So a caller that was answered reads its own write.
//!
//! A write that failed leaves the disk in an unknown state. The thread then ends, and the process
//! with it: what is durable is found out by opening the store again.

use std::{
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time,
};
use tracing::{error, warn};

use crate::{
    change::{self, Change, Decision, Refusal},
    clock,
    disk::{Disk, Loaded, OpenError, WriteError},
    events::{Draft, Event, EventLog, Position, Ring},
    metrics::{CommitResult, Metrics},
    snapshot::Snapshot,
};

/// How many commits and live events may wait for the writer.
const QUEUE: usize = 1024;

/// How long a commit may take, from asking to answer. A healthy disk needs milliseconds.
const COMMIT_DEADLINE: Duration = Duration::from_secs(10);

/// A decision to be run on the writer. It may be run again after a conflict.
type Decide = Box<dyn Fn(&Snapshot) -> Decision + Send>;

enum Job {
    Commit {
        decide: Decide,
        reply: oneshot::Sender<Result<Arc<Snapshot>, CommitError>>,
    },
    Note(Draft),
    Close,
}

/// Why nothing was committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The decision was no.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// It is unknown whether it was written.
    #[error("{0}; whether the change was taken shows after the restart of the controller")]
    Failed(WriteError),
    /// The disk is too slow. It may be written yet.
    #[error("the store did not answer within {COMMIT_DEADLINE:?}; the change may yet be taken")]
    TimedOut,
    /// The store is closed.
    #[error("the controller is shutting down")]
    Closed,
}

/// Why the writer ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum EndedError {
    /// The disk failed.
    #[error(transparent)]
    Failed(#[from] WriteError),
    /// There is a fault in this program.
    #[error("the store's thread panicked")]
    Panicked,
}

/// A handle to the store; cheap to clone.
#[derive(Clone)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    events: Arc<EventLog>,
}

/// The writer's thread, to be closed by whoever opened the store.
pub struct Writer {
    jobs: mpsc::Sender<Job>,
    done: oneshot::Receiver<Result<(), WriteError>>,
}

impl Store {
    /// Opens or creates the store, and starts its writer in a new leader term.
    pub async fn open(
        dir: PathBuf,
        cluster: String,
        metrics: Metrics,
    ) -> Result<(Self, Writer), OpenError> {
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
                let handle = (thread.snapshots.subscribe(), thread.events.clone());
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
        let store = Self {
            jobs: jobs.clone(),
            snapshots,
            events,
        };
        Ok((store, Writer { jobs, done }))
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    /// The newest snapshot, and those to come. Ends with the store.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// The events.
    pub fn events(&self) -> &Arc<EventLog> {
        &self.events
    }

    /// Decides and commits. Returns the snapshot after it, which is durable; or the present one, if
    /// nothing was to change.
    pub async fn commit(
        &self,
        decide: impl Fn(&Snapshot) -> Decision + Send + 'static,
    ) -> Result<Arc<Snapshot>, CommitError> {
        let (reply, answer) = oneshot::channel();
        let job = Job::Commit {
            decide: Box::new(decide),
            reply,
        };
        let answered = async {
            self.jobs.send(job).await.ok()?;
            answer.await.ok()
        };
        match time::timeout(COMMIT_DEADLINE, answered).await {
            Ok(Some(result)) => result,
            Ok(None) => Err(CommitError::Closed),
            Err(_) => Err(CommitError::TimedOut),
        }
    }

    /// Tells of something that happened and is no change of the store. Never waits: while the disk
    /// is so slow that the queue is full, such events are dropped.
    pub fn note(&self, event: Draft) {
        if let Err(mpsc::error::TrySendError::Full(Job::Note(event))) =
            self.jobs.try_send(Job::Note(event))
        {
            warn!(subject = event.subject, kind = %event.kind, "store is too slow, event dropped");
        }
    }
}

impl Writer {
    /// Resolves when the writer ended by itself, which is a failure.
    pub async fn ended(&mut self) -> EndedError {
        match (&mut self.done).await {
            Ok(Err(e)) => EndedError::Failed(e),
            Ok(Ok(())) | Err(_) => EndedError::Panicked,
        }
    }

    /// Lets the writer finish what was asked, syncs, and ends it.
    pub async fn close(self) -> Result<(), EndedError> {
        if self.jobs.send(Job::Close).await.is_err() {
            return Ok(()); // it has ended already, and `ended` has told
        }
        match self.done.await {
            Ok(result) => Ok(result?),
            Err(_) => Err(EndedError::Panicked),
        }
    }
}

/// The version of this software.
pub const BUILD_VERSION: &str = env!("CARGO_PKG_VERSION");

/// What only the writer's thread touches.
struct Thread {
    disk: Disk,
    snapshots: watch::Sender<Arc<Snapshot>>,
    events: Arc<EventLog>,
    /// Of the newest event.
    position: Position,
    /// Events that the log has dropped and the disk has not.
    stale: Vec<Position>,
    metrics: Metrics,
}

impl Thread {
    fn new(disk: Disk, loaded: Loaded, metrics: Metrics) -> Self {
        let ring = Ring::new(loaded.events);
        Self {
            disk,
            snapshots: watch::Sender::new(Arc::new(loaded.snapshot)),
            position: ring.newest().unwrap_or(Position { term: 0, index: 0 }),
            events: Arc::new(EventLog::new(ring)),
            stale: Vec::new(),
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
        let events = self.place(&next, &change.events);
        let begun = Instant::now();
        self.disk
            .commit(now, &next, &change, &events, &self.stale)?;
        self.metrics.committed(CommitResult::Committed);
        self.metrics.commit_took(begun.elapsed());
        self.snapshots.send_replace(next.clone());
        self.tell(events);
        Ok(next)
    }

    fn note(&mut self, draft: Draft) -> Result<(), WriteError> {
        let now = self.snapshots.borrow().clone();
        let events = self.place(&now, &[draft]);
        self.disk.append(&events, &self.stale).inspect_err(|e| {
            error!(error = %e, "store failed, the controller must be restarted");
        })?;
        self.tell(events);
        Ok(())
    }

    /// Gives the events their places.
    fn place(&mut self, at: &Snapshot, drafts: &[Draft]) -> Vec<Event> {
        let place = |draft: &Draft| {
            self.position = self.position.next(at.head.leader_term);
            Event {
                position: self.position,
                time_ms: clock::now_ms(),
                revision: at.head.revision,
                subject: draft.subject.clone(),
                kind: draft.kind,
                message: draft.message.clone(),
            }
        };
        drafts.iter().map(place).collect()
    }

    fn tell(&mut self, events: Vec<Event>) {
        for event in &events {
            self.metrics.event(event.kind);
        }
        self.stale = self.events.append(events);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proto::reason::Reason;

    use super::*;
    use crate::{
        events::Kind,
        snapshot::tests::{group, with_groups},
    };

    async fn open(dir: &Path) -> (Store, Writer) {
        let metrics = Metrics::new();
        Store::open(dir.to_owned(), "test".to_owned(), metrics)
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
