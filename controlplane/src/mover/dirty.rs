//! The keys that have changed at the source since they were copied: each once, the oldest change first.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use proto::{Slot, SlotSet};

use super::tally::Tally;

/// A key, as a server has it. Shared, never copied.
pub(super) type Key = Arc<[u8]>;

/// What a key costs here besides its bytes, about.
const OVERHEAD: usize = 64;

/// See the module.
#[derive(Default)]
pub(super) struct Dirty {
    queue: VecDeque<Key>,
    known: HashSet<Key>,
    tally: Tally,
    bytes: usize,
}

impl Dirty {
    /// Adds a key, unless it is there.
    pub(super) fn insert(&mut self, key: Key) {
        if self.known.insert(key.clone()) {
            self.bytes += key.len() + OVERHEAD;
            self.tally.add(Slot::of_key(&key), 1);
            self.queue.push_back(key);
        }
    }

    /// Whether a key is among them.
    pub(super) fn contains(&self, key: &Key) -> bool {
        self.known.contains(key)
    }

    /// How many of them are of these slots.
    pub(super) fn count_of(&self, slots: &SlotSet) -> usize {
        self.queue.iter().filter(|key| slots.owns(key)).count()
    }

    /// Whether something is true of all of them.
    pub(super) fn all(&self, test: impl FnMut(&Key) -> bool) -> bool {
        self.queue.iter().all(test)
    }

    /// How many of them are of each slot.
    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// What they cost in memory, in bytes, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes the oldest out, this many at most.
    pub(super) fn take(&mut self, most: usize) -> Vec<Key> {
        let taken: Vec<Key> = self.queue.drain(..most.min(self.queue.len())).collect();
        self.forget(&taken);
        taken
    }

    /// Takes out all keys of these slots.
    pub(super) fn take_of(&mut self, slots: &SlotSet) -> Vec<Key> {
        let queue = std::mem::take(&mut self.queue);
        let (taken, kept) = queue.into_iter().partition(|key| slots.owns(key));
        self.queue = kept;
        let taken: VecDeque<Key> = taken;
        let taken = Vec::from(taken);
        self.forget(&taken);
        taken
    }

    fn forget(&mut self, taken: &[Key]) {
        for key in taken {
            self.known.remove(key);
            self.bytes -= key.len() + OVERHEAD;
            self.tally.remove(Slot::of_key(key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::from(text.as_bytes())
    }

    #[test]
    fn each_once_and_in_order() {
        let mut dirty = Dirty::default();
        for text in ["a", "b", "a", "c"] {
            dirty.insert(key(text));
        }
        assert_eq!(dirty.take(2), [key("a"), key("b")]);
        dirty.insert(key("a"));
        assert_eq!(dirty.take(9), [key("c"), key("a")]);
        assert!(dirty.is_empty());
        assert_eq!(dirty.bytes(), 0);
    }

    #[test]
    fn those_of_some_slots() {
        let mut dirty = Dirty::default();
        for text in ["a", "b", "{a}2"] {
            dirty.insert(key(text));
        }
        let slots: SlotSet = [Slot::of_key(b"a")].into_iter().collect();
        assert_eq!(dirty.count_of(&slots), 2);
        assert_eq!(dirty.tally().of(Slot::of_key(b"a")), 2);
        assert_eq!(
            dirty.tally().slots(),
            slots.with(&[Slot::of_key(b"b")].into_iter().collect())
        );
        assert_eq!(dirty.take_of(&slots), [key("a"), key("{a}2")]);
        assert!(!dirty.contains(&key("a")) && dirty.contains(&key("b")));
        assert_eq!((dirty.len(), dirty.tally().total()), (1, 1));
        dirty.insert(key("a"));
        assert_eq!(dirty.take(9), [key("b"), key("a")]);
    }
}
