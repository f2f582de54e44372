//! A real cluster for a test: `redis-server`, `sluice-controller` and `sluice-proxy` processes on free
//! ports, started in a few hundred milliseconds and gone when the value is dropped.
//!
//! ```no_run
//! # async fn f() {
//! let cluster = tests::Cluster::builder().groups(2).proxies(2).start().await;
//! let mut client = cluster.proxies[0].connect().await;
//! # }
//! ```
//!
//! What cannot be started is a panic: the test fails and says why. The logs of a failed test's
//! processes are printed.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // a test fails by panicking

pub mod absence;
pub mod authority;
pub mod chaos;
pub mod cluster;
pub mod disk;
pub mod failover;
pub mod fleet;
pub mod fuzz;
pub mod history;
pub mod load;
pub mod migration;
pub mod operator;
pub mod process;
pub mod raw;
pub mod relay;
pub mod rotation;
pub mod scene;
pub mod scripted;
pub mod spoil;
pub mod standstill;
pub mod workload;
pub mod zookeeper;

pub use authority::{Authority, IdentityFiles, SecureZooKeeper};
pub use cluster::{Builder, Cluster, Controller, Edges, Proxy, Server, sluice};
pub use fleet::Fleet;
pub use load::Load;
pub use process::{Process, Program, binary, free_port, other_server};
pub use raw::Raw;
pub use relay::{Fault, Relay};
pub use scene::Scene;
pub use scripted::ScriptedController;
pub use workload::{Report, Workload};
pub use zookeeper::{Ensemble, ZooKeeper};

use std::time::Duration;

use tokio::time::Instant;

/// How long anything may take that is expected to happen. Generous: the machine may be busy.
pub const SOON: Duration = Duration::from_secs(20);

/// Asks again and again until the answer is `Ok`; panics with the last error after [`SOON`].
pub async fn eventually<T, F: Future<Output = Result<T, String>>>(ask: impl FnMut() -> F) -> T {
    within(SOON, ask).await
}

/// The same, with more patience, or less.
pub async fn within<T, F: Future<Output = Result<T, String>>>(
    most: Duration,
    mut ask: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + most;
    loop {
        match ask().await {
            Ok(value) => return value,
            Err(why) if Instant::now() > deadline => panic!("not within {most:?}: {why}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
