//! Replies, and when two of them count as the same.
//!
//! They do if their bytes are equal. [`EXCEPTIONS`] lists the commands whose replies may differ, how far,
//! and why; errors never may.

use super::sequence::Request;

/// A reply, read.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Reply {
    /// All but strings with a length and arrays: the first byte, and the line behind it.
    Line(u8, Vec<u8>),
    Text(u8, Vec<u8>),
    Many(u8, Vec<Self>),
}

impl Reply {
    /// Reads the first of some bytes, and how many it takes; `None` where it is not whole yet. What is no
    /// reply is the error.
    pub(super) fn read(bytes: &[u8]) -> Result<Option<(Self, usize)>, String> {
        let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") else {
            return Ok(None);
        };
        let (kind, line) = (bytes[0], &bytes[1..end.max(1)]);
        let mut len = end + 2;
        let count = || {
            let text = str::from_utf8(line).map_err(|e| e.to_string())?;
            text.parse::<i64>().map_err(|e| format!("{text:?}: {e}"))
        };
        let reply = match kind {
            b'$' | b'=' | b'!' if line != b"-1" => {
                let text = usize::try_from(count()?).map_err(|e| e.to_string())?;
                if bytes.len() < len + text + 2 {
                    return Ok(None);
                }
                let body = &bytes[len..len + text];
                len += text + 2;
                Self::Text(kind, body.to_vec())
            }
            b'*' | b'~' | b'>' | b'%' | b'|' if line != b"-1" => {
                let each = if matches!(kind, b'%' | b'|') { 2 } else { 1 };
                let mut many = Vec::new();
                for _ in 0..each * count()? {
                    let Some((reply, of_it)) = Self::read(&bytes[len..])? else {
                        return Ok(None);
                    };
                    many.push(reply);
                    len += of_it;
                }
                Self::Many(kind, many)
            }
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' | b'$' | b'*' => {
                Self::Line(kind, line.to_vec())
            }
            _ => {
                return Err(format!(
                    "not a reply: {:?}",
                    bytes[..len].escape_ascii().to_string()
                ));
            }
        };
        Ok(Some((reply, len)))
    }

    pub(super) fn is_error(&self) -> bool {
        matches!(self, Self::Line(b'-', _) | Self::Text(b'!', _))
    }

    pub(super) fn is(&self, line: &str) -> bool {
        matches!(self, Self::Line(kind, text) if line.as_bytes() == [&[*kind], &text[..]].concat())
    }

    pub(super) fn number(&self) -> Option<i64> {
        match self {
            Self::Line(b':', line) => str::from_utf8(line).ok()?.parse().ok(),
            Self::Line(..) | Self::Text(..) | Self::Many(..) => None,
        }
    }
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Line(kind, line) => write!(f, "{}{}", char::from(*kind), line.escape_ascii()),
            Self::Text(kind, text) => write!(f, "{}\"{}\"", char::from(*kind), text.escape_ascii()),
            Self::Many(kind, many) => {
                write!(f, "{}[", char::from(*kind))?;
                for (at, reply) in many.iter().enumerate() {
                    let comma = if at == 0 { "" } else { ", " };
                    write!(f, "{comma}{reply}")?;
                }
                write!(f, "]")
            }
        }
    }
}

/// How far two replies may differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum May {
    /// The same elements in any order.
    Order,
    /// The same pairs in any order.
    PairOrder,
    /// Numbers a minute apart.
    Clock,
    /// The same types, and as many elements; not what is in them.
    Content,
    /// The same type.
    All,
    /// A string of the same length.
    Bytes,
}

/// See the module.
const EXCEPTIONS: &[(&[&str], May, &str)] = &[
    (
        &[
            "smembers",
            "sinter",
            "sunion",
            "sdiff",
            "keys",
            "hkeys",
            "hvals",
            "function|list",
            "command|info",
            "command|docs",
            "pubsub|channels",
            "pubsub|shardchannels",
        ],
        May::Order,
        "a server's hash tables have another order each time it starts; a proxy asks several servers",
    ),
    (&["hgetall"], May::PairOrder, "the same"),
    (
        &["sort BY", "sort_ro BY"],
        May::All,
        "of equal elements those come first that the hash table has first",
    ),
    (
        &["sort", "sort_ro"],
        May::Order,
        "a set's elements come in the order of its hash table",
    ),
    (
        &[
            "hscan",
            "sscan",
            "zscan",
            "scan",
            "srandmember",
            "hrandfield",
            "zrandmember",
            "spop",
            "randomkey",
            "vrandmember",
            "vlinks",
            "vsim",
            "vinfo",
            "lolwut",
            "acl|genpass",
        ],
        May::All,
        "by chance, or by the order of a hash table",
    ),
    (
        &[
            "ttl",
            "pttl",
            "expiretime",
            "pexpiretime",
            "httl",
            "hpttl",
            "hexpiretime",
            "hpexpiretime",
            "object|idletime",
            "xpending",
            "xinfo|consumers",
            "xinfo|stream",
        ],
        May::Clock,
        "the two are not asked at the same time",
    ),
    (
        &["xadd *"],
        May::Content,
        "an id of the server's is its time",
    ),
    (
        &["xautoclaim", "xclaim", "xread", "xreadgroup"],
        May::Clock,
        "the two are not asked at the same time",
    ),
    (
        &["dump", "function|dump"],
        May::Bytes,
        "elements are written in the order of a hash table",
    ),
    (
        &["memory|usage"],
        May::All,
        "a server's memory depends on what it did before",
    ),
    (
        &["time"],
        May::Content,
        "the two are not asked at the same time",
    ),
    (
        &["client|id", "client|info", "client|list"],
        May::All,
        "of the proxy's own clients",
    ),
    (
        &[
            "acl|cat",
            "acl|help",
            "info",
            "role",
            "command",
            "command|count",
            "command|list",
            "slowlog|get",
            "slowlog|len",
            "latency|doctor",
            "latency|histogram",
            "memory|stats",
            "memory|doctor",
            "memory|malloc-stats",
            "config|get",
            "commandlog|get",
            "commandlog|len",
        ],
        May::All,
        "the proxy tells of itself",
    ),
    (
        &["script|exists"],
        May::Content,
        "a script that was called is where it was called, and only there",
    ),
    (
        &["hello"],
        May::All,
        "the id is the proxy's own, and the version the one it speaks as",
    ),
];

/// Whether a proxy's reply to a request is as good as a plain server's.
pub(super) fn same(request: &Request, plain: &Reply, proxied: &Reply) -> bool {
    if plain == proxied {
        return true;
    }
    if plain.is_error() || proxied.is_error() {
        return false;
    }
    // Of a name in two words, the second is an argument that makes it an exception.
    let is = |name: &&str| match name.split_once(' ') {
        None => request.name == *name,
        Some((name, with)) => {
            let mut args = request.args.iter();
            request.name == name && args.any(|arg| arg.eq_ignore_ascii_case(with.as_bytes()))
        }
    };
    let mut exceptions = EXCEPTIONS.iter();
    let exception = exceptions.find(|(names, ..)| names.iter().any(is));
    exception.is_some_and(|(_, may, _)| differ(*may, plain, proxied))
}

fn differ(may: May, plain: &Reply, proxied: &Reply) -> bool {
    use Reply::{Line, Many, Text};
    match (may, plain, proxied) {
        (May::All, Line(a, _) | Text(a, _) | Many(a, _), Line(b, _) | Text(b, _) | Many(b, _)) => {
            a == b
        }
        (May::Order, one, other) => sorted(one, 1) == sorted(other, 1),
        (May::PairOrder, one, other) => sorted(one, 2) == sorted(other, 2),
        (May::Clock | May::Content, Many(a, one), Many(b, other)) => {
            let mut pairs = one.iter().zip(other);
            a == b && one.len() == other.len() && pairs.all(|(a, b)| a == b || differ(may, a, b))
        }
        (May::Clock, _, _) => match (plain.number(), proxied.number()) {
            (Some(a), Some(b)) => a >= 0 && b >= 0 && a.abs_diff(b) <= 60_000,
            _ => false,
        },
        (May::Content, Line(a, _), Line(b, _)) | (May::Content, Text(a, _), Text(b, _)) => a == b,
        (May::Bytes, Text(_, one), Text(_, other)) => one.len() == other.len(),
        _ => false,
    }
}

/// With the elements of each array in one order, so many at a time.
fn sorted(reply: &Reply, each: usize) -> Reply {
    let Reply::Many(kind, many) = reply else {
        return reply.clone();
    };
    let many: Vec<Reply> = many.iter().map(|reply| sorted(reply, each)).collect();
    let mut chunks: Vec<&[Reply]> = many.chunks(each).collect();
    chunks.sort();
    Reply::Many(*kind, chunks.concat())
}
