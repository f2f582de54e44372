//! The roll of all clients of the proxy: what is asked of the sessions of every worker together.
//!
//! Each worker answers for its own sessions ([`crate::crew`]); here it is read what is asked, and made
//! one reply of the answers. A client is written as one line of `CLIENT LIST`, as Redis writes it.
//!
//! Invariant: a client of this proxy that is connected throughout is in the list exactly once.

use std::fmt::Write as _;

use super::{Dispatched, Session};
use crate::{
    command::Asked,
    error,
    resp::{Protocol, Request, parse_int, put_verbatim},
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
                let id = parse_int(arg).ok_or_else(|| error::BAD_CLIENT_ID.to_owned())?;
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
        let flags = match (subscriptions, queued) {
            (Some(_), Some(_)) => "Px",
            (Some(_), None) => "P",
            (None, Some(_)) => "x",
            (None, None) => "N",
        };
        let subscriptions = subscriptions.map_or([0; 3], |subscriptions| subscriptions.counts());
        let [channels, patterns, shard_channels] = subscriptions;
        let output = self.outbox.memory();
        // Writing into a string cannot fail.
        let _ = writeln!(
            line,
            "id={} addr={} laddr={} fd={} name={} age={} idle={} flags={flags} db={} sub={channels} \
             psub={patterns} ssub={shard_channels} multi={} qbuf={} qbuf-free={} argv-mem={args} multi-mem={} rbs={output} rbp={output} \
             obl={} oll=0 omem=0 tot-mem={} events=r cmd={} user=default redir=-1 resp={} lib-name={} \
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
            client.protocol.number(),
            identity.lib_name,
            identity.lib_version,
        );
    }
}

impl Worker {
    pub(super) fn ask_crew(&mut self, id: u32, what: Asked, request: &Request<'_>) -> Dispatched {
        match what {
            Asked::ClientList => self.client_list(id, request),
        }
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
