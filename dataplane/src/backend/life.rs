//! The life of a pipe: its connection is opened, used, lost, and opened again.
//!
//! What it is refused ([`super::door`]) says when it asks again: at once, by what its worker routes by since;
//! with the next topology; or after a pause, as with a server that is down.
//!
//! Invariant: while a pipe's state is `Opening` or `Ready`, its task is about to open it, or polls it.

use std::{
    cell::RefCell,
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use proto::fence;
use tokio::time::{Instant, sleep};

use super::{
    Arrival, Backends, Connection, Door, Shut, State, Stopped, WAITING_CALLED,
    hearing::main_is_there,
};
use crate::{
    backoff::Backoff,
    fanout::Outcome,
    framer::Piece,
    worker::{self, Worker},
};

/// Why a pipe's connection ended, or was not opened.
enum End {
    Retired,
    Broken(Shut),
}

impl End {
    fn broken(why: impl Into<String>) -> Self {
        Self::Broken(Shut::Down(why.into()))
    }
}

/// What a pipe does when its connection has ended.
enum Next {
    /// It is over, too.
    Nothing,
    Dial,
    /// It dials after a pause.
    Pause,
    /// It dials once its worker routes by something else: before that it is refused.
    Await(fence::Refusal),
}

/// A pipe reads so often in one turn at most: then the sessions have their turn.
const READS: usize = 4;
/// And the one for large replies: what it brings takes longest to pass on.
const BULK_READS: usize = 1;
/// A connection that lived shorter than this is not dialled again at once.
pub(crate) const SETTLED: Duration = Duration::from_secs(1);

/// The life of a pipe, until it is retired.
pub(super) async fn run(worker: Rc<RefCell<Worker>>, id: u32) {
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
    loop {
        let opened = open(&worker, id)
            .await
            .and_then(|connection| worker.borrow_mut().pipe_opened(id, connection));
        let since = Instant::now();
        let end = match opened {
            Ok(()) => poll_fn(|cx| worker.borrow_mut().poll_pipe(id, cx)).await,
            Err(why) => End::Broken(why),
        };
        let next = worker.borrow_mut().pipe_ended(id, end, since);
        match next {
            Next::Nothing => return,
            Next::Dial => backoff.reset(),
            Next::Pause => sleep(backoff.next()).await,
            Next::Await(refusal) => {
                poll_fn(|cx| worker.borrow_mut().backends.poll_newer(id, &refusal, cx)).await;
            }
        }
    }
}

/// Opens a pipe's connection.
async fn open(worker: &RefCell<Worker>, id: u32) -> Result<Connection, Shut> {
    main_is_there(worker, id).await.map_err(Shut::Down)?;
    let door = {
        let worker = &mut *worker.borrow_mut();
        worker.backends.door_of(id, worker.serving.connect_timeout)
    };
    door.open().await
}

/// What a worker does for its pipes: their tasks call these.
impl Worker {
    fn pipe_opened(&mut self, id: u32, connection: Connection) -> Result<(), Shut> {
        let pipe = &mut self.backends.pipes[id as usize];
        if pipe.retired {
            return Err(Shut::Down("it has left the topology".to_owned()));
        }
        self.tell_wishes(id).map_err(Shut::Down)?;
        let pipe = &mut self.backends.pipes[id as usize];
        self.settling.losses.meet(&pipe.addr, &connection.run_id);
        let (run_id, connection_id) = (&connection.run_id, connection.id);
        tracing::info!(
            server = %pipe.addr,
            run_id,
            connection_id,
            database = pipe.database,
            "connected to server"
        );
        pipe.state = State::Ready(Rc::new(connection));
        pipe.alive = self.backends.now;
        if !pipe.out.is_empty() {
            pipe.flush(self.backends.now, &self.stats);
        }
        Ok(())
    }

    fn poll_pipe(&mut self, id: u32, cx: &mut Context<'_>) -> Poll<End> {
        let end = self.poll_pipe_io(id, cx);
        self.call_again(id);
        self.pass_barriers();
        end
    }

    fn poll_pipe_io(&mut self, id: u32, cx: &mut Context<'_>) -> Poll<End> {
        let Self {
            backends,
            clients,
            trackers,
            scratch,
            stats,
            serving,
            clock,
            ..
        } = self;
        let now = backends.now;
        let pipe = &mut backends.pipes[id as usize];
        let State::Ready(connection) = &pipe.state else {
            unreachable!("only a ready pipe is polled")
        };
        let connection = Rc::clone(connection);
        let socket = &connection.socket;
        pipe.waker.get_or_insert_with(|| cx.waker().clone());
        let reads = if pipe.bulk { BULK_READS } else { READS };
        for _ in 0..reads {
            if pipe.retired && pipe.queue.is_empty() {
                return Poll::Ready(End::Retired);
            }
            if pipe.blocked {
                let unblocked = socket.poll_writable(cx, || {
                    pipe.blocked = false;
                    pipe.flush(now, stats);
                    !pipe.blocked
                });
                pipe.recount(&mut clients.account);
                if let Poll::Ready(Err(e)) = unblocked {
                    return Poll::Ready(End::broken(e.to_string()));
                }
            }
            if let Some(why) = pipe.lost.take() {
                return Poll::Ready(End::broken(why));
            }
            if let Some(stopped) = &pipe.stopped {
                let waited = now.saturating_duration_since(stopped.since);
                if clients.stops_pipes(stopped.session, waited, cx.waker()) {
                    return Poll::Pending;
                }
                pipe.stopped = None;
                pipe.alive = now;
            }
            scratch.resize(Self::SCRATCH, 0); // a session that panicked may have taken it along
            match socket.poll_read(cx, scratch) {
                Poll::Pending => {
                    return if pipe.is_overdue(now, serving.server_timeout) {
                        let why = format!("no reply for {:?}", serving.server_timeout);
                        Poll::Ready(End::broken(why))
                    } else {
                        Poll::Pending
                    };
                }
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(End::broken("it closed the connection"));
                }
                Poll::Ready(Ok(len)) => {
                    stats.server_bytes_in.add(len as u64);
                    pipe.alive = now;
                    let micros = clock.micros();
                    _ = clients.take_overfull(); // by an answer of the proxy's own
                    let bytes = &scratch[..len];
                    let taken = match pipe.ear.take() {
                        None => pipe.receive(bytes, micros, |pending, piece| {
                            clients.deliver(pending, piece, Outcome::Answered, stats, micros);
                        }),
                        Some(mut ear) => {
                            let arrived = |arrival: Arrival<'_>| match arrival {
                                Arrival::Reply(pending, piece) => clients.deliver(
                                    pending,
                                    piece,
                                    Outcome::Answered,
                                    stats,
                                    micros,
                                ),
                                Arrival::Push(hearing, push) => {
                                    trackers.hear(clients, hearing, push);
                                }
                                Arrival::Agreed(hearing, first) => trackers.agree(hearing, first),
                            };
                            let taken = pipe.receive_and_hear(&mut ear, bytes, micros, arrived);
                            pipe.ear = Some(ear);
                            taken
                        }
                    };
                    pipe.stopped = clients.take_overfull().map(|session| Stopped {
                        session,
                        since: now,
                    });
                    pipe.call_waiting(WAITING_CALLED);
                    pipe.recount(&mut clients.account);
                    clients.schedule_flush();
                    if let Err(e) = taken {
                        let refusal = pipe.ear.as_mut().and_then(|ear| ear.refusal.take());
                        return Poll::Ready(End::broken(refusal.unwrap_or_else(|| e.to_string())));
                    }
                }
                Poll::Ready(Err(e)) => return Poll::Ready(End::broken(e.to_string())),
            }
        }
        worker::yield_turn(cx);
        Poll::Pending
    }

    /// Answers what was under way.
    fn pipe_ended(&mut self, id: u32, end: End, since: Instant) -> Next {
        let Self {
            backends,
            clients,
            stats,
            clock,
            settling,
            ..
        } = self;
        let routing = Rc::clone(&backends.routing);
        let pipe = &mut backends.pipes[id as usize];
        let (why, was_ready) = match (end, &pipe.state) {
            (End::Retired, _) => (Shut::Down("it left the topology".to_owned()), false),
            (End::Broken(why), State::Ready(_)) => (why, true),
            (End::Broken(why), State::Opening(_) | State::Down(_)) => (why, false),
        };
        if let State::Ready(connection) = &pipe.state {
            let mut debt = settling.debt(&pipe.addr, connection);
            if pipe.queue.owes() {
                debt.incur();
            }
        }
        if was_ready {
            stats.server_connections_lost.add(1);
            pipe.stats.connections_lost.add(1);
        }
        let error = why.error(pipe.addr.as_str());
        // Each reason is told once, not at every attempt.
        match (&why, &pipe.state) {
            (Shut::Refused(_), State::Down(told)) if **told == error => {}
            (Shut::Refused(why), _) => {
                tracing::warn!(server = %pipe.addr, %why, "may not use server");
            }
            (Shut::Down(why), _) if was_ready || matches!(pipe.state, State::Opening(_)) => {
                tracing::warn!(server = %pipe.addr, why, "lost server");
            }
            (Shut::Down(_), _) => {}
        }
        let micros = clock.micros();
        pipe.fail(&why, &mut |pending, reply, outcome, cut| {
            if cut {
                clients.cut_off(pending);
            }
            clients.deliver(pending, Piece::whole(reply), outcome, stats, micros);
        });
        pipe.recount(&mut clients.account);
        clients.schedule_flush();
        let next = match why {
            _ if pipe.retired => Next::Nothing,
            // After a connection that held, requests may wait for the first attempt to dial again.
            Shut::Down(_) if was_ready && since.elapsed() >= SETTLED => Next::Dial,
            Shut::Down(_) => Next::Pause,
            Shut::Refused(refusal) => {
                stats.connections_refused.add(1);
                if routing.is_newer(&refusal) {
                    Next::Dial
                } else if refusal.is_sticky() {
                    Next::Await(refusal)
                } else {
                    Next::Pause
                }
            }
        };
        pipe.state = match next {
            Next::Dial => State::Opening(routing),
            Next::Nothing | Next::Pause | Next::Await(_) => State::Down(error.into()),
        };
        pipe.waker = None;
        if let Some(hearing) = pipe.ear.as_ref().map(|ear| ear.hearing) {
            let server = pipe.addr.clone();
            backends.lose_redirecting(id);
            if was_ready {
                self.missed_messages(hearing, &server);
            }
        }
        self.pass_barriers();
        if let Next::Nothing = next {
            let backends = &mut self.backends;
            backends.dirty.retain(|&dirty| dirty != id);
            backends.pipes.remove(id as usize);
        }
        next
    }
}

impl Backends {
    /// How to open a pipe's connection: for those who wait for it, or for who comes from now on.
    fn door_of(&mut self, pipe: u32, timeout: Duration) -> Door {
        let name = self.next_name();
        let pipe = &self.pipes[pipe as usize];
        let routing = match &pipe.state {
            State::Opening(oldest) => oldest,
            State::Ready(_) | State::Down(_) => &self.routing,
        };
        Door {
            addr: pipe.addr.clone(),
            login: pipe.login.clone(),
            protocol: pipe.protocol,
            database: pipe.database,
            no_touch: pipe.no_touch,
            routing: Rc::clone(routing),
            trusts_restarted: self.proxy.trusts_restarted(),
            timeout,
            name,
        }
    }

    /// Ready once a pipe that was refused has reason to ask again, or is no longer needed.
    fn poll_newer(&mut self, pipe: u32, refusal: &fence::Refusal, cx: &Context<'_>) -> Poll<()> {
        let is_newer = self.routing.is_newer(refusal);
        let pipe = &mut self.pipes[pipe as usize];
        if is_newer || pipe.retired {
            return Poll::Ready(());
        }
        pipe.waker.get_or_insert_with(|| cx.waker().clone());
        Poll::Pending
    }
}
