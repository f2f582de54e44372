//! The bytes of the protocol itself, good and bad: a proxy answers what a plain server answers.

use tests::{Cluster, Raw, Server};

/// Sent as they are; the connection is then closed by whoever does not bear them, or by `QUIT`.
async fn answer(addr: &str, bytes: &[u8]) -> String {
    let mut client = Raw::connect(addr).await;
    client.send(&[bytes, b"\r\nQUIT\r\n"].concat()).await;
    client.rest().await.escape_ascii().to_string()
}

async fn equals_a_plain_server(cases: &[&[u8]]) {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let server = Server::start(cluster.dir.path(), "plain", &[]);
    server.answers().await;
    for bytes in cases {
        let expected = answer(&server.addr, bytes).await;
        let got = answer(&cluster.proxies[0].addr, bytes).await;
        assert_eq!(got, expected, "{}", bytes.escape_ascii());
    }
}

#[tokio::test]
async fn what_is_no_request_is_refused_in_the_words_of_redis() {
    equals_a_plain_server(&[
        b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\nfooz\r\n",
        b"*1\r\n:1\r\n",
        b"*1\r\n\xff\r\n",
        b"*1\r\n\r\n",
        b"*x\r\n",
        b"*2147483648\r\n",
        b"*99999999999999999999\r\n",
        b"*-1\r\nPING",
        b"*0\r\nPING",
        b"*\r\nPING",
        b"*1\r\n$x\r\n",
        b"*1\r\n$-1\r\n",
        b"*1\r\n$\r\n",
        b"*1\r\n$536870913\r\n",
        b"*2\r\n$3\r\nGET\r\n*1\r\n$1\r\na\r\n",
        b"SET \"a",
        b"SET 'a",
        b"SET \"a\"b",
        b"SET 'a'b",
        b"\"\"",
        b"PING 'it\\'s'",
        b"ECHO \"\\x41\\n\\r\\t\\b\\a\\\\ \\q\"",
        b"ECHO \"\\xzz\"",
        b"  PING  ",
        b"\r\n\r\nPING",
        b"PING\n",
    ])
    .await;
}

#[tokio::test]
async fn databases_and_logins_are_those_of_redis() {
    equals_a_plain_server(&[
        b"SELECT 15",
        b"SELECT 16",
        b"SELECT -1",
        b"SELECT x",
        b"SELECT 1x",
        b"SELECT 99999999999999999999",
        b"SELECT",
        b"SELECT 1 2",
        b"SELECT 3\r\nSET a 3\r\nSELECT 4\r\nGET a\r\nSELECT 3\r\nGET a",
        b"HELLO 4",
        b"HELLO x",
        b"HELLO 1",
        b"HELLO 2 NOPE",
        b"HELLO 2 AUTH a",
        b"HELLO 2 AUTH a b",
        b"HELLO 2 SETNAME",
        b"HELLO 2 SETNAME 'a b'",
        b"HELLO 3 AUTH default x SETNAME 'a b'\r\nCLIENT GETNAME",
        b"AUTH",
        b"AUTH x",
        b"AUTH a b",
        b"AUTH default b",
        b"AUTH a b c",
        b"RESET x",
        b"RESET",
        b"MULTI\r\nRESET\r\nEXEC",
        b"CLIENT SETNAME x\r\nSELECT 5\r\nSET r 1\r\nRESET\r\nCLIENT GETNAME\r\nGET r",
        b"CLIENT REPLY OFF\r\nRESET\r\nPING",
        b"QUIT\r\nPING",
        b"QUIT now",
        b"MULTI\r\nQUIT",
    ])
    .await;
}

#[tokio::test]
async fn users_are_those_of_redis() {
    equals_a_plain_server(&[
        b"ACL WHOAMI",
        b"ACL WHOAMI x",
        b"ACL CAT",
        b"ACL CAT nope",
        b"ACL CAT a b",
        b"ACL GENPASS 0",
        b"ACL GENPASS 4097",
        b"ACL GENPASS x",
        b"ACL GENPASS 1 2",
        b"ACL NOPE",
        b"ACL",
        b"ACL HELP x",
    ])
    .await;
    let cluster = Cluster::builder().groups(1).proxies(1).start().await;
    let mut client = cluster.proxies[0].raw().await;
    for (asked, digits) in [("", 64), (" 1", 1), (" 5", 2), (" 4096", 1024)] {
        let password = client.command(&format!("ACL GENPASS{asked}")).await;
        let password = password.split(' ').nth(1).unwrap();
        assert_eq!(password.len(), digits);
        assert!(
            password.bytes().all(|b| b.is_ascii_hexdigit()),
            "{password}"
        );
    }
    let hashes = client.command("ACL CAT HASH").await;
    assert!(
        hashes.contains(" hset ") && !hashes.contains(" get "),
        "{hashes}"
    );
}
