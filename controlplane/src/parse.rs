//! From the fields of a request to values that need no more checks.
//!
//! Every error names the field.

use std::{collections::BTreeMap, num::NonZeroU32};

use proto::{
    GroupId, MigrationId, ProxyId, ServerAddr, Settled, Slot, SlotSet, Version,
    id::InvalidId,
    reason::Reason,
    topology::SlotTable,
    v1::{self, assign_slots_request::Assignment as WireAssignment, slot_assignment::State},
};

use crate::{
    admission::Candidate,
    change::{Assignment, Refusal},
    model::Registration,
    mover::Measure,
};

const DESCRIPTION_MAX: usize = 256;
const ZONE_MAX: usize = 63;
const BUILD_VERSION_MAX: usize = 64;
const REQUEST_ID_MAX: usize = 64;
const SERVERS_MAX: usize = 100;
const WEIGHT_MAX: u32 = 1000;

/// An id or an address.
pub fn id<T>(
    field: &str,
    text: &str,
    new: impl FnOnce(String) -> Result<T, InvalidId>,
) -> Result<T, Refusal> {
    new(text.to_owned()).map_err(|e| Refusal::field(field, format!("`{text}` {}", e.rule)))
}

/// A group's id.
pub fn group_id(field: &str, text: &str) -> Result<GroupId, Refusal> {
    id(field, text, GroupId::new)
}

/// A server's address.
pub fn address(field: &str, text: &str) -> Result<ServerAddr, Refusal> {
    id(field, text, ServerAddr::new)
}

/// A proxy's id.
pub fn proxy_id(field: &str, text: &str) -> Result<ProxyId, Refusal> {
    id(field, text, ProxyId::new)
}

/// A migration's id.
pub fn migration_id(field: &str, text: &str) -> Result<MigrationId, Refusal> {
    id(field, text, MigrationId::new)
}

/// Slots, as `0-99,200`; at least one.
pub fn slots(field: &str, text: &str) -> Result<SlotSet, Refusal> {
    match text.parse::<SlotSet>() {
        Ok(slots) if slots.is_empty() => Err(Refusal::field(field, "name at least one slot")),
        Ok(slots) => Ok(slots),
        Err(e) => Err(Refusal::field(field, e.to_string())),
    }
}

/// The weights of groups.
pub fn weights(
    field: &str,
    weights: &[v1::GroupWeight],
) -> Result<BTreeMap<GroupId, u32>, Refusal> {
    let mut parsed = BTreeMap::new();
    for v1::GroupWeight { group_id, weight } in weights {
        if *weight > WEIGHT_MAX {
            return Err(Refusal::field(
                field,
                format!("a weight is 0 to {WEIGHT_MAX}"),
            ));
        }
        if parsed
            .insert(self::group_id(field, group_id)?, *weight)
            .is_some()
        {
            return Err(Refusal::field(
                field,
                format!("`{group_id}` is there twice"),
            ));
        }
    }
    Ok(parsed)
}

/// Keys a second; 0: no limit.
pub fn rate(rate: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(rate)
}

/// What is evened out, if it has to be measured.
pub fn measure(field: &str, by: i32) -> Result<Option<Measure>, Refusal> {
    use v1::rebalance_request::By;
    match By::try_from(by) {
        Ok(By::Unspecified | By::Slots) => Ok(None),
        Ok(By::Keys) => Ok(Some(Measure::Keys)),
        Ok(By::Memory) => Ok(Some(Measure::Memory)),
        Err(_) => Err(Refusal::field(field, format!("{by} is no known way"))),
    }
}

/// A text for people.
pub fn description(field: &str, text: &str) -> Result<String, Refusal> {
    printable(field, text, DESCRIPTION_MAX)
}

/// A failure zone. May be empty.
pub fn zone(field: &str, text: &str) -> Result<String, Refusal> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':');
    if text.len() <= ZONE_MAX && text.chars().all(allowed) {
        return Ok(text.to_owned());
    }
    Err(Refusal::field(
        field,
        format!("must be at most {ZONE_MAX} of a-z, A-Z, 0-9 and `-_./:`"),
    ))
}

/// A request id. `None`: the caller gave none.
pub fn request_id(text: &str) -> Result<Option<String>, Refusal> {
    let id = printable("request_id", text, REQUEST_ID_MAX)?;
    Ok(Some(id).filter(|id| !id.is_empty()))
}

/// A server to admit.
pub fn candidate(field: &str, spec: &v1::ServerSpec) -> Result<Candidate, Refusal> {
    Ok(Candidate {
        address: address(&format!("{field}.address"), &spec.address)?,
        zone: zone(&format!("{field}.zone"), &spec.zone)?,
    })
}

/// The servers of a new group: at least one, none twice.
pub fn candidates(specs: &[v1::ServerSpec]) -> Result<Vec<Candidate>, Refusal> {
    if !(1..=SERVERS_MAX).contains(&specs.len()) {
        let rule = format!("name 1 to {SERVERS_MAX} servers: a primary and its replicas");
        return Err(Refusal::field("servers", rule));
    }
    let mut candidates: Vec<Candidate> = Vec::new();
    for (index, spec) in specs.iter().enumerate() {
        let field = format!("servers[{index}]");
        let new = candidate(&field, spec)?;
        if candidates.iter().any(|c| c.address == new.address) {
            let message = format!("`{}` is there twice", new.address);
            return Err(Refusal::field(format!("{field}.address"), message));
        }
        candidates.push(new);
    }
    Ok(candidates)
}

/// What slots to assign.
pub fn assignment(wanted: Option<&WireAssignment>) -> Result<Assignment, Refusal> {
    let ranges = match wanted {
        None => return Err(Refusal::field("assignment", "set `ranges` or `even`")),
        Some(WireAssignment::Even(_)) => return Ok(Assignment::Even),
        Some(WireAssignment::Ranges(ranges)) => &ranges.assignments,
    };
    const FIELD: &str = "ranges.assignments";
    if ranges.is_empty() {
        return Err(Refusal::field(FIELD, "name at least one range"));
    }
    let mut ranges = ranges.clone();
    for (index, range) in ranges.iter_mut().enumerate() {
        group_id(&format!("{FIELD}[{index}].group_id"), &range.group_id)?;
        // The caller's are ignored.
        range.state = State::Serving.into();
        range.target_group_id.clear();
    }
    let table = SlotTable::read(&ranges).map_err(|e| Refusal::field(FIELD, e.to_string()))?;
    let slot = |slot: Slot| Some((slot, table.get(slot)?.0.clone()?));
    Ok(Assignment::Slots(Slot::all().filter_map(slot).collect()))
}

/// A proxy's hello: its registration, and the version it has.
pub fn hello(
    hello: &v1::Hello,
    cluster_id: &str,
) -> Result<(Registration, Option<Version>), Refusal> {
    let registration = Registration {
        id: proxy_id("hello.proxy_id", &hello.proxy_id)?,
        revision: 0,
        incarnation: incarnation(&hello.incarnation)?,
        address: address("hello.address", &hello.address)?.into(),
        admin_address: match hello.admin_address.as_str() {
            "" => String::new(),
            text => address("hello.admin_address", text)?.into(),
        },
        zone: zone("hello.zone", &hello.zone)?,
        build_version: printable(
            "hello.build_version",
            &hello.build_version,
            BUILD_VERSION_MAX,
        )?,
    };
    if !hello.cluster_id.is_empty() && hello.cluster_id != cluster_id {
        let message = format!(
            "the proxy has the topology of cluster {}, this controller leads cluster {cluster_id}: \
             check the proxy's --controller, or restart it to let it forget",
            hello.cluster_id
        );
        return Err(Refusal::field("hello.cluster_id", message));
    }
    let has = match &hello.last_version {
        Some(_) if hello.cluster_id.is_empty() => {
            let message = "a version without a cluster: set `cluster_id` too";
            return Err(Refusal::field("hello.last_version", message));
        }
        Some(last) => Some(version("hello.last_version", Some(last))?),
        None => None,
    };
    Ok((registration, has))
}

/// A version of a topology.
pub fn version(field: &str, wire: Option<&v1::Version>) -> Result<Version, Refusal> {
    let version: Version = wire
        .ok_or_else(|| Refusal::field(field, "must be set"))?
        .into();
    if version.leader_term == 0 || version.epoch == 0 {
        return Err(Refusal::field(field, "terms and epochs start at 1"));
    }
    Ok(version)
}

/// What a proxy says of what it sent before.
pub fn settled(wire: &v1::Settled) -> Result<Settled, Refusal> {
    version("settled.version", wire.version.as_ref())?;
    Settled::try_from(wire).map_err(|e| Refusal::field("settled", e.to_string()))
}

fn incarnation(text: &str) -> Result<String, Refusal> {
    if text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(text.to_owned());
    }
    Err(Refusal::field(
        "hello.incarnation",
        "must be 32 hexadecimal digits",
    ))
}

fn printable(field: &str, text: &str, max: usize) -> Result<String, Refusal> {
    if text.chars().count() <= max && !text.chars().any(char::is_control) {
        return Ok(text.to_owned());
    }
    Err(Refusal {
        reason: Reason::InvalidField,
        field: field.to_owned(),
        message: format!("must be at most {max} characters, none of them a control character"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(result: Result<impl std::fmt::Debug, Refusal>, field: &str) {
        let refusal = result.unwrap_err();
        assert_eq!(
            (refusal.reason, refusal.field.as_str()),
            (Reason::InvalidField, field)
        );
    }

    #[test]
    fn limits_of_texts() {
        assert!(description("d", &"ü".repeat(256)).is_ok());
        named(description("d", &"ü".repeat(257)), "d");
        named(description("d", "a\nb"), "d");
        assert!(zone("z", "eu-west/rack_1").is_ok() && zone("z", "").is_ok());
        named(zone("z", "a b"), "z");
        named(zone("z", &"a".repeat(64)), "z");
        assert_eq!(request_id("").unwrap(), None);
        named(request_id(&"x".repeat(65)), "request_id");
    }

    #[test]
    fn servers_of_a_group() {
        let spec = |address: &str| v1::ServerSpec {
            address: address.to_owned(),
            zone: String::new(),
        };
        assert_eq!(candidates(&[spec("h:1"), spec("h:2")]).unwrap().len(), 2);
        named(candidates(&[]), "servers");
        named(candidates(&[spec("h:1"), spec("h")]), "servers[1].address");
        named(
            candidates(&[spec("h:1"), spec("h:1")]),
            "servers[1].address",
        );
    }

    #[test]
    fn ranges_of_slots() {
        fn check(ranges: &[(u32, u32, &str)]) -> Result<Assignment, Refusal> {
            let range = |&(first, last, group): &(u32, u32, &str)| v1::SlotAssignment {
                first,
                last,
                group_id: group.to_owned(),
                state: 99, // ignored, as is what follows
                target_group_id: "G".to_owned(),
            };
            let assignments = ranges.iter().map(range).collect();
            let ranges = v1::assign_slots_request::Ranges { assignments };
            assignment(Some(&WireAssignment::Ranges(ranges)))
        }
        let Assignment::Slots(slots) = check(&[(4, 5, "b"), (0, 1, "a")]).unwrap() else {
            panic!("ranges are slots");
        };
        let text: Vec<_> = slots.iter().map(|(s, g)| format!("{s}{g}")).collect();
        assert_eq!(text, ["0a", "1a", "4b", "5b"]);
        named(check(&[]), "ranges.assignments");
        named(check(&[(0, 1024, "a")]), "ranges.assignments");
        named(check(&[(0, 1, "a"), (1, 2, "a")]), "ranges.assignments");
        named(check(&[(0, 1, "")]), "ranges.assignments[0].group_id");
        named(assignment(None), "assignment");
    }

    #[test]
    fn hellos() {
        let good = v1::Hello {
            proxy_id: "p1".to_owned(),
            incarnation: "0123456789abcdef0123456789ABCDEF".to_owned(),
            address: "127.0.0.1:19000".to_owned(),
            cluster_id: "c1".to_owned(),
            last_version: Some(v1::Version {
                leader_term: 1,
                epoch: 2,
            }),
            ..v1::Hello::default()
        };
        let check = |edit: fn(&mut v1::Hello)| {
            let mut wire = good.clone();
            edit(&mut wire);
            hello(&wire, "c1")
        };
        let (registration, has) = check(|_| {}).unwrap();
        assert_eq!(registration.id.as_str(), "p1");
        assert_eq!(has.unwrap().to_string(), "1.2");
        named(check(|h| h.proxy_id.clear()), "hello.proxy_id");
        named(
            check(|h| h.incarnation = "x".repeat(32)),
            "hello.incarnation",
        );
        named(check(|h| h.address = "x".to_owned()), "hello.address");
        named(
            check(|h| h.admin_address = "x".to_owned()),
            "hello.admin_address",
        );
        named(
            check(|h| h.cluster_id = "c2".to_owned()),
            "hello.cluster_id",
        );
        named(check(|h| h.cluster_id.clear()), "hello.last_version");
        let zero = |h: &mut v1::Hello| h.last_version = Some(v1::Version::default());
        named(check(zero), "hello.last_version");
    }
}
