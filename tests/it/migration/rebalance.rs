//! Groups are evened out by what their slots have.

use proto::v1::{self, migration::Phase, rebalance_request::By};
use redis::pipe;
use tests::{
    Cluster,
    migration::{assert_keys_are_at_their_owners, enters},
};

/// Sets so many keys of slots of the lower half, and so many of the upper, to values of this size.
async fn fill(cluster: &Cluster, [lower, upper]: [usize; 2], size: usize) {
    let (value, mut left) = ("v".repeat(size), [lower, upper]);
    let mut fill = pipe();
    for n in 0.. {
        let key = format!("k{n}-{size}");
        let half = usize::from(proto::Slot::of_key(key.as_bytes()).number() >= 512);
        if left == [0, 0] {
            break;
        }
        if left[half] > 0 {
            left[half] -= 1;
            fill.cmd("SET").arg(key).arg(&value).ignore();
        }
    }
    let mut client = cluster.proxies[0].connect().await;
    fill.exec_async(&mut client).await.unwrap();
}

async fn rebalance(
    cluster: &Cluster,
    by: By,
    weights: &[(&str, u32)],
    dry: bool,
) -> v1::RebalanceResponse {
    let weight = |(group, weight): &(&str, u32)| v1::GroupWeight {
        group_id: (*group).to_owned(),
        weight: *weight,
    };
    let request = v1::RebalanceRequest {
        weights: weights.iter().map(weight).collect(),
        validate_only: dry,
        by: by.into(),
        ..v1::RebalanceRequest::default()
    };
    let mut admin = cluster.controller.admin().await;
    let answer = admin.rebalance(request).await.unwrap().into_inner();
    if !dry {
        for migration in &answer.migrations {
            enters(&cluster.controller, &migration.id, Phase::Succeeded).await;
        }
    }
    answer
}

#[tokio::test]
async fn keys_and_memory_are_evened_out_and_a_plan_changes_nothing() {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    fill(&cluster, [3000, 600], 10).await;
    let loads = |answer: &v1::RebalanceResponse| -> Vec<[u64; 2]> {
        answer
            .loads
            .iter()
            .map(|load| [load.before, load.after])
            .collect()
    };
    let near = |count: u64, expected: u64| {
        assert!(
            count.abs_diff(expected) < expected / 10,
            "{count}, not {expected}"
        );
    };
    for dry in [true, true, false] {
        let answer = rebalance(&cluster, By::Keys, &[], dry).await;
        // Beside them are the fence records.
        let [[one, one_then], [two, two_then]] = loads(&answer)[..] else {
            panic!("{answer:?}")
        };
        assert_eq!((one, two), (3000, 600), "{answer:?}");
        near(one_then, 1800);
        near(two_then, 1800);
        assert!(
            answer
                .loads
                .iter()
                .all(|load| load.keys == load.keys_looked_at),
            "{answer:?}"
        );
    }
    let answer = rebalance(&cluster, By::Keys, &[], true).await;
    assert_eq!(answer.migrations, [], "{answer:?}");
    // A few values that are far larger than all that was there.
    fill(&cluster, [0, 60], 20_000).await;
    let answer = rebalance(&cluster, By::Memory, &[("g1", 3)], false).await;
    let total: u64 = answer.loads.iter().map(|load| load.before).sum();
    assert!(total > 60 * 20_000, "{answer:?}");
    near(answer.loads[0].after, total / 4 * 3);
    let answer = rebalance(&cluster, By::Keys, &[("g1", 0)], false).await;
    assert_eq!(answer.loads[0].after, 0, "{answer:?}");
    let slots = rebalance(&cluster, By::Slots, &[("g1", 0)], true).await;
    assert_eq!(loads(&slots), [[0, 0], [1024, 1024]]);
    assert_keys_are_at_their_owners(&cluster).await;
}
