//! Watching the servers: each is asked again and again what it is, by the controller that leads.
//!
//! A primary is asked once its fence record was raised; until then what keeps it from that is what is
//! seen of it. Writes down what it sees and tells of servers that stop or start to answer, or to have the role
//! they have in their group. It changes nothing: an observation is never a reason to touch a group.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use proto::{GroupId, ServerAddr};
use tokio::{
    sync::watch,
    time::{self, Instant, MissedTickBehavior},
};
use tracing::warn;

use crate::{
    admission::Known,
    clock,
    events::{Draft, Kind},
    fence::Fences,
    metrics::{Metrics, ProbeOutcome},
    model::{Role, Server},
    probe::{Facts, Failure, Probe},
    snapshot::Snapshot,
    store::{Standing, Store},
};

/// How many servers are asked at the same time.
const AT_ONCE: usize = 64;

/// What a probe saw.
#[derive(Clone, Debug)]
pub struct Observation {
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// How long it took.
    pub latency: Duration,
    /// What the server said.
    pub outcome: Result<Facts, Failure>,
    /// The role it said it has, when it last did. `None`: not since this controller started.
    pub role: Option<Role>,
}

/// The newest observation of each server; only the prober writes it.
pub type Observations = BTreeMap<ServerAddr, Observation>;

/// The processes that are in groups: as they were seen last, and as they were when admitted.
pub fn known(now: &Snapshot, observations: &Observations) -> Vec<Known> {
    now.servers()
        .flat_map(|(group, server)| {
            let seen = observations.get(&server.address);
            let seen = seen.and_then(|o| o.outcome.as_ref().ok());
            let seen = seen.map(|facts| facts.run_id.clone());
            [Some(server.run_id.clone()), seen]
                .into_iter()
                .flatten()
                .map(|run_id| Known {
                    run_id,
                    address: server.address.clone(),
                    group: group.id.clone(),
                })
        })
        .collect()
}

/// See the module.
pub struct Prober {
    /// Tells which servers there are, and is told what happens to them.
    pub store: Store,
    /// How they are asked.
    pub probe: Probe,
    /// Who may be asked.
    pub fences: Fences,
    /// How often.
    pub interval: Duration,
    /// What is seen.
    pub observations: watch::Sender<Observations>,
    /// Counts the probes.
    pub metrics: Metrics,
}

impl Prober {
    /// Probes until the store ends.
    pub async fn run(self) {
        let mut snapshots = self.store.subscribe();
        let mut guards = self.fences.guards();
        let mut tick = time::interval(self.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let only_new = tokio::select! {
                _ = tick.tick() => false,
                changed = snapshots.changed() => match changed {
                    Ok(()) => true,
                    Err(_) => return,
                },
                changed = guards.changed() => match changed {
                    Ok(()) => true,
                    Err(_) => return,
                },
            };
            snapshots.mark_unchanged();
            guards.mark_unchanged();
            self.forget(&self.store.snapshot());
            match self.store.leading() {
                Some(now) => self.round(&now, only_new).await,
                None => self.stand_by(),
            }
        }
    }

    /// Drops what was seen of servers that left.
    fn forget(&self, now: &Snapshot) {
        self.observations.send_if_modified(|seen| {
            let before = seen.len();
            seen.retain(|address, _| now.server(address).is_some());
            seen.len() < before
        });
    }

    /// Drops everything, if another controller leads: it watches them now.
    fn stand_by(&self) {
        if matches!(*self.store.standing().borrow(), Standing::StandsBy { .. }) {
            self.observations.send_if_modified(|seen| {
                let had_any = !seen.is_empty();
                seen.clear();
                had_any
            });
        }
    }

    async fn round(&self, now: &Arc<Snapshot>, only_new: bool) {
        let targets: Vec<(Server, GroupId, Result<(), Failure>)> = now
            .servers()
            .filter(|(_, server)| {
                !only_new || !self.observations.borrow().contains_key(&server.address)
            })
            .filter_map(|(group, server)| {
                let may_be_asked = self.may_be_asked(server, now.head.leader_term)?;
                Some((server.clone(), group.id.clone(), may_be_asked))
            })
            .collect();
        stream::iter(targets)
            .map(|(server, group, may_be_asked)| self.observe(server, group, may_be_asked))
            .buffer_unordered(AT_ONCE)
            .for_each(async |(server, observation)| self.note(server, observation))
            .await;
    }

    /// Whether a server may be asked what it is, in this term. `None`: its record was not looked at yet. A
    /// replica's record is its primary's.
    fn may_be_asked(&self, server: &Server, term: u64) -> Option<Result<(), Failure>> {
        match server.role {
            Role::Primary => self.fences.is_raised(&server.address, term),
            Role::Replica => Some(Ok(())),
        }
    }

    async fn observe(
        &self,
        server: Server,
        group: GroupId,
        may_be_asked: Result<(), Failure>,
    ) -> (Server, Observation) {
        let begun = Instant::now();
        let outcome = match may_be_asked {
            Ok(()) => self.probe.ask(&server.address, &group).await,
            Err(failure) => Err(failure),
        };
        let seen = self.observations.borrow();
        let said_before = seen.get(&server.address).and_then(|o| o.role);
        let observation = Observation {
            time_ms: clock::now_ms(),
            latency: begun.elapsed(),
            role: outcome.as_ref().map(Facts::role).ok().or(said_before),
            outcome,
        };
        (server, observation)
    }

    fn note(&self, server: Server, observation: Observation) {
        self.metrics.probed(match &observation.outcome {
            Ok(_) => ProbeOutcome::Ok,
            Err(Failure::Unreachable(_) | Failure::Unfenced(_)) => ProbeOutcome::Unreachable,
            Err(Failure::AuthFailed(_)) => ProbeOutcome::AuthFailed,
            Err(Failure::NotRedis(_) | Failure::Proxy(_)) => ProbeOutcome::NotRedis,
        });
        let before = self.observations.borrow().get(&server.address).cloned();
        if let Some(error) = new_login_failure(before.as_ref(), &observation) {
            warn!(server = %server.address, error, "server refuses the login");
        }
        let events = [
            news(&server.address, before.as_ref(), &observation),
            role_news(&server, before.as_ref(), &observation),
        ];
        self.observations.send_modify(|seen| {
            seen.insert(server.address, observation);
        });
        for event in events.into_iter().flatten() {
            self.store.note(event);
        }
    }
}

/// What a server says that lets us in no longer.
fn new_login_failure<'a>(before: Option<&Observation>, after: &'a Observation) -> Option<&'a str> {
    let refused = |seen: &Observation| matches!(seen.outcome, Err(Failure::AuthFailed(_)));
    match &after.outcome {
        Err(Failure::AuthFailed(error)) if !before.is_some_and(refused) => Some(error),
        _ => None,
    }
}

/// Whether a server took another role than it has in its group, or has taken its own again. That a
/// new server has its own is not told: it was admitted because it had.
fn role_news(server: &Server, before: Option<&Observation>, after: &Observation) -> Option<Draft> {
    let address = &server.address;
    let was_right = before
        .and_then(|seen| seen.role)
        .is_none_or(|role| role == server.role);
    let says = after.role?;
    let message = match (was_right, says == server.role) {
        (true, true) | (false, false) => return None,
        (true, false) => format!(
            "server {address} says it is a {says}, but is the {} of its group",
            server.role
        ),
        (false, true) => format!("server {address} says it is a {says} again, as in its group"),
    };
    let kind = Kind::ServerRoleChanged;
    Some(Draft::new(format!("server/{address}"), kind, message))
}

/// What is worth telling. That a new server answers is not: it was admitted because it did.
fn news(address: &ServerAddr, before: Option<&Observation>, after: &Observation) -> Option<Draft> {
    let answered = before.is_none_or(|o| o.outcome.is_ok());
    let (kind, message) = match (&after.outcome, answered) {
        (Ok(_), true) | (Err(_), false) => return None,
        (Ok(_), false) => (
            Kind::ServerReachable,
            format!("server {address} answers again"),
        ),
        (Err(failure), true) => (
            Kind::ServerUnreachable,
            format!("server {address} {failure}"),
        ),
    };
    Some(Draft::new(format!("server/{address}"), kind, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::tests::{group, with_groups};

    fn observation(answers: bool) -> Observation {
        let down = Err(Failure::Unreachable("refused".to_owned()));
        let up = Ok(Facts {
            resolved: Vec::new(),
            flavor: crate::probe::Flavor::Redis,
            version: String::new(),
            run_id: "restarted".to_owned(),
            replication_id: String::new(),
            upstream: None,
            cluster_mode: false,
            used_memory: 0,
            keys: 0,
        });
        Observation {
            time_ms: 0,
            latency: Duration::ZERO,
            role: answers.then_some(Role::Primary),
            outcome: if answers { up } else { down },
        }
    }

    #[test]
    fn only_transitions_are_told() {
        fn check(before: Option<bool>, after: bool, told: Option<Kind>) {
            let address = ServerAddr::new("h:1").unwrap();
            let before = before.map(observation);
            let event = news(&address, before.as_ref(), &observation(after));
            assert_eq!(event.map(|e| e.kind), told);
        }
        check(None, true, None);
        check(None, false, Some(Kind::ServerUnreachable));
        check(Some(true), true, None);
        check(Some(true), false, Some(Kind::ServerUnreachable));
        check(Some(false), false, None);
        check(Some(false), true, Some(Kind::ServerReachable));
    }

    #[test]
    fn a_role_is_told_when_it_turns() {
        fn check(before: Option<Role>, after: Option<Role>, told: Option<&str>) {
            let server = &group("g1", 7000, 0).servers[0];
            let seen = |role| Observation {
                role,
                ..observation(true)
            };
            let event = role_news(server, Some(&seen(before)), &seen(after));
            assert!(event.iter().all(|e| e.kind == Kind::ServerRoleChanged));
            let message = event.map(|e| e.message);
            assert_eq!(message.is_some(), told.is_some(), "{message:?}");
            assert!(message.unwrap_or_default().contains(told.unwrap_or("")));
        }
        let (right, wrong) = (Some(Role::Primary), Some(Role::Replica));
        let turned = Some("says it is a replica, but is the primary of its group");
        check(None, None, None);
        check(None, right, None);
        check(None, wrong, turned);
        check(right, right, None);
        check(right, wrong, turned);
        check(wrong, wrong, None);
        check(wrong, right, Some("says it is a primary again"));
    }

    #[test]
    fn a_refused_login_is_told_once() {
        let refused = Observation {
            outcome: Err(Failure::AuthFailed("WRONGPASS".to_owned())),
            ..observation(false)
        };
        let told = Some("WRONGPASS");
        assert_eq!(new_login_failure(None, &refused), told);
        assert_eq!(new_login_failure(Some(&observation(true)), &refused), told);
        assert_eq!(new_login_failure(Some(&observation(false)), &refused), told);
        assert_eq!(new_login_failure(Some(&refused), &refused), None);
        assert_eq!(new_login_failure(Some(&refused), &observation(true)), None);
    }

    #[test]
    fn a_process_is_known_as_admitted_and_as_seen() {
        let now = with_groups([group("g1", 7000, 0)]);
        let address = now.groups["g1"].primary().address.clone();
        let seen = Observations::from([(address, observation(true))]);
        let known = known(&now, &seen);
        let ids: Vec<_> = known.iter().map(|k| k.run_id.as_str()).collect();
        assert_eq!(ids, ["run-7000", "restarted"]);
    }
}
