//! One of several lanes that copy at the same time.
//!
//! Each key has its lane, by its hash: so two copies of one key never overtake each other, and what is
//! written last at the target is what was read last at the source. A lane copies what the pass has found
//! and what has changed since, one batch at a time, until the attempt ends.
//!
//! *Draining* is its part of the cut-over: when the barrier has come, so has every change before it; then
//! all dirty keys of the slots are copied, and nothing of them is missing at the target.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use proto::SLOT_COUNT;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{self, Instant},
};

use super::{
    Interruption, Throttle,
    dirty::{Dirty, Key},
    relay::Relay,
    report::Report,
    slots::SlotSet,
};

/// Keys that are copied in one round trip, at most.
pub(super) const BATCH: usize = 128;
/// Dirty keys of one lane that go before those the pass has found.
const MANY: usize = 8192;
/// Memory that the dirty keys of one lane may take. Beyond it the copy starts over: nobody could cut over
/// with so many.
const MOST_BYTES: usize = 256 << 20;
/// How long changes are gathered before they are copied, when the pass is over: a key that changes all
/// the time is not copied more often.
const GATHER: Duration = Duration::from_millis(50);

/// Which of so many lanes a key has.
pub(super) fn of(key: &[u8], lanes: usize) -> usize {
    // What the slots leave of the hash: a copy of one slot must not have one lane.
    crc32fast::hash(key) as usize / SLOT_COUNT % lanes
}

/// Keys of a database that the pass has found.
pub(super) struct Found {
    pub(super) database: u32,
    pub(super) keys: Vec<Key>,
}

/// What the tracker and the attempt tell a lane.
pub(super) enum Notice {
    /// These have changed, in whatever database.
    Changed(Vec<Key>),
    /// All changes before this barrier were told.
    Barrier(u64),
    /// Copy all of these slots that is dirty at a barrier.
    Drain(Drain),
}

/// See [`Notice::Drain`].
pub(super) struct Drain {
    /// At which barrier.
    pub(super) barrier: u64,
    pub(super) slots: Arc<SlotSet>,
    /// Also all streams, dirty or not: somebody may have changed their consumer groups, which no server
    /// tells of.
    pub(super) streams: bool,
    /// How long to wait for a replica of the target, if it has one.
    pub(super) replica: Option<Duration>,
    /// Where the result goes. Nobody there: it came too late.
    pub(super) done: oneshot::Sender<Drained>,
}

/// What came of a [`Drain`].
#[derive(Debug)]
pub(super) struct Drained {
    /// Keys that were copied for it.
    pub(super) keys: u64,
    /// Whether a replica, if one was to be waited for, has all that this lane ever wrote.
    pub(super) replicated: bool,
}

/// See the module.
pub(super) struct Lane {
    pub(super) number: usize,
    pub(super) relay: Relay,
    pub(super) notices: mpsc::Receiver<Notice>,
    /// `None`: the pass is over.
    pub(super) found: Option<mpsc::Receiver<Found>>,
    /// Told once, when all that the pass has found is copied.
    pub(super) passed: Option<oneshot::Sender<()>>,
    pub(super) throttle: watch::Receiver<Throttle>,
    pub(super) report: Arc<Report>,
    pub(super) state: State,
}

/// What a lane knows.
#[derive(Default)]
pub(super) struct State {
    dirty: Dirty,
    /// All databases of the source that have had keys.
    databases: BTreeSet<u32>,
    /// All streams that were copied.
    streams: HashSet<Key>,
    /// The newest barrier that came.
    barrier: u64,
    drain: Option<Drain>,
    /// Before it changes are gathered.
    next_round: Option<Instant>,
}

impl Lane {
    /// Copies until that cannot go on.
    pub(super) async fn run(mut self) -> Interruption {
        loop {
            if let Err(why) = self.turn().await {
                return why;
            }
        }
    }

    async fn turn(&mut self) -> Result<(), Interruption> {
        while let Ok(notice) = self.notices.try_recv() {
            self.take(notice)?;
        }
        let due = |drain: &mut Drain| drain.barrier <= self.state.barrier;
        if let Some(drain) = self.state.drain.take_if(due) {
            return self.drain(drain).await;
        }
        let paused = self.throttle.borrow_and_update().paused;
        let dirty = self.state.dirty.len();
        let now = Instant::now();
        let gathering = self.state.next_round.filter(|round| *round > now);
        let round = self.found.is_none() && dirty > 0 && gathering.is_none();
        if !paused && (round || dirty >= MANY) {
            return self.copy_dirty(BATCH).await;
        }
        tokio::select! {
            biased;
            notice = self.notices.recv() => match notice {
                Some(notice) => self.take(notice),
                None => Err(Interruption::LaneGone),
            },
            found = next(&mut self.found), if !paused => match found {
                Some(found) => {
                    self.state.databases.insert(found.database);
                    self.copy(found.database, &found.keys).await
                }
                None => {
                    self.found = None;
                    if let Some(passed) = self.passed.take() {
                        passed.send(()).ok(); // the attempt has ended otherwise
                    }
                    Ok(())
                }
            },
            changed = self.throttle.changed() => changed.map_err(|_| Interruption::LaneGone),
            () = sleep_until(gathering), if dirty > 0 => Ok(()),
        }
    }

    fn take(&mut self, notice: Notice) -> Result<(), Interruption> {
        match notice {
            Notice::Changed(keys) => {
                let dirty = &mut self.state.dirty;
                if dirty.is_empty() {
                    self.state.next_round = Some(Instant::now() + GATHER);
                }
                for key in keys {
                    dirty.insert(key);
                }
                if dirty.bytes() > MOST_BYTES {
                    return Err(Interruption::TooManyDirty);
                }
                self.report.dirty(self.number, dirty.len());
            }
            Notice::Barrier(number) => self.state.barrier = self.state.barrier.max(number),
            Notice::Drain(drain) => self.state.drain = Some(drain),
        }
        Ok(())
    }

    /// Some of the dirty keys, in all databases: a change is told of without its database.
    async fn copy_dirty(&mut self, most: usize) -> Result<(), Interruption> {
        let keys = self.state.dirty.take(most);
        self.copy_everywhere(&keys).await?;
        self.report.dirty(self.number, self.state.dirty.len());
        Ok(())
    }

    /// The keys must have been taken before this: a database that has none of them and no other key when
    /// it is asked, and never had one, cannot be one in which one of them was written.
    async fn copy_everywhere(&mut self, keys: &[Key]) -> Result<(), Interruption> {
        if keys.is_empty() {
            return Ok(());
        }
        let databases = self.relay.databases().await?;
        self.state.databases.extend(databases);
        for database in self.state.databases.clone() {
            for batch in keys.chunks(BATCH) {
                self.copy(database, batch).await?;
            }
        }
        Ok(())
    }

    async fn copy(&mut self, database: u32, keys: &[Key]) -> Result<(), Interruption> {
        let copied = self.relay.copy(database, keys).await?;
        self.state.streams.extend(copied.streams);
        Ok(())
    }

    async fn drain(&mut self, drain: Drain) -> Result<(), Interruption> {
        let mut keys = self.state.dirty.take_of(&drain.slots);
        if drain.streams {
            let streams = self.state.streams.iter();
            let held = streams.filter(|key| drain.slots.owns(key));
            let known: HashSet<Key> = keys.iter().cloned().collect();
            keys.extend(held.filter(|key| !known.contains(*key)).cloned());
        }
        self.copy_everywhere(&keys).await?;
        self.report.dirty(self.number, self.state.dirty.len());
        self.relay.check_marks().await?;
        let replicated = match drain.replica {
            None => true,
            Some(most) => self.relay.wait_for_replica(most).await?,
        };
        let keys = keys.len() as u64;
        drain.done.send(Drained { keys, replicated }).ok(); // it came too late
        Ok(())
    }
}

/// What the pass finds next; never, when it is over.
async fn next(found: &mut Option<mpsc::Receiver<Found>>) -> Option<Found> {
    match found {
        Some(found) => found.recv().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_one_slot_use_all_lanes() {
        let mut counts = [0; 4];
        for n in 0..1000 {
            counts[of(format!("{{tag}}:{n}").as_bytes(), 4)] += 1;
        }
        assert!(counts.iter().all(|count| *count > 100), "{counts:?}");
    }
}
