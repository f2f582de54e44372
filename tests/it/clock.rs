//! The time of day jumps by an hour, at controllers and proxies: nothing follows from it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use proto::v1::{self, cluster::Role};
use tests::{
    Cluster, Load, Program, SOON, ZooKeeper,
    operator::{self, Operator, becomes},
};
use tokio::time::sleep;

/// Gives a process another time of day: the package `libfaketime`.
fn library() -> PathBuf {
    let found = fs::read_dir("/usr/lib").unwrap().flatten().find_map(|dir| {
        let library = dir.path().join("faketime/libfaketimeMT.so.1");
        library.exists().then_some(library)
    });
    found.expect("libfaketime is missing: run `make deps`")
}

/// What time it is, as a log has it, to the hour.
fn hour(offset: &str) -> String {
    let date = Command::new("date")
        .args(["-u", "+%Y-%m-%dT%H:", "-d", offset])
        .output();
    let text = String::from_utf8(date.unwrap().stdout).unwrap();
    text.trim_end().to_owned()
}

/// Whole or not at all.
fn set(file: &Path, offset: &str) {
    let new = file.with_extension("new");
    fs::write(&new, offset).unwrap();
    fs::rename(new, file).unwrap();
}

/// Who leads, by each controller, and in which term.
async fn terms(cluster: &Cluster) -> Vec<(String, u64)> {
    let mut terms = Vec::new();
    for controller in [&cluster.controller, &cluster.stand_bys[0]] {
        let mut admin = controller.admin().await;
        let cluster = admin.get_cluster(v1::GetClusterRequest {}).await.unwrap();
        let cluster = cluster.into_inner();
        terms.push((cluster.leader_endpoint, cluster.leader_term));
    }
    terms
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_day_may_jump() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let offset = dir.path().join("offset");
    set(&offset, "+0");
    let (library, file) = (library(), offset.to_string_lossy().into_owned());
    let env = [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FAKETIME_TIMESTAMP_FILE", &file),
        ("FAKETIME_NO_CACHE", "1"),
        // As an operator, or a time server, would set it.
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    let args = ["--zookeeper", &zookeeper.addr];
    let cluster = Cluster::builder().groups(2).proxies(2).stand_bys(1);
    let mut cluster = cluster.controller_args(&args).start().await;
    for controller in [&mut cluster.controller, &mut cluster.stand_bys[0]] {
        controller.process.terminate();
        controller.process.wait(SOON);
        controller.restart_as(&Program::ours("sluice-controller").with_env(&env));
        controller.admin().await;
    }
    for proxy in &mut cluster.proxies {
        proxy.process.kill();
        proxy.restart_as(&Program::ours("sluice-proxy").with_env(&env));
    }
    let [one, two] = [&cluster.controller, &cluster.stand_bys[0]];
    if operator::leader([one, two]).await.addr == two.addr {
        std::mem::swap(&mut cluster.controller, &mut cluster.stand_bys[0]);
    }
    becomes(&cluster.stand_bys[0], Role::StandBy).await;
    cluster.settle().await;
    let load = Load::start(cluster.connect_all().await, |_| true);
    let mut operator = Operator::new(&cluster);
    operator.works().await;
    let before_it = terms(&cluster).await;
    for (faked, there) in [("+3600", "+1 hour"), ("-3600", "-1 hour"), ("+0", "now")] {
        set(&offset, faked);
        let before = hour(there);
        operator.works().await;
        // Longer than a controller takes proxies, or they it, for silent.
        sleep(Duration::from_secs(4)).await;
        load.advance(500).await;
        assert_eq!(terms(&cluster).await, before_it);
        cluster.settle().await;
        // It has seen it: what it did then is in its log.
        let log = cluster.proxies[0].process.log();
        let seen = [before, hour(there)].iter().any(|hour| log.contains(hour));
        assert!(seen, "{faked}: {log}");
    }
    assert_eq!(load.stop().await, Vec::<String>::new());
}
