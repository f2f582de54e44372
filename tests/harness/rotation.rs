//! A cluster whose certificates and authorities change all the time, and nobody notices.

use std::time::Duration;

use proto::v1::{self, cluster::Role};
use tokio::time::{Instant, sleep};

use crate::{
    Cluster, Load,
    authority::{Authority, IdentityFiles, SecureZooKeeper},
    within,
};

/// How long processes may take to find each other again, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// What there was.
#[derive(Debug)]
pub struct Rotated {
    /// How often files were replaced.
    pub rotations: u64,
    /// Requests that were answered rightly; there were no others.
    pub answered: u64,
}

/// Replaces the files of controller and proxies every `every`, for so long: their certificates, then the
/// authority of all, by way of both. In the middle of it the controller is killed and started again, and
/// then ZooKeeper, with another authority.
pub async fn under_load(time: Duration, every: Duration) -> Rotated {
    let dir = tempfile::tempdir().unwrap();
    let mut authority = Authority::new();
    let files = IdentityFiles::new(dir.path(), "grpc", &[&authority], &authority.sign());
    let of_zookeeper = [Authority::new(), Authority::new()];
    let [before, after] = &of_zookeeper;
    let to_zookeeper = IdentityFiles::new(dir.path(), "zookeeper", &[before], &before.sign());
    let mut zookeeper = SecureZooKeeper::start(dir.path(), before).await;
    let mut args = to_zookeeper.flags("--zookeeper");
    args.extend(["--zookeeper", &zookeeper.addr].map(str::to_owned));
    args.extend(["--zookeeper-session-timeout", "4s"].map(str::to_owned));
    args.extend(files.flags("--tls"));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let own = files.flags("--tls");
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let cluster = Cluster::builder().groups(2).proxies(2);
    let cluster = cluster.controller_args(&args).proxy_args(&own);
    let mut cluster = cluster.start().await;
    let load = Load::start(cluster.connect_all().await, |_| true);

    let start = Instant::now();
    let (mut rotations, mut restarts) = (0, 0);
    while start.elapsed() < time {
        rotate(&files, &mut authority, every).await;
        rotations += 4;
        if restarts == 0 && start.elapsed() > time / 3 {
            restarts = 1;
            cluster.controller.process.kill();
            cluster.controller.restart();
        }
        if restarts == 1 && start.elapsed() > time * 2 / 3 {
            restarts = 2;
            to_zookeeper.trust(&[before, after]);
            to_zookeeper.show(&after.sign());
            sleep(2 * every).await;
            zookeeper.server.process.kill();
            zookeeper.restart(&[after], &after.sign()).await;
            to_zookeeper.trust(&[after]);
        }
        a_change_arrives(&cluster).await;
    }
    assert_eq!(restarts, 2, "{time:?} is too short");
    for process in [&cluster.controller.process, &cluster.proxies[0].process] {
        let log = process.log();
        assert!(log.contains("certificates have changed, and are used"));
        assert!(!log.contains("cannot be used"), "{log}");
    }
    let answered = load.requests();
    assert_eq!(load.stop().await, Vec::<String>::new());
    Rotated {
        rotations,
        answered,
    }
}

/// A new certificate; a new authority beside the old one; a certificate of it; and it alone.
async fn rotate(files: &IdentityFiles, authority: &mut Authority, every: Duration) {
    files.show(&authority.sign());
    sleep(every).await;
    let new = Authority::new();
    files.trust(&[authority, &new]);
    sleep(every).await;
    files.show(&new.sign());
    sleep(every).await;
    files.trust(&[&new]);
    sleep(every).await;
    *authority = new;
}

/// The controller leads, takes a change, and all proxies have it.
async fn a_change_arrives(cluster: &Cluster) {
    let controller = &cluster.controller;
    within(PATIENCE, || async {
        let mut admin = controller.admin().await;
        let asked = admin.get_cluster(v1::GetClusterRequest {}).await;
        let asked = asked.map_err(|e| e.to_string())?.into_inner();
        if asked.role() != Role::Leader {
            return Err(format!("{asked:?}"));
        }
        let request = v1::UpdateGroupRequest {
            id: "g1".to_owned(),
            description: asked.revision.to_string(),
            ..v1::UpdateGroupRequest::default()
        };
        admin
            .update_group(request)
            .await
            .map(drop)
            .map_err(|e| e.to_string())
    })
    .await;
    cluster.settle().await;
}
