//! Transactions that more than the group of their keys has a part in: the proxy, or other groups.

use std::time::Duration;

use proto::{Slot, SlotState};
use tests::{Cluster, Raw, SOON, Scene, Server};
use tokio::time::{Instant, sleep, timeout};

// a is in slot 579, of g2; foo in 289, of g1.

async fn cluster(proxy_args: &[&str]) -> Cluster {
    let builder = Cluster::builder().groups(2).proxies(1);
    builder.proxy_args(proxy_args).start().await
}

/// Has a client say each of these, and get these replies.
async fn check(client: &mut Raw, script: &[(&str, &str)]) {
    for (command, expected) in script {
        let reply = client.command(command).await;
        assert_eq!(reply, *expected, "{command} of {script:?}");
    }
}

/// All bytes that these commands are answered with, up to the end.
async fn bytes(addr: &str, commands: &[&str]) -> String {
    let mut client = Raw::connect(addr).await;
    let words = |command: &&str| command.split(' ').map(str::to_owned).collect();
    let commands: Vec<Vec<String>> = commands.iter().chain(&["QUIT"]).map(words).collect();
    client.pipeline(&commands).await;
    let bytes = String::from_utf8(client.rest().await).unwrap();
    let from = bytes.find("+OK").unwrap(); // behind what HELLO says
    bytes[from..].to_owned()
}

/// Where a command has no reply, or several, the array is as crooked as Redis's.
#[tokio::test]
async fn every_byte_is_that_of_a_plain_server() {
    let cluster = cluster(&[]).await;
    let plain = Server::start(cluster.dir.path(), "plain", &[]);
    plain.answers().await;
    let scripts: [&[&str]; 6] = [
        &[
            "MULTI",
            "SUBSCRIBE a b c",
            "SET {a}1 v",
            "PING",
            "GET {a}1",
            "EXEC",
            "UNSUBSCRIBE a b c",
        ],
        &[
            "MULTI",
            "SUBSCRIBE a",
            "PSUBSCRIBE b* c*",
            "UNSUBSCRIBE",
            "PUNSUBSCRIBE c* b*",
            "EXEC",
            "GET {a}1",
        ],
        &[
            "MULTI",
            "SET {a}1 v",
            "CLIENT REPLY SKIP",
            "GET {a}1",
            "EXEC",
            "ECHO no",
            "ECHO yes",
        ],
        &["MULTI", "CLIENT REPLY SKIP", "EXEC", "ECHO no", "ECHO yes"],
        &[
            "MULTI",
            "SET {a}1 v",
            "CLIENT REPLY OFF",
            "GET {a}1",
            "CLIENT GETNAME",
            "EXEC",
            "ECHO no",
            "CLIENT REPLY ON",
            "ECHO yes",
        ],
        &[
            "CLIENT REPLY OFF",
            "MULTI",
            "GET {a}1",
            "CLIENT REPLY ON",
            "GET {a}1",
            "EXEC",
            "ECHO yes",
        ],
    ];
    for protocol in ["HELLO 2", "HELLO 3"] {
        for script in scripts {
            let script = [&[protocol][..], script].concat();
            let expected = bytes(&plain.addr, &script).await;
            assert!(expected.len() > 10, "{expected}");
            let given = bytes(&cluster.proxies[0].addr, &script).await;
            assert_eq!(given, expected, "{script:?}");
        }
    }
}

#[tokio::test]
async fn all_groups_execute_their_part_in_its_place() {
    let cluster = cluster(&[]).await;
    let mut client = cluster.proxies[0].raw().await;
    let fill = [
        ("SET a 1", "+OK"),
        ("SET foo 1", "+OK"),
        ("SET bar 1", "+OK"),
    ];
    check(&mut client, &fill).await;
    let script = [
        ("MULTI", "+OK"),
        ("DBSIZE", "+QUEUED"),
        ("DEL a", "+QUEUED"),
        ("DBSIZE", "+QUEUED"),
        ("FLUSHALL", "+QUEUED"),
        ("SET a 2", "+QUEUED"),
        ("KEYS *", "+QUEUED"),
        ("RANDOMKEY", "+QUEUED"),
        ("EXEC", "*7 :3 :1 :2 +OK +OK *1 $1 a $1 a"),
        ("EXISTS foo bar", ":0"),
        // Of all groups alone, where no key says which is the first.
        ("SET foo 1", "+OK"),
        ("MULTI", "+OK"),
        ("DBSIZE", "+QUEUED"),
        ("FLUSHDB", "+QUEUED"),
        ("DBSIZE", "+QUEUED"),
        ("EXEC", "*3 :2 +OK :0"),
        // What SELECT says concerns them, too.
        ("SELECT 2", "+OK"),
        ("MSET a 1 foo 2", "+OK"),
        ("SELECT 0", "+OK"),
        ("MSET a 1 foo 2", "+OK"),
        ("MULTI", "+OK"),
        ("SELECT 2", "+QUEUED"),
        ("DBSIZE", "+QUEUED"),
        ("FLUSHDB", "+QUEUED"),
        ("SELECT 0", "+QUEUED"),
        ("DBSIZE", "+QUEUED"),
        ("EXEC", "*5 +OK :2 +OK +OK :2"),
    ];
    check(&mut client, &script).await;
    // The servers' own records are as they were, so that others can still connect.
    for group in &cluster.groups {
        let mut direct = Raw::connect(&group[0].addr).await;
        assert_eq!(direct.command("EXISTS {sluice}:fence").await, ":1");
    }
    // Whoever has the connections next finds them as they should be.
    let mut other = cluster.proxies[0].raw().await;
    let script = [
        ("SELECT 2", "+OK"),
        ("SET a two", "+OK"),
        ("SELECT 0", "+OK"),
        ("MULTI", "+OK"),
        ("SELECT 2", "+QUEUED"),
        ("HELLO 3", "+QUEUED"),
        ("GET a", "+QUEUED"),
    ];
    check(&mut other, &script).await;
    let exec = other.command("EXEC").await;
    assert!(
        exec.starts_with("*3 +OK %7 ") && exec.ends_with(" $3 two"),
        "{exec}"
    );
    let script = [
        ("MULTI", "+OK"),
        ("CLIENT GETNAME", "+QUEUED"),
        ("GET a", "+QUEUED"),
        ("GET {a}none", "+QUEUED"),
        ("EXEC", "*3 $-1 $1 1 $-1"),
    ];
    check(&mut client, &script).await;
}

#[tokio::test]
async fn what_is_not_executed_is_done_nowhere() {
    let cluster = cluster(&["--databases", "9"]).await;
    let mut client = cluster.proxies[0].raw().await;
    let mut other = cluster.proxies[0].raw().await;
    check(
        &mut client,
        &[("MSET a 1 foo 1", "+OK"), ("WATCH a", "+OK")],
    )
    .await;
    check(&mut other, &[("SET a 2", "+OK")]).await;
    let script = [
        ("MULTI", "+OK"),
        ("SELECT 3", "+QUEUED"),
        ("FLUSHALL", "+QUEUED"),
        ("CLIENT SETNAME me", "+QUEUED"),
        ("SUBSCRIBE ch", "+QUEUED"),
        ("SET a 3", "+QUEUED"),
        ("EXEC", "*-1"),
        ("MGET a foo", "*2 $1 2 $1 1"),
        ("CLIENT GETNAME", "$-1"),
        ("DBSIZE", ":2"),
        // It is watched no longer.
        ("MULTI", "+OK"),
        ("CLIENT SETNAME me", "+QUEUED"),
        ("GET a", "+QUEUED"),
        ("EXEC", "*2 +OK $1 2"),
        ("CLIENT GETNAME", "$2 me"),
    ];
    check(&mut client, &script).await;
    // What a server refuses while it queues makes its EXEC fail.
    let mut direct = Raw::connect(&cluster.groups[1][0].addr).await;
    assert_eq!(direct.command("CONFIG SET maxmemory 1").await, "+OK");
    let script = [
        ("MULTI", "+OK"),
        ("CLIENT SETNAME you", "+QUEUED"),
        ("SET a 3", "+QUEUED"),
        ("FLUSHALL", "+QUEUED"),
    ];
    check(&mut client, &script).await;
    let exec = client.command("EXEC").await;
    assert!(exec.starts_with("-EXECABORT "), "{exec}");
    assert_eq!(direct.command("CONFIG SET maxmemory 0").await, "+OK");
    check(
        &mut client,
        &[("MGET a foo", "*2 $1 2 $1 1"), ("CLIENT GETNAME", "$2 me")],
    )
    .await;
}

/// A server with fewer databases than the proxy believes: within the block its SELECT would fail, and what
/// follows land in the database before.
#[tokio::test]
async fn a_database_that_a_server_does_not_have_is_refused_before_anything_is_executed() {
    let builder = Cluster::builder().groups(2).proxies(1);
    let cluster = builder.server_args(&["--databases", "4"]).start().await;
    let mut client = cluster.proxies[0].raw().await;
    let script = [
        ("SET a here", "+OK"),
        ("MULTI", "+OK"),
        ("SELECT 9", "+QUEUED"),
        ("SET a there", "+QUEUED"),
        ("FLUSHDB", "+QUEUED"),
    ];
    check(&mut client, &script).await;
    let exec = client.command("EXEC").await;
    assert!(
        exec.starts_with('-') && exec.ends_with("DB index is out of range"),
        "{exec}"
    );
    check(&mut client, &[("GET a", "$4 here")]).await;
}

#[tokio::test]
async fn a_lost_group_fails_what_it_was_asked_alone() {
    let mut cluster = cluster(&["--server-timeout", "1s"]).await;
    let mut client = cluster.proxies[0].raw().await;
    let queue = [
        ("MULTI", "+OK"),
        ("SET a 1", "+QUEUED"),
        ("DBSIZE", "+QUEUED"),
        ("INFO keyspace", "+QUEUED"),
        ("FLUSHALL", "+QUEUED"),
        ("CLIENT GETNAME", "+QUEUED"),
    ];
    check(&mut client, &queue).await;
    cluster.groups[0][0].process.kill();
    let exec = client.command("EXEC").await;
    assert!(exec.starts_with("*5 +OK -CLUSTERDOWN server "), "{exec}");
    assert!(
        exec.contains(" -UNKNOWNOUTCOME not all groups executed it: CLUSTERDOWN "),
        "{exec}"
    );
    assert!(exec.ends_with(" $-1"), "{exec}");
    // The first of them is lost: nothing is done.
    cluster.groups[1][0].process.kill();
    check(
        &mut client,
        &[
            ("MULTI", "+OK"),
            ("SET a 1", "+QUEUED"),
            ("CLIENT SETNAME me", "+QUEUED"),
        ],
    )
    .await;
    let exec = client.command("EXEC").await;
    assert!(exec.starts_with("-CLUSTERDOWN server "), "{exec}");
    check(
        &mut client,
        &[
            ("CLIENT GETNAME", "$-1"),
            ("EXEC", "-ERR EXEC without MULTI"),
        ],
    )
    .await;
}

#[tokio::test]
async fn scripts_that_servers_have_forgotten_are_shown_to_them() {
    let cluster = cluster(&[]).await;
    let mut client = cluster.proxies[0].raw().await;
    let words = ["SCRIPT", "LOAD", "return redis.call('INCR',KEYS[1])"].map(str::to_owned);
    client.pipeline(&[words.to_vec()]).await;
    let sha = client.reply().await.split(' ').nth(1).unwrap().to_owned();
    let call = format!("EVALSHA {sha} 1 a");
    for (watches, joint, expected) in [
        (false, true, "*2 :1 $-1"),
        (true, true, "*2 :2 $-1"),
        (true, false, "*1 :3"),
        (false, false, "*1 :4"),
    ] {
        for group in &cluster.groups {
            let mut direct = Raw::connect(&group[0].addr).await;
            assert_eq!(direct.command("SCRIPT FLUSH").await, "+OK");
        }
        // Another connection: the one before has shown it, as far as it knows.
        let mut client = cluster.proxies[0].raw().await;
        if watches {
            assert_eq!(client.command("WATCH a").await, "+OK");
        }
        check(&mut client, &[("MULTI", "+OK"), (&call, "+QUEUED")]).await;
        if joint {
            check(&mut client, &[("CLIENT GETNAME", "+QUEUED")]).await;
        }
        assert_eq!(client.command("EXEC").await, expected, "{watches} {joint}");
    }
}

#[tokio::test]
async fn what_changes_all_keys_waits_while_a_slot_is_held() {
    let mut scene = Scene::start(&[]).await;
    let proxy = scene.proxy(1, &[]).await;
    let mut client = proxy.raw().await;
    check(&mut client, &[("SET a 1", "+OK")]).await;
    let held = scene.topology(2, |slot| {
        (slot == Slot::of_key(b"foo")).then_some((0, SlotState::Held { target: None }))
    });
    scene.publish(&held).await;
    assert_eq!(scene.settled().await.version.epoch, 2);
    let read = [
        ("MULTI", "+OK"),
        ("GET a", "+QUEUED"),
        ("DBSIZE", "+QUEUED"),
        ("EXEC", "*2 $1 1 :1"),
        ("MULTI", "+OK"),
        ("FLUSHALL", "+QUEUED"),
        ("SET a 2", "+QUEUED"),
    ];
    check(&mut client, &read).await;
    client.pipeline(&[vec!["EXEC".to_owned()]]).await;
    assert_eq!(client.reply_within(Duration::from_millis(300)).await, None);
    scene.publish(&scene.topology(3, |_| None)).await;
    assert_eq!(client.reply().await, "*2 +OK +OK");
    // And a cut-over waits for one that is under way: the other group does not answer yet.
    scene.servers[0].process.stop();
    check(
        &mut client,
        &[
            ("MULTI", "+OK"),
            ("SET a 3", "+QUEUED"),
            ("FLUSHALL", "+QUEUED"),
        ],
    )
    .await;
    client.pipeline(&[vec!["EXEC".to_owned()]]).await;
    let mut direct = Raw::connect(&scene.servers[1].addr).await;
    let since = Instant::now();
    while direct.command("EXISTS a").await != ":0" {
        assert!(
            since.elapsed() < SOON,
            "the first group has not executed it"
        );
        sleep(Duration::from_millis(10)).await;
    }
    let held = scene.topology(4, |slot| {
        (slot == Slot::of_key(b"a")).then_some((1, SlotState::Held { target: None }))
    });
    scene.publish(&held).await;
    let early = timeout(Duration::from_millis(300), scene.settled()).await;
    assert!(early.is_err(), "{early:?}");
    scene.servers[0].process.resume();
    assert_eq!(client.reply().await, "*2 +OK +OK");
    let settled = timeout(SOON, scene.settled()).await.unwrap();
    assert_eq!(settled.version.epoch, 4);
}

#[tokio::test]
async fn what_is_read_on_a_lease_is_told_at_once() {
    let cluster = cluster(&[]).await;
    let mut client = cluster.proxies[0].raw().await;
    assert!(client.command("HELLO 3").await.starts_with("%7"));
    let script = [
        ("MULTI", "+OK"),
        ("CLIENT TRACKING ON", "+QUEUED"),
        ("GET a", "+QUEUED"),
        ("EXEC", "*2 +OK _"),
    ];
    check(&mut client, &script).await;
    assert_eq!(client.reply().await, ">2 $10 invalidate *1 $1 a");
    // And by the usual way from now on.
    check(&mut client, &[("GET a", "_")]).await;
    let mut other = cluster.proxies[0].raw().await;
    check(&mut other, &[("SET a 1", "+OK")]).await;
    assert_eq!(client.reply().await, ">2 $10 invalidate *1 $1 a");
    // What others say of its keys meanwhile comes behind all that is answered.
    let script = [
        ("GET a", "$1 1"),
        ("MULTI", "+OK"),
        ("SET a 2", "+QUEUED"),
        ("FLUSHDB", "+QUEUED"),
        ("CLIENT LIST ID 0", "+QUEUED"),
        ("EXEC", "*3 +OK +OK =4 txt:"),
    ];
    check(&mut client, &script).await;
    assert_eq!(client.reply().await, ">2 $10 invalidate *1 $1 a");
    assert_eq!(client.reply().await, ">2 $10 invalidate _");
}
