//! SIGTERM: what is under way is answered, then the process ends.

use std::time::Duration;

use tests::Cluster;

#[tokio::test]
async fn a_proxy_that_is_asked_to_stop_answers_first() {
    let mut cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let mut idle = cluster.proxies[0].raw().await;
    assert_eq!(idle.command("PING").await, "+PONG");
    let mut busy = cluster.proxies[0].raw().await;
    assert_eq!(busy.command("SET a 1").await, "+OK");
    // g2 hangs while a request is under way to it.
    cluster.groups[1][0].process.stop();
    busy.pipeline(&[vec!["INCR".to_owned(), "a".to_owned()]])
        .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.proxies[0].process.terminate();
    assert_eq!(idle.rest().await, b"", "an idle client is closed at once");
    assert_eq!(cluster.proxies[0].get("/readyz").await.0, 503);
    cluster.groups[1][0].process.resume();
    assert_eq!(busy.reply().await, ":2");
    assert_eq!(busy.rest().await, b"");
    let status = cluster.proxies[0].process.wait(Duration::from_secs(5));
    assert!(status.success(), "{status}");
    assert!(
        tokio::net::TcpStream::connect(&cluster.proxies[0].addr)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_drain_does_not_wait_for_ever() {
    let mut cluster = Cluster::builder()
        .groups(1)
        .proxies(1)
        .proxy_args(&["--drain-timeout", "500ms"])
        .start()
        .await;
    let mut busy = cluster.proxies[0].raw().await;
    cluster.groups[0][0].process.stop();
    busy.pipeline(&[vec!["INCR".to_owned(), "a".to_owned()]])
        .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.proxies[0].process.terminate();
    let status = cluster.proxies[0].process.wait(Duration::from_secs(5));
    assert!(status.success(), "{status}");
}
