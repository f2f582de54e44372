//! Slots move, and somebody is killed each time.

use std::{collections::BTreeMap, time::Duration};

use tests::chaos::{Section, Victim};

use crate::report::Report;

const AREA: &str = "cycles";

/// So many in one cluster: what clients have seen is checked when it ends.
const IN_SECTION: usize = 25;

/// All sections together, so far.
#[derive(Default)]
struct Sum {
    took: BTreeMap<Victim, Vec<Duration>>,
    answered: u64,
    failed: u64,
    longest_hold: Duration,
}

pub(crate) async fn run(seed: u64, cycles: usize, report: &mut Report) {
    let mut sum = Sum::default();
    for first in (0..cycles).step_by(IN_SECTION) {
        let count = IN_SECTION.min(cycles - first);
        let seed = seed.wrapping_add(first as u64);
        let case = format!("{first} to {}, seed {seed}", first + count - 1);
        let mut victims = Vec::from(Victim::KILLED);
        victims.push(Victim::Nobody);
        let trial = async move {
            let section = Section::of(seed, count, &victims);
            let (outcome, _cluster) = Box::pin(section.run()).await;
            let report = &outcome.report;
            assert!(report.violations.is_empty(), "{:?}", report.violations);
            let measured = format!("{} answered, {:?}", report.answered, report.errors);
            (outcome, measured)
        };
        let Some(outcome) = report.run(AREA, case, trial).await else {
            continue;
        };
        sum.answered += outcome.report.answered;
        sum.failed += outcome.failed;
        sum.longest_hold = sum.longest_hold.max(outcome.longest_hold);
        for (victim, took) in outcome.took {
            sum.took.entry(victim).or_default().extend(took);
        }
    }
    println!("\n| killed | cycles | until the move was over: median | longest |");
    println!("|---|---:|---:|---:|");
    for (victim, took) in &mut sum.took {
        took.sort();
        let [median, longest] = [took.len() / 2, took.len() - 1].map(|at| took[at].as_secs_f64());
        println!(
            "| {victim} | {} | {median:.2} s | {longest:.2} s |",
            took.len()
        );
    }
    println!(
        "\n{} requests answered and right; {} moves left slots where they were; longest hold {:?}",
        sum.answered, sum.failed, sum.longest_hold
    );
}
