//! What Sluice costs, beside its peers and on bad days; see the subcommands.
//!
//! `make bench`, `make bench-memory` and `make bench-migration` run it and write `BENCHMARKS.md`; all take
//! `ARGS="…"`.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)] // fails by panicking

mod document;
mod floor;
mod machine;
mod memory;
mod migration;
mod peer;
mod rounds;
mod scenario;
mod speed;
mod syscalls;
mod table;
mod usage;

use clap::Parser;

#[derive(Parser)]
#[command(name = "bench")]
enum Args {
    Speed(speed::Options),
    Memory(memory::Options),
    Migration(migration::Options),
    #[command(hide = true)]
    Floor(floor::Options),
}

fn main() {
    match Args::parse() {
        Args::Speed(options) => speed::run(&options),
        Args::Memory(options) => memory::run(&options),
        Args::Migration(options) => migration::run(&options),
        Args::Floor(options) => floor::run(&options),
    }
}
