//! What is under way on a pipe: the requests without a reply, in the order they were written.
//!
//! Its server answers in that order, so that this is all there is to know about whose a reply is. Of each
//! it is known whether it may have been sent, and how much the replies will weigh together. Knows no
//! bytes, of requests or replies.
//!
//! Invariant: requests that have no byte on the wire stand behind all that may have; none of them is
//! taken for answered.

use std::collections::VecDeque;

use crate::{command::Kind, fanout::Part, framer::Piece, resp::BadReply};

/// Where a reply goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Recipient {
    /// To a session, as the reply of this number.
    Session { session: u32, number: u32 },
    /// To a fan-out.
    Part(Part),
    /// To the call of a script, by its number; it may be made again.
    Call(u32),
    /// It is not a client's: `QUEUED`, and the like.
    Nobody,
    /// The server has to agree, or the connection is of no use.
    Agreement,
    /// All that was sent before has been answered: that is what matters to who waits for it, by its number.
    Barrier(u32),
    /// A connection of this number is no more, if the server has done what it was asked.
    Burial(u32),
}

/// A request under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pending {
    pub(crate) to: Recipient,
    /// What it counts as.
    pub(crate) kind: Kind,
    /// Whether it matters if it was executed.
    pub(crate) may_write: bool,
    /// When it was taken, by the worker's clock.
    pub(crate) since: u32,
    /// What its reply will weigh, probably; see [`crate::memory`].
    pub(crate) weight: u32,
}

// There is one for each request under way.
const _: () = assert!(size_of::<Pending>() <= 24);

#[cfg(test)]
impl Pending {
    pub(crate) fn new(to: Recipient, kind: Kind) -> Self {
        Self {
            to,
            kind,
            may_write: false,
            since: 0,
            weight: 0,
        }
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Queue {
    pending: VecDeque<Pending>,
    /// How many of `pending`, from the back, have no byte on the wire.
    unsent: usize,
    /// What the replies to all of them will weigh.
    expected: usize,
    /// What the last reply was expected to weigh.
    weighed: u32,
}

impl Queue {
    /// A request has been written behind the others.
    #[inline]
    pub(super) fn push(&mut self, pending: Pending) {
        self.expected += pending.weight as usize;
        self.pending.push_back(pending);
        self.unsent += 1;
    }

    /// A request of no weight has been written before the others, of which none was sent.
    pub(super) fn push_first(&mut self, pending: Pending) {
        debug_assert!(self.unsent == self.pending.len() && pending.weight == 0);
        self.pending.push_front(pending);
        self.unsent += 1;
    }

    /// Some bytes were sent: of which requests, nobody knows. So of all, as far as that matters.
    pub(super) fn sent(&mut self) {
        self.unsent = 0;
    }

    /// A reply, or a piece of one, has come: whose it is. An error: to what was never sent; the two sides
    /// no longer agree on what is under way.
    #[inline]
    pub(super) fn answered(&mut self, piece: Piece<'_>) -> Result<Pending, BadReply> {
        if self.pending.len() <= self.unsent {
            return Err(BadReply);
        }
        if !piece.last {
            return self.pending.front().copied().ok_or(BadReply);
        }
        let pending = self.pending.pop_front().ok_or(BadReply)?;
        self.expected -= pending.weight as usize;
        self.weighed = pending.weight;
        Ok(pending)
    }

    /// The connection is gone: takes all, and tells of each whether it may have been sent.
    pub(super) fn end(&mut self) -> impl Iterator<Item = (Pending, bool)> + use<> {
        let sent = self.pending.len() - self.unsent;
        let all = std::mem::take(self).pending.into_iter().enumerate();
        all.map(move |(index, pending)| (pending, index < sent))
    }

    /// Whether something that may write may have been sent.
    pub(super) fn owes(&self) -> bool {
        let sent = self.pending.len() - self.unsent;
        self.pending.iter().take(sent).any(|p| p.may_write)
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// What all the replies will weigh.
    #[inline]
    pub(super) fn expected(&self) -> usize {
        self.expected
    }

    /// What the last reply was expected to weigh.
    pub(super) fn weighed(&self) -> u32 {
        self.weighed
    }

    /// Bytes of memory it owns.
    pub(super) fn memory(&self) -> usize {
        self.pending.capacity() * size_of::<Pending>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(number: u32) -> Pending {
        let to = Recipient::Session { session: 0, number };
        Pending {
            weight: 10 * (1 + number),
            ..Pending::new(to, Kind::Read)
        }
    }

    const WHOLE: Piece<'_> = Piece {
        bytes: b":1\r\n",
        first: true,
        last: true,
    };

    #[test]
    fn replies_belong_to_requests_in_their_order() {
        let mut queue = Queue::default();
        (0..3).for_each(|number| queue.push(pending(number)));
        queue.sent();
        assert_eq!(queue.answered(WHOLE), Ok(pending(0)));
        assert_eq!((queue.expected(), queue.weighed()), (50, 10));
        let piece = Piece {
            last: false,
            ..WHOLE
        };
        assert_eq!(queue.answered(piece), Ok(pending(1)));
        assert_eq!(queue.answered(WHOLE), Ok(pending(1)));
        assert_eq!(queue.answered(WHOLE), Ok(pending(2)));
        assert_eq!((queue.expected(), queue.is_empty()), (0, true));
        assert_eq!(queue.answered(WHOLE), Err(BadReply));
    }

    #[test]
    fn what_was_not_sent_is_not_answered() {
        let mut queue = Queue::default();
        queue.push(pending(0));
        queue.sent();
        queue.push(pending(1));
        assert_eq!(queue.answered(WHOLE), Ok(pending(0)));
        assert_eq!(queue.answered(WHOLE), Err(BadReply));
        queue.sent();
        queue.push(pending(2));
        let left: Vec<_> = queue.end().collect();
        assert_eq!(left, [(pending(1), true), (pending(2), false)]);
        assert_eq!((queue.expected(), queue.is_empty()), (0, true));
    }
}
