//! What servers do, that moving slots stands on: shown of every version, with and without I/O threads.

use tempfile::TempDir;
use tests::{Raw, Server};

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

/// Requests that keep a server busy for some milliseconds, so that much comes to pass in one turn of its loop.
struct Slow(Vec<Raw>);

impl Slow {
    async fn connect(server: &Server) -> Self {
        let mut links = Vec::new();
        for _ in 0..3 {
            links.push(Raw::connect(&server.addr).await);
        }
        Self(links)
    }

    async fn begin(&mut self) {
        let script = "local n = 0 for i = 1, 100000 do n = n + i end return n";
        for link in &mut self.0 {
            let words = ["EVAL", script, "0"].map(str::to_owned).to_vec();
            link.pipeline(&[words]).await;
        }
    }

    async fn end(&mut self) {
        for link in &mut self.0 {
            link.reply().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_write_is_told_of_behind_all_that_was_answered_before() {
    for (name, server, _dir) in servers(&[]).await {
        let mut tracking = tracking(&server).await;
        let mut writer = Raw::connect(&server.addr).await;
        let mut mover = Raw::connect(&server.addr).await;
        let mut slow = Slow::connect(&server).await;
        for round in 0..50 {
            slow.begin().await;
            let key = format!("key-{round}-end");
            writer.command(&format!("SET {key} x")).await;
            let told = told(&mut tracking, &mut mover, round).await;
            assert!(told.contains(&key), "{name}, round {round}: {told}");
            slow.end().await;
        }
    }
}

/// So that it could not be used in place of a write of our own.
#[tokio::test(flavor = "multi_thread")]
async fn a_ping_is_answered_before_what_was_written_before_it_is_told_of() {
    for (name, server, _dir) in servers(&[]).await {
        if name != "redis-8.2 with 4 threads" {
            continue; // of no other it was ever seen
        }
        let mut tracking = tracking(&server).await;
        let mut writer = Raw::connect(&server.addr).await;
        let mut slow = Slow::connect(&server).await;
        let mut overtakes = async |round: u32| {
            slow.begin().await;
            let key = format!("key-{round}-end");
            writer.command(&format!("SET {key} x")).await;
            let mut first = tracking.command("PING").await;
            let overtakes = first == "+PONG";
            while !first.contains(&key) {
                first = tracking.reply().await;
            }
            if !overtakes {
                assert_eq!(tracking.reply().await, "+PONG");
            }
            slow.end().await;
            overtakes
        };
        // Most times it does.
        let mut seen = false;
        for round in 0..1000 {
            seen = overtakes(round).await;
            if seen {
                break;
            }
        }
        assert!(seen, "{name}: a PING has become a barrier");
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
        "XSETID stream-k 9-9",
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
        if name.starts_with("redis-8") {
            // Taken from one group, and there yet for the other.
            for words in [
                "XGROUP CREATE stream-k g 0",
                "XGROUP CREATE stream-k h 0",
                "XREADGROUP GROUP g c COUNT 1 STREAMS stream-k >",
                "XACKDEL stream-k g ACKED IDS 1 1-1",
            ] {
                check(words, false).await;
            }
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

/// Who tracks and does not read takes the server's memory, and users' keys are thrown out for it: but not if it
/// has subscribed to something, and what is kept for subscribers is bounded.
#[tokio::test(flavor = "multi_thread")]
async fn who_tracks_and_does_not_read_is_closed_or_takes_the_place_of_keys() {
    for bounded in [true, false] {
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
            for n in 0..1000 {
                link.command(&format!("SET user-{n} v")).await;
            }
            let tracking = match bounded {
                true => tracking(&server).await,
                false => {
                    let mut raw = Raw::connect(&server.addr).await;
                    raw.command("HELLO 3").await;
                    raw.command("CLIENT TRACKING ON BCAST").await;
                    raw
                }
            };
            // Nothing is left of what is told of: of 40 MiB, more than a network takes on the way.
            let script = "for i = 1, 1000 do redis.call('SET', ARGV[1] .. i, '')
                          redis.call('DEL', ARGV[1] .. i) end return 1";
            let eval = ["EVAL", script, "0", &"k".repeat(1000)].map(str::to_owned);
            let memory = number(&link.command("INFO memory").await, "used_memory:");
            let most = memory + 10 * 1024 * 1024;
            link.command(&format!("CONFIG SET maxmemory {most}")).await;
            link.command("CONFIG SET maxmemory-policy allkeys-random")
                .await;
            for _ in 0..40 {
                link.pipeline(&[eval.to_vec()]).await;
                let reply = link.reply().await;
                // In the end, with no key left, it refuses to write.
                assert!(reply == ":1" || !bounded, "{name}: {reply}");
            }
            let stats = link.command("INFO stats").await;
            let evicted = number(&stats, "evicted_keys:");
            assert_eq!(evicted == 0, bounded, "{name}: {evicted} were thrown out");
            let subscribers = link.command("CLIENT LIST TYPE pubsub").await;
            assert_eq!(subscribers.matches("id=").count(), 0, "{name}");
            drop(tracking);
        }
    }
}

/// What stands behind this in a text.
fn number(text: &str, before: &str) -> u64 {
    let (_, text) = text.split_once(before).unwrap();
    let digits = text.find(|c: char| !c.is_ascii_digit());
    text[..digits.unwrap_or(text.len())].parse().unwrap()
}

/// To dump a large value blocks a server for long, so does restoring it, and so does taking its name from it, unless
/// it was unlinked before.
#[tokio::test(flavor = "multi_thread")]
async fn what_large_values_take() {
    const MEMBERS: u64 = 500_000;
    let script =
        "for i = ARGV[1], ARGV[1] + 9999 do redis.call('ZADD', KEYS[1], i, i) end return 1";
    for (name, server, _dir) in servers(&[]).await {
        let mut link = server.connect().await;
        for first in (0..MEMBERS).step_by(10_000) {
            let mut eval = redis::cmd("EVAL");
            eval.arg(script).arg(1).arg("large").arg(first);
            eval.exec_async(&mut link).await.unwrap();
        }
        let mut raw = Raw::connect(&server.addr).await;
        // How many µs the last one took.
        let mut took = async |command: &str| {
            let stats = raw.command("INFO commandstats").await;
            let (_, stats) = stats.split_once(&format!("cmdstat_{command}:")).unwrap();
            let micros = number(stats, "usec=");
            raw.command("CONFIG RESETSTAT").await;
            micros
        };
        let dump = redis::cmd("DUMP").arg("large").to_owned();
        let mut payload: Vec<u8> = Vec::new();
        let mut dumped = u64::MAX;
        for _ in 0..3 {
            payload = dump.query_async(&mut link).await.unwrap();
            dumped = dumped.min(took("dump").await);
        }
        let mut run = async |words: &[&[u8]]| {
            let mut command = redis::Cmd::new();
            words.iter().for_each(|word| {
                command.arg(*word);
            });
            command.exec_async(&mut link).await.unwrap();
        };
        let (mut restored, mut unlinked) = (u64::MAX, u64::MAX);
        for _ in 0..3 {
            run(&[b"RESTORE", b"copy", b"0", &payload]).await;
            restored = restored.min(took("restore").await);
            run(&[b"SET", b"small", b"v"]).await;
            run(&[b"UNLINK", b"copy"]).await;
            run(&[b"RENAME", b"small", b"copy"]).await;
            unlinked = unlinked.min(took("rename").await);
            run(&[b"DEL", b"copy"]).await;
        }
        run(&[b"SET", b"small", b"v"]).await;
        run(&[b"RENAME", b"small", b"large"]).await;
        let renamed = took("rename").await;
        let all = format!(
            "{name}: dumped {dumped}, restored {restored}, renamed {renamed}, {unlinked} µs"
        );
        assert!(dumped > 5_000 && restored > 5_000, "{all}");
        assert!(unlinked < 1_000, "{all}");
        // By default later ones unlink by themselves.
        if name.as_str() < "redis-8" {
            assert!(renamed > 5_000, "{all}");
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
