//! The sessions of a worker, and the fan-outs their requests are part of.
//!
//! Replies come here from the pipes, messages from whoever has some ([`Clients::push`]), and are put where
//! they belong; who has something to be sent is
//! remembered for the flusher, who waits for a topology, a tick or memory for whoever brings it. Here
//! it is counted what each session holds, and here sessions are broken off. Nothing is read or written,
//! and no request looked at: that is the session's part ([`super`]).
//!
//! Invariant: what a session holds is what the account was told, whenever a turn ends; a session that
//! is gone is forgotten once nothing is under way for it.

use std::{task::Waker, time::Duration};

use proto::Topology;
use slab::Slab;

use super::{FIRST_REPLY, LARGE_REPLY, Phase, Session, UNKNOWN, calls::Calls};
use crate::{
    backend::{Pending, Recipient},
    buffer,
    command::Kind,
    config::Serving,
    fanout::{Fanouts, Outcome, Part},
    framer::Piece,
    memory::{Account, Pressure},
    metrics::WorkerStats,
    outbox::Outbox,
    resp::put_error,
};

/// One huge first reply says little of the next client's.
const FIRST_REPLY_MAX: u32 = 4 << 20;

/// See the module.
pub(crate) struct Clients {
    pub(super) sessions: Slab<Session>,
    pub(super) fanouts: Fanouts,
    pub(super) calls: Calls,
    pub(crate) account: Account,
    pub(super) dirty: Vec<u32>,
    /// Sessions whose task is to look again with the next topology or tick.
    waiting: Vec<u32>,
    /// Pipes that are not read from until a session has taken what waits for it.
    stopped: Vec<Waker>,
    /// The session that a reply has just made overfull.
    overfull: Option<u32>,
    /// Barriers that were answered, by the numbers of those who wait.
    pub(crate) barriers: Vec<u32>,
    /// Burials that were answered, by their numbers, and whether the connection is no more.
    pub(crate) burials: Vec<(u32, bool)>,
    /// Memory was short when it was last looked at.
    pub(super) short: bool,
    /// What clients' first replies weigh: a running mean.
    first_reply: u32,
    output_limit: usize,
    reply_patience: Duration,
    /// Clients closed because they stopped a pipe for too long, since they were last counted.
    pub(super) impatient: u64,
    /// Clients closed because they did not take their messages, likewise.
    pub(super) overrun: u64,
    /// Error replies since they were last counted.
    pub(crate) errors: u64,
    /// Of the worker's flusher, which runs once all that is ready has been polled.
    pub(super) flusher: Option<Waker>,
    pub(super) flush_scheduled: bool,
}

impl Clients {
    pub(crate) fn new(serving: &Serving, account: Account) -> Self {
        Self {
            sessions: Slab::new(),
            fanouts: Fanouts::default(),
            calls: Calls::default(),
            account,
            dirty: Vec::new(),
            waiting: Vec::new(),
            stopped: Vec::new(),
            overfull: None,
            barriers: Vec::new(),
            burials: Vec::new(),
            short: false,
            first_reply: 0,
            output_limit: serving.output_limit,
            reply_patience: serving.reply_patience,
            impatient: 0,
            overrun: 0,
            errors: 0,
            flusher: None,
            flush_scheduled: false,
        }
    }

    pub(crate) fn insert(&mut self, session: Session) -> u32 {
        let id = self.sessions.insert(session) as u32;
        self.recount(id);
        id
    }

    pub(crate) fn session(&mut self, id: u32) -> &mut Session {
        &mut self.sessions[id as usize]
    }

    /// The session of this number, if there is one.
    pub(crate) fn find(&self, id: u32) -> Option<&Session> {
        self.sessions.get(id as usize)
    }

    /// The session of the client of this id, if it is connected to this worker. It looks at all: not for
    /// what is asked often.
    pub(crate) fn of_client(&self, client: u64) -> Option<u32> {
        let found =
            |(_, session): &(usize, &Session)| session.client.id == client && !session.is_closed();
        self.sessions.iter().find(found).map(|(id, _)| id as u32)
    }

    /// Whether this session is still that client's, and it a monitor.
    pub(crate) fn has_monitor(&self, id: u32, client: u64) -> bool {
        self.sessions.get(id as usize).is_some_and(|session| {
            session.client.id == client && session.client.is_monitor && !session.is_closed()
        })
    }

    /// Whether no client is connected; replies for those who left may still be under way.
    pub(crate) fn none_connected(&self) -> bool {
        self.sessions
            .iter()
            .all(|(_, session)| session.phase == Phase::Gone)
    }

    pub(crate) fn recount(&mut self, id: u32) {
        let session = &mut self.sessions[id as usize];
        let now = session.memory();
        self.account.recount(&mut session.counted, now);
    }

    /// Says that a request was sent on: to whom its reply goes, and what it will weigh.
    #[inline]
    pub(crate) fn pending(&mut self, id: u32, kind: Kind, may_write: bool, since: u32) -> Pending {
        let session = &mut self.sessions[id as usize];
        let weight = if session.mean == UNKNOWN {
            self.first_reply.max(FIRST_REPLY)
        } else {
            session.weight()
        };
        session.expected += weight as usize;
        self.account.expect(weight);
        Pending {
            to: Recipient::Session {
                session: id,
                number: session.outbox.reserve(),
            },
            kind,
            may_write,
            since,
            weight,
        }
    }

    /// Brings the reply of a request, or of a part of one, or a piece of it.
    #[inline]
    pub(crate) fn deliver(
        &mut self,
        pending: Pending,
        piece: Piece<'_>,
        outcome: Outcome,
        stats: &WorkerStats,
        micros: u32,
    ) {
        match pending.to {
            Recipient::Session { session, number } if piece.first && piece.last => {
                self.errors += u64::from(piece.bytes[0] == b'-');
                let len = piece.bytes.len() as u32;
                self.arrived(session, pending, len, stats, micros);
                self.reply(session, number, |out| out.extend_from_slice(piece.bytes));
            }
            Recipient::Session { .. }
            | Recipient::Part(_)
            | Recipient::Call(_)
            | Recipient::Nobody
            | Recipient::Agreement
            | Recipient::Barrier(_)
            | Recipient::Burial(_) => {
                self.deliver_otherwise(pending, piece, outcome, stats, micros);
            }
        }
    }

    /// What is not the whole reply of a session.
    #[inline(never)] // so that the usual case is short
    fn deliver_otherwise(
        &mut self,
        pending: Pending,
        piece: Piece<'_>,
        outcome: Outcome,
        stats: &WorkerStats,
        micros: u32,
    ) {
        match pending.to {
            Recipient::Session { session, number } => {
                self.errors += u64::from(piece.first && piece.bytes[0] == b'-');
                self.deliver_piece(session, number, pending, piece, stats, micros);
            }
            Recipient::Part(part) => self.deliver_part(part, piece, outcome, stats, micros),
            Recipient::Call(call) => {
                self.deliver_call(call, pending, piece, outcome, stats, micros);
            }
            Recipient::Barrier(number) if piece.last => self.barriers.push(number),
            Recipient::Burial(number) if piece.last => {
                self.burials.push((number, piece.bytes[0] == b':'));
            }
            Recipient::Nobody
            | Recipient::Agreement
            | Recipient::Barrier(_)
            | Recipient::Burial(_) => {}
        }
    }

    /// A request has been answered, in so many bytes.
    #[inline]
    fn arrived(&mut self, id: u32, pending: Pending, len: u32, stats: &WorkerStats, micros: u32) {
        let session = &mut self.sessions[id as usize];
        session.expected -= pending.weight as usize;
        if session.mean == UNKNOWN {
            self.first_reply = self.first_reply / 4 * 3 + len.min(FIRST_REPLY_MAX) / 4;
        }
        session.learn(len);
        self.account.arrived(pending.weight);
        stats.latency[pending.kind as usize].record(micros.wrapping_sub(pending.since));
    }

    fn deliver_piece(
        &mut self,
        id: u32,
        number: u32,
        pending: Pending,
        piece: Piece<'_>,
        stats: &WorkerStats,
        micros: u32,
    ) {
        let session = &mut self.sessions[id as usize];
        session.pieces = session.pieces.saturating_add(piece.bytes.len() as u32);
        if piece.last {
            let len = std::mem::take(&mut session.pieces);
            self.arrived(id, pending, len, stats, micros);
        }
        self.fill(id, |outbox| outbox.fill_piece(number, piece));
    }

    fn deliver_part(
        &mut self,
        part: Part,
        piece: Piece<'_>,
        outcome: Outcome,
        stats: &WorkerStats,
        micros: u32,
    ) {
        let whole = self.fanouts.whole(part);
        let Recipient::Session {
            session: id,
            number,
        } = whole.to
        else {
            unreachable!("what is split belongs to a session")
        };
        let session = &mut self.sessions[id as usize];
        let bytes = if session.is_closed() {
            &[]
        } else {
            piece.bytes
        };
        session.fanned += bytes.len();
        let piece = Piece { bytes, ..piece };
        let Some(fanout) = self.fanouts.fill(part, piece, outcome) else {
            return self.mark_dirty(id); // it is counted then
        };
        self.sessions[id as usize].fanned -= fanout.bytes;
        self.arrived(id, whole, fanout.bytes as u32, stats, micros);
        if let Some(before) = fanout.disagreed() {
            self.sessions[id as usize].client.no_touch = before;
        }
        self.reply(id, number, |out| fanout.merge(out));
        self.fanouts.end(fanout);
    }

    /// Of the reply to this request pieces were delivered, and the rest will never come. Nothing can
    /// be said to its client any more that it would not take for a part of the reply.
    pub(crate) fn cut_off(&mut self, pending: Pending) {
        match pending.to {
            Recipient::Session { session, .. } => self.break_off(session),
            Recipient::Call(call) => self.break_off(self.calls.session(call)),
            Recipient::Part(part) => {
                let bytes = self.fanouts.forget(part);
                if let Recipient::Session { session, .. } = self.fanouts.whole(part).to {
                    self.sessions[session as usize].fanned -= bytes;
                }
            }
            Recipient::Nobody
            | Recipient::Agreement
            | Recipient::Barrier(_)
            | Recipient::Burial(_) => {}
        }
    }

    /// Closes a session, whatever waits for it.
    pub(crate) fn break_off(&mut self, id: u32) {
        let session = &mut self.sessions[id as usize];
        if session.phase != Phase::Gone {
            session.phase = Phase::Broken;
        }
        session.wake();
        self.release(id);
    }

    /// Drops all that a closed session holds.
    pub(super) fn release(&mut self, id: u32) {
        let session = &mut self.sessions[id as usize];
        session.outbox.discard();
        session.detour = None;
        session.watch = None;
        session.client.transaction = None;
        session.args = Vec::new();
        buffer::give(&mut session.input);
        if std::mem::take(&mut session.fanned) > 0 {
            self.fanouts.discard(id);
            self.calls.discard(id);
        }
        self.refill(id);
        self.recount(id);
    }

    /// Answers a request that took no number when it was taken, since nothing is under way beside it.
    pub(crate) fn answer_awaited(&mut self, id: u32, write: impl FnOnce(&mut Vec<u8>)) {
        let number = self.sessions[id as usize].outbox.reserve();
        self.reply(id, number, write);
    }

    pub(crate) fn reply_error(
        &mut self,
        session: u32,
        number: u32,
        text: &(impl AsRef<[u8]> + ?Sized),
    ) {
        self.errors += 1;
        self.reply(session, number, |out| put_error(out, text));
    }

    /// Answers a request with a reply of the proxy's own: success, error, or nothing at all.
    pub(crate) fn reply_own(&mut self, session: u32, number: u32, reply: &[u8]) {
        self.errors += u64::from(reply.first() == Some(&b'-'));
        self.reply(session, number, |out| out.extend_from_slice(reply));
    }

    #[inline]
    pub(crate) fn reply(&mut self, id: u32, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
        self.fill(id, |outbox| outbox.fill_with(number, write));
    }

    /// Answers what was subscribed or unsubscribed: to a client that wants no replies, too, as this tells
    /// which messages it gets.
    pub(crate) fn confirm(&mut self, id: u32, number: u32, reply: &[u8]) {
        self.fill(id, |outbox| {
            outbox.fill_wanted(number, |out| out.extend_from_slice(reply));
        });
    }

    #[inline]
    pub(crate) fn fill(&mut self, id: u32, fill: impl FnOnce(&mut Outbox)) {
        let session = &mut self.sessions[id as usize];
        fill(&mut session.outbox);
        if session.is_closed() {
            session.outbox.discard();
            if session.phase == Phase::Gone && session.outbox.in_flight() == 0 {
                self.forget(id);
            }
            return;
        }
        if session.outbox.buffered() >= self.output_limit {
            session.overfull = true;
            self.overfull = Some(id);
        }
        self.mark_dirty(id);
    }

    /// Brings a message that no request asked for, whole, in the session's RESP; it goes behind the replies
    /// to all requests so far. (A request that blocks has taken no number, so that messages pass it; a
    /// transaction withholds them.)
    /// Nobody can be made wait with messages: a session that has not taken as many as it may is closed.
    /// One that is gone gets none.
    pub(crate) fn push(&mut self, id: u32, message: &[u8]) {
        let Some(session) = self.sessions.get_mut(id as usize) else {
            return;
        };
        if session.is_closed() {
            return;
        }
        let withheld = session.detour.as_mut();
        let withheld = withheld.and_then(|detour| detour.withhold(message));
        if withheld.is_none() {
            session.outbox.append(message);
        }
        let bytes = session.outbox.buffered() + withheld.unwrap_or(0);
        if bytes > self.output_limit {
            let client = session.client.id;
            tracing::warn!(client, bytes, "closed: it does not take its messages");
            self.overrun += 1;
            self.wake_flusher(); // which counts it
            return self.break_off(id);
        }
        self.mark_dirty(id);
        self.schedule_flush();
    }

    /// Takes a number that has left ([`Outbox::awaits`]) once the replies to all requests so far have.
    pub(crate) fn mark(&mut self, id: u32) -> u32 {
        let outbox = &mut self.sessions[id as usize].outbox;
        let number = outbox.reserve();
        outbox.fill_with(number, |_| {});
        self.mark_dirty(id);
        self.schedule_flush();
        number
    }

    #[inline]
    fn mark_dirty(&mut self, id: u32) {
        let session = &mut self.sessions[id as usize];
        if !session.dirty {
            session.dirty = true;
            self.dirty.push(id);
        }
    }

    /// Whether it takes long to send what waits for a session.
    pub(super) fn has_much(&self, id: u32) -> bool {
        let unsent = |session: &Session| session.outbox.unsent().len();
        self.sessions.get(id as usize).map_or(0, unsent) > LARGE_REPLY as usize
    }

    pub(super) fn forget(&mut self, id: u32) {
        let session = &mut self.sessions[id as usize];
        self.account.recount(&mut session.counted, 0);
        self.sessions.remove(id as usize);
    }

    /// The session that what was just delivered has made overfull.
    pub(crate) fn take_overfull(&mut self) -> Option<u32> {
        self.overfull.take()
    }

    /// Whether a session still stops the pipe that brings its replies, after so long; the pipe's task
    /// is woken when it no longer does. One that does so for too long is closed.
    pub(crate) fn stops_pipes(&mut self, id: u32, waited: Duration, waker: &Waker) -> bool {
        let Some(session) = self
            .sessions
            .get(id as usize)
            .filter(|session| session.overfull)
        else {
            return false;
        };
        if waited < self.reply_patience {
            self.stopped.push(waker.clone());
            return true;
        }
        let client = session.client.id;
        tracing::warn!(
            client,
            "closed: others wait because it does not take its replies"
        );
        self.impatient += 1;
        self.break_off(id);
        false
    }

    /// A session has taken what waited for it, or will take no more: pipes may bring it more.
    pub(super) fn refill(&mut self, id: u32) {
        let session = &mut self.sessions[id as usize];
        if session.overfull && session.outbox.buffered() < self.output_limit / 2 {
            session.overfull = false;
            self.stopped.drain(..).for_each(Waker::wake);
        }
    }

    /// Has the flusher run at the end of this turn, if there is something to flush, or to close.
    #[inline]
    pub(crate) fn schedule_flush(&mut self) {
        let critical = self.account.pressure() == Pressure::Critical;
        if !self.flush_scheduled && (critical || !self.dirty.is_empty()) {
            self.wake_flusher();
        }
    }

    #[inline]
    pub(super) fn wake_flusher(&mut self) {
        self.flush_scheduled = true;
        if let Some(flusher) = &self.flusher {
            flusher.wake_by_ref();
        }
    }

    /// Has a session's task look again with the next topology or tick.
    pub(crate) fn wait(&mut self, id: u32) {
        let session = &mut self.sessions[id as usize];
        if !std::mem::replace(&mut session.is_waiting, true) {
            self.waiting.push(id);
        }
    }

    /// Wakes some of those who wait for a held slot or for memory, or whose upload's server may be
    /// silent: the topology has changed, or there is memory, or time has passed.
    pub(crate) fn retry(&mut self, most: usize) {
        let most = most.min(self.waiting.len());
        for id in self.waiting.drain(..most) {
            if let Some(session) = self.sessions.get_mut(id as usize) {
                session.is_waiting = false;
                session.wake();
            }
        }
    }

    /// The topology has changed: what was watched may have moved, and who has a detour looks where its
    /// server is now.
    pub(crate) fn look_again(&mut self, topology: &Topology) {
        for (_, session) in &mut self.sessions {
            if let Some(watch) = &mut session.watch {
                watch.check(topology);
            }
            if session.detour.is_some() {
                session.wake();
            }
        }
    }

    /// Wakes everybody, to notice that the worker drains.
    pub(crate) fn wake_all(&mut self) {
        self.sessions.iter().for_each(|(_, session)| session.wake());
    }

    /// Closes the session that holds most; whether there was one that holds anything to speak of.
    pub(super) fn close_greediest(&mut self) -> bool {
        let open = self
            .sessions
            .iter()
            .filter(|(_, session)| !session.is_closed());
        // Who has asked to be spared is the last.
        let rank = |session: &Session| {
            let holds = session.counted >= buffer::KEEP_CAPACITY;
            (holds && !session.client.identity.no_evict, session.counted)
        };
        let Some((id, session)) = open.max_by_key(|(_, session)| rank(session)) else {
            return false;
        };
        if session.counted < buffer::KEEP_CAPACITY {
            return false;
        }
        tracing::warn!(
            client = session.client.id,
            bytes = session.counted,
            "closed: it holds most of what is near --max-memory"
        );
        self.break_off(id as u32);
        true
    }
}
