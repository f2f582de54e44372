//! What the proxy answers itself: the connection's own commands, and questions about the proxy.
//!
//! Texts equal Redis's to the letter, since clients parse them. No server is asked for anything here.

use std::time::{SystemTime, UNIX_EPOCH};

use proto::Topology;

use crate::{
    client::Client,
    command::{Class, Local},
    config::Serving,
    error,
    metrics::Proxy,
    resp::{
        Protocol, Request, parse_int, put_bulk, put_error, put_header, put_int, put_simple,
        put_verbatim,
    },
    session::Session,
    tracking,
};

mod acl;
mod client;
mod cluster;
mod commands;
mod login;

pub(crate) use self::{
    client::on_or_off,
    cluster::{LAST as LAST_CLUSTER_SLOT, slot_of as cluster_slot},
    login::REDIS_VERSION,
};

/// What an answer may look at, and the one thing it may change: who asks.
pub(crate) struct Context<'a> {
    pub(crate) session: &'a mut Session,
    /// By the worker's clock, as of the last tick.
    pub(crate) seconds: u32,
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
    let protocol = context.session.client.protocol;
    match local {
        Local::AclCat => acl::categories(request, out),
        Local::AclGenPass => acl::generate_password(request, out),
        Local::AclHelp => put_help(out, "ACL", acl::HELP),
        Local::AclWhoAmI => acl::who_am_i(out),
        Local::Auth => login::auth(context, request, out),
        Local::ClientCaching => client::caching(&mut context.session.client, request, out),
        Local::ClientCapa => client::capa(out),
        Local::ClientGetName => client::get_name(&context.session.client, out),
        Local::ClientGetRedir => tracking::put_redirect(context.session.client.tracked(), out),
        Local::ClientHelp => put_help(out, "CLIENT", client::HELP),
        Local::ClientId => put_int(out, context.session.client.id as i64),
        Local::ClientInfo => {
            let text = context.session.info(request, context.seconds);
            put_verbatim(out, protocol, &text);
        }
        Local::ClientNoEvict => client::no_evict(&mut context.session.client, request, out),
        Local::ClientReply => client::reply(&mut context.session.outbox, request, out),
        Local::ClientSetInfo => client::set_info(&mut context.session.client, request, out),
        Local::ClientSetName => client::set_name(&mut context.session.client, request, out),
        Local::ClientTrackingInfo => client::tracking_info(&context.session.client, out),
        Local::ClusterHelp => put_help(out, "CLUSTER", cluster::HELP),
        Local::ClusterInfo => cluster::info(context, out),
        Local::ClusterKeySlot => cluster::key_slot(request, out),
        // Its node has links to no others, and no replicas whose replies could be stale.
        Local::ClusterLinks => put_header(out, b'*', 0),
        Local::ClusterMode => put_simple(out, "OK"),
        Local::ClusterMyId => put_bulk(out, cluster::node_id(context).as_bytes()),
        Local::ClusterNodes => cluster::nodes(context, out),
        Local::ClusterReplicas => cluster::replicas(context, request, out),
        Local::ClusterShards => cluster::shards(context, out),
        Local::ClusterSlots => cluster::slots(context, out),
        Local::CommandAll => commands::put_all(protocol, out),
        Local::CommandCount => put_int(out, commands::count()),
        Local::CommandGetKeys => commands::get_keys(request, out),
        Local::CommandGetKeysAndFlags => commands::get_keys_and_flags(request, protocol, out),
        Local::CommandHelp => put_help(out, "COMMAND", commands::HELP),
        Local::CommandInfo => commands::info(request, protocol, out),
        Local::CommandList => commands::list(request, out),
        Local::Echo => put_bulk(out, request.arg(1)),
        Local::Hello => login::hello(context, request, out),
        Local::Ping => ping(&context.session.client, request, out),
        Local::Quit => {
            put_simple(out, "OK");
            return After::Finish;
        }
        Local::Reset => {
            context.session.reset(context.serving.password.is_none());
            put_simple(out, "RESET");
        }
        Local::Role => role(out),
        Local::Select => select(context, request, out),
        Local::Time => time(out),
    }
    After::Stay
}

/// What `HELP` of a command with subcommands answers.
fn put_help(out: &mut Vec<u8>, command: &str, lines: &[&str]) {
    put_header(out, b'*', lines.len() + 3);
    let title = format!("{command} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:");
    put_simple(out, &title);
    for line in lines.iter().chain(&["HELP", "    Prints this help."]) {
        put_simple(out, line);
    }
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
    match selected(request, context.serving) {
        Ok(database) => {
            context.session.client.database = database;
            put_simple(out, "OK");
        }
        Err(text) => put_error(out, text),
    }
}

/// The database that a `SELECT` is about; else the error.
fn selected(request: &Request<'_>, serving: &Serving) -> Result<u16, &'static str> {
    match parse_int(request.arg(1)).map(i32::try_from) {
        None => Err(error::NOT_AN_INTEGER),
        Some(Err(_)) => Err(error::NOT_AN_INT),
        Some(Ok(number)) => match u16::try_from(number) {
            Ok(database) if database < serving.databases => Ok(database),
            Ok(_) | Err(_) => Err(error::BAD_DATABASE),
        },
    }
}

/// What a request changes of how those behind it are executed by servers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Turn {
    Database(u16),
    Protocol(Protocol),
}

impl Turn {
    /// `None`: it changes nothing, or is an error.
    pub(crate) fn of(class: Class, request: &Request<'_>, serving: &Serving) -> Option<Self> {
        match class {
            Class::Local(Local::Select) => selected(request, serving).ok().map(Self::Database),
            Class::Local(Local::Hello) => login::greeted(request, serving).map(Self::Protocol),
            _ => None,
        }
    }
}

/// That of a primary without replicas: the proxy takes writes, and who replicates whom is the controller's.
fn role(out: &mut Vec<u8>) {
    put_header(out, b'*', 3);
    put_bulk(out, b"master");
    put_int(out, 0);
    put_header(out, b'*', 0);
}

fn time(out: &mut Vec<u8>) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    put_header(out, b'*', 2);
    put_bulk(out, now.as_secs().to_string().as_bytes());
    put_bulk(out, now.subsec_micros().to_string().as_bytes());
}
