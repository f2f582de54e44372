//! Groups of servers, a controller and proxies, wired up.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use proto::{
    ServerAddr,
    identity::{Files, Material, TlsFlags},
    seeded::Bug,
    tls,
    v1::{self, admin_service_client::AdminServiceClient},
};
use redis::{AsyncConnectionConfig, aio::MultiplexedConnection};
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::{
    SOON, eventually,
    process::{Process, Program, binary, free_port},
    raw::Raw,
    relay::Relay,
};

/// A running cluster.
pub struct Cluster {
    /// Of each group, its servers, the primary first.
    pub groups: Vec<Vec<Server>>,
    /// The controller; the one that leads, at the start.
    pub controller: Controller,
    /// Further controllers.
    pub stand_bys: Vec<Controller>,
    /// The proxies; they have the topology.
    pub proxies: Vec<Proxy>,
    /// What stands before the servers and controllers, if that was asked for.
    edges: Option<Edges>,
    /// Everything's files; gone with the cluster.
    pub dir: TempDir,
}

/// A relay before each server and each controller: who knows of them knows them by these.
pub struct Edges {
    /// Before the primaries of the groups.
    pub servers: Vec<Relay>,
    /// Before the controllers, the first of which leads at the start; for proxies.
    pub controllers: Vec<Relay>,
}

/// What to start.
#[derive(Default)]
pub struct Builder {
    groups: usize,
    replicas: usize,
    proxies: usize,
    stand_bys: usize,
    proxy_args: Vec<String>,
    controller_args: Vec<String>,
    server_args: Vec<String>,
    server: Option<PathBuf>,
    others: BTreeMap<usize, PathBuf>,
    unassigned: bool,
    relayed: bool,
    bug: Option<Bug>,
}

impl Builder {
    /// How many groups; each gets an equal share of the slots.
    pub fn groups(mut self, count: usize) -> Self {
        self.groups = count;
        self
    }

    /// How many replicas each group has.
    pub fn replicas(mut self, count: usize) -> Self {
        self.replicas = count;
        self
    }

    /// How many proxies.
    pub fn proxies(mut self, count: usize) -> Self {
        self.proxies = count;
        self
    }

    /// How many controllers besides the first; they need a ZooKeeper in common, by their arguments.
    pub fn stand_bys(mut self, count: usize) -> Self {
        self.stand_bys = count;
        self
    }

    /// Further arguments of every proxy.
    pub fn proxy_args(mut self, args: &[&str]) -> Self {
        self.proxy_args = args.iter().map(|&arg| arg.to_owned()).collect();
        self
    }

    /// Further arguments of every controller.
    pub fn controller_args(mut self, args: &[&str]) -> Self {
        self.controller_args = args.iter().map(|&arg| arg.to_owned()).collect();
        self
    }

    /// Further arguments of every server.
    pub fn server_args(mut self, args: &[&str]) -> Self {
        self.server_args = args.iter().map(|&arg| arg.to_owned()).collect();
        self
    }

    /// The program that every server is, unless it is Debian's `redis-server`.
    pub fn server(mut self, program: PathBuf) -> Self {
        self.server = Some(program);
        self
    }

    /// The program that the servers of one group are, which are counted from 1.
    pub fn server_of(mut self, group: usize, program: PathBuf) -> Self {
        self.others.insert(group, program);
        self
    }

    /// Puts a relay before each server (there must be no replicas) and, for proxies, each controller.
    pub fn relayed(mut self) -> Self {
        self.relayed = true;
        self
    }

    /// Has proxies and controllers have a bug, on purpose.
    pub fn bug(mut self, bug: Option<Bug>) -> Self {
        self.bug = bug;
        self
    }

    fn program(&self, name: &str) -> Program {
        match self.bug {
            Some(bug) => Program::seeded(name, bug),
            None => Program::ours(name),
        }
    }

    /// Leaves all slots without an owner.
    pub fn unassigned(mut self) -> Self {
        self.unassigned = true;
        self
    }

    /// Starts everything; returns once every proxy has the whole topology.
    pub async fn start(self) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let mut groups = Vec::new();
        let [proxy_program, controller_program] =
            [PROXY, CONTROLLER].map(|name| self.program(name));
        let program = self.server.unwrap_or_else(|| REDIS_SERVER.into());
        for group in 1..=self.groups {
            let program = self.others.get(&group).unwrap_or(&program);
            let name = format!("g{group}-primary");
            let primary = Server::run(program, dir.path(), &name, &self.server_args);
            primary.answers().await;
            let mut servers = vec![primary];
            for replica in 1..=self.replicas {
                let name = format!("g{group}-replica-{replica}");
                let port = servers[0].port.to_string();
                let mut args = self.server_args.clone();
                args.extend(["--replicaof".to_owned(), "127.0.0.1".to_owned(), port]);
                servers.push(Server::run(program, dir.path(), &name, &args));
            }
            groups.push(servers);
        }
        let args = &self.controller_args;
        let first = controller_program.clone();
        let controller = Controller::run(first, dir.path(), "controller", args).await;
        let mut stand_bys = Vec::new();
        for index in 1..=self.stand_bys {
            let name = format!("stand-by-{index}");
            let program = controller_program.clone();
            stand_bys.push(Controller::run(program, dir.path(), &name, args).await);
        }
        let controllers = [&controller].into_iter().chain(&stand_bys);
        let mut controllers: Vec<String> = controllers.map(|c| c.addr.clone()).collect();
        let edges = self.relayed.then(|| {
            assert_eq!(
                self.replicas, 0,
                "a replica knows its primary by its own address"
            );
            let primaries = groups.iter().map(|servers| Relay::start(&servers[0].addr));
            let relays = controllers.iter().map(|addr| Relay::start(addr));
            Edges {
                servers: primaries.collect(),
                controllers: relays.collect(),
            }
        });
        if let Some(edges) = &edges {
            controllers = edges.controllers.iter().map(|r| r.addr.clone()).collect();
        }
        let mut admin = controller.admin().await;
        for (index, servers) in groups.iter().enumerate() {
            let id = format!("g{}", index + 1);
            let relay = edges
                .as_ref()
                .map(|edges| edges.servers[index].addr.clone());
            // A replica that has just started does not follow its primary yet.
            eventually(|| {
                let (mut admin, id) = (admin.clone(), id.clone());
                let servers = servers.iter().map(|server| v1::ServerSpec {
                    address: relay.clone().unwrap_or_else(|| server.addr.clone()),
                    zone: String::new(),
                });
                let request = v1::CreateGroupRequest {
                    id,
                    servers: servers.collect(),
                    ..v1::CreateGroupRequest::default()
                };
                async move { admin.create_group(request).await.map_err(|e| e.to_string()) }
            })
            .await;
        }
        if !self.unassigned {
            let even = v1::assign_slots_request::Assignment::Even(
                v1::assign_slots_request::Even::default(),
            );
            admin
                .assign_slots(v1::AssignSlotsRequest {
                    assignment: Some(even),
                    ..v1::AssignSlotsRequest::default()
                })
                .await
                .unwrap();
        }
        let controllers = controllers.join(",");
        let mut proxies = Vec::new();
        for proxy in 1..=self.proxies {
            let mut args = vec!["--controller".to_owned(), controllers.clone()];
            args.extend(["--id".to_owned(), format!("p{proxy}")]);
            args.extend(self.proxy_args.iter().cloned());
            let program = proxy_program.clone();
            proxies.push(Proxy::run(program, dir.path(), &format!("p{proxy}"), &args).await);
        }
        let cluster = Cluster {
            groups,
            controller,
            stand_bys,
            proxies,
            edges,
            dir,
        };
        cluster.settle().await;
        cluster
    }
}

impl Cluster {
    /// Says what to start.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The relays; the cluster was started with [`Builder::relayed`].
    pub fn edges(&self) -> &Edges {
        self.edges.as_ref().expect("it has no relays")
    }

    /// Returns once every connected proxy has acknowledged the newest topology.
    pub async fn settle(&self) {
        self.settle_at(&self.controller).await;
    }

    /// The same, by what one of the controllers knows.
    pub async fn settle_at(&self, controller: &Controller) {
        let admin = controller.admin().await;
        let expected = self.proxies.len();
        eventually(|| {
            let mut admin = admin.clone();
            async move {
                let topology = admin.get_topology(v1::GetTopologyRequest {}).await;
                let version = topology.map_err(|e| e.to_string())?.into_inner().version;
                let list = admin.list_proxies(v1::ListProxiesRequest::default()).await;
                let proxies = list.map_err(|e| e.to_string())?.into_inner().proxies;
                let settled = proxies
                    .iter()
                    .filter(|p| p.connected && p.acked_version == version);
                match settled.count() {
                    count if count >= expected => Ok(()),
                    count => Err(format!("{count} of {expected} proxies have {version:?}")),
                }
            }
        })
        .await;
    }

    /// Returns once every proxy routes by what a leader of this term, or a later one, has told it.
    pub async fn routes_by(&self, term: u64) {
        for proxy in &self.proxies {
            eventually(|| async {
                let (_, topology) = proxy.get("/topology").await;
                let topology: v1::Topology =
                    serde_json::from_str(&topology).map_err(|e| e.to_string())?;
                match topology.version {
                    Some(version) if version.leader_term >= term => Ok(()),
                    other => Err(format!("it routes by {other:?}, not term {term}")),
                }
            })
            .await;
        }
    }

    /// Where clients connect.
    pub fn addrs(&self) -> Vec<String> {
        self.proxies.iter().map(|p| p.addr.clone()).collect()
    }

    /// One connection to each proxy.
    pub async fn connect_all(&self) -> Vec<MultiplexedConnection> {
        let mut connections = Vec::new();
        for proxy in &self.proxies {
            connections.push(proxy.connect().await);
        }
        connections
    }

    /// The primary of the group that owns a key's slot, by the controller's slot map.
    pub async fn owner_of(&self, key: &str) -> &Server {
        let mut admin = self.controller.admin().await;
        let map = admin
            .get_slot_map(v1::GetSlotMapRequest {})
            .await
            .unwrap()
            .into_inner();
        let slot = proto::Slot::of_key(key.as_bytes()).number();
        let range = map
            .assignments
            .iter()
            .find(|a| (a.first..=a.last).contains(&slot))
            .unwrap();
        let index: usize = range.group_id.trim_start_matches('g').parse().unwrap();
        &self.groups[index - 1][0]
    }
}

/// A `redis-server`.
pub struct Server {
    /// The process.
    pub process: Process,
    /// `127.0.0.1:port`.
    pub addr: String,
    /// Its port.
    pub port: u16,
    program: PathBuf,
    dir: PathBuf,
    name: String,
    args: Vec<String>,
}

const REDIS_SERVER: &str = "redis-server";

impl Server {
    /// Starts Debian's on a free port, that keeps what is written in an append-only file.
    pub fn start(dir: &Path, name: &str, args: &[String]) -> Self {
        Self::run(Path::new(REDIS_SERVER), dir, name, args)
    }

    /// The same, of any program.
    pub fn run(program: &Path, dir: &Path, name: &str, args: &[String]) -> Self {
        let port = free_port();
        let own = dir.join(format!("{name}-{port}"));
        std::fs::create_dir_all(&own).unwrap();
        let process = Self::spawn(program, dir, &own, name, port, args, &[]);
        let (name, args) = (name.to_owned(), args.to_vec());
        Self {
            process,
            addr: format!("127.0.0.1:{port}"),
            port,
            program: program.to_owned(),
            dir: own,
            name,
            args,
        }
    }

    fn spawn(
        program: &Path,
        dir: &Path,
        own: &Path,
        name: &str,
        port: u16,
        args: &[String],
        env: &[(&str, &str)],
    ) -> Process {
        let port = port.to_string();
        let own = own.to_string_lossy();
        let fixed = [
            "--port",
            &port,
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            &own,
        ];
        let durable = ["--appendonly", "yes", "--appendfsync", "no"];
        let all = fixed
            .into_iter()
            .chain(durable)
            .chain(args.iter().map(String::as_str));
        Process::start(dir, name, program, all, env)
    }

    /// Starts it again on the same port with the same data; it must have been killed.
    pub fn restart(&mut self) {
        self.restart_with(&[]);
    }

    /// The same, with these variables in its environment.
    pub fn restart_with(&mut self, env: &[(&str, &str)]) {
        let logs = self.dir.parent().unwrap();
        let (own, args) = (&self.dir, &self.args);
        self.process = Self::spawn(&self.program, logs, own, &self.name, self.port, args, env);
    }

    /// Returns once it answers.
    pub async fn answers(&self) {
        eventually(|| async {
            let mut raw = match tokio::net::TcpStream::connect(&self.addr).await {
                Ok(_) => Raw::connect(&self.addr).await,
                Err(e) => return Err(e.to_string()),
            };
            match raw.command("PING").await.as_str() {
                "+PONG" => Ok(()),
                other if other.starts_with("-NOAUTH") => Ok(()),
                other => Err(other.to_owned()),
            }
        })
        .await;
    }

    /// A connection straight to it, past the proxies.
    pub async fn connect(&self) -> MultiplexedConnection {
        connect(&self.addr).await
    }
}

/// A `sluice-controller`.
pub struct Controller {
    /// The process.
    pub process: Process,
    /// Its gRPC address; the same after a restart.
    pub addr: String,
    program: Program,
    name: String,
    dir: PathBuf,
    args: Vec<String>,
}

const CONTROLLER: &str = "sluice-controller";

impl Controller {
    /// Starts one on a free port; returns once it answers.
    pub async fn start(dir: &Path, args: &[String]) -> Self {
        Self::start_as(dir, "controller", args).await
    }

    /// Starts one of several, each of which has a folder of its own.
    pub async fn start_as(dir: &Path, name: &str, args: &[String]) -> Self {
        Self::run(Program::ours(CONTROLLER), dir, name, args).await
    }

    async fn run(program: Program, dir: &Path, name: &str, args: &[String]) -> Self {
        let controller = Self::begin(program, dir, name, args);
        controller.admin().await;
        controller
    }

    /// Starts one, and does not wait until it answers.
    pub fn begin(program: Program, dir: &Path, name: &str, args: &[String]) -> Self {
        let addr = format!("127.0.0.1:{}", free_port());
        let process = Self::spawn(&program, dir, name, &addr, args);
        Self {
            process,
            addr,
            program,
            name: name.to_owned(),
            dir: dir.to_owned(),
            args: args.to_vec(),
        }
    }

    /// Runs `sluice` against it; whether it succeeded, and all it said.
    pub fn sluice(&self, args: &[&str]) -> (bool, String) {
        sluice(&self.addr, &[args, &self.tls_flags()].concat())
    }

    /// Of its arguments those about TLS: who speaks to it shows what it shows itself.
    fn tls_flags(&self) -> Vec<&str> {
        let pairs = self.args.windows(2);
        let about_tls = pairs.filter(|pair| pair[0].starts_with("--tls-"));
        about_tls.flatten().map(String::as_str).collect()
    }

    fn tls_files(&self) -> Option<Files> {
        let flags = self.tls_flags();
        let value = |name: &str| {
            let at = flags.iter().position(|flag| *flag == name)?;
            flags.get(at + 1).map(PathBuf::from)
        };
        let flags = TlsFlags {
            tls_cert_file: value("--tls-cert-file"),
            tls_key_file: value("--tls-key-file"),
            tls_ca_file: value("--tls-ca-file"),
        };
        flags.files().unwrap()
    }

    /// A counter of its metrics, by its whole name; of all labels together.
    pub async fn counter(&self, name: &str) -> u64 {
        self.admin().await; // what is in its log is of the process that there is now
        let log = self.process.log();
        let said = log.lines().rev().find(|line| line.contains("listening"));
        let http = said.and_then(|line| line.split_once("http=")).unwrap().1;
        let (_, metrics) = page(http.split(' ').next().unwrap(), "/metrics").await;
        let value = |line: &str| {
            let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
            let is_it = labels.is_empty() || labels.starts_with('{');
            is_it.then(|| value.parse::<u64>().unwrap())
        };
        let values: Vec<u64> = metrics.lines().filter_map(value).collect();
        assert!(!values.is_empty(), "no {name} in {metrics}");
        values.iter().sum()
    }

    /// Where its files are.
    pub fn data_dir(&self) -> PathBuf {
        data_dir(&self.dir, &self.name)
    }

    fn spawn(program: &Program, dir: &Path, name: &str, addr: &str, args: &[String]) -> Process {
        let data = data_dir(dir, name);
        let data = data.to_string_lossy();
        let fixed = [
            "--listen",
            addr,
            "--http",
            "127.0.0.1:0",
            "--data-dir",
            &data,
        ];
        let all = fixed.into_iter().chain(["--cluster", "test"]);
        let all = all.chain(args.iter().map(String::as_str));
        program.start(dir, name, all)
    }

    /// Starts it again with the same store, on the same port; it must have been killed or stopped.
    pub fn restart(&mut self) {
        let (program, args) = (&self.program, &self.args);
        self.process = Self::spawn(program, &self.dir, &self.name, &self.addr, args);
    }

    /// The same, as another program, this once.
    pub fn restart_as(&mut self, program: &Program) {
        self.process = Self::spawn(program, &self.dir, &self.name, &self.addr, &self.args);
    }

    /// A client of its AdminService, which answers.
    pub async fn admin(&self) -> AdminServiceClient<Channel> {
        eventually(|| async {
            let addr = ServerAddr::new(&self.addr).unwrap();
            let materials = self.tls_files().map(|files| Material::once(&files));
            let materials = materials.transpose().map_err(|e| e.to_string())?;
            let connecting = tls::connect(&addr, materials, SOON, |endpoint| endpoint);
            let mut admin = AdminServiceClient::new(connecting.await?);
            admin
                .get_cluster(v1::GetClusterRequest {})
                .await
                .map_err(|e| e.to_string())?;
            Ok(admin)
        })
        .await
    }
}

/// Runs `sluice` against these controllers; whether it succeeded, and all it said.
pub fn sluice(endpoints: &str, args: &[&str]) -> (bool, String) {
    let output = Command::new(binary("sluice"))
        .args(["--endpoint", endpoints])
        .args(args)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

fn data_dir(dir: &Path, controller: &str) -> PathBuf {
    dir.join(format!("{controller}-data"))
}

/// A `sluice-proxy`.
pub struct Proxy {
    /// The process.
    pub process: Process,
    /// Where clients connect.
    pub addr: String,
    /// Its admin HTTP.
    pub admin: String,
    program: Program,
    name: String,
    dir: PathBuf,
    args: Vec<String>,
}

const PROXY: &str = "sluice-proxy";

impl Proxy {
    /// Starts one on free ports; returns once they are bound.
    pub async fn start(dir: &Path, name: &str, args: &[String]) -> Self {
        Self::run(Program::ours(PROXY), dir, name, args).await
    }

    async fn run(program: Program, dir: &Path, name: &str, args: &[String]) -> Self {
        let process = Self::spawn(&program, dir, name, ["127.0.0.1:0"; 2], args);
        let ports = ports_file(dir, name);
        let text = eventually(|| async {
            std::fs::read_to_string(&ports).map_err(|e| format!("no ports of {name}: {e}"))
        })
        .await;
        let ports: serde_json::Value = serde_json::from_str(&text).unwrap();
        let addr = |key: &str| ports[key].as_str().unwrap().to_owned();
        Self {
            process,
            addr: addr("clients"),
            admin: addr("admin"),
            program,
            name: name.to_owned(),
            dir: dir.to_owned(),
            args: args.to_vec(),
        }
    }

    fn spawn(
        program: &Program,
        dir: &Path,
        name: &str,
        [listen, admin]: [&str; 2],
        args: &[String],
    ) -> Process {
        let ports = ports_file(dir, name);
        let ports = ports.to_string_lossy();
        let fixed = ["--listen", listen, "--admin", admin, "--ports-file", &ports];
        let all = fixed.into_iter().chain(args.iter().map(String::as_str));
        program.start(dir, name, all)
    }

    /// Starts it again at the same addresses, as another incarnation; it must have been killed.
    pub fn restart(&mut self) {
        let (program, ports) = (&self.program, [self.addr.as_str(), &self.admin]);
        self.process = Self::spawn(program, &self.dir, &self.name, ports, &self.args);
    }

    /// The same, as another program, this once.
    pub fn restart_as(&mut self, program: &Program) {
        let ports = [self.addr.as_str(), &self.admin];
        self.process = Self::spawn(program, &self.dir, &self.name, ports, &self.args);
    }

    /// A client connection.
    pub async fn connect(&self) -> MultiplexedConnection {
        connect(&self.addr).await
    }

    /// A client that sends bytes as they are.
    pub async fn raw(&self) -> Raw {
        Raw::connect(&self.addr).await
    }

    /// The status and body of a page of its admin HTTP.
    pub async fn get(&self, path: &str) -> (u16, String) {
        page(&self.admin, path).await
    }
}

/// The status and body of a page.
async fn page(addr: &str, path: &str) -> (u16, String) {
    let mut raw = Raw::connect(addr).await;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    raw.send(request.as_bytes()).await;
    let response = String::from_utf8(raw.rest().await).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap();
    (status.parse().unwrap(), body.to_owned())
}

fn ports_file(dir: &Path, proxy: &str) -> PathBuf {
    dir.join(format!("{proxy}.ports"))
}

async fn connect(addr: &str) -> MultiplexedConnection {
    let client = redis::Client::open(format!("redis://{addr}/")).unwrap();
    let patient = AsyncConnectionConfig::new()
        .set_response_timeout(Some(Duration::from_secs(20)))
        .set_connection_timeout(Some(Duration::from_secs(5)));
    client
        .get_multiplexed_async_connection_with_config(&patient)
        .await
        .unwrap()
}
