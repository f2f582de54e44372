//! A controller that says what the test tells it to, however wrong; but it admits servers, as a leader does
//! before it tells of them.

use std::{collections::HashSet, sync::Arc};

use proto::{
    fence::KEY,
    v1::{
        self, subscribe_request, subscribe_response,
        topology_service_server::{TopologyService, TopologyServiceServer},
    },
};
use tokio::{
    net::TcpStream,
    sync::{Mutex, mpsc},
    time::timeout,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{Raw, SOON};

/// Where the open stream to the proxy takes messages, if there is one.
type Say = Arc<Mutex<Option<mpsc::Sender<Result<v1::SubscribeResponse, Status>>>>>;

/// See the module. Serves one proxy.
pub struct ScriptedController {
    /// Where it listens.
    pub addr: String,
    say: Say,
    heard: mpsc::Receiver<subscribe_request::Message>,
    settled: mpsc::Receiver<v1::Settled>,
    admitted: Mutex<HashSet<String>>,
}

struct Service {
    say: Say,
    heard: mpsc::Sender<subscribe_request::Message>,
    settled: mpsc::Sender<v1::Settled>,
}

#[tonic::async_trait]
impl TopologyService for Service {
    type SubscribeStream = ReceiverStream<Result<v1::SubscribeResponse, Status>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let (say, said) = mpsc::channel(16);
        *self.say.lock().await = Some(say);
        let (heard, settled) = (self.heard.clone(), self.settled.clone());
        let mut stream = request.into_inner();
        tokio::spawn(async move {
            while let Some(Ok(v1::SubscribeRequest {
                message: Some(message),
            })) = stream.next().await
            {
                match message {
                    subscribe_request::Message::Stats(_) => {}
                    subscribe_request::Message::Settled(said) => {
                        settled.send(said).await.ok();
                    }
                    other => {
                        heard.send(other).await.ok();
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(said)))
    }
}

impl ScriptedController {
    /// Listens on a free port.
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (heard_in, heard) = mpsc::channel(64);
        let (settled_in, settled) = mpsc::channel(64);
        let say = Say::default();
        let service = Service {
            say: Arc::clone(&say),
            heard: heard_in,
            settled: settled_in,
        };
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(TopologyServiceServer::new(service))
                .serve_with_incoming(incoming),
        );
        Self {
            addr,
            say,
            heard,
            settled,
            admitted: Mutex::default(),
        }
    }

    /// The next group of which the proxy says that it has settled.
    pub async fn hear_settled(&mut self) -> v1::Settled {
        timeout(SOON, self.settled.recv())
            .await
            .expect("nothing has settled")
            .unwrap()
    }

    /// What the proxy says next, but for its counters and what has settled.
    pub async fn hear(&mut self) -> subscribe_request::Message {
        timeout(SOON, self.heard.recv())
            .await
            .expect("the proxy is silent")
            .unwrap()
    }

    /// Ends the stream, and is silent to whoever opens another.
    pub async fn hang_up(&self) {
        *self.say.lock().await = None;
    }

    /// Says something to the proxy, which has said hello. Servers it tells of are admitted before.
    pub async fn say(&self, message: subscribe_response::Message) {
        if let subscribe_response::Message::Snapshot(topology) = &message {
            let mut admitted = self.admitted.lock().await;
            for group in &topology.groups {
                if admitted.insert(group.primary.clone()) {
                    admit(&group.primary, &topology.cluster_id).await;
                }
            }
        }
        let say = self.say.lock().await;
        let response = v1::SubscribeResponse {
            message: Some(message),
        };
        say.as_ref()
            .expect("no hello yet")
            .send(Ok(response))
            .await
            .unwrap();
    }
}

/// Writes a server's fence record for any epoch, unless it has one; a process that has started anew is
/// admitted again. Whoever cannot be reached is left as it is.
pub async fn admit(server: &str, cluster: &str) {
    let Ok(stream) = TcpStream::connect(server).await else {
        return;
    };
    drop(stream);
    let mut raw = Raw::connect(server).await;
    let info = raw.command("INFO server").await;
    let run_id = info.split_once("run_id:").unwrap().1;
    let run_id = run_id.split_whitespace().next().unwrap();
    for (field, value) in [("cluster", cluster), ("term", "1"), ("epoch", "1")] {
        raw.command(&format!("HSETNX {KEY} {field} {value}")).await;
    }
    raw.command(&format!("HSET {KEY} run_id {run_id}")).await;
}
