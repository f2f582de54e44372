//! What the groups have, for one caller who evens them out.

use std::collections::BTreeMap;

use proto::{GroupId, SLOT_COUNT, Slot, reason::Reason, v1::GroupLoad};

use crate::{
    change::{self, Refusal},
    mover::{Measure, Measured},
    orchestrator::Tools,
    rebalance::Load,
    snapshot::Snapshot,
};

/// See the module.
pub(super) enum Weigher {
    /// Slots are counted.
    Slots,
    /// What was measured at each group's primary.
    Measured(BTreeMap<GroupId, Measured>),
}

impl Weigher {
    /// Asks the primaries, if anything is to be measured.
    pub(super) async fn ask(
        tools: &Tools,
        now: &Snapshot,
        measure: Option<Measure>,
    ) -> Result<Self, Refusal> {
        let Some(measure) = measure else {
            return Ok(Self::Slots);
        };
        let measured = tools.measure(now, measure).await;
        measured.map(Self::Measured).map_err(|(group, why)| {
            let message = format!("group {group} cannot be measured: {why}");
            Refusal::new(Reason::ServerUnreachable, message)
        })
    }

    /// What each slot has at its owner. What others have of it does not count.
    pub(super) fn load(&self, now: &Snapshot) -> Load {
        let groups = match self {
            Self::Slots => return Load::Slots,
            Self::Measured(groups) => groups,
        };
        let mut slots = Box::new([0; SLOT_COUNT]);
        for slot in Slot::all() {
            let owner = now.slots.owner(slot).and_then(|owner| groups.get(owner));
            slots[slot.index()] = owner.map_or(0, |measured| measured.slots[slot.index()]);
        }
        Load::Measured(slots)
    }

    /// What the groups have, and will when all migrations are over.
    pub(super) fn show(&self, now: &Snapshot, weights: &BTreeMap<GroupId, u32>) -> Vec<GroupLoad> {
        let load = self.load(now);
        let show = |(group, weight): (GroupId, u32)| {
            let before = load.sum(change::owned_by(now, &group).iter());
            let moving = |takes: fn(&GroupId, &GroupId, &GroupId) -> bool| {
                let moving = now.moving().filter(|m| takes(&group, &m.source, &m.target));
                moving.map(|m| load.sum(m.slots.iter())).sum::<u64>()
            };
            let goes = moving(|group, source, _| source == group);
            let comes = moving(|group, _, target| target == group);
            let measured = match self {
                Self::Slots => None,
                Self::Measured(groups) => groups.get(&group),
            };
            GroupLoad {
                weight,
                before,
                after: (before + comes).saturating_sub(goes),
                keys: measured.map_or(0, |measured| measured.keys),
                keys_looked_at: measured.map_or(0, |measured| measured.looked_at),
                group_id: group.into(),
            }
        };
        change::all_weights(now, weights)
            .into_iter()
            .map(show)
            .collect()
    }
}
