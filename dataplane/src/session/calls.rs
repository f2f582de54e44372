//! Scripts called by their hash, where the server may not know them.
//!
//! A pipe that has not shown a script to its server shows it right before the call: `SCRIPT LOAD`, whose
//! reply is nobody's. What is asked behind the call stays behind it, so that no request overtakes another.
//! A server can have forgotten a script all the same (`SCRIPT FLUSH`, by whomever), and says so: it has
//! executed nothing, is shown the script and called again, if the session has asked for nothing since. If
//! it has, its client gets the error, as from any server that has forgotten.
//!
//! Invariant: a call is sent a second time at most, and only if the server has said that it executed
//! nothing.

use proto::seeded::{self, Bug};
use slab::Slab;

use super::{Clients, Dispatched};
use crate::{
    backend::{Pending, Recipient, Refusal},
    command::{Command, Kind},
    error,
    fanout::Outcome,
    framer::Piece,
    metrics::WorkerStats,
    resp::{Request, put_bulk, put_error, put_header},
    scripts::{self, Sha},
    worker::Worker,
};

/// What a server says of a script that it does not know begins so.
const NOSCRIPT: &[u8] = b"-NOSCRIPT ";
/// A call of more bytes is not made again: it would be held until it is answered.
const REPEATED: usize = 64 * 1024;

/// The calls of a worker that are under way.
#[derive(Default)]
pub(crate) struct Calls {
    calls: Slab<Call>,
    /// What the server that was just read from does not know.
    unknown: Vec<Unknown>,
}

struct Call {
    sha: Sha,
    /// Where its reply goes.
    session: u32,
    number: u32,
    /// To be sent again; empty: it will not be.
    request: Vec<u8>,
}

struct Unknown {
    sha: Sha,
    /// To be sent again, and where its reply goes.
    again: Option<(Vec<u8>, Pending)>,
}

impl Calls {
    /// Nobody is there for the replies to this session's calls: they are not made again.
    pub(super) fn discard(&mut self, id: u32) {
        let calls = self.calls.iter_mut().map(|(_, call)| call);
        calls
            .filter(|call| call.session == id)
            .for_each(|call| call.request = Vec::new());
    }

    /// The session that waits for a call's reply.
    pub(super) fn session(&self, call: u32) -> u32 {
        self.calls[call as usize].session
    }
}

impl Clients {
    /// Has a request be a call of this script.
    fn call(&mut self, pending: Pending, sha: Sha, request: &[u8]) -> Pending {
        let Recipient::Session { session, number } = pending.to else {
            unreachable!("a request of a session was made it")
        };
        let request = if request.len() <= REPEATED {
            request.to_vec()
        } else {
            Vec::new()
        };
        self.sessions[session as usize].fanned += request.len();
        let call = Call {
            sha,
            session,
            number,
            request,
        };
        Pending {
            to: Recipient::Call(self.calls.calls.insert(call) as u32),
            ..pending
        }
    }

    /// Takes the reply to a call, or a piece of it: it is the session's, or the call is to be made again.
    pub(super) fn deliver_call(
        &mut self,
        index: u32,
        pending: Pending,
        piece: Piece<'_>,
        outcome: Outcome,
        stats: &WorkerStats,
        micros: u32,
    ) {
        let call = &mut self.calls.calls[index as usize];
        let (session, number) = (call.session, call.number);
        if piece.last {
            let request = std::mem::take(&mut call.request);
            let of_session = &mut self.sessions[session as usize];
            of_session.fanned -= request.len();
            let was_lost = outcome == Outcome::Unknown;
            let is_unknown = piece.first && piece.bytes.starts_with(NOSCRIPT);
            if is_unknown || (was_lost && seeded::has(Bug::RetryWrite)) {
                let repeats = !request.is_empty() && of_session.outbox.is_newest(number);
                self.calls.unknown.push(Unknown {
                    sha: call.sha,
                    again: repeats.then_some((request, pending)),
                });
                if repeats {
                    return;
                }
            }
            self.calls.calls.remove(index as usize);
        }
        let to = Recipient::Session { session, number };
        self.deliver(Pending { to, ..pending }, piece, outcome, stats, micros);
    }
}

impl Worker {
    /// Keeps a script that a request brings, or forgets them all if it asks for that.
    pub(crate) fn see_script(&mut self, command: &Command, request: &Request<'_>) {
        let scripts = &self.proxy.scripts;
        if let Some(source) = scripts::source(command, request) {
            self.seen.see(source, scripts);
        } else if scripts::forgets(command, request) {
            scripts.flush();
        }
    }

    /// The session's pipe for what runs a script at a group, if that takes a request now; else what became
    /// of the request. A script may run for ever: those who call none do not wait behind it.
    pub(crate) fn admit_script(&mut self, id: u32, group: u16) -> Result<u32, Dispatched> {
        let session = self.clients.session(id);
        let Some(way) = session.script_way(id) else {
            return Err(Dispatched::Waits);
        };
        let pipe = self.backends.pipe(group, way);
        match self.backends.admit(pipe, session.task()) {
            Ok(()) => Ok(pipe),
            Err(Refusal::Full) => Err(Dispatched::Waits),
            Err(Refusal::Down(why)) => Err(self.answer_error(id, &*why)),
        }
    }

    /// Sends a request that has to do with scripts.
    pub(super) fn send_script(
        &mut self,
        id: u32,
        command: &Command,
        request: &Request<'_>,
        group: u16,
    ) -> Dispatched {
        let admitted = if command.runs_script() {
            self.admit_script(id, group)
        } else {
            self.admit(id, group)
        };
        let pipe = match admitted {
            Ok(pipe) => pipe,
            Err(refused) => return refused,
        };
        self.see_script(command, request);
        let called = scripts::called(command, request);
        let called = called.filter(|&sha| self.show_script(pipe, sha));
        let output = self.backends.output(pipe);
        output.extend_from_slice(request.raw());
        let (kind, may_write) = (Kind::Script, command.may_write());
        let mut pending = self.clients.pending(id, kind, may_write, self.micros);
        if let Some(sha) = called {
            pending = self.clients.call(pending, sha, request.raw());
        }
        self.backends.expect(pipe, pending);
        self.taken(id);
        Dispatched::Done
    }

    /// Has a pipe show a script to its server, if it has not. Whether it has now: the proxy may not know
    /// it either.
    pub(crate) fn show_script(&mut self, pipe: u32, sha: Sha) -> bool {
        let scripts = &self.proxy.scripts;
        if !self.backends.shown(pipe).lacks(sha, scripts) {
            return true;
        }
        let Some(source) = scripts.source(sha) else {
            return false;
        };
        self.backends.shown(pipe).add(sha);
        let output = self.backends.output(pipe);
        put_header(output, b'*', 3);
        [b"SCRIPT", &b"LOAD"[..], &source]
            .into_iter()
            .for_each(|word| put_bulk(output, word));
        let load = Pending {
            to: Recipient::Nobody,
            kind: Kind::Script,
            may_write: false,
            since: self.micros,
            weight: 0,
        };
        self.backends.expect(pipe, load);
        true
    }

    /// Of the calls that the server of this pipe could not execute, makes those again that can be. No
    /// request of their sessions has been taken since: they are still the last.
    pub(crate) fn call_again(&mut self, pipe: u32) {
        while let Some(Unknown { sha, again }) = self.clients.calls.unknown.pop() {
            self.backends.shown(pipe).forget(sha);
            let Some((request, pending)) = again else {
                continue;
            };
            if self.show_script(pipe, sha) {
                self.backends.output(pipe).extend_from_slice(&request);
                self.backends.expect(pipe, pending);
                self.place_barriers_again(pipe);
                self.clients.wake_flusher();
            } else {
                let mut reply = Vec::new();
                put_error(&mut reply, error::NO_SCRIPT);
                let (piece, micros) = (Piece::whole(&reply), self.micros);
                let answered = Outcome::Answered;
                self.clients
                    .deliver(pending, piece, answered, &self.stats, micros);
            }
        }
    }
}
