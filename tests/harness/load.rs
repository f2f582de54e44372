//! Clients that never stop: each writes and reads keys of its own, and checks every reply.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use redis::aio::MultiplexedConnection;
use tokio::task::JoinSet;

/// Load that runs until it is stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
    clients: JoinSet<Vec<String>>,
}

impl Load {
    /// Starts a client on each connection. Of all keys, `wanted` says which to use.
    pub fn start(
        connections: Vec<MultiplexedConnection>,
        wanted: impl Fn(&str) -> bool + Clone + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let requests = Arc::new(AtomicU64::new(0));
        let mut clients = JoinSet::new();
        for (client, connection) in connections.into_iter().enumerate() {
            let (stop, requests, wanted) = (stop.clone(), requests.clone(), wanted.clone());
            clients.spawn(async move {
                let keys = (0..)
                    .map(|n| format!("load:{client}:{n}"))
                    .filter(|key| wanted(key));
                run(connection, keys.take(100).collect(), &stop, &requests).await
            });
        }
        Self {
            stop,
            requests,
            clients,
        }
    }

    /// Requests answered so far, rightly or not.
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Waits until so many more requests have been answered.
    pub async fn advance(&self, more: u64) {
        let goal = self.requests() + more;
        crate::eventually(|| async {
            if self.requests() >= goal {
                Ok(())
            } else {
                Err("the load stands still".to_owned())
            }
        })
        .await;
    }

    /// Stops; what went wrong.
    pub async fn stop(mut self) -> Vec<String> {
        self.stop.store(true, Relaxed);
        let mut errors = Vec::new();
        while let Some(client) = self.clients.join_next().await {
            errors.extend(client.unwrap());
        }
        errors
    }
}

async fn run(
    mut connection: MultiplexedConnection,
    keys: Vec<String>,
    stop: &AtomicBool,
    requests: &AtomicU64,
) -> Vec<String> {
    let mut errors = Vec::new();
    for round in 0u64.. {
        if stop.load(Relaxed) {
            break;
        }
        let value = format!("{round}");
        let mut pipeline = redis::pipe();
        for key in &keys {
            pipeline.set(key, &value).ignore().get(key);
        }
        let expected = vec![value; keys.len()];
        match pipeline.query_async::<Vec<String>>(&mut connection).await {
            Ok(got) if got == expected => {}
            Ok(got) => errors.push(format!("round {round}: got {got:?}")),
            Err(e) => {
                errors.push(format!("round {round}: {e}"));
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
        requests.fetch_add(2 * keys.len() as u64, Relaxed);
    }
    errors
}
