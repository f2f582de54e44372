//! Byte buffers that exist only while they hold bytes.
//!
//! Each worker thread keeps a few empty ones for the next use, so that neither an idle connection
//! owns memory nor a busy one allocates for each request.

use std::cell::RefCell;

/// A buffer that grew beyond this is given back to the system, not kept.
pub(crate) const KEEP_CAPACITY: usize = 64 * 1024;
/// At most so many bytes are kept, by capacity.
const KEEP_TOTAL: usize = 4 << 20;
const FIRST_CAPACITY: usize = 1024;

#[derive(Default)]
struct Spare {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

thread_local! {
    static SPARE: RefCell<Spare> = const {
        RefCell::new(Spare {
            buffers: Vec::new(),
            bytes: 0,
        })
    };
}

/// Makes sure that a buffer has memory, before something is written to it.
#[inline]
pub(crate) fn ensure(buffer: &mut Vec<u8>) -> &mut Vec<u8> {
    if buffer.capacity() == 0 {
        let kept = SPARE.with_borrow_mut(|spare| {
            let kept = spare.buffers.pop()?;
            spare.bytes -= kept.capacity();
            Some(kept)
        });
        *buffer = kept.unwrap_or_else(|| Vec::with_capacity(FIRST_CAPACITY));
    }
    buffer
}

/// Makes room for so many more bytes. A large buffer grows by a quarter, not to its double.
pub(crate) fn reserve(buffer: &mut Vec<u8>, more: usize) {
    let len = buffer.len();
    if len > KEEP_CAPACITY && buffer.capacity() - len < more {
        buffer.reserve_exact(more.max(len / 4));
    }
}

/// Takes a buffer's memory back; it is empty afterwards.
#[inline]
pub(crate) fn give(buffer: &mut Vec<u8>) {
    let mut taken = std::mem::take(buffer);
    if taken.capacity() == 0 || taken.capacity() > KEEP_CAPACITY {
        return;
    }
    taken.clear();
    SPARE.with_borrow_mut(|spare| {
        if spare.bytes + taken.capacity() <= KEEP_TOTAL {
            spare.bytes += taken.capacity();
            spare.buffers.push(taken);
        }
    });
}

/// Gives all that is kept back to the system.
pub(crate) fn shrink() {
    SPARE.set(Spare::default());
}
