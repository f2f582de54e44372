//! The fence: a record on every server that says who may use it, and the leader's side of it.
//!
//! What the record is, and how everybody who opens a connection is judged by it, is in
//! [`proto::fence`]. Here the leader *raises* it, has the server *kill* every connection of Sluice's
//! that has not confirmed, and *reads it back*; that unit is all there is ([`Fences::raise`]), and
//! whoever has its [`Evidence`] knows: nothing of whom was killed, and nothing of whom routes by an
//! older epoch, executes at that server any more. A connection that was judged before the record was
//! raised is in the server's list, and dies; one that is judged later sees the record. No clock is
//! asked, and nobody believed to be dead.
//!
//! A server that cannot do it now (`-BUSY`, `-LOADING`, `-NOREPLICAS`, …), or is not reached, is asked
//! again until the caller's deadline; then it is *not* fenced, whatever may have been done. Each server
//! is on its own: a dead one holds up nobody else.
//!
//! | file | what |
//! |---|---|
//! | `step` | what is to be done about a record: pure |
//! | `roll` | who is connected, and who of them is killed: pure |
//! | `link`, `raise.lua` | one connection to a server, and the script |
//! | `keeper` | looks after the records of all servers while this controller leads |
//!
//! Only a leader gets anything done here, and only in its own term. A record with a later term says that
//! it leads no more, or that its store was restored: the store is asked to go on above it, by a commit that
//! only the leader can make. The record cannot tell a leader
//! from one that was replaced and has not noticed yet, where somebody has deleted it: then the late one
//! may write it, with its older numbers, until the leader has looked after it, within a second.
//!
//! Invariant: of a record of this cluster, no number is ever lowered; where there is no record of the
//! process that is there, it is written at the store's epoch or above.

pub mod keeper;
mod link;
pub mod roll;
pub mod step;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, future, stream};
use proto::{
    ClusterId, GroupId, ServerAddr,
    fence::{Name, Refusal, Role},
    settled,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};
use tracing::{info, warn};

use crate::{
    change,
    failpoint::{Point, reach},
    model::Group,
    probe::{Failure, Probe},
    snapshot::Snapshot,
    store::{CommitError, Store},
};
use link::{Link, Verdict};
use roll::{Census, Connection};
use step::Step;

pub use roll::Spare;
pub use step::{Mark, Sight};

/// How many servers one call asks at the same time.
const SERVERS_AT_ONCE: usize = 64;

/// How long to wait before a server is asked again.
const PAUSE: Duration = Duration::from_millis(25);

/// A server, and the group whose login it takes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Target {
    /// Where it is.
    pub address: ServerAddr,
    /// The group it is in, or is to join.
    pub group: GroupId,
}

impl Target {
    /// The primary of a group.
    pub fn primary(group: &Group) -> Self {
        Self {
            address: group.primary().address.clone(),
            group: group.id.clone(),
        }
    }
}

/// That a server's record was raised, everybody killed who was to be, and the record read back. Only
/// [`Fences`] makes one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Evidence {
    server: ServerAddr,
    run_id: String,
    mark: Mark,
    killed: Vec<Connection>,
    closed: BTreeSet<settled::Connection>,
}

impl Evidence {
    /// Which server.
    pub fn server(&self) -> &ServerAddr {
        &self.server
    }

    /// Which process of it. Of another one it says nothing.
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    /// To what it was raised, at least.
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// Whose connections were killed.
    pub fn killed(&self) -> &[Connection] {
        &self.killed
    }

    /// Of those that were to be closed, the ones that certainly are no more.
    pub fn closed(&self) -> &BTreeSet<settled::Connection> {
        &self.closed
    }
}

/// Why a server is not fenced. What was asked of it may have been done all the same, or in part.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotFenced {
    /// This controller does not lead, or not in that term.
    #[error("was not asked: this controller does not lead any more")]
    NotLeading,
    /// The record forbids it.
    #[error("must not be used: {0}")]
    Refused(Refusal),
    /// The user may not do what is needed.
    #[error("refuses a command that Sluice needs: {says}; let its user do it with `{}`", acl(.user))]
    Denied {
        /// Sluice's user there.
        user: String,
        /// What the server said.
        says: String,
    },
    /// It cannot do it now.
    #[error("cannot take a fence record now: {0}")]
    Later(String),
    /// It did not answer.
    #[error("{0}")]
    Unanswered(Failure),
    /// Somebody wrote the record each time after it was raised.
    #[error("loses its fence record again and again: somebody else writes or flushes it")]
    Lost,
}

impl NotFenced {
    /// Whether asking again helps nobody: a person has to see to it, or another controller leads.
    fn is_final(&self) -> bool {
        match self {
            Self::NotLeading
            | Self::Refused(_)
            | Self::Denied { .. }
            | Self::Unanswered(Failure::AuthFailed(_) | Failure::NotRedis(_) | Failure::Proxy(_)) => {
                true
            }
            Self::Later(_)
            | Self::Unanswered(Failure::Unreachable(_) | Failure::Unfenced(_))
            | Self::Lost => false,
        }
    }
}

impl From<NotFenced> for Failure {
    fn from(why: NotFenced) -> Self {
        match why {
            NotFenced::Unanswered(failure) => failure,
            why @ (NotFenced::NotLeading
            | NotFenced::Refused(_)
            | NotFenced::Denied { .. }
            | NotFenced::Later(_)
            | NotFenced::Lost) => Self::Unfenced(why.to_string()),
        }
    }
}

/// What lets a user do all that Sluice does at a server.
fn acl(user: &str) -> String {
    format!("ACL SETUSER {user} ~* &* +@all -@admin +client +config|get")
}

/// A record that is as it is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Raised {
    /// In which term.
    pub term: u64,
    /// To which epoch.
    pub epoch: u64,
    /// For which process.
    pub run_id: String,
}

/// How a server's record is, as this leader knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Guard {
    /// It was raised in this term, or found to be.
    Raised(Raised),
    /// It is not, or that is not known.
    Open {
        /// Why.
        why: NotFenced,
        /// How it was.
        last: Option<Raised>,
    },
}

impl Guard {
    /// How the record is, or was last.
    fn last(&self) -> Option<&Raised> {
        match self {
            Self::Raised(raised) => Some(raised),
            Self::Open { last, .. } => last.as_ref(),
        }
    }
}

/// By server.
pub type Guards = BTreeMap<ServerAddr, Guard>;

/// What a server was found to have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inspection {
    /// Its record and its process.
    pub sight: Sight,
    /// How many connections who has there.
    pub census: Census,
}

/// Who fences, and to what: of one term.
struct Leader {
    cluster: ClusterId,
    own: Mark,
}

impl Leader {
    fn of(now: &Snapshot) -> Self {
        Self {
            cluster: now.cluster.id.clone(),
            own: now.mark(),
        }
    }
}

/// What a server is fenced for.
#[derive(Clone, Copy)]
enum Occasion {
    /// Proxies are to be shut out.
    Fence,
    /// Leaders of earlier terms are.
    Claim,
    /// It is to be used from now on.
    Admission,
}

/// What a server's record is to be, and who is to stay connected.
struct Order<'a> {
    occasion: Occasion,
    mark: Mark,
    spare: Spare<'a>,
    /// Connections that are not spared, whosever they are.
    close: &'a BTreeSet<settled::Connection>,
    /// Also if it is another cluster's.
    take_over: bool,
}

const NOTHING: &BTreeSet<settled::Connection> = &BTreeSet::new();

/// See the module; cheap to clone.
#[derive(Clone)]
pub struct Fences {
    store: Store,
    probe: Probe,
    /// Of this process.
    incarnation: Arc<str>,
    opened: Arc<AtomicU64>,
    guards: Arc<watch::Sender<Guards>>,
}

impl Fences {
    /// As a process that was never there before.
    pub fn new(store: Store, probe: Probe) -> Self {
        Self {
            store,
            probe,
            incarnation: format!("{:032x}", fastrand::u128(..)).into(),
            opened: Arc::default(),
            guards: Arc::new(watch::Sender::new(Guards::new())),
        }
    }

    /// By which this process's connections are known at the servers: 32 hexadecimal digits.
    pub fn incarnation(&self) -> &str {
        &self.incarnation
    }

    /// How the records are, now and later.
    pub fn guards(&self) -> watch::Receiver<Guards> {
        self.guards.subscribe()
    }

    /// Whether a server's record was raised in this term, or what is in the way. `None`: it is not known yet.
    pub fn is_raised(&self, server: &ServerAddr, term: u64) -> Option<Result<(), Failure>> {
        match self.guards.borrow().get(server)? {
            Guard::Raised(raised) => (raised.term >= term).then_some(Ok(())),
            Guard::Open { why, .. } => Some(Err(why.clone().into())),
        }
    }

    /// Raises a server's record to a mark of this leader's term, kills whoever is not spared, and whatever
    /// is to be closed, and reads the record back. A process that has no record yet is admitted by the way, at
    /// the store's epoch: [`Evidence::run_id`] says which it is.
    pub async fn raise(
        &self,
        at: &Target,
        mark: Mark,
        spare: Spare<'_>,
        close: &BTreeSet<settled::Connection>,
        deadline: Instant,
    ) -> Result<Evidence, NotFenced> {
        let order = Order {
            occasion: Occasion::Fence,
            mark,
            spare,
            close,
            take_over: false,
        };
        self.carry_out(at, &order, deadline).await
    }

    /// Sees to it that this leader's term stands in a server's record, and that nothing of leaders before it
    /// is open there. The epoch stays, and no proxy notices.
    pub async fn claim(&self, at: &Target, deadline: Instant) -> Result<Evidence, NotFenced> {
        self.assert(at, Spare::Proxies, deadline).await
    }

    /// The same, and nothing of this process copies there either: it is of an earlier term.
    async fn begin(&self, at: &Target, deadline: Instant) -> Result<Evidence, NotFenced> {
        self.assert(at, Spare::ProxiesAlone, deadline).await
    }

    /// Raises the record to the store's epoch, of a server that is to be used from now on, or again. If its
    /// record is above the store, the store goes on above it first.
    pub async fn admit(
        &self,
        at: &Target,
        spare: Spare<'_>,
        take_over: bool,
        deadline: Instant,
    ) -> Result<Evidence, NotFenced> {
        let mut patience = Patience::until(deadline);
        let (_, sight) = loop {
            if let Some(answer) = patience.ask(self.open(at)).await {
                break answer?;
            }
        };
        let leader = self.leader()?;
        match step::next(&sight, &leader.cluster, leader.own, None) {
            Step::Leap(found) => self.leap(found).await?,
            Step::Leave(Refusal::OtherCluster(_)) if take_over => {}
            Step::Leave(refusal) => return Err(NotFenced::Refused(refusal)),
            Step::Keep | Step::Lead { .. } | Step::Restore { .. } | Step::Admit => {}
        }
        let order = Order {
            occasion: Occasion::Admission,
            mark: self.leader()?.own,
            spare,
            close: NOTHING,
            take_over,
        };
        self.carry_out(at, &order, deadline).await
    }

    /// Shuts a proxy that is gone for good out of these servers: raises their records to an epoch that it does
    /// not have, and kills whatever it has open. A server that others use who have not `confirmed` that epoch
    /// is left as it is. Returns those that were left, or not reached.
    pub async fn expel(
        &self,
        servers: Vec<Target>,
        incarnation: &str,
        epoch: u64,
        confirmed: &BTreeSet<String>,
        deadline: Instant,
    ) -> Vec<ServerAddr> {
        let ask = |at: Target| async move {
            let result = self.expel_from(&at, incarnation, epoch, confirmed, deadline);
            result.await.err().map(|why| {
                warn!(server = %at.address, %why, incarnation, "a removed proxy may be connected yet");
                at.address
            })
        };
        let asked = stream::iter(servers).map(ask).buffered(SERVERS_AT_ONCE);
        asked.filter_map(future::ready).collect().await
    }

    async fn expel_from(
        &self,
        at: &Target,
        incarnation: &str,
        epoch: u64,
        confirmed: &BTreeSet<String>,
        deadline: Instant,
    ) -> Result<(), NotFenced> {
        let census = self.inspect(at, deadline).await?.census;
        let others = census.keys().any(|(role, who)| {
            *role == Role::Proxy && who != incarnation && !confirmed.contains(who)
        });
        if others {
            return Err(NotFenced::Later(
                "another proxy uses it that is away from the controller".to_owned(),
            ));
        }
        let mark = Mark {
            epoch,
            ..self.leader()?.own
        };
        let spare = Spare::AllBut(incarnation);
        self.raise(at, mark, spare, NOTHING, deadline).await?;
        Ok(())
    }

    /// Whether a server can be admitted: its record allows it, and its user may do what is needed.
    /// Changes nothing.
    pub async fn examine(
        &self,
        at: &Target,
        take_over: bool,
        deadline: Instant,
    ) -> Result<(), NotFenced> {
        let mut patience = Patience::until(deadline);
        let sight = loop {
            let examined = async {
                let (mut link, sight) = self.open(at).await?;
                link.try_all().await?;
                Ok(sight)
            };
            if let Some(answer) = patience.ask(examined).await {
                break answer?;
            }
        };
        let leader = self.leader()?;
        match step::next(&sight, &leader.cluster, leader.own, None) {
            Step::Leave(Refusal::OtherCluster(_)) if take_over => Ok(()),
            Step::Leave(refusal) => Err(NotFenced::Refused(refusal)),
            Step::Leap(_) | Step::Keep | Step::Lead { .. } | Step::Restore { .. } | Step::Admit => {
                Ok(())
            }
        }
    }

    /// Reads a server's record, and who is connected there.
    pub async fn inspect(&self, at: &Target, deadline: Instant) -> Result<Inspection, NotFenced> {
        let mut patience = Patience::until(deadline);
        loop {
            let inspected = async {
                let (mut link, sight) = self.open(at).await?;
                let census = roll::census(&link.connections().await?);
                Ok(Inspection { sight, census })
            };
            if let Some(answer) = patience.ask(inspected).await {
                return answer;
            }
        }
    }

    fn leader(&self) -> Result<Leader, NotFenced> {
        let now = self.store.leading().ok_or(NotFenced::NotLeading)?;
        Ok(Leader::of(&now))
    }

    /// Lets the store go on above numbers that were found at a server. That it can proves that they are
    /// not a later leader's.
    async fn leap(&self, found: Mark) -> Result<(), NotFenced> {
        let leapt = self.store.commit(move |now| Ok(change::leap(now, found)));
        match leapt.await {
            Ok(_) => Ok(()),
            Err(CommitError::NotLeading(_)) => Err(NotFenced::NotLeading),
            Err(e) => Err(NotFenced::Later(e.to_string())),
        }
    }

    /// Connects, and asks what the connection is judged by.
    async fn open(&self, at: &Target) -> Result<(Link, Sight), NotFenced> {
        self.leader()?;
        let connection = self.probe.log_in(&at.address, &at.group).await;
        let name = Name {
            role: Role::Controller,
            incarnation: self.incarnation.to_string(),
            rest: self.opened.fetch_add(1, Ordering::Relaxed).to_string(),
        };
        let connection = connection.map_err(NotFenced::Unanswered)?;
        Link::open(connection, &name, self.probe.user(&at.group)).await
    }

    async fn carry_out(
        &self,
        at: &Target,
        order: &Order<'_>,
        deadline: Instant,
    ) -> Result<Evidence, NotFenced> {
        // Those of all attempts: what an earlier one has killed is dead.
        let mut killed = Vec::new();
        let mut patience = Patience::until(deadline);
        let sight = loop {
            let attempt = self.attempt(at, order, &mut killed);
            if let Some(answer) = patience.ask(attempt).await {
                break answer?;
            }
        };
        Ok(self.conclude(at, order, sight, killed))
    }

    /// The same at the epoch that stands in the record.
    async fn assert(
        &self,
        at: &Target,
        spare: Spare<'_>,
        deadline: Instant,
    ) -> Result<Evidence, NotFenced> {
        let mut killed = Vec::new();
        let mut patience = Patience::until(deadline);
        let (order, sight) = loop {
            let attempt = async {
                let order = Order {
                    occasion: Occasion::Claim,
                    mark: self.mark_of(at).await?,
                    spare,
                    close: NOTHING,
                    take_over: false,
                };
                let sight = self.attempt(at, &order, &mut killed).await?;
                Ok((order, sight))
            };
            if let Some(answer) = patience.ask(attempt).await {
                break answer?;
            }
        };
        Ok(self.conclude(at, &order, sight, killed))
    }

    /// This leader's term, and the epoch that stands in the record.
    async fn mark_of(&self, at: &Target) -> Result<Mark, NotFenced> {
        let (_, sight) = self.open(at).await?;
        let Leader { cluster, own } = self.leader()?;
        let known = self.known(&at.address, &sight.run_id);
        match step::next(&sight, &cluster, own, known) {
            Step::Keep => Ok(sight.epoch().map_or(own, |epoch| Mark { epoch, ..own })),
            Step::Lead { epoch } | Step::Restore { epoch } => Ok(Mark { epoch, ..own }),
            // The keeper sees to it.
            Step::Admit | Step::Leap(_) => Err(NotFenced::Later(
                "it has to be admitted again first".to_owned(),
            )),
            Step::Leave(refusal) => Err(NotFenced::Refused(refusal)),
        }
    }

    fn conclude(
        &self,
        at: &Target,
        order: &Order<'_>,
        sight: Sight,
        killed: Vec<Connection>,
    ) -> Evidence {
        self.note(&at.address, &sight);
        let Mark { term, epoch } = order.mark;
        info!(server = %at.address, term, epoch, killed = killed.len(), "fenced");
        // Each was killed, or was not in the list any more, or was of a process that is gone.
        let closed = order.close.iter().filter(|c| c.server == at.address);
        Evidence {
            server: at.address.clone(),
            run_id: sight.run_id,
            mark: order.mark,
            killed,
            closed: closed.cloned().collect(),
        }
    }

    /// One attempt, on a connection of its own.
    async fn attempt(
        &self,
        at: &Target,
        order: &Order<'_>,
        killed: &mut Vec<Connection>,
    ) -> Result<Sight, NotFenced> {
        let Order {
            occasion,
            mark,
            spare,
            close,
            take_over,
        } = *order;
        let (mut link, sight) = self.open(at).await?;
        let Leader { cluster, own } = self.leader()?;
        if own.term != mark.term {
            return Err(NotFenced::NotLeading);
        }
        allowed(&sight, &cluster, own, take_over)?;
        let [begins, is_raised, has_killed, is_done] = points(occasion);
        reach(begins);
        match link.raise(cluster.as_str(), mark, own, take_over).await? {
            Verdict::Done => reach(is_raised),
            Verdict::Refused => {
                allowed(&link.look().await?, &cluster, own, take_over)?;
                return Err(NotFenced::Lost); // it has become another one since
            }
        }
        let close = close
            .iter()
            .filter(|c| c.server == at.address && c.run_id == sight.run_id);
        let close: BTreeSet<u64> = close.map(|c| c.client_id).collect();
        let connections = link.connections().await?;
        let doomed = roll::doomed(connections, &self.incarnation, spare, &close);
        link.kill(&doomed).await?;
        reach(has_killed);
        killed.extend(doomed);
        let sight = link.look().await?;
        // A later leader's is above the mark, too.
        allowed(&sight, &cluster, own, take_over)?;
        if sight.is_raised(&cluster, mark) {
            reach(is_done);
            Ok(sight)
        } else {
            Err(NotFenced::Lost)
        }
    }

    /// Remembers what was read of a record that is as it is to be.
    fn note(&self, server: &ServerAddr, sight: &Sight) {
        if let Ok(Some(record)) = &sight.record {
            let raised = Raised {
                term: record.term,
                epoch: record.epoch,
                run_id: record.run_id.clone(),
            };
            self.guard(server, Guard::Raised(raised));
        }
    }

    /// Forgets all other servers.
    fn keep_only(&self, servers: &BTreeSet<&ServerAddr>) {
        self.guards.send_if_modified(|guards| {
            let before = guards.len();
            guards.retain(|server, _| servers.contains(server));
            guards.len() < before
        });
    }

    /// Remembers why a record is not, or may not be. False: it was known.
    fn doubt(&self, server: &ServerAddr, why: NotFenced) -> bool {
        let last = self.last(server);
        self.guard(server, Guard::Open { why, last })
    }

    /// How a record is, or was last.
    fn last(&self, server: &ServerAddr) -> Option<Raised> {
        self.guards.borrow().get(server)?.last().cloned()
    }

    /// To which epoch the record of this process was raised, or found.
    fn known(&self, server: &ServerAddr, run_id: &str) -> Option<u64> {
        let last = self.last(server)?;
        (last.run_id == run_id).then_some(last.epoch)
    }

    fn guard(&self, server: &ServerAddr, guard: Guard) -> bool {
        self.guards.send_if_modified(|guards| {
            if guards.get(server) == Some(&guard) {
                return false;
            }
            guards.insert(server.clone(), guard);
            true
        })
    }
}

/// What is reached in this order.
fn points(occasion: Occasion) -> [Point; 4] {
    match occasion {
        Occasion::Fence => [
            Point::Fence,
            Point::FenceRaised,
            Point::FenceKilled,
            Point::Fenced,
        ],
        Occasion::Claim => [
            Point::Claim,
            Point::ClaimRaised,
            Point::ClaimKilled,
            Point::Claimed,
        ],
        Occasion::Admission => [
            Point::Admit,
            Point::AdmitRaised,
            Point::AdmitKilled,
            Point::Admitted,
        ],
    }
}

/// How long a server is asked again.
struct Patience {
    deadline: Instant,
    /// Why the last attempt failed.
    why: NotFenced,
}

impl Patience {
    fn until(deadline: Instant) -> Self {
        let silent = Failure::Unreachable("no answer in time".to_owned());
        Self {
            deadline,
            why: NotFenced::Unanswered(silent),
        }
    }

    /// One attempt. `None`: there is time for another.
    async fn ask<T>(
        &mut self,
        attempt: impl Future<Output = Result<T, NotFenced>>,
    ) -> Option<Result<T, NotFenced>> {
        match timeout_at(self.deadline, attempt).await {
            Ok(Ok(value)) => return Some(Ok(value)),
            Ok(Err(e)) if e.is_final() => return Some(Err(e)),
            Ok(Err(e)) => self.why = e,
            Err(_) => return Some(Err(self.why.clone())),
        }
        if Instant::now() + PAUSE >= self.deadline {
            return Some(Err(self.why.clone()));
        }
        sleep(PAUSE).await;
        None
    }
}

fn allowed(
    sight: &Sight,
    cluster: &ClusterId,
    own: Mark,
    take_over: bool,
) -> Result<(), NotFenced> {
    match sight.judge(cluster, own) {
        Err(Refusal::OtherCluster(_)) if take_over => Ok(()),
        verdict => verdict.map_err(NotFenced::Refused),
    }
}
