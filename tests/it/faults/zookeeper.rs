//! ZooKeeper cannot be reached for longer than a session lasts, in each phase of a move: nothing is decided
//! meanwhile, and whoever leads then ends it.

use super::*;
use crate::migration;

/// Longer than the session of a leader.
const AWAY: Duration = Duration::from_secs(3);

/// From when the leader asks for this to be recorded, which is not heard of before.
async fn from(cluster: &Cluster, edge: &Relay, record: &str, target: &str) {
    let leader = &cluster.controller.process;
    edge.set_for(leader, Fault::HoldFrom(record.as_bytes().to_vec()));
    let id = create(&cluster.controller, "200-299", target).await.id;
    edge.becomes(leader, Fault::Hold).await;
    sleep(AWAY).await;
    edge.heal();
    enters(&cluster.controller, &id, Phase::Succeeded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn zookeeper_is_away_in_each_phase() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let edge = Relay::start(&zookeeper.addr);
    let cluster = on_zookeeper(&edge, None).await;
    let workload = Workload::start(cluster.addrs(), 63);
    workload.advance(300).await;
    // It holds, and the slots would be given away.
    from(&cluster, &edge, "\"COMMITTED\"", "g2").await;
    // It reaps, and would have ended.
    from(&cluster, &edge, "\"SUCCEEDED\"", "g1").await;

    // It copies: so slowly that it does for as long.
    migration::fill(&cluster, 3000).await;
    let id = migration::create_slow(&cluster, "200-299", "g2").await.id;
    let copying = enters(&cluster.controller, &id, Phase::Copying).await;
    edge.set_for(&cluster.controller.process, Fault::BlackHole);
    sleep(AWAY).await;
    let same = get(&cluster.controller, &id).await.unwrap();
    assert_eq!(
        (same.phase(), same.revision),
        (Phase::Copying, copying.revision)
    );
    edge.heal();
    within(MOVED, || async {
        let mut admin = cluster.controller.admin().await;
        let hurry = UpdateMigrationRequest {
            id: id.clone(),
            ..UpdateMigrationRequest::default()
        };
        let hurried = admin.update_migration(hurry).await;
        hurried.map(drop).map_err(|e| e.to_string())
    })
    .await;
    enters(&cluster.controller, &id, Phase::Succeeded).await;
    assert_eq!(judge(&cluster, workload).await, Violations::new());
}
