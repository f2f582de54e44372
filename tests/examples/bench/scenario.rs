//! What is asked of a proxy: `redis-benchmark` with given options, and what it says came of it.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    process::Command,
};

/// How many keys `redis-benchmark` chooses among; all are there before each scenario.
const KEYS: u32 = 100_000;

/// How many keys `mget10` asks for.
pub(crate) const MGET_KEYS: usize = 10;

/// One way of asking.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// What is asked, in the words of `redis-benchmark`: a test with its options, or a command.
    what: &'static str,
    pub(crate) requests: u64,
    pub(crate) clients: u64,
    pub(crate) pipeline: u64,
    /// CPU time per request at most, as a ratio to twemproxy's.
    pub(crate) goal: f64,
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "get_p1",
        what: "-t get",
        requests: 150_000,
        clients: 50,
        pipeline: 1,
        goal: 0.75,
    },
    Scenario {
        name: "get_p16",
        what: "-t get",
        requests: 800_000,
        clients: 50,
        pipeline: 16,
        goal: 0.25,
    },
    Scenario {
        name: "set_p16",
        what: "-t set",
        requests: 800_000,
        clients: 50,
        pipeline: 16,
        goal: 0.25,
    },
    Scenario {
        name: "get_p64",
        what: "-t get",
        requests: 1_000_000,
        clients: 20,
        pipeline: 64,
        goal: 0.09,
    },
    Scenario {
        name: "set1k_p16",
        what: "-d 1024 -t set",
        requests: 400_000,
        clients: 50,
        pipeline: 16,
        goal: 0.23,
    },
    Scenario {
        name: "mget10",
        what: "mget key:__rand_int__ key:__rand_int__ key:__rand_int__ key:__rand_int__ \
               key:__rand_int__ key:__rand_int__ key:__rand_int__ key:__rand_int__ \
               key:__rand_int__ key:__rand_int__",
        requests: 80_000,
        clients: 50,
        pipeline: 1,
        goal: 0.55,
    },
    Scenario {
        name: "c1000_p1",
        what: "-t get",
        requests: 150_000,
        clients: 1000,
        pipeline: 1,
        goal: 0.70,
    },
];

/// What `redis-benchmark` says of a run.
pub(crate) struct Answered {
    pub(crate) requests_per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

impl Scenario {
    /// The arguments of `redis-benchmark`.
    pub(crate) fn args(&self, port: u16, requests: u64) -> Vec<String> {
        let args = format!("-p {port} --csv -n {requests} {}", self.asks());
        args.split_whitespace().map(str::to_owned).collect()
    }

    /// What makes this scenario: its options of `redis-benchmark`.
    pub(crate) fn asks(&self) -> String {
        let (clients, pipeline) = (self.clients, self.pipeline);
        format!("-r {KEYS} -c {clients} -P {pipeline} {}", self.what)
    }

    /// Asks so many requests; an error of `redis-benchmark` or of what it asks is returned.
    pub(crate) fn drive(&self, port: u16, requests: u64) -> Result<Answered, String> {
        let output = Command::new("redis-benchmark")
            .args(self.args(port, requests))
            .output()
            .map_err(|e| format!("redis-benchmark: {e}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{} {}", errors.trim(), text.trim()));
        }
        parse(&text).ok_or_else(|| format!("redis-benchmark said: {text}"))
    }
}

/// "test","rps","avg_latency_ms","min_…","p50_…","p95_…","p99_…","max_…", a line for each test.
fn parse(csv: &str) -> Option<Answered> {
    let line = csv.lines().rfind(|line| line.starts_with('"'))?;
    let fields: Vec<&str> = line
        .rsplit(',')
        .map(|field| field.trim_matches('"'))
        .collect();
    let number = |from_the_end: usize| fields.get(from_the_end)?.parse().ok();
    Some(Answered {
        requests_per_second: number(6)?,
        p50_ms: number(3)?,
        p99_ms: number(1)?,
    })
}

/// Gives a server every key that will be asked for, with a value of 3 bytes: whichever servers a proxy
/// thinks are right, and whatever an earlier scenario has left there, all proxies find the same.
pub(crate) fn preload(port: u16) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut replies = BufReader::new(stream.try_clone().unwrap()).lines();
    for first in (0..KEYS).step_by(1000) {
        let requests = (first..first + 1000).map(|key| {
            // redis-benchmark's own form of a key
            format!("*3\r\n$3\r\nSET\r\n$16\r\nkey:{key:012}\r\n$3\r\nxxx\r\n")
        });
        let requests: String = requests.collect();
        stream.write_all(requests.as_bytes()).unwrap();
        for _ in 0..1000 {
            assert_eq!(replies.next().unwrap().unwrap(), "+OK");
        }
    }
}
