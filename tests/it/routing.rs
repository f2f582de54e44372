//! Keys are where their slots say, and commands over several keys do what Redis does.

use redis::cmd;
use tests::Cluster;

#[tokio::test]
async fn every_key_is_at_the_owner_of_its_slot_and_nowhere_else() {
    let cluster = Cluster::builder().groups(2).proxies(2).start().await;
    let vectors = [
        "a",
        "foo",
        "123456789",
        "user:1000",
        "{user1000}.following",
        "foo{}bar",
        "}{a}",
    ];
    let keys = vectors.iter().map(|&key| key.to_owned());
    let keys: Vec<String> = keys.chain((0..500).map(|n| format!("key:{n}"))).collect();
    let mut proxies = cluster.connect_all().await;
    for (index, key) in keys.iter().enumerate() {
        let proxy = &mut proxies[index % 2];
        cmd("SET")
            .arg(key)
            .arg(index)
            .exec_async(proxy)
            .await
            .unwrap();
    }
    let mut counts = Vec::new();
    for servers in &cluster.groups {
        let mut direct = servers[0].connect().await;
        let mut count = 0;
        for key in &keys {
            let there: bool = cmd("EXISTS")
                .arg(key)
                .query_async(&mut direct)
                .await
                .unwrap();
            let expected = cluster_owner(&cluster, key) == servers[0].addr;
            assert_eq!(there, expected, "{key} at {}", servers[0].addr);
            count += usize::from(there);
        }
        counts.push(count);
    }
    assert_eq!(counts.iter().sum::<usize>(), keys.len());
    assert!(
        counts.iter().all(|&count| count > 150),
        "unevenly spread: {counts:?}"
    );

    // The other proxy reads what the first wrote.
    for (index, key) in keys.iter().enumerate() {
        let proxy = &mut proxies[(index + 1) % 2];
        let value: usize = cmd("GET").arg(key).query_async(proxy).await.unwrap();
        assert_eq!(value, index, "{key}");
    }
}

/// Two groups share the slots evenly: g1 owns the lower half.
fn cluster_owner<'a>(cluster: &'a Cluster, key: &str) -> &'a str {
    let slot = proto::Slot::of_key(key.as_bytes()).number();
    &cluster.groups[usize::from(slot >= 512)][0].addr
}

#[tokio::test]
async fn commands_over_many_slots_are_split_and_merged() {
    let cluster = Cluster::builder().groups(3).proxies(1).start().await;
    let mut proxy = cluster.proxies[0].connect().await;
    let keys: Vec<String> = (0..100).map(|n| format!("many:{n}")).collect();
    let mut mset = cmd("MSET");
    for (n, key) in keys.iter().enumerate() {
        mset.arg(key).arg(n);
    }
    mset.exec_async(&mut proxy).await.unwrap();
    let mut asked = keys.clone();
    asked.insert(50, "missing".to_owned());
    let values: Vec<Option<usize>> = cmd("MGET")
        .arg(&asked)
        .query_async(&mut proxy)
        .await
        .unwrap();
    let mut expected: Vec<Option<usize>> = (0..100).map(Some).collect();
    expected.insert(50, None);
    assert_eq!(values, expected);
    for (command, count) in [("EXISTS", 100), ("TOUCH", 100), ("UNLINK", 100), ("DEL", 0)] {
        let got: i64 = cmd(command)
            .arg(&asked)
            .query_async(&mut proxy)
            .await
            .unwrap();
        assert_eq!(got, count, "{command}");
    }
}

#[tokio::test]
async fn the_proxy_answers_in_the_words_of_redis() {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let mut proxy = cluster.proxies[0].raw().await;
    // The same to a plain server: the words must be equal.
    let mut plain = tests::Raw::connect(&cluster.groups[0][0].addr).await;
    for command in [
        "PING",
        "ping hello",
        "PING a b",
        "ECHO hi",
        "GET",
        "SET a",
        "MSET a",
        "MSET a 1 b",
        "FOO a b",
        "foo",
        "AUTH x",
        "AUTH",
        "AUTH a b c",
        "SELECT x",
        "SELECT 99",
        "SELECT 99999999999",
        "SELECT -1",
        "SELECT 15",
        "SELECT 0",
        "HELLO 9",
        "HELLO x",
        "HELLO 2 AUTH",
        "HELLO 2 SETNAME a\tb",
        "CLIENT GETNAME",
        "CLIENT SETNAME bob",
        "CLIENT GETNAME",
        "CLIENT SETNAME",
        "CLIENT NO-EVICT on",
        "CLIENT NO-EVICT maybe",
        "CLIENT FOO",
        "COMMAND COUNT x",
        "COMMAND GETKEYS MSET a 1 b 2",
        "COMMAND GETKEYS EVAL s 2 a b c",
        "COMMAND GETKEYS PING",
        "COMMAND GETKEYS FOO",
        "COMMAND INFO nope",
        "COMMAND FOO",
        "XREAD STREAMS a",
        "EVAL x 5 a",
        "LPOP nokey 1 2",
        "OBJECT FOO",
        "object FOO a",
        "OBJECT",
        "OBJECT ENCODING",
        "OBJECT ENCODING a b",
        "OBJECT HELP",
        "XINFO HELP",
        "XINFO STREAM",
        "XGROUP CREATE s g",
        "XGROUP NOPE s",
        "CLIENT",
        "CLIENT ID x",
        "client|id",
        "DEBUG|SLEEP 0",
        "COMMAND GETKEYS GET",
        "COMMAND GETKEYS OBJECT ENCODING a",
        "COMMAND GETKEYS OBJECT FOO a",
        "COMMAND GETKEYS CLIENT ID",
        "COMMAND GETKEYS EVAL s 0",
        "COMMAND GETKEYS ZUNION x a",
        "COMMAND INFO nope|nope",
        "RESET",
        "CLIENT GETNAME",
    ] {
        assert_eq!(
            proxy.command(command).await,
            plain.command(command).await,
            "{command}"
        );
    }
    for (command, reply) in [
        (
            "RENAME a b",
            "-CROSSSLOT Keys in request don't hash to the same slot",
        ),
        (
            "SUNION a foo",
            "-CROSSSLOT Keys in request don't hash to the same slot",
        ),
        (
            "EVAL x 2 a foo",
            "-CROSSSLOT Keys in request don't hash to the same slot",
        ),
    ] {
        assert_eq!(proxy.command(command).await, reply, "{command}");
    }
    assert_eq!(
        proxy.command("SHUTDOWN").await.split(',').next(),
        Some("-ERR unknown command 'SHUTDOWN'")
    );
    assert_eq!(proxy.command("QUIT").await, "+OK");
    assert_eq!(proxy.rest().await, b"");
}

#[tokio::test]
async fn same_slot_commands_scripts_and_streams_work() {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let mut proxy = cluster.proxies[0].raw().await;
    for (command, reply) in [
        ("MSETNX {t}a 1 {t}b 2", ":1"),
        ("RENAME {t}a {t}c", "+OK"),
        ("SINTERCARD 2 {s}x {s}y", ":0"),
        ("ZADD {z}a 1 m", ":1"),
        ("ZUNIONSTORE {z}d 2 {z}a {z}b", ":1"),
        ("EVAL return(redis.call('get',KEYS[1])) 1 {t}c", "$1 1"),
        ("EVAL return(7) 0", ":7"),
        ("XADD s 1-1 f v", "$3 1-1"),
        (
            "XREAD COUNT 1 STREAMS s 0",
            "*1 *2 $1 s *1 *2 $3 1-1 *2 $1 f $1 v",
        ),
        ("XREAD BLOCK 10 STREAMS s $", "*-1"),
        ("XGROUP CREATE s g 0", "+OK"),
        ("OBJECT ENCODING {t}c", "$3 int"),
        ("SORT {l}x STORE {l}y", ":0"),
        (
            "SORT {l}x STORE other",
            "-CROSSSLOT Keys in request don't hash to the same slot",
        ),
    ] {
        assert_eq!(proxy.command(command).await, reply, "{command}");
    }
}

#[tokio::test]
async fn each_session_has_its_own_database_and_protocol() {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let (mut one, mut two) = (
        cluster.proxies[0].raw().await,
        cluster.proxies[0].raw().await,
    );
    assert_eq!(one.command("SELECT 3").await, "+OK");
    assert_eq!(one.command("SET k three").await, "+OK");
    assert_eq!(two.command("GET k").await, "$-1");
    assert!(
        two.command("HELLO 3")
            .await
            .starts_with("%7 $6 server $5 redis")
    );
    assert_eq!(two.command("GET k").await, "_");
    assert_eq!(two.command("HSET h f v").await, ":1");
    assert_eq!(two.command("HGETALL h").await, "%1 $1 f $1 v");
    assert_eq!(one.command("GET k").await, "$5 three");
    assert_eq!(one.command("SELECT 0").await, "+OK");
    assert_eq!(one.command("HGETALL h").await, "*2 $1 f $1 v");
    assert_eq!(two.command("RESET").await, "+RESET");
    assert_eq!(two.command("HGETALL h").await, "*2 $1 f $1 v");
}

#[tokio::test]
async fn names_that_look_like_options_do_not_hide_a_blocking_read() {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let mut client = cluster.proxies[0].raw().await;
    assert_eq!(client.command("XADD a 1-1 f v").await, "$3 1-1");
    assert_eq!(client.command("XGROUP CREATE a block 0").await, "+OK");
    for (command, reply) in [
        (
            "XREADGROUP GROUP block streams BLOCK 0 STREAMS a >",
            "*1 *2 $1 a",
        ),
        ("XREADGROUP GROUP block streams BLOCK 10 STREAMS a >", "*-1"),
        ("XREADGROUP GROUP block streams COUNT 1 STREAMS a >", "*-1"),
        ("XREADGROUP GROUP block streams NOACK STREAMS a >", "*-1"),
    ] {
        let got = client.command(command).await;
        assert!(got.starts_with(reply), "{command}: {got}");
    }
}

#[tokio::test]
async fn what_sorts_by_keys_that_may_lie_elsewhere_is_refused() {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let mut client = cluster.proxies[0].raw().await;
    let denied = |option: &str| {
        format!(
            "-ERR {option} option of SORT denied in Cluster mode when keys formed by the pattern may \
             be in different slots."
        )
    };
    let sorted = "*2 $1 2 $1 1".to_owned();
    for (command, expected) in [
        ("RPUSH {t}l 1 2", ":2".to_owned()),
        ("MSET {t}w_1 9 {t}w_2 3 {t}v_1 one", "+OK".to_owned()),
        ("SORT {t}l BY {t}w_*", sorted.clone()),
        (
            "SORT_RO {t}l BY {t}w_* GET {t}v_* GET #",
            "*4 $-1 $1 2 $3 one $1 1".to_owned(),
        ),
        ("SORT {t}l BY nosort DESC", sorted),
        ("SORT {t}l BY w_*", denied("BY")),
        ("SORT_RO {t}l GET # GET {u}v_*", denied("GET")),
        ("MULTI", "+OK".to_owned()),
        ("SORT {t}l BY w_*", denied("BY")),
        (
            "EXEC",
            "-EXECABORT Transaction discarded because of previous errors.".to_owned(),
        ),
    ] {
        assert_eq!(client.command(command).await, expected, "{command}");
    }
}
