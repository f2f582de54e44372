//! A real ZooKeeper server, from Debian's package.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use zookeeper_client::Client;

use crate::{Process, eventually, free_port};

/// Where Debian puts it; the jar names those that it needs, but for TLS.
const JARS: &str = "/usr/share/java/zookeeper.jar:/usr/share/java/netty-codec.jar:\
                    /usr/share/java/netty-resolver.jar";

const CONFIG: &str = "zoo.cfg";

/// See the module.
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
        let port = free_port();
        let home = dir.join(format!("zookeeper-{port}"));
        fs::create_dir_all(&home).unwrap();
        let data = home.join("data");
        let own = [
            "tickTime=500".to_owned(),
            format!("clientPort={port}"),
            "clientPortAddress=127.0.0.1".to_owned(),
            format!("dataDir={}", data.display()),
            "admin.enableServer=false".to_owned(),
        ];
        fs::write(home.join(CONFIG), [&own, lines].concat().join("\n")).unwrap();
        let started = Self {
            addr: format!("127.0.0.1:{port}"),
            process: Self::spawn(&home),
            home,
        };
        started.connect().await;
        started
    }

    fn spawn(home: &Path) -> Process {
        let config = home.join(CONFIG);
        let main = "org.apache.zookeeper.server.quorum.QuorumPeerMain";
        let args = ["-Xmx128m", "-cp", JARS, main, config.to_str().unwrap()];
        let (dir, name) = (home.parent().unwrap(), home.file_name().unwrap());
        Process::start(dir, name.to_str().unwrap(), "java", args, &[])
    }

    /// Starts it again, with what it knew; it must have been killed.
    pub async fn restart(&mut self) {
        self.process = Self::spawn(&self.home);
        self.connect().await;
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
