//! How long a server keeps others waiting: it is asked for nothing, again and again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::client::Connection;

/// Asks a server on a connection of its own, past all proxies.
pub(super) struct Probe {
    done: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(Instant, Duration)>>,
}

/// When a server was asked, and how long each answer took.
pub(super) struct Stalls(Vec<(Instant, Duration)>);

impl Probe {
    pub(super) fn start(port: u16, every: Duration) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let seen = done.clone();
        let thread = thread::spawn(move || {
            let mut server = Connection::new(port);
            let mut all = Vec::new();
            while !seen.load(Relaxed) {
                let begun = Instant::now();
                server.exchange(b"PING\r\n", 1).unwrap();
                all.push((begun, begun.elapsed()));
                thread::sleep(every);
            }
            all
        });
        Self { done, thread }
    }

    pub(super) fn end(self) -> Stalls {
        self.done.store(true, Relaxed);
        Stalls(self.thread.join().unwrap())
    }
}

impl Stalls {
    /// The longest between these, in milliseconds.
    pub(super) fn longest(&self, from: Instant, to: Instant) -> f64 {
        let within = self.0.iter().filter(|(at, _)| (from..to).contains(at));
        let longest = within.map(|(_, took)| *took).max().unwrap_or_default();
        longest.as_secs_f64() * 1000.0
    }
}
