//! `reply`: what a server sends.

use dataplane::{
    framer::Framer,
    resp::{ReplyProgress, put_bulk, put_header},
};
use redis_protocol::resp3::decode::complete::decode_range;

use super::{Choices, cuts, request::is_modest};

/// Input: a byte with the number of pieces, their lengths less one, and what the server sends. If the
/// byte's first bit is set, that follows a large value, in one array with it.
///
/// The same replies are found however the bytes are cut, and whether what has come of one is kept or
/// passed on at once; what is handed over in pieces is their bytes. Where `redis-protocol` finds a
/// reply it has the same length.
pub fn reply(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let flags = choices.byte();
    let pieces = choices.take(usize::from(flags) % 16);
    let bytes = choices.0;
    if flags & 128 == 0 {
        check(bytes, &cuts(bytes.len(), pieces));
        if bytes.len() <= 256 {
            check(bytes, &cuts(bytes.len(), &[0]));
        }
    } else {
        let mut large = Vec::with_capacity(LARGE + 32 + bytes.len());
        put_header(&mut large, b'*', 2);
        put_bulk(&mut large, &[b'x'; LARGE]);
        let small = large.len();
        large.extend_from_slice(bytes);
        let mut ends = cuts(bytes.len(), pieces);
        ends.iter_mut().for_each(|end| *end += small);
        check(&large, &ends);
        ends.insert(0, LARGE);
        check(&large, &ends);
    }
}

/// A value of so many bytes is passed on before it is whole.
const LARGE: usize = 70_000;

fn check(bytes: &[u8], ends: &[usize]) {
    let whole = scan(bytes, &[bytes.len()]);
    assert_eq!(whole, scan(bytes, ends), "cut at {ends:?}");
    assert_eq!(whole, pass_on(bytes, ends), "passed on at {ends:?}");
    check_framer(bytes, ends, &whole);
    let mut start = 0;
    for end in whole.ends {
        check_against_other(&bytes[start..], Some(end - start));
        start = end;
    }
    check_against_other(&bytes[start..], None);
}

/// Where the replies in some bytes end, and whether something else follows them.
#[derive(Debug, PartialEq, Eq, Default)]
struct Replies {
    ends: Vec<usize>,
    is_bad: bool,
}

/// Scans as a pipe does that keeps what is not whole; its reads end at `ends`.
fn scan(bytes: &[u8], ends: &[usize]) -> Replies {
    let mut found = Replies::default();
    let (mut progress, mut start) = (ReplyProgress::default(), 0);
    for &end in ends {
        loop {
            match progress.scan(&bytes[start..end]) {
                Ok(Some(len)) => {
                    assert!(len > 0 && start + len <= end);
                    start += len;
                    found.ends.push(start);
                }
                Ok(None) => break,
                Err(_) => {
                    found.is_bad = true;
                    return found;
                }
            }
        }
    }
    found
}

/// Scans as a pipe does that passes on what has come of a reply.
fn pass_on(bytes: &[u8], ends: &[usize]) -> Replies {
    let mut found = Replies::default();
    let (mut progress, mut start) = (ReplyProgress::default(), 0);
    for &end in ends {
        loop {
            match progress.scan(&bytes[start..end]) {
                Ok(Some(len)) => {
                    start += len;
                    found.ends.push(start);
                }
                Ok(None) => {
                    start += progress.pass(end - start);
                    assert!(start <= end);
                    break;
                }
                Err(_) => {
                    found.is_bad = true;
                    return found;
                }
            }
        }
    }
    found
}

/// What comes out of a framer is, one behind the other, the replies: all but push messages.
fn check_framer(bytes: &[u8], ends: &[usize], whole: &Replies) {
    let mut expected = Vec::new();
    let mut start = 0;
    for &end in &whole.ends {
        if bytes[start] != b'>' {
            expected.extend_from_slice(&bytes[start..end]);
        }
        start = end;
    }
    let (mut framer, mut got, mut is_bad) = (Framer::default(), Vec::new(), false);
    let (mut firsts, mut lasts, mut complete) = (0, 0, 0);
    start = 0;
    for &end in ends {
        let received = framer.receive(&bytes[start..end], |piece| {
            assert!(!piece.bytes.is_empty());
            assert_eq!(
                piece.first,
                firsts == lasts,
                "replies begin behind each other"
            );
            firsts += usize::from(piece.first);
            lasts += usize::from(piece.last);
            got.extend_from_slice(piece.bytes);
            if piece.last {
                complete = got.len();
            }
            Ok(())
        });
        start = end;
        if received.is_err() {
            is_bad = true;
            break;
        }
        assert_eq!(framer.is_passing(), firsts > lasts);
    }
    assert_eq!(is_bad, whole.is_bad);
    assert!(got[..complete] == expected, "not the replies' bytes");
    let rest = &bytes[whole.ends.last().copied().unwrap_or(0)..];
    assert!(rest.starts_with(&got[complete..]), "not its first bytes");
}

/// The other parser looks into values, and refuses more; it takes numbers that no server writes (`+1`,
/// `01`), and forms that none has ever sent (streams). What both take has one length.
fn check_against_other(bytes: &[u8], len: Option<usize>) {
    if !is_modest(bytes) {
        return;
    }
    let Ok(Some((_, other))) = decode_range(bytes) else {
        return;
    };
    match len {
        Some(len) => assert_eq!(len, other),
        None => assert!(
            !is_plain(&bytes[..other]),
            "{:?}",
            String::from_utf8_lossy(&bytes[..other])
        ),
    }
}

/// Whether a reply is one that a server would send: with no number but plain ones, and no type but those
/// of replies. The other parser has counted its values.
fn is_plain(mut rest: &[u8]) -> bool {
    while let Some((kind, line)) = rest.split_first() {
        let Some(len) = line.windows(2).position(|two| two == b"\r\n") else {
            return false;
        };
        let (line, behind) = (&line[..len], &line[len + 2..]);
        let body = match kind {
            b'*' | b'%' | b'~' | b'>' | b'|' if number(line).is_some() => 0,
            b'$' | b'!' | b'=' => match number(line).and_then(|len| len.checked_add(2)) {
                Some(len) => len,
                None => return false,
            },
            b'+' | b'-' | b':' | b',' | b'#' | b'_' | b'(' if !line.contains(&b'\r') => 0,
            _ => return false,
        };
        let Some(next) = behind.get(body..) else {
            return false;
        };
        rest = next;
    }
    true
}

fn number(digits: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(digits).ok()?;
    let number: usize = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}
