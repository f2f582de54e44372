//! A leader that is killed or hangs at a named step, with a stand-by beside it and clients at work.
//!
//! ```no_run
//! # async fn f(zookeeper: tests::ZooKeeper) {
//! use controlplane::failpoint::Point;
//! use tests::failover::{Blow, Stage};
//! let mut stage = Stage::start(&zookeeper, "one", 1).await;
//! let unserved = stage.strike(Point::HoldCommitted, Blow::Hang).await;
//! stage.end().await;
//! # }
//! ```
//!
//! One controller, the *heir*, is of the usual kind. The other, the *victim*, is told where to fall. The heir
//! leaves, the victim leads, an operator gives it something to do (slots are to be moved, a move is to be
//! called off, a server is to join), and in the midst of it it falls. Then the heir, which is back, leads, and
//! ends what was begun.
//! A victim that hung goes on again after that, and must change nothing any more.

use std::{collections::BTreeMap, time::Duration};

use controlplane::failpoint::Point;
use proto::v1::{self, cluster::Role, migration::Phase};
use tokio::time::{Instant, sleep};

use crate::{
    Cluster, Controller, Program, Raw, SOON, Server, Workload, ZooKeeper, eventually,
    migration::assert_keys_are_at_their_owners,
    operator::{self, Admin, becomes, call, call_any},
};

/// After so long without a word, ZooKeeper takes a controller for dead.
pub const SESSION: Duration = Duration::from_secs(2);

/// How long a controller that hung is watched when it goes on.
const WATCHED: Duration = Duration::from_millis(1500);

/// What goes back and forth.
const SLOTS: &str = "0-99";

/// The group that comes and goes.
const GUEST: &str = "guest";

/// What happens to the leader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blow {
    /// `kill -9`.
    Kill,
    /// SIGSTOP, and SIGCONT when another leads.
    Hang,
}

impl Blow {
    fn action(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Hang => "stop",
        }
    }

    /// How soon proxies have to be served by another, where nothing else runs.
    pub fn most(self) -> Duration {
        let unnoticed = match self {
            Self::Kill => SESSION,
            // By proxies, whose connections stay open.
            Self::Hang => Duration::from_secs(5),
        };
        unnoticed + Duration::from_secs(2)
    }
}

/// A cluster for one blow after the other.
pub struct Stage {
    cluster: Cluster,
    workload: Workload,
    /// The server of the group that comes and goes.
    guest: Server,
    root: String,
    zookeeper: zookeeper_client::Client,
    number: u32,
    /// Whose the slots are that go back and forth.
    owner: &'static str,
}

/// What the operator wants of the leader.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Errand {
    /// To move slots.
    Move,
    /// The same, and that both proxies hang when slots are held: the hold is given up.
    MoveInVain,
    /// To call off a move.
    CallOff,
    /// To admit a server, as a group of its own.
    Admit,
}

impl Errand {
    fn to(point: Point) -> Self {
        match point {
            Point::AbortCommit | Point::AbortCommitted | Point::Clean | Point::Cleaned => {
                Self::CallOff
            }
            Point::GiveUpCommit | Point::GiveUpCommitted => Self::MoveInVain,
            Point::Admit | Point::AdmitRaised | Point::AdmitKilled | Point::Admitted => Self::Admit,
            Point::Election
            | Point::Elected
            | Point::Commit
            | Point::Committed
            | Point::Mirrored
            | Point::Shown
            | Point::Publish
            | Point::Published
            | Point::Claim
            | Point::ClaimRaised
            | Point::ClaimKilled
            | Point::Claimed
            | Point::Fence
            | Point::FenceRaised
            | Point::FenceKilled
            | Point::Fenced
            | Point::CopyCommit
            | Point::CopyCommitted
            | Point::CopyBegun
            | Point::HoldCommit
            | Point::HoldCommitted
            | Point::Settle
            | Point::Settled
            | Point::MoveCommit
            | Point::MoveCommitted
            | Point::ReapCommit
            | Point::ReapCommitted
            | Point::Reap
            | Point::Reaped
            | Point::EndCommit
            | Point::EndCommitted => Self::Move,
        }
    }
}

impl Stage {
    /// Two groups, two proxies, two controllers, and clients that never stop; its nodes are below `/name`.
    pub async fn start(zookeeper: &ZooKeeper, name: &str, seed: u64) -> Self {
        let chroot = format!("/{name}");
        let session = format!("{}s", SESSION.as_secs());
        let args = [
            "--zookeeper",
            &zookeeper.addr,
            "--zookeeper-chroot",
            &chroot,
            "--zookeeper-session-timeout",
            &session,
        ];
        let cluster = Cluster::builder().groups(2).proxies(2).stand_bys(1);
        let mut cluster = cluster.controller_args(&args).start().await;
        cluster.stand_bys[0].process.kill();
        let guest = Server::start(cluster.dir.path(), GUEST, &[]);
        guest.answers().await;
        let proxies = cluster.proxies.iter().map(|p| p.addr.clone()).collect();
        let workload = Workload::start(proxies, seed);
        workload.advance(500).await;
        Self {
            cluster,
            workload,
            guest,
            root: format!("{chroot}/test"),
            zookeeper: zookeeper.connect().await,
            number: 0,
            owner: "g1",
        }
    }

    /// Has the leader fall at a step, and sees to it that no client is told of an error, and that nothing is
    /// wrong afterwards. How long it took until every proxy routed by what the next leader had told it.
    pub async fn strike(&mut self, point: Point, blow: Blow) -> Duration {
        self.number += 1;
        let number = self.number;
        let errand = Errand::to(point);
        let addrs = self.addrs();
        let errors = self.workload.errors();
        let migration = match errand {
            Errand::Move | Errand::Admit => format!("m{number}"),
            Errand::MoveInVain | Errand::CallOff => self.paused_move().await,
        };
        let target = self.other();
        let guest = self.guest.addr.clone();
        let victim = &mut self.cluster.stand_bys[0];
        let falls = format!("{}=1*return({})", point.name(), blow.action());
        victim.restart_as(&Program::with_failpoints(&falls));
        becomes(victim, Role::StandBy).await;

        let heir = &mut self.cluster.controller;
        heir.process.terminate();
        heir.process.wait(SOON);
        let id = migration.clone();
        let doing = tokio::spawn(async move {
            match errand {
                Errand::Move => hand_over(&addrs, &id, target).await,
                Errand::MoveInVain => {}
                Errand::CallOff => call_off(&addrs, &id).await,
                Errand::Admit => admit(&addrs, &guest, number).await,
            }
            describe(&addrs, number).await;
        });
        self.leads_or_has_fallen().await;
        if errand == Errand::MoveInVain {
            self.proxies_hang(&migration).await;
        }
        self.cluster.controller.restart();
        self.has_fallen(point).await;
        for proxy in &self.cluster.proxies {
            proxy.process.resume();
        }
        // It counts from when there is somebody who can take over.
        let heir = &self.cluster.controller;
        heir.admin().await;
        let fell = Instant::now();
        becomes(heir, Role::Leader).await;
        self.cluster.routes_by(term(heir).await).await;
        let unserved = fell.elapsed();
        doing.await.unwrap();
        match errand {
            Errand::Move | Errand::MoveInVain => {
                enters(&self.addrs(), &migration, |m| m.phase() == Phase::Succeeded).await;
                self.owner = target;
            }
            Errand::CallOff => {
                enters(&self.addrs(), &migration, |m| m.phase() == Phase::Cancelled).await;
            }
            Errand::Admit => {}
        }
        self.cluster.settle().await;
        if blow == Blow::Hang {
            self.goes_on().await;
        }
        self.cluster.stand_bys[0].process.kill();
        self.is_as_acknowledged(number).await;
        if errand == Errand::Admit {
            self.guest_leaves().await;
        }
        let errors = since(&errors, self.workload.errors());
        assert!(errors.is_empty(), "clients were told {errors:?}");
        unserved
    }

    /// Who does not have the slots that go back and forth.
    fn other(&self) -> &'static str {
        match self.owner {
            "g1" => "g2",
            _ => "g1",
        }
    }

    /// Begins to move slots, and has that paused before any has moved.
    async fn paused_move(&mut self) -> String {
        let addrs = [self.cluster.controller.addr.clone()];
        for attempt in 1.. {
            let id = format!("m{}-{attempt}", self.number);
            let target = self.other();
            hand_over(&addrs, &id, target).await;
            enters(&addrs, &id, |m| m.phase() != Phase::Pending).await;
            pause(&addrs, &id, true).await;
            let stays = [Phase::Copying, Phase::Committed, Phase::Succeeded];
            let phase = enters(&addrs, &id, |m| stays.contains(&m.phase())).await;
            if phase == Phase::Copying {
                return id;
            }
            // It was too late: that was a move.
            pause(&addrs, &id, false).await;
            enters(&addrs, &id, |m| m.phase() == Phase::Succeeded).await;
            self.owner = target;
        }
        unreachable!("it returns")
    }

    /// Has the paused move go on when the victim leads and has both proxies, which hang from then on.
    async fn proxies_hang(&self, migration: &str) {
        let victim = &self.cluster.stand_bys[0];
        self.cluster.settle_at(victim).await;
        for proxy in &self.cluster.proxies {
            proxy.process.stop();
        }
        pause(std::slice::from_ref(&victim.addr), migration, false).await;
    }

    /// The group that was admitted is there, and is deleted again.
    async fn guest_leaves(&self) {
        let mut admin = self.cluster.controller.admin().await;
        let guest = v1::GetGroupRequest {
            id: GUEST.to_owned(),
        };
        let guest = admin.get_group(guest).await.unwrap().into_inner();
        assert_eq!(guest.servers[0].address, self.guest.addr);
        let leaves = v1::DeleteGroupRequest {
            id: GUEST.to_owned(),
            ..v1::DeleteGroupRequest::default()
        };
        admin.delete_group(leaves).await.unwrap();
    }

    /// Stops the clients; what they saw must be what one server could have answered, and no error.
    pub async fn end(self) {
        let errors = self.workload.errors();
        assert!(errors.is_empty(), "clients were told {errors:?}");
        let report = self.workload.stop().await;
        assert_eq!(report.violations, Vec::<String>::new());
    }

    fn addrs(&self) -> Vec<String> {
        let controllers = [&self.cluster.controller, &self.cluster.stand_bys[0]];
        controllers.map(|c| c.addr.clone()).to_vec()
    }

    async fn leads_or_has_fallen(&self) {
        let victim = &self.cluster.stand_bys[0];
        eventually(|| async {
            if !victim.process.is_running() {
                return Ok(());
            }
            match operator::role(&victim.addr).await {
                Ok(Role::Leader) => Ok(()),
                other => Err(format!("the victim is {other:?}")),
            }
        })
        .await;
    }

    async fn has_fallen(&self, point: Point) {
        eventually(|| async {
            match self.cluster.stand_bys[0].process.is_running() {
                false => Ok(()),
                true => Err(format!("{point:?} was not reached")),
            }
        })
        .await;
    }

    /// The victim, which hung, goes on. It must notice that it leads no more, and change nothing.
    async fn goes_on(&self) {
        let before = self.state().await;
        let victim = &self.cluster.stand_bys[0];
        victim.process.resume();
        becomes(victim, Role::StandBy).await;
        sleep(WATCHED).await;
        assert_eq!(self.state().await, before);
    }

    /// All that a leader may change: the nodes, the fence records, the topologies of the proxies.
    async fn state(&self) -> BTreeMap<String, String> {
        let mut state = BTreeMap::new();
        let mut paths = vec![self.root.clone()];
        while let Some(path) = paths.pop() {
            let (data, _) = self.zookeeper.get_data(&path).await.unwrap();
            let children = self.zookeeper.list_children(&path).await.unwrap();
            paths.extend(children.iter().map(|child| format!("{path}/{child}")));
            state.insert(path, String::from_utf8(data).unwrap());
        }
        let servers = self.cluster.groups.iter().map(|group| &group[0]);
        for server in servers.chain([&self.guest]) {
            let record = Raw::connect(&server.addr)
                .await
                .command("HGETALL {sluice}:fence")
                .await;
            state.insert(server.addr.clone(), record);
        }
        for proxy in &self.cluster.proxies {
            let (_, topology) = proxy.get("/topology").await;
            state.insert(proxy.addr.clone(), topology);
        }
        state
    }

    /// What the operator was told is there, and every key is at its owner.
    async fn is_as_acknowledged(&self, number: u32) {
        let mut admin = self.cluster.controller.admin().await;
        let group = v1::GetGroupRequest {
            id: "g1".to_owned(),
        };
        let group = admin.get_group(group).await.unwrap().into_inner();
        assert_eq!(group.description, number.to_string());
        let migrations = v1::ListMigrationsRequest::default();
        let list = admin.list_migrations(migrations).await.unwrap();
        let open = list.into_inner().migrations.into_iter().filter(|m| {
            let over = [Phase::Succeeded, Phase::Cancelled];
            !over.contains(&m.phase())
        });
        assert_eq!(open.count(), 0);
        assert_keys_are_at_their_owners(&self.cluster).await;
    }
}

fn since(before: &BTreeMap<String, u64>, after: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let more = after.into_iter().map(|(code, count)| {
        let count = count - before.get(&code).copied().unwrap_or_default();
        (code, count)
    });
    more.filter(|(_, count)| *count > 0).collect()
}

/// Of a leader.
async fn term(leader: &Controller) -> u64 {
    let mut admin = leader.admin().await;
    let cluster = admin.get_cluster(v1::GetClusterRequest {}).await;
    cluster.unwrap().into_inner().leader_term
}

async fn hand_over(addrs: &[String], id: &str, target: &str) {
    let request = v1::CreateMigrationRequest {
        id: id.to_owned(),
        slots: SLOTS.to_owned(),
        target_group_id: target.to_owned(),
        request_id: format!("create-{id}"),
        ..v1::CreateMigrationRequest::default()
    };
    call_any(addrs, |mut admin| {
        let request = request.clone();
        async move { admin.create_migration(request).await }
    })
    .await;
}

/// Has it paused, or go on, unless it is over.
async fn pause(addrs: &[String], id: &str, paused: bool) {
    let request = v1::ChangeMigrationRequest {
        id: id.to_owned(),
        ..v1::ChangeMigrationRequest::default()
    };
    for addr in addrs {
        let request = request.clone();
        let change = |mut admin: Admin| async move {
            match paused {
                true => admin.pause_migration(request).await,
                false => admin.resume_migration(request).await,
            }
        };
        drop(call(addr, change).await);
    }
}

async fn call_off(addrs: &[String], id: &str) {
    let request = v1::ChangeMigrationRequest {
        id: id.to_owned(),
        request_id: format!("cancel-{id}"),
        ..v1::ChangeMigrationRequest::default()
    };
    call_any(addrs, |mut admin| {
        let request = request.clone();
        async move { admin.cancel_migration(request).await }
    })
    .await;
}

async fn admit(addrs: &[String], server: &str, number: u32) {
    let request = v1::CreateGroupRequest {
        id: GUEST.to_owned(),
        servers: vec![v1::ServerSpec {
            address: server.to_owned(),
            zone: String::new(),
        }],
        request_id: format!("admit-{number}"),
        ..v1::CreateGroupRequest::default()
    };
    call_any(addrs, |mut admin| {
        let request = request.clone();
        async move { admin.create_group(request).await }
    })
    .await;
}

async fn describe(addrs: &[String], number: u32) {
    let request = v1::UpdateGroupRequest {
        id: "g1".to_owned(),
        description: number.to_string(),
        request_id: format!("describe-{number}"),
        ..v1::UpdateGroupRequest::default()
    };
    call_any(addrs, |mut admin| {
        let request = request.clone();
        async move { admin.update_group(request).await }
    })
    .await;
}

/// Returns once it is as wanted, by one of them; its phase.
async fn enters(addrs: &[String], id: &str, wanted: impl Fn(&v1::Migration) -> bool) -> Phase {
    let request = v1::GetMigrationRequest { id: id.to_owned() };
    eventually(|| async {
        let mut said = Vec::new();
        for addr in addrs {
            let ask = |mut admin: Admin| {
                let request = request.clone();
                async move { admin.get_migration(request).await }
            };
            match call(addr, ask).await {
                Ok(migration) if wanted(migration.get_ref()) => {
                    return Ok(migration.get_ref().phase());
                }
                Ok(migration) => said.push(format!("{:?}", migration.into_inner())),
                Err(why) => said.push(why.to_string()),
            }
        }
        Err(said.join("; "))
    })
    .await
}
