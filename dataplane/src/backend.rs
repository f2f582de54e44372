//! The servers behind a worker, and the pipes to them.
//!
//! A **pipe** is one pipelined connection, shared by all sessions of its worker; there is one for each
//! server, RESP version and database, opened when it is first needed. Requests go into a pipe's output
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
    future::poll_fn,
    io,
    net::TcpStream,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use proto::{Group, ServerAddr, credentials::Login};
use slab::Slab;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::spawn_local,
    time::{Instant, sleep, timeout},
};

use crate::{
    backoff::Backoff,
    buffer,
    config::Serving,
    error,
    fanout::{Outcome, Part},
    metrics::WorkerStats,
    resp::{BadReply, Protocol, ReplyProgress, put_bulk, put_header},
    socket::Socket,
    worker::{Worker, essential},
};

/// Where a reply goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Recipient {
    /// To a session, as the reply of this number.
    Session { session: u32, number: u32 },
    /// To a fan-out.
    Part(Part),
}

/// A request under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pending {
    pub(crate) to: Recipient,
    /// Whether it matters if it was executed.
    pub(crate) may_write: bool,
}

/// A pipe takes no request for now.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Its server is down; the error to answer with.
    Down(String),
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
    /// What those names start with: `sluice:proxy:<incarnation>:<worker>`.
    name: String,
    /// Of one pipe; see [`crate::config::Args::max_backlog`].
    max_backlog: usize,
}

struct Server {
    addr: ServerAddr,
    login: Option<Login>,
    /// By [`pipe_index`].
    pipes: Vec<Option<u32>>,
}

fn pipe_index(protocol: Protocol, database: u16) -> usize {
    usize::from(database) * 2 + usize::from(protocol == Protocol::Resp3)
}

struct Pipe {
    addr: ServerAddr,
    login: Option<Login>,
    protocol: Protocol,
    database: u16,
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
    /// Requests without a reply, in order.
    pending: VecDeque<Pending>,
    /// How many of `pending`, from the back, have no byte on the wire.
    unsent: usize,
    /// A reply that is not whole yet.
    partial: Vec<u8>,
    progress: ReplyProgress,
    /// When the server last did something, or was first asked to.
    alive: Instant,
    /// Of the pipe's task.
    waker: Option<Waker>,
    /// Of the sessions that wait for its output to shrink.
    waiting: Vec<Waker>,
}

enum State {
    /// Being dialled; requests queue.
    Opening,
    Ready(Rc<Socket>),
    /// Could not be opened; requests fail with the reason.
    Down(String),
}

impl Backends {
    pub(crate) fn new(worker: Weak<RefCell<Worker>>, name: String, max_backlog: usize) -> Self {
        Self {
            worker,
            servers: Slab::new(),
            by_addr: HashMap::new(),
            primaries: Vec::new(),
            pipes: Slab::new(),
            dirty: Vec::new(),
            now: Instant::now(),
            connections: 0,
            name,
            max_backlog,
        }
    }

    /// Takes over the groups of a new topology. Servers that stay keep their pipes; those that are no
    /// longer there answer what is under way, and end.
    pub(crate) fn update(&mut self, groups: &[Group], serving: &Serving) {
        let mut left = std::mem::take(&mut self.by_addr);
        self.primaries.clear();
        for group in groups {
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
                        addr,
                        login,
                        pipes: Vec::new(),
                    }) as u32
                }
            };
            self.by_addr.insert(group.primary.clone(), server);
            self.primaries.push(server);
            // The pipe that nearly everybody uses is opened before somebody needs it.
            self.pipe_of(server, Protocol::Resp2, 0);
        }
        left.into_values().for_each(|server| self.retire(server));
    }

    fn retire(&mut self, server: u32) {
        for pipe in self
            .servers
            .remove(server as usize)
            .pipes
            .into_iter()
            .flatten()
        {
            let pipe = &mut self.pipes[pipe as usize];
            pipe.retired = true;
            pipe.wake();
        }
    }

    /// The pipe to a group's primary.
    #[inline]
    pub(crate) fn pipe(&mut self, group: u16, protocol: Protocol, database: u16) -> u32 {
        self.pipe_of(self.primaries[usize::from(group)], protocol, database)
    }

    fn pipe_of(&mut self, server: u32, protocol: Protocol, database: u16) -> u32 {
        let index = pipe_index(protocol, database);
        let server = &mut self.servers[server as usize];
        if let Some(Some(pipe)) = server.pipes.get(index) {
            return *pipe;
        }
        let pipe =
            self.pipes
                .insert(Pipe::new(server, protocol, database, self.max_backlog)) as u32;
        if server.pipes.len() <= index {
            server.pipes.resize(index + 1, None);
        }
        server.pipes[index] = Some(pipe);
        if let Some(worker) = self.worker.upgrade() {
            spawn_local(essential(run(worker, pipe)));
        }
        pipe
    }

    /// Whether a pipe takes a request now; if it is full, `waker` is woken once it is not.
    #[inline]
    pub(crate) fn admit(&mut self, pipe: u32, waker: &Waker) -> Result<(), Refusal> {
        let pipe = &mut self.pipes[pipe as usize];
        match &pipe.state {
            State::Down(why) => Err(Refusal::Down(error::server_down(pipe.addr.as_str(), why))),
            State::Opening | State::Ready(_) if pipe.is_full() => {
                pipe.waiting.push(waker.clone());
                Err(Refusal::Full)
            }
            State::Opening | State::Ready(_) => Ok(()),
        }
    }

    /// A pipe's output, to write (a part of) a request into; it has admitted one.
    #[inline]
    pub(crate) fn output(&mut self, pipe: u32) -> &mut Vec<u8> {
        buffer::ensure(&mut self.pipes[pipe as usize].out)
    }

    /// Says that a whole request has been written, and where its reply goes.
    #[inline]
    pub(crate) fn expect(&mut self, id: u32, pending: Pending) {
        let pipe = &mut self.pipes[id as usize];
        if pipe.pending.is_empty() {
            pipe.alive = self.now;
        }
        pipe.pending.push_back(pending);
        pipe.unsent += 1;
        if !pipe.dirty && matches!(pipe.state, State::Ready(_)) {
            pipe.dirty = true;
            self.dirty.push(id);
        }
    }

    /// Sends what the pipes have, with one system call for each.
    pub(crate) fn flush(&mut self, stats: &WorkerStats) {
        for id in self.dirty.drain(..) {
            let pipe = &mut self.pipes[id as usize];
            pipe.dirty = false;
            if !pipe.blocked {
                pipe.flush(self.now, stats);
            }
        }
    }

    /// Whether any pipe has output to flush.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Tells what time it is, and wakes the tasks of pipes whose server has been silent for too long
    /// with requests under way; they break the connection.
    pub(crate) fn tick(&mut self, now: Instant, most: Duration) {
        self.now = now;
        for (_, pipe) in &self.pipes {
            if pipe.is_overdue(now, most) {
                pipe.wake();
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
        format!("{}.{}", self.name, self.connections)
    }
}

impl Pipe {
    fn new(server: &Server, protocol: Protocol, database: u16, max_backlog: usize) -> Self {
        Self {
            addr: server.addr.clone(),
            login: server.login.clone(),
            protocol,
            database,
            state: State::Opening,
            retired: false,
            out: Vec::new(),
            sent: 0,
            max_backlog,
            dirty: false,
            blocked: false,
            lost: None,
            pending: VecDeque::new(),
            unsent: 0,
            partial: Vec::new(),
            progress: ReplyProgress::default(),
            alive: Instant::now(),
            waker: None,
            waiting: Vec::new(),
        }
    }

    fn is_overdue(&self, now: Instant, most: Duration) -> bool {
        !self.pending.is_empty() && now.duration_since(self.alive) > most
    }

    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// Sends what the socket takes now. An error means that the connection is lost.
    fn flush(&mut self, now: Instant, stats: &WorkerStats) {
        let State::Ready(socket) = &self.state else {
            return;
        };
        while self.sent < self.out.len() {
            match socket.write(&self.out[self.sent..]) {
                Ok(written) => {
                    stats.server_bytes_out.add(written as u64);
                    self.sent += written;
                    self.unsent = 0;
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
        if self.sent == self.out.len() {
            self.sent = 0;
            buffer::give(&mut self.out);
        } else if self.sent > buffer::KEEP_CAPACITY && self.sent > self.out.len() / 2 {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        if !self.is_full() {
            self.waiting.drain(..).for_each(Waker::wake);
        }
    }

    /// So much waits to be sent that further requests have to wait, too.
    fn is_full(&self) -> bool {
        self.out.len() - self.sent > self.max_backlog
    }

    /// Takes bytes from the server: each whole reply goes to its recipient.
    fn receive(
        &mut self,
        bytes: &[u8],
        deliver: &mut impl FnMut(Pending, &[u8]),
    ) -> Result<(), BadReply> {
        if self.partial.is_empty() {
            let taken = self.split_replies(bytes, deliver)?;
            if taken < bytes.len() {
                buffer::ensure(&mut self.partial).extend_from_slice(&bytes[taken..]);
            }
            return Ok(());
        }
        let mut partial = std::mem::take(&mut self.partial);
        partial.extend_from_slice(bytes);
        let taken = self.split_replies(&partial, deliver)?;
        if taken == partial.len() {
            buffer::give(&mut partial);
        } else if taken > 0 {
            partial.drain(..taken);
        }
        self.partial = partial;
        Ok(())
    }

    fn split_replies(
        &mut self,
        bytes: &[u8],
        deliver: &mut impl FnMut(Pending, &[u8]),
    ) -> Result<usize, BadReply> {
        let mut taken = 0;
        while taken < bytes.len() {
            let Some(len) = self.progress.scan(&bytes[taken..])? else {
                break;
            };
            let reply = &bytes[taken..taken + len];
            taken += len;
            if reply[0] == b'>' {
                continue; // a push message answers no request
            }
            // A reply to what was never sent: the two sides no longer agree on what is under way.
            if self.pending.len() <= self.unsent {
                return Err(BadReply);
            }
            let pending = self.pending.pop_front().ok_or(BadReply)?;
            deliver(pending, reply);
        }
        Ok(taken)
    }

    /// Answers all that is under way; the connection is gone.
    fn fail(&mut self, why: &str, deliver: &mut impl FnMut(Pending, &[u8], Outcome)) {
        let sent = self.pending.len() - self.unsent;
        let down = error_frame(&error::server_down(self.addr.as_str(), why));
        let lost = error_frame(&error::unknown_outcome(self.addr.as_str(), why));
        for (index, pending) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            // Whether a read was executed makes no difference to anybody.
            if index < sent && pending.may_write {
                deliver(pending, &lost, Outcome::Unknown);
            } else {
                deliver(pending, &down, Outcome::NotExecuted);
            }
        }
        self.unsent = 0;
        self.sent = 0;
        self.out = Vec::new();
        self.partial = Vec::new();
        self.progress = ReplyProgress::default();
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

/// Why a pipe's connection ended.
enum End {
    Retired,
    Broken(String),
}

/// A connection that lived shorter than this is not dialled again at once.
const SETTLED: Duration = Duration::from_secs(1);

/// The life of a pipe, until it is retired.
async fn run(worker: Rc<RefCell<Worker>>, id: u32) {
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
    loop {
        let opened = open(&worker, id).await.and_then(|stream| {
            worker
                .borrow_mut()
                .pipe_opened(id, stream)
                .map_err(|e| e.to_string())
        });
        let since = Instant::now();
        let end = match opened {
            Ok(()) => poll_fn(|cx| worker.borrow_mut().poll_pipe(id, cx)).await,
            Err(why) => End::Broken(why),
        };
        if worker.borrow_mut().pipe_ended(id, end, since) {
            return;
        }
        if since.elapsed() < SETTLED {
            sleep(backoff.next()).await;
        } else {
            backoff.reset();
        }
    }
}

/// Dials, introduces itself, and waits until the server has agreed to all of it.
async fn open(worker: &RefCell<Worker>, id: u32) -> Result<TcpStream, String> {
    let (addr, hello, replies, deadline) = {
        let worker = &mut *worker.borrow_mut();
        let name = worker.backends.next_name();
        let pipe = &worker.backends.pipes[id as usize];
        let (hello, replies) = greeting(pipe, &name);
        (
            pipe.addr.clone(),
            hello,
            replies,
            worker.serving.connect_timeout,
        )
    };
    let dial = async {
        let mut stream = tokio::net::TcpStream::connect(addr.as_str()).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&hello).await?;
        let (mut bytes, mut taken) = (Vec::new(), 0);
        let mut progress = ReplyProgress::default();
        for _ in 0..replies {
            let len = loop {
                match progress.scan(&bytes[taken..]).map_err(io::Error::other)? {
                    Some(len) => break len,
                    None if stream.read_buf(&mut bytes).await? == 0 => {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    None => {}
                }
            };
            let reply = &bytes[taken..taken + len];
            if reply[0] == b'-' {
                let text = String::from_utf8_lossy(&reply[1..]).trim_end().to_owned();
                return Err(io::Error::other(text));
            }
            taken += len;
        }
        if taken < bytes.len() {
            return Err(io::Error::other("it said more than it was asked"));
        }
        stream.into_std()
    };
    match timeout(deadline, dial).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err(format!("no answer to the login within {deadline:?}")),
    }
}

/// What is said first on a new connection, and how many replies it has. Nothing else is sent until all
/// are there: behind a refused SELECT a request would land in another database.
fn greeting(pipe: &Pipe, name: &str) -> (Vec<u8>, usize) {
    fn command(out: &mut Vec<u8>, words: &[&[u8]]) -> usize {
        put_header(out, b'*', words.len());
        words.iter().for_each(|word| put_bulk(out, word));
        1
    }
    let mut out = Vec::new();
    let mut replies = 0;
    if let Some(Login { username, password }) = &pipe.login {
        let mut words: Vec<&[u8]> = vec![b"AUTH"];
        words.extend(username.iter().map(String::as_bytes));
        words.push(password.expose().as_bytes());
        replies += command(&mut out, &words);
    }
    if pipe.protocol == Protocol::Resp3 {
        replies += command(&mut out, &[b"HELLO", b"3"]);
    }
    replies += command(&mut out, &[b"CLIENT", b"SETNAME", name.as_bytes()]);
    if pipe.database != 0 {
        replies += command(&mut out, &[b"SELECT", pipe.database.to_string().as_bytes()]);
    }
    (out, replies)
}

/// What a worker does for its pipes: their tasks call these.
impl Worker {
    fn pipe_opened(&mut self, id: u32, stream: TcpStream) -> io::Result<()> {
        let pipe = &mut self.backends.pipes[id as usize];
        if pipe.retired {
            return Err(io::Error::other("it has left the topology"));
        }
        pipe.state = State::Ready(Rc::new(Socket::new(stream)?));
        pipe.alive = self.backends.now;
        tracing::info!(server = %pipe.addr, database = pipe.database, "connected to server");
        if !pipe.out.is_empty() {
            pipe.flush(self.backends.now, &self.stats);
        }
        Ok(())
    }

    fn poll_pipe(&mut self, id: u32, cx: &mut Context<'_>) -> Poll<End> {
        let Self {
            backends,
            clients,
            scratch,
            stats,
            serving,
            ..
        } = self;
        let pipe = &mut backends.pipes[id as usize];
        let State::Ready(socket) = &pipe.state else {
            unreachable!("only a ready pipe is polled")
        };
        let socket = Rc::clone(socket);
        pipe.waker.get_or_insert_with(|| cx.waker().clone());
        loop {
            if pipe.retired && pipe.pending.is_empty() {
                return Poll::Ready(End::Retired);
            }
            if pipe.blocked {
                let unblocked = socket.poll_writable(cx, || {
                    pipe.blocked = false;
                    pipe.flush(backends.now, stats);
                    !pipe.blocked
                });
                if let Poll::Ready(Err(e)) = unblocked {
                    return Poll::Ready(End::Broken(e.to_string()));
                }
            }
            if let Some(why) = pipe.lost.take() {
                return Poll::Ready(End::Broken(why));
            }
            scratch.resize(Self::SCRATCH, 0); // a session that panicked may have taken it along
            match socket.poll_read(cx, scratch) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(End::Broken("it closed the connection".to_owned()));
                }
                Poll::Ready(Ok(len)) => {
                    stats.server_bytes_in.add(len as u64);
                    pipe.alive = backends.now;
                    let taken = pipe.receive(&scratch[..len], &mut |pending, reply| {
                        clients.deliver(pending, reply, Outcome::Answered);
                    });
                    clients.schedule_flush();
                    if let Err(e) = taken {
                        return Poll::Ready(End::Broken(e.to_string()));
                    }
                }
                Poll::Ready(Err(e)) => return Poll::Ready(End::Broken(e.to_string())),
            }
        }
        if pipe.is_overdue(backends.now, serving.server_timeout) {
            let why = format!("no reply for {:?}", serving.server_timeout);
            return Poll::Ready(End::Broken(why));
        }
        Poll::Pending
    }

    /// Answers what was under way. Whether the pipe's life is over, too.
    fn pipe_ended(&mut self, id: u32, end: End, since: Instant) -> bool {
        let Self {
            backends,
            clients,
            stats,
            ..
        } = self;
        let pipe = &mut backends.pipes[id as usize];
        let (why, was_ready) = match (end, &pipe.state) {
            (End::Retired, _) => ("it left the topology".to_owned(), false),
            (End::Broken(why), State::Ready(_)) => (why, true),
            (End::Broken(why), State::Opening | State::Down(_)) => (why, false),
        };
        if was_ready {
            stats.server_connections_lost.add(1);
        }
        if was_ready || matches!(pipe.state, State::Opening) {
            tracing::warn!(server = %pipe.addr, why, "lost server");
        }
        pipe.fail(&why, &mut |pending, reply, outcome| {
            clients.deliver(pending, reply, outcome);
        });
        clients.schedule_flush();
        // After a connection that held, requests may wait for the first attempt to dial again.
        pipe.state = if was_ready && since.elapsed() >= SETTLED {
            State::Opening
        } else {
            State::Down(why)
        };
        pipe.waker = None;
        let over = pipe.retired;
        if over {
            backends.dirty.retain(|&dirty| dirty != id);
            backends.pipes.remove(id as usize);
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> Pipe {
        let addr = ServerAddr::new("h:1").unwrap();
        Pipe::new(
            &Server {
                addr,
                login: None,
                pipes: Vec::new(),
            },
            Protocol::Resp2,
            0,
            1000,
        )
    }

    fn pending(number: u32, may_write: bool) -> Pending {
        Pending {
            to: Recipient::Session { session: 0, number },
            may_write,
        }
    }

    #[test]
    fn replies_find_their_recipients_however_they_are_cut() {
        let bytes = b"+OK\r\n$3\r\nabc\r\n>1\r\n+push\r\n*2\r\n:1\r\n:2\r\n";
        for cut in 0..=bytes.len() {
            let mut pipe = pipe();
            pipe.pending
                .extend((0..3).map(|number| pending(number, false)));
            let mut got = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                pipe.receive(part, &mut |to, reply| got.push((to, reply.to_vec())))
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
            assert!(pipe.pending.is_empty() && pipe.partial.is_empty());
        }
    }

    #[test]
    fn a_reply_that_nobody_asked_for_breaks_the_pipe() {
        assert_eq!(pipe().receive(b"+OK\r\n", &mut |_, _| {}), Err(BadReply));
    }

    #[test]
    fn a_reply_to_what_was_never_sent_breaks_the_pipe() {
        let mut pipe = pipe();
        pipe.pending.extend([pending(0, false), pending(1, false)]);
        pipe.unsent = 1;
        let mut got = Vec::new();
        let result = pipe.receive(b"+OK\r\n+WRONG\r\n", &mut |to, _| got.push(to));
        assert_eq!((result, got), (Err(BadReply), vec![pending(0, false)]));
    }

    #[test]
    fn a_lost_connection_answers_by_what_is_known() {
        let mut pipe = pipe();
        // Sent: a write and a read. Not sent: a write.
        pipe.pending
            .extend([pending(0, true), pending(1, false), pending(2, true)]);
        pipe.unsent = 1;
        let mut outcomes = Vec::new();
        pipe.fail("gone", &mut |to, reply, outcome| {
            let Recipient::Session { number, .. } = to.to else {
                panic!()
            };
            let code = String::from_utf8_lossy(reply)
                .split(' ')
                .next()
                .unwrap()
                .to_owned();
            outcomes.push((number, code, outcome));
        });
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
