//! Requests over several groups: the parts they are split into, and how the replies become one.
//!
//! Owns the replies of the parts until the last is there. The merge is pure. Keys are grouped by
//! group, never one by one: a group gets one request however many of the keys it owns.

use slab::Slab;

use self::value::{number, values};
pub(crate) use self::{
    cursor::{Cursors, OfServer},
    info::{Asked, Info, Own},
    keys::{Draw, Owners, Page},
    known::Known,
    receivers::Channel,
    report::Report,
    settings::Settings,
};
use crate::{
    backend::{Pending, Recipient},
    command::{Kind, Merge},
    framer::Piece,
    pubsub::census::Correction,
    resp::{ReplyProgress, put_error, put_header, put_int},
};

pub(crate) mod cursor;
mod figures;
mod info;
mod keys;
mod known;
pub(crate) mod log;
mod receivers;
mod report;
mod settings;
pub(crate) mod value;

/// How the replies of the parts become one.
pub(crate) enum Merging {
    /// By what they say alone.
    Plain(Merge),
    /// The keys to be shown, of one part for each group.
    Keys(Owners),
    /// A page of a scan, of one part.
    Page(Box<Page>),
    /// A page of the elements of one key, of one part.
    Elements(OfServer),
    /// A key, of [`Draw::ASKED`] for each group.
    Draw(Draw),
    /// A server's settings, of one part, and the proxy's.
    Settings(Settings),
    /// Which scripts are known.
    Known(Known),
    /// All have to agree to something. The client's CLIENT NO-TOUCH before: so it is again if one does not.
    Agreed { before: bool },
    /// How many a message has reached, of one part.
    Reached(Correction),
    /// How many are subscribed to each channel.
    Subscribed(Vec<Channel>),
    /// The newest entries of their logs, so many.
    Newest(usize),
    /// A text of each group.
    Report(Report),
    /// What each group says of itself, of those that do not fail.
    Info(Box<Info>),
}

/// Names one part of one fan-out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    pub(crate) fanout: u32,
    pub(crate) index: u16,
}

/// What became of a part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// The server answered; perhaps with an error.
    Answered,
    /// It was not executed.
    NotExecuted,
    /// Nobody knows.
    Unknown,
}

/// A request that was split and whose parts are under way.
pub(crate) struct Fanout {
    /// What it was before it was split: where the merged reply goes.
    pub(crate) whole: Pending,
    /// Bytes of replies that have come.
    pub(crate) bytes: usize,
    merging: Merging,
    /// For [`Merge::Values`]: of each key, in order, the part that brings its value.
    part_of_key: Vec<u16>,
    parts: Vec<Reply>,
    missing: u16,
}

#[derive(Default)]
struct Reply {
    bytes: Vec<u8>,
    failed: bool,
    executed: bool,
    unknown: bool,
}

/// What a server says begins so, if there is no script to be killed.
const NOT_BUSY: &[u8] = b"-NOTBUSY ";

/// All fan-outs of a worker that are under way.
#[derive(Default)]
pub(crate) struct Fanouts {
    fanouts: Slab<Fanout>,
    /// Ended ones, for their memory.
    spare: Vec<Fanout>,
}

/// So many ended ones are kept, if no part of theirs has grown beyond [`SPARE_BYTES`].
const SPARE: usize = 64;
const SPARE_BYTES: usize = 4 * 1024;

impl Fanouts {
    /// Starts one of so many parts (at least 1); its name in [`Part`].
    pub(crate) fn start(
        &mut self,
        whole: Pending,
        merging: Merging,
        part_of_key: &[u16],
        parts: u16,
    ) -> u32 {
        let mut fanout = self.spare.pop().unwrap_or_else(|| Fanout {
            whole,
            bytes: 0,
            merging: Merging::Plain(Merge::Same),
            part_of_key: Vec::new(),
            parts: Vec::new(),
            missing: 0,
        });
        (fanout.whole, fanout.merging, fanout.missing) = (whole, merging, parts);
        fanout.part_of_key.extend_from_slice(part_of_key);
        fanout.parts.resize_with(parts.into(), Reply::default);
        self.fanouts.insert(fanout) as u32
    }

    /// Takes a piece of the reply of a part. The fan-out, once that was the last of all, to be merged
    /// and given back to [`Fanouts::end`].
    pub(crate) fn fill(
        &mut self,
        part: Part,
        piece: Piece<'_>,
        outcome: Outcome,
    ) -> Option<Fanout> {
        let fanout = &mut self.fanouts[part.fanout as usize];
        let reply = &mut fanout.parts[usize::from(part.index)];
        if piece.first {
            reply.failed = piece.bytes.first() == Some(&b'-');
        }
        reply.bytes.extend_from_slice(piece.bytes);
        fanout.bytes += piece.bytes.len();
        if !piece.last {
            return None;
        }
        reply.failed |= outcome != Outcome::Answered;
        reply.executed = !reply.failed;
        reply.unknown = outcome == Outcome::Unknown;
        fanout.missing -= 1;
        (fanout.missing == 0).then(|| self.fanouts.remove(part.fanout as usize))
    }

    /// A part that was being received is lost with its server: what has come of it is no reply. How
    /// many bytes that were.
    pub(crate) fn forget(&mut self, part: Part) -> usize {
        let fanout = &mut self.fanouts[part.fanout as usize];
        let reply = &mut fanout.parts[usize::from(part.index)];
        let bytes = std::mem::take(&mut reply.bytes).len();
        fanout.bytes -= bytes;
        bytes
    }

    /// Nobody is there for the replies of this session's fan-outs: what has come of them is dropped.
    pub(crate) fn discard(&mut self, id: u32) {
        let of_session = |fanout: &&mut Fanout| matches!(fanout.whole.to, Recipient::Session { session, .. } if session == id);
        let fanouts = self.fanouts.iter_mut().map(|(_, fanout)| fanout);
        for fanout in fanouts.filter(of_session) {
            fanout.bytes = 0;
            for reply in &mut fanout.parts {
                reply.bytes = Vec::new();
            }
        }
    }

    /// The whole that a part belongs to.
    pub(crate) fn whole(&self, part: Part) -> Pending {
        self.fanouts[part.fanout as usize].whole
    }

    /// Takes back what [`Fanouts::fill`] gave.
    pub(crate) fn end(&mut self, mut fanout: Fanout) {
        let small = |reply: &Reply| reply.bytes.capacity() <= SPARE_BYTES;
        if self.spare.len() < SPARE
            && fanout.parts.iter().all(small)
            && fanout.part_of_key.len() < SPARE_BYTES
        {
            fanout.part_of_key.clear();
            fanout.bytes = 0;
            fanout.merging = Merging::Plain(Merge::Same);
            for reply in &mut fanout.parts {
                reply.bytes.clear();
            }
            self.spare.push(fanout);
        }
    }
}

/// Writes what these parts become, which are all there.
pub(crate) fn put_merged<'a>(
    merging: Merging,
    may_write: bool,
    parts: impl Iterator<Item = (&'a [u8], Outcome)>,
    out: &mut Vec<u8>,
) {
    let part = |(bytes, outcome): (&[u8], Outcome)| {
        let failed = outcome != Outcome::Answered || bytes.starts_with(b"-");
        Reply {
            bytes: bytes.to_vec(),
            failed,
            executed: !failed,
            unknown: outcome == Outcome::Unknown,
        }
    };
    let whole = Pending {
        to: Recipient::Nobody,
        kind: Kind::Split,
        may_write,
        since: 0,
        weight: 0,
    };
    let fanout = Fanout {
        whole,
        bytes: 0,
        merging,
        part_of_key: Vec::new(),
        parts: parts.map(part).collect(),
        missing: 0,
    };
    fanout.merge(out);
}

impl Fanout {
    /// Writes the one reply.
    pub(crate) fn merge(&self, out: &mut Vec<u8>) {
        let succeeded = self.parts.iter().find(|part| !part.failed);
        if let (Merging::Plain(Merge::Any), Some(part)) = (&self.merging, succeeded) {
            return out.extend_from_slice(&part.bytes);
        }
        if let (Merging::Agreed { .. }, failed) = (&self.merging, self.failure()) {
            return out.extend_from_slice(failed.map_or(b"+OK\r\n", |part| &part.bytes));
        }
        if let Merging::Info(info) = &self.merging {
            let parts = self.parts.iter();
            let said = parts.map(|part| (!part.failed).then_some(part.bytes.as_slice()));
            return info.put(said, out);
        }
        if let Some(failed) = self.failure() {
            return self.merge_failure(failed, out);
        }
        let replies = || self.parts.iter().map(|part| part.bytes.as_slice());
        match &self.merging {
            Merging::Plain(merge) => self.merge_plain(*merge, out),
            Merging::Keys(owners) => owners.put_all(replies(), out),
            Merging::Page(page) => page.put(&self.parts[0].bytes, out),
            Merging::Elements(cursors) => keys::put_elements(*cursors, &self.parts[0].bytes, out),
            Merging::Draw(draw) => draw.put(&replies().collect::<Vec<_>>(), out),
            Merging::Settings(settings) => settings.put(&self.parts[0].bytes, out),
            Merging::Known(known) => known.put(replies(), out),
            Merging::Reached(correction) => match number(&self.parts[0].bytes) {
                Some(number) => put_int(out, correction.apply(number)),
                None => out.extend_from_slice(&self.parts[0].bytes),
            },
            Merging::Subscribed(channels) => receivers::put_counts(channels, replies(), out),
            Merging::Newest(most) => log::put_newest(replies(), *most, out),
            Merging::Report(report) => report.put(replies(), out),
            Merging::Info(_) | Merging::Agreed { .. } => {
                unreachable!("it is merged whatever fails")
            }
        }
    }

    /// What the client's CLIENT NO-TOUCH has to be again, since not all have agreed to it.
    pub(crate) fn disagreed(&self) -> Option<bool> {
        match (&self.merging, self.failure()) {
            (Merging::Agreed { before }, Some(_)) => Some(*before),
            (_, Some(_) | None) => None,
        }
    }

    /// The error that tells most, if a part failed: that one group has nothing to be killed tells nothing
    /// of the others.
    fn failure(&self) -> Option<&Reply> {
        let failed = || self.parts.iter().filter(|part| part.failed);
        let mut telling = failed().filter(|part| !part.bytes.starts_with(NOT_BUSY));
        telling.next().or_else(|| failed().next())
    }

    fn merge_plain(&self, merge: Merge, out: &mut Vec<u8>) {
        let replies = self.parts.iter().map(|part| part.bytes.as_slice());
        match merge {
            Merge::Values => self.merge_values(out),
            Merge::Same | Merge::Any => out.extend_from_slice(&self.parts[0].bytes),
            Merge::Sum => {
                put_int(out, replies.filter_map(number).sum());
            }
            Merge::Union => receivers::put_union(replies, out),
            Merge::Most => put_int(out, replies.filter_map(number).max().unwrap_or(0)),
            Merge::Events => log::put_events(replies, out),
            Merge::Samples => log::put_samples(replies, out),
            Merge::Histograms => figures::put_histograms(&replies.collect::<Vec<_>>(), out),
            Merge::Figures => figures::put_sums(&replies.collect::<Vec<_>>(), out),
            Merge::Running => figures::put_running(&replies.collect::<Vec<_>>(), out),
        }
    }

    /// A write of which some parts were executed, or may have been, must not look as if it had not
    /// been executed. A read has no outcome to be in doubt of.
    fn merge_failure(&self, failed: &Reply, out: &mut Vec<u8>) {
        let in_doubt = self.parts.iter().any(|part| part.executed || part.unknown);
        if !self.whole.may_write || !in_doubt {
            return out.extend_from_slice(&failed.bytes);
        }
        let text = String::from_utf8_lossy(&failed.bytes);
        let text = text.trim_start_matches('-').trim_end();
        let text = text.trim_start_matches("UNKNOWNOUTCOME ");
        put_error(
            out,
            &format!("UNKNOWNOUTCOME not all groups executed it: {text}"),
        );
    }

    fn merge_values(&self, out: &mut Vec<u8>) {
        put_header(out, b'*', self.part_of_key.len());
        // Each part is an array; its values come in the order of its keys.
        let mut rest: Vec<&[u8]> = self.parts.iter().map(|part| values(&part.bytes)).collect();
        for &part in &self.part_of_key {
            let rest = &mut rest[usize::from(part)];
            match ReplyProgress::default().scan(rest) {
                Ok(Some(len)) => {
                    let (value, behind) = rest.split_at(len);
                    out.extend_from_slice(value);
                    *rest = behind;
                }
                // A server that sends fewer values than it was asked for keys.
                Ok(None) | Err(_) => put_error(out, "ERR the server sent fewer values than keys"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(merge: Merge, order: &[u16], replies: &[(&str, Outcome)], expected: &str) {
        let mut fanouts = Fanouts::default();
        let to = Recipient::Session {
            session: 7,
            number: 9,
        };
        let whole = Pending {
            may_write: merge != Merge::Values,
            ..Pending::new(to, Kind::Split)
        };
        let merging = Merging::Plain(merge);
        let fanout = fanouts.start(whole, merging, order, replies.len() as u16);
        let mut last = None;
        // The last part answers first: the order of arrival must not matter.
        for (index, (reply, outcome)) in replies.iter().enumerate().rev() {
            assert!(last.is_none());
            let part = Part {
                fanout,
                index: index as u16,
            };
            let (head, tail) = reply.as_bytes().split_at(1);
            let piece = |bytes, first, last| Piece { bytes, first, last };
            assert!(
                fanouts
                    .fill(part, piece(head, true, false), *outcome)
                    .is_none()
            );
            last = fanouts.fill(part, piece(tail, false, true), *outcome);
        }
        let fanout = last.unwrap();
        assert_eq!(fanout.whole, whole);
        let mut out = Vec::new();
        fanout.merge(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        fanouts.end(fanout);
    }

    use Outcome::{Answered, NotExecuted, Unknown};

    #[test]
    fn values_come_in_the_order_of_the_keys() {
        check(
            Merge::Values,
            &[0, 1, 1, 0],
            &[
                ("*2\r\n$1\r\na\r\n$1\r\nd\r\n", Answered),
                ("*2\r\n$-1\r\n$1\r\nc\r\n", Answered),
            ],
            "*4\r\n$1\r\na\r\n$-1\r\n$1\r\nc\r\n$1\r\nd\r\n",
        );
    }

    #[test]
    fn numbers_are_added() {
        check(
            Merge::Sum,
            &[],
            &[(":2\r\n", Answered), (":40\r\n", Answered)],
            ":42\r\n",
        );
    }

    #[test]
    fn the_largest_number_counts() {
        let numbers = [(":3\r\n", Answered), (":5\r\n", Answered)];
        check(Merge::Most, &[], &numbers, ":5\r\n");
    }

    #[test]
    fn one_success_is_enough_where_only_one_has_it() {
        let not = ("-NOTBUSY No scripts in execution right now.\r\n", Answered);
        let ok = ("+OK\r\n", Answered);
        check(Merge::Any, &[], &[not, ok], "+OK\r\n");
        check(Merge::Any, &[], &[not, not], not.0);
        let never = ("-UNKILLABLE Sorry\r\n", Answered);
        check(Merge::Any, &[], &[not, never], never.0);
    }

    #[test]
    fn a_failed_part_fails_the_whole() {
        let ok = ("+OK\r\n", Answered);
        check(Merge::Same, &[], &[ok, ok], "+OK\r\n");
        let down = ("-CLUSTERDOWN down\r\n", NotExecuted);
        check(Merge::Same, &[], &[down, down], "-CLUSTERDOWN down\r\n");
        check(
            Merge::Values,
            &[0, 1],
            &[("*1\r\n$-1\r\n", Answered), down],
            "-CLUSTERDOWN down\r\n",
        );
        let doubt = "-UNKNOWNOUTCOME not all groups executed it: ";
        check(
            Merge::Same,
            &[],
            &[ok, down],
            &format!("{doubt}CLUSTERDOWN down\r\n"),
        );
        let lost = ("-UNKNOWNOUTCOME lost\r\n", Unknown);
        check(Merge::Sum, &[], &[lost, down], &format!("{doubt}lost\r\n"));
        let oom = ("-OOM command not allowed\r\n", Answered);
        check(
            Merge::Same,
            &[],
            &[oom, oom],
            "-OOM command not allowed\r\n",
        );
        check(
            Merge::Same,
            &[],
            &[ok, oom],
            &format!("{doubt}OOM command not allowed\r\n"),
        );
    }
}
