//! Copies a big string by one command, the bytes of which are sent as they are read.
//!
//! A server takes the memory for a big argument at once, touches it only as the bytes come, and makes it the
//! value without a copy: nobody waits. A string that grows has all of its memory cleared first (64 MiB: 50 ms
//! and more). The command has a connection of its own: nothing else can be sent on one before it ends, and
//! giving it up closes it, whereupon the server forgets what came.
//!
//! Where a server has replicas or an append-only file, it copies the whole command for them at once, which
//! takes longer; and it counts the argument twice for a moment. Where that matters, and where it takes no
//! command so long, strings grow (`pieces`).

use std::time::Duration;

use tokio::time::{self, Instant};

use super::{
    Interruption,
    lane::GoAhead,
    link::{Endpoint, LinkError, Opener, Sending},
    pages::{Kind, Position},
    pieces::{Halt, Manner, Outcome, Partial, Way},
    relay::Relay,
    reply::Reply,
    server::Server,
    value::{self, Verdict},
};

/// The shortest string that is worth a connection: growing it takes 3 ms.
const LEAST: u64 = 4 << 20;
/// Bytes a second, at most: what a server finds waiting it reads in one go.
const FASTEST: f64 = 400e6;
/// How much of it may be made up for that came later than it might have.
const LATE: Duration = Duration::from_millis(4);

/// How another connection to the target is opened.
pub(super) struct Door {
    pub(super) opener: Opener,
    pub(super) target: Endpoint,
    /// Of the connection, among those of the attempt.
    pub(super) number: usize,
}

/// Whether a server can take a string of so many bytes without anybody's notice.
fn is_fit(server: &Server, bytes: u64) -> bool {
    // It, its buffer once more, and what may be written meanwhile.
    let room = |most: u64| most.saturating_sub(server.memory) > 3 * bytes;
    server.replicas == 0 && !server.appends && server.most_memory.is_none_or(room)
}

/// A string that is on its way to the target.
pub(super) struct Flowing {
    sending: Sending,
    /// Of the whole of it, when it began, in bytes.
    length: u64,
    /// How much of it was read, in bytes; the last of that, which is not sent yet.
    at: u64,
    read: Vec<Vec<u8>>,
    /// When the next may be sent.
    free: Instant,
}

impl Relay {
    /// Begins with a string, if it can be copied in this way.
    pub(super) async fn begin_flowing(
        &mut self,
        database: u32,
        key: &[u8],
    ) -> Result<Option<Flowing>, Interruption> {
        let length = self.length(Kind::String, key, true).await?;
        let sending = self.begin_sending(database, length).await;
        Ok(sending.map(|sending| Flowing {
            sending,
            length,
            at: 0,
            read: Vec::new(),
            free: Instant::now(),
        }))
    }

    /// Goes on with a string; none: it cannot be copied in this way, after all.
    pub(super) async fn flow(
        &mut self,
        flowing: Flowing,
        key: &[u8],
        manner: Manner,
        go_ahead: &mut GoAhead<'_>,
    ) -> Result<Option<Outcome>, Interruption> {
        let Flowing {
            mut sending,
            length,
            mut at,
            mut read,
            mut free,
        } = flowing;
        while at < length || !read.is_empty() {
            if at < length {
                match go_ahead.wait(Way::Anew, &mut self.not_before).await {
                    None => {}
                    Some(Halt::Stop) => return Ok(Some(Outcome::Stopped)),
                    Some(Halt::Park) => {
                        let parked = Flowing {
                            sending,
                            length,
                            at,
                            read,
                            free,
                        };
                        return Ok(Some(Outcome::Parked(Box::new(Partial::Flown(parked)))));
                    }
                }
                let portion = self.portion_for(manner.hurry);
                for position in
                    Kind::String.positions(Position::At(at), portion.page, portion.pages)
                {
                    Kind::String.ask(key, &position, portion.page, |words| {
                        self.source.push(words);
                    });
                }
            }
            let is_last = at >= length;
            let begun = Instant::now();
            // What was read before is sent meanwhile.
            let sent = async {
                let bytes: usize = read.iter().map(Vec::len).sum();
                for part in read.drain(..) {
                    sending.send(&part).await?;
                }
                // Timers wake late, by a millisecond or two: that is made up for.
                free = free.max(begun - LATE) + Duration::from_secs_f64(bytes as f64 / FASTEST);
                time::sleep_until(free).await;
                Ok::<(), LinkError>(())
            };
            let (replies, sent) = tokio::join!(self.source.exchange(), sent);
            let replies = replies.map_err(Interruption::Source)?;
            if let Err(why) = sent {
                return Ok(self.end_flowing(&why));
            }
            for reply in replies {
                match reply {
                    Reply::Text(bytes) => {
                        at += bytes.len() as u64;
                        read.push(bytes);
                    }
                    // Of another type now: it has changed.
                    Reply::Nil
                    | Reply::Integer(_)
                    | Reply::Error(_)
                    | Reply::List(_)
                    | Reply::Push(_) => return Ok(Some(Outcome::Changed)),
                }
            }
            let bytes = read.iter().map(Vec::len).sum::<usize>() as u64;
            if at > length || bytes == 0 && !is_last {
                return Ok(Some(Outcome::Changed));
            }
            self.book(0, bytes, begun);
        }
        let reply = match sending.end().await {
            Ok(reply) => reply,
            Err(why) => return Ok(self.end_flowing(&why)),
        };
        match value::verdict(reply) {
            Verdict::Done => self.take_place(Kind::String, key).await.map(Some),
            Verdict::Later(why) => Ok(Some(Outcome::Later(why))),
            Verdict::OtherVersion | Verdict::Unknown => Err(Interruption::Incompatible),
            Verdict::Never(why) => Ok(self.end_flowing(&why)),
        }
    }

    /// Opens a connection for a string of so many bytes, and begins. None: that is not for this string, or
    /// this target.
    async fn begin_sending(&mut self, database: u32, length: u64) -> Option<Sending> {
        let door = self.door.as_ref().filter(|_| length >= LEAST)?;
        let begun = async {
            let (mut link, is) = door.opener.open(&door.target, door.number).await?;
            if !is_fit(&is, length) {
                return Ok(None);
            }
            link.select(database).await?;
            let words: [&[u8]; 2] = [b"SET", self.place.as_bytes()];
            link.send_slowly(&words, length).await.map(Some)
        };
        match begun.await {
            Ok(sending) => sending,
            Err(why) => self.end_flowing(&why),
        }
    }

    /// The target does not take it: strings grow from now on.
    fn end_flowing<T>(&mut self, why: &impl std::fmt::Display) -> Option<T> {
        tracing::info!(%why, "big strings are not sent in one command");
        self.door = None;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_can_take_a_big_string_in_one_command() {
        let check = |more: &str, fit: bool| {
            let info = format!("redis_version:7.0.15\nrun_id:a\nrole:master\n{more}");
            assert_eq!(is_fit(&Server::read(&info).unwrap(), 100), fit, "{more}");
        };
        check("", true);
        check("aof_enabled:0\nconnected_slaves:0", true);
        check("aof_enabled:1", false);
        check("connected_slaves:1", false);
        check("used_memory:700\nmaxmemory:0", true);
        check("used_memory:699\nmaxmemory:1000", true);
        check("used_memory:700\nmaxmemory:1000", false);
    }
}
