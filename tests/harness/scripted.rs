//! A controller that says what the test tells it to, however wrong.

use std::sync::Arc;

use proto::v1::{
    self, subscribe_request, subscribe_response,
    topology_service_server::{TopologyService, TopologyServiceServer},
};
use tokio::{
    sync::{Mutex, mpsc},
    time::timeout,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::SOON;

/// Where the open stream to the proxy takes messages, if there is one.
type Say = Arc<Mutex<Option<mpsc::Sender<Result<v1::SubscribeResponse, Status>>>>>;

/// See the module. Serves one proxy.
pub struct ScriptedController {
    /// Where it listens.
    pub addr: String,
    say: Say,
    heard: mpsc::Receiver<subscribe_request::Message>,
}

struct Service {
    say: Say,
    heard: mpsc::Sender<subscribe_request::Message>,
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
        let heard = self.heard.clone();
        let mut stream = request.into_inner();
        tokio::spawn(async move {
            while let Some(Ok(v1::SubscribeRequest {
                message: Some(message),
            })) = stream.next().await
            {
                if !matches!(message, subscribe_request::Message::Stats(_)) {
                    heard.send(message).await.ok();
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
        let say = Say::default();
        let service = Service {
            say: Arc::clone(&say),
            heard: heard_in,
        };
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(TopologyServiceServer::new(service))
                .serve_with_incoming(incoming),
        );
        Self { addr, say, heard }
    }

    /// What the proxy says next, but for its counters.
    pub async fn hear(&mut self) -> subscribe_request::Message {
        timeout(SOON, self.heard.recv())
            .await
            .expect("the proxy is silent")
            .unwrap()
    }

    /// Says something to the proxy, which has said hello.
    pub async fn say(&self, message: subscribe_response::Message) {
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
