//! Certificates and their authorities change every five seconds, under load.

use std::time::Duration;

use tests::rotation;

use crate::report::Report;

const EVERY: Duration = Duration::from_secs(5);

pub(crate) async fn run(time: Duration, report: &mut Report) {
    let trial = async move {
        let rotated = Box::pin(rotation::under_load(time, EVERY)).await;
        let (rotations, answered) = (rotated.rotations, rotated.answered);
        let measured = format!("{rotations} rotations, {answered} requests answered, no error");
        ((), measured)
    };
    report.run("certificates", format!("{time:?}"), trial).await;
}
