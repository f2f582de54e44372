//! What dies, or is not heard of, while slots are held: the hold is given up, and the move is made later.

use super::*;

/// Slots of a group go to the other, and are held: the leader's last question does not reach the source until
/// that is healed.
async fn held(cluster: &Cluster, source: usize, slots: &str) -> String {
    let edge = &cluster.edges().servers[source];
    let leader = &cluster.controller.process;
    edge.set_for(leader, Fault::HoldFrom(BARRIER.to_vec()));
    let target = ["g2", "g1"][source];
    let id = create(&cluster.controller, slots, target).await.id;
    edge.becomes(leader, Fault::Hold).await;
    id
}

/// Returns once the hold was given up.
async fn is_given_up(cluster: &Cluster, id: &str) {
    within(MOVED, || async {
        let migration = get(&cluster.controller, id).await?;
        match migration.phase() {
            Phase::Copying if migration.cut_overs > 0 => Ok(()),
            _ => Err(format!("{migration:?}")),
        }
    })
    .await;
}

/// The source dies, or the target, and is back with what it had.
async fn a_server_dies(group: usize, seed: u64) -> Violations {
    let mut cluster = cluster(2, None).await;
    let workload = Workload::start(cluster.addrs(), seed);
    workload.advance(300).await;
    let id = held(&cluster, 0, &hot_slots()).await;
    let server = &mut cluster.groups[group][0];
    server.process.kill();
    is_given_up(&cluster, &id).await;
    let server = &mut cluster.groups[group][0];
    server.restart();
    server.answers().await;
    cluster.edges().servers[0].heal();
    enters(&cluster.controller, &id, Phase::Succeeded).await;
    workload.advance(300).await;
    judge(&cluster, workload).await
}

#[tokio::test]
async fn the_source_dies() {
    assert_eq!(a_server_dies(0, 61).await, Violations::new());
}

#[tokio::test]
async fn the_target_dies() {
    assert_eq!(a_server_dies(1, 62).await, Violations::new());
}

/// A proxy that holds does not hear that the hold is given up. What it holds it does not send: that is
/// answered with `TRYAGAIN`, while the others serve; it serves again when it has heard.
#[tokio::test]
async fn a_give_up_is_not_heard_of() {
    let cluster = Cluster::builder()
        .groups(2)
        .proxies(2)
        .proxy_args(&["--hold-patience", "2s"])
        .relayed()
        .start()
        .await;
    let [mut hears, mut deaf] = [
        cluster.proxies[0].raw().await,
        cluster.proxies[1].raw().await,
    ];
    assert_eq!(hears.command(&format!("SET {KEY} 0")).await, "+OK");
    assert_eq!(deaf.command(&format!("GET {KEY}")).await, "$1 0");
    let mut shown = false;
    for source in [0, 1, 0, 1] {
        let id = held(&cluster, source, SLOT).await;
        let edge = &cluster.edges().controllers[0];
        edge.set_for(&cluster.proxies[1].process, Fault::BlackHole);
        // What was held until here could not be given up before; or the machine was too busy for this.
        let now = get(&cluster.controller, &id).await.unwrap();
        shown = now.phase() == Phase::CuttingOver && now.cut_overs == 1;
        if shown {
            let set = |value: &str| ["SET", KEY, value].map(str::to_owned).to_vec();
            hears.pipeline(&[set("1")]).await;
            deaf.pipeline(&[set("2")]).await;
            assert_eq!(hears.reply().await, "+OK");
            let told = deaf.reply().await;
            assert!(told.starts_with("-TRYAGAIN"), "{told}");
            assert_eq!(hears.command(&format!("GET {KEY}")).await, "$1 1");
        }
        edge.heal();
        cluster.edges().servers[source].heal();
        enters(&cluster.controller, &id, Phase::Succeeded).await;
        cluster.settle().await;
        assert_eq!(deaf.command(&format!("SET {KEY} 0")).await, "+OK");
        assert_eq!(hears.command(&format!("GET {KEY}")).await, "$1 0");
        if shown {
            break;
        }
    }
    assert!(shown, "no hold was long enough");
}
