//! A server that dies or hangs fails its own slots, with an error that says what became of the
//! request; the others' clients notice nothing, and all is well once it is back.

use std::time::Duration;

use proto::Slot;
use tests::{Cluster, Load, Raw, eventually};
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
    // Each worker dials for itself: the client's own may be the later one.
    let recovered = Instant::now();
    let value = loop {
        let reply = client.command("GET a").await;
        if !reply.starts_with('-') {
            break reply;
        }
        assert!(recovered.elapsed() < Duration::from_secs(5), "{reply}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
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
    let mut splitter = cluster.proxies[0].raw().await;
    let (wrote, read, split) = tokio::join!(
        writer.command("SET a 2"),
        reader.command("GET a"),
        splitter.command("MSET a 3 123456789 3") // the other key is in slot 294, on g1
    );
    assert!(wrote.starts_with("-UNKNOWNOUTCOME server "), "{wrote}");
    assert!(read.starts_with("-CLUSTERDOWN server "), "{read}");
    assert!(
        since.elapsed() < Duration::from_secs(5),
        "only after {:?}",
        since.elapsed()
    );
    // One group took its part: nobody may believe that nothing was executed.
    assert!(
        split.starts_with("-UNKNOWNOUTCOME not all groups executed it"),
        "{split}"
    );
    let mut at_g1 = cluster.groups[0][0].connect().await;
    let value: u32 = redis::cmd("GET")
        .arg("123456789")
        .query_async(&mut at_g1)
        .await
        .unwrap();
    assert_eq!(value, 3);
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

#[tokio::test]
async fn a_server_that_dies_with_a_full_pipe_is_noticed_at_once() {
    let mut cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let value = "x".repeat(100_000);
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut client = cluster.proxies[0].raw().await;
        let set = ["SET", "a", &value].map(str::to_owned).to_vec();
        client.pipeline(&vec![set; 50]).await;
        clients.push(client);
    }
    // The socket to a hanging server fills up; then the server dies.
    cluster.groups[1][0].process.stop();
    for client in &mut clients {
        let set = ["SET", "a", &value].map(str::to_owned).to_vec();
        client.pipeline(&vec![set; 10]).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    cluster.groups[1][0].process.kill();
    let since = Instant::now();
    for client in &mut clients {
        for _ in 0..60 {
            let reply = client.reply().await;
            let known = ["+OK", "-UNKNOWNOUTCOME ", "-CLUSTERDOWN "];
            assert!(
                known.iter().any(|known| reply.starts_with(known)),
                "{reply}"
            );
        }
    }
    assert!(
        since.elapsed() < Duration::from_secs(3),
        "only after {:?}",
        since.elapsed()
    );
}

/// What the others notice of a server that is stopped: nothing. Only the slots of that server wait, and
/// no more than is allowed for.
#[tokio::test]
async fn requests_to_the_others_are_as_quick_while_a_server_is_stopped() {
    let args = ["--server-timeout", "2s", "--max-memory", "64MiB"];
    let builder = Cluster::builder().groups(2).proxies(1).proxy_args(&args);
    let cluster = builder.start().await;
    let proxy = &cluster.proxies[0];
    let mut client = proxy.raw().await;
    assert_eq!(client.command("MSET foo 1 a 1").await, "+OK"); // on g1, on g2
    let (before, _) = latencies(&mut client).await;
    let held = proxy.process.rss();

    cluster.groups[1][0].process.stop();
    let value = "x".repeat(10_000);
    let mut stuck = Vec::new();
    for _ in 0..20 {
        let mut client = proxy.raw().await;
        let set = ["SET", "a", &value].map(str::to_owned).to_vec();
        client.pipeline(&vec![set; 20]).await;
        stuck.push(client);
    }
    let (during, longest) = latencies(&mut client).await;
    // On a machine with other work to do a millisecond is what the scheduler takes, and now and then many.
    assert!(
        during < before * 3 / 2 + Duration::from_millis(1),
        "{during:?} instead of {before:?}"
    );
    assert!(
        longest < Duration::from_secs(1),
        "one waited for {longest:?}, as if for the server that is stopped"
    );
    let more = proxy.process.rss().saturating_sub(held);
    assert!(more < 20 << 20, "{} KiB more are held", more >> 10);
    for client in &mut stuck {
        for _ in 0..20 {
            let reply = client.reply().await;
            let known = ["-UNKNOWNOUTCOME server ", "-CLUSTERDOWN server "];
            assert!(known.iter().any(|k| reply.starts_with(k)), "{reply}");
        }
    }
    cluster.groups[1][0].process.resume();
    for client in &mut stuck {
        eventually(|| async {
            match proxy.raw().await.command("GET a").await {
                reply if reply.starts_with('$') => Ok(()),
                reply => Err(reply),
            }
        })
        .await;
        assert_eq!(client.command("SET a 2").await, "+OK");
    }
}

/// The median and the longest of 500 requests in a row to g1.
async fn latencies(client: &mut Raw) -> (Duration, Duration) {
    let mut took = Vec::new();
    for _ in 0..500 {
        let since = Instant::now();
        assert_eq!(client.command("GET foo").await, "$1 1");
        took.push(since.elapsed());
    }
    took.sort();
    (took[250], took[499])
}
