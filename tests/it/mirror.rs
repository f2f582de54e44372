//! The copy that a controller keeps of what is in ZooKeeper: whatever becomes of its files, it is what it was
//! or is made again.

use std::fs;

use proto::v1::cluster::Role;
use tests::{
    Cluster, ZooKeeper,
    disk::SmallDisk,
    operator::{Operator, becomes},
    spoil::Sample,
};

#[tokio::test]
async fn files_that_are_cut_short_or_have_a_bit_flipped_are_whole_or_refused() {
    let sample = Sample::mirror(200).await;
    let (refused, _) = sample.cut();
    assert!(refused > 0, "no cut was noticed");
    sample.flip(31, 300);
}

async fn cluster(zookeeper: &ZooKeeper) -> Cluster {
    let args = [
        "--zookeeper",
        &zookeeper.addr,
        "--zookeeper-session-timeout",
        "2s",
    ];
    let cluster = Cluster::builder().groups(1).proxies(1);
    cluster.controller_args(&args).start().await
}

/// Without ZooKeeper, after a restart, it has all that was acknowledged: from its mirror.
async fn has_a_mirror(cluster: &mut Cluster, zookeeper: &mut ZooKeeper, operator: &Operator) {
    zookeeper.process.kill();
    cluster.controller.process.kill();
    cluster.controller.restart();
    becomes(&cluster.controller, Role::Adrift).await;
    operator.finds_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_removed_while_it_is_used_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut zookeeper = ZooKeeper::start(dir.path()).await;
    let mut cluster = cluster(&zookeeper).await;
    let mut operator = Operator::new(&cluster);
    operator.works().await;
    let mirror = cluster.controller.data_dir().join("mirror");
    fs::remove_dir_all(&mirror).unwrap();
    operator.works().await;
    assert!(mirror.exists());
    assert!(cluster.controller.process.log().contains("made anew"));
    let rebuilt = cluster
        .controller
        .counter("sluice_controller_mirrors_rebuilt_total");
    assert_eq!(rebuilt.await, 1);
    operator.works().await;
    has_a_mirror(&mut cluster, &mut zookeeper, &operator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_whose_disk_is_full_goes_on_without_a_mirror_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let mut zookeeper = ZooKeeper::start(dir.path()).await;
    let mut cluster = cluster(&zookeeper).await;
    let mut operator = Operator::new(&cluster);
    cluster.controller.process.kill();
    let Some(disk) = SmallDisk::mount(&cluster.controller.data_dir(), "4m") else {
        return;
    };
    cluster.controller.restart();
    becomes(&cluster.controller, Role::Leader).await;
    operator.works().await;
    disk.fill();
    let fails = |cluster: &Cluster| {
        let log = cluster.controller.process.log();
        log.contains("going on without one")
    };
    for _ in 0..500 {
        if fails(&cluster) {
            break;
        }
        operator.works().await;
    }
    assert!(fails(&cluster), "it always found room");
    operator.works().await;
    disk.make_room();
    operator.works().await;
    has_a_mirror(&mut cluster, &mut zookeeper, &operator).await;
}
