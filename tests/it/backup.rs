//! A cluster is moved to another store, and back to an older state, from a file.

use std::{
    fs,
    path::{Path, PathBuf},
};

use proto::v1;
use tests::{Cluster, Controller, Load, Proxy, ZooKeeper};

fn done(controller: &Controller, args: &[&str]) -> String {
    let (success, said) = controller.sluice(args);
    assert!(success, "{args:?}: {said}");
    said
}

fn refused(controller: &Controller, args: &[&str], part: &str) {
    let (success, said) = controller.sluice(args);
    assert!(!success && said.contains(part), "{args:?}: {said}");
}

async fn cluster(controller: &Controller) -> v1::Cluster {
    let mut admin = controller.admin().await;
    let request = v1::GetClusterRequest {};
    admin.get_cluster(request).await.unwrap().into_inner()
}

/// What proxies route by, without the version.
async fn routing(controller: &Controller) -> v1::Topology {
    let mut admin = controller.admin().await;
    let request = v1::GetTopologyRequest {};
    let topology = admin.get_topology(request).await.unwrap().into_inner();
    v1::Topology {
        version: None,
        ..topology
    }
}

/// The file with one character more or another, as `edit` has it.
fn spoilt(file: &Path, edit: impl FnOnce(String) -> String) -> PathBuf {
    let text = edit(fs::read_to_string(file).unwrap());
    let path = file.with_extension("spoilt");
    fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn a_cluster_moves_to_zookeeper_and_back_and_no_client_notices() {
    let mut cluster_here = Cluster::builder().groups(2).start().await;
    let dir = cluster_here.dir.path().to_owned();
    let zookeeper = ZooKeeper::start(&dir).await;
    let args = ["--zookeeper", &zookeeper.addr].map(str::to_owned);
    let there = Controller::start_as(&dir, "there", &args).await;
    let back = Controller::start_as(&dir, "back", &[]).await;
    let here = &cluster_here.controller;
    let all = format!("{},{},{}", here.addr, there.addr, back.addr);
    for id in ["p1", "p2"] {
        let args = ["--controller", &all, "--id", id].map(str::to_owned);
        cluster_here
            .proxies
            .push(Proxy::start(&dir, id, &args).await);
    }
    cluster_here.settle().await;
    let load = Load::start(cluster_here.connect_all().await, |_| true);
    load.advance(1_000).await;

    let file = dir.join("demo.json");
    let path = file.to_str().unwrap();
    let said = done(here, &["export", path]);
    assert!(said.contains("Exported 2 groups and 2 proxies"), "{said}");
    let (before, was) = (routing(here).await, cluster(here).await);
    let fresh = cluster(&there).await;
    assert_ne!(fresh.id, was.id);

    // A damaged file changes nothing.
    let port = &cluster_here.groups[0][0].port.to_string();
    let other = spoilt(&file, |text| text.replacen(port, "1", 1));
    refused(&there, &["restore", other.to_str().unwrap()], "is damaged");
    let half = spoilt(&file, |text| text[..text.len() / 2].to_owned());
    refused(&there, &["restore", half.to_str().unwrap()], "is no backup");
    let said = done(&there, &["restore", path, "--dry-run"]);
    assert!(said.contains("Would restore cluster"), "{said}");
    assert_eq!(cluster(&there).await, fresh);

    cluster_here.controller.process.kill();
    load.advance(1_000).await;
    done(&there, &["restore", path]);
    let now = cluster(&there).await;
    assert_eq!(now.id, was.id);
    assert!(now.revision > was.revision && now.leader_term > was.leader_term);
    assert_eq!(routing(&there).await, before);
    cluster_here.controller = there;
    cluster_here.settle().await;
    let described = ["group", "update", "g1", "--description", "moved"];
    done(&cluster_here.controller, &described);
    cluster_here.settle().await;
    load.advance(1_000).await;
    is_what_the_next_process_finds(&mut cluster_here).await;

    // From ZooKeeper to a folder, in the same way.
    let there = &cluster_here.controller;
    done(there, &["export", path]);
    let (before, was) = (routing(there).await, cluster(there).await);
    cluster_here.controller.process.kill();
    load.advance(1_000).await;
    done(&back, &["restore", path]);
    let now = cluster(&back).await;
    assert_eq!(now.id, was.id);
    assert!(now.revision > was.revision && now.leader_term > was.leader_term);
    assert_eq!(routing(&back).await, before);
    assert!(done(&back, &["group", "get", "g1"]).contains("moved"));
    cluster_here.controller = back;
    cluster_here.settle().await;
    let described = ["group", "update", "g1", "--description", "moved back"];
    done(&cluster_here.controller, &described);
    cluster_here.settle().await;
    load.advance(1_000).await;
    is_what_the_next_process_finds(&mut cluster_here).await;
    assert_eq!(load.stop().await, Vec::<String>::new());
}

async fn is_what_the_next_process_finds(cluster_here: &mut Cluster) {
    let before = cluster(&cluster_here.controller).await;
    cluster_here.controller.process.kill();
    cluster_here.controller.restart();
    cluster_here.settle().await;
    let after = cluster(&cluster_here.controller).await;
    assert_eq!(after.id, before.id);
    assert!(after.leader_term >= before.leader_term && after.revision >= before.revision);
}

#[tokio::test]
async fn an_older_state_is_restored_only_if_that_is_said() {
    let cluster_here = Cluster::builder().groups(2).proxies(1).start().await;
    let controller = &cluster_here.controller;
    let described = |text| {
        done(
            controller,
            &["group", "update", "g1", "--description", text],
        )
    };
    let description = || done(controller, &["group", "get", "g1"]);
    described("old");
    let file = cluster_here.dir.path().join("old.json");
    let path = file.to_str().unwrap();
    done(controller, &["export", path]);
    described("new");
    let part = "say that it is to replace them";
    refused(controller, &["restore", path], part);
    assert!(description().contains("new"));
    let was = cluster(controller).await;
    done(controller, &["restore", path, "--replace"]);
    assert!(description().contains("old"));
    let now = cluster(controller).await;
    assert_eq!(now.leader_term, was.leader_term + 1);
    assert!(now.revision > was.revision);
    assert_eq!(now.id, was.id);
    cluster_here.settle().await;
    let mut client = cluster_here.proxies[0].raw().await;
    assert_eq!(client.command("SET a 1").await, "+OK");

    // The backup of one cluster is nothing for another one.
    let other = Cluster::builder().groups(1).start().await;
    let part = "the backup is of cluster";
    refused(&other.controller, &["restore", path, "--replace"], part);
}
