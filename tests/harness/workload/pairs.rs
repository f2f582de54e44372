//! Several keys at once: two of one slot are written together (`MSET`, or a script) and never read apart;
//! keys of different slots are registers, each for itself.

use redis::cmd;

use super::{
    Client, Lost, Verdict, World,
    register::{self, Seen},
};
use crate::history::{Answer, Call, Operation, Value};

const CLIENTS: usize = 4;
const PAIRS: usize = 3;
const SPREAD: usize = 3;

const BOTH: &str = "redis.call('SET', KEYS[1], ARGV[1]) redis.call('SET', KEYS[2], ARGV[1])";

pub(super) fn start(world: &World) -> Verdict {
    world.spawn("pairs", CLIENTS, run, |seen, _| async {
        let (apart, spread): (Vec<_>, Vec<_>) = seen.into_iter().unzip();
        let mut violations: Vec<String> = apart.into_iter().flatten().collect();
        violations.extend(register::check(spread));
        violations
    })
}

async fn run(mut client: Client) -> (Vec<String>, Seen) {
    let (mut apart, mut spread) = (Vec::new(), Seen::new());
    for round in 0i64.. {
        if !client.goes_on().await {
            break;
        }
        let value = round * CLIENTS as i64 + client.number as i64;
        if client.rng.bool() {
            pair(&mut client, value, &mut apart).await;
        } else {
            several(&mut client, value, &mut spread).await;
        }
    }
    (apart, spread)
}

async fn pair(client: &mut Client, value: i64, apart: &mut Vec<String>) {
    let pair = client.rng.usize(0..PAIRS);
    let [a, b] = ["a", "b"].map(|name| format!("{{pair:{pair}}}:{name}"));
    match client.rng.u8(0..3) {
        0 => {
            let mut mset = cmd("MSET");
            mset.arg(&a).arg(value).arg(&b).arg(value);
            client.ask::<()>(&mset).await.ok();
        }
        1 => {
            let mut eval = cmd("EVAL");
            eval.arg(BOTH).arg(2).arg(&a).arg(&b).arg(value);
            client.ask::<Option<i64>>(&eval).await.ok();
        }
        _ => {
            let read: Result<(Value, Value), Lost> = client.ask(cmd("MGET").arg(&a).arg(&b)).await;
            if let Ok((a, b)) = read
                && a != b
            {
                apart.push(format!("the pair {pair} was read as {a:?} and {b:?}"));
            }
        }
    }
}

async fn several(client: &mut Client, value: i64, seen: &mut Seen) {
    let age = client.now().as_secs() / 10;
    let keys = [0, 1, 2].map(|key: usize| format!("spread:{}:{age}", key % SPREAD));
    let from = client.now();
    let (call, answers): (_, Option<Vec<Answer>>) = if client.rng.bool() {
        let mut mset = cmd("MSET");
        keys.iter()
            .for_each(|key| drop(mset.arg(key).arg(value).to_owned()));
        let asked = client.ask::<()>(&mset).await;
        let done = match asked {
            Ok(()) => Some(vec![Answer::Done; keys.len()]),
            Err(Lost::Unknown) => None,
            Err(Lost::NotExecuted) => return,
        };
        (Call::Set(value), done)
    } else {
        match client.ask::<Vec<Value>>(cmd("MGET").arg(&keys)).await {
            Ok(values) => {
                let answers = values.into_iter().map(Answer::Value).collect();
                (Call::Get, Some(answers))
            }
            Err(Lost::Unknown | Lost::NotExecuted) => return,
        }
    };
    let to = client.now();
    for (at, key) in keys.into_iter().enumerate() {
        let operation = Operation {
            client: client.number,
            call,
            from,
            answer: answers.as_ref().map(|answers| (answers[at], to)),
        };
        seen.entry(key).or_default().push(operation);
    }
}
