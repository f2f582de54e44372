//! One client connection: bytes in, requests out; replies in, bytes out, in order.
//!
//! A session's task reads when there is something to read, and takes every whole request that has
//! arrived: finds its end ([`crate::resp`]), what it is ([`crate::command`]) and where it goes
//! ([`crate::route`]), and hands it to a pipe ([`crate::backend`]) or answers it
//! ([`crate::local`]). It never waits for a reply: replies come to [`Clients::deliver`] whenever a
//! backend has them, and are put in order by the session's [`Outbox`]. All sessions that have
//! something to say are written to once, at the end of the turn.
//!
//! Back-pressure is not reading: a session with too many requests under way, or too many bytes that
//! its client does not take, or a request that cannot go anywhere yet (its slot is held, its pipe is
//! full), **stalls** until that has changed. Nothing is closed for being slow.
//!
//! Invariant: each request takes exactly one number of the outbox, and gets exactly one reply.

use std::{
    io,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use slab::Slab;
use tokio::time::Instant;

use crate::{
    backend::{Pending, Recipient, Refusal},
    buffer,
    client::Client,
    command::{self, Command, Split},
    error,
    fanout::{Fanouts, Outcome, Part},
    local::{self, After},
    outbox::Outbox,
    resp::{
        Arg, Limits, Progress, Request, Scanned, put_bulk, put_error, put_header, split_inline,
    },
    route::{Route, route},
    socket::Socket,
    worker::Worker,
};

/// How long a request may wait for its held slot; then it is answered with -TRYAGAIN.
const HOLD_MAX: Duration = Duration::from_secs(2);

/// See the module.
pub(crate) struct Session {
    socket: Rc<Socket>,
    client: Client,
    /// Bytes that are not taken yet: a request that is not whole, or that waits.
    input: Vec<u8>,
    /// How far the scan of the first request in `input` has come, and the arguments it found.
    progress: Progress,
    args: Vec<Arg>,
    outbox: Outbox,
    phase: Phase,
    /// Not reading: something has to change first.
    stalled: bool,
    /// Since when the first request in `input` waits for its held slot.
    held_since: Option<Instant>,
    /// It is among [`Clients::held`].
    in_held: bool,
    /// Has replies that this turn has not flushed yet.
    dirty: bool,
    /// The socket takes no more for now; the session's task waits until it does.
    blocked: bool,
    /// Of the session's task.
    waker: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Serving,
    /// Reads no more; ends once all replies are sent.
    Finishing,
    /// The client cannot be reached; the task ends at once.
    Broken,
    /// The task has ended; what is still under way is dropped when it comes.
    Gone,
}

impl Session {
    pub(crate) fn new(socket: Socket, client: Client) -> Self {
        Self {
            socket: Rc::new(socket),
            client,
            input: Vec::new(),
            progress: Progress::default(),
            args: Vec::new(),
            outbox: Outbox::default(),
            phase: Phase::Serving,
            stalled: false,
            held_since: None,
            in_held: false,
            dirty: false,
            blocked: false,
            waker: None,
        }
    }

    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// All that was asked has been answered and sent.
    fn is_idle(&self) -> bool {
        self.outbox.in_flight() == 0 && self.outbox.buffered() == 0 && self.input.is_empty()
    }

    /// Sends what is ready. `false`: the socket takes no more for now.
    fn flush(&mut self) -> io::Result<(usize, bool)> {
        let mut sent = 0;
        while !self.outbox.unsent().is_empty() {
            match self.socket.write(self.outbox.unsent()) {
                Ok(len) => {
                    sent += len;
                    self.outbox.mark_sent(len);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok((sent, false)),
                Err(e) => return Err(e),
            }
        }
        Ok((sent, true))
    }
}

/// The sessions of a worker, and the fan-outs their requests are part of.
#[derive(Default)]
pub(crate) struct Clients {
    sessions: Slab<Session>,
    pub(crate) fanouts: Fanouts,
    dirty: Vec<u32>,
    /// Sessions whose first request waits for a held slot.
    held: Vec<u32>,
    /// Bytes of replies that may wait for one client; beyond them it is closed.
    output_limit: usize,
    /// Error replies since they were last counted.
    errors: u64,
    /// Of the worker's flusher, which runs once all that is ready has been polled.
    flusher: Option<Waker>,
    flush_scheduled: bool,
}

impl Clients {
    pub(crate) fn new(output_limit: usize) -> Self {
        Self {
            output_limit,
            ..Self::default()
        }
    }

    pub(crate) fn insert(&mut self, session: Session) -> u32 {
        self.sessions.insert(session) as u32
    }

    /// Whether no client is connected; replies for those who left may still be under way.
    pub(crate) fn none_connected(&self) -> bool {
        self.sessions
            .iter()
            .all(|(_, session)| session.phase == Phase::Gone)
    }

    /// Brings the reply of a request, or of a part of one.
    #[inline]
    pub(crate) fn deliver(&mut self, pending: Pending, reply: &[u8], outcome: Outcome) {
        match pending.to {
            Recipient::Session { session, number } => {
                self.errors += u64::from(reply[0] == b'-');
                self.reply(session, number, |out| out.extend_from_slice(reply));
            }
            Recipient::Part(part) => {
                if let Some(fanout) = self.fanouts.fill(part, reply, outcome) {
                    self.reply(fanout.session, fanout.number, |out| fanout.merge(out));
                }
            }
        }
    }

    fn reply_error(&mut self, session: u32, number: u32, text: &str) {
        self.errors += 1;
        self.reply(session, number, |out| put_error(out, text));
    }

    #[inline]
    fn reply(&mut self, id: u32, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
        let session = &mut self.sessions[id as usize];
        if session.phase == Phase::Gone {
            session.outbox.fill_with(number, |_| {});
            session.outbox.discard();
            if session.outbox.in_flight() == 0 {
                self.sessions.remove(id as usize);
            }
            return;
        }
        session.outbox.fill_with(number, write);
        if session.outbox.buffered() > self.output_limit {
            tracing::warn!(
                client = session.client.id,
                "closed: it does not take its replies"
            );
            session.phase = Phase::Broken;
            session.outbox.discard();
            session.wake();
        }
        if !session.dirty {
            session.dirty = true;
            self.dirty.push(id);
        }
    }

    /// Has the flusher run at the end of this turn, if there is something to flush.
    #[inline]
    pub(crate) fn schedule_flush(&mut self) {
        if !self.flush_scheduled && !self.dirty.is_empty() {
            self.wake_flusher();
        }
    }

    #[inline]
    fn wake_flusher(&mut self) {
        self.flush_scheduled = true;
        if let Some(flusher) = &self.flusher {
            flusher.wake_by_ref();
        }
    }

    /// Wakes those who wait for a held slot: the topology has changed, or time has passed.
    pub(crate) fn retry_held(&mut self) {
        for id in std::mem::take(&mut self.held) {
            if let Some(session) = self.sessions.get_mut(id as usize) {
                session.in_held = false;
                session.wake();
            }
        }
    }

    /// Wakes everybody, to notice that the worker drains.
    pub(crate) fn wake_all(&mut self) {
        self.sessions.iter().for_each(|(_, session)| session.wake());
    }
}

/// Why the taking of requests stopped.
enum Stop {
    /// All whole requests were taken.
    NeedsMore,
    /// The next one has to wait.
    Stalled,
    /// No further one will be taken.
    Finished,
}

/// What became of one request.
enum Dispatched {
    /// It is under way, or answered.
    Done,
    /// It can go nowhere yet.
    Waits,
    /// It was the last.
    Last,
}

/// What a worker does for its sessions: their tasks call these.
impl Worker {
    /// One turn of a session's task. Ready: the session is over.
    pub(crate) fn poll_session(&mut self, id: u32, cx: &mut Context<'_>) -> Poll<()> {
        let over = self.poll_session_io(id, cx);
        if !self.clients.flush_scheduled && self.backends.is_dirty() {
            self.clients.wake_flusher();
        }
        self.clients.schedule_flush();
        over
    }

    fn poll_session_io(&mut self, id: u32, cx: &mut Context<'_>) -> Poll<()> {
        let session = &mut self.clients.sessions[id as usize];
        session.waker.get_or_insert_with(|| cx.waker().clone());
        let socket = Rc::clone(&session.socket);
        loop {
            self.poll_unblock(id, &socket, cx);
            let session = &mut self.clients.sessions[id as usize];
            match session.phase {
                Phase::Broken | Phase::Gone => return Poll::Ready(()),
                Phase::Finishing if session.outbox.in_flight() == 0 => {
                    return if session.outbox.buffered() == 0 {
                        Poll::Ready(())
                    } else {
                        Poll::Pending
                    };
                }
                Phase::Finishing => return Poll::Pending,
                Phase::Serving => {}
            }
            if session.stalled {
                if self.is_full(id) {
                    return Poll::Pending;
                }
                self.take_requests(id, &[]);
                if self.clients.sessions[id as usize].stalled {
                    return Poll::Pending;
                }
                continue;
            }
            let mut scratch = std::mem::take(&mut self.scratch);
            scratch.resize(Self::SCRATCH, 0); // of no effect, but after a panic
            let read = socket.poll_read(cx, &mut scratch);
            match read {
                Poll::Pending => {}
                // The client will send no more; it may still want its replies.
                Poll::Ready(Ok(0)) => session.phase = Phase::Finishing,
                Poll::Ready(Ok(len)) => {
                    self.stats.client_bytes_in.add(len as u64);
                    self.take_requests(id, &scratch[..len]);
                }
                Poll::Ready(Err(_)) => session.phase = Phase::Broken,
            }
            self.scratch = scratch;
            if read.is_pending() {
                let idle = self.clients.sessions[id as usize].is_idle();
                return if self.draining && idle {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                };
            }
        }
    }

    /// Sends on, if the socket had taken no more and now does.
    fn poll_unblock(&mut self, id: u32, socket: &Socket, cx: &mut Context<'_>) {
        if !self.clients.sessions[id as usize].blocked {
            return;
        }
        let unblocked = socket.poll_writable(cx, || {
            self.clients.sessions[id as usize].blocked = false;
            self.flush_session(id);
            !self.clients.sessions[id as usize].blocked
        });
        if let Poll::Ready(Err(_)) = unblocked {
            self.clients.sessions[id as usize].phase = Phase::Broken;
        }
    }

    /// Too much is under way for this client.
    fn is_full(&self, id: u32) -> bool {
        let outbox = &self.clients.sessions[id as usize].outbox;
        outbox.in_flight() >= self.serving.max_inflight
            || outbox.buffered() >= self.serving.max_output
    }

    /// Takes all whole requests from what is there and what has come.
    fn take_requests(&mut self, id: u32, new: &[u8]) {
        let session = &mut self.clients.sessions[id as usize];
        let mut input = std::mem::take(&mut session.input);
        let mut args = std::mem::take(&mut session.args);
        if args.capacity() == 0 {
            std::mem::swap(&mut args, &mut self.args);
        }
        let bytes = if input.is_empty() {
            new
        } else {
            input.extend_from_slice(new);
            &input
        };
        let (taken, stop) = self.take_from(id, bytes, &mut args);
        let rest = bytes.len() - taken;
        if input.is_empty() {
            if rest > 0 {
                buffer::ensure(&mut input).extend_from_slice(&new[taken..]);
            }
        } else if rest == 0 {
            buffer::give(&mut input);
        } else {
            input.drain(..taken);
        }
        let session = &mut self.clients.sessions[id as usize];
        session.stalled = matches!(stop, Stop::Stalled);
        match stop {
            Stop::Finished => {
                session.phase = Phase::Finishing;
                buffer::give(&mut input);
            }
            Stop::NeedsMore | Stop::Stalled => session.input = input,
        }
        if args.is_empty() {
            self.args = args;
        } else {
            session.args = args;
        }
    }

    /// Takes whole requests from `bytes`: how many bytes were taken, and why it stopped. `args` is
    /// empty, or holds the arguments of the first request that were found before.
    fn take_from(&mut self, id: u32, bytes: &[u8], args: &mut Vec<Arg>) -> (usize, Stop) {
        let mut taken = 0;
        loop {
            if self.is_full(id) {
                return (taken, Stop::Stalled);
            }
            let session = &mut self.clients.sessions[id as usize];
            let authenticated = session.client.authenticated;
            let limits = if authenticated {
                &self.serving.limits
            } else {
                &Limits::UNAUTHENTICATED
            };
            let rest = &bytes[taken..];
            let (len, dispatched) = match session.progress.scan(rest, args, limits, authenticated) {
                Ok(Scanned::Incomplete) => return (taken, Stop::NeedsMore),
                Ok(Scanned::Nothing(len)) => (len, Dispatched::Done),
                Ok(Scanned::Request(len)) => {
                    (len, self.dispatch(id, &Request::new(&rest[..len], args)))
                }
                Ok(Scanned::Inline(len)) => (len, self.dispatch_inline(id, &rest[..len])),
                Err(e) => (rest.len(), self.refuse_bytes(id, &e.to_string())),
            };
            if matches!(dispatched, Dispatched::Waits) {
                return (taken, Stop::Stalled); // what the scan found is kept
            }
            args.clear();
            self.clients.sessions[id as usize].progress = Progress::default();
            if matches!(dispatched, Dispatched::Last) {
                return (bytes.len(), Stop::Finished);
            }
            taken += len;
        }
    }

    /// Not RESP: says so, and ends the session.
    fn refuse_bytes(&mut self, id: u32, text: &str) -> Dispatched {
        self.stats.protocol_errors.add(1);
        self.answer_error(id, &format!("ERR {text}"));
        Dispatched::Last
    }

    fn dispatch_inline(&mut self, id: u32, line: &[u8]) -> Dispatched {
        let raw = match split_inline(line) {
            Ok(raw) => raw,
            Err(e) => return self.refuse_bytes(id, &e.to_string()),
        };
        let mut args = Vec::new();
        let authenticated = self.clients.sessions[id as usize].client.authenticated;
        match Progress::default().scan(&raw, &mut args, &self.serving.limits, authenticated) {
            Ok(_) => self.dispatch(id, &Request::new(&raw, &args)),
            Err(e) => self.refuse_bytes(id, &e.to_string()),
        }
    }

    /// Sends one request on its way.
    fn dispatch(&mut self, id: u32, request: &Request<'_>) -> Dispatched {
        let name = request.arg(0);
        let client = &mut self.clients.sessions[id as usize].client;
        if let Some(error) = client.refuse_transaction(name) {
            return self.answer_error(id, error);
        }
        let Some(command) = command::lookup(name) else {
            // A browser that was made to talk to a Redis port; Redis ends it the same way.
            if name.eq_ignore_ascii_case(b"POST") || name.eq_ignore_ascii_case(b"HOST:") {
                return Dispatched::Last;
            }
            return self.answer_error(id, &error::unknown_command(request));
        };
        if !command.accepts(request.argc()) {
            return self.answer_error(id, &error::arity(command.name));
        }
        let session = &self.clients.sessions[id as usize];
        if !session.client.authenticated && command.flags & command::flag::NO_AUTH == 0 {
            return self.answer_error(id, error::NO_AUTH);
        }
        let route = match (&self.topology, command.class) {
            (Some(topology), _) => route(command, request, topology),
            (None, command::Class::Local(local)) => Route::Local(local),
            (None, _) => return self.answer_error(id, error::NO_TOPOLOGY),
        };
        match route {
            Route::Local(local) => self.answer_local(id, local, request),
            Route::Forward(group) => self.forward(id, command, request, group),
            Route::Split(split) => self.split(id, command, split, request),
            Route::Hold => self.hold(id),
            Route::Reject(why) => self.answer_error(id, error::rejection(why)),
        }
    }

    fn forward(
        &mut self,
        id: u32,
        command: &Command,
        request: &Request<'_>,
        group: u16,
    ) -> Dispatched {
        let Self {
            clients, backends, ..
        } = self;
        let session = &mut clients.sessions[id as usize];
        let pipe = backends.pipe(group, session.client.protocol, session.client.database);
        let waker = session
            .waker
            .as_ref()
            .expect("set when the task was first polled");
        match backends.admit(pipe, waker) {
            Ok(()) => {}
            Err(Refusal::Full) => return Dispatched::Waits,
            Err(Refusal::Down(why)) => return self.answer_error(id, &why),
        }
        backends.output(pipe).extend_from_slice(request.raw());
        let number = session.outbox.reserve();
        let to = Recipient::Session {
            session: id,
            number,
        };
        backends.expect(
            pipe,
            Pending {
                to,
                may_write: command.may_write(),
            },
        );
        self.taken(id);
        Dispatched::Done
    }

    /// Sends each group one request for those of the keys that it owns.
    fn split(
        &mut self,
        id: u32,
        command: &Command,
        split: Split,
        request: &Request<'_>,
    ) -> Dispatched {
        let values = if split == Split::Mset { 2 } else { 1 };
        if !(request.argc() - 1).is_multiple_of(values) {
            return self.answer_error(id, &error::arity(command.name));
        }
        let Self {
            clients,
            backends,
            topology,
            ..
        } = self;
        let topology = topology.as_ref().expect("a route was made from it");
        let session = &mut clients.sessions[id as usize];
        // Which part each key belongs to; a part is a group that owns some.
        let mut parts: Vec<(u16, usize)> = Vec::new();
        let mut part_of_key = Vec::with_capacity((request.argc() - 1) / values);
        command.visit_keys(request, |index| {
            let slot = proto::Slot::of_key(request.arg(index));
            let group = topology.route(slot).group.expect("routed to an owner");
            let part = parts
                .iter()
                .position(|part| part.0 == group)
                .unwrap_or_else(|| {
                    parts.push((group, 0));
                    parts.len() - 1
                });
            parts[part].1 += 1;
            part_of_key.push(part as u16);
        });
        let waker = session
            .waker
            .as_ref()
            .expect("set when the task was first polled");
        let mut pipes = Vec::with_capacity(parts.len());
        for &(group, _) in &parts {
            let pipe = backends.pipe(group, session.client.protocol, session.client.database);
            // Nothing has been sent yet: if one part cannot be, none is.
            match backends.admit(pipe, waker) {
                Ok(()) => pipes.push(pipe),
                Err(Refusal::Full) => return Dispatched::Waits,
                Err(Refusal::Down(why)) => return self.answer_error(id, &why),
            }
        }
        for (&pipe, &(_, keys)) in pipes.iter().zip(&parts) {
            let out = backends.output(pipe);
            put_header(out, b'*', 1 + keys * values);
            put_bulk(out, request.arg(0));
        }
        for (key, &part) in part_of_key.iter().enumerate() {
            let out = backends.output(pipes[usize::from(part)]);
            for value in 0..values {
                put_bulk(out, request.arg(1 + key * values + value));
            }
        }
        let may_write = command.may_write();
        let number = session.outbox.reserve();
        let count = parts.len() as u16;
        let fanout = clients
            .fanouts
            .start(id, number, split, may_write, part_of_key, count);
        for (index, pipe) in pipes.into_iter().enumerate() {
            let part = Part {
                fanout,
                index: index as u16,
            };
            backends.expect(
                pipe,
                Pending {
                    to: Recipient::Part(part),
                    may_write,
                },
            );
        }
        self.stats.requests_split.add(1);
        self.taken(id);
        Dispatched::Done
    }

    /// Lets the session wait for the next topology, but not for ever.
    fn hold(&mut self, id: u32) -> Dispatched {
        let session = &mut self.clients.sessions[id as usize];
        let since = match session.held_since {
            Some(since) => since,
            None => {
                self.stats.requests_held.add(1);
                *session.held_since.insert(Instant::now())
            }
        };
        if since.elapsed() >= HOLD_MAX {
            return self.answer_error(id, error::HELD_TOO_LONG);
        }
        if !std::mem::replace(&mut session.in_held, true) {
            self.clients.held.push(id);
        }
        Dispatched::Waits
    }

    fn answer_local(
        &mut self,
        id: u32,
        local: command::Local,
        request: &Request<'_>,
    ) -> Dispatched {
        let session = &mut self.clients.sessions[id as usize];
        // What follows takes another pipe, which could overtake what is under way on this one.
        if local.changes_pipe() && session.outbox.in_flight() > 0 {
            return Dispatched::Waits;
        }
        let mut context = local::Context {
            client: &mut session.client,
            serving: &self.serving,
            proxy: &self.proxy,
            topology: self.topology.as_deref(),
        };
        let mut reply = Vec::new();
        let after = local::answer(local, &mut context, request, buffer::ensure(&mut reply));
        let number = session.outbox.reserve();
        let to = Recipient::Session {
            session: id,
            number,
        };
        self.clients.deliver(
            Pending {
                to,
                may_write: false,
            },
            &reply,
            Outcome::Answered,
        );
        buffer::give(&mut reply);
        self.stats.requests_local.add(1);
        self.taken(id);
        match after {
            After::Stay => Dispatched::Done,
            After::Finish => Dispatched::Last,
        }
    }

    fn answer_error(&mut self, id: u32, text: &str) -> Dispatched {
        let number = self.clients.sessions[id as usize].outbox.reserve();
        self.clients.reply_error(id, number, text);
        self.taken(id);
        Dispatched::Done
    }

    /// A request has taken its number: it waits no more.
    #[inline]
    fn taken(&mut self, id: u32) {
        self.clients.sessions[id as usize].held_since = None;
        self.stats.requests.add(1);
    }

    /// Ready once something was written that is to be flushed.
    pub(crate) fn poll_flush_wanted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.clients
            .flusher
            .get_or_insert_with(|| cx.waker().clone());
        if self.clients.flush_scheduled {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Once in a turn: everything that was written goes out, servers first, each in the order in
    /// which it was first written to.
    pub(crate) fn flush(&mut self) {
        self.clients.flush_scheduled = false;
        self.backends.flush(&self.stats);
        let mut dirty = std::mem::take(&mut self.clients.dirty);
        for id in dirty.drain(..) {
            self.flush_session(id);
        }
        self.clients.dirty = dirty;
        self.stats
            .errors
            .add(std::mem::take(&mut self.clients.errors));
    }

    fn flush_session(&mut self, id: u32) {
        let Some(session) = self.clients.sessions.get_mut(id as usize) else {
            return;
        };
        session.dirty = false;
        if session.blocked || matches!(session.phase, Phase::Broken | Phase::Gone) {
            return;
        }
        match session.flush() {
            Ok((sent, emptied)) => {
                self.stats.client_bytes_out.add(sent as u64);
                session.blocked = !emptied;
            }
            Err(_) => session.phase = Phase::Broken,
        }
        // Its task has something to do if it could not send, waits to end, or may read again.
        let may_end = session.phase != Phase::Serving || (self.draining && session.is_idle());
        if session.blocked || may_end || session.stalled {
            session.wake();
        }
    }

    /// The session's task has ended, in whatever way.
    pub(crate) fn close_session(&mut self, id: u32) {
        let session = &mut self.clients.sessions[id as usize];
        session.phase = Phase::Gone;
        session.waker = None;
        session.outbox.discard();
        buffer::give(&mut session.input);
        session.socket.close();
        if session.outbox.in_flight() == 0 {
            self.clients.sessions.remove(id as usize);
        }
    }
}
