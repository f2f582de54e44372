//! How many keys there are, of each slot.

use std::fmt;

use proto::{SLOT_COUNT, Slot, SlotSet};

/// See the module.
#[derive(Clone, PartialEq, Eq)]
pub struct Tally {
    of_slots: Box<[u64; SLOT_COUNT]>,
    total: u64,
}

impl Default for Tally {
    /// No keys.
    fn default() -> Self {
        Self {
            of_slots: Box::new([0; SLOT_COUNT]),
            total: 0,
        }
    }
}

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slots = self.slots();
        let counts = slots.iter().map(|slot| (slot, self.of(slot)));
        f.debug_map().entries(counts).finish()
    }
}

impl Tally {
    /// So many keys more of a slot.
    pub fn add(&mut self, slot: Slot, keys: u64) {
        self.of_slots[slot.index()] += keys;
        self.total += keys;
    }

    /// A key less, of those that were added.
    pub(super) fn remove(&mut self, slot: Slot) {
        self.of_slots[slot.index()] -= 1;
        self.total -= 1;
    }

    /// The keys of another, instead.
    pub(super) fn become_like(&mut self, other: &Self) {
        self.of_slots.copy_from_slice(&other.of_slots[..]);
        self.total = other.total;
    }

    /// All keys of another, besides.
    pub(super) fn add_all(&mut self, other: &Self) {
        for (own, other) in self.of_slots.iter_mut().zip(other.of_slots.iter()) {
            *own += other;
        }
        self.total += other.total;
    }

    /// How many of this slot.
    pub fn of(&self, slot: Slot) -> u64 {
        self.of_slots[slot.index()]
    }

    /// How many of these slots.
    pub fn of_all(&self, slots: &SlotSet) -> u64 {
        slots.iter().map(|slot| self.of(slot)).sum()
    }

    /// How many of all slots.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The slots that have any.
    pub fn slots(&self) -> SlotSet {
        Slot::all().filter(|slot| self.of(*slot) > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_counted_by_their_slots() {
        let [one, two] = [1, 2].map(|number| Slot::new(number).unwrap());
        let mut tally = Tally::default();
        tally.add(one, 3);
        tally.add(two, 1);
        tally.remove(two);
        assert_eq!((tally.of(one), tally.of(two), tally.total()), (3, 0, 3));
        assert_eq!(tally.slots(), [one].into_iter().collect());
        let mut sum = tally.clone();
        sum.add(two, 4);
        sum.add_all(&tally);
        assert_eq!(sum.total(), 10);
        assert_eq!(sum.of_all(&[one, two].into_iter().collect()), 10);
        assert_eq!(sum.of_all(&[two].into_iter().collect()), 4);
        assert_eq!(format!("{sum:?}"), "{1: 6, 2: 4}");
    }
}
