//! Many proxies at one controller: what they cost, and how soon they are back when it was killed.

use tests::fleet;

use crate::report::Report;

pub(crate) async fn run(report: &mut Report) {
    for count in [200, 1000] {
        let trial = async move {
            let measured = fleet::measure(count).await;
            let [first, second] = measured.back.map(|took| took.as_secs_f64());
            if count == 200 {
                assert!(measured.best() < fleet::BACK, "{measured:?}");
            }
            let text = format!(
                "joined within {:.1} s, back within {first:.1} s and {second:.1} s; the controller has {} MiB without \
                 them, {} KiB each more",
                measured.joined.as_secs_f64(),
                measured.alone >> 20,
                measured.each >> 10,
            );
            ((), text)
        };
        report.run("fleet", format!("{count} proxies"), trial).await;
    }
}
