//! Errors as callers see them. The only place that makes a `Status` of one.

use proto::reason::Reason;
use tonic::Status;

use crate::{
    change::Refusal,
    store::{CommitError, Standing},
};

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal.reason {
            Reason::InvalidField => Reason::invalid_field(&refusal.field, refusal.message),
            reason => reason.status(refusal.message),
        }
    }
}

impl From<CommitError> for Status {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Refused(refusal) => refusal.into(),
            CommitError::NotLeading(Standing::StandsBy { ref leader }) => {
                Reason::not_leading(Some(leader), error.to_string())
            }
            CommitError::NotLeading(_) => Reason::not_leading(None, error.to_string()),
            CommitError::Failed(_)
            | CommitError::Contended
            | CommitError::Unknown
            | CommitError::TimedOut => Reason::StoreFailed.status(error.to_string()),
            CommitError::Closed => shutting_down(),
        }
    }
}

/// Of a call that the end of the process cuts short.
pub fn shutting_down() -> Status {
    Reason::ShuttingDown.status("the controller is shutting down: try the next endpoint, or again")
}

/// Of a stream whose proxy does not keep to the protocol in time.
pub fn silent(message: String) -> Status {
    Status::unavailable(message)
}
