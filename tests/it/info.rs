//! `INFO` of a cluster reads as that of one server, and what servers have noted as if one had.

use std::{collections::BTreeMap, time::Duration};

use tests::{Cluster, Raw, Server, eventually};

async fn cluster(groups: usize) -> Cluster {
    let builder = Cluster::builder().groups(groups).proxies(1);
    let args = ["--slowlog-log-slower-than", "0"];
    builder.server_args(&args).start().await
}

/// The sections in order, each with its fields; line breaks are as in the text.
fn sections(reply: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let body = reply.split_once(' ').map_or("", |(_, body)| body);
    let body = body.strip_prefix("txt:").unwrap_or(body);
    let mut sections: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    for section in body.split("\r\n\r\n") {
        let mut lines = section.lines();
        let name = lines.next().unwrap_or_default();
        let name = name.strip_prefix("# ").unwrap_or_else(|| panic!("{reply}"));
        let fields = lines.map(|line| {
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("{line}"));
            (name.to_owned(), value.to_owned())
        });
        sections.push((name.to_owned(), fields.collect()));
    }
    sections
}

fn names(sections: &[(String, BTreeMap<String, String>)]) -> Vec<&str> {
    sections.iter().map(|(name, _)| name.as_str()).collect()
}

#[tokio::test]
async fn it_has_the_sections_and_fields_of_a_server_with_the_sums_of_all() {
    let cluster = cluster(2).await;
    let plain = Server::start(cluster.dir.path(), "plain", &[]);
    plain.answers().await;
    let mut direct = Raw::connect(&plain.addr).await;
    let mut client = cluster.proxies[0].raw().await;
    for n in 0..100 {
        let command = format!("SET key:{n} 1");
        assert_eq!(client.command(&command).await, "+OK");
        assert_eq!(direct.command(&command).await, "+OK");
    }
    assert_eq!(client.command("SET key:1 1 EX 1000").await, "+OK");
    assert_eq!(client.command("SELECT 3").await, "+OK");
    assert_eq!(client.command("SET other 1").await, "+OK");
    assert_eq!(client.command("INCR other").await, ":2");
    assert_eq!(
        client.command("LPUSH other 1").await.split(' ').next(),
        Some("-WRONGTYPE")
    );
    for hello in ["HELLO 2", "HELLO 3"] {
        client.command(hello).await;
        for command in [
            "INFO",
            "INFO everything",
            "info ALL",
            "INFO memory keyspace CommandStats",
        ] {
            let (merged, one) = (client.command(command).await, direct.command(command).await);
            let (merged, one) = (sections(&merged), sections(&one));
            let mut expected = names(&one);
            if !command.contains("memory") {
                expected.push("Sluice");
            }
            assert_eq!(names(&merged), expected, "{command}");
            for ((name, fields), (_, known)) in merged.iter().zip(&one) {
                let variable = [
                    "Server",
                    "Keyspace",
                    "Commandstats",
                    "Errorstats",
                    "Latencystats",
                ];
                if !variable.contains(&name.as_str()) {
                    assert!(
                        fields.keys().eq(known.keys()),
                        "{name}: {fields:?} {known:?}"
                    );
                }
            }
            let merged: BTreeMap<String, BTreeMap<String, String>> = merged.into_iter().collect();
            let keyspace = &merged["Keyspace"];
            // With the fence record of each server.
            assert!(
                keyspace["db0"].starts_with("keys=102,expires=1,"),
                "{keyspace:?}"
            );
            assert_eq!(keyspace["db3"], "keys=1,expires=0,avg_ttl=0");
            assert!(merged["Memory"]["used_memory_human"].ends_with('M'));
            if let Some(stats) = merged.get("Commandstats") {
                assert!(stats["cmdstat_set"].starts_with("calls=102,"), "{stats:?}");
            }
        }
    }
    assert_eq!(client.command("SELECT 0").await, "+OK");
    let own = sections(&client.command("INFO server clients sluice").await);
    assert_eq!(names(&own), ["Server", "Clients", "Sluice"]);
    assert_eq!(own[1].1["connected_clients"], "1");
    assert_eq!(own[2].1["groups_failed"], "0");
    assert!(
        own[2].1["group_g1"].starts_with("slots=512,primary=127.0.0.1:"),
        "{own:?}"
    );
    let empty = client.command("INFO nosuch").await;
    assert_eq!(empty, "=4 txt:");
}

#[tokio::test]
async fn a_group_that_fails_is_left_out_and_named() {
    let mut cluster = cluster(2).await;
    let mut client = cluster.proxies[0].raw().await;
    for n in 0..100 {
        assert_eq!(client.command(&format!("SET key:{n} 1")).await, "+OK");
    }
    cluster.groups[1][0].process.kill();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let info = sections(&client.command("INFO").await);
    assert_eq!(info.last().unwrap().1["groups_failed"], "1");
    assert!(info.last().unwrap().1["group_g2"].ends_with(",status=failed"));
    assert!(info.iter().any(|(name, _)| name == "Memory"));
    cluster.groups[0][0].process.kill();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let info = sections(&client.command("INFO").await);
    assert_eq!(names(&info), ["Server", "Clients", "Stats", "Sluice"]);
    assert_eq!(info[3].1["groups_failed"], "2");
}

#[tokio::test]
async fn what_servers_have_noted_is_put_together() {
    let cluster = cluster(2).await;
    let plain = Server::start(cluster.dir.path(), "plain", &[]);
    plain.answers().await;
    let mut direct = Raw::connect(&plain.addr).await;
    let mut client = cluster.proxies[0].raw().await;
    assert_eq!(client.command("SLOWLOG RESET").await, "+OK");
    for n in 0..20 {
        assert_eq!(client.command(&format!("SET key:{n} 1")).await, "+OK");
    }
    let len: usize = client.command("SLOWLOG LEN").await[1..].parse().unwrap();
    assert!(len > 20, "{len}");
    let logged = client.command("SLOWLOG GET").await;
    assert!(logged.starts_with("*10 *6 "), "{logged}");
    let logged = client.command("SLOWLOG GET -1").await;
    assert_eq!(logged.matches(" $3 SET ").count(), 20, "{logged}");
    // Shapes and errors are a server's.
    for command in [
        "SLOWLOG GET 0",
        "SLOWLOG GET -2",
        "SLOWLOG GET x",
        "SLOWLOG GET 1 2",
        "SLOWLOG NOPE",
        "SLOWLOG HELP",
        "LATENCY LATEST",
        "LATENCY RESET",
        "LATENCY HISTORY command",
        "LATENCY GRAPH command",
        "LATENCY HISTOGRAM nope",
        "LATENCY HELP",
        "MEMORY PURGE",
        "MEMORY HELP",
        "FUNCTION STATS",
        "ROLE",
        "SCRIPT SHOW x",
        "COMMANDLOG GET 1 slow",
    ] {
        for hello in ["HELLO 2", "HELLO 3"] {
            client.command(hello).await;
            direct.command(hello).await;
            let (merged, one) = (client.command(command).await, direct.command(command).await);
            if !one.contains("unknown") {
                assert_eq!(merged, one, "{command}");
            }
        }
    }
    let doctor = client.command("MEMORY DOCTOR").await;
    assert!(
        doctor.contains("txt:Group g1:") && doctor.contains("Group g2:"),
        "{doctor}"
    );
    let stats = client.command("MEMORY STATS").await;
    assert!(
        stats.starts_with('%') && stats.contains("$10 keys.count :22"),
        "{stats}"
    );
    let histogram = client.command("LATENCY HISTOGRAM set").await;
    assert!(
        histogram.starts_with("%1 $3 set %2 $5 calls :20 "),
        "{histogram}"
    );
}

#[tokio::test]
async fn who_tracks_is_counted_by_the_proxy() {
    let builder = Cluster::builder().groups(2).proxies(1);
    let cluster = builder.proxy_args(&["--workers", "2"]).start().await;
    let proxy = &cluster.proxies[0];
    let mut client = proxy.raw().await;
    let mut trackers = [proxy.raw().await, proxy.raw().await, proxy.raw().await];
    for (tracker, options) in trackers.iter_mut().zip(["", " NOLOOP", " BCAST"]) {
        tracker.command("HELLO 3").await;
        let on = format!("CLIENT TRACKING ON{options}");
        assert_eq!(tracker.command(&on).await, "+OK");
        assert_eq!(tracker.command("GET a").await, "_");
    }
    let said = client.command("INFO clients").await;
    assert!(said.contains("\r\ntracking_clients:3\r\n"), "{said}");
    let [mut one, two, _three] = trackers;
    assert_eq!(one.command("CLIENT TRACKING OFF").await, "+OK");
    drop(two);
    eventually(|| async {
        let said = proxy.raw().await.command("INFO clients").await;
        match said.contains("\r\ntracking_clients:1\r\n") {
            true => Ok(()),
            false => Err(said),
        }
    })
    .await;
}
