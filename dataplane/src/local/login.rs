//! Who a client is: `AUTH`, `HELLO`.
//!
//! There is one user, `default`, with one password or none. Passwords are compared in a time that tells
//! nothing, and shown nowhere.

use subtle::ConstantTimeEq as _;

use super::{Context, client::client_name};
use crate::{
    client::Client,
    config::{PASSWORD_MAX, Serving},
    error,
    resp::{
        Protocol, Request, parse_int, put_bulk, put_error, put_header, put_int, put_map, put_simple,
    },
};

/// The Redis in whose words the proxy answers; what clients are told they talk to.
pub(crate) const REDIS_VERSION: &str = "7.0.15";

pub(super) fn auth(context: &mut Context<'_>, request: &Request<'_>, out: &mut Vec<u8>) {
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
fn is_right(serving: &Serving, username: &[u8], password: &[u8]) -> bool {
    let right = match &serving.password {
        Some(expected) => same_secret(expected.expose().as_bytes(), password),
        None => true,
    };
    right & (username == b"default")
}

fn log_in(context: &mut Context<'_>, username: &[u8], password: &[u8]) -> bool {
    let accepted = is_right(context.serving, username, password);
    context.session.client.authenticated |= accepted;
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

/// What a `HELLO` asks for.
struct Hello<'a> {
    /// `None`: the one that is spoken already.
    protocol: Option<Protocol>,
    /// A name and a password.
    login: Option<(&'a [u8], &'a [u8])>,
    name: Option<String>,
}

impl<'a> Hello<'a> {
    /// Reads it; else the error.
    fn parse(request: &Request<'a>) -> Result<Self, Vec<u8>> {
        let protocol = match request.argc() {
            1 => None,
            _ => match parse_int(request.arg(1)) {
                Some(2) => Some(Protocol::Resp2),
                Some(3) => Some(Protocol::Resp3),
                Some(_) => return Err(error::NO_PROTOCOL.into()),
                None => return Err(error::BAD_PROTOCOL.into()),
            },
        };
        let (mut login, mut name) = (None, None);
        let mut at = 2;
        while at < request.argc() {
            let option = request.arg(at);
            let more = request.argc() - at - 1;
            if option.eq_ignore_ascii_case(b"AUTH") && more >= 2 {
                login = Some((request.arg(at + 1), request.arg(at + 2)));
                at += 3;
            } else if option.eq_ignore_ascii_case(b"SETNAME") && more >= 1 {
                match client_name(request.arg(at + 1)) {
                    Some(valid) => name = Some(valid),
                    None => return Err(error::BAD_CLIENT_NAME.into()),
                }
                at += 2;
            } else {
                return Err(error::hello_option(option));
            }
        }
        Ok(Self {
            protocol,
            login,
            name,
        })
    }
}

pub(super) fn hello(context: &mut Context<'_>, request: &Request<'_>, out: &mut Vec<u8>) {
    let Hello {
        protocol,
        login,
        name,
    } = match Hello::parse(request) {
        Ok(hello) => hello,
        Err(text) => return put_error(out, &text),
    };
    if let Some((username, password)) = login
        && !log_in(context, username, password)
    {
        return put_error(out, error::WRONG_PASSWORD);
    }
    let client = &mut context.session.client;
    if !client.authenticated {
        return put_error(out, error::HELLO_NO_AUTH);
    }
    if let Some(name) = name {
        client.identity.name = name;
    }
    client.protocol = protocol.unwrap_or(client.protocol);
    put_greeting(client, out);
}

/// The RESP version that a client speaks behind its `HELLO`, if it is another one, perhaps, and the client
/// has logged in before.
pub(super) fn greeted(request: &Request<'_>, serving: &Serving) -> Option<Protocol> {
    let hello = Hello::parse(request).ok()?;
    let logs_in = hello
        .login
        .is_none_or(|(name, password)| is_right(serving, name, password));
    hello.protocol.filter(|_| logs_in)
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
