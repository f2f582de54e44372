//! What a server's reply says, once it is whole: for those who make one of several.
//!
//! Reads in place, and writes what it has read as it was. What is not as it should be is no value: a
//! server's bytes never panic.

use std::borrow::Cow;

use crate::resp::{ReplyProgress, parse_int, put_bulk, put_header, put_int};

/// A reply, or a value within one.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Value<'a> {
    Int(i64),
    Bulk(Cow<'a, [u8]>),
    Array(Vec<Self>),
    /// Keys and values in turn. In RESP2 a map is an array.
    Map(Vec<Self>),
    /// Anything else, with its header.
    Other(Cow<'a, [u8]>),
}

/// Arrays within arrays are looked into so deep.
const DEPTH: u32 = 8;

impl<'a> Value<'a> {
    /// Reads a whole reply.
    pub(super) fn read(frame: &'a [u8]) -> Option<Self> {
        Self::read_within(frame, DEPTH)
    }

    fn read_within(frame: &'a [u8], depth: u32) -> Option<Self> {
        let within = || {
            let values = frames(frame).map(|value| Self::read_within(value, depth - 1));
            let values: Option<Vec<Self>> = values.collect();
            values
        };
        match frame.first()? {
            b':' => number(frame).map(Self::Int),
            b'*' | b'%' if depth == 0 || frame.starts_with(b"*-") => Some(Self::other(frame)),
            b'*' => within().map(Self::Array),
            b'%' => within().map(Self::Map),
            b'$' if !frame.starts_with(b"$-") => text(frame).map(|text| Self::Bulk(text.into())),
            _ => Some(Self::other(frame)),
        }
    }

    fn other(frame: &'a [u8]) -> Self {
        Self::Other(frame.into())
    }

    /// The values of an array, or the keys and values of a map; else none.
    pub(super) fn items(&self) -> &[Self] {
        match self {
            Self::Array(items) | Self::Map(items) => items,
            Self::Int(_) | Self::Bulk(_) | Self::Other(_) => &[],
        }
    }

    /// As [`Value::items`], for good.
    pub(super) fn into_items(self) -> Vec<Self> {
        match self {
            Self::Array(items) | Self::Map(items) => items,
            Self::Int(_) | Self::Bulk(_) | Self::Other(_) => Vec::new(),
        }
    }

    /// The keys of a map with their values, whichever shape it has.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&Self, &Self)> {
        self.items()
            .chunks_exact(2)
            .map(|pair| (&pair[0], &pair[1]))
    }

    /// The value of a key of a map.
    pub(super) fn get(&self, key: &[u8]) -> Option<&Self> {
        self.pairs()
            .find(|(name, _)| name.text() == Some(key))
            .map(|(_, value)| value)
    }

    /// An array or a map, as `self` is, of these.
    pub(super) fn alike(&self, items: Vec<Self>) -> Self {
        match self {
            Self::Map(_) => Self::Map(items),
            Self::Int(_) | Self::Bulk(_) | Self::Array(_) | Self::Other(_) => Self::Array(items),
        }
    }

    /// What a string says.
    pub(super) fn text(&self) -> Option<&[u8]> {
        match self {
            Self::Bulk(text) => Some(text),
            Self::Other(frame) if frame.starts_with(b"+") => frame[1..].strip_suffix(b"\r\n"),
            Self::Int(_) | Self::Array(_) | Self::Map(_) | Self::Other(_) => None,
        }
    }

    pub(super) fn int(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            Self::Bulk(_) | Self::Array(_) | Self::Map(_) | Self::Other(_) => None,
        }
    }

    /// A number with decimals: a double, or in RESP2 a string; 0 if it is none.
    pub(super) fn float(&self) -> f64 {
        let digits = match self {
            Self::Bulk(text) => &**text,
            Self::Other(frame) => frame
                .strip_prefix(b",")
                .unwrap_or_default()
                .trim_ascii_end(),
            Self::Int(_) | Self::Array(_) | Self::Map(_) => &[],
        };
        let digits = std::str::from_utf8(digits).unwrap_or_default();
        digits.parse().unwrap_or(0.0)
    }

    /// Whether it is the null of either protocol.
    pub(super) fn is_null(&self) -> bool {
        matches!(self, Self::Other(frame) if matches!(&**frame, b"_\r\n" | b"$-1\r\n" | b"*-1\r\n"))
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Int(number) => put_int(out, *number),
            Self::Bulk(text) => put_bulk(out, text),
            Self::Array(items) => {
                put_header(out, b'*', items.len());
                items.iter().for_each(|item| item.put(out));
            }
            Self::Map(items) => {
                put_header(out, b'%', items.len() / 2);
                items.iter().for_each(|item| item.put(out));
            }
            Self::Other(frame) => out.extend_from_slice(frame),
        }
    }
}

/// What stands behind an array's header.
pub(super) fn values(array: &[u8]) -> &[u8] {
    &array[header(array).len()..]
}

/// How many values an array has, or pairs a map, by its header.
pub(super) fn count(array: &[u8]) -> usize {
    let count = header(array).get(1..).map(<[u8]>::trim_ascii_end);
    let count = count.and_then(parse_int).unwrap_or(0);
    usize::try_from(count).unwrap_or(0)
}

/// Whether it is an array, and not the null one.
pub(crate) fn is_array(reply: &[u8]) -> bool {
    reply.starts_with(b"*") && !reply.starts_with(b"*-")
}

/// The values of an array, or the keys and values of a map, as they came.
pub(crate) fn frames(array: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = values(array);
    std::iter::from_fn(move || {
        let len = ReplyProgress::default().scan(rest).ok()??;
        let (value, behind) = rest.split_at(len);
        rest = behind;
        Some(value)
    })
}

/// What a bulk or verbatim string says.
pub(crate) fn text(frame: &[u8]) -> Option<&[u8]> {
    let header = header(frame);
    let len = match header.first()? {
        b'$' | b'=' => header[1..].strip_suffix(b"\r\n")?,
        _ => return None,
    };
    let len = usize::try_from(parse_int(len)?).ok()?;
    let text = frame.get(header.len()..header.len() + len)?;
    match header[0] {
        b'=' => text.get(4..), // behind its format
        _ => Some(text),
    }
}

/// The number of an integer reply.
pub(crate) fn number(reply: &[u8]) -> Option<i64> {
    parse_int(reply.strip_prefix(b":")?.strip_suffix(b"\r\n")?)
}

/// The first line.
fn header(frame: &[u8]) -> &[u8] {
    let newline = frame.iter().position(|&b| b == b'\n');
    &frame[..newline.map_or(frame.len(), |newline| newline + 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written_as_it_was() {
        for frame in [
            "*0\r\n",
            "*-1\r\n",
            "*3\r\n:1\r\n$2\r\nab\r\n*1\r\n$-1\r\n",
            "%1\r\n+a\r\n%1\r\n,1.5\r\n_\r\n",
            "=7\r\ntxt:abc\r\n",
            "-ERR no\r\n",
            "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
        ] {
            let mut out = Vec::new();
            Value::read(frame.as_bytes()).unwrap().put(&mut out);
            assert_eq!(String::from_utf8(out).unwrap(), frame);
        }
        for broken in ["", ":x\r\n", "$9\r\nabc\r\n", "$9", "*1\r\n:x\r\n"] {
            assert_eq!(Value::read(broken.as_bytes()), None, "{broken:?}");
        }
    }

    #[test]
    fn maps_are_the_same_in_both_shapes() {
        for frame in [
            "*4\r\n$1\r\na\r\n:1\r\n$1\r\nb\r\n:2\r\n",
            "%2\r\n+a\r\n:1\r\n+b\r\n:2\r\n",
        ] {
            let map = Value::read(frame.as_bytes()).unwrap();
            assert_eq!(map.get(b"b").and_then(Value::int), Some(2));
            assert_eq!(map.get(b"c"), None);
        }
        assert_eq!(text(b"=7\r\ntxt:abc\r\n"), Some(&b"abc"[..]));
        assert!(Value::read(b"_\r\n").unwrap().is_null());
    }
}
