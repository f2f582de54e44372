//! What servers do, that moving slots stands on: shown of every version, with and without I/O threads.

use std::time::Duration;

use tempfile::TempDir;
use tests::{Raw, Server, eventually};
use tokio::time;

use super::stand::program;

const SERVERS: [&str; 5] = [
    "redis-7.0",
    "redis-6.2",
    "redis-8.2",
    "valkey-8.1",
    "valkey-9.1",
];

/// One of every version, with one thread and with four.
async fn servers(args: &[&str]) -> Vec<(String, Server, TempDir)> {
    let mut servers = Vec::new();
    for name in SERVERS {
        let Some(program) = program(name) else {
            continue;
        };
        for threads in ["1", "4"] {
            let dir = tempfile::tempdir().unwrap();
            let mut all = vec!["--io-threads", threads];
            if name < "redis-8" {
                all.extend(["--io-threads-do-reads", "yes"]);
            }
            all.extend(args);
            let all: Vec<String> = all.into_iter().map(str::to_owned).collect();
            let server = Server::run(&program, dir.path(), "server", &all);
            server.answers().await;
            servers.push((format!("{name} with {threads} threads"), server, dir));
        }
    }
    servers
}

/// A connection on which the server tells of all changes.
async fn tracking(server: &Server) -> Raw {
    let mut raw = Raw::connect(&server.addr).await;
    raw.command("HELLO 3").await;
    raw.command("SUBSCRIBE {sluice}:mover").await;
    assert_eq!(raw.command("CLIENT TRACKING ON BCAST").await, "+OK");
    raw
}

/// What is told of before a barrier is: written now, on another connection.
async fn told(tracking: &mut Raw, link: &mut Raw, number: u32) -> String {
    let key = format!("{{sluice}}:barrier:{number}");
    assert_eq!(link.command(&format!("SET {key} x")).await, "+OK");
    let mut told = String::new();
    while !told.contains(&key) {
        told.push_str(&tracking.reply().await);
        told.push('\n');
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_killed_connection_is_executed_after_the_kill() {
    for (name, server, _dir) in servers(&[]).await {
        let mut judge = Raw::connect(&server.addr).await;
        for round in 0..20 {
            let mut doomed = Raw::connect(&server.addr).await;
            let id = doomed.command("CLIENT ID").await;
            let key = format!("counter-{round}");
            let request = format!("*2\r\n$4\r\nINCR\r\n${}\r\n{key}\r\n", key.len());
            doomed.send(request.repeat(20_000).as_bytes()).await;
            let kill = format!("CLIENT KILL ID {}", &id[1..]);
            assert_eq!(judge.command(&kill).await, ":1", "{name}");
            let then = judge.command(&format!("GET {key}")).await;
            time::sleep(Duration::from_millis(20)).await;
            assert_eq!(judge.command(&format!("GET {key}")).await, then, "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_write_is_told_of_behind_all_that_was_answered_before() {
    for (name, server, _dir) in servers(&[]).await {
        let mut tracking = tracking(&server).await;
        let mut writer = Raw::connect(&server.addr).await;
        let mut mover = Raw::connect(&server.addr).await;
        let mut slow = Vec::new();
        for _ in 0..3 {
            slow.push(Raw::connect(&server.addr).await);
        }
        let script = "local n = 0 for i = 1, 100000 do n = n + i end return n";
        for round in 0..20 {
            for link in &mut slow {
                let words = ["EVAL", script, "0"].map(str::to_owned).to_vec();
                link.pipeline(&[words]).await;
            }
            let key = format!("key-{round}-end");
            writer.command(&format!("SET {key} x")).await;
            let told = told(&mut tracking, &mut mover, round).await;
            assert!(told.contains(&key), "{name}, round {round}: {told}");
            for link in &mut slow {
                link.reply().await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_servers_tell_of_and_what_not() {
    let told_of = [
        "SET k v",
        "APPEND k v",
        "MOVE k 1",
        "SET k v",
        "COPY k lk",
        "RENAME lk k",
        "DEL k",
        "SET k v PX 100000",
        "RPUSH list b a",
        "SORT list ALPHA STORE sorted-k",
        "PFADD hll a",
        "PFMERGE hll hll",
        "PFADD hll b",
        "PFCOUNT hll",
        "PEXPIRE k 100000",
        "PERSIST k",
        "UNLINK k",
        "EVAL redis.call('SET',KEYS[1],'v') 1 k",
        "SETRANGE k 3 x",
        "XADD stream-k 1-1 f v",
    ];
    let not_told_of = [
        "XGROUP CREATE stream-k g 0",
        "XREADGROUP GROUP g c COUNT 1 STREAMS stream-k >",
        "XCLAIM stream-k g d 0 1-1",
        "XAUTOCLAIM stream-k g c 0 0",
        "XACK stream-k g 1-1",
        "XGROUP SETID stream-k g 0",
        "XGROUP CREATECONSUMER stream-k g e",
        "XGROUP DELCONSUMER stream-k g e",
        "XGROUP DESTROY stream-k g",
        "SWAPDB 1 2",
    ];
    for (name, server, _dir) in servers(&[]).await {
        let mut tracking = tracking(&server).await;
        let mut link = Raw::connect(&server.addr).await;
        let mut number = 0;
        let mut check = async |words: &str, expected: bool| {
            let reply = link.command(words).await;
            assert!(!reply.starts_with('-'), "{name}, {words}: {reply}");
            number += 1;
            let told = told(&mut tracking, &mut link, number).await;
            let keys = |line: &str| {
                line.split(' ')
                    .nth(3)?
                    .strip_prefix('*')?
                    .parse::<usize>()
                    .ok()
            };
            let count: usize = told.lines().filter_map(keys).sum();
            // One is the barrier.
            let is_told = count > 1;
            assert_eq!(is_told, expected, "{name}, {words}: {told}");
        };
        for words in told_of {
            check(words, true).await;
        }
        for words in not_told_of {
            check(words, false).await;
        }
        // What expires is told of by the server itself; a flush names no key.
        assert_eq!(link.command("SET expires v PX 30").await, "+OK");
        assert!(tracking.reply().await.contains("expires"));
        assert!(tracking.reply().await.contains("expires"), "{name}");
        link.command("FLUSHDB").await;
        assert_eq!(tracking.reply().await, ">2 $10 invalidate _", "{name}");
        // So is what is thrown out.
        link.command("SET thrown-out v").await;
        assert!(tracking.reply().await.contains("thrown-out"), "{name}");
        link.command("CONFIG SET maxmemory-policy allkeys-random")
            .await;
        link.command("CONFIG SET maxmemory 1").await;
        link.command("SET k v").await;
        assert!(tracking.reply().await.contains("thrown-out"), "{name}");
    }
}

/// Else what is kept for it would make the server throw out users' keys.
#[tokio::test(flavor = "multi_thread")]
async fn who_tracks_and_does_not_read_is_closed() {
    for (name, server, _dir) in servers(&[]).await {
        let mut link = Raw::connect(&server.addr).await;
        let limit = [
            "CONFIG",
            "SET",
            "client-output-buffer-limit",
            "pubsub 1mb 0 0",
        ];
        link.pipeline(&[limit.map(str::to_owned).to_vec()]).await;
        assert_eq!(link.reply().await, "+OK", "{name}");
        let tracking = tracking(&server).await;
        let script = "for i = 1, 100000 do redis.call('SET', ARGV[1] .. i, '') end return 1";
        let eval = ["EVAL", script, "0", &"k".repeat(100)].map(str::to_owned);
        link.pipeline(&[eval.to_vec()]).await;
        assert_eq!(link.reply().await, ":1", "{name}");
        eventually(|| async {
            let mut link = Raw::connect(&server.addr).await;
            match link
                .command("CLIENT LIST TYPE pubsub")
                .await
                .matches("id=")
                .count()
            {
                0 => Ok(()),
                clients => Err(format!("{name}: {clients} are there")),
            }
        })
        .await;
        drop(tracking);
    }
}

/// A name is taken from a large value at once only if the value was unlinked before.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_unlinked_first_makes_way_at_once() {
    let script = "for i = 1, 10000 do redis.call('ZADD', KEYS[1], i, i) end return 1";
    for (name, server, _dir) in servers(&[]).await {
        let mut link = Raw::connect(&server.addr).await;
        let mut micros = async |unlinks: bool| {
            link.command("DEL large").await;
            let eval = ["EVAL", script, "1", "large"].map(str::to_owned);
            link.pipeline(&[eval.to_vec()]).await;
            assert_eq!(link.reply().await, ":1", "{name}");
            link.command("SET small v").await;
            if unlinks {
                link.command("UNLINK large").await;
            }
            link.command("CONFIG RESETSTAT").await;
            assert_eq!(link.command("RENAME small large").await, "+OK", "{name}");
            let stats = link.command("INFO commandstats").await;
            let usec = stats.split_once("cmdstat_rename:").unwrap().1;
            let usec = usec.split_once("usec=").unwrap().1;
            usec.split(',').next().unwrap().parse::<u64>().unwrap()
        };
        let (mut plain, mut unlinked) = (u64::MAX, u64::MAX);
        for _ in 0..3 {
            plain = plain.min(micros(false).await);
            unlinked = unlinked.min(micros(true).await);
        }
        assert!(unlinked < 1000, "{name}: {unlinked} µs");
        // By default later ones unlink by themselves.
        if name.as_str() < "redis-8" {
            assert!(plain > 10 * unlinked, "{name}: {plain} and {unlinked} µs");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_is_for_the_writes_of_its_own_connection() {
    for (name, server, dir) in servers(&[]).await {
        let port = server.port.to_string();
        let args = ["--replicaof", "127.0.0.1", &port].map(str::to_owned);
        let program = program(name.split(' ').next().unwrap()).unwrap();
        let replica = Server::run(&program, dir.path(), "replica", &args);
        let mut writer = Raw::connect(&server.addr).await;
        while writer.command("WAIT 1 1000").await != ":1" {
            writer.command("SET k v").await;
        }
        replica.process.stop();
        writer.command("SET k w").await;
        let mut other = Raw::connect(&server.addr).await;
        assert_eq!(other.command("WAIT 1 100").await, ":1", "{name}");
        assert_eq!(writer.command("WAIT 1 100").await, ":0", "{name}");
        replica.process.resume();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_facts() {
    for (name, server, _dir) in servers(&[]).await {
        let mut link = Raw::connect(&server.addr).await;
        // Restored with a time that has passed, a key is gone, and the answer is OK.
        let mut client = server.connect().await;
        redis::cmd("SET")
            .arg("k")
            .arg("v")
            .query_async::<()>(&mut client)
            .await
            .unwrap();
        let mut dump = redis::cmd("DUMP");
        let payload: Vec<u8> = dump.arg("k").query_async(&mut client).await.unwrap();
        let mut restore = redis::cmd("RESTORE");
        restore
            .arg("k")
            .arg(1)
            .arg(payload)
            .arg("REPLACE")
            .arg("ABSTTL");
        let restored: String = restore.query_async(&mut client).await.unwrap();
        assert_eq!(
            (restored.as_str(), link.command("EXISTS k").await.as_str()),
            ("OK", ":0"),
            "{name}"
        );

        // Behind a SELECT that fails, what follows lands in the database before.
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        link.pipeline(&[words("SELECT 20"), words("SET astray v")])
            .await;
        assert!(link.reply().await.starts_with("-ERR"));
        assert_eq!(link.reply().await, "+OK");
        assert_eq!(link.command("EXISTS astray").await, ":1", "{name}");

        // Who tracks and subscribes counts as a subscriber, whose output is bounded.
        let tracking = tracking(&server).await;
        let subscribers = link.command("CLIENT LIST TYPE pubsub").await;
        assert_eq!(
            subscribers.matches("id=").count(),
            1,
            "{name}: {subscribers}"
        );
        drop(tracking);

        // A script that deletes first may write at a server that is full.
        link.command("CONFIG SET maxmemory 1").await;
        assert!(link.command("SET k v").await.starts_with("-OOM"), "{name}");
        let script =
            "redis.call('DEL', KEYS[1]) return redis.call('SET', KEYS[1], '', 'PX', 60000)";
        let eval = ["EVAL", script, "1", "{sluice}:barrier"].map(str::to_owned);
        link.pipeline(&[eval.to_vec()]).await;
        assert_eq!(link.reply().await, "+OK", "{name}");
    }
}
