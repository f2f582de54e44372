//! A session's replies, put into the order of its requests.
//!
//! A request takes a number ([`Outbox::reserve`]); its reply comes with that number, whole
//! ([`Outbox::fill_with`]) or in pieces ([`Outbox::fill_piece`]), in whatever order the backends
//! answer. What is next in order goes straight into the output; what comes early is parked until its
//! turn. A message that no request asked for takes a number itself ([`Outbox::append`]). Owns no socket and knows no reply.
//!
//! Invariant: the output holds the replies of the requests before `head`, whole and in order, messages
//! only between them, and behind all what has come of the reply of `head`.

use std::{cell::RefCell, collections::VecDeque};

use crate::{
    buffer,
    framer::{PASS_ON, Piece},
};

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
    /// What has come early, for the requests from `head` on.
    early: VecDeque<Early>,
    /// The bytes of small replies that came early.
    parked: Vec<u8>,
    /// Bytes of large replies that came early.
    large: usize,
    /// While there are any, `early` is not empty: a plain outbox need not look.
    unwanted: Unwanted,
}

/// Which replies a client wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wanted {
    All,
    AllButNext,
    None,
}

/// Numbers of requests whose replies are dropped.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Unwanted {
    #[default]
    None,
    One(u32),
    From(u32),
}

impl Unwanted {
    fn has(self, number: u32) -> bool {
        match self {
            Self::None => false,
            Self::One(one) => number == one,
            // Far fewer are under way than would turn the sign.
            Self::From(first) => number.wrapping_sub(first).cast_signed() >= 0,
        }
    }
}

/// Of one request behind the head.
enum Early {
    /// Nothing has come yet.
    Nothing,
    /// The whole reply, in `parked`.
    Parked { start: u32, len: u32 },
    /// A reply that comes in pieces.
    Large(Box<Large>),
}

#[derive(Default)]
struct Large {
    bytes: Vec<u8>,
    whole: bool,
}

/// Queues are kept for the next use if they have room for so many replies at most,
const KEEP_EARLY: usize = 256;
/// and so many of them.
const KEEP_QUEUES: usize = 64;

thread_local! {
    /// Empty ones: an idle session owns none, and a busy one allocates none for each batch.
    static SPARE: RefCell<Vec<VecDeque<Early>>> = const { RefCell::new(Vec::new()) };
}

fn spare_queue() -> VecDeque<Early> {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_default()
}

fn give_queue(queue: VecDeque<Early>) {
    if queue.capacity() <= KEEP_EARLY {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < KEEP_QUEUES {
                spare.push(queue);
            }
        });
    }
}

impl Outbox {
    /// Takes the next number.
    #[inline]
    pub(crate) fn reserve(&mut self) -> u32 {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        number
    }

    /// Whether no request has taken a number since this one has.
    pub(crate) fn is_newest(&self, number: u32) -> bool {
        self.next == number.wrapping_add(1)
    }

    /// Requests that took a number and have no whole reply in order yet.
    #[inline]
    pub(crate) fn in_flight(&self) -> u32 {
        self.next.wrapping_sub(self.head)
    }

    /// Bytes held: to be sent, or early.
    #[inline]
    pub(crate) fn buffered(&self) -> usize {
        self.ready.len() - self.sent + self.parked.len() + self.large
    }

    /// Bytes of memory it owns.
    #[inline]
    pub(crate) fn memory(&self) -> usize {
        self.ready.capacity()
            + self.parked.capacity()
            + self.large
            + self.early.capacity() * size_of::<Early>()
    }

    /// Takes the reply to the request with this number, as `write` writes it.
    #[inline]
    pub(crate) fn fill_with(&mut self, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
        if self.is_unwanted(number) {
            return self.skip(number);
        }
        self.put_with(number, write);
    }

    /// The same, also for a client that wants no replies: what is written is a message to it.
    pub(crate) fn fill_wanted(&mut self, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
        if self.unwanted == Unwanted::One(number) {
            self.unwanted = Unwanted::None;
        }
        self.put_with(number, write);
    }

    #[inline]
    fn put_with(&mut self, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
        if number == self.head {
            write(self.output(PASS_ON));
            self.advance();
            return;
        }
        let start = self.parked.len();
        write(buffer::ensure(&mut self.parked));
        let len = (self.parked.len() - start) as u32;
        let start = start as u32;
        *self.early(number) = Early::Parked { start, len };
    }

    /// Takes a piece of the reply to the request with this number.
    pub(crate) fn fill_piece(&mut self, number: u32, piece: Piece<'_>) {
        if self.is_unwanted(number) {
            if piece.last {
                self.skip(number);
            }
            return;
        }
        if number == self.head {
            let output = self.output(piece.bytes.len());
            output.extend_from_slice(piece.bytes);
            if piece.last {
                self.advance();
            }
            return;
        }
        self.large += piece.bytes.len();
        let early = self.early(number);
        if let Early::Nothing = early {
            *early = Early::Large(Box::default());
        }
        if let Early::Large(large) = early {
            buffer::reserve(&mut large.bytes, piece.bytes.len());
            large.bytes.extend_from_slice(piece.bytes);
            large.whole = piece.last;
        }
    }

    /// Takes a message that goes behind the replies to all requests so far. It takes a number.
    pub(crate) fn append(&mut self, message: &[u8]) {
        let number = self.reserve();
        match &mut self.unwanted {
            // It is no reply, and does not count as one.
            Unwanted::One(one) if *one == number => *one = one.wrapping_add(1),
            Unwanted::None | Unwanted::From(_) | Unwanted::One(_) => {}
        }
        self.put_with(number, |out| out.extend_from_slice(message));
    }

    /// What a request that has not taken its number says about those behind it. All before it have been
    /// answered.
    pub(crate) fn want(&mut self, wanted: Wanted) {
        let behind = self.next.wrapping_add(1);
        self.unwanted = match (wanted, self.unwanted) {
            (Wanted::All, _) => Unwanted::None,
            (Wanted::None, _) | (Wanted::AllButNext, Unwanted::From(_)) => {
                Unwanted::From(self.next)
            }
            (Wanted::AllButNext, Unwanted::None | Unwanted::One(_)) => Unwanted::One(behind),
        };
        if self.unwanted != Unwanted::None {
            self.early(self.next);
        }
    }

    #[inline]
    fn is_unwanted(&self, number: u32) -> bool {
        !self.early.is_empty() && self.unwanted.has(number)
    }

    /// The reply to a request has come, and is dropped.
    fn skip(&mut self, number: u32) {
        if let Unwanted::One(_) = self.unwanted {
            self.unwanted = Unwanted::None;
        }
        if number == self.head {
            self.advance();
        } else {
            *self.early(number) = Early::Parked { start: 0, len: 0 };
        }
    }

    /// Whether what has this number is not in the output yet, or not whole.
    pub(crate) fn awaits(&self, number: u32) -> bool {
        number.wrapping_sub(self.head) < self.in_flight()
    }

    fn early(&mut self, number: u32) -> &mut Early {
        let index = number.wrapping_sub(self.head) as usize;
        if self.early.capacity() == 0 {
            self.early = spare_queue();
        }
        while self.early.len() <= index {
            self.early.push_back(Early::Nothing);
        }
        &mut self.early[index]
    }

    /// The head has been answered; so may those behind it be.
    #[inline]
    fn advance(&mut self) {
        self.head = self.head.wrapping_add(1);
        if !self.early.is_empty() {
            self.catch_up();
        }
    }

    /// What was early, and is now next in order, goes into the output.
    fn catch_up(&mut self) {
        self.early.pop_front();
        loop {
            match self.early.front_mut() {
                None => {
                    buffer::give(&mut self.parked);
                    if self.unwanted == Unwanted::None {
                        give_queue(std::mem::take(&mut self.early));
                    } else {
                        self.early.push_back(Early::Nothing);
                    }
                    return;
                }
                Some(Early::Nothing) => return,
                Some(Early::Parked { start, len }) => {
                    let (start, len) = (*start as usize, *len as usize);
                    let parked = std::mem::take(&mut self.parked);
                    self.output(len)
                        .extend_from_slice(&parked[start..start + len]);
                    self.parked = parked;
                }
                Some(Early::Large(large)) => {
                    self.large -= large.bytes.len();
                    let (bytes, whole) = (std::mem::take(&mut large.bytes), large.whole);
                    if self.ready.is_empty() {
                        buffer::give(&mut self.ready);
                        self.ready = bytes;
                    } else {
                        self.output(bytes.len()).extend_from_slice(&bytes);
                    }
                    if !whole {
                        self.early[0] = Early::Nothing; // the rest goes straight into the output
                        return;
                    }
                }
            }
            self.early.pop_front();
            self.head = self.head.wrapping_add(1);
        }
    }

    /// The output, with room for so many more bytes.
    #[inline]
    fn output(&mut self, more: usize) -> &mut Vec<u8> {
        if self.ready.len() > buffer::KEEP_CAPACITY
            && self.ready.capacity() - self.ready.len() < more
        {
            self.make_room(more);
        }
        buffer::ensure(&mut self.ready)
    }

    /// What was sent makes room first, so that a slow client costs little more than what waits for it.
    #[cold]
    fn make_room(&mut self, more: usize) {
        if self.sent > self.ready.len() / 4 {
            self.ready.drain(..self.sent);
            self.sent = 0;
        }
        buffer::reserve(&mut self.ready, more);
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
            self.ready.shrink_to(self.ready.len() / 4 * 5);
            self.sent = 0;
        }
    }

    /// Drops all bytes, now and as they come: nobody is there to read them.
    pub(crate) fn discard(&mut self) {
        self.ready = Vec::new();
        self.sent = 0;
        self.parked = Vec::new();
        self.large = 0;
        for early in &mut self.early {
            match early {
                Early::Nothing => {}
                Early::Parked { start, len } => (*start, *len) = (0, 0),
                Early::Large(large) => large.bytes = Vec::new(),
            }
        }
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

    /// Whatever comes first, and however the large reply is cut.
    #[test]
    fn pieces_leave_in_request_order_too() {
        let piece = |bytes, first, last| Piece { bytes, first, last };
        let (a, b, c) = (
            piece(b"<a", true, false),
            piece(b"b", false, false),
            piece(b"c>", false, true),
        );
        // The small reply is request 0, the large one request 1, and another small one request 2.
        for order in [
            "0abc2", "a0bc2", "ab0c2", "abc02", "2abc0", "a2b0c", "02abc", "a02bc",
        ] {
            let mut outbox = Outbox::default();
            (0..3).for_each(|_| _ = outbox.reserve());
            for step in order.chars() {
                match step {
                    'a' => outbox.fill_piece(1, a),
                    'b' => outbox.fill_piece(1, b),
                    'c' => outbox.fill_piece(1, c),
                    number => {
                        outbox.fill(number.to_digit(10).unwrap(), number.to_string().as_bytes());
                    }
                }
                let came = outbox.buffered();
                assert!(b"0<abc>2".starts_with(outbox.unsent()) && came >= outbox.unsent().len());
            }
            assert_eq!(outbox.unsent(), b"0<abc>2", "{order}");
            assert_eq!(
                (outbox.in_flight(), outbox.buffered(), outbox.large),
                (0, 7, 0)
            );
        }
    }

    /// Whenever it comes, and however the large reply is cut: the message stands behind what is awaited.
    #[test]
    fn a_message_never_comes_within_a_reply() {
        let pieces: [(&[u8], bool, bool); 3] = [
            (b"<a", true, false),
            (b"b", false, false),
            (b"c>", false, true),
        ];
        // `m` is a message; the large reply is request 1.
        for (order, expected) in [
            ("m0abc2", "0<abc>2m"),
            ("0ambmc2", "0<abc>2mm"),
            ("0abc2m", "0<abc>2m"),
            ("abc2m0", "0<abc>2m"),
            ("2mcb0am", "0<abc>2mm"),
        ] {
            let mut outbox = Outbox::default();
            (0..3).for_each(|_| _ = outbox.reserve());
            let mut parts = pieces.iter();
            for step in order.chars() {
                match step {
                    'a'..='c' => {
                        let &(bytes, first, last) = parts.next().unwrap();
                        outbox.fill_piece(1, Piece { bytes, first, last });
                    }
                    'm' => outbox.append(b"m"),
                    number => {
                        outbox.fill(number.to_digit(10).unwrap(), number.to_string().as_bytes());
                    }
                }
                assert!(outbox.buffered() >= outbox.unsent().len());
            }
            assert_eq!(outbox.unsent(), expected.as_bytes(), "{order}");
            assert_eq!((outbox.in_flight(), outbox.large), (0, 0), "{order}");
            assert_eq!(outbox.buffered(), expected.len(), "{order}");
        }
    }

    /// In whatever order replies come: none that is unwanted leaves, and each message does.
    #[test]
    fn unwanted_replies_are_dropped_and_messages_are_not() {
        let whole = |number: u32| [b'0' + number as u8];
        for (wanted, expected) in [
            (Wanted::All, "0m123n"),
            (Wanted::AllButNext, "0m23n"),
            (Wanted::None, "mn"),
        ] {
            for order in ["0123", "3210", "1302", "2031"] {
                let mut outbox = Outbox::default();
                outbox.want(wanted);
                let first = outbox.reserve();
                outbox.append(b"m");
                let requests = [first, outbox.reserve(), outbox.reserve(), outbox.reserve()];
                outbox.append(b"n");
                for step in order.chars() {
                    let at = step.to_digit(10).unwrap();
                    let number = requests[at as usize];
                    if at == 2 {
                        outbox.fill_piece(number, Piece::whole(&whole(at)));
                    } else {
                        outbox.fill(number, &whole(at));
                    }
                }
                assert_eq!(outbox.unsent(), expected.as_bytes(), "{wanted:?} {order}");
                assert_eq!((outbox.in_flight(), outbox.parked.len()), (0, 0));
                outbox.want(Wanted::All);
                let number = outbox.reserve();
                outbox.fill(number, b"x");
                assert_eq!(
                    (outbox.unsent().last(), outbox.early.len()),
                    (Some(&b'x'), 0)
                );
            }
        }
        // One after another; without any, one is not skipped.
        let mut outbox = Outbox::default();
        outbox.want(Wanted::None);
        outbox.want(Wanted::AllButNext);
        for _ in 0..3 {
            let number = outbox.reserve();
            outbox.fill(number, b"x");
        }
        assert_eq!(outbox.buffered(), 0);
        // What tells of a subscription comes all the same, and counts as the reply that is skipped.
        for (wanted, expected) in [(Wanted::AllButNext, "0123"), (Wanted::None, "1")] {
            for order in ["0123", "3210", "1302", "2031"] {
                let mut outbox = Outbox::default();
                outbox.want(wanted);
                let first = outbox.reserve();
                let requests = [first, outbox.reserve(), outbox.reserve(), outbox.reserve()];
                for step in order.chars() {
                    let at = step.to_digit(10).unwrap();
                    let number = requests[at as usize];
                    match at {
                        1 => outbox.fill_wanted(number, |out| out.extend_from_slice(&whole(at))),
                        _ => outbox.fill(number, &whole(at)),
                    }
                }
                assert_eq!(outbox.unsent(), expected.as_bytes(), "{wanted:?} {order}");
                assert_eq!((outbox.in_flight(), outbox.parked.len()), (0, 0));
            }
        }
    }

    #[test]
    fn what_is_awaited_is_known() {
        let mut outbox = Outbox::default();
        let reply = outbox.reserve();
        outbox.append(b"m");
        assert!(outbox.awaits(reply));
        outbox.fill(reply, b"1");
        assert!(!outbox.awaits(reply));
        assert_eq!(outbox.unsent(), b"1m");
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

    /// A client that takes a large reply more slowly than it comes, piece by piece.
    #[test]
    fn a_large_output_costs_little_more_than_what_waits() {
        let mut outbox = Outbox::default();
        let number = outbox.reserve();
        let bytes = [0; 100_000];
        let mut first = true;
        for _ in 0..1000 {
            outbox.fill_piece(
                number,
                Piece {
                    bytes: &bytes,
                    first,
                    last: false,
                },
            );
            first = false;
            outbox.mark_sent(90_000);
            let (memory, buffered) = (outbox.memory(), outbox.buffered());
            assert!(memory < buffered / 4 * 7 + 500_000, "{memory} {buffered}");
        }
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
        let large = outbox.reserve();
        let piece = Piece::whole(b"x");
        outbox.fill_piece(
            large,
            Piece {
                last: false,
                ..piece
            },
        );
        outbox.append(b"m");
        outbox.discard();
        outbox.fill_piece(
            large,
            Piece {
                first: false,
                ..piece
            },
        );
        outbox.discard();
        assert_eq!((outbox.in_flight(), outbox.buffered()), (0, 0));
    }
}
