//! What is known of proxies, and how those that are gone are forgotten.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use proto::v1;
use tests::{
    Cluster, Load, eventually,
    relay::{Fault, Relay},
};
use tokio::time::Instant;

async fn ids(cluster: &Cluster) -> Vec<String> {
    let mut admin = cluster.controller.admin().await;
    let list = admin.list_proxies(v1::ListProxiesRequest::default()).await;
    let proxies = list.unwrap().into_inner().proxies;
    proxies.into_iter().map(|proxy| proxy.id).collect()
}

async fn are(cluster: &Cluster, expected: &[&str]) {
    eventually(|| async {
        let ids = ids(cluster).await;
        match ids == expected {
            true => Ok(()),
            false => Err(format!("{ids:?}, not {expected:?}")),
        }
    })
    .await;
}

async fn describe(cluster: &Cluster, text: &str) {
    let mut admin = cluster.controller.admin().await;
    let request = v1::UpdateGroupRequest {
        id: "g1".to_owned(),
        description: text.to_owned(),
        ..v1::UpdateGroupRequest::default()
    };
    admin.update_group(request).await.unwrap();
}

#[tokio::test]
async fn a_proxy_that_is_gone_for_long_is_shut_out_and_forgotten() {
    let cluster = Cluster::builder().groups(2).proxies(2);
    let expiry = ["--proxy-expiry", "3s"];
    let mut cluster = cluster.controller_args(&expiry).start().await;
    let load = Load::start(vec![cluster.proxies[0].connect().await], |_| true);
    load.advance(500).await;
    cluster.proxies[1].process.kill();
    are(&cluster, &["p1"]).await;
    load.advance(500).await;
    assert_eq!(load.stop().await, Vec::<String>::new());
    // It may come again.
    let args = ["--controller", &cluster.controller.addr, "--id", "p2"];
    let args = args.map(str::to_owned);
    cluster.proxies[1] = tests::Proxy::start(cluster.dir.path(), "p2-again", &args).await;
    are(&cluster, &["p1", "p2"]).await;
    cluster.settle().await;
    let mut client = cluster.proxies[1].raw().await;
    assert_eq!(client.command("SET a 1").await, "+OK");
}

#[tokio::test]
async fn nobody_is_forgotten_whom_a_server_cannot_shut_out() {
    let cluster = Cluster::builder().groups(2).proxies(2);
    let expiry = ["--proxy-expiry", "2s"];
    let mut cluster = cluster.controller_args(&expiry).start().await;
    cluster.groups[1][0].process.stop();
    cluster.proxies[1].process.kill();
    eventually(|| async {
        let log = cluster.controller.process.log();
        match log.contains("cannot be forgotten yet") {
            true => Ok(()),
            false => Err(log),
        }
    })
    .await;
    assert_eq!(ids(&cluster).await, ["p1", "p2"]);
    cluster.groups[1][0].process.resume();
}

/// The fields of each line of `sluice proxy list`.
fn list(cluster: &Cluster) -> Vec<Vec<String>> {
    let (is_done, text) = cluster.controller.sluice(&["proxy", "list"]);
    assert!(is_done, "{text}");
    let fields = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    text.lines().map(fields).collect()
}

#[tokio::test]
async fn the_list_says_how_far_a_proxy_is_behind() {
    let zone = ["--zone", "east"];
    let cluster = Cluster::builder().groups(1).proxies(2).proxy_args(&zone);
    let cluster = cluster.start().await;
    cluster.proxies[1].process.stop();
    for text in ["one", "two", "three"] {
        describe(&cluster, text).await;
    }
    let lines = eventually(|| async {
        let lines = list(&cluster);
        match lines[1][4] == "0" {
            true => Ok(lines),
            false => Err(format!("{lines:?}")),
        }
    })
    .await;
    assert_eq!(
        lines[0],
        [
            "ID", "ADDRESS", "STATUS", "TOPOLOGY", "LAG", "SESSIONS", "REQ/S", "SEEN", "VERSION",
            "ZONE"
        ]
    );
    assert_eq!((lines[1][0].as_str(), lines[1][9].as_str()), ("p1", "east"));
    assert_eq!((lines[2][0].as_str(), lines[2][4].as_str()), ("p2", "3"));
    cluster.proxies[1].process.resume();
    cluster.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_says_what_proxies_do_and_when_they_were_heard() {
    let cluster = Cluster::builder().groups(1).proxies(2).start().await;
    let mut idle = Vec::new();
    for _ in 0..4 {
        idle.push(cluster.proxies[0].raw().await);
    }
    let mut busy = cluster.proxies[0].raw().await;
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    let asks = tokio::spawn(async move {
        loop {
            assert_eq!(busy.command("SET a 1").await, "+OK");
            count.fetch_add(1, Relaxed);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let number = |lines: &[Vec<String>], line: usize, field: usize| {
        let digits = lines[line][field].replace(',', "");
        digits.trim_end_matches('s').parse::<u64>().unwrap_or(0) // `-`: none
    };
    eventually(|| async {
        let lines = list(&cluster);
        let is_known = number(&lines, 1, 5) == 5 && number(&lines, 1, 6) > 0;
        is_known.then_some(()).ok_or(format!("{lines:?}"))
    })
    .await;
    let (begun, before) = (Instant::now(), asked.load(Relaxed));
    let mut told = Vec::new();
    for _ in 0..9 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let lines = list(&cluster);
        let sessions = [1, 2].map(|line| number(&lines, line, 5));
        assert_eq!(sessions, [5, 0], "{lines:?}");
        assert_eq!(number(&lines, 2, 6), 0, "{lines:?}");
        let seen = [1, 2].map(|line| number(&lines, line, 7));
        assert!(seen.iter().all(|seconds| *seconds <= 5), "{lines:?}");
        told.push(number(&lines, 1, 6));
    }
    let done = asked.load(Relaxed) - before;
    let true_rate = done as f64 / begun.elapsed().as_secs_f64();
    // What it was in one second is not what it was in all.
    told.sort_unstable();
    let median = told[told.len() / 2] as f64;
    assert!(
        (0.5 * true_rate..=1.5 * true_rate).contains(&median),
        "{told:?}, and there were {true_rate} requests per second"
    );

    // Who says nothing was seen the longer ago.
    cluster.proxies[1].process.stop();
    eventually(|| async {
        let lines = list(&cluster);
        let [first, second] = [1, 2].map(|line| number(&lines, line, 7));
        let is_late = first <= 2 && second >= 4;
        is_late.then_some(()).ok_or(format!("{lines:?}"))
    })
    .await;
    cluster.proxies[1].process.resume();
    asks.abort();
}

/// It lives, serves clients, and knows nothing of it: the way to the controller is cut.
#[tokio::test]
async fn a_proxy_that_is_removed_while_it_lives_can_use_no_server_until_it_is_back() {
    let mut cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let relay = Relay::start(&cluster.controller.addr);
    let args = ["--controller", &relay.addr, "--id", "p2"].map(str::to_owned);
    let proxy = tests::Proxy::start(cluster.dir.path(), "p2", &args).await;
    cluster.proxies.push(proxy);
    cluster.settle().await;
    let load = Load::start(vec![cluster.proxies[0].connect().await], |_| true);
    let mut client = cluster.proxies[1].raw().await;
    assert_eq!(client.command("SET a 1").await, "+OK");

    relay.set(Fault::Cut);
    let mut admin = cluster.controller.admin().await;
    let request = v1::DeleteProxyRequest {
        id: "p2".to_owned(),
        ..v1::DeleteProxyRequest::default()
    };
    let removed = eventually(|| {
        let (mut admin, request) = (admin.clone(), request.clone());
        async move { admin.delete_proxy(request).await.map_err(|e| e.to_string()) }
    });
    let unreached = removed.await.into_inner().unreached_servers;
    assert_eq!(unreached, Vec::<String>::new());
    // However often it tries, on whatever connection.
    for _ in 0..20 {
        let reply = client.command("SET a 2").await;
        assert!(reply.starts_with('-'), "{reply}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut other = cluster.proxies[0].raw().await;
    assert_eq!(other.command("GET a").await, "$1 1");
    load.advance(500).await;
    assert_eq!(load.stop().await, Vec::<String>::new());

    relay.heal();
    are(&cluster, &["p1", "p2"]).await;
    cluster.settle().await;
    assert_eq!(client.command("SET a 3").await, "+OK");
    admin.get_cluster(v1::GetClusterRequest {}).await.unwrap();
}
