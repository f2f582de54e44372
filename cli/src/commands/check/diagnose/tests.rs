//! One fault at a time, put into a cluster that is well.

use pbjson_types::Timestamp;

use super::*;

const NOW: i64 = 1_000_000;

fn seen() -> Option<Timestamp> {
    Some(Timestamp {
        seconds: NOW,
        nanos: 0,
    })
}

fn server(address: &str, group: &str, role: Role) -> v1::Server {
    v1::Server {
        address: address.to_owned(),
        group_id: group.to_owned(),
        role: role.into(),
        observed: Some(v1::ServerObservation {
            time: seen(),
            reachable: true,
            role: role.into(),
            flavor: "redis".to_owned(),
            version: "7.0.15".to_owned(),
            used_memory_bytes: 1 << 20,
            keys: 500,
            primary_address: match role {
                Role::Replica => address.replace("10.0.1.", "10.0.0."),
                Role::Primary | Role::Unspecified => String::new(),
            },
            primary_link_up: role == Role::Replica,
            latency_us: 300,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn proxy(id: &str) -> v1::Proxy {
    v1::Proxy {
        id: id.to_owned(),
        address: "10.0.2.1:19000".to_owned(),
        build_version: "0.1.0".to_owned(),
        connected: true,
        acked_version: Some(v1::Version {
            leader_term: 1,
            epoch: 9,
        }),
        last_seen: seen(),
        ..Default::default()
    }
}

/// Two groups of a primary and a replica, half the slots each, and two proxies.
fn healthy() -> Cluster {
    let servers = vec![
        server("10.0.0.1:6379", "g1", Role::Primary),
        server("10.0.1.1:6379", "g1", Role::Replica),
        server("10.0.0.2:6379", "g2", Role::Primary),
        server("10.0.1.2:6379", "g2", Role::Replica),
    ];
    let group = |id: &str| v1::Group {
        id: id.to_owned(),
        servers: servers
            .iter()
            .filter(|s| s.group_id == id)
            .cloned()
            .collect(),
        slot_count: 512,
        ..Default::default()
    };
    let slots = |first, last, group: &str| v1::SlotAssignment {
        first,
        last,
        group_id: group.to_owned(),
        state: State::Serving.into(),
        target_group_id: String::new(),
    };
    Cluster {
        about: v1::Cluster {
            id: "c-1".to_owned(),
            name: "demo".to_owned(),
            revision: 9,
            leader_term: 1,
            controller_version: "0.1.0".to_owned(),
            ..v1::Cluster::default()
        },
        version: Some(Version {
            leader_term: 1,
            epoch: 9,
        }),
        groups: vec![group("g1"), group("g2")],
        slots: vec![slots(0, 511, "g1"), slots(512, 1023, "g2")],
        servers,
        proxies: vec![proxy("p1"), proxy("p2")],
    }
}

fn world(cluster: Result<Cluster, String>) -> World {
    World {
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(NOW as u64 + 2),
        endpoint: "10.0.3.1:18080".to_owned(),
        build_version: "0.1.0".to_owned(),
        cluster,
    }
}

/// Spoils a healthy cluster; it must be told by exactly one fault, with this text and advice.
fn check(spoil: impl FnOnce(&mut Cluster), severity: Severity, message: &str, advice: &str) {
    let mut cluster = healthy();
    spoil(&mut cluster);
    let findings = diagnose(&world(Ok(cluster)));
    let faults: Vec<&Finding> = findings
        .iter()
        .filter(|finding| finding.severity != Severity::Ok)
        .collect();
    let [fault] = faults[..] else {
        panic!("expected one fault (`{message}`), got {faults:#?}");
    };
    assert_eq!(fault.severity, severity, "{fault:?}");
    assert!(fault.message.contains(message), "{fault:?}");
    assert!(fault.advice.contains(advice), "{fault:?}");
}

fn error(spoil: impl FnOnce(&mut Cluster), message: &str, advice: &str) {
    check(spoil, Severity::Error, message, advice);
}

fn warning(spoil: impl FnOnce(&mut Cluster), message: &str, advice: &str) {
    check(spoil, Severity::Warning, message, advice);
}

fn observed(server: &mut v1::Server) -> &mut v1::ServerObservation {
    server.observed.get_or_insert_default()
}

#[test]
fn a_healthy_cluster_says_what_is_right() {
    let lines: Vec<String> = diagnose(&world(Ok(healthy())))
        .into_iter()
        .map(|f| {
            assert!(f.severity == Severity::Ok && f.advice.is_empty(), "{f:?}");
            format!("{}: {}", f.category, f.message)
        })
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @"
    Controller: 10.0.3.1:18080 leads cluster demo (term 1, revision 9)
    Groups: 2 groups with 4 servers
    Slots: all 1024 slots are owned and served
    Servers: all answer: 1,000 keys, 2.0 MiB of memory
    Proxies: 2 proxies route by the newest topology, 1.9
    ");
}

/// What is said where nothing is wrong with it.
fn right(spoil: impl FnOnce(&mut Cluster), category: Category) -> String {
    let mut cluster = healthy();
    spoil(&mut cluster);
    let findings = diagnose(&world(Ok(cluster)));
    let of = findings.iter().find(|f| f.category == category);
    of.map(|f| f.message.clone()).unwrap_or_default()
}

#[test]
fn slots_are_served_only_by_primaries_that_are_well() {
    let spoilt = right(
        |c| observed(&mut c.servers[0]).reachable = false,
        Category::Slots,
    );
    assert_eq!(spoilt, "all 1024 slots are owned");
    let replica = right(
        |c| observed(&mut c.servers[1]).reachable = false,
        Category::Slots,
    );
    assert_eq!(replica, "all 1024 slots are owned and served");
}

#[test]
fn what_was_seen_long_ago_is_told_with_its_age() {
    let old = Some(Timestamp {
        seconds: NOW - 10,
        nanos: 0,
    });
    let all = right(
        |c| observed(&mut c.servers[0]).time = old,
        Category::Servers,
    );
    assert_eq!(
        all,
        "all answer: 1,000 keys, 2.0 MiB of memory (seen 12s ago)"
    );
    warning(
        |c| {
            observed(&mut c.servers[1]).primary_link_up = false;
            observed(&mut c.servers[1]).time = old;
        },
        "has lost its link to 10.0.0.1:6379 (seen 12s ago)",
        "INFO replication",
    );
}

#[test]
fn an_empty_cluster_says_how_to_begin() {
    let cluster = Cluster {
        groups: Vec::new(),
        servers: Vec::new(),
        proxies: Vec::new(),
        slots: vec![v1::SlotAssignment {
            first: 0,
            last: 1023,
            ..Default::default()
        }],
        ..healthy()
    };
    let lines: Vec<String> = diagnose(&world(Ok(cluster)))
        .into_iter()
        .map(|f| format!("{:?} {} -> {}", f.severity, f.message, f.advice))
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @"
    Ok 10.0.3.1:18080 leads cluster demo (term 1, revision 9) -> 
    Error there is no group -> make one of a Redis server that runs: `sluice group create g1 --server HOST:PORT`
    Error no group owns 1024 slots (0-1023): requests for them fail with -CLUSTERDOWN -> `sluice slot assign --even` shares them among the groups
    Ok there are none yet -> 
    Error no proxy is connected: clients may have nothing to connect to -> `sluice-proxy --id p1 --controller 10.0.3.1:18080`
    ");
}

#[test]
fn without_a_controller_there_is_one_finding() {
    let findings = diagnose(&world(Err("no controller answers at a:1".to_owned())));
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].severity, Severity::Error);
    assert!(findings[0].advice.contains("--endpoint"), "{findings:?}");
}

#[test]
fn controller() {
    warning(
        |c| {
            c.about.controller_version = "0.2.0".to_owned();
            c.proxies
                .iter_mut()
                .for_each(|p| p.build_version = "0.2.0".to_owned());
        },
        "the controller is version 0.2.0, this `sluice` 0.1.0",
        "update",
    );
}

#[test]
fn groups() {
    warning(
        |c| {
            c.groups[0].servers.truncate(1);
        },
        "group g1 has no replica",
        "sluice server add HOST:PORT --group g1",
    );
    warning(
        |c| c.groups[1].slot_count = 0,
        "group g2 owns no slots",
        "slots cannot be moved yet: `sluice group delete g2`",
    );
}

#[test]
fn slots() {
    error(
        |c| c.slots[1].group_id.clear(),
        "no group owns 512 slots (512-1023)",
        "sluice slot assign --even",
    );
    warning(
        |c| c.slots[0].state = State::Held.into(),
        "requests wait for 512 slots (0-511)",
        "log",
    );
}

#[test]
fn servers() {
    let down = || {
        Some(v1::ServerObservation {
            time: seen(),
            error: "does not answer: connection refused".to_owned(),
            ..Default::default()
        })
    };
    error(
        |c| c.servers[0].observed = down(),
        "primary 10.0.0.1:6379 of group g1 does not answer: connection refused",
        "redis-cli -h 10.0.0.1 -p 6379 PING",
    );
    let shut = || {
        Some(v1::ServerObservation {
            error: "refuses the credentials: NOAUTH".to_owned(),
            ..down().unwrap_or_default()
        })
    };
    error(
        |c| c.servers[0].observed = shut(),
        "primary 10.0.0.1:6379 of group g1 refuses the credentials",
        "--server-auth-file",
    );
    warning(
        |c| c.servers[1].observed = shut(),
        "replica 10.0.1.1:6379 of group g1 refuses the credentials",
        "SLUICE_SERVER_PASSWORD",
    );
    warning(
        |c| c.servers[1].observed = down(),
        "replica 10.0.1.1:6379 of group g1 does not answer",
        "sluice server remove 10.0.1.1:6379",
    );
    error(
        |c| observed(&mut c.servers[0]).role = Role::Replica.into(),
        "says it is a replica",
        "REPLICAOF NO ONE",
    );
    error(
        |c| observed(&mut c.servers[1]).role = Role::Primary.into(),
        "says it is a primary",
        "redis-cli -h 10.0.1.1 -p 6379 REPLICAOF 10.0.0.1 6379",
    );
    warning(
        |c| observed(&mut c.servers[1]).primary_link_up = false,
        "has lost its link to 10.0.0.1:6379",
        "INFO replication",
    );
    warning(
        |c| observed(&mut c.servers[1]).primary_address = "10.0.0.2:6379".to_owned(),
        "follows 10.0.0.2:6379, not 10.0.0.1:6379",
        "REPLICAOF 10.0.0.1 6379",
    );
    warning(
        |c| c.servers[2].observed = None,
        "has not looked at primary 10.0.0.2:6379",
        "check again",
    );
    warning(
        |c| {
            observed(&mut c.servers[2]).time = Some(Timestamp {
                seconds: NOW - 300,
                nanos: 0,
            });
        },
        "looked at 10.0.0.2:6379 5m ago",
        "clocks",
    );
    warning(
        |c| observed(&mut c.servers[2]).latency_us = 250_000,
        "took 250 ms",
        "SLOWLOG",
    );
    warning(
        |c| observed(&mut c.servers[1]).version = "8.2.0".to_owned(),
        "group g1 mixes redis 7.0.15, redis 8.2.0",
        "one version",
    );
    warning(
        |c| {
            c.servers.push(server("10.0.0.3:6379", "g3", Role::Primary));
            observed(&mut c.servers[0]).used_memory_bytes = 4 << 30;
        },
        "10.0.0.1:6379 of group g1 holds 4.0 GiB",
        "--bigkeys",
    );
}

#[test]
fn a_stand_by_does_not_judge_what_it_does_not_see() {
    warning(
        |c| {
            c.about.role = v1::cluster::Role::StandBy.into();
            c.about.leader_endpoint = "10.0.3.2:18080".to_owned();
            c.servers[0].observed = None;
            c.proxies[0].connected = false;
        },
        "watches neither servers nor proxies",
        "--endpoint 10.0.3.2:18080",
    );
}

#[test]
fn proxies() {
    error(
        |c| c.proxies.clear(),
        "no proxy is connected",
        "sluice-proxy --id p1 --controller 10.0.3.1:18080",
    );
    warning(
        |c| c.proxies[1].connected = false,
        "p2 (10.0.2.1:19000) is not connected; heard last: 2s",
        "sluice proxy remove p2",
    );
    error(
        |c| c.proxies[0].nack_reason = "slot 3 is assigned twice".to_owned(),
        "p1 refuses the topology: slot 3 is assigned twice",
        "sluice proxy get p1",
    );
    warning(
        |c| {
            c.proxies[0].acked_version = Some(v1::Version {
                leader_term: 1,
                epoch: 8,
            });
        },
        "p1 routes by topology 1.8, the newest is 1.9",
        "restart p1",
    );
    warning(
        |c| c.proxies[0].acked_version = None,
        "p1 has no topology yet",
        "check again",
    );
    warning(
        |c| c.proxies[1].build_version = "0.2.0".to_owned(),
        "versions 0.1.0, 0.2.0",
        "older",
    );
}
