//! The scripts that clients have shown to this proxy.
//!
//! A server knows a script only once it was sent there, and forgets it when it restarts; a client that
//! calls one by its hash does not know which server it reaches. So the proxy keeps what it has seen, and
//! shows it to a server before it is called there ([`crate::session`]).
//!
//! All workers share one [`Scripts`]: it is locked when a script comes that its worker has not seen, and
//! when one is called where it is not known to be, never for a call of one that is. What a connection has
//! shown to its server is the connection's ([`Shown`]).
//!
//! Invariant: at most [`SCRIPTS`] of [`BYTES`] together are kept; the oldest goes first.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use sha1_smol::Sha1;

use crate::{
    command::{self, Class, Command},
    memory::Memory,
    resp::Request,
};

mod commands;

/// So many are kept.
const SCRIPTS: usize = 4096;
/// And so many bytes of them; a larger one is not kept at all.
const BYTES: usize = 8 << 20;

/// A script's name: the SHA-1 of its source.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Sha([u8; 20]);

impl Sha {
    /// Of a source.
    fn of(source: &[u8]) -> Self {
        Self(Sha1::from(source).digest().bytes())
    }

    /// As clients write it: 40 hexadecimal digits, in either case.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let digit = |b: u8| char::from(b).to_digit(16).map(|digit| digit as u8);
        let mut bytes = [0; 20];
        if text.len() != 2 * bytes.len() {
            return None;
        }
        for (byte, digits) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            *byte = digit(digits[0])? << 4 | digit(digits[1])?;
        }
        Some(Self(bytes))
    }
}

/// The script that a request brings.
pub(crate) fn source<'a>(command: &Command, request: &Request<'a>) -> Option<&'a [u8]> {
    match command.name {
        "eval" | "eval_ro" => Some(request.arg(1)),
        "script|load" => Some(request.arg(2)),
        _ => None,
    }
}

/// The script that a request calls by its name.
pub(crate) fn called(command: &Command, request: &Request<'_>) -> Option<Sha> {
    match command.name {
        "evalsha" | "evalsha_ro" => Sha::parse(request.arg(1)),
        _ => None,
    }
}

/// Whether a script calls nothing that servers do not tell of ([`Command::is_untold`]), for certain.
fn is_told(source: &[u8]) -> bool {
    let is_told = |name: &String| {
        let is_of = |row: &&Command| row.name.split('|').next() == Some(name);
        let mut rows = command::all().iter().filter(is_of).peekable();
        // What clients have not may stand in a script all the same.
        let is_told = |row: &Command| !row.is_untold() && !matches!(row.class, Class::Denied(_));
        rows.peek().is_some() && rows.all(is_told)
    };
    commands::commands(source).is_some_and(|commands| commands.iter().all(is_told))
}

/// Whether a request asks that all scripts be forgotten, in a way that servers accept.
pub(crate) fn forgets(command: &Command, request: &Request<'_>) -> bool {
    let is_mode = |mode: &[u8]| {
        [&b"ASYNC"[..], b"SYNC"]
            .iter()
            .any(|m| m.eq_ignore_ascii_case(mode))
    };
    command.name == "script|flush" && request.argc() <= 3 && request.args_from(2).all(is_mode)
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Scripts {
    kept: Mutex<Kept>,
    /// How often they were all forgotten.
    flushes: AtomicU64,
    memory: Arc<Memory>,
}

#[derive(Default, Debug)]
struct Kept {
    sources: HashMap<Sha, Arc<[u8]>>,
    /// As they came.
    order: VecDeque<Sha>,
    bytes: usize,
}

impl Scripts {
    pub(crate) fn new(memory: Arc<Memory>) -> Self {
        Self {
            kept: Mutex::default(),
            flushes: AtomicU64::new(0),
            memory,
        }
    }

    /// Keeps a script.
    fn keep(&self, sha: Sha, source: &[u8]) {
        if source.len() > BYTES {
            return;
        }
        let mut kept = self.kept();
        if kept.sources.contains_key(&sha) {
            return;
        }
        let before = kept.bytes;
        while kept.order.len() >= SCRIPTS || kept.bytes + source.len() > BYTES {
            kept.drop_oldest();
        }
        kept.sources.insert(sha, source.into());
        kept.order.push_back(sha);
        kept.bytes += source.len();
        self.memory.resize(before, kept.bytes);
    }

    /// A script's source, if it was seen.
    pub(crate) fn source(&self, sha: Sha) -> Option<Arc<[u8]>> {
        self.kept().sources.get(&sha).cloned()
    }

    /// Whether one was seen.
    pub(crate) fn has(&self, sha: Sha) -> bool {
        self.kept().sources.contains_key(&sha)
    }

    /// Whether a request runs a script that may change keys so that servers do not tell of it, as far as is
    /// known.
    pub(crate) fn may_be_untold(&self, command: &Command, request: &Request<'_>) -> bool {
        let called = called(command, request).and_then(|sha| self.source(sha));
        match source(command, request).or(called.as_deref()) {
            Some(source) => !is_told(source),
            None => true,
        }
    }

    /// Forgets them all, as `SCRIPT FLUSH` says.
    pub(crate) fn flush(&self) {
        let mut kept = self.kept();
        self.memory.resize(kept.bytes, 0);
        *kept = Kept::default();
        self.flushes.fetch_add(1, Relaxed);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn drop_oldest(&mut self) {
        if let Some(source) = self
            .order
            .pop_front()
            .and_then(|sha| self.sources.remove(&sha))
        {
            self.bytes -= source.len();
        }
    }
}

/// What a connection has shown to its server.
#[derive(Default)]
pub(crate) struct Shown {
    shas: HashSet<Sha>,
    flushes: u64,
}

impl Shown {
    /// Whether the server may not know a script: it was not shown yet, or all were forgotten since.
    pub(crate) fn lacks(&mut self, sha: Sha, scripts: &Scripts) -> bool {
        let flushes = scripts.flushes.load(Relaxed);
        if self.flushes != flushes || self.shas.len() >= SCRIPTS {
            self.shas.clear();
            self.flushes = flushes;
        }
        !self.shas.contains(&sha)
    }

    /// The server has been shown it.
    pub(crate) fn add(&mut self, sha: Sha) {
        self.shas.insert(sha);
    }

    /// The server does not know it.
    pub(crate) fn forget(&mut self, sha: Sha) {
        self.shas.remove(&sha);
    }

    /// Bytes of memory it owns.
    pub(crate) fn memory(&self) -> usize {
        self.shas.capacity() * size_of::<Sha>()
    }

    /// The connection is another.
    pub(crate) fn clear(&mut self) {
        self.shas = HashSet::new();
    }
}

/// Which sources a worker has kept already, so that one that comes again and again costs no lock. By
/// length and checksum: of two with the same only the first is kept.
#[derive(Default)]
pub(crate) struct Seen {
    sources: HashSet<(usize, u32)>,
    flushes: u64,
}

impl Seen {
    /// Keeps a source that this worker has not seen.
    pub(crate) fn see(&mut self, source: &[u8], scripts: &Scripts) {
        let flushes = scripts.flushes.load(Relaxed);
        if self.flushes != flushes || self.sources.len() >= SCRIPTS {
            self.sources.clear();
            self.flushes = flushes;
        }
        if self.sources.insert((source.len(), crc32fast::hash(source))) {
            scripts.keep(Sha::of(source), source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scripts() -> Scripts {
        Scripts::new(Arc::new(Memory::new(1 << 30)))
    }

    #[test]
    fn a_script_is_found_by_its_hash() {
        let scripts = scripts();
        let sha = Sha::parse(b"E0E1F9fabfc9d4800c877a703b823ac0578ff8db").unwrap();
        assert_eq!(scripts.source(sha), None);
        let held = scripts.memory.held();
        Seen::default().see(b"return 1", &scripts);
        assert_eq!(scripts.source(sha).as_deref(), Some(&b"return 1"[..]));
        assert_eq!(scripts.memory.held(), held + 8);
        scripts.flush();
        assert_eq!(scripts.source(sha), None);
        assert_eq!(scripts.memory.held(), held);
        for wrong in ["", "e0e1", &"x".repeat(40), &"0".repeat(41)] {
            assert_eq!(Sha::parse(wrong.as_bytes()), None);
        }
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_oldest_goes() {
        let scripts = scripts();
        // Names of nothing: large sources take long to name.
        let name = |n: usize| {
            let mut name = Sha([0; 20]);
            name.0[..8].copy_from_slice(&n.to_le_bytes());
            name
        };
        for n in 0..SCRIPTS + 10 {
            scripts.keep(name(n), b"return 1");
        }
        let knows = |n: usize| scripts.source(name(n)).is_some();
        assert_eq!(scripts.kept().sources.len(), SCRIPTS);
        assert!(!knows(9) && knows(10));
        let large = vec![b'x'; BYTES + 1];
        scripts.keep(name(1), &large[..BYTES]);
        assert_eq!(scripts.kept().order.len(), 1);
        assert_eq!(scripts.kept().bytes, BYTES);
        scripts.keep(name(2), &large);
        assert!(knows(1) && !knows(2));
    }

    #[test]
    fn a_script_is_shown_once_to_a_server() {
        let scripts = scripts();
        let sha = Sha::of(b"return 1");
        let mut shown = Shown::default();
        assert!(shown.lacks(sha, &scripts));
        let forgets: [&dyn Fn(&mut Shown); 3] = [
            &|shown| shown.forget(sha),
            &|_| scripts.flush(),
            &Shown::clear,
        ];
        for forget in forgets {
            shown.add(sha);
            assert!(!shown.lacks(sha, &scripts));
            forget(&mut shown);
            assert!(shown.lacks(sha, &scripts));
        }
    }
}
