//! Clients that read and write small values all the time, and one thing now and then of a big zset.
//!
//! Each asks when its next request is due, at an even pace. One that comes late counts from when it was
//! due: that the request before was answered late is no excuse.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use super::{
    client::{Client, write_command},
    data::{self, KEYS, MEMBERS, VALUE_BYTES},
    strangers::Strangers,
};

/// How many clients.
pub(super) const CLIENTS: usize = 16;
/// Of so many requests, one writes to the big zset, if that is written to.
pub(super) const EACH: u64 = 20;

/// See the module.
pub(super) struct Load {
    clients: Vec<Client>,
}

/// What is asked.
#[derive(Clone, Copy)]
pub(super) struct Manner<'a> {
    /// So many requests a second, together. `None`: as many as can be.
    pub(super) rate: Option<f64>,
    /// A big zset that is written to.
    pub(super) zset: Option<&'a str>,
}

/// A request, when it was due and how long its answer took since.
struct Sample {
    due: Instant,
    took: Duration,
}

/// How many samples are kept in one piece.
const PIECE: usize = 4096;

/// What came of the requests.
#[derive(Default)]
pub(super) struct Samples {
    /// In pieces: a single list that grows is copied whole, which for all clients together, all at the same
    /// time, is milliseconds that nobody could tell from those of a server.
    pieces: Vec<Vec<Sample>>,
    /// When each was got.
    errors: Vec<(Instant, String)>,
}

/// What came of the requests of some time.
#[derive(Clone, Default)]
pub(super) struct Latency {
    pub(super) rate: f64,
    pub(super) errors: BTreeMap<String, usize>,
    /// In milliseconds.
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) p999: f64,
    pub(super) max: f64,
    /// Of those that were due while nobody from outside of the benchmark disturbed them.
    pub(super) undisturbed_p99: f64,
    /// The share of the others.
    pub(super) disturbed: f64,
}

impl Load {
    /// Of these clients.
    pub(super) fn new(clients: impl Iterator<Item = Client>) -> Self {
        Self {
            clients: clients.collect(),
        }
    }

    /// Lets them ask while something is done.
    pub(super) fn during<T>(
        &mut self,
        manner: Manner<'_>,
        work: impl FnOnce() -> T,
    ) -> (Samples, T) {
        let done = AtomicBool::new(false);
        let every = manner
            .rate
            .map(|rate| Duration::from_secs_f64(self.clients.len() as f64 / rate));
        thread::scope(|scope| {
            let done = &done;
            let clients = self.clients.iter_mut();
            let clients: Vec<_> = clients
                .map(|client| scope.spawn(move || ask(client, every, manner.zset, done)))
                .collect();
            let result = work();
            done.store(true, Relaxed);
            let mut all = Samples::default();
            for client in clients {
                let samples = client.join().unwrap();
                all.pieces.extend(samples.pieces);
                all.errors.extend(samples.errors);
            }
            (all, result)
        })
    }
}

fn ask(
    client: &mut Client,
    every: Option<Duration>,
    zset: Option<&str>,
    done: &AtomicBool,
) -> Samples {
    let mut all = Samples::default();
    let mut due = Instant::now() + every.unwrap_or_default().mul_f64(fastrand::f64());
    let mut command = Vec::new();
    let value = [b'w'; VALUE_BYTES];
    for number in 0.. {
        if done.load(Relaxed) {
            break;
        }
        let early = due.saturating_duration_since(Instant::now());
        thread::sleep(early);
        // That this thread woke late is nobody's fault.
        let since = if early.is_zero() && every.is_some() {
            due
        } else {
            Instant::now()
        };
        let key = data::key(fastrand::u32(..KEYS));
        command.clear();
        let key = match zset {
            Some(zset) if number % EACH == 0 => {
                let member = data::member(fastrand::u32(..MEMBERS));
                let score = fastrand::u32(..).to_string();
                let words = ["ZADD", zset, &score, &member].map(str::as_bytes);
                write_command(&mut command, &words);
                zset
            }
            _ if number % 2 == 0 => {
                write_command(&mut command, &[b"SET", key.as_bytes(), &value]);
                &key
            }
            _ => {
                write_command(&mut command, &[b"GET", key.as_bytes()]);
                &key
            }
        };
        let answer = client.ask(key, &command);
        let took = since.elapsed();
        all.push(Sample { due: since, took });
        if let Err(error) = answer {
            all.errors.push((since, error));
        }
        due += every.unwrap_or_default();
    }
    all
}

impl Samples {
    fn push(&mut self, sample: Sample) {
        match self.pieces.last_mut() {
            Some(piece) if piece.len() < PIECE => piece.push(sample),
            _ => {
                let mut piece = Vec::with_capacity(PIECE);
                piece.push(sample);
                self.pieces.push(piece);
            }
        }
    }

    /// How many a second were due between these.
    pub(super) fn rate(&self, from: Instant, to: Instant) -> f64 {
        let all = self.pieces.iter().flatten();
        let count = all
            .filter(|sample| (from..to).contains(&sample.due))
            .count();
        count as f64 / (to - from).as_secs_f64()
    }

    /// Of the requests that were due between these.
    pub(super) fn between(&self, from: Instant, to: Instant, strangers: &Strangers) -> Latency {
        let within = |at: &Instant| (from..to).contains(at);
        let all = self.pieces.iter().flatten();
        let some = all.filter(|sample| within(&sample.due));
        let took = sorted(some.clone());
        let undisturbed = sorted(some.filter(|sample| !strangers.disturbed(sample.due)));
        let mut errors = BTreeMap::new();
        for (at, error) in &self.errors {
            if within(at) {
                *errors.entry(error.clone()).or_default() += 1;
            }
        }
        Latency {
            rate: self.rate(from, to),
            errors,
            p50: millis_at(&took, 0.5),
            p99: millis_at(&took, 0.99),
            p999: millis_at(&took, 0.999),
            max: millis_at(&took, 1.0),
            undisturbed_p99: millis_at(&undisturbed, 0.99),
            disturbed: 1.0 - undisturbed.len() as f64 / took.len() as f64,
        }
    }
}

fn sorted<'a>(samples: impl Iterator<Item = &'a Sample>) -> Vec<Duration> {
    let mut took: Vec<Duration> = samples.map(|sample| sample.took).collect();
    took.sort_unstable();
    took
}

/// Which of these, in order, so large a share is not above.
fn millis_at(took: &[Duration], share: f64) -> f64 {
    match took.len() {
        0 => f64::NAN,
        len => took[((len - 1) as f64 * share) as usize].as_secs_f64() * 1000.0,
    }
}
