//! Each bug that is there on purpose is noticed: what never finds anything proves nothing.
//!
//! `make rigged` builds the programs that have them.

use proto::seeded::Bug;

use crate::faults;

/// A stale read is there to be seen for the tenth of a second, and on a busy machine nobody may look: how often it
/// is looked for.
const TRIES: u32 = 3;

macro_rules! caught {
    ($($test:ident: $bug:ident by $scene:ident,)*) => {
        $(#[tokio::test]
        async fn $test() {
            for _ in 0..TRIES {
                if !faults::$scene(Some(Bug::$bug)).await.is_empty() {
                    return;
                }
            }
            panic!("nobody noticed");
        })*

        /// The bugs for which there is a test.
        const CAUGHT: &[Bug] = &[$(Bug::$bug,)*];
    };
}

caught! {
    ack_before_settle: AckBeforeSettle by a_slow_way_to_the_source,
    ack_before_all_workers: AckBeforeAllWorkers by nothing,
    stale_epoch_accepted: StaleEpochAccepted by a_proxy_without_a_controller,
    retry_write: RetryWrite by lost_replies,
    lost_is_not_executed: LostIsNotExecuted by lost_replies,
    lost_connection_not_killed: LostConnectionNotKilled by a_write_that_arrives_late,
    reads_not_held: ReadsNotHeld by a_proxy_that_hears_late,
    no_fence: NoFence by a_proxy_without_a_controller,
    reap_early: ReapEarly by a_move_that_is_cancelled,
    joiner_not_held: JoinerNotHeld by a_proxy_that_starts_during_a_hold,
    attempt_not_killed: AttemptNotKilled by a_copy_that_arrives_late,
    target_not_cleaned: TargetNotCleaned by a_key_that_is_deleted_between_two_copies,
    dirty_not_copied: DirtyNotCopied by nothing,
}

#[test]
fn there_is_a_test_for_each_bug() {
    assert_eq!(CAUGHT, Bug::ALL);
}

/// What users have has none of them, whatever its environment says.
#[test]
fn what_is_installed_has_no_bug_on_purpose() {
    for name in ["sluice-proxy", "sluice-controller"] {
        let program = std::fs::read(tests::binary(name)).unwrap();
        let asks = |window: &[u8]| window == b"SLUICE_SEEDED_BUG";
        let found = program.windows(b"SLUICE_SEEDED_BUG".len()).any(asks);
        assert!(!found, "{name}");
    }
}
