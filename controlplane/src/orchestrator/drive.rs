//! One migration: does what [`next_step`] says, and tells it what has become of that.
//!
//! Whatever is kept here is this leader's own, and of the migration's present phase; a new leader begins
//! with nothing of it. No step may take longer than what it is for allows: while slots are held, all has
//! to be over within the budget of the hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proto::{
    GroupId, MigrationId, ServerAddr, SlotSet,
    fence::{Name, Role},
    seeded::{self, Bug},
    settled::Connection,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::{error, info, warn};

use super::{Activity, PATIENCE, Tools};
use crate::{
    change::{self, Change},
    failpoint::{Point, reach},
    fence::{Mark, Spare, Target},
    migration::{
        Advance, Answer, Claims, Copying, Fenced, Fitness, GiveUp, HOLD_BUDGET, Incarnation,
        Migration, Phase, Step, Why, Wish, World, next_step, reapable, turn,
    },
    mover::{
        self, Copy, Plan, Progress, Reaped, Settle, Stage, Surplus, Throttle, Unfit, Unsettled,
    },
    snapshot::Snapshot,
    store::Standing,
};

/// How long is waited at most before the world is looked at again.
const TICK: Duration = Duration::from_millis(200);
/// The same while slots are held.
const HELD_TICK: Duration = Duration::from_millis(10);
/// How long is waited when something did not work, while nobody waits for it.
const PAUSE: Duration = Duration::from_millis(500);
/// How long servers are taken for unfit before they are looked at again: a person may be mending it.
const UNFIT: Duration = Duration::from_secs(1);
/// How long a hold is put off for big values that are being copied again: within a hold that takes long. One
/// that never stops changing is tried all the same, and stays where it is if need be.
const BIG_PATIENCE: Duration = Duration::from_secs(3);
/// How long slots are not held for a proxy that uses the source and is away. When a leader hangs, its proxies
/// need about this long at most to find another.
const RETURN_PATIENCE: Duration = Duration::from_secs(12);
/// After how long it is looked again whether who is away still uses the source: it may have ended.
const RECOUNT: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Drive {
    id: MigrationId,
    tools: Tools,
    term: u64,
    /// The revision at which the present phase was entered, and when that was seen.
    phase: (u64, Instant),
    /// Of source and target, when that was looked at last.
    primaries: Option<[Option<ServerAddr>; 2]>,
    /// What a look at both servers has shown, and when that was.
    fitness: (Fitness, Instant),
    claims: Claims,
    copy: Option<Copy>,
    /// Counts what is at both servers, from the copy on.
    surplus: Option<Surplus>,
    settled: Option<Settled>,
    /// In the present phase it was not, for want of a replica that has it.
    replica_behind: bool,
    /// Slots of which the copy writes nothing, since they were settled and may have moved.
    shut: SlotSet,
    /// Since when the copy follows, in the present phase.
    following: Option<Instant>,
    census: Option<BTreeSet<Incarnation>>,
    /// When that was seen.
    counted: Instant,
    /// The proxies in there that are not connected here, and since when that is known.
    away: BTreeMap<Incarnation, Instant>,
    fence: Option<Fenced>,
    /// How long after the beginning of the present phase it was raised last.
    fenced: Option<Duration>,
    /// The proxies that have been connected since the copy began.
    noting: BTreeSet<Incarnation>,
    /// Since the copy began, all registered proxies were connected, and noted what it cannot see.
    noted_all: bool,
    is_clean: bool,
    is_reaped: bool,
}

/// That a copy was settled.
#[derive(Clone, Copy)]
struct Settled {
    /// For which hold.
    hold: u64,
    /// In which attempt.
    attempt: u32,
    /// How long after the hold's beginning.
    after: Duration,
    /// How many keys were copied for it.
    keys: u64,
}

/// Why a step was not done. It is tried again, if it is still to be done.
type Trouble = String;

impl Drive {
    pub(super) fn new(id: MigrationId, tools: Tools, term: u64) -> Self {
        Self {
            id,
            tools,
            term,
            phase: (0, Instant::now()),
            primaries: None,
            fitness: (Fitness::Unknown, Instant::now()),
            claims: Claims::default(),
            copy: None,
            surplus: None,
            settled: None,
            replica_behind: false,
            shut: SlotSet::EMPTY,
            following: None,
            census: None,
            counted: Instant::now(),
            away: BTreeMap::new(),
            fence: None,
            fenced: None,
            noting: BTreeSet::new(),
            noted_all: false,
            is_clean: false,
            is_reaped: false,
        }
    }

    /// Until it is over.
    pub(super) async fn run(mut self) {
        let mut snapshots = self.tools.store.subscribe();
        let mut proxies = self.tools.registry.subscribe();
        let mut standing = self.tools.store.standing();
        loop {
            // A leader that pauses begins nothing. One that leads no more ends this task.
            let leads = standing.wait_for(|now| *now == Standing::Leads).await;
            if leads.map(drop).is_err() {
                return;
            }
            let now = snapshots.borrow_and_update().clone();
            proxies.mark_unchanged();
            let Some(migration) = now.migrations.get(&self.id).cloned() else {
                return;
            };
            self.enter(&migration).await;
            self.face(&now, &migration);
            self.bury_copy();
            self.count_surplus(&now, &migration);
            let mut copied = self.copy.as_ref().map(|copy| {
                let progress = copy.progress();
                let before = milestone(&progress.borrow());
                (progress, before)
            });
            let world = self.world(&now, &migration);
            let held = matches!(migration.phase, Phase::CuttingOver { .. });
            let tick = match next_step(&migration, &world) {
                Step::Rest => {
                    self.tell(|activity| activity.waits_for = None);
                    return;
                }
                Step::Wait(why) => {
                    self.tell(|activity| activity.waits_for = Some(why.clone()));
                    if let Why::Rate(pause) = why {
                        pause.min(TICK)
                    } else if held {
                        HELD_TICK
                    } else {
                        TICK
                    }
                }
                step => {
                    // Servers that were unfit are waited for until a look at them says otherwise.
                    if step != Step::Examine {
                        self.tell(|activity| activity.waits_for = None);
                    }
                    match self.take(step, &now, &migration).await {
                        Ok(()) => {
                            self.tell(|activity| activity.trouble = None);
                            continue;
                        }
                        Err(trouble) => {
                            self.trouble(trouble);
                            copied = None; // the step is tried again after a pause
                            if held { HELD_TICK } else { PAUSE }
                        }
                    }
                }
            };
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { return },
                changed = proxies.changed() => if changed.is_err() { return },
                () = moves_on(copied) => {}
                () = sleep(tick) => {}
            }
        }
    }

    /// Forgets what was of another phase.
    async fn enter(&mut self, m: &Migration) {
        let (entered, since) = self.phase;
        if entered != m.entered {
            if self.fence.is_some() || self.settled.is_some() {
                let held = since.elapsed();
                let fenced = self.fenced;
                let settled = self.settled.map(|settled| settled.after);
                let keys = self.settled.map(|settled| settled.keys);
                info!(migration = %self.id, ?held, ?fenced, ?settled, keys, "was held");
                self.tell(|activity| {
                    activity.last_hold = held;
                    activity.longest_hold = activity.longest_hold.max(held);
                });
            }
            self.phase = (m.entered, Instant::now());
            self.following = None;
            (self.fence, self.fenced) = (None, None);
            (self.settled, self.replica_behind) = (None, false);
            (self.is_clean, self.is_reaped) = (false, false);
        }
        match m.phase {
            Phase::Copying { .. } => {
                if entered != m.entered {
                    self.census = None; // it is to be no older than this phase when the next begins
                }
                self.unshut(m).await;
                if entered != m.entered && given_up_unseen(&m.phase) {
                    self.copy = None; // nobody knows what it lacks
                }
                if let Some(copy) = &self.copy {
                    let paused = m.wish == Wish::Pause;
                    let rate = m.manner.rate;
                    copy.throttle(Throttle { paused, rate });
                }
            }
            Phase::CuttingOver { .. } => {}
            Phase::Pending
            | Phase::Committed
            | Phase::Reaping { .. }
            | Phase::Aborting { .. }
            | Phase::Succeeded
            | Phase::Cancelled
            | Phase::Failed { .. } => self.end_copy().await,
        }
    }

    /// Forgets all that it knows of servers that are not the primaries any more: nothing of it is true of
    /// those that are now. What they have is copied anew; a hold is given up for want of a copy.
    fn face(&mut self, now: &Snapshot, m: &Migration) {
        let groups = [m.source.clone(), m.target.clone()];
        let before = self.primaries.replace(primaries(now, &groups));
        if before.is_none() || before == self.primaries {
            return;
        }
        warn!(migration = %self.id, "a primary is another: what was copied is of no use");
        self.fitness.0 = Fitness::Unknown;
        self.claims = Claims::default();
        (self.copy, self.settled, self.shut) = (None, None, SlotSet::EMPTY);
        self.surplus = None;
        (self.census, self.fence) = (None, None);
        (self.is_clean, self.is_reaped) = (false, false);
    }

    /// A copy whose task has panicked is none: another begins, or a hold is given up for want of it.
    fn bury_copy(&mut self) {
        if self.copy.as_ref().is_some_and(Copy::has_ended) {
            error!(migration = %self.id, "a copy's task ended, and it begins anew");
            (self.copy, self.settled, self.shut) = (None, None, SlotSet::EMPTY);
        }
    }

    /// Says what keys are at a server that are no clients' there.
    fn count_surplus(&mut self, now: &Snapshot, m: &Migration) {
        match m.phase {
            Phase::Pending | Phase::Succeeded | Phase::Cancelled | Phase::Failed { .. } => return,
            Phase::Copying { .. }
            | Phase::CuttingOver { .. }
            | Phase::Committed
            | Phase::Reaping { .. }
            | Phase::Aborting { .. } => {}
        }
        // Not before this term stands at both: nothing else comes first, and the claim closes what copies.
        if !(self.claims.source && self.claims.target) {
            return;
        }
        if self.surplus.is_none() {
            self.surplus = Some(Surplus::begin(self.plan(now, m, m.slots)));
        }
        if let Some(surplus) = &self.surplus {
            surplus.are(m.slots.without(&m.moved), m.moved);
        }
    }

    async fn end_surplus(&mut self) {
        let Some(surplus) = self.surplus.take() else {
            return;
        };
        match timeout(PATIENCE, surplus.end()).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => warn!(migration = %self.id, %e, "DBSIZE is too small for a while"),
            Err(_) => warn!(migration = %self.id, "DBSIZE is too small for a while"),
        }
    }

    /// Tells the copy what has become of slots that it has settled.
    async fn unshut(&mut self, m: &Migration) {
        let shut = std::mem::take(&mut self.shut);
        let Some(copy) = self.copy.as_mut().filter(|_| !shut.is_empty()) else {
            return;
        };
        let stay = shut.without(&m.moved);
        let moved = shut.without(&stay);
        let told = async {
            if !stay.is_empty() {
                copy.reopen(stay).await;
            }
            match moved.is_empty() {
                true => Ok(()),
                false => copy.release(moved).await,
            }
        };
        let why = match timeout(PATIENCE, told).await {
            Ok(Ok(())) => return,
            Ok(Err(e)) => e.to_string(),
            Err(_) => "it does not listen".to_owned(), // since a server takes nothing
        };
        // A copy that holds on to what is the target's must not go on.
        warn!(migration = %self.id, why, "the copy begins anew");
        self.copy = None;
    }

    async fn end_copy(&mut self) {
        let Some(copy) = self.copy.take() else { return };
        match timeout(PATIENCE, copy.end()).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => warn!(migration = %self.id, %e, "a copy's marks stay at the target"),
            Err(_) => warn!(migration = %self.id, "a copy's marks stay at the target"),
        }
    }

    fn world(&mut self, now: &Snapshot, m: &Migration) -> World {
        let proxies = self.proxies(&m.source);
        let connected = proxies.iter().filter(|(_, proxy)| proxy.connected);
        let connected: BTreeSet<&Incarnation> = connected.map(|(proxy, _)| proxy).collect();
        let is_gone = |proxy: &Incarnation| !connected.contains(proxy);
        // One that is away from the controller may use the source, and does not know that it is to note.
        self.noted_all &= !now
            .proxies
            .values()
            .any(|proxy| is_gone(&proxy.incarnation));
        let absent = now.proxies.iter();
        let absent = absent.filter(|(_, proxy)| is_gone(&proxy.incarnation));
        let absent = absent.map(|(id, _)| id.clone()).collect();
        let notes_lost = !self.noted_all || self.noting.iter().any(is_gone);
        let census = self.census.iter().flatten();
        let away: BTreeSet<&Incarnation> = census.filter(|proxy| is_gone(proxy)).collect();
        self.away.retain(|proxy, _| away.contains(proxy));
        for proxy in away {
            let since = self.away.entry(proxy.clone());
            since.or_insert_with(Instant::now);
        }
        let returning = self
            .away
            .values()
            .any(|since| since.elapsed() < RETURN_PATIENCE);
        self.noting.extend(connected.into_iter().cloned());
        World {
            term: self.term,
            at_source: change::owned_by(now, &m.source),
            before: turn(m, now.moving().map(|other| &**other), self.tools.budget),
            fitness: self.fitness(),
            claims: self.claims,
            copy: self.copying(m),
            census: self.census.clone(),
            is_census_old: self.counted.elapsed() >= RECOUNT,
            returning,
            proxies,
            fence: self.fence.clone(),
            notes_lost,
            needs_notes: self.needs_notes(),
            lacks_replica: self
                .copy
                .as_ref()
                .is_some_and(|copy| copy.progress().borrow().lacks_replica),
            replica_behind: self.replica_behind,
            absent,
            in_phase: self.phase.1.elapsed(),
            is_clean: self.is_clean,
            is_reaped: self.is_reaped,
        }
    }

    fn fitness(&self) -> Fitness {
        match &self.fitness {
            (Fitness::Unfit(_), seen) if seen.elapsed() >= UNFIT => Fitness::Unknown,
            (fitness, _) => fitness.clone(),
        }
    }

    /// What proxies have said of a group, by their processes.
    fn proxies(&self, source: &GroupId) -> BTreeMap<Incarnation, Answer> {
        let live = self.tools.registry.proxies();
        let answers = live.iter().map(|(id, live)| {
            let answer = Answer {
                id: id.clone(),
                connected: live.connected,
                switched: live.acked.map_or(0, |version| version.epoch),
                settled: live.settled.get(source).map(|settled| (**settled).clone()),
            };
            (live.incarnation.clone(), answer)
        });
        answers.collect()
    }

    fn needs_notes(&self) -> bool {
        let copy = self.copy.as_ref();
        copy.is_some_and(|copy| copy.progress().borrow().needs_notes)
    }

    fn copying(&mut self, m: &Migration) -> Copying {
        let Some(copy) = &self.copy else {
            return Copying::None;
        };
        let progress = copy.progress().borrow().clone();
        self.tell(|activity| activity.copy = progress.clone());
        let remaining = m.remaining();
        let later = progress.slow.with(&progress.uncopied);
        let only_later = progress.big > 0 && later.includes(&remaining);
        let waits = progress.awaited > 0 || only_later && self.phase.1.elapsed() < BIG_PATIENCE;
        if waits && matches!(m.phase, Phase::Copying { .. }) {
            return Copying::Underway;
        }
        if progress.uncopied.includes(&remaining) {
            self.following = None; // what is dirty is not what is waited for
        }
        match (progress.stage, self.settled) {
            (Stage::Following, Some(settled)) if settled.attempt == progress.attempt => {
                Copying::Settled { hold: settled.hold }
            }
            (Stage::Following, _) => Copying::Following {
                since: self.following.get_or_insert_with(Instant::now).elapsed(),
                dirt: progress.dirt,
                slow: progress.slow,
                uncopied: progress.uncopied,
            },
            (Stage::Connecting | Stage::Cleaning | Stage::Copying, _) => {
                self.following = None;
                Copying::Underway
            }
        }
    }

    async fn take(&mut self, step: Step, now: &Snapshot, m: &Migration) -> Result<(), Trouble> {
        match step {
            Step::Wait(_) | Step::Rest => Ok(()),
            Step::Record(advance) => {
                if seeded::has(Bug::ReapEarly) && matches!(advance, Advance::Hold(_)) {
                    let progress = watch::Sender::new(Reaped::default());
                    let plan = self.plan(now, m, m.slots);
                    mover::reap(&plan, m.slots, || true, &progress).await.ok();
                }
                if advance == Advance::End {
                    self.end_surplus().await;
                }
                self.record(m, advance).await
            }
            Step::Examine => self.examine(now, m).await,
            Step::Claim => self.claim(now, m).await,
            Step::Copy => {
                self.begin_copy(now, m);
                Ok(())
            }
            Step::Count => self.count(now, m).await,
            Step::Fence {
                epoch,
                spare,
                close,
            } => self.raise(now, m, epoch, spare, close).await,
            Step::Settle {
                slots,
                hold,
                streams,
            } => {
                let Some(copy) = &mut self.copy else {
                    return Ok(());
                };
                let budget = HOLD_BUDGET.saturating_sub(self.phase.1.elapsed());
                let settle = Settle {
                    slots,
                    streams,
                    budget,
                };
                let attempt = copy.progress().borrow().attempt;
                reach(Point::Settle);
                // Whatever is heard of it: it may be settled when nobody waits for that any more.
                self.shut = self.shut.with(&slots);
                // Its own budget begins when it comes to it.
                let settled = timeout(budget, copy.settle(settle)).await;
                let settled = settled.unwrap_or(Err(Unsettled::OverBudget(budget)));
                self.replica_behind = settled == Err(Unsettled::ReplicaBehind);
                let settled = settled.map_err(words)?;
                reach(Point::Settled);
                self.settled = Some(Settled {
                    hold,
                    attempt,
                    after: self.phase.1.elapsed(),
                    keys: settled.keys,
                });
                Ok(())
            }
            Step::Clean(slots) => {
                self.end_copy().await;
                let plan = self.plan(now, m, slots);
                reach(Point::Clean);
                let deleted = mover::clean_up(&plan).await.map_err(words)?;
                reach(Point::Cleaned);
                self.tell(|activity| activity.deleted += deleted);
                self.is_clean = true;
                Ok(())
            }
            Step::Reap(slots) => {
                let plan = self.plan(now, m, slots);
                let store = self.tools.store.clone();
                let (id, term) = (self.id.clone(), self.term);
                // Asked before each page: what the source owns again is not touched.
                let may = move || {
                    let Some(now) = store.in_office() else {
                        return false;
                    };
                    let same = now.head.leader_term == term;
                    let migration = now.migrations.get(&id);
                    same && migration.is_some_and(|m| {
                        reapable(m, change::owned_by(&now, &m.source)).includes(&slots)
                    })
                };
                let progress = watch::Sender::new(Reaped::default());
                reach(Point::Reap);
                let reaped = mover::reap(&plan, slots, may, &progress).await;
                reach(Point::Reaped);
                self.tell(|activity| activity.deleted += progress.borrow().deleted);
                self.is_reaped = reaped.is_ok();
                reaped.map_err(words)
            }
        }
    }

    async fn record(&mut self, m: &Migration, advance: Advance) -> Result<(), Trouble> {
        let (id, seen) = (self.id.clone(), m.revision);
        let (groups, known) = ([m.source.clone(), m.target.clone()], self.primaries.clone());
        let (before, after) = points(&advance);
        // What was decided of servers that are no primaries any more is not to be.
        let decide = move |now: &Snapshot| {
            if known != Some(primaries(now, &groups)) {
                return Ok(Change::default());
            }
            Ok(change::advance(now, &id, seen, &advance))
        };
        reach(before);
        let committed = self.tools.store.commit(decide).await;
        reach(after);
        committed.map(drop).map_err(words)
    }

    async fn examine(&mut self, now: &Snapshot, m: &Migration) -> Result<(), Trouble> {
        let plan = self.plan(now, m, m.slots);
        let others = now.moving().map(|other| &**other);
        let (own, besides) = self.tools.shares(now, m, others);
        let fitness = match mover::examine(&plan, own, &besides).await {
            Ok(fit) => {
                if !fit.restores {
                    info!(migration = %self.id, "the target cannot restore what the source dumps: values are made anew");
                }
                Fitness::Fit
            }
            Err(Unfit::Reason(why)) => {
                let unfit = Fitness::Unfit(why.clone());
                if self.fitness.0 != unfit {
                    warn!(migration = %self.id, why, "its servers are not fit, and are waited for");
                }
                unfit
            }
            Err(Unfit::Link(why)) => return Err(words(why)),
        };
        self.fitness = (fitness, Instant::now());
        Ok(())
    }

    async fn claim(&mut self, now: &Snapshot, m: &Migration) -> Result<(), Trouble> {
        let deadline = Instant::now() + PATIENCE;
        let (source, target) = (primary(now, &m.source), primary(now, &m.target));
        if !self.claims.source {
            let claimed = self.tools.fences.claim(&source, deadline).await;
            claimed.map_err(words)?;
            self.claims.source = true;
        }
        if !self.claims.target {
            let claimed = self.tools.fences.claim(&target, deadline).await;
            claimed.map_err(words)?;
            self.claims.target = true;
        }
        Ok(())
    }

    fn begin_copy(&mut self, now: &Snapshot, m: &Migration) {
        let proxies = self.proxies(&m.source);
        let notes = |proxy: &Answer| {
            let settled = proxy.settled.as_ref();
            !proxy.connected || settled.is_some_and(|s| s.version.epoch >= m.entered)
        };
        self.noted_all = proxies.values().all(notes);
        self.noting = BTreeSet::new();
        self.copy = Some(Copy::begin(self.plan(now, m, m.remaining())));
        reach(Point::CopyBegun);
    }

    async fn count(&mut self, now: &Snapshot, m: &Migration) -> Result<(), Trouble> {
        let source = primary(now, &m.source);
        let deadline = Instant::now() + HOLD_BUDGET;
        let seen = self.tools.fences.inspect(&source, deadline).await;
        let census = seen.map_err(words)?.census.into_keys();
        let proxies = census.filter(|(role, _)| *role == Role::Proxy);
        self.census = Some(proxies.map(|(_, incarnation)| incarnation).collect());
        self.counted = Instant::now();
        Ok(())
    }

    async fn raise(
        &mut self,
        now: &Snapshot,
        m: &Migration,
        epoch: u64,
        spare: BTreeSet<Incarnation>,
        close: BTreeSet<Connection>,
    ) -> Result<(), Trouble> {
        if seeded::has(Bug::NoFence) {
            self.fence = Some(Fenced {
                term: self.term,
                epoch,
                spared: spare,
                hit: false,
                closed: close,
            });
            return Ok(());
        }
        let source = primary(now, &m.source);
        let mark = Mark {
            term: self.term,
            epoch,
        };
        let deadline = self.phase.1 + HOLD_BUDGET;
        let spared = Spare::Only(&spare);
        let raised = self
            .tools
            .fences
            .raise(&source, mark, spared, &close, deadline);
        let evidence = raised.await.map_err(words)?;
        let is_proxy = |name: &str| {
            name.parse()
                .is_ok_and(|name: Name| name.role == Role::Proxy)
        };
        let hit = evidence.killed().iter().any(|c| is_proxy(&c.name));
        let closed = evidence.closed().clone();
        let mut fence = Fenced {
            term: self.term,
            epoch,
            spared: spare,
            hit,
            closed,
        };
        if let Some(before) = self.fence.take() {
            fence.hit |= before.hit;
            fence.closed.extend(before.closed);
        }
        self.fence = Some(fence);
        self.fenced = Some(self.phase.1.elapsed());
        Ok(())
    }

    fn plan(&self, now: &Snapshot, m: &Migration, slots: SlotSet) -> Plan {
        self.tools.plan(now, m, slots, self.term)
    }

    fn trouble(&self, trouble: Trouble) {
        self.tell(|activity| {
            if activity.trouble.as_ref() != Some(&trouble) {
                warn!(migration = %self.id, trouble, "not done, and tried again");
                activity.trouble = Some(trouble.clone());
            }
        });
    }

    fn tell(&self, tell: impl FnOnce(&mut Activity)) {
        self.tools.activities.send_modify(|activities| {
            tell(activities.entry(self.id.clone()).or_default());
        });
    }
}

/// What is reached before a phase is committed, and after it.
fn points(advance: &Advance) -> (Point, Point) {
    match advance {
        Advance::Copy => (Point::CopyCommit, Point::CopyCommitted),
        Advance::Hold(_) => (Point::HoldCommit, Point::HoldCommitted),
        Advance::GiveUp(_) => (Point::GiveUpCommit, Point::GiveUpCommitted),
        Advance::Commit => (Point::MoveCommit, Point::MoveCommitted),
        Advance::Abort(_) => (Point::AbortCommit, Point::AbortCommitted),
        Advance::Reap => (Point::ReapCommit, Point::ReapCommitted),
        Advance::End => (Point::EndCommit, Point::EndCommitted),
    }
}

fn given_up_unseen(phase: &Phase) -> bool {
    matches!(
        phase,
        Phase::Copying {
            given_up: Some((GiveUp::Unseen, _)),
        }
    )
}

/// What of a copy's progress may let a migration go on at once.
type Milestone = (Stage, u32, [bool; 3]);

fn milestone(progress: &Progress) -> Milestone {
    let good_news = [
        progress.awaited == 0,
        progress.big == 0,
        !progress.lacks_replica,
    ];
    (progress.stage, progress.attempt, good_news)
}

/// Resolves when a copy, if there is one, is further on than it was.
async fn moves_on(copied: Option<(watch::Receiver<Progress>, Milestone)>) {
    if let Some((mut progress, before)) = copied
        && progress
            .wait_for(|now| milestone(now) != before)
            .await
            .is_ok()
    {
        return;
    }
    std::future::pending::<()>().await; // that it has ended is seen to elsewhere
}

/// Of these groups. Those of a migration that is over may be no more.
fn primaries(now: &Snapshot, groups: &[GroupId; 2]) -> [Option<ServerAddr>; 2] {
    let primary = |group| Some(now.groups.get(group)?.primary().address.clone());
    groups.each_ref().map(primary)
}

fn primary(now: &Snapshot, group: &GroupId) -> Target {
    Target::primary(&now.groups[group])
}

fn words(error: impl std::error::Error) -> Trouble {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(&format!(": {error}"));
        cause = error.source();
    }
    words
}
