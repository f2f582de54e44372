//! A relay that stands on an edge of the cluster (between a proxy and a server, a controller and ZooKeeper,
//! whatever speaks TCP) and does there what networks do on bad days.
//!
//! ```no_run
//! # fn f(proxy: &tests::Process) {
//! use tests::relay::{Fault, Relay};
//! let relay = Relay::start("127.0.0.1:6379"); // tell the others that the server is at relay.addr
//! relay.set_for(proxy, Fault::BlackHole); // nothing of this proxy arrives there any more
//! relay.heal();
//! # }
//! ```
//!
//! Who opened a connection is known by its process, so that one relay before a server is an edge for each of
//! its clients. It runs on a thread of its own: a test that waits does not stop it.
//!
//! Invariant: bytes of one direction of a connection arrive in their order, without a gap, or not at all.

use std::{
    cell::Cell,
    collections::{HashMap, VecDeque},
    fs,
    net::TcpListener as StdListener,
    path::PathBuf,
    sync::Arc,
    thread,
    time::Duration,
};

use memchr::memmem;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{Notify, oneshot, watch},
    task::{JoinSet, LocalSet, spawn_blocking},
    time::{Instant, sleep_until, timeout},
};

use crate::Process;

/// What a relay keeps of one direction of a connection, at most; then it does not read on.
const MOST: usize = 64 << 20;

/// How often it is looked whose a connection is.
const LOOKS: usize = 5;

/// What happens on an edge.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing: bytes pass as they come.
    Pass,
    /// Connections are reset, those that are there and those that come.
    Cut,
    /// Nothing arrives in either direction, and nobody is told. Connections of which something was lost
    /// meanwhile are reset when it ends.
    BlackHole,
    /// Nothing arrives until it ends; then all does, late: also what was sent by who has closed its connection
    /// since, or is dead.
    Hold,
    /// The next request in which these bytes are is held, and all that comes after it, as by `Hold`.
    HoldFrom(Vec<u8>),
    /// What is sent now arrives so much later, in both directions.
    Delay(Duration),
    /// Once: the next request in which these bytes are (any, if there are none) arrives, and whatever would be
    /// answered from then on is lost: the client's connection is reset, and the server sees that it ends.
    SwallowReply(Vec<u8>),
    /// Once: of what is sent to the server only so many bytes more arrive, and the connection ends likewise.
    Truncate(usize),
}

/// See the module. Its connections end with it.
pub struct Relay {
    /// Where it listens.
    pub addr: String,
    shared: Arc<Shared>,
    _stop: oneshot::Sender<()>,
}

struct Shared {
    rules: watch::Sender<Rules>,
    /// Somebody wants to know whose connections are.
    wanted: Notify,
    /// On which it listens.
    port: u16,
}

/// What happens to whom.
#[derive(Debug)]
struct Rules {
    all: Fault,
    /// By process id, if it is something else.
    of: HashMap<u32, Fault>,
    /// The connections of these processes that are older than these are stranded.
    stranded: HashMap<u32, u64>,
    /// Whose each connection is, by its port.
    who: HashMap<u16, Who>,
    /// How many connections there have been.
    last: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    /// Nobody has looked. It is looked only if it matters: that takes long.
    Unknown,
    /// A child of this process.
    Process(u32),
    /// This process itself, or one that was gone.
    Another,
}

impl Relay {
    /// Listens on a free port, and passes all on to this address.
    pub fn start(to: &str) -> Self {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            rules: watch::Sender::new(Rules {
                all: Fault::Pass,
                of: HashMap::new(),
                stranded: HashMap::new(),
                who: HashMap::new(),
                last: 0,
            }),
            wanted: Notify::new(),
            port: addr.port(),
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let (to, of_thread) = (to.to_owned(), Arc::clone(&shared));
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            LocalSet::new().block_on(&runtime, async {
                tokio::select! {
                    () = accept(listener, &to, &of_thread) => {}
                    () = recognize(&of_thread) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        });
        Self {
            addr: addr.to_string(),
            shared,
            _stop: stop,
        }
    }

    /// What happens from now on to everybody.
    pub fn set(&self, fault: Fault) {
        self.change(|rules| {
            rules.of.clear();
            rules.all = fault;
        });
    }

    /// What happens from now on to the connections of a process.
    pub fn set_for(&self, process: &Process, fault: Fault) {
        self.change(|rules| {
            rules.of.insert(process.pid(), fault);
        });
    }

    /// All pass again.
    pub fn heal(&self) {
        self.set(Fault::Pass);
    }

    /// Resets the connections that a process has, which others of it may follow. What they have sent, and is
    /// held, is kept until it is [released](Self::release).
    pub fn strand(&self, process: &Process) {
        self.change(|rules| {
            rules.of.insert(process.pid(), Fault::Pass);
            rules.stranded.insert(process.pid(), rules.last + 1);
        });
    }

    /// What is stranded arrives, late.
    pub fn release(&self) {
        self.change(|rules| rules.stranded.clear());
    }

    /// Returns once this is what happens to a process: what happens once has, or what begins has begun.
    pub async fn becomes(&self, process: &Process, fault: Fault) {
        let who = Who::Process(process.pid());
        let mut rules = self.shared.rules.subscribe();
        let is = |rules: &Rules| *rules.of(who) == fault;
        let happened = timeout(crate::SOON, rules.wait_for(is)).await;
        drop(happened.expect("it does not happen").unwrap());
    }

    fn change(&self, change: impl FnOnce(&mut Rules)) {
        self.shared.rules.send_modify(change);
        self.shared.wanted.notify_one();
    }
}

impl Rules {
    fn of(&self, who: Who) -> &Fault {
        match who {
            // It waits until it is known.
            Who::Unknown if self.are_of_some() => &Fault::Hold,
            Who::Unknown | Who::Another => &self.all,
            Who::Process(pid) => self.of.get(&pid).unwrap_or(&self.all),
        }
    }

    fn of_mut(&mut self, who: Who) -> Option<&mut Fault> {
        match who {
            Who::Unknown if self.are_of_some() => None,
            Who::Unknown | Who::Another => Some(&mut self.all),
            Who::Process(pid) => Some(self.of.get_mut(&pid).unwrap_or(&mut self.all)),
        }
    }

    /// It matters whose a connection is.
    fn are_of_some(&self) -> bool {
        !(self.of.is_empty() && self.stranded.is_empty())
    }

    /// The ports of connections of which it matters whose they are, and is not known.
    fn unknown(&self) -> Vec<u16> {
        let unknown = self.who.iter().filter(|(_, who)| **who == Who::Unknown);
        let ports = unknown.map(|(port, _)| *port);
        ports.filter(|_| self.are_of_some()).collect()
    }
}

async fn accept(listener: StdListener, to: &str, shared: &Arc<Shared>) {
    let listener = TcpListener::from_std(listener).unwrap();
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, peer)) = listener.accept().await else {
            continue; // it was reset before it was accepted
        };
        while connections.try_join_next().is_some() {}
        let mut edge = Edge {
            shared: Arc::clone(shared),
            port: peer.port(),
            number: 0,
        };
        // Nobody waits for that.
        shared.rules.send_if_modified(|rules| {
            rules.last += 1;
            edge.number = rules.last;
            rules.who.insert(edge.port, Who::Unknown);
            false
        });
        shared.wanted.notify_one();
        let to = to.to_owned();
        connections.spawn_local(async move { carry(client, &to, &edge).await });
    }
}

/// Finds out whose connections are, all at once that are not known.
async fn recognize(shared: &Shared) {
    loop {
        shared.wanted.notified().await;
        let ports = shared.rules.borrow().unknown();
        if ports.is_empty() {
            continue;
        }
        let to = shared.port;
        let found = spawn_blocking(move || processes_of(&ports, to)).await;
        let found = found.expect("it does not panic");
        shared.rules.send_modify(|rules| {
            for (port, who) in found {
                rules.who.entry(port).and_modify(|known| *known = who);
            }
        });
    }
}

/// Whose the connections from these ports to this one are.
fn processes_of(ports: &[u16], to: u16) -> HashMap<u16, Who> {
    let mut found = HashMap::new();
    // What is read is not of one moment: something that is there may be missing from it.
    for _ in 0..LOOKS {
        let missing = ports.iter().filter(|port| !found.contains_key(*port));
        let missing: Vec<u16> = missing.copied().collect();
        if missing.is_empty() {
            break;
        }
        look(&missing, to, &mut found);
    }
    let all = ports.iter().map(|port| (*port, Who::Another));
    all.chain(found).collect()
}

fn look(ports: &[u16], to: u16, found: &mut HashMap<u16, Who>) {
    // The table is long where many connections have just been closed.
    let table = fs::read("/proc/net/tcp").unwrap_or_default();
    let inode = |port: &u16| {
        let ends = format!(": 0100007F:{port:04X} 0100007F:{to:04X} ");
        let at = memmem::find(&table, ends.as_bytes())?;
        let line = String::from_utf8_lossy(&table[at..(at + 120).min(table.len())]);
        let socket = format!("socket:[{}]", line.split_whitespace().nth(9)?);
        Some((PathBuf::from(socket), *port))
    };
    let inodes: HashMap<PathBuf, u16> = ports.iter().filter_map(inode).collect();
    let entries = fs::read_dir("/proc").into_iter().flatten();
    let pids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let own = std::process::id();
    for pid in pids.filter(|&pid| pid == own || is_child(pid)) {
        let open = fs::read_dir(format!("/proc/{pid}/fd"));
        let links = open.into_iter().flatten();
        let links = links.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        for port in links.filter_map(|link| inodes.get(&link)) {
            let who = if pid == own {
                Who::Another
            } else {
                Who::Process(pid)
            };
            found.insert(*port, who);
        }
    }
}

fn is_child(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the name, which may have anything in it: the state, then the parent.
    let parent = stat.rsplit(") ").next().and_then(|s| s.split(' ').nth(1));
    parent == Some(std::process::id().to_string().as_str())
}

/// What one connection is on.
struct Edge {
    shared: Arc<Shared>,
    port: u16,
    /// The connection's.
    number: u64,
}

impl Edge {
    fn who(&self, rules: &Rules) -> Who {
        rules.who.get(&self.port).copied().unwrap_or(Who::Another)
    }

    fn now(&self) -> Fault {
        let rules = self.shared.rules.borrow();
        rules.of(self.who(&rules)).clone()
    }

    /// Has what happens only once happen here, if it has not happened elsewhere.
    fn take(&self, once: &Fault) -> bool {
        self.replace(once, Fault::Pass)
    }

    fn replace(&self, old: &Fault, new: Fault) -> bool {
        self.shared.rules.send_if_modified(|rules| {
            let who = self.who(rules);
            let fault = rules.of_mut(who).filter(|fault| *fault == old);
            fault.map(|fault| *fault = new).is_some()
        })
    }

    fn is_stranded(&self) -> bool {
        self.strands(&self.shared.rules.borrow())
    }

    fn strands(&self, rules: &Rules) -> bool {
        let Who::Process(pid) = self.who(rules) else {
            return false;
        };
        let limit = rules.stranded.get(&pid);
        limit.is_some_and(|&limit| self.number < limit)
    }

    async fn is_released(&self) {
        let mut rules = self.shared.rules.subscribe();
        let released = rules.wait_for(|rules| !self.strands(rules));
        drop(released.await.expect("this has a sender"));
    }

    async fn is_cut(&self) {
        let mut rules = self.shared.rules.subscribe();
        let cut = rules.wait_for(|rules| *rules.of(self.who(rules)) == Fault::Cut);
        drop(cut.await.expect("this has a sender"));
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.shared.rules.send_if_modified(|rules| {
            rules.who.remove(&self.port);
            false
        });
    }
}

/// How a connection ends that does not end well.
enum End {
    /// Both sides are reset.
    Reset,
    /// The client is reset, and the server sees an end.
    Lost,
    /// The client is reset, and the server gets this later.
    Stranded(Vec<u8>),
}

async fn carry(mut client: TcpStream, to: &str, edge: &Edge) {
    let Ok(mut server) = TcpStream::connect(to).await else {
        client.set_zero_linger().ok();
        return;
    };
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let asked = Cell::new(false);
    let ended = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::select! {
            ended = async {
                tokio::try_join!(
                    Way::requests(edge, &asked).pump(from_client, to_server),
                    Way::replies(edge, &asked).pump(from_server, to_client),
                )
            } => ended.map(drop),
            () = edge.is_cut() => Err(End::Reset),
        }
    };
    match ended {
        Ok(()) => {}
        Err(End::Reset) => {
            client.set_zero_linger().ok();
            server.set_zero_linger().ok();
        }
        Err(End::Lost) => {
            client.set_zero_linger().ok();
            drop(client);
            end(server).await;
        }
        Err(End::Stranded(bytes)) => {
            client.set_zero_linger().ok();
            drop(client);
            edge.is_released().await;
            server.write_all(&bytes).await.ok(); // unless it was closed there meanwhile
            end(server).await;
        }
    }
}

/// Has a server see that a connection ends, when it has read all.
async fn end(mut server: TcpStream) {
    server.shutdown().await.ok();
    // What has not been read when a socket is closed would reset it.
    let mut sink = tokio::io::sink();
    let drained = tokio::io::copy(&mut server, &mut sink);
    timeout(Duration::from_secs(1), drained).await.ok();
}

/// One direction of a connection.
struct Way<'a> {
    edge: &'a Edge,
    /// A request has passed whose reply is to be swallowed.
    asked: &'a Cell<bool>,
    are_requests: bool,
    /// What waits to be passed on, and until when.
    queue: VecDeque<(Instant, Vec<u8>)>,
    queued: usize,
    /// The end of what was passed on: a piece that is looked for may come in two.
    tail: Vec<u8>,
    /// Something was lost in a black hole.
    torn: bool,
}

impl<'a> Way<'a> {
    fn requests(edge: &'a Edge, asked: &'a Cell<bool>) -> Self {
        Self {
            edge,
            asked,
            are_requests: true,
            queue: VecDeque::new(),
            queued: 0,
            tail: Vec::new(),
            torn: false,
        }
    }

    fn replies(edge: &'a Edge, asked: &'a Cell<bool>) -> Self {
        Self {
            are_requests: false,
            ..Self::requests(edge, asked)
        }
    }

    async fn pump(mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> Result<(), End> {
        let mut rules = self.edge.shared.rules.subscribe();
        let mut buffer = vec![0; 64 << 10];
        // How it ended: well (`true`), or by a reset.
        let mut ended: Option<bool> = None;
        loop {
            let fault = self.edge.now();
            let passes = match fault {
                Fault::Pass | Fault::Delay(_) | Fault::SwallowReply(_) | Fault::Truncate(_) => true,
                Fault::HoldFrom(_) => true,
                Fault::BlackHole | Fault::Hold | Fault::Cut => false,
            };
            if self.are_requests && self.edge.is_stranded() {
                let left = self.queue.into_iter().flat_map(|(_, bytes)| bytes);
                return Err(End::Stranded(left.collect()));
            }
            if passes && self.torn {
                return Err(End::Reset);
            }
            if let (true, true, Some(well)) = (passes, self.queue.is_empty(), ended) {
                if !well {
                    return Err(End::Reset);
                }
                to.shutdown().await.ok();
                return Ok(());
            }
            let due = self.queue.front().map(|(due, _)| *due).filter(|_| passes);
            if due.is_some_and(|due| due <= Instant::now()) {
                let (_, bytes) = self.queue.pop_front().expect("it has a front");
                if let Fault::HoldFrom(wanted) = &fault
                    && self.are_requests
                    && self.finds(wanted, &bytes)
                {
                    self.queue.push_front((Instant::now(), bytes));
                    self.edge.replace(&fault, Fault::Hold);
                    continue;
                }
                self.queued -= bytes.len();
                self.deliver(&fault, &bytes, &mut to).await?;
                continue;
            }
            tokio::select! {
                biased;
                changed = rules.changed() => changed.expect("the edge has a sender"),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                read = from.read(&mut buffer), if ended.is_none() && self.queued < MOST => {
                    match read {
                        Ok(0) => ended = Some(true),
                        Ok(len) => self.take(&fault, &buffer[..len])?,
                        Err(_) => ended = Some(false),
                    }
                    self.torn |= ended.is_some() && fault == Fault::BlackHole;
                }
            }
        }
    }

    /// Bytes have come.
    fn take(&mut self, fault: &Fault, bytes: &[u8]) -> Result<(), End> {
        let late = match fault {
            Fault::BlackHole => {
                self.torn = true;
                return Ok(());
            }
            Fault::SwallowReply(_)
                if !self.are_requests && self.asked.get() && self.edge.take(fault) =>
            {
                return Err(End::Lost);
            }
            Fault::Delay(late) => *late,
            Fault::HoldFrom(_)
            | Fault::Pass
            | Fault::Cut
            | Fault::Hold
            | Fault::SwallowReply(_)
            | Fault::Truncate(_) => Duration::ZERO,
        };
        self.queue
            .push_back((Instant::now() + late, bytes.to_vec()));
        self.queued += bytes.len();
        Ok(())
    }

    /// Passes bytes on. To who is not there any more they are not passed, and its other direction will end.
    async fn deliver(
        &mut self,
        fault: &Fault,
        bytes: &[u8],
        to: &mut WriteHalf<'_>,
    ) -> Result<(), End> {
        match fault {
            Fault::Truncate(most) if self.are_requests && *most <= bytes.len() => {
                if self.edge.take(fault) {
                    to.write_all(&bytes[..*most]).await.ok();
                    return Err(End::Lost);
                }
            }
            Fault::Truncate(most) if self.are_requests => {
                self.edge
                    .replace(fault, Fault::Truncate(most - bytes.len()));
            }
            Fault::SwallowReply(wanted) if self.are_requests => {
                if self.finds(wanted, bytes) {
                    self.asked.set(true);
                }
            }
            Fault::Pass
            | Fault::Cut
            | Fault::BlackHole
            | Fault::Hold
            | Fault::HoldFrom(_)
            | Fault::Delay(_)
            | Fault::SwallowReply(_)
            | Fault::Truncate(_) => {}
        }
        to.write_all(bytes).await.ok();
        Ok(())
    }

    /// Whether what is looked for is there once these bytes have come.
    fn finds(&mut self, wanted: &[u8], bytes: &[u8]) -> bool {
        self.tail.extend_from_slice(bytes);
        let mut pieces = self.tail.windows(wanted.len().max(1));
        let found = wanted.is_empty() || pieces.any(|piece| piece == wanted);
        let kept = wanted.len().saturating_sub(1).min(self.tail.len());
        self.tail.drain(..self.tail.len() - kept);
        found
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    /// A server that answers each line with itself, and remembers what it was sent.
    async fn echo() -> (String, watch::Receiver<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (heard_in, heard) = watch::channel(Vec::new());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let heard_in = heard_in.clone();
                tokio::spawn(async move {
                    let mut buffer = [0; 1024];
                    while let Ok(len @ 1..) = stream.read(&mut buffer).await {
                        heard_in.send_modify(|heard| heard.extend_from_slice(&buffer[..len]));
                        stream.write_all(&buffer[..len]).await.ok();
                    }
                });
            }
        });
        (addr, heard)
    }

    async fn hears(heard: &mut watch::Receiver<Vec<u8>>, all: &str) {
        let wanted = heard.wait_for(|heard| heard == all.as_bytes());
        drop(timeout(crate::SOON, wanted).await.expect(all).unwrap());
    }

    async fn says(stream: &mut TcpStream, text: &str) {
        stream.write_all(text.as_bytes()).await.unwrap();
    }

    async fn reads(stream: &mut TcpStream, text: &str) {
        let mut got = vec![0; text.len()];
        let read = timeout(crate::SOON, stream.read_exact(&mut got)).await;
        read.expect("it is silent").unwrap();
        assert_eq!(got, text.as_bytes());
    }

    async fn is_reset(stream: &mut TcpStream) {
        let read = timeout(crate::SOON, stream.read(&mut [0; 8])).await;
        assert!(read.expect("it is open").is_err());
    }

    async fn is_silent(stream: &mut TcpStream) {
        let read = timeout(Duration::from_millis(200), stream.read(&mut [0; 8])).await;
        assert!(read.is_err(), "{read:?}");
    }

    #[tokio::test]
    async fn bytes_pass_and_ends_pass() {
        let (to, mut heard) = echo().await;
        let relay = Relay::start(&to);
        let mut stream = TcpStream::connect(&relay.addr).await.unwrap();
        says(&mut stream, "a").await;
        reads(&mut stream, "a").await;
        says(&mut stream, "b").await;
        stream.shutdown().await.unwrap();
        reads(&mut stream, "b").await;
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        hears(&mut heard, "ab").await;
    }

    #[tokio::test]
    async fn what_is_cut_is_reset_until_it_is_healed() {
        let (to, _) = echo().await;
        let relay = Relay::start(&to);
        let mut stream = TcpStream::connect(&relay.addr).await.unwrap();
        says(&mut stream, "a").await;
        reads(&mut stream, "a").await;
        relay.set(Fault::Cut);
        is_reset(&mut stream).await;
        if let Ok(mut another) = TcpStream::connect(&relay.addr).await {
            is_reset(&mut another).await;
        }
        relay.heal();
        let mut stream = TcpStream::connect(&relay.addr).await.unwrap();
        says(&mut stream, "a").await;
        reads(&mut stream, "a").await;
    }

    #[tokio::test]
    async fn a_black_hole_is_silent_and_what_fell_into_it_is_lost() {
        let (to, heard) = echo().await;
        let relay = Relay::start(&to);
        let mut used = TcpStream::connect(&relay.addr).await.unwrap();
        let mut idle = TcpStream::connect(&relay.addr).await.unwrap();
        says(&mut idle, "a").await;
        reads(&mut idle, "a").await;
        relay.set(Fault::BlackHole);
        says(&mut used, "b").await;
        is_silent(&mut used).await;
        relay.heal();
        is_reset(&mut used).await;
        assert_eq!(*heard.borrow(), b"a");
        says(&mut idle, "c").await;
        reads(&mut idle, "c").await;
    }

    #[tokio::test]
    async fn what_is_held_arrives_late_also_from_who_is_gone() {
        let (to, mut heard) = echo().await;
        let relay = Relay::start(&to);
        let mut stream = TcpStream::connect(&relay.addr).await.unwrap();
        relay.set(Fault::Hold);
        says(&mut stream, "late").await;
        is_silent(&mut stream).await;
        stream.set_zero_linger().unwrap();
        drop(stream);
        assert_eq!(*heard.borrow(), b"");
        relay.heal();
        hears(&mut heard, "late").await;
    }

    #[tokio::test]
    async fn what_begins_with_a_request_is_held_from_there() {
        let (to, mut heard) = echo().await;
        let relay = Relay::start(&to);
        let mut stream = TcpStream::connect(&relay.addr).await.unwrap();
        relay.set(Fault::HoldFrom(b"wanted".to_vec()));
        says(&mut stream, "other").await;
        reads(&mut stream, "other").await;
        says(&mut stream, "wanted").await;
        is_silent(&mut stream).await;
        assert_eq!(*heard.borrow(), b"other");
        relay.heal();
        hears(&mut heard, "otherwanted").await;
    }

    #[tokio::test]
    async fn what_is_delayed_comes_later_and_in_order() {
        let (to, _) = echo().await;
        let relay = Relay::start(&to);
        let mut stream = TcpStream::connect(&relay.addr).await.unwrap();
        let delay = Duration::from_millis(100);
        relay.set(Fault::Delay(delay));
        let since = Instant::now();
        says(&mut stream, "a").await;
        sleep(delay / 2).await;
        says(&mut stream, "b").await;
        reads(&mut stream, "ab").await;
        assert!(since.elapsed() >= delay * 5 / 2, "{:?}", since.elapsed());
    }

    #[tokio::test]
    async fn a_reply_is_swallowed_once_and_its_request_has_arrived() {
        let (to, mut heard) = echo().await;
        let relay = Relay::start(&to);
        let mut stream = TcpStream::connect(&relay.addr).await.unwrap();
        relay.set(Fault::SwallowReply(b"wanted".to_vec()));
        says(&mut stream, "other").await;
        reads(&mut stream, "other").await;
        says(&mut stream, "it is wan").await;
        reads(&mut stream, "it is wan").await;
        says(&mut stream, "ted").await;
        is_reset(&mut stream).await;
        hears(&mut heard, "otherit is wanted").await;
        let mut stream = TcpStream::connect(&relay.addr).await.unwrap();
        says(&mut stream, "wanted").await;
        reads(&mut stream, "wanted").await;
    }

    #[tokio::test]
    async fn what_is_truncated_arrives_in_part() {
        let (to, mut heard) = echo().await;
        let relay = Relay::start(&to);
        let mut stream = TcpStream::connect(&relay.addr).await.unwrap();
        relay.set(Fault::Truncate(5));
        says(&mut stream, "abc").await;
        reads(&mut stream, "abc").await;
        says(&mut stream, "defg").await;
        is_reset(&mut stream).await;
        hears(&mut heard, "abcde").await;
    }

    /// Each process has an edge of its own.
    #[tokio::test]
    async fn a_fault_concerns_one_process() {
        let (to, mut heard) = echo().await;
        let relay = Relay::start(&to);
        let port = relay.addr.rsplit(':').next().unwrap().to_owned();
        let dir = tempfile::tempdir().unwrap();
        let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; sleep 0.2; echo hi >&3; cat <&3");
        let spawn = |name| Process::start(dir.path(), name, "bash", ["-c", &script], &[]);
        let mut cut = spawn("cut");
        relay.set_for(&cut, Fault::SwallowReply(Vec::new()));
        let passes = spawn("passes");
        relay.becomes(&cut, Fault::Pass).await;
        cut.wait(crate::SOON);
        hears(&mut heard, "hi\nhi\n").await;
        crate::eventually(|| async {
            match passes.log().as_str() {
                "hi\n" => Ok(()),
                other => Err(other.to_owned()),
            }
        })
        .await;
        assert!(!cut.log().contains("hi\n"), "{}", cut.log());
    }

    #[tokio::test]
    async fn what_is_stranded_arrives_late_and_others_pass() {
        let (to, mut heard) = echo().await;
        let relay = Relay::start(&to);
        let port = relay.addr.rsplit(':').next().unwrap().to_owned();
        let dir = tempfile::tempdir().unwrap();
        let open = format!("exec 3<>/dev/tcp/127.0.0.1/{port}");
        let script =
            format!("{open}; sleep 0.2; echo wanted >&3; cat <&3; {open}; echo hi >&3; cat <&3");
        let client = Process::start(dir.path(), "client", "bash", ["-c", &script], &[]);
        relay.set_for(&client, Fault::HoldFrom(b"wanted".to_vec()));
        relay.becomes(&client, Fault::Hold).await;
        relay.strand(&client);
        hears(&mut heard, "hi\n").await;
        relay.release();
        hears(&mut heard, "hi\nwanted\n").await;
    }
}
