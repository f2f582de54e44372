//! Where the keys of a request are, read as Redis reads it. Pure.
//!
//! What clients name themselves (a group, a consumer, a stream) is no option, whatever it is called; where
//! Redis takes the last of several, so does this. A malformed request has no keys: its server says what is
//! wrong with it.

use std::ops::Range;

use crate::resp::{Request, parse_int};

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

impl Keys {
    /// Calls `visit` with the index of each key of a request.
    #[inline]
    pub(super) fn visit(self, request: &Request<'_>, mut visit: impl FnMut(usize)) {
        let argc = request.argc();
        match self {
            Self::None | Self::Channels { .. } => {}
            Self::Range { first, last, step } => {
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
            Self::Counted { at, step } => {
                let keys = counted(request, at.into(), step.into());
                keys.step_by(step.into()).for_each(visit);
            }
            Self::StoredCounted => {
                let sources = counted(request, 2, 1);
                if !sources.is_empty() {
                    visit(1);
                }
                sources.for_each(visit);
            }
            Self::Streams => stream_read(request).keys.for_each(visit),
            Self::Sort => {
                let options: &[(&[u8], usize)] = &[(b"LIMIT", 2), (b"BY", 1), (b"GET", 1)];
                visit(1);
                last_behind(request, 2, b"STORE", options).map(visit);
            }
            Self::GeoRadius => {
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
}

/// What stands behind argument `at`, up to the last of as many keys as that says, a `step` apart.
fn counted(request: &Request<'_>, at: usize, step: usize) -> Range<usize> {
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
pub(super) struct StreamRead {
    /// The argument behind BLOCK.
    pub(super) block: Option<usize>,
    /// Where the keys are; empty where the request is malformed.
    keys: Range<usize>,
}

pub(super) fn stream_read(request: &Request<'_>) -> StreamRead {
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

#[cfg(test)]
mod tests {
    use crate::{
        command::find,
        resp::{Limits, Progress, Request, put_bulk, put_header},
    };

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
