//! A client that asks one thing after the other and takes note of every answer.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use super::stand::{command, connect};

/// What it asks for, and how long it waits at most.
const VALUE: &str = "xxx";
const PATIENCE: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct Client {
    port: u16,
    /// `None`: it broke, and is made again for the next request.
    stream: Option<BufReader<TcpStream>>,
    key: String,
}

/// What came of a request.
pub(super) struct Reply {
    pub(super) at: Instant,
    /// Since the request was due.
    pub(super) took: Duration,
    /// `None`: it was served.
    pub(super) error: Option<String>,
}

impl Client {
    pub(super) fn connect(port: u16, key: String) -> Self {
        let mut client = Self {
            port,
            stream: None,
            key,
        };
        let reply = client.set();
        assert!(reply.error.is_none(), "{:?}", reply.error);
        client
    }

    pub(super) fn set(&mut self) -> Reply {
        let request = command(&["SET", &self.key, VALUE]);
        self.ask(&request, "+OK", Instant::now())
    }

    pub(super) fn get(&mut self) -> Reply {
        self.get_due(Instant::now())
    }

    /// A request that is made now and was due earlier, perhaps.
    pub(super) fn get_due(&mut self, due: Instant) -> Reply {
        let request = command(&["GET", &self.key]);
        self.ask(&request, VALUE, due)
    }

    fn ask(&mut self, request: &[u8], expected: &str, due: Instant) -> Reply {
        let answer = self.exchange(request);
        let error = match answer {
            Ok(answer) if answer == expected => None,
            Ok(answer) => Some(answer),
            Err(e) => {
                self.stream = None;
                Some(format!("no answer: {e}"))
            }
        };
        Reply {
            at: Instant::now(),
            took: due.elapsed(),
            error,
        }
    }

    fn exchange(&mut self, request: &[u8]) -> io::Result<String> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            lost => {
                let stream = connect(self.port)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                lost.insert(BufReader::new(stream))
            }
        };
        stream.get_mut().write_all(request)?;
        let mut line = String::new();
        stream.read_line(&mut line)?;
        if line.starts_with('$') {
            line.clear();
            stream.read_line(&mut line)?;
        }
        match line.trim_end() {
            "" => Err(io::ErrorKind::UnexpectedEof.into()),
            line => Ok(line.to_owned()),
        }
    }
}

/// The errors among them, and how often each was given.
pub(super) fn errors<'a>(replies: impl IntoIterator<Item = &'a Reply>) -> Option<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let errors = replies
        .into_iter()
        .filter_map(|reply| reply.error.as_deref());
    errors.for_each(|error| *counts.entry(error).or_default() += 1);
    let kinds = counts
        .iter()
        .map(|(kind, count)| format!("{count} × `{kind}`"));
    let kinds: Vec<String> = kinds.collect();
    (!kinds.is_empty()).then(|| kinds.join(", "))
}
