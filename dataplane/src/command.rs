//! What a command is: its arity, where its keys are, whether it writes, and who answers it.
//!
//! The `table` is the single source; everything else asks [`lookup`]. Nothing here knows slots,
//! groups or connections.

use crate::resp::{Request, parse_int};

mod table;

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

    /// By bit, as Redis names them.
    pub const NAMES: [&str; 13] = [
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

    /// By bit, as Redis names them.
    pub const NAMES: [&str; 14] = [
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
    ];
}

/// Where a command's keys are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keys {
    /// It has none.
    None,
    /// From `first` to `last`, every `step`-th argument; a negative `last` counts from the end.
    Range { first: i8, last: i8, step: u8 },
    /// Argument 2, behind a subcommand (`XINFO STREAM key`). `HELP` has none.
    AfterSubcommand,
    /// As many as argument `at` says, behind it.
    Counted { at: u8 },
    /// The destination, a count, and as many sources (`ZUNIONSTORE`).
    StoredCounted,
    /// The first half of what stands behind `STREAMS`.
    Streams,
    /// The first argument, and each one behind `STORE`.
    Sort,
    /// The first argument, and each one behind `STORE` or `STOREDIST`.
    GeoRadius,
}

/// Who answers a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// The group that owns the one slot of all its keys.
    Forward,
    /// Each group that owns some of its keys answers for these; the replies are merged.
    Split(Split),
    /// The proxy.
    Local(Local),
    /// The proxy, until all that stands between `MULTI` and `EXEC` goes to its group.
    Transaction(Bound),
}

/// Where a transaction begins or ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bound {
    Multi,
    Exec,
    Discard,
}

/// How a command over many slots is split and merged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Split {
    /// Keys; the merged reply has one value for each, in their order.
    Mget,
    /// Keys with values; done when all parts are.
    Mset,
    /// Keys; the reply is the sum of the parts' numbers.
    Sum,
}

/// What the proxy answers itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Local {
    Auth,
    Client,
    Command,
    Echo,
    Hello,
    Info,
    Ping,
    Quit,
    Reset,
    Select,
    Time,
}

impl Local {
    /// Whether requests behind it may need another connection to the servers than those before it.
    pub fn changes_pipe(self) -> bool {
        match self {
            Self::Hello | Self::Reset | Self::Select => true,
            Self::Auth
            | Self::Client
            | Self::Command
            | Self::Echo
            | Self::Info
            | Self::Ping
            | Self::Quit
            | Self::Time => false,
        }
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
    /// Its name, in lower case.
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
    /// Whether sending it twice, or not knowing whether it was executed, could matter. A script counts
    /// as a write: nobody knows what it does.
    #[inline]
    pub fn may_write(&self) -> bool {
        self.flags & flag::READONLY == 0
    }

    /// Whether it is not queued between `MULTI` and `EXEC`, but acted upon at once.
    #[inline]
    pub fn is_never_queued(&self) -> bool {
        matches!(
            self.class,
            Class::Transaction(_) | Class::Local(Local::Reset | Local::Quit)
        )
    }

    /// Whether one group answers it, by its first argument, whatever the others are.
    pub fn has_one_key(&self) -> bool {
        let one = matches!(
            self.keys,
            Keys::Range {
                first: 1,
                last: 1,
                ..
            }
        );
        one && self.class == Class::Forward
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
    pub fn visit_keys(&self, request: &Request<'_>, mut visit: impl FnMut(usize)) {
        let argc = request.argc();
        match self.keys {
            Keys::None => {}
            Keys::Range {
                first: 1, last: 1, ..
            } => visit(1),
            Keys::Range { first, last, step } => {
                let end = if last < 0 {
                    argc as isize + isize::from(last)
                } else {
                    last.into()
                };
                (isize::from(first)..=end)
                    .step_by(usize::from(step))
                    .filter(|&index| index < argc as isize)
                    .for_each(|index| visit(index as usize));
            }
            Keys::AfterSubcommand if argc > 2 => visit(2),
            Keys::AfterSubcommand => {}
            Keys::Counted { at } => counted(request, usize::from(at)).for_each(visit),
            Keys::StoredCounted => {
                let sources = counted(request, 2);
                if !sources.is_empty() {
                    visit(1);
                }
                sources.for_each(visit);
            }
            Keys::Streams => stream_read(request).keys.for_each(visit),
            Keys::Sort => stored(request, 2, &[b"STORE"], visit),
            Keys::GeoRadius => stored(request, 5, &[b"STORE", b"STOREDIST"], visit),
        }
    }

    /// Whether this request would make its connection wait at the server.
    pub fn blocks(&self, request: &Request<'_>) -> bool {
        self.flags & flag::BLOCKING != 0 && stream_read(request).blocks
    }
}

fn counted(request: &Request<'_>, at: usize) -> std::ops::Range<usize> {
    let count = (at < request.argc())
        .then(|| parse_int(request.arg(at)))
        .flatten()
        .and_then(|count| usize::try_from(count).ok())
        .filter(|&count| count < request.argc() - at)
        .unwrap_or(0);
    at + 1..at + 1 + count
}

/// What XREAD and XREADGROUP ask for, read as Redis reads it: names given by the client (of a group, a
/// consumer, a stream) are no options, whatever they are.
struct StreamRead {
    blocks: bool,
    /// Where the keys are; empty where the request is malformed.
    keys: std::ops::Range<usize>,
}

fn stream_read(request: &Request<'_>) -> StreamRead {
    let mut read = StreamRead {
        blocks: false,
        keys: 0..0,
    };
    let mut at = 1;
    while at < request.argc() {
        let option = request.arg(at);
        if option.eq_ignore_ascii_case(b"STREAMS") {
            let rest = request.argc() - at - 1;
            if rest.is_multiple_of(2) {
                read.keys = at + 1..at + 1 + rest / 2;
            }
            break;
        }
        read.blocks |= option.eq_ignore_ascii_case(b"BLOCK");
        at += if option.eq_ignore_ascii_case(b"GROUP") {
            3
        } else if option.eq_ignore_ascii_case(b"NOACK") {
            1
        } else {
            2 // COUNT and BLOCK, and what the server will refuse
        };
    }
    read
}

fn stored(request: &Request<'_>, from: usize, names: &[&[u8]], mut visit: impl FnMut(usize)) {
    visit(1);
    for index in from..request.argc().saturating_sub(1) {
        if names
            .iter()
            .any(|name| request.arg(index).eq_ignore_ascii_case(name))
        {
            visit(index + 1);
        }
    }
}

/// Every command there is, sorted by name.
pub fn all() -> &'static [Command] {
    table::TABLE
}

/// The command of this name, in any case.
#[inline]
pub fn lookup(name: &[u8]) -> Option<&'static Command> {
    let mut at = hash(name);
    loop {
        let command = table::TABLE.get(usize::from(INDEX[at]))?;
        if command.name.as_bytes().eq_ignore_ascii_case(name) {
            return Some(command);
        }
        at = (at + 1) % INDEX.len();
    }
}

/// A hash table from names to rows, made by the compiler; what is free points behind the table.
static INDEX: [u16; 512] = {
    assert!(table::TABLE.len() < 400, "make the index larger");
    let mut index = [u16::MAX; 512];
    let mut row = 0;
    while row < table::TABLE.len() {
        let mut at = hash(table::TABLE[row].name.as_bytes());
        while index[at] != u16::MAX {
            at = (at + 1) % index.len();
        }
        index[at] = row as u16;
        row += 1;
    }
    index
};

/// Of the first 32 bytes, with letters in either case the same. No name is longer.
const fn hash(name: &[u8]) -> usize {
    let mut hash = 0x811c_9dc5_u32;
    let mut i = 0;
    while i < name.len() && i < 32 {
        hash = (hash ^ (name[i] | 0x20) as u32).wrapping_mul(0x0100_0193);
        i += 1;
    }
    ((hash ^ (hash >> 15)) % 512) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::{Limits, Progress, put_bulk, put_header};

    /// The indices of the keys of a request, given as words.
    fn keys(words: &str) -> Vec<usize> {
        let words: Vec<&str> = words.split(' ').collect();
        let mut raw = Vec::new();
        put_header(&mut raw, b'*', words.len());
        words
            .iter()
            .for_each(|word| put_bulk(&mut raw, word.as_bytes()));
        let (mut args, limits) = (Vec::new(), Limits::UNAUTHENTICATED);
        Progress::default()
            .scan(&raw, &mut args, &Limits { args: 99, ..limits }, true)
            .unwrap();
        let mut keys = Vec::new();
        lookup(words[0].as_bytes())
            .unwrap()
            .visit_keys(&Request::new(&raw, &args), |index| keys.push(index));
        keys
    }

    #[test]
    fn every_row_is_found_in_any_case() {
        for command in all() {
            assert!(std::ptr::eq(
                lookup(command.name.as_bytes()).unwrap(),
                command
            ));
            assert!(std::ptr::eq(
                lookup(command.name.to_uppercase().as_bytes()).unwrap(),
                command
            ));
        }
        assert!(all().is_sorted_by_key(|command| command.name));
        for unknown in [
            "",
            "nope",
            "shutdown",
            "get ",
            "ge",
            "\0\0\0",
            &"x".repeat(1000),
        ] {
            assert!(lookup(unknown.as_bytes()).is_none(), "{unknown:?}");
        }
    }

    #[test]
    fn keys_are_where_redis_says() {
        for (words, expected) in [
            ("get k", &[1][..]),
            ("mget a b c", &[1, 2, 3]),
            ("mset a 1 b 2", &[1, 3]),
            ("bitop and d a b", &[2, 3, 4]),
            ("rename a b", &[1, 2]),
            ("eval s 2 a b x", &[3, 4]),
            ("eval s 0 x", &[]),
            ("eval s 9 a", &[]),
            ("eval s -1 a", &[]),
            ("eval s x a", &[]),
            ("zunionstore d 2 a b weights 1 2", &[1, 3, 4]),
            ("zunion 2 a b", &[2, 3]),
            ("xread count 1 streams a b 0 0", &[4, 5]),
            ("xread streams a b 0", &[]),
            ("xreadgroup group g c streams s >", &[5]),
            ("xreadgroup group g streams block 0 noack streams s >", &[8]),
            ("xreadgroup group block streams count 1 streams s >", &[7]),
            ("xgroup create s g $", &[2]),
            ("xgroup help", &[]),
            ("sort k by x store d", &[1, 5]),
            ("georadius k 1 2 3 m store d storedist e", &[1, 7, 9]),
            ("georadiusbymember k m 3 m store d", &[1, 6]),
            ("lcs a b len", &[1, 2]),
        ] {
            assert_eq!(keys(words), expected, "{words}");
        }
    }
}
