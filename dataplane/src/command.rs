//! What a command is: its arity, where its keys are, whether it writes, and who answers it.
//!
//! The `table` is the single source, and has all commands that servers know; [`find`] finds those that
//! clients may call. Nothing here knows slots, groups or connections.

use std::time::Duration;

use crate::resp::Request;

mod class;
pub mod details;
mod keys;
mod table;

pub use class::{Across, Asked, Bound, Class, Local, Merge, PubSub, Queued, Split, Topic};
pub use keys::Keys;
use keys::stream_read;

/// What `COMMAND` says of a command: the bits of [`Command::flags`].
pub mod flag {
    pub const WRITE: u32 = 1;
    pub const READONLY: u32 = 1 << 1;
    pub const DENYOOM: u32 = 1 << 2;
    pub const FAST: u32 = 1 << 3;
    pub const BLOCKING: u32 = 1 << 4;
    pub const MOVABLEKEYS: u32 = 1 << 5;
    pub const NOSCRIPT: u32 = 1 << 6;
    pub const LOADING: u32 = 1 << 7;
    pub const STALE: u32 = 1 << 8;
    pub const NO_AUTH: u32 = 1 << 9;
    pub const ALLOW_BUSY: u32 = 1 << 10;
    pub const SKIP_MONITOR: u32 = 1 << 11;
    pub const NO_MANDATORY_KEYS: u32 = 1 << 12;
    pub const ADMIN: u32 = 1 << 13;
    pub const PUBSUB: u32 = 1 << 14;
    pub const NO_ASYNC_LOADING: u32 = 1 << 15;
    pub const NO_MULTI: u32 = 1 << 16;
    pub const ASKING: u32 = 1 << 17;
    pub const MODULE: u32 = 1 << 18;
    pub const SKIP_SLOWLOG: u32 = 1 << 19;

    /// By bit, as Redis names them.
    pub(super) const NAMES: [&str; 20] = [
        "write",
        "readonly",
        "denyoom",
        "fast",
        "blocking",
        "movablekeys",
        "noscript",
        "loading",
        "stale",
        "no_auth",
        "allow_busy",
        "skip_monitor",
        "no_mandatory_keys",
        "admin",
        "pubsub",
        "no_async_loading",
        "no_multi",
        "asking",
        "module",
        "skip_slowlog",
    ];
}

/// The ACL categories that do not follow from the flags: the bits of [`Command::categories`].
pub mod category {
    pub const KEYSPACE: u32 = 1;
    pub const STRING: u32 = 1 << 1;
    pub const BITMAP: u32 = 1 << 2;
    pub const LIST: u32 = 1 << 3;
    pub const SET: u32 = 1 << 4;
    pub const SORTEDSET: u32 = 1 << 5;
    pub const HASH: u32 = 1 << 6;
    pub const STREAM: u32 = 1 << 7;
    pub const HYPERLOGLOG: u32 = 1 << 8;
    pub const GEO: u32 = 1 << 9;
    pub const SCRIPTING: u32 = 1 << 10;
    pub const CONNECTION: u32 = 1 << 11;
    pub const DANGEROUS: u32 = 1 << 12;
    pub const TRANSACTION: u32 = 1 << 13;
    pub const ADMIN: u32 = 1 << 14;

    /// By bit, as Redis names them.
    pub(super) const NAMES: [&str; 15] = [
        "@keyspace",
        "@string",
        "@bitmap",
        "@list",
        "@set",
        "@sortedset",
        "@hash",
        "@stream",
        "@hyperloglog",
        "@geo",
        "@scripting",
        "@connection",
        "@dangerous",
        "@transaction",
        "@admin",
    ];
}

/// Where a blocking request says how long it may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// The argument.
    pub at: usize,
    /// It counts milliseconds, not seconds.
    pub in_millis: bool,
}

impl Patience {
    /// How long. `None`: for ever, or something that the server will refuse.
    pub fn of(self, request: &Request<'_>) -> Option<Duration> {
        let text = str::from_utf8(request.arg(self.at)).ok()?;
        let seconds = match text.parse::<f64>() {
            Ok(number) if self.in_millis => number / 1000.0,
            Ok(number) => number,
            Err(_) => return None,
        };
        Duration::try_from_secs_f64(seconds)
            .ok()
            .filter(|time| !time.is_zero())
    }
}

/// How requests are told apart where they are counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Changes nothing.
    Read,
    /// May change something.
    Write,
    /// A script or function: nobody knows what it does.
    Script,
    /// Split over several groups.
    Split,
}

impl Kind {
    /// All, in the order of their numbers, with their names.
    pub const NAMES: [&str; 4] = ["read", "write", "script", "split"];
}

/// A row of the table.
#[derive(Debug)]
pub struct Command {
    /// Its name, in lower case; of a subcommand, behind that of its command and a `|`, as Redis writes it.
    pub name: &'static str,
    /// Arguments, its name among them; negative: at least so many.
    pub arity: i8,
    /// Of [`flag`].
    pub flags: u32,
    /// Of [`category`].
    pub categories: u32,
    /// Where its keys are.
    pub keys: Keys,
    /// Who answers it.
    pub class: Class,
}

impl Command {
    /// Whether a client may call it.
    pub const fn is_served(&self) -> bool {
        !matches!(self.class, Class::Denied(_))
    }

    /// The command and the subcommand that its name consists of.
    pub fn words(&self) -> (&'static str, Option<&'static str>) {
        match self.name.split_once('|') {
            Some((command, subcommand)) => (command, Some(subcommand)),
            None => (self.name, None),
        }
    }

    /// Those of its subcommands that a client may call.
    pub fn subcommands(&self) -> impl Iterator<Item = &'static Self> {
        served().filter(|row| row.words().1.is_some() && row.words().0 == self.name)
    }

    /// Its flags, as Redis names them.
    pub fn flag_names(&self) -> Vec<&'static str> {
        names(&flag::NAMES, self.flags)
    }

    /// Its ACL categories, as Redis names them; some follow from the flags.
    pub fn category_names(&self) -> Vec<&'static str> {
        let mut found = names(&category::NAMES, self.categories);
        let is = |bit: u32| self.flags & bit != 0;
        let is_script = self.categories & category::SCRIPTING != 0;
        for (applies, name) in [
            (is(flag::WRITE), "@write"),
            (is(flag::READONLY) && !is_script, "@read"),
            (is(flag::BLOCKING), "@blocking"),
            (is(flag::PUBSUB), "@pubsub"),
            (is(flag::ADMIN), "@admin"),
            (is(flag::ADMIN), "@dangerous"),
            (is(flag::FAST), "@fast"),
            (!is(flag::FAST), "@slow"),
        ] {
            if applies {
                found.push(name);
            }
        }
        found
    }

    /// Whether it is in an ACL category, named without the `@`.
    pub fn is_in_category(&self, category: &str) -> bool {
        self.category_names()
            .iter()
            .any(|name| name[1..] == *category)
    }

    /// Its first key, its last, and the step between keys, as `COMMAND` tells them: what does not fit in
    /// there is 0.
    pub fn key_range(&self) -> [i64; 3] {
        match self.keys {
            Keys::None | Keys::Counted { .. } | Keys::Streams => [0, 0, 0],
            Keys::Channels { last } => [1, last.into(), 1],
            Keys::Range { first, last, step } => [first.into(), last.into(), step.into()],
            Keys::StoredCounted | Keys::Sort | Keys::GeoRadius => [1, 1, 1],
        }
    }

    /// Whether sending it twice, or not knowing whether it was executed, could matter. A script counts
    /// as a write: nobody knows what it does.
    #[inline]
    pub fn may_write(&self) -> bool {
        self.flags & flag::READONLY == 0
    }

    /// Whether it changes who of a stream's groups has which entry, or who is in them.
    pub fn changes_consumers(&self) -> bool {
        match self.name {
            "xack" | "xackdel" | "xautoclaim" | "xclaim" | "xdelex" | "xreadgroup" | "xsetid" => {
                true
            }
            name => name.starts_with("xgroup|"),
        }
    }

    /// Whether it changes a key, and servers do not tell of it: to nobody, or, before Redis 6, by no keyspace
    /// event. Who copies keys while they are written has to be told by us.
    pub fn is_untold(&self) -> bool {
        // Of SINTERSTORE they do not where it deletes, since one of the sets is not there.
        self.changes_consumers()
            || matches!(
                self.name,
                "move" | "persist" | "pfdebug" | "restore" | "sinterstore"
            )
    }

    /// Whether servers may pass it, or something that it does, on to their replicas. Redis has a flag for
    /// that which `COMMAND` does not tell.
    pub fn may_be_replicated(&self) -> bool {
        self.flags & flag::WRITE != 0
            || matches!(
                self.name,
                "eval" | "evalsha" | "fcall" | "pfcount" | "publish" | "spublish"
            )
    }

    /// Whether it runs a script or a function.
    pub fn runs_script(&self) -> bool {
        self.flags & flag::NO_MANDATORY_KEYS != 0 && self.categories & category::SCRIPTING != 0
    }

    /// Whether it is not queued between `MULTI` and `EXEC`, but acted upon at once.
    #[inline]
    pub fn is_never_queued(&self) -> bool {
        match self.class {
            Class::Transaction(Bound::Unwatch) => false,
            Class::Transaction(_) | Class::Local(Local::Reset | Local::Quit) => true,
            _ => false,
        }
    }

    /// Whether a RESP2 client that is subscribed may call it: it cannot tell replies from messages.
    pub fn is_for_subscribers(&self) -> bool {
        matches!(
            self.class,
            Class::PubSub(PubSub::Subscribe(_) | PubSub::Unsubscribe(_))
                | Class::Local(Local::Ping | Local::Quit | Local::Reset)
        )
    }

    /// Whether its first argument is its only key, as with most.
    #[inline]
    pub fn has_one_key(&self) -> bool {
        matches!(
            self.keys,
            Keys::Range {
                first: 1,
                last: 1,
                ..
            }
        )
    }

    /// What it counts as when one group answers it.
    #[inline]
    pub fn kind(&self) -> Kind {
        if self.categories & category::SCRIPTING != 0 {
            Kind::Script
        } else if self.flags & flag::READONLY != 0 {
            Kind::Read
        } else {
            Kind::Write
        }
    }

    /// Whether a request has as many arguments as it must.
    #[inline]
    pub fn accepts(&self, argc: usize) -> bool {
        match usize::try_from(self.arity) {
            Ok(exactly) => argc == exactly,
            Err(_) => argc >= usize::from(self.arity.unsigned_abs()),
        }
    }

    /// Calls `visit` with the index of each key of a request. Where the request is malformed (a count
    /// that is none) there are no keys: the server will say what is wrong.
    #[inline]
    pub fn visit_keys(&self, request: &Request<'_>, visit: impl FnMut(usize)) {
        self.keys.visit(request, visit);
    }

    /// Whether this request would make its connection wait at the server.
    #[inline]
    pub fn blocks(&self, request: &Request<'_>) -> bool {
        self.flags & flag::BLOCKING != 0 && self.patience(request).is_some()
    }

    /// Where a request of this command says how long it may make its connection wait, if it may.
    pub fn patience(&self, request: &Request<'_>) -> Option<Patience> {
        let in_millis = matches!(self.keys, Keys::None | Keys::Streams); // WAIT, XREAD
        let at = match self.keys {
            Keys::Streams => stream_read(request).block?,
            Keys::Counted { .. } => 1,
            Keys::None
            | Keys::Range { .. }
            | Keys::StoredCounted
            | Keys::Sort
            | Keys::GeoRadius
            | Keys::Channels { .. } => request.argc() - 1,
        };
        Some(Patience { at, in_millis })
    }
}

fn names(names: &[&'static str], bits: u32) -> Vec<&'static str> {
    (0..names.len())
        .filter(|bit| bits & (1 << bit) != 0)
        .map(|bit| names[bit])
        .collect()
}

/// The whole table, what is not served too: each command, its subcommands right behind it.
pub fn all() -> &'static [Command] {
    table::TABLE
}

/// Those rows that clients may call.
pub fn served() -> impl Iterator<Item = &'static Command> {
    all().iter().filter(|row| row.is_served())
}

/// What a request calls, if clients may: its command, or the subcommand where that has some.
#[inline]
pub fn find(request: &Request<'_>) -> Option<&'static Command> {
    let (row, command) = entry(request.arg(0))?;
    if matches!(command.class, Class::Container(_)) && request.argc() > 1 {
        return subcommand(row, request.arg(1));
    }
    Some(command)
}

/// The command of this name, in any case, if clients may call it. Subcommands are not found here.
#[inline]
pub fn lookup(name: &[u8]) -> Option<&'static Command> {
    entry(name).map(|(_, command)| command)
}

/// Whether a transaction is no place for it, also if clients may not call it at all: servers say that
/// before anything else.
#[cold]
pub fn is_refused_in_transaction(name: &[u8]) -> bool {
    let refused = table::TABLE
        .iter()
        .filter(|row| row.flags & flag::NO_MULTI != 0);
    refused
        .map(|row| row.name.as_bytes())
        .any(|own| own.eq_ignore_ascii_case(name))
}

#[inline]
fn entry(name: &[u8]) -> Option<(usize, &'static Command)> {
    let mut at = hash(name);
    loop {
        let row = usize::from(INDEX[at]);
        let command = table::TABLE.get(row)?;
        if is_named(command.name, name) {
            return Some((row, command));
        }
        at = (at + 1) % INDEX.len();
    }
}

/// Whether a name in lower case is this one, in any case.
#[inline]
fn is_named(own: &str, name: &[u8]) -> bool {
    let mut bytes = own.bytes().zip(name);
    own.len() == name.len() && bytes.all(|(own, byte)| own == byte.to_ascii_lowercase())
}

/// Looked for among the few rows that follow that of the container.
#[inline(never)] // seldom, and large
fn subcommand(container: usize, name: &[u8]) -> Option<&'static Command> {
    let command = table::TABLE[container].name;
    table::TABLE[container + 1..]
        .iter()
        .take_while(|row| row.words().0 == command)
        .find(|row| {
            let own = row.words().1.unwrap_or_default();
            row.is_served() && is_named(own, name)
        })
}

/// A hash table from the names of commands that clients may call to their rows, made by the compiler;
/// what is free points behind the table.
static INDEX: [u16; 1024] = {
    let mut index = [u16::MAX; 1024];
    let (mut row, mut used) = (0, 0);
    while row < table::TABLE.len() {
        let command = &table::TABLE[row];
        if command.is_served() && !has_bar(command.name.as_bytes()) {
            let mut at = hash(command.name.as_bytes());
            while index[at] != u16::MAX {
                at = (at + 1) % index.len();
            }
            index[at] = row as u16;
            used += 1;
        }
        row += 1;
    }
    assert!(used < 400, "make the index larger");
    index
};

/// Whether it is the name of a subcommand.
const fn has_bar(name: &[u8]) -> bool {
    let mut i = 0;
    while i < name.len() {
        if name[i] == b'|' {
            return true;
        }
        i += 1;
    }
    false
}

/// Of the first 32 bytes, with letters in either case the same. No name is longer.
const fn hash(name: &[u8]) -> usize {
    let mut hash = 0x811c_9dc5_u32;
    let mut i = 0;
    while i < name.len() && i < 32 {
        hash = (hash ^ (name[i] | 0x20) as u32).wrapping_mul(0x0100_0193);
        i += 1;
    }
    ((hash ^ (hash >> 11)) % 1024) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_served_is_found_in_any_case_and_nothing_else() {
        for (row, command) in all().iter().enumerate() {
            for name in [command.name.to_owned(), command.name.to_uppercase()] {
                let found = match name.split_once('|') {
                    None => lookup(name.as_bytes()),
                    Some((container, name)) => {
                        assert!(lookup(command.name.as_bytes()).is_none(), "{name}");
                        lookup(container.as_bytes())
                            .and_then(position)
                            .and_then(|container| subcommand(container, name.as_bytes()))
                    }
                };
                let found = found.and_then(position);
                assert_eq!(found, command.is_served().then_some(row), "{name}");
            }
        }
        for unknown in ["", "nope", "get ", "ge", "\0\0\0", &"x".repeat(1000)] {
            assert!(lookup(unknown.as_bytes()).is_none(), "{unknown:?}");
        }
    }

    fn position(command: &Command) -> Option<usize> {
        all().iter().position(|row| std::ptr::eq(row, command))
    }

    #[test]
    fn subcommands_stand_behind_their_command_and_are_refused_with_it() {
        assert!(all().is_sorted_by_key(|row| row.words()));
        for row in all().iter().filter(|row| row.words().1.is_some()) {
            let container = all().iter().find(|other| other.name == row.words().0);
            let container = container.expect("it has a row");
            let is_container = matches!(container.class, Class::Container(_));
            assert!(is_container || !row.is_served(), "{}", row.name);
            assert!(is_container || !container.is_served(), "{}", row.name);
        }
    }
}
