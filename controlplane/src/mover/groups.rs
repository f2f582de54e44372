//! What a stream has besides its entries: its last id and counters, and its consumer groups.
//!
//! Re-created with commands, as a server does that rewrites its append-only file: each group with where it
//! has got to, its consumers, and what is pending for them since when and how often. What commands cannot
//! bring back is when a consumer was last heard of; and, at targets from Redis 7 on, what is pending of
//! entries that were deleted: they count it as acknowledged. How much that is goes into the log.

use super::{Interruption, pieces::Outcome, relay::Relay, reply::Reply, value::millis};

/// Pending entries that are read at once. Few, so that the source's clock does not move on meanwhile.
const PENDING: usize = 100;
/// How often a page of them is read again because the clock has moved on; then it is as good as a
/// millisecond.
const LOOKS: usize = 10;

/// A reply of `XINFO`: names, and what they stand for.
struct Fields(Vec<Reply>);

impl Fields {
    fn of(reply: Reply) -> Option<Self> {
        match reply {
            Reply::List(items) => Some(Self(items)),
            Reply::Nil | Reply::Integer(_) | Reply::Text(_) | Reply::Error(_) | Reply::Push(_) => {
                None
            }
        }
    }

    fn get(&self, name: &str) -> Option<&Reply> {
        let mut pairs = self.0.chunks(2);
        pairs.find_map(|pair| match pair {
            [Reply::Text(key), value] if key == name.as_bytes() => Some(value),
            _ => None,
        })
    }

    /// A text; empty if there is none.
    fn text(&self, name: &str) -> &[u8] {
        match self.get(name) {
            Some(Reply::Text(text)) => text,
            _ => b"",
        }
    }

    fn number(&self, name: &str) -> Option<i64> {
        match self.get(name) {
            Some(Reply::Integer(number)) => Some(*number),
            _ => None,
        }
    }
}

/// An entry that is pending.
#[derive(Debug, PartialEq, Eq)]
struct Pending {
    id: Vec<u8>,
    consumer: Vec<u8>,
    /// Milliseconds since it was delivered.
    idle: u64,
    deliveries: i64,
}

impl Pending {
    fn read(item: Reply) -> Option<Self> {
        let Reply::List(parts) = item else {
            return None;
        };
        match <[Reply; 4]>::try_from(parts) {
            Ok(
                [
                    Reply::Text(id),
                    Reply::Text(consumer),
                    Reply::Integer(idle),
                    Reply::Integer(n),
                ],
            ) => Some(Self {
                id,
                consumer,
                idle: u64::try_from(idle).unwrap_or(0),
                deliveries: n,
            }),
            _ => None,
        }
    }
}

/// The smallest id of a stream that is greater.
fn successor(id: &[u8]) -> Option<String> {
    let (millis, number) = std::str::from_utf8(id).ok()?.split_once('-')?;
    match number.parse::<u64>().ok()?.checked_add(1) {
        Some(number) => Some(format!("{millis}-{number}")),
        None => Some(format!("{}-0", millis.parse::<u64>().ok()?.checked_add(1)?)),
    }
}

impl Relay {
    /// Gives a stream at the target, that has the entries already, all else that the source's has. None:
    /// done; otherwise why not.
    pub(super) async fn dress_stream(
        &mut self,
        key: &[u8],
        at: &[u8],
    ) -> Result<Option<Outcome>, Interruption> {
        if !self.set_ids(key, at).await? {
            return Ok(Some(Outcome::Changed));
        }
        self.copy_groups(key, at).await
    }

    /// Queues what sets the last id and the counters of a stream at the target. Whether the source has one.
    async fn set_ids(&mut self, key: &[u8], at: &[u8]) -> Result<bool, Interruption> {
        let Some(info) = Fields::of(self.read(&[b"XINFO", b"STREAM", key]).await?) else {
            return Ok(false);
        };
        let added = info.number("entries-added").unwrap_or(0).to_string();
        let mut words: Vec<&[u8]> = vec![b"XSETID", at, info.text("last-generated-id")];
        if self.streams_count {
            words.extend([&b"ENTRIESADDED"[..], added.as_bytes(), b"MAXDELETEDID"]);
            words.push(info.text("max-deleted-entry-id"));
        }
        self.target.push(&words);
        Ok(true)
    }

    /// Makes what a stream at the target has besides its entries what it is at the source.
    pub(super) async fn regroup(&mut self, key: &[u8]) -> Result<Option<Outcome>, Interruption> {
        let there = self.target.ask(&[b"XINFO", b"GROUPS", key]).await;
        let Reply::List(groups) = there.map_err(Interruption::Target)? else {
            return Ok(Some(Outcome::Changed));
        };
        for group in groups.into_iter().filter_map(Fields::of) {
            self.target
                .push(&[b"XGROUP", b"DESTROY", key, group.text("name")]);
        }
        self.dress_stream(key, key).await
    }

    async fn copy_groups(
        &mut self,
        key: &[u8],
        at: &[u8],
    ) -> Result<Option<Outcome>, Interruption> {
        let Reply::List(groups) = self.read(&[b"XINFO", b"GROUPS", key]).await? else {
            return Ok(Some(Outcome::Changed));
        };
        for group in groups.into_iter().filter_map(Fields::of) {
            let name = group.text("name");
            let mut words: Vec<&[u8]> = vec![b"XGROUP", b"CREATE", at, name];
            words.push(group.text("last-delivered-id"));
            let read = group
                .number("entries-read")
                .map(|number| number.to_string());
            if let Some(read) = read.as_ref().filter(|_| self.streams_count) {
                words.extend([&b"ENTRIESREAD"[..], read.as_bytes()]);
            }
            self.target.push(&words);
            let Reply::List(consumers) = self.read(&[b"XINFO", b"CONSUMERS", key, name]).await?
            else {
                return Ok(Some(Outcome::Changed));
            };
            for consumer in consumers.into_iter().filter_map(Fields::of) {
                let consumer = consumer.text("name");
                self.target
                    .push(&[b"XGROUP", b"CREATECONSUMER", at, name, consumer]);
            }
            if let Some(outcome) = self.copy_pending(key, at, name).await? {
                return Ok(Some(outcome));
            }
        }
        let written = self.target.exchange().await.map_err(Interruption::Target)?;
        self.judge(written)
    }

    /// What is pending in a group, a page at a time.
    async fn copy_pending(
        &mut self,
        key: &[u8],
        at: &[u8],
        group: &[u8],
    ) -> Result<Option<Outcome>, Interruption> {
        let mut start = Some("-".to_owned());
        let mut unclaimed = 0;
        while let Some(from) = start {
            let (now, page) = self.pending(key, group, &from).await?;
            start = page.last().and_then(|last| successor(&last.id));
            for entry in page {
                let time = now.saturating_sub(entry.idle).to_string();
                let deliveries = entry.deliveries.to_string();
                self.target.push(&[
                    b"XCLAIM",
                    at,
                    group,
                    &entry.consumer,
                    b"0",
                    &entry.id,
                    b"TIME",
                    time.as_bytes(),
                    b"RETRYCOUNT",
                    deliveries.as_bytes(),
                    b"FORCE",
                    b"JUSTID",
                ]);
            }
            let written = self.target.exchange().await.map_err(Interruption::Target)?;
            // Nothing else that was asked is answered by a list: of what was claimed.
            let is_nothing = |reply: &&Reply| matches!(reply, Reply::List(ids) if ids.is_empty());
            unclaimed += written.iter().filter(is_nothing).count();
            if let Some(outcome) = self.judge(written)? {
                return Ok(Some(outcome));
            }
        }
        if unclaimed > 0 {
            tracing::warn!(
                entries = unclaimed,
                "what is pending of deleted entries cannot be copied, and counts as acknowledged"
            );
        }
        Ok(None)
    }

    /// A page of what is pending, and the source's time by which it is told how long.
    async fn pending(
        &mut self,
        key: &[u8],
        group: &[u8],
        from: &str,
    ) -> Result<(u64, Vec<Pending>), Interruption> {
        let count = PENDING.to_string();
        let mut looks = 0;
        loop {
            looks += 1;
            self.source.push(&[b"TIME"]);
            let words: [&[u8]; 6] = [
                b"XPENDING",
                key,
                group,
                from.as_bytes(),
                b"+",
                count.as_bytes(),
            ];
            self.source.push(&words);
            self.source.push(&[b"TIME"]);
            let replies = self.source.exchange().await.map_err(Interruption::Source)?;
            let [before, page, after] = <[Reply; 3]>::try_from(replies).expect("three were asked");
            let (before, after) = (millis(&before), millis(&after));
            if before != after && looks < LOOKS {
                continue;
            }
            let items = match page {
                Reply::List(items) => items,
                // The group is gone: it has changed, and whoever asked hears of it.
                _ => Vec::new(),
            };
            let page = items.into_iter().filter_map(Pending::read).collect();
            return Ok((after.unwrap_or(0), page));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_successors() {
        for (id, next) in [
            ("1-1", Some("1-2")),
            ("7-18446744073709551615", Some("8-0")),
            ("18446744073709551615-18446744073709551615", None),
            ("x", None),
        ] {
            assert_eq!(successor(id.as_bytes()).as_deref(), next, "{id}");
        }
    }

    #[test]
    fn what_is_pending() {
        let text = |text: &str| Reply::Text(text.into());
        let (idle, deliveries) = (Reply::Integer(50), Reply::Integer(2));
        let item = Reply::List(vec![text("1-1"), text("c"), idle, deliveries]);
        let pending = Pending {
            id: b"1-1".to_vec(),
            consumer: b"c".to_vec(),
            idle: 50,
            deliveries: 2,
        };
        assert_eq!(Pending::read(item), Some(pending));
        assert_eq!(Pending::read(text("x")), None);
    }
}
