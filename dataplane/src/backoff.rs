//! Growing, jittered pauses between attempts.

use std::time::Duration;

/// Each pause is twice the one before, up to a limit, and then anything between half and all of it, so
/// that many who failed together do not come back together.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    most: Duration,
    pause: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            pause: first,
        }
    }

    /// The next pause.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(self.most);
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// After a success: the next pause is the first one again.
    pub(crate) fn reset(&mut self) {
        self.pause = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_limit() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(35));
        for most in [10, 20, 35, 35] {
            let pause = backoff.next().as_millis();
            assert!((most / 2..=most).contains(&pause), "{pause} of {most}");
        }
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(10));
    }
}
