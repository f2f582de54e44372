//! `CLIENT TRACKING`: a session begins to track, asks for something else, or ends it.
//!
//! Owns what has to be in place before the client is told so: the worker of the client to redirect to is
//! found, and all servers that can be reached have agreed to tell of its prefixes. Until then nothing
//! that the session asks for is looked at. And it owns what is undone when nobody listens any more. What
//! is remembered and told meanwhile is the parent's.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Mode, Tracking,
    message::Stale,
    options::{Asked, NO_SUCH_TARGET},
};
use crate::{
    backend::{Hearing, Lane, Way},
    resp::{Request, put_simple},
    session::Dispatched,
    worker::Worker,
};

/// How long `CLIENT TRACKING` may wait for servers to agree, or for other workers to answer. Servers that
/// are silent for longer agree later; what was missed by then is told.
const PATIENCE: Duration = Duration::from_secs(1);

/// A `CLIENT TRACKING` whose reply has to wait; so does all that its session asks for behind it.
#[derive(Debug)]
pub(super) enum Settling {
    /// It is asked which worker has the client to redirect to.
    Target,
    /// Not all servers have agreed to tell of its prefixes.
    Prefixes { number: u32, until: Instant },
}

impl Worker {
    /// `CLIENT TRACKING`.
    pub(crate) fn client_tracking(&mut self, id: u32, request: &Request<'_>) -> Dispatched {
        let session = self.clients.session(id);
        // What follows takes another pipe, which could overtake what is under way on this one.
        if session.outbox.in_flight() > 0 {
            return Dispatched::Waits;
        }
        let (target, asked) = Asked::parse(request);
        let Some(target) = target else {
            let number = self.clients.session(id).outbox.reserve();
            self.track(id, number, asked, 0);
            self.stats.requests_local.add(1);
            self.taken(id);
            return Dispatched::Done;
        };
        let target = u64::try_from(target).unwrap_or(0); // no client has that
        let home = move |worker: &mut Self| {
            let here = worker.clients.of_client(target);
            here.map(|_| worker.crew.own())
        };
        let done = self.ask_all_then(id, home, move |worker, number, homes| {
            if let Some(tracking) = &mut worker.clients.session(id).client.tracking {
                tracking.settling = None;
            }
            match homes.map(|homes| homes.into_iter().flatten().next()) {
                Ok(Some(home)) => worker.track(id, number, asked, home),
                Ok(None) => worker.refuse_tracking(id, number, NO_SUCH_TARGET),
                Err(text) => worker.refuse_tracking(id, number, text),
            }
        });
        if done == Dispatched::Done && self.clients.session(id).outbox.in_flight() > 0 {
            // Where there is no other worker to ask, the prefixes may be settled already.
            let settling = &mut self.tracking_of(id).settling;
            settling.get_or_insert(Settling::Target);
        }
        done
    }

    /// A session's state, new if it has none.
    pub(super) fn tracking_of(&mut self, id: u32) -> &mut Tracking {
        let tracking = &mut self.clients.session(id).client.tracking;
        tracking.get_or_insert_with(|| Box::new(Tracking::new(self.trackers.enlist(id))))
    }

    fn refuse_tracking(&mut self, id: u32, number: u32, text: &str) {
        let tracking = &self.clients.session(id).client.tracking;
        if tracking
            .as_ref()
            .is_some_and(|tracking| tracking.options.is_none())
        {
            self.stop_tracking(id);
        }
        self.clients.reply_error(id, number, text);
    }

    /// Does what `CLIENT TRACKING` asks for; `home` is the worker of the client to redirect to.
    fn track(&mut self, id: u32, number: u32, asked: Result<Asked, String>, home: usize) {
        let session = self.clients.session(id);
        if session.is_closed() {
            return self.clients.reply(id, number, |_| {});
        }
        let tracking = session.client.tracking.as_ref();
        let before = tracking.and_then(|tracking| tracking.options.as_ref());
        let options = match asked {
            Ok(Asked::Off) => None,
            Ok(Asked::On(asking)) => match asking.apply(before) {
                Ok(options) => Some(options),
                Err(text) => return self.refuse_tracking(id, number, &text),
            },
            Err(text) => return self.refuse_tracking(id, number, &text),
        };
        let Some(options) = options else {
            self.stop_tracking(id);
            return self.clients.reply(id, number, |out| put_simple(out, "OK"));
        };
        let own = before.is_some_and(|before| before.no_loop);
        let moves = before.is_some_and(|before| before.no_loop != options.no_loop);
        let tracking = self.tracking_of(id);
        let tracker = tracking.tracker;
        (tracking.broken, tracking.home) = (false, home);
        tracking.options = Some(options.clone());
        if own {
            // Its pipes are opened anew, with the new options; what they would have said is lost.
            self.backends.retire_hearing(Hearing::Own(tracker));
        }
        if let Mode::Broadcast(prefixes) = &options.mode {
            if options.no_loop {
                self.trackers.strata.leave(tracker, prefixes.iter());
            } else {
                for prefix in prefixes {
                    self.trackers.strata.place(prefix, tracker);
                }
            }
            let until = Instant::now() + PATIENCE;
            self.tracking_of(id).settling = Some(Settling::Prefixes { number, until });
            self.trackers.settling.push(id);
            self.hear_everywhere();
            if let Some(way) = self.clients.session(id).broadcast_way() {
                self.backends.hear_everywhere(way, &[], self.clock.micros());
            }
            self.settle_tracking();
        } else {
            self.tracking_of(id).fresh = false;
            self.clients.reply(id, number, |out| put_simple(out, "OK"));
        }
        // What other pipes have heard meanwhile is lost.
        if moves || own {
            let Self {
                clients, trackers, ..
            } = self;
            trackers.tell(clients, tracker, None, &Stale::All);
        }
        self.retire_unheard();
        self.trackers.count(&mut self.clients);
        self.count_tracking();
        self.clients.recount(id);
    }

    /// A session tracks no longer: it was told to, or ends.
    pub(crate) fn stop_tracking(&mut self, id: u32) {
        let Some(tracking) = self.clients.session(id).client.tracking.take() else {
            return;
        };
        let Tracking {
            tracker, options, ..
        } = *tracking;
        self.trackers.sessions.remove(&tracker);
        self.trackers.redirecting.retain(|&other| other != id);
        self.trackers.settling.retain(|&other| other != id);
        if let Some(options) = options {
            if options.no_loop {
                self.backends.retire_hearing(Hearing::Own(tracker));
            } else if let Mode::Broadcast(prefixes) = &options.mode {
                self.trackers.strata.leave(tracker, prefixes.iter());
            }
        }
        if let Some(Settling::Prefixes { number, .. }) = tracking.settling {
            self.clients.reply(id, number, |_| {}); // nobody is there to read it
        }
        self.retire_unheard();
        self.trackers.count(&mut self.clients);
        self.count_tracking();
    }

    /// Pipes that nobody listens to any more end.
    fn retire_unheard(&mut self) {
        if self.trackers.sessions.is_empty() {
            self.trackers.table.clear();
            self.backends.retire_hearing(Hearing::Shared);
            self.backends.retire_hearing(Hearing::Scripts);
        }
        let needed = self.trackers.strata();
        self.backends.retire_strata(&needed);
    }

    /// Opens the pipes that have to be there before anybody asks for anything, and has those that are
    /// there told of the prefixes that have come.
    pub(super) fn hear_everywhere(&mut self) {
        for stratum in self.trackers.strata() {
            let lane = Lane::Hearing(Hearing::Broadcast(stratum));
            let prefixes = self.trackers.prefixes(stratum);
            self.backends.hear_everywhere(
                Way {
                    lane,
                    ..Way::HEARING
                },
                prefixes,
                self.clock.micros(),
            );
        }
    }

    /// Answers those whose `CLIENT TRACKING` has waited long enough, or for what is there now.
    pub(super) fn settle_tracking(&mut self) {
        let mut settling = std::mem::take(&mut self.trackers.settling);
        settling.retain(|&id| !self.settle(id));
        self.trackers.settling = settling;
    }

    fn settle(&mut self, id: u32) -> bool {
        let session = self.clients.session(id);
        let own = session.broadcast_way();
        let Some(tracking) = &mut session.client.tracking else {
            return true;
        };
        let Some(Settling::Prefixes { number, until }) = tracking.settling else {
            return true;
        };
        let agreed = match (own, tracking.options.as_ref().map(|options| &options.mode)) {
            (Some(way), _) => self.backends.all_hear(way, 0),
            (None, Some(Mode::Broadcast(prefixes))) => {
                let strata = &self.trackers.strata;
                let of = |prefix: &[u8]| strata.of(tracking.tracker, prefix);
                let mut needed: Vec<u32> =
                    prefixes.iter().filter_map(|prefix| of(prefix)).collect();
                needed.dedup();
                needed.into_iter().all(|stratum| {
                    let lane = Lane::Hearing(Hearing::Broadcast(stratum));
                    let way = Way {
                        lane,
                        ..Way::HEARING
                    };
                    self.backends.all_hear(way, strata.prefixes(stratum).len())
                })
            }
            (None, Some(Mode::All | Mode::OptIn | Mode::OptOut) | None) => true,
        };
        if !agreed && Instant::now() < until {
            return false;
        }
        (tracking.settling, tracking.fresh) = (None, false);
        self.clients.reply(id, number, |out| put_simple(out, "OK"));
        true
    }
}
