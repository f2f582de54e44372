//! How many proxies a move may shut out.

use std::time::Duration;

use proto::v1::migration::Phase;
use redis::cmd;
use tests::{
    Cluster, Workload,
    migration::{assert_keys_are_at_their_owners, assert_only_what_was_not_executed, enters, get},
};
use tokio::time::sleep;

use super::{create_slow, fill, hurry, waits};

/// Of six, one may be. Are three silent, it is perhaps not they who are cut off: the source serves on, and
/// nothing moves. When two of them are back, the move goes on, without the third.
#[tokio::test]
async fn a_move_shuts_out_no_more_than_a_fifth_of_the_proxies() {
    let cluster = Cluster::builder().groups(2).proxies(6).start().await;
    fill(&cluster, 2000).await;
    let workload = Workload::start(cluster.addrs()[..3].to_vec(), 41);
    workload.advance(500).await;
    let id = create_slow(&cluster, "0-99", "g2").await.id;
    enters(&cluster.controller, &id, Phase::Copying).await;
    let silent = &cluster.proxies[3..];
    for proxy in silent {
        proxy.process.stop();
    }
    hurry(&cluster, &id).await;
    waits(&cluster, &id, "3 proxies").await;
    workload.advance(500).await;
    sleep(Duration::from_secs(4)).await;
    let migration = get(&cluster.controller, &id).await.unwrap();
    assert_eq!(migration.moved_slots, "", "{migration:?}");
    for proxy in &silent[1..] {
        proxy.process.resume();
    }
    enters(&cluster.controller, &id, Phase::Succeeded).await;
    silent[0].process.resume();
    workload.advance(500).await;
    let report = workload.stop().await;
    assert_eq!(report.violations, Vec::<String>::new());
    assert_only_what_was_not_executed(&report);
    assert_keys_are_at_their_owners(&cluster).await;
    // What it has not heard of it does not serve by what it knew.
    let mut client = silent[0].connect().await;
    for n in 0..2000 {
        let key = format!("k{n}");
        let value: Option<usize> = cmd("GET").arg(key).query_async(&mut client).await.unwrap();
        assert_eq!(value, Some(n));
    }
}

/// Nobody waits for a process that has ended, though it used the source when that was last looked at.
#[tokio::test]
async fn proxies_that_are_replaced_while_a_move_waits_for_them_do_not_block_it() {
    let mut cluster = Cluster::builder().groups(2).proxies(4).start().await;
    fill(&cluster, 2000).await;
    for proxy in &cluster.proxies {
        let mut client = proxy.connect().await;
        let _: Option<usize> = cmd("GET").arg("k0").query_async(&mut client).await.unwrap();
    }
    let id = create_slow(&cluster, "0-99", "g2").await.id;
    enters(&cluster.controller, &id, Phase::Copying).await;
    for proxy in &cluster.proxies[2..] {
        proxy.process.stop();
    }
    hurry(&cluster, &id).await;
    waits(&cluster, &id, "2 proxies that use the source").await;
    for proxy in &mut cluster.proxies[2..] {
        proxy.process.kill();
        proxy.restart();
    }
    enters(&cluster.controller, &id, Phase::Succeeded).await;
    assert_keys_are_at_their_owners(&cluster).await;
}
