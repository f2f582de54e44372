//! The proxy's settings: flags, environment and file become one checked [`Config`].

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use proto::{
    ClusterId, Group, GroupId, ProxyId, SLOT_COUNT, ServerAddr, Slot, SlotRange, SlotState,
    Topology, Version,
    credentials::{Credentials, Secret},
    identity::{Identity, TlsFlags},
    settings::{self, ConfigFlags},
    slot,
};
use serde::Deserialize;

use crate::{glob, memory::Memory, resp::Limits};

/// Route Redis clients to the groups of a cluster
///
/// A stateless proxy: clients speak RESP to it as to one Redis server. What it knows it learns from
/// the controller, or from a file.
///
/// Each setting has an environment variable (--max-clients: SLUICE_PROXY_MAX_CLIENTS) and a key in the
/// settings file (max-clients). A flag goes before the environment, the environment before the file.
///
/// Example: sluice-proxy --listen 0.0.0.0:19000 --controller 10.0.0.5:18080 --id p1
#[derive(Parser, Debug, Clone)]
#[command(name = "sluice-proxy", version)]
pub struct Args {
    /// Where clients connect
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:19000")]
    pub listen: String,
    /// Where /livez, /readyz, /metrics and /topology are served over HTTP
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:19080")]
    pub admin: String,
    /// The controllers of the cluster; the first that answers is used
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub controller: Vec<String>,
    /// How the controllers are spoken to
    #[command(flatten)]
    pub tls: TlsFlags,
    /// Serve the topology of this TOML file, without a controller
    #[arg(long = "static", value_name = "FILE")]
    pub r#static: Option<PathBuf>,
    /// This proxy's id in the cluster, the same over restarts; without it, host name and port
    #[arg(long)]
    pub id: Option<String>,
    /// Where clients reach this proxy, as told to the controller and to clients that ask CLUSTER; without
    /// it, the address listened on, or the one that such a client has reached
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// The failure zone this proxy runs in
    #[arg(long, default_value = "")]
    pub zone: String,
    /// Data threads; 0: half as many as there are cores, since servers and kernel need the rest
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub workers: usize,
    /// Pin the workers to these CPUs, in turn; without it the system places them
    #[arg(long, value_name = "CPU", value_delimiter = ',')]
    pub cpus: Vec<usize>,
    /// Connections of each worker to each server; a client's requests all use the same one
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub server_connections: u16,
    /// Connections of each worker to servers that single clients have for themselves (blocking commands,
    /// WATCH, WAIT, uploads) at most; then such requests are refused with -TRYAGAIN
    #[arg(long, value_name = "N", default_value_t = 2000)]
    pub max_leases: usize,
    /// Ask clients for the password in this file
    #[arg(long, value_name = "FILE")]
    pub requirepass_file: Option<PathBuf>,
    /// Log in at the servers with the credentials in this TOML file
    #[arg(long, value_name = "FILE")]
    pub server_auth_file: Option<PathBuf>,
    /// Let clients change the settings of all servers with CONFIG SET and CONFIG REWRITE. Among these
    /// are the files they write: who may set them can run programs there
    #[arg(long)]
    pub allow_config_set: bool,
    /// Databases that SELECT accepts; the servers must have as many
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub databases: u16,
    /// Client connections at most; further ones are told so and closed
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub max_clients: usize,
    /// Requests of one client under way at most; then it is not read from until replies come
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub max_inflight: u32,
    /// Channels and patterns that one client may be subscribed to at most
    #[arg(long, value_name = "N", default_value_t = 65_536)]
    pub max_subscriptions: usize,
    /// Channels and patterns that all clients of one worker may be subscribed to at most, each counted
    /// for each client
    #[arg(long, value_name = "N", default_value_t = 1_048_576)]
    pub max_worker_subscriptions: usize,
    /// New client connections a second at most, a second's worth at once; further ones wait
    #[arg(long, value_name = "N", default_value_t = 2000)]
    pub accept_rate: u32,
    /// Memory of the process at most. Near it no client is accepted, then those with large replies
    /// wait, then those that hold most are closed
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = settings::bytes)]
    pub max_memory: usize,
    /// Bytes of replies that are likely to be under way to one client at most; then it is not read from
    /// until they come. What its replies have weighed so far says what the next ones will. A client
    /// with large ones is not read from either while it has not taken so many
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = settings::bytes)]
    pub max_inflight_bytes: usize,
    /// Bytes of replies that may wait for one client: at half of them it is not read from until it
    /// takes them; beyond them the server that brings more is not read from either, for
    /// --reply-patience. A client that does not take messages is closed beyond them (0: a quarter of
    /// --max-memory)
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = settings::bytes)]
    pub output_limit: usize,
    /// How long all clients of a server may wait because one takes a large reply slowly; then that one
    /// is closed
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = settings::duration)]
    pub reply_patience: Duration,
    /// How long a client may leave a request half sent or its replies untaken, or wait for memory; then
    /// it is closed
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = settings::duration)]
    pub stall_timeout: Duration,
    /// How long a client may be idle; then it is closed (0: for ever, as in Redis)
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = settings::duration)]
    pub client_timeout: Duration,
    /// Bytes of requests that may wait for one server; then their clients are not read from
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = settings::bytes)]
    pub max_backlog: usize,
    /// Arguments of one request at most
    #[arg(long, value_name = "N", default_value_t = 1_048_576)]
    pub max_args: u32,
    /// Bytes of one argument at most (Redis: proto-max-bulk-len)
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = settings::bytes)]
    pub max_arg_bytes: usize,
    /// Bytes of one request that has to be held whole, at most (0: a quarter of --max-memory). What
    /// has one key and goes to one server streams through, however large it is
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = settings::bytes)]
    pub max_request_bytes: usize,
    /// Keys that clients with CLIENT TRACKING may hold, each counted once for each client (Redis:
    /// tracking-table-max-keys). Beyond, clients are told that a key has changed though it has not
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    pub tracking_table_max_keys: usize,
    /// How long a server may take to accept a connection and the login
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = settings::duration)]
    pub connect_timeout: Duration,
    /// How long a server with requests under way may be silent; then its connection is closed
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = settings::duration)]
    pub server_timeout: Duration,
    /// What to do with a server that restarts while no controller is connected: refuse it until one has
    /// admitted it again, since it may have come back with an old data set, or trust it
    #[arg(long, value_name = "WHAT", default_value = "refuse")]
    pub on_restart_without_leader: OnRestart,
    /// How long a request for a held slot waits at most, and for how long after the newest topology any does:
    /// longer than another controller needs to take over (--zookeeper-session-timeout, and some seconds).
    /// After that each waits for 2 s at most, and is answered with -TRYAGAIN
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = settings::duration)]
    pub hold_patience: Duration,
    /// How long clients may take to finish when the proxy is asked to stop
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = settings::duration)]
    pub drain_timeout: Duration,
    /// Write the addresses bound to this file, as JSON, once they are (for port 0)
    #[arg(long, value_name = "FILE")]
    pub ports_file: Option<PathBuf>,
    /// What is logged, as in `info,dataplane=debug`
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// How it is logged: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    pub log_format: String,
    #[command(flatten)]
    pub(crate) config: ConfigFlags,
}

impl Args {
    /// Whether the settings are to be checked and nothing else.
    pub fn only_checks(&self) -> bool {
        self.config.check_config
    }
}

/// What becomes of a server that restarts while no controller is connected.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnRestart {
    /// It is not used before one has admitted it again.
    Refuse,
    /// It is used, whatever data it has come back with.
    Trust,
}

/// Lengths within a request or a client's output are kept in 32 bits.
const LENGTH_MAX: usize = 3 << 30;

/// Bytes of the clients' password at most: it is compared in a time that does not depend on it.
pub(crate) const PASSWORD_MAX: usize = 512;

/// Where the topology comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// From a controller.
    Controllers(Controllers),
    /// From a file; it never changes.
    Static(Box<Topology>),
}

/// How a controller is come to.
#[derive(Debug, Clone)]
pub struct Controllers {
    /// The first that answers is used; at least one is named.
    pub addresses: Vec<ServerAddr>,
    /// What they are shown over TLS. `None`: they are spoken to in plain text.
    pub identity: Option<Arc<Identity>>,
}

/// What a worker needs to know to serve clients.
#[derive(Debug, Clone)]
pub struct Serving {
    /// See [`Args::advertise`].
    pub announced: Option<String>,
    /// See [`Args::cpus`].
    pub cpus: Vec<usize>,
    /// See [`Args::server_connections`].
    pub server_connections: u16,
    /// See [`Args::max_leases`].
    pub max_leases: usize,
    /// What clients must say in AUTH. `None`: nothing is asked.
    pub password: Option<Secret>,
    /// See [`Args::allow_config_set`].
    pub allow_config_set: bool,
    /// The settings that `CONFIG GET` shows, as they were given.
    shown: Vec<(&'static str, String)>,
    /// See [`Args::databases`].
    pub databases: u16,
    /// See [`Args::max_inflight`].
    pub max_inflight: u32,
    /// See [`Args::max_inflight_bytes`].
    pub max_inflight_bytes: usize,
    /// See [`Args::max_subscriptions`].
    pub max_subscriptions: usize,
    /// See [`Args::max_worker_subscriptions`].
    pub max_worker_subscriptions: usize,
    /// See [`Args::output_limit`].
    pub output_limit: usize,
    /// See [`Args::max_request_bytes`].
    pub max_request_bytes: usize,
    /// See [`Args::reply_patience`].
    pub reply_patience: Duration,
    /// See [`Args::stall_timeout`].
    pub stall_timeout: Duration,
    /// See [`Args::client_timeout`]. `None`: for ever.
    pub client_timeout: Option<Duration>,
    /// See [`Args::max_backlog`].
    pub max_backlog: usize,
    /// Of one request.
    pub limits: Limits,
    /// A worker's share of [`Args::tracking_table_max_keys`].
    pub tracking_keys: usize,
    /// See [`Args::connect_timeout`].
    pub connect_timeout: Duration,
    /// See [`Args::server_timeout`].
    pub server_timeout: Duration,
    /// See [`Args::hold_patience`].
    pub hold_patience: Duration,
    /// What the proxy presents to the servers.
    pub credentials: Credentials,
    /// There is no controller.
    pub is_static: bool,
}

impl Serving {
    /// What `CONFIG GET` shows of the proxy's own settings that match one of these patterns: the setting
    /// `--workers` as `sluice-workers`.
    pub(crate) fn settings<'a>(
        &self,
        patterns: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> Vec<(String, String)> {
        let shown = self.shown.iter();
        let named = shown.map(|(name, value)| (format!("sluice-{name}"), value.clone()));
        let is_asked = |(name, _): &(String, String)| {
            let mut patterns = patterns.clone();
            patterns.any(|pattern| glob::matches(pattern, name.as_bytes(), glob::Case::Either))
        };
        named.filter(is_asked).collect()
    }
}

/// The settings that clients may see: none names a file, nor what this process runs in.
fn shown(args: &Args) -> Vec<(&'static str, String)> {
    let cpus: Vec<String> = args.cpus.iter().map(usize::to_string).collect();
    let time = |time: Duration| format!("{time:?}");
    let on_restart = match args.on_restart_without_leader {
        OnRestart::Refuse => "refuse",
        OnRestart::Trust => "trust",
    };
    let yes_or_no = if args.allow_config_set { "yes" } else { "no" };
    vec![
        ("listen", args.listen.clone()),
        ("zone", args.zone.clone()),
        ("workers", args.workers.to_string()),
        ("cpus", cpus.join(",")),
        ("server-connections", args.server_connections.to_string()),
        ("max-leases", args.max_leases.to_string()),
        ("allow-config-set", yes_or_no.to_owned()),
        ("databases", args.databases.to_string()),
        ("max-clients", args.max_clients.to_string()),
        ("max-subscriptions", args.max_subscriptions.to_string()),
        (
            "max-worker-subscriptions",
            args.max_worker_subscriptions.to_string(),
        ),
        ("max-inflight", args.max_inflight.to_string()),
        ("accept-rate", args.accept_rate.to_string()),
        ("max-memory", args.max_memory.to_string()),
        ("max-inflight-bytes", args.max_inflight_bytes.to_string()),
        ("output-limit", args.output_limit.to_string()),
        ("reply-patience", time(args.reply_patience)),
        ("stall-timeout", time(args.stall_timeout)),
        ("client-timeout", time(args.client_timeout)),
        ("max-backlog", args.max_backlog.to_string()),
        (
            "tracking-table-max-keys",
            args.tracking_table_max_keys.to_string(),
        ),
        ("max-args", args.max_args.to_string()),
        ("max-arg-bytes", args.max_arg_bytes.to_string()),
        ("max-request-bytes", args.max_request_bytes.to_string()),
        ("connect-timeout", time(args.connect_timeout)),
        ("server-timeout", time(args.server_timeout)),
        ("on-restart-without-leader", on_restart.to_owned()),
        ("hold-patience", time(args.hold_patience)),
        ("drain-timeout", time(args.drain_timeout)),
        ("log", args.log.clone()),
        ("log-format", args.log_format.clone()),
    ]
}

/// Checked settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where the admin HTTP is.
    pub admin: SocketAddr,
    /// Where the topology comes from.
    pub source: Source,
    /// As given; without it the id follows from host name and bound port.
    pub id: Option<ProxyId>,
    /// As given.
    pub advertise: Option<String>,
    /// The failure zone.
    pub zone: String,
    /// Data threads, at least 1.
    pub workers: usize,
    /// Client connections at most.
    pub max_clients: usize,
    /// See [`Args::accept_rate`].
    pub accept_rate: u32,
    /// See [`Args::max_memory`].
    pub max_memory: usize,
    /// See [`Args::on_restart_without_leader`].
    pub on_restart: OnRestart,
    /// How long a drain may take.
    pub drain_timeout: Duration,
    /// Where to write the bound addresses.
    pub ports_file: Option<PathBuf>,
    /// What the workers need.
    pub serving: Serving,
}

impl Config {
    /// Checks the settings, and reads the files they name.
    pub fn new(args: &Args) -> anyhow::Result<Self> {
        let source = match (&args.r#static, args.controller.as_slice()) {
            (Some(_), [_, ..]) => bail!("--static and --controller exclude each other: give one"),
            (None, []) => bail!(
                "nothing says what to serve: give --controller HOST:PORT, or --static FILE to run \
                 without a controller"
            ),
            (Some(path), []) => Source::Static(Box::new(static_topology(path)?)),
            (None, controllers) => {
                let addresses = controllers.iter().map(ServerAddr::new);
                let addresses: Result<_, _> = addresses.collect();
                let identity = args.tls.files()?.map(Identity::load).transpose()?;
                Source::Controllers(Controllers {
                    addresses: addresses.context("--controller")?,
                    identity: identity.map(Arc::new),
                })
            }
        };
        for (flag, value) in [
            ("--server-connections", usize::from(args.server_connections)),
            ("--max-leases", args.max_leases),
            ("--databases", usize::from(args.databases)),
            ("--max-clients", args.max_clients),
            ("--max-inflight", args.max_inflight as usize),
            ("--max-inflight-bytes", args.max_inflight_bytes),
            ("--max-args", args.max_args as usize),
            ("--tracking-table-max-keys", args.tracking_table_max_keys),
            ("--max-arg-bytes", args.max_arg_bytes),
            ("--accept-rate", args.accept_rate as usize),
        ] {
            ensure!(value > 0, "{flag}: must be at least 1");
        }
        ensure!(
            args.max_memory >= Memory::MIN_LIMIT,
            "--max-memory: must be at least {} MiB",
            Memory::MIN_LIMIT >> 20
        );
        let of_memory = |bytes| match bytes {
            0 => args.max_memory / 4,
            bytes => bytes,
        };
        let output_limit = of_memory(args.output_limit);
        let max_request_bytes = of_memory(args.max_request_bytes);
        for (flag, bytes) in [
            ("--output-limit", output_limit),
            ("--max-request-bytes", max_request_bytes),
            ("--max-arg-bytes", args.max_arg_bytes),
        ] {
            ensure!(bytes < LENGTH_MAX, "{flag}: must be below 3GiB");
        }
        let password = args
            .requirepass_file
            .as_deref()
            .map(Secret::read)
            .transpose()?;
        ensure!(
            password
                .as_ref()
                .is_none_or(|secret| secret.expose().len() <= PASSWORD_MAX),
            "--requirepass-file: the password is longer than {PASSWORD_MAX} bytes"
        );
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let workers = if args.workers == 0 {
            cores().div_ceil(2)
        } else {
            args.workers
        };
        Ok(Self {
            listen: resolve("--listen", &args.listen)?,
            admin: resolve("--admin", &args.admin)?,
            source,
            id: args
                .id
                .as_deref()
                .map(ProxyId::new)
                .transpose()
                .context("--id")?,
            advertise: args.advertise.clone(),
            zone: args.zone.clone(),
            workers,
            max_clients: args.max_clients,
            accept_rate: args.accept_rate,
            max_memory: args.max_memory,
            on_restart: args.on_restart_without_leader,
            drain_timeout: args.drain_timeout,
            ports_file: args.ports_file.clone(),
            serving: Serving {
                announced: args.advertise.clone(),
                cpus: args.cpus.clone(),
                server_connections: args.server_connections,
                max_leases: args.max_leases,
                password,
                allow_config_set: args.allow_config_set,
                shown: shown(args),
                databases: args.databases,
                max_inflight: args.max_inflight,
                max_inflight_bytes: args.max_inflight_bytes,
                max_subscriptions: args.max_subscriptions,
                max_worker_subscriptions: args.max_worker_subscriptions,
                output_limit,
                max_request_bytes,
                reply_patience: args.reply_patience,
                stall_timeout: args.stall_timeout,
                client_timeout: Some(args.client_timeout).filter(|time| !time.is_zero()),
                max_backlog: args.max_backlog,
                limits: Limits {
                    args: args.max_args,
                    arg_bytes: args.max_arg_bytes,
                    request_bytes: u32::MAX as usize,
                },
                tracking_keys: args.tracking_table_max_keys.div_ceil(workers),
                connect_timeout: args.connect_timeout,
                server_timeout: args.server_timeout,
                hold_patience: args.hold_patience,
                credentials: Credentials::load(args.server_auth_file.as_deref())?,
                is_static: args.r#static.is_some(),
            },
        })
    }
}

fn resolve(flag: &str, address: &str) -> anyhow::Result<SocketAddr> {
    use std::net::ToSocketAddrs;
    address
        .to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next())
        .with_context(|| format!("{flag}: `{address}` is no address: expected host:port"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StaticFile {
    #[serde(default)]
    group: Vec<StaticGroup>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StaticGroup {
    id: GroupId,
    primary: ServerAddr,
    slots: Option<String>,
}

fn static_topology(path: &std::path::Path) -> anyhow::Result<Topology> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    parse_static(&text).with_context(|| path.display().to_string())
}

/// Reads the TOML of `--static`: `[[group]]` with `id`, `primary` and optional `slots`
/// (`"0-511"`, `"0-99,200"`). Without any `slots` the groups share all slots evenly.
fn parse_static(text: &str) -> anyhow::Result<Topology> {
    let file: StaticFile = toml::from_str(text)?;
    let groups = &file.group;
    ensure!(
        !groups.is_empty(),
        "no [[group]]: expected at least one with id and primary"
    );
    let mut owners: Vec<Option<GroupId>> = vec![None; SLOT_COUNT];
    let evenly = groups.iter().all(|group| group.slots.is_none());
    for (index, group) in groups.iter().enumerate() {
        let slots: Vec<Slot> = match &group.slots {
            None if evenly => Slot::all()
                .filter(|s| s.index() * groups.len() / SLOT_COUNT == index)
                .collect(),
            None => Vec::new(),
            Some(ranges) => {
                let ranges: Vec<SlotRange> = ranges
                    .split(',')
                    .map(|range| range.parse())
                    .collect::<Result<_, _>>()
                    .with_context(|| format!("group {}", group.id))?;
                ranges.into_iter().flat_map(SlotRange::slots).collect()
            }
        };
        for slot in slots {
            if let Some(other) = owners[slot.index()].replace(group.id.clone()) {
                bail!("slot {slot} belongs to both {other} and {}", group.id);
            }
        }
    }
    let unowned = slot::ranges(Slot::all().map(|slot| (slot, owners[slot.index()].is_none())));
    if let Some((range, _)) = unowned.iter().find(|(_, unowned)| *unowned) {
        bail!("slots {range} belong to no group: give each slot to one, or leave out all `slots`");
    }
    Ok(Topology::new(
        ClusterId::new("static").expect("a label"),
        Version {
            leader_term: 1,
            epoch: 1,
        },
        groups.iter().map(|group| Group {
            id: group.id.clone(),
            primary: group.primary.clone(),
            replicas: Vec::new(),
        }),
        |slot| (owners[slot.index()].clone(), SlotState::Serving),
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(topology: &Topology, slot: u32) -> &str {
        topology
            .owner(Slot::new(slot).unwrap())
            .map_or("-", |group| group.id.as_str())
    }

    #[test]
    fn every_setting_is_shown_to_clients_or_left_out_on_purpose() {
        let args = Args::parse_from(["sluice-proxy", "--controller", "h:1"]);
        let config = Config::new(&args).unwrap();
        let shown = config.serving.settings([&b"*"[..]].into_iter());
        let left_out = [
            "admin",
            "controller",
            "static",
            "id",
            "advertise",
            "requirepass-file",
            "server-auth-file",
            "tls-ca-file",
            "tls-cert-file",
            "tls-key-file",
            "ports-file",
            "config",
            "check-config",
            "print-default-config",
        ];
        let names = <Args as clap::CommandFactory>::command();
        let names = names.get_arguments().filter_map(|arg| arg.get_long());
        for name in names.filter(|name| !left_out.contains(name)) {
            let name = format!("sluice-{name}");
            assert!(shown.iter().any(|(shown, _)| *shown == name), "{name}");
        }
        let some = config
            .serving
            .settings([&b"SLUICE-max-c*"[..], b"sluice-zone"].into_iter());
        let expected = [("sluice-zone", ""), ("sluice-max-clients", "10000")];
        assert_eq!(
            some,
            expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    }

    #[test]
    fn groups_share_all_slots_evenly() {
        let text = "[[group]]\nid = \"g1\"\nprimary = \"h:1\"\n".to_owned()
            + "[[group]]\nid = \"g2\"\nprimary = \"h:2\"\n"
            + "[[group]]\nid = \"g3\"\nprimary = \"h:3\"\n";
        let topology = parse_static(&text).unwrap();
        assert_eq!(
            [0, 341, 342, 682, 683, 1023].map(|slot| owner(&topology, slot)),
            ["g1", "g1", "g2", "g2", "g3", "g3"]
        );
    }

    #[test]
    fn slots_are_as_the_file_says() {
        let text = "[[group]]\nid = \"g1\"\nprimary = \"h:1\"\nslots = \"0-9, 20\"\n".to_owned()
            + "[[group]]\nid = \"g2\"\nprimary = \"h:2\"\nslots = \"10-19,21-1023\"\n";
        let topology = parse_static(&text).unwrap();
        assert_eq!(
            [0, 9, 10, 20].map(|slot| owner(&topology, slot)),
            ["g1", "g1", "g2", "g1"]
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, error) in [
            ("", "no [[group]]"),
            (
                "[[group]]\nid = \"G\"\nprimary = \"h:1\"\n",
                "invalid group id",
            ),
            (
                "[[group]]\nid = \"g\"\nprimary = \"h\"\n",
                "invalid server address",
            ),
            (
                "[[group]]\nid = \"g\"\nprimary = \"h:1\"\nslot = \"1\"\n",
                "unknown field",
            ),
            (
                "[[group]]\nid = \"g\"\nprimary = \"h:1\"\nslots = \"1-2000\"\n",
                "slot 2000",
            ),
            (
                "[[group]]\nid = \"g\"\nprimary = \"h:1\"\nslots = \"1,1\"\n",
                "both",
            ),
        ] {
            let got = format!("{:#}", parse_static(text).unwrap_err());
            assert!(got.contains(error), "expected `{error}` in `{got}`");
        }
    }
}
