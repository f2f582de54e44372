//! Decisions about migrations: what is to move, and how far it is.

use std::{collections::BTreeMap, num::NonZeroU32};

use proto::{GroupId, MigrationId, Slot, SlotSet, reason::Reason};

use super::{
    Change, Decision, Edit, Refusal, at_revision, find_group,
    slot::{list, owned_by},
};
use crate::{
    events::{Draft, Kind},
    migration::{Advance, Manner, Migration, Phase, Wish},
    model::SlotMap,
    rebalance::{self, Load},
    snapshot::Snapshot,
};

/// How many migrations that are over are kept.
const MIGRATIONS_KEPT: usize = 100;

/// A new migration: of slots that all have one owner, to another group. Ids of those that are over and
/// long past are forgotten.
pub fn create_migration(
    now: &Snapshot,
    id: Option<&MigrationId>,
    slots: SlotSet,
    target: &GroupId,
    manner: Manner,
) -> Decision {
    let id = match id {
        Some(id) => id.clone(),
        None => next_id(now),
    };
    if now.migrations.contains_key(&id) {
        let message = format!("migration {id} exists already");
        return Err(Refusal::new(Reason::MigrationExists, message));
    }
    find_group(now, target)?;
    let source = movable(now, &slots, target)?;
    let mut migration = Migration::new(id.clone(), source.clone(), target.clone(), slots);
    migration.manner = manner;
    let over = now.migrations.values().filter(|m| m.is_over());
    let mut over: Vec<_> = over.map(|m| (m.revision, &m.id)).collect();
    over.sort();
    let surplus = (over.len() + 1).saturating_sub(MIGRATIONS_KEPT);
    let forgotten = over.iter().take(surplus);
    let mut edits: Vec<Edit> = forgotten
        .map(|(_, id)| Edit::RemoveMigration((*id).clone()))
        .collect();
    edits.push(Edit::PutMigration(Box::new(migration)));
    let message = format!("migration {id} of slots {slots} from {source} to {target} was created");
    Ok(Change {
        edits,
        request: None,
        events: vec![migration_event(&id, Kind::MigrationCreated, message)],
    })
}

/// Migrations after which each group has its share of what is evened out, by weight. Groups without a weight
/// have 1. Only where nothing moves: what is planned is of what is.
pub fn rebalance(
    now: &Snapshot,
    weights: &BTreeMap<GroupId, u32>,
    load: &Load,
    rate: Option<NonZeroU32>,
) -> Decision {
    for group in weights.keys() {
        find_group(now, group)?;
    }
    if let Some(other) = now.moving().next() {
        return Err(Refusal::new(
            Reason::GroupInMigration,
            format!(
                "migration {} is not over: wait for its end, or cancel it",
                other.id
            ),
        ));
    }
    let weights = all_weights(now, weights);
    if weights.values().all(|weight| *weight == 0) {
        return Err(Refusal::field(
            "weights",
            "at least one group must have a weight above 0",
        ));
    }
    let manner = Manner {
        rate,
        ..Manner::default()
    };
    let mut change = Change::default();
    for (number, planned) in rebalance::plan(&now.slots, &weights, load)
        .into_iter()
        .enumerate()
    {
        let id = MigrationId::new(format!("{}-{}", next_id(now), number + 1));
        let id = id.expect("a letter, digits and one dash");
        let one = create_migration(now, Some(&id), planned.slots, &planned.target, manner)?;
        change.edits.extend(one.edits);
        change.events.extend(one.events);
    }
    Ok(change)
}

/// The weights of all groups: 1 where none is given.
pub fn all_weights(now: &Snapshot, given: &BTreeMap<GroupId, u32>) -> BTreeMap<GroupId, u32> {
    let weight = |group: &GroupId| given.get(group).copied().unwrap_or(1);
    let groups = now.groups.keys();
    groups.map(|group| (group.clone(), weight(group))).collect()
}

/// Another rate for a migration that copies, or is yet to.
pub fn update_migration(
    now: &Snapshot,
    id: &MigrationId,
    rate: Option<NonZeroU32>,
    expected_revision: u64,
) -> Decision {
    let migration = find_migration(now, id)?;
    let what = format!("migration {id}");
    at_revision(&what, migration.revision, expected_revision)?;
    if migration.manner.rate == rate {
        return Ok(Change::default());
    }
    match migration.phase {
        Phase::Pending | Phase::Copying { .. } | Phase::CuttingOver { .. } => {}
        Phase::Committed
        | Phase::Reaping { .. }
        | Phase::Aborting { .. }
        | Phase::Succeeded
        | Phase::Cancelled
        | Phase::Failed { .. } => {
            let message = format!("migration {id} copies nothing any more");
            return Err(Refusal::new(Reason::MigrationTooFar, message));
        }
    }
    let mut next = migration.clone();
    next.manner.rate = rate;
    let message = match rate {
        Some(rate) => format!("migration {id} copies {rate} keys a second at most"),
        None => format!("migration {id} copies as many keys a second as the source bears"),
    };
    Ok(Change::one(
        Edit::PutMigration(Box::new(next)),
        migration_event(id, Kind::MigrationUpdated, message),
    ))
}

/// Another wish for a migration that is not over.
pub fn wish(now: &Snapshot, id: &MigrationId, wish: Wish, expected_revision: u64) -> Decision {
    let migration = find_migration(now, id)?;
    at_revision(
        &format!("migration {id}"),
        migration.revision,
        expected_revision,
    )?;
    if migration.wish == wish {
        return Ok(Change::default());
    }
    let too_far = |message: String| Err(Refusal::new(Reason::MigrationTooFar, message));
    if migration.is_over() {
        return too_far(format!("migration {id} is over"));
    }
    match (migration.wish, wish, &migration.phase) {
        (Wish::Cancel, Wish::Run | Wish::Pause, _) => {
            return too_far(format!("migration {id} is being cancelled"));
        }
        (_, Wish::Cancel, Phase::Committed | Phase::Reaping { .. }) => {
            return too_far(format!(
                "migration {id} has moved all its slots: move them back by a migration to {}",
                migration.source
            ));
        }
        _ => {}
    }
    let next = Migration {
        wish,
        ..migration.clone()
    };
    let what = match wish {
        Wish::Run => "goes on",
        Wish::Pause => "is to wait",
        Wish::Cancel => "is to end",
    };
    let message = format!("migration {id} {what}");
    Ok(Change::one(
        Edit::PutMigration(Box::new(next)),
        migration_event(id, Kind::MigrationUpdated, message),
    ))
}

/// The next phase of a migration that is still as it was when that was decided. Otherwise nothing.
pub fn advance(now: &Snapshot, id: &MigrationId, seen: u64, advance: &Advance) -> Change {
    let Some(migration) = now.migrations.get(id).filter(|m| m.revision == seen) else {
        return Change::default();
    };
    let Some(next) = migration.after(advance) else {
        return Change::default();
    };
    let mut edits = Vec::new();
    let gained = next.moved.without(&migration.moved);
    if !gained.is_empty() {
        // What the source does not own any more is not its to give.
        if !gained.without(&owned_by(now, &migration.source)).is_empty() {
            return Change::default();
        }
        let mut slots = SlotMap::clone(&now.slots);
        for slot in gained.iter() {
            slots.give(slot, migration.target.clone());
        }
        edits.push(Edit::PutSlots(slots));
    }
    let message = format!("migration {id} {}", next.news(&gained));
    edits.push(Edit::PutMigration(Box::new(next)));
    Change {
        edits,
        request: None,
        events: vec![migration_event(id, Kind::MigrationAdvanced, message)],
    }
}

/// Who has all these slots, if they can be moved to this target.
fn movable<'a>(
    now: &'a Snapshot,
    slots: &SlotSet,
    target: &GroupId,
) -> Result<&'a GroupId, Refusal> {
    let owned = |slot: Slot| Some((slot, now.slots.owner(slot)?.clone()));
    let owners: Vec<(Slot, GroupId)> = slots.iter().filter_map(owned).collect();
    let refuse = |message: String| Err(Refusal::new(Reason::SlotNotMovable, message));
    if owners.len() < slots.len() {
        return refuse("some of these slots belong to no group: assign them".to_owned());
    }
    if let Some(other) = now.moving().find(|m| m.slots.overlaps(slots)) {
        return refuse(format!("migration {} has some of these slots", other.id));
    }
    let Some(first) = slots.iter().next() else {
        return Err(Refusal::field("slots", "name at least one slot"));
    };
    let source = now.slots.owner(first).expect("all of them have owners");
    if owners.iter().any(|(_, owner)| owner != source) {
        return refuse(format!(
            "these slots have several owners: {}; create a migration for each",
            list(&owners)
        ));
    }
    if source == target {
        return refuse(format!("group {target} owns these slots already"));
    }
    Ok(source)
}

/// `m12`, by the revision that creates it.
fn next_id(now: &Snapshot) -> MigrationId {
    MigrationId::new(format!("m{}", now.head.revision + 1)).expect("a letter and digits")
}

fn migration_event(id: &MigrationId, kind: Kind, message: String) -> Draft {
    Draft::new(format!("migration/{id}"), kind, message)
}

/// Of a request that was taken long ago.
pub fn migration_forgotten() -> Refusal {
    let message = "this request was taken, and the migration that it made is over and forgotten";
    Refusal::new(Reason::MigrationNotFound, message)
}

/// The migration with this id.
pub fn find_migration<'a>(now: &'a Snapshot, id: &MigrationId) -> Result<&'a Migration, Refusal> {
    now.migrations.get(id).map(|m| &**m).ok_or_else(|| {
        Refusal::new(
            Reason::MigrationNotFound,
            format!("there is no migration {id}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use proto::SlotState;

    use super::*;
    use crate::{
        change::{
            assign_slots, delete_group,
            tests::{cluster, id, refused, slots},
        },
        migration::Ending,
    };

    /// The cluster with a migration `m1` of 0-4 from g1 to g2.
    fn moving() -> Snapshot {
        let now = cluster();
        let id = MigrationId::new("m1").unwrap();
        let manner = Manner::default();
        let target = self::id("g2");
        now.after(&create_migration(&now, Some(&id), set(0..5), &target, manner).unwrap())
    }

    fn set(numbers: std::ops::Range<u32>) -> SlotSet {
        numbers.map(|n| Slot::new(n).unwrap()).collect()
    }

    fn m1() -> MigrationId {
        MigrationId::new("m1").unwrap()
    }

    #[test]
    fn only_what_can_move_is_moved() {
        let now = moving();
        let migration = &now.migrations[&m1()];
        assert_eq!((migration.source.as_str(), migration.entered), ("g1", 4));
        let create = |id: Option<&str>, slots, target: &str| {
            let id = id.map(|id| MigrationId::new(id).unwrap());
            create_migration(
                &now,
                id.as_ref(),
                slots,
                &self::id(target),
                Manner::default(),
            )
        };
        let next = create(None, set(5..6), "g2").unwrap();
        assert!(now.after(&next).migrations.contains_key("m5"));
        refused(
            create(Some("m1"), set(5..6), "g2"),
            Reason::MigrationExists,
            "m1",
        );
        refused(create(None, set(5..6), "g9"), Reason::GroupNotFound, "g9");
        let taken = create(None, set(4..6), "g2");
        refused(taken, Reason::SlotNotMovable, "migration m1");
        let unowned = create(None, set(9..11), "g2");
        refused(unowned, Reason::SlotNotMovable, "belong to no group");
        let own = create(None, set(5..6), "g1");
        refused(own, Reason::SlotNotMovable, "owns these slots already");
        let now = now.after(&assign_slots(&now, &slots(10..12, "g2"), 0).unwrap());
        let both = create_migration(&now, None, set(9..11), &id("g1"), Manner::default());
        refused(
            both,
            Reason::SlotNotMovable,
            "several owners: 9 (g1), 10 (g2)",
        );
        let group = delete_group(&now, &id("g2"), 0);
        refused(group, Reason::GroupOwnsSlots, "2 slots");
    }

    #[test]
    fn a_migration_moves_its_slots_with_one_commit() {
        let mut now = moving();
        let mut step = |advance_to: &Advance| {
            let seen = now.migrations[&m1()].revision;
            let stale = advance(&now, &m1(), seen + 1, advance_to);
            assert!(stale.is_empty(), "{advance_to:?} by another record");
            now = now.after(&advance(&now, &m1(), seen, advance_to));
            now.clone()
        };
        let copying = step(&Advance::Copy);
        let target = || id("g2");
        let slot = |n| Slot::new(n).unwrap();
        assert_eq!(
            copying.state(slot(0)),
            SlotState::Copying { target: target() }
        );
        assert_eq!(copying.state(slot(5)), SlotState::Serving);
        let held = step(&Advance::Hold(set(0..3)));
        let target = Some(target());
        assert_eq!(held.state(slot(0)), SlotState::Held { target });
        assert_eq!(held.slots.count(&id("g2")), 0);
        let same = step(&Advance::Reap); // does not follow
        assert_eq!(same.migrations, held.migrations);
        let moved = step(&Advance::Commit);
        assert_eq!(moved.slots.count(&id("g2")), 3);
        assert_eq!(moved.slots.owner(slot(2)), Some(&id("g2")));
        assert_eq!(moved.state(slot(2)), SlotState::Serving);
        assert_eq!(moved.fault(), None);
        let migration = &moved.migrations[&m1()];
        assert_eq!(
            (migration.moved, migration.entered),
            (set(0..3), moved.head.revision)
        );
    }

    #[test]
    fn a_rate_is_changed_as_long_as_keys_are_copied() {
        let now = moving();
        let rate = NonZeroU32::new(9);
        let change = update_migration(&now, &m1(), rate, 0).unwrap();
        let next = now.after(&change);
        assert_eq!(next.migrations[&m1()].manner.rate, rate);
        assert!(update_migration(&next, &m1(), rate, 0).unwrap().is_empty());
        let stale = update_migration(&next, &m1(), None, 1);
        refused(stale, Reason::RevisionMismatch, "m1");
        let next = now.after(&wish(&now, &m1(), Wish::Cancel, 0).unwrap());
        let seen = next.migrations[&m1()].revision;
        let ended = Advance::Abort(Ending::Cancelled);
        let next = next.after(&advance(&next, &m1(), seen, &ended));
        let over = update_migration(&next, &m1(), rate, 0);
        refused(over, Reason::MigrationTooFar, "copies nothing");
    }

    #[test]
    fn groups_are_evened_out_where_nothing_moves() {
        let now = cluster();
        let change = rebalance(&now, &BTreeMap::new(), &Load::Slots, NonZeroU32::new(7)).unwrap();
        let next = now.after(&change);
        let planned: Vec<_> = next.moving().map(|m| (m.id.as_str(), m.slots)).collect();
        assert_eq!(planned, [("m4-1", set(5..10))]);
        assert!(next.moving().all(|m| m.manner.rate == NonZeroU32::new(7)));
        let again = rebalance(&next, &BTreeMap::new(), &Load::Slots, None);
        refused(
            again,
            Reason::GroupInMigration,
            "migration m4-1 is not over",
        );
        let unknown = rebalance(&now, &BTreeMap::from([(id("g9"), 1)]), &Load::Slots, None);
        refused(unknown, Reason::GroupNotFound, "g9");
        let nobody = BTreeMap::from([(id("g1"), 0), (id("g2"), 0)]);
        refused(
            rebalance(&now, &nobody, &Load::Slots, None),
            Reason::InvalidField,
            "above 0",
        );
        let as_it_is = BTreeMap::from([(id("g2"), 0)]);
        assert!(
            rebalance(&now, &as_it_is, &Load::Slots, None)
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn wishes_end_where_there_is_no_way_back() {
        let mut now = moving();
        let paused = wish(&now, &m1(), Wish::Pause, 0).unwrap();
        assert_eq!(paused.events[0].message, "migration m1 is to wait");
        now = now.after(&paused);
        assert!(wish(&now, &m1(), Wish::Pause, 0).unwrap().is_empty());
        refused(
            wish(&now, &m1(), Wish::Run, 1),
            Reason::RevisionMismatch,
            "m1",
        );
        let unknown = MigrationId::new("m2").unwrap();
        refused(
            wish(&now, &unknown, Wish::Run, 0),
            Reason::MigrationNotFound,
            "m2",
        );
        let group = delete_group(&now, &id("g2"), 0);
        refused(group, Reason::GroupInMigration, "migration m1");
        for to in [Advance::Copy, Advance::Hold(set(0..5)), Advance::Commit] {
            let seen = now.migrations[&m1()].revision;
            now = now.after(&advance(&now, &m1(), seen, &to));
        }
        let late = wish(&now, &m1(), Wish::Cancel, 0);
        refused(late, Reason::MigrationTooFar, "by a migration to g1");
    }

    #[test]
    fn what_is_over_is_forgotten_in_the_end() {
        let mut now = cluster();
        for n in 0..MIGRATIONS_KEPT + 2 {
            let id = MigrationId::new(format!("m{n}")).unwrap();
            let made = create_migration(
                &now,
                Some(&id),
                set(0..1),
                &self::id("g2"),
                Manner::default(),
            );
            now = now.after(&made.unwrap());
            let seen = now.migrations[&id].revision;
            now = now.after(&advance(
                &now,
                &id,
                seen,
                &Advance::Abort(Ending::Cancelled),
            ));
        }
        assert_eq!(now.migrations.len(), MIGRATIONS_KEPT);
        assert!(!now.migrations.contains_key("m1"));
        assert!(now.migrations.contains_key("m2"));
    }
}
