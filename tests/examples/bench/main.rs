//! What the proxy costs, beside its peers and on bad days; see the two subcommands.
//!
//! `make bench` and `make bench-memory` run it and write `BENCHMARKS.md`; both take `ARGS="…"`.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)] // fails by panicking

mod document;
mod floor;
mod machine;
mod memory;
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
    #[command(hide = true)]
    Floor(floor::Options),
}

fn main() {
    match Args::parse() {
        Args::Speed(options) => speed::run(&options),
        Args::Memory(options) => memory::run(&options),
        Args::Floor(options) => floor::run(&options),
    }
}
