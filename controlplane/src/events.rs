//! What happened in the cluster, for those who watch it.
//!
//! The newest [`KEPT`] events are held in memory, in order; the store keeps them too, and is the only
//! one to append. A watcher has no queue of its own: it holds the position of the event it saw last
//! and reads on from there. One that falls behind all that is kept has lost events and is told so.
//!
//! Invariant: positions only grow. A position names the leader term, because events that were not
//! yet synced may be lost in a crash: the next term then numbers anew, and no position is ever
//! given to two events.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use proto::{ClusterId, v1};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{clock, metrics::Metrics, snapshot::Snapshot};

/// How many events are kept.
pub const KEPT: usize = 10_000;

/// What happened, in a word. The variant's name is the word on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[allow(missing_docs)] // admin.proto has them
pub enum Kind {
    GroupCreated,
    GroupUpdated,
    GroupDeleted,
    ServerCreated,
    ServerUpdated,
    ServerDeleted,
    ServerReachable,
    ServerUnreachable,
    /// The role a server says it has is no longer the one it has in its group, or is so again.
    ServerRoleChanged,
    SlotsAssigned,
    MigrationCreated,
    MigrationUpdated,
    /// It entered another phase.
    MigrationAdvanced,
    ProxyRegistered,
    ProxyConnected,
    ProxyDisconnected,
    ProxyAcked,
    ProxyNacked,
    /// Before it is deleted.
    ProxyShutOut,
    ProxyDeleted,
    ClusterRestored,
    RecordsEdited,
    ControllerStarted,
    /// Higher numbers than the store's were found, and it goes on above them.
    StoreLeapt,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// An event that has no position yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Draft {
    /// What it is about: `group/g1`.
    pub subject: String,
    /// What happened, for programs.
    pub kind: Kind,
    /// What happened, for people.
    pub message: String,
}

impl Draft {
    /// Puts the parts together.
    pub fn new(subject: impl Into<String>, kind: Kind, message: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            kind,
            message: message.into(),
        }
    }
}

/// Where an event stands among all of the cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Position {
    /// The leader term in which it happened.
    pub term: u64,
    /// From 1 in each term.
    pub index: u64,
}

impl Position {
    /// The position after this one, in a term that is the same or later.
    pub fn next(self, term: u64) -> Self {
        let index = if self.term == term { self.index + 1 } else { 1 };
        Self { term, index }
    }

    /// As a caller sees it. Opaque to them.
    pub fn token(self, cluster: &ClusterId) -> String {
        format!("{cluster}.{}.{}", self.term, self.index)
    }

    /// Reads a token. `None`: it is none of this cluster.
    pub fn from_token(token: &str, cluster: &ClusterId) -> Option<Self> {
        let (term, index) = token
            .strip_prefix(cluster.as_str())?
            .strip_prefix('.')?
            .split_once('.')?;
        Some(Self {
            term: term.parse().ok()?,
            index: index.parse().ok()?,
        })
    }
}

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Where it stands.
    pub position: Position,
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// The store's revision when it happened.
    pub revision: u64,
    /// What it is about.
    pub subject: String,
    /// What happened, for programs.
    pub kind: Kind,
    /// What happened, for people.
    pub message: String,
}

impl Event {
    /// As it goes over the wire.
    pub fn to_wire(&self, cluster: &ClusterId) -> v1::Event {
        v1::Event {
            resume_token: self.position.token(cluster),
            time: Some(clock::timestamp(self.time_ms)),
            revision: self.revision,
            subject: self.subject.clone(),
            reason: self.kind.to_string(),
            message: self.message.clone(),
        }
    }
}

/// Events after a position are not kept any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lost;

/// The newest events, in order. Pure.
#[derive(Default, Debug)]
pub struct Ring {
    events: VecDeque<Arc<Event>>,
    /// Everything after it is kept.
    floor: Option<Position>,
}

impl Ring {
    /// Those that were kept before. What came before the first of them may be lost.
    pub fn new(events: impl IntoIterator<Item = Event>) -> Self {
        let events: VecDeque<_> = events.into_iter().map(Arc::new).collect();
        let first = Position { term: 1, index: 1 };
        let floor = events.front().map(|e| e.position).filter(|p| *p > first);
        Self {
            events,
            floor: floor.map(|p| Position {
                index: p.index - 1,
                ..p
            }),
        }
    }

    /// Of a term that has just begun; what came before it is not known here.
    pub fn since(term: u64) -> Self {
        Self {
            events: VecDeque::new(),
            floor: Some(Position { term, index: 0 }),
        }
    }

    /// Appends an event. Returns one that is kept no longer.
    pub fn push(&mut self, event: Event) -> Option<Arc<Event>> {
        self.events.push_back(Arc::new(event));
        if self.events.len() <= KEPT {
            return None;
        }
        let dropped = self.events.pop_front();
        self.floor = dropped.as_ref().map(|event| event.position);
        dropped
    }

    /// The position of the newest.
    pub fn newest(&self) -> Option<Position> {
        self.events.back().map(|event| event.position)
    }

    /// At most `limit` events after a position; none: from the first of all.
    pub fn after(&self, seen: Option<Position>, limit: usize) -> Result<Vec<Arc<Event>>, Lost> {
        // A position beyond the newest is of a store that was rolled back since.
        if seen < self.floor || seen > self.newest() {
            return Err(Lost);
        }
        let start = self.events.partition_point(|e| Some(e.position) <= seen);
        Ok(self.events.range(start..).take(limit).cloned().collect())
    }
}

/// The ring, shared: one writer, the store; any number of watchers.
pub struct EventLog {
    ring: Mutex<Ring>,
    newest: watch::Sender<Option<Position>>,
}

impl EventLog {
    /// Shares a ring.
    pub fn new(ring: Ring) -> Self {
        Self {
            newest: watch::Sender::new(ring.newest()),
            ring: Mutex::new(ring),
        }
    }

    /// Appends events and wakes the watchers. Only the store calls it. Returns the positions that
    /// are kept no longer.
    pub fn append(&self, events: Vec<Event>) -> Vec<Position> {
        let (dropped, newest) = {
            let mut ring = self.lock();
            let dropped = events.into_iter().filter_map(|event| ring.push(event));
            let dropped = dropped.map(|event| event.position).collect();
            (dropped, ring.newest())
        };
        self.newest.send_replace(newest);
        dropped
    }

    /// Forgets all events: those of the terms before this one were another controller's.
    fn restart(&self, term: u64) {
        *self.lock() = Ring::since(term);
        self.newest.send_replace(None);
    }

    /// See [`Ring::after`].
    pub fn after(&self, seen: Option<Position>, limit: usize) -> Result<Vec<Arc<Event>>, Lost> {
        self.lock().after(seen, limit)
    }

    /// The position of the newest, and its changes.
    pub fn subscribe(&self) -> watch::Receiver<Option<Position>> {
        self.newest.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        // The ring is whole between any two of its statements: a panic elsewhere does not spoil it.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The store's side of the log: gives events their places, and remembers what is to be forgotten.
pub(crate) struct Journal {
    log: Arc<EventLog>,
    /// Of the newest event.
    position: Position,
    /// Events that the log has dropped and the disk has not.
    stale: Vec<Position>,
    metrics: Metrics,
}

impl Journal {
    /// Goes on behind the events that were kept.
    pub(crate) fn new(kept: Vec<Event>, metrics: Metrics) -> Self {
        let ring = Ring::new(kept);
        Self {
            position: ring.newest().unwrap_or(Position { term: 0, index: 0 }),
            log: Arc::new(EventLog::new(ring)),
            stale: Vec::new(),
            metrics,
        }
    }

    /// What the watchers read.
    pub(crate) fn log(&self) -> &Arc<EventLog> {
        &self.log
    }

    /// Events that need not be kept any longer.
    pub(crate) fn stale(&self) -> &[Position] {
        &self.stale
    }

    /// Begins anew with this term: whoever watched another controller's is told that events were lost.
    pub(crate) fn restart(&mut self, term: u64) {
        if self.position.term == term {
            return; // it has led in this term before
        }
        self.position = Position { term, index: 0 };
        self.stale.clear();
        self.log.restart(term);
    }

    /// Gives the events their places.
    pub(crate) fn place(&mut self, at: &Snapshot, drafts: &[Draft]) -> Vec<Event> {
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

    /// Tells the watchers.
    pub(crate) fn tell(&mut self, events: Vec<Event>) {
        for event in &events {
            self.metrics.event(event.kind);
        }
        self.stale = self.log.append(events);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(term: u64, index: u64) -> Event {
        Event {
            position: Position { term, index },
            time_ms: 0,
            revision: 1,
            subject: "slots".to_owned(),
            kind: Kind::SlotsAssigned,
            message: String::new(),
        }
    }

    fn indexes(ring: &Ring, seen: Option<Position>, limit: usize) -> Result<Vec<u64>, Lost> {
        let events = ring.after(seen, limit)?;
        Ok(events.iter().map(|e| e.position.index).collect())
    }

    #[test]
    fn a_watcher_reads_on_where_it_was() {
        let ring = Ring::new([event(1, 1), event(1, 2), event(2, 1), event(2, 2)]);
        let at = |term, index| Some(Position { term, index });
        assert_eq!(indexes(&ring, None, 9), Ok(vec![1, 2, 1, 2]));
        assert_eq!(indexes(&ring, at(1, 1), 2), Ok(vec![2, 1]));
        assert_eq!(indexes(&ring, at(2, 2), 9), Ok(vec![]));
        // Event 1.3 was seen, and lost in a crash.
        assert_eq!(indexes(&ring, at(1, 3), 9), Ok(vec![1, 2]));
        assert_eq!(indexes(&ring, at(3, 1), 9), Err(Lost));
    }

    #[test]
    fn what_is_not_kept_is_lost() {
        let mut ring = Ring::default();
        for index in 1..=KEPT as u64 {
            assert!(ring.push(event(1, index)).is_none());
        }
        assert_eq!(indexes(&ring, None, 1), Ok(vec![1]));
        let dropped = ring.push(event(1, KEPT as u64 + 1)).unwrap();
        assert_eq!(dropped.position.index, 1);
        assert_eq!(indexes(&ring, None, 1), Err(Lost));
        assert_eq!(indexes(&ring, Some(dropped.position), 1), Ok(vec![2]));
        let reopened = Ring::new(ring.events.iter().map(|e| Event::clone(e)));
        assert_eq!(indexes(&reopened, None, 1), Err(Lost));
        assert_eq!(indexes(&reopened, Some(dropped.position), 1), Ok(vec![2]));
    }

    #[test]
    fn tokens_are_read_back() {
        let cluster = ClusterId::new("c-1").unwrap();
        let position = Position { term: 3, index: 7 };
        let token = position.token(&cluster);
        assert_eq!(Position::from_token(&token, &cluster), Some(position));
        for bad in ["", "c-1", "c-1.3", "c-1.3.x", "c-2.3.7", "c-1.3.7.1"] {
            assert_eq!(Position::from_token(bad, &cluster), None, "{bad}");
        }
    }
}
