//! Expiry: a key is there until its time has come, and gone soon after; one whose time is unlimited stays.

use std::time::Duration;

use redis::cmd;
use tokio::time::{Instant, sleep};

use super::{Client, Verdict, World};

const CLIENTS: usize = 4;

/// By how much a key may be there too long: a reply takes its time, on a busy machine. The servers' clocks
/// are one.
const SLACK: Duration = Duration::from_millis(250);

pub(super) fn start(world: &World) -> Verdict {
    world.spawn("expiry", CLIENTS, run, |seen, _| async {
        seen.into_iter().flatten().collect()
    })
}

async fn run(mut client: Client) -> Vec<String> {
    let mut violations = Vec::new();
    for round in 0.. {
        if !client.goes_on().await {
            break;
        }
        let key = format!("expiry:{}:{}", client.number, round % 50);
        let lives = Duration::from_millis(client.rng.u64(1..3000));
        let before = Instant::now();
        let mut set = cmd("SET");
        set.arg(&key)
            .arg(round)
            .arg("PX")
            .arg(lives.as_millis() as u64);
        if !matches!(client.ask::<()>(&set).await, Ok(())) {
            continue;
        }
        let after = Instant::now();
        // Mostly before its end, sometimes just about it.
        let pause = match client.rng.u8(0..3) {
            0 => lives + SLACK,
            _ => lives.mul_f64(client.rng.f64()),
        };
        sleep(pause).await;
        let asked = Instant::now();
        let Ok(value) = client.ask::<Option<u64>>(cmd("GET").arg(&key)).await else {
            continue;
        };
        let answered = Instant::now();
        match value {
            Some(value) if value != round => {
                violations.push(format!("{key} is {value}, and {round} was written"));
            }
            Some(_) if asked > after + lives + SLACK => {
                let late = asked - (after + lives);
                violations.push(format!("{key} is there {late:?} after its end"));
            }
            None if answered < before + lives => {
                let early = before + lives - answered;
                violations.push(format!("{key} is gone {early:?} before its end"));
            }
            Some(_) | None => {}
        }
    }
    violations
}
