//! Slots that are held, or copied: what a proxy says of what it sent for them before, and when.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use proto::{
    GroupId, Slot, SlotState, Topology,
    settled::{Lost, Streams},
};
use tests::{Raw, SOON, Scene, eventually, scene::GROUPS};
use tokio::time::{Instant, sleep, timeout};

fn slot() -> Slot {
    Slot::of_key(b"foo")
}

fn target() -> GroupId {
    GroupId::new(GROUPS[1]).unwrap()
}

/// Slot 289 is held, on its way to the second group.
fn held(scene: &Scene, epoch: u64) -> Topology {
    let target = Some(target());
    scene.topology(epoch, |s| {
        let target = target.clone();
        (s == slot()).then_some((0, SlotState::Held { target }))
    })
}

fn copied(scene: &Scene, epoch: u64) -> Topology {
    let target = target();
    scene.topology(epoch, |s| {
        let target = target.clone();
        (s == slot()).then_some((0, SlotState::Copying { target }))
    })
}

fn moved(scene: &Scene, epoch: u64) -> Topology {
    scene.topology(epoch, |s| (s == slot()).then_some((1, SlotState::Serving)))
}

fn none_lost(lost: &Lost) -> bool {
    matches!(lost, Lost::These(these) if these.is_empty())
}

/// The keys of the streams that were touched. `None`: they are not known.
fn keys(streams: &Streams) -> Option<Vec<String>> {
    match streams {
        Streams::Any => None,
        Streams::These(these) => {
            let key = |s: &proto::settled::StreamKey| {
                format!("{}:{}", s.database, String::from_utf8_lossy(&s.key))
            };
            Some(these.iter().map(key).collect())
        }
    }
}

const DEBUG: [&str; 2] = ["--enable-debug-command", "yes"];

/// Has a server do nothing for a while; returns once it does so.
async fn freeze(addr: &str, seconds: f32) -> Raw {
    let mut raw = Raw::connect(addr).await;
    raw.command("PING").await;
    let words = ["DEBUG", "SLEEP", &seconds.to_string()].map(str::to_owned);
    raw.pipeline(&[words.to_vec()]).await;
    sleep(Duration::from_millis(100)).await;
    raw
}

#[tokio::test]
async fn a_group_has_settled_only_when_all_is_answered() {
    let mut scene = Scene::start(&DEBUG).await;
    let proxy = scene.proxy(1, &[]).await;
    // A load on the slot, and beside it, by all kinds of connections.
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for client in 0..8 {
        let (mut raw, stop) = (proxy.raw().await, Arc::clone(&stop));
        clients.push(tokio::spawn(async move {
            let mut count = 0;
            if client % 2 == 0 {
                raw.command("HELLO 3").await;
            }
            while !stop.load(SeqCst) {
                let reply = match client {
                    0 | 1 => raw.command("INCR {foo}pipe").await,
                    2 | 3 => {
                        for command in ["WATCH {foo}other", "MULTI", "INCR {foo}watch"] {
                            let reply = raw.command(command).await;
                            assert!(!reply.starts_with('-'), "{command}: {reply}");
                        }
                        raw.command("EXEC").await
                    }
                    4 => raw.command("MSET {foo}split 1 a 1 123456789 1").await,
                    5 => {
                        let script = "return redis.call('INCR',KEYS[1])";
                        let words = ["EVAL", script, "1", "{foo}script"].map(str::to_owned);
                        raw.pipeline(&[words.to_vec()]).await;
                        raw.reply().await
                    }
                    6 => raw.command("INCR 123456789").await, // on the same server
                    _ => raw.command("BLPOP {foo}list 0.05").await,
                };
                assert!(!reply.starts_with('-'), "{client}: {reply}");
                count += 1;
            }
            count
        }));
    }
    sleep(Duration::from_millis(300)).await;
    let mut epoch = 1;
    for round in 0..5 {
        let asleep = freeze(&scene.servers[0].addr, 0.7).await;
        let since = Instant::now();
        scene.publish(&held(&scene, epoch + 1)).await;
        let acked = since.elapsed();
        let settled = scene.settled().await;
        assert!(
            acked < Duration::from_millis(400) && since.elapsed() > Duration::from_millis(400),
            "round {round}: acknowledged after {acked:?}, settled after {:?}",
            since.elapsed()
        );
        drop(asleep);
        assert_eq!(settled.version.epoch, epoch + 1);
        assert_eq!(settled.group.as_str(), "g1");
        assert!(none_lost(&settled.lost), "{:?}", settled.lost);
        // It was not copied before, so that nobody knows what was touched.
        assert_eq!(keys(&settled.streams), None);
        // Nothing comes any more, whatever clients want.
        let mut monitor = Raw::connect(&scene.servers[0].addr).await;
        assert_eq!(monitor.command("MONITOR").await, "+OK");
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            let Some(seen) = monitor.reply_within(Duration::from_millis(50)).await else {
                continue;
            };
            assert!(!seen.contains("{foo}"), "{seen}");
        }
        // It stays where it is.
        epoch += 2;
        scene.publish(&scene.topology(epoch, |_| None)).await;
        sleep(Duration::from_millis(100)).await;
    }
    stop.store(true, SeqCst);
    let mut counts = Vec::new();
    for client in clients {
        counts.push(client.await.unwrap());
    }
    let mut direct = Raw::connect(&scene.servers[0].addr).await;
    for (key, of) in [("{foo}pipe", 0), ("{foo}watch", 2)] {
        let sum: u64 = counts[of] + counts[of + 1];
        let there = direct.command(&format!("GET {key}")).await;
        let there: u64 = there.rsplit(' ').next().unwrap().parse().unwrap();
        // Of transactions that watch, some were not executed.
        assert!(
            there == sum || (of == 2 && there <= sum),
            "{key}: {there} of {sum}"
        );
    }
}

#[tokio::test]
async fn a_connection_that_is_lost_with_something_unanswered_is_named() {
    let mut scene = Scene::start(&[]).await;
    let proxy = scene
        .proxy(1, &["--server-timeout", "1s", "--workers", "1"])
        .await;
    let mut client = proxy.raw().await;
    assert_eq!(client.command("SET foo 1").await, "+OK");
    let mut direct = Raw::connect(&scene.servers[0].addr).await;
    let list = direct.command("CLIENT LIST").await;
    let info = direct.command("INFO server").await;
    let run_id = info.split_once("run_id:").unwrap().1;
    let run_id = run_id.split_whitespace().next().unwrap().to_owned();

    scene.servers[0].process.stop();
    client.pipeline(&[words("SET foo 2")]).await;
    sleep(Duration::from_millis(100)).await;
    scene.publish(&held(&scene, 2)).await;
    assert!(client.reply().await.starts_with("-UNKNOWNOUTCOME "));
    let settled = scene.settled().await;
    let Lost::These(lost) = &settled.lost else {
        panic!("too many")
    };
    assert_eq!(lost.len(), 1, "{lost:?}");
    for connection in lost {
        assert_eq!(connection.server.as_str(), scene.servers[0].addr);
        assert_eq!(connection.run_id, run_id);
        let id = format!("id={} ", connection.client_id);
        let line = list.lines().find(|line| line.contains(&id));
        assert!(line.unwrap().contains("name=sluice:proxy:"), "{list}");
    }
    scene.servers[0].process.resume();
    // The server is asked to close it, and then nothing of it will be executed any more.
    let mut epoch = 3;
    let since = Instant::now();
    loop {
        scene.publish(&scene.topology(epoch, |_| None)).await;
        scene.publish(&held(&scene, epoch + 1)).await;
        if none_lost(&scene.settled().await.lost) {
            break;
        }
        assert!(since.elapsed() < SOON, "it is still lost");
        sleep(Duration::from_millis(100)).await;
        epoch += 2;
    }
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

#[tokio::test]
async fn streams_whose_consumers_change_while_they_are_copied_are_named() {
    let mut scene = Scene::start(&[]).await;
    let proxy = scene.proxy(1, &[]).await;
    let mut client = proxy.raw().await;
    client.command("XGROUP CREATE {foo}1 g $ MKSTREAM").await;
    client.command("XGROUP CREATE {foo}9 g $ MKSTREAM").await;
    // One that waits since before.
    let mut waiting = proxy.raw().await;
    let wait = words("XREADGROUP GROUP g c BLOCK 0 STREAMS {foo}9 >");
    waiting.pipeline(&[wait]).await;
    sleep(Duration::from_millis(200)).await;

    scene.publish(&copied(&scene, 2)).await;
    let settled = scene.settled().await;
    assert_eq!(settled.version.epoch, 2);
    assert!(none_lost(&settled.lost), "{:?}", settled.lost);
    for command in [
        "XADD {foo}2 1-1 k v",
        "XADD {foo}3 1-1 k v",
        "XRANGE {foo}4 - +",
        "XGROUP CREATE {foo}2 g 0",
        "XGROUP CREATE a g 0 MKSTREAM", // another slot
        "XREADGROUP GROUP g c COUNT 1 STREAMS {foo}2 >",
        "MULTI",
        "XSETID {foo}3 9-9",
        "EXEC",
        "SELECT 3",
        "XGROUP CREATE {foo}5 g 0 MKSTREAM",
        "EVAL return{} 1 {foo}6",
        "EVAL return{redis.call(ARGV[1],KEYS[1])} 1 {foo}7 PERSIST",
        "EVAL return{redis.call('PERSIST',KEYS[1])} 1 {foo}8",
        "EVAL_RO return{} 1 {foo}7",
        // Servers older than Redis 6 have no event for these.
        "SELECT 0",
        "SET {foo}a v EX 100",
        "PERSIST {foo}a",
        "SET {foo}b v",
        "MOVE {foo}b 1",
        "EXPIRE {foo}c 100",
    ] {
        let reply = client.command(command).await;
        assert!(!reply.starts_with('-'), "{command}: {reply}");
    }
    scene.publish(&held(&scene, 3)).await;
    let settled = scene.settled().await;
    let expected = [
        "0:{foo}2", "0:{foo}3", "0:{foo}9", "0:{foo}a", "0:{foo}b", "3:{foo}5", "3:{foo}7",
        "3:{foo}8",
    ];
    assert_eq!(keys(&settled.streams).unwrap(), expected);
    // It is given up, and begun again: only who still waits is asked again.
    scene.publish(&scene.topology(4, |_| None)).await;
    scene.publish(&copied(&scene, 5)).await;
    let settled = scene.settled().await;
    assert_eq!(keys(&settled.streams).unwrap(), ["0:{foo}9"]);
    let mut direct = Raw::connect(&scene.servers[0].addr).await;
    direct.command("XADD {foo}9 7-7 k v").await;
    assert!(waiting.reply().await.contains("7-7"));
}

#[tokio::test]
async fn who_is_subscribed_is_so_at_the_target_before_the_slot_moves() {
    let mut scene = Scene::start(&[]).await;
    let proxy = scene.proxy(1, &[]).await;
    let mut subscribers = Vec::new();
    for _ in 0..4 {
        let mut subscriber = proxy.raw().await;
        assert_eq!(
            subscriber.command("SUBSCRIBE foo").await,
            "*3 $9 subscribe $3 foo :1"
        );
        subscribers.push(subscriber);
    }
    let mut target = Raw::connect(&scene.servers[1].addr).await;
    assert_eq!(target.command("PUBSUB NUMSUB foo").await, "*2 $3 foo :0");
    scene.publish(&held(&scene, 2)).await;
    scene.settled().await;
    assert_eq!(target.command("PUBSUB NUMSUB foo").await, "*2 $3 foo :2"); // a worker each
    let mut publisher = proxy.raw().await;
    publisher.pipeline(&[words("PUBLISH foo held")]).await;
    scene.publish(&moved(&scene, 3)).await;
    assert_eq!(publisher.reply().await, ":4");
    for subscriber in &mut subscribers {
        assert_eq!(subscriber.reply().await, "*3 $7 message $3 foo $4 held");
    }
    let source = &scene.servers[0].addr;
    eventually(|| async {
        let mut source = Raw::connect(source).await;
        match source.command("PUBSUB NUMSUB foo").await {
            reply if reply.ends_with(":0") => Ok(()),
            reply => Err(reply),
        }
    })
    .await;
}

/// The call of a script that the server has forgotten is made again, at the server that had it: until it is
/// answered the group has not settled.
#[tokio::test]
async fn a_call_that_is_made_again_is_waited_for() {
    let mut scene = Scene::start(&DEBUG).await;
    let proxy = scene.proxy(1, &[]).await;
    let mut client = proxy.raw().await;
    let load = ["SCRIPT", "LOAD", "return redis.call('INCR', KEYS[1])"].map(str::to_owned);
    client.pipeline(&[load.to_vec()]).await;
    let sha = client
        .reply()
        .await
        .split(' ')
        .next_back()
        .unwrap()
        .to_owned();
    let call = format!("EVALSHA {sha} 1 foo");
    assert_eq!(client.command(&call).await, ":1");
    let mut direct = Raw::connect(&scene.servers[0].addr).await;
    for round in 0..3 {
        direct.command("SCRIPT FLUSH").await;
        let asleep = freeze(&scene.servers[0].addr, 0.5).await;
        client.pipeline(&[words(&call)]).await;
        sleep(Duration::from_millis(50)).await;
        scene.publish(&held(&scene, 2 + 2 * round)).await;
        scene.settled().await;
        let value = direct.command("GET foo").await;
        assert_eq!(value, format!("$1 {}", round + 2), "settled too early");
        assert_eq!(client.reply().await, format!(":{}", round + 2));
        drop(asleep);
        scene
            .publish(&scene.topology(3 + 2 * round, |_| None))
            .await;
    }
}

#[tokio::test]
async fn an_upload_is_waited_for_and_a_new_stream_hears_all_anew() {
    let mut scene = Scene::start(&[]).await;
    let proxy = scene.proxy(1, &[]).await;
    let mut client = proxy.raw().await;
    let value = "x".repeat(3 << 20);
    let request = format!(
        "*3\r\n$3\r\nSET\r\n$3\r\nfoo\r\n${}\r\n{value}\r\n",
        value.len()
    );
    let (first, rest) = request.as_bytes().split_at(2 << 20);
    client.send(first).await;
    sleep(Duration::from_millis(200)).await;
    scene.publish(&held(&scene, 2)).await;
    let early = timeout(Duration::from_millis(500), scene.settled()).await;
    assert!(early.is_err(), "settled too early");
    client.send(rest).await;
    assert_eq!(client.reply().await, "+OK");
    let settled = scene.settled().await;
    scene.controller.hang_up().await;
    assert!(matches!(
        scene.controller.hear().await,
        proto::v1::subscribe_request::Message::Hello(_)
    ));
    assert_eq!(scene.settled().await, settled);
}
