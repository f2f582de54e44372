//! A topology is applied whole or refused; clients notice neither.

use proto::{
    ClusterId, Group, GroupId, ServerAddr, Slot, SlotState, Topology, Version,
    v1::{self, subscribe_request::Message as Said, subscribe_response::Message as Say},
};
use tests::{Cluster, Load, Proxy, ScriptedController, Server};

fn topology(epoch: u64, server: &Server, state: impl Fn(Slot) -> SlotState) -> Topology {
    let group = GroupId::new("g1").unwrap();
    Topology::new(
        ClusterId::new("scripted").unwrap(),
        Version {
            leader_term: 1,
            epoch,
        },
        [Group {
            id: group.clone(),
            primary: ServerAddr::new(&server.addr).unwrap(),
            replicas: Vec::new(),
        }],
        |slot| (Some(group.clone()), state(slot)),
    )
    .unwrap()
}

fn serving(_: Slot) -> SlotState {
    SlotState::Serving
}

/// But for the one slot.
fn hold_a(slot: Slot) -> SlotState {
    if slot == Slot::of_key(b"a") {
        SlotState::Held { target: None }
    } else {
        SlotState::Serving
    }
}

/// A whole topology, as a controller says it.
fn snapshot(epoch: u64, server: &Server, state: impl Fn(Slot) -> SlotState) -> Say {
    Say::Snapshot(v1::Topology::from(&topology(epoch, server, state)))
}

/// One server, and a proxy with these arguments whose controller says what it is told to.
async fn scripted(args: &[&str]) -> (tempfile::TempDir, Server, ScriptedController, Proxy) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), "server", &[]);
    server.answers().await;
    let mut controller = ScriptedController::start().await;
    let usual = [
        "--controller",
        &controller.addr,
        "--id",
        "p1",
        "--workers",
        "2",
    ];
    let args: Vec<String> = [&usual, args]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect();
    let proxy = Proxy::start(dir.path(), "p1", &args).await;
    let Said::Hello(hello) = controller.hear().await else {
        panic!("no hello first")
    };
    assert_eq!((hello.proxy_id.as_str(), hello.last_version), ("p1", None));
    assert_eq!(hello.incarnation.len(), 32);
    (dir, server, controller, proxy)
}

fn acked(message: Said) -> u64 {
    match message {
        Said::Ack(ack) => ack.version.unwrap().epoch,
        other => panic!("expected an ack, got {other:?}"),
    }
}

#[tokio::test]
async fn a_bad_topology_is_refused_and_the_old_one_kept() {
    let (_dir, server, mut controller, proxy) = scripted(&[]).await;
    let mut client = proxy.raw().await;
    assert!(
        client
            .command("GET a")
            .await
            .starts_with("-CLUSTERDOWN the proxy has no topology yet")
    );
    assert_eq!(proxy.get("/readyz").await.0, 503);

    let first = topology(5, &server, serving);
    controller
        .say(Say::Snapshot(v1::Topology::from(&first)))
        .await;
    assert_eq!(acked(controller.hear().await), 5);
    assert_eq!(proxy.get("/readyz").await.0, 200);
    assert_eq!(client.command("SET a 1").await, "+OK");

    let mut uncovered = v1::Topology::from(&topology(6, &server, serving));
    uncovered.slots[0].last = 1000;
    let mut unknown_group = v1::Topology::from(&topology(6, &server, serving));
    unknown_group.slots[0].group_id = "g9".to_owned();
    let mut other_cluster = v1::Topology::from(&topology(6, &server, serving));
    other_cluster.cluster_id = "other".to_owned();
    let older = v1::Topology::from(&topology(4, &server, serving));
    let base = topology(4, &server, serving);
    let wrong_base = base.diff(&topology(6, &server, serving));
    for (message, why) in [
        (Say::Snapshot(uncovered), "slot 1001 is not assigned"),
        (Say::Snapshot(unknown_group), "g9, which is unknown"),
        (Say::Snapshot(other_cluster), "belongs to cluster other"),
        (Say::Snapshot(older), "not newer than 1.5"),
        (
            Say::Snapshot(v1::Topology::from(&first)),
            "not newer than 1.5",
        ),
        (
            Say::Delta(wrong_base),
            "the delta applies to version 1.4, not to 1.5",
        ),
    ] {
        controller.say(message).await;
        match controller.hear().await {
            Said::Nack(nack) => assert!(nack.reason.contains(why), "{why}: {}", nack.reason),
            other => panic!("expected a nack of `{why}`, got {other:?}"),
        }
        assert_eq!(client.command("GET a").await, "$1 1", "after {why}");
    }
    let (_, page) = proxy.get("/topology").await;
    assert!(page.contains(r#""epoch":"5""#), "{page}");

    controller
        .say(Say::Delta(first.diff(&topology(7, &server, serving))))
        .await;
    assert_eq!(acked(controller.hear().await), 7);
}

#[tokio::test]
async fn held_slots_wait_for_the_next_topology_and_others_do_not() {
    let (_dir, server, mut controller, proxy) = scripted(&["--hold-patience", "2s"]).await;
    controller.say(snapshot(1, &server, hold_a)).await;
    assert_eq!(acked(controller.hear().await), 1);

    let (mut held, mut other) = (proxy.raw().await, proxy.raw().await);
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    held.pipeline(&[
        words("SET b 1"),
        words("SET a 2"),
        words("MGET a b"),
        words("PING"),
    ])
    .await;
    assert_eq!(held.reply().await, "+OK");
    let transaction = ["MULTI", "INCR {a}n", "EXEC"].map(words);
    let mut queued = proxy.raw().await;
    queued.pipeline(&transaction).await;
    assert_eq!(queued.reply().await, "+OK");
    assert_eq!(queued.reply().await, "+QUEUED");
    // It may change any key, those of the held slot, too.
    let mut flush = proxy.raw().await;
    flush.pipeline(&["SELECT 5", "FLUSHDB"].map(words)).await;
    assert_eq!(flush.reply().await, "+OK");
    assert!(other.command("DBSIZE").await.starts_with(':'));
    for n in 0..100 {
        assert_eq!(other.command(&format!("SET b {n}")).await, "+OK");
    }
    let at_server = server.connect().await;
    let there: bool = redis::cmd("EXISTS")
        .arg("a")
        .query_async(&mut at_server.clone())
        .await
        .unwrap();
    assert!(!there, "a request for a held slot was sent");

    controller.say(snapshot(2, &server, serving)).await;
    assert_eq!(acked(controller.hear().await), 2);
    assert_eq!(held.reply().await, "+OK");
    assert_eq!(held.reply().await, "*2 $1 2 $2 99");
    assert_eq!(held.reply().await, "+PONG");
    assert_eq!(queued.reply().await, "*1 :1", "EXEC waited");
    assert_eq!(flush.reply().await, "+OK");

    // Held for too long: the client may try again, and nothing was executed.
    controller.say(snapshot(3, &server, hold_a)).await;
    assert_eq!(acked(controller.hear().await), 3);
    queued.pipeline(&transaction).await;
    let since = tokio::time::Instant::now();
    assert!(held.command("SET a 3").await.starts_with("-TRYAGAIN "));
    assert!(
        (1900..4000).contains(&since.elapsed().as_millis()),
        "after {:?}",
        since.elapsed()
    );
    assert_eq!(queued.reply().await, "+OK");
    assert_eq!(queued.reply().await, "+QUEUED");
    assert!(queued.reply().await.starts_with("-TRYAGAIN "));
    assert_eq!(queued.command("EXEC").await, "-ERR EXEC without MULTI");
    assert_eq!(held.command("GET b").await, "$2 99");
    let value: u32 = redis::cmd("GET")
        .arg("a")
        .query_async(&mut at_server.clone())
        .await
        .unwrap();
    assert_eq!(value, 2);
}

/// The controller that holds a slot dies. Until another one leads clients wait, and notice nothing else.
#[tokio::test]
async fn held_slots_wait_until_another_controller_leads() {
    let (_dir, server, mut controller, proxy) = scripted(&["--hold-patience", "12s"]).await;
    let mut client = proxy.raw().await;
    let (mut queued, mut blocked) = (proxy.raw().await, proxy.raw().await);
    controller.say(snapshot(1, &server, hold_a)).await;
    assert_eq!(acked(controller.hear().await), 1);
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    client.pipeline(&["SET a 1", "GET b"].map(words)).await;
    queued
        .pipeline(&["MULTI", "INCR {a}n", "EXEC"].map(words))
        .await;
    blocked
        .pipeline(&["BLPOP {a}list 0", "PING"].map(words))
        .await;
    controller.hang_up().await;
    let Said::Hello(hello) = controller.hear().await else {
        panic!("no hello first")
    };
    assert_eq!(hello.last_version.map(|v| v.epoch), Some(1));
    let told = client.reply_within(std::time::Duration::from_secs(3)).await;
    assert_eq!(told, None, "it waits for longer than two seconds");

    let mut late = proxy.raw().await;
    controller.say(snapshot(2, &server, serving)).await;
    assert_eq!(acked(controller.hear().await), 2);
    assert_eq!(client.reply().await, "+OK");
    assert_eq!(client.reply().await, "$-1");
    for expected in ["+OK", "+QUEUED", "*1 :1"] {
        assert_eq!(queued.reply().await, expected);
    }
    assert_eq!(late.command("RPUSH {a}list x").await, ":1");
    assert_eq!(blocked.reply().await, "*2 $7 {a}list $1 x");
    assert_eq!(blocked.reply().await, "+PONG");

    // Nobody comes for a long time: nobody is waited for any more, but for the two seconds.
    controller.say(snapshot(3, &server, hold_a)).await;
    assert_eq!(acked(controller.hear().await), 3);
    controller.hang_up().await;
    for (command, waits) in [("GET a", 9000..16_000), ("SET a 2", 1900..5000)] {
        let since = tokio::time::Instant::now();
        assert!(late.command(command).await.starts_with("-TRYAGAIN "));
        let waited = since.elapsed();
        assert!(waits.contains(&waited.as_millis()), "after {waited:?}");
    }
}

/// Nobody is kept waiting who wants no more, and who waits is not taken for one who stands still.
#[tokio::test]
async fn who_leaves_while_a_slot_is_held_is_not_served_later() {
    let args = ["--hold-patience", "60s", "--stall-timeout", "1s"];
    let (_dir, server, mut controller, proxy) = scripted(&args).await;
    controller.say(snapshot(1, &server, hold_a)).await;
    assert_eq!(acked(controller.hear().await), 1);
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = proxy.raw().await;
        client.pipeline(&[words("INCR a")]).await;
        clients.push(client);
    }
    drop(clients.remove(0));
    let told = clients[0].reply_within(std::time::Duration::from_secs(4));
    assert_eq!(told.await, None, "it waits for longer than two seconds");
    controller.say(snapshot(2, &server, serving)).await;
    assert_eq!(acked(controller.hear().await), 2);
    assert_eq!(clients[0].reply().await, ":1", "only one has waited");

    let mut timed = proxy.raw().await;
    timed.pipeline(&[words("BLPOP {a}list 1")]).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    controller.say(snapshot(3, &server, hold_a)).await;
    assert_eq!(acked(controller.hear().await), 3);
    clients[0].pipeline(&[words("INCR a")]).await;
    let told = timed.reply().await;
    assert!(told.starts_with("-TRYAGAIN "), "its time is over: {told}");
    proxy.process.terminate();
    let told = clients[0].reply().await;
    assert!(told.starts_with("-TRYAGAIN "), "the proxy stops: {told}");
}

#[tokio::test]
async fn clients_do_not_notice_that_the_topology_changes() {
    let cluster = Cluster::builder()
        .groups(3)
        .proxies(2)
        .unassigned()
        .start()
        .await;
    let mut admin = cluster.controller.admin().await;
    let mut assign = async |first: u32, last: u32, group: &str| {
        let assignment = v1::SlotAssignment {
            first,
            last,
            group_id: group.to_owned(),
            state: 1,
            target_group_id: String::new(),
        };
        let ranges = v1::assign_slots_request::Ranges {
            assignments: vec![assignment],
        };
        let request = v1::AssignSlotsRequest {
            assignment: Some(v1::assign_slots_request::Assignment::Ranges(ranges)),
            ..v1::AssignSlotsRequest::default()
        };
        admin.assign_slots(request).await.unwrap();
    };
    assign(0, 511, "g1").await;
    cluster.settle().await;

    let in_lower_half = |key: &str| Slot::of_key(key.as_bytes()).number() < 512;
    let mut connections = cluster.connect_all().await;
    connections.extend(cluster.connect_all().await);
    let load = Load::start(connections, in_lower_half);
    load.advance(10_000).await;
    let mut client = cluster.proxies[0].raw().await;
    // `a` is in slot 579.
    assert_eq!(
        client.command("GET a").await,
        "-CLUSTERDOWN Hash slot not served"
    );
    // 64 changes: the upper half comes to g2 and g3, eight slots at a time.
    for step in 0..64 {
        let first = 512 + step * 8;
        assign(first, first + 7, if step % 2 == 0 { "g2" } else { "g3" }).await;
    }
    cluster.settle().await;
    assert_eq!(client.command("GET a").await, "$-1");
    load.advance(10_000).await;
    assert_eq!(load.stop().await, Vec::<String>::new());
}
