//! Slots move between servers of different versions and families, with clients at work: held, fenced, given
//! away and deleted like any others, whether values are restored as they were dumped or made anew by commands.

use proto::v1;
use redis::cmd;
use tests::{
    Cluster, Server, Workload,
    migration::{assert_keys_are_at_their_owners, assert_nobody_noticed, migrate},
};

use crate::mover::program;

/// What moves along.
const SLOTS: &str = "0-255";

/// How values arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Restored,
    ByCommands,
}

/// Whether every `RESTORE` at a server was taken, of those that there were; the copy of a move tries one first.
async fn way(server: &Server) -> Way {
    let mut ask = cmd("INFO");
    ask.arg("commandstats");
    let stats: String = ask.query_async(&mut server.connect().await).await.unwrap();
    let mut lines = stats.lines();
    let restore = lines.find_map(|line| line.strip_prefix("cmdstat_restore:"));
    let restore = restore.expect("one was tried");
    match restore.split_once("failed_calls=") {
        None | Some((_, "0")) => Way::Restored,
        Some(_) => Way::ByCommands,
    }
}

/// Moves slots from a server to the next one, and so on, under writes to all types.
async fn moves_along(first: &str, others: &[(&str, Way)]) {
    let programs = others.iter().map(|(name, _)| program(name));
    let programs: Option<Vec<_>> = programs.collect();
    let (Some(first), Some(programs)) = (program(first), programs) else {
        return;
    };
    let builder = Cluster::builder().groups(1).proxies(2).server(first);
    let mut cluster = builder.start().await;
    let workload = Workload::start(cluster.addrs(), 51);
    let mut admin = cluster.controller.admin().await;
    for (program, (name, expected)) in programs.into_iter().zip(others) {
        workload.advance(500).await;
        let id = format!("g{}", cluster.groups.len() + 1);
        let server = Server::run(&program, cluster.dir.path(), &id, &[]);
        server.answers().await;
        let spec = v1::ServerSpec {
            address: server.addr.clone(),
            zone: String::new(),
        };
        let group = v1::CreateGroupRequest {
            id: id.clone(),
            servers: vec![spec],
            ..v1::CreateGroupRequest::default()
        };
        admin.create_group(group).await.unwrap();
        cluster.groups.push(vec![server]);
        let moved = migrate(&cluster, SLOTS, &id).await;
        assert_eq!(moved.moved_slots, SLOTS);
        assert_eq!(moved.copy.unwrap().attempt, 1, "to {name}");
        assert_eq!(
            way(&cluster.groups.last().unwrap()[0]).await,
            *expected,
            "{name}"
        );
    }
    workload.advance(300).await;
    let report = workload.stop().await;
    assert_nobody_noticed(&cluster, &report);
    assert_keys_are_at_their_owners(&cluster).await;
}

#[tokio::test]
async fn to_newer_servers_and_back() {
    let others = [
        ("redis-7.0", Way::Restored),
        ("redis-8.2", Way::Restored),
        ("redis-7.0", Way::ByCommands),
    ];
    moves_along("redis-6.2", &others).await;
}

#[tokio::test]
async fn to_a_newer_valkey_and_back() {
    let others = [
        ("valkey-9.1", Way::Restored),
        ("valkey-8.1", Way::ByCommands),
    ];
    moves_along("valkey-8.1", &others).await;
}

#[tokio::test]
async fn to_another_family_and_back() {
    let others = [
        ("valkey-8.1", Way::Restored),
        ("redis-7.0", Way::ByCommands),
    ];
    moves_along("redis-7.0", &others).await;
}
