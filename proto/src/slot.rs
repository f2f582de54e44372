//! Slots: the 1024 fixed partitions of the key space, and the hash that puts a key into one.
//!
//! The hash is Codis's own (CRC-32, IEEE, of the hash tag or of the whole key, mod 1024), so that a
//! Codis cluster comes over without moving data. Nothing else in Sluice knows the number or the
//! function.

use std::{fmt, num::ParseIntError, str::FromStr};

use memchr::memchr;

mod set;

pub use set::SlotSet;

/// How many slots there are.
pub const SLOT_COUNT: usize = 1024;

/// What the keys begin with that are Sluice's own: no client may touch them, and none is shown to one.
pub const RESERVED: &[u8] = b"{sluice}:";

/// One slot, 0 to 1023.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// The last slot, 1023.
    pub const MAX: Self = Self(SLOT_COUNT as u16 - 1);

    /// The slot with this number; none above 1023.
    pub const fn new(number: u32) -> Option<Self> {
        if number < SLOT_COUNT as u32 {
            Some(Self(number as u16))
        } else {
            None
        }
    }

    /// The slot a key belongs to.
    #[inline]
    pub fn of_key(key: &[u8]) -> Self {
        Self((crc32fast::hash(hash_tag(key)) % SLOT_COUNT as u32) as u16)
    }

    /// The slot of all keys that begin with [`RESERVED`], among others: who has a key's slot at hand
    /// need not look at the key's bytes unless it is this one.
    pub const OF_RESERVED: Self = Self(306);

    /// All slots, in order.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> + ExactSizeIterator {
        (0..SLOT_COUNT as u16).map(Self)
    }

    /// Its number, to index a table of [`SLOT_COUNT`].
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Its number.
    pub const fn number(self) -> u32 {
        self.0 as u32
    }
}

/// The part of a key that is hashed: what stands between the first `{` and the next `}` after it.
///
/// As in Codis, and unlike Redis Cluster, an empty tag `{}` is a tag. Without a pair of braces it is
/// the whole key.
#[inline]
pub fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = memchr(b'{', key) else {
        return key;
    };
    let rest = &key[open + 1..];
    match memchr(b'}', rest) {
        Some(close) => &rest[..close],
        None => key,
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Slots `first` to `last`, both included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotRange {
    first: Slot,
    last: Slot,
}

impl SlotRange {
    /// Every slot.
    pub const ALL: Self = Self {
        first: Slot(0),
        last: Slot::MAX,
    };

    /// The range; none if `last` comes before `first`.
    pub fn new(first: Slot, last: Slot) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// Its first slot.
    pub const fn first(self) -> Slot {
        self.first
    }

    /// Its last slot.
    pub const fn last(self) -> Slot {
        self.last
    }

    /// Its slots, in order.
    pub fn slots(self) -> impl DoubleEndedIterator<Item = Slot> + ExactSizeIterator {
        (self.first.0..self.last.0 + 1).map(Slot)
    }
}

/// Joins the values of all slots into ranges of equal neighbours, in order.
pub fn ranges<T: PartialEq>(values: impl IntoIterator<Item = (Slot, T)>) -> Vec<(SlotRange, T)> {
    let mut ranges: Vec<(SlotRange, T)> = Vec::new();
    for (slot, value) in values {
        match ranges.last_mut() {
            Some((range, last)) if *last == value && range.last.0 + 1 == slot.0 => {
                range.last = slot;
            }
            _ => ranges.push((
                SlotRange {
                    first: slot,
                    last: slot,
                },
                value,
            )),
        }
    }
    ranges
}

impl fmt::Display for SlotRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl fmt::Debug for SlotRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no range of slots.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseRangeError {
    /// Not a number.
    #[error("`{0}` is not a slot: expected a number from 0 to 1023, or a range such as 0-511")]
    NotANumber(String),
    /// Above 1023.
    #[error("slot {0} does not exist: slots go from 0 to 1023")]
    OutOfRange(u32),
    /// Last before first.
    #[error("range {0}-{1} is empty: its last slot comes before its first")]
    Reversed(Slot, Slot),
}

/// Parses `5` or `0-511`.
impl FromStr for SlotRange {
    type Err = ParseRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = |part: &str| {
            let number: u32 = part
                .trim()
                .parse()
                .map_err(|_: ParseIntError| ParseRangeError::NotANumber(text.to_owned()))?;
            Slot::new(number).ok_or(ParseRangeError::OutOfRange(number))
        };
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (parse(first)?, parse(last)?),
            None => (parse(text)?, parse(text)?),
        };
        Self::new(first, last).ok_or(ParseRangeError::Reversed(first, last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Printed by a real codis-server (`SLOTSHASHKEY`).
    #[test]
    fn slots_equal_codis() {
        for (key, slot) in [
            (&b""[..], 0),
            (b"a", 579),
            (b"foo", 289),
            (b"123456789", 294),
            (b"user:1000", 995),
            (b"{user1000}.following", 870),
            (b"{user1000}.followers", 870),
            (b"foo{}bar", 0),
            (b"foo{{bar}}zap", 313),
            (b"foo{bar}{zap}", 170),
            (b"}{a}", 579),
            (b"{", 825),
            (b"a{b", 76),
            (b"\x00\xFF\x0D\x0A", 162),
        ] {
            assert_eq!(
                Slot::of_key(key).number(),
                slot,
                "{:?}",
                String::from_utf8_lossy(key)
            );
        }
    }

    #[test]
    fn reserved_keys_are_in_their_slot() {
        assert_eq!(Slot::of_key(RESERVED), Slot::OF_RESERVED);
        assert_eq!(Slot::of_key(b"{sluice}:fence"), Slot::OF_RESERVED);
    }

    #[test]
    fn ranges_parse_and_print() {
        for text in ["0", "1023", "0-511", "0-1023", "7-8"] {
            assert_eq!(text.parse::<SlotRange>().unwrap().to_string(), text);
        }
        for (text, error) in [
            ("", "is not a slot"),
            ("x", "is not a slot"),
            ("1-", "is not a slot"),
            ("-1", "is not a slot"),
            ("1024", "slot 1024 does not exist"),
            ("9-8", "is empty"),
        ] {
            let got = text.parse::<SlotRange>().unwrap_err().to_string();
            assert!(got.contains(error), "{text}: {got}");
        }
    }

    #[test]
    fn neighbours_join() {
        let joined = ranges(Slot::all().map(|slot| (slot, slot.number() / 512)));
        let text: Vec<String> = joined.iter().map(|(r, v)| format!("{r}={v}")).collect();
        assert_eq!(text, ["0-511=0", "512-1023=1"]);
    }
}
