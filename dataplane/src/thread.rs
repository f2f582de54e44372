//! How the kernel is asked to run a data thread. Nothing here is needed for the proxy to work: what the
//! system refuses is logged, and done without.
#![allow(unsafe_code)]

use std::io;

use rustix::thread::{CpuSet, sched_setaffinity};

/// Has the calling thread not preempt whoever wakes it (`SCHED_BATCH`). On a busy machine more requests
/// then come with each turn, and each costs less; on a machine with cores to spare nothing changes.
pub(crate) fn prefer_batches() {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 is the calling thread, and the call only reads `param`.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const param) } != 0 {
        let error = io::Error::last_os_error();
        tracing::debug!(%error, "the thread is not scheduled in batches");
    }
}

/// Has the calling thread run on one CPU only.
pub(crate) fn pin(cpu: usize) {
    let mut cpus = CpuSet::new();
    if cpu < CpuSet::MAX_CPU {
        cpus.set(cpu);
    }
    if let Err(error) = sched_setaffinity(None, &cpus) {
        tracing::warn!(cpu, %error, "the worker is not pinned");
    }
}
