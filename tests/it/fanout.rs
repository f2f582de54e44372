//! Commands that concern all groups: each is asked, and what they say becomes one reply.

use std::{collections::BTreeSet, time::Duration};

use redis::aio::MultiplexedConnection;
use tests::Cluster;

async fn cluster() -> Cluster {
    Cluster::builder().groups(3).proxies(1).start().await
}

async fn size_of(mut server: MultiplexedConnection) -> usize {
    let size = redis::cmd("DBSIZE").query_async(&mut server).await;
    size.unwrap()
}

#[tokio::test]
async fn keys_of_all_groups_are_counted_listed_and_flushed() {
    let cluster = cluster().await;
    let mut client = cluster.proxies[0].raw().await;
    let keys: BTreeSet<String> = (0..100).map(|n| format!("key:{n}")).collect();
    for key in &keys {
        assert_eq!(client.command(&format!("SET {key} 1")).await, "+OK");
    }
    assert_eq!(client.command("DBSIZE").await, ":100");
    let listed = client.command("KEYS key:*").await;
    let listed: Vec<&str> = listed.split(' ').collect();
    assert_eq!(listed[0], "*100");
    let listed: BTreeSet<String> = listed[1..]
        .iter()
        .filter(|word| word.starts_with("key:"))
        .map(|&word| word.to_owned())
        .collect();
    assert_eq!(listed, keys);
    assert_eq!(client.command("KEYS none*").await, "*0");
    for group in &cluster.groups {
        assert!(size_of(group[0].connect().await).await > 10);
    }

    // Another database is another matter.
    assert_eq!(client.command("SELECT 1").await, "+OK");
    assert_eq!(client.command("SET one 1").await, "+OK");
    assert_eq!(client.command("DBSIZE").await, ":1");
    assert_eq!(client.command("FLUSHDB").await, "+OK");
    assert_eq!(client.command("DBSIZE").await, ":0");
    assert_eq!(client.command("SELECT 0").await, "+OK");
    assert_eq!(client.command("DBSIZE").await, ":100");
    assert_eq!(client.command("FLUSHALL ASYNC").await, "+OK");
    assert_eq!(client.command("DBSIZE").await, ":0");
    for group in &cluster.groups {
        // The server's fence record stays, or is there again.
        assert!(size_of(group[0].connect().await).await <= 1);
    }
    assert_eq!(client.command("FLUSHALL NEVER").await, "-ERR syntax error");
}

#[tokio::test]
async fn scripts_and_functions_are_the_same_everywhere() {
    let cluster = cluster().await;
    let mut client = cluster.proxies[0].raw().await;
    let sha = "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"; // of `return 1`
    let words = |words: &[&str]| {
        words
            .iter()
            .map(|&word| word.to_owned())
            .collect::<Vec<_>>()
    };
    client
        .pipeline(&[words(&["SCRIPT", "LOAD", "return 1"])])
        .await;
    assert_eq!(client.reply().await, format!("$40 {sha}"));
    for key in 0..20 {
        let reply = client.command(&format!("EVALSHA {sha} 1 key:{key}")).await;
        assert_eq!(reply, ":1", "key:{key}");
    }
    let exists = format!("SCRIPT EXISTS {sha} {}", "0".repeat(40));
    assert_eq!(client.command(&exists).await, "*2 :1 :0");
    // Where one has forgotten it, it is shown it again; not one that only the others know.
    let other = "7f923f79fe76194c868d7e1d0820de36700eb649"; // of `return 2`
    for group in &cluster.groups {
        let mut server = group[0].connect().await;
        let loaded = redis::cmd("SCRIPT")
            .arg("LOAD")
            .arg("return 2")
            .query_async(&mut server)
            .await;
        let sha: String = loaded.unwrap();
        assert_eq!(sha, other);
    }
    let others = format!("SCRIPT EXISTS {other} {}", other.to_uppercase());
    assert_eq!(client.command(&others).await, "*2 :1 :1");
    let mut one = cluster.groups[1][0].connect().await;
    let flushed = redis::cmd("SCRIPT")
        .arg("FLUSH")
        .query_async(&mut one)
        .await;
    let () = flushed.unwrap();
    assert_eq!(client.command(&others).await, "*2 :0 :0");
    assert_eq!(client.command(&exists).await, "*2 :1 :0");
    for key in 0..20 {
        let reply = client.command(&format!("EVALSHA {sha} 1 key:{key}")).await;
        assert_eq!(reply, ":1", "key:{key}");
    }
    client
        .pipeline(&[words(&["EVAL", "return 3", "1", "key"])])
        .await;
    assert_eq!(client.reply().await, ":3");
    let three = "SCRIPT EXISTS 09d3822de862f46d784e6a36848b4f0736dda47a";
    assert_eq!(client.command(three).await, "*1 :1");
    assert_eq!(client.command("SCRIPT FLUSH SYNC").await, "+OK");
    assert_eq!(client.command(&exists).await, "*2 :0 :0");
    assert!(
        client
            .command(&format!("EVALSHA {sha} 1 key:1"))
            .await
            .starts_with("-NOSCRIPT ")
    );

    let library =
        "#!lua name=mine\nredis.register_function('mine', function(keys) return keys[1] end)";
    client
        .pipeline(&[words(&["FUNCTION", "LOAD", library])])
        .await;
    assert_eq!(client.reply().await, "$4 mine");
    for key in 0..20 {
        let reply = client.command(&format!("FCALL mine 1 key:{key}")).await;
        assert!(reply.ends_with(&format!(" key:{key}")), "{reply}");
    }
    assert!(client.command("FUNCTION LIST").await.contains("mine"));
    assert_eq!(client.command("FUNCTION DELETE mine").await, "+OK");
    assert!(
        client
            .command("FCALL mine 1 key:1")
            .await
            .starts_with("-ERR Function not found")
    );
}

#[tokio::test]
async fn a_group_that_is_down_fails_the_whole() {
    let mut cluster = cluster().await;
    cluster.groups[1][0].process.kill();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut client = cluster.proxies[0].raw().await;
    // Of the last one nobody knows whether the group that is down would have had something to kill.
    for command in [
        "DBSIZE",
        "KEYS *",
        "FLUSHALL",
        "SCRIPT FLUSH",
        "SCRIPT KILL",
    ] {
        let reply = client.command(command).await;
        assert!(
            reply.starts_with("-CLUSTERDOWN server "),
            "{command}: {reply}"
        );
    }
    assert_eq!(client.command("PING").await, "+PONG");
}
