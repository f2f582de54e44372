//! `sluice cluster`: what cluster this is and how far it is.

use clap::Subcommand;
use proto::v1;

use super::Context;
use crate::{client::Admin, error::Error, output::Table};

/// What to do with the cluster.
#[derive(Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show the cluster
    #[command(
        alias = "show",
        after_long_help = "Example:\n  sluice cluster get\n\nRPC: AdminService.GetCluster"
    )]
    Get,
}

/// Does it.
pub(crate) async fn run(context: &mut Context, command: ClusterCommand) -> Result<(), Error> {
    match command {
        ClusterCommand::Get => {
            let request = v1::GetClusterRequest {};
            let cluster = context.client.read(Admin::get_cluster, request).await?;
            context.output.show(&cluster, table(&cluster))
        }
    }
}

/// The cluster's fields.
pub(crate) fn table(cluster: &v1::Cluster) -> Table {
    Table::fields([
        ("Name", cluster.name.clone()),
        ("Id", cluster.id.clone()),
        ("Revision", cluster.revision.to_string()),
        ("Leader term", cluster.leader_term.to_string()),
        ("Controller", cluster.controller_version.clone()),
        ("Its role", role_text(cluster)),
    ])
}

fn role_text(cluster: &v1::Cluster) -> String {
    use v1::cluster::Role;
    match cluster.role() {
        Role::Leader => "leader".to_owned(),
        Role::StandBy => format!("stand-by of {}", cluster.leader_endpoint),
        Role::Adrift => "adrift: no leader is known, what it shows may be old".to_owned(),
        Role::Unspecified => "-".to_owned(),
    }
}
