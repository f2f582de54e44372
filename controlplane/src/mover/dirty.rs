//! The keys that have changed at the source since they were copied: each once, in some order.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::Arc,
};

use proto::{Slot, SlotSet};

use super::tally::Tally;

/// A key, as a server has it. Shared, never copied.
pub(super) type Key = Arc<[u8]>;

/// What a key costs here besides its bytes, about.
const OVERHEAD: usize = 64;

/// In which order keys are taken.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum Order {
    /// The oldest change first.
    #[default]
    Age,
    /// Slot by slot, of each the oldest change first. When more changes than can be copied, at least the first
    /// slots have few that are dirty: enough for the next hold.
    Slot,
}

/// See the module.
#[derive(Default)]
pub(super) struct Dirty {
    order: Order,
    /// By slot, if that is the order; all in the first, if not. None is empty.
    queues: BTreeMap<Slot, VecDeque<Key>>,
    known: HashSet<Key>,
    tally: Tally,
    bytes: usize,
}

impl Dirty {
    /// None yet.
    pub(super) fn new(order: Order) -> Self {
        Self {
            order,
            ..Self::default()
        }
    }

    /// Adds a key, unless it is there.
    pub(super) fn insert(&mut self, key: Key) {
        if self.known.insert(key.clone()) {
            self.bytes += key.len() + OVERHEAD;
            let slot = Slot::of_key(&key);
            self.tally.add(slot, 1);
            let queue = match self.order {
                Order::Age => Slot::all().next().expect("there are slots"),
                Order::Slot => slot,
            };
            self.queues.entry(queue).or_default().push_back(key);
        }
    }

    /// Whether a key is among them.
    pub(super) fn contains(&self, key: &Key) -> bool {
        self.known.contains(key)
    }

    /// Whether something is true of all of them.
    pub(super) fn all(&self, test: impl FnMut(&Key) -> bool) -> bool {
        self.queues.values().flatten().all(test)
    }

    /// How many of them are of each slot.
    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// What they cost in memory, in bytes, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes the first out, this many at most.
    pub(super) fn take(&mut self, most: usize) -> Vec<Key> {
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(mut queue) = self.queues.first_entry()
        {
            let keys = queue.get_mut();
            taken.extend(keys.drain(..keys.len().min(most - taken.len())));
            if keys.is_empty() {
                queue.remove();
            }
        }
        self.forget(&taken);
        taken
    }

    /// Takes out all keys of these slots.
    pub(super) fn take_of(&mut self, slots: &SlotSet) -> Vec<Key> {
        let mut taken = Vec::new();
        let order = self.order;
        self.queues.retain(|slot, queue| {
            if order == Order::Slot {
                let is_theirs = slots.contains(*slot);
                if is_theirs {
                    taken.extend(queue.drain(..));
                }
                return !is_theirs;
            }
            let (of_slots, kept): (VecDeque<Key>, VecDeque<Key>) = std::mem::take(queue)
                .into_iter()
                .partition(|key| slots.owns(key));
            taken.extend(of_slots);
            *queue = kept;
            !queue.is_empty()
        });
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
    fn or_slot_by_slot() {
        let mut dirty = Dirty::new(Order::Slot);
        let mut keys = ["a", "b", "c", "{a}2", "{b}2"].map(key);
        for key in &keys {
            dirty.insert(key.clone());
        }
        keys.sort_by_key(|key| Slot::of_key(key)); // of each slot in order
        assert_eq!(dirty.take(3), keys[..3]);
        dirty.insert(keys[0].clone());
        assert_eq!(dirty.take(1), keys[..1]);
        assert_eq!(dirty.len(), 2);
        let last: SlotSet = [Slot::of_key(&keys[4])].into_iter().collect();
        assert_eq!(dirty.take_of(&last), keys[3..]);
        assert!(dirty.is_empty() && dirty.take_of(&last).is_empty());
        keys[3..].iter().for_each(|key| dirty.insert(key.clone()));
        assert_eq!(dirty.take(9), keys[3..]);
        assert!(dirty.is_empty());
    }

    #[test]
    fn those_of_some_slots() {
        let mut dirty = Dirty::default();
        for text in ["a", "b", "{a}2"] {
            dirty.insert(key(text));
        }
        let slots: SlotSet = [Slot::of_key(b"a")].into_iter().collect();
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
