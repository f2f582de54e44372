//! What clients of Redis Cluster find: one node, this proxy, that owns everything.

use redis::cmd;
use tests::{Cluster, Raw, Server};

#[tokio::test]
async fn a_proxy_is_one_node_that_owns_all_slots() {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let addr = &cluster.proxies[0].addr;
    let (host, port) = addr.rsplit_once(':').unwrap();
    let mut client = cluster.proxies[0].raw().await;
    let id = client.command("CLUSTER MYID").await;
    let id = id.strip_prefix("$40 ").unwrap();
    assert!(
        id.len() == 40 && id.bytes().all(|b| b.is_ascii_hexdigit()),
        "{id}"
    );
    assert_eq!(
        client.command("CLUSTER MYSHARDID").await,
        format!("$40 {id}")
    );
    assert_eq!(
        client.command("CLUSTER SLOTS").await,
        format!(
            "*1 *3 :0 :16383 *4 ${} {host} :{port} $40 {id} *0",
            host.len()
        )
    );
    let bus = port.parse::<u32>().unwrap().min(55_535) + 10_000;
    let nodes = client.command("CLUSTER NODES").await;
    let (head, tail) = (
        format!("{id} {addr}@{bus} myself,master - 0 0 "),
        " connected 0-16383\n",
    );
    assert!(nodes.contains(&head) && nodes.ends_with(tail), "{nodes}");
    let info = client.command("CLUSTER INFO").await;
    assert!(
        info.contains("cluster_state:ok\r\ncluster_slots_assigned:16384\r\n"),
        "{info}"
    );
    assert_eq!(client.command("CLUSTER LINKS").await, "*0");
    assert_eq!(
        client.command(&format!("CLUSTER REPLICAS {id}")).await,
        "*0"
    );
    assert_eq!(
        client.command("CLUSTER SLAVES nope").await,
        "-ERR Unknown node nope"
    );
    for mode in ["READONLY", "READWRITE", "ASKING"] {
        assert_eq!(client.command(mode).await, "+OK");
    }
    let shards = format!(
        "*1 %2 $5 slots *2 :0 :16383 $5 nodes *1 %7 $2 id $40 {id} $4 port :{port} $2 ip ${len} {host} \
         $8 endpoint ${len} {host} $4 role $6 master $18 replication-offset :0 $6 health $6 online",
        len = host.len()
    );
    client.command("HELLO 3").await;
    assert_eq!(client.command("CLUSTER SHARDS").await, shards);
    // Keys of several slots, of whatever cluster, are still what they are to Sluice.
    let crossed = "-CROSSSLOT Keys in request don't hash to the same slot";
    assert_eq!(client.command("RENAME a foo").await, crossed);
    assert_eq!(client.command("MSET a 1 foo 2").await, "+OK");
}

#[tokio::test]
async fn another_address_is_told_if_there_is_one() {
    let cluster = Cluster::builder().groups(1).proxies(1);
    let cluster = cluster.proxy_args(&["--advertise", "redis.example:6379"]);
    let cluster = cluster.start().await;
    let slots = cluster.proxies[0]
        .raw()
        .await
        .command("CLUSTER SLOTS")
        .await;
    assert!(slots.contains(" $13 redis.example :6379 "), "{slots}");
}

/// A server in cluster mode answers the same, as far as it can.
#[tokio::test]
async fn texts_are_those_of_a_cluster_s_node() {
    let cluster = Cluster::builder().groups(1).proxies(1).start().await;
    let args = ["--cluster-enabled", "yes"].map(str::to_owned);
    let server = Server::start(cluster.dir.path(), "node", &args);
    server.answers().await;
    let mut plain = server.connect().await;
    let assign = cmd("CLUSTER")
        .arg("ADDSLOTSRANGE")
        .arg(0)
        .arg(16_383)
        .to_owned();
    assign.exec_async(&mut plain).await.unwrap();
    let mut plain = Raw::connect(&server.addr).await;
    let mut proxy = cluster.proxies[0].raw().await;
    for request in [
        "CLUSTER KEYSLOT a",
        "CLUSTER KEYSLOT {}a",
        "CLUSTER KEYSLOT x{a}{b}",
        "CLUSTER KEYSLOT {",
        "CLUSTER KEYSLOT",
        "CLUSTER COUNTKEYSINSLOT x",
        "CLUSTER COUNTKEYSINSLOT 16384",
        "CLUSTER COUNTKEYSINSLOT -1",
        "CLUSTER GETKEYSINSLOT 1 x",
        "CLUSTER GETKEYSINSLOT 1 -1",
        "CLUSTER GETKEYSINSLOT 16384 1",
        "CLUSTER REPLICAS x",
        "CLUSTER SLOTS x",
        "CLUSTER NOPE",
        "CLUSTER",
        "READONLY x",
        "READONLY",
        "READWRITE",
        "ASKING",
    ] {
        let expected = plain.command(request).await;
        assert_eq!(proxy.command(request).await, expected, "{request}");
    }
}

/// The keys of a reply, in order.
fn keys(reply: &str) -> Vec<&str> {
    let mut keys: Vec<&str> = reply.split(' ').skip(2).step_by(2).collect();
    keys.sort_unstable();
    keys
}

#[tokio::test]
async fn keys_are_found_by_redis_cluster_s_slots() {
    let cluster = Cluster::builder().groups(3).proxies(1).start().await;
    let mut proxy = cluster.proxies[0].raw().await;
    // Of 3,000 keys, more than a page of each group, 30 are in one slot.
    for tens in 0..30 {
        let pairs = (0..100).map(|n| match n {
            0 => format!(" {{b}}{tens} 1"),
            n => format!(" key:{tens}:{n} 1"),
        });
        let command = format!("MSET{}", pairs.collect::<String>());
        assert_eq!(proxy.command(&command).await, "+OK");
    }
    let slot = proxy.command("CLUSTER KEYSLOT {b}0").await;
    let slot = slot.trim_start_matches(':');
    let count = format!("CLUSTER COUNTKEYSINSLOT {slot}");
    let get = |most: u32| format!("CLUSTER GETKEYSINSLOT {slot} {most}");
    assert_eq!(proxy.command(&count).await, ":30");
    let mut expected: Vec<String> = (0..30).map(|n| format!("{{b}}{n}")).collect();
    expected.sort_unstable();
    assert_eq!(keys(&proxy.command(&get(100)).await), expected);
    let some = proxy.command(&get(7)).await;
    assert_eq!(keys(&some).len(), 7);
    assert!(keys(&some).iter().all(|key| key.starts_with("{b}")));
    assert_eq!(proxy.command(&get(0)).await, "*0");
    // What is left in a group that does not own it is nobody's.
    for group in &cluster.groups {
        let mut server = Raw::connect(&group[0].addr).await;
        assert_eq!(server.command("SET {b}0 1").await, "+OK");
        assert_eq!(server.command("SET {b}30 1").await, "+OK");
    }
    assert_eq!(proxy.command(&count).await, ":31");
    // It sees what was written before, and nothing overtakes it.
    let words = |command: &str| -> Vec<String> { command.split(' ').map(str::to_owned).collect() };
    let pipeline = ["DEL {b}0", &count, "SET {b}0 1", &count];
    proxy.pipeline(&pipeline.map(words)).await;
    for expected in [":1", ":30", "+OK", ":31"] {
        assert_eq!(proxy.reply().await, expected);
    }
    assert_eq!(proxy.command("SELECT 1").await, "+OK");
    assert_eq!(proxy.command(&count).await, ":0");
}

#[tokio::test]
async fn who_goes_away_leaves_no_search_behind() {
    let mut cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let mut proxy = cluster.proxies[0].raw().await;
    cluster.groups[1][0].process.stop();
    let count = ["CLUSTER", "COUNTKEYSINSLOT", "1"].map(str::to_owned);
    proxy.pipeline(&[count.to_vec()]).await;
    drop(proxy);
    cluster.groups[1][0].process.resume();
    cluster.groups[1][0].process.kill();
    let mut proxy = cluster.proxies[0].raw().await;
    let told = proxy.command("CLUSTER COUNTKEYSINSLOT 1").await;
    assert!(told.starts_with("-CLUSTERDOWN server "), "{told}");
    assert_eq!(proxy.command("PING").await, "+PONG");
}
