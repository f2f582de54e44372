//! Real ZooKeeper servers, as Debian packages them: one alone, or several that agree.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use zookeeper_client::Client;

use crate::{eventually, process::Process, process::free_port};

/// Where Debian puts it; the jar names those that it needs, but for TLS.
const JARS: &str = "/usr/share/java/zookeeper.jar:/usr/share/java/netty-codec.jar:\
                    /usr/share/java/netty-resolver.jar";

/// A small heap, which starts quickly; and a log that does not take 64 MiB before anything is in it.
const JVM: [&str; 4] = [
    "-Xmx96m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Dzookeeper.preAllocSize=16",
];

const CONFIG: &str = "zoo.cfg";

/// One server.
pub struct ZooKeeper {
    /// Its `HOST:PORT`.
    pub addr: String,
    /// The process.
    pub process: Process,
    home: PathBuf,
}

impl ZooKeeper {
    /// Starts one alone, with short ticks; its data is in a folder of `dir`.
    pub async fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[]).await
    }

    /// The same, with further lines of its configuration.
    pub async fn start_with(dir: &Path, lines: &[String]) -> Self {
        let started = Self::begin(dir, lines, None);
        started.connect().await;
        started
    }

    /// Starts one, and does not wait. `number`: who it is among several.
    fn begin(dir: &Path, lines: &[String], number: Option<usize>) -> Self {
        let port = free_port();
        let home = dir.join(format!("zookeeper-{port}"));
        let data = home.join("data");
        fs::create_dir_all(&data).unwrap();
        if let Some(number) = number {
            fs::write(data.join("myid"), number.to_string()).unwrap();
        }
        let own = [
            "tickTime=500".to_owned(),
            format!("clientPort={port}"),
            "clientPortAddress=127.0.0.1".to_owned(),
            format!("dataDir={}", data.display()),
            "admin.enableServer=false".to_owned(),
        ];
        fs::write(home.join(CONFIG), [&own, lines].concat().join("\n")).unwrap();
        Self {
            addr: format!("127.0.0.1:{port}"),
            process: Self::spawn(&home, &[]),
            home,
        }
    }

    fn spawn(home: &Path, env: &[(&str, &str)]) -> Process {
        let config = home.join(CONFIG);
        let main = "org.apache.zookeeper.server.quorum.QuorumPeerMain";
        let args = ["-cp", JARS, main, config.to_str().unwrap()];
        let (dir, name) = (home.parent().unwrap(), home.file_name().unwrap());
        Process::start(
            dir,
            name.to_str().unwrap(),
            "java",
            JVM.iter().chain(&args),
            env,
        )
    }

    /// Starts it again, with what it knew; it must have been killed.
    pub async fn restart(&mut self) {
        self.revive();
        self.connect().await;
    }

    /// The same, with these variables in its environment.
    pub async fn restart_with(&mut self, env: &[(&str, &str)]) {
        self.process = Self::spawn(&self.home, env);
        self.connect().await;
    }

    /// The same, and does not wait until it serves.
    pub fn revive(&mut self) {
        self.process = Self::spawn(&self.home, &[]);
    }

    /// Where it keeps what it knows.
    pub fn data_dir(&self) -> PathBuf {
        self.home.join("data")
    }

    /// A client of it.
    pub async fn connect(&self) -> Client {
        self.connect_for(Duration::from_secs(4)).await
    }

    /// A client whose session outlives so long a silence.
    pub async fn connect_for(&self, session_timeout: Duration) -> Client {
        eventually(|| async {
            let connector = Client::connector()
                .with_session_timeout(session_timeout)
                .with_fail_eagerly();
            let connected = connector.connect(&self.addr).await;
            connected.map_err(|e| e.to_string())
        })
        .await
    }
}

/// Several servers, of which most must be there.
pub struct Ensemble {
    /// Each of them.
    pub members: Vec<ZooKeeper>,
}

impl Ensemble {
    /// Starts so many; returns once each of them serves.
    pub async fn start(dir: &Path, count: usize) -> Self {
        let ports = (1..=count).map(|number| (number, free_port(), free_port()));
        let servers =
            ports.map(|(n, peers, votes)| format!("server.{n}=127.0.0.1:{peers}:{votes}"));
        let limits = ["initLimit=20", "syncLimit=10"].map(str::to_owned);
        let lines: Vec<String> = limits.into_iter().chain(servers).collect();
        let members = (1..=count).map(|number| ZooKeeper::begin(dir, &lines, Some(number)));
        let members: Vec<ZooKeeper> = members.collect();
        for member in &members {
            member.connect().await;
        }
        Self { members }
    }

    /// `HOST:PORT,…` of all.
    pub fn addrs(&self) -> String {
        let addrs: Vec<&str> = self.members.iter().map(|m| m.addr.as_str()).collect();
        addrs.join(",")
    }
}
