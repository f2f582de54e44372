//! Connecting: who comes when there is no room waits, and those who are there notice nothing.

use std::time::Duration;

use tests::{Cluster, SOON};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

#[tokio::test]
async fn without_descriptors_new_clients_wait_and_the_others_are_served() {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let proxy = &cluster.proxies[0];
    let mut client = proxy.raw().await;
    assert_eq!(client.command("MSET a 1 foo 2").await, "+OK"); // to both groups
    // As if something else in the process had taken all.
    proxy.process.limit_descriptors(8);
    let mut waiting = Vec::new();
    for _ in 0..50 {
        let mut stream = TcpStream::connect(&proxy.addr).await.unwrap();
        stream.write_all(b"GET a\r\n").await.unwrap();
        waiting.push(stream);
    }
    for _ in 0..100 {
        assert_eq!(client.command("MGET a foo").await, "*2 $1 1 $1 2");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut reply = [0; 7];
    let none = timeout(Duration::from_millis(100), waiting[0].read(&mut reply)).await;
    assert!(none.is_err(), "it was accepted, or closed: {none:?}");
    proxy.process.limit_descriptors(1024);
    for stream in &mut waiting {
        let read = timeout(SOON, stream.read_exact(&mut reply)).await;
        read.expect("it was forgotten").unwrap();
        assert_eq!(&reply, b"$1\r\n1\r\n");
    }
}

#[tokio::test]
async fn one_client_too_many_is_told_so() {
    let builder = Cluster::builder().groups(1).proxies(1);
    let cluster = builder.proxy_args(&["--max-clients", "2"]).start().await;
    let proxy = &cluster.proxies[0];
    let (mut first, _second) = (proxy.raw().await, proxy.raw().await);
    assert_eq!(first.command("PING").await, "+PONG");
    let mut third = proxy.raw().await;
    assert_eq!(
        third.reply().await,
        "-ERR max number of clients reached",
        "as Redis says it"
    );
    assert_eq!(first.command("PING").await, "+PONG");
    drop(first);
    tests::eventually(|| async {
        match proxy.raw().await.command("PING").await.as_str() {
            "+PONG" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
}
