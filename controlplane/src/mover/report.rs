//! How far a copy is: counters that its tasks add to, and what is told of them.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use proto::{Slot, SlotSet};

use super::tally::Tally;

/// What is told of a copy.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Progress {
    /// What it does.
    pub stage: Stage,
    /// Which attempt this is, from 1. What follows counts from its beginning.
    pub attempt: u32,
    /// Why the one before ended.
    pub interruption: Option<String>,
    /// The source tells of changes by keyspace events: not of all, so that the copy depends on what
    /// proxies note. Known once it copies.
    pub needs_notes: bool,
    /// Keys that the pass has seen, of whatever slot.
    pub seen: u64,
    /// Keys that the source had when the pass began.
    pub total: u64,
    /// Keys copied, or deleted at the target; one that changes counts each time.
    pub keys: u64,
    /// Bytes of values copied.
    pub bytes: u64,
    /// Keys that have changed and are not copied again yet.
    pub dirty: u64,
    /// The same by their slots, with big ones.
    pub dirt: Tally,
    /// Big keys that are to be copied by pieces, for the first time or again.
    pub big: u64,
    /// Big keys of which the pass knew, and whose first copy is not over: before that, nothing is to be held.
    pub awaited: u64,
    /// Slots that have a big key whose first copy is not over, whenever it was found: not to be held, since that
    /// would take too long.
    pub uncopied: SlotSet,
    /// The target has replicas, and none of them follows it: what is copied does not come to one.
    pub lacks_replica: bool,
    /// Slots that have a big key that is to be copied, or has changed since it was: they take longest to be
    /// settled.
    pub slow: SlotSet,
    /// Keys copied a second, lately.
    pub keys_per_second: u64,
    /// How much of its time the copy uses the source, in percent: less than 100 when that answers more
    /// slowly than before.
    pub share_percent: u8,
    /// What the target says to why nothing can be written to it now.
    pub waits_for: Option<String>,
}

/// What a copy does.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Stage {
    /// Connecting to both servers, or waiting to try again.
    #[default]
    Connecting,
    /// Deleting what the target has of the slots.
    Cleaning,
    /// Going through all keys of the source.
    Copying,
    /// All keys were copied; those that change are copied again. Only now it can be settled.
    Following,
}

/// Big keys, by how far their first copies are.
#[derive(Default)]
struct Big {
    /// Those of which it is not over.
    fresh: Tally,
    found: u64,
    tried: u64,
    /// How many were found when the pass was over.
    known: Option<u64>,
}

impl Big {
    /// How many are to be tried before any slots are held. They are about the first in turn; not all that is ever
    /// found, or clients that make such keys faster than they are copied would keep all slots where they are.
    fn awaited(&self) -> u64 {
        self.known.unwrap_or(self.found).saturating_sub(self.tried)
    }
}

/// A rate, smoothed over about a second, after so many keys in this time.
fn smoothed(rate: f64, keys: u64, time: Duration) -> f64 {
    let time = time.as_secs_f64().max(0.001);
    rate + (keys as f64 / time - rate) * time.min(1.0)
}

/// The counters of one attempt.
pub(super) struct Report {
    seen: AtomicU64,
    keys: AtomicU64,
    bytes: AtomicU64,
    /// Of each lane; of the one for big keys last.
    dirty: Vec<Mutex<Tally>>,
    big: Mutex<Big>,
    slow: Mutex<SlotSet>,
    waits_for: Mutex<Option<String>>,
    /// Keys copied a second, lately.
    rate: Mutex<f64>,
}

impl Report {
    /// All zero.
    pub(super) fn new(lanes: usize) -> Self {
        Self {
            seen: AtomicU64::new(0),
            keys: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            dirty: (0..=lanes).map(|_| Mutex::default()).collect(),
            big: Mutex::default(),
            slow: Mutex::new(SlotSet::EMPTY),
            waits_for: Mutex::new(None),
            rate: Mutex::new(0.0),
        }
    }

    /// The pass has seen keys.
    pub(super) fn seen(&self, keys: usize) {
        self.seen.fetch_add(keys as u64, Relaxed);
    }

    /// A key was copied, with a value of this size.
    pub(super) fn copied(&self, bytes: usize) {
        self.keys.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// How many dirty keys a lane has, and is about to hand over.
    pub(super) fn dirty(&self, lane: usize, keys: &Tally, handing: &Tally) {
        let mut told = self.dirty[lane]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        told.become_like(keys);
        if handing.total() > 0 {
            told.add_all(handing);
        }
    }

    fn big(&self) -> MutexGuard<'_, Big> {
        self.big.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A big key of this slot is found, and its first copy to be made.
    pub(super) fn found_big(&self, slot: Slot) {
        let mut big = self.big();
        big.fresh.add(slot, 1);
        big.found += 1;
    }

    /// The first copy of a big key of this slot is over, however it went.
    pub(super) fn tried_big(&self, slot: Slot) {
        let mut big = self.big();
        big.fresh.remove(slot);
        big.tried += 1;
    }

    /// The pass is over.
    pub(super) fn passed(&self) {
        let mut big = self.big();
        big.known = Some(big.found);
    }

    /// See [`Progress::awaited`].
    pub(super) fn awaited(&self) -> u64 {
        self.big().awaited()
    }

    /// These slots take longest to be settled.
    pub(super) fn slow(&self, slots: SlotSet) {
        *self.slow.lock().unwrap_or_else(PoisonError::into_inner) = slots;
    }

    /// Why the target takes no write, if it does not.
    pub(super) fn waits(&self, why: Option<String>) {
        *self
            .waits_for
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Writes the counters down; `since` is how long ago that was done before.
    pub(super) fn tell(&self, progress: &mut Progress, since: Duration) {
        let keys = self.keys.load(Relaxed);
        let new = keys.saturating_sub(progress.keys);
        let smooth = self.rate.lock();
        let mut smooth = smooth.unwrap_or_else(PoisonError::into_inner);
        *smooth = smoothed(*smooth, new, since);
        progress.keys_per_second = smooth.round() as u64;
        progress.seen = self.seen.load(Relaxed);
        progress.keys = keys;
        progress.bytes = self.bytes.load(Relaxed);
        progress.dirt = Tally::default();
        for lane in &self.dirty {
            let lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
            (progress.dirty, progress.big) = (progress.dirt.total(), lane.total());
            progress.dirt.add_all(&lane);
        }
        let big = self.big();
        (progress.awaited, progress.uncopied) = (big.awaited(), big.fresh.slots());
        drop(big);
        progress.slow = *self.slow.lock().unwrap_or_else(PoisonError::into_inner);
        let waits_for = self.waits_for.lock();
        progress.waits_for = waits_for.unwrap_or_else(PoisonError::into_inner).clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_after_the_pass_is_not_awaited() {
        let report = Report::new(1);
        let (early, late) = (Slot::of_key(b"a"), Slot::of_key(b"b"));
        report.found_big(early);
        assert_eq!(report.awaited(), 1);
        report.passed();
        report.found_big(late);
        assert_eq!(report.awaited(), 1);
        report.tried_big(early);
        let mut progress = Progress::default();
        report.tell(&mut progress, Duration::ZERO);
        let uncopied = [late].into_iter().collect();
        assert_eq!((progress.awaited, progress.uncopied), (0, uncopied));
        report.tried_big(late);
        assert_eq!(report.awaited(), 0);
    }

    #[test]
    fn a_rate_that_stays_is_told_however_low_it_is() {
        let often = Duration::from_millis(50);
        let after = |rate: f64, all: u64| {
            let second = (0..20).map(|n| u64::from(n % 2 == 0 && n / 2 < all));
            second.fold(rate, |rate, keys| smoothed(rate, keys, often))
        };
        let rate = (0..5).fold(0.0, |rate, _| after(rate, 10));
        assert!((9.0..11.5).contains(&rate), "{rate}");
        let rate = (0..10).fold(rate, |rate, _| after(rate, 0));
        assert!(rate < 0.5, "{rate}");
        assert_eq!(smoothed(0.0, 3000, Duration::from_secs(3)), 1000.0);
    }
}
