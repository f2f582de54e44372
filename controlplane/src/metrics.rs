//! Every metric of the controller, under `sluice_controller_`.
//!
//! Labels are bounded: no ids, no addresses. Counters are counted where it happens; levels are set
//! when somebody asks, from what is known then.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use proto::identity::{CertificateMetrics, Identity};
use tonic::Code;

use crate::{calls::Class, events::Kind};

/// What became of a commit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, EncodeLabelValue)]
pub enum CommitResult {
    /// It is durable.
    Committed,
    /// The decision was no.
    Refused,
    /// The disk failed.
    Failed,
}

/// How a probe ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, EncodeLabelValue)]
pub enum ProbeOutcome {
    /// It answered.
    Ok,
    /// It did not.
    Unreachable,
    /// It refused the credentials.
    AuthFailed,
    /// It is no Redis.
    NotRedis,
}

/// What is so now. Set when the metrics are read.
#[derive(Clone, Copy, Default, Debug)]
pub struct Levels {
    /// The store's revision.
    pub revision: u64,
    /// The leader term.
    pub leader_term: u64,
    /// Groups there are.
    pub groups: usize,
    /// Servers of all groups.
    pub servers: usize,
    /// Servers that did not answer their last probe.
    pub servers_unreachable: usize,
    /// Slots without an owner.
    pub slots_unowned: usize,
    /// Proxies that are connected.
    pub proxies_connected: usize,
    /// Connected proxies that did not acknowledge the newest topology.
    pub proxies_behind: usize,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ResultLabel {
    result: CommitResult,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: ProbeOutcome,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct KindLabel {
    reason: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct GrpcLabel {
    method: String,
    code: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct MethodLabel {
    method: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ClassLabel {
    class: Class,
}

type Level = Gauge<u64, AtomicU64>;

/// Cheap to clone; all clones count together.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    commits: Family<ResultLabel, Counter>,
    commit_duration: Histogram,
    events: Family<KindLabel, Counter>,
    probes: Family<OutcomeLabel, Counter>,
    requests: Family<GrpcLabel, Counter>,
    request_duration: Family<MethodLabel, Histogram, fn() -> Histogram>,
    calls_shed: Family<ClassLabel, Counter>,
    mirrors_rebuilt: Counter,
    mirrors_failed: Counter,
    stores_refused: Counter,
    connections_refused: Counter,
    levels: [Level; 8],
}

impl Metrics {
    /// All at zero.
    #[allow(clippy::new_without_default)] // two sets of metrics are no sensible default
    pub fn new() -> Self {
        Self::with_certificates(Vec::new())
    }

    /// The same, and they show of the certificates of these when they end.
    pub fn with_certificates(identities: Vec<Arc<Identity>>) -> Self {
        let mut registry = Registry::with_prefix("sluice_controller");
        registry.register_collector(Box::new(CertificateMetrics(identities)));
        let commits = Family::default();
        let commit_duration = durations();
        let events = Family::default();
        let probes = Family::default();
        let requests = Family::default();
        registry.register("commits", "Commits by result", commits.clone());
        registry.register_with_unit(
            "commit_duration",
            "Time a commit takes to be durable",
            Unit::Seconds,
            commit_duration.clone(),
        );
        registry.register("events", "Events by reason", events.clone());
        registry.register("probes", "Probes of servers by outcome", probes.clone());
        registry.register(
            "grpc_requests",
            "gRPC calls by method and code; a stream counts when it is opened",
            requests.clone(),
        );
        let request_duration = Family::new_with_constructor(durations as fn() -> Histogram);
        registry.register_with_unit(
            "grpc_request_duration",
            "Time a gRPC call takes; a stream, until it is open",
            Unit::Seconds,
            request_duration.clone(),
        );
        let calls_shed = Family::default();
        registry.register(
            "calls_shed",
            "gRPC calls refused because too many of their class were under way",
            calls_shed.clone(),
        );
        let mirrors_rebuilt = Counter::default();
        registry.register(
            "mirrors_rebuilt",
            "Mirrors that were of no use and made anew",
            mirrors_rebuilt.clone(),
        );
        let mirrors_failed = Counter::default();
        registry.register(
            "mirrors_failed",
            "Times that the mirror could not be opened or written: there is none until it can",
            mirrors_failed.clone(),
        );
        let stores_refused = Counter::default();
        registry.register(
            "stores_refused",
            "Times that what ZooKeeper has was refused: older than what was known, foreign or damaged",
            stores_refused.clone(),
        );
        let connections_refused = Counter::default();
        registry.register(
            "grpc_connections_refused",
            "Connections to gRPC that were refused in their TLS handshake",
            connections_refused.clone(),
        );
        let mut level = |name: &str, help: &str| {
            let gauge = Level::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let levels = [
            level("revision", "The store's revision"),
            level("leader_term", "The leader term"),
            level("groups", "Groups"),
            level("servers", "Servers of all groups"),
            level(
                "servers_unreachable",
                "Servers that did not answer their last probe",
            ),
            level("slots_unowned", "Slots that no group owns"),
            level("proxies_connected", "Connected proxies"),
            level(
                "proxies_behind",
                "Connected proxies that did not acknowledge the newest topology",
            ),
        ];
        Self(Arc::new(Inner {
            registry,
            commits,
            commit_duration,
            events,
            probes,
            requests,
            request_duration,
            calls_shed,
            mirrors_rebuilt,
            mirrors_failed,
            stores_refused,
            connections_refused,
            levels,
        }))
    }

    /// Counts a commit.
    pub fn committed(&self, result: CommitResult) {
        self.0.commits.get_or_create(&ResultLabel { result }).inc();
    }

    /// Counts a mirror that was made anew.
    pub fn mirror_rebuilt(&self) {
        self.0.mirrors_rebuilt.inc();
    }

    /// Counts an attempt at a mirror that failed.
    pub fn mirror_failed(&self) {
        self.0.mirrors_failed.inc();
    }

    /// Counts a ZooKeeper that was refused.
    pub fn store_refused(&self) {
        self.0.stores_refused.inc();
    }

    /// Counts a connection that was refused in its handshake.
    pub fn connection_refused(&self) {
        self.0.connections_refused.inc();
    }

    /// Observes how long a commit took.
    pub fn commit_took(&self, time: Duration) {
        self.0.commit_duration.observe(time.as_secs_f64());
    }

    /// Counts an event.
    pub fn event(&self, kind: Kind) {
        let reason = kind.to_string();
        self.0.events.get_or_create(&KindLabel { reason }).inc();
    }

    /// Counts a probe.
    pub fn probed(&self, outcome: ProbeOutcome) {
        self.0.probes.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// Everything, in the OpenMetrics text format.
    pub fn render(&self, now: Levels) -> String {
        let values = [
            now.revision,
            now.leader_term,
            now.groups as u64,
            now.servers as u64,
            now.servers_unreachable as u64,
            now.slots_unowned as u64,
            now.proxies_connected as u64,
            now.proxies_behind as u64,
        ];
        for (level, value) in self.0.levels.iter().zip(values) {
            level.set(value);
        }
        let mut text = String::new();
        encode(&mut text, &self.0.registry).expect("a String takes all that is written to it");
        text
    }

    /// Counts a gRPC call by its path.
    pub fn answered(&self, path: &str, code: Code, took: Duration) {
        // The path of a method that is not there is the caller's invention: no label.
        let method = match code {
            Code::Unimplemented => "unknown",
            _ => path.trim_start_matches('/'),
        };
        let timed = MethodLabel {
            method: method.to_owned(),
        };
        let counted = GrpcLabel {
            method: method.to_owned(),
            code: format!("{code:?}"),
        };
        self.0.requests.get_or_create(&counted).inc();
        let durations = self.0.request_duration.get_or_create(&timed);
        durations.observe(took.as_secs_f64());
    }

    /// Counts a gRPC call for which there was no room.
    pub fn shed(&self, class: Class) {
        self.0.calls_shed.get_or_create(&ClassLabel { class }).inc();
    }
}

/// From a quarter of a millisecond to two seconds.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 14))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_are_as_promised() {
        let metrics = Metrics::new();
        metrics.committed(CommitResult::Committed);
        metrics.commit_took(Duration::from_millis(1));
        metrics.event(Kind::GroupCreated);
        metrics.probed(ProbeOutcome::AuthFailed);
        metrics.shed(Class::Watch);
        let took = Duration::from_millis(1);
        metrics.answered("/sluice.v1.AdminService/GetCluster", Code::Ok, took);
        metrics.answered("/made/up", Code::Unimplemented, took);
        let text = metrics.render(Levels {
            revision: 7,
            proxies_behind: 2,
            ..Levels::default()
        });
        for line in [
            "sluice_controller_commits_total{result=\"Committed\"} 1",
            "sluice_controller_commit_duration_seconds_count 1",
            "sluice_controller_events_total{reason=\"GroupCreated\"} 1",
            "sluice_controller_probes_total{outcome=\"AuthFailed\"} 1",
            "method=\"sluice.v1.AdminService/GetCluster\",code=\"Ok\"} 1",
            "method=\"unknown\",code=\"Unimplemented\"} 1",
            "grpc_request_duration_seconds_count{method=\"unknown\"} 1",
            "sluice_controller_calls_shed_total{class=\"Watch\"} 1",
            "sluice_controller_revision 7",
            "sluice_controller_proxies_behind 2",
        ] {
            assert!(text.contains(line), "no `{line}` in\n{text}");
        }
    }
}
