//! A server that dies or hangs fails its own slots, with an error that says what became of the
//! request; the others' clients notice nothing, and all is well once it is back.

use std::time::Duration;

use proto::Slot;
use tests::{Cluster, Load, eventually};
use tokio::time::Instant;

fn in_lower_half(key: &str) -> bool {
    Slot::of_key(key.as_bytes()).number() < 512
}

#[tokio::test]
async fn a_killed_server_fails_only_its_own_slots_and_recovers() {
    let mut cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let load = Load::start(cluster.connect_all().await, in_lower_half); // on g1
    let mut client = cluster.proxies[0].raw().await;
    assert_eq!(client.command("SET a kept").await, "+OK"); // slot 579, on g2
    cluster.groups[1][0].process.kill();

    // The connection is gone at once; from then on requests fail without being sent.
    let failed = eventually(|| async {
        let mut client = cluster.proxies[0].raw().await;
        let since = Instant::now();
        match client.command("SET a lost").await {
            reply if reply.starts_with("-CLUSTERDOWN server 127.0.0.1:") => Ok(since.elapsed()),
            reply => Err(reply),
        }
    })
    .await;
    assert!(
        failed < Duration::from_millis(500),
        "failed only after {failed:?}"
    );
    assert!(
        client
            .command("MGET a foo")
            .await
            .starts_with("-CLUSTERDOWN")
    );
    assert_eq!(client.command("SET foo 1").await, "+OK");
    load.advance(10_000).await;

    cluster.groups[1][0].restart();
    cluster.groups[1][0].answers().await;
    let value = eventually(|| async {
        let mut client = cluster.proxies[0].raw().await;
        match client.command("GET a").await {
            reply if reply.starts_with('-') => Err(reply),
            reply => Ok(reply),
        }
    })
    .await;
    assert_eq!(value, "$4 kept");
    assert_eq!(client.command("SET a again").await, "+OK");
    assert_eq!(load.stop().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_hanging_server_is_given_up_and_the_outcome_is_told() {
    let cluster = Cluster::builder()
        .groups(2)
        .proxies(1)
        .proxy_args(&["--server-timeout", "1s", "--connect-timeout", "500ms"])
        .start()
        .await;
    let load = Load::start(cluster.connect_all().await, in_lower_half);
    let (mut writer, mut reader) = (
        cluster.proxies[0].raw().await,
        cluster.proxies[0].raw().await,
    );
    assert_eq!(writer.command("SET a 1").await, "+OK");
    cluster.groups[1][0].process.stop();
    let since = Instant::now();
    let (wrote, read) = tokio::join!(writer.command("SET a 2"), reader.command("GET a"));
    assert!(wrote.starts_with("-UNKNOWNOUTCOME server "), "{wrote}");
    assert!(read.starts_with("-CLUSTERDOWN server "), "{read}");
    assert!(
        since.elapsed() < Duration::from_secs(5),
        "only after {:?}",
        since.elapsed()
    );
    // A write over both groups, one of which took it: nobody may believe it was not executed.
    let split = writer.command("MSET a 3 foo 3").await;
    assert!(
        split.starts_with("-UNKNOWNOUTCOME") || split.starts_with("-CLUSTERDOWN"),
        "{split}"
    );
    load.advance(5_000).await;
    cluster.groups[1][0].process.resume();
    eventually(|| async {
        let mut client = cluster.proxies[0].raw().await;
        match client.command("SET a 4").await.as_str() {
            "+OK" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    assert_eq!(load.stop().await, Vec::<String>::new());
}
