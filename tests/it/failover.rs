//! The leader falls at any of its steps; the stand-by ends what was begun, and no client notices. Here at
//! some steps; `make chaos` does it at all of them.

use controlplane::failpoint::Point;
use tests::{
    ZooKeeper,
    failover::{Blow, Stage},
};

/// One blow after the other, on a stage of their own.
async fn check(zookeeper: &ZooKeeper, name: &str, blow: Blow, points: &[Point]) {
    let mut stage = Stage::start(zookeeper, name, 21).await;
    for point in points {
        stage.strike(*point, blow).await;
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_falls_in_the_middle_of_its_work_and_nothing_is_lost_or_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let killed = [
        Point::MoveCommitted,
        Point::Clean,
        Point::GiveUpCommitted,
        Point::Admitted,
    ];
    let hung = [Point::MoveCommit, Point::GiveUpCommit, Point::AdmitRaised];
    tokio::join!(
        check(&zookeeper, "killed", Blow::Kill, &killed),
        check(&zookeeper, "hung", Blow::Hang, &hung),
    );
}

/// Those phases in which it does not fall above.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_is_killed_in_each_phase() {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let pending = Point::CopyCommit;
    let copying = Point::CopyBegun;
    let cutting_over = Point::Settled;
    let reaping = Point::Reap;
    let points = [pending, copying, cutting_over, reaping];
    check(&zookeeper, "phases", Blow::Kill, &points).await;
}
