//! A controller's files as they were written, and what is made of them when they are cut short or have bits
//! flipped: they are taken as a whole, or refused as damaged, and never anything in between.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use controlplane::{
    change,
    disk::{Disk, OpenError},
    embedded,
    metrics::Metrics,
    model::{Group, Role, Server},
    snapshot::Snapshot,
};
use proto::GroupId;
use tempfile::TempDir;

/// The cluster of which they are.
const CLUSTER: &str = "test";

/// How far apart files are cut.
const BLOCK: u64 = 4096;

/// See the module.
pub struct Sample {
    files: TempDir,
    snapshot: Arc<Snapshot>,
}

impl Sample {
    /// The copy that a controller keeps, after so many changes.
    pub async fn mirror(changes: u16) -> Self {
        let (store, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folder = store.path().to_owned();
        let opened = embedded::open(folder, CLUSTER.to_owned(), Metrics::new()).await;
        let (store, writer) = opened.unwrap();
        let (mirror, _) = Disk::open(files.path(), CLUSTER).unwrap();
        for number in 0..changes {
            let group = group(number);
            let create = move |now: &Snapshot| change::create_group(now, &group);
            let snapshot = store.commit(create).await.unwrap();
            mirror.copy(&snapshot).unwrap();
        }
        let snapshot = store.snapshot();
        writer.close().await.unwrap();
        Self { files, snapshot }
    }

    /// Cuts each file at each 4 KiB, in a copy of its own. Returns how many were refused, and how many taken.
    pub fn cut(&self) -> (usize, usize) {
        let mut cuts = Vec::new();
        for file in files(self.files.path()) {
            let length = fs::metadata(&file).unwrap().len();
            let place = file.strip_prefix(self.files.path()).unwrap().to_owned();
            let at = (0..length.div_ceil(BLOCK)).map(|block| block * BLOCK);
            cuts.extend(at.map(|at| (place.clone(), at)));
        }
        self.spoil(cuts, |copy, (place, at)| {
            let file = fs::File::options().write(true).open(copy.join(place));
            file.unwrap().set_len(*at).unwrap();
        })
    }

    /// Flips one bit somewhere, so many times, each in a copy of its own.
    pub fn flip(&self, seed: u64, times: usize) -> (usize, usize) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let files = files(self.files.path());
        let flips = (0..times).map(|_| {
            let file = &files[rng.usize(..files.len())];
            let length = fs::metadata(file).unwrap().len();
            let place = file.strip_prefix(self.files.path()).unwrap().to_owned();
            (place, rng.u64(..length.max(1)), rng.u8(..8))
        });
        let flips: Vec<_> = flips.collect();
        self.spoil(flips, |copy, (place, at, bit)| {
            let file = copy.join(place);
            let mut bytes = fs::read(&file).unwrap();
            if let Some(byte) = bytes.get_mut(usize::try_from(*at).unwrap()) {
                *byte ^= 1 << bit;
            }
            fs::write(file, bytes).unwrap();
        })
    }

    fn spoil<S: std::fmt::Debug>(&self, all: Vec<S>, spoil: impl Fn(&Path, &S)) -> (usize, usize) {
        let (mut refused, mut taken) = (0, 0);
        for what in all {
            let copy = tempfile::tempdir().unwrap();
            duplicate(self.files.path(), copy.path());
            spoil(copy.path(), &what);
            match Disk::open(copy.path(), CLUSTER) {
                Ok((_disk, loaded)) => {
                    assert_eq!(loaded.snapshot, *self.snapshot, "{what:?}");
                    taken += 1;
                }
                Err(OpenError::Damaged { .. }) => refused += 1,
                Err(e) => panic!("{what:?}: {e}"),
            }
        }
        (refused, taken)
    }
}

fn group(number: u16) -> Group {
    let server = Server {
        address: format!("127.0.0.1:{}", 7000 + number).parse().unwrap(),
        role: Role::Primary,
        zone: String::new(),
        run_id: format!("{number:040}"),
    };
    let id = GroupId::new(format!("g{number}")).unwrap();
    Group::new(id, "x".repeat(200), vec![server])
}

/// All files of a folder and of those in it.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        match entry.path().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found.sort();
    found
}

fn duplicate(from: &Path, to: &Path) {
    for file in files(from) {
        let to = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
}
