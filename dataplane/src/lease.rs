//! A connection to a server that one session has for itself, for a while.
//!
//! What would make others wait, or means the connection it comes on, goes down a **lease** and not down a
//! shared pipe: commands that block ([`block`]), `WATCH` up to its `EXEC` ([`watch`]), an `EXEC` that the
//! proxy has a part in ([`exec`]), `WAIT` ([`wait`]), what goes through all keys ([`gather`]), and requests too large to be held ([`crate::upload`]). While its request is on a lease a session takes
//! no other one, and it begins only when all that it asked before has been answered: so nothing overtakes.
//!
//! Owns one connection and what is under way on it; whose turn it is, is the session's. A lease on which
//! nothing is left to come goes back to the [`pool`]; any other is closed, which is also how a server
//! learns that nobody waits any more.
//!
//! Invariant: what comes out of the pool is a connection on which nothing is under way, that blocks in
//! nothing and watches nothing.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Sleep, sleep};

use crate::{
    backend::{Connection, Door, Shut, Way, ask, leave_untouched, put_command, put_select},
    error,
    framer::{Framer, Piece},
    metrics::WorkerStats,
    resp::{BadReply, Protocol, put_error},
    settling::losses::{Debt, Losses},
    worker::Worker,
};

pub(crate) mod block;
pub(crate) mod exec;
pub(crate) mod gather;
pub(crate) mod pool;
pub(crate) mod wait;
pub(crate) mod watch;

pub(crate) use pool::Pool;

/// A server that does not even confirm what it was sent for so long is dead. Only its kernel's answers count:
/// what it was asked may take as long as it takes.
const DEAD_PEER: Duration = Duration::from_secs(20);

/// See the module.
pub(crate) struct Lease {
    /// In a box: a lease is handed from one to the other.
    pub(crate) connection: Box<Connection>,
    pub(crate) debt: Debt,
    framer: Framer,
    /// Where it leads, and the way it is used now.
    pub(crate) door: Door,
    /// It is among those that there may be.
    counted: pool::Counted,
}

/// A lease that is being made ready, within the time that its door gives. The error says why it cannot be.
pub(crate) type Opening = Pin<Box<dyn Future<Output = Result<Lease, Shut>>>>;

impl Lease {
    async fn open(door: Door, counted: pool::Counted, losses: Rc<Losses>) -> Result<Self, Shut> {
        let connection = door.open().await?;
        losses.meet(&door.addr, &connection.run_id);
        connection.socket.suspect(DEAD_PEER)?;
        Ok(Self {
            debt: Debt::none(connection.of(&door.addr), losses),
            connection: Box::new(connection),
            framer: Framer::default(),
            door,
            counted,
        })
    }

    /// Has it be used this way, whichever lane that is. All of it is agreed to before anything else is sent.
    async fn attune(&mut self, way: Way) -> Result<(), Shut> {
        let (mut request, mut replies) = (Vec::new(), 0);
        if self.door.protocol != way.protocol {
            let number: &[u8] = match way.protocol {
                Protocol::Resp2 => b"2",
                Protocol::Resp3 => b"3",
            };
            put_command(&mut request, &[b"HELLO", number]);
            replies += 1;
        }
        if self.door.database != way.database {
            put_select(&mut request, way.database);
            replies += 1;
        }
        let touches_otherwise = self.door.no_touch != way.no_touch;
        if replies > 0 || touches_otherwise {
            let asked = async {
                let socket = &self.connection.socket;
                ask(socket, &request, replies).await?;
                if touches_otherwise {
                    leave_untouched(socket, way.no_touch).await?;
                }
                Ok(())
            };
            self.door.in_time(asked).await?;
            self.door.turn(way);
        }
        Ok(())
    }

    /// Makes it ready for what its session says next.
    fn attuned(mut self, way: Way) -> Opening {
        Box::pin(async move {
            self.attune(way).await?;
            Ok(self)
        })
    }

    /// Whether the server has said nothing unasked, nor closed it.
    pub(crate) fn is_quiet(&self) -> bool {
        self.connection.socket.is_quiet()
    }
}

/// Some requests on a lease, and their replies.
pub(crate) struct Exchange {
    state: State,
    /// What is to be sent, from `sent` on.
    out: Vec<u8>,
    sent: usize,
    /// The server may have some of the requests.
    was_sent: bool,
    /// Whether it matters if it was executed.
    may_write: bool,
    /// How many replies have still to come.
    replies: u32,
    /// The number that the last reply took, once some of it has come.
    number: u32,
    /// A server that says nothing for so long is lost. `None`: it may take for ever.
    silence: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
}

#[expect(
    clippy::large_enum_variant,
    reason = "it lies in a box of its session's, and nearly always is the large one"
)]
enum State {
    Opening(Opening),
    Open(Lease),
    Over,
}

/// What came of a step of an exchange.
pub(crate) enum Step {
    /// There may be more to be done at once.
    Again,
    /// All replies are there.
    Done(Lease),
    Failed(Failure),
}

/// The server is lost.
pub(crate) struct Failure {
    /// The requests may have been executed.
    pub(crate) was_sent: bool,
    /// The first bytes of the last reply were passed on already.
    pub(crate) is_cut: bool,
    pub(crate) why: Shut,
}

impl Failure {
    /// Nobody knows what became of what was sent, since this happened.
    fn sent(why: &str) -> Self {
        Self {
            was_sent: true,
            is_cut: false,
            why: Shut::Down(why.to_owned()),
        }
    }
}

impl Exchange {
    pub(crate) fn new(
        opening: Opening,
        requests: Vec<u8>,
        replies: u32,
        silence: Option<Duration>,
    ) -> Self {
        Self {
            state: State::Opening(opening),
            out: requests,
            sent: 0,
            was_sent: false,
            may_write: false,
            replies,
            number: 0,
            silence,
            timer: None,
        }
    }

    /// The same, of requests of which it matters whether they were executed, if that is so.
    pub(crate) fn writing(self, may_write: bool) -> Self {
        Self { may_write, ..self }
    }

    /// One of which all has been sent that is to be; its reply has still to come.
    pub(crate) fn sent(lease: Lease, silence: Duration, may_write: bool) -> Self {
        Self {
            state: State::Open(lease),
            out: Vec::new(),
            sent: 0,
            was_sent: true,
            may_write,
            replies: 1,
            number: 0,
            silence: Some(silence),
            timer: None,
        }
    }

    /// Bytes of memory it owns.
    pub(crate) fn memory(&self) -> usize {
        self.out.capacity()
            + match &self.state {
                State::Open(lease) => lease.framer.memory(),
                State::Opening(_) | State::Over => 0,
            }
    }

    /// Whether the server may have some of it.
    pub(crate) fn was_sent(&self) -> bool {
        self.was_sent
    }

    /// What the server calls its connection, once it has been sent something.
    pub(crate) fn connection(&self) -> Option<u64> {
        match &self.state {
            State::Open(lease) if self.was_sent => Some(lease.connection.id),
            State::Open(_) | State::Opening(_) | State::Over => None,
        }
    }

    /// Goes on by one step: opens, sends, or reads once. `take` gets each reply, or piece of one, and how
    /// many replies come behind it.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
        stats: &WorkerStats,
        take: impl FnMut(u32, Piece<'_>),
    ) -> Poll<Step> {
        match &mut self.state {
            State::Opening(opening) => match ready!(opening.as_mut().poll(cx)) {
                Ok(lease) => {
                    self.state = State::Open(lease);
                    Poll::Ready(Step::Again)
                }
                Err(why) => Poll::Ready(Step::Failed(self.fail(why))),
            },
            State::Open(_) if self.sent < self.out.len() => match self.send(cx, stats) {
                Ok(true) => Poll::Ready(Step::Again),
                Ok(false) => self.poll_silence(cx),
                Err(e) => Poll::Ready(Step::Failed(self.fail(e.into()))),
            },
            State::Open(_) => self.receive(cx, scratch, stats, take),
            State::Over => unreachable!("nobody goes on with what is over"),
        }
    }

    /// Sends what the socket takes now; whether that was something.
    fn send(&mut self, cx: &mut Context<'_>, stats: &WorkerStats) -> io::Result<bool> {
        let State::Open(lease) = &mut self.state else {
            return Ok(false);
        };
        if self.may_write {
            lease.debt.incur();
        }
        loop {
            match lease.connection.socket.write(&self.out[self.sent..]) {
                Ok(len) => {
                    stats.server_bytes_out.add(len as u64);
                    self.sent += len;
                    self.was_sent = true;
                    self.timer = None;
                    return Ok(true);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
            // The first time it is only asked whether there is room, as far as is known.
            let mut looked = false;
            let room = lease
                .connection
                .socket
                .poll_writable(cx, || std::mem::replace(&mut looked, true));
            match room {
                Poll::Pending => return Ok(false),
                Poll::Ready(room) => room?,
            }
        }
    }

    fn receive(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
        stats: &WorkerStats,
        mut take: impl FnMut(u32, Piece<'_>),
    ) -> Poll<Step> {
        let State::Open(lease) = &mut self.state else {
            unreachable!("only an open one is read from")
        };
        let why = match lease.connection.socket.poll_read(cx, scratch) {
            Poll::Pending => return self.poll_silence(cx),
            Poll::Ready(Ok(0)) => "it closed the connection".to_owned(),
            Poll::Ready(Err(e)) => e.to_string(),
            Poll::Ready(Ok(len)) => {
                stats.server_bytes_in.add(len as u64);
                self.timer = None;
                let replies = &mut self.replies;
                let taken = lease.framer.receive(&scratch[..len], |piece| {
                    let left = replies.checked_sub(1).ok_or(BadReply)?;
                    if piece.last {
                        *replies = left;
                    }
                    take(left, piece);
                    Ok(())
                });
                match taken {
                    Err(e) => e.to_string(),
                    Ok(()) if self.replies > 0 => return Poll::Ready(Step::Again),
                    Ok(()) => match std::mem::replace(&mut self.state, State::Over) {
                        State::Open(mut lease) => {
                            lease.debt.pay();
                            return Poll::Ready(Step::Done(lease));
                        }
                        State::Opening(_) | State::Over => unreachable!("it was read from"),
                    },
                }
            }
        };
        Poll::Ready(Step::Failed(self.fail(Shut::Down(why))))
    }

    /// Nothing comes for now; the server may be lost.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        let Some(silence) = self.silence else {
            return Poll::Pending;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(silence)));
        ready!(timer.as_mut().poll(cx));
        let why = format!("no reply for {silence:?}");
        Poll::Ready(Step::Failed(self.fail(Shut::Down(why))))
    }

    fn fail(&mut self, why: Shut) -> Failure {
        let is_cut = match &self.state {
            State::Open(lease) => lease.framer.is_passing() && self.replies == 1,
            State::Opening(_) | State::Over => false,
        };
        self.state = State::Over;
        Failure {
            was_sent: self.was_sent,
            is_cut,
            why,
        }
    }
}

/// What a worker does for the exchanges of its sessions.
impl Worker {
    /// A lease for a session, to the primary of a group, as the client is now.
    pub(crate) fn lease(&mut self, id: u32, group: u16) -> Option<Opening> {
        let timeout = self.serving.connect_timeout;
        let way = self.clients.session(id).client.way();
        let opening = self.leases.take(self.backends.door(group, way, timeout));
        self.stats.leases_refused.add(opening.is_none().into());
        opening
    }

    /// Goes on by a step with an exchange whose last reply is the client's, unless `withhold` says of its
    /// first piece that it is not. The client takes it as fast as it can; the server waits.
    pub(crate) fn poll_exchange(
        &mut self,
        id: u32,
        exchange: &mut Exchange,
        cx: &mut Context<'_>,
        mut withhold: impl FnMut(Piece<'_>) -> bool,
    ) -> Poll<Step> {
        if self.clients.session(id).outbox.buffered() >= self.serving.max_inflight_bytes {
            exchange.timer = None; // it is not the server that is waited for
            return Poll::Pending;
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(Self::SCRATCH, 0);
        let clients = &mut self.clients;
        let mut number = exchange.number;
        let step = exchange.poll(cx, &mut scratch, &self.stats, |left, piece| {
            if left > 0 || (piece.first && withhold(piece)) {
                return;
            }
            if piece.first {
                number = clients.session(id).outbox.reserve();
                clients.errors += u64::from(piece.bytes[0] == b'-');
            }
            clients.fill(id, |outbox| outbox.fill_piece(number, piece));
        });
        exchange.number = number;
        self.scratch = scratch;
        step
    }

    /// Goes on by a step with an exchange whose replies no client gets as they come: `take` does.
    fn poll_aside(
        &mut self,
        exchange: &mut Exchange,
        cx: &mut Context<'_>,
        take: impl FnMut(u32, Piece<'_>),
    ) -> Poll<Step> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(Self::SCRATCH, 0);
        let step = exchange.poll(cx, &mut scratch, &self.stats, take);
        self.scratch = scratch;
        step
    }

    /// A request that took its lease is answered with an error.
    pub(crate) fn answer_failure(&mut self, id: u32, text: &str) {
        self.clients.errors += 1;
        self.clients.answer_awaited(id, |out| put_error(out, text));
    }

    /// Tells of a lease that is no more, or never was. Of a refusal the pipes tell.
    pub(crate) fn lease_lost(&self, server: &str, why: &Shut) {
        match why {
            Shut::Down(why) => {
                tracing::warn!(server, why, "lost the server of a lease");
                self.stats.server_connections_lost.add(1);
            }
            Shut::Refused(_) => self.stats.connections_refused.add(1),
        }
    }

    /// The server is lost: the client is told what became of what it asked.
    pub(crate) fn exchange_failed(
        &mut self,
        id: u32,
        server: &str,
        may_write: bool,
        failure: &Failure,
    ) {
        let Failure {
            was_sent,
            is_cut,
            why,
        } = failure;
        self.lease_lost(server, why);
        if *is_cut {
            return self.clients.break_off(id); // half a reply cannot be taken back
        }
        let text = if *was_sent && may_write {
            error::unknown_outcome(server, &why.to_string())
        } else {
            why.error(server)
        };
        self.answer_failure(id, &text);
    }
}
