//! `DBSIZE`, which would count what Sluice itself keeps in database 0: the server's fence record
//! ([`proto::fence`]), and the barrier of a cut-over. So a server is sent a script there, which does not.

use proto::fence::KEY;

use crate::{
    command::Command,
    resp::{put_bulk, put_header},
};

const SCRIPT: &str = "return redis.call('DBSIZE') - redis.call('EXISTS', KEYS[1], KEYS[2])";
const BARRIER: &str = "{sluice}:barrier";

/// What to send instead of the request, for a client in `database`. `None`: the request.
pub(super) fn of_clients(command: &Command, database: u16) -> Option<Vec<u8>> {
    if command.name != "dbsize" || database != 0 {
        return None;
    }
    let mut out = Vec::new();
    put_header(&mut out, b'*', 5);
    for word in ["EVAL", SCRIPT, "2", KEY, BARRIER] {
        put_bulk(&mut out, word.as_bytes());
    }
    Some(out)
}
