//! Memory is bounded, whatever clients do, and who has nothing to do with it is served on.

use std::time::Duration;

use tests::{Cluster, Proxy, SOON, eventually};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

const MIB: usize = 1 << 20;

async fn cluster(groups: usize, proxy_args: &[&str]) -> Cluster {
    // On a machine with other work to do, a server takes its time for hundreds of megabytes.
    let args = [&["--workers", "1", "--server-timeout", "60s"], proxy_args].concat();
    let builder = Cluster::builder().groups(groups).proxies(1);
    builder.proxy_args(&args).start().await
}

/// One of the proxy's numbers.
async fn metric(proxy: &Proxy, name: &str) -> u64 {
    let (_, metrics) = proxy.get("/metrics").await;
    let line = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
    metrics.lines().find_map(line).expect(name)
}

/// It never held more than so many MiB, and a tenth.
fn stayed_within(proxy: &Proxy, limit: usize) {
    let peak = proxy.process.peak_rss();
    let most = limit * MIB * 11 / 10;
    assert!(peak < most, "the proxy held {} MiB", peak / MIB);
}

/// Sets a key to so many bytes, which go out in pieces; the reply.
async fn set_large(addr: &str, key: &str, len: usize) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${len}\r\n", key.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    let piece = vec![b'x'; MIB];
    for _ in 0..len / MIB {
        stream.write_all(&piece).await.unwrap();
    }
    stream.write_all(b"\r\n").await.unwrap();
    let mut reply = vec![0; 1000];
    let len = timeout(SOON, stream.read(&mut reply))
        .await
        .unwrap()
        .unwrap();
    String::from_utf8_lossy(&reply[..len]).into_owned()
}

#[tokio::test]
async fn a_value_of_512_mib_passes_a_proxy_that_may_hold_256() {
    let cluster = cluster(2, &["--max-memory", "256MiB"]).await;
    let proxy = &cluster.proxies[0];
    let len = 512 * MIB;
    assert_eq!(set_large(&proxy.addr, "large", len).await, "+OK\r\n");
    assert_eq!(metric(proxy, "sluice_proxy_uploads_total").await, 1);

    let mut stream = TcpStream::connect(&proxy.addr).await.unwrap();
    stream.write_all(b"GET large\r\nPING\r\n").await.unwrap();
    let head = format!("${len}\r\n");
    let mut got = vec![0; head.len()];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(String::from_utf8(got).unwrap(), head);
    let (mut piece, mut missing) = (vec![0; MIB], len);
    while missing > 0 {
        let read = timeout(SOON, stream.read(&mut piece[..missing.min(MIB)]));
        let read = read.await.expect("no more comes").unwrap();
        assert!(read > 0 && piece[..read].iter().all(|&b| b == b'x'));
        missing -= read;
    }
    let mut rest = [0; 9];
    stream.read_exact(&mut rest).await.unwrap();
    assert_eq!(&rest, b"\r\n+PONG\r\n");
    stayed_within(proxy, 256);
}

/// A line of text has no length in front: a script can make one of any.
#[tokio::test]
async fn a_line_of_100_mib_passes_a_proxy_that_may_hold_48() {
    let cluster = cluster(1, &["--max-memory", "48MiB"]).await;
    let proxy = &cluster.proxies[0];
    let mut stream = TcpStream::connect(&proxy.addr).await.unwrap();
    let script = b"EVAL \"return {ok=string.rep('a', 100*1024*1024)}\" 1 k\r\nPING\r\n";
    stream.write_all(script).await.unwrap();
    let expected = 1 + 100 * MIB + 2 + 7;
    let (mut piece, mut got) = (vec![0; MIB], 0);
    while got < expected {
        let read = timeout(SOON, stream.read(&mut piece)).await;
        let Ok(read) = read else {
            panic!("no more comes after {got} bytes");
        };
        let read = read.unwrap();
        assert!(read > 0, "closed after {got} bytes");
        got += read;
        assert!(got < expected || piece[..read].ends_with(b"a\r\n+PONG\r\n"));
    }
    stayed_within(proxy, 48);
}

#[tokio::test]
async fn what_would_have_to_be_held_and_is_too_large_is_refused_and_nobody_closed() {
    let cluster = cluster(2, &["--max-request-bytes", "4MiB"]).await;
    let proxy = &cluster.proxies[0];
    let mut client = proxy.raw().await;
    let value = "x".repeat(5 * MIB);
    // Two keys in one request: it is held until it is known where they go.
    let refused = client.command(&format!("MSET a {value} b 1")).await;
    assert!(
        refused.starts_with("-ERR the request is larger than"),
        "{refused}"
    );
    assert_eq!(client.command("MGET a b").await, "*2 $-1 $-1");
    assert_eq!(client.command("PING").await, "+PONG");
}

/// A reply that is merged from its parts is held; the proxy lives through one that is too large.
#[tokio::test]
async fn a_merged_reply_beyond_the_limit_ends_its_client_alone() {
    let cluster = cluster(2, &["--max-memory", "64MiB"]).await;
    let proxy = &cluster.proxies[0];
    let mut client = proxy.raw().await;
    let value = "x".repeat(MIB);
    let keys: Vec<String> = (0..60).map(|n| format!("key:{n}")).collect();
    for key in &keys {
        assert_eq!(client.command(&format!("SET {key} {value}")).await, "+OK");
    }
    let mut other = proxy.raw().await;
    let mut greedy = proxy.raw().await;
    let mget = [&["MGET".to_owned()], keys.as_slice()].concat();
    greedy.pipeline(&[mget]).await;
    assert_eq!(greedy.rest().await.len(), 0);
    for n in 0..10 {
        assert_eq!(other.command(&format!("SET other:{n} 1")).await, "+OK");
    }
    assert_eq!(
        metric(proxy, "sluice_proxy_sessions_closed_memory_total").await,
        1
    );
    assert_eq!(client.command("PING").await, "+PONG", "it holds nothing");
    stayed_within(proxy, 64);
}

/// Who does not take what it has asked for waits, and holds little.
#[tokio::test]
async fn who_asks_for_much_and_takes_nothing_is_not_closed() {
    let cluster = cluster(1, &["--max-memory", "64MiB"]).await;
    let proxy = &cluster.proxies[0];
    assert_eq!(set_large(&proxy.addr, "large", MIB).await, "+OK\r\n");
    let mut other = proxy.raw().await;
    assert_eq!(other.command("SET small 1").await, "+OK");
    let mut open = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(&proxy.addr).await.unwrap();
        let gets = "GET large\r\n".repeat(100);
        stream.write_all(gets.as_bytes()).await.unwrap();
        open.push(stream);
    }
    for _ in 0..100 {
        assert_eq!(other.command("GET small").await, "$1 1");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(
        metric(proxy, "sluice_proxy_sessions_closed_memory_total").await,
        0
    );
    stayed_within(proxy, 64);
}

/// Requests that have begun are held without anything ever being answered. The limit holds all the
/// same, and what is free again is noticed though nobody else does anything.
#[tokio::test]
async fn half_requests_of_many_are_bounded_and_forgotten_when_they_leave() {
    let cluster = cluster(1, &["--max-memory", "64MiB"]).await;
    let proxy = &cluster.proxies[0];
    let half = format!(
        "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1000000\r\n{}",
        "x".repeat(900_000)
    );
    let mut open = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(&proxy.addr).await.unwrap();
        // Once memory is short nobody is accepted, and nothing read.
        let sent = stream.write_all(half.as_bytes());
        timeout(Duration::from_millis(100), sent).await.ok();
        open.push(stream);
    }
    let held = || async { metric(proxy, "sluice_proxy_memory_held_bytes").await as usize };
    eventually(|| async {
        match held().await {
            held if held >= 40 * MIB => Ok(()),
            held => Err(format!("only {} MiB are held", held / MIB)),
        }
    })
    .await;
    stayed_within(proxy, 64);
    drop(open);
    eventually(|| async {
        match held().await {
            held if held < 30 * MIB => Ok(()),
            held => Err(format!("{} MiB held, and nobody there", held / MIB)),
        }
    })
    .await;
    let mut new = proxy.raw().await;
    assert_eq!(new.command("PING").await, "+PONG");
}

#[tokio::test]
async fn who_stands_still_is_closed_and_who_is_idle_is_not() {
    let cluster = cluster(1, &["--stall-timeout", "2s"]).await;
    let proxy = &cluster.proxies[0];
    let mut idle = proxy.raw().await;
    let mut still = proxy.raw().await;
    still.send(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$5\r\nab").await;
    let mut upload = proxy.raw().await;
    upload
        .send(b"*3\r\n$3\r\nSET\r\n$1\r\nb\r\n$9000000\r\nab")
        .await;
    assert_eq!(
        (still.rest().await.len(), upload.rest().await.len()),
        (0, 0)
    );
    assert_eq!(
        metric(proxy, "sluice_proxy_sessions_closed_stalled_total").await,
        2
    );
    assert_eq!(idle.command("PING").await, "+PONG");
    assert_eq!(
        idle.command("EXISTS a b").await,
        ":0",
        "neither was executed"
    );
}
