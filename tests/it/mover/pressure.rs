//! A copy whose target is short of memory and throws keys out, and one whose source is short of time.

use std::{
    convert::Infallible,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use controlplane::mover::{Copy, Throttle};
use redis::{aio::MultiplexedConnection, pipe};
use tokio::time;

use super::{
    calls, fill, run,
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

/// A target is emptied by large pages where nobody uses it, and by small ones among clients.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_is_emptied_as_its_clients_bear_it() {
    let stand = Stand::start().await;
    let (mut target, mut client) = (stand.target.connect().await, stand.target.connect().await);
    let mut pages = async |lone: bool| {
        fill(&mut target, 20_000).await;
        let before = calls(&mut target, "scan").await;
        let copied = stand.copied(all());
        let copy = match lone {
            true => copied.await,
            false => tokio::select! {
                copy = copied => copy,
                never = use_all_the_time(&mut client) => match never {},
            },
        };
        let after = calls(&mut target, "scan").await;
        drop(copy);
        assert_eq!(stand.must_be_equal(&all()).await, 0);
        after - before
    };
    // Of 512 keys each, or of 64.
    let (alone, among_clients) = (pages(true).await, pages(false).await);
    assert!((39..=45).contains(&alone), "{alone}");
    assert!((300..=350).contains(&among_clients), "{among_clients}");
}

/// Uses a server like a client, a few thousand times a second.
async fn use_all_the_time(link: &mut MultiplexedConnection) -> Infallible {
    loop {
        run(link, "PING").await;
    }
}
