//! What clients saw, and whether one server could have answered so.
//!
//! A [`History`] is all calls that were made to one key, each with the moments between which it may
//! have taken effect. [`History::check`] looks for an order of them that one register could have answered,
//! and that agrees with those moments: linearizability, by the search of Wing and Gong with Lowe's
//! memory of where it has been. What is per key is enough for the whole (linearizability is local), so
//! that the histories stay short.
//!
//! A call of which it is unknown whether it was executed may take effect at any time after it was made,
//! or never. A call that was certainly not executed is not part of a history.

use std::{collections::HashSet, fmt, time::Duration};

/// What a register holds: nothing, or a number.
pub type Value = Option<i64>;

/// What a client asks of a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// `GET`
    Get,
    /// `SET`
    Set(i64),
    /// `SET … GET`
    Swap(i64),
    /// `GETDEL`
    Take,
    /// `DEL`
    Delete,
    /// `INCR`
    Increment,
}

/// What the register says to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// What it held, or holds now.
    Value(Value),
    /// Whether there was something.
    Existed(bool),
    /// Only that it is done.
    Done,
}

impl Call {
    /// What a register that holds this says, and what it holds then.
    fn apply(self, value: Value) -> (Answer, Value) {
        match self {
            Self::Get => (Answer::Value(value), value),
            Self::Set(new) => (Answer::Done, Some(new)),
            Self::Swap(new) => (Answer::Value(value), Some(new)),
            Self::Take => (Answer::Value(value), None),
            Self::Delete => (Answer::Existed(value.is_some()), None),
            Self::Increment => {
                let next = Some(value.unwrap_or(0) + 1);
                (Answer::Value(next), next)
            }
        }
    }
}

/// One call, as its client saw it. Moments are counted from the same beginning for all clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// Whose.
    pub client: usize,
    /// What was asked.
    pub call: Call,
    /// When, at the latest before it was sent.
    pub from: Duration,
    /// What was answered, and when, at the earliest after it came. `None`: it is unknown whether it was
    /// executed.
    pub answer: Option<(Answer, Duration)>,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            client, call, from, ..
        } = self;
        write!(f, "client {client:2} {from:>12.6?} {call:?} ")?;
        match self.answer {
            Some((answer, to)) => write!(f, "-> {answer:?} at {to:.6?}"),
            None => write!(f, "-> unknown"),
        }
    }
}

/// All calls that were made to one key.
#[derive(Clone, Default, Debug)]
pub struct History(pub Vec<Operation>);

/// No register could have answered so.
#[derive(Debug)]
pub struct Violation {
    /// The longest order that was found, as far as it matters.
    pub explained: Vec<Operation>,
    /// The first answer that no order explains.
    pub unexplained: Operation,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        let skipped = self.explained.len().saturating_sub(SHOWN);
        writeln!(f, "no order explains it; after {skipped} others:")?;
        for operation in &self.explained[skipped..] {
            writeln!(f, "     {operation}")?;
        }
        write!(f, "  ✗  {}", self.unexplained)
    }
}

impl History {
    /// Whether one register could have answered so.
    pub fn check(&self) -> Result<(), Violation> {
        // Of what only reads and was not answered nothing can be said.
        let matters = |o: &&Operation| o.answer.is_some() || o.call != Call::Get;
        let operations: Vec<Operation> = self.0.iter().filter(matters).copied().collect();
        Search::new(&operations).run()
    }
}

/// The beginning of an operation, or its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Event {
    Call(usize),
    Return(usize),
}

/// The events in the order of time, as a list out of which an operation can be lifted, and put back where
/// it was. Place 0 is before the first.
struct Search<'a> {
    operations: &'a [Operation],
    events: Vec<Event>,
    next: Vec<usize>,
    prev: Vec<usize>,
    /// Where the return of an operation is; 0: it has none.
    returns: Vec<usize>,
}

impl<'a> Search<'a> {
    fn new(operations: &'a [Operation]) -> Self {
        let mut moments: Vec<(Duration, Event)> = Vec::new();
        for (at, operation) in operations.iter().enumerate() {
            moments.push((operation.from, Event::Call(at)));
            if let Some((_, to)) = operation.answer {
                moments.push((to, Event::Return(at)));
            }
        }
        // Of the same moment the calls are first: what may overlap does.
        moments.sort_by_key(|(moment, event)| (*moment, matches!(event, Event::Return(_))));
        let events: Vec<Event> = moments.into_iter().map(|(_, event)| event).collect();
        let mut returns = vec![0; operations.len()];
        for (at, event) in events.iter().enumerate() {
            if let Event::Return(operation) = event {
                returns[*operation] = at + 1;
            }
        }
        let len = events.len();
        Self {
            operations,
            events,
            next: (1..=len + 1).collect(),
            prev: (0..=len + 1)
                .map(|at: usize| at.saturating_sub(1))
                .collect(),
            returns,
        }
    }

    fn lift(&mut self, at: usize) {
        let (prev, next) = (self.prev[at], self.next[at]);
        self.next[prev] = next;
        self.prev[next] = prev;
    }

    fn put_back(&mut self, at: usize) {
        let (prev, next) = (self.prev[at], self.next[at]);
        self.next[prev] = at;
        self.prev[next] = at;
    }

    fn run(mut self) -> Result<(), Violation> {
        let end = self.events.len() + 1;
        let mut awaited = self.returns.iter().filter(|at| **at > 0).count();
        let mut done = vec![0u64; self.operations.len().div_ceil(64)];
        let mut value: Value = None;
        let mut seen: HashSet<(Vec<u64>, Value)> = HashSet::new();
        // What has been ordered so far, and what the register held before it.
        let mut order: Vec<(usize, usize, Value)> = Vec::new();
        let mut best: (Vec<usize>, usize) = (Vec::new(), 0);
        let mut at = self.next[0];
        while awaited > 0 {
            debug_assert!(at < end, "a return is always found before the end");
            match self.events[at - 1] {
                Event::Call(index) => {
                    let operation = &self.operations[index];
                    let (answer, then) = operation.call.apply(value);
                    let fits = operation.answer.is_none_or(|(said, _)| said == answer);
                    done[index / 64] |= 1 << (index % 64);
                    if fits && seen.insert((done.clone(), then)) {
                        order.push((at, index, value));
                        value = then;
                        self.lift(at);
                        if self.returns[index] > 0 {
                            self.lift(self.returns[index]);
                            awaited -= 1;
                        }
                        at = self.next[0];
                    } else {
                        done[index / 64] &= !(1 << (index % 64));
                        at = self.next[at];
                    }
                }
                Event::Return(index) => {
                    if order.len() >= best.0.len() {
                        best = (order.iter().map(|(_, index, _)| *index).collect(), index);
                    }
                    // What was answered and changed nothing fits best where it fits first: only where a
                    // change comes instead is there another way.
                    loop {
                        let Some((was_at, last, before)) = order.pop() else {
                            return Err(Violation {
                                explained: best.0.iter().map(|at| self.operations[*at]).collect(),
                                unexplained: self.operations[best.1],
                            });
                        };
                        let is_answered = self.returns[last] > 0;
                        let changed_nothing = before == value && is_answered;
                        done[last / 64] &= !(1 << (last % 64));
                        value = before;
                        if is_answered {
                            self.put_back(self.returns[last]);
                            awaited += 1;
                        }
                        self.put_back(was_at);
                        if !changed_nothing {
                            at = self.next[was_at];
                            break;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An operation from one millisecond to another.
    fn op(call: Call, from: u64, to: u64, answer: Answer) -> Operation {
        Operation {
            client: 0,
            call,
            from: Duration::from_millis(from),
            answer: Some((answer, Duration::from_millis(to))),
        }
    }

    fn unknown(call: Call, from: u64) -> Operation {
        Operation {
            answer: None,
            ..op(call, from, 0, Answer::Done)
        }
    }

    fn get(from: u64, to: u64, value: Value) -> Operation {
        op(Call::Get, from, to, Answer::Value(value))
    }

    fn set(from: u64, to: u64, value: i64) -> Operation {
        op(Call::Set(value), from, to, Answer::Done)
    }

    fn is_fine(operations: &[Operation]) -> bool {
        History(operations.to_vec()).check().is_ok()
    }

    #[test]
    fn what_one_register_answers_is_fine() {
        assert!(is_fine(&[]));
        assert!(is_fine(&[
            get(0, 1, None),
            set(2, 3, 5),
            get(4, 5, Some(5))
        ]));
        // Two writes at the same time, and reads that agree on their order.
        let writes = [set(0, 10, 1), set(0, 10, 2)];
        let reads = [get(11, 12, Some(1)), get(13, 14, Some(1))];
        assert!(is_fine(&[writes, reads].concat()));
        assert!(is_fine(&[
            op(Call::Increment, 0, 9, Answer::Value(Some(2))),
            op(Call::Increment, 0, 9, Answer::Value(Some(1))),
            op(Call::Swap(7), 10, 11, Answer::Value(Some(2))),
            op(Call::Take, 12, 13, Answer::Value(Some(7))),
            op(Call::Delete, 14, 15, Answer::Existed(false)),
        ]));
    }

    #[test]
    fn a_lost_write_is_found() {
        let lost = [set(0, 1, 1), set(2, 3, 2), get(4, 5, Some(1))];
        let violation = History(lost.to_vec()).check().unwrap_err();
        assert_eq!(violation.unexplained, get(4, 5, Some(1)));
        assert!(
            violation.to_string().contains("✗  client  0"),
            "{violation}"
        );
        assert!(!is_fine(&[set(0, 1, 1), get(2, 3, None)]));
    }

    #[test]
    fn what_was_deleted_does_not_come_back() {
        let delete = op(Call::Delete, 2, 3, Answer::Existed(true));
        assert!(!is_fine(&[set(0, 1, 1), delete, get(4, 5, Some(1))]));
        // Not even where the deletion and the write may have come in any order: it was read in between.
        let delete = op(Call::Delete, 0, 3, Answer::Existed(true));
        let reads = [get(4, 5, None), get(6, 7, Some(1))];
        assert!(!is_fine(&[&[set(0, 1, 1), delete], &reads[..]].concat()));
    }

    #[test]
    fn readers_agree_on_the_order() {
        let writes = [set(0, 10, 1), set(0, 10, 2)];
        let reads = [get(11, 12, Some(1)), get(13, 14, Some(2))];
        assert!(!is_fine(&[writes, reads].concat()));
        // A read that ends before another begins is not older than it.
        let reads = [get(1, 2, Some(2)), get(3, 4, Some(1)), get(5, 6, Some(2))];
        assert!(!is_fine(&[&writes[..], &reads].concat()));
    }

    #[test]
    fn what_is_unknown_takes_effect_late_or_never() {
        let maybe = unknown(Call::Set(2), 2);
        assert!(is_fine(&[set(0, 1, 1), maybe, get(8, 9, Some(1))]));
        assert!(is_fine(&[
            set(0, 1, 1),
            maybe,
            get(3, 4, Some(1)),
            get(8, 9, Some(2))
        ]));
        // But once, and not before it was asked for.
        let twice = [get(3, 4, Some(2)), set(5, 6, 3), get(7, 8, Some(2))];
        assert!(!is_fine(&[&[maybe], &twice[..]].concat()));
        assert!(!is_fine(&[get(0, 1, Some(2)), maybe]));
        assert!(is_fine(&[
            unknown(Call::Get, 0),
            unknown(Call::Increment, 0),
            get(1, 2, Some(1))
        ]));
        assert!(!is_fine(&[unknown(Call::Increment, 0), get(1, 2, Some(2))]));
    }

    /// One register, asked by many clients at once, each call taking effect somewhere within its time: fine.
    /// The same with one answer changed to what was never there: not fine.
    #[test]
    fn long_histories_are_decided_quickly() {
        for seed in 0..20 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut value, mut now) = (None, 100u64);
            let mut operations: Vec<Operation> = (0..2000)
                .map(|at| {
                    now += rng.u64(0..3);
                    let call = match rng.u8(0..5) {
                        0 => Call::Set(at),
                        1 => Call::Swap(at),
                        2 => Call::Delete,
                        _ => Call::Get,
                    };
                    let (answer, then) = call.apply(value);
                    value = then;
                    op(call, now - rng.u64(0..4), now + rng.u64(0..4), answer)
                })
                .collect();
            assert!(is_fine(&operations), "seed {seed}");
            operations.push(get(now + 20, now + 21, Some(-1)));
            assert!(!is_fine(&operations), "seed {seed}");
        }
    }
}
