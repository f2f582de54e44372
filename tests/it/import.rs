//! A Codis product comes over as it is: its records were written by a real Codis.

use std::{fs, path::Path, process::Command};

use proto::v1;
use serde_json::Value;
use tests::{Controller, Server, ZooKeeper, binary};
use zookeeper_client::{Acls, Client, CreateMode};

const DUMP: &str = include_str!("../fixtures/codis-3.2/config-dump.json");
const NODES: &str = include_str!("../fixtures/codis-3.2/znodes.json");

/// The servers of the records, in the order of [`ADDRESSES`]: a primary and its replica, twice.
struct Servers([Server; 4]);

/// As they are called in the records.
const ADDRESSES: [&str; 4] = [
    "127.0.0.1:7111",
    "127.0.0.1:7112",
    "127.0.0.1:7103",
    "127.0.0.1:7104",
];

impl Servers {
    async fn start(dir: &Path) -> Self {
        let server = |name: &str, args: &[String]| Server::start(dir, name, args);
        let (one, two) = (server("g1-primary", &[]), server("g2-primary", &[]));
        let replica = |of: &Server| {
            let (host, port) = of.addr.split_once(':').unwrap();
            ["--replicaof", host, port].map(str::to_owned)
        };
        let (of_one, of_two) = (replica(&one), replica(&two));
        let servers = [
            one,
            server("g1-replica", &of_one),
            two,
            server("g2-replica", &of_two),
        ];
        for server in &servers {
            server.answers().await;
        }
        Self(servers)
    }

    /// The text, with their real addresses.
    fn put_into(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (address, server) in ADDRESSES.iter().zip(&self.0) {
            text = text.replace(address, &server.addr);
        }
        text
    }
}

/// Runs `sluice import codis`; whether it succeeded, and all it said.
fn import(controller: &Controller, args: &[&str]) -> (bool, String) {
    let output = Command::new(binary("sluice"))
        .args(["--endpoint", &controller.addr, "import", "codis"])
        .args(args)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

/// The owner of each slot, as the dump says: `g1` for 1, nothing for 0. Slot 600, which is to move and
/// has not begun to, is where it was.
fn owners_in_the_dump() -> Vec<String> {
    let dump: Value = serde_json::from_str(DUMP).unwrap();
    let slots = dump["slots"].as_array().unwrap();
    let owner = |slot: &Value| match slot["group_id"].as_u64().unwrap() {
        0 => String::new(),
        group => format!("g{group}"),
    };
    slots.iter().map(owner).collect()
}

/// The owner of each slot, as proxies route.
async fn owners(controller: &Controller) -> Vec<String> {
    let mut admin = controller.admin().await;
    let request = v1::GetTopologyRequest::default();
    let topology = admin.get_topology(request).await.unwrap().into_inner();
    let mut owners = vec![String::new(); 1024];
    for assignment in topology.slots {
        for slot in assignment.first..=assignment.last {
            owners[slot as usize].clone_from(&assignment.group_id);
        }
    }
    owners
}

#[tokio::test]
async fn a_dump_becomes_the_same_slot_map() {
    let dir = tempfile::tempdir().unwrap();
    let servers = Servers::start(dir.path()).await;
    let controller = Controller::start(dir.path(), &[]).await;
    let file = dir.path().join("dump.json");
    fs::write(&file, servers.put_into(DUMP)).unwrap();
    let dump = ["--dump", file.to_str().unwrap()];
    let run = |more: &[&str]| import(&controller, &[&dump, more].concat());
    let untouched = owners(&controller).await;

    let (ok, text) = run(&["--yes"]);
    assert!(!ok && text.contains("slot 600 is to move"), "{text}");
    let (ok, text) = run(&["--in-flight", "resolve"]);
    assert!(!ok && text.contains("add `--yes`"), "{text}");
    let (ok, text) = run(&["--in-flight", "resolve", "--dry-run"]);
    assert!(ok && text.contains("group g2 could be created"), "{text}");
    assert_eq!(owners(&controller).await, untouched);

    let (ok, text) = run(&["--in-flight", "resolve", "--yes"]);
    assert!(ok && text.contains("1020 slots assigned"), "{text}");
    assert_eq!(owners(&controller).await, owners_in_the_dump());
    let mut admin = controller.admin().await;
    let request = v1::ListServersRequest::default();
    let listed = admin.list_servers(request).await.unwrap().into_inner();
    let zone = |address: &str| {
        let server = listed.servers.iter().find(|s| s.address == address);
        server.map(|server| server.zone.clone())
    };
    assert_eq!(zone(&servers.0[1].addr).as_deref(), Some("dc2"));

    // What was interrupted can be run again.
    let (ok, text) = run(&["--in-flight", "resolve", "--yes"]);
    assert!(ok && !text.contains("created"), "{text}");
    assert_eq!(owners(&controller).await, owners_in_the_dump());
}

#[tokio::test]
async fn a_replica_that_is_down_stops_it_and_can_be_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut servers = Servers::start(dir.path()).await;
    let controller = Controller::start(dir.path(), &[]).await;
    let file = dir.path().join("dump.json");
    fs::write(&file, servers.put_into(DUMP)).unwrap();
    servers.0[3].process.kill();
    let args = [
        "--dump",
        file.to_str().unwrap(),
        "--in-flight",
        "resolve",
        "--yes",
    ];
    let (ok, text) = import(&controller, &args);
    assert!(!ok && text.contains("--without"), "{text}");
    let down = servers.0[3].addr.as_str();
    let (ok, text) = import(&controller, &[&args[..], &["--without", down]].concat());
    assert!(ok, "{text}");
    assert_eq!(owners(&controller).await, owners_in_the_dump());
}

async fn write_nodes(client: &Client, nodes: &Value) {
    let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
    for (path, node) in nodes.as_object().unwrap() {
        let data = node["data"].as_str().unwrap();
        client
            .create(path, data.as_bytes(), &options)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn the_nodes_in_zookeeper_become_the_same_slot_map() {
    let dir = tempfile::tempdir().unwrap();
    let servers = Servers::start(dir.path()).await;
    let controller = Controller::start(dir.path(), &[]).await;
    let zookeeper = ZooKeeper::start(dir.path()).await;
    let client = zookeeper.connect().await;
    let nodes = serde_json::from_str(&servers.put_into(NODES)).unwrap();
    write_nodes(&client, &nodes).await;
    let from = ["--zookeeper", &zookeeper.addr, "--product"];

    let (ok, text) = import(&controller, &[&from[..], &["other"]].concat());
    assert!(!ok && text.contains("there is: codis-demo"), "{text}");
    let args = ["codis-demo", "--in-flight", "resolve", "--yes"];
    let (ok, text) = import(&controller, &[&from[..], &args].concat());
    assert!(
        ok && text.contains("the dashboard at 127.0.0.1:18080"),
        "{text}"
    );
    assert_eq!(owners(&controller).await, owners_in_the_dump());
}
