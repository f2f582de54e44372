//! Where the topology comes from: the stream to a controller. The only writer of the topology.
//!
//! Follows the protocol that `TopologyService` describes: hello; then each snapshot or delta becomes a
//! whole, validated topology, is handed to the workers, and is acknowledged once all of them route by
//! it; what is wrong is refused, and the old one kept. When the stream ends it is opened again, to any
//! controller, for as long as the process lives. Nothing here ever stops the workers from serving.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures_util::future::select_all;
use proto::{
    GroupId, ServerAddr, Topology, Version,
    settled::Settled,
    tls::{self, root_cause},
    topology::InvalidTopology,
    v1::{
        self, subscribe_request, subscribe_response, topology_service_client::TopologyServiceClient,
    },
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::{
    backoff::Backoff,
    config::Controllers,
    metrics::Proxy,
    settling::report::{self, Report},
};

/// Between two attempts to connect: doubled each time, up to the second. Each goes to the next controller, and a new
/// leader is to be found within a second or so, wherever it stands among them.
const RECONNECT: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(500)];
/// How often a controller is asked whether it lives, and how long it may take to say so.
const ALIVE_EVERY: Duration = Duration::from_secs(2);
const ALIVE_MAX: Duration = Duration::from_secs(3);
/// A controller that says nothing of its own for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(15);
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How long the workers may take to route by a new topology. They only have to end their turn.
const SWITCH_MAX: Duration = Duration::from_secs(5);
const STATS_EVERY: Duration = Duration::from_secs(1);
/// A topology of 1024 slots and groups with many replicas stays far below it.
const MESSAGE_MAX: usize = 16 << 20;

/// The proxy's side of the stream.
pub(crate) struct Control {
    pub(crate) proxy: Arc<Proxy>,
    /// What the hello says of this proxy; its version is filled in each time.
    pub(crate) hello: v1::Hello,
    /// Read by the workers.
    pub(crate) topology: watch::Sender<Option<Arc<Topology>>>,
    /// What each worker routes by.
    pub(crate) applied: Vec<watch::Receiver<Option<Version>>>,
    /// What all of them route by.
    pub(crate) switched: watch::Sender<Option<Version>>,
    /// What each worker has no longer under way.
    pub(crate) settled: Vec<watch::Receiver<Report>>,
}

impl Control {
    /// Stays subscribed until the task is dropped.
    pub(crate) async fn run(self, controllers: Controllers) {
        let mut backoff = Backoff::new(RECONNECT[0], RECONNECT[1]);
        let mut endpoints = controllers.addresses.iter().cycle();
        // Each failure is told once, not at every attempt.
        let mut told = String::new();
        loop {
            let endpoint = endpoints.next().expect("at least one controller");
            let since = Instant::now();
            let ended = self.subscribe(endpoint, &controllers).await;
            self.proxy.is_subscribed.store(false, Relaxed);
            let why = match ended {
                Ok(()) => "it ended the stream".to_owned(),
                Err(status) => format!("{:?}: {}", status.code(), said(&status)),
            };
            if since.elapsed() > SILENCE_MAX {
                backoff.reset();
            }
            if why != told || since.elapsed() > SILENCE_MAX {
                let serves = self.topology.borrow().is_some();
                tracing::warn!(controller = %endpoint, why, serves, "not subscribed");
                told = why;
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// One stream, from hello to its end.
    async fn subscribe(
        &self,
        endpoint: &ServerAddr,
        controllers: &Controllers,
    ) -> Result<(), tonic::Status> {
        let materials = controllers.identity.as_ref().map(|own| own.subscribe());
        let channel = tls::connect(endpoint, materials, CONNECT_MAX, |endpoint| {
            endpoint
                .http2_keep_alive_interval(ALIVE_EVERY)
                .keep_alive_timeout(ALIVE_MAX)
                .keep_alive_while_idle(true)
        })
        .await
        .map_err(tonic::Status::unavailable)?;
        // The hello says what all workers route by; a worker may still be on its way there.
        let newest = self
            .topology
            .borrow()
            .as_ref()
            .map(|topology| topology.version());
        if let Some(newest) = newest {
            self.wait_switched(newest).await?;
        }
        // Answers and one set of counters; whoever sends waits while it is full.
        let (say, said) = mpsc::channel(4);
        send(&say, subscribe_request::Message::Hello(self.hello())).await?;
        let mut client = TopologyServiceClient::new(channel).max_decoding_message_size(MESSAGE_MAX);
        let answer = timeout(CONNECT_MAX, client.subscribe(ReceiverStream::new(said)))
            .await
            .map_err(|_| tonic::Status::deadline_exceeded("it does not answer"))??;
        self.follow(answer.into_inner(), &say, endpoint).await
    }

    async fn follow(
        &self,
        mut stream: Streaming<v1::SubscribeResponse>,
        say: &mpsc::Sender<v1::SubscribeRequest>,
        endpoint: &ServerAddr,
    ) -> Result<(), tonic::Status> {
        let mut subscribed = false;
        let mut stats = interval(STATS_EVERY);
        stats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        // What was said on another stream counts for nothing here.
        let mut reports = self.settled.clone();
        let mut told = Told::default();
        loop {
            tokio::select! {
                message = stream.message() => {
                    let Some(message) = message? else { return Ok(()) };
                    heard = Instant::now();
                    // Only an answer shows that the hello was accepted.
                    if !std::mem::replace(&mut subscribed, true) {
                        self.proxy.is_subscribed.store(true, Relaxed);
                        tracing::info!(controller = %endpoint, "subscribed");
                    }
                    if let Some(answer) = self.take(message).await? {
                        send(say, answer).await?;
                    }
                }
                () = any_changed(&mut reports) => {
                    for settled in self.newly_settled(&mut told) {
                        let settled = v1::Settled::from(&settled);
                        send(say, subscribe_request::Message::Settled(settled)).await?;
                    }
                }
                _ = stats.tick() => {
                    if heard.elapsed() > SILENCE_MAX {
                        return Err(tonic::Status::deadline_exceeded("it has gone silent"));
                    }
                    send(say, subscribe_request::Message::Stats(self.stats())).await?;
                }
            }
        }
    }

    /// Acts on a message. What to answer, if anything.
    async fn take(
        &self,
        message: v1::SubscribeResponse,
    ) -> Result<Option<subscribe_request::Message>, tonic::Status> {
        let have = self.topology.borrow().clone();
        let (version, next) = match message.message {
            Some(subscribe_response::Message::Snapshot(snapshot)) => (
                snapshot.version,
                accept_snapshot(have.as_deref(), &snapshot),
            ),
            Some(subscribe_response::Message::Delta(delta)) => {
                (delta.version, accept_delta(have.as_deref(), &delta))
            }
            Some(subscribe_response::Message::KeepAlive(_)) | None => return Ok(None),
        };
        match next {
            Ok(topology) => {
                let version = self.publish(topology).await?;
                Ok(Some(subscribe_request::Message::Ack(v1::Ack {
                    version: Some(version.into()),
                })))
            }
            Err(refused) => {
                let reason = refused.to_string();
                tracing::error!(reason, "refused a topology; the old one is kept");
                Ok(Some(subscribe_request::Message::Nack(v1::Nack {
                    version,
                    reason,
                })))
            }
        }
    }

    /// Has every worker route by a topology; returns once they do.
    pub(crate) async fn publish(&self, topology: Topology) -> Result<Version, tonic::Status> {
        let version = topology.version();
        self.topology.send_replace(Some(Arc::new(topology)));
        self.wait_switched(version).await?;
        tracing::info!(%version, "routing by a new topology");
        Ok(version)
    }

    /// Returns once every worker routes by `version` or a newer one.
    async fn wait_switched(&self, version: Version) -> Result<(), tonic::Status> {
        for applied in &self.applied {
            let mut applied = applied.clone();
            let switched = applied.wait_for(|have| have.is_some_and(|have| have >= version));
            match timeout(SWITCH_MAX, switched).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return Err(tonic::Status::cancelled("this proxy is stopping")),
                Err(_) => return Err(tonic::Status::internal("a worker of this proxy hangs")),
            }
        }
        self.switched.send_replace(Some(version));
        Ok(())
    }

    /// The groups of the version that all workers route by that have settled, and were not told of.
    fn newly_settled(&self, told: &mut Told) -> Vec<Settled> {
        let Some(version) = *self.switched.borrow() else {
            return Vec::new();
        };
        let reports: Vec<Report> = self.settled.iter().map(|r| r.borrow().clone()).collect();
        let all = report::settled(&reports, version);
        all.into_iter().filter(|s| told.is_new(s)).collect()
    }

    fn hello(&self) -> v1::Hello {
        let have = self.topology.borrow();
        v1::Hello {
            cluster_id: have
                .as_ref()
                .map(|t| t.cluster_id().to_string())
                .unwrap_or_default(),
            last_version: have.as_ref().map(|t| t.version().into()),
            ..self.hello.clone()
        }
    }

    fn stats(&self) -> v1::ProxyStats {
        let total = self.proxy.totals();
        v1::ProxyStats {
            sessions: total.sessions,
            requests_total: total.requests,
            errors_total: total.errors,
        }
    }
}

async fn send(
    say: &mpsc::Sender<v1::SubscribeRequest>,
    message: subscribe_request::Message,
) -> Result<(), tonic::Status> {
    let request = v1::SubscribeRequest {
        message: Some(message),
    };
    match timeout(SILENCE_MAX, say.send(request)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(tonic::Status::unavailable("it closed the stream")),
        Err(_) => Err(tonic::Status::deadline_exceeded("it does not listen")),
    }
}

/// What the controller said; or, where the connection broke, why.
fn said(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        Some(_) => root_cause(status),
        None => status.message().to_owned(),
    }
}

/// Of which groups it was said, for which version, that they have settled.
#[derive(Default)]
struct Told {
    version: Option<Version>,
    groups: BTreeSet<GroupId>,
}

impl Told {
    /// Whether it is told for the first time.
    fn is_new(&mut self, settled: &Settled) -> bool {
        if self.version.replace(settled.version) != Some(settled.version) {
            self.groups.clear();
        }
        self.groups.insert(settled.group.clone())
    }
}

/// Returns once one of them is another than when it was last looked at.
async fn any_changed(reports: &mut [watch::Receiver<Report>]) {
    let changed = reports.iter_mut().map(|report| {
        Box::pin(async {
            if report.changed().await.is_err() {
                std::future::pending::<()>().await; // its worker has ended
            }
        })
    });
    select_all(changed).await;
}

/// Why a topology is not applied.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Invalid(#[from] InvalidTopology),
    #[error("version {new} is not newer than {have}")]
    NotNewer { new: Version, have: Version },
    #[error("it belongs to cluster {new}, and this proxy serves cluster {have}")]
    OtherCluster { new: String, have: String },
    #[error("a delta came before any snapshot")]
    NoBase,
}

/// The topology of a snapshot, if it is to replace the one there is. `have` stays as it is.
pub fn accept_snapshot(
    have: Option<&Topology>,
    snapshot: &v1::Topology,
) -> Result<Topology, Refused> {
    let new = Topology::try_from(snapshot)?;
    if let Some(have) = have {
        if new.cluster_id() != have.cluster_id() {
            return Err(Refused::OtherCluster {
                new: new.cluster_id().to_string(),
                have: have.cluster_id().to_string(),
            });
        }
        check_newer(have, &new)?;
    }
    Ok(new)
}

/// The topology that a delta leads to, if it is to replace the one there is. `have` stays as it is.
pub fn accept_delta(
    have: Option<&Topology>,
    delta: &v1::TopologyDelta,
) -> Result<Topology, Refused> {
    let have = have.ok_or(Refused::NoBase)?;
    let new = have.apply(delta)?;
    check_newer(have, &new)?;
    Ok(new)
}

fn check_newer(have: &Topology, new: &Topology) -> Result<(), Refused> {
    let (new, have) = (new.version(), have.version());
    if new > have {
        Ok(())
    } else {
        Err(Refused::NotNewer { new, have })
    }
}

#[cfg(test)]
mod tests {
    use proto::{ClusterId, SlotState};

    use super::*;

    fn topology(cluster: &str, leader_term: u64, epoch: u64) -> Topology {
        let version = Version { leader_term, epoch };
        Topology::new(ClusterId::new(cluster).unwrap(), version, [], |_| {
            (None, SlotState::Serving)
        })
        .unwrap()
    }

    #[test]
    fn only_a_newer_version_of_the_same_cluster_is_accepted() {
        let have = topology("c", 2, 5);
        for (cluster, term, epoch, error) in [
            ("c", 2, 6, ""),
            ("c", 3, 1, ""),
            ("c", 2, 5, "not newer"),
            ("c", 2, 4, "not newer"),
            ("c", 1, 9, "not newer"),
            ("d", 9, 9, "belongs to cluster d"),
        ] {
            let wire = v1::Topology::from(&topology(cluster, term, epoch));
            let got = accept_snapshot(Some(&have), &wire).map(|_| ()).err();
            let got = got.map(|e| e.to_string()).unwrap_or_default();
            assert!(
                got.contains(error) && got.is_empty() == error.is_empty(),
                "{error}: {got}"
            );
            assert!(accept_snapshot(None, &wire).is_ok());
        }
    }

    #[test]
    fn a_delta_needs_its_base() {
        let (a, b) = (topology("c", 1, 1), topology("c", 1, 2));
        let delta = a.diff(&b);
        assert_eq!(accept_delta(Some(&a), &delta).unwrap(), b);
        assert!(matches!(accept_delta(None, &delta), Err(Refused::NoBase)));
        assert!(matches!(
            accept_delta(Some(&b), &delta),
            Err(Refused::Invalid(_))
        ));
        let backwards = b.diff(&a);
        assert!(matches!(
            accept_delta(Some(&b), &backwards),
            Err(Refused::NotNewer { .. })
        ));
    }
}
