//! Every number the proxy counts, its name and its meaning.
//!
//! Workers count into cells of their own: each has one writer, so that counting is a plain load and
//! store, and whoever reads adds the workers up. Nothing here is ever waited for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::{Registry, Unit},
};
use proto::{ProxyId, Version};
use tokio::sync::watch;

/// A count that one thread writes and any thread reads.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Must only be called by the thread that owns it: it is no atomic addition.
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
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
    /// Pipes that are ready, as of the last tick.
    pub(crate) server_connections: AtomicU64,
}

/// All workers together.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Totals {
    pub(crate) sessions: u64,
    pub(crate) sessions_opened: u64,
    pub(crate) requests: u64,
    pub(crate) requests_local: u64,
    pub(crate) requests_split: u64,
    pub(crate) requests_held: u64,
    pub(crate) errors: u64,
    pub(crate) protocol_errors: u64,
    pub(crate) client_bytes_in: u64,
    pub(crate) client_bytes_out: u64,
    pub(crate) server_bytes_in: u64,
    pub(crate) server_bytes_out: u64,
    pub(crate) server_connections_lost: u64,
    pub(crate) server_connections: u64,
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
    pub(crate) sessions_rejected: AtomicU64,
    /// The id of the client that connected last.
    pub(crate) last_client: AtomicU64,
}

impl Proxy {
    pub(crate) fn new(id: ProxyId, max_clients: usize, workers: usize) -> Self {
        Self {
            id,
            incarnation: format!("{:032x}", fastrand::u128(..)),
            started: Instant::now(),
            max_clients,
            workers: (0..workers).map(|_| Arc::default()).collect(),
            sessions_rejected: AtomicU64::new(0),
            last_client: AtomicU64::new(0),
        }
    }

    pub(crate) fn sessions_rejected(&self) -> u64 {
        self.sessions_rejected.load(Relaxed)
    }

    /// The sums over all workers.
    pub(crate) fn totals(&self) -> Totals {
        let mut total = Totals::default();
        for worker in &self.workers {
            total.sessions += worker.sessions.load(Relaxed);
            total.sessions_opened += worker.sessions_opened.get();
            total.requests += worker.requests.get();
            total.requests_local += worker.requests_local.get();
            total.requests_split += worker.requests_split.get();
            total.requests_held += worker.requests_held.get();
            total.errors += worker.errors.get();
            total.protocol_errors += worker.protocol_errors.get();
            total.client_bytes_in += worker.client_bytes_in.get();
            total.client_bytes_out += worker.client_bytes_out.get();
            total.server_bytes_in += worker.server_bytes_in.get();
            total.server_bytes_out += worker.server_bytes_out.get();
            total.server_connections_lost += worker.server_connections_lost.get();
            total.server_connections += worker.server_connections.load(Relaxed);
        }
        total
    }
}

/// Reads all counts when they are asked for.
#[derive(Debug)]
struct Counts {
    proxy: Arc<Proxy>,
    applied: watch::Receiver<Option<Version>>,
}

impl Collector for Counts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let t = self.proxy.totals();
        let version = *self.applied.borrow();
        let rejected = self.proxy.sessions_rejected();
        for (name, help, unit, value) in [
            (
                "sessions_opened",
                "Client connections accepted",
                None,
                t.sessions_opened,
            ),
            (
                "sessions_rejected",
                "Client connections refused for --max-clients",
                None,
                rejected,
            ),
            ("requests", "Requests taken from clients", None, t.requests),
            (
                "requests_local",
                "Requests the proxy answered itself",
                None,
                t.requests_local,
            ),
            (
                "requests_split",
                "Requests split over several groups",
                None,
                t.requests_split,
            ),
            (
                "requests_held",
                "Times a request waited for a held slot",
                None,
                t.requests_held,
            ),
            ("errors", "Error replies sent to clients", None, t.errors),
            (
                "protocol_errors",
                "Clients that did not speak RESP",
                None,
                t.protocol_errors,
            ),
            (
                "client_in",
                "Received from clients",
                Some(Unit::Bytes),
                t.client_bytes_in,
            ),
            (
                "client_out",
                "Sent to clients",
                Some(Unit::Bytes),
                t.client_bytes_out,
            ),
            (
                "server_in",
                "Received from servers",
                Some(Unit::Bytes),
                t.server_bytes_in,
            ),
            (
                "server_out",
                "Sent to servers",
                Some(Unit::Bytes),
                t.server_bytes_out,
            ),
            (
                "server_connections_lost",
                "Connections to servers that broke",
                None,
                t.server_connections_lost,
            ),
        ] {
            let counter = ConstCounter::new(value);
            let metric =
                encoder.encode_descriptor(name, help, unit.as_ref(), counter.metric_type())?;
            counter.encode(metric)?;
        }
        for (name, help, value) in [
            ("sessions", "Client connections open", t.sessions),
            (
                "server_connections",
                "Connections to servers that are ready",
                t.server_connections,
            ),
            ("workers", "Data threads", self.proxy.workers.len() as u64),
            (
                "topology_term",
                "Leader term routed by; 0: none",
                version.map_or(0, |v| v.leader_term),
            ),
            (
                "topology_epoch",
                "Epoch routed by; 0: none",
                version.map_or(0, |v| v.epoch),
            ),
        ] {
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}

/// Everything `/metrics` shows.
pub(crate) fn registry(proxy: Arc<Proxy>, applied: watch::Receiver<Option<Version>>) -> Registry {
    let mut registry = Registry::with_prefix("sluice_proxy");
    let labels = [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("proxy", proxy.id.to_string()),
    ];
    registry.register("build", "What this process is", Info::new(labels.to_vec()));
    registry.register_collector(Box::new(Counts { proxy, applied }));
    registry
}
