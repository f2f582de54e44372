//! The settings of the controller. Each flag's help is its manual.

use std::{net::IpAddr, num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};
use proto::{
    ClusterId,
    identity::{Files, TlsFlags},
    settings::{ConfigFlags, duration},
};
use tracing_subscriber::EnvFilter;

/// Before each environment variable.
pub const ENV_PREFIX: &str = "SLUICE_CONTROLLER";

/// How a log line is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Keeps the truth of one Sluice cluster and streams its topology to the proxies.
#[derive(Parser, Clone, Debug)]
#[command(name = "sluice-controller", version)]
pub struct Settings {
    /// Where gRPC listens, for proxies and operators; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:18080", value_parser = address)]
    pub listen: String,
    /// Where HTTP listens: /livez /readyz /metrics; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:18081", value_parser = address)]
    pub http: String,
    /// Folder of the embedded store, which is the truth of the cluster: back it up. With --zookeeper, of
    /// a copy, which may be removed
    #[arg(long, value_name = "DIR", default_value = "sluice-data")]
    pub data_dir: PathBuf,
    /// Name of the cluster; a store of another name is refused
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = cluster_name)]
    pub cluster: String,
    /// ZooKeeper servers that keep the truth, for several controllers of one cluster; without them the
    /// folder of --data-dir does
    #[arg(long, value_name = "HOST:PORT,…", value_parser = ensemble)]
    pub zookeeper: Option<String>,
    /// Node in ZooKeeper below which each cluster has one of its name
    #[arg(long, value_name = "PATH", default_value = "/sluice", value_parser = node)]
    pub zookeeper_chroot: String,
    /// File with USER:PASSWORD of ZooKeeper's digest scheme; with it, nobody else may read or write the
    /// cluster's nodes
    #[arg(long, value_name = "FILE")]
    pub zookeeper_auth_file: Option<PathBuf>,
    /// File with the certificates (PEM) of who may have signed those of the ZooKeeper servers; with it, all
    /// of --zookeeper are spoken to over TLS, at their secure ports. This and the two others are read
    /// again when they change
    #[arg(long, value_name = "FILE", requires = "zookeeper")]
    pub zookeeper_ca_file: Option<PathBuf>,
    /// File with the certificate (PEM) that this controller shows to ZooKeeper
    #[arg(
        long,
        value_name = "FILE",
        requires = "zookeeper_ca_file",
        requires = "zookeeper_key_file"
    )]
    pub zookeeper_cert_file: Option<PathBuf>,
    /// File with its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "zookeeper_cert_file")]
    pub zookeeper_key_file: Option<PathBuf>,
    /// Node in ZooKeeper below which Jodis clients look for proxies: there the leader keeps a node for each
    /// that is connected, in Codis's format
    #[arg(long, value_name = "/jodis/PRODUCT", requires = "zookeeper", value_parser = node)]
    pub jodis: Option<String>,
    /// After so long without a word from the leader another controller takes over. The proxies'
    /// --hold-patience is to be longer, by some seconds
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = positive)]
    pub zookeeper_session_timeout: Duration,
    /// Where operators and proxies reach gRPC, as stand-by controllers are to tell them: of each controller
    /// another; by default --listen
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    pub advertise: Option<String>,
    /// How gRPC is spoken
    #[command(flatten)]
    pub tls: TlsFlags,
    /// TOML file with the logins for the Redis servers; see also SLUICE_SERVER_PASSWORD
    #[arg(long, value_name = "FILE")]
    pub server_auth_file: Option<PathBuf>,
    /// A proxy that was not connected for so long is forgotten, once every server has shut it out; 0s keeps
    /// it until it is removed
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = duration)]
    pub proxy_expiry: Duration,
    /// In how many migrations a group takes part at a time, as source or target; more of them wait. Each
    /// reads all keys of its source once, and eases off when that answers more slowly
    #[arg(long, value_name = "N", default_value = "2")]
    pub migrations_per_group: NonZeroUsize,
    /// How often each server is probed
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = positive)]
    pub probe_interval: Duration,
    /// How long a server may take to answer a probe
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = positive)]
    pub probe_timeout: Duration,
    /// File to write the bound addresses to, as JSON, once both are bound
    #[arg(long, value_name = "FILE")]
    pub ports_file: Option<PathBuf>,
    /// How log lines look
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What is logged, as info or controlplane=debug,warn
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = log_filter)]
    pub log: String,
    /// About the settings themselves
    #[command(flatten)]
    pub config: ConfigFlags,
}

impl Settings {
    /// The files for TLS with ZooKeeper. `None`: it is spoken to in plain text.
    pub(crate) fn zookeeper_files(&self) -> Option<Files> {
        let own = self.zookeeper_cert_file.clone();
        Some(Files {
            set: "zookeeper",
            ca: self.zookeeper_ca_file.clone()?,
            own: own.zip(self.zookeeper_key_file.clone()),
        })
    }

    /// Whether stand-bys can say where this controller is. Without an ensemble there is none that would.
    pub(crate) fn can_be_told(&self) -> Result<(), String> {
        let (flag, told) = match &self.advertise {
            Some(address) => ("advertise", address),
            None => ("listen", &self.listen),
        };
        let host = told
            .rsplit_once(':')
            .map_or(told.as_str(), |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let is_any = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
        if self.zookeeper.is_none() || !is_any {
            return Ok(());
        }
        Err(format!(
            "--{flag} {told} is every address of this machine: with --zookeeper, other controllers tell \
             proxies and operators where this one is, so give it one of its own with --advertise \
             HOST:PORT"
        ))
    }
}

/// What can be bound; the name is resolved when it is.
fn address(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
            Ok(text.to_owned())
        }
        _ => Err("must be host:port, as 127.0.0.1:18080 or [::]:18080".to_owned()),
    }
}

fn ensemble(text: &str) -> Result<String, String> {
    for server in text.split(',') {
        address(server)?;
        let name = server.rsplit_once(':').map(|(name, _)| name);
        if !name.is_some_and(is_host) {
            return Err(format!(
                "`{server}` must be the address or name of a host, and a port"
            ));
        }
    }
    Ok(text.to_owned())
}

/// An address, or a name that may stand in a certificate: which TLS compares it with.
fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let edge = label.starts_with('-') || label.ends_with('-');
        (1..=63).contains(&label.len()) && label.chars().all(good) && !edge
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    let is_numeric = last.bytes().all(|byte| byte.is_ascii_digit());
    let address = text.trim_start_matches('[').trim_end_matches(']');
    address.parse::<IpAddr>().is_ok()
        || text.len() <= 253 && text.split('.').all(label) && !is_numeric
}

/// An absolute path of a node, without a `/` at its end.
fn node(text: &str) -> Result<String, String> {
    let good = |part: &str| !part.is_empty() && part != "." && part != "..";
    match text.strip_prefix('/') {
        Some(rest) if rest.split('/').all(good) => Ok(text.to_owned()),
        _ => Err("must be a path, as /sluice or /infra/sluice".to_owned()),
    }
}

fn cluster_name(text: &str) -> Result<String, String> {
    ClusterId::new(text)
        .map(Into::into)
        .map_err(|e| e.rule.to_owned())
}

fn positive(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be more than nothing".to_owned()),
        time => Ok(time),
    }
}

fn log_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map_err(|e| e.to_string())?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn check(args: &[&str]) -> Result<Settings, String> {
        let argv = ["sluice-controller"].iter().chain(args).map(OsString::from);
        proto::settings::parse("SLUICE_TEST_CONTROLLER", argv)
            .map(|parsed| parsed.settings().unwrap())
            .map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_are_as_documented() {
        let settings = check(&[]).unwrap();
        assert_eq!(settings.listen, "127.0.0.1:18080");
        assert_eq!(settings.http, "127.0.0.1:18081");
        assert_eq!(settings.probe_interval, Duration::from_secs(2));
    }

    #[test]
    fn zookeepers_are_addresses_or_names() {
        for servers in [
            "a:1",
            "zk-1.example.com:2181,zk_2:2181",
            "10.0.0.1:1",
            "[::1]:2181",
        ] {
            assert!(check(&["--zookeeper", servers]).is_ok(), "{servers}");
        }
    }

    #[test]
    fn a_controller_of_several_has_an_address_to_be_told() {
        let told = |args: &[&str]| check(args).unwrap().can_be_told();
        let zookeeper = ["--zookeeper", "a:1"];
        for any in ["0.0.0.0:18080", "[::]:18080", ":::1"] {
            assert_eq!(told(&["--listen", any]), Ok(()), "{any}");
            let error = told(&[&zookeeper[..], &["--listen", any]].concat()).unwrap_err();
            assert!(error.contains("with --advertise HOST:PORT"), "{error}");
            let named = [&zookeeper[..], &["--listen", any, "--advertise", "h:1"]].concat();
            assert_eq!(told(&named), Ok(()), "{any}");
            let error = told(&[&zookeeper[..], &["--advertise", any]].concat()).unwrap_err();
            assert!(error.contains("--advertise "), "{error}");
        }
        assert_eq!(told(&zookeeper), Ok(()));
    }

    #[test]
    fn bad_values_are_named() {
        for (args, error) in [
            (["--listen", "nowhere"], "must be host:port"),
            (["--http", "h:65536"], "must be host:port"),
            (["--cluster", "A B"], "must be 1 to 63"),
            (["--zookeeper", "a:1,b"], "must be host:port"),
            (["--zookeeper", "a..b:1"], "name of a host"),
            (["--zookeeper", "a.1:1"], "name of a host"),
            (["--zookeeper", "a-:1"], "name of a host"),
            (["--zookeeper-ca-file", "f"], "--zookeeper <"),
            (["--zookeeper-chroot", "/a/"], "must be a path"),
            (["--probe-interval", "0s"], "more than nothing"),
            (["--probe-timeout", "0ms"], "more than nothing"),
            (["--log", "a=b=c"], "--log"),
        ] {
            let got = check(&args).unwrap_err();
            assert!(got.contains(error), "expected `{error}` in `{got}`");
        }
    }
}
