//! How a connection to a server is opened.
//!
//! A connection says who it is, and is used only once the server has agreed to all of it: behind a refused
//! `SELECT` a request would land in another database. Knows no requests; what the connection is for is
//! the pipe's ([`super`]) or the lease's ([`crate::lease`]).
//!
//! Invariant: what comes out of a door is a connection on which nothing is under way.

use std::{future::poll_fn, io, time::Duration};

use proto::{ServerAddr, credentials::Login};
use tokio::time::timeout;

use crate::{
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
    /// What opening it may take.
    pub(super) timeout: Duration,
    /// What the connection is called at the server.
    pub(super) name: String,
}

impl Door {
    /// Dials, introduces itself, and waits until the server has agreed to all of it.
    pub(crate) async fn open(&self) -> Result<Socket, String> {
        let (hello, replies) = self.greeting();
        let dial = async {
            let stream = tokio::net::TcpStream::connect(self.addr.as_str()).await?;
            stream.set_nodelay(true)?;
            let socket = Socket::new(stream.into_std()?)?;
            ask(&socket, &hello, replies).await?;
            Ok::<_, io::Error>(socket)
        };
        self.in_time(dial).await
    }

    /// What is done to open a connection, or to prepare one, has a deadline.
    pub(crate) async fn in_time<T>(
        &self,
        doing: impl Future<Output = io::Result<T>>,
    ) -> Result<T, String> {
        match timeout(self.timeout, doing).await {
            Ok(done) => done.map_err(|e| e.to_string()),
            Err(_) => Err(format!("no answer to the login within {:?}", self.timeout)),
        }
    }

    /// Whether another leads to the same server with the same login.
    pub(crate) fn leads_as(&self, other: &Self) -> bool {
        self.addr == other.addr && self.login == other.login
    }

    /// What is said first on a new connection, and how many replies it has.
    fn greeting(&self) -> (Vec<u8>, usize) {
        let mut out = Vec::new();
        let mut replies = 1;
        if let Some(Login { username, password }) = &self.login {
            let mut words: Vec<&[u8]> = vec![b"AUTH"];
            words.extend(username.iter().map(String::as_bytes));
            words.push(password.expose().as_bytes());
            put_command(&mut out, &words);
            replies += 1;
        }
        if self.protocol == Protocol::Resp3 {
            put_command(&mut out, &[b"HELLO", b"3"]);
            replies += 1;
        }
        put_command(&mut out, &[b"CLIENT", b"SETNAME", self.name.as_bytes()]);
        if self.database != 0 {
            put_select(&mut out, self.database);
            replies += 1;
        }
        (out, replies)
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
    send(socket, request).await?;
    let (mut bytes, mut taken) = (Vec::new(), 0);
    let mut progress = ReplyProgress::default();
    let mut read = [0; 1024];
    for _ in 0..replies {
        let len = loop {
            let found = progress.scan(&bytes[taken..]).map_err(io::Error::other)?;
            if let Some(len) = found {
                break len;
            }
            match poll_fn(|cx| socket.poll_read(cx, &mut read)).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                len => bytes.extend_from_slice(&read[..len]),
            }
        };
        let reply = &bytes[taken..taken + len];
        if reply[0] == b'-' {
            let text = String::from_utf8_lossy(&reply[1..]).trim_end().to_owned();
            return Err(io::Error::other(text));
        }
        taken += len;
    }
    if taken < bytes.len() {
        return Err(io::Error::other("it said more than it was asked"));
    }
    Ok(bytes)
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
