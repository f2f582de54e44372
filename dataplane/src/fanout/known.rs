//! The reply to `SCRIPT EXISTS`: which scripts may be called by their hash, wherever their keys are.

use super::value::{number, values};
use crate::resp::{put_header, put_int};

/// Of each script that was asked for, whether the proxy has seen it: then it shows it to whoever does not
/// know it when it is called.
pub(crate) struct Known(pub(crate) Vec<bool>);

impl Known {
    /// Writes 1 for those that the proxy or all groups know.
    pub(super) fn put<'a>(&self, replies: impl Iterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
        let mut by_all = vec![true; self.0.len()];
        for reply in replies {
            let mut numbers = values(reply).split_inclusive(|&b| b == b'\n').map(number);
            for known in &mut by_all {
                *known &= numbers.next().flatten() == Some(1);
            }
        }
        put_header(out, b'*', self.0.len());
        for (by_all, seen) in by_all.into_iter().zip(&self.0) {
            put_int(out, (by_all || *seen).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_known_to_all_or_to_the_proxy() {
        let replies: [&[u8]; 2] = [
            b"*4\r\n:1\r\n:0\r\n:1\r\n:0\r\n",
            b"*4\r\n:1\r\n:1\r\n:0\r\n:0\r\n",
        ];
        let mut out = Vec::new();
        Known(vec![false, false, true, false]).put(replies.into_iter(), &mut out);
        assert_eq!(out, b"*4\r\n:1\r\n:0\r\n:1\r\n:0\r\n");
        // A server that says too little knows nothing.
        let mut out = Vec::new();
        Known(vec![false]).put([&b"*0\r\n"[..]].into_iter(), &mut out);
        assert_eq!(out, b"*1\r\n:0\r\n");
    }
}
