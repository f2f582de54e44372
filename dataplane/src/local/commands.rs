//! `COMMAND`: what the table of commands tells of them, of those that clients may call.
//!
//! `COMMAND DOCS` alone is passed on: what it tells is the servers'.

use crate::{
    command::{
        self, Command, Keys,
        details::{self, Begin, Find, KeySpec},
        flag,
    },
    error,
    glob::{self, Case},
    resp::{
        Protocol, Request, put_bulk, put_error, put_header, put_int, put_map, put_null, put_set,
        put_simple,
    },
};

/// Without the subcommands.
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
    let is_option =
        |index: usize, word: &str| request.arg(index).eq_ignore_ascii_case(word.as_bytes());
    let rows: Vec<&Command> = match request.argc() {
        2 => command::served().collect(),
        5 if is_option(2, "FILTERBY") => {
            let by = request.arg(4);
            if is_option(3, "MODULE") {
                Vec::new() // what modules bring is refused
            } else if is_option(3, "ACLCAT") {
                let category = String::from_utf8_lossy(by).to_ascii_lowercase();
                let has = |row: &&Command| row.is_in_category(&category);
                command::served().filter(has).collect()
            } else if is_option(3, "PATTERN") {
                let name = |row: &Command| row.name.as_bytes();
                let fits = |row: &&Command| glob::matches(by, name(row), Case::Either);
                command::served().filter(fits).collect()
            } else {
                return put_error(out, error::SYNTAX);
            }
        }
        _ => return put_error(out, error::SYNTAX),
    };
    put_header(out, b'*', rows.len());
    for row in rows {
        put_bulk(out, row.name.as_bytes());
    }
}

/// A command as `COMMAND` of Redis 7 prints it.
fn put_command(command: &Command, protocol: Protocol, out: &mut Vec<u8>) {
    let details = details::of(command);
    put_header(out, b'*', 10);
    put_bulk(out, command.name.as_bytes());
    put_int(out, command.arity.into());
    put_names(out, protocol, &command.flag_names());
    for number in command.key_range() {
        put_int(out, number);
    }
    put_names(out, protocol, &command.category_names());
    put_set(out, protocol, details.tips.len());
    for tip in details.tips {
        put_bulk(out, tip.as_bytes());
    }
    put_set(out, protocol, details.keys.len());
    for key in details.keys {
        put_key(key, protocol, out);
    }
    // An empty set or a full array: so Redis has it.
    match command.subcommands().count() {
        0 => put_set(out, protocol, 0),
        count => put_header(out, b'*', count),
    }
    for subcommand in command.subcommands() {
        put_command(subcommand, protocol, out);
    }
}

fn put_names(out: &mut Vec<u8>, protocol: Protocol, names: &[&str]) {
    put_set(out, protocol, names.len());
    names.iter().for_each(|name| put_simple(out, name));
}

/// Where some keys of a command are.
fn put_key(key: &KeySpec, protocol: Protocol, out: &mut Vec<u8>) {
    put_map(out, protocol, 3 + usize::from(!key.notes.is_empty()));
    if !key.notes.is_empty() {
        put_bulk(out, b"notes");
        put_bulk(out, key.notes.as_bytes());
    }
    put_bulk(out, b"flags");
    put_names(out, protocol, &key.access_names());
    put_bulk(out, b"begin_search");
    match key.begin {
        Begin::Index(at) => put_search(out, protocol, "index", &[("index", at)]),
        Begin::Keyword(word, from) => {
            put_kind(out, protocol, "keyword", 2);
            put_bulk(out, b"keyword");
            put_bulk(out, word.as_bytes());
            put_bulk(out, b"startfrom");
            put_int(out, from);
        }
        Begin::Unknown => put_search(out, protocol, "unknown", &[]),
    }
    put_bulk(out, b"find_keys");
    match key.find {
        Find::Range(last, step, limit) => {
            let fields = [("lastkey", last), ("keystep", step), ("limit", limit)];
            put_search(out, protocol, "range", &fields);
        }
        Find::Number(at, first, step) => {
            let fields = [("keynumidx", at), ("firstkey", first), ("keystep", step)];
            put_search(out, protocol, "keynum", &fields);
        }
        Find::Unknown => put_search(out, protocol, "unknown", &[]),
    }
}

fn put_search(out: &mut Vec<u8>, protocol: Protocol, kind: &str, fields: &[(&str, i64)]) {
    put_kind(out, protocol, kind, fields.len());
    for &(name, number) in fields {
        put_bulk(out, name.as_bytes());
        put_int(out, number);
    }
}

fn put_kind(out: &mut Vec<u8>, protocol: Protocol, kind: &str, fields: usize) {
    put_map(out, protocol, 2);
    put_bulk(out, b"type");
    put_bulk(out, kind.as_bytes());
    put_bulk(out, b"spec");
    put_map(out, protocol, fields);
}

pub(super) fn get_keys(request: &Request<'_>, out: &mut Vec<u8>) {
    let inner = request.behind(2);
    match keys(&inner) {
        Ok((_, keys)) => {
            put_header(out, b'*', keys.len());
            keys.into_iter()
                .for_each(|key| put_bulk(out, inner.arg(key)));
        }
        Err(text) => put_error(out, text),
    }
}

pub(super) fn get_keys_and_flags(request: &Request<'_>, protocol: Protocol, out: &mut Vec<u8>) {
    let inner = request.behind(2);
    match keys(&inner) {
        Ok((command, keys)) => {
            let access = |key| Some((key, details::access_of(command, &inner, key)?));
            let keys: Vec<_> = keys.into_iter().filter_map(access).collect();
            put_header(out, b'*', keys.len());
            for (key, access) in keys {
                put_header(out, b'*', 2);
                put_bulk(out, inner.arg(key));
                put_names(out, protocol, &access);
            }
        }
        Err(text) => put_error(out, text),
    }
}

/// Where the keys of a request are that is itself an argument of one.
fn keys(inner: &Request<'_>) -> Result<(&'static Command, Vec<usize>), &'static str> {
    let command = command::find(inner).ok_or("ERR Invalid command specified")?;
    if matches!(command.keys, Keys::None | Keys::Channels { .. }) {
        return Err("ERR The command has no key arguments");
    }
    if !command.accepts(inner.argc()) {
        return Err("ERR Invalid number of arguments specified for command");
    }
    let mut keys = Vec::new();
    command.visit_keys(inner, |index| keys.push(index));
    if keys.is_empty() && command.flags & flag::NO_MANDATORY_KEYS == 0 {
        return Err("ERR Invalid arguments specified for command");
    }
    Ok((command, keys))
}

pub(super) const HELP: &[&str] = &[
    "(no subcommand)",
    "    Return details about all Redis commands.",
    "COUNT",
    "    Return the total number of commands in this Redis server.",
    "LIST",
    "    Return a list of all commands in this Redis server.",
    "INFO [<command-name> ...]",
    "    Return details about multiple Redis commands.",
    "    If no command names are given, documentation details for all",
    "    commands are returned.",
    "DOCS [<command-name> ...]",
    "    Return documentation details about multiple Redis commands.",
    "    If no command names are given, documentation details for all",
    "    commands are returned.",
    "GETKEYS <full-command>",
    "    Return the keys from a full Redis command.",
    "GETKEYSANDFLAGS <full-command>",
    "    Return the keys and the access flags from a full Redis command.",
];
