//! A script that a proxy has seen is known wherever it is called.

use tests::{Cluster, Raw, Server, eventually};

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
    // Within a transaction, too.
    eventually(|| async {
        let mut client = cluster.proxies[0].raw().await;
        match client.command("GET foo").await.as_str() {
            "$1 x" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    for (command, expected) in [
        (&["MULTI"][..], "+OK"),
        (&["EVALSHA", SHA, "1", "foo", "y"], "+QUEUED"),
        (&["GET", "foo"], "+QUEUED"),
        (&["EXEC"], "*2 :2 $2 xy"),
        (&["EVALSHA", SHA, "1", "foo", "z"], ":3"),
    ] {
        assert_eq!(ask(&mut client, command).await, expected, "{command:?}");
    }
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
