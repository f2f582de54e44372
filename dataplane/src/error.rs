//! The errors a client may see, in one place.
//!
//! What Redis says too is said in its words. Of what only a proxy can say, the prefix tells what
//! became of the request: `TRYAGAIN` and `CLUSTERDOWN` mean *not executed*, `UNKNOWNOUTCOME` means
//! that it may have been.

use std::fmt::Display;

use proto::fence::Refusal;

use crate::{
    command::{self, Command, flag},
    resp::{ProtocolError, Request},
    route::Rejection,
};

pub(crate) const SYNTAX: &str = "ERR syntax error";
pub(crate) const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";
/// Of a number that C's `int` has no room for.
pub(crate) const NOT_AN_INT: &str =
    "ERR value is out of range, value must between -2147483648 and 2147483647";
pub(crate) const BAD_TIMEOUT: &str = "ERR timeout is not an integer or out of range";
pub(crate) const BAD_PAUSE_MODE: &str = "ERR CLIENT PAUSE mode must be WRITE or ALL";
pub(crate) const NEGATIVE_TIMEOUT: &str = "ERR timeout is negative";
pub(crate) const NO_AUTH: &str = "NOAUTH Authentication required.";
pub(crate) const NO_PASSWORD: &str = "ERR AUTH <password> called without any password configured \
    for the default user. Are you sure your configuration is correct?";
pub(crate) const WRONG_PASSWORD: &str =
    "WRONGPASS invalid username-password pair or user is disabled.";
pub(crate) const HELLO_NO_AUTH: &str = "NOAUTH HELLO must be called with the client already \
    authenticated, otherwise the HELLO AUTH <user> <pass> option can be used to authenticate the \
    client and select the RESP protocol version at the same time";
pub(crate) const NO_PROTOCOL: &str = "NOPROTO unsupported protocol version";
pub(crate) const BAD_PROTOCOL: &str = "ERR Protocol version is not an integer or out of range";
pub(crate) const BAD_CLIENT_NAME: &str =
    "ERR Client names cannot contain spaces, newlines or special characters.";
pub(crate) const BAD_DATABASE: &str = "ERR DB index is out of range";
pub(crate) const BAD_CLUSTER_SLOT: &str = "ERR Invalid slot";
pub(crate) const BAD_CLUSTER_SLOT_OR_COUNT: &str = "ERR Invalid slot or number of keys";
pub(crate) const BAD_PASSWORD_LENGTH: &str = "ERR ACL GENPASS argument must be the number of bits for the output \
    password, a positive number up to 4096";
pub(crate) const BAD_MAX_AGE: &str = "ERR maxage should be greater than 0";
pub(crate) const CLIENT_ID_NOT_POSITIVE: &str = "ERR client-id should be greater than 0";
pub(crate) const NO_SUCH_CLIENT: &str = "ERR No such client";
pub(crate) const BAD_CLIENT_ID: &str = "ERR Invalid client ID";
pub(crate) const MAX_CLIENTS: &str = "ERR max number of clients reached";

pub(crate) const NESTED_MULTI: &str = "ERR MULTI calls can not be nested";
pub(crate) const EXEC_WITHOUT_MULTI: &str = "ERR EXEC without MULTI";
pub(crate) const BAD_UNBLOCK_REASON: &str = "ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR";
pub(crate) const WATCH_IN_MULTI: &str = "ERR WATCH inside MULTI is not allowed";
pub(crate) const DISCARD_WITHOUT_MULTI: &str = "ERR DISCARD without MULTI";
pub(crate) const NOT_IN_TRANSACTION: &str = "ERR Command not allowed inside a transaction";
/// No server can answer it by itself, as part of a whole.
pub(crate) const GOES_THROUGH_KEYS: &str = "ERR Command not allowed inside a transaction: it goes through \
    all keys of all groups, page by page";
pub(crate) const MONITOR_IN_EXEC: &str = "ERR MONITOR isn't allowed for DENY BLOCKING client";
pub(crate) const SSUBSCRIBE_IN_EXEC: &str =
    "ERR SSUBSCRIBE isn't allowed for a DENY BLOCKING client";
pub(crate) const INVALID_CURSOR: &str = "ERR invalid cursor";
pub(crate) const TRANSACTION_DISCARDED: &str =
    "EXECABORT Transaction discarded because of previous errors.";

pub(crate) const TOO_MANY_SUBSCRIPTIONS: &str = "ERR max number of subscriptions reached";

pub(crate) const NOT_SERVED: &str = "CLUSTERDOWN Hash slot not served";
/// The proxy has no topology yet.
pub(crate) const NO_TOPOLOGY: &str =
    "CLUSTERDOWN the proxy has no topology yet: it waits for its controller";
/// A held slot was not released in time.
pub(crate) const HELD_TOO_LONG: &str =
    "TRYAGAIN the slot is being moved and was not released in time";

/// The workers of this proxy have more to ask each other than they can.
pub(crate) const CREW_BUSY: &str =
    "TRYAGAIN the proxy's workers are too busy; nothing was executed";
/// One of them was asked, and did not answer.
pub(crate) const CREW_SILENT: &str =
    "UNKNOWNOUTCOME a worker of the proxy did not answer in time; the others have executed it";
/// The request needs a connection of its own, and others have them all.
pub(crate) const NO_LEASE: &str = "TRYAGAIN as many clients wait, watch or upload as the proxy has \
    connections for (--max-leases)";

/// The whole of it would have to be in memory at once.
pub(crate) const TOO_LARGE_TO_HOLD: &str =
    "ERR the request is larger than this proxy may hold (--max-request-bytes); it was not executed";

/// The keys that were found would have to be in memory at once.
pub(crate) const TOO_MANY_KEYS: &str =
    "ERR the slot has more keys than this proxy may hold (--max-request-bytes)";

/// What a server said to SCAN is no page.
pub(crate) const NO_PAGE: &str = "ERR the server's reply to SCAN was not understood";
/// What a server said to EXEC is neither as many replies as there were commands, nor an error.
pub(crate) const NO_EXEC: &str = "ERR the server's reply to EXEC was not understood";
pub(crate) const NO_SCRIPT: &str = "NOSCRIPT No matching script. Please use EVAL.";
/// A group's cursor leaves no room to say which group's it is.
pub(crate) const CURSOR_TOO_LARGE: &str =
    "ERR the server's cursor is larger than a proxy's has room for";

/// Settings of servers are files' names, too.
pub(crate) const CONFIGURE_DENIED: &str = "NOPERM this proxy passes no settings on to its servers: \
    start it with --allow-config-set to allow CONFIG SET and CONFIG REWRITE";

/// Arguments of an unknown command are shown up to so many bytes, as in Redis.
const SHOWN: usize = 128;

/// `EXEC` itself was refused, with this error.
pub(crate) fn exec_refused(error: &str) -> String {
    let text = error.strip_prefix("ERR ").unwrap_or(error);
    format!("EXECABORT Transaction discarded because of: {text}")
}

/// Redis names a module's command as the module does: in upper case.
pub(crate) fn arity_of(command: &Command) -> String {
    if command.flags & flag::MODULE != 0 {
        arity(&command.name.to_uppercase())
    } else {
        arity(command.name)
    }
}

/// What a RESP2 client may not call while it is subscribed.
pub(crate) fn subscribed(command: &str) -> String {
    format!(
        "ERR Can't execute '{command}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET \
         are allowed in this context"
    )
}

pub(crate) fn arity(command: &str) -> String {
    format!("ERR wrong number of arguments for '{command}' command")
}

pub(crate) fn unknown_client_type(name: &[u8]) -> Vec<u8> {
    quoting("ERR Unknown client type '", name, "'")
}

pub(crate) fn hello_option(option: &[u8]) -> Vec<u8> {
    quoting("ERR Syntax error in HELLO option '", option, "'")
}

pub(crate) fn unrecognized_option(option: &[u8]) -> Vec<u8> {
    quoting("ERR Unrecognized option '", option, "'")
}

pub(crate) fn bad_client_attribute(name: &[u8]) -> Vec<u8> {
    let what = " cannot contain spaces, newlines or special characters.";
    quoting("ERR ", name, what)
}

pub(crate) fn no_such_user(name: &[u8]) -> Vec<u8> {
    quoting("ERR No such user '", name, "'")
}

pub(crate) fn unknown_category(name: &[u8]) -> Vec<u8> {
    quoting("ERR Unknown category '", name, "'")
}

pub(crate) fn unknown_node(id: &[u8]) -> Vec<u8> {
    quoting("ERR Unknown node ", id, "")
}

/// A subcommand whose arguments fit none of its forms.
pub(crate) fn bad_subcommand(request: &Request<'_>) -> Vec<u8> {
    let container = String::from_utf8_lossy(request.arg(0)).to_uppercase();
    quoting(
        "ERR unknown subcommand or wrong number of arguments for '",
        shown(request.arg(1), SHOWN),
        &format!("'. Try {container} HELP."),
    )
}

/// What is said of bytes that are no RESP. One of them may be shown, which may be no text.
pub(crate) fn protocol(error: &ProtocolError) -> Vec<u8> {
    if let ProtocolError::ExpectedBulk(got) = error {
        return [
            b"ERR Protocol error: expected '$', got '",
            &[*got][..],
            b"'",
        ]
        .concat();
    }
    format!("ERR {error}").into_bytes()
}

/// What is said of a request that calls nothing.
pub(crate) fn unknown(request: &Request<'_>) -> Vec<u8> {
    match command::lookup(request.arg(0)) {
        Some(container) => {
            let help = format!("'. Try {} HELP.", container.name.to_uppercase());
            let name = shown(request.arg(1), SHOWN);
            quoting("ERR unknown subcommand '", name, &help)
        }
        None => unknown_command(request),
    }
}

fn unknown_command(request: &Request<'_>) -> Vec<u8> {
    let mut args = Vec::new();
    for arg in request.args_from(1) {
        if args.len() >= SHOWN {
            break;
        }
        args.extend(quoting("'", shown(arg, SHOWN - args.len()), "' "));
    }
    let name = shown(request.arg(0), SHOWN);
    let mut text = quoting(
        "ERR unknown command '",
        name,
        "', with args beginning with: ",
    );
    text.extend(args);
    text
}

/// A text with a client's own bytes in it, which may be no text.
fn quoting(before: &str, foreign: &[u8], behind: &str) -> Vec<u8> {
    [
        before.as_bytes(),
        shown(foreign, foreign.len()),
        behind.as_bytes(),
    ]
    .concat()
}

/// As C prints a string: up to its first zero byte.
fn shown(text: &[u8], most: usize) -> &[u8] {
    let text = &text[..text.len().min(most)];
    let end = text.iter().position(|&b| b == 0).unwrap_or(text.len());
    &text[..end]
}

pub(crate) fn rejection(rejection: Rejection) -> &'static str {
    match rejection {
        Rejection::CrossSlot => "CROSSSLOT Keys in request don't hash to the same slot",
        Rejection::NotServed(_) => NOT_SERVED,
        Rejection::Reserved => "NOPERM keys that begin with {sluice}: are the proxy's own",
        Rejection::SortsBy => {
            "ERR BY option of SORT denied in Cluster mode when keys formed by the pattern may be in \
             different slots."
        }
        Rejection::SortGets => {
            "ERR GET option of SORT denied in Cluster mode when keys formed by the pattern may be in \
             different slots."
        }
        Rejection::Unknown => "ERR unknown command",
    }
}

/// A request that was never sent, because its server is down; or so busy with a script that no connection to
/// it can be opened: then clients are told what it tells them itself.
pub(crate) fn server_down(address: &str, why: &(impl Display + ?Sized)) -> String {
    let why = why.to_string();
    if why.starts_with("BUSY ") {
        return why;
    }
    format!("CLUSTERDOWN server {address} is down: {why}")
}

/// A request that was never sent, because the server's fence record keeps this proxy out. What heals without
/// anybody is worth another try.
pub(crate) fn server_refuses(address: &str, why: &Refusal) -> String {
    let prefix = match why {
        Refusal::Missing | Refusal::Restarted | Refusal::OldEpoch { .. } => "TRYAGAIN",
        Refusal::Damaged(_)
        | Refusal::OtherCluster(_)
        | Refusal::OldTerm { .. }
        | Refusal::Managed(_) => "CLUSTERDOWN",
    };
    format!("{prefix} server {address} may not be used: {why}")
}

/// A write that was sent, and whose answer was lost with the connection.
pub(crate) fn unknown_outcome(address: &str, why: &str) -> String {
    format!("UNKNOWNOUTCOME server {address} was lost before it answered: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::{Limits, Progress, put_bulk, put_header};

    fn check(args: &[&[u8]], expected: &[u8]) {
        let mut raw = Vec::new();
        put_header(&mut raw, b'*', args.len());
        args.iter().for_each(|arg| put_bulk(&mut raw, arg));
        let (mut found, limits) = (Vec::new(), Limits::UNAUTHENTICATED);
        Progress::default()
            .scan(&raw, &mut found, &limits, true)
            .unwrap();
        let text = unknown(&Request::new(&raw, &found));
        assert_eq!(
            text.escape_ascii().to_string(),
            expected.escape_ascii().to_string()
        );
    }

    #[test]
    fn commands_of_modules_are_named_in_upper_case() {
        for (name, expected) in [("GET", "get"), ("vadd", "VADD")] {
            let command = command::lookup(name.as_bytes()).unwrap();
            assert_eq!(arity_of(command), arity(expected));
        }
    }

    #[test]
    fn what_is_unknown_is_quoted_byte_for_byte_as_c_prints_it() {
        check(
            &[b"nope", b"a", b""],
            b"ERR unknown command 'nope', with args beginning with: 'a' '' ",
        );
        check(
            &[b"\xff\xfe", b"\xff\0\xfe", b"b"],
            b"ERR unknown command '\xff\xfe', with args beginning with: '\xff' 'b' ",
        );
        check(
            &[b"client", b"\xff\0x"],
            b"ERR unknown subcommand '\xff'. Try CLIENT HELP.",
        );
        let long = [b'x'; 200];
        let cut = [
            b"ERR unknown command '",
            &long[..128],
            b"', with args beginning with: '",
            &long[..128],
            b"' ",
        ];
        check(&[&long, &long, b"more"], &cut.concat());
    }
}
