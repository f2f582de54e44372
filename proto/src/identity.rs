//! What a process shows of itself over TLS, and whom it trusts: of PEM files, which are read again every
//! second, so that a rotation needs no restart.
//!
//! An [`Identity`] always has a [`Material`] that can be used. Files that cannot be read, or do not fit
//! together, leave the one before in place; that is said once, and counted. Files are replaced one after
//! the other, so that what does not fit for a moment is no fault: it is said when it stays so.
//!
//! Whoever opens or takes a connection uses what there is then, and follows what comes after
//! ([`Identity::subscribe`]): a connection to somebody whose authority is no longer trusted is cut. That a
//! certificate ends cuts none.

mod validity;

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SignatureScheme,
    client::{ResolvesClientCert, WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::{error, info, warn};

use self::validity::{Stage, Validity};

/// How often the files are read.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// For how long files may not fit together while they are replaced.
const PATIENCE: Duration = Duration::from_secs(2);

/// HTTP/2, by its name in a handshake.
const ALPN: &[u8] = b"h2";

/// The flags of mutual TLS on the connections between proxies, operators and controllers.
#[derive(Args, Clone, Default, Debug)]
pub struct TlsFlags {
    /// File with the certificate (PEM, with those between it and its authority) that this process shows
    /// where gRPC is spoken. With it gRPC is spoken over TLS only, and each side asks for the other's
    /// certificate. This and the two others are read again when they change
    #[arg(
        long,
        alias = "cert",
        env = "SLUICE_TLS_CERT_FILE",
        hide_env_values = true,
        value_name = "FILE",
        global = true
    )]
    pub tls_cert_file: Option<PathBuf>,
    /// File with its private key (PEM)
    #[arg(
        long,
        alias = "key",
        env = "SLUICE_TLS_KEY_FILE",
        hide_env_values = true,
        value_name = "FILE",
        global = true
    )]
    pub tls_key_file: Option<PathBuf>,
    /// File with the certificates (PEM) of who may have signed the other side's; while authorities change,
    /// both
    #[arg(
        long,
        alias = "cacert",
        env = "SLUICE_TLS_CA_FILE",
        hide_env_values = true,
        value_name = "FILE",
        global = true
    )]
    pub tls_ca_file: Option<PathBuf>,
}

impl TlsFlags {
    /// The files, which come together or not at all.
    pub fn files(&self) -> Result<Option<Files>, IdentityError> {
        match (&self.tls_ca_file, &self.tls_cert_file, &self.tls_key_file) {
            (None, None, None) => Ok(None),
            (Some(ca), Some(certificate), Some(key)) => Ok(Some(Files {
                set: "tls",
                ca: ca.clone(),
                own: Some((certificate.clone(), key.clone())),
            })),
            _ => Err(IdentityError(
                "--tls-cert-file, --tls-key-file and --tls-ca-file come together: give all three, or none"
                    .to_owned(),
            )),
        }
    }
}

/// Where an identity is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Files {
    /// How their settings begin: `tls` has `--tls-ca-file`. Their label in the metrics.
    pub set: &'static str,
    /// The certificates of who may have signed the other side's.
    pub ca: PathBuf,
    /// The certificate that is shown, and its key. `None`: none is.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// Why files are no identity: which, and what is wrong. Nothing of a key is in it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct IdentityError(String);

/// What the files have said.
#[derive(Clone, PartialEq, Eq)]
pub struct Pems {
    /// Certificates of authorities.
    pub ca: String,
    /// The certificate that is shown, and its key.
    pub own: Option<(String, String)>,
}

impl Files {
    fn read(&self) -> Result<Pems, IdentityError> {
        let read = |kind, path: &Path| {
            fs::read_to_string(path).map_err(|e| self.error(kind, path, &e.to_string()))
        };
        let own = self.own.as_ref();
        let own = own.map(|(certificate, key)| Ok((read("cert", certificate)?, read("key", key)?)));
        Ok(Pems {
            ca: read("ca", &self.ca)?,
            own: own.transpose()?,
        })
    }

    fn error(&self, kind: &str, path: &Path, fault: &str) -> IdentityError {
        let set = self.set;
        IdentityError(format!("--{set}-{kind}-file {}: {fault}", path.display()))
    }
}

/// A certificate that is in use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Held {
    /// `ca` or `cert`.
    kind: &'static str,
    /// Which of the file's, from 0.
    place: usize,
    validity: Validity,
}

/// What files have said that fits together.
pub struct Material {
    pems: Pems,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<WebPkiServerVerifier>,
    held: Vec<Held>,
}

/// What there is to be used, as it changes.
pub type Materials = watch::Receiver<Arc<Material>>;

/// Who was on the other side of a handshake.
pub(crate) struct Peer {
    /// What it showed: its certificate, and those between it and its authority.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// By what name it was called. `None`: it has called.
    pub(crate) name: Option<ServerName<'static>>,
    /// When that was.
    pub(crate) at: UnixTime,
}

impl Material {
    /// Reads the files, for one who does not follow them.
    pub fn once(files: &Files) -> Result<Materials, IdentityError> {
        Ok(watch::Sender::new(Arc::new(Self::load(files)?)).subscribe())
    }

    fn load(files: &Files) -> Result<Self, IdentityError> {
        Self::new(files, files.read()?)
    }

    fn new(files: &Files, pems: Pems) -> Result<Self, IdentityError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let of_ca = |fault: String| files.error("ca", &files.ca, &fault);
        let mut held = Vec::new();
        let mut roots = RootCertStore::empty();
        let authorities = certificates(&pems.ca).map_err(of_ca)?;
        note(&mut held, "ca", &authorities).map_err(of_ca)?;
        for authority in authorities {
            roots.add(authority).map_err(|e| of_ca(e.to_string()))?;
        }
        let roots = Arc::new(roots);
        let own = match (&files.own, &pems.own) {
            (Some((certificate_file, key_file)), Some((certificate, key))) => {
                let of_cert = |fault: String| files.error("cert", certificate_file, &fault);
                let of_key = |fault: String| files.error("key", key_file, &fault);
                let chain = certificates(certificate).map_err(of_cert)?;
                note(&mut held, "cert", &chain).map_err(of_cert)?;
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
                    .map_err(|e| of_key(format!("there is no private key in it ({e})")))?;
                let own = CertifiedKey::from_der(chain, key, &provider).map_err(|e| match e {
                    rustls::Error::InconsistentKeys(_) => of_key(format!(
                        "it is not the key of the certificate in {}",
                        certificate_file.display()
                    )),
                    other => of_cert(other.to_string()),
                })?;
                Own(Some(Arc::new(own)))
            }
            _ => Own(None),
        };
        let (own, of_roots) = (Arc::new(own), Arc::clone(&roots));
        let clients = WebPkiClientVerifier::builder_with_provider(of_roots, Arc::clone(&provider));
        let clients = clients.build().map_err(|e| of_ca(e.to_string()))?;
        let servers = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
        let servers = servers.build().map_err(|e| of_ca(e.to_string()))?;
        Ok(Self {
            pems,
            client: Arc::new(client(&provider, &servers, Arc::clone(&own))),
            server: Arc::new(server(&provider, &clients, own)),
            clients,
            servers,
            held,
        })
    }

    /// Whether who was let in once would be let in by those who are trusted now. The time is that of the
    /// handshake: whose certificate has ended since has done nothing wrong.
    pub(crate) fn trusts(&self, peer: &Peer) -> Result<(), rustls::Error> {
        let Some((own, between)) = peer.chain.split_first() else {
            return Err(rustls::Error::NoCertificatesPresented);
        };
        match &peer.name {
            None => self
                .clients
                .verify_client_cert(own, between, peer.at)
                .map(drop),
            Some(name) => self
                .servers
                .verify_server_cert(own, between, name, &[], peer.at)
                .map(drop),
        }
    }

    /// As it was read.
    pub fn pems(&self) -> &Pems {
        &self.pems
    }

    pub(crate) fn client(&self) -> &Arc<ClientConfig> {
        &self.client
    }

    pub(crate) fn server(&self) -> &Arc<ServerConfig> {
        &self.server
    }
}

const VERSIONS: &str = "the provider has suites for TLS 1.2 and 1.3";

/// How a connection is opened.
fn client(
    provider: &Arc<CryptoProvider>,
    servers: &Arc<WebPkiServerVerifier>,
    own: Arc<Own>,
) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .expect(VERSIONS)
        .with_webpki_verifier(Arc::clone(servers))
        .with_client_cert_resolver(own);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config
}

/// How a connection is taken: from who shows a certificate.
fn server(
    provider: &Arc<CryptoProvider>,
    clients: &Arc<dyn ClientCertVerifier>,
    own: Arc<Own>,
) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .expect(VERSIONS)
        .with_client_cert_verifier(Arc::clone(clients))
        .with_cert_resolver(own);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config
}

/// What is shown. Who has nothing to show is refused by whoever asks.
#[derive(Debug)]
struct Own(Option<Arc<CertifiedKey>>);

impl ResolvesClientCert for Own {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

impl ResolvesServerCert for Own {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }
}

/// At least one.
fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match all {
        Ok(all) if all.is_empty() => Err("there is no certificate in it".to_owned()),
        Ok(all) => Ok(all),
        Err(e) => Err(e.to_string()),
    }
}

fn note(
    held: &mut Vec<Held>,
    kind: &'static str,
    certificates: &[CertificateDer<'_>],
) -> Result<(), String> {
    for (place, certificate) in certificates.iter().enumerate() {
        held.push(Held {
            kind,
            place,
            validity: Validity::of(certificate)?,
        });
    }
    Ok(())
}

/// See the module.
pub struct Identity {
    files: Files,
    current: watch::Sender<Arc<Material>>,
    /// How often something newer was taken.
    taken: AtomicU64,
    /// How often something newer was of no use.
    refused: AtomicU64,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(f)
    }
}

impl Identity {
    /// Reads the files; what is wrong with them now is an error.
    pub fn load(files: Files) -> Result<Self, IdentityError> {
        let material = Material::load(&files)?;
        Ok(Self {
            files,
            current: watch::Sender::new(Arc::new(material)),
            taken: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })
    }

    /// What is to be used now.
    pub fn current(&self) -> Arc<Material> {
        Arc::clone(&self.current.borrow())
    }

    /// The same, as it changes.
    pub fn subscribe(&self) -> Materials {
        self.current.subscribe()
    }

    /// Follows the files, and says when certificates end, until the task is dropped.
    pub async fn keep(self: Arc<Self>) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unused = None;
        let mut told = BTreeMap::new();
        loop {
            ticks.tick().await;
            let files = self.files.clone();
            let Ok(found) = spawn_blocking(move || files.read()).await else {
                return; // the runtime is ending
            };
            self.take(&mut unused, found, Instant::now());
            let material = self.current();
            for (held, stage) in ends(&mut told, &material.held, unix_seconds()) {
                let file = format!("--{}-{}-file", self.files.set, held.kind);
                let (place, left) = (held.place, held.validity.left(unix_seconds()));
                let text = format!("a certificate {stage}: put a new one in its place");
                match stage {
                    Stage::Over => error!(file, place, left_seconds = left, "{text}"),
                    Stage::Month | Stage::Week | Stage::Day => {
                        warn!(file, place, left_seconds = left, "{text}");
                    }
                }
            }
        }
    }

    fn take(&self, unused: &mut Option<Unused>, found: Found, now: Instant) {
        let set = self.files.set;
        match judge(&self.current().pems, unused.as_ref(), &found, now) {
            Judgement::InUse => *unused = None,
            Judgement::Known => {}
            Judgement::Stays => {
                let Some(unused) = unused else { return };
                unused.is_told = true;
                self.refused.fetch_add(1, Relaxed);
                error!(set, error = %unused.why, "certificates have changed and cannot be used; those before are");
            }
            Judgement::New => match found
                .clone()
                .and_then(|pems| Material::new(&self.files, pems))
            {
                Ok(material) => {
                    *unused = None;
                    self.taken.fetch_add(1, Relaxed);
                    self.current.send_replace(Arc::new(material));
                    info!(set, "certificates have changed, and are used from now on");
                }
                Err(why) => {
                    *unused = Some(Unused {
                        found,
                        why,
                        since: now,
                        is_told: false,
                    });
                }
            },
        }
    }
}

/// What was read, or why nothing was.
type Found = Result<Pems, IdentityError>;

/// What was found last and is of no use.
struct Unused {
    found: Found,
    why: IdentityError,
    /// When it was found first.
    since: Instant,
    /// It was said.
    is_told: bool,
}

/// What to do about what was found.
#[derive(PartialEq, Eq, Debug)]
enum Judgement {
    /// It is what is used.
    InUse,
    /// It is of no use, which is known; there is nothing to say.
    Known,
    /// It is of no use and stays so: to be said.
    Stays,
    /// It was not seen before.
    New,
}

fn judge(used: &Pems, unused: Option<&Unused>, found: &Found, now: Instant) -> Judgement {
    if found.as_ref() == Ok(used) {
        return Judgement::InUse;
    }
    match unused {
        Some(unused) if unused.found == *found => {
            match unused.is_told || now.duration_since(unused.since) < PATIENCE {
                true => Judgement::Known,
                false => Judgement::Stays,
            }
        }
        _ => Judgement::New,
    }
}

/// Of which certificates is to be said that they end. `told`: what was said before, of those held.
fn ends(told: &mut BTreeMap<Held, Stage>, held: &[Held], now: i64) -> Vec<(Held, Stage)> {
    told.retain(|one, _| held.contains(one));
    let mut due = Vec::new();
    for one in held {
        let before = told.get(one).copied();
        if let Some(stage) = validity::due(before, one.validity.stage(now)) {
            told.insert(*one, stage);
            due.push((*one, stage));
        }
    }
    due
}

fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
}

/// What the metrics of a process show of its identities.
#[derive(Debug)]
pub struct CertificateMetrics(pub Vec<Arc<Identity>>);

impl Collector for CertificateMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        let now = unix_seconds();
        let mut metric = encoder.encode_descriptor(
            "certificate_expiry",
            "Until a certificate in use ends; negative once it has",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for identity in &self.0 {
            for held in &identity.current().held {
                let file = format!("{}-{}-file", identity.files.set, held.kind);
                let labels = [("file", file), ("place", held.place.to_string())];
                let left = ConstGauge::new(held.validity.left(now));
                left.encode(metric.encode_family(&labels)?)?;
            }
        }
        for (name, help, count) in [
            (
                "certificate_reloads",
                "Times that certificates had changed and were taken",
                Identity::taken as fn(&Identity) -> u64,
            ),
            (
                "certificate_reloads_refused",
                "Times that certificates had changed and could not be used",
                Identity::refused,
            ),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for identity in &self.0 {
                let labels = [("set", identity.files.set)];
                ConstCounter::new(count(identity)).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

impl Identity {
    fn taken(&self) -> u64 {
        self.taken.load(Relaxed)
    }

    fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pems(ca: &str) -> Pems {
        let ca = ca.to_owned();
        Pems { ca, own: None }
    }

    #[test]
    fn what_does_not_fit_for_a_moment_is_no_fault() {
        let since = Instant::now();
        let unused = |found: &Found, is_told| Unused {
            found: found.clone(),
            why: IdentityError("no".to_owned()),
            since,
            is_told,
        };
        let [used, torn] = ["a", "b"].map(pems);
        let missing = Err(IdentityError("gone".to_owned()));
        let check = |unused: Option<&Unused>, found: &Found, after, expected| {
            assert_eq!(judge(&used, unused, found, since + after), expected);
        };
        use Judgement::{InUse, Known, New, Stays};
        let (soon, later) = (PATIENCE / 2, PATIENCE);
        for bad in [Ok(torn), missing] {
            check(None, &Ok(used.clone()), soon, InUse);
            check(None, &bad, soon, New);
            check(Some(&unused(&bad, false)), &bad, soon, Known);
            check(Some(&unused(&bad, false)), &bad, later, Stays);
            check(Some(&unused(&bad, true)), &bad, later, Known);
            check(Some(&unused(&bad, true)), &Ok(pems("c")), later, New);
            check(Some(&unused(&bad, true)), &Ok(used.clone()), later, InUse);
        }
    }

    #[test]
    fn of_each_certificate_an_end_is_told_once() {
        // From 1970 to 2000, and to 2001.
        let [one, two] = [946_684_800, 978_307_200].map(|until| Held {
            kind: "cert",
            place: 0,
            validity: Validity::between(0, until),
        });
        let mut told = BTreeMap::new();
        let mut tell = |held: &[Held], now| ends(&mut told, held, now);
        assert!(tell(&[one], 0).is_empty());
        let near = 946_684_800 - 1;
        assert_eq!(tell(&[one, two], near), [(one, Stage::Day)]);
        assert!(tell(&[one, two], near).is_empty());
        assert_eq!(tell(&[one], near + 1), [(one, Stage::Over)]);
        assert!(tell(&[two], near + 1).is_empty());
        // It was replaced, and is back.
        assert_eq!(tell(&[one], near + 2), [(one, Stage::Over)]);
    }

    #[test]
    fn flags_come_together() {
        let flags = |ca: Option<&str>, cert: Option<&str>, key: Option<&str>| TlsFlags {
            tls_ca_file: ca.map(PathBuf::from),
            tls_cert_file: cert.map(PathBuf::from),
            tls_key_file: key.map(PathBuf::from),
        };
        assert_eq!(flags(None, None, None).files(), Ok(None));
        let all = flags(Some("a"), Some("c"), Some("k")).files().unwrap();
        let own = Some(("c".into(), "k".into()));
        assert_eq!(all.unwrap().own, own);
        for some in [
            flags(Some("a"), None, None),
            flags(None, Some("c"), Some("k")),
            flags(Some("a"), Some("c"), None),
        ] {
            assert!(some.files().unwrap_err().to_string().contains("all three"));
        }
    }

    #[test]
    fn files_that_are_no_identity_are_named() {
        let files = Files {
            set: "tls",
            ca: "/no/ca.pem".into(),
            own: None,
        };
        let unread = Material::load(&files).err().unwrap().to_string();
        assert!(
            unread.starts_with("--tls-ca-file /no/ca.pem: No such file"),
            "{unread}"
        );
        let garbage = "-----BEGIN CERTIFICATE-----\nMAo=\n-----END CERTIFICATE-----\n";
        for (ca, expected) in [("", "there is no certificate in it"), (garbage, "")] {
            let error = Material::new(&files, pems(ca)).err().unwrap().to_string();
            assert!(error.starts_with("--tls-ca-file /no/ca.pem: "), "{error}");
            assert!(error.contains(expected), "{error}");
        }
    }
}
