//! When all is over that was sent for slots which are held, or are being copied.
//!
//! A topology that holds slots is answered twice: with an ack when all workers route by it, and with a
//! [`Settled`] for each group concerned when no request that was sent to it for these slots before can be
//! executed any more, but on connections that are named. Here is what decides the second; it does no I/O,
//! asks no clock, and is what the model of the cut-over runs, too (`tests/it/model`).
//!
//! # How it is driven
//!
//! * Each worker has a [`Ledger`]. When it begins to route by a topology, it asks [`moving`] which groups
//!   are concerned, and for each that is to be asked anew which connections to its primary have requests
//!   unanswered (pipes of any kind, and leases). On each of these it puts a *mark* behind all that is
//!   under way, and gives both to [`Ledger::apply`]. A mark costs requests nothing: it is a `PING` whose
//!   reply has a recipient of its own, since a server answers in order; on a lease the end of its request
//!   is as good.
//! * A mark that comes back goes to [`Ledger::answered`]; a connection that is lost, with or without
//!   requests unanswered, to [`Ledger::lost`], at any time.
//! * After each of these, [`Ledger::reports`] has what is to be told of this worker. The [`Tally`] of the
//!   process makes of it what is told to the controller.
//! * Commands of consumer groups on a slot that is not simply served are given to the [`Notes`].
//!
//! # Invariant
//!
//! A worker reports a version only if every connection that had requests under way when it began to hold
//! has answered them, or is named, or is counted among many.

use std::collections::{BTreeMap, BTreeSet};

use proto::{
    GroupId, ServerAddr, Settled, Slot, SlotState, Topology, Version,
    settled::{Connection, LOST_MAX, Lost, STREAM_BYTES_MAX, StreamKey, Streams},
};

mod notes;

pub use notes::Notes;

/// A connection of a worker, by a number that it never gives to another.
pub type Number = u64;

/// A group that owns slots which are held, or are being copied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Moving {
    /// The group.
    pub group: GroupId,
    /// Its primary.
    pub server: ServerAddr,
    /// Whether a slot of it is in such a state only now, or in another than before: then what is under
    /// way is to be marked.
    pub anew: bool,
}

/// The groups that have slots which are not simply served by the topology that is routed by now.
/// `before`: by which it was until now.
pub fn moving(before: Option<&Topology>, now: &Topology) -> Vec<Moving> {
    let mut moving: BTreeMap<u16, bool> = BTreeMap::new();
    for slot in Slot::all() {
        let route = now.route(slot);
        let Some(group) = route.group.filter(|_| route.state != SlotState::Serving) else {
            continue;
        };
        let is_same = before.is_some_and(|before| {
            before.state(slot) == now.state(slot) && before.owner(slot) == now.owner(slot)
        });
        *moving.entry(group).or_default() |= !is_same;
    }
    let named = moving.into_iter().map(|(group, anew)| {
        let group = &now.groups()[usize::from(group)];
        Moving {
            group: group.id.clone(),
            server: group.primary.clone(),
            anew,
        }
    });
    named.collect()
}

/// What a worker has under way with groups that matter, and what it has lost.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Ledger {
    groups: BTreeMap<GroupId, Awaited>,
    lost: BTreeMap<ServerAddr, Lost>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Awaited {
    /// By which the worker routes.
    version: Version,
    /// With which the marks were put.
    marked: Version,
    server: ServerAddr,
    /// The marks that have not come back.
    marks: BTreeSet<Number>,
}

impl Ledger {
    /// The worker routes by a version from now on. `marked` are the connections that were marked for a
    /// group; they count only where the group is to be asked anew.
    pub fn apply(
        &mut self,
        version: Version,
        moving: &[Moving],
        mut marked: impl FnMut(&Moving) -> BTreeSet<Number>,
    ) {
        let mut before = std::mem::take(&mut self.groups);
        for group in moving {
            let known = before.remove(&group.group);
            let same = known.filter(|known| !group.anew && known.server == group.server);
            let awaited = match same {
                Some(known) => Awaited { version, ..known },
                None => Awaited {
                    version,
                    marked: version,
                    server: group.server.clone(),
                    marks: marked(group),
                },
            };
            self.groups.insert(group.group.clone(), awaited);
        }
    }

    /// The mark that was put on a connection with this version has come back.
    pub fn answered(&mut self, connection: Number, marked: Version) {
        for awaited in self.groups.values_mut() {
            if awaited.marked == marked {
                awaited.marks.remove(&connection);
            }
        }
    }

    /// A connection is no more. `unanswered`: what its server calls it, if requests were under way on it
    /// that may write.
    pub fn lost(&mut self, connection: Number, unanswered: Option<Connection>) {
        for awaited in self.groups.values_mut() {
            awaited.marks.remove(&connection);
        }
        let Some(connection) = unanswered else { return };
        let server = connection.server.clone();
        let known = self.lost.remove(&server);
        let lost = Lost::These(BTreeSet::from([connection]));
        let lost = match known {
            Some(known) => both(known, lost),
            None => lost,
        };
        self.lost.insert(server, lost);
    }

    /// A server has answered as this process: connections to a former one are no more, and what they
    /// brought is executed or never will be.
    pub fn met(&mut self, server: &ServerAddr, run_id: &str) {
        if let Some(Lost::These(lost)) = self.lost.get_mut(server) {
            lost.retain(|connection| connection.run_id == run_id);
        }
    }

    /// What can be said of this worker: of each group that has settled. `streams` are those of a group
    /// that were noted.
    pub fn reports(&self, mut streams: impl FnMut(&GroupId) -> Streams) -> Vec<Settled> {
        let settled = self.groups.iter().filter(|(_, g)| g.marks.is_empty());
        let reports = settled.map(|(group, awaited)| Settled {
            version: awaited.version,
            group: group.clone(),
            lost: match self.lost.get(&awaited.server) {
                Some(lost) => lost.clone(),
                None => Lost::These(BTreeSet::new()),
            },
            streams: streams(group),
        });
        reports.collect()
    }
}

/// What the workers of a process have reported.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tally {
    /// Of each worker, by its number: what it said last of each group.
    workers: Vec<BTreeMap<GroupId, Settled>>,
}

impl Tally {
    /// Of so many workers.
    pub fn new(workers: usize) -> Self {
        Self {
            workers: vec![BTreeMap::new(); workers],
        }
    }

    /// Takes what a worker can say now, in place of what it said before.
    pub fn take(&mut self, worker: usize, reports: Vec<Settled>) {
        self.workers[worker] = reports
            .into_iter()
            .map(|report| (report.group.clone(), report))
            .collect();
    }

    /// What is to be told of this version, by which all workers route: of each group that all of them
    /// have reported.
    pub fn settled(&self, version: Version) -> Vec<Settled> {
        let Some((first, others)) = self.workers.split_first() else {
            return Vec::new();
        };
        let of_version = first.values().filter(|report| report.version == version);
        let whole = of_version.filter_map(|report| {
            others.iter().try_fold(report.clone(), |whole, worker| {
                let report = worker.get(&whole.group)?;
                (report.version == version).then(|| Settled {
                    lost: both(whole.lost, report.lost.clone()),
                    streams: bounded(whole.streams.and(report.streams.clone())),
                    ..whole
                })
            })
        });
        whole.collect()
    }
}

fn both(one: Lost, other: Lost) -> Lost {
    match (one, other) {
        (Lost::These(mut lost), Lost::These(more)) => {
            lost.extend(more);
            if lost.len() > LOST_MAX {
                Lost::Many
            } else {
                Lost::These(lost)
            }
        }
        (Lost::Many, Lost::These(_) | Lost::Many) | (Lost::These(_), Lost::Many) => Lost::Many,
    }
}

fn bounded(streams: Streams) -> Streams {
    let bytes = |streams: &BTreeSet<StreamKey>| streams.iter().map(|s| s.key.len()).sum::<usize>();
    match streams {
        Streams::These(streams) if bytes(&streams) <= STREAM_BYTES_MAX => Streams::These(streams),
        Streams::These(_) | Streams::Any => Streams::Any,
    }
}

#[cfg(test)]
mod tests {
    use proto::{ClusterId, Group};

    use super::*;

    fn at(epoch: u64) -> Version {
        Version {
            leader_term: 1,
            epoch,
        }
    }

    fn id(group: &str) -> GroupId {
        GroupId::new(group).unwrap()
    }

    fn server(port: u16) -> ServerAddr {
        ServerAddr::new(format!("127.0.0.1:{port}")).unwrap()
    }

    fn g1(anew: bool) -> [Moving; 1] {
        [Moving {
            group: id("g1"),
            server: server(1),
            anew,
        }]
    }

    fn connection(client_id: u64) -> Connection {
        Connection {
            server: server(1),
            run_id: "a".repeat(40),
            client_id,
        }
    }

    fn none(_: &GroupId) -> Streams {
        Streams::These(BTreeSet::new())
    }

    /// The versions that it reports g1 settled in, if it does, and what is lost.
    fn report(ledger: &Ledger) -> Option<(u64, Lost)> {
        let report = ledger.reports(none).pop()?;
        Some((report.version.epoch, report.lost))
    }

    fn lost(ids: &[u64]) -> Lost {
        Lost::These(ids.iter().map(|id| connection(*id)).collect())
    }

    #[test]
    fn a_worker_has_settled_when_all_marks_are_back() {
        let mut ledger = Ledger::default();
        assert_eq!(report(&ledger), None);
        ledger.apply(at(5), &g1(true), |_| BTreeSet::from([1, 2]));
        assert_eq!(report(&ledger), None);
        ledger.answered(1, at(5));
        ledger.answered(3, at(5));
        assert_eq!(report(&ledger), None);
        ledger.answered(2, at(5));
        assert_eq!(report(&ledger), Some((5, lost(&[]))));
        // Another version that says the same of it.
        ledger.apply(at(6), &g1(false), |_| unreachable!("nothing is marked"));
        assert_eq!(report(&ledger), Some((6, lost(&[]))));
        ledger.apply(at(7), &[], |_| unreachable!("nothing is marked"));
        assert_eq!(report(&ledger), None);
    }

    #[test]
    fn a_mark_counts_for_what_it_was_put_for() {
        let mut ledger = Ledger::default();
        ledger.apply(at(5), &g1(true), |_| BTreeSet::from([1]));
        // A newer version that changes nothing here leaves the marks as they are ...
        ledger.apply(at(6), &g1(false), |_| unreachable!("nothing is marked"));
        assert_eq!(report(&ledger), None);
        // ... and one that holds more slots puts new ones, behind what was sent since.
        ledger.apply(at(7), &g1(true), |_| BTreeSet::from([1]));
        ledger.answered(1, at(5));
        assert_eq!(report(&ledger), None);
        ledger.answered(1, at(7));
        assert_eq!(report(&ledger), Some((7, lost(&[]))));
    }

    #[test]
    fn what_is_lost_is_named_whenever_it_was_lost() {
        let mut ledger = Ledger::default();
        ledger.lost(9, Some(connection(90)));
        ledger.apply(at(5), &g1(true), |_| BTreeSet::from([1, 2]));
        ledger.lost(1, Some(connection(10)));
        ledger.lost(2, None);
        assert_eq!(report(&ledger), Some((5, lost(&[10, 90]))));
        ledger.met(&server(1), &"a".repeat(40));
        assert_eq!(report(&ledger), Some((5, lost(&[10, 90]))));
        ledger.met(&server(1), &"b".repeat(40));
        assert_eq!(report(&ledger), Some((5, lost(&[]))));
        for n in 0..=LOST_MAX as u64 {
            ledger.lost(n, Some(connection(n)));
        }
        assert_eq!(report(&ledger), Some((5, Lost::Many)));
    }

    #[test]
    fn a_process_has_settled_when_all_its_workers_have() {
        let mut tally = Tally::new(2);
        let settled = |epoch, ids: &[u64], streams| {
            vec![Settled {
                version: at(epoch),
                group: id("g1"),
                lost: lost(ids),
                streams,
            }]
        };
        let stream = |key: &[u8]| {
            Streams::These(BTreeSet::from([StreamKey {
                database: 0,
                key: key.to_vec(),
            }]))
        };
        tally.take(0, settled(5, &[1], stream(b"a")));
        assert_eq!(tally.settled(at(5)), []);
        tally.take(1, settled(4, &[], stream(b"b")));
        assert_eq!(tally.settled(at(5)), []);
        tally.take(1, settled(5, &[2], stream(b"b")));
        let both = settled(5, &[1, 2], stream(b"a").and(stream(b"b")));
        assert_eq!(tally.settled(at(5)), both);
        assert_eq!(tally.settled(at(4)), []);
        tally.take(0, settled(5, &[], stream(&[0; STREAM_BYTES_MAX])));
        assert_eq!(tally.settled(at(5)), settled(5, &[2], Streams::Any));
        tally.take(1, Vec::new());
        assert_eq!(tally.settled(at(5)), []);
    }

    #[test]
    fn groups_whose_slots_are_not_simply_served_are_concerned() {
        let topology = |epoch, state: fn(u32) -> SlotState| {
            let group = |name: &str, port| Group {
                id: id(name),
                primary: server(port),
                replicas: Vec::new(),
            };
            let owner = |slot: Slot| if slot.number() < 512 { "g1" } else { "g2" };
            let slots = |slot: Slot| (Some(id(owner(slot))), state(slot.number()));
            let groups = [group("g1", 1), group("g2", 2), group("g3", 3)];
            Topology::new(ClusterId::new("c").unwrap(), at(epoch), groups, slots).unwrap()
        };
        let target = || id("g3");
        let serving = topology(1, |_| SlotState::Serving);
        let copying = topology(2, |slot| match slot {
            0..=9 => SlotState::Copying {
                target: GroupId::new("g3").unwrap(),
            },
            _ => SlotState::Serving,
        });
        let held = topology(3, |slot| match slot {
            0..=4 => SlotState::Held {
                target: Some(GroupId::new("g3").unwrap()),
            },
            5..=9 => SlotState::Copying {
                target: GroupId::new("g3").unwrap(),
            },
            600 => SlotState::Held { target: None },
            _ => SlotState::Serving,
        });
        assert_eq!(
            copying.state(Slot::new(0).unwrap()).target(),
            Some(&&target())
        );
        let g2 = Moving {
            group: id("g2"),
            server: server(2),
            anew: true,
        };
        assert_eq!(moving(None, &serving), []);
        assert_eq!(moving(None, &copying), g1(true));
        assert_eq!(moving(Some(&serving), &copying), g1(true));
        assert_eq!(moving(Some(&copying), &copying), g1(false));
        let both = [g1(true).to_vec(), vec![g2]].concat();
        assert_eq!(moving(Some(&copying), &held), both);
        assert_eq!(moving(Some(&held), &copying), g1(true));
        assert_eq!(moving(Some(&held), &serving), []);
    }
}
