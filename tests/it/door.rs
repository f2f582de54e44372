//! Who may use a server is said by its fence record, and proxies keep to it: whatever they have missed,
//! whatever the server has been through, and whatever their clients do.

use std::time::Duration;

use proto::fence::KEY;
use tests::{Proxy, Raw, Scene, Server, eventually, scripted::admit};

/// Raises a server's record, and has it close the proxies' connections.
async fn fence(server: &Server, epoch: u64) {
    let mut raw = Raw::connect(&server.addr).await;
    raw.command(&format!("HSET {KEY} epoch {epoch}")).await;
    assert!(close_all(&mut raw).await > 0);
}

/// Has a server close all connections of proxies; how many there were.
async fn close_all(raw: &mut Raw) -> usize {
    let list = raw.command("CLIENT LIST").await;
    let ours = list
        .lines()
        .filter(|line| line.contains("name=sluice:proxy:"));
    let ids: Vec<String> = ours
        .filter_map(|line| Some(line.split_once("id=")?.1.split(' ').next()?.to_owned()))
        .collect();
    for id in &ids {
        raw.command(&format!("CLIENT KILL ID {id}")).await;
    }
    ids.len()
}

/// Asks until the reply starts like this, whatever comes before.
async fn until(proxy: &Proxy, command: &str, start: &str) -> String {
    eventually(|| async {
        match proxy.raw().await.command(command).await {
            reply if reply.starts_with(start) => Ok(reply),
            reply => Err(reply),
        }
    })
    .await
}

const FENCED: &str = "it is fenced: it asks for epoch 9, and this proxy routes by 5";

#[tokio::test]
async fn who_routes_by_an_old_epoch_is_kept_out_of_that_server_alone() {
    let mut scene = Scene::start(&[]).await;
    let proxy = scene.proxy(5, &[]).await;
    until(&proxy, "MSET foo 1 a 1", "+OK").await;
    let mut client = proxy.raw().await;
    fence(&scene.servers[1], 9).await;

    let reply = until(&proxy, "GET a", "-TRYAGAIN ").await;
    assert!(reply.contains(FENCED), "{reply}");
    // By whatever connection it would go.
    let large = format!("SET a {}", "x".repeat(2 << 20));
    for command in [
        "SET a 2",
        "BLPOP a 0",
        "WATCH a",
        "EVAL return{} 1 a",
        "SUBSCRIBE a",
        "WAIT 0 0",
        &large,
    ] {
        let reply = proxy.raw().await.command(command).await;
        let shown = &command[..command.len().min(20)];
        assert!(
            reply.starts_with("-TRYAGAIN server ") && reply.contains(FENCED),
            "{shown}: {reply}"
        );
    }
    let mut tracker = proxy.raw().await;
    tracker.command("HELLO 3").await;
    assert_eq!(tracker.command("CLIENT TRACKING ON").await, "+OK");
    let reply = tracker.command("GET a").await;
    assert!(reply.contains(FENCED), "{reply}");
    // The other server is used as before.
    assert_eq!(client.command("INCR foo").await, ":2");
    let (_, metrics) = proxy.get("/metrics").await;
    let counted = metrics
        .lines()
        .find(|line| line.starts_with("sluice_proxy_server_connections_refused_total"));
    let counted = counted.unwrap().split(' ').next_back().unwrap();
    assert!(counted.parse::<u64>().unwrap() > 0);

    let mut direct = Raw::connect(&scene.servers[1].addr).await;
    assert_eq!(direct.command("GET a").await, "$1 1");
    assert_eq!(close_all(&mut direct).await, 0, "somebody got in");
    let told = proxy.process.log().matches("may not use server").count();
    assert!((1..20).contains(&told), "told {told} times");

    scene.publish(&scene.topology(9, |_| None)).await;
    until(&proxy, "INCR a", ":2").await;
    assert_eq!(client.command("INCR a").await, ":3");
}

#[tokio::test]
async fn who_boots_from_a_former_leader_does_not_get_in() {
    let mut scene = Scene::start(&[]).await;
    admit(&scene.servers[1].addr, "scripted").await;
    let mut direct = Raw::connect(&scene.servers[1].addr).await;
    direct.command(&format!("HSET {KEY} epoch 9 term 4")).await;
    let proxy = scene.proxy(5, &[]).await;
    let reply = until(&proxy, "SET a 1", "-").await;
    assert!(
        reply.starts_with("-TRYAGAIN ") && reply.contains(FENCED),
        "{reply}"
    );
    until(&proxy, "SET foo 1", "+OK").await;
    assert_eq!(direct.command("EXISTS a").await, ":0");
}

#[tokio::test]
async fn a_server_that_restarts_is_used_once_it_was_admitted_again() {
    let mut scene = Scene::start(&[]).await;
    let proxy = scene.proxy(5, &[]).await;
    until(&proxy, "SET a new", "+OK").await;
    scene.servers[1].process.kill();
    scene.servers[1].restart();
    scene.servers[1].answers().await;
    let reply = until(&proxy, "GET a", "-TRYAGAIN ").await;
    let restarted = "it has restarted: its controller has to admit it again";
    assert!(reply.contains(restarted), "{reply}");
    for _ in 0..20 {
        let mut client = proxy.raw().await;
        let reply = client.command("SET a old").await;
        // A pipe that has not dialled again yet says that it is down.
        let is_refused = reply.contains(restarted) || reply.starts_with("-CLUSTERDOWN ");
        assert!(is_refused, "{reply}");
        let reply = client.command("BLPOP a 1").await;
        assert!(reply.contains(restarted), "{reply}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(
        proxy
            .raw()
            .await
            .command("GET foo")
            .await
            .starts_with("$-1")
    );
    admit(&scene.servers[1].addr, "scripted").await;
    until(&proxy, "GET a", "$3 new").await;
}

#[tokio::test]
async fn a_restart_may_be_trusted_while_there_is_no_leader() {
    let mut scene = Scene::start(&[]).await;
    let trust = ["--on-restart-without-leader", "trust"];
    let proxy = scene.proxy(5, &trust).await;
    until(&proxy, "SET a 1", "+OK").await;
    let restart = async |server: &mut Server| {
        server.process.kill();
        server.restart();
        server.answers().await;
    };
    // A leader is there: it is its business.
    restart(&mut scene.servers[1]).await;
    let reply = until(&proxy, "GET a", "-TRYAGAIN ").await;
    assert!(reply.contains("it has restarted"), "{reply}");
    scene.controller.hang_up().await;
    until(&proxy, "GET a", "$1 1").await;
    restart(&mut scene.servers[1]).await;
    until(&proxy, "INCR a", ":2").await;
}

#[tokio::test]
async fn servers_of_others_and_those_without_a_whole_record_are_not_used() {
    let mut scene = Scene::start(&[]).await;
    let proxy = scene.proxy(5, &[]).await;
    until(&proxy, "SET a 1", "+OK").await;
    let mut direct = Raw::connect(&scene.servers[1].addr).await;
    for (change, prefix, why) in [
        (
            "HSET {} cluster other",
            "-CLUSTERDOWN",
            "it belongs to cluster other",
        ),
        (
            "HSET {} term x",
            "-CLUSTERDOWN",
            "its fence record is damaged (field `term`)",
        ),
        ("DEL {}", "-TRYAGAIN", "it has no fence record yet"),
    ] {
        direct.command(&change.replace("{}", KEY)).await;
        close_all(&mut direct).await;
        let address = &scene.servers[1].addr;
        let refused = format!("{prefix} server {address} may not be used: {why}");
        until(&proxy, "SET a 2", &refused).await;
        direct
            .command(&format!("HSET {KEY} cluster scripted term 1"))
            .await;
        admit(&scene.servers[1].addr, "scripted").await;
        until(&proxy, "GET a", "$1 1").await;
    }
}

#[tokio::test]
async fn a_proxy_without_a_controller_is_kept_out_where_there_is_one() {
    let scene = Scene::start(&[]).await;
    let file = scene.dir.path().join("static.toml");
    let group = |id: &str, server: &Server| {
        format!("[[group]]\nid = \"{id}\"\nprimary = \"{}\"\n", server.addr)
    };
    let [one, two] = &scene.servers;
    std::fs::write(&file, group("g1", one) + &group("g2", two)).unwrap();
    admit(&two.addr, "scripted").await;
    let args = ["--static", &file.to_string_lossy()].map(str::to_owned);
    let proxy = Proxy::start(scene.dir.path(), "p", &args).await;
    until(&proxy, "SET foo 1", "+OK").await;
    let reply = until(&proxy, "SET a 1", "-CLUSTERDOWN").await;
    let why = "a controller manages it for cluster scripted: a proxy with --static must not use it";
    assert!(reply.contains(why), "{reply}");
}

#[tokio::test]
async fn flushing_keeps_the_record() {
    let mut scene = Scene::start(&[]).await;
    let proxy = scene.proxy(5, &[]).await;
    let record = async |server: &Server| {
        let mut raw = Raw::connect(&server.addr).await;
        raw.command(&format!("HMGET {KEY} cluster term epoch run_id"))
            .await
    };
    until(&proxy, "SET foo 1", "+OK").await;
    let before = record(&scene.servers[0]).await;
    assert!(before.starts_with("*4 $8 scripted $1 1 "), "{before}");
    for hello in ["HELLO 2", "HELLO 3"] {
        let mut client = proxy.raw().await;
        client.command(hello).await;
        for (database, flush, left) in [
            (0, "FLUSHALL", 0),
            (0, "FLUSHALL ASYNC", 0),
            (5, "FLUSHALL SYNC", 0),
            (0, "flushdb", 2),
            (5, "FLUSHDB ASYNC", 2),
        ] {
            for filled in [0, 5] {
                client.command(&format!("SELECT {filled}")).await;
                assert_eq!(client.command("MSET foo 1 a 1").await, "+OK");
            }
            client.command(&format!("SELECT {database}")).await;
            assert_eq!(client.command(flush).await, "+OK");
            let mut sizes = Vec::new();
            for database in [0, 5] {
                client.command(&format!("SELECT {database}")).await;
                let keys = client.command("EXISTS foo a").await;
                sizes.push(keys[1..].parse::<u32>().unwrap());
            }
            assert_eq!(sizes.iter().sum::<u32>(), left, "{hello} {flush}");
            let expected = if left == 0 { 0 } else { 2 - left.min(2) };
            assert_eq!(sizes[usize::from(database == 5)], expected, "{flush}");
            assert_eq!(record(&scene.servers[0]).await, before, "{flush}");
        }
        client.command("SELECT 0").await;
        for wrong in ["FLUSHALL NOW", "FLUSHDB SYNC ASYNC"] {
            assert_eq!(client.command(wrong).await, "-ERR syntax error");
        }
    }
    // A server without memory for anything else.
    for server in &scene.servers {
        let mut raw = Raw::connect(&server.addr).await;
        assert_eq!(raw.command("CONFIG SET maxmemory 1").await, "+OK");
    }
    let mut client = proxy.raw().await;
    assert!(client.command("SET foo 1").await.starts_with("-OOM"));
    assert_eq!(client.command("FLUSHALL").await, "+OK");
    assert_eq!(record(&scene.servers[0]).await, before);
    // Who comes anew is let in.
    let mut raw = Raw::connect(&scene.servers[0].addr).await;
    assert!(close_all(&mut raw).await > 0);
    until(&proxy, "GET foo", "$-1").await;
}

/// Nothing a client says gets round the fence: not on a connection that there is, and not to another.
#[tokio::test]
async fn clients_do_not_open_a_way_round_the_fence() {
    let mut scene = Scene::start(&[]).await;
    let proxy = scene.proxy(5, &[]).await;
    until(&proxy, "SET a 1", "+OK").await;
    let mut direct = Raw::connect(&scene.servers[1].addr).await;
    let mut client = proxy.raw().await;
    for command in [
        "CLIENT SETNAME stranger",
        "SELECT 3",
        "HELLO 3 SETNAME stranger",
        "GET a",
        "CLIENT KILL TYPE normal",
        "SELECT 0",
        "RESET",
        "HELLO 2 SETNAME stranger",
        "MULTI",
        "CLIENT SETNAME stranger",
        "DISCARD",
        "BLPOP list 0.01",
        "WATCH a",
        "CLIENT REPLY ON",
    ] {
        client.command(command).await;
    }
    // All connections have their names still, and so are found and closed.
    let server = &scene.servers[1].addr;
    eventually(|| async {
        let list = Raw::connect(server).await.command("CLIENT LIST").await;
        assert!(!list.contains("stranger"), "{list}");
        // This test's own have none, nor has one that is just being opened.
        match list.lines().filter(|line| line.contains(" name= ")).count() {
            0..=2 => Ok(()),
            _ => Err(list),
        }
    })
    .await;
    for own in ["GET", "DEL", "HGETALL"] {
        let reply = client.command(&format!("{own} {KEY}")).await;
        assert!(reply.starts_with("-NOPERM"), "{reply}");
    }
    // A script may do what it likes to its server; without a record nobody gets in.
    let script = format!("return redis.call('DEL', '{KEY}')");
    let words = ["EVAL", &script, "1", "a"].map(str::to_owned);
    client.pipeline(&[words.to_vec()]).await;
    assert_eq!(client.reply().await, ":1");
    assert!(close_all(&mut direct).await > 0);
    let reply = until(&proxy, "GET a", "-TRYAGAIN").await;
    assert!(reply.contains("it has no fence record yet"), "{reply}");
    for command in ["RESET", "SELECT 3", "CLIENT SETNAME x", "MULTI", "EXEC"] {
        client.command(command).await;
        let reply = client.command("SET a 2").await;
        assert_ne!(reply, "+OK", "{command}");
    }
    assert_eq!(direct.command("GET a").await, "$1 1");
}
