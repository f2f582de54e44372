//! Decisions about slots: who owns those that nobody owns.

use proto::{GroupId, Slot, SlotRange, SlotSet, reason::Reason, slot};

use super::{Change, Decision, Edit, Refusal, at_revision, find_group};
use crate::{
    assign,
    events::{Draft, Kind},
    model::SlotMap,
    snapshot::Snapshot,
};

/// What is to be assigned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Assignment {
    /// These slots to these groups; no slot twice.
    Slots(Vec<(Slot, GroupId)>),
    /// All slots that no group owns, evenly.
    Even,
}

/// Owners for slots that have none.
pub fn assign_slots(now: &Snapshot, wanted: &Assignment, expected_revision: u64) -> Decision {
    at_revision("the slot map", now.slots.revision, expected_revision)?;
    let wanted = match wanted {
        Assignment::Slots(slots) => slots.clone(),
        Assignment::Even if now.groups.is_empty() => return Err(no_groups()),
        Assignment::Even => assign::even(&now.slots, now.groups.keys()),
    };
    for (_, group) in &wanted {
        find_group(now, group)?;
    }
    are_unowned(&now.slots, &wanted)?;
    let given: Vec<_> = wanted
        .into_iter()
        .filter(|(slot, _)| now.slots.owner(*slot).is_none())
        .collect();
    if given.is_empty() {
        return Ok(Change::default());
    }
    let mut slots = SlotMap::clone(&now.slots);
    for (slot, group) in &given {
        slots.give(*slot, group.clone());
    }
    Ok(Change::one(
        Edit::PutSlots(slots),
        Draft::new(
            "slots",
            Kind::SlotsAssigned,
            format!("assigned slots {}", list(&given)),
        ),
    ))
}

/// The slots that a group owns.
pub fn owned_by(now: &Snapshot, group: &GroupId) -> SlotSet {
    Slot::all()
        .filter(|slot| now.slots.owner(*slot) == Some(group))
        .collect()
}

fn no_groups() -> Refusal {
    Refusal::new(
        Reason::GroupNotFound,
        "there is no group to assign slots to: create one first",
    )
}

fn are_unowned(map: &SlotMap, wanted: &[(Slot, GroupId)]) -> Result<(), Refusal> {
    let owned: Vec<_> = wanted
        .iter()
        .filter_map(|(slot, group)| Some((*slot, map.owner(*slot)?.clone(), group)))
        .filter(|(_, owner, group)| owner != *group)
        .map(|(slot, owner, _)| (slot, owner))
        .collect();
    if owned.is_empty() {
        return Ok(());
    }
    Err(Refusal::new(
        Reason::SlotOwned,
        format!(
            "owned already: slots {}; owned slots are moved (`sluice migration create`)",
            list(&owned)
        ),
    ))
}

/// `0-99 (g1), 512 (g2)`, and how many more ranges there are.
pub(super) fn list(slots: &[(Slot, GroupId)]) -> String {
    const SHOWN: usize = 16;
    let mut slots = slots.to_vec();
    slots.sort();
    let ranges: Vec<(SlotRange, GroupId)> = slot::ranges(slots);
    let mut text = ranges
        .iter()
        .take(SHOWN)
        .map(|(range, group)| format!("{range} ({group})"))
        .collect::<Vec<_>>()
        .join(", ");
    if ranges.len() > SHOWN {
        text.push_str(&format!(" and {} ranges more", ranges.len() - SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use proto::SLOT_COUNT;

    use super::*;
    use crate::{
        change::tests::{cluster, id, refused, slots},
        snapshot::tests::empty,
    };

    #[test]
    fn only_unowned_slots_are_assigned() {
        let now = cluster();
        let next = now.after(&assign_slots(&now, &slots(5..20, "g1"), 0).unwrap());
        assert_eq!(next.slots.count(&id("g1")), 20);
        let next = next.after(&assign_slots(&next, &Assignment::Even, 0).unwrap());
        assert_eq!(next.slots.count(&id("g2")), SLOT_COUNT / 2);

        let owned = assign_slots(&now, &slots(5..20, "g2"), 0);
        let part = "slots 5-9 (g1); owned slots are moved";
        refused(owned, Reason::SlotOwned, part);
        let stale = assign_slots(&now, &slots(20..21, "g2"), 77);
        refused(stale, Reason::RevisionMismatch, "the slot map");
        let nobody = assign_slots(&empty(), &Assignment::Even, 0);
        refused(nobody, Reason::GroupNotFound, "create one first");
        let unknown = assign_slots(&now, &slots(20..21, "g9"), 0);
        refused(unknown, Reason::GroupNotFound, "g9");
    }
}
