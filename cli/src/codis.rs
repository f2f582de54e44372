//! What a Codis 3 keeps of one product, and the plan by which a Sluice cluster takes it over.
//!
//! Codis has the same 1024 slots and the same hash, so that a slot map is all there is to copy: no key
//! moves. The records come as `codis-admin --config-dump` prints them ([`Product::from_dump`]), or
//! from its ZooKeeper ([`zookeeper`]), node by node ([`Product::from_nodes`]). [`plan`] decides; it
//! asks nobody and changes nothing.
//!
//! Invariant: every slot in a plan goes to the group whose servers have all of its keys.

use std::collections::{BTreeMap, HashMap, HashSet};

use proto::{GroupId, SLOT_COUNT, ServerAddr, Slot, SlotRange, slot};
use serde::{Deserialize, Serialize, Serializer};

pub(crate) mod zookeeper;

/// The records of one product, as Codis wrote them.
#[derive(Default)]
pub(crate) struct Product {
    groups: Vec<GroupRecord>,
    slots: Vec<SlotRecord>,
    proxies: Vec<ProxyRecord>,
    sentinels: Vec<String>,
    /// Where the dashboard that holds the product's lock can be reached. `None`: there is no lock, or
    /// the dump does not have it.
    dashboard: Option<String>,
}

/// A file of `codis-admin --config-dump`. Fields that are not taken over are not read.
#[derive(Deserialize)]
struct Dump {
    slots: Option<Vec<SlotRecord>>,
    group: Option<Vec<GroupRecord>>,
    proxy: Option<Vec<ProxyRecord>>,
    sentinel: Option<SentinelRecord>,
}

#[derive(Deserialize)]
struct SlotRecord {
    id: u32,
    /// 0: nobody's.
    #[serde(default)]
    group_id: u32,
    #[serde(default)]
    action: Action,
}

/// A move of a slot.
#[derive(Default, Deserialize)]
struct Action {
    #[serde(default)]
    state: String,
    #[serde(default)]
    target_id: u32,
}

#[derive(Deserialize)]
struct GroupRecord {
    id: u32,
    /// The first is the primary.
    servers: Option<Vec<ServerRecord>>,
    #[serde(default)]
    promoting: Promoting,
}

#[derive(Default, Deserialize)]
struct Promoting {
    #[serde(default)]
    state: String,
}

#[derive(Deserialize)]
struct ServerRecord {
    server: String,
    #[serde(default)]
    datacenter: String,
}

#[derive(Deserialize)]
struct ProxyRecord {
    #[serde(default)]
    proxy_addr: String,
}

#[derive(Deserialize)]
struct SentinelRecord {
    servers: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct DashboardRecord {
    #[serde(default)]
    admin_addr: String,
}

/// What to do about slots that Codis is moving.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum InFlight {
    /// Take nothing over while there are any
    Refuse,
    /// Leave where it is what has not begun to move, take as moved what has arrived; slots whose keys
    /// may be in both groups are refused all the same
    Resolve,
}

/// What is taken over.
#[derive(PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Plan {
    /// The groups, by id.
    pub groups: Vec<PlannedGroup>,
    /// Who gets which slots: ranges such as `0-511`.
    pub slots: Vec<PlannedSlots>,
    /// What Sluice does not take over, and what to do about it: sentences.
    pub left: Vec<String>,
}

/// A group to be created.
#[derive(PartialEq, Eq, Debug, Serialize)]
pub(crate) struct PlannedGroup {
    /// `g` and the number it has in Codis.
    pub id: GroupId,
    /// The primary first.
    pub servers: Vec<PlannedServer>,
}

/// One of its servers.
#[derive(PartialEq, Eq, Debug, Serialize)]
pub(crate) struct PlannedServer {
    pub address: ServerAddr,
    /// Codis's datacenter. Empty: not said.
    pub zone: String,
}

/// A range of slots to be assigned.
#[derive(PartialEq, Eq, Debug, Serialize)]
pub(crate) struct PlannedSlots {
    #[serde(serialize_with = "as_text")]
    pub slots: SlotRange,
    pub group: GroupId,
}

fn as_text<S: Serializer>(range: &SlotRange, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(range)
}

/// Why records cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FormatError {
    #[error("it is not what `codis-admin --config-dump` of Codis 3 prints: {0}")]
    Dump(String),
    #[error("{path} is not what Codis 3 writes there: {fault}")]
    Node { path: String, fault: String },
}

impl Product {
    /// Reads a dump.
    pub(crate) fn from_dump(text: &str) -> Result<Self, FormatError> {
        let dump: Dump =
            serde_json::from_str(text).map_err(|e| FormatError::Dump(e.to_string()))?;
        let (Some(slots), Some(groups)) = (dump.slots, dump.group) else {
            let missing = "it has no `slots` or no `group`".to_owned();
            return Err(FormatError::Dump(missing));
        };
        Ok(Self {
            groups,
            slots,
            proxies: dump.proxy.unwrap_or_default(),
            sentinels: dump.sentinel.and_then(|s| s.servers).unwrap_or_default(),
            dashboard: None,
        })
    }

    /// Reads the nodes below the product's own, by their paths from there: `slots/slot-0000` …
    pub(crate) fn from_nodes(nodes: &BTreeMap<String, Vec<u8>>) -> Result<Self, FormatError> {
        fn read<T: for<'a> Deserialize<'a>>(path: &str, data: &[u8]) -> Result<T, FormatError> {
            serde_json::from_slice(data).map_err(|e| FormatError::Node {
                path: path.to_owned(),
                fault: e.to_string(),
            })
        }
        let mut product = Self::default();
        for (path, data) in nodes {
            match path.split_once('/') {
                Some(("slots", _)) => product.slots.push(read(path, data)?),
                Some(("group", _)) => product.groups.push(read(path, data)?),
                Some(("proxy", _)) => product.proxies.push(read(path, data)?),
                None if path == "sentinel" => {
                    let sentinel: SentinelRecord = read(path, data)?;
                    product.sentinels = sentinel.servers.unwrap_or_default();
                }
                None if path == "topom" => {
                    let dashboard: DashboardRecord = read(path, data)?;
                    product.dashboard = Some(dashboard.admin_addr);
                }
                _ => {}
            }
        }
        Ok(product)
    }
}

/// Decides what is taken over, `without` these servers; or says all that stands against it.
pub(crate) fn plan(
    product: &Product,
    in_flight: InFlight,
    without: &[ServerAddr],
) -> Result<Plan, Vec<String>> {
    let mut against = Vec::new();
    let mut left = Vec::new();
    let groups = plan_groups(product, without, &mut against, &mut left);
    let owners = plan_slots(product, in_flight, &groups, &mut against, &mut left);
    if !against.is_empty() {
        return Err(against);
    }
    for address in without {
        left.push(format!("server {address}, as asked for"));
    }
    for proxy in &product.proxies {
        let address = &proxy.proxy_addr;
        left.push(format!("proxy {address}: start a sluice-proxy instead"));
    }
    if !product.sentinels.is_empty() {
        let sentinels = product.sentinels.join(", ");
        left.push(format!("the Sentinels at {sentinels}, which run on"));
    }
    if let Some(dashboard) = &product.dashboard {
        left.push(format!(
            "the dashboard at {dashboard}, which holds the product's lock: stop it before clients use \
             Sluice, for what it changes from now on is not seen here"
        ));
    }
    left.push("passwords, which Codis does not keep here: give the controller its own".to_owned());
    let of_slot = |slot: Slot| owners[slot.index()].as_ref();
    let ranges = slot::ranges(Slot::all().map(|slot| (slot, of_slot(slot))));
    let slots = ranges.into_iter().filter_map(|(slots, group)| {
        Some(PlannedSlots {
            slots,
            group: group?.clone(),
        })
    });
    Ok(Plan {
        slots: slots.collect(),
        groups: groups.into_values().collect(),
        left,
    })
}

/// By their numbers in Codis.
fn plan_groups(
    product: &Product,
    without: &[ServerAddr],
    against: &mut Vec<String>,
    left: &mut Vec<String>,
) -> BTreeMap<u32, PlannedGroup> {
    let mut groups = BTreeMap::new();
    let mut seen = HashMap::new();
    for record in &product.groups {
        let number = record.id;
        if !record.promoting.state.is_empty() {
            against.push(format!(
                "group {number} is in the middle of a promotion: let Codis finish it"
            ));
        }
        let mut servers = Vec::new();
        for (index, server) in record.servers.iter().flatten().enumerate() {
            let address = match ServerAddr::new(&server.server) {
                Ok(address) => address,
                Err(e) => {
                    against.push(format!("group {number}: {e}"));
                    continue;
                }
            };
            if let Some(other) = seen.insert(address.clone(), number) {
                against.push(format!(
                    "server {address} is in group {other} and in group {number}"
                ));
            } else if !without.contains(&address) {
                servers.push(PlannedServer {
                    address,
                    zone: server.datacenter.clone(),
                });
            } else if index == 0 {
                against.push(format!(
                    "server {address} is the primary of group {number}, which cannot be without it"
                ));
            }
        }
        if record.servers.iter().flatten().next().is_none() {
            left.push(format!("group {number}, which has no servers"));
            continue;
        }
        let id = GroupId::new(format!("g{number}")).expect("a letter and digits are an id");
        if groups
            .insert(number, PlannedGroup { id, servers })
            .is_some()
        {
            against.push(format!("there are two groups {number}"));
        }
    }
    for address in without.iter().filter(|&a| !seen.contains_key(a)) {
        against.push(format!("there is no server {address} to leave out"));
    }
    groups
}

/// Who gets each slot.
fn plan_slots(
    product: &Product,
    in_flight: InFlight,
    groups: &BTreeMap<u32, PlannedGroup>,
    against: &mut Vec<String>,
    left: &mut Vec<String>,
) -> Vec<Option<GroupId>> {
    let mut owners = vec![None; SLOT_COUNT];
    let mut seen = HashSet::new();
    for record in &product.slots {
        let number = record.id;
        let Some(slot) = Slot::new(number) else {
            against.push(format!(
                "there is a slot {number}, beyond the last of {SLOT_COUNT}"
            ));
            continue;
        };
        if !seen.insert(number) {
            against.push(format!("there are two records of slot {number}"));
        }
        let group = match owner(record, in_flight) {
            Ok(0) => continue,
            Ok(group) => group,
            Err(why) => {
                against.push(why);
                continue;
            }
        };
        match groups.get(&group) {
            Some(group) => owners[slot.index()] = Some(group.id.clone()),
            None => against.push(format!(
                "slot {number} belongs to group {group}, which has no servers"
            )),
        }
    }
    let free = slot::ranges(Slot::all().map(|slot| (slot, owners[slot.index()].is_none())));
    let free = free.into_iter().filter(|(_, free)| *free);
    let free: Vec<String> = free.map(|(range, _)| range.to_string()).collect();
    if !free.is_empty() && against.is_empty() {
        left.push(format!(
            "slots {}, which nobody owns in Codis: `sluice slot assign` gives them to a group",
            free.join(",")
        ));
    }
    owners
}

/// The number of the group that has all keys of a slot, 0 if nobody owns it. Codis's states of a move,
/// in their order: pending, preparing (no key has moved); prepared, migrating (proxies may move keys
/// already); finished (all have moved).
fn owner(slot: &SlotRecord, in_flight: InFlight) -> Result<u32, String> {
    let Action { state, target_id } = &slot.action;
    let (number, group) = (slot.id, slot.group_id);
    let resolved = match state.as_str() {
        "" => return Ok(group),
        "pending" | "preparing" => Some(group),
        "finished" => Some(*target_id),
        _ => None,
    };
    match (resolved, in_flight) {
        (Some(group), InFlight::Resolve) => Ok(group),
        (Some(group), InFlight::Refuse) => Err(format!(
            "slot {number} is to move from group {} to group {target_id} ({state}): let Codis finish it or \
             take it back, or use `--in-flight resolve`, which gives it to group {group}",
            slot.group_id
        )),
        (None, _) => Err(format!(
            "slot {number} is moving from group {group} to group {target_id} ({state}) and may have keys \
             in both: let Codis finish it"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = include_str!("../../tests/fixtures/codis-3.2/config-dump.json");

    fn product(slots: &str, groups: &str) -> Product {
        Product::from_dump(&format!(r#"{{"slots":[{slots}],"group":[{groups}]}}"#)).unwrap()
    }

    fn check(slots: &str, groups: &str, in_flight: InFlight, expected: Result<&str, &str>) {
        let got = plan(&product(slots, groups), in_flight, &[]);
        match (got, expected) {
            (Ok(plan), Ok(expected)) => {
                let text = plan
                    .slots
                    .iter()
                    .map(|s| format!("{}={}", s.slots, s.group));
                assert_eq!(text.collect::<Vec<_>>().join(" "), expected);
            }
            (Err(against), Err(expected)) => {
                let text = against.join("; ");
                assert!(
                    text.contains(expected),
                    "expected `{expected}`, got `{text}`"
                );
            }
            (got, _) => panic!("expected {expected:?}, got {got:?}"),
        }
    }

    const G1: &str = r#"{"id":1,"servers":[{"server":"a:1"},{"server":"a:2"}]}"#;
    const G2: &str = r#"{"id":2,"servers":[{"server":"b:1"}]}"#;

    /// The file was written by Codis 3.2; its README says what is in there.
    #[test]
    fn a_real_dump() {
        let product = Product::from_dump(DUMP).unwrap();
        let against = plan(&product, InFlight::Refuse, &[]).unwrap_err();
        assert_eq!(against.len(), 1, "{against:?}");
        assert!(against[0].contains("slot 600 is to move from group 2 to group 1 (pending)"));
        let plan = plan(&product, InFlight::Resolve, &[]).unwrap();
        insta::assert_snapshot!(serde_json::to_string_pretty(&plan).unwrap());
    }

    /// The same product, as its nodes in ZooKeeper.
    #[test]
    fn nodes_say_the_same_as_a_dump() {
        #[derive(Deserialize)]
        struct Node {
            data: String,
        }
        let all: BTreeMap<String, Node> =
            serde_json::from_str(include_str!("../../tests/fixtures/codis-3.2/znodes.json"))
                .unwrap();
        let nodes = all.into_iter().filter_map(|(path, node)| {
            let path = path.strip_prefix("/codis3/codis-demo/")?.to_owned();
            Some((path, node.data.into_bytes()))
        });
        let nodes = nodes.filter(|(_, data)| !data.is_empty()).collect();
        let of_nodes = plan(
            &Product::from_nodes(&nodes).unwrap(),
            InFlight::Resolve,
            &[],
        )
        .unwrap();
        let of_dump = plan(&Product::from_dump(DUMP).unwrap(), InFlight::Resolve, &[]).unwrap();
        assert_eq!(of_nodes.groups, of_dump.groups);
        assert_eq!(of_nodes.slots, of_dump.slots);
        let dashboard = |left: &[String]| left.iter().any(|l| l.contains("the dashboard at"));
        assert!(dashboard(&of_nodes.left) && !dashboard(&of_dump.left));
    }

    #[test]
    fn a_slot_goes_where_all_of_its_keys_are() {
        let both = &format!("{G1},{G2}");
        let moving = |state: &str| {
            format!(r#"{{"id":7,"group_id":1,"action":{{"state":"{state}","target_id":2}}}}"#)
        };
        let plain =
            r#"{"id":0,"group_id":1,"action":{}},{"id":1,"group_id":1},{"id":2,"group_id":0}"#;
        check(plain, both, InFlight::Refuse, Ok("0-1=g1"));
        for state in ["pending", "preparing"] {
            let refused = Err("let Codis finish it or take it back");
            check(&moving(state), both, InFlight::Refuse, refused);
            check(&moving(state), both, InFlight::Resolve, Ok("7=g1"));
        }
        check(&moving("finished"), both, InFlight::Resolve, Ok("7=g2"));
        for state in ["prepared", "migrating", "unheard-of"] {
            check(&moving(state), both, InFlight::Resolve, Err("keys in both"));
        }
    }

    #[test]
    fn what_is_not_sound_is_refused() {
        let slot = r#"{"id":0,"group_id":1}"#;
        let refuse = InFlight::Refuse;
        check(
            slot,
            G2,
            refuse,
            Err("slot 0 belongs to group 1, which has no servers"),
        );
        check(
            &format!("{slot},{slot}"),
            G1,
            refuse,
            Err("two records of slot 0"),
        );
        check(
            r#"{"id":1024,"group_id":1}"#,
            G1,
            refuse,
            Err("beyond the last of 1024"),
        );
        check(slot, &format!("{G1},{G1}"), refuse, Err("two groups 1"));
        let twice = r#"{"id":2,"servers":[{"server":"a:1"}]}"#;
        check(
            slot,
            &format!("{G1},{twice}"),
            refuse,
            Err("is in group 1 and in group 2"),
        );
        let nowhere = r#"{"id":1,"servers":[{"server":"nowhere"}]}"#;
        check(
            slot,
            nowhere,
            refuse,
            Err("invalid server address `nowhere`"),
        );
        let promoting = r#"{"id":1,"servers":[{"server":"a:1"}],"promoting":{"state":"prepared"}}"#;
        check(slot, promoting, refuse, Err("in the middle of a promotion"));
        check(
            slot,
            r#"{"id":1,"servers":null}"#,
            refuse,
            Err("has no servers"),
        );
    }

    #[test]
    fn servers_can_be_left_out() {
        let product = product(r#"{"id":0,"group_id":1}"#, G1);
        let without = |text: &str| {
            let address = ServerAddr::new(text).unwrap();
            plan(&product, InFlight::Refuse, &[address])
        };
        let servers = &without("a:2").unwrap().groups[0].servers;
        assert_eq!(servers.len(), 1);
        assert!(without("a:1").unwrap_err()[0].contains("is the primary of group 1"));
        assert!(without("a:3").unwrap_err()[0].contains("no server a:3 to leave out"));
    }

    #[test]
    fn what_is_no_dump_is_said_to_be_none() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"slots":[]}"#,
            r#"{"slots":{},"group":[]}"#,
        ] {
            assert!(Product::from_dump(text).is_err(), "{text}");
        }
    }
}
