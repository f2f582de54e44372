//! Keeps the processors from sleeping.
//!
//! In a virtual machine a processor with nothing to do is given to somebody else, and comes back when its host
//! finds the time: on a busy host that took milliseconds, so that clients were mostly answered sooner while keys
//! were copied than before, when the processors slept more. A kernel that is told that waking up
//! may take no time polls instead.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
};

/// What the kernel is told by: how many microseconds waking up may take, as long as the file is open.
const FILE: &str = "/dev/cpu_dma_latency";

/// Who puts them to sleep. Without one, what the kernel is told changes nothing.
const DRIVER: &str = "/sys/devices/system/cpu/cpuidle/current_driver";

/// As long as it is there, they do not sleep.
pub(super) struct Awake {
    _file: File,
}

impl Awake {
    /// Fails if the kernel has no such thing, or nobody but root may ask for it.
    pub(super) fn keep() -> io::Result<Self> {
        let driver = fs::read_to_string(DRIVER)?;
        if driver.trim() == "none" {
            return Err(io::Error::other("nothing tells how they sleep"));
        }
        let mut file = OpenOptions::new().write(true).open(FILE)?;
        file.write_all(&0_i32.to_ne_bytes())?;
        Ok(Self { _file: file })
    }
}
