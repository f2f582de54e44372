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
            about_tls if about_tls.is_about_tls() => None,
            client::Error::Unreachable { .. } => Some(
                "is the controller running there? `--endpoint HOST:PORT` or SLUICE_ENDPOINT names \
                 another; `sluice dev` starts a whole cluster on this machine",
            ),
            client::Error::Deadline { .. } => Some("`--timeout 30s` waits longer"),
            client::Error::Refused(status) => hint(status),
            client::Error::Unanswered(..) => {
                Some("look whether it was done, then run the command again")
            }
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
            _ if client::is_foreign(status) => Some(
                "nothing there speaks the controller's gRPC, whose default port is 18080: \
                 `--endpoint HOST:PORT` or SLUICE_ENDPOINT names it",
            ),
            Code::Unimplemented => Some("the controller is older than this `sluice`: update it"),
            _ => None,
        };
    };
    match reason {
        Reason::InvalidField => Some("add `--help` to the command to see what it takes"),
        Reason::RequestIdReused => {
            Some("run the command again: every run has a request id of its own")
        }
        Reason::GroupNotFound => Some("`sluice group list` shows the groups"),
        Reason::ServerNotFound => Some("`sluice server list` shows the servers"),
        Reason::ProxyNotFound => Some("`sluice proxy list` shows the proxies"),
        Reason::GroupExists => Some("`sluice server add HOST:PORT --group ID` adds a server to it"),
        Reason::ServerExists => Some("a server is in one group only, under one address"),
        Reason::ProxyIdInUse => Some("give each proxy an `--id` of its own"),
        Reason::RevisionMismatch => {
            Some("somebody was faster: `get` shows it as it is now, with the revision to expect")
        }
        Reason::SlotOwned | Reason::GroupOwnsSlots => {
            Some("`sluice migration create --slots RANGES --target GROUP` moves slots")
        }
        Reason::MigrationNotFound => Some("`sluice migration list` shows the migrations"),
        Reason::MigrationExists => Some("leave out `--id`: one is chosen"),
        Reason::SlotNotMovable => Some("`sluice slot list` shows who owns which slots"),
        Reason::GroupInMigration => Some("`sluice migration watch ID` waits for its end"),
        Reason::MigrationTooFar => Some("`sluice migration get ID` shows how far it is"),
        Reason::MigrationNotCopied => {
            Some("`sluice migration watch ID` shows how far it is; try again when it follows")
        }
        Reason::ServerIsPrimary => Some(
            "a primary leaves only with its group: `sluice group delete ID`, if it owns no slots",
        ),
        Reason::ClusterNotEmpty => {
            Some("`--replace` puts an older state of the same cluster in place of the present one")
        }
        Reason::TooManyProxies => {
            Some("`sluice proxy remove ID` forgets one that is gone for good")
        }
        Reason::ProxyConnected => Some("SIGTERM makes a proxy finish what is in flight, then end"),
        Reason::EventsLost => {
            Some("look at the present state with `list`, then follow without --resume")
        }
        Reason::Overloaded => {
            Some("who else calls this controller? `sluice_controller_calls_shed` counts it")
        }
        Reason::CallTimedOut => Some("look whether it was done, then run the command again"),
        Reason::ShuttingDown => {
            Some("try again, or name its stand-by too: `--endpoint A:PORT,B:PORT`")
        }
        Reason::NotLeading => Some(
            "name all controllers: `--endpoint A:PORT,B:PORT`; `sluice cluster get` shows who leads",
        ),
        Reason::StoreFailed => Some("nothing was changed; the controller's log says why"),
        Reason::ServerNotFenced => {
            Some("nothing was changed: try again when the server can take writes")
        }
        // The controller, which knows the addresses, has said what to do.
        Reason::ServersUnfit => Some("`sluice server list` shows them; mend that, then try again"),
        Reason::ServerUnreachable
        | Reason::ServerOfOtherCluster
        | Reason::ServerNotPermitted
        | Reason::ServerNotRedis
        | Reason::ServerAuthFailed
        | Reason::ServerInClusterMode
        | Reason::ServerRoleMismatch => None,
    }
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
            Some("migration create"),
        );
        check(
            Reason::GroupOwnsSlots.status("group g1 owns 512 slots"),
            Some("migration create"),
        );
        check(
            Reason::ServerRoleMismatch.status("make it one with `redis-cli … REPLICAOF …`"),
            None,
        );
        check(
            Status::unimplemented("grpc-status header missing, mapped from HTTP status code 404"),
            Some("18080"),
        );
        check(Reason::invalid_field("id", "empty"), Some("--help"));
        check(Status::unimplemented("no such method"), Some("update"));
        check(Status::internal("a bug"), None);
    }
}
