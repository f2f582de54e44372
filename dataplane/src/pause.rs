//! `CLIENT PAUSE`: for a while the requests of all clients of the proxy wait, or those that may change
//! something.
//!
//! What waits does so as a request for a held slot does: its session takes no more, and looks again with
//! each tick. Decides only; each worker has a pause of its own, begun and ended by all of them together.
//!
//! Invariant: of two pauses at a time, the longer holds, and the one that holds more.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    command::{Bound, Class, Command},
    error,
    resp::{Request, parse_int},
    transaction::Transaction,
};

/// What cannot be waited for in any case; it keeps the arithmetic within bounds.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pause {
    scope: Scope,
    until: Instant,
}

/// Which requests wait.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Scope {
    Writes,
    All,
}

impl Pause {
    /// As `CLIENT PAUSE` asks for it.
    pub(crate) fn parse(request: &Request<'_>, now: Instant) -> Result<Self, Vec<u8>> {
        let scope = match request.argc() {
            3 => Scope::All,
            4 if request.arg(3).eq_ignore_ascii_case(b"WRITE") => Scope::Writes,
            4 if request.arg(3).eq_ignore_ascii_case(b"ALL") => Scope::All,
            4 => return Err(error::BAD_PAUSE_MODE.into()),
            _ => return Err(error::bad_subcommand(request)),
        };
        let millis = parse_int(request.arg(2)).ok_or(error::BAD_TIMEOUT)?;
        let millis = u64::try_from(millis).map_err(|_| error::NEGATIVE_TIMEOUT)?;
        let until = now + Duration::from_millis(millis).min(LONGEST);
        Ok(Self { scope, until })
    }

    /// With another one, begun before.
    pub(crate) fn and(self, before: Self) -> Self {
        Self {
            scope: self.scope.max(before.scope),
            until: self.until.max(before.until),
        }
    }

    pub(crate) fn is_over(self, now: Instant) -> bool {
        now >= self.until
    }

    /// Whether a command waits. What is queued already counts when it is to be executed.
    pub(crate) fn holds(self, command: &Command, queued: Option<&Transaction>) -> bool {
        match self.scope {
            Scope::All => true,
            Scope::Writes => {
                command.may_be_replicated()
                    || (command.class == Class::Transaction(Bound::Exec)
                        && queued.is_some_and(Transaction::may_be_replicated))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command;

    fn pause(scope: Scope, until: Instant) -> Pause {
        Pause { scope, until }
    }

    #[test]
    fn a_shorter_or_weaker_pause_changes_nothing() {
        let now = Instant::now();
        let (soon, late) = (now + Duration::from_secs(1), now + Duration::from_secs(2));
        let (long, strong) = (pause(Scope::Writes, late), pause(Scope::All, soon));
        assert_eq!(long.and(strong), pause(Scope::All, late));
        assert_eq!(strong.and(long), pause(Scope::All, late));
        assert!(!long.is_over(soon) && long.is_over(late));
    }

    #[test]
    fn writes_wait_and_what_servers_may_make_writes_of() {
        let writes = pause(Scope::Writes, Instant::now());
        let all = pause(Scope::All, Instant::now());
        for (name, waits) in [
            ("get", false),
            ("set", true),
            ("eval", true),
            ("eval_ro", false),
            ("pfcount", true),
            ("ping", false),
            ("multi", false),
            ("exec", false),
            ("flushall", true),
        ] {
            let command = command::lookup(name.as_bytes()).unwrap();
            assert_eq!(writes.holds(command, None), waits, "{name}");
            assert!(all.holds(command, None), "{name}");
        }
    }
}
