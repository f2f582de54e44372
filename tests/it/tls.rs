//! A controller that speaks TLS to ZooKeeper.

use std::{fs, path::Path, process::Command, time::Duration};

use proto::v1::{self, cluster::Role};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tests::{Controller, Process, ZooKeeper, binary, eventually, free_port};

/// Who signs, and its files in a folder.
struct Authority<'a> {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: &'a Path,
    name: &'a str,
}

impl<'a> Authority<'a> {
    fn new(dir: &'a Path, name: &'a str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        fs::write(dir.join(name), issuer.pem()).unwrap();
        Self { issuer, dir, name }
    }

    /// The file with its certificate.
    fn file(&self) -> String {
        self.dir.join(self.name).display().to_string()
    }

    /// Writes a certificate for 127.0.0.1 and its key into two files, and both into a third.
    fn sign(&self, name: &str) -> [String; 3] {
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (certificate, key) = (certificate.pem(), key.serialize_pem());
        let both = format!("{key}{certificate}");
        [("crt", certificate), ("key", key), ("pem", both)].map(|(kind, pem)| {
            let file = self.dir.join(format!("{name}.{kind}"));
            fs::write(&file, pem).unwrap();
            file.display().to_string()
        })
    }
}

/// One that takes TLS from whom the authority has signed, at this address.
async fn secure_zookeeper(dir: &Path, authority: &Authority<'_>) -> (ZooKeeper, String) {
    let port = free_port();
    let [_, _, pem] = authority.sign("zookeeper");
    let lines = [
        format!("secureClientPort={port}"),
        "secureClientPortAddress=127.0.0.1".to_owned(),
        "serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory".to_owned(),
        format!("ssl.keyStore.location={pem}"),
        "ssl.keyStore.type=PEM".to_owned(),
        format!("ssl.trustStore.location={}", authority.file()),
        "ssl.trustStore.type=PEM".to_owned(),
        "ssl.hostnameVerification=false".to_owned(),
        "ssl.clientAuth=need".to_owned(),
    ];
    let zookeeper = ZooKeeper::start_with(dir, &lines).await;
    (zookeeper, format!("127.0.0.1:{port}"))
}

/// The flags of a controller that has this certificate and trusts this authority.
fn flags(servers: &str, authority: &Authority<'_>, certificate: &[String; 3]) -> Vec<String> {
    let [certificate, key, _] = certificate;
    let ca = authority.file();
    let flags = [
        "--zookeeper",
        servers,
        "--zookeeper-session-timeout",
        "2s",
        "--zookeeper-ca-file",
        &ca,
        "--zookeeper-cert-file",
        certificate,
        "--zookeeper-key-file",
        key,
    ];
    flags.map(str::to_owned).to_vec()
}

#[tokio::test]
async fn a_controller_leads_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ca.pem");
    let (mut zookeeper, servers) = secure_zookeeper(dir.path(), &authority).await;
    let args = flags(&servers, &authority, &authority.sign("controller"));
    let controller = Controller::start(dir.path(), &args).await;
    let leads = || async {
        let mut admin = controller.admin().await;
        let cluster = admin.get_cluster(v1::GetClusterRequest {}).await;
        match cluster.map_err(|e| e.to_string())?.into_inner() {
            cluster if cluster.role() == Role::Leader => Ok(cluster.leader_term),
            cluster => Err(format!("{cluster:?}")),
        }
    };
    let term = eventually(leads).await;
    let client = zookeeper.connect().await;
    let (epoch, _) = client.get_data("/sluice/test/epoch").await.unwrap();
    assert!(String::from_utf8(epoch).unwrap().contains("leader_term"));
    zookeeper.process.kill();
    zookeeper.restart().await;
    let again = eventually(leads).await;
    assert!(again >= term);
}

#[tokio::test]
async fn who_is_signed_by_another_is_not_spoken_to() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ca.pem");
    let other = Authority::new(dir.path(), "other.pem");
    let (_zookeeper, servers) = secure_zookeeper(dir.path(), &authority).await;
    let good = authority.sign("controller");
    let bad = other.sign("stranger");
    for (name, trusted, shown) in [("trusts", &other, &good), ("shows", &authority, &bad)] {
        let data = dir.path().join(name).display().to_string();
        let fixed = [
            "--listen",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
            "--data-dir",
            &data,
        ];
        let args = fixed.map(str::to_owned).into_iter();
        let args = args.chain(flags(&servers, trusted, shown));
        let process = Process::start(dir.path(), name, binary("sluice-controller"), args, &[]);
        eventually(|| async {
            let log = process.log();
            match log.contains("no session over TLS came about") {
                true => Ok(()),
                false => Err(log),
            }
        })
        .await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!process.log().contains("leads"), "{}", process.log());
    }
}

#[test]
fn files_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty.pem").display().to_string();
    fs::write(&empty, "").unwrap();
    let check = |ca: &str| {
        let output = Command::new(binary("sluice-controller"))
            .args([
                "--check-config",
                "--zookeeper",
                "a:1",
                "--zookeeper-ca-file",
                ca,
            ])
            .output()
            .unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (good, said) = check(&empty);
    assert!(
        !good && said.contains("empty.pem") && said.contains("trust anchor"),
        "{said}"
    );
    let (good, said) = check("/nowhere.pem");
    assert!(!good && said.contains("read /nowhere.pem"), "{said}");
    let authority = Authority::new(dir.path(), "ca.pem");
    assert!(check(&authority.file()).0);
}
