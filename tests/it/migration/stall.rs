//! A server that hangs while slots move: the source, the target, or what follows the target.

use std::time::{Duration, Instant};

use controlplane::{
    failpoint::Point,
    migration::{BATCH_MAX, HOLD_BUDGET},
};
use proto::{
    Slot,
    v1::{ChangeMigrationRequest, migration::Phase},
};
use redis::cmd;
use tests::{
    Cluster, Raw, Workload,
    migration::{MOVED, assert_keys_are_at_their_owners, assert_no_errors, create, enters, get},
    within,
};
use tokio::time::sleep;

use super::{
    copied, fill,
    hang::{is_stopped, rig},
    waits,
};

const SLOTS: &str = "0-299";

async fn resume(cluster: &Cluster, change: &ChangeMigrationRequest) {
    let mut admin = cluster.controller.admin().await;
    admin.resume_migration(change.clone()).await.unwrap();
}

/// One of two groups' servers hangs from each of these steps on, longer than it is waited for.
async fn hangs_at(group: usize, seed: u64, points: &[Point]) {
    let mut cluster = Cluster::builder().groups(2).proxies(2).start().await;
    let workload = Workload::start(cluster.addrs(), seed);
    for (point, target) in points.iter().zip(["g2", "g1"].into_iter().cycle()) {
        rig(&mut cluster, *point).await;
        workload.advance(300).await;
        let id = create(&cluster.controller, SLOTS, target).await.id;
        is_stopped(&cluster, *point).await;
        let source = usize::from(target == "g1");
        let server = &cluster.groups[(source + group) % 2][0].process;
        server.stop();
        cluster.controller.process.resume();
        sleep(Duration::from_secs(6)).await;
        server.resume();
        enters(&cluster.controller, &id, Phase::Succeeded).await;
    }
    workload.advance(300).await;
    let report = workload.stop().await;
    assert_eq!(report.violations, Vec::<String>::new());
    assert_keys_are_at_their_owners(&cluster).await;
}

#[tokio::test]
async fn a_source_hangs_and_nothing_is_lost() {
    let points = [
        Point::CopyBegun,
        Point::HoldCommitted,
        Point::Settle,
        Point::Reap,
    ];
    hangs_at(0, 81, &points).await;
}

#[tokio::test]
async fn a_target_hangs_and_nothing_is_lost() {
    let points = [
        Point::CopyBegun,
        Point::HoldCommitted,
        Point::Settle,
        Point::MoveCommitted,
    ];
    hangs_at(1, 82, &points).await;
}

/// It hangs already when slots are held: they are not, for longer than otherwise.
#[tokio::test]
async fn a_target_that_hangs_makes_no_hold_longer() {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    fill(&cluster, 200).await;
    let change = copied(&cluster, SLOTS).await;
    let target = &cluster.groups[1][0].process;
    target.stop();
    // By then it was asked whether it is still what it was.
    sleep(Duration::from_millis(1100)).await;
    resume(&cluster, &change).await;
    let mut client = Raw::connect(&cluster.proxies[0].addr).await;
    // Of the first batch, which is held while the target hangs.
    let mut keys = (0..200).map(|n| (n.to_string(), Slot::of_key(format!("k{n}").as_bytes())));
    let (n, _) = keys.find(|(_, slot)| slot.index() < BATCH_MAX).unwrap();
    let expected = format!("${} {n}", n.len());
    let mut slowest = Duration::ZERO;
    let held = within(MOVED, || async {
        let migration = get(&cluster.controller, &change.id).await?;
        match migration.longest_hold_ms > 0.0 {
            true => Ok(migration),
            false => Err(format!("{migration:?}")),
        }
    });
    tokio::pin!(held);
    let held = loop {
        tokio::select! {
            held = &mut held => break held,
            () = sleep(Duration::from_millis(10)) => {
                let begun = Instant::now();
                assert_eq!(client.command(&format!("GET k{n}")).await, expected);
                slowest = slowest.max(begun.elapsed());
            }
        }
    };
    let budget = HOLD_BUDGET.as_secs_f64() * 1000.0;
    assert!(held.longest_hold_ms < budget * 2.0, "{held:?}");
    let waited = HOLD_BUDGET / 2..HOLD_BUDGET * 2;
    assert!(waited.contains(&slowest), "{slowest:?}");
    target.resume();
    enters(&cluster.controller, &change.id, Phase::Succeeded).await;
    assert_keys_are_at_their_owners(&cluster).await;
}

/// What has moved is to be at a replica of the target, if that has any. While none follows it, nothing is held,
/// and no slot is blamed for that.
#[tokio::test]
async fn a_replica_that_hangs_is_waited_for() {
    let cluster = Cluster::builder()
        .groups(2)
        .replicas(1)
        .proxies(2)
        .start()
        .await;
    let workload = Workload::start(cluster.addrs(), 83);
    workload.advance(500).await;
    let change = copied(&cluster, SLOTS).await;
    let [_, replica] = &cluster.groups[1][..] else {
        panic!("there is one replica");
    };
    replica.process.stop();
    resume(&cluster, &change).await;
    // Nobody knows yet that it hangs.
    waits(&cluster, &change.id, "no replica of the target had in time").await;
    waits(
        &cluster,
        &change.id,
        "waiting for a replica to follow the target",
    )
    .await;
    let waiting = get(&cluster.controller, &change.id).await.unwrap();
    assert!((1..=3).contains(&waiting.cut_overs), "{waiting:?}");
    assert_eq!(waiting.moved_slots, "", "{waiting:?}");
    replica.process.resume();
    let moved = enters(&cluster.controller, &change.id, Phase::Succeeded).await;
    assert_eq!(moved.moved_slots, SLOTS);
    let report = workload.stop().await;
    assert_eq!(report.violations, Vec::<String>::new());
    assert_no_errors(&report);
    assert_keys_are_at_their_owners(&cluster).await;
    let mut primary = cluster.groups[1][0].connect().await;
    let followed: u32 = cmd("WAIT")
        .arg(1)
        .arg(1000)
        .query_async(&mut primary)
        .await
        .unwrap();
    assert_eq!(followed, 1);
}
