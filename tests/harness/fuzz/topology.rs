//! `topology`: messages of a controller, as a proxy reads them.

use std::collections::HashSet;

use dataplane::control::{Refused, accept_delta, accept_snapshot};
use prost::Message as _;
use proto::{
    Slot, SlotState, Topology,
    v1::{self, slot_assignment::State, subscribe_response::Message},
};

use super::Choices;

/// Input: messages, one after the other. A message starts with a byte: odd (`w`), and what
/// follows is its length in a byte and the message as on the wire; even, and it is made
/// of choices from few names and numbers, so that much of it is accepted.
///
/// A topology that is accepted is valid as a whole, newer than the one before and of the same
/// cluster, and goes over the wire, whole or as a difference, without a change. One that is refused
/// changes nothing.
pub fn topology(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let mut have: Option<Topology> = None;
    while !choices.0.is_empty() {
        let message = if !choices.byte().is_multiple_of(2) {
            let len = choices.byte();
            let Ok(response) = v1::SubscribeResponse::decode(choices.take(len.into())) else {
                continue;
            };
            response.message
        } else {
            Some(made(&mut choices, have.as_ref()))
        };
        let before = have.clone();
        let next = match &message {
            Some(Message::Snapshot(snapshot)) => accept_snapshot(have.as_ref(), snapshot),
            Some(Message::Delta(delta)) => accept_delta(have.as_ref(), delta),
            Some(Message::KeepAlive(_)) | None => continue,
        };
        assert_eq!(have, before, "deciding changed what is there");
        match next {
            Ok(next) => {
                check_valid(&next);
                check_follows(before.as_ref(), &next);
                have = Some(next);
            }
            Err(refused) => check_refused(before.as_ref(), &refused),
        }
    }
}

/// A message of choices; many are nearly right.
fn made(choices: &mut Choices<'_>, have: Option<&Topology>) -> Message {
    let base = have.map(Topology::version).map(v1::Version::from);
    let version = match (choices.byte() % 4, base) {
        (0, _) => None,
        (1, Some(base)) => Some(v1::Version {
            epoch: base.epoch.saturating_add(u64::from(choices.byte() % 3)),
            ..base
        }),
        _ => Some(v1::Version {
            leader_term: u64::from(choices.byte() % 4),
            epoch: u64::from(choices.byte()),
        }),
    };
    let groups = (0..choices.byte() % 5).map(|_| group(choices)).collect();
    let mut slots: Vec<_> = (0..choices.byte() % 5).map(|_| slots(choices)).collect();
    if choices.byte().is_multiple_of(2) {
        total(&mut slots);
    }
    if choices.byte().is_multiple_of(2) {
        return Message::Snapshot(v1::Topology {
            cluster_id: choices.one_of(&["c", "c", "c", "d", ""]).to_owned(),
            version,
            groups,
            slots,
        });
    }
    Message::Delta(v1::TopologyDelta {
        base_version: match choices.byte() % 4 {
            0 => None,
            1 => Some(v1::Version::default()),
            _ => base,
        },
        version,
        groups,
        removed_group_ids: (0..choices.byte() % 3).map(|_| id(choices)).collect(),
        slots,
    })
}

fn id(choices: &mut Choices<'_>) -> String {
    choices
        .one_of(&["g1", "g2", "g3", "g4", "", "-"])
        .to_owned()
}

fn group(choices: &mut Choices<'_>) -> v1::TopologyGroup {
    let mut server = || {
        let port = choices.byte() % 16;
        format!("127.0.0.1:{port}")
    };
    let primary = server();
    let replica = server();
    v1::TopologyGroup {
        id: id(choices),
        primary,
        replicas: Vec::from_iter((choices.byte().is_multiple_of(2)).then_some(replica)),
    }
}

fn slots(choices: &mut Choices<'_>) -> v1::SlotAssignment {
    let first = u32::from(choices.byte()) * 4;
    v1::SlotAssignment {
        first,
        last: first + u32::from(choices.byte()) * u32::from(choices.byte() % 5),
        group_id: id(choices),
        state: i32::from(choices.byte() % 5),
        target_group_id: match choices.byte() % 4 {
            0 => id(choices),
            _ => String::new(),
        },
    }
}

/// Cuts and fills, so that every slot is assigned once.
fn total(slots: &mut Vec<v1::SlotAssignment>) {
    slots.sort_by_key(|range| range.first);
    let mut next = 0;
    for range in slots.iter_mut() {
        range.first = next;
        range.last = range.last.clamp(next, 1023);
        next = range.last + 1;
        if next > 1023 {
            break;
        }
    }
    slots.retain(|range| range.first < next && range.last < next);
    if next <= 1023 {
        slots.push(v1::SlotAssignment {
            first: next,
            last: 1023,
            group_id: String::new(),
            state: State::Serving.into(),
            target_group_id: String::new(),
        });
    }
}

/// All that [`proto::topology`] promises of a topology, checked once more and from outside.
fn check_valid(topology: &Topology) {
    assert!(topology.version().leader_term > 0 && topology.version().epoch > 0);
    let label = |text: &str| {
        !text.is_empty()
            && text.len() <= 63
            && text
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    };
    assert!(label(topology.cluster_id().as_str()));
    let groups = topology.groups();
    assert!(groups.iter().all(|group| label(group.id.as_str())));
    assert!(groups.windows(2).all(|pair| pair[0].id < pair[1].id));
    let mut servers = HashSet::new();
    for server in groups
        .iter()
        .flat_map(|g| g.replicas.iter().chain([&g.primary]))
    {
        let (host, port) = server.as_str().rsplit_once(':').expect("host:port");
        assert!(!host.is_empty() && port.parse::<u16>().expect("a port") > 0);
        assert!(servers.insert(server), "{server} is there twice");
    }
    for slot in Slot::all() {
        let route = topology.route(slot);
        match route.group {
            Some(group) => assert!(usize::from(group) < groups.len(), "slot {slot}"),
            None => assert_eq!(route.state, SlotState::Serving, "slot {slot}"),
        }
    }
    let wire = v1::Topology::from(topology).encode_to_vec();
    let wire = v1::Topology::decode(&wire[..]).expect("what was encoded");
    assert_eq!(Topology::try_from(&wire).as_ref(), Ok(topology));
}

fn check_follows(before: Option<&Topology>, next: &Topology) {
    let Some(before) = before else { return };
    assert!(next.version() > before.version(), "versions only grow");
    assert_eq!(next.cluster_id(), before.cluster_id());
    let delta = before.diff(next).encode_to_vec();
    let delta = v1::TopologyDelta::decode(&delta[..]).expect("what was encoded");
    assert_eq!(before.apply(&delta).as_ref(), Ok(next));
}

fn check_refused(before: Option<&Topology>, refused: &Refused) {
    assert!(!refused.to_string().is_empty());
    match refused {
        Refused::Invalid(_) => {}
        Refused::NotNewer { new, have } => {
            assert!(new <= have);
            assert_eq!(before.map(Topology::version), Some(*have));
        }
        Refused::OtherCluster { new, have } => assert_ne!(new, have),
        Refused::NoBase => assert_eq!(before, None),
    }
}
