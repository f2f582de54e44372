//! Jodis clients find the proxies in ZooKeeper, as those of Codis.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;
use tests::{Cluster, Fault, Proxy, Relay, ZooKeeper, eventually, operator};
use tokio::time::{Instant, sleep};
use zookeeper_client::{Acls, Client, CreateMode};

const PATH: &str = "/jodis/demo";

/// What a real Codis proxy has written.
fn fixture() -> BTreeMap<String, Value> {
    let nodes = include_str!("../fixtures/codis-3.2/znodes.json");
    let nodes: Value = serde_json::from_str(nodes).unwrap();
    let mut nodes = nodes.as_object().unwrap().iter();
    let is_proxy = |(path, _): &(&String, _)| path.starts_with("/jodis/codis-demo/proxy-");
    let (_, node) = nodes.find(is_proxy).unwrap();
    serde_json::from_str(node["data"].as_str().unwrap()).unwrap()
}

/// Each node's session and fields, by the address of its proxy.
async fn nodes(client: &Client) -> BTreeMap<String, (i64, BTreeMap<String, Value>)> {
    let mut nodes = BTreeMap::new();
    for name in client.list_children(PATH).await.unwrap_or_default() {
        // One that goes away just now is none.
        if let Ok((data, stat)) = client.get_data(&format!("{PATH}/{name}")).await {
            let fields: BTreeMap<String, Value> = serde_json::from_slice(&data).unwrap();
            assert_eq!(name, format!("proxy-{}", fields["token"].as_str().unwrap()));
            let address = fields["addr"].as_str().unwrap().to_owned();
            nodes.insert(address, (stat.ephemeral_owner, fields));
        }
    }
    nodes
}

/// Returns the nodes, once they are those of these proxies.
async fn are(client: &Client, addresses: &[&str]) {
    eventually(|| async {
        let nodes = nodes(client).await;
        let mut expected = addresses.to_vec();
        expected.sort_unstable();
        match nodes.keys().eq(&expected) {
            true => Ok(()),
            false => Err(format!("{:?}, not {expected:?}", nodes.keys())),
        }
    })
    .await;
}

#[tokio::test]
async fn a_proxy_has_a_node_while_it_is_connected_whoever_leads() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let args = ["--zookeeper", &zookeeper.addr, "--jodis", PATH];
    let args = [&args[..], &["--zookeeper-session-timeout", "2s"]].concat();
    let cluster = Cluster::builder().groups(1).proxies(2).stand_bys(1);
    let mut cluster = cluster.controller_args(&args).start().await;
    let client = zookeeper.connect().await;
    let (one, two) = (
        cluster.proxies[0].addr.clone(),
        cluster.proxies[1].addr.clone(),
    );
    are(&client, &[&one, &two]).await;
    let found = nodes(&client).await;
    let (owner, fields) = &found[&one];
    assert_ne!(*owner, 0, "it must be ephemeral");
    let codis = fixture();
    assert!(fields.keys().eq(codis.keys()), "{fields:?} as {codis:?}");
    assert_eq!(fields["state"], codis["state"]);
    assert_eq!(fields["admin"], cluster.proxies[0].admin.as_str());
    let length = |fields: &BTreeMap<String, Value>| fields["token"].as_str().unwrap().len();
    assert_eq!(length(fields), length(&codis));

    // One that is not ours stays as it is.
    let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
    let foreign = format!("{PATH}/proxy-{}", codis["token"].as_str().unwrap());
    let data = serde_json::to_vec(&codis).unwrap();
    client.create(&foreign, &data, &options).await.unwrap();
    let there = codis["addr"].as_str().unwrap();

    cluster.proxies[1].process.kill();
    are(&client, &[&one, there]).await;

    // Another leads: the node never goes, and is the new leader's in the end.
    cluster.controller.process.kill();
    let deadline = Instant::now() + Duration::from_secs(40);
    loop {
        let now = nodes(&client).await;
        let (session, _) = now.get(&one).expect("its node is gone");
        if session != owner {
            break;
        }
        assert!(Instant::now() < deadline, "it is the old leader's yet");
        sleep(Duration::from_millis(50)).await;
    }
    sleep(Duration::from_secs(1)).await;
    are(&client, &[&one, there]).await;
    let (now, _) = client.get_data(&foreign).await.unwrap();
    assert_eq!(now, data);
}

/// It is late, and its session for the nodes lasts longer than it has led.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_leader_has_sent_that_was_replaced_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let longer = ["maxSessionTimeout=60000".to_owned()];
    let zookeeper = ZooKeeper::start_with(dir.path(), &longer).await;
    let relay = Relay::start(&zookeeper.addr);
    let args = ["--zookeeper", &relay.addr, "--jodis", PATH];
    let args = [&args[..], &["--zookeeper-session-timeout", "2s"]].concat();
    let cluster = Cluster::builder().groups(1).proxies(1).stand_bys(1);
    let mut cluster = cluster.controller_args(&args).start().await;
    let client = zookeeper.connect().await;
    let first = cluster.proxies[0].addr.clone();
    are(&client, &[&first]).await;

    // The node that it makes for the second proxy does not arrive.
    let old = &cluster.controller.process;
    relay.set_for(old, Fault::HoldFrom(b"\"online\"".to_vec()));
    let endpoints = [&cluster.controller.addr, &cluster.stand_bys[0].addr];
    let endpoints = endpoints.map(String::as_str).join(",");
    let args = ["--controller", &endpoints, "--id", "late"].map(str::to_owned);
    let mut late = Proxy::start(cluster.dir.path(), "late", &args).await;
    relay.becomes(old, Fault::Hold).await;
    cluster.controller.process.kill();
    are(&client, &[&first, &late.addr]).await;
    operator::leader([&cluster.controller, &cluster.stand_bys[0]]).await;
    late.process.kill();
    are(&client, &[&first]).await;
    relay.heal();
    for _ in 0..40 {
        sleep(Duration::from_millis(50)).await;
        let nodes = nodes(&client).await;
        assert!(nodes.keys().eq([&first]), "{:?}", nodes.keys());
    }
}
