//! Bugs that are there on purpose, so that tests can show that they would be noticed.
//!
//! Each leaves out one rule of the protocol, at the one place where it is kept. Only the programs
//! `sluice-proxy-rigged` and `sluice-controller-rigged` have them (feature `seeded-bugs`; nobody installs
//! these), and of them a process has the one that the environment names: `SLUICE_SEEDED_BUG=no-fence`.
//! Anywhere else [`has`] is `false` when it is compiled, and nothing is left of it.
//!
//! There is none that trusts a lease: nobody has one. No proxy serves by what it is promised for a time, so that
//! there is no rule about clocks to leave out; what a late proxy may do the fence says, at the server.
//!
//! Invariant: product code asks [`has`] only to leave something out, or to do it too early.

macro_rules! bugs {
    ($($(#[$doc:meta])* $bug:ident = $name:literal,)*) => {
        /// See the module.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Bug {
            $($(#[$doc])* $bug,)*
        }

        impl Bug {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$bug,)*];

            /// By which the environment names it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$bug => $name,)*
                }
            }
        }
    };
}

bugs! {
    /// A proxy says that a group has settled before the group has answered.
    AckBeforeSettle = "ack-before-settle",
    /// A proxy says that it routes by a topology, and that all is settled, when one of its workers does.
    AckBeforeAllWorkers = "ack-before-all-workers",
    /// A proxy does not care for the epoch on a fence record.
    StaleEpochAccepted = "stale-epoch-accepted",
    /// A proxy repeats the call of a script whose connection was lost.
    RetryWrite = "retry-write",
    /// A proxy says of a write whose connection was lost that it was not executed.
    LostIsNotExecuted = "lost-is-not-executed",
    /// A proxy forgets connections that were lost with something unanswered.
    LostConnectionNotKilled = "lost-connection-not-killed",
    /// A proxy lets reads of held slots through.
    ReadsNotHeld = "reads-not-held",
    /// A leader fences nobody out.
    NoFence = "no-fence",
    /// A leader deletes what the source has before it commits.
    ReapEarly = "reap-early",
    /// A leader does not tell a proxy that starts of what is held.
    JoinerNotHeld = "joiner-not-held",
    /// A copy begins without the connections of the one before being closed at the target.
    AttemptNotKilled = "attempt-not-killed",
    /// A copy begins with what the target has.
    TargetNotCleaned = "target-not-cleaned",
    /// What is not equal yet is not copied at the end.
    DirtyNotCopied = "dirty-not-copied",
}

/// Whether this process has the bug.
#[cfg(not(feature = "seeded-bugs"))]
#[inline(always)]
pub const fn has(_: Bug) -> bool {
    false
}

/// Whether this process has the bug.
#[cfg(feature = "seeded-bugs")]
pub fn has(bug: Bug) -> bool {
    use std::sync::LazyLock;
    static SEEDED: LazyLock<String> =
        LazyLock::new(|| std::env::var("SLUICE_SEEDED_BUG").unwrap_or_default());
    *SEEDED == bug.name()
}
