//! Keys are copied from one server to another while clients write to the first one.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use controlplane::mover::{Copy, Throttle, Unsettled};
use proto::{Slot, settled::Streams};
use redis::{aio::MultiplexedConnection, cmd, pipe};
use tokio::time;

pub(super) use self::stand::program;
use self::stand::{
    Stand, all, flush, follows, half, has, reaches, settle, settle_at_last, settle_streams,
    settle_within, touched,
};

mod around;
mod big;
mod events;
mod facts;
mod pressure;
mod probe;
mod stand;
mod usage;
mod versions;

/// Runs a command given as words.
async fn run(link: &mut MultiplexedConnection, words: &str) {
    let mut words = words.split(' ');
    let mut command = cmd(words.next().unwrap());
    for word in words {
        command.arg(word);
    }
    let result = command.query_async::<redis::Value>(link).await;
    result.unwrap_or_else(|e| panic!("{command:?}: {e}"));
}

/// How often a server has executed a command.
async fn calls(link: &mut MultiplexedConnection, command: &str) -> u64 {
    let mut ask = cmd("INFO");
    let stats: String = ask.arg("commandstats").query_async(link).await.unwrap();
    let name = format!("cmdstat_{command}:calls=");
    let line = stats.lines().find_map(|line| line.strip_prefix(&name));
    let calls = line.and_then(|line| line.split(',').next());
    calls.map_or(0, |calls| calls.parse().unwrap())
}

/// Writes strings of 100 bytes: `k0` and so on.
async fn fill(link: &mut MultiplexedConnection, count: usize) {
    let value = "v".repeat(100);
    for first in (0..count).step_by(1000) {
        let mut pipe = pipe();
        for n in first..count.min(first + 1000) {
            pipe.cmd("SET").arg(format!("k{n}")).arg(&value).ignore();
        }
        let _: () = pipe.query_async(link).await.unwrap();
    }
}

/// A key of each type, small and large encodings, with and without expiry.
const EVERY_TYPE: &[&str] = &[
    "SET string value",
    "SET number 12345",
    "SET expiring value PXAT 33333333333333",
    "SET expiring-soon value PX 7200123",
    "SETRANGE raw 20000 x",
    "RPUSH list a b c",
    "SADD intset 1 2 3",
    "SADD set a b c",
    "ZADD zset 1 a 2.5 b inf c -inf d",
    "HMSET hash a 1 b 2",
    "PEXPIRE hash 7200999",
    "XADD stream 1-1 a 1",
    "XADD stream 2-1 b 2",
    "XDEL stream 1-1",
    "XGROUP CREATE stream g 0",
    "XREADGROUP GROUP g c COUNT 1 STREAMS stream >",
    "PFADD hll a b c",
    "SETBIT bits 77 1",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_as_it_is() {
    let stand = Stand::start().await;
    let (mut source, mut target) = (stand.source.connect().await, stand.target.connect().await);
    for database in [0, 3, 15] {
        run(&mut source, &format!("SELECT {database}")).await;
        for words in EVERY_TYPE {
            run(&mut source, words).await;
        }
        let mut pipe = pipe();
        for byte in 0..=255u8 {
            pipe.cmd("SET")
                .arg(&[byte, b'\r', b'\n', 0])
                .arg(&[byte])
                .ignore();
        }
        for n in 0..2000 {
            pipe.cmd("RPUSH").arg("long").arg(n).ignore();
            pipe.cmd("SADD").arg("many").arg(format!("m{n}")).ignore();
        }
        let _: () = pipe.query_async(&mut source).await.unwrap();
    }
    // What the target has of the slots goes; its own stays, and so does what is Sluice's.
    let (low, high) = ("k0", "a");
    assert!(half().owns(low.as_bytes()) && !half().owns(high.as_bytes()));
    for database in [0, 7] {
        run(&mut target, &format!("SELECT {database}")).await;
        for key in [low, high, "{sluice}:tmp:other:x", "{sluice}:tmp:m1:old"] {
            run(&mut target, &format!("SET {key} old")).await;
        }
    }

    let mut copy = stand.copied(half()).await;
    settle(&mut copy, half()).await.unwrap();
    assert!(stand.must_be_equal(&half()).await > 300);
    copy.end().await.unwrap();
    for database in [0, 7] {
        run(&mut target, &format!("SELECT {database}")).await;
        let mut keys: Vec<Vec<u8>> = cmd("KEYS").arg("*").query_async(&mut target).await.unwrap();
        keys.retain(|key| !half().owns(key));
        keys.sort();
        let keys: Vec<_> = keys
            .iter()
            .map(|key| String::from_utf8_lossy(key))
            .collect();
        let mut expected = vec![high, "{sluice}:tmp:other:x"];
        if database == 0 {
            expected.push("{sluice}:fence");
        }
        expected.sort_unstable();
        assert_eq!(keys, expected);
    }
}

/// Changes keys in all ways until it is told to stop.
async fn write_all_the_time(mut link: MultiplexedConnection, stop: Arc<AtomicBool>) -> usize {
    let mut random = fastrand::Rng::with_seed(7);
    let mut rounds = 0;
    while !stop.load(Relaxed) {
        let key = format!("k{}", random.u32(0..3000));
        let other = format!("w{}", random.u32(0..500));
        let words = match random.u8(0..12) {
            0 => format!("SET {key} {}", random.u64(..)),
            1 => format!("DEL {key} {other}"),
            2 => format!("SET {other} x PX {}", random.u32(1..60)),
            3 => format!("PEXPIRE {key} {}", random.u32(1..200)),
            4 => format!("EVAL redis.call('SET',KEYS[1],ARGV[1]) 1 {key} {rounds}"),
            5 => format!("RENAME {key} {other}"),
            6 => format!("COPY {key} {other} REPLACE"),
            7 => format!("MOVE {key} 1"),
            8 => format!("RPUSH list{{{other}}} {rounds}"),
            9 => format!("LPOP list{{{other}}}"),
            10 => format!("SELECT {}", random.u8(0..3)),
            _ => format!("SET {key} {rounds}"),
        };
        let mut words = words.split(' ');
        let mut command = cmd(words.next().unwrap());
        for word in words {
            command.arg(word);
        }
        // Renaming what is not there is an error, and may be.
        command.query_async::<redis::Value>(&mut link).await.ok();
        rounds += 1;
    }
    rounds
}

/// A copy of half of the slots, under writes that go on for so long after it follows.
async fn copied_under_writes(stand: &Stand, after: Duration) -> Copy {
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = [stand.source.connect().await, stand.source.connect().await]
        .into_iter()
        .map(|link| tokio::spawn(write_all_the_time(link, stop.clone())))
        .collect();
    let copy = stand.copied(half()).await;
    time::sleep(after).await;
    stop.store(true, Relaxed);
    for writer in writers {
        assert!(writer.await.unwrap() > 100);
    }
    copy
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_during_the_copy_is_the_same_in_the_end() {
    let stand = Stand::start().await;
    fill(&mut stand.source.connect().await, 20_000).await;
    let mut copy = copied_under_writes(&stand, Duration::from_millis(500)).await;
    settle(&mut copy, half()).await.unwrap();
    // Short ones may expire between two looks; then they are gone at both.
    time::sleep(Duration::from_millis(300)).await;
    assert!(stand.must_be_equal(&half()).await > 5000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_of_the_source_starts_the_copy_over() {
    let stand = Stand::start().await;
    let mut link = stand.source.connect().await;
    fill(&mut link, 5000).await;
    let mut copy = stand.copied(all()).await;
    flush(&stand.source).await;
    run(&mut link, "SET after flush").await;
    let progress = reaches(&copy, |progress| progress.attempt > 1).await;
    assert_eq!(
        progress.interruption.as_deref(),
        Some("the source was flushed")
    );
    follows(&copy).await;
    settle(&mut copy, all()).await.unwrap();
    assert_eq!(stand.must_be_equal(&all()).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_was_flushed_unseen_is_found_out() {
    let stand = Stand::start().await;
    fill(&mut stand.source.connect().await, 5000).await;
    let mut copy = stand.copied(all()).await;
    flush(&stand.target).await;
    assert_eq!(settle(&mut copy, all()).await, Err(Unsettled::Interrupted));
    let progress = reaches(&copy, |progress| progress.attempt > 1).await;
    assert_eq!(
        progress.interruption.as_deref(),
        Some("the target was flushed")
    );
    follows(&copy).await;
    settle(&mut copy, all()).await.unwrap();
    assert_eq!(stand.must_be_equal(&all()).await, 5000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_restarts_is_copied_to_anew() {
    let mut stand = Stand::start().await;
    let mut link = stand.source.connect().await;
    fill(&mut link, 5000).await;
    let mut copy = stand.copied(all()).await;
    stand.target.process.kill();
    // Staged, and deleted while the target is away: it must not come back with its old data.
    run(&mut link, "DEL k1 k2 k3").await;
    stand.target.restart();
    stand.target.answers().await;
    let progress = reaches(&copy, |progress| progress.attempt > 2).await;
    assert!(
        progress
            .interruption
            .unwrap()
            .contains("has to admit it again")
    );
    stand::admit(&stand.target).await;
    follows(&copy).await;
    settle(&mut copy, all()).await.unwrap();
    assert_eq!(stand.must_be_equal(&all()).await, 4997);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_tracking_connection_starts_the_copy_over() {
    let stand = Stand::start().await;
    let mut link = stand.source.connect().await;
    fill(&mut link, 5000).await;
    let mut copy = stand.copied(all()).await;
    let killed: i64 = cmd("CLIENT")
        .arg(&["KILL", "TYPE", "pubsub"])
        .query_async(&mut link)
        .await
        .unwrap();
    assert_eq!(
        killed, 1,
        "it must count as a subscriber, so that its memory is bounded"
    );
    run(&mut link, "DEL k1 k2 k3").await;
    let progress = reaches(&copy, |progress| progress.attempt > 1).await;
    assert!(
        progress
            .interruption
            .unwrap()
            .starts_with("tracking is lost")
    );
    settle_at_last(&mut copy, &all()).await;
    assert_eq!(stand.must_be_equal(&all()).await, 4997);
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_are_settled_in_batches_while_others_are_written() {
    let stand = Stand::start().await;
    let mut link = stand.source.connect().await;
    fill(&mut link, 5000).await;
    let mut copy = stand.copied(all()).await;
    let batch: proto::SlotSet = [Slot::of_key(b"k1")].into_iter().collect();
    copy.throttle(Throttle {
        paused: true,
        ..Throttle::default()
    });
    run(&mut link, "SET k1 new").await;
    run(&mut link, "SET k2 new").await;
    let evidence = settle(&mut copy, batch).await.unwrap();
    assert_eq!(evidence.keys, 1);
    stand.must_be_equal(&batch).await;
    // The batch was not moved after all: its clients write at the source again.
    run(&mut link, "SET k1 newer").await;
    copy.reopen(batch).await;
    copy.throttle(Throttle::default());
    settle(&mut copy, all()).await.unwrap();
    assert_eq!(stand.must_be_equal(&all()).await, 5000);
    // What the copy does not have cannot be settled.
    drop(copy);
    let mut copy = stand.copied(batch).await;
    assert_eq!(settle(&mut copy, all()).await, Err(Unsettled::NotPlanned));
}

/// That the target has of these two keys what its clients have written.
async fn must_be_left_alone(target: &mut MultiplexedConnection) {
    time::sleep(Duration::from_millis(300)).await;
    let values: Vec<Option<String>> = cmd("MGET")
        .arg("k0")
        .arg("{k0}expires")
        .query_async(target)
        .await
        .unwrap();
    assert_eq!(values, [Some("new".to_owned()), Some("value".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_moved_is_left_alone() {
    let stand = Stand::start().await;
    let (mut source, mut target) = (stand.source.connect().await, stand.target.connect().await);
    fill(&mut source, 5000).await;
    assert!(half().owns(b"k0"));
    run(&mut source, "SET {k0}expires value PX 2000").await;
    let mut copy = stand.copied(all()).await;
    assert_eq!(copy.release(half()).await, Err(Unsettled::NotSettled));
    settle(&mut copy, half()).await.unwrap();
    // From now on they may be the target's: whatever happens at the source, nothing is written there.
    run(&mut target, "SET k0 new").await;
    run(&mut target, "PERSIST {k0}expires").await;
    run(&mut source, "DEL k0").await;
    time::sleep(Duration::from_millis(2000)).await;
    must_be_left_alone(&mut target).await;
    // Not even by an attempt that starts over: none does, before it is said what becomes of them.
    let lose_tracking = async |source: &mut MultiplexedConnection| {
        let kill = ["KILL", "TYPE", "pubsub"];
        cmd("CLIENT")
            .arg(&kill)
            .query_async::<()>(source)
            .await
            .unwrap();
    };
    lose_tracking(&mut source).await;
    reaches(&copy, |progress| progress.interruption.is_some()).await;
    must_be_left_alone(&mut target).await;
    assert_eq!(copy.progress().borrow().attempt, 1);
    copy.release(half()).await.unwrap();
    reaches(&copy, |progress| progress.attempt == 2).await;
    follows(&copy).await;
    must_be_left_alone(&mut target).await;
    run(&mut source, "SET k0 old").await;
    must_be_left_alone(&mut target).await;
    assert_eq!(settle(&mut copy, half()).await, Err(Unsettled::NotPlanned));

    // The next batch, released while the attempt goes on.
    let others = all().without(&half());
    settle(&mut copy, others).await.unwrap();
    stand.must_be_equal(&others).await;
    copy.release(others).await.unwrap();
    lose_tracking(&mut source).await;
    reaches(&copy, |progress| progress.attempt == 3).await;
    follows(&copy).await;
    stand.must_be_equal(&others).await;
    must_be_left_alone(&mut target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_is_kept_but_for_what_is_held() {
    let stand = Stand::start().await;
    let mut link = stand.source.connect().await;
    fill(&mut link, 3000).await;
    let mut copy = Copy::begin(stand.plan(all()));
    copy.throttle(Throttle {
        rate: NonZeroU32::new(1000),
        ..Throttle::default()
    });
    let begun = time::Instant::now();
    follows(&copy).await;
    // The first batch of each lane is free of it.
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(2300), "{took:?}");
    copy.throttle(Throttle {
        paused: true,
        rate: NonZeroU32::new(1),
    });
    fill(&mut link, 500).await;
    settle(&mut copy, all()).await.unwrap();
    assert_eq!(stand.must_be_equal(&all()).await, 3000);
    // Nor is it made up for afterwards.
    copy.reopen(all()).await;
    copy.throttle(Throttle {
        rate: NonZeroU32::new(1),
        ..Throttle::default()
    });
    for _ in 0..3 {
        let before = copy.progress().borrow().keys;
        run(&mut link, "SET k0 again").await;
        reaches(&copy, |progress| progress.keys > before).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_target_is_waited_for() {
    let stand = Stand::start().await;
    let (mut source, mut target) = (stand.source.connect().await, stand.target.connect().await);
    fill(&mut source, 3000).await;
    run(&mut target, "CONFIG SET maxmemory 1500000").await;
    let mut copy = Copy::begin(stand.plan(all()));
    let full = |text: &str| text.starts_with("OOM");
    reaches(&copy, |p| p.waits_for.as_deref().is_some_and(full)).await;
    // Changes are heard of meanwhile.
    for n in 0..3000 {
        run(&mut source, &format!("SET k{n} new")).await;
    }
    run(&mut target, "CONFIG SET maxmemory 0").await;
    follows(&copy).await;
    settle(&mut copy, all()).await.unwrap();
    assert_eq!(stand.must_be_equal(&all()).await, 3000);
    assert_eq!(copy.progress().borrow().attempt, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_of_the_target_must_have_it() {
    let stand = Stand::start().await;
    fill(&mut stand.source.connect().await, 500).await;
    let replica = stand.replica().await;
    let mut copy = stand.copied(all()).await;
    settle(&mut copy, all()).await.unwrap();
    copy.reopen(all()).await;
    replica.process.stop();
    let none = settle_within(&mut copy, all(), Duration::from_millis(500)).await;
    assert!(
        matches!(
            none,
            Err(Unsettled::ReplicaBehind | Unsettled::OverBudget(_))
        ),
        "{none:?}"
    );
    replica.process.resume();
    settle(&mut copy, all()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_groups_are_copied_once_more() {
    let stand = Stand::start().await;
    let mut link = stand.source.connect().await;
    for stream in ["s1", "s2"] {
        for n in 1..20 {
            run(&mut link, &format!("XADD {stream} {n}-1 a {n}")).await;
        }
        run(&mut link, &format!("XGROUP CREATE {stream} g 0")).await;
        run(
            &mut link,
            &format!("XREADGROUP GROUP g c COUNT 9 STREAMS {stream} >"),
        )
        .await;
    }
    let mut copy = stand.copied(all()).await;
    let change = async |link: &mut MultiplexedConnection, n: u32| {
        for stream in ["s1", "s2"] {
            run(link, &format!("XACK {stream} g {n}-1")).await;
            run(
                link,
                &format!("XREADGROUP GROUP g d COUNT 1 STREAMS {stream} >"),
            )
            .await;
            run(link, &format!("XGROUP CREATE {stream} g{n} 3-1")).await;
        }
    };
    change(&mut link, 1).await;
    settle_streams(&mut copy, all(), touched(&["s1", "s2"]))
        .await
        .unwrap();
    assert_eq!(stand.must_be_equal(&all()).await, 2);
    copy.reopen(all()).await;
    change(&mut link, 2).await;
    settle_streams(&mut copy, all(), Streams::Any)
        .await
        .unwrap();
    assert_eq!(stand.must_be_equal(&all()).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_carries_on_cleans_up_first() {
    let stand = Stand::start().await;
    let mut link = stand.source.connect().await;
    fill(&mut link, 2000).await;
    let copy = stand.copied(all()).await;
    has(&stand.target, "k1").await;
    drop(copy);
    run(&mut link, "DEL k1").await;
    let mut plan = stand.plan(all());
    let mandate = Arc::make_mut(&mut plan.mandate);
    mandate.incarnation = "1e".repeat(16);
    let mut copy = Copy::begin(plan.clone());
    follows(&copy).await;
    settle(&mut copy, all()).await.unwrap();
    assert_eq!(stand.must_be_equal(&all()).await, 1999);
    drop(copy);
    let deleted = controlplane::mover::clean_up(&plan).await.unwrap();
    assert_eq!(deleted, 1999);
    // An older leader's copy is refused.
    let mut target = stand.target.connect().await;
    run(&mut target, "HSET {sluice}:fence term 2").await;
    let copy = Copy::begin(plan);
    let refused = |text: &str| text.contains("a leader of term 2 has been there");
    reaches(&copy, |p| p.interruption.as_deref().is_some_and(refused)).await;
}
