//! The wall clock, as it is written down and sent. Nothing is decided by it.

use std::time::{SystemTime, UNIX_EPOCH};

use pbjson_types::Timestamp;

/// Now, in milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The same as it goes over the wire.
pub fn timestamp(ms: u64) -> Timestamp {
    Timestamp {
        seconds: (ms / 1000).cast_signed(), // below 2^54
        nanos: (ms % 1000 * 1_000_000) as i32,
    }
}
