//! Lists: each element that was pushed is there once, where the answer says; one of unknown outcome is
//! there once or not at all, and nothing else is there.

use std::collections::{BTreeMap, BTreeSet};

use redis::cmd;

use super::{Client, Lost, Verdict, World};

const CLIENTS: usize = 4;
const KEYS: usize = 4;

#[derive(Default)]
struct Seen {
    /// Where an element was put, by key and place.
    placed: BTreeMap<(usize, usize), String>,
    /// What may have been pushed.
    unknown: BTreeSet<String>,
}

pub(super) fn start(world: &World) -> Verdict {
    world.spawn("list", CLIENTS, run, check)
}

fn key(number: usize) -> String {
    format!("list:{number}")
}

async fn run(mut client: Client) -> Seen {
    let mut seen = Seen::default();
    for round in 0.. {
        if !client.goes_on().await {
            break;
        }
        let number = client.rng.usize(0..KEYS);
        let element = format!("{}:{round}", client.number);
        let request = cmd("RPUSH").arg(key(number)).arg(&element).clone();
        match client.ask::<usize>(&request).await {
            Ok(len) => {
                seen.placed.insert((number, len - 1), element);
            }
            Err(Lost::Unknown) => {
                seen.unknown.insert(element);
            }
            Err(Lost::NotExecuted) => {}
        }
    }
    seen
}

async fn check(seen: Vec<Seen>, mut client: Client) -> Vec<String> {
    let mut violations = Vec::new();
    let mut placed: BTreeMap<(usize, usize), String> = BTreeMap::new();
    let mut unknown = BTreeSet::new();
    for client in seen {
        for (place, element) in client.placed {
            if let Some(other) = placed.insert(place, element.clone()) {
                violations.push(format!("{other} and {element} were put at {place:?}"));
            }
        }
        unknown.extend(client.unknown);
    }
    for number in 0..KEYS {
        let request = cmd("LRANGE").arg(key(number)).arg(0).arg(-1).clone();
        let elements: Vec<String> = client.insist(&request).await;
        for (place, element) in elements.into_iter().enumerate() {
            match placed.remove(&(number, place)) {
                Some(expected) if expected == element => {}
                Some(expected) => violations.push(format!(
                    "{element} is at place {place} of {}, where {expected} was put",
                    key(number)
                )),
                None if unknown.remove(&element) => {}
                None => violations.push(format!(
                    "{element} is at place {place} of {} and was not pushed there",
                    key(number)
                )),
            }
        }
    }
    let lost = |((number, place), element)| {
        format!(
            "{element} was put at place {place} of {} and is lost",
            key(number)
        )
    };
    violations.extend(placed.into_iter().map(lost));
    violations
}
