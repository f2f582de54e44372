//! What a server answers while a script keeps it busy: `SCRIPT KILL` and the like.
//!
//! A server that has been running a script for long answers `-BUSY` to all others, but for a few commands;
//! what came behind the script on its own connection it does not even read. So scripts have pipes of
//! their own ([`super::calls`]), and what is to end one goes by the usual pipe of each group. Where that is not
//! open, it will not be: a busy server agrees to nothing that is said first on a connection. There it is
//! called out past the door ([`crate::backend`]), on a connection that serves nothing else. Ending a script
//! changes no key, so that it needs nobody's leave.
//!
//! A group that cannot be reached is no reason not to ask the others: the script may be theirs.

use std::rc::Rc;

use super::Dispatched;
use crate::{
    backend::{Pending, Recipient, Refusal, Way},
    command::{Command, Kind, Merge},
    fanout::{Merging, Outcome, Part},
    framer::Piece,
    resp::{Protocol, Request, put_error},
    worker::Worker,
};

/// How a group is asked.
enum To {
    Pipe(u32),
    PastTheDoor(u16),
    /// It is not: why.
    Nobody(Rc<str>),
}

impl Worker {
    /// Asks each group that owns slots, busy or not.
    pub(super) fn ask_busy(
        &mut self,
        id: u32,
        command: &Command,
        merge: Merge,
        request: &Request<'_>,
    ) -> Dispatched {
        let session = self.clients.session(id);
        if session.outbox.in_flight() > 0 {
            return Dispatched::Waits; // a script of its own would be killed before its time
        }
        let protocol = if merge == Merge::Any {
            Protocol::Resp2 // OK, or an error: the same in both
        } else {
            session.client.protocol
        };
        let way = Way {
            protocol,
            ..Way::USUAL
        };
        let task = session.task().clone();
        let topology = self.topology.as_ref().expect("a route was made from it");
        let mut asked = Vec::new();
        for group in topology.owners() {
            let pipe = self.backends.pipe(group, way);
            asked.push(match self.backends.admit(pipe, &task) {
                Ok(()) | Err(Refusal::Down(_))
                    if merge == Merge::Any && self.backends.may_be_busy(pipe) =>
                {
                    To::PastTheDoor(group)
                }
                Ok(()) => To::Pipe(pipe),
                Err(Refusal::Down(why)) => To::Nobody(why),
                Err(Refusal::Full) => return Dispatched::Waits,
            });
        }
        let (micros, may_write) = (self.micros, command.may_write());
        let whole = self.clients.pending(id, Kind::Split, may_write, micros);
        let (merging, count) = (Merging::Plain(merge), asked.len() as u16);
        let fanout = self.clients.fanouts.start(whole, merging, &[], count);
        self.stats.requests_split.add(1);
        self.taken(id);
        for (asked, index) in asked.into_iter().zip(0..) {
            let pending = Pending {
                to: Recipient::Part(Part { fanout, index }),
                weight: whole.weight / u32::from(count),
                ..whole
            };
            match asked {
                To::Pipe(pipe) => {
                    self.backends.output(pipe).extend_from_slice(request.raw());
                    self.backends.expect(pipe, pending);
                }
                To::PastTheDoor(group) => {
                    let most = self.serving.connect_timeout;
                    self.backends.call_out(group, request.raw(), pending, most);
                }
                To::Nobody(why) => {
                    let mut reply = Vec::new();
                    put_error(&mut reply, &*why);
                    let (piece, not) = (Piece::whole(&reply), Outcome::NotExecuted);
                    self.clients
                        .deliver(pending, piece, not, &self.stats, micros);
                }
            }
        }
        Dispatched::Done
    }
}
