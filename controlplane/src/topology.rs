//! From the store to what proxies route by.
//!
//! [`compile`] is pure: the same snapshot always gives the same topology, on any controller. A
//! [`History`] holds the newest topologies, each compiled once for all proxies, so that a proxy that
//! has one of them gets only what changed.

use std::{collections::VecDeque, sync::Arc};

use proto::{Topology, Version, topology, v1};
use tokio::sync::watch;

use crate::{
    model::{Group, Role},
    snapshot::Snapshot,
};

/// How many topologies are kept to compute deltas from.
const KEPT: usize = 64;

/// The topology at the snapshot's revision.
pub fn compile(now: &Snapshot) -> Topology {
    Topology::new(
        now.cluster.id.clone(),
        now.version(),
        now.groups.values().map(|group| route(group)),
        |slot| (now.slots.owner(slot).cloned(), now.state(slot)),
    )
    .expect("a snapshot upholds what a topology asks for")
}

fn route(group: &Group) -> topology::Group {
    let replicas = group.servers.iter().filter(|s| s.role == Role::Replica);
    topology::Group {
        id: group.id.clone(),
        primary: group.primary().address.clone(),
        replicas: replicas.map(|s| s.address.clone()).collect(),
    }
}

/// The newest topology and some before it. Pure; never changes.
#[derive(Clone)]
pub struct History {
    newest: Arc<Topology>,
    /// Older ones, the newest first.
    older: VecDeque<Arc<Topology>>,
    snapshot: Arc<v1::Topology>,
    /// From the one before, which is where most proxies are.
    delta: Option<Arc<v1::TopologyDelta>>,
}

impl History {
    /// Begins with one.
    pub fn new(first: Topology) -> Self {
        Self {
            snapshot: Arc::new((&first).into()),
            newest: Arc::new(first),
            older: VecDeque::new(),
            delta: None,
        }
    }

    /// The history with one more. Nothing leads from one cluster to another, which is what a restored
    /// store is.
    pub fn and(&self, next: Topology) -> Self {
        if self.newest.cluster_id() != next.cluster_id() {
            return Self::new(next);
        }
        let mut older = self.older.clone();
        older.push_front(self.newest.clone());
        older.truncate(KEPT - 1);
        Self {
            snapshot: Arc::new((&next).into()),
            delta: Some(Arc::new(self.newest.diff(&next))),
            newest: Arc::new(next),
            older,
        }
    }

    /// The newest version.
    pub fn version(&self) -> Version {
        self.newest.version()
    }

    /// The newest, whole.
    pub fn snapshot(&self) -> v1::Topology {
        v1::Topology::clone(&self.snapshot)
    }

    /// What leads from a version to the newest. `None`: that version is not held.
    pub fn delta(&self, from: Version) -> Option<v1::TopologyDelta> {
        let prepared = self.delta.as_ref().zip(self.older.front());
        match prepared {
            Some((delta, base)) if base.version() == from => Some(v1::TopologyDelta::clone(delta)),
            _ => {
                let base = self.older.iter().find(|t| t.version() == from)?;
                Some(base.diff(&self.newest))
            }
        }
    }
}

/// Keeps the history up with the store, until the store ends.
pub async fn follow(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    histories: watch::Sender<Arc<History>>,
) {
    while snapshots.changed().await.is_ok() {
        let next = compile(&snapshots.borrow_and_update());
        let history = histories.borrow().and(next);
        histories.send_replace(Arc::new(history));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        change::{self, Assignment},
        snapshot::tests::{empty, group, with_groups},
    };

    #[test]
    fn a_snapshot_compiles_to_its_groups_and_slots() {
        let now = with_groups([group("g2", 7100, 0), group("g1", 7000, 2)]);
        let now = now.after(&change::assign_slots(&now, &Assignment::Even, 0).unwrap());
        let topology = compile(&now);
        assert_eq!(topology, compile(&now));
        assert_eq!(topology.version().to_string(), "1.3");
        let wire = v1::Topology::from(&topology);
        let ids: Vec<_> = wire.groups.iter().map(|g| g.id.as_str()).collect();
        assert_eq!(ids, ["g1", "g2"]);
        assert_eq!(wire.groups[0].primary, "127.0.0.1:7000");
        assert_eq!(
            wire.groups[0].replicas,
            ["127.0.0.1:7001", "127.0.0.1:7002"]
        );
        assert_eq!(wire.slots.len(), 2);
    }

    #[test]
    fn an_empty_cluster_compiles() {
        let wire = v1::Topology::from(&compile(&empty()));
        assert_eq!((wire.groups.len(), wire.slots.len()), (0, 1));
    }

    #[test]
    fn deltas_lead_from_what_is_held_to_the_newest() {
        let mut now = empty();
        let topologies: Vec<_> = (0..KEPT as u16 + 3)
            .map(|n| {
                let new = group(&format!("g{n}"), 7000 + n, 0);
                now = now.after(&change::create_group(&now, &new).unwrap());
                compile(&now)
            })
            .collect();
        let (first, rest) = topologies.split_first().unwrap();
        let history = rest
            .iter()
            .fold(History::new(first.clone()), |history, next| {
                history.and(next.clone())
            });
        let newest = topologies.last().unwrap();
        let held = &topologies[topologies.len() - KEPT..topologies.len() - 1];
        for base in held {
            let delta = history.delta(base.version()).unwrap();
            assert_eq!(&base.apply(&delta).unwrap(), newest);
        }
        assert!(history.delta(first.version()).is_none());
        assert!(history.delta(newest.version()).is_none());
    }
}
