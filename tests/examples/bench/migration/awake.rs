//! Keeps the processors from sleeping.
//!
//! In a virtual machine a processor with nothing to do is given to somebody else, and comes back when its host
//! finds the time: on a busy host that took milliseconds, so that clients were mostly answered sooner while keys
//! were copied than before, when the processors slept more. So one program for each processor does nothing, and does
//! that only while nobody else wants to do anything: at the lowest priority the kernel has, it gives way at once.

use std::thread;

use tempfile::TempDir;
use tests::process::Process;

/// The programs: they end with this one, however it ends.
pub(super) struct Awake {
    _programs: Vec<Process>,
    _logs: TempDir,
}

impl Awake {
    pub(super) fn keep() -> Self {
        let logs = TempDir::new().unwrap();
        let parent = std::process::id();
        let nothing = format!(
            "while [ -d /proc/{parent} ]; do i=0; while [ $i -lt 9999 ]; do i=$((i+1)); done; done"
        );
        // `nice`, too: by that the kernel counts apart what it runs.
        let words = ["-i", "0", "nice", "-n", "19", "sh", "-c", &nothing];
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let programs = (0..processors).map(|number| {
            let name = format!("awake-{number}");
            Process::start(logs.path(), &name, "chrt", words, &[])
        });
        Self {
            _programs: programs.collect(),
            _logs: logs,
        }
    }
}
