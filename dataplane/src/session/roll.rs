//! The roll of all clients of the proxy: what is asked of the sessions of every worker together.
//!
//! Each worker answers for its own sessions ([`crate::crew`]); here it is read what is asked, and made
//! one reply of the answers. A client is written as one line of `CLIENT LIST`, as Redis writes it.
//!
//! Invariant: a client of this proxy that is connected throughout is in the list exactly once.

use std::{fmt::Write as _, net::SocketAddr, sync::atomic::Ordering::Relaxed};

use tokio::time::Instant;

use super::{Dispatched, Session};
use crate::{
    backend::Unblock,
    command::Asked,
    error,
    pause::Pause,
    resp::{Protocol, Request, parse_int, put_error, put_int, put_simple, put_verbatim},
    tracking::Options,
    worker::Worker,
};

/// Clients by what they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Normal,
    Pubsub,
    /// Servers that replicate each other: no proxy has any.
    Replication,
}

impl Kind {
    fn parse(name: &[u8]) -> Option<Self> {
        match name.to_ascii_lowercase().as_slice() {
            b"normal" => Some(Self::Normal),
            b"pubsub" => Some(Self::Pubsub),
            b"master" | b"slave" | b"replica" => Some(Self::Replication),
            _ => None,
        }
    }
}

/// Which clients are listed.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Listed {
    All,
    OfKind(Kind),
    /// In this order.
    ById(Vec<u64>),
}

impl Listed {
    fn parse(request: &Request<'_>) -> Result<Self, Vec<u8>> {
        if request.argc() == 2 {
            return Ok(Self::All);
        }
        let by = request.arg(2);
        if by.eq_ignore_ascii_case(b"TYPE") && request.argc() == 4 {
            let kind = request.arg(3);
            return match Kind::parse(kind) {
                Some(kind) => Ok(Self::OfKind(kind)),
                None => Err(error::unknown_client_type(kind)),
            };
        }
        if by.eq_ignore_ascii_case(b"ID") && request.argc() > 3 {
            let id = |arg| {
                let id = parse_int(arg).ok_or_else(|| Vec::from(error::BAD_CLIENT_ID))?;
                Ok(u64::try_from(id).unwrap_or(0)) // no client has that
            };
            return request
                .args_from(3)
                .map(id)
                .collect::<Result<_, _>>()
                .map(Self::ById);
        }
        Err(error::SYNTAX.into())
    }

    fn has(&self, session: &Session) -> bool {
        match self {
            Self::All => true,
            Self::OfKind(kind) => session.kind() == *kind,
            Self::ById(ids) => ids.contains(&session.client.id),
        }
    }
}

/// Which clients are closed: those to whom all of this applies.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Doomed {
    id: Option<u64>,
    addr: Option<String>,
    local_addr: Option<String>,
    kind: Option<Kind>,
    /// In seconds.
    age: Option<u64>,
    skip_asker: bool,
    /// The old form of the command, which means one, and says whether there was one.
    is_one: bool,
}

impl Doomed {
    fn parse(request: &Request<'_>) -> Result<Self, Vec<u8>> {
        let text = |arg| Some(String::from_utf8_lossy(arg).into_owned());
        if request.argc() == 3 {
            return Ok(Self {
                addr: text(request.arg(2)),
                is_one: true,
                ..Self::default()
            });
        }
        let mut doomed = Self {
            skip_asker: true,
            ..Self::default()
        };
        let mut args = request.args_from(2);
        while let Some(option) = args.next() {
            let value = args.next().ok_or(error::SYNTAX)?;
            match option.to_ascii_lowercase().as_slice() {
                b"id" => doomed.id = Some(positive(value).ok_or(error::CLIENT_ID_NOT_POSITIVE)?),
                b"addr" => doomed.addr = text(value),
                b"laddr" => doomed.local_addr = text(value),
                b"type" => {
                    let kind = Kind::parse(value);
                    doomed.kind = Some(kind.ok_or_else(|| error::unknown_client_type(value))?);
                }
                // There is one user, and everybody is that.
                b"user" if value == b"default" => {}
                b"user" => return Err(error::no_such_user(value)),
                b"maxage" => doomed.age = Some(positive(value).ok_or(error::BAD_MAX_AGE)?),
                b"skipme" => {
                    doomed.skip_asker = match value.to_ascii_lowercase().as_slice() {
                        b"yes" => true,
                        b"no" => false,
                        _ => return Err(error::SYNTAX.into()),
                    }
                }
                _ => return Err(error::SYNTAX.into()),
            }
        }
        Ok(doomed)
    }

    fn has(&self, session: &Session, asker: u64) -> bool {
        let (client, identity) = (&session.client, &session.client.identity);
        let addr = |wanted: &Option<String>, addr: SocketAddr| {
            wanted
                .as_ref()
                .is_none_or(|wanted| *wanted == addr.to_string())
        };
        self.id.is_none_or(|id| id == client.id)
            && addr(&self.addr, identity.peer)
            && addr(&self.local_addr, identity.local)
            && self.kind.is_none_or(|kind| kind == session.kind())
            && self
                .age
                .is_none_or(|age| identity.since.elapsed().as_secs() >= age)
            && !(self.skip_asker && client.id == asker)
    }
}

fn positive(value: &[u8]) -> Option<u64> {
    let value = u64::try_from(parse_int(value)?).ok()?;
    (value > 0).then_some(value)
}

/// Who asks, and with what: his request is not in his session any more.
#[derive(Clone, Copy)]
struct Asker {
    client: u64,
    /// Bytes of the request, and of its arguments alone.
    request: usize,
    args: usize,
}

impl Asker {
    fn new(client: u64, request: &Request<'_>) -> Self {
        Self {
            client,
            request: request.raw().len(),
            args: request.args_from(0).map(<[u8]>::len).sum(),
        }
    }
}

impl Session {
    fn kind(&self) -> Kind {
        match self.client.subscriptions {
            Some(_) => Kind::Pubsub,
            None => Kind::Normal,
        }
    }

    /// What `CLIENT INFO` answers to this request.
    pub(crate) fn info(&self, request: &Request<'_>, seconds: u32) -> String {
        let mut line = String::new();
        self.describe(&mut line, Asker::new(self.client.id, request), seconds);
        line
    }

    /// A line of `CLIENT LIST`. The fields of Redis 7.0 stand in its order, newer ones behind them.
    fn describe(&self, line: &mut String, asker: Asker, seconds: u32) {
        let client = &self.client;
        let identity = &client.identity;
        let (request, args) = if client.id == asker.client {
            (asker.request, asker.args)
        } else {
            (0, 0)
        };
        let queued = client.transaction.as_ref();
        let subscriptions = client.subscriptions.as_ref();
        let (tracking, tracked) = (client.tracking.as_ref(), client.tracked());
        let mut flags = String::new();
        for (applies, flag) in [
            (client.is_monitor, 'O'),
            (subscriptions.is_some(), 'P'),
            (queued.is_some(), 'x'),
            (self.detour.as_ref().is_some_and(|it| it.is_blocked()), 'b'),
            (tracked.is_some(), 't'),
            (tracking.is_some_and(|tracking| tracking.is_broken()), 'R'),
            (tracked.is_some_and(Options::broadcasts), 'B'),
            (identity.no_evict, 'e'),
            (client.no_touch, 'T'),
        ] {
            flags.extend(applies.then_some(flag));
        }
        if flags.is_empty() {
            flags.push('N');
        }
        let subscriptions = subscriptions.map_or([0; 3], |subscriptions| subscriptions.counts());
        let [channels, patterns, shard_channels] = subscriptions;
        let output = self.outbox.memory();
        // Writing into a string cannot fail.
        let _ = writeln!(
            line,
            "id={} addr={} laddr={} fd={} name={} age={} idle={} flags={flags} db={} sub={channels} \
             psub={patterns} ssub={shard_channels} multi={} qbuf={} qbuf-free={} argv-mem={args} multi-mem={} rbs={output} rbp={output} \
             obl={} oll=0 omem=0 tot-mem={} events=r cmd={} user=default redir={} resp={} lib-name={} \
             lib-ver={} watch=0",
            client.id,
            identity.peer,
            identity.local,
            self.socket.number(),
            identity.name,
            identity.since.elapsed().as_secs(),
            seconds - self.active,
            client.database,
            queued.map_or(-1, |queued| i64::from(queued.count())),
            request + self.input.len(),
            self.input.capacity() - self.input.len(),
            queued.map_or(0, |queued| queued.memory()),
            self.outbox.buffered(),
            self.memory(),
            self.last.map_or("NULL", |command| command.name),
            tracked.map_or(-1, Options::redirection),
            client.protocol.number(),
            identity.lib_name,
            identity.lib_version,
        );
    }
}

impl Worker {
    pub(crate) fn ask_crew(&mut self, id: u32, what: Asked, request: &Request<'_>) -> Dispatched {
        match what {
            Asked::ClientKill => self.client_kill(id, request),
            Asked::ClientList => self.client_list(id, request),
            Asked::ClientPause => match Pause::parse(request, Instant::now()) {
                Ok(pause) => self.set_pause(id, Some(pause)),
                Err(text) => self.answer_error(id, &text),
            },
            Asked::ClientUnblock => self.client_unblock(id, request),
            Asked::ClientUnpause => self.set_pause(id, None),
            Asked::Monitor => self.monitor(id),
        }
    }

    /// Begins a pause at all workers, or ends it.
    fn set_pause(&mut self, id: u32, pause: Option<Pause>) -> Dispatched {
        let set = move |worker: &mut Self| {
            worker.pause =
                pause.map(|pause| worker.pause.map_or(pause, |before| pause.and(before)));
            worker.attend();
            worker.stats.paused.store(0, Relaxed);
            worker.clients.retry(usize::MAX);
        };
        self.ask_all(id, set, |_, out| put_simple(out, "OK"))
    }

    /// How many wait for the end of a pause: of those who look again with the next tick, they alone are
    /// neither held nor short of memory.
    pub(crate) fn count_paused(&mut self) {
        let waits = |session: &Session| session.is_waiting && session.held_since.is_none();
        let sessions = self.clients.sessions.iter();
        let paused = match self.pause {
            Some(_) => sessions.filter(|(_, session)| waits(session)).count(),
            None => 0,
        };
        self.stats.paused.store(paused as u64, Relaxed);
    }

    fn client_unblock(&mut self, id: u32, request: &Request<'_>) -> Dispatched {
        if request.argc() > 4 {
            return self.answer_error(id, &*error::bad_subcommand(request));
        }
        let how = match request.args_from(3).next().map(<[u8]>::to_ascii_lowercase) {
            None => Unblock::AsIfTimedOut,
            Some(reason) => match reason.as_slice() {
                b"timeout" => Unblock::AsIfTimedOut,
                b"error" => Unblock::WithError,
                _ => return self.answer_error(id, error::BAD_UNBLOCK_REASON),
            },
        };
        let Some(client) = parse_int(request.arg(2)) else {
            return self.answer_error(id, error::NOT_AN_INTEGER);
        };
        let unblock = move |worker: &mut Self| worker.unblock(client, how);
        self.ask_all(id, unblock, |found, out| {
            put_int(out, found.into_iter().sum());
        })
    }

    /// Ends what this client waits for; how many of them there were.
    fn unblock(&mut self, client: i64, how: Unblock) -> i64 {
        let sessions = self.clients.sessions.iter_mut();
        let mut found = 0;
        for (_, session) in sessions {
            if i64::try_from(session.client.id) == Ok(client)
                && let Some(detour) = &mut session.detour
                && detour.unblock(how)
            {
                session.wake();
                found += 1;
            }
        }
        found
    }

    fn client_kill(&mut self, id: u32, request: &Request<'_>) -> Dispatched {
        let doomed = match Doomed::parse(request) {
            Ok(doomed) => doomed,
            Err(text) => return self.answer_error(id, &text),
        };
        let asker = self.clients.session(id).client.id;
        let one = doomed.is_one;
        let kill = move |worker: &mut Self| worker.kill(&doomed, asker);
        let dispatched = self.ask_all(id, kill, move |killed, out| {
            match killed.into_iter().sum() {
                0 if one => put_error(out, error::NO_SUCH_CLIENT),
                _ if one => put_simple(out, "OK"),
                killed => put_int(out, killed),
            }
        });
        if dispatched == Dispatched::Done && !self.clients.session(id).is_serving() {
            return Dispatched::Last;
        }
        dispatched
    }

    /// Closes clients, how many; the one that asks for it gets its reply first.
    fn kill(&mut self, doomed: &Doomed, asker: u64) -> i64 {
        let sessions = self.clients.sessions.iter();
        let found: Vec<u32> = sessions
            .filter(|(_, session)| !session.is_closed() && doomed.has(session, asker))
            .map(|(id, _)| id as u32)
            .collect();
        for &id in &found {
            let session = self.clients.session(id);
            if session.client.id == asker {
                session.finish();
            } else {
                self.clients.break_off(id);
            }
        }
        found.len() as i64
    }

    fn client_list(&mut self, id: u32, request: &Request<'_>) -> Dispatched {
        let listed = match Listed::parse(request) {
            Ok(listed) => listed,
            Err(text) => return self.answer_error(id, &text),
        };
        let client = &self.clients.session(id).client;
        let (asker, protocol) = (Asker::new(client.id, request), client.protocol);
        let wanted = listed.clone();
        let lines = move |worker: &mut Self| worker.lines(&wanted, asker);
        self.ask_all(id, lines, move |lines, out| {
            put_list(lines, &listed, protocol, out);
        })
    }

    /// Of each client its id, and its line.
    fn lines(&self, listed: &Listed, asker: Asker) -> Vec<(u64, String)> {
        let sessions = self.clients.sessions.iter().map(|(_, session)| session);
        sessions
            .filter(|session| !session.is_closed() && listed.has(session))
            .map(|session| {
                let mut line = String::new();
                session.describe(&mut line, asker, self.seconds);
                (session.client.id, line)
            })
            .collect()
    }
}

/// Ids grow: by id is by the time when they connected.
fn put_list(
    lines: Vec<Vec<(u64, String)>>,
    listed: &Listed,
    protocol: Protocol,
    out: &mut Vec<u8>,
) {
    let mut lines = lines.concat();
    lines.sort_unstable();
    let text: String = match listed {
        Listed::All | Listed::OfKind(_) => lines.into_iter().map(|(_, line)| line).collect(),
        Listed::ById(ids) => {
            let line = |id: &u64| {
                let at = lines.binary_search_by_key(id, |(id, _)| *id).ok()?;
                Some(lines[at].1.as_str())
            };
            ids.iter().filter_map(line).collect()
        }
    };
    put_verbatim(out, protocol, &text);
}
