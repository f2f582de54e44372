//! What the store keeps: the records of one cluster.
//!
//! Pure data with its encoding (JSON, readable in an incident) and its own invariants. Nothing here
//! decides whether a change is allowed (`change.rs`), reads a clock or does I/O.
//!
//! Invariant: a group has exactly one primary, the first of its servers; the others follow sorted by
//! address.

use std::fmt;

use proto::{
    ClusterId, GroupId, ProxyId, SLOT_COUNT, ServerAddr, Slot, SlotRange, SlotState, slot,
    topology::assignment, v1,
};
use serde::{Deserialize, Serialize};

/// The format of the records. A store of another format is refused.
pub const FORMAT: u32 = 1;

/// How many request ids are remembered.
pub const REQUESTS_KEPT: usize = 1000;

/// Which cluster a store is of. Written once, when the store is created.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cluster {
    /// The format of all records.
    pub format: u32,
    /// Chosen at random.
    pub id: ClusterId,
    /// Given by the operator.
    pub name: String,
}

/// How far the store is. Written with every commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Head {
    /// +1 with every commit; 0 only before the first.
    pub revision: u64,
    /// +1 with every election; 0 only before the first.
    pub leader_term: u64,
}

/// What a server is in its group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Takes the writes.
    Primary,
    /// Follows the primary.
    Replica,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
        })
    }
}

/// One Redis or Valkey process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Server {
    /// Where it is; its identity.
    pub address: ServerAddr,
    /// As the cluster has it, whatever the server itself says.
    pub role: Role,
    /// The failure zone. Empty: not said.
    pub zone: String,
    /// The id its process had when it was admitted: tells one process under two addresses.
    pub run_id: String,
}

/// One primary and its replicas.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Group {
    /// Its id.
    pub id: GroupId,
    /// The revision that last changed the group or one of its servers.
    pub revision: u64,
    /// For people.
    pub description: String,
    /// The primary first, then the replicas by address.
    pub servers: Vec<Server>,
}

impl Group {
    /// Puts the servers in order. The caller sees to it that exactly one is a primary.
    pub fn new(id: GroupId, description: String, mut servers: Vec<Server>) -> Self {
        servers.sort_by(|a, b| (a.role, &a.address).cmp(&(b.role, &b.address)));
        Self {
            id,
            revision: 0,
            description,
            servers,
        }
    }

    /// Its primary.
    pub fn primary(&self) -> &Server {
        self.servers
            .first()
            .expect("a group is created with a primary, and a primary is never removed")
    }

    /// Its server at this address.
    pub fn server(&self, address: &ServerAddr) -> Option<&Server> {
        self.servers.iter().find(|s| &s.address == address)
    }

    /// What is wrong with a record that was read. `None`: nothing.
    pub fn fault(&self) -> Option<&'static str> {
        let sorted = self
            .servers
            .is_sorted_by(|a, b| (a.role, &a.address) < (b.role, &b.address));
        let primaries = self.servers.iter().filter(|s| s.role == Role::Primary);
        match (primaries.count(), sorted) {
            (1, true) => None,
            (1, false) => Some("its servers are out of order"),
            _ => Some("it must have exactly one primary"),
        }
    }
}

/// Which group owns which slot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "SlotRecord", into = "SlotRecord")]
pub struct SlotMap {
    /// The revision that last changed it; 0 while nothing was ever assigned.
    pub revision: u64,
    owners: Vec<Option<GroupId>>,
}

impl Default for SlotMap {
    fn default() -> Self {
        Self {
            revision: 0,
            owners: vec![None; SLOT_COUNT],
        }
    }
}

impl SlotMap {
    /// Who owns a slot. `None`: nobody.
    pub fn owner(&self, slot: Slot) -> Option<&GroupId> {
        self.owners[slot.index()].as_ref()
    }

    /// Gives a slot to a group.
    pub fn give(&mut self, slot: Slot, group: GroupId) {
        self.owners[slot.index()] = Some(group);
    }

    /// How many slots a group owns.
    pub fn count(&self, group: &GroupId) -> usize {
        self.owners
            .iter()
            .filter(|owner| owner.as_ref() == Some(group))
            .count()
    }

    /// The owners, as ranges.
    pub fn ranges(&self) -> Vec<(SlotRange, Option<&GroupId>)> {
        slot::ranges(Slot::all().map(|slot| (slot, self.owner(slot))))
    }

    /// The same as they go over the wire.
    pub fn assignments(&self) -> Vec<v1::SlotAssignment> {
        self.ranges()
            .into_iter()
            .map(|(range, owner)| assignment(range, (owner, SlotState::Serving)))
            .collect()
    }
}

/// The slot map as it is written: the owned ranges only.
#[derive(Serialize, Deserialize)]
struct SlotRecord {
    revision: u64,
    ranges: Vec<OwnedRange>,
}

#[derive(Serialize, Deserialize)]
struct OwnedRange {
    slots: String,
    group: GroupId,
}

impl From<SlotMap> for SlotRecord {
    fn from(map: SlotMap) -> Self {
        let owned = |(range, owner): (SlotRange, Option<&GroupId>)| {
            Some(OwnedRange {
                slots: range.to_string(),
                group: owner?.clone(),
            })
        };
        Self {
            revision: map.revision,
            ranges: map.ranges().into_iter().filter_map(owned).collect(),
        }
    }
}

impl TryFrom<SlotRecord> for SlotMap {
    type Error = String;

    fn try_from(record: SlotRecord) -> Result<Self, String> {
        let mut map = Self {
            revision: record.revision,
            ..Self::default()
        };
        for OwnedRange { slots, group } in record.ranges {
            let range: SlotRange = slots.parse().map_err(|e| format!("{e}"))?;
            for slot in range.slots() {
                if map.owner(slot).is_some() {
                    return Err(format!("slot {slot} has two owners"));
                }
                map.give(slot, group.clone());
            }
        }
        Ok(map)
    }
}

/// What a proxy said of itself when it registered last.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Registration {
    /// Its id.
    pub id: ProxyId,
    /// The revision that last changed the registration.
    pub revision: u64,
    /// The process that registered last.
    pub incarnation: String,
    /// Where clients reach it.
    pub address: String,
    /// Where its admin HTTP listens. Empty: nowhere.
    pub admin_address: String,
    /// The failure zone it runs in. Empty: not said.
    pub zone: String,
    /// The version of its software.
    pub build_version: String,
}

/// A mutation that carried a request id.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the caller.
    pub id: String,
    /// CRC-32 of the method and the request: tells a repetition from a mistake.
    pub content: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slot_map_survives_its_encoding() {
        let mut map = SlotMap {
            revision: 7,
            ..SlotMap::default()
        };
        for slot in Slot::all().skip(3).take(500) {
            map.give(slot, GroupId::new("g1").unwrap());
        }
        let json = serde_json::to_string(&map).unwrap();
        assert_eq!(
            json,
            r#"{"revision":7,"ranges":[{"slots":"3-502","group":"g1"}]}"#
        );
        assert_eq!(serde_json::from_str::<SlotMap>(&json).unwrap(), map);
    }

    #[test]
    fn a_damaged_slot_map_is_refused() {
        fn check(ranges: &str, error: &str) {
            let json = format!(r#"{{"revision":1,"ranges":[{ranges}]}}"#);
            let got = serde_json::from_str::<SlotMap>(&json)
                .unwrap_err()
                .to_string();
            assert!(got.contains(error), "expected `{error}`, got `{got}`");
        }
        check(r#"{"slots":"5-4","group":"g1"}"#, "is empty");
        check(r#"{"slots":"0","group":"G"}"#, "invalid group id");
        check(
            r#"{"slots":"0-9","group":"a"},{"slots":"9","group":"b"}"#,
            "slot 9 has two owners",
        );
    }
}
