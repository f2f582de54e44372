//! A value by pieces: how one of each type is read a page at a time, and written again by commands.
//!
//! Pure: from a position to the command that reads what follows it, from the reply to the elements and
//! the next position, from the elements to commands that add them. For values that would keep a server
//! busy for too long in one piece, and for those that the target cannot restore.

use super::reply::Reply;

/// Words that are added by one command: members, or members and scores in turns.
const ADDED: usize = 1024;
/// Bytes that an item counts as at least, so that a page of a sorted set counts as much as the keys that are copied in its
/// place: 64 elements keep the target as busy as 8 keys do, or longer.
const LIGHTEST: usize = 256;

/// The types of values that can be read by pieces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    String,
    List,
    Set,
    Hash,
    SortedSet,
    Stream,
}

/// Where a page begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Position {
    /// At this byte of a string, or element of a list or sorted set.
    At(u64),
    /// Where a cursor of `SSCAN` or `HSCAN` is.
    Cursor(Vec<u8>),
    /// Behind the entry of a stream with this id; none: at its beginning.
    Behind(Option<Vec<u8>>),
}

/// Elements of a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Page {
    /// Bytes of a string that begin at this one.
    Bytes(u64, Vec<u8>),
    /// Elements, fields with values, or members with scores, in turns.
    Elements(Kind, Vec<Vec<u8>>),
    /// Entries of a stream: ids, and their fields and values.
    Entries(Vec<(Vec<u8>, Vec<Vec<u8>>)>),
}

impl Kind {
    /// By its name, as `TYPE` gives it. None: a type that only `DUMP` can read.
    pub(super) fn read(name: &[u8]) -> Option<Self> {
        match name {
            b"string" => Some(Self::String),
            b"list" => Some(Self::List),
            b"set" => Some(Self::Set),
            b"hash" => Some(Self::Hash),
            b"zset" => Some(Self::SortedSet),
            b"stream" => Some(Self::Stream),
            _ => None,
        }
    }

    /// The command that tells how many elements there are: bytes of a string.
    pub(super) fn length(self) -> &'static str {
        match self {
            Self::String => "STRLEN",
            Self::List => "LLEN",
            Self::Set => "SCARD",
            Self::Hash => "HLEN",
            Self::SortedSet => "ZCARD",
            Self::Stream => "XLEN",
        }
    }

    /// Where its first page begins.
    pub(super) fn beginning(self) -> Position {
        match self {
            Self::String | Self::List | Self::SortedSet => Position::At(0),
            Self::Set | Self::Hash => Position::Cursor(b"0".to_vec()),
            Self::Stream => Position::Behind(None),
        }
    }

    /// Where pages of this many elements begin from a position on: one, or several as far as that is known
    /// before they are read.
    pub(super) fn positions(self, first: Position, count: u64, most: usize) -> Vec<Position> {
        match (self, first) {
            (Self::String | Self::List | Self::SortedSet, Position::At(first)) => (0..most as u64)
                .map(|n| Position::At(first + n * count))
                .collect(),
            (_, first) => vec![first],
        }
    }

    /// Whether its elements have names, each once: members, or fields.
    pub(super) fn has_names(self) -> bool {
        match self {
            Self::Set | Self::Hash | Self::SortedSet => true,
            Self::String | Self::List | Self::Stream => false,
        }
    }

    /// The command that deletes elements of these names.
    pub(super) fn delete(
        self,
        key: &[u8],
        names: &[impl AsRef<[u8]>],
        push: impl FnOnce(&[&[u8]]),
    ) {
        let name: &[u8] = match self {
            Self::Set => b"SREM",
            Self::SortedSet => b"ZREM",
            Self::Hash | Self::String | Self::List | Self::Stream => b"HDEL",
        };
        let mut words: Vec<&[u8]> = vec![name, key];
        words.extend(names.iter().map(AsRef::as_ref));
        push(&words);
    }

    /// The command that reads the page at a position: of this many elements, about.
    pub(super) fn ask(
        self,
        key: &[u8],
        position: &Position,
        count: u64,
        push: impl FnOnce(&[&[u8]]),
    ) {
        let size = count.to_string();
        let size = size.as_bytes();
        match position {
            Position::At(first) => {
                let last = (first + count - 1).to_string();
                let first = first.to_string();
                let (first, last) = (first.as_bytes(), last.as_bytes());
                match self {
                    Self::String => push(&[b"GETRANGE", key, first, last]),
                    Self::SortedSet => push(&[b"ZRANGE", key, first, last, b"WITHSCORES"]),
                    Self::List | Self::Set | Self::Hash | Self::Stream => {
                        push(&[b"LRANGE", key, first, last]);
                    }
                }
            }
            Position::Cursor(cursor) => {
                let name: &[u8] = if self == Self::Hash {
                    b"HSCAN"
                } else {
                    b"SSCAN"
                };
                push(&[name, key, cursor, b"COUNT", size]);
            }
            Position::Behind(None) => push(&[b"XRANGE", key, b"-", b"+", b"COUNT", size]),
            Position::Behind(Some(id)) => {
                let start = [b"(", id.as_slice()].concat();
                push(&[b"XRANGE", key, &start, b"+", b"COUNT", size]);
            }
        }
    }

    /// What a page has, and where the next begins; none: it was the last. The error says what the reply
    /// is instead.
    pub(super) fn page(
        self,
        position: Position,
        reply: Reply,
    ) -> Result<(Page, Option<Position>), String> {
        let strange = || "a reply of an unknown kind".to_owned();
        match (self, position, reply) {
            (_, _, Reply::Error(error)) => Err(error),
            (Self::String, Position::At(first), Reply::Text(bytes)) => {
                let next = (!bytes.is_empty()).then(|| Position::At(first + bytes.len() as u64));
                Ok((Page::Bytes(first, bytes), next))
            }
            (Self::List, Position::At(first), Reply::List(items)) => {
                let items = texts(items).ok_or_else(strange)?;
                let next = (!items.is_empty()).then(|| Position::At(first + items.len() as u64));
                Ok((Page::Elements(self, items), next))
            }
            (Self::SortedSet, Position::At(first), Reply::List(items)) => {
                let items = texts(items).ok_or_else(strange)?;
                let members = items.len() as u64 / 2;
                let next = (members > 0).then(|| Position::At(first + members));
                Ok((Page::Elements(self, items), next))
            }
            (Self::Set | Self::Hash, Position::Cursor(_), Reply::List(parts)) => {
                match <[Reply; 2]>::try_from(parts) {
                    Ok([Reply::Text(cursor), Reply::List(items)]) => {
                        let items = texts(items).ok_or_else(strange)?;
                        let next = (cursor != b"0").then_some(Position::Cursor(cursor));
                        Ok((Page::Elements(self, items), next))
                    }
                    _ => Err(strange()),
                }
            }
            (Self::Stream, Position::Behind(_), Reply::List(items)) => {
                let entries: Option<Vec<_>> = items.into_iter().map(entry).collect();
                let entries = entries.ok_or_else(strange)?;
                let next = entries
                    .last()
                    .map(|(id, _)| Position::Behind(Some(id.clone())));
                Ok((Page::Entries(entries), next))
            }
            _ => Err(strange()),
        }
    }
}

impl Page {
    /// The commands that add it to what a key has. How many elements there are in it.
    pub(super) fn write(&self, key: &[u8], mut push: impl FnMut(&[&[u8]])) {
        match self {
            Self::Bytes(first, bytes) => {
                if !bytes.is_empty() {
                    push(&[b"SETRANGE", key, first.to_string().as_bytes(), bytes]);
                }
            }
            Self::Elements(kind, items) => {
                let name: &[u8] = match kind {
                    Kind::Set => b"SADD",
                    Kind::Hash => b"HSET",
                    Kind::SortedSet => b"ZADD",
                    Kind::List | Kind::String | Kind::Stream => b"RPUSH",
                };
                for items in items.chunks(ADDED) {
                    let mut words: Vec<&[u8]> = vec![name, key];
                    if *kind == Kind::SortedSet {
                        // Told as member and score, taken as score and member.
                        let pairs = items.chunks(2);
                        words.extend(pairs.flat_map(|pair| pair.iter().rev()).map(Vec::as_slice));
                    } else {
                        words.extend(items.iter().map(Vec::as_slice));
                    }
                    push(&words);
                }
            }
            Self::Entries(entries) => {
                for (id, fields) in entries {
                    let mut words: Vec<&[u8]> = vec![b"XADD", key, id];
                    words.extend(fields.iter().map(Vec::as_slice));
                    push(&words);
                }
            }
        }
    }

    /// Bytes that it counts as: an item takes a server time, however small it is.
    pub(super) fn weight(&self) -> u64 {
        let item = |item: &Vec<u8>| item.len().max(LIGHTEST);
        let weight: usize = match self {
            Self::Bytes(_, bytes) => bytes.len(),
            Self::Elements(_, items) => items.iter().map(item).sum(),
            Self::Entries(entries) => {
                let all = entries.iter().flat_map(|(_, fields)| fields);
                all.map(item).sum()
            }
        };
        weight as u64
    }

    /// The fields of a page of a hash.
    pub(super) fn fields(&self) -> Vec<&[u8]> {
        match self {
            Self::Elements(Kind::Hash, items) => {
                items.iter().step_by(2).map(Vec::as_slice).collect()
            }
            Self::Elements(..) | Self::Bytes(..) | Self::Entries(_) => Vec::new(),
        }
    }
}

/// The texts of a list of nothing else.
pub(super) fn texts(items: Vec<Reply>) -> Option<Vec<Vec<u8>>> {
    items
        .into_iter()
        .map(|item| match item {
            Reply::Text(text) => Some(text),
            Reply::Nil | Reply::Integer(_) | Reply::Error(_) | Reply::List(_) | Reply::Push(_) => {
                None
            }
        })
        .collect()
}

fn entry(item: Reply) -> Option<(Vec<u8>, Vec<Vec<u8>>)> {
    let Reply::List(parts) = item else {
        return None;
    };
    match <[Reply; 2]>::try_from(parts) {
        Ok([Reply::Text(id), Reply::List(fields)]) => Some((id, texts(fields)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Reply {
        Reply::Text(text.into())
    }

    fn list(items: &[&str]) -> Reply {
        Reply::List(items.iter().map(|item| text(item)).collect())
    }

    fn line(words: &[&[u8]]) -> String {
        let words: Vec<_> = words
            .iter()
            .map(|word| String::from_utf8_lossy(word))
            .collect();
        words.join(" ")
    }

    /// How a page is asked for, and with what commands its reply is written; then where the next begins.
    fn check(
        kind: Kind,
        position: Position,
        asked: &str,
        reply: Reply,
        written: &[&str],
        next: Option<Position>,
    ) {
        kind.ask(b"k", &position, 10, |words| assert_eq!(line(words), asked));
        let (page, then) = kind.page(position, reply).unwrap();
        assert_eq!(then, next);
        let mut commands = Vec::new();
        page.write(b"t", |words| commands.push(line(words)));
        assert_eq!(commands, written);
    }

    #[test]
    fn an_item_counts_however_small_it_is() {
        let items = |sizes: &[usize]| sizes.iter().map(|size| vec![0; *size]).collect();
        let elements = Page::Elements(Kind::SortedSet, items(&[1, 2, 500]));
        assert_eq!(elements.weight(), 2 * LIGHTEST as u64 + 500);
        assert_eq!(Page::Bytes(7, vec![0; 5]).weight(), 5);
    }

    #[test]
    fn every_type_by_pages() {
        use Kind::*;
        use Position::*;
        let id = |id: &str| Some(Behind(Some(id.into())));
        check(
            String,
            At(0),
            "GETRANGE k 0 9",
            text("ab"),
            &["SETRANGE t 0 ab"],
            Some(At(2)),
        );
        check(String, At(2), "GETRANGE k 2 11", text(""), &[], None);
        check(
            List,
            At(5),
            "LRANGE k 5 14",
            list(&["a", "b"]),
            &["RPUSH t a b"],
            Some(At(7)),
        );
        check(List, At(7), "LRANGE k 7 16", list(&[]), &[], None);
        check(
            SortedSet,
            At(0),
            "ZRANGE k 0 9 WITHSCORES",
            list(&["m", "1", "n", "2"]),
            &["ZADD t 1 m 2 n"],
            Some(At(2)),
        );
        let scanned = |cursor, items| Reply::List(vec![text(cursor), list(items)]);
        check(
            Set,
            Cursor(b"0".to_vec()),
            "SSCAN k 0 COUNT 10",
            scanned("7", &["a"]),
            &["SADD t a"],
            Some(Cursor(b"7".to_vec())),
        );
        check(
            Hash,
            Cursor(b"7".to_vec()),
            "HSCAN k 7 COUNT 10",
            scanned("0", &["f", "v"]),
            &["HSET t f v"],
            None,
        );
        let entries = Reply::List(vec![
            Reply::List(vec![text("1-1"), list(&["f", "v"])]),
            Reply::List(vec![text("2-1"), list(&["f", "v", "g", "w"])]),
        ]);
        check(
            Stream,
            Behind(None),
            "XRANGE k - + COUNT 10",
            entries,
            &["XADD t 1-1 f v", "XADD t 2-1 f v g w"],
            id("2-1"),
        );
        check(
            Stream,
            id("2-1").unwrap(),
            "XRANGE k (2-1 + COUNT 10",
            list(&[]),
            &[],
            None,
        );
    }

    #[test]
    fn pages_ahead_are_asked_for_where_it_is_known_where_they_begin() {
        let at = |first| Position::At(first);
        let positions = Kind::List.positions(at(7), 10, 3);
        assert_eq!(positions, [at(7), at(17), at(27)]);
        let cursor = Kind::Set.beginning();
        assert_eq!(Kind::Set.positions(cursor.clone(), 10, 3), [cursor]);
    }

    #[test]
    fn many_elements_are_added_by_several_commands_and_deleted_by_name() {
        let items = vec![b"1".to_vec(); 2 * ADDED + 2];
        let mut counts = Vec::new();
        Page::Elements(Kind::SortedSet, items).write(b"t", |words| counts.push(words.len() - 2));
        assert_eq!(counts, [ADDED, ADDED, 2]);
        for (kind, command) in [
            (Kind::Set, "SREM t a b"),
            (Kind::Hash, "HDEL t a b"),
            (Kind::SortedSet, "ZREM t a b"),
        ] {
            kind.delete(b"t", &["a", "b"], |words| assert_eq!(line(words), command));
        }
    }

    #[test]
    fn what_is_no_page() {
        let error = Reply::Error("WRONGTYPE x".to_owned());
        assert_eq!(
            Kind::List.page(Position::At(0), error),
            Err("WRONGTYPE x".to_owned())
        );
        for reply in [
            Reply::Nil,
            Reply::Integer(1),
            text("x"),
            Reply::List(vec![Reply::Nil]),
        ] {
            assert!(Kind::List.page(Position::At(0), reply.clone()).is_err());
            assert!(
                Kind::Set
                    .page(Kind::Set.beginning(), reply.clone())
                    .is_err()
            );
            assert!(Kind::Stream.page(Kind::Stream.beginning(), reply).is_err());
        }
    }

    #[test]
    fn names_of_types() {
        for (name, length) in [
            ("string", "STRLEN"),
            ("list", "LLEN"),
            ("set", "SCARD"),
            ("hash", "HLEN"),
            ("zset", "ZCARD"),
            ("stream", "XLEN"),
        ] {
            assert_eq!(Kind::read(name.as_bytes()).map(Kind::length), Some(length));
        }
        assert_eq!(Kind::read(b"vectorset"), None);
    }
}
