//! ZooKeeper's bad days: its servers die, its disk is full, its network is cut. Nobody who uses a proxy
//! notices, and what an operator was told is what there is.

use std::time::Duration;

use proto::v1::{self, cluster::Role};
use tests::{
    Cluster, Controller, Ensemble, Load, Program, SOON, ZooKeeper, absence,
    disk::SmallDisk,
    eventually,
    operator::{self, Operator, becomes},
    relay::{Fault, Relay},
};
use tokio::time::{Instant, sleep};
use tonic::Code;

fn args(servers: &str, session: &str) -> Vec<String> {
    let args = [
        "--zookeeper",
        servers,
        "--zookeeper-session-timeout",
        session,
    ];
    args.map(str::to_owned).to_vec()
}

async fn cluster(servers: &str) -> Cluster {
    cluster_with(servers, "2s").await
}

async fn cluster_with(servers: &str, session: &str) -> Cluster {
    let args = args(servers, session);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let cluster = Cluster::builder().groups(2).proxies(1).stand_bys(1);
    cluster.controller_args(&args).start().await
}

/// Nobody leads, and changes are refused.
async fn nothing_can_be_changed(cluster: &Cluster) {
    for controller in [&cluster.controller, &cluster.stand_bys[0]] {
        becomes(controller, Role::Adrift).await;
        // On a busy machine it may still be finding out when it is asked.
        eventually(|| async {
            let refused = operator::describe(controller, "not to be").await;
            match refused.expect_err("it was taken") {
                status if status.code() == Code::DeadlineExceeded => Err(status.to_string()),
                status => {
                    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                    Ok(())
                }
            }
        })
        .await;
    }
}

/// `make chaos` does it for five minutes.
#[tokio::test(flavor = "multi_thread")]
async fn without_zookeeper_a_proxy_and_a_controller_start_and_nothing_is_changed() {
    absence::of_zookeeper(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn zookeepers_die_one_by_one_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut zookeepers = Ensemble::start(dir.path(), 3).await;
    let cluster = cluster(&zookeepers.addrs()).await;
    let load = Load::start(cluster.connect_all().await, |_| true);
    let mut operator = Operator::new(&cluster);
    operator.works().await;

    zookeepers.members[0].process.kill();
    operator.works().await;
    // The stand-by, too, while there is a quorum to be told by: it may have been at the one that was killed.
    operator.finds_all().await;
    for dead in [1, 2] {
        zookeepers.members[dead].process.kill();
        nothing_can_be_changed(&cluster).await;
        operator.finds_all().await;
        load.advance(500).await;
    }
    for member in &mut zookeepers.members {
        member.revive();
    }
    for member in &zookeepers.members {
        member.connect().await;
    }
    operator.works().await;
    load.advance(500).await;
    // A rolling restart.
    for member in &mut zookeepers.members {
        member.process.kill();
        operator.works().await;
        member.restart().await;
    }
    operator.works().await;
    assert_eq!(load.stop().await, Vec::<String>::new());
}

/// However the network fails, and also if what was sent before arrives in the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_a_way_to_zookeeper_makes_room_for_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let relay = Relay::start(&zookeeper.addr);
    let cluster = cluster(&relay.addr).await;
    let load = Load::start(cluster.connect_all().await, |_| true);
    let mut operator = Operator::new(&cluster);
    for fault in [Fault::Cut, Fault::BlackHole, Fault::Hold] {
        operator.works().await;
        let [one, two] = [&cluster.controller, &cluster.stand_bys[0]];
        let cut_off = operator::leader([one, two]).await;
        let other = if cut_off.addr == one.addr { two } else { one };
        relay.set_for(&cut_off.process, fault.clone());
        becomes(other, Role::Leader).await;
        becomes(cut_off, Role::Adrift).await;
        let refused = operator::describe(cut_off, "not to be").await;
        assert_eq!(refused.unwrap_err().code(), Code::Unavailable, "{fault:?}");
        operator.works().await;
        relay.heal();
        becomes(cut_off, Role::StandBy).await;
        operator.finds_all().await;
        load.advance(500).await;
    }
    assert_eq!(load.stop().await, Vec::<String>::new());
}

/// By its own clock, whatever it is waiting for then: before its session can have ended at ZooKeeper.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_not_answered_steps_down_before_another_can_lead() {
    const SESSION: Duration = Duration::from_secs(8);
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let relay = Relay::start(&zookeeper.addr);
    let cluster = cluster_with(&relay.addr, "8s").await;
    let mut operator = Operator::new(&cluster);
    operator.works().await;
    let [one, two] = [&cluster.controller, &cluster.stand_bys[0]];
    let cut_off = operator::leader([one, two]).await;
    let other = if cut_off.addr == one.addr { two } else { one };
    becomes(other, Role::StandBy).await;
    relay.set_for(&cut_off.process, Fault::BlackHole);
    let since = Instant::now();
    let asked = async {
        // So late that who waited for the answer would wait for too long.
        sleep(SESSION * 5 / 16).await;
        loop {
            drop(operator::describe(cut_off, "not to be").await);
            sleep(Duration::from_millis(50)).await;
        }
    };
    let stepped_down = async {
        while !cut_off.process.log().contains("it leads no more") {
            let leads = matches!(operator::role(&other.addr).await, Ok(Role::Leader));
            assert!(!leads, "the old one leads yet");
            assert!(since.elapsed() < 2 * SESSION, "it leads for ever");
            sleep(Duration::from_millis(20)).await;
        }
        since.elapsed()
    };
    let took = tokio::select! {
        () = asked => unreachable!("it asks for ever"),
        took = stepped_down => took,
    };
    assert!(took < SESSION * 15 / 16, "it took {took:?}");
    becomes(cut_off, Role::Adrift).await;
    becomes(other, Role::Leader).await;
    operator.works().await;
    relay.heal();
    becomes(cut_off, Role::StandBy).await;
    operator.finds_all().await;
}

/// It looks after nothing and nobody, and goes on where it was when it is answered again.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_cannot_ask_begins_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let longer = ["maxSessionTimeout=60000".to_owned()];
    let zookeeper = ZooKeeper::start_with(dir.path(), &longer).await;
    let relay = Relay::start(&zookeeper.addr);
    let cluster = cluster_with(&relay.addr, "40s").await;
    let mut operator = Operator::new(&cluster);
    operator.works().await;
    let leader = operator::leader([&cluster.controller, &cluster.stand_bys[0]]).await;
    let term = async || {
        let mut admin = leader.admin().await;
        let cluster = admin.get_cluster(v1::GetClusterRequest {}).await.unwrap();
        cluster.into_inner().leader_term
    };
    let before = term().await;
    let mut server = cluster.groups[0][0].connect().await;
    let fence = "{sluice}:fence";
    let is_there = redis::cmd("EXISTS").arg(fence).to_owned();

    relay.set_for(&leader.process, Fault::Cut);
    becomes(leader, Role::Adrift).await;
    let refused = operator::describe(leader, "not to be").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let why = "the leader changes nothing while ZooKeeper is out of reach";
    assert!(refused.message().contains(why), "{refused:?}");
    // What it had begun may end.
    sleep(Duration::from_secs(2)).await;
    let probes = leader.counter("sluice_controller_probes_total").await;
    assert!(probes > 0);
    let deleted: u32 = redis::cmd("DEL")
        .arg(fence)
        .query_async(&mut server)
        .await
        .unwrap();
    assert_eq!(deleted, 1);
    sleep(Duration::from_secs(5)).await;
    let there: bool = is_there.query_async(&mut server).await.unwrap();
    assert!(!there, "the fence record was looked after");
    let now = leader.counter("sluice_controller_probes_total").await;
    assert_eq!(now, probes, "servers were probed");

    relay.heal();
    becomes(leader, Role::Leader).await;
    eventually(|| async {
        let mut server = server.clone();
        match is_there.query_async(&mut server).await.unwrap() {
            true => Ok(()),
            false => Err("the fence record is not looked after".to_owned()),
        }
    })
    .await;
    assert_eq!(term().await, before);
    operator.works().await;
}

/// It is still on its way when it is found that it was not taken; then it arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_said_not_to_be_taken_never_is() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let client = zookeeper.connect().await;
    let relay = Relay::start(&zookeeper.addr);
    let cluster = cluster_with(&relay.addr, "8s").await;
    let mut operator = Operator::new(&cluster);
    operator.works().await;
    cluster.settle().await;
    let leader = operator::leader([&cluster.controller, &cluster.stand_bys[0]]).await;
    let version = async || {
        let stat = client.check_stat("/sluice/test/epoch").await.unwrap();
        stat.unwrap().version
    };
    let before = version().await;
    let text = "a text that comes late";
    let held = Fault::HoldFrom(text.as_bytes().to_vec());
    relay.set_for(&leader.process, held);
    let mut admin = leader.admin().await;
    let request = v1::UpdateGroupRequest {
        id: "g1".to_owned(),
        description: text.to_owned(),
        ..v1::UpdateGroupRequest::default()
    };
    let (told, ()) = tokio::join!(admin.update_group(request), async {
        relay.becomes(&leader.process, Fault::Hold).await;
        relay.strand(&leader.process);
    });
    let told = told.unwrap_err();
    assert_eq!(told.code(), Code::Unavailable, "{told:?}");
    assert!(told.message().contains("nothing was changed"), "{told:?}");
    // What was decided at that version can be taken no more.
    assert!(version().await > before);
    relay.release();
    sleep(Duration::from_secs(1)).await;
    operator.finds_all().await;
    operator.works().await;
}

/// It is neither taken for granted nor sent again: the nodes are read, and they say.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_done_once() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let relay = Relay::start(&zookeeper.addr);
    let cluster = cluster(&relay.addr).await;
    for number in 0..3 {
        let leader = operator::leader([&cluster.controller, &cluster.stand_bys[0]]).await;
        let text = format!("the answer to commit {number} is lost");
        relay.set_for(
            &leader.process,
            Fault::SwallowReply(text.clone().into_bytes()),
        );
        let id = format!("request-{number}");
        let first = operator::describe_once(leader, &text, &id).await;
        relay.becomes(&leader.process, Fault::Pass).await;
        relay.heal();
        let leader = operator::leader([&cluster.controller, &cluster.stand_bys[0]]).await;
        let again = operator::describe_once(leader, &text, &id).await;
        let again = again.unwrap().into_inner();
        assert_eq!(again.description, text);
        match first {
            // It was found out what became of it, before the caller's time was up.
            Ok(first) => assert_eq!(first.into_inner().revision, again.revision),
            Err(told) => assert!(
                matches!(
                    told.code(),
                    Code::Unavailable | Code::DeadlineExceeded | Code::Unknown
                ),
                "{told:?}"
            ),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_controllers_that_start_at_once_one_makes_the_cluster_and_leads() {
    let dir = tempfile::tempdir().unwrap();
    // Two wait for it, without anything of their own to begin with.
    let mut zookeeper = ZooKeeper::start(dir.path()).await;
    zookeeper.process.kill();
    let args = args(&zookeeper.addr, "2s");
    let names = ["one", "two", "three"];
    let controllers = names.map(|name| {
        let program = Program::ours("sluice-controller");
        Controller::begin(program, dir.path(), name, &args)
    });
    sleep(Duration::from_secs(1)).await;
    zookeeper.restart().await;
    let mut ids = Vec::new();
    let mut roles = Vec::new();
    for controller in &controllers {
        let mut admin = controller.admin().await;
        let known = eventually(|| {
            let mut admin = admin.clone();
            async move {
                let cluster = admin.get_cluster(v1::GetClusterRequest {}).await;
                let cluster = cluster.map_err(|e| e.to_string())?.into_inner();
                match cluster.role() {
                    Role::Leader | Role::StandBy => Ok(cluster),
                    other => Err(format!("it is {other:?}")),
                }
            }
        })
        .await;
        admin.get_topology(v1::GetTopologyRequest {}).await.unwrap();
        ids.push(known.id.clone());
        roles.push(known.role());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let leaders = roles.iter().filter(|role| **role == Role::Leader);
    assert_eq!(leaders.count(), 1, "{roles:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zookeeper_whose_disk_is_full_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&dir.path().join("disk"), "4m") else {
        return;
    };
    let mut zookeeper = ZooKeeper::start(&dir.path().join("disk")).await;
    let cluster = cluster(&zookeeper.addr).await;
    let load = Load::start(cluster.connect_all().await, |_| true);
    let mut operator = Operator::new(&cluster);
    operator.works().await;
    disk.fill();
    // Sooner or later the log needs another block, and ZooKeeper ends.
    let until = Instant::now() + 3 * SOON;
    let (mut number, mut acknowledged) = (0, 0);
    while zookeeper.process.is_running() {
        assert!(Instant::now() < until, "{}", zookeeper.process.log());
        number += 1;
        let text = format!("{number:<250}");
        for controller in [&cluster.controller, &cluster.stand_bys[0]] {
            if operator::describe(controller, &text).await.is_ok() {
                acknowledged = number;
            }
        }
    }
    nothing_can_be_changed(&cluster).await;
    load.advance(500).await;
    disk.make_room();
    zookeeper.process.wait(SOON);
    zookeeper.restart().await;
    let found: u64 = operator.reads().await.trim().parse().unwrap();
    assert!(
        (acknowledged..=number).contains(&found),
        "{found}, not {acknowledged}"
    );
    operator.works().await;
    operator.finds_all().await;
    assert_eq!(load.stop().await, Vec::<String>::new());
}
