//! `EXEC` of a joint transaction: one that the proxy has a part in, or other groups.
//!
//! It goes to its groups on leases, a block to each ([`crate::transaction::blocks`]): there `SELECT` and
//! `HELLO` may stand in a block, and whoever has the connection next is known to find it as they left it.
//! First comes the group of the keys. Only when that has executed its block do the others get theirs; so
//! what is not executed, since something that was watched was touched or since a server refuses it, is
//! executed nowhere. At last the client is answered, command by command; what the proxy answers is done
//! only then, so that nothing of it is done either if the rest was not.
//!
//! What other groups are asked they execute as one, too, but each for itself: a moment later than the
//! first, and perhaps not at all if one is lost. Its error then stands in the place of the command, which
//! says `UNKNOWNOUTCOME` if it may have changed anything.
//!
//! Invariant: nothing of a transaction is executed or done before its first group has executed its block.

use std::{
    collections::BTreeSet,
    ops::ControlFlow,
    task::{Context, Poll},
};

use proto::{ServerAddr, Slot};

use super::{Exchange, Lease, Opening, Step, watch::put_null_array};
use crate::{
    backend::{Way, put_command},
    command::{Asked as OfCrew, Class, Command, Kind, Local, PubSub, Queued, Topic},
    error,
    fanout::{Outcome, value::is_array},
    local::Turn,
    outbox::Wanted,
    resp::{Protocol, Request, put_error, put_header},
    route::{Owner, Rejection},
    scripts::{self, Sha},
    session::{Detour, Dispatched, Inquired},
    settling::passages::Passage,
    transaction::{
        Transaction,
        blocks::{Blocks, Place, Said},
        first_frame,
    },
    worker::{self, Worker},
};

/// So often it is gone on with in a turn at most.
const STEPS: usize = 16;

/// See the module.
pub(crate) struct Exec {
    transaction: Box<Transaction>,
    /// Of all keys, and of what is watched. `None`: any group is as good.
    slot: Option<Slot>,
    watching: Watching,
    blocks: Blocks,
    /// By block.
    said: Vec<Said>,
    /// Its slots are known to be asked for.
    passages: Vec<Passage>,
    /// How its client's requests are executed behind it.
    behind: Way,
    stage: Stage,
    /// What its client is to be told when it is answered: messages do not come between its replies.
    withheld: Vec<u8>,
    /// When it began, by the worker's clock.
    since: u32,
}

/// Whether it depends on what is watched.
#[expect(
    clippy::large_enum_variant,
    reason = "it lies in a box of its session's, one at a time"
)]
enum Watching {
    Nothing,
    /// On this connection.
    On(Lease),
    /// On the one that it was sent by, or is about to be.
    Asked,
}

#[expect(
    clippy::large_enum_variant,
    reason = "it lies in a box of its session's, one at a time"
)]
enum Stage {
    /// No server has any of it.
    Unasked,
    /// The first group has its block, or is about to; nothing goes to the others yet.
    First { first: Asked, others: Vec<Asked> },
    /// That is executed; the other groups have theirs, or are about to.
    Others(Vec<Asked>),
    /// All servers have answered, and the client is being answered.
    Answering {
        /// It was told how many replies there are.
        begun: bool,
        /// It wants no reply to its next request.
        skips: bool,
    },
}

/// What one group is asked.
struct Asked {
    block: usize,
    exchange: Exchange,
    server: ServerAddr,
    said: Vec<u8>,
    is_over: bool,
}

/// What came of a step: whether there is another.
type Onward = Poll<ControlFlow<()>>;

const ON: Onward = Poll::Ready(ControlFlow::Continue(()));
const OVER: Onward = Poll::Ready(ControlFlow::Break(()));

impl Exec {
    /// Bytes of memory it owns.
    pub(crate) fn memory(&self) -> usize {
        let asked = |asked: &Asked| asked.exchange.memory() + asked.said.capacity();
        let said = |said: &Said| said.bytes().len();
        self.transaction.memory()
            + self.blocks.memory()
            + self.said.iter().map(said).sum::<usize>()
            + self.withheld.capacity()
            + match &self.stage {
                Stage::First { first, others } => {
                    asked(first) + others.iter().map(asked).sum::<usize>()
                }
                Stage::Others(others) => others.iter().map(asked).sum(),
                Stage::Unasked | Stage::Answering { .. } => 0,
            }
    }

    /// Keeps a message until its client is answered; how many bytes that makes.
    pub(crate) fn withhold(&mut self, message: &[u8]) -> usize {
        self.withheld.extend_from_slice(message);
        self.withheld.len()
    }

    fn watches(&self) -> bool {
        match self.watching {
            Watching::Nothing => false,
            Watching::On(_) | Watching::Asked => true,
        }
    }
}

/// The databases that a transaction selects, in whatever order.
fn databases(worker: &Worker, transaction: &Transaction) -> BTreeSet<u16> {
    let (serving, mut found) = (&worker.serving, BTreeSet::new());
    transaction.visit(&serving.limits, |command, request| {
        if let Some(Turn::Database(database)) = Turn::of(command.class, request, serving) {
            found.insert(database);
        }
    });
    found
}

/// A lease whose server has agreed to each of these databases: in a block, one that it does not have would
/// let the next command land in the one before.
fn agreeing(opening: Opening, databases: BTreeSet<u16>, way: Way) -> Opening {
    if databases.is_empty() {
        return opening;
    }
    Box::pin(async move {
        let mut lease = opening.await?;
        for database in databases {
            lease.attune(Way { database, ..way }).await?;
        }
        lease.attune(way).await?;
        Ok(lease)
    })
}

/// What a worker does for joint transactions: the session's task calls this.
impl Worker {
    /// `EXEC` of one; all its keys are in this slot, if it has any.
    pub(crate) fn exec_jointly(&mut self, id: u32, slot: Option<Slot>) -> Dispatched {
        let session = self.clients.session(id);
        let watch = session.watch.as_deref();
        if watch.is_some_and(|watch| !watch.is_of(slot)) {
            return self.answer_error(id, error::rejection(Rejection::CrossSlot));
        }
        if session.outbox.in_flight() > 0 {
            return Dispatched::Waits; // it must not overtake
        }
        let transaction = session.client.transaction.take();
        let transaction = transaction.expect("EXEC ends one");
        let way = session.client.way();
        let (slot, watching) = match session.watch.take() {
            None => (slot, Watching::Nothing),
            Some(watch) => match watch.into_parts() {
                (slot, Some(lease)) => (Some(slot), Watching::On(lease)),
                (_, None) => {
                    let protocol = session.client.protocol;
                    return self.answer(id, |out| put_null_array(out, protocol));
                }
            },
        };
        self.taken(id);
        let exec = Exec {
            transaction,
            slot,
            watching,
            blocks: Blocks::default(),
            said: Vec::new(),
            passages: Vec::new(),
            behind: way,
            stage: Stage::Unasked,
            withheld: Vec::new(),
            since: self.micros,
        };
        self.begin_detour(id, Detour::Exec(Box::new(exec)));
        Dispatched::Done
    }

    /// Goes on with one. Ready: it is over.
    pub(crate) fn poll_exec(&mut self, id: u32, exec: &mut Exec, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..STEPS {
            let step = match exec.stage {
                Stage::Unasked => self.ask_first(id, exec),
                Stage::First { .. } => self.poll_first(id, exec, cx),
                Stage::Others(_) => self.poll_others(exec, cx),
                Stage::Answering { .. } => self.answer_each(id, exec),
            };
            match step {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(ControlFlow::Continue(())) => {}
                Poll::Ready(ControlFlow::Break(())) => {
                    let withheld = std::mem::take(&mut exec.withheld);
                    if !withheld.is_empty() {
                        self.clients.push(id, &withheld);
                    }
                    return Poll::Ready(());
                }
            }
        }
        worker::yield_turn(cx);
        Poll::Pending
    }

    /// Asks the owner of its slot as of now, or nobody, if no server has to do with it.
    fn ask_first(&mut self, id: u32, exec: &mut Exec) -> Onward {
        let answering = Stage::Answering {
            begun: false,
            skips: false,
        };
        if !exec.transaction.asks() && !exec.watches() {
            return match self.write_blocks(id, exec, &[]) {
                true => {
                    exec.stage = answering;
                    ON
                }
                false => Poll::Pending,
            };
        }
        let Some(topology) = self.topology.clone() else {
            self.answer_failure(id, error::NO_TOPOLOGY);
            return OVER;
        };
        let serves = |slot: &Slot| matches!(Owner::of(Some(*slot), &topology), Owner::Serves(_));
        let any = || Slot::all().find(serves).unwrap_or(Slot::OF_RESERVED);
        let slot = exec.slot.unwrap_or_else(any);
        let owner = match Owner::of(Some(slot), &topology) {
            Owner::Serves(_) if exec.transaction.changes_all() && self.holds() => Owner::Held,
            owner => owner,
        };
        let group = match owner {
            Owner::Serves(group) => group,
            Owner::Held | Owner::Missing(_) if exec.watches() => {
                self.answer_null(id);
                return OVER;
            }
            Owner::Held if self.waits_for_hold(id) => return Poll::Pending,
            Owner::Held => {
                self.answer_failure(id, error::HELD_TOO_LONG);
                return OVER;
            }
            Owner::Missing(why) => {
                self.answer_failure(id, error::rejection(why));
                return OVER;
            }
        };
        let mut groups = vec![group];
        groups.extend(topology.owners().filter(|&other| other != group));
        if !self.write_blocks(id, exec, &groups) {
            return Poll::Pending;
        }
        let server = self.backends.primary(group).clone();
        let way = self.clients.session(id).client.way();
        let opening = match std::mem::replace(&mut exec.watching, Watching::Asked) {
            Watching::On(lease) if lease.door.addr == server => Some(lease.attuned(way)),
            // Nobody can tell any more what was touched.
            Watching::On(_) | Watching::Asked => {
                self.answer_null(id);
                return OVER;
            }
            Watching::Nothing => {
                exec.watching = Watching::Nothing;
                self.lease(id, group)
            }
        };
        let Some(opening) = opening else {
            self.answer_failure(id, error::NO_LEASE);
            return OVER;
        };
        self.clients.session(id).held_since = None;
        self.see_again(id, exec.transaction.frames());
        exec.passages = if exec.transaction.changes_all() {
            Slot::all().map(|slot| self.settling.pass(slot)).collect()
        } else {
            vec![self.settling.pass(slot)]
        };
        exec.slot = exec.slot.or(Some(slot));
        let first = self.ask_block(exec, 0, opening, way, server);
        let mut others = Vec::new();
        for block in exec.blocks.others() {
            let group = exec.blocks.group(block);
            let server = self.backends.primary(group).clone();
            let Some(opening) = self.lease(id, group) else {
                self.answer_failure(id, error::NO_LEASE);
                return OVER;
            };
            others.push(self.ask_block(exec, block, opening, way, server));
        }
        exec.stage = Stage::First { first, others };
        ON
    }

    /// Whether any slot is held.
    fn holds(&self) -> bool {
        let topology = self.topology.as_ref();
        topology.is_some_and(|now| Slot::all().any(|slot| now.route(slot).state.is_held()))
    }

    /// Writes what each of these groups is to be sent. `false`: a pipe has to take requests again first.
    fn write_blocks(&mut self, id: u32, exec: &mut Exec, groups: &[u16]) -> bool {
        let mut blocks = Blocks::new(groups.iter().copied());
        let client = &self.clients.session(id).client;
        let before = (client.protocol, client.database);
        let (frames, limits) = (exec.transaction.frames(), self.serving.limits);
        let (mut from, mut args, mut is_written) = (0, Vec::new(), true);
        while from < frames.len() && is_written {
            let (len, command, request) = first_frame(&frames[from..], &mut args, &limits);
            let range = from..from + len;
            from += len;
            match (command.class.queued(), command.class) {
                (Queued::ByGroup, Class::Local(_)) => blocks.answer(Place::Proxy(range)),
                (Queued::ByGroup, _) => blocks.pass(request.raw()),
                (Queued::ByGroups, _) => match self.inquiry(id, command, &request) {
                    Inquired::Groups(inquiry) => blocks.ask(inquiry, command.may_write()),
                    Inquired::Nobody(reply) => blocks.answer(Place::Known(reply)),
                    Inquired::Waits => is_written = false,
                },
                (Queued::ByProxy | Queued::Not, class) => {
                    // What is behind it is asked for a client as it will be then.
                    let turn = Turn::of(class, &request, &self.serving);
                    let client = &mut self.clients.session(id).client;
                    match turn {
                        Some(Turn::Database(database)) => {
                            client.database = database;
                            blocks.turn(request.raw());
                        }
                        Some(Turn::Protocol(protocol)) => {
                            client.protocol = protocol;
                            blocks.turn(hello(protocol));
                        }
                        None => {}
                    }
                    blocks.answer(Place::Proxy(range));
                }
            }
            args.clear();
        }
        let client = &mut self.clients.session(id).client;
        exec.behind = client.way();
        (client.protocol, client.database) = before;
        exec.blocks = blocks;
        is_written
    }

    fn ask_block(
        &self,
        exec: &Exec,
        block: usize,
        opening: Opening,
        way: Way,
        server: ServerAddr,
    ) -> Asked {
        let transaction = &exec.transaction;
        let opening = agreeing(opening, databases(self, transaction), way);
        let mut out = Vec::new();
        let shown = match block {
            0 => self.put_scripts(transaction.scripts(), &mut out),
            _ => 0,
        };
        let replies = shown + exec.blocks.put(block, &mut out);
        let silence = Some(self.serving.server_timeout);
        let may_write = match block {
            0 => transaction.may_write(),
            _ => transaction.changes_all(),
        };
        Asked {
            block,
            exchange: Exchange::new(opening, out, replies, silence).writing(may_write),
            server,
            said: Vec::new(),
            is_over: false,
        }
    }

    /// Writes what shows a server these scripts, as far as they are known; how many replies that has.
    pub(super) fn put_scripts(&self, scripts: &[Sha], out: &mut Vec<u8>) -> u32 {
        let distinct = |at: &usize| !scripts[..*at].contains(&scripts[*at]);
        let scripts = (0..scripts.len()).filter(distinct).map(|at| scripts[at]);
        let sources = scripts.filter_map(|sha| self.proxy.scripts.source(sha));
        let mut shown = 0;
        for source in sources {
            put_command(out, &[b"SCRIPT", b"LOAD", &source]);
            shown += 1;
        }
        shown
    }

    fn poll_first(&mut self, id: u32, exec: &mut Exec, cx: &mut Context<'_>) -> Onward {
        let watches = exec.watches();
        let (changes_all, may_write) =
            (exec.transaction.changes_all(), exec.transaction.may_write());
        let Stage::First { first, others } = &mut exec.stage else {
            unreachable!("the first group is asked")
        };
        let slot = exec.slot.expect("it was asked by its slot");
        let stays = self.serves(slot, &first.server) && !(changes_all && self.holds());
        if !stays && !first.exchange.was_sent() {
            return self.ask_otherwise(id, exec);
        }
        match self.poll_asked_block(first, cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Step::Again) => ON,
            Poll::Ready(Step::Done(lease)) => {
                let commands = exec.blocks.commands(0);
                let said = Said::answered(std::mem::take(&mut first.said), commands);
                let is_executed = said.is_executed(commands);
                self.give_lease(lease, said.bytes(), is_executed, exec.behind);
                if !is_executed {
                    self.clients.errors += u64::from(said.bytes().starts_with(b"-"));
                    let whole = |out: &mut Vec<u8>| out.extend_from_slice(said.bytes());
                    self.clients.answer_awaited(id, whole);
                    return OVER;
                }
                let not_asked = |_| Said::failed(Vec::new(), Outcome::NotExecuted);
                exec.said = vec![said];
                exec.said.extend((1..exec.blocks.count()).map(not_asked));
                exec.stage = Stage::Others(std::mem::take(others));
                ON
            }
            Poll::Ready(Step::Failed(failure)) => {
                let is_outdated = !failure.was_sent && self.backends.is_outdated(&failure.why);
                if (watches && !failure.was_sent) || is_outdated {
                    return self.ask_otherwise(id, exec);
                }
                let server = first.server.clone();
                self.exchange_failed(id, server.as_str(), may_write, &failure);
                OVER
            }
        }
    }

    /// Nothing was sent, and whoever was to be asked is not to be any more.
    fn ask_otherwise(&mut self, id: u32, exec: &mut Exec) -> Onward {
        if exec.watches() {
            self.answer_null(id);
            return OVER;
        }
        exec.stage = Stage::Unasked;
        exec.passages.clear();
        ON
    }

    fn poll_asked_block(&mut self, asked: &mut Asked, cx: &mut Context<'_>) -> Poll<Step> {
        let Asked { exchange, said, .. } = asked;
        self.poll_aside(exchange, cx, |left, piece| {
            if left == 0 {
                said.extend_from_slice(piece.bytes);
            }
        })
    }

    /// A server has said all of this. Its lease is as the transaction has left it; one that has refused it
    /// may watch still.
    fn give_lease(&mut self, mut lease: Lease, said: &[u8], is_executed: bool, behind: Way) {
        if is_executed {
            lease.door.turn(behind);
        } else if is_array(said) || said.starts_with(b"-") {
            return;
        }
        self.leases.give(lease, self.backends.now());
    }

    fn poll_others(&mut self, exec: &mut Exec, cx: &mut Context<'_>) -> Onward {
        let Stage::Others(others) = &mut exec.stage else {
            unreachable!("the others are asked")
        };
        let changes_all = exec.transaction.changes_all();
        let mut goes_on = false;
        for asked in others.iter_mut().filter(|asked| !asked.is_over) {
            let said = match self.poll_asked_block(asked, cx) {
                Poll::Pending => continue,
                Poll::Ready(Step::Again) => {
                    goes_on = true;
                    continue;
                }
                Poll::Ready(Step::Done(lease)) => {
                    let commands = exec.blocks.commands(asked.block);
                    let said = Said::answered(std::mem::take(&mut asked.said), commands);
                    let is_executed = said.is_executed(commands);
                    self.give_lease(lease, said.bytes(), is_executed, exec.behind);
                    if is_executed || said.bytes().starts_with(b"-") {
                        said
                    } else {
                        failed(error::NO_EXEC, changes_all)
                    }
                }
                Poll::Ready(Step::Failed(failure)) => {
                    let server = asked.server.as_str();
                    self.lease_lost(server, &failure.why);
                    if failure.was_sent && changes_all {
                        let why = failure.why.to_string();
                        failed(&error::unknown_outcome(server, &why), true)
                    } else {
                        failed(&failure.why.error(server), false)
                    }
                }
            };
            exec.said[asked.block] = said;
            asked.is_over = true;
        }
        if goes_on {
            return ON;
        }
        if !others.iter().all(|asked| asked.is_over) {
            return Poll::Pending;
        }
        exec.passages.clear();
        exec.stage = Stage::Answering {
            begun: false,
            skips: false,
        };
        ON
    }

    /// Answers the commands whose answers are there, in their order, and does what the proxy is asked. It goes
    /// on when something has been answered, or with the next tick.
    fn answer_each(&mut self, id: u32, exec: &mut Exec) -> Onward {
        let Stage::Answering { begun, skips } = &mut exec.stage else {
            unreachable!("it is being answered")
        };
        if !std::mem::replace(begun, true) {
            let count = exec.blocks.left();
            self.clients
                .answer_awaited(id, |out| put_header(out, b'*', count));
        }
        let (mut args, limits) = (Vec::new(), self.serving.limits);
        while let Some(place) = exec.blocks.next() {
            let mut reply = Vec::new();
            match place {
                Place::Known(known) => reply = known,
                Place::First(number) => reply.extend_from_slice(exec.said[0].reply(number).0),
                Place::Groups(groups) => groups.put(&exec.said, &mut reply),
                Place::Proxy(range) => {
                    args.clear();
                    let frame = &exec.transaction.frames()[range.clone()];
                    let (_, command, request) = first_frame(frame, &mut args, &limits);
                    if is_skip(command, &request) {
                        *skips = true;
                    } else if self.answer_queued(id, command, &request) == Dispatched::Waits {
                        exec.blocks.put_back(Place::Proxy(range));
                        self.clients.wait(id);
                        return Poll::Pending;
                    }
                    continue;
                }
            }
            self.clients
                .answer_awaited(id, |out| out.extend_from_slice(&reply));
        }
        if *skips {
            self.clients.session(id).outbox.want(Wanted::AllButNext);
            self.clients.answer_awaited(id, |_| {});
        }
        let scripts = &self.proxy.scripts;
        exec.transaction.visit(&limits, |command, request| {
            if scripts::forgets(command, request) {
                scripts.flush();
            }
        });
        self.leave_unheard(id, &exec.transaction);
        let took = self.clock.micros().wrapping_sub(exec.since);
        self.stats.latency[Kind::Split as usize].record(took);
        OVER
    }

    /// Answers a command of the proxy's, which is done in its place, with whatever it changes.
    fn answer_queued(
        &mut self,
        id: u32,
        command: &'static Command,
        request: &Request<'_>,
    ) -> Dispatched {
        match command.class {
            Class::Local(local) | Class::Container(Some(local)) => {
                self.answer_local(id, local, request)
            }
            Class::Crew(OfCrew::Monitor) => self.answer_error(id, error::MONITOR_IN_EXEC),
            Class::Crew(what) => self.ask_crew(id, what, request),
            Class::Tracking => self.client_tracking(id, request),
            Class::PubSub(PubSub::Subscribe(Topic::Shard)) => {
                self.answer_error(id, error::SSUBSCRIBE_IN_EXEC)
            }
            Class::PubSub(verb) => self.pubsub(id, command, verb, request),
            Class::Across(across) => self.across(id, across, command, request),
            Class::Forward
            | Class::Sort
            | Class::Elements
            | Class::Split(_)
            | Class::Everywhere(_)
            | Class::Transaction(_)
            | Class::Replicas
            | Class::Container(None)
            | Class::Denied(_) => unreachable!("it is not the proxy's to answer"),
        }
    }
}

/// What a group has said of which there is this error instead.
fn failed(text: &str, is_unknown: bool) -> Said {
    let mut reply = Vec::new();
    put_error(&mut reply, text);
    Said::failed(
        reply,
        if is_unknown {
            Outcome::Unknown
        } else {
            Outcome::NotExecuted
        },
    )
}

/// `CLIENT REPLY SKIP`, which has no reply itself; in a transaction it is about what follows that.
fn is_skip(command: &Command, request: &Request<'_>) -> bool {
    command.class == Class::Local(Local::ClientReply)
        && request.arg(2).eq_ignore_ascii_case(b"skip")
}

/// What has a server speak this from now on.
fn hello(protocol: Protocol) -> &'static [u8] {
    match protocol {
        Protocol::Resp2 => b"*2\r\n$5\r\nHELLO\r\n$1\r\n2\r\n",
        Protocol::Resp3 => b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n",
    }
}
