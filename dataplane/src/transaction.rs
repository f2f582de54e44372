//! `MULTI … EXEC`: what is queued in between, and how it goes to its server as one block.
//!
//! Nothing of a transaction is sent before `EXEC`: until then it costs no server anything, and one that
//! is given up leaves nothing behind. Then `MULTI`, the commands as they came, and `EXEC` go into a pipe
//! in one piece, so that nothing of another session stands between them; only the reply to `EXEC` is
//! the client's.
//!
//! What the proxy answers itself ([`Local::is_queued`]) is answered when the rest is executed, and put into
//! the reply in its place ([`mixture`]). What concerns all groups, or all clients, is refused: what is
//! executed at one server as a whole is not at others.
//!
//! What is wrong with a command is said when it is queued, as far as the proxy can know, and `EXEC` then
//! executes nothing. The server checks again: what it refuses while it queues makes its `EXEC` fail, too.
//!
//! Invariant: a transaction is executed as a whole, by the owner of the one slot of all its keys, or not
//! at all.

use std::ops::Range;

use proto::Slot;

use crate::{
    backend::{Pending, Recipient},
    command::{self, Bound, Class, Command, Kind, Local, PubSub},
    error, local,
    pubsub::home,
    resp::{Limits, Progress, Request, Scanned, put_simple},
    route::{Owner, Rejection, denied, names_reserved},
    scripts::{self, Sha},
    session::Dispatched,
    worker::Worker,
};

mod mixture;

pub(crate) use mixture::Mixture;

const MULTI: &[u8] = b"*1\r\n$5\r\nMULTI\r\n";
const EXEC: &[u8] = b"*1\r\n$4\r\nEXEC\r\n";
/// What a server would say to `EXEC` of nothing.
const NOTHING: &[u8] = b"*0\r\n";

/// What a client has queued since `MULTI`.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    /// The commands, as they came.
    frames: Vec<u8>,
    /// Those of them that the proxy answers.
    own: Vec<Own>,
    /// The scripts that they call.
    scripts: Vec<Sha>,
    count: u32,
    keys: Keys,
    may_write: bool,
    may_be_replicated: bool,
    /// One of the commands runs a script.
    runs_script: bool,
    /// A command was refused: `EXEC` will execute nothing.
    aborted: bool,
}

/// A command that the proxy answers.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Own {
    /// Among all commands, from 0.
    place: u32,
    /// Where it stands in [`Transaction::frames`].
    at: Range<usize>,
}

/// The slots of all keys so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Keys {
    #[default]
    None,
    InOneSlot(Slot),
    InSeveral,
}

impl Keys {
    fn and(self, slot: Slot) -> Self {
        match self {
            Self::None => Self::InOneSlot(slot),
            Self::InOneSlot(one) if one == slot => self,
            Self::InOneSlot(_) | Self::InSeveral => Self::InSeveral,
        }
    }
}

/// Calls `visit` with each of these requests, that were all found to be some before.
pub(crate) fn visit_frames(
    frames: &[u8],
    limits: &Limits,
    mut visit: impl FnMut(&Command, &Request<'_>),
) {
    let (mut rest, mut args) = (frames, Vec::new());
    while let Ok(Scanned::Request(len)) = Progress::default().scan(rest, &mut args, limits, true) {
        let request = Request::new(&rest[..len], &args);
        if let Some(command) = command::find(&request) {
            visit(command, &request);
        }
        args.clear();
        rest = &rest[len..];
    }
}

impl Transaction {
    /// Bytes of memory it owns.
    pub(crate) fn memory(&self) -> usize {
        size_of::<Self>()
            + self.frames.capacity()
            + self.own.capacity() * size_of::<Own>()
            + self.scripts.capacity() * size_of::<Sha>()
    }

    /// The commands that are queued, as they came.
    pub(crate) fn frames(&self) -> &[u8] {
        &self.frames
    }

    /// How many commands are queued.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// See [`Command::may_be_replicated`].
    pub(crate) fn may_be_replicated(&self) -> bool {
        self.may_be_replicated
    }

    /// Calls `visit` with each command that is queued.
    pub(crate) fn visit(&self, limits: &Limits, visit: impl FnMut(&Command, &Request<'_>)) {
        visit_frames(&self.frames, limits, visit);
    }

    /// Whether the proxy answers some of its commands.
    pub(crate) fn has_own(&self) -> bool {
        !self.own.is_empty()
    }

    pub(crate) fn may_write(&self) -> bool {
        self.may_write
    }

    /// Writes what is sent to execute it, and returns how many replies that has; the last one is the
    /// client's.
    pub(crate) fn put_block(&self, out: &mut Vec<u8>) -> u32 {
        out.extend_from_slice(MULTI);
        let mut from = 0;
        for own in &self.own {
            out.extend_from_slice(&self.frames[from..own.at.start]);
            from = own.at.end;
        }
        out.extend_from_slice(&self.frames[from..]);
        out.extend_from_slice(EXEC);
        self.count - self.own.len() as u32 + 2
    }

    /// A command was refused. What is queued is of no use any more.
    pub(crate) fn abort(&mut self) {
        self.aborted = true;
        self.frames = Vec::new();
        self.own = Vec::new();
    }

    /// Queues a command, or says why it cannot be.
    fn queue(
        &mut self,
        command: &Command,
        request: &Request<'_>,
        most: usize,
    ) -> Result<(), &'static str> {
        match command.class {
            Class::Forward | Class::Sort | Class::Split(_) | Class::PubSub(PubSub::Publish(_)) => {}
            // Within a transaction, WAIT waits for nothing: it says how far the replicas are.
            Class::Replicas | Class::Transaction(Bound::Unwatch) => {}
            // These need nothing of the proxy: the server answers them like any other.
            Class::Local(Local::Echo | Local::Ping | Local::Time) => {}
            Class::Local(local) | Class::Container(Some(local)) if local.is_queued() => {}
            Class::Everywhere(_) | Class::Across(_) | Class::PubSub(PubSub::Count(_)) => {
                return Err(error::CONCERNS_ALL_GROUPS);
            }
            Class::Local(_)
            | Class::Crew(_)
            | Class::Tracking
            | Class::Transaction(_)
            | Class::PubSub(PubSub::Subscribe(_) | PubSub::Unsubscribe(_))
            | Class::Container(_)
            | Class::Denied(_) => return Err(error::NOT_IN_TRANSACTION),
        }
        let mut own = Keys::None;
        command.visit_keys(request, |index| {
            own = own.and(Slot::of_key(request.arg(index)));
        });
        if let Class::PubSub(PubSub::Publish(topic)) = command.class {
            own = Keys::InOneSlot(home::slot(topic, request.arg(1)));
        }
        match own {
            Keys::None => {}
            Keys::InOneSlot(slot) => self.keys = self.keys.and(slot),
            Keys::InSeveral => return Err(error::rejection(Rejection::CrossSlot)),
        }
        if own == Keys::InOneSlot(Slot::OF_RESERVED) && names_reserved(command, request) {
            return Err(error::rejection(Rejection::Reserved));
        }
        if let Some(why) = denied(command, request) {
            return Err(error::rejection(why));
        }
        let (place, is_own) = (self.count, is_own(command));
        self.count += 1;
        self.may_write |= command.may_write() && !is_own;
        self.may_be_replicated |= command.may_be_replicated();
        self.runs_script |= command.runs_script();
        if self.aborted {
            return Ok(());
        }
        if self.frames.len() + request.raw().len() > most {
            return Err(error::TOO_LARGE_TO_HOLD);
        }
        let from = self.frames.len();
        self.frames.extend_from_slice(request.raw());
        if is_own {
            let at = from..self.frames.len();
            self.own.push(Own { place, at });
        }
        self.scripts.extend(scripts::called(command, request));
        Ok(())
    }
}

/// Whether the proxy answers a command that may be queued: else its server does.
fn is_own(command: &Command) -> bool {
    matches!(
        command.class,
        Class::Local(local) | Class::Container(Some(local)) if local.is_queued()
    )
}

/// The commands that begin and end a transaction.
impl Worker {
    pub(crate) fn multi(&mut self, id: u32) -> Dispatched {
        let client = &mut self.clients.session(id).client;
        if client.transaction.is_some() {
            return self.answer_error(id, error::NESTED_MULTI);
        }
        client.transaction = Some(Box::default());
        self.answer(id, |out| put_simple(out, "OK"))
    }

    pub(crate) fn discard(&mut self, id: u32) -> Dispatched {
        if self.clients.session(id).client.transaction.is_none() {
            return self.answer_error(id, error::DISCARD_WITHOUT_MULTI);
        }
        let done = self.unwatch(id);
        if done != Dispatched::Waits {
            self.clients.session(id).client.transaction = None;
        }
        done
    }

    /// A command between `MULTI` and `EXEC`.
    pub(crate) fn queue(
        &mut self,
        id: u32,
        command: &Command,
        request: &Request<'_>,
    ) -> Dispatched {
        let most = self.serving.max_request_bytes;
        let client = &mut self.clients.session(id).client;
        let transaction = client.transaction.as_mut().expect("one has begun");
        match transaction.queue(command, request, most) {
            Ok(()) => {
                if command.kind() == Kind::Script {
                    self.see_script(command, request);
                }
                self.clients.recount(id);
                self.answer(id, |out| put_simple(out, "QUEUED"))
            }
            Err(text) => self.refuse(id, text),
        }
    }

    /// Answers a request with an error that, within a transaction, aborts it.
    pub(crate) fn refuse(&mut self, id: u32, text: &(impl AsRef<[u8]> + ?Sized)) -> Dispatched {
        if let Some(transaction) = &mut self.clients.session(id).client.transaction {
            transaction.abort();
        }
        self.answer_error(id, text)
    }

    /// What calls nothing.
    pub(crate) fn refuse_unknown(&mut self, id: u32, request: &Request<'_>) -> Dispatched {
        let queues = self.clients.session(id).client.transaction.is_some();
        if queues && command::is_refused_in_transaction(request.arg(0)) {
            return self.refuse(id, error::NOT_IN_TRANSACTION);
        }
        self.refuse(id, &error::unknown(request))
    }

    /// A command with too few arguments, or too many. A malformed `EXEC` ends its transaction.
    pub(crate) fn refuse_arity(&mut self, id: u32, command: &Command) -> Dispatched {
        let text = error::arity_of(command);
        if command.class == Class::Transaction(Bound::Exec) {
            self.end_transaction(id);
            return self.answer_error(id, &error::exec_refused(&text));
        }
        self.refuse(id, &text)
    }

    pub(crate) fn exec(&mut self, id: u32) -> Dispatched {
        let done = self.try_exec(id);
        if done != Dispatched::Waits {
            self.end_transaction(id);
        }
        done
    }

    /// With it, whatever became of it, ends what was watched for it.
    fn end_transaction(&mut self, id: u32) {
        let session = self.clients.session(id);
        if session.client.transaction.take().is_some() {
            session.watch = None;
        }
    }

    fn try_exec(&mut self, id: u32) -> Dispatched {
        let Some(transaction) = &self.clients.session(id).client.transaction else {
            return self.answer_error(id, error::EXEC_WITHOUT_MULTI);
        };
        if transaction.aborted {
            return self.answer_error(id, error::TRANSACTION_DISCARDED);
        }
        let is_empty = transaction.count == 0;
        let is_own = transaction.count as usize == transaction.own.len();
        let slot = match transaction.keys {
            Keys::None => None,
            Keys::InOneSlot(slot) => Some(slot),
            Keys::InSeveral => {
                return self.answer_error(id, error::rejection(Rejection::CrossSlot));
            }
        };
        if self.clients.session(id).watch.is_some() {
            return self.exec_watched(id, slot);
        }
        if is_empty {
            return self.answer(id, |out| out.extend_from_slice(NOTHING));
        }
        if is_own {
            let transaction = self.clients.session(id).client.transaction.take();
            let mixture = self.mix(id, &transaction.expect("it was looked at"));
            return self.answer(id, |out| mixture.put(NOTHING, out));
        }
        let Some(topology) = &self.topology else {
            return self.answer_error(id, error::NO_TOPOLOGY);
        };
        match Owner::of(slot, topology) {
            Owner::Serves(group) => self.send_transaction(id, group),
            Owner::Held => self.hold(id),
            Owner::Missing(why) => self.answer_error(id, error::rejection(why)),
        }
    }

    fn send_transaction(&mut self, id: u32, group: u16) -> Dispatched {
        let queued = self.clients.session(id).client.transaction.as_ref();
        let admitted = if queued.is_some_and(|queued| queued.runs_script) {
            self.admit_script(id, group)
        } else {
            self.admit(id, group)
        };
        let pipe = match admitted {
            Ok(pipe) => pipe,
            Err(refused) => return refused,
        };
        let transaction = self.clients.session(id).client.transaction.take();
        let transaction = transaction.expect("it was looked at");
        for &sha in &transaction.scripts {
            self.show_script(pipe, sha);
        }
        let mixture = transaction.has_own().then(|| self.mix(id, &transaction));
        let micros = self.micros;
        let Self {
            clients, backends, ..
        } = self;
        let replies = transaction.put_block(backends.output(pipe));
        let kind = if transaction.may_write {
            Kind::Write
        } else {
            Kind::Read
        };
        let mut exec = clients.pending(id, kind, transaction.may_write, micros);
        if let Some(mixture) = mixture {
            exec = clients.mixed(exec, mixture);
        }
        // `OK`, and `QUEUED` for each command.
        for _ in 1..replies {
            let to = Recipient::Nobody;
            backends.expect(
                pipe,
                Pending {
                    to,
                    weight: 0,
                    ..exec
                },
            );
        }
        backends.expect(pipe, exec);
        self.taken(id);
        Dispatched::Done
    }

    /// Answers those of its commands that are the proxy's.
    pub(crate) fn mix(&mut self, id: u32, transaction: &Transaction) -> Mixture {
        let mut mixture = Mixture::new(transaction.count);
        let mut args = Vec::new();
        for own in &transaction.own {
            let raw = &transaction.frames[own.at.clone()];
            args.clear();
            let scanned = Progress::default().scan(raw, &mut args, &self.serving.limits, true);
            let request = Request::new(raw, &args);
            let (Ok(_), Some(command)) = (scanned, command::find(&request)) else {
                unreachable!("it was scanned and found when it was queued")
            };
            let (Class::Local(local) | Class::Container(Some(local))) = command.class else {
                unreachable!("only what the proxy answers is its own")
            };
            let mut context = local::Context {
                session: self.clients.session(id),
                seconds: self.seconds,
                serving: &self.serving,
                proxy: &self.proxy,
                topology: self.topology.as_deref(),
            };
            let mut answer = Vec::new();
            local::answer(local, &mut context, &request, &mut answer);
            mixture.add(own.place, answer);
        }
        mixture
    }
}
