//! Slots move away from servers older than Redis 6, which do not tell of all that clients do.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use proto::v1::{self, migration::Phase};
use redis::{RedisError, aio::MultiplexedConnection, cmd, pipe};
use tests::{
    Cluster, Workload, eventually,
    migration::{assert_keys_are_at_their_owners, create, enters, get},
    other_server,
};
use tokio::{task::JoinHandle, time::sleep};

/// Two groups, of which the first is an old one; none where there is no such server.
async fn cluster(name: &str) -> Option<Cluster> {
    let cluster = Cluster::builder().groups(2).proxies(2);
    let cluster = cluster.server_of(1, other_server(name)?);
    Some(cluster.start().await)
}

/// What a key of a client's should be: its value, and whether it expires. `None`: there is no such key.
type Key = Option<(String, bool)>;

/// What a client knows of its keys: those of which it knows it.
type Known = BTreeMap<String, Option<Key>>;

/// A client that does, to its own keys, what old servers do not tell of.
struct Quiet {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<(Known, u64)>>,
}

impl Quiet {
    /// One at each proxy.
    async fn start(cluster: &Cluster) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = Vec::new();
        for (number, proxy) in cluster.proxies.iter().enumerate() {
            let link = proxy.connect().await;
            let run = act(link, number, stop.clone());
            clients.push(tokio::spawn(run));
        }
        Self { stop, clients }
    }

    /// Panics unless all keys are what they should be; how many commands that took.
    async fn stop(self, cluster: &Cluster) -> u64 {
        self.stop.store(true, Relaxed);
        let mut link = cluster.proxies[0].connect().await;
        let mut all = 0;
        for client in self.clients {
            let (known, count) = client.await.unwrap();
            all += count;
            for (name, key) in known {
                let Some(key) = key else { continue };
                let value: Option<String> =
                    cmd("GET").arg(&name).query_async(&mut link).await.unwrap();
                let left: i64 = cmd("TTL").arg(&name).query_async(&mut link).await.unwrap();
                let found = value.map(|value| (value, left >= 0));
                assert_eq!(found, key, "{name}");
            }
        }
        all
    }
}

/// Until it is told to stop. What was answered with an error it does not know any more, unless that says that
/// nothing was executed.
async fn act(
    mut link: MultiplexedConnection,
    number: usize,
    stop: Arc<AtomicBool>,
) -> (Known, u64) {
    let mut random = fastrand::Rng::with_seed(number as u64 + 1);
    let mut known = Known::new();
    let mut count = 0;
    // Of the old group: a newer one restores what an older one has dumped.
    let dumped = format!("{{k0}}dumped:{number}");
    let set = cmd("SET").arg(&dumped).arg("restored").to_owned();
    set.exec_async(&mut link).await.unwrap();
    let payload: Vec<u8> = cmd("DUMP")
        .arg(&dumped)
        .query_async(&mut link)
        .await
        .unwrap();
    while !stop.load(Relaxed) {
        sleep(Duration::from_millis(1)).await;
        let name = format!("quiet:{number}:{}", random.u32(0..400));
        let before = known.get(&name).cloned().unwrap_or(Some(None));
        let persisted = || {
            before
                .clone()
                .map(|key| key.map(|(value, _)| (value, false)))
        };
        let asked: Result<Option<Key>, RedisError> = match random.u8(0..7) {
            0 | 1 => {
                let mut set = cmd("SET");
                set.arg(&name).arg(count).arg("EX").arg(100_000);
                let after = Some(Some((count.to_string(), true)));
                set.exec_async(&mut link).await.map(|()| after)
            }
            2 => {
                let persist = cmd("PERSIST").arg(&name).to_owned();
                persist.exec_async(&mut link).await.map(|()| persisted())
            }
            3 => {
                let mut eval = cmd("EVAL");
                eval.arg("return redis.call('PERSIST', KEYS[1])")
                    .arg(1)
                    .arg(&name);
                eval.exec_async(&mut link).await.map(|()| persisted())
            }
            4 => {
                let mut both = pipe();
                both.atomic()
                    .cmd("PERSIST")
                    .arg(&name)
                    .cmd("GET")
                    .arg(&name);
                both.exec_async(&mut link).await.map(|()| persisted())
            }
            5 => {
                let mut restore = cmd("RESTORE");
                restore.arg(&name).arg(0).arg(&payload).arg("REPLACE");
                let after = Some(Some(("restored".to_owned(), false)));
                restore.exec_async(&mut link).await.map(|()| after)
            }
            _ => {
                let mut go = cmd("MOVE");
                go.arg(&name).arg(1);
                let moved: Result<bool, _> = go.query_async(&mut link).await;
                moved.map(|moved| if moved { Some(None) } else { before.clone() })
            }
        };
        count += 1;
        let after = match asked {
            Ok(after) => after,
            Err(error) if error.code() == Some("TRYAGAIN") => before,
            Err(_) => None,
        };
        known.insert(name, after);
    }
    (known, count)
}

/// What a comparison of both sides ends with.
async fn verify(cluster: &Cluster, id: &str) -> v1::VerifyMigrationResponse {
    let request = v1::VerifyMigrationRequest {
        id: id.to_owned(),
        one_in: 0,
    };
    let mut admin = cluster.controller.admin().await;
    let mut stream = admin.verify_migration(request).await.unwrap().into_inner();
    let mut last = v1::VerifyMigrationResponse::default();
    while let Some(told) = stream.message().await.unwrap() {
        last = told;
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_move_from_old_servers_and_nothing_is_lost() {
    for (seed, name) in [(32, "redis-3.2"), (50, "redis-5.0")] {
        let Some(cluster) = cluster(name).await else {
            continue;
        };
        let workload = Workload::start(cluster.addrs(), seed);
        let quiet = Quiet::start(&cluster).await;
        workload.advance(1000).await;
        let request = v1::CreateMigrationRequest {
            id: "m".to_owned(),
            slots: "0-511".to_owned(),
            target_group_id: "g2".to_owned(),
            keep_source: true,
            ..v1::CreateMigrationRequest::default()
        };
        let mut admin = cluster.controller.admin().await;
        admin.create_migration(request).await.unwrap();
        enters(&cluster.controller, "m", Phase::Committed).await;
        workload.advance(500).await;
        let request = v1::ChangeMigrationRequest {
            id: "m".to_owned(),
            ..v1::ChangeMigrationRequest::default()
        };
        admin.resume_migration(request).await.unwrap();
        enters(&cluster.controller, "m", Phase::Succeeded).await;
        workload.advance(200).await;
        let report = workload.stop().await;
        assert_eq!(report.violations, Vec::<String>::new(), "{name}");
        // They ask for more than these servers know.
        let only = ["ERR", "TRYAGAIN", "UNKNOWNOUTCOME"];
        assert!(
            report
                .errors
                .keys()
                .all(|code| only.contains(&code.as_str())),
            "{:?}",
            report.errors
        );
        let count = quiet.stop(&cluster).await;
        assert!(count > 500, "{name}: {count}");
        assert_keys_are_at_their_owners(&cluster).await;
        let mut source = cluster.groups[0][0].connect().await;
        let mut get = cmd("CONFIG");
        get.arg("GET").arg("notify-keyspace-events");
        let (_, flags): (String, String) = get.query_async(&mut source).await.unwrap();
        assert_eq!(flags, "", "{name}");
    }
}

/// What a proxy has noted that is fenced out is not believed to be all: the copy begins anew, once it notes again.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_hangs_makes_the_copy_begin_anew() {
    let Some(cluster) = cluster("redis-5.0").await else {
        return;
    };
    let quiet = Quiet::start(&cluster).await;
    sleep(Duration::from_millis(500)).await;
    cluster.proxies[1].process.stop();
    let migration = create(&cluster.controller, "0-511", "g2").await;
    super::waits(&cluster, &migration.id, "waiting for proxy p2").await;
    sleep(Duration::from_secs(3)).await;
    let waits = get(&cluster.controller, &migration.id).await.unwrap();
    assert_eq!(waits.moved_slots, "", "{waits:?}");
    cluster.proxies[1].process.resume();
    enters(&cluster.controller, &migration.id, Phase::Succeeded).await;
    assert!(quiet.stop(&cluster).await > 100);
    assert_keys_are_at_their_owners(&cluster).await;
}

/// Both sides have the same when clients are quiet, but for what is flushed in between.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_flushed_in_between_is_gone_at_both_sides() {
    let Some(cluster) = cluster("redis-5.0").await else {
        return;
    };
    let quiet = Quiet::start(&cluster).await;
    super::fill(&cluster, 2000).await;
    let request = v1::CreateMigrationRequest {
        id: "m".to_owned(),
        slots: "0-511".to_owned(),
        target_group_id: "g2".to_owned(),
        rate: 300,
        keep_source: true,
        ..v1::CreateMigrationRequest::default()
    };
    let mut admin = cluster.controller.admin().await;
    admin.create_migration(request).await.unwrap();
    sleep(Duration::from_secs(2)).await;
    quiet.stop(&cluster).await;
    let mut client = cluster.proxies[1].connect().await;
    cmd("FLUSHALL").exec_async(&mut client).await.unwrap();
    for n in 0..300 {
        let set = cmd("SET").arg(format!("after:{n}")).arg(n).to_owned();
        set.exec_async(&mut client).await.unwrap();
    }
    super::hurry(&cluster, "m").await;
    enters(&cluster.controller, "m", Phase::Committed).await;
    let compared = verify(&cluster, "m").await;
    assert!(
        compared.done && compared.keys_different == 0,
        "{compared:?}"
    );
    // What is at both sides was counted before the flush, and is counted again.
    eventually(|| {
        let mut client = client.clone();
        async move {
            let size: usize = cmd("DBSIZE").query_async(&mut client).await.unwrap();
            match size {
                300 => Ok(()),
                other => Err(format!("{other} keys")),
            }
        }
    })
    .await;
}
