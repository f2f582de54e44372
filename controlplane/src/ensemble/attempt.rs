//! A commit that was sent, and what became of it.
//!
//! Where its answer was lost, the epoch node tells: each commit sets it, at the version at which it was
//! decided. Is it at that version still, the commit was not taken, but may be under way yet: ZooKeeper's
//! servers refuse the requests of a session that has moved to another server, and close its other connection
//! when it comes again to the same one; what was read from that before is served all the same.
//!
//! Invariant: whoever is told that nothing was changed is told so when nothing of it can be any more.

use std::sync::Arc;

use crate::{
    change::Change,
    snapshot::Snapshot,
    store::{CommitError, Reply},
    zookeeper::Sight,
};

/// A commit that was sent.
pub(super) struct Attempt {
    /// Of [`crate::tree::Epoch::commit`].
    pub(super) commit: String,
    /// The epoch node's version when it was decided.
    before: i32,
    pub(super) change: Change,
    /// Nobody waits for an election.
    pub(super) reply: Option<Reply>,
}

/// What became of a commit whose answer was lost, by what the epoch node says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Taken,
    NotTaken,
    /// It was not, and may be yet.
    Open,
    /// Others have written since, and it may have been before them.
    Unknown,
}

impl Attempt {
    pub(super) fn new(seen: &Sight, change: Change, reply: Option<Reply>) -> Self {
        Self {
            commit: format!("{:016x}", fastrand::u64(..)),
            before: seen.image.epoch_version(),
            change,
            reply,
        }
    }

    pub(super) fn answer(&mut self, answer: Result<Arc<Snapshot>, CommitError>) {
        if let Some(reply) = self.reply.take() {
            drop(reply.send(answer)); // an error: the caller gave up waiting
        }
    }

    /// What became of it: the epoch node is at another version now, or at the same, and says who wrote it
    /// last. Each write raises the version by one.
    pub(super) fn fate(&self, last: &str, version: i32) -> Fate {
        if last == self.commit {
            return Fate::Taken;
        }
        match version.wrapping_sub(self.before) {
            0 => Fate::Open,
            1 => Fate::NotTaken,
            _ => Fate::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(before: i32) -> Attempt {
        Attempt {
            commit: "own".to_owned(),
            before,
            change: Change::default(),
            reply: None,
        }
    }

    #[test]
    fn it_was_taken_or_not_by_who_wrote_the_epoch_at_its_version() {
        for (last, version, expected) in [
            ("own", 8, Fate::Taken),
            ("own", 9, Fate::Taken), // the node was written as it was
            ("other", 7, Fate::Open),
            ("other", 8, Fate::NotTaken),
            ("other", 9, Fate::Unknown),
            ("other", 3, Fate::Unknown),
        ] {
            assert_eq!(sent(7).fate(last, version), expected, "{last} {version}");
        }
        assert_eq!(sent(i32::MAX).fate("other", i32::MIN), Fate::NotTaken);
    }
}
