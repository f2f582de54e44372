//! One caller that has source and target of a migration compared.
//!
//! The comparison is a task that ends with its caller. What it finds means nothing when one side is being
//! emptied meanwhile: so it is given up as soon as the copy starts over, or what was moved is deleted at
//! the source ([`basis`]).

use std::{num::NonZeroU32, time::Duration};

use proto::{MigrationId, Slot, SlotSet, reason::Reason, v1};
use tokio::{sync::watch, time::sleep};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::Status;
use v1::key_difference::What as WireWhat;

use crate::{
    calls::Permit,
    change::{self, Refusal},
    migration::{Migration, Phase},
    mover::{self, Difference, LinkError, Scope, Stage, Verified, What, Which},
    orchestrator::{Activity, Tools},
    snapshot::Snapshot,
    status,
};

/// How often the caller is told how far it is.
const TELL: Duration = Duration::from_millis(250);

/// See the module.
pub(super) struct Verification {
    tools: Tools,
    id: MigrationId,
    term: u64,
    basis: Basis,
    progress: watch::Receiver<Verified>,
    /// `None`: the caller was told what came of it.
    task: Option<AbortOnDropHandle<Result<(), LinkError>>>,
    /// The controller goes down.
    stopping: CancellationToken,
    /// It has its place until it is gone.
    _permit: Option<Permit>,
}

/// What there is to compare.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Basis {
    /// Slots whose keys source and target have.
    slots: SlotSet,
    /// Of them, those that have moved.
    moved: SlotSet,
    /// Which attempt of the copy the others are of.
    attempt: u32,
}

impl Basis {
    /// Whether both sides still have what was to be compared: slots may have moved since.
    fn stands(&self, now: &Self) -> bool {
        let moved_or_same = now.attempt == self.attempt || now.moved.includes(&self.slots);
        moved_or_same && now.slots.includes(&self.slots)
    }
}

/// What can be compared now: slots that have moved, as long as the source has what it had of them; and
/// those that are to, when the copy has been through all keys.
fn basis(m: &Migration, activity: Option<&Activity>) -> Result<Basis, Refusal> {
    let copy = activity.map(|activity| &activity.copy);
    let copied = match copy.map(|copy| copy.stage) {
        Some(Stage::Following) => m.remaining(),
        Some(Stage::Connecting | Stage::Cleaning | Stage::Copying) | None => SlotSet::EMPTY,
    };
    let slots = match m.phase {
        Phase::Pending => SlotSet::EMPTY,
        Phase::Copying { .. } | Phase::CuttingOver { .. } => m.moved.with(&copied),
        Phase::Committed => m.moved,
        Phase::Reaping { .. }
        | Phase::Aborting { .. }
        | Phase::Succeeded
        | Phase::Cancelled
        | Phase::Failed { .. } => {
            let message = format!(
                "migration {} deletes the copies of one side, or has: there is nothing to compare. With \
                 keep_source it waits before it does",
                m.id
            );
            return Err(Refusal::new(Reason::MigrationTooFar, message));
        }
    };
    if slots.is_empty() {
        let message = format!("migration {} has not copied all keys yet", m.id);
        return Err(Refusal::new(Reason::MigrationNotCopied, message));
    }
    Ok(Basis {
        slots,
        moved: m.moved,
        attempt: copy.map_or(0, |copy| copy.attempt),
    })
}

impl Verification {
    /// Begins to compare one key of so many; 0 and 1: all.
    pub(super) fn begin(
        tools: Tools,
        now: &Snapshot,
        id: MigrationId,
        one_in: u32,
        stopping: CancellationToken,
        permit: Option<Permit>,
    ) -> Result<Self, Refusal> {
        let migration = change::find_migration(now, &id)?;
        let basis = basis(migration, tools.activities.borrow().get(&id))?;
        let term = now.head.leader_term;
        let plan = tools.plan(now, migration, basis.slots, term);
        let scope = Scope {
            slots: basis.slots,
            followed: basis.slots.without(&basis.moved),
            which: match NonZeroU32::new(one_in) {
                None | Some(NonZeroU32::MIN) => Which::All,
                Some(many) => Which::OneIn(many),
            },
        };
        let (tell, progress) = watch::channel(Verified::default());
        let compare = async move { mover::verify(&plan, scope, &tell).await };
        Ok(Self {
            tools,
            id,
            term,
            basis,
            progress,
            task: Some(AbortOnDropHandle::new(tokio::spawn(compare))),
            stopping,
            _permit: permit,
        })
    }

    /// What the caller is told next. After an error, and after what is `done`, there is nothing more.
    pub(super) async fn next(
        mut self,
    ) -> Option<(Result<v1::VerifyMigrationResponse, Status>, Self)> {
        let mut task = self.task.take()?;
        let ended = tokio::select! {
            ended = &mut task => Some(ended),
            () = sleep(TELL) => None,
            () = self.stopping.cancelled() => return Some((Err(status::shutting_down()), self)),
        };
        let told = match (self.stands(), ended) {
            (Err(why), _) => Err(why),
            (Ok(()), None) => {
                self.task = Some(task);
                Ok(self.told(false))
            }
            (Ok(()), Some(Ok(Ok(())))) => Ok(self.told(true)),
            (Ok(()), Some(Ok(Err(why)))) => Err(Status::unavailable(why.to_string())),
            (Ok(()), Some(Err(why))) => Err(Status::internal(why.to_string())),
        };
        Some((told, self))
    }

    /// Whether what was compared so far means anything.
    fn stands(&self) -> Result<(), Status> {
        let now = self.tools.store.in_office();
        let now = now.filter(|now| now.head.leader_term == self.term);
        let now = now.ok_or_else(|| {
            let message = "this controller does not lead any more: ask the leader";
            Reason::NotLeading.status(message)
        })?;
        let migration = change::find_migration(&now, &self.id)?;
        let basis = basis(migration, self.tools.activities.borrow().get(&self.id))?;
        if self.basis.stands(&basis) {
            return Ok(());
        }
        let message = format!("the copy of migration {} has started over", self.id);
        Err(Reason::MigrationNotCopied.status(message))
    }

    fn told(&self, done: bool) -> v1::VerifyMigrationResponse {
        let verified = self.progress.borrow();
        let named = verified.named.iter().filter(|_| done);
        v1::VerifyMigrationResponse {
            slots: self.basis.slots.to_string(),
            moved_slots: self.basis.moved.to_string(),
            keys_seen: verified.seen,
            keys_total: verified.total,
            keys_compared: verified.compared,
            keys_different: verified.different,
            differences: named.map(difference).collect(),
            done,
        }
    }
}

fn difference(found: &Difference) -> v1::KeyDifference {
    let what = match found.what {
        What::Missing => WireWhat::Missing,
        What::Extra => WireWhat::Extra,
        What::Value => WireWhat::Value,
        What::Expiry => WireWhat::Expiry,
    };
    v1::KeyDifference {
        database: found.database,
        key: found.key.clone(),
        slot: Slot::of_key(&found.key).number(),
        what: what.into(),
    }
}

#[cfg(test)]
mod tests {
    use proto::GroupId;

    use super::*;

    fn slots(text: &str) -> SlotSet {
        text.parse().unwrap()
    }

    fn migration(phase: Phase, moved: &str) -> Migration {
        let id = |text| GroupId::new(text).unwrap();
        let name = MigrationId::new("m1").unwrap();
        let mut m = Migration::new(name, id("g1"), id("g2"), slots("0-9"));
        m.phase = phase;
        m.moved = slots(moved);
        m
    }

    fn copying(stage: Stage, attempt: u32) -> Activity {
        let mut activity = Activity::default();
        activity.copy.stage = stage;
        activity.copy.attempt = attempt;
        activity
    }

    /// The slots that are compared, or why there are none.
    fn check(phase: Phase, moved: &str, stage: Option<Stage>) -> Result<String, Reason> {
        let activity = stage.map(|stage| copying(stage, 1));
        let basis = basis(&migration(phase, moved), activity.as_ref());
        basis
            .map(|basis| basis.slots.to_string())
            .map_err(|refusal| refusal.reason)
    }

    #[test]
    fn what_both_sides_have_is_compared() {
        let phase = || Phase::Copying { given_up: None };
        let not_copied = Err(Reason::MigrationNotCopied);
        assert_eq!(check(Phase::Pending, "", None), not_copied);
        assert_eq!(check(phase(), "", None), not_copied);
        assert_eq!(check(phase(), "", Some(Stage::Copying)), not_copied);
        assert_eq!(check(phase(), "0-4", Some(Stage::Copying)).unwrap(), "0-4");
        assert_eq!(check(phase(), "", Some(Stage::Following)).unwrap(), "0-9");
        assert_eq!(check(Phase::Committed, "0-9", None).unwrap(), "0-9");
        let reaping = Phase::Reaping { then: None };
        assert_eq!(check(reaping, "0-9", None), Err(Reason::MigrationTooFar));
    }

    #[test]
    fn it_stands_as_long_as_no_side_was_emptied() {
        let at = |moved: &str, attempt| {
            let m = migration(Phase::Copying { given_up: None }, moved);
            basis(&m, Some(&copying(Stage::Following, attempt))).unwrap()
        };
        let begun = at("0-4", 1);
        assert!(begun.stands(&at("0-4", 1)));
        assert!(begun.stands(&at("0-8", 1)));
        assert!(!begun.stands(&at("0-8", 2)));
        let committed = basis(&migration(Phase::Committed, "0-9"), None).unwrap();
        assert!(begun.stands(&committed));
    }
}
