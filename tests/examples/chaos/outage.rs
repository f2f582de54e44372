//! ZooKeeper is away for five minutes.

use std::time::Duration;

use tests::absence;

use crate::report::Report;

pub(crate) async fn run(report: &mut Report) {
    let trial = async {
        let answered = absence::of_zookeeper(Duration::from_secs(300)).await;
        (
            (),
            format!("{answered} requests answered meanwhile, no error"),
        )
    };
    report.run("outage", "five minutes".to_owned(), trial).await;
}
