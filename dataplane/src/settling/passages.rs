//! What is under way on leases, for which slot.
//!
//! Invariant: a passage is known from when it is routed until it is dropped.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use proto::Slot;
use tokio::sync::Notify;

/// See the module.
pub(crate) struct Passages(Rc<Open>);

struct Open {
    last: Cell<u64>,
    /// The slot of each, and the turn with which it was routed.
    all: RefCell<BTreeMap<u64, (Slot, u64)>>,
    news: Rc<Notify>,
}

/// A request that is under way on a lease, or about to be.
pub(crate) struct Passage {
    number: u64,
    /// With which topology it was routed.
    pub(crate) turn: u64,
    open: Rc<Open>,
}

impl Passages {
    pub(super) fn new(news: Rc<Notify>) -> Self {
        Self(Rc::new(Open {
            last: Cell::new(0),
            all: RefCell::default(),
            news,
        }))
    }

    /// One for this slot, routed by what is routed by now.
    pub(super) fn begin(&self, slot: Slot, turn: u64) -> Passage {
        let number = self.0.last.get() + 1;
        self.0.last.set(number);
        self.0.all.borrow_mut().insert(number, (slot, turn));
        Passage {
            number,
            turn,
            open: Rc::clone(&self.0),
        }
    }

    /// Whether this is true of one, by its slot and turn.
    pub(super) fn any(&self, applies: impl Fn(Slot, u64) -> bool) -> bool {
        let all = self.0.all.borrow();
        all.values().any(|&(slot, turn)| applies(slot, turn))
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.open.all.borrow_mut().remove(&self.number);
        self.open.news.notify_one();
    }
}
