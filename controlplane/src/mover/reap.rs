//! Deletes what the source still has of slots that have moved.
//!
//! Paced, for the source serves other slots meanwhile, and nobody waits for it: it rests the longer the longer an
//! answer takes. Before each page it is asked whether the slots may be reaped yet.

use proto::SlotSet;
use tokio::sync::watch;

use super::{
    clean::{of_slots, unlink},
    link::{Link, LinkError},
    scan::{Gait, Stroll},
};

/// How far a reaping is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Reaped {
    /// Keys that were looked at, of whatever slot.
    pub seen: u64,
    /// Keys that the source had when it began.
    pub total: u64,
    /// Keys that were deleted.
    pub deleted: u64,
}

/// Why slots were not reaped to the end. What was deleted stays so; it can be done again.
#[derive(Debug, thiserror::Error)]
pub enum Unreaped {
    /// The slots must not be reaped any more.
    #[error("the slots may be the source's again")]
    NotOurs,
    /// The server does not work.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// Deletes the keys of the slots in all databases.
pub(super) async fn reap(
    link: &mut Link,
    slots: &SlotSet,
    still_ours: impl Fn() -> bool,
    progress: &watch::Sender<Reaped>,
) -> Result<(), Unreaped> {
    let is = link.server().await?;
    progress.send_modify(|reaped| reaped.total = is.keys());
    for database in is.keyspace.into_keys() {
        link.select(database).await?;
        let mut stroll = Stroll::new(Gait::AMONG_CLIENTS);
        while let Some(keys) = stroll.next(link).await? {
            let doomed = of_slots(&keys, slots);
            if !doomed.is_empty() && !still_ours() {
                return Err(Unreaped::NotOurs);
            }
            let deleted = unlink(link, &doomed).await?;
            progress.send_modify(|reaped| {
                reaped.seen += keys.len() as u64;
                reaped.deleted += deleted;
            });
        }
    }
    Ok(())
}
