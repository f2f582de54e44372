//! Controllers on a real ZooKeeper: one leads, another takes over, and no client notices.

use std::{fs, path::Path, time::Duration};

use proto::v1::{self, cluster::Role};
use tests::{Cluster, Controller, Load, ZooKeeper, eventually};
use tokio::time::Instant;
use tonic::Code;
use zookeeper_client::{AddWatchMode, EventType, SessionState};

/// Short, so that tests are; ZooKeeper's ticks of the harness allow one second and more.
const SESSION: Duration = Duration::from_secs(2);

fn args(zookeeper: &ZooKeeper) -> Vec<String> {
    let timeout = format!("{}s", SESSION.as_secs());
    let args = [
        "--zookeeper",
        &zookeeper.addr,
        "--zookeeper-session-timeout",
        &timeout,
    ];
    args.map(str::to_owned).to_vec()
}

async fn cluster(zookeeper: &ZooKeeper, stand_bys: usize) -> Cluster {
    let args = args(zookeeper);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let cluster = Cluster::builder().groups(2).proxies(2).stand_bys(stand_bys);
    cluster.controller_args(&args).start().await
}

async fn get(controller: &Controller) -> v1::Cluster {
    let mut admin = controller.admin().await;
    let request = v1::GetClusterRequest {};
    admin.get_cluster(request).await.unwrap().into_inner()
}

/// Returns once the controller is that to its cluster.
async fn becomes(controller: &Controller, role: Role) -> v1::Cluster {
    eventually(|| async {
        let cluster = get(controller).await;
        match cluster.role() {
            now if now == role => Ok(cluster),
            now => Err(format!("it is {now:?}, not {role:?}")),
        }
    })
    .await
}

async fn describe(controller: &Controller, text: &str) -> Result<u64, tonic::Status> {
    let mut admin = controller.admin().await;
    let request = v1::UpdateGroupRequest {
        id: "g1".to_owned(),
        description: text.to_owned(),
        ..v1::UpdateGroupRequest::default()
    };
    let group = admin.update_group(request).await?;
    Ok(group.into_inner().revision)
}

async fn description(controller: &Controller) -> String {
    let mut admin = controller.admin().await;
    let request = v1::GetGroupRequest {
        id: "g1".to_owned(),
    };
    let group = admin.get_group(request).await.unwrap();
    group.into_inner().description
}

fn assert_unavailable(result: Result<u64, tonic::Status>, text: &str) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains(text), "{status:?}");
}

#[tokio::test]
async fn a_stand_by_takes_over_and_no_client_notices() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let mut cluster = cluster(&zookeeper, 1).await;
    becomes(&cluster.controller, Role::Leader).await;
    let stand_by = becomes(&cluster.stand_bys[0], Role::StandBy).await;
    assert_eq!(stand_by.leader_endpoint, cluster.controller.addr);
    assert_unavailable(
        describe(&cluster.stand_bys[0], "by the wrong one").await,
        &format!("the controller at {} leads", cluster.controller.addr),
    );
    describe(&cluster.controller, "before").await.unwrap();
    eventually(|| async {
        match description(&cluster.stand_bys[0]).await.as_str() {
            "before" => Ok(()),
            text => Err(format!("the stand-by has `{text}`")),
        }
    })
    .await;

    let load = Load::start(cluster.connect_all().await, |_| true);
    let mut took = Vec::new();
    for round in 0..3 {
        load.advance(2_000).await;
        let before = becomes(&cluster.controller, Role::Leader).await;
        took.push(is_replaced(&mut cluster).await);
        // The old one is a stand-by from now on.
        let [new, old] = [&cluster.controller, &cluster.stand_bys[0]];
        let after = becomes(new, Role::Leader).await;
        assert!(after.leader_term > before.leader_term);
        let text = format!("after {round}");
        let revision = describe(new, &text).await.unwrap();
        assert!(revision > after.revision);
        cluster.settle().await;
        becomes(old, Role::StandBy).await;
        eventually(|| async {
            let found = description(old).await;
            (found == text).then_some(()).ok_or(found)
        })
        .await;
    }
    // Of three the best one: what else the machine had to do is in the others.
    let best = took.iter().min().unwrap();
    assert!(*best < SESSION + Duration::from_secs(2), "{took:?}");
    load.advance(2_000).await;
    assert_eq!(load.stop().await, Vec::<String>::new());
}

/// Kills the leader, and returns how long it took until every proxy routed by what the other had told it. The
/// old one is started again, and the two change places.
async fn is_replaced(cluster: &mut Cluster) -> Duration {
    let before = get(&cluster.controller).await.leader_term;
    cluster.controller.process.kill();
    let killed = Instant::now();
    cluster.routes_by(before + 1).await;
    let took = killed.elapsed();
    cluster.controller.restart();
    std::mem::swap(&mut cluster.controller, &mut cluster.stand_bys[0]);
    took
}

#[tokio::test]
async fn a_leader_that_hung_leads_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let cluster = cluster(&zookeeper, 1).await;
    describe(&cluster.controller, "before").await.unwrap();
    // Sent to it while it hangs; it sees it only when another has led for a while.
    let mut admin = cluster.controller.admin().await;
    cluster.controller.process.stop();
    let late = tokio::spawn(async move {
        let request = v1::UpdateGroupRequest {
            id: "g1".to_owned(),
            description: "by the old leader".to_owned(),
            ..v1::UpdateGroupRequest::default()
        };
        admin.update_group(request).await
    });
    becomes(&cluster.stand_bys[0], Role::Leader).await;
    describe(&cluster.stand_bys[0], "by the new leader")
        .await
        .unwrap();
    cluster.controller.process.resume();
    let answer = late.await.unwrap();
    assert!(answer.is_err(), "{answer:?}");
    becomes(&cluster.controller, Role::StandBy).await;
    for controller in [&cluster.controller, &cluster.stand_bys[0]] {
        assert_eq!(description(controller).await, "by the new leader");
    }
}

#[tokio::test]
async fn without_zookeeper_all_is_served_and_nothing_changed() {
    let dir = tempfile::tempdir().unwrap();
    let mut zookeeper = ZooKeeper::start(dir.path()).await;
    let mut cluster = cluster(&zookeeper, 0).await;
    describe(&cluster.controller, "before").await.unwrap();
    let load = Load::start(vec![cluster.proxies[1].connect().await], |_| true);
    load.advance(1_000).await;
    let term = get(&cluster.controller).await.leader_term;

    zookeeper.process.kill();
    becomes(&cluster.controller, Role::Adrift).await;
    assert_unavailable(
        describe(&cluster.controller, "meanwhile").await,
        "ZooKeeper is out of reach",
    );
    assert_eq!(description(&cluster.controller).await, "before");
    // A proxy that starts now is served from the mirror, also by a controller that starts now.
    cluster.controller.process.kill();
    cluster.controller.restart();
    becomes(&cluster.controller, Role::Adrift).await;
    cluster.proxies.remove(0);
    let args = ["--controller", &cluster.controller.addr, "--id", "p9"];
    let args = args.map(str::to_owned);
    let proxy = tests::Proxy::start(cluster.dir.path(), "p9", &args).await;
    eventually(|| async {
        let mut client = proxy.raw().await;
        match client.command("SET a 1").await.as_str() {
            "+OK" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;

    zookeeper.restart().await;
    let after = becomes(&cluster.controller, Role::Leader).await;
    assert!(after.leader_term > term);
    describe(&cluster.controller, "after").await.unwrap();
    // It registers by itself, now that this can be written.
    eventually(|| async {
        let mut admin = cluster.controller.admin().await;
        let request = v1::GetProxyRequest {
            id: "p9".to_owned(),
        };
        let proxy = admin.get_proxy(request).await.map_err(|e| e.to_string())?;
        match proxy.into_inner().connected {
            true => Ok(()),
            false => Err("p9 is not connected".to_owned()),
        }
    })
    .await;
    load.advance(1_000).await;
    assert_eq!(load.stop().await, Vec::<String>::new());
}

/// A controller of its own on a ZooKeeper, with a group that it knows of.
async fn alone(dir: &Path, zookeeper: &ZooKeeper) -> (tests::Server, Controller) {
    let server = tests::Server::start(dir, "server", &[]);
    server.answers().await;
    let controller = Controller::start(dir, &args(zookeeper)).await;
    becomes(&controller, Role::Leader).await;
    let mut admin = controller.admin().await;
    let request = v1::CreateGroupRequest {
        id: "g1".to_owned(),
        servers: vec![v1::ServerSpec {
            address: server.addr.clone(),
            zone: String::new(),
        }],
        ..v1::CreateGroupRequest::default()
    };
    admin.create_group(request).await.unwrap();
    (server, controller)
}

#[tokio::test]
async fn a_zookeeper_that_was_wiped_or_restored_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut zookeeper = ZooKeeper::start(dir.path()).await;
    let (_server, controller) = alone(dir.path(), &zookeeper).await;
    describe(&controller, "old").await.unwrap();
    zookeeper.process.kill();
    let backup = dir.path().join("backup");
    copy(&zookeeper.data_dir(), &backup);
    zookeeper.restart().await;
    becomes(&controller, Role::Leader).await;
    describe(&controller, "new").await.unwrap();

    let mut refused = 0;
    for restored in [Some(&backup), None] {
        zookeeper.process.kill();
        becomes(&controller, Role::Adrift).await;
        fs::remove_dir_all(zookeeper.data_dir()).unwrap();
        if let Some(backup) = restored {
            copy(backup, &zookeeper.data_dir());
        }
        zookeeper.restart().await;
        let why = if restored.is_some() {
            "was known"
        } else {
            "was ZooKeeper wiped"
        };
        eventually(|| async {
            let log = controller.process.log();
            let refused = log
                .lines()
                .any(|line| line.contains("what ZooKeeper has is refused") && line.contains(why));
            if refused { Ok(()) } else { Err(log) }
        })
        .await;
        assert_eq!(get(&controller).await.role(), Role::Adrift);
        assert_eq!(description(&controller).await, "new");
        refused += 1;
        let counted = controller
            .counter("sluice_controller_stores_refused_total")
            .await;
        assert_eq!(
            counted, refused,
            "once for each time, however often it looks"
        );
        assert_unavailable(describe(&controller, "newer").await, "nothing was changed");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[tokio::test]
async fn a_mirror_of_no_use_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let (_server, mut controller) = alone(dir.path(), &zookeeper).await;
    describe(&controller, "kept").await.unwrap();
    let mirror = controller.data_dir().join("mirror");
    let mut rebuilt = 0;
    for bytes in [0, 4096] {
        controller.process.kill();
        fs::File::options()
            .write(true)
            .open(mirror.join("db"))
            .unwrap()
            .set_len(bytes)
            .unwrap();
        controller.restart();
        becomes(&controller, Role::Leader).await;
        assert_eq!(description(&controller).await, "kept");
        // By this process; a file that was cut short may be whole, but older.
        rebuilt += controller
            .counter("sluice_controller_mirrors_rebuilt_total")
            .await;
        describe(&controller, "kept still").await.unwrap();
        describe(&controller, "kept").await.unwrap();
    }
    assert!(controller.data_dir().join("mirror.damaged").exists());
    let said = controller
        .process
        .log()
        .matches("mirror is of no use")
        .count();
    assert!(said > 0);
    assert_eq!(rebuilt, said as u64);
}

#[tokio::test]
async fn the_nodes_are_for_people_to_read() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let (server, controller) = alone(dir.path(), &zookeeper).await;
    let client = zookeeper.connect().await;
    let mut nodes = client.list_children("/sluice/test").await.unwrap();
    nodes.sort();
    let expected = [
        "cluster",
        "epoch",
        "groups",
        "leader",
        "migrations",
        "proxies",
        "requests",
        "slots",
    ];
    assert_eq!(nodes, expected);
    let read = async |path: &str| {
        let (data, _) = client.get_data(path).await.unwrap();
        String::from_utf8(data).unwrap()
    };
    let group = read("/sluice/test/groups/g1").await;
    assert!(
        group.contains(&format!("\"address\": \"{}\"", server.addr)),
        "{group}"
    );
    let leader = read("/sluice/test/leader").await;
    assert!(leader.contains(&controller.addr), "{leader}");
    // What somebody else changes by hand without the epoch is seen, and does no harm.
    client.delete("/sluice/test/leader", None).await.unwrap();
    eventually(|| async {
        match get(&controller).await {
            cluster if cluster.role() == Role::Leader && cluster.leader_term > 1 => Ok(()),
            cluster => Err(format!("{cluster:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn a_leader_on_whose_node_somebody_writes_leads_on() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let cluster = cluster(&zookeeper, 1).await;
    let before = becomes(&cluster.controller, Role::Leader).await;
    let client = zookeeper.connect().await;
    let path = "/sluice/test/leader";
    client
        .set_data(path, b"who reads this", None)
        .await
        .unwrap();
    eventually(|| async {
        let described = describe(&cluster.controller, "after").await;
        described.map_err(|e| e.to_string())
    })
    .await;
    // Nobody else was elected meanwhile.
    let after = get(&cluster.controller).await;
    assert_eq!(after.leader_term, before.leader_term + 1);
    let (node, stat) = client.get_data(path).await.unwrap();
    let node = String::from_utf8(node).unwrap();
    assert!(node.contains(&cluster.controller.addr), "{node}");
    assert_eq!(stat.version, 0);
    becomes(&cluster.stand_bys[0], Role::StandBy).await;
}

#[tokio::test]
async fn two_controllers_with_one_address_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let mut args = args(&zookeeper);
    args.extend(["--advertise", "127.0.0.1:1"].map(str::to_owned));
    let mut one = Controller::start_as(dir.path(), "one", &args).await;
    becomes(&one, Role::Leader).await;
    let mut two = Controller::start_as(dir.path(), "two", &args).await;
    // It does not serve proxies for ever as if nobody led.
    becomes(&two, Role::StandBy).await;
    let said = "reached at the same address";
    assert_eq!(two.process.log().matches(said).count(), 1);
    one.process.kill();
    becomes(&two, Role::Leader).await;
    // One that starts again does not take itself for another.
    two.process.kill();
    two.restart();
    becomes(&two, Role::Leader).await;
    assert_eq!(two.process.log().matches(said).count(), 1);
}

#[tokio::test]
async fn what_is_edited_by_hand_is_taken_and_no_change_is_refused_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let cluster = cluster(&zookeeper, 1).await;
    let client = zookeeper.connect().await;
    let path = "/sluice/test/groups/g1";
    // As a person would: read, edit, write, all the time.
    let edit = async |number: u32| {
        let (data, stat) = client.get_data(path).await.unwrap();
        let mut group: serde_json::Value = serde_json::from_slice(&data).unwrap();
        group["servers"][0]["zone"] = format!("zone-{number}").into();
        let data = serde_json::to_vec(&group).unwrap();
        client.set_data(path, &data, Some(stat.version)).await
    };
    let before = get(&cluster.controller).await.revision;
    edit(0).await.unwrap();
    // It gets a version of its own, which proxies and stand-bys have.
    for controller in [&cluster.controller, &cluster.stand_bys[0]] {
        eventually(|| async {
            match get(controller).await.revision {
                revision if revision == before + 1 => Ok(()),
                revision => Err(format!("at {revision}, not {before} and one more")),
            }
        })
        .await;
    }
    cluster.settle().await;

    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let edits = async {
        let mut done = 0;
        while stopped.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
            done += u32::from(edit(done + 1).await.is_ok());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        done
    };
    let changes = async {
        let mut number = 0;
        // Until an edit has come between a decision and its commit.
        while !cluster.controller.process.log().contains("decided again") {
            number += 1;
            assert!(number < 1_000, "there was no conflict");
            let text = format!("change {number}");
            describe(&cluster.controller, &text).await.unwrap();
            assert_eq!(description(&cluster.controller).await, text);
        }
        drop(stop);
        number
    };
    let (done, number) = tokio::join!(edits, changes);
    cluster.settle().await;
    let (data, _) = client.get_data(path).await.unwrap();
    let group: serde_json::Value = serde_json::from_slice(&data).unwrap();
    assert_eq!(group["description"], format!("change {number}"));
    assert_eq!(group["servers"][0]["zone"], format!("zone-{done}"));
}

/// Documents why `Session::watch_again` exists. When this fails, the library has been mended.
#[tokio::test]
async fn the_client_library_loses_its_watch_when_it_reconnects() {
    let dir = tempfile::tempdir().unwrap();
    let mut zookeeper = ZooKeeper::start(dir.path()).await;
    let client = zookeeper.connect_for(Duration::from_secs(20)).await;
    let options =
        zookeeper_client::CreateMode::Persistent.with_acls(zookeeper_client::Acls::anyone_all());
    let mut watcher = client
        .watch("/", AddWatchMode::PersistentRecursive)
        .await
        .unwrap();
    client.create("/before", &[], &options).await.unwrap();
    assert_eq!(watcher.changed().await.event_type, EventType::NodeCreated);

    zookeeper.process.kill();
    zookeeper.restart().await;
    loop {
        let event = watcher.changed().await;
        assert_eq!(event.event_type, EventType::Session);
        if event.session_state == SessionState::SyncConnected {
            break;
        }
    }
    client.create("/after", &[], &options).await.unwrap();
    let told = tokio::time::timeout(Duration::from_secs(1), watcher.changed()).await;
    assert!(
        told.is_err(),
        "it is told of {told:?}: the watch is kept now"
    );
    let mut again = client
        .watch("/", AddWatchMode::PersistentRecursive)
        .await
        .unwrap();
    client.create("/again", &[], &options).await.unwrap();
    assert_eq!(again.changed().await.event_type, EventType::NodeCreated);
}
