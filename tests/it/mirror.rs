//! The copy that a controller keeps of what is in ZooKeeper: whatever becomes of its files, it is what it was
//! or is made again.

use std::{fs, process::Command};

use proto::v1::cluster::Role;
use tests::{
    Cluster, SOON, ZooKeeper,
    disk::SmallDisk,
    operator::{Operator, becomes},
    spoil::Sample,
    within,
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
    let rebuilt = "sluice_controller_mirrors_rebuilt_total";
    fs::remove_dir_all(&mirror).unwrap();
    operator.works().await;
    assert!(mirror.exists());
    assert!(cluster.controller.process.log().contains("made anew"));
    assert_eq!(cluster.controller.counter(rebuilt).await, 1);
    operator.works().await;
    // Also if nothing is changed.
    fs::remove_dir_all(&mirror).unwrap();
    within(3 * SOON, || async {
        match cluster.controller.counter(rebuilt).await {
            2 => Ok(()),
            other => Err(format!("made again {other} times")),
        }
    })
    .await;
    has_a_mirror(&mut cluster, &mut zookeeper, &operator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_whose_disk_hangs_changes_what_it_is_asked_to_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut zookeeper = ZooKeeper::start(dir.path()).await;
    let mut cluster = cluster(&zookeeper).await;
    let mut operator = Operator::new(&cluster);
    operator.works().await;
    // Whoever opens a pipe waits for somebody at the other end.
    let witness = cluster.controller.data_dir().join("mirror/revision");
    fs::remove_file(&witness).unwrap();
    let made = Command::new("mkfifo").arg(&witness).status().unwrap();
    assert!(made.success());
    for _ in 0..5 {
        operator.works().await;
    }
    let log = cluster.controller.process.log();
    assert_eq!(log.matches("nobody waits for it").count(), 1, "{log}");
    assert_eq!(log.matches(" leads ").count(), 1, "{log}");
    // It hangs no more, and fails: that is no file.
    let pipe = fs::File::options().read(true).write(true).open(&witness);
    fs::remove_file(&witness).unwrap();
    drop(pipe.unwrap());
    within(3 * SOON, || async {
        let log = cluster.controller.process.log();
        match log.contains("made anew") {
            true => Ok(()),
            false => Err(log),
        }
    })
    .await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_whose_disk_is_full_starts_without_a_mirror_and_has_one_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut zookeeper = ZooKeeper::start(dir.path()).await;
    let mut cluster = cluster(&zookeeper).await;
    let mut operator = Operator::new(&cluster);
    operator.works().await;
    cluster.controller.process.kill();
    let Some(disk) = SmallDisk::mount(&cluster.controller.data_dir(), "1m") else {
        return;
    };
    disk.fill();
    cluster.controller.restart();
    becomes(&cluster.controller, Role::Leader).await;
    for _ in 0..5 {
        operator.works().await;
    }
    let log = cluster.controller.process.log();
    assert_eq!(log.matches("going on without one").count(), 1, "{log}");
    assert!(!log.contains("made anew"), "{log}");
    let failed = "sluice_controller_mirrors_failed_total";
    assert!(cluster.controller.counter(failed).await > 0);
    disk.make_room();
    within(3 * SOON, || async {
        let log = cluster.controller.process.log();
        match log.contains("mirror is kept again") {
            true => Ok(()),
            false => Err(log),
        }
    })
    .await;
    has_a_mirror(&mut cluster, &mut zookeeper, &operator).await;
}
