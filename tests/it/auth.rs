//! Passwords, of clients at the proxy and of Sluice at the servers; none is ever shown.

use std::fs;

use tests::Cluster;

#[tokio::test]
async fn clients_and_servers_ask_for_passwords_and_nothing_shows_them() {
    let files = tempfile::tempdir().unwrap();
    let password = files.path().join("password");
    fs::write(&password, "canary-client\n").unwrap();
    let logins = files.path().join("logins.toml");
    fs::write(
        &logins,
        "password = \"wrong\"\n[group.g1]\npassword = \"canary-server\"\n",
    )
    .unwrap();
    let (password, logins) = (password.to_str().unwrap(), logins.to_str().unwrap());
    let cluster = Cluster::builder()
        .groups(1)
        .proxies(1)
        .server_args(&["--requirepass", "canary-server"])
        .controller_args(&["--server-auth-file", logins])
        .proxy_args(&["--requirepass-file", password, "--server-auth-file", logins])
        .start()
        .await;

    let mut client = cluster.proxies[0].raw().await;
    // The same to the server itself, which has a password, too: the words must be equal.
    let mut plain = tests::Raw::connect(&cluster.groups[0][0].addr).await;
    for command in [
        "GET a",
        "PING",
        "HELLO 3",
        "AUTH wrong",
        "AUTH bob canary-client",
        "FOO",
        "GET",
    ] {
        assert_eq!(
            client.command(command).await,
            plain.command(command).await,
            "{command}"
        );
    }
    assert_eq!(client.command("AUTH canary-client").await, "+OK");
    assert_eq!(client.command("SET a 1").await, "+OK");
    assert_eq!(client.command("RESET").await, "+RESET");
    assert!(client.command("GET a").await.starts_with("-NOAUTH"));
    let hello = client
        .command("HELLO 3 AUTH default canary-client SETNAME me")
        .await;
    assert!(hello.starts_with("%7"), "{hello}");
    assert_eq!(client.command("GET a").await, "$1 1");

    // Before the password, little may be sent.
    let mut stranger = cluster.proxies[0].raw().await;
    stranger.send(b"*11\r\n").await;
    let error = stranger.rest().await;
    assert!(error.starts_with(b"-ERR Protocol error: unauthenticated multibulk length"));

    let mut shown = vec![
        cluster.controller.process.log(),
        cluster.proxies[0].process.log(),
    ];
    for process in [&cluster.controller.process, &cluster.proxies[0].process] {
        for file in ["cmdline", "environ"] {
            let path = format!("/proc/{}/{file}", process.pid());
            shown.push(String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned());
        }
    }
    for page in ["/metrics", "/topology"] {
        shown.push(cluster.proxies[0].get(page).await.1);
    }
    for text in shown {
        assert!(!text.contains("canary"), "a password is shown:\n{text}");
    }
}
