//! A client that asks one thing after the other: a proxy, or the nodes of a Redis Cluster, which it
//! follows as its libraries do.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use super::nodes::slot_of;

/// How often an answer may say that another node is to be asked.
const REDIRECTIONS: usize = 16;
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// See the module.
pub(super) enum Client {
    Proxy(Connection),
    Nodes {
        nodes: [Connection; 2],
        /// Which node has each slot, as far as it knows.
        owners: Vec<bool>,
    },
}

impl Client {
    /// Of the proxy at this port.
    pub(super) fn of_proxy(port: u16) -> Self {
        Self::Proxy(Connection::new(port))
    }

    /// Of the nodes at these ports.
    pub(super) fn of_nodes(ports: [u16; 2]) -> Self {
        Self::Nodes {
            nodes: ports.map(Connection::new),
            owners: vec![false; 16384],
        }
    }

    /// Asks for something of a key. The error is that of the server, or says that there was no answer.
    pub(super) fn ask(&mut self, key: &str, command: &[u8]) -> Result<(), String> {
        let (nodes, owners) = match self {
            Self::Proxy(connection) => return connection.exchange(command, 1),
            Self::Nodes { nodes, owners } => (nodes, owners),
        };
        let owner = &mut owners[usize::from(slot_of(key.as_bytes()))];
        let (mut there, mut asking) = (usize::from(*owner), false);
        for _ in 0..REDIRECTIONS {
            let answer = if asking {
                nodes[there].exchange(&[b"ASKING\r\n", command].concat(), 2)
            } else {
                nodes[there].exchange(command, 1)
            };
            let Err(error) = answer else { return Ok(()) };
            let port = error.rsplit(':').next().and_then(|port| port.parse().ok());
            let node = nodes.iter().position(|node| Some(node.port) == port);
            asking = error.starts_with("-ASK ");
            match node {
                Some(node) if asking || error.starts_with("-MOVED ") => there = node,
                _ => return Err(error),
            }
            if !asking {
                *owner = there == 1;
            }
        }
        Err("too many redirections".to_owned())
    }
}

/// A connection, made again when it is lost.
pub(super) struct Connection {
    port: u16,
    stream: Option<BufReader<TcpStream>>,
    line: String,
    body: Vec<u8>,
}

impl Connection {
    pub(super) fn new(port: u16) -> Self {
        Self {
            port,
            stream: None,
            line: String::new(),
            body: Vec::new(),
        }
    }

    /// Sends so many commands, and reads as many replies. An error is returned.
    pub(super) fn exchange(&mut self, commands: &[u8], count: usize) -> Result<(), String> {
        match self.attempt(commands, count) {
            Ok(None) => Ok(()),
            Ok(Some(error)) => Err(error),
            Err(e) => {
                self.stream = None;
                Err(format!("no answer: {e}"))
            }
        }
    }

    fn attempt(&mut self, commands: &[u8], count: usize) -> io::Result<Option<String>> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            lost => {
                let stream = TcpStream::connect(("127.0.0.1", self.port))?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                lost.insert(BufReader::new(stream))
            }
        };
        stream.get_mut().write_all(commands)?;
        let mut error = None;
        for _ in 0..count {
            self.line.clear();
            if stream.read_line(&mut self.line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let line = self.line.trim_end();
            match line.strip_prefix('$').map(str::parse::<usize>) {
                Some(Ok(length)) => {
                    self.body.resize(length + 2, 0);
                    stream.read_exact(&mut self.body)?;
                }
                // All that is asked for is there.
                Some(Err(_)) => error = Some(format!("not found: {line}")),
                None if line.starts_with('-') => error = Some(line.to_owned()),
                None => {}
            }
        }
        Ok(error)
    }
}

/// Writes a command as its bytes.
pub(super) fn write_command(bytes: &mut Vec<u8>, words: &[&[u8]]) {
    bytes.extend(format!("*{}\r\n", words.len()).bytes());
    for word in words {
        bytes.extend(format!("${}\r\n", word.len()).bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
}
