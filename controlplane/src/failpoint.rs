//! The steps of a leader at which a test stops or kills it.
//!
//! Before and after whatever is durable, or is seen from outside. Without the feature `failpoints`
//! reaching one is nothing; with it (`sluice-controller-rigged`, which nobody installs) the environment
//! says what happens there: `FAILPOINTS="hold-commit=1*return(stop)"`, in the language of the crate `fail`.
//! `return(kill)` is a `kill -9` and `return(stop)` a SIGSTOP of the process by itself, at that very step.
//!
//! Nothing here decides anything, and no product code asks whether a point was reached.

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal,)*) => {
        /// See the module.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Point {
            $($(#[$doc])* $point,)*
        }

        impl Point {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$point,)*];

            /// By which the environment names it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)*
                }
            }
        }
    };
}

points! {
    /// The multi that makes it leader is about to be sent.
    Election = "election",
    /// ZooKeeper has answered that it leads; it does not believe so yet.
    Elected = "elected",
    /// The multi of a commit is about to be sent.
    Commit = "commit",
    /// ZooKeeper has answered that the commit is taken; the mirror does not have it.
    Committed = "committed",
    /// The mirror has the commit; nobody was shown it.
    Mirrored = "mirrored",
    /// The commit was shown; its caller was not answered.
    Shown = "shown",
    /// A topology is about to be sent to a proxy.
    Publish = "publish",
    /// It was.
    Published = "published",
    /// This term is about to be written on a server's fence record.
    Claim = "claim",
    /// It is; nobody of earlier terms was killed.
    ClaimRaised = "claim-raised",
    /// They were; the record was not read back.
    ClaimKilled = "claim-killed",
    /// It was; nobody was told.
    Claimed = "claimed",
    /// A server's fence record is about to be raised to an epoch.
    Fence = "fence",
    /// It is; no connection was killed.
    FenceRaised = "fence-raised",
    /// They were; the record was not read back.
    FenceKilled = "fence-killed",
    /// It was; nobody was told.
    Fenced = "fenced",
    /// The fence record of a server that is admitted is about to be raised.
    Admit = "admit",
    /// It is; no connection was killed.
    AdmitRaised = "admit-raised",
    /// They were; the record was not read back.
    AdmitKilled = "admit-killed",
    /// It was; the server is not in the store yet.
    Admitted = "admitted",
    /// A migration is about to be recorded as copying.
    CopyCommit = "copy-commit",
    /// It is.
    CopyCommitted = "copy-committed",
    /// The copy is under way.
    CopyBegun = "copy-begun",
    /// A batch is about to be held.
    HoldCommit = "hold-commit",
    /// It is.
    HoldCommitted = "hold-committed",
    /// What is dirty of the held batch is about to be copied.
    Settle = "settle",
    /// It was.
    Settled = "settled",
    /// A hold is about to be given up.
    GiveUpCommit = "give-up-commit",
    /// It is; the batch is the source's as before.
    GiveUpCommitted = "give-up-committed",
    /// The batch is about to be given to the target.
    MoveCommit = "move-commit",
    /// It is the target's.
    MoveCommitted = "move-committed",
    /// A migration is about to be recorded as reaping.
    ReapCommit = "reap-commit",
    /// It is.
    ReapCommitted = "reap-committed",
    /// What the source has left is about to be deleted.
    Reap = "reap",
    /// It was.
    Reaped = "reaped",
    /// A migration is about to be recorded as aborting.
    AbortCommit = "abort-commit",
    /// It is.
    AbortCommitted = "abort-committed",
    /// What the target was given of slots that did not move is about to be deleted.
    Clean = "clean",
    /// It was.
    Cleaned = "cleaned",
    /// A migration is about to be recorded as over.
    EndCommit = "end-commit",
    /// It is.
    EndCommitted = "end-committed",
}

/// Says that a step is reached.
#[cfg(not(feature = "failpoints"))]
pub(crate) fn reach(_: Point) {}

/// Says that a step is reached; may not return.
#[cfg(feature = "failpoints")]
pub(crate) fn reach(point: Point) {
    use rustix::process::{Signal, getpid, kill_process};

    fail::fail_point!(point.name(), |action| {
        let signal = match action.as_deref() {
            Some("kill") => Signal::KILL,
            Some("stop") => Signal::STOP,
            other => panic!("no action at a step: {other:?}"),
        };
        kill_process(getpid(), signal).expect("a process may signal itself");
    });
}
