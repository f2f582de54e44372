//! Who is subscribed to what at this proxy, over all its workers: for the numbers that servers cannot know.
//!
//! A server counts connections, and a worker's sessions share one. So of a number that a server tells,
//! this proxy's connections are taken off and its sessions are added ([`Correction`]): it is exact where
//! all subscribers are at this proxy, and else counts another proxy's workers for its sessions.
//!
//! Locked when a subscription begins or ends and when a message is published or counted, never to
//! deliver one, and never over an await.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use proto::ServerAddr;

use crate::{command::Topic, glob};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Census {
    subscriptions: AtomicUsize,
    /// Subscriptions of sessions and of connections: without any there is nothing to correct.
    entries: AtomicUsize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    sessions: Names,
    connections: HashMap<ServerAddr, Names>,
}

/// How often each channel, pattern and shard channel is there.
#[derive(Debug, Default)]
struct Names([HashMap<Box<[u8]>, usize>; Topic::COUNT]);

/// What makes a server's number of receivers the cluster's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Correction {
    /// This proxy's connections, which the server counts.
    pub(crate) connections: usize,
    /// This proxy's sessions, which it does not.
    pub(crate) sessions: usize,
}

impl Correction {
    /// Of a server's number. A subscription that is just ending may not be in it any more.
    pub(crate) fn apply(self, number: i64) -> i64 {
        (number - self.connections as i64).max(0) + self.sessions as i64
    }

    fn plus(self, other: Self) -> Self {
        Self {
            connections: self.connections + other.connections,
            sessions: self.sessions + other.sessions,
        }
    }
}

impl Names {
    fn add(&mut self, topic: Topic, name: &[u8]) {
        let names = &mut self.0[topic as usize];
        match names.get_mut(name) {
            Some(count) => *count += 1,
            None => _ = names.insert(name.into(), 1),
        }
    }

    fn take(&mut self, topic: Topic, name: &[u8]) {
        let names = &mut self.0[topic as usize];
        if let Some(count) = names.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                names.remove(name);
            }
        }
    }

    fn of(&self, topic: Topic, name: &[u8]) -> usize {
        self.0[topic as usize].get(name).copied().unwrap_or(0)
    }
}

impl Census {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many subscriptions all sessions have.
    pub(crate) fn subscriptions(&self) -> usize {
        self.subscriptions.load(Relaxed)
    }

    /// A session has subscribed.
    pub(super) fn join(&self, topic: Topic, name: &[u8]) {
        self.subscriptions.fetch_add(1, Relaxed);
        self.entries.fetch_add(1, Relaxed);
        self.counts().sessions.add(topic, name);
    }

    /// A session's subscription has ended.
    pub(super) fn leave(&self, topic: Topic, name: &[u8]) {
        self.subscriptions.fetch_sub(1, Relaxed);
        self.entries.fetch_sub(1, Relaxed);
        self.counts().sessions.take(topic, name);
    }

    /// A worker's connection is subscribed at a server.
    pub(super) fn connect(&self, server: &ServerAddr, topic: Topic, name: &[u8]) {
        self.entries.fetch_add(1, Relaxed);
        let mut counts = self.counts();
        if let Some(names) = counts.connections.get_mut(server) {
            names.add(topic, name);
        } else {
            let names = counts.connections.entry(server.clone()).or_default();
            names.add(topic, name);
        }
    }

    /// It no longer is.
    pub(super) fn disconnect(&self, server: &ServerAddr, topic: Topic, name: &[u8]) {
        self.entries.fetch_sub(1, Relaxed);
        let mut counts = self.counts();
        if let Some(names) = counts.connections.get_mut(server) {
            names.take(topic, name);
            if names.0.iter().all(HashMap::is_empty) {
                counts.connections.remove(server);
            }
        }
    }

    /// For a message that is published at a server. `None`: nobody here would get it.
    pub(super) fn of_message(
        &self,
        server: &ServerAddr,
        topic: Topic,
        channel: &[u8],
    ) -> Option<Correction> {
        if self.entries.load(Relaxed) == 0 {
            return None;
        }
        let counts = self.counts();
        let connections = counts.connections.get(server);
        let one = |topic: Topic, name: &[u8]| Correction {
            connections: connections.map_or(0, |names| names.of(topic, name)),
            sessions: counts.sessions.of(topic, name),
        };
        let mut correction = one(topic, channel);
        if topic == Topic::Channel {
            let mut patterns: Vec<&[u8]> = Vec::new();
            let sessions = &counts.sessions.0[Topic::Pattern as usize];
            patterns.extend(sessions.keys().map(|name| &name[..]));
            // Those whose last session has just left.
            let left = connections.map(|names| names.0[Topic::Pattern as usize].keys());
            let left = left.into_iter().flatten().map(|name| &name[..]);
            patterns.extend(left.filter(|&name| !sessions.contains_key(name)));
            for pattern in patterns {
                if glob::matches(pattern, channel, glob::Case::Exact) {
                    correction = correction.plus(one(Topic::Pattern, pattern));
                }
            }
        }
        (correction != Correction::default()).then_some(correction)
    }

    /// For how many are subscribed to a channel, by the sum of what all servers say; or, of one that is
    /// at home everywhere, by what any one of them says.
    pub(super) fn of_channel(&self, topic: Topic, channel: &[u8], everywhere: bool) -> Correction {
        let counts = self.counts();
        let connections = counts.connections.values();
        let connections = connections.map(|names| names.of(topic, channel));
        Correction {
            connections: if everywhere {
                connections.max().unwrap_or(0)
            } else {
                connections.sum()
            },
            sessions: counts.sessions.of(topic, channel),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_taken_off_and_sessions_added() {
        let census = Census::default();
        let [one, two] = ["h:1", "h:2"].map(|addr| ServerAddr::new(addr).unwrap());
        let of = |server: &ServerAddr, channel: &[u8]| {
            let correction = census.of_message(server, Topic::Channel, channel);
            correction.map(|c| (c.connections, c.sessions))
        };
        assert_eq!(of(&one, b"news"), None);
        (0..3).for_each(|_| census.join(Topic::Channel, b"news"));
        census.connect(&one, Topic::Channel, b"news");
        assert_eq!(of(&one, b"news"), Some((1, 3)));
        assert_eq!(of(&two, b"news"), Some((0, 3)));
        census.join(Topic::Pattern, b"n*");
        census.connect(&one, Topic::Pattern, b"n*");
        census.connect(&two, Topic::Pattern, b"n*");
        assert_eq!(of(&one, b"news"), Some((2, 4)));
        assert_eq!(of(&two, b"no"), Some((1, 1)));
        assert_eq!(of(&two, b"else"), None);
        let shard = census.of_message(&one, Topic::Shard, b"news");
        assert_eq!(shard, None, "patterns match no shard channel");
        census.connect(&two, Topic::Channel, b"news");
        for (everywhere, connections) in [(false, 2), (true, 1)] {
            let all = census.of_channel(Topic::Channel, b"news", everywhere);
            assert_eq!((all.connections, all.sessions), (connections, 3));
        }
        assert_eq!(census.subscriptions(), 4);

        census.leave(Topic::Pattern, b"n*");
        assert_eq!(
            of(&two, b"no"),
            Some((1, 0)),
            "it is still subscribed there"
        );
        census.disconnect(&two, Topic::Pattern, b"n*");
        assert_eq!(of(&two, b"no"), None);
    }

    #[test]
    fn numbers_are_corrected_and_never_negative() {
        let correction = |connections, sessions| Correction {
            connections,
            sessions,
        };
        for (connections, sessions, number, expected) in [
            (1, 3, 1, 3),
            (1, 3, 2, 4),
            (1, 0, 0, 0),
            (0, 0, 7, 7),
            (2, 1, 1, 1),
        ] {
            assert_eq!(correction(connections, sessions).apply(number), expected);
        }
    }
}
