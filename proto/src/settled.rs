//! What a proxy says when nothing is under way any more of what it sent to a group before.
//!
//! The validated form of the message `Settled`, which `topology.proto` explains. Its bounds are those of
//! the message: whoever has more to name says so, and is believed to have touched anything.

use std::collections::BTreeSet;

use crate::{
    id::{GroupId, InvalidId, ServerAddr},
    topology::Version,
    v1,
};

/// How many lost connections are named.
pub const LOST_MAX: usize = 1000;
/// How many bytes the keys that are named have together.
pub const STREAM_BYTES_MAX: usize = 1 << 20;

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settled {
    /// The version in which the slots are being copied, or held.
    pub version: Version,
    /// Their owner.
    pub group: GroupId,
    /// What of it may be executed yet.
    pub lost: Lost,
    /// What who copies the slots has not seen.
    pub streams: Streams,
}

/// A connection as its server knows it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Connection {
    /// The server.
    pub server: ServerAddr,
    /// The process: ids are counted anew by the next one.
    pub run_id: String,
    /// Its `CLIENT ID`.
    pub client_id: u64,
}

/// Connections that were lost with requests unanswered.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Lost {
    /// These, and no others.
    These(BTreeSet<Connection>),
    /// More than are named.
    Many,
}

/// A key, as a rule of a stream.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StreamKey {
    /// The database it is in.
    pub database: u32,
    /// The key.
    pub key: Vec<u8>,
}

/// Keys that may have changed while nobody saw it: streams, by their groups of consumers, and others where the
/// server is older than Redis 6 and does not tell of all that clients do.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Streams {
    /// These, and no others.
    These(BTreeSet<StreamKey>),
    /// Any of the slots concerned.
    Any,
}

impl Streams {
    /// Those of both.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::These(mut streams), Self::These(more)) => {
                streams.extend(more);
                Self::These(streams)
            }
            (Self::Any, Self::These(_) | Self::Any) | (Self::These(_), Self::Any) => Self::Any,
        }
    }
}

/// Why a message is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidSettled {
    /// There is no version.
    #[error("version is missing")]
    NoVersion,
    /// An id or address is malformed.
    #[error(transparent)]
    Id(#[from] InvalidId),
    /// A run id is not one.
    #[error("invalid run id `{0}`: must be 40 hexadecimal digits")]
    RunId(String),
    /// More connections than may be named.
    #[error("{0} lost connections are too many: name 1000, and say that there are more")]
    TooManyLost(usize),
    /// More bytes of keys than may be named.
    #[error("{0} bytes of stream keys are too many: name 1 MiB, and say that there are more")]
    TooManyStreams(usize),
}

fn connection(wire: &v1::LostConnection) -> Result<Connection, InvalidSettled> {
    let run_id = wire.run_id.clone();
    if run_id.len() != 40 || !run_id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(InvalidSettled::RunId(run_id));
    }
    Ok(Connection {
        server: ServerAddr::new(&wire.server)?,
        run_id,
        client_id: wire.client_id,
    })
}

impl TryFrom<&v1::Settled> for Settled {
    type Error = InvalidSettled;

    fn try_from(wire: &v1::Settled) -> Result<Self, InvalidSettled> {
        let version = wire.version.as_ref().ok_or(InvalidSettled::NoVersion)?;
        if wire.lost_connections.len() > LOST_MAX {
            return Err(InvalidSettled::TooManyLost(wire.lost_connections.len()));
        }
        let bytes = wire.touched_streams.iter().map(|s| s.key.len()).sum();
        if bytes > STREAM_BYTES_MAX {
            return Err(InvalidSettled::TooManyStreams(bytes));
        }
        let lost = wire.lost_connections.iter().map(connection);
        let lost = lost.collect::<Result<_, _>>()?;
        let streams = wire.touched_streams.iter().map(|stream| StreamKey {
            database: stream.database,
            key: stream.key.clone(),
        });
        Ok(Self {
            version: version.into(),
            group: GroupId::new(&wire.group_id)?,
            lost: if wire.more_were_lost {
                Lost::Many
            } else {
                Lost::These(lost)
            },
            streams: if wire.any_stream_touched {
                Streams::Any
            } else {
                Streams::These(streams.collect())
            },
        })
    }
}

impl From<&Settled> for v1::Settled {
    fn from(settled: &Settled) -> Self {
        let lost = match &settled.lost {
            Lost::These(lost) => lost.iter().collect(),
            Lost::Many => Vec::new(),
        };
        let streams = match &settled.streams {
            Streams::These(streams) => streams.iter().collect(),
            Streams::Any => Vec::new(),
        };
        Self {
            version: Some(settled.version.into()),
            group_id: settled.group.to_string(),
            lost_connections: lost
                .into_iter()
                .map(|lost| v1::LostConnection {
                    server: lost.server.to_string(),
                    run_id: lost.run_id.clone(),
                    client_id: lost.client_id,
                })
                .collect(),
            more_were_lost: settled.lost == Lost::Many,
            touched_streams: streams
                .into_iter()
                .map(|stream| v1::StreamKey {
                    database: stream.database,
                    key: stream.key.clone(),
                })
                .collect(),
            any_stream_touched: settled.streams == Streams::Any,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled() -> Settled {
        let connection = |client_id| Connection {
            server: ServerAddr::new("127.0.0.1:7000").unwrap(),
            run_id: "0123456789abcdef0123456789abcdef01234567".to_owned(),
            client_id,
        };
        let stream = |key: &[u8]| StreamKey {
            database: 3,
            key: key.to_vec(),
        };
        Settled {
            version: Version {
                leader_term: 2,
                epoch: 9,
            },
            group: GroupId::new("g1").unwrap(),
            lost: Lost::These([connection(7), connection(8)].into()),
            streams: Streams::These([stream(b"a"), stream(b"\xff\0")].into()),
        }
    }

    #[test]
    fn wire_round_trip() {
        let named = settled();
        let unnamed = Settled {
            lost: Lost::Many,
            streams: Streams::Any,
            ..settled()
        };
        for settled in [named, unnamed] {
            let wire = v1::Settled::from(&settled);
            assert_eq!(Settled::try_from(&wire), Ok(settled));
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        fn check(spoil: impl FnOnce(&mut v1::Settled), error: &str) {
            let mut wire = v1::Settled::from(&settled());
            spoil(&mut wire);
            let got = Settled::try_from(&wire).unwrap_err().to_string();
            assert!(got.contains(error), "expected `{error}`, got `{got}`");
        }
        check(|s| s.version = None, "version is missing");
        check(|s| s.group_id = "G".into(), "invalid group id");
        check(
            |s| s.lost_connections[0].server = "x".into(),
            "invalid server address",
        );
        check(
            |s| s.lost_connections[0].run_id = "x".repeat(40),
            "invalid run id",
        );
        check(
            |s| s.lost_connections = vec![s.lost_connections[0].clone(); LOST_MAX + 1],
            "1001 lost connections",
        );
        check(
            |s| s.touched_streams[0].key = vec![0; STREAM_BYTES_MAX + 1],
            "stream keys are too many",
        );
    }

    #[test]
    fn any_stream_is_any_stream() {
        let these = |key: &[u8]| {
            Streams::These(BTreeSet::from([StreamKey {
                database: 0,
                key: key.to_vec(),
            }]))
        };
        let Streams::These(both) = these(b"a").and(these(b"b")) else {
            panic!("both are named");
        };
        assert_eq!(both.len(), 2);
        assert_eq!(these(b"a").and(Streams::Any), Streams::Any);
        assert_eq!(Streams::Any.and(these(b"a")), Streams::Any);
    }
}
