//! A data thread: its runtime, and the state that all its tasks share.
//!
//! Nothing on the request path is shared with another thread. A worker has its own sessions, its own
//! pipes to every server, its own copy of the topology; within the thread, tasks take turns with one
//! [`Worker`] in a `RefCell`, and none keeps it over an await. From outside come new connections, new
//! topologies, the order to drain, and seldom a message from another worker; out go counts ([`crate::metrics`]) and the version that is
//! routed by.
//!
//! The tasks: one for each session (whose panic ends that session alone), one for each pipe, the
//! flusher, the ticker, the one that does what other workers want ([`crate::crew`]), and the one that
//! listens to the outside. The flusher is woken by whoever has
//! written something and runs behind all that were ready before: so each connection is written to once
//! a turn, however many requests or replies the turn had.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    net::{SocketAddr, TcpStream},
    panic::AssertUnwindSafe,
    pin::pin,
    rc::{Rc, Weak},
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Context,
    thread,
    time::Duration,
};

use futures_util::FutureExt as _;
use proto::{
    Topology, Version,
    seeded::{self, Bug},
};
use tokio::{
    runtime::{Builder, LocalOptions},
    sync::{mpsc, watch},
    task::spawn_local,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    backend::Backends,
    client::Client,
    config::Serving,
    crew::{Crew, Mailbox, run_errands},
    lease::Pool,
    memory::Account,
    metrics::{Proxy, WorkerStats},
    monitor::Monitor,
    pause::Pause,
    pubsub::PubSub,
    resp::Arg,
    scripts::Seen,
    session::{Clients, Session, Splitting},
    settling::{Settling, report::Report},
    socket::Socket,
    tracking::Trackers,
};

/// How often silent servers and held requests are looked at.
const TICK: Duration = Duration::from_millis(100);

/// The state of a data thread.
pub(crate) struct Worker {
    /// Itself, for tasks that it starts.
    pub(crate) this: Weak<RefCell<Self>>,
    pub(crate) crew: Crew,
    pub(crate) clients: Clients,
    pub(crate) backends: Backends,
    pub(crate) leases: Pool,
    pub(crate) pubsub: PubSub,
    pub(crate) trackers: Trackers,
    /// What is routed by. `None`: nothing has come yet.
    pub(crate) topology: Option<Arc<Topology>>,
    /// Since when it is routed by.
    pub(crate) topology_since: Instant,
    pub(crate) serving: Arc<Serving>,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) stats: Arc<WorkerStats>,
    /// Who waits until when, as clients asked for.
    pub(crate) pause: Option<Pause>,
    /// Who is shown all requests.
    pub(crate) monitors: Vec<Monitor>,
    /// What is under way for slots that are about to move.
    pub(crate) settling: Settling,
    /// Requests are not simply sent on: there is a pause, or a monitor, or a slot is copied.
    pub(crate) attentive: bool,
    /// Sessions end as soon as they are idle.
    pub(crate) draining: bool,
    /// What is read from any socket goes here first.
    pub(crate) scratch: Vec<u8>,
    /// The arguments of the request that is being looked at.
    pub(crate) args: Vec<Arg>,
    /// The scripts that its clients have brought.
    pub(crate) seen: Seen,
    /// For the request that is being split.
    pub(crate) splitting: Splitting,
    pub(crate) clock: Clock,
    /// When the events of this turn came, by the clock.
    pub(crate) micros: u32,
    /// Whole seconds by the clock, as of the last tick.
    pub(crate) seconds: u32,
}

/// Time since the worker started. It is asked once for each batch of requests or replies.
pub(crate) struct Clock(Instant);

impl Clock {
    /// In microseconds. Wraps around after 71 minutes: for differences only.
    #[inline]
    pub(crate) fn micros(&self) -> u32 {
        self.0.elapsed().as_micros() as u32
    }

    fn seconds(&self) -> u32 {
        self.0.elapsed().as_secs() as u32
    }
}

/// What a worker is told from outside.
pub(crate) struct Inlet {
    /// New client connections.
    pub(crate) connections: mpsc::Receiver<(TcpStream, SocketAddr)>,
    /// The newest topology.
    pub(crate) topology: watch::Receiver<Option<Arc<Topology>>>,
    /// Whether, and until when, to drain.
    pub(crate) drain: watch::Receiver<Option<Instant>>,
    /// What is routed by, told to whoever acknowledges it.
    pub(crate) applied: watch::Sender<Option<Version>>,
    /// What is no longer under way, told likewise.
    pub(crate) settled: watch::Sender<Report>,
}

impl Worker {
    /// The size of the one read buffer.
    pub(crate) const SCRATCH: usize = 64 * 1024;

    /// Starts a worker's thread; returns once it has a runtime. It ends when it has drained.
    pub(crate) fn start(
        crew: Crew,
        errands: Mailbox,
        serving: Arc<Serving>,
        proxy: Arc<Proxy>,
        inlet: Inlet,
    ) -> io::Result<thread::JoinHandle<()>> {
        let index = crew.own();
        let (report, reported) = std::sync::mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                crate::thread::prefer_batches();
                if let Some(&cpu) = serving.cpus.get(index % serving.cpus.len().max(1)) {
                    crate::thread::pin(cpu);
                }
                // A local runtime cannot be moved: it is made where it runs.
                let made = Builder::new_current_thread()
                    .enable_all()
                    .max_io_events_per_tick(1024)
                    .build_local(LocalOptions::default());
                let (runtime, result) = match made {
                    Ok(runtime) => (Some(runtime), Ok(())),
                    Err(e) => (None, Err(e)),
                };
                let told = report.send(result);
                if let (Some(runtime), Ok(())) = (runtime, told) {
                    runtime.block_on(essential(Self::run(crew, errands, serving, proxy, inlet)));
                }
            })?;
        reported.recv().map_err(io::Error::other)??;
        Ok(thread)
    }

    async fn run(
        crew: Crew,
        errands: Mailbox,
        serving: Arc<Serving>,
        proxy: Arc<Proxy>,
        inlet: Inlet,
    ) {
        let worker = Self::new(crew, serving, proxy);
        let flusher = spawn_local(essential(run_flusher(Rc::clone(&worker))));
        let errands = spawn_local(essential(run_errands(Rc::clone(&worker), errands)));
        let ticker = spawn_local(essential(run_ticker(Rc::clone(&worker))));
        listen(&worker, inlet).await;
        errands.abort();
        flusher.abort();
        ticker.abort();
    }

    fn new(crew: Crew, serving: Arc<Serving>, proxy: Arc<Proxy>) -> Rc<RefCell<Self>> {
        let index = crew.own();
        let settling = Settling::new();
        Rc::new_cyclic(|worker| {
            RefCell::new(Self {
                this: worker.clone(),
                crew,
                clients: Clients::new(&serving, Account::new(Arc::clone(&proxy.memory))),
                backends: Backends::new(worker.clone(), index, &serving, Arc::clone(&proxy)),
                leases: Pool::new(serving.max_leases, Rc::clone(&settling.losses)),
                pubsub: PubSub::new(worker.clone(), Arc::clone(&proxy.census)),
                trackers: Trackers::new(serving.tracking_keys),
                topology: None,
                topology_since: Instant::now(),
                serving,
                stats: Arc::clone(&proxy.workers[index]),
                proxy,
                pause: None,
                monitors: Vec::new(),
                settling,
                attentive: false,
                draining: false,
                scratch: vec![0; Self::SCRATCH],
                args: Vec::new(),
                seen: Seen::default(),
                splitting: Splitting::default(),
                clock: Clock(Instant::now()),
                micros: 0,
                seconds: 0,
            })
        })
    }

    /// To be called when there is a pause or a monitor more, or less, or a topology.
    pub(crate) fn attend(&mut self) {
        self.attentive = self.pause.is_some()
            || !self.monitors.is_empty()
            || self.settling.touched.is_attentive();
    }

    /// Routes by a new topology from the next request on.
    pub(crate) fn apply(&mut self, topology: Arc<Topology>) {
        self.backends.update(&topology, &self.serving);
        self.leases.keep(|door| self.backends.is_known(&door.addr));
        self.clients.look_again(&topology);
        let before = self.topology.replace(topology);
        self.topology_since = Instant::now();
        self.move_subscriptions();
        self.move_tracked(before.as_deref());
        self.settle_anew(before.as_deref());
        self.clients.retry(usize::MAX);
    }
}

/// Runs a task that the whole worker depends on. Should it panic, the process ends: clients then see a
/// closed connection, and not a proxy that has stopped to answer.
pub(crate) async fn essential(task: impl Future<Output = ()>) {
    if AssertUnwindSafe(task).catch_unwind().await.is_err() {
        tracing::error!("a task that cannot be replaced has panicked");
        std::process::abort();
    }
}

/// Has the task that is being polled run again with the next turn, behind the events that have come by
/// then. One that wakes itself instead runs again before the runtime looks for events, dozens of times.
pub(crate) fn yield_turn(cx: &mut Context<'_>) {
    let again = pin!(tokio::task::yield_now()).poll(cx);
    debug_assert!(again.is_pending(), "it was polled once");
}

/// Takes what comes from outside, until the worker has drained.
async fn listen(worker: &Rc<RefCell<Worker>>, mut inlet: Inlet) {
    let mut deadline = None;
    let news = worker.borrow().settling.news();
    loop {
        let over = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Ok(()) = inlet.topology.changed() => {
                let newest = inlet.topology.borrow_and_update().clone();
                if let Some(topology) = newest {
                    let version = topology.version();
                    if seeded::has(Bug::AckBeforeAllWorkers) && worker.borrow().crew.own() > 0 {
                        inlet.applied.send_replace(Some(version));
                        tokio::time::sleep(Duration::from_millis(300)).await;
                    }
                    worker.borrow_mut().apply(topology);
                    inlet.applied.send_replace(Some(version));
                }
            }
            Ok(()) = inlet.drain.changed() => {
                deadline = *inlet.drain.borrow_and_update();
                let worker = &mut *worker.borrow_mut();
                worker.draining = deadline.is_some();
                worker.clients.wake_all();
            }
            () = news.notified() => {
                if let Some(report) = worker.borrow_mut().report_settled() {
                    inlet.settled.send_replace(report);
                }
            }
            Some((stream, peer)) = inlet.connections.recv() => {
                serve(worker, stream, peer);
            }
            () = over => return,
            () = drained(worker), if deadline.is_some() => return,
        }
    }
}

/// Returns once no client is connected.
async fn drained(worker: &RefCell<Worker>) {
    while !worker.borrow().clients.none_connected() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Starts the session of a new connection.
fn serve(worker: &Rc<RefCell<Worker>>, stream: TcpStream, peer: SocketAddr) {
    let started = Session::start(&worker.borrow(), stream, peer);
    match started {
        Ok(session) => {
            let id = worker.borrow_mut().clients.insert(session);
            worker.borrow().stats.sessions_opened.add(1);
            spawn_local(run_session(Ending {
                worker: Rc::clone(worker),
                id,
            }));
        }
        Err(e) => {
            tracing::debug!(error = %e, "client was gone at once");
            worker.borrow().stats.sessions.fetch_sub(1, Relaxed);
        }
    }
}

impl Session {
    fn start(worker: &Worker, stream: TcpStream, peer: SocketAddr) -> io::Result<Self> {
        let local = stream.local_addr()?;
        let id = worker.proxy.last_client.fetch_add(1, Relaxed) + 1;
        let client = Client::new(id, worker.serving.password.is_none(), peer, local);
        Ok(Self::new(Socket::new(stream)?, client, worker))
    }
}

async fn run_session(session: Ending) {
    poll_fn(|cx| session.worker.borrow_mut().poll_session(session.id, cx)).await;
}

/// Closes its session when the task ends, also by a panic: that ends this session alone.
struct Ending {
    worker: Rc<RefCell<Worker>>,
    id: u32,
}

impl Drop for Ending {
    fn drop(&mut self) {
        // It is borrowed already only if the runtime is dropped within a turn; all ends then.
        if let Ok(mut worker) = self.worker.try_borrow_mut() {
            worker.close_session(self.id);
            if thread::panicking() {
                worker.stats.panics.add(1);
            }
            worker.stats.sessions.fetch_sub(1, Relaxed);
        }
    }
}

/// Flushes once in a turn, behind all tasks that were ready. It lets the runtime look for new events
/// once more before that: what has come meanwhile joins the same writes.
async fn run_flusher(worker: Rc<RefCell<Worker>>) {
    loop {
        poll_fn(|cx| worker.borrow_mut().poll_flush_wanted(cx)).await;
        tokio::task::yield_now().await;
        worker.borrow_mut().flush();
    }
}

async fn run_ticker(worker: Rc<RefCell<Worker>>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = ticks.tick().await;
        let worker = &mut *worker.borrow_mut();
        let most = worker.serving.server_timeout;
        let micros = worker.clock.micros();
        let account = &mut worker.clients.account;
        worker.backends.tick(now, micros, most, account);
        worker.pubsub.tick(now, most);
        worker.pause = worker.pause.filter(|pause| !pause.is_over(now));
        worker.tell_monitors();
        worker.count_paused();
        worker.tick_tracking();
        worker.bury_lost();
        worker.clients.retry(usize::MAX);
        worker.relieve();
        let seconds = worker.clock.seconds();
        if seconds != std::mem::replace(&mut worker.seconds, seconds) {
            worker.close_silent();
            worker.leases.tick(now);
        }
        let ready = worker.backends.ready() + worker.pubsub.ready();
        worker.stats.server_connections.store(ready, Relaxed);
        let leases = worker.leases.open() as u64;
        worker.stats.leases.store(leases, Relaxed);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::TcpListener;

    use clap::Parser as _;
    use proto::ProxyId;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        task::yield_now,
    };

    use super::*;
    use crate::{
        config::{Args, Config, OnRestart},
        framer::Piece,
        memory::Memory,
        outbox::Outbox,
    };

    /// One of as many workers as the crew has, with no topology.
    pub(crate) fn worker(crew: Crew) -> Rc<RefCell<Worker>> {
        let args = ["sluice-proxy", "--controller", "127.0.0.1:1"];
        let args = Args::parse_from(args.into_iter().chain(["--output-limit", "8MiB"]));
        let serving = Config::new(&args).unwrap().serving;
        let id = ProxyId::new("p").unwrap();
        let proxy = Proxy::new(id, 10, 8, OnRestart::Refuse, Memory::new(1 << 30));
        Worker::new(crew, Arc::new(serving), Arc::new(proxy))
    }

    /// A client, and its session.
    pub(crate) fn client(worker: &Rc<RefCell<Worker>>) -> (tokio::net::TcpStream, u32) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (client, stream, peer) = connection(&listener);
        serve(worker, stream, peer);
        let newest = worker.borrow().proxy.last_client.load(Relaxed);
        let session = worker.borrow().clients.of_client(newest).unwrap();
        (client, session)
    }

    /// A client, and the other end of its connection.
    fn connection(listener: &TcpListener) -> (tokio::net::TcpStream, TcpStream, SocketAddr) {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_nonblocking(true).unwrap();
        let (stream, peer) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let client = tokio::net::TcpStream::from_std(client).unwrap();
        (client, stream, peer)
    }

    async fn panics_within_its_turn(session: Ending) {
        poll_fn::<(), _>(|_| {
            let _turn = session.worker.borrow_mut();
            panic!("as a fault in the code would")
        })
        .await;
    }

    async fn scenario() {
        let worker = worker(Crew::of(1).remove(0).0);
        spawn_local(run_flusher(Rc::clone(&worker)));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut good, stream, peer) = connection(&listener);
        serve(&worker, stream, peer);
        let (mut bad, stream, peer) = connection(&listener);
        let session = Session::start(&worker.borrow(), stream, peer).unwrap();
        let id = worker.borrow_mut().clients.insert(session);
        worker.borrow().stats.sessions.store(2, Relaxed);
        let worker = Rc::clone(&worker);
        let session = Ending {
            worker: Rc::clone(&worker),
            id,
        };
        assert!(spawn_local(panics_within_its_turn(session)).await.is_err());

        let mut reply = [0; 7];
        assert_eq!(bad.read(&mut reply).await.unwrap(), 0, "it was closed");
        good.write_all(b"PING\r\n").await.unwrap();
        good.read_exact(&mut reply).await.unwrap();
        assert_eq!(&reply, b"+PONG\r\n");
        let stats = Arc::clone(&worker.borrow().stats);
        assert_eq!((stats.panics.get(), stats.sessions.load(Relaxed)), (1, 1));
    }

    /// Runs it as a worker's thread does.
    pub(crate) fn run_local(scenario: impl Future<Output = ()>) {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
            .unwrap();
        let most = Duration::from_secs(20);
        runtime.block_on(async { tokio::time::timeout(most, scenario).await.unwrap() });
    }

    #[test]
    fn a_panic_ends_its_session_alone() {
        run_local(scenario());
    }

    #[test]
    fn messages_come_between_replies_and_close_who_does_not_take_them() {
        run_local(async {
            let worker = worker(Crew::of(1).remove(0).0);
            spawn_local(run_flusher(Rc::clone(&worker)));
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let (mut client, stream, peer) = connection(&listener);
            serve(&worker, stream, peer);
            let id = 0; // the first
            let awaited = worker.borrow_mut().clients.session(id).outbox.reserve();
            worker.borrow_mut().clients.push(id, b" message");
            let reply = |outbox: &mut Outbox| outbox.fill_piece(awaited, Piece::whole(b"reply"));
            worker.borrow_mut().clients.fill(id, reply);
            worker.borrow_mut().clients.schedule_flush();
            worker.borrow_mut().clients.push(id, b" at once");
            let mut got = [0; 21];
            client.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"reply message at once");

            let stats = Arc::clone(&worker.borrow().stats);
            let message = vec![b'm'; 1 << 20];
            let mut pushed = 0;
            while stats.sessions_closed_overrun.get() == 0 {
                worker.borrow_mut().clients.push(id, &message);
                pushed += message.len();
                yield_now().await;
            }
            assert!(pushed > worker.borrow().serving.output_limit);
            let mut all = Vec::new();
            assert!(client.read_to_end(&mut all).await.is_err() || all.len() < pushed);
            worker.borrow_mut().clients.push(id, &message); // to nobody
        });
    }
}
