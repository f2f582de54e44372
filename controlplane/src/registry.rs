//! The proxies as they are now: who is connected, by which version they route, what they count.
//!
//! In memory only; what outlives a restart is the registration in the store. Each entry is written by
//! the one stream that holds its [`Link`]. Others read it, or wait for it to change: acks, nacks and
//! connections wake them, counters do not.
//!
//! Invariant: at most one link per proxy id is live; a link that was replaced writes no more.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use proto::{GroupId, ProxyId, Settled, Version, v1::ProxyStats};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock;

/// What is known of a proxy since this controller started.
#[derive(Clone, Debug)]
pub struct Live {
    /// The process.
    pub incarnation: String,
    /// When its stream opened last, in milliseconds since 1970.
    pub since_ms: u64,
    /// Whether its stream is open.
    pub connected: bool,
    /// The version by which all its workers route. `None`: none that it told of.
    pub acked: Option<Version>,
    /// For each group, what it said last of what was sent there before. Of a former stream, nothing.
    pub settled: BTreeMap<GroupId, Arc<Settled>>,
    /// The version refused last, and why. `None`: what was sent last was not refused.
    pub nack: Option<(Version, String)>,
    /// When it was heard last, in milliseconds since 1970.
    pub last_seen_ms: u64,
    /// Its counters, as they came last.
    pub stats: Option<ProxyStats>,
    /// Requests per second between its last two counters.
    pub requests_per_second: f64,
    stats_at: Instant,
    /// Ends the stream that holds the link.
    replaced: CancellationToken,
}

/// All proxies that were heard since this controller started.
pub type Proxies = BTreeMap<ProxyId, Live>;

/// See the module; cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<watch::Sender<Proxies>>);

/// Another live process has the id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InUse;

impl Registry {
    /// Without any proxy.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Proxies::new())))
    }

    /// A stream of a proxy opened. One of the same process that is still there is replaced: the
    /// proxy would not have opened another, had it not given that one up.
    pub fn connect(
        &self,
        id: &ProxyId,
        incarnation: &str,
        has: Option<Version>,
    ) -> Result<Link, InUse> {
        let mut result = Err(InUse);
        self.0.send_if_modified(|proxies| {
            let before = proxies.get(id);
            if before.is_some_and(|live| live.connected && live.incarnation != incarnation) {
                return false;
            }
            if let Some(before) = before {
                before.replaced.cancel();
            }
            let replaced = CancellationToken::new();
            proxies.insert(id.clone(), Live::new(incarnation, has, replaced.clone()));
            result = Ok(Link {
                registry: self.clone(),
                id: id.clone(),
                replaced,
            });
            true
        });
        result
    }

    /// Whether a stream of the proxy is open.
    pub fn is_connected(&self, id: &ProxyId) -> bool {
        self.0.borrow().get(id).is_some_and(|live| live.connected)
    }

    /// The incarnations whose workers all route by this epoch or a later one.
    pub fn confirmed(&self, epoch: u64) -> BTreeSet<String> {
        let proxies = self.0.borrow();
        let confirmed = |live: &&Live| live.acked.is_some_and(|acked| acked.epoch >= epoch);
        let confirmed = proxies.values().filter(confirmed);
        confirmed.map(|live| live.incarnation.clone()).collect()
    }

    /// Whether a stream of any proxy is open.
    pub fn has_connected(&self) -> bool {
        self.0.borrow().values().any(|live| live.connected)
    }

    /// Forgets a proxy that is gone.
    pub fn forget(&self, id: &ProxyId) {
        self.0.send_if_modified(|proxies| {
            let gone = proxies.get(id).is_some_and(|live| !live.connected);
            gone && proxies.remove(id).is_some()
        });
    }

    /// Tells when acks, nacks, settlements or connections change.
    pub fn subscribe(&self) -> watch::Receiver<Proxies> {
        self.0.subscribe()
    }

    /// All proxies now.
    pub fn proxies(&self) -> watch::Ref<'_, Proxies> {
        self.0.borrow()
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Live {
    fn new(incarnation: &str, has: Option<Version>, replaced: CancellationToken) -> Self {
        Self {
            incarnation: incarnation.to_owned(),
            since_ms: clock::now_ms(),
            connected: true,
            acked: has,
            settled: BTreeMap::new(),
            nack: None,
            last_seen_ms: clock::now_ms(),
            stats: None,
            requests_per_second: 0.0,
            stats_at: Instant::now(),
            replaced,
        }
    }

    fn count(&mut self, stats: ProxyStats, at: Instant) {
        let seconds = (at - self.stats_at).as_secs_f64();
        let before = self.stats.as_ref().map(|s| s.requests_total);
        let grown = before.and_then(|before| stats.requests_total.checked_sub(before));
        self.requests_per_second = match grown {
            Some(grown) if seconds > 0.0 => grown as f64 / seconds,
            _ => 0.0,
        };
        self.stats_at = at;
        self.stats = Some(stats);
    }
}

/// The right to write a proxy's entry. Dropping it says that the stream is closed.
pub struct Link {
    registry: Registry,
    id: ProxyId,
    replaced: CancellationToken,
}

impl Link {
    /// Resolves when a newer stream of the same process took over.
    pub async fn replaced(&self) {
        self.replaced.cancelled().await;
    }

    /// It was heard.
    pub fn heard(&self) {
        self.write(false, |live| live.last_seen_ms = clock::now_ms());
    }

    /// It routes by this version.
    pub fn acked(&self, version: Version) {
        self.write(true, |live| {
            live.acked = live.acked.max(Some(version));
            live.nack.take_if(|(refused, _)| *refused <= version);
        });
    }

    /// Nothing of what it sent to a group before is under way.
    pub fn settled(&self, settled: Settled) {
        self.write(true, |live| {
            let known = live.settled.get(&settled.group);
            if known.is_none_or(|known| known.version <= settled.version) {
                live.settled
                    .insert(settled.group.clone(), Arc::new(settled));
            }
        });
    }

    /// It refused this version.
    pub fn nacked(&self, version: Version, reason: String) {
        self.write(true, |live| live.nack = Some((version, reason)));
    }

    /// It counted.
    pub fn counted(&self, stats: ProxyStats) {
        self.write(false, |live| live.count(stats, Instant::now()));
    }

    fn write(&self, wake: bool, change: impl FnOnce(&mut Live)) {
        self.registry.0.send_if_modified(|proxies| {
            let mine = !self.replaced.is_cancelled();
            match proxies.get_mut(&self.id).filter(|_| mine) {
                Some(live) => {
                    change(live);
                    wake
                }
                None => false,
            }
        });
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.write(true, |live| {
            live.connected = false;
            live.requests_per_second = 0.0;
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proto::settled::{Lost, Streams};

    use super::*;

    fn id() -> ProxyId {
        ProxyId::new("p1").unwrap()
    }

    fn at(epoch: u64) -> Version {
        Version {
            leader_term: 1,
            epoch,
        }
    }

    fn live(registry: &Registry) -> Live {
        registry.proxies()[&id()].clone()
    }

    #[test]
    fn an_id_is_one_live_process() {
        let registry = Registry::new();
        let link = registry.connect(&id(), "a", None).unwrap();
        assert!(registry.connect(&id(), "b", None).is_err());
        registry.forget(&id());
        assert!(registry.is_connected(&id()));
        drop(link);
        assert!(!registry.is_connected(&id()));
        let _b = registry.connect(&id(), "b", Some(at(3))).unwrap();
        assert_eq!(live(&registry).acked, Some(at(3)));
    }

    #[test]
    fn a_newer_stream_of_the_same_process_replaces_the_older() {
        let registry = Registry::new();
        let old = registry.connect(&id(), "a", None).unwrap();
        let new = registry.connect(&id(), "a", None).unwrap();
        assert!(old.replaced.is_cancelled() && !new.replaced.is_cancelled());
        old.acked(at(9));
        drop(old);
        assert!(registry.is_connected(&id()));
        assert_eq!(live(&registry).acked, None);
    }

    #[test]
    fn an_ack_clears_the_nack_before_it() {
        let registry = Registry::new();
        let link = registry.connect(&id(), "a", None).unwrap();
        link.nacked(at(2), "bad".to_owned());
        link.acked(at(1));
        assert_eq!(live(&registry).nack, Some((at(2), "bad".to_owned())));
        link.acked(at(3));
        assert_eq!(live(&registry).nack, None);
    }

    #[test]
    fn what_has_settled_only_grows_and_ends_with_the_stream() {
        let registry = Registry::new();
        let link = registry.connect(&id(), "a", None).unwrap();
        let group = GroupId::new("g1").unwrap();
        let settled = |epoch| Settled {
            version: at(epoch),
            group: group.clone(),
            lost: Lost::These(BTreeSet::new()),
            streams: Streams::Any,
        };
        for (epoch, newest) in [(3, 3), (2, 3), (4, 4)] {
            link.settled(settled(epoch));
            assert_eq!(live(&registry).settled[&group].version, at(newest));
        }
        let _again = registry.connect(&id(), "a", None).unwrap();
        assert!(live(&registry).settled.is_empty());
    }

    #[test]
    fn counters_wake_nobody_and_give_a_rate() {
        let registry = Registry::new();
        let link = registry.connect(&id(), "a", None).unwrap();
        let watch = registry.0.subscribe();
        link.counted(ProxyStats::default());
        link.heard();
        assert!(!watch.has_changed().unwrap());
        link.acked(at(1));
        assert!(watch.has_changed().unwrap());

        let mut live = live(&registry);
        let total = |requests_total| ProxyStats {
            requests_total,
            ..ProxyStats::default()
        };
        let at = live.stats_at;
        live.count(total(500), at + Duration::from_secs(2));
        assert_eq!(live.requests_per_second, 250.0);
        live.count(total(3), at + Duration::from_secs(3)); // it restarted
        assert_eq!(live.requests_per_second, 0.0);
    }
}
