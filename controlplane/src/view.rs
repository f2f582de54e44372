//! What callers are shown: records and observations as messages of the contract. Pure.

use std::{num::NonZeroU32, time::Duration};

use proto::{GroupId, fence, v1};

use crate::{
    clock,
    fence::{
        Inspection, NotFenced, Sight,
        step::{self, Step},
    },
    migration::{Migration, Phase, Wish},
    model::{Group, Registration, Role, Server, SlotMap},
    mover::{Progress, Stage},
    orchestrator::Activity,
    probe::{Facts, Flavor},
    prober::Observation,
    registry::Live,
    snapshot::Snapshot,
    store::{BUILD_VERSION, Standing},
};

/// The cluster.
pub fn cluster(now: &Snapshot, standing: &Standing) -> v1::Cluster {
    let (role, leader) = match standing {
        Standing::Leads => (v1::cluster::Role::Leader, ""),
        Standing::StandsBy { leader } => (v1::cluster::Role::StandBy, leader.as_str()),
        Standing::Pauses | Standing::Adrift => (v1::cluster::Role::Adrift, ""),
    };
    v1::Cluster {
        role: role.into(),
        leader_endpoint: leader.to_owned(),
        id: now.cluster.id.to_string(),
        name: now.cluster.name.clone(),
        revision: now.head.revision,
        leader_term: now.head.leader_term,
        controller_version: BUILD_VERSION.to_owned(),
    }
}

/// A group.
pub fn group(now: &Snapshot, group: &Group) -> v1::Group {
    let servers = group.servers.iter().map(|s| server(group, s, None));
    v1::Group {
        id: group.id.to_string(),
        revision: group.revision,
        description: group.description.clone(),
        servers: servers.collect(),
        slot_count: now.slots.count(&group.id) as u32,
    }
}

/// A server, with what was seen of it.
pub fn server(group: &Group, server: &Server, observed: Option<&Observation>) -> v1::Server {
    v1::Server {
        address: server.address.to_string(),
        group_id: group.id.to_string(),
        role: role(server.role).into(),
        zone: server.zone.clone(),
        run_id: server.run_id.clone(),
        observed: observed.map(observation),
        revision: group.revision,
    }
}

/// A server's fence record, as it was found.
pub fn fence(
    now: &Snapshot,
    group: &GroupId,
    server: &Server,
    found: &Result<Inspection, NotFenced>,
) -> v1::Fence {
    let of_server = v1::Fence {
        server: server.address.to_string(),
        group_id: group.to_string(),
        role: role(server.role).into(),
        ..v1::Fence::default()
    };
    let (sight, census) = match found {
        Ok(Inspection { sight, census }) => (sight, census),
        Err(why) => {
            return v1::Fence {
                state: v1::fence::State::Unreachable.into(),
                error: why.to_string(),
                ..of_server
            };
        }
    };
    let connections = |wanted: fence::Role| -> u32 {
        let of_role = census.iter().filter(|((role, _), _)| *role == wanted);
        of_role.map(|(_, count)| *count as u32).sum()
    };
    let record = sight.record.as_ref().ok().and_then(Option::as_ref);
    let (state, error) = fence_state(now, server.role, sight);
    v1::Fence {
        state: state.into(),
        error,
        cluster_id: record.map(|r| r.cluster.to_string()).unwrap_or_default(),
        leader_term: record.map_or(0, |r| r.term),
        epoch: record.map_or(0, |r| r.epoch),
        run_id: record.map(|r| r.run_id.clone()).unwrap_or_default(),
        server_run_id: sight.run_id.clone(),
        proxy_connections: connections(fence::Role::Proxy),
        mover_connections: connections(fence::Role::Mover),
        controller_connections: connections(fence::Role::Controller),
        ..of_server
    }
}

/// How a record is, by what would be done about it, and what is in the way.
fn fence_state(now: &Snapshot, role: Role, sight: &Sight) -> (v1::fence::State, String) {
    use v1::fence::State;
    let state = match (step::next(sight, &now.cluster.id, now.mark(), None), role) {
        (Step::Leave(refusal), _) => return (State::OtherCluster, refusal.to_string()),
        (Step::Admit, Role::Replica) if matches!(sight.record, Ok(Some(_))) => State::Inherited,
        (Step::Keep | Step::Lead { .. } | Step::Restore { .. }, Role::Replica) => State::Inherited,
        (Step::Keep, Role::Primary) => State::Raised,
        (Step::Lead { .. } | Step::Restore { .. }, Role::Primary) => State::Low,
        (Step::Leap(_), _) => State::High,
        (Step::Admit, _) => match &sight.record {
            Ok(None) => State::Missing,
            Ok(Some(record)) if record.run_id != sight.run_id => State::Restarted,
            Ok(Some(_)) | Err(_) => State::Damaged,
        },
    };
    (state, String::new())
}

/// The slot map.
pub fn slot_map(slots: &SlotMap) -> v1::SlotMap {
    v1::SlotMap {
        revision: slots.revision,
        assignments: slots.assignments(),
    }
}

/// A proxy, with what is known of it since this controller started; where the newest epoch is this.
pub fn proxy(proxy: &Registration, live: Option<&Live>, newest: u64) -> v1::Proxy {
    let acked = live.and_then(|l| l.acked);
    let nack = live.and_then(|l| l.nack.as_ref());
    v1::Proxy {
        id: proxy.id.to_string(),
        incarnation: proxy.incarnation.clone(),
        address: proxy.address.clone(),
        admin_address: proxy.admin_address.clone(),
        zone: proxy.zone.clone(),
        build_version: proxy.build_version.clone(),
        connected: live.is_some_and(|l| l.connected),
        acked_version: acked.map(Into::into),
        epochs_behind: acked.map_or(0, |acked| newest.saturating_sub(acked.epoch)),
        nack_reason: nack.map(|(_, why)| why.clone()).unwrap_or_default(),
        last_seen: live.map(|l| clock::timestamp(l.last_seen_ms)),
        stats: live.and_then(|l| l.stats),
        requests_per_second: live.map_or(0.0, |l| l.requests_per_second),
        revision: proxy.revision,
    }
}

/// A migration, with what the controller that runs it knows of it.
pub fn migration(migration: &Migration, activity: Option<&Activity>) -> v1::Migration {
    let millis = |held: Duration| held.as_secs_f64() * 1e3;
    let trouble = activity.and_then(|a| a.trouble.clone());
    let waits_for = activity.and_then(|a| a.waits_for.as_ref());
    let (phase, reason) = phase(&migration.phase);
    v1::Migration {
        id: migration.id.to_string(),
        revision: migration.revision,
        source_group_id: migration.source.to_string(),
        target_group_id: migration.target.to_string(),
        slots: migration.slots.to_string(),
        moved_slots: migration.moved.to_string(),
        left_slots: migration.left.to_string(),
        phase: phase.into(),
        paused: migration.wish == Wish::Pause && !migration.is_over(),
        cancelling: migration.wish == Wish::Cancel && !migration.is_over(),
        waits_for: waits_for.map(ToString::to_string).unwrap_or_default(),
        reason: reason.or(trouble).unwrap_or_default(),
        cut_overs: migration.cut_overs,
        copy: activity.map(|a| copy(&a.copy)),
        last_hold_ms: activity.map_or(0.0, |a| millis(a.last_hold)),
        longest_hold_ms: activity.map_or(0.0, |a| millis(a.longest_hold)),
        deleted_keys: activity.map_or(0, |a| a.deleted),
        rate: migration.manner.rate.map_or(0, NonZeroU32::get),
        keep_source: migration.manner.keep_source,
    }
}

/// As it goes over the wire, and why, if it failed.
fn phase(phase: &Phase) -> (v1::migration::Phase, Option<String>) {
    use v1::migration::Phase as Wire;
    let wire = match phase {
        Phase::Pending => Wire::Pending,
        Phase::Copying { .. } => Wire::Copying,
        Phase::CuttingOver { .. } => Wire::CuttingOver,
        Phase::Committed => Wire::Committed,
        Phase::Reaping { .. } => Wire::Reaping,
        Phase::Aborting { .. } => Wire::Aborting,
        Phase::Succeeded => Wire::Succeeded,
        Phase::Cancelled => Wire::Cancelled,
        Phase::Failed { reason } => return (Wire::Failed, Some(reason.clone())),
    };
    (wire, None)
}

fn copy(progress: &Progress) -> v1::CopyProgress {
    v1::CopyProgress {
        attempt: progress.attempt,
        interruption: progress.interruption.clone().unwrap_or_default(),
        keys_seen: progress.seen,
        keys_total: progress.total,
        keys_copied: progress.keys,
        bytes_copied: progress.bytes,
        keys_dirty: progress.dirty,
        keys_per_second: progress.keys_per_second,
        following: progress.stage == Stage::Following,
    }
}

fn role(role: Role) -> v1::server::Role {
    match role {
        Role::Primary => v1::server::Role::Primary,
        Role::Replica => v1::server::Role::Replica,
    }
}

fn observation(seen: &Observation) -> v1::ServerObservation {
    let time = Some(clock::timestamp(seen.time_ms));
    match &seen.outcome {
        Ok(facts) => v1::ServerObservation {
            time,
            latency_us: u64::try_from(seen.latency.as_micros()).unwrap_or(u64::MAX),
            ..observed_facts(facts)
        },
        Err(failure) => v1::ServerObservation {
            time,
            error: failure.to_string(),
            ..v1::ServerObservation::default()
        },
    }
}

fn observed_facts(facts: &Facts) -> v1::ServerObservation {
    let upstream = facts.upstream.as_ref();
    v1::ServerObservation {
        reachable: true,
        role: role(facts.role()).into(),
        flavor: match facts.flavor {
            Flavor::Redis => "redis",
            Flavor::Valkey => "valkey",
        }
        .to_owned(),
        version: facts.version.clone(),
        run_id: facts.run_id.clone(),
        used_memory_bytes: facts.used_memory,
        keys: facts.keys,
        primary_address: upstream.map(|u| u.address.clone()).unwrap_or_default(),
        primary_link_up: upstream.is_some_and(|u| u.link_up),
        ..v1::ServerObservation::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::tests::{group as make_group, with_groups};

    #[test]
    fn a_group_is_shown_with_its_servers() {
        let now = with_groups([make_group("g1", 7000, 1)]);
        let shown = group(&now, &now.groups["g1"]);
        let roles: Vec<_> = shown.servers.iter().map(v1::Server::role).collect();
        assert_eq!(
            roles,
            [v1::server::Role::Primary, v1::server::Role::Replica]
        );
        assert_eq!((shown.revision, shown.slot_count), (2, 0));
        assert!(shown.servers.iter().all(|s| s.observed.is_none()));
    }

    #[test]
    fn a_proxy_that_was_not_heard_is_shown_as_registered() {
        let registration = Registration {
            id: proto::ProxyId::new("p1").unwrap(),
            revision: 4,
            incarnation: "0".repeat(32),
            address: "h:1".to_owned(),
            admin_address: String::new(),
            zone: "z".to_owned(),
            build_version: "0.1.0".to_owned(),
        };
        let shown = proxy(&registration, None, 9);
        assert!(!shown.connected && shown.acked_version.is_none() && shown.last_seen.is_none());
        assert_eq!((shown.revision, shown.zone.as_str()), (4, "z"));
        let registry = crate::registry::Registry::new();
        let acked = proto::Version {
            leader_term: 1,
            epoch: 7,
        };
        let _link = registry
            .connect(&registration.id, "0", Some(acked))
            .unwrap();
        let live = registry.proxies()[&registration.id].clone();
        assert_eq!(proxy(&registration, Some(&live), 9).epochs_behind, 2);
    }
}
