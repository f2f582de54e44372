//! What the target has of big values that change again and again, element by element, as it was told: so
//! that the next time only what differs is sent.
//!
//! Owns the memory that takes, within a limit; a value beyond it is not followed. Knows nothing of servers:
//! whoever sends what differs, and hears that it was taken, gives the value back; in doubt it is dropped, and
//! the value is copied as a whole. Names are kept as they are, and so is what belongs to them, if it is
//! short; else a digest of 64 bits, with a key of this process: nobody can make two that are taken for one.
//!
//! Slots are held while the last pass goes on. So it expects the elements in the order of the pass before, in
//! which they lie in memory, and looks one up only where that is wrong.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
};

use proto::SlotSet;

use super::{
    dirty::Key,
    pages::{Kind, Page},
};

/// Memory that may be taken by what one copy follows, in bytes, about.
const MOST_BYTES: usize = 256 << 20;
/// What an element costs here besides the bytes of its name, about.
const OVERHEAD: usize = 136;

/// See the module. One value.
#[derive(Debug)]
pub(super) struct Staged {
    kind: Kind,
    /// The elements, in no order, and none where there is none any more.
    elements: Vec<Option<Element>>,
    /// Which have none.
    free: Vec<usize>,
    /// Which has an element of this name.
    index: HashMap<Arc<[u8]>, usize>,
    digests: RandomState,
    bytes: usize,
    /// How often the source's value was gone through, also in part.
    passes: u64,
    /// The elements as they were met by this pass, and by the last that was whole.
    met: Vec<usize>,
    before: Vec<usize>,
    /// Which of those before is expected next.
    next: usize,
}

/// What belongs to the name of an element: it, if it is short, or its digest.
type Belongs = [u8; 16];

#[derive(Debug)]
struct Element {
    name: Arc<[u8]>,
    belongs: Belongs,
    /// When it was met last.
    pass: u64,
    /// Which it was of those before, if it was one.
    place: usize,
}

impl Staged {
    /// Of a value of which the target has nothing. None: values of this kind are not followed.
    pub(super) fn nothing(kind: Kind) -> Option<Self> {
        kind.has_names().then(|| Self {
            kind,
            elements: Vec::new(),
            free: Vec::new(),
            index: HashMap::new(),
            digests: RandomState::new(),
            bytes: 0,
            passes: 0,
            met: Vec::new(),
            before: Vec::new(),
            next: 0,
        })
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// How many elements the target has.
    pub(super) fn len(&self) -> u64 {
        self.index.len() as u64
    }

    /// What it costs in memory, in bytes, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The source's value is gone through from its beginning.
    pub(super) fn begin(&mut self) {
        self.passes += 1;
        self.met.clear();
        self.next = 0;
    }

    /// What of a page of the source's value the target does not have. It has it from now on.
    pub(super) fn differing(&mut self, page: Page) -> Page {
        let Page::Elements(kind, items) = page else {
            return page;
        };
        let mut differing = Vec::new();
        let mut items = items.into_iter();
        while let Some(name) = items.next() {
            let more = match kind {
                Kind::Hash | Kind::SortedSet => items.next(),
                Kind::Set | Kind::List | Kind::String | Kind::Stream => None,
            };
            let belongs = self.belongs(more.as_deref().unwrap_or_default());
            if self.meet(&name, belongs) {
                differing.push(name);
                differing.extend(more);
            }
        }
        Page::Elements(kind, differing)
    }

    /// The names of what the target has and this pass, which went through all of the source's value, has not
    /// met. It has it no more.
    pub(super) fn unmet(&mut self) -> Vec<Arc<[u8]>> {
        let mut unmet = Vec::new();
        for (at, slot) in self.elements.iter_mut().enumerate() {
            if let Some(element) = slot.take_if(|element| element.pass != self.passes) {
                self.index.remove(&element.name);
                self.bytes -= element.name.len() + OVERHEAD;
                self.free.push(at);
                unmet.push(element.name);
            }
        }
        self.before = std::mem::take(&mut self.met);
        for (place, at) in self.before.iter().enumerate() {
            if let Some(element) = &mut self.elements[*at] {
                element.place = place;
            }
        }
        unmet
    }

    fn belongs(&self, bytes: &[u8]) -> Belongs {
        let mut belongs = Belongs::default();
        let [start @ .., length] = &mut belongs;
        match start.get_mut(..bytes.len()) {
            Some(start) => {
                start.copy_from_slice(bytes);
                *length = bytes.len() as u8;
            }
            None => {
                start[..8].copy_from_slice(&self.digests.hash_one(bytes).to_be_bytes());
                *length = u8::MAX;
            }
        }
        belongs
    }

    /// The source has this element; whether the target had not, or something else of that name.
    fn meet(&mut self, name: &[u8], belongs: Belongs) -> bool {
        let elements = &self.elements;
        let expected = self.before.get(self.next).copied().filter(|at| {
            let element = elements[*at].as_ref();
            element.is_some_and(|element| *element.name == *name)
        });
        let Some(at) = expected.or_else(|| self.index.get(name).copied()) else {
            self.add(name, belongs);
            return true;
        };
        let element = self.elements[at].as_mut();
        let element = element.expect("it was compared just now, or is in the index");
        if element.pass != self.passes {
            self.met.push(at);
        }
        element.pass = self.passes;
        if element.place < self.before.len() {
            self.next = element.place + 1;
        }
        std::mem::replace(&mut element.belongs, belongs) != belongs
    }

    fn add(&mut self, name: &[u8], belongs: Belongs) {
        let name: Arc<[u8]> = name.into();
        self.bytes += name.len() + OVERHEAD;
        let at = self.free.pop().unwrap_or(self.elements.len());
        let element = Element {
            name: name.clone(),
            belongs,
            pass: self.passes,
            place: usize::MAX,
        };
        if at == self.elements.len() {
            self.elements.push(Some(element));
        } else {
            self.elements[at] = Some(element);
        }
        self.index.insert(name, at);
        self.met.push(at);
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
                        _ => random.u8(..3).to_string().repeat(random.usize(..30)).into(),
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
