//! The README's way from one plain Redis to a cluster of two groups, by its own commands, with clients at work.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use redis::aio::MultiplexedConnection;
use tests::{Load, Process, binary, eventually, free_port};
use tokio::net::TcpStream;

/// The lines of the first block of code behind some words, without what is said beside them.
fn block(text: &str, words: &str) -> Vec<String> {
    let (_, after) = text.split_once(words).expect("the README says so");
    let block = after.split("```").nth(1).expect("there is a block");
    let lines = block
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty());
    lines.map(str::to_owned).collect()
}

/// Where its commands are run, on ports of their own.
struct Shell<'a> {
    dir: &'a Path,
    /// By the ports that the README has.
    ports: BTreeMap<&'static str, u16>,
    running: Vec<Process>,
}

impl Shell<'_> {
    fn addr(&self, port: &str) -> String {
        format!("127.0.0.1:{}", self.ports[port])
    }

    /// Whoever reads it has the defaults; here they are taken.
    fn env(&self) -> Vec<(&'static str, String)> {
        let programs = binary("sluice");
        let programs = programs.parent().unwrap().to_str().unwrap();
        let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
        vec![
            ("PATH", path),
            ("SLUICE_ENDPOINT", self.addr("18080")),
            ("SLUICE_CONTROLLER_LISTEN", self.addr("18080")),
            ("SLUICE_CONTROLLER_HTTP", self.addr("18081")),
            ("SLUICE_PROXY_LISTEN", self.addr("19000")),
            ("SLUICE_PROXY_ADMIN", self.addr("19080")),
        ]
    }

    /// Runs a line: what stays is a process of the test, what ends must end well.
    async fn run(&mut self, line: &str) {
        let mut line = line.split(" #").next().unwrap().trim_end().to_owned();
        for (written, port) in &self.ports {
            line = line.replace(written, &port.to_string());
        }
        let server = line.strip_suffix(" --daemonize yes");
        let stays = server.or(line.strip_suffix(" &"));
        let env = self.env();
        let Some(stays) = stays else {
            let mut bash = Command::new("bash");
            let output = bash
                .args(["-c", &line])
                .envs(env)
                .current_dir(self.dir)
                .output();
            let output = output.unwrap();
            assert!(output.status.success(), "{line}: {output:?}");
            return;
        };
        let exec = format!("cd {}; exec {stays}", self.dir.display());
        let env: Vec<_> = env
            .iter()
            .map(|(key, value)| (*key, value.as_str()))
            .collect();
        let name = format!("line-{}", self.running.len());
        self.running
            .push(Process::start(self.dir, &name, "bash", ["-c", &exec], &env));
        // Nobody types as fast as a test.
        let listens = match stays.split(' ').next() {
            Some("redis-server") => stays.split(' ').nth(2).unwrap().to_owned(),
            Some("sluice-controller") => self.ports["18080"].to_string(),
            _ => self.ports["19000"].to_string(),
        };
        eventually(|| async {
            let connected = TcpStream::connect(format!("127.0.0.1:{listens}")).await;
            connected.map(drop).map_err(|e| format!("{stays}: {e}"))
        })
        .await;
    }
}

async fn connect(addr: &str) -> MultiplexedConnection {
    let client = redis::Client::open(format!("redis://{addr}/")).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

#[tokio::test]
async fn a_plain_redis_becomes_a_cluster_of_two_groups() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(readme).unwrap();
    let lines = block(
        &readme,
        "From one plain Redis with data in it to two groups",
    );
    let dir = tempfile::tempdir().unwrap();
    let ports = ["7001", "7002", "18080", "18081", "19000", "19080"];
    let mut shell = Shell {
        dir: dir.path(),
        ports: ports.map(|port| (port, free_port())).into(),
        running: Vec::new(),
    };
    let mut load = None;
    for (number, line) in lines.iter().enumerate() {
        if line.starts_with('#') {
            let mut client = connect(&shell.addr("19000")).await;
            let value: String = redis::cmd("GET")
                .arg("k7")
                .query_async(&mut client)
                .await
                .unwrap();
            assert_eq!(value, "7");
            load = Some(Load::start(vec![client], |_| true));
            continue;
        }
        shell.run(line).await;
        if number == 0 {
            let mut fill = redis::pipe();
            for n in 0..1000 {
                fill.set(format!("k{n}"), n).ignore();
            }
            let mut client = connect(&shell.addr("7001")).await;
            fill.exec_async(&mut client).await.unwrap();
        }
        if let Some(load) = &load {
            load.advance(400).await;
        }
    }
    let load = load.expect("the README says when clients go to a proxy");
    assert_eq!(load.stop().await, Vec::<String>::new());
    let mut client = connect(&shell.addr("19000")).await;
    for n in 0..1000 {
        let key = format!("k{n}");
        let value: usize = redis::cmd("GET")
            .arg(&key)
            .query_async(&mut client)
            .await
            .unwrap();
        assert_eq!(value, n);
        // It is where its slot is now, and nowhere else.
        let owner =
            ["7001", "7002"][usize::from(proto::Slot::of_key(key.as_bytes()).number() >= 512)];
        if n % 100 == 0 {
            for port in ["7001", "7002"] {
                let mut server = connect(&shell.addr(port)).await;
                let there: bool = redis::cmd("EXISTS")
                    .arg(&key)
                    .query_async(&mut server)
                    .await
                    .unwrap();
                assert_eq!(there, port == owner, "{key} at {port}");
            }
        }
    }
}
