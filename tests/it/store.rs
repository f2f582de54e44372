//! The contract of the store, put to both of them: a folder, and ZooKeeper. And what only one of them has.

use std::{path::Path, sync::Arc, time::Duration};

use controlplane::{
    backup,
    change::{self, Assignment, Change, Decision},
    embedded, ensemble,
    events::{Draft, Kind, Position},
    metrics::Metrics,
    model::{Group, REQUESTS_KEPT, Request, Role, Server},
    snapshot::Snapshot,
    store::{CommitError, Standing, Store, Writer},
    zookeeper::Place,
};
use proto::{GroupId, reason::Reason};
use tests::ZooKeeper;
use tokio::task::JoinSet;

/// A store that can be opened again.
struct Home<'a> {
    dir: &'a Path,
    /// `None`: the folder is the truth.
    zookeeper: Option<Place>,
}

impl Home<'_> {
    /// Opens it; returns once it leads.
    async fn open(&self) -> (Store, Writer) {
        let (dir, name) = (self.dir.to_owned(), "test".to_owned());
        let opened = match &self.zookeeper {
            None => embedded::open(dir, name, Metrics::new()).await,
            Some(place) => {
                let address = "127.0.0.1:1".to_owned();
                ensemble::open(place.clone(), address, dir, name, Metrics::new()).await
            }
        };
        let (store, writer) = opened.unwrap();
        let mut standing = store.standing();
        let leads = standing.wait_for(|now| *now == Standing::Leads);
        let leads = tokio::time::timeout(tests::SOON, leads).await;
        leads.expect("it must lead").unwrap();
        (store, writer)
    }
}

fn id(text: &str) -> GroupId {
    GroupId::new(text).unwrap()
}

fn group(name: &str, port: u16) -> Group {
    let server = Server {
        address: format!("127.0.0.1:{port}").parse().unwrap(),
        role: Role::Primary,
        zone: String::new(),
        run_id: format!("run-{port}"),
    };
    Group::new(id(name), String::new(), vec![server])
}

fn create(name: &'static str, port: u16) -> impl Fn(&Snapshot) -> Decision + Send + 'static {
    move |now| change::create_group(now, &group(name, port))
}

fn refusal(result: Result<Arc<Snapshot>, CommitError>) -> Reason {
    match result {
        Err(CommitError::Refused(refusal)) => refusal.reason,
        other => panic!("it must be refused: {other:?}"),
    }
}

async fn begins_empty_and_leads(home: &Home<'_>) {
    let (store, writer) = home.open().await;
    let now = store.snapshot();
    assert_eq!(now.version().to_string(), "1.1");
    assert!(now.groups.is_empty() && now.proxies.is_empty() && now.requests.is_empty());
    assert_eq!(now.cluster.name, "test");
    writer.close().await.unwrap();
}

async fn who_was_answered_reads_what_it_wrote(home: &Home<'_>) {
    let (store, writer) = home.open().await;
    let mut subscriber = store.subscribe();
    for port in 7000..7010 {
        let before = store.snapshot().head.revision;
        let create =
            move |now: &Snapshot| change::create_group(now, &group(&format!("g{port}"), port));
        let after = store.commit(create).await.unwrap();
        assert_eq!(after.head.revision, before + 1);
        assert_eq!(store.snapshot(), after);
        assert!(subscriber.has_changed().unwrap());
        assert_eq!(*subscriber.borrow_and_update(), after);
        assert_eq!(after.groups[&id(&format!("g{port}"))].revision, before + 1);
    }
    writer.close().await.unwrap();
}

async fn what_is_refused_or_changes_nothing_is_not_written(home: &Home<'_>) {
    let (store, writer) = home.open().await;
    let before = store.commit(create("g1", 7000)).await.unwrap();
    assert_eq!(
        refusal(store.commit(create("g1", 7001)).await),
        Reason::GroupExists
    );
    let same = |now: &Snapshot| change::update_group(now, &id("g1"), "", 0);
    assert_eq!(store.commit(same).await.unwrap(), before);
    assert_eq!(store.snapshot(), before);
    writer.close().await.unwrap();
}

async fn a_revision_that_is_not_expected_aborts(home: &Home<'_>) {
    let (store, writer) = home.open().await;
    let revision = store
        .commit(create("g1", 7000))
        .await
        .unwrap()
        .head
        .revision;
    let describe =
        |expected| move |now: &Snapshot| change::update_group(now, &id("g1"), "x", expected);
    let stale = store.commit(describe(revision - 1)).await;
    assert_eq!(refusal(stale), Reason::RevisionMismatch);
    store.commit(describe(revision)).await.unwrap();
    let stale = store.commit(describe(revision)).await;
    assert_eq!(refusal(stale), Reason::RevisionMismatch);
    writer.close().await.unwrap();
}

async fn decisions_are_taken_one_after_the_other(home: &Home<'_>) {
    let (store, writer) = home.open().await;
    store.commit(create("g1", 7000)).await.unwrap();
    let before = store.snapshot().head.revision;
    // Each adds a letter to what it finds.
    let add = |now: &Snapshot| {
        let text = format!("{}x", now.groups[&id("g1")].description);
        change::update_group(now, &id("g1"), &text, 0)
    };
    let mut commits = JoinSet::new();
    for _ in 0..40 {
        let store = store.clone();
        commits.spawn(async move { store.commit(add).await.unwrap().head.revision });
    }
    let mut revisions = commits.join_all().await;
    revisions.sort_unstable();
    assert_eq!(revisions, (before + 1..=before + 40).collect::<Vec<_>>());
    let now = store.snapshot();
    assert_eq!(now.groups[&id("g1")].description, "x".repeat(40));
    writer.close().await.unwrap();
}

fn request(id: &str, content: u32) -> Request {
    Request {
        id: id.to_owned(),
        content,
    }
}

async fn a_request_id_works_once_also_after_a_restart(home: &Home<'_>) {
    let once = |content| {
        move |now: &Snapshot| {
            change::once(now, &request("r1", content), |now| {
                change::create_group(now, &group("g1", 7000))
            })
        }
    };
    let (store, writer) = home.open().await;
    let after = store.commit(once(1)).await.unwrap();
    assert_eq!(store.commit(once(1)).await.unwrap(), after);
    writer.close().await.unwrap();
    let (store, writer) = home.open().await;
    let revision = store.snapshot().head.revision;
    assert_eq!(store.commit(once(1)).await.unwrap().head.revision, revision);
    assert_eq!(
        refusal(store.commit(once(2)).await),
        Reason::RequestIdReused
    );
    writer.close().await.unwrap();
}

async fn only_the_newest_request_ids_are_kept(home: &Home<'_>) {
    let (store, writer) = home.open().await;
    for number in 0..REQUESTS_KEPT + 3 {
        let decide = move |_: &Snapshot| {
            Ok(Change {
                request: Some(request(&number.to_string(), 0)),
                ..Change::default()
            })
        };
        store.commit(decide).await.unwrap();
    }
    let kept = store.snapshot();
    writer.close().await.unwrap();
    let (store, writer) = home.open().await;
    let now = store.snapshot();
    assert_eq!(now.requests, kept.requests);
    assert_eq!(now.requests.len(), REQUESTS_KEPT);
    assert!(now.request("2").is_none() && now.request("3").is_some());
    writer.close().await.unwrap();
}

async fn events_are_told_in_the_order_of_commits(home: &Home<'_>) {
    let (store, writer) = home.open().await;
    let log = store.events();
    let began = *log.subscribe().borrow();
    store.commit(create("g1", 7000)).await.unwrap();
    store.note(Draft::new("proxy/p1", Kind::ProxyConnected, "m"));
    store.commit(create("g2", 7001)).await.unwrap();
    let revision = store.snapshot().head.revision;
    let told = log.after(began, 99).unwrap();
    let kinds: Vec<(Kind, u64)> = told.iter().map(|e| (e.kind, e.revision)).collect();
    let (first, second) = (revision - 1, revision);
    assert_eq!(
        kinds,
        [
            (Kind::GroupCreated, first),
            (Kind::ServerCreated, first),
            (Kind::ProxyConnected, first),
            (Kind::GroupCreated, second),
            (Kind::ServerCreated, second),
        ]
    );
    let positions: Vec<Position> = told.iter().map(|e| e.position).collect();
    assert!(positions.is_sorted_by(|a, b| a < b), "{positions:?}");
    writer.close().await.unwrap();
}

async fn a_restart_keeps_everything_in_a_new_term(home: &Home<'_>) {
    let (store, writer) = home.open().await;
    store.commit(create("g1", 7000)).await.unwrap();
    store.commit(create("g2", 7001)).await.unwrap();
    let assign = |now: &Snapshot| change::assign_slots(now, &Assignment::Even, 0);
    let before = store.commit(assign).await.unwrap();
    let last = *store.events().subscribe().borrow();
    writer.close().await.unwrap();

    let (store, writer) = home.open().await;
    let now = store.snapshot();
    assert_eq!(now.head.leader_term, before.head.leader_term + 1);
    assert!(now.head.revision > before.head.revision);
    let records = |snapshot: &Snapshot| Snapshot {
        head: before.head,
        ..snapshot.clone()
    };
    assert_eq!(records(&now), *before);
    // No position is given twice.
    let newest = *store.events().subscribe().borrow();
    assert!(newest > last, "{newest:?} after {last:?}");
    writer.close().await.unwrap();
}

async fn what_is_restored_is_there_as_a_whole(home: &Home<'_>) {
    let (store, writer) = home.open().await;
    store.commit(create("g1", 7000)).await.unwrap();
    let file = backup::write(&store.snapshot(), 0);
    store.commit(create("g2", 7001)).await.unwrap();
    let restore = move |now: &Snapshot| {
        let terms = backup::Terms {
            replace: true,
            without_proxies: false,
            expected_revision: 0,
        };
        backup::restore(now, &backup::read(Some(&file))?, terms, false)
    };
    let before = store.snapshot().version();
    let after = store.commit(restore).await.unwrap();
    assert!(after.version() > before && after.head.leader_term > before.leader_term);
    let names: Vec<&str> = after.groups.keys().map(GroupId::as_str).collect();
    assert_eq!(names, ["g1"]);
    writer.close().await.unwrap();
    let (store, writer) = home.open().await;
    assert_eq!(store.snapshot().groups, after.groups);
    store.commit(create("g2", 7001)).await.unwrap();
    writer.close().await.unwrap();
}

async fn a_store_that_is_closed_takes_nothing(home: &Home<'_>) {
    let (store, writer) = home.open().await;
    let before = store.snapshot();
    writer.close().await.unwrap();
    let late = store.commit(create("g1", 7000)).await;
    assert!(matches!(late, Err(CommitError::Closed)), "{late:?}");
    assert_eq!(store.snapshot(), before);
}

/// Each in a home of its own.
async fn check_all(homes: impl Fn(&'static str) -> (std::path::PathBuf, Option<Place>)) {
    macro_rules! check {
        ($($name:ident)*) => {$({
            let (dir, zookeeper) = homes(stringify!($name));
            let home = Home { dir: &dir, zookeeper };
            let most = Duration::from_secs(120);
            let check = tokio::time::timeout(most, Box::pin($name(&home)));
            check.await.expect(stringify!($name));
        })*};
    }
    check! {
        begins_empty_and_leads
        who_was_answered_reads_what_it_wrote
        what_is_refused_or_changes_nothing_is_not_written
        a_revision_that_is_not_expected_aborts
        decisions_are_taken_one_after_the_other
        a_request_id_works_once_also_after_a_restart
        only_the_newest_request_ids_are_kept
        events_are_told_in_the_order_of_commits
        a_restart_keeps_everything_in_a_new_term
        what_is_restored_is_there_as_a_whole
        a_store_that_is_closed_takes_nothing
    }
}

#[tokio::test]
async fn a_folder_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    check_all(|name| (dir.path().join(name), None)).await;
}

#[tokio::test]
async fn zookeeper_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    check_all(|name| (dir.path().join(name), Some(place(&zookeeper, name)))).await;
}

fn place(zookeeper: &ZooKeeper, name: &str) -> Place {
    Place {
        servers: zookeeper.addr.clone(),
        root: format!("/{name}"),
        tls: None,
        auth: None,
        session_timeout: Duration::from_secs(2),
    }
}

/// A server of ZooKeeper closes the connection of who sends more than it takes, without a word.
#[tokio::test]
async fn what_is_too_large_for_zookeeper_is_refused_before_it_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let home = Home {
        dir: dir.path(),
        zookeeper: Some(place(&zookeeper, "large")),
    };
    let (store, writer) = home.open().await;
    store.commit(create("g1", 7000)).await.unwrap();
    let before = store.commit(create("g2", 7001)).await.unwrap();
    let mut standing = store.standing();
    standing.mark_unchanged();
    let describe = |name: &'static str, bytes: usize| {
        move |now: &Snapshot| change::update_group(now, &id(name), &"x".repeat(bytes), 0)
    };
    for bytes in [901 << 10, 1 << 20, 4 << 20] {
        match store.commit(describe("g1", bytes)).await {
            Err(CommitError::Refused(refusal)) => {
                assert_eq!(refusal.reason, Reason::InvalidField);
                let text = refusal.message;
                assert!(
                    text.contains("too large for one write to ZooKeeper"),
                    "{text}"
                );
            }
            other => panic!("{bytes} bytes must be refused: {other:?}"),
        }
        assert_eq!(store.snapshot(), before);
    }
    // Together they are more than fits into one write, and all is read at once.
    store.commit(describe("g1", 890 << 10)).await.unwrap();
    let after = store.commit(describe("g2", 890 << 10)).await.unwrap();
    assert_eq!(after.head.revision, before.head.revision + 2);
    assert_eq!(after.head.leader_term, before.head.leader_term);
    // A connection that was closed would have been noticed.
    assert!(!standing.has_changed().unwrap(), "{:?}", standing.borrow());
    writer.close().await.unwrap();
    let (store, writer) = home.open().await;
    assert_eq!(store.snapshot().groups, after.groups);
    writer.close().await.unwrap();
}
