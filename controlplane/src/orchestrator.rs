//! Runs the migrations while this controller leads.
//!
//! Each migration that is not over has a task of its own (`drive`), which does what
//! [`crate::migration::next_step`] says until there is nothing more to do. Here they are started and
//! ended: all of them end at once when this controller does not lead any more, or leads in another term.
//! What they are doing, and wait for, is told in [`Activities`].
//!
//! Owns those tasks and nothing else: what is durable of a migration is its record in the store, what is
//! not dies with its task, and is found out anew. It decides nothing.

use std::{collections::BTreeMap, num::NonZeroUsize, sync::Arc, time::Duration};

use proto::{GroupId, MigrationId, SlotSet};
use tokio::{
    sync::watch,
    task::{Id, JoinSet},
};
use tracing::error;

use crate::{
    fence::Fences,
    migration::{Migration, Why},
    mover::{Endpoint, Mandate, Plan, Progress},
    probe::Probe,
    registry::Registry,
    snapshot::Snapshot,
    store::Store,
};

mod drive;

use drive::Drive;

/// How long a server may take for what is asked of it while nobody waits for it.
const PATIENCE: Duration = Duration::from_secs(5);
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
        let endpoint = |group: &GroupId| Endpoint {
            address: now.groups[group].primary().address.clone(),
            login: self.probe.login(group),
        };
        Plan {
            name: m.id.clone(),
            mandate: Arc::new(Mandate {
                cluster: now.cluster.id.clone(),
                term,
                incarnation: self.fences.incarnation().to_owned(),
            }),
            source: endpoint(&m.source),
            target: endpoint(&m.target),
            slots,
            lanes: LANES,
            patience: PATIENCE,
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
            match self.tools.store.leading() {
                Some(now) => self.lead(&now).await,
                None => self.end().await,
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
