//! What a command is: its arity, where its keys are, whether it writes, and who answers it.
//!
//! The `table` is the single source, and has all commands that servers know; [`find`] finds those that
//! clients may call. Nothing here knows slots, groups or connections.

use std::time::Duration;

use crate::resp::{Request, parse_int};

pub mod details;
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

/// Where a command's keys are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keys {
    /// It has none.
    None,
    /// It has none, but shard channels, up to `last`, of which `COMMAND` tells as of keys.
    Channels { last: i8 },
    /// From `first` to `last`, every `step`-th argument; a negative `last` counts from the end.
    Range { first: i8, last: i8, step: u8 },
    /// As many as argument `at` says, behind it, every `step`-th.
    Counted { at: u8, step: u8 },
    /// The destination, a count, and as many sources (`ZUNIONSTORE`).
    StoredCounted,
    /// The first half of what stands behind `STREAMS`.
    Streams,
    /// The first argument, and the one behind the last `STORE`.
    Sort,
    /// The first argument, the one behind the last `STORE`, and the one behind the last `STOREDIST`: one of
    /// them is the destination, and Redis Cluster asks for both.
    GeoRadius,
}

/// Who answers a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// The group that owns the one slot of all its keys.
    Forward,
    /// As [`Class::Forward`], if the keys that it makes of patterns are certain to lie in that slot, too.
    Sort,
    /// Each group that owns some of its keys answers for these; the replies are merged.
    Split(Split),
    /// Each group that owns slots gets the whole of it; the replies are merged.
    Everywhere(Merge),
    /// As many groups as it takes, and the proxy: their replies alone are not all there is to know.
    Across(Across),
    /// The proxy.
    Local(Local),
    /// All workers of the proxy, each for its sessions.
    Crew(Asked),
    /// The proxy and the homes of channels, together.
    PubSub(PubSub),
    /// The proxy, which has the servers tell of changes.
    Tracking,
    /// The proxy, until all that stands between `MULTI` and `EXEC` goes to its group.
    Transaction(Bound),
    /// All groups that own slots, each on a connection of the session's own; the reply is the least.
    Replicas,
    /// Its subcommands have rows of their own, which decide. Alone it is answered by the proxy, if at
    /// all: the arity of all but `COMMAND` asks for a subcommand.
    Container(Option<Local>),
    /// Nobody, whatever the proxy learns: it is nothing to be passed on to servers that others use. Says
    /// why.
    Denied(&'static str),
}

/// What all workers of the proxy are asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    ClientKill,
    ClientList,
    ClientPause,
    ClientUnblock,
    ClientUnpause,
    Monitor,
}

/// Where a transaction begins or ends, or what it depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bound {
    Multi,
    Exec,
    Discard,
    Watch,
    Unwatch,
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

impl Split {
    /// How the parts' replies become one.
    pub fn merge(self) -> Merge {
        match self {
            Self::Mget => Merge::Values,
            Self::Mset => Merge::Same,
            Self::Sum => Merge::Sum,
        }
    }
}

/// How the replies of several groups become one. If a group fails, the whole does, with its error; but
/// for [`Merge::Any`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Merge {
    /// One value for each key, in their order.
    Values,
    /// They all say the same, so that one is enough.
    Same,
    /// Their numbers are added.
    Sum,
    /// Of each place in their arrays of numbers, the least: 1 only where all say so.
    Least,
    /// One success is enough: only one of them has what it is about.
    Any,
    /// All that their arrays have, each once.
    Union,
    /// The largest of their numbers.
    Most,
    /// Of each event the newest sample, and the highest.
    Events,
    /// Their samples, in the order of time.
    Samples,
    /// Calls by command and duration, added.
    Histograms,
    /// Bytes and counts, added; the highest of shares.
    Figures,
    /// What one of them is executing; else what they all say.
    Running,
}

/// What is asked of groups in a way of its own, and answered with the proxy's help.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Across {
    /// One group after another, page by page; of each, the keys it owns.
    Scan,
    /// All groups; of each, the keys it owns.
    AllKeys,
    /// All groups; a key of one that has some.
    RandomKey,
    /// All groups; their figures in one, and the proxy's. A group that fails is left out.
    Info,
    /// All groups; the newest entries of their logs.
    Newest,
    /// All groups; a text of each.
    Report,
    /// One group's settings, and the proxy's own.
    Settings,
    /// All groups, like [`Class::Everywhere`] with [`Merge::Same`], if the proxy was started with
    /// `--allow-config-set`.
    Configure,
}

/// What the proxy answers itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Local {
    AclCat,
    AclGenPass,
    AclHelp,
    AclWhoAmI,
    Auth,
    ClientCaching,
    ClientCapa,
    ClientGetName,
    ClientGetRedir,
    ClientHelp,
    ClientId,
    ClientInfo,
    ClientNoEvict,
    ClientNoTouch,
    ClientReply,
    ClientSetInfo,
    ClientSetName,
    ClientTrackingInfo,
    ClusterHelp,
    ClusterInfo,
    ClusterKeySlot,
    ClusterKeysInSlot,
    ClusterLinks,
    ClusterMode,
    ClusterMyId,
    ClusterNodes,
    ClusterReplicas,
    ClusterShards,
    ClusterSlots,
    CommandAll,
    CommandCount,
    CommandGetKeys,
    CommandGetKeysAndFlags,
    CommandHelp,
    CommandInfo,
    CommandList,
    Echo,
    Hello,
    Ping,
    Quit,
    Reset,
    Role,
    Select,
    Time,
}

impl Local {
    /// Whether requests behind it may need another connection to the servers than those before it, or
    /// are answered otherwise.
    pub fn changes_pipe(self) -> bool {
        match self {
            Self::ClientReply | Self::Hello | Self::Reset | Self::Select => true,
            Self::AclCat
            | Self::AclGenPass
            | Self::AclHelp
            | Self::AclWhoAmI
            | Self::Auth
            | Self::ClientCaching
            | Self::ClientCapa
            | Self::ClientGetName
            | Self::ClientGetRedir
            | Self::ClientHelp
            | Self::ClientId
            | Self::ClientInfo
            | Self::ClientNoEvict
            | Self::ClientNoTouch
            | Self::ClientSetInfo
            | Self::ClientSetName
            | Self::ClusterHelp
            | Self::ClusterInfo
            | Self::ClusterKeySlot
            | Self::ClusterKeysInSlot
            | Self::ClusterLinks
            | Self::ClusterMode
            | Self::ClusterMyId
            | Self::ClusterNodes
            | Self::ClusterReplicas
            | Self::ClusterShards
            | Self::ClientTrackingInfo
            | Self::ClusterSlots
            | Self::CommandAll
            | Self::CommandCount
            | Self::CommandGetKeys
            | Self::CommandGetKeysAndFlags
            | Self::CommandHelp
            | Self::CommandInfo
            | Self::CommandList
            | Self::Echo
            | Self::Ping
            | Self::Quit
            | Self::Role
            | Self::Time => false,
        }
    }
}

/// What one may subscribe to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Topic {
    /// A channel.
    Channel,
    /// All channels that match a pattern.
    Pattern,
    /// A channel of `SSUBSCRIBE`, which no pattern matches.
    Shard,
}

impl Topic {
    /// How many kinds there are.
    pub const COUNT: usize = 3;
}

/// A command of publish and subscribe that the proxy has a part in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PubSub {
    /// Begins subscriptions.
    Subscribe(Topic),
    /// Ends subscriptions.
    Unsubscribe(Topic),
    /// Publishes a message at the home of its channel.
    Publish(Topic),
    /// Asks how many are subscribed to channels.
    Count(Topic),
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
    pub fn visit_keys(&self, request: &Request<'_>, mut visit: impl FnMut(usize)) {
        let argc = request.argc();
        match self.keys {
            Keys::None | Keys::Channels { .. } => {}
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
            Keys::Counted { at, step } => {
                let keys = counted(request, at.into(), step.into());
                keys.step_by(step.into()).for_each(visit);
            }
            Keys::StoredCounted => {
                let sources = counted(request, 2, 1);
                if !sources.is_empty() {
                    visit(1);
                }
                sources.for_each(visit);
            }
            Keys::Streams => stream_read(request).keys.for_each(visit),
            Keys::Sort => {
                let options: &[(&[u8], usize)] = &[(b"LIMIT", 2), (b"BY", 1), (b"GET", 1)];
                visit(1);
                last_behind(request, 2, b"STORE", options).map(visit);
            }
            Keys::GeoRadius => {
                visit(1);
                let others: [(&[u8], &[u8]); 2] =
                    [(b"STORE", b"STOREDIST"), (b"STOREDIST", b"STORE")];
                for (name, other) in others {
                    let options = [(&b"COUNT"[..], 1), (other, 1)];
                    last_behind(request, 5, name, &options).map(&mut visit);
                }
            }
        }
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

/// What stands behind argument `at`, up to the last of as many keys as that says, a `step` apart.
fn counted(request: &Request<'_>, at: usize, step: usize) -> std::ops::Range<usize> {
    let count = (at < request.argc())
        .then(|| parse_int(request.arg(at)))
        .flatten()
        .and_then(|count| usize::try_from(count).ok())
        .filter(|&count| count <= (request.argc() - at - 1).div_ceil(step))
        .unwrap_or(0);
    let len = (count * step).saturating_sub(step - 1);
    at + 1..at + 1 + len
}

/// What XREAD and XREADGROUP ask for, read as Redis reads it: names given by the client (of a group, a
/// consumer, a stream) are no options, whatever they are.
struct StreamRead {
    /// The argument behind BLOCK.
    block: Option<usize>,
    /// Where the keys are; empty where the request is malformed.
    keys: std::ops::Range<usize>,
}

fn stream_read(request: &Request<'_>) -> StreamRead {
    let mut read = StreamRead {
        block: None,
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
        if option.eq_ignore_ascii_case(b"BLOCK") {
            read.block = Some((at + 1).min(request.argc() - 1)); // the last one counts, as in Redis
        }
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

/// What stands behind the last option of this name: Redis takes no account of those before it. Other
/// options that have arguments of their own are passed over with these.
fn last_behind(
    request: &Request<'_>,
    from: usize,
    name: &[u8],
    options: &[(&[u8], usize)],
) -> Option<usize> {
    let mut last = None;
    let mut at = from;
    while at < request.argc() {
        let arg = request.arg(at);
        let option = options
            .iter()
            .find(|(name, _)| arg.eq_ignore_ascii_case(name));
        if let Some((_, arguments)) = option {
            at += arguments;
        } else if arg.eq_ignore_ascii_case(name) {
            at += 1;
            last = Some(at);
        }
        at += 1;
    }
    last.filter(|&at| at < request.argc())
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
        let request = Request::new(&raw, &args);
        let mut keys = Vec::new();
        let command = find(&request).unwrap();
        command.visit_keys(&request, |index| keys.push(index));
        keys
    }

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
            ("memory usage k", &[2]),
            ("msetex 2 a 1 b 2 ex 9", &[2, 4]),
            ("msetex 2 a 1 b", &[2, 4]),
            ("msetex 3 a 1 b", &[]),
            ("sort k by x store d", &[1, 5]),
            ("sort k store a store b get store store c", &[1, 9]),
            ("sort k limit 0 store store d", &[1, 6]),
            ("sort k store", &[1]),
            ("georadius k 1 2 3 m store d storedist e", &[1, 7, 9]),
            (
                "georadius k 1 2 3 m storedist d store e store f",
                &[1, 11, 7],
            ),
            ("georadiusbymember k m 3 m store d", &[1, 6]),
            ("lcs a b len", &[1, 2]),
        ] {
            assert_eq!(keys(words), expected, "{words}");
        }
    }
}
