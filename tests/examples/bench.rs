//! What a request costs a proxy: Sluice beside twemproxy, over the same two servers, in turns.
//!
//! `make bench` (or `make bench ARGS="--rounds 9 get_p16"`). Each round drives each proxy with
//! `redis-benchmark` for each scenario, one after the other, so that what else happens on the machine
//! hits all alike. Shown are medians over the rounds: requests per second, CPU time of the proxy per
//! request (all its threads, `/proc/PID/task/*/schedstat`), and its ratio to twemproxy's in the same
//! round. The host's steal is read for each run; rounds in which it was more than 5 % are left out, and
//! said so, as long as three are left.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a benchmark fails by panicking

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use tests::{Process, binary, free_port};

struct Scenario {
    name: &'static str,
    /// Of `redis-benchmark`.
    args: &'static str,
    requests: u64,
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "get_p1",
        args: "-c 50 -P 1 -t get",
        requests: 200_000,
    },
    Scenario {
        name: "get_p16",
        args: "-c 50 -P 16 -t get",
        requests: 1_000_000,
    },
    Scenario {
        name: "set_p16",
        args: "-c 50 -P 16 -t set",
        requests: 1_000_000,
    },
    Scenario {
        name: "get_p64",
        args: "-c 20 -P 64 -t get",
        requests: 2_000_000,
    },
    Scenario {
        name: "set1k_p16",
        args: "-c 50 -P 16 -d 1024 -t set",
        requests: 400_000,
    },
    Scenario {
        name: "mget10",
        args: "-c 50 -P 1",
        requests: 100_000,
    },
    Scenario {
        name: "c1000_p1",
        args: "-c 1000 -P 1 -t get",
        requests: 200_000,
    },
];

struct Peer {
    name: &'static str,
    process: Process,
    port: u16,
}

/// One run of one scenario against one peer.
#[derive(Clone, Copy)]
struct Run {
    requests_per_second: f64,
    cpu_us_per_request: f64,
    steal: f64,
}

fn main() {
    let mut rounds = 5;
    let mut wanted = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--rounds" => {
                rounds = args
                    .next()
                    .and_then(|n| n.parse().ok())
                    .expect("--rounds N");
            }
            name => wanted.push(name.to_owned()),
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let servers = [server(dir.path(), 1), server(dir.path(), 2)];
    let ports = [servers[0].1, servers[1].1];
    let peers = [
        twemproxy(dir.path(), ports),
        sluice(dir.path(), ports, "sluice 1 worker", 1),
        sluice(dir.path(), ports, "sluice again", 1), // the same once more: how far noise goes
        sluice(dir.path(), ports, "sluice 2 workers", 2),
    ];
    peers.iter().for_each(|peer| wait_for(peer.port));

    println!(
        "{:<10} {:<18} {:>9} {:>8} {:>7}",
        "scenario", "proxy", "req/s", "µs/req", "ratio"
    );
    for scenario in SCENARIOS {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == scenario.name) {
            continue;
        }
        // Small values, whatever the scenario before has left.
        drive(ports[0], "-c 20 -P 64 -t set -r 100000", 200_000);
        peers
            .iter()
            .for_each(|peer| drive(peer.port, "-c 20 -P 64 -t set -r 100000", 200_000));
        let mut runs: Vec<Vec<Run>> = Vec::new();
        for round in 0..=rounds {
            let of_round: Vec<Run> = peers.iter().map(|peer| measure(peer, scenario)).collect();
            if round > 0 {
                runs.push(of_round); // the first is the warm-up
            }
        }
        report(scenario, &peers, runs);
    }
}

fn report(scenario: &Scenario, peers: &[Peer], mut runs: Vec<Vec<Run>>) {
    let steal = |round: &Vec<Run>| round.iter().map(|run| run.steal).fold(0.0, f64::max);
    let all = runs.len();
    runs.sort_by(|a, b| steal(a).total_cmp(&steal(b)));
    let quiet = runs.iter().filter(|round| steal(round) <= 0.05).count();
    runs.truncate(quiet.max(3));
    for (index, peer) in peers.iter().enumerate() {
        let of = |value: fn(&Run) -> f64| median(runs.iter().map(|round| value(&round[index])));
        let ratio = median(
            runs.iter()
                .map(|round| round[index].cpu_us_per_request / round[0].cpu_us_per_request),
        );
        println!(
            "{:<10} {:<18} {:>9.0} {:>8.3} {:>7.2}",
            scenario.name,
            peer.name,
            of(|run| run.requests_per_second),
            of(|run| run.cpu_us_per_request),
            ratio,
        );
    }
    if runs.len() < all {
        println!(
            "{:<10} ({} of {all} rounds left out: steal)",
            "",
            all - runs.len()
        );
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn measure(peer: &Peer, scenario: &Scenario) -> Run {
    let (cpu, steal, since) = (cpu_ns(peer.process.pid()), steal(), Instant::now());
    let args = format!("{} -r 100000", scenario.args);
    let args = if scenario.name == "mget10" {
        let keys = " key:__rand_int__".repeat(10);
        format!("{args} mget{keys}")
    } else {
        args
    };
    let args = with_count(&args, scenario.requests);
    run_benchmark(peer.port, &args);
    let elapsed = since.elapsed();
    let (steal_after, cpu_after) = (self::steal(), cpu_ns(peer.process.pid()));
    Run {
        requests_per_second: scenario.requests as f64 / elapsed.as_secs_f64(),
        cpu_us_per_request: (cpu_after - cpu) as f64 / 1000.0 / scenario.requests as f64,
        steal: (steal_after.0 - steal.0) as f64 / (steal_after.1 - steal.1).max(1) as f64,
    }
}

fn drive(port: u16, args: &str, requests: u64) {
    run_benchmark(port, &with_count(args, requests));
}

/// The count goes first: what follows the options may be a command of its own.
fn with_count(args: &str, requests: u64) -> String {
    format!("-n {requests} {args}")
}

fn run_benchmark(port: u16, args: &str) {
    let output = Command::new("redis-benchmark")
        .args(["-p", &port.to_string(), "-q"])
        .args(args.split(' '))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// CPU time of all threads so far, in nanoseconds.
fn cpu_ns(pid: u32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|text| text.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// Of the machine, in ticks since it started: stolen by the host, and all.
fn steal() -> (u64, u64) {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let ticks: Vec<u64> = stat
        .lines()
        .next()
        .unwrap()
        .split(' ')
        .filter_map(|n| n.parse().ok())
        .collect();
    (ticks[7], ticks.iter().take(8).sum())
}

fn server(dir: &Path, index: usize) -> (Process, u16) {
    let port = free_port();
    let args = format!("--port {port} --bind 127.0.0.1 --appendonly no --maxclients 20000");
    let args = args.split(' ').chain(["--save", ""]);
    let process = Process::start(dir, &format!("server-{index}"), "redis-server", args, &[]);
    wait_for(port);
    (process, port)
}

fn twemproxy(dir: &Path, servers: [u16; 2]) -> Peer {
    let port = free_port();
    let config = dir.join("twemproxy.yml");
    let list = servers
        .map(|port| format!("    - 127.0.0.1:{port}:1\n"))
        .concat();
    let text = format!(
        "bench:\n  listen: 127.0.0.1:{port}\n  hash: crc32\n  distribution: modula\n  redis: true\n  \
         server_connections: 1\n  servers:\n{list}"
    );
    fs::write(&config, text).unwrap();
    let program = if Path::new("/usr/sbin/nutcracker").exists() {
        "/usr/sbin/nutcracker"
    } else {
        "nutcracker"
    };
    let stats = free_port().to_string();
    let args = ["-c", config.to_str().unwrap(), "-s", &stats];
    Peer {
        name: "twemproxy",
        process: Process::start(dir, "twemproxy", program, args, &[]),
        port,
    }
}

fn sluice(dir: &Path, servers: [u16; 2], name: &'static str, workers: usize) -> Peer {
    let port = free_port();
    let config = dir.join("static.toml");
    let groups = servers.iter().enumerate().map(|(index, port)| {
        format!(
            "[[group]]\nid = \"g{}\"\nprimary = \"127.0.0.1:{port}\"\n",
            index + 1
        )
    });
    fs::write(&config, groups.collect::<String>()).unwrap();
    let (listen, workers) = (format!("127.0.0.1:{port}"), workers.to_string());
    let config = config.to_str().unwrap();
    let args = [
        "--listen",
        &listen,
        "--admin",
        "127.0.0.1:0",
        "--static",
        config,
        "--workers",
        &workers,
    ];
    let process = Process::start(dir, name, binary("sluice-proxy"), args, &[]);
    Peer {
        name,
        process,
        port,
    }
}

fn wait_for(port: u16) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "nothing listens on {port}");
        thread::sleep(Duration::from_millis(20));
    }
}
