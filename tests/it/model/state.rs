//! A cut-over at one moment: what the store has, what each leader, server, proxy and client is.
//!
//! One slot with one key moves from group 0 to group 1, and perhaps back. Nothing here decides what
//! happens.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::{Hash, Hasher},
};

use controlplane::migration::{GiveUp, Migration, Phase};
use dataplane::settling::{report::both, waits::Waits};
use proto::{
    ClusterId, GroupId, MigrationId, ServerAddr, Slot, SlotSet, Version,
    fence::Fence,
    settled::{Connection, Lost},
};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester, register::Register};

use super::rules::Mutation;

/// What a key has that is not there.
pub(super) const MISSING: u8 = u8::MAX;
pub(super) const WORKERS: usize = 2;

/// Group 0 or 1, and its server.
pub(super) type Group = usize;
/// A proxy's number.
pub(super) type Number = usize;
/// A process of a proxy: which proxy, and which of its lives.
pub(super) type Life = (Number, u8);
/// What a server calls a connection.
pub(super) type Id = u64;

/// All of it, at one moment.
#[derive(Clone, PartialEq, Hash, Debug)]
pub(super) struct State {
    pub(super) store: Store,
    pub(super) leaders: Vec<Leader>,
    pub(super) servers: [Server; 2],
    pub(super) proxies: [Proxy; 2],
    pub(super) clients: Vec<Client>,
    /// What clients saw.
    pub(super) history: LinearizabilityTester<u8, Register<u8>>,
    pub(super) faults: Faults,
    pub(super) seen: Seen,
}

/// What ZooKeeper has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Store {
    pub(super) term: u64,
    pub(super) epoch: u64,
    pub(super) owner: Group,
    pub(super) migration: Migration,
    /// What topologies said so far: the first is of epoch 1.
    pub(super) topologies: Vec<Route>,
}

/// What a topology says of the slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Route {
    Serve(Group),
    Hold(Group),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Leader {
    pub(super) term: u64,
    /// What it takes for the store's content, since it was replaced.
    pub(super) believes: Option<Box<Store>>,
    /// What it knows, by the fields of [`World`].
    pub(super) claimed: bool,
    pub(super) answers: BTreeMap<Life, (u64, Option<Told>)>,
    pub(super) census: Option<BTreeSet<Life>>,
    pub(super) raised: bool,
    pub(super) fence: Option<Walls>,
    /// How many deadlines of the phase are over: of a hold that for switching, that for settling if it has one,
    /// and its own.
    pub(super) clock: u8,
    pub(super) copy: Copy,
    pub(super) is_clean: bool,
    /// On which connection the source's keys are deleted.
    pub(super) reaping: Option<Id>,
    pub(super) is_reaped: bool,
}

/// What a proxy has told of what it had sent: in which epoch, and the connections that it lost.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Told(pub(super) u64, pub(super) BTreeSet<Id>);

/// What a leader knows of a fence.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Walls {
    pub(super) term: u64,
    pub(super) epoch: u64,
    pub(super) spared: BTreeSet<Life>,
    pub(super) closed: BTreeSet<Id>,
}

/// A leader's copy.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Copy {
    None,
    /// It has a connection to the target, where it has sent something that is not answered.
    Busy {
        connection: Id,
        /// The source has changed since it was read.
        dirty: bool,
        /// It has read the source.
        has_read: bool,
    },
    /// All it has sent is answered.
    Idle {
        connection: Id,
        dirty: bool,
        has_read: bool,
    },
    /// It was equal in this hold.
    Settled {
        connection: Id,
        hold: u64,
    },
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Server {
    pub(super) value: u8,
    pub(super) term: u64,
    pub(super) epoch: u64,
    pub(super) connections: BTreeMap<Id, Link>,
}

/// A connection, as its server has it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Link {
    pub(super) from: From,
    /// Sent, and not executed.
    pub(super) queue: VecDeque<Command>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum From {
    Worker(Life, usize),
    /// For a migration, by its number.
    Mover {
        leader: usize,
        term: u64,
        of: u8,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Command {
    /// Of a client: what it writes; 0: it reads. Whether it still waits for the reply.
    Do {
        client: usize,
        value: u8,
        awaited: bool,
    },
    /// Of a copy: what the source had.
    Restore(u8),
    Delete,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Proxy {
    pub(super) life: u8,
    pub(super) workers: Vec<Worker>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Worker {
    /// By which it routes. 0: by none.
    pub(super) epoch: u64,
    pub(super) route: Route,
    /// To each server: its number of the connection, and the server's.
    pub(super) connections: [Option<Id>; 2],
    /// How many it has opened.
    pub(super) opened: u64,
    /// How many topologies it has routed by, and with which of them the slot came into its state.
    pub(super) turn: u64,
    pub(super) since: u64,
    pub(super) waits: Waits,
    /// Barriers that are not answered: on which connection, for which wait.
    pub(super) barriers: Vec<(Id, u32)>,
    /// What it has lost at each server.
    pub(super) lost: [Lost; 2],
    /// What it has to say of what it routes by: the connections that were lost.
    pub(super) report: Option<Lost>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Client {
    /// How much of what it does is begun.
    pub(super) begun: usize,
    /// It waits for a reply.
    pub(super) waits: bool,
    /// Its proxy sends its request once more.
    pub(super) retries: bool,
    /// As which it is known to the history: another one, once it does not know what became of a request.
    pub(super) thread: u8,
}

/// What has gone wrong so far.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Faults {
    pub(super) all: u8,
    pub(super) elections: u8,
    pub(super) kills: u8,
    pub(super) breaks: u8,
    pub(super) copies: u8,
    pub(super) cancels: u8,
    pub(super) returns: u8,
}

/// What has come to pass.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Seen {
    /// A server has executed what a client wrote, or has answered a client, and did not own the slot.
    pub(super) executed_by_another: bool,
    /// It was committed while somebody could still send something to the source.
    pub(super) committed_too_early: bool,
    /// The owner's key was deleted.
    pub(super) deleted_at_the_owner: bool,
    /// Something that nobody awaits any more was executed.
    pub(super) executed_late: bool,
    pub(super) committed: bool,
    pub(super) committed_with_a_fence: bool,
    pub(super) committed_without_who_holds: bool,
    pub(super) returned: bool,
    pub(super) given_up: bool,
    pub(super) aborted: bool,
    pub(super) zombie_refused: bool,
}

pub(super) fn group(of: Group) -> GroupId {
    GroupId::new(format!("g{of}")).expect("it is a label")
}

fn number_of(id: &GroupId) -> Group {
    usize::from(*id == group(1))
}

pub(super) fn server(of: Group) -> ServerAddr {
    ServerAddr::new(format!("s:{}", of + 1)).expect("it is an address")
}

pub(super) fn cluster() -> ClusterId {
    ClusterId::new("c").expect("it is a label")
}

/// What a server calls the connections of a worker, one after the other: the same whatever else has
/// happened, so that what is alike is one state.
pub(super) fn id_of((proxy, life): Life, worker: usize, at: Group, opened: u64) -> Id {
    let place = ((proxy * 10 + usize::from(life)) * 10 + worker) * 10 + at;
    place as u64 * 100 + opened
}

/// As the controller knows a connection.
pub(super) fn connection(id: Id) -> Connection {
    Connection {
        server: server((id / 100 % 10) as Group),
        run_id: "0".repeat(40),
        client_id: id,
    }
}

pub(super) fn incarnation((proxy, life): Life) -> String {
    format!("{proxy}.{life}")
}

pub(super) fn life(incarnation: &str) -> Life {
    let (proxy, life) = incarnation.split_once('.').expect("it was written so");
    let number = |text: &str| text.parse::<u8>().expect("it was written so");
    (number(proxy).into(), number(life))
}

impl Server {
    pub(super) fn record(&self) -> Fence {
        Fence {
            cluster: cluster(),
            term: self.term,
            epoch: self.epoch,
            run_id: "r".to_owned(),
        }
    }
}

impl Proxy {
    pub(super) fn new(life: u8) -> Self {
        let worker = Worker {
            epoch: 0,
            route: Route::Hold(0),
            connections: [None, None],
            opened: 0,
            turn: 0,
            since: 0,
            waits: Waits::default(),
            barriers: Vec::new(),
            lost: [Lost::These(BTreeSet::new()), Lost::These(BTreeSet::new())],
            report: None,
        };
        Self {
            life,
            workers: vec![worker; WORKERS],
        }
    }
}

impl Worker {
    /// All that was sent on a connection is answered, or it is lost; a barrier is behind the last of it.
    pub(super) fn answered(&mut self, id: Id) {
        for (_, wait) in self.barriers.extract_if(.., |(on, _)| *on == id) {
            self.waits.passed(wait);
        }
        self.settle();
    }

    /// Says what it can.
    pub(super) fn settle(&mut self) {
        if let Some(group) = self.waits.settle(|_| true).pop() {
            self.report = Some(self.lost[number_of(&group)].clone());
        }
    }
}

impl Leader {
    pub(super) fn new(term: u64) -> Self {
        Self {
            term,
            believes: None,
            claimed: false,
            answers: BTreeMap::new(),
            census: None,
            raised: false,
            fence: None,
            clock: 0,
            copy: Copy::None,
            is_clean: false,
            reaping: None,
            is_reaped: false,
        }
    }

    /// Forgets what counts for one phase only.
    pub(super) fn enter_phase(&mut self) {
        self.clock = 0;
        self.raised = false;
    }

    /// Forgets what counts for one migration only.
    pub(super) fn enter_migration(&mut self) {
        self.enter_phase();
        self.census = None;
        self.fence = None;
        self.copy = Copy::None;
        self.is_clean = false;
        self.reaping = None;
        self.is_reaped = false;
    }
}

/// Of what can be different.
impl Hash for Store {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let m = &self.migration;
        (self.term, self.epoch, self.owner, &self.topologies).hash(state);
        (&m.phase, m.entered, m.wish, m.cut_overs).hash(state);
        (m.moved.len(), m.deferred.len(), m.left.len()).hash(state);
    }
}

impl Store {
    /// What the topology of the newest epoch says.
    pub(super) fn route(&self) -> Route {
        match self.migration.phase {
            Phase::CuttingOver { .. } => Route::Hold(self.owner),
            Phase::Pending
            | Phase::Copying { .. }
            | Phase::Committed
            | Phase::Reaping { .. }
            | Phase::Aborting { .. }
            | Phase::Succeeded
            | Phase::Cancelled
            | Phase::Failed { .. } => Route::Serve(self.owner),
        }
    }

    /// Publishes a topology, if it says anything new. (In truth each commit has an epoch of its own.)
    pub(super) fn publish(&mut self) {
        let route = self.route();
        if self.topologies.last() != Some(&route) {
            self.epoch += 1;
            self.topologies.push(route);
        }
    }

    /// From which group the slot is moved.
    pub(super) fn source(&self) -> Group {
        number_of(&self.migration.source)
    }

    /// To which.
    pub(super) fn target(&self) -> Group {
        1 - self.source()
    }

    pub(super) fn at_source(&self) -> SlotSet {
        if self.owner == self.source() {
            self.migration.slots
        } else {
            SlotSet::EMPTY
        }
    }
}

impl State {
    pub(super) fn new(clients: usize, given_up: Option<(GiveUp, u32)>) -> Self {
        let slots: SlotSet = Slot::all().take(1).collect();
        let id = MigrationId::new("m1").expect("it is a label");
        let mut migration = Migration::new(id, group(0), group(1), slots);
        migration.phase = Phase::Copying { given_up };
        migration.entered = 1;
        let mut leader = Leader::new(1);
        leader.claimed = true;
        let copy = 1;
        leader.copy = Copy::Idle {
            connection: copy,
            dirty: false,
            has_read: true,
        };
        let mut proxies = [Proxy::new(0), Proxy::new(0)];
        for (number, proxy) in proxies.iter_mut().enumerate() {
            for worker in &mut proxy.workers {
                (worker.epoch, worker.route) = (1, Route::Serve(0));
            }
            leader.answers.insert((number, 0), (1, None));
        }
        let link = Link {
            from: From::Mover {
                leader: 0,
                term: 1,
                of: 0,
            },
            queue: VecDeque::new(),
        };
        let server = |connections| Server {
            value: 0,
            term: 1,
            epoch: 1,
            connections,
        };
        let client = |thread| Client {
            begun: 0,
            waits: false,
            retries: false,
            thread,
        };
        Self {
            store: Store {
                term: 1,
                epoch: 1,
                owner: 0,
                migration,
                topologies: vec![Route::Serve(0)],
            },
            leaders: vec![leader],
            servers: [
                server(BTreeMap::new()),
                server(BTreeMap::from([(copy, link)])),
            ],
            proxies,
            clients: (0..clients).map(|n| client(n as u8)).collect(),
            history: LinearizabilityTester::new(Register(0)),
            faults: Faults::default(),
            seen: Seen::default(),
        }
    }

    pub(super) fn is_linearizable(&self) -> bool {
        self.history.is_consistent()
    }

    pub(super) fn is_held(&self) -> bool {
        matches!(self.store.migration.phase, Phase::CuttingOver { .. })
    }

    pub(super) fn has_succeeded(&self) -> bool {
        self.store.migration.phase == Phase::Succeeded
    }

    /// The one that leads.
    pub(super) fn leading(&self) -> usize {
        self.leaders.len() - 1
    }

    pub(super) fn view(&self, leader: usize) -> &Store {
        self.leaders[leader]
            .believes
            .as_deref()
            .unwrap_or(&self.store)
    }

    /// Nobody hears any more of what was sent on a connection: its clients do not know what became of it.
    pub(super) fn forsake(&mut self, at: Group, id: Id, clients_retry: bool) {
        let Some(link) = self.servers[at].connections.get_mut(&id) else {
            return;
        };
        for command in &mut link.queue {
            if let Command::Do {
                client, awaited, ..
            } = command
                && *awaited
            {
                *awaited = false;
                let client = &mut self.clients[*client];
                client.waits = false;
                client.retries = clients_retry;
                if clients_retry {
                    client.begun -= 1;
                } else {
                    client.thread += 10;
                }
            }
        }
    }

    /// A worker loses its connection, for whatever reason.
    pub(super) fn lose(
        &mut self,
        (proxy, worker): (Number, usize),
        at: Group,
        mutation: Option<Mutation>,
    ) {
        let lost = &mut self.proxies[proxy].workers[worker];
        let Some(id) = lost.connections[at].take() else {
            return;
        };
        let writes = |command: &Command| matches!(command, Command::Do { value, .. } if *value > 0);
        let link = self.servers[at].connections.get(&id);
        let unanswered = link.is_some_and(|link| link.queue.iter().any(writes));
        let named = unanswered && mutation != Some(Mutation::LostConnectionNotNamed);
        if named {
            let one = Lost::These(BTreeSet::from([connection(id)]));
            lost.lost[at] = both(lost.lost[at].clone(), &one);
        }
        lost.answered(id);
        self.forsake(at, id, mutation == Some(Mutation::WriteRetried));
    }

    /// A server closes a connection, and its other end learns of it.
    pub(super) fn close(&mut self, at: Group, id: Id, mutation: Option<Mutation>) {
        let Some(link) = self.servers[at].connections.get(&id) else {
            return;
        };
        match link.from {
            From::Worker((proxy, life), worker) => {
                let now = &self.proxies[proxy];
                if now.life == life && now.workers[worker].connections[at] == Some(id) {
                    self.lose((proxy, worker), at, mutation);
                }
            }
            From::Mover { leader, .. } => {
                let leader = &mut self.leaders[leader];
                if leader.copy.connection() == Some(id) {
                    leader.copy = Copy::None;
                }
                leader.reaping.take_if(|reaping| *reaping == id);
            }
        }
        self.servers[at].connections.remove(&id);
    }
}

impl Copy {
    pub(super) fn connection(&self) -> Option<Id> {
        match self {
            Self::None => None,
            Self::Busy { connection, .. }
            | Self::Idle { connection, .. }
            | Self::Settled { connection, .. } => Some(*connection),
        }
    }

    /// The source has changed.
    pub(super) fn soil(&mut self) {
        match self {
            Self::None => {}
            Self::Busy { dirty, .. } | Self::Idle { dirty, .. } => *dirty = true,
            Self::Settled { connection, .. } => {
                *self = Self::Idle {
                    connection: *connection,
                    dirty: true,
                    has_read: true,
                }
            }
        }
    }
}

impl State {
    /// The connections that leaders have to a server for copying and deleting.
    pub(super) fn movers(&self, at: Group, which: impl Fn(usize, u64, u8) -> bool) -> Vec<Id> {
        let links = self.servers[at].connections.iter();
        let movers = links.filter(|(_, link)| match link.from {
            From::Mover { leader, term, of } => which(leader, term, of),
            From::Worker(..) => false,
        });
        movers.map(|(id, _)| *id).collect()
    }

    /// Whether nothing that is written at the source any more, or answered, can come from a client.
    pub(super) fn is_quiet(&self, hold: u64) -> bool {
        let source = self.store.source();
        let links = self.servers[source].connections.iter();
        links.into_iter().all(|(id, link)| match link.from {
            From::Mover { .. } => true,
            From::Worker((proxy, life), worker) => {
                let sender = &self.proxies[proxy];
                let worker = &sender.workers[worker];
                let holds = worker.epoch >= hold && worker.route != Route::Serve(source);
                let is_used = sender.life == life && worker.connections[source] == Some(*id);
                let matters = |command: &Command| match command {
                    Command::Do { value, awaited, .. } => *awaited || *value > 0,
                    Command::Restore(_) | Command::Delete => false,
                };
                (holds || !is_used) && !link.queue.iter().any(matters)
            }
        })
    }
}

pub(super) fn version(epoch: u64) -> Version {
    // Which leader it is of does not matter to whoever compares these.
    Version {
        leader_term: 1,
        epoch,
    }
}
