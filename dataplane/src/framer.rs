//! Cuts what a server sends into replies, and passes large ones on before they are whole.
//!
//! Owns the bytes of a reply that is not whole yet. Those of a small one are kept until it is; of a
//! large one nothing is kept: whoever asked gets it in pieces, as it comes. Push messages answer no
//! request and are left out, or given out whole where they are heard.
//!
//! Invariant: the pieces of a reply, one behind the other, are its bytes.

use crate::{
    buffer,
    resp::{BadReply, ReplyProgress},
};

/// A reply of which so much is there is passed on before it is whole.
pub(crate) const PASS_ON: usize = 64 * 1024;

/// A reply, or a piece of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece<'a> {
    /// Never none.
    pub bytes: &'a [u8],
    /// The reply begins with it.
    pub first: bool,
    /// The reply ends with it.
    pub last: bool,
}

impl<'a> Piece<'a> {
    /// A reply that is there as a whole.
    pub fn whole(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            first: true,
            last: true,
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct Framer {
    progress: ReplyProgress,
    partial: Vec<u8>,
    /// The first bytes of the current reply were passed on already.
    passing: bool,
    /// Push messages are given out, too.
    hears: bool,
}

impl Framer {
    /// From now on, push messages are given out among the replies, each whole.
    pub(crate) fn hear(&mut self) {
        self.hears = true;
    }

    /// Takes bytes from the server; `take` gets every reply they complete, and pieces of large ones.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        mut take: impl FnMut(Piece<'_>) -> Result<(), BadReply>,
    ) -> Result<(), BadReply> {
        if self.partial.is_empty() {
            let taken = self.cut(bytes, &mut take)?;
            if taken < bytes.len() {
                buffer::ensure(&mut self.partial).extend_from_slice(&bytes[taken..]);
            }
            return Ok(());
        }
        let mut partial = std::mem::take(&mut self.partial);
        partial.extend_from_slice(bytes);
        let taken = self.cut(&partial, &mut take)?;
        if taken == partial.len() {
            buffer::give(&mut partial);
        } else {
            partial.drain(..taken);
        }
        self.partial = partial;
        Ok(())
    }

    fn cut(
        &mut self,
        bytes: &[u8],
        take: &mut impl FnMut(Piece<'_>) -> Result<(), BadReply>,
    ) -> Result<usize, BadReply> {
        let mut taken = 0;
        while taken < bytes.len() {
            let rest = &bytes[taken..];
            let whole = self.progress.scan(rest)?;
            let len = match whole {
                Some(len) => len,
                None if self.passing || (rest.len() >= PASS_ON && rest[0] != b'>') => {
                    self.progress.pass(rest.len())
                }
                None => break,
            };
            if len == 0 {
                break;
            }
            let piece = Piece {
                bytes: &rest[..len],
                first: !self.passing,
                last: whole.is_some(),
            };
            self.passing = !piece.last;
            taken += len;
            if piece.first && piece.bytes[0] == b'>' && !self.hears {
                continue;
            }
            take(piece)?;
        }
        Ok(taken)
    }

    /// Whether the first bytes of a reply were passed on, and its last not.
    pub fn is_passing(&self) -> bool {
        self.passing
    }

    /// Bytes of memory it owns.
    pub fn memory(&self) -> usize {
        self.partial.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out of `bytes`, cut into chunks of `chunk`: of each piece, its length and place.
    fn pieces(bytes: &[u8], chunk: usize) -> (Vec<u8>, Vec<(usize, bool, bool)>) {
        let (mut framer, mut all, mut pieces) = (Framer::default(), Vec::new(), Vec::new());
        for chunk in bytes.chunks(chunk) {
            framer
                .receive(chunk, |piece| {
                    all.extend_from_slice(piece.bytes);
                    pieces.push((piece.bytes.len(), piece.first, piece.last));
                    Ok(())
                })
                .unwrap();
        }
        assert!(framer.partial.is_empty() && !framer.passing);
        (all, pieces)
    }

    #[test]
    fn small_replies_come_whole_and_pushes_not_at_all() {
        let bytes = b"+OK\r\n$3\r\nabc\r\n>1\r\n+push\r\n*2\r\n:1\r\n:2\r\n";
        for chunk in 1..=bytes.len() {
            let (all, pieces) = pieces(bytes, chunk);
            assert_eq!(all, b"+OK\r\n$3\r\nabc\r\n*2\r\n:1\r\n:2\r\n", "{chunk}");
            let whole = |len| (len, true, true);
            assert_eq!(pieces, [whole(5), whole(9), whole(12)], "{chunk}");
        }
    }

    /// As a script may make it: `return {ok = string.rep('a', 1e8)}`.
    #[test]
    fn a_line_without_an_end_is_passed_on() {
        let mut framer = Framer::default();
        let mut passed = 0;
        for chunk in std::iter::once(&b"+aaa"[..]).chain([&[b'a'; 10_000][..]; 1000]) {
            framer
                .receive(chunk, |piece| {
                    passed += piece.bytes.len();
                    Ok(())
                })
                .unwrap();
            assert!(framer.memory() <= 2 * PASS_ON);
        }
        assert!(passed > 9_900_000 && framer.is_passing());
        assert_eq!(framer.receive(b"a\r\r", |_| Ok(())), Err(BadReply));
    }

    #[test]
    fn large_replies_come_in_pieces_that_are_their_bytes() {
        let mut bytes = b":1\r\n*3\r\n$200000\r\n".to_vec();
        bytes.resize(bytes.len() + 200_000, b'x');
        bytes.extend_from_slice(b"\r\n$100000\r\n");
        bytes.resize(bytes.len() + 100_000, b'y');
        bytes.extend_from_slice(b"\r\n:7\r\n+OK\r\n");
        for chunk in [
            1000,
            4096,
            65_536,
            65_537,
            100_003,
            bytes.len() - 12,
            bytes.len(),
        ] {
            let (all, pieces) = pieces(&bytes, chunk);
            assert!(all == bytes, "{chunk}");
            assert_eq!(pieces[0], (4, true, true), "{chunk}");
            assert_eq!(pieces.last(), Some(&(5, true, true)), "{chunk}");
            let firsts = pieces.iter().filter(|piece| piece.1).count();
            let lasts = pieces.iter().filter(|piece| piece.2).count();
            assert_eq!((firsts, lasts), (3, 3), "{chunk}");
        }
    }
}
