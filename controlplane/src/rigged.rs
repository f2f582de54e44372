//! `sluice-controller` as tests run it: with the bug that the environment names, see [`proto::seeded`].

use std::process::ExitCode;

#[path = "main.rs"]
mod program;

fn main() -> ExitCode {
    program::main()
}
