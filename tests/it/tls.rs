//! TLS: between controllers and ZooKeeper, and where gRPC is spoken; what is shown and trusted changes.

use std::{fs, net::TcpStream, path::Path, process::Command, time::Duration};

use proto::v1::{self, cluster::Role};
use socket2::SockRef;
use tests::{
    Authority, Cluster, Controller, IdentityFiles, Load, Process, Proxy, SecureZooKeeper, binary,
    eventually, operator, rotation, sluice,
};

/// The flags of a controller for its ZooKeeper.
fn flags(zookeeper: &SecureZooKeeper, files: &IdentityFiles) -> Vec<String> {
    let own = [
        "--zookeeper",
        &zookeeper.addr,
        "--zookeeper-session-timeout",
        "2s",
    ];
    let own = own.map(str::to_owned).into_iter();
    own.chain(files.flags("--zookeeper")).collect()
}

/// The term in which it leads, once it does.
async fn leads(controller: &Controller) -> u64 {
    eventually(|| async {
        let mut admin = controller.admin().await;
        let cluster = admin.get_cluster(v1::GetClusterRequest {}).await;
        match cluster.map_err(|e| e.to_string())?.into_inner() {
            cluster if cluster.role() == Role::Leader => Ok(cluster.leader_term),
            cluster => Err(format!("{cluster:?}")),
        }
    })
    .await
}

/// Returns once a process has said this.
async fn says(process: &Process, text: &str) {
    eventually(|| async {
        let log = process.log();
        match log.contains(text) {
            true => Ok(()),
            false => Err(format!("no `{text}` in\n{log}")),
        }
    })
    .await;
}

#[tokio::test]
async fn a_controller_leads_over_tls_and_goes_on_with_a_zookeeper_of_another_authority() {
    let dir = tempfile::tempdir().unwrap();
    let [before, after] = [Authority::new(), Authority::new()];
    let mut zookeeper = SecureZooKeeper::start(dir.path(), &before).await;
    let files = IdentityFiles::new(dir.path(), "controller", &[&before], &before.sign());
    let controller = Controller::start(dir.path(), &flags(&zookeeper, &files)).await;
    let term = leads(&controller).await;
    let client = zookeeper.server.connect().await;
    let (epoch, _) = client.get_data("/sluice/test/epoch").await.unwrap();
    assert!(String::from_utf8(epoch).unwrap().contains("leader_term"));

    zookeeper.server.process.kill();
    operator::becomes(&controller, Role::Adrift).await;
    files.trust(&[&before, &after]);
    files.show(&after.sign());
    zookeeper.restart(&[&after], &after.sign()).await;
    operator::becomes(&controller, Role::Leader).await;
    assert!(leads(&controller).await >= term);
}

#[tokio::test]
async fn who_is_signed_by_another_is_not_spoken_to() {
    let dir = tempfile::tempdir().unwrap();
    let [authority, other] = [Authority::new(), Authority::new()];
    let zookeeper = SecureZooKeeper::start(dir.path(), &authority).await;
    for (name, trusted, shown) in [
        ("trusts", &other, &authority),
        ("shows", &authority, &other),
    ] {
        let data = dir.path().join(name).display().to_string();
        let fixed = [
            "--listen",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
            "--data-dir",
            &data,
        ];
        let files = IdentityFiles::new(dir.path(), name, &[trusted], &shown.sign());
        let args = fixed.map(str::to_owned).into_iter();
        let args = args.chain(flags(&zookeeper, &files));
        let process = Process::start(dir.path(), name, binary("sluice-controller"), args, &[]);
        says(&process, "no session over TLS came about").await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!process.log().contains("leads"), "{}", process.log());
    }
}

#[test]
fn files_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let files = IdentityFiles::new(dir.path(), "files", &[&authority], &authority.sign());
    let check = |program: &str, first: &[&str], flags: &[String]| {
        let mut command = Command::new(binary(program));
        let output = command.arg("--check-config").args(first).args(flags);
        let output = output.output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.success(), said)
    };
    let [zookeeper, grpc] = ["--zookeeper", "--tls"].map(|set| files.flags(set));
    let all = || {
        [
            check("sluice-controller", &["--zookeeper", "a:1"], &zookeeper),
            check("sluice-controller", &[], &grpc),
            check("sluice-proxy", &["--controller", "a:1"], &grpc),
        ]
    };
    for (good, said) in all() {
        assert!(good, "{said}");
    }
    let (good, said) = check("sluice-controller", &[], &grpc[..4]);
    assert!(!good && said.contains("give all three"), "{said}");
    for (kind, text, expected) in [
        ("ca", "", "there is no certificate in it"),
        ("crt", "", "there is no certificate in it"),
        ("key", "", "there is no private key in it"),
        (
            "key",
            &authority.sign().key,
            "not the key of the certificate",
        ),
    ] {
        let before = fs::read_to_string(files.path(kind)).unwrap();
        files.replace(kind, text);
        for (good, said) in all() {
            let named = said.contains(&files.path(kind)) && said.contains(expected);
            assert!(!good && named, "{said}");
        }
        files.replace(kind, &before);
    }
    fs::remove_file(files.path("ca")).unwrap();
    for (good, said) in all() {
        assert!(!good && said.contains("No such file"), "{said}");
    }
}

/// A cluster whose gRPC is over TLS, and the files of all of its processes.
async fn secure(dir: &Path, authority: &Authority) -> (Cluster, IdentityFiles) {
    let files = IdentityFiles::new(dir, "grpc", &[authority], &authority.sign());
    let flags = files.flags("--tls");
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let cluster = Cluster::builder().groups(1).proxies(1).proxy_args(&flags);
    (cluster.controller_args(&flags).start().await, files)
}

/// What `sluice group list` says with these flags, which must fail.
fn refused(controller: &Controller, flags: &[String]) -> String {
    let flags = flags.iter().map(String::as_str);
    let args: Vec<&str> = ["group", "list"].into_iter().chain(flags).collect();
    let (done, said) = sluice(&controller.addr, &args);
    assert!(!done, "{said}");
    said
}

/// A further proxy of a controller.
async fn proxy(dir: &Path, name: &str, controller: &Controller, flags: &[String]) -> Proxy {
    let args = ["--controller".to_owned(), controller.addr.clone()];
    Proxy::start(dir, name, &[&args, flags].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_right_certificate_is_told_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let [authority, other] = [Authority::new(), Authority::new()];
    let (cluster, files) = secure(dir.path(), &authority).await;
    let controller = &cluster.controller;
    let (good, said) = controller.sluice(&["group", "list"]);
    assert!(good && said.contains("g1"), "{said}");

    let own = |name: &str, trusted: &Authority, shown| {
        let files = IdentityFiles::new(dir.path(), name, &[trusted], &shown);
        files.flags("--tls")
    };
    let none = Vec::new();
    let two = files.flags("--tls")[..4].to_vec();
    let stranger = own("stranger", &authority, other.sign());
    let fooled = own("fooled", &other, authority.sign());
    let late = own("late", &authority, authority.sign_expired());
    for (flags, expected) in [
        (&none, "this port takes nothing else; give --tls-cert-file"),
        (
            &stranger,
            "does not accept the certificate of --tls-cert-file",
        ),
        (&fooled, "not signed by one of --tls-ca-file"),
        (&late, "has expired"),
        (&two, "give all three"),
    ] {
        let said = refused(controller, flags);
        assert!(said.contains(expected), "{said}");
        assert!(!said.contains("is the controller running"), "{said}");
    }
    for (name, flags, expected) in [
        ("none", &none, "this port takes nothing else"),
        ("stranger", &stranger, "does not accept the certificate"),
    ] {
        let proxy = proxy(dir.path(), name, controller, flags).await;
        says(&proxy.process, expected).await;
        assert_eq!(proxy.get("/readyz").await.0, 503);
    }
    for expected in [
        "it does not speak TLS",
        "its certificate is not signed by one of --tls-ca-file",
        "its certificate has expired",
    ] {
        says(&controller.process, expected).await;
    }

    let plain = Controller::start_as(dir.path(), "plain", &[]).await;
    let said = refused(&plain, &files.flags("--tls"));
    assert!(said.contains("it does not speak TLS"), "{said}");
}

/// As who looks for open ports does; and one that closes so hard that its address is gone.
#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_is_nobody_and_breaks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (cluster, _files) = secure(dir.path(), &authority).await;
    let controller = &cluster.controller;
    for hard in [false, true].repeat(50) {
        let stream = TcpStream::connect(&controller.addr).unwrap();
        if hard {
            let socket = SockRef::from(&stream);
            socket.set_linger(Some(Duration::ZERO)).unwrap();
        }
    }
    let (good, said) = controller.sluice(&["group", "list"]);
    assert!(good, "{said}");
    let log = controller.process.log();
    assert!(!log.contains("refused a connection"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_longer_trusted_is_cut_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let [authority, other] = [Authority::new(), Authority::new()];
    let (cluster, files) = secure(dir.path(), &authority).await;
    files.trust(&[&authority, &other]);
    let (controller, one) = (&cluster.controller, &cluster.proxies[0]);
    says(&controller.process, "are used from now on").await;
    let [shows, trusts] = [
        ("shows", &authority, &other),
        ("trusts", &authority, &authority),
    ]
    .map(|(name, trusted, shown)| IdentityFiles::new(dir.path(), name, &[trusted], &shown.sign()));
    let two = proxy(dir.path(), "two", controller, &shows.flags("--tls")).await;
    let three = proxy(dir.path(), "three", controller, &trusts.flags("--tls")).await;
    for proxy in [&two, &three] {
        says(&proxy.process, "subscribed").await;
    }

    files.trust(&[&authority]);
    says(&controller.process, "cut a connection").await;
    says(&two.process, "does not accept the certificate").await;
    trusts.trust(&[&other]);
    says(&three.process, "is not signed by one of --tls-ca-file here").await;
    let ended = "not subscribed";
    assert!(!one.process.log().contains(ended), "{}", one.process.log());
    cluster.settle().await;
}

/// The value of a metric.
fn metric(text: &str, name: &str) -> i64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in\n{text}"));
    line.trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_has_ended_is_told_of_and_stops_no_client() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (mut cluster, files) = secure(dir.path(), &authority).await;
    let load = Load::start(cluster.connect_all().await, |_| true);
    let expiry = "sluice_proxy_certificate_expiry_seconds{file=\"tls-cert-file\",place=\"0\"}";
    let (_, text) = cluster.proxies[0].get("/metrics").await;
    assert!(metric(&text, expiry) > 0, "{text}");

    files.show(&authority.sign_expired());
    let over = "a certificate has expired: put a new one in its place";
    says(&cluster.proxies[0].process, over).await;
    says(&cluster.controller.process, over).await;
    let (_, text) = cluster.proxies[0].get("/metrics").await;
    assert!(metric(&text, expiry) < 0, "{text}");
    let ended = "not subscribed";
    assert!(!cluster.proxies[0].process.log().contains(ended));
    cluster.controller.process.kill();
    cluster.controller.restart();
    says(&cluster.proxies[0].process, "its certificate has expired").await;
    load.advance(500).await;

    files.show(&authority.sign());
    cluster.settle().await;
    load.advance(500).await;
    assert_eq!(load.stop().await, Vec::<String>::new());
    let log = cluster.controller.process.log();
    assert_eq!(log.matches(over).count(), 2, "once by each: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_no_use_are_told_of_once_and_those_before_are_used() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (cluster, files) = secure(dir.path(), &authority).await;
    let (controller, process) = (&cluster.controller.process, &cluster.proxies[0].process);
    files.replace("key", "no key");
    let bad = "certificates have changed and cannot be used; those before are";
    says(controller, bad).await;
    says(process, bad).await;
    let refused = "sluice_proxy_certificate_reloads_refused_total{set=\"tls\"}";
    let (_, text) = cluster.proxies[0].get("/metrics").await;
    assert_eq!(metric(&text, refused), 1, "{text}");
    let (_, said) = cluster.controller.sluice(&["group", "list"]);
    assert!(said.contains("there is no private key in it"), "{said}");
    let own = IdentityFiles::new(dir.path(), "own", &[&authority], &authority.sign());
    let controller_of = &cluster.controller;
    let another = proxy(dir.path(), "another", controller_of, &own.flags("--tls")).await;
    says(&another.process, "subscribed").await;

    files.show(&authority.sign());
    let good = "certificates have changed, and are used from now on";
    says(controller, good).await;
    says(process, good).await;
    let (done, said) = cluster.controller.sluice(&["group", "list"]);
    assert!(done, "{said}");
    for process in [controller, process] {
        let log = process.log();
        assert_eq!(log.matches(bad).count(), 1, "{log}");
    }
}

/// `make chaos` does it for minutes.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_authorities_change_and_no_client_notices() {
    let (time, every) = (Duration::from_secs(24), Duration::from_secs(1));
    let rotated = Box::pin(rotation::under_load(time, every)).await;
    assert!(
        rotated.rotations >= 12 && rotated.answered > 0,
        "{rotated:?}"
    );
}

#[tokio::test]
async fn plain_text_where_others_can_reach_it_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    for (name, listen, warned) in [("all", "0.0.0.0:0", true), ("own", "127.0.0.1:0", false)] {
        let data = dir.path().join(name).join("data").display().to_string();
        let fixed = ["--listen", listen, "--http", "127.0.0.1:0", "--data-dir"];
        let args = fixed.into_iter().chain([data.as_str()]);
        let process = Process::start(dir.path(), name, binary("sluice-controller"), args, &[]);
        says(&process, "listening").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(process.log().contains("gRPC is in plain text"), warned);
    }
}
