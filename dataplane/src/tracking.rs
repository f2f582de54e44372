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

use std::{collections::HashMap, rc::Rc, sync::atomic::Ordering::Relaxed};

use proto::{ServerAddr, Slot, Topology};

use crate::{
    backend::{Hearing, Way},
    command::{self, Command, Kind, flag},
    resp::{Protocol, Request},
    session::{Clients, Dispatched, Session},
    transaction::Transaction,
    worker::Worker,
};

mod message;
mod options;
mod prefixes;
mod redirect;
mod switch;
mod table;

use message::Stale;
pub(crate) use options::{Mode, Options, caching, put_info, put_redirect};
use prefixes::Strata;
use redirect::{Redirected, Targets};
use switch::Settling;
pub(crate) use table::Tracker;
use table::{Entry, Table};

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
    /// What the client redirected to is to be told.
    redirected: Redirected,
    /// Keys that are read on a lease, of which no server will tell.
    unheard: Vec<Box<[u8]>>,
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
            redirected: Redirected::default(),
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
        size_of::<Self>() + prefixes + self.redirected.memory()
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
    targets: Targets,
    /// Registrations at most.
    most: usize,
    /// Messages told, since they were last counted.
    told: u64,
    /// Bytes it was last counted with.
    counted: usize,
}

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
            targets: Targets::default(),
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
            (Hearing::Shared | Hearing::Scripts, Stale::All) => self.forget_all(clients),
            (Hearing::Shared | Hearing::Scripts, Stale::Keys(keys)) => {
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
            Hearing::Shared | Hearing::Scripts => {
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

    /// Tells how much memory it holds.
    fn count(&mut self, clients: &mut Clients) {
        let now = self.table.memory() + self.strata.memory();
        clients.account.recount(&mut self.counted, now);
    }
}

/// Whether clients may cache what a command answers. A script may read the keys it declares.
fn may_read(command: &Command) -> bool {
    let reads = command.flags & flag::READONLY != 0 || command.kind() == Kind::Script;
    reads && command.flags & flag::PUBSUB == 0
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

    /// A joint transaction, which may have changed how its session tracks, and which way it goes, is
    /// executed: what it has read is to be told.
    pub(crate) fn leave_unheard(&mut self, id: u32, transaction: &Transaction) {
        let session = self.clients.session(id);
        let way = session.broadcast_way();
        if let Some(tracking) = &mut session.client.tracking {
            tracking.caching = false;
            transaction.visit(&self.serving.limits, |command, request| {
                if may_read(command) {
                    command.visit_keys(request, |index| {
                        tracking.unheard.push(request.arg(index).into());
                    });
                }
            });
        }
        if let Some(way) = way {
            self.backends.hear_everywhere(way, &[], self.clock.micros());
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
            if may_read(command) {
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
                Hearing::Shared | Hearing::Scripts | Hearing::Own(_) | Hearing::Broadcast(_) => {}
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
        self.count_tracking();
        self.schedule_flush();
    }

    /// Says how many sessions track, and how many keys.
    fn count_tracking(&self) {
        let trackers = &self.trackers;
        let (sessions, keys) = (trackers.sessions.len(), trackers.table.registrations());
        self.stats.tracking_sessions.store(sessions as u64, Relaxed);
        self.stats.tracking_keys.store(keys as u64, Relaxed);
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
}
