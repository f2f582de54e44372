//! `AdminService`: manages the cluster. The contract is in `admin.proto`.
//!
//! Every mutation goes the same way: parse → (ask the servers, and fence them) → decide and commit → show what is
//! now. Reads take the newest snapshot. Nothing is decided here.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use prost::Message;
use proto::{
    GroupId, MigrationId, ServerAddr,
    v1::{admin_service_server::AdminService, *},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    admission, backup,
    change::{self, Decision, Refusal},
    clock,
    events::{Event, Position},
    fence::{Fences, Spare, Target},
    migration::{Manner, Wish},
    model::{self, Role},
    orchestrator::Tools,
    page::page,
    parse,
    probe::Probe,
    prober::Observations,
    registry::Registry,
    retire::Retirement,
    snapshot::Snapshot,
    store::{CommitError, Store},
    topology, view,
};

mod admit;
mod preflight;
mod verification;
mod watcher;
mod weigher;

use verification::Verification;
use watcher::{Watcher, lost};
use weigher::Weigher;

/// How many servers show their fence records at the same time.
const INSPECTIONS_AT_ONCE: usize = 16;

/// How long a server may take to show its fence record.
const INSPECTION_DEADLINE: Duration = Duration::from_secs(2);

/// See the module.
pub struct Admin {
    /// Decides, commits and remembers.
    pub store: Store,
    /// Who is connected.
    pub registry: Registry,
    /// Asks servers that are to be admitted.
    pub probe: Probe,
    /// Fences them.
    pub fences: Fences,
    /// Shuts proxies out that are to be forgotten.
    pub retirement: Retirement,
    /// What the servers said last.
    pub observations: watch::Receiver<Observations>,
    /// What migrations take, and where they say what they do.
    pub tools: Tools,
    /// Ends all streams.
    pub stopping: CancellationToken,
}

/// How a mutation is to be taken.
struct Mode {
    validate_only: bool,
    /// To be remembered. `None`: the caller gave no id.
    request: Option<model::Request>,
}

/// The mode of a mutating request: each has the two fields, and no type in common.
macro_rules! mode {
    ($method:expr, $request:expr) => {
        Mode::new(
            $method,
            &$request,
            &$request.request_id,
            $request.validate_only,
        )
    };
}

impl Mode {
    fn new<M: Message>(
        method: &str,
        content: &M,
        request_id: &str,
        validate_only: bool,
    ) -> Result<Self, Refusal> {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(method.as_bytes());
        hasher.update(&content.encode_to_vec());
        let content = hasher.finalize();
        let request = parse::request_id(request_id)?.map(|id| model::Request { id, content });
        Ok(Self {
            validate_only,
            request,
        })
    }

    fn is_repetition(&self, now: &Snapshot) -> Result<bool, Refusal> {
        match &self.request {
            Some(request) => change::is_repetition(now, request),
            None => Ok(false),
        }
    }
}

impl Admin {
    /// Decides and commits, or only decides. Returns what is, or would be, after it.
    async fn mutate(
        &self,
        mode: Mode,
        decide: impl Fn(&Snapshot) -> Decision + Send + 'static,
    ) -> Result<Arc<Snapshot>, Status> {
        let Mode {
            validate_only,
            request,
        } = mode;
        let decide = move |now: &Snapshot| match &request {
            Some(request) => change::once(now, request, &decide),
            None => decide(now),
        };
        if validate_only {
            let now = self.store.snapshot();
            let change = decide(&now)?;
            return Ok(Arc::new(now.preview(&change)));
        }
        Ok(self.store.commit(decide).await?)
    }

    /// The newest snapshot, for what only a leader may do.
    fn leading(&self) -> Result<Arc<Snapshot>, CommitError> {
        let leading = self.store.leading();
        leading.ok_or_else(|| CommitError::NotLeading(self.store.standing().borrow().clone()))
    }

    /// A server's fence record, as it is found there now.
    async fn show_fence(&self, now: &Snapshot, group: GroupId, server: model::Server) -> Fence {
        let at = Target {
            address: server.address.clone(),
            group,
        };
        let deadline = Instant::now() + INSPECTION_DEADLINE;
        let found = self.fences.inspect(&at, deadline).await;
        view::fence(now, &at.group, &server, &found)
    }

    fn show_group(&self, now: &Snapshot, id: &GroupId) -> Result<Response<Group>, Status> {
        let group = change::find_group(now, id)?;
        Ok(Response::new(view::group(now, group)))
    }

    async fn wish(
        &self,
        method: &str,
        wish: Wish,
        request: Request<ChangeMigrationRequest>,
    ) -> Result<Response<Migration>, Status> {
        let request = request.into_inner();
        let id = parse::migration_id("id", &request.id)?;
        let expected = request.expected_revision;
        let mode = mode!(method, request)?;
        let migration = id.clone();
        let after = self
            .mutate(mode, move |now| {
                change::wish(now, &migration, wish, expected)
            })
            .await?;
        self.show_migration(&after, &id)
    }

    fn show_migration(
        &self,
        now: &Snapshot,
        id: &MigrationId,
    ) -> Result<Response<Migration>, Status> {
        let migration = change::find_migration(now, id)?;
        let activities = self.tools.activities.borrow();
        Ok(Response::new(view::migration(
            migration,
            activities.get(id),
        )))
    }

    fn show_server(
        &self,
        now: &Snapshot,
        address: &ServerAddr,
    ) -> Result<Response<Server>, Status> {
        let (group, server) = change::find_server(now, address)?;
        let observations = self.observations.borrow();
        let observed = observations.get(address);
        Ok(Response::new(view::server(group, server, observed)))
    }
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn get_cluster(
        &self,
        _: Request<GetClusterRequest>,
    ) -> Result<Response<Cluster>, Status> {
        let standing = self.store.standing().borrow().clone();
        Ok(Response::new(view::cluster(
            &self.store.snapshot(),
            &standing,
        )))
    }

    async fn export_cluster(
        &self,
        _: Request<ExportClusterRequest>,
    ) -> Result<Response<Backup>, Status> {
        let now = self.store.snapshot();
        Ok(Response::new(backup::write(&now, clock::now_ms())))
    }

    async fn restore_cluster(
        &self,
        request: Request<RestoreClusterRequest>,
    ) -> Result<Response<Cluster>, Status> {
        let request = request.into_inner();
        let from = backup::read(request.backup.as_ref())?;
        let terms = backup::Terms {
            replace: request.replace,
            without_proxies: request.without_proxies,
            expected_revision: request.expected_revision,
        };
        let mode = mode!("RestoreCluster", request)?;
        let registry = self.registry.clone();
        let after = self
            .mutate(mode, move |now| {
                backup::restore(now, &from, terms, registry.has_connected())
            })
            .await?;
        let standing = self.store.standing().borrow().clone();
        Ok(Response::new(view::cluster(&after, &standing)))
    }

    async fn list_groups(
        &self,
        request: Request<ListGroupsRequest>,
    ) -> Result<Response<ListGroupsResponse>, Status> {
        let request = request.into_inner();
        let now = self.store.snapshot();
        let (groups, next_page_token) = page(
            now.groups.values(),
            |group| group.id.to_string(),
            request.page_size,
            &request.page_token,
        );
        Ok(Response::new(ListGroupsResponse {
            groups: groups.into_iter().map(|g| view::group(&now, g)).collect(),
            next_page_token,
            revision: now.head.revision,
        }))
    }

    async fn get_group(
        &self,
        request: Request<GetGroupRequest>,
    ) -> Result<Response<Group>, Status> {
        let id = parse::group_id("id", &request.get_ref().id)?;
        self.show_group(&self.store.snapshot(), &id)
    }

    async fn create_group(
        &self,
        request: Request<CreateGroupRequest>,
    ) -> Result<Response<Group>, Status> {
        let request = request.into_inner();
        let id = parse::group_id("id", &request.id)?;
        let description = parse::description("description", &request.description)?;
        let candidates = parse::candidates(&request.servers)?;
        let mode = mode!("CreateGroup", request)?;
        let now = self.store.snapshot();
        if mode.is_repetition(&now)? {
            return self.show_group(&now, &id);
        }
        let take_over = request.take_over;
        let servers = self.admit_group(&now, &id, candidates, take_over).await?;
        let group = model::Group::new(id.clone(), description, servers);
        if !mode.validate_only {
            let nobody = BTreeSet::new();
            self.fence(&group, Spare::Only(&nobody), take_over).await?;
        }
        let after = self
            .mutate(mode, move |now| change::create_group(now, &group))
            .await?;
        self.show_group(&after, &id)
    }

    async fn update_group(
        &self,
        request: Request<UpdateGroupRequest>,
    ) -> Result<Response<Group>, Status> {
        let request = request.into_inner();
        let id = parse::group_id("id", &request.id)?;
        let description = parse::description("description", &request.description)?;
        let expected = request.expected_revision;
        let mode = mode!("UpdateGroup", request)?;
        let group = id.clone();
        let after = self
            .mutate(mode, move |now| {
                change::update_group(now, &group, &description, expected)
            })
            .await?;
        self.show_group(&after, &id)
    }

    async fn delete_group(
        &self,
        request: Request<DeleteGroupRequest>,
    ) -> Result<Response<DeleteGroupResponse>, Status> {
        let request = request.into_inner();
        let id = parse::group_id("id", &request.id)?;
        let expected = request.expected_revision;
        let mode = mode!("DeleteGroup", request)?;
        let after = self
            .mutate(mode, move |now| change::delete_group(now, &id, expected))
            .await?;
        let revision = after.head.revision;
        Ok(Response::new(DeleteGroupResponse { revision }))
    }

    async fn list_servers(
        &self,
        request: Request<ListServersRequest>,
    ) -> Result<Response<ListServersResponse>, Status> {
        let request = request.into_inner();
        let now = self.store.snapshot();
        let listed = servers_of(&now, &request.group_id)?;
        let (servers, next_page_token) =
            page(listed, place_of, request.page_size, &request.page_token);
        let observations = self.observations.borrow();
        let servers = servers
            .into_iter()
            .map(|(group, server)| view::server(group, server, observations.get(&server.address)));
        Ok(Response::new(ListServersResponse {
            servers: servers.collect(),
            next_page_token,
            revision: now.head.revision,
        }))
    }

    async fn get_server(
        &self,
        request: Request<GetServerRequest>,
    ) -> Result<Response<Server>, Status> {
        let address = parse::address("address", &request.get_ref().address)?;
        self.show_server(&self.store.snapshot(), &address)
    }

    async fn create_server(
        &self,
        request: Request<CreateServerRequest>,
    ) -> Result<Response<Server>, Status> {
        let request = request.into_inner();
        let group = parse::group_id("group_id", &request.group_id)?;
        let candidate = match &request.server {
            Some(spec) => parse::candidate("server", spec)?,
            None => return Err(Refusal::field("server", "must be set").into()),
        };
        let expected = request.expected_revision;
        let mode = mode!("CreateServer", request)?;
        let now = self.store.snapshot();
        if mode.is_repetition(&now)? {
            return self.show_server(&now, &candidate.address);
        }
        let server = self
            .admit_server(&now, &group, &candidate, expected, request.take_over)
            .await?;
        let after = self
            .mutate(mode, move |now| {
                change::create_server(now, &group, &server, expected)
            })
            .await?;
        self.show_server(&after, &candidate.address)
    }

    async fn update_server(
        &self,
        request: Request<UpdateServerRequest>,
    ) -> Result<Response<Server>, Status> {
        let request = request.into_inner();
        let address = parse::address("address", &request.address)?;
        let zone = parse::zone("zone", &request.zone)?;
        let expected = request.expected_revision;
        let mode = mode!("UpdateServer", request)?;
        let server = address.clone();
        let after = self
            .mutate(mode, move |now| {
                change::update_server(now, &server, &zone, expected)
            })
            .await?;
        self.show_server(&after, &address)
    }

    async fn delete_server(
        &self,
        request: Request<DeleteServerRequest>,
    ) -> Result<Response<DeleteServerResponse>, Status> {
        let request = request.into_inner();
        let address = parse::address("address", &request.address)?;
        let expected = request.expected_revision;
        let mode = mode!("DeleteServer", request)?;
        let after = self
            .mutate(mode, move |now| {
                change::delete_server(now, &address, expected)
            })
            .await?;
        let revision = after.head.revision;
        Ok(Response::new(DeleteServerResponse { revision }))
    }

    async fn get_slot_map(
        &self,
        _: Request<GetSlotMapRequest>,
    ) -> Result<Response<SlotMap>, Status> {
        let now = self.store.snapshot();
        Ok(Response::new(view::slot_map(&now.slots)))
    }

    async fn assign_slots(
        &self,
        request: Request<AssignSlotsRequest>,
    ) -> Result<Response<SlotMap>, Status> {
        let request = request.into_inner();
        let wanted = parse::assignment(request.assignment.as_ref())?;
        let expected = request.expected_revision;
        let mode = mode!("AssignSlots", request)?;
        let after = self
            .mutate(mode, move |now| {
                change::assign_slots(now, &wanted, expected)
            })
            .await?;
        Ok(Response::new(view::slot_map(&after.slots)))
    }

    async fn list_migrations(
        &self,
        request: Request<ListMigrationsRequest>,
    ) -> Result<Response<ListMigrationsResponse>, Status> {
        let request = request.into_inner();
        let now = self.store.snapshot();
        let (listed, next_page_token) = page(
            now.migrations.values(),
            |migration| migration.id.to_string(),
            request.page_size,
            &request.page_token,
        );
        let activities = self.tools.activities.borrow();
        let migrations = listed
            .into_iter()
            .map(|m| view::migration(m, activities.get(&m.id)));
        Ok(Response::new(ListMigrationsResponse {
            migrations: migrations.collect(),
            next_page_token,
            revision: now.head.revision,
        }))
    }

    async fn get_migration(
        &self,
        request: Request<GetMigrationRequest>,
    ) -> Result<Response<Migration>, Status> {
        let id = parse::migration_id("id", &request.get_ref().id)?;
        self.show_migration(&self.store.snapshot(), &id)
    }

    async fn create_migration(
        &self,
        request: Request<CreateMigrationRequest>,
    ) -> Result<Response<Migration>, Status> {
        let request = request.into_inner();
        let id = match request.id.as_str() {
            "" => None,
            text => Some(parse::migration_id("id", text)?),
        };
        let slots = parse::slots("slots", &request.slots)?;
        let target = parse::group_id("target_group_id", &request.target_group_id)?;
        let manner = Manner {
            rate: parse::rate(request.rate),
            keep_source: request.keep_source,
        };
        let allowed = request.allow_direct_writers;
        let mode = mode!("CreateMigration", request)?;
        let decide = move |now: &Snapshot| {
            change::create_migration(now, id.as_ref(), slots, &target, manner)
        };
        self.look_at_servers(&mode, allowed, &decide).await?;
        let after = self.mutate(mode, decide).await?;
        // It is not over; or the request was taken before, and the newest is what became of it.
        let same = after.migrations.values().filter(|m| m.slots == slots);
        let made = same.max_by_key(|m| (!m.is_over(), m.revision));
        let made = made.ok_or_else(change::migration_forgotten)?;
        self.show_migration(&after, &made.id)
    }

    async fn rebalance(
        &self,
        request: Request<RebalanceRequest>,
    ) -> Result<Response<RebalanceResponse>, Status> {
        let request = request.into_inner();
        let weights = parse::weights("weights", &request.weights)?;
        let (rate, allowed) = (parse::rate(request.rate), request.allow_direct_writers);
        let measure = parse::measure("by", request.by)?;
        let mode = mode!("Rebalance", request)?;
        let now = match measure {
            Some(_) => self.leading()?,
            None => self.store.snapshot(),
        };
        let weigher = Weigher::ask(&self.tools, &now, measure).await?;
        let (given, load) = (weights.clone(), weigher.load(&now));
        let decide = move |now: &Snapshot| change::rebalance(now, &given, &load, rate);
        self.look_at_servers(&mode, allowed, &decide).await?;
        let after = self.mutate(mode, decide).await?;
        // Nothing moved before: whatever moves now is what was planned.
        let migrations = after.moving().map(|m| view::migration(m, None));
        Ok(Response::new(RebalanceResponse {
            migrations: migrations.collect(),
            revision: after.head.revision,
            loads: weigher.show(&after, &weights),
        }))
    }

    async fn update_migration(
        &self,
        request: Request<UpdateMigrationRequest>,
    ) -> Result<Response<Migration>, Status> {
        let request = request.into_inner();
        let id = parse::migration_id("id", &request.id)?;
        let (rate, expected) = (parse::rate(request.rate), request.expected_revision);
        let mode = mode!("UpdateMigration", request)?;
        let migration = id.clone();
        let after = self
            .mutate(mode, move |now| {
                change::update_migration(now, &migration, rate, expected)
            })
            .await?;
        self.show_migration(&after, &id)
    }

    async fn pause_migration(
        &self,
        request: Request<ChangeMigrationRequest>,
    ) -> Result<Response<Migration>, Status> {
        self.wish("PauseMigration", Wish::Pause, request).await
    }

    async fn resume_migration(
        &self,
        request: Request<ChangeMigrationRequest>,
    ) -> Result<Response<Migration>, Status> {
        self.wish("ResumeMigration", Wish::Run, request).await
    }

    async fn cancel_migration(
        &self,
        request: Request<ChangeMigrationRequest>,
    ) -> Result<Response<Migration>, Status> {
        self.wish("CancelMigration", Wish::Cancel, request).await
    }

    type VerifyMigrationStream = BoxStream<'static, Result<VerifyMigrationResponse, Status>>;

    async fn verify_migration(
        &self,
        mut request: Request<VerifyMigrationRequest>,
    ) -> Result<Response<Self::VerifyMigrationStream>, Status> {
        let permit = request.extensions_mut().remove();
        let request = request.into_inner();
        let id = parse::migration_id("id", &request.id)?;
        let now = self.leading()?;
        let stopping = self.stopping.clone();
        let begun = Verification::begin(
            self.tools.clone(),
            &now,
            id,
            request.one_in,
            stopping,
            permit,
        );
        let told = stream::unfold(begun?, Verification::next);
        Ok(Response::new(told.boxed()))
    }

    async fn list_proxies(
        &self,
        request: Request<ListProxiesRequest>,
    ) -> Result<Response<ListProxiesResponse>, Status> {
        let request = request.into_inner();
        let now = self.store.snapshot();
        let (listed, next_page_token) = page(
            now.proxies.values(),
            |proxy| proxy.id.to_string(),
            request.page_size,
            &request.page_token,
        );
        let live = self.registry.proxies();
        let newest = now.head.revision;
        let show = |p: &Arc<model::Registration>| view::proxy(p, live.get(&p.id), newest);
        let proxies = listed.into_iter().map(show);
        Ok(Response::new(ListProxiesResponse {
            proxies: proxies.collect(),
            next_page_token,
            revision: now.head.revision,
        }))
    }

    async fn get_proxy(
        &self,
        request: Request<GetProxyRequest>,
    ) -> Result<Response<Proxy>, Status> {
        let id = parse::proxy_id("id", &request.get_ref().id)?;
        let now = self.store.snapshot();
        let proxy = now
            .proxies
            .get(&id)
            .ok_or_else(|| change::proxy_not_found(&id))?;
        let live = self.registry.proxies();
        Ok(Response::new(view::proxy(
            proxy,
            live.get(&id),
            now.head.revision,
        )))
    }

    async fn delete_proxy(
        &self,
        request: Request<DeleteProxyRequest>,
    ) -> Result<Response<DeleteProxyResponse>, Status> {
        let request = request.into_inner();
        let id = parse::proxy_id("id", &request.id)?;
        let expected = request.expected_revision;
        let mode = mode!("DeleteProxy", request)?;
        let validate_only = mode.validate_only;
        let (proxy, registry) = (id.clone(), self.registry.clone());
        // Asked on the writer: a proxy that connects later registers after this.
        let decide = move |now: &Snapshot| {
            change::delete_proxy(now, &proxy, expected, registry.is_connected(&proxy))
        };
        let now = self.store.snapshot();
        let mut unreached_servers = Vec::new();
        if !validate_only && !mode.is_repetition(&now)? {
            decide(&now)?;
            if let Some(proxy) = now.proxies.get(&id) {
                unreached_servers = self.retirement.shut_out(proxy).await?;
            }
        }
        let after = self.mutate(mode, decide).await?;
        if !validate_only {
            self.registry.forget(&id);
        }
        Ok(Response::new(DeleteProxyResponse {
            revision: after.head.revision,
            unreached_servers: unreached_servers.into_iter().map(Into::into).collect(),
        }))
    }

    async fn list_fences(
        &self,
        request: Request<ListFencesRequest>,
    ) -> Result<Response<ListFencesResponse>, Status> {
        let request = request.into_inner();
        let now = self.leading()?;
        let listed = servers_of(&now, &request.group_id)?;
        let (servers, next_page_token) =
            page(listed, place_of, request.page_size, &request.page_token);
        let servers: Vec<_> = servers
            .into_iter()
            .map(|(group, server)| (group.id.clone(), server.clone()))
            .collect();
        let fences = stream::iter(servers)
            .map(|(group, server)| self.show_fence(&now, group, server))
            .buffered(INSPECTIONS_AT_ONCE)
            .collect()
            .await;
        Ok(Response::new(ListFencesResponse {
            fences,
            next_page_token,
            revision: now.head.revision,
        }))
    }

    async fn get_fence(
        &self,
        request: Request<GetFenceRequest>,
    ) -> Result<Response<Fence>, Status> {
        let address = parse::address("server", &request.get_ref().server)?;
        let now = self.leading()?;
        let (group, server) = change::find_server(&now, &address)?;
        let fence = self.show_fence(&now, group.id.clone(), server.clone());
        Ok(Response::new(fence.await))
    }

    async fn repair_fence(
        &self,
        request: Request<RepairFenceRequest>,
    ) -> Result<Response<Fence>, Status> {
        let request = request.into_inner();
        let address = parse::address("server", &request.server)?;
        let now = self.leading()?;
        let (group, server) = change::find_server(&now, &address)?;
        let (group, server) = (group.clone(), server.clone());
        if server.role == Role::Replica {
            return Err(admission::has_its_primarys(&server.address, &group).into());
        }
        if request.validate_only {
            self.examine(&address, &group.id, request.take_over).await?;
        } else {
            let confirmed = self.registry.confirmed(now.head.revision);
            let spare = Spare::Only(&confirmed);
            self.fence(&group, spare, request.take_over).await?;
        }
        Ok(Response::new(self.show_fence(&now, group.id, server).await))
    }

    async fn get_topology(
        &self,
        _: Request<GetTopologyRequest>,
    ) -> Result<Response<Topology>, Status> {
        let compiled = topology::compile(&self.store.snapshot());
        Ok(Response::new((&compiled).into()))
    }

    type WatchEventsStream = BoxStream<'static, Result<WatchEventsResponse, Status>>;

    async fn watch_events(
        &self,
        mut request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let permit = request.extensions_mut().remove();
        let token = &request.get_ref().resume_token;
        let cluster = self.store.snapshot().cluster.id.clone();
        let log = self.store.events();
        let newest = log.subscribe();
        let seen = match token.as_str() {
            "" => *newest.borrow(),
            token => Some(Position::from_token(token, &cluster).ok_or_else(foreign_token)?),
        };
        log.after(seen, 0).map_err(lost)?;
        let watcher = Watcher {
            log: log.clone(),
            newest,
            seen,
            stopping: self.stopping.clone(),
            _permit: permit,
        };
        let events = stream::try_unfold(watcher, Watcher::next)
            .map_ok(|events| stream::iter(events.into_iter().map(Ok)))
            .try_flatten()
            .map_ok(move |event: Arc<Event>| WatchEventsResponse {
                event: Some(event.to_wire(&cluster)),
            });
        Ok(Response::new(events.boxed()))
    }
}

fn foreign_token() -> Status {
    let message = "is no token of this cluster: list again, then watch without a token";
    Refusal::field("resume_token", message).into()
}

/// The servers of the group of this id, or of all.
fn servers_of<'a>(
    now: &'a Snapshot,
    group: &str,
) -> Result<impl Iterator<Item = (&'a model::Group, &'a model::Server)>, Refusal> {
    let only = match group {
        "" => None,
        text => Some(change::find_group(
            now,
            &parse::group_id("group_id", text)?,
        )?),
    };
    let wanted = move |group: &model::Group| only.is_none_or(|only| only.id == group.id);
    Ok(now.servers().filter(move |(group, _)| wanted(group)))
}

/// A text that sorts servers by group, the primary first, then by address. A blank sorts before
/// whatever an id is made of.
fn place_of((group, server): &(&model::Group, &model::Server)) -> String {
    let role = match server.role {
        Role::Primary => 0,
        Role::Replica => 1,
    };
    format!("{} {role} {}", group.id, server.address)
}
