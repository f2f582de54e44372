//! The controller through its gRPC, in this process, with real Redis servers.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::{
    ffi::OsString,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use controlplane::{app::App, config::Settings};
use proto::{
    Topology,
    reason::Reason,
    v1::{
        self, admin_service_client::AdminServiceClient, assign_slots_request::Assignment,
        subscribe_request, subscribe_response::Message,
        topology_service_client::TopologyServiceClient,
    },
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};

const DEADLINE: Duration = Duration::from_secs(10);

/// A `redis-server` of its own; killed when dropped.
struct Redis {
    process: Child,
    port: u16,
    _dir: TempDir,
}

impl Redis {
    async fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let process = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--dir"])
            .arg(dir.path())
            .args(args)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let redis = Self {
            process,
            port,
            _dir: dir,
        };
        eventually(async || redis.says("PING").await.is_some()).await;
        redis
    }

    async fn replica_of(primary: &Self) -> Self {
        let port = primary.port.to_string();
        Self::start(&["--replicaof", "127.0.0.1", &port]).await
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn spec(&self) -> v1::ServerSpec {
        spec(&self.address())
    }

    /// The beginning of the answer to an inline command.
    async fn says(&self, command: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.address()).await.ok()?;
        stream
            .write_all(format!("{command}\r\n").as_bytes())
            .await
            .ok()?;
        let mut answer = vec![0; 512];
        let length = stream.read(&mut answer).await.ok().filter(|n| *n > 0)?;
        Some(String::from_utf8_lossy(&answer[..length]).into_owned())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// A controller in this process.
struct Controller {
    admin: AdminServiceClient<Channel>,
    topology: TopologyServiceClient<Channel>,
    http: String,
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Controller {
    async fn start(dir: &Path) -> Self {
        let argv = [
            "sluice-controller",
            "--listen=127.0.0.1:0",
            "--http=127.0.0.1:0",
            "--probe-interval=100ms",
            "--data-dir",
            dir.to_str().unwrap(),
        ];
        let settings: Settings = proto::settings::parse("SLUICE_TEST", argv.map(OsString::from))
            .unwrap()
            .settings()
            .unwrap();
        let app = App::build(settings).await.unwrap();
        let grpc = format!("http://{}", app.grpc_address().unwrap());
        let http = app.http_address().unwrap().to_string();
        let (stop, stopped) = oneshot::channel();
        let channel = Endpoint::try_from(grpc).unwrap().connect_lazy();
        let task = tokio::spawn(app.run(async move { drop(stopped.await) }));
        Self {
            admin: AdminServiceClient::new(channel.clone()),
            topology: TopologyServiceClient::new(channel),
            http,
            stop,
            task,
        }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        let ended = time::timeout(DEADLINE, self.task).await;
        ended.expect("it stops in time").unwrap().unwrap();
    }

    async fn create_group(
        &mut self,
        id: &str,
        servers: &[v1::ServerSpec],
    ) -> Result<v1::Group, Status> {
        let request = v1::CreateGroupRequest {
            id: id.to_owned(),
            servers: servers.to_vec(),
            ..Default::default()
        };
        Ok(self.admin.create_group(request).await?.into_inner())
    }

    async fn assign(&mut self, assignment: Assignment) -> Result<v1::SlotMap, Status> {
        let request = v1::AssignSlotsRequest {
            assignment: Some(assignment),
            ..Default::default()
        };
        Ok(self.admin.assign_slots(request).await?.into_inner())
    }

    async fn proxy(&mut self, id: &str) -> v1::Proxy {
        let request = v1::GetProxyRequest { id: id.to_owned() };
        self.admin.get_proxy(request).await.unwrap().into_inner()
    }

    async fn subscribe(&mut self, hello: v1::Hello) -> Proxy {
        let (requests, stream) = mpsc::channel(16);
        let response = self.topology.subscribe(ReceiverStream::new(stream)).await;
        let proxy = Proxy {
            requests,
            responses: response.unwrap().into_inner(),
        };
        proxy.say(subscribe_request::Message::Hello(hello)).await;
        proxy
    }

    async fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

/// A proxy's end of a stream.
struct Proxy {
    requests: mpsc::Sender<v1::SubscribeRequest>,
    responses: Streaming<v1::SubscribeResponse>,
}

impl Proxy {
    async fn say(&self, message: subscribe_request::Message) {
        let message = Some(message);
        let request = v1::SubscribeRequest { message };
        self.requests.send(request).await.unwrap();
    }

    async fn hear(&mut self) -> Result<Message, Status> {
        let response = time::timeout(DEADLINE, self.responses.message()).await;
        let response = response.expect("it answers in time")?;
        Ok(response.expect("the stream goes on").message.unwrap())
    }

    async fn hear_snapshot(&mut self) -> v1::Topology {
        match self.hear().await.unwrap() {
            Message::Snapshot(topology) => topology,
            other => panic!("expected a snapshot, got {other:?}"),
        }
    }

    async fn hear_delta(&mut self) -> v1::TopologyDelta {
        match self.hear().await.unwrap() {
            Message::Delta(delta) => delta,
            other => panic!("expected a delta, got {other:?}"),
        }
    }

    async fn ack(&self, version: Option<v1::Version>) {
        self.say(subscribe_request::Message::Ack(v1::Ack { version }))
            .await;
    }

    async fn nack(&self, version: Option<v1::Version>, reason: &str) {
        let reason = reason.to_owned();
        let nack = v1::Nack { version, reason };
        self.say(subscribe_request::Message::Nack(nack)).await;
    }
}

fn hello(id: &str, digit: char) -> v1::Hello {
    v1::Hello {
        proxy_id: id.to_owned(),
        incarnation: digit.to_string().repeat(32),
        address: "127.0.0.1:19000".to_owned(),
        ..Default::default()
    }
}

fn spec(address: &str) -> v1::ServerSpec {
    v1::ServerSpec {
        address: address.to_owned(),
        zone: String::new(),
    }
}

fn even() -> Assignment {
    Assignment::Even(v1::assign_slots_request::Even {})
}

fn range(first: u32, last: u32, group: &str) -> Assignment {
    Assignment::Ranges(v1::assign_slots_request::Ranges {
        assignments: vec![v1::SlotAssignment {
            first,
            last,
            group_id: group.to_owned(),
            state: 0,
            target_group_id: String::new(),
        }],
    })
}

fn refused<T: std::fmt::Debug>(result: Result<T, Status>, reason: Reason) -> String {
    let status = result.unwrap_err();
    assert_eq!(Reason::of(&status), Some(reason), "{status:?}");
    assert_eq!(status.code(), reason.code());
    status.message().to_owned()
}

/// The address of something that answers to everything what a proxy answers to `INFO`.
async fn info_says_proxy() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let info = "# Server\r\nredis_version:7.2.0\r\nrun_id:x\r\n# Replication\r\nrole:master\r\n\
        # Sluice\r\nsluice_version:0.1.0\r\nproxy_id:p1\r\n";
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let answer = format!("${}\r\n{info}\r\n", info.len());
        while stream.read(&mut [0; 512]).await.is_ok_and(|n| n > 0) {
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    address
}

async fn eventually(mut check: impl AsyncFnMut() -> bool) {
    let checked = async {
        while !check().await {
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    time::timeout(DEADLINE, checked)
        .await
        .expect("it comes true");
}

#[tokio::test]
async fn servers_are_admitted_by_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(dir.path()).await;
    let primary = Redis::start(&[]).await;
    let replica = Redis::replica_of(&primary).await;
    let locked = Redis::start(&["--requirepass", "secret"]).await;
    let clustered = Redis::start(&["--cluster-enabled", "yes"]).await;

    let nowhere = controller.create_group("g", &[spec("127.0.0.1:1")]).await;
    refused(nowhere, Reason::ServerUnreachable);
    let grpc = controller.http.clone(); // answers, but as HTTP
    let web = controller.create_group("g", &[spec(&grpc)]).await;
    let message = refused(web, Reason::ServerNotRedis);
    assert!(!message.contains(['\r', '\n']), "{message}");
    let proxy = spec(&info_says_proxy().await);
    let looped = controller.create_group("g", &[proxy]).await;
    let message = refused(looped, Reason::ServerNotRedis);
    assert!(
        message.contains("is a Sluice proxy (p1), not a server"),
        "{message}"
    );
    let denied = controller.create_group("g", &[locked.spec()]).await;
    let message = refused(denied, Reason::ServerAuthFailed);
    assert!(message.contains("SLUICE_SERVER_PASSWORD_G"), "{message}");
    let cluster = controller.create_group("g", &[clustered.spec()]).await;
    refused(cluster, Reason::ServerInClusterMode);
    let headless = controller.create_group("g", &[replica.spec()]).await;
    refused(headless, Reason::ServerRoleMismatch);

    let servers = [replica.spec(), primary.spec()];
    let group = controller.create_group("g1", &servers).await.unwrap();
    assert_eq!(group.servers[0].address, primary.address());
    let twin = spec(&format!("localhost:{}", primary.port));
    let twin = controller.create_group("g2", &[twin]).await;
    refused(twin, Reason::ServerExists);
    let again = controller.create_group("g1", &[primary.spec()]).await;
    refused(again, Reason::GroupExists);
    let bad = controller.create_group("G", &[]).await;
    refused(bad, Reason::InvalidField);

    // Another primary is no replica, until it is made one, under whatever name.
    let other = Redis::start(&[]).await;
    let join = v1::CreateServerRequest {
        group_id: "g1".to_owned(),
        server: Some(other.spec()),
        ..Default::default()
    };
    let message = refused(
        controller.admin.create_server(join.clone()).await,
        Reason::ServerRoleMismatch,
    );
    assert!(message.contains("REPLICAOF 127.0.0.1"), "{message}");
    other
        .says(&format!("REPLICAOF localhost {}", primary.port))
        .await;
    let only_check = v1::CreateServerRequest {
        validate_only: true,
        ..join.clone()
    };
    controller.admin.create_server(only_check).await.unwrap();
    let joined = controller.admin.create_server(join).await.unwrap();
    assert_eq!(joined.into_inner().role(), v1::server::Role::Replica);

    eventually(async || {
        let list = v1::ListServersRequest::default();
        let list = controller.admin.clone().list_servers(list).await.unwrap();
        let seen = list.into_inner().servers;
        let seen: Vec<_> = seen.into_iter().filter_map(|s| s.observed).collect();
        seen.len() == 3 && seen.iter().all(|o| o.reachable && o.flavor == "redis")
    })
    .await;
    let mut events = controller
        .admin
        .watch_events(v1::WatchEventsRequest::default())
        .await
        .unwrap()
        .into_inner();
    other.says("REPLICAOF NO ONE").await;
    let turned = async {
        loop {
            let event = events.message().await.unwrap().unwrap().event.unwrap();
            if event.reason == "ServerRoleChanged" {
                return event;
            }
        }
    };
    let turned = time::timeout(DEADLINE, turned).await.unwrap();
    assert_eq!(turned.subject, format!("server/{}", other.address()));
    drop(events);
    let gone = replica.address();
    drop(replica);
    eventually(async || {
        let request = v1::GetServerRequest {
            address: gone.clone(),
        };
        let server = controller.admin.clone().get_server(request).await.unwrap();
        let observed = server.into_inner().observed.unwrap();
        !observed.reachable && !observed.error.is_empty()
    })
    .await;
    let metrics = controller.get("/metrics").await;
    assert!(metrics.contains("sluice_controller_servers_unreachable 1"));
    assert!(controller.get("/readyz").await.starts_with("HTTP/1.1 200"));
    controller.stop().await;
}

#[tokio::test]
async fn a_proxy_follows_the_topology() {
    let dir = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(dir.path()).await;
    let (one, two) = (Redis::start(&[]).await, Redis::start(&[]).await);
    let mut proxy = controller.subscribe(hello("p1", 'a')).await;
    let first = Topology::try_from(&proxy.hear_snapshot().await).unwrap();
    proxy.ack(Some(first.version().into())).await;

    controller.create_group("g1", &[one.spec()]).await.unwrap();
    let delta = proxy.hear_delta().await;
    let second = first.apply(&delta).unwrap();
    assert_eq!(second.groups().len(), 1);
    // While it has not answered, versions are skipped.
    controller.create_group("g2", &[two.spec()]).await.unwrap();
    controller.assign(even()).await.unwrap();
    proxy.ack(delta.version).await;
    proxy.nack(delta.version, "too late").await; // it has answered: ignored
    let third = second.apply(&proxy.hear_delta().await).unwrap();
    let now = controller.admin.get_topology(v1::GetTopologyRequest {});
    let now = now.await.unwrap().into_inner();
    assert_eq!(v1::Topology::from(&third), now);

    proxy.nack(now.version, "it does not please").await;
    eventually(async || controller.proxy("p1").await.nack_reason == "it does not please").await;
    let update = v1::UpdateGroupRequest {
        id: "g1".to_owned(),
        description: "east".to_owned(),
        ..Default::default()
    };
    controller.admin.update_group(update).await.unwrap();
    let fourth = proxy.hear_snapshot().await;
    proxy.ack(fourth.version).await;
    eventually(async || controller.proxy("p1").await.acked_version == fourth.version).await;
    let stats = v1::ProxyStats {
        sessions: 3,
        ..Default::default()
    };
    proxy.say(subscribe_request::Message::Stats(stats)).await;
    eventually(async || controller.proxy("p1").await.stats == Some(stats)).await;
    let shown = controller.proxy("p1").await;
    assert!(shown.connected && shown.nack_reason.is_empty());

    let mut twin = controller.subscribe(hello("p1", 'b')).await;
    refused(twin.hear().await, Reason::ProxyIdInUse);
    let delete = v1::DeleteProxyRequest {
        id: "p1".to_owned(),
        ..Default::default()
    };
    let connected = controller.admin.delete_proxy(delete.clone()).await;
    refused(connected, Reason::ProxyConnected);

    // It comes back with the newest version: nothing to send, which is said at once.
    drop(proxy);
    eventually(async || !controller.proxy("p1").await.connected).await;
    let back = v1::Hello {
        cluster_id: fourth.cluster_id.clone(),
        last_version: fourth.version,
        ..hello("p1", 'a')
    };
    let mut proxy = controller.subscribe(back).await;
    assert!(matches!(proxy.hear().await, Ok(Message::KeepAlive(_))));
    proxy
        .ack(Some(v1::Version {
            leader_term: 9,
            epoch: 9,
        }))
        .await;
    refused(proxy.hear().await, Reason::InvalidField);
    eventually(async || !controller.proxy("p1").await.connected).await;
    controller.admin.delete_proxy(delete).await.unwrap();

    let mut rude = controller.subscribe(v1::Hello::default()).await;
    refused(rude.hear().await, Reason::InvalidField);
    let mut last = controller.subscribe(hello("p2", 'c')).await;
    last.hear_snapshot().await;
    controller.stop().await;
    refused(last.hear().await, Reason::ShuttingDown);
}

#[tokio::test]
async fn slots_are_assigned_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(dir.path()).await;
    let (one, two) = (Redis::start(&[]).await, Redis::start(&[]).await);
    refused(controller.assign(even()).await, Reason::GroupNotFound);
    controller.create_group("g1", &[one.spec()]).await.unwrap();
    controller.create_group("g2", &[two.spec()]).await.unwrap();
    let map = controller.assign(range(0, 99, "g1")).await.unwrap();
    assert_eq!(map.revision, 4);
    let message = refused(
        controller.assign(range(50, 150, "g2")).await,
        Reason::SlotOwned,
    );
    assert!(message.contains("50-99 (g1)"), "{message}");
    refused(
        controller.assign(range(1, 1024, "g2")).await,
        Reason::InvalidField,
    );

    let request = |expected_revision, validate_only| v1::AssignSlotsRequest {
        assignment: Some(even()),
        expected_revision,
        validate_only,
        request_id: "once".to_owned(),
    };
    let stale = controller.admin.assign_slots(request(3, false)).await;
    refused(stale, Reason::RevisionMismatch);
    let preview = controller
        .admin
        .assign_slots(request(4, true))
        .await
        .unwrap();
    assert_eq!(preview.into_inner().assignments.len(), 2);
    for _ in 0..2 {
        let map = controller
            .admin
            .assign_slots(request(4, false))
            .await
            .unwrap();
        assert_eq!(map.into_inner().revision, 5);
    }
    let other = controller.admin.assign_slots(request(5, false)).await;
    refused(other, Reason::RequestIdReused);

    let delete = v1::DeleteGroupRequest {
        id: "g1".to_owned(),
        ..Default::default()
    };
    let owner = controller.admin.delete_group(delete).await;
    refused(owner, Reason::GroupOwnsSlots);
    controller.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(dir.path()).await;
    let redis = Redis::start(&[]).await;
    let watch = v1::WatchEventsRequest::default();
    let mut events = controller
        .admin
        .watch_events(watch)
        .await
        .unwrap()
        .into_inner();
    controller
        .create_group("g1", &[redis.spec()])
        .await
        .unwrap();
    controller.assign(even()).await.unwrap();
    let mut proxy = controller.subscribe(hello("p1", 'a')).await;
    proxy.hear_snapshot().await;
    let created = events.message().await.unwrap().unwrap().event.unwrap();
    assert_eq!(
        (created.reason.as_str(), created.subject.as_str()),
        ("GroupCreated", "group/g1")
    );
    let before = controller.admin.get_topology(v1::GetTopologyRequest {});
    let before = before.await.unwrap().into_inner();
    controller.stop().await;
    let end = loop {
        match events.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a stream of events does not just end"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::Unavailable);

    let mut controller = Controller::start(dir.path()).await;
    let after = controller.admin.get_topology(v1::GetTopologyRequest {});
    let after = after.await.unwrap().into_inner();
    assert_eq!(
        (&after.groups, &after.slots),
        (&before.groups, &before.slots)
    );
    let (old, new) = (before.version.unwrap(), after.version.unwrap());
    assert_eq!((old.leader_term, new.leader_term), (1, 2));
    assert!(new.epoch > old.epoch);
    assert!(!controller.proxy("p1").await.connected);

    let resume = v1::WatchEventsRequest {
        resume_token: created.resume_token,
    };
    let mut events = controller
        .admin
        .watch_events(resume)
        .await
        .unwrap()
        .into_inner();
    let mut reasons = Vec::new();
    while reasons.last().is_none_or(|r| r != "ControllerStarted") {
        let event = time::timeout(DEADLINE, events.message()).await.unwrap();
        reasons.push(event.unwrap().unwrap().event.unwrap().reason);
    }
    let durable: Vec<&str> = reasons.iter().map(String::as_str).collect();
    assert!(
        durable.starts_with(&["ServerCreated", "SlotsAssigned", "ProxyRegistered"]),
        "{durable:?}"
    );
    let foreign = v1::WatchEventsRequest {
        resume_token: "x.1.1".to_owned(),
    };
    refused(
        controller.admin.watch_events(foreign).await,
        Reason::InvalidField,
    );
    controller.stop().await;
}

/// The process itself, with a log and a data folder of its own.
fn process(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice-controller"));
    command
        .args(["--listen=127.0.0.1:0", "--http=127.0.0.1:0", "--data-dir"])
        .arg(dir.join("data"))
        .args(args);
    command
}

#[test]
fn settings_are_checked() {
    fn check(args: &[&str], code: i32, says: &str) {
        let dir = tempfile::tempdir().unwrap();
        let args = [&["--check-config"], args].concat();
        let output = process(dir.path(), &args).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(says), "{said}");
    }
    check(&[], 0, "OK");
    check(&["--log=controlplane=loud"], 2, "--log");
    check(&["--log=[["], 2, "--log");
    check(&["--probe-timeout=0s"], 2, "--probe-timeout");
    check(&["--probe-interval=0"], 2, "--probe-interval");
}

#[test]
fn a_hangup_is_outlived() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = process(dir.path(), &["--log=info"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut logged = |part: &str| log.any(|line| line.unwrap().contains(part));
    let signal = |name: &str| {
        let id = child.id().to_string();
        let sent = Command::new("kill").args([name, &id]).status().unwrap();
        assert!(sent.success());
    };
    assert!(logged("listening"));
    for _ in 0..2 {
        signal("-HUP");
        assert!(logged("SIGHUP: nothing is reloaded"));
    }
    signal("-TERM");
    assert!(child.wait().unwrap().success());
}
