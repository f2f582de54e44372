//! Client-side caching: which clients hold which keys, and telling them when those have changed.
//!
//! The requests of a session that tracks go by tracking pipes ([`crate::backend`]), on which the server
//! remembers what is read. Here it is remembered for which session, and when the server says that a key
//! has changed, these are told: by a push, or by a message to the client they redirect to, of whatever
//! worker.
//!
//! A message goes **behind every reply that its session still awaits**, and whoever reads is registered
//! before the read is sent. So it does not matter which of reply and message comes first, nor on which
//! connection: what a client is told comes behind all values that may be older, and a read that is sent
//! later registers anew. Where messages may have been missed (a connection is lost, slots move or are
//! held, the table is full), those concerned are told that what they hold is no longer true, before
//! anything else can change it.
//!
//! Invariant: whatever a client holds and has not been told of, it is told of when it changes.

use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use proto::{ServerAddr, Slot, Topology};
use tokio::time::Instant;

use crate::{
    backend::{Hearing, Lane, Way},
    command::{self, Command, Kind, flag},
    crew::Untold,
    resp::{Protocol, Request, put_simple},
    session::{Clients, Dispatched, Session},
    worker::Worker,
};

mod message;
mod options;
mod prefixes;
mod table;

use message::Stale;
use options::{Asked, NO_SUCH_TARGET};
pub(crate) use options::{Mode, Options, caching, put_info, put_redirect};
use prefixes::Strata;
pub(crate) use table::Tracker;
use table::{Entry, Table};

/// How long `CLIENT TRACKING` may wait for servers to agree, or for other workers to answer. Servers that
/// are silent for longer agree later; what was missed by then is told.
const PATIENCE: Duration = Duration::from_secs(1);
/// Keys that wait to be told to the client that is redirected to, at most; beyond, it is told that all
/// are stale.
const REDIRECTED_MAX: usize = 4096;

/// Of a session that tracks, or is about to.
#[derive(Debug)]
pub(crate) struct Tracking {
    tracker: Tracker,
    /// `None`: it does not track yet.
    options: Option<Options>,
    /// A `CLIENT CACHING` waits for its command.
    caching: bool,
    /// The client that is redirected to was gone when it was to be told something.
    broken: bool,
    /// It was told that all that it has read is stale, and has asked for nothing since.
    told_all: bool,
    /// It has never been told that it tracks.
    fresh: bool,
    /// The worker of the client that is redirected to.
    home: usize,
    settling: Option<Settling>,
    /// What the client redirected to is to be told, once what has this number of the outbox has left.
    redirected: VecDeque<(u32, Owned)>,
    /// Keys in there.
    redirected_keys: usize,
    /// Keys that are read on a lease, of which no server will tell.
    unheard: Vec<Box<[u8]>>,
}

/// A `CLIENT TRACKING` whose reply has to wait; so does all that its session asks for behind it.
#[derive(Debug)]
enum Settling {
    /// It is asked which worker has the client to redirect to.
    Target,
    /// Not all servers have agreed to tell of its prefixes.
    Prefixes { number: u32, until: Instant },
}

/// [`Stale`], kept.
#[derive(Clone, Debug)]
enum Owned {
    All,
    Keys(Vec<Box<[u8]>>),
}

impl Owned {
    fn of(stale: &Stale<'_>) -> Self {
        match stale {
            Stale::All => Self::All,
            Stale::Keys(keys) => Self::Keys(keys.iter().map(|&key| key.into()).collect()),
        }
    }

    fn borrow(&self) -> Stale<'_> {
        match self {
            Self::All => Stale::All,
            Self::Keys(keys) => Stale::Keys(keys.iter().map(AsRef::as_ref).collect()),
        }
    }

    fn keys(&self) -> usize {
        match self {
            Self::All => 0,
            Self::Keys(keys) => keys.len(),
        }
    }
}

impl Tracking {
    fn new(tracker: Tracker) -> Self {
        Self {
            tracker,
            options: None,
            caching: false,
            broken: false,
            told_all: true,
            fresh: true,
            home: 0,
            settling: None,
            redirected: VecDeque::new(),
            redirected_keys: 0,
            unheard: Vec::new(),
        }
    }

    /// What it has asked for, if it tracks.
    pub(crate) fn options(&self) -> Option<&Options> {
        self.options.as_ref()
    }

    /// The pipes its requests go by, if not the usual ones.
    pub(crate) fn hearing(&self) -> Option<Hearing> {
        let options = self.options.as_ref()?;
        if options.no_loop {
            return Some(Hearing::Own(self.tracker));
        }
        match options.mode {
            Mode::All | Mode::OptIn | Mode::OptOut => Some(Hearing::Shared),
            Mode::Broadcast(_) => None,
        }
    }

    /// Its own pipes hear of all changes.
    pub(crate) fn own_broadcast(&self) -> Option<Hearing> {
        let options = self.options.as_ref()?;
        match options.mode {
            Mode::Broadcast(_) if options.no_loop => Some(Hearing::Own(self.tracker)),
            Mode::Broadcast(_) | Mode::All | Mode::OptIn | Mode::OptOut => None,
        }
    }

    /// A `CLIENT CACHING` was accepted: it is about the next command, or transaction.
    pub(crate) fn cache_next(&mut self) {
        self.caching = true;
    }

    pub(crate) fn caches_next(&self) -> bool {
        self.caching
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether it is told of what it reads now.
    fn remembers(&self) -> bool {
        match self.options.as_ref().map(|options| &options.mode) {
            Some(Mode::All) => true,
            Some(Mode::OptIn) => self.caching,
            Some(Mode::OptOut) => !self.caching,
            Some(Mode::Broadcast(_)) | None => false,
        }
    }

    /// Bytes of memory it owns, about.
    pub(crate) fn memory(&self) -> usize {
        let prefixes = match self.options.as_ref().map(|options| &options.mode) {
            Some(Mode::Broadcast(prefixes)) => {
                prefixes.iter().map(|prefix| 48 + prefix.len()).sum()
            }
            Some(Mode::All | Mode::OptIn | Mode::OptOut) | None => 0,
        };
        size_of::<Self>() + prefixes + self.redirected_keys * 64
    }
}

/// All sessions of a worker that track.
pub(crate) struct Trackers {
    table: Table,
    strata: Strata,
    sessions: HashMap<Tracker, u32>,
    /// The number the last session took.
    last: Tracker,
    /// Sessions whose `CLIENT TRACKING` is not answered yet.
    settling: Vec<u32>,
    /// What servers have agreed to tell of in this turn.
    agreed: Vec<(Hearing, bool)>,
    /// Sessions with messages for the client they redirect to.
    redirecting: Vec<u32>,
    /// Where clients that others redirect to are; looked at again each time.
    targets: HashMap<u64, u32>,
    /// Registrations at most.
    most: usize,
    /// Messages told, since they were last counted.
    told: u64,
    /// Bytes it was last counted with.
    counted: usize,
}

/// Targets that are remembered at most.
const TARGETS: usize = 1024;

impl Trackers {
    /// `most` registrations are remembered.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            table: Table::default(),
            strata: Strata::default(),
            sessions: HashMap::new(),
            last: 0,
            settling: Vec::new(),
            agreed: Vec::new(),
            redirecting: Vec::new(),
            targets: HashMap::new(),
            most,
            told: 0,
            counted: 0,
        }
    }

    fn is_idle(&self) -> bool {
        self.agreed.is_empty()
            && self.settling.is_empty()
            && self.redirecting.is_empty()
            && self.told == 0
    }

    fn enlist(&mut self, session: u32) -> Tracker {
        self.last = self.last.wrapping_add(1);
        self.sessions.insert(self.last, session);
        self.last
    }

    /// What the connections of a stratum are to be told of; more may come behind.
    pub(crate) fn prefixes(&self, stratum: u32) -> &[Rc<[u8]>] {
        self.strata.prefixes(stratum)
    }

    pub(crate) fn strata(&self) -> Vec<u32> {
        self.strata.needed().collect()
    }

    /// Of a session with pipes of its own: its prefixes, if it is told of all changes by this one.
    pub(crate) fn own_prefixes<'c>(
        &self,
        clients: &'c Clients,
        tracker: Tracker,
        way: Way,
    ) -> Option<Vec<&'c [u8]>> {
        let session = clients.find(*self.sessions.get(&tracker)?)?;
        if session.broadcast_way() != Some(way) {
            return None;
        }
        match &session.client.tracked()?.mode {
            Mode::Broadcast(prefixes) => Some(prefixes.iter().map(AsRef::as_ref).collect()),
            Mode::All | Mode::OptIn | Mode::OptOut => None,
        }
    }

    /// The servers of a pipe have agreed to tell of this; `first`: until then they did not tell, since it
    /// was opened.
    pub(crate) fn agree(&mut self, hearing: Hearing, first: bool) {
        self.agreed.push((hearing, first));
    }

    /// A server says something on a tracking pipe that nobody asked for.
    pub(crate) fn hear(&mut self, clients: &mut Clients, hearing: Hearing, push: &[u8]) {
        let Some(stale) = message::parse(push) else {
            return;
        };
        match (hearing, stale) {
            (Hearing::Shared, Stale::All) => self.forget_all(clients),
            (Hearing::Shared, Stale::Keys(keys)) => {
                for key in keys {
                    if let Some(entry) = self.table.take(key) {
                        self.tell_entry(clients, &entry);
                    }
                }
            }
            (Hearing::Own(tracker), stale) => self.tell(clients, tracker, None, &stale),
            (Hearing::Broadcast(stratum), Stale::All) => self.tell_stratum(clients, stratum),
            (Hearing::Broadcast(stratum), Stale::Keys(keys)) => {
                let strata = std::mem::take(&mut self.strata);
                for (keys, listeners) in strata.matching(stratum, &keys) {
                    let stale = Stale::Keys(keys);
                    for &tracker in listeners {
                        self.tell(clients, tracker, Some(true), &stale);
                    }
                }
                self.strata = strata;
            }
        }
    }

    /// Nothing that any session has read is true any more.
    fn forget_all(&mut self, clients: &mut Clients) {
        self.table.clear();
        let all: Vec<Tracker> = self.sessions.keys().copied().collect();
        for tracker in all {
            self.tell(clients, tracker, Some(false), &Stale::All);
        }
    }

    /// Messages about the keys in these slots may have been missed: on a pipe of this kind.
    pub(crate) fn missed(
        &mut self,
        clients: &mut Clients,
        hearing: Hearing,
        slots: impl Fn(Slot) -> bool,
    ) {
        match hearing {
            Hearing::Shared => {
                let entries = self.table.take_slots(slots);
                let mut holders: Vec<Tracker> =
                    entries.iter().flat_map(Entry::holders).copied().collect();
                holders.sort_unstable();
                holders.dedup();
                for tracker in holders {
                    self.tell(clients, tracker, Some(false), &Stale::All);
                }
            }
            Hearing::Own(tracker) => self.tell(clients, tracker, None, &Stale::All),
            Hearing::Broadcast(stratum) => self.tell_stratum(clients, stratum),
        }
    }

    fn tell_stratum(&mut self, clients: &mut Clients, stratum: u32) {
        for tracker in self.strata.listeners(stratum) {
            self.tell(clients, tracker, Some(true), &Stale::All);
        }
    }

    /// Slots move, or are about to: their keys are told and forgotten, one by one.
    fn move_slots(&mut self, clients: &mut Clients, mut moves: impl FnMut(Slot) -> bool) {
        for entry in self.table.take_slots(&mut moves) {
            self.tell_entry(clients, &entry);
        }
        if !Slot::all().any(moves) {
            return;
        }
        // Of those with pipes of their own it is not known here which keys they hold.
        let all: Vec<(Tracker, u32)> = self.sessions.iter().map(|(&t, &s)| (t, s)).collect();
        for (tracker, session) in all {
            let own = |session: &Session| {
                let tracking = session.client.tracking.as_ref();
                tracking.and_then(|tracking| tracking.hearing()) == Some(Hearing::Own(tracker))
            };
            if clients.find(session).is_some_and(own) {
                self.tell(clients, tracker, Some(false), &Stale::All);
            }
        }
    }

    fn tell_entry(&mut self, clients: &mut Clients, entry: &Entry) {
        for &tracker in entry.holders() {
            self.tell(
                clients,
                tracker,
                Some(false),
                &Stale::Keys(vec![&entry.key]),
            );
        }
    }

    /// Tells a session, or the client it redirects to. `broadcast`: it concerns only those that are told
    /// of all changes, or only those told of what they have read.
    fn tell(
        &mut self,
        clients: &mut Clients,
        tracker: Tracker,
        broadcast: Option<bool>,
        stale: &Stale<'_>,
    ) {
        let Some(&id) = self.sessions.get(&tracker) else {
            return; // it has left, and what it was registered for with it
        };
        let session = clients.session(id);
        let protocol = session.client.protocol;
        let Some(tracking) = &mut session.client.tracking else {
            return;
        };
        let Some(options) = &tracking.options else {
            return;
        };
        if broadcast.is_some_and(|broadcast| options.broadcasts() != broadcast) {
            return;
        }
        if *stale == Stale::All {
            // It holds nothing yet, or nothing any more. Who hears of prefixes may hold what another of
            // the client's connections has read.
            let told = match options.mode {
                Mode::Broadcast(_) => tracking.fresh,
                Mode::All | Mode::OptIn | Mode::OptOut => {
                    std::mem::replace(&mut tracking.told_all, true)
                }
            };
            if told {
                return;
            }
        }
        match (options.redirect, protocol) {
            (Some(_), _) => self.redirect(clients, id, stale),
            (None, Protocol::Resp3) => {
                self.told += 1;
                let mut push = Vec::new();
                message::put_push(stale, &mut push);
                clients.push(id, &push);
            }
            // There is no way to tell it anything, as in Redis.
            (None, Protocol::Resp2) => {}
        }
    }

    fn redirect(&mut self, clients: &mut Clients, id: u32, stale: &Stale<'_>) {
        let number = clients.mark(id);
        let Some(tracking) = &mut clients.session(id).client.tracking else {
            return;
        };
        if tracking.redirected.is_empty() {
            self.redirecting.push(id);
        }
        let mut stale = Owned::of(stale);
        if tracking.redirected_keys + stale.keys() > REDIRECTED_MAX {
            stale = Owned::All;
        }
        if let Owned::All = stale {
            tracking.redirected.clear(); // it says as much
            tracking.redirected_keys = 0;
        }
        tracking.redirected_keys += stale.keys();
        tracking.redirected.push_back((number, stale));
    }

    /// The session of a client that others redirect to, or that redirects.
    fn target(&mut self, clients: &Clients, client: u64) -> Option<u32> {
        let known = self.targets.get(&client).copied();
        let is = |&id: &u32| {
            clients
                .find(id)
                .is_some_and(|session| session.client.id == client)
        };
        if let Some(id) = known.filter(is) {
            return Some(id);
        }
        if self.targets.len() >= TARGETS {
            self.targets.clear();
        }
        let found = clients.of_client(client)?;
        self.targets.insert(client, found);
        Some(found)
    }

    /// Tells how much memory it holds.
    fn count(&mut self, clients: &mut Clients) {
        let now = self.table.memory() + self.strata.memory();
        clients.account.recount(&mut self.counted, now);
    }
}

/// What a worker does for its sessions that track.
impl Worker {
    /// A request of a session that tracks, or is about to. `None`: it goes the usual way.
    pub(crate) fn track_request(&mut self, id: u32, request: &Request<'_>) -> Option<Dispatched> {
        let tracking = self.clients.session(id).client.tracking.as_mut()?;
        if tracking.settling.is_some() {
            return Some(Dispatched::Waits);
        }
        let command = command::find(request)?;
        if tracking.options.is_none() || !command.accepts(request.argc()) {
            return None;
        }
        tracking.told_all &= command.words().0 == "client";
        // Should it have to wait, it comes here again.
        if tracking.remembers() {
            self.remember(id, command, request);
        }
        None
    }

    /// A request of a session that tracks is under way, or answered. What the table has no room for is
    /// told now: behind the reply to what has just been registered.
    pub(crate) fn request_tracked(&mut self, id: u32, request: &Request<'_>) {
        let Self {
            clients, trackers, ..
        } = self;
        while let Some(entry) = trackers.table.evict(trackers.most) {
            trackers.tell_entry(clients, &entry);
        }
        trackers.count(clients);
        let session = self.clients.session(id);
        if session.detour.is_none()
            && let Some(tracking) = &mut session.client.tracking
        {
            tracking.unheard = Vec::new();
        }
        if let Some(way) = session.broadcast_way() {
            self.backends.hear_everywhere(way, &[], self.clock.micros()); // SELECT and HELLO change it
        }
        let client = &mut self.clients.session(id).client;
        if let Some(tracking) = &mut client.tracking
            && client.transaction.is_none()
            && !request.arg(0).eq_ignore_ascii_case(b"CLIENT")
        {
            tracking.caching = false;
        }
    }

    /// What a session asked for on a lease is answered. Of what it has read there no server tells; so it
    /// is told at once.
    pub(crate) fn tell_unheard(&mut self, id: u32) {
        let Self {
            clients, trackers, ..
        } = self;
        let Some(tracking) = &mut clients.session(id).client.tracking else {
            return;
        };
        let tracker = tracking.tracker;
        for key in std::mem::take(&mut tracking.unheard) {
            trackers.tell(clients, tracker, Some(false), &Stale::Keys(vec![&key]));
        }
    }

    /// Registers the session for what it is about to read.
    fn remember(&mut self, id: u32, command: &Command, request: &Request<'_>) {
        let Self {
            clients,
            trackers,
            serving,
            ..
        } = self;
        let session = clients.session(id);
        // Whether it will be on a lease is known only then.
        let leases = session.watch.is_some() || command.flags & flag::BLOCKING != 0;
        let client = &mut session.client;
        let Some(tracking) = &mut client.tracking else {
            return;
        };
        let (table, tracker) = (&mut trackers.table, tracking.tracker);
        let shares = tracking.hearing() == Some(Hearing::Shared);
        let unheard = &mut tracking.unheard;
        unheard.clear();
        let mut register = |command: &Command, request: &Request<'_>| {
            // A script may read the keys it declares.
            let reads = command.flags & flag::READONLY != 0 || command.kind() == Kind::Script;
            if reads && command.flags & flag::PUBSUB == 0 {
                command.visit_keys(request, |index| {
                    let key = request.arg(index);
                    if shares {
                        table.register(key, Slot::of_key(key), tracker);
                    }
                    if leases {
                        unheard.push(key.into());
                    }
                });
            }
        };
        match &client.transaction {
            None => register(command, request),
            Some(transaction) if command.is_never_queued() => {
                transaction.visit(&serving.limits, register);
            }
            Some(_) => {}
        }
    }

    /// `CLIENT TRACKING`.
    pub(crate) fn client_tracking(&mut self, id: u32, request: &Request<'_>) -> Dispatched {
        let session = self.clients.session(id);
        // What follows takes another pipe, which could overtake what is under way on this one.
        if session.outbox.in_flight() > 0 {
            return Dispatched::Waits;
        }
        let (target, asked) = Asked::parse(request);
        let Some(target) = target else {
            let number = self.clients.session(id).outbox.reserve();
            self.track(id, number, asked, 0);
            self.stats.requests_local.add(1);
            self.taken(id);
            return Dispatched::Done;
        };
        let target = u64::try_from(target).unwrap_or(0); // no client has that
        let home = move |worker: &mut Self| {
            let here = worker.clients.of_client(target);
            here.map(|_| worker.crew.own())
        };
        let done = self.ask_all_then(id, home, move |worker, number, homes| {
            if let Some(tracking) = &mut worker.clients.session(id).client.tracking {
                tracking.settling = None;
            }
            match homes.map(|homes| homes.into_iter().flatten().next()) {
                Ok(Some(home)) => worker.track(id, number, asked, home),
                Ok(None) => worker.refuse_tracking(id, number, NO_SUCH_TARGET),
                Err(text) => worker.refuse_tracking(id, number, text),
            }
        });
        if done == Dispatched::Done && self.clients.session(id).outbox.in_flight() > 0 {
            // Where there is no other worker to ask, the prefixes may be settled already.
            let settling = &mut self.tracking_of(id).settling;
            settling.get_or_insert(Settling::Target);
        }
        done
    }

    /// A session's state, new if it has none.
    fn tracking_of(&mut self, id: u32) -> &mut Tracking {
        let tracking = &mut self.clients.session(id).client.tracking;
        tracking.get_or_insert_with(|| Box::new(Tracking::new(self.trackers.enlist(id))))
    }

    fn refuse_tracking(&mut self, id: u32, number: u32, text: &str) {
        let tracking = &self.clients.session(id).client.tracking;
        if tracking
            .as_ref()
            .is_some_and(|tracking| tracking.options.is_none())
        {
            self.stop_tracking(id);
        }
        self.clients.reply_error(id, number, text);
    }

    /// Does what `CLIENT TRACKING` asks for; `home` is the worker of the client to redirect to.
    fn track(&mut self, id: u32, number: u32, asked: Result<Asked, String>, home: usize) {
        let session = self.clients.session(id);
        if session.is_closed() {
            return self.clients.reply(id, number, |_| {});
        }
        let tracking = session.client.tracking.as_ref();
        let before = tracking.and_then(|tracking| tracking.options.as_ref());
        let options = match asked {
            Ok(Asked::Off) => None,
            Ok(Asked::On(asking)) => match asking.apply(before) {
                Ok(options) => Some(options),
                Err(text) => return self.refuse_tracking(id, number, &text),
            },
            Err(text) => return self.refuse_tracking(id, number, &text),
        };
        let Some(options) = options else {
            self.stop_tracking(id);
            return self.clients.reply(id, number, |out| put_simple(out, "OK"));
        };
        let own = before.is_some_and(|before| before.no_loop);
        let moves = before.is_some_and(|before| before.no_loop != options.no_loop);
        let tracking = self.tracking_of(id);
        let tracker = tracking.tracker;
        (tracking.broken, tracking.home) = (false, home);
        tracking.options = Some(options.clone());
        if own {
            // Its pipes are opened anew, with the new options; what they would have said is lost.
            self.backends.retire_hearing(Hearing::Own(tracker));
        }
        if let Mode::Broadcast(prefixes) = &options.mode {
            if options.no_loop {
                self.trackers.strata.leave(tracker, prefixes.iter());
            } else {
                for prefix in prefixes {
                    self.trackers.strata.place(prefix, tracker);
                }
            }
            let until = Instant::now() + PATIENCE;
            self.tracking_of(id).settling = Some(Settling::Prefixes { number, until });
            self.trackers.settling.push(id);
            self.hear_everywhere();
            if let Some(way) = self.clients.session(id).broadcast_way() {
                self.backends.hear_everywhere(way, &[], self.clock.micros());
            }
            self.settle_tracking();
        } else {
            self.tracking_of(id).fresh = false;
            self.clients.reply(id, number, |out| put_simple(out, "OK"));
        }
        // What other pipes have heard meanwhile is lost.
        if moves || own {
            let Self {
                clients, trackers, ..
            } = self;
            trackers.tell(clients, tracker, None, &Stale::All);
        }
        self.retire_unheard();
        self.trackers.count(&mut self.clients);
        self.clients.recount(id);
    }

    /// A session tracks no longer: it was told to, or ends.
    pub(crate) fn stop_tracking(&mut self, id: u32) {
        let Some(tracking) = self.clients.session(id).client.tracking.take() else {
            return;
        };
        let Tracking {
            tracker, options, ..
        } = *tracking;
        self.trackers.sessions.remove(&tracker);
        self.trackers.redirecting.retain(|&other| other != id);
        self.trackers.settling.retain(|&other| other != id);
        if let Some(options) = options {
            if options.no_loop {
                self.backends.retire_hearing(Hearing::Own(tracker));
            } else if let Mode::Broadcast(prefixes) = &options.mode {
                self.trackers.strata.leave(tracker, prefixes.iter());
            }
        }
        if let Some(Settling::Prefixes { number, .. }) = tracking.settling {
            self.clients.reply(id, number, |_| {}); // nobody is there to read it
        }
        self.retire_unheard();
        self.trackers.count(&mut self.clients);
    }

    /// Pipes that nobody listens to any more end.
    fn retire_unheard(&mut self) {
        if self.trackers.sessions.is_empty() {
            self.trackers.table.clear();
            self.backends.retire_hearing(Hearing::Shared);
        }
        let needed = self.trackers.strata();
        self.backends.retire_strata(&needed);
    }

    /// Opens the pipes that have to be there before anybody asks for anything, and has those that are
    /// there told of the prefixes that have come.
    fn hear_everywhere(&mut self) {
        for stratum in self.trackers.strata() {
            let lane = Lane::Hearing(Hearing::Broadcast(stratum));
            let prefixes = self.trackers.prefixes(stratum);
            self.backends.hear_everywhere(
                Way {
                    lane,
                    ..Way::HEARING
                },
                prefixes,
                self.clock.micros(),
            );
        }
    }

    /// Answers those whose `CLIENT TRACKING` has waited long enough, or for what is there now.
    fn settle_tracking(&mut self) {
        let mut settling = std::mem::take(&mut self.trackers.settling);
        settling.retain(|&id| !self.settle(id));
        self.trackers.settling = settling;
    }

    fn settle(&mut self, id: u32) -> bool {
        let session = self.clients.session(id);
        let own = session.broadcast_way();
        let Some(tracking) = &mut session.client.tracking else {
            return true;
        };
        let Some(Settling::Prefixes { number, until }) = tracking.settling else {
            return true;
        };
        let agreed = match (own, tracking.options.as_ref().map(|options| &options.mode)) {
            (Some(way), _) => self.backends.all_hear(way, 0),
            (None, Some(Mode::Broadcast(prefixes))) => {
                let strata = &self.trackers.strata;
                let of = |prefix: &[u8]| strata.of(tracking.tracker, prefix);
                let mut needed: Vec<u32> =
                    prefixes.iter().filter_map(|prefix| of(prefix)).collect();
                needed.dedup();
                needed.into_iter().all(|stratum| {
                    let lane = Lane::Hearing(Hearing::Broadcast(stratum));
                    let way = Way {
                        lane,
                        ..Way::HEARING
                    };
                    self.backends.all_hear(way, strata.prefixes(stratum).len())
                })
            }
            (None, Some(Mode::All | Mode::OptIn | Mode::OptOut) | None) => true,
        };
        if !agreed && Instant::now() < until {
            return false;
        }
        (tracking.settling, tracking.fresh) = (None, false);
        self.clients.reply(id, number, |out| put_simple(out, "OK"));
        true
    }

    /// A new topology is routed by: `before` was until now.
    pub(crate) fn move_tracked(&mut self, before: Option<&Topology>) {
        let (Some(before), Some(now)) = (before, &self.topology) else {
            return;
        };
        let primary = |topology: &Topology, slot| {
            let group = topology.route(slot).group?;
            Some(topology.groups()[usize::from(group)].primary.clone())
        };
        // Nothing of a held slot is changed anywhere before all proxies hold it; what has been told by
        // then, nobody holds when it changes elsewhere.
        let moves =
            |slot| now.route(slot).state.is_held() || primary(before, slot) != primary(now, slot);
        let moving: Vec<bool> = Slot::all().map(moves).collect();
        let Self {
            clients, trackers, ..
        } = self;
        trackers.move_slots(clients, |slot| moving[slot.index()]);
        self.hear_everywhere();
        for &id in self.trackers.sessions.values() {
            if let Some(way) = self.clients.session(id).broadcast_way() {
                self.backends.hear_everywhere(way, &[], self.clock.micros());
            }
        }
    }

    /// Messages on a pipe of this kind, to this server, may have been missed.
    pub(crate) fn missed_messages(&mut self, hearing: Hearing, server: &ServerAddr) {
        let Self {
            clients,
            trackers,
            topology,
            ..
        } = self;
        let at_server = |slot| {
            let group = topology.as_ref().and_then(|topology| {
                let group = topology.route(slot).group?;
                topology.groups().get(usize::from(group))
            });
            group.is_none_or(|group| group.primary == *server)
        };
        let here: Vec<bool> = Slot::all().map(at_server).collect();
        trackers.missed(clients, hearing, |slot| here[slot.index()]);
        trackers.count(clients);
    }

    /// Once in a turn: what may go to the clients that are redirected to goes there, and who has waited
    /// for servers to agree is answered.
    pub(crate) fn flush_tracking(&mut self) {
        if self.trackers.is_idle() {
            return;
        }
        let Self {
            clients, trackers, ..
        } = self;
        for (hearing, first) in std::mem::take(&mut trackers.agreed) {
            // What has changed before was not told; of keys that were read by the same pipe there are
            // none before.
            match hearing {
                Hearing::Broadcast(stratum) if first => trackers.tell_stratum(clients, stratum),
                Hearing::Own(tracker) if first => {
                    trackers.tell(clients, tracker, Some(true), &Stale::All);
                }
                Hearing::Shared | Hearing::Own(_) | Hearing::Broadcast(_) => {}
            }
        }
        self.settle_tracking();
        let mut redirecting = std::mem::take(&mut self.trackers.redirecting);
        redirecting.retain(|&id| !self.send_redirected(id));
        self.trackers.redirecting = redirecting;
        let told = std::mem::take(&mut self.trackers.told);
        self.stats.invalidations.add(told);
    }

    /// Once a tick: what waits for time to pass, or for another worker, is looked at again.
    pub(crate) fn tick_tracking(&mut self) {
        self.flush_tracking();
        let trackers = &self.trackers;
        let (sessions, keys) = (trackers.sessions.len(), trackers.table.registrations());
        self.stats.tracking_sessions.store(sessions as u64, Relaxed);
        self.stats.tracking_keys.store(keys as u64, Relaxed);
        self.schedule_flush();
    }

    /// Memory ends: what is remembered of keys is given up, and told.
    pub(crate) fn forget_tracked(&mut self) {
        let Self {
            clients, trackers, ..
        } = self;
        if trackers.table.keys() > 0 {
            trackers.forget_all(clients);
            trackers.count(clients);
        }
    }

    /// Whether nothing is left to be sent.
    fn send_redirected(&mut self, id: u32) -> bool {
        let session = self.clients.session(id);
        let Some(tracking) = &mut session.client.tracking else {
            return true;
        };
        let left = |(number, _): &(u32, Owned)| !session.outbox.awaits(*number);
        let count = tracking
            .redirected
            .iter()
            .take_while(|one| left(one))
            .count();
        let target = tracking
            .options
            .as_ref()
            .and_then(|options| options.redirect);
        let Some(target) = target else {
            tracking.redirected.clear(); // it redirects no longer
            tracking.redirected_keys = 0;
            return true;
        };
        if count > 0 {
            let (own, client) = (self.crew.own(), session.client.id);
            let messages: Vec<Owned> = tracking
                .redirected
                .iter()
                .take(count)
                .map(|(_, stale)| stale.clone())
                .collect();
            let home = tracking.home;
            let sent = self.crew.tell(home, move |worker| {
                worker.take_redirected(target, &messages, own, client);
            });
            match sent {
                Err(Untold::Busy) => return false, // the next turn, or tick, tries again
                Ok(()) | Err(Untold::Gone) => {}
            }
            let tracking = self.tracking_of(id);
            let keys = tracking
                .redirected
                .drain(..count)
                .map(|(_, stale)| stale.keys());
            tracking.redirected_keys -= keys.sum::<usize>();
            if sent == Err(Untold::Gone) {
                self.redirect_broken(client, target);
            }
        }
        self.tracking_of(id).redirected.is_empty()
    }

    /// Brings messages for a client of this worker, from the client of another one.
    fn take_redirected(&mut self, target: u64, messages: &[Owned], from: usize, client: u64) {
        let Some(id) = self.trackers.target(&self.clients, target) else {
            // Should this be lost, the next message says it again.
            let _ = self
                .crew
                .tell(from, move |worker| worker.redirect_broken(client, target));
            return;
        };
        for stale in messages {
            let session = self.clients.session(id);
            let mut message = Vec::new();
            match session.client.protocol {
                Protocol::Resp3 => message::put_push(&stale.borrow(), &mut message),
                Protocol::Resp2 if session.client.subscriptions.is_some() => {
                    message::put_published(&stale.borrow(), &mut message);
                }
                Protocol::Resp2 => continue,
            }
            self.trackers.told += 1;
            self.clients.push(id, &message);
        }
    }

    /// The client that one of this worker redirects to is gone.
    fn redirect_broken(&mut self, client: u64, target: u64) {
        let Some(id) = self.trackers.target(&self.clients, client) else {
            return;
        };
        let session = self.clients.session(id);
        let protocol = session.client.protocol;
        let Some(tracking) = &mut session.client.tracking else {
            return;
        };
        if tracking
            .options
            .as_ref()
            .and_then(|options| options.redirect)
            != Some(target)
        {
            return; // it redirects to another by now
        }
        tracking.broken = true;
        if protocol == Protocol::Resp3 {
            let mut push = Vec::new();
            message::put_broken(target, &mut push);
            self.clients.push(id, &push);
        }
    }
}
