//! A sequence: the requests that follow from a seed, of two clients, with keys in one slot or several.
//!
//! The same seed and the same commands always give the same sequence. Nothing here knows a server.

use dataplane::{
    command::{self, Class, Command, PubSub, Queued},
    resp::{Limits, Progress, Request as Parsed, put_bulk, put_header},
};
use fastrand::Rng;
use proto::Slot;

use super::{
    argument::{Kind, Pools, wrong},
    form::{self, Sent},
    grammar::{self, Drawn, Form},
};

/// What can be sent.
pub(super) struct Catalogue {
    entries: Vec<Entry>,
    /// Of the scripts of the library.
    shas: Vec<String>,
}

struct Entry {
    row: &'static Command,
    form: Form,
    weight: u32,
    /// Between MULTI and EXEC. Not where newer servers take more arguments: the proxy leaves it to an
    /// older one to say no, which does so only to EXEC.
    may_be_queued: bool,
}

impl Catalogue {
    /// All that a proxy serves and a plain server knows (with so many arguments), and that has a form;
    /// the names of those that have none are the error.
    pub(super) fn new(
        known: &[(String, i64)],
        shas: Vec<String>,
    ) -> Result<Self, Vec<&'static str>> {
        let (mut entries, mut without) = (Vec::new(), Vec::new());
        for row in command::served() {
            let known = known.iter().find(|(name, _)| name == row.name);
            let is_container = matches!(row.class, Class::Container(None));
            match (form::of(row.name), known) {
                _ if is_container => {}
                (None, _) => without.push(row.name),
                (Some(Sent::NotAtAll), _) | (_, None) => {}
                (Some(Sent::As(form)), Some((_, arity))) => entries.push(Entry {
                    row,
                    form,
                    weight: form::weight(row.name),
                    may_be_queued: may_be_queued(row) && *arity == i64::from(row.arity),
                }),
            }
        }
        if without.is_empty() {
            Ok(Self { entries, shas })
        } else {
            Err(without)
        }
    }

    /// The names of all commands that are sent.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.entries.iter().map(|entry| entry.row.name)
    }
}

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// Of its row in the table; empty: it has none.
    pub(super) name: &'static str,
    pub(super) args: Vec<Vec<u8>>,
    /// As a line, as a person types it.
    pub(super) inline: bool,
    /// Its keys are in several slots: a proxy refuses it.
    pub(super) crosses: bool,
    /// Of its keys.
    slots: Vec<Slot>,
}

/// Requests of one client that only make sense together.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) client: usize,
    pub(super) requests: Vec<Request>,
    /// The replies are awaited before the next step.
    pub(super) ends_batch: bool,
}

/// See the module.
#[derive(Clone)]
pub(super) struct Sequence {
    pub(super) steps: Vec<Step>,
    /// Its keys and channels are.
    pub(super) in_several_slots: bool,
    /// One of the clients, [`LISTENER`], subscribes to channels; the other publishes.
    pub(super) listens: bool,
    /// What a client sends last, so that its connection is closed.
    pub(super) ending: Option<&'static [u8]>,
}

/// All of these end a connection, at the latest with QUIT.
const ENDINGS: &[&[u8]] = &[
    b"QUIT\r\n",
    b"*1\r\n$4\r\nquit\r\n*1\r\n$4\r\nPING\r\n",
    b"quit now\r\nQUIT\r\n",
    b"\r\n\r\nPING\r\n  \r\nQUIT\r\n",
    b"PING\nECHO 'a b'\nQUIT\n",
    b"*0\r\n*-1\r\nPING\r\nQUIT\r\n",
    b"*1\r\n!4\r\nPING\r\n",
    b"*1\r\n$-1\r\n",
    b"*1\r\n$x\r\n",
    b"*1\r\n$600000000\r\n",
    b"*x\r\n",
    b"*99999999999\r\n",
    b"*1\r\n\r\n",
    b"PING\r\nGET \"abc\r\nPING\r\n",
    b"GET 'abc'x\r\n",
    b"$4\r\nPING\r\nQUIT\r\n",
    b"+OK\r\nQUIT\r\n",
    b"ECHO \"\\x41\\n\\q\"\r\nECHO 'it\\'s'\r\nQUIT\r\n",
    b"POST / HTTP/1.1\r\nHost: there\r\n\r\n",
    b"Host: there\r\n",
];

/// How many clients a sequence has.
pub(super) const CLIENTS: usize = 2;
/// The one that listens, where one does.
pub(super) const LISTENER: usize = 1;

/// What that one says.
const LISTENING: [&str; 9] = [
    "subscribe",
    "psubscribe",
    "ssubscribe",
    "unsubscribe",
    "punsubscribe",
    "sunsubscribe",
    "ping",
    "get",
    "reset",
];
/// And the other, among all else.
const PUBLISHING: [&str; 2] = ["publish", "spublish"];

/// What a sequence begins with, so that there is something to be asked about.
const CREATORS: [&str; 16] = [
    "set",
    "set",
    "incrby",
    "setbit",
    "pfadd",
    "rpush",
    "rpush",
    "sadd",
    "zadd",
    "geoadd",
    "hset",
    "xadd",
    "xadd",
    "xgroup|create",
    "function|load",
    "script|load",
];

/// These are always as they should be. How much of a malformed HELLO is done before that is seen depends on
/// the version; where the keys of a malformed request are is nothing to agree upon; one more channel is one
/// more reply; all commands of a proxy are not all of a server; what is watched lies in one slot.
const SOUND: [&str; 9] = [
    "hello",
    "command|docs",
    "command|info",
    "command|getkeys",
    "command|getkeysandflags",
    "punsubscribe",
    "sunsubscribe",
    "unsubscribe",
    "watch",
];

struct Generator<'a> {
    catalogue: &'a Catalogue,
    rng: Rng,
    tags: Vec<String>,
    entry: u32,
    listens: bool,
    /// Of each client, whether it is between MULTI and EXEC.
    queueing: [bool; CLIENTS],
}

/// The sequence of a seed.
pub(super) fn sequence(seed: u64, catalogue: &Catalogue) -> Sequence {
    let mut rng = Rng::with_seed(seed);
    let slots = if rng.u8(..4) == 0 { 4 } else { 1 };
    let listens = rng.u8(..8) == 0;
    let tags = (0..slots).map(|_| format!("t{}", rng.u16(..))).collect();
    let mut generator = Generator {
        catalogue,
        rng,
        tags,
        entry: 0,
        listens,
        queueing: [false; CLIENTS],
    };
    let steps = generator.steps();
    let ends = generator.rng.u8(..8) == 0;
    let ending = ENDINGS[generator.rng.usize(..ENDINGS.len())];
    Sequence {
        steps,
        in_several_slots: slots > 1,
        listens,
        ending: ends.then_some(ending),
    }
}

impl<'a> Generator<'a> {
    fn steps(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        for client in 0..CLIENTS {
            let protocol = ["2", "3"][usize::from(self.rng.bool())];
            let args = ["HELLO", protocol].map(|arg| arg.as_bytes().to_vec());
            let mut hello = self.step(client, vec![self.request("hello", args.to_vec())]);
            hello.ends_batch = true;
            steps.push(hello);
        }
        let creators = CREATORS.iter().chain(&CREATORS);
        for &name in creators {
            let Some(entry) = self
                .catalogue
                .entries
                .iter()
                .find(|entry| entry.row.name == name)
            else {
                continue;
            };
            let drawn = self.draw(entry);
            let values = self.values(&drawn);
            let requests = self.whole(entry, values);
            steps.push(self.step(0, requests));
        }
        let mut client = 0;
        for _ in 0..self.rng.usize(60..160) {
            // One that listens should hear something.
            let stays = if self.listens { 6 } else { 24 };
            if self.rng.u8(..stays) == 0 {
                client = self.rng.usize(..CLIENTS);
            }
            let requests = self.next(client);
            steps.push(self.step(client, requests));
        }
        steps
    }

    fn step(&mut self, client: usize, mut requests: Vec<Request>) -> Step {
        let inline = self.rng.u8(..24) == 0;
        for request in &mut requests {
            request.inline = inline && !request.args[0].is_empty();
        }
        let ends_batch = self.rng.u8(..16) == 0;
        Step {
            client,
            requests,
            ends_batch,
        }
    }

    fn next(&mut self, client: usize) -> Vec<Request> {
        // Whether a transaction over several slots is refused is known only at its end.
        let slot = Slot::of_key(self.tags[0].as_bytes());
        loop {
            let was_queueing = self.queueing[client];
            let requests = self.any(client);
            let together = requests
                .iter()
                .all(|request| request.slots.iter().all(|other| *other == slot));
            // What a listener gets is compared as a whole.
            let crosses = requests.iter().any(|request| request.crosses);
            let listens = self.listens && client == LISTENER;
            if (together || !was_queueing) && !(listens && crosses) {
                return requests;
            }
        }
    }

    fn any(&mut self, client: usize) -> Vec<Request> {
        if self.rng.u8(..64) == 0 {
            return vec![self.unknown()];
        }
        let entry = loop {
            let entry = self.entry(client);
            let fits = match entry.row.class {
                Class::Transaction(_) => self.tags.len() == 1,
                // What patterns of SORT find in other slots is not there.
                _ if ["watch", "sort", "sort_ro"].contains(&entry.row.name) => self.tags.len() == 1,
                _ => !self.queueing[client] || entry.may_be_queued,
            };
            if fits {
                break entry;
            }
        };
        let mut drawn = self.draw(entry);
        let mut values = self.values(&drawn);
        let begins_or_ends = match entry.row.name {
            "multi" => Some(true),
            "exec" | "discard" | "reset" => Some(false),
            _ => None,
        };
        if let Some(begins) = begins_or_ends {
            self.queueing[client] = begins;
            return self.whole(entry, values);
        }
        let is_sound = SOUND.contains(&entry.row.name) && !(self.listens && client == LISTENER);
        if !is_sound && self.rng.u8(..5) == 0 {
            self.damage(&mut drawn, &mut values);
        }
        self.whole(entry, values)
    }

    fn entry(&mut self, client: usize) -> &'a Entry {
        if self.listens && client == LISTENER {
            return self.named(&LISTENING);
        }
        if self.listens && !self.queueing[client] && self.rng.u8(..3) == 0 {
            return self.named(&PUBLISHING);
        }
        // A transaction does not go on for ever.
        if self.queueing[client] && self.rng.u8(..8) == 0 {
            let ends = if self.rng.u8(..3) == 0 {
                "discard"
            } else {
                "exec"
            };
            return self.named(&[ends]);
        }
        let total: u32 = self
            .catalogue
            .entries
            .iter()
            .map(|entry| entry.weight)
            .sum();
        let mut at = self.rng.u32(..total);
        for entry in &self.catalogue.entries {
            match at.checked_sub(entry.weight) {
                Some(rest) => at = rest,
                None => return entry,
            }
        }
        unreachable!("it is below the sum")
    }

    /// One of those named that are served; at least one must be.
    fn named(&mut self, names: &[&str]) -> &'a Entry {
        let entries = self.catalogue.entries.iter();
        let named: Vec<_> = entries
            .filter(|entry| names.contains(&entry.row.name))
            .collect();
        named[self.rng.usize(..named.len())]
    }

    fn draw(&mut self, entry: &Entry) -> Vec<Drawn> {
        let mut drawn = Vec::new();
        grammar::draw(&entry.form, &mut self.rng, &mut drawn);
        drawn
    }

    fn values(&mut self, drawn: &[Drawn]) -> Vec<Vec<u8>> {
        let values = drawn.iter().map(|drawn| self.value(*drawn));
        values.collect()
    }

    fn value(&mut self, drawn: Drawn) -> Vec<u8> {
        match drawn {
            Drawn::Word(word) => self.word(word),
            Drawn::Value(kind) => self.of_kind(kind),
            Drawn::Count(count) => count.to_string().into_bytes(),
        }
    }

    fn of_kind(&mut self, kind: Kind) -> Vec<u8> {
        let mut pools = Pools {
            rng: &mut self.rng,
            tags: &self.tags,
            entry: &mut self.entry,
            shas: &self.catalogue.shas,
        };
        pools.draw(kind)
    }

    /// In upper case, in lower, or in both.
    fn word(&mut self, word: &str) -> Vec<u8> {
        match self.rng.u8(..8) {
            0 => word.to_lowercase().into_bytes(),
            1 => {
                let letters = word.bytes();
                let any = |byte: u8| {
                    if self.rng.bool() {
                        byte.to_ascii_lowercase()
                    } else {
                        byte
                    }
                };
                letters.map(any).collect()
            }
            _ => word.as_bytes().to_vec(),
        }
    }

    /// Makes something wrong; perhaps nothing, by chance.
    fn damage(&mut self, drawn: &mut Vec<Drawn>, values: &mut Vec<Vec<u8>>) {
        let delicate = drawn
            .iter()
            .any(|d| matches!(d, Drawn::Value(kind) if kind.is_delicate()));
        let len = values.len();
        match self.rng.u8(..8) {
            0 if len > 0 => {
                values.pop();
                drawn.pop();
            }
            1 => values.push(wrong(Kind::Choices, &mut self.rng)),
            2 => {
                let word = [
                    "NX",
                    "COUNT",
                    "WITHSCORES",
                    "NOPE",
                    "LIMIT",
                    "STORE",
                    "KEEPTTL",
                ];
                let word = word[self.rng.usize(..word.len())];
                values.push(self.word(word));
            }
            // Arguments stand elsewhere afterwards: not where some must not.
            3 if len > 1 && !delicate => {
                let (one, other) = (self.rng.usize(..len), self.rng.usize(..len));
                values.swap(one, other);
            }
            4 if len > 1 && !delicate => drop(values.remove(self.rng.usize(..len))),
            5 if len > 0 && !delicate => {
                let at = self.rng.usize(..len);
                values.insert(at, values[at].clone());
            }
            _ if len > 0 => {
                let at = self.rng.usize(..len);
                let kind = match drawn[at] {
                    Drawn::Value(kind) => kind,
                    Drawn::Word(_) | Drawn::Count(_) if delicate => Kind::Choices,
                    Drawn::Word(_) | Drawn::Count(_) => Kind::Value,
                };
                values[at] = wrong(kind, &mut self.rng);
            }
            _ => {}
        }
    }

    /// The request; and what must follow it, where its effect is another each time.
    fn whole(&mut self, entry: &Entry, values: Vec<Vec<u8>>) -> Vec<Request> {
        let (command, subcommand) = entry.row.words();
        let words = [Some(command), subcommand];
        let mut args: Vec<Vec<u8>> = words
            .into_iter()
            .flatten()
            .map(|word| self.word(&word.to_uppercase()))
            .collect();
        args.extend(values);
        let by_chance = match entry.row.name {
            "spop" => true,
            "xadd" => args.iter().any(|arg| arg == b"*"),
            _ => false,
        };
        let del = [Some(b"DEL".to_vec()), args.get(1).cloned()];
        let mut requests = vec![self.request(entry.row.name, args)];
        if by_chance {
            requests.push(self.request("del", del.into_iter().flatten().collect()));
        }
        requests
    }

    fn request(&self, name: &'static str, args: Vec<Vec<u8>>) -> Request {
        let Slots(slots, together) = slots(&args);
        Request {
            name,
            crosses: together && slots.iter().any(|slot| *slot != slots[0]),
            slots,
            args,
            inline: false,
        }
    }

    /// Of no command at all.
    fn unknown(&mut self) -> Request {
        let names: [&[u8]; 7] = [
            b"NOPE",
            b"get ",
            b"GETX",
            b"\0",
            b"\xff\xfe",
            b"it's",
            &[b'x'; 200],
        ];
        let name = names[self.rng.usize(..names.len())].to_vec();
        let mut args = vec![name];
        for _ in 0..self.rng.usize(..5) {
            args.push(self.of_kind(Kind::Value));
        }
        self.request("", args)
    }
}

/// What the proxy cannot queue it refuses; that is documented, and changes what follows. `PUBLISH` counts
/// otherwise there, and so is no key: whether a channel's slot is that of the keys is by chance.
fn may_be_queued(row: &Command) -> bool {
    match row.class {
        Class::PubSub(PubSub::Publish(_)) => false,
        Class::Transaction(_) => true,
        class => class.queued() != Queued::Not,
    }
}

/// The slots of a request's keys, where those are in several; and whether a proxy refuses it then.
struct Slots(Vec<Slot>, bool);

fn slots(args: &[Vec<u8>]) -> Slots {
    let mut raw = Vec::new();
    put_header(&mut raw, b'*', args.len());
    args.iter().for_each(|arg| put_bulk(&mut raw, arg));
    let limits = Limits {
        args: args.len() as u32,
        arg_bytes: raw.len(),
        request_bytes: raw.len(),
    };
    let mut found = Vec::new();
    let scanned = Progress::default().scan(&raw, &mut found, &limits, true);
    scanned.expect("it has just been written");
    let request = Parsed::new(&raw, &found);
    let mut slots = Vec::new();
    let row = command::find(&request).filter(|row| row.accepts(request.argc()));
    if let Some(row) = row {
        row.visit_keys(&request, |at| slots.push(Slot::of_key(request.arg(at))));
        if row.name == "ssubscribe" {
            slots.extend(request.args_from(1).map(Slot::of_key)); // not of keys, but the same
        }
    }
    let is_split = row.is_some_and(|row| matches!(row.class, Class::Split(_)));
    Slots(slots, !is_split)
}
