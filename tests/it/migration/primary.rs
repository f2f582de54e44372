//! A group gets another primary in the middle of a migration.

use proto::v1::migration::Phase;
use redis::cmd;
use tests::{
    Cluster, Relay, ZooKeeper, eventually,
    migration::{assert_keys_are_at_their_owners, enters},
};

use super::{create_slow, fill, hurry};

/// What the leader knew of the one before counts for nothing: the copy begins anew, when the new one has been
/// claimed, too. It is the same server here, at another address, so that nothing is lost by it; a person has
/// written it to ZooKeeper.
#[tokio::test]
async fn another_primary_is_claimed_before_anything_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let cluster = Cluster::builder().groups(2).proxies(1);
    let args = ["--zookeeper", &zookeeper.addr];
    let cluster = cluster.controller_args(&args).start().await;
    let client = zookeeper.connect().await;
    fill(&cluster, 2000).await;
    let mut relays = Vec::new();
    for (group, slots) in [(0, "0-99"), (1, "100-199")] {
        let id = create_slow(&cluster, slots, "g2").await.id;
        enters(&cluster.controller, &id, Phase::Copying).await;
        let relay = Relay::start(&cluster.groups[group][0].addr);
        let path = format!("/sluice/test/groups/g{}", group + 1);
        let (data, stat) = client.get_data(&path).await.unwrap();
        let mut record: serde_json::Value = serde_json::from_slice(&data).unwrap();
        record["servers"][0]["address"] = relay.addr.clone().into();
        let data = serde_json::to_vec(&record).unwrap();
        let written = client.set_data(&path, &data, Some(stat.version)).await;
        written.unwrap();
        // Once by who looks after its record, and once for the migration.
        let fenced = format!("fenced server={}", relay.addr);
        eventually(|| async {
            let log = cluster.controller.process.log();
            match log.matches(&fenced).count() {
                2.. => Ok(()),
                count => Err(format!("{count} times {fenced}")),
            }
        })
        .await;
        let log = cluster.controller.process.log();
        assert_eq!(log.matches("a primary is another").count(), group + 1);
        hurry(&cluster, &id).await;
        enters(&cluster.controller, &id, Phase::Succeeded).await;
        relays.push(relay);
    }
    cluster.settle().await;
    assert_keys_are_at_their_owners(&cluster).await;
    let mut client = cluster.proxies[0].connect().await;
    for n in 0..2000 {
        let key = format!("k{n}");
        let value: Option<usize> = cmd("GET").arg(key).query_async(&mut client).await.unwrap();
        assert_eq!(value, Some(n));
    }
}
