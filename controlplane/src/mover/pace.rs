//! How fast a copy goes: as fast as it may, and as the source bears.
//!
//! Two things hold it back. A *rate*, which somebody has set. And *easing*: the source is asked for
//! nothing every so often, and when its answers take clearly longer than before the copy began, the copy
//! rests between its pieces, more and more; less and less when they are quick again. It never stops.
//! What is copied while slots are held is not held back.

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{self, Instant},
};

use super::{
    Throttle,
    link::{Link, LinkError},
};

/// How often the source is asked.
const ASK: Duration = Duration::from_millis(50);
/// How many of its first answers say what is usual.
const USUAL: usize = 10;
/// What an answer may take longer than thrice the usual: less cannot be told from chance.
const TOLERANCE: Duration = Duration::from_millis(3);
/// The smallest part of its time that the copy takes.
const LEAST: f64 = 1.0 / 16.0;
/// The longest rest between two pieces.
const LONGEST_REST: Duration = Duration::from_secs(1);
/// A value counts as one key for each of these bytes.
const BYTES: u64 = 4096;

/// How much of its time the copy may use the source.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Easing {
    /// What an answer takes usually.
    usual: Duration,
    /// What it takes now, smoothed.
    smooth: Duration,
    /// From [`LEAST`] to 1.
    share: f64,
}

impl Easing {
    fn new(usual: Duration) -> Self {
        Self {
            usual,
            smooth: usual,
            share: 1.0,
        }
    }

    /// After an answer that took this long.
    fn after(self, took: Duration) -> Self {
        let smooth = (self.smooth * 3 + took) / 4;
        let share = if smooth > self.usual * 3 + TOLERANCE {
            self.share * 0.8
        } else {
            self.share + 0.05
        };
        Self {
            smooth,
            share: share.clamp(LEAST, 1.0),
            ..self
        }
    }

    /// How long to rest after a piece that took so long.
    fn rest(self, took: Duration) -> Duration {
        took.mul_f64(1.0 / self.share - 1.0).min(LONGEST_REST)
    }
}

/// Until when a rate of so many keys a second is used up, if it was until `free` before these keys.
fn book(free: Instant, now: Instant, keys: u64, rate: u32) -> Instant {
    free.max(now) + Duration::from_secs_f64(keys as f64 / f64::from(rate))
}

/// See the module. Shared by all lanes of an attempt.
pub(super) struct Pace {
    throttle: watch::Receiver<Throttle>,
    state: Mutex<State>,
}

struct State {
    easing: Easing,
    rate: Option<NonZeroU32>,
    /// Until when the rate is used up.
    free: Instant,
}

impl Pace {
    /// Of a source whose answers usually take this long.
    pub(super) fn new(throttle: watch::Receiver<Throttle>, usual: Duration) -> Self {
        let state = State {
            easing: Easing::new(usual),
            rate: None,
            free: Instant::now(),
        };
        let state = Mutex::new(state);
        Self { throttle, state }
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// When the next may be copied, after so many keys of so many bytes that took so long.
    pub(super) fn next(&self, keys: usize, bytes: u64, took: Duration) -> Instant {
        let now = Instant::now();
        let rate = self.throttle.borrow().rate;
        self.with(|state| {
            let rested = now + state.easing.rest(took);
            if state.rate != rate {
                state.rate = rate;
                state.free = now; // what was used of another rate is no measure of this one
            }
            match rate {
                None => rested,
                Some(rate) => {
                    let keys = keys as u64 + bytes / BYTES;
                    state.free = book(state.free, now, keys, rate.get());
                    rested.max(state.free)
                }
            }
        })
    }

    /// How much of its time the copy uses the source, in percent.
    pub(super) fn percent(&self) -> u8 {
        self.with(|state| state.easing.share * 100.0) as u8
    }
}

/// What an answer of the source takes usually.
pub(super) async fn usual(source: &mut Link) -> Result<Duration, LinkError> {
    let mut all = [Duration::ZERO; USUAL];
    for took in &mut all {
        time::sleep(ASK / 10).await;
        *took = ask(source).await?;
    }
    all.sort_unstable();
    Ok(all[USUAL / 2])
}

/// Asks the source again and again, and lets the pace know.
pub(super) async fn watch(mut source: Link, pace: Arc<Pace>) -> LinkError {
    loop {
        time::sleep(ASK).await;
        match ask(&mut source).await {
            Ok(took) => pace.with(|state| state.easing = state.easing.after(took)),
            Err(why) => return why,
        }
    }
}

async fn ask(source: &mut Link) -> Result<Duration, LinkError> {
    let begun = Instant::now();
    source.demand("PING", &[b"PING"]).await?;
    Ok(begun.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn it_eases_off_and_comes_back() {
        let mut easing = Easing::new(MS);
        for _ in 0..100 {
            easing = easing.after(5 * MS);
        }
        assert_eq!(easing.share, 1.0);
        assert_eq!(easing.rest(MS), Duration::ZERO);
        // One that was slow is chance.
        easing = easing.after(20 * MS).after(MS).after(MS);
        assert!(easing.share > 0.5, "{easing:?}");
        for _ in 0..100 {
            easing = easing.after(20 * MS);
        }
        assert_eq!(easing.share, LEAST);
        assert_eq!(easing.rest(MS), 15 * MS);
        assert_eq!(easing.rest(1000 * MS), LONGEST_REST);
        for _ in 0..100 {
            easing = easing.after(MS);
        }
        assert_eq!(easing.share, 1.0);
    }

    #[test]
    fn a_rate_is_kept() {
        let now = Instant::now();
        let free = book(now, now, 100, 1000);
        assert_eq!(free, now + 100 * MS);
        assert_eq!(book(free, now, 1, 1000), now + 101 * MS);
        // What was not used is not saved up.
        let later = now + 5000 * MS;
        assert_eq!(book(free, later, 1, 1000), later + MS);
    }
}
