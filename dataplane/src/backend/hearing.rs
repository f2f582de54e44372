//! Pipes on which servers also say what nobody has asked for: that keys have changed.
//!
//! Such a pipe tells its server first what it wants to hear of, and counts for nothing if the server does
//! not agree. In RESP3 it hears of the keys that were read by it on the same connection, behind the
//! replies; in RESP2 that is not possible, so that those pipes redirect to the **main** one of their kind,
//! which speaks RESP3. Once in a while a silent pipe asks for a sign of life: one that is lost without a
//! word must not keep clients believing that nothing has changed.
//!
//! Knows neither keys nor sessions: [`crate::tracking`] does.

use std::{cell::RefCell, rc::Rc, time::Duration};

use tokio::time::sleep;

use super::{Backends, Lane, Pending, Pipe, Recipient, State, Way};
use crate::{
    command::Kind,
    framer::Piece,
    resp::{BadReply, Protocol, put_bulk, put_header},
    tracking::Tracker,
    worker::Worker,
};

/// What a pipe hears of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Hearing {
    /// The keys that sessions of this worker have read by it.
    Shared,
    /// The same, of those that have called a script: nobody else waits behind it.
    Scripts,
    /// What this session alone has read by it, or has prefixes of; not what it has changed by it.
    Own(Tracker),
    /// All keys with a prefix of this stratum ([`crate::tracking`]).
    Broadcast(u32),
}

/// Of a pipe that hears.
pub(super) struct Ear {
    pub(super) hearing: Hearing,
    /// How many prefixes the server was told to tell of.
    told: usize,
    /// Answers that are still awaited to what it was told.
    agreeing: u32,
    /// It has agreed once since it was opened.
    agreed: bool,
    /// What the server said when it did not agree.
    pub(super) refusal: Option<String>,
}

/// How long a pipe may have been silent before it asks for a sign of life.
const BEAT: Duration = Duration::from_secs(1);
/// How often it is looked whether the main pipe is there.
const LOOK: Duration = Duration::from_millis(5);

impl Ear {
    pub(super) fn new(hearing: Hearing) -> Self {
        Self {
            hearing,
            told: 0,
            agreeing: 0,
            agreed: false,
            refusal: None,
        }
    }

    /// The server answers to what it was told. Once it owes no further answer: whether that is so for the
    /// first time since the pipe was opened.
    pub(super) fn answered(&mut self, piece: Piece<'_>) -> Result<Option<bool>, BadReply> {
        if !(piece.first && piece.last) || piece.bytes[0] == b'-' {
            self.refusal = Some(String::from_utf8_lossy(piece.bytes).trim_end().to_owned());
            return Err(BadReply);
        }
        self.agreeing -= 1;
        if self.agreeing > 0 {
            return Ok(None);
        }
        Ok(Some(!std::mem::replace(&mut self.agreed, true)))
    }

    /// The connection is gone.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.hearing);
    }
}

/// What a server is told at first, and how many answers it owes.
struct Wish {
    bytes: Vec<u8>,
    answers: u32,
}

impl Wish {
    fn say(&mut self, words: &[&[u8]]) {
        put_header(&mut self.bytes, b'*', words.len());
        words
            .iter()
            .for_each(|word| put_bulk(&mut self.bytes, word));
        self.answers += 1;
    }

    fn track(&mut self, redirect: Option<u64>, options: &[&[u8]], prefixes: &[&[u8]]) {
        let redirect = redirect.map(|id| id.to_string());
        let mut words: Vec<&[u8]> = vec![b"CLIENT", b"TRACKING", b"ON"];
        if let Some(id) = &redirect {
            words.extend([&b"REDIRECT"[..], id.as_bytes()]);
        }
        words.extend(options);
        for prefix in prefixes {
            words.extend([&b"PREFIX"[..], prefix]);
        }
        self.say(&words);
    }
}

/// The answer that is owed to a [`Wish`].
const ANSWER: Pending = Pending {
    to: Recipient::Agreement,
    kind: Kind::Read,
    may_write: false,
    since: 0,
    weight: 0,
};

/// Where a RESP2 pipe's messages go.
enum Main {
    /// To the connection of this id; or it needs none.
    There(Option<u64>),
    Opening,
    Down(String),
}

impl Backends {
    /// The pipe to a server that hears of this.
    pub(super) fn hearing_pipe(&mut self, server: u32, way: Way, hearing: Hearing) -> u32 {
        let is_resp3 = way.protocol == Protocol::Resp3;
        let name = (hearing, is_resp3, way.database, way.no_touch);
        if let Some(&pipe) = self.servers[server as usize].hearing.get(&name) {
            return pipe;
        }
        if way.protocol == Protocol::Resp2 {
            self.hearing_pipe(
                server,
                Way {
                    lane: way.lane,
                    ..Way::HEARING
                },
                hearing,
            );
        }
        let server = &mut self.servers[server as usize];
        let mut pipe = Pipe::new(server, way, &self.routing, self.max_backlog);
        pipe.ear = Some(Box::new(Ear::new(hearing)));
        pipe.framer.hear();
        let pipe = self.pipes.insert(pipe) as u32;
        server.hearing.insert(name, pipe);
        self.start(pipe);
        pipe
    }

    /// Pipes of this kind end, once nothing is under way on them.
    pub(crate) fn retire_hearing(&mut self, hearing: Hearing) {
        self.retire_hearings(|other| other == hearing);
    }

    /// Those of other strata than these end.
    pub(crate) fn retire_strata(&mut self, needed: &[u32]) {
        self.retire_hearings(
            |other| matches!(other, Hearing::Broadcast(stratum) if !needed.contains(&stratum)),
        );
    }

    fn retire_hearings(&mut self, applies: impl Fn(Hearing) -> bool) {
        let Self { servers, pipes, .. } = self;
        for (_, server) in servers {
            server.hearing.retain(|(hearing, ..), pipe| {
                let retires = applies(*hearing);
                if retires {
                    let pipe = &mut pipes[*pipe as usize];
                    pipe.retired = true;
                    pipe.wake();
                }
                !retires
            });
        }
    }

    /// Has each server have this pipe, and tell of all these prefixes.
    pub(crate) fn hear_everywhere(&mut self, way: Way, prefixes: &[Rc<[u8]>], micros: u32) {
        for server in self.primaries.clone() {
            let id = self.pipe_of(server, way);
            let pipe = &mut self.pipes[id as usize];
            let (Some(ear), State::Ready(_)) = (&mut pipe.ear, &pipe.state) else {
                continue; // it is told all of them when it is opened
            };
            if ear.told < prefixes.len() {
                let new: Vec<&[u8]> = prefixes[ear.told..].iter().map(AsRef::as_ref).collect();
                let mut wish = Wish {
                    bytes: Vec::new(),
                    answers: 0,
                };
                wish.track(None, &[b"BCAST"], &new);
                ear.told = prefixes.len();
                ear.agreeing += wish.answers;
                self.output(id).extend_from_slice(&wish.bytes);
                let since = micros;
                self.expect(id, Pending { since, ..ANSWER });
            }
        }
    }

    /// Whether all servers that can be reached have agreed to tell of so many prefixes on this pipe.
    pub(crate) fn all_hear(&mut self, way: Way, prefixes: usize) -> bool {
        self.primaries.clone().into_iter().all(|server| {
            let id = self.pipe_of(server, way);
            let pipe = &self.pipes[id as usize];
            match (&pipe.state, &pipe.ear) {
                (State::Down(_), _) => true,
                (State::Ready(_), Some(ear)) => {
                    ear.agreed && ear.agreeing == 0 && ear.told >= prefixes
                }
                (State::Ready(_) | State::Opening(_), _) => false,
            }
        })
    }

    /// Where the messages of a pipe go that speaks RESP2.
    fn main_of(&self, id: u32) -> Main {
        let pipe = &self.pipes[id as usize];
        let Some(ear) = pipe
            .ear
            .as_ref()
            .filter(|_| pipe.protocol == Protocol::Resp2)
        else {
            return Main::There(None);
        };
        let server = self.by_addr.get(&pipe.addr);
        let main = server.and_then(|&server| {
            let main = (ear.hearing, true, Way::HEARING.database, false);
            self.servers[server as usize].hearing.get(&main)
        });
        let Some(&main) = main else {
            return Main::Down("it is needed no longer".to_owned());
        };
        let main = &self.pipes[main as usize];
        match (&main.state, &main.ear) {
            (State::Down(why), _) => Main::Down(why.to_string()),
            (State::Ready(connection), Some(ear)) if ear.agreed => Main::There(Some(connection.id)),
            (State::Ready(_) | State::Opening(_), _) => Main::Opening,
        }
    }

    /// The main pipe is lost: those that redirect to it have nowhere to redirect to.
    pub(super) fn lose_redirecting(&mut self, main: u32) {
        let lost = &self.pipes[main as usize];
        let Some(hearing) = lost.ear.as_ref().map(|ear| ear.hearing) else {
            return;
        };
        if lost.protocol == Protocol::Resp2
            || lost.database != Way::HEARING.database
            || lost.no_touch
        {
            return;
        }
        let Some(&server) = self.by_addr.get(&lost.addr) else {
            return;
        };
        for ((other, resp3, ..), &pipe) in &self.servers[server as usize].hearing {
            if *other == hearing && !resp3 {
                let pipe = &mut self.pipes[pipe as usize];
                if matches!(pipe.state, State::Ready(_)) {
                    pipe.lost = Some("the connection for its invalidations is lost".to_owned());
                    pipe.wake();
                }
            }
        }
    }

    /// Asks silent pipes that hear for a sign of life.
    pub(super) fn beat(&mut self, micros: u32) {
        let now = self.now;
        let silent = |pipe: &Pipe| {
            pipe.ear.is_some()
                && matches!(pipe.state, State::Ready(_))
                && pipe.queue.is_empty()
                && now.saturating_duration_since(pipe.alive) >= BEAT
        };
        let found = self.pipes.iter().filter(|(_, pipe)| silent(pipe));
        let found: Vec<u32> = found.map(|(id, _)| id as u32).collect();
        for id in found {
            self.output(id).extend_from_slice(b"*1\r\n$4\r\nPING\r\n");
            let to = Recipient::Nobody;
            self.expect(
                id,
                Pending {
                    to,
                    since: micros,
                    ..ANSWER
                },
            );
        }
    }
}

/// Returns once it is known where the messages of a RESP2 pipe can go.
pub(super) async fn main_is_there(worker: &RefCell<Worker>, id: u32) -> Result<(), String> {
    loop {
        match worker.borrow().backends.main_of(id) {
            Main::There(_) => return Ok(()),
            Main::Opening => {} // it has deadlines of its own
            Main::Down(why) => return Err(why),
        }
        sleep(LOOK).await;
    }
}

impl Worker {
    /// A pipe that hears was opened: before all that waits to be sent, its server is told of what.
    pub(super) fn tell_wishes(&mut self, id: u32) -> Result<(), String> {
        let Main::There(redirect) = self.backends.main_of(id) else {
            return Err("the connection for its invalidations is lost".to_owned());
        };
        let Self {
            backends,
            clients,
            trackers,
            clock,
            ..
        } = self;
        let pipe = &mut backends.pipes[id as usize];
        let Some(ear) = &mut pipe.ear else {
            return Ok(());
        };
        let mut wish = Wish {
            bytes: Vec::new(),
            answers: 0,
        };
        ear.reset();
        match ear.hearing {
            Hearing::Shared | Hearing::Scripts => wish.track(redirect, &[], &[]),
            Hearing::Own(tracker) => {
                let way = Way {
                    protocol: pipe.protocol,
                    database: pipe.database,
                    no_touch: pipe.no_touch,
                    lane: Lane::Hearing(ear.hearing),
                };
                match trackers.own_prefixes(clients, tracker, way) {
                    Some(prefixes) => wish.track(redirect, &[b"NOLOOP", b"BCAST"], &prefixes),
                    None => wish.track(redirect, &[b"NOLOOP"], &[]),
                }
            }
            Hearing::Broadcast(stratum) => {
                let prefixes = trackers.prefixes(stratum);
                ear.told = prefixes.len();
                let prefixes: Vec<&[u8]> = prefixes.iter().map(AsRef::as_ref).collect();
                wish.track(None, &[b"BCAST"], &prefixes);
            }
        }
        ear.agreeing = wish.answers;
        pipe.out.splice(..0, wish.bytes);
        let since = clock.micros();
        for _ in 0..wish.answers {
            pipe.queue.push_first(Pending { since, ..ANSWER });
        }
        Ok(())
    }
}
