//! Where channels are at home, and whose events count.
//!
//! A message reaches those who are subscribed at the server it is published at, so that publishers and
//! subscribers must agree on one: that of the group that owns the channel's slot. What servers publish
//! themselves, keyspace events, comes from where the key is. Decides only; knows no connection.

use proto::{Slot, SlotRoute, SlotState, Topology, slot::RESERVED};

use crate::{command::Topic, route::Rejection};

/// What tells RESP2 clients that a key they track has changed. The proxy speaks on it; a server never.
const INVALIDATIONS: &[u8] = b"__redis__:invalidate";
/// Before the number of a database and `__:`, the key follows; its value is what happened.
const KEYSPACE: &[u8] = b"__keyspace@";
/// Before the number of a database and `__:`, what happened follows; its value is the key.
const KEYEVENT: &[u8] = b"__keyevent@";

/// Where a channel or pattern is subscribed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Home {
    /// At the group that owns this slot.
    Slot(Slot),
    /// At every group.
    Everywhere,
    /// At none: the proxy alone speaks on it.
    Proxy,
}

/// Of a channel or pattern.
pub(super) fn of(topic: Topic, name: &[u8]) -> Home {
    match topic {
        Topic::Pattern => Home::Everywhere,
        Topic::Channel if name == INVALIDATIONS => Home::Proxy,
        Topic::Channel if behind(KEYEVENT, name).is_some() => Home::Everywhere,
        Topic::Channel | Topic::Shard => Home::Slot(slot(topic, name)),
    }
}

/// The slot whose owner a message on a channel is published at.
pub(crate) fn slot(topic: Topic, channel: &[u8]) -> Slot {
    match topic {
        Topic::Channel | Topic::Pattern => {
            Slot::of_key(behind(KEYSPACE, channel).unwrap_or(channel))
        }
        Topic::Shard => Slot::of_key(channel),
    }
}

/// The group where the channels of a held slot are subscribed besides, ahead of their move.
pub(super) fn ahead(route: &SlotRoute) -> Option<u16> {
    match route.state {
        SlotState::Held { target } => target,
        SlotState::Serving | SlotState::Copying { .. } => None,
    }
}

/// The groups, by their indices, where a channel or pattern is subscribed. One that is held stays where
/// it is until it has moved, and is subscribed where it goes, too.
pub(super) fn groups(
    topic: Topic,
    name: &[u8],
    topology: &Topology,
) -> Result<Vec<u16>, Rejection> {
    match of(topic, name) {
        Home::Proxy => Ok(Vec::new()),
        Home::Everywhere => Ok((0..topology.groups().len() as u16).collect()),
        Home::Slot(slot) => {
            let route = topology.route(slot);
            let owner = route.group.ok_or(Rejection::NotServed(slot))?;
            Ok([owner].into_iter().chain(ahead(&route)).collect())
        }
    }
}

/// Whether a message counts that came from this group. An event of a key does only if the group owns it:
/// copies of keys that are on the move raise events, too. What is Sluice's own never does: a pattern would
/// match it.
pub(super) fn counts(channel: &[u8], payload: &[u8], group: u16, topology: &Topology) -> bool {
    let key = match behind(KEYSPACE, channel) {
        Some(key) => Some(key),
        None => behind(KEYEVENT, channel).map(|_| payload),
    };
    !key.unwrap_or(channel).starts_with(RESERVED)
        && key.is_none_or(|key| topology.route(Slot::of_key(key)).group == Some(group))
}

/// Whether servers publish on a channel themselves.
pub(super) fn is_event(channel: &[u8]) -> bool {
    behind(KEYSPACE, channel).is_some() || behind(KEYEVENT, channel).is_some()
}

/// Where a message on a channel is published, if it can be now: a group, or `None` while it is held.
pub(super) fn publisher(
    topic: Topic,
    channel: &[u8],
    topology: &Topology,
) -> Result<Option<u16>, Rejection> {
    let slot = slot(topic, channel);
    let route = topology.route(slot);
    match (route.group, route.state) {
        (None, _) => Err(Rejection::NotServed(slot)),
        (Some(_), SlotState::Held { .. }) => Ok(None),
        (Some(group), SlotState::Serving | SlotState::Copying { .. }) => Ok(Some(group)),
    }
}

/// What stands behind such a prefix, a number and `__:`.
fn behind<'a>(prefix: &[u8], channel: &'a [u8]) -> Option<&'a [u8]> {
    let rest = channel.strip_prefix(prefix)?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    rest[digits..].strip_prefix(b"__:")
}

#[cfg(test)]
mod tests {
    use proto::{ClusterId, Group, GroupId, ServerAddr, Version};

    use super::*;

    /// g1 owns 0 to 511, g2 the rest; 289 (`foo`) is held, 76 (`a{b`) is nobody's. `a` is in 579.
    pub(in crate::pubsub) fn topology() -> Topology {
        let group = |id: &str, port: u16| Group {
            id: GroupId::new(id).unwrap(),
            primary: ServerAddr::new(format!("127.0.0.1:{port}")).unwrap(),
            replicas: Vec::new(),
        };
        let version = Version {
            leader_term: 1,
            epoch: 1,
        };
        let groups = [group("g1", 1), group("g2", 2)];
        Topology::new(
            ClusterId::new("c").unwrap(),
            version,
            groups,
            |slot| match slot.number() {
                76 => (None, SlotState::Serving),
                289 => (
                    Some(GroupId::new("g1").unwrap()),
                    SlotState::Held { target: None },
                ),
                n => (
                    Some(GroupId::new(if n < 512 { "g1" } else { "g2" }).unwrap()),
                    SlotState::Serving,
                ),
            },
        )
        .unwrap()
    }

    #[test]
    fn channels_have_one_home_and_patterns_all() {
        let unserved = Err(Rejection::NotServed(Slot::of_key(b"a{b")));
        for (topic, name, expected) in [
            (Topic::Channel, "a", Ok(vec![1])),
            (Topic::Channel, "foo", Ok(vec![0])),
            (Topic::Channel, "a{b", unserved.clone()),
            (Topic::Channel, "__keyspace@0__:a", Ok(vec![1])),
            (Topic::Channel, "__keyspace@12__:{a}b", Ok(vec![1])),
            (Topic::Channel, "__keyevent@0__:del", Ok(vec![0, 1])),
            (Topic::Channel, "__redis__:invalidate", Ok(vec![])),
            (Topic::Shard, "a", Ok(vec![1])),
            (Topic::Shard, "a{b", unserved),
            (Topic::Pattern, "a", Ok(vec![0, 1])),
        ] {
            let got = groups(topic, name.as_bytes(), &topology());
            assert_eq!(got, expected, "{name}");
        }
        let home = |name: &[u8]| of(Topic::Channel, name);
        assert_eq!(
            home(b"__keyspace@x__:a"),
            Home::Slot(Slot::of_key(b"__keyspace@x__:a"))
        );
    }

    #[test]
    fn a_message_is_published_where_its_channel_is_at_home() {
        let topology = topology();
        assert_eq!(publisher(Topic::Channel, b"a", &topology), Ok(Some(1)));
        assert_eq!(publisher(Topic::Channel, b"foo", &topology), Ok(None));
        let unserved = Slot::of_key(b"a{b");
        let refused = publisher(Topic::Channel, b"a{b", &topology);
        assert_eq!(refused, Err(Rejection::NotServed(unserved)));
    }

    #[test]
    fn events_count_from_the_owner_of_their_key() {
        let topology = topology();
        for (channel, payload, expected) in [
            ("__keyspace@0__:a", "set", [false, true]),
            ("__keyevent@0__:set", "a", [false, true]),
            ("__keyevent@0__:set", "foo", [true, false]),
            ("__keyevent@0__:set", "a{b", [false, false]),
            ("a", "foo", [true, true]),
            ("a", "{sluice}:fence", [true, true]),
            ("{sluice}:wait", "foo", [false, false]),
            ("__keyspace@0__:{sluice}:fence", "hset", [false, false]),
            ("__keyevent@0__:hset", "{sluice}:fence", [false, false]),
        ] {
            for (group, expected) in (0..).zip(expected) {
                let got = counts(channel.as_bytes(), payload.as_bytes(), group, &topology);
                assert_eq!(got, expected, "{channel} {payload} from {group}");
            }
        }
    }
}
