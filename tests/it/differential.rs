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

use reply::{Reply, same};
use sequence::{CLIENTS, Catalogue, Request, Sequence, Step, sequence};
use wire::Wire;

mod argument;
mod form;
mod grammar;
mod library;
mod reply;
mod sequence;
mod wire;

/// So many commands are sent, unless `COUNT` says otherwise.
const COUNT: usize = 100_000;
/// Of each command, in so many.
const EACH: usize = 20;
/// These never succeed: what they are about is not there.
const IN_VAIN: [&str; 4] = [
    "script|kill",
    "function|kill",
    "object|freq",
    "client|unblock",
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
    fn add(&mut self, outcomes: Vec<(&'static str, bool)>) {
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

/// Where the proxy is not as good.
struct Difference {
    /// Of the command.
    name: &'static str,
    text: String,
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
    fn run(&mut self, sequence: &Sequence) -> (Vec<(&'static str, bool)>, Option<Difference>) {
        for side in [&mut self.plain, &mut self.proxy] {
            for words in [
                &["FLUSHALL"][..],
                &["SCRIPT", "FLUSH"],
                &["FUNCTION", "FLUSH"],
            ] {
                assert!(side.own.ask(words).is("+OK"));
            }
        }
        let mut run = Run {
            clients: [(); CLIENTS].map(|()| Client {
                plain: Wire::connect(&self.plain.addr),
                proxy: Wire::connect(&self.proxy.addr),
                queue: None,
            }),
            outcomes: Vec::new(),
        };
        let mut rest = &sequence.steps[..];
        while let Some(first) = rest.first() {
            let ends = |step: &Step| step.ends_batch;
            let of_client = rest
                .iter()
                .take_while(|step| step.client == first.client)
                .count();
            let batch = rest[..of_client]
                .iter()
                .position(ends)
                .map_or(of_client, |at| at + 1);
            let requests: Vec<&Request> = rest[..batch]
                .iter()
                .flat_map(|step| &step.requests)
                .collect();
            if let Err(difference) = run.batch(first.client, &requests) {
                return (run.outcomes, Some(difference));
            }
            rest = &rest[batch..];
        }
        let ended = sequence.ending.map_or(Ok(()), |bytes| run.end(bytes));
        (run.outcomes, ended.err())
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

/// A sequence under way.
struct Run<'a> {
    clients: [Client<'a>; CLIENTS],
    outcomes: Vec<(&'static str, bool)>,
}

struct Client<'a> {
    plain: Wire,
    proxy: Wire,
    /// The commands behind MULTI.
    queue: Option<Vec<&'a Request>>,
}

impl<'a> Run<'a> {
    fn batch(&mut self, client: usize, requests: &[&'a Request]) -> Result<(), Difference> {
        let Client {
            plain,
            proxy,
            queue,
        } = &mut self.clients[client];
        let (mut to_plain, mut to_proxy) = (Vec::new(), Vec::new());
        for request in requests {
            wire::put(&mut to_proxy, request);
            if !request.crosses {
                wire::put(&mut to_plain, request);
            }
        }
        let name = requests[0].name;
        plain
            .send(&to_plain)
            .and(proxy.send(&to_proxy))
            .map_err(|text| Difference { name, text })?;
        let mut difference = None;
        for &request in requests {
            let expected = if request.crosses {
                let text = b"CROSSSLOT Keys in request don't hash to the same slot";
                Ok(Reply::Line(b'-', text.to_vec()))
            } else {
                plain.reply()
            };
            let given = proxy.reply();
            match (expected, given) {
                // The rest is awaited, so that it does not come into the next sequence.
                (Ok(_), Ok(_)) if difference.is_some() => {}
                (Ok(expected), Ok(given))
                    if judge(request, &expected, &given, queue.as_deref()) =>
                {
                    self.outcomes.push((request.name, !expected.is_error()));
                    follow(request, &expected, queue, &mut self.outcomes);
                }
                (expected, given) => {
                    let is_lost = expected.is_err() || given.is_err();
                    let shown = |reply: Result<Reply, String>| {
                        reply.map_or_else(|why| why, |reply| reply.to_string())
                    };
                    let text = format!("  plain: {}\n  proxy: {}\n", shown(expected), shown(given));
                    let name = request.name;
                    difference.get_or_insert(Difference { name, text });
                    if is_lost {
                        break;
                    }
                }
            }
        }
        difference.map_or(Ok(()), Err)
    }

    /// The first client sends its last bytes; what comes until it is closed.
    fn end(&mut self, bytes: &[u8]) -> Result<(), Difference> {
        let Client { plain, proxy, .. } = &mut self.clients[0];
        let rest = |wire: &mut Wire| wire.send(bytes).and_then(|()| wire.rest());
        let (expected, given) = (rest(plain), rest(proxy));
        if expected.is_ok() && expected == given {
            return Ok(());
        }
        let shown = |rest: Result<Vec<u8>, String>| {
            rest.map_or_else(|why| why, |rest| rest.escape_ascii().to_string())
        };
        let text = format!("  plain: {}\n  proxy: {}\n", shown(expected), shown(given));
        let name = "the end";
        Err(Difference { name, text })
    }
}

/// Whether a reply is as good as the expected one; to EXEC, each in it.
fn judge(request: &Request, expected: &Reply, given: &Reply, queue: Option<&[&Request]>) -> bool {
    match (expected, given, queue) {
        (Reply::Many(_, expected), Reply::Many(_, given), Some(queue))
            if request.name == "exec" =>
        {
            let mut each = queue.iter().zip(expected).zip(given);
            expected.len() == queue.len()
                && given.len() == queue.len()
                && each.all(|((request, expected), given)| same(request, expected, given))
        }
        _ => same(request, expected, given),
    }
}

/// What is queued after a reply.
fn follow<'a>(
    request: &'a Request,
    reply: &Reply,
    queue: &mut Option<Vec<&'a Request>>,
    outcomes: &mut Vec<(&'static str, bool)>,
) {
    match (request.name, &mut *queue) {
        ("multi", None) if !reply.is_error() => *queue = Some(Vec::new()),
        ("exec", Some(queued)) => {
            if let Reply::Many(_, replies) = reply {
                let names = queued.iter().map(|request| request.name);
                outcomes.extend(names.zip(replies.iter().map(|reply| !reply.is_error())));
            }
            *queue = None;
        }
        ("discard" | "reset", Some(_)) if !reply.is_error() => *queue = None,
        (_, Some(queued)) if reply.is("+QUEUED") => queued.push(request),
        _ => {}
    }
}
