//! ZooKeeper as the store: of several controllers one leads, and the others stand by.
//!
//! # Who leads
//! Whoever made the ephemeral node `leader`, in the same multi in which it raised the leader term. Every
//! commit is one multi of: there is a leader node, the epoch node at the version this controller has
//! seen, and the records at theirs. An election sets the epoch node too: so from the moment another
//! controller leads, nothing that this one has sent can be taken, whatever it believes. A leader on whose
//! node somebody has written replaces it, in a new term.
//!
//! # What is believed
//! Only what was read. A commit whose answer was lost is neither repeated nor given up: everything is
//! read again, and the epoch node says what became of it (`ensemble/attempt.rs`). Where it may be taken yet,
//! the node is *sealed*, that is written as it is: then it cannot be. Meanwhile nothing else is begun.
//! A commit that was not taken, because somebody has changed a node by hand, is decided again on what
//! there is then; such changes get a revision of their own, so that one version is one content.
//!
//! A leader that cannot ask ZooKeeper *pauses*: it begins nothing, and leads on when it is answered. One that
//! has had no answer for three quarters of the session's time-out steps down, by its own clock, whatever it is
//! doing then (no call to ZooKeeper may last longer, and the disk is not waited for): before that, nobody
//! else can have been elected.
//!
//! # What is kept
//! A copy of all records (`mirror.rs`), which is brought up to date before a commit is answered, unless the
//! disk fails or hangs. It is what a controller has while ZooKeeper is away. What ZooKeeper says is taken only
//! if it is of the same cluster and not older: a ZooKeeper that was restored or wiped is refused, and a person
//! told.
//!
//! Invariant: snapshots that are published only become newer.

use std::{path::PathBuf, sync::Arc, time::Duration};

use proto::ClusterId;
use tokio::{
    select,
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};
use tracing::{error, info, warn};

use crate::{
    change::{self, Refusal},
    disk::OpenError,
    events::Journal,
    failpoint::{Point, reach},
    metrics::{CommitResult, Metrics},
    mirror::Mirror,
    model::{Cluster, FORMAT},
    snapshot::Snapshot,
    store::{BUILD_VERSION, CommitError, Decide, Job, QUEUE, Reply, Standing, Store, Writer},
    tree::{self, Image, Leader},
    zookeeper::{Claim, Failure, Holder, News, Place, Session, Sight},
};

mod attempt;

use attempt::{Attempt, Fate};

/// How long to wait before the next attempt to connect; each time a little else, so that several
/// controllers do not come at once.
const RECONNECT: Duration = Duration::from_millis(500);

/// How often everything is read and compared, whatever the watch says: once in so many of the session's
/// time-outs, or more often.
const FULL_LOOK: u32 = 6;
const FULL_LOOK_MAX: Duration = Duration::from_secs(60);

/// A leader with this controller's own address, which is not this process, may be the one that it was before,
/// as long as that one's session lasts: so many time-outs, as servers round them up.
const FORMER: u32 = 2;

/// How often a commit is decided again. Whoever writes by hand is slower.
const DECISIONS: usize = 10;

/// Starts the store. With a mirror it is there at once; without one, once ZooKeeper has answered, for
/// which it waits as long as it takes.
pub async fn open(
    place: Place,
    address: String,
    dir: PathBuf,
    cluster: String,
    metrics: Metrics,
) -> Result<(Store, Writer), OpenError> {
    let folder = dir.clone();
    let (mirror, kept) = Mirror::open(dir, cluster.clone(), metrics.clone()).await?;
    let new = Cluster {
        format: FORMAT,
        id: ClusterId::new(format!("{:016x}", fastrand::u64(..))).expect("hexadecimal digits"),
        name: cluster,
    };
    let snapshot = kept.unwrap_or_else(|| Arc::new(Snapshot::new(new.clone())));
    let (jobs, queue) = mpsc::channel(QUEUE);
    let (ended, done) = oneshot::channel();
    let journal = Journal::new(Vec::new(), metrics.clone());
    let events = Arc::clone(journal.log());
    let keeper = Keeper {
        place,
        new,
        own: Leader {
            address,
            build_version: BUILD_VERSION.to_owned(),
            incarnation: format!("{:016x}", fastrand::u64(..)),
        },
        mirror,
        namesake: None,
        snapshots: watch::Sender::new(snapshot),
        standings: watch::Sender::new(Standing::Adrift),
        journal,
        metrics,
        jobs: queue,
        alarmed: String::new(),
        unresolved: None,
    };
    let store = Store {
        jobs: jobs.clone(),
        snapshots: keeper.snapshots.subscribe(),
        standings: keeper.standings.subscribe(),
        events,
    };
    // Owned by the writer's handle: it ends when it is closed.
    tokio::spawn(async move {
        keeper.run().await;
        drop(ended.send(Ok(()))); // an error: nobody waits for it
    });
    // Without a mirror there is nothing to begin with until somebody was elected.
    let mut writer = Writer { jobs, done };
    let mut snapshots = store.subscribe();
    let begun = snapshots.wait_for(|now| now.head.revision > 0).await;
    if begun.is_err() {
        let fault = writer.ended().await.to_string();
        return Err(OpenError::Io { dir: folder, fault });
    }
    drop(begun);
    Ok((store, writer))
}

async fn pause() {
    sleep(RECONNECT.mul_f64(0.5 + fastrand::f64())).await;
}

/// The one writer.
struct Keeper {
    place: Place,
    /// What is written where there is no cluster yet.
    new: Cluster,
    /// What is written when it is elected.
    own: Leader,
    mirror: Mirror,
    /// Who leads, and has the same address.
    namesake: Option<Namesake>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    standings: watch::Sender<Standing>,
    journal: Journal,
    metrics: Metrics,
    jobs: mpsc::Receiver<Job>,
    /// Why what ZooKeeper has was refused last: it is said once.
    alarmed: String,
    /// A commit of which it is not known whether it was taken.
    unresolved: Option<Attempt>,
}

/// A leader with the address of this controller, which is another process.
struct Namesake {
    incarnation: String,
    since: Instant,
    /// It is not the process that this one was before, and that was said.
    told: bool,
}

/// What became of a commit.
enum Sent {
    /// Its caller is answered; what there is now.
    Answered(Sight),
    /// It was not taken, and its caller still waits: the nodes have changed.
    Conflict(Attempt, String),
    /// Nothing more can be done now; its caller is answered, or will be when it is known what became of
    /// it.
    Over(Failure),
}

/// Why a session is left.
enum Over {
    /// The process ends.
    Closed,
    /// A new one is to be opened.
    Lost(String),
}

impl Keeper {
    async fn run(mut self) {
        self.lead_and_follow().await;
        if let Some(mut attempt) = self.unresolved.take() {
            attempt.answer(Err(CommitError::Unknown));
        }
        self.mirror.close().await;
    }

    /// Until the process ends.
    async fn lead_and_follow(&mut self) {
        loop {
            let over = match self.open_session().await {
                None => Over::Closed,
                Some(Ok(mut session)) => {
                    info!(servers = self.place.servers, "connected to ZooKeeper");
                    self.serve(&mut session).await
                }
                Some(Err(Failure::Unusable(why))) => {
                    self.alarm(&why);
                    Over::Lost("it is not used".to_owned())
                }
                Some(Err(e)) => Over::Lost(e.to_string()),
            };
            match over {
                Over::Closed => return,
                Over::Lost(why) => warn!(why, "without ZooKeeper"),
            }
            self.stand(Standing::Adrift);
            if self.refuse_until(pause()).await.is_none() {
                return;
            }
        }
    }

    /// `None`: the process ends.
    async fn open_session(&mut self) -> Option<Result<Session, Failure>> {
        let place = self.place.clone();
        // Where one is known, no other is begun: ZooKeeper has lost it.
        let is_new = self.snapshots.borrow().head.revision == 0;
        let new = is_new.then(|| self.new.clone());
        self.refuse_until(async move { Session::open(&place, new.as_ref()).await })
            .await
    }

    /// Waits, and refuses what is asked meanwhile. `None`: the process ends.
    async fn refuse_until<T>(&mut self, wait: impl Future<Output = T>) -> Option<T> {
        let mut wait = std::pin::pin!(wait);
        loop {
            select! {
                done = &mut wait => return Some(done),
                job = self.jobs.recv() => match job {
                    Some(Job::Commit { decide, reply }) => self.refuse(&decide, reply),
                    Some(Job::Note(_)) => {}
                    Some(Job::Close) | None => return None,
                },
            }
        }
    }

    /// Answers while it does not lead. What would change nothing is answered as ever.
    fn refuse(&self, decide: &Decide, reply: Reply) {
        let now = self.snapshots.borrow().clone();
        let standing = self.standings.borrow().clone();
        let answer = match decide(&now) {
            Ok(change) if change.is_empty() => Ok(now),
            Ok(_) => Err(CommitError::NotLeading(standing)),
            Err(refusal) => Err(CommitError::Refused(refusal)),
        };
        drop(reply.send(answer)); // an error: the caller gave up waiting
    }

    /// Follows, and leads, until the session is over.
    async fn serve(&mut self, session: &mut Session) -> Over {
        let mut pulse = interval(session.pulse());
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut full = interval(FULL_LOOK_MAX.min(session.timeout() * FULL_LOOK));
        full.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // `None`: to be looked at.
        let mut sight: Option<Sight> = None;
        // As far as the watch has told.
        let mut is_connected = true;
        loop {
            if sight.is_none() && is_connected {
                match self.look(session).await {
                    Ok(seen) => {
                        sight = Some(seen);
                        self.alarmed.clear();
                    }
                    Err(Failure::Unusable(why)) => self.alarm(&why),
                    Err(Failure::Lost(_)) => self.pause(),
                    Err(Failure::Conflict(_)) => {}
                }
            }
            let (leads, in_office) = {
                let standing = self.standings.borrow();
                (*standing == Standing::Leads, standing.is_in_office())
            };
            select! {
                biased;
                () = sleep_until(session.safe_until()) => {
                    let end = if in_office { ": it leads no more" } else { "" };
                    return Over::Lost(format!("ZooKeeper has not answered for too long{end}"));
                }
                news = session.news() => match news {
                    News::Changed => sight = None,
                    News::Reconnected => {
                        (sight, is_connected) = (None, true);
                        if let Err(e) = session.watch_again().await {
                            return Over::Lost(e.to_string());
                        }
                    }
                    News::Disconnected => {
                        is_connected = false;
                        self.pause();
                    }
                    News::Ended(why) => return Over::Lost(why),
                },
                _ = full.tick() => {
                    sight = None;
                    self.mirror.check();
                }
                _ = pulse.tick(), if is_connected => {
                    let current = match &sight {
                        // How long it is there is looked at, too.
                        Some(sight) if self.namesake.is_none() => session.is_current(sight).await,
                        Some(_) | None => Ok(false),
                    };
                    match current {
                        Ok(true) => {}
                        Ok(false) | Err(Failure::Unusable(_) | Failure::Conflict(_)) => sight = None,
                        Err(Failure::Lost(_)) => {
                            self.pause();
                            sight = None;
                        }
                    }
                }
                job = self.jobs.recv() => match job {
                    Some(Job::Commit { decide, reply }) => match (leads, sight.take()) {
                        (true, Some(seen)) => sight = self.commit(session, seen, decide, reply).await,
                        // It is about to be looked at: soon it is known who leads.
                        (true, None) => {
                            let standing = Standing::Adrift;
                            drop(reply.send(Err(CommitError::NotLeading(standing))));
                        }
                        (false, seen) => {
                            sight = seen;
                            self.refuse(&decide, reply);
                        }
                    },
                    Some(Job::Note(draft)) if in_office => {
                        let now = self.snapshots.borrow().clone();
                        let events = self.journal.place(&now, &[draft]);
                        self.journal.tell(events);
                    }
                    Some(Job::Note(_)) => {}
                    Some(Job::Close) | None => return Over::Closed,
                },
            }
        }
    }

    /// Reads everything and takes it over; is elected, if nobody leads.
    async fn look(&mut self, session: &mut Session) -> Result<Sight, Failure> {
        let seen = session.look().await?;
        let now = self.snapshots.borrow().clone();
        if let Some(why) = regress(&now, &seen.image.snapshot) {
            return Err(Failure::Unusable(why));
        }
        match seen.leader {
            Holder::Own | Holder::Defaced(_) => {}
            // Before another one's term is shown: see `Store::leading`.
            Holder::Other(_) | Holder::Nobody => self.cease(),
        }
        let edited = is_edited(&now, &seen.image.snapshot);
        if !edited {
            self.publish(&seen.image.snapshot).await;
        }
        self.resolve(&seen);
        let seen = match &seen.leader {
            Holder::Own if edited => self.adopt(session, seen).await?,
            Holder::Own if self.unresolved.is_some() => seal(session, seen).await?,
            Holder::Own => seen,
            Holder::Defaced(version) => {
                warn!("somebody has written on this leader's node, it is made again");
                let claim = Claim::Retake(self.own.clone(), *version);
                self.elect(session, seen, claim).await?
            }
            Holder::Other(leader) => {
                let standing = self.follow(leader.as_ref(), session.timeout());
                self.stand(standing);
                return Ok(seen);
            }
            Holder::Nobody => {
                let claim = Claim::Take(self.own.clone());
                self.elect(session, seen, claim).await?
            }
        };
        self.namesake = None;
        self.resolve(&seen);
        self.lead(&seen.image.snapshot);
        Ok(seen)
    }

    /// What it is while another one leads, whose node says this of it, if it can be read.
    fn follow(&mut self, leader: Option<&Leader>, session: Duration) -> Standing {
        let known = self.namesake.take();
        let stands_by = |leader: &Leader| Standing::StandsBy {
            leader: leader.address.clone(),
        };
        match leader {
            None => Standing::Adrift,
            // Its own node, of an earlier session: it ends with that.
            Some(leader) if leader.incarnation == self.own.incarnation => Standing::Adrift,
            Some(leader) if leader.address != self.own.address => stands_by(leader),
            // The process that it was before, whose node ends likewise; or another controller.
            Some(leader) => {
                let same = known.filter(|known| known.incarnation == leader.incarnation);
                let mut namesake = same.unwrap_or_else(|| Namesake {
                    incarnation: leader.incarnation.clone(),
                    since: Instant::now(),
                    told: false,
                });
                let is_former = namesake.since.elapsed() < session * FORMER;
                if !is_former && !std::mem::replace(&mut namesake.told, true) {
                    error!(
                        address = leader.address,
                        "another controller is said to be reached at the same address, and leads: give \
                         each of them an --advertise of its own"
                    );
                }
                self.namesake = Some(namesake);
                match is_former {
                    true => Standing::Adrift,
                    false => stands_by(leader),
                }
            }
        }
    }

    async fn elect(
        &mut self,
        session: &mut Session,
        seen: Sight,
        claim: Claim,
    ) -> Result<Sight, Failure> {
        self.stand(Standing::Adrift);
        let change = change::elect(&seen.image.snapshot, BUILD_VERSION);
        let attempt = Attempt::new(&seen, change, None);
        self.send(session, seen, &claim, attempt).await.sight()
    }

    /// Gives what somebody has changed by hand a revision of its own.
    async fn adopt(&mut self, session: &mut Session, seen: Sight) -> Result<Sight, Failure> {
        warn!("records in ZooKeeper were changed by hand, taken over");
        let attempt = Attempt::new(&seen, change::adopt(), None);
        let sent = self.send(session, seen, &Claim::Have, attempt).await;
        sent.sight()
    }

    /// Decides and commits, and again where somebody else has changed the nodes. `None`: everything is to
    /// be read again.
    async fn commit(
        &mut self,
        session: &mut Session,
        seen: Sight,
        decide: Decide,
        reply: Reply,
    ) -> Option<Sight> {
        let (mut sight, mut reply) = (Some(seen), reply);
        for _ in 0..DECISIONS {
            // Nobody waits any more where the caller's time is up.
            if reply.is_closed() {
                break;
            }
            let seen = match sight.take() {
                Some(seen) => seen,
                None => match self.look(session).await {
                    Ok(seen) if seen.leader == Holder::Own => seen,
                    Err(Failure::Conflict(_)) => continue,
                    Ok(_) | Err(Failure::Lost(_) | Failure::Unusable(_)) => {
                        self.pause();
                        let standing = match self.standings.borrow().clone() {
                            Standing::Leads => Standing::Adrift,
                            known => known,
                        };
                        drop(reply.send(Err(CommitError::NotLeading(standing))));
                        return None;
                    }
                },
            };
            let now = &seen.image.snapshot;
            let change = match decide(now) {
                Ok(change) => change,
                Err(refusal) => {
                    self.metrics.committed(CommitResult::Refused);
                    drop(reply.send(Err(CommitError::Refused(refusal))));
                    return Some(seen);
                }
            };
            if change.is_empty() {
                drop(reply.send(Ok(Arc::clone(now))));
                return Some(seen);
            }
            let attempt = Attempt::new(&seen, change, Some(reply));
            match self.send(session, seen, &Claim::Have, attempt).await {
                Sent::Answered(seen) => return Some(seen),
                Sent::Over(_) => return None,
                Sent::Conflict(attempt, why) => {
                    warn!(why, "commit was not taken, decided again");
                    reply = attempt.reply?;
                }
            }
        }
        self.metrics.committed(CommitResult::Failed);
        drop(reply.send(Err(CommitError::Contended)));
        None
    }

    /// Sends a commit.
    async fn send(
        &mut self,
        session: &mut Session,
        seen: Sight,
        claim: &Claim,
        mut attempt: Attempt,
    ) -> Sent {
        let next = Arc::new(seen.image.snapshot.after(&attempt.change));
        let operations = tree::operations(&seen.image, &next, &attempt.change, &attempt.commit);
        if !tree::fit(&operations) {
            let refusal = Refusal::field(
                "request",
                "too large for one write to ZooKeeper (900 KiB): ask for less at once",
            );
            attempt.answer(Err(CommitError::Refused(refusal)));
            return Sent::Answered(seen);
        }
        let begun = Instant::now();
        let (before, after) = match claim {
            Claim::Take(_) | Claim::Retake(..) => (Point::Election, Point::Elected),
            Claim::Have => (Point::Commit, Point::Committed),
        };
        reach(before);
        match session.commit(Some(claim), &operations).await {
            Ok(()) => {
                reach(after);
                self.metrics.committed(CommitResult::Committed);
                self.metrics.commit_took(begun.elapsed());
                let commit = attempt.commit.clone();
                let image = seen.image.after(Arc::clone(&next), commit, &operations);
                self.mirror.keep(&next).await;
                reach(Point::Mirrored);
                self.show(&next);
                self.lead(&next);
                reach(Point::Shown);
                self.tell(&next, &mut attempt);
                Sent::Answered(Sight {
                    image,
                    leader: Holder::Own,
                })
            }
            Err(e @ Failure::Lost(_)) => {
                self.pause();
                if let Some(mut older) = self.unresolved.replace(attempt) {
                    older.answer(Err(CommitError::Unknown));
                }
                Sent::Over(e)
            }
            Err(Failure::Conflict(why)) => Sent::Conflict(attempt, why),
            Err(e @ Failure::Unusable(_)) => {
                self.metrics.committed(CommitResult::Failed);
                attempt.answer(Err(CommitError::NotLeading(Standing::Adrift)));
                Sent::Over(e)
            }
        }
    }

    /// Finds out what became of the commit whose answer was lost.
    fn resolve(&mut self, seen: &Sight) {
        let Some(mut attempt) = self.unresolved.take() else {
            return;
        };
        let image = &seen.image;
        match attempt.fate(&image.commit, image.epoch_version()) {
            Fate::Taken => {
                self.metrics.committed(CommitResult::Committed);
                if seen.leader == Holder::Own {
                    self.lead(&image.snapshot);
                }
                self.tell(&image.snapshot, &mut attempt);
            }
            Fate::Open => self.unresolved = Some(attempt),
            Fate::NotTaken => {
                self.metrics.committed(CommitResult::Failed);
                attempt.answer(Err(CommitError::NotLeading(Standing::Adrift)));
            }
            Fate::Unknown => {
                self.metrics.committed(CommitResult::Failed);
                let request = attempt.change.request.as_ref();
                let known = request.and_then(|request| image.snapshot.request(&request.id));
                attempt.answer(match known {
                    Some(_) => Ok(Arc::clone(&image.snapshot)),
                    None => Err(CommitError::Unknown),
                });
            }
        }
    }

    /// Tells of a commit that was taken.
    fn tell(&mut self, next: &Arc<Snapshot>, attempt: &mut Attempt) {
        let events = self.journal.place(next, &attempt.change.events);
        self.journal.tell(events);
        attempt.answer(Ok(Arc::clone(next)));
    }

    /// What ZooKeeper has is not to be used.
    fn alarm(&mut self, why: &str) {
        self.stand(Standing::Adrift);
        if self.alarmed != why {
            error!(
                why,
                "what ZooKeeper has is refused; going on with the mirror"
            );
            self.metrics.store_refused();
            why.clone_into(&mut self.alarmed);
        }
    }

    fn lead(&mut self, now: &Snapshot) {
        if *self.standings.borrow() != Standing::Leads {
            info!(term = now.head.leader_term, "leads");
            self.journal.restart(now.head.leader_term);
            self.stand(Standing::Leads);
        }
    }

    /// Begins nothing, if it leads, until ZooKeeper has answered again.
    fn pause(&self) {
        let leads = *self.standings.borrow() == Standing::Leads;
        if leads {
            info!("ZooKeeper is out of reach, begins nothing");
            self.stand(Standing::Pauses);
        }
    }

    /// Leads no more, if it did.
    fn cease(&self) {
        let was_leader = self.standings.borrow().is_in_office();
        if was_leader {
            self.stand(Standing::Adrift);
        }
    }

    fn stand(&self, standing: Standing) {
        self.standings.send_if_modified(|now| {
            let changed = *now != standing;
            *now = standing;
            changed
        });
    }

    /// Keeps a newer snapshot, and shows it.
    async fn publish(&mut self, next: &Arc<Snapshot>) {
        if **self.snapshots.borrow() == **next {
            return;
        }
        self.mirror.keep(next).await;
        self.show(next);
    }

    fn show(&self, next: &Arc<Snapshot>) {
        self.snapshots.send_replace(Arc::clone(next));
    }
}

impl Sent {
    /// Of a commit for which nobody waits.
    fn sight(self) -> Result<Sight, Failure> {
        match self {
            Self::Answered(sight) => Ok(sight),
            Self::Conflict(_, why) => Err(Failure::Conflict(why)),
            Self::Over(why) => Err(why),
        }
    }
}

/// Writes the epoch node as it is, so that nothing can be taken that was decided at the version it had.
async fn seal(session: &mut Session, seen: Sight) -> Result<Sight, Failure> {
    let operations = [tree::seal(&seen.image)];
    session.commit(Some(&Claim::Have), &operations).await?;
    let Image {
        snapshot, commit, ..
    } = seen.image.clone();
    Ok(Sight {
        image: seen.image.after(snapshot, commit, &operations),
        leader: seen.leader,
    })
}

/// Whether the records are others than those that were known at this version.
fn is_edited(known: &Snapshot, found: &Snapshot) -> bool {
    known.head.revision > 0 && known.version() == found.version() && known != found
}

/// Why what ZooKeeper has must not take the place of what is known. `None`: it may.
fn regress(known: &Snapshot, found: &Snapshot) -> Option<String> {
    if known.head.revision == 0 {
        return None; // nothing is known yet
    }
    if known.cluster.id != found.cluster.id && known.groups.is_empty() {
        return None; // a backup was restored into it; nothing is lost with what was there
    }
    if known.cluster != found.cluster {
        return Some(format!(
            "it is of cluster {} (`{}`), the mirror is of {} (`{}`): if ZooKeeper is right, remove the \
             folder of the mirror",
            found.cluster.id, found.cluster.name, known.cluster.id, known.cluster.name
        ));
    }
    let (has, had) = (found.version(), known.version());
    (has < had).then(|| {
        format!(
            "it is at version {has}, and {had} was known: was it restored from an old backup? Restore a \
             newer one, or remove the folder of the mirror of every controller and go on with the old"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::tests::{empty, group, with_groups};

    #[test]
    fn what_was_edited_is_told_from_what_was_committed() {
        let (old, new) = (empty(), with_groups([group("g1", 7000, 0)]));
        let edited = with_groups([group("g1", 7000, 1)]);
        assert!(is_edited(&new, &edited));
        assert!(!is_edited(&new, &new) && !is_edited(&old, &new));
        let nothing = Snapshot::new(Cluster::clone(&old.cluster));
        let mut first = nothing.clone();
        first.groups = new.groups;
        assert!(!is_edited(&nothing, &first));
    }

    #[test]
    fn what_is_older_or_foreign_is_refused() {
        let old = empty();
        let new = with_groups([group("g1", 7000, 0)]);
        assert_eq!(regress(&old, &new), None);
        let mut nothing = Snapshot::clone(&old);
        nothing.head = crate::model::Head::default();
        Arc::make_mut(&mut nothing.cluster).id = ClusterId::new("c9").unwrap();
        assert_eq!(regress(&nothing, &new), None);
        nothing.head = old.head;
        assert_eq!(regress(&nothing, &new), None);
        assert_eq!(regress(&new, &new), None);
        let text = regress(&new, &old).unwrap();
        assert!(text.contains("at version 1.1, and 1.2 was known"), "{text}");
        let mut other = new.clone();
        Arc::make_mut(&mut other.cluster).id = ClusterId::new("c2").unwrap();
        let text = regress(&new, &other).unwrap();
        assert!(text.contains("it is of cluster c2"), "{text}");
    }
}
