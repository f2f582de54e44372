//! Everything the store says, at one revision.
//!
//! A [`Snapshot`] never changes; a [`Change`] makes the next one of it. The records are shared
//! between snapshots, so one is cheap to make and to keep. Readers take the newest once and use it
//! throughout: what they see belongs together.
//!
//! Invariants: every owner of a slot is a group; no server is in two groups; there are at most as
//! many groups as slots; migrations that are not over have their groups, and no slot in common. [`Snapshot::fault`] checks them on what was read, `change.rs` upholds them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proto::{
    GroupId, MigrationId, ProxyId, SLOT_COUNT, ServerAddr, Slot, SlotSet, SlotState, Version,
};

use crate::{
    change::{Change, Edit},
    fence::Mark,
    migration::Migration,
    model::{Cluster, Group, Head, REQUESTS_KEPT, Registration, Request, Server, SlotMap},
};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Which cluster this is.
    pub cluster: Arc<Cluster>,
    /// How far the store is.
    pub head: Head,
    /// All groups.
    pub groups: BTreeMap<GroupId, Arc<Group>>,
    /// Who owns which slot.
    pub slots: Arc<SlotMap>,
    /// All proxies that registered and were not removed.
    pub proxies: BTreeMap<ProxyId, Arc<Registration>>,
    /// All migrations that are not over, and some that are.
    pub migrations: BTreeMap<MigrationId, Arc<Migration>>,
    /// The newest request ids, by the revision that took them.
    pub requests: Arc<BTreeMap<u64, Request>>,
}

impl Snapshot {
    /// Of a store in which nothing was committed yet.
    pub fn new(cluster: Cluster) -> Self {
        Self {
            cluster: Arc::new(cluster),
            head: Head::default(),
            groups: BTreeMap::new(),
            slots: Arc::default(),
            proxies: BTreeMap::new(),
            migrations: BTreeMap::new(),
            requests: Arc::default(),
        }
    }

    /// The version of the topology compiled from it.
    pub fn version(&self) -> Version {
        Version {
            leader_term: self.head.leader_term,
            epoch: self.head.revision,
        }
    }

    /// The same, as it is compared with what stands at servers.
    pub fn mark(&self) -> Mark {
        Mark {
            term: self.head.leader_term,
            epoch: self.head.revision,
        }
    }

    /// The server at this address, and its group.
    pub fn server(&self, address: &ServerAddr) -> Option<(&Group, &Server)> {
        self.servers().find(|(_, s)| &s.address == address)
    }

    /// All servers, sorted by group, the primary first, then by address.
    pub fn servers(&self) -> impl Iterator<Item = (&Group, &Server)> {
        self.groups
            .values()
            .flat_map(|group| group.servers.iter().map(move |server| (&**group, server)))
    }

    /// The migrations that are not over.
    pub fn moving(&self) -> impl Iterator<Item = &Arc<Migration>> {
        self.migrations.values().filter(|m| !m.is_over())
    }

    /// What proxies are to do with a slot.
    pub fn state(&self, slot: Slot) -> SlotState {
        let owner = self.slots.owner(slot);
        let mover = self.moving().find(|m| m.slots.contains(slot));
        match mover.filter(|m| owner == Some(&m.source)) {
            Some(migration) => migration.state_of(slot),
            None => SlotState::Serving,
        }
    }

    /// The request that came with this id, if it is remembered.
    pub fn request(&self, id: &str) -> Option<&Request> {
        self.requests.values().find(|request| request.id == id)
    }

    /// The snapshot after a commit of the change.
    pub fn after(&self, change: &Change) -> Self {
        let mut next = self.clone();
        next.head.revision += 1;
        next.take(change);
        if let Some(request) = &change.request {
            let requests = Arc::make_mut(&mut next.requests);
            requests.insert(next.head.revision, request.clone());
            while requests.len() > REQUESTS_KEPT {
                requests.pop_first();
            }
        }
        next
    }

    /// What a commit of the change would lead to, at the present revision.
    pub fn preview(&self, change: &Change) -> Self {
        let mut next = self.clone();
        next.take(change);
        next.head = self.head;
        next
    }

    fn take(&mut self, change: &Change) {
        let revision = self.head.revision;
        for edit in &change.edits {
            match edit.clone() {
                Edit::Elect => self.head.leader_term += 1,
                Edit::Leap(head) => self.head = head,
                Edit::PutGroup(group) => {
                    let group = Group { revision, ..group };
                    self.groups.insert(group.id.clone(), Arc::new(group));
                }
                Edit::RemoveGroup(id) => drop(self.groups.remove(&id)),
                Edit::PutSlots(mut slots) => {
                    slots.revision = revision;
                    self.slots = Arc::new(slots);
                }
                Edit::PutProxy(proxy) => {
                    let proxy = Registration { revision, ..proxy };
                    self.proxies.insert(proxy.id.clone(), Arc::new(proxy));
                }
                Edit::RemoveProxy(id) => drop(self.proxies.remove(&id)),
                Edit::PutMigration(mut migration) => {
                    let before = self.migrations.get(&migration.id);
                    migration.revision = revision;
                    if before.is_none_or(|before| before.phase != migration.phase) {
                        migration.entered = revision;
                    }
                    let id = migration.id.clone();
                    self.migrations.insert(id, Arc::new(*migration));
                }
                Edit::RemoveMigration(id) => drop(self.migrations.remove(&id)),
                Edit::Restore(backup) => backup.put_into(self),
            }
        }
    }

    /// What is wrong with a snapshot that was read. `None`: nothing.
    pub fn fault(&self) -> Option<String> {
        if self.groups.len() > SLOT_COUNT {
            return Some("there are more groups than slots".to_owned());
        }
        for group in self.groups.values() {
            if let Some(fault) = group.fault() {
                return Some(format!("group {}: {fault}", group.id));
            }
        }
        let mut seen = BTreeSet::new();
        if let Some((_, server)) = self.servers().find(|(_, s)| !seen.insert(&s.address)) {
            return Some(format!("server {} is in two groups", server.address));
        }
        let mut moving = SlotSet::EMPTY;
        for migration in self.moving() {
            let Migration { id, slots, .. } = &**migration;
            let groups = [&migration.source, &migration.target];
            if let Some(group) = groups.iter().find(|g| !self.groups.contains_key(**g)) {
                return Some(format!(
                    "migration {id} has group {group}, which is not there"
                ));
            }
            if moving.overlaps(slots) {
                return Some(format!("migration {id} has slots of another one"));
            }
            moving = moving.with(slots);
        }
        let stray = |slot: &Slot| {
            self.slots
                .owner(*slot)
                .is_some_and(|owner| !self.groups.contains_key(owner))
        };
        Slot::all()
            .find(stray)
            .map(|slot| format!("slot {slot} belongs to a group that is not there"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proto::ClusterId;

    use super::*;
    use crate::model::{FORMAT, Role};

    /// A snapshot at revision 1 of an empty cluster.
    pub(crate) fn empty() -> Snapshot {
        let cluster = Cluster {
            format: FORMAT,
            id: ClusterId::new("c1").unwrap(),
            name: "test".to_owned(),
        };
        Snapshot::new(cluster).after(&Change {
            edits: vec![Edit::Elect],
            ..Change::default()
        })
    }

    /// A group with a primary at `port`, and as many replicas behind it.
    pub(crate) fn group(id: &str, port: u16, replicas: u16) -> Group {
        let server = |offset: u16| Server {
            address: ServerAddr::new(format!("127.0.0.1:{}", port + offset)).unwrap(),
            role: if offset == 0 {
                Role::Primary
            } else {
                Role::Replica
            },
            zone: String::new(),
            run_id: format!("run-{}", port + offset),
        };
        let servers = (0..=replicas).map(server).collect();
        Group::new(GroupId::new(id).unwrap(), String::new(), servers)
    }

    /// The snapshot with these groups.
    pub(crate) fn with_groups(groups: impl IntoIterator<Item = Group>) -> Snapshot {
        empty().after(&Change {
            edits: groups.into_iter().map(Edit::PutGroup).collect(),
            ..Change::default()
        })
    }

    #[test]
    fn a_change_is_stamped_with_its_revision() {
        let now = with_groups([group("g1", 7000, 1)]);
        assert_eq!((now.head.revision, now.head.leader_term), (2, 1));
        assert_eq!(now.groups["g1"].revision, 2);
        let change = Change {
            edits: vec![Edit::PutGroup(group("g2", 7100, 0))],
            ..Change::default()
        };
        assert_eq!(now.preview(&change).groups["g2"].revision, 2);
        assert_eq!(now.preview(&change).head, now.head);
        let next = now.after(&change);
        assert_eq!(next.groups["g2"].revision, 3);
        assert_eq!(next.groups["g1"].revision, 2);
        assert!(!now.groups.contains_key("g2"));
    }

    #[test]
    fn only_the_newest_request_ids_are_remembered() {
        let mut now = empty();
        for n in 0..=REQUESTS_KEPT {
            now = now.after(&Change {
                request: Some(Request {
                    id: format!("r{n}"),
                    content: 0,
                }),
                ..Change::default()
            });
        }
        assert_eq!(now.requests.len(), REQUESTS_KEPT);
        assert!(now.request("r0").is_none());
        assert!(now.request("r1").is_some());
    }

    #[test]
    fn what_does_not_belong_together_is_found() {
        fn check(spoil: impl FnOnce(&mut Snapshot), fault: &str) {
            let mut snapshot = with_groups([group("g1", 7000, 1), group("g2", 7100, 0)]);
            assert_eq!(snapshot.fault(), None);
            spoil(&mut snapshot);
            let got = snapshot.fault().unwrap();
            assert!(got.contains(fault), "expected `{fault}`, got `{got}`");
        }
        let slots = |owner: &str| {
            let mut map = SlotMap::default();
            map.give(Slot::MAX, GroupId::new(owner).unwrap());
            Arc::new(map)
        };
        check(|s| s.slots = slots("g3"), "slot 1023 belongs to a group");
        let put = |s: &mut Snapshot, group: Group| s.groups.insert(group.id.clone(), group.into());
        check(|s| drop(put(s, group("g3", 7001, 0))), "is in two groups");
        check(
            |s| {
                let mut bad = group("g3", 7200, 1);
                bad.servers.remove(0);
                put(s, bad);
            },
            "exactly one primary",
        );
    }
}
