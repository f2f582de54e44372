//! The command tree and the flags that every command has. Doc comments are the help.

use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use proto::{ServerAddr, identity::TlsFlags, settings};

use crate::{
    commands::{
        backup, check, cluster, completions, events, fence::FenceCommand, group::GroupCommand,
        import::ImportCommand, migration::MigrationCommand, proxy::ProxyCommand, rebalance,
        server::ServerCommand, slot::SlotCommand, topology::TopologyCommand,
    },
    dev,
    output::Format,
};

const EXAMPLES: &str = "\
Examples:
  sluice dev                                     a whole cluster on this machine
  sluice group create g1 --server 10.0.0.1:6379  a group from a running Redis server
  sluice slot assign --even                      share the slots among the groups
  sluice check                                   what is wrong, and what to do about it

Exit codes: 0 done, 1 failed, 2 wrong usage.";

/// Manage a Sluice cluster: many Redis servers that look like one
///
/// Every command but `dev` and `completions` talks to a controller over gRPC. Data goes to stdout,
/// everything else to stderr.
#[derive(Parser)]
#[command(
    name = "sluice",
    version,
    max_term_width = 100,
    after_long_help = EXAMPLES
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub global: GlobalFlags,
    #[command(subcommand)]
    pub command: Command,
}

/// The flags that every command has.
#[derive(Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalFlags {
    /// Where a controller listens; of several, the one that leads is found
    #[arg(
        long,
        alias = "endpoints",
        env = "SLUICE_ENDPOINT",
        hide_env_values = true,
        value_name = "HOST:PORT",
        value_delimiter = ',',
        value_parser = endpoint,
        default_value = "127.0.0.1:18080",
        global = true
    )]
    pub endpoint: Vec<ServerAddr>,
    /// How to print what was asked for
    #[arg(
        short,
        long,
        env = "SLUICE_OUTPUT",
        hide_env_values = true,
        value_name = "FORMAT",
        value_enum,
        default_value_t = Format::Table,
        global = true
    )]
    pub output: Format,
    /// How long a call may take, however many controllers are asked
    #[arg(
        long,
        env = "SLUICE_TIMEOUT",
        hide_env_values = true,
        value_name = "DURATION",
        value_parser = settings::duration,
        default_value = "10s",
        global = true
    )]
    pub timeout: Duration,
    #[command(flatten)]
    pub tls: TlsFlags,
}

/// What there is to do.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Manage groups: a primary and its replicas, which own slots
    #[command(subcommand, visible_alias = "groups")]
    Group(GroupCommand),
    /// Manage servers: the Redis or Valkey processes of the groups
    #[command(subcommand, visible_alias = "servers")]
    Server(ServerCommand),
    /// Show and assign slots: the 1024 parts of the key space
    #[command(subcommand, visible_alias = "slots")]
    Slot(SlotCommand),
    /// Move slots between groups while clients use them
    #[command(subcommand, visible_alias = "migrations")]
    Migration(MigrationCommand),
    /// Move slots until each group owns its share
    #[command(after_long_help = rebalance::HELP)]
    Rebalance(rebalance::RebalanceArgs),
    /// Manage proxies: what clients connect to
    #[command(subcommand, visible_alias = "proxies")]
    Proxy(ProxyCommand),
    /// Show and repair the records on the servers that say who may use them
    #[command(subcommand, visible_alias = "fences")]
    Fence(FenceCommand),
    /// Show the topology by which the proxies route
    #[command(subcommand)]
    Topology(TopologyCommand),
    /// Show the cluster
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Take over the groups and slots of another system
    #[command(subcommand)]
    Import(ImportCommand),
    /// Follow what happens in the cluster
    #[command(visible_alias = "watch", after_long_help = events::HELP)]
    Events(events::EventsArgs),
    /// Write everything that the controller keeps to a file: a backup
    #[command(alias = "backup", after_long_help = backup::EXPORT_HELP)]
    Export(backup::ExportArgs),
    /// Put everything that a backup has into the controller's store
    ///
    /// Into an empty store; or, with --replace, in place of what the same cluster has. The store goes on
    /// above its own version and the backup's, so that proxies take its topology. Keys are not touched:
    /// what was written since to groups that own slots now and did not then is not found any more.
    #[command(after_long_help = backup::RESTORE_HELP)]
    Restore(backup::RestoreArgs),
    /// Check the cluster's health and say what to do
    #[command(visible_alias = "doctor", after_long_help = check::HELP)]
    Check,
    /// Run a whole cluster on this machine, until Ctrl-C
    #[command(after_long_help = dev::HELP)]
    Dev(dev::DevArgs),
    /// Print a script that completes commands in a shell
    #[command(after_long_help = completions::HELP)]
    Completions(completions::CompletionsArgs),
}

/// The flag of a mutation of what has no revision yet.
#[derive(Args)]
pub(crate) struct DryRun {
    /// Check everything, change nothing, and show what would be
    #[arg(long)]
    pub dry_run: bool,
}

/// The flags of a mutation.
#[derive(Args)]
pub(crate) struct ChangeFlags {
    #[command(flatten)]
    pub dry_run: DryRun,
    /// Refuse if it was changed since this revision; 0 changes it whatever its revision
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub expected_revision: u64,
}

impl ChangeFlags {
    /// Whether nothing is to be changed.
    pub(crate) fn validate_only(&self) -> bool {
        self.dry_run.dry_run
    }
}

fn endpoint(text: &str) -> Result<ServerAddr, String> {
    ServerAddr::new(text).map_err(|error| error.rule.to_owned())
}

/// Whether a server is taken from another cluster.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct TakeOver {
    /// Take over a server that has the fence record of another cluster, which must not use it any more
    #[arg(long)]
    pub(crate) take_over: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Every page of the help; the global options only on the first.
    fn pages(command: &mut clap::Command, text: &mut String) {
        let name = command.get_bin_name().unwrap_or("sluice").to_owned();
        let help = command.render_long_help().to_string();
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        text.push_str(&format!("$ {name} --help\n{}\n\n", help.join("\n")));
        for child in command.get_subcommands_mut() {
            if child.get_name() != "help" {
                let mut child = child.clone().mut_args(|arg| {
                    let known = arg.is_global_set() || arg.get_id() == "help";
                    arg.hide(known)
                });
                pages(&mut child, text);
            }
        }
    }

    #[test]
    fn help_tree() {
        let mut command = Cli::command().term_width(100);
        command.build();
        let mut text = String::new();
        pages(&mut command, &mut text);
        insta::assert_snapshot!(text);
    }

    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_others_would_type_works() {
        fn check(line: &str, ok: bool) {
            let result = Cli::try_parse_from(line.split_whitespace());
            assert_eq!(result.is_ok(), ok, "{line}: {:?}", result.err());
        }
        check("sluice groups ls", true);
        check("sluice group list -o json", true);
        check("sluice -o json group list", true);
        check("sluice --endpoints a:1,b:2 servers ls", true);
        check("sluice --endpoint nowhere servers ls", false);
        check("sluice group rm g1 --dry-run", true);
        check("sluice group create g1", false);
        check("sluice group create g1 --server a:1 --server b:2", true);
        check("sluice group create G1 --server a:1", false);
        check("sluice server add a:1 --group g1 --zone z", true);
        check("sluice server add a:1 --group g1 --take-over", true);
        check("sluice server add a:1", false);
        check("sluice slot assign 0-511 g1", true);
        check("sluice slot assign 0-99,200,300-400 g1 --dry-run", true);
        check("sluice slot assign 0-1024 g1", false);
        check("sluice slot assign 0-9,5 g1", false);
        check("sluice slot assign 0-511", false);
        check("sluice slot assign --even", true);
        check("sluice slot assign 0-511 g1 --even", false);
        check("sluice slot assign", false);
        check("sluice proxies rm p1 --expected-revision 7", true);
        check("sluice fence show", true);
        check("sluice fence show --server a:1 -o json", true);
        check("sluice fence repair a:1 --take-over", true);
        check("sluice fence repair", false);
        check("sluice events --count 3 --for 5s", true);
        check("sluice events --for soon", false);
        check("sluice import codis --dump f", true);
        check("sluice import codis --zookeeper a:1,b:2 --product p", true);
        check("sluice import codis --zookeeper a:1", false);
        check(
            "sluice import codis --dump f --zookeeper a:1 --product p",
            false,
        );
        check("sluice import codis --dump f --yes --dry-run", false);
        check("sluice import codis", false);
        check("sluice export", true);
        check("sluice export b.json", true);
        check("sluice restore", false);
        check("sluice restore b.json --replace --dry-run", true);
        check("sluice doctor", true);
        check("sluice dev --for 20s --groups 3 --replicas 1", true);
        check("sluice dev --groups 0", false);
        check("sluice completions bash", true);
        check("sluice", false);
    }
}
