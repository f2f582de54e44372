//! What a client has told the proxy about itself: who it is, which RESP it speaks, which database it
//! selected. One per session; the proxy answers for it and no server ever learns of it.

use std::{net::SocketAddr, time::Instant};

use crate::{error, resp::Protocol};

/// See the module.
#[derive(Debug)]
pub(crate) struct Client {
    /// Unique in this process, from 1; what CLIENT ID says.
    pub(crate) id: u64,
    pub(crate) protocol: Protocol,
    /// Below the number of databases.
    pub(crate) database: u16,
    /// Always true where no password is asked for.
    pub(crate) authenticated: bool,
    /// MULTI was refused: what follows up to EXEC must not be executed as if it stood alone.
    refused_multi: bool,
    /// What is asked for seldom stands apart, so that a session stays small.
    pub(crate) identity: Box<Identity>,
}

/// What CLIENT INFO says besides.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) since: Instant,
    /// Of CLIENT SETNAME; empty: none.
    pub(crate) name: String,
    /// Of CLIENT SETINFO.
    pub(crate) lib_name: String,
    pub(crate) lib_version: String,
}

impl Client {
    pub(crate) fn new(id: u64, authenticated: bool, peer: SocketAddr, local: SocketAddr) -> Self {
        Self {
            id,
            protocol: Protocol::Resp2,
            database: 0,
            authenticated,
            refused_multi: false,
            identity: Box::new(Identity {
                peer,
                local,
                since: Instant::now(),
                name: String::new(),
                lib_name: String::new(),
                lib_version: String::new(),
            }),
        }
    }

    /// Back to how a connection starts, as RESET says; the library's name stays.
    pub(crate) fn reset(&mut self, authenticated: bool) {
        self.protocol = Protocol::Resp2;
        self.database = 0;
        self.authenticated = authenticated;
        self.refused_multi = false;
        self.identity.name.clear();
    }

    /// Transactions are not served yet. A client that sends one in a single pipeline has sent its
    /// commands before it learns that; none of them may be executed.
    pub(crate) fn refuse_transaction(&mut self, command: &[u8]) -> Option<&'static str> {
        let is = |name: &[u8]| command.eq_ignore_ascii_case(name);
        if !self.authenticated {
            None // there is another reason not to execute anything
        } else if is(b"MULTI") {
            self.refused_multi = true;
            Some(error::NO_TRANSACTIONS)
        } else if !self.refused_multi || is(b"RESET") || is(b"QUIT") {
            None
        } else if is(b"EXEC") || is(b"DISCARD") {
            self.refused_multi = false;
            Some(error::TRANSACTION_DISCARDED)
        } else {
            Some(error::IN_REFUSED_TRANSACTION)
        }
    }
}
