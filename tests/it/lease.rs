//! Connections that a session has for itself: what blocks, watches or waits does so as at a plain server,
//! and nobody else notices.

use std::time::Duration;

use proto::{
    ClusterId, Group, GroupId, ServerAddr, Slot, SlotState, Topology, Version,
    v1::{self, subscribe_request::Message as Said, subscribe_response::Message as Say},
};
use tests::{Cluster, Proxy, Raw, SOON, ScriptedController, Server, eventually, scripted::admit};
use tokio::time::{Instant, timeout};

async fn cluster(proxy_args: &[&str]) -> Cluster {
    let builder = Cluster::builder().groups(2).proxies(1);
    builder.proxy_args(proxy_args).start().await
}

fn words(command: &str) -> Vec<String> {
    command.split(' ').map(str::to_owned).collect()
}

async fn begin(client: &mut Raw, command: &str) {
    client.pipeline(&[words(command)]).await;
}

/// Returns once so many clients are blocked at these servers together.
async fn blocked(servers: &[&Server], expected: usize) {
    eventually(|| async {
        let mut sum = 0;
        for server in servers {
            let mut raw = Raw::connect(&server.addr).await;
            let info = raw.command("INFO clients").await;
            let (_, count) = info.split_once("blocked_clients:").unwrap();
            sum += count.split('\r').next().unwrap().parse::<usize>().unwrap();
        }
        match sum {
            sum if sum == expected => Ok(()),
            sum => Err(format!("{sum} clients are blocked, not {expected}")),
        }
    })
    .await;
}

/// Asserts that nothing comes.
async fn is_silent(client: &mut Raw) {
    let reply = timeout(Duration::from_millis(200), client.reply()).await;
    assert!(reply.is_err(), "{reply:?}");
}

/// What blocks, who wakes it, and what else the one who was woken does.
const WOKEN: [(&str, &str); 12] = [
    ("BLPOP {a}l {a}m 0", "RPUSH {a}m 1 2"),
    ("BRPOP {a}l 0", "RPUSH {a}l 1 2"),
    ("BLMOVE {a}u {a}d LEFT RIGHT 0", "RPUSH {a}u 3"),
    ("BRPOPLPUSH {a}n {a}d 0", "RPUSH {a}n 4"),
    ("BLMPOP 0 2 {a}o {a}p LEFT COUNT 2", "RPUSH {a}p 1 2 3"),
    ("BZPOPMIN {a}z 0", "ZADD {a}z 1.5 one 2 two"),
    ("BZPOPMAX {a}y {a}x 0", "ZADD {a}x 1 one 2 two"),
    ("BZMPOP 0 1 {a}w MIN", "ZADD {a}w 7 w"),
    ("XREAD BLOCK 0 STREAMS {a}s $", "XADD {a}s 5-5 f v"),
    (
        "XREAD COUNT 1 BLOCK 0 STREAMS {a}r {a}q 0 0",
        "XADD {a}q 5-5 f v",
    ),
    (
        "XREADGROUP GROUP g c BLOCK 0 STREAMS {a}g >",
        "XADD {a}g 6-6 f v",
    ),
    ("BLPOP {a}v 0", "LPUSH {a}v last"),
];

#[tokio::test]
async fn what_blocks_is_woken_with_the_reply_of_a_plain_server() {
    let cluster = cluster(&[]).await;
    let plain = Server::start(cluster.dir.path(), "plain", &[]);
    plain.answers().await;
    let owner = cluster.owner_of("{a}").await;
    for (protocol, database) in [(2, 0), (3, 5)] {
        let hello = [format!("HELLO {protocol}"), format!("SELECT {database}")];
        let mut sides = Vec::new();
        for addr in [&cluster.proxies[0].addr, &plain.addr] {
            let (mut waits, mut wakes) = (Raw::connect(addr).await, Raw::connect(addr).await);
            for command in &hello {
                waits.command(command).await;
                wakes.command(command).await;
            }
            wakes.command("XGROUP CREATE {a}g g 0 MKSTREAM").await;
            sides.push((waits, wakes));
        }
        for (command, waker) in WOKEN {
            let mut got = Vec::new();
            for (side, server) in sides.iter_mut().zip([owner, &plain]) {
                let (waits, wakes) = side;
                // What is asked behind it is answered behind it.
                let behind = [words(command), words("GET {a}k"), words("INCR {a}k")];
                waits.pipeline(&behind).await;
                blocked(&[server], 1).await;
                let woke = wakes.command(waker).await;
                got.push((
                    woke,
                    waits.reply().await,
                    waits.reply().await,
                    waits.reply().await,
                ));
            }
            assert_eq!(got[0], got[1], "{command}, RESP{protocol}");
        }
    }
}

#[tokio::test]
async fn timeouts_errors_and_what_is_there_are_those_of_a_plain_server() {
    let cluster = cluster(&[]).await;
    let plain = Server::start(cluster.dir.path(), "plain", &[]);
    plain.answers().await;
    for protocol in [2, 3] {
        let mut proxied = cluster.proxies[0].raw().await;
        let mut direct = Raw::connect(&plain.addr).await;
        let hello = format!("HELLO {protocol}");
        for command in [
            &hello,
            "SELECT 2",
            "BLPOP {a}l 0.05",
            "BLMOVE {a}l {a}d LEFT RIGHT 0.05",
            "BRPOPLPUSH {a}l {a}d 0.05",
            "BLMPOP 0.05 1 {a}l LEFT",
            "BZPOPMIN {a}l 0.05",
            "BZMPOP 0.05 1 {a}l MAX",
            "XREAD BLOCK 50 STREAMS {a}l $",
            "XREAD BLOCK 50 STREAMS {a}l $ 0",
            "XREAD STREAMS {a}l BLOCK 50",
            "XREAD BLOCK x STREAMS {a}l 0",
            "BLPOP {a}l -1",
            "BLPOP {a}l x",
            "BLPOP {a}l",
            "BLMPOP 0.05 x {a}l LEFT",
            "BLMPOP 0.05 1 {a}l SIDEWAYS",
            "SET {a}t text",
            "BLPOP {a}t 0",
            "RPUSH {a}l 1 2 3",
            "BLPOP {a}l 0",
            "MULTI",
            "BLPOP {a}l 0",
            "BLPOP {a}none 0",
            "XREAD BLOCK 0 STREAMS {a}none $",
            "BRPOPLPUSH {a}l {a}d 0",
            "EXEC",
            "LRANGE {a}d 0 -1",
            "DEL {a}d {a}l {a}t",
        ] {
            let (got, expected) = (
                proxied.command(command).await,
                direct.command(command).await,
            );
            if !command.starts_with("HELLO") {
                assert_eq!(got, expected, "{command}, RESP{protocol}");
            }
        }
        let crossing = proxied.command("BLPOP a foo 0").await;
        assert_eq!(
            crossing,
            "-CROSSSLOT Keys in request don't hash to the same slot"
        );
    }
}

#[tokio::test]
async fn who_goes_away_takes_nothing() {
    let cluster = cluster(&["--workers", "1"]).await;
    let proxy = &cluster.proxies[0];
    let owner = cluster.owner_of("a").await;
    let mut pusher = proxy.raw().await;
    // At once, and with requests behind that will never be taken.
    for behind in ["", "INCR b", "SET c "] {
        let mut client = proxy.raw().await;
        begin(&mut client, "BLPOP a 0").await;
        client
            .send(format!("{behind}{}", "x".repeat(100_000)).as_bytes())
            .await;
        blocked(&[owner], 1).await;
        drop(client);
        blocked(&[owner], 0).await;
        assert_eq!(pusher.command("RPUSH a 1").await, ":1");
        assert_eq!(pusher.command("LPOP a").await, "$1 1", "it stayed");
    }
    assert_eq!(pusher.command("EXISTS b c").await, ":0");
    eventually(|| async {
        let (_, metrics) = proxy.get("/metrics").await;
        let leases = metrics.lines().find(|line| {
            line.starts_with("sluice_proxy_leases{") || line.starts_with("sluice_proxy_leases ")
        });
        match leases {
            Some(line) if line.ends_with(" 0") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn nobody_waits_behind_those_who_block() {
    let cluster = cluster(&["--workers", "1"]).await;
    let proxy = &cluster.proxies[0];
    let owner = cluster.owner_of("a").await;
    let mut waiting = Vec::new();
    for _ in 0..50 {
        let mut client = proxy.raw().await;
        begin(&mut client, "BLPOP a 0").await;
        waiting.push(client);
    }
    blocked(&[owner], 50).await;
    let mut other = proxy.raw().await;
    for n in 0..50 {
        assert_eq!(other.command(&format!("SET {{a}}k {n}")).await, "+OK");
    }
    for n in 0..50 {
        assert!(
            other
                .command(&format!("RPUSH a {n}"))
                .await
                .starts_with(':')
        );
    }
    // Each gets one: who came first, the first.
    let mut got = Vec::new();
    for client in &mut waiting {
        got.push(client.reply().await);
    }
    got.sort();
    let mut expected: Vec<String> = (0..50)
        .map(|n| format!("*2 $1 a ${} {n}", n.to_string().len()))
        .collect();
    expected.sort();
    assert_eq!(got, expected);
}

#[tokio::test]
async fn a_lease_is_used_again_and_there_are_only_so_many() {
    let cluster = cluster(&["--workers", "1", "--max-leases", "2"]).await;
    let proxy = &cluster.proxies[0];
    let owner = cluster.owner_of("a").await;
    let mut client = proxy.raw().await;
    let received = async || {
        let info = Raw::connect(&owner.addr).await.command("INFO stats").await;
        let (_, count) = info.split_once("total_connections_received:").unwrap();
        count.split('\r').next().unwrap().parse::<usize>().unwrap()
    };
    client.command("BLPOP a 0.01").await;
    let before = received().await;
    for database in 0..10 {
        client.command(&format!("SELECT {}", database % 3)).await;
        assert_eq!(client.command("BLPOP a 0.01").await, "*-1");
        assert_eq!(client.command("WATCH a").await, "+OK");
        assert_eq!(client.command("UNWATCH").await, "+OK");
    }
    assert_eq!(received().await, before + 1, "but for the one that asks");

    let (mut one, mut two) = (proxy.raw().await, proxy.raw().await);
    begin(&mut one, "BLPOP {a}1 0").await;
    begin(&mut two, "BLPOP {a}2 0").await;
    blocked(&[owner], 2).await;
    for refused in ["BLPOP {a}3 0", "WATCH a"] {
        let reply = client.command(refused).await;
        assert!(reply.starts_with("-TRYAGAIN "), "{reply}");
    }
    assert_eq!(client.command("RPUSH {a}1 x").await, ":1");
    assert_eq!(one.reply().await, "*2 $4 {a}1 $1 x");
    assert_eq!(client.command("WATCH a").await, "+OK");
    let (_, metrics) = proxy.get("/metrics").await;
    assert!(metrics.contains("leases_refused_total 2"), "{metrics}");
}

#[tokio::test]
async fn a_server_that_is_lost_tells_what_became_of_it() {
    let mut cluster = cluster(&["--server-timeout", "1s"]).await;
    assert!(Slot::of_key(b"a").number() >= 512, "on g2");
    let proxy = &cluster.proxies[0];
    let (mut pops, mut reads, mut waits) =
        (proxy.raw().await, proxy.raw().await, proxy.raw().await);
    begin(&mut pops, "BLPOP a 0").await;
    begin(&mut reads, "XREAD BLOCK 0 STREAMS {a}s $").await;
    begin(&mut waits, "BLPOP {a}b 0.1").await;
    blocked(&[&cluster.groups[1][0]], 2).await;
    assert_eq!(waits.reply().await, "*-1");
    // It is only slow: nobody who waits for ever is told anything, who had a time is.
    begin(&mut waits, "BLPOP {a}b 1").await;
    blocked(&[&cluster.groups[1][0]], 3).await;
    cluster.groups[1][0].process.stop();
    let since = Instant::now();
    let reply = waits.reply().await;
    assert!(reply.starts_with("-UNKNOWNOUTCOME server "), "{reply}");
    assert!(since.elapsed() > Duration::from_secs(1));
    is_silent(&mut pops).await;
    cluster.groups[1][0].process.kill();
    let reply = pops.reply().await;
    assert!(reply.starts_with("-UNKNOWNOUTCOME server "), "{reply}");
    let reply = reads.reply().await;
    assert!(reply.starts_with("-CLUSTERDOWN server "), "{reply}");
    let reply = pops.command("BLPOP a 0").await;
    assert!(reply.starts_with("-CLUSTERDOWN server "), "{reply}");
    cluster.groups[1][0].restart();
    cluster.groups[1][0].answers().await;
    eventually(|| async {
        match proxy.raw().await.command("BLPOP a 0.01").await {
            reply if reply == "*-1" => Ok(()),
            reply => Err(reply), // it is still to be admitted again
        }
    })
    .await;
}

#[tokio::test]
async fn who_drains_lets_go_of_those_who_block() {
    let mut cluster = cluster(&["--drain-timeout", "60s"]).await;
    let mut client = cluster.proxies[0].raw().await;
    begin(&mut client, "BLPOP a 0").await;
    blocked(&[cluster.owner_of("a").await], 1).await;
    let since = Instant::now();
    cluster.proxies[0].process.terminate();
    assert_eq!(client.rest().await, b"");
    assert!(cluster.proxies[0].process.wait(SOON).success());
    assert!(since.elapsed() < SOON, "the drain's time is longer");
}

/// Two servers, and a proxy whose controller says what the test tells it to.
struct Scripted {
    _dir: tempfile::TempDir,
    servers: [Server; 2],
    controller: ScriptedController,
    proxy: Proxy,
    epoch: u64,
}

impl Scripted {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let servers = ["one", "two"].map(|name| Server::start(dir.path(), name, &[]));
        for server in &servers {
            server.answers().await;
        }
        let mut controller = ScriptedController::start().await;
        let args = ["--controller", &controller.addr, "--id", "p1"];
        let proxy = Proxy::start(dir.path(), "p1", &args.map(str::to_owned)).await;
        assert!(matches!(controller.hear().await, Said::Hello(_)));
        let mut scripted = Self {
            _dir: dir,
            servers,
            controller,
            proxy,
            epoch: 0,
        };
        scripted.place(0, SlotState::Serving).await;
        scripted
    }

    /// The slot of `a` comes to this server, in this state; all others are the first's.
    async fn place(&mut self, index: usize, state: SlotState) {
        self.epoch += 1;
        let ids = ["g1", "g2"].map(|id| GroupId::new(id).unwrap());
        let group = |index: usize| Group {
            id: ids[index].clone(),
            primary: ServerAddr::new(&self.servers[index].addr).unwrap(),
            replicas: Vec::new(),
        };
        let version = Version {
            leader_term: 1,
            epoch: self.epoch,
        };
        let cluster = ClusterId::new("scripted").unwrap();
        let topology = Topology::new(cluster, version, [group(0), group(1)], |slot| {
            if slot == Slot::of_key(b"a") {
                (Some(ids[index].clone()), state.clone())
            } else {
                (Some(ids[0].clone()), SlotState::Serving)
            }
        });
        let snapshot = Say::Snapshot(v1::Topology::from(&topology.unwrap()));
        self.controller.say(snapshot).await;
        match self.controller.hear().await {
            Said::Ack(ack) => assert_eq!(ack.version.unwrap().epoch, self.epoch),
            other => panic!("expected an ack, got {other:?}"),
        }
    }

    async fn at(&self, index: usize) -> Raw {
        Raw::connect(&self.servers[index].addr).await
    }
}

#[tokio::test]
async fn who_blocks_does_not_notice_that_the_slot_moves() {
    let mut scripted = Scripted::start().await;
    let mut clients = Vec::new();
    for command in [
        "BLPOP a 0",
        "BLMOVE {a}l {a}m LEFT LEFT 30",
        "XREAD BLOCK 30000 STREAMS {a}x 0",
        "BLMPOP 2 1 {a}none LEFT",
        "BLPOP elsewhere 0",
    ] {
        let mut client = scripted.proxy.raw().await;
        begin(&mut client, command).await;
        clients.push(client);
    }
    let since = Instant::now();
    blocked(&[&scripted.servers[0]], 5).await;
    scripted.place(0, SlotState::Held { target: None }).await;
    blocked(&[&scripted.servers[0]], 1).await;
    scripted.place(1, SlotState::Serving).await;
    blocked(&[&scripted.servers[1]], 4).await;
    // There and back, without a hold.
    scripted.place(0, SlotState::Serving).await;
    blocked(&[&scripted.servers[1]], 0).await;
    scripted.place(1, SlotState::Serving).await;
    blocked(&[&scripted.servers[0]], 1).await;
    blocked(&[&scripted.servers[1]], 4).await;
    let mut pusher = scripted.proxy.raw().await;
    for (command, client, reply) in [
        ("RPUSH a 1 2", 0, "*2 $1 a $1 1"),
        ("RPUSH {a}l v", 1, "$1 v"),
        (
            "XADD {a}x 1-1 f v",
            2,
            "*1 *2 $4 {a}x *1 *2 $3 1-1 *2 $1 f $1 v",
        ),
        ("RPUSH elsewhere 3", 4, "*2 $9 elsewhere $1 3"),
    ] {
        pusher.command(command).await;
        assert_eq!(clients[client].reply().await, reply, "{command}");
    }
    // Its time is what it was, over all moves.
    assert_eq!(clients[3].reply().await, "*-1");
    let took = since.elapsed();
    assert!(
        took > Duration::from_millis(1900) && took < Duration::from_secs(10),
        "{took:?}"
    );
    assert_eq!(
        scripted.at(0).await.command("EXISTS a {a}l {a}m").await,
        ":0"
    );
    assert_eq!(
        scripted.at(1).await.command("LRANGE a 0 -1").await,
        "*1 $1 2"
    );
}

#[tokio::test]
async fn nothing_is_popped_twice_or_lost_while_the_slot_moves() {
    let mut scripted = Scripted::start().await;
    let mut popper = scripted.proxy.raw().await;
    let pops = tokio::spawn(async move {
        let mut got = Vec::new();
        while got.last().is_none_or(|last| last != "*2 $1 a $3 end") {
            got.push(popper.command("BLPOP a 0").await);
        }
        got
    });
    let mut pusher = scripted.proxy.raw().await;
    let mut pushed = 0;
    for round in 0..20 {
        scripted.place(0, SlotState::Held { target: None }).await;
        scripted.place(0, SlotState::Serving).await;
        for _ in 0..=round % 3 {
            pushed += 1;
            assert!(
                pusher
                    .command(&format!("RPUSH a {pushed}"))
                    .await
                    .starts_with(':')
            );
        }
    }
    pusher.command("RPUSH a end").await;
    let got = pops.await.unwrap();
    let mut expected: Vec<String> = (1..=pushed)
        .map(|n| format!("*2 $1 a ${} {n}", n.to_string().len()))
        .collect();
    expected.push("*2 $1 a $3 end".to_owned());
    assert_eq!(got, expected);
}

/// What a client that watches sends, and what `!` another one sends in between.
const WATCHES: [&[&str]; 21] = [
    &["WATCH {a}1", "MULTI", "SET {a}1 x", "EXEC", "GET {a}1"],
    &[
        "WATCH {a}1",
        "!SET {a}1 y",
        "MULTI",
        "SET {a}1 no",
        "EXEC",
        "GET {a}1",
    ],
    &[
        "WATCH {a}1 {a}2",
        "WATCH {a}3",
        "!INCR {a}3",
        "MULTI",
        "EXEC",
    ],
    &["WATCH {a}1", "SET {a}1 own", "MULTI", "GET {a}1", "EXEC"],
    &[
        "WATCH {a}1",
        "!SET {a}1 z",
        "UNWATCH",
        "MULTI",
        "GET {a}1",
        "EXEC",
    ],
    &[
        "WATCH {a}1",
        "!SET {a}1 z",
        "MULTI",
        "DISCARD",
        "MULTI",
        "GET {a}1",
        "EXEC",
    ],
    &[
        "WATCH {a}1",
        "MULTI",
        "WATCH {a}2",
        "UNWATCH",
        "GET {a}1",
        "EXEC",
    ],
    &["WATCH {a}1", "EXEC", "!SET {a}1 w", "MULTI", "EXEC"],
    &["WATCH {a}1", "DISCARD", "!SET {a}1 w", "MULTI", "EXEC"],
    &["WATCH", "UNWATCH x", "UNWATCH"],
    &[
        "WATCH {a}1",
        "SELECT 1",
        "!SET {a}1 w",
        "MULTI",
        "SET {a}1 one",
        "EXEC",
        "GET {a}1",
        "SELECT 0",
    ],
    &[
        "WATCH {a}1",
        "SELECT 1",
        "MULTI",
        "SET {a}1 one",
        "GET {a}1",
        "EXEC",
        "SELECT 0",
        "GET {a}1",
    ],
    &[
        "WATCH {a}1",
        "SELECT 1",
        "WATCH {a}1",
        "SELECT 0",
        "!SET {a}1 v",
        "MULTI",
        "EXEC",
    ],
    &["WATCH {a}1", "RESET", "!SET {a}1 q", "MULTI", "EXEC"],
    &[
        "WATCH {a}1",
        "MULTI",
        "NOSUCH",
        "EXEC",
        "!SET {a}1 q",
        "MULTI",
        "EXEC",
    ],
    &[
        "WATCH {a}1",
        "MULTI",
        "EXEC x",
        "!SET {a}1 q",
        "MULTI",
        "EXEC",
    ],
    &[
        "WATCH {a}1",
        "MULTI",
        "INCR {a}text",
        "LPUSH {a}1 no",
        "GET {a}1",
        "EXEC",
    ],
    &[
        "WATCH {a}e",
        "!SET {a}e 1 PX 20",
        "WATCH {a}e",
        "MULTI",
        "EXEC",
    ],
    &["WATCH {a}1", "MULTI", "WAIT 0 0", "PING", "EXEC"],
    &["WATCH {a}1", "!FLUSHALL", "MULTI", "EXEC"],
    &[
        "SET {a}1 last",
        "WATCH {a}1",
        "MULTI",
        "SET {a}1 x",
        "RESET",
        "GET {a}1",
        "EXEC",
    ],
];

#[tokio::test]
async fn what_is_watched_is_what_a_plain_server_watches() {
    let cluster = cluster(&[]).await;
    let plain = Server::start(cluster.dir.path(), "plain", &[]);
    plain.answers().await;
    for protocol in [2, 3] {
        let mut sides = Vec::new();
        for addr in [&cluster.proxies[0].addr, &plain.addr] {
            sides.push([Raw::connect(addr).await, Raw::connect(addr).await]);
        }
        for script in WATCHES {
            let mut got = [Vec::new(), Vec::new()];
            for ([client, other], got) in sides.iter_mut().zip(&mut got) {
                client.command(&format!("HELLO {protocol}")).await;
                for command in script {
                    got.push(match command.strip_prefix('!') {
                        Some(command) => other.command(command).await,
                        None => client.command(command).await,
                    });
                }
            }
            assert_eq!(got[0], got[1], "{script:?}, RESP{protocol}");
            // And in one pipeline, where nobody comes in between.
            if script.iter().any(|command| command.starts_with('!')) {
                continue;
            }
            let commands: Vec<Vec<String>> = script.iter().map(|command| words(command)).collect();
            for ([client, _], got) in sides.iter_mut().zip(&mut got) {
                client.command(&format!("HELLO {protocol}")).await;
                client.pipeline(&commands).await;
                got.clear();
                for _ in script {
                    got.push(client.reply().await);
                }
            }
            assert_eq!(got[0], got[1], "{script:?}, RESP{protocol}, pipelined");
        }
    }
}

/// The protocol may change between `WATCH` and `EXEC`, too.
#[tokio::test]
async fn what_is_watched_is_in_one_slot_and_survives_hello() {
    let cluster = cluster(&[]).await;
    let mut client = cluster.proxies[0].raw().await;
    let mut other = cluster.proxies[0].raw().await;
    let crossing = "-CROSSSLOT Keys in request don't hash to the same slot";
    assert_eq!(client.command("WATCH a foo").await, crossing);
    assert_eq!(client.command("WATCH a").await, "+OK");
    assert_eq!(client.command("WATCH foo").await, crossing);
    assert!(client.command("HELLO 3").await.starts_with('%'));
    for command in ["MULTI", "HSET {a}h f v", "HGETALL {a}h"] {
        client.command(command).await;
    }
    assert_eq!(client.command("EXEC").await, "*2 :1 %1 $1 f $1 v");
    assert_eq!(client.command("WATCH a").await, "+OK");
    for (command, reply) in [
        ("MULTI", "+OK"),
        ("SET foo 1", "+QUEUED"),
        ("EXEC", crossing),
    ] {
        assert_eq!(client.command(command).await, reply);
    }
    // That ended it.
    other.command("SET a 2").await;
    client.command("MULTI").await;
    assert_eq!(client.command("EXEC").await, "*0");
}

/// Many increment a number as optimistic locking does; each success counts.
#[tokio::test]
async fn of_those_who_watch_the_same_one_succeeds() {
    let cluster = cluster(&[]).await;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let mut client = cluster.proxies[0].raw().await;
        clients.spawn(async move {
            let mut done = 0;
            while done < 20 {
                client.command("WATCH a").await;
                let reply = client.command("GET a").await;
                let now: u32 = reply
                    .split(' ')
                    .nth(1)
                    .map_or(0, |text| text.parse().unwrap());
                let next = now + 1;
                client
                    .pipeline(&[
                        words("MULTI"),
                        words(&format!("SET a {next}")),
                        words("EXEC"),
                    ])
                    .await;
                client.reply().await;
                client.reply().await;
                match client.reply().await.as_str() {
                    "*1 +OK" => done += 1,
                    "*-1" => {}
                    other => panic!("{other}"),
                }
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    let mut client = cluster.proxies[0].raw().await;
    assert_eq!(client.command("GET a").await, "$3 100");
}

#[tokio::test]
async fn a_watch_does_not_outlive_its_place() {
    let mut scripted = Scripted::start().await;
    let mut client = scripted.proxy.raw().await;
    let transaction = ["MULTI", "SET a no", "EXEC"];
    let places = [
        (0, SlotState::Held { target: None }),
        (0, SlotState::Serving),
        (1, SlotState::Serving),
        (0, SlotState::Serving),
    ];
    for (index, state) in places.clone() {
        let (before, _) = places[(index + 1) % 2].clone();
        scripted.place(before, SlotState::Serving).await;
        assert_eq!(client.command("WATCH a").await, "+OK");
        scripted
            .place(index, SlotState::Held { target: None })
            .await;
        scripted.place(index, state.clone()).await;
        // More of it does not mend it.
        if state == SlotState::Serving {
            assert_eq!(client.command("WATCH {a}2").await, "+OK");
        }
        let expected = ["+OK", "+QUEUED", "*-1"];
        for (command, reply) in transaction.iter().zip(expected) {
            assert_eq!(client.command(command).await, reply, "{command}");
        }
    }
    // The server is lost in between.
    scripted.place(1, SlotState::Serving).await;
    assert_eq!(client.command("WATCH a").await, "+OK");
    scripted.servers[1].process.kill();
    scripted.servers[1].restart();
    scripted.servers[1].answers().await;
    admit(&scripted.servers[1].addr, "scripted").await;
    for (command, reply) in transaction.iter().zip(["+OK", "+QUEUED", "*-1"]) {
        assert_eq!(client.command(command).await, reply, "{command}");
    }
    for command in ["WATCH a", "MULTI"] {
        assert_eq!(client.command(command).await, "+OK");
    }
    assert_eq!(client.command("EXEC").await, "*0", "it is new");
    assert_eq!(client.command("EXISTS a").await, ":0");
}

#[tokio::test]
async fn wait_covers_what_was_written_by_any_connection() {
    let builder = Cluster::builder().groups(2).replicas(1).proxies(1);
    let cluster = builder.start().await;
    let mut client = cluster.proxies[0].raw().await;
    let replica = &cluster.groups[1][1]; // of the group that owns `a`
    assert!(Slot::of_key(b"a").number() >= 512, "on g2");
    eventually(|| async {
        let reply = cluster.proxies[0].raw().await.command("WAIT 1 100").await;
        if reply == ":1" { Ok(()) } else { Err(reply) }
    })
    .await;
    let mut other = cluster.proxies[0].raw().await;
    for _ in 0..3 {
        assert_eq!(client.command("MSET a 1 foo 1").await, "+OK");
        assert_eq!(client.command("WAIT 1 10000").await, ":1");
        replica.process.stop();
        assert_eq!(client.command("MSET a 2 foo 2").await, "+OK");
        let since = Instant::now();
        assert_eq!(
            client.command("WAIT 1 300").await,
            ":0",
            "one of the groups has none"
        );
        assert!(since.elapsed() >= Duration::from_millis(300));
        // Others do not wait.
        begin(&mut client, "WAIT 1 0").await;
        assert_eq!(other.command("INCR {a}n").await.chars().next(), Some(':'));
        is_silent(&mut client).await;
        replica.process.resume();
        assert_eq!(client.reply().await, ":1");
    }
    let refused = client.command("WAIT x 0").await;
    assert_eq!(refused, "-ERR value is not an integer or out of range");
    // Who goes away waits no more.
    replica.process.stop();
    client.command("SET a 3").await;
    begin(&mut client, "WAIT 1 0").await;
    blocked(&[&cluster.groups[1][0]], 1).await;
    drop(client);
    blocked(&[&cluster.groups[1][0]], 0).await;
    replica.process.resume();
}

#[tokio::test]
async fn who_blocks_can_be_unblocked_through_any_worker() {
    let cluster = cluster(&["--workers", "2"]).await;
    let proxy = &cluster.proxies[0];
    let owner = cluster.owner_of("a").await;
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(proxy.raw().await);
    }
    let error = "-UNBLOCKED client unblocked via CLIENT UNBLOCK";
    for other in &mut others {
        let mut client = proxy.raw().await;
        let reply = client.command("CLIENT ID").await;
        let id = reply.trim_start_matches(':').to_owned();
        assert_eq!(other.command(&format!("CLIENT UNBLOCK {id}")).await, ":0");
        for (how, reply) in [("", "*-1"), (" TIMEOUT", "*-1"), (" ERROR", error)] {
            client.pipeline(&[words("BLPOP a 0"), words("PING")]).await;
            blocked(&[owner], 1).await;
            let list = other.command("CLIENT LIST").await;
            let flags = list
                .lines()
                .find(|line| line.contains(&format!("id={id} ")));
            assert!(
                flags.is_some_and(|line| line.contains(" flags=b ")),
                "{list}"
            );
            let unblock = format!("CLIENT UNBLOCK {id}{how}");
            assert_eq!(other.command(&unblock).await, ":1");
            assert_eq!(client.reply().await, reply);
            assert_eq!(client.reply().await, "+PONG");
        }
        // Nothing of it reaches the next one.
        begin(&mut client, "BLPOP a 0").await;
        is_silent(&mut client).await;
        assert_eq!(other.command("RPUSH a 1").await, ":1");
        assert_eq!(client.reply().await, "*2 $1 a $1 1");
        begin(&mut client, "WAIT 1 0").await;
        is_silent(&mut client).await;
        let unblock = format!("CLIENT UNBLOCK {id}");
        assert_eq!(other.command(&unblock).await, ":1");
        assert_eq!(client.reply().await, ":0");
    }
    for (command, reply) in [
        (
            "CLIENT UNBLOCK x",
            "-ERR value is not an integer or out of range",
        ),
        (
            "CLIENT UNBLOCK 1 SOON",
            "-ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR",
        ),
    ] {
        assert_eq!(others[0].command(command).await, reply);
    }
}
