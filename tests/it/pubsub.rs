//! Publish and subscribe: whoever publishes, at whatever proxy, reaches each subscriber at any proxy once.

use std::time::Duration;

use proto::{
    ClusterId, Group, GroupId, ServerAddr, Slot, SlotState, Topology, Version,
    v1::{self, subscribe_request::Message as Said, subscribe_response::Message as Say},
};
use tests::{Cluster, Proxy, Raw, SOON, ScriptedController, Server, eventually};
use tokio::time::{Instant, timeout};

async fn cluster() -> Cluster {
    Cluster::builder().groups(2).proxies(2).start().await
}

/// A client that speaks RESP2 or 3.
async fn client(proxy: &Proxy, protocol: u8) -> Raw {
    let mut client = proxy.raw().await;
    let hello = client.command(&format!("HELLO {protocol}")).await;
    assert!(hello.contains(&format!("proto :{protocol}")), "{hello}");
    client
}

/// A value as a raw client shows it.
fn bulk(text: &str) -> String {
    format!("${} {text}", text.len())
}

/// What a client is told, in RESP2 or 3.
fn told(protocol: u8, kind: &str, name: &str, last: &str) -> String {
    let header = if protocol == 2 { "*3" } else { ">3" };
    format!("{header} {} {} {last}", bulk(kind), bulk(name))
}

fn message(protocol: u8, channel: &str, payload: &str) -> String {
    told(protocol, "message", channel, &bulk(payload))
}

/// Nothing has come to a client but what is asked for now.
async fn hears_nothing(client: &mut Raw, protocol: u8) {
    let pong = if protocol == 2 {
        "*2 $4 pong $2 xx"
    } else {
        "$2 xx"
    };
    assert_eq!(client.command("PING xx").await, pong);
}

/// Channels of both groups.
const CHANNELS: [&str; 6] = ["a", "foo", "123456789", "user:1000", "{a}x", "bar"];

#[tokio::test]
async fn each_message_reaches_each_subscriber_at_any_proxy_once() {
    let cluster = cluster().await;
    let halves = CHANNELS.map(|channel| Slot::of_key(channel.as_bytes()).number() < 512);
    assert!(halves.contains(&true) && halves.contains(&false));
    let mut clients = Vec::new();
    for proxy in &cluster.proxies {
        for protocol in [2, 3, 2, 3] {
            let mut client = client(proxy, protocol).await;
            for (count, channel) in (1..).zip(CHANNELS) {
                let reply = client.command(&format!("SUBSCRIBE {channel}")).await;
                let count = format!(":{count}");
                assert_eq!(reply, told(protocol, "subscribe", channel, &count));
            }
            clients.push((protocol, client));
        }
    }
    let mut publishers = [
        cluster.proxies[0].raw().await,
        cluster.proxies[1].raw().await,
    ];
    for round in 0..20 {
        for channel in CHANNELS {
            let publish = format!("PUBLISH {channel} {round}");
            let reply = publishers[round % 2].command(&publish).await;
            // Four sessions here, and at least one worker there.
            let reached: u32 = reply.trim_start_matches(':').parse().unwrap();
            assert!((5..=8).contains(&reached), "{reply}");
        }
    }
    for (protocol, client) in &mut clients {
        // In order for each channel; the two groups come as they come.
        let mut next = CHANNELS.map(|_| 0);
        for _ in 0..20 * CHANNELS.len() {
            let got = client.reply().await;
            let channel = CHANNELS
                .iter()
                .zip(&mut next)
                .find(|(channel, next)| got == message(*protocol, channel, &next.to_string()));
            *channel.unwrap_or_else(|| panic!("{got}")).1 += 1;
        }
        hears_nothing(client, *protocol).await;
    }
}

#[tokio::test]
async fn replies_and_numbers_are_those_of_a_plain_server() {
    let cluster = Cluster::builder()
        .groups(2)
        .proxies(1)
        .proxy_args(&["--workers", "2"])
        .start()
        .await;
    let plain = Server::start(cluster.dir.path(), "plain", &[]);
    plain.answers().await;
    let context = "are allowed in this context";
    for protocol in [2, 3] {
        let mut sides = Vec::new();
        for addr in [&cluster.proxies[0].addr, &plain.addr] {
            let mut pair = [Raw::connect(addr).await, Raw::connect(addr).await];
            for client in &mut pair {
                client.command(&format!("HELLO {protocol}")).await;
            }
            sides.push(pair);
        }
        // Who asks, what, and how many replies and messages each of the two gets then.
        for (client, command, of_first, of_second) in [
            (0, "UNSUBSCRIBE", 1, 0),
            (0, "PUNSUBSCRIBE", 1, 0),
            (0, "SUNSUBSCRIBE", 1, 0),
            (0, "UNSUBSCRIBE a b", 2, 0),
            (0, "SUBSCRIBE", 1, 0),
            (0, "SUBSCRIBE a b a", 3, 0),
            (1, "PUBLISH a hello", 1, 1),
            (1, "PSUBSCRIBE a* ?", 0, 2),
            (1, "SUBSCRIBE a", 0, 1),
            (0, "GET a", 1, 0),
            (0, "CONFIG GET maxmemory", 1, 0),
            (0, "NOSUCH", 1, 0),
            (0, "PING", 1, 0),
            (0, "PING x", 1, 0),
            (0, "PING x y", 1, 0),
            (0, "SSUBSCRIBE s", 1, 0),
            (0, "SSUBSCRIBE s", 1, 0),
            (0, "UNSUBSCRIBE nosuch", 1, 0),
            (0, "UNSUBSCRIBE b", 1, 0),
            (1, "PUNSUBSCRIBE ?", 0, 1),
            (1, "PUNSUBSCRIBE", 0, 1),
            (1, "UNSUBSCRIBE", 0, 1),
            (1, "PUBLISH a again", 1, 1),
            (1, "SPUBLISH s again", 1, 1),
            (1, "PUBLISH s nobody", 0, 1),
            (1, "PUBLISH b nobody", 0, 1),
            (1, "PUBSUB NUMSUB a b s", 0, 1),
            (1, "PUBSUB NUMSUB", 0, 1),
            (1, "PUBSUB SHARDNUMSUB a s", 0, 1),
            (1, "PUBSUB NUMPAT", 0, 1),
            (1, "PUBSUB CHANNELS", 0, 1),
            (1, "PUBSUB CHANNELS x*", 0, 1),
            (1, "PUBSUB SHARDCHANNELS", 0, 1),
            (1, "PUBSUB NOSUCH", 0, 1),
            (1, "PUBSUB", 0, 1),
            (1, "PUBLISH a", 0, 1),
            (0, "RESET", 1, 0),
            (0, "GET a", 1, 0),
            (1, "PUBLISH a nobody", 0, 1),
            (1, "PUBLISH s nobody", 0, 1),
        ] {
            let mut got = Vec::new();
            for pair in &mut sides {
                let words = command.split(' ').map(str::to_owned).collect();
                pair[client].pipeline(&[words]).await;
                let mut replies = Vec::new();
                for (client, count) in pair.iter_mut().zip([of_first, of_second]) {
                    for _ in 0..count {
                        replies.push(client.reply().await);
                    }
                }
                got.push(replies);
            }
            assert_eq!(got[0], got[1], "{command}, RESP{protocol}");
            if command == "GET a" && protocol == 2 && got[0][0].len() > 3 {
                assert!(got[0][0].ends_with(context), "{:?}", got[0]);
            }
            // A subscription ends at the servers behind the client's back.
            if command.contains("UNSUBSCRIBE") || command == "RESET" {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

#[tokio::test]
async fn patterns_hear_all_groups() {
    let cluster = cluster().await;
    let mut publisher = cluster.proxies[0].raw().await;
    for protocol in [2, 3] {
        let mut client = client(&cluster.proxies[1], protocol).await;
        let reply = client.command("PSUBSCRIBE *").await;
        assert_eq!(reply, told(protocol, "psubscribe", "*", ":1"));
        for channel in CHANNELS {
            let published = publisher.command(&format!("PUBLISH {channel} x")).await;
            assert_eq!(published, ":1", "{channel}");
            let header = if protocol == 2 { "*4" } else { ">4" };
            let expected = format!("{header} $8 pmessage $1 * {} $1 x", bulk(channel));
            assert_eq!(client.reply().await, expected);
        }
        assert_eq!(publisher.command("PUBSUB NUMPAT").await, ":1");
        // Also within a transaction, with the keys of the channel's slot.
        for (command, reply) in [
            ("MULTI", "+OK"),
            ("SET {a}k 1", "+QUEUED"),
            ("PUBLISH {a}x 1", "+QUEUED"),
            ("EXEC", "*2 +OK :1"),
        ] {
            assert_eq!(publisher.command(command).await, reply);
        }
        assert!(client.reply().await.ends_with("$4 {a}x $1 1"));
        for (command, reply) in [
            ("MULTI", "+OK"),
            ("SET a 1", "+QUEUED"),
            ("PUBLISH foo 1", "+QUEUED"),
            (
                "EXEC",
                "-CROSSSLOT Keys in request don't hash to the same slot",
            ),
        ] {
            assert_eq!(publisher.command(command).await, reply);
        }
        hears_nothing(&mut client, protocol).await;
        drop(client);
        eventually(|| async {
            let mut client = cluster.proxies[0].raw().await;
            match client.command("PUBSUB NUMPAT").await.as_str() {
                ":0" => Ok(()),
                other => Err(other.to_owned()),
            }
        })
        .await;
    }
}

#[tokio::test]
async fn shard_channels_share_a_slot_and_are_heard_at_all_proxies() {
    let cluster = cluster().await;
    let mut publisher = cluster.proxies[0].raw().await;
    let mut client = client(&cluster.proxies[1], 3).await;
    let crossed = "-CROSSSLOT Keys in request don't hash to the same slot";
    assert_eq!(client.command("SSUBSCRIBE a foo").await, crossed);
    let reply = client.command("SSUBSCRIBE {a}1 {a}2").await;
    assert_eq!(reply, told(3, "ssubscribe", "{a}1", ":1"));
    assert_eq!(client.reply().await, told(3, "ssubscribe", "{a}2", ":2"));
    assert_eq!(publisher.command("SPUBLISH {a}2 x").await, ":1");
    let expected = told(3, "smessage", "{a}2", &bulk("x"));
    assert_eq!(client.reply().await, expected);
    let all = publisher.command("PUBSUB SHARDCHANNELS *1").await;
    assert_eq!(all, "*1 $4 {a}1");
    let counts = publisher.command("PUBSUB SHARDNUMSUB {a}1 foo").await;
    assert_eq!(counts, "*4 $4 {a}1 :1 $3 foo :0");
    assert_eq!(publisher.command("PUBLISH {a}2 x").await, ":0");
    hears_nothing(&mut client, 3).await;
}

/// A RESP3 client may ask anything meanwhile, and gets each message between replies.
#[tokio::test]
async fn messages_stand_between_replies() {
    let cluster = Cluster::builder()
        .groups(2)
        .proxies(1)
        .proxy_args(&["--workers", "1"])
        .start()
        .await;
    let proxy = &cluster.proxies[0];
    let mut client = client(proxy, 3).await;
    let value = "v".repeat(3_000_000);
    assert_eq!(client.command(&format!("SET a {value}")).await, "+OK");
    client.command("SUBSCRIBE foo").await;
    let mut publisher = proxy.raw().await;
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    for _ in 0..5 {
        client.pipeline(&vec![words("GET a"); 4]).await;
        let publish: Vec<_> = (0..100)
            .map(|n| words(&format!("PUBLISH foo {n}")))
            .collect();
        publisher.pipeline(&publish).await;
        let (mut values, mut messages) = (0, 0);
        while values < 4 || messages < 100 {
            let got = client.reply().await;
            if got.starts_with('>') {
                assert_eq!(got, message(3, "foo", &messages.to_string()));
                messages += 1;
            } else {
                assert!(got == bulk(&value), "{} bytes", got.len());
                values += 1;
            }
        }
        for _ in 0..100 {
            assert_eq!(publisher.reply().await, ":1");
        }
    }
    // Its own messages, too; and a subscription asked for behind a slow reply is answered behind it.
    let pipeline = ["GET a", "SUBSCRIBE bar", "PUBLISH bar x", "PING"].map(words);
    client.pipeline(&pipeline).await;
    assert!(client.reply().await.starts_with("$3000000 "));
    assert_eq!(client.reply().await, told(3, "subscribe", "bar", ":2"));
    let mut rest = Vec::new();
    while rest.len() < 2 {
        let got = client.reply().await;
        if got.starts_with('>') {
            assert_eq!(got, message(3, "bar", "x"));
        } else {
            rest.push(got);
        }
    }
    assert!(rest[0].starts_with(':') && rest[1] == "+PONG", "{rest:?}");
}

#[tokio::test]
async fn events_come_from_the_owner_of_their_key() {
    let cluster = Cluster::builder()
        .groups(2)
        .proxies(1)
        .server_args(&["--notify-keyspace-events", "KEA"])
        .start()
        .await;
    let proxy = &cluster.proxies[0];
    let mut client = client(proxy, 3).await;
    let mut writer = proxy.raw().await;
    let (space, event) = ("__keyspace@0__:a", "__keyevent@0__:set");
    client.command(&format!("SUBSCRIBE {space}")).await;
    client.command(&format!("SUBSCRIBE {event}")).await;
    client.command("PSUBSCRIBE __keyspace@*__:fo?").await;
    assert_eq!(writer.command("SET a 1").await, "+OK");
    let mut got = [client.reply().await, client.reply().await];
    got.sort();
    let mut expected = [message(3, space, "set"), message(3, event, "a")];
    expected.sort();
    assert_eq!(got, expected);
    assert_eq!(writer.command("SET foo 1").await, "+OK");
    let mut got = [client.reply().await, client.reply().await];
    got.sort();
    assert_eq!(
        got[1],
        ">4 $8 pmessage $18 __keyspace@*__:fo? $18 __keyspace@0__:foo $3 set"
    );
    assert_eq!(got[0], message(3, event, "foo"));
    // Where the key is not at home, it is a copy on its way.
    for group in &cluster.groups {
        let mut at_server = Raw::connect(&group[0].addr).await;
        assert_eq!(at_server.command("SET a copy").await, "+OK");
        assert_eq!(at_server.command("SET foo copy").await, "+OK");
    }
    let mut got = Vec::new();
    for _ in 0..4 {
        got.push(client.reply().await);
    }
    got.sort();
    let pmessage = ">4 $8 pmessage $18 __keyspace@*__:fo? $18 __keyspace@0__:foo $3 set".to_owned();
    let mut all = [
        expected[0].clone(),
        expected[1].clone(),
        message(3, event, "foo"),
        pmessage,
    ];
    all.sort();
    assert_eq!(got, all);
    hears_nothing(&mut client, 3).await;
    let counts = writer
        .command(&format!("PUBSUB NUMSUB {event} {space}"))
        .await;
    assert_eq!(counts, format!("*4 {} :1 {} :1", bulk(event), bulk(space)));
}

#[tokio::test]
async fn who_does_not_take_messages_is_closed_and_others_get_theirs() {
    let cluster = Cluster::builder()
        .groups(1)
        .proxies(1)
        .proxy_args(&["--workers", "1", "--output-limit", "4MiB"])
        .start()
        .await;
    let proxy = &cluster.proxies[0];
    let (mut slow, mut quick) = (client(proxy, 2).await, client(proxy, 2).await);
    slow.command("SUBSCRIBE a").await;
    quick.command("SUBSCRIBE a").await;
    let mut publisher = proxy.raw().await;
    let payload = "x".repeat(1 << 20);
    let since = Instant::now();
    let mut closed = false;
    while !closed && since.elapsed() < SOON {
        publisher.command(&format!("PUBLISH a {payload}")).await;
        assert_eq!(quick.reply().await, message(2, "a", &payload));
        let (_, metrics) = proxy.get("/metrics").await;
        closed = metrics.contains("sluice_proxy_sessions_closed_overrun_total 1");
    }
    assert!(closed);
    slow.rest().await; // up to the end
    eventually(|| async {
        let mut client = proxy.raw().await;
        match client.command("PUBSUB NUMSUB a").await.as_str() {
            "*2 $1 a :1" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
}

#[tokio::test]
async fn subscriptions_are_bounded() {
    let cluster = Cluster::builder()
        .groups(1)
        .proxies(1)
        .proxy_args(&[
            "--workers",
            "1",
            "--max-subscriptions",
            "3",
            "--max-worker-subscriptions",
            "4",
        ])
        .start()
        .await;
    let (mut one, mut two) = (
        client(&cluster.proxies[0], 2).await,
        client(&cluster.proxies[0], 2).await,
    );
    let full = "-ERR max number of subscriptions reached";
    assert_eq!(one.command("SUBSCRIBE a b c d").await, full);
    assert_eq!(one.command("SUBSCRIBE a").await, "*3 $9 subscribe $1 a :1");
    assert_eq!(
        one.command("PSUBSCRIBE a b").await,
        "*3 $10 psubscribe $1 a :2"
    );
    assert_eq!(one.reply().await, "*3 $10 psubscribe $1 b :3");
    assert_eq!(one.command("SUBSCRIBE b").await, full);
    assert_eq!(two.command("SUBSCRIBE a b").await, full);
    assert_eq!(two.command("SUBSCRIBE a").await, "*3 $9 subscribe $1 a :1");
    let (_, metrics) = cluster.proxies[0].get("/metrics").await;
    assert!(
        metrics.contains("sluice_proxy_subscriptions 4"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_lost_server_is_subscribed_again() {
    let mut cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let mut client = client(&cluster.proxies[0], 2).await;
    // On g2 and on g1.
    for channel in ["a", "123456789"] {
        client.command(&format!("SUBSCRIBE {channel}")).await;
    }
    client.command("PSUBSCRIBE user:*").await;
    cluster.groups[1][0].process.kill();
    let mut publisher = cluster.proxies[0].raw().await;
    assert_eq!(publisher.command("PUBLISH 123456789 x").await, ":1");
    assert_eq!(client.reply().await, message(2, "123456789", "x"));
    // What needs the lost one says so; a pattern is heard where it can be.
    let mut other = cluster.proxies[0].raw().await;
    eventually(|| {
        let proxy = &cluster.proxies[0];
        async {
            let mut client = proxy.raw().await;
            match client.command("SUBSCRIBE {a}").await {
                down if down.starts_with("-CLUSTERDOWN server ") => Ok(()),
                other => Err(other),
            }
        }
    })
    .await;
    let reply = other.command("PSUBSCRIBE *").await;
    assert_eq!(reply, told(2, "psubscribe", "*", ":1"));
    cluster.groups[1][0].restart();
    cluster.groups[1][0].answers().await;
    for (channel, expected) in [
        ("a", message(2, "a", "back")),
        (
            "user:1000",
            "*4 $8 pmessage $6 user:* $9 user:1000 $4 back".to_owned(),
        ),
    ] {
        let since = Instant::now();
        loop {
            publisher.command(&format!("PUBLISH {channel} back")).await;
            match timeout(Duration::from_millis(50), client.reply()).await {
                Ok(got) => break assert_eq!(got, expected),
                Err(_) => assert!(since.elapsed() < SOON),
            }
        }
    }
}

/// No message is due, so that only silence tells that the server hangs.
#[tokio::test]
async fn a_hanging_server_is_noticed() {
    let cluster = Cluster::builder()
        .groups(1)
        .proxies(1)
        .proxy_args(&["--workers", "1", "--server-timeout", "1s"])
        .start()
        .await;
    let proxy = &cluster.proxies[0];
    let mut client = client(proxy, 2).await;
    client.command("SUBSCRIBE a").await;
    cluster.groups[0][0].process.stop();
    eventually(|| async {
        let (_, metrics) = proxy.get("/metrics").await;
        let lost = metrics.contains("sluice_proxy_server_connections_lost_total 1");
        lost.then_some(()).ok_or(metrics)
    })
    .await;
    cluster.groups[0][0].process.resume();
    let mut publisher = proxy.raw().await;
    let since = Instant::now();
    loop {
        publisher.command("PUBLISH a back").await;
        match timeout(Duration::from_millis(50), client.reply()).await {
            Ok(got) => break assert_eq!(got, message(2, "a", "back")),
            Err(_) => assert!(since.elapsed() < SOON),
        }
    }
}

/// A group for each server; `a` (slot 579) belongs to one of them or to nobody, all else to g1.
fn topology(epoch: u64, servers: &[Server], owner_of_a: Option<usize>) -> Topology {
    let ids = ["g1", "g2"].map(|id| GroupId::new(id).unwrap());
    let groups = (0..servers.len()).map(|index| Group {
        id: ids[index].clone(),
        primary: ServerAddr::new(&servers[index].addr).unwrap(),
        replicas: Vec::new(),
    });
    let version = Version {
        leader_term: 1,
        epoch,
    };
    let owner = |slot: Slot| {
        if slot.number() == 579 {
            owner_of_a
        } else {
            Some(0)
        }
    };
    Topology::new(
        ClusterId::new("scripted").unwrap(),
        version,
        groups,
        |slot| {
            let owner = owner(slot).map(|index| ids[index].clone());
            (owner, SlotState::Serving)
        },
    )
    .unwrap()
}

#[tokio::test]
async fn subscriptions_move_with_their_slot() {
    let dir = tempfile::tempdir().unwrap();
    let events = ["--notify-keyspace-events", "KEA"].map(str::to_owned);
    let servers = ["s1", "s2"].map(|name| Server::start(dir.path(), name, &events));
    for server in &servers {
        server.answers().await;
    }
    let mut controller = ScriptedController::start().await;
    let args = ["--controller", &controller.addr, "--workers", "2"];
    let proxy = Proxy::start(dir.path(), "p1", &args.map(str::to_owned)).await;
    controller.hear().await; // hello
    let (mut client, mut publisher) = (None, proxy.raw().await);
    for round in 0..6 {
        let owner = round % 2;
        // The second group joins later.
        let servers = &servers[..2.min(1 + round)];
        let topology = topology(round as u64 + 1, servers, Some(owner));
        let snapshot = Say::Snapshot(v1::Topology::from(&topology));
        controller.say(snapshot).await;
        assert!(matches!(controller.hear().await, Said::Ack(_)));
        let client = match &mut client {
            Some(client) => client,
            None => {
                let mut new = proxy.raw().await;
                for command in [
                    "SUBSCRIBE a",
                    "PSUBSCRIBE a*",
                    "SUBSCRIBE __keyspace@0__:{a}k",
                ] {
                    new.command(command).await;
                }
                client.insert(new)
            }
        };
        // The server that is at home has both, the other the pattern alone.
        for (index, server) in servers.iter().enumerate() {
            let count = if index == owner { ":1" } else { ":0" };
            let mut at_server = Raw::connect(&server.addr).await;
            let since = Instant::now();
            loop {
                let got = at_server
                    .command("PUBSUB NUMSUB a __keyspace@0__:{a}k")
                    .await;
                if got == format!("*4 $1 a {count} $19 __keyspace@0__:{{a}}k {count}") {
                    break;
                }
                assert!(since.elapsed() < SOON, "{got}, not {count}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let since = Instant::now();
            while at_server.command("PUBSUB NUMPAT").await != ":1" {
                assert!(since.elapsed() < SOON);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            // Copies of the key raise events where it is not at home.
            at_server.command("SET {a}k copy").await;
        }
        assert_eq!(
            client.reply().await,
            message(2, "__keyspace@0__:{a}k", "set")
        );
        let payload = round.to_string();
        assert_eq!(
            publisher.command(&format!("PUBLISH a {payload}")).await,
            ":2"
        );
        let mut got = [client.reply().await, client.reply().await];
        got.sort();
        assert_eq!(got[0], message(2, "a", &payload));
        assert_eq!(got[1], format!("*4 $8 pmessage $2 a* $1 a $1 {payload}"));
        hears_nothing(client, 2).await;
    }
    // The second group leaves, and with it who owned the slot; later both are back.
    let mut say = async |topology: Topology| {
        controller
            .say(Say::Snapshot(v1::Topology::from(&topology)))
            .await;
        assert!(matches!(controller.hear().await, Said::Ack(_)));
    };
    say(topology(7, &servers[..1], None)).await;
    let mut client = client.unwrap();
    let unserved = "-CLUSTERDOWN Hash slot not served";
    assert_eq!(publisher.command("PUBLISH a x").await, unserved);
    assert_eq!(publisher.command("PUBLISH a1 x").await, ":1");
    assert_eq!(client.reply().await, "*4 $8 pmessage $2 a* $2 a1 $1 x");
    let mut at_server = Raw::connect(&servers[1].addr).await;
    let since = Instant::now();
    while at_server
        .command("CLIENT LIST")
        .await
        .contains("name=sluice:proxy")
    {
        assert!(since.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    say(topology(8, &servers, Some(1))).await;
    let since = Instant::now();
    while at_server.command("PUBSUB NUMSUB a").await != "*2 $1 a :1" {
        assert!(since.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    publisher.command("PUBLISH a back").await;
    assert!(client.reply().await.ends_with("$4 back"));
}
