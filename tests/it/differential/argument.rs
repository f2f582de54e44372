//! What may stand for an argument: mostly what fits, from pools so small that requests meet each other.
//!
//! Owns the pools. A value that would make the comparison depend on time (a key that expires soon) or a
//! server's memory (an element a billion times) is in none of them.

use fastrand::Rng;

use super::library;

/// What an argument is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// A key; mostly one that holds what its name says.
    Key(Holds),
    /// A key for SORT, which makes a skip list of a sorted set.
    Sortable,
    /// Anything at all.
    Value,
    /// Of a set, a list, a sorted set or a hash.
    Member,
    /// Two small ones and some at the ends of what fits into 64 bits.
    Int,
    /// Where something is or how many there are, mostly small.
    Index,
    Count,
    Positive,
    /// How many elements of a random choice: a large negative one would be that many.
    Choices,
    Float,
    Score,
    ScoreBound,
    LexBound,
    /// Of a new stream entry.
    NewId,
    /// Of one that may be there.
    Id,
    IdBound,
    IdAfter,
    GroupId,
    Group,
    Consumer,
    /// Relative times: far from now, gone already, or none at all.
    Seconds,
    Millis,
    /// Absolute times.
    Unix,
    UnixMillis,
    /// For how long a request waits: very short, and never for ever.
    Timeout,
    TimeoutMillis,
    /// Of a pending entry: any time, or never.
    Idle,
    BitOffset,
    Bit,
    Integer,
    Longitude,
    Latitude,
    Distance,
    Unit,
    Pattern,
    KeyPattern,
    Cursor,
    Database,
    Script,
    Sha,
    Function,
    Library,
    LibraryName,
    Payload,
    FunctionPayload,
    CommandName,
    Channel,
    /// A channel, or one of events.
    Heard,
    HeardPattern,
    Parameter,
    User,
}

/// What a key holds, by its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Holds {
    Text,
    Number,
    Bits,
    Log,
    List,
    Set,
    Sorted,
    Places,
    Hash,
    Stream,
    Vectors,
    Anything,
}

const HOLDS: [Holds; 11] = [
    Holds::Text,
    Holds::Number,
    Holds::Bits,
    Holds::Log,
    Holds::List,
    Holds::Set,
    Holds::Sorted,
    Holds::Places,
    Holds::Hash,
    Holds::Stream,
    Holds::Vectors,
];

impl Kind {
    /// As the forms name it.
    pub(super) fn by_name(name: &str) -> Self {
        match name {
            "text" => Self::Key(Holds::Text),
            "number" => Self::Key(Holds::Number),
            "bits" => Self::Key(Holds::Bits),
            "log" => Self::Key(Holds::Log),
            "list" => Self::Key(Holds::List),
            "set" => Self::Key(Holds::Set),
            "sorted" => Self::Key(Holds::Sorted),
            "places" => Self::Key(Holds::Places),
            "hash" => Self::Key(Holds::Hash),
            "stream" => Self::Key(Holds::Stream),
            "vectors" => Self::Key(Holds::Vectors),
            "key" => Self::Key(Holds::Anything),
            "sortable" => Self::Sortable,
            "value" => Self::Value,
            "member" => Self::Member,
            "int" => Self::Int,
            "index" => Self::Index,
            "count" => Self::Count,
            "positive" => Self::Positive,
            "choices" => Self::Choices,
            "float" => Self::Float,
            "score" => Self::Score,
            "scorebound" => Self::ScoreBound,
            "lexbound" => Self::LexBound,
            "newid" => Self::NewId,
            "id" => Self::Id,
            "idbound" => Self::IdBound,
            "idafter" => Self::IdAfter,
            "groupid" => Self::GroupId,
            "group" => Self::Group,
            "consumer" => Self::Consumer,
            "seconds" => Self::Seconds,
            "millis" => Self::Millis,
            "unix" => Self::Unix,
            "unixmillis" => Self::UnixMillis,
            "timeout" => Self::Timeout,
            "timeoutmillis" => Self::TimeoutMillis,
            "idle" => Self::Idle,
            "bitoffset" => Self::BitOffset,
            "bit" => Self::Bit,
            "integer" => Self::Integer,
            "longitude" => Self::Longitude,
            "latitude" => Self::Latitude,
            "distance" => Self::Distance,
            "unit" => Self::Unit,
            "pattern" => Self::Pattern,
            "keypattern" => Self::KeyPattern,
            "cursor" => Self::Cursor,
            "database" => Self::Database,
            "script" => Self::Script,
            "sha" => Self::Sha,
            "function" => Self::Function,
            "library" => Self::Library,
            "libraryname" => Self::LibraryName,
            "payload" => Self::Payload,
            "functionpayload" => Self::FunctionPayload,
            "command" => Self::CommandName,
            "channel" => Self::Channel,
            "heard" => Self::Heard,
            "heardpattern" => Self::HeardPattern,
            "parameter" => Self::Parameter,
            "user" => Self::User,
            other => panic!("no kind of argument is named {other}"),
        }
    }

    /// Whether not any other value may stand here: the request could wait, expire something soon or
    /// return without end.
    pub(super) fn is_delicate(self) -> bool {
        matches!(
            self,
            Self::Seconds
                | Self::Millis
                | Self::Unix
                | Self::UnixMillis
                | Self::Timeout
                | Self::TimeoutMillis
                | Self::Choices
                | Self::Idle
        )
    }
}

/// What fits nowhere, or hardly.
const WRONG: [&[u8]; 34] = [
    b"",
    b"-1",
    b"0",
    b"-0",
    b"+1",
    b" 1",
    b"1 ",
    b"01",
    b"1.0",
    b"1.5",
    b".5",
    b"5.",
    b"1e3",
    b"1e400",
    b"-1e400",
    b"0x10",
    b"nan",
    b"-nan",
    b"inf",
    b"-inf",
    b"+inf",
    b"Infinity",
    b"9223372036854775807",
    b"9223372036854775808",
    b"-9223372036854775808",
    b"-9223372036854775809",
    b"18446744073709551616",
    b"123456789012345678901234567890",
    b"abc",
    b"\0",
    b"a\r\nb",
    b"\xff\xfe",
    b"'\"\\",
    b"*",
];

/// The same for [`Kind::is_delicate`] ones. Nothing that is too much for a time but none for Redis 7.0, which
/// would wait for ever.
const WRONG_TIMES: [&[u8]; 8] = [
    b"",
    b"-1",
    b"abc",
    b"1.5x",
    b"nan",
    b"9223372036854775808",
    b"-9223372036854775809",
    b"\xff\xfe",
];

/// Something that does not belong where an argument of this kind stands.
pub(super) fn wrong(kind: Kind, rng: &mut Rng) -> Vec<u8> {
    let pool = if kind.is_delicate() {
        &WRONG_TIMES[..]
    } else {
        &WRONG[..]
    };
    one_of(rng, pool).to_vec()
}

/// What values are drawn from.
pub(super) struct Pools<'a> {
    pub(super) rng: &'a mut Rng,
    /// Of the keys; more than one where requests may lie in several slots.
    pub(super) tags: &'a [String],
    /// Of the stream entry that was added last.
    pub(super) entry: &'a mut u32,
    /// Of [`library::SCRIPTS`].
    pub(super) shas: &'a [String],
}

fn one_of<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())]
}

impl Pools<'_> {
    /// One of these, or, one time out of sixteen, of those.
    fn text(&mut self, usual: &[&str], rare: &[&str]) -> Vec<u8> {
        let pool = if !rare.is_empty() && self.rng.u8(..16) == 0 {
            rare
        } else {
            usual
        };
        one_of(self.rng, pool).as_bytes().to_vec()
    }

    fn number(&mut self, usual: std::ops::Range<i32>, rare: &[&str]) -> Vec<u8> {
        if self.rng.u8(..16) == 0 {
            return self.text(rare, &[]);
        }
        self.rng.i32(usual).to_string().into_bytes()
    }

    /// A value of this kind.
    pub(super) fn draw(&mut self, kind: Kind) -> Vec<u8> {
        const ENDS: &[&str] = &[
            "9223372036854775807",
            "-9223372036854775808",
            "9223372036854775806",
            "4294967296",
            "-2147483649",
        ];
        match kind {
            Kind::Key(holds) => self.key(holds),
            Kind::Sortable => {
                let holds = one_of(self.rng, &[Holds::List, Holds::Set, Holds::Text]);
                self.named(holds)
            }
            Kind::Value => self.value(),
            Kind::Member => self.member(),
            Kind::Int => self.number(-20..20, ENDS),
            Kind::Index => self.number(-6..8, ENDS),
            Kind::Count => self.number(0..8, &["-1", "-2", "1000", "9223372036854775807"]),
            Kind::Positive => self.number(1..8, &["0", "-1", "1000", "9223372036854775807"]),
            Kind::Choices => self.number(
                -8..8,
                &["1000", "9223372036854775807", "-9223372036854775808"],
            ),
            Kind::Float => self.text(
                &[
                    "0",
                    "1",
                    "-1",
                    "1.5",
                    "-2.25",
                    "10",
                    "3.14159265358979",
                    "1e3",
                    "1e-3",
                    "0.1",
                    "100000000",
                    "5.0e10",
                ],
                &[
                    "1e308",
                    "-1e308",
                    "1e-320",
                    "inf",
                    "-inf",
                    "nan",
                    "0x1p3",
                    "1e17",
                    "12345678901234567890",
                ],
            ),
            Kind::Score => self.text(
                &[
                    "0", "1", "2", "3", "-1", "1.5", "2.5", "10", "-3.75", "1e3", "0.1", "7",
                ],
                &[
                    "inf",
                    "-inf",
                    "+inf",
                    "1e308",
                    "-0",
                    "9007199254740993",
                    "1e-320",
                    "nan",
                ],
            ),
            Kind::ScoreBound => self.text(
                &[
                    "-inf", "+inf", "0", "1", "(1", "3", "(3", "10", "(-1", "1.5", "inf",
                ],
                &["(inf", "(", "((1", "nan", "[1", "1e400"],
            ),
            Kind::LexBound => self.text(
                &["-", "+", "[a", "(a", "[c", "(d", "[h", "[", "("],
                &["a", "", "[+", "[\u{ff}"],
            ),
            Kind::NewId => self.new_id(),
            Kind::Id => match self.rng.u8(..16) {
                0 => self.text(
                    &[
                        "0",
                        "0-0",
                        "x",
                        "1-x",
                        "-",
                        "18446744073709551615-18446744073709551615",
                    ],
                    &[],
                ),
                1 => self.rng.u32(1..20).to_string().into_bytes(),
                _ => format!("{}-1", self.rng.u32(1..20)).into_bytes(),
            },
            Kind::IdBound => match self.rng.u8(..8) {
                0 => self.draw(Kind::Id),
                1 => [b"(", &self.draw(Kind::Id)[..]].concat(),
                2 | 3 => self.rng.u32(1..20).to_string().into_bytes(),
                _ => self.text(&["-", "+"], &["(-", "$", ""]),
            },
            Kind::IdAfter => match self.rng.u8(..4) {
                0 => self.draw(Kind::Id),
                _ => self.text(&["0", "0-0", "$"], &[">", "+", "-", ""]),
            },
            Kind::GroupId => match self.rng.u8(..4) {
                0 => self.draw(Kind::Id),
                _ => self.text(&[">", ">", "0"], &["$", "-", ""]),
            },
            Kind::Group => self.text(&["g1", "g1", "g2"], &["none", ""]),
            Kind::Consumer => self.text(&["c1", "c2"], &["c3", ""]),
            // Hardly ever the same twice: which of two is later would then depend on when they came.
            Kind::Seconds => match self.rng.u8(..16) {
                0 => self.text(
                    &["0", "-1", "9223372036854775", "9223372036854775807", "x"],
                    &[],
                ),
                _ => format!("{}000", self.rng.u32(1..1_000_000)).into_bytes(),
            },
            Kind::Millis => match self.rng.u8(..16) {
                0 => self.text(&["0", "-1", "9223372036854775807", "x"], &[]),
                _ => format!("{}00000", self.rng.u32(1..1_000_000)).into_bytes(),
            },
            Kind::Unix => self.text(
                &["4000000000", "5000000000"],
                &["0", "-1", "9223372036854775807", "x"],
            ),
            Kind::UnixMillis => self.text(
                &["4000000000000", "5000000000000"],
                &["0", "-1", "9223372036854775807", "x"],
            ),
            Kind::Timeout => self.text(&["0.001", "0.002"], &["-1", "x", "1e400", "nan"]),
            Kind::TimeoutMillis => self.text(&["1", "2"], &["-1", "x", "1.5"]),
            Kind::Idle => self.text(&["0", "0", "1000000000"], &["-1", "x"]),
            Kind::BitOffset => match self.rng.u8(..16) {
                0 => self.text(
                    &["4294967296", "-1", "#0", "#2", "#-1", "9223372036854775807"],
                    &[],
                ),
                1 => self.text(&["#0", "#1", "#2", "1000"], &[]),
                _ => self.rng.u32(..80).to_string().into_bytes(),
            },
            Kind::Bit => self.text(&["0", "1"], &["2", "-1", "x"]),
            Kind::Integer => self.text(
                &["u8", "i8", "u4", "i5", "u16", "i64", "u63", "u1"],
                &["u64", "i65", "i0", "x8", "u", ""],
            ),
            Kind::Longitude => self.text(
                &["13.361389", "15.087269", "0", "-122.27652", "2.35", "179.9"],
                &["-180", "180.1", "200", "x"],
            ),
            Kind::Latitude => self.text(
                &["38.115556", "37.502669", "0", "37.80574", "48.85", "-45"],
                &["85.05112878", "86", "-90", "x"],
            ),
            Kind::Distance => self.text(
                &["1", "100", "200.5", "5000", "100000"],
                &["0", "-1", "x", "1e10"],
            ),
            Kind::Unit => self.text(&["m", "km", "mi", "ft", "KM"], &["x", ""]),
            Kind::Pattern => self.text(
                &["*", "a*", "?", "[a-c]", "[^a]*", "*1*"],
                &["", "\\*", "[", "[a", "a\\", "**"],
            ),
            Kind::KeyPattern => {
                // Without the tag a proxy refuses what keys are made of: they may lie elsewhere.
                if self.rng.u8(..8) == 0 {
                    return self.text(&["?0", "nosort"], &["", "\\", "["]);
                }
                let rest = self.text(&["*", "s*", "?0", "[a-m]*", "*1"], &["", "\\", "["]);
                self.tagged(&rest)
            }
            Kind::Cursor => self.text(&["0"], &["1", "-1", "x", "18446744073709551616", "999999"]),
            Kind::Database => self.text(
                &["0", "0", "1", "2", "15"],
                &["16", "-1", "x", "", "99999999999"],
            ),
            // Mostly of the first few, so that a script is called that was loaded.
            Kind::Script => {
                let most = if self.rng.bool() {
                    6
                } else {
                    library::SCRIPTS.len()
                };
                one_of(self.rng, &library::SCRIPTS[..most])
                    .as_bytes()
                    .to_vec()
            }
            Kind::Sha => match self.rng.u8(..16) {
                0 => self.text(
                    &["", "abc", "ffffffffffffffffffffffffffffffffffffffff"],
                    &[],
                ),
                n => {
                    let most = if n % 2 == 0 { 6 } else { self.shas.len() };
                    self.shas[self.rng.usize(..most)].clone().into_bytes()
                }
            },
            Kind::Function => self.text(&["put", "look", "both", "fail"], &["none", "", "PUT"]),
            // Mostly those that are right, so that there are functions to call.
            Kind::Library => {
                let most = if self.rng.bool() {
                    2
                } else {
                    library::LIBRARIES.len()
                };
                one_of(self.rng, &library::LIBRARIES[..most])
                    .as_bytes()
                    .to_vec()
            }
            Kind::LibraryName => self.text(&["one", "two"], &["none", "*", "o*", ""]),
            Kind::Payload => one_of(self.rng, library::PAYLOADS).to_vec(),
            Kind::FunctionPayload => one_of(self.rng, library::FUNCTION_PAYLOADS).to_vec(),
            Kind::CommandName => self.text(
                &[
                    "get",
                    "SET",
                    "mget",
                    "xadd",
                    "zunionstore",
                    "eval",
                    "config",
                    "xgroup",
                    "client|id",
                    "xgroup|create",
                    "sort",
                ],
                &["nope", "client|nope", "", "|"],
            ),
            Kind::Channel => {
                let rest = self.text(&["c0", "c1", "c2"], &["", "c*"]);
                self.tagged(&rest)
            }
            Kind::Heard => match self.rng.u8(..4) {
                0 => [b"__keyspace@0__:", &self.key(Holds::Anything)[..]].concat(),
                1 => self.text(
                    &[
                        "__keyevent@0__:set",
                        "__keyevent@0__:del",
                        "__keyevent@0__:zadd",
                    ],
                    &[],
                ),
                _ => self.draw(Kind::Channel),
            },
            Kind::HeardPattern => match self.rng.u8(..4) {
                0 => self.text(
                    &["__key*", "__keyspace@0__:*", "__keyevent@0__:*", "*"],
                    &["", "["],
                ),
                _ => {
                    let rest = self.text(&["*", "c?", "c[01]"], &[]);
                    self.tagged(&rest)
                }
            },
            Kind::User => self.text(&["default", "default", "other"], &["", "DEFAULT"]),
            Kind::Parameter => self.text(
                &["maxmemory", "appendonly", "list-max-*", "hz"],
                &["nope", "*policy", ""],
            ),
        }
    }

    /// Behind one of the hash tags.
    fn tagged(&mut self, rest: &[u8]) -> Vec<u8> {
        let tag = &self.tags[self.rng.usize(..self.tags.len())];
        [b"{", tag.as_bytes(), b"}", rest].concat()
    }

    fn key(&mut self, holds: Holds) -> Vec<u8> {
        let stray = self.rng.u8(..16) == 0;
        if holds == Holds::Anything || stray {
            let any = one_of(self.rng, &HOLDS);
            return self.named(any);
        }
        self.named(holds)
    }

    fn named(&mut self, holds: Holds) -> Vec<u8> {
        let name = match holds {
            Holds::Text | Holds::Anything => "s",
            Holds::Number => "n",
            Holds::Bits => "b",
            Holds::Log => "p",
            Holds::List => "l",
            Holds::Set => "m",
            Holds::Sorted => "z",
            Holds::Places => "g",
            Holds::Hash => "h",
            Holds::Stream => "x",
            Holds::Vectors => "v",
        };
        let rest: &[u8] = match self.rng.u8(..64) {
            0 => b"\0\xff\r\n",
            1 => b" with space",
            n => [&b"0"[..], b"1", b"2"][usize::from(n) % 3],
        };
        self.tagged(&[name.as_bytes(), rest].concat())
    }

    fn value(&mut self) -> Vec<u8> {
        match self.rng.u8(..16) {
            0 => wrong(Kind::Value, self.rng),
            1 => b"long ".repeat(self.rng.usize(1..60)),
            2..=5 => self.rng.i32(-100..100).to_string().into_bytes(),
            6 => self.draw(Kind::Float),
            _ => self.member(),
        }
    }

    fn member(&mut self) -> Vec<u8> {
        match self.rng.u8(..24) {
            0 => wrong(Kind::Member, self.rng),
            1 => b"x".repeat(self.rng.usize(60..70)),
            2..=6 => self.rng.i32(-3..6).to_string().into_bytes(),
            _ => vec![self.rng.u8(b'a'..=b'h')],
        }
    }

    /// Greater than all before it, so that it can be added; mostly.
    fn new_id(&mut self) -> Vec<u8> {
        *self.entry += 1;
        let next = *self.entry;
        match self.rng.u8(..32) {
            0 => b"*".to_vec(),
            1 => self.draw(Kind::Id),
            2 => b"0-0".to_vec(),
            3 | 4 => format!("{next}-*").into_bytes(),
            _ => format!("{next}-1").into_bytes(),
        }
    }
}
