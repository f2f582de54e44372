//! Bytes that are not RESP get Redis's own error and a close; nobody else notices.

use tests::{Cluster, Raw};

#[tokio::test]
async fn broken_bytes_get_the_error_of_redis_and_a_close() {
    let cluster = Cluster::builder().groups(1).proxies(1).start().await;
    let proxy = &cluster.proxies[0].addr;
    let plain = &cluster.groups[0][0].addr;
    let mut witness = Raw::connect(proxy).await;
    let long_line = "x".repeat(70_000);
    let long_count = format!("*{}", "1".repeat(70_000));
    for bytes in [
        &b"*x\r\n"[..],
        b"*2000000000000\r\n",
        b"*99999999999999999999\r\n",
        b"*1\r\n*1\r\n$4\r\nPING\r\n",
        b"*1\r\n:1\r\n",
        b"*1\r\n$-1\r\n",
        b"*1\r\n$99999999999\r\n",
        b"*1\r\n$x\r\n",
        b"*2\r\n$3\r\nGET\r\n!3\r\n",
        b"set 'a\r\n",
        b"set \"a\"b\r\n",
        long_line.as_bytes(),
        long_count.as_bytes(),
        b"*1\r\n$4\r\nPING\r\n*1\r\n$1\r\n",
        b"PING\r\n*a\r\n",
    ] {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]);
        let expected = exchange(plain, bytes).await;
        assert_eq!(exchange(proxy, bytes).await, expected, "{shown:?}");
        assert_eq!(witness.command("PING").await, "+PONG", "after {shown:?}");
    }
}

/// Sends bytes, then says that no more will come; all that comes back until the close.
async fn exchange(addr: &str, bytes: &[u8]) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    // The other side may close before all is sent.
    stream.write_all(bytes).await.ok();
    let mut reply = Vec::new();
    let incomplete = bytes.ends_with(b"$1\r\n");
    if incomplete {
        let mut first = [0; 7];
        stream.read_exact(&mut first).await.unwrap();
        reply.extend_from_slice(&first);
        stream.shutdown().await.unwrap();
    }
    tokio::time::timeout(tests::SOON, stream.read_to_end(&mut reply))
        .await
        .expect("not closed")
        .ok();
    String::from_utf8_lossy(&reply).into_owned()
}

#[tokio::test]
async fn a_browser_is_shown_the_door() {
    let cluster = Cluster::builder().groups(1).proxies(1).start().await;
    let mut client = cluster.proxies[0].raw().await;
    client
        .send(b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\nSET a 1\r\n")
        .await;
    assert_eq!(client.rest().await, b"");
    let mut witness = cluster.proxies[0].raw().await;
    assert_eq!(witness.command("GET a").await, "$-1");
}

#[tokio::test]
async fn declared_lengths_cost_nothing() {
    let cluster = Cluster::builder().groups(1).proxies(1).start().await;
    let mut open = Vec::new();
    for _ in 0..500 {
        let mut client = cluster.proxies[0].raw().await;
        client.send(b"*1000000\r\n$500000000\r\nabc").await;
        open.push(client);
    }
    let mut witness = cluster.proxies[0].raw().await;
    assert_eq!(witness.command("SET a 1").await, "+OK");
    let rss = cluster.proxies[0].process.rss();
    assert!(rss < 64 << 20, "the proxy holds {} MiB", rss >> 20);
}

#[tokio::test]
async fn requests_cut_at_any_byte_are_whole_again() {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let bytes = b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$12\r\nhello\r\nworld\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\nPING\r\n";
    let mut client = cluster.proxies[0].raw().await;
    for cut in 1..bytes.len() {
        client.send(&bytes[..cut]).await;
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        client.send(&bytes[cut..]).await;
        assert_eq!(client.reply().await, "+OK", "cut at {cut}");
        assert_eq!(client.reply().await, "$12 hello\r\nworld", "cut at {cut}");
        assert_eq!(client.reply().await, "+PONG", "cut at {cut}");
    }
}
