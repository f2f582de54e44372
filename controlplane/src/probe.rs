//! Asking a server what it is.
//!
//! One connection a probe: connect, `AUTH` with the group's login, `INFO`, close; all within one
//! deadline. What it says becomes [`Facts`]; what they mean is decided elsewhere (`admission.rs`).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use proto::{
    GroupId, ServerAddr,
    credentials::{Credentials, Login},
};
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, IntoConnectionInfo, RedisConnectionInfo, RedisError,
    aio::MultiplexedConnection,
};
use tokio::{net, time};

use crate::model::Role;

/// Whose software a server runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flavor {
    /// Redis, or something that says it is.
    Redis,
    /// Valkey.
    Valkey,
}

/// The primary a replica follows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upstream {
    /// As the replica has it, `host:port`.
    pub address: String,
    /// What that resolves to, here. Empty: nothing.
    pub resolved: Vec<SocketAddr>,
    /// Whether the link to it is up.
    pub link_up: bool,
}

/// What a server says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// What its address resolves to.
    pub resolved: Vec<SocketAddr>,
    /// Whose software it runs.
    pub flavor: Flavor,
    /// Of the software.
    pub version: String,
    /// Of its process: new at each start.
    pub run_id: String,
    /// The id of its data's history: a replica has its primary's. Empty below Redis 4.
    pub replication_id: String,
    /// What it follows. `None`: it is a primary.
    pub upstream: Option<Upstream>,
    /// Whether it runs in Redis Cluster mode.
    pub cluster_mode: bool,
    /// Bytes of memory it uses.
    pub used_memory: u64,
    /// Keys in all its databases.
    pub keys: u64,
}

impl Facts {
    /// The role it says it has.
    pub fn role(&self) -> Role {
        match self.upstream {
            None => Role::Primary,
            Some(_) => Role::Replica,
        }
    }
}

/// Why a server did not say what it is.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// Nothing answers.
    #[error("does not answer: {0}")]
    Unreachable(String),
    /// It answers, but does not let us in.
    #[error("refuses the credentials: {0}")]
    AuthFailed(String),
    /// It answers, but not as Redis or Valkey.
    #[error("does not answer as Redis or Valkey: {0}")]
    NotRedis(String),
    /// It is a proxy with this id: it would route to itself.
    #[error("is a Sluice proxy ({0}), not a server")]
    Proxy(String),
    /// It has no fence record of this leader, so that it is not asked what it is.
    #[error("{0}")]
    Unfenced(String),
}

/// What is needed to ask; cheap to clone.
#[derive(Clone)]
pub struct Probe {
    credentials: Arc<Credentials>,
    timeout: Duration,
}

impl Probe {
    /// With a deadline for each server.
    pub fn new(credentials: Credentials, timeout: Duration) -> Self {
        Self {
            credentials: Arc::new(credentials),
            timeout,
        }
    }

    /// Asks a server, with the login of the group it is in, or is to join.
    pub async fn ask(&self, address: &ServerAddr, group: &GroupId) -> Result<Facts, Failure> {
        match time::timeout(self.timeout, self.converse(address, group)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::Unreachable(format!(
                "no answer within {:?}",
                self.timeout
            ))),
        }
    }

    /// Connects, and logs in as who is to be in this group.
    pub(crate) async fn log_in(
        &self,
        address: &ServerAddr,
        group: &GroupId,
    ) -> Result<MultiplexedConnection, Failure> {
        let mut connection = self.connect(address).await.map_err(|e| failure(&e))?;
        if let Some(login) = self.credentials.login(group) {
            log_in(&mut connection, &login)
                .await
                .map_err(|e| Failure::AuthFailed(words(&e)))?;
        }
        Ok(connection)
    }

    /// The login at the servers of a group.
    pub(crate) fn login(&self, group: &GroupId) -> Option<Login> {
        self.credentials.login(group)
    }

    /// The user that it is at the servers of a group.
    pub(crate) fn user(&self, group: &GroupId) -> String {
        let login = self.credentials.login(group);
        let name = login.and_then(|login| login.username);
        name.unwrap_or_else(|| "default".to_owned())
    }

    async fn converse(&self, address: &ServerAddr, group: &GroupId) -> Result<Facts, Failure> {
        let resolved = resolve(address.as_str()).await;
        let mut connection = self.log_in(address, group).await?;
        let info: String = redis::cmd("INFO")
            .query_async(&mut connection)
            .await
            .map_err(|e| failure(&e))?;
        let mut facts = parse(&info, resolved)?;
        if let Some(upstream) = &mut facts.upstream {
            upstream.resolved = resolve(&upstream.address).await;
        }
        Ok(facts)
    }

    /// Connects and sends nothing yet.
    async fn connect(&self, address: &ServerAddr) -> Result<MultiplexedConnection, RedisError> {
        let (host, port) = host_and_port(address);
        let info = (host, port)
            .into_connection_info()?
            .set_redis_settings(RedisConnectionInfo::default().set_skip_set_lib_name());
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        Client::open(info)?
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }
}

async fn log_in(connection: &mut MultiplexedConnection, login: &Login) -> Result<(), RedisError> {
    let mut auth = redis::cmd("AUTH");
    if let Some(username) = &login.username {
        auth.arg(username);
    }
    auth.arg(login.password.expose())
        .query_async(connection)
        .await
}

fn host_and_port(address: &ServerAddr) -> (&str, u16) {
    let (host, port) = address
        .as_str()
        .rsplit_once(':')
        .expect("an address is host:port");
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (host, port.parse().expect("an address has a port"))
}

async fn resolve(address: &str) -> Vec<SocketAddr> {
    match net::lookup_host(address).await {
        Ok(found) => found.collect(),
        Err(_) => Vec::new(), // a replica may name its primary by a name only it knows
    }
}

pub(crate) fn failure(error: &RedisError) -> Failure {
    match (error.kind(), error.code()) {
        (ErrorKind::Io, _) => Failure::Unreachable(words(error)),
        (_, Some("NOAUTH" | "NOPERM" | "WRONGPASS")) => Failure::AuthFailed(words(error)),
        (_, Some("DENIED" | "LOADING" | "BUSY")) => Failure::Unreachable(words(error)),
        // Redis says so, with this code, to whom it cannot take on.
        (_, Some("ERR")) if words(error).contains("max number of clients") => {
            Failure::Unreachable(words(error))
        }
        _ => Failure::NotRedis(words(error)),
    }
}

pub(crate) fn words(error: &RedisError) -> String {
    one_line(&match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => error.to_string(),
    })
}

/// Foreign words, as much of them as may stand in a message.
fn one_line(text: &str) -> String {
    const SHOWN: usize = 200;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN) {
        None => line,
        Some((end, _)) => format!("{}…", &line[..end]),
    }
}

/// The value of a field of `INFO`.
pub(crate) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

/// Reads what `INFO` answers.
fn parse(info: &str, resolved: Vec<SocketAddr>) -> Result<Facts, Failure> {
    if field(info, "sluice_version").is_some() {
        let id = field(info, "proxy_id").unwrap_or_default();
        return Err(Failure::Proxy(one_line(id)));
    }
    facts(info, resolved).map_err(|lack| Failure::NotRedis(one_line(&lack)))
}

/// The error says what `INFO` lacks.
fn facts(info: &str, resolved: Vec<SocketAddr>) -> Result<Facts, String> {
    let field = |name| field(info, name);
    let need = |name| field(name).ok_or_else(|| format!("its INFO has no {name}"));
    let number = |name| field(name).and_then(|n| n.parse().ok()).unwrap_or(0);
    if field("redis_mode") == Some("sentinel") {
        return Err("it is a Sentinel".to_owned());
    }
    let (flavor, version) = match field("valkey_version") {
        Some(version) => (Flavor::Valkey, version),
        None => (Flavor::Redis, need("redis_version")?),
    };
    let upstream = match need("role")? {
        "master" => None,
        "slave" => Some(Upstream {
            address: address(need("master_host")?, need("master_port")?),
            resolved: Vec::new(),
            link_up: field("master_link_status") == Some("up"),
        }),
        other => return Err(format!("its role is `{other}`")),
    };
    Ok(Facts {
        resolved,
        flavor,
        version: version.to_owned(),
        run_id: need("run_id")?.to_owned(),
        replication_id: field("master_replid").unwrap_or_default().to_owned(),
        upstream,
        cluster_mode: field("cluster_enabled") == Some("1"),
        used_memory: number("used_memory"),
        keys: info.lines().filter_map(keys_of).sum(),
    })
}

fn address(host: &str, port: &str) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// The keys that a line such as `db0:keys=5,expires=0` tells of.
fn keys_of(line: &str) -> Option<u64> {
    let (number, rest) = line.strip_prefix("db")?.split_once(":keys=")?;
    number.parse::<u32>().ok()?;
    rest.split(',').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIMARY: &str = "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\n\
        run_id:abc\r\n# Memory\r\nused_memory:1024\r\nused_memory_rss:9\r\n# Replication\r\n\
        role:master\r\nmaster_replid:r1\r\nmaster_replid2:r0\r\n# Cluster\r\ncluster_enabled:0\r\n\
        # Keyspace\r\ndb0:keys=5,expires=0,avg_ttl=0\r\ndb11:keys=2,expires=0,avg_ttl=0\r\n";

    #[test]
    fn a_primary() {
        let facts = parse(PRIMARY, Vec::new()).unwrap();
        assert_eq!((facts.flavor, facts.role()), (Flavor::Redis, Role::Primary));
        assert_eq!(
            (facts.version.as_str(), facts.run_id.as_str()),
            ("7.0.15", "abc")
        );
        assert_eq!((facts.used_memory, facts.keys), (1024, 7));
        assert_eq!(
            (facts.replication_id.as_str(), facts.cluster_mode),
            ("r1", false)
        );
    }

    #[test]
    fn a_replica_of_valkey() {
        let info = "redis_version:7.2.4\nserver_name:valkey\nvalkey_version:9.0.1\nrun_id:x\n\
            role:slave\nmaster_host:::1\nmaster_port:6379\nmaster_link_status:down\n";
        let facts = parse(info, Vec::new()).unwrap();
        assert_eq!(facts.flavor, Flavor::Valkey);
        assert_eq!(facts.version, "9.0.1");
        let upstream = facts.upstream.unwrap();
        assert_eq!(
            (upstream.address.as_str(), upstream.link_up),
            ("[::1]:6379", false)
        );
    }

    #[test]
    fn foreign_words_are_one_short_line() {
        assert_eq!(
            one_line(" HTTP/1.1\r\n\tBad  Request\n"),
            "HTTP/1.1 Bad Request"
        );
        assert_eq!(one_line(&"ä".repeat(200)), "ä".repeat(200));
        assert_eq!(one_line(&"ä".repeat(900)), "ä".repeat(200) + "…");
    }

    #[test]
    fn what_is_no_server() {
        for (info, error) in [
            ("", "no redis_version"),
            ("redis_version:7\nrun_id:x\n", "no role"),
            ("redis_version:7\nrole:sentinel\n", "its role is `sentinel`"),
            ("redis_version:7\nredis_mode:sentinel\n", "it is a Sentinel"),
            ("redis_version:7\nrole:master\n", "no run_id"),
            (
                "redis_version:7\nrole:master\nrun_id:x\n# Sluice\nsluice_version:1\nproxy_id:p1\n",
                "is a Sluice proxy (p1), not a server",
            ),
        ] {
            let got = parse(info, Vec::new()).unwrap_err().to_string();
            assert!(got.contains(error), "expected `{error}`, got `{got}`");
        }
    }
}
