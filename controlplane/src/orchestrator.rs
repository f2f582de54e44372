//! Runs the migrations while this controller leads.
//!
//! Each migration that is not over has a task of its own (`drive`), which does what
//! [`crate::migration::next_step`] says until there is nothing more to do. Here they are started and
//! ended: all of them end at once when this controller does not lead any more, or leads in another term.
//! While it pauses none is started, and those that run take no further step.
//! What they are doing, and wait for, is told in [`Activities`].
//!
//! Owns those tasks and nothing else: what is durable of a migration is its record in the store, what is
//! not dies with its task, and is found out anew. It decides nothing.

use std::{collections::BTreeMap, num::NonZeroUsize, sync::Arc, time::Duration};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use proto::{GroupId, MigrationId, SlotSet};
use tokio::{
    sync::watch,
    task::{Id, JoinSet},
};
use tracing::error;

use crate::{
    change,
    fence::Fences,
    migration::{Migration, Why, brought_besides},
    mover::{self, Endpoint, LinkError, Mandate, Measure, Measured, Plan, Progress, Share},
    probe::Probe,
    registry::Registry,
    snapshot::Snapshot,
    store::Store,
};

mod drive;

use drive::Drive;

/// How long a server may take for what is asked of it while nobody waits for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many groups are measured at the same time.
const MEASURED_AT_ONCE: usize = 8;
/// How many keys are on their way at a time, so to say: see [`Plan::lanes`].
const LANES: NonZeroUsize = NonZeroUsize::new(2).expect("it is not 0");

/// What a migration does, as far as its record does not say it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Activity {
    /// What it waits for. `None`: it is at work.
    pub waits_for: Option<Why>,
    /// Why the last thing that it tried did not work. `None`: it did.
    pub trouble: Option<String>,
    /// How far the copy is.
    pub copy: Progress,
    /// Keys that were deleted at the end, of those that the groups had beside their own.
    pub deleted: u64,
    /// How long the last batch was held.
    pub last_hold: Duration,
    /// How long a batch was held at most, since this controller leads.
    pub longest_hold: Duration,
}

/// By migration; of those that have run since this controller leads.
pub type Activities = BTreeMap<MigrationId, Activity>;

/// What moving slots takes; cheap to clone.
#[derive(Clone)]
pub struct Tools {
    /// Has the records.
    pub store: Store,
    /// What proxies have said.
    pub registry: Registry,
    /// Fences servers.
    pub fences: Fences,
    /// Asks servers what they are, and knows the logins.
    pub probe: Probe,
    /// In how many migrations a group takes part at a time, as source or target.
    pub budget: NonZeroUsize,
    /// What is told.
    pub activities: Arc<watch::Sender<Activities>>,
}

impl Tools {
    /// What the mover has to know to copy, delete or compare these slots of a migration, in the name of a
    /// leader of this term.
    pub fn plan(&self, now: &Snapshot, m: &Migration, slots: SlotSet, term: u64) -> Plan {
        Plan {
            name: m.id.clone(),
            mandate: self.mandate(now, term),
            source: self.endpoint(now, &m.source),
            target: self.endpoint(now, &m.target),
            slots,
            lanes: LANES,
            patience: PATIENCE,
        }
    }

    /// Measures what the slots of each group have at its primary, all groups at once; or which group could
    /// not be measured, and why.
    pub async fn measure(
        &self,
        now: &Snapshot,
        what: Measure,
    ) -> Result<BTreeMap<GroupId, Measured>, (GroupId, LinkError)> {
        let mandate = self.mandate(now, now.head.leader_term);
        let measure = |group: &GroupId| {
            let (group, at) = (group.clone(), self.endpoint(now, group));
            let mandate = mandate.clone();
            async move {
                match mover::measure(&at, mandate, what, PATIENCE).await {
                    Ok(measured) => Ok((group, measured)),
                    Err(why) => Err((group, why)),
                }
            }
        };
        let asked: Vec<_> = now.groups.keys().map(measure).collect();
        let measured = stream::iter(asked).buffer_unordered(MEASURED_AT_ONCE);
        measured.try_collect().await
    }

    /// What a migration moves of what its source has, and what these others bring to its target of what theirs
    /// have, besides.
    pub fn shares<'a>(
        &self,
        now: &Snapshot,
        m: &Migration,
        others: impl IntoIterator<Item = &'a Migration>,
    ) -> (Share, Vec<(Endpoint, Share)>) {
        let share = |source: &GroupId, slots: SlotSet| Share {
            slots: slots.len(),
            owned: change::owned_by(now, source).len(),
        };
        let besides = brought_besides(m, others).into_iter();
        let besides = besides.map(|(source, slots)| {
            let at = self.endpoint(now, &source);
            (at, share(&source, slots))
        });
        (share(&m.source, m.slots), besides.collect())
    }

    fn mandate(&self, now: &Snapshot, term: u64) -> Arc<Mandate> {
        Arc::new(Mandate {
            cluster: now.cluster.id.clone(),
            term,
            incarnation: self.fences.incarnation().to_owned(),
        })
    }

    fn endpoint(&self, now: &Snapshot, group: &GroupId) -> Endpoint {
        Endpoint {
            address: now.groups[group].primary().address.clone(),
            login: self.probe.login(group),
        }
    }
}

/// See the module.
pub struct Orchestrator {
    tools: Tools,
    drives: JoinSet<()>,
    running: BTreeMap<Id, MigrationId>,
    /// In which they were started.
    term: u64,
}

impl Orchestrator {
    /// Without any task.
    pub fn new(tools: Tools) -> Self {
        Self {
            tools,
            drives: JoinSet::new(),
            running: BTreeMap::new(),
            term: 0,
        }
    }

    /// Runs migrations until the store ends.
    pub async fn run(mut self) {
        let mut snapshots = self.tools.store.subscribe();
        let mut standing = self.tools.store.standing();
        loop {
            snapshots.borrow_and_update();
            let store = &self.tools.store;
            match (store.leading(), store.in_office()) {
                (Some(now), _) => self.lead(&now).await,
                (None, Some(_)) => {}
                (None, None) => self.end().await,
            }
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { break },
                // The embedded store always leads, and never says so again.
                Ok(()) = standing.changed() => {}
                Some(ended) = self.drives.join_next_with_id() => self.forget(ended),
            }
        }
        self.end().await;
    }

    /// Starts what does not run yet.
    async fn lead(&mut self, now: &Snapshot) {
        if self.term != now.head.leader_term {
            self.end().await;
            self.term = now.head.leader_term;
        }
        self.tools.activities.send_if_modified(|activities| {
            let before = activities.len();
            activities.retain(|id, _| now.migrations.contains_key(id));
            activities.len() < before
        });
        for migration in now.moving() {
            if self.running.values().any(|id| *id == migration.id) {
                continue;
            }
            let drive = Drive::new(migration.id.clone(), self.tools.clone(), self.term);
            let task = self.drives.spawn(drive.run());
            self.running.insert(task.id(), migration.id.clone());
        }
    }

    async fn end(&mut self) {
        self.drives.shutdown().await;
        self.running.clear();
    }

    fn forget(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>) {
        let task = match &ended {
            Ok((task, ())) => *task,
            Err(e) => e.id(),
        };
        let migration = self.running.remove(&task);
        if let (Err(e), Some(migration)) = (ended, migration) {
            error!(%migration, %e, "a migration's task ended, and is started again");
        }
    }
}
