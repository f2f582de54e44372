//! The commands, a noun a file. Each turns its flags into a request, and the answer into tables.

pub(crate) mod backup;
pub(crate) mod check;
pub(crate) mod cluster;
pub(crate) mod completions;
pub(crate) mod events;
pub(crate) mod fence;
pub(crate) mod group;
pub(crate) mod import;
pub(crate) mod migration;
pub(crate) mod proxy;
pub(crate) mod rebalance;
pub(crate) mod server;
pub(crate) mod slot;
pub(crate) mod topology;

use crate::{
    args::{Cli, Command},
    client::Client,
    dev,
    error::Error,
    output::{self, Output},
};

/// What a command works with.
pub(crate) struct Context {
    /// The way to the controller.
    pub client: Client,
    /// Where the answer goes.
    pub output: Output,
}

/// Does what the command line says.
pub(crate) async fn run(cli: Cli) -> Result<(), Error> {
    let files = cli.global.tls.files().map_err(|error| Error::Usage {
        message: error.to_string(),
        hint: "SLUICE_TLS_CERT_FILE, SLUICE_TLS_KEY_FILE and SLUICE_TLS_CA_FILE name them, too"
            .to_owned(),
    })?;
    let context = &mut Context {
        client: Client::new(cli.global.endpoint, cli.global.timeout, files),
        output: Output::new(cli.global.output),
    };
    match cli.command {
        Command::Group(command) => group::run(context, command).await,
        Command::Server(command) => server::run(context, command).await,
        Command::Slot(command) => slot::run(context, command).await,
        Command::Migration(command) => migration::run(context, command).await,
        Command::Rebalance(args) => rebalance::run(context, args).await,
        Command::Proxy(command) => proxy::run(context, command).await,
        Command::Fence(command) => fence::run(context, command).await,
        Command::Topology(command) => topology::run(context, command).await,
        Command::Cluster(command) => cluster::run(context, command).await,
        Command::Import(command) => import::run(context, command).await,
        Command::Events(args) => events::run(context, args).await,
        Command::Export(args) => backup::export(context, args).await,
        Command::Restore(args) => backup::restore(context, args).await,
        Command::Check => check::run(context).await,
        Command::Dev(args) => dev::run(&context.output, args).await,
        Command::Completions(args) => completions::run(&context.output, args),
    }
}

/// Says what a mutation did, or what it would have done.
fn announce(validate_only: bool, verb: Verb, what: &str) {
    output::note(&announcement(validate_only, verb, what));
}

/// What a mutation does.
#[derive(Clone, Copy)]
enum Verb {
    Create,
    Update,
    Delete,
    Add,
    Remove,
    Assign,
    Pause,
    Resume,
    Cancel,
    Repair,
    Restore,
}

fn announcement(validate_only: bool, verb: Verb, what: &str) -> String {
    let (would, did) = match verb {
        Verb::Create => ("create", "Created"),
        Verb::Update => ("update", "Updated"),
        Verb::Delete => ("delete", "Deleted"),
        Verb::Add => ("add", "Added"),
        Verb::Remove => ("remove", "Removed"),
        Verb::Assign => ("assign", "Assigned"),
        Verb::Repair => ("repair", "Repaired"),
        Verb::Pause => ("pause", "Paused"),
        Verb::Resume => ("resume", "Resumed"),
        Verb::Cancel => ("cancel", "Cancelling"),
        Verb::Restore => ("restore", "Restored"),
    };
    if validate_only {
        format!("Would {would} {what} (dry run: nothing was changed)")
    } else {
        format!("{did} {what}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dry_run_says_so() {
        assert_eq!(
            announcement(false, Verb::Create, "group g1"),
            "Created group g1"
        );
        assert_eq!(
            announcement(true, Verb::Create, "group g1"),
            "Would create group g1 (dry run: nothing was changed)"
        );
    }
}
