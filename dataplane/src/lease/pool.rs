//! The leases of a worker that nobody has, and how many there may be in all.
//!
//! Invariant: each lease that there is, or that is being opened, counts once, until it is closed.

use std::{cell::Cell, rc::Rc, time::Duration};

use tokio::time::Instant;

use super::{Lease, Opening};
use crate::{
    backend::{Door, Shut},
    settling::losses::Losses,
};

/// Of the leases that nobody has, so many are kept, over all servers.
const IDLE_MAX: usize = 64;
/// And each for so long. Shorter than most servers' `timeout`.
const IDLE: Duration = Duration::from_secs(30);

/// See the module.
pub(crate) struct Pool {
    /// Who came back last stands last.
    idle: Vec<Idle>,
    open: Rc<Cell<usize>>,
    most: usize,
    losses: Rc<Losses>,
}

struct Idle {
    lease: Lease,
    since: Instant,
}

/// One of the leases that there are.
pub(super) struct Counted(Rc<Cell<usize>>);

impl Counted {
    fn new(open: &Rc<Cell<usize>>) -> Self {
        open.set(open.get() + 1);
        Self(Rc::clone(open))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Pool {
    pub(crate) fn new(most: usize, losses: Rc<Losses>) -> Self {
        Self {
            idle: Vec::new(),
            open: Rc::default(),
            most,
            losses,
        }
    }

    /// A lease through this door, used before or new. `None`: there are as many as there may be.
    pub(crate) fn take(&mut self, door: Door) -> Option<Opening> {
        while let Some(at) = self.find(&door) {
            let lease = self.idle.remove(at).lease;
            if lease.is_quiet() {
                return Some(Box::pin(reuse(lease, door, Rc::clone(&self.losses))));
            }
        }
        if self.open.get() >= self.most && !self.idle.is_empty() {
            self.idle.remove(0);
        }
        if self.open.get() >= self.most {
            return None;
        }
        let counted = Counted::new(&self.open);
        Some(Box::pin(Lease::open(
            door,
            counted,
            Rc::clone(&self.losses),
        )))
    }

    /// One that leads to the same server; if there is, one that need not be attuned.
    fn find(&self, door: &Door) -> Option<usize> {
        let leads_there = |idle: &Idle| idle.lease.door.leads_as(door);
        let is_alike = |idle: &Idle| idle.lease.door.way() == door.way();
        self.idle
            .iter()
            .rposition(|idle| leads_there(idle) && is_alike(idle))
            .or_else(|| self.idle.iter().rposition(leads_there))
    }

    /// Takes back a lease on which nothing is under way.
    pub(crate) fn give(&mut self, lease: Lease, now: Instant) {
        if self.idle.len() >= IDLE_MAX {
            self.idle.remove(0);
        }
        self.idle.push(Idle { lease, since: now });
    }

    /// Closes those that nobody has wanted for long.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.idle
            .retain(|idle| now.saturating_duration_since(idle.since) < IDLE);
    }

    /// Closes those that nobody has and that lead to where nobody goes any more.
    pub(crate) fn keep(&mut self, is_wanted: impl Fn(&Door) -> bool) {
        self.idle.retain(|idle| is_wanted(&idle.lease.door));
    }

    /// How many there are.
    pub(crate) fn open(&self) -> usize {
        self.open.get()
    }
}

async fn reuse(mut lease: Lease, door: Door, losses: Rc<Losses>) -> Result<Lease, Shut> {
    match lease.attune(door.way()).await {
        Ok(()) => Ok(lease),
        // It was closed just now, or says what it should not; nothing of the request has been sent.
        Err(_) => Lease::open(door, lease.counted, losses).await,
    }
}
