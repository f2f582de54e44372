//! What every gRPC call passes on its way in: a request id, a span, a limit, a deadline, and metrics.
//!
//! Calls of one [`Class`] share a limit that no other class can use up: however many operators wait for
//! servers that hang, or watch, there is room for proxies, and for changes. A call that finds no room is
//! refused at once, with `RESOURCE_EXHAUSTED` and before anything of it is done: nothing queues here.
//! A stream has its place for as long as it is open, whence it takes its [`Permit`] along.
//!
//! Nothing here knows what a call means. Invariant: as many calls of a class are in hand as there are
//! permits given out, and never more than `Class::most`.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use prometheus_client::encoding::EncodeLabelValue;
use proto::reason::Reason;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tonic::{
    Code, Status,
    body::Body,
    codegen::http::{HeaderMap, HeaderName, HeaderValue, Request, Response},
};
use tower::{Layer, Service};
use tracing::{Instrument, debug, info_span};

use crate::metrics::Metrics;

/// By which a caller's call is found in the log. One that comes without is given one; the answer names
/// it either way.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A longer one is not the caller's to choose.
const REQUEST_ID_MAX: usize = 64;

/// How long a read may take; it waits for nothing.
const READ_DEADLINE: Duration = Duration::from_secs(5);

/// How long a change may take: more than the store has for it.
const CHANGE_DEADLINE: Duration = Duration::from_secs(15);

/// How long a change may take for which servers are asked.
const ADMISSION_DEADLINE: Duration = Duration::from_secs(30);

/// Calls that share a limit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, EncodeLabelValue)]
pub enum Class {
    /// The proxies' streams.
    Proxy,
    /// Streams of events.
    Watch,
    /// What only shows.
    Read,
    /// What changes the store.
    Change,
    /// What changes the store, and waits for servers or proxies before it does.
    Admission,
    /// Health and reflection.
    Other,
}

impl Class {
    const ALL: [Self; 6] = [
        Self::Proxy,
        Self::Watch,
        Self::Read,
        Self::Change,
        Self::Admission,
        Self::Other,
    ];

    /// How many may be in hand at a time.
    fn most(self) -> usize {
        match self {
            Self::Proxy => 4096,
            Self::Watch | Self::Read | Self::Other => 256,
            // The store takes one at a time, and a proxy's registration waits behind those before it.
            Self::Change => 64,
            // Each holds up to 16 connections to servers.
            Self::Admission => 32,
        }
    }
}

/// What holds for a method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Rule {
    class: Class,
    /// `None`: a stream.
    deadline: Option<Duration>,
}

impl Rule {
    /// By the path of its requests: `/sluice.v1.AdminService/GetCluster`.
    fn of(path: &str) -> Self {
        let (class, deadline) = match path.trim_start_matches('/').split_once('/') {
            Some(("sluice.v1.TopologyService", _)) => (Class::Proxy, None),
            Some(("sluice.v1.AdminService", method)) => match method {
                "WatchEvents" => (Class::Watch, None),
                "VerifyMigration" => (Class::Admission, None),
                "CreateGroup" | "CreateServer" | "DeleteProxy" | "Rebalance" => {
                    (Class::Admission, Some(ADMISSION_DEADLINE))
                }
                "ExportCluster" => (Class::Read, Some(READ_DEADLINE)),
                _ if method.starts_with("Get") || method.starts_with("List") => {
                    (Class::Read, Some(READ_DEADLINE))
                }
                _ => (Class::Change, Some(CHANGE_DEADLINE)),
            },
            _ => (Class::Other, None),
        };
        Self { class, deadline }
    }
}

/// A place among the calls of its class; given back when all clones are dropped.
#[derive(Clone)]
pub struct Permit {
    _held: Arc<OwnedSemaphorePermit>,
}

/// The layer; cheap to clone, and all clones share the limits.
#[derive(Clone)]
pub struct CallsLayer {
    limits: Arc<[(Class, Arc<Semaphore>)]>,
    metrics: Metrics,
}

impl CallsLayer {
    /// With all places free.
    pub fn new(metrics: Metrics) -> Self {
        let limit = |class: Class| (class, Arc::new(Semaphore::new(class.most())));
        Self {
            limits: Class::ALL.map(limit).into(),
            metrics,
        }
    }

    /// `None`: there is no room.
    fn enter(&self, class: Class) -> Option<Permit> {
        let (_, limit) = self.limits.iter().find(|(c, _)| *c == class)?;
        let held = Arc::clone(limit).try_acquire_owned().ok()?;
        Some(Permit {
            _held: Arc::new(held),
        })
    }
}

impl<S> Layer<S> for CallsLayer {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Calls<S> {
        Calls {
            inner,
            layer: self.clone(),
        }
    }
}

/// See [`CallsLayer`].
#[derive(Clone)]
pub struct Calls<S> {
    inner: S,
    layer: CallsLayer,
}

impl<S> Service<Request<Body>> for Calls<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path().to_owned();
        let rule = Rule::of(&path);
        let id = request_id(request.headers());
        let span = info_span!("call", method = path.trim_start_matches('/'), request_id = ?id);
        let account = Account::open(self.layer.metrics.clone(), path);
        let Some(permit) = self.layer.enter(rule.class) else {
            self.layer.metrics.shed(rule.class);
            let response = overloaded(rule.class).into_http();
            return async move { Ok(account.close(id, response)) }.boxed();
        };
        request.extensions_mut().insert(permit.clone());
        let answer = self.inner.call(request);
        let answer = async move {
            let response = within(rule.deadline, answer).await?;
            drop(permit);
            Ok(account.close(id, response))
        };
        answer.instrument(span).boxed()
    }
}

/// The answer, or that there was none in time.
async fn within<E>(
    deadline: Option<Duration>,
    answer: impl Future<Output = Result<Response<Body>, E>>,
) -> Result<Response<Body>, E> {
    let Some(most) = deadline else {
        return answer.await;
    };
    timeout(most, answer)
        .await
        .unwrap_or_else(|_| Ok(late(most).into_http()))
}

/// The caller's, if it is one to be written into a log; else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let fits = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        (1..=REQUEST_ID_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    };
    match headers.get(&REQUEST_ID).filter(fits) {
        Some(id) => id.clone(),
        None => HeaderValue::from_str(&format!("{:016x}", fastrand::u64(..)))
            .expect("hexadecimal digits may stand in a header"),
    }
}

fn overloaded(class: Class) -> Status {
    let what = match class {
        Class::Proxy => "proxies are connected",
        Class::Watch => "callers watch events",
        Class::Read => "reads are under way",
        Class::Change => "changes are under way",
        Class::Admission => "calls wait for servers to be admitted or fenced",
        Class::Other => "calls for health and reflection are under way",
    };
    let most = class.most();
    Reason::Overloaded.status(format!(
        "{most} {what}, as many as may be at a time; nothing was done: try again later"
    ))
}

fn late(most: Duration) -> Status {
    Reason::CallTimedOut.status(format!(
        "the call was not done within {most:?}; whether a change was taken shows in what is read"
    ))
}

/// Counts a call when it is answered, or was given up by its caller.
struct Account {
    metrics: Metrics,
    path: String,
    begun: Instant,
    code: Code,
}

impl Account {
    fn open(metrics: Metrics, path: String) -> Self {
        Self {
            metrics,
            path,
            begun: Instant::now(),
            code: Code::Cancelled,
        }
    }

    /// The answer, with the request's id.
    fn close(mut self, id: HeaderValue, mut response: Response<Body>) -> Response<Body> {
        // An error comes with its code in the headers; all else starts well.
        let code = response.headers().get("grpc-status");
        self.code = code.map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
        response.headers_mut().insert(REQUEST_ID, id);
        response
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let took = self.begun.elapsed();
        debug!(code = ?self.code, ?took, "answered");
        self.metrics.answered(&self.path, self.code, took);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::metrics::Levels;

    const WATCH: &str = "/sluice.v1.AdminService/WatchEvents";
    const CHANGE: &str = "/sluice.v1.AdminService/AssignSlots";

    fn request(path: &str, id: Option<&str>) -> Request<Body> {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = path.parse().unwrap();
        if let Some(id) = id {
            let id = HeaderValue::from_bytes(id.as_bytes()).unwrap();
            request.headers_mut().insert(REQUEST_ID, id);
        }
        request
    }

    fn reason(response: &Response<Body>) -> Option<Reason> {
        Reason::of(&Status::from_header_map(response.headers())?)
    }

    #[test]
    fn each_method_has_its_rule() {
        fn check(path: &str, class: Class, seconds: u64) {
            let deadline = Some(Duration::from_secs(seconds)).filter(|time| !time.is_zero());
            assert_eq!(Rule::of(path), Rule { class, deadline }, "{path}");
        }
        check("/sluice.v1.TopologyService/Subscribe", Class::Proxy, 0);
        check(WATCH, Class::Watch, 0);
        check("/sluice.v1.AdminService/GetCluster", Class::Read, 5);
        check("/sluice.v1.AdminService/ListProxies", Class::Read, 5);
        check(CHANGE, Class::Change, 15);
        check("/sluice.v1.AdminService/CreateServer", Class::Admission, 30);
        check("/grpc.health.v1.Health/Watch", Class::Other, 0);
        check("/", Class::Other, 0);
    }

    /// A service that leaves the permits of streams with the test.
    #[tokio::test]
    async fn a_full_class_is_refused_and_the_others_are_served() {
        let (held, streams) = std::sync::mpsc::channel();
        let metrics = Metrics::new();
        let service = CallsLayer::new(metrics.clone()).layer(service_fn(
            move |mut request: Request<Body>| {
                let permit = request.extensions_mut().remove::<Permit>();
                if request.uri().path() == WATCH {
                    held.send(permit.unwrap()).unwrap();
                }
                async { Ok::<_, Infallible>(Response::new(Body::empty())) }
            },
        ));
        let call = |path: &str| service.clone().oneshot(request(path, None));
        for _ in 0..Class::Watch.most() {
            assert_eq!(reason(&call(WATCH).await.unwrap()), None);
        }
        let refused = call(WATCH).await.unwrap();
        assert_eq!(reason(&refused), Some(Reason::Overloaded));
        assert!(refused.headers().contains_key(&REQUEST_ID));
        // Unary calls give their place back when they are answered.
        for _ in 0..2 * Class::Change.most() {
            assert_eq!(reason(&call(CHANGE).await.unwrap()), None);
        }
        drop(streams.recv().unwrap());
        assert_eq!(reason(&call(WATCH).await.unwrap()), None);
        let text = metrics.render(Levels::default());
        let shed = "sluice_controller_calls_shed_total{class=\"Watch\"} 1";
        assert!(text.contains(shed), "{text}");
    }

    #[tokio::test]
    async fn who_takes_too_long_is_told() {
        let most = Some(Duration::from_millis(1));
        let never = std::future::pending::<Result<_, Infallible>>();
        let response = within(most, never).await.unwrap();
        assert_eq!(reason(&response), Some(Reason::CallTimedOut));
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_is_counted() {
        let metrics = Metrics::new();
        let service = CallsLayer::new(metrics.clone()).layer(service_fn(|_: Request<Body>| {
            std::future::pending::<Result<Response<Body>, Infallible>>()
        }));
        drop(service.oneshot(request(CHANGE, None)).now_or_never());
        let text = metrics.render(Levels::default());
        assert!(text.contains("code=\"Cancelled\"} 1"), "{text}");
    }

    #[test]
    fn a_request_id_is_kept_or_given() {
        let kept = |id| request_id(request(CHANGE, Some(id)).headers()) == id;
        assert!(kept("a-1/b"));
        assert!(!kept("a-ü"));
        assert!(!kept("a b"));
        assert!(!kept(""));
        assert!(!kept(
            "more-than-64-characters-are-more-than-anybody-needs-to-find-a-call-again"
        ));
        let none = HeaderMap::new();
        assert_ne!(request_id(&none), request_id(&none));
    }
}
