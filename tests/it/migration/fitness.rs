//! Servers that do not fit are named before anything moves, in words: when a migration is created, also for a
//! dry run, and while one waits for them.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use proto::{
    reason::Reason,
    v1::{self, migration::Phase},
};
use redis::cmd;
use tests::{
    Cluster, Raw, Server,
    migration::{create, enters, get},
    other_server,
};

use super::{create_slow, fill, waits};

/// A server, as a group of its own.
async fn join(cluster: &mut Cluster, server: Server) {
    server.answers().await;
    let spec = v1::ServerSpec {
        address: server.addr.clone(),
        zone: String::new(),
    };
    let group = v1::CreateGroupRequest {
        id: format!("g{}", cluster.groups.len() + 1),
        servers: vec![spec],
        ..v1::CreateGroupRequest::default()
    };
    let mut admin = cluster.controller.admin().await;
    admin.create_group(group).await.unwrap();
    cluster.groups.push(vec![server]);
}

/// A program that runs a server whose clock is half a minute ahead. Not Debian's, which waits for ever for
/// itself with that library. None where there is no other.
fn ahead(dir: &Path) -> Option<PathBuf> {
    let (program, server) = (dir.join("ahead"), other_server("redis-8.2")?);
    let script = format!(
        "#!/bin/sh\nexport LD_PRELOAD=$(echo /usr/lib/*/faketime/libfaketimeMT.so.1)\n\
         export FAKETIME=+30s FAKETIME_DONT_FAKE_MONOTONIC=1\nexec {} \"$@\"\n",
        server.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    Some(program)
}

/// Has a server know a function.
async fn load(server: &Server) {
    let library = "#!lua name=mine\nredis.register_function('f', function() return 1 end)";
    let mut load = cmd("FUNCTION");
    load.arg("LOAD").arg("REPLACE").arg(library);
    load.exec_async(&mut server.connect().await).await.unwrap();
}

/// That a move is refused for this reason, also as a dry run, and nothing is created.
async fn refused(cluster: &Cluster, target: &str, why: &str) {
    let request = v1::CreateMigrationRequest {
        slots: "0-99".to_owned(),
        target_group_id: target.to_owned(),
        ..v1::CreateMigrationRequest::default()
    };
    let mut admin = cluster.controller.admin().await;
    let status = admin.create_migration(request).await.unwrap_err();
    assert_eq!(
        Reason::of(&status),
        Some(Reason::ServersUnfit),
        "{status:?}"
    );
    assert!(status.message().contains(why), "{status:?}");
    let create = ["migration", "create", "--slots", "0-99", "--target", target];
    let (done, said) = cluster
        .controller
        .sluice(&[&create[..], &["--dry-run"]].concat());
    assert!(!done && said.contains(why), "{said}");
    let list = admin
        .list_migrations(v1::ListMigrationsRequest::default())
        .await;
    assert_eq!(list.unwrap().into_inner().migrations, Vec::new());
}

#[tokio::test]
async fn unfit_servers_are_named_before_anything_moves() {
    let cluster = Cluster::builder().groups(1).proxies(1);
    let args = ["--migrations-per-group", "1"];
    let mut cluster = cluster.controller_args(&args).start().await;
    fill(&cluster, 2000).await;
    let dir = cluster.dir.path().to_owned();
    let run = |args: &[&str], name| {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        Server::start(&dir, name, &args)
    };
    join(&mut cluster, run(&["--maxmemory", "1mb"], "g2")).await;
    let evicts = ["--maxmemory", "1gb", "--maxmemory-policy", "allkeys-lru"];
    join(&mut cluster, run(&evicts, "g3")).await;
    join(&mut cluster, run(&[], "g4")).await;
    load(&cluster.groups[0][0]).await;
    refused(&cluster, "g2", "the target has not enough memory").await;
    refused(&cluster, "g3", "the target throws keys out").await;
    let missing = "the target has no functions, or others, in library mine";
    refused(&cluster, "g4", missing).await;
    if let Some(program) = ahead(&dir) {
        join(&mut cluster, Server::run(&program, &dir, "g5", &[])).await;
        refused(&cluster, "g5", "the clocks of source and target are").await;
    }

    // All groups that would get slots are looked at.
    let (done, said) = cluster.controller.sluice(&["rebalance", "--dry-run"]);
    assert!(
        !done && said.contains("slots cannot move from g1 to g"),
        "{said}"
    );

    load(&cluster.groups[3][0]).await;
    let first = create_slow(&cluster, "0-99", "g4").await.id;
    enters(&cluster.controller, &first, Phase::Copying).await;
    let second = create(&cluster.controller, "100-199", "g4").await.id;
    waits(&cluster, &second, "waiting for migration").await;
    // It fitted when it was created, and does not when its turn comes.
    let mut target = cluster.groups[3][0].connect().await;
    let mut delete = cmd("FUNCTION");
    delete.arg("DELETE").arg("mine");
    delete.exec_async(&mut target).await.unwrap();
    let mut admin = cluster.controller.admin().await;
    let cancel = v1::ChangeMigrationRequest {
        id: first,
        ..v1::ChangeMigrationRequest::default()
    };
    admin.cancel_migration(cancel).await.unwrap();
    let words = format!("waiting for its servers: {missing}");
    waits(&cluster, &second, &words).await;
    let (_, said) = cluster.controller.sluice(&["migration", "get", &second]);
    assert!(said.contains(&words) && said.contains("PENDING"), "{said}");
    let waiting = get(&cluster.controller, &second).await.unwrap();
    assert_eq!(waiting.reason, "");
    load(&cluster.groups[3][0]).await;
    enters(&cluster.controller, &second, Phase::Succeeded).await;
}

/// What such a client writes while slots are cut over nobody can keep: whoever has it move must know that.
#[tokio::test]
async fn who_writes_past_the_proxies_is_named() {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let create = ["migration", "create", "--slots", "0-99", "--target", "g2"];
    let sluice = |more: &[&str]| cluster.controller.sluice(&[&create[..], more].concat());
    let mut direct = Raw::connect(&cluster.groups[0][0].addr).await;
    assert_eq!(direct.command("GET foo").await, "$-1");
    let (done, said) = sluice(&["--dry-run"]);
    assert!(done, "{said}");
    assert_eq!(direct.command("SET foo bar").await, "+OK");
    let why = "may have written to the source lately without a proxy (set)";
    refused(&cluster, "g2", why).await;
    let (done, said) = sluice(&["--allow-direct-writers", "--wait"]);
    assert!(done, "{said}");
}
