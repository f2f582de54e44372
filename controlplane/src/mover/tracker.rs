//! The source tells which keys change: by tracking, or, before Redis 6, by keyspace events.
//!
//! Owns the connection on which it does. Every key of the copy's slots that it tells of goes to the lane whose
//! key it is, in the order in which it was told; so does each barrier: all that was told before a barrier
//! has reached a lane before the barrier does. It copies nothing.
//!
//! It also subscribes to a channel on which nothing is ever said: then the source counts it as a
//! subscriber, and closes it when too much waits for it (32 MiB by default), instead of throwing out
//! users' keys to make room. A lost connection is an interruption of the copy.
//!
//! A source tells in each of its turns, thousands of times a second; the tracker listens forty times, and is
//! woken no oftener ([`Link::rest`]), unless somebody waits for what it tells: to be woken for each would cost
//! more than the copy itself.
//!
//! What events do not tell is told in `events`.

use std::time::Duration;

use proto::SlotSet;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use super::{
    Interruption,
    dirty::Key,
    events,
    lane::{self, Notice},
    link::{Endpoint, Link, LinkError, Opener},
    reply::Reply,
    server::Server,
};

/// How long what is told gathers before it is listened to.
const REST: Duration = Duration::from_millis(25);
/// Bytes of keys that are passed on together, about, at most.
const MANY: usize = 64 << 10;

/// How a source tells which keys change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Telling {
    /// It tracks them.
    Tracking,
    /// By keyspace events: not of all changes.
    Events,
}

impl Telling {
    /// How this one does.
    pub(super) fn of(source: &Server) -> Self {
        if source.tracks() {
            Self::Tracking
        } else {
            Self::Events
        }
    }
}

/// What the key of a barrier begins with: the attempt's own, so that no other copy from this source is
/// taken for it, and a number behind it, so that no earlier one is.
pub(super) fn barrier_prefix(name: &str) -> String {
    format!("{{sluice}}:barrier:{name}:")
}

/// See the module.
pub(super) struct Tracker {
    link: Link,
    slots: SlotSet,
    lanes: Vec<mpsc::Sender<Notice>>,
    barrier: Vec<u8>,
    /// Whether what is told is waited for.
    hurry: watch::Receiver<bool>,
}

impl Tracker {
    /// Opens the connection. From its return on, no change is missed.
    pub(super) async fn open(
        opener: &Opener,
        source: &Endpoint,
        number: usize,
        slots: SlotSet,
        lanes: Vec<mpsc::Sender<Notice>>,
        barrier: String,
        hurry: watch::Receiver<bool>,
    ) -> Result<Self, LinkError> {
        let (mut link, is) = opener.open(source, number).await?;
        match Telling::of(&is) {
            Telling::Tracking => {
                link.demand("HELLO", &[b"HELLO", b"3"]).await?;
                // Last, so that no invalidation is taken for an answer.
                link.demand("SUBSCRIBE", &[b"SUBSCRIBE", b"{sluice}:mover"])
                    .await?;
                link.demand(
                    "CLIENT TRACKING",
                    &[b"CLIENT", b"TRACKING", b"ON", b"BCAST"],
                )
                .await?;
            }
            Telling::Events => {
                link.demand("PSUBSCRIBE", &[b"PSUBSCRIBE", events::PATTERN])
                    .await?;
                let (mut other, _) = opener.open(source, number).await?;
                events::turn_on(&mut other).await?;
            }
        }
        let barrier = barrier.into_bytes();
        Ok(Self {
            link,
            slots,
            lanes,
            barrier,
            hurry,
        })
    }

    /// Passes on what is told, until that cannot go on.
    pub(super) async fn follow(mut self) -> Interruption {
        loop {
            let heard = match self.hear().await {
                Ok(heard) => heard,
                Err(why) => return why,
            };
            if self.pass_on(heard).await.is_err() {
                return Interruption::LaneGone;
            }
            if *self.hurry.borrow() {
                continue;
            }
            let hurry = timeout(REST, self.hurry.wait_for(|hurry| *hurry));
            // Whichever comes first.
            self.link = match self.link.rest(async { drop(hurry.await) }).await {
                Ok(link) => link,
                Err(why) => return Interruption::TrackingLost(why),
            };
        }
    }

    /// Waits for a message, and takes those with it that have come, too: each that is passed on wakes a lane.
    async fn hear(&mut self) -> Result<Heard, Interruption> {
        let mut heard = Heard::of(self.lanes.len());
        loop {
            let reply = self.link.listen().await;
            match read(reply.map_err(Interruption::TrackingLost)?) {
                Told::Changed(keys) => heard.take(keys, &self.slots, &self.barrier),
                Told::Flushed => return Err(Interruption::SourceFlushed),
                Told::Other => {}
            }
            if heard.bytes >= MANY || heard.barrier.is_some() || !self.link.hears_more() {
                return Ok(heard);
            }
        }
    }

    /// The keys, and behind them the barrier.
    async fn pass_on(&self, heard: Heard) -> Result<(), mpsc::error::SendError<Notice>> {
        for (lane, keys) in self.lanes.iter().zip(heard.changed) {
            if !keys.is_empty() {
                lane.send(Notice::Changed(keys)).await?;
            }
        }
        if let Some(number) = heard.barrier {
            for lane in &self.lanes {
                lane.send(Notice::Barrier(number)).await?;
            }
        }
        Ok(())
    }
}

/// What was told and is not passed on yet.
struct Heard {
    /// Of each lane.
    changed: Vec<Vec<Key>>,
    /// Of how many bytes they are.
    bytes: usize,
    /// One that came with them: a message names the keys that changed in one turn of the server in no order, so
    /// all of them may be before it.
    barrier: Option<u64>,
}

impl Heard {
    /// Nothing, for so many lanes.
    fn of(lanes: usize) -> Self {
        Self {
            changed: vec![Vec::new(); lanes],
            bytes: 0,
            barrier: None,
        }
    }

    /// The keys of one message: those of the slots, and the barrier, which begins like this.
    fn take(&mut self, keys: Vec<Vec<u8>>, slots: &SlotSet, barrier: &[u8]) {
        for key in keys {
            if let Some(number) = key.strip_prefix(barrier) {
                let number = str::from_utf8(number).ok().and_then(|n| n.parse().ok());
                self.barrier = self.barrier.max(number);
            } else if slots.owns(&key) {
                let lane = lane::of(&key, self.changed.len());
                self.bytes += key.len();
                self.changed[lane].push(Key::from(key));
            }
        }
    }
}

/// What the source has told.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Changed(Vec<Vec<u8>>),
    /// A database, or all of them: it names no keys then.
    Flushed,
    /// Not of keys.
    Other,
}

fn read(reply: Reply) -> Told {
    let items = match reply {
        Reply::Push(items) => items,
        Reply::List(items) => return read_event(items),
        Reply::Nil | Reply::Integer(_) | Reply::Text(_) | Reply::Error(_) => return Told::Other,
    };
    let mut items = items.into_iter();
    match (items.next(), items.next()) {
        (Some(Reply::Text(kind)), Some(keys)) if kind == b"invalidate" => match keys {
            Reply::List(keys) => Told::Changed(
                keys.into_iter()
                    .filter_map(|key| match key {
                        Reply::Text(key) => Some(key),
                        Reply::Nil
                        | Reply::Integer(_)
                        | Reply::Error(_)
                        | Reply::List(_)
                        | Reply::Push(_) => None,
                    })
                    .collect(),
            ),
            // What is no list of keys stands for all of them.
            Reply::Nil | Reply::Integer(_) | Reply::Text(_) | Reply::Error(_) | Reply::Push(_) => {
                Told::Flushed
            }
        },
        _ => Told::Other,
    }
}

/// A message of a subscription to a pattern: what a keyspace event is.
fn read_event(items: Vec<Reply>) -> Told {
    match <[Reply; 4]>::try_from(items) {
        Ok([Reply::Text(kind), _, _, Reply::Text(key)]) if kind == b"pmessage" => {
            Told::Changed(vec![key])
        }
        _ => Told::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_heard_together() {
        let slots: SlotSet = proto::Slot::all().collect();
        let mut heard = Heard::of(2);
        let texts = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect();
        heard.take(texts(&["a", "barrier:7"]), &slots, b"barrier:");
        heard.take(texts(&["b", "a", "barrier:6"]), &slots, b"barrier:");
        heard.take(texts(&["c"]), &SlotSet::EMPTY, b"barrier:");
        assert_eq!((heard.bytes, heard.barrier), (3, Some(7)));
        for (lane, keys) in heard.changed.iter().enumerate() {
            assert!(keys.iter().all(|key| lane::of(key, 2) == lane));
        }
        // Each as often as it was told of, and nothing of other slots.
        let mut keys: Vec<Key> = heard.changed.concat();
        keys.sort();
        assert_eq!(keys, ["a", "a", "b"].map(|text| Key::from(text.as_bytes())));
    }

    #[test]
    fn what_is_told() {
        let text = |text: &str| Reply::Text(text.into());
        let keys = Reply::List(vec![text("a"), text("b")]);
        let invalidate = |keys| Reply::Push(vec![text("invalidate"), keys]);
        let changed = Told::Changed(vec![b"a".to_vec(), b"b".to_vec()]);
        assert_eq!(read(invalidate(keys)), changed);
        assert_eq!(read(invalidate(Reply::Nil)), Told::Flushed);
        let message = vec![text("message"), text("{sluice}:mover"), text("hm")];
        assert_eq!(read(Reply::Push(message)), Told::Other);
        assert_eq!(read(text("PONG")), Told::Other);
        let event = |kind| {
            let words = [kind, "__keyevent@*__:*", "__keyevent@0__:set", "a"];
            Reply::List(words.map(text).to_vec())
        };
        assert_eq!(read(event("pmessage")), Told::Changed(vec![b"a".to_vec()]));
        assert_eq!(read(event("message")), Told::Other);
        assert_eq!(read(Reply::List(vec![text("pmessage")])), Told::Other);
    }
}
