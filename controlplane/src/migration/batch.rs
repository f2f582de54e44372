//! Which slots are held next: few enough that all they have is soon equal at both servers.
//!
//! Pure. How many keys change says how many slots that are, so that a hold is short however much is written;
//! and whoever makes a hold long comes behind all others.

use proto::{Slot, SlotSet};

use super::Migration;
use crate::mover::Tally;

/// The slots that may be held: what has big values that were not copied yet is waited for, and what took too long
/// comes behind all others.
pub(super) fn ready(m: &Migration, uncopied: &SlotSet) -> SlotSet {
    let remaining = m.remaining();
    let untried = remaining.without(&m.deferred);
    match untried.is_empty() {
        true => remaining.without(uncopied),
        false => untried.without(uncopied),
    }
}

/// What is held next of the slots that are ready, of which there are some: several at a time; then, one at a time,
/// those that are slow, and those that took too long.
pub(super) fn next_batch(m: &Migration, dirt: &Tally, slow: &SlotSet, ready: &SlotSet) -> SlotSet {
    let untried = ready.without(&m.deferred);
    let quick = untried.without(slow);
    let keys = m.manner.dirty_max();
    if !quick.is_empty() {
        cleanest(&quick, dirt, keys, m.batch_most)
    } else if !untried.is_empty() {
        cleanest(&untried, dirt, keys, 1)
    } else {
        cleanest(ready, dirt, keys, 1)
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
