//! What a server answers while a script keeps it busy: `SCRIPT KILL` and the like.
//!
//! A server that has been running a script for long answers `-BUSY` to all others, but for a few commands;
//! what came behind the script on its own connection it does not even read. So scripts have pipes of
//! their own ([`super::calls`]), and what is to end one goes by the usual pipe of each group, which is
//! there already: to a busy server none could be opened, as it agrees to nothing that is said first on one.
//!
//! A group that cannot be reached is no reason not to ask the others: the script may be theirs.

use super::Dispatched;
use crate::{
    backend::{Pending, Recipient, Refusal, Way},
    command::{Command, Kind, Merge},
    fanout::{Merging, Outcome, Part},
    framer::Piece,
    resp::{Protocol, Request, put_error},
    worker::Worker,
};

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
            match self.backends.admit(pipe, &task) {
                Ok(()) => asked.push(Ok(pipe)),
                Err(Refusal::Down(why)) => asked.push(Err(why)),
                Err(Refusal::Full) => return Dispatched::Waits,
            }
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
                Ok(pipe) => {
                    self.backends.output(pipe).extend_from_slice(request.raw());
                    self.backends.expect(pipe, pending);
                }
                Err(why) => {
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
