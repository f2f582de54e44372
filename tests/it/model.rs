//! The cut-over of a slot, in all ways it can go: no run of real processes shows as many.
//!
//! What must be true is said in `rules`, what there is in `state`, and what may happen in `system`.
//! Small cases are looked at whole; of large ones, walks that begin with a seed (`SEED=7 COUNT=1`).
//! `make model` looks at more of it (`LARGE=1`): for minutes, in some GiB.

mod rules;
mod state;
mod system;

use std::{collections::BTreeSet, env};

use rules::{GATE, HELD, LINEARIZABLE, Limits, Mutation, OWNER, REAP};
use state::State;
use stateright::{Checker, Expectation, HasDiscoveries, Model};
use system::{Script, System};

/// Nothing goes wrong.
const QUIET: Limits = Limits {
    faults: 0,
    elections: 0,
    kills: 0,
    breaks: 0,
    copies: 0,
    cancels: 0,
    cut_overs: 1,
    returns: 0,
    impatient: false,
};
/// A proxy that does not settle is fenced out.
const IMPATIENT: Limits = Limits {
    impatient: true,
    ..QUIET
};
/// Moved there and back.
const RETURN: Limits = Limits {
    returns: 1,
    ..QUIET
};
const KILL: Limits = Limits {
    faults: 1,
    kills: 1,
    ..QUIET
};
const BREAK: Limits = Limits {
    faults: 1,
    breaks: 1,
    ..QUIET
};
const ELECTION: Limits = Limits {
    faults: 1,
    elections: 1,
    cut_overs: 2,
    ..QUIET
};
const COPY: Limits = Limits {
    faults: 1,
    copies: 1,
    ..QUIET
};
const COPIES: Limits = Limits {
    faults: 2,
    copies: 2,
    cut_overs: 2,
    ..QUIET
};
const CANCEL: Limits = Limits {
    faults: 1,
    cancels: 1,
    ..QUIET
};
/// Nobody asks for anything.
const NOBODY: Script = &[];
/// A client writes.
const WRITES: Script = &[&[(0, 0, 1)]];
/// A client writes, and reads what it wrote.
const ONE: Script = &[&[(0, 0, 1), (0, 0, 0)]];
/// A client writes by a proxy, and reads by another.
const TWO_PROXIES: Script = &[&[(0, 0, 1), (1, 0, 0)]];
/// Two clients write, by two workers of a proxy.
const TWO_WORKERS: Script = &[&[(0, 0, 1)], &[(0, 1, 2)]];
/// Both.
const ALL: Script = &[&[(0, 0, 1), (1, 0, 0)], &[(0, 1, 2)]];

/// Looks at all that can happen: what must be true always is. What was possible.
fn holds(limits: Limits, script: Script) -> BTreeSet<&'static str> {
    let system = System {
        limits,
        mutation: None,
        script,
    };
    let checker = system.checker().threads(2).spawn_bfs().join();
    let found = checker.discoveries();
    for must in [LINEARIZABLE, OWNER, GATE, REAP, HELD] {
        if let Some(path) = found.get(must) {
            let actions = path.clone().into_actions();
            panic!("not true: {must}\n{limits:?}\n{script:?}\n{actions:#?}");
        }
    }
    found.into_keys().collect()
}

/// Much goes wrong, more than can be looked at whole.
const ROUGH: Limits = Limits {
    faults: 8,
    elections: 3,
    kills: 2,
    breaks: 3,
    copies: 3,
    cancels: 1,
    cut_overs: 4,
    returns: 1,
    impatient: true,
};
/// Three clients, by all workers of both proxies.
const MANY: Script = &[
    &[(0, 0, 1), (1, 0, 0), (1, 1, 2), (0, 1, 0)],
    &[(1, 0, 3), (0, 1, 0), (0, 0, 4), (1, 1, 0)],
    &[(0, 1, 5), (1, 1, 0), (1, 0, 0)],
];
/// Of so many actions that can be taken, one may be a fault.
const FAULTS: usize = 12;

/// Goes one of the ways there are, as the seed has it, to its end. What went wrong on it, if something
/// that must be true was not.
fn walk(system: &System, seed: u64) -> Result<State, String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut state = system.init_states().remove(0);
    let mut way = Vec::new();
    let must = rules::properties();
    let must = must
        .iter()
        .filter(|rule| rule.expectation == Expectation::Always);
    let must: Vec<_> = must.collect();
    loop {
        let mut actions = Vec::new();
        system.actions(&state, &mut actions);
        random.shuffle(&mut actions);
        let wait = random.usize(..FAULTS) > 0;
        actions.sort_by_key(|action| wait && action.is_fault());
        let mut steps = actions.into_iter();
        let step = steps.find_map(|action| {
            let next = system.next_state(&state, action)?;
            (next != state).then_some((action, next))
        });
        let Some((action, next)) = step else {
            return Ok(state);
        };
        way.push(action);
        state = next;
        if let Some(broken) = must.iter().find(|rule| !(rule.condition)(system, &state)) {
            return Err(format!("seed {seed}: not true: {}\n{way:#?}", broken.name));
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    let given = env::var(name).map(|text| text.parse().expect("it is a number"));
    given.unwrap_or(default)
}

/// Leaves a rule out: then something that must be true is not.
fn is_caught(mutation: Mutation, limits: Limits, script: Script) {
    let system = System {
        limits,
        mutation: Some(mutation),
        script,
    };
    let checker = system.checker().threads(2);
    let checker = checker.finish_when(HasDiscoveries::AnyFailures);
    let found = checker.spawn_bfs().join().discoveries();
    let must = [LINEARIZABLE, OWNER, GATE, REAP, HELD];
    let caught = must.iter().any(|must| found.contains_key(must));
    assert!(caught, "{mutation:?} harms nobody");
}

#[test]
fn nothing_is_lost_whatever_goes_wrong() {
    let mut cases = vec![
        (QUIET, TWO_PROXIES),
        (QUIET, TWO_WORKERS),
        (IMPATIENT, ONE),
        (RETURN, WRITES),
        (KILL, ONE),
        (BREAK, ONE),
        (ELECTION, WRITES),
        (COPY, ONE),
        (CANCEL, ONE),
    ];
    if env::var_os("LARGE").is_some() {
        for script in [TWO_PROXIES, TWO_WORKERS] {
            cases.push((IMPATIENT, script));
            cases.extend([KILL, BREAK, CANCEL].map(|limits| (limits, script)));
        }
        cases.extend([(QUIET, ALL), (ELECTION, ONE), (COPIES, ONE)]);
    }
    let mut possible = BTreeSet::new();
    for (limits, script) in cases {
        possible.extend(holds(limits, script));
    }
    let missing: Vec<_> = rules::possible()
        .filter(|p| !possible.contains(p))
        .collect();
    assert!(missing.is_empty(), "never happened: {missing:?}");
}

#[test]
fn nothing_is_lost_on_long_ways() {
    let system = System {
        limits: ROUGH,
        mutation: None,
        script: MANY,
    };
    let (first, count) = (
        number("SEED", fastrand::u64(..1 << 40)),
        number("COUNT", 500),
    );
    let walks = (first..first + count).map(|seed| walk(&system, seed));
    let ends: Vec<State> = walks
        .collect::<Result<_, _>>()
        .unwrap_or_else(|e| panic!("{e}"));
    let moved = ends.iter().filter(|end| end.seen.committed).count();
    assert!(count < 100 || moved > 0, "no slot has moved");
}

#[test]
fn each_rule_is_needed() {
    is_caught(Mutation::SettledIgnored, QUIET, ONE);
    is_caught(Mutation::NoFence, QUIET, ONE);
    is_caught(Mutation::AckBeforeAllWorkers, QUIET, TWO_WORKERS);
    is_caught(Mutation::OldEpochAccepted, QUIET, TWO_PROXIES);
    is_caught(Mutation::ReapedEarly, QUIET, ONE);
    is_caught(Mutation::MovedBeforeReaped, RETURN, NOBODY);
    is_caught(Mutation::WriteRetried, BREAK, ALL);
    is_caught(Mutation::LostAttemptNotKilled, COPIES, NOBODY);
    is_caught(Mutation::JoinerNotHeld, KILL, TWO_PROXIES);
    is_caught(Mutation::LostConnectionNotNamed, BREAK, ONE);
}
