//! A script that a proxy has seen is known wherever it is called.

use std::{path::PathBuf, time::Duration};

use tests::{Cluster, Proxy, Raw, SOON, Server, other_server};
use tokio::time::Instant;

/// Of `SOURCE`.
const SHA: &str = "68014bf0cbd405594c3f62158602855af28788cb";
const SOURCE: &str = "return redis.call('APPEND', KEYS[1], ARGV[1])";

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

async fn cluster() -> (Cluster, Raw) {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let client = cluster.proxies[0].raw().await;
    (cluster, client)
}

async fn ask(client: &mut Raw, command: &[&str]) -> String {
    client.pipeline(&[words(command)]).await;
    client.reply().await
}

/// What a server knows of scripts is gone, and no proxy has heard of it.
async fn forget(servers: impl Iterator<Item = &Server>) {
    for server in servers {
        let mut direct = Raw::connect(&server.addr).await;
        assert_eq!(direct.command("SCRIPT FLUSH").await, "+OK");
    }
}

fn primaries(cluster: &Cluster) -> impl Iterator<Item = &Server> {
    cluster.groups.iter().map(|group| &group[0])
}

#[tokio::test]
async fn a_script_that_was_seen_is_known_everywhere() {
    let (cluster, mut client) = cluster().await;
    // a is in slot 579, foo in 289: one in each group.
    assert_eq!(
        ask(&mut client, &["EVAL", SOURCE, "1", "a", "x"]).await,
        ":1"
    );
    for call in ["EVALSHA", "evalsha"] {
        for sha in [SHA, &SHA.to_uppercase()] {
            for key in ["a", "foo"] {
                let reply = ask(&mut client, &[call, sha, "1", key, "x"]).await;
                assert!(reply.starts_with(':'), "{reply}");
            }
        }
    }
    let mut readonly = Raw::connect(&cluster.proxies[0].addr).await;
    let loaded = ask(
        &mut client,
        &["SCRIPT", "LOAD", "return redis.call('GET', KEYS[1])"],
    )
    .await;
    let sha = loaded.strip_prefix("$40 ").unwrap();
    for turn in 0..2 {
        for key in ["a", "foo"] {
            let reply = ask(&mut readonly, &["EVALSHA_RO", sha, "1", key]).await;
            assert!(
                reply.ends_with("xxxx") || reply.ends_with("xxxxx"),
                "{reply}"
            );
        }
        if turn == 0 {
            forget(primaries(&cluster)).await;
        }
    }
    // Nobody has seen this one.
    let unknown = "-NOSCRIPT No matching script. Please use EVAL.";
    let none = "0".repeat(40);
    for sha in [&none, "x"] {
        assert_eq!(ask(&mut client, &["EVALSHA", sha, "1", "a"]).await, unknown);
    }
    // And this was to be forgotten.
    assert_eq!(
        client.command("SCRIPT FLUSH NEVER").await.split(' ').next(),
        Some("-ERR")
    );
    assert!(
        ask(&mut client, &["EVALSHA", SHA, "1", "a", "x"])
            .await
            .starts_with(':')
    );
    assert_eq!(client.command("SCRIPT FLUSH").await, "+OK");
    assert_eq!(
        ask(&mut client, &["EVALSHA", SHA, "1", "a", "x"]).await,
        unknown
    );
}

#[tokio::test]
async fn a_server_that_restarts_is_shown_it_again() {
    let (mut cluster, mut client) = cluster().await;
    assert_eq!(
        ask(&mut client, &["SCRIPT", "LOAD", SOURCE]).await,
        format!("$40 {SHA}")
    );
    assert_eq!(
        ask(&mut client, &["EVALSHA", SHA, "1", "foo", "x"]).await,
        ":1"
    );
    for group in &mut cluster.groups {
        group[0].process.kill();
        group[0].restart();
        group[0].answers().await;
    }
    // Within a transaction, too. Each connection is let in again in its own time.
    let since = Instant::now();
    loop {
        for (command, expected) in [
            (&["MULTI"][..], "+OK"),
            (&["EVALSHA", SHA, "1", "foo", "y"], "+QUEUED"),
            (&["GET", "foo"], "+QUEUED"),
        ] {
            assert_eq!(ask(&mut client, command).await, expected, "{command:?}");
        }
        let exec = ask(&mut client, &["EXEC"]).await;
        if exec == "*2 :2 $2 xy" {
            break;
        }
        let is_awaited = exec.starts_with("-TRYAGAIN ") || exec.starts_with("-CLUSTERDOWN ");
        assert!(is_awaited && since.elapsed() < SOON, "{exec}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let call = ask(&mut client, &["EVALSHA", SHA, "1", "foo", "z"]).await;
    assert_eq!(call, ":3");
}

/// However often the servers forget, calls that are pipelined are executed in their order, once each, or
/// not at all; a single one always is.
#[tokio::test]
async fn calls_do_not_overtake_each_other() {
    let (cluster, mut client) = cluster().await;
    assert_eq!(
        ask(&mut client, &["SCRIPT", "LOAD", SOURCE]).await,
        format!("$40 {SHA}")
    );
    let mut executed = String::new();
    for turn in 0..30 {
        if turn % 3 > 0 {
            forget(primaries(&cluster)).await;
        }
        let letters: Vec<String> = ('a'..='j').map(String::from).collect();
        let calls: Vec<Vec<String>> = letters
            .iter()
            .map(|letter| match letter.as_str() {
                "c" | "g" => words(&["APPEND", "foo", letter]),
                letter => words(&["EVALSHA", SHA, "1", "foo", letter]),
            })
            .collect();
        let calls = if turn % 2 == 0 {
            &calls[..]
        } else {
            &calls[..1]
        };
        client.pipeline(calls).await;
        for (letter, call) in letters.iter().zip(calls) {
            let reply = client.reply().await;
            if let Some(len) = reply.strip_prefix(':') {
                executed += letter;
                assert_eq!(len.parse(), Ok(executed.len()), "{call:?}");
            } else {
                assert!(
                    reply.starts_with("-NOSCRIPT ") && calls.len() > 1,
                    "{reply}"
                );
            }
        }
    }
    assert_eq!(
        client.command("GET foo").await,
        format!("${} {executed}", executed.len())
    );
}

const ENDLESS: &str = "while true do end";

/// Groups whose servers say very soon that they are busy.
async fn impatient(program: Option<PathBuf>) -> Cluster {
    let builder = Cluster::builder().groups(2).proxies(1);
    let builder = builder.server_args(&["--lua-time-limit", "100"]);
    let builder = match program {
        Some(program) => builder.server(program),
        None => builder,
    };
    builder.start().await
}

/// Returns once a client is told so.
async fn is_told(client: &mut Raw, command: &str, expected: &str) {
    let mut reply = String::new();
    for _ in 0..200 {
        reply = client.command(command).await;
        if reply.starts_with(expected) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{command}: {reply}");
}

async fn an_endless_script_is_killed(program: Option<PathBuf>) {
    let cluster = impatient(program).await;
    let proxy = &cluster.proxies[0];
    let (mut caller, mut bystander) = (proxy.raw().await, proxy.raw().await);
    let not_busy = "-NOTBUSY No scripts in execution right now.";
    assert_eq!(bystander.command("SCRIPT KILL").await, not_busy);
    // One whose replies are known to be small, and one of whom nothing is known; foo is the first
    // group's, a the second's.
    assert_eq!(bystander.command("GET foo").await, "$-1");
    let mut new = proxy.raw().await;
    caller
        .pipeline(&[
            words(&["SET", "foo", "1"]),
            words(&["EVAL", ENDLESS, "1", "foo"]),
            words(&["GET", "foo"]),
        ])
        .await;
    assert_eq!(caller.reply().await, "+OK");
    is_told(&mut bystander, "GET foo", "-BUSY ").await;
    assert_eq!(bystander.command("SET a 1").await, "+OK");
    let told = bystander.command("GET foo").await;
    assert_eq!(new.command("GET foo").await, told);
    // A connection that is only opened now.
    assert_eq!(new.command("SELECT 3").await, "+OK");
    assert_eq!(new.command("GET foo").await, told);
    assert_eq!(bystander.command("SCRIPT KILL").await, "+OK");
    let killed = caller.reply().await;
    assert!(killed.contains("Script killed by user"), "{killed}");
    assert_eq!(caller.reply().await, "$1 1");
    is_told(&mut bystander, "SCRIPT KILL", not_busy).await;
    is_told(&mut new, "GET foo", "$-1").await;

    // In a transaction, and in one that watches: on a connection of its own.
    for watches in [false, true] {
        if watches {
            assert_eq!(caller.command("WATCH foo").await, "+OK");
        }
        assert_eq!(caller.command("MULTI").await, "+OK");
        let endless = ["EVAL", ENDLESS, "1", "foo"];
        assert_eq!(ask(&mut caller, &endless).await, "+QUEUED");
        caller.pipeline(&[words(&["EXEC"])]).await;
        is_told(&mut bystander, "GET foo", "-BUSY ").await;
        assert_eq!(bystander.command("SCRIPT KILL").await, "+OK");
        let killed = caller.reply().await;
        assert!(killed.contains("Script killed by user"), "{killed}");
    }

    // That the other group has nothing to be killed tells nothing of this one.
    let writes = format!("redis.call('SET', KEYS[1], '2') {ENDLESS}");
    caller
        .pipeline(&[words(&["EVAL", &writes, "1", "a"])])
        .await;
    is_told(&mut bystander, "GET a", "-BUSY ").await;
    let told = bystander.command("SCRIPT KILL").await;
    assert!(told.starts_with("-UNKILLABLE "), "{told}");
    assert_eq!(bystander.command("GET foo").await, "$1 1");
}

#[tokio::test]
async fn an_endless_script_keeps_nobody_from_killing_it() {
    an_endless_script_is_killed(None).await;
}

/// A proxy that comes when the server is busy already: no connection can be opened to it.
#[tokio::test]
async fn an_endless_script_is_killed_by_a_proxy_that_was_not_there_when_it_began() {
    let cluster = impatient(None).await;
    let mut direct = Raw::connect(&cluster.groups[0][0].addr).await;
    let endless = words(&["EVAL", ENDLESS, "1", "foo"]);
    direct.pipeline(std::slice::from_ref(&endless)).await;
    let mut bystander = cluster.proxies[0].raw().await;
    is_told(&mut bystander, "GET foo", "-BUSY ").await;
    let args = ["--controller", &cluster.controller.addr, "--id", "late"].map(str::to_owned);
    let late = Proxy::start(cluster.dir.path(), "late", &args).await;
    let mut client = late.raw().await;
    is_told(&mut client, "GET foo", "-BUSY ").await;
    assert_eq!(client.command("SCRIPT KILL").await, "+OK");
    let killed = direct.reply().await;
    assert!(killed.contains("Script killed by user"), "{killed}");
    is_told(&mut client, "GET foo", "$-1").await;
}

/// Those who track share connections, too.
#[tokio::test]
async fn an_endless_script_of_one_who_tracks_keeps_no_other_from_an_answer() {
    let cluster = impatient(None).await;
    for protocol in ["2", "3"] {
        let mut clients = Vec::new();
        for _ in 0..2 {
            let mut client = cluster.proxies[0].raw().await;
            client.command(&format!("HELLO {protocol}")).await;
            assert_eq!(client.command("CLIENT TRACKING on").await, "+OK");
            client.command("GET foo").await;
            clients.push(client);
        }
        let [caller, other] = &mut clients[..] else {
            unreachable!("there are two")
        };
        caller
            .pipeline(&[
                words(&["EVAL", ENDLESS, "1", "foo"]),
                words(&["GET", "foo"]),
            ])
            .await;
        is_told(other, "GET foo", "-BUSY ").await;
        assert_eq!(other.command("SET a 1").await, "+OK");
        assert_eq!(other.command("SCRIPT KILL").await, "+OK");
        let killed = caller.reply().await;
        assert!(killed.contains("Script killed by user"), "{killed}");
        let none = if protocol == "2" { "$-1" } else { "_" };
        assert_eq!(caller.reply().await, none);
        is_told(other, "GET foo", none).await;
    }
}

#[tokio::test]
async fn other_servers_endless_scripts_are_killed() {
    for name in ["redis-6.2", "redis-8.2", "valkey-8.1", "valkey-9.1"] {
        if let Some(program) = other_server(name) {
            an_endless_script_is_killed(Some(program)).await;
        }
    }
}

#[tokio::test]
async fn an_endless_function_is_killed() {
    let cluster = impatient(None).await;
    let (mut caller, mut other) = (
        cluster.proxies[0].raw().await,
        cluster.proxies[0].raw().await,
    );
    let code = format!(
        "#!lua name=mine\nredis.register_function('endless', function(keys) {ENDLESS} end)"
    );
    assert_eq!(
        ask(&mut caller, &["FUNCTION", "LOAD", &code]).await,
        "$4 mine"
    );
    assert_eq!(other.command("HELLO 3").await.split(' ').next(), Some("%7"));
    let idle = other.command("FUNCTION STATS").await;
    assert!(idle.contains("running_script _"), "{idle}");
    caller
        .pipeline(&[words(&["FCALL", "endless", "1", "foo"])])
        .await;
    is_told(&mut other, "GET foo", "-BUSY ").await;
    let busy = other.command("FUNCTION STATS").await;
    assert!(busy.contains("endless"), "{busy}");
    let told = other.command("SCRIPT KILL").await;
    assert!(told.starts_with("-BUSY "), "{told}");
    assert_eq!(other.command("FUNCTION KILL").await, "+OK");
    let killed = caller.reply().await;
    assert!(killed.contains("Script killed by user"), "{killed}");
}
