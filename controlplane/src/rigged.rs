//! `sluice-controller` as tests run it: with the bug that the environment names, see [`proto::seeded`], and with
//! steps at which `FAILPOINTS` stops or kills it, see [`controlplane::failpoint`].

use std::process::ExitCode;

use fail::FailScenario;

#[path = "main.rs"]
mod program;

fn main() -> ExitCode {
    let scenario = FailScenario::setup();
    let code = program::main();
    scenario.teardown();
    code
}
