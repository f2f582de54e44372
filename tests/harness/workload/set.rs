//! Sets: what was added and not removed is there, and nothing else, but for what is unknown.

use std::collections::BTreeSet;

use redis::cmd;

use super::{Client, Lost, Verdict, World};

const CLIENTS: usize = 3;

#[derive(Default)]
struct Seen {
    added: BTreeSet<String>,
    removed: BTreeSet<String>,
    /// Of which it is unknown whether they are there.
    unknown: BTreeSet<String>,
}

pub(super) fn start(world: &World) -> Verdict {
    world.spawn("set", CLIENTS, run, check)
}

/// All clients share a few sets.
fn key(number: usize) -> String {
    format!("set:{}", number % 3)
}

async fn run(mut client: Client) -> Seen {
    let mut seen = Seen::default();
    for round in 0.. {
        if !client.goes_on().await {
            break;
        }
        let member = format!("{}:{round}", client.number);
        let key = key(round);
        match client.ask::<bool>(cmd("SADD").arg(&key).arg(&member)).await {
            Ok(_) => {}
            Err(Lost::NotExecuted) => continue,
            Err(Lost::Unknown) => {
                seen.unknown.insert(member);
                continue;
            }
        }
        if client.rng.bool() {
            seen.added.insert(member);
            continue;
        }
        match client.ask::<bool>(cmd("SREM").arg(&key).arg(&member)).await {
            Ok(_) => seen.removed.insert(member),
            Err(Lost::NotExecuted) => seen.added.insert(member),
            Err(Lost::Unknown) => seen.unknown.insert(member),
        };
    }
    seen
}

async fn check(seen: Vec<Seen>, mut client: Client) -> Vec<String> {
    let mut there = BTreeSet::new();
    for number in 0..3 {
        let members: Vec<String> = client.insist(cmd("SMEMBERS").arg(key(number))).await;
        there.extend(members);
    }
    let mut violations = Vec::new();
    for Seen {
        added,
        removed,
        unknown,
    } in seen
    {
        let lost = added
            .difference(&there)
            .map(|m| format!("{m} was added and is lost"));
        violations.extend(lost);
        let back = removed.intersection(&there);
        violations.extend(back.map(|m| format!("{m} was removed and is there")));
        there.retain(|m| !added.contains(m) && !removed.contains(m) && !unknown.contains(m));
    }
    let invented = there
        .iter()
        .map(|m| format!("{m} is there and was not added"));
    violations.extend(invented);
    violations
}
