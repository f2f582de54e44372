//! Sharing the slots that nobody owns.
//!
//! Pure: which group gets which slot. What is owned stays where it is, however uneven that is.

use std::collections::BTreeMap;

use proto::{GroupId, Slot};

use crate::model::SlotMap;

/// New owners for all unowned slots.
///
/// The groups end with as equal numbers as can be; where one slot is left over, the first by id has
/// it. A run of free slots goes first to the group that owns the slot before it, then to whole
/// groups in turn: at most one range more than there are groups and runs.
pub fn even<'a>(
    map: &SlotMap,
    groups: impl IntoIterator<Item = &'a GroupId>,
) -> Vec<(Slot, GroupId)> {
    let mut quotas = quotas(map, groups);
    let mut given: Vec<(Slot, GroupId)> = Vec::new();
    let mut before: Option<&GroupId> = None;
    for slot in Slot::all() {
        let owner = match map.owner(slot) {
            Some(owner) => Some(owner),
            None => take(&mut quotas, before).inspect(|&group| given.push((slot, group.clone()))),
        };
        before = owner.and_then(|owner| quotas.get_key_value(owner).map(|(&group, _)| group));
    }
    given
}

/// How many slots each group is to get: one at a time, to whoever has the fewest.
fn quotas<'a>(
    map: &SlotMap,
    groups: impl IntoIterator<Item = &'a GroupId>,
) -> BTreeMap<&'a GroupId, usize> {
    let mut totals: Vec<(usize, &GroupId)> = groups
        .into_iter()
        .map(|group| (map.count(group), group))
        .collect();
    let mut quotas: BTreeMap<_, _> = totals.iter().map(|(_, group)| (*group, 0)).collect();
    for _ in Slot::all().filter(|slot| map.owner(*slot).is_none()) {
        let Some(least) = totals.iter_mut().min() else {
            break;
        };
        least.0 += 1;
        *quotas.entry(least.1).or_default() += 1;
    }
    quotas
}

/// Takes one of the quota of `preferred`, or else of the first group that has one left.
fn take<'a>(
    quotas: &mut BTreeMap<&'a GroupId, usize>,
    preferred: Option<&'a GroupId>,
) -> Option<&'a GroupId> {
    let open = |(group, left): (&&'a GroupId, &usize)| (*left > 0).then_some(*group);
    let group = preferred
        .filter(|group| quotas.get(group).is_some_and(|left| *left > 0))
        .or_else(|| quotas.iter().find_map(open))?;
    *quotas.get_mut(group)? -= 1;
    Some(group)
}

#[cfg(test)]
mod tests {
    use proto::{SlotRange, slot};

    use super::*;

    /// `owned` and the result as `0-511=a 512-1023=b`.
    fn check(owned: &str, groups: &[&str], expected: &str) {
        let mut map = SlotMap::default();
        for part in owned.split_whitespace() {
            let (range, group) = part.split_once('=').unwrap();
            for slot in range.parse::<SlotRange>().unwrap().slots() {
                map.give(slot, GroupId::new(group).unwrap());
            }
        }
        let groups: Vec<_> = groups.iter().map(|g| GroupId::new(*g).unwrap()).collect();
        let given = slot::ranges(even(&map, &groups));
        let text: Vec<_> = given.iter().map(|(r, g)| format!("{r}={g}")).collect();
        assert_eq!(text.join(" "), expected);
    }

    #[test]
    fn slots_are_shared_evenly_in_long_ranges() {
        check("", &[], "");
        check("", &["a"], "0-1023=a");
        check("", &["a", "b"], "0-511=a 512-1023=b");
        check("", &["a", "b", "c"], "0-341=a 342-682=b 683-1023=c");
        check("0-511=a", &["a", "b"], "512-1023=b");
        check("0-1023=a", &["a", "b"], "");
        check("0-899=a", &["a", "b", "c"], "900-961=b 962-1023=c");
    }

    #[test]
    fn a_free_run_continues_the_range_before_it() {
        check("0-99=b", &["a", "b"], "100-511=b 512-1023=a");
        check("500-599=a", &["a", "b"], "0-411=a 412-499=b 600-1023=b");
    }
}
