//! Two servers, one of which is copied to the other.

use std::{collections::HashMap, num::NonZeroUsize, path::PathBuf, sync::Arc, time::Duration};

use controlplane::mover::{
    Copy, Endpoint, Evidence, Mandate, Plan, Progress, Settle, Stage, Unsettled,
};
use proto::{
    ClusterId, MigrationId, ServerAddr, Slot, SlotSet,
    settled::{StreamKey, Streams},
};
use redis::{RedisResult, Value, aio::MultiplexedConnection, cmd};
use tempfile::TempDir;
use tests::{SOON, Server, eventually, other_server};
use tokio::time::{Instant, timeout};

/// How long the slots of a test may be held: the machine may be busy.
pub(super) const BUDGET: Duration = SOON;

/// See the module.
pub(super) struct Stand {
    pub(super) source: Server,
    pub(super) target: Server,
    dir: TempDir,
}

/// The program that a name means; none where it is not to be had.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    match name {
        "redis-7.0" => Some("redis-server".into()),
        other => other_server(other),
    }
}

/// The slots of the lower half.
pub(super) fn half() -> SlotSet {
    Slot::all().filter(|slot| slot.number() < 512).collect()
}

/// All slots.
pub(super) fn all() -> SlotSet {
    Slot::all().collect()
}

impl Stand {
    /// Two of Debian's.
    pub(super) async fn start() -> Self {
        let program = program("redis-7.0").unwrap();
        Self::of(program.clone(), program, &[]).await
    }

    /// Two of any programs, with these arguments.
    pub(super) async fn of(source: PathBuf, target: PathBuf, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        let stand = Self {
            source: Server::run(&source, dir.path(), "source", &args),
            target: Server::run(&target, dir.path(), "target", &args),
            dir,
        };
        for server in [&stand.source, &stand.target] {
            server.answers().await;
            admit(server).await;
        }
        stand
    }

    /// A replica of the target that has all of it.
    pub(super) async fn replica(&self) -> Server {
        let port = self.target.port.to_string();
        let args = ["--replicaof", "127.0.0.1", &port].map(str::to_owned);
        let replica = Server::start(self.dir.path(), "replica", &args);
        let mut link = self.target.connect().await;
        eventually(|| {
            let mut link = link.clone();
            async move {
                let mut wait = cmd("WAIT");
                wait.arg(1).arg(100);
                cmd("SET")
                    .arg("{sluice}:test")
                    .arg("x")
                    .query_async::<()>(&mut link)
                    .await
                    .unwrap();
                match wait.query_async(&mut link).await {
                    Ok(1) => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            }
        })
        .await;
        cmd("DEL")
            .arg("{sluice}:test")
            .query_async::<()>(&mut link)
            .await
            .unwrap();
        replica
    }

    /// A copy of these slots.
    pub(super) fn plan(&self, slots: SlotSet) -> Plan {
        let endpoint = |server: &Server| Endpoint {
            address: ServerAddr::new(server.addr.clone()).unwrap(),
            login: None,
        };
        Plan {
            name: MigrationId::new("m1").unwrap(),
            mandate: Arc::new(Mandate {
                cluster: ClusterId::new("test").unwrap(),
                term: 1,
                incarnation: "0f".repeat(16),
            }),
            source: endpoint(&self.source),
            target: endpoint(&self.target),
            slots,
            lanes: NonZeroUsize::new(4).unwrap(),
            patience: SOON,
        }
    }

    /// A copy that has gone through all keys.
    pub(super) async fn copied(&self, slots: SlotSet) -> Copy {
        let copy = Copy::begin(self.plan(slots));
        follows(&copy).await;
        copy
    }

    /// Panics unless the target has of these slots what the source has, and no more: element for element,
    /// and to the millisecond. How many keys that are.
    pub(super) async fn must_be_equal(&self, slots: &SlotSet) -> usize {
        let mut source = self.source.connect().await;
        let mut target = self.target.connect().await;
        let tells_all = knows_full(&mut source).await;
        let mut count = 0;
        for database in 0..16 {
            for link in [&mut source, &mut target] {
                let _: () = cmd("SELECT").arg(database).query_async(link).await.unwrap();
            }
            let keys = keys_of(&mut source, slots).await;
            assert_eq!(
                keys,
                keys_of(&mut target, slots).await,
                "database {database}"
            );
            for key in &keys {
                let here = content(&mut source, key, tells_all).await;
                let there = content(&mut target, key, tells_all).await;
                let name = String::from_utf8_lossy(key);
                assert!(here == there, "{name} in {database}: {here:?} {there:?}");
            }
            count += keys.len();
        }
        count
    }
}

/// Writes the fence record, as a leader does who admits a server.
pub(super) async fn admit(server: &Server) {
    let mut link = server.connect().await;
    let info: String = cmd("INFO")
        .arg("server")
        .query_async(&mut link)
        .await
        .unwrap();
    let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:"));
    let _: () = cmd("HMSET")
        .arg("{sluice}:fence")
        .arg(&["cluster", "test", "term", "1", "epoch", "1"])
        .arg(&["run_id", run_id.unwrap().trim()])
        .query_async(&mut link)
        .await
        .unwrap();
}

/// Empties a server, all but the fence record.
pub(super) async fn flush(server: &Server) {
    let script = "local record = redis.call('HGETALL', KEYS[1]) redis.call('FLUSHALL') \
        return redis.call('HMSET', KEYS[1], unpack(record))";
    let mut link = server.connect().await;
    let _: () = cmd("EVAL")
        .arg(script)
        .arg(1)
        .arg("{sluice}:fence")
        .query_async(&mut link)
        .await
        .unwrap();
}

/// Returns once a copy has gone through all keys.
pub(super) async fn follows(copy: &Copy) {
    reaches(copy, |progress| progress.stage == Stage::Following).await;
}

/// Returns once something is true of a copy.
pub(super) async fn reaches(copy: &Copy, test: impl FnMut(&Progress) -> bool) -> Progress {
    let mut progress = copy.progress();
    let reached = timeout(3 * SOON, progress.wait_for(test)).await;
    match reached {
        Ok(reached) => reached.unwrap().clone(),
        Err(_) => panic!("stays at {:?}", copy.progress().borrow()),
    }
}

/// Settles these slots.
pub(super) async fn settle(copy: &mut Copy, slots: SlotSet) -> Result<Evidence, Unsettled> {
    settle_streams(copy, slots, touched(&[])).await
}

/// Settles these slots, with some streams.
pub(super) async fn settle_streams(
    copy: &mut Copy,
    slots: SlotSet,
    streams: Streams,
) -> Result<Evidence, Unsettled> {
    let budget = BUDGET;
    copy.settle(Settle {
        slots,
        streams,
        budget,
    })
    .await
}

/// Settles these slots, if it takes no longer.
pub(super) async fn settle_within(
    copy: &mut Copy,
    slots: SlotSet,
    budget: Duration,
) -> Result<Evidence, Unsettled> {
    let streams = touched(&[]);
    copy.settle(Settle {
        slots,
        streams,
        budget,
    })
    .await
}

/// These streams, and no others.
pub(super) fn touched(keys: &[&str]) -> Streams {
    let stream = |key: &&str| StreamKey {
        database: 0,
        key: key.as_bytes().to_vec(),
    };
    Streams::These(keys.iter().map(stream).collect())
}

/// Settles these slots, however often the copy has to start over.
pub(super) async fn settle_at_last(copy: &mut Copy, slots: &SlotSet) -> Evidence {
    let deadline = Instant::now() + 3 * SOON;
    loop {
        match settle(copy, *slots).await {
            Ok(evidence) => return evidence,
            Err(why) => assert!(Instant::now() < deadline, "{why}"),
        }
        follows(copy).await;
    }
}

/// Returns once the target has a key.
pub(super) async fn has(server: &Server, key: &str) {
    eventually(|| async {
        let mut link = server.connect().await;
        let there: bool = cmd("EXISTS").arg(key).query_async(&mut link).await.unwrap();
        there.then_some(()).ok_or_else(|| format!("no {key}"))
    })
    .await;
}

async fn keys_of(link: &mut MultiplexedConnection, slots: &SlotSet) -> Vec<Vec<u8>> {
    let keys: Vec<Vec<u8>> = cmd("KEYS").arg("*").query_async(link).await.unwrap();
    let mut keys: Vec<_> = keys.into_iter().filter(|key| slots.owns(key)).collect();
    keys.sort();
    keys
}

/// Whether a server tells all of a stream at once (since 6.0).
async fn knows_full(link: &mut MultiplexedConnection) -> bool {
    let mut ask = cmd("INFO");
    let info: String = ask.arg("server").query_async(link).await.unwrap();
    let version = info.split_once("redis_version:").unwrap().1;
    !version.starts_with(['3', '5'])
}

/// A value as its elements, in an order that does not depend on the server, and when it expires. `tells_all`:
/// the server knows `XINFO STREAM … FULL`.
async fn content(
    link: &mut MultiplexedConnection,
    key: &[u8],
    tells_all: bool,
) -> (String, Vec<Value>, i64) {
    let kind: String = cmd("TYPE").arg(key).query_async(link).await.unwrap();
    let mut ask = async |words: &[&str]| {
        let (name, args) = words.split_first().unwrap();
        let mut command = cmd(name);
        command.arg(key).arg(args);
        command.query_async::<Value>(link).await
    };
    let elements = match kind.as_str() {
        "none" => vec![],
        "string" => vec![ask(&["GET"]).await.unwrap()],
        "list" => list(ask(&["LRANGE", "0", "-1"]).await.unwrap()),
        "set" => sorted(list(ask(&["SMEMBERS"]).await.unwrap()), 1),
        "hash" => sorted(list(ask(&["HGETALL"]).await.unwrap()), 2),
        "zset" => list(ask(&["ZRANGE", "0", "-1", "WITHSCORES"]).await.unwrap()),
        "stream" if !tells_all => {
            let mut parts = vec![ask(&["XRANGE", "-", "+"]).await.unwrap()];
            parts.extend(groups_of(link, key).await);
            parts
        }
        "stream" => {
            let entries = ask(&["XRANGE", "-", "+"]).await.unwrap();
            let command = cmd("XINFO")
                .arg("STREAM")
                .arg(key)
                .arg("FULL")
                .arg("COUNT")
                .arg(0)
                .to_owned();
            let info: Value = command.query_async(link).await.unwrap();
            vec![entries, essence(info)]
        }
        other => panic!("a key of type {other}"),
    };
    let expiry: RedisResult<i64> = cmd("PEXPIRETIME").arg(key).query_async(link).await;
    let expiry = match expiry {
        Ok(expiry) => expiry,
        Err(_) => expiry_by_clock(link, key).await,
    };
    (kind, elements, expiry)
}

/// The last id of a stream, its groups, and what is pending there, as Redis 5 tells it.
async fn groups_of(link: &mut MultiplexedConnection, key: &[u8]) -> Vec<Value> {
    let mut info = redis::pipe();
    info.cmd("XINFO").arg("STREAM").arg(key);
    info.cmd("XINFO").arg("GROUPS").arg(key);
    let (stream, groups): (HashMap<String, Value>, Vec<HashMap<String, Value>>) =
        info.query_async(link).await.unwrap();
    let mut parts = vec![stream["last-generated-id"].clone()];
    for group in groups {
        let name: String = redis::from_redis_value(group["name"].clone()).unwrap();
        parts.push(group["last-delivered-id"].clone());
        let mut pending = cmd("XPENDING");
        pending.arg(key).arg(&name).arg("-").arg("+").arg(100_000);
        let pending: Vec<(String, String, i64, i64)> = pending.query_async(link).await.unwrap();
        let told = pending.into_iter().map(|(id, consumer, _, deliveries)| {
            Value::SimpleString(format!("{name} {id} {consumer} {deliveries}"))
        });
        parts.extend(told);
    }
    parts
}

/// When a key expires, at a server that only tells what is left.
async fn expiry_by_clock(link: &mut MultiplexedConnection, key: &[u8]) -> i64 {
    loop {
        let mut pipe = redis::pipe();
        pipe.cmd("TIME").cmd("PTTL").arg(key).cmd("TIME");
        let replies: ((i64, i64), i64, (i64, i64)) = pipe.query_async(link).await.unwrap();
        let millis = |(seconds, micros): (i64, i64)| seconds * 1000 + micros / 1000;
        match replies {
            (_, left @ ..0, _) => return left,
            (before, left, after) if millis(before) == millis(after) => {
                return millis(before) + left;
            }
            _ => {}
        }
    }
}

fn list(value: Value) -> Vec<Value> {
    match value {
        Value::Array(items) => items,
        other => panic!("no list: {other:?}"),
    }
}

/// So many values that belong together stay together.
fn sorted(values: Vec<Value>, together: usize) -> Vec<Value> {
    let mut groups: Vec<&[Value]> = values.chunks(together).collect();
    groups.sort_by_key(|group| format!("{group:?}"));
    groups.concat()
}

/// What `XINFO STREAM … FULL` says, without how the stream lies in memory, and when a consumer was last
/// heard of; without what not all versions say.
fn essence(info: Value) -> Value {
    const LEFT_OUT: [&str; 9] = [
        "radix-tree-keys",
        "radix-tree-nodes",
        "seen-time",
        "active-time",
        "entries-added",
        "max-deleted-entry-id",
        "recorded-first-entry-id",
        "entries-read",
        "lag",
    ];
    let Value::Array(items) = info else {
        return info;
    };
    let is_name = |item: &Value| matches!(item, Value::BulkString(text) if LEFT_OUT.iter().any(|name| name.as_bytes() == text));
    let mut kept = Vec::new();
    let mut items = items.into_iter();
    while let Some(item) = items.next() {
        if is_name(&item) {
            items.next();
        } else {
            kept.push(essence(item));
        }
    }
    Value::Array(kept)
}
