//! Keyspace events: how a source tells of changes that is older than Redis 6, and has no tracking.
//!
//! Owns the setting `notify-keyspace-events` of such a source: turns on what a copy needs, and puts back
//! what stood there when no copy needs it any more. What that was is written down at the source itself, so
//! that another leader can put it back. It follows nothing: that is `tracker`'s.
//!
//! # What events do not tell
//!
//! Measured of every write command of Redis 3.2 and 5.0 (`tests/it/mover/events.rs`): each key that
//! changes is named by an event, but by `PERSIST`, `MOVE`, `RESTORE`, `SINTERSTORE` where it deletes, by what
//! changes who of a stream's groups has which entry, by `FLUSHALL`, `FLUSHDB` and `SWAPDB`, and by scripts
//! that call them.
//! * All but the last three have keys, and come through proxies. Proxies note those keys before they send the
//!   command, as they do for consumer groups in any case, and hand them over when they have settled: they are
//!   copied again in the hold. Having the proxy publish the key behind each command would tell of it
//!   sooner, but says nothing when the connection breaks in between, so that noting would be needed, too.
//! * Where notes are lost, nobody can say which keys they were: the copy starts over.
//! * That a database was flushed, or swapped, by whomever, is seen by a mark that the copy sets in each
//!   database before it reads of it (`relay`).
//!
//! # Invariant
//!
//! While a copy follows events, nobody of Sluice turns them off. Who follows is subscribed before it turns them
//! on, and who puts back looks who is subscribed within a transaction that fails if anybody has turned
//! them on since.

use super::{
    link::{Link, LinkError},
    reply::Reply,
};

/// The setting.
const SETTING: &[u8] = b"notify-keyspace-events";
/// Where it is written down what stood there.
const BEFORE: &[u8] = b"{sluice}:events";
/// The events that a copy needs: of keys by what happened to them, of all kinds.
const NEEDED: [char; 2] = ['E', 'A'];
/// How often a transaction is tried again that another copy has come into.
const TRIES: usize = 10;

/// The pattern of the channels on which keys are named.
pub(super) const PATTERN: &[u8] = b"__keyevent@*__:*";

/// Whether these flags tell all that a copy needs.
fn suffice(flags: &str) -> bool {
    NEEDED.iter().all(|flag| flags.contains(*flag))
}

/// Those flags, and what a copy needs.
fn extended(flags: &str) -> String {
    let missing = NEEDED.iter().filter(|flag| !flags.contains(**flag));
    flags.chars().chain(missing.copied()).collect()
}

/// Whether the server tells all that a copy needs.
pub(super) async fn are_on(link: &mut Link) -> Result<bool, LinkError> {
    Ok(suffice(&flags(link).await?))
}

/// Whether the server lets us turn them on: tried with what stands there.
pub(super) async fn may_be_set(link: &mut Link) -> Result<(), LinkError> {
    let flags = flags(link).await?;
    let words: [&[u8]; 4] = [b"CONFIG", b"SET", SETTING, flags.as_bytes()];
    link.demand("CONFIG SET", &words).await.map(drop)
}

/// Turns them on. Whoever asks is subscribed already.
pub(super) async fn turn_on(link: &mut Link) -> Result<(), LinkError> {
    link.select(0).await?;
    for _ in 0..TRIES {
        link.demand("WATCH", &[b"WATCH", BEFORE]).await?;
        let before = text(link, &[b"GET", BEFORE]).await?;
        let now = flags(link).await?;
        if before.is_none() && suffice(&now) {
            // They are so for somebody else, and stay.
            link.demand("UNWATCH", &[b"UNWATCH"]).await?;
            return Ok(());
        }
        // Written also if it is there: who is about to put it back is to notice.
        let before = before.unwrap_or_else(|| now.clone());
        let now = extended(&now);
        let keep: [&[u8]; 3] = [b"SET", BEFORE, before.as_bytes()];
        let set: [&[u8]; 4] = [b"CONFIG", b"SET", SETTING, now.as_bytes()];
        if at_once(link, &[&keep, &set]).await? {
            return Ok(());
        }
    }
    Err(link.refused("EXEC", "another copy turns events on and off".to_owned()))
}

/// Puts back what stood there, unless it was never changed, or a copy follows events.
pub(super) async fn put_back(link: &mut Link) -> Result<(), LinkError> {
    link.select(0).await?;
    link.demand("WATCH", &[b"WATCH", BEFORE]).await?;
    let before = text(link, &[b"GET", BEFORE]).await?;
    let clients = link.clients().await?;
    let is_followed = clients.iter().any(|client| client.follows_events());
    let Some(before) = before.filter(|_| !is_followed) else {
        link.demand("UNWATCH", &[b"UNWATCH"]).await?;
        return Ok(());
    };
    let set: [&[u8]; 4] = [b"CONFIG", b"SET", SETTING, before.as_bytes()];
    // If somebody has turned them on meanwhile, it is theirs to put back.
    at_once(link, &[&set, &[b"DEL", BEFORE]]).await.map(drop)
}

async fn flags(link: &mut Link) -> Result<String, LinkError> {
    let words: [&[u8]; 3] = [b"CONFIG", b"GET", SETTING];
    match link.demand("CONFIG GET", &words).await? {
        Reply::List(items) => match <[Reply; 2]>::try_from(items) {
            Ok([_, Reply::Text(flags)]) => Ok(String::from_utf8_lossy(&flags).into_owned()),
            _ => Err(link.refused("CONFIG GET", "no such setting".to_owned())),
        },
        other => Err(link.unexpected("CONFIG GET", &other)),
    }
}

async fn text(link: &mut Link, words: &[&[u8]]) -> Result<Option<String>, LinkError> {
    match link.demand("GET", words).await? {
        Reply::Nil => Ok(None),
        Reply::Text(text) => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
        other => Err(link.unexpected("GET", &other)),
    }
}

/// Has commands executed as one, unless what is watched has changed; whether they were.
async fn at_once(link: &mut Link, commands: &[&[&[u8]]]) -> Result<bool, LinkError> {
    link.demand("MULTI", &[b"MULTI"]).await?;
    for words in commands {
        link.demand("MULTI", words).await?;
    }
    match link.demand("EXEC", &[b"EXEC"]).await? {
        Reply::Nil => Ok(false),
        Reply::List(replies) => {
            let refusal = replies.into_iter().find_map(|reply| match reply {
                Reply::Error(answer) => Some(answer),
                Reply::Nil
                | Reply::Integer(_)
                | Reply::Text(_)
                | Reply::List(_)
                | Reply::Push(_) => None,
            });
            match refusal {
                None => Ok(true),
                Some(answer) => Err(link.refused("EXEC", answer)),
            }
        }
        other => Err(link.unexpected("EXEC", &other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_there_is_kept() {
        for (before, after) in [("", "EA"), ("g$K", "g$KEA"), ("AE", "AE"), ("AK", "AKE")] {
            assert_eq!(extended(before), after);
            assert_eq!(suffice(before), before == after);
        }
    }
}
