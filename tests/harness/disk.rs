//! A small file system, to be filled.

use std::{
    env, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

/// See the module. It is gone with the value.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts an empty one of this size (`4m`) over a folder. `None`, and said: this process may not mount. Where
    /// the variable `NO_SKIP` is set it must.
    pub fn mount(at: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let options = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at);
        match mount.output() {
            Ok(output) if output.status.success() => Some(Self(at.to_owned())),
            other if env::var_os("NO_SKIP").is_some() => {
                panic!(
                    "no small disk can be mounted, and with NO_SKIP nothing is left out: {other:?}"
                )
            }
            other => {
                // Not `eprintln`, which is not seen when a test passes.
                let text = format!("SKIPPED: no small disk can be mounted: {other:?}\n");
                io::stderr().write_all(text.as_bytes()).unwrap();
                None
            }
        }
    }

    /// Leaves no room.
    pub fn fill(&self) {
        let mut file = fs::File::create(self.filler()).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    /// Undoes that.
    pub fn make_room(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whoever uses it may be still on the way out.
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}
