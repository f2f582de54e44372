//! Slots move while somebody cannot be reached: one test for each edge.

use proto::v1::migration::Phase;
use tests::{
    Cluster, Fault, Workload,
    migration::{assert_keys_are_at_their_owners, create, enters},
};

/// It is fenced out of the source, and serves all else; what the source had it serves when it is back.
#[tokio::test]
async fn a_proxy_without_a_controller_is_fenced_out_of_what_moves() {
    let cluster = Cluster::builder()
        .groups(2)
        .proxies(2)
        .relayed()
        .start()
        .await;
    let workload = Workload::start(cluster.addrs(), 21);
    workload.advance(1000).await;
    let edge = &cluster.edges().controllers[0];
    let cut_off = &cluster.proxies[1].process;
    let migration = create(&cluster.controller, "0-199", "g2").await;
    enters(&cluster.controller, &migration.id, Phase::Copying).await;
    edge.set_for(cut_off, Fault::BlackHole);
    enters(&cluster.controller, &migration.id, Phase::Succeeded).await;
    edge.heal();
    cluster.settle().await;
    workload.advance(1000).await;
    let report = workload.stop().await;
    assert_eq!(report.violations, Vec::<String>::new());
    assert_keys_are_at_their_owners(&cluster).await;
}
