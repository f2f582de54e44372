//! Replies come in the order of the requests, whatever is asked and however long the pipeline is.

use tests::Cluster;

#[tokio::test]
async fn ten_thousand_requests_over_all_groups_are_answered_in_order() {
    let cluster = Cluster::builder().groups(3).proxies(1).start().await;
    let mut client = cluster.proxies[0].raw().await;
    let mut commands = Vec::new();
    let mut expected = Vec::new();
    let mut ask = |words: String, reply: String| {
        commands.push(words.split(' ').map(str::to_owned).collect());
        expected.push(reply);
    };
    for n in 0..10_000 {
        let value = format!("v{n}");
        match n % 5 {
            // Answered by the proxy, by one group, by all groups, by nobody.
            0 => ask(format!("PING {value}"), format!("${} {value}", value.len())),
            1 => ask(format!("SET k{n} {value}"), "+OK".to_owned()),
            2 => {
                let before = format!("v{}", n - 1);
                ask(
                    format!("GET k{}", n - 1),
                    format!("${} {before}", before.len()),
                );
            }
            3 => ask(
                format!("EXISTS k{} other{n} more{n}", n - 2),
                ":1".to_owned(),
            ),
            _ => ask(
                format!("GETX k{n}"),
                format!("-ERR unknown command 'GETX', with args beginning with: 'k{n}' "),
            ),
        }
    }
    client.pipeline(&commands).await;
    for (n, expected) in expected.iter().enumerate() {
        assert_eq!(&client.reply().await, expected, "reply {n}");
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody_and_loses_nothing() {
    let cluster = Cluster::builder()
        .groups(2)
        .proxies(1)
        .proxy_args(&["--workers", "1", "--max-memory", "96MiB"])
        .start()
        .await;
    let mut slow = cluster.proxies[0].raw().await;
    let value = "x".repeat(10_000);
    assert_eq!(slow.command(&format!("SET big {value}")).await, "+OK");
    // 200 MB of replies that nobody takes: the proxy must stop reading, not buffer them.
    let get = vec!["GET".to_owned(), "big".to_owned()];
    slow.pipeline(&vec![get; 20_000]).await;
    let mut other = cluster.proxies[0].raw().await;
    for n in 0..100 {
        assert_eq!(other.command(&format!("SET o{n} 1")).await, "+OK");
    }
    let rss = cluster.proxies[0].process.rss();
    assert!(rss < 106 << 20, "the proxy holds {} MiB", rss >> 20);
    let expected = format!("$10000 {value}");
    for n in 0..20_000 {
        assert_eq!(slow.reply().await, expected, "reply {n}");
    }
}

#[tokio::test]
async fn a_client_that_never_takes_its_replies_is_closed_in_the_end() {
    let limit = ["--output-limit", "32MiB", "--stall-timeout", "5s"];
    let cluster = Cluster::builder()
        .groups(1)
        .proxies(1)
        .proxy_args(&limit)
        .start()
        .await;
    let mut greedy = cluster.proxies[0].raw().await;
    let value = "x".repeat(4 << 20);
    assert_eq!(greedy.command(&format!("SET big {value}")).await, "+OK");
    let get = vec!["GET".to_owned(), "big".to_owned()];
    greedy.pipeline(&vec![get; 250]).await;
    tests::eventually(|| async {
        let (_, metrics) = cluster.proxies[0].get("/metrics").await;
        let closed = metrics
            .lines()
            .any(|line| line == "sluice_proxy_sessions 0");
        if closed {
            Ok(())
        } else {
            Err("it is still connected".to_owned())
        }
    })
    .await;
    let mut other = cluster.proxies[0].raw().await;
    assert_eq!(other.command("PING").await, "+PONG");
    let rss = cluster.proxies[0].process.rss();
    assert!(rss < 200 << 20, "the proxy holds {} MiB", rss >> 20);
}

#[tokio::test]
async fn what_changes_the_connection_does_not_overtake() {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let mut client = cluster.proxies[0].raw().await;
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    for n in 0..200 {
        let set = format!("SET k {n}");
        let of_protocol = [&set, "HELLO 3", "GET k", "HELLO 2", "GET k"].map(words);
        client.pipeline(&of_protocol).await;
        assert_eq!(client.reply().await, "+OK");
        client.reply().await;
        let value = format!("${} {n}", n.to_string().len());
        assert_eq!(client.reply().await, value, "behind HELLO 3");
        client.reply().await;
        assert_eq!(client.reply().await, value, "behind HELLO 2");
        let of_database = ["SET m 1", "MOVE m 1", "SELECT 1", "GETDEL m", "SELECT 0"].map(words);
        client.pipeline(&of_database).await;
        for expected in ["+OK", ":1", "+OK", "$1 1", "+OK"] {
            assert_eq!(client.reply().await, expected);
        }
    }
}
