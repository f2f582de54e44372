//! Slots move under traffic, and no client notices.

use std::time::{Duration, Instant};

use controlplane::migration::{RATED_KEYS, RATED_PAUSE_MAX};
use proto::v1::{self, migration::Phase};
use redis::{cmd, pipe};
use tests::{
    Cluster, Raw, Server, Workload, ZooKeeper, eventually,
    migration::{
        MOVED, assert_keys_are_at_their_owners, assert_no_errors, assert_nobody_noticed, create,
        enters, get, migrate,
    },
    within,
};
use tokio::time::sleep;

mod blast;
mod fitness;
mod groups;
mod hang;
mod old;
mod parallel;
mod primary;
mod rebalance;
mod stall;
mod storm;
mod surplus;
mod tool;
mod verify;
mod versions;

/// Writes strings through a proxy.
pub(super) async fn fill(cluster: &Cluster, count: usize) {
    let mut fill = pipe();
    for n in 0..count {
        fill.cmd("SET").arg(format!("k{n}")).arg(n).ignore();
    }
    let mut client = cluster.proxies[0].connect().await;
    fill.exec_async(&mut client).await.unwrap();
}

/// Creates a migration that copies a few keys a second.
pub(super) async fn create_slow(cluster: &Cluster, slots: &str, target: &str) -> v1::Migration {
    let request = v1::CreateMigrationRequest {
        slots: slots.to_owned(),
        target_group_id: target.to_owned(),
        rate: 20,
        ..v1::CreateMigrationRequest::default()
    };
    let mut admin = cluster.controller.admin().await;
    admin.create_migration(request).await.unwrap().into_inner()
}

/// A move of the first group's slots to the second that has copied all, and is paused before the first hold.
async fn copied(cluster: &Cluster, slots: &str) -> v1::ChangeMigrationRequest {
    let mut admin = cluster.controller.admin().await;
    for _ in 0..5 {
        let request = v1::CreateMigrationRequest {
            slots: slots.to_owned(),
            target_group_id: "g2".to_owned(),
            rate: RATED_KEYS, // with that it holds nothing in the first second
            ..v1::CreateMigrationRequest::default()
        };
        let created = admin.create_migration(request).await.unwrap();
        let id = created.into_inner().id;
        within(MOVED, || async {
            let migration = get(&cluster.controller, &id).await?;
            let follows = migration.copy.as_ref().is_some_and(|copy| copy.following);
            match follows || migration.cut_overs > 0 {
                true => Ok(()),
                false => Err(format!("{migration:?}")),
            }
        })
        .await;
        let change = v1::ChangeMigrationRequest {
            id,
            ..v1::ChangeMigrationRequest::default()
        };
        let paused = admin.pause_migration(change.clone()).await;
        if paused.is_ok_and(|paused| paused.get_ref().cut_overs == 0) {
            waits(cluster, &change.id, "paused").await;
            return change;
        }
        // The machine is busy: it has begun to hold slots. There and back, and once more.
        admin.resume_migration(change.clone()).await.ok();
        enters(&cluster.controller, &change.id, Phase::Succeeded).await;
        migrate(cluster, slots, "g1").await;
    }
    panic!("it was never paused in time");
}

async fn hurry(cluster: &Cluster, id: &str) {
    let request = v1::UpdateMigrationRequest {
        id: id.to_owned(),
        ..v1::UpdateMigrationRequest::default()
    };
    let mut admin = cluster.controller.admin().await;
    admin.update_migration(request).await.unwrap();
}

/// Returns once it waits for these words.
async fn waits(cluster: &Cluster, id: &str, words: &str) {
    eventually(|| async {
        let migration = get(&cluster.controller, id).await?;
        let says = format!("{} {}", migration.waits_for, migration.reason);
        match says.contains(words) {
            true => Ok(()),
            false => Err(format!("{migration:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn slots_move_and_no_client_notices() {
    let cluster = Cluster::builder().groups(2).proxies(2).start().await;
    let workload = Workload::start(cluster.addrs(), 11);
    workload.advance(2000).await;
    let moved = migrate(&cluster, "0-299", "g2").await;
    assert_eq!(moved.moved_slots, "0-299");
    workload.advance(1000).await;
    migrate(&cluster, "200-299,600-899", "g1").await;
    workload.advance(1000).await;
    let report = workload.stop().await;
    assert_nobody_noticed(&cluster, &report);
    assert_keys_are_at_their_owners(&cluster).await;
}

#[tokio::test]
async fn a_third_group_gets_its_share_and_is_drained_again() {
    let mut cluster = Cluster::builder().groups(2).proxies(2).start().await;
    let workload = Workload::start(cluster.addrs(), 15);
    workload.advance(1000).await;
    let server = Server::start(cluster.dir.path(), "g3", &[]);
    server.answers().await;
    let mut admin = cluster.controller.admin().await;
    let group = v1::CreateGroupRequest {
        id: "g3".to_owned(),
        servers: vec![v1::ServerSpec {
            address: server.addr.clone(),
            zone: String::new(),
        }],
        ..v1::CreateGroupRequest::default()
    };
    admin.create_group(group).await.unwrap();
    cluster.groups.push(vec![server]);
    rebalance(&cluster, &[], [342, 341, 341]).await;
    rebalance(&cluster, &[("g3", 0)], [512, 512, 0]).await;
    workload.advance(500).await;
    let report = workload.stop().await;
    assert_nobody_noticed(&cluster, &report);
    assert_keys_are_at_their_owners(&cluster).await;
}

/// Half of the slots, which do not change, are four batches.
#[tokio::test]
async fn a_rate_spaces_holds() {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let begun = Instant::now();
    let request = v1::CreateMigrationRequest {
        slots: "0-511".to_owned(),
        target_group_id: "g2".to_owned(),
        rate: RATED_KEYS,
        ..v1::CreateMigrationRequest::default()
    };
    let mut admin = cluster.controller.admin().await;
    let id = admin
        .create_migration(request)
        .await
        .unwrap()
        .into_inner()
        .id;
    let moved = enters(&cluster.controller, &id, Phase::Succeeded).await;
    let took = begun.elapsed();
    assert!(moved.cut_overs >= 4, "{moved:?}");
    assert!(
        took >= RATED_PAUSE_MAX * moved.cut_overs as u32,
        "{took:?}: {moved:?}"
    );
}

/// Evens the groups out; then they own so many slots.
async fn rebalance(cluster: &Cluster, weights: &[(&str, u32)], owned: [u32; 3]) {
    let mut admin = cluster.controller.admin().await;
    let weight = |(group, weight): &(&str, u32)| v1::GroupWeight {
        group_id: (*group).to_owned(),
        weight: *weight,
    };
    let request = v1::RebalanceRequest {
        weights: weights.iter().map(weight).collect(),
        ..v1::RebalanceRequest::default()
    };
    let plan = admin.rebalance(request.clone()).await.unwrap().into_inner();
    assert_eq!(plan.migrations.len(), 2, "{plan:?}");
    let again = admin.rebalance(request).await.unwrap_err();
    assert!(again.message().contains("is not over"), "{again:?}");
    for migration in &plan.migrations {
        enters(&cluster.controller, &migration.id, Phase::Succeeded).await;
    }
    let groups = v1::ListGroupsRequest::default();
    let groups = admin.list_groups(groups).await.unwrap().into_inner().groups;
    let counts: Vec<u32> = groups.iter().map(|group| group.slot_count).collect();
    assert_eq!(counts, owned);
}

#[tokio::test]
async fn a_migration_waits_and_ends_as_its_operator_wants() {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let mut client = cluster.proxies[0].connect().await;
    for n in 0..2000 {
        let key = format!("key:{n}");
        cmd("SET")
            .arg(key)
            .arg(n)
            .exec_async(&mut client)
            .await
            .unwrap();
    }
    let migration = create(&cluster.controller, "0-511", "g2").await;
    let mut admin = cluster.controller.admin().await;
    let change = v1::ChangeMigrationRequest {
        id: migration.id.clone(),
        ..v1::ChangeMigrationRequest::default()
    };
    admin.pause_migration(change.clone()).await.unwrap();
    sleep(Duration::from_millis(500)).await;
    let paused = get(&cluster.controller, &migration.id).await.unwrap();
    assert!(paused.paused, "{paused:?}");
    assert_eq!(paused.moved_slots, "");
    admin.cancel_migration(change).await.unwrap();
    enters(&cluster.controller, &migration.id, Phase::Cancelled).await;
    assert_keys_are_at_their_owners(&cluster).await;
    let count: usize = cmd("DBSIZE").query_async(&mut client).await.unwrap();
    assert!((2000..=2010).contains(&count), "{count}");
}

#[tokio::test]
async fn a_proxy_that_hangs_does_not_hold_up_a_move_and_serves_nothing_stale() {
    let cluster = Cluster::builder().groups(2).proxies(3).start().await;
    let workload = Workload::start(cluster.addrs(), 12);
    workload.advance(2000).await;
    let migration = create(&cluster.controller, "0-299", "g2").await;
    enters(&cluster.controller, &migration.id, Phase::Copying).await;
    cluster.proxies[2].process.stop();
    enters(&cluster.controller, &migration.id, Phase::Succeeded).await;
    cluster.proxies[2].process.resume();
    workload.advance(1000).await;
    cluster.settle().await;
    // Of both sides; whoever was asked before, this one answers.
    let [mut others, mut hung] =
        [&cluster.proxies[0], &cluster.proxies[2]].map(|proxy| proxy.addr.clone());
    for key in ["hang:1", "hang:2", "foo"] {
        let (from, to) = (Raw::connect(&others), Raw::connect(&hung));
        let (mut from, mut to) = (from.await, to.await);
        assert_eq!(from.command(&format!("SET {key} new")).await, "+OK");
        assert_eq!(to.command(&format!("GET {key}")).await, "$3 new");
        std::mem::swap(&mut others, &mut hung);
    }
    let report = workload.stop().await;
    assert_eq!(report.violations, Vec::<String>::new());
    assert_keys_are_at_their_owners(&cluster).await;
}

/// Whoever leads next ends it, one way or the other, and nothing is lost.
#[tokio::test]
async fn a_leader_that_dies_in_the_middle_is_replaced_and_the_move_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let args = [
        "--zookeeper",
        &zookeeper.addr,
        "--zookeeper-session-timeout",
        "2s",
    ];
    let mut cluster = Cluster::builder()
        .groups(2)
        .proxies(2)
        .stand_bys(1)
        .controller_args(&args)
        .start()
        .await;
    let workload = Workload::start(cluster.addrs(), 13);
    workload.advance(2000).await;
    let migration = create(&cluster.controller, "0-399", "g2").await;
    enters(&cluster.controller, &migration.id, Phase::Copying).await;
    cluster.controller.process.kill();
    let next = &cluster.stand_bys[0];
    let moved = enters(next, &migration.id, Phase::Succeeded).await;
    assert_eq!(moved.moved_slots, "0-399");
    workload.advance(1000).await;
    let report = workload.stop().await;
    assert_eq!(report.violations, Vec::<String>::new());
    assert_no_errors(&report);
}

/// kill -9 of everybody in turn while slots go back and forth.
#[tokio::test]
async fn whoever_is_killed_while_slots_move_nothing_is_lost() {
    let mut cluster = Cluster::builder().groups(2).proxies(2).start().await;
    let workload = Workload::start(cluster.addrs(), 14);
    for cycle in 0..6 {
        workload.advance(500).await;
        let (slots, target) = if cycle % 2 == 0 {
            ("0-199", "g2")
        } else {
            ("0-199", "g1")
        };
        let migration = create(&cluster.controller, slots, target).await;
        sleep(Duration::from_millis(100 * (cycle % 3))).await;
        match cycle % 3 {
            0 => {
                let proxy = &mut cluster.proxies[0];
                proxy.process.kill();
                proxy.restart();
            }
            1 => {
                cluster.controller.process.kill();
                cluster.controller.restart();
            }
            _ => {
                let server: &mut Server = &mut cluster.groups[cycle as usize / 3][0];
                server.process.kill();
                server.restart();
                server.answers().await;
            }
        }
        enters(&cluster.controller, &migration.id, Phase::Succeeded).await;
    }
    workload.advance(1000).await;
    let report = workload.stop().await;
    assert_eq!(report.violations, Vec::<String>::new());
    assert_keys_are_at_their_owners(&cluster).await;
}
