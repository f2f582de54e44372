//! One attempt of a copy: from an empty target until something makes it worthless.
//!
//! Owns all connections and tasks of the attempt; when it ends, all of them end. The order is what makes
//! it right: former attempts are closed at the target before it is cleaned, it is cleaned before anything
//! is staged, and tracking is on before the pass begins.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use proto::{
    MigrationId, SlotSet,
    fence::{self, Name},
    seeded::{self, Bug},
    settled::Streams,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time,
};

use super::{
    Evidence, Interruption, Plan, Progress, Request, Settle, Slots, Stage, Throttle, Unsettled,
    clean,
    company::{Commands, Company},
    dirty::Key,
    events, examine,
    flow::Door,
    lane::{self, Drain, Drained, Lane, Notice, Replicated, Role, State},
    link::{Link, Opener},
    pace::{self, Pace, Usual},
    relay::Relay,
    report::Report,
    scan::{Gait, Pass},
    server::Server,
    sizing::Sizing,
    tracker::{Telling, Tracker, barrier_prefix},
};

/// Notices that wait for a lane. When there are more, the tracker stops reading, and the source closes
/// its connection in the end.
const NOTICES: usize = 1024;
/// Batches of the pass that wait for a lane.
const FOUND: usize = 4;
/// How often progress is told.
const TELL: Duration = Duration::from_millis(50);
/// How often both servers are asked whether they are still what they were.
const LOOK: Duration = Duration::from_secs(1);
/// The part of its budget in which what is settled has to come to a replica.
const REPLICATED: f64 = 0.9;

/// How long is waited for why a part has ended.
const REASON: Duration = Duration::from_secs(1);

/// What a barrier is written with. `DEL` goes first, so that it is also taken by a server that is full; and
/// last, so that nothing of it stays: the server tells of it all the same.
const BARRIER: &[u8] =
    b"redis.call('DEL', KEYS[1]) redis.call('SET', KEYS[1], '') return redis.call('DEL', KEYS[1])";

/// See the module.
pub(super) struct Attempt<'a> {
    plan: &'a Plan,
    opener: Opener,
    progress: &'a watch::Sender<Progress>,
    source: Link,
    source_run_id: String,
    telling: Telling,
    target: Link,
    target_run_id: String,
    /// `evicted_keys` of the target at the beginning.
    evicted: u64,
    lanes: Vec<mpsc::Sender<Notice>>,
    /// The lane for big keys.
    big: mpsc::Sender<Notice>,
    tasks: JoinSet<Result<(), Interruption>>,
    report: Arc<Report>,
    pace: Arc<Pace>,
    /// What the keys of barriers begin with.
    barrier: String,
    /// The newest barrier that was written.
    barriers: u64,
    /// Whether slots are being settled: then what the source tells is waited for.
    hurry: watch::Sender<bool>,
}

/// Runs an attempt to its end, and says why it came.
pub(super) async fn run(
    plan: &Plan,
    number: u32,
    throttle: &watch::Receiver<Throttle>,
    progress: &watch::Sender<Progress>,
    requests: &mut mpsc::Receiver<Request>,
    slots: &mut Slots,
) -> Interruption {
    // Nothing is settled now, so that nothing is released while it begins.
    let planned = slots.planned;
    let begun = async {
        let mut passes = Vec::new();
        let attempt =
            Attempt::begin(plan, planned, number, throttle, progress, &mut passes).await?;
        Ok((attempt, passes))
    };
    tokio::pin!(begun);
    let (mut attempt, passes) = loop {
        tokio::select! {
            begun = &mut begun => match begun {
                Ok(begun) => break begun,
                Err(why) => return why,
            },
            Some(request) = requests.recv() => slots.answer(request),
        }
    };
    match attempt.serve(passes, requests, slots).await {
        Err(Interruption::LaneGone) => attempt.reason().await,
        Err(why) => why,
        Ok(never) => match never {},
    }
}

impl<'a> Attempt<'a> {
    async fn begin(
        plan: &'a Plan,
        slots: SlotSet,
        number: u32,
        throttle: &watch::Receiver<Throttle>,
        progress: &'a watch::Sender<Progress>,
        passes: &mut Vec<oneshot::Receiver<()>>,
    ) -> Result<Self, Interruption> {
        let prefix = format!("{}:{number}:", plan.name);
        let opener = Opener {
            mandate: plan.mandate.clone(),
            prefix: prefix.clone(),
            patience: plan.patience,
        };
        let mut numbers = 0..;
        let mut next = || numbers.next().expect("it has no end");
        let open_target = opener.open(&plan.target, next()).await;
        let (mut target, target_is) = open_target.map_err(Interruption::Target)?;
        let open_source = opener.open(&plan.source, next()).await;
        let (mut source, source_is) = open_source.map_err(Interruption::Source)?;
        examine::fit(&source_is, &target_is).map_err(Interruption::Unfit)?;
        let telling = Telling::of(&source_is);
        tell(progress, |progress| progress.stage = Stage::Cleaning);

        let is_former = |name: &str| is_former(name, plan, &prefix);
        clean::close_former(&mut target, is_former)
            .await
            .map_err(Interruption::Target)?;
        let commands = Commands::default();
        source.count_in(&commands);
        let (usual, company) = tokio::join!(Usual::of(&mut source), Company::at(&mut target));
        let usual = usual.map_err(Interruption::Source)?;
        let gait = Gait::of(company.map_err(Interruption::Target)?);
        if !seeded::has(Bug::TargetNotCleaned) {
            clean::clean(&mut target, &slots, &own_prefix(&plan.name), gait)
                .await
                .map_err(Interruption::Target)?;
        }
        let pace = Arc::new(Pace::new(throttle.clone(), usual));
        let report = Arc::new(Report::new(plan.lanes.get()));
        let mut tasks = JoinSet::new();
        let (notices, heard): (Vec<_>, Vec<_>) = (0..plan.lanes.get())
            .map(|_| mpsc::channel(NOTICES))
            .unzip();
        let barrier = barrier_prefix(&format!(
            "{}:{}:{number}",
            plan.mandate.incarnation, plan.name
        ));
        let hurry = watch::Sender::new(false);
        let tracker = Tracker::open(
            &opener,
            &plan.source,
            next(),
            slots,
            notices.clone(),
            barrier.clone(),
            hurry.subscribe(),
        );
        let tracker = tracker.await.map_err(Interruption::Source)?;
        tasks.spawn(async move { Err(tracker.follow().await) });

        let (big, big_notices) = mpsc::channel(NOTICES);
        let mut lanes: Vec<_> = heard
            .into_iter()
            .map(|notices| (Some(big.clone()), notices))
            .collect();
        lanes.push((None, big_notices));
        let mut found = Vec::new();
        for (number_of_lane, (big, notices)) in lanes.into_iter().enumerate() {
            let source = opener.open(&plan.source, next()).await;
            let mut source = source.map_err(Interruption::Source)?;
            source.0.count_in(&commands);
            let target = opener.open(&plan.target, next()).await;
            let target = target.map_err(Interruption::Target)?;
            let own = own_keys(&plan.name, number_of_lane);
            let attempt = format!("{}:{number}", plan.mandate.incarnation);
            let mut relay =
                Relay::new(source, target, &own, &attempt, report.clone(), pace.clone()).await?;
            if big.is_none() {
                relay.frees = true;
                relay.door = Some(Door {
                    opener: opener.clone(),
                    target: plan.target.clone(),
                    number: next(),
                });
            }
            let mut lane = Lane {
                number: number_of_lane,
                role: Role::Big,
                relay,
                notices,
                found: None,
                passed: None,
                throttle: throttle.clone(),
                report: report.clone(),
                state: State::of(&Role::Big),
            };
            if let Some(big) = big {
                let (give, take) = mpsc::channel(FOUND);
                let (passed, pass) = oneshot::channel();
                found.push(give);
                passes.push(pass);
                lane.role = Role::Common(big);
                lane.state = State::of(&lane.role);
                lane.found = Some(take);
                lane.passed = Some(passed);
            }
            tasks.spawn(async move { Err(lane.run().await) });
        }
        let link = opener.open(&plan.source, next()).await;
        let (mut link, is) = link.map_err(Interruption::Source)?;
        link.count_in(&commands);
        tell(progress, |progress| {
            progress.stage = Stage::Copying;
            progress.needs_notes = telling == Telling::Events;
            progress.total = is.keys();
        });
        let databases = is.keyspace.into_keys().collect();
        let pass = Pass {
            slots,
            lanes: found,
            report: report.clone(),
            pace: pace.clone(),
        };
        tasks.spawn(pass.run(link, Sizing::of(&source_is), databases));
        let link = opener.open(&plan.source, next()).await;
        let (mut link, _) = link.map_err(Interruption::Source)?;
        link.count_in(&commands);
        let watch = pace::watch(link, pace.clone());
        tasks.spawn(async move { Err(Interruption::Source(watch.await)) });
        Ok(Self {
            plan,
            opener,
            progress,
            source,
            source_run_id: source_is.run_id,
            telling,
            target,
            target_run_id: target_is.run_id,
            evicted: target_is.evicted,
            lanes: notices,
            big,
            tasks,
            report,
            pace,
            barrier,
            barriers: 0,
            hurry,
        })
    }

    /// Why a part of it has ended, when others have noticed before it was said.
    async fn reason(&mut self) -> Interruption {
        let said = async {
            while let Some(ended) = self.tasks.join_next().await {
                match ended_well(ended) {
                    Ok(()) | Err(Interruption::LaneGone) => {}
                    Err(why) => return why,
                }
            }
            Interruption::LaneGone
        };
        let said = time::timeout(REASON, said).await;
        said.unwrap_or(Interruption::LaneGone)
    }

    async fn serve(
        &mut self,
        passes: Vec<oneshot::Receiver<()>>,
        requests: &mut mpsc::Receiver<Request>,
        slots: &mut Slots,
    ) -> Result<std::convert::Infallible, Interruption> {
        let mut tick = time::interval(TELL);
        tick.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let mut look = time::interval(LOOK);
        let mut told = Instant::now();
        let mut passes = passes.into_iter();
        let mut pass = passes.next();
        loop {
            tokio::select! {
                Some(ended) = self.tasks.join_next() => ended_well(ended)?,
                Some(request) = requests.recv() => match request {
                    // It waited here for so long that it is not wanted any more.
                    Request::Settle(_, done) if done.is_closed() => {}
                    Request::Settle(settle, done) => {
                        let (held, result) = if pass.is_some() {
                            (SlotSet::EMPTY, Err(Unsettled::NotCopied))
                        } else if !slots.planned.includes(&settle.slots) {
                            (SlotSet::EMPTY, Err(Unsettled::NotPlanned))
                        } else {
                            (settle.slots, self.settle(settle).await?)
                        };
                        // The caller may want no more of it than this.
                        self.tell_progress(&mut told, |_| {});
                        let settled = result.is_ok();
                        let unseen = result == Err(Unsettled::Unseen);
                        if settled {
                            // As soon as the caller is told, they may be the target's.
                            slots.shut = slots.shut.with(&held);
                            self.pace.settles();
                        }
                        if done.send(result).is_err() || !settled {
                            self.reopen(held, slots).await?;
                        }
                        if unseen {
                            return Err(Interruption::Unseen);
                        }
                    }
                    Request::Reopen(again) => self.reopen(again, slots).await?,
                    Request::Release(some, done) => {
                        let released = slots.release(&some);
                        if released.is_ok() {
                            self.tell_all(|| Notice::Release(some)).await?;
                        }
                        done.send(released).ok(); // nobody wants to know any more
                    }
                },
                copied = copied(&mut pass), if pass.is_some() => {
                    // A lane that has ended says nothing more; why it has, is told elsewhere.
                    copied.map_err(|_| Interruption::LaneGone)?;
                    pass = passes.next();
                    if pass.is_none() {
                        self.pace.settles();
                        self.report.passed();
                        self.tell_progress(&mut told, |now| now.stage = Stage::Following);
                    }
                }
                _ = tick.tick() => {
                    let percent = self.pace.percent();
                    self.tell_progress(&mut told, |now| now.share_percent = percent);
                    // While those are copied, none are asked to be settled.
                    self.pace.excuse(self.report.awaited() > 0);
                }
                _ = look.tick() => {
                    self.look_at_source().await?;
                    let target = self.look().await?;
                    let lacks_replica = target.replicas > 0 && !target.is_followed;
                    self.tell_progress(&mut told, |now| now.lacks_replica = lacks_replica);
                }
            }
        }
    }

    /// Tells how far it is now, and something besides.
    fn tell_progress(&self, told: &mut Instant, besides: impl FnOnce(&mut Progress)) {
        let since = std::mem::replace(told, Instant::now()).elapsed();
        tell(self.progress, |progress| {
            self.report.tell(progress, since);
            besides(progress);
        });
    }

    /// Whether the source is still a primary: to one that is not, no barrier can be written, and slots would
    /// be held for nothing.
    async fn look_at_source(&mut self) -> Result<(), Interruption> {
        if self.source.is_broken() {
            let opened = self.opener.open(&self.plan.source, 0).await;
            (self.source, _) = opened.map_err(Interruption::Source)?;
        }
        let is = self.source.server().await.map_err(Interruption::Source)?;
        if is.run_id != self.source_run_id || !is.primary {
            return Err(Interruption::SourceReplaced);
        }
        if self.telling == Telling::Events {
            let are_on = events::are_on(&mut self.source).await;
            if !are_on.map_err(Interruption::Source)? {
                return Err(Interruption::EventsOff);
            }
        }
        Ok(())
    }

    /// Whether the target is still the process it was, and has thrown out nothing.
    async fn look(&mut self) -> Result<Server, Interruption> {
        // Whoever asked may have given up before the answer came. All that matters is said by the answer:
        // so it may come on another connection.
        if self.target.is_broken() {
            let opened = self.opener.open(&self.plan.target, 0).await;
            (self.target, _) = opened.map_err(Interruption::Target)?;
        }
        let is = self.target.server().await.map_err(Interruption::Target)?;
        if is.run_id != self.target_run_id || !is.primary {
            return Err(Interruption::TargetRestarted);
        }
        if is.evicted != self.evicted {
            return Err(Interruption::TargetEvicted);
        }
        Ok(is)
    }

    /// The outer error ends the attempt; the inner one is only this call's.
    async fn settle(
        &mut self,
        settle: Settle,
    ) -> Result<Result<Evidence, Unsettled>, Interruption> {
        if self.telling == Telling::Events && settle.streams == Streams::Any {
            return Ok(Err(Unsettled::Unseen));
        }
        let begun = Instant::now();
        self.hurry.send_replace(true);
        // A little sooner, so that it is known what was waited for in vain.
        let replicated = begun + settle.budget.mul_f64(REPLICATED);
        let ended = time::timeout(settle.budget, self.gather(&settle, replicated)).await;
        self.hurry.send_replace(false);
        match ended {
            Err(_) => Ok(Err(Unsettled::OverBudget(settle.budget))),
            Ok(Err(why)) => Err(why),
            Ok(Ok(Drained {
                replicated: Replicated::Late,
                ..
            })) => Ok(Err(Unsettled::OverBudget(settle.budget))),
            Ok(Ok(Drained {
                replicated: Replicated::No,
                ..
            })) => Ok(Err(Unsettled::ReplicaBehind)),
            Ok(Ok(Drained {
                replicated: Replicated::Yes,
                keys,
            })) => Ok(Ok(Evidence {
                source_run_id: self.source_run_id.clone(),
                target_run_id: self.target_run_id.clone(),
                keys,
                took: begun.elapsed(),
            })),
        }
    }

    async fn gather(
        &mut self,
        settle: &Settle,
        replicated: Instant,
    ) -> Result<Drained, Interruption> {
        let is = self.look().await?;
        if seeded::has(Bug::DirtyNotCopied) {
            return Ok(Drained {
                keys: 0,
                replicated: Replicated::Yes,
            });
        }
        let replica = (is.replicas > 0).then_some(replicated);
        self.barriers += 1;
        let mut touched: Vec<Vec<Key>> = vec![Vec::new(); self.lanes.len()];
        let all_streams = match &settle.streams {
            Streams::Any => true,
            Streams::These(streams) => {
                let keys = streams.iter().map(|stream| stream.key.as_slice());
                for key in keys.filter(|key| settle.slots.owns(key)) {
                    touched[lane::of(key, self.lanes.len())].push(Key::from(key));
                }
                false
            }
        };
        let drain = |barrier| {
            let (done, result) = oneshot::channel();
            let slots = settle.slots;
            let drain = Drain {
                barrier,
                slots,
                streams: all_streams,
                replica,
                done,
            };
            (drain, result)
        };
        let mut drained = Vec::new();
        for (lane, touched) in self.lanes.iter().zip(touched) {
            let (drain, result) = drain(self.barriers);
            drained.push(result);
            let touched = match self.telling {
                Telling::Tracking => Notice::Touched(touched),
                Telling::Events => Notice::Changed(touched),
            };
            tell_lane(lane, touched).await?;
            tell_lane(lane, Notice::Drain(drain)).await?;
        }
        if self.source.is_broken() || self.telling == Telling::Events {
            self.look_at_source().await?;
        }
        let key = format!("{}{}", self.barrier, self.barriers);
        let words: [&[u8]; 4] = [b"EVAL", BARRIER, b"1", key.as_bytes()];
        let written = self.source.demand("EVAL", &words).await;
        written.map_err(Interruption::Source)?;

        let mut all = Drained {
            keys: 0,
            replicated: Replicated::Yes,
        };
        for result in drained {
            self.add(&mut all, result).await?;
        }
        // The others have told it by now of all that it has to copy.
        let (drain, result) = drain(0);
        tell_lane(&self.big, Notice::Drain(drain)).await?;
        self.add(&mut all, result).await?;
        self.look().await?;
        Ok(all)
    }

    /// Waits for a lane to be drained.
    async fn add(
        &mut self,
        all: &mut Drained,
        result: oneshot::Receiver<Drained>,
    ) -> Result<(), Interruption> {
        tokio::pin!(result);
        let lane = loop {
            tokio::select! {
                lane = &mut result => break lane.map_err(|_| Interruption::LaneGone)?,
                Some(ended) = self.tasks.join_next() => ended_well(ended)?,
            }
        };
        all.keys += lane.keys;
        all.replicated = all.replicated.max(lane.replicated);
        Ok(())
    }

    /// Goes on with slots that were settled, or nearly.
    async fn reopen(&mut self, again: SlotSet, slots: &mut Slots) -> Result<(), Interruption> {
        slots.shut = slots.shut.without(&again);
        self.tell_all(|| Notice::Reopen(again)).await
    }

    async fn tell_all(&mut self, notice: impl Fn() -> Notice) -> Result<(), Interruption> {
        for lane in self.lanes.iter().chain([&self.big]) {
            tell_lane(lane, notice()).await?;
        }
        Ok(())
    }
}

/// What the keys of a lane at the target begin with, that are Sluice's.
pub(super) fn own_keys(name: &MigrationId, lane: usize) -> String {
    format!("{}{lane}", own_prefix(name))
}

/// What the copy's own keys begin with at the target.
pub(super) fn own_prefix(name: &MigrationId) -> String {
    format!("{{sluice}}:tmp:{name}:")
}

/// Whether a client of that name is of this copy, by whatever controller, and not of those whose names
/// go on, behind the incarnation, with `prefix`.
pub(super) fn is_former(name: &str, plan: &Plan, prefix: &str) -> bool {
    let Ok(name) = name.parse::<Name>() else {
        return false;
    };
    let of_copy = name.rest.starts_with(&format!("{}:", plan.name));
    let own = name.incarnation == plan.mandate.incarnation && name.rest.starts_with(prefix);
    name.role == fence::Role::Mover && of_copy && !own
}

async fn tell_lane(lane: &mpsc::Sender<Notice>, notice: Notice) -> Result<(), Interruption> {
    let sent = lane.send(notice).await;
    sent.map_err(|_| Interruption::LaneGone)
}

fn ended_well(
    ended: Result<Result<(), Interruption>, tokio::task::JoinError>,
) -> Result<(), Interruption> {
    match ended {
        Ok(result) => result,
        Err(_) => Err(Interruption::LaneGone),
    }
}

async fn copied(pass: &mut Option<oneshot::Receiver<()>>) -> Result<(), oneshot::error::RecvError> {
    match pass {
        Some(pass) => pass.await,
        None => std::future::pending().await,
    }
}

fn tell(progress: &watch::Sender<Progress>, change: impl FnOnce(&mut Progress)) {
    progress.send_modify(change);
}
