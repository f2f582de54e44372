//! `make bench-migration`: half of the slots moves, beside `redis-cli --cluster reshard`, in turns.

mod awake;
mod client;
mod data;
mod disk;
mod load;
mod nodes;
mod sluice;
mod stalls;
mod strangers;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use tokio::runtime::Runtime;

use self::{
    awake::Awake,
    client::Client,
    disk::Syncs,
    load::{CLIENTS, EACH, Latency, Load, Manner},
    nodes::Nodes,
    sluice::Sluice,
    stalls::Probe,
    strangers::Watch,
};
use crate::{
    document, machine,
    rounds::{Spread, spread},
    table::{Table, met, number},
    usage::Clock,
};

/// Move half of the slots with and without load, beside Redis Cluster; writes BENCHMARKS.md
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Rounds of each part: in each, half of the slots moves once
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Requests a second of the load. Without it: as many as keep the processors half busy, found anew in each round
    #[arg(long)]
    rate: Option<f64>,
    /// Keys a second that are copied of a move that is paced, at most
    #[arg(long, default_value_t = 400)]
    pace: u32,
    /// Leave BENCHMARKS.md as it is (as when not all parts are measured)
    #[arg(long)]
    no_write: bool,
    /// Parts: idle, loaded, paced, written, hopeless; without any, all
    parts: Vec<Part>,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Part {
    /// Without load.
    Idle,
    /// With load, but the big zset is quiet.
    Loaded,
    /// The same with `--rate`.
    Paced,
    /// The load writes to the big zset, too.
    Written,
    /// The load writes to a zset that is too big for a hold.
    Hopeless,
}

/// Such a move is in so many parts, each with some time before and after it: a host that is now quicker, now slower
/// is mostly the same for as long as one of them takes. Of more parts each would look at all keys of the source for
/// fewer that it moves.
const SLICES: usize = 4;
const _: () = assert!(sluice::HALF.is_multiple_of(SLICES));
/// How often the rate at which the processors are half busy is corrected before the first round.
const TRIES: usize = 2;
/// How long it is looked how busy they are.
const TRY: Duration = Duration::from_secs(5);
/// How long is measured before a move under load, and after it.
const ASIDE: Duration = Duration::from_secs(10);
/// How often servers are asked, to see how long they stall: without load seldom, or that would be load.
const SELDOM: Duration = Duration::from_millis(25);
const OFTEN: Duration = Duration::from_millis(1);
/// Where everybody's files are, if this is there.
const MEMORY: &str = "/dev/shm";
/// Members of the zset that is too big.
const HOPELESS_MEMBERS: u32 = 2_000_000;

/// From which of two servers to which.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Forth,
    Back,
}

impl Way {
    fn other(self) -> Self {
        match self {
            Self::Forth => Self::Back,
            Self::Back => Self::Forth,
        }
    }

    fn ends(self) -> (usize, usize) {
        match self {
            Self::Forth => (0, 1),
            Self::Back => (1, 0),
        }
    }
}

/// What came of a move.
struct Moved {
    begun: Instant,
    /// When the first slots were held; the end where none ever are.
    first_hold: Instant,
    /// When the target owned all slots.
    owned: Instant,
    /// When the source had nothing of them any more.
    ended: Instant,
    /// Keys that were moved.
    keys: u64,
    holds: Vec<Duration>,
    /// Why not all has moved.
    failure: Option<String>,
}

/// Both sides, with the same data.
struct Stand {
    runtime: Runtime,
    sluice: Sluice,
    nodes: Nodes,
    /// Of each side: the names depend on the slots.
    zsets: [String; 2],
    /// Where to the half of each moves next.
    ways: [Way; 2],
    /// How many slices of Sluice's have moved there.
    slices: usize,
}

/// Who moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    Sluice,
    Nodes,
}

impl Side {
    const BOTH: [Self; 2] = [Self::Nodes, Self::Sluice];

    fn name(self) -> &'static str {
        match self {
            Self::Sluice => "Sluice",
            Self::Nodes => "redis-cli reshard",
        }
    }
}

/// A move with what was seen meanwhile.
struct Seen {
    side: Side,
    moved: Moved,
    /// In milliseconds, from the beginning until the end; and before it, where that was looked at.
    stalls: [f64; 2],
    stalls_before: [f64; 2],
    /// Of each of [`WINDOWS`].
    latency: Option<[Latency; WINDOWS.len()]>,
    /// The share of the processors' time that was used before it, where that was looked at.
    busy: f64,
    /// Who else used the machine, where that was looked at.
    strangers: BTreeSet<String>,
    steal: f64,
}

/// A move and what clients saw of it, if there were any.
struct Work {
    moved: Moved,
    latency: Option<[Latency; WINDOWS.len()]>,
    busy: f64,
    strangers: BTreeSet<String>,
}

impl Work {
    fn alone(moved: Moved) -> Self {
        Self {
            moved,
            latency: None,
            busy: f64::NAN,
            strangers: BTreeSet::new(),
        }
    }
}

/// Before a move; until its first hold, or its end; until the target owned all; until the end; after it.
const WINDOWS: [&str; 5] = ["before", "copying", "cutting over", "deleting", "after"];

impl Stand {
    fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let sluice = runtime.block_on(Sluice::start());
        let nodes = runtime.block_on(Nodes::start());
        let zsets = [
            data::moving("zset", sluice::moves),
            data::moving("zset", nodes::moves),
        ];
        let moves: [fn(&str) -> bool; 2] = [sluice::moves, nodes::moves];
        let [a, b] = &nodes.servers;
        let servers = [sluice.servers().map(|s| s.port), [a.port, b.port]];
        for ((servers, zset), moves) in servers.into_iter().zip(&zsets).zip(moves) {
            data::load_keys(servers[0], moves);
            data::load_keys(servers[1], |key| !moves(key));
            data::load_zset(servers[0], zset, data::MEMBERS);
            data::load_string(servers[0], &data::moving("string", moves));
        }
        Self {
            runtime,
            sluice,
            nodes,
            zsets,
            ways: [Way::Forth; 2],
            slices: 0,
        }
    }

    fn load_of(&self, side: Side) -> Load {
        let [a, b] = &self.nodes.servers;
        let nodes = [a.port, b.port];
        let proxies = self.sluice.ports();
        Load::new((0..CLIENTS).map(|client| match side {
            Side::Sluice => Client::of_proxy(proxies[client % 2]),
            Side::Nodes => Client::of_nodes(nodes),
        }))
    }

    /// Of the source and the target of the next move.
    fn ports(&self, side: Side) -> [u16; 2] {
        let ports = match side {
            Side::Sluice => self.sluice.servers().map(|server| server.port),
            Side::Nodes => [0, 1].map(|node| self.nodes.servers[node].port),
        };
        let (from, to) = self.ways[side as usize].ends();
        [ports[from], ports[to]]
    }

    fn move_half(&mut self, side: Side) -> Moved {
        let way = self.ways[side as usize];
        self.ways[side as usize] = way.other();
        match side {
            Side::Sluice => {
                let slots = sluice::slice(0, 1);
                let moved = self.sluice.migrate(&slots, way, None);
                self.runtime.block_on(moved)
            }
            Side::Nodes => self.nodes.reshard(way),
        }
    }

    /// The next slice of Sluice's half moves, paced.
    fn move_slice(&mut self, pace: u32) -> Moved {
        let way = self.ways[Side::Sluice as usize];
        let slots = sluice::slice(self.slices, SLICES);
        self.slices = (self.slices + 1) % SLICES;
        if self.slices == 0 {
            self.ways[Side::Sluice as usize] = way.other();
        }
        let moved = self.sluice.migrate(&slots, way, Some(pace));
        self.runtime.block_on(moved)
    }

    /// Moves without load.
    fn idle(&mut self, side: Side) -> Seen {
        self.watched(side, SELDOM, |stand| Work::alone(stand.move_half(side)))
    }

    /// The same by both, in turns.
    fn idle_in_turns(&mut self, rounds: usize) -> Vec<Seen> {
        let sides = turns(rounds, &Side::BOTH).into_iter().flatten();
        sides.map(|side| self.idle(side)).collect()
    }

    /// Moves under load.
    fn loaded(&mut self, side: Side, rate: f64, part: Part, pace: u32) -> Seen {
        let mut load = self.load_of(side);
        let zset = self.zsets[side as usize].clone();
        let manner = Manner {
            rate: Some(rate),
            zset: (part == Part::Written).then_some(&zset),
        };
        self.watched(side, OFTEN, |stand| {
            under(&mut load, manner, || match part {
                Part::Paced => stand.move_slice(pace),
                Part::Idle | Part::Loaded | Part::Written | Part::Hopeless => stand.move_half(side),
            })
        })
    }

    fn watched(
        &mut self,
        side: Side,
        every: Duration,
        work: impl FnOnce(&mut Self) -> Work,
    ) -> Seen {
        let begun = Instant::now();
        let clock = Clock::now();
        let ports = self.ports(side);
        let probes = ports.map(|port| Probe::start(port, every));
        let Work {
            moved,
            latency,
            busy,
            strangers,
        } = work(self);
        let stalls = probes.map(Probe::end);
        let seen = Seen {
            side,
            stalls: [0, 1].map(|end| stalls[end].longest(moved.begun, moved.ended)),
            stalls_before: [0, 1].map(|end| stalls[end].longest(begun, moved.begun)),
            moved,
            latency,
            busy,
            strangers,
            steal: clock.steal(),
        };
        seen.tell();
        seen
    }

    /// A zset that is too big for a hold, and is written all the time, is to move alone.
    fn hopeless(&mut self, rate: f64) -> Seen {
        let key = data::moving("hopeless", sluice::moves);
        let slot = proto::Slot::of_key(key.as_bytes()).number().to_string();
        data::load_zset(self.sluice.servers()[0].port, &key, HOPELESS_MEMBERS);
        let mut load = self.load_of(Side::Sluice);
        let manner = Manner {
            rate: Some(rate),
            zset: Some(&key),
        };
        self.watched(Side::Sluice, OFTEN, |stand| {
            under(&mut load, manner, || {
                let moved = stand.sluice.migrate(&slot, Way::Forth, None);
                stand.runtime.block_on(moved)
            })
        })
    }
}

/// Does something under load, with some time before and after it.
fn under(load: &mut Load, manner: Manner<'_>, work: impl FnOnce() -> Moved) -> Work {
    let watch = Watch::start();
    load.during(manner, || thread::sleep(ASIDE / 3)); // warms up
    let begun = Instant::now();
    let (samples, (busy, moved)) = load.during(manner, || {
        let clock = Clock::now();
        thread::sleep(ASIDE);
        let busy = clock.busy();
        let moved = work();
        thread::sleep(ASIDE);
        (busy, moved)
    });
    let strangers = watch.end();
    let ended = moved.ended;
    let windows = [
        (begun, moved.begun),
        (moved.begun, moved.first_hold),
        (moved.first_hold, moved.owned),
        (moved.owned, ended),
        (ended, ended + ASIDE),
    ];
    let latency = windows.map(|(from, to)| samples.between(from, to, &strangers));
    Work {
        moved,
        latency: Some(latency),
        busy,
        strangers: strangers.names,
    }
}

impl Moved {
    fn copying(&self) -> f64 {
        (self.first_hold - self.begun).as_secs_f64()
    }

    fn seconds(&self) -> f64 {
        (self.owned - self.begun).as_secs_f64()
    }

    fn seconds_in_all(&self) -> f64 {
        (self.ended - self.begun).as_secs_f64()
    }

    fn keys_per_second(&self) -> f64 {
        self.keys as f64 / self.seconds()
    }
}

impl Seen {
    /// Progress, for who waits.
    fn tell(&self) {
        let Moved { keys, failure, .. } = &self.moved;
        eprintln!(
            "{:<17} {keys} keys in {:.2} s, all in {:.2} s ({:.0} keys/s); holds {:.0?}; stalls {:.1?} ms, \
             before {:.1?} ms; steal {:.0} % {}",
            self.side.name(),
            self.moved.seconds(),
            self.moved.seconds_in_all(),
            self.moved.keys_per_second(),
            self.moved.holds,
            self.stalls,
            self.stalls_before,
            self.steal * 100.0,
            failure.as_deref().unwrap_or_default(),
        );
        for (window, latency) in WINDOWS.iter().zip(self.latency.iter().flatten()) {
            let Latency {
                rate,
                errors,
                p50,
                p99,
                p999,
                max,
                undisturbed_p99,
                disturbed,
            } = latency;
            eprintln!(
                "    {window:<12} {rate:.0} requests/s, p50 {p50:.2} ms, p99 {p99:.2} ms, p99.9 {p999:.2} ms, \
                 max {max:.1} ms; undisturbed p99 {undisturbed_p99:.2} ms (but {:.1} %); errors {errors:?}",
                disturbed * 100.0
            );
        }
    }
}

pub(crate) fn run(options: &Options) {
    let wants = |part| options.parts.is_empty() || options.parts.contains(&part);
    let disk = Syncs::measure();
    let memory = Path::new(MEMORY);
    let in_memory = memory.is_dir() && tempfile::env::override_temp_dir(memory).is_ok();
    let mut stand = Stand::start();
    let mut text = String::new();
    let mut goals = Table::of_text(["what", "measured", "goal", ""]);
    // As machines are; what comes then is measured where they do not sleep.
    if wants(Part::Idle) {
        let seen = stand.idle_in_turns(options.rounds);
        text.push_str(&show_idle(&seen, Sleep::Allowed, &mut goals));
    }
    let awake = Awake::keep();
    if wants(Part::Idle) && awake.is_ok() {
        let seen = stand.idle_in_turns(options.rounds);
        text.push_str(&show_idle(&seen, Sleep::Kept, &mut goals));
    }
    if let Err(why) = &awake {
        eprintln!("the processors may sleep: {why}");
    }
    let place = Place {
        disk,
        in_memory,
        awake: awake.is_ok(),
    };
    let most = most(&stand);
    eprintln!("at most {most:.0} requests/s");
    let mut rate = options.rate.unwrap_or(most / 4.0);
    let mut find_rate = |stand: &Stand| {
        if options.rate.is_none() {
            rate = half(stand, rate).min(most);
        }
        rate
    };
    for _ in 0..TRIES {
        find_rate(&stand);
    }
    for part in [Part::Loaded, Part::Paced, Part::Written] {
        if wants(part) {
            let sides: &[Side] = match part {
                Part::Loaded => &Side::BOTH,
                Part::Paced | Part::Written | Part::Idle | Part::Hopeless => &[Side::Sluice],
            };
            let times = match part {
                Part::Paced => options.rounds * SLICES,
                Part::Idle | Part::Loaded | Part::Written | Part::Hopeless => options.rounds,
            };
            let mut seen = Vec::new();
            for round in turns(times, sides) {
                let rate = find_rate(&stand);
                seen.extend(
                    round
                        .into_iter()
                        .map(|side| stand.loaded(side, rate, part, options.pace)),
                );
            }
            text.push_str(&show_loaded(&seen, part, most, options.pace, &mut goals));
        }
    }
    if wants(Part::Hopeless) {
        if stand.ways[Side::Sluice as usize] == Way::Back {
            stand.idle(Side::Sluice);
        }
        let rate = find_rate(&stand);
        let seen = stand.hopeless(rate);
        text.push_str(&show_hopeless(&seen));
    }
    println!("{text}\n{goals}");
    if !options.no_write && options.parts.is_empty() {
        document::replace("Migration", &section(&text, &goals, &place));
    }
}

/// Who moves in which round: each of these once, each round beginning with the other.
fn turns(rounds: usize, sides: &[Side]) -> Vec<Vec<Side>> {
    let round = |number: usize| {
        let mut order = sides.to_vec();
        order.rotate_left(number % sides.len());
        order
    };
    (0..rounds).map(round).collect()
}

/// How many requests a second the clients get at most.
fn most(stand: &Stand) -> f64 {
    let mut load = stand.load_of(Side::Sluice);
    let manner = Manner {
        rate: None,
        zset: None,
    };
    load.during(manner, || thread::sleep(ASIDE / 3)); // warms up
    let begun = Instant::now();
    let (samples, ()) = load.during(manner, || thread::sleep(ASIDE));
    samples.rate(begun, begun + ASIDE)
}

/// How many requests a second keep the processors half busy, with all that watches them, by how busy so many do. At
/// half of the most it is far more: the most is got where each system call carries many requests.
fn half(stand: &Stand, rate: f64) -> f64 {
    let mut load = stand.load_of(Side::Sluice);
    let manner = Manner {
        rate: Some(rate),
        zset: None,
    };
    let ports = stand.ports(Side::Sluice);
    let probes = ports.map(|port| Probe::start(port, OFTEN));
    let watch = Watch::start();
    let (_, busy) = load.during(manner, || {
        thread::sleep(TRY / 5); // warms up
        let clock = Clock::now();
        thread::sleep(TRY);
        clock.busy()
    });
    watch.end();
    probes.into_iter().for_each(|probe| drop(probe.end()));
    eprintln!(
        "{rate:.0} requests/s keep the processors {:.0} % busy",
        busy * 100.0
    );
    rate * 0.5 / busy
}

fn of(all: &[Seen], side: Side) -> impl Iterator<Item = &Seen> + Clone {
    all.iter().filter(move |seen| seen.side == side)
}

fn with_spread(spread: &Spread, digits: usize) -> String {
    let Spread {
        median,
        least,
        most,
    } = spread;
    format!("{median:.digits$} ({least:.digits$}–{most:.digits$})")
}

/// Of Sluice to the other, within each round.
fn ratios(all: &[Seen], value: impl Fn(&Seen) -> f64) -> Spread {
    let pairs = of(all, Side::Sluice).zip(of(all, Side::Nodes));
    spread(pairs.map(|(ours, theirs)| value(ours) / value(theirs)))
}

/// Whether the processors may sleep.
#[derive(Clone, Copy)]
enum Sleep {
    Allowed,
    Kept,
}

fn show_idle(all: &[Seen], sleep: Sleep, goals: &mut Table) -> String {
    let (title, name, goal) = match sleep {
        Sleep::Allowed => ("Without load", "without load", Some(4.0)),
        Sleep::Kept => (
            "Without load, processors kept awake",
            "without load, processors kept awake",
            None,
        ),
    };
    let mut table = Table::of_numbers([
        name,
        "keys/s",
        "seconds until moved",
        "until nothing is left",
        "longest stall of the source, ms",
        "of the target, ms",
    ]);
    for side in Side::BOTH {
        let cell = |digits, value: fn(&Seen) -> f64| {
            with_spread(&spread(of(all, side).map(value)), digits)
        };
        table.row([
            side.name().to_owned(),
            cell(0, |seen| seen.moved.keys_per_second()),
            cell(2, |seen| seen.moved.seconds()),
            cell(2, |seen| seen.moved.seconds_in_all()),
            cell(1, |seen| seen.stalls[0]),
            cell(1, |seen| seen.stalls[1]),
        ]);
    }
    let faster = ratios(all, |seen| seen.moved.keys_per_second());
    goals.row([
        format!("{name}, keys/s beside `redis-cli --cluster reshard`"),
        format!("{} ×", with_spread(&faster, 1)),
        goal.map_or("none".to_owned(), |goal| format!("at least {goal} ×")),
        goal.map_or(String::new(), |goal| met(faster.median >= goal)),
    ]);
    format!("\n### {title}\n\n{table}\n{}", remarks(all))
}

fn show_loaded(all: &[Seen], part: Part, most: f64, pace: u32, goals: &mut Table) -> String {
    let (title, name, besides) = match part {
        Part::Idle | Part::Loaded | Part::Hopeless => ("With load", "with load", String::new()),
        Part::Paced => (
            "With load and paced",
            "paced",
            format!(
                " The slots move in {SLICES} migrations, one after the other, with `--rate {pace}`: so many keys a \
                 second are copied at most. Shown are medians of the migrations. Number {} has the zset, and number \
                 {} the string.",
                slice_of("zset"),
                slice_of("string")
            ),
        ),
        Part::Written => (
            "With load that writes to the zset",
            "with writes to the zset",
            format!(" One of {EACH} is a `ZADD` to the zset."),
        ),
    };
    let mut table = Table::of_numbers([
        name,
        "keys/s",
        "seconds",
        "requests/s",
        "errors",
        "p50 ms",
        "p99 ms",
        "undisturbed",
        "p99.9 ms",
        "max ms",
        "stall of the source, ms",
        "of the target, ms",
    ]);
    for side in Side::BOTH {
        for (index, window) in WINDOWS.iter().enumerate() {
            if side == Side::Nodes && (part != Part::Loaded || [2, 3].contains(&index)) {
                continue; // it does all at the same time
            }
            let latencies = of(all, side).filter_map(|seen| Some(&seen.latency.as_ref()?[index]));
            let median = |digits, value: fn(&Latency) -> f64| {
                number(spread(latencies.clone().map(value)).median, digits)
            };
            let of_seen = |digits, value: fn(&Seen) -> f64| {
                number(spread(of(all, side).map(value)).median, digits)
            };
            let nothing = String::new;
            let keys = match index {
                1 => of_seen(0, |seen| seen.moved.keys_per_second()),
                _ => nothing(),
            };
            let seconds = match index {
                1 => of_seen(1, |seen| seen.moved.copying()),
                2 => of_seen(1, |seen| seen.moved.seconds() - seen.moved.copying()),
                3 => of_seen(1, |seen| seen.moved.seconds_in_all() - seen.moved.seconds()),
                _ => nothing(),
            };
            let [source, target] = match index {
                0 => [
                    of_seen(1, |seen| seen.stalls_before[0]),
                    of_seen(1, |seen| seen.stalls_before[1]),
                ],
                1 => [
                    of_seen(1, |seen| seen.stalls[0]),
                    of_seen(1, |seen| seen.stalls[1]),
                ],
                _ => [nothing(), nothing()],
            };
            table.row([
                format!("{}, {window}", side.name()),
                keys,
                seconds,
                median(0, |latency| latency.rate),
                count(latencies.clone()).to_string(),
                median(2, |latency| latency.p50),
                median(2, |latency| latency.p99),
                median(2, |latency| latency.undisturbed_p99),
                median(2, |latency| latency.p999),
                median(1, |latency| latency.max),
                source,
                target,
            ]);
        }
    }
    let ours: Vec<&Seen> = of(all, Side::Sluice).collect();
    let latencies = |window: usize| {
        let of_window = ours.iter().map(move |seen| seen.latency.as_ref());
        of_window.flatten().map(move |latency| &latency[window])
    };
    let all_windows = (0..WINDOWS.len()).flat_map(latencies);
    let errors = count(all_windows.clone());
    goals.row([
        format!("{name}, errors"),
        format!("{errors}{}", in_words(&errors_of(all_windows))),
        "0".to_owned(),
        met(errors == 0),
    ]);
    let millis = |hold: &Duration| hold.as_secs_f64() * 1000.0;
    let (mut holds, mut own) = (Vec::new(), Vec::new());
    for seen in &ours {
        // The slot of a zset that is written all the time comes last, alone.
        let alone = usize::from(part == Part::Written);
        let (common, last) = seen.moved.holds.split_at(seen.moved.holds.len() - alone);
        holds.extend(common.iter().map(millis));
        own.extend(last.iter().map(millis));
    }
    holds.sort_by(f64::total_cmp);
    let rank = holds[(holds.len() - 1) * 99 / 100];
    goals.row([
        format!("{name}, held time of {} batches, p99", holds.len()),
        format!("{rank:.0} ms ({})", told(&holds)),
        "at most 50 ms".to_owned(),
        met(rank <= 50.0),
    ]);
    // A value that is written all the time has a hold of its own, as long as any may be.
    let longest = [
        ("longest hold", holds, 500),
        ("the zset's own hold, longest", own, 1000),
    ];
    for (what, holds, most) in longest {
        let Some(longest) = holds.iter().copied().reduce(f64::max) else {
            continue;
        };
        goals.row([
            format!("{name}, {what}"),
            format!("{longest:.0} ms ({})", told(&holds)),
            format!("at most {most} ms"),
            met(longest <= f64::from(most)),
        ]);
    }
    let slower = |value: fn(&Latency) -> f64| {
        let aside = latencies(0).zip(latencies(4));
        let aside = aside.map(|(before, after)| (value(before) + value(after)) / 2.0);
        let pairs = latencies(1).zip(aside);
        let slower: Vec<f64> = pairs.map(|(then, aside)| value(then) / aside).collect();
        slower
    };
    let each = slower(|latency| latency.undisturbed_p99);
    let undisturbed = spread(each.iter().copied());
    let each: Vec<String> = each.iter().map(|times| number(*times, 2)).collect();
    let beside_before = |window| {
        let pairs = latencies(window).zip(latencies(0));
        pairs.map(|(then, before)| then.undisturbed_p99 / before.undisturbed_p99)
    };
    let (goal, is_met) = match part {
        Part::Paced => ("at most 1.5 ×", met(undisturbed.median <= 1.5)),
        Part::Idle | Part::Loaded | Part::Written | Part::Hopeless => {
            ("none: not paced", String::new())
        }
    };
    goals.row([
        format!("{name}, p99 of undisturbed requests while copying beside before and after"),
        format!(
            "{} × (each: {}; of all requests {} ×; beside before only: {} ×; after beside before, by chance: {} ×)",
            with_spread(&undisturbed, 2),
            each.join(", "),
            with_spread(&spread(slower(|latency| latency.p99).into_iter()), 2),
            with_spread(&spread(beside_before(1)), 2),
            with_spread(&spread(beside_before(4)), 2)
        ),
        goal.to_owned(),
        is_met,
    ]);
    let busy = spread(ours.iter().map(|seen| seen.busy * 100.0));
    let rate = spread(latencies(0).map(|latency| latency.rate));
    format!(
        "\n### {title}\n\n{} requests/s, of at most {} that the same {CLIENTS} clients get through both \
         proxies; before the moves the processors are {} % busy by it.{besides}\n\n{table}\n{}",
        with_spread(&rate, 0),
        number(most, 0),
        with_spread(&busy, 0),
        remarks(all)
    )
}

/// Number of the slice that has the big value with this name.
fn slice_of(name: &str) -> usize {
    let slot = proto::Slot::of_key(data::moving(name, sluice::moves).as_bytes());
    slot.index() / (sluice::HALF / SLICES) + 1
}

/// All of them, in milliseconds; of many that are sorted the median and the longest.
fn told(holds: &[f64]) -> String {
    const TOLD: usize = 16;
    let list = |holds: &[f64]| {
        let told: Vec<String> = holds.iter().map(|hold| format!("{hold:.0}")).collect();
        told.join(", ")
    };
    match holds.split_at(holds.len().saturating_sub(TOLD)) {
        ([], all) => format!("all: {}", list(all)),
        (_, longest) => format!(
            "half at most {:.0}, the longest {}",
            holds[holds.len() / 2],
            list(longest)
        ),
    }
}

fn show_hopeless(seen: &Seen) -> String {
    let mut table = Table::of_numbers([
        "too big a zset",
        "requests/s",
        "errors",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "max ms",
    ]);
    for (window, latency) in WINDOWS.iter().zip(seen.latency.iter().flatten()) {
        if latency.p50.is_nan() {
            continue; // nothing was due: it did not come to that
        }
        table.row([
            (*window).to_owned(),
            number(latency.rate, 0),
            latency.errors.values().sum::<usize>().to_string(),
            number(latency.p50, 2),
            number(latency.p99, 2),
            number(latency.p999, 2),
            number(latency.max, 1),
        ]);
    }
    let holds: Vec<String> = seen
        .moved
        .holds
        .iter()
        .map(|hold| format!("{:.0} ms", hold.as_secs_f64() * 1000.0))
        .collect();
    let came = match &seen.moved.failure {
        Some(reason) => format!("The migration ends with: *{reason}*."),
        None => "It moved all the same.".to_owned(),
    };
    format!(
        "\n### What cannot be kept within the budget\n\nA zset of {HOPELESS_MEMBERS} members that is \
         written all the time (one of {EACH} requests of the same load) is to move with its slot, alone. \
         Held: {}. {came}\n\n{table}",
        holds.join(", "),
    )
}

fn count<'a>(latencies: impl Iterator<Item = &'a Latency>) -> usize {
    errors_of(latencies).values().sum()
}

fn errors_of<'a>(latencies: impl Iterator<Item = &'a Latency>) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for (error, count) in latencies.flat_map(|latency| &latency.errors) {
        *all.entry(error.clone()).or_default() += count;
    }
    all
}

fn in_words(errors: &BTreeMap<String, usize>) -> String {
    let kinds = errors.iter();
    let kinds = kinds.map(|(error, count)| format!("{count} × `{error}`"));
    let kinds: Vec<String> = kinds.collect();
    if kinds.is_empty() {
        String::new()
    } else {
        format!(" ({})", kinds.join(", "))
    }
}

/// How far to trust it, and what went wrong.
fn remarks(all: &[Seen]) -> String {
    let steal = all.iter().map(|seen| seen.steal).fold(0.0, f64::max);
    let mut text = format!(
        "Moves: {}; steal: at most {:.0} %.\n",
        of(all, Side::Sluice).count(),
        steal * 100.0
    );
    let latencies = all.iter().filter_map(|seen| seen.latency.as_ref());
    let disturbed = latencies.flatten().map(|latency| latency.disturbed);
    let disturbed = disturbed.fold(0.0, f64::max);
    let strangers: BTreeSet<&str> = all
        .iter()
        .flat_map(|seen| seen.strangers.iter().map(String::as_str))
        .collect();
    if !strangers.is_empty() {
        let names: Vec<&str> = strangers.into_iter().collect();
        text.push_str(&format!(
            "Disturbed by others on the machine ({}): at most {:.1} % of the requests of a window.\n",
            names.join(", "),
            disturbed * 100.0
        ));
    }
    for seen in all {
        if let Some(failure) = &seen.moved.failure {
            let name = seen.side.name();
            text.push_str(&format!("{name}, once: *{failure}*.\n"));
        }
    }
    let theirs = of(all, Side::Nodes).filter_map(|seen| seen.latency.as_ref());
    let errors = errors_of(theirs.flatten());
    if !errors.is_empty() {
        text.push_str(&format!(
            "Errors of Redis Cluster: {}.\n",
            in_words(&errors).trim()
        ));
    }
    text
}

/// Where all is measured.
struct Place {
    disk: Syncs,
    /// All files are in memory.
    in_memory: bool,
    /// The processors are kept from sleeping.
    awake: bool,
}

fn section(text: &str, goals: &Table, place: &Place) -> String {
    let Place {
        disk,
        in_memory,
        awake,
    } = place;
    let sleep = match awake {
        true => {
            "The processors are kept from sleeping (`awake.rs`): in a virtual machine on a busy host waking \
                 up costs more than all that is measured here."
        }
        false => "The processors may sleep: what waking up costs is in all that is measured here.",
    };
    let stores = match in_memory {
        true => "are in memory: a disk that others write to would decide how long holds are",
        false => "are on the disk",
    };
    format!(
        "`{}` at commit {}.\n\n\
         Machine: {}.\n\
         Programs: {}.\n\n\
         {} keys of {} bytes, a zset of {} members and a string of 64 MiB (of random bytes), half of them \
         on each of two `redis-server`s that keep nothing on disk; zset and string are in the half that \
         moves. **Sluice**: these are two groups, with a controller and two proxies; 512 of the 1,024 slots \
         move. **redis-cli reshard**: they are the nodes of a Redis Cluster, of whose 16,384 slots 8,192 \
         move with `redis-cli --cluster reshard`. All is on one machine. Both move in turns, each round \
         the other way; shown are medians of the rounds, and ratios within a round (paced: within a migration) \
         with the least and the most.\n\n\
         * **keys/s**: keys that moved in the time until the target owned all slots. Sluice deletes at the \
         source behind that, `redis-cli` as it goes.\n\
         * **stall**: the longest that a server took to answer a `PING` on a connection of its own; one \
         comes each millisecond, without load every 25 (more would be load, which the mover yields to).\n\
         * **undisturbed**: the p99 of the requests that were not due while a process that was there before the \
         benchmark had a processor, nor for as long again after it (`strangers.rs`). On few processors such a one \
         decides what the slowest hundredth of all requests waits for.\n\
         * **load**: {CLIENTS} clients, each with one request at a time, half `GET`, half `SET` of random \
         keys, evenly paced, as many as keep the processors half busy, with all that measures here; how many that \
         are is found before each round, since a host is now quicker, now slower (half of the most that they get \
         keeps them busier: then each system call carries many requests); one that comes late counts from when it was due. Those of the Redis Cluster \
         follow `MOVED` and `ASK`. A client that has waited catches up: what waited in a hold is felt for a \
         moment behind it. {sleep}\n\
         * **disk**: the controller's store and the nodes' `nodes.conf` {stores}. A hold waits for two syncs of \
         the store. One of 4 KiB took this machine's disk {disk}.\n\n\
         ### Goals\n\n{goals}\n{text}",
        document::command("bench-migration", ""),
        machine::commit(),
        machine::machine(),
        machine::servers(),
        data::KEYS,
        data::VALUE_BYTES,
        data::MEMBERS,
    )
}
