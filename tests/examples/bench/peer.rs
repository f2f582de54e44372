//! The proxies compared, and the servers behind them: each a process of its own on a free port.

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use tests::{Process, binary, free_port};

/// What clients of a benchmark connect to.
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) port: u16,
    /// `None`: it is a server itself, which is there for scale.
    pub(crate) process: Option<Process>,
}

/// A `redis-server` that keeps nothing on disk.
pub(crate) struct Server {
    pub(crate) port: u16,
    pub(crate) process: Process,
}

/// A build of Sluice to be compared, with a name of its own: `LABEL=PATH`, or `LABEL=PATH ARGS`.
#[derive(Clone)]
pub(crate) struct Build {
    pub(crate) label: String,
    program: PathBuf,
    args: Vec<String>,
}

impl Build {
    /// The one this benchmark was built with.
    pub(crate) fn own(label: &str, args: &[&str]) -> Self {
        Self {
            label: label.to_owned(),
            program: binary("sluice-proxy"),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
        }
    }
}

impl FromStr for Build {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (label, command) = text.split_once('=').ok_or("expected LABEL=PATH")?;
        let mut words = command.split_whitespace().map(str::to_owned);
        let program = PathBuf::from(words.next().ok_or("expected LABEL=PATH")?);
        if !program.exists() {
            return Err(format!("there is no {}", program.display()));
        }
        let mut args: Vec<String> = words.collect();
        if args.is_empty() {
            args = ["--workers", "1"].map(str::to_owned).into();
        }
        Ok(Self {
            label: label.to_owned(),
            program,
            args,
        })
    }
}

impl Server {
    pub(crate) fn start(dir: &Path, index: usize) -> Self {
        let port = free_port();
        let args = format!("--port {port} --bind 127.0.0.1 --appendonly no --maxclients 20000");
        let args = args.split(' ').chain(["--save", ""]);
        let process = Process::start(dir, &format!("server-{index}"), "redis-server", args, &[]);
        wait_for(port);
        Self { port, process }
    }
}

impl Peer {
    /// One of the servers, without a proxy.
    pub(crate) fn direct(server: &Server) -> Self {
        Self {
            name: "direct".to_owned(),
            port: server.port,
            process: None,
        }
    }

    /// No proxy, but the least that one could cost: see [`crate::floor`].
    pub(crate) fn floor(dir: &Path) -> Self {
        let port = free_port();
        let program = std::env::current_exe().unwrap();
        let args = ["floor".to_owned(), port.to_string()];
        let process = Process::start(dir, "floor", program, args, &[]);
        Self::started("floor".to_owned(), port, process)
    }

    /// twemproxy, with the options of the comparison.
    pub(crate) fn twemproxy(dir: &Path, servers: [u16; 2]) -> Self {
        let port = free_port();
        let config = dir.join("twemproxy.yml");
        let list = servers.map(|port| format!("    - 127.0.0.1:{port}:1\n"));
        let text = format!(
            "bench:\n  listen: 127.0.0.1:{port}\n  hash: crc32\n  distribution: modula\n  \
             redis: true\n  server_connections: 1\n  servers:\n{}",
            list.concat()
        );
        fs::write(&config, text).unwrap();
        let stats = free_port().to_string();
        let args = ["-c", config.to_str().unwrap(), "-s", &stats];
        let process = Process::start(dir, "twemproxy", twemproxy_program(), args, &[]);
        Self::started("twemproxy".to_owned(), port, process)
    }

    /// Envoy's redis_proxy with one worker and otherwise as it comes. (It could be told to let requests
    /// wait for each other for some milliseconds; a client without a pipeline would feel that.)
    pub(crate) fn envoy(dir: &Path, servers: [u16; 2], program: &Path) -> Self {
        let port = free_port();
        let config = dir.join("envoy.yml");
        let address =
            |port| format!("{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}");
        let endpoints = servers.map(|port| format!("{{endpoint: {{address: {}}}}}", address(port)));
        let text = format!(
            r#"
static_resources:
  listeners:
  - address: {listen}
    filter_chains:
    - filters:
      - name: envoy.filters.network.redis_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.redis_proxy.v3.RedisProxy
          stat_prefix: bench
          settings: {{op_timeout: 5s}}
          prefix_routes: {{catch_all_route: {{cluster: servers}}}}
  clusters:
  - name: servers
    type: STATIC
    lb_policy: MAGLEV
    load_assignment: {{cluster_name: servers, endpoints: [{{lb_endpoints: [{endpoints}]}}]}}
"#,
            listen = address(port),
            endpoints = endpoints.join(", "),
        );
        fs::write(&config, text).unwrap();
        let args = ["-c", config.to_str().unwrap(), "--concurrency", "1"];
        let args = args
            .into_iter()
            .chain(["--disable-hot-restart", "-l", "warn"]);
        let process = Process::start(dir, "envoy", program, args, &[]);
        Self::started("envoy".to_owned(), port, process)
    }

    /// A build of Sluice, with its admin HTTP on the port given; 0: on any.
    pub(crate) fn sluice(dir: &Path, servers: [u16; 2], build: &Build, admin: u16) -> Self {
        let port = free_port();
        let config = dir.join("static.toml");
        let group = |(index, port)| {
            format!("[[group]]\nid = \"g{index}\"\nprimary = \"127.0.0.1:{port}\"\n")
        };
        let text: String = (1..).zip(servers).map(group).collect();
        fs::write(&config, text).unwrap();
        let [listen, admin] = [port, admin].map(|port| format!("127.0.0.1:{port}"));
        let mut args = vec!["--listen", &listen, "--admin", &admin];
        args.extend(["--static", config.to_str().unwrap()]);
        args.extend(build.args.iter().map(String::as_str));
        let process = Process::start(dir, &build.label, &build.program, args, &[]);
        Self::started(build.label.clone(), port, process)
    }

    fn started(name: String, port: u16, process: Process) -> Self {
        wait_for(port);
        Self {
            name,
            port,
            process: Some(process),
        }
    }
}

/// Debian keeps it where only root's `PATH` looks.
pub(crate) fn twemproxy_program() -> &'static str {
    let debian = "/usr/sbin/nutcracker";
    if Path::new(debian).exists() {
        debian
    } else {
        "nutcracker"
    }
}

fn wait_for(port: u16) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "nothing listens on {port}");
        thread::sleep(Duration::from_millis(20));
    }
}
