//! A transaction of which the proxy answers some commands itself: its `EXEC` is answered by both.

use crate::{fanout::value::frames, resp::put_header};

/// The proxy's answers, each with its place among all that was queued, in their order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Mixture {
    own: Vec<(u32, Vec<u8>)>,
    /// How many commands were queued.
    count: u32,
}

impl Mixture {
    pub(super) fn new(count: u32) -> Self {
        Self {
            own: Vec::new(),
            count,
        }
    }

    pub(super) fn add(&mut self, place: u32, answer: Vec<u8>) {
        self.own.push((place, answer));
    }

    /// Bytes of memory it owns.
    pub(crate) fn memory(&self) -> usize {
        self.own.iter().map(|(_, answer)| answer.capacity()).sum()
    }

    /// Puts the answers into the server's reply to `EXEC`, each in its place. A transaction that was not
    /// executed stays so.
    pub(crate) fn put(&self, reply: &[u8], out: &mut Vec<u8>) {
        let is_executed = reply.starts_with(b"*") && !reply.starts_with(b"*-");
        let mut served = frames(reply);
        let missing = self.count as usize - self.own.len();
        if !is_executed || frames(reply).count() != missing {
            return out.extend_from_slice(reply);
        }
        put_header(out, b'*', self.count as usize);
        let mut own = self.own.iter().peekable();
        for place in 0..self.count {
            match own.next_if(|(own, _)| *own == place) {
                Some((_, answer)) => out.extend_from_slice(answer),
                None => out.extend_from_slice(served.next().expect("they were counted")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_is_in_its_place() {
        let check = |own: &[u32], count: u32, reply: &str, expected: &str| {
            let mut mixture = Mixture::new(count);
            own.iter()
                .for_each(|&place| mixture.add(place, format!(":{place}\r\n").into_bytes()));
            let mut out = Vec::new();
            mixture.put(reply.as_bytes(), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        };
        let two = "*2\r\n+OK\r\n*1\r\n:7\r\n";
        check(&[0], 3, two, "*3\r\n:0\r\n+OK\r\n*1\r\n:7\r\n");
        check(&[1, 3], 4, two, "*4\r\n+OK\r\n:1\r\n*1\r\n:7\r\n:3\r\n");
        check(&[0, 1], 2, "*0\r\n", "*2\r\n:0\r\n:1\r\n");
        // It was not executed, or the server says what it should not.
        for other in ["*-1\r\n", "_\r\n", "-EXECABORT no\r\n", "*1\r\n:1\r\n"] {
            check(&[0], 3, other, other);
        }
    }
}
