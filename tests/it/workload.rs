//! What clients of all kinds see is what one server could have answered; and it is noticed if it is not.

use std::{collections::BTreeMap, time::Duration};

use proto::{
    ClusterId, Group, GroupId, ServerAddr, SlotState, Topology, Version,
    v1::{self, subscribe_request::Message as Said, subscribe_response::Message as Say},
};
use tests::{Cluster, Proxy, ScriptedController, Server, Workload};
use tokio::time::sleep;

/// What checks others must pass what is right.
#[tokio::test]
async fn a_plain_server_is_found_right() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), "server", &[]);
    server.answers().await;
    let workload = Workload::start(vec![server.addr.clone()], 1);
    workload.advance(5000).await;
    let report = workload.stop().await;
    assert_eq!(report.violations, Vec::<String>::new());
    assert_eq!(report.errors, BTreeMap::new());
}

#[tokio::test]
async fn a_cluster_is_found_right() {
    let cluster = Cluster::builder().groups(2).proxies(2).start().await;
    let addrs = cluster.proxies.iter().map(|p| p.addr.clone()).collect();
    let workload = Workload::start(addrs, 2);
    workload.advance(5000).await;
    let report = workload.stop().await;
    assert_eq!(report.violations, Vec::<String>::new());
    assert_eq!(report.errors, BTreeMap::new());
}

/// Nothing that was acknowledged is lost, doubled or undone by the death of proxies, of a server that keeps
/// its log, or of the controller; nor by their standing still.
#[tokio::test]
async fn what_is_killed_and_stopped_loses_nothing() {
    let mut cluster = Cluster::builder().groups(2).proxies(2).start().await;
    let addrs: Vec<String> = cluster.proxies.iter().map(|p| p.addr.clone()).collect();
    let workload = Workload::start(addrs, 3);
    for cycle in 0..6 {
        workload.advance(1000).await;
        match cycle % 3 {
            0 => {
                let proxy = &mut cluster.proxies[cycle % 2];
                proxy.process.kill();
                proxy.restart();
            }
            1 => {
                let server = &mut cluster.groups[cycle % 2][0];
                server.process.kill();
                sleep(Duration::from_millis(100)).await;
                server.restart();
            }
            _ => {
                cluster.proxies[1].process.stop();
                cluster.controller.process.kill();
                sleep(Duration::from_millis(300)).await;
                cluster.controller.restart();
                cluster.proxies[1].process.resume();
            }
        }
    }
    workload.advance(1000).await;
    for group in &cluster.groups {
        group[0].answers().await;
    }
    let report = workload.stop().await;
    assert_eq!(report.violations, Vec::<String>::new());
    assert!(
        report.errors.contains_key("lost"),
        "nobody noticed: {report:?}"
    );
}

/// A checker that never finds anything proves nothing: here slots change hands, and their keys do not.
#[tokio::test]
async fn a_slot_that_moves_without_its_keys_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let servers = ["g1", "g2"].map(|name| Server::start(dir.path(), name, &[]));
    for server in &servers {
        server.answers().await;
    }
    let mut controller = ScriptedController::start().await;
    let args = ["--controller", &controller.addr, "--id", "p1"];
    let proxy = Proxy::start(dir.path(), "p1", &args.map(str::to_owned)).await;
    let Said::Hello(_) = controller.hear().await else {
        panic!("no hello first")
    };
    let say = |epoch, owner| Say::Snapshot(v1::Topology::from(&topology(epoch, &servers, owner)));
    controller.say(say(1, "g1")).await;
    controller.hear().await;
    let workload = Workload::start(vec![proxy.addr.clone()], 4);
    workload.advance(3000).await;
    controller.say(say(2, "g2")).await;
    workload.advance(3000).await;
    let report = workload.stop().await;
    // Those that leave something in place for long; the others may have had luck.
    for kind in ["register", "counter", "list", "set", "big"] {
        let found = report.violations.iter().any(|v| v.starts_with(kind));
        assert!(found, "{kind} did not notice: {:?}", report.violations);
    }
}

fn topology(epoch: u64, servers: &[Server; 2], owner: &str) -> Topology {
    let version = Version {
        leader_term: 1,
        epoch,
    };
    let group = |(id, server): (&str, &Server)| Group {
        id: GroupId::new(id).unwrap(),
        primary: ServerAddr::new(&server.addr).unwrap(),
        replicas: Vec::new(),
    };
    let groups = ["g1", "g2"].into_iter().zip(servers).map(group);
    let owner = GroupId::new(owner).unwrap();
    let cluster = ClusterId::new("scripted").unwrap();
    Topology::new(cluster, version, groups, |_| {
        (Some(owner.clone()), SlotState::Serving)
    })
    .unwrap()
}
