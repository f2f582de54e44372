//! What the copy has to know of a server, as it says itself in `INFO`.
//!
//! Pure: it reads a text.

use std::collections::BTreeMap;

use crate::probe::field;

/// A replica that follows says each second how far it is. One that has not for longer, in seconds, hangs or is gone.
const LAG_MAX: u64 = 3;

/// What a server of this version, with these settings, can do; and what must not change while it is
/// copied from or to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Server {
    /// Of the process.
    pub(super) run_id: String,
    /// The Redis version whose commands it has: of Valkey the one it came from.
    pub(super) version: (u32, u32),
    /// The version of Valkey, if it is one.
    pub(super) valkey: Option<(u32, u32)>,
    /// Whether it takes writes of its own.
    pub(super) primary: bool,
    /// Replicas that are connected to it.
    pub(super) replicas: u64,
    /// Whether one of them follows it: has all but what is on its way, and says so.
    pub(super) is_followed: bool,
    /// Whether it writes down all commands in an append-only file.
    pub(super) appends: bool,
    /// Keys thrown out for want of memory, since it started.
    pub(super) evicted: u64,
    /// How it chooses what to throw out when its memory is full: `noeviction`, `allkeys-lru` and so on.
    pub(super) policy: String,
    /// Bytes of memory it uses.
    pub(super) memory: u64,
    /// Bytes of memory it may use; none: as many as there are.
    pub(super) most_memory: Option<u64>,
    /// Whether it is a node of a Redis Cluster.
    pub(super) cluster_mode: bool,
    /// Of each database that has keys, how many.
    pub(super) keyspace: BTreeMap<u32, u64>,
}

impl Server {
    /// Reads what `INFO` answers. The error says what it lacks.
    pub(super) fn read(info: &str) -> Result<Self, String> {
        let need = |name| field(info, name).ok_or_else(|| format!("its INFO has no {name}"));
        let number = |name| field(info, name).and_then(|text| text.parse().ok());
        let version = need("redis_version")?;
        Ok(Self {
            run_id: need("run_id")?.to_owned(),
            version: two(version).ok_or_else(|| format!("its version is `{version}`"))?,
            valkey: field(info, "valkey_version").and_then(two),
            primary: need("role")? == "master",
            replicas: number("connected_slaves").unwrap_or(0),
            is_followed: info.lines().any(is_following),
            appends: field(info, "aof_enabled") == Some("1"),
            evicted: number("evicted_keys").unwrap_or(0),
            policy: field(info, "maxmemory_policy")
                .unwrap_or_default()
                .to_owned(),
            memory: number("used_memory").unwrap_or(0),
            most_memory: number("maxmemory").filter(|most| *most > 0),
            cluster_mode: field(info, "cluster_enabled") == Some("1"),
            keyspace: keyspace(info),
        })
    }

    /// Whether it throws out what is used least often, and so knows how often.
    pub(super) fn counts_usage(&self) -> bool {
        self.policy.ends_with("-lfu")
    }

    /// Whether it throws keys out when its memory is full.
    pub(super) fn evicts(&self) -> bool {
        self.most_memory.is_some() && self.policy != "noeviction"
    }

    /// Whether it has functions.
    pub(super) fn has_functions(&self) -> bool {
        self.version >= (7, 0)
    }

    /// Whether it is new enough for its slots to be copied.
    pub(super) fn is_source(&self) -> bool {
        self.version >= (3, 2)
    }

    /// Whether it tells which keys change, whatever changes them (`CLIENT TRACKING`).
    pub(super) fn tracks(&self) -> bool {
        self.version >= (6, 0)
    }

    /// Whether it has `UNLINK`.
    pub(super) fn unlinks(&self) -> bool {
        self.version >= (4, 0)
    }

    /// Whether it has `MEMORY USAGE`.
    pub(super) fn tells_sizes(&self) -> bool {
        self.version >= (4, 0)
    }

    /// Whether it has `PEXPIRETIME`.
    pub(super) fn tells_expiry(&self) -> bool {
        self.version >= (7, 0)
    }

    /// Whether a connection can read without making what it reads look used.
    pub(super) fn reads_untouched(&self) -> bool {
        self.version >= (7, 2)
    }

    /// Whether `RESTORE` takes a time of expiry and how long nobody has used the key.
    pub(super) fn restores_exactly(&self) -> bool {
        self.version >= (5, 0)
    }

    /// Whether fields of hashes can expire by themselves.
    pub(super) fn expires_fields(&self) -> bool {
        match self.valkey {
            Some(version) => version >= (9, 0),
            None => self.version >= (7, 4),
        }
    }

    /// Whether streams count what was added to them, and groups what they have read.
    pub(super) fn streams_count(&self) -> bool {
        self.version >= (7, 0)
    }

    /// How many keys it has.
    pub(super) fn keys(&self) -> u64 {
        self.keyspace.values().sum()
    }
}

/// Of each database that has keys, how many, by `INFO keyspace`.
pub(super) fn keyspace(info: &str) -> BTreeMap<u32, u64> {
    let read = |line: &str| {
        let (number, rest) = line.strip_prefix("db")?.split_once(":keys=")?;
        let keys = rest.split(',').next()?.trim().parse().ok()?;
        Some((number.parse().ok()?, keys))
    };
    info.lines().filter_map(read).collect()
}

/// Whether a line of `INFO replication` is of a replica that has been given all, and has said lately how far it is.
fn is_following(line: &str) -> bool {
    let is_replica = line.strip_prefix("slave").and_then(|rest| {
        let (number, facts) = rest.split_once(':')?;
        number.parse::<u32>().is_ok().then_some(facts)
    });
    let Some(facts) = is_replica else {
        return false;
    };
    let fact = |name: &str| {
        let mut facts = facts
            .trim()
            .split(',')
            .filter_map(|fact| fact.split_once('='));
        facts.find_map(|(is, value)| (is == name).then_some(value))
    };
    let lag = fact("lag").and_then(|lag| lag.parse().ok());
    fact("state") == Some("online") && lag.is_some_and(|lag: u64| lag <= LAG_MAX)
}

fn two(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "# Server\r\nredis_version:7.0.15\r\nrun_id:abc\r\n\
        used_memory:1000\r\nmaxmemory:5000\r\nmaxmemory_policy:allkeys-lfu\r\n\
        evicted_keys:3\r\nrole:master\r\nconnected_slaves:1\r\naof_enabled:1\r\n# Keyspace\r\n\
        db0:keys=5,expires=0,avg_ttl=0\r\ndb11:keys=2,expires=0,avg_ttl=0\r\n";

    #[test]
    fn what_it_says() {
        let server = Server::read(INFO).unwrap();
        let expected = Server {
            run_id: "abc".to_owned(),
            version: (7, 0),
            valkey: None,
            primary: true,
            replicas: 1,
            is_followed: false,
            appends: true,
            evicted: 3,
            policy: "allkeys-lfu".to_owned(),
            memory: 1000,
            most_memory: Some(5000),
            cluster_mode: false,
            keyspace: [(0, 5), (11, 2)].into(),
        };
        assert_eq!(server, expected);
        assert!(server.tells_expiry() && !server.reads_untouched());
        assert!(server.counts_usage() && server.evicts());
        assert_eq!(server.keys(), 7);
    }

    #[test]
    fn a_replica_that_is_given_all_or_hangs_does_not_follow() {
        let follows = |state: &str, lag: &str| {
            is_following(&format!(
                "slave0:ip=::1,port=7001,state={state},offset=14,lag={lag}"
            ))
        };
        assert!(follows("online", "0") && follows("online", "3"));
        assert!(!follows("online", "4") && !follows("online", "") && !follows("send_bulk", "0"));
        assert!(!is_following("slave_read_only:1") && !is_following("connected_slaves:1"));
    }

    #[test]
    fn what_versions_can_do() {
        for (versions, expires_fields) in [
            ("redis_version:7.2.4\nvalkey_version:8.1.8", false),
            ("redis_version:7.2.4\nvalkey_version:9.1.2", true),
            ("redis_version:7.2.4", false),
            ("redis_version:8.2.3", true),
        ] {
            let server = Server::read(&format!("{versions}\nrun_id:a\nrole:master\n")).unwrap();
            assert_eq!(server.expires_fields(), expires_fields, "{versions}");
        }
    }

    #[test]
    fn what_is_no_server() {
        for (info, error) in [
            ("", "no redis_version"),
            ("redis_version:7.0.1\n", "no run_id"),
            ("redis_version:x\nrun_id:a\n", "its version is `x`"),
            ("redis_version:7.0.1\nrun_id:a\n", "no role"),
        ] {
            let got = Server::read(info).unwrap_err();
            assert!(got.contains(error), "{info}: {got}");
        }
    }
}
