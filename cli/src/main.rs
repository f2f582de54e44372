//! `sluice`, the operator's tool: manages a cluster over gRPC, and runs one on this machine.
//!
//! A command is a noun and a verb. [`args`] says what there is; each noun has a file in
//! [`commands`], which calls the controller through [`client`] and shows the answer through
//! [`output`]; what fails ends in [`error`]. `sluice dev` is [`dev`]; what a Codis left behind is read by
//! [`codis`]. Whatever the tool says about
//! a cluster it has from the controller's API: it reads no store and keeps no state.

mod args;
mod client;
mod codis;
mod commands;
mod dev;
mod error;
mod output;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

/// One thread does everything. `sluice dev` depends on it: a child it starts is tied to the thread
/// that started it, see [`dev`].
fn run(cli: args::Cli) -> Result<(), error::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)?;
    runtime.block_on(commands::run(cli))
}
