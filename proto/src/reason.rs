//! Machine-readable reasons of gRPC errors (`google.rpc.ErrorInfo`).

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The domain of every [`Reason`].
pub const DOMAIN: &str = "sluice";

/// In the metadata of [`Reason::NotLeading`]: the leader's `HOST:PORT`.
const LEADER: &str = "leader";

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $code:ident;)*) => {
        /// Why a call failed. Each belongs to exactly one canonical code.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// As it stands in `ErrorInfo.reason`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The canonical code it comes with.
            pub fn code(self) -> Code {
                match self { $(Self::$name => Code::$code,)* }
            }

            fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    /// A field of the request is malformed.
    InvalidField = "INVALID_FIELD", InvalidArgument;
    /// The request id was used for another request.
    RequestIdReused = "REQUEST_ID_REUSED", InvalidArgument;
    /// No such group.
    GroupNotFound = "GROUP_NOT_FOUND", NotFound;
    /// No such server.
    ServerNotFound = "SERVER_NOT_FOUND", NotFound;
    /// No such proxy.
    ProxyNotFound = "PROXY_NOT_FOUND", NotFound;
    /// No such migration.
    MigrationNotFound = "MIGRATION_NOT_FOUND", NotFound;
    /// The group is there already.
    GroupExists = "GROUP_EXISTS", AlreadyExists;
    /// The server is in a group already.
    ServerExists = "SERVER_EXISTS", AlreadyExists;
    /// Another live process registered under the same proxy id.
    ProxyIdInUse = "PROXY_ID_IN_USE", AlreadyExists;
    /// A migration has this id.
    MigrationExists = "MIGRATION_EXISTS", AlreadyExists;
    /// The resource was changed since.
    RevisionMismatch = "REVISION_MISMATCH", Aborted;
    /// A group owns the slot: it is moved by a migration, not assigned.
    SlotOwned = "SLOT_OWNED", FailedPrecondition;
    /// The group still owns slots.
    GroupOwnsSlots = "GROUP_OWNS_SLOTS", FailedPrecondition;
    /// A slot cannot move from where it is: nobody owns it, the target does, or another migration has it.
    SlotNotMovable = "SLOT_NOT_MOVABLE", FailedPrecondition;
    /// A migration that is not over has the group.
    GroupInMigration = "GROUP_IN_MIGRATION", FailedPrecondition;
    /// The migration is too far for that, or over.
    MigrationTooFar = "MIGRATION_TOO_FAR", FailedPrecondition;
    /// Not all keys of the migration are copied.
    MigrationNotCopied = "MIGRATION_NOT_COPIED", FailedPrecondition;
    /// The server is its group's primary.
    ServerIsPrimary = "SERVER_IS_PRIMARY", FailedPrecondition;
    /// The server does not answer.
    ServerUnreachable = "SERVER_UNREACHABLE", FailedPrecondition;
    /// Something answers, but not as Redis or Valkey.
    ServerNotRedis = "SERVER_NOT_REDIS", FailedPrecondition;
    /// The server refuses the credentials.
    ServerAuthFailed = "SERVER_AUTH_FAILED", FailedPrecondition;
    /// The server runs in Redis Cluster mode.
    ServerInClusterMode = "SERVER_IN_CLUSTER_MODE", FailedPrecondition;
    /// The server is neither the primary nor a replica of the group's primary.
    ServerRoleMismatch = "SERVER_ROLE_MISMATCH", FailedPrecondition;
    /// The server has the fence record of another cluster.
    ServerOfOtherCluster = "SERVER_OF_OTHER_CLUSTER", FailedPrecondition;
    /// The user at the server may not do what is needed.
    ServerNotPermitted = "SERVER_NOT_PERMITTED", FailedPrecondition;
    /// The server took no fence record in time.
    ServerNotFenced = "SERVER_NOT_FENCED", FailedPrecondition;
    /// The servers of two groups do not fit as the source and the target of a migration.
    ServersUnfit = "SERVERS_UNFIT", FailedPrecondition;
    /// The store has groups already.
    ClusterNotEmpty = "CLUSTER_NOT_EMPTY", FailedPrecondition;
    /// As many proxies are registered as may be.
    TooManyProxies = "TOO_MANY_PROXIES", ResourceExhausted;
    /// The proxy is connected.
    ProxyConnected = "PROXY_CONNECTED", FailedPrecondition;
    /// Events were lost: list again, then watch again.
    EventsLost = "EVENTS_LOST", OutOfRange;
    /// Too many calls of this kind are under way; nothing was done.
    Overloaded = "OVERLOADED", ResourceExhausted;
    /// The call was not done in time.
    CallTimedOut = "CALL_TIMED_OUT", DeadlineExceeded;
    /// The controller is going down.
    ShuttingDown = "SHUTTING_DOWN", Unavailable;
    /// Another controller leads, or none does; nothing was changed.
    NotLeading = "NOT_LEADING", Unavailable;
    /// The store did not take the change.
    StoreFailed = "STORE_FAILED", Unavailable;
}

impl Reason {
    /// The error, with `message` for people.
    pub fn status(self, message: impl Into<String>) -> Status {
        Status::with_error_details(self.code(), message, self.details())
    }

    /// [`Reason::InvalidField`], naming the field.
    pub fn invalid_field(field: &str, message: impl Into<String>) -> Status {
        let message = message.into();
        let mut details = Self::InvalidField.details();
        details.add_bad_request_violation(field, &message);
        Status::with_error_details(
            Code::InvalidArgument,
            format!("{field}: {message}"),
            details,
        )
    }

    /// [`Reason::NotLeading`], naming who does, if that is known.
    pub fn not_leading(leader: Option<&str>, message: impl Into<String>) -> Status {
        let leader = leader.map(|leader| (LEADER.to_owned(), leader.to_owned()));
        let known: HashMap<String, String> = leader.into_iter().collect();
        let details = ErrorDetails::with_error_info(Self::NotLeading.as_str(), DOMAIN, known);
        Status::with_error_details(Self::NotLeading.code(), message, details)
    }

    /// The reason an error carries. `None`: it is not one of ours.
    pub fn of(status: &Status) -> Option<Self> {
        let info = status.get_details_error_info()?;
        if info.domain == DOMAIN {
            Self::parse(&info.reason)
        } else {
            None
        }
    }

    fn details(self) -> ErrorDetails {
        ErrorDetails::with_error_info(self.as_str(), DOMAIN, HashMap::new())
    }
}

/// Where the leader's gRPC is reached, as an error says that does not come from it.
pub fn leader(status: &Status) -> Option<String> {
    let mut info = status.get_details_error_info()?;
    if info.domain != DOMAIN {
        return None;
    }
    info.metadata.remove(LEADER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_survives_the_wire() {
        let status = Reason::SlotOwned.status("slot 3 belongs to g1");
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(Reason::of(&status), Some(Reason::SlotOwned));
        assert_eq!(
            Reason::of(&Reason::invalid_field("id", "empty")),
            Some(Reason::InvalidField)
        );
        assert_eq!(Reason::of(&Status::internal("x")), None);
    }

    #[test]
    fn the_leader_survives_the_wire() {
        let named = Reason::not_leading(Some("h:1"), "ask h:1");
        assert_eq!(Reason::of(&named), Some(Reason::NotLeading));
        assert_eq!(leader(&named).as_deref(), Some("h:1"));
        assert_eq!(leader(&Reason::not_leading(None, "nobody leads")), None);
        assert_eq!(leader(&Status::unavailable("x")), None);
    }
}
