//! Several migrations at a time, and servers that are no primaries any more in the middle of one.

use std::time::Duration;

use proto::v1::{ChangeMigrationRequest, migration::Phase};
use redis::cmd;
use tests::{
    Cluster, Raw, Server, Workload, eventually,
    migration::{assert_keys_are_at_their_owners, assert_nobody_noticed, create, enters, get},
};
use tokio::time::sleep;

use super::{create_slow, fill, hurry, waits};

/// Each of the groups takes part in two at a time; a third waits, and no client notices any of them.
#[tokio::test]
async fn several_migrations_share_their_groups() {
    let cluster = Cluster::builder().groups(3).proxies(2).start().await;
    fill(&cluster, 3000).await;
    let workload = Workload::start(cluster.addrs(), 31);
    workload.advance(1000).await;
    let first = create_slow(&cluster, "0-199", "g3").await.id;
    let second = create_slow(&cluster, "400-599", "g3").await.id;
    let third = create_slow(&cluster, "200-299", "g2").await.id;
    let fourth = create_slow(&cluster, "300-339", "g3").await.id;
    for id in [&first, &second, &third] {
        enters(&cluster.controller, id, Phase::Copying).await;
    }
    waits(&cluster, &fourth, "waiting for migration").await;
    for id in [&first, &second, &third] {
        let migration = get(&cluster.controller, id).await.unwrap();
        assert_eq!(migration.phase(), Phase::Copying, "{migration:?}");
    }
    for id in [&first, &second, &third, &fourth] {
        hurry(&cluster, id).await;
    }
    for id in [&first, &second, &third, &fourth] {
        enters(&cluster.controller, id, Phase::Succeeded).await;
    }
    workload.advance(1000).await;
    let report = workload.stop().await;
    assert_nobody_noticed(&cluster, &report);
    assert_keys_are_at_their_owners(&cluster).await;
}

/// What one brings is not there yet when the next one looks whether there is room.
#[tokio::test]
async fn two_migrations_have_room_in_their_target_together_or_one_waits() {
    let cluster = Cluster::builder().groups(3).proxies(1).start().await;
    let mut client = cluster.proxies[0].connect().await;
    let value = "v".repeat(40_000);
    for n in 0..300 {
        let set = cmd("SET").arg(format!("k{n}")).arg(&value).to_owned();
        set.exec_async(&mut client).await.unwrap();
    }
    let mut used = Vec::new();
    for group in &cluster.groups {
        let info = Raw::connect(&group[0].addr)
            .await
            .command("INFO memory")
            .await;
        let (_, text) = info.split_once("used_memory:").unwrap();
        let (bytes, _) = text.split_once('\r').unwrap();
        used.push(bytes.parse::<u64>().unwrap());
    }
    let most = used[2] + used[0].max(used[1]) * 3 / 2;
    let mut target = cluster.groups[2][0].connect().await;
    let set = cmd("CONFIG")
        .arg("SET")
        .arg("maxmemory")
        .arg(most)
        .to_owned();
    set.exec_async(&mut target).await.unwrap();
    let first = create_slow(&cluster, "0-340", "g3").await.id;
    enters(&cluster.controller, &first, Phase::Copying).await;
    let second = create(&cluster.controller, "342-681", "g3").await.id;
    waits(&cluster, &second, "the target has not enough memory").await;
    let mut admin = cluster.controller.admin().await;
    let cancel = ChangeMigrationRequest {
        id: first.clone(),
        ..ChangeMigrationRequest::default()
    };
    admin.cancel_migration(cancel).await.unwrap();
    enters(&cluster.controller, &second, Phase::Succeeded).await;
    assert_keys_are_at_their_owners(&cluster).await;
}

/// Makes a server the replica of nobody who is there; it keeps its keys, and refuses writes.
async fn demote(server: &Server) {
    let mut link = server.connect().await;
    let demoted = cmd("REPLICAOF")
        .arg("127.0.0.1")
        .arg(1)
        .exec_async(&mut link)
        .await;
    demoted.unwrap();
}

async fn promote(server: &Server) {
    let mut link = server.connect().await;
    let promoted = cmd("REPLICAOF")
        .arg("NO")
        .arg("ONE")
        .exec_async(&mut link)
        .await;
    promoted.unwrap();
}

/// Whoever it is, nothing moves until it is one again; then all does.
#[tokio::test]
async fn nothing_moves_while_a_server_is_no_primary() {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    fill(&cluster, 2000).await;
    for (group, slots) in [(0, "0-99"), (1, "100-199")] {
        let server = &cluster.groups[group][0];
        let id = create_slow(&cluster, slots, "g2").await.id;
        enters(&cluster.controller, &id, Phase::Copying).await;
        demote(server).await;
        eventually(|| async {
            let migration = get(&cluster.controller, &id).await?;
            let why = migration.copy.unwrap_or_default().interruption;
            match why.ends_with("is a replica") {
                true => Ok(()),
                false => Err(format!("it goes on: {why}")),
            }
        })
        .await;
        hurry(&cluster, &id).await;
        sleep(Duration::from_secs(3)).await;
        let migration = get(&cluster.controller, &id).await.unwrap();
        assert_eq!(migration.moved_slots, "", "{migration:?}");
        assert_eq!(migration.phase(), Phase::Copying, "{migration:?}");
        promote(server).await;
        enters(&cluster.controller, &id, Phase::Succeeded).await;
    }
    let mut client = cluster.proxies[0].connect().await;
    for n in 0..2000 {
        let value: Option<usize> = cmd("GET")
            .arg(format!("k{n}"))
            .query_async(&mut client)
            .await
            .unwrap();
        assert_eq!(value, Some(n));
    }
    assert_keys_are_at_their_owners(&cluster).await;
    let again = create(&cluster.controller, "0-199", "g1").await;
    enters(&cluster.controller, &again.id, Phase::Succeeded).await;
}
