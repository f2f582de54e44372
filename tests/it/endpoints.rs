//! `sluice` with the addresses of several controllers finds the one that leads, and never has it do a thing
//! twice.

use proto::v1::cluster::Role;
use tests::{Cluster, Fault, Relay, ZooKeeper, operator::becomes, sluice};

async fn cluster(zookeeper: &ZooKeeper, stand_bys: usize) -> Cluster {
    let args = ["--zookeeper", &zookeeper.addr];
    let cluster = Cluster::builder().groups(1).stand_bys(stand_bys);
    let cluster = cluster.controller_args(&args).start().await;
    becomes(&cluster.controller, Role::Leader).await;
    for stand_by in &cluster.stand_bys {
        becomes(stand_by, Role::StandBy).await;
    }
    cluster
}

fn describe(endpoints: &[&str], text: &str) -> (bool, String) {
    let args = ["group", "update", "g1", "--description", text];
    sluice(&endpoints.join(","), &args)
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_named_first_the_leader_does_it() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let cluster = cluster(&zookeeper, 2).await;
    let [one, two] = [0, 1].map(|index| cluster.stand_bys[index].addr.as_str());
    // Nothing listens on port 1.
    let (leads, nobody) = (cluster.controller.addr.as_str(), "127.0.0.1:1");
    // By an address under which it is not known, too.
    let relay = Relay::start(leads);
    let orders = [
        vec![one, two, leads],
        vec![one, leads, two],
        vec![nobody, two, nobody, leads],
        vec![one, two, &relay.addr],
        vec![leads],
    ];
    for (number, endpoints) in orders.iter().enumerate() {
        let text = format!("change {number}");
        let (is_done, said) = describe(endpoints, &text);
        assert!(is_done, "{endpoints:?}: {said}");
        let (_, said) = cluster.controller.sluice(&["group", "get", "g1"]);
        assert!(said.contains(&text), "{said}");
    }
    let (is_done, said) = describe(&[one, two], "never");
    assert!(!is_done && said.contains("name all controllers"), "{said}");
    assert!(said.contains(&format!("{leads} leads")), "{said}");
}

/// Its answer is lost, and others are named that would do it.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_may_have_been_done_is_not_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let cluster = cluster(&zookeeper, 1).await;
    let relay = Relay::start(&cluster.controller.addr);
    let (leads, follows) = (
        cluster.controller.addr.as_str(),
        &*cluster.stand_bys[0].addr,
    );
    for endpoints in [
        vec![&*relay.addr, follows, leads],
        vec![follows, &relay.addr],
    ] {
        let text = format!("asked of {} controllers", endpoints.len());
        relay.set(Fault::SwallowReply(text.clone().into_bytes()));
        let (is_done, said) = describe(&endpoints, &text);
        assert!(!is_done, "{said}");
        assert!(said.contains("was lost before it answered"), "{said}");
        assert!(said.contains("look whether it was done"), "{said}");
    }
    // What only shows is asked again, of the stand-by. In gRPC, the id is a field of the request.
    relay.set(Fault::SwallowReply(b"\n\x02g1".to_vec()));
    let (is_done, said) = sluice(&[&*relay.addr, follows].join(","), &["group", "get", "g1"]);
    assert!(is_done && said.contains("Slots:"), "{said}");
}
