//! Byte buffers that exist only while they hold bytes.
//!
//! Each worker thread keeps a few empty ones for the next use, so that neither an idle connection
//! owns memory nor a busy one allocates for each request.

use std::cell::RefCell;

/// A buffer that grew beyond this is given back to the system, not kept.
pub(crate) const KEEP_CAPACITY: usize = 64 * 1024;
/// At most so many are kept; with their capacity, 16 MiB a worker.
const KEEP_COUNT: usize = 256;
const FIRST_CAPACITY: usize = 4 * 1024;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Makes sure that a buffer has memory, before something is written to it.
#[inline]
pub(crate) fn ensure(buffer: &mut Vec<u8>) -> &mut Vec<u8> {
    if buffer.capacity() == 0 {
        *buffer = SPARE
            .with_borrow_mut(Vec::pop)
            .unwrap_or_else(|| Vec::with_capacity(FIRST_CAPACITY));
    }
    buffer
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
        if spare.len() < KEEP_COUNT {
            spare.push(taken);
        }
    });
}
