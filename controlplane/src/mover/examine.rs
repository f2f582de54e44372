//! Looks whether one server's slots can be copied to another, before that is begun.
//!
//! What it finds holds for the moment; a copy finds out by itself when it does not any more. So this is
//! there to refuse early, and to say why.

use std::time::Duration;

use super::{
    bypass, events,
    link::{Client, Link, LinkError},
    reply::Reply,
    server::Server,
    tracker::Telling,
    value::{self, Verdict, millis},
};

/// How far the clocks of two servers may differ: keys expire by so much earlier or later.
const CLOCKS: Duration = Duration::from_secs(1);

/// How two servers fit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fit {
    /// Whether the target restores what the source dumps. Otherwise each value is made anew with commands,
    /// which takes longer.
    pub restores: bool,
}

/// Why slots cannot be copied from one server to another.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// One does not work.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// They do not fit.
    #[error("{0}")]
    Reason(String),
}

/// What there is to move, of all that a source has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share {
    /// Slots that are to be copied.
    pub slots: usize,
    /// Slots that the source owns.
    pub owned: usize,
}

impl Share {
    /// About how many bytes that are, of so many that the source uses.
    pub(super) fn of(self, memory: u64) -> u64 {
        let share = self.slots.min(self.owned) as f64 / self.owned.max(1) as f64;
        (memory as f64 * share) as u64
    }
}

/// Whether these two can be the source and the target of a copy at all.
pub(super) fn fit(source: &Server, target: &Server) -> Result<(), String> {
    for (server, role) in [(source, "source"), (target, "target")] {
        if !server.primary {
            return Err(format!("the {role} is a replica"));
        }
        if server.cluster_mode {
            return Err(format!("the {role} is a node of a Redis Cluster"));
        }
    }
    if !source.is_source() {
        return Err("the source is older than Redis 3.2".to_owned());
    }
    if !target.restores_exactly() {
        return Err("the target is older than Redis 5".to_owned());
    }
    if source.run_id == target.run_id {
        return Err("source and target are one server".to_owned());
    }
    Ok(())
}

/// Whether the target has room for so many bytes more, and will keep them.
fn room(source: &Server, target: &Server, needed: u64) -> Result<(), String> {
    if target.evicts() && !source.evicts() {
        let policy = &target.policy;
        return Err(format!(
            "the target throws keys out when its memory is full ({policy}), and the source does not"
        ));
    }
    match target.most_memory {
        Some(most) if target.memory + needed > most && !target.evicts() => Err(format!(
            "the target has not enough memory: about {needed} bytes more are needed, of which it may \
             have {}",
            most.saturating_sub(target.memory)
        )),
        Some(_) | None => Ok(()),
    }
}

/// Looks at both, and writes nothing. `needed`: how many bytes come to the target, from the source and from
/// others.
pub(super) async fn look(
    (source, source_is): (&mut Link, &Server),
    (target, target_is): (&mut Link, &Server),
    needed: u64,
) -> Result<(), Unfit> {
    fit(source_is, target_is).map_err(Unfit::Reason)?;
    room(source_is, target_is, needed).map_err(Unfit::Reason)?;
    clocks(source, target).await?;
    databases(source_is, target).await?;
    functions((source, source_is), (target, target_is)).await?;
    events(source, source_is).await
}

/// Nobody may write to the source but through proxies.
pub(super) async fn bypass(source: &mut Link) -> Result<(), Unfit> {
    let writers = bypass::writers(source).await?;
    let Some(Client {
        address, command, ..
    }) = writers.first()
    else {
        return Ok(());
    };
    let others = match writers.len() - 1 {
        0 => String::new(),
        others => format!(" and {others} more"),
    };
    Err(Unfit::Reason(format!(
        "{address}{others} may have written to the source lately without a proxy ({command}), and what is written so is \
         lost when its slots move: have them use proxies, or allow it with --allow-direct-writers"
    )))
}

async fn clocks(source: &mut Link, target: &mut Link) -> Result<(), Unfit> {
    let before = time(target).await?;
    let there = time(source).await?;
    let after = time(target).await?;
    let apart = before
        .saturating_sub(there)
        .max(there.saturating_sub(after));
    if apart > CLOCKS.as_millis() as u64 {
        return Err(Unfit::Reason(format!(
            "the clocks of source and target are {apart} ms apart: keys would expire at other times"
        )));
    }
    Ok(())
}

/// A source that does not track is to tell of keyspace events.
async fn events(source: &mut Link, is: &Server) -> Result<(), Unfit> {
    match Telling::of(is) {
        Telling::Tracking => Ok(()),
        Telling::Events => match events::may_be_set(source).await {
            Ok(()) => Ok(()),
            Err(LinkError::Refused {
                command, answer, ..
            }) => Err(Unfit::Reason(format!(
                "the source is older than Redis 6, and tells of changes only by keyspace events, which \
                 cannot be turned on: it answers {command} with: {answer}"
            ))),
            Err(other) => Err(other.into()),
        },
    }
}

async fn time(link: &mut Link) -> Result<u64, LinkError> {
    let reply = link.demand("TIME", &[b"TIME"]).await?;
    millis(&reply).ok_or_else(|| link.unexpected("TIME", &reply))
}

/// The target must have every database that the source uses.
async fn databases(source: &Server, target: &mut Link) -> Result<(), Unfit> {
    let Some(highest) = source.keyspace.keys().next_back() else {
        return Ok(());
    };
    match target.select(*highest).await {
        Ok(()) => Ok(target.select(0).await?),
        Err(LinkError::Refused { answer, .. }) => Err(Unfit::Reason(format!(
            "the source has keys in database {highest}, and the target has none: {answer}"
        ))),
        Err(other) => Err(other.into()),
    }
}

/// Clients may call functions wherever their keys are.
async fn functions(
    (source, source_is): (&mut Link, &Server),
    (target, target_is): (&mut Link, &Server),
) -> Result<(), Unfit> {
    const WORDS: [&[u8]; 3] = [b"FUNCTION", b"LIST", b"WITHCODE"];
    if !source_is.has_functions() {
        return Ok(());
    }
    let here = libraries(source.demand("FUNCTION LIST", &WORDS).await?);
    let there = if target_is.has_functions() {
        libraries(target.demand("FUNCTION LIST", &WORDS).await?)
    } else {
        Vec::new()
    };
    match here.iter().find(|library| !there.contains(library)) {
        None => Ok(()),
        Some((name, _)) => Err(Unfit::Reason(format!(
            "the target has no functions, or others, in library {}",
            String::from_utf8_lossy(name)
        ))),
    }
}

/// The name and code of each library.
fn libraries(reply: Reply) -> Vec<(Vec<u8>, Vec<u8>)> {
    let Reply::List(libraries) = reply else {
        return Vec::new();
    };
    let read = |library| {
        let Reply::List(fields) = library else {
            return None;
        };
        let find = |name: &str| {
            let mut pairs = fields.chunks(2);
            pairs.find_map(|pair| match pair {
                [Reply::Text(key), Reply::Text(value)] if key == name.as_bytes() => {
                    Some(value.clone())
                }
                _ => None,
            })
        };
        Some((find("library_name")?, find("library_code")?))
    };
    libraries.into_iter().filter_map(read).collect()
}

/// Whether the target restores what the source dumps: tried with the fence record, which both have, and by
/// writing `probe` at the target for a moment.
pub(super) async fn restores(
    source: &mut Link,
    target: &mut Link,
    probe: &str,
) -> Result<bool, Unfit> {
    let words: [&[u8]; 2] = [b"DUMP", proto::fence::KEY.as_bytes()];
    let payload = match source.demand("DUMP", &words).await? {
        Reply::Text(payload) => payload,
        other => return Err(source.unexpected("DUMP", &other).into()),
    };
    let words: [&[u8]; 5] = [b"RESTORE", probe.as_bytes(), b"0", &payload, b"REPLACE"];
    let restored = value::verdict(target.ask(&words).await?);
    target.ask(&[b"UNLINK", probe.as_bytes()]).await?;
    match restored {
        Verdict::Done => Ok(true),
        Verdict::OtherVersion | Verdict::Unknown => Ok(false),
        Verdict::Later(answer) | Verdict::Never(answer) => {
            Err(target.refused("RESTORE", answer).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(run_id: &str, more: &str) -> Server {
        let info = format!("redis_version:7.0.15\nrun_id:{run_id}\nused_memory:1000\n{more}");
        Server::read(&info).unwrap()
    }

    const PRIMARY: &str = "role:master\nmaxmemory_policy:noeviction\n";

    #[test]
    fn who_fits() {
        let source = server("a", PRIMARY);
        let check = |target: Server, expected: &str| {
            let got = fit(&source, &target).err().unwrap_or_default();
            assert_eq!(got, expected);
        };
        check(server("b", PRIMARY), "");
        check(server("a", PRIMARY), "source and target are one server");
        check(server("b", "role:slave"), "the target is a replica");
        let cluster = format!("{PRIMARY}cluster_enabled:1\n");
        check(
            server("b", &cluster),
            "the target is a node of a Redis Cluster",
        );
        let mut old = server("b", PRIMARY);
        old.version = (4, 0);
        check(old.clone(), "the target is older than Redis 5");
        old.version = (3, 2);
        assert_eq!(fit(&old, &server("c", PRIMARY)), Ok(()));
        old.version = (3, 0);
        let got = fit(&old, &server("c", PRIMARY)).unwrap_err();
        assert_eq!(got, "the source is older than Redis 3.2");
    }

    #[test]
    fn who_has_room() {
        let source = server("a", PRIMARY);
        let share = |slots| Share { slots, owned: 512 }.of(source.memory);
        let check_with = |besides, most: u64, policy: &str, slots, expected: bool| {
            let more = format!("role:master\nmaxmemory:{most}\nmaxmemory_policy:{policy}\n");
            let got = room(&source, &server("b", &more), share(slots) + besides);
            assert_eq!(got.is_ok(), expected, "{most} {policy} {slots}: {got:?}");
        };
        let check = |most, policy, slots, expected| check_with(0, most, policy, slots, expected);
        check(0, "noeviction", 512, true);
        check(0, "allkeys-lru", 512, true);
        check(2000, "noeviction", 512, true);
        check(1999, "noeviction", 512, false);
        check(1999, "noeviction", 256, true);
        check_with(500, 2000, "noeviction", 256, true);
        check_with(501, 2000, "noeviction", 256, false);
        check(9000, "allkeys-lru", 1, false);
    }
}
