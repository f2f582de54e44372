//! What the store has acknowledged, told by a file beside it: `revision` in the data folder, one line
//! `cluster <id> revision <n>`.
//!
//! The store cannot tell that its end is missing; this file can. It is synced after a commit is, and
//! before the commit is answered: the store is never behind it, unless the store lost something. It
//! never decides what that means (`disk.rs`).
//!
//! Invariant: the file is whole or not there. It comes into being by a rename; later the line, always
//! of one cluster and so of one length, and within one sector of a disk, is written over itself.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write},
    path::Path,
};

use proto::ClusterId;

/// The file's name in the data folder.
pub const FILE: &str = "revision";

/// What was acknowledged last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acknowledged {
    /// By the store of this cluster.
    pub cluster: ClusterId,
    /// At this revision.
    pub revision: u64,
}

/// Reads the file. `None`: it is not there.
pub fn read(dir: &Path) -> Result<Option<Acknowledged>, String> {
    let fault = |e: &dyn std::fmt::Display| format!("file `{FILE}` cannot be read: {e}");
    match fs::read_to_string(dir.join(FILE)) {
        Ok(text) => match parse(&text) {
            Some(acknowledged) => Ok(Some(acknowledged)),
            None => Err(fault(&"it must be one line `cluster <id> revision <n>`")),
        },
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(fault(&e)),
    }
}

/// Writes the file and syncs it; once, when the file is new, its folder too. Blocks.
pub fn write(dir: &Path, acknowledged: &Acknowledged) -> io::Result<()> {
    let line = line(acknowledged);
    let written = match OpenOptions::new().write(true).open(dir.join(FILE)) {
        Ok(file) => put(file, &line),
        Err(e) if e.kind() == ErrorKind::NotFound => create(dir, &line),
        Err(e) => Err(e),
    };
    written.map_err(|e| io::Error::new(e.kind(), format!("file `{FILE}`: {e}")))
}

/// Removes the file, if it is not of this cluster.
pub fn keep_only(dir: &Path, cluster: &ClusterId) -> io::Result<()> {
    match read(dir) {
        Ok(None) => Ok(()),
        Ok(Some(acknowledged)) if acknowledged.cluster == *cluster => Ok(()),
        Ok(Some(_)) | Err(_) => {
            fs::remove_file(dir.join(FILE))?;
            File::open(dir)?.sync_all()
        }
    }
}

fn create(dir: &Path, line: &str) -> io::Result<()> {
    let partial = dir.join(format!("{FILE}.partial"));
    put(File::create(&partial)?, line)?;
    fs::rename(partial, dir.join(FILE))?;
    File::open(dir)?.sync_all()
}

fn put(mut file: File, line: &str) -> io::Result<()> {
    file.write_all(line.as_bytes())?;
    file.sync_data()
}

// Padded, so that the line never grows.
fn line(Acknowledged { cluster, revision }: &Acknowledged) -> String {
    format!("cluster {cluster} revision {revision:020}\n")
}

fn parse(text: &str) -> Option<Acknowledged> {
    let (cluster, revision) = text
        .strip_prefix("cluster ")?
        .strip_suffix('\n')?
        .split_once(" revision ")?;
    Some(Acknowledged {
        cluster: ClusterId::new(cluster).ok()?,
        revision: revision.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_last_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()), Ok(None));
        for revision in [1, 9, 10, u64::MAX] {
            let cluster = ClusterId::new("c-1").unwrap();
            let acknowledged = Acknowledged { cluster, revision };
            write(dir.path(), &acknowledged).unwrap();
            assert_eq!(read(dir.path()), Ok(Some(acknowledged)));
        }
        keep_only(dir.path(), &ClusterId::new("c-1").unwrap()).unwrap();
        let files = fs::read_dir(dir.path()).unwrap();
        assert_eq!(files.count(), 1);
        keep_only(dir.path(), &ClusterId::new("c-22").unwrap()).unwrap();
        assert_eq!(read(dir.path()), Ok(None));
    }

    #[test]
    fn a_foreign_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        for text in [
            "",
            "\0\0\0",
            "cluster c1 revision 7",
            "cluster c1 revision x\n",
            "cluster C! revision 7\n",
            "cluster c1 revision 7\ncluster c1 revision 8\n",
        ] {
            fs::write(dir.path().join(FILE), text).unwrap();
            let error = read(dir.path()).unwrap_err();
            assert!(error.contains("file `revision` cannot be read"), "{error}");
        }
    }
}
