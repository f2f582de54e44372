//! How long this machine lets somebody wait who has something to do.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

/// How often somebody wants to do something.
const TICK: Duration = Duration::from_millis(5);

/// A thread that wants to do next to nothing, again and again; it ends with this.
pub struct Standstill {
    longest_micros: Arc<AtomicU64>,
}

impl Standstill {
    /// From now on.
    pub fn watch() -> Self {
        let longest_micros = Arc::new(AtomicU64::new(0));
        let watched = Arc::downgrade(&longest_micros);
        thread::spawn(move || {
            while let Some(longest_micros) = watched.upgrade() {
                let due = Instant::now() + TICK;
                thread::sleep(TICK);
                longest_micros.fetch_max(due.elapsed().as_micros() as u64, Relaxed);
            }
        });
        Self { longest_micros }
    }

    /// How long it has had to wait at most.
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_micros.load(Relaxed))
    }
}
