//! The copy of the cluster that a controller keeps beside ZooKeeper, in files of its own.
//!
//! It is there so that a controller starts, answers and serves proxies while ZooKeeper is away. It is
//! disposable: on any doubt it is moved aside and made again, also while the controller runs (its folder was
//! removed, its disk fails). While it cannot be made, there is none. Nothing is decided by it.

use std::{
    fs, io,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use tracing::warn;

use crate::{
    disk::{Disk, OpenError},
    snapshot::Snapshot,
};

/// The folder, below that of the controller.
const FOLDER: &str = "mirror";
/// Where a damaged one goes; the one that was there before is removed.
const ASIDE: &str = "mirror.damaged";

/// See the module.
pub(crate) struct Mirror {
    dir: PathBuf,
    cluster: String,
    /// `None`: it could not be made.
    disk: Mutex<Option<Disk>>,
}

/// What a mirror had when it was opened.
pub(crate) struct Kept {
    /// `None`: nothing yet, or nothing of use.
    pub(crate) snapshot: Option<Snapshot>,
    /// It was moved aside.
    pub(crate) was_damaged: bool,
}

/// What it took to bring a mirror up to date.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Copied {
    /// Nothing but writing.
    AsEver,
    /// It was made again.
    Anew,
}

impl Mirror {
    /// Opens it, or makes an empty one. Fails if another process has it, or the disk does. Blocks.
    pub(crate) fn open(dir: &Path, cluster: &str) -> Result<(Self, Kept), OpenError> {
        let (disk, kept) = match Disk::open(&dir.join(FOLDER), cluster) {
            Ok((disk, loaded)) => {
                let snapshot = loaded.snapshot;
                let snapshot = (snapshot.head.revision > 0).then_some(snapshot);
                let kept = Kept {
                    snapshot,
                    was_damaged: false,
                };
                (disk, kept)
            }
            Err(
                e @ (OpenError::Damaged { .. }
                | OpenError::OtherCluster { .. }
                | OpenError::OtherFormat { .. }),
            ) => {
                let kept = Kept {
                    snapshot: None,
                    was_damaged: true,
                };
                (anew(dir, cluster, &e.to_string())?, kept)
            }
            Err(e @ (OpenError::Locked { .. } | OpenError::Io { .. })) => return Err(e),
        };
        let mirror = Self {
            dir: dir.to_owned(),
            cluster: cluster.to_owned(),
            disk: Mutex::new(Some(disk)),
        };
        Ok((mirror, kept))
    }

    /// Makes it a copy of this, durably; makes it again, if it cannot be written. An error: there is none now,
    /// for this reason. Blocks.
    pub(crate) fn copy(&self, snapshot: &Arc<Snapshot>) -> Result<Copied, String> {
        let mut disk = self.disk.lock().expect("nothing panics while it is held");
        let why = match disk.as_ref().map(|disk| write(disk, snapshot)) {
            Some(Ok(())) => return Ok(Copied::AsEver),
            Some(Err(why)) => why,
            None => "there was none".to_owned(),
        };
        *disk = None; // its files are let go of before they are moved
        let fresh = anew(&self.dir, &self.cluster, &why).map_err(|e| e.to_string())?;
        write(&fresh, snapshot)?;
        *disk = Some(fresh);
        Ok(Copied::Anew)
    }
}

/// What goes wrong within sled may be a panic.
fn write(disk: &Disk, snapshot: &Snapshot) -> Result<(), String> {
    match panic::catch_unwind(AssertUnwindSafe(|| disk.copy(snapshot))) {
        Ok(written) => written.map_err(|e| e.to_string()),
        Err(_) => Err("sled panicked".to_owned()),
    }
}

/// Moves what is there aside, and begins with nothing.
fn anew(dir: &Path, cluster: &str, why: &str) -> Result<Disk, OpenError> {
    let (folder, aside) = (dir.join(FOLDER), dir.join(ASIDE));
    warn!(why, aside = %aside.display(), "mirror is of no use, made anew");
    move_aside(&folder, &aside).map_err(|e| OpenError::Io {
        dir: folder.clone(),
        fault: e.to_string(),
    })?;
    let (disk, _) = Disk::open(&folder, cluster)?;
    Ok(disk)
}

fn move_aside(folder: &Path, aside: &Path) -> io::Result<()> {
    match fs::remove_dir_all(aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    match fs::rename(folder, aside) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()), // somebody has removed it
        moved => moved,
    }
}
