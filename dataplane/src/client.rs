//! What a client has told the proxy about itself: who it is, which RESP it speaks, which database it
//! selected. One per session; the proxy answers for it and no server ever learns of it.

use std::{net::SocketAddr, time::Instant};

use crate::{
    backend::Way,
    pubsub::Subscriptions,
    resp::Protocol,
    tracking::{Options, Tracking},
    transaction::Transaction,
};

/// See the module.
#[derive(Debug)]
pub(crate) struct Client {
    /// Unique in this process, from 1; what CLIENT ID says.
    pub(crate) id: u64,
    pub(crate) protocol: Protocol,
    /// Below the number of databases.
    pub(crate) database: u16,
    /// What it reads does not make keys younger: CLIENT NO-TOUCH.
    pub(crate) no_touch: bool,
    /// Always true where no password is asked for.
    pub(crate) authenticated: bool,
    /// It is shown the requests of all.
    pub(crate) is_monitor: bool,
    /// What it has queued, from MULTI to EXEC.
    pub(crate) transaction: Option<Box<Transaction>>,
    /// What it is subscribed to; never without any.
    pub(crate) subscriptions: Option<Box<Subscriptions>>,
    /// What it has asked for with CLIENT TRACKING.
    pub(crate) tracking: Option<Box<Tracking>>,
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
    /// Of CLIENT NO-EVICT: where memory ends, others are closed before it.
    pub(crate) no_evict: bool,
}

impl Client {
    pub(crate) fn new(id: u64, authenticated: bool, peer: SocketAddr, local: SocketAddr) -> Self {
        Self {
            id,
            protocol: Protocol::Resp2,
            database: 0,
            no_touch: false,
            authenticated,
            is_monitor: false,
            transaction: None,
            subscriptions: None,
            tracking: None,
            identity: Box::new(Identity {
                peer,
                local,
                since: Instant::now(),
                name: String::new(),
                lib_name: String::new(),
                lib_version: String::new(),
                no_evict: false,
            }),
        }
    }

    /// How its requests are executed, by whatever connection.
    #[inline]
    pub(crate) fn way(&self) -> Way {
        Way {
            protocol: self.protocol,
            database: self.database,
            no_touch: self.no_touch,
            ..Way::USUAL
        }
    }

    /// Whether it may not just call any command: what it calls is queued, or it is subscribed.
    #[inline]
    pub(crate) fn is_restricted(&self) -> bool {
        self.transaction.is_some() || self.subscriptions.is_some()
    }

    /// Whether it is subscribed, and cannot tell replies from messages.
    pub(crate) fn only_listens(&self) -> bool {
        self.subscriptions.is_some() && self.protocol == Protocol::Resp2
    }

    /// What it tracks, if it does.
    pub(crate) fn tracked(&self) -> Option<&Options> {
        self.tracking.as_ref()?.options()
    }

    /// Back to how a connection starts, as RESET says; the library's name stays.
    pub(crate) fn reset(&mut self, authenticated: bool) {
        self.protocol = Protocol::Resp2;
        self.database = 0;
        self.no_touch = false;
        self.identity.no_evict = false;
        self.authenticated = authenticated;
        self.is_monitor = false;
        self.transaction = None;
        self.identity.name.clear();
    }
}
