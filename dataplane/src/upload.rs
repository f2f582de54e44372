//! A request that is too large to be held: it goes to its server as it comes, on a connection of its
//! own, and nobody waits behind it.
//!
//! An upload starts when all that its session asked before has been answered, and until it is answered
//! the session takes no other request: so nothing overtakes. Back-pressure is TCP's own, in both
//! directions: of the request only what was read last is held, and of the reply only what the client
//! has room for. A request that nobody takes (it was refused when it began, or its server is lost) is
//! read to its end, so that the session can go on behind it.
//!
//! Invariant: a server executes a request only once it has all of it. Whatever ends an upload before its
//! last byte was handed over, the answer is *not executed*.

use std::{
    io, mem,
    net::TcpStream,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::time::Instant;

use crate::{
    backend::Door,
    buffer,
    command::Kind,
    error,
    framer::Framer,
    metrics::WorkerStats,
    resp::{BadReply, Tail},
    session::Dispatched,
    socket::Socket,
    worker::{self, Worker},
};

/// See the module.
pub(crate) struct Upload {
    state: State,
    /// What is still to come of the request.
    tail: Tail,
    /// What has come and is to be sent, from `sent` on.
    out: Vec<u8>,
    sent: usize,
    server: String,
    kind: Kind,
    may_write: bool,
    /// When it began, by the worker's clock.
    since: Option<u32>,
    /// When the server last did something.
    alive: Option<Instant>,
}

type Dial = Pin<Box<dyn Future<Output = Result<TcpStream, String>>>>;

enum State {
    /// Nobody takes it, and the client has been told.
    Refused,
    Opening(Dial),
    /// The server takes it.
    Sending(Socket),
    /// The server has it; it answers.
    Answering(Answering),
}

struct Answering {
    socket: Socket,
    framer: Framer,
    /// The number of the reply, once some of it has come.
    number: u32,
}

/// What comes next.
enum Next {
    /// Another step.
    Step,
    /// Nothing, until the client does something.
    Client,
    /// Nothing, until the server does something.
    Server,
    /// The upload is over.
    Over,
}

impl Upload {
    /// One that goes through this door; `head` has come already.
    pub(crate) fn new(door: Door, tail: Tail, head: &[u8], kind: Kind, may_write: bool) -> Self {
        let server = door.addr.to_string();
        Self {
            state: State::Opening(Box::pin(async move { door.open().await })),
            tail,
            out: head.to_vec(),
            sent: 0,
            server,
            kind,
            may_write,
            since: None,
            alive: None,
        }
    }

    /// One that goes nowhere; the client has been told why.
    pub(crate) fn refused(tail: Tail) -> Self {
        Self {
            state: State::Refused,
            tail,
            out: Vec::new(),
            sent: 0,
            server: String::new(),
            kind: Kind::Read,
            may_write: false,
            since: None,
            alive: None,
        }
    }

    /// Bytes of memory it owns.
    pub(crate) fn memory(&self) -> usize {
        self.out.capacity()
            + match &self.state {
                State::Answering(answering) => answering.framer.memory(),
                State::Refused | State::Opening(_) | State::Sending(_) => 0,
            }
    }

    /// Whether it is the client that has to send more.
    pub(crate) fn waits_for_client(&self) -> bool {
        match self.state {
            State::Refused => true,
            State::Sending(_) => self.sent == self.out.len(),
            State::Opening(_) | State::Answering(_) => false,
        }
    }

    /// Sends what has come. `false`: the server takes no more for now.
    fn send(&mut self, now: Instant, stats: &WorkerStats) -> io::Result<bool> {
        let State::Sending(socket) = &self.state else {
            return Ok(true);
        };
        while self.sent < self.out.len() {
            match socket.write(&self.out[self.sent..]) {
                Ok(len) => {
                    stats.server_bytes_out.add(len as u64);
                    self.sent += len;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
            self.alive = Some(now);
        }
        self.sent = 0;
        self.out.clear();
        Ok(true)
    }
}

/// What a worker does for its uploads: the session's task calls this.
impl Worker {
    /// Goes on with a session's upload. Ready: it is over, and so may be the session.
    pub(crate) fn poll_upload(
        &mut self,
        id: u32,
        upload: &mut Upload,
        socket: &Socket,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        upload.since.get_or_insert(self.micros);
        let alive = *upload.alive.get_or_insert(self.backends.now());
        for _ in 0..16 {
            let next = match &mut upload.state {
                State::Refused => self.poll_rest(id, upload, socket, cx),
                State::Opening(dial) => match dial.as_mut().poll(cx) {
                    Poll::Pending => return Poll::Pending, // it has a deadline of its own
                    Poll::Ready(opened) => self.upload_opened(id, upload, opened),
                },
                State::Sending(_) => self.poll_send(id, upload, socket, cx),
                State::Answering(_) => self.poll_answer(id, upload, cx),
            };
            match next {
                Next::Step => {}
                Next::Client => return Poll::Pending,
                Next::Over => return Poll::Ready(()),
                Next::Server => {
                    let silent = self.backends.now().saturating_duration_since(alive);
                    if upload.alive == Some(alive) && silent > self.serving.server_timeout {
                        let why = format!("no reply for {:?}", self.serving.server_timeout);
                        match self.upload_lost(id, upload, &why) {
                            Next::Over => return Poll::Ready(()),
                            _ => continue,
                        }
                    }
                    self.clients.wait(id); // the next tick looks again
                    return Poll::Pending;
                }
            }
        }
        worker::yield_turn(cx);
        Poll::Pending
    }

    fn upload_opened(
        &mut self,
        id: u32,
        upload: &mut Upload,
        opened: Result<TcpStream, String>,
    ) -> Next {
        let socket = opened.and_then(|stream| Socket::new(stream).map_err(|e| e.to_string()));
        match socket {
            Ok(socket) => {
                upload.state = State::Sending(socket);
                upload.alive = Some(self.backends.now());
                Next::Step
            }
            Err(why) => self.upload_lost(id, upload, &why),
        }
    }

    /// Reads on; what belongs to the request goes into the upload's output, or nowhere.
    fn poll_rest(
        &mut self,
        id: u32,
        upload: &mut Upload,
        socket: &Socket,
        cx: &mut Context<'_>,
    ) -> Next {
        let input = mem::take(&mut self.clients.session(id).input);
        if !input.is_empty() && self.take_rest(id, upload, input) == Dispatched::Last {
            return Next::Over;
        }
        if upload.tail.is_done() {
            return match upload.state {
                State::Refused => Next::Over,
                State::Opening(_) | State::Sending(_) | State::Answering(_) => Next::Step,
            };
        }
        let mut dispatched = Dispatched::Done;
        let read = self.poll_read(id, socket, cx, Self::SCRATCH, |worker, bytes| {
            let mut input = mem::take(&mut worker.clients.session(id).input);
            buffer::ensure(&mut input).extend_from_slice(bytes);
            dispatched = worker.take_rest(id, upload, input);
        });
        match read {
            Poll::Pending => Next::Client,
            Poll::Ready(()) if dispatched == Dispatched::Last => Next::Over,
            Poll::Ready(()) if !self.clients.session(id).is_serving() => Next::Over, // never whole
            Poll::Ready(()) => Next::Step,
        }
    }

    /// Takes what of the client's bytes belongs to the request; the session keeps the rest.
    fn take_rest(&mut self, id: u32, upload: &mut Upload, mut input: Vec<u8>) -> Dispatched {
        let taken = match upload.tail.walk(&input, &self.serving.limits) {
            Ok(taken) => taken,
            Err(e) => {
                let last = self.refuse_bytes(id, &e);
                self.clients.session(id).finish();
                return last;
            }
        };
        if !matches!(upload.state, State::Refused) {
            upload.out.extend_from_slice(&input[..taken]);
        }
        if taken == input.len() {
            buffer::give(&mut input);
        } else {
            input.drain(..taken);
        }
        self.clients.session(id).input = input;
        Dispatched::Done
    }

    fn poll_send(
        &mut self,
        id: u32,
        upload: &mut Upload,
        client: &Socket,
        cx: &mut Context<'_>,
    ) -> Next {
        let now = self.backends.now();
        let sent = upload.send(now, &self.stats);
        let State::Sending(socket) = &upload.state else {
            unreachable!("it is being sent")
        };
        let next = match sent {
            Err(e) => return self.upload_lost(id, upload, &e.to_string()),
            Ok(false) => match socket.poll_writable(cx, || false) {
                Poll::Ready(Err(e)) => return self.upload_lost(id, upload, &e.to_string()),
                Poll::Ready(Ok(())) | Poll::Pending => Next::Server,
            },
            Ok(true) if upload.tail.is_done() => {
                let State::Sending(socket) = mem::replace(&mut upload.state, State::Refused) else {
                    unreachable!("it is being sent")
                };
                upload.out = Vec::new();
                upload.alive = Some(now);
                upload.state = State::Answering(Answering {
                    socket,
                    framer: Framer::default(),
                    number: 0,
                });
                return Next::Step;
            }
            Ok(true) => {
                upload.alive = Some(now); // it is not the server that is waited for
                self.poll_rest(id, upload, client, cx)
            }
        };
        match next {
            Next::Client | Next::Server => self.poll_early(id, upload, cx, next),
            Next::Step | Next::Over => next,
        }
    }

    /// A server that says something before it has the whole request refuses it.
    fn poll_early(
        &mut self,
        id: u32,
        upload: &mut Upload,
        cx: &mut Context<'_>,
        next: Next,
    ) -> Next {
        let State::Sending(socket) = &upload.state else {
            return next;
        };
        let mut said = [0; 512];
        let why = match socket.poll_read(cx, &mut said) {
            Poll::Pending => return next,
            Poll::Ready(Ok(0)) => "it closed the connection".to_owned(),
            Poll::Ready(Ok(len)) => {
                let line = said[..len]
                    .split(|&b| b == b'\r')
                    .next()
                    .unwrap_or_default();
                format!("it said {}", String::from_utf8_lossy(line))
            }
            Poll::Ready(Err(e)) => e.to_string(),
        };
        self.upload_lost(id, upload, &why)
    }

    fn poll_answer(&mut self, id: u32, upload: &mut Upload, cx: &mut Context<'_>) -> Next {
        // The client takes it as fast as it can; its server waits.
        if self.clients.session(id).outbox.buffered() >= self.serving.max_inflight_bytes {
            return Next::Client;
        }
        let now = self.backends.now();
        let mut scratch = mem::take(&mut self.scratch);
        scratch.resize(Self::SCRATCH, 0);
        let State::Answering(answering) = &mut upload.state else {
            unreachable!("it is being answered")
        };
        let read = answering.socket.poll_read(cx, &mut scratch);
        let mut whole = false;
        let lost = match &read {
            Poll::Pending => None,
            Poll::Ready(Ok(0)) => Some("it closed the connection".to_owned()),
            Poll::Ready(Err(e)) => Some(e.to_string()),
            &Poll::Ready(Ok(len)) => {
                self.stats.server_bytes_in.add(len as u64);
                upload.alive = Some(now);
                let clients = &mut self.clients;
                let Answering { framer, number, .. } = answering;
                let taken = framer.receive(&scratch[..len], |piece| {
                    if whole {
                        return Err(BadReply); // it was asked once
                    }
                    if piece.first {
                        *number = clients.session(id).outbox.reserve();
                    }
                    whole = piece.last;
                    clients.fill(id, |outbox| outbox.fill_piece(*number, piece));
                    Ok(())
                });
                taken.err().map(|e| e.to_string())
            }
        };
        self.scratch = scratch;
        match lost {
            Some(why) => self.upload_lost(id, upload, &why),
            None if whole => {
                let micros = self.clock.micros();
                let took = micros.wrapping_sub(upload.since.unwrap_or(micros));
                self.stats.latency[upload.kind as usize].record(took);
                self.taken(id);
                Next::Over
            }
            None if read.is_pending() => Next::Server,
            None => Next::Step,
        }
    }

    /// The server is lost: the client is told what became of the request.
    fn upload_lost(&mut self, id: u32, upload: &mut Upload, why: &str) -> Next {
        let (text, passing) = match &upload.state {
            State::Answering(answering) => {
                let text = if upload.may_write {
                    error::unknown_outcome(&upload.server, why)
                } else {
                    error::server_down(&upload.server, why)
                };
                (text, answering.framer.is_passing())
            }
            State::Refused | State::Opening(_) | State::Sending(_) => {
                (error::server_down(&upload.server, why), false)
            }
        };
        tracing::warn!(server = upload.server, why, "lost the server of an upload");
        self.stats.server_connections_lost.add(1);
        upload.state = State::Refused;
        upload.out = Vec::new();
        if passing {
            self.clients.break_off(id); // half a reply cannot be taken back
            return Next::Over;
        }
        self.answer_error(id, &text);
        if upload.tail.is_done() {
            Next::Over
        } else {
            Next::Step
        }
    }
}
