//! `CONFIG` through a proxy: the servers' settings, and its own.

use std::collections::BTreeMap;

use tests::{Cluster, Raw};

async fn cluster(proxy_args: &[&str]) -> Cluster {
    let builder = Cluster::builder().groups(2).proxies(1);
    builder.proxy_args(proxy_args).start().await
}

/// What `CONFIG GET` says, in whatever shape.
async fn get(client: &mut Raw, patterns: &str) -> BTreeMap<String, String> {
    let reply = client.command(&format!("CONFIG GET {patterns}")).await;
    let (header, rest) = reply.split_once(' ').unwrap_or((&reply, ""));
    let mut texts = Vec::new();
    let mut rest = rest;
    while let Some(header) = rest.strip_prefix('$') {
        let (len, body) = header.split_once(' ').unwrap();
        let (text, behind) = body.split_at(len.parse().unwrap());
        texts.push(text.to_owned());
        rest = behind.trim_start_matches(' ');
    }
    let count: usize = header[1..].parse().unwrap();
    let expected = if header.starts_with('%') {
        2 * count
    } else {
        count
    };
    assert_eq!(texts.len(), expected, "{reply}");
    let pairs = texts
        .chunks(2)
        .map(|pair| (pair[0].clone(), pair[1].clone()));
    pairs.collect()
}

#[tokio::test]
async fn settings_are_the_servers_and_the_proxys_own() {
    let cluster = cluster(&["--max-clients", "77"]).await;
    let mut client = cluster.proxies[0].raw().await;
    for hello in ["HELLO 2", "HELLO 3"] {
        client.command(hello).await;
        let some = get(&mut client, "maxmemory-policy SLUICE-MAX-CLIENTS nope").await;
        let expected = [
            ("maxmemory-policy", "noeviction"),
            ("sluice-max-clients", "77"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(some, BTreeMap::from(expected));
        assert!(get(&mut client, "*").await.len() > 200);
        assert_eq!(get(&mut client, "nope").await.len(), 0);
    }
    assert_eq!(client.command("CONFIG RESETSTAT").await, "+OK");
    assert!(client.command("CONFIG HELP").await.contains("RESETSTAT"));
    assert_eq!(
        client.command("CONFIG GET").await,
        "-ERR wrong number of arguments for 'config|get' command"
    );
    for denied in ["CONFIG SET maxmemory 1gb", "CONFIG REWRITE"] {
        let reply = client.command(denied).await;
        assert!(reply.starts_with("-NOPERM "), "{reply}");
        assert!(reply.contains("--allow-config-set"), "{reply}");
    }
}

#[tokio::test]
async fn settings_are_set_everywhere_if_that_is_allowed() {
    let cluster = cluster(&["--allow-config-set"]).await;
    let mut client = cluster.proxies[0].raw().await;
    let set = "CONFIG SET maxmemory-policy allkeys-lru hash-max-listpack-entries 9";
    assert_eq!(client.command(set).await, "+OK");
    for group in &cluster.groups {
        let mut server = Raw::connect(&group[0].addr).await;
        let policy = get(&mut server, "maxmemory-policy").await;
        assert_eq!(policy["maxmemory-policy"], "allkeys-lru");
    }
    assert_eq!(
        client.command("CONFIG SET maxmemory nonsense").await,
        "-ERR CONFIG SET failed (possibly related to argument 'maxmemory') - argument must be a memory value"
    );
    assert_eq!(
        client.command("CONFIG SET sluice-max-clients 1").await,
        "-ERR Unknown option or number of arguments for CONFIG SET - 'sluice-max-clients'"
    );
    // These servers were started without a file.
    assert_eq!(
        client.command("CONFIG REWRITE").await,
        "-ERR The server is running without a config file"
    );
    assert_eq!(get(&mut client, "sluice-allow*").await.len(), 1);
}
