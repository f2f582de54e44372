//! The copy of the cluster that a controller keeps beside ZooKeeper, in files of its own.
//!
//! It is there so that a controller starts, answers and serves proxies while ZooKeeper is away. It is
//! disposable: on any doubt it is moved aside and made again. Nothing is decided by it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing::warn;

use crate::{
    disk::{Disk, OpenError, WriteError},
    snapshot::Snapshot,
};

/// The folder, below that of the controller.
const FOLDER: &str = "mirror";
/// Where a damaged one goes; the one that was there before is removed.
const ASIDE: &str = "mirror.damaged";

/// See the module.
pub(crate) struct Mirror {
    disk: Disk,
}

/// What a mirror had when it was opened.
pub(crate) struct Kept {
    /// `None`: nothing yet, or nothing of use.
    pub(crate) snapshot: Option<Snapshot>,
    /// It was moved aside.
    pub(crate) was_damaged: bool,
}

impl Mirror {
    /// Opens it, or makes an empty one. Fails if another process has it, or the disk does. Blocks.
    pub(crate) fn open(dir: &Path, cluster: &str) -> Result<(Self, Kept), OpenError> {
        let folder = dir.join(FOLDER);
        match Disk::open(&folder, cluster) {
            Ok((disk, loaded)) => {
                let snapshot = loaded.snapshot;
                let snapshot = (snapshot.head.revision > 0).then_some(snapshot);
                let kept = Kept {
                    snapshot,
                    was_damaged: false,
                };
                Ok((Self { disk }, kept))
            }
            Err(
                e @ (OpenError::Damaged { .. }
                | OpenError::OtherCluster { .. }
                | OpenError::OtherFormat { .. }),
            ) => {
                let aside = dir.join(ASIDE);
                warn!(error = %e, aside = %aside.display(), "mirror is of no use, made anew");
                move_aside(&folder, &aside).map_err(|e| OpenError::Io {
                    dir: folder.clone(),
                    fault: e.to_string(),
                })?;
                let (disk, _) = Disk::open(&folder, cluster)?;
                let kept = Kept {
                    snapshot: None,
                    was_damaged: true,
                };
                Ok((Self { disk }, kept))
            }
            Err(e @ (OpenError::Locked { .. } | OpenError::Io { .. })) => Err(e),
        }
    }

    /// Makes it a copy of this, durably. Blocks.
    pub(crate) fn copy(&self, snapshot: &Arc<Snapshot>) -> Result<(), WriteError> {
        self.disk.copy(snapshot)
    }
}

fn move_aside(folder: &PathBuf, aside: &PathBuf) -> io::Result<()> {
    match fs::remove_dir_all(aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fs::rename(folder, aside)
}
