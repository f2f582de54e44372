//! What must be true of a cut-over, and the rules without which it would not be.

use stateright::{Expectation, Model as _, Property};

use super::{
    state::State,
    system::{Action, System},
};

/// A rule of the protocol that is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mutation {
    /// It is not waited for that what was sent is answered.
    SettledIgnored,
    /// Nobody is fenced out.
    NoFence,
    /// A proxy answers when one of its workers has switched.
    AckBeforeAllWorkers,
    /// A server lets in who routes by an epoch from before the hold.
    OldEpochAccepted,
    /// The source is reaped when the copy is done, before the commit.
    ReapedEarly,
    /// A proxy sends a write again when its connection is lost.
    WriteRetried,
    /// A copy begins while the target still has connections of the one before.
    LostAttemptNotKilled,
    /// A proxy that starts during a hold is not told of it.
    JoinerNotHeld,
    /// The slot is moved back while the source is still being reaped.
    MovedBeforeReaped,
    /// A proxy does not name the connections that it has lost.
    LostConnectionNotNamed,
}

/// How often something may go wrong, or be done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// All of what follows but the last two, together.
    pub(super) faults: u8,
    pub(super) elections: u8,
    pub(super) kills: u8,
    pub(super) breaks: u8,
    /// Breaks of a copy's connection.
    pub(super) copies: u8,
    pub(super) cancels: u8,
    pub(super) cut_overs: u8,
    /// Moves back.
    pub(super) returns: u8,
    /// Holds were given up before, since a proxy did not settle.
    pub(super) impatient: bool,
}

pub(super) const LINEARIZABLE: &str = "what clients see is linearizable";
pub(super) const OWNER: &str = "only the owner executes";
pub(super) const GATE: &str = "nothing is under way at the source when it is committed";
pub(super) const REAP: &str = "the owner's keys are never deleted";
pub(super) const HELD: &str = "no slot is held for ever";

/// What must be true in every state, and what must be possible, or the rest is said of nothing.
pub(super) fn properties() -> Vec<Property<System>> {
    vec![
        Property::always(LINEARIZABLE, |_, state: &State| state.is_linearizable()),
        Property::always(OWNER, |_, state: &State| !state.seen.executed_by_another),
        Property::always(GATE, |_, state: &State| !state.seen.committed_too_early),
        Property::always(REAP, |_, state: &State| !state.seen.deleted_at_the_owner),
        Property::always(HELD, |system, state: &State| {
            !state.is_held() || goes_on(system, state)
        }),
        Property::sometimes("committed, nobody fenced out", |_, state: &State| {
            state.seen.committed && !state.seen.committed_with_a_fence
        }),
        Property::sometimes("committed, somebody fenced out", |_, state: &State| {
            state.seen.committed_with_a_fence
        }),
        Property::sometimes(
            "committed without who did not settle",
            |_, state: &State| state.seen.committed_without_who_holds,
        ),
        Property::sometimes("a hold is given up", |_, state: &State| state.seen.given_up),
        Property::sometimes("aborted", |_, state: &State| state.seen.aborted),
        Property::sometimes("a former leader's commit is refused", |_, state: &State| {
            state.seen.zombie_refused
        }),
        Property::sometimes("a proxy is kept out", |system: &System, state: &State| {
            system.keeps_out(state)
        }),
        Property::sometimes("a lost request is executed late", |_, state: &State| {
            state.seen.executed_late
        }),
        Property::sometimes("the slot moves back", |_, state: &State| {
            state.seen.returned
        }),
        Property::sometimes("it succeeds", |_, state: &State| state.has_succeeded()),
    ]
}

/// What must be possible.
pub(super) fn possible() -> impl Iterator<Item = &'static str> {
    let properties = properties().into_iter();
    let sometimes = properties.filter(|property| property.expectation == Expectation::Sometimes);
    sometimes.map(|property| property.name)
}

/// Whether the leader can do something, or time passes for it. Nothing happens twice, so that this cannot
/// go on for ever.
fn goes_on(system: &System, state: &State) -> bool {
    let leader = state.leading();
    let mut steps = [Action::Tick(leader), Action::Lead(leader)].into_iter();
    steps.any(|step| {
        system
            .next_state(state, step)
            .is_some_and(|next| next != *state)
    })
}
