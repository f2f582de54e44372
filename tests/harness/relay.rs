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
    cell::Cell, collections::HashMap, net::TcpListener as StdListener, sync::Arc, thread,
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::{Notify, oneshot, watch},
    task::{JoinSet, LocalSet, spawn_blocking},
    time::timeout,
};

use crate::Process;

mod way;
mod whose;

use way::Way;

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
    /// The port that each connection comes from, and whose it is.
    who: HashMap<u64, (u16, Who)>,
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
        let unknown = self.who.values().filter(|(_, who)| *who == Who::Unknown);
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
            number: 0,
        };
        // Nobody waits for that.
        shared.rules.send_if_modified(|rules| {
            rules.last += 1;
            edge.number = rules.last;
            rules.who.insert(rules.last, (peer.port(), Who::Unknown));
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
        let found = spawn_blocking(move || whose::processes_of(&ports, to)).await;
        let found = found.expect("it does not panic");
        shared.rules.send_modify(|rules| {
            let unknown = rules.who.values_mut();
            for (port, who) in unknown.filter(|(_, who)| *who == Who::Unknown) {
                *who = found.get(port).copied().unwrap_or(*who);
            }
        });
    }
}

/// What one connection is on.
struct Edge {
    shared: Arc<Shared>,
    /// The connection's.
    number: u64,
}

impl Edge {
    fn who(&self, rules: &Rules) -> Who {
        let known = rules.who.get(&self.number);
        known.map_or(Who::Another, |(_, who)| *who)
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
            rules.who.remove(&self.number);
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

#[cfg(test)]
mod tests;
