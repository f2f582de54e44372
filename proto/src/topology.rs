//! The validated topology: who serves which slot, at one version.
//!
//! [`Topology`] is made by a controller ([`Topology::new`]) or read from the wire (`TryFrom`,
//! [`Topology::apply`]); either way it has been checked as a whole: every slot has exactly one entry,
//! every owner is a known group, ids and addresses are well formed, no server is in two groups.
//! Whoever holds one need not check again.

use std::{
    collections::{BTreeMap, HashSet},
    convert::Infallible,
    fmt,
};

use crate::{
    id::{ClusterId, GroupId, InvalidId, ServerAddr},
    slot::{self, SLOT_COUNT, Slot, SlotRange},
    v1,
};

/// The version of a topology. A proxy applies only a strictly greater one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Version {
    /// The term of the leader that published it, from 1.
    pub leader_term: u64,
    /// The revision of the store it was compiled from, from 1.
    pub epoch: u64,
}

impl fmt::Display for Version {
    /// `7.812`: term 7, epoch 812.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.leader_term, self.epoch)
    }
}

/// One primary and its replicas, as far as routing goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    /// Its id.
    pub id: GroupId,
    /// Takes all requests, but for replica reads.
    pub primary: ServerAddr,
    /// May serve reads that are explicitly stale.
    pub replicas: Vec<ServerAddr>,
}

/// Whether requests for a slot are served. `G` is how another group is named: by its id, or by its index
/// in [`Topology::groups`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotState<G = GroupId> {
    /// They are sent to the owner.
    Serving,
    /// They are sent to the owner, while another group is given copies of the slot's keys.
    Copying {
        /// That group.
        target: G,
    },
    /// They wait for the next topology.
    Held {
        /// Who is to own the slot then. `None`: its owner, which is about to change its primary.
        target: Option<G>,
    },
}

impl<G> SlotState<G> {
    /// Whether requests wait.
    #[inline]
    pub const fn is_held(&self) -> bool {
        matches!(self, Self::Held { .. })
    }

    /// The group that may own the slot next.
    pub const fn target(&self) -> Option<&G> {
        match self {
            Self::Copying { target }
            | Self::Held {
                target: Some(target),
            } => Some(target),
            Self::Serving | Self::Held { target: None } => None,
        }
    }

    /// The same, with the group named in another way.
    fn map<H, E>(self, name: impl FnOnce(G) -> Result<H, E>) -> Result<SlotState<H>, E> {
        Ok(match self {
            Self::Serving => SlotState::Serving,
            Self::Copying { target } => SlotState::Copying {
                target: name(target)?,
            },
            Self::Held { target } => SlotState::Held {
                target: target.map(name).transpose()?,
            },
        })
    }
}

/// What is to happen with requests for one slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotRoute {
    /// The owner, as an index into [`Topology::groups`]. `None`: nobody.
    pub group: Option<u16>,
    /// Whether it serves. Always `Serving` where nobody owns the slot.
    pub state: SlotState<u16>,
}

/// All that a proxy needs to route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Topology {
    cluster_id: ClusterId,
    version: Version,
    groups: Vec<Group>,
    slots: Box<[SlotRoute; SLOT_COUNT]>,
}

/// Why a topology is refused. It is the sender's fault, and sending it again does not help.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidTopology {
    /// A field that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// An id or address is malformed.
    #[error(transparent)]
    Id(#[from] InvalidId),
    /// A term or epoch is 0.
    #[error("version {0} is invalid: terms and epochs start at 1")]
    Version(Version),
    /// More groups than there are slots.
    #[error("{0} groups are too many: there are 1024 slots")]
    TooManyGroups(usize),
    /// The same group twice.
    #[error("group {0} is there twice")]
    DuplicateGroup(GroupId),
    /// The same server twice.
    #[error("server {0} is there twice")]
    DuplicateServer(ServerAddr),
    /// A range is not one.
    #[error("slots {first}-{last} are no range within 0-1023")]
    Range {
        /// As sent.
        first: u32,
        /// As sent.
        last: u32,
    },
    /// A slot is named by two ranges.
    #[error("slot {0} is assigned twice")]
    DuplicateSlot(Slot),
    /// No range names a slot.
    #[error("slot {0} is not assigned: the map must be total")]
    UncoveredSlot(Slot),
    /// The owner of a slot is not among the groups.
    #[error("slot {slot} belongs to group {group}, which is unknown")]
    UnknownGroup {
        /// The slot.
        slot: Slot,
        /// Its owner.
        group: GroupId,
    },
    /// The target of a slot is its owner.
    #[error("slot {slot} is to move to group {group}, which owns it")]
    TargetOwns {
        /// The slot.
        slot: Slot,
        /// Both.
        group: GroupId,
    },
    /// A slot that is copied has no target, or one that only serves has one.
    #[error("slot {slot} is in state {state}, and its target is `{target}`")]
    Target {
        /// The slot.
        slot: Slot,
        /// As sent.
        state: &'static str,
        /// As sent.
        target: String,
    },
    /// A state this software does not know.
    #[error("slot {slot} is in the unknown state {state}")]
    UnknownState {
        /// The slot.
        slot: Slot,
        /// As sent.
        state: i32,
    },
    /// A delta for another base.
    #[error("the delta applies to version {base}, not to {have}")]
    BaseMismatch {
        /// What it applies to.
        base: Version,
        /// What there is.
        have: Version,
    },
}

impl Topology {
    /// Checks the parts and puts them together. `slots` gives every slot's owner and state.
    pub fn new(
        cluster_id: ClusterId,
        version: Version,
        groups: impl IntoIterator<Item = Group>,
        slots: impl Fn(Slot) -> (Option<GroupId>, SlotState),
    ) -> Result<Self, InvalidTopology> {
        if version.leader_term == 0 || version.epoch == 0 {
            return Err(InvalidTopology::Version(version));
        }
        let mut groups: Vec<Group> = groups.into_iter().collect();
        groups.sort_by(|a, b| a.id.cmp(&b.id));
        if groups.len() > SLOT_COUNT {
            return Err(InvalidTopology::TooManyGroups(groups.len()));
        }
        let mut servers = HashSet::new();
        for (i, group) in groups.iter().enumerate() {
            if i > 0 && groups[i - 1].id == group.id {
                return Err(InvalidTopology::DuplicateGroup(group.id.clone()));
            }
            for server in std::iter::once(&group.primary).chain(&group.replicas) {
                if !servers.insert(server) {
                    return Err(InvalidTopology::DuplicateServer(server.clone()));
                }
            }
        }
        let mut table = Box::new(
            [SlotRoute {
                group: None,
                state: SlotState::Serving,
            }; SLOT_COUNT],
        );
        for slot in Slot::all() {
            let (Some(owner), state) = slots(slot) else {
                continue;
            };
            if state.target() == Some(&owner) {
                return Err(InvalidTopology::TargetOwns { slot, group: owner });
            }
            let index = |id: GroupId| match groups.binary_search_by(|g| g.id.cmp(&id)) {
                Ok(index) => Ok(index as u16),
                Err(_) => Err(InvalidTopology::UnknownGroup { slot, group: id }),
            };
            table[slot.index()] = SlotRoute {
                group: Some(index(owner)?),
                state: state.map(index)?,
            };
        }
        Ok(Self {
            cluster_id,
            version,
            groups,
            slots: table,
        })
    }

    /// The cluster it belongs to.
    pub fn cluster_id(&self) -> &ClusterId {
        &self.cluster_id
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Its groups, sorted by id.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The groups that own slots, by their index in [`Topology::groups`].
    pub fn owners(&self) -> impl Iterator<Item = u16> {
        let mut owns = vec![false; self.groups.len()];
        for group in self.slots.iter().filter_map(|route| route.group) {
            owns[usize::from(group)] = true;
        }
        (0..)
            .zip(owns)
            .filter_map(|(group, owns)| owns.then_some(group))
    }

    /// What happens with requests for a slot.
    #[inline]
    pub fn route(&self, slot: Slot) -> SlotRoute {
        self.slots[slot.index()]
    }

    /// The owner of a slot. `None`: nobody.
    pub fn owner(&self, slot: Slot) -> Option<&Group> {
        self.route(slot)
            .group
            .map(|index| &self.groups[usize::from(index)])
    }

    /// What will happen next with a slot, by the ids of groups.
    pub fn state(&self, slot: Slot) -> SlotState<&GroupId> {
        let id = |group: u16| Ok::<_, Infallible>(&self.groups[usize::from(group)].id);
        let Ok(state) = self.route(slot).state.map(id);
        state
    }

    /// What is the same for two topologies only if the same servers own the same slots (but for one chance
    /// in four billion), and is the same in every process: by it a cursor over all groups says what it is
    /// a cursor of.
    pub fn fingerprint(&self) -> u32 {
        let mut hash = crc32fast::Hasher::new();
        for group in &self.groups {
            for text in [group.id.as_str(), group.primary.as_str()] {
                hash.update(text.as_bytes());
                hash.update(b"\n");
            }
        }
        for route in self.slots.iter() {
            hash.update(&route.group.map_or(u16::MAX, |group| group).to_le_bytes());
        }
        hash.finalize()
    }

    /// What is the same for a group, by its index, in two topologies only if the same server is its primary; with
    /// the same chance, in every process.
    pub fn fingerprint_of(&self, group: u16) -> u32 {
        let group = &self.groups[usize::from(group)];
        let text = format!("{}\n{}", group.id, group.primary);
        crc32fast::hash(text.as_bytes())
    }

    /// The whole slot map, as ranges.
    pub fn assignments(&self) -> Vec<v1::SlotAssignment> {
        let entries = Slot::all().map(|slot| (slot, self.entry(slot)));
        slot::ranges(entries)
            .into_iter()
            .map(|(range, entry)| assignment(range, entry))
            .collect()
    }

    /// What turns `self` into `next`.
    pub fn diff(&self, next: &Self) -> v1::TopologyDelta {
        let base: BTreeMap<&GroupId, &Group> = self.groups.iter().map(|g| (&g.id, g)).collect();
        let changed = Slot::all()
            .filter(|&slot| self.entry(slot) != next.entry(slot))
            .map(|slot| (slot, next.entry(slot)));
        v1::TopologyDelta {
            base_version: Some(self.version.into()),
            version: Some(next.version.into()),
            groups: next
                .groups
                .iter()
                .filter(|group| base.get(&group.id) != Some(group))
                .map(v1::TopologyGroup::from)
                .collect(),
            removed_group_ids: self
                .groups
                .iter()
                .filter(|group| {
                    next.groups
                        .binary_search_by(|g| g.id.cmp(&group.id))
                        .is_err()
                })
                .map(|group| group.id.to_string())
                .collect(),
            slots: slot::ranges(changed)
                .into_iter()
                .map(|(range, entry)| assignment(range, entry))
                .collect(),
        }
    }

    /// The topology a delta leads to, checked as a whole. `self` stays as it is.
    pub fn apply(&self, delta: &v1::TopologyDelta) -> Result<Self, InvalidTopology> {
        let base = version(delta.base_version.as_ref(), "base_version")?;
        if base != self.version {
            return Err(InvalidTopology::BaseMismatch {
                base,
                have: self.version,
            });
        }
        let mut groups: BTreeMap<GroupId, Group> = self
            .groups
            .iter()
            .map(|g| (g.id.clone(), g.clone()))
            .collect();
        for id in &delta.removed_group_ids {
            groups.remove(&GroupId::new(id)?);
        }
        for group in &delta.groups {
            let group = Group::try_from(group)?;
            groups.insert(group.id.clone(), group);
        }
        let changed = SlotTable::read(&delta.slots)?;
        Self::new(
            self.cluster_id.clone(),
            version(delta.version.as_ref(), "version")?,
            groups.into_values(),
            |slot| match changed.get(slot) {
                Some(entry) => entry.clone(),
                None => (self.owner(slot).map(|g| g.id.clone()), {
                    let id = |id: &GroupId| Ok::<_, Infallible>(id.clone());
                    let Ok(state) = self.state(slot).map(id);
                    state
                }),
            },
        )
    }

    fn entry(&self, slot: Slot) -> (Option<&GroupId>, SlotState<&GroupId>) {
        (self.owner(slot).map(|g| &g.id), self.state(slot))
    }
}

/// Slots and what is said of them; not every slot need be there, none is there twice.
pub struct SlotTable(Vec<Option<(Option<GroupId>, SlotState)>>);

impl SlotTable {
    /// Reads ranges from the wire.
    pub fn read(assignments: &[v1::SlotAssignment]) -> Result<Self, InvalidTopology> {
        let mut table = vec![None; SLOT_COUNT];
        for a in assignments {
            let out_of_range = || InvalidTopology::Range {
                first: a.first,
                last: a.last,
            };
            let first = Slot::new(a.first).ok_or_else(out_of_range)?;
            let last = Slot::new(a.last).ok_or_else(out_of_range)?;
            let range = SlotRange::new(first, last).ok_or_else(out_of_range)?;
            let state = state(first, a)?;
            let entry = match a.group_id.as_str() {
                "" => (None, SlotState::Serving),
                id => (Some(GroupId::new(id)?), state),
            };
            for slot in range.slots() {
                if table[slot.index()].replace(entry.clone()).is_some() {
                    return Err(InvalidTopology::DuplicateSlot(slot));
                }
            }
        }
        Ok(Self(table))
    }

    /// What is said of a slot. `None`: nothing.
    pub fn get(&self, slot: Slot) -> Option<&(Option<GroupId>, SlotState)> {
        self.0[slot.index()].as_ref()
    }
}

/// The state of a range from the wire; `slot` is its first.
fn state(slot: Slot, a: &v1::SlotAssignment) -> Result<SlotState, InvalidTopology> {
    use v1::slot_assignment::State;

    let target = match a.target_group_id.as_str() {
        "" => None,
        id => Some(GroupId::new(id)?),
    };
    match (State::try_from(a.state), target) {
        (Ok(State::Serving), None) => Ok(SlotState::Serving),
        (Ok(State::Copying), Some(target)) => Ok(SlotState::Copying { target }),
        (Ok(State::Held), target) => Ok(SlotState::Held { target }),
        (Ok(state @ (State::Serving | State::Copying)), target) => Err(InvalidTopology::Target {
            slot,
            state: state.as_str_name(),
            target: target.map(String::from).unwrap_or_default(),
        }),
        (Ok(State::Unspecified) | Err(_), _) => Err(InvalidTopology::UnknownState {
            slot,
            state: a.state,
        }),
    }
}

fn version(version: Option<&v1::Version>, field: &'static str) -> Result<Version, InvalidTopology> {
    version
        .map(Version::from)
        .ok_or(InvalidTopology::Missing(field))
}

/// One range, as it goes over the wire.
pub fn assignment(
    range: SlotRange,
    (group, state): (Option<&GroupId>, SlotState<&GroupId>),
) -> v1::SlotAssignment {
    let text = |id: Option<&GroupId>| id.map(GroupId::to_string).unwrap_or_default();
    v1::SlotAssignment {
        first: range.first().number(),
        last: range.last().number(),
        group_id: text(group),
        target_group_id: text(state.target().copied()),
        state: match state {
            SlotState::Serving => v1::slot_assignment::State::Serving,
            SlotState::Copying { .. } => v1::slot_assignment::State::Copying,
            SlotState::Held { .. } => v1::slot_assignment::State::Held,
        }
        .into(),
    }
}

impl From<&v1::Version> for Version {
    fn from(v: &v1::Version) -> Self {
        Self {
            leader_term: v.leader_term,
            epoch: v.epoch,
        }
    }
}

impl From<Version> for v1::Version {
    fn from(v: Version) -> Self {
        Self {
            leader_term: v.leader_term,
            epoch: v.epoch,
        }
    }
}

impl From<&Group> for v1::TopologyGroup {
    fn from(group: &Group) -> Self {
        Self {
            id: group.id.to_string(),
            primary: group.primary.to_string(),
            replicas: group.replicas.iter().map(ServerAddr::to_string).collect(),
        }
    }
}

impl TryFrom<&v1::TopologyGroup> for Group {
    type Error = InvalidId;

    fn try_from(group: &v1::TopologyGroup) -> Result<Self, InvalidId> {
        Ok(Self {
            id: GroupId::new(&group.id)?,
            primary: ServerAddr::new(&group.primary)?,
            replicas: group
                .replicas
                .iter()
                .map(ServerAddr::new)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl From<&Topology> for v1::Topology {
    fn from(topology: &Topology) -> Self {
        Self {
            cluster_id: topology.cluster_id.to_string(),
            version: Some(topology.version.into()),
            groups: topology
                .groups
                .iter()
                .map(v1::TopologyGroup::from)
                .collect(),
            slots: topology.assignments(),
        }
    }
}

impl TryFrom<&v1::Topology> for Topology {
    type Error = InvalidTopology;

    fn try_from(wire: &v1::Topology) -> Result<Self, InvalidTopology> {
        let slots = SlotTable::read(&wire.slots)?;
        if let Some(slot) = Slot::all().find(|&slot| slots.get(slot).is_none()) {
            return Err(InvalidTopology::UncoveredSlot(slot));
        }
        let groups: Vec<Group> = wire
            .groups
            .iter()
            .map(Group::try_from)
            .collect::<Result<_, _>>()?;
        Self::new(
            ClusterId::new(&wire.cluster_id)?,
            version(wire.version.as_ref(), "version")?,
            groups,
            |slot| {
                slots
                    .get(slot)
                    .cloned()
                    .unwrap_or((None, SlotState::Serving))
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(id: &str, port: u16) -> Group {
        Group {
            id: GroupId::new(id).unwrap(),
            primary: ServerAddr::new(format!("127.0.0.1:{port}")).unwrap(),
            replicas: vec![ServerAddr::new(format!("127.0.0.1:{}", port + 1)).unwrap()],
        }
    }

    /// Who owns a slot, as `g1`; `g1!` if it is held, `g1!g2` for g2, and `g1>g2` if it is being copied.
    fn topology(
        epoch: u64,
        groups: &[(&str, u16)],
        owner: impl Fn(u32) -> &'static str,
    ) -> Topology {
        Topology::new(
            ClusterId::new("c").unwrap(),
            Version {
                leader_term: 1,
                epoch,
            },
            groups.iter().map(|(id, port)| group(id, *port)),
            |slot| {
                let id = |text: &str| {
                    Some(text)
                        .filter(|t| !t.is_empty())
                        .map(|t| GroupId::new(t).unwrap())
                };
                let text = owner(slot.number());
                if let Some((owner, target)) = text.split_once('!') {
                    (id(owner), SlotState::Held { target: id(target) })
                } else if let Some((owner, target)) = text.split_once('>') {
                    let target = id(target).unwrap();
                    (id(owner), SlotState::Copying { target })
                } else {
                    (id(text), SlotState::Serving)
                }
            },
        )
        .unwrap()
    }

    #[test]
    fn wire_round_trip() {
        let t = topology(3, &[("g1", 7001), ("g2", 7003)], |s| match s {
            0..=99 => "",
            100..=599 => "g1",
            600..=601 => "g2!",
            602 => "g2!g1",
            603 => "g2>g1",
            _ => "g2",
        });
        let wire = v1::Topology::from(&t);
        assert_eq!(wire.slots.len(), 6);
        assert_eq!(Topology::try_from(&wire).unwrap(), t);
    }

    #[test]
    fn diff_then_apply_gives_the_next() {
        let topologies = [
            topology(1, &[], |_| ""),
            topology(2, &[("g1", 7001)], |_| ""),
            topology(3, &[("g1", 7001)], |_| "g1"),
            topology(4, &[("g0", 7005), ("g1", 7001)], |s| {
                if s < 512 { "g0" } else { "g1!" }
            }),
            topology(5, &[("g0", 7007), ("g2", 7001)], |s| {
                if s < 512 { "g0" } else { "g2" }
            }),
            topology(6, &[("g0", 7007), ("g2", 7001)], |s| {
                if s < 512 { "g0" } else { "g2" }
            }),
            topology(7, &[("g0", 7007), ("g2", 7001)], |s| match s {
                0..=9 => "g0>g2",
                10..=19 => "g0!g2",
                _ => "g2",
            }),
        ];
        for base in &topologies {
            for next in &topologies {
                assert_eq!(&base.apply(&base.diff(next)).unwrap(), next);
            }
        }
        let quiet = topologies[4].diff(&topologies[5]);
        assert!(quiet.groups.is_empty() && quiet.slots.is_empty());
    }

    #[test]
    fn a_fingerprint_tells_who_owns_what() {
        let halves = |slot| if slot < 512 { "g1" } else { "g2" };
        let groups = [("g1", 7001), ("g2", 7003)];
        let fingerprint = topology(1, &groups, halves).fingerprint();
        assert_eq!(topology(9, &groups, halves).fingerprint(), fingerprint);
        let held = topology(2, &groups, |s| if s < 512 { "g1!" } else { "g2" });
        assert_eq!(held.fingerprint(), fingerprint, "nothing has moved");
        for other in [
            topology(1, &groups, |s| if s < 511 { "g1" } else { "g2" }),
            topology(1, &groups, |s| if s < 512 { "g2" } else { "g1" }),
            topology(1, &groups, |s| if s < 512 { "" } else { "g2" }),
            topology(1, &[("g1", 7001), ("g2", 7005)], halves),
            topology(1, &[("g0", 7005), ("g1", 7001), ("g2", 7003)], halves),
        ] {
            assert_ne!(other.fingerprint(), fingerprint);
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        fn check(spoil: impl FnOnce(&mut v1::Topology), error: &str) {
            let mut wire = v1::Topology::from(&topology(1, &[("g1", 7001)], |_| "g1"));
            spoil(&mut wire);
            let got = Topology::try_from(&wire).unwrap_err().to_string();
            assert!(got.contains(error), "expected `{error}`, got `{got}`");
        }
        check(|t| t.version = None, "version is missing");
        check(|t| t.version = Some(v1::Version::default()), "start at 1");
        check(|t| t.cluster_id = String::new(), "invalid cluster id");
        check(|t| t.groups.push(t.groups[0].clone()), "twice");
        check(
            |t| t.groups[0].replicas = vec![t.groups[0].primary.clone()],
            "twice",
        );
        check(
            |t| t.groups[0].primary = "nowhere".into(),
            "invalid server address",
        );
        check(|t| t.groups.clear(), "which is unknown");
        check(|t| t.slots[0].first = 1, "slot 0 is not assigned");
        check(|t| t.slots[0].last = 1024, "no range");
        check(|t| (t.slots[0].first, t.slots[0].last) = (9, 8), "no range");
        check(|t| t.slots.push(t.slots[0].clone()), "assigned twice");
        check(|t| t.slots[0].state = 0, "unknown state 0");
        check(|t| t.slots[0].state = 77, "unknown state 77");
        check(|t| t.slots[0].state = 3, "COPYING, and its target is ``");
        check(
            |t| t.slots[0].target_group_id = "g1".into(),
            "SERVING, and its target is `g1`",
        );
        check(
            |t| (t.slots[0].state, t.slots[0].target_group_id) = (2, "g1".into()),
            "slot 0 is to move to group g1, which owns it",
        );
        check(
            |t| (t.slots[0].state, t.slots[0].target_group_id) = (3, "g9".into()),
            "g9, which is unknown",
        );
        check(
            |t| t.slots[0].group_id = "g9".into(),
            "g9, which is unknown",
        );
    }

    #[test]
    fn a_delta_for_another_base_is_refused() {
        let a = topology(1, &[], |_| "");
        let b = topology(2, &[("g1", 7001)], |_| "");
        let delta = a.diff(&b);
        assert!(matches!(
            b.apply(&delta),
            Err(InvalidTopology::BaseMismatch { .. })
        ));
    }
}
