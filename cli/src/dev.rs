//! `sluice dev`: a whole cluster of real processes on this machine.
//!
//! Everything that can be known beforehand is checked before anything is started: the plan of ports
//! ([`ports`]), that they are free, that the programs are there ([`binaries`]). Then the processes
//! are started ([`process`]), and made into a cluster through the controller's API, by the code behind
//! `sluice group create` and `sluice slot assign` ([`cluster`]). From there on it only watches and
//! shows ([`screen`]).
//!
//! Whatever ends it, all that it started is stopped: in order where there is time for that, by the
//! kernel where there is not ([`tether`]).

mod binaries;
mod cluster;
mod folder;
mod ports;
mod process;
mod sample;
mod screen;
mod tether;

use std::{io, path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::{Args, value_parser};
use proto::settings;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::{
    binaries::Binaries,
    cluster::DevCluster,
    folder::Folder,
    ports::{Plan, Shape},
    screen::Screen,
};
use crate::{error::Error, output::Output};

pub(crate) const HELP: &str = "\
All of it is real: sluice-controller with its embedded store, redis-server processes, sluice-proxy.
The programs are looked for beside this one first, then in PATH. What it starts it stops again,
however it ends.

Examples:
  sluice dev
  sluice dev --groups 3 --replicas 1 --for 5m
  sluice dev --port 20000 --controller-port 28080 --redis-port 8001

RPC: AdminService.CreateGroup, AssignSlots, GetCluster, GetTopology, ListProxies";

/// What cluster to run.
#[derive(Args)]
pub(crate) struct DevArgs {
    /// How many groups
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = value_parser!(u16).range(1..=64))]
    groups: u16,
    /// How many replicas each group has
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = value_parser!(u16).range(0..=8))]
    replicas: u16,
    /// How many proxies
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = value_parser!(u16).range(1..=64))]
    proxies: u16,
    /// How many workers each proxy has, instead of one a core
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..))]
    workers: Option<u16>,
    /// How many keys to load as a sample
    #[arg(long, value_name = "N", default_value_t = 1000)]
    keys: u64,
    /// Where the first proxy listens, its admin HTTP 80 above; the others follow
    #[arg(long, value_name = "PORT", default_value_t = 19000, value_parser = value_parser!(u16).range(1..))]
    port: u16,
    /// Where the controller listens, its HTTP one above
    #[arg(long, value_name = "PORT", default_value_t = 18080, value_parser = value_parser!(u16).range(1..))]
    controller_port: u16,
    /// Where the first Redis server listens; the others follow
    #[arg(long, value_name = "PORT", default_value_t = 7001, value_parser = value_parser!(u16).range(1..))]
    redis_port: u16,
    /// Keep the cluster and the logs in this folder, for a next run; the keys are not kept
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// End by itself, this long after all runs
    #[arg(long = "for", value_name = "DURATION", value_parser = settings::duration)]
    run_for: Option<Duration>,
}

/// Runs a cluster until it is told to stop.
pub(crate) async fn run(output: &Output, args: DevArgs) -> Result<(), Error> {
    let plan = Plan::new(&Shape {
        groups: args.groups,
        replicas: args.replicas,
        proxies: args.proxies,
        proxy_port: args.port,
        controller_port: args.controller_port,
        redis_port: args.redis_port,
    })?;
    let binaries = Binaries::find()?;
    plan.check_free()?;

    let mut interrupts = Interrupts::new().context("listen for signals")?;
    let folder = Folder::open(args.data_dir.as_deref())?;
    let mut cluster = DevCluster::new(args, plan, binaries, folder, Screen::new(output));
    let result = tokio::select! {
        result = cluster.run() => result,
        () = interrupts.next() => Ok(()),
    };
    cluster.stop(interrupts.next()).await;
    result
}

/// The signals that mean *stop*: Ctrl-C, a polite kill, a closed terminal.
struct Interrupts([Signal; 3]);

impl Interrupts {
    fn new() -> io::Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn next(&mut self) {
        let Self([interrupt, terminate, hangup]) = self;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
