//! Groups of consumers move with their streams, whoever used them.

use controlplane::migration::BATCH_MAX;
use proto::{
    Slot,
    v1::{self, migration::Phase},
};
use redis::{Value, aio::MultiplexedConnection, cmd};
use tests::{
    Cluster, Fault, eventually,
    migration::{assert_keys_are_at_their_owners, enters},
};

use super::copied;

/// What the groups of a stream are, and what their consumers have not acknowledged: but for how long that is
/// ago.
async fn groups(
    link: &mut MultiplexedConnection,
    stream: &str,
) -> (Value, Vec<(String, String, u64)>) {
    let groups = cmd("XINFO")
        .arg("GROUPS")
        .arg(stream)
        .query_async(link)
        .await
        .unwrap();
    let mut pending = cmd("XPENDING");
    pending.arg(stream).arg("g").arg("-").arg("+").arg(1000);
    let pending: Vec<(String, String, u64, u64)> = pending.query_async(link).await.unwrap();
    let pending = pending
        .into_iter()
        .map(|(id, consumer, _, times)| (id, consumer, times));
    (groups, pending.collect())
}

/// Such a proxy notes nothing of what the copy cannot see, since it does not know that it is to: so nothing
/// is believed of it, though it is back before the cut-over.
#[tokio::test]
async fn what_a_proxy_without_a_controller_does_to_consumer_groups_moves_too() {
    let cluster = Cluster::builder()
        .groups(2)
        .proxies(2)
        .relayed()
        .start()
        .await;
    let slot = proto::Slot::of_key(b"stream").number();
    let source = usize::from(slot >= 512);
    let target = format!("g{}", 2 - source);
    let mut client = cluster.proxies[0].connect().await;
    for n in 0..200 {
        let id = format!("{}-1", n + 1);
        let mut add = cmd("XADD");
        add.arg("stream").arg(id).arg("n").arg(n);
        add.exec_async(&mut client).await.unwrap();
        // They take the copy a while, so that it does not end before it is to.
        let mut set = cmd("SET");
        set.arg(format!("{{stream}}{n}")).arg(n);
        set.exec_async(&mut client).await.unwrap();
    }
    let read = async |client: &mut MultiplexedConnection, consumer: &str, count: u32| {
        let mut read = cmd("XREADGROUP");
        read.arg("GROUP")
            .arg("g")
            .arg(consumer)
            .arg("COUNT")
            .arg(count);
        read.arg("STREAMS").arg("stream").arg(">");
        read.exec_async(client).await.unwrap();
    };
    let mut create = cmd("XGROUP");
    create.arg("CREATE").arg("stream").arg("g").arg(0);
    create.exec_async(&mut client).await.unwrap();
    read(&mut client, "a", 50).await;

    let edge = &cluster.edges().controllers[0];
    let cut_off = &cluster.proxies[1];
    edge.set_for(&cut_off.process, Fault::Cut);
    let request = v1::CreateMigrationRequest {
        id: "m".to_owned(),
        slots: slot.to_string(),
        target_group_id: target,
        rate: 40,
        ..v1::CreateMigrationRequest::default()
    };
    let mut admin = cluster.controller.admin().await;
    admin.create_migration(request).await.unwrap();
    let mut at_target = cluster.groups[1 - source][0].connect().await;
    eventually(|| {
        let mut at_target = at_target.clone();
        async move {
            match cmd("EXISTS")
                .arg("stream")
                .query_async(&mut at_target)
                .await
            {
                Ok(1) => Ok(()),
                other => Err(format!("the stream is not copied: {other:?}")),
            }
        }
    })
    .await;
    // It goes no further until the proxy is back.
    let change = v1::ChangeMigrationRequest {
        id: "m".to_owned(),
        ..v1::ChangeMigrationRequest::default()
    };
    admin.pause_migration(change.clone()).await.unwrap();
    let mut by_cut_off = cut_off.connect().await;
    read(&mut by_cut_off, "b", 30).await;
    let mut ack = cmd("XACK");
    ack.arg("stream").arg("g").arg(&["3-1", "7-1", "60-1"]);
    let acked: u32 = ack.query_async(&mut by_cut_off).await.unwrap();
    assert_eq!(acked, 3);
    let mut at_source = cluster.groups[source][0].connect().await;
    let expected = groups(&mut at_source, "stream").await;
    assert_ne!(
        groups(&mut at_target, "stream").await,
        expected,
        "nobody has told the copy"
    );

    edge.heal();
    cluster.settle().await;
    admin.resume_migration(change).await.unwrap();
    enters(&cluster.controller, "m", Phase::Succeeded).await;
    for proxy in &cluster.proxies {
        assert_eq!(groups(&mut proxy.connect().await, "stream").await, expected);
    }
    assert_keys_are_at_their_owners(&cluster).await;
}

/// What it has noted, nobody is told, in any hold: also where the fence of the first one has closed all its
/// connections, so that none is left for the next to close.
#[tokio::test]
async fn what_a_proxy_did_to_consumer_groups_before_it_hung_moves_too() {
    let cluster = Cluster::builder().groups(2).proxies(2).start().await;
    // Of 256 slots that do not change it is in the second batch.
    let second = BATCH_MAX..2 * BATCH_MAX;
    let mut names = (0..).map(|n| format!("stream{n}"));
    let is_second = |name: &String| second.contains(&Slot::of_key(name.as_bytes()).index());
    let stream = &names.find(is_second).unwrap();
    let mut client = cluster.proxies[0].connect().await;
    for n in 1..=50 {
        let mut add = cmd("XADD");
        add.arg(stream).arg(format!("{n}-1")).arg("n").arg(n);
        add.exec_async(&mut client).await.unwrap();
    }
    let mut create = cmd("XGROUP");
    create.arg("CREATE").arg(stream).arg("g").arg(0);
    create.exec_async(&mut client).await.unwrap();
    let mut read = cmd("XREADGROUP");
    read.arg("GROUP").arg("g").arg("a").arg("COUNT").arg(30);
    read.arg("STREAMS").arg(stream).arg(">");
    read.exec_async(&mut client).await.unwrap();

    let slots = format!("0-{}", 2 * BATCH_MAX - 1);
    let change = copied(&cluster, &slots).await;
    let hanging = &cluster.proxies[1];
    let mut ack = cmd("XACK");
    ack.arg(stream).arg("g").arg(&["3-1", "7-1", "20-1"]);
    let acked: u32 = ack.query_async(&mut hanging.connect().await).await.unwrap();
    assert_eq!(acked, 3);
    let expected = groups(&mut cluster.groups[0][0].connect().await, stream).await;
    let mut at_target = cluster.groups[1][0].connect().await;
    let copied = groups(&mut at_target, stream).await;
    assert_ne!(copied, expected, "nobody has told the copy");

    hanging.process.stop();
    let mut admin = cluster.controller.admin().await;
    admin.resume_migration(change.clone()).await.unwrap();
    let moved = enters(&cluster.controller, &change.id, Phase::Succeeded).await;
    assert!(moved.cut_overs > 1, "{moved:?}");
    assert_eq!(groups(&mut client, stream).await, expected);
    hanging.process.resume();
    cluster.settle().await;
    assert_eq!(groups(&mut hanging.connect().await, stream).await, expected);
}
