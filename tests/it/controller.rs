//! The controller may die and come back; whoever uses a proxy does not notice.

use std::{process::Command, time::Duration};

use proto::v1;
use tests::{Cluster, Load};

#[tokio::test]
async fn proxies_serve_without_their_controller_and_follow_it_when_it_is_back() {
    let mut cluster = Cluster::builder().groups(2).proxies(2).start().await;
    let mut connections = cluster.connect_all().await;
    connections.extend(cluster.connect_all().await);
    let load = Load::start(connections, |_| true);
    load.advance(5_000).await;
    cluster.controller.process.kill();
    load.advance(20_000).await;
    // New clients, too.
    let mut client = cluster.proxies[1].raw().await;
    assert_eq!(client.command("SET fresh 1").await, "+OK");
    tokio::time::sleep(Duration::from_secs(1)).await;

    cluster.controller.restart();
    let mut admin = cluster.controller.admin().await;
    admin
        .update_group(v1::UpdateGroupRequest {
            id: "g1".to_owned(),
            description: "changed after the crash".to_owned(),
            ..v1::UpdateGroupRequest::default()
        })
        .await
        .unwrap();
    cluster.settle().await;
    load.advance(5_000).await;
    assert_eq!(load.stop().await, Vec::<String>::new());
}

#[tokio::test]
async fn redis_benchmark_sees_no_error_when_the_controller_is_killed() {
    let mut cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let port = cluster.proxies[0]
        .addr
        .rsplit(':')
        .next()
        .unwrap()
        .to_owned();
    let benchmark = std::thread::spawn(move || {
        Command::new("redis-benchmark")
            .args([
                "-p", &port, "-n", "600000", "-r", "10000", "-t", "set,get", "-P", "4", "-e",
            ])
            .args(["--csv", "-c", "20"])
            .output()
            .unwrap()
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    cluster.controller.process.kill();
    assert!(
        !benchmark.is_finished(),
        "it ended before the controller was killed"
    );
    let output = benchmark.join().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("\"SET\"") && text.contains("\"GET\""),
        "{text}"
    );
    let (_, metrics) = cluster.proxies[0].get("/metrics").await;
    let errors = metrics
        .lines()
        .find(|line| line.starts_with("sluice_proxy_errors_total"));
    assert!(errors.unwrap().ends_with(" 0"), "{errors:?}\n{text}");
}

#[tokio::test]
async fn a_restarted_controller_has_everything_that_was_acknowledged() {
    let mut cluster = Cluster::builder()
        .groups(2)
        .replicas(1)
        .proxies(1)
        .start()
        .await;
    let state = async |cluster: &Cluster| {
        let mut admin = cluster.controller.admin().await;
        let groups = admin
            .list_groups(v1::ListGroupsRequest::default())
            .await
            .unwrap();
        let slots = admin.get_slot_map(v1::GetSlotMapRequest {}).await.unwrap();
        let topology = admin
            .get_topology(v1::GetTopologyRequest {})
            .await
            .unwrap()
            .into_inner();
        let proxies = admin
            .list_proxies(v1::ListProxiesRequest::default())
            .await
            .unwrap();
        let registered = proxies
            .into_inner()
            .proxies
            .into_iter()
            .map(|p| (p.id, p.address));
        (
            groups.into_inner().groups,
            slots.into_inner(),
            (topology.cluster_id, topology.groups, topology.slots),
            registered.collect::<Vec<_>>(),
        )
    };
    let before = state(&cluster).await;
    assert_eq!(before.0.len(), 2);
    assert_eq!(before.0[0].servers.len(), 2);
    for kill in [true, false] {
        if kill {
            cluster.controller.process.kill();
        } else {
            cluster.controller.process.terminate();
            let status = cluster.controller.process.wait(Duration::from_secs(10));
            assert!(status.success(), "{status}");
        }
        cluster.controller.restart();
        assert_eq!(
            state(&cluster).await,
            before,
            "after {}",
            if kill { "a kill" } else { "a stop" }
        );
        cluster.settle().await;
    }
}
