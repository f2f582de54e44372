//! Which slots are to move, so that groups own as many as they are to.
//!
//! Pure: from the slot map and weights to moves. Moves as few slots as can be, and as whole ranges: a
//! group gives its last slots first. A group with weight 0 ends with none: it is drained.

use std::{cmp::Reverse, collections::BTreeMap};

use proto::{GroupId, SLOT_COUNT, Slot, SlotSet};

use crate::model::SlotMap;

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

/// The moves after which each group owns its share by weight, of all slots that are owned. At least one
/// weight is not 0. Slots of groups that have no weight stay where they are.
pub fn plan(map: &SlotMap, weights: &BTreeMap<GroupId, u32>) -> Vec<Move> {
    let mut owned: BTreeMap<&GroupId, Vec<Slot>> =
        weights.keys().map(|g| (g, Vec::new())).collect();
    for slot in Slot::all() {
        if let Some(slots) = map.owner(slot).and_then(|owner| owned.get_mut(owner)) {
            slots.push(slot);
        }
    }
    let shares = shares(&owned, weights);
    // What is too much, the last slots of each group first; and who lacks how many.
    let mut surplus: Vec<(&GroupId, Slot)> = Vec::new();
    for (group, slots) in &owned {
        let kept = slots.len().min(shares[group]);
        surplus.extend(slots[kept..].iter().map(|slot| (*group, *slot)));
    }
    let lacks = owned.iter().map(|(group, slots)| {
        let lack = shares[group].saturating_sub(slots.len());
        (*group, lack)
    });
    let mut surplus = surplus.into_iter();
    let mut moves: BTreeMap<(&GroupId, &GroupId), Vec<Slot>> = BTreeMap::new();
    for (target, lack) in lacks {
        for (source, slot) in surplus.by_ref().take(lack) {
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

/// How many slots each group is to own. What is left over by rounding goes to those that own the most
/// above it, so that the fewest slots move.
fn shares<'a>(
    owned: &BTreeMap<&'a GroupId, Vec<Slot>>,
    weights: &BTreeMap<GroupId, u32>,
) -> BTreeMap<&'a GroupId, usize> {
    let all: usize = owned.values().map(Vec::len).sum();
    debug_assert!(all <= SLOT_COUNT);
    let sum: u64 = weights.values().map(|weight| u64::from(*weight)).sum();
    let mut shares: BTreeMap<&GroupId, usize> = owned
        .keys()
        .map(|group| {
            let share = all as u64 * u64::from(weights[*group]) / sum.max(1);
            (*group, share as usize)
        })
        .collect();
    let given: usize = shares.values().sum();
    let mut takers: Vec<(Reverse<usize>, &GroupId)> = owned
        .iter()
        .filter(|(group, _)| weights[**group] > 0)
        .map(|(group, slots)| (Reverse(slots.len().saturating_sub(shares[group])), *group))
        .collect();
    takers.sort();
    for (_, group) in takers.into_iter().cycle().take(all - given) {
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
        let moves = plan(map, weights).into_iter();
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
            for m in plan(&map, &weights) {
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
            assert_eq!(plan(&after, &weights), []);
        }
    }
}
