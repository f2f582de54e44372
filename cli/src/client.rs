//! The way to a controller: endpoints, deadlines, and the one retry.
//!
//! [`Client::call`] is the only door. It connects when it must, to the first endpoint that answers;
//! it gives up at the deadline; and where the controller was UNAVAILABLE or the connection broke,
//! it asks the next endpoint once more. That is safe for mutations too: each carries a
//! [`request_id`], by which a controller knows the repetition.

use std::{fmt, mem, time::Duration};

use proto::{ServerAddr, v1, v1::admin_service_client::AdminServiceClient};
use tokio::time::{sleep, timeout};
use tonic::{
    Code, Response, Status, Streaming,
    transport::{Channel, Endpoint},
};

/// The generated client; its methods are what [`Client::call`] is given.
pub(crate) type Admin = AdminServiceClient<Channel>;

const PAGE_SIZE: u32 = 1000;
const RETRY_AFTER: Duration = Duration::from_millis(200);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);

/// Why there is no answer, or none that helps.
#[derive(Debug)]
pub(crate) enum Error {
    /// No endpoint can be connected to; why not, for each.
    Unreachable(Vec<(ServerAddr, String)>),
    /// The answer did not come within the timeout.
    Deadline(Duration),
    /// The controller answered with an error.
    Refused(Status),
}

impl Error {
    /// Whether the controller has gone, as far as one can tell, rather than said no, or never was.
    pub(crate) fn is_lost(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Deadline(_) => true,
            Self::Refused(status) => is_lost(status) && !is_foreign(status),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(attempts) => {
                let attempts: Vec<String> = attempts
                    .iter()
                    .map(|(endpoint, why)| format!("{endpoint} ({why})"))
                    .collect();
                write!(f, "no controller answers at {}", attempts.join(", "))
            }
            Self::Deadline(limit) => write!(f, "the controller did not answer within {limit:?}"),
            Self::Refused(status) if status.message().is_empty() => write!(f, "{}", status.code()),
            Self::Refused(status) => f.write_str(status.message()),
        }
    }
}

impl std::error::Error for Error {}

/// A connection to whichever controller answers.
pub(crate) struct Client {
    /// Never empty. The first is asked first; one that fails goes to the end.
    endpoints: Vec<ServerAddr>,
    /// For one call, with connecting and the retry.
    timeout: Duration,
    /// `None`: not connected.
    admin: Option<Admin>,
}

impl Client {
    /// Connects to nothing yet.
    pub(crate) fn new(endpoints: Vec<ServerAddr>, timeout: Duration) -> Self {
        assert!(!endpoints.is_empty(), "the flag has a default");
        Self {
            endpoints,
            timeout,
            admin: None,
        }
    }

    /// How long a call may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The endpoint in use, or to be tried next.
    pub(crate) fn endpoint(&self) -> &ServerAddr {
        &self.endpoints[0]
    }

    /// Calls a method of the controller: `client.call(Admin::get_group, request)`.
    pub(crate) async fn call<Q: Clone, A>(
        &mut self,
        method: impl AsyncFn(&mut Admin, Q) -> Result<Response<A>, Status>,
        request: Q,
    ) -> Result<A, Error> {
        let limit = self.timeout;
        let attempts = async {
            let refused = match self.attempt(&method, request.clone()).await {
                Err(Error::Refused(status)) if is_lost(&status) => status,
                done => return done,
            };
            self.admin = None;
            self.endpoints.rotate_left(1);
            sleep(RETRY_AFTER).await;
            match self.attempt(&method, request).await {
                // What it said first tells more than that it is gone now.
                Err(Error::Unreachable(_)) => Err(Error::Refused(refused)),
                done => done,
            }
        };
        timeout(limit, attempts)
            .await
            .unwrap_or(Err(Error::Deadline(limit)))
    }

    async fn attempt<Q, A>(
        &mut self,
        method: &impl AsyncFn(&mut Admin, Q) -> Result<Response<A>, Status>,
        request: Q,
    ) -> Result<A, Error> {
        let admin = match &mut self.admin {
            Some(admin) => admin,
            None => {
                let channel = self.connect().await?;
                self.admin.insert(Admin::new(channel))
            }
        };
        let response = method(admin, request).await.map_err(Error::Refused)?;
        Ok(response.into_inner())
    }

    async fn connect(&mut self) -> Result<Channel, Error> {
        // One that swallows packets must leave time for the others.
        let share = self.timeout / self.endpoints.len() as u32;
        let mut attempts = Vec::new();
        for _ in 0..self.endpoints.len() {
            let address = self.endpoint().clone();
            match open(&address, share).await {
                Ok(channel) => return Ok(channel),
                Err(error) => attempts.push((address, root_cause(&error))),
            }
            self.endpoints.rotate_left(1);
        }
        Err(Error::Unreachable(attempts))
    }

    /// Follows what happens in the cluster.
    pub(crate) async fn watch_events(
        &mut self,
        resume_token: String,
    ) -> Result<Streaming<v1::WatchEventsResponse>, Error> {
        let request = v1::WatchEventsRequest { resume_token };
        self.call(Admin::watch_events, request).await
    }
}

/// Lists page by page, and answers as if it had been one page.
macro_rules! list_all {
    ($name:ident, $resources:ident, $Request:ident, $Response:ident) => {
        /// All of them, however many pages that takes.
        pub(crate) async fn $name(
            &mut self,
            mut request: v1::$Request,
        ) -> Result<v1::$Response, Error> {
            request.page_size = PAGE_SIZE;
            let mut all = v1::$Response::default();
            loop {
                let mut page = self.call(Admin::$name, request.clone()).await?;
                all.$resources.append(&mut page.$resources);
                all.revision = page.revision;
                request.page_token = mem::take(&mut page.next_page_token);
                if request.page_token.is_empty() {
                    return Ok(all);
                }
            }
        }
    };
}

impl Client {
    list_all!(list_groups, groups, ListGroupsRequest, ListGroupsResponse);
    list_all!(
        list_servers,
        servers,
        ListServersRequest,
        ListServersResponse
    );
    list_all!(list_fences, fences, ListFencesRequest, ListFencesResponse);
    list_all!(
        list_migrations,
        migrations,
        ListMigrationsRequest,
        ListMigrationsResponse
    );
    list_all!(
        list_proxies,
        proxies,
        ListProxiesRequest,
        ListProxiesResponse
    );
}

/// An id for a mutation, by which a controller knows its repetition.
pub(crate) fn request_id() -> String {
    format!("{:032x}", fastrand::u128(..))
}

async fn open(address: &ServerAddr, limit: Duration) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(limit)
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .connect()
        .await
}

/// Whether the controller went away, or is about to, rather than answered the question.
pub(crate) fn is_lost(status: &Status) -> bool {
    // A controller's own errors come without a source and never as UNKNOWN: those are tonic's words
    // for a connection that broke.
    let made_here = std::error::Error::source(status).is_some();
    made_here || matches!(status.code(), Code::Unavailable | Code::Unknown)
}

/// Whether what answered is no gRPC server. tonic says so of one of HTTP; of another protocol, the
/// first bytes are no HTTP/2 frame: as its length, letters are far too much.
pub(crate) fn is_foreign(status: &Status) -> bool {
    status.message().contains("grpc-status header missing")
        || root_cause(status).ends_with("detected: frame with invalid size")
}

/// The innermost error; those around it say `transport error`.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn an_error_is_one_line() {
        fn check(error: Error, expected: &str) {
            assert_eq!(error.to_string(), expected);
        }
        let at = |text: &str| ServerAddr::new(text).unwrap();
        check(
            Error::Unreachable(vec![
                (at("a:1"), "refused".to_owned()),
                (at("b:2"), "no route".to_owned()),
            ]),
            "no controller answers at a:1 (refused), b:2 (no route)",
        );
        check(
            Error::Deadline(Duration::from_secs(10)),
            "the controller did not answer within 10s",
        );
        check(
            Error::Refused(Status::not_found("no group g9")),
            "no group g9",
        );
    }

    #[tokio::test]
    async fn every_endpoint_is_tried() {
        // Nothing listens on ports 1 and 2.
        let endpoints = ["127.0.0.1:1", "127.0.0.1:2"].map(|a| ServerAddr::new(a).unwrap());
        let mut client = Client::new(endpoints.to_vec(), Duration::from_secs(5));
        let error = client
            .call(Admin::get_cluster, v1::GetClusterRequest {})
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(error.is_lost(), "{text}");
        assert!(
            text.contains("127.0.0.1:1 (") && text.contains("127.0.0.1:2 ("),
            "{text}"
        );
    }

    /// Calls what answers with the errors, one after the other, and then well.
    async fn check_retry(mut errors: Vec<Status>, expected: Result<usize, Code>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = ServerAddr::new(listener.local_addr().unwrap().to_string()).unwrap();
        let mut client = Client::new(vec![endpoint], Duration::from_secs(5));
        errors.reverse();
        let (errors, calls) = (RefCell::new(errors), Cell::new(0));
        let result = client
            .call(
                async |_, ()| {
                    calls.set(calls.get() + 1);
                    let error = errors.borrow_mut().pop();
                    error.map_or(Ok(Response::new(())), Err)
                },
                (),
            )
            .await;
        match result {
            Ok(()) => assert_eq!(Ok(calls.get()), expected),
            Err(Error::Refused(status)) => assert_eq!(Err(status.code()), expected),
            Err(other) => panic!("{other}"),
        }
    }

    #[tokio::test]
    async fn unavailable_is_tried_once_more() {
        let unavailable = || Status::unavailable("shutting down");
        check_retry(vec![], Ok(1)).await;
        check_retry(vec![unavailable()], Ok(2)).await;
        check_retry(vec![unavailable(), unavailable()], Err(Code::Unavailable)).await;
        check_retry(vec![Status::aborted("changed")], Err(Code::Aborted)).await;
    }

    /// As a Redis server does, which is asked in HTTP/2.
    #[tokio::test]
    async fn another_protocol_is_foreign() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = ServerAddr::new(listener.local_addr().unwrap().to_string()).unwrap();
        let server = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let error = b"-ERR wrong number of arguments for 'PRI' command\r\n";
                stream.write_all(error).await.unwrap();
                // What it is sent is read, or the system would break the connection.
                tokio::spawn(async move { stream.read_to_end(&mut Vec::new()).await });
            }
        };
        let mut client = Client::new(vec![endpoint], Duration::from_secs(5));
        let error = tokio::select! {
            () = server => unreachable!("it goes on"),
            answer = client.call(Admin::get_cluster, v1::GetClusterRequest {}) => answer.unwrap_err(),
        };
        let Error::Refused(status) = &error else {
            panic!("{error}");
        };
        assert!(is_foreign(status), "{status:?}");
        assert!(!error.is_lost(), "{error}");
    }

    #[tokio::test]
    async fn a_call_ends_at_its_deadline() {
        // The backlog accepts, nobody ever answers.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = ServerAddr::new(listener.local_addr().unwrap().to_string()).unwrap();
        let mut client = Client::new(vec![endpoint], Duration::from_millis(100));
        let error = client
            .call(Admin::get_cluster, v1::GetClusterRequest {})
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Deadline(_)), "{error}");
    }

    #[test]
    fn request_ids_differ() {
        assert_eq!(request_id().len(), 32);
        assert_ne!(request_id(), request_id());
    }
}
