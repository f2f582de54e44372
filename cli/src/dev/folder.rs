//! The folder of a development cluster: a folder for each process, and their logs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use tempfile::TempDir;

use crate::error::Error;

/// Where the cluster keeps its data and logs.
pub(crate) struct Folder {
    path: PathBuf,
    /// Deletes the folder when dropped. `None`: the user's own, which stays.
    temporary: Option<TempDir>,
}

impl Folder {
    /// The user's own, or a temporary one.
    pub(crate) fn open(data_dir: Option<&Path>) -> Result<Self, Error> {
        let (path, temporary) = match data_dir {
            // Absolute: the command lines shown must work from any folder.
            Some(path) => (
                std::path::absolute(path).context("open the data folder")?,
                None,
            ),
            None => {
                let temporary = tempfile::Builder::new()
                    .prefix("sluice-dev-")
                    .tempdir()
                    .context("create a temporary folder")?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        let folder = Self { path, temporary };
        folder.create("logs")?;
        Ok(folder)
    }

    /// A folder within, created if it is not there.
    pub(crate) fn create(&self, name: &str) -> Result<String, Error> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(path.display().to_string())
    }

    /// Leaves it there, though it is a temporary one.
    pub(crate) fn keep(&mut self) {
        if let Some(temporary) = &mut self.temporary {
            temporary.disable_cleanup(true);
        }
    }

    /// Where the processes log to.
    pub(crate) fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// The folder itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_folder_stays_only_if_kept() {
        for keep in [false, true] {
            let mut folder = Folder::open(None).unwrap();
            let path = folder.path().to_owned();
            if keep {
                folder.keep();
            }
            drop(folder);
            assert_eq!(path.exists(), keep);
            if keep {
                fs::remove_dir_all(path).unwrap();
            }
        }
    }
}
