//! How a command fails: what is said, what to do about it, and the exit code.
//!
//! Errors are written as `jj` writes them: `Error:` with the whole chain on one line, then a `Hint:`
//! with the command that leads on. Exit codes: 0 done, 1 failed, 2 wrong usage.

use std::process::ExitCode;

use proto::reason::Reason;
use tonic::{Code, Status};

use crate::{client, output};

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub(crate) enum Error {
    /// It failed.
    Failed {
        /// What failed, with its causes.
        error: anyhow::Error,
        /// What to do next; each is one sentence.
        hints: Vec<String>,
    },
    /// It cannot be done as it was asked for, whatever the cluster is like.
    Usage {
        /// What is wrong.
        message: String,
        /// What would be right.
        hint: String,
    },
    /// `check` found what has to be repaired, and has said so.
    Unhealthy,
    /// Whoever read the output has seen enough (`sluice group list | head -1`). No failure.
    PipeClosed,
}

impl Error {
    /// A failure that no other error caused.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        anyhow::Error::msg(message.into()).into()
    }

    /// The same, with one more thing to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Self::Failed { hints, .. } = &mut self {
            hints.push(hint.into());
        }
        self
    }

    /// Says it on stderr and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        match self {
            Self::Failed { error, hints } => {
                output::complain(&format!("{error:#}"), hints);
                ExitCode::from(1)
            }
            Self::Usage { message, hint } => {
                output::complain(message, std::slice::from_ref(hint));
                ExitCode::from(2)
            }
            Self::Unhealthy => ExitCode::from(1),
            Self::PipeClosed => ExitCode::SUCCESS,
        }
    }
}

impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed {
            error,
            hints: Vec::new(),
        }
    }
}

impl From<client::Error> for Error {
    fn from(error: client::Error) -> Self {
        let hint = match &error {
            client::Error::Unreachable { .. } => Some(
                "is the controller running there? `--endpoint HOST:PORT` or SLUICE_ENDPOINT names \
                 another; `sluice dev` starts a whole cluster on this machine",
            ),
            client::Error::Deadline { .. } => Some("`--timeout 30s` waits longer"),
            client::Error::Refused(status) => hint(status),
        };
        Self::Failed {
            error: error.into(),
            hints: hint.map(str::to_owned).into_iter().collect(),
        }
    }
}

/// What to do about an answer that was an error.
fn hint(status: &Status) -> Option<&'static str> {
    let Some(reason) = Reason::of(status) else {
        return match status.code() {
            Code::Unimplemented => Some("the controller is older than this `sluice`: update it"),
            _ => None,
        };
    };
    Some(match reason {
        Reason::InvalidField => "add `--help` to the command to see what it takes",
        Reason::RequestIdReused => "run the command again: every run has a request id of its own",
        Reason::GroupNotFound => "`sluice group list` shows the groups",
        Reason::ServerNotFound => "`sluice server list` shows the servers",
        Reason::ProxyNotFound => "`sluice proxy list` shows the proxies",
        Reason::GroupExists => "`sluice server add HOST:PORT --group ID` adds a server to it",
        Reason::ServerExists => "`sluice server list` shows its group: a server is in one only",
        Reason::ProxyIdInUse => "give each proxy an `--id` of its own",
        Reason::RevisionMismatch => {
            "somebody was faster: `get` shows it as it is now, with the revision to expect"
        }
        Reason::SlotOwned => {
            "only slots that no group owns are assigned: `sluice slot list` shows them, \
             `sluice slot assign --even` shares just those"
        }
        Reason::GroupOwnsSlots => "`sluice slot list` shows them",
        Reason::ServerIsPrimary => {
            "a primary leaves only with its group: `sluice group delete ID`, once it owns no slots"
        }
        Reason::ServerUnreachable => {
            "try `redis-cli -h HOST -p PORT PING` from the controller's machine"
        }
        Reason::ServerNotRedis => "is it the right port? `redis-cli -h HOST -p PORT INFO` tells",
        Reason::ServerAuthFailed => {
            "the controller presents what SLUICE_SERVER_USERNAME and SLUICE_SERVER_PASSWORD say, \
             or its credentials file"
        }
        Reason::ServerInClusterMode => "restart the server with `cluster-enabled no`",
        Reason::ServerRoleMismatch => {
            "`redis-cli -h HOST -p PORT ROLE` shows what it is; `REPLICAOF HOST PORT` makes it a \
             replica, `REPLICAOF NO ONE` a primary"
        }
        Reason::ProxyConnected => "SIGTERM makes a proxy finish what is in flight, then end",
        Reason::EventsLost => "look at the present state with `list`, then follow without --resume",
        Reason::ShuttingDown => "try again, or name its stand-by too: `--endpoint A:PORT,B:PORT`",
        Reason::StoreFailed => "nothing was changed; the controller's log says why",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_follows_the_reason() {
        fn check(status: Status, expected: Option<&str>) {
            let got = hint(&status).unwrap_or_default();
            assert!(got.contains(expected.unwrap_or_default()), "{got}");
            assert_eq!(got.is_empty(), expected.is_none(), "{got}");
        }
        check(
            Reason::SlotOwned.status("slot 3 belongs to g1"),
            Some("sluice slot list"),
        );
        check(Reason::invalid_field("id", "empty"), Some("--help"));
        check(Status::unimplemented("no such method"), Some("update"));
        check(Status::internal("a bug"), None);
    }
}
