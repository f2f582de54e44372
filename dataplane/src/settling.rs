//! Whether all that was sent for slots that are about to move has been answered: a worker's part of
//! `Settled` ([`proto::settled`]).
//!
//! A topology that has slots **held**, or copied, changes how they are served from the next request on. What
//! went before is under way on pipes, and on leases. Behind all that is under way on a pipe goes a
//! **barrier**: a `PING`, whose answer says that all before it was answered. So requests cost nothing. Of
//! what is under way on leases it is known for which slot it is ([`passages`]). A connection that is lost
//! with something unanswered is remembered ([`losses`]), since its server may execute that yet; and while a
//! slot is copied, so are the streams whose consumers change, which no tracking connection is told of
//! ([`touched`]).
//!
//! Never decides whether a slot is held: that is the topology's. Knows no sockets.
//!
//! Invariant: a group is reported for a version only once nothing is under way any more that was sent to it
//! for its slots before they came into the state that they have in this version, and all that is subscribed
//! there is subscribed where held slots go, too.

use std::rc::Rc;

use proto::{
    GroupId, SLOT_COUNT, ServerAddr, Slot, SlotState, Topology, Version,
    settled::{LOST_MAX, Lost, STREAM_BYTES_MAX, Settled, Streams},
};
use tokio::sync::Notify;

use self::{
    losses::{Debt, Losses},
    passages::{Passage, Passages},
    touched::Touched,
};
use crate::{backend::Connection, worker::Worker};

pub(crate) mod losses;
pub(crate) mod passages;
pub(crate) mod touched;

/// See the module.
pub(crate) struct Settling {
    /// How many topologies have been applied.
    turn: u64,
    /// Of each slot, with which of them it came into its state.
    since: Box<[u64; SLOT_COUNT]>,
    waits: Vec<Wait>,
    /// Numbers the waits.
    last: u32,
    report: Report,
    passages: Passages,
    pub(crate) losses: Rc<Losses>,
    pub(crate) touched: Touched,
    /// Something has happened that a wait may have waited for.
    news: Rc<Notify>,
}

/// What has to be answered by a group.
#[derive(Debug)]
struct Wait {
    number: u32,
    group: GroupId,
    /// The turn with which the last of its slots came into its state.
    since: u64,
    /// Barriers that have not been answered.
    barriers: u32,
    /// It has been reported for this version.
    is_over: bool,
}

/// What a worker has to say of a version.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Report {
    /// `None`: there has been no topology.
    version: Option<Version>,
    groups: Vec<Settled>,
}

/// What all workers say together of a version.
pub(crate) fn settled(reports: &[Report], version: Version) -> Vec<Settled> {
    let Some((first, others)) = reports.split_first() else {
        return Vec::new();
    };
    if reports.iter().any(|r| r.version != Some(version)) {
        return Vec::new();
    }
    let all = |settled: &Settled| {
        let mut whole = settled.clone();
        for other in others {
            let of_other = other.groups.iter().find(|s| s.group == settled.group)?;
            whole.lost = add(whole.lost, &of_other.lost);
            whole.streams = whole.streams.and(of_other.streams.clone());
        }
        if let Streams::These(streams) = &whole.streams
            && streams.iter().map(|s| s.key.len()).sum::<usize>() > STREAM_BYTES_MAX
        {
            whole.streams = Streams::Any;
        }
        Some(whole)
    };
    first.groups.iter().filter_map(all).collect()
}

/// The lost connections of both.
fn add(one: Lost, other: &Lost) -> Lost {
    match (one, other) {
        (Lost::These(mut these), Lost::These(more)) => {
            these.extend(more.iter().cloned());
            if these.len() > LOST_MAX {
                Lost::Many
            } else {
                Lost::These(these)
            }
        }
        (Lost::Many, Lost::These(_) | Lost::Many) | (Lost::These(_), Lost::Many) => Lost::Many,
    }
}

/// Whether a slot is about to move.
fn moves(slot: Slot, topology: &Topology) -> bool {
    match topology.route(slot).state {
        SlotState::Serving => false,
        SlotState::Copying { .. } | SlotState::Held { .. } => true,
    }
}

impl Settling {
    pub(crate) fn new() -> Self {
        let news = Rc::new(Notify::new());
        Self {
            turn: 0,
            since: Box::new([0; SLOT_COUNT]),
            waits: Vec::new(),
            last: 0,
            report: Report::default(),
            passages: Passages::new(Rc::clone(&news)),
            losses: Rc::default(),
            touched: Touched::default(),
            news,
        }
    }

    /// What wakes who settles.
    pub(crate) fn news(&self) -> Rc<Notify> {
        Rc::clone(&self.news)
    }

    /// Something has happened that a wait may have waited for.
    pub(crate) fn look(&self) {
        if self.waits.iter().any(|wait| !wait.is_over) {
            self.news.notify_one();
        }
    }

    /// A topology is routed by from now on. The waits that begin: their numbers, and groups.
    fn turn(&mut self, before: Option<&Topology>, now: &Topology) -> Vec<(u32, GroupId)> {
        self.turn += 1;
        let is_same = |slot: Slot, before: &Topology| {
            let owner = |t: &Topology| t.owner(slot).map(|g| (g.id.clone(), g.primary.clone()));
            before.state(slot) == now.state(slot) && owner(before) == owner(now)
        };
        for slot in Slot::all() {
            if !before.is_some_and(|before| is_same(slot, before)) {
                self.since[slot.index()] = self.turn;
            }
        }
        self.touched.turn(before, now);
        self.report = Report {
            version: Some(now.version()),
            groups: Vec::new(),
        };
        let mut left = std::mem::take(&mut self.waits);
        let mut begun = Vec::new();
        for (index, group) in (0..).zip(now.groups()) {
            let slots = moving(index, now);
            let Some(since) = slots.iter().map(|slot| self.since[slot.index()]).max() else {
                continue;
            };
            // One whose slots are all as they were goes on.
            let same = |wait: &Wait| wait.group == group.id && wait.since == since;
            let wait = match left.iter().position(same) {
                Some(at) => Wait {
                    is_over: false,
                    ..left.swap_remove(at)
                },
                None => {
                    self.last = self.last.wrapping_add(1);
                    begun.push((self.last, group.id.clone()));
                    Wait {
                        number: self.last,
                        group: group.id.clone(),
                        since,
                        barriers: 0,
                        is_over: false,
                    }
                }
            };
            self.waits.push(wait);
        }
        self.news.notify_one();
        begun
    }

    /// Barriers have been placed for a wait.
    fn placed(&mut self, number: u32, barriers: u32) {
        let mut waits = self.waits.iter_mut();
        if let Some(wait) = waits.find(|wait| wait.number == number) {
            wait.barriers += barriers;
        }
    }

    /// A barrier was answered, or its pipe is no more. It may be one of a wait that is over since.
    fn passed(&mut self, number: u32) {
        let mut waits = self.waits.iter_mut();
        if let Some(wait) = waits.find(|wait| wait.number == number) {
            wait.barriers -= 1;
            self.news.notify_one();
        }
    }

    /// The waits that have not been reported.
    fn unsettled(&self) -> Vec<u32> {
        let waits = self.waits.iter().filter(|wait| !wait.is_over);
        waits.map(|wait| wait.number).collect()
    }

    /// Reports the groups for which nothing is under way any more. Whether there are new ones.
    fn settle(
        &mut self,
        topology: &Topology,
        is_subscribed_ahead: impl Fn(&[Slot]) -> bool,
    ) -> bool {
        let mut is_new = false;
        for wait in &mut self.waits {
            let of_id = |group: &&proto::Group| group.id == wait.group;
            let Some((index, group)) = (0..).zip(topology.groups()).find(|(_, g)| of_id(g)) else {
                continue; // it has left; so have its slots
            };
            let slots = moving(index, topology);
            let since = &self.since;
            let is_older = |slot: Slot, turn: u64| {
                slots.binary_search(&slot).is_ok() && turn < since[slot.index()]
            };
            if wait.is_over
                || wait.barriers > 0
                || self.passages.any(is_older)
                || !is_subscribed_ahead(&slots)
            {
                continue;
            }
            wait.is_over = true;
            is_new = true;
            let servers = std::iter::once(&group.primary).chain(&group.replicas);
            let servers: Vec<&ServerAddr> = servers.collect();
            self.report.groups.push(Settled {
                version: topology.version(),
                group: wait.group.clone(),
                lost: self.losses.of(&servers),
                streams: self.touched.of(&slots),
            });
        }
        is_new
    }

    /// Of a pipe's connection that ends.
    pub(crate) fn debt(&self, server: &ServerAddr, connection: &Connection) -> Debt {
        Debt::none(connection.of(server), Rc::clone(&self.losses))
    }

    /// Whether a slot moves, and came into its state after this turn.
    pub(crate) fn has_changed_since(&self, slot: Slot, turn: u64, topology: &Topology) -> bool {
        moves(slot, topology) && turn < self.since[slot.index()]
    }

    /// A request for this slot is about to take a lease.
    pub(crate) fn pass(&self, slot: Slot) -> Passage {
        self.passages.begin(slot, self.turn)
    }
}

/// The slots of a group, by its index, that are about to move.
fn moving(group: u16, topology: &Topology) -> Vec<Slot> {
    let is_its = |slot: &Slot| topology.route(*slot).group == Some(group);
    let slots = Slot::all().filter(is_its);
    slots.filter(|slot| moves(*slot, topology)).collect()
}

/// What a worker does so that it is known what is under way.
impl Worker {
    /// A topology is routed by from now on: behind all that is under way go barriers.
    pub(crate) fn settle_anew(&mut self, before: Option<&Topology>) {
        let topology = self.topology.clone().expect("it was applied");
        let micros = self.clock.micros();
        for (number, group) in self.settling.turn(before, &topology) {
            let groups = topology.groups().iter();
            for group in groups.filter(|other| other.id == group) {
                let barriers = self.backends.place_barriers(&group.primary, number, micros);
                self.settling.placed(number, barriers);
            }
        }
        self.attend();
        self.schedule_flush();
    }

    /// Something of what was under way on a pipe was sent again: barriers go behind it, too.
    pub(crate) fn place_barriers_again(&mut self, pipe: u32) {
        let micros = self.clock.micros();
        for number in self.settling.unsettled() {
            self.backends.place_barrier(pipe, number, micros);
            self.settling.placed(number, 1);
        }
    }

    /// Barriers have been answered.
    pub(crate) fn pass_barriers(&mut self) {
        while let Some(number) = self.clients.barriers.pop() {
            self.settling.passed(number);
        }
    }

    /// What there is to say of the topology that is routed by, if there is more than before.
    pub(crate) fn report_settled(&mut self) -> Option<Report> {
        let Self {
            settling,
            pubsub,
            topology,
            ..
        } = self;
        let ahead = |slots: &[Slot]| pubsub.is_ahead(slots);
        let is_new = settling.settle(topology.as_ref()?, ahead);
        is_new.then(|| settling.report.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proto::{ClusterId, Group, settled::StreamKey};

    use super::*;

    const SLOT: Slot = Slot::new(5).unwrap();

    /// Of two groups: the first has all slots; slot 5 is in this state.
    fn topology(epoch: u64, state: SlotState) -> Topology {
        let group = |id: &str, port: u16| Group {
            id: GroupId::new(id).unwrap(),
            primary: ServerAddr::new(format!("h:{port}")).unwrap(),
            replicas: Vec::new(),
        };
        let version = Version {
            leader_term: 1,
            epoch,
        };
        let cluster = ClusterId::new("c").unwrap();
        let groups = [group("g1", 1), group("g2", 2)];
        Topology::new(cluster, version, groups, |slot| {
            let state = match slot {
                SLOT => state.clone(),
                _ => SlotState::Serving,
            };
            (Some(GroupId::new("g1").unwrap()), state)
        })
        .unwrap()
    }

    fn copying() -> SlotState {
        let target = GroupId::new("g2").unwrap();
        SlotState::Copying { target }
    }

    fn held() -> SlotState {
        let target = Some(GroupId::new("g2").unwrap());
        SlotState::Held { target }
    }

    /// A worker's, and what it routes by.
    struct World {
        settling: Settling,
        now: Topology,
    }

    impl World {
        fn new() -> Self {
            let mut settling = Settling::new();
            let now = topology(1, SlotState::Serving);
            assert!(settling.turn(None, &now).is_empty());
            Self { settling, now }
        }

        /// The wait that begins, with so many barriers.
        fn apply(&mut self, state: SlotState, barriers: u32) -> Option<u32> {
            let next = topology(self.now.version().epoch + 1, state);
            let before = std::mem::replace(&mut self.now, next);
            let begun = self.settling.turn(Some(&before), &self.now);
            let number = begun.first().map(|(number, _)| *number);
            number
                .into_iter()
                .for_each(|n| self.settling.placed(n, barriers));
            number
        }

        fn settles(&mut self) -> bool {
            self.settling.settle(&self.now, |_| true)
        }
    }

    #[test]
    fn a_group_settles_once_all_barriers_have_been_passed() {
        let mut world = World::new();
        assert!(!world.settles(), "nothing moves");
        let first = world.apply(copying(), 2).unwrap();
        world.settling.passed(first);
        assert!(!world.settles());
        // What goes on is waited for in the next version as well; what was held since is new.
        assert_eq!(world.apply(copying(), 0), None);
        assert!(!world.settles());
        let second = world.apply(held(), 1).unwrap();
        world.settling.passed(first);
        assert!(!world.settles(), "it was another's barrier");
        world.settling.passed(second);
        assert!(world.settles());
        assert!(!world.settles(), "it is said once");
        assert_eq!(world.apply(held(), 0), None);
        assert!(world.settles(), "and for each version");
        assert_eq!(world.settling.report.version, Some(world.now.version()));
        assert_eq!(world.apply(SlotState::Serving, 0), None);
        assert!(!world.settles());
    }

    #[test]
    fn what_is_sent_again_is_waited_for() {
        let mut world = World::new();
        let number = world.apply(held(), 1).unwrap();
        assert_eq!(world.settling.unsettled(), [number]);
        world.settling.placed(number, 1);
        world.settling.passed(number);
        assert!(!world.settles());
        world.settling.passed(number);
        assert!(world.settles());
        assert!(world.settling.unsettled().is_empty());
    }

    #[test]
    fn what_was_routed_before_is_waited_for_on_leases_too() {
        let mut world = World::new();
        let before = world.settling.pass(SLOT);
        let other = world.settling.pass(Slot::new(6).unwrap());
        world.apply(copying(), 0);
        assert!(
            world
                .settling
                .has_changed_since(SLOT, before.turn, &world.now)
        );
        let after = world.settling.pass(SLOT);
        assert!(!world.settles());
        drop(before);
        assert!(world.settles(), "what was routed since is no matter");
        assert!(
            !world
                .settling
                .has_changed_since(SLOT, after.turn, &world.now)
        );
        world.apply(held(), 0);
        assert!(!world.settles());
        drop(after);
        assert!(world.settles());
        drop(other);
    }

    #[test]
    fn who_is_not_subscribed_ahead_is_waited_for() {
        let mut world = World::new();
        world.apply(held(), 0);
        let World { settling, now } = &mut world;
        assert!(!settling.settle(now, |slots| slots != [SLOT]));
        assert!(settling.settle(now, |slots| slots == [SLOT]));
    }

    #[test]
    fn all_workers_together_say_that_a_group_has_settled() {
        let version = topology(7, held()).version();
        let connection = |id| proto::settled::Connection {
            server: ServerAddr::new("h:1").unwrap(),
            run_id: "run".to_owned(),
            client_id: id,
        };
        let report = |lost: &[u64], streams: Streams| Report {
            version: Some(version),
            groups: vec![Settled {
                version,
                group: GroupId::new("g1").unwrap(),
                lost: Lost::These(lost.iter().map(|id| connection(*id)).collect()),
                streams,
            }],
        };
        let streams = |keys: &[&[u8]]| {
            let stream = |key: &&[u8]| StreamKey {
                database: 0,
                key: key.to_vec(),
            };
            Streams::These(keys.iter().map(stream).collect())
        };
        let one = report(&[1, 2], streams(&[b"a"]));
        let two = report(&[2, 3], streams(&[b"b"]));
        let both = settled(&[one.clone(), two], version);
        let expected = report(&[1, 2, 3], streams(&[b"a", b"b"])).groups;
        assert_eq!(both, expected);
        // One is behind, or ahead, or has not settled.
        let behind = Report {
            version: Some(topology(6, held()).version()),
            ..one.clone()
        };
        let silent = Report {
            groups: Vec::new(),
            ..one.clone()
        };
        for other in [behind, silent, Report::default()] {
            assert_eq!(settled(&[one.clone(), other.clone()], version), []);
            assert_eq!(settled(&[other, one.clone()], version), []);
        }
        // What is too much to be named is not.
        let many: Vec<u64> = (0..=LOST_MAX as u64).collect();
        let large = vec![b'k'; STREAM_BYTES_MAX];
        let (some, more) = many.split_at(500);
        let all = [
            report(some, streams(&[&large])),
            report(more, streams(&[b"k"])),
        ];
        let all = settled(&all, version).remove(0);
        assert_eq!((all.lost, all.streams), (Lost::Many, Streams::Any));
    }

    #[test]
    fn streams_are_known_from_when_their_slot_is_copied() {
        let mut world = World::new();
        let these = |world: &World| world.settling.touched.of(&[SLOT]);
        world.apply(held(), 0);
        assert_eq!(these(&world), Streams::Any, "it was not copied");
        world.apply(SlotState::Serving, 0);
        world.apply(copying(), 0);
        assert!(world.settling.touched.is_attentive());
        assert_eq!(these(&world), Streams::These(BTreeSet::new()));
        world.apply(held(), 0);
        assert!(!world.settling.touched.is_attentive());
        assert_eq!(these(&world), Streams::These(BTreeSet::new()));
    }
}
