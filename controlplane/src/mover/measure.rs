//! Finds out how many keys, or how much memory, each slot has at a server.
//!
//! A stock server has no index by slot, so that keys have to be looked at. A server with few is gone through
//! from end to end. Of one with more some are looked at, by chance: a cursor of `SCAN` is a place in the
//! server's table, and any number is a valid one; so pages that begin anywhere are a fair sample. What is
//! found of it stands for all. The work is bounded by that, and done as clients of the server bear it.
//!
//! Changes nothing.

use proto::{SLOT_COUNT, Slot};

use super::{
    clean::of_slots,
    link::{Link, LinkError},
    scan::{Gait, Stroll},
    server::Server,
    sizing::Sizing,
};

/// Keys that are looked at of a server, at most: an error of about six percent of a slot that has a
/// three-hundredth of them, and far less of a group.
const SAMPLE: u64 = 100_000;

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Measure {
    /// Keys.
    Keys,
    /// Bytes of memory, as `MEMORY USAGE` reckons: of big values itself by a few of their elements.
    Memory,
}

/// What a server has.
#[derive(Clone, PartialEq, Debug)]
pub struct Measured {
    /// By slot: keys or bytes, but for what is Sluice's own.
    pub slots: Box<[u64; SLOT_COUNT]>,
    /// Keys that it has, of whatever slot.
    pub keys: u64,
    /// Keys that were looked at. Fewer than it has: the rest was reckoned.
    pub looked_at: u64,
}

/// Measures a server.
pub(super) async fn measure(
    mut link: Link,
    is: &Server,
    what: Measure,
) -> Result<Measured, LinkError> {
    if what == Measure::Memory && !is.tells_sizes() {
        let lack = "it is older than Redis 4, and has no such command".to_owned();
        return Err(link.refused("MEMORY USAGE", lack));
    }
    let mut tally = Tally::default();
    for (database, keys) in &is.keyspace {
        link.select(*database).await?;
        // Of each database its share of the sample; of a small one, all.
        let share = keys * SAMPLE.min(is.keys()) / is.keys().max(1);
        let mut found = Tally::default();
        let gait = Gait::AMONG_CLIENTS;
        let mut stroll = Stroll::new(gait);
        if share == *keys {
            while look_on(&mut stroll, &mut link, what, &mut found).await? {}
        } else {
            // Many pages more than it takes; but the keys may go meanwhile.
            for _ in 0..=share / gait.page + 64 {
                if found.looked_at >= share {
                    break;
                }
                // What a table has no place for, it takes modulo its size.
                stroll.go_to(fastrand::u64(1..));
                look_on(&mut stroll, &mut link, what, &mut found).await?;
            }
        }
        tally.add(&found, *keys);
    }
    Ok(Measured {
        slots: tally.slots,
        keys: is.keys(),
        looked_at: tally.looked_at,
    })
}

/// Adds a page. `false`: there was none.
async fn look_on(
    stroll: &mut Stroll,
    link: &mut Link,
    what: Measure,
    found: &mut Tally,
) -> Result<bool, LinkError> {
    let Some(keys) = stroll.next(link).await? else {
        return Ok(false);
    };
    let all = Slot::all().collect();
    let users = of_slots(&keys, &all);
    let sizes = match what {
        Measure::Keys => vec![1; users.len()],
        Measure::Memory => Sizing::Usage.ask(link, &users).await?,
    };
    for (key, size) in users.into_iter().zip(sizes) {
        found.slots[Slot::of_key(key).index()] += size;
    }
    found.looked_at += keys.len() as u64;
    Ok(true)
}

/// What was found.
struct Tally {
    slots: Box<[u64; SLOT_COUNT]>,
    looked_at: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            slots: Box::new([0; SLOT_COUNT]),
            looked_at: 0,
        }
    }
}

impl Tally {
    /// What was found in a database that has so many keys.
    fn add(&mut self, found: &Self, keys: u64) {
        self.looked_at += found.looked_at;
        for (all, some) in self.slots.iter_mut().zip(found.slots.iter()) {
            // A pass that sees a key twice is no reason to believe that there are fewer.
            let scaled = u128::from(*some) * u128::from(keys.max(found.looked_at));
            *all += u64::try_from(scaled / u128::from(found.looked_at.max(1))).unwrap_or(u64::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_of_some_stands_for_all() {
        let mut found = Tally::default();
        (found.slots[3], found.slots[5], found.looked_at) = (30, 10, 40);
        let mut all = Tally::default();
        all.add(&found, 4000);
        all.add(&found, 40);
        assert_eq!((all.slots[3], all.slots[5]), (3030, 1010));
        assert_eq!(all.looked_at, 80);
        all.add(&Tally::default(), 7);
        assert_eq!(all.slots[3], 3030);
    }
}
