//! Looks after the records of all servers, while this controller leads.
//!
//! One task a server, so that a dead one holds up nobody else; all end when it leads no more, or in
//! another term. While it pauses none is begun, and no server is visited. A task's first visit raises the
//! record's term, before anything else is sent to the server. Then it looks every second: a process that
//! has restarted or was promoted, or whose record was flushed, is admitted again; a record that was lowered
//! is raised again. What was begun and not seen through (the record was raised, and the connection lost
//! before anybody was killed) is done again, though the record says nothing of it.
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
use tracing::{debug, warn};

use super::{
    Fences, Leader, Mark, NOTHING, NotFenced, Sight, Spare, Target, link::Link, step, step::Step,
};
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
            match (self.store.leading(), self.store.in_office()) {
                (Some(now), _) => self.post(&wanted(&now), &mut posts, &mut tasks),
                (None, Some(_)) => {}
                (None, None) => self.post(&BTreeSet::new(), &mut posts, &mut tasks),
            }
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
                    due: Some(Due::Begin),
                    has_begun: false,
                };
                tasks.spawn(visitor.run())
            });
        }
    }
}

/// The primaries.
fn wanted(now: &Snapshot) -> BTreeSet<Post> {
    let post = |group: &Arc<Group>| (Target::primary(group), now.head.leader_term);
    now.groups.values().map(post).collect()
}

/// Resolves when the standing has changed.
async fn moved(standing: &mut watch::Receiver<Standing>) {
    if standing.changed().await.is_err() {
        std::future::pending::<()>().await; // the embedded store: it always leads
    }
}

/// What is to be done to a record, and to who is connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Due {
    /// It is this term's first.
    Begin,
    /// It was lowered: raise it again to this epoch.
    Restore { epoch: u64 },
    /// It is to be admitted.
    Admit,
}

/// What a visit does, by the record and by what was not seen through.
fn due(step: &Step, before: Option<Due>) -> Option<Due> {
    match (step, before) {
        (Step::Keep, before) => before,
        (_, Some(Due::Admit)) | (Step::Admit, _) => Some(Due::Admit),
        (Step::Restore { epoch }, _) => Some(Due::Restore { epoch: *epoch }),
        (Step::Lead { .. }, _) => Some(Due::Begin),
        (Step::Leap(_) | Step::Leave(_), before) => before,
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
    /// What was not seen through yet.
    due: Option<Due>,
    /// Whether [`Due::Begin`] was.
    has_begun: bool,
}

impl Visitor {
    async fn run(mut self) {
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            // A leader that pauses begins nothing. One that leads no more ends this task.
            if self.store.leading().is_none() {
                continue;
            }
            match self.visit().await {
                Ok(()) | Err(NotFenced::NotLeading) => {} // that is not the server's doing
                Err(why) => {
                    self.link = None;
                    let server = &self.at.address;
                    if self.fences.doubt(server, why.clone()) {
                        warn!(%server, %why, "server has no fence record of this term");
                    }
                }
            }
        }
    }

    async fn visit(&mut self) -> Result<(), NotFenced> {
        let deadline = Instant::now() + VISIT;
        let sight = self.look().await?;
        let now = self.store.leading().ok_or(NotFenced::NotLeading)?;
        let Leader { cluster, own } = Leader::of(&now);
        if own.term != self.term {
            return Err(NotFenced::NotLeading);
        }
        let known = self.fences.known(&self.at.address, &sight.run_id);
        let step = step::next(&sight, &cluster, own, known);
        self.due = due(&step, self.due);
        match step {
            Step::Leap(found) => {
                warn!(server = %self.at.address, ?found, "fence record is above the store");
                return self.fences.leap(found).await;
            }
            Step::Leave(refusal) => return Err(NotFenced::Refused(refusal)),
            Step::Keep | Step::Lead { .. } | Step::Restore { .. } | Step::Admit => {}
        }
        match self.due {
            Some(due) => {
                self.carry_out(due, own, deadline).await?;
                self.has_begun |= due == Due::Begin;
                self.due = (!self.has_begun).then_some(Due::Begin);
            }
            None => self.fences.note(&self.at.address, &sight),
        }
        Ok(())
    }

    async fn look(&mut self) -> Result<Sight, NotFenced> {
        match &mut self.link {
            Some(link) => link.look().await,
            None => {
                let (link, sight) = self.fences.open(&self.at).await?;
                self.link = Some(link);
                Ok(sight)
            }
        }
    }

    async fn carry_out(&self, due: Due, own: Mark, deadline: Instant) -> Result<(), NotFenced> {
        let (at, fences) = (&self.at, &self.fences);
        let evidence = match due {
            Due::Begin => fences.begin(at, deadline).await?,
            Due::Restore { epoch } => {
                warn!(server = %at.address, epoch, "fence record was lowered");
                let confirmed = self.registry.confirmed(epoch);
                let (mark, spare) = (Mark { epoch, ..own }, Spare::Only(&confirmed));
                fences.raise(at, mark, spare, NOTHING, deadline).await?
            }
            Due::Admit => {
                let confirmed = self.registry.confirmed(own.epoch);
                let spare = Spare::Only(&confirmed);
                fences.admit(at, spare, false, deadline).await?
            }
        };
        debug!(server = %at.address, ?due, run_id = evidence.run_id(), "fence record was seen to");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_seen_through_is_done_again() {
        let (begin, admit) = (Some(Due::Begin), Some(Due::Admit));
        let (lead, restore) = (Step::Lead { epoch: 3 }, Step::Restore { epoch: 4 });
        let restored = Some(Due::Restore { epoch: 4 });
        for (step, before, expected) in [
            (&Step::Keep, None, None),
            (&Step::Keep, begin, begin),
            (&Step::Keep, admit, admit),
            (&lead, None, begin),
            (&lead, begin, begin),
            (&lead, admit, admit),
            (&restore, None, restored),
            (&restore, admit, admit),
            (&Step::Admit, None, admit),
            (&Step::Admit, begin, admit),
            (&Step::Admit, restored, admit),
        ] {
            assert_eq!(due(step, before), expected, "{step:?}, {before:?}");
        }
    }
}
