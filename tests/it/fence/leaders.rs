//! Several leaders, one after the other or beside each other, and stores that were restored: no number
//! of a record goes down, and nobody is locked out.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use controlplane::{
    change, embedded,
    fence::{Fences, Mark, NotFenced, Spare, Target},
    metrics::Metrics,
    model::Registration,
    probe::Probe,
    store::{Store, Writer},
};
use proto::{
    GroupId, ProxyId, ServerAddr,
    credentials::Credentials,
    fence::Refusal,
    settled,
    v1::{self, migration::Phase},
};
use tests::{
    Cluster, Controller, Load, Raw, SOON, Server, ZooKeeper, eventually, migration::enters,
};
use tokio::time::Instant;

use super::{cluster_of, number, record, record_that};

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// Puts back what was copied.
fn restore(backup: &Path, place: &Path) {
    fs::remove_dir_all(place).unwrap();
    copy(backup, place).unwrap();
}

/// A leader without the rest of its controller.
struct Leader {
    store: Store,
    fences: Fences,
    _writer: Writer,
}

async fn leader(dir: PathBuf) -> Leader {
    let opened = embedded::open(dir, "test".to_owned(), Metrics::new()).await;
    let (store, writer) = opened.unwrap();
    let probe = Probe::new(Credentials::default(), Duration::from_secs(1));
    Leader {
        fences: Fences::new(store.clone(), probe),
        store,
        _writer: writer,
    }
}

/// A leader and a later one of the same cluster, of which the first knows nothing.
async fn early_and_late(dir: &Path) -> (Leader, Leader) {
    let (one, two) = (dir.join("one"), dir.join("two"));
    leader(one.clone()).await._writer.close().await.unwrap();
    copy(&one, &two).unwrap();
    leader(two.clone()).await._writer.close().await.unwrap();
    (leader(one).await, leader(two).await)
}

impl Leader {
    fn term(&self) -> u64 {
        self.store.snapshot().head.leader_term
    }

    async fn raise(&self, at: &Target, epoch: u64) -> Result<(), NotFenced> {
        let mark = Mark {
            term: self.term(),
            epoch,
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        let (spare, nothing) = (Spare::Proxies, BTreeSet::new());
        let raised = self.fences.raise(at, mark, spare, &nothing, deadline).await;
        raised.map(|evidence| assert_eq!(evidence.mark(), mark))
    }
}

fn target(server: &Server) -> Target {
    Target {
        address: ServerAddr::new(&*server.addr).unwrap(),
        group: GroupId::new("g1").unwrap(),
    }
}

#[tokio::test]
async fn a_late_word_of_a_former_leader_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), "g1", &[]);
    server.answers().await;
    let at = target(&server);
    let (early, late) = early_and_late(dir.path()).await;
    early.raise(&at, 40).await.unwrap();
    late.raise(&at, 30).await.unwrap();
    let after = record(&server).await;
    assert_eq!(number(&after, "term"), late.term());
    assert_eq!(number(&after, "epoch"), 40);
    let (fence, term) = (late.term(), early.term());
    assert!(term < fence);
    let refusal = Refusal::OldTerm { fence, term };
    let refused = early.raise(&at, 50).await;
    assert_eq!(refused, Err(NotFenced::Refused(refusal)));
    assert_eq!(record(&server).await, after);
}

#[tokio::test]
async fn what_proxies_have_lost_is_closed_and_former_leaders_are_shut_out() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), "g1", &[]);
    server.answers().await;
    let at = target(&server);
    let leader = leader(dir.path().join("store")).await;
    let deadline = || Instant::now() + Duration::from_secs(5);
    // Where there is no record, there is none to claim.
    let soon = Instant::now() + Duration::from_millis(200);
    let unclaimed = leader.fences.claim(&at, soon).await;
    assert!(
        matches!(unclaimed, Err(NotFenced::Later(_))),
        "{unclaimed:?}"
    );
    leader.raise(&at, 1).await.unwrap();

    let name = super::proxy_name();
    let (mut lost, mut kept) = (
        super::named(&server, &name).await,
        super::named(&server, &name).await,
    );
    let mut mover = super::named(&server, &format!("sluice:mover:{}:1", "0".repeat(32))).await;
    let id = lost.command("CLIENT ID").await[1..].parse().unwrap();
    let connection = |run_id: &str, client_id: u64, at: &ServerAddr| settled::Connection {
        server: at.clone(),
        run_id: run_id.to_owned(),
        client_id,
    };
    let run_id = super::run_id(&server).await;
    let kept_id = kept.command("CLIENT ID").await[1..].parse().unwrap();
    let of_process_before = connection(&"0".repeat(40), kept_id, &at.address);
    let here = [
        connection(&run_id, id, &at.address),
        connection(&run_id, 1 << 40, &at.address),
        of_process_before,
    ];
    let elsewhere = connection(&run_id, kept_id, &ServerAddr::new("127.0.0.1:1").unwrap());
    let close = here.iter().chain([&elsewhere]).cloned().collect();
    let mark = Mark {
        term: leader.term(),
        epoch: 1,
    };
    let raised = leader
        .fences
        .raise(&at, mark, Spare::Proxies, &close, deadline());
    let evidence = raised.await.unwrap();
    assert_eq!(*evidence.closed(), here.into_iter().collect());
    assert!(super::is_dead(&mut lost).await && super::is_dead(&mut mover).await);
    assert_eq!(kept.command("PING").await, "+PONG");

    let mut mover = super::named(&server, &format!("sluice:mover:{}:2", "0".repeat(32))).await;
    let evidence = leader.fences.claim(&at, deadline()).await.unwrap();
    assert_eq!((evidence.mark(), evidence.run_id()), (mark, &*run_id));
    assert_eq!(evidence.killed().len(), 1);
    assert!(super::is_dead(&mut mover).await);
    assert_eq!(kept.command("PING").await, "+PONG");
}

#[tokio::test]
async fn a_process_without_a_record_is_not_raised_to_less_than_the_stores_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), "g1", &[]);
    server.answers().await;
    let at = target(&server);
    let leader = leader(dir.path().join("store")).await;
    let proxy = Registration {
        id: ProxyId::new("p1").unwrap(),
        revision: 0,
        incarnation: "0".repeat(32),
        address: "127.0.0.1:1".to_owned(),
        admin_address: String::new(),
        zone: String::new(),
        build_version: "1".to_owned(),
    };
    leader.raise(&at, 1).await.unwrap();
    let registered = leader
        .store
        .commit(move |now| change::register(now, &proxy));
    let revision = registered.await.unwrap().head.revision;
    leader.raise(&at, 1).await.unwrap();
    assert_eq!(number(&record(&server).await, "epoch"), 1);
    // Whatever it was raised to since it wrote its data last.
    server.process.kill();
    server.restart();
    server.answers().await;
    leader.raise(&at, 1).await.unwrap();
    assert_eq!(number(&record(&server).await, "epoch"), revision);
    super::ask(&server, "FLUSHALL").await;
    leader.raise(&at, 1).await.unwrap();
    assert_eq!(number(&record(&server).await, "epoch"), revision);
}

#[tokio::test]
async fn of_two_that_raise_by_turns_no_number_goes_down() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), "g1", &[]);
    server.answers().await;
    let (early, late) = early_and_late(dir.path()).await;
    let over = Arc::new(AtomicBool::new(false));
    let raising = [early, late].map(|leader| {
        let (at, over) = (target(&server), Arc::clone(&over));
        tokio::spawn(async move {
            let mut done = 0;
            while !over.load(Ordering::Relaxed) {
                match leader.raise(&at, fastrand::u64(1..1000)).await {
                    Ok(()) => done += 1,
                    Err(NotFenced::Refused(Refusal::OldTerm { .. })) => {}
                    // Its connection was killed by the other.
                    Err(NotFenced::Unanswered(_) | NotFenced::Lost) => {}
                    Err(e) => panic!("{e}"),
                }
            }
            done
        })
    });
    let (mut term, mut epoch) = (0, 0);
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        let now = record(&server).await;
        let (new_term, new_epoch) = (number(&now, "term"), number(&now, "epoch"));
        assert!(
            new_term >= term && new_epoch >= epoch,
            "{term}, {epoch}: {now:?}"
        );
        (term, epoch) = (new_term, new_epoch);
    }
    over.store(true, Ordering::Relaxed);
    let [early, late] = raising;
    let done = (early.await.unwrap(), late.await.unwrap());
    assert!(done.1 > 10, "{done:?}");
    assert!(epoch > 900, "{epoch}");
}

async fn describe(controller: &Controller, text: &str) {
    let mut admin = controller.admin().await;
    let request = v1::UpdateGroupRequest {
        id: "g1".to_owned(),
        description: text.to_owned(),
        ..v1::UpdateGroupRequest::default()
    };
    admin.update_group(request).await.unwrap();
}

/// What has to be so after a store was restored: it has gone on above what was there before, all proxies
/// route by that, and the servers' records are of it.
async fn goes_on_above(cluster: &Cluster, before: &v1::Cluster) {
    let after = eventually(|| async {
        let now = cluster_of(&cluster.controller).await;
        if now.leader_term > before.leader_term && now.revision > before.revision {
            Ok(now)
        } else {
            Err(format!("{now:?} after {before:?}"))
        }
    })
    .await;
    assert_eq!(after.id, before.id);
    cluster.settle().await;
    for group in &cluster.groups {
        record_that(&group[0], |record| {
            number(record, "term") >= after.leader_term
        })
        .await;
    }
    describe(&cluster.controller, "afterwards").await;
    cluster.settle().await;
}

#[tokio::test]
async fn a_restored_folder_goes_on_above_what_it_finds() {
    let mut cluster = Cluster::builder().groups(2).proxies(2).start().await;
    let backup = cluster.dir.path().join("backup");
    cluster.controller.process.kill();
    copy(&cluster.controller.data_dir(), &backup).unwrap();
    for round in 0..3 {
        cluster.controller.restart();
        describe(&cluster.controller, &format!("round {round}")).await;
        cluster.settle().await;
        cluster.controller.process.kill();
    }
    cluster.controller.restart();
    cluster.settle().await;
    let before = cluster_of(&cluster.controller).await;
    let term = |record: &_| number(record, "term") >= before.leader_term;
    record_that(&cluster.groups[1][0], term).await;
    let load = Load::start(cluster.connect_all().await, |_| true);
    load.advance(1_000).await;

    cluster.controller.process.kill();
    restore(&backup, &cluster.controller.data_dir());
    cluster.controller.restart();
    goes_on_above(&cluster, &before).await;
    load.advance(1_000).await;
    assert_eq!(load.stop().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_folder_restored_without_proxies_goes_on_above_the_records() {
    let mut cluster = Cluster::builder().groups(2).start().await;
    let backup = cluster.dir.path().join("backup");
    cluster.controller.process.kill();
    copy(&cluster.controller.data_dir(), &backup).unwrap();
    for _ in 0..3 {
        cluster.controller.restart();
        describe(&cluster.controller, &fastrand::u64(..).to_string()).await;
        cluster.controller.process.kill();
    }
    cluster.controller.restart();
    let before = cluster_of(&cluster.controller).await;
    let term = |record: &_| number(record, "term") >= before.leader_term;
    record_that(&cluster.groups[1][0], term).await;
    // As an admission now would.
    let bare = format!("HSET {} epoch {}", super::KEY, before.revision);
    assert_eq!(super::ask(&cluster.groups[1][0], &bare).await, ":0");
    cluster.controller.process.kill();
    restore(&backup, &cluster.controller.data_dir());
    cluster.controller.restart();
    goes_on_above(&cluster, &before).await;
}

const SESSION: Duration = Duration::from_secs(2);

async fn on_zookeeper(zookeeper: &ZooKeeper, stand_bys: usize) -> Cluster {
    let timeout = format!("{}s", SESSION.as_secs());
    let args = [
        "--zookeeper",
        &zookeeper.addr,
        "--zookeeper-session-timeout",
        &timeout,
    ];
    let cluster = Cluster::builder().groups(1).proxies(1).stand_bys(stand_bys);
    cluster.controller_args(&args).start().await
}

#[tokio::test]
async fn a_restored_zookeeper_goes_on_above_what_it_finds() {
    let dir = tempfile::tempdir().unwrap();
    let mut zookeeper = ZooKeeper::start(dir.path()).await;
    let mut cluster = on_zookeeper(&zookeeper, 0).await;
    let backup = dir.path().join("backup");
    zookeeper.process.kill();
    copy(&zookeeper.data_dir(), &backup).unwrap();
    zookeeper.restart().await;
    for round in 0..3 {
        cluster.controller.process.kill();
        cluster.controller.restart();
        let leads = || async {
            match cluster_of(&cluster.controller).await.role() {
                v1::cluster::Role::Leader => Ok(()),
                other => Err(format!("it is {other:?}")),
            }
        };
        eventually(leads).await;
        describe(&cluster.controller, &format!("round {round}")).await;
    }
    cluster.settle().await;
    let before = cluster_of(&cluster.controller).await;
    let term = |record: &_| number(record, "term") >= before.leader_term;
    record_that(&cluster.groups[0][0], term).await;

    // As the alarm says that is to be done: without the copies of what was.
    cluster.controller.process.kill();
    zookeeper.process.kill();
    restore(&backup, &zookeeper.data_dir());
    fs::remove_dir_all(cluster.controller.data_dir()).unwrap();
    zookeeper.restart().await;
    cluster.controller.restart();
    goes_on_above(&cluster, &before).await;
}

#[tokio::test]
async fn a_leader_that_hung_changes_nothing_at_the_servers() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let cluster = on_zookeeper(&zookeeper, 1).await;
    let server = &cluster.groups[0][0];
    let before = record_that(server, |record| record.len() == 4).await;
    cluster.controller.process.stop();
    let later = |record: &_| number(record, "term") > number(&before, "term");
    let after = record_that(server, later).await;
    cluster.controller.process.resume();
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        assert_eq!(record(server).await, after);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Commands that only tell about a server, and by which a connection is made known.
const HARMLESS: [&str; 9] = [
    "AUTH", "CLIENT", "CONFIG", "HELLO", "HMGET", "INFO", "PING", "ROLE", "TIME",
];

/// A slot move is under way when the leader dies. At each server, the first thing that the next one does is to
/// raise the term: until then nothing comes from it, on any connection, that does more than look.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_raises_the_term_at_each_server_before_it_does_anything_there() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let session = format!("{}s", SESSION.as_secs());
    let args = [
        "--zookeeper",
        &zookeeper.addr,
        "--zookeeper-session-timeout",
        &session,
    ];
    let cluster = Cluster::builder().groups(2).stand_bys(1);
    let mut cluster = cluster.controller_args(&args).start().await;
    for group in &cluster.groups {
        let fill = "for i = 1, 20000 do redis.call('SET', 'k' .. i, i) end return 1";
        let mut server = group[0].connect().await;
        let mut filling = redis::cmd("EVAL");
        let filled: u64 = filling
            .arg(fill)
            .arg(0)
            .query_async(&mut server)
            .await
            .unwrap();
        assert_eq!(filled, 1);
    }
    let request = v1::CreateMigrationRequest {
        id: "m1".to_owned(),
        slots: "0-511".to_owned(),
        target_group_id: "g2".to_owned(),
        rate: 200,
        ..v1::CreateMigrationRequest::default()
    };
    let mut admin = cluster.controller.admin().await;
    admin.create_migration(request).await.unwrap();
    enters(&cluster.controller, "m1", Phase::Copying).await;
    let term = cluster_of(&cluster.controller).await.leader_term;

    cluster.controller.process.kill();
    // What it has sent is done; another leads only when its session is over.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut seen = Vec::new();
    for group in &cluster.groups {
        seen.push(Raw::connect(&group[0].addr).await);
        assert_eq!(seen.last_mut().unwrap().command("MONITOR").await, "+OK");
    }
    for (monitor, group) in seen.iter_mut().zip(&cluster.groups) {
        let (mut raised, mut moved) = (false, false);
        let until = Instant::now() + 2 * SOON;
        while !moved {
            assert!(Instant::now() < until, "nothing was moved on");
            let Some(line) = monitor.reply_within(Duration::from_secs(1)).await else {
                continue;
            };
            let words: Vec<&str> = line.split('"').skip(1).step_by(2).collect();
            let command = words[0].to_ascii_uppercase();
            let is_script = line.contains(" lua]");
            if is_script && command == "HMSET" && words[1] == super::KEY {
                let to = words.iter().position(|word| *word == "term").unwrap();
                raised |= words[to + 1].parse::<u64>().unwrap() > term;
            } else if !raised {
                let is_raising = is_script || (command == "EVAL" && line.contains(super::KEY));
                let only_looks = HARMLESS.contains(&command.as_str());
                assert!(
                    is_raising || only_looks,
                    "before it has raised the term: {line}"
                );
                let closes = command == "CLIENT" && words[1].eq_ignore_ascii_case("KILL");
                assert!(!closes && !line.contains("sluice:mover"), "before: {line}");
            }
            moved = ["SCAN", "DUMP", "RESTORE"].contains(&command.as_str());
        }
        assert!(raised);
        let found = record(&group[0]).await;
        assert!(number(&found, "term") > term, "{found:?}");
    }
}
