//! `ACL`: what can be said where everybody is the one user `default`, who may call all that is served.

use std::{fs::File, io::Read as _};

use crate::{
    command, error,
    resp::{Request, parse_int, put_bulk, put_error, put_header},
};

/// Of a password, in bits.
const LONGEST: i64 = 4096;
const USUAL: i64 = 256;

/// In Redis's order.
const CATEGORIES: [&str; 21] = [
    "keyspace",
    "read",
    "write",
    "set",
    "sortedset",
    "list",
    "hash",
    "string",
    "bitmap",
    "hyperloglog",
    "geo",
    "stream",
    "pubsub",
    "admin",
    "fast",
    "slow",
    "blocking",
    "dangerous",
    "connection",
    "transaction",
    "scripting",
];

pub(super) fn who_am_i(out: &mut Vec<u8>) {
    put_bulk(out, b"default");
}

pub(super) fn categories(request: &Request<'_>, out: &mut Vec<u8>) {
    match request.argc() {
        2 => {
            put_header(out, b'*', CATEGORIES.len());
            for name in CATEGORIES {
                put_bulk(out, name.as_bytes());
            }
        }
        3 => {
            let wanted = request.arg(2);
            let known = |name: &&&str| name.as_bytes().eq_ignore_ascii_case(wanted);
            match CATEGORIES.iter().find(known) {
                Some(category) => put_commands(category, out),
                None => put_error(out, &error::unknown_category(wanted)),
            }
        }
        _ => put_error(out, &error::bad_subcommand(request)),
    }
}

fn put_commands(category: &str, out: &mut Vec<u8>) {
    let names: Vec<&str> = command::served()
        .filter(|row| row.is_in_category(category))
        .map(|row| row.name)
        .collect();
    put_header(out, b'*', names.len());
    for name in names {
        put_bulk(out, name.as_bytes());
    }
}

/// A password nobody can guess, in hexadecimal digits.
pub(super) fn generate_password(request: &Request<'_>, out: &mut Vec<u8>) {
    let bits = match request.argc() {
        2 => Some(USUAL),
        3 => parse_int(request.arg(2)),
        _ => return put_error(out, &error::bad_subcommand(request)),
    };
    let Some(bits) = bits else {
        return put_error(out, error::NOT_AN_INTEGER);
    };
    if !(1..=LONGEST).contains(&bits) {
        return put_error(out, error::BAD_PASSWORD_LENGTH);
    }
    let digits = (bits as usize).div_ceil(4);
    let mut random = vec![0; digits.div_ceil(2)];
    match File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random)) {
        Ok(()) => {
            let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
            put_bulk(out, &hex.as_bytes()[..digits]);
        }
        Err(e) => put_error(out, &format!("ERR no random numbers: {e}")),
    }
}

pub(super) const HELP: &[&str] = &[
    "CAT [<category>]",
    "    List all commands that belong to <category>, or all command categories",
    "    when no category is specified.",
    "GENPASS [<bits>]",
    "    Generate a secure 256-bit user password. The optional `bits` argument can",
    "    be used to specify a different size.",
    "WHOAMI",
    "    Return the current connection username.",
];
