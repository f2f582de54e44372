//! Copies from servers older than Redis 6, which tell of changes by keyspace events; and what those do not tell.

use std::{collections::BTreeSet, time::Duration};

use controlplane::mover::{Copy, Unsettled, clean_up, examine};
use dataplane::command::{self, Class};
use proto::settled::Streams;
use redis::{Value, aio::MultiplexedConnection, cmd};
use tests::{Raw, Server};
use tokio::time;

use super::{
    around::ALL,
    copied_under_writes, fill, run,
    stand::{
        Stand, all, flush, follows, half, program, reaches, settle, settle_at_last, settle_streams,
        touched,
    },
};

const OLD: [&str; 2] = ["redis-3.2", "redis-5.0"];

/// Of each write command: what is there before, the command, and the keys that it changes. Without such keys
/// it changes none, or concerns whole databases.
const WRITES: &[(&[&str], &str, &str)] = &[
    (&["SET k v"], "APPEND k x", "k"),
    (&["SET k v"], "BITFIELD k SET u8 0 5", "k"),
    (&["SET k v", "SET j w"], "BITOP AND d k j", "d"),
    (&["SET d v"], "BITOP AND d k j", "d"),
    (&["RPUSH k a b"], "BLPOP k 1", "k"),
    (&["RPUSH k a b"], "BRPOP k 1", "k"),
    (&["RPUSH k a b"], "BRPOPLPUSH k d 1", "k d"),
    (&["ZADD k 1 a 2 b"], "BZPOPMAX k 1", "k"),
    (&["ZADD k 1 a 2 b"], "BZPOPMIN k 1", "k"),
    (&["SET k 7"], "DECR k", "k"),
    (&["SET k 7"], "DECRBY k 2", "k"),
    (&["SET k v"], "DEL k", "k"),
    (&["SET k v"], "EXPIRE k 100", "k"),
    (&["SET k v"], "EXPIRE k -1", "k"),
    (&["SET k v"], "EXPIREAT k 33333333333", "k"),
    (&["SET k v"], "FLUSHALL", ""),
    (&["SET k v"], "FLUSHDB", ""),
    (&[], "GEOADD k 13 38 a", "k"),
    (
        &["GEOADD k 13 38 a"],
        "GEORADIUS k 13 38 10 km STORE d",
        "d",
    ),
    (
        &["GEOADD k 13 38 a", "SET d v"],
        "GEORADIUS k 80 38 1 km STORE d",
        "d",
    ),
    (
        &["GEOADD k 13 38 a"],
        "GEORADIUSBYMEMBER k a 1 km STOREDIST d",
        "d",
    ),
    (&["SET k v"], "GETSET k w", "k"),
    (&["HMSET k a 1"], "HDEL k a", "k"),
    (&[], "HINCRBY k a 1", "k"),
    (&[], "HINCRBYFLOAT k a 1.5", "k"),
    (&[], "HMSET k a 1", "k"),
    (&[], "HSET k a 1", "k"),
    (&[], "HSETNX k a 1", "k"),
    (&[], "INCR k", "k"),
    (&[], "INCRBY k 2", "k"),
    (&[], "INCRBYFLOAT k 1.5", "k"),
    (&["RPUSH k a"], "LINSERT k BEFORE a b", "k"),
    (&["RPUSH k a b"], "LPOP k", "k"),
    (&[], "LPUSH k a", "k"),
    (&["RPUSH k a"], "LPUSHX k b", "k"),
    (&["RPUSH k a b"], "LREM k 0 a", "k"),
    (&["RPUSH k a"], "LSET k 0 b", "k"),
    (&["RPUSH k a b"], "LTRIM k 0 0", "k"),
    (&["RPUSH k a b"], "LTRIM k 5 6", "k"),
    (&["SET k v"], "MOVE k 1", "k"),
    (&[], "MSET k v d w", "k d"),
    (&[], "MSETNX k v d w", "k d"),
    (&["SET k v EX 100"], "PERSIST k", "k"),
    (&["SET k v"], "PEXPIRE k 100000", "k"),
    (&["SET k v"], "PEXPIREAT k 33333333333333", "k"),
    (&[], "PFADD k a", "k"),
    (&["PFADD k a"], "PFDEBUG TODENSE k", "k"),
    (&["PFADD k a", "PFADD d b"], "PFMERGE d k", "d"),
    (&[], "PSETEX k 100000 v", "k"),
    (&["SET k v"], "RENAME k d", "k d"),
    (&["SET k v"], "RENAMENX k d", "k d"),
    (&[], "RESTORE k 0 PAYLOAD", "k"),
    (&["RPUSH k a b"], "RPOP k", "k"),
    (&["RPUSH k a b"], "RPOPLPUSH k d", "k d"),
    (&[], "RPUSH k a", "k"),
    (&["RPUSH k a"], "RPUSHX k b", "k"),
    (&[], "SADD k a", "k"),
    (&["SADD k a b"], "SDIFFSTORE d k j", "d"),
    (&["SADD k a", "SADD d b"], "SDIFFSTORE d k k", "d"),
    (&[], "SET k v", "k"),
    (&[], "SETBIT k 3 1", "k"),
    (&[], "SETEX k 100 v", "k"),
    (&[], "SETNX k v", "k"),
    (&["SET k v"], "SETRANGE k 3 x", "k"),
    (&["SADD k a", "SADD j a"], "SINTERSTORE d k j", "d"),
    (&["SADD k a", "SET d v"], "SINTERSTORE d k j", "d"),
    (&["SADD k a", "SET d v"], "SINTERSTORE d k k j", "d"),
    (&["SET d v"], "SUNIONSTORE d k j", "d"),
    (&["SET d v"], "SDIFFSTORE d k j", "d"),
    (&["ZADD k 1 a", "SET d v"], "ZINTERSTORE d 2 k j", "d"),
    (&["SADD k a"], "SMOVE k d a", "k d"),
    (&["RPUSH k b a"], "SORT k ALPHA STORE d", "d"),
    (&["SET d v"], "SORT k STORE d", "d"),
    (&["SADD k a b"], "SPOP k", "k"),
    (&["SADD k a b"], "SREM k a", "k"),
    (&["SADD k a b"], "SUNIONSTORE d k j", "d"),
    (&["SET k v"], "SWAPDB 0 1", ""),
    (&["SET k v"], "UNLINK k", "k"),
    (
        &[
            "XADD k 1-1 f v",
            "XGROUP CREATE k g 0",
            "XREADGROUP GROUP g c STREAMS k >",
        ],
        "XACK k g 1-1",
        "k",
    ),
    (&[], "XADD k 1-1 f v", "k"),
    (
        &[
            "XADD k 1-1 f v",
            "XGROUP CREATE k g 0",
            "XREADGROUP GROUP g c STREAMS k >",
        ],
        "XCLAIM k g d 0 1-1",
        "k",
    ),
    (&["XADD k 1-1 f v"], "XDEL k 1-1", "k"),
    (&["XADD k 1-1 f v"], "XGROUP CREATE k g 0", "k"),
    (
        &["XADD k 1-1 f v", "XGROUP CREATE k g 0"],
        "XREADGROUP GROUP g c STREAMS k >",
        "k",
    ),
    (&["XADD k 1-1 f v"], "XSETID k 9-9", "k"),
    (
        &["XADD k 1-1 f v", "XADD k 2-1 f v"],
        "XTRIM k MAXLEN 1",
        "k",
    ),
    (&[], "ZADD k 1 a", "k"),
    (&["ZADD k 1 a"], "ZINCRBY k 1 a", "k"),
    (&["ZADD k 1 a"], "ZINTERSTORE d 1 k", "d"),
    (&["ZADD k 1 a"], "ZPOPMAX k", "k"),
    (&["ZADD k 1 a"], "ZPOPMIN k", "k"),
    (&["ZADD k 1 a"], "ZREM k a", "k"),
    (&["ZADD k 1 a"], "ZREMRANGEBYLEX k [a [a", "k"),
    (&["ZADD k 1 a"], "ZREMRANGEBYRANK k 0 0", "k"),
    (&["ZADD k 1 a"], "ZREMRANGEBYSCORE k 1 1", "k"),
    (&["ZADD k 1 a"], "ZUNIONSTORE d 1 k", "d"),
    (&["SET d v"], "ZUNIONSTORE d 1 k", "d"),
];

/// The write commands that a server has.
async fn write_commands(link: &mut MultiplexedConnection) -> BTreeSet<String> {
    let commands: Vec<(String, Value, BTreeSet<String>, Value, Value, Value)> =
        cmd("COMMAND").query_async(link).await.unwrap();
    let writes = commands.into_iter().filter(|c| c.2.contains("write"));
    writes.map(|c| c.0).collect()
}

/// The row of a command that stands in the table, or of one of its subcommands.
fn row(line: &str) -> &'static command::Command {
    let mut words = line.split(' ').map(str::to_lowercase);
    let (name, second) = (words.next().unwrap(), words.next().unwrap_or_default());
    let both = format!("{name}|{second}");
    let find = |name: &str| command::all().iter().find(|c| c.name == name);
    find(&both).or_else(|| find(&name)).unwrap()
}

/// The keys of which a server tells from now on until a barrier is written.
async fn told(events: &mut Raw, link: &mut MultiplexedConnection, number: usize) -> Vec<String> {
    let barrier = format!("barrier-{number}");
    run(link, &format!("SET {barrier} x")).await;
    let mut told = Vec::new();
    loop {
        let message = events.reply().await;
        let key = message.rsplit(' ').next().unwrap().to_owned();
        if key == barrier {
            return told;
        }
        told.push(key);
    }
}

/// What a proxy must note is what these do not tell of, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_told_of_or_noted_by_proxies() {
    for name in OLD {
        let Some(program) = program(name) else {
            continue;
        };
        let dir = tempfile::tempdir().unwrap();
        let server = Server::run(&program, dir.path(), "server", &[]);
        server.answers().await;
        let mut link = server.connect().await;
        run(&mut link, "CONFIG SET notify-keyspace-events AE").await;
        let mut events = Raw::connect(&server.addr).await;
        events.command("PSUBSCRIBE __keyevent@*__:*").await;
        run(&mut link, "SET k v").await;
        let payload: Vec<u8> = cmd("DUMP").arg("k").query_async(&mut link).await.unwrap();

        let (mut tried, mut untold) = (BTreeSet::new(), BTreeSet::new());
        let mut number = 0;
        let writes = write_commands(&mut link).await;
        for (before, line, keys) in WRITES {
            let command = line.split(' ').next().unwrap().to_lowercase();
            if !writes.contains(&command) {
                continue;
            }
            run(&mut link, "FLUSHALL").await;
            for words in *before {
                run(&mut link, words).await;
            }
            number += 1;
            told(&mut events, &mut link, number).await;
            match line.strip_suffix(" PAYLOAD") {
                Some(line) => {
                    let mut words = line.split(' ');
                    let mut restore = cmd(words.next().unwrap());
                    for word in words {
                        restore.arg(word);
                    }
                    restore.arg(&payload).exec_async(&mut link).await.unwrap();
                }
                None => run(&mut link, line).await,
            }
            number += 1;
            let told = told(&mut events, &mut link, number).await;
            let is_told = |key: &str| told.iter().any(|told| told == key);
            let row = row(line);
            let all_told = keys.split(' ').all(is_told);
            if keys.is_empty() {
                // Nobody is told of these; a copy sees it by its marks.
                assert!(told.is_empty(), "{name}, {line}: {told:?}");
            } else if !all_told {
                assert!(row.is_untold(), "{name}, {line}: {told:?}");
                untold.insert(command.clone());
            }
            tried.insert(command);
        }
        let in_vain = tried.difference(&untold).filter(|c| row(c).is_untold());
        let in_vain: Vec<_> = in_vain.filter(|c| !row(c).changes_consumers()).collect();
        assert!(in_vain.is_empty(), "{name} tells of {in_vain:?}");
        // No client has these.
        let denied = |name: &&String| matches!(row(name).class, Class::Denied(_));
        let untried: Vec<_> = writes.difference(&tried).filter(|c| !denied(c)).collect();
        assert!(untried.is_empty(), "{name}: {untried:?}");

        // Who blocks is served by others' writes; what expires or is thrown out goes by itself.
        run(&mut link, "FLUSHALL").await;
        let mut blocked = Raw::connect(&server.addr).await;
        let words = ["BRPOPLPUSH", "k", "d", "0"].map(str::to_owned).to_vec();
        blocked.pipeline(&[words]).await;
        time::sleep(Duration::from_millis(100)).await;
        run(&mut link, "RPUSH k a b").await;
        assert!(blocked.reply().await.ends_with(" b"), "{name}");
        let keys = told(&mut events, &mut link, number + 1).await;
        assert!(
            ["k", "d"]
                .iter()
                .all(|key| keys.iter().any(|told| told == key)),
            "{name}: {keys:?}"
        );
        run(&mut link, "SET soon v PX 20").await;
        time::sleep(Duration::from_millis(300)).await;
        let keys = told(&mut events, &mut link, number + 2).await;
        assert_eq!(keys, ["soon", "soon", "soon"], "{name}");
        run(&mut link, "SET thrown-out v").await;
        run(&mut link, "CONFIG SET maxmemory-policy allkeys-random").await;
        run(&mut link, "CONFIG SET maxmemory 1").await;
        cmd("SET")
            .arg("k")
            .arg("v")
            .exec_async(&mut link)
            .await
            .ok();
        run(&mut link, "CONFIG SET maxmemory 0").await;
        let keys = told(&mut events, &mut link, number + 3).await;
        assert_eq!(
            keys.iter().filter(|key| *key == "thrown-out").count(),
            2,
            "{name}: {keys:?}"
        );
    }
}

/// One of each, to Debian's.
async fn stands() -> Vec<(&'static str, Stand)> {
    let mut stands = Vec::new();
    for name in OLD {
        let (Some(old), Some(new)) = (program(name), program("redis-7.0")) else {
            continue;
        };
        stands.push((name, Stand::of(old, new, &[]).await));
    }
    stands
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_during_the_copy_is_the_same_in_the_end() {
    for (_, stand) in stands().await {
        fill(&mut stand.source.connect().await, 5000).await;
        let mut copy = copied_under_writes(&stand, Duration::from_millis(300)).await;
        // These were moved to another database.
        let moved: Vec<String> = (0..3000).map(|n| format!("k{n}")).collect();
        let moved: Vec<&str> = moved.iter().map(String::as_str).collect();
        settle_streams(&mut copy, half(), touched(&moved))
            .await
            .unwrap();
        // Short ones may expire between two looks; then they are gone at both.
        time::sleep(Duration::from_millis(300)).await;
        assert!(stand.must_be_equal(&half()).await > 1000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_told_of_is_copied_if_it_was_noted() {
    for (name, stand) in stands().await {
        let mut link = stand.source.connect().await;
        let mut copied = stand.target.connect().await;
        run(&mut link, "SET k0 v EX 10000").await;
        run(&mut link, "SET {k0}big v EX 10000").await;
        let big = "x".repeat(1 << 20);
        run(&mut link, &format!("APPEND {{k0}}big {big}")).await;
        let mut copy = stand.copied(all()).await;
        reaches(&copy, |progress| {
            progress.big == 0 && progress.uncopied.is_empty()
        })
        .await;
        for key in ["k0", "{k0}big"] {
            run(&mut link, &format!("PERSIST {key}")).await;
        }
        let mut ttl = async |key: &str| -> i64 {
            cmd("TTL").arg(key).query_async(&mut copied).await.unwrap()
        };
        // That is what noting is for.
        settle(&mut copy, all()).await.unwrap();
        assert!(ttl("k0").await > 0, "{name}");
        copy.reopen(all()).await;
        let noted = touched(&["k0", "{k0}big"]);
        settle_streams(&mut copy, all(), noted).await.unwrap();
        assert_eq!((ttl("k0").await, ttl("{k0}big").await), (-1, -1), "{name}");
        assert_eq!(stand.must_be_equal(&all()).await, 2, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_notes_are_lost_the_copy_starts_over() {
    for (name, stand) in stands().await {
        let mut link = stand.source.connect().await;
        run(&mut link, "SET k0 v EX 10000").await;
        let mut copy = stand.copied(all()).await;
        run(&mut link, "PERSIST k0").await;
        let lost = settle_streams(&mut copy, all(), Streams::Any).await;
        assert_eq!(lost, Err(Unsettled::Unseen), "{name}");
        reaches(&copy, |progress| progress.attempt == 2).await;
        follows(&copy).await;
        settle(&mut copy, all()).await.unwrap();
        assert_eq!(stand.must_be_equal(&all()).await, 1, "{name}");
    }
}

/// It starts over, and has nothing in the end that the source has not.
async fn starts_over(name: &str, stand: &Stand, copy: &mut Copy, what: &str) {
    let before = copy.progress().borrow().attempt;
    settle_at_last(copy, &all()).await;
    assert!(copy.progress().borrow().attempt > before, "{name}: {what}");
    stand.must_be_equal(&all()).await;
    copy.reopen(all()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_flushed_or_swapped_is_copied_anew() {
    for (name, stand) in stands().await {
        let mut link = stand.source.connect().await;
        let refill = async |link: &mut MultiplexedConnection| {
            for database in [3, 0] {
                run(link, &format!("SELECT {database}")).await;
                fill(link, 300).await;
            }
        };
        refill(&mut link).await;
        let mut copy = stand.copied(all()).await;
        flush(&stand.source).await;
        fill(&mut link, 100).await;
        starts_over(name, &stand, &mut copy, "FLUSHALL").await;
        refill(&mut link).await;
        settle_at_last(&mut copy, &all()).await;
        copy.reopen(all()).await;
        run(&mut link, "SELECT 3").await;
        run(&mut link, "EVAL redis.call('FLUSHDB') 0").await;
        run(&mut link, "SELECT 0").await;
        starts_over(name, &stand, &mut copy, "FLUSHDB").await;
        if name == "redis-3.2" {
            continue; // it has no SWAPDB
        }
        refill(&mut link).await;
        run(&mut link, "DEL k1").await;
        settle_at_last(&mut copy, &all()).await;
        copy.reopen(all()).await;
        run(&mut link, "SWAPDB 3 4").await;
        starts_over(name, &stand, &mut copy, "SWAPDB").await;
    }
}

/// What stands there.
async fn setting(link: &mut MultiplexedConnection) -> String {
    let mut get = cmd("CONFIG");
    get.arg("GET").arg("notify-keyspace-events");
    let (_, flags): (String, String) = get.query_async(link).await.unwrap();
    flags
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_turned_on_for_as_long_as_a_copy_needs_them() {
    for (name, stand) in stands().await {
        let mut link = stand.source.connect().await;
        run(&mut link, "CONFIG SET notify-keyspace-events Kg").await;
        run(&mut link, "SET k0 v").await;
        examine(&stand.plan(all()), ALL, &[]).await.unwrap();
        assert_eq!(setting(&mut link).await, "gK", "{name}");
        let copy = stand.copied(all()).await;
        assert_eq!(setting(&mut link).await, "AKE", "{name}");
        // Another copy from there still needs them when this one ends.
        let mut other = stand.plan(all());
        other.name = proto::MigrationId::new("m2").unwrap();
        clean_up(&other).await.unwrap();
        assert_eq!(setting(&mut link).await, "AKE", "{name}");
        // Whoever turns them off is noticed.
        run(&mut link, "CONFIG SET notify-keyspace-events Kg").await;
        reaches(&copy, |progress| progress.attempt == 2).await;
        follows(&copy).await;
        assert_eq!(setting(&mut link).await, "AKE", "{name}");
        copy.end().await.unwrap();
        clean_up(&stand.plan(all())).await.unwrap();
        assert_eq!(setting(&mut link).await, "gK", "{name}");
        let left: Vec<String> = cmd("KEYS").arg("*").query_async(&mut link).await.unwrap();
        let left: BTreeSet<&str> = left.iter().map(String::as_str).collect();
        assert_eq!(left, ["k0", "{sluice}:fence"].into(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_refuses_to_tell_of_events_is_refused() {
    let (Some(old), Some(new)) = (program("redis-5.0"), program("redis-7.0")) else {
        return;
    };
    let stand = Stand::of(old, new, &["--rename-command", "CONFIG", ""]).await;
    let why = examine(&stand.plan(all()), ALL, &[])
        .await
        .unwrap_err()
        .to_string();
    let expected = "tells of changes only by keyspace events, which cannot be turned on";
    assert!(why.contains(expected), "{why}");
}
