//! A request that is too large to be held: it goes to its server as it comes, on a lease
//! ([`crate::lease`]), and nobody waits behind it.
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
    task::{Context, Poll},
};

use proto::Slot;
use tokio::time::Instant;

use crate::{
    backend::Shut,
    buffer,
    command::{self, Class, Kind},
    error,
    lease::{Exchange, Lease, Opening, Step},
    metrics::WorkerStats,
    resp::{Arg, Request, Tail},
    route::{Route, route, slot_of},
    session::{Detour, Dispatched},
    settling::passages::Passage,
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
    /// Its slot is known to be asked for, while a server takes it.
    passage: Option<Passage>,
    /// When it began, by the worker's clock.
    since: Option<u32>,
    /// When the server last did something.
    alive: Option<Instant>,
}

enum State {
    /// Nobody takes it, and the client has been told.
    Refused,
    Opening(Opening),
    /// The server takes it.
    Sending(Lease),
    /// The server has it; it answers.
    Answering(Exchange),
}

/// What comes next.
enum Next {
    /// Another step.
    Step,
    /// Nothing, until the client does something, or whoever has a deadline of its own.
    Nothing,
    /// Nothing, until the server does something.
    Server,
    /// The upload is over.
    Over,
}

impl Upload {
    /// One that goes down this lease, and counts as this, whether it may write; `head` has come already.
    pub(crate) fn new(
        opening: Opening,
        server: String,
        tail: Tail,
        head: &[u8],
        counts: (Kind, bool),
        passage: Passage,
    ) -> Self {
        let (kind, may_write) = counts;
        Self {
            state: State::Opening(opening),
            tail,
            out: head.to_vec(),
            sent: 0,
            server,
            kind,
            may_write,
            passage: Some(passage),
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
            passage: None,
            since: None,
            alive: None,
        }
    }

    /// Bytes of memory it owns.
    pub(crate) fn memory(&self) -> usize {
        self.out.capacity()
            + match &self.state {
                State::Answering(exchange) => exchange.memory(),
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
        let State::Sending(lease) = &mut self.state else {
            return Ok(true);
        };
        if self.may_write {
            lease.debt.incur();
        }
        while self.sent < self.out.len() {
            match lease.connection.socket.write(&self.out[self.sent..]) {
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

/// Where a request goes that is not whole yet and longer than [`crate::session`] holds.
enum UploadRoute {
    /// To this group, as it comes: as what it counts, and whether it may write. Its slot.
    Starts(u16, Kind, bool, Slot),
    /// Its slot is held.
    Waits,
    /// It waits for the end of a pause.
    Paused,
    /// Nowhere; the error.
    Refused(String),
    /// It has to be held until it is whole.
    Held,
}

/// What a worker does for its uploads: the session's task calls this.
impl Worker {
    /// Starts the upload of a request that is not whole after `bytes`; how many of these were taken.
    /// `None`: it is held until it is.
    pub(crate) fn begin_upload(
        &mut self,
        id: u32,
        bytes: &[u8],
        args: &[Arg],
    ) -> Option<(usize, Dispatched)> {
        let session = self.clients.session(id);
        let (taken, tail) = session.progress.tail(bytes.len(), &self.serving.limits);
        let declared = session.progress.declared();
        let argc = session.progress.argc(args.len());
        let request = Request::new(bytes, args);
        let refusal = match self.upload_route(id, &request, argc) {
            UploadRoute::Starts(group, kind, may_write, slot) => {
                let session = self.clients.session(id);
                if session.outbox.in_flight() > 0 {
                    return Some((0, Dispatched::Waits)); // it must not overtake
                }
                if let Some(opening) = self.lease(id, group) {
                    let server = self.backends.primary(group).to_string();
                    let head = &bytes[..taken];
                    let passage = self.settling.pass(slot);
                    let counts = (kind, may_write);
                    let upload = Upload::new(opening, server, tail, head, counts, passage);
                    self.begin_detour(id, Detour::Upload(upload));
                    self.stats.uploads.add(1);
                    return Some((taken, Dispatched::Done));
                }
                Some(error::NO_LEASE.to_owned())
            }
            UploadRoute::Waits if self.hold(id) == Dispatched::Waits => {
                return Some((0, Dispatched::Waits));
            }
            UploadRoute::Paused => {
                self.clients.wait(id);
                return Some((0, Dispatched::Waits));
            }
            UploadRoute::Waits => None, // for too long: it has been answered
            UploadRoute::Refused(text) => Some(text),
            UploadRoute::Held if declared <= self.serving.max_request_bytes => return None,
            UploadRoute::Held => Some(error::TOO_LARGE_TO_HOLD.to_owned()),
        };
        if let Some(text) = refusal {
            self.refuse(id, &text);
        }
        self.begin_detour(id, Detour::Upload(Upload::refused(tail)));
        Some((taken, Dispatched::Done))
    }

    /// Where a request goes of which only the first arguments are there, `argc` as declared.
    fn upload_route(&mut self, id: u32, request: &Request<'_>, argc: usize) -> UploadRoute {
        let client = &self.clients.session(id).client;
        let command = match request.argc() {
            0 => None,
            _ => command::lookup(request.arg(0)),
        };
        let Some(command) = command.filter(|command| {
            command.class == Class::Forward && command.has_one_key() && request.argc() > 1
        }) else {
            return UploadRoute::Held; // it is dealt with once it is whole
        };
        // To be queued, or refused; or the read of one that tracks: that has to go by its pipe.
        if client.is_restricted() || (client.tracking.is_some() && !command.may_write()) {
            return UploadRoute::Held;
        }
        if !command.accepts(argc) {
            return UploadRoute::Refused(error::arity_of(command));
        }
        let Some(topology) = &self.topology else {
            return UploadRoute::Refused(error::NO_TOPOLOGY.to_owned());
        };
        if self.pause.is_some_and(|pause| pause.holds(command, None)) {
            return UploadRoute::Paused;
        }
        if self.settling.touched.is_attentive() {
            let database = client.database;
            let touched = &mut self.settling.touched;
            touched.see(command, request, database, topology, &self.proxy.scripts);
        }
        match route(command, request, topology) {
            Route::Forward(group) => {
                let slot = slot_of(command, request).expect("it was routed by its one key");
                UploadRoute::Starts(group, command.kind(), command.may_write(), slot)
            }
            Route::Hold => UploadRoute::Waits,
            Route::Reject(why) => UploadRoute::Refused(error::rejection(why).to_owned()),
            Route::Local(_)
            | Route::Crew(_)
            | Route::PubSub(_)
            | Route::Tracking
            | Route::Block(..)
            | Route::Elements(_)
            | Route::Split(_)
            | Route::Everywhere(_)
            | Route::Across(_)
            | Route::Transaction(_)
            | Route::Replicas => UploadRoute::Held,
        }
    }

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
                Next::Nothing => return Poll::Pending,
                Next::Over => return Poll::Ready(()),
                Next::Server => {
                    let silent = self.backends.now().saturating_duration_since(alive);
                    if upload.alive == Some(alive) && silent > self.serving.server_timeout {
                        let why = format!("no reply for {:?}", self.serving.server_timeout);
                        let why = Shut::Down(why);
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

    fn upload_opened(&mut self, id: u32, upload: &mut Upload, opened: Result<Lease, Shut>) -> Next {
        match opened {
            Ok(lease) => {
                upload.state = State::Sending(lease);
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
            Poll::Pending => Next::Nothing,
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
        let State::Sending(lease) = &upload.state else {
            unreachable!("it is being sent")
        };
        let next = match sent {
            Err(e) => return self.upload_lost(id, upload, &e.into()),
            Ok(false) => match lease.connection.socket.poll_writable(cx, || false) {
                Poll::Ready(Err(e)) => return self.upload_lost(id, upload, &e.into()),
                Poll::Ready(Ok(())) | Poll::Pending => Next::Server,
            },
            Ok(true) if upload.tail.is_done() => {
                let State::Sending(lease) = mem::replace(&mut upload.state, State::Refused) else {
                    unreachable!("it is being sent")
                };
                upload.out = Vec::new();
                let exchange = Exchange::sent(lease, self.serving.server_timeout, upload.may_write);
                upload.state = State::Answering(exchange);
                return Next::Step;
            }
            Ok(true) => {
                upload.alive = Some(now); // it is not the server that is waited for
                self.poll_rest(id, upload, client, cx)
            }
        };
        match next {
            Next::Nothing | Next::Server => self.poll_early(id, upload, cx, next),
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
        let State::Sending(lease) = &upload.state else {
            return next;
        };
        let mut said = [0; 512];
        let why = match lease.connection.socket.poll_read(cx, &mut said) {
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
        self.upload_lost(id, upload, &Shut::Down(why))
    }

    fn poll_answer(&mut self, id: u32, upload: &mut Upload, cx: &mut Context<'_>) -> Next {
        let State::Answering(exchange) = &mut upload.state else {
            unreachable!("it is being answered")
        };
        match self.poll_exchange(id, exchange, cx, |_| false) {
            Poll::Pending => return Next::Nothing,
            Poll::Ready(Step::Again) => return Next::Step,
            Poll::Ready(Step::Done(lease)) => {
                self.leases.give(lease, self.backends.now());
                let micros = self.clock.micros();
                let took = micros.wrapping_sub(upload.since.unwrap_or(micros));
                self.stats.latency[upload.kind as usize].record(took);
            }
            Poll::Ready(Step::Failed(failure)) => {
                self.exchange_failed(id, &upload.server, upload.may_write, &failure);
            }
        }
        self.taken(id);
        Next::Over
    }

    /// The server is lost before it had the whole request, or takes no more of it.
    fn upload_lost(&mut self, id: u32, upload: &mut Upload, why: &Shut) -> Next {
        self.lease_lost(&upload.server, why);
        upload.state = State::Refused;
        upload.passage = None;
        upload.out = Vec::new();
        let text = why.error(&upload.server);
        self.answer_error(id, &text);
        if upload.tail.is_done() {
            Next::Over
        } else {
            Next::Step
        }
    }
}
