//! `CLIENT NO-TOUCH`: what such a client reads does not make keys younger, on whatever connection.

use std::path::PathBuf;

use tests::{Cluster, Raw, Server, other_server};

/// So a server counts how often a key was used, each time by one.
const COUNTS: [&str; 4] = ["--maxmemory-policy", "allkeys-lfu", "--lfu-log-factor", "0"];

async fn cluster(program: Option<PathBuf>) -> Cluster {
    let builder = Cluster::builder().groups(2).proxies(1);
    let builder = builder.server_args(&COUNTS);
    let builder = match program {
        Some(program) => builder.server(program),
        None => builder,
    };
    builder.start().await
}

async fn replies(client: &mut Raw, conversation: &[(&str, &str)]) {
    for (command, reply) in conversation {
        assert_eq!(client.command(command).await, *reply, "{command}");
    }
}

#[tokio::test]
async fn what_a_client_reads_without_touching_stays_as_old_as_it_is() {
    for name in ["redis-8.2", "valkey-8.1", "valkey-9.1"] {
        let Some(program) = other_server(name) else {
            continue;
        };
        let cluster = cluster(Some(program)).await;
        let proxy = &cluster.proxies[0];
        let (mut quiet, mut other) = (proxy.raw().await, proxy.raw().await);
        assert_eq!(other.command("SET k v").await, "+OK");
        let fresh = other.command("OBJECT FREQ k").await;
        assert_eq!(quiet.command("CLIENT NO-TOUCH on").await, "+OK");
        let info = quiet.command("CLIENT INFO").await;
        assert!(info.contains(" flags=T "), "{info}");
        let reads = [("GET k", "$1 v"), ("STRLEN k", ":1"), ("MGET k", "*1 $1 v")];
        replies(&mut quiet, &reads).await;
        // In a script, in a transaction, on a connection of its own, in another RESP, while it tracks.
        replies(
            &mut quiet,
            &[
                ("EVAL return(redis.call('GET',KEYS[1])) 1 k", "$1 v"),
                ("MULTI", "+OK"),
                ("GET k", "+QUEUED"),
                ("EXEC", "*1 $1 v"),
                ("WATCH k", "+OK"),
                ("MULTI", "+OK"),
                ("GET k", "+QUEUED"),
                ("EXEC", "*1 $1 v"),
            ],
        )
        .await;
        assert!(quiet.command("HELLO 3").await.starts_with('%'));
        let tracks = [("GET k", "$1 v"), ("CLIENT TRACKING ON", "+OK")];
        replies(&mut quiet, &tracks).await;
        replies(
            &mut quiet,
            &[("GET k", "$1 v"), ("CLIENT TRACKING OFF", "+OK")],
        )
        .await;
        assert_eq!(other.command("OBJECT FREQ k").await, fresh, "{name}");
        // What others read, and what is to touch, does.
        let more = |n: u32| format!(":{}", fresh[1..].parse::<u32>().unwrap() + n);
        assert_eq!(other.command("GET k").await, "$1 v");
        assert_eq!(other.command("OBJECT FREQ k").await, more(1), "{name}");
        assert_eq!(quiet.command("TOUCH k").await, ":1");
        assert_eq!(other.command("OBJECT FREQ k").await, more(2), "{name}");
        replies(
            &mut quiet,
            &[("CLIENT NO-TOUCH OFF", "+OK"), ("GET k", "$1 v")],
        )
        .await;
        assert_eq!(other.command("OBJECT FREQ k").await, more(3), "{name}");
        // A lease that was used by one who does not touch is the next one's.
        replies(
            &mut other,
            &[
                ("WATCH k", "+OK"),
                ("MULTI", "+OK"),
                ("GET k", "+QUEUED"),
                ("EXEC", "*1 $1 v"),
                ("CLIENT NO-TOUCH maybe", "-ERR syntax error"),
                ("CLIENT NO-TOUCH ON", "+OK"),
                ("RESET", "+RESET"),
                ("GET k", "$1 v"),
            ],
        )
        .await;
        let freq = other.command("OBJECT FREQ k").await;
        assert!(freq[1..].parse::<u32>().unwrap() >= 5 + more(0)[1..].parse::<u32>().unwrap());
    }
}

/// Where the servers do not know it, the client is told in their words, and goes on as before.
#[tokio::test]
async fn a_server_that_cannot_says_so() {
    let cluster = cluster(None).await;
    let plain = Server::start(cluster.dir.path(), "plain", &[]);
    plain.answers().await;
    let mut plain = Raw::connect(&plain.addr).await;
    let mut client = cluster.proxies[0].raw().await;
    for command in ["CLIENT NO-TOUCH ON", "client no-Touch off"] {
        let expected = plain.command(command).await;
        assert!(
            expected.starts_with("-ERR unknown subcommand "),
            "{expected}"
        );
        assert_eq!(client.command(command).await, expected);
    }
    let words = |command: &str| command.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let pipeline = ["CLIENT NO-TOUCH ON", "SET k v", "GET k"].map(words);
    client.pipeline(&pipeline).await;
    assert!(client.reply().await.starts_with("-ERR unknown subcommand "));
    assert_eq!(client.reply().await, "+OK");
    assert_eq!(client.reply().await, "$1 v");
    let info = client.command("CLIENT INFO").await;
    assert!(info.contains(" flags=N "), "{info}");
    replies(&mut client, &[("CLIENT NO-EVICT ON", "+OK")]).await;
    let info = client.command("CLIENT INFO").await;
    assert!(info.contains(" flags=e "), "{info}");
}
