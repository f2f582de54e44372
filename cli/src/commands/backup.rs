//! `sluice export` and `sluice restore`: a backup of what the controller keeps, as a file.
//!
//! The file is the canonical JSON of the API's `Backup`. It is written whole or not at all; whether it
//! is as it was written, the controller finds out before it changes anything.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;
use proto::v1;
use tempfile::NamedTempFile;

use super::{Context, Verb, announce, cluster};
use crate::{
    args::ChangeFlags,
    client::{Admin, request_id},
    error::Error,
    output::{self, plural},
};

/// The examples of `sluice export`.
pub(crate) const EXPORT_HELP: &str = "Examples:\n  \
    sluice export demo.json\n  \
    sluice export | gzip > demo.json.gz\n\n\
    RPC: AdminService.ExportCluster";

/// The examples of `sluice restore`.
pub(crate) const RESTORE_HELP: &str = "Examples:\n  \
    sluice restore demo.json --dry-run                    whether it can be restored\n  \
    sluice --endpoint 10.0.0.2:18080 restore demo.json    into an empty store, of ZooKeeper for instance\n  \
    sluice restore demo.json --replace                    back to an older state of the same cluster\n\n\
    To move a cluster to another store: name the new controller to the proxies, too (--controller); \
    start it on the new store; export; stop the old one; restore into the new one.\n\n\
    RPC: AdminService.RestoreCluster";

/// Where to.
#[derive(Args)]
pub(crate) struct ExportArgs {
    /// The file to write; without it, to stdout
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

/// From where, and how.
#[derive(Args)]
pub(crate) struct RestoreArgs {
    /// A file that `sluice export` has written
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Restore also where there are groups, if they are of the same cluster: they are replaced
    #[arg(long)]
    replace: bool,
    /// Leave the registered proxies out; they register again by themselves
    #[arg(long)]
    without_proxies: bool,
    #[command(flatten)]
    change: ChangeFlags,
}

/// Writes a backup.
pub(crate) async fn export(context: &mut Context, args: ExportArgs) -> Result<(), Error> {
    let request = v1::ExportClusterRequest {};
    let backup = context.client.read(Admin::export_cluster, request).await?;
    let json = serde_json::to_string_pretty(&backup).context("write JSON")?;
    let Some(file) = args.file else {
        return context.output.text(&json);
    };
    write(&file, &json).with_context(|| format!("write {}", file.display()))?;
    output::note(&format!(
        "Exported {} and {} at revision {} to {}",
        plural(backup.groups.len(), "group"),
        match backup.proxies.len() {
            1 => "1 proxy".to_owned(),
            count => format!("{count} proxies"),
        },
        backup.revision,
        file.display()
    ));
    Ok(())
}

fn write(path: &Path, json: &str) -> anyhow::Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = NamedTempFile::new_in(folder)?;
    writeln!(file, "{json}")?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(fs::File::open(folder)?.sync_all()?)
}

/// Restores a backup.
pub(crate) async fn restore(context: &mut Context, args: RestoreArgs) -> Result<(), Error> {
    let backup = read(&args.file)?;
    let what = format!(
        "cluster {} as it was at revision {}",
        backup.cluster_id, backup.revision
    );
    let request = v1::RestoreClusterRequest {
        backup: Some(backup),
        replace: args.replace,
        without_proxies: args.without_proxies,
        validate_only: args.change.validate_only(),
        expected_revision: args.change.expected_revision,
        request_id: request_id(),
    };
    let cluster = context
        .client
        .change(Admin::restore_cluster, request)
        .await?;
    announce(args.change.validate_only(), Verb::Restore, &what);
    context.output.show(&cluster, cluster::table(&cluster))
}

fn read(path: &Path) -> Result<v1::Backup, Error> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| {
        Error::failed(format!(
            "{} is no backup, or is damaged: {e}; nothing was changed",
            path.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.json");
        let backup = v1::Backup {
            revision: 7,
            ..v1::Backup::default()
        };
        for _ in 0..2 {
            write(&path, &serde_json::to_string(&backup).unwrap()).unwrap();
            assert_eq!(read(&path).unwrap(), backup);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::write(&path, "{\"revision\": \"7\"").unwrap();
        let Error::Failed { error, .. } = read(&path).unwrap_err() else {
            panic!("it is damaged");
        };
        assert!(error.to_string().contains("nothing was changed"), "{error}");
    }
}
