//! An operator moves slots with `sluice`, and sees how it goes; a `redis-benchmark` beside it sees nothing.

use proto::v1::{self, migration::Phase};
use tests::{
    Cluster, Process, Server, eventually,
    migration::{assert_keys_are_at_their_owners, enters},
};

use super::{create_slow, fill};

/// Has `sluice` do something, which it does; what it said.
fn done(cluster: &Cluster, words: &str) -> String {
    let words: Vec<&str> = words.split(' ').collect();
    let (done, said) = cluster.controller.sluice(&words);
    assert!(done, "{words:?}: {said}");
    said
}

/// How many slots each group has.
async fn counts(cluster: &Cluster) -> Vec<u32> {
    let mut admin = cluster.controller.admin().await;
    let groups = admin.list_groups(v1::ListGroupsRequest::default()).await;
    let groups = groups.unwrap().into_inner().groups;
    groups.iter().map(|group| group.slot_count).collect()
}

/// A `redis-benchmark` that goes on and on; at the first error it would end.
fn benchmark(cluster: &Cluster) -> Process {
    let port = cluster.proxies[1].addr.rsplit(':').next().unwrap();
    let args = [
        "-p",
        port,
        "-c",
        "2",
        "-t",
        "set,get,incr,lpush,hset",
        "-n",
        "2000",
        "-r",
        "3000",
        "-l",
    ];
    Process::start(
        cluster.dir.path(),
        "benchmark",
        "redis-benchmark",
        args,
        &[],
    )
}

#[tokio::test]
async fn a_third_group_gets_its_share_and_a_benchmark_beside_it_sees_nothing() {
    let mut cluster = Cluster::builder().groups(2).proxies(2).start().await;
    fill(&cluster, 3000).await;
    let server = Server::start(cluster.dir.path(), "g3", &[]);
    server.answers().await;
    done(
        &cluster,
        &format!("group create g3 --server {}", server.addr),
    );
    cluster.groups.push(vec![server]);
    let benchmark = benchmark(&cluster);
    eventually(|| async {
        let log = benchmark.log();
        log.contains("GET").then_some(()).ok_or(log)
    })
    .await;

    let plan = done(&cluster, "rebalance --dry-run");
    assert!(
        plan.contains("Would move 341 slots by 2 migrations"),
        "{plan}"
    );
    let said = done(&cluster, "rebalance --rate 250 --wait");
    assert_eq!(counts(&cluster).await, [342, 341, 341], "{said}");
    for piece in [
        "Moving 341 slots by 2 migrations",
        "COPYING",
        "%",
        "0/170 slots",
        "has moved 1",
    ] {
        assert!(said.contains(piece), "no {piece}: {said}");
    }
    let again = done(&cluster, "rebalance --wait");
    assert!(again.contains("nothing moves"), "{again}");

    let said = done(&cluster, "group drain g3 --wait");
    assert_eq!(counts(&cluster).await, [512, 512, 0], "{said}");
    let said = done(&cluster, "migration create --slots 0-9 --target g2 --wait");
    assert!(
        said.contains("has moved 10 slots to g2; held for "),
        "{said}"
    );

    assert!(benchmark.is_running(), "{}", benchmark.log());
    let log = benchmark.log();
    assert!(!log.to_lowercase().contains("error"), "{log}");
    done(&cluster, "group delete g3");
    cluster.groups.pop();
    drop(benchmark);
    assert_keys_are_at_their_owners(&cluster).await;
}

#[tokio::test]
async fn a_migration_is_watched_to_its_end() {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    fill(&cluster, 1000).await;
    let id = create_slow(&cluster, "0-99", "g2").await.id;
    enters(&cluster.controller, &id, Phase::Copying).await;
    let args = [
        "--endpoint",
        &cluster.controller.addr,
        "migration",
        "watch",
        &id,
    ];
    let sluice = tests::binary("sluice");
    let mut watch = Process::start(cluster.dir.path(), "watch", sluice, args, &[]);
    eventually(|| async {
        let log = watch.log();
        log.contains(&format!("{id} COPYING"))
            .then_some(())
            .ok_or(log)
    })
    .await;
    done(&cluster, &format!("migration cancel {id}"));
    let status = watch.wait(tests::SOON);
    assert_eq!(status.code(), Some(1), "{}", watch.log());
    let log = watch.log();
    assert!(
        log.contains(&format!("migration {id} was cancelled")),
        "{log}"
    );

    let id = create_slow(&cluster, "100-109", "g2").await.id;
    let said = done(&cluster, &format!("migration watch {id}"));
    assert!(said.contains("has moved 10 slots to g2"), "{said}");
}
