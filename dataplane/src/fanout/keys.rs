//! Keys that groups have listed, and which of them a client may see.
//!
//! A server may hold keys that are not its group's: copies of a slot that is on its way here, and what is
//! left of one that has gone. Its owner lists them too, or will; so a group's word counts for the slots it
//! owns alone. Nobody sees what is Sluice's own.

use std::sync::Arc;

use proto::{Slot, Topology, slot::RESERVED};

use super::{
    cursor::{self, Cursors, OfServer, TooLarge},
    value::{frames, number, text},
};
use crate::{
    error,
    resp::{Protocol, put_bulk, put_error, put_header, put_null},
};

/// Whose keys are whose, as of when the groups were asked.
pub(crate) struct Owners {
    pub(crate) topology: Arc<Topology>,
    /// The groups that were asked, in order.
    pub(crate) groups: Vec<u16>,
}

impl Owners {
    /// Of the keys that a group has listed, those to be shown, as they came.
    fn shown<'a>(&self, group: u16, listed: &'a [u8]) -> Vec<&'a [u8]> {
        let is_shown = |frame: &&[u8]| {
            text(frame).is_some_and(|key| {
                let slot = Slot::of_key(key);
                self.topology.route(slot).group == Some(group)
                    && !(slot == Slot::OF_RESERVED && key.starts_with(RESERVED))
            })
        };
        frames(listed).filter(is_shown).collect()
    }

    /// Merges the replies to `KEYS`, one of each group.
    pub(super) fn put_all<'a>(&self, replies: impl Iterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
        let mut all = Vec::new();
        for (&group, listed) in self.groups.iter().zip(replies) {
            all.extend(self.shown(group, listed));
        }
        put_frames(&all, out);
    }
}

/// What a page of a `SCAN` is made of: the reply of the one group that was asked.
pub(crate) struct Page {
    pub(crate) owners: Owners,
    pub(crate) cursors: Cursors,
}

impl Page {
    /// Writes the page: the cursor over all groups, and what is to be shown of the group's.
    pub(super) fn put(&self, reply: &[u8], out: &mut Vec<u8>) {
        match self.read(reply) {
            Err(text) => put_error(out, text),
            Ok((cursor, shown)) => {
                put_header(out, b'*', 2);
                put_bulk(out, cursor.to_string().as_bytes());
                put_frames(&shown, out);
            }
        }
    }

    /// The cursor over all groups, and the keys to be shown; else the error.
    pub(crate) fn keys<'a>(&self, reply: &'a [u8]) -> Result<(u64, Vec<&'a [u8]>), &'static str> {
        let (cursor, shown) = self.read(reply)?;
        Ok((cursor, shown.into_iter().filter_map(text).collect()))
    }

    /// The same, each key as it came.
    fn read<'a>(&self, reply: &'a [u8]) -> Result<(u64, Vec<&'a [u8]>), &'static str> {
        let group = self.owners.groups[0];
        let (server, listed) = page(reply).ok_or(error::NO_PAGE)?;
        match self.cursors.behind(group, server) {
            Ok(cursor) => Ok((cursor, self.owners.shown(group, listed))),
            Err(TooLarge) => Err(error::CURSOR_TOO_LARGE),
        }
    }
}

/// What a `RANDOMKEY` is drawn by, from what each group was asked ([`Draw::ASKED`]).
pub(crate) struct Draw {
    pub(crate) owners: Owners,
    pub(crate) protocol: Protocol,
    /// Any number.
    pub(crate) random: u64,
}

impl Draw {
    /// Asked of each group. One draws at random among the keys it holds, shown or not; where it holds so
    /// few that a page lists them all, the draw is made from that list.
    pub(crate) const ASKED: [&'static [u8]; 3] = [
        b"*1\r\n$6\r\nDBSIZE\r\n",
        b"*1\r\n$9\r\nRANDOMKEY\r\n",
        b"*4\r\n$4\r\nSCAN\r\n$1\r\n0\r\n$5\r\nCOUNT\r\n$2\r\n64\r\n",
    ];

    /// Writes a key of some group, each with a chance by the number of its keys; or that there is none.
    pub(super) fn put(&self, replies: &[&[u8]], out: &mut Vec<u8>) {
        let replies = replies.chunks_exact(Self::ASKED.len());
        let drawn = self.owners.groups.iter().zip(replies);
        let drawn: Vec<(u64, &[u8])> = drawn
            .filter_map(|(&group, replies)| self.of_group(group, replies))
            .collect();
        let total: u64 = drawn.iter().map(|(keys, _)| keys).sum();
        let mut place = self.random % total.max(1);
        for (keys, key) in drawn {
            if place < keys {
                return out.extend_from_slice(key);
            }
            place -= keys;
        }
        put_null(out, self.protocol);
    }

    /// How many keys a group counts for, and one of them. None: it has none.
    fn of_group<'a>(&self, group: u16, replies: &[&'a [u8]]) -> Option<(u64, &'a [u8])> {
        let (cursor, listed) = page(replies[2])?;
        let listed = self.owners.shown(group, listed);
        let any = listed.get((self.random.rotate_left(32) % listed.len().max(1) as u64) as usize);
        if cursor == 0 {
            return any.map(|key| (listed.len() as u64, *key));
        }
        let held = number(replies[0]).and_then(|held| u64::try_from(held).ok())?;
        let drawn = [b"*1\r\n", replies[1]].concat();
        let is_shown = !self.owners.shown(group, &drawn).is_empty();
        let key = if is_shown {
            Some(replies[1])
        } else {
            any.copied()
        };
        key.map(|key| (held, key))
    }
}

/// A server's reply to `SCAN`: its cursor, and the array of keys.
fn page(reply: &[u8]) -> Option<(u64, &[u8])> {
    let mut values = frames(reply);
    let cursor = cursor::parse(text(values.next()?)?)?;
    Some((cursor, values.next()?))
}

/// Writes a page of a key's elements with the cursor by which its client is to go on.
pub(super) fn put_elements(cursors: OfServer, reply: &[u8], out: &mut Vec<u8>) {
    let Some((server, elements)) = page(reply) else {
        return out.extend_from_slice(reply);
    };
    match cursors.write(server) {
        Ok(cursor) => {
            put_header(out, b'*', 2);
            put_bulk(out, cursor.to_string().as_bytes());
            out.extend_from_slice(elements);
        }
        Err(TooLarge) => put_error(out, error::CURSOR_TOO_LARGE),
    }
}

fn put_frames(frames: &[&[u8]], out: &mut Vec<u8>) {
    put_header(out, b'*', frames.len());
    frames.iter().for_each(|frame| out.extend_from_slice(frame));
}

#[cfg(test)]
mod tests {
    use proto::{ClusterId, Group, GroupId, ServerAddr, SlotState, Version};

    use super::*;

    /// g1 owns the slots below 512, g2 the others: a is in slot 579, b in 849 (of g2), foo in 289 (of g1).
    fn owners(groups: &[u16]) -> Owners {
        let group = |n: u16| Group {
            id: GroupId::new(format!("g{n}")).unwrap(),
            primary: ServerAddr::new(format!("h:{n}")).unwrap(),
            replicas: Vec::new(),
        };
        let version = Version {
            leader_term: 1,
            epoch: 1,
        };
        let id = ClusterId::new("c").unwrap();
        let topology = Topology::new(id, version, [group(1), group(2)], |slot| {
            let owner = if slot.number() < 512 { "g1" } else { "g2" };
            (Some(GroupId::new(owner).unwrap()), SlotState::Serving)
        });
        Owners {
            topology: Arc::new(topology.unwrap()),
            groups: groups.to_vec(),
        }
    }

    fn array(keys: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        put_header(&mut out, b'*', keys.len());
        keys.iter()
            .for_each(|key| put_bulk(&mut out, key.as_bytes()));
        out
    }

    fn page(cursor: &str, keys: &[&str]) -> Vec<u8> {
        let mut out = b"*2\r\n".to_vec();
        put_bulk(&mut out, cursor.as_bytes());
        out.extend(array(keys));
        out
    }

    #[test]
    fn a_group_lists_its_own_keys_and_nobody_sluices() {
        let replies = [
            array(&["foo", "a", "{sluice}:fence", "{sluice}x"]),
            array(&["b", "foo", "a"]),
        ];
        let mut out = Vec::new();
        owners(&[0, 1]).put_all(replies.iter().map(Vec::as_slice), &mut out);
        assert_eq!(out, array(&["foo", "{sluice}x", "b", "a"]));
    }

    #[test]
    fn a_page_is_filtered_and_leads_to_the_next_group() {
        let put = |group: u16, reply: &[u8]| {
            let owners = owners(&[group]);
            let cursors = Cursors::new(&owners.topology).unwrap();
            let mut out = Vec::new();
            Page { owners, cursors }.put(reply, &mut out);
            out
        };
        let cursors = Cursors::new(&owners(&[]).topology).unwrap();
        let next = cursors.behind(0, 0).unwrap().to_string();
        assert_eq!(put(0, &page("0", &["a", "foo"])), page(&next, &["foo"]));
        assert_eq!(put(1, &page("0", &["foo"])), page("0", &[]));
        let more = cursors.behind(1, 6).unwrap().to_string();
        assert_eq!(put(1, &page("6", &["a"])), page(&more, &["a"]));
        let vast = page(&u64::MAX.to_string(), &["a"]);
        assert!(put(1, &vast).starts_with(b"-ERR the server's cursor"));
        for strange in [
            &b"*0\r\n"[..],
            b"+OK\r\n",
            b"*2\r\n$1\r\nx\r\n*0\r\n",
            b"*-1\r\n",
        ] {
            assert!(put(1, strange).starts_with(b"-ERR"));
        }
    }

    /// What is drawn for each of many numbers.
    fn drawn(replies: &[Vec<u8>]) -> std::collections::BTreeSet<String> {
        let replies: Vec<&[u8]> = replies.iter().map(Vec::as_slice).collect();
        let draw = |random: u64| {
            let draw = Draw {
                owners: owners(&[0, 1]),
                protocol: Protocol::Resp2,
                random: random.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            };
            let mut out = Vec::new();
            draw.put(&replies, &mut out);
            String::from_utf8(out).unwrap()
        };
        (0..1000).map(draw).collect()
    }

    #[test]
    fn a_random_key_is_one_of_those_shown() {
        let few = |key: &str, keys: &[&str]| {
            [
                format!(":{}\r\n", keys.len()).into_bytes(),
                format!("${}\r\n{key}\r\n", key.len()).into_bytes(),
                page("0", keys),
            ]
        };
        let many = |key: &str, keys: &[&str]| {
            let [_, key, _] = few(key, &[]);
            [b":1000\r\n".to_vec(), key, page("8", keys)]
        };
        let all = |one: [Vec<u8>; 3], two: [Vec<u8>; 3]| drawn(&[one, two].concat());
        let set = |keys: &[&str]| {
            let bulk = |key: &&str| format!("${}\r\n{key}\r\n", key.len());
            keys.iter().map(bulk).collect()
        };
        let none = std::iter::once("$-1\r\n".to_owned()).collect();
        // What the servers drew is another's, or Sluice's: of a few keys all are known.
        let one = few("{sluice}:fence", &["{sluice}:fence", "foo", "a"]);
        let two = few("foo", &["foo", "a", "b"]);
        assert_eq!(all(one.clone(), two), set(&["foo", "a", "b"]));
        assert_eq!(all(one, few("foo", &["foo"])), set(&["foo"]));
        assert_eq!(all(few("a", &["a"]), few("foo", &[])), none);
        // Of many, what was drawn, or else one of some.
        assert_eq!(all(many("foo", &[]), few("foo", &[])), set(&["foo"]));
        assert_eq!(all(few("a", &[]), many("foo", &["a"])), set(&["a"]));
        assert_eq!(all(many("a", &[]), many("foo", &[])), none);
    }
}
