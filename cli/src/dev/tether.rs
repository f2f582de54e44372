//! Ties the life of a child to ours: when this process ends, however it ends, the kernel kills the
//! child. It is what cleans up after a `kill -9`, for which no code of ours can run.
//!
//! The kernel watches the *thread* that started the child. Start children from the main thread.
#![allow(unsafe_code)]

use std::io;

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
use tokio::process::Command;

/// Makes the child of `command` die with us.
pub(super) fn tether(command: &mut Command) {
    let parent = getpid();
    let tie = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have gone before the line above: then no signal will ever come.
        if getppid() == Some(parent) {
            Ok(())
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    };
    // SAFETY: `tie` runs in the child between fork and exec. It makes two system calls and neither
    // allocates nor takes a lock, so it is async-signal-safe, which is all that is asked for there.
    unsafe {
        command.pre_exec(tie);
    }
}
