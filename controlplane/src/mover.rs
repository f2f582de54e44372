//! Copies the keys of some slots from one server to another while the first one serves them.
//!
//! # How
//!
//! *Tracked pre-copy*. The target is emptied of the slots (`clean`). The source is asked to tell of
//! every key that changes (`tracker`); only then all its keys are gone through once (`scan`), and
//! those of the slots are read and written to the target (`relay`) by several lanes at a time
//! (`lane`). Every key that changes is copied again, or deleted at the target, in whatever database: a
//! change is told of without its database. The source never waits for the target, and no request is ever
//! made to wait for the copy.
//!
//! A value that would keep a server busy for too long, or that the target cannot restore, is re-created
//! with commands, by pieces (`pieces`, `pages`, `groups`; a string by one command where that can be, `flow`). One with named elements that has changed since is
//! gone through again and again, and only what differs is written (`chase`, `staged`). While others are
//! settled, what is copied so is parked.
//!
//! *Settling*. When nobody writes to the slots any more (that is the caller's to see to), a key of our
//! own is written at the source, the *barrier*. The source tells of it too, and behind all changes that
//! were answered before; so when it comes, all of them have come. What is dirty then is copied, and the
//! target has, of these slots, what the source has.
//!
//! What servers do *not* tell of is what happens to consumer groups of streams. Whoever settles says on
//! which keys such commands, or scripts, were used; those of them that are streams are copied once more, of a
//! big one all but the entries. A server older than Redis 6 tells of keyspace events alone, and there is more
//! that it does not tell of (`events`).
//!
//! From then on the slots are *shut*: they may be the target's at any moment, and nothing of them is
//! written any more, unless it is said that they stay. A migration of many slots settles, and moves, some
//! at a time, while the others are copied on.
//!
//! How fast that goes `pace` decides. Before a copy stands [`examine()`], after it [`verify()`] and
//! [`reap()`]. What keys there are twice meanwhile, [`Surplus`] counts.
//!
//! # What it never does
//!
//! A copy never decides who owns a slot, never writes to the source but its barrier (and, where there is no
//! tracking, the marks and the setting of `events`), and never touches a
//! key that begins with `{sluice}:`, but for its own at the target. It believes nothing of what it cannot see
//! to the end: when the source is flushed, tracking is lost, a connection breaks, or the target was
//! restarted or flushed or has thrown out keys, the copy starts over, from an empty target, with all
//! connections of the attempt before closed by the target itself.
//!
//! # Invariant
//!
//! At any time each key of the slots either is at the target as it is at the source, or the pass has yet
//! to find it, or it is dirty (told of, or about to be told of).

use std::{
    num::{NonZeroU32, NonZeroUsize},
    sync::Arc,
    time::Duration,
};

use proto::{MigrationId, SlotSet, settled::Streams};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time,
};
use tokio_util::task::AbortOnDropHandle;

use self::{company::Company, link::Opener, scan::Gait, tracker::Telling};
pub use self::{
    examine::{Fit, Share, Unfit},
    link::{Endpoint, LinkError, Mandate},
    measure::{Measure, Measured},
    reap::{Reaped, Unreaped},
    report::{Progress, Stage},
    surplus::Surplus,
    tally::Tally,
    verify::{Difference, Scope, Verified, What, Which},
};

mod attempt;
mod bypass;
mod chase;
mod clean;
mod company;
mod dirty;
mod events;
mod examine;
mod flow;
mod groups;
mod lane;
mod link;
mod measure;
mod pace;
mod pages;
mod pieces;
mod reap;
mod relay;
mod reply;
mod report;
mod scan;
mod server;
mod sizing;
mod staged;
mod surplus;
mod tally;
mod tracker;
mod value;
mod verify;

/// What to copy. The leader's term must stand in the fence records of both servers before.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of which migration: it tells this copy from others that run at the same time, and is the same when
    /// another controller carries on with it.
    pub name: MigrationId,
    /// In whose name.
    pub mandate: Arc<Mandate>,
    /// Who has the keys.
    pub source: Endpoint,
    /// Who gets them.
    pub target: Endpoint,
    /// Keys of which slots.
    pub slots: SlotSet,
    /// How many keys' way is gone at a time: each lane has a connection to both servers.
    pub lanes: NonZeroUsize,
    /// How long a server may take to answer.
    pub patience: Duration,
}

/// How fast a copy may go.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Throttle {
    /// Nothing is copied; changes are still written down.
    pub paused: bool,
    /// Keys a second, at most; each 4 KiB of a value count as one more, and so do 8 to 16 elements of a big
    /// one. What is copied while slots are held does not count.
    pub rate: Option<NonZeroU32>,
}

/// What to settle.
#[derive(Clone, Debug)]
pub struct Settle {
    /// Slots of the copy to which nobody writes from now on, and every write to which was answered.
    pub slots: SlotSet,
    /// Keys that may have changed so that the source did not tell of it: streams, by their consumer groups, and
    /// of a source older than Redis 6 others.
    pub streams: Streams,
    /// How long it may take.
    pub budget: Duration,
}

/// What was seen when the slots were settled. It holds as long as nobody writes to them at the source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Evidence {
    /// The source's process.
    pub source_run_id: String,
    /// The target's process.
    pub target_run_id: String,
    /// Keys that were copied for it.
    pub keys: u64,
    /// How long it took.
    pub took: Duration,
}

/// Why slots are not settled. Nothing is lost: the copy goes on, or starts over.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unsettled {
    /// The pass is not over.
    #[error("the keys are not all copied yet")]
    NotCopied,
    /// The copy has no such slots.
    #[error("these slots are not part of the copy")]
    NotPlanned,
    /// They were not settled, or were reopened since.
    #[error("these slots are not settled")]
    NotSettled,
    /// It would have taken longer.
    #[error("it takes longer than {0:?}")]
    OverBudget(Duration),
    /// No replica of the target has all of it yet.
    #[error("no replica of the target has it yet")]
    ReplicaBehind,
    /// The source does not tell of all changes, and what proxies noted of the others is lost, or too much.
    #[error("keys may have changed of which nobody has told")]
    Unseen,
    /// The copy starts over.
    #[error("the copy starts over")]
    Interrupted,
}

/// Why an attempt of a copy is worth nothing any more, and the copy starts over.
#[derive(Debug, thiserror::Error)]
pub enum Interruption {
    /// The source does not work.
    #[error("source {0}")]
    Source(#[source] LinkError),
    /// The target does not work.
    #[error("target {0}")]
    Target(#[source] LinkError),
    /// The source tells of no changes any more.
    #[error("tracking is lost: {0}")]
    TrackingLost(#[source] LinkError),
    /// Somebody has turned off the keyspace events of a source that tells of changes by them.
    #[error(
        "the source tells of no keyspace events any more: its `notify-keyspace-events` was changed"
    )]
    EventsOff,
    /// The source does not tell of all changes, and of the others nobody knows.
    #[error("keys may have changed of which nobody has told")]
    Unseen,
    /// A database of the source was flushed, or swapped with another.
    #[error("the source was flushed")]
    SourceFlushed,
    /// The source is another process, or a replica now.
    #[error("the source has restarted, or is no primary any more")]
    SourceReplaced,
    /// The target is another process, or a replica now.
    #[error("the target has restarted, or is no primary any more")]
    TargetRestarted,
    /// The target has thrown out keys, perhaps staged ones.
    #[error("the target has evicted keys for want of memory")]
    TargetEvicted,
    /// The mark is not there any more.
    #[error("the target was flushed")]
    TargetFlushed,
    /// The keys change faster than they can be copied.
    #[error("too many keys have changed since they were copied")]
    TooManyDirty,
    /// The target does not understand what the source dumps.
    #[error("the target cannot restore what this version dumps")]
    Incompatible,
    /// These two cannot be source and target.
    #[error("{0}")]
    Unfit(String),
    /// A part of the attempt has ended, for a reason that another part tells.
    #[error("a lane has ended")]
    LaneGone,
}

/// What is asked of a running copy.
enum Request {
    Settle(Settle, oneshot::Sender<Result<Evidence, Unsettled>>),
    Reopen(SlotSet),
    Release(SlotSet, oneshot::Sender<Result<(), Unsettled>>),
}

/// What a copy is of, through all its attempts.
struct Slots {
    /// What is to be copied: all but what was released.
    planned: SlotSet,
    /// What is settled and was not released nor reopened: the target may own it, and no attempt may begin.
    shut: SlotSet,
}

impl Slots {
    /// What was not settled cannot be let go of: some of it may be missing at the target.
    fn release(&mut self, slots: &SlotSet) -> Result<(), Unsettled> {
        if !self.shut.includes(slots) {
            return Err(Unsettled::NotSettled);
        }
        self.planned = self.planned.without(slots);
        self.shut = self.shut.without(slots);
        Ok(())
    }

    /// What is asked while there is no attempt to ask.
    fn answer(&mut self, request: Request) {
        match request {
            // Whoever asked may not want to know any more.
            Request::Settle(_, done) => drop(done.send(Err(Unsettled::NotCopied))),
            Request::Reopen(slots) => self.shut = self.shut.without(&slots),
            Request::Release(slots, done) => drop(done.send(self.release(&slots))),
        }
    }
}

/// A copy under way. Dropped, it stops at once; what it has staged stays, for [`clean_up`].
pub struct Copy {
    throttle: watch::Sender<Throttle>,
    progress: watch::Receiver<Progress>,
    requests: mpsc::Sender<Request>,
    task: AbortOnDropHandle<()>,
    plan: Plan,
}

/// How long is waited before a copy starts over: doubled each time, up to the second.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(10)];

impl Copy {
    /// Begins to copy.
    pub fn begin(plan: Plan) -> Self {
        let (throttle, throttled) = watch::channel(Throttle::default());
        let (tell, progress) = watch::channel(Progress::default());
        let (requests, asked) = mpsc::channel(1);
        let task = tokio::spawn(run(plan.clone(), throttled, tell, asked));
        Self {
            throttle,
            progress,
            requests,
            task: AbortOnDropHandle::new(task),
            plan,
        }
    }

    /// How far it is.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Whether it copies no more, and never will: its task has panicked.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// How fast it may go, from now on.
    pub fn throttle(&self, throttle: Throttle) {
        self.throttle.send_if_modified(|before| {
            let is_other = *before != throttle;
            *before = throttle;
            is_other
        });
    }

    /// Makes the target equal to the source for slots that nobody writes to.
    ///
    /// With the evidence, nothing of these slots is written any more: [`Copy::release`] or [`Copy::reopen`]
    /// must follow. Until then the copy does not start over, whatever happens. Settling them again, in
    /// another hold, takes back what was said before.
    pub async fn settle(&mut self, settle: Settle) -> Result<Evidence, Unsettled> {
        let (done, result) = oneshot::channel();
        let request = Request::Settle(settle, done);
        let sent = self.requests.send(request).await;
        sent.map_err(|_| Unsettled::Interrupted)?;
        result.await.unwrap_or(Err(Unsettled::Interrupted))
    }

    /// Lets go of slots that were settled, for ever: they are the target's, or are about to be. When it
    /// returns, no attempt copies, deletes or cleans anything of them any more.
    pub async fn release(&mut self, slots: SlotSet) -> Result<(), Unsettled> {
        let (done, result) = oneshot::channel();
        let sent = self.requests.send(Request::Release(slots, done)).await;
        sent.map_err(|_| Unsettled::Interrupted)?;
        result.await.unwrap_or(Err(Unsettled::Interrupted))
    }

    /// Slots that were settled stay the source's for now: what changes is copied again.
    pub async fn reopen(&mut self, slots: SlotSet) {
        self.requests.send(Request::Reopen(slots)).await.ok(); // without a task there is no copy
    }

    /// Stops, keeps what was copied, and removes its own marks from the target.
    pub async fn end(self) -> Result<(), LinkError> {
        drop(self.task);
        let mut link = open_alone(&self.plan.target, &self.plan, "end").await?;
        let name = format!("{}:end:", self.plan.name);
        let is_former = |other: &str| attempt::is_former(other, &self.plan, &name);
        clean::close_former(&mut link, is_former).await?;
        for database in link.server().await?.keyspace.into_keys() {
            link.select(database).await?;
            unmark(&mut link, &self.plan).await?;
        }
        Ok(())
    }
}

/// Deletes what a copy that was given up has staged at the target: all keys of its slots. How many that
/// were. The target must not own the slots.
pub async fn clean_up(plan: &Plan) -> Result<u64, LinkError> {
    let mut link = open_alone(&plan.target, plan, "clean").await?;
    let name = format!("{}:clean:", plan.name);
    let is_former = |other: &str| attempt::is_former(other, plan, &name);
    clean::close_former(&mut link, is_former).await?;
    let gait = Gait::of(Company::at(&mut link).await?);
    let own = attempt::own_prefix(&plan.name);
    let deleted = clean::clean(&mut link, &plan.slots, &own, gait).await?;
    leave(plan, "clean").await;
    Ok(deleted)
}

/// Leaves a source as it was, as far as it lets us: nothing may fail for it.
async fn leave(plan: &Plan, purpose: &str) {
    if let Err(why) = try_leave(plan, purpose).await {
        let copy = &plan.name;
        tracing::warn!(%copy, %why, "a source that has no tracking may keep marks and events");
    }
}

/// On a link of its own: one on which a transaction has failed is of no use any more.
async fn try_leave(plan: &Plan, purpose: &str) -> Result<(), LinkError> {
    let (mut source, is) = opener(plan, purpose).open(&plan.source, 0).await?;
    match Telling::of(&is) {
        Telling::Tracking => Ok(()),
        Telling::Events => {
            let name = format!("{}:{purpose}:", plan.name);
            let is_former = |other: &str| attempt::is_former(other, plan, &name);
            clean::close_former(&mut source, is_former).await?;
            for database in is.keyspace.into_keys() {
                source.select(database).await?;
                unmark(&mut source, plan).await?;
            }
            events::put_back(&mut source).await
        }
    }
}

/// Deletes the marks of a copy in a database, and what grew there.
async fn unmark(link: &mut link::Link, plan: &Plan) -> Result<(), LinkError> {
    // One more than planned: that for big keys.
    for lane in 0..=plan.lanes.get() {
        let own = attempt::own_keys(&plan.name, lane);
        let (mark, [place, aside]) = (relay::mark(&own), relay::places(&own));
        let names = [&mark, &place, &aside].map(|name| name.as_bytes());
        clean::unlink(link, &names).await?;
    }
    Ok(())
}

/// Deletes what the source of a plan still has of slots that have moved. `still_ours` is asked before each
/// page that has any of them; what it says must be of that moment.
pub async fn reap(
    plan: &Plan,
    slots: SlotSet,
    still_ours: impl Fn() -> bool,
    progress: &watch::Sender<Reaped>,
) -> Result<(), Unreaped> {
    let mut link = open_alone(&plan.source, plan, "reap").await?;
    let name = format!("{}:reap:", plan.name);
    let is_former = |other: &str| attempt::is_former(other, plan, &name);
    clean::close_former(&mut link, is_former).await?;
    leave(plan, "reap").await;
    reap::reap(&mut link, &slots, still_ours, progress).await
}

/// Compares what the source and the target of a plan have, and changes nothing. What differs is told as it
/// is found.
pub async fn verify(
    plan: &Plan,
    scope: Scope,
    progress: &watch::Sender<Verified>,
) -> Result<(), LinkError> {
    let opener = opener(plan, "verify");
    let source = verify::Side::new(opener.open(&plan.source, 0).await?);
    let target = verify::Side::new(opener.open(&plan.target, 1).await?);
    verify::verify(source, target, scope, progress).await
}

/// Finds out what each slot has at a server, as far as that is worth the work: see [`Measured`].
pub async fn measure(
    at: &Endpoint,
    mandate: Arc<Mandate>,
    what: Measure,
    patience: Duration,
) -> Result<Measured, LinkError> {
    let opener = Opener {
        mandate,
        prefix: "measure:".to_owned(),
        patience,
    };
    let (link, is) = opener.open(at, 0).await?;
    measure::measure(link, &is, what).await
}

/// Looks whether the plan can be carried out: by the servers' versions, clocks, memory and functions; and
/// finds out how. `own`: what it moves of what the source has; `besides`: what others bring to the target of what
/// their sources have.
pub async fn examine(plan: &Plan, own: Share, besides: &[(Endpoint, Share)]) -> Result<Fit, Unfit> {
    let (mut source, mut target) = look_at(plan, own, besides, "examine").await?;
    let probe = format!("{}probe", attempt::own_prefix(&plan.name));
    let restores = examine::restores(&mut source, &mut target, &probe).await?;
    Ok(Fit { restores })
}

/// Only looks whether it can be carried out, and writes nothing to the servers. Also whether clients write to the
/// source past the proxies, unless that is `allowed`.
pub async fn look(
    plan: &Plan,
    own: Share,
    besides: &[(Endpoint, Share)],
    allowed: bool,
) -> Result<(), Unfit> {
    let (mut source, _) = look_at(plan, own, besides, "look").await?;
    match allowed {
        true => Ok(()),
        false => examine::bypass(&mut source).await,
    }
}

async fn look_at(
    plan: &Plan,
    own: Share,
    besides: &[(Endpoint, Share)],
    purpose: &str,
) -> Result<(link::Link, link::Link), Unfit> {
    let opener = opener(plan, purpose);
    let (mut source, source_is) = opener.open(&plan.source, 0).await?;
    let (mut target, target_is) = opener.open(&plan.target, 1).await?;
    let mut needed = own.of(source_is.memory);
    for (number, (at, share)) in (2..).zip(besides) {
        // From one that does not answer nothing comes for now.
        if let Ok((_, is)) = opener.open(at, number).await {
            needed += share.of(is.memory);
        }
    }
    examine::look((&mut source, &source_is), (&mut target, &target_is), needed).await?;
    Ok((source, target))
}

async fn open_alone(to: &Endpoint, plan: &Plan, purpose: &str) -> Result<link::Link, LinkError> {
    let (link, _) = opener(plan, purpose).open(to, 0).await?;
    Ok(link)
}

fn opener(plan: &Plan, purpose: &str) -> Opener {
    Opener {
        mandate: plan.mandate.clone(),
        prefix: format!("{}:{purpose}:", plan.name),
        patience: plan.patience,
    }
}

async fn run(
    plan: Plan,
    throttle: watch::Receiver<Throttle>,
    progress: watch::Sender<Progress>,
    mut requests: mpsc::Receiver<Request>,
) {
    let [mut pause, longest] = PAUSES;
    let mut slots = Slots {
        planned: plan.slots,
        shut: SlotSet::EMPTY,
    };
    for number in 1.. {
        progress.send_modify(|progress| {
            let interruption = progress.interruption.take();
            *progress = Progress {
                attempt: number,
                interruption,
                ..Progress::default()
            };
        });
        let why = attempt::run(
            &plan,
            number,
            &throttle,
            &progress,
            &mut requests,
            &mut slots,
        )
        .await;
        let copied = progress.borrow().stage == Stage::Following;
        tracing::warn!(copy = %plan.name, attempt = number, %why, "the copy starts over");
        progress.send_modify(|progress| {
            progress.stage = Stage::Connecting;
            progress.interruption = Some(why.to_string());
        });
        if copied {
            pause = PAUSES[0];
        }
        let waited = time::sleep(pause);
        tokio::pin!(waited);
        loop {
            tokio::select! {
                () = &mut waited => break,
                Some(request) = requests.recv() => slots.answer(request),
            }
        }
        while !slots.shut.is_empty() {
            match requests.recv().await {
                Some(request) => slots.answer(request),
                None => return,
            }
        }
        pause = (pause * 2).min(longest);
    }
}
