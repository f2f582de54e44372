//! Moving slots from one group to another: what is done next, and why nothing can be lost by it.
//!
//! A [`Migration`] is a durable record. [`next_step`] says, from the record and from what the leader
//! knows at this moment ([`World`]), what is to be done: write the record's next phase, have a server or
//! the copy do something, or wait, and for what. It is asked again after every change of the store, every
//! answer of a proxy and every tick, and keeps nothing of its own: a leader that has just been elected
//! takes the same path as one that began the move. Nothing here does I/O or asks a clock; the model
//! (`tests/it/model`) runs these very functions.
//!
//! # The way of a slot
//!
//! ```text
//! PENDING ─► COPYING ◄──► CUTTING_OVER ─► COMMITTED ─► REAPING ─► SUCCEEDED
//!    │          └──────┬───────┘                          │
//!    ▼                 ▼                                  ▼
//! CANCELLED ◄─────  ABORTING  ───────────────────► CANCELLED, FAILED
//! ```
//!
//! 1. *PENDING*. It waits its turn (a group takes part in so many migrations at a time: [`turn`]), and until
//!    both servers are fit for it. Those that run at the same time have no slot in common, and nothing else:
//!    each has its own copy and its own holds. A fence that one raises around a source that two share is one
//!    for the other, too: it closes more than that needed, never less.
//! 2. *COPYING*. The source serves; the copy makes the target equal to it (`mover` says how), and knows
//!    which keys are not equal yet. Proxies note what the copy cannot see: commands of consumer groups, and some
//!    others of which a source older than Redis 6 does not tell. Of consumer groups all can be copied again
//!    where notes are lost. A copy from such a source depends on notes: where they are lost it begins anew, once
//!    all proxies that are registered note.
//!    Nothing is held while a proxy that uses the source has been away for a moment only: after an election it
//!    is on its way to the new leader, and its clients would notice that it is fenced.
//!    Nor while the target has replicas and none follows it: what has moved is to be at one of them, and a hold that
//!    waits for one in vain is given up. Its slots come last then, but are never left for that.
//! 3. *CUTTING_OVER* moves a batch of slots. It is short, and each of its parts has a limit:
//!    * The topology that comes with the record holds the batch: a proxy lets requests for these slots,
//!      reads too, wait. It says *switched* once every worker of it routes so, and *settled* once all
//!      that it ever sent to the source for them is answered, or which connections were lost with
//!      requests unanswered.
//!    * Who has not switched within [`SWITCH_DEADLINE`] is fenced out; so is who has, and is not connected
//!      any more then, without having settled. Are these too many
//!      ([`may_be_fenced`]), the controller is probably the one that is cut off: the hold is given up.
//!    * The source is **always** fenced, at the epoch of the hold: its record is raised, and then all
//!      connections of proxies are killed, but for those of proxies that have switched; a proxy that this
//!      leader has never heard of is killed with them. The connections that settled proxies have named as
//!      lost are killed, too.
//!    * Who has switched and has not settled is waited for: the source may be slow. Is that in vain,
//!      [`UNSETTLED_MAX`] holds in a row, though the source answers this controller, it is the proxy that is cut
//!      off from it: in the next hold it is fenced out, too, if it has not settled within [`SETTLE_DEADLINE`].
//!    * When all that were spared have settled, the source is **quiet** ([`is_quiet`]) for these slots:
//!      no request for them is executed there any more. Only then the copy is settled: what is still
//!      dirty is copied.
//!    * One commit gives the slots to the target. It is made only if the source is quiet and the copy was
//!      settled since. With it, proxies release what they hold to the target.
//!
//!    Until that commit the hold can be given up at any time, and is after [`HOLD_BUDGET`]: the slots are
//!    served by the source again, and the batch is tried again later, by halves. Slots with big values that
//!    change all the time come behind all others, each alone, and behind those a slot that alone took too
//!    long; if it does so again and again, it is left where it is. A slot with a big value that was not copied yet is
//!    not held before it is, for [`UNCOPIED_PATIENCE`].
//! 4. *COMMITTED*: all slots are the target's. There is no way back but another migration.
//! 5. *REAPING* deletes what the source still has of them, page by page, and never of a slot that the
//!    source owns ([`reapable`]). Only when that is over the slots can move again: what was left of a
//!    slot would otherwise be there when it comes back.
//!
//! *ABORTING* deletes what the target was given of slots that have not moved; those that have, stay moved.
//!
//! # Why nothing is lost
//!
//! *At most one group executes requests for a slot.* A request that is executed at the source after it is
//! quiet came on some connection. Was it opened by a proxy that was spared? That one holds, and all it had
//! sent is answered, or was killed by name. By any other? It was killed after the record had been raised;
//! opened later, it was judged by the raised record and refused, since its worker's epoch is older than
//! the hold's (or is not, and then the worker holds). And the target executes none before the commit: no
//! topology says that it owns the slot. *What is executed at the target follows what was executed at the
//! source*: the copy is settled while nobody writes, and it cannot be changed later by one of its own
//! writes that was late, since an attempt of a copy begins with the target's closing all connections of
//! the attempts before. *A key that was deleted does not come back*: the copy begins with an empty target,
//! and a slot is not moved again before it was reaped.
//!
//! *A leader that was replaced* can do no harm: the store refuses its commits; proxies refuse its
//! topologies, which are older; servers refuse what it opens, since the records carry a later term, and
//! the connections that it had are closed before its successor copies or deletes ([`Claims`]). Nothing it
//! was told counts for its successor: the answers are asked for anew, and the copy begins anew.
//!
//! *No time-out changes who owns a slot.* It leads to waiting, to a fence, or to giving up a hold.
//!
//! # Invariants
//!
//! * `moved` and `left` are parts of `slots`, and have no slot in common; a batch has none of either.
//! * All that [`World`] says was seen by the leader that asks, in the term that it gives.
//! * A commit that moves slots is decided by [`next_step`] alone, and by nothing older than the hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use proto::{
    GroupId, MigrationId, ProxyId, Settled, Slot, SlotSet,
    settled::{Connection, Lost, Streams},
};
use serde::{Deserialize, Serialize};

use self::batch::{next_batch, ready};
use crate::mover::Tally;

mod batch;

/// How long proxies may take to route by a hold. Then they are fenced out.
pub const SWITCH_DEADLINE: Duration = Duration::from_millis(250);
/// How long proxies may take to settle after [`UNSETTLED_MAX`] holds. Then they are fenced out.
pub const SETTLE_DEADLINE: Duration = Duration::from_millis(500);
/// So many holds in a row are given up for proxies that do not settle, before they are fenced out.
pub const UNSETTLED_MAX: u32 = 2;
/// How long slots are held, at most.
pub const HOLD_BUDGET: Duration = Duration::from_secs(1);
/// How long a copy waits for all proxies to note what it cannot see, before it begins without.
pub const NOTE_DEADLINE: Duration = Duration::from_secs(2);
/// How long reaping waits for all proxies to route by the commit.
pub const RELEASE_DEADLINE: Duration = Duration::from_secs(10);
/// Slots that are cut over at a time, at most.
pub const BATCH_MAX: usize = 128;
/// A slot that is alone in its batch is left where it is when more holds than these have taken too long.
pub const TRIES_MAX: u32 = 3;
/// A copy that depends on notes is given up after more holds than these in a row for which proxies could not name
/// all. Between them passes more time than it takes to see that a proxy which hangs is away, and is to be waited for.
pub const UNSEEN_MAX: u32 = 5;
/// So many keys of a batch are not equal yet when it is held, at most: the more keys change, the fewer slots
/// are held at a time. With a rate it may be less: see [`RATED`].
pub const DIRTY_MAX: u64 = 200;
/// With a rate that is as many as it allows in this time: in holds nothing is held back.
pub const RATED: Duration = Duration::from_millis(50);
/// With a rate it is waited between two holds until that allows so many keys, but no longer than [`RATED_PAUSE_MAX`],
/// while slots for the next are made clean. Of single slots there would be hundreds in a row, and clients would
/// notice what each costs the proxies and the source.
pub const RATED_KEYS: u32 = 800;
/// See [`RATED_KEYS`].
pub const RATED_PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long it is waited for a slot that has no more than [`DIRTY_MAX`] or [`RATED`] allows. Then the one that has
/// fewest is held all the same: perhaps it can be settled within the budget.
pub const DIRTY_PATIENCE: Duration = Duration::from_secs(3);
/// How long it is waited for a slot all big values of which were copied once, though clients make new ones. Then one
/// is held all the same, as if they had only changed.
pub const UNCOPIED_PATIENCE: Duration = Duration::from_secs(600);
/// Between two tries: doubled each time, up to the second.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// A process of a proxy: 32 hexadecimal digits, chosen when it starts.
pub type Incarnation = String;

/// The record.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Migration {
    /// Its id.
    pub id: MigrationId,
    /// The revision that last changed it.
    pub revision: u64,
    /// Who has the slots.
    pub source: GroupId,
    /// Who gets them.
    pub target: GroupId,
    /// What is to be moved.
    pub slots: SlotSet,
    /// What the target owns of it already.
    pub moved: SlotSet,
    /// How many slots are held at a time, at most: half as many when a hold of several took too long, twice
    /// as many when one has moved its slots.
    #[serde(default = "batch_max")]
    pub batch_most: usize,
    /// What took too long though it was alone, and is tried again behind all else.
    pub deferred: SlotSet,
    /// What stays where it is, since it could not be moved within the budget.
    pub left: SlotSet,
    /// How far it is.
    pub phase: Phase,
    /// The revision at which it entered this phase. In CUTTING_OVER it is the epoch of the hold.
    pub entered: u64,
    /// What its operator wants of it.
    pub wish: Wish,
    /// How it is to be done.
    #[serde(default)]
    pub manner: Manner,
    /// Cut-overs that were begun.
    pub cut_overs: u64,
}

fn batch_max() -> usize {
    BATCH_MAX
}

/// How a migration is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Manner {
    /// Keys copied a second, at most; each 4 KiB of a value count as one more. What is copied in holds does not
    /// count, but they are shorter and fewer. `None`: as many as the source bears.
    pub rate: Option<NonZeroU32>,
    /// When all slots have moved it waits, before the source's copies are deleted, until its operator has
    /// it go on.
    pub keep_source: bool,
}

impl Manner {
    /// So many keys of a batch are not equal yet when it is held, at most.
    fn dirty_max(&self) -> u64 {
        let rated = |rate: NonZeroU32| (f64::from(rate.get()) * RATED.as_secs_f64()) as u64;
        self.rate
            .map_or(DIRTY_MAX, |rate| rated(rate).clamp(1, DIRTY_MAX))
    }

    /// How long it is waited between two holds.
    fn pause(&self) -> Duration {
        let rated = |rate: NonZeroU32| Duration::from_secs(RATED_KEYS.into()) / rate.get();
        self.rate
            .map_or(Duration::ZERO, |rate| rated(rate).min(RATED_PAUSE_MAX))
    }
}

/// How far a migration is, and what is known of that.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Phase {
    /// Not begun.
    Pending,
    /// The source serves all that is not moved, and the target is given copies.
    Copying {
        /// Why the last hold was given up, if it was, and how many in a row for the same reason.
        given_up: Option<(GiveUp, u32)>,
    },
    /// A batch is held.
    CuttingOver {
        /// These slots.
        batch: SlotSet,
        /// Of the hold before, as above.
        given_up: Option<(GiveUp, u32)>,
    },
    /// All slots are the target's, and the source has copies.
    Committed,
    /// The source's copies are deleted.
    Reaping {
        /// How it ends. `None`: well.
        then: Option<Ending>,
    },
    /// The target's copies of what was not moved are deleted.
    Aborting {
        /// How it ends.
        then: Ending,
    },
    /// All slots have moved.
    Succeeded,
    /// Its operator did not want it any more.
    Cancelled,
    /// It cannot be done.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

/// How a migration ends that does not succeed.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Ending {
    /// Its operator does not want it any more.
    Cancelled,
    /// It cannot be done.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

/// Why a hold was given up.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum GiveUp {
    /// It took longer than [`HOLD_BUDGET`].
    OverBudget,
    /// Too many proxies said nothing.
    Silent {
        /// So many.
        proxies: usize,
    },
    /// Proxies did not settle, though the source let itself be fenced.
    Unsettled {
        /// So many.
        proxies: usize,
    },
    /// The source was not fenced in time: it did not answer, or answered that it is busy.
    Unfenced,
    /// The target has replicas, and none had what was copied in time.
    ReplicaBehind,
    /// The copy is not there, or began anew: that of another leader is worth nothing to this one.
    CopyLost,
    /// The copy depends on what proxies have noted, and that is lost, or more than they can name.
    Unseen,
    /// Its operator wants it to wait.
    Paused,
}

impl GiveUp {
    fn is_like(&self, other: &Self) -> bool {
        self.is_of_size() && other.is_of_size()
            || std::mem::discriminant(self) == std::mem::discriminant(other)
    }

    /// A hold of less may end better.
    fn is_of_size(&self) -> bool {
        matches!(self, Self::OverBudget | Self::ReplicaBehind)
    }
}

/// What an operator wants of a migration.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Wish {
    /// That it goes on.
    Run,
    /// That it goes no further for now.
    Pause,
    /// That it ends, with what is not moved left where it is.
    Cancel,
}

/// What the leader knows when it asks.
#[derive(Clone, Debug)]
pub struct World {
    /// The leader's term.
    pub term: u64,
    /// The slots of the migration that the source owns, by the store.
    pub at_source: SlotSet,
    /// A migration that is to end before this one begins: see [`turn`].
    pub before: Option<MigrationId>,
    /// What a look at both servers has shown.
    pub fitness: Fitness,
    /// Whose servers they are.
    pub claims: Claims,
    /// How far the copy is.
    pub copy: Copying,
    /// The proxies that had connections at the source when that was last looked at; not older than
    /// the phase before this one.
    pub census: Option<BTreeSet<Incarnation>>,
    /// That is so long ago that who is away may have ended since.
    pub is_census_old: bool,
    /// One of these is not connected here, and has not been away for long: it may be on its way back, or
    /// to a leader that has just been elected.
    pub returning: bool,
    /// What proxies have said, connected or not.
    pub proxies: BTreeMap<Incarnation, Answer>,
    /// The fence around the source that was raised last.
    pub fence: Option<Fenced>,
    /// Since the copy began, a proxy used the source that did not note what the copy cannot see, or is
    /// gone with what it had noted.
    pub notes_lost: bool,
    /// The copy depends on what proxies note: the source is older than Redis 6.
    pub needs_notes: bool,
    /// The target has replicas, and none of them follows it.
    pub lacks_replica: bool,
    /// What was settled in this phase had not come to a replica of the target, though that has some.
    pub replica_behind: bool,
    /// Proxies that are registered and not connected.
    pub absent: Vec<ProxyId>,
    /// How long the record is in its phase, as far as this leader knows.
    pub in_phase: Duration,
    /// That the target has nothing of what is not moved any more.
    pub is_clean: bool,
    /// That the source has nothing of what was moved any more.
    pub is_reaped: bool,
}

/// Whether two servers are fit to be source and target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fitness {
    /// Nobody has looked.
    Unknown,
    /// They are.
    Fit,
    /// They are not, for this reason.
    Unfit(String),
}

/// Where this leader's term stands on the fence record, and where all connections for copying and
/// deleting that were opened in older terms have been closed since.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Claims {
    /// At the source.
    pub source: bool,
    /// At the target.
    pub target: bool,
}

/// How far the copy is that this leader has begun.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one exists at a time, and most of its time a copy follows"
)]
pub enum Copying {
    /// There is none.
    None,
    /// It goes through the keys.
    Underway,
    /// It has been through all keys.
    Following {
        /// For how long it does, in this phase.
        since: Duration,
        /// Keys that are not equal yet.
        dirt: Tally,
        /// Slots that take long to be settled: big values in them change, or are not equal yet.
        slow: SlotSet,
        /// Slots that are not held yet: big values in them are being copied for the first time.
        uncopied: SlotSet,
    },
    /// The target has of the batch what the source has: seen after the source was quiet in this hold.
    Settled {
        /// The epoch of the hold.
        hold: u64,
    },
}

/// What a proxy has said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Which proxy it is.
    pub id: ProxyId,
    /// Its stream is open.
    pub connected: bool,
    /// The epoch by which all its workers route. 0: none that it told of.
    pub switched: u64,
    /// What it said last of what it had sent to the source.
    pub settled: Option<Settled>,
}

impl Answer {
    /// What it said of this hold, or of a later one.
    fn settled_in(&self, hold: u64) -> Option<&Settled> {
        let settled = self.settled.as_ref()?;
        (settled.version.epoch >= hold).then_some(settled)
    }
}

/// A fence, as it was read back from the source after the kill.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fenced {
    /// The term on it.
    pub term: u64,
    /// The epoch on it.
    pub epoch: u64,
    /// The proxies whose connections were left. All others of proxies are closed, and so are those of
    /// leaders of older terms.
    pub spared: BTreeSet<Incarnation>,
    /// A proxy's connections were closed.
    pub hit: bool,
    /// Of the connections that were named, those that are closed, or whose process is no more.
    pub closed: BTreeSet<Connection>,
}

/// What is to be done next. All of it may be done again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Nothing, until the world is another.
    Wait(Why),
    /// Write this, if the record is still as it was.
    Record(Advance),
    /// Look whether both servers are fit.
    Examine,
    /// Put the term on the records of both servers, and close what older terms have opened.
    Claim,
    /// Begin to copy, from an empty target.
    Copy,
    /// Look which proxies have connections at the source.
    Count,
    /// Raise the source's record to this term and this epoch, and then close there all connections of
    /// proxies but of these, and these connections.
    Fence {
        /// That of the hold.
        epoch: u64,
        /// Who stays.
        spare: BTreeSet<Incarnation>,
        /// What is closed in any case.
        close: BTreeSet<Connection>,
    },
    /// Make the target equal to the source for the batch, which nobody writes to.
    Settle {
        /// The batch.
        slots: SlotSet,
        /// The epoch of the hold.
        hold: u64,
        /// Streams whose groups the copy must make anew.
        streams: Streams,
    },
    /// End the copy and delete what the target has of these slots, which it does not own.
    Clean(SlotSet),
    /// Delete what the source has of these slots, each page only if the source still does not own them.
    Reap(SlotSet),
    /// It is over.
    Rest,
}

/// What is waited for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Why {
    /// The operator.
    Paused,
    /// Another migration, which shares a group with this one.
    Turn(MigrationId),
    /// Servers that are fit.
    Unfit(String),
    /// Proxies that do not note yet what the copy cannot see.
    Notes(Vec<ProxyId>),
    /// Proxies that are registered and not connected, where the copy depends on what they note.
    Absent(Vec<ProxyId>),
    /// The copy.
    Copy,
    /// Fewer keys that are not equal yet, of the slots that are held next.
    Dirty {
        /// So many are not equal.
        keys: u64,
        /// So many may be.
        most: u64,
    },
    /// A pause of this length between two holds, since it has a rate.
    Rate(Duration),
    /// A pause, since a hold was given up.
    Retry(GiveUp),
    /// A replica that follows the target, which has some.
    Replica,
    /// Proxies that are not connected to the controller, but to the source.
    Away(usize),
    /// Proxies that do not route by an epoch yet.
    Switch(u64, Vec<ProxyId>),
    /// Proxies that await replies of the source.
    Settle(Vec<ProxyId>),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |f: &mut fmt::Formatter<'_>, proxies: &[ProxyId]| {
            let plural = if proxies.len() == 1 {
                "proxy"
            } else {
                "proxies"
            };
            let names: Vec<&str> = proxies.iter().map(ProxyId::as_str).collect();
            write!(f, "waiting for {plural} {}", names.join(", "))
        };
        match self {
            Self::Paused => write!(f, "paused"),
            Self::Turn(id) => write!(f, "waiting for migration {id}, which has a group in common"),
            Self::Unfit(reason) => write!(f, "waiting for its servers: {reason}"),
            Self::Notes(proxies) => {
                names(f, proxies)?;
                write!(f, " to note changes that the source does not tell of")
            }
            Self::Absent(proxies) => {
                names(f, proxies)?;
                write!(
                    f,
                    " to connect, or to be removed: a source older than Redis 6 does not tell of all changes, \
                     and every proxy has to note them"
                )
            }
            Self::Copy => write!(f, "copying keys"),
            Self::Dirty { keys, most } => write!(
                f,
                "copying keys that have changed meanwhile: {keys} of the slots that are held next, which is \
                 more than {most}"
            ),
            Self::Rate(pause) => write!(f, "waiting {pause:?} between two cut-overs, for its rate"),
            Self::Replica => write!(
                f,
                "waiting for a replica to follow the target: it has some, and what has moved is to be at one of them"
            ),
            Self::Retry(why) => write!(f, "waiting before the next cut-over: {why}"),
            Self::Away(proxies) => write!(
                f,
                "waiting for {proxies} proxies that use the source and are not connected here"
            ),
            Self::Switch(epoch, proxies) => {
                names(f, proxies)?;
                write!(f, " to ack epoch {epoch}")
            }
            Self::Settle(proxies) => {
                names(f, proxies)?;
                write!(f, ", which await replies of the source")
            }
        }
    }
}

impl fmt::Display for GiveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OverBudget => write!(f, "the last one took longer than {HOLD_BUDGET:?}"),
            Self::Silent { proxies } => write!(
                f,
                "{proxies} proxies did not answer: is this controller cut off from them?"
            ),
            Self::Unsettled { proxies } => write!(
                f,
                "{proxies} proxies had no reply of the source: are they cut off from it?"
            ),
            Self::Unfenced => write!(
                f,
                "the source let nobody be fenced out in time: is it busy?"
            ),
            Self::ReplicaBehind => write!(
                f,
                "no replica of the target had in time what was copied: they are behind it"
            ),
            Self::CopyLost => write!(f, "the copy began anew"),
            Self::Unseen => write!(
                f,
                "keys had changed of which a source older than Redis 6 does not tell, and proxies could not name \
                 them all"
            ),
            Self::Paused => write!(f, "it was paused"),
        }
    }
}

/// What becomes of the record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Advance {
    /// It copies.
    Copy,
    /// It holds these slots.
    Hold(SlotSet),
    /// It serves them by the source again.
    GiveUp(GiveUp),
    /// It gives the batch to the target.
    Commit,
    /// It gives up what has not moved.
    Abort(Ending),
    /// It deletes what the source has left.
    Reap,
    /// It is over.
    End,
}

/// A migration that is to end before this one begins: where one of its groups takes part, with all that have
/// begun or are older, in as many as it may at a time.
///
/// Who is older waits for nobody who is younger, and takes its place from the beginning, so that it comes to
/// its turn; and no two begin that would not have let each other, even if neither has seen the other begin.
pub fn turn<'a>(
    m: &Migration,
    others: impl IntoIterator<Item = &'a Migration>,
    budget: NonZeroUsize,
) -> Option<MigrationId> {
    let before: Vec<&Migration> = others
        .into_iter()
        .filter(|other| is_before(m, other))
        .collect();
    [&m.source, &m.target].into_iter().find_map(|group| {
        let takes_part = |other: &&&Migration| [&other.source, &other.target].contains(&group);
        let mut taken = before.iter().filter(takes_part);
        let first = taken.next()?;
        (taken.count() + 1 >= budget.get()).then(|| first.id.clone())
    })
}

/// Whether one that is not over has begun, or is older than another that has not.
fn is_before(m: &Migration, other: &Migration) -> bool {
    let age = |m: &Migration| (m.entered, m.id.clone());
    other.id != m.id && !other.is_over() && (other.phase != Phase::Pending || age(other) < age(m))
}

/// What other migrations bring to the target of one, besides what that brings, before or while it does: the
/// sources, and the slots of each. What of these has been copied already is not known here.
///
/// As for its [`turn`], an older one counts that has not begun: so no two begin for which together there is no
/// room.
pub fn brought_besides<'a>(
    m: &Migration,
    others: impl IntoIterator<Item = &'a Migration>,
) -> BTreeMap<GroupId, SlotSet> {
    let mut brought = BTreeMap::new();
    let others = others.into_iter();
    for other in others.filter(|other| other.target == m.target && is_before(m, other)) {
        let slots = match other.phase {
            Phase::Pending | Phase::Copying { .. } | Phase::CuttingOver { .. } => other.remaining(),
            Phase::Committed
            | Phase::Reaping { .. }
            | Phase::Aborting { .. }
            | Phase::Succeeded
            | Phase::Cancelled
            | Phase::Failed { .. } => continue,
        };
        let all = brought
            .entry(other.source.clone())
            .or_insert(SlotSet::EMPTY);
        *all = all.with(&slots);
    }
    brought
}

/// What is done next. See the module.
pub fn next_step(m: &Migration, w: &World) -> Step {
    match &m.phase {
        Phase::Pending => pending(m, w),
        Phase::Copying { given_up } => copying(m, w, given_up.as_ref()),
        Phase::CuttingOver { batch, given_up } => cutting_over(m, w, *batch, patience(given_up)),
        Phase::Committed => committed(m, w),
        Phase::Aborting { .. } if !w.claims.target => Step::Claim,
        Phase::Aborting { .. } if !w.is_clean => Step::Clean(m.slots.without(&m.moved)),
        Phase::Aborting { .. } if !m.moved.is_empty() => Step::Record(Advance::Reap),
        Phase::Aborting { .. } => Step::Record(Advance::End),
        Phase::Reaping { .. } if !w.claims.source => Step::Claim,
        Phase::Reaping { .. } if !w.is_reaped => Step::Reap(reapable(m, w.at_source)),
        Phase::Reaping { .. } => Step::Record(Advance::End),
        Phase::Succeeded | Phase::Cancelled | Phase::Failed { .. } => Step::Rest,
    }
}

fn pending(m: &Migration, w: &World) -> Step {
    match (m.wish, &w.before, &w.fitness) {
        (Wish::Cancel, _, _) => Step::Record(Advance::Abort(Ending::Cancelled)),
        (Wish::Pause, _, _) => Step::Wait(Why::Paused),
        (Wish::Run, Some(before), _) => Step::Wait(Why::Turn(before.clone())),
        (Wish::Run, None, Fitness::Unknown) => Step::Examine,
        (Wish::Run, None, Fitness::Unfit(why)) => Step::Wait(Why::Unfit(why.clone())),
        (Wish::Run, None, Fitness::Fit) => Step::Record(Advance::Copy),
    }
}

fn copying(m: &Migration, w: &World, given_up: Option<&(GiveUp, u32)>) -> Step {
    if m.wish == Wish::Cancel {
        return Step::Record(Advance::Abort(Ending::Cancelled));
    }
    if !(w.claims.source && w.claims.target) {
        return Step::Claim;
    }
    if w.needs_notes && w.notes_lost {
        return begin_anew(w, m.entered);
    }
    let (batch, dirty) = match &w.copy {
        Copying::None => return begin_copy(w, m.entered),
        Copying::Underway => return Step::Wait(Why::Copy),
        // Settled in a hold that was given up: it follows again.
        Copying::Settled { .. } => {
            let (none, all) = (Tally::default(), m.remaining());
            (next_batch(m, &none, &SlotSet::EMPTY, &all), 0)
        }
        Copying::Following {
            since,
            dirt,
            slow,
            uncopied,
        } => {
            let (slow, ready) = match w.in_phase < UNCOPIED_PATIENCE {
                true => (*slow, ready(m, uncopied)),
                false => (slow.with(uncopied), m.remaining()),
            };
            if ready.is_empty() {
                return Step::Wait(Why::Copy);
            }
            let batch = next_batch(m, dirt, &slow, &ready);
            let is_patient = *since < DIRTY_PATIENCE;
            (batch, if is_patient { dirt.of_all(&batch) } else { 0 })
        }
    };
    if m.wish == Wish::Pause {
        return Step::Wait(Why::Paused);
    }
    if let Some((why, tries)) = given_up
        && w.in_phase < pause(*tries)
    {
        return Step::Wait(Why::Retry(why.clone()));
    }
    let most = m.manner.dirty_max();
    if dirty > most {
        return Step::Wait(Why::Dirty { keys: dirty, most });
    }
    let pause = m.manner.pause();
    if w.in_phase < pause {
        return Step::Wait(Why::Rate(pause));
    }
    if w.lacks_replica {
        return Step::Wait(Why::Replica);
    }
    // Last, so that it is of now: who has come since would not count for how many may be fenced out.
    let Some(census) = w.census.as_ref().filter(|_| !w.is_census_old) else {
        return Step::Count;
    };
    let away = census.iter().filter(|&proxy| !is_here(w, proxy)).count();
    let bearable = match w.returning {
        true => 0,
        false => may_be_fenced(census.len()),
    };
    if away > bearable {
        return Step::Wait(Why::Away(away));
    }
    Step::Record(Advance::Hold(batch))
}

/// The copy begins when all proxies note what it cannot see; or without them, and then believes that
/// anything may have been touched.
fn begin_copy(w: &World, copying: u64) -> Step {
    let late = names(w, |proxy| {
        proxy.connected && proxy.settled_in(copying).is_none()
    });
    if late.is_empty() || w.in_phase >= NOTE_DEADLINE {
        Step::Copy
    } else {
        Step::Wait(Why::Notes(late))
    }
}

/// A copy that depends on notes, and has lost some, begins anew when all proxies note.
fn begin_anew(w: &World, copying: u64) -> Step {
    let late = names(w, |proxy| {
        proxy.connected && proxy.settled_in(copying).is_none()
    });
    if !w.absent.is_empty() {
        Step::Wait(Why::Absent(w.absent.clone()))
    } else if !late.is_empty() {
        Step::Wait(Why::Notes(late))
    } else {
        Step::Copy
    }
}

fn cutting_over(m: &Migration, w: &World, batch: SlotSet, patience: Duration) -> Step {
    let hold = m.entered;
    let give_up = |why| Step::Record(Advance::GiveUp(why));
    match (m.wish, &w.copy) {
        (Wish::Cancel, _) => return Step::Record(Advance::Abort(Ending::Cancelled)),
        (Wish::Pause, _) => return give_up(GiveUp::Paused),
        (Wish::Run, Copying::None | Copying::Underway) => return give_up(GiveUp::CopyLost),
        (Wish::Run, Copying::Following { .. } | Copying::Settled { .. }) => {}
    }
    let unsettled = unsettled(w, hold);
    if w.replica_behind {
        return give_up(GiveUp::ReplicaBehind);
    }
    if w.in_phase >= HOLD_BUDGET {
        return give_up(match unsettled.len() {
            0 if !is_fenced(w, hold, patience) => GiveUp::Unfenced,
            0 => GiveUp::OverBudget,
            proxies => GiveUp::Unsettled { proxies },
        });
    }
    let late = names(w, |proxy| proxy.connected && proxy.switched < hold);
    if !late.is_empty() && w.in_phase < SWITCH_DEADLINE {
        return Step::Wait(Why::Switch(hold, late));
    }
    let Some(census) = &w.census else {
        return Step::Count;
    };
    let silent = census
        .iter()
        .filter(|proxy| !answers(w, proxy, hold, patience))
        .count();
    if silent > may_be_fenced(census.len()) {
        let proxies = silent;
        return give_up(match w.in_phase < patience {
            true => GiveUp::Silent { proxies },
            false => GiveUp::Unsettled { proxies },
        });
    }
    if !is_fenced(w, hold, patience) {
        return fence(w, hold, patience);
    }
    if !unsettled.is_empty() {
        let named = unsettled.into_iter();
        let named = named.filter_map(|proxy| Some(w.proxies.get(proxy)?.id.clone()));
        return Step::Wait(Why::Settle(named.collect()));
    }
    if w.copy == (Copying::Settled { hold }) {
        return Step::Record(Advance::Commit);
    }
    let streams = streams(w, hold);
    if w.needs_notes && streams == Streams::Any {
        // One that has come since the fence was raised will say that it has nothing.
        let late = names(w, |proxy| {
            proxy.connected && proxy.settled_in(hold).is_none()
        });
        return match !late.is_empty() && w.in_phase < SETTLE_DEADLINE {
            true => Step::Wait(Why::Settle(late)),
            false => give_up(GiveUp::Unseen),
        };
    }
    Step::Settle {
        slots: batch,
        hold,
        streams,
    }
}

fn committed(m: &Migration, w: &World) -> Step {
    let late = names(w, |proxy| proxy.connected && proxy.switched < m.entered);
    match m.wish {
        Wish::Pause => Step::Wait(Why::Paused), // the source's copies can be looked at
        Wish::Run | Wish::Cancel if late.is_empty() || w.in_phase >= RELEASE_DEADLINE => {
            Step::Record(Advance::Reap)
        }
        Wish::Run | Wish::Cancel => Step::Wait(Why::Switch(m.entered, late)),
    }
}

/// Whether no request for what is held since this epoch is executed at the source any more, whatever
/// was sent before and by whom.
pub fn is_quiet(w: &World, hold: u64) -> bool {
    // Of those that have settled it does not matter how long they may take.
    is_fenced(w, hold, HOLD_BUDGET) && unsettled(w, hold).is_empty()
}

/// Those who were spared and have not settled.
fn unsettled(w: &World, hold: u64) -> Vec<&Incarnation> {
    let spared = w.fence.iter().flat_map(|fence| &fence.spared);
    spared
        .filter(|proxy| settled(w, proxy, hold).is_none())
        .collect()
}

/// How long a proxy that has switched may take to settle.
fn patience(given_up: &Option<(GiveUp, u32)>) -> Duration {
    match given_up {
        Some((GiveUp::Unsettled { .. }, UNSETTLED_MAX..)) => SETTLE_DEADLINE,
        Some((
            GiveUp::Unsettled { .. }
            | GiveUp::OverBudget
            | GiveUp::Unfenced
            | GiveUp::ReplicaBehind
            | GiveUp::Silent { .. }
            | GiveUp::CopyLost
            | GiveUp::Unseen
            | GiveUp::Paused,
            _,
        ))
        | None => HOLD_BUDGET,
    }
}

/// Whether the source is fenced at this epoch or a later one, in this term; and all connections that
/// proxies which were spared have named are closed.
fn is_fenced(w: &World, hold: u64, patience: Duration) -> bool {
    let Some(fence) = &w.fence else { return false };
    let is_safe = |proxy: &Incarnation| match settled(w, proxy, hold).map(|settled| &settled.lost) {
        Some(Lost::These(lost)) => lost.is_subset(&fence.closed),
        Some(Lost::Many) => false,
        None => answers(w, proxy, hold, patience), // it is waited for
    };
    fence.term == w.term && fence.epoch >= hold && fence.spared.iter().all(is_safe)
}

/// Whether a proxy holds, as it said, and has settled or may yet say so. Who is not connected any more
/// after [`SWITCH_DEADLINE`] may be dead, and is not waited for; nor is anybody for longer than that patience.
fn answers(w: &World, proxy: &Incarnation, hold: u64, patience: Duration) -> bool {
    let may_say = |proxy: &Answer| match proxy.connected {
        true => w.in_phase < patience,
        false => w.in_phase < SWITCH_DEADLINE,
    };
    let answers = |proxy: &Answer| {
        proxy.switched >= hold && (proxy.settled_in(hold).is_some() || may_say(proxy))
    };
    w.proxies.get(proxy).is_some_and(answers)
}

/// A fence that spares who answers: but for who has lost more connections than it can name.
fn fence(w: &World, hold: u64, patience: Duration) -> Step {
    let mut spare = BTreeSet::new();
    let mut close = BTreeSet::new();
    let spared = |id: &Incarnation| answers(w, id, hold, patience);
    for (incarnation, proxy) in w.proxies.iter().filter(|(id, _)| spared(id)) {
        match proxy.settled_in(hold).map(|settled| &settled.lost) {
            Some(Lost::Many) => continue,
            Some(Lost::These(lost)) => close.extend(lost.iter().cloned()),
            None => {}
        }
        spare.insert(incarnation.clone());
    }
    Step::Fence {
        epoch: hold,
        spare,
        close,
    }
}

/// What proxies have touched unseen. Any, if one of them does not know, or cannot tell: also one that was not spared
/// and had no connection left to be closed, since somebody else has closed them, or a hold before.
fn streams(w: &World, hold: u64) -> Streams {
    let Some(fence) = w.fence.as_ref().filter(|fence| !fence.hit && !w.notes_lost) else {
        return Streams::Any;
    };
    let proxies = fence.spared.iter().chain(w.proxies.keys());
    let told = proxies.map(|proxy| match settled(w, proxy, hold) {
        Some(settled) => settled.streams.clone(),
        None => Streams::Any,
    });
    told.fold(Streams::These(BTreeSet::new()), Streams::and)
}

fn settled<'a>(w: &'a World, proxy: &Incarnation, hold: u64) -> Option<&'a Settled> {
    w.proxies.get(proxy)?.settled_in(hold)
}

fn is_here(w: &World, proxy: &Incarnation) -> bool {
    w.proxies.get(proxy).is_some_and(|proxy| proxy.connected)
}

fn names(w: &World, which: impl Fn(&Answer) -> bool) -> Vec<ProxyId> {
    let which = w.proxies.values().filter(|proxy| which(proxy));
    which.map(|proxy| proxy.id.clone()).collect()
}

/// How many of so many proxies are fenced out, at most. Are more of them silent, it is not they who are
/// cut off.
pub fn may_be_fenced(proxies: usize) -> usize {
    (proxies / 5).max(1)
}

/// How long is waited after a hold was given up so often in a row.
fn pause(tries: u32) -> Duration {
    let [first, longest] = PAUSES;
    (first * 2_u32.saturating_pow(tries.saturating_sub(1))).min(longest)
}

/// The slots of which the source's copies may be deleted: they have moved, and by the store the source
/// does not own them.
pub fn reapable(m: &Migration, at_source: SlotSet) -> SlotSet {
    match m.phase {
        Phase::Reaping { .. } => m.moved.without(&at_source),
        Phase::Pending
        | Phase::Copying { .. }
        | Phase::CuttingOver { .. }
        | Phase::Committed
        | Phase::Aborting { .. }
        | Phase::Succeeded
        | Phase::Cancelled
        | Phase::Failed { .. } => SlotSet::EMPTY,
    }
}

impl Migration {
    /// A new one, done as fast as the source bears.
    pub fn new(id: MigrationId, source: GroupId, target: GroupId, slots: SlotSet) -> Self {
        Self {
            id,
            revision: 0,
            source,
            target,
            slots,
            moved: SlotSet::EMPTY,
            batch_most: BATCH_MAX,
            deferred: SlotSet::EMPTY,
            left: SlotSet::EMPTY,
            phase: Phase::Pending,
            entered: 0,
            wish: Wish::Run,
            manner: Manner::default(),
            cut_overs: 0,
        }
    }

    /// What is to be moved yet.
    pub fn remaining(&self) -> SlotSet {
        self.slots.without(&self.moved).without(&self.left)
    }

    /// Whether it is over: its slots can move again.
    pub fn is_over(&self) -> bool {
        match self.phase {
            Phase::Succeeded | Phase::Cancelled | Phase::Failed { .. } => true,
            Phase::Pending
            | Phase::Copying { .. }
            | Phase::CuttingOver { .. }
            | Phase::Committed
            | Phase::Reaping { .. }
            | Phase::Aborting { .. } => false,
        }
    }

    /// What proxies are to do with a slot of it that the source owns.
    pub fn state_of(&self, slot: Slot) -> proto::SlotState {
        let target = || self.target.clone();
        match &self.phase {
            Phase::CuttingOver { batch, .. } if batch.contains(slot) => proto::SlotState::Held {
                target: Some(target()),
            },
            Phase::Copying { .. } | Phase::CuttingOver { .. }
                if self.remaining().contains(slot) =>
            {
                proto::SlotState::Copying { target: target() }
            }
            Phase::Pending
            | Phase::Copying { .. }
            | Phase::CuttingOver { .. }
            | Phase::Committed
            | Phase::Reaping { .. }
            | Phase::Aborting { .. }
            | Phase::Succeeded
            | Phase::Cancelled
            | Phase::Failed { .. } => proto::SlotState::Serving,
        }
    }

    /// What has just become of it, for people. `gained`: slots that the target has got with it.
    pub fn news(&self, gained: &SlotSet) -> String {
        let got = if gained.is_empty() {
            String::new()
        } else {
            format!("gave slots {gained} to {}; ", self.target)
        };
        let now = match &self.phase {
            Phase::Pending => "waits".to_owned(),
            Phase::Copying { given_up: None } => "copies".to_owned(),
            Phase::Copying {
                given_up: Some((why, _)),
            } => format!("copies on: {why}"),
            Phase::CuttingOver { batch, .. } => format!("holds slots {batch}"),
            Phase::Committed => "has moved all its slots".to_owned(),
            Phase::Reaping { .. } => format!("deletes what {} has left", self.source),
            Phase::Aborting { .. } => format!("deletes what {} was given", self.target),
            Phase::Succeeded => "succeeded".to_owned(),
            Phase::Cancelled => "was cancelled".to_owned(),
            Phase::Failed { reason } => format!("failed: {reason}"),
        };
        format!("{got}{now}")
    }

    /// What becomes of it. `None`: that does not follow from its phase.
    pub fn after(&self, advance: &Advance) -> Option<Self> {
        let mut next = self.clone();
        next.phase = match (&self.phase, advance) {
            (Phase::Pending, Advance::Copy) => Phase::Copying { given_up: None },
            (Phase::Copying { given_up }, Advance::Hold(batch)) => {
                next.cut_overs += 1;
                Phase::CuttingOver {
                    batch: *batch,
                    given_up: given_up.clone(),
                }
            }
            (Phase::CuttingOver { batch, given_up }, Advance::GiveUp(why)) => {
                let same = given_up.as_ref().filter(|(last, _)| last.is_like(why));
                next.give_up(*batch, why, same.map_or(1, |(_, tries)| tries + 1))
            }
            (Phase::CuttingOver { batch, .. }, Advance::Commit) => {
                next.moved = self.moved.with(batch);
                next.batch_most = (self.batch_most * 2).min(BATCH_MAX);
                let rest = next.rest_of(None);
                if rest == Phase::Committed && self.manner.keep_source {
                    next.wish = Wish::Pause;
                }
                rest
            }
            (Phase::Pending, Advance::Abort(Ending::Cancelled)) => Phase::Cancelled,
            (
                Phase::Pending | Phase::Copying { .. } | Phase::CuttingOver { .. },
                Advance::Abort(then),
            ) => Phase::Aborting { then: then.clone() },
            (Phase::Committed, Advance::Reap) => Phase::Reaping { then: None },
            (Phase::Aborting { then }, Advance::Reap) => Phase::Reaping {
                then: Some(then.clone()),
            },
            (Phase::Aborting { then } | Phase::Reaping { then: Some(then) }, Advance::End) => {
                match then {
                    Ending::Cancelled => Phase::Cancelled,
                    Ending::Failed { reason } => Phase::Failed {
                        reason: reason.clone(),
                    },
                }
            }
            (Phase::Reaping { then: None }, Advance::End) => Phase::Succeeded,
            (
                Phase::Pending
                | Phase::Copying { .. }
                | Phase::CuttingOver { .. }
                | Phase::Committed
                | Phase::Reaping { .. }
                | Phase::Aborting { .. }
                | Phase::Succeeded
                | Phase::Cancelled
                | Phase::Failed { .. },
                Advance::Copy
                | Advance::Hold(_)
                | Advance::GiveUp(_)
                | Advance::Commit
                | Advance::Abort(_)
                | Advance::Reap
                | Advance::End,
            ) => return None,
        };
        Some(next)
    }

    /// The phase after a hold was given up, so often in a row for this reason.
    fn give_up(&mut self, batch: SlotSet, why: &GiveUp, tries: u32) -> Phase {
        let again = |tries| Some((why.clone(), tries));
        if *why == GiveUp::Unseen && tries > UNSEEN_MAX {
            return Phase::Aborting {
                then: Ending::Failed {
                    reason: format!("{tries} times in a row, {why}"),
                },
            };
        }
        if !why.is_of_size() {
            return self.rest_of(again(tries));
        }
        if batch.len() > 1 {
            self.batch_most = batch.len() / 2;
            return self.rest_of(again(1));
        }
        if !self.deferred.includes(&batch) {
            self.deferred = self.deferred.with(&batch);
            return self.rest_of(again(1));
        }
        // That a replica is slow may be no fault of the slot's, and need not stay so.
        if tries <= TRIES_MAX || *why == GiveUp::ReplicaBehind {
            return self.rest_of(again(tries));
        }
        self.left = self.left.with(&batch);
        self.rest_of(None)
    }

    /// The phase when some slots have moved, or stay.
    fn rest_of(&self, given_up: Option<(GiveUp, u32)>) -> Phase {
        match (self.remaining().is_empty(), self.left.is_empty()) {
            (false, _) => Phase::Copying { given_up },
            (true, true) => Phase::Committed,
            (true, false) => Phase::Aborting {
                then: Ending::Failed {
                    reason: format!(
                        "slots {} stay at {}: what they have changes too fast, or is too large, to be \
                         copied within {HOLD_BUDGET:?}",
                        self.left, self.source
                    ),
                },
            },
        }
    }
}

#[cfg(test)]
mod tests;
