//! How many system calls a proxy makes for a request, in a pass of its own beside the timed rounds.
//!
//! Counted by `perf stat`, in the kernel. `strace -c` stops the process at each call: a proxy is then so
//! slow that more requests wait for it each time it looks, and it makes a quarter fewer calls for each
//! (measured: 2.2 instead of 2.8 at a pipeline of 1, 0.14 instead of 0.20 at 16).

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use crate::scenario::Scenario;

/// Those told apart; of the others only the sum is known.
const NAMES: [&str; 11] = [
    "sendto",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "write",
    "read",
    "writev",
    "readv",
    "epoll_wait",
    "epoll_ctl",
    "futex",
];

/// System calls per request.
pub(crate) struct Syscalls {
    pub(crate) all: f64,
    /// Those of [`NAMES`] that were made, the most frequent first.
    pub(crate) named: Vec<(&'static str, f64)>,
}

/// `None`, and a line that says why: they cannot be counted here.
pub(crate) fn count(dir: &Path, pid: u32, port: u16, scenario: &Scenario) -> Option<Syscalls> {
    // What connecting and disconnecting costs is in both and falls out.
    let few = scenario.clients * scenario.pipeline;
    let many = few + scenario.requests / 2;
    let counted = pass(dir, pid, port, scenario, few)
        .and_then(|few| Ok((few, pass(dir, pid, port, scenario, many)?)));
    let (before, after) = match counted {
        Ok(counts) => counts,
        Err(why) => {
            eprintln!("system calls are not counted: {why}");
            return None;
        }
    };
    let per_request = |event: &str| {
        let of = |counts: &BTreeMap<String, u64>| counts.get(event).copied().unwrap_or(0) as f64;
        ((of(&after) - of(&before)) / (many - few) as f64).max(0.0)
    };
    let mut named: Vec<(&str, f64)> = NAMES.map(|name| (name, per_request(&event(name)))).into();
    named.retain(|(_, calls)| *calls > 0.0005);
    named.sort_by(|a, b| b.1.total_cmp(&a.1));
    Some(Syscalls {
        all: per_request(ALL),
        named,
    })
}

const ALL: &str = "raw_syscalls:sys_enter";

fn event(name: &str) -> String {
    format!("syscalls:sys_enter_{name}")
}

/// The calls of a process, by event, while so many requests are made.
fn pass(
    dir: &Path,
    pid: u32,
    port: u16,
    scenario: &Scenario,
    requests: u64,
) -> Result<BTreeMap<String, u64>, String> {
    let file = dir.join("perf.csv");
    let events = NAMES.map(event).join(",");
    let output = Command::new("perf")
        .args(["stat", "-x,", "-e", ALL, "-e", &events])
        .args(["-p", &pid.to_string(), "-o"])
        .arg(&file)
        .args(["--", "redis-benchmark"])
        .args(scenario.args(port, requests))
        .output()
        .map_err(|e| format!("perf: {e}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    let text = fs::read_to_string(&file).map_err(|e| e.to_string())?;
    // count,unit,event,…
    let counts = text.lines().filter_map(|line| {
        let mut fields = line.split(',');
        let count = fields.next()?.parse().ok()?;
        Some((fields.nth(1)?.to_owned(), count))
    });
    let counts: BTreeMap<String, u64> = counts.collect();
    if counts.contains_key(ALL) {
        Ok(counts)
    } else {
        Err(format!("perf stat counted nothing: {}", text.trim()))
    }
}
