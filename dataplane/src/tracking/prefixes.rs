//! The prefixes that sessions are told about, laid out over connections to each server.
//!
//! A server refuses prefixes of one connection that have keys in common, those of different sessions may
//! well have. So connections come in **strata**: a prefix goes to the first stratum that covers it
//! already, or none of whose prefixes it overlaps; nearly always there is one stratum. A stratum only
//! grows, until nobody needs it: its connections never give up a prefix while another takes it over, so
//! that no change is missed in between. Pure.
//!
//! Invariant: within a stratum no two prefixes overlap, and each session's prefix is covered by one of
//! the stratum that it was placed in.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    rc::Rc,
};

use super::table::Tracker;

/// See the module.
#[derive(Default)]
pub(crate) struct Strata {
    strata: Vec<Stratum>,
}

/// What one connection to each server is told of.
#[derive(Default)]
struct Stratum {
    /// In the order in which they were added.
    prefixes: Vec<Rc<[u8]>>,
    /// The same, sorted.
    sorted: BTreeSet<Rc<[u8]>>,
    /// Of each prefix of sessions, the sessions.
    listeners: HashMap<Box<[u8]>, Vec<Tracker>>,
    /// Lengths of these prefixes, and how many have it.
    lens: BTreeMap<usize, usize>,
    /// Bytes of memory it owns, about.
    bytes: usize,
}

/// What a prefix costs besides its bytes.
const COST: usize = 64;

/// Keys, and who is to be told of them.
type Told<'k, 's> = (Vec<&'k [u8]>, &'s [Tracker]);

impl Strata {
    /// Places a session's prefix: in which stratum.
    pub(crate) fn place(&mut self, prefix: &[u8], tracker: Tracker) -> u32 {
        let fits = |stratum: &Stratum| stratum.covers(prefix) || !stratum.overlaps(prefix);
        let index = self.strata.iter().position(fits).unwrap_or_else(|| {
            self.strata.push(Stratum::default());
            self.strata.len() - 1
        });
        let stratum = &mut self.strata[index];
        if !stratum.covers(prefix) {
            let prefix: Rc<[u8]> = prefix.into();
            stratum.bytes += COST + prefix.len();
            stratum.sorted.insert(Rc::clone(&prefix));
            stratum.prefixes.push(prefix);
        }
        let listeners = stratum.listeners.entry(prefix.into()).or_insert_with(|| {
            *stratum.lens.entry(prefix.len()).or_default() += 1;
            stratum.bytes += COST + prefix.len();
            Vec::new()
        });
        if !listeners.contains(&tracker) {
            listeners.push(tracker);
            stratum.bytes += size_of::<Tracker>();
        }
        index as u32
    }

    /// A session tracks no longer: takes its prefixes away.
    pub(crate) fn leave<'p>(
        &mut self,
        tracker: Tracker,
        prefixes: impl Iterator<Item = &'p Box<[u8]>>,
    ) {
        for prefix in prefixes {
            for stratum in &mut self.strata {
                stratum.leave(tracker, prefix);
            }
        }
        for stratum in &mut self.strata {
            if stratum.listeners.is_empty() {
                *stratum = Stratum::default();
            }
        }
    }

    /// The strata that somebody needs.
    pub(crate) fn needed(&self) -> impl Iterator<Item = u32> {
        (0..)
            .zip(&self.strata)
            .filter(|(_, stratum)| !stratum.prefixes.is_empty())
            .map(|(index, _)| index)
    }

    /// The stratum that a session's prefix was placed in.
    pub(crate) fn of(&self, tracker: Tracker, prefix: &[u8]) -> Option<u32> {
        let has = |stratum: &Stratum| {
            let listeners = stratum.listeners.get(prefix);
            listeners.is_some_and(|listeners| listeners.contains(&tracker))
        };
        self.strata.iter().position(has).map(|index| index as u32)
    }

    /// What the connections of a stratum are to be told of; it only grows while the stratum is needed.
    pub(crate) fn prefixes(&self, stratum: u32) -> &[Rc<[u8]>] {
        self.strata
            .get(stratum as usize)
            .map_or(&[], |stratum| &stratum.prefixes)
    }

    /// All sessions with a prefix in a stratum, each once.
    pub(crate) fn listeners(&self, stratum: u32) -> Vec<Tracker> {
        let of = self.strata.get(stratum as usize);
        let listeners = of
            .into_iter()
            .flat_map(|stratum| stratum.listeners.values());
        let mut all: Vec<Tracker> = listeners.flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// These keys have changed: of each prefix that some of them have, these, and who is to be told.
    pub(crate) fn matching<'k>(&self, stratum: u32, keys: &[&'k [u8]]) -> Vec<Told<'k, '_>> {
        let Some(stratum) = self.strata.get(stratum as usize) else {
            return Vec::new();
        };
        let mut found: BTreeMap<&[u8], Told<'k, '_>> = BTreeMap::new();
        for key in keys {
            for &len in stratum.lens.keys().take_while(|&&len| len <= key.len()) {
                if let Some((prefix, listeners)) = stratum.listeners.get_key_value(&key[..len]) {
                    let (keys, _) = found.entry(prefix).or_insert((Vec::new(), listeners));
                    keys.push(key);
                }
            }
        }
        found.into_values().collect()
    }

    /// Bytes of memory it owns, about.
    pub(crate) fn memory(&self) -> usize {
        self.strata.iter().map(|stratum| stratum.bytes).sum()
    }
}

impl Stratum {
    /// The last of its prefixes that is not behind this one: as none overlaps another, no other can be a
    /// prefix of it.
    fn before(&self, prefix: &[u8]) -> Option<&Rc<[u8]>> {
        let up_to = (Bound::Unbounded, Bound::Included(prefix));
        self.sorted.range::<[u8], _>(up_to).next_back()
    }

    fn covers(&self, prefix: &[u8]) -> bool {
        self.before(prefix)
            .is_some_and(|before| prefix.starts_with(before))
    }

    fn overlaps(&self, prefix: &[u8]) -> bool {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let next = self.sorted.range::<[u8], _>(from).next();
        self.covers(prefix) || next.is_some_and(|next| next.starts_with(prefix))
    }

    fn leave(&mut self, tracker: Tracker, prefix: &[u8]) {
        let Some(listeners) = self.listeners.get_mut(prefix) else {
            return;
        };
        let before = listeners.len();
        listeners.retain(|&other| other != tracker);
        self.bytes -= (before - listeners.len()) * size_of::<Tracker>();
        if listeners.is_empty() {
            self.listeners.remove(prefix);
            self.bytes -= COST + prefix.len();
            if let Some(count) = self.lens.get_mut(&prefix.len()) {
                *count -= 1;
                if *count == 0 {
                    self.lens.remove(&prefix.len());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::options::overlap, *};

    fn told(strata: &Strata, stratum: u32, keys: &[&str]) -> Vec<(String, Vec<Tracker>)> {
        let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
        let text = |keys: Vec<&[u8]>| {
            let words = keys.iter().map(|key| String::from_utf8_lossy(key));
            words.collect::<Vec<_>>().join(" ")
        };
        let found = strata.matching(stratum, &keys);
        found
            .into_iter()
            .map(|(keys, listeners)| (text(keys), listeners.to_vec()))
            .collect()
    }

    #[test]
    fn what_overlaps_and_is_not_covered_goes_elsewhere() {
        let mut strata = Strata::default();
        for (prefix, tracker, stratum) in [
            ("user:", 1, 0),
            ("item:", 1, 0),
            ("user:7:", 2, 0), // covered
            ("user:", 3, 0),
            ("us", 4, 1),
            ("", 5, 2),
            ("anything", 6, 0),
            ("use", 7, 1),
        ] {
            assert_eq!(
                strata.place(prefix.as_bytes(), tracker),
                stratum,
                "{prefix}"
            );
        }
        for stratum in strata.needed() {
            let prefixes = strata.prefixes(stratum);
            for (index, one) in prefixes.iter().enumerate() {
                let others = &prefixes[index + 1..];
                assert!(others.iter().all(|other| !overlap(one, other)));
            }
        }
        assert_eq!(
            told(&strata, 0, &["user:7:a", "user:8", "item:1", "x"]),
            [
                ("item:1".to_owned(), vec![1]),
                ("user:7:a user:8".to_owned(), vec![1, 3]),
                ("user:7:a".to_owned(), vec![2]),
            ]
        );
        assert_eq!(
            told(&strata, 1, &["user:7:a", "usual"]),
            [
                ("user:7:a usual".to_owned(), vec![4]),
                ("user:7:a".to_owned(), vec![7])
            ]
        );
        assert_eq!(told(&strata, 2, &["x"]), [("x".to_owned(), vec![5])]);
        assert_eq!(strata.listeners(0), [1, 2, 3, 6]);
    }

    #[test]
    fn a_stratum_ends_with_its_last_session() {
        let mut strata = Strata::default();
        strata.place(b"a", 1);
        strata.place(b"", 2);
        strata.place(b"ab", 1);
        let leave = |strata: &mut Strata, tracker, prefixes: &[&str]| {
            let prefixes: Vec<Box<[u8]>> = prefixes.iter().map(|p| p.as_bytes().into()).collect();
            strata.leave(tracker, prefixes.iter());
        };
        assert_eq!((strata.of(1, b"ab"), strata.of(2, b"ab")), (Some(0), None));
        leave(&mut strata, 1, &["a", "ab"]);
        assert_eq!(strata.needed().collect::<Vec<_>>(), [1]);
        assert_eq!(told(&strata, 0, &["ab"]), []);
        leave(&mut strata, 2, &[""]);
        assert_eq!(strata.needed().count(), 0);
        assert_eq!((strata.memory(), strata.listeners(1)), (0, vec![]));
        assert_eq!(strata.place(b"", 3), 0, "its place is free again");
    }
}
