//! `CLIENT`: what a connection asks of itself, and tells. What concerns others is asked of all workers
//! ([`crate::session`]).

use crate::{
    client::Client,
    error,
    outbox::{Outbox, Wanted},
    resp::{Request, put_bulk, put_error, put_null, put_simple},
    tracking,
};

/// A name as CLIENT SETNAME takes it: nothing that would break a line of CLIENT LIST.
pub(super) fn client_name(name: &[u8]) -> Option<String> {
    name.iter()
        .all(|b| (b'!'..=b'~').contains(b))
        .then(|| String::from_utf8_lossy(name).into_owned())
}

pub(super) fn get_name(client: &Client, out: &mut Vec<u8>) {
    if client.identity.name.is_empty() {
        put_null(out, client.protocol);
    } else {
        put_bulk(out, client.identity.name.as_bytes());
    }
}

pub(super) fn set_name(client: &mut Client, request: &Request<'_>, out: &mut Vec<u8>) {
    match client_name(request.arg(2)) {
        Some(name) => {
            client.identity.name = name;
            put_simple(out, "OK");
        }
        None => put_error(out, error::BAD_CLIENT_NAME),
    }
}

pub(super) fn set_info(client: &mut Client, request: &Request<'_>, out: &mut Vec<u8>) {
    let (field, value) = (request.arg(2), request.arg(3));
    let identity = &mut client.identity;
    let of_client = match field.to_ascii_lowercase().as_slice() {
        b"lib-name" => &mut identity.lib_name,
        b"lib-ver" => &mut identity.lib_version,
        _ => return put_error(out, &error::unrecognized_option(field)),
    };
    match client_name(value) {
        Some(value) => {
            *of_client = value;
            put_simple(out, "OK");
        }
        None => put_error(out, &error::bad_client_attribute(field)),
    }
}

/// No server evicts a client of the proxy; where the proxy's memory ends, it closes others before.
pub(super) fn no_evict(client: &mut Client, request: &Request<'_>, out: &mut Vec<u8>) {
    match on_or_off(request.arg(2)) {
        Some(on) => {
            client.identity.no_evict = on;
            put_simple(out, "OK");
        }
        None => put_error(out, error::SYNTAX),
    }
}

/// `ON` or `OFF`.
pub(crate) fn on_or_off(arg: &[u8]) -> Option<bool> {
    if arg.eq_ignore_ascii_case(b"on") {
        Some(true)
    } else {
        arg.eq_ignore_ascii_case(b"off").then_some(false)
    }
}

/// What a client can take, as Valkey asks for it: nothing here depends on it.
pub(super) fn capa(out: &mut Vec<u8>) {
    put_simple(out, "OK");
}

/// Which replies the client wants. All before have been sent to it; that there will be none it is not told.
pub(super) fn reply(outbox: &mut Outbox, request: &Request<'_>, out: &mut Vec<u8>) {
    match request.arg(2).to_ascii_lowercase().as_slice() {
        b"on" => {
            outbox.want(Wanted::All);
            put_simple(out, "OK");
        }
        b"off" => outbox.want(Wanted::None),
        b"skip" => outbox.want(Wanted::AllButNext),
        _ => put_error(out, error::SYNTAX),
    }
}

/// It is about the next command, whose reads are remembered, or not.
pub(super) fn caching(client: &mut Client, request: &Request<'_>, out: &mut Vec<u8>) {
    match tracking::caching(client.tracked(), request.arg(2)) {
        Ok(()) => {
            if let Some(tracking) = &mut client.tracking {
                tracking.cache_next();
            }
            put_simple(out, "OK");
        }
        Err(text) => put_error(out, text),
    }
}

pub(super) fn tracking_info(client: &Client, out: &mut Vec<u8>) {
    let tracking = client.tracking.as_ref();
    let caching = tracking.is_some_and(|tracking| tracking.caches_next());
    let broken = tracking.is_some_and(|tracking| tracking.is_broken());
    tracking::put_info(client.tracked(), caching, broken, client.protocol, out);
}

/// As Redis 7.0 has it, but for what has come since.
pub(super) const HELP: &[&str] = &[
    "CACHING (YES|NO)",
    "    Enable/disable tracking of the keys for next command in OPTIN/OPTOUT modes.",
    "GETREDIR",
    "    Return the client ID we are redirecting to when tracking is enabled.",
    "GETNAME",
    "    Return the name of the current connection.",
    "ID",
    "    Return the ID of the current connection.",
    "INFO",
    "    Return information about the current client connection.",
    "KILL <ip:port>",
    "    Kill connection made from <ip:port>.",
    "KILL <option> <value> [<option> <value> [...]]",
    "    Kill connections. Options are:",
    "    * ADDR (<ip:port>|<unixsocket>:0)",
    "      Kill connections made from the specified address",
    "    * LADDR (<ip:port>|<unixsocket>:0)",
    "      Kill connections made to specified local address",
    "    * TYPE (NORMAL|MASTER|REPLICA|PUBSUB)",
    "      Kill connections by type.",
    "    * USER <username>",
    "      Kill connections authenticated by <username>.",
    "    * SKIPME (YES|NO)",
    "      Skip killing current connection (default: yes).",
    "LIST [options ...]",
    "    Return information about client connections. Options:",
    "    * TYPE (NORMAL|MASTER|REPLICA|PUBSUB)",
    "      Return clients of specified type.",
    "UNPAUSE",
    "    Stop the current client pause, resuming traffic.",
    "PAUSE <timeout> [WRITE|ALL]",
    "    Suspend all, or just write, clients for <timeout> milliseconds.",
    "REPLY (ON|OFF|SKIP)",
    "    Control the replies sent to the current connection.",
    "SETNAME <name>",
    "    Assign the name <name> to the current connection.",
    "UNBLOCK <clientid> [TIMEOUT|ERROR]",
    "    Unblock the specified blocked client.",
    "TRACKING (ON|OFF) [REDIRECT <id>] [BCAST] [PREFIX <prefix> [...]]",
    "         [OPTIN] [OPTOUT] [NOLOOP]",
    "    Control server assisted client side caching.",
    "TRACKINGINFO",
    "    Report tracking status for the current connection.",
    "NO-EVICT (ON|OFF)",
    "    Protect current client connection from eviction.",
];
