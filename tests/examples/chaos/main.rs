//! The long trials: what `make test` does a little of is done here for as long as it takes.
//!
//! `make chaos` runs all areas, `make chaos ARGS="cycles --seed 7"` one of them, again. A trial that fails
//! does not end the others; all are told of in a table at the end, and the exit status is 1 if one failed.
//! An area is a file here, and only says what is tried with which numbers: how it is done, and what must be
//! true, is in the harness, which `make test` uses too.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a trial fails by panicking

mod certificates;
mod cycles;
mod failover;
mod fleet;
mod mirror;
mod outage;
mod report;

use std::{process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};

use crate::report::Report;

#[derive(Parser)]
#[command(name = "chaos")]
struct Options {
    /// From which all that is random follows; another one each time, if it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// How often somebody is killed while slots move.
    #[arg(long, default_value_t = 1000)]
    cycles: usize,
    /// For how many seconds certificates change.
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// What to try; all of it if nothing is named.
    #[arg(value_enum)]
    areas: Vec<Area>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Area {
    /// Certificates and their authorities change.
    Certificates,
    /// Slots move, and somebody is killed each time.
    Cycles,
    /// The leader is killed, and hangs, at each of its steps.
    Failover,
    /// Many proxies at one controller, which is killed.
    Fleet,
    /// A mirror's files are spoilt.
    Mirror,
    /// ZooKeeper is away for five minutes.
    Outage,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("seed {seed}");
    let areas = match options.areas.is_empty() {
        true => Area::value_variants(),
        false => &options.areas,
    };
    let mut report = Report::default();
    for area in areas {
        match area {
            Area::Certificates => {
                let time = Duration::from_secs(options.seconds);
                certificates::run(time, &mut report).await;
            }
            Area::Cycles => cycles::run(seed, options.cycles, &mut report).await,
            Area::Failover => failover::run(seed, &mut report).await,
            Area::Fleet => fleet::run(&mut report).await,
            Area::Mirror => mirror::run(seed, &mut report).await,
            Area::Outage => outage::run(&mut report).await,
        }
    }
    println!("\nseed {seed}\n{report}");
    match report.is_good() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
