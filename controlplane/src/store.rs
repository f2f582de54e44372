//! The store: one writer, and a snapshot for everybody else.
//!
//! The writer runs the decisions (`change.rs`), one at a time, each against the newest snapshot; writes
//! what they change; and only when that is durable publishes the next snapshot, then the events, then
//! answers. So a caller that was answered reads its own write.
//!
//! There are two stores behind this one door: the embedded one ([`crate::embedded`]), where a folder of
//! this machine is the truth and this controller always leads; and ZooKeeper ([`crate::ensemble`]),
//! where one of several controllers leads, and the others stand by.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time,
};
use tracing::warn;

use crate::{
    change::{Decision, Refusal},
    disk::WriteError,
    events::{Draft, EventLog},
    snapshot::Snapshot,
};

/// How many commits and live events may wait for the writer.
pub(crate) const QUEUE: usize = 1024;

/// How long a commit may take, from asking to answer. A healthy store needs milliseconds.
const COMMIT_DEADLINE: Duration = Duration::from_secs(10);

/// The version of this software.
pub const BUILD_VERSION: &str = env!("CARGO_PKG_VERSION");

/// A decision to be run on the writer. It may be run again after a conflict.
pub(crate) type Decide = Box<dyn Fn(&Snapshot) -> Decision + Send>;

/// Who waits for a commit.
pub(crate) type Reply = oneshot::Sender<Result<Arc<Snapshot>, CommitError>>;

/// What the writer is asked to do.
pub(crate) enum Job {
    /// To decide and commit.
    Commit {
        /// What.
        decide: Decide,
        /// For whom.
        reply: Reply,
    },
    /// To tell of something that is no change.
    Note(Draft),
    /// To finish, and end.
    Close,
}

/// What this controller is to its cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It leads: it takes changes and serves proxies.
    Leads,
    /// It is the leader, and cannot ask whether it is so still: the way to ZooKeeper is lost. Nobody else can
    /// have been elected yet. It begins nothing; what it has begun may end.
    Pauses,
    /// Another one leads, and is to be asked; where its gRPC is reached.
    StandsBy {
        /// `HOST:PORT`.
        leader: String,
    },
    /// Nobody is known to lead: ZooKeeper is out of reach, or there is an election. What is read may be
    /// old; proxies are served, for they are better off with an old topology than with none.
    Adrift,
}

impl Standing {
    /// Nobody else can lead: what was begun may go on.
    pub fn is_in_office(&self) -> bool {
        match self {
            Self::Leads | Self::Pauses => true,
            Self::StandsBy { .. } | Self::Adrift => false,
        }
    }
}

/// Why nothing was committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The decision was no.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// Another controller leads, or none; nothing was changed.
    #[error("{}", not_leading(.0))]
    NotLeading(Standing),
    /// It is unknown whether it was written.
    #[error("{0}; whether the change was taken shows after the restart of the controller")]
    Failed(WriteError),
    /// Somebody else keeps writing the same nodes.
    #[error(
        "the cluster's nodes in ZooKeeper were changed again and again while it was decided; nothing was \
         changed"
    )]
    Contended,
    /// ZooKeeper was lost in the middle of it.
    #[error(
        "ZooKeeper was lost before it answered; whether the change was taken shows in what is read"
    )]
    Unknown,
    /// The store is too slow. It may be written yet.
    #[error("the store did not answer within {COMMIT_DEADLINE:?}; the change may yet be taken")]
    TimedOut,
    /// The store is closed.
    #[error("the controller is shutting down")]
    Closed,
}

fn not_leading(standing: &Standing) -> String {
    match standing {
        Standing::StandsBy { leader } => format!("the controller at {leader} leads: ask it"),
        Standing::Pauses => {
            "the leader changes nothing while ZooKeeper is out of reach; nothing was \
                             changed"
                .to_owned()
        }
        Standing::Leads | Standing::Adrift => {
            "no controller leads while ZooKeeper is out of reach; nothing was changed".to_owned()
        }
    }
}

/// Why the writer ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum EndedError {
    /// The disk failed.
    #[error(transparent)]
    Failed(#[from] WriteError),
    /// There is a fault in this program.
    #[error("the store's writer panicked")]
    Panicked,
}

/// A handle to the store; cheap to clone.
#[derive(Clone)]
pub struct Store {
    pub(crate) jobs: mpsc::Sender<Job>,
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(crate) standings: watch::Receiver<Standing>,
    pub(crate) events: Arc<EventLog>,
}

/// The store's writer, to be closed by whoever opened the store.
pub struct Writer {
    pub(crate) jobs: mpsc::Sender<Job>,
    pub(crate) done: oneshot::Receiver<Result<(), WriteError>>,
}

impl Store {
    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    /// The newest snapshot, and those to come. Ends with the store.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// The newest snapshot, if this controller leads, so that it may begin something; its term is then no
    /// later than this one's own.
    pub fn leading(&self) -> Option<Arc<Snapshot>> {
        // In this order: whoever stops to lead says so before it shows another one's snapshot.
        let now = self.snapshot();
        (*self.standings.borrow() == Standing::Leads).then_some(now)
    }

    /// The same, if it leads or pauses: what it has begun may go on.
    pub fn in_office(&self) -> Option<Arc<Snapshot>> {
        let now = self.snapshot();
        self.standings.borrow().is_in_office().then_some(now)
    }

    /// What this controller is to the cluster, now and later.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standings.clone()
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

    /// Tells of something that happened and is no change of the store. Never waits: while the store is
    /// so slow that the queue is full, such events are dropped; so they are where it does not lead.
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
