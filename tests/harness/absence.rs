//! A cluster whose ZooKeeper is away for a while: it serves, and changes nothing.

use std::time::Duration;

use proto::v1::cluster::Role;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};
use tonic::Code;

use crate::{
    Cluster, Load, ZooKeeper,
    operator::{self, Operator, becomes},
    within,
};

/// Takes ZooKeeper away for so long. In the middle of it a proxy is killed and started again, and so is a
/// controller. Returns how many requests were answered meanwhile; none with an error, but for those of the
/// proxy that was killed.
pub async fn of_zookeeper(time: Duration) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let mut zookeeper = ZooKeeper::start(dir.path()).await;
    let args = [
        "--zookeeper",
        &zookeeper.addr,
        "--zookeeper-session-timeout",
        "2s",
    ];
    let cluster = Cluster::builder().groups(2).proxies(2).stand_bys(1);
    let mut cluster = cluster.controller_args(&args).start().await;
    let mut operator = Operator::new(&cluster);
    operator.works().await;
    operator.finds_all().await;
    let load = Load::start(vec![cluster.proxies[0].connect().await], |_| true);
    load.advance(500).await;

    zookeeper.process.kill();
    let (gone, before) = (Instant::now(), load.requests());
    nothing_can_be_changed(&cluster).await;
    sleep((time / 2).saturating_sub(gone.elapsed())).await;
    cluster.stand_bys[0].process.kill();
    cluster.stand_bys[0].restart();
    becomes(&cluster.stand_bys[0], Role::Adrift).await;
    // It may find either controller; both serve from their mirrors.
    cluster.proxies[1].process.kill();
    cluster.proxies[1].restart();
    is_served(&cluster).await;
    sleep(time.saturating_sub(gone.elapsed())).await;
    nothing_can_be_changed(&cluster).await;
    operator.finds_all().await;
    let answered = load.requests() - before;

    zookeeper.restart().await;
    operator.works().await;
    operator.finds_all().await;
    load.advance(500).await;
    assert_eq!(load.stop().await, Vec::<String>::new());
    is_served(&cluster).await;
    answered
}

/// How long a proxy may take to find a controller that serves it, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Clients of the proxy that was started again.
async fn is_served(cluster: &Cluster) {
    within(PATIENCE, || async {
        let proxy = &cluster.proxies[1];
        if TcpStream::connect(&proxy.addr).await.is_err() {
            return Err("it does not listen".to_owned());
        }
        match proxy.raw().await.command("SET a 1").await.as_str() {
            "+OK" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
}

async fn nothing_can_be_changed(cluster: &Cluster) {
    for controller in [&cluster.controller, &cluster.stand_bys[0]] {
        becomes(controller, Role::Adrift).await;
        let refused = operator::describe(controller, "not to be").await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        let why = "ZooKeeper is out of reach";
        assert!(refused.message().contains(why), "{refused:?}");
    }
}
