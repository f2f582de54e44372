//! `make bench-memory`: what connections cost, and what bad days do to memory and to other clients.

mod burst;
mod client;
mod idle;
mod others;
mod slow_readers;
mod stand;
mod stopped;
mod storm;

use crate::{
    document, machine,
    memory::stand::Stand,
    peer::{self, Build},
    table::{Table, met},
};

/// Measure memory and the cost of bad days against their goals; writes BENCHMARKS.md
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The proxy's --max-memory, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    max_memory: u32,
    /// Another build of the proxy, "LABEL=PATH ARGS"; it gets no arguments but these
    #[arg(long)]
    sluice_bin: Option<Build>,
    /// Leave BENCHMARKS.md as it is (as when not all scenarios are measured)
    #[arg(long)]
    no_write: bool,
    /// Scenarios: idle, slow_readers, burst, storm, stopped; without any, all
    scenarios: Vec<String>,
}

/// One thing that was measured.
struct Finding {
    what: String,
    measured: String,
    /// What is wanted, and whether it is so. `None`: it is told for what it is worth.
    goal: Option<(String, bool)>,
}

/// A name, and what it does to the proxy.
type Scenario = (&'static str, fn(&Stand) -> Vec<Finding>);

const SCENARIOS: [Scenario; 5] = [
    ("idle", idle::run),
    ("slow_readers", slow_readers::run),
    ("burst", burst::run),
    ("storm", storm::run),
    ("stopped", stopped::run),
];

pub(crate) fn run(options: &Options) {
    let wanted = &options.scenarios;
    for name in wanted {
        let known = SCENARIOS.iter().any(|(known, _)| known == name);
        assert!(known, "there is no scenario {name}");
    }
    let mut table = Table::of_text(["scenario", "what", "measured", "goal", ""]);
    for (name, scenario) in SCENARIOS {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
            continue;
        }
        // A proxy of its own: what an earlier scenario has left would be counted here.
        let stand = Stand::start(options.sluice_bin.as_ref(), options.max_memory);
        for finding in scenario(&stand) {
            finding.tell(name);
            let (goal, verdict) = match finding.goal {
                Some((goal, yes)) => (goal, met(yes)),
                None => (String::new(), String::new()),
            };
            let cells = [
                name.to_owned(),
                finding.what,
                finding.measured,
                goal,
                verdict,
            ];
            table.row(cells);
        }
    }
    println!("\n{table}");
    if !options.no_write && wanted.is_empty() && options.sluice_bin.is_none() {
        document::replace("Memory and bad days", &section(&table, options));
    }
}

impl Finding {
    /// With a goal.
    fn new(
        what: impl Into<String>,
        measured: impl Into<String>,
        goal: impl Into<String>,
        is_met: bool,
    ) -> Self {
        Self {
            what: what.into(),
            measured: measured.into(),
            goal: Some((goal.into(), is_met)),
        }
    }

    /// Without one.
    fn note(what: impl Into<String>, measured: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            measured: measured.into(),
            goal: None,
        }
    }

    /// Told for what it is worth.
    fn without_goal(self) -> Self {
        Self { goal: None, ..self }
    }

    /// Something in MiB that must stay within the proxy's limit and a tenth.
    fn within_limit(what: &str, mib: f64, limit_mib: u32) -> Self {
        let most = f64::from(limit_mib) * 1.1;
        Self::new(
            what,
            format!("{mib:.1} MiB"),
            format!("at most {limit_mib} MiB + 10 %"),
            mib <= most,
        )
    }

    fn tell(&self, scenario: &str) {
        let goal = match &self.goal {
            Some((goal, true)) => format!(" (goal: {goal}; met)"),
            Some((goal, false)) => format!(" (goal: {goal}; NOT MET)"),
            None => String::new(),
        };
        println!("{scenario}: {}: {}{goal}", self.what, self.measured);
    }
}

fn section(table: &Table, options: &Options) -> String {
    format!(
        "`{}` at commit {}.\n\n\
         Machine: {}.\n\
         Programs: {}.\n\n\
         Each scenario has a proxy of its own with one worker and `--max-memory {}MiB` before two \
         `redis-server`s. The clients that make it hard run on the same cores at a low priority (nice 10); \
         {}\n\n{table}",
        document::command("bench-memory", ""),
        machine::commit(),
        machine::machine(),
        machine::versions(peer::twemproxy_program(), None),
        options.max_memory,
        others::ABOUT,
    )
}
