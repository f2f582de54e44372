//! A secret for ZooKeeper (`--zookeeper-auth-file`): with it a cluster works as ever, and nobody without it
//! can read or write its nodes.

use std::{fs, path::Path, time::Duration};

use proto::v1::cluster::Role;
use tests::{
    Cluster, Controller, Program, ZooKeeper, eventually,
    operator::{Operator, becomes},
};
use zookeeper_client::{Acls, Client, CreateMode, Error};

const SECRET: &str = "sluice:a secret";
const ROOT: &str = "/sluice/test";

/// Arguments of a controller that has this secret in a file.
fn args(dir: &Path, zookeeper: &ZooKeeper, secret: &str) -> Vec<String> {
    let file = dir.join(format!("secret-{}", secret.len()));
    fs::write(&file, format!("{secret}\n")).unwrap();
    let file = file.to_str().unwrap();
    let session = "--zookeeper-session-timeout";
    let args = [
        "--zookeeper",
        &zookeeper.addr,
        session,
        "2s",
        "--zookeeper-auth-file",
        file,
    ];
    args.map(str::to_owned).to_vec()
}

/// Every node from here downwards.
async fn nodes(client: &Client, root: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let children = client.list_children(&path).await.unwrap();
        left.extend(children.iter().map(|child| format!("{path}/{child}")));
        all.push(path);
    }
    all
}

#[track_caller]
fn is_refused<T: std::fmt::Debug>(path: &str, result: Result<T, Error>) {
    assert!(matches!(result, Err(Error::NoAuth)), "{path}: {result:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_without_the_secret_reads_or_writes_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let args = args(dir.path(), &zookeeper, SECRET);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let cluster = Cluster::builder().groups(2).proxies(1).stand_bys(1);
    let mut cluster = cluster.controller_args(&args).start().await;
    let mut operator = Operator::new(&cluster);
    operator.works().await;
    operator.finds_all().await;

    let connector = Client::connector().with_auth("digest", SECRET.as_bytes());
    let ours = connector.connect(&zookeeper.addr).await.unwrap();
    let connector = Client::connector().with_auth("digest", b"sluice:another secret");
    let theirs = connector.connect(&zookeeper.addr).await.unwrap();
    let all = nodes(&ours, ROOT).await;
    let some = [
        "cluster",
        "epoch",
        "groups/g1",
        "leader",
        "proxies/p1",
        "slots",
    ];
    for expected in some {
        let expected = format!("{ROOT}/{expected}");
        assert!(all.contains(&expected), "{expected} is not in {all:?}");
    }
    let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
    for client in [zookeeper.connect().await, theirs] {
        for path in &all {
            is_refused(path, client.get_data(path).await);
            is_refused(path, client.list_children(path).await);
            is_refused(path, client.set_data(path, b"{}", None).await);
            is_refused(path, client.delete(path, None).await);
            let child = format!("{path}/child");
            is_refused(&child, client.create(&child, b"", &options).await);
        }
    }

    // Another leads, by the same secret.
    cluster.controller.process.kill();
    becomes(&cluster.stand_bys[0], Role::Leader).await;
    operator.works().await;
    cluster.controller.restart();
    becomes(&cluster.controller, Role::StandBy).await;
    operator.finds_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_with_another_secret_says_so_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let right = args(dir.path(), &zookeeper, SECRET);
    let controller = Controller::start(dir.path(), &right).await;
    becomes(&controller, Role::Leader).await;
    let connector = Client::connector().with_auth("digest", SECRET.as_bytes());
    let ours = connector.connect(&zookeeper.addr).await.unwrap();
    let (before, _) = ours.get_data(&format!("{ROOT}/epoch")).await.unwrap();
    let wrong = args(dir.path(), &zookeeper, "sluice:a wrong secret");
    let program = Program::ours("sluice-controller");
    let stranger = Controller::begin(program, dir.path(), "stranger", &wrong);
    eventually(|| async {
        let log = stranger.process.log();
        let error = log.lines().find(|line| line.contains("ERROR"));
        match error.filter(|line| line.contains("--zookeeper-auth-file")) {
            Some(_) => Ok(()),
            None => Err(log.clone()),
        }
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (after, _) = ours.get_data(&format!("{ROOT}/epoch")).await.unwrap();
    assert_eq!(after, before);
    assert!(stranger.process.is_running(), "it does not try again");
}
