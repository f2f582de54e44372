//! Who receives messages, over all groups: servers count connections, of which the proxy knows more.

use std::collections::HashSet;

use proto::slot::RESERVED;

use super::value::{frames, number, text};
use crate::{
    pubsub::census::Correction,
    resp::{put_bulk, put_header, put_int},
};

/// A channel whose subscribers are counted.
pub(crate) struct Channel {
    pub(crate) name: Box<[u8]>,
    /// Subscribed at every group, so that each counts the same: the largest of their numbers counts.
    pub(crate) everywhere: bool,
    pub(crate) correction: Correction,
}

/// The reply to `PUBSUB NUMSUB`: one number for each channel, from those of all groups.
pub(super) fn put_counts<'a>(
    channels: &[Channel],
    replies: impl Iterator<Item = &'a [u8]> + Clone,
    out: &mut Vec<u8>,
) {
    put_header(out, b'*', 2 * channels.len());
    for (index, channel) in channels.iter().enumerate() {
        let numbers = replies
            .clone()
            .filter_map(|reply| number(frames(reply).nth(2 * index + 1)?));
        let number = if channel.everywhere {
            numbers.max().unwrap_or(0)
        } else {
            numbers.sum()
        };
        put_bulk(out, &channel.name);
        put_int(out, channel.correction.apply(number));
    }
}

/// All that the groups' arrays have, each once, and nothing of Sluice's own.
pub(super) fn put_union<'a>(replies: impl Iterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
    let mut seen = HashSet::new();
    let mut all = replies.flat_map(frames).collect::<Vec<_>>();
    all.retain(|frame| {
        let is_own = text(frame).is_some_and(|name| name.starts_with(RESERVED));
        !is_own && seen.insert(*frame)
    });
    put_header(out, b'*', all.len());
    all.iter().for_each(|frame| out.extend_from_slice(frame));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(name: &str, count: i64) -> Vec<u8> {
        let mut reply = Vec::new();
        put_header(&mut reply, b'*', 2);
        put_bulk(&mut reply, name.as_bytes());
        put_int(&mut reply, count);
        reply
    }

    #[test]
    fn subscribers_are_added_up_and_put_right() {
        let replies = [reply("c", 2), reply("c", 5)];
        for (everywhere, connections, expected) in [(false, 3, 5), (true, 3, 3), (true, 9, 1)] {
            let channel = Channel {
                name: Box::from(&b"c"[..]),
                everywhere,
                correction: Correction {
                    connections,
                    sessions: 1,
                },
            };
            let mut out = Vec::new();
            put_counts(&[channel], replies.iter().map(Vec::as_slice), &mut out);
            assert_eq!(out, reply("c", expected));
        }
    }

    #[test]
    fn a_channel_is_named_once() {
        let replies = [
            &b"*2\r\n$1\r\na\r\n$1\r\nb\r\n"[..],
            b"*2\r\n$1\r\nb\r\n$10\r\n{sluice}:x\r\n",
            b"*0\r\n",
        ];
        let mut out = Vec::new();
        put_union(replies.into_iter(), &mut out);
        assert_eq!(out, b"*2\r\n$1\r\na\r\n$1\r\nb\r\n");
    }
}
