//! The composition root: what the controller is made of, how it starts and how it stops.
//!
//! [`App::build`] binds first, so that a taken port stops the start before anything is touched.
//! [`App::run`] ends when it is told to, or when a part fails. It stops in this order: not serving →
//! streams end with `UNAVAILABLE` → calls in flight finish, within 3 s → the store is synced
//! and closed.

use std::{fs, net::SocketAddr, path::Path, pin::pin, sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use proto::{
    credentials::Credentials,
    identity::Identity,
    settled, tls,
    v1::{
        DESCRIPTORS, admin_service_server::AdminServiceServer,
        topology_service_server::TopologyServiceServer,
    },
};
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    server::NamedService,
    service::Routes,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::{
    ServingStatus,
    pb::health_server::{Health, HealthServer},
    server::HealthReporter,
};
use tracing::{info, warn};

use crate::{
    admin::Admin,
    calls::CallsLayer,
    config::Settings,
    embedded, ensemble,
    fence::{Fences, keeper::Keeper},
    http::{self, Pages},
    jodis::Jodis,
    metrics::Metrics,
    orchestrator::{Activities, Orchestrator, Tools},
    probe::Probe,
    prober::{Observations, Prober},
    publish::Publisher,
    registry::Registry,
    retire::Retirement,
    store::{Store, Writer},
    topology::{self, History},
    zookeeper::{Place, Tls},
};

/// How long calls in flight may take after the end was asked for.
const GRACE: Duration = Duration::from_secs(3);

/// How often an idle connection is asked whether it lives, and how long it may take to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How many calls one connection may have open.
const STREAMS_MAX: u32 = 1024;

/// What a proxy says is short, but for the connections that it lost and the streams that were touched:
/// twice what these may have (`proto::settled`).
const PROXY_MESSAGE_MAX: usize = 2 * (settled::STREAM_BYTES_MAX + 256 * settled::LOST_MAX);

/// A controller that is bound and has its store open.
pub struct App {
    settings: Settings,
    credentials: Credentials,
    identities: Identities,
    place: Option<Place>,
    metrics: Metrics,
    store: Store,
    writer: Writer,
    /// What runs already: it follows the files of certificates.
    background: JoinSet<()>,
    grpc: TcpListener,
    http: TcpListener,
}

impl App {
    /// Binds, opens the store, and tells where it listens.
    pub async fn build(settings: Settings) -> anyhow::Result<Self> {
        let credentials = Credentials::load(settings.server_auth_file.as_deref())?;
        let identities = Identities::load(&settings)?;
        let place = place(&settings, &identities)?;
        let grpc = bind("--listen", &settings.listen).await?;
        let http = bind("--http", &settings.http).await?;
        let metrics = Metrics::with_certificates(identities.all());
        // What ZooKeeper is shown changes also while the store waits for it.
        let mut background = JoinSet::new();
        for identity in identities.all() {
            background.spawn(identity.keep());
        }
        if let Some((identity, tls)) = identities.zookeeper.clone() {
            background.spawn(tls.follow(identity));
        }
        let (store, writer) = open_store(&settings, place.clone(), &grpc, metrics.clone()).await?;
        let app = Self {
            settings,
            credentials,
            identities,
            place,
            metrics,
            store,
            writer,
            background,
            grpc,
            http,
        };
        app.announce()?;
        Ok(app)
    }

    /// Where gRPC listens.
    pub fn grpc_address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.grpc.local_addr()?)
    }

    /// Where HTTP listens.
    pub fn http_address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.http.local_addr()?)
    }

    /// Serves until `shutdown`, then stops in order. An error: a part failed.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        let (health, health_service) = tonic_health::server::health_reporter();
        set_health(&health, ServingStatus::Serving).await;
        let Running {
            mut writer,
            stopping,
            streams,
            mut background,
            servers,
        } = self.start(health_service)?;
        let mut servers = pin!(servers);
        let failed = tokio::select! {
            () = shutdown => None,
            ended = &mut servers => Some(ended.err().unwrap_or(anyhow!("a server ended"))),
            failure = writer.ended() => Some(failure.into()),
            Some(ended) = background.join_next() => Some(match ended {
                Ok(()) => writer.ended().await.into(), // they end only with the store
                Err(e) => e.into(),
            }),
        };
        info!("stopping");
        set_health(&health, ServingStatus::NotServing).await;
        stopping.cancel();
        streams.close();
        if failed.is_none() {
            let finish = async { tokio::join!(streams.wait(), servers).1 };
            // A stream of another service (health, reflection) may be open for good.
            match time::timeout(GRACE, finish).await {
                Ok(ended) => ended?,
                Err(_) => warn!("calls were still open after {GRACE:?}, closed them"),
            }
        }
        background.shutdown().await;
        let closed = time::timeout(GRACE, writer.close()).await;
        match failed {
            Some(error) => Err(error),
            None => Ok(closed.context("the store did not close in time")??),
        }
    }

    /// Puts the parts together and starts what runs in the background.
    fn start(
        self,
        health: HealthServer<impl Health>,
    ) -> anyhow::Result<Running<impl Future<Output = anyhow::Result<()>>>> {
        let stopping = CancellationToken::new();
        let streams = TaskTracker::new();
        let registry = Registry::new();
        let probe = Probe::new(self.credentials, self.settings.probe_timeout);
        let fences = Fences::new(self.store.clone(), probe.clone());
        let retirement = Retirement {
            store: self.store.clone(),
            registry: registry.clone(),
            fences: fences.clone(),
        };
        let keeper = Keeper {
            store: self.store.clone(),
            registry: registry.clone(),
            fences: fences.clone(),
        };
        let tools = Tools {
            store: self.store.clone(),
            registry: registry.clone(),
            fences: fences.clone(),
            probe: probe.clone(),
            budget: self.settings.migrations_per_group,
            activities: Arc::new(watch::Sender::new(Activities::new())),
        };
        let observations = watch::Sender::new(Observations::new());
        let snapshots = self.store.subscribe();
        let first = topology::compile(&self.store.snapshot());
        let histories = watch::Sender::new(Arc::new(History::new(first)));
        let publisher = Publisher {
            store: self.store.clone(),
            registry: registry.clone(),
            histories: histories.subscribe(),
            stopping: stopping.clone(),
            streams: streams.clone(),
        };
        let admin = Admin {
            store: self.store.clone(),
            registry: registry.clone(),
            probe: probe.clone(),
            fences: fences.clone(),
            retirement: retirement.clone(),
            observations: observations.subscribe(),
            tools: tools.clone(),
            stopping: stopping.clone(),
        };
        let jodis = self.place.zip(self.settings.jodis);
        let jodis = jodis.map(|(place, path)| Jodis {
            place,
            path,
            store: self.store.clone(),
            registry: registry.clone(),
        });
        let pages = Pages {
            metrics: self.metrics.clone(),
            store: self.store.clone(),
            registry,
            observations: observations.subscribe(),
            stopping: stopping.clone(),
        };
        let prober = Prober {
            store: self.store,
            probe,
            fences,
            interval: self.settings.probe_interval,
            observations,
            metrics: self.metrics.clone(),
        };
        let mut background = self.background;
        if !self.settings.proxy_expiry.is_zero() {
            background.spawn(retirement.run(self.settings.proxy_expiry));
        }
        if let Some(jodis) = jodis {
            background.spawn(jodis.run());
        }
        background.spawn(topology::follow(snapshots, histories));
        background.spawn(keeper.run());
        background.spawn(Orchestrator::new(tools).run());
        background.spawn(prober.run());
        let routes = grpc_routes(admin, publisher, health)?;
        let identity = self.identities.grpc;
        let grpc = serve_grpc(self.grpc, identity, routes, self.metrics, stopping.clone());
        let http = axum::serve(self.http, http::routes(pages))
            .with_graceful_shutdown(stopping.clone().cancelled_owned());
        let servers = async {
            let http = async { http.await.context("serve HTTP") };
            tokio::try_join!(grpc, http).map(drop)
        };
        Ok(Running {
            writer: self.writer,
            stopping,
            streams,
            background,
            servers,
        })
    }

    fn announce(&self) -> anyhow::Result<()> {
        let (grpc, http) = (self.grpc_address()?, self.http_address()?);
        let now = self.store.snapshot();
        info!(%grpc, %http, cluster = now.cluster.name, id = %now.cluster.id,
            revision = now.head.revision, term = now.head.leader_term, "listening");
        if self.identities.grpc.is_none() && !grpc.ip().is_loopback() {
            warn!(%grpc, "gRPC is in plain text: whoever reaches this address can change the cluster; \
                --tls-cert-file, --tls-key-file and --tls-ca-file let in only who has a certificate");
        }
        match &self.settings.ports_file {
            Some(path) => write_ports(path, grpc, http)
                .with_context(|| format!("write the ports file {}", path.display())),
            None => Ok(()),
        }
    }
}

/// The parts that are to be ended.
struct Running<S> {
    writer: Writer,
    /// Cancelled: everything ends.
    stopping: CancellationToken,
    /// The proxies' streams.
    streams: TaskTracker,
    /// They end with the store, or not at all.
    background: JoinSet<()>,
    /// gRPC and HTTP.
    servers: S,
}

fn grpc_routes(
    admin: Admin,
    publisher: Publisher,
    health: HealthServer<impl Health>,
) -> anyhow::Result<Routes> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let topology =
        TopologyServiceServer::new(publisher).max_decoding_message_size(PROXY_MESSAGE_MAX);
    Ok(Routes::new(health)
        .add_service(AdminServiceServer::new(admin))
        .add_service(topology)
        .add_service(reflection().build_v1()?)
        // Older tools, such as grpcurl 1.8, speak only this one.
        .add_service(reflection().build_v1alpha()?))
}

async fn serve_grpc(
    listener: TcpListener,
    identity: Option<Arc<Identity>>,
    routes: Routes,
    metrics: Metrics,
    stopping: CancellationToken,
) -> anyhow::Result<()> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .max_concurrent_streams(STREAMS_MAX)
        .layer(CallsLayer::new(metrics.clone()))
        .add_routes(routes);
    let stopped = stopping.cancelled_owned();
    let served = match identity {
        None => server.serve_with_incoming_shutdown(incoming, stopped).await,
        Some(identity) => {
            let incoming = tls::accept(incoming, identity, move || metrics.connection_refused());
            Box::pin(server.serve_with_incoming_shutdown(incoming, stopped)).await
        }
    };
    served.context("serve gRPC")
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for name in [
        "", // the process as a whole
        AdminServiceServer::<Admin>::NAME,
        TopologyServiceServer::<Publisher>::NAME,
    ] {
        health.set_service_status(name, status).await;
    }
}

/// Where the truth is: in ZooKeeper, or in a folder.
async fn open_store(
    settings: &Settings,
    place: Option<Place>,
    grpc: &TcpListener,
    metrics: Metrics,
) -> anyhow::Result<(Store, Writer)> {
    let (dir, cluster) = (settings.data_dir.clone(), settings.cluster.clone());
    let Some(place) = place else {
        return Ok(embedded::open(dir, cluster, metrics).await?);
    };
    let address = match &settings.advertise {
        Some(address) => address.clone(),
        None => grpc.local_addr()?.to_string(),
    };
    Ok(ensemble::open(place, address, dir, cluster, metrics).await?)
}

/// What is shown to whom over TLS.
struct Identities {
    /// To proxies and operators.
    grpc: Option<Arc<Identity>>,
    /// To ZooKeeper, and in the form that its client takes.
    zookeeper: Option<(Arc<Identity>, Tls)>,
}

impl Identities {
    fn load(settings: &Settings) -> anyhow::Result<Self> {
        let load = |files| anyhow::Ok(Arc::new(Identity::load(files)?));
        let zookeeper = settings.zookeeper_files().map(|files| {
            let identity = load(files)?;
            let tls = Tls::new(&identity).map_err(anyhow::Error::msg)?;
            anyhow::Ok((identity, tls))
        });
        Ok(Self {
            grpc: settings.tls.files()?.map(load).transpose()?,
            zookeeper: zookeeper.transpose()?,
        })
    }

    fn all(&self) -> Vec<Arc<Identity>> {
        let zookeeper = self.zookeeper.as_ref().map(|(identity, _)| identity);
        self.grpc.iter().chain(zookeeper).cloned().collect()
    }
}

/// Reads all files that the settings name, and nothing else: whether they can be used.
pub fn check(settings: &Settings) -> anyhow::Result<()> {
    Credentials::load(settings.server_auth_file.as_deref())?;
    place(settings, &Identities::load(settings)?).map(drop)
}

/// Where the settings say that ZooKeeper is.
fn place(settings: &Settings, identities: &Identities) -> anyhow::Result<Option<Place>> {
    let Some(servers) = &settings.zookeeper else {
        return Ok(None);
    };
    settings.can_be_told().map_err(anyhow::Error::msg)?;
    let auth = settings.zookeeper_auth_file.as_deref().map(read);
    Ok(Some(Place {
        servers: servers.clone(),
        root: format!("{}/{}", settings.zookeeper_chroot, settings.cluster),
        tls: identities.zookeeper.as_ref().map(|(_, tls)| tls.clone()),
        auth: auth.transpose()?.map(|text| text.trim_end().to_owned()),
        session_timeout: settings.zookeeper_session_timeout,
    }))
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

async fn bind(flag: &str, address: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("listen on {address}: stop what uses it, or choose another address with {flag}")
    })
}

/// Whole or not at all: who waits for the file may read it as soon as it is there.
fn write_ports(path: &Path, grpc: SocketAddr, http: SocketAddr) -> anyhow::Result<()> {
    let json = serde_json::json!({ "grpc": grpc.to_string(), "http": http.to_string() });
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    fs::write(&partial, format!("{json}\n"))?;
    fs::rename(&partial, path)?;
    Ok(())
}
