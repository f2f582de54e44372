//! Clients count their own keys, and no copies of them.

use std::time::Duration;

use proto::v1::{self, migration::Phase};
use redis::cmd;
use tests::{
    Cluster,
    migration::{enters, get},
    within,
};

use super::{fill, hurry};

/// How many keys clients have in each of two databases.
const KEYS: [usize; 2] = [2000, 300];
const DATABASES: [usize; 2] = [0, 3];

/// What a proxy answers to `DBSIZE`, in each database.
async fn counted(cluster: &Cluster) -> [usize; 2] {
    let mut client = cluster.proxies[0].connect().await;
    let mut counts = [0; 2];
    for (count, database) in counts.iter_mut().zip(DATABASES) {
        let mut select = cmd("SELECT");
        select.arg(database);
        select.exec_async(&mut client).await.unwrap();
        *count = cmd("DBSIZE").query_async(&mut client).await.unwrap();
    }
    counts
}

/// How many keys the servers have, whosever they are.
async fn held(cluster: &Cluster) -> usize {
    let mut sum = 0;
    for group in &cluster.groups {
        let mut server = group[0].connect().await;
        for database in DATABASES {
            let mut select = cmd("SELECT");
            select.arg(database);
            select.exec_async(&mut server).await.unwrap();
            let count: usize = cmd("DBSIZE").query_async(&mut server).await.unwrap();
            sum += count;
        }
    }
    sum
}

/// Returns once the servers have more keys than clients, by so many, and clients see no more than `off` of them.
async fn is_unseen(cluster: &Cluster, more: usize, off: usize) {
    // It is counted by one pass after the other, with as long a rest between them.
    within(Duration::from_secs(60), || async {
        let (held, counted) = (held(cluster).await, counted(cluster).await);
        let unseen = |(count, keys): (&usize, &usize)| count.abs_diff(*keys) <= off;
        let all_unseen = counted.iter().zip(&KEYS).all(unseen);
        match held >= KEYS.iter().sum::<usize>() + more && all_unseen {
            true => Ok(()),
            false => Err(format!("{held} keys are held, {counted:?} are counted")),
        }
    })
    .await;
}

#[tokio::test]
async fn copies_are_no_keys_of_clients() {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    fill(&cluster, KEYS[0]).await;
    let mut client = cluster.proxies[0].connect().await;
    let mut fill = redis::pipe();
    fill.cmd("SELECT").arg(3).ignore();
    for n in 0..KEYS[1] {
        fill.cmd("SET").arg(format!("k{n}")).arg(n).ignore();
    }
    fill.exec_async(&mut client).await.unwrap();
    assert_eq!(counted(&cluster).await, KEYS);

    let request = v1::CreateMigrationRequest {
        id: "m".to_owned(),
        slots: "0-511".to_owned(),
        target_group_id: "g2".to_owned(),
        rate: 50,
        keep_source: true,
        ..v1::CreateMigrationRequest::default()
    };
    let mut admin = cluster.controller.admin().await;
    admin.create_migration(request).await.unwrap();
    // What was copied within the last pass, rest and pass is not counted yet.
    is_unseen(&cluster, 400, 200).await;
    let change = v1::ChangeMigrationRequest {
        id: "m".to_owned(),
        ..v1::ChangeMigrationRequest::default()
    };
    admin.pause_migration(change.clone()).await.unwrap();
    is_unseen(&cluster, 400, 0).await;

    hurry(&cluster, "m").await;
    admin.resume_migration(change.clone()).await.unwrap();
    enters(&cluster.controller, "m", Phase::Committed).await;
    is_unseen(&cluster, 1000, 0).await;
    let kept = get(&cluster.controller, "m").await.unwrap();
    assert_eq!(kept.phase(), Phase::Committed, "{kept:?}");
    admin.resume_migration(change).await.unwrap();
    enters(&cluster.controller, "m", Phase::Succeeded).await;
    assert_eq!(counted(&cluster).await, KEYS);
}
