//! A session's replies, put into the order of its requests.
//!
//! A request takes a number ([`Outbox::reserve`]); its reply comes with that number
//! ([`Outbox::fill_with`]), in whatever order the backends answer. What is next in order goes straight
//! into the output; what comes early is parked until its turn. Owns no socket and knows no reply.
//!
//! Invariant: the output holds the replies of the requests before `head`, whole and in order.

use std::collections::VecDeque;

use crate::buffer;

/// See the module. An idle one owns no memory.
#[derive(Default)]
pub(crate) struct Outbox {
    /// The number of the request whose reply is next in order.
    head: u32,
    /// The number the next request will take. Both wrap around.
    next: u32,
    /// Replies in order, waiting to be sent from `sent` on.
    ready: Vec<u8>,
    sent: usize,
    /// Of the requests from `head` on, where their replies are parked. `None`: not there yet.
    early: VecDeque<Option<Parked>>,
    parked: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Parked {
    start: usize,
    len: usize,
}

impl Outbox {
    /// Takes the next number.
    #[inline]
    pub(crate) fn reserve(&mut self) -> u32 {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        number
    }

    /// Requests that took a number and have no reply in order yet.
    #[inline]
    pub(crate) fn in_flight(&self) -> u32 {
        self.next.wrapping_sub(self.head)
    }

    /// Bytes held: to be sent, or parked.
    pub(crate) fn buffered(&self) -> usize {
        self.ready.len() - self.sent + self.parked.len()
    }

    /// Takes the reply to the request with this number, as `write` writes it.
    #[inline]
    pub(crate) fn fill_with(&mut self, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
        if number == self.head {
            write(buffer::ensure(&mut self.ready));
            self.advance();
            return;
        }
        let start = self.parked.len();
        write(buffer::ensure(&mut self.parked));
        let index = number.wrapping_sub(self.head) as usize;
        if self.early.len() <= index {
            self.early.resize(index + 1, None);
        }
        self.early[index] = Some(Parked {
            start,
            len: self.parked.len() - start,
        });
    }

    /// The head has been answered; so may those behind it be.
    fn advance(&mut self) {
        self.head = self.head.wrapping_add(1);
        if self.early.is_empty() {
            return;
        }
        self.early.pop_front();
        while let Some(Some(Parked { start, len })) = self.early.front().copied() {
            self.ready
                .extend_from_slice(&self.parked[start..start + len]);
            self.early.pop_front();
            self.head = self.head.wrapping_add(1);
        }
        if self.early.is_empty() {
            self.early = VecDeque::new();
            buffer::give(&mut self.parked);
        }
    }

    /// What is to be sent.
    pub(crate) fn unsent(&self) -> &[u8] {
        &self.ready[self.sent..]
    }

    /// Says that so many bytes of [`Outbox::unsent`] were sent.
    pub(crate) fn mark_sent(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.sent == self.ready.len() {
            self.sent = 0;
            buffer::give(&mut self.ready);
        } else if self.sent > buffer::KEEP_CAPACITY && self.sent > self.ready.len() / 2 {
            self.ready.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Drops all bytes, now and as they come: nobody is there to read them.
    pub(crate) fn discard(&mut self) {
        self.ready = Vec::new();
        self.sent = 0;
        self.parked = Vec::new();
        self.early.iter_mut().for_each(|parked| {
            if let Some(parked) = parked {
                *parked = Parked { start: 0, len: 0 };
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Outbox {
        fn fill(&mut self, number: u32, reply: &[u8]) {
            self.fill_with(number, |out| out.extend_from_slice(reply));
        }
    }

    #[test]
    fn replies_leave_in_request_order() {
        // All orders of five replies, by repeated swaps (Heap's algorithm).
        fn permute(order: &mut Vec<u32>, n: usize, check: &mut impl FnMut(&[u32])) {
            if n <= 1 {
                return check(order);
            }
            for i in 0..n {
                permute(order, n - 1, check);
                order.swap(if n.is_multiple_of(2) { i } else { 0 }, n - 1);
            }
        }
        let mut orders = 0;
        permute(&mut (0..5).collect(), 5, &mut |order| {
            orders += 1;
            let start = u32::MAX - 1; // the numbers wrap around on the way
            let mut outbox = Outbox {
                head: start,
                next: start,
                ..Outbox::default()
            };
            let numbers: Vec<u32> = (0..5).map(|_| outbox.reserve()).collect();
            for &i in order {
                outbox.fill(numbers[i as usize], i.to_string().as_bytes());
            }
            assert_eq!(outbox.unsent(), b"01234", "{order:?}");
            assert_eq!((outbox.in_flight(), outbox.buffered()), (0, 5));
        });
        assert_eq!(orders, 120);
    }

    #[test]
    fn what_is_sent_in_parts_is_sent_once() {
        let mut outbox = Outbox::default();
        let number = outbox.reserve();
        outbox.fill(number, b"hello");
        outbox.mark_sent(2);
        assert_eq!(outbox.unsent(), b"llo");
        let number = outbox.reserve();
        outbox.fill(number, b"!");
        outbox.mark_sent(4);
        assert_eq!((outbox.unsent(), outbox.buffered()), (&b""[..], 0));
    }

    #[test]
    fn an_idle_outbox_holds_no_memory() {
        let mut outbox = Outbox::default();
        let (first, second) = (outbox.reserve(), outbox.reserve());
        outbox.fill(second, b"2");
        outbox.fill(first, b"1");
        outbox.mark_sent(2);
        assert_eq!((outbox.ready.capacity(), outbox.parked.capacity()), (0, 0));
    }

    #[test]
    fn what_nobody_reads_is_dropped() {
        let mut outbox = Outbox::default();
        let (first, second) = (outbox.reserve(), outbox.reserve());
        outbox.fill(second, b"2");
        outbox.discard();
        outbox.fill(first, b"1");
        outbox.discard();
        assert_eq!((outbox.in_flight(), outbox.buffered()), (0, 0));
    }
}
