//! Who signs certificates, and the files they are in.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};

use crate::{ZooKeeper, free_port};

/// See the module.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate for 127.0.0.1, and its key, in PEM.
pub struct Signed {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl Authority {
    /// One that nobody knows yet.
    #[allow(clippy::new_without_default)] // each is another one
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// Its own certificate, in PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Signs a certificate that is good for long.
    pub fn sign(&self) -> Signed {
        self.sign_as(CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap())
    }

    /// Signs one that has expired.
    pub fn sign_expired(&self) -> Signed {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        self.sign_as(params)
    }

    fn sign_as(&self, params: CertificateParams) -> Signed {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Signed {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }
}

/// The three files of an identity: `NAME.ca`, `NAME.crt`, `NAME.key`. Each is replaced whole.
pub struct IdentityFiles {
    dir: PathBuf,
    name: String,
}

impl IdentityFiles {
    /// Writes them.
    pub fn new(dir: &Path, name: &str, trusted: &[&Authority], shown: &Signed) -> Self {
        let files = Self {
            dir: dir.to_owned(),
            name: name.to_owned(),
        };
        files.trust(trusted);
        files.show(shown);
        files
    }

    /// Replaces the authorities.
    pub fn trust(&self, authorities: &[&Authority]) {
        let pems: Vec<String> = authorities.iter().map(|one| one.pem()).collect();
        self.replace("ca", &pems.concat());
    }

    /// Replaces the certificate, then the key: between the two they do not fit.
    pub fn show(&self, signed: &Signed) {
        self.replace("crt", &signed.certificate);
        self.replace("key", &signed.key);
    }

    /// Replaces one of the files, by its ending.
    pub fn replace(&self, kind: &str, text: &str) {
        let partial = self.dir.join(format!("{}.partial", self.name));
        fs::write(&partial, text).unwrap();
        fs::rename(partial, self.path(kind)).unwrap();
    }

    /// Where one of them is, by its ending.
    pub fn path(&self, kind: &str) -> String {
        let file = self.dir.join(format!("{}.{kind}", self.name));
        file.display().to_string()
    }

    /// The flags that name them, which begin so: `--tls`, `--zookeeper`.
    pub fn flags(&self, set: &str) -> Vec<String> {
        let kinds = [("ca", "ca"), ("cert", "crt"), ("key", "key")];
        let flags = kinds.map(|(flag, kind)| [format!("{set}-{flag}-file"), self.path(kind)]);
        flags.concat()
    }
}

/// A ZooKeeper that takes TLS, and the address at which it does.
pub struct SecureZooKeeper {
    /// The server; without TLS it is at its own address.
    pub server: ZooKeeper,
    /// Where it takes TLS.
    pub addr: String,
    dir: PathBuf,
}

impl SecureZooKeeper {
    /// Starts one that shows a certificate of this authority and takes those that it has signed.
    pub async fn start(dir: &Path, authority: &Authority) -> Self {
        Self::write(dir, &[authority], &authority.sign());
        let port = free_port();
        let lines = [
            format!("secureClientPort={port}"),
            "secureClientPortAddress=127.0.0.1".to_owned(),
            "serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory".to_owned(),
            format!("ssl.keyStore.location={}", dir.join(OWN).display()),
            "ssl.keyStore.type=PEM".to_owned(),
            format!("ssl.trustStore.location={}", dir.join(TRUSTED).display()),
            "ssl.trustStore.type=PEM".to_owned(),
            "ssl.hostnameVerification=false".to_owned(),
            "ssl.clientAuth=need".to_owned(),
        ];
        Self {
            server: ZooKeeper::start_with(dir, &lines).await,
            addr: format!("127.0.0.1:{port}"),
            dir: dir.to_owned(),
        }
    }

    fn write(dir: &Path, trusted: &[&Authority], own: &Signed) {
        let trusted: Vec<String> = trusted.iter().map(|one| one.pem()).collect();
        fs::write(dir.join(TRUSTED), trusted.concat()).unwrap();
        fs::write(dir.join(OWN), [own.key.as_str(), &own.certificate].concat()).unwrap();
    }

    /// Starts it again with another certificate, and others that it trusts; it must have been killed.
    pub async fn restart(&mut self, trusted: &[&Authority], own: &Signed) {
        Self::write(&self.dir, trusted, own);
        self.server.restart().await;
    }
}

const OWN: &str = "zookeeper-own.pem";
const TRUSTED: &str = "zookeeper-trusted.pem";
