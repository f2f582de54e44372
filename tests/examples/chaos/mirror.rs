//! Files of a controller's mirror are cut short, and bits in them flipped.

use tests::spoil::Sample;

use crate::report::Report;

const FLIPS: usize = 10_000;

pub(crate) async fn run(seed: u64, report: &mut Report) {
    let cut = async {
        let (refused, taken) = Sample::mirror(200).await.cut();
        ((), format!("{refused} refused, {taken} whole"))
    };
    report
        .run("mirror", "cut at each 4 KiB".to_owned(), cut)
        .await;
    let flip = async move {
        let (refused, taken) = Sample::mirror(200).await.flip(seed, FLIPS);
        ((), format!("{refused} refused, {taken} whole"))
    };
    report
        .run("mirror", format!("{FLIPS} bits flipped"), flip)
        .await;
}
