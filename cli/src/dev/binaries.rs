//! Where the programs are that a cluster is made of.

use std::{
    env,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::error::Error;

/// The programs.
#[derive(Debug)]
pub(super) struct Binaries {
    pub controller: PathBuf,
    pub proxy: PathBuf,
    /// `redis-server`, or `valkey-server` if there is none.
    pub redis: PathBuf,
}

impl Binaries {
    /// Looks beside this executable first, where a build puts them all, then in PATH.
    pub(super) fn find() -> Result<Self, Error> {
        let mut folders: Vec<PathBuf> = Vec::new();
        if let Ok(executable) = env::current_exe() {
            folders.extend(executable.parent().map(Path::to_owned));
        }
        if let Some(path) = env::var_os("PATH") {
            folders.extend(env::split_paths(&path));
        }
        Self::find_in(&folders)
    }

    fn find_in(folders: &[PathBuf]) -> Result<Self, Error> {
        let ours = |name: &str| {
            find(folders, name).ok_or_else(|| {
                Error::failed(format!(
                    "{name} is neither beside this `sluice` nor in PATH"
                ))
                .hint("`make build` builds it")
            })
        };
        Ok(Self {
            controller: ours("sluice-controller")?,
            proxy: ours("sluice-proxy")?,
            redis: find(folders, "redis-server")
                .or_else(|| find(folders, "valkey-server"))
                .ok_or_else(|| {
                    Error::failed("there is neither redis-server nor valkey-server in PATH")
                        .hint("`apt-get install redis-server` installs it")
                })?,
        })
    }
}

fn find(folders: &[PathBuf], name: &str) -> Option<PathBuf> {
    folders
        .iter()
        .map(|folder| folder.join(name))
        .find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let folders = [folder.path().to_owned()];
        let put = |name: &str| {
            let path = folder.path().join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let check_missing = |name: &str, advice: &str| {
            let Err(Error::Failed { error, hints }) = Binaries::find_in(&folders) else {
                panic!("{name} is missing");
            };
            assert!(error.to_string().contains(name), "{error}");
            assert!(hints[0].contains(advice), "{hints:?}");
        };
        check_missing("sluice-controller", "make build");
        put("sluice-controller");
        fs::write(folder.path().join("sluice-proxy"), "not executable").unwrap();
        check_missing("sluice-proxy", "make build");
        put("sluice-proxy");
        check_missing("redis-server", "apt-get install redis-server");
        let valkey = put("valkey-server");
        assert_eq!(Binaries::find_in(&folders).unwrap().redis, valkey);
        let redis = put("redis-server");
        assert_eq!(Binaries::find_in(&folders).unwrap().redis, redis);
    }
}
