//! Chases a big value that changes all the time: goes through the source's again and again, and tells the
//! target only what differs from what it was told before ([`Staged`]).
//!
//! What it writes goes to the key itself: a pass that is given up half-way is not lost, and the last one, for
//! which the slots are held, has little to write. A pass that the value changes under makes some mixture of
//! it, which the next one mends; one that nothing changes under makes it equal. Elements that the source has
//! no more are deleted. When the target does not take something, or has not as many elements as it was told
//! of (it has thrown the key out, or it has expired there), what it has is not known any more, and is built
//! anew. Hashes with fields that expire by themselves are not chased.

use tokio::time::Instant;

use super::{
    Interruption,
    dirty::Key,
    lane::GoAhead,
    pages::{Kind, Page, Position},
    pieces::{Halt, Manner, Outcome, Partial, Way},
    relay::Relay,
    staged::Staged,
    value::Expiry,
};

/// Elements that are deleted by one command.
const DELETED: usize = 512;

/// A pass through a value that is chased.
pub(super) struct Chasing {
    staged: Staged,
    /// How many elements it had when the pass began.
    length: u64,
    /// What is read next; none: all of it was.
    next: Option<Position>,
    /// What was read and is not compared yet.
    read: Vec<Page>,
}

impl Relay {
    /// What the target has of a value of this kind, if it is to be chased. In a hurry none is begun with:
    /// nobody would gain by it.
    pub(super) fn chased(
        &mut self,
        database: u32,
        key: &Key,
        kind: Kind,
        known: Option<Staged>,
        hurry: bool,
    ) -> Option<Staged> {
        let known = known.filter(|staged| staged.kind() == kind);
        if known.is_some() || hurry || !self.shelf.has_room_for(database, key) {
            return known;
        }
        let nothing = Staged::nothing(kind)?;
        self.target.push(&[b"UNLINK", key]);
        Some(nothing)
    }

    /// Begins a pass.
    pub(super) async fn begin_chasing(
        &mut self,
        mut staged: Staged,
        key: &[u8],
    ) -> Result<Chasing, Interruption> {
        let kind = staged.kind();
        staged.begin();
        Ok(Chasing {
            staged,
            length: self.length(kind, key, true).await?,
            next: Some(kind.beginning()),
            read: Vec::new(),
        })
    }

    /// Goes on with a pass. Waits before each step until it may.
    pub(super) async fn chase(
        &mut self,
        (database, key): (u32, &Key),
        chasing: Chasing,
        size: u64,
        manner: Manner,
        go_ahead: &mut GoAhead<'_>,
    ) -> Result<Outcome, Interruption> {
        let Chasing {
            mut staged,
            length,
            mut next,
            mut read,
        } = chasing;
        let kind = staged.kind();
        let mut stopped = false;
        while next.is_some() || !read.is_empty() {
            let mut asked = Vec::new();
            if let Some(position) = next.take() {
                let halt = go_ahead.wait(Way::Chased, &mut self.not_before).await;
                if halt == Some(Halt::Park) {
                    let written = self.target.exchange().await.map_err(Interruption::Target)?;
                    let parked = Box::new(Partial::Chased(Chasing {
                        staged,
                        length,
                        next: Some(position),
                        read,
                    }));
                    let outcome = self.judge(written)?;
                    return Ok(outcome.unwrap_or(Outcome::Parked(parked)));
                }
                stopped = halt.is_some();
                if !stopped {
                    let portion = self.portion_for(manner.hurry);
                    let count = portion.elements_of(kind, length, size);
                    asked = kind.positions(position, count, portion.pages);
                    // Comparing costs less than adding: one page may be as much as several.
                    let count = count * (portion.pages / asked.len()) as u64;
                    for position in &asked {
                        kind.ask(key, position, count, |words| self.source.push(words));
                    }
                }
            }
            let begun = Instant::now();
            let target = &mut self.target;
            // While the source reads, what it read before is compared and written.
            let compared = async {
                for page in read.drain(..) {
                    staged
                        .differing(page)
                        .write(key, |words| target.push(words));
                }
                target.exchange().await
            };
            let (replies, written) = tokio::join!(self.source.exchange(), compared);
            let replies = replies.map_err(Interruption::Source)?;
            if let Some(outcome) = self.judge(written.map_err(Interruption::Target)?)? {
                return Ok(outcome);
            }
            for (position, reply) in asked.into_iter().zip(replies) {
                // Of another type now: it has changed.
                let Ok((page, then)) = kind.page(position, reply) else {
                    return Ok(Outcome::Changed);
                };
                next = then;
                read.push(page);
                if next.is_none() {
                    break;
                }
            }
            let mut is_fit = staged.bytes() <= self.shelf.room();
            for page in &read {
                is_fit &= self.expiring_fields(key, page).await?.is_empty();
            }
            if !is_fit {
                self.shelf.refuse(database, key.clone());
                return Ok(Outcome::Changed);
            }
            let bytes = read.iter().map(Page::weight).sum();
            self.book(0, bytes, begun);
        }
        if stopped {
            self.shelf.put(database, key.clone(), staged);
            return Ok(Outcome::Stopped);
        }
        for names in staged.unmet().chunks(DELETED) {
            kind.delete(key, names, |words| self.target.push(words));
        }
        let written = self.target.exchange().await.map_err(Interruption::Target)?;
        if let Some(outcome) = self.judge(written)? {
            return Ok(outcome);
        }
        if self.length(kind, key, false).await? != staged.len() {
            return Ok(Outcome::Changed);
        }
        let is_whole = self.length(kind, key, true).await? == staged.len();
        match self.expiry(key).await? {
            Some(expiry) if is_whole => match expiry {
                Expiry::Never => self.target.push(&[b"PERSIST", key]),
                Expiry::At(time) => {
                    let time = time.to_string();
                    self.target.push(&[b"PEXPIREAT", key, time.as_bytes()]);
                }
            },
            Some(_) | None => {
                self.shelf.put(database, key.clone(), staged);
                return Ok(Outcome::Changed);
            }
        }
        let outcome = self.finish(staged.len(), false).await?;
        if matches!(outcome, Outcome::Done { .. }) {
            self.shelf.put(database, key.clone(), staged);
        }
        Ok(outcome)
    }
}
