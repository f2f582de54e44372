//! One client connection: bytes in, requests out; replies in, bytes out, in order.
//!
//! A session's task reads when there is something to read, and takes every whole request that has
//! arrived: finds its end ([`crate::resp`]), what it is ([`crate::command`]) and where it goes
//! ([`crate::route`]), and hands it to a pipe ([`crate::backend`]) or answers it
//! ([`crate::local`]). It never waits for a reply: replies come to [`Clients::deliver`] whenever a
//! backend has them, and are put in order by the session's [`Outbox`]. All sessions that have
//! something to say are written to once, at the end of the turn. A request too large to be held goes
//! its own way ([`crate::upload`]), and so does one that others must not share a connection with
//! ([`crate::lease`]); meanwhile the session does nothing else.
//!
//! Back-pressure is not reading: a session with too many requests under way, or too many bytes that
//! its client does not take or that will probably come, or a request that cannot go anywhere yet (its
//! slot is held, its pipe is full), **stalls** until that has changed. Who is closed is not slow, but
//! stands still ([`ending`]), or holds most where memory ends ([`crate::memory`]).
//!
//! Invariant: each request takes exactly one number of the outbox, and gets exactly one reply.

use std::{
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    backend::{Hearing, Lane, Refusal, Way},
    buffer,
    client::Client,
    command::{self, Across, Bound, Class, Command, Kind},
    error,
    lease::watch::Watch,
    local::{self, After},
    memory::Pressure,
    outbox::{Outbox, Wanted},
    resp::{Arg, Limits, Progress, ProtocolError, Request, Scanned, split_inline},
    route::{Route, route},
    socket::Socket,
    worker::{self, Worker},
};

mod across;
mod busy;
mod calls;
mod clients;
mod dbsize;
mod detour;
mod ending;
mod erasure;
mod flush;
mod parts;
mod roll;

pub(crate) use across::{Inquired, Inquiry};
pub(crate) use clients::Clients;
pub(crate) use detour::Detour;
pub(crate) use parts::Splitting;

/// How long a request waits at most for what passes by itself; then it is answered with -TRYAGAIN. For a
/// held slot it may be longer, see [`crate::config::Args::hold_patience`].
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(2);
/// A session reads so often in one turn at most: then the others have their turn.
const READS: usize = 2;
/// And so much at once, but in the middle of a larger request: a burst of small ones takes long.
const READ: usize = 32 * 1024;
/// A request that is longer is not held, if it can go to its server as it comes.
const UPLOAD: usize = 1 << 20;
/// Replies of this size count as large where memory is tight.
const LARGE_REPLY: u32 = 16 * 1024;
/// With replies of this size on average, a session's requests go by the bulk pipes, where they hold up
/// nobody else's.
const BULK_REPLY: u32 = 32 * 1024;
/// No reply has come yet, by which to know what the next ones weigh.
const UNKNOWN: u32 = u32::MAX;
/// What the first reply to a session weighs at least, for all that is known.
const FIRST_REPLY: u32 = 256 * 1024;

/// What a session costs when it holds nothing: itself, its task, its socket's registration.
const COST: usize = 1536;

/// See the module.
pub(crate) struct Session {
    socket: Rc<Socket>,
    pub(crate) client: Client,
    /// Bytes that are not taken yet: a request that is not whole, or that waits.
    pub(crate) input: Vec<u8>,
    /// How far the scan of the first request in `input` has come, and the arguments it found.
    pub(crate) progress: Progress,
    args: Vec<Arg>,
    pub(crate) outbox: Outbox,
    /// What it does instead of taking requests.
    pub(crate) detour: Option<Box<Detour>>,
    pub(crate) watch: Option<Box<Watch>>,
    phase: Phase,
    /// Not reading: something has to change first.
    pub(crate) stalled: bool,
    /// It is among [`Clients::waiting`].
    is_waiting: bool,
    /// Has replies that this turn has not flushed yet.
    dirty: bool,
    /// The socket takes no more for now; the session's task waits until it does.
    blocked: bool,
    /// So much waits for it that no pipe should bring it more.
    overfull: bool,
    /// Its requests go by the bulk pipes: its replies are large, or nobody knows yet.
    bulk: bool,
    /// They go by the pipes of scripts: it has called one, and not all has been answered since.
    scripts: bool,
    /// Since when the first request in `input` waits for its held slot, or for the next tick.
    pub(crate) held_since: Option<Instant>,
    /// When it last sent or took bytes, and when the request in `input` began; in the worker's seconds.
    pub(crate) active: u32,
    began: u32,
    /// What its replies weigh, times eight: a running mean. [`UNKNOWN`]: none has come yet.
    mean: u32,
    /// Bytes of the reply that comes in pieces.
    pieces: u32,
    /// What the replies under way will weigh.
    expected: usize,
    /// What it asked for last.
    last: Option<&'static Command>,
    /// Bytes of the parts of its fan-outs.
    fanned: usize,
    /// Bytes it was last counted with.
    counted: usize,
    /// Of the session's task.
    waker: Option<Waker>,
}

// Ten thousand clients are ten thousand of these.
const _: () = assert!(size_of::<Session>() <= 448);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Serving,
    /// Reads no more; ends once all replies are sent.
    Finishing,
    /// The client cannot be reached, or is to be; the task ends at once.
    Broken,
    /// The task has ended; what is still under way is dropped when it comes.
    Gone,
}

impl Session {
    pub(crate) fn new(socket: Socket, client: Client, worker: &Worker) -> Self {
        Self {
            socket: Rc::new(socket),
            client,
            input: Vec::new(),
            progress: Progress::default(),
            args: Vec::new(),
            outbox: Outbox::default(),
            detour: None,
            watch: None,
            phase: Phase::Serving,
            stalled: false,
            is_waiting: false,
            dirty: false,
            blocked: false,
            overfull: false,
            bulk: true,
            scripts: false,
            held_since: None,
            active: worker.seconds,
            began: worker.seconds,
            mean: UNKNOWN,
            pieces: 0,
            expected: 0,
            last: None,
            fanned: 0,
            counted: 0,
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
        self.outbox.in_flight() == 0
            && self.outbox.buffered() == 0
            && self.input.is_empty()
            && self.detour.is_none()
    }

    pub(crate) fn is_serving(&self) -> bool {
        self.phase == Phase::Serving
    }

    /// Reads no more; ends once all replies are sent.
    pub(crate) fn finish(&mut self) {
        self.phase = Phase::Finishing;
    }

    /// Back to how a connection starts, as RESET says.
    pub(crate) fn reset(&mut self, authenticated: bool) {
        self.client.reset(authenticated);
        self.outbox.want(Wanted::All);
    }

    /// What wakes its task.
    fn task(&self) -> &Waker {
        self.waker
            .as_ref()
            .expect("set when the task was first polled")
    }

    /// What one more reply will probably weigh. Until the first has come it could be anything, so that
    /// few of a client's requests go out before.
    #[inline]
    fn weight(&self) -> u32 {
        if self.mean == UNKNOWN {
            FIRST_REPLY
        } else {
            self.mean / 8
        }
    }

    /// Whether its requests should go by the bulk pipes.
    #[inline]
    fn is_bulky(&self) -> bool {
        // Once it does it stays longer, so that it does not go to and fro.
        self.weight()
            >= if self.bulk {
                BULK_REPLY / 2
            } else {
                BULK_REPLY
            }
    }

    /// A reply has come, of so many bytes.
    #[inline]
    fn learn(&mut self, bytes: u32) {
        let bytes = bytes.min(u32::MAX / 16);
        self.mean = if self.mean == UNKNOWN {
            8 * bytes
        } else {
            self.mean - self.mean / 8 + bytes
        };
    }

    /// Its pipe, among those to a server. It changes only while nothing is under way, so that no request
    /// overtakes another.
    #[inline]
    fn way(&mut self, id: u32) -> Way {
        if self.outbox.in_flight() == 0 {
            self.bulk = self.is_bulky();
            self.scripts = false;
        }
        let lane = match self.hearing() {
            Some(Hearing::Shared) if self.scripts => Lane::Hearing(Hearing::Scripts),
            Some(hearing) => Lane::Hearing(hearing),
            None if self.scripts => Lane::Scripts { bulk: self.bulk },
            None if self.bulk => Lane::Bulk,
            None => Lane::Usual(id),
        };
        Way {
            lane,
            ..self.client.way()
        }
    }

    /// The pipe for a script. `None`: what is under way on another has to be answered first.
    fn script_way(&mut self, id: u32) -> Option<Way> {
        let way = self.way(id);
        let lane = match way.lane {
            Lane::Scripts { .. } | Lane::Hearing(Hearing::Scripts) => return Some(way),
            // Nobody else has those.
            Lane::Hearing(Hearing::Own(_) | Hearing::Broadcast(_)) => return Some(way),
            Lane::Usual(_) | Lane::Bulk => Lane::Scripts { bulk: self.bulk },
            Lane::Hearing(Hearing::Shared) => Lane::Hearing(Hearing::Scripts),
        };
        if self.outbox.in_flight() > 0 {
            return None;
        }
        self.scripts = true;
        Some(Way { lane, ..way })
    }

    /// What the pipes of its requests hear of, if anything.
    #[inline]
    fn hearing(&self) -> Option<Hearing> {
        self.client.tracking.as_ref()?.hearing()
    }

    /// The pipes of its own that hear of all changes.
    pub(crate) fn broadcast_way(&self) -> Option<Way> {
        let hearing = self.client.tracking.as_ref()?.own_broadcast()?;
        Some(Way {
            lane: Lane::Hearing(hearing),
            ..self.client.way()
        })
    }

    /// Nobody is there for it any more.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Broken | Phase::Gone)
    }

    fn memory(&self) -> usize {
        COST + self.input.capacity()
            + self.args.capacity() * size_of::<Arg>()
            + self.outbox.memory()
            + self.fanned
            + self.detour.as_ref().map_or(0, |detour| detour.memory())
            + self.watch.as_ref().map_or(0, |_| size_of::<Watch>())
            + self
                .client
                .tracking
                .as_ref()
                .map_or(0, |tracking| tracking.memory())
            + self
                .client
                .transaction
                .as_ref()
                .map_or(0, |transaction| transaction.memory())
            + self
                .client
                .subscriptions
                .as_ref()
                .map_or(0, |subscriptions| subscriptions.memory())
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
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dispatched {
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
        self.schedule_flush();
        over
    }

    /// Has the flusher run at the end of this turn, if there is something for it.
    #[inline]
    pub(crate) fn schedule_flush(&mut self) {
        if !self.clients.flush_scheduled && self.backends.is_dirty() {
            self.clients.wake_flusher();
        }
        self.clients.schedule_flush();
    }

    fn poll_session_io(&mut self, id: u32, cx: &mut Context<'_>) -> Poll<()> {
        let session = &mut self.clients.sessions[id as usize];
        session.waker.get_or_insert_with(|| cx.waker().clone());
        let socket = Rc::clone(&session.socket);
        for _ in 0..READS {
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
            if let Some(mut detour) = session.detour.take() {
                let done = self.poll_detour(id, &mut detour, &socket, cx);
                let session = &mut self.clients.sessions[id as usize];
                session.began = self.seconds; // what has come meanwhile is looked at only now
                if done.is_pending() {
                    session.detour = Some(detour);
                    self.clients.recount(id);
                    return Poll::Pending;
                }
                session.held_since = None; // what comes next has not waited yet
                self.tell_unheard(id);
                continue;
            }
            if session.stalled {
                let input = session.input.len();
                if self.is_full(id, input) {
                    return Poll::Pending;
                }
                self.micros = self.clock.micros();
                self.take_requests(id, &[]);
                let session = &self.clients.sessions[id as usize];
                if session.stalled && session.detour.is_none() {
                    return Poll::Pending;
                }
                continue;
            }
            let most = if session.input.is_empty() {
                READ
            } else {
                Self::SCRATCH
            };
            let read = self.poll_read(id, &socket, cx, most, |worker, bytes| {
                worker.micros = worker.clock.micros();
                worker.take_requests(id, bytes);
            });
            if read.is_pending() {
                let idle = self.clients.sessions[id as usize].is_idle();
                return if self.draining && idle {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                };
            }
        }
        worker::yield_turn(cx);
        Poll::Pending
    }

    /// Reads once, up to `most` bytes; `take` gets them. Once the client will send no more, the session
    /// finishes.
    pub(crate) fn poll_read(
        &mut self,
        id: u32,
        socket: &Socket,
        cx: &mut Context<'_>,
        most: usize,
        take: impl FnOnce(&mut Self, &[u8]),
    ) -> Poll<()> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(Self::SCRATCH, 0); // of no effect, but after a panic
        let read = socket.poll_read(cx, &mut scratch[..most]);
        match read {
            Poll::Pending => {}
            // It may still want its replies.
            Poll::Ready(Ok(0)) => self.clients.session(id).phase = Phase::Finishing,
            Poll::Ready(Ok(len)) => {
                self.stats.client_bytes_in.add(len as u64);
                self.clients.session(id).active = self.seconds;
                take(self, &scratch[..len]);
            }
            Poll::Ready(Err(_)) => self.clients.session(id).phase = Phase::Broken,
        }
        self.scratch = scratch;
        read.map(|_| ())
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

    /// Too much is under way for this client, of whose requests `input` bytes are held. It is looked at
    /// again when something was sent to it.
    fn is_full(&mut self, id: u32, input: usize) -> bool {
        let session = &self.clients.sessions[id as usize];
        let in_flight = session.outbox.in_flight();
        let expected = session.expected;
        if in_flight >= self.serving.max_inflight
            || (in_flight > 0 && expected >= self.serving.max_inflight_bytes)
            || (in_flight > 0 && session.is_bulky() != session.bulk)
        {
            return true;
        }
        let buffered = session.outbox.buffered();
        // One with large replies may have asked for many, which it does not take: those already there
        // are enough. One with small ones may write all its requests before it reads the first reply.
        if buffered >= self.serving.output_limit / 2
            || (session.bulk && buffered >= self.serving.max_inflight_bytes)
        {
            return true;
        }
        // One that waits must not be what memory is short of.
        let waits = (session.weight() >= LARGE_REPLY && input < LARGE_REPLY as usize)
            || buffered >= LARGE_REPLY as usize;
        if waits && self.clients.account.pressure() != Pressure::None {
            self.clients.wait(id);
            return true;
        }
        false
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
                self.clients.sessions[id as usize].began = self.seconds;
            }
        } else if rest == 0 {
            buffer::give(&mut input);
        } else {
            input.drain(..taken);
            if taken > 0 {
                self.clients.sessions[id as usize].began = self.seconds;
            }
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
        if session.input.capacity() + session.args.capacity() > 0 || session.counted > COST {
            self.clients.recount(id);
        }
    }

    /// Takes whole requests from `bytes`: how many bytes were taken, and why it stopped. `args` is
    /// empty, or holds the arguments of the first request that were found before.
    fn take_from(&mut self, id: u32, bytes: &[u8], args: &mut Vec<Arg>) -> (usize, Stop) {
        let mut taken = 0;
        loop {
            if self.is_full(id, bytes.len() - taken) {
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
                Ok(Scanned::Incomplete) => {
                    let declared = session.progress.declared();
                    if rest.len().max(declared) <= UPLOAD.min(self.serving.max_request_bytes) {
                        return (taken, Stop::NeedsMore);
                    }
                    match self.begin_upload(id, rest, args) {
                        None => return (taken, Stop::NeedsMore),
                        Some((len, dispatched)) => (len, dispatched),
                    }
                }
                Ok(Scanned::Nothing(len)) => (len, Dispatched::Done),
                Ok(Scanned::Request(len)) => {
                    (len, self.dispatch(id, &Request::new(&rest[..len], args)))
                }
                Ok(Scanned::Inline(len)) => (len, self.dispatch_inline(id, &rest[..len])),
                Err(e) => (rest.len(), self.refuse_bytes(id, &e)),
            };
            if dispatched == Dispatched::Waits {
                return (taken, Stop::Stalled); // what the scan found is kept
            }
            args.clear();
            let session = &mut self.clients.sessions[id as usize];
            session.progress = Progress::default();
            if dispatched == Dispatched::Last {
                return (bytes.len(), Stop::Finished);
            }
            taken += len;
            if session.detour.is_some() {
                return (taken, Stop::Stalled); // what follows belongs to it
            }
        }
    }

    /// Not RESP: says so, and ends the session.
    pub(crate) fn refuse_bytes(&mut self, id: u32, error: &ProtocolError) -> Dispatched {
        self.stats.protocol_errors.add(1);
        self.answer_error(id, &error::protocol(error));
        Dispatched::Last
    }

    fn dispatch_inline(&mut self, id: u32, line: &[u8]) -> Dispatched {
        let raw = match split_inline(line) {
            Ok(raw) => raw,
            Err(e) => return self.refuse_bytes(id, &e),
        };
        let mut args = Vec::new();
        let authenticated = self.clients.sessions[id as usize].client.authenticated;
        match Progress::default().scan(&raw, &mut args, &self.serving.limits, authenticated) {
            Ok(_) => self.dispatch(id, &Request::new(&raw, &args)),
            Err(e) => self.refuse_bytes(id, &e),
        }
    }

    fn dispatch(&mut self, id: u32, request: &Request<'_>) -> Dispatched {
        if self.clients.sessions[id as usize].client.tracking.is_some() {
            return self.dispatch_tracked(id, request);
        }
        self.dispatch_untracked(id, request)
    }

    /// Of a session that tracks what it reads.
    #[cold]
    fn dispatch_tracked(&mut self, id: u32, request: &Request<'_>) -> Dispatched {
        if let Some(dispatched) = self.track_request(id, request) {
            return dispatched;
        }
        let dispatched = self.dispatch_untracked(id, request);
        if dispatched != Dispatched::Waits {
            self.request_tracked(id, request);
        }
        dispatched
    }

    /// Sends one request on its way.
    #[inline(always)] // a call for each request would cost 30 instructions
    fn dispatch_untracked(&mut self, id: u32, request: &Request<'_>) -> Dispatched {
        let name = request.arg(0);
        let Some(command) = command::find(request) else {
            // A browser that was made to talk to a Redis port; Redis ends it the same way.
            if name.eq_ignore_ascii_case(b"POST") || name.eq_ignore_ascii_case(b"HOST:") {
                return Dispatched::Last;
            }
            return self.refuse_unknown(id, request);
        };
        if !command.accepts(request.argc()) {
            return self.refuse_arity(id, command);
        }
        let session = &mut self.clients.sessions[id as usize];
        session.last = Some(command);
        let client = &session.client;
        if !client.authenticated && command.flags & command::flag::NO_AUTH == 0 {
            return self.answer_error(id, error::NO_AUTH);
        }
        if self.attentive {
            return self.dispatch_attentively(id, command, request);
        }
        self.dispatch_plainly(id, command, request)
    }

    /// While there is a pause, or a monitor, or a slot is copied.
    #[cold]
    fn dispatch_attentively(
        &mut self,
        id: u32,
        command: &'static Command,
        request: &Request<'_>,
    ) -> Dispatched {
        let queued = self.clients.sessions[id as usize]
            .client
            .transaction
            .as_deref();
        if self.pause.is_some_and(|pause| pause.holds(command, queued)) {
            self.clients.wait(id);
            return Dispatched::Waits;
        }
        if self.settling.touched.is_attentive() {
            self.see_touched(id, command, request);
        }
        if self.monitors.is_empty() {
            self.dispatch_plainly(id, command, request)
        } else {
            self.dispatch_watched(id, command, request)
        }
    }

    /// Sends one request on its way that its session may call, and nobody else has to do with.
    #[inline(always)] // as above
    pub(crate) fn dispatch_plainly(
        &mut self,
        id: u32,
        command: &'static Command,
        request: &Request<'_>,
    ) -> Dispatched {
        let client = &self.clients.sessions[id as usize].client;
        if client.is_restricted()
            && let Some(dispatched) = self.restrict(id, command, request)
        {
            return dispatched;
        }
        let route = match (&self.topology, command.class) {
            (Some(topology), _) => route(command, request, topology),
            (None, Class::Local(local) | Class::Container(Some(local))) => Route::Local(local),
            (None, Class::Crew(what)) => Route::Crew(what),
            (None, Class::Tracking) => Route::Tracking,
            (None, Class::Transaction(bound)) => Route::Transaction(bound),
            (None, Class::Across(Across::Info)) => Route::Across(Across::Info),
            (None, _) => return self.answer_error(id, error::NO_TOPOLOGY),
        };
        match route {
            Route::Local(local) => self.answer_local(id, local, request),
            Route::Crew(what) => self.ask_crew(id, what, request),
            Route::PubSub(verb) => self.pubsub(id, command, verb, request),
            Route::Tracking => self.client_tracking(id, request),
            Route::Forward(group) => self.forward(id, command, request, group),
            Route::Elements(_) => self.inquire(id, command, request),
            Route::Split(split) => self.split(id, command, split, request),
            Route::Everywhere(merge) => self.send_everywhere(id, command, merge, request),
            Route::Across(across) => self.across(id, across, command, request),
            Route::Transaction(Bound::Multi) => self.multi(id),
            Route::Transaction(Bound::Exec) => self.exec(id),
            Route::Transaction(Bound::Discard) => self.discard(id),
            Route::Transaction(Bound::Watch) => self.watch(id, command, request),
            Route::Transaction(Bound::Unwatch) => self.unwatch(id),
            Route::Block(slot, group) => self.block(id, command, request, slot, group),
            Route::Replicas => self.wait_for_replicas(id, command, request),
            Route::Hold => self.hold(id),
            Route::Reject(why) => self.answer_error(id, error::rejection(why)),
        }
    }

    /// What becomes of a request of a client that may not just call anything, if that decides it.
    #[cold]
    fn restrict(
        &mut self,
        id: u32,
        command: &Command,
        request: &Request<'_>,
    ) -> Option<Dispatched> {
        let client = &self.clients.sessions[id as usize].client;
        if client.only_listens() && !command.is_for_subscribers() {
            return Some(self.refuse(id, &error::subscribed(command.name)));
        }
        let queues = client.transaction.is_some() && !command.is_never_queued();
        queues.then(|| self.queue(id, command, request))
    }

    pub(crate) fn forward(
        &mut self,
        id: u32,
        command: &Command,
        request: &Request<'_>,
        group: u16,
    ) -> Dispatched {
        let (kind, may_write) = (command.kind(), command.may_write());
        if kind == Kind::Script {
            return self.send_script(id, command, request, group);
        }
        let pipe = match self.admit(id, group) {
            Ok(pipe) => pipe,
            Err(refused) => return refused,
        };
        let output = self.backends.output(pipe);
        output.extend_from_slice(request.raw());
        let pending = self.clients.pending(id, kind, may_write, self.micros);
        self.backends.expect(pipe, pending);
        self.taken(id);
        Dispatched::Done
    }

    /// The session's pipe to a group, if that takes a request now.
    #[inline(always)] // as above
    pub(crate) fn find_pipe(&mut self, id: u32, group: u16) -> Result<u32, Refusal> {
        let session = &mut self.clients.sessions[id as usize];
        let way = session.way(id);
        let pipe = self.backends.pipe(group, way);
        self.backends.admit(pipe, session.task()).map(|()| pipe)
    }

    /// As [`Worker::find_pipe`]; else what became of the request.
    #[inline(always)] // as above
    pub(crate) fn admit(&mut self, id: u32, group: u16) -> Result<u32, Dispatched> {
        match self.find_pipe(id, group) {
            Ok(pipe) => Ok(pipe),
            Err(Refusal::Full) => Err(Dispatched::Waits),
            Err(Refusal::Down(why)) => Err(self.answer_error(id, &*why)),
        }
    }

    /// Lets the session wait for the next topology, but not for ever.
    pub(crate) fn hold(&mut self, id: u32) -> Dispatched {
        if self.waits_for_hold(id) {
            Dispatched::Waits
        } else {
            self.answer_error(id, error::HELD_TOO_LONG)
        }
    }

    /// The same, of what has left its place in the input. Whether it waits: else it has for too long.
    pub(crate) fn waits_for_hold(&mut self, id: u32) -> bool {
        // A leader releases a slot within a second or so. One that has died is followed by another, which does it
        // later; if that has not come by now, nobody knows when it will.
        let patience = self.serving.hold_patience;
        let most = match self.topology_since.elapsed() < patience && !self.draining {
            true => patience,
            false => WAIT_MAX,
        };
        self.waits(id, most)
    }

    /// Lets the session wait for the next tick; after too long, with this error.
    pub(crate) fn wait_for_tick(&mut self, id: u32, late: &str) -> Dispatched {
        if self.waits(id, WAIT_MAX) {
            Dispatched::Waits
        } else {
            self.answer_error(id, late)
        }
    }

    /// Whether what the session asked for first waits: for so long at most.
    pub(crate) fn waits(&mut self, id: u32, most: Duration) -> bool {
        let session = &mut self.clients.sessions[id as usize];
        let since = match session.held_since {
            Some(since) => since,
            None => {
                self.stats.requests_held.add(1);
                *session.held_since.insert(Instant::now())
            }
        };
        let waited = since.elapsed();
        // A client that has left may have asked somebody else meanwhile. It is not to be done long after that.
        let waits = waited < WAIT_MAX.min(most) || (waited < most && !session.socket.has_ended());
        if waits {
            self.clients.wait(id);
        }
        waits
    }

    pub(crate) fn answer_local(
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
        if local == command::Local::Reset {
            self.stop_tracking(id);
        }
        let session = &mut self.clients.sessions[id as usize];
        let mut context = local::Context {
            session,
            seconds: self.seconds,
            serving: &self.serving,
            proxy: &self.proxy,
            topology: self.topology.as_deref(),
        };
        let mut reply = Vec::new();
        let after = local::answer(local, &mut context, request, buffer::ensure(&mut reply));
        let number = context.session.outbox.reserve();
        if local == command::Local::Reset {
            context.session.watch = None;
            self.end_subscriptions(id);
        }
        self.clients.reply_own(id, number, &reply);
        buffer::give(&mut reply);
        self.stats.requests_local.add(1);
        self.taken(id);
        match after {
            After::Stay => Dispatched::Done,
            After::Finish => Dispatched::Last,
        }
    }

    /// Answers a request that no server has to do with.
    pub(crate) fn answer(&mut self, id: u32, write: impl FnOnce(&mut Vec<u8>)) -> Dispatched {
        let number = self.clients.sessions[id as usize].outbox.reserve();
        self.clients.reply(id, number, write);
        self.stats.requests_local.add(1);
        self.taken(id);
        Dispatched::Done
    }

    /// The same, with a whole reply.
    pub(crate) fn answer_own(&mut self, id: u32, reply: &[u8]) -> Dispatched {
        let number = self.clients.sessions[id as usize].outbox.reserve();
        self.clients.reply_own(id, number, reply);
        self.stats.requests_local.add(1);
        self.taken(id);
        Dispatched::Done
    }

    pub(crate) fn answer_error(
        &mut self,
        id: u32,
        text: &(impl AsRef<[u8]> + ?Sized),
    ) -> Dispatched {
        let number = self.clients.sessions[id as usize].outbox.reserve();
        self.clients.reply_error(id, number, text);
        self.taken(id);
        Dispatched::Done
    }

    /// A request has taken its number: it waits no more.
    #[inline]
    pub(crate) fn taken(&mut self, id: u32) {
        self.clients.sessions[id as usize].held_since = None;
        self.stats.requests.add(1);
    }
}
