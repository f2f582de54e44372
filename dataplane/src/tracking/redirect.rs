//! Messages that go to another client than the one that has read: `CLIENT TRACKING ON REDIRECT`.
//!
//! That client may be another worker's. So a message waits until what its reader awaited has left, and goes
//! from worker to worker then; in between it is kept here, bounded: who is told too much is told that all
//! is stale.
//!
//! Invariant: what a client redirected to is told has left behind all replies that may be older.

use std::collections::{HashMap, VecDeque};

use super::{
    Trackers,
    message::{self, Stale},
};
use crate::{crew::Untold, outbox::Outbox, resp::Protocol, session::Clients, worker::Worker};

/// Keys that wait to be told to the client that is redirected to, at most; beyond, it is told that all
/// are stale.
const KEYS_MAX: usize = 4096;
/// Targets that are remembered at most.
const TARGETS: usize = 1024;

/// [`Stale`], kept.
#[derive(Clone, Debug)]
enum Owned {
    All,
    Keys(Vec<Box<[u8]>>),
}

impl Owned {
    fn of(stale: &Stale<'_>) -> Self {
        match stale {
            Stale::All => Self::All,
            Stale::Keys(keys) => Self::Keys(keys.iter().map(|&key| key.into()).collect()),
        }
    }

    fn borrow(&self) -> Stale<'_> {
        match self {
            Self::All => Stale::All,
            Self::Keys(keys) => Stale::Keys(keys.iter().map(AsRef::as_ref).collect()),
        }
    }

    fn keys(&self) -> usize {
        match self {
            Self::All => 0,
            Self::Keys(keys) => keys.len(),
        }
    }
}

/// What waits to be told to the client that a session redirects to.
#[derive(Debug, Default)]
pub(super) struct Redirected {
    /// Each once what has this number of the session's outbox has left.
    waiting: VecDeque<(u32, Owned)>,
    /// Keys in there.
    keys: usize,
}

impl Redirected {
    fn push(&mut self, number: u32, stale: &Stale<'_>) {
        let mut stale = Owned::of(stale);
        if self.keys + stale.keys() > KEYS_MAX {
            stale = Owned::All;
        }
        if let Owned::All = stale {
            self.clear(); // it says as much
        }
        self.keys += stale.keys();
        self.waiting.push_back((number, stale));
    }

    /// Those that may go: what their session awaited before them has left.
    fn left(&self, outbox: &Outbox) -> Vec<Owned> {
        let left = |(number, _): &&(u32, Owned)| !outbox.awaits(*number);
        let messages = self.waiting.iter().take_while(left);
        messages.map(|(_, stale)| stale.clone()).collect()
    }

    /// The first ones were told.
    fn remove(&mut self, count: usize) {
        let keys = self.waiting.drain(..count).map(|(_, stale)| stale.keys());
        self.keys -= keys.sum::<usize>();
    }

    fn clear(&mut self) {
        self.waiting.clear();
        self.keys = 0;
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Bytes of memory it owns, about.
    pub(super) fn memory(&self) -> usize {
        self.keys * 64
    }
}

/// Where clients are that others redirect to, or that redirect; looked at again each time.
#[derive(Default)]
pub(super) struct Targets(HashMap<u64, u32>);

impl Targets {
    /// The session of a client, if it is connected to this worker.
    fn find(&mut self, clients: &Clients, client: u64) -> Option<u32> {
        let known = self.0.get(&client).copied();
        let is = |&id: &u32| {
            clients
                .find(id)
                .is_some_and(|session| session.client.id == client)
        };
        if let Some(id) = known.filter(is) {
            return Some(id);
        }
        if self.0.len() >= TARGETS {
            self.0.clear();
        }
        let found = clients.of_client(client)?;
        self.0.insert(client, found);
        Some(found)
    }
}

impl Trackers {
    /// Keeps a message for the client that this session redirects to.
    pub(super) fn redirect(&mut self, clients: &mut Clients, id: u32, stale: &Stale<'_>) {
        let number = clients.mark(id);
        let Some(tracking) = &mut clients.session(id).client.tracking else {
            return;
        };
        if tracking.redirected.is_empty() {
            self.redirecting.push(id);
        }
        tracking.redirected.push(number, stale);
    }
}

impl Worker {
    /// Whether nothing is left to be sent.
    pub(super) fn send_redirected(&mut self, id: u32) -> bool {
        let session = self.clients.session(id);
        let Some(tracking) = &mut session.client.tracking else {
            return true;
        };
        let messages = tracking.redirected.left(&session.outbox);
        let target = tracking
            .options
            .as_ref()
            .and_then(|options| options.redirect);
        let Some(target) = target else {
            tracking.redirected.clear(); // it redirects no longer
            return true;
        };
        let count = messages.len();
        if count > 0 {
            let (own, client) = (self.crew.own(), session.client.id);
            let home = tracking.home;
            let sent = self.crew.tell(home, move |worker| {
                worker.take_redirected(target, &messages, own, client);
            });
            match sent {
                Err(Untold::Busy) => return false, // the next turn, or tick, tries again
                Ok(()) | Err(Untold::Gone) => {}
            }
            self.tracking_of(id).redirected.remove(count);
            if sent == Err(Untold::Gone) {
                self.redirect_broken(client, target);
            }
        }
        self.tracking_of(id).redirected.is_empty()
    }

    /// Brings messages for a client of this worker, from the client of another one.
    fn take_redirected(&mut self, target: u64, messages: &[Owned], from: usize, client: u64) {
        let Some(id) = self.trackers.targets.find(&self.clients, target) else {
            // Should this be lost, the next message says it again.
            let _ = self
                .crew
                .tell(from, move |worker| worker.redirect_broken(client, target));
            return;
        };
        for stale in messages {
            let session = self.clients.session(id);
            let mut message = Vec::new();
            match session.client.protocol {
                Protocol::Resp3 => message::put_push(&stale.borrow(), &mut message),
                Protocol::Resp2 if session.client.subscriptions.is_some() => {
                    message::put_published(&stale.borrow(), &mut message);
                }
                Protocol::Resp2 => continue,
            }
            self.trackers.told += 1;
            self.clients.push(id, &message);
        }
    }

    /// The client that one of this worker redirects to is gone.
    fn redirect_broken(&mut self, client: u64, target: u64) {
        let Some(id) = self.trackers.targets.find(&self.clients, client) else {
            return;
        };
        let session = self.clients.session(id);
        let protocol = session.client.protocol;
        let Some(tracking) = &mut session.client.tracking else {
            return;
        };
        if tracking
            .options
            .as_ref()
            .and_then(|options| options.redirect)
            != Some(target)
        {
            return; // it redirects to another by now
        }
        tracking.broken = true;
        if protocol == Protocol::Resp3 {
            let mut push = Vec::new();
            message::put_broken(target, &mut push);
            self.clients.push(id, &push);
        }
    }
}
