//! Through a proxy with two groups, random requests get the replies that they get from a plain server.
//!
//! Every command that clients may call, with arguments that fit and arguments that do not, over both
//! protocols, in pipelines of any length, by two clients, with keys in one slot and in several. A sequence
//! follows from its seed. Where a reply differs, the sequence is cut down to what is needed, and shown
//! with how to run it again. What may differ stands in `reply`.
//!
//! `SEED=7` begins with another seed than 0, `COUNT=1000000` sends as many commands; `SERVER=redis-8.2`
//! takes one that `make servers` has fetched.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use tests::{Cluster, Server, other_server};

use reply::Reply;
use run::{Difference, Outcome, Run};
use sequence::{Catalogue, Sequence, sequence};
use wire::Wire;

mod argument;
mod form;
mod grammar;
mod library;
mod reply;
mod run;
mod sequence;
mod wire;

/// So many commands are sent, unless `COUNT` says otherwise.
const COUNT: usize = 100_000;
/// Of each command, in so many.
const EACH: usize = 20;
/// These never succeed: what they are about is not there.
const IN_VAIN: [&str; 6] = [
    "script|kill",
    "function|kill",
    "object|freq",
    "client|unblock",
    "client|caching",
    "latency|graph",
];
/// After so many different differences the test has seen enough.
const ENOUGH: usize = 30;

#[tokio::test]
async fn replies_are_those_of_a_plain_server() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let first = number("SEED").unwrap_or(0);
    let count = number("COUNT").map_or(COUNT, |count| count as usize);
    let server = env::var("SERVER").unwrap_or_else(|_| "redis-server".to_owned());
    let program = match server.as_str() {
        "redis-server" => Some(PathBuf::from(&server)),
        other => other_server(other),
    };
    let Some(program) = program else { return };
    // Requests that wait end soon, none takes much memory, and no sorted set is a skip list, whose shape is
    // by chance: that shows where members are counted by their names though their scores differ.
    let args = [
        "--hz 500",
        "--proto-max-bulk-len 1mb",
        "--zset-max-listpack-value 1000000",
        "--notify-keyspace-events KEA",
        "--appendonly no",
    ];
    let args = args.join(" ");
    let args: Vec<&str> = args.split(' ').collect();
    let cluster = Cluster::builder()
        .server(program.clone())
        .server_args(&args)
        .groups(2)
        .proxies(1)
        .start()
        .await;
    let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
    let plain = Server::run(&program, cluster.dir.path(), "plain", &args);
    plain.answers().await;
    let mut pair = Pair::new(&plain.addr, &cluster.proxies[0].addr);
    let catalogue = pair.catalogue();

    let mut tally = Tally::default();
    let mut different = BTreeSet::new();
    let (mut seed, mut sent) = (first, 0);
    while sent < count && different.len() < ENOUGH {
        let sequence = sequence(seed, &catalogue);
        let requests = sequence.steps.iter().map(|step| step.requests.len());
        sent += requests.sum::<usize>();
        let (outcomes, difference) = pair.run(&sequence);
        tally.add(outcomes);
        if let Some(difference) = difference
            && different.insert(difference.name)
        {
            eprintln!("{}", pair.report(seed, sequence, difference));
        }
        seed += 1;
    }
    assert!(
        different.is_empty(),
        "replies to {different:?} differ, see above"
    );
    if count >= COUNT {
        tally.check(&catalogue);
    }
}

/// How often each command was sent, and how often it succeeded.
#[derive(Default)]
struct Tally(BTreeMap<&'static str, [usize; 2]>);

impl Tally {
    fn add(&mut self, outcomes: Vec<Outcome>) {
        for (name, succeeded) in outcomes {
            let [sent, successes] = self.0.entry(name).or_default();
            *sent += 1;
            *successes += usize::from(succeeded);
        }
    }

    fn sent(&self) -> usize {
        self.0.values().map(|[sent, _]| sent).sum()
    }

    /// A test that sees only errors, or not all commands, proves little.
    fn check(&self, catalogue: &Catalogue) {
        let successes: usize = self.0.values().map(|[_, successes]| successes).sum();
        let share = 100 * successes / self.sent();
        eprintln!("{} commands, of which {share} % succeeded", self.sent());
        let mut lacking = Vec::new();
        for name in catalogue.names() {
            let [sent, succeeded] = self.0.get(name).copied().unwrap_or_default();
            if sent < EACH || (succeeded < EACH / 4 && !IN_VAIN.contains(&name)) {
                lacking.push(format!("{name}: {succeeded} of {sent} succeeded"));
            }
        }
        assert!(lacking.is_empty(), "{}", lacking.join("\n"));
        assert!(share >= 60, "only {share} % succeeded");
    }
}

/// A plain server, and a proxy that must be as good.
struct Pair {
    plain: Side,
    proxy: Side,
}

struct Side {
    addr: String,
    /// For what the test itself has to say.
    own: Wire,
}

impl Pair {
    fn new(plain: &str, proxy: &str) -> Self {
        let side = |addr: &str| Side {
            addr: addr.to_owned(),
            own: Wire::connect(addr),
        };
        Self {
            plain: side(plain),
            proxy: side(proxy),
        }
    }

    fn catalogue(&mut self) -> Catalogue {
        let Reply::Many(_, commands) = self.plain.own.ask(&["COMMAND"]) else {
            panic!("COMMAND gives an array");
        };
        let mut known = Vec::new();
        collect_names(&commands, &mut known);
        let shas = library::SCRIPTS.iter().filter_map(|script| {
            match self.plain.own.ask(&["SCRIPT", "LOAD", script]) {
                Reply::Text(_, sha) => Some(String::from_utf8(sha).unwrap()),
                Reply::Line(..) | Reply::Many(..) => None, // it is none
            }
        });
        let catalogue = Catalogue::new(&known, shas.collect());
        catalogue.unwrap_or_else(|names| {
            panic!(
                "give these a form in tests/it/differential/form.rs: {}",
                names.join(", ")
            )
        })
    }

    /// Runs a sequence from nothing: what came of its requests, up to the first difference.
    fn run(&mut self, sequence: &Sequence) -> (Vec<Outcome>, Option<Difference>) {
        for side in [&mut self.plain, &mut self.proxy] {
            for words in [
                &["FLUSHALL"][..],
                &["SCRIPT", "FLUSH"],
                &["FUNCTION", "FLUSH"],
            ] {
                assert!(side.own.ask(words).is("+OK"));
            }
        }
        Run::new(&self.plain.addr, &self.proxy.addr).whole(sequence)
    }

    /// Drops what is not needed for a difference, and tells of what is left.
    fn report(&mut self, seed: u64, mut least: Sequence, mut difference: Difference) -> String {
        // As long as that is quick: where a reply never comes, each try takes its time.
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut size = least.steps.len().div_ceil(2);
        while Instant::now() < deadline {
            let mut at = 0;
            while at < least.steps.len() && Instant::now() < deadline {
                let mut fewer = least.clone();
                fewer.steps.drain(at..(at + size).min(least.steps.len()));
                match self.run(&fewer) {
                    (_, Some(found)) if found.name == difference.name => {
                        (least, difference) = (fewer, found);
                    }
                    _ => at += size,
                }
            }
            if size == 1 {
                break;
            }
            size = size.div_ceil(2);
        }
        let mut report = format!("SEED={seed} COUNT=1: a reply differs after\n");
        for step in &least.steps {
            for request in &step.requests {
                let words = request.args.iter();
                let words = words.map(|word| format!("\"{}\"", word.escape_ascii()));
                let words = words.collect::<Vec<_>>().join(" ");
                let _ = writeln!(report, "  client {}: {words}", step.client);
            }
        }
        if let Some(ending) = least.ending {
            let _ = writeln!(report, "  at the end: \"{}\"", ending.escape_ascii());
        }
        report + &difference.text
    }
}

/// Names of commands and their subcommands, with their arity.
fn collect_names(commands: &[Reply], names: &mut Vec<(String, i64)>) {
    for command in commands {
        let Reply::Many(_, fields) = command else {
            continue;
        };
        if let [Reply::Text(_, name), arity, ..] = &fields[..] {
            let name = String::from_utf8_lossy(name).to_lowercase();
            names.push((name, arity.number().unwrap()));
        }
        if let Some(Reply::Many(_, subcommands)) = fields.get(9) {
            collect_names(subcommands, names);
        }
    }
}
