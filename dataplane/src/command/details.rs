//! What `COMMAND INFO` tells of a command besides the table: tips for clients, and how its keys are found
//! and used.
//!
//! One row a command or subcommand that has any, sorted by name, as Redis 7.0 says it, for newer commands
//! Redis 8.2, Valkey 8 or Valkey 9; a test holds them against these servers. Nothing is decided by it: where
//! a request's keys are is the table's to say.

use super::Command;
use crate::resp::{Request, parse_int};

use Begin::{Index, Keyword};
use Find::{Number, Range};

/// How a key is used: the bits of [`KeySpec::access`].
mod access {
    pub(super) const RO: u32 = 1;
    pub(super) const RW: u32 = 1 << 1;
    pub(super) const OW: u32 = 1 << 2;
    pub(super) const RM: u32 = 1 << 3;
    pub(super) const ACCESS: u32 = 1 << 4;
    pub(super) const UPDATE: u32 = 1 << 5;
    pub(super) const INSERT: u32 = 1 << 6;
    pub(super) const DELETE: u32 = 1 << 7;
    pub(super) const NOT_KEY: u32 = 1 << 8;
    pub(super) const INCOMPLETE: u32 = 1 << 9;
    pub(super) const VARIABLE: u32 = 1 << 10;

    /// By bit, as Redis names them.
    pub(super) const NAMES: [&str; 11] = [
        "RO",
        "RW",
        "OW",
        "RM",
        "access",
        "update",
        "insert",
        "delete",
        "not_key",
        "incomplete",
        "variable_flags",
    ];
}

use access::{ACCESS, DELETE, INCOMPLETE, INSERT, NOT_KEY, OW, RM, RO, RW, UPDATE, VARIABLE};

/// See the module.
#[derive(Debug)]
pub struct Details {
    name: &'static str,
    /// Of Redis, to clients of a cluster.
    pub tips: &'static [&'static str],
    /// In the order of the keys, mostly.
    pub keys: &'static [KeySpec],
}

/// Where some keys are, and what becomes of them.
#[derive(Debug)]
pub struct KeySpec {
    /// Where to begin.
    pub begin: Begin,
    /// Which keys there are from there on.
    pub find: Find,
    access: u32,
    /// A remark, or nothing.
    pub notes: &'static str,
}

/// Where keys begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begin {
    /// At this argument.
    Index(i64),
    /// Behind this word, looked for from there on; from the end if negative.
    Keyword(&'static str, i64),
    /// Wherever.
    Unknown,
}

/// Which arguments are keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Find {
    /// Up to the last, every so many, of the so-manieth part of what is there (0: of all).
    Range(i64, i64, i64),
    /// As many as the argument so far behind the beginning says, from the one so far behind it on, every so
    /// many.
    Number(i64, i64, i64),
    /// Whichever.
    Unknown,
}

const ONE: Find = Range(0, 1, 0);
const REST: Find = Range(-1, 1, 0);

static NONE: Details = row("", &[], &[]);

const fn row(
    name: &'static str,
    tips: &'static [&'static str],
    keys: &'static [KeySpec],
) -> Details {
    Details { name, tips, keys }
}

const fn key(begin: Begin, find: Find, access: u32) -> KeySpec {
    noted("", begin, find, access)
}

const fn noted(notes: &'static str, begin: Begin, find: Find, access: u32) -> KeySpec {
    KeySpec {
        begin,
        find,
        access,
        notes,
    }
}

/// What is known of a command.
pub fn of(command: &Command) -> &'static Details {
    match DETAILS.binary_search_by_key(&command.words(), |row| words(row.name)) {
        Ok(at) => &DETAILS[at],
        Err(_) => &NONE,
    }
}

/// In the order of the table.
fn words(name: &str) -> (&str, Option<&str>) {
    match name.split_once('|') {
        Some((command, subcommand)) => (command, Some(subcommand)),
        None => (name, None),
    }
}

impl KeySpec {
    /// How keys are used, as Redis names it.
    pub fn access_names(&self) -> Vec<&'static str> {
        super::names(&access::NAMES, self.access)
    }

    /// Whether the argument at `index` of this request is one of its keys.
    fn has(&self, request: &Request<'_>, index: i64) -> bool {
        let argc = request.argc() as i64;
        let found = |word: &str, at: i64| {
            request
                .arg(at as usize)
                .eq_ignore_ascii_case(word.as_bytes())
        };
        let begin = match self.begin {
            Index(at) => Some(at),
            Keyword(word, from) if from >= 0 => {
                (from..argc).find(|&at| found(word, at)).map(|at| at + 1)
            }
            Keyword(word, from) => (1..=argc + from)
                .rev()
                .find(|&at| found(word, at))
                .map(|at| at + 1),
            Begin::Unknown => None,
        };
        let Some(begin) = begin else {
            return false;
        };
        let (first, last, step) = match self.find {
            Range(last, step, limit @ 2..) => (begin, begin + (argc - begin) / limit + last, step),
            Range(last, step, _) if last < 0 => (begin, argc + last, step),
            Range(last, step, _) => (begin, begin + last, step),
            Number(at, first, step) => {
                let count = usize::try_from(begin + at)
                    .ok()
                    .filter(|&at| at < request.argc());
                let count = count.and_then(|at| parse_int(request.arg(at))).unwrap_or(0);
                let first = begin + first;
                (
                    first,
                    first.saturating_add(count.saturating_sub(1).saturating_mul(step)),
                    step,
                )
            }
            Find::Unknown => return false,
        };
        (first..=last).contains(&index) && (index - first) % step == 0
    }
}

/// How a request uses the key at one of its arguments, as Redis names it. `None`: the argument is a key only
/// for who looks less closely.
pub fn access_of(
    command: &Command,
    request: &Request<'_>,
    index: usize,
) -> Option<Vec<&'static str>> {
    let keys = of(command).keys;
    let found = keys.iter().find(|key| key.has(request, index as i64));
    let access = match (command.name, found) {
        // Of these it depends on the request.
        ("set", _)
            if request
                .args_from(3)
                .any(|arg| arg.eq_ignore_ascii_case(b"GET")) =>
        {
            RW | ACCESS | UPDATE
        }
        ("set", _) => OW | UPDATE,
        ("bitfield", _) if !only_gets(request) => RW | ACCESS | UPDATE,
        ("bitfield", _) => RO | ACCESS,
        (_, Some(key)) => key.access,
        ("sort", None) => OW | UPDATE, // behind `STORE`, which is not specified
        (_, None) => return None,
    };
    Some(super::names(&access::NAMES, access))
}

/// Whether nothing but `GET` is asked of a `BITFIELD`. What is malformed may be anything.
fn only_gets(request: &Request<'_>) -> bool {
    let mut args = request.args_from(2);
    while let Some(operation) = args.next() {
        let behind = match operation.to_ascii_lowercase().as_slice() {
            b"get" => 2,
            b"overflow" => 1,
            _ => return false,
        };
        if args.by_ref().take(behind).count() < behind {
            return false;
        }
    }
    true
}

#[rustfmt::skip]
static DETAILS: &[Details] = &[
    row("append", &[], &[key(Index(1), ONE, RW | INSERT)]),
    row("bitcount", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("bitfield", &[], &[noted("This command allows both access and modification of the key", Index(1), ONE, RW | ACCESS | UPDATE | VARIABLE)]),
    row("bitfield_ro", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("bitop", &[], &[key(Index(2), ONE, OW | UPDATE), key(Index(3), REST, RO | ACCESS)]),
    row("bitpos", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("blmove", &[], &[key(Index(1), ONE, RW | ACCESS | DELETE), key(Index(2), ONE, RW | INSERT)]),
    row("blmpop", &[], &[key(Index(2), Number(0, 1, 1), RW | ACCESS | DELETE)]),
    row("blpop", &[], &[key(Index(1), Range(-2, 1, 0), RW | ACCESS | DELETE)]),
    row("brpop", &[], &[key(Index(1), Range(-2, 1, 0), RW | ACCESS | DELETE)]),
    row("brpoplpush", &[], &[key(Index(1), ONE, RW | ACCESS | DELETE), key(Index(2), ONE, RW | INSERT)]),
    row("bzmpop", &[], &[key(Index(2), Number(0, 1, 1), RW | ACCESS | DELETE)]),
    row("bzpopmax", &[], &[key(Index(1), Range(-2, 1, 0), RW | ACCESS | DELETE)]),
    row("bzpopmin", &[], &[key(Index(1), Range(-2, 1, 0), RW | ACCESS | DELETE)]),
    row("client|info", &["nondeterministic_output"], &[]),
    row("client|list", &["nondeterministic_output"], &[]),
    row("client|setinfo", &["request_policy:all_nodes", "response_policy:all_succeeded"], &[]),
    row("cluster|bumpepoch", &["nondeterministic_output"], &[]),
    row("cluster|count-failure-reports", &["nondeterministic_output"], &[]),
    row("cluster|getkeysinslot", &["nondeterministic_output"], &[]),
    row("cluster|info", &["nondeterministic_output"], &[]),
    row("cluster|links", &["nondeterministic_output"], &[]),
    row("cluster|myshardid", &["nondeterministic_output"], &[]),
    row("cluster|nodes", &["nondeterministic_output"], &[]),
    row("cluster|replicas", &["nondeterministic_output"], &[]),
    row("cluster|shards", &["nondeterministic_output"], &[]),
    row("cluster|slaves", &["nondeterministic_output"], &[]),
    row("cluster|slot-stats", &["nondeterministic_output", "request_policy:all_shards"], &[]),
    row("cluster|slots", &["nondeterministic_output"], &[]),
    row("clusterscan", &["nondeterministic_output", "request_policy:special", "response_policy:special"], &[key(Index(1), ONE, NOT_KEY)]),
    row("command", &["nondeterministic_output_order"], &[]),
    row("command|docs", &["nondeterministic_output_order"], &[]),
    row("command|info", &["nondeterministic_output_order"], &[]),
    row("command|list", &["nondeterministic_output_order"], &[]),
    row("commandlog|get", &["request_policy:all_nodes", "nondeterministic_output"], &[]),
    row("commandlog|len", &["request_policy:all_nodes", "response_policy:agg_sum", "nondeterministic_output"], &[]),
    row("commandlog|reset", &["request_policy:all_nodes", "response_policy:all_succeeded"], &[]),
    row("config|set", &["request_policy:all_nodes", "response_policy:all_succeeded"], &[]),
    row("copy", &[], &[key(Index(1), ONE, RO | ACCESS), key(Index(2), ONE, OW | UPDATE)]),
    row("dbsize", &["request_policy:all_shards", "response_policy:agg_sum"], &[]),
    row("decr", &[], &[key(Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("decrby", &[], &[key(Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("del", &["request_policy:multi_shard", "response_policy:agg_sum"], &[key(Index(1), REST, RM | DELETE)]),
    row("delifeq", &[], &[key(Index(1), ONE, RM | DELETE)]),
    row("dump", &["nondeterministic_output"], &[key(Index(1), ONE, RO | ACCESS)]),
    row("eval", &[], &[noted("We cannot tell how the keys will be used so we assume the worst, RW and UPDATE", Index(2), Number(0, 1, 1), RW | ACCESS | UPDATE)]),
    row("eval_ro", &[], &[noted("We cannot tell how the keys will be used so we assume the worst, RO and ACCESS", Index(2), Number(0, 1, 1), RO | ACCESS)]),
    row("evalsha", &[], &[key(Index(2), Number(0, 1, 1), RW | ACCESS | UPDATE)]),
    row("evalsha_ro", &[], &[key(Index(2), Number(0, 1, 1), RO | ACCESS)]),
    row("exists", &["request_policy:multi_shard", "response_policy:agg_sum"], &[key(Index(1), REST, RO)]),
    row("expire", &[], &[key(Index(1), ONE, RW | UPDATE)]),
    row("expireat", &[], &[key(Index(1), ONE, RW | UPDATE)]),
    row("expiretime", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("fcall", &[], &[noted("We cannot tell how the keys will be used so we assume the worst, RW and UPDATE", Index(2), Number(0, 1, 1), RW | ACCESS | UPDATE)]),
    row("fcall_ro", &[], &[noted("We cannot tell how the keys will be used so we assume the worst, RO and ACCESS", Index(2), Number(0, 1, 1), RO | ACCESS)]),
    row("flushall", &["request_policy:all_shards", "response_policy:all_succeeded"], &[]),
    row("flushdb", &["request_policy:all_shards", "response_policy:all_succeeded"], &[]),
    row("function|delete", &["request_policy:all_shards", "response_policy:all_succeeded"], &[]),
    row("function|flush", &["request_policy:all_shards", "response_policy:all_succeeded"], &[]),
    row("function|kill", &["request_policy:all_shards", "response_policy:one_succeeded"], &[]),
    row("function|list", &["nondeterministic_output_order"], &[]),
    row("function|load", &["request_policy:all_shards", "response_policy:all_succeeded"], &[]),
    row("function|restore", &["request_policy:all_shards", "response_policy:all_succeeded"], &[]),
    row("function|stats", &["nondeterministic_output", "request_policy:all_shards", "response_policy:special"], &[]),
    row("geoadd", &[], &[key(Index(1), ONE, RW | UPDATE)]),
    row("geodist", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("geohash", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("geopos", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("georadius", &[], &[key(Index(1), ONE, RO | ACCESS), key(Keyword("STORE", 6), ONE, OW | UPDATE), key(Keyword("STOREDIST", 6), ONE, OW | UPDATE)]),
    row("georadius_ro", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("georadiusbymember", &[], &[key(Index(1), ONE, RO | ACCESS), key(Keyword("STORE", 5), ONE, OW | UPDATE), key(Keyword("STOREDIST", 5), ONE, OW | UPDATE)]),
    row("georadiusbymember_ro", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("geosearch", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("geosearchstore", &[], &[key(Index(1), ONE, OW | UPDATE), key(Index(2), ONE, RO | ACCESS)]),
    row("get", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("getbit", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("getdel", &[], &[key(Index(1), ONE, RW | ACCESS | DELETE)]),
    row("getex", &[], &[noted("RW and UPDATE because it changes the TTL", Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("getrange", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("getset", &[], &[key(Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("hdel", &[], &[key(Index(1), ONE, RW | DELETE)]),
    row("hexists", &[], &[key(Index(1), ONE, RO)]),
    row("hexpire", &[], &[key(Index(1), ONE, RW | UPDATE)]),
    row("hexpireat", &[], &[key(Index(1), ONE, RW | UPDATE)]),
    row("hexpiretime", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("hget", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("hgetall", &["nondeterministic_output_order"], &[key(Index(1), ONE, RO | ACCESS)]),
    row("hgetdel", &[], &[key(Index(1), ONE, RW | ACCESS | DELETE)]),
    row("hgetex", &[], &[noted("RW and UPDATE because it changes the TTL", Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("hincrby", &[], &[key(Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("hincrbyfloat", &[], &[key(Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("hkeys", &["nondeterministic_output_order"], &[key(Index(1), ONE, RO | ACCESS)]),
    row("hlen", &[], &[key(Index(1), ONE, RO)]),
    row("hmget", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("hmset", &[], &[key(Index(1), ONE, RW | UPDATE)]),
    row("hpersist", &[], &[key(Index(1), ONE, RW | UPDATE)]),
    row("hpexpire", &[], &[key(Index(1), ONE, RW | UPDATE)]),
    row("hpexpireat", &[], &[key(Index(1), ONE, RW | UPDATE)]),
    row("hpexpiretime", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("hpttl", &["nondeterministic_output"], &[key(Index(1), ONE, RO | ACCESS)]),
    row("hrandfield", &["nondeterministic_output"], &[key(Index(1), ONE, RO | ACCESS)]),
    row("hscan", &["nondeterministic_output"], &[key(Index(1), ONE, RO | ACCESS)]),
    row("hset", &[], &[key(Index(1), ONE, RW | UPDATE)]),
    row("hsetex", &[], &[key(Index(1), ONE, RW | UPDATE)]),
    row("hsetnx", &[], &[key(Index(1), ONE, RW | INSERT)]),
    row("hstrlen", &[], &[key(Index(1), ONE, RO)]),
    row("httl", &["nondeterministic_output"], &[key(Index(1), ONE, RO | ACCESS)]),
    row("hvals", &["nondeterministic_output_order"], &[key(Index(1), ONE, RO | ACCESS)]),
    row("incr", &[], &[key(Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("incrby", &[], &[key(Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("incrbyfloat", &[], &[key(Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("info", &["nondeterministic_output", "request_policy:all_shards", "response_policy:special"], &[]),
    row("keys", &["request_policy:all_shards", "nondeterministic_output_order"], &[]),
    row("lastsave", &["nondeterministic_output"], &[]),
    row("latency|doctor", &["nondeterministic_output", "request_policy:all_nodes", "response_policy:special"], &[]),
    row("latency|graph", &["nondeterministic_output", "request_policy:all_nodes", "response_policy:special"], &[]),
    row("latency|histogram", &["nondeterministic_output", "request_policy:all_nodes", "response_policy:special"], &[]),
    row("latency|history", &["nondeterministic_output", "request_policy:all_nodes", "response_policy:special"], &[]),
    row("latency|latest", &["nondeterministic_output", "request_policy:all_nodes", "response_policy:special"], &[]),
    row("latency|reset", &["request_policy:all_nodes", "response_policy:all_succeeded"], &[]),
    row("lcs", &[], &[key(Index(1), Range(1, 1, 0), RO | ACCESS)]),
    row("lindex", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("linsert", &[], &[key(Index(1), ONE, RW | INSERT)]),
    row("llen", &[], &[key(Index(1), ONE, RO)]),
    row("lmove", &[], &[key(Index(1), ONE, RW | ACCESS | DELETE), key(Index(2), ONE, RW | INSERT)]),
    row("lmpop", &[], &[key(Index(1), Number(0, 1, 1), RW | ACCESS | DELETE)]),
    row("lpop", &[], &[key(Index(1), ONE, RW | ACCESS | DELETE)]),
    row("lpos", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("lpush", &[], &[key(Index(1), ONE, RW | INSERT)]),
    row("lpushx", &[], &[key(Index(1), ONE, RW | INSERT)]),
    row("lrange", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("lrem", &[], &[key(Index(1), ONE, RW | DELETE)]),
    row("lset", &[], &[key(Index(1), ONE, RW | UPDATE)]),
    row("ltrim", &[], &[key(Index(1), ONE, RW | DELETE)]),
    row("memory|doctor", &["nondeterministic_output", "request_policy:all_shards", "response_policy:special"], &[]),
    row("memory|malloc-stats", &["nondeterministic_output", "request_policy:all_shards", "response_policy:special"], &[]),
    row("memory|purge", &["request_policy:all_shards", "response_policy:all_succeeded"], &[]),
    row("memory|stats", &["nondeterministic_output", "request_policy:all_shards", "response_policy:special"], &[]),
    row("memory|usage", &[], &[key(Index(2), ONE, RO)]),
    row("mget", &["request_policy:multi_shard"], &[key(Index(1), REST, RO | ACCESS)]),
    row("migrate", &["nondeterministic_output"], &[key(Index(3), ONE, RW | ACCESS | DELETE), key(Keyword("KEYS", -2), REST, RW | ACCESS | DELETE | INCOMPLETE)]),
    row("module|list", &["nondeterministic_output_order"], &[]),
    row("move", &[], &[key(Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("mset", &["request_policy:multi_shard", "response_policy:all_succeeded"], &[key(Index(1), Range(-1, 2, 0), OW | UPDATE)]),
    row("msetex", &["request_policy:multi_shard", "response_policy:all_succeeded"], &[key(Index(1), Number(0, 1, 2), OW | UPDATE)]),
    row("msetnx", &["request_policy:multi_shard", "response_policy:agg_min"], &[key(Index(1), Range(-1, 2, 0), OW | INSERT)]),
    row("object|encoding", &["nondeterministic_output"], &[key(Index(2), ONE, RO)]),
    row("object|freq", &["nondeterministic_output"], &[key(Index(2), ONE, RO)]),
    row("object|idletime", &["nondeterministic_output"], &[key(Index(2), ONE, RO)]),
    row("object|refcount", &["nondeterministic_output"], &[key(Index(2), ONE, RO)]),
    row("persist", &[], &[key(Index(1), ONE, RW | UPDATE)]),
    row("pexpire", &[], &[key(Index(1), ONE, RW | UPDATE)]),
    row("pexpireat", &[], &[key(Index(1), ONE, RW | UPDATE)]),
    row("pexpiretime", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("pfadd", &[], &[key(Index(1), ONE, RW | INSERT)]),
    row("pfcount", &[], &[noted("RW because it may change the internal representation of the key, and propagate to replicas", Index(1), REST, RW | ACCESS)]),
    row("pfdebug", &[], &[key(Index(2), ONE, RW | ACCESS)]),
    row("pfmerge", &[], &[key(Index(1), ONE, RW | ACCESS | INSERT), key(Index(2), REST, RO | ACCESS)]),
    row("ping", &["request_policy:all_shards", "response_policy:all_succeeded"], &[]),
    row("psetex", &[], &[key(Index(1), ONE, OW | UPDATE)]),
    row("pttl", &["nondeterministic_output"], &[key(Index(1), ONE, RO | ACCESS)]),
    row("randomkey", &["request_policy:all_shards", "nondeterministic_output"], &[]),
    row("rename", &[], &[key(Index(1), ONE, RW | ACCESS | DELETE), key(Index(2), ONE, OW | UPDATE)]),
    row("renamenx", &[], &[key(Index(1), ONE, RW | ACCESS | DELETE), key(Index(2), ONE, OW | INSERT)]),
    row("restore", &[], &[key(Index(1), ONE, OW | UPDATE)]),
    row("restore-asking", &[], &[key(Index(1), ONE, OW | UPDATE)]),
    row("rpop", &[], &[key(Index(1), ONE, RW | ACCESS | DELETE)]),
    row("rpoplpush", &[], &[key(Index(1), ONE, RW | ACCESS | DELETE), key(Index(2), ONE, RW | INSERT)]),
    row("rpush", &[], &[key(Index(1), ONE, RW | INSERT)]),
    row("rpushx", &[], &[key(Index(1), ONE, RW | INSERT)]),
    row("sadd", &[], &[key(Index(1), ONE, RW | INSERT)]),
    row("scan", &["nondeterministic_output", "request_policy:special"], &[]),
    row("scard", &[], &[key(Index(1), ONE, RO)]),
    row("script|exists", &["request_policy:all_shards", "response_policy:agg_logical_and"], &[]),
    row("script|flush", &["request_policy:all_nodes", "response_policy:all_succeeded"], &[]),
    row("script|kill", &["request_policy:all_shards", "response_policy:one_succeeded"], &[]),
    row("script|load", &["request_policy:all_nodes", "response_policy:all_succeeded"], &[]),
    row("sdiff", &["nondeterministic_output_order"], &[key(Index(1), REST, RO | ACCESS)]),
    row("sdiffstore", &[], &[key(Index(1), ONE, OW | UPDATE), key(Index(2), REST, RO | ACCESS)]),
    row("set", &[], &[noted("RW and ACCESS due to the optional `GET` argument", Index(1), ONE, RW | ACCESS | UPDATE | VARIABLE)]),
    row("setbit", &[], &[key(Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("setex", &[], &[key(Index(1), ONE, OW | UPDATE)]),
    row("setnx", &[], &[key(Index(1), ONE, OW | INSERT)]),
    row("setrange", &[], &[key(Index(1), ONE, RW | UPDATE)]),
    row("sinter", &["nondeterministic_output_order"], &[key(Index(1), REST, RO | ACCESS)]),
    row("sintercard", &[], &[key(Index(1), Number(0, 1, 1), RO | ACCESS)]),
    row("sinterstore", &[], &[key(Index(1), ONE, RW | UPDATE), key(Index(2), REST, RO | ACCESS)]),
    row("sismember", &[], &[key(Index(1), ONE, RO)]),
    row("slowlog|get", &["request_policy:all_nodes", "nondeterministic_output"], &[]),
    row("slowlog|len", &["request_policy:all_nodes", "response_policy:agg_sum", "nondeterministic_output"], &[]),
    row("slowlog|reset", &["request_policy:all_nodes", "response_policy:all_succeeded"], &[]),
    row("smembers", &["nondeterministic_output_order"], &[key(Index(1), ONE, RO | ACCESS)]),
    row("smismember", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("smove", &[], &[key(Index(1), ONE, RW | ACCESS | DELETE), key(Index(2), ONE, RW | INSERT)]),
    row("sort", &[], &[key(Index(1), ONE, RO | ACCESS), noted("For the optional BY/GET keyword. It is marked 'unknown' because the key names derive from the content of the key we sort", Begin::Unknown, Find::Unknown, RO | ACCESS), noted("For the optional STORE keyword. It is marked 'unknown' because the keyword can appear anywhere in the argument array", Begin::Unknown, Find::Unknown, OW | UPDATE)]),
    row("sort_ro", &[], &[key(Index(1), ONE, RO | ACCESS), noted("For the optional BY/GET keyword. It is marked 'unknown' because the key names derive from the content of the key we sort", Begin::Unknown, Find::Unknown, RO | ACCESS)]),
    row("spop", &["nondeterministic_output"], &[key(Index(1), ONE, RW | ACCESS | DELETE)]),
    row("spublish", &[], &[key(Index(1), ONE, NOT_KEY)]),
    row("srandmember", &["nondeterministic_output"], &[key(Index(1), ONE, RO | ACCESS)]),
    row("srem", &[], &[key(Index(1), ONE, RW | DELETE)]),
    row("sscan", &["nondeterministic_output"], &[key(Index(1), ONE, RO | ACCESS)]),
    row("ssubscribe", &[], &[key(Index(1), REST, NOT_KEY)]),
    row("strlen", &[], &[key(Index(1), ONE, RO)]),
    row("substr", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("sunion", &["nondeterministic_output_order"], &[key(Index(1), REST, RO | ACCESS)]),
    row("sunionstore", &[], &[key(Index(1), ONE, OW | UPDATE), key(Index(2), REST, RO | ACCESS)]),
    row("sunsubscribe", &[], &[key(Index(1), REST, NOT_KEY)]),
    row("time", &["nondeterministic_output"], &[]),
    row("touch", &["request_policy:multi_shard", "response_policy:agg_sum"], &[key(Index(1), REST, RO)]),
    row("ttl", &["nondeterministic_output"], &[key(Index(1), ONE, RO | ACCESS)]),
    row("type", &[], &[key(Index(1), ONE, RO)]),
    row("unlink", &["request_policy:multi_shard", "response_policy:agg_sum"], &[key(Index(1), REST, RM | DELETE)]),
    row("vadd", &[], &[key(Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("vcard", &[], &[key(Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("vdim", &[], &[key(Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("vemb", &[], &[key(Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("vgetattr", &[], &[key(Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("vinfo", &[], &[key(Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("vismember", &[], &[key(Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("vlinks", &[], &[key(Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("vrandmember", &[], &[key(Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("vrem", &[], &[key(Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("vsetattr", &[], &[key(Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("vsim", &[], &[key(Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("wait", &["request_policy:all_shards", "response_policy:agg_min"], &[]),
    row("waitaof", &["request_policy:all_shards", "response_policy:agg_min"], &[]),
    row("watch", &[], &[key(Index(1), REST, RO)]),
    row("xack", &[], &[key(Index(1), ONE, RW | UPDATE)]),
    row("xackdel", &[], &[key(Index(1), ONE, RW | UPDATE | DELETE)]),
    row("xadd", &["nondeterministic_output"], &[noted("UPDATE instead of INSERT because of the optional trimming feature", Index(1), ONE, RW | UPDATE)]),
    row("xautoclaim", &["nondeterministic_output"], &[key(Index(1), ONE, RW | DELETE)]),
    row("xclaim", &["nondeterministic_output"], &[key(Index(1), ONE, RW | UPDATE)]),
    row("xdel", &[], &[key(Index(1), ONE, RW | DELETE)]),
    row("xdelex", &[], &[key(Index(1), ONE, RW | DELETE)]),
    row("xgroup|create", &[], &[key(Index(2), ONE, RW | INSERT)]),
    row("xgroup|createconsumer", &[], &[key(Index(2), ONE, RW | INSERT)]),
    row("xgroup|delconsumer", &[], &[key(Index(2), ONE, RW | DELETE)]),
    row("xgroup|destroy", &[], &[key(Index(2), ONE, RW | DELETE)]),
    row("xgroup|setid", &[], &[key(Index(2), ONE, RW | UPDATE)]),
    row("xinfo|consumers", &["nondeterministic_output"], &[key(Index(2), ONE, RO | ACCESS)]),
    row("xinfo|groups", &[], &[key(Index(2), ONE, RO | ACCESS)]),
    row("xinfo|stream", &[], &[key(Index(2), ONE, RO | ACCESS)]),
    row("xlen", &[], &[key(Index(1), ONE, RO)]),
    row("xpending", &["nondeterministic_output"], &[key(Index(1), ONE, RO | ACCESS)]),
    row("xrange", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("xread", &[], &[key(Keyword("STREAMS", 1), Range(-1, 1, 2), RO | ACCESS)]),
    row("xreadgroup", &[], &[key(Keyword("STREAMS", 4), Range(-1, 1, 2), RO | ACCESS)]),
    row("xrevrange", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("xsetid", &[], &[key(Index(1), ONE, RW | UPDATE)]),
    row("xtrim", &["nondeterministic_output"], &[key(Index(1), ONE, RW | DELETE)]),
    row("zadd", &[], &[key(Index(1), ONE, RW | UPDATE)]),
    row("zcard", &[], &[key(Index(1), ONE, RO)]),
    row("zcount", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("zdiff", &[], &[key(Index(1), Number(0, 1, 1), RO | ACCESS)]),
    row("zdiffstore", &[], &[key(Index(1), ONE, OW | UPDATE), key(Index(2), Number(0, 1, 1), RO | ACCESS)]),
    row("zincrby", &[], &[key(Index(1), ONE, RW | ACCESS | UPDATE)]),
    row("zinter", &[], &[key(Index(1), Number(0, 1, 1), RO | ACCESS)]),
    row("zintercard", &[], &[key(Index(1), Number(0, 1, 1), RO | ACCESS)]),
    row("zinterstore", &[], &[key(Index(1), ONE, OW | UPDATE), key(Index(2), Number(0, 1, 1), RO | ACCESS)]),
    row("zlexcount", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("zmpop", &[], &[key(Index(1), Number(0, 1, 1), RW | ACCESS | DELETE)]),
    row("zmscore", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("zpopmax", &[], &[key(Index(1), ONE, RW | ACCESS | DELETE)]),
    row("zpopmin", &[], &[key(Index(1), ONE, RW | ACCESS | DELETE)]),
    row("zrandmember", &["nondeterministic_output"], &[key(Index(1), ONE, RO | ACCESS)]),
    row("zrange", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("zrangebylex", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("zrangebyscore", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("zrangestore", &[], &[key(Index(1), ONE, OW | UPDATE), key(Index(2), ONE, RO | ACCESS)]),
    row("zrank", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("zrem", &[], &[key(Index(1), ONE, RW | DELETE)]),
    row("zremrangebylex", &[], &[key(Index(1), ONE, RW | DELETE)]),
    row("zremrangebyrank", &[], &[key(Index(1), ONE, RW | DELETE)]),
    row("zremrangebyscore", &[], &[key(Index(1), ONE, RW | DELETE)]),
    row("zrevrange", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("zrevrangebylex", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("zrevrangebyscore", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("zrevrank", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("zscan", &["nondeterministic_output"], &[key(Index(1), ONE, RO | ACCESS)]),
    row("zscore", &[], &[key(Index(1), ONE, RO | ACCESS)]),
    row("zunion", &[], &[key(Index(1), Number(0, 1, 1), RO | ACCESS)]),
    row("zunionstore", &[], &[key(Index(1), ONE, OW | UPDATE), key(Index(2), Number(0, 1, 1), RO | ACCESS)]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command;

    #[test]
    fn each_row_is_of_a_command_and_found() {
        assert!(DETAILS.is_sorted_by_key(|row| words(row.name)));
        for row in DETAILS {
            let command = command::all()
                .iter()
                .find(|command| command.name == row.name);
            let command = command.expect("the table has it");
            assert!(std::ptr::eq(of(command), row), "{}", row.name);
            assert!(
                !(row.tips.is_empty() && row.keys.is_empty()),
                "{}",
                row.name
            );
        }
    }
}
