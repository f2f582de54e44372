//! The clients that have nothing to do with the trouble: how long do *they* wait?

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use super::{
    Finding,
    client::{Client, Reply, errors},
    stand::{Stand, key_at},
};
use crate::rounds::spread;

pub(super) const ABOUT: &str = "the *others* are 8 clients that ask for a small value a thousand times a second each. An answer \
     that comes after the next question was due counts from when that was due. Their p99 is compared \
     with that just before, in 3 rounds; shown is the median, with the least and the most.";

pub(super) const ROUNDS: usize = 3;
pub(super) const CLIENTS: usize = 8;
const EVERY: Duration = Duration::from_millis(1);

/// Clients, connected.
pub(super) struct Others {
    clients: Vec<Client>,
}

/// How long they waited, and for what.
pub(super) struct Waits {
    /// The shortest first.
    replies: Vec<Reply>,
}

impl Others {
    /// Connects them, each with a key of its own; the keys lie at these servers in turn.
    pub(super) fn connect(stand: &Stand, servers: &[usize]) -> Self {
        let key = |number: usize| key_at("others", number, servers[number % servers.len()]);
        let clients = (0..CLIENTS).map(|number| Client::connect(stand.port, key(number)));
        Self {
            clients: clients.collect(),
        }
    }

    /// Lets them ask while something is done.
    pub(super) fn during<T>(&mut self, work: impl FnOnce() -> T) -> (Waits, T) {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let done = &done;
            let clients = self.clients.iter_mut();
            let clients: Vec<_> = clients
                .map(|client| scope.spawn(move || ask(client, done)))
                .collect();
            let result = work();
            done.store(true, Relaxed);
            let replies = clients
                .into_iter()
                .flat_map(|client| client.join().unwrap());
            let mut replies: Vec<Reply> = replies.collect();
            replies.sort_by_key(|reply| reply.took);
            (Waits { replies }, result)
        })
    }

    /// Lets them ask while nothing else happens.
    pub(super) fn undisturbed(&mut self) -> Waits {
        self.during(|| thread::sleep(Duration::from_secs(1))); // warms up
        self.during(|| thread::sleep(Duration::from_secs(5))).0
    }
}

fn ask(client: &mut Client, done: &AtomicBool) -> Vec<Reply> {
    let mut replies = Vec::new();
    let mut due = Instant::now();
    while !done.load(Relaxed) {
        let early = due.saturating_duration_since(Instant::now());
        thread::sleep(early);
        // That this thread woke late is not the proxy's fault; that the reply before came late is.
        let since = if early.is_zero() { due } else { Instant::now() };
        replies.push(client.get_due(since));
        due += EVERY;
    }
    replies
}

impl Waits {
    /// In milliseconds.
    fn p99(&self) -> f64 {
        self.rank(self.replies.len() * 99 / 100)
    }

    /// In milliseconds: by how long so many of them waited at most.
    fn rank(&self, rank: usize) -> f64 {
        self.replies[rank].took.as_secs_f64() * 1000.0
    }
}

/// How long they waited before and during the trouble, in several rounds: one could be bad luck.
#[derive(Default)]
pub(super) struct Rounds {
    rounds: Vec<(Waits, Waits)>,
}

impl Rounds {
    pub(super) fn push(&mut self, before: Waits, during: Waits) {
        self.rounds.push((before, during));
    }

    /// Whether it is so many times as long at most, and nobody got an error.
    pub(super) fn finding(&self, what: &str, most: f64) -> Finding {
        let during = || self.rounds.iter().map(|(_, during)| during);
        let ratio = spread(
            self.rounds
                .iter()
                .map(|(before, during)| during.p99() / before.p99()),
        );
        let before = spread(self.rounds.iter().map(|(before, _)| before.p99())).median;
        let longest = spread(during().map(|waits| waits.rank(waits.replies.len() - 1))).most;
        let count: usize = during().map(|waits| waits.replies.len()).sum();
        let errors = errors(during().flat_map(|waits| &waits.replies));
        let measured = format!(
            "{:.2} × ({:.2}–{:.2}): {:.2} ms, before {before:.2} ms; longest {longest:.0} ms; \
             of {count} requests {}",
            ratio.median,
            ratio.least,
            ratio.most,
            spread(during().map(Waits::p99)).median,
            errors.as_deref().unwrap_or("no errors"),
        );
        let goal = format!("at most {most} ×, no errors");
        Finding::new(
            what,
            measured,
            goal,
            ratio.median <= most && errors.is_none(),
        )
    }
}
