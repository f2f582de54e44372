//! What workers say of what has settled, and what their proxy says of it.
//!
//! Pure, and what the model of the cut-over runs, too (`tests/it/model.rs`).

use proto::{
    Version,
    seeded::{self, Bug},
    settled::{LOST_MAX, Lost, STREAM_BYTES_MAX, Settled, Streams},
};

/// What a worker has to say of a version.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// By which it routes. `None`: there has been no topology.
    pub version: Option<Version>,
    /// The groups that have settled in it.
    pub groups: Vec<Settled>,
}

/// What all workers say together of a version.
pub fn settled(reports: &[Report], version: Version) -> Vec<Settled> {
    let reports = match reports {
        [first, ..] if seeded::has(Bug::AckBeforeAllWorkers) => std::slice::from_ref(first),
        _ => reports,
    };
    let Some((first, others)) = reports.split_first() else {
        return Vec::new();
    };
    if reports.iter().any(|r| r.version != Some(version)) {
        return Vec::new();
    }
    let all = |settled: &Settled| {
        let mut whole = settled.clone();
        for other in others {
            let of_other = other.groups.iter().find(|s| s.group == settled.group)?;
            whole.lost = both(whole.lost, &of_other.lost);
            whole.streams = whole.streams.and(of_other.streams.clone());
        }
        if let Streams::These(streams) = &whole.streams
            && streams.iter().map(|s| s.key.len()).sum::<usize>() > STREAM_BYTES_MAX
        {
            whole.streams = Streams::Any;
        }
        Some(whole)
    };
    first.groups.iter().filter_map(all).collect()
}

/// The lost connections of both.
pub fn both(one: Lost, other: &Lost) -> Lost {
    match (one, other) {
        (Lost::These(mut these), Lost::These(more)) => {
            these.extend(more.iter().cloned());
            if these.len() > LOST_MAX {
                Lost::Many
            } else {
                Lost::These(these)
            }
        }
        (Lost::Many, Lost::These(_) | Lost::Many) | (Lost::These(_), Lost::Many) => Lost::Many,
    }
}

#[cfg(test)]
mod tests {
    use proto::{GroupId, ServerAddr, settled::StreamKey};

    use super::*;

    fn at(epoch: u64) -> Version {
        Version {
            leader_term: 1,
            epoch,
        }
    }

    #[test]
    fn all_workers_together_say_that_a_group_has_settled() {
        let version = at(7);
        let connection = |id| proto::settled::Connection {
            server: ServerAddr::new("h:1").unwrap(),
            run_id: "run".to_owned(),
            client_id: id,
        };
        let report = |lost: &[u64], streams: Streams| Report {
            version: Some(version),
            groups: vec![Settled {
                version,
                group: GroupId::new("g1").unwrap(),
                lost: Lost::These(lost.iter().map(|id| connection(*id)).collect()),
                streams,
            }],
        };
        let streams = |keys: &[&[u8]]| {
            let stream = |key: &&[u8]| StreamKey {
                database: 0,
                key: key.to_vec(),
            };
            Streams::These(keys.iter().map(stream).collect())
        };
        let one = report(&[1, 2], streams(&[b"a"]));
        let two = report(&[2, 3], streams(&[b"b"]));
        let both = settled(&[one.clone(), two], version);
        let expected = report(&[1, 2, 3], streams(&[b"a", b"b"])).groups;
        assert_eq!(both, expected);
        // One is behind, or ahead, or has not settled.
        let behind = Report {
            version: Some(at(6)),
            ..one.clone()
        };
        let silent = Report {
            groups: Vec::new(),
            ..one.clone()
        };
        for other in [behind, silent, Report::default()] {
            assert_eq!(settled(&[one.clone(), other.clone()], version), []);
            assert_eq!(settled(&[other, one.clone()], version), []);
        }
        // What is too much to be named is not.
        let many: Vec<u64> = (0..=LOST_MAX as u64).collect();
        let large = vec![b'k'; STREAM_BYTES_MAX];
        let (some, more) = many.split_at(500);
        let all = [
            report(some, streams(&[&large])),
            report(more, streams(&[b"k"])),
        ];
        let all = settled(&all, version).remove(0);
        assert_eq!((all.lost, all.streams), (Lost::Many, Streams::Any));
    }
}
