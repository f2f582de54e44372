//! Cursors of `SCAN` over all groups, and of `HSCAN` and the like.
//!
//! A group's own cursor is not enough to go on by: it must say which group's it is, and of which slot map.
//! All of it is in the number that the client gets, so that any proxy with the same topology goes on where
//! another has stopped, and none remembers anything. From the lowest bits:
//!
//! * [`MAP_BITS`] bits of the topology's fingerprint;
//! * the group, and times the number of groups the group's own cursor.
//!
//! While the servers' cursors are below 2²⁸ (so are those of a hundred million keys) and groups are few, it
//! stays below 2⁵³: there are clients that take it for a JavaScript number.
//!
//! A cursor of another slot map is one of the beginning. A slot may have moved to a group that was visited
//! before; a server that took another's place has its keys in another order. So every key that is there all
//! the time is returned, some of them twice, as Redis's own guarantee has it.
//!
//! The cursor of an `HSCAN`, `SSCAN` or `ZSCAN` means something to one server alone: another has the elements
//! in another order, and would leave some out without a word. So it says whose it is, in as many bits; to a
//! server that it is not of, since the slot has moved or another serves its group, it is one of the
//! beginning. What returns before is returned again, as Redis's guarantee has it.

use proto::Topology;

/// Of the fingerprint.
const MAP_BITS: u32 = 20;

/// How far a scan has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    /// By its index in the topology.
    pub(crate) group: u16,
    /// The group's own cursor; 0: it has not begun.
    pub(crate) server: u64,
}

/// What cursors are read and written by.
pub(crate) struct Cursors {
    map: u64,
    groups: u64,
    /// The groups that own slots, in the order in which they are visited. Never empty.
    owners: Vec<u16>,
}

/// A group's cursor leaves no room for the rest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TooLarge;

impl Cursors {
    /// None where no group owns slots.
    pub(crate) fn new(topology: &Topology) -> Option<Self> {
        let owners: Vec<u16> = topology.owners().collect();
        (!owners.is_empty()).then(|| Self {
            map: u64::from(topology.fingerprint()) & ((1 << MAP_BITS) - 1),
            groups: topology.groups().len() as u64,
            owners,
        })
    }

    /// Where to go on; 0, and whatever is no cursor of this slot map, begins.
    pub(crate) fn read(&self, cursor: u64) -> Place {
        let (map, place) = (cursor & ((1 << MAP_BITS) - 1), cursor >> MAP_BITS);
        let found = Place {
            group: (place % self.groups) as u16,
            server: place / self.groups,
        };
        if cursor != 0 && map == self.map && self.owners.contains(&found.group) {
            found
        } else {
            Place {
                group: self.owners[0],
                server: 0,
            }
        }
    }

    /// The cursor to go on by, after a group has answered with this one of its own; 0: that was all.
    pub(crate) fn behind(&self, group: u16, server: u64) -> Result<u64, TooLarge> {
        if server != 0 {
            return self.write(Place { group, server });
        }
        match self.owners.iter().find(|&&other| other > group) {
            Some(&group) => self.write(Place { group, server }),
            None => Ok(0),
        }
    }

    fn write(&self, place: Place) -> Result<u64, TooLarge> {
        let number = place.server.checked_mul(self.groups);
        let number = number.and_then(|number| number.checked_add(place.group.into()));
        match number {
            Some(number) if number >> (u64::BITS - MAP_BITS) == 0 => {
                Ok(number << MAP_BITS | self.map)
            }
            Some(_) | None => Err(TooLarge),
        }
    }
}

/// What the cursors of one server's keys are read and written by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OfServer {
    mark: u64,
}

impl OfServer {
    /// Of the primary of a group, by its index.
    pub(crate) fn new(topology: &Topology, group: u16) -> Self {
        Self {
            mark: u64::from(topology.fingerprint_of(group)) & ((1 << MAP_BITS) - 1),
        }
    }

    /// The server's own; 0, and what is none of its, begins.
    pub(crate) fn read(self, cursor: u64) -> u64 {
        if cursor & ((1 << MAP_BITS) - 1) == self.mark {
            cursor >> MAP_BITS
        } else {
            0
        }
    }

    /// The cursor to go on by, after the server has answered with this one; 0: that was all.
    pub(crate) fn write(self, server: u64) -> Result<u64, TooLarge> {
        match server {
            0 => Ok(0),
            _ if server >> (u64::BITS - MAP_BITS) == 0 => Ok(server << MAP_BITS | self.mark),
            _ => Err(TooLarge),
        }
    }
}

/// A cursor as a client gives it, read as C reads a number: up to a zero byte, with a sign. None: it is
/// none.
pub(crate) fn parse(text: &[u8]) -> Option<u64> {
    let end = text.iter().position(|&b| b == 0).unwrap_or(text.len());
    let (sign, digits) = match &text[..end] {
        [sign @ (b'+' | b'-'), digits @ ..] if !digits.is_empty() => (*sign, digits),
        digits => (b'+', digits),
    };
    let digit = |number: u64, digit: &u8| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    };
    let number = digits.iter().try_fold(0, digit)?;
    Some(if sign == b'-' {
        number.wrapping_neg()
    } else {
        number
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursors(map: u64, groups: u64, owners: &[u16]) -> Cursors {
        Cursors {
            map,
            groups,
            owners: owners.to_vec(),
        }
    }

    #[test]
    fn a_cursor_leads_back_to_its_place() {
        for groups in [1, 2, 3, 16, 1024] {
            let owners: Vec<u16> = (0..groups as u16).collect();
            for map in [0, 1, 0xf_ffff] {
                let cursors = cursors(map, groups, &owners);
                for group in [0, groups as u16 / 2, groups as u16 - 1] {
                    for server in [1, 2, 12345, u64::from(u32::MAX)] {
                        let cursor = cursors.behind(group, server).unwrap();
                        assert_eq!(cursors.read(cursor), Place { group, server });
                    }
                }
            }
        }
    }

    #[test]
    fn each_group_that_owns_slots_is_visited_once() {
        let cursors = cursors(7, 5, &[1, 2, 4]);
        let mut visited = Vec::new();
        let mut cursor = 0;
        loop {
            let place = cursors.read(cursor);
            visited.push((place.group, place.server));
            let server = if place.server == 0 { 9 } else { 0 };
            cursor = cursors.behind(place.group, server).unwrap();
            if cursor == 0 {
                break;
            }
        }
        assert_eq!(visited, [(1, 0), (1, 9), (2, 0), (2, 9), (4, 0), (4, 9)]);
    }

    #[test]
    fn what_is_no_cursor_of_this_map_begins() {
        let (old, new) = (cursors(7, 3, &[0, 1, 2]), cursors(8, 3, &[0, 1, 2]));
        let first = Place {
            group: 0,
            server: 0,
        };
        let cursor = old.behind(2, 77).unwrap();
        for strange in [cursor, 0, 1, u64::MAX] {
            assert_eq!(new.read(strange), first, "{strange}");
        }
        assert_eq!(cursors(7, 3, &[1]).read(cursor).group, 1, "2 owns nothing");
    }

    #[test]
    fn a_cursor_without_room_is_an_error() {
        let cursors = cursors(7, 2, &[0, 1]);
        assert!(cursors.behind(1, (1 << 43) - 1).is_ok());
        for server in [1 << 43, u64::MAX / 2, u64::MAX] {
            assert_eq!(cursors.behind(1, server), Err(TooLarge));
        }
        // What JavaScript holds exactly.
        assert!(cursors.behind(1, 1 << 28).unwrap() < 1 << 53);
    }

    #[test]
    fn a_cursor_of_another_server_begins() {
        let (one, other) = (OfServer { mark: 7 }, OfServer { mark: 0 });
        for server in [1, 2, 12345, u64::from(u32::MAX), (1 << 44) - 1] {
            let cursor = one.write(server).unwrap();
            assert_eq!((one.read(cursor), other.read(cursor)), (server, 0));
            let cursor = other.write(server).unwrap();
            assert_eq!((one.read(cursor), other.read(cursor)), (0, server));
        }
        for of in [one, other] {
            assert_eq!((of.write(0), of.read(0)), (Ok(0), 0));
            assert_eq!(of.write(1 << 44), Err(TooLarge));
        }
        assert!(
            one.write(1 << 32).unwrap() < 1 << 53,
            "what JavaScript holds exactly"
        );
    }

    #[test]
    fn cursors_are_read_as_redis_reads_them() {
        for (text, cursor) in [
            ("0", Some(0)),
            ("17", Some(17)),
            ("007", Some(7)),
            ("", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("-1", Some(u64::MAX)),
            ("+1", Some(1)),
            ("-", None),
            ("--1", None),
            ("-18446744073709551616", None),
            ("2\0x", Some(2)),
            (" 1", None),
            ("1 ", None),
            ("1x", None),
        ] {
            assert_eq!(parse(text.as_bytes()), cursor, "{text:?}");
        }
    }
}
