//! The copy of the cluster that a controller keeps beside ZooKeeper, in files of its own.
//!
//! It is there so that a controller starts, answers and serves proxies while ZooKeeper is away. It is
//! disposable: on any doubt it is moved aside and made again, also while the controller runs (its folder was
//! removed, its disk fails). While it cannot be made, there is none, and it is tried again. Nothing is decided
//! by it.
//!
//! A thread of its own writes it, for a disk may be slow, or hang for good. Whoever has something kept waits
//! until that is done, so that mostly the copy has what was acknowledged; but no longer than [`PATIENCE`] after
//! it fell behind: then the controller goes on without it.

use std::{
    fs, io, mem,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    time::{Instant, timeout, timeout_at},
};
use tracing::{debug, error, info, warn};

use crate::{
    disk::{Disk, OpenError},
    metrics::Metrics,
    snapshot::Snapshot,
};

/// The folder, below that of the controller.
const FOLDER: &str = "mirror";
/// Where a damaged one goes; the one that was there before is removed.
const ASIDE: &str = "mirror.damaged";

/// How long it may take to bring the copy up to date, before nobody waits for it.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long it may take to open it, before the controller starts without one.
const OPENING: Duration = Duration::from_secs(10);

/// See the module.
pub(crate) struct Mirror {
    wanted: watch::Sender<Wanted>,
    /// The turn up to which all was done, or tried.
    reached: watch::Receiver<u64>,
    /// Since when it is behind, if it is.
    since: Instant,
    /// It was said that it hangs.
    hangs: bool,
}

/// What the thread is to do.
#[derive(Clone, Default)]
struct Wanted {
    /// One more each time that something is wanted.
    turn: u64,
    /// What it is to be a copy of. `None`: nothing yet.
    snapshot: Option<Arc<Snapshot>>,
}

impl Mirror {
    /// Opens it, or makes an empty one; returns what it has, if that is of use. Where the disk fails there is
    /// none for the time being. Fails if another process has it.
    pub(crate) async fn open(
        dir: PathBuf,
        cluster: String,
        metrics: Metrics,
    ) -> Result<(Self, Option<Arc<Snapshot>>), OpenError> {
        let (wanted, wishes) = watch::channel(Wanted::default());
        let (done, reached) = watch::channel(0);
        let (opened, opening) = oneshot::channel();
        let mut scribe = Scribe {
            dir,
            cluster,
            disk: None,
            copied: None,
            is_well: true,
            metrics,
        };
        let runtime = Handle::current();
        thread::Builder::new()
            .name("mirror".to_owned())
            .spawn(move || {
                let begun = scribe.begin();
                let is_ours = begun.is_ok();
                drop(opened.send(begun)); // an error: it took too long, and nobody waits for it
                if is_ours {
                    scribe.run(&runtime, wishes, &done);
                }
            })
            .expect("the process may start threads");
        let kept = match timeout(OPENING, opening).await {
            Ok(begun) => begun.expect("the thread answers before it ends")?,
            Err(_) => {
                error!("mirror is not open after {OPENING:?}; going on without one");
                None
            }
        };
        wanted.send_modify(|wanted| wanted.snapshot.clone_from(&kept));
        let mirror = Self {
            wanted,
            reached,
            since: Instant::now(),
            hangs: false,
        };
        Ok((mirror, kept))
    }

    /// Has it made a copy of this. Returns once it is, durably; or cannot be now; or takes too long.
    pub(crate) async fn keep(&mut self, snapshot: &Arc<Snapshot>) {
        let turn = self.ask(|wanted| wanted.snapshot = Some(Arc::clone(snapshot)));
        let done = self.reached.wait_for(|reached| *reached >= turn);
        match timeout_at(self.since + PATIENCE, done).await {
            Ok(_) => self.hangs = false,
            Err(_) => {
                if !mem::replace(&mut self.hangs, true) {
                    warn!("mirror takes longer than {PATIENCE:?}; nobody waits for it any more");
                }
            }
        }
    }

    /// Has it compared with what it is to be a copy of, and mended. Does not wait for that.
    pub(crate) fn check(&mut self) {
        self.ask(|_| {});
    }

    /// Lets it end what it was asked for, if that does not take too long.
    pub(crate) async fn close(self) {
        let Self {
            wanted,
            mut reached,
            ..
        } = self;
        drop(wanted);
        let ended = async { while reached.changed().await.is_ok() {} };
        if timeout(PATIENCE, ended).await.is_err() {
            warn!("mirror was not closed within {PATIENCE:?}");
        }
    }

    fn ask(&mut self, wish: impl FnOnce(&mut Wanted)) -> u64 {
        let before = self.wanted.borrow().turn;
        if *self.reached.borrow() == before {
            self.since = Instant::now();
        }
        self.wanted.send_modify(|wanted| {
            wanted.turn += 1;
            wish(wanted);
        });
        before + 1
    }
}

/// Who writes it, on a thread of its own. All here blocks.
struct Scribe {
    dir: PathBuf,
    cluster: String,
    /// `None`: it cannot be opened.
    disk: Option<Disk>,
    /// What it was made a copy of last.
    copied: Option<Arc<Snapshot>>,
    /// The last attempt worked. That one does not is said once.
    is_well: bool,
    metrics: Metrics,
}

impl Scribe {
    fn begin(&mut self) -> Result<Option<Arc<Snapshot>>, OpenError> {
        match self.open() {
            Ok((disk, kept)) => {
                self.disk = Some(disk);
                self.copied = kept.map(Arc::new);
                Ok(self.copied.clone())
            }
            Err(e @ OpenError::Locked { .. }) => Err(e),
            Err(
                e @ (OpenError::Io { .. }
                | OpenError::Damaged { .. }
                | OpenError::OtherCluster { .. }
                | OpenError::OtherFormat { .. }),
            ) => {
                self.note(Err(e.to_string()));
                Ok(None)
            }
        }
    }

    /// Until nobody wants anything any more.
    fn run(
        mut self,
        runtime: &Handle,
        mut wishes: watch::Receiver<Wanted>,
        done: &watch::Sender<u64>,
    ) {
        while runtime.block_on(wishes.changed()).is_ok() {
            let Wanted { turn, snapshot } = wishes.borrow_and_update().clone();
            if let Some(snapshot) = snapshot {
                let copied = self.copy(&snapshot);
                self.note(copied);
            }
            done.send_replace(turn);
        }
    }

    fn note(&mut self, copied: Result<(), String>) {
        let was_well = mem::replace(&mut self.is_well, copied.is_ok());
        match (was_well, copied) {
            (true, Ok(())) => {}
            (false, Ok(())) => info!("mirror is kept again"),
            (true, Err(why)) => error!(why, "mirror cannot be written; going on without one"),
            (false, Err(why)) => debug!(why, "mirror cannot be written yet"),
        }
        if !self.is_well {
            self.metrics.mirror_failed();
        }
    }

    /// Makes it a copy of this, durably; makes it again, if it cannot be written or is not what it was. An
    /// error: there is none now.
    fn copy(&mut self, snapshot: &Arc<Snapshot>) -> Result<(), String> {
        let disk = match self.disk.take() {
            Some(disk) => disk,
            None => self.open().map_err(|e| e.to_string())?.0,
        };
        let last = self.copied.take();
        let is_check = last.is_some_and(|last| Arc::ptr_eq(&last, snapshot));
        let written = match is_check {
            true if disk.is_copy_of(snapshot) => Ok(()),
            true => Err("it is not as it was written".to_owned()),
            false => write(&disk, snapshot),
        };
        let disk = match written {
            Ok(()) => disk,
            Err(why) => {
                drop(disk); // its files are let go of before they are moved
                let fresh = self.anew(&why).map_err(|e| e.to_string())?;
                write(&fresh, snapshot)?;
                self.metrics.mirror_rebuilt();
                fresh
            }
        };
        self.disk = Some(disk);
        self.copied = Some(Arc::clone(snapshot));
        Ok(())
    }

    /// Opens what is there; makes it anew, if that is of no use.
    fn open(&mut self) -> Result<(Disk, Option<Snapshot>), OpenError> {
        match Disk::open(&self.dir.join(FOLDER), &self.cluster) {
            Ok((disk, loaded)) => {
                let snapshot = loaded.snapshot;
                let kept = (snapshot.head.revision > 0).then_some(snapshot);
                Ok((disk, kept))
            }
            Err(
                e @ (OpenError::Damaged { .. }
                | OpenError::OtherCluster { .. }
                | OpenError::OtherFormat { .. }),
            ) => {
                let disk = self.anew(&e.to_string())?;
                self.metrics.mirror_rebuilt();
                Ok((disk, None))
            }
            Err(e @ (OpenError::Locked { .. } | OpenError::Io { .. })) => Err(e),
        }
    }

    /// Moves what is there aside, and begins with nothing.
    fn anew(&self, why: &str) -> Result<Disk, OpenError> {
        let (folder, aside) = (self.dir.join(FOLDER), self.dir.join(ASIDE));
        match self.is_well {
            true => {
                warn!(why, aside = %aside.display(), "mirror is of no use, made anew");
            }
            false => debug!(why, "mirror is of no use, made anew"),
        }
        move_aside(&folder, &aside).map_err(|e| OpenError::Io {
            dir: folder.clone(),
            fault: e.to_string(),
        })?;
        let (disk, _) = Disk::open(&folder, &self.cluster)?;
        Ok(disk)
    }
}

/// What goes wrong within sled may be a panic.
fn write(disk: &Disk, snapshot: &Snapshot) -> Result<(), String> {
    match panic::catch_unwind(AssertUnwindSafe(|| disk.copy(snapshot))) {
        Ok(written) => written.map_err(|e| e.to_string()),
        Err(_) => Err("sled panicked".to_owned()),
    }
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
