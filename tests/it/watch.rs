//! A controller's watch in ZooKeeper: it is there again after the connection was lost, and tells of what
//! nothing else would tell of soon.

use std::time::Duration;

use proto::v1::{self, cluster::Role};
use tests::{
    Cluster, Fault, Relay, ZooKeeper,
    operator::{becomes, describe},
    within,
};
use tokio::time::sleep;

/// Far less than the minute after which everything is read, whatever the watch says.
const TOLD: Duration = Duration::from_secs(15);

/// The epoch stays as it is, and so does the leader: that is all that is asked for between two full looks.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_edited_by_hand_after_a_reconnect_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let relay = Relay::start(&zookeeper.addr);
    // One session throughout: a new one would have a watch of its own.
    let args = [
        "--zookeeper",
        &relay.addr,
        "--zookeeper-session-timeout",
        "10s",
    ];
    let cluster = Cluster::builder().groups(1).controller_args(&args);
    let cluster = cluster.start().await;
    let controller = &cluster.controller;
    becomes(controller, Role::Leader).await;
    let mut admin = controller.admin().await;
    let client = zookeeper.connect().await;
    let path = "/sluice/test/groups/g1";
    for round in 0..2 {
        relay.set(Fault::Cut);
        sleep(Duration::from_millis(300)).await;
        relay.heal();
        // It is connected again when it can change something.
        let text = format!("round {round}");
        within(TOLD, || async {
            let done = describe(controller, &text).await;
            done.map_err(|e| e.to_string())
        })
        .await;
        // What was done for the reconnect itself is over: everything was read then.
        sleep(Duration::from_secs(1)).await;
        let zone = format!("zone-{round}");
        let (data, stat) = client.get_data(path).await.unwrap();
        let mut group: serde_json::Value = serde_json::from_slice(&data).unwrap();
        group["servers"][0]["zone"] = zone.clone().into();
        let data = serde_json::to_vec(&group).unwrap();
        client
            .set_data(path, &data, Some(stat.version))
            .await
            .unwrap();
        within(TOLD, || {
            let (mut admin, zone) = (admin.clone(), zone.clone());
            async move {
                let request = v1::GetGroupRequest {
                    id: "g1".to_owned(),
                };
                let group = admin.get_group(request).await.map_err(|e| e.to_string())?;
                let found = group.into_inner().servers.remove(0).zone;
                (found == zone).then_some(()).ok_or(found)
            }
        })
        .await;
    }
    let log = controller.process.log();
    let sessions = log.matches("connected to ZooKeeper").count();
    assert_eq!(sessions, 1, "it was another session: {log}");
    admin.get_cluster(v1::GetClusterRequest {}).await.unwrap();
}
