//! Doors and those who wait at them, against a server that says what the test wants.

use std::cell::RefCell;

use proto::{ClusterId, Group, GroupId, SlotState, Topology, Version};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::yield_now,
};

use super::*;
use crate::{
    crew::Crew,
    worker::{
        Worker,
        tests::{client, run_local, worker},
    },
};

/// A server: it says nothing of itself.
struct Server(TcpListener);

impl Server {
    async fn start() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn topology(&self, epoch: u64) -> std::sync::Arc<Topology> {
        let group = GroupId::new("g").unwrap();
        let groups = [Group {
            id: group.clone(),
            primary: ServerAddr::new(self.0.local_addr().unwrap().to_string()).unwrap(),
            replicas: Vec::new(),
        }];
        let version = Version {
            leader_term: 1,
            epoch,
        };
        let cluster = ClusterId::new("c").unwrap();
        let owner = |_| (Some(group.clone()), SlotState::Serving);
        Topology::new(cluster, version, groups, owner)
            .unwrap()
            .into()
    }

    /// The next connection, which has said this.
    async fn greeted(&self) -> (TcpStream, String) {
        let (mut stream, _) = self.0.accept().await.unwrap();
        let said = hear(&mut stream, "INFO\r\n$6\r\nserver\r\n").await;
        (stream, said)
    }
}

/// All that is said up to this.
async fn hear(stream: &mut TcpStream, end: &str) -> String {
    let mut said = String::new();
    while !said.ends_with(end) {
        let byte = stream.read_u8().await.expect("it says more");
        said.push(byte.into());
    }
    said
}

/// Answers a greeting, as one whose record asks for this epoch.
async fn welcome(stream: &mut TcpStream, id: &str, epoch: u64) {
    let bulk = |text: &str| format!("${}\r\n{text}\r\n", text.len());
    let record = ["c", "1", &epoch.to_string(), "run"].map(bulk).concat();
    let info = bulk("run_id:run\r\n");
    let all = format!("+OK\r\n{id}\r\n*4\r\n{record}{info}");
    stream.write_all(all.as_bytes()).await.unwrap();
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    matches!(stream.read(&mut [0; 100]).await, Ok(0) | Err(_))
}

/// What the client is told, while the worker's turns are ended.
async fn told(worker: &RefCell<Worker>, client: &mut TcpStream) -> String {
    let mut reply = [0; 300];
    loop {
        worker.borrow_mut().flush();
        match client.try_read(&mut reply) {
            Ok(len) => return String::from_utf8_lossy(&reply[..len]).into_owned(),
            Err(_) => yield_now().await,
        }
    }
}

#[test]
fn who_waits_is_let_in_by_what_it_was_routed_by() {
    run_local(async {
        let server = Server::start().await;
        let worker = worker(Crew::of(1).remove(0).0);
        worker.borrow_mut().apply(server.topology(10));
        let (mut usual, _) = server.greeted().await;
        welcome(&mut usual, ":1", 1).await;
        let (mut client, _) = client(&worker);
        client.write_all(b"SET a 1\r\n").await.unwrap();
        let (mut first, _) = server.greeted().await;
        // It was routed by 10. That its worker has another topology by now is nothing to the request.
        worker.borrow_mut().apply(server.topology(12));
        welcome(&mut first, ":1", 11).await;
        let reply = told(&worker, &mut client).await;
        let why = "it is fenced: it asks for epoch 11, and this proxy routes by 10";
        assert!(
            reply.starts_with("-TRYAGAIN server ") && reply.contains(why),
            "{reply}"
        );
        assert!(is_closed(&mut first).await, "something else was sent");
        // What is routed from now on is let in.
        let (mut second, _) = server.greeted().await;
        welcome(&mut second, ":2", 11).await;
        while worker.borrow().backends.ready() < 2 {
            yield_now().await;
        }
    });
}

#[test]
fn who_is_too_old_asks_again_only_with_the_next_topology() {
    run_local(async {
        let server = Server::start().await;
        let worker = worker(Crew::of(1).remove(0).0);
        worker.borrow_mut().apply(server.topology(10));
        let (mut stream, _) = server.greeted().await;
        welcome(&mut stream, ":1", 11).await;
        assert!(is_closed(&mut stream).await);
        let again = tokio::time::timeout(Duration::from_millis(300), server.greeted());
        assert!(again.await.is_err(), "it has asked again");
        worker.borrow_mut().apply(server.topology(11));
        let (mut stream, _) = server.greeted().await;
        welcome(&mut stream, ":2", 11).await;
        while worker.borrow().backends.ready() == 0 {
            yield_now().await;
        }
    });
}

#[test]
fn nothing_is_sent_before_the_fence_is_known() {
    run_local(async {
        let server = Server::start().await;
        let worker = worker(Crew::of(1).remove(0).0);
        worker.borrow_mut().apply(server.topology(10));
        drop(server.greeted().await); // the pipe's
        let way = Way {
            database: 3,
            ..Way::USUAL
        };
        for (id, epoch) in [(":7", 11), (":7", 10), ("-ERR unknown", 10)] {
            let timeout = Duration::from_secs(5);
            let door = worker.borrow_mut().backends.door(0, way, timeout);
            let name = door.name.clone();
            let serve = async {
                let (mut stream, said) = loop {
                    let (stream, said) = server.greeted().await;
                    if said.contains(&name) {
                        break (stream, said); // not the pipe's next
                    }
                };
                let words = ["SETNAME", "ID", "HMGET", "{sluice}:fence", "epoch", "INFO"];
                let at = words.map(|word| said.find(word).unwrap());
                assert!(at.is_sorted() && !said.contains("SELECT"), "{said}");
                welcome(&mut stream, id, epoch).await;
                if id.starts_with('-') {
                    hear(&mut stream, "LIST\r\n").await;
                    let list = format!("id=7 name={name} db=0\n");
                    let list = format!("${}\r\n{list}\r\n", list.len());
                    stream.write_all(list.as_bytes()).await.unwrap();
                }
                if epoch > 10 {
                    assert!(is_closed(&mut stream).await);
                } else {
                    hear(&mut stream, "SELECT\r\n$1\r\n3\r\n").await;
                    stream.write_all(b"+OK\r\n").await.unwrap();
                }
            };
            let (opened, ()) = tokio::join!(door.open(), serve);
            match opened {
                Ok(connection) => {
                    assert_eq!((connection.id, connection.run_id.as_str()), (7, "run"));
                    assert_eq!(epoch, 10);
                }
                Err(why) => assert!(matches!(why, Shut::Refused(_)) && epoch > 10, "{why}"),
            }
        }
    });
}
