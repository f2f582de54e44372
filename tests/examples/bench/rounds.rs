//! Runs of one scenario against several peers, in turns, and what they say together.
//!
//! Each round drives each peer once, each round beginning with another one, so that what else happens on
//! the machine hits all alike. Compared are ratios within a round; told are medians over the rounds.

use crate::{
    peer::Peer,
    scenario::Scenario,
    table::number,
    usage::{Clock, Usage},
};

/// Rounds with more of it in any of their runs are left out.
pub(crate) const STEAL_MAX: f64 = 0.05;

/// One run of one scenario against one peer.
pub(crate) struct Run {
    pub(crate) requests_per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Of the proxy. Not a number where there is no proxy.
    pub(crate) cpu_us: f64,
    /// Of the proxy, at most during the run. Not a number where there is no proxy.
    pub(crate) rss_mib: f64,
    /// The share of the machine that its host gave to others meanwhile.
    pub(crate) steal: f64,
}

/// Of one scenario, the rounds that count: of each, a run per peer, in the order of the peers.
pub(crate) struct Rounds {
    kept: Vec<Vec<Run>>,
    /// How many more were run.
    pub(crate) left_out: usize,
}

/// A median, and between what it lies; see [`spread`].
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Rounds {
    /// Runs rounds until enough of them were quiet, or twice as many have been run: then the quietest
    /// count. One more before them warms up.
    pub(crate) fn measure(peers: &[Peer], scenario: &Scenario, wanted: usize) -> Self {
        let mut rounds: Vec<Vec<Run>> = Vec::new();
        let quiet = |rounds: &[Vec<Run>]| rounds.iter().filter(|r| steal(r) <= STEAL_MAX).count();
        for round in 0..=2 * wanted {
            let mut runs: Vec<Option<Run>> = peers.iter().map(|_| None).collect();
            for turn in 0..peers.len() {
                let index = (round + turn) % peers.len();
                let run = Run::measure(&peers[index], scenario);
                run.tell(&format!("{} round {round}", scenario.name), &peers[index]);
                runs[index] = Some(run);
            }
            if round > 0 {
                rounds.push(runs.into_iter().flatten().collect());
            }
            if quiet(&rounds) == wanted {
                break;
            }
        }
        let all = rounds.len();
        rounds.sort_by(|a, b| steal(a).total_cmp(&steal(b)));
        rounds.truncate(wanted);
        Self {
            left_out: all - rounds.len(),
            kept: rounds,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.kept.len()
    }

    /// The most of it in any run of a round that counts.
    pub(crate) fn steal(&self) -> f64 {
        self.kept.iter().map(|runs| steal(runs)).fold(0.0, f64::max)
    }

    /// Of one peer.
    pub(crate) fn median(&self, peer: usize, value: fn(&Run) -> f64) -> f64 {
        spread(self.kept.iter().map(|runs| value(&runs[peer]))).median
    }

    /// Of one peer to another in the same round.
    pub(crate) fn ratio(&self, peer: usize, base: usize, value: fn(&Run) -> f64) -> Spread {
        spread(
            self.kept
                .iter()
                .map(|runs| value(&runs[peer]) / value(&runs[base])),
        )
    }
}

impl Run {
    fn measure(peer: &Peer, scenario: &Scenario) -> Self {
        let usage = peer
            .process
            .as_ref()
            .map(|process| Usage::of(process.pid()));
        let before = usage.map_or(0, |usage| {
            usage.forget_peak();
            usage.cpu_ns()
        });
        let clock = Clock::now();
        let answered = scenario.drive(peer.port, scenario.requests);
        let answered = answered.unwrap_or_else(|e| panic!("{} {}: {e}", peer.name, scenario.name));
        let steal = clock.steal();
        let cpu_us =
            |usage: Usage| (usage.cpu_ns() - before) as f64 / 1000.0 / scenario.requests as f64;
        Self {
            requests_per_second: answered.requests_per_second,
            p50_ms: answered.p50_ms,
            p99_ms: answered.p99_ms,
            cpu_us: usage.map_or(f64::NAN, cpu_us),
            rss_mib: usage.map_or(f64::NAN, |usage| usage.peak_rss_mib()),
            steal,
        }
    }

    /// Progress, for who waits.
    fn tell(&self, what: &str, peer: &Peer) {
        eprintln!(
            "{what} {:<14} {:>8.0} requests/s, p99 {:>6.2} ms, CPU {:>6} µs, steal {:.0} %",
            peer.name,
            self.requests_per_second,
            self.p99_ms,
            number(self.cpu_us, 3),
            self.steal * 100.0,
        );
    }
}

/// Of a round: the most of any of its runs.
fn steal(runs: &[Run]) -> f64 {
    runs.iter().map(|run| run.steal).fold(0.0, f64::max)
}

pub(crate) fn spread(values: impl Iterator<Item = f64>) -> Spread {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = |rank: usize| values[rank / 2];
    Spread {
        median: f64::midpoint(middle(values.len() - 1), middle(values.len())),
        least: values[0],
        most: values[values.len() - 1],
    }
}
