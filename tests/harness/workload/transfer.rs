//! Transfers: between two accounts of one slot, by `WATCH`, `MULTI` and `EXEC`. Their sum is the same
//! whenever both are read in one transaction.

use redis::cmd;

use super::{Client, Lost, Verdict, World};

const CLIENTS: usize = 4;
const PAIRS: usize = 3;
/// What is in both accounts together.
const SUM: i64 = 1000;

type Balance = (Option<i64>, Option<i64>);

pub(super) fn start(world: &World) -> Verdict {
    world.spawn("transfer", CLIENTS, run, |seen, mut client| async move {
        let mut violations: Vec<String> = seen.into_iter().flatten().collect();
        for pair in 0..PAIRS {
            let [a, b] = accounts(pair);
            let balance: Balance = client.insist(cmd("MGET").arg(a).arg(b)).await;
            violations.extend(wrong(pair, balance));
        }
        violations
    })
}

fn accounts(pair: usize) -> [String; 2] {
    ["a", "b"].map(|name| format!("{{transfer:{pair}}}:{name}"))
}

/// Both are written at once the first time, so that there are both or none.
fn wrong(pair: usize, balance: Balance) -> Option<String> {
    match balance {
        (None, None) => None,
        (Some(a), Some(b)) if a + b == SUM => None,
        _ => Some(format!(
            "the accounts {pair} hold {balance:?}, not {SUM} together"
        )),
    }
}

async fn run(mut client: Client) -> Vec<String> {
    let mut violations = Vec::new();
    while client.goes_on().await {
        let pair = client.rng.usize(0..PAIRS);
        // What ends in between is given up: the connection is another one, or the transaction is dropped.
        match transfer(&mut client, pair).await {
            Ok(balance) => violations.extend(wrong(pair, balance)),
            Err(Lost::Unknown) => {}
            Err(Lost::NotExecuted) => drop(client.ask::<String>(&cmd("RESET")).await),
        }
    }
    violations
}

/// What the accounts held before it.
async fn transfer(client: &mut Client, pair: usize) -> Result<Balance, Lost> {
    let [a, b] = accounts(pair);
    let () = client.ask(cmd("WATCH").arg(&a).arg(&b)).await?;
    let balance: Balance = client.ask(cmd("MGET").arg(&a).arg(&b)).await?;
    let amount = client.rng.i64(-50..50);
    let to_a = balance.0.unwrap_or(SUM) - amount;
    let to_b = balance.1.unwrap_or(0) + amount;
    let () = client.ask(&cmd("MULTI")).await?;
    let _queued: String = client.ask(cmd("SET").arg(&a).arg(to_a)).await?;
    let _queued: String = client.ask(cmd("SET").arg(&b).arg(to_b)).await?;
    let _done: Option<Vec<String>> = client.ask(&cmd("EXEC")).await?;
    Ok(balance)
}
