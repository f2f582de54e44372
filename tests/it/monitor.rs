//! `MONITOR`: the requests of all workers, as Redis shows them.

use std::time::Duration;

use tests::{Cluster, Raw, Server};

const LINES: &[&[&str]] = &[
    &["PING"],
    &["select", "3"],
    &["SET", "a", "b c\"\n\u{1}'\\"],
    &["get", "a"],
    &["HELLO", "2", "AUTH", "default", "secret", "SETNAME", "x"],
    &["hello", "2", "setname", "y"],
    &["AUTH", "default", "secret"],
    &["AUTH", "wrong"],
    &["MULTI"],
    &["INCR", "{a}n"],
    &["get", "a"],
    &["EXEC"],
    &["MULTI"],
    &["GET", "{a}n"],
    &["SELECT", "2"],
    &["GET", "{a}n"],
    &["DBSIZE"],
    &["SELECT", "3"],
    &["EXEC"],
    &["MULTI"],
    &["INCR", "n"],
    &["DISCARD"],
    &["EXEC"],
    &["EVALSHA", "ffff", "0"],
    &["CLIENT", "LIST"],
    &["client", "setname", "z"],
    &["CLIENT", "KILL", "ID", "99999"],
    &["SELECT", "99"],
    &["GET", "a", "b"],
    &["NOPE"],
    &["LPUSH", "a", "x"],
    &["MGET", "a", "b", "c"],
    &["ACL", "WHOAMI"],
    &["TIME"],
    &["ECHO", "last"],
];

async fn send(client: &mut Raw, lines: &[&[&str]]) {
    for line in lines {
        let words = line.iter().map(|&word| word.to_owned()).collect();
        client.pipeline(&[words]).await;
        client.reply().await;
    }
}

/// What a monitor is shown until something is echoed: without the time, and the other's port.
async fn shown(monitor: &mut Raw) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        let line = monitor.reply().await;
        let (time, rest) = line[1..].split_once(" [").unwrap();
        let (seconds, micros) = time.split_once('.').unwrap();
        assert!(seconds.len() >= 10 && micros.len() == 6, "{line}");
        let (client, request) = rest.split_once("] ").unwrap();
        let (database, addr) = client.split_once(' ').unwrap();
        assert!(addr.starts_with("127.0.0.1:"), "{line}");
        lines.push(format!("{database} {request}"));
        if request.contains("\"last\"") {
            return lines;
        }
    }
}

#[tokio::test]
async fn a_monitor_is_shown_what_redis_shows() {
    let cluster = Cluster::builder().groups(2).proxies(1);
    let cluster = cluster.proxy_args(&["--workers", "2"]).start().await;
    let server = Server::start(cluster.dir.path(), "plain", &[]);
    server.answers().await;
    let mut all = Vec::new();
    for addr in [&server.addr, &cluster.proxies[0].addr] {
        // Two of each, so that each worker of the proxy has one.
        let (mut first, mut second) = (Raw::connect(addr).await, Raw::connect(addr).await);
        assert_eq!(first.command("MONITOR").await, "+OK");
        assert_eq!(second.command("MONITOR").await, "+OK");
        let (mut one, mut other) = (Raw::connect(addr).await, Raw::connect(addr).await);
        let mut lines = Vec::new();
        for client in [&mut one, &mut other] {
            send(client, LINES).await;
            let seen = shown(&mut first).await;
            assert_eq!(seen, shown(&mut second).await);
            lines.push(seen);
        }
        // It can stop.
        assert_eq!(first.command("RESET").await, "+RESET");
        send(&mut one, &[&["ECHO", "last"]]).await;
        shown(&mut second).await;
        first.pipeline(&[vec!["PING".to_owned()]]).await;
        assert_eq!(first.reply().await, "+PONG");
        all.push(lines);
    }
    assert_eq!(all[0], all[1]);
}

#[tokio::test]
async fn a_monitor_that_does_not_read_is_closed_and_one_that_leaves_is_forgotten() {
    let cluster = Cluster::builder().groups(1).proxies(1);
    let args = ["--workers", "2", "--output-limit", "1MiB"];
    let cluster = cluster.proxy_args(&args).start().await;
    let proxy = &cluster.proxies[0];
    let mut silent = proxy.raw().await;
    assert_eq!(silent.command("MONITOR").await, "+OK");
    let mut leaving = proxy.raw().await;
    assert_eq!(leaving.command("MONITOR").await, "+OK");
    drop(leaving);
    let mut client = proxy.raw().await;
    let value = "x".repeat(100_000);
    let mut last = String::new();
    for _ in 0..200 {
        let words = vec!["ECHO".to_owned(), value.clone()];
        client.pipeline(&[words]).await;
        client.reply().await;
        last = client.command("CLIENT LIST").await;
        if last.matches(" laddr=").count() == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{last}");
}
