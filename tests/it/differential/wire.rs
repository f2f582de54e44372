//! A connection that sends requests many at once, and reads replies one by one.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use super::{reply::Reply, sequence::Request};

/// A reply that has not come by then does not come.
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module.
pub(super) struct Wire {
    stream: TcpStream,
    input: Vec<u8>,
    taken: usize,
}

impl Wire {
    pub(super) fn connect(addr: &str) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream,
            input: Vec::new(),
            taken: 0,
        }
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.stream.write_all(bytes).map_err(|e| e.to_string())
    }

    /// The next reply.
    pub(super) fn reply(&mut self) -> Result<Reply, String> {
        loop {
            if let Some((reply, len)) = Reply::read(&self.input[self.taken..])? {
                self.taken += len;
                return Ok(reply);
            }
            self.input.drain(..self.taken);
            self.taken = 0;
            if self.fill()? == 0 {
                return Err("the connection was closed".to_owned());
            }
        }
    }

    /// All that comes until the other side closes.
    pub(super) fn rest(&mut self) -> Result<Vec<u8>, String> {
        while self.fill()? > 0 {}
        Ok(self.input.split_off(self.taken))
    }

    fn fill(&mut self) -> Result<usize, String> {
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(len) => {
                self.input.extend_from_slice(&bytes[..len]);
                Ok(len)
            }
            // Closed with bytes unread: a reset, behind what was sent before.
            Err(e) if e.kind() == ErrorKind::ConnectionReset => Ok(0),
            Err(e) => Err(format!("no reply: {e}")),
        }
    }

    /// Sends some words and reads the reply.
    pub(super) fn ask(&mut self, words: &[&str]) -> Reply {
        let mut bytes = Vec::new();
        put_array(&mut bytes, words);
        self.send(&bytes).unwrap();
        self.reply().unwrap()
    }
}

/// Writes a request as it is sent.
pub(super) fn put(out: &mut Vec<u8>, request: &Request) {
    if request.inline {
        put_inline(out, &request.args);
    } else {
        put_array(out, &request.args);
    }
}

fn put_array(out: &mut Vec<u8>, args: &[impl AsRef<[u8]>]) {
    out.extend(format!("*{}\r\n", args.len()).bytes());
    for arg in args.iter().map(AsRef::as_ref) {
        out.extend(format!("${}\r\n", arg.len()).bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}

/// Plain where that is possible, else in quotes: in single ones if what is in there allows it.
fn put_inline(out: &mut Vec<u8>, args: &[Vec<u8>]) {
    for (at, arg) in args.iter().enumerate() {
        if at > 0 {
            out.push(b' ');
        }
        let plain = !arg.is_empty()
            && arg
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || b"{}-+.".contains(b));
        let single = arg
            .iter()
            .all(|b| (b' '..=b'~').contains(b) && !b"'\\".contains(b));
        if plain {
            out.extend_from_slice(arg);
        } else if single {
            out.extend(b"'".iter().chain(arg).chain(b"'"));
        } else {
            out.push(b'"');
            for byte in arg {
                match byte {
                    b'"' | b'\\' => out.extend([b'\\', *byte]),
                    b'\n' => out.extend(br"\n"),
                    b'\r' => out.extend(br"\r"),
                    b' '..=b'~' => out.push(*byte),
                    _ => out.extend(format!("\\x{byte:02x}").bytes()),
                }
            }
            out.push(b'"');
        }
    }
    out.extend_from_slice(b"\r\n");
}
