//! `FLUSHALL` and `FLUSHDB`, which would take the server's fence record along: without it nobody could open
//! another connection before the leader has written it again ([`proto::fence`]).
//!
//! So a server is sent a script instead, which erases and puts the record back, as one. The first that it
//! writes is the erasure, which a server does also when its memory is full; what a script writes behind
//! its first it may always. What it answers is what the command answers.

use proto::fence::{FIELDS, KEY};

use crate::{backend::put_command, command::Command, resp::Request};

/// `ARGV` is the fields of the record, and behind them the command.
const SCRIPT: &str = "
local kept = {}
redis.call('SELECT', '0')
for i = 1, 4 do
  local value = redis.pcall('HGET', KEYS[1], ARGV[i])
  if type(value) == 'string' then
    kept[#kept + 1] = ARGV[i]
    kept[#kept + 1] = value
  end
end
local reply = redis.pcall(unpack(ARGV, 5))
if not reply.err and #kept > 0 then
  redis.call('HMSET', KEYS[1], unpack(kept))
end
return reply";

const _: () = assert!(FIELDS.len() == 4);

/// What to send instead of a request to erase a database, or all, for a client in `database`. `None`: it
/// does not erase what Sluice keeps there.
pub(super) fn keeping_record(
    command: &Command,
    request: &Request<'_>,
    database: u16,
) -> Option<Vec<u8>> {
    let reaches_record = match command.name {
        "flushall" => true,
        "flushdb" => database == 0,
        _ => false,
    };
    // With more arguments it is no such request, and the server says so.
    if !reaches_record || request.argc() > 2 {
        return None;
    }
    let mut words: Vec<&[u8]> = vec![b"EVAL", SCRIPT.as_bytes(), b"1", KEY.as_bytes()];
    words.extend(FIELDS.iter().map(|field| field.as_bytes()));
    words.extend(request.args_from(0));
    let mut out = Vec::new();
    put_command(&mut out, &words);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        command,
        resp::{Limits, Progress, split_inline},
    };

    #[test]
    fn what_erases_the_record_is_sent_as_a_script_that_keeps_it() {
        let check = |line: &str, database: u16, keeps: bool| {
            let raw = split_inline(line.as_bytes()).unwrap();
            let mut args = Vec::new();
            let limits = Limits::UNAUTHENTICATED;
            let scanned = Progress::default().scan(&raw, &mut args, &limits, true);
            scanned.unwrap();
            let request = Request::new(&raw, &args);
            let command = command::find(&request).unwrap();
            let sent = keeping_record(command, &request, database);
            assert_eq!(sent.is_some(), keeps, "{line} in {database}");
            if let Some(sent) = sent {
                let behind = raw.split(|&b| b == b'\n').skip(1).collect::<Vec<_>>();
                assert!(sent.ends_with(&behind.join(&b'\n')), "{line}");
                assert!(sent.starts_with(b"*9\r\n") || sent.starts_with(b"*10\r\n"));
            }
        };
        check("flushall", 0, true);
        check("FLUSHALL async", 7, true);
        check("flushdb", 0, true);
        check("FlushDB SYNC", 0, true);
        check("flushdb", 1, false);
        check("flushall sync now", 0, false);
        check("function flush", 0, false);
    }
}
