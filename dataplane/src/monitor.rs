//! `MONITOR`: every request that any worker of the proxy takes, shown to the clients that ask for it.
//!
//! Each worker knows all monitors, writes a line for each request as it goes out (of a transaction, when
//! that does), and hands the lines of a turn over at its end: to the session, or to the session's worker.
//! What Redis does not show is not shown, nor are passwords; nor requests so large that they are passed on
//! as they come.
//!
//! Nobody waits for a monitor: one whose lines cannot be handed over, or that does not take them, is
//! closed. One that has left is found out with the next lines for it.
//!
//! Invariant: what a monitor is shown comes behind the reply to its `MONITOR`, and nothing is left out.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    command::{Bound, Class, Command, Local, flag},
    crew::Untold,
    local::Turn,
    resp::{Request, put_simple},
    session::Dispatched,
    transaction::visit_frames,
    worker::Worker,
};

/// Bytes of lines for one monitor that one worker keeps, at most, and as many that are on their way.
const BACKLOG: usize = 1 << 20;

/// Where a monitor is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seat {
    worker: usize,
    session: u32,
    client: u64,
}

/// A monitor, as each worker sees it.
pub(crate) struct Monitor {
    seat: Seat,
    heard: Heard,
    /// Bytes that its worker has been given and not taken yet.
    on_the_way: Arc<AtomicUsize>,
}

/// What it is to be given.
enum Heard {
    Lines(Vec<u8>),
    /// More than can be kept: it is closed.
    TooMuch,
}

/// The same, on its way.
enum News {
    Lines(Box<[u8]>),
    TooMuch,
}

impl Monitor {
    fn new(seat: Seat) -> Self {
        Self {
            seat,
            heard: Heard::Lines(Vec::new()),
            on_the_way: Arc::default(),
        }
    }

    fn hear(&mut self, line: &[u8]) {
        match &mut self.heard {
            Heard::Lines(lines) if lines.len() < BACKLOG => lines.extend_from_slice(line),
            Heard::Lines(_) => self.heard = Heard::TooMuch,
            Heard::TooMuch => {}
        }
    }

    /// What there is to be told now.
    fn news(&self) -> Option<News> {
        match &self.heard {
            Heard::Lines(lines) if lines.is_empty() => None,
            Heard::Lines(_) if self.on_the_way.load(Relaxed) >= BACKLOG => None,
            Heard::Lines(lines) => Some(News::Lines(lines.as_slice().into())),
            Heard::TooMuch => Some(News::TooMuch),
        }
    }
}

impl Worker {
    /// A session becomes a monitor, of all workers.
    pub(crate) fn monitor(&mut self, id: u32) -> Dispatched {
        let seat = Seat {
            worker: self.crew.own(),
            session: id,
            client: self.clients.session(id).client.id,
        };
        if self.clients.session(id).client.is_monitor {
            return self.answer(id, |_| {}); // as in Redis: it is not told again
        }
        let begin = move |worker: &mut Self| {
            if worker.crew.own() == seat.worker {
                worker.clients.session(seat.session).client.is_monitor = true;
            }
            worker.monitors.push(Monitor::new(seat));
            worker.attend();
        };
        self.ask_all(id, begin, |_, out| put_simple(out, "OK"))
    }

    /// Sends a request on its way while monitors look on.
    pub(crate) fn dispatch_watched(
        &mut self,
        id: u32,
        command: &'static Command,
        request: &Request<'_>,
    ) -> Dispatched {
        let client = &self.clients.session(id).client;
        let queues = client.transaction.is_some() && !command.is_never_queued();
        let transaction = match (&client.transaction, command.class) {
            (Some(transaction), Class::Transaction(Bound::Exec)) => transaction.frames().to_vec(),
            _ => Vec::new(),
        };
        let errors = self.clients.errors;
        let dispatched = self.dispatch_plainly(id, command, request);
        if dispatched == Dispatched::Waits || queues {
            return dispatched;
        }
        // What was refused was not executed; of what the proxy answers, an error is an answer, too.
        let refused = self.clients.errors > errors;
        if !refused {
            self.show_queued(id, &transaction);
        }
        if !refused || matches!(command.class, Class::Local(_) | Class::Transaction(_)) {
            let database = self.clients.session(id).client.database;
            self.show(id, command, request, database);
        }
        dispatched
    }

    /// The commands of a transaction, as they came; each in the database that is selected by then.
    fn show_queued(&mut self, id: u32, frames: &[u8]) {
        let mut database = self.clients.session(id).client.database;
        let limits = self.serving.limits;
        visit_frames(frames, &limits, |command, request| {
            let turn = Turn::of(command.class, request, &self.serving);
            if let Some(Turn::Database(selected)) = turn {
                database = selected;
            }
            self.show(id, command, request, database);
        });
    }

    fn show(&mut self, id: u32, command: &Command, request: &Request<'_>, database: u16) {
        if !is_shown(command) {
            return;
        }
        let client = &self.clients.session(id).client;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let (seconds, micros) = (now.as_secs(), now.subsec_micros());
        let peer = client.identity.peer;
        let mut line = format!("+{seconds}.{micros:06} [{database} {peer}]").into_bytes();
        for (index, arg) in request.args_from(0).enumerate() {
            line.push(b' ');
            if is_secret(command, request, index) {
                line.extend_from_slice(b"\"(redacted)\"");
            } else {
                put_quoted(&mut line, arg);
            }
        }
        line.extend_from_slice(b"\r\n");
        for monitor in &mut self.monitors {
            monitor.hear(&line);
        }
    }

    /// Hands over what monitors are to be shown, at the end of a turn.
    pub(crate) fn tell_monitors(&mut self) {
        let (crew, own) = (&self.crew, self.crew.own());
        self.monitors.retain_mut(|monitor| {
            let Some(news) = monitor.news() else {
                return true;
            };
            let len = match &news {
                News::Lines(lines) => lines.len(),
                News::TooMuch => 0,
            };
            let (seat, on_the_way) = (monitor.seat, Arc::clone(&monitor.on_the_way));
            let tell = move |worker: &mut Self| {
                on_the_way.fetch_sub(len, Relaxed);
                worker.take_news(seat, own, &news);
            };
            monitor.on_the_way.fetch_add(len, Relaxed);
            match crew.tell(seat.worker, tell) {
                Ok(()) => monitor.heard = Heard::Lines(Vec::new()),
                Err(Untold::Busy) => _ = monitor.on_the_way.fetch_sub(len, Relaxed),
                Err(Untold::Gone) => return false,
            }
            true
        });
        self.attend();
    }

    /// For a monitor of this worker, of what worker `from` has seen.
    fn take_news(&mut self, seat: Seat, from: usize, news: &News) {
        if !self.clients.has_monitor(seat.session, seat.client) {
            let forget = move |worker: &mut Self| {
                worker.monitors.retain(|monitor| monitor.seat != seat);
                worker.attend();
            };
            // If it cannot be told now, it asks again with its next lines.
            let _ = self.crew.tell(from, forget);
            return;
        }
        match news {
            News::Lines(lines) => self.clients.push(seat.session, lines),
            News::TooMuch => self.clients.break_off(seat.session),
        }
    }
}

/// Commands of administrators are not. Those with the flag to be skipped are scripts, which Redis shows all
/// the same, in their place.
fn is_shown(command: &Command) -> bool {
    command.flags & flag::ADMIN == 0
}

/// Whether an argument is a name or password that logs in.
fn is_secret(command: &Command, request: &Request<'_>, index: usize) -> bool {
    match command.class {
        Class::Local(Local::Auth) => index > 0,
        Class::Local(Local::Hello) => {
            let is_auth = |at: usize| at > 1 && request.arg(at).eq_ignore_ascii_case(b"AUTH");
            (1..=2).any(|back| index > back && is_auth(index - back))
        }
        _ => false,
    }
}

/// As Redis quotes what may hold any byte.
fn put_quoted(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    for &byte in bytes {
        match byte {
            b'\\' | b'"' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x07 => out.extend_from_slice(b"\\a"),
            0x08 => out.extend_from_slice(b"\\b"),
            b' '..=b'~' => out.push(byte),
            _ => out.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_quoted_as_redis_does() {
        let mut out = Vec::new();
        put_quoted(&mut out, b"b c\"\n\r\t\x07\x08\x01\xff'\\");
        assert_eq!(out, br#""b c\"\n\r\t\a\b\x01\xff'\\""#);
    }

    #[test]
    fn who_is_not_given_its_lines_is_closed() {
        let seat = Seat {
            worker: 1,
            session: 0,
            client: 1,
        };
        let mut monitor = Monitor::new(seat);
        assert!(monitor.news().is_none());
        for _ in 0..=BACKLOG / 1000 {
            monitor.hear(&[b'x'; 1000]);
            assert!(matches!(monitor.news(), Some(News::Lines(_))));
        }
        monitor.on_the_way.store(BACKLOG, Relaxed);
        assert!(monitor.news().is_none(), "its worker is slow");
        monitor.hear(b"x");
        monitor.hear(b"x");
        assert!(matches!(monitor.news(), Some(News::TooMuch)));
    }
}
