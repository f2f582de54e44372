//! A copy whose target is short of memory and throws keys out, and one whose source is short of time.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use controlplane::mover::{Copy, Throttle};
use redis::pipe;
use tokio::time;

use super::{
    fill, run,
    stand::{Stand, all, follows, reaches, settle_at_last},
};

/// What was staged may be gone: nothing of that copy is believed.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_evicts_starts_the_copy_over() {
    let stand = Stand::start().await;
    let (mut source, mut target) = (stand.source.connect().await, stand.target.connect().await);
    let value = "v".repeat(1000);
    let mut fill = pipe();
    for n in 0..3000 {
        // With an expiry they can be evicted, and the fence record cannot.
        fill.cmd("SET")
            .arg(format!("k{n}"))
            .arg(&value)
            .arg("EX")
            .arg(3600)
            .ignore();
    }
    let _: () = fill.query_async(&mut source).await.unwrap();
    run(&mut target, "CONFIG SET maxmemory-policy volatile-ttl").await;
    run(&mut target, "CONFIG SET maxmemory 3mb").await;
    let mut copy = Copy::begin(stand.plan(all()));
    let evicted = |why: &str| why == "the target has evicted keys for want of memory";
    reaches(&copy, |p| p.interruption.as_deref().is_some_and(evicted)).await;
    run(&mut target, "CONFIG SET maxmemory 0").await;
    settle_at_last(&mut copy, &all()).await;
    assert_eq!(stand.must_be_equal(&all()).await, 3000);
    assert!(copy.progress().borrow().attempt > 1);
}

/// A copy takes less and less of a source that answers late, and all again of one that is well.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_eases_off_while_its_source_is_slow() {
    let stand = Stand::start().await;
    fill(&mut stand.source.connect().await, 4000).await;
    let copy = Copy::begin(stand.plan(all()));
    copy.throttle(Throttle {
        rate: NonZeroU32::new(100), // so that it lasts
        ..Throttle::default()
    });
    let well = |share: u8| share >= 90;
    reaches(&copy, |p| p.keys > 0 && well(p.share_percent)).await;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let hangs = async {
        while !stopped.load(Relaxed) {
            stand.source.process.stop();
            time::sleep(Duration::from_millis(40)).await;
            stand.source.process.resume();
            time::sleep(Duration::from_millis(10)).await;
        }
    };
    let eases = async {
        let eased = reaches(&copy, |p| p.share_percent <= 15).await;
        stop.store(true, Relaxed);
        eased
    };
    let ((), eased) = tokio::join!(hangs, eases);
    reaches(&copy, |p| well(p.share_percent)).await;
    copy.throttle(Throttle::default());
    follows(&copy).await;
    assert!(eased.keys < copy.progress().borrow().keys);
    assert_eq!(copy.progress().borrow().attempt, 1);
}
