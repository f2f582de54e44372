//! Goes through all keys of a server.
//!
//! A stock server has no index by slot: all keys are looked at, and those of the slots are kept. So one
//! pass serves all slots of a migration.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use proto::SlotSet;
use tokio::{
    sync::mpsc,
    time::{self, Instant},
};

use super::{
    Interruption,
    company::Company,
    dirty::Key,
    lane::{self, Found},
    link::{Link, LinkError},
    pace::Pace,
    reply::Reply,
    report::Report,
    sizing::Sizing,
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
        if !self.push(link, most) {
            return Ok(None);
        }
        let reply = link.exchange().await?.pop();
        self.read(link, reply).map(Some)
    }

    /// Queues the question for them; not if that was all.
    fn push(&self, link: &mut Link, most: u64) -> bool {
        if let Some(cursor) = &self.cursor {
            let most = most.to_string();
            link.push(&[b"SCAN", cursor, b"COUNT", most.as_bytes()]);
        }
        self.cursor.is_some()
    }

    /// Reads the answer to it.
    fn read(&mut self, link: &Link, reply: Option<Reply>) -> Result<Vec<Key>, LinkError> {
        let (cursor, keys) = match reply.expect("a command was queued") {
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
        Ok(keys.collect())
    }
}

/// How a walk goes that others are not to notice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gait {
    /// Keys that the server looks at for a page, about.
    pub(super) page: u64,
    /// How long is rested after a page, in times of what it took, with all that was done about its keys.
    pub(super) rest: u32,
    /// How long that is at least and at most: it may be the way there that takes long.
    pub(super) least: Duration,
    pub(super) most: Duration,
}

impl Gait {
    /// Where nobody else is.
    pub(super) const ALONE: Self = Self {
        page: 512,
        rest: 0,
        least: Duration::ZERO,
        most: Duration::ZERO,
    };
    /// Among clients: a page is a tenth or two of a millisecond of a server's time. Of 512 keys it was more than a
    /// whole one, and with no rest between them two of five requests felt that.
    pub(super) const AMONG_CLIENTS: Self = Self {
        page: 64,
        rest: 3,
        least: Duration::ZERO,
        most: Duration::from_millis(50),
    };

    /// In this company.
    pub(super) fn of(company: Company) -> Self {
        match company {
            Company::Nobody => Self::ALONE,
            Company::Clients => Self::AMONG_CLIENTS,
        }
    }

    /// How long to rest after a page that took so long.
    pub(super) fn after(self, took: Duration) -> Duration {
        (took * self.rest).clamp(self.least, self.most)
    }
}

/// Rests of less are taken together: a timer knows no less than a millisecond.
const SHORTEST_REST: Duration = Duration::from_millis(2);

/// How long is still to be rested.
#[derive(Default)]
struct Owed(Duration);

impl Owed {
    /// Owes this, too, and rests when that is enough for a rest.
    async fn rest(&mut self, also: Duration) {
        self.0 += also;
        if self.0 >= SHORTEST_REST {
            time::sleep(std::mem::take(&mut self.0)).await;
        }
    }
}

/// A walk through one database that takes its time.
pub(super) struct Stroll {
    walk: Walk,
    gait: Gait,
    /// When the page was asked for that is being looked at.
    begun: Option<Instant>,
    owed: Owed,
}

impl Stroll {
    /// From the beginning.
    pub(super) fn new(gait: Gait) -> Self {
        Self {
            walk: Walk::new(),
            gait,
            begun: None,
            owed: Owed::default(),
        }
    }

    /// From a place in the server's table, whatever that is.
    pub(super) fn go_to(&mut self, place: u64) {
        self.walk = Walk::at(place);
    }

    /// Rests for what was done since the last page was asked for; then as [`Walk::next`].
    pub(super) async fn next(&mut self, link: &mut Link) -> Result<Option<Vec<Key>>, LinkError> {
        if let Some(begun) = self.begun {
            self.owed.rest(self.gait.after(begun.elapsed())).await;
        }
        self.begun = Some(Instant::now());
        self.walk.next(link, self.gait.page).await
    }
}

/// Finds all keys of the slots, and how large they are, and gives each to its lane. A lane that has enough makes it
/// wait; and it rests by the copy's pace, also where it finds little among many others.
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
        sizing: Sizing,
        databases: BTreeSet<u32>,
    ) -> Result<(), Interruption> {
        link.only_reads();
        for database in databases {
            link.select(database).await.map_err(Interruption::Source)?;
            let mut walk = Walk::new();
            let mut owed = Owed::default();
            let mut waiting = vec![Vec::new(); self.lanes.len()];
            let mut found = Vec::new();
            loop {
                let portion = self.pace.portion();
                let begun = Instant::now();
                let keys = std::mem::take(&mut found);
                let page = next_and_sizes(&mut link, &mut walk, portion.scan, sizing, &keys).await;
                let (page, sizes) = page.map_err(Interruption::Source)?;
                let rest = self.pace.rest(begun.elapsed());
                let is_last = page.is_none();
                found = page.unwrap_or_default();
                self.report.seen(found.len());
                found.retain(|key| self.slots.owns(key));
                for (key, size) in keys.into_iter().zip(sizes) {
                    let lane = lane::of(&key, self.lanes.len());
                    waiting[lane].push((key, size));
                    if waiting[lane].len() >= portion.keys {
                        let keys = std::mem::take(&mut waiting[lane]);
                        give(&self.lanes[lane], database, keys).await?;
                    }
                }
                if is_last {
                    break;
                }
                owed.rest(rest).await;
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

/// The next page of a walk, and how large these keys are, of the page before: the server is asked for both at once,
/// for of many pages among many slots little is kept, and waiting for it again would cost more than the answer.
async fn next_and_sizes(
    link: &mut Link,
    walk: &mut Walk,
    most: u64,
    sizing: Sizing,
    keys: &[Key],
) -> Result<(Option<Vec<Key>>, Vec<u64>), LinkError> {
    let goes_on = walk.push(link, most);
    sizing.push(link, keys);
    let mut replies = link.exchange().await?.into_iter();
    let page = match goes_on {
        true => Some(walk.read(link, replies.next())?),
        false => None,
    };
    Ok((page, sizing.read(link, replies.as_slice())?))
}

async fn give(
    lane: &mpsc::Sender<Found>,
    database: u32,
    keys: Vec<(Key, u64)>,
) -> Result<(), Interruption> {
    let sent = lane.send(Found { database, keys }).await;
    sent.map_err(|_| Interruption::LaneGone)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn it_rests_in_times_of_what_a_page_took() {
        let gait = Gait::AMONG_CLIENTS;
        assert_eq!(gait.after(MS), 3 * MS);
        assert_eq!(gait.after(1000 * MS), 50 * MS);
        let least = Gait {
            least: 5 * MS,
            ..gait
        };
        assert_eq!(least.after(MS), 5 * MS);
        assert_eq!(Gait::ALONE.after(1000 * MS), Duration::ZERO);
    }
}
