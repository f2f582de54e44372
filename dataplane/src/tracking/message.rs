//! Invalidation messages: as servers send them, and as clients get them. Pure.

use proto::slot::RESERVED;

use crate::resp::{Protocol, ReplyProgress, parse_int, put_bulk, put_header, put_null};

/// Where clients that speak RESP2 get theirs.
const CHANNEL: &[u8] = b"__redis__:invalidate";

/// What is no longer true.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Stale<'a> {
    /// Whatever the client has read.
    All,
    Keys(Vec<&'a [u8]>),
}

/// Reads a push; `None`: it is about something else, or malformed. Keys that are Sluice's own are no
/// client's.
pub(crate) fn parse(push: &[u8]) -> Option<Stale<'_>> {
    let (kind, rest) = header(push, b'>')?;
    let (name, rest) = bulk(rest)?;
    if kind != 2 || name != b"invalidate" {
        return None;
    }
    if matches!(rest, b"_\r\n" | b"$-1\r\n" | b"*-1\r\n") {
        return Some(Stale::All);
    }
    let (count, mut rest) = header(rest, b'*')?;
    let mut keys = Vec::new();
    for _ in 0..count {
        let (key, behind) = bulk(rest)?;
        if !key.starts_with(RESERVED) {
            keys.push(key);
        }
        rest = behind;
    }
    let is_ours = count > 0 && keys.is_empty();
    (!is_ours).then_some(Stale::Keys(keys))
}

fn header(bytes: &[u8], kind: u8) -> Option<(usize, &[u8])> {
    let end = bytes.iter().position(|&b| b == b'\n')?;
    let count = bytes.get(..end)?.strip_prefix(&[kind])?;
    let count = parse_int(count.strip_suffix(b"\r")?)?;
    Some((usize::try_from(count).ok()?, &bytes[end + 1..]))
}

fn bulk(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let whole = ReplyProgress::default().scan(bytes).ok()??;
    let (len, body) = header(&bytes[..whole], b'$')?;
    Some((body.get(..len)?, &bytes[whole..]))
}

/// A message as the client itself gets it, or the one it redirects to, if that speaks RESP3.
pub(crate) fn put_push(stale: &Stale<'_>, out: &mut Vec<u8>) {
    put_header(out, b'>', 2);
    put_bulk(out, b"invalidate");
    put_stale(stale, Protocol::Resp3, out);
}

/// A message as one gets it that speaks RESP2 and has subscribed to something.
pub(crate) fn put_published(stale: &Stale<'_>, out: &mut Vec<u8>) {
    put_header(out, b'*', 3);
    put_bulk(out, b"message");
    put_bulk(out, CHANNEL);
    put_stale(stale, Protocol::Resp2, out);
}

fn put_stale(stale: &Stale<'_>, protocol: Protocol, out: &mut Vec<u8>) {
    match stale {
        Stale::All => put_null(out, protocol),
        Stale::Keys(keys) => {
            put_header(out, b'*', keys.len());
            keys.iter().for_each(|key| put_bulk(out, key));
        }
    }
}

/// Tells a client that the one it redirects to is gone.
pub(crate) fn put_broken(target: u64, out: &mut Vec<u8>) {
    put_header(out, b'>', 2);
    put_bulk(out, b"tracking-redir-broken");
    crate::resp::put_int(out, target as i64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_are_written() {
        let long = vec![b'\n'; 1000];
        for keys in [vec![], vec![&b"a"[..]], vec![b"", b"$1\r\n", &long]] {
            let (mut out, stale) = (Vec::new(), Stale::Keys(keys));
            put_push(&stale, &mut out);
            assert_eq!(parse(&out), Some(stale));
        }
        for null in ["_\r\n", "$-1\r\n", "*-1\r\n"] {
            let push = format!(">2\r\n$10\r\ninvalidate\r\n{null}");
            assert_eq!(parse(push.as_bytes()), Some(Stale::All));
        }
    }

    #[test]
    fn keys_of_sluice_are_left_out() {
        let push = |keys: &[&'static [u8]]| {
            let mut out = Vec::new();
            put_push(&Stale::Keys(keys.to_vec()), &mut out);
            out
        };
        let (fence, tag) = (b"{sluice}:fence", b"{sluice}");
        assert_eq!(parse(&push(&[fence])), None);
        let rest = Stale::Keys(vec![tag, b"a"]);
        assert_eq!(parse(&push(&[tag, fence, b"a"])), Some(rest));
    }

    #[test]
    fn what_is_something_else_says_nothing() {
        for push in [
            "",
            ">2\r\n",
            ">2\r\n$21\r\ntracking-redir-broken\r\n:5\r\n",
            ">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n",
            ">2\r\n$10\r\ninvalidate\r\n*1\r\n:5\r\n",
            ">2\r\n$10\r\ninvalidate\r\n*9999999999\r\n$1\r\na\r\n",
            ">2\r\n$10\r\ninvalidate\r\n+a\r\n",
        ] {
            assert_eq!(parse(push.as_bytes()), None, "{push:?}");
        }
    }

    #[test]
    fn texts_are_those_of_redis() {
        let check = |put: &dyn Fn(&mut Vec<u8>), expected: &str| {
            let mut out = Vec::new();
            put(&mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        };
        let key = Stale::Keys(vec![b"k"]);
        check(
            &|out| put_push(&Stale::All, out),
            ">2\r\n$10\r\ninvalidate\r\n_\r\n",
        );
        check(
            &|out| put_published(&key, out),
            "*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n*1\r\n$1\r\nk\r\n",
        );
        check(
            &|out| put_published(&Stale::All, out),
            "*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n$-1\r\n",
        );
        check(
            &|out| put_broken(12, out),
            ">2\r\n$21\r\ntracking-redir-broken\r\n:12\r\n",
        );
    }
}
