//! Decisions about servers: who is in a group.

use proto::{GroupId, ServerAddr, reason::Reason};

use super::{Change, Decision, Edit, Refusal, at_revision, find_group};
use crate::{
    events::{Draft, Kind},
    model::{Group, Role, Server},
    snapshot::Snapshot,
};

/// Checks what can be checked of a new server before it is asked. Returns the group it joins.
pub fn may_create_server<'a>(
    now: &'a Snapshot,
    group: &GroupId,
    address: &ServerAddr,
    expected_revision: u64,
) -> Result<&'a Group, Refusal> {
    let found = find_group(now, group)?;
    at_revision(&format!("group {group}"), found.revision, expected_revision)?;
    is_new(now, address)?;
    Ok(found)
}

/// One more replica, which was admitted.
pub fn create_server(
    now: &Snapshot,
    group: &GroupId,
    server: &Server,
    expected_revision: u64,
) -> Decision {
    let found = may_create_server(now, group, &server.address, expected_revision)?;
    is_another_process(now, server)?;
    let servers = [found.servers.clone(), vec![server.clone()]].concat();
    Ok(Change::one(
        Edit::PutGroup(Group::new(
            group.clone(),
            found.description.clone(),
            servers,
        )),
        server_created(group, server),
    ))
}

/// Another zone for a server.
pub fn update_server(
    now: &Snapshot,
    address: &ServerAddr,
    zone: &str,
    expected_revision: u64,
) -> Decision {
    let (group, server) = find_server(now, address)?;
    at_revision(
        &format!("group {}", group.id),
        group.revision,
        expected_revision,
    )?;
    if server.zone == zone {
        return Ok(Change::default());
    }
    let mut changed = group.clone();
    for server in changed.servers.iter_mut().filter(|s| &s.address == address) {
        zone.clone_into(&mut server.zone);
    }
    let message = match zone {
        "" => format!("server {address} has no zone now"),
        zone => format!("the zone of server {address} is `{zone}` now"),
    };
    Ok(Change::one(
        Edit::PutGroup(changed),
        Draft::new(format!("server/{address}"), Kind::ServerUpdated, message),
    ))
}

/// One replica less.
pub fn delete_server(now: &Snapshot, address: &ServerAddr, expected_revision: u64) -> Decision {
    let (group, server) = find_server(now, address)?;
    let id = &group.id;
    at_revision(&format!("group {id}"), group.revision, expected_revision)?;
    if server.role == Role::Primary {
        return Err(Refusal::new(
            Reason::ServerIsPrimary,
            format!("server {address} is the primary of group {id}: only a replica can be removed"),
        ));
    }
    let mut changed = group.clone();
    changed.servers.retain(|s| &s.address != address);
    Ok(Change::one(
        Edit::PutGroup(changed),
        Draft::new(
            format!("server/{address}"),
            Kind::ServerDeleted,
            format!("server {address} left group {id}; it runs on"),
        ),
    ))
}

/// The server at this address, and its group.
pub fn find_server<'a>(
    now: &'a Snapshot,
    address: &ServerAddr,
) -> Result<(&'a Group, &'a Server), Refusal> {
    now.server(address).ok_or_else(|| {
        Refusal::new(
            Reason::ServerNotFound,
            format!("there is no server {address} in any group"),
        )
    })
}

pub(super) fn is_new(now: &Snapshot, address: &ServerAddr) -> Result<(), Refusal> {
    match now.server(address) {
        None => Ok(()),
        Some((group, _)) => Err(Refusal::new(
            Reason::ServerExists,
            format!("server {address} is in group {} already", group.id),
        )),
    }
}

/// Two admissions at once may have passed with one process under two addresses: here they meet.
pub(super) fn is_another_process(now: &Snapshot, new: &Server) -> Result<(), Refusal> {
    match now.servers().find(|(_, s)| s.run_id == new.run_id) {
        None => Ok(()),
        Some((group, server)) => Err(same_process(&new.address, &server.address, &group.id)),
    }
}

/// Of a server that is in a group already, under another address.
pub fn same_process(new: &ServerAddr, known: &ServerAddr, group: &GroupId) -> Refusal {
    Refusal::new(
        Reason::ServerExists,
        format!("server {new} is the same process as {known}, which is in group {group} already"),
    )
}

pub(super) fn server_created(group: &GroupId, server: &Server) -> Draft {
    Draft::new(
        format!("server/{}", server.address),
        Kind::ServerCreated,
        format!(
            "server {} joined group {group} as {}",
            server.address, server.role
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        change::tests::{addr, cluster, id, refused},
        snapshot::tests::group,
    };

    #[test]
    fn servers_come_and_go() {
        let now = cluster();
        let new = Server {
            role: Role::Replica,
            ..group("x", 6999, 0).servers[0].clone()
        };
        let next = now.after(&create_server(&now, &id("g1"), &new, 2).unwrap());
        let order: Vec<u16> = vec![7000, 6999, 7001];
        let servers = next.groups["g1"].servers.iter().map(|s| s.address.clone());
        assert!(servers.eq(order.into_iter().map(addr)));
        let next = next.after(&delete_server(&next, &addr(7001), 0).unwrap());
        assert_eq!(next.groups["g1"].servers.len(), 2);

        let primary = delete_server(&now, &addr(7000), 0);
        refused(primary, Reason::ServerIsPrimary, "g1");
        let unknown = delete_server(&now, &addr(9), 0);
        refused(unknown, Reason::ServerNotFound, "127.0.0.1:9");
        let stale = create_server(&now, &id("g1"), &new, 1);
        refused(stale, Reason::RevisionMismatch, "at revision 2, not 1");
    }

    #[test]
    fn a_zone_is_given_and_taken() {
        let message = |now: &Snapshot, zone: &str| {
            let change = update_server(now, &addr(7001), zone, 0).unwrap();
            (now.after(&change), change.events[0].message.clone())
        };
        let (now, given) = message(&cluster(), "east");
        assert_eq!(given, "the zone of server 127.0.0.1:7001 is `east` now");
        let taken = message(&now, "").1;
        assert_eq!(taken, "server 127.0.0.1:7001 has no zone now");
    }
}
