//! Decisions about groups: one comes with its servers, and goes when it owns nothing.

use proto::{GroupId, SLOT_COUNT, ServerAddr, reason::Reason};

use super::{
    Change, Decision, Edit, Refusal, at_revision, count,
    server::{is_another_process, is_new, server_created},
};
use crate::{
    events::{Draft, Kind},
    migration::Migration,
    model::Group,
    snapshot::Snapshot,
};

/// Checks what can be checked of a new group before its servers are asked.
pub fn may_create_group<'a>(
    now: &Snapshot,
    id: &GroupId,
    servers: impl IntoIterator<Item = &'a ServerAddr>,
) -> Result<(), Refusal> {
    if now.groups.contains_key(id) {
        return Err(Refusal::new(
            Reason::GroupExists,
            format!("group {id} exists already"),
        ));
    }
    if now.groups.len() >= SLOT_COUNT {
        return Err(Refusal::field(
            "id",
            format!("there are {SLOT_COUNT} groups already, as many as slots"),
        ));
    }
    servers
        .into_iter()
        .try_for_each(|address| is_new(now, address))
}

/// A new group, with the servers that were admitted to it.
pub fn create_group(now: &Snapshot, group: &Group) -> Decision {
    may_create_group(now, &group.id, group.servers.iter().map(|s| &s.address))?;
    for server in &group.servers {
        is_another_process(now, server)?;
    }
    let servers = count(group.servers.len(), "server");
    let created = Draft::new(
        format!("group/{}", group.id),
        Kind::GroupCreated,
        format!("group {} was created with {servers}", group.id),
    );
    let joined = group.servers.iter().map(|s| server_created(&group.id, s));
    Ok(Change {
        edits: vec![Edit::PutGroup(group.clone())],
        request: None,
        events: std::iter::once(created).chain(joined).collect(),
    })
}

/// Another description for a group.
pub fn update_group(
    now: &Snapshot,
    id: &GroupId,
    description: &str,
    expected_revision: u64,
) -> Decision {
    let group = find_group(now, id)?;
    at_revision(&format!("group {id}"), group.revision, expected_revision)?;
    if group.description == description {
        return Ok(Change::default());
    }
    Ok(Change::one(
        Edit::PutGroup(Group {
            description: description.to_owned(),
            ..group.clone()
        }),
        Draft::new(
            format!("group/{id}"),
            Kind::GroupUpdated,
            format!("the description of group {id} was changed"),
        ),
    ))
}

/// The end of a group that owns no slots.
pub fn delete_group(now: &Snapshot, id: &GroupId, expected_revision: u64) -> Decision {
    let group = find_group(now, id)?;
    at_revision(&format!("group {id}"), group.revision, expected_revision)?;
    let owned = now.slots.count(id);
    if owned > 0 {
        return Err(Refusal::new(
            Reason::GroupOwnsSlots,
            format!(
                "group {id} owns {}: move them to other groups first (`sluice migration create`)",
                count(owned, "slot")
            ),
        ));
    }
    let taking = now.moving().find(|m| m.source == *id || m.target == *id);
    if let Some(Migration { id: migration, .. }) = taking.map(|m| &**m) {
        return Err(Refusal::new(
            Reason::GroupInMigration,
            format!(
                "group {id} takes part in migration {migration}: wait for its end, or cancel it"
            ),
        ));
    }
    Ok(Change::one(
        Edit::RemoveGroup(id.clone()),
        Draft::new(
            format!("group/{id}"),
            Kind::GroupDeleted,
            format!("group {id} was deleted; its servers run on"),
        ),
    ))
}

/// The group with this id.
pub fn find_group<'a>(now: &'a Snapshot, id: &GroupId) -> Result<&'a Group, Refusal> {
    now.groups
        .get(id)
        .map(|group| &**group)
        .ok_or_else(|| Refusal::new(Reason::GroupNotFound, format!("there is no group {id}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        change::tests::{cluster, id, refused},
        snapshot::tests::group,
    };

    #[test]
    fn groups_come_and_go() {
        let now = cluster();
        let made = create_group(&now, &group("g3", 7200, 2)).unwrap();
        assert_eq!(made.events.len(), 4);
        assert_eq!(
            made.events[0].message,
            "group g3 was created with 3 servers"
        );
        let alone = create_group(&now, &group("g3", 7200, 0)).unwrap();
        assert_eq!(
            alone.events[0].message,
            "group g3 was created with 1 server"
        );
        assert_eq!(now.after(&made).groups["g3"].servers.len(), 3);
        let gone = delete_group(&now, &id("g2"), 0).unwrap();
        assert!(!now.after(&gone).groups.contains_key("g2"));

        let dup = create_group(&now, &group("g1", 7200, 0));
        refused(dup, Reason::GroupExists, "g1");
        let taken = create_group(&now, &group("g3", 7100, 0));
        refused(taken, Reason::ServerExists, "group g2");
        let owner = delete_group(&now, &id("g1"), 0);
        let part = "10 slots: move them to other groups first";
        refused(owner, Reason::GroupOwnsSlots, part);
        let unknown = delete_group(&now, &id("g9"), 0);
        refused(unknown, Reason::GroupNotFound, "g9");
    }

    #[test]
    fn one_process_under_two_addresses_is_refused() {
        let mut twin = group("g3", 7200, 0);
        twin.servers[0].run_id = "run-7001".to_owned();
        refused(
            create_group(&cluster(), &twin),
            Reason::ServerExists,
            "same process as 127.0.0.1:7001",
        );
    }
}
