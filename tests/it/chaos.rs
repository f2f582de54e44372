//! Slots move again and again, and whoever is killed meanwhile, nothing is lost. `make chaos` does it longer.
//!
//! What fails says its seed: `SEED=7 cargo test -p tests --test it chaos::` chooses the same again.

use std::env;

use tests::{
    chaos::{Outcome, Section, Victim},
    migration::assert_nobody_noticed,
};

fn seed(usual: u64) -> u64 {
    let chosen = env::var("SEED").ok();
    chosen.map_or(usual, |seed| seed.parse().expect("SEED is a number"))
}

/// 15 cycles in which somebody is killed.
async fn nothing_is_lost(usual: u64) -> Outcome {
    let section = Section::of(seed(usual), 15, &Victim::KILLED);
    let (outcome, _cluster) = section.run().await;
    let violations = &outcome.report.violations;
    assert_eq!(*violations, Vec::<String>::new(), "seed {}", section.seed);
    outcome
}

#[tokio::test]
async fn whoever_is_killed_nothing_is_lost() {
    let outcome = nothing_is_lost(1).await;
    // Or it would be no proof.
    assert!(outcome.report.errors.contains_key("lost"), "{outcome:?}");
}

#[tokio::test]
async fn whoever_is_killed_nothing_is_lost_again() {
    nothing_is_lost(2).await;
}

#[tokio::test]
async fn twenty_healthy_cut_overs_are_noticed_by_nobody() {
    let section = Section::of(seed(3), 20, &[Victim::Nobody]);
    let (outcome, cluster) = section.run().await;
    assert_nobody_noticed(&cluster, &outcome.report);
}
