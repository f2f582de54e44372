//! Which streams were touched in a way that who copies them does not see.
//!
//! Servers tell of no change that a consumer group makes (`XREADGROUP`, `XACK`, `XGROUP` and the like). So
//! a worker notes the streams on which such commands are sent while their slot is being copied or held,
//! whatever the server answers.
//!
//! Invariant: there are never more bytes of keys than a report may have; what was dropped for that is
//! known to be missing.

use std::collections::BTreeSet;

use proto::{
    Slot,
    settled::{STREAM_BYTES_MAX, StreamKey, Streams},
};

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Notes {
    streams: BTreeSet<StreamKey>,
    /// Of their keys.
    bytes: usize,
    /// Slots of which streams are missing.
    missing: BTreeSet<Slot>,
}

impl Notes {
    /// A command of consumer groups is sent on a stream.
    pub fn note(&mut self, database: u32, key: &[u8]) {
        if self.bytes + key.len() > STREAM_BYTES_MAX {
            self.missing.insert(Slot::of_key(key));
        } else {
            let key = key.to_vec();
            let len = key.len();
            if self.streams.insert(StreamKey { database, key }) {
                self.bytes += len;
            }
        }
    }

    /// Forgets all but these slots: the others have moved, or do not.
    pub fn keep(&mut self, keep: impl Fn(Slot) -> bool) {
        self.streams
            .retain(|stream| keep(Slot::of_key(&stream.key)));
        self.missing.retain(|slot| keep(*slot));
        self.bytes = self.streams.iter().map(|stream| stream.key.len()).sum();
    }

    /// The streams of some slots.
    pub fn of(&self, slots: impl Fn(Slot) -> bool) -> Streams {
        if self.missing.iter().any(|slot| slots(*slot)) {
            return Streams::Any;
        }
        let of = |stream: &&StreamKey| slots(Slot::of_key(&stream.key));
        Streams::These(self.streams.iter().filter(of).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(streams: &Streams) -> Option<Vec<(u32, &[u8])>> {
        match streams {
            Streams::These(streams) => {
                Some(streams.iter().map(|s| (s.database, &s.key[..])).collect())
            }
            Streams::Any => None,
        }
    }

    #[test]
    fn streams_are_noted_by_slot_until_it_has_moved() {
        let (a, foo) = (Slot::of_key(b"a"), Slot::of_key(b"foo"));
        let mut notes = Notes::default();
        for (database, key) in [(0, &b"a"[..]), (0, b"a"), (3, b"a"), (0, b"foo")] {
            notes.note(database, key);
        }
        let of_a = notes.of(|slot| slot == a);
        assert_eq!(names(&of_a), Some(vec![(0, &b"a"[..]), (3, b"a")]));
        notes.keep(|slot| slot == foo);
        assert_eq!(notes.bytes, 3);
        let all = notes.of(|_| true);
        assert_eq!(names(&all), Some(vec![(0, &b"foo"[..])]));
    }

    #[test]
    fn what_has_no_room_is_known_to_be_missing() {
        let (a, foo) = (Slot::of_key(b"a"), Slot::of_key(b"foo"));
        let mut notes = Notes::default();
        notes.note(0, b"a");
        notes.note(0, &[b"{foo}", &[b'x'; STREAM_BYTES_MAX][..]].concat());
        assert_eq!(
            names(&notes.of(|slot| slot == a)),
            Some(vec![(0, &b"a"[..])])
        );
        assert_eq!(notes.of(|slot| slot == foo), Streams::Any);
        notes.keep(|slot| slot == a);
        assert_eq!(names(&notes.of(|_| true)), Some(vec![(0, &b"a"[..])]));
    }
}
