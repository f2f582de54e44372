//! A real ZooKeeper server, from Debian's package.

use std::{fs, path::Path, time::Duration};

use zookeeper_client::Client;

use crate::{Process, eventually, free_port};

/// Where Debian puts it; the jar names those that it needs.
const JAR: &str = "/usr/share/java/zookeeper.jar";

/// See the module.
pub struct ZooKeeper {
    /// Its `HOST:PORT`.
    pub addr: String,
    /// The process.
    pub process: Process,
}

impl ZooKeeper {
    /// Starts one alone, with short ticks; its data is in a folder of `dir`.
    pub async fn start(dir: &Path) -> Self {
        let port = free_port();
        let home = dir.join(format!("zookeeper-{port}"));
        fs::create_dir_all(&home).unwrap();
        let config = home.join("zoo.cfg");
        let data = home.join("data");
        let lines = [
            "tickTime=500".to_owned(),
            format!("clientPort={port}"),
            "clientPortAddress=127.0.0.1".to_owned(),
            format!("dataDir={}", data.display()),
            "admin.enableServer=false".to_owned(),
        ];
        fs::write(&config, lines.join("\n")).unwrap();
        let main = "org.apache.zookeeper.server.quorum.QuorumPeerMain";
        let args = ["-Xmx128m", "-cp", JAR, main, config.to_str().unwrap()];
        let process = Process::start(dir, &format!("zookeeper-{port}"), "java", args, &[]);
        let started = Self {
            addr: format!("127.0.0.1:{port}"),
            process,
        };
        eventually(|| async { started.try_connect().await.map(|_| ()) }).await;
        started
    }

    /// A client of it.
    pub async fn connect(&self) -> Client {
        eventually(|| self.try_connect()).await
    }

    async fn try_connect(&self) -> Result<Client, String> {
        let connector = Client::connector()
            .with_session_timeout(Duration::from_secs(4))
            .with_fail_eagerly();
        connector
            .connect(&self.addr)
            .await
            .map_err(|e| e.to_string())
    }
}
