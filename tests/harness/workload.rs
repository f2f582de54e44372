//! Clients of all kinds that never stop, remember what they were answered, and are checked at the end.
//!
//! ```no_run
//! # async fn f(addrs: Vec<String>) {
//! let workload = tests::Workload::start(addrs, 1);
//! // ... kill, stop and move what is to be killed, stopped and moved ...
//! let report = workload.stop().await;
//! assert_eq!(report.violations, Vec::<String>::new());
//! # }
//! ```
//!
//! They go slowly (some thousand requests a second together): what is wanted are unlucky moments, not
//! throughput. Each file is one kind, with what it promises and how that is checked. A plain server must
//! pass; a proxy that loses, invents or doubles something must not.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use redis::{AsyncConnectionConfig, Cmd, FromRedisValue, RedisError, aio::MultiplexedConnection};
use tokio::time::{Instant, sleep};

use crate::{SOON, standstill::Standstill};

mod big;
mod counter;
mod expiry;
mod list;
mod pairs;
mod queue;
mod register;
mod set;
mod transfer;

/// How many violations of a kind are told.
const SHOWN: usize = 10;

/// Clients of one kind, awaited and checked: what was violated.
type Verdict = Pin<Box<dyn Future<Output = Vec<String>> + Send>>;

/// See the module.
pub struct Workload {
    world: World,
    standstill: Standstill,
    verdicts: Vec<Verdict>,
}

/// What all clients share; cheap to clone.
#[derive(Clone)]
struct World {
    addrs: Arc<[String]>,
    begun: Instant,
    stop: Arc<AtomicBool>,
    seed: u64,
    tally: Arc<Mutex<Tally>>,
}

#[derive(Clone, Default)]
struct Tally {
    answered: u64,
    errors: BTreeMap<String, u64>,
    slowest: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// Requests that got the reply they were sent for.
    pub answered: u64,
    /// Requests that got an error or none, by its code; `lost` is a connection that ended.
    pub errors: BTreeMap<String, u64>,
    /// The longest that a request took that was answered, but for those that block.
    pub slowest: Duration,
    /// The longest that this machine let somebody wait meanwhile who had something to do.
    pub standstill: Duration,
    /// What must never be, in words.
    pub violations: Vec<String>,
}

impl Workload {
    /// Starts all kinds, each with clients at all addresses.
    pub fn start(addrs: Vec<String>, seed: u64) -> Self {
        let world = World {
            addrs: addrs.into(),
            begun: Instant::now(),
            stop: Arc::default(),
            seed,
            tally: Arc::default(),
        };
        let verdicts = vec![
            register::start(&world),
            counter::start(&world),
            list::start(&world),
            set::start(&world),
            expiry::start(&world),
            queue::start(&world),
            transfer::start(&world),
            big::start(&world),
            pairs::start(&world),
        ];
        Self {
            world,
            standstill: Standstill::watch(),
            verdicts,
        }
    }

    /// Requests answered so far.
    pub fn answered(&self) -> u64 {
        self.world.tally().answered
    }

    /// Waits until so many more requests have been answered.
    pub async fn advance(&self, more: u64) {
        let goal = self.answered() + more;
        crate::eventually(|| async {
            match self.answered() {
                now if now >= goal => Ok(()),
                now => Err(format!("{now} of {goal} answered; {:?}", self.errors())),
            }
        })
        .await;
    }

    /// The errors so far, by their codes.
    pub fn errors(&self) -> BTreeMap<String, u64> {
        self.world.tally().errors
    }

    /// Stops all clients and checks what they saw. What they talk to must be well again.
    pub async fn stop(self) -> Report {
        self.world.stop.store(true, Relaxed);
        let Tally {
            answered,
            errors,
            slowest,
        } = self.world.tally();
        let mut violations = Vec::new();
        for verdict in self.verdicts {
            violations.extend(verdict.await);
        }
        Report {
            answered,
            errors,
            slowest,
            standstill: self.standstill.longest(),
            violations,
        }
    }
}

impl World {
    fn tally(&self) -> Tally {
        self.tally.lock().expect("no client panics with it").clone()
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Relaxed)
    }

    /// A client of a kind, with random numbers of its own.
    fn client(&self, kind: &str, number: usize) -> Client {
        let mix = crc32fast::hash(format!("{kind}:{number}").as_bytes());
        Client {
            world: self.clone(),
            number,
            at: number,
            rng: fastrand::Rng::with_seed(self.seed ^ (u64::from(mix) << 20)),
            connection: None,
        }
    }

    /// Starts so many clients of a kind; when they have stopped, all that they have seen is checked.
    fn spawn<S, Run, Check>(
        &self,
        kind: &'static str,
        count: usize,
        run: impl Fn(Client) -> Run,
        check: impl FnOnce(Vec<S>, Client) -> Check + Send + 'static,
    ) -> Verdict
    where
        S: Send + 'static,
        Run: Future<Output = S> + Send + 'static,
        Check: Future<Output = Vec<String>> + Send,
    {
        let clients = (0..count).map(|n| tokio::spawn(run(self.client(kind, n))));
        let clients: Vec<_> = clients.collect();
        let checker = self.client(kind, count);
        Box::pin(async move {
            let mut seen = Vec::new();
            for client in clients {
                seen.push(client.await.expect("a client does not panic"));
            }
            let mut violations = check(seen, checker).await;
            let more = violations.len().saturating_sub(SHOWN);
            violations.truncate(SHOWN);
            if more > 0 {
                violations.push(format!("and {more} more"));
            }
            let named = |violation| format!("{kind}: {violation}");
            violations.into_iter().map(named).collect()
        })
    }
}

/// A request that was not answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lost {
    /// It was certainly not executed.
    NotExecuted,
    /// It may have been executed, or may yet be.
    Unknown,
}

/// A client, with a connection of its own to one of the proxies; to the next, if it ends.
struct Client {
    world: World,
    number: usize,
    at: usize,
    rng: fastrand::Rng,
    connection: Option<MultiplexedConnection>,
}

impl Client {
    /// Whether to go on, after a pause of a random length.
    async fn goes_on(&mut self) -> bool {
        sleep(Duration::from_micros(self.rng.u64(500..6000))).await;
        self.world.goes_on()
    }

    /// How long the workload has run.
    fn now(&self) -> Duration {
        self.world.begun.elapsed()
    }

    /// Sends a request, whose reply has a certain form.
    async fn ask<T: FromRedisValue>(&mut self, request: &Cmd) -> Result<T, Lost> {
        let since = Instant::now();
        let asked = self.try_ask(request, since).await;
        let blocks = request.args_iter().next().is_some_and(
            |name| matches!(name, redis::Arg::Simple(name) if name.starts_with(b"BL")),
        );
        let mut tally = self.world.tally.lock().expect("no client panics with it");
        let error = match asked {
            Ok(answer) => {
                tally.answered += 1;
                if !blocks {
                    tally.slowest = tally.slowest.max(since.elapsed());
                }
                return Ok(answer);
            }
            Err(error) => error,
        };
        let (code, lost) = judge(&error);
        *tally.errors.entry(code).or_default() += 1;
        drop(tally);
        if lost == Lost::Unknown {
            self.connection = None;
            self.at += 1;
        }
        Err(lost)
    }

    async fn try_ask<T: FromRedisValue>(
        &mut self,
        request: &Cmd,
        since: Instant,
    ) -> Result<T, RedisError> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let connected = self.connect(since).await?;
                self.connection.insert(connected)
            }
        };
        request.query_async(connection).await
    }

    /// To one that takes connections: the others are being killed and started.
    async fn connect(&mut self, since: Instant) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(Some(SOON))
            .set_connection_timeout(Some(Duration::from_secs(1)));
        loop {
            let addr = &self.world.addrs[self.at % self.world.addrs.len()];
            let client = redis::Client::open(format!("redis://{addr}/"))?;
            match client
                .get_multiplexed_async_connection_with_config(&config)
                .await
            {
                Ok(connection) => return Ok(connection),
                Err(e) if since.elapsed() > SOON => return Err(e),
                Err(_) => {
                    self.at += 1;
                    sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    /// Asks until it is answered: for what is read at the end.
    async fn insist<T: FromRedisValue>(&mut self, request: &Cmd) -> T {
        let since = Instant::now();
        loop {
            match self.ask(request).await {
                Ok(answer) => return answer,
                Err(Lost::NotExecuted | Lost::Unknown) => {
                    assert!(since.elapsed() < SOON, "it is not well again");
                    sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}

/// What an error says: its code, and what became of the request. Only what says so was not executed.
fn judge(error: &RedisError) -> (String, Lost) {
    let code = error.code().unwrap_or("lost").to_owned();
    let lost = match code.as_str() {
        "NOSCRIPT" | "TRYAGAIN" | "CLUSTERDOWN" | "EXECABORT" | "LOADING" | "MASTERDOWN"
        | "OOM" | "BUSY" | "READONLY" | "MISCONF" | "NOREPLICAS" => Lost::NotExecuted,
        _ => Lost::Unknown,
    };
    (code, lost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_says_so_was_not_executed() {
        for (reply, code, lost) in [
            ("-TRYAGAIN held\r\n", "TRYAGAIN", Lost::NotExecuted),
            ("-UNKNOWNOUTCOME lost\r\n", "UNKNOWNOUTCOME", Lost::Unknown),
            ("-ERR what\r\n", "ERR", Lost::Unknown),
        ] {
            let value = redis::parse_redis_value(reply.as_bytes()).unwrap();
            let error = value.extract_error().unwrap_err();
            assert_eq!(judge(&error), (code.to_owned(), lost));
        }
    }
}
