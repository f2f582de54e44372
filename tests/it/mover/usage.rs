//! How long nobody has used a key, or how often it is used, comes with it.

use redis::cmd;

use super::{
    run,
    stand::{Stand, all, program, settle},
};

/// That a key is used so much at the target as it was at the source, which is `amount` of what `option` of
/// `RESTORE` sets and `subcommand` of `OBJECT` tells; or `more`, as time passes.
async fn check(name: &str, policy: &str, [option, subcommand]: [&str; 2], amount: i64, more: i64) {
    let Some(program) = program(name) else { return };
    let stand = Stand::of(program.clone(), program, &["--maxmemory-policy", policy]).await;
    let (mut source, mut target) = (stand.source.connect().await, stand.target.connect().await);
    run(&mut source, "SET key value").await;
    let mut dump = cmd("DUMP");
    let payload: Vec<u8> = dump.arg("key").query_async(&mut source).await.unwrap();
    let mut restore = cmd("RESTORE");
    restore.arg("key").arg(0).arg(payload).arg("REPLACE");
    restore.arg(option).arg(amount);
    restore.exec_async(&mut source).await.unwrap();

    let mut copy = stand.copied(all()).await;
    settle(&mut copy, all()).await.unwrap();
    let mut object = cmd("OBJECT");
    object.arg(subcommand).arg("key");
    let got: i64 = object.query_async(&mut target).await.unwrap();
    let (least, most) = (amount.min(amount + more), amount.max(amount + more));
    assert!((least..=most).contains(&got), "{name}: {option} {got}");
}

const SERVERS: [&str; 5] = [
    "redis-6.2",
    "redis-7.0",
    "redis-8.2",
    "valkey-8.1",
    "valkey-9.1",
];

#[tokio::test]
async fn how_long_nobody_used_a_key_comes_with_it() {
    for name in SERVERS {
        let words = ["IDLETIME", "IDLETIME"];
        check(name, "allkeys-lru", words, 5000, 300).await;
    }
}

#[tokio::test]
async fn how_often_a_key_is_used_comes_with_it() {
    for name in SERVERS {
        check(name, "allkeys-lfu", ["FREQ", "FREQ"], 200, -5).await;
    }
}
