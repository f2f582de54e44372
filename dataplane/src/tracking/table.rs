//! Which sessions may hold which keys in their caches.
//!
//! A session is registered for a key when its read is sent, and no longer once it has been told that the
//! key has changed. As at the servers, a key is a name: in whatever database. Bounded by the number of
//! registrations; what has to go is given back, to be told to its sessions first. Pure.
//!
//! Invariant: a session whose client may hold a key is registered for it.

use std::{collections::HashMap, rc::Rc};

use proto::Slot;
use slab::Slab;

/// Names a session that tracks; see [`super::Trackers`].
pub(crate) type Tracker = u32;

/// See the module.
#[derive(Default)]
pub(crate) struct Table {
    by_key: HashMap<Rc<[u8]>, u32>,
    entries: Slab<Entry>,
    registrations: usize,
    /// Bytes of keys and of trackers that are more than one.
    bytes: usize,
    /// Where the next entry that has to go is looked for.
    hand: usize,
}

pub(crate) struct Entry {
    pub(crate) key: Rc<[u8]>,
    slot: Slot,
    holders: Holders,
}

enum Holders {
    One(Tracker),
    /// Sorted.
    Many(Vec<Tracker>),
}

/// What an entry costs besides its key: in the slab, in the map, with the key's counts.
const COST: usize = size_of::<Entry>() + 48;

impl Entry {
    pub(crate) fn holders(&self) -> &[Tracker] {
        match &self.holders {
            Holders::One(tracker) => std::slice::from_ref(tracker),
            Holders::Many(trackers) => trackers,
        }
    }
}

impl Table {
    /// Registers a session for a key of this slot.
    pub(crate) fn register(&mut self, key: &[u8], slot: Slot, tracker: Tracker) {
        let Some(&entry) = self.by_key.get(key) else {
            let key: Rc<[u8]> = key.into();
            self.bytes += key.len();
            let entry = self.entries.insert(Entry {
                key: Rc::clone(&key),
                slot,
                holders: Holders::One(tracker),
            });
            self.by_key.insert(key, entry as u32);
            self.registrations += 1;
            return;
        };
        let holders = &mut self.entries[entry as usize].holders;
        match holders {
            Holders::One(one) if *one == tracker => return,
            Holders::One(one) => {
                let mut both = vec![*one, tracker];
                both.sort_unstable();
                self.bytes += both.len() * size_of::<Tracker>();
                *holders = Holders::Many(both);
            }
            Holders::Many(trackers) => match trackers.binary_search(&tracker) {
                Ok(_) => return,
                Err(at) => {
                    trackers.insert(at, tracker);
                    self.bytes += size_of::<Tracker>();
                }
            },
        }
        self.registrations += 1;
    }

    /// A key has changed: who has to be told, and is registered no longer.
    pub(crate) fn take(&mut self, key: &[u8]) -> Option<Entry> {
        let entry = self.by_key.get(key).copied()?;
        Some(self.remove(entry))
    }

    fn remove(&mut self, entry: u32) -> Entry {
        let entry = self.entries.remove(entry as usize);
        self.by_key.remove(&entry.key);
        self.registrations -= entry.holders().len();
        self.bytes -= entry.key.len();
        if let Holders::Many(trackers) = &entry.holders {
            self.bytes -= trackers.len() * size_of::<Tracker>();
        }
        entry
    }

    /// If there are more registrations than so many, an entry that has to go.
    pub(crate) fn evict(&mut self, most: usize) -> Option<Entry> {
        if self.registrations <= most {
            return None;
        }
        loop {
            if self.hand >= self.entries.capacity() {
                self.hand = 0;
            }
            let at = self.hand;
            self.hand += 1;
            if self.entries.contains(at) {
                return Some(self.remove(at as u32));
            }
        }
    }

    /// Takes out the entries of all slots of which this is said.
    pub(crate) fn take_slots(&mut self, mut applies: impl FnMut(Slot) -> bool) -> Vec<Entry> {
        let found: Vec<u32> = self
            .entries
            .iter()
            .filter(|(_, entry)| applies(entry.slot))
            .map(|(at, _)| at as u32)
            .collect();
        found.into_iter().map(|at| self.remove(at)).collect()
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Keys that anybody is registered for.
    pub(crate) fn keys(&self) -> usize {
        self.entries.len()
    }

    /// Registrations: keys, each as often as sessions are registered for it.
    pub(crate) fn registrations(&self) -> usize {
        self.registrations
    }

    /// Bytes of memory it owns, about.
    pub(crate) fn memory(&self) -> usize {
        self.bytes + self.entries.capacity() * COST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn register(table: &mut Table, key: &str, tracker: Tracker) {
        table.register(key.as_bytes(), Slot::of_key(key.as_bytes()), tracker);
    }

    fn holders(entry: Option<Entry>) -> Vec<Tracker> {
        entry.map_or(Vec::new(), |entry| entry.holders().to_vec())
    }

    #[test]
    fn who_reads_is_told_once() {
        let mut table = Table::default();
        for tracker in [5, 3, 5, 9, 3] {
            register(&mut table, "a", tracker);
        }
        register(&mut table, "b", 5);
        assert_eq!((table.keys(), table.registrations()), (2, 4));
        assert_eq!(holders(table.take(b"a")), [3, 5, 9]);
        assert!(table.take(b"a").is_none());
        register(&mut table, "a", 1);
        assert_eq!(holders(table.take(b"a")), [1]);
        assert_eq!(holders(table.take(b"b")), [5]);
        assert_eq!((table.registrations(), table.bytes), (0, 0));
    }

    #[test]
    fn what_has_to_go_is_given_back() {
        let mut table = Table::default();
        for n in 0..100 {
            register(&mut table, &format!("key{n}"), 1);
            register(&mut table, &format!("key{n}"), 2);
        }
        let mut gone = 0;
        while let Some(entry) = table.evict(50) {
            assert_eq!(entry.holders(), [1, 2]);
            assert!(table.take(&entry.key).is_none());
            gone += 1;
        }
        assert_eq!((gone, table.keys(), table.registrations()), (75, 25, 50));
        assert!(table.evict(0).is_some() && table.evict(usize::MAX).is_none());
    }

    #[test]
    fn slots_are_taken_out_as_a_whole() {
        let mut table = Table::default();
        for key in ["{a}1", "{a}2", "{b}1"] {
            register(&mut table, key, 1);
        }
        let moved = table.take_slots(|slot| slot == Slot::of_key(b"a"));
        assert_eq!((moved.len(), table.keys()), (2, 1));
        table.clear();
        assert_eq!((table.keys(), table.registrations()), (0, 0));
    }
}
