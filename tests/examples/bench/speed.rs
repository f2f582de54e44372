//! What a request costs, beside other proxies over the same two servers.
//!
//! Each round drives each peer with `redis-benchmark`, one after the other, each round beginning with
//! another one, so that what else happens on the machine hits all alike. Compared are ratios within a
//! round; shown are medians over the rounds.

use crate::{
    peer::{Build, Peer, Server},
    scenario::{SCENARIOS, Scenario, preload},
    table::Table,
    usage::{Clock, Usage},
};

/// Rounds with more of it in any of their runs are left out.
const STEAL_MAX: f64 = 0.05;

/// Compare the cost of a request with other proxies'
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Rounds that count, after one to warm up; up to twice as many are run to find quiet ones
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Whom to drive: direct, twemproxy, sluice-1, sluice-1-again, sluice-2, labels of --sluice-bin
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// A build of the proxy to drive with one worker, LABEL=PATH or "LABEL=PATH ARGS"; repeat it to
    /// compare builds. Without --peers: beside twemproxy only
    #[arg(long)]
    sluice_bin: Vec<Build>,
    /// Which scenarios; without any, all
    scenarios: Vec<String>,
}

/// One run of one scenario against one peer.
struct Run {
    requests_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Of the proxy; for a server without one there is nothing to tell.
    cpu_us: f64,
    peak_rss: f64,
    steal: f64,
}

/// Of one scenario, the rounds that count: of each, a run per peer.
struct Rounds {
    kept: Vec<Vec<Run>>,
    left_out: usize,
}

pub(crate) fn run(options: &Options) {
    let dir = tempfile::tempdir().unwrap();
    let servers = [1, 2].map(|index| Server::start(dir.path(), index));
    let ports = [servers[0].port, servers[1].port];
    let mut names = options.peers.clone();
    if names.is_empty() {
        names.push("twemproxy".to_owned());
        if options.sluice_bin.is_empty() {
            names.insert(0, "direct".to_owned());
            names.extend(["sluice-1", "sluice-1-again", "sluice-2"].map(str::to_owned));
        }
        names.extend(options.sluice_bin.iter().map(|build| build.label.clone()));
    }
    let start = |name: &String| match name.as_str() {
        "direct" => Peer::direct(&servers[0]),
        "twemproxy" => Peer::twemproxy(dir.path(), ports),
        "sluice-2" => Peer::sluice(dir.path(), ports, &Build::own(name, &["--workers", "2"])),
        "sluice-1" | "sluice-1-again" => {
            Peer::sluice(dir.path(), ports, &Build::own(name, &["--workers", "1"]))
        }
        label => {
            let build = options.sluice_bin.iter().find(|build| build.label == label);
            let build = build.unwrap_or_else(|| panic!("--peers: there is no {label}"));
            Peer::sluice(dir.path(), ports, build)
        }
    };
    let peers: Vec<Peer> = names.iter().map(start).collect();
    for scenario in SCENARIOS {
        let wanted = &options.scenarios;
        if wanted.is_empty() || wanted.iter().any(|name| name == scenario.name) {
            ports.into_iter().for_each(preload);
            let rounds = measure(&peers, scenario, options.rounds);
            println!("{}\n{}", scenario.name, show(&peers, &rounds));
        }
    }
}

/// Runs rounds until enough of them were quiet, or twice as many have been run: then the quietest count.
fn measure(peers: &[Peer], scenario: &Scenario, wanted: usize) -> Rounds {
    let steal = |round: &Vec<Run>| round.iter().map(|run| run.steal).fold(0.0, f64::max);
    let mut rounds = Vec::new();
    for round in 0..=2 * wanted {
        let mut of_round: Vec<Option<Run>> = peers.iter().map(|_| None).collect();
        for turn in 0..peers.len() {
            let index = (round + turn) % peers.len();
            let run = drive(&peers[index], scenario);
            eprintln!(
                "{} round {round} {:<14} {:>7.0} req/s  p99 {:.3} ms  {:>6.3} µs CPU  steal {:.0} %",
                scenario.name,
                peers[index].name,
                run.requests_per_second,
                run.p99_ms,
                run.cpu_us,
                run.steal * 100.0,
            );
            of_round[index] = Some(run);
        }
        if round > 0 {
            rounds.push(of_round.into_iter().flatten().collect());
        }
        if rounds
            .iter()
            .filter(|round| steal(round) <= STEAL_MAX)
            .count()
            == wanted
        {
            break;
        }
    }
    let all = rounds.len();
    rounds.sort_by(|a, b| steal(a).total_cmp(&steal(b)));
    rounds.truncate(wanted);
    Rounds {
        left_out: all - rounds.len(),
        kept: rounds,
    }
}

fn drive(peer: &Peer, scenario: &Scenario) -> Run {
    let usage = peer
        .process
        .as_ref()
        .map(|process| Usage::of(process.pid()));
    let cpu = usage.map(|usage| {
        usage.forget_peak();
        usage.cpu_ns()
    });
    let clock = Clock::now();
    let answered = scenario.drive(peer.port, scenario.requests);
    let answered = answered.unwrap_or_else(|e| panic!("{} {}: {e}", peer.name, scenario.name));
    let steal = clock.steal();
    let cpu_us = usage.zip(cpu).map_or(f64::NAN, |(usage, before)| {
        (usage.cpu_ns() - before) as f64 / 1000.0 / scenario.requests as f64
    });
    Run {
        requests_per_second: answered.requests_per_second,
        p50_ms: answered.p50_ms,
        p99_ms: answered.p99_ms,
        cpu_us,
        peak_rss: usage.map_or(f64::NAN, |usage| usage.peak_rss() as f64),
        steal,
    }
}

fn show(peers: &[Peer], rounds: &Rounds) -> Table {
    let base = peers
        .iter()
        .position(|peer| peer.name == "twemproxy")
        .unwrap_or(0);
    let versus = |what: &str| format!("{what} / {}", peers[base].name);
    let mut table = Table::new([
        "",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "CPU µs/request",
        "RSS MiB",
        &versus("CPU"),
        &versus("requests/s"),
        &versus("p99"),
    ]);
    for (index, peer) in peers.iter().enumerate() {
        let of =
            |value: fn(&Run) -> f64| median(rounds.kept.iter().map(|round| value(&round[index])));
        let ratio = |value: fn(&Run) -> f64| {
            let ratios = rounds
                .kept
                .iter()
                .map(|round| value(&round[index]) / value(&round[base]));
            let ratios: Vec<f64> = ratios.collect();
            let (least, most) = ratios
                .iter()
                .fold((f64::MAX, f64::MIN), |(a, b), &x| (a.min(x), b.max(x)));
            format!("{:.2} ({least:.2}–{most:.2})", median(ratios.into_iter()))
        };
        table.row([
            peer.name.clone(),
            format!("{:.0}", of(|run| run.requests_per_second)),
            format!("{:.2}", of(|run| run.p50_ms)),
            format!("{:.2}", of(|run| run.p99_ms)),
            format!("{:.3}", of(|run| run.cpu_us)),
            format!("{:.1}", of(|run| run.peak_rss) / f64::from(1 << 20)),
            ratio(|run| run.cpu_us),
            ratio(|run| run.requests_per_second),
            ratio(|run| run.p99_ms),
        ]);
    }
    if rounds.left_out > 0 {
        eprintln!("{} rounds left out: steal", rounds.left_out);
    }
    table
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2])
}
