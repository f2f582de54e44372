//! Which slots are to move, so that groups have as much as they are to.
//!
//! Pure: from the slot map, weights and what each slot amounts to (itself, its keys, its memory) to moves.
//! Moves as few slots as can be where each is worth the same, and as whole ranges: a group gives its last
//! slots first. What is measured is not evened out to the last key: a group keeps what is within
//! `TOLERANCE` of its share. A group with weight 0 ends with no slot: it is drained.

use std::{cmp::Reverse, collections::BTreeMap};

use proto::{GroupId, SLOT_COUNT, Slot, SlotSet};

use crate::model::SlotMap;

/// What of its share a group may have more or less, where that was measured: a fiftieth.
const TOLERANCE: u64 = 50;

/// Slots that are to move.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Move {
    /// Who owns them.
    pub source: GroupId,
    /// Who is to own them.
    pub target: GroupId,
    /// They.
    pub slots: SlotSet,
}

/// What is to be evened out.
#[derive(Clone, PartialEq, Debug)]
pub enum Load {
    /// Slots: each is worth as much as another.
    Slots,
    /// What slots were measured to have: keys, or bytes.
    Measured(Box<[u64; SLOT_COUNT]>),
}

impl Load {
    /// What a slot is worth.
    pub fn of(&self, slot: Slot) -> u64 {
        match self {
            Self::Slots => 1,
            Self::Measured(slots) => slots[slot.index()],
        }
    }

    /// What some are worth together.
    pub fn sum(&self, slots: impl IntoIterator<Item = Slot>) -> u64 {
        slots.into_iter().map(|slot| self.of(slot)).sum()
    }

    /// What a group may have above this share.
    fn tolerance(&self, share: u64) -> u64 {
        match self {
            Self::Slots => 0,
            Self::Measured(_) => share / TOLERANCE,
        }
    }
}

/// The moves after which each group has its share by weight, of all that is owned. At least one weight is
/// not 0. Slots of groups that have no weight stay where they are.
pub fn plan(map: &SlotMap, weights: &BTreeMap<GroupId, u32>, load: &Load) -> Vec<Move> {
    let mut owned: BTreeMap<&GroupId, Vec<Slot>> =
        weights.keys().map(|g| (g, Vec::new())).collect();
    for slot in Slot::all() {
        if let Some(slots) = map.owner(slot).and_then(|owner| owned.get_mut(owner)) {
            slots.push(slot);
        }
    }
    let loads = owned
        .iter()
        .map(|(group, slots)| (*group, load.sum(slots.iter().copied())));
    let loads: BTreeMap<&GroupId, u64> = loads.collect();
    let shares = shares(&loads, weights);
    let mut lacks: BTreeMap<&GroupId, u64> = loads
        .iter()
        .filter(|(group, _)| weights[**group] > 0)
        .map(|(group, load)| (*group, shares[group].saturating_sub(*load)))
        .collect();
    let counts = owned.iter().map(|(group, slots)| (*group, slots.len()));
    let mut counts: BTreeMap<&GroupId, usize> = counts.collect();
    let mut moves: BTreeMap<(&GroupId, &GroupId), Vec<Slot>> = BTreeMap::new();
    for (source, slots) in &owned {
        let given = match weights[*source] {
            0 => slots.clone(),
            _ => given(slots, loads[source], shares[source], load),
        };
        for slot in given {
            let worth = load.of(slot);
            // Whom it fits; or else who lacks the most, and of several the one with the fewest slots.
            let fits = lacks.iter().find(|(_, lack)| **lack > 0 && **lack >= worth);
            let most = lacks
                .iter()
                .max_by_key(|(group, lack)| (**lack, Reverse(counts[**group])));
            let Some((target, lack)) = fits.or(most).map(|(group, lack)| (*group, *lack)) else {
                continue;
            };
            if lack == 0 && weights[*source] > 0 {
                continue;
            }
            lacks.insert(target, lack.saturating_sub(worth));
            *counts.entry(target).or_default() += 1;
            moves.entry((source, target)).or_default().push(slot);
        }
    }
    let whole = moves.into_iter().map(|((source, target), slots)| Move {
        source: source.clone(),
        target: target.clone(),
        slots: slots.into_iter().collect(),
    });
    whole.collect()
}

/// The slots that a group gives, so that it has no more than its share, nor less: its last ones, but for
/// those that are worth more than it has to give, or nothing. In ascending order.
fn given(slots: &[Slot], has: u64, share: u64, load: &Load) -> Vec<Slot> {
    let mut surplus = has.saturating_sub(share);
    let mut given = Vec::new();
    for slot in slots.iter().rev() {
        if surplus <= load.tolerance(share) {
            break;
        }
        let worth = load.of(*slot);
        if (1..=surplus).contains(&worth) {
            surplus -= worth;
            given.push(*slot);
        }
    }
    given.reverse();
    given
}

/// How much each group is to have. What is left over by rounding goes to those that have the most above it,
/// so that the least moves.
fn shares<'a>(
    loads: &BTreeMap<&'a GroupId, u64>,
    weights: &BTreeMap<GroupId, u32>,
) -> BTreeMap<&'a GroupId, u64> {
    let all: u128 = loads.values().map(|load| u128::from(*load)).sum();
    let sum: u128 = weights.values().map(|weight| u128::from(*weight)).sum();
    let mut shares: BTreeMap<&GroupId, u64> = loads
        .keys()
        .map(|group| {
            let share = all * u128::from(weights[*group]) / sum.max(1);
            (*group, u64::try_from(share).unwrap_or(u64::MAX))
        })
        .collect();
    let given: u128 = shares.values().map(|share| u128::from(*share)).sum();
    let mut takers: Vec<(Reverse<u64>, &GroupId)> = loads
        .iter()
        .filter(|(group, _)| weights[**group] > 0)
        .map(|(group, load)| (Reverse(load.saturating_sub(shares[group])), *group))
        .collect();
    takers.sort();
    // Less than one for each group.
    let left = usize::try_from(all.saturating_sub(given)).unwrap_or(0);
    for (_, group) in takers.into_iter().cycle().take(left) {
        *shares.entry(group).or_default() += 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(group: &str) -> GroupId {
        GroupId::new(group).unwrap()
    }

    fn map(owned: &[(&str, std::ops::Range<u32>)]) -> SlotMap {
        let mut map = SlotMap::default();
        for (group, slots) in owned {
            for slot in slots.clone() {
                map.give(Slot::new(slot).unwrap(), id(group));
            }
        }
        map
    }

    fn weights(weights: &[(&str, u32)]) -> BTreeMap<GroupId, u32> {
        weights
            .iter()
            .map(|(group, weight)| (id(group), *weight))
            .collect()
    }

    /// The moves, in words.
    fn words(map: &SlotMap, weights: &BTreeMap<GroupId, u32>) -> Vec<String> {
        let moves = plan(map, weights, &Load::Slots).into_iter();
        moves
            .map(|m| format!("{} > {}: {}", m.source, m.target, m.slots))
            .collect()
    }

    #[test]
    fn a_new_group_gets_its_share_of_each() {
        let map = map(&[("g1", 0..512), ("g2", 512..1024)]);
        let even = weights(&[("g1", 1), ("g2", 1), ("g3", 1)]);
        assert_eq!(
            words(&map, &even),
            ["g1 > g3: 342-511", "g2 > g3: 853-1023"]
        );
        let same = weights(&[("g1", 7), ("g2", 7)]);
        assert_eq!(words(&map, &same), [""; 0]);
    }

    #[test]
    fn weights_are_kept_and_zero_drains() {
        let map = map(&[("g1", 0..512), ("g2", 512..1024)]);
        let heavy = weights(&[("g1", 3), ("g2", 1)]);
        assert_eq!(words(&map, &heavy), ["g2 > g1: 768-1023"]);
        let drained = weights(&[("g1", 0), ("g2", 1), ("g3", 1)]);
        assert_eq!(words(&map, &drained), ["g1 > g3: 0-511"]);
    }

    #[test]
    fn what_has_no_weight_or_no_owner_stays() {
        let map = map(&[("g1", 0..100), ("g2", 200..300)]);
        assert_eq!(
            words(&map, &weights(&[("g1", 1), ("g3", 1)])),
            ["g1 > g3: 50-99"]
        );
    }

    #[test]
    fn whatever_the_weights_all_slots_are_somewhere_and_few_move() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let groups: Vec<GroupId> = (0..rng.usize(1..9)).map(|n| id(&format!("g{n}"))).collect();
            let mut map = SlotMap::default();
            for slot in Slot::all() {
                map.give(slot, groups[rng.usize(0..groups.len())].clone());
            }
            let mut weights: BTreeMap<GroupId, u32> = groups
                .iter()
                .map(|group| (group.clone(), rng.u32(0..5)))
                .collect();
            weights.insert(groups[0].clone(), 1);
            let mut moved = SlotSet::EMPTY;
            let mut after = map.clone();
            for m in plan(&map, &weights, &Load::Slots) {
                assert!(!moved.overlaps(&m.slots));
                moved = moved.with(&m.slots);
                for slot in m.slots.iter() {
                    assert_eq!(map.owner(slot), Some(&m.source));
                    after.give(slot, m.target.clone());
                }
            }
            let sum: u32 = weights.values().sum();
            for (group, weight) in &weights {
                let exact = SLOT_COUNT as f64 * f64::from(*weight) / f64::from(sum);
                let owned = after.count(group) as f64;
                // Rounding leaves less than one slot a group, and may give them all to one.
                assert!(
                    owned >= exact.floor() && owned <= exact + 9.0,
                    "{owned} of {exact}"
                );
                assert!(*weight > 0 || owned == 0.0);
            }
            // Done once, there is nothing more to do.
            assert_eq!(plan(&after, &weights, &Load::Slots), []);
        }
    }

    fn measured(slots: impl Fn(usize) -> u64) -> Load {
        Load::Measured(Box::new(std::array::from_fn(slots)))
    }

    #[test]
    fn what_was_measured_is_evened_out() {
        let map = map(&[("g1", 0..8), ("g2", 8..16)]);
        let even = weights(&[("g1", 1), ("g2", 1)]);
        let check = |load: &Load, expected: &[&str]| {
            let moves = plan(&map, &even, load).into_iter();
            let words = moves.map(|m| format!("{} > {}: {}", m.source, m.target, m.slots));
            assert_eq!(words.collect::<Vec<_>>(), expected, "{load:?}");
        };
        // Two of its slots have as much as all others together; one that has nothing stays.
        check(
            &measured(|slot| if slot == 3 || slot == 6 { 100 } else { 0 }),
            &["g1 > g2: 6"],
        );
        // One that is worth more than the surplus stays, and so does what is within the tolerance.
        check(
            &measured(|slot| if slot == 3 { 100 } else { 1 }),
            &["g1 > g2: 0-2,4-7"],
        );
        check(&measured(|slot| if slot < 8 { 101 } else { 100 }), &[]);
        check(&measured(|_| 0), &[]);
    }

    #[test]
    fn who_is_drained_gives_what_has_nothing_too() {
        let map = map(&[("g1", 0..8), ("g2", 8..12), ("g3", 12..16)]);
        let drained = weights(&[("g1", 0), ("g2", 1), ("g3", 1)]);
        for load in [measured(|_| 0), measured(|slot| slot as u64 % 3)] {
            let moves = plan(&map, &drained, &load);
            let gone: usize = moves.iter().map(|m| m.slots.len()).sum();
            assert_eq!((moves.len(), gone), (2, 8), "{moves:?}");
        }
    }

    #[test]
    fn whatever_slots_have_it_is_more_even_afterwards_and_done_once() {
        let mut rng = fastrand::Rng::with_seed(9);
        for _ in 0..200 {
            let groups: Vec<GroupId> = (0..rng.usize(2..6)).map(|n| id(&format!("g{n}"))).collect();
            let mut map = SlotMap::default();
            for slot in Slot::all() {
                map.give(slot, groups[rng.usize(0..groups.len())].clone());
            }
            let weights: BTreeMap<GroupId, u32> = groups
                .iter()
                .map(|group| (group.clone(), rng.u32(1..4)))
                .collect();
            let most = 1 + rng.u64(0..1000);
            let loads: Vec<u64> = (0..SLOT_COUNT).map(|_| rng.u64(0..most)).collect();
            let load = measured(|slot| loads[slot]);
            let mut after = map.clone();
            for m in plan(&map, &weights, &load) {
                for slot in m.slots.iter() {
                    after.give(slot, m.target.clone());
                }
            }
            let all = load.sum(Slot::all());
            let sum: u32 = weights.values().sum();
            for (group, weight) in &weights {
                let exact = all as f64 * f64::from(*weight) / f64::from(sum);
                let has = load.sum(Slot::all().filter(|slot| after.owner(*slot) == Some(group)));
                let off = (has as f64 - exact).abs();
                // A group may keep a fiftieth; who lacks it lacks what all others keep.
                let allowed = all as f64 / 50.0 + 2.0 * most as f64 + 9.0;
                assert!(off <= allowed, "{has} of {exact}");
            }
            assert_eq!(plan(&after, &weights, &load), []);
        }
    }
}
