//! Which slots are held next: few enough that all they have is soon equal at both servers.
//!
//! Pure. How many keys change says how many slots that are, so that a hold is short however much is written;
//! and whoever makes a hold long comes behind all others.

use proto::{Slot, SlotSet};

use super::Migration;
use crate::mover::Tally;

/// What is held next: some slots at a time; then, one at a time, those that are slow, and those that took too
/// long.
pub(super) fn next_batch(m: &Migration, dirt: &Tally, slow: &SlotSet) -> SlotSet {
    let fresh = m.remaining().without(&m.deferred);
    let quick = fresh.without(slow);
    let keys = m.manner.dirty_max();
    if !quick.is_empty() {
        cleanest(&quick, dirt, keys, m.batch_most)
    } else if !fresh.is_empty() {
        cleanest(&fresh, dirt, keys, 1)
    } else {
        cleanest(&m.remaining(), dirt, keys, 1)
    }
}

/// Those of some slots that have the fewest dirty keys: as many as have no more than these together, but one at
/// least.
fn cleanest(slots: &SlotSet, dirt: &Tally, keys: u64, most: usize) -> SlotSet {
    let mut slots: Vec<Slot> = slots.iter().collect();
    slots.sort_by_key(|slot| dirt.of(*slot));
    let sums = slots.iter().scan(0, |sum, slot| {
        *sum += dirt.of(*slot);
        Some(*sum)
    });
    let few = sums.take_while(|sum| *sum <= keys).count();
    slots.into_iter().take(few.clamp(1, most.max(1))).collect()
}
