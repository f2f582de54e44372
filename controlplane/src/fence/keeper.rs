//! Looks after the records of all servers, while this controller leads.
//!
//! One task a server, so that a dead one holds up nobody else; all end when it leads no more, or in
//! another term. A task's first visit raises the record's term, before anything else is sent to the
//! server. Then it looks every second: a process that has restarted or was promoted, or whose record
//! was flushed, is admitted again; a record that was lowered is raised again.
//!
//! Only primaries have a record of their own; a replica has its primary's, and is admitted when it has
//! become one.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic,
    sync::Arc,
    time::Duration,
};

use proto::ServerAddr;
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::{info, warn};

use super::{Fences, Leader, Mark, NotFenced, Spare, Target, link::Link, step, step::Step};
use crate::{
    model::Group,
    registry::Registry,
    snapshot::Snapshot,
    store::{Standing, Store},
};

/// How often each record is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How long a visit may take, before its server counts as out of reach.
const VISIT: Duration = Duration::from_secs(5);

/// See the module.
pub struct Keeper {
    /// Tells which servers there are, and whether this controller leads.
    pub store: Store,
    /// Who has confirmed.
    pub registry: Registry,
    /// How records are raised.
    pub fences: Fences,
}

/// What is looked after, in which term.
type Post = (Target, u64);

impl Keeper {
    /// Looks after the servers until the store ends.
    pub async fn run(self) {
        let mut snapshots = self.store.subscribe();
        let mut standing = self.store.standing();
        let mut tasks = JoinSet::new();
        let mut posts: BTreeMap<Post, AbortHandle> = BTreeMap::new();
        loop {
            let wanted = self.store.leading().map(|now| wanted(&now));
            self.post(&wanted.unwrap_or_default(), &mut posts, &mut tasks);
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { return },
                () = moved(&mut standing) => {}
                Some(ended) = tasks.join_next() => match ended {
                    Err(e) if e.is_panic() => panic::resume_unwind(e.into_panic()),
                    Err(_) | Ok(()) => {} // it was called off
                },
            }
        }
    }

    /// Begins and ends tasks, so that there is one for each that is wanted.
    fn post(
        &self,
        wanted: &BTreeSet<Post>,
        posts: &mut BTreeMap<Post, AbortHandle>,
        tasks: &mut JoinSet<()>,
    ) {
        posts.retain(|post, task| {
            let stays = wanted.contains(post);
            if !stays {
                task.abort();
            }
            stays
        });
        let servers: BTreeSet<&ServerAddr> = wanted.iter().map(|(at, _)| &at.address).collect();
        self.fences.keep_only(&servers);
        for post in wanted {
            posts.entry(post.clone()).or_insert_with(|| {
                let (at, term) = post.clone();
                let visitor = Visitor {
                    at,
                    term,
                    store: self.store.clone(),
                    registry: self.registry.clone(),
                    fences: self.fences.clone(),
                    link: None,
                };
                tasks.spawn(visitor.run())
            });
        }
    }
}

/// The primaries.
fn wanted(now: &Snapshot) -> BTreeSet<Post> {
    let target = |group: &Arc<Group>| {
        let at = Target {
            address: group.primary().address.clone(),
            group: group.id.clone(),
        };
        (at, now.head.leader_term)
    };
    now.groups.values().map(target).collect()
}

/// Resolves when the standing has changed.
async fn moved(standing: &mut watch::Receiver<Standing>) {
    if standing.changed().await.is_err() {
        std::future::pending::<()>().await; // the embedded store: it always leads
    }
}

/// Looks after one server in one term.
struct Visitor {
    at: Target,
    term: u64,
    store: Store,
    registry: Registry,
    fences: Fences,
    /// Kept from one visit to the next.
    link: Option<Link>,
}

impl Visitor {
    async fn run(mut self) {
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if let Err(why) = self.visit().await {
                self.link = None;
                let server = &self.at.address;
                if self.fences.doubt(server, why.clone()) {
                    warn!(%server, %why, "server has no fence record of this term");
                }
            }
        }
    }

    async fn visit(&mut self) -> Result<(), NotFenced> {
        let deadline = Instant::now() + VISIT;
        let look = async {
            match &mut self.link {
                Some(link) => link.look().await,
                None => {
                    let (link, sight) = self.fences.open(&self.at).await?;
                    self.link = Some(link);
                    Ok(sight)
                }
            }
        };
        let sight = look.await?;
        let now = self.store.leading().ok_or(NotFenced::NotLeading)?;
        let leader = Leader::of(&now);
        if leader.own.term != self.term {
            return Err(NotFenced::NotLeading);
        }
        let known = self.known(&sight.run_id);
        let step = step::next(&sight, &leader.cluster, leader.own, known);
        let term = self.term;
        let mark = |epoch| Mark { term, epoch };
        match step {
            Step::Keep => self.fences.note(&self.at.address, &sight),
            Step::Lead { epoch } => {
                let (spare, mark) = (Spare::Proxies, mark(epoch));
                self.fences.raise(&self.at, mark, spare, deadline).await?;
            }
            Step::Restore { epoch } => {
                warn!(server = %self.at.address, epoch, "fence record was lowered");
                let (spare, mark) = (self.registry.confirmed(epoch), mark(epoch));
                let spare = Spare::Only(&spare);
                self.fences.raise(&self.at, mark, spare, deadline).await?;
            }
            Step::Admit => {
                info!(server = %self.at.address, run_id = sight.run_id, "admits a server again");
                let spare = self.registry.confirmed(leader.own.epoch);
                let spare = Spare::Only(&spare);
                self.fences.admit(&self.at, spare, false, deadline).await?;
            }
            Step::Leap(found) => {
                warn!(server = %self.at.address, ?found, "fence record is above the store");
                self.fences.leap(found).await?;
            }
            Step::Leave(refusal) => return Err(NotFenced::Refused(refusal)),
        }
        Ok(())
    }

    /// To which epoch the record of this process was raised, or found.
    fn known(&self, run_id: &str) -> Option<u64> {
        let last = self.fences.last(&self.at.address)?;
        (last.run_id == run_id).then_some(last.epoch)
    }
}
