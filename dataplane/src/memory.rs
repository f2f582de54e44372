//! How much memory the process holds for its clients and servers, against `--max-memory`.
//!
//! Each worker counts its own ([`Account`]) and tells the sum of all ([`Memory`]) whenever it has changed
//! by much. Counted is what buffers have allocated, whether it is used or not. What a reply will weigh is
//! known only once it is there, so that of a request under way its likely weight counts as *expected*.
//!
//! The ladder: from [`TIGHT`] on no client is accepted, buffers that nobody uses are given back, and
//! clients with large replies wait before they may ask for more; from [`CRITICAL`] on the client that
//! holds most is closed, and the next, until it is below. Never is a server's reply left unread: all
//! others would wait behind it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// What a process holds before it has served anybody: code, runtimes, tables, read buffers.
const BASE: usize = 24 << 20;
/// Percent of the limit, held and expected, from which on the proxy takes no more upon itself.
const TIGHT: usize = 70;
/// Percent of the limit, held, from which on clients are closed.
const CRITICAL: usize = 90;
/// A worker tells the sum of all once its own has changed by so much.
const GRAIN: usize = 64 * 1024;

/// How near the limit is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Pressure {
    None,
    Tight,
    Critical,
}

/// What all workers hold together.
#[derive(Debug)]
pub(crate) struct Memory {
    limit: usize,
    held: AtomicUsize,
    expected: AtomicUsize,
}

impl Memory {
    /// The least `--max-memory` that leaves room for clients.
    pub(crate) const MIN_LIMIT: usize = 2 * BASE;

    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            held: AtomicUsize::new(0),
            expected: AtomicUsize::new(0),
        }
    }

    /// Something that no worker counts held `before` bytes and now holds `now`.
    pub(crate) fn resize(&self, before: usize, now: usize) {
        self.held.fetch_add(now.wrapping_sub(before), Relaxed);
    }

    /// Bytes held, with what the process takes for itself.
    pub(crate) fn held(&self) -> usize {
        BASE + self.held.load(Relaxed)
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn pressure(&self) -> Pressure {
        let held = self.held();
        if held >= self.limit / 100 * CRITICAL {
            Pressure::Critical
        } else if held + self.expected.load(Relaxed) >= self.limit / 100 * TIGHT {
            Pressure::Tight
        } else {
            Pressure::None
        }
    }
}

/// What one worker holds.
pub(crate) struct Account {
    memory: Arc<Memory>,
    held: usize,
    expected: usize,
    told: (usize, usize),
    pressure: Pressure,
}

impl Account {
    pub(crate) fn new(memory: Arc<Memory>) -> Self {
        Self {
            memory,
            held: 0,
            expected: 0,
            told: (0, 0),
            pressure: Pressure::None,
        }
    }

    /// Something that held `counted` bytes now holds `now`.
    #[inline]
    pub(crate) fn recount(&mut self, counted: &mut usize, now: usize) {
        self.held = self.held + now - *counted;
        *counted = now;
        self.tell_drift();
    }

    /// A reply of about so many bytes will come.
    #[inline]
    pub(crate) fn expect(&mut self, weight: u32) {
        self.expected += weight as usize;
        self.tell_drift();
    }

    /// It has come, or never will.
    #[inline]
    pub(crate) fn arrived(&mut self, weight: u32) {
        self.expected -= weight as usize;
        self.tell_drift();
    }

    /// How near the limit was when it was last looked at.
    #[inline]
    pub(crate) fn pressure(&self) -> Pressure {
        self.pressure
    }

    /// Tells the sum of all, once it has changed by much: many may take much within one turn.
    #[inline]
    fn tell_drift(&mut self) {
        let (held, expected) = self.told;
        if self.held.abs_diff(held) >= GRAIN || self.expected.abs_diff(expected) >= GRAIN {
            self.tell();
        }
    }

    /// Looks again how near the limit is: other workers may have come nearer, or gone.
    pub(crate) fn settle(&mut self) -> Pressure {
        self.tell();
        self.pressure
    }

    fn tell(&mut self) {
        let add = |sum: &AtomicUsize, told: usize, now: usize| {
            sum.fetch_add(now.wrapping_sub(told), Relaxed); // wraps around to subtract
        };
        add(&self.memory.held, self.told.0, self.held);
        add(&self.memory.expected, self.told.1, self.expected);
        self.told = (self.held, self.expected);
        self.pressure = self.memory.pressure();
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        (self.held, self.expected) = (0, 0);
        self.tell();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_add_up_and_what_is_expected_makes_it_tight() {
        let memory = Arc::new(Memory::new(100 << 20));
        let mut workers = [0, 1].map(|_| Account::new(Arc::clone(&memory)));
        let mut counted = [0, 0];
        let mut check = |worker: usize, now: usize, pressure| {
            workers[worker].recount(&mut counted[worker], now);
            assert_eq!(workers[worker].settle(), pressure, "{now}");
        };
        check(0, 30 << 20, Pressure::None);
        check(1, 30 << 20, Pressure::Tight);
        check(0, 50 << 20, Pressure::Critical);
        check(0, 0, Pressure::None);
        check(1, 0, Pressure::None);
        workers[0].expect(50 << 20);
        assert_eq!(workers[0].settle(), Pressure::Tight);
        workers[0].arrived(50 << 20);
        assert_eq!(workers[0].settle(), Pressure::None);
        assert_eq!(memory.held(), BASE);
    }

    #[test]
    fn a_worker_that_ends_holds_nothing() {
        let memory = Arc::new(Memory::new(100 << 20));
        let mut worker = Account::new(Arc::clone(&memory));
        worker.recount(&mut 0, 10 << 20);
        worker.settle();
        drop(worker);
        assert_eq!(memory.held(), BASE);
    }
}
