//! Backups: the whole store as one message, and back again into any store.
//!
//! What is written is all that a new store cannot find out by itself; but no migrations: where their keys
//! are is not what a backup knows, and a copy that went on from an older state would begin by deleting
//! what has moved since. So none may be under way where it is restored. What is read is checked as a whole
//! before anything is changed: its checksum, each record, and that the records belong together. A restored
//! store has the backup's cluster id, so that proxies know it; and a version above all that is known
//! of either, so that they take its topology.
//!
//! Pure; the file is the operator's tool's.

use std::{collections::BTreeMap, sync::Arc};

use prost::Message;
use proto::{
    ClusterId, GroupId, ServerAddr, Slot, Version,
    reason::Reason,
    topology::SlotTable,
    v1::{self, server::Role as WireRole},
};

use crate::{
    change::{Change, Decision, Edit, Refusal, at_revision},
    clock,
    events::{Draft, Kind},
    model::{Cluster, FORMAT, Group, REQUESTS_KEPT, Registration, Request, Role, Server, SlotMap},
    parse,
    snapshot::Snapshot,
    store::BUILD_VERSION,
    view,
};

/// The format of a backup. Another one is refused.
const BACKUP_FORMAT: u32 = 1;

/// A higher term or epoch is nobody's, and leaves no room above it.
const NUMBER_MAX: u64 = 1 << 62;

/// A backup that was checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backup {
    /// Whose it is.
    pub cluster: ClusterId,
    /// How far the store was. What is restored goes on above it.
    pub version: Version,
    /// All groups.
    pub groups: Vec<Group>,
    /// Who owns which slot.
    pub slots: SlotMap,
    /// The proxies that were registered.
    pub proxies: Vec<Registration>,
    /// The request ids that were remembered, by the revision that took them.
    pub requests: BTreeMap<u64, Request>,
}

/// How a backup is to be restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    /// Also where there are groups already, if they are the same cluster's.
    pub replace: bool,
    /// Without its proxies; they register by themselves.
    pub without_proxies: bool,
    /// Of the store. 0: any.
    pub expected_revision: u64,
}

/// The backup of a snapshot, made at this time.
pub fn write(now: &Snapshot, time_ms: u64) -> v1::Backup {
    let request = |(revision, request): (&u64, &Request)| v1::TakenRequest {
        revision: *revision,
        id: request.id.clone(),
        content: request.content,
    };
    let mut backup = v1::Backup {
        format: BACKUP_FORMAT,
        time: Some(clock::timestamp(time_ms)),
        controller_version: BUILD_VERSION.to_owned(),
        cluster_id: now.cluster.id.to_string(),
        cluster_name: now.cluster.name.clone(),
        revision: now.head.revision,
        leader_term: now.head.leader_term,
        groups: now.groups.values().map(|g| view::group(now, g)).collect(),
        slots: Some(view::slot_map(&now.slots)),
        proxies: now
            .proxies
            .values()
            .map(|p| view::proxy(p, None, 0))
            .collect(),
        requests: now.requests.iter().map(request).collect(),
        checksum: 0,
    };
    backup.checksum = checksum(&backup);
    backup
}

/// Checks a backup.
pub fn read(wire: Option<&v1::Backup>) -> Result<Backup, Refusal> {
    let wire = wire.ok_or_else(|| Refusal::field("backup", "must be set"))?;
    if wire.format != BACKUP_FORMAT {
        let message = format!(
            "has format {}, this release reads {BACKUP_FORMAT}: restore with the release that wrote it",
            wire.format
        );
        return Err(Refusal::field("backup.format", message));
    }
    let found = checksum(wire);
    if found != wire.checksum {
        let message = format!(
            "is damaged: what it holds has the checksum {found}, and was written with {}",
            wire.checksum
        );
        return Err(Refusal::field("backup", message));
    }
    let version = Version {
        leader_term: wire.leader_term,
        epoch: wire.revision,
    };
    let backup = Backup {
        cluster: parse::id("backup.cluster_id", &wire.cluster_id, ClusterId::new)?,
        version: in_range("backup.revision", version)?,
        groups: each("groups", &wire.groups, group)?,
        slots: slot_map(wire.slots.as_ref())?,
        proxies: each("proxies", &wire.proxies, |field, proxy| {
            registration(proxy, &wire.cluster_id)
                .map_err(|refusal| Refusal::field(field, refusal.message))
        })?,
        requests: each("requests", &wire.requests, request)?
            .into_iter()
            .collect(),
    };
    match fault(&backup) {
        Some(fault) => Err(Refusal::field("backup", fault)),
        None => Ok(backup),
    }
}

/// Everything as in the backup, where there is nothing yet; or, if that is asked for, in place of what
/// the same cluster has. A registration that the store has is newer than the backup's, and stays.
pub fn restore(now: &Snapshot, backup: &Backup, terms: Terms, has_proxies: bool) -> Decision {
    at_revision("the store", now.head.revision, terms.expected_revision)?;
    let is_same = now.cluster.id == backup.cluster;
    let may_replace = is_same && terms.replace;
    if !may_replace && !now.groups.is_empty() {
        return Err(Refusal::new(
            Reason::ClusterNotEmpty,
            not_empty(now, backup),
        ));
    }
    if !is_same && has_proxies {
        return Err(Refusal::new(
            Reason::ProxyConnected,
            "proxies are connected that have the empty topology of this cluster, and would refuse \
             another cluster's: stop them, restore, then start them",
        ));
    }
    if let Some(migration) = now.moving().next() {
        return Err(Refusal::new(
            Reason::GroupInMigration,
            format!(
                "migration {} is under way: cancel it, or wait until it is over",
                migration.id
            ),
        ));
    }
    let mut restored = backup.clone();
    if terms.without_proxies {
        restored.proxies.clear();
    }
    if is_same {
        let known = |proxy: &Registration| now.proxies.contains_key(&proxy.id);
        restored.proxies.retain(|proxy| !known(proxy));
        let present = now.proxies.values().map(|proxy| Registration::clone(proxy));
        restored.proxies.extend(present);
        restored.requests.extend((*now.requests).clone());
    }
    let message = format!(
        "the cluster was restored from a backup of version {}",
        backup.version
    );
    Ok(Change {
        edits: vec![Edit::Restore(Box::new(restored))],
        request: None,
        events: vec![Draft::new("cluster", Kind::ClusterRestored, message)],
    })
}

fn not_empty(now: &Snapshot, backup: &Backup) -> String {
    let (id, name, groups) = (&now.cluster.id, &now.cluster.name, now.groups.len());
    if *id == backup.cluster {
        format!(
            "cluster `{name}` has {groups} groups, at version {}; the backup is of the same cluster at \
             version {}: say that it is to replace them, or restore into an empty store",
            now.version(),
            backup.version
        )
    } else {
        format!(
            "cluster `{name}` ({id}) has {groups} groups, and the backup is of cluster {}: restore into \
             an empty store",
            backup.cluster
        )
    }
}

/// What is wrong with its records together. `None`: nothing.
fn fault(backup: &Backup) -> Option<String> {
    let whole = alone(backup);
    if whole.groups.len() < backup.groups.len() {
        return Some("a group is there twice".to_owned());
    }
    if whole.proxies.len() < backup.proxies.len() {
        return Some("a proxy is there twice".to_owned());
    }
    whole.fault()
}

/// A snapshot of nothing but the backup.
fn alone(backup: &Backup) -> Snapshot {
    let cluster = Cluster {
        format: FORMAT,
        id: backup.cluster.clone(),
        name: String::new(),
    };
    Snapshot::new(cluster).after(&Change {
        edits: vec![Edit::Restore(Box::new(backup.clone()))],
        ..Change::default()
    })
}

fn in_range(field: &str, version: Version) -> Result<Version, Refusal> {
    if version.leader_term.max(version.epoch) <= NUMBER_MAX {
        return Ok(version);
    }
    let message = format!("`{version}` is more than {NUMBER_MAX}");
    Err(Refusal::field(field, message))
}

/// Of all fields but itself.
fn checksum(backup: &v1::Backup) -> u32 {
    let bare = v1::Backup {
        checksum: 0,
        ..backup.clone()
    };
    crc32fast::hash(&bare.encode_to_vec())
}

fn each<W, T>(
    name: &str,
    wire: &[W],
    read: impl Fn(&str, &W) -> Result<T, Refusal>,
) -> Result<Vec<T>, Refusal> {
    let one = |(index, wire)| read(&format!("backup.{name}[{index}]"), wire);
    wire.iter().enumerate().map(one).collect()
}

fn group(field: &str, wire: &v1::Group) -> Result<Group, Refusal> {
    let servers = wire.servers.iter().map(|wire| server(field, wire));
    let group = Group::new(
        parse::group_id(&format!("{field}.id"), &wire.id)?,
        parse::description(&format!("{field}.description"), &wire.description)?,
        servers.collect::<Result<_, _>>()?,
    );
    match group.fault() {
        Some(fault) => Err(Refusal::field(field, fault)),
        None => Ok(group),
    }
}

fn server(field: &str, wire: &v1::Server) -> Result<Server, Refusal> {
    Ok(Server {
        address: parse::id(field, &wire.address, ServerAddr::new)?,
        role: match wire.role() {
            WireRole::Primary => Role::Primary,
            WireRole::Replica => Role::Replica,
            WireRole::Unspecified => {
                return Err(Refusal::field(field, "a server must have a role"));
            }
        },
        zone: parse::zone(field, &wire.zone)?,
        run_id: wire.run_id.clone(),
    })
}

fn request(field: &str, wire: &v1::TakenRequest) -> Result<(u64, Request), Refusal> {
    match parse::request_id(&wire.id)? {
        Some(id) => Ok((
            wire.revision,
            Request {
                id,
                content: wire.content,
            },
        )),
        None => Err(Refusal::field(field, "a request must have an id")),
    }
}

fn slot_map(wire: Option<&v1::SlotMap>) -> Result<SlotMap, Refusal> {
    const FIELD: &str = "backup.slots";
    let wire = wire.ok_or_else(|| Refusal::field(FIELD, "must be set"))?;
    let table =
        SlotTable::read(&wire.assignments).map_err(|e| Refusal::field(FIELD, e.to_string()))?;
    let mut map = SlotMap::default();
    for slot in Slot::all() {
        let Some((owner, _)) = table.get(slot) else {
            return Err(Refusal::field(FIELD, format!("slot {slot} is missing")));
        };
        if let Some(owner) = owner {
            map.give(slot, GroupId::clone(owner));
        }
    }
    Ok(map)
}

/// What a backup has of a proxy is what its hello had.
fn registration(wire: &v1::Proxy, cluster: &str) -> Result<Registration, Refusal> {
    let hello = v1::Hello {
        proxy_id: wire.id.clone(),
        incarnation: wire.incarnation.clone(),
        address: wire.address.clone(),
        admin_address: wire.admin_address.clone(),
        zone: wire.zone.clone(),
        build_version: wire.build_version.clone(),
        cluster_id: String::new(),
        last_version: None,
    };
    Ok(parse::hello(&hello, cluster)?.0)
}

impl Backup {
    /// Makes a snapshot what the backup says, at a version above its own.
    pub(crate) fn put_into(&self, snapshot: &mut Snapshot) {
        let head = &mut snapshot.head;
        head.leader_term = head.leader_term.max(self.version.leader_term) + 1;
        head.revision = head.revision.max(self.version.epoch + 1);
        let revision = head.revision;
        snapshot.cluster = Arc::new(Cluster {
            id: self.cluster.clone(),
            ..Cluster::clone(&snapshot.cluster)
        });
        let stamp = |group: &Group| Group {
            revision,
            ..group.clone()
        };
        let groups = self.groups.iter().map(|g| (g.id.clone(), stamp(g).into()));
        snapshot.groups = groups.collect();
        let mut slots = self.slots.clone();
        slots.revision = revision;
        snapshot.slots = Arc::new(slots);
        let stamp = |proxy: &Registration| Registration {
            revision,
            ..proxy.clone()
        };
        let proxies = self.proxies.iter().map(|p| (p.id.clone(), stamp(p).into()));
        snapshot.proxies = proxies.collect();
        snapshot.migrations.clear();
        let mut requests = self.requests.clone();
        while requests.len() > REQUESTS_KEPT {
            requests.pop_first();
        }
        snapshot.requests = Arc::new(requests);
    }
}

#[cfg(test)]
mod tests {
    use proto::ProxyId;

    use super::*;
    use crate::{
        change::{self, Assignment},
        snapshot::tests::{empty, group, with_groups},
    };

    const PLAIN: Terms = Terms {
        replace: false,
        without_proxies: false,
        expected_revision: 0,
    };

    fn proxy(id: &str, digit: &str) -> Registration {
        Registration {
            id: ProxyId::new(id).unwrap(),
            revision: 0,
            incarnation: digit.repeat(32),
            address: "127.0.0.1:19000".to_owned(),
            admin_address: "127.0.0.1:19080".to_owned(),
            zone: "z".to_owned(),
            build_version: "0.1.0".to_owned(),
        }
    }

    /// Two groups that own all slots, a proxy and a request id, at version 1.5.
    fn full() -> Snapshot {
        let now = with_groups([group("g1", 7000, 2), group("g2", 7100, 0)]);
        let request = Request {
            id: "r1".to_owned(),
            content: 9,
        };
        let assign = |now: &Snapshot| change::assign_slots(now, &Assignment::Even, 0);
        let now = now.after(&change::once(&now, &request, assign).unwrap());
        let now = now.after(&change::register(&now, &proxy("p1", "a")).unwrap());
        let describe = change::update_group(&now, &"g1".parse().unwrap(), "text", 0);
        now.after(&describe.unwrap())
    }

    /// Another cluster without anything.
    fn fresh() -> Snapshot {
        let mut fresh = empty();
        Arc::make_mut(&mut fresh.cluster).id = ClusterId::new("c2").unwrap();
        fresh
    }

    fn backup(now: &Snapshot) -> Backup {
        read(Some(&write(now, 5))).unwrap()
    }

    fn refused(decision: Decision, reason: Reason, part: &str) {
        let refusal = decision.unwrap_err();
        assert_eq!(refusal.reason, reason, "{refusal:?}");
        assert!(refusal.message.contains(part), "{refusal:?}");
    }

    #[test]
    fn what_is_restored_is_what_was_written_at_a_higher_version() {
        let now = full();
        let change = restore(&fresh(), &backup(&now), PLAIN, false).unwrap();
        let restored = fresh().after(&change);
        assert_eq!(restored.fault(), None);
        assert_eq!(restored.cluster.id, now.cluster.id);
        assert_eq!(restored.version().to_string(), "2.6");
        let bare = |snapshot: &Snapshot| {
            let mut wire = write(snapshot, 0);
            wire.groups.iter_mut().for_each(|group| {
                group.revision = 0;
                group.servers.iter_mut().for_each(|s| s.revision = 0);
            });
            wire.proxies.iter_mut().for_each(|proxy| proxy.revision = 0);
            wire.slots.as_mut().unwrap().revision = 0;
            (wire.groups, wire.slots, wire.proxies, wire.requests)
        };
        assert_eq!(bare(&restored), bare(&now));
        assert!(restored.groups.values().all(|group| group.revision == 6));
    }

    #[test]
    fn the_version_is_above_all_that_is_known() {
        let mut ahead = fresh();
        ahead.head.leader_term = 9;
        let version = |now: &Snapshot| {
            let change = restore(now, &backup(&full()), PLAIN, false).unwrap();
            now.after(&change).version().to_string()
        };
        assert_eq!(version(&ahead), "10.6");
        ahead.head.revision = 70;
        assert_eq!(version(&ahead), "10.71");
        assert_eq!(version(&fresh()), "2.6");
        let change = restore(&fresh(), &backup(&full()), PLAIN, false).unwrap();
        assert_eq!(fresh().preview(&change).head, fresh().head);
    }

    #[test]
    fn groups_are_replaced_only_if_that_is_said_and_they_are_the_same_clusters() {
        let old = full();
        let later = old.after(&change::register(&old, &proxy("p1", "b")).unwrap());
        let later = later.after(&change::register(&later, &proxy("p2", "c")).unwrap());
        let old = backup(&old);
        refused(
            restore(&later, &old, PLAIN, true),
            Reason::ClusterNotEmpty,
            "say that it is to replace them",
        );
        let replace = Terms {
            replace: true,
            ..PLAIN
        };
        let restored = later.after(&restore(&later, &old, replace, true).unwrap());
        // Registrations that are newer stay.
        let digits: Vec<_> = restored
            .proxies
            .values()
            .map(|p| &p.incarnation[..1])
            .collect();
        assert_eq!(digits, ["b", "c"]);
        assert!(restored.version() > later.version());

        let mut other = later.clone();
        Arc::make_mut(&mut other.cluster).id = ClusterId::new("c2").unwrap();
        refused(
            restore(&other, &old, replace, false),
            Reason::ClusterNotEmpty,
            "restore into an empty store",
        );
        refused(
            restore(&fresh(), &old, PLAIN, true),
            Reason::ProxyConnected,
            "stop them",
        );
        let stale = Terms {
            expected_revision: 77,
            ..PLAIN
        };
        refused(
            restore(&fresh(), &old, stale, false),
            Reason::RevisionMismatch,
            "the store is at revision 1, not 77",
        );
        let alone = Terms {
            without_proxies: true,
            ..PLAIN
        };
        let restored = fresh().after(&restore(&fresh(), &old, alone, false).unwrap());
        assert!(restored.proxies.is_empty());
    }

    #[test]
    fn a_damaged_backup_is_refused() {
        fn check(spoil: impl FnOnce(&mut v1::Backup), part: &str) {
            let mut wire = write(&full(), 5);
            spoil(&mut wire);
            let refusal = read(Some(&wire)).unwrap_err();
            assert_eq!(refusal.reason, Reason::InvalidField);
            let text = format!("{}: {}", refusal.field, refusal.message);
            assert!(text.contains(part), "expected `{part}` in `{text}`");
        }
        /// As somebody would do it who knows of the checksum.
        fn forge(spoil: impl FnOnce(&mut v1::Backup), part: &str) {
            check(
                |wire| {
                    spoil(wire);
                    wire.checksum = checksum(wire);
                },
                part,
            );
        }
        check(|wire| wire.revision += 1, "is damaged");
        check(|wire| wire.checksum ^= 1, "is damaged");
        check(|wire| drop(wire.groups.pop()), "is damaged");
        forge(|wire| wire.format = 2, "backup.format: has format 2");
        forge(|wire| wire.cluster_id.clear(), "backup.cluster_id");
        forge(|wire| wire.leader_term = u64::MAX, "is more than");
        forge(|wire| drop(wire.groups.pop()), "a group that is not there");
        forge(|wire| drop(wire.groups[0].servers.remove(0)), "one primary");
        forge(
            |wire| wire.groups[0].servers[0].role = 0,
            "must have a role",
        );
        forge(
            |wire| wire.groups[1] = wire.groups[0].clone(),
            "there twice",
        );
        forge(
            |wire| drop(wire.slots.as_mut().unwrap().assignments.pop()),
            "slot 512 is missing",
        );
        forge(|wire| wire.slots = None, "backup.slots: must be set");
        forge(|wire| wire.proxies[0].address.clear(), "backup.proxies[0]");
        forge(|wire| wire.requests[0].id.clear(), "must have an id");
    }
}
