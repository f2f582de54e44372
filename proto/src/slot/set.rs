//! A set of slots.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ParseRangeError, RESERVED, SLOT_COUNT, Slot, SlotRange, ranges};

/// See the module. Written as ranges, `0-99,200`; the empty set as nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SlotSet {
    bits: [u64; SLOT_COUNT / 64],
}

impl SlotSet {
    /// Without any slot.
    pub const EMPTY: Self = Self {
        bits: [0; SLOT_COUNT / 64],
    };

    /// Whether a slot is in it.
    pub fn contains(&self, slot: Slot) -> bool {
        self.bits[slot.index() / 64] & (1 << (slot.index() % 64)) != 0
    }

    /// Whether a key belongs to one of its slots, and to a user: Sluice's own keys are never moved.
    pub fn owns(&self, key: &[u8]) -> bool {
        let slot = Slot::of_key(key);
        self.contains(slot) && !(slot == Slot::OF_RESERVED && key.starts_with(RESERVED))
    }

    /// Whether every slot of another one is in it.
    pub fn includes(&self, other: &Self) -> bool {
        other.without(self).is_empty()
    }

    /// Whether a slot is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.without(other) != *self
    }

    /// Whether it has no slot.
    pub fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }

    /// How many slots it has.
    pub fn len(&self) -> usize {
        self.bits
            .iter()
            .map(|bits| bits.count_ones() as usize)
            .sum()
    }

    /// The slots of both.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        self.combine(other, |own, other| own | other)
    }

    /// Its slots that are not in the other.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        self.combine(other, |own, other| own & !other)
    }

    fn combine(&self, other: &Self, with: impl Fn(u64, u64) -> u64) -> Self {
        let mut bits = self.bits;
        for (own, other) in bits.iter_mut().zip(other.bits) {
            *own = with(*own, other);
        }
        Self { bits }
    }

    /// Its slots, in order.
    pub fn iter(&self) -> impl Iterator<Item = Slot> {
        Slot::all().filter(|slot| self.contains(*slot))
    }

    /// Its slots as ranges, in order.
    pub fn ranges(&self) -> impl Iterator<Item = SlotRange> {
        let values = Slot::all().map(|slot| (slot, self.contains(slot)));
        let all = ranges(values).into_iter();
        all.filter(|(_, there)| *there).map(|(range, _)| range)
    }
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        let mut set = Self::EMPTY;
        for slot in slots {
            set.bits[slot.index() / 64] |= 1 << (slot.index() % 64);
        }
        set
    }
}

impl fmt::Display for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.ranges().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            write!(f, "{comma}{range}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.ranges()).finish()
    }
}

/// Parses `0-99,200`. A slot that is named twice is there once; nothing at all is the empty set.
impl FromStr for SlotSet {
    type Err = ParseRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut slots = Self::EMPTY;
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let range: SlotRange = part.trim().parse()?;
            slots = slots.with(&range.slots().collect());
        }
        Ok(slots)
    }
}

impl Serialize for SlotSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SlotSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> SlotSet {
        text.parse().unwrap()
    }

    #[test]
    fn sets_are_written_as_ranges() {
        for text in ["", "0", "0-1023", "0-99,200,1000-1023", "63-64"] {
            assert_eq!(set(text).to_string(), text);
        }
        assert_eq!(set("3, 1-2,2").to_string(), "1-3");
        assert_eq!(format!("{:?}", set("1-3,9")), "{1-3, 9}");
        for text in ["x", "1,", ",", "5-4", "1024"] {
            assert!(text.parse::<SlotSet>().is_err(), "{text}");
        }
    }

    #[test]
    fn sets_are_sets() {
        let (low, high) = (set("0-511"), set("512-1023"));
        assert!(low.contains(Slot::new(511).unwrap()) && !high.contains(Slot::new(511).unwrap()));
        assert_eq!((low.len(), SlotSet::EMPTY.len()), (512, 0));
        assert_eq!(low.with(&high), set("0-1023"));
        assert_eq!(set("0-1023").without(&low), high);
        assert!(low.includes(&set("5,7")) && low.includes(&low) && !low.includes(&set("511-512")));
        assert!(low.overlaps(&set("511-512")) && !low.overlaps(&high));
        assert!(SlotSet::EMPTY.is_empty() && !low.is_empty());
        assert!(low.iter().eq(Slot::all().take(512)));
    }

    #[test]
    fn sluices_own_keys_are_nobodys() {
        let all = set("0-1023");
        for (key, owned) in [
            (&b"a"[..], true),
            (b"", true),
            (b"{sluice}:fence", false),
            (b"{sluice}", true),
            (b"x{sluice}:fence", true),
        ] {
            assert_eq!(all.owns(key), owned, "{key:?}");
        }
        assert!(!SlotSet::EMPTY.owns(b"a"));
    }
}
