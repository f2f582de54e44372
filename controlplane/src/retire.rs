//! Proxies that are gone for good are forgotten: when an operator says so, or after a while.
//!
//! A proxy that is not heard may live all the same, and serve clients. So first every server shuts it out
//! ([`Retirement::shut_out`]): the cluster gets a version that it does not have, the record of each server is
//! raised to that, and what it has open there is killed. It can use none of them again before it has been
//! here. Where a server cannot do it, the proxy is not forgotten by time alone. Others that are away from the
//! controller, and use a server, would be shut out with it: then that server waits, too.
//!
//! Time alone forgets nobody: `Absences` only says for whom it is to be tried.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use proto::{ProxyId, ServerAddr, Version};
use tokio::{
    select,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use crate::{
    change,
    fence::{Fences, Target},
    model::Registration,
    registry::Registry,
    snapshot::Snapshot,
    store::{CommitError, Store},
};

/// How long the servers may take to shut a proxy out.
const FENCES: Duration = Duration::from_secs(5);

/// How long connected proxies may take to route by the version that the one lacks which is shut out.
const SWITCH: Duration = Duration::from_secs(2);

/// How often it is looked who is gone.
const LOOK: Duration = Duration::from_secs(1);

/// How long to wait after a proxy could not be forgotten.
const AGAIN: Duration = Duration::from_secs(60);

/// See the module; cheap to clone.
#[derive(Clone)]
pub struct Retirement {
    /// Where proxies are registered.
    pub store: Store,
    /// Who is connected.
    pub registry: Registry,
    /// Has servers shut them out.
    pub fences: Fences,
}

/// Why a proxy is not forgotten yet.
#[derive(Debug, thiserror::Error)]
enum NotForgotten {
    #[error("servers that did not shut it out: {0}")]
    Unreached(usize),
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl Retirement {
    /// Forgets proxies that were gone for longer than `expiry`. Ends with the store.
    pub async fn run(self, expiry: Duration) {
        let mut absences = Absences::default();
        let mut snapshots = self.store.subscribe();
        loop {
            select! {
                () = sleep(LOOK) => {}
                ended = snapshots.wait_for(|_| false) => if ended.is_err() { return },
            }
            // Who does not lead knows nothing of who is connected, and begins anew when it leads.
            if self.store.in_office().is_none() {
                absences = Absences::default();
            }
            let Some(now) = self.store.leading() else {
                continue;
            };
            let due = absences.due(self.absent(&now), Instant::now(), expiry);
            for id in due {
                match self.forget(&now, &id).await {
                    Ok(()) => info!(proxy = %id, ?expiry, "proxy was gone for too long, forgotten"),
                    Err(why) => {
                        warn!(proxy = %id, %why, "proxy is gone, and cannot be forgotten yet");
                        absences.put_off(&id, Instant::now() + AGAIN);
                    }
                }
            }
        }
    }

    /// Has every server shut a proxy out. Returns those that have not, or may not have.
    pub async fn shut_out(&self, proxy: &Registration) -> Result<Vec<ServerAddr>, CommitError> {
        let id = proxy.id.clone();
        let bar = move |_: &Snapshot| Ok(change::bar(&id));
        let now = self.store.commit(bar).await?;
        let epoch = now.head.revision;
        // Who is connected does not notice, if it routes by the new version before it is asked for it.
        let mut proxies = self.registry.subscribe();
        let have = proxies.wait_for(|proxies| {
            let has = |acked: Option<Version>| acked.is_some_and(|acked| acked.epoch >= epoch);
            proxies
                .values()
                .all(|live| !live.connected || has(live.acked))
        });
        drop(timeout(SWITCH, have).await);
        let servers = now.groups.values().map(|group| Target::primary(group));
        let deadline = Instant::now() + FENCES;
        let confirmed = self.registry.confirmed(epoch);
        let expelling = self.fences.expel(
            servers.collect(),
            &proxy.incarnation,
            epoch,
            &confirmed,
            deadline,
        );
        Ok(expelling.await)
    }

    fn absent(&self, now: &Snapshot) -> BTreeSet<ProxyId> {
        let live = self.registry.proxies();
        let connected = |id: &ProxyId| live.get(id).is_some_and(|live| live.connected);
        let absent = now.proxies.keys().filter(|id| !connected(id));
        absent.cloned().collect()
    }

    async fn forget(&self, now: &Snapshot, id: &ProxyId) -> Result<(), NotForgotten> {
        let Some(proxy) = now.proxies.get(id).map(Arc::clone) else {
            return Ok(());
        };
        match self.shut_out(&proxy).await?.len() {
            0 => {}
            unreached => return Err(NotForgotten::Unreached(unreached)),
        }
        let registry = self.registry.clone();
        // Asked on the writer: a proxy that connects later registers after this.
        let forgetting = self.store.commit(move |now| {
            let connected = registry.is_connected(&proxy.id);
            change::delete_proxy(now, &proxy.id, proxy.revision, connected)
        });
        forgetting.await?;
        self.registry.forget(id);
        Ok(())
    }
}

/// Since when proxies are gone, as far as this leader knows, or from when on it is to be tried again.
/// Pure.
#[derive(Default, Debug)]
struct Absences(BTreeMap<ProxyId, Instant>);

impl Absences {
    /// Who is gone now, and was at each look for longer than `expiry`.
    fn due(&mut self, gone: BTreeSet<ProxyId>, now: Instant, expiry: Duration) -> Vec<ProxyId> {
        self.0.retain(|id, _| gone.contains(id));
        for id in gone {
            self.0.entry(id).or_insert(now + expiry);
        }
        let due = self.0.iter().filter(|(_, at)| **at <= now);
        due.map(|(id, _)| id.clone()).collect()
    }

    fn put_off(&mut self, id: &ProxyId, until: Instant) {
        self.0.insert(id.clone(), until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_was_gone_all_the_time_is_due() {
        let (start, expiry) = (Instant::now(), Duration::from_secs(60));
        let mut absences = Absences::default();
        let mut look = |seconds: u64, gone: &str| {
            let gone = gone.split_whitespace();
            let gone = gone.map(|id| ProxyId::new(id).unwrap()).collect();
            let due = absences.due(gone, start + Duration::from_secs(seconds), expiry);
            due.iter().map(ProxyId::to_string).collect::<Vec<_>>()
        };
        assert!(look(0, "p1 p2").is_empty());
        assert!(look(30, "p1 p3").is_empty()); // p2 was there again
        assert!(look(59, "p1 p2 p3").is_empty());
        assert_eq!(look(60, "p1 p2 p3"), ["p1"]);
        assert_eq!(look(90, "p2 p3"), ["p3"]);
        assert_eq!(look(119, "p2"), ["p2"]);
        absences.put_off(
            &ProxyId::new("p2").unwrap(),
            start + Duration::from_secs(200),
        );
        let gone = || BTreeSet::from([ProxyId::new("p2").unwrap()]);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(absences.due(gone(), at(199), expiry).is_empty());
        assert_eq!(absences.due(gone(), at(200), expiry).len(), 1);
    }
}
