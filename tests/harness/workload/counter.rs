//! Counters: each increment that was answered counts once; one of unknown outcome once or not at all.
//! No two answers are the same. Half of them are done by a script that is called by its hash.

use redis::cmd;

use super::{Client, Lost, Verdict, World};

const CLIENTS: usize = 4;
const KEYS: usize = 6;

const SCRIPT: &str = "return redis.call('INCR', KEYS[1])";
/// The script's.
const SHA: &str = "61636018f4e6b5817b89791bbed242f93fa089e3";

/// Of each counter, the answers, and how many increments were not answered.
type Seen = [(Vec<i64>, i64); KEYS];

pub(super) fn start(world: &World) -> Verdict {
    world.spawn("counter", CLIENTS, run, check)
}

fn key(number: usize) -> String {
    format!("counter:{number}")
}

async fn run(mut client: Client) -> Seen {
    let mut seen = Seen::default();
    let load = cmd("SCRIPT").arg("LOAD").arg(SCRIPT).clone();
    client.insist::<String>(&load).await;
    while client.goes_on().await {
        let number = client.rng.usize(0..KEYS);
        let request = if client.rng.bool() {
            cmd("INCR").arg(key(number)).clone()
        } else {
            let mut call = cmd("EVALSHA");
            call.arg(SHA).arg(1).arg(key(number)).clone()
        };
        match client.ask(&request).await {
            Ok(answer) => seen[number].0.push(answer),
            Err(Lost::Unknown) => seen[number].1 += 1,
            // Perhaps since a server has started anew, and so has the proxy that was shown the script.
            Err(Lost::NotExecuted) => {
                client.ask::<String>(&load).await.ok();
            }
        }
    }
    seen
}

async fn check(seen: Vec<Seen>, mut client: Client) -> Vec<String> {
    let mut violations = Vec::new();
    for number in 0..KEYS {
        let key = key(number);
        let value: Option<i64> = client.insist(cmd("GET").arg(&key)).await;
        let value = value.unwrap_or(0);
        let mut answers: Vec<i64> = seen.iter().flat_map(|s| s[number].0.clone()).collect();
        let unknown: i64 = seen.iter().map(|s| s[number].1).sum();
        let each_in_order = seen.iter().all(|s| s[number].0.is_sorted_by(|a, b| a < b));
        let answered = answers.len() as i64;
        answers.sort_unstable();
        if !each_in_order || !answers.is_sorted_by(|a, b| a < b) {
            violations.push(format!("{key} gave the same answer twice, or went down"));
        }
        if !(answered..=answered + unknown).contains(&value) {
            violations.push(format!(
                "{key} is {value} after {answered} increments and {unknown} of unknown outcome"
            ));
        }
    }
    violations
}
