//! Every number the proxy counts, its name and its meaning.
//!
//! Workers count into cells of their own: each has one writer, so that counting is a plain load and
//! store, and whoever reads adds the workers up. Nothing here is ever waited for.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder, NoLabelSet},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::{Registry, Unit},
};
use proto::{
    ProxyId, ServerAddr, Version,
    identity::{CertificateMetrics, Identity},
};
use tokio::sync::watch;

use crate::{
    command::Kind, config::OnRestart, memory::Memory, pubsub::census::Census, scripts::Scripts,
};

/// A count that one thread writes and any thread reads.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Must only be called by the thread that owns it: it is no atomic addition.
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How long requests took, by powers of two.
#[derive(Debug, Default)]
pub(crate) struct Latency {
    buckets: [Counter; Self::BOUNDS + 1],
    sum_us: Counter,
}

impl Latency {
    /// Bounds there are: 64 µs, 128 µs … 8.4 s.
    const BOUNDS: usize = 18;
    /// The first bound is 2 to the power of this, in microseconds.
    const FIRST: u32 = 6;

    /// Counts a request. As [`Counter::add`], for one thread only.
    #[inline]
    pub(crate) fn record(&self, micros: u32) {
        let bucket = u32::BITS - (micros >> Self::FIRST).leading_zeros();
        self.buckets[(bucket as usize).min(Self::BOUNDS)].add(1);
        self.sum_us.add(micros.into());
    }
}

/// Several [`Latency`] added up, as Prometheus wants them.
#[derive(Default)]
struct Histogram {
    buckets: [u64; Latency::BOUNDS + 1],
    sum_us: u64,
}

impl Histogram {
    fn add(&mut self, latency: &Latency) {
        for (sum, counter) in self.buckets.iter_mut().zip(&latency.buckets) {
            *sum += counter.get();
        }
        self.sum_us += latency.sum_us.get();
    }

    fn encode(
        &self,
        encoder: &mut MetricEncoder<'_>,
        labels: &[(&str, &str)],
    ) -> Result<(), std::fmt::Error> {
        let bound = |index: usize| match index {
            Latency::BOUNDS => f64::INFINITY,
            _ => (1u64 << (Latency::FIRST as usize + index)) as f64 / 1e6,
        };
        let buckets: Vec<(f64, u64)> = (0..)
            .zip(self.buckets)
            .map(|(index, count)| (bound(index), count))
            .collect();
        let count = self.buckets.iter().sum();
        let sum = self.sum_us as f64 / 1e6;
        encoder
            .encode_family(&labels)?
            .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}

/// What one worker counts of one server.
#[derive(Debug, Default)]
pub(crate) struct ServerStats {
    /// From when a request was taken to its reply, over all kinds.
    pub(crate) latency: Latency,
    pub(crate) connections_lost: Counter,
}

/// What one worker counts.
#[derive(Debug, Default)]
pub(crate) struct WorkerStats {
    /// Client connections open; counted up by the acceptor, down by the worker.
    pub(crate) sessions: AtomicU64,
    pub(crate) sessions_opened: Counter,
    /// Requests taken from clients.
    pub(crate) requests: Counter,
    /// Of these, answered by the proxy itself.
    pub(crate) requests_local: Counter,
    /// Of these, split over several groups.
    pub(crate) requests_split: Counter,
    /// Times a request had to wait because its slot was held.
    pub(crate) requests_held: Counter,
    /// Error replies sent to clients, the servers' and the proxy's.
    pub(crate) errors: Counter,
    pub(crate) protocol_errors: Counter,
    pub(crate) client_bytes_in: Counter,
    pub(crate) client_bytes_out: Counter,
    pub(crate) server_bytes_in: Counter,
    pub(crate) server_bytes_out: Counter,
    pub(crate) server_connections_lost: Counter,
    /// Connections that were opened and not used, for the server's fence record.
    pub(crate) connections_refused: Counter,
    /// Requests that may have made a server's connection wait.
    pub(crate) requests_blocking: Counter,
    /// Requests refused because there were no more leases.
    pub(crate) leases_refused: Counter,
    /// Requests too large to be held, that went to their server as they came.
    pub(crate) uploads: Counter,
    /// Messages to clients that what they hold has changed.
    pub(crate) invalidations: Counter,
    /// Clients closed because of memory, of replies or messages not taken, or of silence.
    pub(crate) sessions_closed_memory: Counter,
    pub(crate) sessions_closed_stalled: Counter,
    pub(crate) sessions_closed_overrun: Counter,
    pub(crate) sessions_closed_idle: Counter,
    /// Messages of subscriptions brought to sessions.
    pub(crate) messages: Counter,
    /// Sessions that ended by a panic.
    pub(crate) panics: Counter,
    /// By [`crate::command::Kind`]: from when a request was taken to its reply.
    pub(crate) latency: [Latency; Kind::NAMES.len()],
    /// Leases that there are, as of the last tick.
    pub(crate) leases: AtomicU64,
    /// Pipes that are ready, as of the last tick.
    pub(crate) server_connections: AtomicU64,
    /// Clients that wait for the end of a pause, as of the last tick.
    pub(crate) paused: AtomicU64,
    /// Sessions that track, and keys they may hold, likewise.
    pub(crate) tracking_sessions: AtomicU64,
    pub(crate) tracking_keys: AtomicU64,
}

/// All workers together: what the controller is told, and `INFO` says.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Totals {
    pub(crate) sessions: u64,
    pub(crate) sessions_opened: u64,
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) client_bytes_in: u64,
    pub(crate) client_bytes_out: u64,
    pub(crate) server_connections: u64,
    pub(crate) connections_refused: u64,
    pub(crate) paused: u64,
    pub(crate) tracking_sessions: u64,
    pub(crate) tracking_keys: u64,
    pub(crate) leases: u64,
}

/// The process: what it is, and what it counts.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) id: ProxyId,
    /// Chosen at random by this process; 32 hexadecimal digits.
    pub(crate) incarnation: String,
    pub(crate) started: Instant,
    pub(crate) max_clients: usize,
    pub(crate) workers: Vec<Arc<WorkerStats>>,
    /// Of each server in the topology, what each worker counts. Locked when a topology is applied and
    /// when the counts are read, never for a request.
    servers: Mutex<BTreeMap<ServerAddr, Vec<Arc<ServerStats>>>>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) census: Arc<Census>,
    pub(crate) scripts: Scripts,
    pub(crate) sessions_rejected: AtomicU64,
    /// A controller sends topologies now.
    pub(crate) is_subscribed: AtomicBool,
    /// See [`crate::config::Args::on_restart_without_leader`].
    on_restart: OnRestart,
    /// The id of the client that connected last.
    pub(crate) last_client: AtomicU64,
}

impl Proxy {
    pub(crate) fn new(
        id: ProxyId,
        max_clients: usize,
        workers: usize,
        on_restart: OnRestart,
        memory: Memory,
    ) -> Self {
        let memory = Arc::new(memory);
        Self {
            id,
            incarnation: format!("{:032x}", fastrand::u128(..)),
            started: Instant::now(),
            max_clients,
            workers: (0..workers).map(|_| Arc::default()).collect(),
            servers: Mutex::default(),
            scripts: Scripts::new(Arc::clone(&memory)),
            memory,
            census: Arc::default(),
            sessions_rejected: AtomicU64::new(0),
            is_subscribed: AtomicBool::new(false),
            on_restart,
            last_client: AtomicU64::new(0),
        }
    }

    /// Whether a server that has restarted may be used before a leader has admitted it again.
    pub(crate) fn trusts_restarted(&self) -> bool {
        match self.on_restart {
            OnRestart::Refuse => false,
            OnRestart::Trust => !self.is_subscribed.load(Relaxed),
        }
    }

    pub(crate) fn sessions_rejected(&self) -> u64 {
        self.sessions_rejected.load(Relaxed)
    }

    /// A worker has a new server; what it counts of it goes there, until [`Proxy::leave`].
    pub(crate) fn meet(&self, server: &ServerAddr) -> Arc<ServerStats> {
        let stats = Arc::new(ServerStats::default());
        let mut servers = self.servers();
        let of_workers = servers.entry(server.clone()).or_default();
        of_workers.push(Arc::clone(&stats));
        stats
    }

    /// A worker's server has left the topology: it is no longer shown.
    pub(crate) fn leave(&self, server: &ServerAddr, stats: &Arc<ServerStats>) {
        let mut servers = self.servers();
        if let Some(of_workers) = servers.get_mut(server) {
            of_workers.retain(|other| !Arc::ptr_eq(other, stats));
            if of_workers.is_empty() {
                servers.remove(server);
            }
        }
    }

    fn servers(&self) -> MutexGuard<'_, BTreeMap<ServerAddr, Vec<Arc<ServerStats>>>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sum(&self, counter: impl Fn(&WorkerStats) -> &Counter) -> u64 {
        self.workers
            .iter()
            .map(|worker| counter(worker).get())
            .sum()
    }

    /// The sums over all workers.
    pub(crate) fn totals(&self) -> Totals {
        let gauge = |of: fn(&WorkerStats) -> &AtomicU64| {
            self.workers
                .iter()
                .map(|worker| of(worker).load(Relaxed))
                .sum()
        };
        Totals {
            sessions: gauge(|worker| &worker.sessions),
            sessions_opened: self.sum(|worker| &worker.sessions_opened),
            requests: self.sum(|worker| &worker.requests),
            errors: self.sum(|worker| &worker.errors),
            client_bytes_in: self.sum(|worker| &worker.client_bytes_in),
            client_bytes_out: self.sum(|worker| &worker.client_bytes_out),
            server_connections: gauge(|worker| &worker.server_connections),
            connections_refused: self.sum(|worker| &worker.connections_refused),
            paused: gauge(|worker| &worker.paused),
            tracking_sessions: gauge(|worker| &worker.tracking_sessions),
            tracking_keys: gauge(|worker| &worker.tracking_keys),
            leases: gauge(|worker| &worker.leases),
        }
    }
}

/// A counter of a worker: its name, what it counts, in what unit, and where it is.
type Row = (
    &'static str,
    &'static str,
    Option<Unit>,
    fn(&WorkerStats) -> &Counter,
);

#[rustfmt::skip]
const COUNTERS: &[Row] = &[
    ("sessions_opened", "Client connections accepted", None, |w| &w.sessions_opened),
    ("sessions_closed_memory", "Clients closed because the proxy was near --max-memory", None, |w| &w.sessions_closed_memory),
    ("sessions_closed_stalled", "Clients closed for --stall-timeout or --reply-patience", None, |w| &w.sessions_closed_stalled),
    ("sessions_closed_overrun", "Clients closed because more than --output-limit of messages waited for them", None, |w| &w.sessions_closed_overrun),
    ("sessions_closed_idle", "Clients closed for --client-timeout", None, |w| &w.sessions_closed_idle),
    ("requests", "Requests taken from clients", None, |w| &w.requests),
    ("requests_local", "Requests the proxy answered itself", None, |w| &w.requests_local),
    ("requests_split", "Requests split over several groups", None, |w| &w.requests_split),
    ("requests_held", "Times a request waited for a held slot", None, |w| &w.requests_held),
    ("invalidations", "Messages to clients that what they hold has changed", None, |w| &w.invalidations),
    ("requests_blocking", "Requests that may wait at their server", None, |w| &w.requests_blocking),
    ("leases_refused", "Requests refused for --max-leases", None, |w| &w.leases_refused),
    ("uploads", "Requests too large to be held, sent to their server as they came", None, |w| &w.uploads),
    ("messages", "Messages of subscriptions brought to clients", None, |w| &w.messages),
    ("errors", "Error replies sent to clients", None, |w| &w.errors),
    ("protocol_errors", "Clients that did not speak RESP", None, |w| &w.protocol_errors),
    ("panics", "Sessions that ended by a fault of the proxy", None, |w| &w.panics),
    ("client_in", "Received from clients", Some(Unit::Bytes), |w| &w.client_bytes_in),
    ("client_out", "Sent to clients", Some(Unit::Bytes), |w| &w.client_bytes_out),
    ("server_in", "Received from servers", Some(Unit::Bytes), |w| &w.server_bytes_in),
    ("server_out", "Sent to servers", Some(Unit::Bytes), |w| &w.server_bytes_out),
    ("server_connections_refused", "Connections not used because of the server's fence record", None, |w| &w.connections_refused),
    ("server_connections_lost", "Connections to servers that broke", None, |w| &w.server_connections_lost),
];

/// Reads all counts when they are asked for.
#[derive(Debug)]
struct Counts {
    proxy: Arc<Proxy>,
    applied: watch::Receiver<Option<Version>>,
}

impl Collector for Counts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let rejected = self.proxy.sessions_rejected();
        let rows = COUNTERS.iter().map(|(name, help, unit, counter)| {
            (*name, *help, unit.as_ref(), self.proxy.sum(counter))
        });
        let help = "Client connections refused for --max-clients";
        for (name, help, unit, value) in rows.chain([("sessions_rejected", help, None, rejected)]) {
            let counter = ConstCounter::new(value);
            let metric = encoder.encode_descriptor(name, help, unit, counter.metric_type())?;
            counter.encode(metric)?;
        }
        self.encode_gauges(&mut encoder)?;
        self.encode_latencies(&mut encoder)?;
        self.encode_servers(&mut encoder)
    }
}

impl Counts {
    fn encode_gauges(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let t = self.proxy.totals();
        let version = *self.applied.borrow();
        let (term, epoch) = version.map_or((0, 0), |v| (v.leader_term, v.epoch));
        let memory = &self.proxy.memory;
        let bytes = Some(Unit::Bytes);
        for (name, help, unit, value) in [
            ("sessions", "Client connections open", None, t.sessions),
            (
                "server_connections",
                "Connections to servers that are ready",
                None,
                t.server_connections,
            ),
            (
                "subscriptions",
                "Channels and patterns that clients are subscribed to, over all clients",
                None,
                self.proxy.census.subscriptions() as u64,
            ),
            (
                "tracking_sessions",
                "Client connections that are told of changes",
                None,
                t.tracking_sessions,
            ),
            (
                "tracking_keys",
                "Keys that those may hold, each once for each",
                None,
                t.tracking_keys,
            ),
            (
                "leases",
                "Connections to servers that one client has for itself, or had",
                None,
                t.leases,
            ),
            (
                "workers",
                "Data threads",
                None,
                self.proxy.workers.len() as u64,
            ),
            (
                "memory_held",
                "Memory counted against --max-memory",
                bytes.as_ref(),
                memory.held() as u64,
            ),
            (
                "memory_limit",
                "What --max-memory says",
                bytes.as_ref(),
                memory.limit() as u64,
            ),
            (
                "topology_term",
                "Leader term routed by; 0: none",
                None,
                term,
            ),
            ("topology_epoch", "Epoch routed by; 0: none", None, epoch),
        ] {
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, unit, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }

    fn encode_latencies(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut metric = encoder.encode_descriptor(
            "request_duration",
            "From when a request was taken to its reply, by class of command",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for (index, name) in Kind::NAMES.iter().enumerate() {
            let mut histogram = Histogram::default();
            for worker in &self.proxy.workers {
                histogram.add(&worker.latency[index]);
            }
            histogram.encode(&mut metric, &[("class", *name)])?;
        }
        Ok(())
    }

    fn encode_servers(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let servers = self.proxy.servers().clone();
        let mut metric = encoder.encode_descriptor(
            "server_request_duration",
            "From when a request was taken to the reply of its server",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for (addr, of_workers) in &servers {
            let mut histogram = Histogram::default();
            for stats in of_workers {
                histogram.add(&stats.latency);
            }
            histogram.encode(&mut metric, &[("server", addr.as_str())])?;
        }
        let mut metric = encoder.encode_descriptor(
            "server_connections_broken",
            "Connections to this server that broke",
            None,
            MetricType::Counter,
        )?;
        for (addr, of_workers) in &servers {
            let lost = of_workers
                .iter()
                .map(|stats| stats.connections_lost.get())
                .sum();
            let labels = [("server", addr.as_str())];
            ConstCounter::<u64>::new(lost).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// Everything `/metrics` shows.
pub(crate) fn registry(
    proxy: Arc<Proxy>,
    applied: watch::Receiver<Option<Version>>,
    identity: Option<Arc<Identity>>,
) -> Registry {
    let mut registry = Registry::with_prefix("sluice_proxy");
    let labels = [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("proxy", proxy.id.to_string()),
    ];
    registry.register("build", "What this process is", Info::new(labels.to_vec()));
    registry.register_collector(Box::new(Counts { proxy, applied }));
    registry.register_collector(Box::new(CertificateMetrics(identity.into_iter().collect())));
    registry
}
