//! `WATCH` and what it is for: a transaction that is executed only if nobody has touched the keys since.
//!
//! The server tells that to the connection that watches. So a session that watches keeps a lease up to
//! its `EXEC`, which goes down it; what it asks in between goes by the pipes like anybody's. All keys,
//! those of the transaction too, are in one slot. When that is held or moves, or the lease is lost, nobody
//! can tell any more whether a key was touched: the **watch** is broken, and `EXEC` answers null, as it
//! does when one was.
//!
//! Invariant: a transaction of a session that watches is executed on the connection that watched, or not
//! at all.

use std::task::{Context, Poll};

use proto::{ServerAddr, Slot, Topology};

use super::{Exchange, Lease, Opening, Step};
use crate::{
    backend::put_command,
    command::{Command, Kind},
    error,
    resp::{Protocol, Request, put_simple},
    route::{Owner, Rejection, slot_of},
    session::{Detour, Dispatched},
    settling::passages::Passage,
    worker::{self, Worker},
};

/// So often an exchange is gone on with in a turn at most.
const STEPS: usize = 16;

/// What a session watches.
pub(crate) struct Watch {
    place: Place,
    /// The connection that watches. `None`: the watch is broken.
    lease: Option<Lease>,
}

/// Where a session watches.
#[derive(Clone)]
struct Place {
    /// Of all keys.
    slot: Slot,
    server: ServerAddr,
}

impl Watch {
    /// Whether a transaction with keys of this slot, or none, may depend on it.
    pub(super) fn is_of(&self, slot: Option<Slot>) -> bool {
        slot.is_none_or(|slot| slot == self.place.slot)
    }

    /// The slot of all that is watched, and the lease as by [`Watch::whole`].
    pub(super) fn into_parts(self) -> (Slot, Option<Lease>) {
        (self.place.slot, self.whole())
    }

    /// The lease, if anybody can still tell whether the keys were touched.
    fn whole(self) -> Option<Lease> {
        self.lease.filter(Lease::is_quiet)
    }

    /// Sees what a new topology makes of it.
    pub(crate) fn check(&mut self, topology: &Topology) {
        let owner = match Owner::of(Some(self.place.slot), topology) {
            Owner::Serves(group) => Some(&topology.groups()[usize::from(group)].primary),
            Owner::Held | Owner::Missing(_) => None,
        };
        if owner != Some(&self.place.server) {
            self.lease = None;
        }
    }
}

/// What a session that watches asks on its lease.
pub(crate) struct Watching {
    exchange: Exchange,
    place: Place,
    asks: Asks,
    /// Its slot is known to be asked for.
    _passage: Passage,
    /// When it began, by the worker's clock.
    since: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Asks {
    /// `WATCH`. Whether the session watched before, on the same lease.
    Watch { more: bool },
    /// `EXEC`. Whether the transaction may write.
    Exec { may_write: bool },
    /// `UNWATCH`, or what implies it and is answered alike.
    Unwatch,
}

impl Watching {
    /// Bytes of memory it owns.
    pub(crate) fn memory(&self) -> usize {
        self.exchange.memory()
    }
}

pub(super) fn put_null_array(out: &mut Vec<u8>, protocol: Protocol) {
    out.extend_from_slice(match protocol {
        Protocol::Resp2 => b"*-1\r\n",
        Protocol::Resp3 => b"_\r\n",
    });
}

/// The commands that watch, and those that end it.
impl Worker {
    pub(crate) fn watch(
        &mut self,
        id: u32,
        command: &Command,
        request: &Request<'_>,
    ) -> Dispatched {
        let session = self.clients.session(id);
        if session.client.transaction.is_some() {
            return self.answer_error(id, error::WATCH_IN_MULTI);
        }
        let Some(topology) = &self.topology else {
            return self.answer_error(id, error::NO_TOPOLOGY);
        };
        let watched = session.watch.as_ref().map(|watch| watch.place.slot);
        let slot = match slot_of(command, request) {
            Ok(slot) if watched.is_none_or(|watched| watched == slot) => slot,
            Ok(_) => return self.answer_error(id, error::rejection(Rejection::CrossSlot)),
            Err(why) => return self.answer_error(id, error::rejection(why)),
        };
        let owner = Owner::of(Some(slot), topology);
        if session.outbox.in_flight() > 0 {
            return Dispatched::Waits; // it must not overtake
        }
        let (opening, place, more) = match session.watch.take() {
            Some(watch) => {
                let place = watch.place.clone();
                let Some(lease) = watch.whole() else {
                    // It is broken up to its EXEC, whatever is watched besides.
                    self.clients.session(id).watch = Some(Box::new(Watch { place, lease: None }));
                    return self.answer(id, |out| put_simple(out, "OK"));
                };
                (self.attuned(id, lease), place, true)
            }
            None => {
                let group = match owner {
                    Owner::Serves(group) => group,
                    Owner::Held => return self.hold(id),
                    Owner::Missing(why) => return self.answer_error(id, error::rejection(why)),
                };
                let Some(opening) = self.lease(id, group) else {
                    return self.answer_error(id, error::NO_LEASE);
                };
                let server = self.backends.primary(group).clone();
                (opening, Place { slot, server }, false)
            }
        };
        let asks = Asks::Watch { more };
        let asked = (request.raw().to_vec(), 1);
        self.begin(id, place, asks, opening, asked)
    }

    pub(crate) fn unwatch(&mut self, id: u32) -> Dispatched {
        let session = self.clients.session(id);
        if session.watch.is_some() && session.outbox.in_flight() > 0 {
            return Dispatched::Waits; // it must not overtake
        }
        let Some(watch) = session.watch.take() else {
            return self.answer(id, |out| put_simple(out, "OK"));
        };
        let place = watch.place.clone();
        let Some(lease) = watch.whole() else {
            return self.answer(id, |out| put_simple(out, "OK"));
        };
        let mut request = Vec::new();
        put_command(&mut request, &[b"UNWATCH"]);
        let opening = self.attuned(id, lease);
        self.begin(id, place, Asks::Unwatch, opening, (request, 1))
    }

    /// `EXEC` of a session that watches; all keys of its transaction are in this slot, if it has any.
    pub(crate) fn exec_watched(&mut self, id: u32, slot: Option<Slot>) -> Dispatched {
        let session = self.clients.session(id);
        let watch = session.watch.as_ref().expect("it watches");
        if !watch.is_of(slot) {
            return self.answer_error(id, error::rejection(Rejection::CrossSlot));
        }
        if session.outbox.in_flight() > 0 {
            return Dispatched::Waits; // it must not overtake
        }
        let watch = session.watch.take().expect("it watches");
        let transaction = session.client.transaction.take();
        let transaction = transaction.expect("EXEC ends one");
        let place = watch.place.clone();
        let Some(lease) = watch.whole() else {
            let protocol = session.client.protocol;
            return self.answer(id, |out| put_null_array(out, protocol));
        };
        let may_write = transaction.may_write();
        let mut block = Vec::new();
        let shown = self.put_scripts(transaction.scripts(), &mut block);
        let replies = shown + transaction.put_block(&mut block);
        let opening = self.attuned(id, lease);
        let asks = Asks::Exec { may_write };
        self.begin(id, place, asks, opening, (block, replies))
    }

    /// A lease that the session has, as its client is now.
    fn attuned(&mut self, id: u32, lease: Lease) -> Opening {
        lease.attuned(self.clients.session(id).client.way())
    }

    fn begin(
        &mut self,
        id: u32,
        place: Place,
        asks: Asks,
        opening: Opening,
        (requests, replies): (Vec<u8>, u32),
    ) -> Dispatched {
        let silence = Some(self.serving.server_timeout);
        let may_write = matches!(asks, Asks::Exec { may_write: true });
        let watching = Watching {
            exchange: Exchange::new(opening, requests, replies, silence).writing(may_write),
            _passage: self.settling.pass(place.slot),
            place,
            asks,
            since: self.micros,
        };
        self.taken(id);
        self.begin_detour(id, Detour::Watching(watching));
        Dispatched::Done
    }

    /// Goes on with what a session that watches asks. Ready: it is over.
    pub(crate) fn poll_watching(
        &mut self,
        id: u32,
        watching: &mut Watching,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        for _ in 0..STEPS {
            let stays = self.serves(watching.place.slot, &watching.place.server);
            if let Asks::Exec { .. } = watching.asks
                && !stays
                && !watching.exchange.was_sent()
            {
                self.answer_null(id);
                return Poll::Ready(());
            }
            let mut refused = false;
            let step = self.poll_exchange(id, &mut watching.exchange, cx, |piece| {
                refused = piece.bytes[0] == b'-';
                false
            });
            match step {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Step::Again) => {}
                Poll::Ready(Step::Done(lease)) => {
                    self.watching_answered(id, watching, lease, refused, stays);
                    return Poll::Ready(());
                }
                Poll::Ready(Step::Failed(failure)) => {
                    let server = watching.place.server.as_str();
                    match watching.asks {
                        Asks::Exec { .. } if !failure.was_sent => self.answer_null(id),
                        Asks::Exec { may_write } => {
                            self.exchange_failed(id, server, may_write, &failure);
                        }
                        Asks::Unwatch => {
                            self.clients.answer_awaited(id, |out| put_simple(out, "OK"));
                        }
                        Asks::Watch { more } => {
                            self.exchange_failed(id, server, false, &failure);
                            if more {
                                self.keep_watch(id, watching, None);
                            }
                        }
                    }
                    return Poll::Ready(());
                }
            }
        }
        worker::yield_turn(cx);
        Poll::Pending
    }

    fn watching_answered(
        &mut self,
        id: u32,
        watching: &Watching,
        lease: Lease,
        refused: bool,
        stays: bool,
    ) {
        let now = self.backends.now();
        let kind = match watching.asks {
            Asks::Watch { more } if more || !refused => {
                self.keep_watch(id, watching, stays.then_some(lease));
                Kind::Read
            }
            // One that was refused may watch still.
            Asks::Exec { .. } | Asks::Unwatch if refused => return,
            Asks::Exec { may_write: true } => {
                self.leases.give(lease, now);
                Kind::Write
            }
            Asks::Exec { may_write: false } | Asks::Unwatch | Asks::Watch { .. } => {
                self.leases.give(lease, now);
                Kind::Read
            }
        };
        let took = self.clock.micros().wrapping_sub(watching.since);
        self.stats.latency[kind as usize].record(took);
    }

    fn keep_watch(&mut self, id: u32, watching: &Watching, lease: Option<Lease>) {
        let place = watching.place.clone();
        self.clients.session(id).watch = Some(Box::new(Watch { place, lease }));
    }

    /// A transaction was not executed, since nobody can tell whether what it depends on was touched.
    pub(super) fn answer_null(&mut self, id: u32) {
        let protocol = self.clients.session(id).client.protocol;
        self.clients
            .answer_awaited(id, |out| put_null_array(out, protocol));
    }
}
