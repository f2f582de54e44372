//! Client-side caching through a proxy: whatever a client holds, it is told of when that changes.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use proto::{
    ClusterId, Group, GroupId, ServerAddr, Slot, SlotState, Topology, Version,
    v1::{self, subscribe_request::Message as Said, subscribe_response::Message as Say},
};
use tests::{Cluster, Proxy, Raw, ScriptedController, Server, eventually};

async fn cluster(proxy_args: &[&str]) -> Cluster {
    let builder = Cluster::builder().groups(2).proxies(1);
    builder.proxy_args(proxy_args).start().await
}

async fn resp3(cluster: &Cluster) -> Raw {
    let mut client = cluster.proxies[0].raw().await;
    client.command("HELLO 3").await;
    client
}

fn stale(key: &str) -> String {
    format!(">2 $10 invalidate *1 ${} {key}", key.len())
}

const ALL_STALE: &str = ">2 $10 invalidate _";

/// Each command and its reply; an empty command: what comes unasked.
async fn check(client: &mut Raw, script: &[(&str, &str)]) {
    for (command, expected) in script {
        let got = if command.is_empty() {
            client.reply().await
        } else {
            client.command(command).await
        };
        assert_eq!(got, *expected, "{command} of {script:?}");
    }
}

/// Nothing unasked has come: the reply to the next command is the next that comes.
async fn check_silent(client: &mut Raw) {
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(client.command("PING").await, "+PONG");
}

#[tokio::test]
async fn options_are_answered_as_by_a_plain_server() {
    let cluster = cluster(&["--workers", "2"]).await;
    let plain = Server::start(cluster.dir.path(), "plain", &[]);
    plain.answers().await;
    for protocol in ["2", "3"] {
        let mut proxied = cluster.proxies[0].raw().await;
        let mut direct = Raw::connect(&plain.addr).await;
        for client in [&mut proxied, &mut direct] {
            client.command(&format!("HELLO {protocol}")).await;
        }
        for command in [
            "TRACKINGINFO",
            "GETREDIR",
            "CACHING yes",
            "TRACKING maybe",
            "TRACKING on what",
            "TRACKING on redirect",
            "TRACKING on redirect x",
            "TRACKING on redirect 123456789",
            "TRACKING on redirect -1",
            "TRACKING on redirect 0",
            "TRACKING on redirect 123456789 what",
            "TRACKING on prefix a",
            "TRACKING on",
            "TRACKINGINFO",
            "GETREDIR",
            "CACHING yes",
            "CACHING maybe",
            "TRACKING on bcast",
            "TRACKING off",
            "TRACKING off",
            "TRACKING on optin optout",
            "TRACKING on bcast optin",
            "TRACKING on optin",
            "TRACKINGINFO",
            "CACHING no",
            "CACHING yes",
            "TRACKINGINFO",
            "TRACKING on optout",
            "TRACKING on noloop",
            "TRACKINGINFO",
            "TRACKING off",
            "TRACKING on bcast prefix foo prefix bar",
            "TRACKING on bcast prefix foobar",
            "TRACKING on bcast prefix x prefix xy",
            "TRACKING on bcast prefix a",
            "TRACKINGINFO",
            "TRACKING on",
            "TRACKING off",
            "TRACKING on optout",
            "CACHING no",
            "TRACKINGINFO",
            "TRACKING",
            "TRACKING on redirect 123456789",
            "TRACKINGINFO",
        ] {
            let command = format!("CLIENT {command}");
            let (got, expected) = (
                proxied.command(&command).await,
                direct.command(&command).await,
            );
            assert_eq!(got, expected, "{command}, RESP{protocol}");
        }
        for client in [&mut proxied, &mut direct] {
            client.command("RESET").await;
        }
        let info = proxied.command("CLIENT TRACKINGINFO").await;
        assert_eq!(info, direct.command("CLIENT TRACKINGINFO").await);
    }
}

#[tokio::test]
async fn a_client_is_told_of_what_it_has_read() {
    let cluster = cluster(&["--workers", "2"]).await;
    let mut client = resp3(&cluster).await;
    let mut writer = cluster.proxies[0].raw().await;
    // `a` and `foo` are at different groups.
    assert!(Slot::of_key(b"a").number() >= 512 && Slot::of_key(b"foo").number() < 512);
    check(
        &mut client,
        &[
            ("CLIENT TRACKING on", "+OK"),
            ("GET a", "_"),
            ("MGET foo b", "*2 _ _"),
        ],
    )
    .await;
    check(
        &mut writer,
        &[("MSET a 1 foo 2", "+OK"), ("SET c 1", "+OK")],
    )
    .await;
    let mut told = [client.reply().await, client.reply().await];
    told.sort();
    assert_eq!(told, [stale("a"), stale("foo")]);
    // Told once, until it is read again; and by itself, behind the reply.
    check(&mut writer, &[("SET a 2", "+OK")]).await;
    check_silent(&mut client).await;
    check(
        &mut client,
        &[
            ("GET a", "$1 2"),
            ("SET a 3", "+OK"),
            ("", &stale("a")),
            ("HSET h f 1", ":1"),
            ("HGET h f", "$1 1"),
            ("HDEL h f", ":1"),
            ("", &stale("h")),
            // In a transaction, and by a script.
            ("MULTI", "+OK"),
            ("GET {a}1", "+QUEUED"),
            ("SET {a}2 x", "+QUEUED"),
            ("EXEC", "*2 _ +OK"),
            ("EVAL return(redis.call('get',KEYS[1])) 1 s", "_"),
        ],
    )
    .await;
    check(&mut writer, &[("SET {a}1 1", "+OK"), ("SET {a}2 1", "+OK")]).await;
    check(&mut client, &[("", &stale("{a}1"))]).await;
    check(&mut writer, &[("SET s 1", "+OK")]).await;
    check(&mut client, &[("", &stale("s"))]).await;
    // Of all databases, as in Redis.
    check(&mut client, &[("SELECT 3", "+OK"), ("GET d", "_")]).await;
    check(&mut writer, &[("SELECT 3", "+OK"), ("SET d 1", "+OK")]).await;
    check(&mut client, &[("", &stale("d")), ("GET d", "$1 1")]).await;
    check(&mut writer, &[("FLUSHALL", "+OK")]).await;
    check(&mut client, &[("", ALL_STALE)]).await;
    check_silent(&mut client).await;
    check(
        &mut client,
        &[("GET d", "_"), ("CLIENT TRACKING off", "+OK")],
    )
    .await;
    check(&mut writer, &[("SET d 1", "+OK")]).await;
    check_silent(&mut client).await;
}

/// On a connection of its own, of which the server says nothing: it is told at once.
#[tokio::test]
async fn what_is_read_while_blocked_or_watching_is_not_held() {
    let cluster = cluster(&["--workers", "1"]).await;
    let mut writer = cluster.proxies[0].raw().await;
    let mut client = resp3(&cluster).await;
    check(
        &mut client,
        &[("CLIENT TRACKING on", "+OK"), ("GET a", "_")],
    )
    .await;
    client.pipeline(&[words("XREAD BLOCK 0 STREAMS x 0")]).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    // Who waits is told of other keys meanwhile.
    check(&mut writer, &[("SET a 1", "+OK")]).await;
    check(&mut client, &[("", &stale("a"))]).await;
    check(&mut writer, &[("XADD x 1-1 f v", "$3 1-1")]).await;
    let read = "%1 $1 x *1 *2 $3 1-1 *2 $1 f $1 v";
    check(
        &mut client,
        &[
            ("", read),
            ("", &stale("x")),
            ("WATCH {w}1", "+OK"),
            ("GET {w}1", "_"),
            ("MULTI", "+OK"),
            ("GET {w}2", "+QUEUED"),
            ("EXEC", "*1 _"),
            ("", &stale("{w}2")),
            ("GET {w}3", "_"),
        ],
    )
    .await;
    check(&mut writer, &[("SET {w}1 1", "+OK"), ("SET {w}3 1", "+OK")]).await;
    check(&mut client, &[("", &stale("{w}1")), ("", &stale("{w}3"))]).await;
}

#[tokio::test]
async fn opting_in_and_out_is_about_one_command_or_transaction() {
    let cluster = cluster(&["--workers", "1"]).await;
    let mut client = resp3(&cluster).await;
    let mut writer = cluster.proxies[0].raw().await;
    check(
        &mut client,
        &[
            ("CLIENT TRACKING on optin", "+OK"),
            ("GET a", "_"),
            ("CLIENT CACHING yes", "+OK"),
            ("CLIENT ID", &client_id(&mut writer, 1).await),
            ("GET b", "_"),
            ("GET c", "_"),
            ("CLIENT CACHING yes", "+OK"),
            ("MULTI", "+OK"),
            ("GET {b}1", "+QUEUED"),
            ("GET {b}2", "+QUEUED"),
            ("EXEC", "*2 _ _"),
            ("GET {b}3", "_"),
        ],
    )
    .await;
    for key in ["a", "c", "{b}3", "b", "{b}1", "{b}2"] {
        check(&mut writer, &[(&format!("SET {key} 1"), "+OK")]).await;
    }
    for key in ["b", "{b}1", "{b}2"] {
        check(&mut client, &[("", &stale(key))]).await;
    }
    check(
        &mut client,
        &[
            ("CLIENT TRACKING off", "+OK"),
            ("CLIENT TRACKING on optout", "+OK"),
            ("CLIENT CACHING no", "+OK"),
            ("GET a", "$1 1"),
            ("GET b", "$1 1"),
        ],
    )
    .await;
    check(&mut writer, &[("SET a 2", "+OK"), ("SET b 2", "+OK")]).await;
    check(&mut client, &[("", &stale("b"))]).await;
}

/// The reply to CLIENT ID of the client that connected `before` others.
async fn client_id(later: &mut Raw, before: i64) -> String {
    let id: i64 = later.command("CLIENT ID").await[1..].parse().unwrap();
    format!(":{}", id - before)
}

#[tokio::test]
async fn prefixes_are_told_of_whatever_is_read() {
    let cluster = cluster(&["--workers", "1"]).await;
    let mut writer = cluster.proxies[0].raw().await;
    let (mut users, mut all, mut one) = (
        resp3(&cluster).await,
        resp3(&cluster).await,
        resp3(&cluster).await,
    );
    let user_prefixes = "CLIENT TRACKING on bcast prefix user: prefix item:";
    check(&mut users, &[(user_prefixes, "+OK")]).await;
    // Overlaps, and is not covered: another connection to each server.
    check(&mut all, &[("CLIENT TRACKING on bcast", "+OK")]).await;
    check(
        &mut one,
        &[("CLIENT TRACKING on bcast prefix user:7", "+OK")],
    )
    .await;
    for key in ["user:1", "user:7", "item:x", "else"] {
        check(&mut writer, &[(&format!("SET {key} 1"), "+OK")]).await;
        check(&mut all, &[("", &stale(key))]).await;
        if key != "else" {
            check(&mut users, &[("", &stale(key))]).await;
        }
        if key == "user:7" {
            check(&mut one, &[("", &stale(key))]).await;
        }
    }
    // All that one transaction changes, by prefix.
    for command in [
        "MULTI",
        "SET user:{x}1 1",
        "SET item:{x}2 1",
        "SET user:{x}3 1",
    ] {
        writer.command(command).await;
    }
    check(&mut writer, &[("EXEC", "*3 +OK +OK +OK")]).await;
    let mut told = [users.reply().await, users.reply().await];
    told.sort();
    assert_eq!(
        told,
        [
            ">2 $10 invalidate *1 $9 item:{x}2",
            ">2 $10 invalidate *2 $9 user:{x}1 $9 user:{x}3"
        ]
    );
    all.reply().await;
    // Another prefix for a client that has some; what all heard of is not needed any more.
    check(&mut all, &[("CLIENT TRACKING off", "+OK")]).await;
    check(&mut users, &[("CLIENT TRACKING on bcast prefix e", "+OK")]).await;
    check(&mut writer, &[("SET else 2", "+OK")]).await;
    check(&mut users, &[("", &stale("else"))]).await;
    check_silent(&mut all).await;
    check_silent(&mut one).await;
    check(&mut writer, &[("FLUSHALL", "+OK")]).await;
    // By each group: what else a client has read, on other connections, nobody knows here.
    for listener in [&mut users, &mut one] {
        check(listener, &[("", ALL_STALE), ("", ALL_STALE)]).await;
        check_silent(listener).await;
    }
}

/// No other worker is asked where the client redirected to is, and so none is waited for.
#[tokio::test]
async fn the_only_worker_redirects_prefixes() {
    let cluster = cluster(&["--workers", "1"]).await;
    let mut client = cluster.proxies[0].raw().await;
    let mut target = resp3(&cluster).await;
    let id = target.command("CLIENT ID").await[1..].to_owned();
    let track = format!("CLIENT TRACKING on bcast redirect {id}");
    check(&mut client, &[(&track, "+OK"), ("SET a 1", "+OK")]).await;
    check(&mut target, &[("", &stale("a"))]).await;
}

#[tokio::test]
async fn with_noloop_a_client_is_told_of_others_changes_only() {
    let cluster = cluster(&["--workers", "1"]).await;
    let mut writer = cluster.proxies[0].raw().await;
    let (mut client, mut other) = (resp3(&cluster).await, resp3(&cluster).await);
    check(&mut client, &[("CLIENT TRACKING on noloop", "+OK")]).await;
    check(&mut other, &[("CLIENT TRACKING on", "+OK")]).await;
    for reader in [&mut client, &mut other] {
        check(reader, &[("MGET {x}1 {x}2", "*2 _ _")]).await;
    }
    check(&mut client, &[("SET {x}1 1", "+OK")]).await;
    check(&mut other, &[("", &stale("{x}1"))]).await;
    check_silent(&mut client).await;
    check(&mut writer, &[("SET {x}2 1", "+OK")]).await;
    check(&mut client, &[("", &stale("{x}2"))]).await;
    check(&mut other, &[("", &stale("{x}2"))]).await;
    // With prefixes.
    check(
        &mut client,
        &[
            ("CLIENT TRACKING off", "+OK"),
            ("CLIENT TRACKING on noloop bcast prefix p", "+OK"),
            ("SET p1 1", "+OK"),
        ],
    )
    .await;
    check_silent(&mut client).await;
    check(&mut writer, &[("SET p1 2", "+OK"), ("SET q1 2", "+OK")]).await;
    check(&mut client, &[("", &stale("p1"))]).await;
    // Switched off, its pipes are shared again; what it held by then may have changed.
    check(
        &mut client,
        &[
            ("CLIENT TRACKING off", "+OK"),
            ("CLIENT TRACKING on noloop", "+OK"),
            ("GET p1", "$1 2"),
            ("CLIENT TRACKING on", "+OK"),
            ("", ALL_STALE),
            ("GET p1", "$1 2"),
            ("SET p1 3", "+OK"),
            ("", &stale("p1")),
        ],
    )
    .await;
}

#[tokio::test]
async fn messages_go_to_the_client_redirected_to_whatever_its_worker() {
    let cluster = cluster(&["--workers", "2"]).await;
    let mut writer = cluster.proxies[0].raw().await;
    // Connections go to the workers in turn.
    let mut targets = [resp3(&cluster).await, resp3(&cluster).await];
    for protocol in ["2", "3"] {
        for target in &mut targets {
            let mut client = cluster.proxies[0].raw().await;
            client.command(&format!("HELLO {protocol}")).await;
            let id = &target.command("CLIENT ID").await[1..];
            for mode in ["", " bcast prefix a", " noloop"] {
                check(&mut writer, &[("SET a 1", "+OK")]).await;
                check(
                    &mut client,
                    &[
                        (&format!("CLIENT TRACKING on redirect {id}{mode}"), "+OK"),
                        ("CLIENT GETREDIR", &format!(":{id}")),
                        ("GET a", "$1 1"),
                    ],
                )
                .await;
                check(&mut writer, &[("SET a 2", "+OK")]).await;
                check(target, &[("", &stale("a"))]).await;
                check(&mut client, &[("CLIENT TRACKING off", "+OK")]).await;
                check_silent(target).await;
            }
        }
    }
    // One that speaks RESP2 gets them if it is subscribed, and nothing else if it is not.
    let (mut client, mut target) = (resp3(&cluster).await, cluster.proxies[0].raw().await);
    let id = target.command("CLIENT ID").await[1..].to_owned();
    let on = format!("CLIENT TRACKING on redirect {id}");
    check(&mut client, &[(&on, "+OK"), ("GET a", "$1 2")]).await;
    check(&mut writer, &[("SET a 2", "+OK")]).await;
    check_silent(&mut target).await;
    let channel = "__redis__:invalidate";
    let subscribed = format!("*3 $9 subscribe $20 {channel} :1");
    check(
        &mut target,
        &[(&format!("SUBSCRIBE {channel}"), &subscribed)],
    )
    .await;
    check(&mut client, &[("GET a", "$1 2")]).await;
    check(&mut writer, &[("SET a 2", "+OK")]).await;
    let message = format!("*3 $7 message $20 {channel} *1 $1 a");
    check(&mut target, &[("", &message)]).await;
    check(&mut client, &[("GET a", "$1 2")]).await;
    check(&mut writer, &[("FLUSHALL", "+OK"), ("SET a 2", "+OK")]).await;
    let message = format!("*3 $7 message $20 {channel} $-1");
    check(&mut target, &[("", &message)]).await;
    // A target that is gone.
    let [first, mut last] = targets;
    let mut client = resp3(&cluster).await;
    let id = last.command("CLIENT ID").await[1..].to_owned();
    check(
        &mut client,
        &[
            (&format!("CLIENT TRACKING on redirect {id}"), "+OK"),
            ("GET a", "$1 2"),
        ],
    )
    .await;
    drop((first, last));
    let broken = format!(">2 $21 tracking-redir-broken :{id}");
    eventually(|| async {
        let mut client = cluster.proxies[0].raw().await;
        let again = format!("CLIENT TRACKING on redirect {id}");
        match client.command(&again).await.as_str() {
            "-ERR The client ID you want redirect to does not exist" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    check(&mut writer, &[("SET a 3", "+OK")]).await;
    check(&mut client, &[("", &broken)]).await;
    let info = client.command("CLIENT TRACKINGINFO").await;
    assert!(info.contains("broken_redirect"), "{info}");
}

/// What a client with a cache does with what it is sent, and whether it was right to.
#[derive(Default)]
struct Cache {
    values: HashMap<String, String>,
    /// Keys of requests that are not answered yet, in order.
    asked: std::collections::VecDeque<String>,
}

impl Cache {
    fn take(&mut self, frame: &str) {
        if frame == ALL_STALE {
            self.values.clear();
        } else if let Some(keys) = frame.strip_prefix(">2 $10 invalidate *") {
            // A count, then of each key its length and itself.
            for key in keys.split(' ').skip(2).step_by(2) {
                self.values.remove(key);
            }
        } else {
            let key = self.asked.pop_front().expect("a reply to nothing");
            let value = frame.split_once(' ').map_or("", |(_, value)| value);
            self.values.insert(key, value.to_owned());
        }
    }

    /// Keys that it holds with another value than the server.
    fn wrong(&self, truth: &HashMap<String, String>) -> Vec<String> {
        let differs = |(key, value): &(&String, &String)| truth.get(*key) != Some(*value);
        self.values
            .iter()
            .filter(differs)
            .map(|(key, _)| key.clone())
            .collect()
    }
}

/// The checker itself: a message before the older value is noticed.
#[test]
fn a_message_that_overtakes_a_reply_would_be_noticed() {
    let truth = HashMap::from([("k".to_owned(), "2".to_owned())]);
    for (frames, wrong) in [
        (["$1 1".to_owned(), stale("k")], vec![]),
        ([stale("k"), "$1 1".to_owned()], vec!["k".to_owned()]),
    ] {
        let mut cache = Cache::default();
        cache.asked.push_back("k".to_owned());
        frames.iter().for_each(|frame| cache.take(frame));
        assert_eq!(cache.wrong(&truth), wrong);
    }
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

/// Clients with caches read in pipelines over both groups while others write: whenever it is quiet, each
/// value held is the server's.
#[tokio::test]
async fn no_cache_holds_what_is_no_longer_true() {
    const KEYS: usize = 40;
    let cluster = cluster(&["--workers", "2", "--tracking-table-max-keys", "100"]).await;
    let key = |n: usize| format!("k{n}");
    let mut caches = Vec::new();
    // What comes from the one redirected to is looked at behind all replies.
    let mut targets = vec![resp3(&cluster).await, resp3(&cluster).await];
    for options in [
        "on",
        "on",
        "on noloop",
        "on bcast",
        "on bcast prefix k1 prefix k2 prefix k3",
        "on redirect",
        "on redirect",
    ] {
        let redirects = options.ends_with("redirect");
        let mut client = if redirects {
            cluster.proxies[0].raw().await
        } else {
            resp3(&cluster).await
        };
        let mut on = format!("CLIENT TRACKING {options}");
        let mut target = if redirects { targets.pop() } else { None };
        if let Some(target) = &mut target {
            on = format!("{on} {}", &target.command("CLIENT ID").await[1..]);
        }
        assert_eq!(client.command(&on).await, "+OK");
        let rng = fastrand::Rng::with_seed(caches.len() as u64);
        caches.push((client, Cache::default(), rng, target));
    }
    let prefixed = |client: usize, n: usize| client != 4 || matches!(n / 10, 1..=3);
    let mut value = 0;
    for round in 0..12 {
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = Vec::new();
        for writer in 0..2 {
            let mut connection = cluster.proxies[0].raw().await;
            let stop = Arc::clone(&stop);
            let mut rng = fastrand::Rng::with_seed(1000 + round * 2 + writer);
            let first = value + writer * 1_000_000;
            writers.push(tokio::spawn(async move {
                let mut value = first;
                while !stop.load(Relaxed) {
                    let batch: Vec<_> = (0..8)
                        .map(|_| {
                            value += 1;
                            words(&format!("SET k{} {value}", rng.usize(..KEYS)))
                        })
                        .collect();
                    connection.pipeline(&batch).await;
                    for _ in 0..8 {
                        assert_eq!(connection.reply().await, "+OK");
                    }
                }
            }));
        }
        value += 10_000_000;
        for _ in 0..15 {
            for (index, (client, cache, rng, _)) in caches.iter_mut().enumerate() {
                let asked: Vec<usize> = (0..20)
                    .map(|_| rng.usize(..KEYS))
                    .filter(|&n| prefixed(index, n))
                    .collect();
                let batch: Vec<_> = asked.iter().map(|&n| words(&format!("GET k{n}"))).collect();
                cache.asked.extend(asked.into_iter().map(key));
                client.pipeline(&batch).await;
            }
            for (client, cache, ..) in &mut caches {
                while !cache.asked.is_empty() {
                    cache.take(&client.reply().await);
                }
            }
        }
        stop.store(true, Relaxed);
        for writer in writers {
            writer.await.unwrap();
        }
        let mut truth = HashMap::new();
        let mut reader = cluster.proxies[0].raw().await;
        for n in 0..KEYS {
            let reply = reader.command(&format!("GET k{n}")).await;
            let value = reply.split_once(' ').map_or("", |(_, value)| value);
            truth.insert(key(n), value.to_owned());
        }
        for (index, (client, cache, _, target)) in caches.iter_mut().enumerate() {
            let client = target.as_mut().unwrap_or(client);
            for _ in 0..100 {
                while let Some(frame) = client.reply_within(Duration::from_millis(50)).await {
                    cache.take(&frame);
                }
                if cache.wrong(&truth).is_empty() {
                    break;
                }
            }
            assert_eq!(
                cache.wrong(&truth),
                [""; 0],
                "client {index}, round {round}"
            );
        }
    }
}

#[tokio::test]
async fn what_a_lost_server_may_have_missed_to_say_is_told() {
    let mut cluster = cluster(&["--workers", "1", "--server-timeout", "1s"]).await;
    let (mut client, mut listener) = (resp3(&cluster).await, resp3(&cluster).await);
    check(
        &mut client,
        &[
            ("CLIENT TRACKING on", "+OK"),
            ("GET a", "_"),
            ("GET foo", "_"),
        ],
    )
    .await;
    check(&mut listener, &[("CLIENT TRACKING on bcast", "+OK")]).await;
    cluster.groups[1][0].process.kill();
    check(&mut client, &[("", ALL_STALE)]).await;
    check(&mut listener, &[("", ALL_STALE)]).await;
    cluster.groups[1][0].restart();
    cluster.groups[1][0].answers().await;
    eventually(|| async {
        let mut other = resp3(&cluster).await;
        match other.command("GET a").await.as_str() {
            "_" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    let mut writer = cluster.proxies[0].raw().await;
    loop {
        match client.command("GET a").await.as_str() {
            "_" => break,
            down => assert!(
                down.starts_with("-CLUSTERDOWN")
                    || down.starts_with("-TRYAGAIN")
                    || down == ALL_STALE,
                "{down}"
            ),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    check(&mut writer, &[("SET a 1", "+OK")]).await;
    check(&mut client, &[("", &stale("a"))]).await;
    // One that is silent, without a word: noticed by the sign of life it does not give.
    assert_eq!(client.command("GET a").await, "$1 1");
    cluster.groups[1][0].process.stop();
    check(&mut client, &[("", ALL_STALE)]).await;
    cluster.groups[1][0].process.kill();
}

/// All slots are the first server's, but `a`'s, which is the one's of this index.
fn topology(epoch: u64, servers: &[Server; 2], owner_of_a: usize, state: SlotState) -> Topology {
    let id = |index: usize| GroupId::new(["g1", "g2"][index]).unwrap();
    let group = |index: usize| Group {
        id: id(index),
        primary: ServerAddr::new(&servers[index].addr).unwrap(),
        replicas: Vec::new(),
    };
    let version = Version {
        leader_term: 1,
        epoch,
    };
    let cluster = ClusterId::new("scripted").unwrap();
    Topology::new(cluster, version, [group(0), group(1)], |slot| {
        if slot == Slot::of_key(b"a") {
            (Some(id(owner_of_a)), state.clone())
        } else {
            (Some(id(0)), SlotState::Serving)
        }
    })
    .unwrap()
}

/// Before anybody can change it elsewhere: when its slot is held, or, if it never is, when it moves.
#[tokio::test]
async fn a_key_whose_slot_moves_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let servers = ["s1", "s2"].map(|name| Server::start(dir.path(), name, &[]));
    for server in &servers {
        server.answers().await;
    }
    let mut controller = ScriptedController::start().await;
    let args = ["--controller", &controller.addr, "--id", "p1"];
    let proxy = Proxy::start(dir.path(), "p1", &args.map(str::to_owned)).await;
    assert!(matches!(controller.hear().await, Said::Hello(_)));
    let mut epoch = 0;
    let mut route = async |owner_of_a: usize, state: SlotState| {
        epoch += 1;
        let topology = topology(epoch, &servers, owner_of_a, state);
        controller
            .say(Say::Snapshot(v1::Topology::from(&topology)))
            .await;
        assert!(matches!(controller.hear().await, Said::Ack(_)));
    };
    route(0, SlotState::Serving).await;
    let (mut client, mut own, mut listener) =
        (proxy.raw().await, proxy.raw().await, proxy.raw().await);
    let mut writer = proxy.raw().await;
    for (client, options) in [
        (&mut client, "on"),
        (&mut own, "on noloop"),
        (&mut listener, "on bcast prefix a"),
    ] {
        client.command("HELLO 3").await;
        check(client, &[(&format!("CLIENT TRACKING {options}"), "+OK")]).await;
    }
    for client in [&mut client, &mut own] {
        check(client, &[("GET a", "_"), ("GET b", "_")]).await;
    }
    route(0, SlotState::Held { target: None }).await;
    check(&mut client, &[("", &stale("a"))]).await;
    check(&mut own, &[("", ALL_STALE)]).await;
    route(1, SlotState::Serving).await;
    check_silent(&mut client).await;
    // Read and changed at the new owner.
    check(&mut client, &[("GET a", "_")]).await;
    check(&mut writer, &[("SET a 1", "+OK"), ("SET b 1", "+OK")]).await;
    let mut told = [client.reply().await, client.reply().await];
    told.sort();
    assert_eq!(told, [stale("a"), stale("b")]);
    check(&mut listener, &[("", &stale("a"))]).await;
    // Moved without having been held.
    check(&mut client, &[("GET a", "$1 1"), ("GET b", "$1 1")]).await;
    route(0, SlotState::Serving).await;
    check(&mut client, &[("", &stale("a"))]).await;
    check(&mut writer, &[("SET b 2", "+OK")]).await;
    check(&mut client, &[("", &stale("b"))]).await;
    check_silent(&mut client).await;
}

#[tokio::test]
async fn a_full_table_is_told_before_it_forgets() {
    let cluster = cluster(&["--workers", "1", "--tracking-table-max-keys", "10"]).await;
    let mut client = resp3(&cluster).await;
    check(&mut client, &[("CLIENT TRACKING on", "+OK")]).await;
    // Also of one request: behind its reply.
    let keys: Vec<_> = (0..30).map(|n| format!("{{x}}{n}")).collect();
    let values = client.command(&format!("MGET {}", keys.join(" "))).await;
    assert_eq!(values, format!("*30{}", " _".repeat(30)));
    for _ in 0..20 {
        let message = client.reply().await;
        assert!(message.starts_with(">2 $10 invalidate *1 $"), "{message}");
    }
    let batch: Vec<_> = (0..100).map(|n| words(&format!("GET key{n}"))).collect();
    client.pipeline(&batch).await;
    let (mut values, mut told) = (0, 0);
    while values < 100 || told < 100 {
        match client.reply().await.as_str() {
            "_" => values += 1,
            message => {
                assert!(message.starts_with(">2 $10 invalidate *1 $"), "{message}");
                told += 1;
            }
        }
    }
    assert_eq!(client.command("PING").await, "+PONG");
    tests::eventually(|| async {
        let (_, page) = cluster.proxies[0].get("/metrics").await;
        let has = |line: &str| page.lines().any(|other| other == line);
        match has("sluice_proxy_tracking_keys 10") && has("sluice_proxy_tracking_sessions 1") {
            true => Ok(()),
            false => Err(page),
        }
    })
    .await;
}
