//! What comes before a copy, and after it.

use std::{
    num::NonZeroU32,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use controlplane::mover::{Reaped, Scope, Unreaped, Verified, What, Which, examine, reap, verify};
use proto::SlotSet;
use redis::cmd;
use tokio::sync::watch;

use super::{
    EVERY_TYPE, fill, run,
    stand::{Stand, all, half, program, settle},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_has_moved_is_reaped() {
    let stand = Stand::start().await;
    let mut source = stand.source.connect().await;
    fill(&mut source, 5000).await;
    run(&mut source, "SELECT 9").await;
    fill(&mut source, 1000).await;
    let plan = stand.plan(all());
    let (progress, told) = watch::channel(Reaped::default());
    // Asked before each page that has any.
    let asked = AtomicUsize::new(0);
    let twice = || asked.fetch_add(1, Relaxed) < 2;
    let stopped = reap(&plan, half(), twice, &progress).await;
    assert!(matches!(stopped, Err(Unreaped::NotOurs)), "{stopped:?}");
    assert_eq!(asked.load(Relaxed), 3);
    let some = told.borrow().deleted;
    assert!((1..3000).contains(&some), "{some}");

    reap(&plan, half(), || true, &progress).await.unwrap();
    let told = told.borrow().deleted;
    let mut left = 0;
    for database in [0, 9] {
        run(&mut source, &format!("SELECT {database}")).await;
        let keys: Vec<Vec<u8>> = cmd("KEYS").arg("*").query_async(&mut source).await.unwrap();
        assert!(keys.iter().all(|key| !half().owns(key)));
        left += keys.len() as u64;
    }
    // The fence record stays.
    assert_eq!(told + left, 6001);
}

/// That a plan is refused for a reason, after some commands at the target.
async fn refused(commands: &[&str], why: &str) {
    let stand = Stand::start().await;
    let mut source = stand.source.connect().await;
    run(&mut source, "SELECT 15").await;
    run(&mut source, "SET k v").await;
    let mut target = stand.target.connect().await;
    for words in commands {
        run(&mut target, words).await;
    }
    let got = examine(&stand.plan(all()), 1024).await;
    let got = got
        .map(|fit| format!("{fit:?}"))
        .unwrap_or_else(|why| why.to_string());
    assert!(got.contains(why), "{got}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_copied_is_refused() {
    refused(&[], "Fit { restores: true }").await;
    refused(&["CONFIG SET maxmemory 1000000"], "has not enough memory").await;
    let evicts = [
        "CONFIG SET maxmemory 1gb",
        "CONFIG SET maxmemory-policy allkeys-lru",
    ];
    refused(&evicts, "throws keys out").await;
    refused(
        &["HSET {sluice}:fence term 2"],
        "a leader of term 2 has been there",
    )
    .await;
    refused(&["REPLICAOF 127.0.0.1 1"], "the target is a replica").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_must_be_there() {
    let stand = Stand::start().await;
    let library = "#!lua name=mine\nredis.register_function('f', function() return 1 end)";
    let mut source = stand.source.connect().await;
    let load = async |link: &mut redis::aio::MultiplexedConnection| {
        let words = ["LOAD", "REPLACE", library];
        cmd("FUNCTION")
            .arg(&words)
            .query_async::<()>(link)
            .await
            .unwrap();
    };
    load(&mut source).await;
    let why = examine(&stand.plan(all()), 1024).await.unwrap_err();
    assert!(why.to_string().contains("library mine"), "{why}");
    load(&mut stand.target.connect().await).await;
    examine(&stand.plan(all()), 1024).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_target_cannot_restore() {
    let (Some(old), Some(new)) = (program("redis-6.2"), program("redis-7.0")) else {
        return;
    };
    for (source, target, restores) in [(&old, &new, true), (&new, &old, false)] {
        let stand = Stand::of(source.clone(), target.clone(), &[]).await;
        let fit = examine(&stand.plan(all()), 1024).await.unwrap();
        assert_eq!(fit.restores, restores);
    }
}

/// What differs between the two of a stand.
async fn verified(stand: &Stand, which: Which) -> Verified {
    let (progress, told) = watch::channel(Verified::default());
    let scope = Scope {
        slots: half(),
        followed: SlotSet::EMPTY,
        which,
    };
    verify(&stand.plan(half()), scope, &progress).await.unwrap();
    told.borrow().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_found() {
    let stand = Stand::start().await;
    let (mut source, mut target) = (stand.source.connect().await, stand.target.connect().await);
    fill(&mut source, 2000).await;
    for words in EVERY_TYPE {
        run(&mut source, words).await;
    }
    let mut add = cmd("EVAL");
    let script = "for n = 1, 20000 do redis.call('ZADD', KEYS[1], n, 'm' .. n) \
        redis.call('SADD', KEYS[2], 'm' .. n) end";
    add.arg(script).arg(2).arg(&["{k0}zset", "{k0}set"]);
    add.query_async::<()>(&mut source).await.unwrap();
    let mut copy = stand.copied(half()).await;
    settle(&mut copy, half()).await.unwrap();
    let same = verified(&stand, Which::All).await;
    assert!(same.compared > 900 && same.different == 0, "{same:?}");
    let some = verified(&stand, Which::OneIn(NonZeroU32::new(10).unwrap()))
        .await
        .compared;
    assert!((20..500).contains(&some), "{some}");

    // Half of these keys are of the slots.
    for words in [
        "SET k0 other",
        "DEL {k0}set",
        "ZADD {k0}zset 1.5 m1",
        "PEXPIREAT k2 33333333333333",
        "SET {k0}extra x",
        "SET {a}extra x",
    ] {
        run(&mut target, words).await;
    }
    let found = verified(&stand, Which::All).await;
    let named = found.named.iter();
    let mut named: Vec<_> = named
        .map(|found| (String::from_utf8_lossy(&found.key).into_owned(), found.what))
        .collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = [
        ("k0", What::Value),
        ("k2", What::Expiry),
        ("{k0}extra", What::Extra),
        ("{k0}set", What::Missing),
        ("{k0}zset", What::Value),
    ];
    assert_eq!(named, expected.map(|(key, what)| (key.to_owned(), what)));
    assert_eq!(found.different, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_fields_expire_is_compared_where_they_do() {
    for name in ["redis-8.2", "valkey-9.1"] {
        let Some(program) = program(name) else {
            continue;
        };
        let stand = Stand::of(program.clone(), program, &[]).await;
        let (mut source, mut target) = (stand.source.connect().await, stand.target.connect().await);
        for link in [&mut source, &mut target] {
            for words in [
                "HSET {k0}same a 1 b 2 c 3",
                "HPEXPIREAT {k0}same 33333333333333 FIELDS 2 a b",
                "HSET {k0}other a 1 b 2",
                "HPEXPIREAT {k0}other 33333333333333 FIELDS 1 a",
            ] {
                run(link, words).await;
            }
        }
        let words = "HPEXPIREAT {k0}other 33333333333334 FIELDS 1 a";
        run(&mut target, words).await;
        let found = verified(&stand, Which::All).await;
        let named: Vec<_> = found
            .named
            .iter()
            .map(|d| (d.key.as_slice(), d.what))
            .collect();
        let expected: [(&[u8], What); 1] = [(b"{k0}other", What::Expiry)];
        assert_eq!(named, expected, "{name}");
    }
}
