//! Compares what two servers have of some slots, key by key, and changes nothing.
//!
//! Most values are equal as they are dumped. Where they are not (another version, another order of a hash),
//! and where they are big, their elements are compared, by a digest of each side that is taken page by
//! page: in order where there is one; with when fields of a hash expire, and with the groups of a stream and
//! what their consumers have not acknowledged, but for when that was. Of slots that somebody writes to it tells
//! what differed at the moment it looked; of those that a copy follows, what still differs a moment later.

use std::{
    hash::{DefaultHasher, Hash, Hasher as _},
    num::NonZeroU32,
    time::Duration,
};

use proto::SlotSet;
use tokio::{sync::watch, time};

use super::{
    clean::of_slots,
    link::{Link, LinkError},
    pages::{Kind, Page},
    reply::Reply,
    scan::{Gait, Stroll},
    server::Server,
    sizing::Sizing,
    value::{self, Asked, Clock, Expiry, Lasting},
};

/// Keys that are compared in one round trip.
const BATCH: usize = 64;
/// A value above so many bytes is never asked for in one piece.
const PIECE: u64 = 256 << 10;
/// Two servers share the work, and a person waits for it.
const GAIT: Gait = Gait {
    rest: 1,
    ..Gait::AMONG_CLIENTS
};
/// Elements of a page; bytes of one of a string.
const PAGE: u64 = 512;
const STRING_PAGE: u64 = 64 << 10;
/// Differences that are named. All are counted.
const NAMED: usize = 100;
/// How long a copy that follows is given for what differs, and how often.
const MEND: Duration = Duration::from_millis(300);
const MENDS: u32 = 5;
/// How often in all: a copy that has lost much is not waited for at each key.
const MENDS_IN_ALL: u32 = 100;

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scope {
    /// Keys of these slots.
    pub slots: SlotSet,
    /// Of them, those that a copy follows: what differs is looked at again before it counts.
    pub followed: SlotSet,
    /// Which of the keys.
    pub which: Which,
}

/// Of which keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// All.
    All,
    /// One of so many, by chance.
    OneIn(NonZeroU32),
}

/// What came of it so far.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Verified {
    /// Keys that were looked at, of whatever slot.
    pub seen: u64,
    /// Keys that both servers had when it began.
    pub total: u64,
    /// Keys that were compared.
    pub compared: u64,
    /// Keys that differ.
    pub different: u64,
    /// The first of them.
    pub named: Vec<Difference>,
}

/// A key that is not the same at both.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// The database.
    pub database: u32,
    /// The key.
    pub key: Vec<u8>,
    /// In what.
    pub what: What,
}

/// In what two keys differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// The target does not have it.
    Missing,
    /// Only the target has it.
    Extra,
    /// The type, or the elements.
    Value,
    /// When it, or a field of it, expires.
    Expiry,
}

/// One of the two, and how it is asked.
pub(super) struct Side {
    link: Link,
    clock: Clock,
    sizing: Sizing,
    expires_fields: bool,
    keyspace: Vec<u32>,
    keys: u64,
}

/// What one has of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Content {
    /// Of the type and the elements.
    digest: u64,
    expiry: Expiry,
    /// Of when fields expire; 0 where none does.
    fields: u64,
}

impl Side {
    pub(super) fn new((link, is): (Link, Server)) -> Self {
        Self {
            link,
            clock: if is.tells_expiry() {
                Clock::Absolute
            } else {
                Clock::Relative
            },
            sizing: Sizing::of(&is),
            expires_fields: is.expires_fields(),
            keys: is.keys(),
            keyspace: is.keyspace.into_keys().collect(),
        }
    }

    /// Which of these keys are too big to be asked for in one piece.
    async fn big(&mut self, keys: &[&[u8]]) -> Result<Vec<bool>, LinkError> {
        match self.sizing {
            Sizing::Lengths => Ok(vec![true; keys.len()]),
            Sizing::Usage => {
                let sizes = self.sizing.ask(&mut self.link, keys).await?;
                Ok(sizes.into_iter().map(|size| size > PIECE).collect())
            }
        }
    }

    /// What there is of some keys, as it is dumped.
    async fn dumps(&mut self, keys: &[&[u8]]) -> Result<Vec<Asked>, LinkError> {
        for key in keys {
            value::questions(key, self.clock, None, |words| self.link.push(words));
        }
        let mut replies = self.link.exchange().await?.into_iter();
        let read = |_| value::read(&mut replies, self.clock, None);
        Ok(keys.iter().map(read).collect())
    }

    /// What there is of a key, element by element. None: it is not there.
    async fn content(&mut self, key: &[u8]) -> Result<Option<Content>, LinkError> {
        let Some(expiry) = self.expiry(key).await? else {
            return Ok(None);
        };
        let name = match self.link.demand("TYPE", &[b"TYPE", key]).await? {
            Reply::Text(name) => name,
            other => return Err(self.link.unexpected("TYPE", &other)),
        };
        let mut digest = Digest::new(&name);
        let Some(kind) = Kind::read(&name) else {
            let payload = self.link.demand("DUMP", &[b"DUMP", key]).await?;
            digest.add(format!("{payload:?}").as_bytes());
            return Ok(Some(digest.end(expiry)));
        };
        let count = match kind {
            Kind::String => STRING_PAGE,
            Kind::List | Kind::Set | Kind::Hash | Kind::SortedSet | Kind::Stream => PAGE,
        };
        let mut position = Some(kind.beginning());
        while let Some(from) = position {
            kind.ask(key, &from, count, |words| self.link.push(words));
            let reply = self.link.exchange().await?.pop().unwrap_or(Reply::Nil);
            let page = kind.page(from, reply);
            let (page, next) = page.map_err(|answer| self.link.refused("a page", answer))?;
            digest.add_page(&page);
            let fields = page.fields();
            if self.expires_fields && !fields.is_empty() {
                let times = self.field_expiries(key, &fields).await?;
                digest.add_expiries(&fields, &times);
            }
            position = next;
        }
        if kind == Kind::Stream {
            self.add_groups(key, &mut digest).await?;
        }
        Ok(Some(digest.end(expiry)))
    }

    /// What the groups of a stream are, and what is pending in them.
    async fn add_groups(&mut self, key: &[u8], digest: &mut Digest) -> Result<(), LinkError> {
        let groups = match self.link.ask(&[b"XINFO", b"GROUPS", key]).await? {
            Reply::List(groups) => groups,
            Reply::Error(answer) if answer.contains("no such key") => return Ok(()),
            other => return Err(self.link.unexpected("XINFO GROUPS", &other)),
        };
        for group in groups {
            let Reply::List(fields) = group else {
                return Err(self.link.unexpected("XINFO GROUPS", &group));
            };
            let told = |wanted: &[u8]| {
                let pairs = fields.chunks_exact(2);
                let is_wanted =
                    |pair: &&[Reply]| matches!(&pair[0], Reply::Text(name) if name == wanted);
                pairs.filter(is_wanted).map(|pair| &pair[1]).next()
            };
            let Some(Reply::Text(name)) = told(b"name") else {
                let answer = "a group without a name".to_owned();
                return Err(self.link.refused("XINFO GROUPS", answer));
            };
            digest.add(name);
            for field in [&b"consumers"[..], b"pending", b"last-delivered-id"] {
                digest.add(format!("{:?}", told(field)).as_bytes());
            }
            self.add_pending(key, name, digest).await?;
        }
        Ok(())
    }

    async fn add_pending(
        &mut self,
        key: &[u8],
        group: &[u8],
        digest: &mut Digest,
    ) -> Result<(), LinkError> {
        let size = PAGE.to_string();
        let mut last: Option<Vec<u8>> = None;
        loop {
            // The last one comes again: older servers know no other way to go on behind it.
            let from = last.as_deref().unwrap_or(b"-");
            let words: [&[u8]; 6] = [b"XPENDING", key, group, from, b"+", size.as_bytes()];
            let Reply::List(entries) = self.link.ask(&words).await? else {
                return Ok(()); // it has gone since
            };
            let is_last = (entries.len() as u64) < PAGE;
            for entry in entries {
                let Reply::List(parts) = entry else {
                    return Err(self.link.unexpected("XPENDING", &entry));
                };
                let Ok([Reply::Text(id), Reply::Text(consumer), _, count]) =
                    <[Reply; 4]>::try_from(parts)
                else {
                    let answer = "a pending entry of another kind".to_owned();
                    return Err(self.link.refused("XPENDING", answer));
                };
                if last.as_ref() == Some(&id) {
                    continue;
                }
                digest.add(&id);
                digest.add(&consumer);
                digest.add(format!("{count:?}").as_bytes());
                last = Some(id);
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// When each of these fields of a hash expires, if it does. Of a key that has just gone: of none.
    async fn field_expiries(
        &mut self,
        key: &[u8],
        fields: &[&[u8]],
    ) -> Result<Vec<Option<i64>>, LinkError> {
        let count = fields.len().to_string();
        let mut words: Vec<&[u8]> = vec![b"HPEXPIRETIME", key, b"FIELDS", count.as_bytes()];
        words.extend(fields);
        let time = |reply| match reply {
            Reply::Integer(time) if time > 0 => Some(time),
            Reply::Integer(_)
            | Reply::Nil
            | Reply::Text(_)
            | Reply::List(_)
            | Reply::Error(_)
            | Reply::Push(_) => None,
        };
        match self.link.demand("HPEXPIRETIME", &words).await? {
            Reply::List(times) => Ok(times.into_iter().map(time).collect()),
            Reply::Nil => Ok(Vec::new()),
            other => Err(self.link.unexpected("HPEXPIRETIME", &other)),
        }
    }

    async fn expiry(&mut self, key: &[u8]) -> Result<Option<Expiry>, LinkError> {
        loop {
            value::ask_expiry(key, self.clock, |words| self.link.push(words));
            let replies = self.link.exchange().await?;
            match value::read_expiry(&mut replies.into_iter(), self.clock) {
                Lasting::Known(expiry) => return Ok(Some(expiry)),
                Lasting::Gone => return Ok(None),
                Lasting::Unclear => {}
                Lasting::Strange => {
                    let answer = "no time of expiry".to_owned();
                    return Err(self.link.refused("PTTL", answer));
                }
            }
        }
    }
}

/// Of the elements of a value: of those that have no order, by a sum.
struct Digest {
    hasher: DefaultHasher,
    sum: u64,
    expiries: u64,
}

impl Digest {
    fn new(kind: &[u8]) -> Self {
        let mut digest = Self {
            hasher: DefaultHasher::new(),
            sum: 0,
            expiries: 0,
        };
        digest.add(kind);
        digest
    }

    fn add(&mut self, element: &[u8]) {
        element.hash(&mut self.hasher);
    }

    fn add_page(&mut self, page: &Page) {
        match page {
            // However it was cut into pages.
            Page::Bytes(_, bytes) => self.hasher.write(bytes),
            Page::Elements(Kind::Set, items) => self.add_anywhere(items, 1),
            Page::Elements(Kind::Hash, items) => self.add_anywhere(items, 2),
            Page::Elements(_, items) => items.iter().for_each(|item| self.add(item)),
            Page::Entries(entries) => {
                for (id, fields) in entries {
                    self.add(id);
                    fields.iter().for_each(|field| self.add(field));
                }
            }
        }
    }

    /// A cursor may give an element twice: then the sum differs, and the key is looked at once more.
    fn add_anywhere(&mut self, items: &[Vec<u8>], together: usize) {
        for group in items.chunks(together) {
            let mut hasher = DefaultHasher::new();
            group.hash(&mut hasher);
            self.sum = self.sum.wrapping_add(hasher.finish());
        }
    }

    fn add_expiries(&mut self, fields: &[&[u8]], times: &[Option<i64>]) {
        for (field, time) in fields.iter().zip(times) {
            if let Some(time) = time {
                let mut hasher = DefaultHasher::new();
                (field, time).hash(&mut hasher);
                self.expiries = self.expiries.wrapping_add(hasher.finish());
            }
        }
    }

    fn end(mut self, expiry: Expiry) -> Content {
        self.hasher.write_u64(self.sum);
        Content {
            digest: self.hasher.finish(),
            expiry,
            fields: self.expiries,
        }
    }
}

/// In what two contents differ.
fn difference(source: Option<&Content>, target: Option<&Content>) -> Option<What> {
    match (source, target) {
        (None, None) => None,
        (Some(_), None) => Some(What::Missing),
        (None, Some(_)) => Some(What::Extra),
        (Some(source), Some(target)) if source.digest != target.digest => Some(What::Value),
        (Some(source), Some(target))
            if source.expiry != target.expiry || source.fields != target.fields =>
        {
            Some(What::Expiry)
        }
        (Some(_), Some(_)) => None,
    }
}

/// Compares the keys of the scope.
pub(super) async fn verify(
    source: Side,
    target: Side,
    scope: Scope,
    progress: &watch::Sender<Verified>,
) -> Result<(), LinkError> {
    progress.send_modify(|verified| verified.total = source.keys + target.keys);
    let databases = |side: &Side| side.keyspace.clone();
    let (of_source, of_target) = (databases(&source), databases(&target));
    let mut comparison = Comparison {
        source,
        target,
        scope,
        progress,
        mends: MENDS_IN_ALL,
    };
    for database in of_source {
        comparison.walk(database, Look::Compare).await?;
    }
    for database in of_target {
        comparison.walk(database, Look::Extra).await?;
    }
    Ok(())
}

/// What keys are looked at for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Those of the source, for all in which they may differ.
    Compare,
    /// Those of the target, for whether the source has them.
    Extra,
}

/// A comparison under way.
struct Comparison<'a> {
    source: Side,
    target: Side,
    scope: Scope,
    progress: &'a watch::Sender<Verified>,
    /// How often a copy may still be waited for.
    mends: u32,
}

impl Comparison<'_> {
    /// Goes through the keys of one side, and looks at the other's.
    async fn walk(&mut self, database: u32, look: Look) -> Result<(), LinkError> {
        self.source.link.select(database).await?;
        self.target.link.select(database).await?;
        let mut stroll = Stroll::new(GAIT);
        loop {
            let walked = match look {
                Look::Compare => &mut self.source,
                Look::Extra => &mut self.target,
            };
            let Some(keys) = stroll.next(&mut walked.link).await? else {
                return Ok(());
            };
            let seen = keys.len() as u64;
            self.progress.send_modify(|verified| verified.seen += seen);
            let mut keys = of_slots(&keys, &self.scope.slots);
            if let Which::OneIn(many) = self.scope.which {
                keys.retain(|_| fastrand::u32(..many.get()) == 0);
            }
            for keys in keys.chunks(BATCH) {
                let found = self.different(keys, look).await?;
                let compared = match look {
                    Look::Compare => keys.len() as u64,
                    Look::Extra => 0,
                };
                self.tell(database, compared, found);
            }
        }
    }

    /// Those of these keys that differ; of those that a copy follows, the ones that go on to.
    async fn different(&mut self, keys: &[&[u8]], look: Look) -> Result<Found, LinkError> {
        let mut found = self.look(keys, look).await?;
        for _ in 0..MENDS {
            let followed = self.scope.followed;
            let is_followed = |(key, _): &(Vec<u8>, What)| followed.owns(key);
            if self.mends == 0 || !found.iter().any(is_followed) {
                break;
            }
            self.mends -= 1;
            time::sleep(MEND).await;
            let (again, rest): (Found, Found) = found.into_iter().partition(is_followed);
            let keys: Vec<&[u8]> = again.iter().map(|(key, _)| key.as_slice()).collect();
            found = self.look(&keys, look).await?;
            found.extend(rest);
        }
        Ok(found)
    }

    async fn look(&mut self, keys: &[&[u8]], look: Look) -> Result<Found, LinkError> {
        match look {
            Look::Compare => compare(keys, &mut self.source, &mut self.target).await,
            Look::Extra => extra(keys, &mut self.target, &mut self.source).await,
        }
    }

    fn tell(&self, database: u32, compared: u64, found: Found) {
        self.progress.send_modify(|verified| {
            verified.compared += compared;
            verified.different += found.len() as u64;
            let room = NAMED.saturating_sub(verified.named.len());
            let named = found.into_iter().take(room).map(|(key, what)| Difference {
                database,
                key,
                what,
            });
            verified.named.extend(named);
        });
    }
}

type Found = Vec<(Vec<u8>, What)>;

async fn compare(keys: &[&[u8]], source: &mut Side, target: &mut Side) -> Result<Found, LinkError> {
    let big = source.big(keys).await?;
    let (mut small, mut doubtful) = (Vec::new(), Vec::new());
    for (key, big) in keys.iter().zip(big) {
        if big {
            doubtful.push(*key);
        } else {
            small.push(*key);
        }
    }
    let (here, there) = tokio::join!(source.dumps(&small), target.dumps(&small));
    for ((key, here), there) in small.iter().zip(here?).zip(there?) {
        if here != there {
            doubtful.push(*key);
        }
    }
    let mut found = Vec::new();
    for key in doubtful {
        let mut what = None;
        // An element that a cursor gives twice, or a change between two looks, is not there every time.
        for _ in 0..3 {
            let here = source.content(key).await?;
            let there = target.content(key).await?;
            what = difference(here.as_ref(), there.as_ref());
            if what.is_none() {
                break;
            }
        }
        found.extend(what.map(|what| (key.to_vec(), what)));
    }
    Ok(found)
}

/// Which of these keys of the target the source does not have.
async fn extra(keys: &[&[u8]], target: &mut Side, source: &mut Side) -> Result<Found, LinkError> {
    for side in [&mut *source, target] {
        for key in keys {
            side.link.push(&[b"EXISTS", key]);
        }
    }
    let there = source.link.exchange().await?;
    // It may have expired at both since it was found.
    let still = target.link.exchange().await?;
    let pairs = keys.iter().zip(there.into_iter().zip(still));
    let extra = pairs.filter(|(_, pair)| *pair == (Reply::Integer(0), Reply::Integer(1)));
    Ok(extra.map(|(key, _)| (key.to_vec(), What::Extra)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(kind: &str, pages: &[Page]) -> u64 {
        let mut digest = Digest::new(kind.as_bytes());
        pages.iter().for_each(|page| digest.add_page(page));
        digest.end(Expiry::Never).digest
    }

    fn elements(kind: Kind, items: &[&str]) -> Page {
        Page::Elements(
            kind,
            items.iter().map(|item| item.as_bytes().to_vec()).collect(),
        )
    }

    #[test]
    fn order_counts_where_there_is_one() {
        let set = |items: &[&str]| digest("set", &[elements(Kind::Set, items)]);
        assert_eq!(set(&["a", "b"]), set(&["b", "a"]));
        assert_ne!(set(&["a", "b"]), set(&["a", "c"]));
        let hash = |items: &[&str]| digest("hash", &[elements(Kind::Hash, items)]);
        assert_eq!(hash(&["a", "1", "b", "2"]), hash(&["b", "2", "a", "1"]));
        assert_ne!(hash(&["a", "1", "b", "2"]), hash(&["a", "2", "b", "1"]));
        let list = |items: &[&str]| digest("list", &[elements(Kind::List, items)]);
        assert_ne!(list(&["a", "b"]), list(&["b", "a"]));
        assert_ne!(list(&["ab"]), list(&["a", "b"]));
        assert_ne!(digest("set", &[]), digest("list", &[]));
    }

    #[test]
    fn pages_may_be_cut_differently() {
        let bytes = |parts: &[&str]| {
            let page = |part: &&str| Page::Bytes(0, part.as_bytes().to_vec());
            digest("string", &parts.iter().map(page).collect::<Vec<_>>())
        };
        assert_eq!(bytes(&["ab", "c"]), bytes(&["a", "bc"]));
        let list = |parts: &[&[&str]]| {
            let pages: Vec<Page> = parts
                .iter()
                .map(|part| elements(Kind::List, part))
                .collect();
            digest("list", &pages)
        };
        assert_eq!(list(&[&["a"], &["b", "c"]]), list(&[&["a", "b"], &["c"]]));
    }

    #[test]
    fn in_what_keys_differ() {
        let content = |digest, expiry| Content {
            digest,
            expiry,
            fields: 0,
        };
        let (a, b) = (content(1, Expiry::Never), content(2, Expiry::Never));
        let late = content(1, Expiry::At(9));
        let fields = |times: &[Option<i64>]| {
            let mut digest = Digest::new(b"hash");
            digest.add_expiries(&[b"a", b"b"], times);
            digest.end(Expiry::Never)
        };
        let (none, some) = (fields(&[None, None]), fields(&[None, Some(7)]));
        assert_eq!(none, fields(&[]));
        for (source, target, what) in [
            (None, None, None),
            (Some(&a), Some(&a), None),
            (Some(&a), None, Some(What::Missing)),
            (None, Some(&a), Some(What::Extra)),
            (Some(&a), Some(&b), Some(What::Value)),
            (Some(&a), Some(&late), Some(What::Expiry)),
            (Some(&none), Some(&some), Some(What::Expiry)),
            (
                Some(&some),
                Some(&fields(&[Some(7), None])),
                Some(What::Expiry),
            ),
        ] {
            assert_eq!(difference(source, target), what);
        }
    }
}
