//! `MULTI … EXEC`: what is queued in between, and how it goes to its server as one block.
//!
//! Nothing of a transaction is sent before `EXEC`: until then it costs no server anything, and one that
//! is given up leaves nothing behind. Then `MULTI`, the commands as they came, and `EXEC` go into a pipe
//! in one piece, so that nothing of another session stands between them; only the reply to `EXEC` is
//! the client's.
//!
//! That is a transaction of one group alone. In one that is **joint** the proxy has a part, or other groups:
//! it goes to each of them as a block of its own ([`blocks`]), and the proxy's answers come in their place
//! ([`crate::lease::exec`]).
//!
//! What is wrong with a command is said when it is queued, as far as the proxy can know, and `EXEC` then
//! executes nothing. The server checks again: what it refuses while it queues makes its `EXEC` fail, too.
//!
//! Invariant: what concerns keys is executed as a whole, by the owner of the one slot of them all, or not at
//! all.

use proto::Slot;

use crate::{
    backend::{Pending, Recipient},
    command::{self, Across, Bound, Class, Command, Kind, PubSub, Queued, flag},
    error,
    pubsub::home,
    resp::{Arg, Limits, Progress, Request, Scanned, put_simple},
    route::{Owner, Rejection, denied, names_reserved},
    scripts::{self, Sha},
    session::Dispatched,
    worker::Worker,
};

pub(crate) mod blocks;

const MULTI: &[u8] = b"*1\r\n$5\r\nMULTI\r\n";
const EXEC: &[u8] = b"*1\r\n$4\r\nEXEC\r\n";
/// What a server would say to `EXEC` of nothing.
const NOTHING: &[u8] = b"*0\r\n";

/// What a client has queued since `MULTI`.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    /// The commands, as they came.
    frames: Vec<u8>,
    /// The scripts that they call.
    scripts: Vec<Sha>,
    count: u32,
    keys: Keys,
    may_write: bool,
    may_be_replicated: bool,
    /// One of the commands runs a script.
    runs_script: bool,
    /// A server has to execute one of them.
    asks: bool,
    /// One of them is not its group's alone.
    is_joint: bool,
    /// One of them may change any key, of any group.
    changes_all: bool,
    /// A command was refused: `EXEC` will execute nothing.
    aborted: bool,
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

/// The first of some requests that were all found to be some before: its length, its command, and itself.
/// `args` is empty.
pub(crate) fn first_frame<'a>(
    frames: &'a [u8],
    args: &'a mut Vec<Arg>,
    limits: &Limits,
) -> (usize, &'static Command, Request<'a>) {
    let scanned = Progress::default().scan(frames, args, limits, true);
    let Ok(Scanned::Request(len)) = scanned else {
        unreachable!("it was scanned before")
    };
    let request = Request::new(&frames[..len], args);
    let command = command::find(&request).expect("it was found before");
    (len, command, request)
}

/// Calls `visit` with each of these requests, that were all found to be some before.
pub(crate) fn visit_frames(
    frames: &[u8],
    limits: &Limits,
    mut visit: impl FnMut(&Command, &Request<'_>),
) {
    let (mut rest, mut args) = (frames, Vec::new());
    while !rest.is_empty() {
        let (len, command, request) = first_frame(rest, &mut args, limits);
        visit(command, &request);
        args.clear();
        rest = &rest[len..];
    }
}

impl Transaction {
    /// Bytes of memory it owns.
    pub(crate) fn memory(&self) -> usize {
        size_of::<Self>() + self.frames.capacity() + self.scripts.capacity() * size_of::<Sha>()
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

    /// Whether a server has to execute one of its commands.
    pub(crate) fn asks(&self) -> bool {
        self.asks
    }

    /// Whether one of them may change any key, of any group.
    pub(crate) fn changes_all(&self) -> bool {
        self.changes_all
    }

    /// Whether it matters if it was executed.
    pub(crate) fn may_write(&self) -> bool {
        self.may_write
    }

    /// The scripts that it calls.
    pub(crate) fn scripts(&self) -> &[Sha] {
        &self.scripts
    }

    /// Writes what is sent to have one group execute all of it, and returns how many replies that has; the
    /// last one is the client's.
    pub(crate) fn put_block(&self, out: &mut Vec<u8>) -> u32 {
        put_block(&self.frames, out);
        self.count + 2
    }

    /// A command was refused. What is queued is of no use any more.
    pub(crate) fn abort(&mut self) {
        self.aborted = true;
        self.frames = Vec::new();
    }

    /// Queues a command, or says why it cannot be.
    fn queue(
        &mut self,
        command: &Command,
        request: &Request<'_>,
        most: usize,
    ) -> Result<(), &'static str> {
        let queued = command.class.queued();
        if queued == Queued::Not {
            return Err(match command.class {
                Class::Across(Across::ClusterKeys) => error::GOES_THROUGH_KEYS,
                _ => error::NOT_IN_TRANSACTION,
            });
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
        self.count += 1;
        self.is_joint |= queued != Queued::ByGroup;
        self.asks |= queued != Queued::ByProxy && !matches!(command.class, Class::Local(_));
        self.may_write |= command.may_write() && queued != Queued::ByProxy;
        self.changes_all |= queued == Queued::ByGroups && command.flags & flag::WRITE != 0;
        self.may_be_replicated |= command.may_be_replicated();
        self.runs_script |= command.runs_script();
        if self.aborted {
            return Ok(());
        }
        if self.frames.len() + request.raw().len() > most {
            return Err(error::TOO_LARGE_TO_HOLD);
        }
        self.frames.extend_from_slice(request.raw());
        self.scripts.extend(scripts::called(command, request));
        Ok(())
    }
}

/// Writes what has a server execute these commands as one.
fn put_block(frames: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(MULTI);
    out.extend_from_slice(frames);
    out.extend_from_slice(EXEC);
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
                // They are forgotten only when all is executed.
                if command.kind() == Kind::Script && !scripts::forgets(command, request) {
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
        let (is_empty, is_joint) = (transaction.count == 0, transaction.is_joint);
        let slot = match transaction.keys {
            Keys::None => None,
            Keys::InOneSlot(slot) => Some(slot),
            Keys::InSeveral => {
                return self.answer_error(id, error::rejection(Rejection::CrossSlot));
            }
        };
        if is_joint {
            return self.exec_jointly(id, slot);
        }
        if self.clients.session(id).watch.is_some() {
            return self.exec_watched(id, slot);
        }
        if is_empty {
            return self.answer(id, |out| out.extend_from_slice(NOTHING));
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
        let exec = clients.pending(id, kind, transaction.may_write, micros);
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
}
