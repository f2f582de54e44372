//! The leader is killed, and hangs, at each of its steps.

use controlplane::failpoint::Point;
use tests::{
    ZooKeeper,
    failover::{Blow, Stage},
};

use crate::report::Report;

const AREA: &str = "failover";

pub(crate) async fn run(seed: u64, report: &mut Report) {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    // One that something went wrong on is not used any more.
    let mut stage = None;
    let mut stages = 0;
    let mut trials: Vec<(Point, Blow)> = Point::ALL
        .iter()
        .flat_map(|point| [Blow::Kill, Blow::Hang].map(|blow| (*point, blow)))
        .collect();
    fastrand::Rng::with_seed(seed).shuffle(&mut trials);
    for (point, blow) in trials {
        let mut on = match stage.take() {
            Some(stage) => stage,
            None => {
                stages += 1;
                Stage::start(&zookeeper, &format!("stage-{stages}"), seed).await
            }
        };
        let case = format!("{} {blow:?}", point.name());
        let trial = async move {
            let (unserved, most) = (on.strike(point, blow).await, blow.most());
            assert!(
                unserved < most,
                "served by another after {unserved:?} only, not within {most:?}"
            );
            let measured = format!("served by another after {:.1} s", unserved.as_secs_f64());
            (on, measured)
        };
        stage = report.run(AREA, case, trial).await;
    }
    if let Some(stage) = stage {
        let end = async move { (stage.end().await, "linearizable".to_owned()) };
        report.run(AREA, "what clients saw".to_owned(), end).await;
    }
}
