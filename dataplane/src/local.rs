//! What the proxy answers itself: the connection's own commands, and questions about the proxy.
//!
//! Texts equal Redis's to the letter, since clients parse them. No server is asked for anything here.

use std::{
    fmt::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

use proto::Topology;
use subtle::ConstantTimeEq;

use crate::{
    client::Client,
    command::{self, Command, Keys, Local, flag},
    config::{PASSWORD_MAX, Serving},
    error,
    metrics::Proxy,
    resp::{
        Protocol, Request, parse_int, put_bulk, put_error, put_header, put_int, put_map, put_null,
        put_set, put_simple, put_verbatim,
    },
};

/// The Redis in whose words the proxy answers; what clients are told they talk to.
const REDIS_VERSION: &str = "7.0.15";

/// What an answer may look at, and the one thing it may change: the client.
pub(crate) struct Context<'a> {
    pub(crate) client: &'a mut Client,
    pub(crate) serving: &'a Serving,
    pub(crate) proxy: &'a Proxy,
    pub(crate) topology: Option<&'a Topology>,
}

/// What becomes of the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum After {
    Stay,
    /// It ends, once all replies are sent.
    Finish,
}

/// Answers a request whose number of arguments has been checked.
pub(crate) fn answer(
    local: Local,
    context: &mut Context<'_>,
    request: &Request<'_>,
    out: &mut Vec<u8>,
) -> After {
    match local {
        Local::Auth => auth(context, request, out),
        Local::ClientGetName => client_get_name(context.client, out),
        Local::ClientHelp => put_help(out, "CLIENT", CLIENT_HELP),
        Local::ClientId => put_int(out, context.client.id as i64),
        Local::ClientInfo => {
            put_verbatim(out, context.client.protocol, &client_info(context.client));
        }
        Local::ClientNoEvict => client_no_evict(request, out),
        Local::ClientSetInfo => client_set_info(context.client, request, out),
        Local::ClientSetName => client_set_name(context.client, request, out),
        Local::CommandAll => put_commands(context.client.protocol, out),
        Local::CommandCount => put_int(out, commands().count() as i64),
        Local::CommandDocs => command_docs(request, context.client.protocol, out),
        Local::CommandGetKeys => command_get_keys(request, out),
        Local::CommandInfo => command_info(request, context.client.protocol, out),
        Local::CommandList => command_list(request, out),
        Local::Echo => put_bulk(out, request.arg(1)),
        Local::Hello => hello(context, request, out),
        Local::Info => info(context, request, out),
        Local::Ping => ping(context.client, request, out),
        Local::Quit => {
            put_simple(out, "OK");
            return After::Finish;
        }
        Local::Reset => {
            context.client.reset(context.serving.password.is_none());
            put_simple(out, "RESET");
        }
        Local::Select => select(context, request, out),
        Local::Time => time(out),
    }
    After::Stay
}

fn ping(client: &Client, request: &Request<'_>, out: &mut Vec<u8>) {
    match request.argc() {
        // As a message, among which it stands.
        argc @ (1 | 2) if client.only_listens() => {
            put_header(out, b'*', 2);
            put_bulk(out, b"pong");
            put_bulk(out, if argc == 2 { request.arg(1) } else { b"" });
        }
        1 => put_simple(out, "PONG"),
        2 => put_bulk(out, request.arg(1)),
        _ => put_error(out, &error::arity("ping")),
    }
}

fn select(context: &mut Context<'_>, request: &Request<'_>, out: &mut Vec<u8>) {
    match parse_int(request.arg(1)).map(i32::try_from) {
        None => put_error(out, error::NOT_AN_INTEGER),
        Some(Err(_)) => put_error(out, error::NOT_AN_INT),
        Some(Ok(number)) => match u16::try_from(number) {
            Ok(database) if database < context.serving.databases => {
                context.client.database = database;
                put_simple(out, "OK");
            }
            Ok(_) | Err(_) => put_error(out, "ERR DB index is out of range"),
        },
    }
}

fn time(out: &mut Vec<u8>) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    put_header(out, b'*', 2);
    put_bulk(out, now.as_secs().to_string().as_bytes());
    put_bulk(out, now.subsec_micros().to_string().as_bytes());
}

fn auth(context: &mut Context<'_>, request: &Request<'_>, out: &mut Vec<u8>) {
    let (username, password) = match request.argc() {
        2 if context.serving.password.is_none() => return put_error(out, error::NO_PASSWORD),
        2 => (&b"default"[..], request.arg(1)),
        3 => (request.arg(1), request.arg(2)),
        _ => return put_error(out, error::SYNTAX),
    };
    if log_in(context, username, password) {
        put_simple(out, "OK");
    } else {
        put_error(out, error::WRONG_PASSWORD);
    }
}

/// There is one user, `default`; without a password it may log in with any, as in Redis.
fn log_in(context: &mut Context<'_>, username: &[u8], password: &[u8]) -> bool {
    let right = match &context.serving.password {
        Some(expected) => same_secret(expected.expose().as_bytes(), password),
        None => true,
    };
    let accepted = right & (username == b"default");
    context.client.authenticated |= accepted;
    accepted
}

/// Compares in a time that tells nothing of where the two differ, nor of how long the first is.
fn same_secret(expected: &[u8], given: &[u8]) -> bool {
    fn padded(secret: &[u8]) -> [u8; PASSWORD_MAX] {
        let mut bytes = [0; PASSWORD_MAX];
        let len = secret.len().min(PASSWORD_MAX);
        bytes[..len].copy_from_slice(&secret[..len]);
        bytes
    }
    let same_len = (expected.len() as u64).ct_eq(&(given.len() as u64));
    bool::from(padded(expected)[..].ct_eq(&padded(given)[..]) & same_len)
}

fn hello(context: &mut Context<'_>, request: &Request<'_>, out: &mut Vec<u8>) {
    let protocol = match request.argc() {
        1 => context.client.protocol,
        _ => match parse_int(request.arg(1)) {
            Some(2) => Protocol::Resp2,
            Some(3) => Protocol::Resp3,
            Some(_) => return put_error(out, error::NO_PROTOCOL),
            None => return put_error(out, error::BAD_PROTOCOL),
        },
    };
    let mut name = None;
    let mut at = 2;
    while at < request.argc() {
        let option = request.arg(at);
        let more = request.argc() - at - 1;
        if option.eq_ignore_ascii_case(b"AUTH") && more >= 2 {
            if !log_in(context, request.arg(at + 1), request.arg(at + 2)) {
                return put_error(out, error::WRONG_PASSWORD);
            }
            at += 3;
        } else if option.eq_ignore_ascii_case(b"SETNAME") && more >= 1 {
            match client_name(request.arg(at + 1)) {
                Some(valid) => name = Some(valid),
                None => return put_error(out, error::BAD_CLIENT_NAME),
            }
            at += 2;
        } else {
            return put_error(out, &error::hello_option(option));
        }
    }
    if !context.client.authenticated {
        return put_error(out, error::HELLO_NO_AUTH);
    }
    if let Some(name) = name {
        context.client.identity.name = name;
    }
    context.client.protocol = protocol;
    put_greeting(context.client, out);
}

fn put_greeting(client: &Client, out: &mut Vec<u8>) {
    put_map(out, client.protocol, 7);
    for (field, value) in [("server", "redis"), ("version", REDIS_VERSION)] {
        put_bulk(out, field.as_bytes());
        put_bulk(out, value.as_bytes());
    }
    put_bulk(out, b"proto");
    put_int(out, client.protocol.number());
    put_bulk(out, b"id");
    put_int(out, client.id as i64);
    for (field, value) in [("mode", "standalone"), ("role", "master")] {
        put_bulk(out, field.as_bytes());
        put_bulk(out, value.as_bytes());
    }
    put_bulk(out, b"modules");
    put_header(out, b'*', 0);
}

/// A name as CLIENT SETNAME takes it: nothing that would break a line of CLIENT LIST.
fn client_name(name: &[u8]) -> Option<String> {
    name.iter()
        .all(|b| (b'!'..=b'~').contains(b))
        .then(|| String::from_utf8_lossy(name).into_owned())
}

fn client_get_name(client: &Client, out: &mut Vec<u8>) {
    if client.identity.name.is_empty() {
        put_null(out, client.protocol);
    } else {
        put_bulk(out, client.identity.name.as_bytes());
    }
}

fn client_set_name(client: &mut Client, request: &Request<'_>, out: &mut Vec<u8>) {
    match client_name(request.arg(2)) {
        Some(name) => {
            client.identity.name = name;
            put_simple(out, "OK");
        }
        None => put_error(out, error::BAD_CLIENT_NAME),
    }
}

/// Clients of a proxy are not evicted by any server; there is nothing to switch.
fn client_no_evict(request: &Request<'_>, out: &mut Vec<u8>) {
    match request.arg(2).to_ascii_lowercase().as_slice() {
        b"on" | b"off" => put_simple(out, "OK"),
        _ => put_error(out, error::SYNTAX),
    }
}

const CLIENT_HELP: &[&str] = &[
    "GETNAME",
    "    Return the name of the current connection.",
    "ID",
    "    Return the ID of the current connection.",
    "INFO",
    "    Return information about the current client connection.",
    "NO-EVICT (ON|OFF)",
    "    Protect current client connection from eviction.",
    "SETINFO <LIB-NAME|LIB-VER> <value>",
    "    Set the library of the current connection.",
    "SETNAME <name>",
    "    Assign the name <name> to the current connection.",
];

fn put_help(out: &mut Vec<u8>, command: &str, lines: &[&str]) {
    put_header(out, b'*', lines.len() + 3);
    put_simple(
        out,
        &format!("{command} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"),
    );
    for line in lines.iter().chain(&["HELP", "    Print this help."]) {
        put_simple(out, line);
    }
}

fn client_set_info(client: &mut Client, request: &Request<'_>, out: &mut Vec<u8>) {
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

/// One line as CLIENT LIST prints it.
fn client_info(client: &Client) -> String {
    let identity = &client.identity;
    format!(
        "id={} addr={} laddr={} name={} age={} db={} resp={} user=default lib-name={} lib-ver={}\n",
        client.id,
        identity.peer,
        identity.local,
        identity.name,
        identity.since.elapsed().as_secs(),
        client.database,
        client.protocol.number(),
        identity.lib_name,
        identity.lib_version,
    )
}

fn info(context: &Context<'_>, request: &Request<'_>, out: &mut Vec<u8>) {
    let wanted = |section: &str| {
        request.argc() == 1
            || request.args_from(1).any(|name| {
                [section, "all", "default", "everything"]
                    .iter()
                    .any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
            })
    };
    let mut text = String::new();
    for (name, section) in [
        ("Server", info_server as fn(&Context<'_>, &mut String)),
        ("Clients", info_clients),
        ("Stats", info_stats),
        ("Replication", |_, text| {
            text.push_str("role:master\r\nconnected_slaves:0\r\n");
        }),
        ("Sluice", info_sluice),
    ] {
        if wanted(name) {
            if !text.is_empty() {
                text.push_str("\r\n");
            }
            let _ = write!(text, "# {name}\r\n");
            section(context, &mut text);
        }
    }
    put_verbatim(out, context.client.protocol, &text);
}

fn info_server(context: &Context<'_>, text: &mut String) {
    let uptime = context.proxy.started.elapsed().as_secs();
    let _ = write!(
        text,
        "redis_version:{REDIS_VERSION}\r\nredis_mode:standalone\r\nprocess_id:{}\r\n\
         run_id:{}\r\ntcp_port:{}\r\nuptime_in_seconds:{uptime}\r\nuptime_in_days:{}\r\n",
        std::process::id(),
        context.proxy.incarnation,
        context.client.identity.local.port(),
        uptime / 86_400,
    );
}

fn info_clients(context: &Context<'_>, text: &mut String) {
    let total = context.proxy.totals();
    let _ = write!(
        text,
        "connected_clients:{}\r\nmaxclients:{}\r\n",
        total.sessions, context.proxy.max_clients
    );
}

fn info_stats(context: &Context<'_>, text: &mut String) {
    let total = context.proxy.totals();
    let _ = write!(
        text,
        "total_connections_received:{}\r\ntotal_commands_processed:{}\r\n\
         rejected_connections:{}\r\ntotal_error_replies:{}\r\n\
         total_net_input_bytes:{}\r\ntotal_net_output_bytes:{}\r\n",
        total.sessions_opened,
        total.requests,
        context.proxy.sessions_rejected(),
        total.errors,
        total.client_bytes_in,
        total.client_bytes_out,
    );
}

fn info_sluice(context: &Context<'_>, text: &mut String) {
    let _ = write!(
        text,
        "sluice_version:{}\r\nproxy_id:{}\r\nproxy_workers:{}\r\n",
        env!("CARGO_PKG_VERSION"),
        context.proxy.id,
        context.proxy.workers.len(),
    );
    if let Some(topology) = context.topology {
        let _ = write!(
            text,
            "cluster_id:{}\r\ntopology_version:{}\r\ngroups:{}\r\n",
            topology.cluster_id(),
            topology.version(),
            topology.groups().len(),
        );
    }
}

/// Those that clients may call, without the subcommands.
fn commands() -> impl Iterator<Item = &'static Command> {
    command::served().filter(|command| command.words().1.is_none())
}

/// The command of a name as `COMMAND` tells it: of a subcommand, `client|id`.
fn by_name(name: &[u8]) -> Option<&'static Command> {
    command::served().find(|command| command.name.as_bytes().eq_ignore_ascii_case(name))
}

fn put_commands(protocol: Protocol, out: &mut Vec<u8>) {
    put_header(out, b'*', commands().count());
    commands().for_each(|command| put_command(command, protocol, out));
}

fn command_info(request: &Request<'_>, protocol: Protocol, out: &mut Vec<u8>) {
    if request.argc() == 2 {
        return put_commands(protocol, out);
    }
    put_header(out, b'*', request.argc() - 2);
    for name in request.args_from(2) {
        match by_name(name) {
            Some(command) => put_command(command, protocol, out),
            None => put_null(out, protocol),
        }
    }
}

fn command_list(request: &Request<'_>, out: &mut Vec<u8>) {
    if request.argc() > 2 {
        return put_error(out, error::SYNTAX);
    }
    put_header(out, b'*', command::served().count());
    command::served().for_each(|command| put_bulk(out, command.name.as_bytes()));
}

/// A command as `COMMAND` of Redis 7 prints it. Tips and key specifications are left empty.
fn put_command(command: &Command, protocol: Protocol, out: &mut Vec<u8>) {
    put_header(out, b'*', 10);
    put_bulk(out, command.name.as_bytes());
    put_int(out, command.arity.into());
    put_names(out, protocol, &command.flag_names());
    for number in command.key_range() {
        put_int(out, number);
    }
    put_names(out, protocol, &command.category_names());
    for _ in ["tips", "key specifications"] {
        put_header(out, b'*', 0);
    }
    put_header(out, b'*', command.subcommands().count());
    for subcommand in command.subcommands() {
        put_command(subcommand, protocol, out);
    }
}

fn put_names(out: &mut Vec<u8>, protocol: Protocol, names: &[&str]) {
    put_set(out, protocol, names.len());
    names.iter().for_each(|name| put_simple(out, name));
}

fn command_docs(request: &Request<'_>, protocol: Protocol, out: &mut Vec<u8>) {
    let wanted: Vec<&Command> = if request.argc() == 2 {
        commands().collect()
    } else {
        request.args_from(2).filter_map(by_name).collect()
    };
    put_docs(wanted, protocol, out);
}

/// What the table can tell: the arity. Summaries are Redis's own and not repeated here.
fn put_docs(commands: Vec<&Command>, protocol: Protocol, out: &mut Vec<u8>) {
    put_map(out, protocol, commands.len());
    for command in commands {
        let subcommands: Vec<&Command> = command.subcommands().collect();
        put_bulk(out, command.name.as_bytes());
        put_map(out, protocol, 1 + usize::from(!subcommands.is_empty()));
        put_bulk(out, b"arity");
        put_int(out, command.arity.into());
        if !subcommands.is_empty() {
            put_bulk(out, b"subcommands");
            put_docs(subcommands, protocol, out);
        }
    }
}

fn command_get_keys(request: &Request<'_>, out: &mut Vec<u8>) {
    let inner = request.behind(2);
    let Some(command) = command::find(&inner) else {
        return put_error(out, "ERR Invalid command specified");
    };
    if matches!(command.keys, Keys::None | Keys::Channels { .. }) {
        return put_error(out, "ERR The command has no key arguments");
    }
    if !command.accepts(inner.argc()) {
        return put_error(out, "ERR Invalid number of arguments specified for command");
    }
    let mut keys = Vec::new();
    command.visit_keys(&inner, |index| keys.push(inner.arg(index)));
    if keys.is_empty() && command.flags & flag::NO_MANDATORY_KEYS == 0 {
        return put_error(out, "ERR Invalid arguments specified for command");
    }
    put_header(out, b'*', keys.len());
    keys.into_iter().for_each(|key| put_bulk(out, key));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_compare() {
        for (a, b, same) in [
            (&b"secret"[..], &b"secret"[..], true),
            (b"secret", b"secres", false),
            (b"secret", b"secret\0", false),
            (b"", b"", true),
            (b"", b"x", false),
        ] {
            assert_eq!(same_secret(a, b), same);
        }
    }
}
