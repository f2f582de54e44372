//! What is said about subscriptions: by a server on a subscriber's connection, and to clients.

use crate::{
    command::Topic,
    resp::{BadReply, Protocol, ReplyProgress, put_bulk, put_header, put_int, put_null},
};

/// What a server said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Said<'a> {
    /// It has subscribed, or ended a subscription.
    Done(Topic, Change),
    /// Something was published.
    Message(Message<'a>),
    /// It lives.
    Pong,
    /// It refuses what was asked.
    Error(&'a [u8]),
}

/// What becomes of a subscription.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    Subscribe,
    Unsubscribe,
}

/// A message, as it came for one channel or pattern.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Message<'a> {
    pub(super) topic: Topic,
    /// What it came for: the channel, or the pattern that matched it.
    pub(super) name: &'a [u8],
    pub(super) channel: &'a [u8],
    pub(super) payload: &'a [u8],
}

/// Reads one whole reply or message, as servers say it in RESP2.
pub(super) fn read(frame: &[u8]) -> Result<Said<'_>, BadReply> {
    match frame.first() {
        Some(b'-') => return Ok(Said::Error(frame[1..].trim_ascii_end())),
        Some(b'+') if frame == b"+PONG\r\n" => return Ok(Said::Pong),
        Some(b'*') => {}
        _ => return Err(BadReply),
    }
    let mut parts = Parts::of(frame);
    let kind = parts.next().ok_or(BadReply)?;
    let topic = match kind {
        b"message" | b"subscribe" | b"unsubscribe" => Topic::Channel,
        b"pmessage" | b"psubscribe" | b"punsubscribe" => Topic::Pattern,
        b"smessage" | b"ssubscribe" | b"sunsubscribe" => Topic::Shard,
        b"pong" => return Ok(Said::Pong),
        _ => return Err(BadReply),
    };
    if kind.ends_with(b"unsubscribe") {
        return Ok(Said::Done(topic, Change::Unsubscribe));
    }
    if kind.ends_with(b"subscribe") {
        return Ok(Said::Done(topic, Change::Subscribe));
    }
    let name = parts.next().ok_or(BadReply)?;
    let channel = match topic {
        Topic::Channel | Topic::Shard => name,
        Topic::Pattern => parts.next().ok_or(BadReply)?,
    };
    let payload = parts.next().ok_or(BadReply)?;
    Ok(Said::Message(Message {
        topic,
        name,
        channel,
        payload,
    }))
}

/// The bulk strings of an array, one after the other.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    fn of(array: &'a [u8]) -> Self {
        Self(line(array).map_or(&[], |(_, rest)| rest))
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let len = ReplyProgress::default().scan(self.0).ok()??;
        let (value, rest) = self.0.split_at(len);
        self.0 = rest;
        let (_, text) = line(value.strip_prefix(b"$")?)?;
        text.strip_suffix(b"\r\n")
    }
}

/// The first line, and what is behind it.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&byte| byte == b'\n')? + 1;
    Some(bytes.split_at(end))
}

/// Writes the request to a server.
pub(super) fn put_request(out: &mut Vec<u8>, topic: Topic, change: Change, name: &[u8]) {
    put_header(out, b'*', 2);
    put_bulk(out, word(topic, change).as_bytes());
    put_bulk(out, name);
}

/// Writes what a client is told of one channel or pattern, and how many it has now.
pub(super) fn put_changed(
    out: &mut Vec<u8>,
    protocol: Protocol,
    topic: Topic,
    change: Change,
    name: Option<&[u8]>,
    count: usize,
) {
    match protocol {
        Protocol::Resp2 => put_header(out, b'*', 3),
        Protocol::Resp3 => put_header(out, b'>', 3),
    }
    put_bulk(out, word(topic, change).as_bytes());
    match name {
        Some(name) => put_bulk(out, name),
        None => put_null(out, protocol),
    }
    put_int(out, count as i64);
}

/// As commands and replies name it.
fn word(topic: Topic, change: Change) -> &'static str {
    match (topic, change) {
        (Topic::Channel, Change::Subscribe) => "subscribe",
        (Topic::Channel, Change::Unsubscribe) => "unsubscribe",
        (Topic::Pattern, Change::Subscribe) => "psubscribe",
        (Topic::Pattern, Change::Unsubscribe) => "punsubscribe",
        (Topic::Shard, Change::Subscribe) => "ssubscribe",
        (Topic::Shard, Change::Unsubscribe) => "sunsubscribe",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_is_understood() {
        let message = |topic, name, channel| {
            Ok(Said::Message(Message {
                topic,
                name,
                channel,
                payload: b"hi\r\n",
            }))
        };
        let done = |topic, change| Ok(Said::Done(topic, change));
        for (frame, expected) in [
            (
                "*3\r\n$7\r\nmessage\r\n$2\r\n\r\n\r\n$4\r\nhi\r\n\r\n",
                message(Topic::Channel, b"\r\n", b"\r\n"),
            ),
            (
                "*3\r\n$8\r\nsmessage\r\n$1\r\nc\r\n$4\r\nhi\r\n\r\n",
                message(Topic::Shard, b"c", b"c"),
            ),
            (
                "*4\r\n$8\r\npmessage\r\n$2\r\nc*\r\n$1\r\nc\r\n$4\r\nhi\r\n\r\n",
                message(Topic::Pattern, b"c*", b"c"),
            ),
            (
                "*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n",
                done(Topic::Channel, Change::Subscribe),
            ),
            (
                "*3\r\n$12\r\npunsubscribe\r\n$-1\r\n:0\r\n",
                done(Topic::Pattern, Change::Unsubscribe),
            ),
            ("*2\r\n$4\r\npong\r\n$0\r\n\r\n", Ok(Said::Pong)),
            ("+PONG\r\n", Ok(Said::Pong)),
            ("-NOPERM no\r\n", Ok(Said::Error(b"NOPERM no"))),
            ("+OK\r\n", Err(BadReply)),
            (":1\r\n", Err(BadReply)),
            ("*0\r\n", Err(BadReply)),
            ("*1\r\n*0\r\n", Err(BadReply)),
            ("*1\r\n$7\r\nmessage\r\n", Err(BadReply)),
            ("*2\r\n$8\r\npmessage\r\n$1\r\nc\r\n", Err(BadReply)),
            ("*3\r\n$7\r\nmessage\r\n:1\r\n:2\r\n", Err(BadReply)),
            ("*2\r\n$5\r\nother\r\n$1\r\nc\r\n", Err(BadReply)),
        ] {
            assert_eq!(read(frame.as_bytes()), expected, "{frame:?}");
        }
    }

    #[test]
    fn clients_are_told_as_redis_does() {
        let told = |protocol, name| {
            let mut out = Vec::new();
            let (topic, change) = (Topic::Pattern, Change::Unsubscribe);
            put_changed(&mut out, protocol, topic, change, name, 2);
            String::from_utf8(out).unwrap()
        };
        let resp2 = told(Protocol::Resp2, Some(&b"a*"[..]));
        assert_eq!(resp2, "*3\r\n$12\r\npunsubscribe\r\n$2\r\na*\r\n:2\r\n");
        let resp2 = told(Protocol::Resp2, None);
        assert_eq!(resp2, "*3\r\n$12\r\npunsubscribe\r\n$-1\r\n:2\r\n");
        let resp3 = told(Protocol::Resp3, None);
        assert_eq!(resp3, ">3\r\n$12\r\npunsubscribe\r\n_\r\n:2\r\n");
    }
}
