//! Whether all that was sent for slots that are about to move has been answered: a worker's part of
//! `Settled` ([`proto::settled`]).
//!
//! A topology that has slots **held**, or copied, changes how they are served from the next request on. What
//! went before is under way on pipes, and on leases. Behind all that is under way on a pipe goes a
//! **barrier**: a `PING`, whose answer says that all before it was answered. So requests cost nothing. Of
//! what is under way on leases it is known for which slot it is (`passages`). A connection that is lost
//! with something unanswered is remembered (`losses`), since its server may execute that yet; and while a
//! slot is copied, so are the streams whose consumers change, which no tracking connection is told of
//! (`touched`). When all is answered is decided in [`waits`]; what all workers say of it together, in
//! [`report`].
//!
//! Never decides whether a slot is held: that is the topology's. Knows no sockets.
//!
//! Invariant: a group is reported for a version only once nothing is under way any more that was sent to it
//! for its slots before they came into the state that they have in this version, and all that is subscribed
//! there is subscribed where held slots go, too.

use std::rc::Rc;

use proto::{
    GroupId, SLOT_COUNT, ServerAddr, Slot, SlotState, Topology,
    seeded::{self, Bug},
    settled::Settled,
};
use tokio::sync::Notify;

use self::{
    losses::{Debt, Losses},
    passages::{Passage, Passages},
    report::Report,
    touched::Touched,
    waits::Waits,
};
use crate::{backend::Connection, worker::Worker};

pub(crate) mod losses;
pub(crate) mod passages;
pub mod report;
pub(crate) mod touched;
pub mod waits;

/// See the module.
pub(crate) struct Settling {
    /// How many topologies have been applied.
    turn: u64,
    /// Of each slot, with which of them it came into its state.
    since: Box<[u64; SLOT_COUNT]>,
    waits: Waits,
    report: Report,
    passages: Passages,
    pub(crate) losses: Rc<Losses>,
    pub(crate) touched: Touched,
    /// Something has happened that a wait may have waited for.
    news: Rc<Notify>,
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
            waits: Waits::default(),
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
        if !self.waits.unsettled().is_empty() {
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
        let since = &self.since;
        let moving = (0..).zip(now.groups()).filter_map(|(index, group)| {
            let slots = moving(index, now);
            let since = slots.iter().map(|slot| since[slot.index()]).max()?;
            Some((group.id.clone(), since))
        });
        let begun = self.waits.turn(moving);
        self.news.notify_one();
        begun
    }

    /// Barriers have been placed for a wait.
    fn placed(&mut self, number: u32, barriers: u32) {
        self.waits.placed(number, barriers);
    }

    /// A barrier was answered, or its pipe is no more.
    fn passed(&mut self, number: u32) {
        if self.waits.passed(number) {
            self.news.notify_one();
        }
    }

    /// The waits that have not been reported.
    fn unsettled(&self) -> Vec<u32> {
        self.waits.unsettled()
    }

    /// Reports the groups for which nothing is under way any more. Whether there are new ones.
    fn settle(
        &mut self,
        topology: &Topology,
        is_subscribed_ahead: impl Fn(&[Slot]) -> bool,
    ) -> bool {
        let find = |id: &GroupId| {
            let mut groups = (0..).zip(topology.groups());
            groups.find(|(_, group)| group.id == *id)
        };
        let (since, passages) = (&self.since, &self.passages);
        let is_quiet = |id: &GroupId| {
            let Some((index, _)) = find(id) else {
                return false; // it has left; so have its slots
            };
            let slots = moving(index, topology);
            let is_older = |slot: Slot, turn: u64| {
                slots.binary_search(&slot).is_ok() && turn < since[slot.index()]
            };
            !passages.any(is_older) && is_subscribed_ahead(&slots)
        };
        let settled = self.waits.settle(is_quiet);
        for (index, group) in settled.iter().filter_map(find) {
            let servers = std::iter::once(&group.primary).chain(&group.replicas);
            let servers: Vec<&ServerAddr> = servers.collect();
            self.report.groups.push(Settled {
                version: topology.version(),
                group: group.id.clone(),
                lost: self.losses.of(&servers),
                streams: self.touched.of(&moving(index, topology)),
            });
        }
        !settled.is_empty()
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
            if seeded::has(Bug::AckBeforeSettle) {
                continue;
            }
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

    use proto::{ClusterId, Group, Version, settled::Streams};

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
