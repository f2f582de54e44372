//! `request`: what a client sends.

use dataplane::resp::{
    Arg, Limits, Progress, ProtocolError, Request, Scanned, Tail, put_bulk, put_header,
};
use redis_protocol::resp2::{decode, types::OwnedFrame};

use super::{Choices, cuts};

/// Input: a byte that chooses limits, a byte with the number of pieces, their lengths less one, and
/// what the client sends.
///
/// The same is found however the bytes are cut. A request is what `redis-protocol` finds there, if
/// its bytes are those that any client would have sent; no byte of it is kept that has not come. Its
/// end is the same if most of it is walked over and not kept.
pub fn request(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let flags = choices.byte();
    let authenticated = flags & 1 == 0;
    let limits = match (authenticated, flags & 2) {
        (false, _) => Limits::UNAUTHENTICATED,
        (true, 0) => LARGE,
        (true, _) => SMALL,
    };
    let pieces = choices.byte() % 16;
    let pieces = choices.take(pieces.into());
    let bytes = choices.0;

    let whole = scan(bytes, &[bytes.len()], &limits, authenticated);
    let cut = scan(bytes, &cuts(bytes.len(), pieces), &limits, authenticated);
    assert_eq!(whole, cut, "cut in {pieces:?}");
    if bytes.len() <= 256 {
        let every_byte = scan(bytes, &cuts(bytes.len(), &[0]), &limits, authenticated);
        assert_eq!(whole, every_byte, "byte by byte");
    }
    check_against_other(bytes, &whole);
    if authenticated {
        check_tail(bytes, &cuts(bytes.len(), pieces), &limits);
        if bytes.len() <= 64 {
            check_tail(bytes, &cuts(bytes.len(), &[0]), &limits);
        }
    }
}

/// As a proxy has them unless told otherwise.
const LARGE: Limits = Limits {
    args: 1024 * 1024,
    arg_bytes: 512 << 20,
    request_bytes: 1 << 30,
};
/// So small that a short input can go beyond them.
const SMALL: Limits = Limits {
    args: 5,
    arg_bytes: 20,
    request_bytes: 60,
};

/// What is found in bytes.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    requests: Vec<Piece>,
    /// Where the first thing starts that is not whole, or wrong.
    end: usize,
    error: Option<ProtocolError>,
}

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    /// Its length and its arguments.
    Request(usize, Vec<Vec<u8>>),
    Inline(usize),
    Nothing(usize),
}

/// Scans as a session does, whose reads end at `ends`.
fn scan(bytes: &[u8], ends: &[usize], limits: &Limits, authenticated: bool) -> Found {
    let mut found = Found {
        requests: Vec::new(),
        end: 0,
        error: None,
    };
    let (mut progress, mut args) = (Progress::default(), Vec::new());
    for &end in ends {
        loop {
            let rest = &bytes[found.end..end];
            let scanned = progress.scan(rest, &mut args, limits, authenticated);
            // Each argument takes four bytes at least (`$0` and a line end): nothing is kept for
            // more arguments than have come, but for what a vector takes at first.
            assert!(args.capacity() <= rest.len().max(4));
            let (len, piece) = match scanned {
                Ok(Scanned::Incomplete) => break,
                Ok(Scanned::Nothing(len)) => (len, Piece::Nothing(len)),
                Ok(Scanned::Inline(len)) => (len, Piece::Inline(len)),
                Ok(Scanned::Request(len)) => (len, Piece::Request(len, texts(&rest[..len], &args))),
                Err(error) => {
                    found.error = Some(error);
                    return found;
                }
            };
            assert!(len > 0 && len <= rest.len());
            found.end += len;
            found.requests.push(piece);
            (progress, args) = (Progress::default(), Vec::new());
        }
    }
    found
}

fn texts(raw: &[u8], args: &[Arg]) -> Vec<Vec<u8>> {
    let request = Request::new(raw, args);
    assert!(request.argc() > 0, "nobody's name");
    if let argc @ 2.. = request.argc() {
        let each = (1..argc).map(|arg| request.frames(arg, arg + 1));
        let frames = request.frames(1, argc);
        assert!(each.collect::<Vec<_>>().concat() == frames && raw.ends_with(frames));
        assert!(frames.len() >= argc - 1 && frames[0] == b'$');
    }
    request.args_from(0).map(<[u8]>::to_vec).collect()
}

/// The other parser asks for line ends where Redis only counts two bytes, and takes numbers that
/// Redis does not. Where a request is as any client writes it both must find the same.
fn check_against_other(bytes: &[u8], found: &Found) {
    let mut start = 0;
    for piece in &found.requests {
        let rest = &bytes[start..];
        match piece {
            Piece::Request(len, args) => {
                if encoded(args) == rest[..*len] {
                    assert_eq!(other(rest), Some((args.clone(), *len)));
                }
                start += len;
            }
            Piece::Inline(len) | Piece::Nothing(len) => start += len,
        }
    }
    // What is wrong, or not whole, is so for the other too.
    let rest = &bytes[found.end..];
    if is_modest(rest)
        && let Some((args, len)) = other(rest)
        && encoded(&args) == rest[..len]
    {
        let too_much = matches!(
            found.error,
            Some(
                ProtocolError::BulkLength
                    | ProtocolError::MultibulkLength
                    | ProtocolError::RequestTooLarge
                    | ProtocolError::UnauthenticatedBulkLength
                    | ProtocolError::UnauthenticatedMultibulkLength
            )
        );
        assert!(too_much, "{:?}: {args:?}", found.error);
    }
}

fn encoded(args: &[Vec<u8>]) -> Vec<u8> {
    let mut raw = Vec::new();
    put_header(&mut raw, b'*', args.len());
    args.iter().for_each(|arg| put_bulk(&mut raw, arg));
    raw
}

/// The first request as `redis-protocol` reads it.
fn other(bytes: &[u8]) -> Option<(Vec<Vec<u8>>, usize)> {
    let Ok(Some((OwnedFrame::Array(values), len))) = decode::decode(bytes) else {
        return None;
    };
    let args: Option<Vec<_>> = values
        .into_iter()
        .map(|value| match value {
            OwnedFrame::BulkString(arg) => Some(arg),
            _ => None,
        })
        .collect();
    args.filter(|args| !args.is_empty()).zip(Some(len))
}

/// The other parser makes room for what is declared, and a stack frame for each level.
pub(super) fn is_modest(bytes: &[u8]) -> bool {
    let levels = bytes.iter().filter(|b| b"*~%|>".contains(b)).count();
    let digits = bytes.split(|b| !b.is_ascii_digit());
    levels <= 64 && digits.map(<[u8]>::len).max() < Some(6)
}

/// A request that is not whole once its first header is there can be passed on, and the rest be walked over as
/// it comes: in whatever pieces, with the same end or the same error.
fn check_tail(bytes: &[u8], ends: &[usize], limits: &Limits) {
    let mut found = Vec::new();
    let whole = match Progress::default().scan(bytes, &mut found, limits, true) {
        Ok(Scanned::Request(len)) => Ok(Some(len)),
        Ok(Scanned::Incomplete) => Ok(None),
        Ok(Scanned::Inline(_) | Scanned::Nothing(_)) => return,
        Err(error) => Err(error),
    };
    let (mut progress, mut args) = (Progress::default(), Vec::new());
    for (index, &received) in ends.iter().enumerate() {
        let scanned = progress.scan(&bytes[..received], &mut args, limits, true);
        if scanned != Ok(Scanned::Incomplete) {
            return;
        }
        if progress.declared() == 0 {
            continue; // it has no header yet
        }
        let (passed, tail) = progress.tail(received, limits);
        assert!(passed <= received);
        if let Ok(Some(_)) = whole {
            assert_eq!(progress.argc(args.len()), found.len());
        }
        let walked = walk(bytes, passed, &ends[index + 1..], tail, limits);
        assert_eq!(walked, whole, "{passed} of {received} bytes were passed on");
    }
}

/// Where the request ends. `None`: not within the bytes.
fn walk(
    bytes: &[u8],
    mut at: usize,
    ends: &[usize],
    mut tail: Tail,
    limits: &Limits,
) -> Result<Option<usize>, ProtocolError> {
    for &end in ends.iter().chain([&bytes.len()]) {
        at += tail.walk(&bytes[at..end], limits)?;
        assert!(at <= end);
        if tail.is_done() {
            return Ok(Some(at));
        }
    }
    Ok(None)
}
