//! What admin calls may take from a controller, and what they may not.

use std::time::Duration;

use proto::{
    reason::Reason,
    v1::{self, admin_service_client::AdminServiceClient},
};
use tests::{Cluster, Controller, eventually};
use tokio::{task::JoinSet, time::Instant};
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
