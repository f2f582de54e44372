//! A session with ZooKeeper: reads all of a cluster's nodes as they were at one moment, and writes
//! several at once. The only module that knows the client library, with `roster` below it.
//!
//! Every call has a deadline: the library has none, and waits for as long as it is disconnected. None ends
//! later than the session may be relied on (`Session::safe_until`), so that whoever leads by it does not
//! wait beyond that. A call that was given up may have been sent and may be done yet (`Failure::Lost`).

pub(crate) mod roster;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use proto::identity::{Identity, Pems};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tracing::error;
use zookeeper_client::{
    Acls, AddWatchMode, Client, Connector, CreateMode, CreateOptions, Error, EventType,
    MultiReadResult, MultiWriteError, PersistentWatcher, SessionState, TlsCa, TlsCerts,
    TlsDynamicCerts, TlsIdentity, TlsOptions,
};

use crate::{
    model::Cluster,
    tree::{self, CLUSTER, EPOCH, FOLDERS, Image, LEADER, Leader, Node, Operation, SLOTS},
};

/// How long a server may take to take a connection, where it is only asked for that.
const REACH: Duration = Duration::from_secs(1);

/// How to come to a cluster's nodes.
#[derive(Clone, Debug)]
pub struct Place {
    /// `HOST:PORT,…` of the ensemble.
    pub servers: String,
    /// The node below which all of the cluster's are.
    pub root: String,
    /// How the servers are known and this controller to them. `None`: in plain text.
    pub tls: Option<Tls>,
    /// `USER:PASSWORD` of the digest scheme. With one, nobody else may read or write the nodes.
    pub auth: Option<String>,
    /// After so long without a word from this process, ZooKeeper takes it for dead.
    pub session_timeout: Duration,
}

impl Place {
    fn acls(&self) -> Acls<'static> {
        match self.auth {
            Some(_) => Acls::creator_all(),
            None => Acls::anyone_all(),
        }
    }
}

/// What connections with TLS need: each that is opened, also within a session, takes what there is then.
#[derive(Clone, Debug)]
pub struct Tls(TlsDynamicCerts);

impl Tls {
    /// As the identity is now.
    pub fn new(identity: &Identity) -> Result<Self, String> {
        Ok(Self(TlsDynamicCerts::new(certs(
            identity.current().pems(),
        )?)))
    }

    /// Follows an identity, until the task is dropped.
    pub async fn follow(self, identity: Arc<Identity>) {
        let mut materials = identity.subscribe();
        materials.mark_changed(); // it may be newer than what this began with
        // It ends with the identity, which this task holds.
        while materials.changed().await.is_ok() {
            let material = Arc::clone(&materials.borrow_and_update());
            match certs(material.pems()) {
                Ok(certs) => self.0.update(certs),
                Err(fault) => {
                    error!(
                        fault,
                        "ZooKeeper's client cannot use the new certificates; those before are"
                    );
                }
            }
        }
    }
}

fn certs(pems: &Pems) -> Result<TlsCerts, String> {
    let builder = TlsCerts::builder();
    let builder = TlsCa::from_pem(&pems.ca).map(|ca| builder.with_ca(ca));
    let certs = builder.and_then(|builder| match &pems.own {
        Some((certificate, key)) => {
            let own = TlsIdentity::from_pem(certificate, key)?;
            builder.with_identity(own).build()
        }
        None => builder.build(),
    });
    certs.map_err(|e| e.to_string())
}

/// Why there is no answer, or none that helps.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The server is out of reach, or the session is. What was asked may have been done.
    #[error("ZooKeeper is out of reach: {0}")]
    Lost(String),
    /// It was not done: the nodes are no longer as they were taken to be, or somebody else leads.
    #[error("the nodes in ZooKeeper have changed: {0}")]
    Conflict(String),
    /// The nodes are not what a controller may go on with; a person has to see to it.
    #[error("the nodes in ZooKeeper cannot be used: {0}")]
    Unusable(String),
}

/// What there was when it was looked.
pub(crate) struct Sight {
    pub(crate) image: Image,
    pub(crate) leader: Holder,
}

/// Who has [`LEADER`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Holder {
    Nobody,
    /// This session.
    Own,
    /// This session, and somebody has written on its node, which is at this version since.
    Defaced(i32),
    /// Another one. `None`: what it says of itself cannot be read.
    Other(Option<Leader>),
}

/// On what a write depends, besides the versions of what it writes.
pub(crate) enum Claim {
    /// This session is to be the leader from now on.
    Take(Leader),
    /// It is to be that anew: its node is at this version, and is replaced.
    Retake(Leader, i32),
    /// It is the leader.
    Have,
}

/// What the watch says.
pub(crate) enum News {
    /// Something has changed.
    Changed,
    /// Changes may have been missed.
    Reconnected,
    /// The connection is lost; it may come back.
    Disconnected,
    /// The session is over.
    Ended(String),
}

/// See the module.
pub(crate) struct Session {
    client: Client,
    watcher: PersistentWatcher,
    acls: Acls<'static>,
    options: CreateOptions<'static>,
    most: Duration,
    session_timeout: Duration,
    /// When that was asked which ZooKeeper answered last.
    heard: Instant,
}

impl Session {
    /// Connects and watches the cluster's nodes; where there are none, it makes the first ones of a
    /// new cluster, if it may.
    pub(crate) async fn open(place: &Place, new: Option<&Cluster>) -> Result<Self, Failure> {
        let options = CreateMode::Persistent.with_acls(place.acls());
        let client = connect(place, |connector| connector).await?;
        let session_timeout = client.session_timeout();
        let most = session_timeout / 3;
        let heard = Instant::now();
        answered(most, client.mkdir(&place.root, &options)).await?;
        let client = client
            .chroot(place.root.as_str())
            .map_err(|_| Failure::Unusable(format!("`{}` is no path of a node", place.root)))?;
        let watch = client.watch("/", AddWatchMode::PersistentRecursive);
        let watcher = answered(most, watch).await?;
        let mut session = Self {
            client,
            watcher,
            acls: place.acls(),
            options,
            most,
            session_timeout,
            heard,
        };
        let client = session.client.clone();
        let stat = session.ask(client.check_stat(CLUSTER)).await?;
        match (stat, new) {
            (Some(_), _) => {}
            (None, Some(new)) => match session.commit(None, &tree::first(new)).await {
                Err(Failure::Conflict(_)) => {} // another controller was faster
                made => made?,
            },
            (None, None) => {
                return Err(Failure::Unusable(format!(
                    "there is no cluster at {}, and there was one: was ZooKeeper wiped, or is it another?",
                    place.root
                )));
            }
        }
        Ok(session)
    }

    /// Until when nobody else can have been made leader instead of this session, with time to spare.
    pub(crate) fn safe_until(&self) -> Instant {
        self.heard + self.session_timeout * 3 / 4
    }

    /// After so long without a word from this process, ZooKeeper takes it for dead.
    pub(crate) fn timeout(&self) -> Duration {
        self.session_timeout
    }

    /// How often to ask for something, so that [`Session::safe_until`] moves on.
    pub(crate) fn pulse(&self) -> Duration {
        self.session_timeout / 6
    }

    /// Has something answered, in time.
    async fn ask<T>(&mut self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
        let sent = Instant::now();
        match timeout_at(self.deadline(sent), call).await {
            Ok(Ok(answer)) => {
                self.heard = sent;
                Ok(answer)
            }
            Ok(Err(e)) => Err(failure(e)),
            Err(_) => Err(late(sent)),
        }
    }

    /// Until when what is sent now may be answered.
    fn deadline(&self, sent: Instant) -> Instant {
        self.safe_until().min(sent + self.most)
    }

    /// Waits for something to happen. Not to be asked again after [`News::Ended`].
    pub(crate) async fn news(&mut self) -> News {
        let mut event = self.watcher.changed().await;
        // One commit is several events, for which it is enough to look once. Where the connection was lost
        // behind them, everything is looked at when it is back.
        while event.event_type != EventType::Session {
            match self.watcher.changed().now_or_never() {
                Some(next) => event = next,
                None => return News::Changed,
            }
        }
        match event.session_state {
            SessionState::Disconnected | SessionState::ConnectedReadOnly => News::Disconnected,
            SessionState::SyncConnected => News::Reconnected,
            ended @ (SessionState::Expired | SessionState::AuthFailed | SessionState::Closed) => {
                News::Ended(format!("its session ended: {ended:?}"))
            }
        }
    }

    /// Watches anew: after a reconnect the library has forgotten the watch (0.11.2), and what happened
    /// meanwhile no watch tells.
    pub(crate) async fn watch_again(&mut self) -> Result<(), Failure> {
        let client = self.client.clone();
        let watch = client.watch("/", AddWatchMode::PersistentRecursive);
        self.watcher = self.ask(watch).await?;
        Ok(())
    }

    /// Whether this is what there still is: the same epoch, and the same leader.
    pub(crate) async fn is_current(&mut self, sight: &Sight) -> Result<bool, Failure> {
        let results = self
            .read_at_once(&[EPOCH.to_owned(), LEADER.to_owned()], &[])
            .await?;
        let mut results = results.into_iter();
        let (epoch, leader) = (results.next(), results.next());
        let Some(MultiReadResult::Data { stat, .. }) = epoch else {
            return Ok(false);
        };
        let leader = self.holder(leader);
        Ok(stat.version == sight.image.epoch_version() && leader == sight.leader)
    }

    /// Reads everything, as it was at one moment, and not before the last write that was answered.
    pub(crate) async fn look(&mut self) -> Result<Sight, Failure> {
        let client = self.client.clone();
        self.ask(client.sync("/")).await?;
        loop {
            let folders: Vec<String> = FOLDERS.map(str::to_owned).to_vec();
            let first = self.read_at_once(&[EPOCH.to_owned()], &folders).await?;
            let mut first = first.into_iter();
            let Some(MultiReadResult::Data { stat: epoch, .. }) = first.next() else {
                return Err(Failure::Unusable(format!("{EPOCH} is missing")));
            };
            let mut paths = [EPOCH, LEADER, CLUSTER, SLOTS].map(str::to_owned).to_vec();
            for (folder, children) in folders.iter().zip(first) {
                let MultiReadResult::Children { children } = children else {
                    return Err(Failure::Unusable(format!("{folder} is missing")));
                };
                paths.extend(
                    children
                        .into_iter()
                        .map(|child| format!("{folder}/{child}")),
                );
            }
            let mut results = self.read_at_once(&paths, &[]).await?;
            let leader = self.holder(Some(results.remove(1)));
            paths.remove(1);
            let mut nodes = BTreeMap::new();
            for (path, result) in paths.into_iter().zip(results) {
                if let MultiReadResult::Data { data, stat } = result {
                    let version = stat.version;
                    nodes.insert(path, Node { data, version });
                }
            }
            let same = nodes
                .get(EPOCH)
                .is_some_and(|node| node.version == epoch.version);
            if same {
                let image = Image::read(&nodes).map_err(Failure::Unusable)?;
                return Ok(Sight { image, leader });
            }
            // There was a commit in between.
        }
    }

    fn holder(&self, leader: Option<MultiReadResult>) -> Holder {
        let Some(MultiReadResult::Data { data, stat }) = leader else {
            return Holder::Nobody;
        };
        match (
            stat.ephemeral_owner == self.client.session_id().0,
            stat.version,
        ) {
            (true, 0) => Holder::Own, // as it was made
            (true, version) => Holder::Defaced(version),
            (false, _) => Holder::Other(serde_json::from_slice(&data).ok()),
        }
    }

    /// Writes all or nothing.
    pub(crate) async fn commit(
        &mut self,
        claim: Option<&Claim>,
        operations: &[Operation],
    ) -> Result<(), Failure> {
        let client = self.client.clone();
        let mut writer = client.new_multi_writer();
        let ephemeral = CreateMode::Ephemeral.with_acls(self.acls);
        let added = (|| {
            match claim {
                Some(Claim::Take(leader)) => {
                    writer.add_create(LEADER, &tree::json(leader), &ephemeral)?;
                }
                Some(Claim::Retake(leader, version)) => {
                    writer.add_delete(LEADER, Some(*version))?;
                    writer.add_create(LEADER, &tree::json(leader), &ephemeral)?;
                }
                // Nobody but whoever edits by hand writes it after it was made. Another one's would be of
                // version 0, too, but whoever made it has also set the epoch.
                Some(Claim::Have) => writer.add_check_version(LEADER, 0)?,
                None => {}
            }
            for operation in operations {
                match operation {
                    Operation::Create { path, data } => {
                        writer.add_create(path, data, &self.options)?;
                    }
                    Operation::Set {
                        path,
                        data,
                        version,
                    } => {
                        writer.add_set_data(path, data, Some(*version))?;
                    }
                    Operation::Delete { path, version } => {
                        writer.add_delete(path, Some(*version))?;
                    }
                }
            }
            Ok(())
        })();
        added.map_err(|e: Error| Failure::Unusable(e.to_string()))?;
        let sent = Instant::now();
        let written = timeout_at(self.deadline(sent), writer.commit()).await;
        match written {
            Ok(Ok(_)) => {
                self.heard = sent;
                Ok(())
            }
            Ok(Err(MultiWriteError::OperationFailed { index, source })) => {
                self.heard = sent;
                Err(Failure::Conflict(format!("operation {index}: {source}")))
            }
            Ok(Err(MultiWriteError::RequestFailed { source })) => Err(failure(source)),
            Err(_) => Err(late(sent)),
        }
    }

    /// Reads the data of nodes, then the children of others, at one moment.
    async fn read_at_once(
        &mut self,
        data: &[String],
        children: &[String],
    ) -> Result<Vec<MultiReadResult>, Failure> {
        let client = self.client.clone();
        let mut reader = client.new_multi_reader();
        let added = data.iter().try_for_each(|path| reader.add_get_data(path));
        let added = added.and_then(|()| {
            children
                .iter()
                .try_for_each(|path| reader.add_get_children(path))
        });
        added.map_err(|e| Failure::Unusable(e.to_string()))?;
        self.ask(reader.commit()).await
    }
}

/// Opens a session.
async fn connect(
    place: &Place,
    adjust: impl FnOnce(Connector) -> Connector,
) -> Result<Client, Failure> {
    let mut connector = adjust(Client::connector()).with_session_timeout(place.session_timeout);
    if let Some(auth) = &place.auth {
        connector = connector.with_auth("digest", auth.as_bytes());
    }
    // The library gives up by itself after the session's time-out.
    let most = place.session_timeout * 2;
    // With TLS compiled in, the library's futures are large.
    let Some(Tls(certs)) = &place.tls else {
        return answered(most, Box::pin(connector.connect(&place.servers))).await;
    };
    let connector = connector.with_tls(TlsOptions::new().with_certs(certs.clone()));
    let connecting = Box::pin(connector.secure_connect(&place.servers));
    match answered(most, connecting).await {
        Err(failure) => Err(without_tls(&place.servers, failure).await),
        connected => connected,
    }
}

/// The library does not say why there is no session. What can be said is whether somebody is there.
async fn without_tls(servers: &str, failure: Failure) -> Failure {
    for server in servers.split(',') {
        if let Ok(Ok(_)) = timeout(REACH, TcpStream::connect(server)).await {
            return Failure::Lost(format!(
                "{server} takes connections, and no session over TLS came about ({failure}): that must be \
                 its secure port, its certificate must be for that name and signed by one of \
                 --zookeeper-ca-file, and it must accept that of --zookeeper-cert-file; \
                 `--log info,zookeeper_client=debug` tells what failed"
            ));
        }
    }
    failure
}

async fn answered<T>(
    most: Duration,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, Failure> {
    match timeout(most, call).await {
        Ok(answer) => answer.map_err(failure),
        Err(_) => Err(Failure::Lost(format!("no answer within {most:?}"))),
    }
}

/// Of a call that was given up.
fn late(sent: Instant) -> Failure {
    Failure::Lost(format!("no answer within {:.1?}", sent.elapsed()))
}

/// Of a call that failed as a whole.
fn failure(error: Error) -> Failure {
    match error {
        Error::NoAuth | Error::AuthFailed => Failure::Unusable(format!(
            "{error}: --zookeeper-auth-file must have the secret of whoever made them"
        )),
        Error::InvalidAcl | Error::BadArguments(_) => Failure::Unusable(error.to_string()),
        Error::NoNode | Error::NodeExists | Error::BadVersion | Error::NotEmpty => {
            Failure::Conflict(error.to_string())
        }
        _ => Failure::Lost(error.to_string()),
    }
}
