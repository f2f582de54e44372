//! Deletes what a server has of some slots.
//!
//! The target before a copy, and what is left of a copy that was given up: a key staged earlier and
//! deleted at the source since would come back. Sluice's own keys stay, but for the marks of the copy.

use proto::{
    SlotSet,
    seeded::{self, Bug},
};

use super::{
    dirty::Key,
    link::{Link, LinkError},
    reply::Reply,
    scan::{Gait, Stroll},
};

/// Keys deleted by one command, at most.
const BATCH: usize = 512;

/// Deletes the keys of the slots in all databases, and Sluice's own that begin with `own`; how many keys
/// of users that were.
pub(super) async fn clean(
    link: &mut Link,
    slots: &SlotSet,
    own: &str,
    gait: Gait,
) -> Result<u64, LinkError> {
    let mut deleted = 0;
    for database in link.server().await?.keyspace.into_keys() {
        link.select(database).await?;
        let mut stroll = Stroll::new(gait);
        while let Some(keys) = stroll.next(link).await? {
            deleted += unlink(link, &of_slots(&keys, slots)).await?;
            let keys = keys.iter().map(|key| &key[..]);
            let ours: Vec<_> = keys.filter(|key| key.starts_with(own.as_bytes())).collect();
            unlink(link, &ours).await?;
        }
    }
    link.select(0).await?;
    Ok(deleted)
}

/// Those keys that are users' and of these slots.
pub(super) fn of_slots<'a>(keys: &'a [Key], slots: &SlotSet) -> Vec<&'a [u8]> {
    let keys = keys.iter().map(|key| &key[..]);
    keys.filter(|key| slots.owns(key)).collect()
}

/// Deletes keys; how many were there.
pub(super) async fn unlink(link: &mut Link, keys: &[&[u8]]) -> Result<u64, LinkError> {
    let mut deleted = 0;
    for keys in keys.chunks(BATCH) {
        let command = link.deletion();
        let mut words: Vec<&[u8]> = vec![command.as_bytes()];
        words.extend(keys);
        match link.demand(command, &words).await? {
            Reply::Integer(number) => deleted += u64::try_from(number).unwrap_or(0),
            other => return Err(link.unexpected(command, &other)),
        }
    }
    Ok(deleted)
}

/// Has the server close all connections of copies with this name but those of this attempt, and returns
/// when they are gone: nothing that an earlier attempt sent is executed after that, not even what is
/// still on its way.
pub(super) async fn close_former(
    link: &mut Link,
    is_former: impl Fn(&str) -> bool,
) -> Result<(), LinkError> {
    if seeded::has(Bug::AttemptNotKilled) {
        return Ok(());
    }
    loop {
        let clients = link.clients().await?;
        let former: Vec<i64> = clients
            .iter()
            .filter(|client| is_former(&client.name))
            .map(|client| client.id)
            .collect();
        if former.is_empty() {
            return Ok(());
        }
        for id in former {
            let id = id.to_string();
            match link
                .ask(&[b"CLIENT", b"KILL", b"ID", id.as_bytes()])
                .await?
            {
                Reply::Error(answer) if !answer.contains("No such client") => {
                    return Err(link.refused("CLIENT KILL", answer));
                }
                // Or it has gone by itself. The next list will tell.
                _ => {}
            }
        }
    }
}
