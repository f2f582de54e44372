//! What clients say of each other and do to each other, over all workers of a proxy.

use std::collections::BTreeSet;

use tests::{Cluster, Raw};

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
    tests::eventually(|| async {
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
