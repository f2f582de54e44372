//! What one proxy is sent, and when.
//!
//! A pure state machine per stream, over what the proxy answered and the newest topology there is.
//! One message is on its way at a time: the next is chosen when the proxy has answered, from what is
//! newest *then*. So a slow proxy skips versions, nothing is queued for it, and only what was sent last
//! can be answered, once.

use proto::{
    Version,
    seeded::{self, Bug},
    v1::{self, subscribe_response::Message},
};

use crate::topology::History;

/// Where the proxy is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// It answered all that was sent. `None`: it has nothing that a delta could lead on from.
    Answered(Option<Version>),
    /// It was sent this version.
    Awaiting(Version),
}

/// See the module.
#[derive(Debug)]
pub struct Feed {
    state: State,
    /// The newest version it refused. None up to it is ever sent again.
    refused: Option<Version>,
    /// The version it answered last, or came with.
    answered: Option<Version>,
}

/// The proxy answered what was not sent to it, or what it answered long ago.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotAsked(pub Version);

impl Feed {
    /// For a proxy that came with a version, or with none.
    pub fn new(has: Option<Version>) -> Self {
        Self {
            state: State::Answered(has),
            refused: None,
            answered: has,
        }
    }

    /// What to send now. `None`: nothing, until it answers or there is a newer topology.
    pub fn next(&mut self, history: &History) -> Option<Message> {
        let State::Answered(has) = self.state else {
            return None;
        };
        let version = history.version();
        if has == Some(version) || self.refused >= Some(version) {
            return None;
        }
        self.state = State::Awaiting(version);
        let delta = has.and_then(|base| history.delta(base));
        Some(match delta {
            Some(delta) => Message::Delta(delta),
            None if seeded::has(Bug::JoinerNotHeld) => {
                Message::Snapshot(unheld(history.snapshot()))
            }
            None => Message::Snapshot(history.snapshot()),
        })
    }

    /// The version that is not answered yet.
    pub fn awaiting(&self) -> Option<Version> {
        match self.state {
            State::Awaiting(version) => Some(version),
            State::Answered(_) => None,
        }
    }

    /// All its workers route by this version. `false`: it had answered before.
    pub fn ack(&mut self, version: Version) -> Result<bool, NotAsked> {
        let counts = self.answer(version)?;
        if counts {
            self.state = State::Answered(Some(version));
        }
        Ok(counts)
    }

    /// It refuses this version: the next is sent whole. `false`: it had answered before.
    pub fn nack(&mut self, version: Version) -> Result<bool, NotAsked> {
        let counts = self.answer(version)?;
        if counts {
            self.refused = self.refused.max(Some(version));
            self.state = State::Answered(None);
        }
        Ok(counts)
    }

    /// Whether this is the answer that is awaited.
    fn answer(&mut self, version: Version) -> Result<bool, NotAsked> {
        if self.state == State::Awaiting(version) {
            self.answered = Some(version);
            Ok(true)
        } else if self.answered == Some(version) {
            Ok(false)
        } else {
            Err(NotAsked(version))
        }
    }
}

/// For [`Bug::JoinerNotHeld`] only.
fn unheld(mut snapshot: v1::Topology) -> v1::Topology {
    for slots in &mut snapshot.slots {
        slots.set_state(v1::slot_assignment::State::Serving);
        slots.target_group_id = String::new();
    }
    snapshot
}

#[cfg(test)]
mod tests {
    use proto::Topology;

    use super::*;
    use crate::{
        change,
        snapshot::tests::{empty, group},
        topology::compile,
    };

    /// Topologies at epochs 1, 2, 3 …
    fn topologies(count: u16) -> Vec<Topology> {
        let mut now = empty();
        let mut all = vec![compile(&now)];
        for n in 1..count {
            let new = group(&format!("g{n}"), 7000 + n, 0);
            now = now.after(&change::create_group(&now, &new).unwrap());
            all.push(compile(&now));
        }
        all
    }

    fn history(epochs: u16) -> History {
        let all = topologies(epochs);
        let first = History::new(all[0].clone());
        all[1..].iter().fold(first, |h, t| h.and(t.clone()))
    }

    fn at(epoch: u64) -> Version {
        Version {
            leader_term: 1,
            epoch,
        }
    }

    /// `s3` for a snapshot of epoch 3, `d2-3` for a delta, `-` for nothing.
    fn next(feed: &mut Feed, history: &History) -> String {
        match feed.next(history) {
            None => "-".to_owned(),
            Some(Message::Snapshot(t)) => format!("s{}", t.version.unwrap().epoch),
            Some(Message::Delta(d)) => {
                let base = d.base_version.unwrap().epoch;
                format!("d{base}-{}", d.version.unwrap().epoch)
            }
            Some(Message::KeepAlive(_)) => panic!("a feed keeps nothing alive"),
        }
    }

    #[test]
    fn a_new_proxy_gets_a_snapshot_then_deltas() {
        let mut feed = Feed::new(None);
        assert_eq!(next(&mut feed, &history(1)), "s1");
        assert_eq!(next(&mut feed, &history(2)), "-"); // not answered yet
        feed.ack(at(1)).unwrap();
        assert_eq!(next(&mut feed, &history(4)), "d1-4"); // coalesced
        feed.ack(at(4)).unwrap();
        assert_eq!(next(&mut feed, &history(4)), "-");
    }

    #[test]
    fn a_proxy_that_comes_back_gets_what_it_lacks() {
        assert_eq!(next(&mut Feed::new(Some(at(4))), &history(4)), "-");
        assert_eq!(next(&mut Feed::new(Some(at(2))), &history(4)), "d2-4");
        let unknown = Version {
            leader_term: 7,
            epoch: 2,
        };
        assert_eq!(next(&mut Feed::new(Some(unknown)), &history(4)), "s4");
    }

    #[test]
    fn a_refused_version_is_never_sent_again() {
        let mut feed = Feed::new(Some(at(1)));
        assert_eq!(next(&mut feed, &history(2)), "d1-2");
        feed.nack(at(2)).unwrap();
        assert_eq!(feed.awaiting(), None);
        assert_eq!(next(&mut feed, &history(2)), "-");
        assert_eq!(next(&mut feed, &history(3)), "s3");
        feed.nack(at(3)).unwrap();
        assert_eq!(next(&mut feed, &history(3)), "-");
        assert_eq!(next(&mut feed, &history(4)), "s4");
    }

    #[test]
    fn only_the_first_answer_to_what_was_sent_last_counts() {
        let mut feed = Feed::new(None);
        assert_eq!(feed.ack(at(1)), Err(NotAsked(at(1))));
        assert_eq!(next(&mut feed, &history(2)), "s2");
        assert_eq!(feed.ack(at(1)), Err(NotAsked(at(1)))); // skipped
        assert_eq!(feed.nack(at(3)), Err(NotAsked(at(3))));
        assert_eq!(feed.awaiting(), Some(at(2)));
        assert_eq!(feed.ack(at(2)), Ok(true));
        assert_eq!(next(&mut feed, &history(4)), "d2-4");
        // Said again, or the contrary: neither answers what was sent since.
        assert_eq!((feed.ack(at(2)), feed.nack(at(2))), (Ok(false), Ok(false)));
        assert_eq!(feed.ack(at(3)), Err(NotAsked(at(3))));
        assert_eq!(feed.awaiting(), Some(at(4)));
        assert_eq!(feed.nack(at(4)), Ok(true));
        assert_eq!((feed.nack(at(4)), feed.ack(at(4))), (Ok(false), Ok(false)));
        assert_eq!(next(&mut feed, &history(4)), "-");
    }
}
