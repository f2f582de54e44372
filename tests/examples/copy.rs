//! How fast the keys of slots are copied between two servers on this machine: `cargo run --example copy`.
//!
//! 200,000 keys of 100 bytes, of which those of all slots are copied, without load; then big values, at last one
//! that is written all the time, and not while it is settled.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a benchmark fails by panicking, and prints

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use controlplane::mover::{Copy, Endpoint, Mandate, Plan, Progress, Settle, Stage};
use proto::{ClusterId, MigrationId, ServerAddr, Slot, settled::Streams};
use redis::{cmd, pipe};
use tests::Server;
use tokio::time::{Instant, sleep};

const KEYS: usize = 200_000;

#[tokio::main]
async fn main() {
    let dir = tempfile::tempdir().unwrap();
    let source = Server::start(dir.path(), "source", &[]);
    let target = Server::start(dir.path(), "target", &[]);
    for server in [&source, &target] {
        server.answers().await;
        let mut link = server.connect().await;
        let info: String = cmd("INFO")
            .arg("server")
            .query_async(&mut link)
            .await
            .unwrap();
        let run_id = info
            .lines()
            .find_map(|line| line.strip_prefix("run_id:"))
            .unwrap();
        let record = [
            "cluster",
            "bench",
            "term",
            "1",
            "epoch",
            "1",
            "run_id",
            run_id.trim(),
        ];
        let mut write = cmd("HSET");
        write.arg("{sluice}:fence").arg(&record);
        write.query_async::<()>(&mut link).await.unwrap();
    }
    let mut link = source.connect().await;
    let value = "v".repeat(100);
    for first in (0..KEYS).step_by(1000) {
        let mut pipe = pipe();
        for n in first..first + 1000 {
            pipe.cmd("SET").arg(format!("key:{n}")).arg(&value).ignore();
        }
        pipe.query_async::<()>(&mut link).await.unwrap();
    }
    for lanes in [1, 2, 4, 8] {
        let (copied, settled) = copy(&source, &target, lanes).await;
        let rate = KEYS as f64 / copied.as_secs_f64();
        println!("{lanes} lanes: {rate:.0} keys/s, settled in {settled:?}");
    }
    for (name, script) in [
        (
            "a string of 64 MiB",
            "redis.call('SETRANGE', KEYS[1], 67108863, 'x')",
        ),
        (
            "a zset of 500,000",
            "for n = 1, 500000 do redis.call('ZADD', KEYS[1], n, 'member:' .. n) end",
        ),
    ] {
        let mut drop_others = cmd("EVAL");
        drop_others.arg(format!(
            "for _, key in ipairs(redis.call('KEYS', '[^{{]*')) do redis.call('UNLINK', key) end {script}"
        ));
        drop_others
            .arg(1)
            .arg("big")
            .exec_async(&mut link)
            .await
            .unwrap();
        let (copied, settled) = copy(&source, &target, 2).await;
        println!("{name}: {copied:?}, settled in {settled:?}");
    }
    let mut copy = begin(&source, &target, 2);
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..5 {
        let mut written = 0;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            let mut write = cmd("ZADD");
            let member = format!("member:{}", random.u32(1..510_000));
            write.arg("big").arg(random.u32(..500_000)).arg(member);
            write.exec_async(&mut link).await.unwrap();
            written += 1;
            sleep(Duration::from_millis(1)).await;
        }
        let took = settle(&mut copy).await;
        println!("written {written} times in 5 s, settled in {took:?}");
        copy.reopen(Slot::all().collect()).await;
    }
}

/// Copies all slots; how long that took, big values included, and how long it took to settle them.
async fn copy(source: &Server, target: &Server, lanes: usize) -> (Duration, Duration) {
    let mut copy = begin(source, target, lanes);
    let mut progress = copy.progress();
    progress
        .wait_for(|p| p.stage == Stage::Copying)
        .await
        .unwrap();
    let begun = Instant::now();
    let is_copied = |p: &Progress| {
        p.stage == Stage::Following && p.uncopied.is_empty() && p.big == 0 && p.dirty == 0
    };
    progress.wait_for(is_copied).await.unwrap();
    let copied = begun.elapsed();
    (copied, settle(&mut copy).await)
}

/// Settles all slots; how long that took.
async fn settle(copy: &mut Copy) -> Duration {
    let settle = Settle {
        slots: Slot::all().collect(),
        streams: Streams::These(Default::default()),
        budget: Duration::from_secs(10),
    };
    copy.settle(settle).await.unwrap().took
}

fn begin(source: &Server, target: &Server, lanes: usize) -> Copy {
    let endpoint = |server: &Server| Endpoint {
        address: ServerAddr::new(server.addr.clone()).unwrap(),
        login: None,
    };
    Copy::begin(Plan {
        name: MigrationId::new("bench").unwrap(),
        mandate: Arc::new(Mandate {
            cluster: ClusterId::new("bench").unwrap(),
            term: 1,
            incarnation: "0f".repeat(16),
        }),
        source: endpoint(source),
        target: endpoint(target),
        slots: Slot::all().collect(),
        lanes: NonZeroUsize::new(lanes).unwrap(),
        patience: Duration::from_secs(10),
    })
}
