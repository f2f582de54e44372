//! `reply`: what a server sends.

use dataplane::resp::ReplyProgress;
use redis_protocol::resp3::decode::complete::decode_range;

use super::{Choices, cuts, request::is_modest};

/// Input: a byte with the number of pieces, their lengths less one, and what the server sends.
///
/// The same replies are found however the bytes are cut, and whether what has come of one is kept or
/// passed on at once. Where `redis-protocol` finds a reply it has the same length.
pub fn reply(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let pieces = choices.byte() % 16;
    let pieces = choices.take(pieces.into());
    let bytes = choices.0;

    let whole = scan(bytes, &[bytes.len()]);
    let ends = cuts(bytes.len(), pieces);
    assert_eq!(whole, scan(bytes, &ends), "cut in {pieces:?}");
    assert_eq!(whole, pass_on(bytes, &ends), "passed on in {pieces:?}");
    if bytes.len() <= 256 {
        let ends = cuts(bytes.len(), &[0]);
        assert_eq!(whole, scan(bytes, &ends), "byte by byte");
        assert_eq!(whole, pass_on(bytes, &ends), "passed on byte by byte");
    }
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

/// Whether a reply, by its lines, is one that a server would send: with no number but plain ones, and
/// no type but those of replies. Bodies count as lines too, which only makes fewer replies plain.
fn is_plain(reply: &[u8]) -> bool {
    let mut lines = reply.split(|&b| b == b'\n');
    lines.all(|line| match line {
        [
            b'$' | b'*' | b'%' | b'~' | b'>' | b'|' | b'!' | b'=',
            digits @ ..,
            b'\r',
        ] => {
            digits == b"0"
                || matches!(digits, [b'1'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit))
        }
        [
            b'+' | b'-' | b':' | b',' | b'#' | b'_' | b'(',
            text @ ..,
            b'\r',
        ] => !text.contains(&b'\r'),
        [] => true,
        _ => false,
    })
}
