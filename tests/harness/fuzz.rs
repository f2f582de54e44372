//! What must be true of any bytes whatever: the bodies of the fuzz targets.
//!
//! A body takes bytes and panics where something is wrong. `tests/fuzz` lets a fuzzer look for such
//! bytes; `make test` gives each body what was found before (`tests/fuzz/corpus`). No body does I/O,
//! or knows whether it is fuzzed.

mod inline;
mod keys;
mod reply;
mod request;
mod topology;

pub use inline::inline;
pub use keys::{command_for, keys};
pub use reply::reply;
pub use request::request;
pub use topology::topology;

/// Checks one input.
pub type Body = fn(&[u8]);

/// Every target: its name, which its corpus has too, and its body.
pub const TARGETS: [(&str, Body); 5] = [
    ("inline", inline),
    ("keys", keys),
    ("reply", reply),
    ("request", request),
    ("topology", topology),
];

/// Input read as choices. What is not there is 0.
struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    /// So many bytes, or as many as there are.
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// One of these.
    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.byte()) % of.len()]
    }
}

/// Where a reader's calls end: the input cut into pieces of the lengths chosen, over and over; the
/// last one is the input's end. No lengths: the input is whole.
fn cuts(len: usize, pieces: &[u8]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut at = 0;
    for piece in pieces.iter().cycle() {
        at += usize::from(*piece) + 1;
        if at >= len {
            break;
        }
        ends.push(at);
    }
    ends.push(len);
    ends
}
