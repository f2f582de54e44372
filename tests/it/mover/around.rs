//! What comes before a copy, and after it.

use std::{
    num::NonZeroU32,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use controlplane::mover::{
    Measure, Reaped, Scope, Share, Unreaped, Verified, What, Which, examine, measure, reap, verify,
};
use proto::SlotSet;
use redis::cmd;
use tokio::sync::watch;

use super::{
    EVERY_TYPE, fill, run,
    stand::{Stand, all, half, program, settle},
};

/// All that a source has.
pub(super) const ALL: Share = Share {
    slots: 1024,
    owned: 1024,
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
    let got = examine(&stand.plan(all()), ALL, &[]).await;
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
    let why = examine(&stand.plan(all()), ALL, &[]).await.unwrap_err();
    assert!(why.to_string().contains("library mine"), "{why}");
    load(&mut stand.target.connect().await).await;
    examine(&stand.plan(all()), ALL, &[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_target_cannot_restore() {
    let (Some(old), Some(new)) = (program("redis-6.2"), program("redis-7.0")) else {
        return;
    };
    for (source, target, restores) in [(&old, &new, true), (&new, &old, false)] {
        let stand = Stand::of(source.clone(), target.clone(), &[]).await;
        let fit = examine(&stand.plan(all()), ALL, &[]).await.unwrap();
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

/// What some keys say of all is nearly right, at whatever server: a place in its table can be any number.
#[tokio::test(flavor = "multi_thread")]
async fn what_slots_have_is_measured() {
    for name in [
        "redis-6.2",
        "redis-7.0",
        "redis-8.2",
        "valkey-8.1",
        "valkey-9.1",
    ] {
        let Some(program) = program(name) else {
            continue;
        };
        let stand = Stand::of(program.clone(), program, &[]).await;
        let mut source = stand.source.connect().await;
        let measured = async |what| {
            let plan = stand.plan(all());
            let measured = measure(&plan.source, plan.mandate, what, plan.patience).await;
            measured.unwrap()
        };
        let script = "for n = tonumber(ARGV[1]), tonumber(ARGV[2]) do \
            redis.call('SET', ARGV[3] .. n, 'x') end";
        let add = async |source: &mut redis::aio::MultiplexedConnection,
                         first: u32,
                         last: u32,
                         prefix: &str| {
            let mut add = cmd("EVAL");
            add.arg(script).arg(0).arg(first).arg(last).arg(prefix);
            add.query_async::<()>(source).await.unwrap();
        };
        add(&mut source, 1, 2000, "k").await;
        run(&mut source, "SELECT 3").await;
        add(&mut source, 1, 500, "{one}").await;
        let one = proto::Slot::of_key(b"{one}1").index();
        let few = measured(Measure::Keys).await;
        assert_eq!((few.keys, few.looked_at), (2501, 2501), "{name}");
        assert_eq!(few.slots.iter().sum::<u64>(), 2500, "{name}");
        assert!(few.slots[one] >= 500, "{name}");
        // A third of all are of one slot.
        add(&mut source, 501, 100_000, "{one}").await;
        run(&mut source, "SELECT 0").await;
        add(&mut source, 2001, 200_000, "k").await;
        let many = measured(Measure::Keys).await;
        assert!(many.looked_at < 110_000 && many.keys > 300_000, "{name}");
        let near = |found: u64, expected: u64, what| {
            let off = found.abs_diff(expected);
            assert!(
                off < expected / 20,
                "{name}: {found} {what}, not {expected}"
            );
        };
        near(many.slots.iter().sum(), 300_001, "keys");
        near(many.slots[one], 100_200, "keys of one slot");
        let half = many.slots[..512].iter().sum::<u64>();
        near(
            half - if one < 512 { many.slots[one] } else { 0 },
            100_000,
            "keys of a half",
        );
        let memory = measured(Measure::Memory).await;
        let each = memory.slots.iter().sum::<u64>() / 300_001;
        assert!((30..200).contains(&each), "{name}: {each} bytes a key");
    }
}

/// Their dumps differ by when consumers were seen; what counts is what they have.
#[tokio::test(flavor = "multi_thread")]
async fn groups_of_streams_are_compared() {
    let stand = Stand::start().await;
    let (mut source, mut target) = (stand.source.connect().await, stand.target.connect().await);
    for link in [&mut source, &mut target] {
        for key in ["{k0}same", "{k0}acked", "{k0}ahead"] {
            let mut add = cmd("EVAL");
            let script = "for n = 1, 1500 do redis.call('XADD', KEYS[1], n .. '-1', 'n', n) end";
            add.arg(script).arg(1).arg(key);
            add.query_async::<()>(link).await.unwrap();
            run(link, &format!("XGROUP CREATE {key} g 0")).await;
            run(
                link,
                &format!("XREADGROUP GROUP g c COUNT 1200 STREAMS {key} >"),
            )
            .await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    run(&mut target, "XACK {k0}acked g 1100-1").await;
    run(&mut source, "XACK {k0}acked g 1099-1").await;
    run(&mut target, "XGROUP SETID {k0}ahead g 1300-1").await;
    let found = verified(&stand, Which::All).await;
    let mut named: Vec<_> = found
        .named
        .iter()
        .map(|d| (d.key.as_slice(), d.what))
        .collect();
    named.sort_unstable_by_key(|(key, _)| *key);
    let expected: [(&[u8], What); 2] = [(b"{k0}acked", What::Value), (b"{k0}ahead", What::Value)];
    assert_eq!(named, expected);
}
