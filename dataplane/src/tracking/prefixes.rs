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

use std::collections::{BTreeMap, HashMap};

use super::{options::overlap, table::Tracker};

/// See the module.
#[derive(Default)]
pub(crate) struct Strata {
    strata: Vec<Stratum>,
}

/// What one connection to each server is told of.
#[derive(Default)]
struct Stratum {
    /// In the order in which they were added.
    prefixes: Vec<Box<[u8]>>,
    /// Of each prefix of sessions, the sessions.
    listeners: HashMap<Box<[u8]>, Vec<Tracker>>,
    /// Lengths of these prefixes, and how many have it.
    lens: BTreeMap<usize, usize>,
}

/// Keys, and who is to be told of them.
type Told<'k, 's> = (Vec<&'k [u8]>, &'s [Tracker]);

impl Strata {
    /// Places a session's prefix: in which stratum.
    pub(crate) fn place(&mut self, prefix: &[u8], tracker: Tracker) -> u32 {
        let fits = |stratum: &Stratum| {
            let prefixes = &stratum.prefixes;
            prefixes.iter().any(|with| prefix.starts_with(with))
                || !prefixes.iter().any(|with| overlap(prefix, with))
        };
        let index = self.strata.iter().position(fits).unwrap_or_else(|| {
            self.strata.push(Stratum::default());
            self.strata.len() - 1
        });
        let stratum = &mut self.strata[index];
        if !stratum.prefixes.iter().any(|with| prefix.starts_with(with)) {
            stratum.prefixes.push(prefix.into());
        }
        let listeners = stratum.listeners.entry(prefix.into()).or_insert_with(|| {
            *stratum.lens.entry(prefix.len()).or_default() += 1;
            Vec::new()
        });
        if !listeners.contains(&tracker) {
            listeners.push(tracker);
        }
        index as u32
    }

    /// A session tracks no longer: takes its prefixes away.
    pub(crate) fn leave(&mut self, tracker: Tracker) {
        for stratum in &mut self.strata {
            let lens = &mut stratum.lens;
            stratum.listeners.retain(|prefix, listeners| {
                listeners.retain(|&other| other != tracker);
                if listeners.is_empty()
                    && let Some(count) = lens.get_mut(&prefix.len())
                {
                    *count -= 1;
                }
                !listeners.is_empty()
            });
            lens.retain(|_, count| *count > 0);
            if stratum.listeners.is_empty() {
                stratum.prefixes = Vec::new();
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

    /// The strata that a session's prefixes were placed in.
    pub(crate) fn of(&self, tracker: Tracker) -> impl Iterator<Item = u32> {
        let has = move |stratum: &Stratum| {
            let mut listeners = stratum.listeners.values();
            listeners.any(|listeners| listeners.contains(&tracker))
        };
        let with = (0..).zip(&self.strata);
        with.filter(move |(_, stratum)| has(stratum))
            .map(|(index, _)| index)
    }

    /// What the connections of a stratum are to be told of; it only grows while the stratum is needed.
    pub(crate) fn prefixes(&self, stratum: u32) -> &[Box<[u8]>] {
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
        let of = |stratum: &Stratum| -> usize {
            let own = stratum.prefixes.iter().map(|prefix| 16 + prefix.len());
            let theirs = stratum.listeners.iter().map(|(prefix, listeners)| {
                64 + prefix.len() + listeners.capacity() * size_of::<Tracker>()
            });
            own.sum::<usize>() + theirs.sum::<usize>()
        };
        self.strata.iter().map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        strata.leave(1);
        assert_eq!(strata.needed().collect::<Vec<_>>(), [1]);
        assert_eq!(told(&strata, 0, &["ab"]), []);
        strata.leave(2);
        assert_eq!(strata.needed().count(), 0);
        assert_eq!((strata.memory(), strata.listeners(1)), (0, vec![]));
        assert_eq!(strata.place(b"", 3), 0, "its place is free again");
    }
}
