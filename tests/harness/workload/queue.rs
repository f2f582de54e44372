//! Queues: each element is popped by one of the clients that block for it, once, and none is lost, but for
//! as many as there are pops of unknown outcome.

use std::collections::BTreeSet;

use redis::cmd;

use super::{Client, Lost, Verdict, World};

const CLIENTS: usize = 6;
const KEYS: usize = 3;

#[derive(Default)]
struct Seen {
    pushed: Vec<String>,
    maybe_pushed: Vec<String>,
    popped: Vec<String>,
    /// Pops that may have taken something.
    unknown: usize,
}

pub(super) fn start(world: &World) -> Verdict {
    world.spawn("queue", CLIENTS, run, check)
}

fn key(number: usize) -> String {
    format!("queue:{}", number % KEYS)
}

/// Half of the clients push, half of them pop.
async fn run(mut client: Client) -> Seen {
    let mut seen = Seen::default();
    for round in 0usize.. {
        if !client.goes_on().await {
            break;
        }
        let key = key(client.number / 2 + round);
        if client.number.is_multiple_of(2) {
            let element = format!("{}:{round}", client.number);
            match client.ask::<u64>(cmd("RPUSH").arg(key).arg(&element)).await {
                Ok(_) => seen.pushed.push(element),
                Err(Lost::Unknown) => seen.maybe_pushed.push(element),
                Err(Lost::NotExecuted) => {}
            }
        } else {
            let request = cmd("BLPOP").arg(key).arg("0.5").clone();
            match client.ask::<Option<(String, String)>>(&request).await {
                Ok(popped) => seen.popped.extend(popped.map(|(_, element)| element)),
                Err(Lost::Unknown) => seen.unknown += 1,
                Err(Lost::NotExecuted) => {}
            }
        }
    }
    seen
}

async fn check(seen: Vec<Seen>, mut client: Client) -> Vec<String> {
    let mut violations = Vec::new();
    let mut out = BTreeSet::new();
    let mut left = Vec::new();
    for number in 0..KEYS {
        let request = cmd("LRANGE").arg(key(number)).arg(0).arg(-1).clone();
        left.extend(client.insist::<Vec<String>>(&request).await);
    }
    for element in seen.iter().flat_map(|s| &s.popped).chain(&left) {
        if !out.insert(element.clone()) {
            violations.push(format!("{element} was there twice"));
        }
    }
    let pushed: BTreeSet<String> = seen.iter().flat_map(|s| s.pushed.clone()).collect();
    let maybe: BTreeSet<String> = seen.iter().flat_map(|s| s.maybe_pushed.clone()).collect();
    let invented = out
        .iter()
        .filter(|e| !pushed.contains(*e) && !maybe.contains(*e));
    violations.extend(invented.map(|e| format!("{e} came out and was not pushed")));
    let lost: Vec<&String> = pushed.difference(&out).collect();
    let excused: usize = seen.iter().map(|s| s.unknown).sum();
    if lost.len() > excused {
        violations.push(format!(
            "{lost:?} are lost, with {excused} pops of unknown outcome"
        ));
    }
    violations
}
