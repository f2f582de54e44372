//! One of several lanes that copy at the same time.
//!
//! Each key has its lane, by its hash: so two copies of one key never overtake each other, and what is
//! written last at the target is what was read last at the source. A lane copies what the pass has found
//! and what has changed since, one batch at a time, until the attempt ends.
//!
//! Big keys have a lane of their own, which copies them by pieces, so that nothing else waits for them. A
//! lane that finds one hands it over, and from then on all that it hears of it, too: it stays with that
//! lane, whatever becomes of its value. When slots are drained that the key which it copies is not of, it parks
//! that, drains, and goes on where it was.
//!
//! *Draining* is its part of the cut-over: when the barrier has come, so has every change before it; then
//! all dirty keys of the slots are copied, and nothing of them is missing at the target. From then on the
//! slots are *shut*: they may be the target's at any moment, and what this lane wrote then would be lost
//! writes of clients. So nothing of them is written until the slots are reopened, and never if they are
//! released.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use proto::{SLOT_COUNT, Slot, SlotSet};
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot, watch,
    },
    time::{self, Instant},
};

use super::{
    Interruption, Throttle,
    dirty::{Dirty, Key, Order},
    pace::Portion,
    pieces::{Halt, Manner, Outcome, Way},
    relay::{Known, LATER, PIECE, Relay},
    report::Report,
};

/// Big keys that are handed over by one notice.
const HANDED: usize = 128;
/// Memory of the dirty keys of one lane from which on they are copied while the pass goes on, in turns with what
/// that finds. Before, they wait: what is copied in the end need not be copied each time that it changes.
const MUCH: usize = 32 << 20;
/// Dirty keys of one lane of which more are copied at a time, if the copy is late.
const MANY: usize = 1024;
/// Memory that the dirty keys of one lane may take. Beyond it the copy starts over: nobody could cut over
/// with so many.
const MOST_BYTES: usize = 256 << 20;

/// A replica that has not got in less what was copied need not be slow.
const WAIT_LEAST: Duration = Duration::from_millis(250);

/// Which of so many lanes a key has.
pub(super) fn of(key: &[u8], lanes: usize) -> usize {
    // What the slots leave of the hash: a copy of one slot must not have one lane.
    crc32fast::hash(key) as usize / SLOT_COUNT % lanes
}

/// Keys of a database that the pass has found, and how large they were then, in bytes, about.
pub(super) struct Found {
    pub(super) database: u32,
    pub(super) keys: Vec<(Key, u64)>,
}

/// What a lane is told.
pub(super) enum Notice {
    /// These have changed, in whatever database.
    Changed(Vec<Key>),
    /// The consumer groups of these streams may have changed.
    Touched(Vec<Key>),
    /// These are of the lane for big keys from now on, or have changed since; and another lane may have copied
    /// them in these databases, which perhaps have no key at all any more.
    Handed(Vec<Key>, BTreeSet<u32>),
    /// All changes before this barrier were told.
    Barrier(u64),
    /// Copy all of these slots that is dirty at a barrier.
    Drain(Drain),
    /// These slots were drained, or are to be, and are served by the source again.
    Reopen(SlotSet),
    /// These slots, which are shut, will never be opened again.
    Release(SlotSet),
}

/// See [`Notice::Drain`].
pub(super) struct Drain {
    /// At which barrier.
    pub(super) barrier: u64,
    pub(super) slots: SlotSet,
    /// Also all streams, dirty or not: somebody may have changed their consumer groups, which no server
    /// tells of.
    pub(super) streams: bool,
    /// Until when to wait for a replica of the target, if it has one.
    pub(super) replica: Option<std::time::Instant>,
    /// Where the result goes. Nobody there: it came too late.
    pub(super) done: oneshot::Sender<Drained>,
}

/// What came of a [`Drain`].
#[derive(Debug)]
pub(super) struct Drained {
    /// Keys that were copied for it.
    pub(super) keys: u64,
    /// Whether a replica, if one was to be waited for, has all that this lane ever wrote.
    pub(super) replicated: Replicated,
}

/// What is known of a replica after a [`Drain`]. Of several lanes the greatest counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Replicated {
    /// It has all, or there is none.
    Yes,
    /// There was hardly time to wait for it, since copying took so long.
    Late,
    /// It was waited for in vain.
    No,
}

impl Replicated {
    /// After it was waited for so long at most.
    fn after(has_all: bool, most: Duration) -> Self {
        match has_all {
            true => Self::Yes,
            false if most < WAIT_LEAST => Self::Late,
            false => Self::No,
        }
    }
}

/// Which keys a lane is for.
pub(super) enum Role {
    /// For those of its hash; hands over big ones.
    Common(mpsc::Sender<Notice>),
    /// For big ones.
    Big,
}

impl Role {
    /// How long changes are gathered since the last were copied, when the pass is over: a key that changes
    /// all the time is not copied more often.
    fn gathers(&self) -> Duration {
        match self {
            Self::Common(_) => Duration::from_millis(50),
            Self::Big => Duration::from_millis(500),
        }
    }

    /// Whether a key that is copied by pieces is parked for a drain of other slots. Not by one that takes several
    /// keys at a time: others of them may be of those slots.
    fn parks(&self) -> bool {
        matches!(self, Self::Big)
    }

    /// How many of so many dirty keys are copied before notices are heard again.
    fn batch(&self, portion: Portion, dirty: usize) -> usize {
        match self {
            Self::Common(_) if dirty > MANY => portion.many,
            Self::Common(_) => portion.keys,
            Self::Big => 1,
        }
    }
}

/// See the module.
pub(super) struct Lane {
    pub(super) number: usize,
    pub(super) role: Role,
    pub(super) relay: Relay,
    pub(super) notices: mpsc::Receiver<Notice>,
    /// `None`: the pass is over.
    pub(super) found: Option<mpsc::Receiver<Found>>,
    /// Told once, when all that the pass has found is copied.
    pub(super) passed: Option<oneshot::Sender<()>>,
    pub(super) throttle: watch::Receiver<Throttle>,
    pub(super) report: Arc<Report>,
    pub(super) state: State,
}

/// What a lane knows.
#[derive(Default)]
pub(super) struct State {
    dirty: Dirty,
    /// Slots that were drained and not reopened: nothing of them is written.
    shut: SlotSet,
    /// What is dirty of them since.
    kept: Dirty,
    /// Slots that are none of this copy's any more.
    released: SlotSet,
    /// Keys that were named as streams whose consumer groups may have changed. Scripts make proxies name keys
    /// of any type.
    touched: HashSet<Key>,
    /// Big keys whose copy was tried, of the lane for them.
    tried: HashMap<Key, Tried>,
    /// The slots of those that have changed since.
    hot: SlotSet,
    /// Keys of the lane for big keys.
    handed: HashSet<Key>,
    /// Those of them that it is still to be told of: that they have changed, and of their groups.
    handing: Dirty,
    handing_touched: Dirty,
    /// All databases of the source that have had keys.
    databases: BTreeSet<u32>,
    /// All streams that were copied.
    streams: HashSet<Key>,
    /// The newest barrier that came.
    barrier: u64,
    drain: Option<Drain>,
    /// Dirty keys were copied since the last that the pass has found: it is their turn.
    owes_found: bool,
    /// When changes were copied last.
    last_round: Option<Instant>,
    /// Before it changes are gathered.
    next_round: Option<Instant>,
}

/// How far the first copy of a big key is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tried {
    /// It has changed meanwhile, and is chased from now on.
    Once,
    /// It is over, however it went.
    Over,
}

impl State {
    /// Of a lane that knows nothing yet.
    pub(super) fn of(role: &Role) -> Self {
        let order = match role {
            Role::Common(_) => Order::Slot,
            Role::Big => Order::Age,
        };
        Self {
            dirty: Dirty::new(order),
            ..Self::default()
        }
    }

    fn take(&mut self, notice: Notice, role: &Role) {
        match notice {
            Notice::Changed(keys) => {
                for key in keys {
                    if !self.hands(&key) {
                        self.mark(key, role);
                    }
                }
            }
            Notice::Handed(keys, databases) => {
                self.databases.extend(databases);
                self.take(Notice::Changed(keys), role);
            }
            Notice::Touched(keys) => {
                for key in keys {
                    match role {
                        Role::Common(_) if self.handed.contains(&key) => {
                            self.handing_touched.insert(key);
                        }
                        Role::Common(_) | Role::Big => {
                            self.touched.insert(key);
                        }
                    }
                }
            }
            Notice::Barrier(number) => self.barrier = self.barrier.max(number),
            Notice::Drain(drain) => self.drain = Some(drain),
            Notice::Reopen(slots) => {
                self.drain.take_if(|drain| slots.includes(&drain.slots));
                self.reopen(&slots);
            }
            Notice::Release(slots) => {
                self.released = self.released.with(&slots);
                self.shut = self.shut.without(&slots);
                for keys in [&mut self.dirty, &mut self.kept, &mut self.handing] {
                    keys.take_of(&slots);
                }
                self.streams.retain(|key| !slots.owns(key));
                self.touched.retain(|key| !slots.owns(key));
            }
        }
    }

    /// A key is to be copied, again.
    fn mark(&mut self, key: Key, role: &Role) {
        if self.released.owns(&key) {
            return;
        }
        if self.shut.owns(&key) {
            self.kept.insert(key);
            return;
        }
        if self.tried.contains_key(&key) {
            self.hot = self.hot.with(&[Slot::of_key(&key)].into_iter().collect());
        }
        if self.dirty.is_empty() {
            self.next_round = self.last_round.map(|last| last + role.gathers());
        }
        self.dirty.insert(key);
    }

    /// What is to be copied as the pass has found it, and how large it is: what has changed since may be larger,
    /// and will be copied all the same. But a big one is not to wait for that: the lane for those has time for it
    /// now.
    fn as_found(&mut self, mut keys: Vec<(Key, u64)>) -> (Vec<Key>, Vec<u64>) {
        keys.retain(|(key, size)| {
            let waits = *size <= PIECE && self.dirty.contains(key);
            !waits && !self.hands(key)
        });
        keys.into_iter().unzip()
    }

    /// Whether a key is of the lane for big keys, which is told of it then.
    fn hands(&mut self, key: &Key) -> bool {
        let hands = self.handed.contains(key);
        if hands {
            self.handing.insert(key.clone());
        }
        hands
    }

    /// What the lane for big keys is told next, of so many of its keys.
    fn hand(&mut self, most: usize) -> Notice {
        Notice::Handed(self.handing.take(most), self.databases.clone())
    }

    /// Goes on with slots that were drained.
    fn reopen(&mut self, slots: &SlotSet) {
        self.shut = self.shut.without(slots);
        for key in self.kept.take_of(slots) {
            self.dirty.insert(key);
        }
    }

    /// After a big key was copied, from `begun` to `now`. When all that is dirty was copied before, it rests
    /// as long as that took, at least so long: what changes all the time is not to be read all the time.
    fn rest(&mut self, begun: Instant, now: Instant, least: Duration) {
        let over = |key: &Key| self.tried.get(key) == Some(&Tried::Over);
        if self.dirty.all(over) {
            self.next_round = Some(now + least.max(now - begun));
        }
    }

    /// Whether a key is to be copied, now or when its slot is opened again.
    fn is_to_copy(&self, key: &Key) -> bool {
        self.dirty.contains(key) || self.kept.contains(key)
    }

    /// A big key was copied, or it did not work out. Whether its first copy is over by that.
    fn was_tried(&mut self, key: &Key) -> bool {
        let (now, over) = match self.tried.get(key) {
            None if self.dirty.contains(key) => (Tried::Once, false),
            None | Some(Tried::Once) => (Tried::Over, true),
            Some(Tried::Over) => (Tried::Over, false),
        };
        self.tried.insert(key.clone(), now);
        over
    }

    /// Whether to go on with a key that is copied in part: for a drain or not, in this way.
    fn goes_on(&self, key: &Key, role: &Role, drain: Option<&Drain>, way: Way, waits: bool) -> Go {
        let changed = self.dirty.contains(key);
        match (drain, self.due()) {
            // Nobody changes it now, and everybody waits.
            (Some(drain), _) if drain.done.is_closed() => Go::Halt(Halt::Stop),
            (Some(_), _) => Go::On,
            (None, _) if changed && way == Way::Anew => Go::Halt(Halt::Stop),
            (None, Some(due)) if due.slots.owns(key) && !changed => Go::On,
            (None, Some(due)) if !due.slots.owns(key) && role.parks() => Go::Halt(Halt::Park),
            (None, Some(_)) => Go::Halt(Halt::Stop),
            (None, None) if waits => Go::Wait,
            (None, None) => Go::On,
        }
    }

    /// Tells what this lane has to copy.
    fn tell(&self, number: usize, role: &Role, report: &Report) {
        report.dirty(number, self.dirty.tally(), self.handing.tally());
        match role {
            Role::Common(_) => {}
            Role::Big => report.slow(self.dirty.tally().slots().with(&self.hot)),
        }
    }

    /// Takes out what was named of a drain's slots; which streams have to be copied for that. A key that is no
    /// stream, as far as is known here, has no groups; and one that has become a stream since it was looked
    /// at has changed, so that it is dirty.
    fn take_touched(&mut self, drain: &Drain) -> HashSet<Key> {
        let (named, others): (HashSet<Key>, HashSet<Key>) = std::mem::take(&mut self.touched)
            .into_iter()
            .partition(|key| drain.slots.owns(key));
        self.touched = others;
        let candidates = if drain.streams { &self.streams } else { &named };
        let is_ours = |key: &&Key| {
            drain.slots.owns(key) && self.streams.contains(*key) && !self.handed.contains(*key)
        };
        candidates.iter().filter(is_ours).cloned().collect()
    }

    /// The drain whose barrier has come.
    fn due(&self) -> Option<&Drain> {
        let drain = self.drain.as_ref();
        drain.filter(|drain| drain.barrier <= self.barrier)
    }
}

/// Whether to go on with a value that is copied in part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Go {
    /// Now.
    On,
    /// Later.
    Wait,
    /// No more in this call.
    Halt(Halt),
}

/// What a key that is copied by pieces waits for before each of them. Meanwhile its lane hears all notices.
pub(super) struct GoAhead<'a> {
    key: &'a Key,
    /// The drain that it is copied for, if it is for one.
    drain: Option<&'a Drain>,
    number: usize,
    role: &'a Role,
    state: &'a mut State,
    notices: &'a mut mpsc::Receiver<Notice>,
    throttle: &'a mut watch::Receiver<Throttle>,
    report: &'a Report,
}

impl GoAhead<'_> {
    /// Waits until it is time to go on, if the pace allows it from a time on; or says why not to.
    pub(super) async fn wait(&mut self, way: Way, not_before: &mut Instant) -> Option<Halt> {
        let mut hears = false;
        loop {
            while let Ok(notice) = self.notices.try_recv() {
                self.state.take(notice, self.role);
                hears = true;
            }
            if std::mem::take(&mut hears) {
                self.state.tell(self.number, self.role, self.report);
            }
            let paused = self.throttle.borrow().paused;
            let waits = paused || Instant::now() < *not_before;
            match self
                .state
                .goes_on(self.key, self.role, self.drain, way, waits)
            {
                Go::On => return None,
                Go::Halt(halt) => return Some(halt),
                Go::Wait => {}
            }
            tokio::select! {
                biased;
                notice = self.notices.recv() => match notice {
                    Some(notice) => {
                        self.state.take(notice, self.role);
                        hears = true;
                    }
                    None => return Some(Halt::Stop),
                },
                changed = self.throttle.changed() => match changed {
                    // What was waited for was reckoned by what it was before.
                    Ok(()) => *not_before = Instant::now(),
                    Err(_) => return Some(Halt::Stop),
                },
                () = time::sleep_until(*not_before), if !paused => {}
            }
        }
    }
}

impl Lane {
    /// Copies until that cannot go on.
    pub(super) async fn run(mut self) -> Interruption {
        loop {
            if let Err(why) = self.turn().await {
                return why;
            }
        }
    }

    async fn turn(&mut self) -> Result<(), Interruption> {
        while let Ok(notice) = self.notices.try_recv() {
            self.state.take(notice, &self.role);
        }
        let state = &mut self.state;
        if state.dirty.bytes() + state.kept.bytes() + state.handing.bytes() > MOST_BYTES {
            return Err(Interruption::TooManyDirty);
        }
        let handed_over = self.hand_over()?;
        self.state.tell(self.number, &self.role, &self.report);
        if matches!(self.role, Role::Big) {
            self.relay.shelf.forget(&self.state.released);
        }
        if self.state.due().is_some()
            && let Some(drain) = self.state.drain.take()
        {
            return self.drain(drain).await;
        }
        let now = Instant::now();
        if self.throttle.has_changed().unwrap_or(false) {
            self.relay.not_before = now; // what was waited for was reckoned by what it was before
        }
        let early = Some(self.relay.not_before).filter(|then| *then > now);
        let throttle = *self.throttle.borrow_and_update();
        let paused = throttle.paused || early.is_some();
        // While all slots wait for big keys, a rate is not to be spent on what changes again till then.
        let is_common = matches!(self.role, Role::Common(_));
        let yields = is_common && throttle.rate.is_some() && self.report.awaited() > 0;
        let dirty = self.state.dirty.len();
        let gathering = self.state.next_round.filter(|round| *round > now);
        let round = self.found.is_none() && dirty > 0 && gathering.is_none() && !yields;
        let much = self.state.dirty.bytes() >= MUCH;
        let much = much && !(self.found.is_some() && self.state.owes_found);
        if !paused && (round || much) {
            self.state.owes_found = true;
            self.state.last_round = Some(now);
            let portion = self.relay.portion();
            let keys = self.state.dirty.take(self.role.batch(portion, dirty));
            self.copy_everywhere(&keys, None).await?;
            if matches!(self.role, Role::Big) {
                self.state.rest(now, Instant::now(), self.role.gathers());
            }
            return Ok(());
        }
        tokio::select! {
            biased;
            notice = self.notices.recv() => match notice {
                Some(notice) => {
                    self.state.take(notice, &self.role);
                    Ok(())
                }
                None => Err(Interruption::LaneGone),
            },
            found = next(&mut self.found), if !paused && handed_over => match found {
                Some(found) => {
                    self.state.databases.insert(found.database);
                    self.state.owes_found = false;
                    self.copy_found(found).await
                }
                None => {
                    self.found = None;
                    if let Some(passed) = self.passed.take() {
                        passed.send(()).ok(); // the attempt has ended otherwise
                    }
                    Ok(())
                }
            },
            // It is left to the next turn to see it.
            changed = self.throttle.changed() => {
                self.throttle.mark_changed();
                changed.map_err(|_| Interruption::LaneGone)
            }
            () = time::sleep(self.role.gathers()), if !handed_over || yields => Ok(()),
            () = sleep_until(gathering), if dirty > 0 => Ok(()),
            () = sleep_until(early) => Ok(()),
        }
    }

    /// Tells the lane for big keys of those that are its. Whether it knows of all of them: it may have
    /// too much to do.
    fn hand_over(&mut self) -> Result<bool, Interruption> {
        let Role::Common(big) = &self.role else {
            return Ok(true);
        };
        while !self.state.handing.is_empty() {
            match big.try_reserve() {
                Ok(place) => place.send(self.state.hand(HANDED)),
                Err(TrySendError::Full(())) => return Ok(false),
                Err(TrySendError::Closed(())) => return Err(Interruption::LaneGone),
            }
        }
        Ok(true)
    }

    /// Copies keys in all databases: a change is told of without its database.
    ///
    /// The keys must have been taken before this: a database that has none of them and no other key when
    /// it is asked, and never had one, cannot be one in which one of them was written. It is asked along with
    /// the first of them.
    async fn copy_everywhere(
        &mut self,
        keys: &[Key],
        drain: Option<&Drain>,
    ) -> Result<(), Interruption> {
        if keys.is_empty() {
            return Ok(());
        }
        if self.state.databases.is_empty() {
            self.state.databases = self.relay.databases().await?;
        }
        let mut copied = BTreeSet::new();
        while let Some(database) = self.state.databases.difference(&copied).next().copied() {
            for (number, batch) in keys.chunks(Portion::LARGE.keys).enumerate() {
                let known = match copied.is_empty() && number == 0 {
                    true => Known::Nothing,
                    false => Known::Databases,
                };
                self.copy(database, batch, known, drain).await?;
            }
            copied.insert(database);
        }
        let given_up = drain.is_some_and(|drain| drain.done.is_closed());
        if matches!(self.role, Role::Big) {
            for key in keys {
                // What was broken off, since nobody waited any more, was not tried.
                if !(given_up && self.state.is_to_copy(key)) && self.state.was_tried(key) {
                    self.report.tried_big(Slot::of_key(key));
                }
            }
        }
        Ok(())
    }

    /// Copies what the pass has found.
    async fn copy_found(&mut self, found: Found) -> Result<(), Interruption> {
        let (keys, sizes) = self.state.as_found(found.keys);
        let known = Known::Sizes(&sizes);
        self.copy_own(found.database, &keys, known, None).await
    }

    async fn copy(
        &mut self,
        database: u32,
        keys: &[Key],
        known: Known<'_>,
        drain: Option<&Drain>,
    ) -> Result<(), Interruption> {
        let own = keys.iter().filter(|key| !self.state.hands(key));
        let own: Vec<Key> = own.cloned().collect();
        self.copy_own(database, &own, known, drain).await
    }

    /// Copies keys of which none was handed over.
    async fn copy_own(
        &mut self,
        database: u32,
        keys: &[Key],
        known: Known<'_>,
        drain: Option<&Drain>,
    ) -> Result<(), Interruption> {
        let mut copied = self.relay.copy(database, keys, known).await?;
        while !copied.later.is_empty() && drain.is_some_and(|drain| !drain.done.is_closed()) {
            time::sleep(LATER).await;
            let later = std::mem::take(&mut copied.later);
            let again = self.relay.copy(database, &later, Known::Databases);
            copied.add(again.await?);
        }
        self.state.databases.extend(copied.databases);
        for key in copied.later {
            self.state.mark(key, &self.role);
        }
        self.state.streams.extend(copied.streams);
        for key in copied.foreign {
            self.copy_in_pieces(database, &key, 0, drain).await?;
        }
        for (key, size) in copied.big {
            match self.role {
                Role::Common(_) => {
                    if self.state.handed.insert(key.clone()) {
                        self.report.found_big(Slot::of_key(&key));
                    }
                    self.state.handing.insert(key);
                }
                Role::Big => self.copy_in_pieces(database, &key, size, drain).await?,
            }
        }
        Ok(())
    }

    /// Copies one key by pieces. It is dirty again if that did not work out.
    async fn copy_in_pieces(
        &mut self,
        database: u32,
        key: &Key,
        size: u64,
        drain: Option<&Drain>,
    ) -> Result<(), Interruption> {
        let mut parked = None;
        loop {
            let Self {
                number,
                relay,
                notices,
                role,
                state,
                throttle,
                report,
                ..
            } = self;
            let manner = Manner {
                hurry: drain.is_some(),
                changes: state.tried.contains_key(key),
            };
            let go_ahead = GoAhead {
                key,
                drain,
                number: *number,
                role,
                state,
                notices,
                throttle,
                report,
            };
            let value = (database, key);
            let copied = relay.copy_in_pieces(value, size, manner, parked.take(), go_ahead);
            match copied.await? {
                Outcome::Parked(partial) => {
                    parked = Some(partial);
                    if let Some(drain) = self.state.drain.take() {
                        Box::pin(self.drain(drain)).await?;
                    }
                }
                Outcome::Done { stream } => {
                    if stream {
                        self.state.streams.insert(key.clone());
                    }
                    return Ok(());
                }
                Outcome::Unreadable => {
                    if !self.relay.copy_whole(database, key).await? {
                        return Err(Interruption::Incompatible);
                    }
                    return Ok(());
                }
                Outcome::Stopped => {
                    self.state.mark(key.clone(), &self.role);
                    return Ok(());
                }
                Outcome::Changed if drain.is_some() => {}
                Outcome::Changed => {
                    self.state.mark(key.clone(), &self.role);
                    return Ok(());
                }
                Outcome::Later(why) => {
                    self.report.waits(Some(why));
                    time::sleep(LATER).await;
                    self.report.waits(None);
                }
            }
        }
    }

    /// Copies what is dirty of the slots, and writes nothing of them from then on.
    async fn drain(&mut self, drain: Drain) -> Result<(), Interruption> {
        self.relay.books = false;
        let state = &mut self.state;
        state.shut = state.shut.with(&drain.slots);
        let mut keys = state.dirty.take_of(&drain.slots);
        keys.extend(state.kept.take_of(&drain.slots));
        let mut streams = state.take_touched(&drain);
        for key in &keys {
            streams.remove(key);
        }
        if matches!(self.role, Role::Common(_)) {
            keys.extend(streams.drain());
        }
        self.copy_everywhere(&keys, Some(&drain)).await?;
        let count = keys.len() + streams.len();
        self.regroup(&drain, streams).await?;
        self.tell_of_handed().await?;
        self.relay.check_marks().await?;
        let replicated = match drain.replica {
            None => Replicated::Yes,
            Some(then) => {
                let most = then.saturating_duration_since(std::time::Instant::now());
                Replicated::after(self.relay.wait_for_replica(most).await?, most)
            }
        };
        let keys = count as u64;
        // A drain that was given up half-way ends here, too: nobody is there to be told.
        if drain.done.send(Drained { keys, replicated }).is_err() {
            self.state.reopen(&drain.slots);
        }
        self.relay.books = true;
        Ok(())
    }

    /// Copies what big streams have besides their entries.
    async fn regroup(&mut self, drain: &Drain, streams: HashSet<Key>) -> Result<(), Interruption> {
        for key in streams {
            for database in self.state.databases.clone() {
                self.relay.enter(database).await?;
                if self.relay.regroup(&key).await?.is_some() {
                    let keys = std::slice::from_ref(&key);
                    self.copy(database, keys, Known::Databases, Some(drain))
                        .await?;
                }
            }
        }
        Ok(())
    }

    /// Tells the lane for big keys of all that was handed over, before it is asked to drain.
    async fn tell_of_handed(&mut self) -> Result<(), Interruption> {
        let Role::Common(big) = &self.role else {
            return Ok(());
        };
        let handed = self.state.hand(usize::MAX);
        let touched = self.state.handing_touched.take(usize::MAX);
        for notice in [handed, Notice::Touched(touched)] {
            let sent = big.send(notice).await;
            sent.map_err(|_| Interruption::LaneGone)?;
        }
        Ok(())
    }
}

/// What the pass finds next; never, when it is over.
async fn next(found: &mut Option<mpsc::Receiver<Found>>) -> Option<Found> {
    match found {
        Some(found) => found.recv().await,
        None => std::future::pending().await,
    }
}

/// Until then; for ever, if it is never.
async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Progress, *};

    fn key(text: &str) -> Key {
        Key::from(text.as_bytes())
    }

    fn slot_of(key: &str) -> SlotSet {
        [proto::Slot::of_key(key.as_bytes())].into_iter().collect()
    }

    fn changed(state: &mut State, role: &Role, keys: &[&str]) {
        let keys = keys.iter().map(|text| key(text)).collect();
        state.take(Notice::Changed(keys), role);
    }

    #[test]
    fn what_changes_of_shut_slots_is_kept_and_of_released_ones_forgotten() {
        let mut state = State {
            shut: slot_of("a").with(&slot_of("b")),
            ..State::default()
        };
        changed(&mut state, &Role::Big, &["a", "b", "c"]);
        assert!(["a", "c"].iter().all(|name| state.is_to_copy(&key(name))));
        assert!(!state.is_to_copy(&key("d")));
        assert_eq!(state.dirty.take(9), [key("c")]);
        state.take(Notice::Release(slot_of("a")), &Role::Big);
        state.take(Notice::Reopen(slot_of("a").with(&slot_of("b"))), &Role::Big);
        assert_eq!(state.dirty.take(9), [key("b")]);
        changed(&mut state, &Role::Big, &["a", "b"]);
        assert_eq!(state.dirty.take(9), [key("b")]);
    }

    #[test]
    fn a_drain_waits_for_its_barrier_and_ends_with_its_hold() {
        let mut state = State::default();
        let drain = |barrier| {
            let (done, _) = oneshot::channel();
            Notice::Drain(Drain {
                barrier,
                slots: slot_of("a"),
                streams: false,
                replica: None,
                done,
            })
        };
        state.take(drain(2), &Role::Big);
        state.take(Notice::Barrier(1), &Role::Big);
        assert!(state.due().is_none());
        state.take(Notice::Barrier(2), &Role::Big);
        assert!(state.due().is_some());
        state.take(Notice::Reopen(slot_of("b")), &Role::Big);
        assert!(state.due().is_some());
        state.take(Notice::Reopen(slot_of("a")), &Role::Big);
        assert!(state.due().is_none());
    }

    #[test]
    fn a_value_that_changes_is_copied_on_only_if_it_is_chased() {
        let mut state = State::default();
        let key = key("a");
        let go = |state: &State, way| state.goes_on(&key, &Role::Big, None, way, false);
        let waits = |state: &State| state.goes_on(&key, &Role::Big, None, Way::Chased, true);
        let stop = Go::Halt(Halt::Stop);
        assert_eq!(go(&state, Way::Anew), Go::On);
        assert_eq!(waits(&state), Go::Wait);
        changed(&mut state, &Role::Big, &["a"]);
        assert_eq!(go(&state, Way::Anew), stop);
        assert_eq!(go(&state, Way::Chased), Go::On);
        // Whoever waits for slots does not wait for what is not the last pass.
        let drain = |slots| {
            let (done, result) = oneshot::channel();
            let drain = Drain {
                barrier: 0,
                slots,
                streams: false,
                replica: None,
                done,
            };
            (drain, result)
        };
        let (own, result) = drain(slot_of("a"));
        let for_own =
            |state: &State, own| state.goes_on(&key, &Role::Big, Some(own), Way::Anew, true);
        assert_eq!(for_own(&state, &own), Go::On);
        drop(result);
        assert_eq!(for_own(&state, &own), stop);
        state.drain = Some(own);
        assert_eq!(go(&state, Way::Chased), stop);
        state.dirty.take(1);
        assert_eq!(go(&state, Way::Chased), Go::On);
        // Where other slots are waited for, it goes on later, but for what is worth nothing any more.
        state.drain = Some(drain(slot_of("b")).0);
        for way in [Way::Anew, Way::Chased] {
            assert_eq!(go(&state, way), Go::Halt(Halt::Park));
            let common = Role::Common(mpsc::channel(1).0);
            assert_eq!(state.goes_on(&key, &common, None, way, false), stop);
        }
        assert_eq!(waits(&state), Go::Halt(Halt::Park));
        changed(&mut state, &Role::Big, &["a"]);
        assert_eq!(go(&state, Way::Anew), stop);
        assert_eq!(go(&state, Way::Chased), Go::Halt(Halt::Park));
    }

    #[tokio::test]
    async fn a_piece_is_waited_for_no_longer_than_it_must() {
        let key = key("a");
        let (notices, mut heard) = mpsc::channel(1);
        let (throttle, mut throttled) = watch::channel(Throttle::default());
        let (report, mut state) = (Report::new(0), State::default());
        let mut go_ahead = GoAhead {
            key: &key,
            drain: None,
            number: 0,
            role: &Role::Big,
            state: &mut state,
            notices: &mut heard,
            throttle: &mut throttled,
            report: &report,
        };
        let soon = Instant::now() + Duration::from_millis(20);
        assert_eq!(go_ahead.wait(Way::Anew, &mut soon.clone()).await, None);
        assert!(Instant::now() >= soon);
        let never = Instant::now() + Duration::from_hours(1);
        // What was waited for was of another rate, or of none.
        for paused in [true, false] {
            let mut then = never;
            let wait = go_ahead.wait(Way::Anew, &mut then);
            let wait = time::timeout(Duration::from_millis(100), wait);
            let (waited, ()) = tokio::join!(wait, async {
                throttle.send_modify(|throttle| throttle.paused = paused);
            });
            assert_eq!(waited.ok(), (!paused).then_some(None), "{paused}");
            assert!(then < never);
        }
        let (done, _result) = oneshot::channel();
        let drain = Notice::Drain(Drain {
            barrier: 0,
            slots: slot_of("b"),
            streams: false,
            replica: None,
            done,
        });
        let changed = Notice::Changed(vec![key.clone()]);
        let halts = [
            (changed, Way::Anew, Halt::Stop),
            (drain, Way::Chased, Halt::Park),
        ];
        for (notice, way, halt) in halts {
            let mut then = never;
            let wait = go_ahead.wait(way, &mut then);
            let (waited, told) = tokio::join!(wait, notices.send(notice));
            assert!(told.is_ok());
            assert_eq!(waited, Some(halt));
        }
        let mut progress = Progress::default();
        report.tell(&mut progress, Duration::ZERO);
        assert_eq!(progress.big, 1); // what is heard meanwhile is told
    }

    #[test]
    fn a_first_copy_is_over_when_it_worked_out_or_was_tried_twice() {
        let mut state = State::default();
        assert!(state.was_tried(&key("a")));
        assert!(!state.was_tried(&key("a")));
        changed(&mut state, &Role::Big, &["b"]);
        assert!(!state.was_tried(&key("b")));
        assert!(state.was_tried(&key("b")));
        assert!(!state.was_tried(&key("b")));
    }

    #[test]
    fn it_rests_when_all_that_is_dirty_was_copied_before() {
        let mut state = State::default();
        let now = Instant::now();
        let seconds = |n| now + Duration::from_secs(n);
        let least = Duration::from_secs(1);
        state.was_tried(&key("a"));
        changed(&mut state, &Role::Big, &["a", "b"]);
        state.rest(now, seconds(3), least);
        assert_eq!(state.next_round, None);
        state.was_tried(&key("b"));
        state.rest(now, seconds(3), least);
        assert_eq!(state.next_round, None);
        state.was_tried(&key("b"));
        state.rest(now, seconds(3), least);
        assert_eq!(state.next_round, Some(seconds(6)));
        state.rest(now, now, least);
        assert_eq!(state.next_round, Some(seconds(1)));
    }

    #[test]
    fn of_many_more_are_taken_at_a_time_if_the_portion_allows_it() {
        let common = Role::Common(mpsc::channel(1).0);
        let Portion { keys, many, .. } = Portion::HASTY;
        assert!(many > keys);
        assert_eq!(common.batch(Portion::HASTY, MANY), keys);
        assert_eq!(common.batch(Portion::HASTY, MANY + 1), many);
        assert_eq!(common.batch(Portion::SMALL, MANY + 1), keys);
        assert_eq!(Role::Big.batch(Portion::HASTY, MANY + 1), 1);
    }

    #[test]
    fn a_replica_is_slow_only_if_it_had_time() {
        let after = |has_all, millis| Replicated::after(has_all, Duration::from_millis(millis));
        assert_eq!(after(true, 0), Replicated::Yes);
        assert_eq!(after(false, 249), Replicated::Late);
        assert_eq!(after(false, 250), Replicated::No);
        // The lane for big keys comes after the others have waited.
        assert_eq!(after(false, 250).max(after(false, 0)), Replicated::No);
    }

    #[test]
    fn what_was_handed_over_stays_so() {
        let (big, _) = mpsc::channel(1);
        let role = Role::Common(big);
        let mut state = State {
            databases: [0, 7].into(),
            ..State::default()
        };
        state.handed.insert(key("a"));
        state.streams.insert(key("c"));
        changed(&mut state, &role, &["a", "b"]);
        state.take(Notice::Touched(vec![key("a"), key("c")]), &role);
        assert_eq!(state.dirty.take(9), [key("b")]);
        assert_eq!(state.touched, [key("c")].into());
        assert_eq!(state.handing_touched.take(9), [key("a")]);
        // Where it may have been copied before is handed over with it.
        let mut of_big = State::default();
        of_big.take(state.hand(9), &Role::Big);
        assert_eq!(of_big.dirty.take(9), [key("a")]);
        assert_eq!(of_big.databases, [0, 7].into());
    }

    #[test]
    fn what_has_changed_since_it_was_found_is_not_copied_as_found() {
        let (big, _) = mpsc::channel(1);
        let mut state = State::default();
        state.handed.insert(key("b"));
        changed(&mut state, &Role::Common(big), &["a"]);
        let found = [("a", PIECE), ("b", 2), ("c", 3)].map(|(name, size)| (key(name), size));
        let copied = state.as_found(found.to_vec());
        assert_eq!(copied, (vec![key("c")], vec![3]));
        let big = state.as_found(vec![(key("a"), PIECE + 1)]);
        assert_eq!(big, (vec![key("a")], vec![PIECE + 1]));
        // But later, or by the lane for big keys.
        assert_eq!(state.dirty.take(9), [key("a")]);
        assert_eq!(state.handing.take(9), [key("b")]);
    }

    #[test]
    fn of_what_was_named_only_streams_are_copied_for_it() {
        let named = ["a", "b", "c", "d"].map(key);
        for role in [Role::Common(mpsc::channel(1).0), Role::Big] {
            for (streams, expected) in [(false, vec![key("a")]), (true, vec![key("a"), key("e")])] {
                let mut state = State {
                    streams: ["a", "d", "e"].map(key).into(),
                    ..State::default()
                };
                state.take(Notice::Touched(named.to_vec()), &role);
                let (done, _) = oneshot::channel();
                let slots = slot_of("a").with(&slot_of("b")).with(&slot_of("e"));
                let drain = Drain {
                    barrier: 0,
                    slots,
                    streams,
                    replica: None,
                    done,
                };
                let mut taken: Vec<Key> = state.take_touched(&drain).into_iter().collect();
                taken.sort();
                assert_eq!(taken, expected);
                // Of other slots they are remembered.
                assert_eq!(state.touched, ["c", "d"].map(key).into());
            }
        }
    }

    #[test]
    fn the_keys_of_one_slot_use_all_lanes() {
        let mut counts = [0; 4];
        for n in 0..1000 {
            counts[of(format!("{{tag}}:{n}").as_bytes(), 4)] += 1;
        }
        assert!(counts.iter().all(|count| *count > 100), "{counts:?}");
    }
}
