//! `DBSIZE`, which would count what is no client's: the server's fence record ([`proto::fence`]), and, while
//! slots move, what the server carries the number of ([`proto::surplus`]). So a server is sent a script, which
//! does not.

use proto::{fence, surplus};

use crate::{
    command::Command,
    resp::{put_bulk, put_header},
};

const SCRIPT: &str = "local keys = redis.call('DBSIZE') - redis.call('EXISTS', KEYS[1], KEYS[2]) \
    for _, surplus in ipairs(redis.call('HVALS', KEYS[2])) do keys = keys - surplus end \
    return math.max(keys, 0)";

/// What to send instead of the request. `None`: the request.
pub(super) fn of_clients(command: &Command) -> Option<Vec<u8>> {
    if command.name != "dbsize" {
        return None;
    }
    let mut out = Vec::new();
    put_header(&mut out, b'*', 5);
    for word in ["EVAL", SCRIPT, "2", fence::KEY, surplus::KEY] {
        put_bulk(&mut out, word.as_bytes());
    }
    Some(out)
}
