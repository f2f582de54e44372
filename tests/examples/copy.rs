//! How fast the keys of slots are copied between two servers on this machine: `cargo run --example copy`.
//!
//! 200,000 keys of 100 bytes, of which those of all slots are copied, without load.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a benchmark fails by panicking, and prints

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use controlplane::mover::{Copy, Endpoint, Mandate, Plan, Settle, Stage};
use proto::{ClusterId, MigrationId, ServerAddr, Slot, settled::Streams};
use redis::{cmd, pipe};
use tests::Server;
use tokio::time::Instant;

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
        let endpoint = |server: &Server| Endpoint {
            address: ServerAddr::new(server.addr.clone()).unwrap(),
            login: None,
        };
        let begun = Instant::now();
        let mut copy = Copy::begin(Plan {
            name: MigrationId::new("bench").unwrap(),
            mandate: Arc::new(Mandate {
                cluster: ClusterId::new("bench").unwrap(),
                term: 1,
                incarnation: "0f".repeat(16),
            }),
            source: endpoint(&source),
            target: endpoint(&target),
            slots: Slot::all().collect(),
            lanes: NonZeroUsize::new(lanes).unwrap(),
            patience: Duration::from_secs(10),
        });
        let mut progress = copy.progress();
        progress
            .wait_for(|p| p.stage == Stage::Copying)
            .await
            .unwrap();
        let cleaned = begun.elapsed();
        progress
            .wait_for(|p| p.stage == Stage::Following)
            .await
            .unwrap();
        let copied = begun.elapsed() - cleaned;
        let settle = Settle {
            slots: Slot::all().collect(),
            streams: Streams::These(Default::default()),
            budget: Duration::from_secs(10),
        };
        let evidence = copy.settle(settle).await.unwrap();
        let rate = KEYS as f64 / copied.as_secs_f64();
        println!(
            "{lanes} lanes: cleaned in {cleaned:?}, copied in {copied:?} ({rate:.0} keys/s), settled in {:?}",
            evidence.took
        );
    }
}
