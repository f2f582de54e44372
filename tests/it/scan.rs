//! `SCAN` over all groups: every key that is there all the time is returned, whatever else happens; and
//! what no client may see is not.

use std::collections::{BTreeMap, BTreeSet};

use proto::{
    ClusterId, Group, GroupId, ServerAddr, Slot, SlotState, Topology, Version,
    v1::{self, subscribe_request::Message as Said, subscribe_response::Message as Say},
};
use tests::{Cluster, Proxy, Raw, ScriptedController, Server};

/// One page: the cursor to go on by, and the keys.
async fn page(client: &mut Raw, cursor: &str, options: &str) -> (String, Vec<String>) {
    let command = format!("SCAN {cursor} {options}");
    let reply = client.command(command.trim_end()).await;
    let mut words = reply.split(' ');
    assert_eq!(words.next(), Some("*2"), "{reply}");
    let cursor = words.nth(1).unwrap().to_owned();
    let keys: usize = words.next().unwrap()[1..].parse().unwrap();
    let found: Vec<String> = words.skip(1).step_by(2).map(str::to_owned).collect();
    assert_eq!(found.len(), keys, "{reply}");
    (cursor, found)
}

/// All that a scan finds, and how often.
async fn scan(client: &mut Raw, options: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    let mut cursor = "0".to_owned();
    loop {
        let (next, keys) = page(client, &cursor, options).await;
        for key in keys {
            *found.entry(key).or_default() += 1;
        }
        if next == "0" {
            return found;
        }
        cursor = next;
    }
}

fn names(found: &BTreeMap<String, usize>) -> BTreeSet<&str> {
    found.keys().map(String::as_str).collect()
}

async fn set(server: &Server, keys: &[&str]) {
    let mut client = Raw::connect(&server.addr).await;
    for key in keys {
        assert_eq!(client.command(&format!("SET {key} planted")).await, "+OK");
    }
}

#[tokio::test]
async fn every_key_is_found_and_what_a_group_does_not_own_is_not() {
    let cluster = Cluster::builder().groups(3).proxies(2).start().await;
    let mut client = cluster.proxies[0].raw().await;
    let keys: BTreeSet<String> = (0..500).map(|n| format!("key:{n}")).collect();
    for key in &keys {
        assert_eq!(client.command(&format!("SET {key} 1")).await, "+OK");
    }
    // A copy of a key on its way, and what is Sluice's own.
    for group in &cluster.groups {
        set(&group[0], &["key:1", "key:2", "strange:1", "{sluice}:tmp"]).await;
    }
    let mut expected: BTreeSet<&str> = keys.iter().map(String::as_str).collect();
    expected.insert("strange:1");
    for hello in ["HELLO 2", "HELLO 3"] {
        client.command(hello).await;
        for options in [
            "",
            "COUNT 1",
            "COUNT 7",
            "COUNT 10000",
            "MATCH * TYPE string",
        ] {
            let found = scan(&mut client, options).await;
            assert_eq!(names(&found), expected, "{options}");
            assert!(found.values().all(|&times| times == 1), "{options}");
        }
        let listed = client.command("KEYS *").await;
        assert!(listed.starts_with("*501 "), "{listed}");
        assert!(!listed.contains("{sluice}:"));
    }
    let some = scan(&mut client, "MATCH key:1?").await;
    assert_eq!(some.len(), 10);
    assert_eq!(scan(&mut client, "TYPE list").await.len(), 0);
    for _ in 0..50 {
        let drawn = client.command("RANDOMKEY").await;
        let key = drawn.split(' ').nth(1).unwrap();
        assert!(expected.contains(key), "{drawn}");
    }

    // Another proxy goes on where this one has stopped.
    let mut proxies = [client, cluster.proxies[1].raw().await];
    let mut cursor = "0".to_owned();
    let mut found = Vec::new();
    for turn in 0.. {
        let (next, keys) = page(&mut proxies[turn % 2], &cursor, "COUNT 20").await;
        found.extend(keys);
        if next == "0" {
            break;
        }
        cursor = next;
    }
    assert_eq!(found.len(), 501);
    assert_eq!(
        found.iter().map(String::as_str).collect::<BTreeSet<_>>(),
        expected
    );
}

#[tokio::test]
async fn what_is_no_scan_gets_redis_own_errors() {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let plain = Server::start(cluster.dir.path(), "plain", &[]);
    plain.answers().await;
    let mut proxied = cluster.proxies[0].raw().await;
    let mut direct = Raw::connect(&plain.addr).await;
    for command in [
        "SCAN",
        "SCAN x",
        "SCAN 1x",
        "SCAN x COUNT y",
        "SCAN 99999999999999999999",
        "SCAN 0 COUNT",
        "SCAN 0 COUNT x",
        "SCAN 0 COUNT 0",
        "SCAN 0 NOPE",
        "SCAN 0 MATCH",
        "KEYS",
        "KEYS *",
        "RANDOMKEY",
        "RANDOMKEY x",
        "HSCAN h 0",
        "SSCAN s x",
        "ZSCAN z 0 COUNT 0",
    ] {
        let expected = direct.command(command).await;
        assert_eq!(proxied.command(command).await, expected, "{command}");
    }
    // A cursor that was never given begins.
    set(cluster.owner_of("a").await, &["a"]).await;
    let (mut cursor, mut found) = page(&mut proxied, "18446744073709551615", "").await;
    while cursor != "0" {
        let (next, keys) = page(&mut proxied, &cursor, "").await;
        found.extend(keys);
        cursor = next;
    }
    assert_eq!(found, ["a"]);
    assert_eq!(proxied.command("RANDOMKEY").await, "$1 a");
}

#[tokio::test]
async fn keys_that_stay_are_found_while_others_come_and_go() {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let mut client = cluster.proxies[0].raw().await;
    let mut other = cluster.proxies[0].raw().await;
    for n in 0..1000 {
        client.command(&format!("SET stays:{n} 1")).await;
    }
    let mut cursor = "0".to_owned();
    let mut found = BTreeSet::new();
    for turn in 0.. {
        // The servers' tables grow and shrink meanwhile.
        let words = |word: String| word.split(' ').map(str::to_owned).collect();
        let comes = |n| words(format!("SET goes:{n} 1"));
        let goes = |n| words(format!("DEL goes:{n}"));
        let batch = turn / 2 * 500..(turn / 2 + 1) * 500;
        let commands: Vec<Vec<String>> = match turn % 2 {
            0 => batch.map(comes).collect(),
            _ => batch.map(goes).collect(),
        };
        other.pipeline(&commands).await;
        for _ in &commands {
            other.reply().await;
        }
        let (next, keys) = page(&mut client, &cursor, "COUNT 50").await;
        found.extend(keys.into_iter().filter(|key| key.starts_with("stays:")));
        if next == "0" {
            break;
        }
        cursor = next;
    }
    assert_eq!(found.len(), 1000);
}

#[tokio::test]
async fn sluices_own_keys_are_nobodys() {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let mut client = cluster.proxies[0].raw().await;
    let refused = "-NOPERM keys that begin with {sluice}: are the proxy's own";
    for command in [
        "GET {sluice}:fence",
        "SET {sluice}:fence x",
        "DEL a b {sluice}:fence",
        "MGET {sluice}:fence",
        "RENAME {sluice}a {sluice}:fence",
        "EVAL return(1) 1 {sluice}:fence",
        "OBJECT ENCODING {sluice}:fence",
    ] {
        assert_eq!(client.command(command).await, refused, "{command}");
    }
    assert_eq!(client.command("SET {sluice}fence 1").await, "+OK");
    assert_eq!(client.command("MULTI").await, "+OK");
    assert_eq!(client.command("SET {sluice}:fence 1").await, refused);
    assert_eq!(
        client.command("EXEC").await,
        "-EXECABORT Transaction discarded because of previous errors."
    );
}

/// Of two groups, each slot's owner as told.
fn topology(epoch: u64, servers: &[Server; 2], owner: impl Fn(Slot) -> usize) -> v1::Topology {
    let id = |n: usize| GroupId::new(format!("g{n}")).unwrap();
    let groups = servers.iter().zip(0..).map(|(server, n)| Group {
        id: id(n),
        primary: ServerAddr::new(&server.addr).unwrap(),
        replicas: Vec::new(),
    });
    let version = Version {
        leader_term: 1,
        epoch,
    };
    let cluster = ClusterId::new("scripted").unwrap();
    let topology = Topology::new(cluster, version, groups, |slot| {
        (Some(id(owner(slot))), SlotState::Serving)
    });
    v1::Topology::from(&topology.unwrap())
}

/// A slot that goes from a group not visited yet to one that was: the filter alone would hide its keys.
#[tokio::test]
async fn keys_of_a_slot_that_moves_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let servers = ["one", "two"].map(|name| Server::start(dir.path(), name, &[]));
    for server in &servers {
        server.answers().await;
    }
    let mut controller = ScriptedController::start().await;
    let args = ["--controller", &controller.addr, "--id", "p1"].map(str::to_owned);
    let proxy = Proxy::start(dir.path(), "p1", &args).await;
    assert!(matches!(controller.hear().await, Said::Hello(_)));
    let halves = |slot: Slot| usize::from(slot.number() >= 512);
    controller
        .say(Say::Snapshot(topology(1, &servers, halves)))
        .await;
    assert!(matches!(controller.hear().await, Said::Ack(_)));

    let mut client = proxy.raw().await;
    let keys: Vec<String> = (0..200).map(|n| format!("key:{n}")).collect();
    for key in &keys {
        assert_eq!(client.command(&format!("SET {key} 1")).await, "+OK");
    }
    // The first group is visited to its end, and the second has begun.
    let mut cursor = "0".to_owned();
    let mut found = BTreeSet::new();
    let of_second = |key: &String| halves(Slot::of_key(key.as_bytes())) == 1;
    while !found.iter().any(of_second) {
        let (next, keys) = page(&mut client, &cursor, "COUNT 10").await;
        found.extend(keys);
        assert_ne!(next, "0");
        cursor = next;
    }
    // All slots of the second go to the first.
    let moved: Vec<&str> = keys
        .iter()
        .filter(|key| of_second(key))
        .map(String::as_str)
        .collect();
    set(&servers[0], &moved).await;
    controller
        .say(Say::Snapshot(topology(2, &servers, |_| 0)))
        .await;
    assert!(matches!(controller.hear().await, Said::Ack(_)));
    while cursor != "0" {
        let (next, keys) = page(&mut client, &cursor, "COUNT 10").await;
        found.extend(keys);
        cursor = next;
    }
    assert_eq!(found, keys.into_iter().collect());
}

/// What a key has, and how often its pages had it: up to the first page's end, or from a cursor on.
async fn elements(
    client: &mut Raw,
    command: &str,
    mut cursor: String,
    once: bool,
    found: &mut BTreeMap<String, usize>,
) -> String {
    let each = if command.starts_with("SSCAN") { 2 } else { 4 };
    loop {
        let reply = client
            .command(&format!("{command} {cursor} COUNT 20"))
            .await;
        let words: Vec<&str> = reply.split(' ').collect();
        assert_eq!(words[0], "*2", "{reply}");
        for element in words[4..].chunks(each) {
            *found.entry(element[1].to_owned()).or_default() += 1;
        }
        cursor = words[2].to_owned();
        if once || cursor == "0" {
            return cursor;
        }
    }
}

/// A server has a key's elements in an order of its own, so that another's cursor would leave some out.
#[tokio::test]
async fn elements_of_a_key_that_moves_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let servers = ["one", "two"].map(|name| Server::start(dir.path(), name, &[]));
    for server in &servers {
        server.answers().await;
    }
    let mut controller = ScriptedController::start().await;
    let args = ["--controller", &controller.addr, "--id", "p1"].map(str::to_owned);
    let proxy = Proxy::start(dir.path(), "p1", &args).await;
    assert!(matches!(controller.hear().await, Said::Hello(_)));
    let first = topology(1, &servers, |_| 0);
    controller.say(Say::Snapshot(first)).await;
    assert!(matches!(controller.hear().await, Said::Ack(_)));

    let mut client = proxy.raw().await;
    let all: BTreeSet<String> = (0..1000).map(|n| format!("element:{n}")).collect();
    let kinds = ["HSCAN h", "SSCAN s", "ZSCAN z"];
    for server in &servers {
        let mut direct = Raw::connect(&server.addr).await;
        for name in &all {
            direct.command(&format!("HSET h {name} v")).await;
            direct.command(&format!("SADD s {name}")).await;
            direct.command(&format!("ZADD z 1 {name}")).await;
        }
    }
    let names = |found: &BTreeMap<String, usize>| found.keys().cloned().collect::<BTreeSet<_>>();
    let mut cursors = Vec::new();
    for command in kinds {
        // As long as nothing moves it goes on, through any number of pages.
        let mut found = BTreeMap::new();
        let zero = "0".to_owned();
        let cursor = elements(&mut client, command, zero, true, &mut found).await;
        assert!(cursor != "0" && names(&found).len() < 100, "{command}");
        elements(&mut client, command, cursor.clone(), false, &mut found).await;
        assert_eq!(names(&found), all, "{command}");
        assert!(found.values().all(|&times| times == 1), "{command}");
        cursors.push(cursor);
    }
    controller
        .say(Say::Snapshot(topology(2, &servers, |_| 1)))
        .await;
    assert!(matches!(controller.hear().await, Said::Ack(_)));
    for (command, cursor) in kinds.into_iter().zip(&cursors) {
        let mut found = BTreeMap::new();
        elements(&mut client, command, cursor.clone(), false, &mut found).await;
        assert_eq!(names(&found), all, "{command} begins again");
        // In a transaction, too.
        assert_eq!(client.command("MULTI").await, "+OK");
        client
            .command(&format!("{command} {cursor} COUNT 100000"))
            .await;
        let reply = client.command("EXEC").await;
        assert!(reply.starts_with("*1 *2 $1 0 "), "{reply}");
    }
    // Back at the first, its own cursors go on.
    controller
        .say(Say::Snapshot(topology(3, &servers, |_| 0)))
        .await;
    assert!(matches!(controller.hear().await, Said::Ack(_)));
    for (command, cursor) in kinds.into_iter().zip(cursors) {
        let mut found = BTreeMap::new();
        elements(&mut client, command, cursor, false, &mut found).await;
        assert!(names(&found).len() < 1000, "{command}");
    }
    for (command, error) in [
        ("HSCAN h x", "-ERR invalid cursor"),
        (
            "HSCAN s 0",
            "-WRONGTYPE Operation against a key holding the wrong kind of value",
        ),
        ("ZSCAN z 0 COUNT 0", "-ERR syntax error"),
        ("SSCAN none 17", "*2 $1 0 *0"),
    ] {
        assert_eq!(client.command(command).await, error, "{command}");
    }
}
