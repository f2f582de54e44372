//! `inline`: requests as a person types them.

use dataplane::resp::{Limits, Progress, Request, Scanned, split_inline};

/// Input: a line, its end included or not.
///
/// Its arguments are those that Redis finds, and the request made of it has the same. A line that
/// the scanner calls an inline request has at least one argument.
pub fn inline(line: &[u8]) {
    let split = split_inline(line).ok();
    let args = split.as_deref().map(args);
    // Redis looks for the line's end as C does: it waits for ever for that of a line with a NUL.
    if !line.contains(&0) {
        assert_eq!(
            args,
            redis_args(line),
            "{:?}",
            String::from_utf8_lossy(line)
        );
    }
    let scanned = Progress::default().scan(line, &mut Vec::new(), &LIMITS, true);
    if let (Ok(Scanned::Inline(len)), false) = (scanned, line.starts_with(b"*")) {
        assert_eq!(line[..len].iter().position(|&b| b == b'\n'), Some(len - 1));
        if let Ok(raw) = split_inline(&line[..len]) {
            assert!(!self::args(&raw).is_empty(), "nobody's name");
        }
    }
}

const LIMITS: Limits = Limits {
    args: u32::MAX,
    arg_bytes: usize::MAX >> 1,
    request_bytes: usize::MAX >> 1,
};

/// The arguments of a whole request, which nothing may follow.
fn args(raw: &[u8]) -> Vec<Vec<u8>> {
    let mut args = Vec::new();
    match Progress::default().scan(raw, &mut args, &LIMITS, true) {
        Ok(Scanned::Request(len) | Scanned::Nothing(len)) => assert_eq!(len, raw.len()),
        other => panic!("{other:?}: {:?}", String::from_utf8_lossy(raw)),
    }
    let request = Request::new(raw, &args);
    request.args_from(0).map(<[u8]>::to_vec).collect()
}

/// `sdssplitargs` of Redis 7.0, written down once more: a byte at a time, as there. `None`: the quotes
/// do not balance.
fn redis_args(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let at = |i: usize| line.get(i).copied().unwrap_or(0);
    let is_space = |b: u8| matches!(b, b' ' | 9..=13);
    let hex = |b: u8| char::from(b).to_digit(16);
    let mut args = Vec::new();
    let mut i = 0;
    loop {
        while is_space(at(i)) {
            i += 1;
        }
        if at(i) == 0 {
            return Some(args);
        }
        let mut arg = Vec::new();
        let mut quote = 0;
        loop {
            let (b, next) = (at(i), at(i + 1));
            if quote == 0 {
                match b {
                    b' ' | b'\n' | b'\r' | b'\t' | 0 => break,
                    b'"' | b'\'' => quote = b,
                    _ => arg.push(b),
                }
            } else if b == 0 {
                return None;
            } else if b == quote {
                if next != 0 && !is_space(next) {
                    return None;
                }
                i += 1;
                break;
            } else if quote == b'\'' && b == b'\\' && next == b'\'' {
                arg.push(b'\'');
                i += 1;
            } else if quote == b'"' && b == b'\\' && next != 0 {
                match (next, hex(at(i + 2)), hex(at(i + 3))) {
                    (b'x', Some(high), Some(low)) => {
                        arg.push((high * 16 + low) as u8);
                        i += 2;
                    }
                    (b'n', ..) => arg.push(b'\n'),
                    (b'r', ..) => arg.push(b'\r'),
                    (b't', ..) => arg.push(b'\t'),
                    (b'b', ..) => arg.push(8),
                    (b'a', ..) => arg.push(7),
                    _ => arg.push(next),
                }
                i += 1;
            } else {
                arg.push(b);
            }
            i += 1;
        }
        args.push(arg);
    }
}
