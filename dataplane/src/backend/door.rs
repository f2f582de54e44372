//! How a connection to a server is opened: the only way there is one.
//!
//! A connection says who it is ([`mod@greeting`]), and is used only once the server has agreed to all of it, and
//! its fence record lets whoever comes in ([`proto::fence`]): before that is known nothing else is sent,
//! and behind a refused `SELECT` a request would land in another database. Knows no requests; what the
//! connection is for is the pipe's ([`super`]), the lease's ([`crate::lease`]) or the subscriber's
//! ([`crate::pubsub`]).
//!
//! What is compared with the record is the epoch by which the **oldest** request was routed that may go by
//! the connection: the worker's own, when the opening began, never one that the worker or another has got
//! since. A connection that was let in once stays so. The leader that raises the record has the server
//! close those that must not; so a lease that lies in the pool since an older epoch, and a pipe that is
//! ready, need not ask again.
//!
//! What changes no key, and is to reach a server that lets nobody in, is called out past the door
//! ([`Door::call_out`]).
//!
//! Invariant: what comes out of a door is a connection that whoever came may use, and on which nothing is
//! under way.

use std::{fmt, future::poll_fn, io, rc::Rc, time::Duration};

use proto::{ServerAddr, credentials::Login, fence, settled};
use tokio::time::timeout;

use super::Way;
use super::greeting::{self, Routing, greeting};
use crate::{
    error,
    fanout::Outcome,
    resp::{Protocol, ReplyProgress, put_bulk, put_header},
    socket::Socket,
};

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    pub(crate) addr: ServerAddr,
    pub(super) login: Option<Login>,
    pub(crate) protocol: Protocol,
    pub(crate) database: u16,
    /// See [`super::Way`].
    pub(crate) no_touch: bool,
    /// By what those route who come.
    pub(super) routing: Rc<Routing>,
    /// A server that has restarted may be used.
    pub(super) trusts_restarted: bool,
    /// What opening it may take.
    pub(super) timeout: Duration,
    /// What the connection is called at the server.
    pub(super) name: String,
}

/// A connection that may be used.
pub(crate) struct Connection {
    pub(crate) socket: Socket,
    /// What the server calls it.
    pub(crate) id: u64,
    /// The server's process.
    pub(crate) run_id: String,
}

impl Connection {
    /// What others call it, who know its server.
    pub(crate) fn of(&self, server: &ServerAddr) -> settled::Connection {
        settled::Connection {
            server: server.clone(),
            run_id: self.run_id.clone(),
            client_id: self.id,
        }
    }
}

/// Why a connection is not there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Shut {
    /// The server cannot be reached, or is lost, or does not agree.
    Down(String),
    /// The fence: nothing was sent.
    Refused(fence::Refusal),
}

impl Shut {
    /// What is said of a request that was not executed for it.
    pub(crate) fn error(&self, addr: &str) -> String {
        match self {
            Self::Down(why) => error::server_down(addr, why),
            Self::Refused(why) => error::server_refuses(addr, why),
        }
    }
}

impl fmt::Display for Shut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down(why) => f.write_str(why),
            Self::Refused(why) => why.fmt(f),
        }
    }
}

impl From<io::Error> for Shut {
    fn from(e: io::Error) -> Self {
        Self::Down(e.to_string())
    }
}

impl Door {
    /// Dials, introduces itself, and waits until the server has agreed to all of it.
    pub(crate) async fn open(&self) -> Result<Connection, Shut> {
        let dial = async {
            let socket = self.dial().await?;
            self.enter(socket).await
        };
        self.in_time(dial).await
    }

    /// Dials, logs in, and says this without asking whether it is let in: what the server answers; else why it
    /// does not, and what became of what was said.
    pub(super) async fn call_out(&self, said: &[u8]) -> Result<Vec<u8>, (Shut, Outcome)> {
        let dialled = self.in_time(async { Ok(self.dial().await?) }).await;
        let socket = dialled.map_err(|why| (why, Outcome::NotExecuted))?;
        let call = async {
            let mut out = Vec::new();
            let logs_in = greeting::log_in(self.login.as_ref(), &mut out);
            out.extend_from_slice(said);
            let mut replies = converse(&socket, &out, usize::from(logs_in) + 1).await?;
            Ok(replies.pop().unwrap_or_default())
        };
        let answered = self.in_time(call).await;
        answered.map_err(|why| (why, Outcome::Unknown))
    }

    async fn dial(&self) -> io::Result<Socket> {
        let stream = tokio::net::TcpStream::connect(self.addr.as_str()).await?;
        stream.set_nodelay(true)?;
        Socket::new(stream.into_std()?)
    }

    /// Introduces itself on a connection, and is let in.
    async fn enter(&self, socket: Socket) -> Result<Connection, Shut> {
        let (hello, replies) = greeting(self.login.as_ref(), self.protocol, &self.name);
        let replies = converse(&socket, &hello, replies).await?;
        let welcome = greeting::welcome(&replies).map_err(Shut::Down)?;
        let id = match welcome.id {
            Some(id) => id,
            None => self.ask_id(&socket).await?,
        };
        welcome
            .judge(&self.routing, self.trusts_restarted)
            .map_err(Shut::Refused)?;
        if self.database != 0 {
            let mut select = Vec::new();
            put_select(&mut select, self.database);
            ask(&socket, &select, 1).await?;
        }
        if self.no_touch {
            leave_untouched(&socket, true).await?;
        }
        let run_id = welcome.run_id;
        Ok(Connection { socket, id, run_id })
    }

    /// Finds its id among all connections.
    async fn ask_id(&self, socket: &Socket) -> io::Result<u64> {
        let mut list = Vec::new();
        put_command(&mut list, &[b"CLIENT", b"LIST"]);
        let list = ask(socket, &list, 1).await?;
        greeting::id_in_list(&list, &self.name)
            .ok_or_else(|| io::Error::other("it told no CLIENT ID"))
    }

    /// What is done to open a connection, or to prepare one, has a deadline.
    pub(crate) async fn in_time<T>(
        &self,
        doing: impl Future<Output = Result<T, Shut>>,
    ) -> Result<T, Shut> {
        timeout(self.timeout, doing).await.unwrap_or_else(|_| {
            let why = format!("no answer to the login within {:?}", self.timeout);
            Err(Shut::Down(why))
        })
    }

    /// How its connection is used, whichever lane that is.
    pub(crate) fn way(&self) -> Way {
        Way {
            protocol: self.protocol,
            database: self.database,
            no_touch: self.no_touch,
            ..Way::USUAL
        }
    }

    /// Its connection is used this way now.
    pub(crate) fn turn(&mut self, way: Way) {
        (self.protocol, self.database) = (way.protocol, way.database);
        self.no_touch = way.no_touch;
    }

    /// Whether another leads to the same server with the same login.
    pub(crate) fn leads_as(&self, other: &Self) -> bool {
        self.addr == other.addr && self.login == other.login
    }
}

pub(crate) fn put_command(out: &mut Vec<u8>, words: &[&[u8]]) {
    put_header(out, b'*', words.len());
    words.iter().for_each(|word| put_bulk(out, word));
}

pub(crate) fn put_select(out: &mut Vec<u8>, database: u16) {
    put_command(out, &[b"SELECT", database.to_string().as_bytes()]);
}

/// Sends what has so many replies to a connection on which nothing is under way, and waits for them:
/// their bytes. If the server refuses any of it, that is the error.
pub(crate) async fn ask(socket: &Socket, request: &[u8], replies: usize) -> io::Result<Vec<u8>> {
    let replies = converse(socket, request, replies).await?;
    match replies.iter().find_map(|reply| greeting::refused(reply)) {
        Some(error) => Err(io::Error::other(error)),
        None => Ok(replies.concat()),
    }
}

/// Has keys not be touched by what is read, or again. A server that does not know it, or refuses it, goes on
/// as for all others: it is asked before any client is told that it can ([`crate::session`]).
pub(crate) async fn leave_untouched(socket: &Socket, untouched: bool) -> io::Result<()> {
    let mut request = Vec::new();
    let mode: &[u8] = if untouched { b"ON" } else { b"OFF" };
    put_command(&mut request, &[b"CLIENT", b"NO-TOUCH", mode]);
    converse(socket, &request, 1).await.map(drop)
}

/// The same; each reply, whatever it says.
async fn converse(socket: &Socket, request: &[u8], count: usize) -> io::Result<Vec<Vec<u8>>> {
    send(socket, request).await?;
    let mut bytes = Vec::new();
    let mut replies = Vec::with_capacity(count);
    let mut progress = ReplyProgress::default();
    let mut read = [0; 1024];
    while replies.len() < count {
        match progress.scan(&bytes).map_err(io::Error::other)? {
            Some(len) => {
                let rest = bytes.split_off(len);
                replies.push(std::mem::replace(&mut bytes, rest));
            }
            None => match poll_fn(|cx| socket.poll_read(cx, &mut read)).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                len => bytes.extend_from_slice(&read[..len]),
            },
        }
    }
    if bytes.is_empty() {
        Ok(replies)
    } else {
        Err(io::Error::other("it said more than it was asked"))
    }
}

async fn send(socket: &Socket, bytes: &[u8]) -> io::Result<()> {
    let mut sent = 0;
    while sent < bytes.len() {
        match socket.write(&bytes[sent..]) {
            Ok(len) => sent += len,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                // The first time it is only registered that it is waited for.
                let mut looked = false;
                let mut look = || std::mem::replace(&mut looked, true);
                poll_fn(|cx| socket.poll_writable(cx, &mut look)).await?;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
