//! `MULTI … EXEC` through a proxy is what it is at a server: each reply the same, and all or nothing.

use std::time::Duration;

use proto::Slot;
use tests::{Cluster, Raw, SOON, Server};
use tokio::time::Instant;

async fn cluster(proxy_args: &[&str]) -> Cluster {
    let builder = Cluster::builder().groups(2).proxies(1);
    builder.proxy_args(proxy_args).start().await
}

/// What a client sends, command by command; keys have one hash tag, so that they are in one slot.
const SCRIPTS: [&[&str]; 38] = [
    &[
        "MULTI",
        "SET {a}1 x",
        "GET {a}1",
        "INCR {a}2",
        "EXEC",
        "GET {a}1",
    ],
    &["MULTI", "EXEC"],
    &["EXEC"],
    &["DISCARD"],
    &["MULTI", "SET {a}1 y", "DISCARD", "GET {a}1", "EXEC"],
    &["MULTI", "MULTI", "SET {a}1 z", "EXEC"],
    &["MULTI", "NOSUCH {a}1", "SET {a}1 no", "EXEC", "GET {a}1"],
    &["MULTI", "GET", "SET {a}1 no", "EXEC", "GET {a}1"],
    &["MULTI", "save", "SHUTDOWN", "EXEC"],
    // What fails when it is executed does not keep the others from it.
    &[
        "MULTI",
        "SET {a}3 text",
        "INCR {a}3",
        "LPUSH {a}3 1",
        "GET {a}3",
        "EXEC",
    ],
    &["MULTI", "PING", "ECHO hello", "PING hello", "EXEC"],
    &[
        "MULTI",
        "MSET {a}4 1 {a}5 2",
        "MGET {a}4 {a}5 {a}6",
        "DEL {a}4 {a}6",
        "EXEC",
    ],
    &["MULTI", "MSET {a}4 1 {a}5", "EXEC"],
    &[
        "MULTI",
        "EVAL return{KEYS[1],ARGV[1]} 1 {a}1 v",
        "EVAL return(1) 0",
        "EXEC",
    ],
    &["MULTI", "SET {a}1 no", "RESET", "EXEC", "GET {a}1"],
    &["MULTI x", "EXEC x", "MULTI", "EXEC x", "EXEC"],
    &[
        "MULTI",
        "HSET {a}h f v",
        "HGETALL {a}h",
        "SADD {a}s m",
        "SMEMBERS {a}s",
        "ZADD {a}z 1.5 m",
        "ZRANGE {a}z 0 -1 WITHSCORES",
        "XADD {a}x 1-1 f v",
        "XREAD BLOCK 0 STREAMS {a}x 1-1",
        "EXEC",
    ],
    // What the proxy answers itself stands in its place.
    &[
        "MULTI",
        "CLIENT SETNAME me",
        "SET {a}1 x",
        "CLIENT GETNAME",
        "CLIENT SETNAME \n",
        "INCR {a}1",
        "ACL WHOAMI",
        "COMMAND GETKEYS GET k",
        "MGET {a}1 {a}none",
        "EXEC",
        "CLIENT GETNAME",
    ],
    &["MULTI", "CLIENT SETNAME you", "CLIENT GETNAME", "EXEC"],
    &[
        "WATCH {a}1",
        "MULTI",
        "CLIENT GETNAME",
        "GET {a}1",
        "CLIENT SETNAME me",
        "EXEC",
        "CLIENT GETNAME",
        "WATCH {a}1",
        "MULTI",
        "CLIENT GETNAME",
        "EXEC",
    ],
    &[
        "WATCH {a}1",
        "SET {a}1 other",
        "MULTI",
        "CLIENT GETNAME",
        "GET {a}1",
        "EXEC",
        "MULTI",
        "CLIENT GETNAME x",
        "CLIENT GETNAME",
        "EXEC",
    ],
    // It counts for what is queued behind it, and stays.
    &[
        "MULTI",
        "SET {a}1 zero",
        "SELECT 3",
        "SET {a}1 three",
        "SELECT 99",
        "SELECT x",
        "GET {a}1",
        "SELECT 0",
        "GET {a}1",
        "SELECT 3",
        "EXEC",
        "GET {a}1",
        "SELECT 0",
        "GET {a}1",
    ],
    &["MULTI", "SELECT 3", "EXEC", "GET {a}1", "SELECT 0"],
    &["MULTI", "SELECT 3", "SET {a}1 x", "DISCARD", "GET {a}1"],
    &["MULTI", "SELECT 3", "NOSUCH", "EXEC", "GET {a}1"],
    &[
        "WATCH {a}1",
        "MULTI",
        "SELECT 3",
        "GET {a}1",
        "SELECT 0",
        "EXEC",
        "GET {a}1",
    ],
    &[
        "WATCH {a}1",
        "SET {a}1 y",
        "MULTI",
        "SELECT 3",
        "SET {a}1 no",
        "EXEC",
        "GET {a}1",
    ],
    // What goes to all groups, in its place.
    &[
        "FLUSHALL",
        "MULTI",
        "DBSIZE",
        "SET {a}1 x",
        "DBSIZE",
        "KEYS *",
        "RANDOMKEY",
        "DEL {a}1",
        "DBSIZE",
        "EXEC",
        "DBSIZE",
    ],
    &[
        "SET {a}1 x",
        "SET b x",
        "MULTI",
        "SET {a}2 x",
        "FLUSHALL",
        "DBSIZE",
        "SET {a}3 x",
        "DBSIZE",
        "EXEC",
        "KEYS *",
        "FLUSHALL",
        "DBSIZE",
    ],
    &[
        "SELECT 2",
        "SET {a}2 x",
        "SET b x",
        "SELECT 0",
        "SET {a}1 x",
        "MULTI",
        "SELECT 2",
        "FLUSHDB",
        "DBSIZE",
        "SELECT 0",
        "EXEC",
        "EXISTS {a}1",
        "SELECT 2",
        "DBSIZE",
        "SELECT 0",
    ],
    &[
        "FLUSHALL",
        "MULTI",
        "FLUSHDB ASYNC",
        "FLUSHALL NEVER",
        "KEYS",
        "EXEC",
        "MULTI",
        "FLUSHDB x",
        "EXEC",
    ],
    &[
        "MULTI",
        "SCRIPT LOAD return(7)",
        "SCRIPT EXISTS d3d9a5bd3a2cd5ea3ba8f7d23bd84a3f83d3b9a1",
        "CONFIG GET maxmemory",
        "SCRIPT KILL",
        "FUNCTION KILL",
        "PUBSUB NUMSUB none",
        "EXEC",
    ],
    &["MULTI", "CONFIG GET databases", "EXEC"],
    // HELLO counts from its place on.
    &[
        "MULTI",
        "GET {a}none",
        "HELLO 3",
        "GET {a}none",
        "HGETALL {a}none",
        "HELLO 2",
        "GET {a}none",
        "HELLO 9",
        "HELLO 3 AUTH x y",
        "CLIENT GETNAME",
        "CONFIG GET port-none",
        "EXEC",
        "GET {a}none",
    ],
    // What concerns clients.
    &[
        "MULTI",
        "CLIENT KILL ID 99999",
        "SET {a}1 x",
        "CLIENT UNBLOCK 99999",
        "CLIENT PAUSE 0",
        "CLIENT UNPAUSE",
        "CLIENT NO-EVICT on",
        "AUTH x",
        "AUTH default x",
        "MONITOR",
        "GET {a}1",
        "EXEC",
        "GET {a}1",
    ],
    &[
        "MULTI",
        "SUBSCRIBE ch",
        "PING",
        "GET {a}1",
        "SSUBSCRIBE {a}x",
        "PSUBSCRIBE p*",
        "UNSUBSCRIBE ch",
        "PUNSUBSCRIBE p*",
        "PUNSUBSCRIBE",
        "EXEC",
        "GET {a}1",
    ],
    &["MULTI", "CLIENT REPLY ON", "SUBSCRIBE", "MULTI", "EXEC"],
    &[
        "MULTI",
        "CLIENT CACHING yes",
        "CLIENT GETREDIR",
        "CLIENT TRACKING off",
        "CLIENT TRACKINGINFO",
        "EXEC",
    ],
];

/// Without the client's number, of which `HELLO` tells.
fn without_id(reply: &str) -> String {
    let mut words: Vec<&str> = reply.split(' ').collect();
    for at in 1..words.len() {
        if words[at - 1] == "id" {
            words[at] = ":";
        }
    }
    words.join(" ")
}

#[tokio::test]
async fn every_reply_is_that_of_a_plain_server() {
    let cluster = cluster(&[]).await;
    let plain = Server::start(cluster.dir.path(), "plain", &[]);
    plain.answers().await;
    for protocol in ["2", "3"] {
        let mut proxied = cluster.proxies[0].raw().await;
        let mut direct = Raw::connect(&plain.addr).await;
        for client in [&mut proxied, &mut direct] {
            let hello = client.command(&format!("HELLO {protocol}")).await;
            assert!(hello.contains(&format!("proto :{protocol}")), "{hello}");
        }
        for script in SCRIPTS {
            // One by one, and in one pipeline, as libraries send it.
            for command in script {
                let (got, expected) = (
                    proxied.command(command).await,
                    direct.command(command).await,
                );
                let (got, expected) = (without_id(&got), without_id(&expected));
                assert_eq!(got, expected, "{command} of {script:?}, RESP{protocol}");
            }
            let commands: Vec<Vec<String>> = script
                .iter()
                .map(|command| command.split(' ').map(str::to_owned).collect())
                .collect();
            proxied.pipeline(&commands).await;
            direct.pipeline(&commands).await;
            for command in script {
                let (got, expected) = (proxied.reply().await, direct.reply().await);
                assert_eq!(
                    without_id(&got),
                    without_id(&expected),
                    "{command} of {script:?}, RESP{protocol}, pipelined"
                );
            }
        }
    }
}

#[tokio::test]
async fn keys_of_several_slots_are_no_transaction() {
    let cluster = cluster(&[]).await;
    let mut client = cluster.proxies[0].raw().await;
    let crossslot = "-CROSSSLOT Keys in request don't hash to the same slot";
    let discarded = "-EXECABORT Transaction discarded because of previous errors.";
    for (command, reply) in [
        ("MULTI", "+OK"),
        ("SET a 1", "+QUEUED"),
        ("SET foo 1", "+QUEUED"), // each by itself is well
        ("EXEC", crossslot),
        ("MGET a foo", "*2 $-1 $-1"),
        ("MULTI", "+OK"),
        ("SET a 1", "+QUEUED"),
        ("MGET a foo", crossslot),
        ("EXEC", discarded),
        ("MULTI", "+OK"),
        (
            "CLUSTER COUNTKEYSINSLOT 1",
            "-ERR Command not allowed inside a transaction: it goes through all keys of all groups, page \
             by page",
        ),
        ("EXEC", discarded),
        ("MGET a foo", "*2 $-1 $-1"),
    ] {
        assert_eq!(client.command(command).await, reply, "{command}");
    }
}

/// Others use the same connection to the server meanwhile; none of their commands comes in between.
#[tokio::test]
async fn nothing_comes_between() {
    let cluster = cluster(&["--workers", "1"]).await;
    let proxy = &cluster.proxies[0];
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut client = proxy.raw().await;
        clients.spawn(async move {
            let transaction = [
                "MULTI",
                "INCR {a}n",
                "INCR {a}m",
                "INCRBY {a}n -1",
                "GET {a}n",
                "EXEC",
            ];
            let commands: Vec<Vec<String>> = ["INCR {a}m"]
                .iter()
                .chain(&transaction)
                .map(|command| command.split(' ').map(str::to_owned).collect())
                .collect();
            for _ in 0..200 {
                client.pipeline(&commands).await;
                for _ in 0..6 {
                    client.reply().await;
                }
                let exec = client.reply().await;
                // The counter is only ever 1 within a transaction.
                assert!(
                    exec.starts_with("*4 :1 :") && exec.ends_with(":0 $1 0"),
                    "{exec}"
                );
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    let mut client = proxy.raw().await;
    assert_eq!(
        client.command("GET {a}m").await,
        format!("$4 {}", 2 * 8 * 200)
    );
}

#[tokio::test]
async fn what_is_queued_is_bounded_and_costs_the_server_nothing() {
    let cluster = cluster(&["--max-request-bytes", "1MiB"]).await;
    let proxy = &cluster.proxies[0];
    let mut client = proxy.raw().await;
    assert_eq!(client.command("MULTI").await, "+OK");
    let value = "x".repeat(300_000);
    for reply in [
        "+QUEUED",
        "+QUEUED",
        "+QUEUED",
        "-ERR the request is larger than",
    ] {
        let got = client.command(&format!("SET a {value}")).await;
        assert!(got.starts_with(reply), "{got}");
    }
    assert_eq!(client.command("INCR a").await, "+QUEUED");
    assert!(client.command("EXEC").await.starts_with("-EXECABORT "));
    // One that is too large to be held at all, in the middle.
    assert_eq!(client.command("MULTI").await, "+OK");
    let large = client
        .command(&format!("SET a {}", "x".repeat(3 << 20)))
        .await;
    assert!(
        large.starts_with("-ERR the request is larger than"),
        "{large}"
    );
    assert!(client.command("EXEC").await.starts_with("-EXECABORT "));
    assert_eq!(client.command("GET a").await, "$-1");
    // Who leaves in the middle leaves nothing.
    for command in ["MULTI", "SET a gone"] {
        client.command(command).await;
    }
    drop(client);
    assert_eq!(proxy.raw().await.command("GET a").await, "$-1");
}

#[tokio::test]
async fn a_lost_server_tells_what_became_of_it() {
    let mut cluster = cluster(&["--server-timeout", "1s"]).await;
    assert!(Slot::of_key(b"a").number() >= 512, "on g2");
    let mut client = cluster.proxies[0].raw().await;
    let begin = async |client: &mut Raw| {
        assert_eq!(client.command("MULTI").await, "+OK");
        assert_eq!(client.command("INCR a").await, "+QUEUED");
    };
    assert_eq!(client.command("GET a").await, "$-1"); // its connection is open
    begin(&mut client).await;
    cluster.groups[1][0].process.stop();
    let exec = client.command("EXEC").await;
    assert!(exec.starts_with("-UNKNOWNOUTCOME server "), "{exec}");
    cluster.groups[1][0].process.kill();
    tokio::time::sleep(Duration::from_millis(200)).await;
    begin(&mut client).await;
    let exec = client.command("EXEC").await;
    assert!(exec.starts_with("-CLUSTERDOWN server "), "{exec}");
    assert_eq!(client.command("EXEC").await, "-ERR EXEC without MULTI");
    cluster.groups[1][0].restart();
    cluster.groups[1][0].answers().await;
    // Each of the client's connections to it is dialled again in its own time.
    let since = Instant::now();
    loop {
        begin(&mut client).await;
        let exec = client.command("EXEC").await;
        if exec.starts_with("*1 :") {
            break;
        }
        let is_awaited = exec.starts_with("-TRYAGAIN ") || exec.starts_with("-CLUSTERDOWN ");
        assert!(is_awaited && since.elapsed() < SOON, "{exec}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
