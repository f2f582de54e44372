//! Values too big for one piece.

use std::{collections::HashMap, num::NonZeroU32, time::Duration};

use controlplane::mover::{Copy, Progress, Stage, Throttle};
use proto::{Slot, SlotSet, settled::Streams};
use redis::{Value, aio::MultiplexedConnection, cmd, from_redis_value, pipe};
use tokio::time;

use super::{
    calls,
    probe::Probe,
    run,
    stand::{Stand, all, follows, reaches, settle, settle_streams, touched},
};

/// A key of each type, each more than a piece, in all databases that are asked for.
async fn fill(link: &mut MultiplexedConnection, thousands: usize) {
    let elements = thousands * 1000;
    let mut pipe = pipe();
    pipe.cmd("SET")
        .arg("string")
        .arg(vec![b'x'; elements * 50])
        .ignore();
    for n in 0..elements {
        let value = format!("value-{n}-{}", "v".repeat(n % 50));
        pipe.cmd("RPUSH").arg("list").arg(&value).ignore();
        pipe.cmd("SADD").arg("set").arg(&value).ignore();
        pipe.cmd("HSET").arg("hash").arg(n).arg(&value).ignore();
        pipe.cmd("ZADD")
            .arg("zset")
            .arg(n as f64 / 3.0)
            .arg(&value)
            .ignore();
        pipe.cmd("XADD")
            .arg("stream")
            .arg(format!("{}-1", n + 1))
            .arg("f")
            .arg(&value)
            .ignore();
        if n % 1000 == 999 {
            let _: () = pipe.query_async(link).await.unwrap();
            pipe.clear();
        }
    }
    for words in [
        "PEXPIREAT hash 33333333333333",
        "ZADD zset inf infinite -inf least 3.3333333333333335 precise",
        "XDEL stream 5-1 7-1",
        "XGROUP CREATE stream g 0",
        "XREADGROUP GROUP g c COUNT 300 STREAMS stream >",
        "XREADGROUP GROUP g d COUNT 3 STREAMS stream >",
        "XACK stream g 1-1 2-1",
        "XGROUP CREATE stream h $",
        "XGROUP CREATECONSUMER stream h idle",
    ] {
        run(link, words).await;
    }
}

/// Returns once no big key is left to copy.
async fn big_ones_are_copied(copy: &mut Copy) {
    let are_copied = |now: &Progress| {
        now.stage == Stage::Following && now.uncopied.is_empty() && now.big == 0 && now.dirty == 0
    };
    // What has changed just now is told a moment later.
    let mut progress = copy.progress();
    for _ in 0..3 {
        progress.mark_unchanged();
        progress.changed().await.unwrap();
    }
    reaches(copy, are_copied).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_by_pieces() {
    let stand = Stand::start().await;
    let mut source = stand.source.connect().await;
    fill(&mut source, 20).await;
    run(&mut source, "SELECT 5").await;
    fill(&mut source, 9).await;
    // Once big, always the same lane's, whatever becomes of it.
    run(&mut source, "SELECT 3").await;
    run(&mut source, "SET list small").await;
    let probe = Probe::start(&stand.target).await;
    let mut copy = stand.copied(all()).await;
    settle(&mut copy, all()).await.unwrap();
    assert_eq!(stand.must_be_equal(&all()).await, 13);
    let (_, _, command) = probe.end().await;
    assert!(!command.contains("RESTORE"), "{command}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_big_value_that_changes_is_copied_again() {
    let stand = Stand::start().await;
    let mut source = stand.source.connect().await;
    fill(&mut source, 20).await;
    let mut copy = stand.copied(all()).await;
    for n in 0..100 {
        run(&mut source, &format!("ZADD zset {n} new-{n}")).await;
        run(&mut source, &format!("RPUSH list new-{n}")).await;
        time::sleep(Duration::from_millis(2)).await;
    }
    run(&mut source, "DEL set").await;
    run(&mut source, "DEL string").await;
    run(&mut source, "SET string small").await;
    settle(&mut copy, all()).await.unwrap();
    assert_eq!(stand.must_be_equal(&all()).await, 5);
    // Nothing is left of what was begun and given up.
    copy.end().await.unwrap();
    let mut target = stand.target.connect().await;
    assert_eq!(own_keys(&mut target).await, ["{sluice}:fence"]);
}

/// What a server has of Sluice's.
async fn own_keys(link: &mut MultiplexedConnection) -> Vec<String> {
    let mut keys = cmd("KEYS");
    keys.arg("{sluice}:*");
    keys.query_async(link).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_of_a_big_stream_are_settled_without_its_entries() {
    let stand = Stand::start().await;
    let mut source = stand.source.connect().await;
    fill(&mut source, 20).await;
    let mut copy = stand.copied(all()).await;
    big_ones_are_copied(&mut copy).await;
    let mut target = stand.target.connect().await;
    let added = async |target: &mut MultiplexedConnection| {
        let stats: String = cmd("INFO")
            .arg("commandstats")
            .query_async(target)
            .await
            .unwrap();
        let line = stats.lines().find(|line| line.starts_with("cmdstat_xadd:"));
        line.unwrap().to_owned()
    };
    let before = added(&mut target).await;
    for words in [
        "XREADGROUP GROUP g e COUNT 250 STREAMS stream >",
        "XACK stream g 3-1 10-1",
        "XGROUP SETID stream h 9-1",
        "XGROUP CREATE stream new 0",
        "XCLAIM stream g f 0 20-1 RETRYCOUNT 7",
        "XGROUP DELCONSUMER stream g d",
        "XSETID stream 99999-3 ENTRIESADDED 30000 MAXDELETEDID 8-1",
    ] {
        run(&mut source, words).await;
    }
    settle_streams(&mut copy, all(), touched(&["stream"]))
        .await
        .unwrap();
    stand.must_be_equal(&all()).await;
    assert_eq!(counters(&mut target).await, ["99999-3", "30000", "8-1"]);
    copy.reopen(all()).await;
    run(&mut source, "XSETID stream 99999-7").await;
    run(&mut source, "XGROUP DESTROY stream new").await;
    run(&mut source, "XACK stream g 21-1").await;
    settle_streams(&mut copy, all(), Streams::Any)
        .await
        .unwrap();
    stand.must_be_equal(&all()).await;
    assert_eq!(counters(&mut target).await, ["99999-7", "30000", "8-1"]);
    assert_eq!(added(&mut target).await, before);
}

/// A stream's last id, how many entries it ever had, and the greatest id that was deleted.
async fn counters(link: &mut MultiplexedConnection) -> [String; 3] {
    let mut info = cmd("XINFO");
    info.arg("STREAM").arg("stream");
    let info: HashMap<String, Value> = info.query_async(link).await.unwrap();
    let names = ["last-generated-id", "entries-added", "max-deleted-entry-id"];
    names.map(|name| from_redis_value(info[name].clone()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_scripts_name_is_copied_again_only_if_it_is_a_stream() {
    let stand = Stand::start().await;
    let mut source = stand.source.connect().await;
    fill(&mut source, 20).await;
    for words in [
        "SET small value",
        "XADD little 1-1 f v",
        "XGROUP CREATE little g 0",
    ] {
        run(&mut source, words).await;
    }
    let mut copy = stand.copied(all()).await;
    big_ones_are_copied(&mut copy).await;
    let named = touched(&["zset", "list", "string", "small", "nothing"]);
    let evidence = settle_streams(&mut copy, all(), named).await.unwrap();
    assert_eq!(evidence.keys, 0);
    copy.reopen(all()).await;
    for words in [
        "EVAL return(redis.call('XADD',KEYS[1],'1-1','f','v')) 1 made",
        "EVAL return(redis.call('XGROUP','CREATE',KEYS[1],'g','0')) 1 made",
        "XREADGROUP GROUP g c COUNT 1 STREAMS little >",
    ] {
        run(&mut source, words).await;
    }
    let named = touched(&["zset", "little", "made"]);
    let evidence = settle_streams(&mut copy, all(), named).await.unwrap();
    assert!((1..=2).contains(&evidence.keys), "{evidence:?}");
    assert_eq!(stand.must_be_equal(&all()).await, 9);
}

/// Copies what a script makes, and tells the longest that one command kept the source and the target busy.
async fn longest(script: &str, key: &str) -> [Duration; 2] {
    let stand = Stand::start().await;
    let mut source = stand.source.connect().await;
    let mut fill = cmd("EVAL");
    fill.arg(script).arg(1).arg(key);
    fill.query_async::<()>(&mut source).await.unwrap();
    let source_probe = Probe::start(&stand.source).await;
    let target_probe = Probe::start(&stand.target).await;
    let begun = time::Instant::now();
    let mut copy = stand.copied(all()).await;
    big_ones_are_copied(&mut copy).await;
    let took = begun.elapsed();
    let ends = [source_probe.end().await, target_probe.end().await];
    let evidence = settle(&mut copy, all()).await.unwrap();
    assert_eq!(evidence.keys, 0);
    assert_eq!(stand.must_be_equal(&all()).await, 1);
    eprintln!("{key} copied in {took:?}; longest stall, longest command: {ends:?}");
    ends.map(|(_, busy, _)| busy)
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_kept_waiting_for_a_zset_of_500_000() {
    let script = "for n = 1, 500000 do redis.call('ZADD', KEYS[1], n, 'member-' .. n) end";
    // In one piece, dumping it takes 73 ms and restoring it 300 ms. Here other tests run beside, which may
    // take the server's turn while it executes a command.
    let busy = longest(script, "zset").await;
    assert!(
        busy.iter().all(|busy| *busy < Duration::from_millis(200)),
        "{busy:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_kept_waiting_for_a_string_of_64_mib() {
    let script = "redis.call('SETRANGE', KEYS[1], 67108863, 'x')";
    let [source, target] = longest(script, "string").await;
    assert!(source < Duration::from_millis(40), "{source:?}");
    // It has an append-only file: there the string's memory is taken, and cleared, at once.
    assert!(target < Duration::from_millis(500), "{target:?}");
}

/// Makes a string of so many bytes, no page of which is as another.
async fn make_string(link: &mut MultiplexedConnection, bytes: usize) {
    let mut random = fastrand::Rng::with_seed(1);
    let value: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
        .take(bytes)
        .collect();
    let mut set = cmd("SET");
    set.arg("string")
        .arg(value)
        .arg("PXAT")
        .arg(33_333_333_333_333_u64);
    set.query_async::<()>(link).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_string_of_64_mib_is_sent_in_one_command_where_that_keeps_nobody_waiting() {
    for name in [
        "redis-7.0",
        "redis-6.2",
        "redis-8.2",
        "valkey-8.1",
        "valkey-9.1",
    ] {
        let Some(program) = super::stand::program(name) else {
            continue;
        };
        let args = ["--appendonly", "no", "--io-threads", "2"];
        let debian = super::stand::program("redis-7.0").unwrap();
        let stand = Stand::of(debian, program, &args).await;
        let mut source = stand.source.connect().await;
        let mut target = stand.target.connect().await;
        make_string(&mut source, 64 << 20).await;
        let probe = Probe::start(&stand.target).await;
        let mut copy = stand.copied(all()).await;
        big_ones_are_copied(&mut copy).await;
        let (waited, busy, command) = probe.end().await;
        eprintln!("{name}: longest stall {waited:?}, longest command {busy:?} {command}");
        assert!(
            busy < Duration::from_millis(40),
            "{name}: {busy:?} {command}"
        );
        assert_eq!(settle(&mut copy, all()).await.unwrap().keys, 0);
        stand.must_be_equal(&all()).await;
        assert_eq!(calls(&mut target, "setrange").await, 0, "{name}");
        copy.reopen(all()).await;
        for n in 0..200 {
            run(
                &mut source,
                &format!("SETRANGE string {} changed", n * 100_000),
            )
            .await;
            time::sleep(Duration::from_millis(5)).await;
        }
        run(&mut source, "APPEND string longer").await;
        settle(&mut copy, all()).await.unwrap();
        stand.must_be_equal(&all()).await;
        assert_eq!(calls(&mut target, "setrange").await, 0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_string_grows_where_the_target_takes_no_long_command_or_has_a_replica() {
    for limited in [false, true] {
        let program = super::stand::program("redis-7.0").unwrap();
        let stand = Stand::of(program.clone(), program, &["--appendonly", "no"]).await;
        let mut source = stand.source.connect().await;
        let mut target = stand.target.connect().await;
        make_string(&mut source, 8 << 20).await;
        let _replica = if limited {
            run(&mut target, "CONFIG SET client-query-buffer-limit 1mb").await;
            None
        } else {
            Some(stand.replica().await)
        };
        let mut copy = stand.copied(all()).await;
        big_ones_are_copied(&mut copy).await;
        settle(&mut copy, all()).await.unwrap();
        assert_eq!(stand.must_be_equal(&all()).await, 1);
        assert!(calls(&mut target, "setrange").await > 0);
        assert_eq!(copy.progress().borrow().attempt, 1);
    }
}

/// Changes the values that [`fill`] has made at random, again and again; deletes one now and then, and
/// makes it anew.
async fn change(link: &mut MultiplexedConnection, seed: u64, run: impl Fn() -> bool) {
    let mut random = fastrand::Rng::with_seed(seed);
    while run() {
        let mut pipe = pipe();
        for _ in 0..20 {
            let n = random.usize(..20_000);
            let value = format!("value-{n}-{}", "v".repeat(n % 50));
            let score = random.u32(..1000);
            match random.u8(..13) {
                0 => pipe.cmd("ZADD").arg("zset").arg(score).arg(value),
                1 => pipe
                    .cmd("ZADD")
                    .arg("zset")
                    .arg(score)
                    .arg(format!("new-{n}")),
                2 => pipe.cmd("ZREM").arg("zset").arg(value),
                3 => pipe.cmd("HSET").arg("hash").arg(n).arg(score),
                4 => pipe.cmd("HDEL").arg("hash").arg(n),
                5 => pipe.cmd("SADD").arg("set").arg(format!("new-{n}")),
                6 => pipe.cmd("SREM").arg("set").arg(value),
                7 => pipe.cmd("RPUSH").arg("list").arg(value),
                8 => pipe.cmd("LPOP").arg("list"),
                9 => pipe.cmd("SETRANGE").arg("string").arg(n).arg("changed"),
                10 => pipe
                    .cmd("PEXPIREAT")
                    .arg("zset")
                    .arg(33_333_333_333_333_u64 + n as u64),
                11 => pipe.cmd("PERSIST").arg("zset"),
                _ => pipe.cmd("PERSIST").arg("hash"),
            };
            pipe.ignore();
        }
        if random.u16(..200) == 0 {
            pipe.cmd("DEL").arg("set").ignore();
            pipe.cmd("SUNIONSTORE")
                .arg("set")
                .arg("{set}:spare")
                .ignore();
        }
        let _: () = pipe.query_async(link).await.unwrap();
        time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_all_the_time_is_equal_at_every_hold() {
    let stand = Stand::start().await;
    let mut source = stand.source.connect().await;
    fill(&mut source, 20).await;
    run(&mut source, "SUNIONSTORE {set}:spare set").await;
    let mut copy = stand.copied(all()).await;
    for round in 0..4 {
        let end = time::Instant::now() + Duration::from_secs(2);
        change(&mut source, round, || time::Instant::now() < end).await;
        settle(&mut copy, all()).await.unwrap();
        assert_eq!(stand.must_be_equal(&all()).await, 7);
        copy.reopen(all()).await;
    }
    // The target has lost what it was told; one is of another type now, one is small, one is gone.
    let mut target = stand.target.connect().await;
    for words in ["DEL hash", "ZREMRANGEBYRANK zset 0 99"] {
        run(&mut target, words).await;
    }
    for words in [
        "HSET hash a b",
        "ZADD zset 1 a",
        "DEL set",
        "RPUSH set a",
        "DEL list",
    ] {
        run(&mut source, words).await;
    }
    settle(&mut copy, all()).await.unwrap();
    assert_eq!(stand.must_be_equal(&all()).await, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_differs_is_copied_under_the_hold() {
    let stand = Stand::start().await;
    let mut source = stand.source.connect().await;
    let mut target = stand.target.connect().await;
    fill(&mut source, 20).await;
    let mut copy = stand.copied(all()).await;
    big_ones_are_copied(&mut copy).await;
    // Whatever has changed once is known from then on.
    for words in ["ZADD zset 1 a", "HSET hash a 1", "SADD set a"] {
        run(&mut source, words).await;
    }
    time::sleep(Duration::from_millis(50)).await; // until it is told
    big_ones_are_copied(&mut copy).await;
    let writes = async |target: &mut MultiplexedConnection| {
        let mut all = 0;
        for command in ["zadd", "hset", "sadd", "zrem", "hdel", "srem"] {
            all += calls(target, command).await;
        }
        all
    };
    let written = writes(&mut target).await;
    for words in [
        "ZADD zset 2 a 3 b 4 c",
        "ZREM zset value-0- value-1-v",
        "HSET hash a 2 b 3",
        "HDEL hash 5 6",
        "SADD set b",
        "SREM set value-0-",
        "PEXPIREAT zset 44444444444444",
        "PERSIST hash",
    ] {
        run(&mut source, words).await;
    }
    settle(&mut copy, all()).await.unwrap();
    assert_eq!(stand.must_be_equal(&all()).await, 6);
    // One for each, or two where elements are of different pages; 120 and more for the values as a whole.
    let written = writes(&mut target).await - written;
    assert!((6..=10).contains(&written), "{written} commands");
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_expire_are_copied_however_often_the_hash_changes() {
    for name in ["redis-8.2", "valkey-9.1"] {
        let Some(program) = super::stand::program(name) else {
            return;
        };
        let stand = Stand::of(program.clone(), program, &[]).await;
        let mut source = stand.source.connect().await;
        let mut target = stand.target.connect().await;
        fill(&mut source, 20).await;
        let mut copy = stand.copied(all()).await;
        for words in [
            "HSET hash a 1",
            "HPEXPIREAT hash 33333333333333 FIELDS 1 7",
            "HPERSIST hash FIELDS 1 7",
            "HPEXPIREAT hash 44444444444444 FIELDS 2 7 8",
        ] {
            run(&mut source, words).await;
            time::sleep(Duration::from_millis(50)).await; // until it is told
            big_ones_are_copied(&mut copy).await;
        }
        run(&mut source, "HSET hash b 1").await;
        settle(&mut copy, all()).await.unwrap();
        stand.must_be_equal(&all()).await;
        let mut times = cmd("HPEXPIRETIME");
        times.arg(&["hash", "FIELDS", "3", "6", "7", "8"]);
        let times: Vec<i64> = times.query_async(&mut target).await.unwrap();
        assert_eq!(
            times,
            [-1, 44_444_444_444_444, 44_444_444_444_444],
            "{name}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_big_value_is_gone_on_with_after_other_slots_were_settled() {
    // Strings grow where there is an append-only file, and are sent in one command where there is none.
    for appends in ["yes", "no"] {
        let program = super::stand::program("redis-7.0").unwrap();
        let stand = Stand::of(program.clone(), program, &["--appendonly", appends]).await;
        let mut source = stand.source.connect().await;
        fill(&mut source, 20).await;
        make_string(&mut source, 8 << 20).await;
        let big: SlotSet = ["string", "list", "set", "hash", "zset", "stream"]
            .iter()
            .map(|key| Slot::of_key(key.as_bytes()))
            .collect();
        let others = all().without(&big);
        let mut copy = Copy::begin(stand.plan(all()));
        copy.throttle(Throttle {
            rate: NonZeroU32::new(2000),
            ..Throttle::default()
        });
        follows(&copy).await;
        let progress = copy.progress();
        let is_copied = |now: &Progress| now.uncopied.is_empty() && now.big == 0;
        let (mut settled, mut longest) = (0, Duration::ZERO);
        while settled < 3 || !is_copied(&progress.borrow()) {
            // One that changes is chased.
            if settled < 40 {
                run(&mut source, &format!("ZADD zset {settled} zset-{settled}")).await;
            }
            let key = format!("{{other:{settled}}}");
            run(&mut source, &format!("SET {key} x")).await;
            let evidence = settle(&mut copy, others).await.unwrap();
            longest = longest.max(evidence.took);
            settled += 1;
            copy.reopen(others).await;
            time::sleep(Duration::from_millis(20)).await;
        }
        let mut reads = Vec::new();
        for name in ["getrange", "lrange", "sscan", "hscan", "xrange"] {
            reads.push((name, calls(&mut source, name).await));
        }
        eprintln!("settled {settled} times, in {longest:?} at most; {reads:?}");
        assert!(settled >= 20, "{settled}");
        // Once each: 8 MiB by 64 KiB, 20,000 elements by 64 or more.
        for (name, count) in reads {
            assert!(count <= 340, "{name}: {count}");
        }
        settle(&mut copy, all()).await.unwrap();
        stand.must_be_equal(&all()).await;
        copy.reopen(all()).await;
        copy.end().await.unwrap();
        let mut target = stand.target.connect().await;
        assert_eq!(own_keys(&mut target).await, ["{sluice}:fence"]);
    }
}
