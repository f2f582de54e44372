//! How long a server keeps others waiting.

use std::time::Duration;

use redis::{Value, aio::MultiplexedConnection, cmd};
use tests::Server;
use tokio::{
    task::JoinHandle,
    time::{self, Instant},
};

/// Asks a server for nothing, again and again.
pub(super) struct Probe {
    task: JoinHandle<()>,
    longest: tokio::sync::watch::Receiver<Duration>,
    link: MultiplexedConnection,
}

impl Probe {
    /// Begins to ask; the server writes down from now on what takes it long.
    pub(super) async fn start(server: &Server) -> Self {
        let mut link = server.connect().await;
        for words in [
            &["CONFIG", "SET", "slowlog-log-slower-than", "1000"][..],
            &["CONFIG", "SET", "slowlog-max-len", "1000"],
            &["SLOWLOG", "RESET"],
        ] {
            let _done: Value = cmd(words[0])
                .arg(&words[1..])
                .query_async(&mut link)
                .await
                .unwrap();
        }
        let (tell, longest) = tokio::sync::watch::channel(Duration::ZERO);
        let mut asked = server.connect().await;
        let task = tokio::spawn(async move {
            loop {
                let begun = Instant::now();
                let _pong: Value = cmd("PING").query_async(&mut asked).await.unwrap();
                let took = begun.elapsed();
                tell.send_if_modified(|longest| {
                    std::mem::replace(longest, took.max(*longest)) < took
                });
                time::sleep(Duration::from_millis(1)).await;
            }
        });
        Self {
            task,
            longest,
            link,
        }
    }

    /// The longest that an answer took, and the longest that one command kept the server busy, with its
    /// name.
    pub(super) async fn end(mut self) -> (Duration, Duration, String) {
        self.task.abort();
        let entries: Vec<Value> = cmd("SLOWLOG")
            .arg("GET")
            .arg(1000)
            .query_async(&mut self.link)
            .await
            .unwrap();
        let read = |entry: Value| match entry {
            Value::Array(fields) => match (&fields[2], &fields[3]) {
                (Value::Int(micros), Value::Array(words)) => (
                    Duration::from_micros(*micros as u64),
                    format!("{:?}", words.first()),
                ),
                other => panic!("no entry: {other:?}"),
            },
            other => panic!("no entry: {other:?}"),
        };
        let slowest = entries.into_iter().map(read).max();
        let (busy, command) = slowest.unwrap_or_default();
        (*self.longest.borrow(), busy, command)
    }
}
