//! Looks at the servers of migrations that are about to be created, so that what cannot be done is refused at
//! once, with the reason.
//!
//! Only what servers say is a reason: who does not answer now may do so when its turn comes, and until then the
//! migration waits. Nothing is written to them, so that a dry run does the same. It holds for the moment: a
//! migration looks again when it begins.

use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use proto::reason::Reason;
use tokio::time::{sleep, timeout};
use tonic::Status;

use super::{Admin, Mode};
use crate::{
    change::{Decision, Edit, Refusal},
    migration::Migration,
    mover::{self, Plan, Unfit},
    snapshot::Snapshot,
};

/// How long the servers of a migration may take to say what they are.
const DEADLINE: Duration = Duration::from_secs(1);

/// After how long who did not answer is asked once more.
const AGAIN: Duration = Duration::from_millis(100);

/// How many migrations of one request are looked at at the same time.
const LOOKS_AT_ONCE: usize = 4;

impl Admin {
    /// Refuses if the servers of a migration that this would create say that they do not fit, or, unless that is
    /// `allowed`, that clients write to them directly.
    pub(super) async fn look_at_servers(
        &self,
        mode: &Mode,
        allowed: bool,
        decide: impl Fn(&Snapshot) -> Decision,
    ) -> Result<(), Status> {
        let now = match mode.validate_only {
            true => self.store.snapshot(),
            false => self.leading()?,
        };
        if mode.is_repetition(&now)? {
            return Ok(());
        }
        let change = decide(&now)?;
        let planned = change.edits.iter().filter_map(|edit| {
            let Edit::PutMigration(migration) = edit else {
                return None;
            };
            Some(&**migration)
        });
        let planned: Vec<&Migration> = planned.collect();
        let looks = planned
            .iter()
            .map(|m| self.look_at(&now, m, &planned, allowed));
        let looks: Vec<_> = looks.collect();
        let looks = stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE);
        Ok(looks.try_collect::<()>().await?)
    }

    /// What is planned together must have room together. What others bring may be gone when its turn comes.
    async fn look_at(
        &self,
        now: &Snapshot,
        m: &Migration,
        planned: &[&Migration],
        allowed: bool,
    ) -> Result<(), Refusal> {
        let plan = Plan {
            patience: DEADLINE,
            ..self.tools.plan(now, m, m.slots, now.head.leader_term)
        };
        let (own, besides) = self.tools.shares(now, m, planned.iter().copied());
        let look = async {
            match mover::look(&plan, own, &besides, allowed).await {
                // A server that has just joined is fenced once more, which may have closed the connection.
                Err(Unfit::Link(_)) => {
                    sleep(AGAIN).await;
                    mover::look(&plan, own, &besides, allowed).await
                }
                looked => looked,
            }
        };
        match timeout(DEADLINE, look).await {
            Ok(Err(Unfit::Reason(why))) => Err(Refusal::new(
                Reason::ServersUnfit,
                format!("slots cannot move from {} to {}: {why}", m.source, m.target),
            )),
            Ok(Ok(()) | Err(Unfit::Link(_))) | Err(_) => Ok(()),
        }
    }
}
