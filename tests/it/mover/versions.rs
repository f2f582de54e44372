//! Copies between servers of different versions and families.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use redis::{Value, aio::MultiplexedConnection, cmd};
use tokio::time;

use super::{
    EVERY_TYPE, fill, run,
    stand::{Stand, all, half, program, settle},
    write_all_the_time,
};

/// That all types arrive; `restores`: whether as they were dumped.
async fn check(source: &str, target: &str, restores: bool) {
    let (Some(from), Some(to)) = (program(source), program(target)) else {
        return;
    };
    let stand = Stand::of(from, to, &[]).await;
    let mut link = stand.source.connect().await;
    let has_streams = source != "redis-3.2";
    let knows = |words: &&&str| !words.contains("PXAT") && (has_streams || !words.starts_with('X'));
    for database in [0, 9] {
        run(&mut link, &format!("SELECT {database}")).await;
        for words in EVERY_TYPE.iter().filter(knows) {
            run(&mut link, words).await;
        }
        fill(&mut link, 500).await;
    }
    // Larger than any that is kept as a list in one piece.
    for n in 0..3000 {
        run(&mut link, &format!("ZADD many {n}.5 member-{n}")).await;
        run(&mut link, &format!("HSET fields f{n} {n}")).await;
    }
    let streams = [
        "XADD groups 1-1 f v",
        "XADD groups 2-1 f v",
        "XGROUP CREATE groups g 0",
        "XREADGROUP GROUP g c COUNT 1 STREAMS groups >",
        "XADD empty 1-1 f v",
        "XDEL empty 1-1",
    ];
    for words in streams.iter().filter(|_| has_streams) {
        run(&mut link, words).await;
    }
    let empty = cmd("SET").arg("nothing").arg("").to_owned();
    empty.exec_async(&mut link).await.unwrap();
    let mut copy = stand.copied(all()).await;
    settle(&mut copy, all()).await.unwrap();
    let keys = stand.must_be_equal(&all()).await;
    assert!(keys > 1000, "{keys}");
    let mut link = stand.target.connect().await;
    let stats: String = cmd("INFO")
        .arg("commandstats")
        .query_async(&mut link)
        .await
        .unwrap();
    let is_restored = stats
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_restore:"))
        .is_some_and(|stats| !stats.contains("failed_calls=") || stats.ends_with("failed_calls=0"));
    assert_eq!(is_restored, restores, "{source} to {target}: {stats}");
}

#[tokio::test(flavor = "multi_thread")]
async fn to_a_newer_one() {
    check("redis-3.2", "redis-7.0", true).await;
    check("redis-3.2", "redis-8.2", true).await;
    check("redis-5.0", "redis-7.0", true).await;
    check("redis-5.0", "valkey-9.1", true).await;
    check("redis-6.2", "redis-7.0", true).await;
    check("redis-7.0", "redis-8.2", true).await;
    check("valkey-8.1", "valkey-9.1", true).await;
    check("redis-7.0", "valkey-8.1", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn to_an_older_one_or_another_family() {
    check("redis-7.0", "redis-6.2", false).await;
    check("redis-8.2", "redis-7.0", false).await;
    check("redis-8.2", "valkey-9.1", false).await;
    check("valkey-9.1", "valkey-8.1", false).await;
    check("valkey-9.1", "redis-8.2", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_while_it_is_made_anew_by_commands() {
    let (Some(from), Some(to)) = (program("redis-7.0"), program("redis-6.2")) else {
        return;
    };
    let stand = Stand::of(from, to, &[]).await;
    fill(&mut stand.source.connect().await, 3000).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = write_all_the_time(stand.source.connect().await, stop.clone());
    let writer = tokio::spawn(writer);
    let mut copy = stand.copied(half()).await;
    time::sleep(Duration::from_millis(300)).await;
    stop.store(true, Relaxed);
    assert!(writer.await.unwrap() > 100);
    settle(&mut copy, half()).await.unwrap();
    // Short ones may expire between two looks; then they are gone at both.
    time::sleep(Duration::from_millis(300)).await;
    assert!(stand.must_be_equal(&half()).await > 500);
}

/// When the fields of a hash expire.
async fn expiries(link: &mut MultiplexedConnection) -> Value {
    let mut ask = cmd("HPEXPIRETIME");
    ask.arg("hash").arg(&["FIELDS", "3", "a", "b", "c"]);
    ask.query_async(link).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_expire() {
    for (source, target) in [
        ("redis-8.2", "redis-8.2"),
        ("valkey-9.1", "valkey-9.1"),
        ("redis-8.2", "valkey-9.1"),
        ("valkey-9.1", "redis-8.2"),
    ] {
        let (Some(from), Some(to)) = (program(source), program(target)) else {
            continue;
        };
        let stand = Stand::of(from, to, &[]).await;
        let mut link = stand.source.connect().await;
        run(&mut link, "HSET hash a 1 b 2 c 3").await;
        run(&mut link, "HPEXPIREAT hash 33333333333333 FIELDS 2 a c").await;
        let mut copy = stand.copied(all()).await;
        settle(&mut copy, all()).await.unwrap();
        assert_eq!(stand.must_be_equal(&all()).await, 1);
        let there = expiries(&mut stand.target.connect().await).await;
        assert_eq!(expiries(&mut link).await, there, "{source} to {target}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_expire_are_not_copied_where_they_would_not() {
    let (Some(from), Some(to)) = (program("redis-8.2"), program("redis-7.0")) else {
        return;
    };
    let stand = Stand::of(from, to, &[]).await;
    let mut link = stand.source.connect().await;
    run(&mut link, "HSET hash a 1").await;
    run(&mut link, "HPEXPIRE hash 1000000 FIELDS 1 a").await;
    let copy = controlplane::mover::Copy::begin(stand.plan(all()));
    let progress = super::reaches(&copy, |progress| progress.interruption.is_some()).await;
    let why = progress.interruption.unwrap();
    assert!(why.contains("fields that expire"), "{why}");
}
