//! What the redis crate must be able to do, over both versions of RESP.
//!
//! A checklist as in `checklist.py`: each item has a deadline and gets one line. An item fails by panicking.

use std::{
    any::Any,
    collections::{BTreeSet, HashMap},
    env,
    process::ExitCode,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use redis::{
    AsyncConnectionConfig, Commands as _, Connection, ErrorKind, RedisError, RedisResult, Script,
    ServerErrorKind, Value,
    caching::CacheConfig,
    cmd, pipe,
    streams::{StreamReadOptions, StreamReadReply},
    transaction,
};

const NAME: &str = "redis-rs 1.8.1";

fn main() -> ExitCode {
    let items: &[(&str, fn())] = &[
        ("connect", connects),
        ("RESP2", || kinds(&mut connect("PORT", "?protocol=resp2"))),
        ("RESP3", || kinds(&mut connect("PORT", "?protocol=resp3"))),
        ("AUTH", auth),
        ("SELECT", select),
        ("pipeline of 10,000", pipeline),
        ("MGET MSET DEL", split),
        ("64 MiB value", large),
        ("binary keys", binary),
        ("EVALSHA after SCRIPT FLUSH", scripts),
        ("MULTI", multi),
        ("WATCH", watch),
        ("BLPOP", blpop),
        ("SUBSCRIBE", subscribe),
        ("XREAD BLOCK", xread),
        ("SCAN", scan),
        ("tracking", tracking),
        ("CROSSSLOT", crossslot),
    ];
    let mut code = ExitCode::SUCCESS;
    for &(item, check) in items {
        match within(Duration::from_secs(30), check) {
            Ok(()) => println!("ok\t{NAME}\t{item}\t"),
            Err(reason) => {
                let reason: Vec<&str> = reason.split_whitespace().collect();
                println!("FAIL\t{NAME}\t{item}\t{}", reason.join(" "));
                code = ExitCode::FAILURE;
            }
        }
    }
    println!(
        "-\t{NAME}\tcluster client\tnot built here: it brings more to build, and others are tried"
    );
    code
}

/// Runs it in a thread of its own, which is left behind if it is late.
fn within(deadline: Duration, check: fn()) -> Result<(), String> {
    let (done, ended) = mpsc::sync_channel::<()>(1);
    let thread = thread::spawn(move || {
        check();
        drop(done);
    });
    match ended.recv_timeout(deadline) {
        Err(RecvTimeoutError::Timeout) => Err("not done in time".into()),
        Ok(()) | Err(RecvTimeoutError::Disconnected) => thread.join().map_err(|panic| why(&*panic)),
    }
}

fn why(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .unwrap_or_else(|| (*panic.downcast_ref::<&str>().unwrap_or(&"panicked")).to_owned())
}

fn open(port: &str, path: &str) -> redis::Client {
    let port = env::var(port).expect("run sets the ports");
    redis::Client::open(format!("redis://127.0.0.1:{port}/{path}")).unwrap()
}

fn connect(port: &str, path: &str) -> Connection {
    let connection = open(port, path).get_connection().unwrap();
    connection
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    connection
}

fn both() -> [Connection; 2] {
    ["?protocol=resp2", "?protocol=resp3"].map(|path| connect("PORT", path))
}

fn other() -> Connection {
    connect("OTHER_PORT", "")
}

/// Sends it a moment later, while the caller waits.
fn soon(command: &'static [&'static str]) {
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(200));
        let mut request = cmd(command[0]);
        request.arg(&command[1..]).exec(&mut other()).unwrap();
    });
}

#[track_caller]
fn is_server_error<T>(result: RedisResult<T>, kind: ServerErrorKind) {
    let error = result.err().expect("an error");
    assert_eq!(error.kind(), ErrorKind::Server(kind), "{error}");
}

fn connects() {
    let mut client = connect("PORT", "");
    assert_eq!(client.ping::<String>().unwrap(), "PONG");
    let _: () = client.set("rs:a", 1).unwrap();
    assert_eq!(client.get::<_, i64>("rs:a").unwrap(), 1);
    assert_eq!(client.get::<_, Option<i64>>("rs:none").unwrap(), None);
}

/// Replies of each kind.
fn kinds(client: &mut Connection) {
    let _: () = client.del(&["rs:h", "rs:z", "rs:s", "rs:l"]).unwrap();
    let fields = [("f", "v"), ("g", "w")];
    let _: () = client.hset_multiple("rs:h", &fields).unwrap();
    let all: HashMap<String, String> = client.hgetall("rs:h").unwrap();
    assert_eq!(all, fields.map(|(f, v)| (f.into(), v.into())).into());
    assert_eq!(client.zadd::<_, _, _, i64>("rs:z", "m", 1.5).unwrap(), 1);
    assert_eq!(client.zscore::<_, _, f64>("rs:z", "m").unwrap(), 1.5);
    assert_eq!(client.sadd::<_, _, i64>("rs:s", &["a", "b"]).unwrap(), 2);
    let members: BTreeSet<String> = client.smembers("rs:s").unwrap();
    assert_eq!(members, ["a".into(), "b".into()].into());
    let _: () = client.rpush("rs:l", &["a", "b", "c"]).unwrap();
    let list: Vec<String> = client.lrange("rs:l", 0, -1).unwrap();
    assert_eq!(list, ["a", "b", "c"]);
    let _: () = client.pset_ex("rs:e", 1, 60_000).unwrap();
    assert!((1..=60_000).contains(&client.pttl::<_, i64>("rs:e").unwrap()));
    assert!(!client.set_nx::<_, _, bool>("rs:e", 2).unwrap());
    let error: RedisError = client.incr::<_, _, i64>("rs:l", 1).unwrap_err();
    assert_eq!(error.code(), Some("WRONGTYPE"));
}

fn auth() {
    for resp in ["resp2", "resp3"] {
        for path in ["", ":no@"] {
            let client = credentials(path, resp);
            let pinged = client.get_connection().and_then(|mut c| c.ping::<String>());
            assert!(pinged.is_err());
        }
        let password = env::var("PASSWORD").unwrap();
        for path in [format!(":{password}@"), format!("default:{password}@")] {
            let mut client = credentials(&path, resp).get_connection().unwrap();
            assert_eq!(client.ping::<String>().unwrap(), "PONG");
        }
    }
}

fn credentials(credentials: &str, resp: &str) -> redis::Client {
    let port = env::var("PASSWORD_PORT").unwrap();
    let url = format!("redis://{credentials}127.0.0.1:{port}/?protocol={resp}");
    redis::Client::open(url).unwrap()
}

fn select() {
    let (mut zero, mut third) = (connect("PORT", ""), connect("PORT", "3"));
    let _: () = zero.set("rs:a", 1).unwrap();
    let _: () = third.del("rs:a").unwrap();
    assert_eq!(third.get::<_, Option<i64>>("rs:a").unwrap(), None);
    let _: () = third.set("rs:a", 3).unwrap();
    assert_eq!(zero.get::<_, i64>("rs:a").unwrap(), 1);
    assert_eq!(third.get::<_, i64>("rs:a").unwrap(), 3);
}

fn pipeline() {
    for mut client in both() {
        let mut requests = pipe();
        for n in 0..5_000 {
            requests.set(format!("rs:{n}"), n).ignore();
        }
        for n in 0..5_000 {
            requests.get(format!("rs:{n}"));
        }
        let replies: Vec<i64> = requests.query(&mut client).unwrap();
        assert!(replies.into_iter().eq(0..5_000));
    }
}

fn split() {
    for mut client in both() {
        let keys: Vec<String> = (0..100).map(|n| format!("rs:m{n}")).collect();
        let values: Vec<(&String, usize)> = keys.iter().zip(0..).collect();
        let _: () = client.mset(&values).unwrap();
        let mut wanted: Vec<&str> = keys.iter().map(String::as_str).collect();
        wanted.push("rs:none");
        let got: Vec<Option<usize>> = client.mget(wanted).unwrap();
        assert!(got.into_iter().eq((0..100).map(Some).chain([None])));
        assert_eq!(client.exists::<_, i64>(&keys).unwrap(), 100);
        assert_eq!(client.del::<_, i64>(&keys).unwrap(), 100);
    }
}

fn large() {
    let value: Vec<u8> = (0..=255).cycle().take(64 << 20).collect();
    let mut client = connect("PORT", "");
    let _: () = client.set("rs:large", &value).unwrap();
    assert!(client.get::<_, Vec<u8>>("rs:large").unwrap() == value);
    assert_eq!(client.del::<_, i64>("rs:large").unwrap(), 1);
}

fn binary() {
    let every: Vec<u8> = (0..=255).collect();
    for mut client in both() {
        let _: () = client.set(&every, &every).unwrap();
        assert_eq!(client.get::<_, Vec<u8>>(&every).unwrap(), every);
        let keys: [&[u8]; 3] = [&every, b"\r\n", b""];
        let got: Vec<Option<Vec<u8>>> = client.mget(&keys).unwrap();
        assert_eq!(got, [Some(every.clone()), None, None]);
        assert_eq!(client.del::<_, i64>(&every).unwrap(), 1);
    }
}

fn scripts() {
    for mut client in both() {
        let script = Script::new("return {KEYS[1], ARGV[1], redis.call('INCR', KEYS[1])}");
        let keys: Vec<String> = (0..16).map(|n| format!("rs:script{n}")).collect();
        for _ in 0..2 {
            let _: () = client.del(&keys).unwrap();
            for key in &keys {
                let told: (String, String, i64) =
                    script.key(key).arg("x").invoke(&mut client).unwrap();
                assert_eq!(told, (key.clone(), "x".into(), 1));
            }
            cmd("SCRIPT").arg("FLUSH").exec(&mut client).unwrap();
            let sent: RedisResult<Value> = cmd("EVALSHA")
                .arg(script.get_hash())
                .arg(0)
                .query(&mut client);
            is_server_error(sent, ServerErrorKind::NoScript);
        }
    }
}

fn multi() {
    for mut client in both() {
        let mut requests = pipe();
        requests
            .atomic()
            .set("{rs}:t", 1)
            .incr("{rs}:t", 1)
            .get("{rs}:t");
        let replies: (String, i64, i64) = requests.query(&mut client).unwrap();
        assert_eq!(replies, ("OK".into(), 2, 2));
        let mut requests = pipe();
        requests
            .atomic()
            .set("{rs}:t", "a")
            .incr("{rs}:t", 1)
            .set("{rs}:u", 1);
        assert!(requests.query::<Value>(&mut client).is_err());
        assert_eq!(client.get::<_, String>("{rs}:t").unwrap(), "a");
        assert_eq!(client.get::<_, i64>("{rs}:u").unwrap(), 1);
    }
}

fn watch() {
    for mut client in both() {
        let _: () = client.set("{rs}:w", 1).unwrap();
        let (doubled,): (i64,) = transaction(&mut client, &["{rs}:w"], |client, requests| {
            let value: i64 = client.get("{rs}:w")?;
            // The first try fails, since another client writes; the second does not.
            if value == 1 {
                let _: () = other().set("{rs}:w", 5)?;
            }
            requests
                .set("{rs}:w", value * 2)
                .ignore()
                .get("{rs}:w")
                .query(client)
        })
        .unwrap();
        assert_eq!(doubled, 10);
    }
}

fn blpop() {
    for mut client in both() {
        let keys = ["{rs}:q", "{rs}:r"];
        let _: () = client.del(&["{rs}:q", "{rs}:r", "{rs}:z2"]).unwrap();
        let begun = Instant::now();
        let popped: Option<(String, String)> = client.blpop(&keys, 0.3).unwrap();
        assert!(popped.is_none() && begun.elapsed() >= Duration::from_millis(300));
        soon(&["RPUSH", "{rs}:r", "x"]);
        let popped: (String, String) = client.blpop(&keys, 10.0).unwrap();
        assert_eq!(popped, ("{rs}:r".into(), "x".into()));
        soon(&["ZADD", "{rs}:z2", "2", "m"]);
        let popped: (String, String, f64) = client.bzpopmin("{rs}:z2", 10.0).unwrap();
        assert_eq!(popped, ("{rs}:z2".into(), "m".into(), 2.0));
    }
}

fn subscribe() {
    for mut client in both() {
        let mut pubsub = client.as_pubsub();
        pubsub.subscribe(&["rs:c1", "rs:c2"]).unwrap();
        pubsub.psubscribe("rs:p*").unwrap();
        for port in ["PORT", "OTHER_PORT"] {
            let mut publisher = connect(port, "");
            let mut heard = Vec::new();
            for (channel, text) in [("rs:c1", "hello"), ("rs:pat", "hi")] {
                let _: () = publisher.publish(channel, text).unwrap();
                let message = pubsub.get_message().unwrap();
                let payload: String = message.get_payload().unwrap();
                let name = message.get_channel_name().to_owned();
                heard.push((name, payload, message.from_pattern()));
            }
            let wanted = [("rs:c1", "hello", false), ("rs:pat", "hi", true)];
            let wanted = wanted.map(|(c, p, pattern)| (c.to_owned(), p.to_owned(), pattern));
            assert_eq!(heard, wanted);
        }
        pubsub
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        let twice = pubsub.get_message();
        assert!(twice.is_err_and(|error| error.is_timeout()));
    }
}

fn xread() {
    for mut client in both() {
        let _: () = client.del("{rs}:x").unwrap();
        let mut read = |block| -> Option<StreamReadReply> {
            let options = StreamReadOptions::default().block(block);
            client.xread_options(&["{rs}:x"], &["$"], &options).unwrap()
        };
        assert!(read(200).is_none());
        soon(&["XADD", "{rs}:x", "1-1", "f", "v"]);
        let streams = read(10_000).unwrap().keys;
        assert_eq!((streams.len(), streams[0].key.as_str()), (1, "{rs}:x"));
        let entry = &streams[0].ids[0];
        assert_eq!(
            (entry.id.as_str(), entry.get("f")),
            ("1-1", Some("v".to_owned()))
        );
    }
}

fn scan() {
    for mut client in both() {
        let wanted: BTreeSet<String> = (0..1_000).map(|n| format!("rs:scan:{n}")).collect();
        let values: Vec<(&String, i64)> = wanted.iter().map(|key| (key, 1)).collect();
        let _: () = client.mset(&values).unwrap();
        let found: BTreeSet<String> = client
            .scan_match("rs:scan:*")
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert!(found == wanted, "{} keys", found.len());
        assert_eq!(client.unlink::<_, i64>(found).unwrap(), 1_000);
    }
}

/// Its client-side cache, which needs RESP3 and the asynchronous connection.
fn tracking() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let config = AsyncConnectionConfig::new().set_cache_config(CacheConfig::default());
        let mut cached = open("PORT", "?protocol=resp3")
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .unwrap();
        for key in ["rs:cached", "rs:other"] {
            let _: () = other().set(key, 1).unwrap();
            for value in [2, 3] {
                let mut get = cmd("GET");
                get.arg(key);
                let _: i64 = get.query_async(&mut cached).await.unwrap();
                let hits = cached.get_cache_statistics().unwrap().hit;
                assert_ne!(get.query_async::<i64>(&mut cached).await.unwrap(), value);
                assert_eq!(cached.get_cache_statistics().unwrap().hit, hits + 1);
                let _: () = other().set(key, value).unwrap();
                let begun = Instant::now();
                while get.query_async::<i64>(&mut cached).await.unwrap() != value {
                    assert!(begun.elapsed() < Duration::from_secs(10), "no invalidation");
                    tokio::task::yield_now().await;
                }
            }
        }
    });
}

fn crossslot() {
    let mut client = connect("CLUSTER_PORT", "");
    let renamed = client.rename::<_, _, Value>("rs:0", "rs:1");
    is_server_error(renamed, ServerErrorKind::CrossSlot);
    let met = client.sinter::<_, Value>(&["rs:0", "rs:1"]);
    is_server_error(met, ServerErrorKind::CrossSlot);
}
