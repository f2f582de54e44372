//! What a leader has to do about a server's record.
//!
//! Pure: from the record, as it was read, and from what the leader knows.

use proto::{
    ClusterId, Version,
    fence::{Comer, FIELDS, Fence, Refusal, judge},
};

/// A term and an epoch, as they stand in a record. Each has an order of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// The leader's term.
    pub term: u64,
    /// The lowest epoch by which a request may be routed there.
    pub epoch: u64,
}

/// How far above the leader's own the numbers of a record are believed. A store that was restored is
/// never so far behind; but a client's script may write anything.
const BELIEVED: u64 = 1 << 32;

impl Mark {
    /// The highest number that is believed, if the leader is there.
    pub fn believed(self) -> u64 {
        self.term.max(self.epoch) + BELIEVED
    }

    /// Whether one of the numbers is above the other's.
    pub fn exceeds(self, other: Self) -> bool {
        self.term > other.term || self.epoch > other.epoch
    }

    /// Whether a leader that is here believes in numbers that were found elsewhere.
    pub fn believes(self, found: Self) -> bool {
        found.term.max(found.epoch) <= self.believed()
    }
}

impl From<Version> for Mark {
    fn from(version: Version) -> Self {
        Self {
            term: version.leader_term,
            epoch: version.epoch,
        }
    }
}

/// What was read at a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sight {
    /// The record. `None`: there is none. An error: the field that is damaged.
    pub record: Result<Option<Fence>, &'static str>,
    /// Of the server's process.
    pub run_id: String,
}

impl Sight {
    /// The record. Numbers of this cluster that nobody believes count as damaged.
    fn believed(&self, cluster: &ClusterId, own: Mark) -> Result<Option<&Fence>, &'static str> {
        let record = self.record.as_ref().map_err(|field| *field)?.as_ref();
        let most = own.believed();
        match record.filter(|record| record.cluster == *cluster) {
            Some(record) if record.term > most => Err(FIELDS[1]),
            Some(record) if record.epoch > most => Err(FIELDS[2]),
            Some(_) | None => Ok(record),
        }
    }

    /// The epoch of the record, if it can be read.
    pub fn epoch(&self) -> Option<u64> {
        let record = self.record.as_ref().ok()?.as_ref()?;
        Some(record.epoch)
    }

    /// Whether a leader may write the record.
    pub fn judge(&self, cluster: &ClusterId, own: Mark) -> Result<(), Refusal> {
        let record = self.believed(cluster, own);
        let term = own.term;
        judge(record, &self.run_id, Comer::Leader { cluster, term })
    }

    /// Whether the record is at this mark, or above it, and of this process.
    pub fn is_raised(&self, cluster: &ClusterId, mark: Mark) -> bool {
        match &self.record {
            Ok(Some(record)) => {
                record.cluster == *cluster
                    && record.term >= mark.term
                    && record.epoch >= mark.epoch
                    && record.run_id == self.run_id
            }
            Ok(None) | Err(_) => false,
        }
    }
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// The record is as it is to be.
    Keep,
    /// It is this process's, but of an older term: raise that, and leave the epoch, which is this.
    Lead {
        /// Of the record.
        epoch: u64,
    },
    /// It was lowered since: raise it again to this epoch.
    Restore {
        /// What it was raised to.
        epoch: u64,
    },
    /// There is none of this process: raise it to the store's epoch.
    Admit,
    /// It is above what the store has: either this controller leads no more, or its store was
    /// restored. The store has to go on above this, if it can.
    Leap(Mark),
    /// It must not be touched.
    Leave(Refusal),
}

/// Decides. `own` is the leader's term and its store's epoch; `known` the epoch to which it knows the
/// record of this process to have been raised.
pub fn next(sight: &Sight, cluster: &ClusterId, own: Mark, known: Option<u64>) -> Step {
    let record = match (sight.judge(cluster, own), sight.believed(cluster, own)) {
        (Ok(()) | Err(Refusal::OldTerm { .. }), Ok(Some(record))) => record,
        (Ok(()), Ok(None) | Err(_)) => return Step::Admit,
        (Err(refusal), _) => return Step::Leave(refusal),
    };
    let found = Mark {
        term: record.term,
        epoch: record.epoch,
    };
    if found.exceeds(own) {
        return Step::Leap(found);
    }
    if record.run_id != sight.run_id {
        return Step::Admit;
    }
    match known {
        Some(known) if known > found.epoch => Step::Restore { epoch: known },
        _ if found.term < own.term => Step::Lead { epoch: found.epoch },
        _ => Step::Keep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(id: &str) -> ClusterId {
        ClusterId::new(id).unwrap()
    }

    fn sight(term: u64, epoch: u64, run_id: &str) -> Sight {
        Sight {
            record: Ok(Some(Fence {
                cluster: cluster("c"),
                term,
                epoch,
                run_id: run_id.to_owned(),
            })),
            run_id: "run".to_owned(),
        }
    }

    const OWN: Mark = Mark { term: 7, epoch: 80 };

    fn check(sight: &Sight, known: Option<u64>, expected: Step) {
        assert_eq!(
            next(sight, &cluster("c"), OWN, known),
            expected,
            "{sight:?}"
        );
    }

    #[test]
    fn what_is_as_it_should_be_is_kept() {
        check(&sight(7, 80, "run"), None, Step::Keep);
        check(&sight(7, 3, "run"), Some(3), Step::Keep);
        check(&sight(7, 5, "run"), Some(3), Step::Keep);
    }

    #[test]
    fn what_is_lower_is_raised() {
        check(&sight(6, 3, "run"), None, Step::Lead { epoch: 3 });
        check(&sight(7, 3, "run"), Some(4), Step::Restore { epoch: 4 });
        check(&sight(6, 3, "run"), Some(4), Step::Restore { epoch: 4 });
    }

    #[test]
    fn another_process_and_no_record_are_admitted() {
        let missing = Sight {
            record: Ok(None),
            ..sight(1, 1, "run")
        };
        check(&missing, Some(4), Step::Admit);
        let damaged = Sight {
            record: Err("term"),
            ..sight(1, 1, "run")
        };
        check(&damaged, None, Step::Admit);
        check(&sight(7, 80, "before"), Some(80), Step::Admit);
        check(&sight(6, 3, "before"), None, Step::Admit);
    }

    #[test]
    fn numbers_above_the_store_are_believed_within_reason() {
        let leap = |term, epoch| Step::Leap(Mark { term, epoch });
        check(&sight(8, 80, "run"), None, leap(8, 80));
        check(&sight(7, 81, "run"), None, leap(7, 81));
        check(&sight(6, 81, "before"), None, leap(6, 81));
        check(&sight(9, 2, "before"), None, leap(9, 2));
        let most = OWN.believed();
        check(&sight(7, most, "run"), None, leap(7, most));
        check(&sight(7, most + 1, "run"), None, Step::Admit);
        check(&sight(most + 1, 3, "run"), None, Step::Admit);
    }

    #[test]
    fn another_clusters_is_left() {
        let mut foreign = sight(1, 1, "run");
        foreign.record.as_mut().unwrap().as_mut().unwrap().cluster = cluster("d");
        let refusal = Refusal::OtherCluster(cluster("d"));
        check(&foreign, None, Step::Leave(refusal));
    }
}
