//! What is known of proxies, and how those that are gone are forgotten.

use std::process::Command;

use proto::v1;
use tests::{Cluster, Load, binary, eventually};

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

#[tokio::test]
async fn the_list_says_how_far_a_proxy_is_behind() {
    let zone = ["--zone", "east"];
    let cluster = Cluster::builder().groups(1).proxies(2).proxy_args(&zone);
    let cluster = cluster.start().await;
    cluster.proxies[1].process.stop();
    for text in ["one", "two", "three"] {
        describe(&cluster, text).await;
    }
    let lines = || {
        let output = Command::new(binary("sluice"))
            .args(["--endpoint", &cluster.controller.addr, "proxy", "list"])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let fields = |line: &str| line.split_whitespace().map(str::to_owned).collect();
        text.lines().map(fields).collect::<Vec<Vec<String>>>()
    };
    let lines = eventually(|| async {
        let lines = lines();
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
