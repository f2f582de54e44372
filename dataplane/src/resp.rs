//! RESP on the wire: finding where requests and replies end, and writing small replies.
//!
//! Owns the grammar and nothing else: no socket, no clock, no meaning of a command. Bytes are looked
//! at in place and never copied; what is found are offsets. Both scanners can stop at any byte and go
//! on later from there, so a request that arrives in a thousand reads is scanned once.
//!
//! Invariant: nothing is allocated for what is only declared. A length in a header makes a scanner
//! wait for bytes; it never makes room for them.

use std::ops::Range;

/// Which RESP a connection speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Protocol {
    /// RESP2, as every connection starts.
    #[default]
    Resp2,
    /// RESP3, after `HELLO 3`.
    Resp3,
}

impl Protocol {
    /// As `HELLO` names it.
    pub fn number(self) -> i64 {
        match self {
            Self::Resp2 => 2,
            Self::Resp3 => 3,
        }
    }
}

/// Bounds on one request; beyond them it is a protocol error, as in Redis.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Arguments of one request, the command's name among them.
    pub args: u32,
    /// Bytes of one argument.
    pub arg_bytes: usize,
    /// Bytes of one request.
    pub request_bytes: usize,
}

impl Limits {
    /// What a client may send before it has authenticated; Redis's own figures.
    pub const UNAUTHENTICATED: Self = Self {
        args: 10,
        arg_bytes: 16 * 1024,
        request_bytes: 10 * (16 * 1024 + 64),
    };
}

/// An inline request or a header longer than this is an error, as in Redis.
const LINE_MAX: usize = 64 * 1024;

/// What makes a client's bytes not RESP. `Display` is what Redis says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The count behind `*`.
    #[error("Protocol error: invalid multibulk length")]
    MultibulkLength,
    /// The length behind `$`.
    #[error("Protocol error: invalid bulk length")]
    BulkLength,
    /// As the first, before authentication.
    #[error("Protocol error: unauthenticated multibulk length")]
    UnauthenticatedMultibulkLength,
    /// As the second, before authentication.
    #[error("Protocol error: unauthenticated bulk length")]
    UnauthenticatedBulkLength,
    /// An argument that is no bulk string; nested requests are among these.
    #[error("Protocol error: expected '$', got '{}'", char::from(*.0))]
    ExpectedBulk(u8),
    /// No end of line within reach.
    #[error("Protocol error: too big mbulk count string")]
    LongMultibulkHeader,
    /// No end of line within reach.
    #[error("Protocol error: too big bulk count string")]
    LongBulkHeader,
    /// No end of line within reach.
    #[error("Protocol error: too big inline request")]
    LongInline,
    /// Quotes of an inline request.
    #[error("Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
    /// All arguments together.
    #[error("Protocol error: request is larger than the proxy accepts")]
    RequestTooLarge,
}

/// Where one argument lies within its request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Arg {
    start: u32,
    len: u32,
}

impl Arg {
    fn range(self) -> Range<usize> {
        self.start as usize..self.start as usize + self.len as usize
    }
}

/// One whole request, in place. Has at least one argument: the command's name.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    raw: &'a [u8],
    args: &'a [Arg],
}

impl<'a> Request<'a> {
    /// `args` must have been found in `raw`.
    pub fn new(raw: &'a [u8], args: &'a [Arg]) -> Self {
        Self { raw, args }
    }

    /// All its bytes, to be sent on as they are.
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// How many arguments it has, the command's name among them.
    pub fn argc(&self) -> usize {
        self.args.len()
    }

    /// An argument; 0 is the command's name. Panics beyond [`Request::argc`].
    #[inline]
    pub fn arg(&self, index: usize) -> &'a [u8] {
        &self.raw[self.args[index].range()]
    }

    /// The arguments from `first` (not the command's name) to the one before `end`, as they came, with
    /// their headers and line ends.
    #[inline]
    pub fn frames(&self, first: usize, end: usize) -> &'a [u8] {
        let line_end = |arg: Arg| arg.range().end + 2;
        &self.raw[line_end(self.args[first - 1])..line_end(self.args[end - 1])]
    }

    /// The request that starts at argument `first`, as in `COMMAND GETKEYS GET k`; its raw bytes are
    /// still those of the whole.
    pub fn behind(&self, first: usize) -> Self {
        Self {
            raw: self.raw,
            args: &self.args[first..],
        }
    }

    /// The arguments from `first` on.
    pub fn args_from(&self, first: usize) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a> {
        let raw = self.raw;
        self.args[first.min(self.args.len())..]
            .iter()
            .map(move |arg| &raw[arg.range()])
    }
}

/// What a scan of a client's bytes found.
#[derive(Debug, PartialEq, Eq)]
pub enum Scanned {
    /// A request of so many bytes; its arguments are in the vector given.
    Request(usize),
    /// An inline request of so many bytes, to be read by [`split_inline`].
    Inline(usize),
    /// So many bytes that ask for nothing (`*0`, an empty line).
    Nothing(usize),
    /// More bytes are needed.
    Incomplete,
}

/// How far the scan of a request that is not whole yet has come.
#[derive(Debug, Default, Clone, Copy)]
pub struct Progress {
    /// Where to go on, from the start of the request.
    at: usize,
    /// Arguments still to come. `None`: the first header has not been read.
    missing: Option<u32>,
    /// No need to look again before there are so many bytes.
    need: usize,
    /// Of a line that is not whole: its end is not among so many bytes. 0: it was not looked for.
    looked: usize,
}

impl Progress {
    /// Scans on from where it stood. `bytes` starts with the request's first byte; `args` holds what
    /// earlier scans of the same request found, and is empty at its start.
    pub fn scan(
        &mut self,
        bytes: &[u8],
        args: &mut Vec<Arg>,
        limits: &Limits,
        authenticated: bool,
    ) -> Result<Scanned, ProtocolError> {
        if bytes.len() < self.need.max(1) {
            return Ok(Scanned::Incomplete);
        }
        if self.looked > 0 {
            let (start, end) = match self.missing {
                Some(_) => (self.at + 1, b'\r'),
                None if bytes[0] == b'*' => (1, b'\r'),
                None => (0, b'\n'),
            };
            if !line_may_be_whole(bytes, start, self.looked, end) {
                self.looked = looked(bytes);
                return Ok(Scanned::Incomplete);
            }
            self.looked = 0;
        }
        let mut missing = match self.missing {
            Some(missing) => missing,
            None if bytes[0] != b'*' => {
                let scanned = inline_end(bytes)?;
                if scanned == Scanned::Incomplete {
                    self.looked = looked(bytes);
                }
                return Ok(scanned);
            }
            None => {
                let Some((count, end)) = header(bytes, 1, ProtocolError::LongMultibulkHeader)?
                else {
                    self.looked = looked(bytes);
                    return Ok(Scanned::Incomplete);
                };
                match count {
                    None => return Err(ProtocolError::MultibulkLength),
                    Some(count) if count <= 0 => return Ok(Scanned::Nothing(end)),
                    Some(count) if count > i64::from(limits.args) => {
                        return Err(if authenticated {
                            ProtocolError::MultibulkLength
                        } else {
                            ProtocolError::UnauthenticatedMultibulkLength
                        });
                    }
                    Some(count) => {
                        self.at = end;
                        count as u32
                    }
                }
            }
        };
        while missing > 0 {
            self.missing = Some(missing);
            let Some(&kind) = bytes.get(self.at) else {
                return Ok(Scanned::Incomplete);
            };
            if kind != b'$' {
                return Err(ProtocolError::ExpectedBulk(kind));
            }
            let Some((len, start)) = header(bytes, self.at + 1, ProtocolError::LongBulkHeader)?
            else {
                self.looked = looked(bytes);
                return Ok(Scanned::Incomplete);
            };
            let len = match len {
                Some(len) if len >= 0 && len as u64 <= limits.arg_bytes as u64 => len as usize,
                Some(len) if len >= 0 && !authenticated => {
                    return Err(ProtocolError::UnauthenticatedBulkLength);
                }
                _ => return Err(ProtocolError::BulkLength),
            };
            let end = start + len + 2;
            if end > limits.request_bytes.min(u32::MAX as usize) {
                return Err(ProtocolError::RequestTooLarge);
            }
            if bytes.len() < end {
                self.need = end;
                return Ok(Scanned::Incomplete);
            }
            args.push(Arg {
                start: start as u32,
                len: len as u32,
            });
            self.at = end;
            missing -= 1;
        }
        self.missing = Some(0); // asked again, it says the same again
        Ok(Scanned::Request(self.at))
    }

    /// How long the request is at least, as far as it has declared itself.
    pub fn declared(&self) -> usize {
        self.need.max(self.at)
    }

    /// Of a request that is not whole after `received` bytes: how many of these can be passed on, and
    /// what comes behind them.
    pub fn tail(&self, received: usize, limits: &Limits) -> (usize, Tail) {
        let missing = self.missing.unwrap_or(0);
        let (passed, body, missing) = match self.need.checked_sub(received) {
            Some(body) if body > 0 => (received, body, missing.saturating_sub(1)),
            _ => (self.at, 0, missing), // it waits for the next argument's header
        };
        let tail = Tail {
            body: body as u64,
            missing,
            budget: (limits.request_bytes - passed - body) as u64,
            looked: 0,
        };
        (passed, tail)
    }

    /// How many arguments the request has, `found` of them seen already.
    pub fn argc(&self, found: usize) -> usize {
        found + self.missing.unwrap_or(0) as usize
    }
}

/// The rest of a request that is too large to be kept: walked over as it comes, and passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// Bytes still to come of the argument that has begun, its line end included.
    body: u64,
    /// Arguments that have not begun.
    missing: u32,
    /// What the request may still grow by.
    budget: u64,
    /// As in [`Progress`], of the header that is not whole.
    looked: usize,
}

impl Tail {
    /// Walks on: how many of `bytes` belong to the request. What stands behind them is the start of
    /// a header that is not whole yet, to be given again with more, or the next request
    /// ([`Tail::is_done`]).
    pub fn walk(&mut self, bytes: &[u8], limits: &Limits) -> Result<usize, ProtocolError> {
        let mut at = 0;
        if self.looked > 0 {
            if !line_may_be_whole(bytes, 1, self.looked, b'\r') {
                self.looked = looked(bytes);
                return Ok(0);
            }
            self.looked = 0;
        }
        loop {
            let body = usize::try_from(self.body)
                .unwrap_or(usize::MAX)
                .min(bytes.len() - at);
            self.body -= body as u64;
            at += body;
            if self.body > 0 || self.missing == 0 {
                return Ok(at);
            }
            let Some(&kind) = bytes.get(at) else {
                return Ok(at);
            };
            if kind != b'$' {
                return Err(ProtocolError::ExpectedBulk(kind));
            }
            let Some((len, end)) = header(bytes, at + 1, ProtocolError::LongBulkHeader)? else {
                self.looked = looked(&bytes[at..]);
                return Ok(at);
            };
            let len = match len {
                Some(len) if len >= 0 && len as u64 <= limits.arg_bytes as u64 => len as u64,
                _ => return Err(ProtocolError::BulkLength),
            };
            self.body = len + 2;
            self.missing -= 1;
            self.budget = self
                .budget
                .checked_sub((end - at) as u64 + self.body)
                .ok_or(ProtocolError::RequestTooLarge)?;
            at = end;
        }
    }

    /// Whether the request is whole.
    pub fn is_done(&self) -> bool {
        self.body == 0 && self.missing == 0
    }
}

/// Whether the line that starts at `start` may have ended, or grown too long, since its end was not
/// among the first `looked` bytes. A line that comes byte by byte is then not searched through for each.
#[cold]
fn line_may_be_whole(bytes: &[u8], start: usize, looked: usize, end: u8) -> bool {
    bytes.len() >= start + LINE_MAX || bytes.get(looked..).is_none_or(|new| new.contains(&end))
}

/// Up to where a line was looked through that is not whole. Its last byte may be half of its end.
#[cold]
fn looked(bytes: &[u8]) -> usize {
    bytes.len().saturating_sub(1)
}

/// Reads the number that starts at `at` up to its end of line: (the number, where the line ends).
/// The number is `None` where there is none; the whole is `None` where the line is not whole yet.
#[inline(always)] // three in a plain GET: what a call hands back by memory would cost more than it does
fn header(
    bytes: &[u8],
    at: usize,
    too_long: ProtocolError,
) -> Result<Option<(Option<i64>, usize)>, ProtocolError> {
    let rest = bytes.get(at..).unwrap_or_default();
    match short_line(rest) {
        Some((number, len)) => Ok(Some((Some(number), at + len))),
        None => long_header(rest, at, too_long),
    }
}

/// The same, of a line of any length.
#[cold]
fn long_header(
    rest: &[u8],
    at: usize,
    too_long: ProtocolError,
) -> Result<Option<(Option<i64>, usize)>, ProtocolError> {
    match rest.iter().take(LINE_MAX).position(|&b| b == b'\r') {
        Some(cr) if rest.len() > cr + 1 => Ok(Some((parse_int(&rest[..cr]), at + cr + 2))),
        Some(_) => Ok(None),
        None if rest.len() >= LINE_MAX => Err(too_long),
        None => Ok(None),
    }
}

/// A line that is a number of up to four digits, as by far most are: (the number, bytes of the line).
#[inline(always)] // as above
fn short_line(rest: &[u8]) -> Option<(i64, usize)> {
    let digit = |b: u8| i64::from(b - b'0');
    match *rest {
        [a @ b'0'..=b'9', b'\r', b'\n', ..] => Some((digit(a), 3)),
        [a @ b'1'..=b'9', b @ b'0'..=b'9', b'\r', b'\n', ..] => Some((digit(a) * 10 + digit(b), 4)),
        [
            a @ b'1'..=b'9',
            b @ b'0'..=b'9',
            c @ b'0'..=b'9',
            b'\r',
            b'\n',
            ..,
        ] => Some((digit(a) * 100 + digit(b) * 10 + digit(c), 5)),
        [
            a @ b'1'..=b'9',
            b @ b'0'..=b'9',
            c @ b'0'..=b'9',
            d @ b'0'..=b'9',
            b'\r',
            b'\n',
            ..,
        ] => Some((
            digit(a) * 1000 + digit(b) * 100 + digit(c) * 10 + digit(d),
            6,
        )),
        _ => None,
    }
}

/// A decimal number as Redis's `string2ll` takes it: no plus sign, no leading zero, no space.
pub fn parse_int(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    match digits {
        [] => return None,
        [b'0'] => return (!negative).then_some(0),
        [b'0', ..] => return None,
        _ => {}
    }
    digits.iter().try_fold(0i64, |n, &d| {
        if !d.is_ascii_digit() {
            return None;
        }
        let d = i64::from(d - b'0');
        n.checked_mul(10).and_then(|n| {
            if negative {
                n.checked_sub(d)
            } else {
                n.checked_add(d)
            }
        })
    })
}

fn inline_end(bytes: &[u8]) -> Result<Scanned, ProtocolError> {
    match bytes.iter().take(LINE_MAX).position(|&b| b == b'\n') {
        Some(newline) if bytes[..newline].iter().copied().all(is_space) => {
            Ok(Scanned::Nothing(newline + 1))
        }
        Some(newline) => Ok(Scanned::Inline(newline + 1)),
        None if bytes.len() >= LINE_MAX => Err(ProtocolError::LongInline),
        None => Ok(Scanned::Incomplete),
    }
}

/// A blank as C's `isspace` has it, by which Redis splits.
fn is_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t'..=b'\r')
}

/// Turns an inline request into the same request in RESP, by Redis's quoting rules.
pub fn split_inline(line: &[u8]) -> Result<Vec<u8>, ProtocolError> {
    let mut args: Vec<Vec<u8>> = Vec::new();
    let mut rest = line;
    while let Some(start) = rest.iter().position(|&b| !is_space(b)) {
        let (arg, tail) = inline_arg(&rest[start..]).ok_or(ProtocolError::UnbalancedQuotes)?;
        args.push(arg);
        rest = tail;
    }
    let mut request = Vec::with_capacity(line.len() + 16 * args.len());
    put_header(&mut request, b'*', args.len());
    for arg in &args {
        put_bulk(&mut request, arg);
    }
    Ok(request)
}

/// The first argument of a line and what follows it. `None`: its quotes do not balance.
fn inline_arg(line: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    enum Quote {
        Outside,
        Double,
        Single,
    }
    let mut arg = Vec::new();
    let mut quote = Quote::Outside;
    let mut i = 0;
    loop {
        let rest = &line[i..];
        match (&quote, rest) {
            (Quote::Outside, []) => return Some((arg, rest)),
            // A vertical tab or a form feed is a blank before an argument, and a part of one within.
            (Quote::Outside, [b' ' | b'\t' | b'\r' | b'\n' | 0, ..]) => {
                return Some((arg, &rest[1..]));
            }
            (Quote::Outside, [b'"', ..]) => quote = Quote::Double,
            (Quote::Outside, [b'\'', ..]) => quote = Quote::Single,
            (Quote::Double | Quote::Single, []) => return None,
            (Quote::Double, [b'\\', b'x', high, low, ..])
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                let digit = |b: u8| char::from(b).to_digit(16).unwrap_or(0) as u8;
                arg.push(digit(*high) << 4 | digit(*low));
                i += 3;
            }
            (Quote::Double, [b'\\', b, ..]) => {
                arg.push(match b {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                i += 1;
            }
            (Quote::Single, [b'\\', b'\'', ..]) => {
                arg.push(b'\'');
                i += 1;
            }
            (Quote::Double, [b'"', tail @ ..]) | (Quote::Single, [b'\'', tail @ ..]) => {
                // A closing quote ends the argument: only a space may follow.
                return match tail {
                    [] => Some((arg, tail)),
                    [b, after @ ..] if is_space(*b) || *b == 0 => Some((arg, after)),
                    _ => None,
                };
            }
            (_, [b, ..]) => arg.push(*b),
        }
        i += 1;
    }
}

/// More than the line of any length has: its kind, a sign and 19 digits.
const NUMBER_MAX: usize = 32;

/// What makes a server's bytes not RESP. The connection cannot be used any further.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server's reply is not RESP")]
pub struct BadReply;

/// How far the scan of a reply that is not whole yet has come.
///
/// It keeps no stack: only how many values are still to come, so that nesting costs nothing.
#[derive(Debug, Clone, Copy)]
pub struct ReplyProgress {
    at: usize,
    missing: u64,
    need: usize,
    /// `at` is within a line of text.
    in_text: bool,
}

impl Default for ReplyProgress {
    fn default() -> Self {
        Self {
            at: 0,
            missing: 1,
            need: 1,
            in_text: false,
        }
    }
}

impl ReplyProgress {
    /// Scans on. `bytes` starts with the reply's first byte. The reply's length, once it is whole;
    /// the state is then ready for the next one.
    #[inline]
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Option<usize>, BadReply> {
        if bytes.len() < self.need {
            return Ok(None);
        }
        if self.in_text {
            *self = self.through_text(bytes)?;
            if self.in_text {
                return Ok(None);
            }
        }
        while self.missing > 0 {
            let Some(&kind) = bytes.get(self.at) else {
                return Ok(None);
            };
            let Some((number, end)) = reply_line(bytes, self.at + 1)? else {
                *self = self.cut_line(kind, bytes)?;
                return Ok(None);
            };
            let count = |number: Option<i64>| match number {
                Some(-1) => Ok(0),
                Some(n) if n >= 0 => Ok(n as u64),
                _ => Err(BadReply),
            };
            match kind {
                b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => self.missing -= 1,
                b'$' | b'=' | b'!' => {
                    let body = match number {
                        Some(-1) => 0,
                        other => usize::try_from(count(other)?).map_err(|_| BadReply)? + 2,
                    };
                    self.missing -= 1;
                    self.at = end.checked_add(body).ok_or(BadReply)?;
                    if bytes.len() < self.at {
                        self.need = self.at;
                        return Ok(None);
                    }
                    continue;
                }
                b'*' | b'~' | b'>' => self.missing = self.add(count(number)?)? - 1,
                b'%' => {
                    let values = count(number)?.checked_mul(2).ok_or(BadReply)?;
                    self.missing = self.add(values)? - 1;
                }
                // Attributes stand before the value they belong to; it is still to come.
                b'|' => {
                    let values = count(number)?.checked_mul(2).ok_or(BadReply)?;
                    self.missing = self.add(values)?;
                }
                _ => return Err(BadReply),
            }
            self.at = end;
        }
        let len = self.at;
        *self = Self::default();
        Ok(Some(len))
    }

    /// Of a reply that is not whole yet, and of which `available` bytes were scanned: how many of them
    /// can be passed on and forgotten. The scan then goes on with what stands behind them.
    pub fn pass(&mut self, available: usize) -> usize {
        let passed = self.at.min(available);
        self.at -= passed;
        self.need = self.need.saturating_sub(passed);
        passed
    }

    /// Within a line of text that began before: looks through what is new.
    #[cold]
    fn through_text(mut self, bytes: &[u8]) -> Result<Self, BadReply> {
        let rest = bytes.get(self.at..).unwrap_or_default();
        match reply_line(rest, 0)? {
            Some((_, len)) => {
                self.at += len;
                self.missing -= 1;
                self.in_text = false;
            }
            None => self.at += seen(rest),
        }
        Ok(self)
    }

    /// `bytes` end within the line at `at`. A text can be as long as a client's script makes it: what
    /// was looked through is not looked at again, and may be passed on. A number cannot.
    #[cold]
    fn cut_line(mut self, kind: u8, bytes: &[u8]) -> Result<Self, BadReply> {
        let line = &bytes[self.at..];
        match kind {
            b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => {
                self.at += seen(line);
                self.in_text = true;
            }
            _ if line.len() > NUMBER_MAX => return Err(BadReply),
            _ => {}
        }
        Ok(self)
    }

    fn add(&self, values: u64) -> Result<u64, BadReply> {
        self.missing.checked_add(values).ok_or(BadReply)
    }
}

/// Of a line that has no end yet, the bytes that need not be looked at again: all but its `\r`.
fn seen(line: &[u8]) -> usize {
    line.len() - usize::from(line.ends_with(b"\r"))
}

/// The rest of a reply's line as a number (`None` where it is none), and where the line ends.
#[inline(always)] // as for a request's
fn reply_line(bytes: &[u8], at: usize) -> Result<Option<(Option<i64>, usize)>, BadReply> {
    let rest = bytes.get(at..).unwrap_or_default();
    match short_line(rest) {
        Some((number, len)) => Ok(Some((Some(number), at + len))),
        None => long_reply_line(rest, at),
    }
}

/// The same, of a line of any length, and of one that is a text.
#[inline(never)]
fn long_reply_line(rest: &[u8], at: usize) -> Result<Option<(Option<i64>, usize)>, BadReply> {
    let Some(cr) = rest.iter().position(|&b| b == b'\r') else {
        return Ok(None);
    };
    match rest.get(cr + 1) {
        None => Ok(None),
        Some(b'\n') => Ok(Some((parse_int(&rest[..cr]), at + cr + 2))),
        Some(_) => Err(BadReply),
    }
}

/// Writes `*3\r\n` and the like.
#[inline]
pub fn put_header(out: &mut Vec<u8>, kind: u8, number: usize) {
    out.push(kind);
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Writes a bulk string.
#[inline]
pub fn put_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    put_header(out, b'$', bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Writes an integer.
pub fn put_int(out: &mut Vec<u8>, number: i64) {
    out.push(b':');
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Writes a simple string; `text` has no line break.
pub fn put_simple(out: &mut Vec<u8>, text: &str) {
    out.push(b'+');
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Writes an error; `text` starts with its code (`ERR …`). Line breaks in it become spaces.
pub fn put_error(out: &mut Vec<u8>, text: &(impl AsRef<[u8]> + ?Sized)) {
    let text = text.as_ref().iter();
    out.push(b'-');
    out.extend(text.map(|&b| if matches!(b, b'\r' | b'\n') { b' ' } else { b }));
    out.extend_from_slice(b"\r\n");
}

/// Writes the null of the protocol.
pub fn put_null(out: &mut Vec<u8>, protocol: Protocol) {
    out.extend_from_slice(match protocol {
        Protocol::Resp2 => b"$-1\r\n",
        Protocol::Resp3 => b"_\r\n",
    });
}

/// A text for people: a verbatim string where there are such.
pub fn put_verbatim(out: &mut Vec<u8>, protocol: Protocol, text: &str) {
    match protocol {
        Protocol::Resp2 => put_bulk(out, text.as_bytes()),
        Protocol::Resp3 => {
            put_header(out, b'=', text.len() + 4);
            out.extend_from_slice(b"txt:");
            out.extend_from_slice(text.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// Writes the header of a map of so many pairs: in RESP2, an array twice as long.
pub fn put_map(out: &mut Vec<u8>, protocol: Protocol, pairs: usize) {
    match protocol {
        Protocol::Resp2 => put_header(out, b'*', 2 * pairs),
        Protocol::Resp3 => put_header(out, b'%', pairs),
    }
}

/// Writes the header of a set of so many values: in RESP2, an array.
pub fn put_set(out: &mut Vec<u8>, protocol: Protocol, values: usize) {
    match protocol {
        Protocol::Resp2 => put_header(out, b'*', values),
        Protocol::Resp3 => put_header(out, b'~', values),
    }
}

#[cfg(test)]
mod tests;
