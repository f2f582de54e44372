//! Big values: a string of a quarter of a mebibyte is read whole, as one of those that were written, in
//! their order; each addition to a sorted set with thousands of members counts once.

use redis::cmd;

use super::{
    Client, Lost, Verdict, World,
    register::{self, Seen},
};
use crate::history::{Answer, Call, Operation};

const CLIENTS: usize = 2;
const LEN: usize = 256 << 10;
const MEMBERS: usize = 5000;

#[derive(Default)]
struct Both {
    strings: Seen,
    torn: Vec<String>,
    added: u64,
    unknown: u64,
}

pub(super) fn start(world: &World) -> Verdict {
    world.spawn("big", CLIENTS, run, check)
}

const ZSET: &str = "big:zset";

async fn run(mut client: Client) -> Both {
    let mut seen = Both::default();
    for round in 0i64.. {
        // They are few: each costs as much as thousands of others.
        for _ in 0..10 {
            if !client.goes_on().await {
                return seen;
            }
        }
        string(&mut client, &mut seen, round).await;
        let member = client.rng.usize(0..MEMBERS);
        let request = cmd("ZINCRBY").arg(ZSET).arg(1).arg(member).clone();
        match client.ask::<f64>(&request).await {
            Ok(_) => seen.added += 1,
            Err(Lost::Unknown) => seen.unknown += 1,
            Err(Lost::NotExecuted) => {}
        }
    }
    seen
}

async fn string(client: &mut Client, seen: &mut Both, round: i64) {
    let key = format!("big:string:{}", client.now().as_secs() / 20);
    let value = round * CLIENTS as i64 + client.number as i64;
    let from = client.now();
    let (call, asked) = if client.rng.bool() {
        let text = format!("{value:016}").repeat(LEN / 16);
        let asked = client.ask::<()>(cmd("SET").arg(&key).arg(text)).await;
        (Call::Set(value), asked.map(|()| Answer::Done))
    } else {
        let asked = client.ask::<Option<String>>(cmd("GET").arg(&key)).await;
        let read = |text: Option<String>| {
            let value = text.map(|text| whole(&text));
            if value == Some(None) {
                seen.torn.push(format!("{key} is of several pieces"));
            }
            Answer::Value(value.flatten())
        };
        (Call::Get, asked.map(read))
    };
    let answer = match asked {
        Ok(answer) => Some((answer, client.now())),
        Err(Lost::Unknown) => None,
        Err(Lost::NotExecuted) => return,
    };
    let operation = Operation {
        client: client.number,
        call,
        from,
        answer,
    };
    seen.strings.entry(key).or_default().push(operation);
}

/// The number that a text is made of, if it is made of one.
fn whole(text: &str) -> Option<i64> {
    let first = text.get(..16)?;
    let same = text.len() == LEN && text.as_bytes().chunks(16).all(|c| c == first.as_bytes());
    same.then(|| first.parse().ok()).flatten()
}

async fn check(seen: Vec<Both>, mut client: Client) -> Vec<String> {
    let scores: Vec<(String, u64)> = client
        .insist(cmd("ZRANGE").arg(ZSET).arg(0).arg(-1).arg("WITHSCORES"))
        .await;
    let sum: u64 = scores.into_iter().map(|(_, score)| score).sum();
    let added: u64 = seen.iter().map(|s| s.added).sum();
    let unknown: u64 = seen.iter().map(|s| s.unknown).sum();
    let mut violations: Vec<String> = seen.iter().flat_map(|s| s.torn.clone()).collect();
    if !(added..=added + unknown).contains(&sum) {
        violations.push(format!(
            "{ZSET} has {sum} after {added} additions and {unknown} of unknown outcome"
        ));
    }
    violations.extend(register::check(
        seen.into_iter().map(|s| s.strings).collect(),
    ));
    violations
}
