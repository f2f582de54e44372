//! Two hundred proxies at one controller: what they cost, and how soon they are back when it was killed.

use tests::fleet;

#[tokio::test(flavor = "multi_thread")]
async fn all_are_back_soon_after_their_controller_was_killed() {
    let measured = fleet::measure(200).await;
    assert!(measured.best() < fleet::BACK, "{measured:?}");
    assert!(measured.each < 512 << 10, "{measured:?}");
}
