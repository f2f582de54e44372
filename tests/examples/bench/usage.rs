//! What a process and the machine have used, as the kernel counts it.

use std::{fs, path::PathBuf};

/// A process whose use is read; it must be running.
#[derive(Clone, Copy)]
pub(crate) struct Usage {
    pid: u32,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Self {
        Self { pid }
    }

    /// CPU time of all its threads so far, in nanoseconds. (`/proc/PID/stat` counts in ticks of 10 ms.)
    pub(crate) fn cpu_ns(self) -> u64 {
        fs::read_dir(self.path("task"))
            .unwrap()
            .flatten()
            .filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok())
            .filter_map(|text| text.split(' ').next()?.parse::<u64>().ok())
            .sum()
    }

    /// MiB of memory it has now.
    pub(crate) fn rss_mib(self) -> f64 {
        self.status_kib("VmRSS:") as f64 / 1024.0
    }

    /// MiB of memory it had at most since [`Self::forget_peak`]. The kernel notes it whenever it grows, so
    /// that nothing is sampled and no peak is missed.
    pub(crate) fn peak_rss_mib(self) -> f64 {
        self.status_kib("VmHWM:") as f64 / 1024.0
    }

    /// Lets the peak begin at what it has now.
    pub(crate) fn forget_peak(self) {
        fs::write(self.path("clear_refs"), "5").unwrap();
    }

    fn status_kib(self, field: &str) -> u64 {
        let status = fs::read_to_string(self.path("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with(field));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
            .unwrap()
    }

    fn path(self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{file}", self.pid))
    }
}

/// The machine's CPU time at one moment, in ticks since it started.
pub(crate) struct Clock {
    idle: u64,
    stolen: u64,
    all: u64,
}

impl Clock {
    pub(crate) fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap();
        let line = stat.lines().next().unwrap();
        // cpu  user nice system idle iowait irq softirq steal (what guests used is in user already)
        let ticks: Vec<u64> = line.split(' ').filter_map(|n| n.parse().ok()).collect();
        Self {
            idle: ticks[3] + ticks[4],
            stolen: ticks[7],
            all: ticks.iter().take(8).sum(),
        }
    }

    /// The share of the CPU time since then that the host gave to others.
    pub(crate) fn steal(&self) -> f64 {
        let now = Self::now();
        (now.stolen - self.stolen) as f64 / (now.all - self.all).max(1) as f64
    }

    /// The share of it that was used.
    pub(crate) fn busy(&self) -> f64 {
        let now = Self::now();
        1.0 - (now.idle - self.idle) as f64 / (now.all - self.all).max(1) as f64
    }
}
