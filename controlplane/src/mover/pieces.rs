//! Copies one value by pieces, with commands: a big one, or one that the target cannot restore.
//!
//! It grows at the target under a name of Sluice's own, with each page being written while the next one is
//! read, and takes the place of what the target had only when it is as long as the value at the source:
//! a target that is short of memory may have thrown the name out half-way, and the next page would have
//! begun it anew. Neither server is kept busy for long by any one command; but for strings of many MiB
//! that must grow ([`super::flow`] says when), whose memory a server takes, and clears, at once.
//!
//! How much it was used does not come with it: only a value that is restored in one piece can be given that.
//!
//! A value that changes meanwhile becomes some mixture. Whoever asks for the copy is told of each change,
//! and asks again; from then on it is chased, if it can be ([`super::chase`]).
//!
//! Where something else comes first, a copy is *parked*: between two steps it is given back as a value
//! ([`Partial`]), and goes on from there later. Meanwhile the connections, and the name for growing, are free.

use tokio::time::Instant;

use super::{
    Interruption,
    chase::Chasing,
    dirty::Key,
    flow::Flowing,
    lane::GoAhead,
    pages::{Kind, Page, Position},
    relay::Relay,
    reply::Reply,
    value::{self, Expiry, Lasting, Verdict},
};

/// Why a value that is copied in part is not gone on with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Halt {
    /// It is given up: worth nothing any more, or begun anew later.
    Stop,
    /// Something else comes first.
    Park,
}

/// How a value is copied that is copied in part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// As a whole: when it changes meanwhile, what was copied is worth nothing.
    Anew,
    /// Only what differs: each part that is copied need not be copied again.
    Chased,
}

/// How a value is to be copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Manner {
    /// In large portions, whoever else is there.
    pub(super) hurry: bool,
    /// It has changed before, and may again.
    pub(super) changes: bool,
}

/// How far a copy is that was parked.
pub(super) enum Partial {
    Chased(Chasing),
    Flown(Flowing),
    Grown(Growing),
}

/// A value that is begun with.
enum Begun {
    Partly(Box<Partial>),
    /// There was nothing to be copied by pieces.
    Over(Outcome),
}

/// A value that grows at the target.
pub(super) struct Growing {
    kind: Kind,
    /// How many elements it had when it began.
    length: u64,
    /// What comes next.
    position: Position,
}

/// What came of it.
pub(super) enum Outcome {
    /// The target has it.
    Done {
        /// Whether it is a stream.
        stream: bool,
    },
    /// Whoever asked wants no more of it.
    Stopped,
    /// Whoever asked will go on with this.
    Parked(Box<Partial>),
    /// It is not as long as it should be: it has changed, or the target has thrown it out half-way.
    Changed,
    /// The target takes no writes now.
    Later(String),
    /// No command but `DUMP` can read it.
    Unreadable,
}

/// How far it is.
enum Step {
    Next(Position),
    Whole,
    End(Outcome),
}

impl Relay {
    /// Copies a value of about this many bytes; 0: nobody knows; or goes on with it where it was parked. Waits
    /// before each step until it may, and tells how it copies and when the pace allows it.
    pub(super) async fn copy_in_pieces(
        &mut self,
        (database, key): (u32, &Key),
        size: u64,
        manner: Manner,
        parked: Option<Box<Partial>>,
        mut go_ahead: GoAhead<'_>,
    ) -> Result<Outcome, Interruption> {
        self.enter(database).await?;
        let partial = match parked {
            Some(partial) => {
                std::mem::swap(&mut self.place, &mut self.aside);
                partial
            }
            None => match self.begin_pieces(database, key, manner).await? {
                Begun::Partly(partial) => partial,
                Begun::Over(outcome) => return Ok(outcome),
            },
        };
        let outcome = match *partial {
            Partial::Chased(chasing) => {
                let value = (database, key);
                self.chase(value, chasing, size, manner, &mut go_ahead)
                    .await?
            }
            Partial::Grown(growing) => self.grow(growing, key, size, manner, &mut go_ahead).await?,
            Partial::Flown(flowing) => {
                match self.flow(flowing, key, manner, &mut go_ahead).await? {
                    Some(outcome) => outcome,
                    None => {
                        let growing = self.begin_growing(Kind::String, key).await?;
                        self.grow(growing, key, size, manner, &mut go_ahead).await?
                    }
                }
            }
        };
        match outcome {
            Outcome::Done { .. } | Outcome::Unreadable => {}
            Outcome::Parked(_) => std::mem::swap(&mut self.place, &mut self.aside),
            Outcome::Stopped | Outcome::Changed | Outcome::Later(_) => {
                self.target.discard();
                let place = self.place.clone();
                let words: [&[u8]; 2] = [b"UNLINK", place.as_bytes()];
                self.target
                    .ask(&words)
                    .await
                    .map_err(Interruption::Target)?;
            }
        }
        Ok(outcome)
    }

    /// Finds out in which way a value is copied.
    async fn begin_pieces(
        &mut self,
        database: u32,
        key: &Key,
        manner: Manner,
    ) -> Result<Begun, Interruption> {
        let staged = self.shelf.take(database, key);
        let name = match self.read(&[b"TYPE", key]).await? {
            Reply::Text(name) => name,
            other => return Err(Interruption::Source(self.source.unexpected("TYPE", &other))),
        };
        if name == b"none" {
            self.target.push(&[b"UNLINK", key]);
            return self.finish(0, false).await.map(Begun::Over);
        }
        let Some(kind) = Kind::read(&name) else {
            return Ok(Begun::Over(Outcome::Unreadable));
        };
        if manner.changes
            && let Some(staged) = self.chased(database, key, kind, staged, manner.hurry)
        {
            let chasing = self.begin_chasing(staged, key).await?;
            return Ok(Begun::Partly(Box::new(Partial::Chased(chasing))));
        }
        let flowing = match kind {
            Kind::String => self.begin_flowing(database, key).await?,
            Kind::List | Kind::Set | Kind::Hash | Kind::SortedSet | Kind::Stream => None,
        };
        Ok(Begun::Partly(Box::new(match flowing {
            Some(flowing) => Partial::Flown(flowing),
            None => Partial::Grown(self.begin_growing(kind, key).await?),
        })))
    }

    async fn begin_growing(&mut self, kind: Kind, key: &[u8]) -> Result<Growing, Interruption> {
        Ok(Growing {
            kind,
            length: self.length(kind, key, true).await?,
            position: kind.beginning(),
        })
    }

    /// Queues what comes before the first page of a value of so many elements.
    fn push_beginning(&mut self, kind: Kind, length: u64) {
        let place = self.place.as_bytes();
        self.target.push(&[b"UNLINK", place]);
        if kind == Kind::Stream {
            // Also an empty one is one.
            self.target
                .push(&[b"XGROUP", b"CREATE", place, b"g", b"$", b"MKSTREAM"]);
            self.target.push(&[b"XGROUP", b"DESTROY", place, b"g"]);
        }
        if kind == Kind::String {
            // No page makes an empty one.
            self.target.push(&[b"SET", place, b""]);
            // Its last byte first: that takes all of its memory at once (64 MiB: 30 to 80 ms). Growing with
            // each page it would be quicker while its memory can be extended, and is moved about as a whole
            // several times where it cannot, for up to 100 ms each time.
            if length > 0 {
                let last = (length - 1).to_string();
                self.target
                    .push(&[b"SETRANGE", place, last.as_bytes(), b"\0"]);
            }
        }
    }

    async fn grow(
        &mut self,
        growing: Growing,
        key: &[u8],
        size: u64,
        manner: Manner,
        go_ahead: &mut GoAhead<'_>,
    ) -> Result<Outcome, Interruption> {
        let Growing {
            kind,
            length,
            mut position,
        } = growing;
        loop {
            match go_ahead.wait(Way::Anew, &mut self.not_before).await {
                None => {}
                Some(Halt::Stop) => return Ok(Outcome::Stopped),
                Some(Halt::Park) => {
                    let written = self.target.exchange().await.map_err(Interruption::Target)?;
                    let parked = Box::new(Partial::Grown(Growing {
                        kind,
                        length,
                        position,
                    }));
                    let outcome = self.judge(written)?;
                    return Ok(outcome.unwrap_or(Outcome::Parked(parked)));
                }
            }
            if position == kind.beginning() {
                self.push_beginning(kind, length);
            }
            let portion = self.portion_for(manner.hurry);
            let count = portion.elements_of(kind, length, size);
            let positions = kind.positions(position, count, portion.pages);
            let begun = Instant::now();
            let (step, bytes) = self.step(kind, key, positions, count).await?;
            self.book(0, bytes, begun);
            match step {
                Step::Next(next) => position = next,
                Step::Whole => break,
                Step::End(outcome) => return Ok(outcome),
            }
        }
        let written = self.target.exchange().await.map_err(Interruption::Target)?;
        if let Some(outcome) = self.judge(written)? {
            return Ok(outcome);
        }
        let place = self.place.clone();
        if kind == Kind::Stream
            && let Some(outcome) = self.dress_stream(key, place.as_bytes()).await?
        {
            return Ok(outcome);
        }
        self.take_place(kind, key).await
    }

    /// Reads the pages at these positions while those before are written, and queues what writes them. Also of
    /// how many bytes they are.
    async fn step(
        &mut self,
        kind: Kind,
        key: &[u8],
        positions: Vec<Position>,
        count: u64,
    ) -> Result<(Step, u64), Interruption> {
        for position in &positions {
            kind.ask(key, position, count, |words| self.source.push(words));
        }
        let (read, written) = tokio::join!(self.source.exchange(), self.target.exchange());
        let replies = read.map_err(Interruption::Source)?;
        if let Some(outcome) = self.judge(written.map_err(Interruption::Target)?)? {
            return Ok((Step::End(outcome), 0));
        }
        let (mut step, mut bytes) = (Step::Whole, 0);
        for (position, reply) in positions.into_iter().zip(replies) {
            // Of another type now: it has changed.
            let Ok((page, next)) = kind.page(position, reply) else {
                return Ok((Step::End(Outcome::Changed), bytes));
            };
            bytes += page.weight();
            page.write(self.place.as_bytes(), |words| self.target.push(words));
            if kind == Kind::Hash {
                self.expire_fields(key, &page).await?;
            }
            step = match next {
                Some(next) => Step::Next(next),
                None => return Ok((Step::Whole, bytes)),
            };
        }
        Ok((step, bytes))
    }

    /// Fields of hashes expire by themselves at newer servers.
    async fn expire_fields(&mut self, key: &[u8], page: &Page) -> Result<(), Interruption> {
        for (field, time) in self.expiring_fields(key, page).await? {
            if !self.target_expires_fields {
                let why = "a hash has fields that expire, and the target knows no such thing";
                return Err(Interruption::Unfit(why.to_owned()));
            }
            let time = time.to_string();
            let place = self.place.as_bytes();
            let words: [&[u8]; 6] = [
                b"HPEXPIREAT",
                place,
                time.as_bytes(),
                b"FIELDS",
                b"1",
                field,
            ];
            self.target.push(&words);
        }
        Ok(())
    }

    /// The fields of a page that expire by themselves, and when.
    pub(super) async fn expiring_fields<'a>(
        &mut self,
        key: &[u8],
        page: &'a Page,
    ) -> Result<Vec<(&'a [u8], i64)>, Interruption> {
        let fields = page.fields();
        if !self.source_expires_fields || fields.is_empty() {
            return Ok(Vec::new());
        }
        let count = fields.len().to_string();
        let mut words: Vec<&[u8]> = vec![b"HPEXPIRETIME", key, b"FIELDS", count.as_bytes()];
        words.extend(&fields);
        let Reply::List(times) = self.read(&words).await? else {
            return Ok(Vec::new()); // it is no hash any more: it has changed
        };
        let expiring = fields.into_iter().zip(times);
        let expiring = expiring.filter_map(|(field, time)| match time {
            Reply::Integer(time @ 0..) => Some((field, time)),
            Reply::Integer(_)
            | Reply::Nil
            | Reply::Text(_)
            | Reply::Error(_)
            | Reply::List(_)
            | Reply::Push(_) => None,
        });
        Ok(expiring.collect())
    }

    /// If all of it is there, it takes the place of what the target had.
    pub(super) async fn take_place(
        &mut self,
        kind: Kind,
        key: &[u8],
    ) -> Result<Outcome, Interruption> {
        let length = self.length(kind, key, true).await?;
        let place = self.place.clone();
        if length != self.length(kind, place.as_bytes(), false).await? {
            return Ok(Outcome::Changed);
        }
        let Some(expiry) = self.expiry(key).await? else {
            return Ok(Outcome::Changed);
        };
        // Unlinked first: a `RENAME` over a big value frees it at once, before it answers.
        self.target.push(&[b"UNLINK", key]);
        if let Expiry::At(time) = expiry {
            let time = time.to_string();
            self.target
                .push(&[b"PEXPIREAT", place.as_bytes(), time.as_bytes()]);
        }
        self.target.push(&[b"RENAME", place.as_bytes(), key]);
        self.finish(length, kind == Kind::Stream).await
    }

    /// When a key expires; none: it is not there any more.
    pub(super) async fn expiry(&mut self, key: &[u8]) -> Result<Option<Expiry>, Interruption> {
        loop {
            value::ask_expiry(key, self.clock, |words| self.source.push(words));
            let replies = self.source.exchange().await.map_err(Interruption::Source)?;
            match value::read_expiry(&mut replies.into_iter(), self.clock) {
                Lasting::Known(expiry) => return Ok(Some(expiry)),
                Lasting::Unclear => {}
                Lasting::Gone | Lasting::Strange => return Ok(None),
            }
        }
    }

    /// How many elements a value has, at the source or at the target; 0: it is not there.
    pub(super) async fn length(
        &mut self,
        kind: Kind,
        key: &[u8],
        at_source: bool,
    ) -> Result<u64, Interruption> {
        let name = kind.length();
        let words = [name.as_bytes(), key];
        let reply = if at_source {
            self.read(&words).await?
        } else {
            self.target
                .ask(&words)
                .await
                .map_err(Interruption::Target)?
        };
        match reply {
            Reply::Integer(length) => Ok(u64::try_from(length).unwrap_or(0)),
            // Of another type now.
            _ => Ok(0),
        }
    }

    /// Sends what is queued for the target; what came of a value with so many elements.
    pub(super) async fn finish(
        &mut self,
        elements: u64,
        stream: bool,
    ) -> Result<Outcome, Interruption> {
        let written = self.target.exchange().await.map_err(Interruption::Target)?;
        let outcome = self.judge(written)?;
        if outcome.is_none() {
            self.report
                .copied(usize::try_from(elements).unwrap_or(usize::MAX));
        }
        Ok(outcome.unwrap_or(Outcome::Done { stream }))
    }

    /// What replies to writes say, if not that all is well.
    pub(super) fn judge(&self, replies: Vec<Reply>) -> Result<Option<Outcome>, Interruption> {
        for reply in replies {
            match value::verdict(reply) {
                Verdict::Done => {}
                Verdict::Later(why) => return Ok(Some(Outcome::Later(why))),
                // A mixture of what was and what is: of two types, or with an id too small.
                Verdict::Never(answer)
                    if answer.starts_with("ERR ") || answer.starts_with("WRONGTYPE ") =>
                {
                    return Ok(Some(Outcome::Changed));
                }
                Verdict::OtherVersion | Verdict::Unknown => return Err(Interruption::Incompatible),
                Verdict::Never(answer) => {
                    return Err(Interruption::Target(self.target.refused("a write", answer)));
                }
            }
        }
        Ok(None)
    }

    pub(super) async fn read(&mut self, words: &[&[u8]]) -> Result<Reply, Interruption> {
        self.source.ask(words).await.map_err(Interruption::Source)
    }
}
