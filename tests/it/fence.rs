//! The fence: a record on every server says who may use it. Each hole that a review found has a test.

mod leaders;

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use proto::{reason::Reason, v1};
use tests::{Cluster, Controller, Load, Raw, Server, eventually, other_server};
use tonic::Status;

const KEY: &str = "{sluice}:fence";

/// The fields of a server's record; empty: it has none.
async fn record(server: &Server) -> BTreeMap<String, String> {
    let mut connection = server.connect().await;
    let mut read = redis::cmd("HGETALL");
    read.arg(KEY).query_async(&mut connection).await.unwrap()
}

async fn ask(server: &Server, command: &str) -> String {
    Raw::connect(&server.addr).await.command(command).await
}

async fn run_id(server: &Server) -> String {
    let info = ask(server, "INFO server").await;
    let line = info.lines().find_map(|line| line.strip_prefix("run_id:"));
    line.unwrap().trim().to_owned()
}

/// Returns the record once it is as it is to be.
async fn record_that(
    server: &Server,
    is: impl Fn(&BTreeMap<String, String>) -> bool,
) -> BTreeMap<String, String> {
    eventually(|| async {
        let record = record(server).await;
        if is(&record) {
            Ok(record)
        } else {
            Err(format!("the record is {record:?}"))
        }
    })
    .await
}

fn number(record: &BTreeMap<String, String>, field: &str) -> u64 {
    record.get(field).map_or(0, |text| text.parse().unwrap())
}

async fn cluster_of(controller: &Controller) -> v1::Cluster {
    let mut admin = controller.admin().await;
    let request = v1::GetClusterRequest {};
    admin.get_cluster(request).await.unwrap().into_inner()
}

fn request(id: &str, servers: &[&Server], take_over: bool) -> v1::CreateGroupRequest {
    let servers = servers.iter().map(|server| v1::ServerSpec {
        address: server.addr.clone(),
        zone: String::new(),
    });
    v1::CreateGroupRequest {
        id: id.to_owned(),
        servers: servers.collect(),
        take_over,
        ..v1::CreateGroupRequest::default()
    }
}

async fn create(
    controller: &Controller,
    request: v1::CreateGroupRequest,
) -> Result<v1::Group, Status> {
    let mut admin = controller.admin().await;
    let group = admin.create_group(request).await?;
    Ok(group.into_inner())
}

/// A connection that is named so.
async fn named(server: &Server, name: &str) -> Raw {
    let mut raw = Raw::connect(&server.addr).await;
    assert_eq!(raw.command(&format!("CLIENT SETNAME {name}")).await, "+OK");
    raw
}

/// Whether nothing is there any more; a connection that lives is asked whether it does.
async fn is_dead(raw: &mut Raw) -> bool {
    tokio::time::timeout(Duration::from_millis(200), raw.rest())
        .await
        .is_ok()
}

fn proxy_name() -> String {
    format!("sluice:proxy:{}:0:1", "0".repeat(32))
}

#[tokio::test]
async fn servers_are_fenced_when_they_join() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), &[]).await;
    let server = Server::start(dir.path(), "g1", &[]);
    server.answers().await;
    let mut stale = named(&server, &proxy_name()).await;
    let mut client = named(&server, "someone-elses").await;

    let only_check = v1::CreateGroupRequest {
        validate_only: true,
        ..request("g1", &[&server], false)
    };
    create(&controller, only_check).await.unwrap();
    assert_eq!(record(&server).await, BTreeMap::new());
    assert_eq!(stale.command("PING").await, "+PONG");

    create(&controller, request("g1", &[&server], false))
        .await
        .unwrap();
    let cluster = cluster_of(&controller).await;
    let found = record(&server).await;
    assert_eq!(found["cluster"], cluster.id);
    assert_eq!(number(&found, "term"), cluster.leader_term);
    let epoch = number(&found, "epoch");
    assert!((1..=cluster.revision).contains(&epoch), "{found:?}");
    assert_eq!(found["run_id"], run_id(&server).await);
    assert!(is_dead(&mut stale).await);
    assert_eq!(client.command("PING").await, "+PONG");
}

#[tokio::test]
async fn another_clusters_servers_are_refused_or_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), &[]).await;
    let server = Server::start(dir.path(), "g1", &[]);
    server.answers().await;
    let theirs = format!("HSET {KEY} cluster other term 80 epoch 4000 run_id x");
    assert_eq!(ask(&server, &theirs).await, ":4");
    let refused = create(&controller, request("g1", &[&server], false)).await;
    let status = refused.unwrap_err();
    assert_eq!(Reason::of(&status), Some(Reason::ServerOfOtherCluster));
    let says = "it belongs to cluster other";
    assert!(status.message().contains(says), "{status:?}");
    assert!(status.message().contains("--take-over"), "{status:?}");
    assert_eq!(record(&server).await["cluster"], "other");

    create(&controller, request("g1", &[&server], true))
        .await
        .unwrap();
    let (found, cluster) = (record(&server).await, cluster_of(&controller).await);
    assert_eq!(found["cluster"], cluster.id);
    // Its numbers mean nothing here.
    assert_eq!(number(&found, "term"), cluster.leader_term);
    assert!(number(&found, "epoch") <= cluster.revision);
}

#[tokio::test]
async fn a_user_who_may_not_do_what_is_needed_is_told_how() {
    let dir = tempfile::tempdir().unwrap();
    let logins = dir.path().join("logins.toml");
    fs::write(&logins, "username = \"sluice\"\npassword = \"p\"\n").unwrap();
    let flag = "--server-auth-file".to_owned();
    let args = [flag, logins.to_str().unwrap().to_owned()];
    let controller = Controller::start(dir.path(), &args).await;
    for (index, program) in programs().into_iter().enumerate() {
        let name = format!("g{index}");
        let server = Server::run(&program, dir.path(), &name, &[]);
        server.answers().await;
        let few = "ACL SETUSER sluice on >p ~* +@all -@dangerous +info";
        assert_eq!(ask(&server, few).await, "+OK");
        let refused = create(&controller, request(&name, &[&server], false)).await;
        let status = refused.unwrap_err();
        assert_eq!(
            Reason::of(&status),
            Some(Reason::ServerNotPermitted),
            "{status:?}"
        );
        assert_eq!(record(&server).await, BTreeMap::new());
        let advice = status.message().split('`').nth(1).unwrap();
        assert_eq!(ask(&server, advice).await, "+OK");
        let group = create(&controller, request(&name, &[&server], false)).await;
        assert_eq!(group.unwrap().servers.len(), 1);
    }
}

/// Debian's server and, as far as they are there, those of other versions.
fn programs() -> Vec<PathBuf> {
    let others = ["redis-6.2", "redis-8.2", "valkey-8.1", "valkey-9.1"];
    let others = others.into_iter().filter_map(other_server);
    [PathBuf::from("redis-server")]
        .into_iter()
        .chain(others)
        .collect()
}

/// Those that have neither users nor threads.
fn old_programs() -> impl Iterator<Item = PathBuf> {
    let names = ["redis-3.2", "redis-5.0"];
    names.into_iter().filter_map(other_server)
}

#[tokio::test]
async fn what_was_flushed_deleted_lowered_or_spoilt_is_mended() {
    let cluster = Cluster::builder().groups(1).start().await;
    let server = &cluster.groups[0][0];
    // It is admitted, and then visited for the first time: that writes the record again, and spares proxies.
    eventually(|| async {
        let log = cluster.controller.process.log();
        match log.matches("fenced server=").count() {
            0 | 1 => Err(log),
            _ => Ok(()),
        }
    })
    .await;
    let before = record_that(server, |record| record.len() == 4).await;
    for spoil in [
        "FLUSHALL".to_owned(),
        format!("DEL {KEY}"),
        format!("HSET {KEY} epoch 1"),
        format!("HSET {KEY} term nonsense"),
        format!("HSET {KEY} epoch 9007199254740993"),
        format!("HSET {KEY} run_id another"),
        format!("HDEL {KEY} cluster"),
    ] {
        let mut stale = named(server, &proxy_name()).await;
        let said = ask(server, &spoil).await;
        assert!(!said.starts_with('-'), "{spoil}: {said}");
        let after = record_that(server, |after| {
            after.get("cluster") == before.get("cluster")
                && after.get("run_id") == before.get("run_id")
                && after.get("term") == before.get("term")
                && (number(&before, "epoch")..1_000).contains(&number(after, "epoch"))
        });
        after.await;
        // Whoever got in meanwhile, and has not confirmed, is out again.
        eventually(|| async {
            let list = ask(server, "CLIENT LIST").await;
            match list.contains(&proxy_name()) {
                true => Err(format!("after {spoil}: {list}")),
                false => Ok(()),
            }
        })
        .await;
        assert!(is_dead(&mut stale).await, "{spoil}");
    }
    let string = "EVAL redis.call('SET',KEYS[1],ARGV[1]) 1 {sluice}:fence x";
    assert_eq!(ask(server, string).await, "$-1");
    eventually(|| async {
        match ask(server, &format!("TYPE {KEY}")).await.as_str() {
            "+hash" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
}

#[tokio::test]
async fn a_process_that_restarted_with_older_data_is_admitted_anew() {
    let mut cluster = Cluster::builder().groups(1).start().await;
    let before = record_that(&cluster.groups[0][0], |record| record.len() == 4).await;
    let mut admin = cluster.controller.admin().await;
    let request = v1::UpdateGroupRequest {
        id: "g1".to_owned(),
        description: "later".to_owned(),
        ..v1::UpdateGroupRequest::default()
    };
    let revision = admin.update_group(request).await.unwrap().into_inner();
    let server = &mut cluster.groups[0][0];
    // What it had then it has again, whatever was raised since.
    assert!(number(&before, "epoch") < revision.revision);
    server.process.kill();
    server.restart();
    server.answers().await;
    let run_id = run_id(server).await;
    assert_ne!(run_id, before["run_id"]);
    let after = record_that(server, |record| record.get("run_id") == Some(&run_id)).await;
    assert!(number(&after, "epoch") >= revision.revision, "{after:?}");
}

#[tokio::test]
async fn a_leader_shuts_out_those_before_it_and_no_proxy() {
    let mut cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let server = &cluster.groups[0][0];
    let before = record_that(server, |record| record.len() == 4).await;
    let mut proxy = named(server, &proxy_name()).await;
    let other = "0".repeat(32);
    let mut mover = named(server, &format!("sluice:mover:{other}:1")).await;
    let mut controller = named(server, &format!("sluice:controller:{other}:1")).await;
    let load = Load::start(cluster.connect_all().await, |_| true);
    load.advance(1_000).await;
    cluster.controller.process.kill();
    cluster.controller.restart();
    let term = number(&before, "term");
    let after = record_that(server, |record| number(record, "term") == term + 1).await;
    assert_eq!(after["epoch"], before["epoch"]);
    eventually(|| async {
        let list = ask(server, "CLIENT LIST").await;
        match list.contains("sluice:mover:") {
            true => Err(list),
            false => Ok(()),
        }
    })
    .await;
    assert!(is_dead(&mut mover).await && is_dead(&mut controller).await);
    assert_eq!(proxy.command("PING").await, "+PONG");
    load.advance(1_000).await;
    assert_eq!(load.stop().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_full_server_can_be_fenced() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), &[]).await;
    for (index, program) in programs().into_iter().enumerate() {
        let name = format!("g{index}");
        let args = ["--maxmemory", "8mb", "--maxmemory-policy", "noeviction"];
        let args = args.map(str::to_owned);
        let server = Server::run(&program, dir.path(), &name, &args);
        server.answers().await;
        let mut number = 0;
        while !ask(&server, &format!("SETRANGE k{number} 300000 x"))
            .await
            .starts_with("-OOM")
        {
            number += 1;
        }
        create(&controller, request(&name, &[&server], false))
            .await
            .unwrap();
        let mut connection = server.connect().await;
        let refused: Result<(), _> = redis::cmd("SET")
            .arg("another")
            .arg("x".repeat(100))
            .query_async(&mut connection)
            .await;
        assert_eq!(refused.unwrap_err().code(), Some("OOM"));
        assert_eq!(record(&server).await.len(), 4);
    }
}

#[tokio::test]
async fn a_busy_script_delays_and_does_not_deceive() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), &[]).await;
    for (index, program) in programs().into_iter().enumerate() {
        let name = format!("g{index}");
        let args = ["--lua-time-limit", "50"].map(str::to_owned);
        let server = Server::run(&program, dir.path(), &name, &args);
        server.answers().await;
        let mut busy = Raw::connect(&server.addr).await;
        let mut stale = named(&server, &proxy_name()).await;
        let script = "local n = 0; while true do n = n + 1 end";
        let words = ["EVAL", script, "0"].map(str::to_owned).to_vec();
        busy.pipeline(&[words]).await;
        eventually(|| async {
            match ask(&server, "PING").await {
                said if said.starts_with("-BUSY") => Ok(()),
                said => Err(said),
            }
        })
        .await;
        let status = create(&controller, request(&name, &[&server], false))
            .await
            .unwrap_err();
        assert!(status.message().contains("BUSY"), "{status:?}");
        assert_eq!(ask(&server, "SCRIPT KILL").await, "+OK");
        assert!(busy.reply().await.starts_with('-'));
        assert_eq!(record(&server).await, BTreeMap::new());
        assert_eq!(stale.command("PING").await, "+PONG");
        create(&controller, request(&name, &[&server], false))
            .await
            .unwrap();
        assert!(is_dead(&mut stale).await);
    }
}

#[tokio::test]
async fn what_a_clients_script_does_to_the_record_is_mended() {
    let cluster = Cluster::builder().groups(1).proxies(1).start().await;
    let server = &cluster.groups[0][0];
    let before = record_that(server, |record| record.len() == 4).await;
    let mut client = cluster.proxies[0].raw().await;
    let script = "return redis.call('DEL', '{sluice}:fence')";
    let words = ["EVAL", script, "0"].map(str::to_owned).to_vec();
    client.pipeline(&[words]).await;
    assert_eq!(client.reply().await, ":1");
    let after = record_that(server, |record| record.len() == 4).await;
    assert!(number(&after, "epoch") >= number(&before, "epoch"));
    // Who routes by the newest topology has not been cut off.
    assert_eq!(client.command("SET a 1").await, "+OK");
}

#[tokio::test]
async fn what_cannot_be_written_now_is_not_taken_for_written() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), &[]).await;
    let cases = [
        (
            "NOREPLICAS",
            ["--min-replicas-to-write", "1"],
            "CONFIG SET min-replicas-to-write 0",
        ),
        (
            "MISCONF",
            ["--save", "3600 1000"],
            "CONFIG SET stop-writes-on-bgsave-error no",
        ),
    ];
    for (code, args, mend) in cases {
        let args = args.map(str::to_owned);
        let id = code.to_lowercase();
        let server = Server::start(dir.path(), &id, &args);
        server.answers().await;
        if code == "MISCONF" {
            let own = dir.path().join(format!("{id}-{}", server.port));
            // Its snapshots fail, for there is a folder where the file would be.
            fs::create_dir(own.join("dump.rdb")).unwrap();
            ask(&server, "BGSAVE").await;
        }
        eventually(|| async {
            match ask(&server, "SET a 1").await {
                said if said.starts_with(&format!("-{code}")) => Ok(()),
                said => Err(said),
            }
        })
        .await;
        let refused = create(&controller, request(&id, &[&server], false)).await;
        let status = refused.unwrap_err();
        assert_eq!(Reason::of(&status), Some(Reason::ServerNotFenced));
        assert!(status.message().contains(code), "{status:?}");
        assert_eq!(record(&server).await, BTreeMap::new());
        let mut admin = controller.admin().await;
        let groups = admin.list_groups(v1::ListGroupsRequest::default()).await;
        let groups = groups.unwrap().into_inner().groups;
        assert!(groups.iter().all(|group| group.id != id), "{groups:?}");
        assert_eq!(ask(&server, mend).await, "+OK");
        create(&controller, request(&id, &[&server], false))
            .await
            .unwrap();
    }
}

/// A server that reads its file again is not there yet; then it is admitted, with all it had.
#[tokio::test]
async fn a_server_that_is_loading_is_waited_for() {
    let slow = "--key-load-delay 1000 --loading-process-events-interval-bytes 1024";
    let slow: Vec<&str> = slow.split(' ').collect();
    let mut cluster = Cluster::builder()
        .groups(1)
        .proxies(1)
        .server_args(&slow)
        .start()
        .await;
    let mut client = cluster.proxies[0].raw().await;
    for number in 0..3_000 {
        assert_eq!(client.command(&format!("SET k{number} v")).await, "+OK");
    }
    let server = &mut cluster.groups[0][0];
    server.process.kill();
    server.restart();
    let server = &cluster.groups[0][0];
    eventually(|| async {
        let reached = tokio::net::TcpStream::connect(&server.addr).await;
        reached.map_err(|e| e.to_string())?;
        match ask(server, "GET k0").await {
            said if said.starts_with("-LOADING") => Ok(()),
            said => Err(said),
        }
    })
    .await;
    let refusals = ["-LOADING ", "-TRYAGAIN ", "-CLUSTERDOWN "];
    eventually(|| async {
        let mut client = cluster.proxies[0].raw().await;
        match client.command("SET after 1").await {
            said if said == "+OK" => Ok(()),
            said => {
                assert!(refusals.iter().any(|no| said.starts_with(no)), "{said}");
                Err(said)
            }
        }
    })
    .await;
    assert_eq!(ask(server, "DBSIZE").await, ":3002"); // the record as well
    assert_eq!(
        record(server).await.get("run_id"),
        Some(&run_id(server).await)
    );
}

/// Everything the fence rests on: whatever of a killed connection a server has not executed when it
/// answers, it never does; nor what it has queued of a transaction.
#[tokio::test]
async fn nothing_of_a_killed_connection_is_executed_afterwards() {
    const ROUNDS: u64 = 8;
    let dir = tempfile::tempdir().unwrap();
    let incr = "*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n";
    let block = format!(
        "*1\r\n$5\r\nMULTI\r\n{}*1\r\n$4\r\nEXEC\r\n",
        incr.repeat(200)
    );
    let kinds = [incr.repeat(20_000), block.repeat(100)];
    let threaded = programs().into_iter().flat_map(|program| {
        ["1", "4"].map(|threads| {
            (
                program.clone(),
                vec!["--io-threads".to_owned(), threads.to_owned()],
            )
        })
    });
    let servers = threaded.chain(old_programs().map(|program| (program, Vec::new())));
    for (index, (program, args)) in servers.enumerate() {
        let name = format!("s{index}");
        let server = Server::run(&program, dir.path(), &name, &args);
        server.answers().await;
        let mut killer = Raw::connect(&server.addr).await;
        let mut cut_short = [0; 2];
        for (round, kind) in (0..ROUNDS).flat_map(|round| [(round, 0), (round, 1)]) {
            let mut victim = named(&server, &proxy_name()).await;
            let list = killer.command("CLIENT LIST").await;
            let line = list.lines().find(|line| line.contains(&proxy_name()));
            let (_, rest) = line.unwrap().split_once("id=").unwrap();
            let kill = format!("CLIENT KILL ID {}", rest.split(' ').next().unwrap());
            assert_eq!(killer.command("DEL n").await.chars().next(), Some(':'));
            let block = kinds[kind].clone();
            let writing = tokio::spawn(async move {
                victim.send_to_the_end(block.as_bytes()).await;
            });
            tokio::time::sleep(Duration::from_micros(300 * round)).await;
            assert_eq!(killer.command(&kill).await, ":1");
            let then = killer.command("GET n").await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert_eq!(killer.command("GET n").await, then, "{program:?} {args:?}");
            cut_short[kind] += u32::from(!then.ends_with(" 20000"));
            let executed: u32 = then.rsplit(' ').next().unwrap().parse().unwrap_or(0);
            assert!(
                kind == 0 || executed.is_multiple_of(200),
                "{program:?} {args:?}: {then}"
            );
            writing.await.unwrap();
        }
        let in_time = cut_short.iter().all(|count| *count > 0);
        assert!(in_time, "{program:?} {args:?}: it was never in time");
    }
}

#[tokio::test]
async fn a_proxy_is_removed_with_all_it_has_open() {
    let mut cluster = Cluster::builder().groups(2).proxies(2).start().await;
    let mut admin = cluster.controller.admin().await;
    let list = admin.list_proxies(v1::ListProxiesRequest::default()).await;
    let proxies = list.unwrap().into_inner().proxies;
    let incarnation = |id: &str| {
        let proxy = proxies.iter().find(|proxy| proxy.id == id);
        proxy.unwrap().incarnation.clone()
    };
    let (gone, other) = (incarnation("p1"), incarnation("p2"));
    cluster.proxies[0].process.kill();
    let mut open = Vec::new();
    for group in &cluster.groups {
        open.push(named(&group[0], &format!("sluice:proxy:{gone}:7:7")).await);
    }
    let server = &cluster.groups[0][0];
    let mut stays = named(server, &format!("sluice:proxy:{other}:7:7")).await;
    let before = record(server).await;
    eventually(|| async {
        let mut admin = cluster.controller.admin().await;
        let request = v1::DeleteProxyRequest {
            id: "p1".to_owned(),
            ..v1::DeleteProxyRequest::default()
        };
        let deleted = admin.delete_proxy(request).await;
        let deleted = deleted.map_err(|e| e.message().to_owned())?.into_inner();
        assert!(deleted.unreached_servers.is_empty(), "{deleted:?}");
        Ok(())
    })
    .await;
    for raw in &mut open {
        assert!(is_dead(raw).await);
    }
    assert_eq!(stays.command("PING").await, "+PONG");
    let after = record(server).await;
    assert!(number(&after, "epoch") > number(&before, "epoch"));
    let mut client = cluster.proxies[1].raw().await;
    assert_eq!(client.command("SET a 1").await, "+OK");
}

#[tokio::test]
async fn an_operator_sees_the_records_and_repairs_them() {
    let cluster = Cluster::builder()
        .groups(1)
        .replicas(1)
        .proxies(1)
        .start()
        .await;
    let (primary, replica) = (&cluster.groups[0][0], &cluster.groups[0][1]);
    // The replica has it once it follows.
    for (server, state) in [(primary, "raised"), (replica, "its primary's")] {
        eventually(|| async {
            let (shown, text) = cluster.controller.sluice(&["fence", "show"]);
            let line = text.lines().find(|line| line.starts_with(&server.addr));
            match shown && line.is_some_and(|line| line.contains(state)) {
                true => Ok(()),
                false => Err(text),
            }
        })
        .await;
    }

    let theirs = format!("HSET {KEY} cluster other");
    assert_eq!(ask(primary, &theirs).await, ":0");
    let show = ["fence", "show", "--server", &primary.addr];
    let (shown, text) = cluster.controller.sluice(&show);
    assert!(
        shown && text.contains("it belongs to cluster other"),
        "{text}"
    );
    let (repaired, text) = cluster
        .controller
        .sluice(&["fence", "repair", &primary.addr]);
    assert!(!repaired && text.contains("--take-over"), "{text}");
    let take_over = [
        "fence",
        "repair",
        &primary.addr,
        "--take-over",
        "-o",
        "json",
    ];
    let (repaired, text) = cluster.controller.sluice(&take_over);
    assert!(repaired && text.contains("\"RAISED\""), "{text}");
    let cluster_id = cluster_of(&cluster.controller).await.id;
    assert_eq!(record(primary).await["cluster"], cluster_id);
    let (repaired, text) = cluster
        .controller
        .sluice(&["fence", "repair", &replica.addr]);
    assert!(!repaired && text.contains("is a replica"), "{text}");
}
