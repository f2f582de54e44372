//! Goes through all keys of a server.
//!
//! A stock server has no index by slot: all keys are looked at, and those of the slots are kept. So one
//! pass serves all slots of a migration.

use std::{collections::BTreeSet, sync::Arc};

use proto::SlotSet;
use tokio::sync::mpsc;

use super::{
    Interruption,
    dirty::Key,
    lane::{self, Found},
    link::{Link, LinkError},
    pace::Pace,
    reply::Reply,
    report::Report,
};

/// A walk through one database.
pub(super) struct Walk {
    /// `None`: it has come round.
    cursor: Option<Vec<u8>>,
}

impl Walk {
    /// From the beginning.
    pub(super) fn new() -> Self {
        let cursor = Some(b"0".to_vec());
        Self { cursor }
    }

    /// From a place in the server's table, whatever that is.
    pub(super) fn at(place: u64) -> Self {
        let cursor = Some(place.to_string().into_bytes());
        Self { cursor }
    }

    /// The next keys, of whatever slot, for which the server looks at `most`, about; each key that is there
    /// all the time comes at least once. `None`: that was all.
    pub(super) async fn next(
        &mut self,
        link: &mut Link,
        most: u64,
    ) -> Result<Option<Vec<Key>>, LinkError> {
        let Some(cursor) = &self.cursor else {
            return Ok(None);
        };
        let most = most.to_string();
        let words: [&[u8]; 4] = [b"SCAN", cursor, b"COUNT", most.as_bytes()];
        let (cursor, keys) = match link.demand("SCAN", &words).await? {
            Reply::List(parts) => match <[Reply; 2]>::try_from(parts) {
                Ok([Reply::Text(cursor), Reply::List(keys)]) => (cursor, keys),
                _ => return Err(link.refused("SCAN", "a list of another kind".to_owned())),
            },
            other => return Err(link.unexpected("SCAN", &other)),
        };
        self.cursor = (cursor != b"0").then_some(cursor);
        let keys = keys.into_iter().filter_map(|key| match key {
            Reply::Text(key) => Some(Key::from(key)),
            Reply::Nil | Reply::Integer(_) | Reply::Error(_) | Reply::List(_) | Reply::Push(_) => {
                None
            }
        });
        Ok(Some(keys.collect()))
    }
}

/// Finds all keys of the slots and gives each to its lane. A lane that has enough makes it wait.
pub(super) struct Pass {
    pub(super) slots: SlotSet,
    pub(super) lanes: Vec<mpsc::Sender<Found>>,
    pub(super) report: Arc<Report>,
    pub(super) pace: Arc<Pace>,
}

impl Pass {
    /// Goes through these databases.
    pub(super) async fn run(
        self,
        mut link: Link,
        databases: BTreeSet<u32>,
    ) -> Result<(), Interruption> {
        link.only_reads();
        for database in databases {
            link.select(database).await.map_err(Interruption::Source)?;
            let mut walk = Walk::new();
            let mut waiting: Vec<Vec<Key>> = vec![Vec::new(); self.lanes.len()];
            loop {
                let portion = self.pace.portion();
                let keys = walk.next(&mut link, portion.scan).await;
                let Some(keys) = keys.map_err(Interruption::Source)? else {
                    break;
                };
                self.report.seen(keys.len());
                for key in keys.into_iter().filter(|key| self.slots.owns(key)) {
                    let lane = lane::of(&key, self.lanes.len());
                    waiting[lane].push(key);
                    if waiting[lane].len() >= portion.keys {
                        let keys = std::mem::take(&mut waiting[lane]);
                        give(&self.lanes[lane], database, keys).await?;
                    }
                }
            }
            for (lane, keys) in self.lanes.iter().zip(waiting) {
                if !keys.is_empty() {
                    give(lane, database, keys).await?;
                }
            }
        }
        Ok(())
    }
}

async fn give(
    lane: &mpsc::Sender<Found>,
    database: u32,
    keys: Vec<Key>,
) -> Result<(), Interruption> {
    let sent = lane.send(Found { database, keys }).await;
    sent.map_err(|_| Interruption::LaneGone)
}
