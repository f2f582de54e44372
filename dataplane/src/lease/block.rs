//! A command that waits at its server until there is something for it.
//!
//! Its session takes no other request meanwhile, as in Redis, but its client is listened to: when that goes
//! away the lease is closed, so that the server gives nothing to nobody. How long it may take is the
//! server's business; a server that says nothing some time after that is lost.
//!
//! When the topology holds or moves its slot, it is **recalled**: unblocked at the server, from another
//! connection, again and again until its own answers, since the one may overtake the other. If it was
//! served before that, this is the reply. If not, it is asked again of the slot's next owner, for what
//! remains of its time, and the client sees nothing of it.
//!
//! Invariant: it is asked of one server at a time, and again only after the one before has said that it
//! has not served it.

use std::{
    mem,
    ops::Range,
    task::{Context, Poll},
    time::Duration,
};

use proto::{ServerAddr, Slot};
use tokio::time::Instant;

use super::{Exchange, Failure, Step};
use crate::{
    backend::Unblock,
    command::{Command, Patience},
    error,
    framer::Piece,
    resp::{Request, put_bulk},
    route::Owner,
    session::{Detour, Dispatched, WAIT_MAX},
    settling::passages::Passage,
    socket::Socket,
    worker::{self, Worker},
};

/// What a command says that was unblocked by `CLIENT UNBLOCK … ERROR`, and so was not served.
const UNBLOCKED: &[u8] = b"-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n";
/// The least time that is not for ever.
const LEAST: Duration = Duration::from_millis(1);
/// So often an exchange is gone on with in a turn at most.
const STEPS: usize = 16;

/// See the module.
pub(crate) struct Block {
    stage: Stage,
    request: Vec<u8>,
    /// Where in it the time stands that it may take.
    patience: Range<usize>,
    in_millis: bool,
    /// When that is over. `None`: never.
    until: Option<Instant>,
    slot: Slot,
    may_write: bool,
}

#[expect(
    clippy::large_enum_variant,
    reason = "it lies in a box of its session's, and nearly always is the large one"
)]
enum Stage {
    /// A server has it, or is about to.
    Asked {
        exchange: Exchange,
        server: ServerAddr,
        passage: Passage,
        recall: Option<Recall>,
    },
    /// No server has it. It goes to the slot's owner, once that serves.
    Unasked,
}

/// It is being unblocked.
struct Recall {
    why: Why,
    /// When the server was last told.
    told: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// Its slot is held, or another's.
    Moves,
    /// The proxy drains.
    Drains,
    /// Somebody wants it to; its client gets what the server then says.
    Asked(Unblock),
}

impl Block {
    fn new(command: &Command, patience: Patience, request: &Request<'_>, slot: Slot) -> Self {
        let rest = |from| request.raw().len() - request.frames(from, request.argc()).len();
        let given = patience.of(request);
        Self {
            stage: Stage::Unasked,
            request: request.raw().to_vec(),
            patience: rest(patience.at)..rest(patience.at + 1),
            in_millis: patience.in_millis,
            until: given.and_then(|time| Instant::now().checked_add(time)),
            slot,
            may_write: command.may_write(),
        }
    }

    /// Has it end, in whatever state its server finds it. Whether a server has it, or is about to.
    pub(crate) fn end(&mut self, how: Unblock) -> bool {
        match &mut self.stage {
            Stage::Asked { recall, .. } => {
                let why = Why::Asked(how);
                recall.get_or_insert(Recall { why, told: None });
                true
            }
            Stage::Unasked => false,
        }
    }

    /// Bytes of memory it owns.
    pub(crate) fn memory(&self) -> usize {
        self.request.capacity()
            + match &self.stage {
                Stage::Asked { exchange, .. } => exchange.memory(),
                Stage::Unasked => 0,
            }
    }

    /// The request, for what remains of its time.
    fn request_for(&self, remaining: Option<Duration>) -> Vec<u8> {
        let Some(remaining) = remaining else {
            return self.request.clone();
        };
        let millis = remaining.max(LEAST).as_millis();
        let text = if self.in_millis {
            millis.to_string()
        } else {
            format!("{}.{:03}", millis / 1000, millis % 1000)
        };
        let mut request = self.request[..self.patience.start].to_vec();
        put_bulk(&mut request, text.as_bytes());
        request.extend_from_slice(&self.request[self.patience.end..]);
        request
    }
}

/// What a worker does for the commands that block: the session's task calls this.
impl Worker {
    /// Takes a request that may make its connection wait.
    pub(crate) fn block(
        &mut self,
        id: u32,
        command: &Command,
        request: &Request<'_>,
        slot: Slot,
        group: u16,
    ) -> Dispatched {
        let session = self.clients.session(id);
        if session.outbox.in_flight() > 0 {
            return Dispatched::Waits; // it must not overtake
        }
        let patience = command.patience(request).expect("it blocks");
        let mut block = Block::new(command, patience, request, slot);
        let bytes = block.request.clone();
        match self.ask_owner(id, &block, group, bytes) {
            Some(asked) => block.stage = asked,
            None => return self.answer_error(id, error::NO_LEASE),
        }
        self.taken(id);
        self.stats.requests_blocking.add(1);
        self.begin_detour(id, Detour::Block(block));
        Dispatched::Done
    }

    /// `None`: there is no lease for it.
    fn ask_owner(&mut self, id: u32, block: &Block, group: u16, request: Vec<u8>) -> Option<Stage> {
        let opening = self.lease(id, group)?;
        let server = self.backends.primary(group).clone();
        let remaining = block.until.map(|until| until - Instant::now());
        let silence = remaining.map(|time| time.saturating_add(self.serving.server_timeout));
        Some(Stage::Asked {
            exchange: Exchange::new(opening, request, 1, silence).writing(block.may_write),
            server,
            passage: self.settling.pass(block.slot),
            recall: None,
        })
    }

    /// Goes on with a blocking command. Ready: it is over, and so may be the session.
    pub(crate) fn poll_block(
        &mut self,
        id: u32,
        block: &mut Block,
        client: &Socket,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if !self.poll_ahead(id, client, cx) {
            return Poll::Ready(()); // nobody waits for it any more
        }
        for _ in 0..STEPS {
            if !self.recall(id, block) {
                return Poll::Ready(());
            }
            let Stage::Asked {
                exchange, recall, ..
            } = &mut block.stage
            else {
                match self.ask_again(id, block) {
                    Poll::Ready(true) => continue,
                    Poll::Ready(false) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            };
            let is_ours = recall.as_ref().is_some_and(|recall| match recall.why {
                Why::Moves | Why::Drains => true,
                Why::Asked(_) => false,
            });
            let mut is_back = false;
            let step = self.poll_exchange(id, exchange, cx, |piece: Piece<'_>| {
                is_back = is_ours && piece.bytes == UNBLOCKED;
                is_back
            });
            match step {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Step::Again) => {}
                Poll::Ready(Step::Done(lease)) => {
                    let Stage::Asked { recall, .. } =
                        mem::replace(&mut block.stage, Stage::Unasked)
                    else {
                        unreachable!("it was asked")
                    };
                    match recall {
                        // Another word for it may be under way, and would unblock whoever has it next.
                        Some(_) if !is_back => drop(lease),
                        Some(Recall {
                            why: Why::Drains, ..
                        }) => self.clients.break_off(id),
                        Some(Recall {
                            why: Why::Moves, ..
                        }) => continue,
                        Some(Recall {
                            why: Why::Asked(_), ..
                        }) => drop(lease),
                        None => self.leases.give(lease, self.backends.now()),
                    }
                    return Poll::Ready(());
                }
                Poll::Ready(Step::Failed(failure)) => {
                    // It was routed by what is no longer true: whoever owns the slot now is asked.
                    if self.backends.is_outdated(&failure.why) {
                        block.stage = Stage::Unasked;
                        continue;
                    }
                    let Stage::Asked { server, .. } = &block.stage else {
                        unreachable!("it was asked")
                    };
                    self.exchange_failed(id, server.as_str(), block.may_write, &failure);
                    return Poll::Ready(());
                }
            }
        }
        worker::yield_turn(cx);
        Poll::Pending
    }

    /// Sees whether it has to be recalled, and says so to the server once in a tick. Whether it goes on.
    fn recall(&mut self, id: u32, block: &mut Block) -> bool {
        let Stage::Asked {
            exchange,
            server,
            passage,
            recall,
        } = &mut block.stage
        else {
            return true;
        };
        let why = match recall {
            Some(recall) => recall.why,
            None if !self.serves(block.slot, server)
                || self.is_from_before(passage, block.slot) =>
            {
                Why::Moves
            }
            None if self.draining => Why::Drains,
            None => return true,
        };
        let Some(connection) = exchange.connection() else {
            // It has been sent nothing.
            match why {
                Why::Moves => block.stage = Stage::Unasked,
                Why::Drains => self.clients.break_off(id),
                Why::Asked(_) => {}
            }
            return why != Why::Drains;
        };
        let how = match why {
            Why::Moves | Why::Drains => Unblock::WithError,
            Why::Asked(how) => how,
        };
        let now = self.backends.now();
        let told = &mut recall.get_or_insert(Recall { why, told: None }).told;
        if *told != Some(now) {
            *told = Some(now);
            if !self
                .backends
                .unblock(server, connection, how, self.clock.micros())
            {
                // There is no way to tell it. Whether a read was served makes no difference.
                if block.may_write {
                    let failure = Failure::sent("it left the topology");
                    self.exchange_failed(id, server.as_str(), true, &failure);
                }
                block.stage = Stage::Unasked;
                return !block.may_write;
            }
        }
        self.clients.wait(id); // until the next tick
        true
    }

    /// Whether it was asked when its slot was not copied yet: so it would not be known what it touches.
    fn is_from_before(&self, passage: &Passage, slot: Slot) -> bool {
        let topology = self.topology.as_ref();
        topology.is_some_and(|now| self.settling.has_changed_since(slot, passage.turn, now))
    }

    /// Whether requests for a slot go to this server now.
    pub(super) fn serves(&self, slot: Slot, server: &ServerAddr) -> bool {
        let owner = self
            .topology
            .as_ref()
            .map(|topology| Owner::of(Some(slot), topology));
        matches!(owner, Some(Owner::Serves(group)) if self.backends.primary(group) == server)
    }

    /// Asks the slot's owner, for what remains of its time. Ready: whether it did; else it is over.
    fn ask_again(&mut self, id: u32, block: &mut Block) -> Poll<bool> {
        let topology = self.topology.as_ref().expect("it was routed once");
        let text = match Owner::of(Some(block.slot), topology) {
            Owner::Serves(group) => {
                let now = Instant::now();
                let remaining = block.until.map(|until| until - now);
                let request = block.request_for(remaining);
                self.see_again(id, &request);
                self.clients.session(id).held_since = None;
                match self.ask_owner(id, block, group, request) {
                    Some(asked) => {
                        block.stage = asked;
                        return Poll::Ready(true);
                    }
                    None => error::NO_LEASE,
                }
            }
            Owner::Held => {
                // Its client does not expect it to take much longer than its own time.
                let is_over = block.until.is_some_and(|until| until <= Instant::now());
                let waits = match is_over {
                    true => self.waits(id, WAIT_MAX),
                    false => self.waits_for_hold(id),
                };
                if waits {
                    return Poll::Pending;
                }
                error::HELD_TOO_LONG
            }
            Owner::Missing(why) => error::rejection(why),
        };
        self.answer_failure(id, text);
        Poll::Ready(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        command,
        resp::{Limits, Progress, split_inline},
    };

    #[test]
    fn it_is_asked_again_for_what_remains_of_its_time() {
        let check = |line: &str, given: Option<u64>, remaining: Option<u64>, expected: &str| {
            let raw = split_inline(line.as_bytes()).unwrap();
            let mut args = Vec::new();
            let mut progress = Progress::default();
            let limits = Limits::UNAUTHENTICATED;
            progress.scan(&raw, &mut args, &limits, true).unwrap();
            let request = Request::new(&raw, &args);
            let command = command::find(&request).unwrap();
            let patience = command.patience(&request).unwrap();
            assert_eq!(
                patience.of(&request),
                given.map(Duration::from_millis),
                "{line}"
            );
            let slot = Slot::of_key(b"a");
            let block = Block::new(command, patience, &request, slot);
            assert_eq!(block.until.is_some(), given.is_some());
            let again = block.request_for(remaining.map(Duration::from_millis));
            assert_eq!(again, split_inline(expected.as_bytes()).unwrap(), "{line}");
        };
        check("blpop a b 1.5", Some(1500), Some(1204), "blpop a b 1.204");
        check("blpop a b 0", None, None, "blpop a b 0");
        check(
            "bzmpop 2 1 a min",
            Some(2000),
            Some(0),
            "bzmpop 0.001 1 a min",
        );
        check(
            "blmove a b left right 7",
            Some(7000),
            Some(60_001),
            "blmove a b left right 60.001",
        );
        check(
            "xread count 1 block 90 streams block 0",
            Some(90),
            Some(20),
            "xread count 1 block 20 streams block 0",
        );
        check(
            "xreadgroup group block c block 0 streams a >",
            None,
            None,
            "xreadgroup group block c block 0 streams a >",
        );
        // What the server refuses goes as it came.
        check("blpop a -1", None, None, "blpop a -1");
        check("blpop a nan", None, None, "blpop a nan");
    }
}
