//! Puts the process together: binds, starts the workers, and stops all in order.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context as _;
use proto::{ProxyId, v1};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use crate::{
    admin::Admin,
    config::{Config, Source},
    control::Control,
    crew::Crew,
    error,
    memory::{Memory, Pressure},
    metrics::{Proxy, registry},
    settling::report::Report,
    socket::Listener,
    worker::{Inlet, Worker},
};

/// New connections that one worker has not taken yet, at most; beyond them the acceptor waits, and the
/// kernel's backlog fills.
const HANDOVER_MAX: usize = 1024;
/// Connections the kernel keeps for the acceptor.
const BACKLOG: i32 = 4096;

/// A proxy whose sockets are bound.
pub struct App {
    config: Config,
    clients: TcpListener,
    admin: TcpListener,
    /// Where clients connect.
    pub client_addr: SocketAddr,
    /// Where the admin HTTP is.
    pub admin_addr: SocketAddr,
}

impl App {
    /// Binds the sockets, so that what cannot be bound stops the start.
    pub fn build(mut config: Config) -> anyhow::Result<Self> {
        let descriptors = raise_descriptor_limit();
        config.serving.max_leases = leasable(&config, descriptors);
        let leases = (config.workers * config.serving.max_leases) as u64;
        config.max_clients = affordable(config.max_clients, descriptors.saturating_sub(leases))?;
        let clients =
            listen(config.listen).with_context(|| format!("listen on {}", config.listen))?;
        let admin = listen(config.admin).with_context(|| format!("listen on {}", config.admin))?;
        let (client_addr, admin_addr) = (clients.local_addr()?, admin.local_addr()?);
        if let Some(path) = &config.ports_file {
            write_ports(path, client_addr, admin_addr)
                .with_context(|| format!("write {}", path.display()))?;
        }
        Ok(Self {
            config,
            clients,
            admin,
            client_addr,
            admin_addr,
        })
    }

    /// Serves until `shutdown` completes, then drains.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        let config = self.config;
        let id = config
            .id
            .clone()
            .unwrap_or_else(|| default_id(self.client_addr));
        let memory = Memory::new(config.max_memory);
        let proxy = Arc::new(Proxy::new(
            id,
            config.max_clients,
            config.workers,
            config.on_restart,
            memory,
        ));
        let (topology_in, topology) = watch::channel(None);
        let (drain_in, drain) = watch::channel(None);
        let (switched_in, switched) = watch::channel(None);

        let serving = Arc::new(config.serving.clone());
        let mut workers = Vec::new();
        for (crew, errands) in Crew::of(config.workers) {
            let (connections_in, connections) = mpsc::channel(HANDOVER_MAX);
            let (applied_in, applied) = watch::channel(None);
            let (settled_in, settled) = watch::channel(Report::default());
            let inlet = Inlet {
                connections,
                topology: topology.clone(),
                drain: drain.clone(),
                applied: applied_in,
                settled: settled_in,
            };
            let thread = Worker::start(
                crew,
                errands,
                Arc::clone(&serving),
                Arc::clone(&proxy),
                inlet,
            )
            .context("start a worker")?;
            workers.push(Started {
                thread,
                connections: connections_in,
                applied,
                settled,
            });
        }

        let identity = match &config.source {
            Source::Controllers(controllers) => controllers.identity.clone(),
            Source::Static(_) => None,
        };
        let control = Control {
            proxy: Arc::clone(&proxy),
            hello: v1::Hello {
                proxy_id: proxy.id.to_string(),
                incarnation: proxy.incarnation.clone(),
                address: config
                    .advertise
                    .clone()
                    .unwrap_or_else(|| self.client_addr.to_string()),
                admin_address: self.admin_addr.to_string(),
                zone: config.zone.clone(),
                build_version: env!("CARGO_PKG_VERSION").to_owned(),
                ..v1::Hello::default()
            },
            topology: topology_in,
            applied: workers
                .iter()
                .map(|worker| worker.applied.clone())
                .collect(),
            switched: switched_in,
            settled: workers
                .iter()
                .map(|worker| worker.settled.clone())
                .collect(),
        };
        let admin = Admin {
            registry: Arc::new(registry(
                Arc::clone(&proxy),
                switched.clone(),
                identity.clone(),
            )),
            topology,
            switched,
            drain,
        };
        let admin = tokio::spawn(admin.run(self.admin));
        let follower = tokio::spawn(follow(control, config.source));
        let keeper = identity.map(|identity| tokio::spawn(identity.keep()));
        let doors = workers
            .iter()
            .map(|worker| worker.connections.clone())
            .collect();
        let rate = config.accept_rate;
        let acceptor = tokio::spawn(accept(self.clients, Arc::clone(&proxy), rate, doors));

        tracing::info!(
            id = %proxy.id,
            clients = %self.client_addr,
            admin = %self.admin_addr,
            workers = config.workers,
            "serving"
        );
        shutdown.await;

        tracing::info!(deadline = ?config.drain_timeout, "draining");
        drain_in.send_replace(Some(Instant::now() + config.drain_timeout));
        acceptor.abort();
        let threads: Vec<_> = workers.into_iter().map(|worker| worker.thread).collect();
        let patience = config.drain_timeout + Duration::from_secs(1);
        join(threads, patience).await?;
        follower.abort();
        if let Some(keeper) = keeper {
            keeper.abort();
        }
        admin.abort();
        Ok(())
    }
}

struct Started {
    thread: JoinHandle<()>,
    connections: mpsc::Sender<(TcpStream, SocketAddr)>,
    applied: watch::Receiver<Option<proto::Version>>,
    settled: watch::Receiver<Report>,
}

/// Brings the topology: from the controllers for ever, or once from the file.
async fn follow(control: Control, source: Source) {
    match source {
        Source::Controllers(controllers) => control.run(controllers).await,
        Source::Static(topology) => {
            if let Err(e) = control.publish(*topology).await {
                tracing::error!(error = %e, "cannot serve the file's topology");
            }
            std::future::pending::<()>().await;
        }
    }
}

async fn join(threads: Vec<JoinHandle<()>>, patience: Duration) -> anyhow::Result<()> {
    let joined = tokio::task::spawn_blocking(move || {
        threads
            .into_iter()
            .map(JoinHandle::join)
            .filter(Result::is_err)
            .count()
    });
    match tokio::time::timeout(patience, joined).await {
        Ok(Ok(0)) => Ok(()),
        Ok(_) => anyhow::bail!("a worker died"),
        Err(_) => anyhow::bail!("a worker did not end in time"),
    }
}

/// Hands each new connection to the worker with the fewest.
async fn accept(
    listener: TcpListener,
    proxy: Arc<Proxy>,
    rate: u32,
    doors: Vec<mpsc::Sender<(TcpStream, SocketAddr)>>,
) {
    let listener = match Listener::new(listener) {
        Ok(listener) => listener,
        Err(e) => return tracing::error!(error = %e, "cannot accept clients"),
    };
    let mut allowance = Allowance::new(rate, Instant::now());
    let mut full = false;
    let mut turn = 0;
    loop {
        // Whoever is not accepted waits in the kernel's backlog.
        if proxy.memory.pressure() != Pressure::None {
            tokio::time::sleep(BREATH).await;
            continue;
        }
        if let Some(wait) = allowance.take(Instant::now()) {
            tokio::time::sleep(wait).await;
            continue;
        }
        match listener.accept().await {
            Ok((stream, peer)) => {
                full = false;
                if prepare(&stream).is_err() {
                    continue; // gone already
                }
                let sessions: Vec<u64> = proxy
                    .workers
                    .iter()
                    .map(|worker| worker.sessions.load(Relaxed))
                    .collect();
                if sessions.iter().sum::<u64>() >= proxy.max_clients as u64 {
                    proxy.sessions_rejected.fetch_add(1, Relaxed);
                    refuse(&stream);
                    continue;
                }
                turn += 1;
                let chosen = fewest(&sessions, turn);
                proxy.workers[chosen].sessions.fetch_add(1, Relaxed);
                if doors[chosen].send((stream, peer)).await.is_err() {
                    return; // the worker has ended: the proxy stops
                }
            }
            Err(e) => {
                // Out of descriptors, mostly: whoever waits is accepted once there are some.
                if !std::mem::replace(&mut full, true) {
                    tracing::warn!(error = %e, "cannot accept clients for now");
                }
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}

/// Bytes for one client that the kernel keeps beyond those on their way.
const UNSENT: u32 = 128 * 1024;
/// How long the acceptor pauses when there is no room for a client.
const BREATH: Duration = Duration::from_millis(50);

/// How many connections may be accepted now: a second's worth at once, refilled steadily.
struct Allowance {
    rate: f64,
    tokens: f64,
    at: Instant,
}

impl Allowance {
    fn new(rate: u32, now: Instant) -> Self {
        let rate = f64::from(rate);
        Self {
            rate,
            tokens: rate,
            at: now,
        }
    }

    /// Takes one, or says how long to wait until there are some.
    fn take(&mut self, now: Instant) -> Option<Duration> {
        let refill = now.duration_since(self.at).as_secs_f64() * self.rate;
        self.tokens = (self.tokens + refill).min(self.rate);
        self.at = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return None;
        }
        // Few at once: the requests of others wait behind all that a turn has to open.
        Some(Duration::from_secs_f64(
            (self.rate / 1000.0).max(1.0) / self.rate,
        ))
    }
}

/// The worker with the fewest sessions; of equals, the next one from `turn` on.
fn fewest(sessions: &[u64], turn: usize) -> usize {
    let count = sessions.len();
    (0..count)
        .map(|i| (turn + i) % count)
        .min_by_key(|&i| sessions[i])
        .unwrap_or(0)
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?; // or Nagle and delayed acks halt pipelines
    let keepalive = socket2::TcpKeepalive::new().with_time(Duration::from_secs(300));
    let socket = socket2::SockRef::from(stream);
    // Of what a slow client does not take, most stays with us, where it is counted.
    socket.set_tcp_notsent_lowat(UNSENT)?;
    socket.set_tcp_keepalive(&keepalive)
}

fn refuse(stream: &TcpStream) {
    let mut reply = Vec::new();
    crate::resp::put_error(&mut reply, error::MAX_CLIENTS);
    if let Err(e) = io::Write::write_all(&mut &*stream, &reply) {
        tracing::debug!(error = %e, "a refused client was gone already");
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Of the host's name and the port, what is allowed in an id.
fn default_id(addr: SocketAddr) -> ProxyId {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host
        .trim()
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(50)
        .collect();
    let host = host.trim_matches('-');
    let host = if host.is_empty() { "proxy" } else { host };
    ProxyId::new(format!("{host}-{}", addr.port())).expect("made of what is allowed")
}

/// Descriptors that are not for clients: servers, controller, admin HTTP, logs.
const RESERVED_DESCRIPTORS: u64 = 128;

/// Raises the soft limit of descriptors to the hard one, as Redis does. The limit that holds now.
fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

/// How many leases each worker can have, of those wanted: a quarter of the descriptors is for them.
fn leasable(config: &Config, descriptors: u64) -> usize {
    let most = usize::try_from(descriptors / 4).unwrap_or(usize::MAX) / config.workers;
    config.serving.max_leases.min(most.max(1))
}

/// How many clients there are descriptors for, of those wanted: else idle clients would take those
/// that are needed to reach the servers.
fn affordable(wanted: usize, descriptors: u64) -> anyhow::Result<usize> {
    let most = usize::try_from(descriptors.saturating_sub(RESERVED_DESCRIPTORS))?;
    anyhow::ensure!(
        most > 0,
        "{descriptors} file descriptors are too few: raise `ulimit -n`"
    );
    if most < wanted {
        tracing::warn!(
            wanted,
            most,
            "not enough file descriptors for --max-clients: raise ulimit -n"
        );
    }
    Ok(wanted.min(most))
}

/// Written aside and renamed, so that whoever waits for the file never reads half of it.
fn write_ports(path: &Path, clients: SocketAddr, admin: SocketAddr) -> io::Result<()> {
    let ports = serde_json::json!({ "clients": clients.to_string(), "admin": admin.to_string() });
    let aside = path.with_extension("tmp");
    std::fs::write(&aside, ports.to_string())?;
    std::fs::rename(aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_go_where_the_fewest_are() {
        assert_eq!(fewest(&[3, 1, 2], 0), 1);
        assert_eq!(
            [0, 1, 2, 3].map(|turn| fewest(&[1, 1, 1], turn)),
            [0, 1, 2, 0]
        );
        assert_eq!(fewest(&[0], 7), 0);
    }

    #[test]
    fn clients_leave_descriptors_for_the_servers() {
        assert_eq!(affordable(10_000, 1024).unwrap(), 896);
        assert_eq!(affordable(100, u64::MAX).unwrap(), 100);
        assert!(affordable(100, 64).is_err());
    }

    #[test]
    fn a_second_s_worth_is_accepted_at_once_and_then_steadily() {
        let start = Instant::now();
        let mut allowance = Allowance::new(1000, start);
        let mut taken = |millis| {
            let now = start + Duration::from_millis(millis);
            (0..5000)
                .take_while(|_| allowance.take(now).is_none())
                .count()
        };
        assert_eq!(
            [0, 0, 10, 510, 5000].map(&mut taken),
            [1000, 0, 10, 500, 1000]
        );
        assert_eq!(allowance.take(start).unwrap(), Duration::from_millis(1));
    }

    #[test]
    fn an_id_can_be_made_of_any_host() {
        let id = default_id("127.0.0.1:19000".parse().unwrap());
        assert!(id.as_str().ends_with("-19000"), "{id}");
    }
}
