//! What a server answers, read as it comes.
//!
//! Owns how RESP2 and RESP3 become a [`Reply`]. Never sends, and never trusts a length: memory is taken
//! for bytes that have come, not for bytes that are announced.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};

/// What a server may answer to one command, at most, in bytes: two of the largest values there are.
const LARGEST: usize = 1 << 30;
/// The longest line: that of an error, or of a number.
const LONGEST_LINE: usize = 64 << 10;
/// How deep lists may be in lists. `XINFO STREAM … FULL` needs 6.
const DEEPEST: usize = 16;
/// What is read at once.
const BUFFER: usize = 64 << 10;

/// One reply. What RESP has several forms for has one here.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Reply {
    /// Nothing there.
    Nil,
    /// A number.
    Integer(i64),
    /// A text of any kind; also a double, as it is written.
    Text(Vec<u8>),
    /// An error.
    Error(String),
    /// A list, a set, or the keys and values of a map in turns.
    List(Vec<Self>),
    /// What comes unasked (RESP3).
    Push(Vec<Self>),
}

/// Reads replies from one connection.
pub(crate) struct Replies<R> {
    stream: BufReader<R>,
}

/// A list whose elements are still coming.
struct Open {
    push: bool,
    missing: usize,
    items: Vec<Reply>,
}

impl<R: AsyncRead + Unpin> Replies<R> {
    /// From the start of a connection.
    pub(crate) fn new(stream: R) -> Self {
        let stream = BufReader::with_capacity(BUFFER, stream);
        Self { stream }
    }

    /// The connection, to write to it.
    pub(crate) fn stream(&mut self) -> &mut R {
        self.stream.get_mut()
    }

    /// The connection back. What was read ahead of the next reply is lost.
    pub(crate) fn into_stream(self) -> R {
        self.stream.into_inner()
    }

    /// Whether the next reply, or some of it, has been read already.
    pub(crate) fn has_read_ahead(&self) -> bool {
        !self.stream.buffer().is_empty()
    }

    /// The next reply. Whoever drops this before its end has lost its place in the stream.
    pub(crate) async fn next(&mut self) -> io::Result<Reply> {
        let mut allowance = LARGEST;
        let mut open: Vec<Open> = Vec::new();
        let mut line = Vec::new();
        loop {
            read_line(&mut self.stream, &mut line).await?;
            spend(&mut allowance, line.len())?;
            let (kind, rest) = line.split_first().ok_or_else(|| broken("an empty line"))?;
            let whole = match kind {
                b'+' | b',' | b'(' | b'#' => Reply::Text(rest.to_vec()),
                b'-' => Reply::Error(String::from_utf8_lossy(rest).into_owned()),
                b':' => Reply::Integer(number(rest)?),
                b'_' => Reply::Nil,
                b'$' | b'=' | b'!' => match length(rest)? {
                    None => Reply::Nil,
                    Some(length) => {
                        spend(&mut allowance, length)?;
                        let body = read_body(&mut self.stream, length).await?;
                        match kind {
                            b'!' => Reply::Error(String::from_utf8_lossy(&body).into_owned()),
                            // A verbatim text begins with its format: `txt:`.
                            b'=' => Reply::Text(body.get(4..).unwrap_or_default().to_vec()),
                            _ => Reply::Text(body),
                        }
                    }
                },
                b'*' | b'~' | b'>' | b'%' => match length(rest)? {
                    None => Reply::Nil,
                    Some(count) => {
                        let missing = if *kind == b'%' { count * 2 } else { count };
                        let (push, items) = (*kind == b'>', Vec::new());
                        if open.len() == DEEPEST {
                            return Err(broken("lists too deep in lists"));
                        }
                        open.push(Open {
                            push,
                            missing,
                            items,
                        });
                        match close(&mut open) {
                            None => continue,
                            Some(list) => list,
                        }
                    }
                },
                _ => return Err(broken("an unknown kind of reply")),
            };
            match put(&mut open, whole) {
                Some(reply) => return Ok(reply),
                None => spend(&mut allowance, size_of::<Reply>())?,
            }
        }
    }
}

/// Puts what is whole where it belongs; gives back what is whole at the outside.
fn put(open: &mut Vec<Open>, mut whole: Reply) -> Option<Reply> {
    loop {
        let Some(list) = open.last_mut() else {
            return Some(whole);
        };
        list.items.push(whole);
        list.missing -= 1;
        whole = close(open)?;
    }
}

/// The innermost list, if nothing is missing of it.
fn close(open: &mut Vec<Open>) -> Option<Reply> {
    let list = open.pop_if(|list| list.missing == 0)?;
    Some(if list.push {
        Reply::Push(list.items)
    } else {
        Reply::List(list.items)
    })
}

async fn read_line<S: AsyncBufRead + Unpin>(stream: &mut S, line: &mut Vec<u8>) -> io::Result<()> {
    line.clear();
    // Nearly always it has come as a whole: big values have a million of them.
    let ready = stream.fill_buf().await?;
    let first = &ready[..ready.len().min(LONGEST_LINE)];
    if let Some(end) = first.iter().position(|byte| *byte == b'\n') {
        line.extend_from_slice(&first[..=end]);
        stream.consume(end + 1);
        return end_line(line);
    }
    let mut part = stream.take(LONGEST_LINE as u64);
    if part.read_until(b'\n', line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    end_line(line)
}

/// Takes its end off a line.
fn end_line(line: &mut Vec<u8>) -> io::Result<()> {
    if !line.ends_with(b"\r\n") {
        return Err(broken("a line without an end"));
    }
    line.truncate(line.len() - 2);
    Ok(())
}

async fn read_body<S: AsyncBufRead + Unpin>(stream: &mut S, length: usize) -> io::Result<Vec<u8>> {
    const AT_ONCE: usize = 1 << 20;
    let ready = stream.fill_buf().await?;
    if let Some((body, end)) = ready.get(..length + 2).map(|all| all.split_at(length)) {
        if end != b"\r\n" {
            return Err(broken("a text longer than it says"));
        }
        let body = body.to_vec();
        stream.consume(length + 2);
        return Ok(body);
    }
    let mut body = Vec::with_capacity((length + 2).min(AT_ONCE));
    let mut part = stream.take(length as u64 + 2);
    part.read_to_end(&mut body).await?;
    if body.len() != length + 2 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if !body.ends_with(b"\r\n") {
        return Err(broken("a text longer than it says"));
    }
    body.truncate(length);
    Ok(body)
}

fn spend(allowance: &mut usize, bytes: usize) -> io::Result<()> {
    let left = allowance.checked_sub(bytes);
    *allowance = left.ok_or_else(|| broken("a reply without an end"))?;
    Ok(())
}

fn number(text: &[u8]) -> io::Result<i64> {
    let text = std::str::from_utf8(text).ok();
    let number = text.and_then(|text| text.parse().ok());
    number.ok_or_else(|| broken("no number where one must be"))
}

/// `None`: -1, which stands for nothing.
fn length(text: &[u8]) -> io::Result<Option<usize>> {
    match number(text)? {
        -1 => Ok(None),
        length => match usize::try_from(length) {
            Ok(length) if length <= LARGEST => Ok(Some(length)),
            _ => Err(broken("a length that cannot be")),
        },
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("it answers with {what}"),
    )
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use tokio::io::ReadBuf;

    use super::*;

    /// Gives one byte at a time.
    struct Slow<'a>(&'a [u8]);

    impl AsyncRead for Slow<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if let Some((first, rest)) = self.0.split_first() {
                buffer.put_slice(&[*first]);
                self.0 = rest;
            }
            Poll::Ready(Ok(()))
        }
    }

    /// As it is read when all of it has come, which must be as when it comes byte by byte.
    async fn read(bytes: &[u8]) -> io::Result<Reply> {
        let whole = Replies::new(bytes).next().await;
        let slow = Replies::new(Slow(bytes)).next().await;
        match (&whole, &slow) {
            (Ok(whole), Ok(slow)) => assert_eq!(whole, slow),
            (Err(whole), Err(slow)) => assert_eq!(whole.kind(), slow.kind()),
            _ => panic!("{whole:?}, but byte by byte {slow:?}"),
        }
        whole
    }

    fn text(text: &str) -> Reply {
        Reply::Text(text.into())
    }

    #[tokio::test]
    async fn every_kind() {
        let list = |items: &[Reply]| Reply::List(items.to_vec());
        for (bytes, reply) in [
            ("+OK\r\n", text("OK")),
            ("$3\r\na\r\n\r\n", text("a\r\n")),
            ("$0\r\n\r\n", text("")),
            ("=7\r\ntxt:abc\r\n", text("abc")),
            (",1.5\r\n", text("1.5")),
            ("$-1\r\n", Reply::Nil),
            ("*-1\r\n", Reply::Nil),
            ("_\r\n", Reply::Nil),
            (":-7\r\n", Reply::Integer(-7)),
            ("-ERR no\r\n", Reply::Error("ERR no".to_owned())),
            ("!5\r\nERR a\r\n", Reply::Error("ERR a".to_owned())),
            ("*0\r\n", list(&[])),
            ("*2\r\n*0\r\n:1\r\n", list(&[list(&[]), Reply::Integer(1)])),
            (
                "%1\r\n+a\r\n*1\r\n*1\r\n$1\r\nb\r\n",
                list(&[text("a"), list(&[list(&[text("b")])])]),
            ),
            (
                ">2\r\n+invalidate\r\n_\r\n",
                Reply::Push(vec![text("invalidate"), Reply::Nil]),
            ),
        ] {
            assert_eq!(read(bytes.as_bytes()).await.unwrap(), reply, "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn foreign_bytes_are_errors() {
        let deep = "*1\r\n".repeat(100);
        for bytes in [
            "",
            "\r\n",
            "+OK",
            "+OK\n",
            "HTTP/1.1 400\r\n",
            ":x\r\n",
            "$-2\r\n",
            "$9999999999999\r\n",
            "$3\r\nabcd\r\n",
            "$3\r\nab",
            "*9223372036854775807\r\n",
            "*1000000000\r\n",
            deep.as_str(),
        ] {
            assert!(read(bytes.as_bytes()).await.is_err(), "{bytes:?}");
        }
        let endless = vec![b'x'; 2 * LONGEST_LINE];
        assert!(read(&endless).await.is_err());
    }
}
