//! `COMMAND`: what the table of commands tells of them.

use crate::{
    command::{self, Command, Keys, flag},
    error,
    resp::{
        Protocol, Request, put_bulk, put_error, put_header, put_int, put_map, put_null, put_set,
        put_simple,
    },
};

/// Those that clients may call, without the subcommands.
fn commands() -> impl Iterator<Item = &'static Command> {
    command::served().filter(|command| command.words().1.is_none())
}

pub(super) fn count() -> i64 {
    commands().count() as i64
}

/// The command of a name as `COMMAND` tells it: of a subcommand, `client|id`.
fn by_name(name: &[u8]) -> Option<&'static Command> {
    command::served().find(|command| command.name.as_bytes().eq_ignore_ascii_case(name))
}

pub(super) fn put_all(protocol: Protocol, out: &mut Vec<u8>) {
    put_header(out, b'*', commands().count());
    commands().for_each(|command| put_command(command, protocol, out));
}

pub(super) fn info(request: &Request<'_>, protocol: Protocol, out: &mut Vec<u8>) {
    if request.argc() == 2 {
        return put_all(protocol, out);
    }
    put_header(out, b'*', request.argc() - 2);
    for name in request.args_from(2) {
        match by_name(name) {
            Some(command) => put_command(command, protocol, out),
            None => put_null(out, protocol),
        }
    }
}

pub(super) fn list(request: &Request<'_>, out: &mut Vec<u8>) {
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

pub(super) fn docs(request: &Request<'_>, protocol: Protocol, out: &mut Vec<u8>) {
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

pub(super) fn get_keys(request: &Request<'_>, out: &mut Vec<u8>) {
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
