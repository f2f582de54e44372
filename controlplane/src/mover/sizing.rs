//! How large values are, as far as a server tells.

use super::{
    link::{Link, LinkError},
    reply::Reply,
    server::Server,
};

/// Bytes that an element of a value is reckoned to be, where the server tells no sizes.
const ELEMENT: u64 = 64;
/// What tells how long a value is, of each type; of others it is refused.
const LENGTHS: [&str; 5] = ["STRLEN", "LLEN", "SCARD", "ZCARD", "HLEN"];

/// How a server tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sizing {
    /// It reckons what a value takes, of a big one by a few of its elements.
    Usage,
    /// What servers of all versions tell: how many elements it has, or bytes.
    Lengths,
}

impl Sizing {
    /// How this one does.
    pub(super) fn of(server: &Server) -> Self {
        if server.tells_sizes() {
            Self::Usage
        } else {
            Self::Lengths
        }
    }

    /// Asks how large the values of keys are: in bytes, about; 0 where one is gone. Nothing may be queued.
    pub(super) async fn ask<K: AsRef<[u8]>>(
        self,
        link: &mut Link,
        keys: &[K],
    ) -> Result<Vec<u64>, LinkError> {
        self.push(link, keys);
        let replies = link.exchange().await?;
        self.read(link, &replies)
    }

    /// Queues the questions.
    pub(super) fn push<K: AsRef<[u8]>>(self, link: &mut Link, keys: &[K]) {
        for key in keys.iter().map(AsRef::as_ref) {
            match self {
                Self::Usage => link.push(&[b"MEMORY", b"USAGE", key]),
                Self::Lengths => {
                    for command in LENGTHS {
                        link.push(&[command.as_bytes(), key]);
                    }
                }
            }
        }
    }

    /// Reads the answers to them.
    pub(super) fn read(self, link: &Link, replies: &[Reply]) -> Result<Vec<u64>, LinkError> {
        let usage = |reply: &Reply| match reply {
            Reply::Integer(size) => Ok(u64::try_from(*size).unwrap_or(0)),
            Reply::Nil => Ok(0),
            other => Err(link.unexpected("MEMORY USAGE", other)),
        };
        match self {
            Self::Usage => replies.iter().map(usage).collect(),
            Self::Lengths => Ok(replies.chunks(LENGTHS.len()).map(by_lengths).collect()),
        }
    }
}

/// How large a value is by what the commands of [`LENGTHS`] answer.
fn by_lengths(replies: &[Reply]) -> u64 {
    let of_each = LENGTHS.iter().zip(replies);
    let found = of_each.map(|(command, reply)| match reply {
        Reply::Integer(length) => {
            let each = if *command == "STRLEN" { 1 } else { ELEMENT };
            u64::try_from(*length).unwrap_or(0) * each
        }
        Reply::Nil | Reply::Text(_) | Reply::Error(_) | Reply::List(_) | Reply::Push(_) => 0,
    });
    found.max().unwrap_or(0)
}
