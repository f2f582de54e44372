//! What may happen in a cut-over, and what comes of it.
//!
//! What decides is the code of production: what the leader does next ([`next_step`]), what a proxy may say
//! of itself ([`Waits`](dataplane::settling::waits::Waits), [`settled`]), and whom a server lets in ([`judge`]). Around
//! it is all that may go wrong: a leader is replaced and does not know, a topology comes late or never, a
//! connection breaks and what was sent on it is executed much later, a process is killed and another takes
//! its place, the copy breaks.
//!
//! What a proxy says is true when it is read; since what it says once stays true, a message that comes late
//! says no more than one that was sent later. A server executes what came on a connection in order, at any
//! time while it has that connection, whether or not somebody is at its other end.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use controlplane::{
    migration::{
        Advance, Answer, Claims, Copying, Fenced, Fitness, GiveUp, Migration, Phase, Step,
        UNSETTLED_MAX, Wish, World, is_quiet, next_step, reapable,
    },
    mover::Tally,
};
use dataplane::settling::report::{Report, settled};
use proto::{
    ProxyId, Settled, SlotSet,
    fence::{Comer, judge},
    settled::{Lost, Streams},
};
use stateright::{
    Model,
    semantics::{
        ConsistencyTester as _,
        register::{RegisterOp, RegisterRet},
    },
};

use super::{
    rules::{Limits, Mutation},
    state::{
        Command, Copy, From, Group, Id, Leader, Life, Link, MISSING, Number, Proxy, Route, State,
        Told, WORKERS, Walls, Worker, cluster, connection, group, id_of, incarnation, life,
        version,
    },
};

/// A copy that is equal but for what has just changed.
fn following() -> Copying {
    Copying::Following {
        since: Duration::ZERO,
        dirt: Tally::default(),
        slow: SlotSet::EMPTY,
        uncopied: SlotSet::EMPTY,
    }
}

/// What each client does: with which worker of which proxy, and what it writes; 0: it reads.
pub(super) type Script = &'static [&'static [(Number, usize, u8)]];

/// The model: what may go wrong how often, and which rule is left out.
#[derive(Clone)]
pub(super) struct System {
    pub(super) limits: Limits,
    pub(super) mutation: Option<Mutation>,
    pub(super) script: Script,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// The client's next request is sent, on a connection that is opened if there is none.
    Request(usize),
    /// A server executes the next command of a connection, and its reply arrives.
    Execute(Group, Id),
    /// A worker loses a connection; the server does not know.
    Break(Number, usize, Group),
    /// A proxy is killed, and started again.
    Kill(Number),
    /// The topology of an epoch reaches a worker of a proxy, by whatever leader, and it routes by it.
    Apply(Number, usize, u64),
    /// A leader hears what a proxy can say.
    Tell(Number, usize),
    /// A leader does what is to be done next.
    Lead(usize),
    /// Time passes for a leader.
    Tick(usize),
    /// The copy of a leader reads the source again.
    Read(usize),
    /// The connection of a copy breaks; the server does not know.
    BreakCopy(usize),
    /// Another leader is elected; the one before does not know.
    Elect,
    /// The operator cancels.
    Cancel,
    /// The operator moves the slot back.
    Return,
}

impl Action {
    /// Whether it is something that goes wrong, or that somebody else does.
    pub(super) fn is_fault(&self) -> bool {
        match self {
            Self::Break(..) | Self::Kill(_) | Self::BreakCopy(_) | Self::Elect | Self::Cancel => {
                true
            }
            Self::Request(_)
            | Self::Execute(..)
            | Self::Apply(..)
            | Self::Tell(..)
            | Self::Lead(_)
            | Self::Tick(_)
            | Self::Read(_)
            | Self::Return => false,
        }
    }
}

impl System {
    /// Whether a worker has clients.
    fn serves(&self, proxy: Number, worker: usize) -> bool {
        let mut requests = self.script.iter().copied().flatten();
        requests.any(|(p, w, _)| (*p, *w) == (proxy, worker))
    }

    /// What time it is in a hold, by a leader's clock: in ms since it began.
    fn deadlines(&self) -> &'static [u64] {
        match self.limits.impatient {
            true => &[0, 250, 500, 1000],
            false => &[0, 250, 1000],
        }
    }

    fn leaves_out(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// What a proxy can say now: by which epoch it routes, and what it says of what it had sent.
    fn says(&self, proxy: &Proxy) -> (u64, Option<Told>) {
        let hasty = self.leaves_out(Mutation::AckBeforeAllWorkers);
        let epochs = proxy.workers.iter().map(|worker| worker.epoch);
        let switched = if hasty { epochs.max() } else { epochs.min() }.unwrap_or(0);
        let which = |worker: &&Worker| !hasty || worker.epoch == switched;
        let workers: Vec<&Worker> = proxy.workers.iter().filter(which).collect();
        let report = |worker: &Worker| {
            let version = version(worker.epoch);
            let (Route::Hold(owner) | Route::Serve(owner)) = worker.route;
            let settled = worker.report.clone().map(|lost| Settled {
                version,
                group: group(owner),
                lost,
                streams: Streams::These(BTreeSet::new()),
            });
            Report {
                version: Some(version),
                groups: settled.into_iter().collect(),
            }
        };
        let reports: Vec<Report> = workers.into_iter().map(report).collect();
        let told = settled(&reports, version(switched)).pop().map(|settled| {
            let lost = match settled.lost {
                Lost::These(lost) => lost.into_iter().map(|lost| lost.client_id).collect(),
                Lost::Many => unreachable!("there are not so many"),
            };
            Told(settled.version.epoch, lost)
        });
        (switched, told)
    }

    /// What a leader knows, as it asks for the next step.
    fn world(&self, state: &State, number: usize) -> World {
        let leader = &state.leaders[number];
        let view = state.view(number);
        let hold = view.migration.entered;
        let settled = |told: &Told| Settled {
            version: version(told.0),
            group: view.migration.source.clone(),
            lost: Lost::These(told.1.iter().copied().map(connection).collect()),
            streams: Streams::These(BTreeSet::new()),
        };
        let ignored = Told(hold, BTreeSet::new());
        let answer = |(life, (switched, told)): (&Life, &(u64, Option<Told>))| {
            let told = match told {
                _ if self.leaves_out(Mutation::SettledIgnored) => Some(&ignored),
                told => told.as_ref(),
            };
            let answer = Answer {
                id: ProxyId::new(format!("p{}", life.0)).expect("it is a label"),
                // A leader learns at once who is dead; of who is cut off, nothing is said here.
                connected: state.proxies[life.0].life == life.1,
                switched: *switched,
                settled: told.map(settled),
            };
            (incarnation(*life), answer)
        };
        let copy = match leader.copy {
            Copy::None => Copying::None,
            Copy::Idle { has_read: true, .. } => following(),
            // Once it has been through, it follows.
            Copy::Busy { has_read: true, .. } => following(),
            Copy::Busy { .. } | Copy::Idle { .. } => Copying::Underway,
            Copy::Settled { hold, .. } => Copying::Settled { hold },
        };
        let links = || state.servers[view.source()].connections.values();
        let is_there =
            |life: &Life| links().any(|l| matches!(l.from, From::Worker(of, _) if of == *life));
        let has_ended = |census: &BTreeSet<Life>| !census.iter().all(is_there);
        let names = |lives: &BTreeSet<Life>| lives.iter().copied().map(incarnation).collect();
        let in_phase = match view.migration.phase {
            // Of the other phases no deadline matters here.
            Phase::CuttingOver { .. } => self.deadlines()[usize::from(leader.clock)],
            _ => 3_600_000,
        };
        World {
            term: leader.term,
            at_source: view.at_source(),
            before: None,
            fitness: Fitness::Fit,
            claims: Claims {
                source: leader.claimed,
                target: leader.claimed,
            },
            copy,
            census: leader.census.as_ref().map(names),
            // Of those who have come since nothing is known.
            is_census_old: leader.census.as_ref().is_some_and(has_ended),
            returning: false, // it would only wait
            proxies: leader.answers.iter().map(answer).collect(),
            fence: leader.fence.as_ref().map(|walls| Fenced {
                term: walls.term,
                epoch: walls.epoch,
                spared: names(&walls.spared),
                hit: false,
                closed: walls.closed.iter().copied().map(connection).collect(),
            }),
            notes_lost: false,
            needs_notes: false,
            lacks_replica: false,
            replica_behind: false,
            absent: Vec::new(),
            in_phase: Duration::from_millis(in_phase),
            is_clean: leader.is_clean,
            is_reaped: leader.is_reaped,
        }
    }

    fn request(&self, s: &mut State, number: usize) -> Option<()> {
        let client = &s.clients[number];
        let &(proxy, worker, value) = self.script[number].get(client.begun)?;
        if client.waits {
            return None;
        }
        let at = match s.proxies[proxy].workers[worker].route {
            Route::Serve(group) => group,
            Route::Hold(_) => return None,
        };
        let id = match s.proxies[proxy].workers[worker].connections[at] {
            Some(id) => id,
            None => self.open(s, (proxy, worker), at)?,
        };
        let link = s.servers[at].connections.get_mut(&id)?;
        link.queue.push_back(Command::Do {
            client: number,
            value,
            awaited: true,
        });
        let operation = if value == 0 {
            RegisterOp::Read
        } else {
            RegisterOp::Write(value)
        };
        let client = &mut s.clients[number];
        client.begun += 1;
        client.waits = true;
        if !std::mem::take(&mut client.retries) {
            let invoked = s.history.on_invoke(client.thread, operation);
            invoked.expect("a client asks for one thing at a time");
        }
        Some(())
    }

    /// Whether the slot can be moved back.
    fn may_return(&self, s: &State) -> bool {
        match s.store.migration.phase {
            Phase::Succeeded => true,
            Phase::Reaping { .. } => self.leaves_out(Mutation::MovedBeforeReaped),
            Phase::Pending
            | Phase::Copying { .. }
            | Phase::CuttingOver { .. }
            | Phase::Committed
            | Phase::Aborting { .. }
            | Phase::Cancelled
            | Phase::Failed { .. } => false,
        }
    }

    /// Whether a server refuses a worker.
    fn is_kept_out(&self, s: &State, (proxy, worker): (Number, usize), at: Group) -> bool {
        let cluster = cluster();
        let comer = Comer::Worker {
            cluster: &cluster,
            epoch: s.proxies[proxy].workers[worker].epoch,
        };
        judge(Ok(Some(&s.servers[at].record())), "r", comer).is_err()
    }

    /// Whether the source refuses a worker that would send it something.
    pub(super) fn keeps_out(&self, s: &State) -> bool {
        let source = s.store.source();
        let wants = |worker: &Worker| worker.epoch > 0 && worker.route == Route::Serve(source);
        let proxies = s.proxies.iter().enumerate();
        let mut workers =
            proxies.flat_map(|(p, proxy)| proxy.workers.iter().enumerate().map(move |w| (p, w)));
        workers.any(|(p, (w, worker))| wants(worker) && self.is_kept_out(s, (p, w), source))
    }

    /// Opens a connection, if the server lets it in.
    fn open(&self, s: &mut State, (proxy, worker): (Number, usize), at: Group) -> Option<Id> {
        let life = s.proxies[proxy].life;
        let is_kept_out = self.is_kept_out(s, (proxy, worker), at);
        if is_kept_out && !self.leaves_out(Mutation::OldEpochAccepted) {
            return None;
        }
        let opener = &mut s.proxies[proxy].workers[worker];
        let id = id_of((proxy, life), worker, at, opener.opened);
        opener.opened += 1;
        opener.connections[at] = Some(id);
        let link = Link {
            from: From::Worker((proxy, life), worker),
            queue: VecDeque::new(),
        };
        s.servers[at].connections.insert(id, link);
        Some(id)
    }

    fn execute(&self, s: &mut State, at: Group, id: Id) -> Option<()> {
        let link = s.servers[at].connections.get_mut(&id)?;
        let command = link.queue.pop_front()?;
        let (from, is_empty) = (link.from, link.queue.is_empty());
        match command {
            Command::Do {
                client,
                value,
                awaited,
            } => {
                if at != s.store.owner && (awaited || value > 0) {
                    s.seen.executed_by_another = true;
                }
                s.seen.executed_late |= !awaited;
                let reply = match value {
                    0 => RegisterRet::ReadOk(s.servers[at].value),
                    value => {
                        s.servers[at].value = value;
                        RegisterRet::WriteOk
                    }
                };
                let copies_it = |leader: &usize| s.view(*leader).source() == at;
                let copying: Vec<usize> = (0..s.leaders.len()).filter(copies_it).collect();
                for leader in copying.into_iter().filter(|_| value > 0) {
                    s.leaders[leader].copy.soil();
                }
                if awaited {
                    s.clients[client].waits = false;
                    let thread = s.clients[client].thread;
                    let returned = s.history.on_return(thread, reply);
                    returned.expect("it was asked for");
                }
            }
            Command::Restore(value) => s.servers[at].value = value,
            Command::Delete => {
                s.seen.deleted_at_the_owner |= at == s.store.owner;
                s.servers[at].value = MISSING;
            }
        }
        match from {
            From::Worker((proxy, life), worker) => {
                let proxy = &mut s.proxies[proxy];
                let worker = &mut proxy.workers[worker];
                let is_heard = proxy.life == life && worker.connections[at] == Some(id);
                if is_heard && is_empty {
                    worker.answered(id);
                }
            }
            From::Mover { leader, .. } => self.answered(&mut s.leaders[leader], id),
        }
        Some(())
    }

    /// What a leader had sent on a connection was answered.
    fn answered(&self, leader: &mut Leader, id: Id) {
        if leader.reaping == Some(id) {
            leader.is_reaped = true;
        } else if let Copy::Busy {
            connection,
            dirty,
            has_read,
        } = leader.copy
            && connection == id
        {
            leader.copy = Copy::Idle {
                connection,
                dirty,
                has_read,
            };
            leader.is_clean = true;
        }
    }

    /// A leader opens a connection for copying or deleting, and sends a deletion.
    fn send_deletion(&self, s: &mut State, leader: usize, at: Group) -> Option<Id> {
        let term = s.leaders[leader].term;
        let cluster = cluster();
        let comer = Comer::Mover {
            cluster: &cluster,
            term,
        };
        judge(Ok(Some(&s.servers[at].record())), "r", comer).ok()?;
        let number = s.faults.returns;
        let former = s.movers(at, |from, _, of| from == leader && of == number);
        if !self.leaves_out(Mutation::LostAttemptNotKilled) {
            former.iter().for_each(|id| s.close(at, *id, self.mutation));
        }
        let which = u64::from(number) * 100 + u64::from(s.faults.copies) * 10 + at as u64;
        let id = 900_000 + term * 1000 + which;
        let link = Link {
            from: From::Mover {
                leader,
                term,
                of: number,
            },
            queue: VecDeque::from([Command::Delete]),
        };
        s.servers[at].connections.insert(id, link);
        Some(id)
    }

    fn lead(&self, s: &mut State, number: usize) -> Option<()> {
        let view = s.view(number).clone();
        let world = self.world(s, number);
        match next_step(&view.migration, &world) {
            Step::Wait(_) | Step::Rest | Step::Examine => None,
            Step::Record(advance) => self.record(s, number, &world, &advance),
            Step::Claim => {
                let term = s.leaders[number].term;
                for at in [0, 1] {
                    s.servers[at].term = s.servers[at].term.max(term);
                    let older = s.movers(at, |_, theirs, _| theirs < term);
                    if !self.leaves_out(Mutation::LostAttemptNotKilled) {
                        older.iter().for_each(|id| s.close(at, *id, self.mutation));
                    }
                }
                s.leaders[number].claimed = true;
                Some(())
            }
            Step::Copy | Step::Clean(_) => {
                let is_cleaning = |copy: &Copy| {
                    matches!(
                        copy,
                        Copy::Busy {
                            has_read: false,
                            ..
                        }
                    )
                };
                if is_cleaning(&s.leaders[number].copy) {
                    return None;
                }
                let connection = self.send_deletion(s, number, view.target())?;
                s.leaders[number].copy = Copy::Busy {
                    connection,
                    dirty: false,
                    has_read: false,
                };
                Some(())
            }
            Step::Count => {
                let links = s.servers[view.source()].connections.values();
                let census = links.filter_map(|link| match link.from {
                    From::Worker(life, _) => Some(life),
                    From::Mover { .. } => None,
                });
                let census = census.collect();
                s.leaders[number].census = Some(census);
                Some(())
            }
            Step::Fence {
                epoch,
                spare,
                close,
            } => {
                let spare = spare.iter().map(|name| life(name)).collect();
                let close = close.iter().map(|lost| lost.client_id).collect();
                self.fence(s, number, epoch, spare, close)
            }
            Step::Settle { hold, .. } => match s.leaders[number].copy {
                Copy::Idle {
                    connection,
                    dirty: false,
                    has_read: true,
                } => {
                    s.leaders[number].copy = Copy::Settled { connection, hold };
                    if self.leaves_out(Mutation::ReapedEarly) {
                        self.send_deletion(s, number, view.source())?;
                    }
                    Some(())
                }
                _ => None,
            },
            Step::Reap(slots) => {
                if s.leaders[number].reaping.is_some() || slots.is_empty() {
                    return None;
                }
                assert_eq!(slots, reapable(&view.migration, view.at_source()));
                let id = self.send_deletion(s, number, view.source())?;
                s.leaders[number].reaping = Some(id);
                Some(())
            }
        }
    }

    /// Raises the record; then, when that is done, kills and reads back.
    fn fence(
        &self,
        s: &mut State,
        number: usize,
        epoch: u64,
        spared: BTreeSet<Life>,
        closed: BTreeSet<Id>,
    ) -> Option<()> {
        let term = s.leaders[number].term;
        let source = s.view(number).source();
        let does = !self.leaves_out(Mutation::NoFence);
        if !std::mem::replace(&mut s.leaders[number].raised, true) {
            if does {
                let record = &mut s.servers[source];
                record.term = record.term.max(term);
                record.epoch = record.epoch.max(epoch);
            }
            return Some(());
        }
        let doomed: Vec<Id> = s.servers[source]
            .connections
            .iter()
            .filter(|(id, link)| match link.from {
                From::Worker(life, _) => !spared.contains(&life) || closed.contains(id),
                From::Mover { term: theirs, .. } => theirs < term,
            })
            .map(|(id, _)| *id)
            .collect();
        if does {
            let mutation = self.mutation;
            doomed.iter().for_each(|id| s.close(source, *id, mutation));
        }
        let record = &s.servers[source];
        let (term, epoch) = if does {
            (record.term, record.epoch)
        } else {
            (term, epoch)
        };
        let walls = Walls {
            term,
            epoch,
            spared,
            closed,
        };
        let leader = &mut s.leaders[number];
        leader.raised = false;
        if leader.fence.as_ref() == Some(&walls) {
            return None; // a later leader's term is on it
        }
        leader.fence = Some(walls);
        Some(())
    }

    fn record(&self, s: &mut State, number: usize, world: &World, advance: &Advance) -> Option<()> {
        if s.leaders[number].believes.is_some() {
            return (!std::mem::replace(&mut s.seen.zombie_refused, true)).then_some(());
        }
        let next = s.store.migration.after(advance)?;
        if next.cut_overs > u64::from(self.limits.cut_overs) {
            return None;
        }
        match advance {
            Advance::Commit => {
                let hold = s.store.migration.entered;
                assert!(is_quiet(world, hold));
                s.seen.committed_too_early |= !s.is_quiet(hold);
                s.seen.committed = true;
                let census = world.census.iter().flatten();
                let spared = world.fence.iter().flat_map(|fence| &fence.spared);
                s.seen.committed_with_a_fence |= census.count() > spared.count();
                let is_out = |(life, (switched, _)): (&Life, &(u64, Option<Told>))| {
                    let spared = world.fence.as_ref().map(|fence| &fence.spared);
                    let is_out = !spared.is_some_and(|all| all.contains(&incarnation(*life)));
                    is_out && s.proxies[life.0].life == life.1 && *switched >= hold
                };
                s.seen.committed_without_who_holds |= s.leaders[number].answers.iter().any(is_out);
                s.seen.returned |= s.faults.returns > 0;
                s.store.owner = s.store.target();
            }
            Advance::GiveUp(_) => {
                s.seen.given_up = true;
                s.leaders[number].census = None;
            }
            Advance::Abort(_) => {
                s.seen.aborted = true;
                s.leaders[number].is_clean = false;
            }
            Advance::Copy | Advance::Hold(_) | Advance::Reap | Advance::End => {}
        }
        s.store.migration = next;
        s.store.publish();
        s.store.migration.entered = s.store.epoch;
        s.leaders[number].enter_phase();
        Some(())
    }

    fn apply(&self, s: &mut State, (proxy, worker): (Number, usize), epoch: u64) {
        let applier = &mut s.proxies[proxy].workers[worker];
        let mut route = s.store.topologies[epoch as usize - 1];
        if self.leaves_out(Mutation::JoinerNotHeld) && applier.epoch == 0 {
            route = match route {
                Route::Hold(owner) | Route::Serve(owner) => Route::Serve(owner),
            };
        }
        applier.turn += 1;
        if applier.route != route || applier.epoch == 0 {
            applier.since = applier.turn;
        }
        (applier.epoch, applier.route) = (epoch, route);
        applier.report = None;
        let moving = match route {
            Route::Hold(owner) => Some((group(owner), applier.since)),
            Route::Serve(_) => None,
        };
        let (Route::Hold(owner) | Route::Serve(owner)) = route;
        let links = &s.servers[owner].connections;
        let busy = applier.connections[owner].filter(|id| {
            let queue = links.get(id).map(|link| &link.queue);
            queue.is_some_and(|queue| !queue.is_empty())
        });
        for (wait, _) in applier.waits.turn(moving) {
            if let Some(id) = busy {
                applier.waits.placed(wait, 1);
                applier.barriers.push((id, wait));
            }
        }
        applier.settle();
    }
}

impl Model for System {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let unsettled = GiveUp::Unsettled { proxies: 1 };
        let given_up = self.limits.impatient.then_some((unsettled, UNSETTLED_MAX));
        vec![State::new(self.script.len(), given_up)]
    }

    fn actions(&self, s: &State, actions: &mut Vec<Action>) {
        let limits = &self.limits;
        actions.extend((0..s.clients.len()).map(Action::Request));
        for (at, server) in s.servers.iter().enumerate() {
            let busy = server
                .connections
                .iter()
                .filter(|(_, l)| !l.queue.is_empty());
            actions.extend(busy.map(|(id, _)| Action::Execute(at, *id)));
        }
        for (number, proxy) in s.proxies.iter().enumerate() {
            for worker in (0..WORKERS).filter(|worker| self.serves(number, *worker)) {
                let newer = proxy.workers[worker].epoch + 1..=s.store.epoch;
                actions.extend(newer.map(|epoch| Action::Apply(number, worker, epoch)));
            }
            actions.extend((0..s.leaders.len()).map(|leader| Action::Tell(number, leader)));
        }
        for leader in 0..s.leaders.len() {
            actions.extend([
                Action::Lead(leader),
                Action::Tick(leader),
                Action::Read(leader),
            ]);
        }
        let (faults, source) = (&s.faults, s.store.source());
        if faults.returns < limits.returns && self.may_return(s) {
            actions.push(Action::Return);
        }
        if faults.all >= limits.faults {
            return;
        }
        if faults.elections < limits.elections {
            actions.push(Action::Elect);
        }
        if faults.cancels < limits.cancels {
            actions.push(Action::Cancel);
        }
        if faults.copies < limits.copies {
            actions.extend((0..s.leaders.len()).map(Action::BreakCopy));
        }
        for (number, proxy) in s.proxies.iter().enumerate() {
            if faults.kills < limits.kills {
                actions.push(Action::Kill(number));
            }
            for (worker, state) in proxy.workers.iter().enumerate() {
                if faults.breaks < limits.breaks && state.connections[source].is_some() {
                    actions.push(Action::Break(number, worker, source));
                }
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        let s = &mut next;
        match action {
            Action::Request(client) => self.request(s, client),
            Action::Execute(at, id) => self.execute(s, at, id),
            Action::Break(proxy, worker, at) => {
                s.faults.breaks += 1;
                s.faults.all += 1;
                s.lose((proxy, worker), at, self.mutation);
                Some(())
            }
            Action::Kill(proxy) => {
                s.faults.kills += 1;
                s.faults.all += 1;
                for worker in 0..WORKERS {
                    (0..2).for_each(|at| s.lose((proxy, worker), at, None));
                }
                s.proxies[proxy] = Proxy::new(s.proxies[proxy].life + 1);
                Some(())
            }
            Action::Apply(proxy, worker, epoch) => {
                self.apply(s, (proxy, worker), epoch);
                // One that has no clients goes along: it makes no difference when.
                for idle in (0..WORKERS).filter(|other| !self.serves(proxy, *other)) {
                    self.apply(s, (proxy, idle), epoch);
                }
                Some(())
            }
            Action::Tell(number, leader) => {
                let proxy = &s.proxies[number];
                let says = self.says(proxy);
                let asked = &s.view(leader).migration;
                let is_held = matches!(asked.phase, Phase::CuttingOver { .. });
                if !is_held || says.0 < asked.entered {
                    return None; // nobody wants to know
                }
                let told = s.leaders[leader]
                    .answers
                    .insert((number, proxy.life), says.clone());
                (told != Some(says)).then_some(())
            }
            Action::Lead(leader) => self.lead(s, leader),
            Action::Tick(number) => {
                let is_held = |phase: &Phase| matches!(phase, Phase::CuttingOver { .. });
                let holds = is_held(&s.view(number).migration.phase);
                if !holds || self.lead(&mut last.clone(), number).is_some() {
                    return None;
                }
                let leader = &mut s.leaders[number];
                leader.clock += 1;
                (usize::from(leader.clock) < self.deadlines().len()).then_some(())
            }
            Action::Read(number) => match s.leaders[number].copy {
                Copy::Idle {
                    connection,
                    dirty,
                    has_read,
                } if dirty || !has_read => {
                    let (source, target) = (s.view(number).source(), s.view(number).target());
                    let value = s.servers[source].value;
                    let link = s.servers[target].connections.get_mut(&connection)?;
                    link.queue.push_back(Command::Restore(value));
                    s.leaders[number].copy = Copy::Busy {
                        connection,
                        dirty: false,
                        has_read: true,
                    };
                    Some(())
                }
                _ => None,
            },
            Action::BreakCopy(number) => {
                s.faults.copies += 1;
                s.faults.all += 1;
                let copy = std::mem::replace(&mut s.leaders[number].copy, Copy::None);
                (copy != Copy::None).then_some(())
            }
            Action::Elect => {
                s.faults.elections += 1;
                s.faults.all += 1;
                let before = s.store.clone();
                s.leaders.last_mut()?.believes = Some(Box::new(before));
                s.store.term += 1;
                s.leaders.push(Leader::new(s.store.term));
                Some(())
            }
            Action::Return => {
                s.faults.returns += 1;
                let m = &mut s.store.migration;
                let (source, target) = (m.target.clone(), m.source.clone());
                *m = Migration::new(m.id.clone(), source, target, m.slots);
                m.phase = Phase::Copying { given_up: None };
                m.entered = s.store.epoch;
                s.leaders.last_mut()?.enter_migration();
                Some(())
            }
            Action::Cancel => {
                s.faults.cancels += 1;
                s.faults.all += 1;
                s.store.migration.wish = Wish::Cancel;
                Some(())
            }
        }?;
        Some(next)
    }

    fn properties(&self) -> Vec<stateright::Property<Self>> {
        super::rules::properties()
    }
}
