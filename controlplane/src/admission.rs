//! Whether a server may join a group.
//!
//! Pure: decided from what the servers said of themselves (`probe.rs`). Each refusal tells the
//! operator what to do.

use std::net::SocketAddr;

use proto::{GroupId, ServerAddr, fence, reason::Reason};

use crate::{
    change::{Refusal, same_process},
    fence::NotFenced,
    model::{Group, Role, Server},
    probe::{Facts, Failure},
};

/// A server that is to join.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Where it is.
    pub address: ServerAddr,
    /// Its zone. Empty: not said.
    pub zone: String,
}

/// A process that is in a group, as it was seen last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Known {
    /// The process.
    pub run_id: String,
    /// Where it is.
    pub address: ServerAddr,
    /// Its group.
    pub group: GroupId,
}

/// Whether these servers make a group: one primary, and replicas of it.
pub fn form_group(
    candidates: &[(Candidate, Facts)],
    known: &[Known],
) -> Result<Vec<Server>, Refusal> {
    for (index, (candidate, facts)) in candidates.iter().enumerate() {
        may_join_any(candidate, facts, known)?;
        let twin = candidates[..index]
            .iter()
            .find(|(_, f)| f.run_id == facts.run_id);
        if let Some((twin, _)) = twin {
            return Err(Refusal::new(
                Reason::ServerExists,
                format!(
                    "servers {} and {} are the same process: name it once",
                    twin.address, candidate.address
                ),
            ));
        }
    }
    let (primary, primary_facts) = sole_primary(candidates)?;
    for (candidate, facts) in candidates {
        if candidate != primary {
            follows(&candidate.address, facts, &primary.address, primary_facts)?;
        }
    }
    let server = |(candidate, facts): &(Candidate, Facts)| admitted(candidate, facts);
    Ok(candidates.iter().map(server).collect())
}

/// Whether this server may join a group with this primary, as a replica.
pub fn join_group(
    candidate: &Candidate,
    facts: &Facts,
    primary: (&ServerAddr, &Facts),
    known: &[Known],
) -> Result<Server, Refusal> {
    may_join_any(candidate, facts, known)?;
    follows(&candidate.address, facts, primary.0, primary.1)?;
    Ok(admitted(candidate, facts))
}

/// What to tell of a server that did not say what it is.
pub fn unanswered(address: &ServerAddr, group: &GroupId, failure: &Failure) -> Refusal {
    let (reason, advice) = match failure {
        Failure::Unreachable(_) => (
            Reason::ServerUnreachable,
            "start it, or check the address and that the controller may reach it".to_owned(),
        ),
        Failure::AuthFailed(_) => (
            Reason::ServerAuthFailed,
            format!(
                "give the login of group {group} in the file of --server-auth-file, or in the \
                 environment of the controller as SLUICE_SERVER_PASSWORD_{} (and \
                 SLUICE_SERVER_USERNAME_…), then restart the controller; the user needs +info",
                group.as_str().to_ascii_uppercase().replace('-', "_")
            ),
        ),
        Failure::Unfenced(_) => (
            Reason::ServerNotFenced,
            "try again when it can take its fence record".to_owned(),
        ),
        Failure::NotRedis(_) | Failure::Proxy(_) => (
            Reason::ServerNotRedis,
            "check the address and port".to_owned(),
        ),
    };
    Refusal::new(reason, format!("server {address} {failure}: {advice}"))
}

/// What to tell of a server that was not fenced.
pub fn unfenced(address: &ServerAddr, group: &GroupId, why: &NotFenced) -> Refusal {
    let reason = match why {
        NotFenced::Unanswered(failure) => return unanswered(address, group, failure),
        NotFenced::NotLeading => Reason::NotLeading,
        NotFenced::Refused(fence::Refusal::OtherCluster(_)) => {
            let message = format!(
                "server {address} {why}, or did: if that cluster uses it no more, take it over with \
                 --take-over"
            );
            return Refusal::new(Reason::ServerOfOtherCluster, message);
        }
        NotFenced::Denied { .. } => Reason::ServerNotPermitted,
        NotFenced::Refused(_) | NotFenced::Later(_) | NotFenced::Lost => Reason::ServerNotFenced,
    };
    Refusal::new(reason, format!("server {address} {why}"))
}

/// What to tell of a replica that is to get a record of its own.
pub fn has_its_primarys(address: &ServerAddr, group: &Group) -> Refusal {
    mismatch(format!(
        "server {address} is a replica, and has the fence record of its primary {}: repair that one",
        group.primary().address
    ))
}

fn admitted(candidate: &Candidate, facts: &Facts) -> Server {
    Server {
        address: candidate.address.clone(),
        role: facts.role(),
        zone: candidate.zone.clone(),
        run_id: facts.run_id.clone(),
    }
}

fn may_join_any(candidate: &Candidate, facts: &Facts, known: &[Known]) -> Result<(), Refusal> {
    let address = &candidate.address;
    if let Some(taken) = known.iter().find(|k| k.run_id == facts.run_id) {
        return Err(same_process(address, &taken.address, &taken.group));
    }
    if facts.cluster_mode {
        return Err(Refusal::new(
            Reason::ServerInClusterMode,
            format!(
                "server {address} runs in Redis Cluster mode: start it with `cluster-enabled no`"
            ),
        ));
    }
    Ok(())
}

fn sole_primary(candidates: &[(Candidate, Facts)]) -> Result<&(Candidate, Facts), Refusal> {
    let mut primaries = candidates.iter().filter(|(_, f)| f.role() == Role::Primary);
    match (primaries.next(), primaries.next()) {
        (Some(primary), None) => Ok(primary),
        (Some((one, _)), Some((two, _))) => Err(mismatch(format!(
            "servers {} and {} are both primaries: make one follow the other with {}",
            one.address,
            two.address,
            replicaof(&two.address, &one.address)
        ))),
        (None, _) => Err(mismatch(
            "no server of the group is a primary: name the primary too, or make one with \
             `REPLICAOF NO ONE`",
        )),
    }
}

/// A replica follows the primary if it says so by name, by what the name resolves to, or by having
/// the primary's own history: one process may go by many addresses.
fn follows(
    replica: &ServerAddr,
    facts: &Facts,
    primary: &ServerAddr,
    primary_facts: &Facts,
) -> Result<(), Refusal> {
    if let Some(upstream) = &primary_facts.upstream {
        return Err(mismatch(format!(
            "server {primary} is the group's primary, but follows {}: make it a primary again \
             with `REPLICAOF NO ONE`",
            upstream.address
        )));
    }
    let command = replicaof(replica, primary);
    let Some(upstream) = &facts.upstream else {
        return Err(mismatch(format!(
            "server {replica} is a primary, not a replica of {primary}: {command}"
        )));
    };
    let same_history = upstream.link_up
        && !facts.replication_id.is_empty()
        && facts.replication_id == primary_facts.replication_id;
    let same_address = upstream.address == primary.as_str()
        || intersect(&upstream.resolved, &primary_facts.resolved);
    if same_address || same_history {
        return Ok(());
    }
    Err(mismatch(format!(
        "server {replica} follows {}, not the group's primary {primary}: {command}",
        upstream.address
    )))
}

fn intersect(a: &[SocketAddr], b: &[SocketAddr]) -> bool {
    a.iter().any(|address| b.contains(address))
}

fn mismatch(message: impl Into<String>) -> Refusal {
    Refusal::new(Reason::ServerRoleMismatch, message)
}

/// The command that makes a server follow another.
fn replicaof(replica: &ServerAddr, primary: &ServerAddr) -> String {
    let split = |address: &ServerAddr| {
        let (host, port) = address.as_str().rsplit_once(':').unwrap_or_default();
        (host.trim_matches(['[', ']']).to_owned(), port.to_owned())
    };
    let ((host, port), (primary_host, primary_port)) = (split(replica), split(primary));
    format!("`redis-cli -h {host} -p {port} REPLICAOF {primary_host} {primary_port}`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{Flavor, Upstream};

    fn addr(text: &str) -> ServerAddr {
        ServerAddr::new(text).unwrap()
    }

    fn candidate(address: &str) -> Candidate {
        Candidate {
            address: addr(address),
            zone: "z".to_owned(),
        }
    }

    /// A server at `127.0.0.1:<port>`, which follows an address, or nothing.
    fn server(port: u16, upstream: Option<&str>) -> (Candidate, Facts) {
        let address = format!("127.0.0.1:{port}");
        let facts = Facts {
            resolved: vec![address.parse().unwrap()],
            flavor: Flavor::Redis,
            version: "7.0.15".to_owned(),
            run_id: format!("run-{port}"),
            replication_id: format!("history-{port}"),
            upstream: upstream.map(|address| Upstream {
                address: address.to_owned(),
                resolved: Vec::new(),
                link_up: true,
            }),
            cluster_mode: false,
            used_memory: 0,
            keys: 0,
        };
        (candidate(&address), facts)
    }

    fn refused<T: std::fmt::Debug>(result: Result<T, Refusal>, reason: Reason, part: &str) {
        let refusal = result.unwrap_err();
        assert_eq!(refusal.reason, reason, "{refusal:?}");
        assert!(refusal.message.contains(part), "{refusal:?}");
    }

    #[test]
    fn a_group_is_a_primary_and_its_replicas() {
        let servers = [server(2, Some("127.0.0.1:1")), server(1, None)];
        let group = form_group(&servers, &[]).unwrap();
        let roles: Vec<Role> = group.iter().map(|s| s.role).collect();
        assert_eq!(roles, [Role::Replica, Role::Primary]);

        let two = [server(1, None), server(2, None)];
        refused(
            form_group(&two, &[]),
            Reason::ServerRoleMismatch,
            "redis-cli -h 127.0.0.1 -p 2 REPLICAOF 127.0.0.1 1",
        );
        let none = [server(2, Some("127.0.0.1:1"))];
        let part = "no server of the group is a primary";
        refused(form_group(&none, &[]), Reason::ServerRoleMismatch, part);
        let foreign = [server(1, None), server(2, Some("10.0.0.9:1"))];
        let part = "follows 10.0.0.9:1, not the group's primary";
        refused(form_group(&foreign, &[]), Reason::ServerRoleMismatch, part);
    }

    #[test]
    fn a_primary_goes_by_many_names() {
        let (primary, primary_facts) = server(1, None);
        let check = |edit: &dyn Fn(&mut Facts)| {
            let (replica, mut facts) = server(2, Some("redis-1.local:1"));
            edit(&mut facts);
            join_group(&replica, &facts, (&primary.address, &primary_facts), &[]).is_ok()
        };
        assert!(!check(&|_| {}));
        assert!(check(&|facts| {
            let upstream = facts.upstream.as_mut().unwrap();
            upstream.resolved = vec!["127.0.0.1:1".parse().unwrap()];
        }));
        assert!(check(&|facts| facts.replication_id = "history-1".to_owned()));
        assert!(!check(&|facts| {
            facts.replication_id = "history-1".to_owned();
            facts.upstream.as_mut().unwrap().link_up = false;
        }));
    }

    #[test]
    fn a_process_is_in_one_group() {
        let known = [Known {
            run_id: "run-1".to_owned(),
            address: addr("localhost:1"),
            group: GroupId::new("g1").unwrap(),
        }];
        refused(
            form_group(&[server(1, None)], &known),
            Reason::ServerExists,
            "same process as localhost:1, which is in group g1",
        );
        let mut twin = server(1, None);
        twin.0 = candidate("localhost:1");
        let twins = [server(1, None), twin];
        refused(
            form_group(&twins, &[]),
            Reason::ServerExists,
            "name it once",
        );
    }

    #[test]
    fn cluster_mode_is_refused() {
        let mut server = server(1, None);
        server.1.cluster_mode = true;
        let reason = Reason::ServerInClusterMode;
        refused(form_group(&[server], &[]), reason, "cluster-enabled no");
    }

    #[test]
    fn silence_comes_with_advice() {
        let group = GroupId::new("east-1").unwrap();
        let failure = Failure::AuthFailed("WRONGPASS".to_owned());
        let refusal = unanswered(&addr("h:1"), &group, &failure);
        assert_eq!(refusal.reason, Reason::ServerAuthFailed);
        assert!(refusal.message.contains("SLUICE_SERVER_PASSWORD_EAST_1"));
    }
}
