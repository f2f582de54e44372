//! A cluster of Sluice: two groups of one server, a controller, two proxies.

use std::time::{Duration, Instant};

use proto::{
    Slot,
    v1::{self, admin_service_client::AdminServiceClient, migration::Phase},
};
use tests::{Cluster, Server};
use tokio::time::timeout;
use tonic::transport::Channel;

use super::{Moved, Way, data};

/// How long one step of a migration may take at most.
const PATIENCE: Duration = Duration::from_secs(600);
/// How many slots move: the first ones.
pub(super) const HALF: usize = 512;

/// See the module. The first group has the lower half of the slots at first; it moves.
pub(super) struct Sluice {
    cluster: Cluster,
    admin: AdminServiceClient<Channel>,
}

impl Sluice {
    pub(super) async fn start() -> Self {
        let builder = Cluster::builder().groups(2).proxies(2);
        let cluster = builder.server_args(&["--appendonly", "no"]).start().await;
        let admin = cluster.controller.admin().await;
        Self { cluster, admin }
    }

    /// The groups' servers.
    pub(super) fn servers(&self) -> [&Server; 2] {
        [0, 1].map(|group| &self.cluster.groups[group][0])
    }

    /// Where clients connect.
    pub(super) fn ports(&self) -> [u16; 2] {
        [0, 1].map(|proxy| {
            let addr = &self.cluster.proxies[proxy].addr;
            let port = addr.rsplit(':').next();
            port.and_then(|port| port.parse().ok()).unwrap()
        })
    }

    /// Has slots moved from one group to the other; of so many keys a second at most, if that is given.
    pub(super) async fn migrate(&mut self, slots: &str, way: Way, pace: Option<u32>) -> Moved {
        let (from, to) = way.ends();
        let source = self.servers()[from].port;
        let before = data::count(source);
        let watch = v1::WatchEventsRequest::default();
        let mut events = self.admin.watch_events(watch).await.unwrap().into_inner();
        let begun = Instant::now();
        let request = v1::CreateMigrationRequest {
            slots: slots.to_owned(),
            target_group_id: format!("g{}", to + 1),
            rate: pace.unwrap_or_default(),
            ..v1::CreateMigrationRequest::default()
        };
        let created = self.admin.create_migration(request).await.unwrap();
        let id = created.into_inner().id;
        let (mut first_hold, mut owned) = (None, None);
        let (mut held, mut holds) = (None, Vec::new());
        let last = loop {
            let event = timeout(PATIENCE, events.message()).await;
            let event = event.expect("it does not end").unwrap().unwrap().event;
            let event = event.unwrap_or_default();
            if event.subject != format!("migration/{id}") {
                continue;
            }
            let at = event.time.unwrap_or_default();
            let at = Duration::new(at.seconds as u64, at.nanos as u32);
            holds.extend(held.take().map(|since| at - since));
            held = event.message.contains("holds slots").then_some(at);
            if held.is_some() {
                first_hold.get_or_insert_with(Instant::now);
            }
            let request = v1::GetMigrationRequest { id: id.clone() };
            let now = self.admin.get_migration(request).await.unwrap();
            let now = now.into_inner();
            match now.phase() {
                Phase::Succeeded | Phase::Failed | Phase::Cancelled => break now,
                Phase::Committed | Phase::Reaping => _ = owned.get_or_insert_with(Instant::now),
                _ => {}
            }
        };
        let ended = Instant::now();
        Moved {
            begun,
            first_hold: first_hold.unwrap_or(ended),
            owned: owned.unwrap_or(ended),
            ended,
            keys: before.saturating_sub(data::count(source)),
            holds,
            failure: (last.phase() != Phase::Succeeded).then_some(last.reason),
        }
    }
}

/// Whether a key is in the half that moves.
pub(super) fn moves(key: &str) -> bool {
    Slot::of_key(key.as_bytes()).index() < HALF
}

/// One of so many equal parts of that half.
pub(super) fn slice(number: usize, of: usize) -> String {
    let length = HALF / of;
    format!("{}-{}", number * length, (number + 1) * length - 1)
}
