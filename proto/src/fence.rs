//! The fence: a record on every server that says who may use it.
//!
//! Whoever opens a connection to a server gives it a [`Name`], asks for the record ([`KEY`], [`FIELDS`])
//! and for the `run_id` of the server's process, and lets [`judge`] say whether the connection may be
//! used, before anything else is sent on it. The leader raises the record, and then has the server kill
//! every named connection that has not confirmed: one that was judged before is in the server's list and
//! dies; one that is judged later sees the record. So no clock is needed, and no belief that a proxy is
//! dead (design: raise, then kill).
//!
//! Only the controller writes the record, and only upwards. Nothing here does I/O.

use std::{fmt, str::FromStr};

use crate::id::{ClusterId, InvalidId};

/// Where the record is: a hash in database 0. No client gets there ([`crate::slot::RESERVED`]).
pub const KEY: &str = "{sluice}:fence";

/// The fields of the hash, in the order [`Fence::read`] takes them.
pub const FIELDS: [&str; 4] = ["cluster", "term", "epoch", "run_id"];

/// The record. None of it ever goes down while the server keeps its data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fence {
    /// The cluster that uses the server.
    pub cluster: ClusterId,
    /// The highest term of a leader that has written here, from 1.
    pub term: u64,
    /// The lowest topology epoch by which a request for this server may be routed, from 1.
    pub epoch: u64,
    /// The server's process that it was written to. Another one may have come back with older data.
    pub run_id: String,
}

impl Fence {
    /// Reads the values of [`FIELDS`]. `None`: there is no record. An error: it is damaged; the field
    /// that is wrong.
    pub fn read(values: [Option<&[u8]>; 4]) -> Result<Option<Self>, &'static str> {
        if values.iter().all(Option::is_none) {
            return Ok(None);
        }
        let text = |at: usize| {
            let value = values[at].and_then(|bytes| std::str::from_utf8(bytes).ok());
            value.ok_or(FIELDS[at])
        };
        let number = |at: usize| {
            let number = text(at)?.parse().ok();
            number.filter(|number| *number > 0).ok_or(FIELDS[at])
        };
        Ok(Some(Self {
            cluster: ClusterId::new(text(0)?).map_err(|_| FIELDS[0])?,
            term: number(1)?,
            epoch: number(2)?,
            run_id: text(3)?.to_owned(),
        }))
    }
}

/// Who opens a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Comer<'a> {
    /// A proxy that has no controller, and so no epoch.
    Static,
    /// A worker of a proxy.
    Worker {
        /// Whose topology it has.
        cluster: &'a ClusterId,
        /// The epoch by which the oldest request was routed that is to go by this connection.
        epoch: u64,
    },
    /// Whoever copies or deletes keys for a leader.
    Mover {
        /// The leader's cluster.
        cluster: &'a ClusterId,
        /// The leader's term.
        term: u64,
    },
    /// A leader that is about to write the record.
    Leader {
        /// Its cluster.
        cluster: &'a ClusterId,
        /// Its term.
        term: u64,
    },
}

/// Why a connection must not be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// No leader has admitted the server, or its data were flushed.
    #[error("it has no fence record yet: its controller has to admit it")]
    Missing,
    /// Somebody else wrote there.
    #[error("its fence record is damaged (field `{0}`): see `sluice fence repair`")]
    Damaged(&'static str),
    /// Its process is not the one that was admitted.
    #[error("it has restarted: its controller has to admit it again")]
    Restarted,
    /// It serves another cluster.
    #[error("it belongs to cluster {0}")]
    OtherCluster(ClusterId),
    /// A slot was taken from it, or it was admitted, at a later epoch.
    #[error("it is fenced: it asks for epoch {fence}, and this proxy routes by {epoch}")]
    OldEpoch {
        /// Of the record.
        fence: u64,
        /// Of the comer.
        epoch: u64,
    },
    /// A later leader has been there.
    #[error("it is fenced: a leader of term {fence} has been there, and this one has term {term}")]
    OldTerm {
        /// Of the record.
        fence: u64,
        /// Of the comer.
        term: u64,
    },
    /// It has a controller, and the comer has not.
    #[error("a controller manages it for cluster {0}: a proxy with --static must not use it")]
    Managed(ClusterId),
}

impl Refusal {
    /// Whether only a newer topology helps the comer. Otherwise the record may become another one at any
    /// time, and asking again makes sense.
    pub fn is_sticky(&self) -> bool {
        match self {
            Self::OldEpoch { .. } | Self::OldTerm { .. } => true,
            Self::Missing
            | Self::Damaged(_)
            | Self::Restarted
            | Self::OtherCluster(_)
            | Self::Managed(_) => false,
        }
    }
}

/// Whether a connection may be used, by what [`Fence::read`] gave and the `run_id` of the server's
/// process.
pub fn judge(
    record: Result<Option<&Fence>, &'static str>,
    run_id: &str,
    comer: Comer<'_>,
) -> Result<(), Refusal> {
    let writes = matches!(comer, Comer::Leader { .. });
    let record = match (record, comer) {
        (Ok(None), Comer::Static | Comer::Leader { .. }) => return Ok(()),
        (Ok(None), Comer::Worker { .. } | Comer::Mover { .. }) => return Err(Refusal::Missing),
        (Err(_), Comer::Leader { .. }) => return Ok(()),
        (Err(field), Comer::Static | Comer::Worker { .. } | Comer::Mover { .. }) => {
            return Err(Refusal::Damaged(field));
        }
        (Ok(Some(record)), _) => record,
    };
    let cluster = match comer {
        Comer::Static => return Err(Refusal::Managed(record.cluster.clone())),
        Comer::Worker { cluster, .. }
        | Comer::Mover { cluster, .. }
        | Comer::Leader { cluster, .. } => cluster,
    };
    if record.cluster != *cluster {
        return Err(Refusal::OtherCluster(record.cluster.clone()));
    }
    match comer {
        Comer::Worker { epoch, .. } if epoch < record.epoch => {
            let fence = record.epoch;
            return Err(Refusal::OldEpoch { fence, epoch });
        }
        Comer::Mover { term, .. } | Comer::Leader { term, .. } if term < record.term => {
            let fence = record.term;
            return Err(Refusal::OldTerm { fence, term });
        }
        Comer::Static | Comer::Worker { .. } | Comer::Mover { .. } | Comer::Leader { .. } => {}
    }
    // A leader is there to write it anew.
    if record.run_id != run_id && !writes {
        return Err(Refusal::Restarted);
    }
    Ok(())
}

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// A proxy's.
    Proxy,
    /// Of what copies and deletes for a leader.
    Mover,
    /// A controller's, for all else.
    Controller,
}

impl Role {
    fn as_str(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Mover => "mover",
            Self::Controller => "controller",
        }
    }
}

/// What a connection is called at the server, so that it is found and killed:
/// `sluice:<role>:<incarnation>:<rest>`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Name {
    /// What it is for.
    pub role: Role,
    /// The process that has opened it; 32 hexadecimal digits.
    pub incarnation: String,
    /// Tells the connections of a process apart. No blanks.
    pub rest: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = self.role.as_str();
        write!(f, "sluice:{role}:{}:{}", self.incarnation, self.rest)
    }
}

impl FromStr for Name {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let read = || {
            let mut parts = text.strip_prefix("sluice:")?.splitn(3, ':');
            let role = parts.next()?;
            let roles = [Role::Proxy, Role::Mover, Role::Controller];
            Some(Self {
                role: roles.into_iter().find(|r| r.as_str() == role)?,
                incarnation: parts.next()?.to_owned(),
                rest: parts.next()?.to_owned(),
            })
        };
        read().ok_or_else(|| InvalidId {
            kind: "connection name",
            text: text.to_owned(),
            rule: "must be sluice:<role>:<incarnation>:<rest>",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(id: &str) -> ClusterId {
        ClusterId::new(id).unwrap()
    }

    fn fence() -> Fence {
        Fence {
            cluster: cluster("c"),
            term: 7,
            epoch: 80,
            run_id: "run".to_owned(),
        }
    }

    #[test]
    fn a_record_is_read_whole_or_not_at_all() {
        let good: [Option<&[u8]>; 4] = [Some(b"c"), Some(b"7"), Some(b"80"), Some(b"run")];
        assert_eq!(Fence::read(good), Ok(Some(fence())));
        assert_eq!(Fence::read([None; 4]), Ok(None));
        for (at, value) in [
            (0, None),
            (0, Some(&b"C!"[..])),
            (1, Some(b"0")),
            (1, Some(b"-1")),
            (2, Some(b"")),
            (2, Some(b"18446744073709551616")),
            (3, Some(b"\xff")),
        ] {
            let mut values = good;
            values[at] = value;
            assert_eq!(Fence::read(values), Err(FIELDS[at]), "{value:?}");
        }
    }

    #[test]
    fn who_may_use_a_server() {
        let (c, d) = (&cluster("c"), &cluster("d"));
        let worker = |cluster, epoch| Comer::Worker { cluster, epoch };
        let mover = |cluster, term| Comer::Mover { cluster, term };
        let leader = |cluster, term| Comer::Leader { cluster, term };
        let record = fence();
        let there = |run_id, comer| judge(Ok(Some(&record)), run_id, comer);

        for comer in [worker(c, 80), worker(c, 81), mover(c, 7), leader(c, 8)] {
            assert_eq!(there("run", comer), Ok(()), "{comer:?}");
        }
        let other = Err(Refusal::OtherCluster(cluster("c")));
        for comer in [worker(d, 99), mover(d, 99), leader(d, 99)] {
            assert_eq!(there("run", comer), other, "{comer:?}");
        }
        let old = Refusal::OldEpoch {
            fence: 80,
            epoch: 79,
        };
        assert!(old.is_sticky());
        assert_eq!(there("run", worker(c, 79)), Err(old));
        let old = Refusal::OldTerm { fence: 7, term: 6 };
        assert_eq!(there("run", mover(c, 6)), Err(old.clone()));
        assert_eq!(there("run", leader(c, 6)), Err(old));
        assert_eq!(
            there("run", Comer::Static),
            Err(Refusal::Managed(cluster("c")))
        );

        // A process that has started anew is used by nobody but the leader that admits it.
        assert_eq!(there("new", worker(c, 99)), Err(Refusal::Restarted));
        assert_eq!(there("new", mover(c, 9)), Err(Refusal::Restarted));
        assert_eq!(there("new", leader(c, 7)), Ok(()));
    }

    #[test]
    fn what_has_no_record_or_a_damaged_one() {
        let c = &cluster("c");
        let worker = Comer::Worker {
            cluster: c,
            epoch: 1,
        };
        let leader = Comer::Leader {
            cluster: c,
            term: 1,
        };
        assert_eq!(judge(Ok(None), "run", worker), Err(Refusal::Missing));
        assert_eq!(judge(Ok(None), "run", Comer::Static), Ok(()));
        assert_eq!(judge(Ok(None), "run", leader), Ok(()));
        let damaged = Err(Refusal::Damaged("term"));
        assert_eq!(judge(Err("term"), "run", worker), damaged);
        assert_eq!(judge(Err("term"), "run", Comer::Static), damaged);
        assert_eq!(judge(Err("term"), "run", leader), Ok(()));
    }

    #[test]
    fn names_are_read_as_written() {
        let name = Name {
            role: Role::Proxy,
            incarnation: "0f".repeat(16),
            rest: "1:42".to_owned(),
        };
        let text = format!("sluice:proxy:{}:1:42", "0f".repeat(16));
        assert_eq!(name.to_string(), text);
        assert_eq!(text.parse(), Ok(name));
        for foreign in [
            "",
            "sluice",
            "sluice:proxy:0f",
            "sluice:other:0f:1",
            "x:proxy:0f:1",
        ] {
            assert!(foreign.parse::<Name>().is_err(), "{foreign}");
        }
    }
}
