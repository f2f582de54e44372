//! `sluice topology`: what the proxies route by.

use clap::Subcommand;
use proto::{Version, v1};

use super::{Context, slot};
use crate::{
    client::Admin,
    error::Error,
    output::{Table, Tables, or_dash},
};

/// What to do with the topology.
#[derive(Subcommand)]
pub(crate) enum TopologyCommand {
    /// Show the topology, as the proxies get it
    #[command(
        alias = "show",
        after_long_help = "Example:\n  sluice topology get -o json\n\nRPC: AdminService.GetTopology"
    )]
    Get,
}

/// Does it.
pub(crate) async fn run(context: &mut Context, command: TopologyCommand) -> Result<(), Error> {
    match command {
        TopologyCommand::Get => {
            let request = v1::GetTopologyRequest {};
            let topology = context.client.read(Admin::get_topology, request).await?;
            context.output.show(&topology, tables(&topology))
        }
    }
}

fn tables(topology: &v1::Topology) -> Tables {
    let version = topology
        .version
        .as_ref()
        .map_or(String::new(), |version| Version::from(version).to_string());
    let fields = Table::fields([
        ("Cluster", topology.cluster_id.clone()),
        ("Version", or_dash(version)),
    ]);
    let groups = Table::new(
        ["GROUP", "PRIMARY", "REPLICAS"],
        topology.groups.iter().map(|group| {
            let replicas = or_dash(group.replicas.join(","));
            [group.id.clone(), group.primary.clone(), replicas]
        }),
    );
    Tables::from([fields, groups, slot::table(&topology.slots)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_is_shown() {
        let topology = v1::Topology {
            cluster_id: "c1".to_owned(),
            version: Some(v1::Version {
                leader_term: 2,
                epoch: 7,
            }),
            groups: vec![v1::TopologyGroup {
                id: "g1".to_owned(),
                primary: "10.0.0.1:6379".to_owned(),
                replicas: vec!["10.0.0.2:6379".to_owned()],
            }],
            slots: vec![v1::SlotAssignment {
                first: 0,
                last: 1023,
                group_id: "g1".to_owned(),
                state: v1::slot_assignment::State::Serving.into(),
                target_group_id: String::new(),
            }],
        };
        insta::assert_snapshot!(tables(&topology).render(None), @"
        Cluster:   c1
        Version:   2.7

        GROUP   PRIMARY         REPLICAS
        g1      10.0.0.1:6379   10.0.0.2:6379

        RANGE    SLOTS   GROUP   STATE
        0-1023   1024    g1      serving
        ");
    }
}
