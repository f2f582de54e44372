//! `TopologyService`: streams the topology to the proxies. The protocol is in `topology.proto`.
//!
//! One task a stream; it ends with the stream, and the application waits for it. What to send is
//! decided by the [`Feed`], what is known of the proxy is written through its [`Link`]. Nothing here
//! reads the store but to register a proxy.

use std::{sync::Arc, time::Duration};

use proto::{
    ProxyId, Version,
    reason::Reason,
    v1::{
        Hello, KeepAlive, SubscribeRequest, SubscribeResponse, subscribe_request,
        subscribe_response::Message, topology_service_server::TopologyService,
    },
};
use tokio::{
    sync::{mpsc, watch},
    time::{self, Instant},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument, info, warn};

use crate::{
    calls::Permit,
    change::{self, Refusal},
    events::{Draft, Kind},
    failpoint::{Point, reach},
    feed::{Feed, NotAsked},
    fence::Mark,
    parse,
    registry::{Link, Registry},
    status,
    store::{CommitError, Standing, Store},
    topology::History,
};

/// How often a proxy hears something.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// After how long a proxy that says nothing, or does not answer a topology, is dropped.
const SILENCE: Duration = Duration::from_secs(15);

/// How much of a nack's reason is kept.
const NACK_REASON_MAX: usize = 1024;

/// See the module; cheap to clone.
#[derive(Clone)]
pub struct Publisher {
    /// Where proxies are registered.
    pub store: Store,
    /// Who is connected.
    pub registry: Registry,
    /// What there is to send.
    pub histories: watch::Receiver<Arc<History>>,
    /// Ends all streams.
    pub stopping: CancellationToken,
    /// Owns the streams' tasks.
    pub streams: TaskTracker,
}

type Answer = Result<SubscribeResponse, Status>;

#[tonic::async_trait]
impl TopologyService for Publisher {
    type SubscribeStream = ReceiverStream<Answer>;

    async fn subscribe(
        &self,
        mut request: Request<Streaming<SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        if self.stopping.is_cancelled() {
            return Err(status::shutting_down());
        }
        // One message: the task waits until the connection took the last.
        let (outbound, stream) = mpsc::channel(1);
        let publisher = self.clone();
        let permit = request.extensions_mut().remove::<Permit>();
        let inbound = request.into_inner();
        let serving = async move {
            let _permit = permit; // it has its place until it is gone
            if let Err(status) = publisher.serve(inbound, &outbound).await {
                // The proxy may be gone, or not read: it is told if it can be.
                drop(time::timeout(KEEP_ALIVE, outbound.send(Err(status))).await);
            }
        };
        self.streams.spawn(serving.in_current_span());
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Publisher {
    async fn serve(
        mut self,
        mut inbound: Streaming<SubscribeRequest>,
        outbound: &mpsc::Sender<Answer>,
    ) -> Result<(), Status> {
        let hello = tokio::select! {
            hello = read_hello(&mut inbound) => hello?,
            () = self.stopping.cancelled() => return Err(status::shutting_down()),
        };
        let standing = self.store.standing();
        let Admitted {
            id,
            link,
            has,
            is_registered,
        } = self.admit(&hello).await?;
        info!(proxy = %id, address = hello.address, "proxy connected");
        self.store
            .note(news(&id, Kind::ProxyConnected, "connected"));
        let conversation = Conversation::new(id.clone(), link, has, outbound, self.store.clone());
        let end = tokio::select! {
            end = conversation.run(&mut inbound, self.histories) => end,
            () = self.stopping.cancelled() => Err(status::shutting_down()),
            status = belongs_elsewhere(standing, is_registered) => Err(status),
        };
        // The conversation is dropped, and the link with it: who hears of the end sees it.
        let why = match &end {
            Ok(()) => "it closed its stream",
            Err(status) => status.message(),
        };
        info!(proxy = %id, why, "proxy disconnected");
        let what = format!("disconnected: {why}");
        self.store.note(news(&id, Kind::ProxyDisconnected, &what));
        end
    }

    /// Takes the proxy's id and registers it. The link is live when its registration is durable,
    /// and the topology that is sent first is not older than that.
    async fn admit(&mut self, hello: &Hello) -> Result<Admitted, Status> {
        let standing = self.store.standing().borrow().clone();
        if matches!(standing, Standing::StandsBy { .. }) {
            return Err(CommitError::NotLeading(standing).into());
        }
        let now = self.store.snapshot();
        let (registration, has) = parse::hello(hello, now.cluster.id.as_str())?;
        let id = registration.id.clone();
        let above = has.map(Mark::from).filter(|has| has.exceeds(now.mark()));
        let (newest, is_above) = match above {
            Some(found) => self.go_on_above(&id, found).await?,
            None => (now.version(), false),
        };
        let link = self
            .registry
            .connect(
                &id,
                &registration.incarnation,
                has.filter(|has| *has <= newest),
            )
            .map_err(|_| in_use(&id))?;
        let registering = self
            .store
            .commit(move |now| change::register(now, &registration));
        let (registered, is_registered) = match registering.await {
            Ok(after) => (after.version(), !is_above),
            // A proxy that starts now is better off with what is known than with nothing.
            Err(CommitError::NotLeading(Standing::Adrift | Standing::Pauses)) => (newest, false),
            Err(e) => return Err(e.into()),
        };
        self.histories
            .wait_for(|history| history.version() >= registered)
            .await
            .map_err(|_| status::shutting_down())?;
        Ok(Admitted {
            id,
            link,
            has,
            is_registered,
        })
    }

    /// A proxy has higher numbers than the store: that was restored, or this controller leads no more. Which,
    /// the store finds out. Returns the newest version, and whether the proxy's is above it yet.
    async fn go_on_above(&self, id: &ProxyId, found: Mark) -> Result<(Version, bool), Status> {
        warn!(proxy = %id, ?found, "proxy has a newer topology than the store");
        let leapt = self.store.commit(move |now| Ok(change::leap(now, found)));
        match leapt.await {
            Ok(after) => Ok((after.version(), false)),
            // It takes nothing that is older, and goes on with what it has until somebody leads.
            Err(CommitError::NotLeading(Standing::Adrift | Standing::Pauses)) => {
                Ok((self.store.snapshot().version(), true))
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// A proxy that may be served.
struct Admitted {
    id: ProxyId,
    link: Link,
    /// The topology it has.
    has: Option<Version>,
    /// Its registration is durable, and what it has is not above the store. Where nobody leads, neither can
    /// be seen to.
    is_registered: bool,
}

/// Resolves when a stream is to be opened again: at the leader, or so that its proxy is registered.
async fn belongs_elsewhere(mut standing: watch::Receiver<Standing>, is_registered: bool) -> Status {
    let elsewhere = |standing: &Standing| match standing {
        Standing::StandsBy { .. } => true,
        Standing::Leads => !is_registered,
        Standing::Pauses | Standing::Adrift => false,
    };
    let moved = standing.wait_for(elsewhere).await.map(|now| now.clone());
    match moved {
        Ok(standing) => CommitError::NotLeading(standing).into(),
        Err(_) => std::future::pending().await, // the embedded store: it always leads
    }
}

async fn read_hello(inbound: &mut Streaming<SubscribeRequest>) -> Result<Hello, Status> {
    let first = time::timeout(SILENCE, inbound.message())
        .await
        .map_err(|_| status::silent(format!("sent no hello within {SILENCE:?}")))??;
    match first.and_then(|request| request.message) {
        Some(subscribe_request::Message::Hello(hello)) => Ok(hello),
        _ => Err(Refusal::field("message", "the first message must be `hello`").into()),
    }
}

fn news(id: &ProxyId, kind: Kind, what: &str) -> Draft {
    Draft::new(format!("proxy/{id}"), kind, format!("proxy {id} {what}"))
}

fn in_use(id: &ProxyId) -> Status {
    Reason::ProxyIdInUse.status(format!(
        "another live process is registered as proxy {id}: give each proxy an --id of its own, or \
         stop that process"
    ))
}

/// One stream after its hello.
struct Conversation<'a> {
    id: ProxyId,
    link: Link,
    feed: Feed,
    outbound: &'a mpsc::Sender<Answer>,
    store: Store,
    /// When something was sent last.
    sent: Instant,
    /// When a topology was sent last.
    asked: Instant,
    /// When the proxy was heard last.
    heard: Instant,
}

impl<'a> Conversation<'a> {
    fn new(
        id: ProxyId,
        link: Link,
        has: Option<Version>,
        outbound: &'a mpsc::Sender<Answer>,
        store: Store,
    ) -> Self {
        let now = Instant::now();
        Self {
            id,
            link,
            feed: Feed::new(has),
            outbound,
            store,
            sent: now,
            asked: now,
            heard: now,
        }
    }

    /// Ends with `Ok` when the proxy closed the stream.
    async fn run(
        mut self,
        inbound: &mut Streaming<SubscribeRequest>,
        mut histories: watch::Receiver<Arc<History>>,
    ) -> Result<(), Status> {
        // A proxy that has the newest topology is told so at once.
        let history = histories.borrow_and_update().clone();
        if !self.advance(&history).await? {
            self.keep_alive().await?;
        }
        loop {
            tokio::select! {
                request = inbound.message() => match request {
                    Ok(Some(request)) => self.take(request)?,
                    Ok(None) | Err(_) => return Ok(()), // the proxy is gone, one way or another
                },
                changed = histories.changed() => changed.map_err(|_| status::shutting_down())?,
                () = time::sleep_until(self.sent + KEEP_ALIVE) => self.keep_alive().await?,
                () = time::sleep_until(self.deadline()) => return Err(self.overdue()),
                () = self.outbound.closed() => return Ok(()),
                () = self.link.replaced() => return Err(in_use(&self.id)),
            }
            let history = histories.borrow_and_update().clone();
            self.advance(&history).await?;
        }
    }

    /// Sends a topology, if there is one to be sent.
    async fn advance(&mut self, history: &History) -> Result<bool, Status> {
        let Some(message) = self.feed.next(history) else {
            return Ok(false);
        };
        self.asked = Instant::now();
        reach(Point::Publish);
        self.send(message).await?;
        reach(Point::Published);
        Ok(true)
    }

    async fn keep_alive(&mut self) -> Result<(), Status> {
        self.send(Message::KeepAlive(KeepAlive {})).await
    }

    fn take(&mut self, request: SubscribeRequest) -> Result<(), Status> {
        self.heard = Instant::now();
        self.link.heard();
        match request.message {
            Some(subscribe_request::Message::Ack(ack)) => {
                let version = parse::version("ack.version", ack.version.as_ref())?;
                self.acked(version)
            }
            Some(subscribe_request::Message::Nack(nack)) => {
                let version = parse::version("nack.version", nack.version.as_ref())?;
                self.nacked(version, &nack.reason)
            }
            Some(subscribe_request::Message::Settled(settled)) => {
                self.link.settled(parse::settled(&settled)?);
                Ok(())
            }
            Some(subscribe_request::Message::Stats(stats)) => {
                self.link.counted(stats);
                Ok(())
            }
            Some(subscribe_request::Message::Hello(_)) => {
                Err(Refusal::field("message", "`hello` must be sent once").into())
            }
            None => Err(Refusal::field("message", "must be set").into()),
        }
    }

    fn acked(&mut self, version: Version) -> Result<(), Status> {
        if self.feed.ack(version).map_err(not_asked)? {
            self.link.acked(version);
            let what = format!("routes by topology {version}");
            self.store.note(news(&self.id, Kind::ProxyAcked, &what));
        }
        Ok(())
    }

    fn nacked(&mut self, version: Version, reason: &str) -> Result<(), Status> {
        if !self.feed.nack(version).map_err(not_asked)? {
            return Ok(());
        }
        let reason: String = reason.chars().take(NACK_REASON_MAX).collect();
        warn!(proxy = %self.id, %version, reason, "proxy refused a topology");
        let what = format!("refused topology {version}: {reason}");
        self.link.nacked(version, reason);
        self.store.note(news(&self.id, Kind::ProxyNacked, &what));
        Ok(())
    }

    async fn send(&mut self, message: Message) -> Result<(), Status> {
        let response = SubscribeResponse {
            message: Some(message),
        };
        self.sent = Instant::now();
        match time::timeout(SILENCE, self.outbound.send(Ok(response))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Ok(()), // closed; the loop sees it too
            Err(_) => Err(status::silent(format!("did not read for {SILENCE:?}"))),
        }
    }

    /// When the proxy must have been heard, or have answered.
    fn deadline(&self) -> Instant {
        let due = match self.feed.awaiting() {
            Some(_) => self.asked.min(self.heard),
            None => self.heard,
        };
        due + SILENCE
    }

    fn overdue(&self) -> Status {
        status::silent(match self.feed.awaiting() {
            Some(version) => format!("did not answer topology {version} within {SILENCE:?}"),
            None => format!("said nothing for {SILENCE:?}"),
        })
    }
}

fn not_asked(NotAsked(version): NotAsked) -> Status {
    let message = format!("version {version} is not the one that was sent last on this stream");
    Refusal::field("version", message).into()
}
