//! What admin calls may take from a controller, and what they may not.

use std::time::Duration;

use proto::{
    reason::Reason,
    v1::{self, admin_service_client::AdminServiceClient, migration::Phase},
};
use tests::{
    Cluster, Controller, Workload, eventually,
    migration::{assert_keys_are_at_their_owners, assert_nobody_noticed, enters},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};

/// One connection has room for 1,024 calls.
const CONNECTIONS: usize = 4;

async fn connections(controller: &Controller) -> Vec<AdminServiceClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{}", controller.addr)).unwrap();
    let mut admins = Vec::new();
    for _ in 0..CONNECTIONS {
        admins.push(AdminServiceClient::new(endpoint.connect().await.unwrap()));
    }
    admins
}

/// How many of the calls were refused for want of room; panics if one failed otherwise.
fn shed(results: impl IntoIterator<Item = Result<(), Status>>) -> usize {
    let refused = results.into_iter().filter_map(Result::err);
    refused
        .inspect(|status| assert_eq!(Reason::of(status), Some(Reason::Overloaded), "{status:?}"))
        .count()
}

#[tokio::test]
async fn proxies_hear_of_a_change_while_callers_crowd() {
    let slow = ["--probe-timeout", "20s"];
    let cluster = Cluster::builder().groups(1).proxies(2);
    let cluster = cluster.controller_args(&slow).start().await;
    let admins = connections(&cluster.controller).await;
    // It takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();

    let mut watches = JoinSet::new();
    let mut joins = JoinSet::new();
    for call in 0..1_000 {
        let mut admin = admins[call % CONNECTIONS].clone();
        let (mut joining, address) = (admin.clone(), address.clone());
        watches.spawn(async move { admin.watch_events(v1::WatchEventsRequest::default()).await });
        joins.spawn(async move {
            let request = v1::CreateServerRequest {
                group_id: "g1".to_owned(),
                server: Some(v1::ServerSpec {
                    address,
                    zone: String::new(),
                }),
                ..v1::CreateServerRequest::default()
            };
            joining.create_server(request).await.map(drop)
        });
    }
    let mut open = Vec::new();
    let watches = watches.join_all().await.into_iter();
    let refused = shed(watches.map(|watch| watch.map(|stream| open.push(stream))));
    assert_eq!((open.len(), refused), (256, 744));
    let mut refused = 0;
    while refused < 1_000 - 32 {
        refused += shed([joins.join_next().await.unwrap().unwrap()]);
    }

    let mut admin = cluster.controller.admin().await;
    let begun = Instant::now();
    for text in ["one", "two", "three"] {
        let request = v1::UpdateGroupRequest {
            id: "g1".to_owned(),
            description: text.to_owned(),
            ..v1::UpdateGroupRequest::default()
        };
        admin.update_group(request).await.unwrap();
        cluster.settle().await;
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(10), "it took {took:?}");
    assert!(joins.try_join_next().is_none(), "the slow calls were over");

    // A place is free when its stream is gone.
    open.truncate(255);
    eventually(|| {
        let mut admin = admin.clone();
        async move {
            let again = admin.watch_events(v1::WatchEventsRequest::default()).await;
            again.map(drop).map_err(|e| e.to_string())
        }
    })
    .await;
}

/// Calls a second, of all connections together.
const RATE: u32 = 1_000;

/// What callers were answered.
#[derive(Debug, Default)]
struct Answers {
    /// So many calls were answered with what they asked for.
    given: usize,
    /// So many changes were refused that must be.
    refused: usize,
    /// So many calls found no room.
    shed: usize,
    /// The longest that one took.
    slowest: Duration,
}

/// Calls at that rate until it is told to stop, whether it is answered or not.
async fn hammer(admins: Vec<AdminServiceClient<Channel>>, stop: watch::Receiver<bool>) -> Answers {
    let mut calls = JoinSet::new();
    let mut tick = interval(Duration::from_secs(1) / RATE);
    // What it is late with comes all at once.
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for number in 0.. {
        tick.tick().await;
        if *stop.borrow() {
            break;
        }
        let admin = admins[number % CONNECTIONS].clone();
        calls.spawn(async move {
            let begun = Instant::now();
            (one_of_many(admin, number).await, begun.elapsed())
        });
    }
    let mut answers = Answers::default();
    for (answer, took) in calls.join_all().await {
        answers.slowest = answers.slowest.max(took);
        match answer.as_ref().map_err(Reason::of) {
            Ok(()) => answers.given += 1,
            Err(Some(Reason::Overloaded)) => answers.shed += 1,
            Err(Some(Reason::GroupNotFound | Reason::RevisionMismatch)) => answers.refused += 1,
            Err(_) => panic!("{answer:?}"),
        }
    }
    answers
}

/// Reads, and every fourth a change that must be refused.
async fn one_of_many(mut admin: AdminServiceClient<Channel>, number: usize) -> Result<(), Status> {
    match number % 8 {
        0 => {
            let request = v1::UpdateGroupRequest {
                id: "g1".to_owned(),
                description: "never".to_owned(),
                expected_revision: 1_000_000,
                ..v1::UpdateGroupRequest::default()
            };
            admin.update_group(request).await.map(drop)
        }
        4 => {
            let request = v1::CreateMigrationRequest {
                slots: "0-9".to_owned(),
                target_group_id: "g9".to_owned(),
                ..v1::CreateMigrationRequest::default()
            };
            admin.create_migration(request).await.map(drop)
        }
        1 | 5 => admin
            .get_topology(v1::GetTopologyRequest {})
            .await
            .map(drop),
        2 => admin
            .list_proxies(v1::ListProxiesRequest::default())
            .await
            .map(drop),
        3 => admin
            .list_migrations(v1::ListMigrationsRequest::default())
            .await
            .map(drop),
        _ => admin.get_cluster(v1::GetClusterRequest {}).await.map(drop),
    }
}

/// An operator among the callers, who finds no room at times, and asks again.
async fn create_in_the_crowd(cluster: &Cluster, target: &str) -> String {
    let admin = cluster.controller.admin().await;
    eventually(|| {
        let request = v1::CreateMigrationRequest {
            slots: "0-255".to_owned(),
            target_group_id: target.to_owned(),
            ..v1::CreateMigrationRequest::default()
        };
        let mut admin = admin.clone();
        async move {
            match admin.create_migration(request).await {
                Ok(migration) => Ok(migration.into_inner().id),
                Err(status) if Reason::of(&status) == Some(Reason::Overloaded) => {
                    Err(status.to_string())
                }
                Err(status) => panic!("{status:?}"),
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_move_while_callers_crowd() {
    let cluster = Cluster::builder().groups(2).proxies(2).start().await;
    let workload = Workload::start(cluster.addrs(), 51);
    workload.advance(500).await;
    let (stop, stopped) = watch::channel(false);
    let admins = connections(&cluster.controller).await;
    let begun = Instant::now();
    let callers = tokio::spawn(hammer(admins, stopped));
    for target in ["g2", "g1", "g2", "g1"] {
        let id = create_in_the_crowd(&cluster, target).await;
        let moved = enters(&cluster.controller, &id, Phase::Succeeded).await;
        // Two batches; on a busy machine a hold may be given up.
        let longest = moved.longest_hold_ms;
        assert!(moved.cut_overs <= 5 && longest < 1500.0, "{moved:?}");
    }
    stop.send_replace(true);
    let took = begun.elapsed();
    let answers = callers.await.unwrap();
    let calls = answers.given + answers.refused + answers.shed;
    assert!(
        calls as f64 > 0.7 * f64::from(RATE) * took.as_secs_f64(),
        "{calls} in {took:?}"
    );
    assert!(answers.slowest < Duration::from_secs(5), "{answers:?}");
    assert!(answers.given > 0 && answers.refused > 0, "{answers:?}");
    let report = workload.stop().await;
    assert_nobody_noticed(&cluster, &report);
    assert_keys_are_at_their_owners(&cluster).await;
}

#[tokio::test]
async fn a_call_is_found_in_the_log_by_its_request_id() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--log", "controlplane=debug"].map(str::to_owned);
    let controller = Controller::start(dir.path(), &args).await;
    let mut admin = controller.admin().await;
    let mut request = Request::new(v1::GetGroupRequest {
        id: "g9".to_owned(),
    });
    let id = "find-me-again".parse().unwrap();
    request.metadata_mut().insert("x-request-id", id);
    let status = admin.get_group(request).await.unwrap_err();
    assert_eq!(Reason::of(&status), Some(Reason::GroupNotFound));
    assert_eq!(
        status.metadata().get("x-request-id").unwrap(),
        "find-me-again"
    );
    let answer = admin.get_cluster(v1::GetClusterRequest {}).await.unwrap();
    let given = answer.metadata().get("x-request-id").unwrap();
    assert_eq!(given.len(), 16);
    let log = controller.process.log();
    for (id, method) in [
        ("find-me-again", "GetGroup"),
        (given.to_str().unwrap(), "GetCluster"),
    ] {
        let found = log
            .lines()
            .any(|line| line.contains(id) && line.contains(method) && line.contains("answered"));
        assert!(found, "no {id} of {method} in\n{log}");
    }
}
