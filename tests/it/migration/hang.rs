//! A proxy that hangs in the midst of a cut-over: the move goes on without it, and when it wakes up it serves
//! nothing stale.

use controlplane::failpoint::Point;
use proto::v1::{self, migration::Phase};
use tests::{
    Cluster, Controller, Program, Raw, Server,
    migration::{MOVED, assert_keys_are_at_their_owners, create, enters, get},
    within,
};

/// One batch, in which `foo` is.
const SLOTS: &str = "256-319";

/// What a client reads and writes, in one slot.
const KEY: &str = "foo";
const OTHER: &str = "{foo}late";

/// Has the leader stop itself at a step of the next move.
pub(super) async fn rig(cluster: &mut Cluster, point: Point) {
    let falls = format!("{}=1*return(stop)", point.name());
    cluster.controller.process.kill();
    let program = Program::with_failpoints(&falls);
    cluster.controller.restart_as(&program);
    cluster.settle().await;
}

/// Returns once it has.
pub(super) async fn is_stopped(cluster: &Cluster, point: Point) {
    within(MOVED, || async {
        match cluster.controller.process.is_running() {
            true => Err(format!("{point:?} is not reached")),
            false => Ok(()),
        }
    })
    .await;
}

/// Whether a proxy has connections at a server.
async fn uses(cluster: &Cluster, proxy: &str, server: &Server) -> bool {
    let mut admin = cluster.controller.admin().await;
    let request = v1::GetProxyRequest {
        id: proxy.to_owned(),
    };
    let proxy = admin.get_proxy(request).await.unwrap().into_inner();
    let list = Raw::connect(&server.addr)
        .await
        .command("CLIENT LIST")
        .await;
    list.contains(&format!("sluice:proxy:{}:", proxy.incarnation))
}

/// Whether `sluice migration get` says that it is waited for the third proxy, before the move is over.
async fn is_awaited(controller: &Controller, id: &str) -> bool {
    within(MOVED, || async {
        let (done, said) = controller.sluice(&["migration", "get", id]);
        if done && said.contains("waiting for proxy p3 to ack epoch ") {
            return Ok(true);
        }
        match said.contains("SUCCEEDED") {
            true => Ok(false),
            false => Err(said),
        }
    })
    .await
}

async fn set(raw: &mut Raw, value: &str) {
    assert_eq!(raw.command(&format!("SET {KEY} {value}")).await, "+OK");
}

/// What was seen of the proxy while it hung.
struct Seen {
    /// Its connections at the source were closed.
    fenced: bool,
    /// It was waited for, in words.
    awaited: bool,
}

/// The third proxy hangs from when the leader is at this step, until the slots have moved.
async fn hangs(cluster: &mut Cluster, point: Point, target: &str) -> Seen {
    rig(cluster, point).await;
    let mut client = cluster.proxies[0].raw().await;
    let mut of_hanging = cluster.proxies[2].raw().await;
    set(&mut client, "before").await;
    let read = format!("GET {KEY}");
    assert_eq!(of_hanging.command(&read).await, "$6 before");
    let source = 2 - target[1..].parse::<usize>().unwrap();
    assert!(uses(cluster, "p3", &cluster.groups[source][0]).await);

    let id = create(&cluster.controller, SLOTS, target).await.id;
    is_stopped(cluster, point).await;
    let hanging = &cluster.proxies[2].process;
    hanging.stop();
    cluster.controller.process.resume();
    let awaited = is_awaited(&cluster.controller, &id).await;
    within(MOVED, || async {
        let migration = get(&cluster.controller, &id).await?;
        let has_moved = migration.moved_slots == SLOTS;
        has_moved
            .then_some(())
            .ok_or_else(|| format!("{migration:?}"))
    })
    .await;
    let fenced = !uses(cluster, "p3", &cluster.groups[source][0]).await;
    set(&mut client, "after").await;

    // They are there when it wakes up, before it hears of anything.
    let late = [["GET", KEY].as_slice(), &["SET", OTHER, &id]];
    let late = late.map(|words| words.iter().map(|&word| word.to_owned()).collect());
    of_hanging.pipeline(&late).await;
    hanging.resume();
    let answers = [of_hanging.reply().await, of_hanging.reply().await];
    let fresh = answers[0] == "$5 after" || answers[0].starts_with('-');
    assert!(fresh, "{point:?}: {answers:?}");
    if answers[1] == "+OK" {
        let read = client.command(&format!("GET {OTHER}")).await;
        assert_eq!(read, format!("${} {id}", id.len()), "{point:?}");
    }
    enters(&cluster.controller, &id, Phase::Succeeded).await;
    cluster.settle().await;
    let mut new = cluster.proxies[2].raw().await;
    assert_eq!(new.command(&read).await, "$5 after");
    set(&mut new, "again").await;
    assert_eq!(client.command(&read).await, "$5 again");
    Seen { fenced, awaited }
}

/// Has it hang there until it has not heard of what comes next: on a busy machine the leader stops a little late.
async fn check(cluster: &mut Cluster, groups: &mut [&str; 2], point: Point, fenced: bool) {
    for _ in 0..8 {
        let seen = hangs(cluster, point, groups[1]).await;
        groups.swap(0, 1);
        if seen.awaited && (seen.fenced || !fenced) {
            return;
        }
    }
    panic!("at {point:?} nobody has waited for it, or fenced it out");
}

#[tokio::test]
async fn a_proxy_that_hangs_in_a_cut_over_serves_nothing_stale() {
    let mut cluster = Cluster::builder().groups(2).proxies(3).start().await;
    let mut groups = ["g1", "g2"];
    // It has not heard of the hold.
    check(&mut cluster, &mut groups, Point::HoldCommit, true).await;
    // It holds, and has said that all is answered.
    check(&mut cluster, &mut groups, Point::Settle, false).await;
    // It holds when the slots are given away, and hears of that when it wakes up.
    check(&mut cluster, &mut groups, Point::MoveCommit, false).await;
    assert_keys_are_at_their_owners(&cluster).await;
}
