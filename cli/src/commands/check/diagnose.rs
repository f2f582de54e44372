//! What is wrong with a cluster, and what to do about it. No I/O: from what the controller said to
//! findings.
//!
//! A category says at least one thing: where nothing is wrong, what is right. × is for what fails
//! clients' requests now, or will with the next change; ‼ for what takes away a reserve.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, SystemTime},
};

use proto::{SLOT_COUNT, Version, v1};
use serde::Serialize;
use v1::{server::Role, slot_assignment::State};

use crate::{
    commands::{
        server::{Health, health, role_name},
        slot::{range_text, slot_count},
    },
    output::{self, plural, thousands},
};

/// A probe older than this says nothing about now; the controller probes every second or so.
const PROBE_AGE_MAX: Duration = Duration::from_secs(60);
/// A probe older than this is told with its age.
const PROBE_AGE_USUAL: Duration = Duration::from_secs(5);
/// How the controller tells of a server that does not let it in.
const LOGIN_REFUSED: &str = "refuses the credentials";
/// A probe is one small round trip.
const LATENCY_MAX: Duration = Duration::from_millis(100);
/// A primary that holds this many times the mean is the one to run out of memory first …
const MEMORY_SKEW_MAX: u64 = 2;
/// … unless so small that the difference is noise.
const MEMORY_SKEW_FROM_BYTES: u64 = 256 << 20;

/// All that is looked at.
pub(super) struct World {
    /// When it was looked at.
    pub now: SystemTime,
    /// Where a controller is, or ought to be.
    pub endpoint: String,
    /// The version of this tool.
    pub build_version: String,
    /// What the controller says; or why there is none that says anything.
    pub cluster: Result<Cluster, String>,
}

/// What the controller says.
pub(super) struct Cluster {
    pub about: v1::Cluster,
    /// The topology's. `None`: it sent none.
    pub version: Option<Version>,
    pub groups: Vec<v1::Group>,
    pub servers: Vec<v1::Server>,
    pub slots: Vec<v1::SlotAssignment>,
    pub proxies: Vec<v1::Proxy>,
}

/// Something that was found out.
#[derive(Serialize, Clone, Debug)]
pub(super) struct Finding {
    pub category: Category,
    pub severity: Severity,
    /// What is so.
    pub message: String,
    /// What to do about it. Empty if, and only if, all is as it should be.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

/// What a finding is about.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub(super) enum Category {
    Controller,
    Groups,
    Slots,
    Servers,
    Proxies,
}

/// How bad it is.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// As it should be.
    Ok,
    /// Worth a look: it works, with less in reserve.
    Warning,
    /// To be repaired.
    Error,
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Controller => "Controller",
            Self::Groups => "Groups",
            Self::Slots => "Slots",
            Self::Servers => "Servers",
            Self::Proxies => "Proxies",
        })
    }
}

/// Judges everything.
pub(super) fn diagnose(world: &World) -> Vec<Finding> {
    let cluster = match &world.cluster {
        Ok(cluster) => cluster,
        Err(why) => return vec![no_controller(why)],
    };
    let watched = match cluster.about.role() {
        v1::cluster::Role::StandBy => vec![stands_by(cluster)],
        v1::cluster::Role::Leader | v1::cluster::Role::Adrift | v1::cluster::Role::Unspecified => {
            [servers(world, cluster), proxies(world, cluster)].concat()
        }
    };
    [
        controller(world, cluster),
        groups(cluster),
        slots(cluster),
        watched,
    ]
    .concat()
}

/// Only the leader knows how servers and proxies are.
fn stands_by(cluster: &Cluster) -> Finding {
    warning(
        Category::Controller,
        "this controller stands by: it watches neither servers nor proxies".to_owned(),
        format!(
            "ask the leader: `--endpoint {}`",
            cluster.about.leader_endpoint
        ),
    )
}

fn error(category: Category, message: String, advice: impl Into<String>) -> Finding {
    Finding {
        category,
        severity: Severity::Error,
        message,
        advice: advice.into(),
    }
}

fn warning(category: Category, message: String, advice: impl Into<String>) -> Finding {
    Finding {
        severity: Severity::Warning,
        ..error(category, message, advice)
    }
}

/// The faults; or, if there are none, what is right.
fn or_right(
    faults: Vec<Finding>,
    category: Category,
    right: impl FnOnce() -> String,
) -> Vec<Finding> {
    if faults.is_empty() {
        vec![Finding {
            category,
            severity: Severity::Ok,
            message: right(),
            advice: String::new(),
        }]
    } else {
        faults
    }
}

fn no_controller(why: &str) -> Finding {
    error(
        Category::Controller,
        why.to_owned(),
        "start `sluice-controller`, or name the right one with `--endpoint HOST:PORT`; proxies \
         that run go on serving without it",
    )
}

fn controller(world: &World, cluster: &Cluster) -> Vec<Finding> {
    let about = &cluster.about;
    let mut faults = Vec::new();
    if about.controller_version != world.build_version {
        faults.push(warning(
            Category::Controller,
            format!(
                "the controller is version {}, this `sluice` {}",
                about.controller_version, world.build_version
            ),
            "update the older of the two",
        ));
    }
    or_right(faults, Category::Controller, || {
        format!(
            "{} leads cluster {} (term {}, revision {})",
            world.endpoint, about.name, about.leader_term, about.revision
        )
    })
}

fn groups(cluster: &Cluster) -> Vec<Finding> {
    let mut faults = Vec::new();
    if cluster.groups.is_empty() {
        faults.push(error(
            Category::Groups,
            "there is no group".to_owned(),
            "make one of a Redis server that runs: `sluice group create g1 --server HOST:PORT`",
        ));
    }
    for group in &cluster.groups {
        let id = &group.id;
        if !group.servers.iter().any(|s| s.role() == Role::Replica) {
            faults.push(warning(
                Category::Groups,
                format!("group {id} has no replica: its keys are lost with its primary"),
                format!(
                    "start a replica of its primary, then `sluice server add HOST:PORT --group {id}`"
                ),
            ));
        }
        if group.slot_count == 0 {
            let advice = if cluster.slots.iter().any(is_unowned) {
                format!("`sluice slot assign RANGES {id}`, or `sluice group delete {id}`")
            } else {
                format!(
                    "all slots are owned, and slots cannot be moved yet: `sluice group delete {id}`"
                )
            };
            faults.push(warning(
                Category::Groups,
                format!("group {id} owns no slots: it gets no requests"),
                advice,
            ));
        }
    }
    or_right(faults, Category::Groups, || {
        format!(
            "{} with {}",
            plural(cluster.groups.len(), "group"),
            plural(cluster.servers.len(), "server")
        )
    })
}

fn slots(cluster: &Cluster) -> Vec<Finding> {
    let mut faults = Vec::new();
    let unowned = cluster.slots.iter().filter(|slot| is_unowned(slot));
    if let Some(what) = some_slots(unowned) {
        faults.push(error(
            Category::Slots,
            format!("no group owns {what}: requests for them fail with -CLUSTERDOWN"),
            "`sluice slot assign --even` shares them among the groups",
        ));
    }
    let held = |slot: &&v1::SlotAssignment| slot.state() == State::Held;
    if let Some(what) = some_slots(cluster.slots.iter().filter(held)) {
        faults.push(warning(
            Category::Slots,
            format!("requests wait for {what}, which are held"),
            "it should be over within 2 seconds, or when another controller leads: if this stays, read the \
             controller's log",
        ));
    }
    or_right(faults, Category::Slots, || {
        let served = if all_served(cluster) {
            " and served"
        } else {
            ""
        };
        format!("all {SLOT_COUNT} slots are owned{served}")
    })
}

/// Whether the primary of each group that owns slots was well when it was looked at.
fn all_served(cluster: &Cluster) -> bool {
    let serving: BTreeSet<&str> = cluster
        .servers
        .iter()
        .filter(|server| server.role() == Role::Primary && health(server) == Health::Up)
        .map(|server| server.group_id.as_str())
        .collect();
    let mut owners = cluster.slots.iter().map(|slot| slot.group_id.as_str());
    owners.all(|owner| serving.contains(owner))
}

fn is_unowned(slot: &v1::SlotAssignment) -> bool {
    slot.group_id.is_empty()
}

/// `512 slots (0-511)`, or `None` for no slots.
fn some_slots<'a>(assignments: impl Iterator<Item = &'a v1::SlotAssignment>) -> Option<String> {
    let mut count = 0;
    let mut ranges = Vec::new();
    for assignment in assignments {
        count += slot_count(assignment);
        ranges.push(range_text(assignment));
    }
    (count > 0).then(|| format!("{} ({})", plural(count, "slot"), ranges.join(",")))
}

fn servers(world: &World, cluster: &Cluster) -> Vec<Finding> {
    let primaries: BTreeMap<&str, &str> = cluster
        .servers
        .iter()
        .filter(|server| server.role() == Role::Primary)
        .map(|server| (server.group_id.as_str(), server.address.as_str()))
        .collect();
    let mut faults = Vec::new();
    for server in &cluster.servers {
        let primary = primaries.get(server.group_id.as_str()).copied();
        faults.extend(ailment(server, primary).map(|finding| Finding {
            message: finding.message + &seen_ago(probe_age(world, server)),
            ..finding
        }));
        faults.extend(
            server
                .observed
                .as_ref()
                .and_then(|o| strain(world, server, o)),
        );
    }
    faults.extend(mixed_servers(cluster));
    faults.extend(memory_skew(cluster));
    or_right(faults, Category::Servers, || {
        if cluster.servers.is_empty() {
            return "there are none yet".to_owned();
        }
        let oldest = cluster
            .servers
            .iter()
            .filter_map(|s| probe_age(world, s))
            .max();
        let sum = |field: fn(&v1::ServerObservation) -> u64| -> u64 {
            primaries_seen(cluster).map(|(_, o)| field(o)).sum()
        };
        format!(
            "all answer: {} keys, {} of memory{}",
            thousands(sum(|o| o.keys)),
            output::bytes(sum(|o| o.used_memory_bytes)),
            seen_ago(oldest)
        )
    })
}

/// How long ago the controller looked at a server.
fn probe_age(world: &World, server: &v1::Server) -> Option<Duration> {
    output::since(server.observed.as_ref()?.time.as_ref()?, world.now)
}

/// The age of what a finding rests on, where it is more than usual.
fn seen_ago(age: Option<Duration>) -> String {
    age.filter(|&age| age > PROBE_AGE_USUAL)
        .map_or(String::new(), |age| {
            format!(" (seen {} ago)", output::duration(age))
        })
}

/// What makes a server useless as what it is meant to be.
fn ailment(server: &v1::Server, primary: Option<&str>) -> Option<Finding> {
    let category = Category::Servers;
    let observed = server.observed.clone().unwrap_or_default();
    let role = role_name(server.role());
    let name = format!("{role} {} of group {}", server.address, server.group_id);
    let at = redis_cli(&server.address);
    let follow = |primary: &str| {
        let (host, port) = host_and_port(primary);
        format!("`{at} REPLICAOF {host} {port}`")
    };
    match (health(server), server.role()) {
        (Health::Up, Role::Replica) => {
            let primary = primary.filter(|&p| p != observed.primary_address)?;
            Some(warning(
                category,
                format!("{name} follows {}, not {primary}", observed.primary_address),
                format!(
                    "unless that is another name of the same server: {}",
                    follow(primary)
                ),
            ))
        }
        (Health::Up, Role::Primary | Role::Unspecified) => None,
        (Health::Unknown, _) => Some(warning(
            category,
            format!("the controller has not looked at {name} yet"),
            "check again in a few seconds",
        )),
        (Health::Down, role) if observed.error.starts_with(LOGIN_REFUSED) => {
            let judge = match role {
                Role::Replica => warning,
                Role::Primary | Role::Unspecified => error,
            };
            Some(judge(
                category,
                format!("{name} {}", observed.error),
                format!(
                    "give the controller and the proxies the login of group {}, in the file of \
                     `--server-auth-file` or as SLUICE_SERVER_PASSWORD, and start them again",
                    server.group_id
                ),
            ))
        }
        (Health::Down, Role::Replica) => Some(warning(
            category,
            format!("{name} {}", observed.error),
            format!(
                "start it again, or `sluice server remove {}` if it is gone for good",
                server.address
            ),
        )),
        (Health::Down, Role::Primary | Role::Unspecified) => Some(error(
            category,
            format!("{name} {}", observed.error),
            format!("requests for its slots fail until it is back: `{at} PING`, then its log"),
        )),
        (Health::WrongRole, _) => Some(error(
            category,
            format!("{name} says it is a {}", role_name(observed.role())),
            match (server.role(), primary) {
                (Role::Replica, Some(primary)) => follow(primary),
                _ => format!("if it is to be the primary: `{at} REPLICAOF NO ONE`"),
            },
        )),
        (Health::LinkDown, _) => Some(warning(
            category,
            format!("{name} has lost its link to {}", observed.primary_address),
            format!("`{at} INFO replication`, then the log of both"),
        )),
    }
}

/// What a server that answers may suffer from; and an answer too old to go by.
fn strain(world: &World, server: &v1::Server, observed: &v1::ServerObservation) -> Option<Finding> {
    let age = probe_age(world, server)?;
    if age > PROBE_AGE_MAX {
        return Some(warning(
            Category::Servers,
            format!(
                "the controller looked at {} {} ago for the last time",
                server.address,
                output::duration(age)
            ),
            "read the controller's log; compare the clocks of its machine and this one",
        ));
    }
    let latency = Duration::from_micros(observed.latency_us);
    (observed.reachable && latency > LATENCY_MAX).then(|| {
        warning(
            Category::Servers,
            format!(
                "{} took {} ms to answer a probe",
                server.address,
                latency.as_millis()
            ),
            format!(
                "`{} SLOWLOG GET 10` shows slow commands",
                redis_cli(&server.address)
            ),
        )
    })
}

/// Servers of a group should be able to take over from each other.
fn mixed_servers(cluster: &Cluster) -> Vec<Finding> {
    let mut versions: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for server in &cluster.servers {
        if let Some(observed) = server.observed.as_ref().filter(|o| o.reachable) {
            let version = format!("{} {}", observed.flavor, observed.version);
            versions
                .entry(&server.group_id)
                .or_default()
                .insert(version);
        }
    }
    versions
        .into_iter()
        .filter(|(_, versions)| versions.len() > 1)
        .map(|(group, versions)| {
            warning(
                Category::Servers,
                format!("group {group} mixes {}", join(versions)),
                "run one version in a group: a replica may fail to read a newer primary's data",
            )
        })
        .collect()
}

fn memory_skew(cluster: &Cluster) -> Option<Finding> {
    let (fullest, most) = primaries_seen(cluster)
        .map(|(server, observed)| (server, observed.used_memory_bytes))
        .max_by_key(|&(_, bytes)| bytes)?;
    let count = primaries_seen(cluster).count() as u64;
    let total: u64 = primaries_seen(cluster)
        .map(|(_, observed)| observed.used_memory_bytes)
        .fold(0, u64::saturating_add);
    let mean = total / count;
    (most >= MEMORY_SKEW_FROM_BYTES && most > mean.saturating_mul(MEMORY_SKEW_MAX)).then(|| {
        warning(
            Category::Servers,
            format!(
                "{} of group {} holds {}, the mean of all primaries is {}",
                fullest.address,
                fullest.group_id,
                output::bytes(most),
                output::bytes(mean)
            ),
            format!(
                "look for big keys: `{} --bigkeys`; compare its slots: `sluice group list`",
                redis_cli(&fullest.address)
            ),
        )
    })
}

fn primaries_seen(
    cluster: &Cluster,
) -> impl Iterator<Item = (&v1::Server, &v1::ServerObservation)> {
    cluster.servers.iter().filter_map(|server| {
        let observed = server.observed.as_ref()?;
        (server.role() == Role::Primary && observed.reachable).then_some((server, observed))
    })
}

fn proxies(world: &World, cluster: &Cluster) -> Vec<Finding> {
    let mut faults = Vec::new();
    if !cluster.proxies.iter().any(|proxy| proxy.connected) {
        faults.push(error(
            Category::Proxies,
            "no proxy is connected: clients may have nothing to connect to".to_owned(),
            format!("`sluice-proxy --id p1 --controller {}`", world.endpoint),
        ));
    }
    for proxy in &cluster.proxies {
        faults.extend(proxy_fault(proxy, cluster.version, world.now));
    }
    faults.extend(mixed_proxies(cluster));
    or_right(faults, Category::Proxies, || {
        let version = cluster.version.map(|v| v.to_string()).unwrap_or_default();
        match cluster.proxies.len() {
            1 => format!("1 proxy routes by the newest topology, {version}"),
            count => format!("{count} proxies route by the newest topology, {version}"),
        }
    })
}

fn proxy_fault(proxy: &v1::Proxy, newest: Option<Version>, now: SystemTime) -> Option<Finding> {
    let category = Category::Proxies;
    let id = &proxy.id;
    if !proxy.connected {
        let seen = output::age(proxy.last_seen.as_ref(), now);
        return Some(warning(
            category,
            format!(
                "{id} ({}) is not connected; heard last: {seen}",
                proxy.address
            ),
            format!(
                "if it runs, it serves by an old topology: read its log; if it is gone for good: \
                 `sluice proxy remove {id}`"
            ),
        ));
    }
    if !proxy.nack_reason.is_empty() {
        return Some(error(
            category,
            format!("{id} refuses the topology: {}", proxy.nack_reason),
            format!(
                "compare its version with the controller's (`sluice proxy get {id}`), restart it"
            ),
        ));
    }
    let acked = proxy.acked_version.as_ref().map(Version::from);
    let newest = newest.filter(|&newest| acked.is_none_or(|acked| acked < newest))?;
    Some(warning(
        category,
        match acked {
            Some(acked) => format!("{id} routes by topology {acked}, the newest is {newest}"),
            None => format!("{id} has no topology yet, the newest is {newest}"),
        },
        format!("check again in a few seconds; if this stays, restart {id}"),
    ))
}

fn mixed_proxies(cluster: &Cluster) -> Option<Finding> {
    let mut versions: BTreeSet<String> = cluster
        .proxies
        .iter()
        .filter(|proxy| proxy.connected)
        .map(|proxy| proxy.build_version.clone())
        .collect();
    versions.insert(cluster.about.controller_version.clone());
    (versions.len() > 1).then(|| {
        warning(
            Category::Proxies,
            format!("proxies and controller are of versions {}", join(versions)),
            "update the older ones; a proxy that gets SIGTERM finishes what is in flight",
        )
    })
}

fn join(texts: BTreeSet<String>) -> String {
    Vec::from_iter(texts).join(", ")
}

/// How to talk to a server by hand.
fn redis_cli(address: &str) -> String {
    let (host, port) = host_and_port(address);
    format!("redis-cli -h {host} -p {port}")
}

fn host_and_port(address: &str) -> (&str, &str) {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "6379"));
    (host.trim_matches(['[', ']']), port)
}

#[cfg(test)]
mod tests;
