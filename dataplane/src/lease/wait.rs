//! `WAIT` and `WAITAOF`: what a session wrote has reached so many replicas, or disks.
//!
//! A server answers for the connection that asks: up to what *that* wrote last. What a session wrote came by
//! pipes that others share, where nothing may wait. So each group is asked on a lease, which first
//! publishes to a channel that nobody listens to: that goes to the replicas behind all that was answered
//! before, and the connection counts as having written it. Measured on Redis 6.2, 7.0 and 8.2 and Valkey
//! 8.1 and 9.1; of other commands (`PING`, `GET`) that holds up to Redis 7.0 only.
//!
//! Nobody knows where a session has written: all groups that own slots are asked, and the least that one
//! of them says is the answer.
//!
//! Invariant: the answer covers all that was answered to the session before it asked.

use std::task::{Context, Poll};

use proto::ServerAddr;
use tokio::time::Instant;

use super::{Exchange, Step};
use crate::{
    backend::{Unblock, put_command},
    command::Command,
    error,
    framer::Piece,
    resp::{Request, parse_int, put_error, put_header, put_int},
    session::{Detour, Dispatched},
    socket::Socket,
    worker::Worker,
};

/// Of the reserved prefix, so that no client listens to it.
const CHANNEL: &[u8] = b"{sluice}:wait";

/// A `WAIT` under way.
pub(crate) struct Replicas {
    asked: Vec<Asked>,
    /// Somebody wants it to end.
    unblock: Option<Unblock>,
    /// When the servers were last told so.
    told: Option<Instant>,
}

/// What one group is asked, and has said.
struct Asked {
    exchange: Exchange,
    server: ServerAddr,
    is_over: bool,
    /// The reply, or the first error.
    said: Vec<u8>,
}

impl Replicas {
    /// Has it end: each server says what it knows.
    pub(crate) fn end(&mut self, how: Unblock) {
        self.unblock = Some(how);
    }

    /// Bytes of memory it owns.
    pub(crate) fn memory(&self) -> usize {
        let each = |asked: &Asked| size_of::<Asked>() + asked.exchange.memory();
        self.asked.iter().map(each).sum()
    }
}

impl Asked {
    /// Takes a reply, or a piece of one: of `PUBLISH` only an error is of interest.
    fn take(said: &mut Vec<u8>, left: u32, piece: Piece<'_>) {
        if said.is_empty() && (left == 0 || piece.bytes[0] == b'-') {
            said.extend_from_slice(piece.bytes);
        }
    }
}

/// The numbers that a reply consists of: one, or an array.
fn numbers(reply: &[u8]) -> Vec<i64> {
    reply
        .split(|&b| b == b'\n')
        .filter_map(|line| parse_int(line.strip_prefix(b":")?.strip_suffix(b"\r")?))
        .collect()
}

/// What all say together: the least, or the error of one.
fn put_least(out: &mut Vec<u8>, replies: &[&[u8]]) {
    let error = replies
        .iter()
        .find(|reply| !matches!(reply.first(), Some(b':' | b'*')));
    if let Some(error) = error {
        return out.extend_from_slice(error);
    }
    let all = replies.iter().map(|reply| numbers(reply));
    let least = all.reduce(|one, other| one.iter().zip(other).map(|(a, b)| b.min(*a)).collect());
    let least = least.unwrap_or_default();
    if replies.first().is_some_and(|reply| reply[0] == b'*') {
        put_header(out, b'*', least.len());
    }
    least.into_iter().for_each(|number| put_int(out, number));
}

/// What a worker does for those who wait: the session's task calls this.
impl Worker {
    pub(crate) fn wait_for_replicas(
        &mut self,
        id: u32,
        command: &Command,
        request: &Request<'_>,
    ) -> Dispatched {
        if self.clients.session(id).outbox.in_flight() > 0 {
            return Dispatched::Waits; // what it wrote has to be answered
        }
        let Some(topology) = self.topology.clone() else {
            return self.answer_error(id, error::NO_TOPOLOGY);
        };
        let most = command.patience(request).and_then(|at| at.of(request));
        let silence = most.map(|time| time.saturating_add(self.serving.server_timeout));
        let mut asked = Vec::new();
        for group in topology.owners() {
            let Some(opening) = self.lease(id, group) else {
                return self.answer_error(id, error::NO_LEASE);
            };
            let mut requests = Vec::new();
            put_command(&mut requests, &[b"PUBLISH", CHANNEL, b""]);
            requests.extend_from_slice(request.raw());
            asked.push(Asked {
                exchange: Exchange::new(opening, requests, 2, silence),
                server: self.backends.primary(group).clone(),
                is_over: false,
                said: Vec::new(),
            });
        }
        if asked.is_empty() {
            return self.answer_error(id, error::NOT_SERVED);
        }
        self.taken(id);
        self.stats.requests_blocking.add(1);
        self.begin_detour(
            id,
            Detour::Replicas(Replicas {
                asked,
                unblock: None,
                told: None,
            }),
        );
        Dispatched::Done
    }

    /// Goes on with a `WAIT`. Ready: it is over, and so may be the session.
    pub(crate) fn poll_replicas(
        &mut self,
        id: u32,
        replicas: &mut Replicas,
        client: &Socket,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if !self.poll_awaited(id, client, cx) {
            return Poll::Ready(()); // nobody waits for it any more
        }
        self.unblock_replicas(id, replicas);
        let is_reusable = replicas.unblock.is_none();
        for asked in &mut replicas.asked {
            self.poll_asked(asked, is_reusable, cx);
        }
        if !replicas.asked.iter().all(|asked| asked.is_over) {
            return Poll::Pending;
        }
        let mut replies: Vec<&[u8]> = Vec::new();
        replies.extend(replicas.asked.iter().map(|asked| asked.said.as_slice()));
        self.clients
            .answer_awaited(id, |out| put_least(out, &replies));
        Poll::Ready(())
    }

    /// Tells the servers once in a tick, if it is to end: a word may come too early.
    fn unblock_replicas(&mut self, id: u32, replicas: &mut Replicas) {
        let (Some(how), now) = (replicas.unblock, self.backends.now()) else {
            return;
        };
        self.clients.wait(id);
        if replicas.told.replace(now) == Some(now) {
            return;
        }
        let since = self.clock.micros();
        for asked in &replicas.asked {
            if let Some(connection) = asked.exchange.connection() {
                // One that has left the topology answers when the time is over.
                _ = self.backends.unblock(&asked.server, connection, how, since);
            }
        }
    }

    fn poll_asked(&mut self, asked: &mut Asked, is_reusable: bool, cx: &mut Context<'_>) {
        while !asked.is_over {
            let Asked { exchange, said, .. } = asked;
            let step = self.poll_aside(exchange, cx, |left, piece| {
                Asked::take(said, left, piece);
            });
            match step {
                Poll::Pending => return,
                Poll::Ready(Step::Again) => {}
                Poll::Ready(Step::Done(lease)) => {
                    // A late word would unblock whoever has it next.
                    if is_reusable {
                        self.leases.give(lease, self.backends.now());
                    }
                    asked.is_over = true;
                }
                Poll::Ready(Step::Failed(failure)) => {
                    let text = failure.why.error(asked.server.as_str());
                    asked.said.clear();
                    put_error(&mut asked.said, &text);
                    asked.is_over = true;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_is_what_all_can_say() {
        let check = |replies: &[&[u8]], expected: &[u8]| {
            let mut out = Vec::new();
            put_least(&mut out, replies);
            assert_eq!(out, expected);
        };
        check(&[b":2\r\n", b":1\r\n", b":10\r\n"], b":1\r\n");
        check(&[b":3\r\n"], b":3\r\n");
        let (one, two) = (b"*2\r\n:1\r\n:5\r\n", b"*2\r\n:0\r\n:7\r\n");
        check(&[one, two], b"*2\r\n:0\r\n:5\r\n");
        check(&[b":2\r\n", b"-ERR no\r\n", b":0\r\n"], b"-ERR no\r\n");
    }

    #[test]
    fn who_cannot_publish_says_so() {
        let mut said = Vec::new();
        Asked::take(&mut said, 1, Piece::whole(b":0\r\n"));
        assert!(said.is_empty());
        Asked::take(&mut said, 1, Piece::whole(b"-NOPERM\r\n"));
        Asked::take(&mut said, 0, Piece::whole(b":5\r\n"));
        assert_eq!(said, b"-NOPERM\r\n");
    }
}
