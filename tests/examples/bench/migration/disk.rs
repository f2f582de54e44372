//! How long the disk takes to keep something, while nothing else is measured.

use std::{
    fmt,
    io::Write,
    thread,
    time::{Duration, Instant},
};

/// How many are measured.
const TIMES: usize = 500;
/// Between two.
const PAUSE: Duration = Duration::from_millis(10);

/// What as many syncs took, each after 4 KiB that were appended to a file where files are kept usually; in order.
pub(super) struct Syncs(Vec<Duration>);

impl Syncs {
    pub(super) fn measure() -> Self {
        let mut file = tempfile::tempfile().unwrap();
        let mut took: Vec<Duration> = (0..TIMES)
            .map(|_| {
                thread::sleep(PAUSE);
                let begun = Instant::now();
                file.write_all(&[1; 4096]).unwrap();
                file.sync_data().unwrap();
                begun.elapsed()
            })
            .collect();
        took.sort();
        Self(took)
    }
}

impl fmt::Display for Syncs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = |rank: usize| self.0[rank].as_secs_f64() * 1000.0;
        write!(
            f,
            "{:.1} ms, one in a hundred {:.1} ms and the longest of {TIMES} {:.1} ms",
            millis(TIMES / 2),
            millis(TIMES * 99 / 100),
            millis(TIMES - 1)
        )
    }
}
