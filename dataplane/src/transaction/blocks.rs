//! What each group is sent of a joint transaction, and what the client's reply is made of.
//!
//! Every group that has a part executes a block of its own, as one: the **first** group, that of the keys, all
//! that servers execute; any other what is asked of all groups. What concerns all groups stands in its
//! place in each block, so that at the group of the keys it is executed between what was queued before it
//! and behind it. Pure.
//!
//! Invariant: each command that was queued has one place, in their order.

use std::{collections::VecDeque, ops::Range};

use super::put_block;
use crate::{
    fanout::{
        Merging, Outcome, put_merged,
        value::{frames, is_array},
    },
    session::Inquiry,
};

/// See the module.
#[derive(Default)]
pub(crate) struct Blocks {
    all: Vec<Block>,
    places: VecDeque<Place>,
}

struct Block {
    /// By its index in the topology by which it was written.
    group: u16,
    commands: Vec<u8>,
    count: usize,
    /// It has more to execute than what only turns its connection.
    asks: bool,
}

/// Where the answer to a command comes from.
pub(crate) enum Place {
    /// From the proxy, which has still to give it: where the command stands among all.
    Proxy(Range<usize>),
    /// From the proxy, which has it.
    Known(Vec<u8>),
    /// From the first group: its reply of this number.
    First(usize),
    /// From all these replies together.
    Groups(Box<Groups>),
}

/// See [`Place::Groups`].
pub(crate) struct Groups {
    merging: Merging,
    may_write: bool,
    /// By block, and number in it.
    parts: Vec<(usize, usize)>,
}

/// What a group has said to its block.
#[derive(Debug)]
pub(crate) struct Said {
    bytes: Vec<u8>,
    /// Of each command, where its reply is; none if they were not executed.
    replies: Vec<Range<usize>>,
    outcome: Outcome,
}

impl Said {
    /// Of a block with so many commands, what the server answered.
    pub(crate) fn answered(bytes: Vec<u8>, commands: usize) -> Self {
        let mut replies = Vec::new();
        if is_array(&bytes) {
            let lens: Vec<usize> = frames(&bytes).map(<[u8]>::len).collect();
            let mut from = bytes.len() - lens.iter().sum::<usize>();
            for len in lens {
                replies.push(from..from + len);
                from += len;
            }
        }
        if replies.len() != commands {
            replies.clear(); // the server says what it should not
        }
        Self {
            bytes,
            replies,
            outcome: Outcome::Answered,
        }
    }

    /// Of a group that could not be asked, or whose answer is lost.
    pub(crate) fn failed(error: Vec<u8>, outcome: Outcome) -> Self {
        Self {
            bytes: error,
            replies: Vec::new(),
            outcome,
        }
    }

    /// Whether it executed its block, which is not empty.
    pub(crate) fn is_executed(&self, commands: usize) -> bool {
        self.outcome == Outcome::Answered && is_array(&self.bytes) && self.replies.len() == commands
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The reply to the command of this number; else why there is none.
    pub(crate) fn reply(&self, number: usize) -> (&[u8], Outcome) {
        match self.replies.get(number) {
            Some(range) => (&self.bytes[range.clone()], self.outcome),
            None => (&self.bytes, self.outcome),
        }
    }
}

impl Blocks {
    /// For these groups, in the order of their blocks.
    pub(crate) fn new(groups: impl Iterator<Item = u16>) -> Self {
        let block = |group| Block {
            group,
            commands: Vec::new(),
            count: 0,
            asks: false,
        };
        Self {
            all: groups.map(block).collect(),
            places: VecDeque::new(),
        }
    }

    /// The first group executes this command.
    pub(crate) fn pass(&mut self, command: &[u8]) {
        let first = &mut self.all[0];
        self.places.push_back(Place::First(first.count));
        first.commands.extend_from_slice(command);
        first.count += 1;
        first.asks = true;
    }

    /// All groups execute what is behind this command otherwise; what they say to it is nobody's.
    pub(crate) fn turn(&mut self, command: &[u8]) {
        for block in &mut self.all {
            block.commands.extend_from_slice(command);
            block.count += 1;
        }
    }

    /// These groups are asked, each of which has a block.
    pub(crate) fn ask(&mut self, inquiry: Inquiry<'_>, may_write: bool) {
        let mut parts = Vec::new();
        for group in inquiry.groups {
            let at = self.all.iter().position(|block| block.group == group);
            let at = at.expect("each group that owns slots has a block");
            let block = &mut self.all[at];
            block.asks = true;
            for asked in &inquiry.asked {
                parts.push((at, block.count));
                block.commands.extend_from_slice(asked);
                block.count += 1;
            }
        }
        self.places.push_back(Place::Groups(Box::new(Groups {
            merging: inquiry.merging,
            may_write,
            parts,
        })));
    }

    /// The proxy answers a command.
    pub(crate) fn answer(&mut self, place: Place) {
        self.places.push_back(place);
    }

    /// How many groups there are.
    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    /// The group of a block.
    pub(crate) fn group(&self, block: usize) -> u16 {
        self.all[block].group
    }

    /// How many commands a block has.
    pub(crate) fn commands(&self, block: usize) -> usize {
        self.all[block].count
    }

    /// The blocks behind the first that have something to execute.
    pub(crate) fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let asks: Vec<bool> = self.all.iter().map(|block| block.asks).collect();
        (1..asks.len()).filter(move |&block| asks[block])
    }

    /// Writes what is sent of a block, and returns how many replies that has; the last one is that to all of
    /// it.
    pub(crate) fn put(&self, block: usize, out: &mut Vec<u8>) -> u32 {
        put_block(&self.all[block].commands, out);
        self.all[block].count as u32 + 2
    }

    /// The next command to be answered.
    pub(crate) fn next(&mut self) -> Option<Place> {
        self.places.pop_front()
    }

    /// It could not be answered yet.
    pub(crate) fn put_back(&mut self, place: Place) {
        self.places.push_front(place);
    }

    /// How many commands are still to be answered.
    pub(crate) fn left(&self) -> usize {
        self.places.len()
    }

    /// Bytes of memory it owns.
    pub(crate) fn memory(&self) -> usize {
        let commands = self.all.iter().map(|block| block.commands.capacity());
        commands.sum::<usize>() + self.places.capacity() * size_of::<Place>()
    }
}

impl Groups {
    /// Writes the one reply, from what each block's group has said.
    pub(crate) fn put(self, said: &[Said], out: &mut Vec<u8>) {
        let parts = self.parts.iter();
        let parts = parts.map(|&(block, number)| said[block].reply(number));
        put_merged(self.merging, self.may_write, parts, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Merge;

    fn inquiry(groups: &[u16], asked: &[&'static [u8]], merge: Merge) -> Inquiry<'static> {
        Inquiry {
            groups: groups.to_vec(),
            merging: Merging::Plain(merge),
            asked: asked.iter().map(|&asked| asked.into()).collect(),
        }
    }

    /// SET, DBSIZE of both groups, SELECT, CLIENT ID, GET, DBSIZE of the second.
    fn blocks() -> Blocks {
        let mut blocks = Blocks::new([1, 0, 2].into_iter());
        blocks.pass(b"set");
        blocks.ask(inquiry(&[0, 1], &[b"dbsize"], Merge::Sum), false);
        blocks.turn(b"select");
        blocks.answer(Place::Known(b"+OK\r\n".to_vec()));
        blocks.answer(Place::Proxy(3..7));
        blocks.pass(b"get");
        blocks.ask(inquiry(&[0], &[b"dbsize"], Merge::Sum), true);
        blocks
    }

    #[test]
    fn each_group_gets_its_part_in_order() {
        let blocks = blocks();
        let check = |block: usize, replies: u32, commands: &str| {
            let mut out = Vec::new();
            assert_eq!(blocks.put(block, &mut out), replies);
            let expected = format!("*1\r\n$5\r\nMULTI\r\n{commands}*1\r\n$4\r\nEXEC\r\n");
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        };
        check(0, 6, "setdbsizeselectget");
        check(1, 5, "dbsizeselectdbsize");
        assert_eq!(
            blocks.others().collect::<Vec<_>>(),
            [1],
            "group 2 has nothing to do"
        );
        assert_eq!((blocks.group(0), blocks.group(1)), (1, 0));
    }

    fn answers(said: &[Said]) -> Vec<String> {
        let (mut blocks, mut answers) = (blocks(), Vec::new());
        while let Some(place) = blocks.next() {
            let mut out = Vec::new();
            match place {
                Place::Proxy(range) => out = format!("{range:?}").into_bytes(),
                Place::Known(reply) => out = reply,
                Place::First(number) => out.extend_from_slice(said[0].reply(number).0),
                Place::Groups(groups) => groups.put(said, &mut out),
            }
            answers.push(String::from_utf8(out).unwrap().replace("\r\n", ""));
        }
        answers
    }

    #[test]
    fn each_answer_is_in_its_place() {
        let first = Said::answered(b"*4\r\n+OK\r\n:7\r\n+OK\r\n$1\r\nv\r\n".to_vec(), 4);
        let second = Said::answered(b"*3\r\n:3\r\n+OK\r\n:5\r\n".to_vec(), 3);
        assert!(first.is_executed(4) && second.is_executed(3));
        let said = [first, second];
        assert_eq!(answers(&said), ["+OK", ":10", "+OK", "3..7", "$1v", ":5"]);
    }

    #[test]
    fn a_group_that_fails_fails_what_it_was_asked_alone() {
        let first = || Said::answered(b"*4\r\n+OK\r\n:7\r\n+OK\r\n$-1\r\n".to_vec(), 4);
        let lost = Said::failed(b"-CLUSTERDOWN x\r\n".to_vec(), Outcome::NotExecuted);
        let down = "-CLUSTERDOWN x";
        assert_eq!(
            answers(&[first(), lost]),
            ["+OK", down, "+OK", "3..7", "$-1", down]
        );
        // What may have been executed is not said to be not.
        let lost = Said::failed(b"-UNKNOWNOUTCOME x\r\n".to_vec(), Outcome::Unknown);
        let unknown = "-UNKNOWNOUTCOME not all groups executed it: x";
        let of_read = "-UNKNOWNOUTCOME x";
        let expected = ["+OK", of_read, "+OK", "3..7", "$-1", unknown];
        assert_eq!(answers(&[first(), lost]), expected);
    }

    #[test]
    fn what_was_not_executed_is_not_taken_for_it() {
        for said in [
            "*-1\r\n",
            "_\r\n",
            "-EXECABORT no\r\n",
            "*1\r\n:1\r\n",
            "+OK\r\n",
        ] {
            let said = Said::answered(said.as_bytes().to_vec(), 2);
            assert!(!said.is_executed(2), "{said:?}");
        }
        assert!(Said::answered(b"*0\r\n".to_vec(), 0).is_executed(0));
    }
}
