//! The servers behind a worker, and the pipes to them.
//!
//! A **pipe** is one pipelined connection, shared by all sessions of its worker; there is one for each
//! server, RESP version and database, opened when it is first needed, another for those sessions
//! whose replies are large, and others for those that call scripts. Requests go into a pipe's output
//! and its server answers them in order, so that a queue of recipients is all there is to know about
//! what is under way.
//!
//! Owns the life of a pipe: opening (requests queue), ready, and down (requests fail at once) while it
//! is dialled again with growing pauses. Knows no slots and no sessions; whoever sends says where the
//! reply goes, and gets it back with the reply.
//!
//! Invariant: every request that was taken is answered exactly once: by the server, or by this module
//! with what it knows: not executed (never sent), or unknown (sent, and the connection lost).

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    io,
    rc::{Rc, Weak},
    sync::Arc,
    task::Waker,
    time::Duration,
};

use proto::{
    ServerAddr, Topology,
    credentials::Login,
    fence,
    seeded::{self, Bug},
    settled,
};
use slab::Slab;
use tokio::{task::spawn_local, time::Instant};

use crate::{
    buffer,
    command::Kind,
    config::Serving,
    error,
    fanout::Outcome,
    framer::{Framer, Piece},
    memory::Account,
    metrics::{Proxy, ServerStats, WorkerStats},
    resp::{BadReply, Protocol},
    scripts::Shown,
    worker::{Worker, essential},
};

mod door;
mod greeting;
mod hearing;
mod life;
mod queue;

pub(crate) use door::{Connection, Door, Shut, ask, leave_untouched, put_command, put_select};
use greeting::Routing;
use hearing::Ear;
pub(crate) use hearing::Hearing;
pub(crate) use life::SETTLED;
use queue::Queue;
pub(crate) use queue::{Pending, Recipient};

/// What a request says that is unblocked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unblock {
    AsIfTimedOut,
    /// `-UNBLOCKED`.
    WithError,
}

/// A pipe takes no request for now.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Its server is down; the error to answer with.
    Down(Rc<str>),
    /// Its output is full; whoever waits is woken when it is not.
    Full,
}

/// The servers of a worker's topology, and all its pipes.
pub(crate) struct Backends {
    worker: Weak<RefCell<Worker>>,
    servers: Slab<Server>,
    by_addr: HashMap<ServerAddr, u32>,
    /// The primary of each group, by the group's index in the topology.
    primaries: Vec<u32>,
    pipes: Slab<Pipe>,
    /// Pipes with output that this turn has not flushed yet.
    dirty: Vec<u32>,
    /// What time it is, to the tick: asking the clock for each request would cost.
    now: Instant,
    /// Numbers the connections, for their names at the servers.
    connections: u64,
    /// Which of the workers it is.
    own: usize,
    /// By what all requests are routed from now on.
    routing: Rc<Routing>,
    /// Of one pipe; see [`crate::config::Args::max_backlog`].
    max_backlog: usize,
    /// Pipes of one kind to one server.
    lanes: u32,
    proxy: Arc<Proxy>,
}

struct Server {
    addr: ServerAddr,
    login: Option<Login>,
    stats: Arc<ServerStats>,
    /// By database, RESP version, whether they leave keys untouched, and lane.
    pipes: Vec<Option<u32>>,
    /// Those that hear: by what they hear of, whether they speak RESP3, database, and whether they leave
    /// keys untouched.
    hearing: HashMap<(Hearing, bool, u16, bool), u32>,
}

/// Which of a server's pipes a request takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Way {
    pub(crate) protocol: Protocol,
    pub(crate) database: u16,
    /// What is read by it does not make keys younger, where the server can do that.
    pub(crate) no_touch: bool,
    pub(crate) lane: Lane,
}

/// Which of several pipes of the same kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lane {
    /// The one that all requests of this session take.
    Usual(u32),
    /// The one for large replies. It takes few requests at a time, so that they do not pile up at the
    /// server.
    Bulk,
    /// The one of those who have called a script: nobody else waits behind it. Bulk, or not.
    Scripts { bulk: bool },
    /// The one on which the server also says what has changed, however large the replies: what is read
    /// and written by it, and what is said of that, keep their order.
    Hearing(Hearing),
}

impl Way {
    /// The one that nearly everybody takes.
    pub(crate) const USUAL: Self = Self {
        protocol: Protocol::Resp2,
        database: 0,
        no_touch: false,
        lane: Lane::Usual(0),
    };

    /// The main one of those that hear the same.
    pub(crate) const HEARING: Self = Self {
        protocol: Protocol::Resp3,
        ..Self::USUAL
    };
}

/// What may be expected on a bulk pipe at a time: the next large reply while one is read. A server works
/// off all requests that it has been sent before it looks at those on other pipes.
const BULK_WINDOW: usize = 2 << 20;

struct Pipe {
    addr: ServerAddr,
    login: Option<Login>,
    protocol: Protocol,
    database: u16,
    no_touch: bool,
    bulk: bool,
    /// It hears.
    ear: Option<Box<Ear>>,
    stats: Arc<ServerStats>,
    state: State,
    /// Its server has left the topology: it ends once nothing is under way.
    retired: bool,
    /// Requests to be sent, from `sent` on.
    out: Vec<u8>,
    sent: usize,
    max_backlog: usize,
    dirty: bool,
    /// The socket takes no more for now; the pipe's task waits until it does.
    blocked: bool,
    /// Why writing to the socket failed: the connection is over.
    lost: Option<String>,
    /// What is under way.
    queue: Queue,
    framer: Framer,
    /// The scripts that its server was shown.
    shown: Shown,
    /// A client takes its replies so slowly that no more are read, for now.
    stopped: Option<Stopped>,
    /// Something was written since the last tick.
    used: bool,
    /// Bytes it was last counted with.
    counted: usize,
    /// When the server last did something, or was first asked to.
    alive: Instant,
    /// Of the pipe's task.
    waker: Option<Waker>,
    /// Of the sessions that wait until it takes a request, in the order they came.
    waiting: VecDeque<Waker>,
}

/// A pipe is not read from: of what it has brought, one session has more than it may.
struct Stopped {
    session: u32,
    since: Instant,
}

enum State {
    /// Being dialled; requests queue. By this the oldest of them was routed.
    Opening(Rc<Routing>),
    Ready(Rc<Connection>),
    /// Could not be opened; requests fail with this error.
    Down(Rc<str>),
}

impl Backends {
    pub(crate) fn new(
        worker: Weak<RefCell<Worker>>,
        own: usize,
        serving: &Serving,
        proxy: Arc<Proxy>,
    ) -> Self {
        Self {
            worker,
            servers: Slab::new(),
            by_addr: HashMap::new(),
            primaries: Vec::new(),
            pipes: Slab::new(),
            dirty: Vec::new(),
            now: Instant::now(),
            connections: 0,
            own,
            routing: Rc::new(Routing::Static),
            max_backlog: serving.max_backlog,
            lanes: serving.server_connections.into(),
            proxy,
        }
    }

    /// Takes over the groups of a new topology. Servers that stay keep their pipes; those that are no
    /// longer there answer what is under way, and end. Who was refused by what was routed by before tries
    /// again.
    pub(crate) fn update(&mut self, topology: &Topology, serving: &Serving) {
        if !serving.is_static {
            self.routing = Rc::new(Routing::Topology {
                cluster: topology.cluster_id().clone(),
                epoch: topology.version().epoch,
            });
        }
        for (_, pipe) in &self.pipes {
            if matches!(pipe.state, State::Down(_)) {
                pipe.wake();
            }
        }
        let mut left = std::mem::take(&mut self.by_addr);
        self.primaries.clear();
        for group in topology.groups() {
            let login = serving.credentials.login(&group.id);
            let stays = left
                .get(&group.primary)
                .is_some_and(|&server| self.servers[server as usize].login == login);
            let server = match left.remove(&group.primary) {
                Some(server) if stays => server,
                other => {
                    other.into_iter().for_each(|server| self.retire(server));
                    let addr = group.primary.clone();
                    self.servers.insert(Server {
                        stats: self.proxy.meet(&addr),
                        addr,
                        login,
                        pipes: Vec::new(),
                        hearing: HashMap::new(),
                    }) as u32
                }
            };
            self.by_addr.insert(group.primary.clone(), server);
            self.primaries.push(server);
            // The pipe that nearly everybody uses is opened before somebody needs it.
            self.pipe_of(server, Way::USUAL);
        }
        left.into_values().for_each(|server| self.retire(server));
    }

    fn retire(&mut self, server: u32) {
        let server = self.servers.remove(server as usize);
        self.proxy.leave(&server.addr, &server.stats);
        let hearing = server.hearing.into_values();
        for pipe in server.pipes.into_iter().flatten().chain(hearing) {
            let pipe = &mut self.pipes[pipe as usize];
            pipe.retired = true;
            pipe.wake();
        }
    }

    /// The pipe to a group's primary.
    #[inline]
    pub(crate) fn pipe(&mut self, group: u16, way: Way) -> u32 {
        self.pipe_of(self.primaries[usize::from(group)], way)
    }

    #[inline]
    fn pipe_of(&mut self, server: u32, way: Way) -> u32 {
        let lane = match way.lane {
            Lane::Bulk => 0,
            Lane::Scripts { bulk: false } => 1,
            Lane::Scripts { bulk: true } => 2,
            Lane::Usual(_) if self.lanes == 1 => 3,
            Lane::Usual(session) => 3 + session % self.lanes,
            Lane::Hearing(hearing) => return self.hearing_pipe(server, way, hearing),
        };
        let protocol = u32::from(way.protocol == Protocol::Resp3);
        let kind = u32::from(way.database) * 4 + protocol * 2 + u32::from(way.no_touch);
        let index = (kind * (3 + self.lanes) + lane) as usize;
        match self.servers[server as usize].pipes.get(index) {
            Some(Some(pipe)) => *pipe,
            Some(None) | None => self.begin_pipe(server, way, index),
        }
    }

    /// The first time that a server's pipe with this index is needed.
    #[cold]
    fn begin_pipe(&mut self, server: u32, way: Way, index: usize) -> u32 {
        let server = &mut self.servers[server as usize];
        let pipe = Pipe::new(server, way, &self.routing, self.max_backlog);
        let pipe = self.pipes.insert(pipe) as u32;
        if server.pipes.len() <= index {
            server.pipes.resize(index + 1, None);
        }
        server.pipes[index] = Some(pipe);
        self.start(pipe);
        pipe
    }

    fn start(&self, pipe: u32) {
        if let Some(worker) = self.worker.upgrade() {
            spawn_local(essential(life::run(worker, pipe)));
        }
    }

    /// How to open a connection of one's own to a group's primary.
    pub(crate) fn door(&mut self, group: u16, way: Way, timeout: Duration) -> Door {
        let name = self.next_name();
        let server = &self.servers[self.primaries[usize::from(group)] as usize];
        Door {
            addr: server.addr.clone(),
            login: server.login.clone(),
            protocol: way.protocol,
            database: way.database,
            no_touch: way.no_touch,
            routing: Rc::clone(&self.routing),
            trusts_restarted: self.proxy.trusts_restarted(),
            timeout,
            name,
        }
    }

    /// The same door once more, by another name and for what is routed from now on.
    pub(crate) fn again(&mut self, door: &Door) -> Door {
        Door {
            routing: Rc::clone(&self.routing),
            trusts_restarted: self.proxy.trusts_restarted(),
            name: self.next_name(),
            ..door.clone()
        }
    }

    /// Whether who was refused may try again at once: it routes by something newer since.
    pub(crate) fn is_outdated(&self, why: &Shut) -> bool {
        match why {
            Shut::Down(_) => false,
            Shut::Refused(refusal) => self.routes_newer(refusal),
        }
    }

    /// Whether what is routed by is newer than what this was a refusal of.
    pub(crate) fn routes_newer(&self, refusal: &fence::Refusal) -> bool {
        self.routing.is_newer(refusal)
    }

    pub(crate) fn primary(&self, group: u16) -> &ServerAddr {
        &self.servers[self.primaries[usize::from(group)] as usize].addr
    }

    /// Whether a server is in the topology.
    pub(crate) fn is_known(&self, addr: &ServerAddr) -> bool {
        self.by_addr.contains_key(addr)
    }

    /// Tells a server to end what blocks this connection to it, which then says so itself. `false`: there is
    /// no such server any more. It may be told in vain, or too early: whoever wants to be sure tells it
    /// again.
    pub(crate) fn unblock(
        &mut self,
        addr: &ServerAddr,
        connection: u64,
        how: Unblock,
        since: u32,
    ) -> bool {
        let Some(&server) = self.by_addr.get(addr) else {
            return false;
        };
        let id = self.pipe_of(server, Way::USUAL);
        let pipe = &self.pipes[id as usize];
        if matches!(pipe.state, State::Ready(_)) && !pipe.is_full() {
            let connection = connection.to_string();
            let how: &[u8] = match how {
                Unblock::AsIfTimedOut => b"TIMEOUT",
                Unblock::WithError => b"ERROR",
            };
            let words = [b"CLIENT", &b"UNBLOCK"[..], connection.as_bytes(), how];
            put_command(self.output(id), &words);
            let pending = Pending {
                to: Recipient::Nobody,
                kind: Kind::Read,
                may_write: false,
                since,
                weight: 0,
            };
            self.expect(id, pending);
        }
        true
    }

    /// Has a server close another connection to it, if the usual one leads to the same process and takes a
    /// request now; whether that is so. The reply goes to a burial of this number.
    pub(crate) fn bury(
        &mut self,
        connection: &settled::Connection,
        number: u32,
        since: u32,
    ) -> bool {
        let Some(&server) = self.by_addr.get(&connection.server) else {
            return false;
        };
        let id = self.pipe_of(server, Way::USUAL);
        let pipe = &self.pipes[id as usize];
        let takes = match &pipe.state {
            State::Ready(own) => own.run_id == connection.run_id && !pipe.is_full(),
            State::Opening(_) | State::Down(_) => false,
        };
        if takes {
            let client_id = connection.client_id.to_string();
            let words = [b"CLIENT", &b"KILL"[..], b"ID", client_id.as_bytes()];
            put_command(self.output(id), &words);
            let pending = Pending {
                to: Recipient::Burial(number),
                kind: Kind::Read,
                may_write: false,
                since,
                weight: 0,
            };
            self.expect(id, pending);
        }
        takes
    }

    /// Whether a pipe is not there, perhaps because a script keeps its server busy.
    pub(crate) fn may_be_busy(&self, pipe: u32) -> bool {
        match &self.pipes[pipe as usize].state {
            State::Opening(_) => true,
            State::Ready(_) => false,
            State::Down(why) => why.starts_with("BUSY "),
        }
    }

    /// Says this to a group's primary on a connection that nobody was let in by, and that ends with the reply.
    /// Only for what may be said by anybody: it must change no key.
    pub(crate) fn call_out(&mut self, group: u16, said: &[u8], pending: Pending, most: Duration) {
        let door = self.door(group, Way::USUAL, most);
        let (said, worker) = (said.to_vec(), Weak::clone(&self.worker));
        spawn_local(essential(async move {
            let answer = door.call_out(&said).await;
            let Some(worker) = worker.upgrade() else {
                return;
            };
            let worker = &mut *worker.borrow_mut();
            let (reply, outcome) = match answer {
                Ok(reply) => (reply, Outcome::Answered),
                Err((why, outcome)) => {
                    let addr = door.addr.as_str();
                    let text = match outcome {
                        Outcome::Unknown => error::unknown_outcome(addr, &why.to_string()),
                        Outcome::NotExecuted | Outcome::Answered => why.error(addr),
                    };
                    (error_frame(&text), outcome)
                }
            };
            let micros = worker.clock.micros();
            worker.clients.deliver(
                pending,
                Piece::whole(&reply),
                outcome,
                &worker.stats,
                micros,
            );
            worker.schedule_flush();
        }));
    }

    /// Behind all that is under way to a server, or to one that has left the topology, goes a barrier of this
    /// number; how many there are.
    pub(crate) fn place_barriers(&mut self, server: &ServerAddr, number: u32, since: u32) -> u32 {
        let concerns =
            |pipe: &Pipe| !pipe.queue.is_empty() && (pipe.addr == *server || pipe.retired);
        let found = self.pipes.iter().filter(|(_, pipe)| concerns(pipe));
        let found: Vec<u32> = found.map(|(id, _)| id as u32).collect();
        for &id in &found {
            self.place_barrier(id, number, since);
        }
        found.len() as u32
    }

    /// The same on one pipe, on which something is under way.
    pub(crate) fn place_barrier(&mut self, pipe: u32, number: u32, since: u32) {
        put_command(self.output(pipe), &[b"PING"]);
        let pending = Pending {
            to: Recipient::Barrier(number),
            kind: Kind::Read,
            may_write: false,
            since,
            weight: 0,
        };
        self.expect(pipe, pending);
    }

    /// What time it was at the last tick.
    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    /// Whether a pipe takes a request now; if it is full, `waker` is woken once it is not.
    #[inline]
    pub(crate) fn admit(&mut self, pipe: u32, waker: &Waker) -> Result<(), Refusal> {
        let pipe = &mut self.pipes[pipe as usize];
        if matches!(pipe.state, State::Down(_)) || pipe.is_full() {
            return Err(pipe.refuse(waker));
        }
        Ok(())
    }

    /// A pipe's output, to write (a part of) a request into; it has admitted one.
    #[inline]
    pub(crate) fn output(&mut self, pipe: u32) -> &mut Vec<u8> {
        buffer::ensure(&mut self.pipes[pipe as usize].out)
    }

    /// The scripts that a pipe's server was shown.
    pub(crate) fn shown(&mut self, pipe: u32) -> &mut Shown {
        &mut self.pipes[pipe as usize].shown
    }

    /// Says that a whole request has been written, and where its reply goes.
    #[inline]
    pub(crate) fn expect(&mut self, id: u32, pending: Pending) {
        let pipe = &mut self.pipes[id as usize];
        if pipe.queue.is_empty() {
            pipe.alive = self.now;
        }
        pipe.queue.push(pending);
        if !pipe.dirty && matches!(pipe.state, State::Ready(_)) {
            pipe.dirty = true;
            self.dirty.push(id);
        }
    }

    /// Sends what the pipes have, with one system call for each.
    pub(crate) fn flush(&mut self, stats: &WorkerStats, account: &mut Account) {
        for id in self.dirty.drain(..) {
            let pipe = &mut self.pipes[id as usize];
            pipe.dirty = false;
            if !pipe.blocked {
                pipe.flush(self.now, stats);
            }
            pipe.recount(account);
        }
    }

    /// Whether any pipe has output to flush.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Tells what time it is, and wakes the tasks of pipes whose server has been silent for too long
    /// with requests under way, or that wait for a slow client; they see to it.
    pub(crate) fn tick(
        &mut self,
        now: Instant,
        micros: u32,
        most: Duration,
        account: &mut Account,
    ) {
        self.now = now;
        self.beat(micros);
        for (_, pipe) in &mut self.pipes {
            if pipe.is_overdue(now, most) || pipe.stopped.is_some() {
                pipe.wake();
            }
            pipe.call_waiting(usize::MAX); // should one that was woken not have used it
            if !std::mem::take(&mut pipe.used) && pipe.out.is_empty() {
                buffer::give(&mut pipe.out); // one that is in use keeps its memory between turns
                pipe.recount(account);
            }
        }
    }

    /// How many pipes are ready.
    pub(crate) fn ready(&self) -> u64 {
        self.pipes
            .iter()
            .filter(|(_, pipe)| matches!(pipe.state, State::Ready(_)))
            .count() as u64
    }

    fn next_name(&mut self) -> String {
        self.connections += 1;
        let name = fence::Name {
            role: fence::Role::Proxy,
            incarnation: self.proxy.incarnation.clone(),
            rest: format!("{}.{}", self.own, self.connections),
        };
        name.to_string()
    }
}

impl Pipe {
    fn new(server: &Server, way: Way, routing: &Rc<Routing>, max_backlog: usize) -> Self {
        Self {
            addr: server.addr.clone(),
            login: server.login.clone(),
            protocol: way.protocol,
            database: way.database,
            no_touch: way.no_touch,
            bulk: matches!(way.lane, Lane::Bulk | Lane::Scripts { bulk: true }),
            ear: None,
            stats: Arc::clone(&server.stats),
            state: State::Opening(Rc::clone(routing)),
            retired: false,
            out: Vec::new(),
            sent: 0,
            max_backlog,
            dirty: false,
            blocked: false,
            lost: None,
            queue: Queue::default(),
            framer: Framer::default(),
            shown: Shown::default(),
            stopped: None,
            used: false,
            counted: 0,
            alive: Instant::now(),
            waker: None,
            waiting: VecDeque::new(),
        }
    }

    fn is_overdue(&self, now: Instant, most: Duration) -> bool {
        !self.queue.is_empty() && self.stopped.is_none() && now.duration_since(self.alive) > most
    }

    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// Sends what the socket takes now. An error means that the connection is lost.
    fn flush(&mut self, now: Instant, stats: &WorkerStats) {
        let State::Ready(connection) = &self.state else {
            return;
        };
        while self.sent < self.out.len() {
            match connection.socket.write(&self.out[self.sent..]) {
                Ok(written) => {
                    stats.server_bytes_out.add(written as u64);
                    self.sent += written;
                    self.queue.sent();
                    self.alive = now; // a server that takes bytes is not silent
                }
                Err(e) => {
                    // Its task waits for room, or finds out that there will be none.
                    self.blocked = e.kind() == io::ErrorKind::WouldBlock;
                    self.lost = (!self.blocked).then(|| e.to_string());
                    self.wake();
                    break;
                }
            }
        }
        self.used = true;
        if self.sent == self.out.len() {
            self.sent = 0;
            self.out.clear();
            if self.out.capacity() > KEEP_OUTPUT {
                buffer::give(&mut self.out);
            }
        } else if self.sent > buffer::KEEP_CAPACITY && self.sent > self.out.len() / 2 {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        self.call_waiting(WAITING_CALLED);
    }

    /// It takes no request now: why.
    #[cold]
    fn refuse(&mut self, waker: &Waker) -> Refusal {
        match &self.state {
            State::Down(text) => Refusal::Down(Rc::clone(text)),
            State::Opening(_) | State::Ready(_) => {
                self.waiting.push_back(waker.clone());
                Refusal::Full
            }
        }
    }

    /// So much waits to be sent, or to come, that further requests have to wait, too.
    #[inline]
    fn is_full(&self) -> bool {
        self.out.len() - self.sent > self.max_backlog
            || (self.bulk && self.queue.expected() >= BULK_WINDOW)
    }

    /// If there is room again, wakes some of those who wait for it; who finds none waits again.
    fn call_waiting(&mut self, most: usize) {
        if !self.waiting.is_empty() && !self.is_full() {
            let mut most = most.min(self.waiting.len());
            if self.bulk {
                // Who is called in vain has lost its place: no more than there is room for.
                let room = BULK_WINDOW - self.queue.expected();
                most = most.min(room.div_ceil(self.queue.weighed().max(1) as usize));
            }
            self.waiting.drain(..most).for_each(Waker::wake);
        }
    }

    /// Takes bytes that the server sent by `micros`: each reply, or piece of one, goes to its recipient.
    fn receive(
        &mut self,
        bytes: &[u8],
        micros: u32,
        mut deliver: impl FnMut(Pending, Piece<'_>),
    ) -> Result<(), BadReply> {
        let Self {
            framer,
            queue,
            stats,
            ..
        } = self;
        framer.receive(bytes, |piece| {
            let pending = queue.answered(piece)?;
            if piece.last {
                stats.latency.record(micros.wrapping_sub(pending.since));
            }
            deliver(pending, piece);
            Ok(())
        })
    }

    /// The same, of a pipe with this ear. It has a way of its own, so that the others need not ask.
    fn receive_and_hear(
        &mut self,
        ear: &mut Ear,
        bytes: &[u8],
        micros: u32,
        mut deliver: impl FnMut(Arrival<'_>),
    ) -> Result<(), BadReply> {
        let Self {
            framer,
            queue,
            stats,
            ..
        } = self;
        framer.receive(bytes, |piece| {
            if piece.first && piece.bytes[0] == b'>' {
                deliver(Arrival::Push(ear.hearing, piece.bytes));
                return Ok(());
            }
            let pending = queue.answered(piece)?;
            if piece.last {
                stats.latency.record(micros.wrapping_sub(pending.since));
            }
            if pending.to != Recipient::Agreement {
                deliver(Arrival::Reply(pending, piece));
            } else if let Some(first) = ear.answered(piece)? {
                deliver(Arrival::Agreed(ear.hearing, first));
            }
            Ok(())
        })
    }

    fn recount(&mut self, account: &mut Account) {
        let now =
            self.out.capacity() + self.framer.memory() + self.shown.memory() + self.queue.memory();
        account.recount(&mut self.counted, now);
    }

    /// Answers all that is under way; the connection is gone, or there never was one.
    /// `deliver` is told whether pieces of another reply were delivered before.
    fn fail(&mut self, why: &Shut, deliver: &mut impl FnMut(Pending, &[u8], Outcome, bool)) {
        // Of a reply that has begun there will be no more, and its client cannot be told.
        let mut cut = self.framer.is_passing();
        let addr = self.addr.as_str();
        let down = error_frame(&why.error(addr));
        let lost = error_frame(&error::unknown_outcome(addr, &why.to_string()));
        for (pending, was_sent) in self.queue.end() {
            // Whether a read was executed makes no difference to anybody.
            let lies = seeded::has(Bug::LostIsNotExecuted);
            let (frame, outcome) = if was_sent && pending.may_write && !lies {
                (&lost, Outcome::Unknown)
            } else {
                (&down, Outcome::NotExecuted)
            };
            deliver(pending, frame, outcome, std::mem::take(&mut cut));
        }
        self.sent = 0;
        self.out = Vec::new();
        self.framer = Framer::default();
        if let Some(ear) = &mut self.ear {
            ear.reset();
            self.framer.hear();
        }
        self.shown.clear();
        self.stopped = None;
        self.blocked = false;
        self.lost = None;
        self.waiting.drain(..).for_each(Waker::wake);
    }
}

fn error_frame(text: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    crate::resp::put_error(&mut frame, text);
    frame
}

/// What comes on a pipe.
enum Arrival<'a> {
    /// A reply, or a piece of one.
    Reply(Pending, Piece<'a>),
    /// A message that no request asked for.
    Push(Hearing, &'a [u8]),
    /// The server has agreed to tell of this; for the first time since the connection was opened, or not.
    Agreed(Hearing, bool),
}

/// So many of those who wait for room are woken at once.
const WAITING_CALLED: usize = 8;
/// What a pipe's output may keep allocated between turns.
const KEEP_OUTPUT: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> Pipe {
        let server = Server {
            addr: ServerAddr::new("h:1").unwrap(),
            login: None,
            stats: Arc::default(),
            pipes: Vec::new(),
            hearing: HashMap::new(),
        };
        Pipe::new(&server, Way::USUAL, &Rc::new(Routing::Static), 1000)
    }

    fn pending(number: u32, may_write: bool) -> Pending {
        let to = Recipient::Session { session: 0, number };
        Pending {
            may_write,
            ..Pending::new(to, Kind::Read)
        }
    }

    #[test]
    fn replies_find_their_recipients_however_they_are_cut() {
        let bytes = b"+OK\r\n$3\r\nabc\r\n>1\r\n+push\r\n*2\r\n:1\r\n:2\r\n";
        for cut in 0..=bytes.len() {
            let mut pipe = pipe();
            (0..3).for_each(|number| pipe.queue.push(pending(number, false)));
            pipe.queue.sent();
            let mut got = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                pipe.receive(part, 0, |to, piece| got.push((to, piece.bytes.to_vec())))
                    .unwrap();
            }
            let expected: [&[u8]; 3] = [b"+OK\r\n", b"$3\r\nabc\r\n", b"*2\r\n:1\r\n:2\r\n"];
            for (number, reply) in expected.iter().enumerate() {
                assert_eq!(
                    got[number],
                    (pending(number as u32, false), reply.to_vec()),
                    "{cut}"
                );
            }
            assert!(pipe.queue.is_empty());
        }
    }

    #[test]
    fn a_reply_that_nobody_asked_for_breaks_the_pipe() {
        assert_eq!(pipe().receive(b"+OK\r\n", 0, |_, _| {}), Err(BadReply));
    }

    #[test]
    fn a_lost_connection_answers_by_what_is_known() {
        let mut pipe = pipe();
        // Sent: a write and a read. Not sent: a write.
        pipe.queue.push(pending(0, true));
        pipe.queue.push(pending(1, false));
        pipe.queue.sent();
        pipe.queue.push(pending(2, true));
        let mut outcomes = Vec::new();
        pipe.fail(
            &Shut::Down("gone".to_owned()),
            &mut |to, reply, outcome, _| {
                let Recipient::Session { number, .. } = to.to else {
                    panic!()
                };
                let code = String::from_utf8_lossy(reply)
                    .split(' ')
                    .next()
                    .unwrap()
                    .to_owned();
                outcomes.push((number, code, outcome));
            },
        );
        assert_eq!(
            outcomes,
            [
                (0, "-UNKNOWNOUTCOME".to_owned(), Outcome::Unknown),
                (1, "-CLUSTERDOWN".to_owned(), Outcome::NotExecuted),
                (2, "-CLUSTERDOWN".to_owned(), Outcome::NotExecuted),
            ]
        );
    }
}
