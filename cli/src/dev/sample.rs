//! What `sluice dev` asks over RESP: whether a server is ready, a sample of keys, their number.

use std::time::Duration;

use anyhow::{Context as _, bail};
use redis::{AsyncConnectionConfig, Client, aio::MultiplexedConnection};

use super::ports::HOST;

const CONNECT_WITHIN: Duration = Duration::from_secs(2);
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Enough to make a round trip cheap, few enough to stay within any limit of requests in flight.
const PIPELINE: u64 = 500;

async fn connect(port: u16) -> anyhow::Result<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_WITHIN))
        .set_response_timeout(Some(ANSWER_WITHIN));
    let connection = Client::open(format!("redis://{HOST}:{port}"))?
        .get_multiplexed_async_connection_with_config(&config)
        .await?;
    Ok(connection)
}

/// Succeeds once something answers PING.
pub(super) async fn ping(port: u16) -> anyhow::Result<()> {
    let mut connection = connect(port).await?;
    let reply: String = redis::cmd("PING").query_async(&mut connection).await?;
    match reply.as_str() {
        "PONG" => Ok(()),
        other => bail!("PING was answered with {other:?}"),
    }
}

/// Succeeds once a replica has its primary's data.
pub(super) async fn synced(port: u16) -> anyhow::Result<()> {
    let mut connection = connect(port).await?;
    let info: String = redis::cmd("INFO")
        .arg("replication")
        .query_async(&mut connection)
        .await?;
    if info.contains("master_link_status:up") {
        Ok(())
    } else {
        bail!("the link to its primary is not up")
    }
}

/// Sets `user:1` to `user:<count>`.
pub(super) async fn load(port: u16, count: u64) -> anyhow::Result<()> {
    let mut connection = connect(port).await?;
    let mut first = 1;
    while first <= count {
        let last = count.min(first + PIPELINE - 1);
        let mut pipeline = redis::pipe();
        for n in first..=last {
            pipeline.set(key(n), value(n)).ignore();
        }
        pipeline
            .query_async::<()>(&mut connection)
            .await
            .with_context(|| format!("set keys {first} to {last}"))?;
        first = last + 1;
    }
    Ok(())
}

/// How many keys a server has.
pub(super) async fn key_count(port: u16) -> anyhow::Result<u64> {
    let mut connection = connect(port).await?;
    Ok(redis::cmd("DBSIZE").query_async(&mut connection).await?)
}

fn key(n: u64) -> String {
    format!("user:{n}")
}

fn value(n: u64) -> String {
    format!(r#"{{"id":{n},"name":"User {n}"}}"#)
}

#[cfg(test)]
mod tests {
    use proto::Slot;

    use super::*;

    /// The sample shows that keys spread: each half of the slots gets about half of them.
    #[test]
    fn the_sample_spreads() {
        let (low, high): (Vec<Slot>, Vec<Slot>) = (1..=1000)
            .map(|n| Slot::of_key(key(n).as_bytes()))
            .partition(|slot| slot.number() < 512);
        assert!((400..=600).contains(&low.len()), "{}", low.len());
        assert_eq!(low.len() + high.len(), 1000);
    }

    #[test]
    fn values_are_json() {
        let value: serde_json::Value = serde_json::from_str(&value(7)).unwrap();
        assert_eq!(value["id"], 7);
    }
}
