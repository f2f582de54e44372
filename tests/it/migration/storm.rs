//! Keys change all the time, many thousands a second, or big ones are made all the time, and their slots move all
//! the same.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use proto::v1::{self, migration::Phase};
use redis::{aio::MultiplexedConnection, cmd, pipe};
use tests::{
    Cluster,
    migration::{assert_keys_are_at_their_owners, enters, migrate},
};
use tokio::time::{self, Instant};

/// How many keys each client has.
const KEYS: usize = 16_000;
/// How many it sets at a time.
const AT_ONCE: usize = 64;
const CLIENTS: usize = 4;

/// Gives all keys of a client one value after the other, as fast as it can. What they have at last, and how
/// often one was set.
async fn write(
    mut link: MultiplexedConnection,
    client: usize,
    stop: Arc<AtomicBool>,
) -> (usize, usize) {
    let (mut round, mut writes) = (0, 0);
    loop {
        round += 1;
        for first in (0..KEYS).step_by(AT_ONCE) {
            let mut sets = pipe();
            for n in first..KEYS.min(first + AT_ONCE) {
                sets.cmd("SET")
                    .arg(format!("{client}:{n}"))
                    .arg(round)
                    .ignore();
                writes += 1;
            }
            // What was refused, or may not have been executed, is set to the same again.
            while sets.exec_async(&mut link).await.is_err() {}
        }
        if stop.load(Relaxed) {
            return (round, writes);
        }
    }
}

/// Moves half of the slots, copying so many keys a second, while their keys change all the time.
async fn check(rate: u32) {
    let cluster = Cluster::builder().groups(2).proxies(2).start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let begun = Instant::now();
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let link = cluster.proxies[client % 2].connect().await;
        clients.push(tokio::spawn(write(link, client, stop.clone())));
    }
    let request = v1::CreateMigrationRequest {
        id: "m".to_owned(),
        slots: "0-511".to_owned(),
        target_group_id: "g2".to_owned(),
        rate,
        ..v1::CreateMigrationRequest::default()
    };
    let mut admin = cluster.controller.admin().await;
    admin.create_migration(request).await.unwrap();
    let moved = enters(&cluster.controller, "m", Phase::Succeeded).await;
    let took = begun.elapsed();
    stop.store(true, Relaxed);
    let mut writes = 0;
    let mut link = cluster.proxies[0].connect().await;
    for (client, ended) in clients.into_iter().enumerate() {
        let (last, count) = ended.await.unwrap();
        writes += count;
        let mut gets = pipe();
        for n in 0..KEYS {
            gets.cmd("GET").arg(format!("{client}:{n}"));
        }
        let values: Vec<Option<usize>> = gets.query_async(&mut link).await.unwrap();
        assert!(
            values.iter().all(|value| *value == Some(last)),
            "{client}: {last}"
        );
    }
    eprintln!(
        "{} writes a second; moved in {took:?} with {} cut-overs, of {} ms at most",
        writes as f64 / begun.elapsed().as_secs_f64(),
        moved.cut_overs,
        moved.longest_hold_ms
    );
    assert_eq!(moved.moved_slots, "0-511");
    // What gives a hold up comes a little later on a busy machine.
    assert!(moved.longest_hold_ms < 1500.0, "{moved:?}");
    assert_keys_are_at_their_owners(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_move_though_many_keys_change_all_the_time() {
    check(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_move_though_more_keys_change_than_may_be_copied() {
    check(6000).await;
}

/// Makes a value that is copied by pieces, which takes longer.
const MAKE_BIG: &str = "for n = 1, ARGV[1] do redis.call('ZADD', KEYS[1], n, 'member-' .. n) end";
/// Elements of one.
const ELEMENTS: usize = 10_000;
/// How many of those there are at a time.
const LIVE: usize = 100;

/// Makes big values, each under a name of its own, 25 a second, and deletes them four seconds later. How many it
/// made.
async fn make_big(mut link: MultiplexedConnection, stop: Arc<AtomicBool>) -> usize {
    let mut each = time::interval(Duration::from_millis(40));
    let mut made: usize = 0;
    while !stop.load(Relaxed) {
        each.tick().await;
        let mut make = cmd("EVAL");
        make.arg(MAKE_BIG).arg(1).arg(format!("big:{made}"));
        // What was refused, or may not have been executed, does the same again.
        if make.arg(ELEMENTS).exec_async(&mut link).await.is_err() {
            continue;
        }
        if let Some(old) = made.checked_sub(LIVE) {
            let old = format!("big:{old}");
            cmd("UNLINK").arg(old).exec_async(&mut link).await.ok(); // one more or less
        }
        made += 1;
    }
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_move_though_more_big_values_are_made_than_can_be_copied() {
    let cluster = Cluster::builder().groups(2).proxies(2).start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let link = cluster.proxies[0].connect().await;
    let client = tokio::spawn(make_big(link, stop.clone()));
    time::sleep(Duration::from_secs(5)).await;
    let moved = migrate(&cluster, "0-511", "g2").await;
    stop.store(true, Relaxed);
    let made = client.await.unwrap();
    eprintln!(
        "{made} made; moved with {} cut-overs, of {} ms at most",
        moved.cut_overs, moved.longest_hold_ms
    );
    assert_eq!(moved.moved_slots, "0-511");
    assert!(moved.longest_hold_ms < 1500.0, "{moved:?}");
    let mut link = cluster.proxies[1].connect().await;
    for n in made - LIVE..made {
        let mut count = cmd("ZCARD");
        let count: usize = count
            .arg(format!("big:{n}"))
            .query_async(&mut link)
            .await
            .unwrap();
        assert_eq!(count, ELEMENTS, "{n} of {made}");
    }
    assert_keys_are_at_their_owners(&cluster).await;
}
