//! Redis's own tests, run against the proxy and against a plain server, and compared.
//!
//! `make conformance` fetches the tests and runs this; `ARGS="unit/type/string unit/sort"` runs some
//! units only. What a plain server passes the proxy must pass too, or it stands in
//! `tests/conformance/accepted.txt` with its reason. The exit status is 1 if anything else fails, if a
//! unit dies or hangs, and if something passes that is listed there: the list cannot rot.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a check fails by panicking

mod accepted;
mod suite;
mod verdict;

use std::{fs, path::PathBuf, process::ExitCode, sync::mpsc, thread};

use clap::Parser;
use tests::{Cluster, Server};

use crate::{
    accepted::Accepted,
    suite::{Outcome, Suite},
    verdict::{Totals, Verdict},
};

#[derive(Parser)]
#[command(name = "conformance")]
struct Options {
    /// Where `.ci/redis-suite` has put Redis's tests.
    #[arg(long)]
    suite: PathBuf,
    /// The list of accepted failures.
    #[arg(long)]
    accepted: PathBuf,
    /// Also runs what the list says must be skipped, because its unit ends there.
    #[arg(long)]
    no_skip: bool,
    /// Units to run, as `unit/type/string`; all of them if none is named.
    units: Vec<String>,
}

/// How many units may be done on one side and not on the other.
const AHEAD: usize = 100;

/// The tests look for a free port of their own, but not well enough for several runs at once: each begins
/// elsewhere, below the ports that the kernel gives.
const FIRST_PORT: u16 = 21_000;
const PORTS: u16 = 100;

fn main() -> ExitCode {
    let options = Options::parse();
    let text = fs::read_to_string(&options.accepted).unwrap();
    let accepted = match Accepted::parse(&text) {
        Ok(accepted) => accepted,
        Err(why) => {
            println!("Error: {}: {why}", options.accepted.display());
            return ExitCode::FAILURE;
        }
    };
    let units = match options.units.is_empty() {
        true => suite::all_units(&options.suite),
        false => options.units.clone(),
    };

    // Both sides run at once: most of the time is the Tcl interpreter's.
    let ports = FIRST_PORT + PORTS * (std::process::id() % 100) as u16;
    let plain = Suite::new(&options.suite, "plain", ports);
    let proxy = Suite::new(&options.suite, "proxy", ports + PORTS / 2);
    let (done, plain_outcomes) = mpsc::sync_channel(AHEAD);
    let plain_units = units.clone();
    let plain = thread::spawn(move || {
        for unit in &plain_units {
            done.send(at_plain_server(&plain, unit)).unwrap();
        }
    });
    let mut totals = Totals::default();
    println!("{}", Totals::heading());
    for unit in &units {
        let skips = match options.no_skip {
            true => Vec::new(),
            false => accepted.skipped_in(unit),
        };
        let at_proxy = at_proxy(&proxy, unit, &skips);
        let at_plain = plain_outcomes.recv().unwrap();
        let verdict = Verdict::of(unit, &at_plain, &at_proxy, &accepted);
        if !verdict.is_empty() {
            println!("{verdict}");
        }
        totals.add(verdict);
    }
    plain.join().unwrap();
    print!("{totals}");
    match totals.good() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn at_plain_server(suite: &Suite, unit: &str) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), "plain", &[]);
    block_on(server.answers());
    suite.run(unit, &server.addr, &[])
}

/// Each unit has a cluster of its own: what one leaves behind, in settings or in a crash, is not the
/// next one's.
fn at_proxy(suite: &Suite, unit: &str, skips: &[&str]) -> Outcome {
    let cluster = block_on(
        Cluster::builder()
            .groups(2)
            .proxies(1)
            .proxy_args(PROXY_ARGS)
            .start(),
    );
    let outcome = suite.run(unit, &cluster.proxies[0].addr, skips);
    let log = cluster.proxies[0].process.log();
    fs::write(suite.log_of(unit).with_extension("proxy.txt"), log).unwrap();
    outcome
}

/// The units set the servers' settings, and let scripts run for long; the machine may be busy.
const PROXY_ARGS: &[&str] = &["--allow-config-set", "--server-timeout", "60s"];

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(future)
}
