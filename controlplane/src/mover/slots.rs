//! A set of slots.

use std::fmt;

use proto::{SLOT_COUNT, Slot, slot};

/// See the module.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct SlotSet {
    bits: [u64; SLOT_COUNT / 64],
}

impl SlotSet {
    /// Whether a slot is in it.
    pub fn contains(&self, slot: Slot) -> bool {
        self.bits[slot.index() / 64] & (1 << (slot.index() % 64)) != 0
    }

    /// Whether a key belongs to one of its slots, and to a user: Sluice's own keys are never moved.
    pub fn owns(&self, key: &[u8]) -> bool {
        let slot = Slot::of_key(key);
        self.contains(slot) && !(slot == Slot::OF_RESERVED && key.starts_with(slot::RESERVED))
    }

    /// Whether every slot of another one is in it.
    pub fn includes(&self, other: &Self) -> bool {
        let mut pairs = self.bits.iter().zip(&other.bits);
        pairs.all(|(own, other)| other & !own == 0)
    }

    /// Its slots, in order.
    pub fn iter(&self) -> impl Iterator<Item = Slot> {
        Slot::all().filter(|slot| self.contains(*slot))
    }
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        let mut set = Self::default();
        for slot in slots {
            set.bits[slot.index() / 64] |= 1 << (slot.index() % 64);
        }
        set
    }
}

impl fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = Slot::all().map(|slot| (slot, self.contains(slot)));
        let ranges = slot::ranges(values).into_iter();
        f.debug_set()
            .entries(ranges.filter(|(_, there)| *there).map(|(range, _)| range))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_it() {
        let half: SlotSet = Slot::all().filter(|slot| slot.number() < 512).collect();
        assert!(half.contains(Slot::new(511).unwrap()));
        assert!(!half.contains(Slot::new(512).unwrap()));
        assert_eq!(half.iter().count(), 512);
        let all: SlotSet = Slot::all().collect();
        assert!(all.includes(&half) && !half.includes(&all) && half.includes(&half));
        assert_eq!(format!("{half:?}"), "{0-511}");
    }

    #[test]
    fn sluices_own_keys_are_nobodys() {
        let all: SlotSet = Slot::all().collect();
        for (key, owned) in [
            (&b"a"[..], true),
            (b"", true),
            (b"{sluice}:fence", false),
            (b"{sluice}", true),
            (b"x{sluice}:fence", true),
        ] {
            assert_eq!(all.owns(key), owned, "{key:?}");
        }
    }
}
