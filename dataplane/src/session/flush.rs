//! What goes out to clients: once in a turn, behind all who had something to say.
//!
//! Nobody gets so much at once that the others wait for long, and where memory is short it is given back
//! here. Whoever has more to be sent has its turn next.

use std::{
    io,
    task::{Context, Poll},
};

use super::{Phase, Session};
use crate::{buffer, memory::Pressure, worker::Worker};

/// What one client gets in one turn at most: copying much would keep all others waiting.
const FLUSH: usize = 128 * 1024;
/// So many of those who wait for memory are woken when there is some.
const EASED: usize = 16;
/// What all clients get in one turn, but for small replies.
const FLUSH_ALL: usize = 256 * 1024;

/// What came of a flush.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flushed {
    All,
    /// There is more for the next turn.
    More,
    /// The socket takes no more for now.
    Blocked,
}

impl Session {
    /// Sends what is ready, up to [`FLUSH`]; how many bytes that were.
    fn flush(&mut self) -> io::Result<(usize, Flushed)> {
        let unsent = self.outbox.unsent();
        if unsent.is_empty() {
            return Ok((0, Flushed::All));
        }
        let most = unsent.len().min(FLUSH);
        let len = match self.socket.write(&unsent[..most]) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
            written => written?,
        };
        self.outbox.mark_sent(len);
        let flushed = if len < most {
            Flushed::Blocked
        } else if self.outbox.unsent().is_empty() {
            Flushed::All
        } else {
            Flushed::More
        };
        Ok((len, flushed))
    }
}

impl Worker {
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
        if self.attentive {
            self.tell_monitors();
        }
        self.backends.flush(&self.stats, &mut self.clients.account);
        let mut dirty = std::mem::take(&mut self.clients.dirty);
        let mut sent = 0;
        for id in dirty.drain(..) {
            if sent >= FLUSH_ALL && self.clients.has_much(id) {
                self.clients.dirty.push(id); // it has its turn next
            } else {
                sent += self.flush_session(id);
            }
        }
        if self.clients.dirty.is_empty() {
            self.clients.dirty = dirty; // for its memory
        } else {
            self.clients.wake_flusher();
        }
        let errors = std::mem::take(&mut self.clients.errors);
        self.stats.errors.add(errors);
        let impatient = std::mem::take(&mut self.clients.impatient);
        self.stats.sessions_closed_stalled.add(impatient);
        let overrun = std::mem::take(&mut self.clients.overrun);
        self.stats.sessions_closed_overrun.add(overrun);
        self.flush_tracking();
        if self.clients.short || self.clients.account.pressure() != Pressure::None {
            self.relieve();
        }
    }

    /// Looks how near the memory's limit is: gives back what nobody uses, closes who holds most where it
    /// ends, and lets some of those go on who waited, once there is room.
    pub(crate) fn relieve(&mut self) {
        if self.clients.account.settle() == Pressure::None {
            if std::mem::take(&mut self.clients.short) {
                self.clients.retry(EASED);
            }
            return;
        }
        self.clients.short = true;
        buffer::shrink();
        if self.clients.account.settle() == Pressure::Critical {
            self.forget_tracked();
        }
        while self.clients.account.settle() == Pressure::Critical {
            if !self.clients.close_greediest() {
                return; // another worker's clients hold it
            }
            self.stats.sessions_closed_memory.add(1);
        }
    }

    /// How many bytes were sent.
    pub(super) fn flush_session(&mut self, id: u32) -> usize {
        let Some(session) = self.clients.sessions.get_mut(id as usize) else {
            return 0;
        };
        session.dirty = false;
        if session.is_closed() {
            return 0;
        }
        if session.blocked {
            // What it waits for may have come all the same.
            if session.stalled || session.detour.is_some() {
                session.wake();
            }
            self.clients.recount(id);
            return 0;
        }
        let mut sent = 0;
        match session.flush() {
            Ok((len, flushed)) => {
                sent = len;
                self.stats.client_bytes_out.add(len as u64);
                session.blocked = flushed == Flushed::Blocked;
                if flushed == Flushed::More {
                    session.dirty = true;
                    self.clients.dirty.push(id);
                }
                if sent > 0 {
                    session.active = self.seconds;
                }
            }
            Err(_) => session.phase = Phase::Broken,
        }
        // Its task has something to do if it could not send, waits to end, or may read again.
        let may_end = session.phase != Phase::Serving || (self.draining && session.is_idle());
        if session.blocked || may_end || session.stalled || session.detour.is_some() {
            session.wake();
        }
        if session.overfull {
            self.clients.refill(id);
        }
        self.clients.recount(id);
        sent
    }
}
