//! Registers: what is read was written, and not before what is known to be newer; what was deleted stays
//! so. Per key linearizable, over all proxies.
//!
//! Some keys live for a second, some for most of a minute: what is copied while it changes, and what has
//! long been at rest.

use std::collections::BTreeMap;

use redis::cmd;

use super::{Client, Lost, Verdict, World};
use crate::history::{Answer, Call, History, Operation, Value};

const CLIENTS: usize = 6;
const KEYS: usize = 12;

/// Of each key, what a client saw.
pub(super) type Seen = BTreeMap<String, Vec<Operation>>;

pub(super) fn start(world: &World) -> Verdict {
    world.spawn("register", CLIENTS, run, |seen, _| async { check(seen) })
}

async fn run(mut client: Client) -> Seen {
    let mut seen = Seen::new();
    for round in 0i64.. {
        if !client.goes_on().await {
            break;
        }
        let key = key(&mut client);
        // Unique, so that it is known whose a value is.
        let value = round * CLIENTS as i64 + client.number as i64;
        let call = match client.rng.u8(0..10) {
            0..4 => Call::Get,
            4..7 => Call::Set(value),
            7 => Call::Swap(value),
            8 => Call::Delete,
            _ => Call::Take,
        };
        let from = client.now();
        let answer = match ask(&mut client, &key, call).await {
            Ok(answer) => Some((answer, client.now())),
            Err(Lost::Unknown) => None,
            Err(Lost::NotExecuted) => continue,
        };
        let operation = Operation {
            client: client.number,
            call,
            from,
            answer,
        };
        seen.entry(key).or_default().push(operation);
    }
    seen
}

fn key(client: &mut Client) -> String {
    let number = client.rng.usize(0..KEYS);
    let lives = 1 << (number % 6);
    format!("register:{number}:{}", client.now().as_secs() / lives)
}

async fn ask(client: &mut Client, key: &str, call: Call) -> Result<Answer, Lost> {
    let value = match call {
        Call::Get => client.ask::<Value>(cmd("GET").arg(key)).await?,
        Call::Take => client.ask(cmd("GETDEL").arg(key)).await?,
        Call::Swap(new) => client.ask(cmd("SET").arg(key).arg(new).arg("GET")).await?,
        Call::Increment => client.ask(cmd("INCR").arg(key)).await?,
        Call::Set(new) => {
            let () = client.ask(cmd("SET").arg(key).arg(new)).await?;
            return Ok(Answer::Done);
        }
        Call::Delete => {
            let existed = client.ask(cmd("DEL").arg(key)).await?;
            return Ok(Answer::Existed(existed));
        }
    };
    Ok(Answer::Value(value))
}

/// Puts together what all clients saw of each key, and checks it.
pub(super) fn check(seen: Vec<Seen>) -> Vec<String> {
    let mut histories: BTreeMap<String, History> = BTreeMap::new();
    for (key, operations) in seen.into_iter().flatten() {
        histories.entry(key).or_default().0.extend(operations);
    }
    let verdict = |(key, history): (String, History)| {
        let violation = history.check().err()?;
        Some(format!("{key}: {violation}"))
    };
    histories.into_iter().filter_map(verdict).collect()
}
