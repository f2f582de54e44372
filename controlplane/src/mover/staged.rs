//! What the target has of big values that change again and again, element by element, as it was told: so
//! that the next time only what differs is sent.
//!
//! Owns the memory that takes, within a limit; a value beyond it is not followed. Knows nothing of servers:
//! whoever sends what differs, and hears that it was taken, gives the value back; in doubt it is dropped, and
//! the value is copied as a whole. Names are kept as they are, what belongs to them as a digest of 64 bits,
//! with a key of this process: nobody can make two that are taken for one.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher as _, RandomState},
};

use proto::SlotSet;

use super::{
    dirty::Key,
    pages::{Kind, Page},
};

/// Memory that may be taken by what one copy follows, in bytes, about.
const MOST_BYTES: usize = 256 << 20;
/// What an element costs here besides the bytes of its name, about.
const OVERHEAD: usize = 96;

/// See the module. One value.
#[derive(Debug)]
pub(super) struct Staged {
    kind: Kind,
    elements: HashMap<Box<[u8]>, Element>,
    digests: RandomState,
    bytes: usize,
    /// How often the source's value was gone through, also in part.
    passes: u64,
}

/// What belongs to the name of an element, and when it was met last.
#[derive(Debug)]
struct Element {
    digest: u64,
    pass: u64,
}

impl Staged {
    /// Of a value of which the target has nothing. None: values of this kind are not followed.
    pub(super) fn nothing(kind: Kind) -> Option<Self> {
        kind.has_names().then(|| Self {
            kind,
            elements: HashMap::new(),
            digests: RandomState::new(),
            bytes: 0,
            passes: 0,
        })
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// How many elements the target has.
    pub(super) fn len(&self) -> u64 {
        self.elements.len() as u64
    }

    /// What it costs in memory, in bytes, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The source's value is gone through from its beginning.
    pub(super) fn begin(&mut self) {
        self.passes += 1;
    }

    /// What of a page of the source's value the target does not have. It has it from now on.
    pub(super) fn differing(&mut self, page: Page) -> Page {
        let Page::Elements(kind, items) = page else {
            return page;
        };
        let mut differing = Vec::new();
        let mut items = items.into_iter();
        while let Some(name) = items.next() {
            let belongs = match kind {
                Kind::Hash | Kind::SortedSet => items.next(),
                Kind::Set | Kind::List | Kind::String | Kind::Stream => None,
            };
            let element = Element {
                digest: self.digests.hash_one(&belongs),
                pass: self.passes,
            };
            match self.elements.get_mut(name.as_slice()) {
                Some(known) if known.digest == element.digest => {
                    known.pass = self.passes;
                    continue;
                }
                Some(known) => *known = element,
                None => {
                    self.bytes += name.len() + OVERHEAD;
                    self.elements.insert(name.as_slice().into(), element);
                }
            }
            differing.push(name);
            differing.extend(belongs);
        }
        Page::Elements(kind, differing)
    }

    /// The names of what the target has and this pass, which went through all of the source's value, has not
    /// met. It has it no more.
    pub(super) fn unmet(&mut self) -> Vec<Box<[u8]>> {
        let passes = self.passes;
        let unmet = self.elements.extract_if(|_, known| known.pass != passes);
        let unmet: Vec<_> = unmet.map(|(name, _)| name).collect();
        let freed: usize = unmet.iter().map(|name| name.len() + OVERHEAD).sum();
        self.bytes -= freed;
        unmet
    }
}

/// The values of one lane that are followed, by database and key.
#[derive(Default)]
pub(super) struct Shelf {
    values: HashMap<(u32, Key), Staged>,
    /// Those that cannot be.
    unfit: HashSet<(u32, Key)>,
}

impl Shelf {
    /// Takes out what is known of a value: who changes the target's must. Nothing, if the target has it by
    /// other ways, or not at all.
    pub(super) fn take(&mut self, database: u32, key: &Key) -> Option<Staged> {
        if self.values.is_empty() {
            return None;
        }
        self.values.remove(&(database, key.clone()))
    }

    /// Whether a value can be followed that is not: it may be, and there is memory for one more.
    pub(super) fn has_room_for(&self, database: u32, key: &Key) -> bool {
        self.room() > 0 && !self.unfit.contains(&(database, key.clone()))
    }

    /// Bytes of memory that the others leave.
    pub(super) fn room(&self) -> usize {
        let taken = self.values.values().map(Staged::bytes).sum();
        MOST_BYTES.saturating_sub(taken)
    }

    /// Keeps what the target has of a value now.
    pub(super) fn put(&mut self, database: u32, key: Key, staged: Staged) {
        self.values.insert((database, key), staged);
    }

    /// A value that cannot be followed, now or later.
    pub(super) fn refuse(&mut self, database: u32, key: Key) {
        self.unfit.insert((database, key));
    }

    /// Forgets values of these slots.
    pub(super) fn forget(&mut self, slots: &SlotSet) {
        self.values.retain(|(_, key), _| !slots.owns(key));
        self.unfit.retain(|(_, key)| !slots.owns(key));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    type Value = BTreeMap<Vec<u8>, Vec<u8>>;

    fn page(kind: Kind, elements: &[(&Vec<u8>, &Vec<u8>)]) -> Page {
        let mut items = Vec::new();
        for (name, belongs) in elements {
            items.push((*name).clone());
            if kind != Kind::Set {
                items.push((*belongs).clone());
            }
        }
        Page::Elements(kind, items)
    }

    /// Writes a page to what stands for the target's value. How many elements that are.
    fn write(target: &mut Value, page: Page) -> usize {
        let Page::Elements(kind, items) = page else {
            panic!("{page:?}");
        };
        let width = if kind == Kind::Set { 1 } else { 2 };
        for element in items.chunks(width) {
            let belongs = element.get(1).cloned().unwrap_or_default();
            target.insert(element[0].clone(), belongs);
        }
        items.len() / width
    }

    /// A pass through the value, by pages of three, of this many pages at most. What was written, and whether
    /// it was gone through to its end.
    fn pass(staged: &mut Staged, source: &Value, target: &mut Value, most: usize) -> (usize, bool) {
        staged.begin();
        let all: Vec<_> = source.iter().collect();
        let mut written = 0;
        for elements in all.chunks(3).take(most) {
            written += write(target, staged.differing(page(staged.kind(), elements)));
        }
        let whole = all.len().div_ceil(3) <= most;
        if whole {
            for name in staged.unmet() {
                target.remove(name.as_ref()).unwrap();
                written += 1;
            }
        }
        (written, whole)
    }

    #[test]
    fn whatever_changes_and_whenever_it_is_given_up_the_target_becomes_equal() {
        for (kind, seed) in [Kind::Set, Kind::Hash, Kind::SortedSet]
            .into_iter()
            .zip(0..)
        {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut staged = Staged::nothing(kind).unwrap();
            let (mut source, mut target) = (Value::new(), Value::new());
            for _ in 0..2000 {
                for _ in 0..random.usize(..5) {
                    let name = random.u8(..40).to_string().into_bytes();
                    let belongs = match kind {
                        Kind::Set => Vec::new(),
                        _ => random.u8(..3).to_string().into_bytes(),
                    };
                    if random.bool() {
                        source.insert(name, belongs);
                    } else {
                        source.remove(&name);
                    }
                }
                let was_equal = source == target;
                let (written, whole) = pass(&mut staged, &source, &mut target, random.usize(..20));
                assert!(!was_equal || written == 0);
                if whole {
                    assert_eq!(source, target);
                    let (written, _) = pass(&mut staged, &source, &mut target, usize::MAX);
                    assert_eq!(written, 0);
                }
                assert_eq!(staged.len(), target.len() as u64);
                let bytes = target.keys().map(|name| name.len() + OVERHEAD);
                assert_eq!(staged.bytes(), bytes.sum::<usize>());
            }
        }
    }

    #[test]
    fn values_without_names_are_not_followed() {
        for kind in [Kind::String, Kind::List, Kind::Stream] {
            assert!(Staged::nothing(kind).is_none());
        }
    }

    #[test]
    fn what_is_followed_is_bounded_and_forgotten() {
        let (a, b) = (Key::from(*b"a"), Key::from(*b"b"));
        let mut shelf = Shelf::default();
        let mut large = Staged::nothing(Kind::Set).unwrap();
        large.bytes = MOST_BYTES;
        shelf.put(0, a.clone(), large);
        assert!(!shelf.has_room_for(0, &b));
        assert!(shelf.take(1, &a).is_none());
        shelf.forget(&[proto::Slot::of_key(b"a")].into_iter().collect());
        assert!(shelf.take(0, &a).is_none() && shelf.has_room_for(0, &b));
        shelf.refuse(0, b.clone());
        assert!(!shelf.has_room_for(0, &b) && shelf.has_room_for(1, &b));
        shelf.forget(&[proto::Slot::of_key(b"b")].into_iter().collect());
        assert!(shelf.has_room_for(0, &b));
    }
}
