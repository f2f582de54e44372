//! A value on its way: what the source says of it, and what the target is told.
//!
//! Pure: from replies to values, and from values to words of a command.

use super::reply::Reply;

/// When a key expires.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Expiry {
    /// Not by itself.
    Never,
    /// At this time, in milliseconds since 1970.
    At(u64),
}

/// How a source is asked when a key expires.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Clock {
    /// It tells the time itself (`PEXPIRETIME`, since 7.0).
    Absolute,
    /// It tells what is left, between two looks at its clock (`TIME`, `PTTL`, `TIME`).
    Relative,
}

/// How a source is asked how much a key is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Usage {
    /// How long nobody has used it (`OBJECT IDLETIME`).
    Idle,
    /// How often it is used (`OBJECT FREQ`): where that decides what is thrown out.
    Frequency,
}

/// What a source has of a key, as `DUMP` gives it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Value {
    pub(super) payload: Vec<u8>,
    pub(super) expiry: Expiry,
    pub(super) usage: Option<(Usage, u64)>,
}

/// What came of asking for a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Asked {
    /// It is there.
    There(Value),
    /// It is not.
    Gone,
    /// The clock moved on between the two looks: ask again.
    Again,
    /// The source says something else.
    Refused(String),
}

/// The commands that ask for a key, in the order in which [`read`] takes their replies. `DUMP` makes a
/// key look used: what it was used before comes first.
pub(super) fn questions(
    key: &[u8],
    clock: Clock,
    usage: Option<Usage>,
    mut push: impl FnMut(&[&[u8]]),
) {
    match usage {
        Some(Usage::Idle) => push(&[b"OBJECT", b"IDLETIME", key]),
        Some(Usage::Frequency) => push(&[b"OBJECT", b"FREQ", key]),
        None => {}
    }
    push(&[b"DUMP", key]);
    ask_expiry(key, clock, push);
}

/// The commands that ask when a key expires, in the order in which [`read_expiry`] takes their replies.
pub(super) fn ask_expiry(key: &[u8], clock: Clock, mut push: impl FnMut(&[&[u8]])) {
    match clock {
        Clock::Absolute => push(&[b"PEXPIRETIME", key]),
        Clock::Relative => {
            push(&[b"TIME"]);
            push(&[b"PTTL", key]);
            push(&[b"TIME"]);
        }
    }
}

/// Reads the replies to [`ask_expiry`] off the front.
pub(super) fn read_expiry(replies: &mut impl Iterator<Item = Reply>, clock: Clock) -> Lasting {
    let mut next = || replies.next().unwrap_or(Reply::Nil);
    match clock {
        Clock::Absolute => lasting(&next(), 0),
        Clock::Relative => {
            let (before, left, after) = (next(), next(), next());
            match (millis(&before), millis(&after)) {
                (Some(before), Some(after)) if before == after => lasting(&left, before),
                (Some(_), Some(_)) => Lasting::Unclear,
                _ => Lasting::Strange,
            }
        }
    }
}

/// Reads the replies to [`questions`] off the front.
pub(super) fn read(
    replies: &mut impl Iterator<Item = Reply>,
    clock: Clock,
    usage: Option<Usage>,
) -> Asked {
    let usage = usage.and_then(|kind| match replies.next() {
        Some(Reply::Integer(number)) => Some((kind, u64::try_from(number).ok()?)),
        // The key is gone, or the policy has just changed: then it is not known.
        _ => None,
    });
    let payload = replies.next().unwrap_or(Reply::Nil);
    let expiry = read_expiry(replies, clock);
    match (payload, expiry) {
        (Reply::Nil, _) | (_, Lasting::Gone) => Asked::Gone,
        (Reply::Error(error), _) => Asked::Refused(error),
        (Reply::Text(_), Lasting::Unclear) => Asked::Again,
        (Reply::Text(payload), Lasting::Known(expiry)) => Asked::There(Value {
            payload,
            expiry,
            usage,
        }),
        (Reply::Text(_), Lasting::Strange)
        | (Reply::Integer(_) | Reply::List(_) | Reply::Push(_), _) => {
            Asked::Refused("replies of an unknown kind".to_owned())
        }
    }
}

/// What a source says of when a key expires.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lasting {
    /// Then, or never.
    Known(Expiry),
    /// There is no such key.
    Gone,
    /// The clock moved on between the two looks.
    Unclear,
    /// It does not answer as it should.
    Strange,
}

/// When a key expires by a time of which `since` is the beginning.
fn lasting(reply: &Reply, since: u64) -> Lasting {
    match reply {
        Reply::Integer(-2) => Lasting::Gone,
        Reply::Integer(-1) => Lasting::Known(Expiry::Never),
        Reply::Integer(time) => match u64::try_from(*time) {
            Ok(time) => Lasting::Known(Expiry::At(since.saturating_add(time))),
            Err(_) => Lasting::Strange,
        },
        Reply::Nil | Reply::Text(_) | Reply::Error(_) | Reply::List(_) | Reply::Push(_) => {
            Lasting::Strange
        }
    }
}

/// The milliseconds of a reply to `TIME`.
pub(super) fn millis(reply: &Reply) -> Option<u64> {
    let Reply::List(parts) = reply else {
        return None;
    };
    let part = |at: usize| match parts.get(at) {
        Some(Reply::Text(text)) => std::str::from_utf8(text).ok()?.parse::<u64>().ok(),
        _ => None,
    };
    part(0)?.checked_mul(1000)?.checked_add(part(1)? / 1000)
}

/// The command that makes the value at the target. A time of expiry that has passed deletes the key
/// there.
pub(super) fn restore(key: &[u8], value: &Value, push: impl FnOnce(&[&[u8]])) {
    let expiry = match value.expiry {
        Expiry::Never => 0,
        // 0 would be for ever.
        Expiry::At(time) => time.max(1),
    };
    let expiry = expiry.to_string();
    let mut words: Vec<&[u8]> = vec![b"RESTORE", key, expiry.as_bytes(), &value.payload];
    words.push(b"REPLACE");
    words.push(b"ABSTTL");
    let number;
    if let Some((kind, amount)) = value.usage {
        let (word, most) = match kind {
            Usage::Idle => (&b"IDLETIME"[..], u64::MAX),
            Usage::Frequency => (&b"FREQ"[..], 255),
        };
        number = amount.min(most).to_string();
        words.extend([word, number.as_bytes()]);
    }
    push(&words);
}

/// What a target says to a write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// It is done.
    Done,
    /// It was not executed, and may be later: the target is full, busy or has too few replicas.
    Later(String),
    /// It does not understand the payload, nor any other of this source: it is of another version.
    OtherVersion,
    /// It does not understand the payload.
    Unknown,
    /// It was not executed, and will not be.
    Never(String),
}

/// Reads the reply to a write.
pub(super) fn verdict(reply: Reply) -> Verdict {
    let Reply::Error(error) = reply else {
        return Verdict::Done;
    };
    let code = error.split(' ').next().unwrap_or_default();
    match code {
        "OOM" | "BUSY" | "NOREPLICAS" | "MISCONF" | "TRYAGAIN" => Verdict::Later(error),
        _ if error.contains("payload version") => Verdict::OtherVersion,
        _ if error.contains("Bad data format") => Verdict::Unknown,
        _ => Verdict::Never(error),
    }
}

/// Whether a payload is a stream: its first byte says what type of an RDB file follows.
pub(super) fn is_stream(payload: &[u8]) -> bool {
    const STREAMS: [u8; 4] = [15, 19, 21, 26];
    payload.first().is_some_and(|kind| STREAMS.contains(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Reply {
        Reply::Text(text.into())
    }

    fn time(seconds: u64, micros: u64) -> Reply {
        Reply::List(vec![text(&seconds.to_string()), text(&micros.to_string())])
    }

    #[test]
    fn what_a_source_answers() {
        let there = |expiry, usage| {
            Asked::There(Value {
                payload: b"p".to_vec(),
                expiry,
                usage,
            })
        };
        let check = |clock, usage, replies: &[Reply], expected: Asked| {
            let mut replies = replies.iter().cloned();
            assert_eq!(read(&mut replies, clock, usage), expected);
            assert_eq!(replies.next(), None);
        };
        let (absolute, relative) = (Clock::Absolute, Clock::Relative);
        let int = Reply::Integer;
        check(
            absolute,
            None,
            &[text("p"), int(-1)],
            there(Expiry::Never, None),
        );
        check(
            absolute,
            None,
            &[text("p"), int(5)],
            there(Expiry::At(5), None),
        );
        check(absolute, None, &[Reply::Nil, int(-2)], Asked::Gone);
        check(absolute, None, &[text("p"), int(-2)], Asked::Gone);
        let idle = Some(Usage::Idle);
        let used = Some((Usage::Idle, 9));
        check(
            absolute,
            idle,
            &[int(9), text("p"), int(-1)],
            there(Expiry::Never, used),
        );
        check(
            absolute,
            idle,
            &[Reply::Error("ERR policy".to_owned()), text("p"), int(-1)],
            there(Expiry::Never, None),
        );
        let early = [text("p"), time(7, 123_999), int(50), time(7, 123_000)];
        check(relative, None, &early, there(Expiry::At(7173), None));
        let late = [text("p"), time(7, 123_999), int(50), time(7, 124_000)];
        check(relative, None, &late, Asked::Again);
        let never = [text("p"), time(7, 1), int(-1), time(7, 2)];
        check(relative, None, &never, there(Expiry::Never, None));
        let error = Reply::Error("NOPERM x".to_owned());
        let refused = Asked::Refused("NOPERM x".to_owned());
        check(absolute, None, &[error.clone(), error], refused);
    }

    #[test]
    fn what_a_target_is_told() {
        let check = |expiry, usage, expected: &[&str]| {
            let value = Value {
                payload: b"p".to_vec(),
                expiry,
                usage,
            };
            let mut got = Vec::new();
            restore(b"k", &value, |words| {
                got = words
                    .iter()
                    .map(|w| String::from_utf8(w.to_vec()).unwrap())
                    .collect();
            });
            assert_eq!(got, expected);
        };
        let plain = ["RESTORE", "k", "0", "p", "REPLACE", "ABSTTL"];
        check(Expiry::Never, None, &plain);
        let at = [
            "RESTORE", "k", "99", "p", "REPLACE", "ABSTTL", "FREQ", "255",
        ];
        check(Expiry::At(99), Some((Usage::Frequency, 300)), &at);
        check(
            Expiry::At(0),
            None,
            &["RESTORE", "k", "1", "p", "REPLACE", "ABSTTL"],
        );
    }

    #[test]
    fn what_a_target_says() {
        let error = |text: &str| verdict(Reply::Error(text.to_owned()));
        assert_eq!(verdict(text("OK")), Verdict::Done);
        let oom = "OOM command not allowed when used memory > 'maxmemory'.";
        assert_eq!(error(oom), Verdict::Later(oom.to_owned()));
        let version = "ERR DUMP payload version or checksum are wrong";
        assert_eq!(error(version), Verdict::OtherVersion);
        assert_eq!(error("ERR Bad data format"), Verdict::Unknown);
        let no = "NOPERM no";
        assert_eq!(error(no), Verdict::Never(no.to_owned()));
    }
}
