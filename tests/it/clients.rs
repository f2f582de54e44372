//! What clients say of each other and do to each other, over all workers of a proxy.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use tests::{Cluster, Raw, Server, eventually};

async fn cluster() -> Cluster {
    let cluster = Cluster::builder().groups(1).proxies(1);
    cluster.proxy_args(&["--workers", "2"]).start().await
}

/// Of each client in a list, the value of one field.
fn field<'a>(list: &'a str, name: &str) -> Vec<&'a str> {
    let value = |line: &'a str| {
        let found = line
            .split(' ')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("{name} in {line}"))
    };
    let lines = list.split('\n').filter(|line| line.contains("addr="));
    lines.map(value).collect()
}

async fn id(client: &mut Raw) -> String {
    client.command("CLIENT ID").await[1..].to_owned()
}

#[tokio::test]
async fn the_list_has_the_clients_of_all_workers_once() {
    let cluster = cluster().await;
    let mut clients = Vec::new();
    for number in 0..8 {
        let mut client = cluster.proxies[0].raw().await;
        client.command(&format!("CLIENT SETNAME c{number}")).await;
        clients.push(client);
    }
    clients[3].command("SELECT 5").await;
    clients[4].command("MULTI").await;
    clients[4].command("GET a").await;
    for client in &mut clients[..3] {
        let list = client.command("CLIENT LIST").await;
        let ids = field(&list, "id");
        assert_eq!(
            ids.iter().collect::<BTreeSet<_>>().len(),
            ids.len(),
            "{list}"
        );
        let names = field(&list, "name")
            .into_iter()
            .filter(|name| !name.is_empty());
        assert_eq!(
            names.collect::<Vec<_>>().join(" "),
            "c0 c1 c2 c3 c4 c5 c6 c7"
        );
    }
    let list = clients[0].command("CLIENT LIST").await;
    let mine = list
        .lines()
        .find(|line| line.contains(" name=c0 "))
        .unwrap();
    assert_eq!(field(mine, "qbuf"), ["26"]);
    assert_eq!(field(mine, "argv-mem"), ["10"]);
    assert_eq!(field(mine, "cmd"), ["client|list"]);
    assert_eq!(field(mine, "flags"), ["N"]);
    let third = list
        .lines()
        .find(|line| line.contains(" name=c3 "))
        .unwrap();
    assert_eq!(field(third, "db"), ["5"]);
    assert_eq!(field(third, "cmd"), ["select"]);
    let fourth = list
        .lines()
        .find(|line| line.contains(" name=c4 "))
        .unwrap();
    assert_eq!(
        (field(fourth, "multi"), field(fourth, "flags")),
        (vec!["1"], vec!["x"])
    );

    let (first, last) = (id(&mut clients[0]).await, id(&mut clients[7]).await);
    for (asked, ids) in [
        (format!("ID {last}"), vec![&last]),
        (
            format!("ID {last} {first} {last} 0 -1"),
            vec![&last, &first, &last],
        ),
        ("TYPE pubsub".to_owned(), vec![]),
        ("TYPE master".to_owned(), vec![]),
    ] {
        let list = clients[1].command(&format!("CLIENT LIST {asked}")).await;
        assert_eq!(field(&list, "id"), ids, "{asked}");
    }
    for (asked, error) in [
        ("TYPE nobody", "-ERR Unknown client type 'nobody'"),
        ("TYPE", "-ERR syntax error"),
        ("ID", "-ERR syntax error"),
        ("ID x", "-ERR Invalid client ID"),
    ] {
        assert_eq!(
            clients[1].command(&format!("CLIENT LIST {asked}")).await,
            error
        );
    }
    // A client that has left is not in it.
    drop(clients.pop());
    let gone = format!("CLIENT LIST ID {last}");
    eventually(|| async {
        let mut client = cluster.proxies[0].raw().await;
        let list = client.command(&gone).await;
        if field(&list, "id").is_empty() {
            Ok(())
        } else {
            Err(list)
        }
    })
    .await;
}

/// Pipelined with what is under way: each in its place.
#[tokio::test]
async fn what_all_workers_answer_leaves_in_its_place() {
    let cluster = cluster().await;
    let mut client = cluster.proxies[0].raw().await;
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let batch: Vec<_> = ["SET a 1", "CLIENT LIST", "GET a", "CLIENT LIST", "PING"]
        .map(words)
        .into();
    let batches: Vec<_> = (0..50).flat_map(|_| batch.clone()).collect();
    client.pipeline(&batches).await;
    for _ in 0..50 {
        assert_eq!(client.reply().await, "+OK");
        assert!(client.reply().await.contains(" cmd=client|list "));
        assert_eq!(client.reply().await, "$1 1");
        assert!(client.reply().await.contains(" cmd=client|list "));
        assert_eq!(client.reply().await, "+PONG");
    }
}

/// What a plain server says to these requests, a proxy says too.
async fn equals_a_plain_server(requests: &[&str]) {
    let cluster = cluster().await;
    let server = Server::start(cluster.dir.path(), "plain", &[]);
    server.answers().await;
    let mut plain = Raw::connect(&server.addr).await;
    let mut proxy = cluster.proxies[0].raw().await;
    for request in requests {
        let expected = plain.command(request).await;
        assert_eq!(proxy.command(request).await, expected, "{request}");
    }
}

#[tokio::test]
async fn texts_are_those_of_redis() {
    equals_a_plain_server(&[
        "CLIENT HELP",
        "CLIENT",
        "CLIENT NOPE",
        "CLIENT GETNAME x",
        "CLIENT SETNAME a\nb",
        "CLIENT SETNAME me",
        "CLIENT GETNAME",
        "CLIENT SETNAME ",
        "CLIENT GETNAME",
        "CLIENT ID x",
        "CLIENT INFO x",
        "CLIENT LIST x",
        "CLIENT LIST TYPE x",
        "CLIENT LIST ID",
        "CLIENT LIST ID x",
        "CLIENT LIST ID -1",
        "CLIENT LIST TYPE replica",
        "CLIENT KILL",
        "CLIENT KILL a b",
        "CLIENT KILL id",
        "CLIENT KILL id 3 skipme",
        "CLIENT KILL id x",
        "CLIENT KILL id 0",
        "CLIENT KILL id 99999",
        "CLIENT KILL type x",
        "CLIENT KILL user x",
        "CLIENT KILL user default id 99999",
        "CLIENT KILL skipme x",
        "CLIENT KILL skipme yes",
        "CLIENT KILL id 99999 nope x",
        "CLIENT KILL 1.2.3.4:5",
        "CLIENT NO-EVICT x",
        "CLIENT NO-EVICT on",
        "CLIENT NO-EVICT",
        "CLIENT PAUSE 1 nope",
        "CLIENT PAUSE 1 all x",
        "CLIENT PAUSE x",
        "CLIENT PAUSE -1",
        "CLIENT PAUSE 0",
        "CLIENT UNPAUSE x",
        "CLIENT UNPAUSE",
        "CLIENT REPLY",
        "CLIENT REPLY x",
        "CLIENT REPLY on",
    ])
    .await;
}

#[tokio::test]
async fn clients_of_all_workers_are_killed() {
    let cluster = cluster().await;
    let proxy = &cluster.proxies[0];
    let mut killer = proxy.raw().await;
    let mut victims = Vec::new();
    for _ in 0..8 {
        victims.push(proxy.raw().await);
    }
    let last = id(victims.last_mut().unwrap()).await;
    let old = id(&mut victims[0]).await;
    assert_eq!(
        killer
            .command(&format!("CLIENT KILL ID {last} MAXAGE 1000"))
            .await,
        ":0"
    );
    assert_eq!(
        killer
            .command(&format!("CLIENT KILL ID {last} TYPE pubsub"))
            .await,
        ":0"
    );
    assert_eq!(
        killer
            .command(&format!("CLIENT KILL ID {last} LADDR 1.2.3.4:5"))
            .await,
        ":0"
    );
    assert_eq!(
        killer
            .command(&format!("CLIENT KILL ID {last} TYPE normal"))
            .await,
        ":1"
    );
    assert_eq!(victims.pop().unwrap().rest().await, b"");
    let list = killer.command(&format!("CLIENT LIST ID {old}")).await;
    let addr = field(&list, "addr")[0];
    assert_eq!(killer.command(&format!("CLIENT KILL {addr}")).await, "+OK");
    assert_eq!(
        killer.command(&format!("CLIENT KILL {addr}")).await,
        "-ERR No such client"
    );
    assert_eq!(victims.remove(0).rest().await, b"");

    // Also in the middle of something.
    victims[0].command("MULTI").await;
    victims[1].send(b"*3\r\n$3\r\nSET\r\n").await;
    let laddr = field(&list, "laddr")[0];
    assert_eq!(
        killer
            .command(&format!("CLIENT KILL LADDR {laddr} USER default"))
            .await,
        ":6"
    );
    for mut victim in victims {
        assert_eq!(victim.rest().await, b"");
    }
    assert_eq!(field(&killer.command("CLIENT LIST").await, "id").len(), 1);

    // Who kills itself is told so, and nothing behind that is executed.
    let mine = id(&mut killer).await;
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let kill = words(&format!("CLIENT KILL ID {mine} SKIPME no"));
    killer
        .pipeline(&[words("SET a 1"), kill, words("SET a 2")])
        .await;
    assert_eq!(killer.rest().await, b"+OK\r\n:1\r\n");
    assert_eq!(proxy.raw().await.command("GET a").await, "$1 1");
}

#[tokio::test]
async fn a_pause_holds_the_clients_of_all_workers() {
    let cluster = Cluster::builder().groups(2).proxies(1);
    let args = ["--workers", "2", "--stall-timeout", "1s"];
    let cluster = cluster.proxy_args(&args).start().await;
    let proxy = &cluster.proxies[0];
    let mut admin = proxy.raw().await;
    let mut clients = Vec::new();
    for number in 0..4 {
        let mut client = proxy.raw().await;
        assert_eq!(client.command(&format!("SET k{number} 0")).await, "+OK");
        clients.push(client);
    }
    clients[2].command("MULTI").await;
    clients[2].command("INCR k2").await;
    assert_eq!(admin.command("CLIENT PAUSE 60000 WRITE").await, "+OK");
    for (number, client) in clients.iter_mut().enumerate() {
        if number != 2 {
            assert_eq!(client.command(&format!("GET k{number}")).await, "$1 0");
        }
    }
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    clients[0]
        .pipeline(&[words("GET k0"), words("INCR k0"), words("GET k0")])
        .await;
    assert_eq!(clients[0].reply().await, "$1 0");
    clients[1].pipeline(&[words("EVAL return(1) 0")]).await;
    clients[2].pipeline(&[words("EXEC")]).await;
    let large = "x".repeat(2 << 20);
    clients[3]
        .pipeline(&[vec!["SET".to_owned(), "k3".to_owned(), large]])
        .await;
    eventually(|| async {
        let info = proxy.raw().await.command("INFO clients").await;
        let waits = info.contains("\r\nblocked_clients:4\r\n");
        if waits { Ok(()) } else { Err(info) }
    })
    .await;
    // Longer than who stands still may: these cannot help it.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let values = admin.command("MGET k0 k1 k2").await;
    assert_eq!(values, "*3 $1 0 $1 0 $1 0");
    assert_eq!(admin.command("STRLEN k3").await, ":1");
    assert_eq!(admin.command("CLIENT UNPAUSE").await, "+OK");
    assert_eq!(clients[0].reply().await, ":1");
    assert_eq!(clients[0].reply().await, "$1 1");
    assert_eq!(clients[1].reply().await, ":1");
    assert_eq!(clients[2].reply().await, "*1 :1");
    assert_eq!(clients[3].reply().await, "+OK");

    // A shorter and weaker one changes nothing; it ends by itself.
    let begun = Instant::now();
    assert_eq!(admin.command("CLIENT PAUSE 700").await, "+OK");
    for client in &mut clients {
        client.pipeline(&[words("PING")]).await;
    }
    for client in &mut clients {
        assert_eq!(client.reply().await, "+PONG");
        assert!(begun.elapsed() >= Duration::from_millis(690));
    }
}

/// With the same bytes a plain server and a proxy answer the same.
#[tokio::test]
async fn replies_that_are_not_wanted_do_not_come() {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let server = Server::start(cluster.dir.path(), "plain", &[]);
    server.answers().await;
    let lines = [
        "SET a 1",
        "CLIENT REPLY SKIP",
        "SET a 2",
        "GET a",
        "CLIENT REPLY SKIP",
        "CLIENT REPLY SKIP",
        "GET a",
        "GET b",
        "CLIENT REPLY SKIP",
        "MGET a b c d e",
        "MGET a b c d e",
        "CLIENT REPLY SKIP",
        "CLIENT REPLY ON",
        "CLIENT REPLY OFF",
        "SET a 3",
        "CLIENT REPLY SKIP",
        "GET a",
        "NOPE",
        "CLIENT REPLY NOPE",
        "MGET a b c d e",
        "CLIENT REPLY ON",
        "GET a",
        // What tells of subscriptions is no reply.
        "CLIENT REPLY SKIP",
        "SUBSCRIBE c",
        "UNSUBSCRIBE",
        "GET a",
        "CLIENT REPLY OFF",
        "PSUBSCRIBE c*",
        "PUNSUBSCRIBE",
        "GET a",
        "RESET",
        "GET a",
        "CLIENT REPLY SKIP",
        "NOPE",
        "NOPE",
        "QUIT",
    ];
    let words: Vec<Vec<String>> = lines
        .iter()
        .map(|line| line.split(' ').map(str::to_owned).collect())
        .collect();
    let mut answers = Vec::new();
    for addr in [&server.addr, &cluster.proxies[0].addr] {
        let mut all = Raw::connect(addr).await;
        all.pipeline(&words).await;
        let answer = all.rest().await;
        // One by one, what comes is the same.
        let mut single = Raw::connect(addr).await;
        for words in &words {
            single.pipeline(std::slice::from_ref(words)).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let single = single.rest().await;
        assert_eq!(
            String::from_utf8_lossy(&single),
            String::from_utf8_lossy(&answer)
        );
        answers.push(String::from_utf8(answer).unwrap());
    }
    assert_eq!(answers[0], answers[1]);
    assert!(
        answers[0].starts_with("+OK\r\n$1\r\n2\r\n$-1\r\n*5"),
        "{}",
        answers[0]
    );
}
