//! The time of day jumps by an hour, at a process of each kind: nothing follows from it but what a server makes
//! of it itself, whose keys expire by its clock.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use proto::v1::{self, cluster::Role, migration::Phase};
use redis::{aio::MultiplexedConnection, cmd};
use tests::{
    Cluster, Load, Program, Raw, SOON, Server, ZooKeeper, eventually,
    migration::{assert_keys_are_at_their_owners, create, enters},
    operator::{self, Operator, becomes},
    other_server,
};
use tokio::time::sleep;

/// What a clock is set to, in turn: seconds, and as `date` says it.
const JUMPS: [(&str, &str); 3] = [("+3600", "+1 hour"), ("-3600", "-1 hour"), ("+0", "now")];

/// A time of day that processes share, beside the true one: the package `libfaketime`.
struct Clock {
    library: String,
    file: String,
}

impl Clock {
    /// Right at first; its file is in `dir`.
    fn start(dir: &Path, name: &str) -> Self {
        let clock = Self {
            library: library().to_str().unwrap().to_owned(),
            file: dir.join(name).to_str().unwrap().to_owned(),
        };
        clock.set("+0");
        clock
    }

    /// Whole or not at all.
    fn set(&self, offset: &str) {
        let new = format!("{}.new", self.file);
        fs::write(&new, offset).unwrap();
        fs::rename(new, &self.file).unwrap();
    }

    /// The environment of who goes by it.
    fn env(&self) -> [(&'static str, &str); 4] {
        [
            ("LD_PRELOAD", &self.library),
            ("FAKETIME_TIMESTAMP_FILE", &self.file),
            ("FAKETIME_NO_CACHE", "1"),
            // As an operator, or a time server, would set it.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]
    }
}

fn library() -> PathBuf {
    let found = fs::read_dir("/usr/lib").unwrap().flatten().find_map(|dir| {
        let library = dir.path().join("faketime/libfaketimeMT.so.1");
        library.exists().then_some(library)
    });
    found.expect("libfaketime is missing: run `make deps`")
}

/// What time it is, in a format of `date`.
fn date(offset: &str, format: &str) -> String {
    let date = Command::new("date")
        .args(["-u", format, "-d", offset])
        .output();
    let text = String::from_utf8(date.unwrap().stdout).unwrap();
    text.trim_end().to_owned()
}

/// What happens at these times, by the log of who thinks that it is: to the hour.
async fn is_in_the_log(offset: &str, format: &str, log: impl Fn() -> String) {
    eventually(|| async {
        // It may be another hour since it was written.
        let hours = [
            date(offset, format),
            date(&format!("{offset} -5 minutes"), format),
        ];
        let log = log();
        match hours.iter().any(|hour| log.contains(hour)) {
            true => Ok(()),
            false => Err(format!("nothing of {hours:?} in {log}")),
        }
    })
    .await;
}

/// Who leads, by each controller, and in which term.
async fn terms(cluster: &Cluster) -> Vec<(String, u64)> {
    let mut terms = Vec::new();
    for controller in [&cluster.controller].into_iter().chain(&cluster.stand_bys) {
        let mut admin = controller.admin().await;
        let cluster = admin.get_cluster(v1::GetClusterRequest {}).await.unwrap();
        let cluster = cluster.into_inner();
        terms.push((cluster.leader_endpoint, cluster.leader_term));
    }
    terms
}

/// Has the clock jump, while an operator and clients are at work: nobody of them notices, the same
/// controller leads in the same term, and all proxies have its topology. `seen` returns when who has that
/// clock was seen to go by it.
async fn nothing_follows(cluster: &Cluster, clock: &Clock, seen: impl AsyncFn(&str)) {
    let load = Load::start(cluster.connect_all().await, |_| true);
    let mut operator = Operator::new(cluster);
    operator.works().await;
    let before = terms(cluster).await;
    for (offset, there) in JUMPS {
        clock.set(offset);
        operator.works().await;
        // Longer than a controller takes proxies, or they it, for silent; and ZooKeeper a controller.
        sleep(Duration::from_secs(4)).await;
        load.advance(500).await;
        assert_eq!(terms(cluster).await, before, "{offset}");
        cluster.settle().await;
        seen(there).await;
    }
    assert_eq!(load.stop().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_controllers_and_proxies() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let clock = Clock::start(dir.path(), "clock");
    let args = ["--zookeeper", &zookeeper.addr];
    let cluster = Cluster::builder().groups(2).proxies(2).stand_bys(1);
    let mut cluster = cluster.controller_args(&args).start().await;
    for controller in [&mut cluster.controller, &mut cluster.stand_bys[0]] {
        controller.process.terminate();
        controller.process.wait(SOON);
        controller.restart_as(&Program::ours("sluice-controller").with_env(&clock.env()));
        controller.admin().await;
    }
    for proxy in &mut cluster.proxies {
        proxy.process.kill();
        proxy.restart_as(&Program::ours("sluice-proxy").with_env(&clock.env()));
    }
    let [one, two] = [&cluster.controller, &cluster.stand_bys[0]];
    if operator::leader([one, two]).await.addr == two.addr {
        std::mem::swap(&mut cluster.controller, &mut cluster.stand_bys[0]);
    }
    becomes(&cluster.stand_bys[0], Role::StandBy).await;
    cluster.settle().await;
    let proxy = &cluster.proxies[0].process;
    nothing_follows(&cluster, &clock, async |there| {
        is_in_the_log(there, "+%Y-%m-%dT%H:", || proxy.log()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_zookeeper() {
    let dir = tempfile::tempdir().unwrap();
    let mut zookeeper = ZooKeeper::start(dir.path()).await;
    let clock = Clock::start(dir.path(), "clock");
    zookeeper.process.kill();
    zookeeper.restart_with(&clock.env()).await;
    let args = ["--zookeeper", &zookeeper.addr];
    let cluster = Cluster::builder().groups(2).proxies(2).stand_bys(1);
    let cluster = cluster.controller_args(&args).start().await;
    becomes(&cluster.stand_bys[0], Role::StandBy).await;
    let client = zookeeper.connect().await;
    nothing_follows(&cluster, &clock, async |there| {
        // It says when a node was written.
        let path = format!("/clock-{}", there.replace(' ', "-"));
        let open = zookeeper_client::Acls::anyone_all();
        let options = zookeeper_client::CreateMode::Persistent.with_acls(open);
        let (stat, _) = client.create(&path, b"", &options).await.unwrap();
        let expected: i64 = date(there, "+%s").parse().unwrap();
        let written = stat.ctime / 1000;
        assert!((written - expected).abs() < 60, "{there}: {written}");
    })
    .await;
}

/// Which keys of all are at a server.
async fn keys_at(cluster: &Cluster, group: usize, count: usize) -> Vec<String> {
    let mut keys = Vec::new();
    for n in 0.. {
        let key = format!("key-{n}");
        if cluster.owner_of(&key).await.addr == cluster.groups[group][0].addr {
            keys.push(key);
        }
        if keys.len() == count {
            break;
        }
    }
    keys
}

/// Returns once each proxy uses the server of a key, and is let in when it opens one more connection to it.
async fn is_let_in(cluster: &Cluster, key: &str) {
    for proxy in &cluster.proxies {
        eventually(|| async {
            let mut client = Raw::connect(&proxy.addr).await;
            let set = client.command(&format!("SET {key} v")).await;
            // Who watches has a connection of its own.
            let watch = client.command(&format!("WATCH {key}")).await;
            let get = client.command(&format!("GET {key}")).await;
            match [set.as_str(), &watch, &get] {
                ["+OK", "+OK", "$1 v"] => Ok(()),
                replies => Err(format!("{replies:?}")),
            }
        })
        .await;
    }
}

/// One of two servers has another time of day than the other: first since slots began to move, then when they
/// are to. Both ways, forward and back. Not with Debian's `redis-server`: `libfaketime` and the allocator that it
/// is linked with wait for each other when it starts.
async fn check_server(other: usize, program: &str) {
    let Some(program) = other_server(program) else {
        return;
    };
    let cluster = Cluster::builder().groups(2).proxies(2);
    let mut cluster = cluster.server(program).start().await;
    let clock = Clock::start(cluster.dir.path(), "clock");
    let server = &mut cluster.groups[other][0];
    server.process.kill();
    server.restart_with(&clock.env());
    server.answers().await;
    let key = keys_at(&cluster, other, 1).await.remove(0);
    is_let_in(&cluster, &key).await;
    let mut client = cluster.proxies[0].connect().await;
    for n in 0..2000 {
        run(&mut client, &format!("SET stays-{n} {n}")).await;
        run(&mut client, &format!("SET lasts-{n} {n} EX 100000")).await;
        // An hour forward these are gone: that is the server's own affair.
        run(&mut client, &format!("SET passes-{n} {n} EX 1800")).await;
    }
    let load = Load::start(cluster.connect_all().await, |_| true);
    let mut admin = cluster.controller.admin().await;
    for (offset, target) in [("+3600", "g2"), ("-3600", "g1")] {
        let slow = v1::CreateMigrationRequest {
            slots: "0-99".to_owned(),
            target_group_id: target.to_owned(),
            rate: 20,
            ..v1::CreateMigrationRequest::default()
        };
        let begun = admin.create_migration(slow).await.unwrap().into_inner();
        enters(&cluster.controller, &begun.id, Phase::Copying).await;
        clock.set(offset);
        assert_eq!(ahead(&cluster.groups[other][0]).await, offset);
        let hurry = v1::UpdateMigrationRequest {
            id: begun.id.clone(),
            ..v1::UpdateMigrationRequest::default()
        };
        admin.update_migration(hurry).await.unwrap();
        enters(&cluster.controller, &begun.id, Phase::Succeeded).await;
        is_let_in(&cluster, &key).await;
        load.advance(500).await;

        let next = v1::CreateMigrationRequest {
            slots: "100-199".to_owned(),
            target_group_id: target.to_owned(),
            ..v1::CreateMigrationRequest::default()
        };
        let refused = admin.create_migration(next).await.unwrap_err();
        let why = "the clocks of source and target are";
        assert!(refused.message().contains(why), "{refused:?}");
        clock.set("+0");
        let migration = create(&cluster.controller, "100-199", target).await;
        enters(&cluster.controller, &migration.id, Phase::Succeeded).await;
        load.advance(500).await;
    }
    assert_eq!(load.stop().await, Vec::<String>::new());
    assert_keys_are_at_their_owners(&cluster).await;
    for n in 0..2000 {
        for key in [format!("stays-{n}"), format!("lasts-{n}")] {
            let value: Option<usize> = cmd("GET").arg(&key).query_async(&mut client).await.unwrap();
            assert_eq!(value, Some(n), "{key}");
        }
    }
}

/// By how many seconds a server's clock is ahead, as it is set.
async fn ahead(server: &Server) -> String {
    let mut link = server.connect().await;
    let (there, _): (i64, u32) = cmd("TIME").query_async(&mut link).await.unwrap();
    let here: i64 = date("now", "+%s").parse().unwrap();
    let hours = (there - here + 60 * (there - here).signum()) / 3600;
    format!("{:+}", hours * 3600)
}

async fn run(client: &mut MultiplexedConnection, words: &str) {
    let mut words = words.split(' ');
    let mut command = cmd(words.next().unwrap());
    words.for_each(|word| {
        command.arg(word);
    });
    command.exec_async(client).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_source() {
    check_server(0, "redis-8.2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_target() {
    check_server(1, "valkey-9.1").await;
}
