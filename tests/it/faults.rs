//! What goes wrong on the edges of a cluster while its slots move, one scene each.
//!
//! A scene ends with what went wrong that must not. With the programs as they are that is nothing, which is
//! shown here; with a bug in them it is something, which `seeded` shows.
//!
//! What is shown of each fault at each stage of a move, here or in another file (`chaos` kills at any stage, as
//! its seed has it):
//!
//! | | it copies | slots are held | they have moved |
//! |---|---|---|---|
//! | a proxy dies | `chaos` | `chaos` | `chaos` |
//! | a proxy hangs | `migration::a_proxy_that_hangs` | `migration::hang` | `migration::hang` |
//! | a proxy starts | `chaos` | `a_proxy_that_starts_during_a_hold` | `chaos` |
//! | a proxy without a controller | `a_proxy_without_a_controller` | the same | `a_proxy_that_starts_during_a_hold` |
//! | a proxy hears late | `a_proxy_that_hears_late` | the same | the same |
//! | a proxy without the source | `lost_replies`, `lost` | `a_proxy_without_the_source`, `a_proxy_that_stays_without_the_source`, `a_slow_way_to_the_source` | `a_write_that_arrives_late` |
//! | a proxy does not hear of a give-up | – | `held` | – |
//! | a proxy without the target | – | – | `a_proxy_without_the_target` |
//! | the leader dies | `failover`, `migration::a_leader_that_dies` | the same; `a_key_that_is_deleted_between_two_copies` | `failover` |
//! | the leader without ZooKeeper | `a_leader_without_zookeeper`, `zookeeper` | `zookeeper` | `a_commit_whose_answer_is_lost`, `zookeeper` |
//! | the copy's connection is lost | `a_copy_that_arrives_late`, `lost` | `lost` | – |
//! | a client writes past the proxies | `migration::fitness` | the same | – |
//! | the source dies | `chaos` | `held` | `chaos` |
//! | the target dies | `chaos` | `held` | `chaos` |
//! | the source or the target hangs | `migration::stall` | the same | the same |
//! | the target's replica hangs | `migration::stall` | the same | – |
//! | the operator cancels | `migration::a_migration_waits` | `a_move_that_is_cancelled` | – |

use std::{collections::BTreeSet, time::Duration};

use proto::{
    Slot,
    seeded::Bug,
    v1::{ChangeMigrationRequest, ListProxiesRequest, UpdateMigrationRequest, migration::Phase},
};
use redis::{aio::MultiplexedConnection, cmd};
use tests::{
    Cluster, Fault, Relay, Workload, ZooKeeper, eventually,
    migration::{MOVED, create, enters, get, migrate, misplaced_keys},
    within,
};
use tokio::time::sleep;
use tonic::Code;

mod held;
mod lost;
mod zookeeper;

/// What went wrong that must not, in words.
type Violations = Vec<String>;

async fn cluster(proxies: usize, bug: Option<Bug>) -> Cluster {
    Cluster::builder()
        .groups(2)
        .proxies(proxies)
        .proxy_args(&["--workers", "2"])
        .relayed()
        .bug(bug)
        .start()
        .await
}

async fn judge(cluster: &Cluster, workload: Workload) -> Violations {
    let mut violations = workload.stop().await.violations;
    violations.extend(misplaced_keys(cluster).await);
    violations
}

/// Those of the first group's slots that the workload writes to all the time.
fn hot_slots() -> String {
    let keys = [
        "counter:0",
        "counter:1",
        "counter:2",
        "counter:3",
        "counter:4",
        "counter:5",
        "list:0",
        "list:1",
        "list:2",
        "list:3",
        "set:0",
        "set:1",
        "set:2",
        "queue:0",
        "queue:1",
        "queue:2",
    ];
    let slots = keys.map(|key| Slot::of_key(key.as_bytes()).number());
    let of_first = slots.into_iter().filter(|slot| *slot < 512);
    let of_first: BTreeSet<String> = of_first.map(|slot| slot.to_string()).collect();
    Vec::from_iter(of_first).join(",")
}

/// Nothing happens but that slots move, there and back.
pub(super) async fn nothing(bug: Option<Bug>) -> Violations {
    let cluster = cluster(2, bug).await;
    let workload = Workload::start(cluster.addrs(), 31);
    for target in ["g2", "g1"] {
        workload.advance(1000).await;
        migrate(&cluster, "0-255", target).await;
    }
    judge(&cluster, workload).await
}

/// A proxy loses its controller. It is fenced out of the source, and serves all else.
pub(super) async fn a_proxy_without_a_controller(bug: Option<Bug>) -> Violations {
    let cluster = cluster(2, bug).await;
    let workload = Workload::start(cluster.addrs(), 32);
    workload.advance(1000).await;
    let edge = &cluster.edges().controllers[0];
    let cut_off = &cluster.proxies[1].process;
    edge.set_for(cut_off, Fault::BlackHole);
    migrate(&cluster, &hot_slots(), "g2").await;
    workload.advance(500).await;
    edge.heal();
    cluster.settle().await;
    workload.advance(500).await;
    judge(&cluster, workload).await
}

/// A proxy hears of each topology later than the others.
pub(super) async fn a_proxy_that_hears_late(bug: Option<Bug>) -> Violations {
    let cluster = cluster(2, bug).await;
    let workload = Workload::start(cluster.addrs(), 33);
    let edge = &cluster.edges().controllers[0];
    edge.set_for(
        &cluster.proxies[1].process,
        Fault::Delay(Duration::from_millis(70)),
    );
    for target in ["g2", "g1", "g2", "g1"] {
        workload.advance(500).await;
        migrate(&cluster, "0-255", target).await;
    }
    edge.heal();
    judge(&cluster, workload).await
}

/// What a proxy sends to the source does not arrive while its slots are held: the hold is given up, and the
/// slots move when it has arrived.
pub(super) async fn a_slow_way_to_the_source(bug: Option<Bug>) -> Violations {
    the_source_cannot_be_reached(Fault::Hold, 34, bug).await
}

async fn the_source_cannot_be_reached(fault: Fault, seed: u64, bug: Option<Bug>) -> Violations {
    let cluster = cluster(2, bug).await;
    let workload = Workload::start(cluster.addrs(), seed);
    workload.advance(500).await;
    let edge = &cluster.edges().servers[0];
    let controller = &cluster.controller;
    let migration = create(controller, &hot_slots(), "g2").await;
    enters(controller, &migration.id, Phase::Copying).await;
    edge.set_for(&cluster.proxies[1].process, fault);
    within(MOVED, || async {
        let migration = get(controller, &migration.id).await?;
        match (migration.phase(), migration.cut_overs) {
            (Phase::Copying, 1..) | (Phase::Reaping | Phase::Succeeded, _) => Ok(()),
            (phase, _) => Err(format!("{phase:?}")),
        }
    })
    .await;
    edge.heal();
    enters(controller, &migration.id, Phase::Succeeded).await;
    judge(&cluster, workload).await
}

/// Its operator does not want a move any more.
pub(super) async fn a_move_that_is_cancelled(bug: Option<Bug>) -> Violations {
    let cluster = cluster(2, bug).await;
    let workload = Workload::start(cluster.addrs(), 37);
    let mut admin = cluster.controller.admin().await;
    let mut cancelled = 0;
    // Two batches each: what has been committed when the word comes, stays.
    for slots in ["0-169", "170-339", "340-511"] {
        workload.advance(300).await;
        let migration = create(&cluster.controller, slots, "g2").await;
        let id = migration.id;
        within(MOVED, || async {
            let migration = get(&cluster.controller, &id).await?;
            let begun = migration.cut_overs > 0;
            begun.then_some(()).ok_or_else(|| format!("{migration:?}"))
        })
        .await;
        let cancel = ChangeMigrationRequest {
            id: id.clone(),
            ..ChangeMigrationRequest::default()
        };
        match admin.cancel_migration(cancel).await {
            Ok(_) => {
                enters(&cluster.controller, &id, Phase::Cancelled).await;
                cancelled += 1;
            }
            Err(too_late) => {
                assert_eq!(too_late.code(), Code::FailedPrecondition, "{too_late:?}");
                enters(&cluster.controller, &id, Phase::Succeeded).await;
            }
        }
    }
    assert!(cancelled > 0, "each move was over before it was cancelled");
    judge(&cluster, workload).await
}

/// A proxy starts while a slot is held, and hears nothing after that: neither that it has moved.
pub(super) async fn a_proxy_that_starts_during_a_hold(bug: Option<Bug>) -> Violations {
    let mut cluster = cluster(2, bug).await;
    let mut violations = Vec::new();
    let mut client = cluster.proxies[0].connect().await;
    for (source, target) in [(0, "g2"), (1, "g1"), (0, "g2")] {
        set(&mut client, KEY, "before").await.unwrap();
        let joiner = &mut cluster.proxies[1];
        joiner.process.kill();
        joiner.restart();
        let joiner = &cluster.proxies[1];
        let [of_source, of_controller] = [
            &cluster.edges().servers[source],
            &cluster.edges().controllers[0],
        ];
        of_controller.set_for(&joiner.process, Fault::Hold);
        // The last that the leader asks of the source before it gives the slot away.
        of_source.set_for(
            &cluster.controller.process,
            Fault::HoldFrom(BARRIER.to_vec()),
        );
        let migration = create(&cluster.controller, SLOT, target).await;
        of_source
            .becomes(&cluster.controller.process, Fault::Hold)
            .await;
        of_controller.set_for(&joiner.process, Fault::Pass);
        has_the_topology(&cluster, "p2").await;
        of_controller.set_for(&joiner.process, Fault::Hold);
        of_source.heal();
        within(MOVED, || async {
            let migration = get(&cluster.controller, &migration.id).await?;
            let has_moved = migration.moved_slots == SLOT;
            has_moved
                .then_some(())
                .ok_or_else(|| format!("{migration:?}"))
        })
        .await;
        let mut of_joiner = joiner.connect().await;
        let wrote = set(&mut of_joiner, KEY, "after").await.is_ok();
        let value = read(&mut client, KEY).await;
        if wrote && value.as_deref() != Some("after") {
            violations.push(format!("{value:?} was read, and after was written"));
        }
        of_controller.heal();
        enters(&cluster.controller, &migration.id, Phase::Succeeded).await;
        cluster.settle().await;
    }
    violations
}

async fn has_the_topology(cluster: &Cluster, proxy: &str) {
    let admin = cluster.controller.admin().await;
    eventually(|| {
        let mut admin = admin.clone();
        async move {
            let proxies = admin.list_proxies(ListProxiesRequest::default()).await;
            let proxies = proxies.map_err(|e| e.to_string())?.into_inner().proxies;
            let has = proxies
                .iter()
                .any(|p| p.id == proxy && p.connected && p.acked_version.is_some());
            has.then_some(()).ok_or_else(|| format!("{proxies:?}"))
        }
    })
    .await;
}

/// Replies of a server are lost, with the connections that they come on.
pub(super) async fn lost_replies(bug: Option<Bug>) -> Violations {
    let cluster = cluster(1, bug).await;
    let workload = Workload::start(cluster.addrs(), 36);
    let proxy = &cluster.proxies[0].process;
    let edge = &cluster.edges().servers[0]; // all counters are there
    for round in 0..12 {
        workload.advance(100).await;
        let request: &[u8] = if round < 6 { b"INCR" } else { b"EVALSHA" };
        edge.set_for(proxy, Fault::SwallowReply(request.to_vec()));
        edge.becomes(proxy, Fault::Pass).await;
    }
    workload.advance(500).await;
    judge(&cluster, workload).await
}

/// A proxy cannot reach the source: likewise, and what was under way there is lost.
pub(super) async fn a_proxy_without_the_source(bug: Option<Bug>) -> Violations {
    the_source_cannot_be_reached(Fault::BlackHole, 38, bug).await
}

/// The same, for as long as slots are to move: after some holds it is fenced out, and they move.
pub(super) async fn a_proxy_that_stays_without_the_source(bug: Option<Bug>) -> Violations {
    let cluster = cluster(2, bug).await;
    let workload = Workload::start(cluster.addrs(), 42);
    workload.advance(500).await;
    let edge = &cluster.edges().servers[0];
    edge.set_for(&cluster.proxies[1].process, Fault::BlackHole);
    let moved = migrate(&cluster, &hot_slots(), "g2").await;
    assert!(moved.cut_overs > 1, "it was not waited for: {moved:?}");
    workload.advance(500).await;
    edge.heal();
    workload.advance(500).await;
    judge(&cluster, workload).await
}

/// A proxy cannot reach the target: what has moved it cannot serve, and no other notices.
pub(super) async fn a_proxy_without_the_target(bug: Option<Bug>) -> Violations {
    let cluster = cluster(2, bug).await;
    let workload = Workload::start(cluster.addrs(), 39);
    workload.advance(500).await;
    let edge = &cluster.edges().servers[1];
    edge.set_for(&cluster.proxies[1].process, Fault::Cut);
    migrate(&cluster, &hot_slots(), "g2").await;
    workload.advance(500).await;
    edge.heal();
    workload.advance(500).await;
    judge(&cluster, workload).await
}

/// The answer to the commit that gives slots away is lost, so that the leader does not know whether it gave them.
pub(super) async fn a_commit_whose_answer_is_lost(bug: Option<Bug>) -> Violations {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let edge = Relay::start(&zookeeper.addr);
    let cluster = on_zookeeper(&edge, bug).await;
    let workload = Workload::start(cluster.addrs(), 40);
    workload.advance(500).await;
    let leader = &cluster.controller.process;
    edge.set_for(leader, Fault::SwallowReply(b"\"COMMITTED\"".to_vec()));
    let migration = create(&cluster.controller, &hot_slots(), "g2").await;
    edge.becomes(leader, Fault::Pass).await;
    enters(&cluster.controller, &migration.id, Phase::Succeeded).await;
    judge(&cluster, workload).await
}

/// ZooKeeper cannot be reached while slots move: nothing is decided, and all else is served.
pub(super) async fn a_leader_without_zookeeper(bug: Option<Bug>) -> Violations {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let edge = Relay::start(&zookeeper.addr);
    let cluster = on_zookeeper(&edge, bug).await;
    let workload = Workload::start(cluster.addrs(), 41);
    workload.advance(500).await;
    let leader = &cluster.controller.process;
    edge.set_for(leader, Fault::HoldFrom(b"\"CUTTING_OVER\"".to_vec()));
    let migration = create(&cluster.controller, &hot_slots(), "g2").await;
    edge.becomes(leader, Fault::Hold).await;
    workload.advance(1000).await;
    edge.heal();
    enters(&cluster.controller, &migration.id, Phase::Succeeded).await;
    judge(&cluster, workload).await
}

async fn on_zookeeper(edge: &Relay, bug: Option<Bug>) -> Cluster {
    let args = [
        "--zookeeper",
        &edge.addr,
        "--zookeeper-session-timeout",
        "2s",
    ];
    Cluster::builder()
        .groups(2)
        .proxies(2)
        .controller_args(&args)
        .bug(bug)
        .start()
        .await
}

/// A key of the first group, and its slot.
const KEY: &str = "foo";
const SLOT: &str = "289";
/// A piece of what the mover writes to the source when all that is dirty is to be copied.
const BARRIER: &[u8] = b"return redis.call('DEL', KEYS[1])";

async fn set(client: &mut MultiplexedConnection, key: &str, value: &str) -> Result<(), String> {
    let set = cmd("SET").arg(key).arg(value).query_async(client).await;
    set.map_err(|e: redis::RedisError| e.to_string())
}

async fn read(client: &mut MultiplexedConnection, key: &str) -> Option<String> {
    cmd("GET").arg(key).query_async(client).await.unwrap()
}

/// A write is on its way to the source when its connection is lost, and arrives there when the slot has moved.
pub(super) async fn a_write_that_arrives_late(bug: Option<Bug>) -> Violations {
    let cluster = cluster(1, bug).await;
    let proxy = &cluster.proxies[0];
    let mut client = proxy.connect().await;
    set(&mut client, KEY, "old").await.unwrap();
    let edge = &cluster.edges().servers[0];
    edge.set_for(&proxy.process, Fault::HoldFrom(b"late".to_vec()));
    let late = tokio::spawn(async move { set(&mut client, KEY, "late").await });
    edge.becomes(&proxy.process, Fault::Hold).await;
    edge.strand(&proxy.process);
    let told = late.await.unwrap().unwrap_err();
    assert!(told.contains("UNKNOWNOUTCOME"), "{told}");
    migrate(&cluster, SLOT, "g2").await;
    edge.release();
    // It would be there at once.
    sleep(Duration::from_millis(500)).await;
    misplaced_keys(&cluster).await
}

/// What a copy sends is on its way to the target when its connection is lost; the copy begins anew, and ends,
/// and a client writes, before that arrives.
pub(super) async fn a_copy_that_arrives_late(bug: Option<Bug>) -> Violations {
    let cluster = cluster(1, bug).await;
    let mut client = cluster.proxies[0].connect().await;
    set(&mut client, KEY, "copied").await.unwrap();
    let edge = &cluster.edges().servers[1];
    let mover = &cluster.controller.process;
    edge.set_for(mover, Fault::HoldFrom(b"copied".to_vec()));
    let migration = create(&cluster.controller, SLOT, "g2").await;
    edge.becomes(mover, Fault::Hold).await;
    edge.strand(mover);
    enters(&cluster.controller, &migration.id, Phase::Succeeded).await;
    set(&mut client, KEY, "new").await.unwrap();
    edge.release();
    sleep(Duration::from_millis(500)).await;
    match read(&mut client, KEY).await.as_deref() {
        Some("new") => Vec::new(),
        other => vec![format!("{other:?} was read, and new was written")],
    }
}

/// A leader dies when all keys are copied; a key is deleted before another leads.
pub(super) async fn a_key_that_is_deleted_between_two_copies(bug: Option<Bug>) -> Violations {
    let mut cluster = cluster(1, bug).await;
    let mut client = cluster.proxies[0].connect().await;
    set(&mut client, KEY, "copied").await.unwrap();
    let edge = &cluster.edges().servers[0];
    edge.set_for(
        &cluster.controller.process,
        Fault::HoldFrom(BARRIER.to_vec()),
    );
    let migration = create(&cluster.controller, SLOT, "g2").await;
    edge.becomes(&cluster.controller.process, Fault::Hold).await;
    cluster.controller.process.kill();
    let mut source = cluster.groups[0][0].connect().await;
    cmd("DEL").arg(KEY).exec_async(&mut source).await.unwrap();
    cluster.edges().servers[0].heal();
    cluster.controller.restart();
    enters(&cluster.controller, &migration.id, Phase::Succeeded).await;
    match read(&mut client, KEY).await {
        None => Vec::new(),
        back => vec![format!("{back:?} is back, and was deleted")],
    }
}

macro_rules! nothing_goes_wrong {
    ($($scene:ident,)*) => {
        mod nothing_goes_wrong_with {
            $(#[tokio::test]
            async fn $scene() {
                assert_eq!(super::$scene(None).await, Vec::<String>::new());
            })*
        }
    };
}

nothing_goes_wrong! {
    a_proxy_without_a_controller,
    a_proxy_that_hears_late,
    a_slow_way_to_the_source,
    a_move_that_is_cancelled,
    a_proxy_that_starts_during_a_hold,
    lost_replies,
    a_proxy_without_the_source,
    a_proxy_that_stays_without_the_source,
    a_proxy_without_the_target,
    a_commit_whose_answer_is_lost,
    a_leader_without_zookeeper,
    a_write_that_arrives_late,
    a_copy_that_arrives_late,
    a_key_that_is_deleted_between_two_copies,
}
