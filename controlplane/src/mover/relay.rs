//! Moves given keys from the source to the target, as they are now.
//!
//! Owns one connection to each. A key that is there is dumped and restored, one that is gone is deleted
//! at the target. It knows nothing of why a key is to be copied, and keeps nothing between two calls but
//! the mark it has set in each database of the target: a key that is gone when somebody has flushed the
//! database, or when the target has thrown out keys. A source that would not tell of a flush has such marks,
//! too, set before anything is read there.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::{self, Instant};

use super::{
    Interruption,
    dirty::Key,
    flow::Door,
    link::{Link, LinkError},
    pace::{Pace, Portion},
    reply::Reply,
    report::Report,
    server::{Server, keyspace},
    sizing::Sizing,
    staged::Shelf,
    tracker::Telling,
    value::{self, Asked, Clock, Usage, Verdict},
};

/// Bytes of values that a server is asked for, or given, in one piece: what it does for us at once.
pub(super) const PIECE: u64 = 256 << 10;
/// How long is waited before a target is asked again that has said *later*.
pub(super) const LATER: Duration = Duration::from_millis(100);

/// What the source is marked with. `DEL` goes first, so that it is also taken by a server that is full.
const MARK: &[u8] = b"redis.call('DEL', KEYS[1]) return redis.call('SET', KEYS[1], ARGV[1])";

/// See the module.
pub(super) struct Relay {
    pub(super) source: Link,
    pub(super) target: Link,
    pub(super) clock: Clock,
    usage: Option<Usage>,
    sizing: Sizing,
    pub(super) source_expires_fields: bool,
    pub(super) target_expires_fields: bool,
    /// Whether the target can restore what the source dumps, as far as is known.
    restores: bool,
    /// Whether the target takes the counters of streams.
    pub(super) streams_count: bool,
    /// The key under which a value grows at the target.
    pub(super) place: String,
    /// The same for what is copied while another one is parked.
    pub(super) aside: String,
    /// What the target has may be big, and is unlinked before another value takes its place.
    pub(super) frees: bool,
    /// Where big strings go in; none: they grow.
    pub(super) door: Option<Door>,
    /// What the target has of values that are chased.
    pub(super) shelf: Shelf,
    /// The key of the mark, and what it says.
    mark: (String, String),
    /// The databases of the target in which the mark stands; those of the source, if it has any.
    marked: BTreeSet<u32>,
    telling: Telling,
    pub(super) report: Arc<Report>,
    pace: Arc<Pace>,
    /// When the next may be copied, if no slots are held for it.
    pub(super) not_before: Instant,
    /// Whether what is copied counts for that: what is copied while slots are held does not.
    pub(super) books: bool,
}

/// What is known of keys before they are copied.
#[derive(Clone, Copy)]
pub(super) enum Known<'a> {
    /// How large each is, and where else there are keys.
    Sizes(&'a [u64]),
    /// Which databases have keys.
    Databases,
    /// Not even that.
    Nothing,
}

/// What a call of [`Relay::copy`] did.
#[derive(Default)]
pub(super) struct Copied {
    /// The keys that are streams.
    pub(super) streams: Vec<Key>,
    /// Keys that were left alone: their values are too much in one piece. Of how many bytes, about.
    pub(super) big: Vec<(Key, u64)>,
    /// Keys that were left alone: the target cannot restore what the source dumps.
    pub(super) foreign: Vec<Key>,
    /// Keys that the target does not take now.
    pub(super) later: Vec<Key>,
    /// The databases of the source that had keys, if that was not known.
    pub(super) databases: BTreeSet<u32>,
}

impl Copied {
    /// Adds what a further call did.
    pub(super) fn add(&mut self, more: Self) {
        self.streams.extend(more.streams);
        self.big.extend(more.big);
        self.foreign.extend(more.foreign);
        self.later.extend(more.later);
        self.databases.extend(more.databases);
    }
}

impl Relay {
    /// From two links. What it writes for itself at the target begins with `own`; `attempt` is what no
    /// other attempt has.
    pub(super) async fn new(
        (mut source, is): (Link, Server),
        (target, target_is): (Link, Server),
        own: &str,
        attempt: &str,
        report: Arc<Report>,
        pace: Arc<Pace>,
    ) -> Result<Self, Interruption> {
        source.only_reads();
        let [place, aside] = places(own);
        if is.reads_untouched() {
            source
                .demand("CLIENT NO-TOUCH", &[b"CLIENT", b"NO-TOUCH", b"ON"])
                .await
                .map_err(Interruption::Source)?;
        }
        Ok(Self {
            source,
            target,
            clock: if is.tells_expiry() {
                Clock::Absolute
            } else {
                Clock::Relative
            },
            usage: Some(if is.counts_usage() {
                Usage::Frequency
            } else {
                Usage::Idle
            }),
            sizing: Sizing::of(&is),
            source_expires_fields: is.expires_fields(),
            target_expires_fields: target_is.expires_fields(),
            restores: true,
            streams_count: is.streams_count() && target_is.streams_count(),
            place,
            aside,
            frees: false,
            door: None,
            shelf: Shelf::default(),
            mark: (mark(own), attempt.to_owned()),
            marked: BTreeSet::new(),
            telling: Telling::of(&is),
            report,
            pace,
            not_before: Instant::now(),
            books: true,
        })
    }

    /// The databases of the source that have keys.
    pub(super) async fn databases(&mut self) -> Result<BTreeSet<u32>, Interruption> {
        let info = self.source.info(&[b"INFO", b"keyspace"]).await;
        let info = info.map_err(Interruption::Source)?;
        Ok(databases(&info))
    }

    /// Makes these keys of a database at the target what they are at the source.
    pub(super) async fn copy(
        &mut self,
        database: u32,
        keys: &[Key],
        known: Known<'_>,
    ) -> Result<Copied, Interruption> {
        self.enter(database).await?;
        let mut copied = Copied::default();
        let asked = self.find_out(keys, known, &mut copied).await;
        let asked = asked.map_err(Interruption::Source)?;
        let sizes = match known {
            Known::Sizes(sizes) => sizes,
            Known::Databases | Known::Nothing => &asked,
        };
        let (mut small, mut small_sizes) = (Vec::new(), Vec::new());
        for (key, size) in keys.iter().zip(sizes.iter().copied()) {
            if size > PIECE {
                copied.big.push((key.clone(), size));
            } else {
                self.shelf.take(database, key);
                small.push(key.clone());
                small_sizes.push(size);
            }
        }
        if !self.restores {
            copied.foreign = small;
            return Ok(copied);
        }
        if self.frees && !small.is_empty() {
            // A server frees what another value takes the place of before it answers: of a big one that takes long.
            let mut words = vec![b"UNLINK".as_slice()];
            words.extend(small.iter().map(|key| &key[..]));
            // A target that takes no writes now says so again when they are restored.
            self.target
                .ask(&words)
                .await
                .map_err(Interruption::Target)?;
        }
        for (piece, bytes) in pieces(&small, &small_sizes) {
            let begun = Instant::now();
            let mut left = piece.to_vec();
            while !left.is_empty() {
                left = self.move_over(left, &mut copied).await?;
            }
            self.book(piece.len(), bytes, begun);
        }
        if !copied.later.is_empty() {
            self.not_before = self.not_before.max(Instant::now() + LATER);
        }
        Ok(copied)
    }

    /// Asks for what is not known: the sizes, if those are not, and the databases.
    async fn find_out(
        &mut self,
        keys: &[Key],
        known: Known<'_>,
        copied: &mut Copied,
    ) -> Result<Vec<u64>, LinkError> {
        let (link, sizing) = (&mut self.source, self.sizing);
        match known {
            Known::Sizes(_) => Ok(Vec::new()),
            Known::Databases => sizing.ask(link, keys).await,
            Known::Nothing => {
                link.push(&[b"INFO", b"keyspace"]);
                sizing.push(link, keys);
                let mut replies = link.exchange().await?.into_iter();
                let info = link.read_info(replies.next().unwrap_or(Reply::Nil))?;
                copied.databases = databases(&info);
                sizing.read(link, replies.as_slice())
            }
        }
    }

    /// How much may be asked at once, if no slots are held for it.
    pub(super) fn portion(&self) -> Portion {
        self.pace.portion()
    }

    /// The same where that may depend on whether somebody waits for it.
    pub(super) fn portion_for(&self, hurry: bool) -> Portion {
        if hurry {
            Portion::LARGE
        } else {
            self.portion()
        }
    }

    /// After so many keys of so many bytes, which were begun then: says when the next may be.
    pub(super) fn book(&mut self, keys: usize, bytes: u64, begun: Instant) {
        if !self.books {
            return;
        }
        self.not_before = self.pace.next(keys, bytes, begun.elapsed());
    }

    /// Copies one key in one piece, however big. Whether the target can restore it.
    pub(super) async fn copy_whole(
        &mut self,
        database: u32,
        key: &Key,
    ) -> Result<bool, Interruption> {
        self.enter(database).await?;
        let mut copied = Copied::default();
        let mut left = vec![key.clone()];
        self.shelf.take(database, key);
        while !left.is_empty() {
            left = self.move_over(left, &mut copied).await?;
            if !copied.later.is_empty() {
                time::sleep(LATER).await;
                left.append(&mut copied.later);
            }
        }
        Ok(copied.foreign.is_empty())
    }

    /// Whether the mark stands wherever it was set: nobody has flushed since.
    pub(super) async fn check_marks(&mut self) -> Result<(), Interruption> {
        self.target.discard();
        for database in self.marked.clone() {
            self.target
                .select(database)
                .await
                .map_err(Interruption::Target)?;
            let words: [&[u8]; 2] = [b"GET", self.mark.0.as_bytes()];
            let value = self.target.demand("GET", &words).await;
            match value.map_err(Interruption::Target)? {
                Reply::Text(value) if value == self.mark.1.as_bytes() => {}
                _ => return Err(Interruption::TargetFlushed),
            }
            self.check_source_mark(database).await?;
        }
        Ok(())
    }

    /// The same at the source, of one database: nor has anybody swapped it with another.
    async fn check_source_mark(&mut self, database: u32) -> Result<(), Interruption> {
        match self.telling {
            Telling::Tracking => return Ok(()),
            Telling::Events => {}
        }
        let (key, expected) = (self.mark.0.clone(), self.source_mark(database));
        let selected = self.source.select(database).await;
        selected.map_err(Interruption::Source)?;
        let value = self.source.demand("GET", &[b"GET", key.as_bytes()]).await;
        match value.map_err(Interruption::Source)? {
            Reply::Text(value) if value == expected.as_bytes() => Ok(()),
            _ => Err(Interruption::SourceFlushed),
        }
    }

    /// What the mark says in a database of the source.
    fn source_mark(&self, database: u32) -> String {
        format!("{}:{database}", self.mark.1)
    }

    /// Sets the mark in the database of the source where it is.
    async fn mark_source(&mut self, database: u32) -> Result<(), Interruption> {
        match self.telling {
            Telling::Tracking => return Ok(()),
            Telling::Events => {}
        }
        let (key, value) = (self.mark.0.clone(), self.source_mark(database));
        let words: [&[u8]; 5] = [b"EVAL", MARK, b"1", key.as_bytes(), value.as_bytes()];
        let marked = self.source.demand("EVAL", &words).await;
        marked.map(drop).map_err(Interruption::Source)
    }

    /// Waits until one replica of the target has all that was written here, and by anybody before; whether
    /// it has. Nothing is appended to the mark for it: `WAIT` means the writes of its own connection only,
    /// and a mark that is gone is not to come back as it was.
    pub(super) async fn wait_for_replica(&mut self, most: Duration) -> Result<bool, Interruption> {
        let key = self.mark.0.clone();
        self.enter(0).await?;
        self.write(|link| link.push(&[b"APPEND", key.as_bytes(), b""]))
            .await?;
        let most = most.as_millis().max(1).to_string();
        let words: [&[u8]; 3] = [b"WAIT", b"1", most.as_bytes()];
        match self.target.demand("WAIT", &words).await {
            Ok(Reply::Integer(replicas)) => Ok(replicas >= 1),
            Ok(other) => Err(Interruption::Target(self.target.unexpected("WAIT", &other))),
            Err(why) => Err(Interruption::Target(why)),
        }
    }

    /// Goes to a database at both, and sets the mark there. What was begun before and given up is not
    /// sent any more: its replies would be taken for others'.
    pub(super) async fn enter(&mut self, database: u32) -> Result<(), Interruption> {
        self.target.discard();
        self.source
            .select(database)
            .await
            .map_err(Interruption::Source)?;
        self.target
            .select(database)
            .await
            .map_err(Interruption::Target)?;
        if !self.marked.contains(&database) {
            self.mark_source(database).await?;
            let (key, value) = self.mark.clone();
            self.write(|link| link.push(&[b"SET", key.as_bytes(), value.as_bytes()]))
                .await?;
            self.marked.insert(database);
        }
        Ok(())
    }

    /// One round: asks for the keys and writes what they are. Gives back those to ask for again at once.
    async fn move_over(
        &mut self,
        keys: Vec<Key>,
        copied: &mut Copied,
    ) -> Result<Vec<Key>, Interruption> {
        for key in &keys {
            value::questions(key, self.clock, self.usage, |words| self.source.push(words));
        }
        let replies = self.source.exchange().await.map_err(Interruption::Source)?;
        let mut replies = replies.into_iter();
        let (mut sent, mut again) = (Vec::with_capacity(keys.len()), Vec::new());
        for key in keys {
            match value::read(&mut replies, self.clock, self.usage) {
                Asked::There(value) => {
                    if value::is_stream(&value.payload) {
                        copied.streams.push(key.clone());
                    }
                    value::restore(&key, &value, |words| self.target.push(words));
                    sent.push((key, value.payload.len()));
                }
                Asked::Gone => {
                    self.target.push(&[b"UNLINK", &key]);
                    sent.push((key, 0));
                }
                Asked::Again => again.push(key),
                Asked::Refused(answer) => {
                    return Err(Interruption::Source(self.source.refused("DUMP", answer)));
                }
            }
        }
        let replies = self.target.exchange().await.map_err(Interruption::Target)?;
        let mut later = None;
        for ((key, bytes), reply) in sent.into_iter().zip(replies) {
            match value::verdict(reply) {
                Verdict::Done => self.report.copied(bytes),
                Verdict::Later(why) => {
                    later = Some(why);
                    copied.later.push(key);
                }
                Verdict::OtherVersion => {
                    self.restores = false;
                    copied.foreign.push(key);
                }
                Verdict::Unknown => copied.foreign.push(key),
                Verdict::Never(answer) => {
                    return Err(Interruption::Target(self.target.refused("RESTORE", answer)));
                }
            }
        }
        self.report.waits(later);
        Ok(again)
    }

    /// One write to the target, until it is taken.
    async fn write(&mut self, push: impl Fn(&mut Link)) -> Result<(), Interruption> {
        loop {
            push(&mut self.target);
            let reply = self
                .target
                .exchange()
                .await
                .map_err(Interruption::Target)?
                .pop();
            match value::verdict(reply.unwrap_or(Reply::Nil)) {
                Verdict::Done => {
                    self.report.waits(None);
                    return Ok(());
                }
                Verdict::Later(why) => {
                    self.report.waits(Some(why));
                    time::sleep(LATER).await;
                }
                Verdict::OtherVersion | Verdict::Unknown => return Err(Interruption::Incompatible),
                Verdict::Never(answer) => {
                    return Err(Interruption::Target(self.target.refused("SET", answer)));
                }
            }
        }
    }
}

/// The databases that have keys, by what the server tells.
fn databases(info: &str) -> BTreeSet<u32> {
    keyspace(info).into_keys().collect()
}

/// The keys under which values grow, of a lane whose own keys begin with `own`.
pub(super) fn places(own: &str) -> [String; 2] {
    ["place", "aside"].map(|name| format!("{own}:{name}"))
}

/// The key of the mark, of a lane whose own keys begin with `own`.
pub(super) fn mark(own: &str) -> String {
    format!("{own}:mark")
}

/// Cuts keys into pieces of about [`PIECE`] bytes, in order; how many bytes each is.
fn pieces<'a>(keys: &'a [Key], sizes: &[u64]) -> Vec<(&'a [Key], u64)> {
    let mut pieces = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, size) in sizes.iter().enumerate() {
        if bytes + size > PIECE && start < at {
            pieces.push((&keys[start..at], bytes));
            (start, bytes) = (at, 0);
        }
        bytes += size;
    }
    if start < keys.len() {
        pieces.push((&keys[start..], bytes));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_bounded() {
        let keys: Vec<Key> = (0..5u8).map(|n| Key::from([n])).collect();
        let check = |sizes: &[u64], lengths: &[usize]| {
            let pieces = pieces(&keys[..sizes.len()], sizes);
            let got: Vec<usize> = pieces.iter().map(|(piece, _)| piece.len()).collect();
            let bytes: u64 = pieces.iter().map(|(_, bytes)| bytes).sum();
            assert_eq!(bytes, sizes.iter().sum::<u64>());
            assert_eq!(got, lengths, "{sizes:?}");
        };
        check(&[], &[]);
        check(&[1, 1, 1, 1, 1], &[5]);
        check(&[PIECE, 1, PIECE - 1, 1], &[1, 2, 1]);
        check(&[2 * PIECE, 2 * PIECE], &[1, 1]);
        check(&[1, 2 * PIECE, 1], &[1, 1, 1]);
    }
}
