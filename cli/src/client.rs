//! The way to a controller: endpoints, deadlines, and who is asked next.
//!
//! [`Client::read`] and [`Client::change`] are the only doors. They connect when they must, give up at the
//! deadline, and ask each endpoint once until one has done it: first the leader, if a stand-by has named it.
//! Only endpoints that the operator has given are asked: an address that a controller tells might be
//! another cluster's from here.
//!
//! Invariant: a change that may have been taken is not sent again. Only a controller that says that it does
//! not lead, or cannot be connected to, or does not accept the connection, has certainly done nothing.

use std::{fmt, mem, time::Duration};

use proto::{
    ServerAddr,
    identity::{Files, Material},
    reason::{self, Reason},
    tls::{self, root_cause},
    v1,
    v1::admin_service_client::AdminServiceClient,
};
use tokio::time::{sleep, timeout};
use tonic::{Code, Response, Status, Streaming, transport::Channel};

/// The generated client; its methods are what [`Client::read`] and [`Client::change`] are given.
pub(crate) type Admin = AdminServiceClient<Channel>;

const PAGE_SIZE: u32 = 1000;
/// Before the only endpoint is asked once more.
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
    /// The connection broke before a change was answered: whether it was done is unknown.
    Unanswered(ServerAddr, String),
}

impl Error {
    /// Whether the controller has gone, as far as one can tell, rather than said no, or never was.
    pub(crate) fn is_lost(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Deadline(_) | Self::Unanswered(..) => true,
            Self::Refused(status) => is_lost(status) && !is_foreign(status),
        }
    }

    /// Whether it is about TLS; then it says itself what to do.
    pub(crate) fn is_about_tls(&self) -> bool {
        match self {
            Self::Unreachable(attempts) => attempts.iter().any(|(_, why)| why.contains(tls::ABOUT)),
            Self::Refused(status) => is_not_let_in(status),
            Self::Deadline(_) | Self::Unanswered(..) => false,
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
            Self::Refused(status) if is_not_let_in(status) => f.write_str(&root_cause(status)),
            Self::Refused(status) if status.message().is_empty() => write!(f, "{}", status.code()),
            Self::Refused(status) => f.write_str(status.message()),
            Self::Unanswered(endpoint, why) => write!(
                f,
                "the controller at {endpoint} was lost before it answered ({why}); whether the change was \
                 taken shows in what is read"
            ),
        }
    }
}

impl std::error::Error for Error {}

/// What a call does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Manner {
    /// It only shows: it may be asked again.
    Read,
    /// It may be done once.
    Change,
}

/// A connection to whichever controller answers.
pub(crate) struct Client {
    /// Never empty. The first is connected to, or is asked first.
    endpoints: Vec<ServerAddr>,
    /// For one call, whoever is asked.
    timeout: Duration,
    /// What is shown over TLS, read for each connection. `None`: calls are in plain text.
    files: Option<Files>,
    /// `None`: not connected.
    admin: Option<Admin>,
}

impl Client {
    /// Connects to nothing yet.
    pub(crate) fn new(endpoints: Vec<ServerAddr>, timeout: Duration, files: Option<Files>) -> Self {
        assert!(!endpoints.is_empty(), "the flag has a default");
        Self {
            endpoints,
            timeout,
            files,
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

    /// Calls a method that only shows: `client.read(Admin::get_group, request)`.
    pub(crate) async fn read<Q: Clone, A>(
        &mut self,
        method: impl AsyncFn(&mut Admin, Q) -> Result<Response<A>, Status>,
        request: Q,
    ) -> Result<A, Error> {
        self.call(Manner::Read, method, request).await
    }

    /// Calls a method that changes something.
    pub(crate) async fn change<Q: Clone, A>(
        &mut self,
        method: impl AsyncFn(&mut Admin, Q) -> Result<Response<A>, Status>,
        request: Q,
    ) -> Result<A, Error> {
        self.call(Manner::Change, method, request).await
    }

    async fn call<Q: Clone, A>(
        &mut self,
        manner: Manner,
        method: impl AsyncFn(&mut Admin, Q) -> Result<Response<A>, Status>,
        request: Q,
    ) -> Result<A, Error> {
        let limit = self.timeout;
        let answer = timeout(limit, self.ask_all(manner, method, request));
        answer.await.unwrap_or_else(|_| {
            self.admin = None; // it hangs
            Err(Error::Deadline(limit))
        })
    }

    async fn ask_all<Q: Clone, A>(
        &mut self,
        manner: Manner,
        method: impl AsyncFn(&mut Admin, Q) -> Result<Response<A>, Status>,
        request: Q,
    ) -> Result<A, Error> {
        // One that hangs, or swallows packets, must leave time for the others.
        let share = self.timeout / self.endpoints.len() as u32;
        let patience = match manner {
            Manner::Read if self.endpoints.len() > 1 => Some(share),
            // Nobody else is asked.
            Manner::Read | Manner::Change => None,
        };
        let mut asked = Vec::new();
        let mut unreachable = Vec::new();
        let mut refused = None;
        loop {
            let endpoint = self.endpoint().clone();
            asked.push(endpoint.clone());
            match self.connect(share).await {
                Ok(admin) => match within(patience, method(admin, request.clone())).await {
                    Some(Ok(response)) => return Ok(response.into_inner()),
                    Some(Err(status)) if manner.goes_on(&status) => refused = Some(status),
                    Some(Err(status)) => return Err(manner.error(endpoint, status)),
                    None => unreachable.push((endpoint, "it does not answer".to_owned())),
                },
                Err(why) => unreachable.push((endpoint, why)),
            }
            self.admin = None;
            let leader = refused.as_ref().and_then(reason::leader);
            match next(&self.endpoints, &asked, leader.as_deref()) {
                Some(index) => self.endpoints.swap(0, index),
                // There is nobody else, and it may be about to lead, or be started again.
                None if asked.len() == 1 && refused.is_some() => sleep(RETRY_AFTER).await,
                // What one has said tells more than that another is gone.
                None => return Err(refused.map_or(Error::Unreachable(unreachable), Error::Refused)),
            }
        }
    }

    /// Connects to the first endpoint, or else says why not.
    async fn connect(&mut self, limit: Duration) -> Result<&mut Admin, String> {
        let admin = match self.admin.take() {
            Some(admin) => admin,
            None => {
                let materials = self.files.as_ref().map(Material::once).transpose();
                let materials = materials.map_err(|e| format!("{}{e}", tls::ABOUT))?;
                let channel = tls::connect(self.endpoint(), materials, limit, |endpoint| {
                    endpoint.http2_keep_alive_interval(KEEPALIVE_EVERY)
                });
                Admin::new(channel.await?)
            }
        };
        Ok(self.admin.insert(admin))
    }

    /// Follows what happens in the cluster.
    pub(crate) async fn watch_events(
        &mut self,
        resume_token: String,
    ) -> Result<Streaming<v1::WatchEventsResponse>, Error> {
        let request = v1::WatchEventsRequest { resume_token };
        self.read(Admin::watch_events, request).await
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
                let mut page = self.read(Admin::$name, request.clone()).await?;
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

impl Manner {
    /// Whether another controller may be asked after this answer.
    fn goes_on(self, status: &Status) -> bool {
        let does_not_lead = Reason::of(status) == Some(Reason::NotLeading);
        does_not_lead || is_not_let_in(status) || (self == Self::Read && is_lost(status))
    }

    /// Of an answer that is the last.
    fn error(self, endpoint: ServerAddr, status: Status) -> Error {
        let broke = is_lost(&status) && Reason::of(&status).is_none() && !is_foreign(&status);
        match self {
            Self::Change if broke => Error::Unanswered(endpoint, root_cause(&status)),
            Self::Change | Self::Read => Error::Refused(status),
        }
    }
}

/// Which endpoint is asked next: the leader, if it is one of them; else the first that was not asked yet.
fn next(endpoints: &[ServerAddr], asked: &[ServerAddr], leader: Option<&str>) -> Option<usize> {
    let left = |endpoint: &ServerAddr| !asked.contains(endpoint);
    let leads = |endpoint: &ServerAddr| leader.is_some_and(|leader| endpoint.as_str() == leader);
    let named = endpoints.iter().position(|e| left(e) && leads(e));
    named.or_else(|| endpoints.iter().position(left))
}

/// An id for a mutation, by which a controller knows its repetition.
pub(crate) fn request_id() -> String {
    format!("{:032x}", fastrand::u128(..))
}

/// `None`: it took longer than it may.
async fn within<T>(most: Option<Duration>, answer: impl Future<Output = T>) -> Option<T> {
    match most {
        Some(most) => timeout(most, answer).await.ok(),
        None => Some(answer.await),
    }
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

/// Whether the connection was refused for what was shown, or not, over TLS: nothing was asked then.
fn is_not_let_in(status: &Status) -> bool {
    root_cause(status).contains(tls::ABOUT)
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
        check(
            Error::Unanswered(at("a:1"), "broken pipe".to_owned()),
            "the controller at a:1 was lost before it answered (broken pipe); whether the change was taken \
             shows in what is read",
        );
    }

    #[tokio::test]
    async fn every_endpoint_is_tried() {
        // Nothing listens on ports 1 and 2.
        let endpoints = ["127.0.0.1:1", "127.0.0.1:2"].map(|a| ServerAddr::new(a).unwrap());
        let mut client = Client::new(endpoints.to_vec(), Duration::from_secs(5), None);
        let error = client
            .read(Admin::get_cluster, v1::GetClusterRequest {})
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(error.is_lost(), "{text}");
        assert!(
            text.contains("127.0.0.1:1 (") && text.contains("127.0.0.1:2 ("),
            "{text}"
        );
    }

    /// Calls so many controllers, which answer with these errors one after the other, and then well.
    async fn check(
        manner: Manner,
        controllers: usize,
        mut errors: Vec<Status>,
        expected: Result<usize, &str>,
    ) {
        let listen = |_| std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listeners: Vec<_> = (0..controllers).map(listen).collect();
        let at = |l: &std::net::TcpListener| l.local_addr().unwrap().to_string();
        let endpoints = listeners.iter().map(|l| ServerAddr::new(at(l)).unwrap());
        let mut client = Client::new(endpoints.collect(), Duration::from_secs(5), None);
        errors.reverse();
        let (errors, calls) = (RefCell::new(errors), Cell::new(0));
        let method = async |_: &mut Admin, ()| {
            calls.set(calls.get() + 1);
            let error = errors.borrow_mut().pop();
            error.map_or(Ok(Response::new(())), Err)
        };
        let result = client.call(manner, method, ()).await;
        let result = result.map(|()| calls.get()).map_err(|e| e.to_string());
        match expected {
            Ok(calls) => assert_eq!(result, Ok(calls)),
            Err(part) => assert!(result.as_ref().unwrap_err().contains(part), "{result:?}"),
        }
    }

    #[tokio::test]
    async fn what_was_certainly_not_done_is_asked_of_each() {
        use Manner::{Change, Read};
        let follows = || Reason::not_leading(None, "another one leads");
        let ends = || Reason::ShuttingDown.status("it ends");
        let breaks = || Status::unknown("transport error");
        for manner in [Read, Change] {
            check(manner, 1, vec![], Ok(1)).await;
            check(manner, 3, vec![follows(), follows()], Ok(3)).await;
            check(manner, 3, vec![follows(); 3], Err("another one leads")).await;
            check(manner, 1, vec![follows()], Ok(2)).await;
            check(manner, 1, vec![follows(); 2], Err("another one leads")).await;
            check(manner, 2, vec![Status::aborted("changed")], Err("changed")).await;
        }
        check(Read, 1, vec![ends()], Ok(2)).await;
        check(Read, 3, vec![ends(), breaks()], Ok(3)).await;
        // It may have been done.
        check(Change, 1, vec![ends()], Err("it ends")).await;
        check(
            Change,
            3,
            vec![follows(), breaks()],
            Err("was lost before it answered"),
        )
        .await;
    }

    #[test]
    fn the_leader_is_next_if_it_is_one_of_them() {
        let at = |text: &str| ServerAddr::new(text).unwrap();
        let all = ["a:1", "b:1", "c:1"].map(at);
        let check = |asked: &[&str], leader: Option<&str>, expected: Option<usize>| {
            let asked: Vec<ServerAddr> = asked.iter().map(|text| at(text)).collect();
            assert_eq!(next(&all, &asked, leader), expected, "{asked:?} {leader:?}");
        };
        check(&["a:1"], None, Some(1));
        check(&["a:1"], Some("c:1"), Some(2));
        check(&["a:1"], Some("x:1"), Some(1));
        check(&["a:1", "c:1"], Some("c:1"), Some(1));
        check(&["a:1", "c:1", "b:1"], Some("c:1"), None);
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
        let mut client = Client::new(vec![endpoint], Duration::from_secs(5), None);
        let error = tokio::select! {
            () = server => unreachable!("it goes on"),
            answer = client.read(Admin::get_cluster, v1::GetClusterRequest {}) => answer.unwrap_err(),
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
        let mut client = Client::new(vec![endpoint], Duration::from_millis(100), None);
        let error = client
            .read(Admin::get_cluster, v1::GetClusterRequest {})
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
