//! A Redis Cluster of two nodes, and `redis-cli --cluster reshard`.

use std::{process::Command, time::Instant};

use redis::{aio::MultiplexedConnection, cmd};
use tempfile::TempDir;
use tests::{Server, eventually, free_port};

use super::{Moved, Way, data};

/// Slots of a Redis Cluster.
const SLOTS: u16 = 16384;

/// See the module. The first node has the lower half of the slots at first; it moves.
pub(super) struct Nodes {
    pub(super) servers: [Server; 2],
    ids: [String; 2],
    dir: TempDir,
}

impl Nodes {
    pub(super) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let servers = ["node-1", "node-2"].map(|name| {
            // Not its port and 10,000, which may be none.
            let bus = free_port().to_string();
            let args = ["--appendonly", "no", "--cluster-enabled", "yes"];
            // Or the one that has no slots left becomes a replica of the other.
            let stays = ["--cluster-allow-replica-migration", "no"];
            let args = args.into_iter().chain(["--cluster-port", &bus]);
            let args = args.chain(stays);
            let args: Vec<String> = args.map(str::to_owned).collect();
            (Server::start(dir.path(), name, &args), bus)
        });
        for ((server, _), [first, last]) in servers.iter().zip([[0, 8191], [8192, 16383]]) {
            server.answers().await;
            let mut link = server.connect().await;
            let mut own = cmd("CLUSTER");
            own.arg("ADDSLOTSRANGE").arg(first).arg(last);
            own.exec_async(&mut link).await.unwrap();
        }
        let [(one, _), (two, bus)] = &servers;
        let mut meet = cmd("CLUSTER");
        meet.arg("MEET").arg("127.0.0.1").arg(two.port).arg(bus);
        meet.exec_async(&mut one.connect().await).await.unwrap();
        let servers = servers.map(|(server, _)| server);
        let mut ids = [String::new(), String::new()];
        for (server, id) in servers.iter().zip(&mut ids) {
            eventually(|| async { is_whole(&mut server.connect().await).await }).await;
            let mut myself = cmd("CLUSTER");
            myself.arg("MYID");
            *id = myself
                .query_async(&mut server.connect().await)
                .await
                .unwrap();
        }
        Self { servers, ids, dir }
    }

    /// Has the half moved from one node to the other.
    pub(super) fn reshard(&self, way: Way) -> Moved {
        let (from, to) = way.ends();
        let before = data::count(self.servers[from].port);
        let log = std::fs::File::create(self.dir.path().join("reshard.log")).unwrap();
        let begun = Instant::now();
        let status = Command::new("redis-cli")
            .args(["--cluster", "reshard", &self.servers[0].addr])
            .args(["--cluster-from", &self.ids[from]])
            .args(["--cluster-to", &self.ids[to]])
            .args(["--cluster-slots", &(SLOTS / 2).to_string()])
            .arg("--cluster-yes")
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .status()
            .unwrap();
        let ended = Instant::now();
        let log = std::fs::read_to_string(self.dir.path().join("reshard.log")).unwrap();
        let last = log.lines().last().unwrap_or_default().to_owned();
        Moved {
            begun,
            first_hold: ended,
            owned: ended,
            ended,
            keys: before - data::count(self.servers[from].port),
            holds: Vec::new(),
            failure: (!status.success()).then_some(last),
        }
    }
}

async fn is_whole(link: &mut MultiplexedConnection) -> Result<(), String> {
    let mut info = cmd("CLUSTER");
    let info: String = info.arg("INFO").query_async(link).await.unwrap();
    let is_whole = ["cluster_state:ok", "cluster_slots_ok:16384"];
    let is_whole = is_whole.iter().all(|line| info.contains(line));
    is_whole.then_some(()).ok_or(info)
}

/// Whether a key is in the half that moves.
pub(super) fn moves(key: &str) -> bool {
    slot_of(key.as_bytes()) < SLOTS / 2
}

/// The slot of a key that has no hash tag: CRC-16/XMODEM.
pub(super) fn slot_of(key: &[u8]) -> u16 {
    let step = |crc: u16, _| {
        if crc & 0x8000 == 0 {
            crc << 1
        } else {
            crc << 1 ^ 0x1021
        }
    };
    let byte = |crc: u16, byte: &u8| (0..8).fold(crc ^ u16::from(*byte) << 8, step);
    key.iter().fold(0, byte) % SLOTS
}
