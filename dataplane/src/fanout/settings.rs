//! The reply to `CONFIG GET`: a server's settings, and the proxy's own.

use super::value::{count, values};
use crate::resp::{put_bulk, put_header};

/// The proxy's own settings that were asked for, by name.
pub(crate) struct Settings(pub(crate) Vec<(String, String)>);

impl Settings {
    /// Writes them behind those of the server: a map in RESP3, else an array.
    pub(super) fn put(&self, reply: &[u8], out: &mut Vec<u8>) {
        let (kind, of_pair) = match reply.first() {
            Some(b'%') => (b'%', 1),
            _ => (b'*', 2),
        };
        put_header(out, kind, count(reply) + of_pair * self.0.len());
        out.extend_from_slice(values(reply));
        for (name, value) in &self.0 {
            put_bulk(out, name.as_bytes());
            put_bulk(out, value.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_settings_stand_behind_the_servers() {
        for (reply, expected) in [
            ("*0\r\n", "*2\r\n$1\r\na\r\n$1\r\n1\r\n"),
            (
                "*2\r\n$1\r\nb\r\n$1\r\n2\r\n",
                "*4\r\n$1\r\nb\r\n$1\r\n2\r\n$1\r\na\r\n$1\r\n1\r\n",
            ),
            (
                "%1\r\n$1\r\nb\r\n$1\r\n2\r\n",
                "%2\r\n$1\r\nb\r\n$1\r\n2\r\n$1\r\na\r\n$1\r\n1\r\n",
            ),
        ] {
            let mut out = Vec::new();
            Settings(vec![("a".to_owned(), "1".to_owned())]).put(reply.as_bytes(), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
