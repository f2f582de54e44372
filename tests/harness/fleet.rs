//! Many proxies as a controller sees them: each a connection of its own, a hello, an ack for each topology,
//! counters every second, and another attempt when the stream ends. They route nothing.

use std::time::Duration;

use proto::v1::{
    self, cluster::Role, subscribe_request::Message as Say, subscribe_response::Message as Told,
    topology_service_client::TopologyServiceClient,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, interval, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Endpoint};

use crate::{Cluster, ZooKeeper, operator::becomes, within};

/// See the module. They end with the value.
pub struct Fleet {
    members: Vec<watch::Receiver<Known>>,
    _tasks: JoinSet<()>,
}

/// What a member has of its controller.
#[derive(Clone, Default)]
struct Known {
    cluster: String,
    version: Option<v1::Version>,
    /// Its stream is open, and something came on it.
    subscribed: bool,
}

impl Fleet {
    /// Starts so many at once.
    pub fn start(controller: &str, count: usize) -> Self {
        let mut tasks = JoinSet::new();
        let members = (1..=count).map(|number| {
            let (known, seen) = watch::channel(Known::default());
            tasks.spawn(run(controller.to_owned(), number, known));
            seen
        });
        let members = members.collect();
        Self {
            members,
            _tasks: tasks,
        }
    }

    /// Returns once all of them are connected and have what the controller has.
    async fn have_all(&self, cluster: &Cluster) {
        within(PATIENCE, || async {
            let version = version(cluster).await;
            let have = |member: &&watch::Receiver<Known>| {
                let known = member.borrow();
                known.subscribed && known.version == Some(version)
            };
            match self.members.iter().filter(have).count() {
                count if count == self.members.len() => Ok(()),
                count => Err(format!("{count} of {} have it", self.members.len())),
            }
        })
        .await;
    }

    /// Returns once so many are connected.
    async fn are_connected(&self, count: usize) {
        within(PATIENCE, || async {
            match self.connected() {
                connected if connected == count => Ok(()),
                connected => Err(format!("{connected}, not {count} are connected")),
            }
        })
        .await;
    }

    /// How many are connected.
    pub fn connected(&self) -> usize {
        let subscribed = self.members.iter().filter(|m| m.borrow().subscribed);
        subscribed.count()
    }
}

/// What so many proxies cost, and how soon they are back when their controller was killed.
#[derive(Debug)]
pub struct Measured {
    /// How long it took until all were registered, with a version for each.
    pub joined: Duration,
    /// After each of two restarts of the controller, how long it took until all had what it has.
    pub back: [Duration; 2],
    /// Bytes that are resident of a controller without any.
    pub alone: usize,
    /// Bytes that each proxy adds.
    pub each: usize,
}

impl Measured {
    /// The better one: what the machine had to do besides is in the other.
    pub fn best(&self) -> Duration {
        self.back[0].min(self.back[1])
    }
}

/// How long it may take until a thousand have registered, one after the other, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// How soon two hundred have to be back.
pub const BACK: Duration = Duration::from_secs(5);

/// Measures that, with a controller of its own whose store is a ZooKeeper.
pub async fn measure(count: usize) -> Measured {
    let dir = tempfile::tempdir().unwrap();
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let args = [
        "--zookeeper",
        &zookeeper.addr,
        "--zookeeper-session-timeout",
        "2s",
    ];
    let cluster = Cluster::builder().groups(2).controller_args(&args);
    let mut cluster = cluster.start().await;
    let alone = cluster.controller.process.rss();
    let begun = Instant::now();
    let fleet = Fleet::start(&cluster.controller.addr, count);
    fleet.are_connected(count).await;
    fleet.have_all(&cluster).await;
    let joined = begun.elapsed();
    let together = cluster.controller.process.rss();

    let mut back = [Duration::ZERO; 2];
    for took in &mut back {
        cluster.controller.process.kill();
        fleet.are_connected(0).await;
        let restarted = Instant::now();
        cluster.controller.restart();
        fleet.have_all(&cluster).await;
        *took = restarted.elapsed();
        // The next one is of a controller that leads, too.
        becomes(&cluster.controller, Role::Leader).await;
        fleet.have_all(&cluster).await;
    }
    Measured {
        joined,
        back,
        alone,
        each: together.saturating_sub(alone) / count,
    }
}

async fn version(cluster: &Cluster) -> v1::Version {
    let mut admin = cluster.controller.admin().await;
    let topology = admin.get_topology(v1::GetTopologyRequest {}).await;
    let version = topology.unwrap().into_inner().version;
    version.expect("a topology has one")
}

/// As `Control` of the proxy does it.
async fn run(controller: String, number: usize, known: watch::Sender<Known>) {
    let incarnation = format!("{:032x}", fastrand::u128(..));
    let mut pause = Duration::from_millis(100);
    loop {
        // What it is told last is told to whoever asks it next.
        drop(subscribe(&controller, number, &incarnation, &known).await);
        known.send_modify(|known| known.subscribed = false);
        sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

async fn subscribe(
    controller: &str,
    number: usize,
    incarnation: &str,
    known: &watch::Sender<Known>,
) -> Result<(), Status> {
    let endpoint = Endpoint::from_shared(format!("http://{controller}")).unwrap();
    let channel = endpoint.connect().await;
    let channel = channel.map_err(|e| Status::unavailable(e.to_string()))?;
    let (say, said) = mpsc::channel(4);
    let now = known.borrow().clone();
    let hello = v1::Hello {
        proxy_id: format!("fleet-{number}"),
        incarnation: incarnation.to_owned(),
        address: format!("127.0.0.1:{}", 10_000 + number),
        build_version: "0".to_owned(),
        cluster_id: now.cluster,
        last_version: now.version,
        ..v1::Hello::default()
    };
    tell(&say, Say::Hello(hello)).await;
    let mut client = TopologyServiceClient::new(channel);
    let mut stream = client
        .subscribe(ReceiverStream::new(said))
        .await?
        .into_inner();
    let mut stats = interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            message = stream.message() => {
                let Some(message) = message? else { return Ok(()) };
                let (cluster, version) = match message.message {
                    Some(Told::Snapshot(t)) => (Some(t.cluster_id), t.version),
                    Some(Told::Delta(d)) => (None, d.version),
                    Some(Told::KeepAlive(_)) | None => (None, None),
                };
                known.send_modify(|known| {
                    known.subscribed = true;
                    if let Some(cluster) = cluster {
                        known.cluster = cluster;
                    }
                    known.version = version.or(known.version);
                });
                if version.is_some() {
                    tell(&say, Say::Ack(v1::Ack { version })).await;
                }
            }
            _ = stats.tick() => tell(&say, Say::Stats(v1::ProxyStats::default())).await,
        }
    }
}

async fn tell(say: &mpsc::Sender<v1::SubscribeRequest>, message: Say) {
    let message = Some(message);
    say.send(v1::SubscribeRequest { message }).await.ok(); // an error: the stream's end is seen, too
}
