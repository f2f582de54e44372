//! `sluice group`: groups, each a primary and its replicas.

use std::slice;

use clap::Subcommand;
use proto::{GroupId, ServerAddr, v1};

use super::{
    Context, Verb, announce,
    rebalance::{self, How},
};
use crate::{
    args::{ChangeFlags, DryRun, TakeOver},
    client::{self, Admin, Client, request_id},
    error::Error,
    output::{Table, Tables, or_dash, plural},
};

/// What to do with groups.
#[derive(Subcommand)]
pub(crate) enum GroupCommand {
    /// List the groups
    #[command(
        visible_alias = "ls",
        after_long_help = "Example:\n  sluice group list\n\nRPC: AdminService.ListGroups"
    )]
    List,
    /// Show a group and its servers
    #[command(
        alias = "show",
        alias = "describe",
        after_long_help = "Example:\n  sluice group get g1\n\nRPC: AdminService.GetGroup"
    )]
    Get {
        /// The group
        #[arg(value_name = "GROUP")]
        id: GroupId,
    },
    /// Create a group from servers that run already
    ///
    /// Exactly one of the servers must be a primary, the others its replicas. The group owns no
    /// slots yet: `sluice slot assign` gives it some.
    #[command(
        alias = "add",
        after_long_help = "Example:\n  \
            sluice group create g1 --server 10.0.0.1:6379 --server 10.0.0.2:6379\n\n\
            RPC: AdminService.CreateGroup"
    )]
    Create {
        /// The new group: 1 to 63 of a-z, 0-9 and `-`
        #[arg(value_name = "GROUP")]
        id: GroupId,
        /// A server of the group; once for each
        #[arg(long = "server", value_name = "HOST:PORT", required = true)]
        servers: Vec<ServerAddr>,
        /// A note for people
        #[arg(
            long,
            value_name = "TEXT",
            default_value = "",
            hide_default_value = true
        )]
        description: String,
        #[command(flatten)]
        take_over: TakeOver,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Change the description of a group
    #[command(after_long_help = "Example:\n  \
        sluice group update g1 --description 'the first two machines'\n\n\
        RPC: AdminService.UpdateGroup")]
    Update {
        /// The group
        #[arg(value_name = "GROUP")]
        id: GroupId,
        /// A note for people
        #[arg(long, value_name = "TEXT")]
        description: String,
        #[command(flatten)]
        change: ChangeFlags,
    },
    /// Move all slots of a group to the others, so that it can be deleted
    #[command(after_long_help = "Examples:\n  \
        sluice group drain g3 --dry-run\n  \
        sluice group drain g3 --wait && sluice group delete g3\n\n\
        RPC: AdminService.Rebalance")]
    Drain {
        /// The group
        #[arg(value_name = "GROUP")]
        id: GroupId,
        #[command(flatten)]
        how: How,
    },
    /// Delete a group that owns no slots; its servers run on
    #[command(
        visible_alias = "rm",
        alias = "remove",
        after_long_help = "Example:\n  sluice group delete g1\n\nRPC: AdminService.DeleteGroup"
    )]
    Delete {
        /// The group
        #[arg(value_name = "GROUP")]
        id: GroupId,
        #[command(flatten)]
        change: ChangeFlags,
    },
}

/// Does it.
pub(crate) async fn run(context: &mut Context, command: GroupCommand) -> Result<(), Error> {
    match command {
        GroupCommand::List => list(context).await,
        GroupCommand::Drain { id, how } => rebalance::drain(context, id, how).await,
        GroupCommand::Get { id } => {
            let request = v1::GetGroupRequest { id: id.into() };
            let group = context.client.read(Admin::get_group, request).await?;
            context.output.show(&group, detail(&group))
        }
        GroupCommand::Create {
            id,
            servers,
            description,
            take_over,
            dry_run,
        } => {
            let request = v1::CreateGroupRequest {
                take_over: take_over.take_over,
                ..create_request(&id, &servers, description, dry_run.dry_run)
            };
            let group = create(&mut context.client, request).await?;
            let what = format!("group {id} with {}", plural(servers.len(), "server"));
            announce(dry_run.dry_run, Verb::Create, &what);
            context.output.show(&group, table(slice::from_ref(&group)))
        }
        GroupCommand::Update {
            id,
            description,
            change,
        } => {
            let request = v1::UpdateGroupRequest {
                id: id.to_string(),
                description,
                validate_only: change.validate_only(),
                expected_revision: change.expected_revision,
                request_id: request_id(),
            };
            let group = context.client.change(Admin::update_group, request).await?;
            announce(change.validate_only(), Verb::Update, &format!("group {id}"));
            context.output.show(&group, table(slice::from_ref(&group)))
        }
        GroupCommand::Delete { id, change } => {
            let request = v1::DeleteGroupRequest {
                id: id.to_string(),
                validate_only: change.validate_only(),
                expected_revision: change.expected_revision,
                request_id: request_id(),
            };
            let answer = context.client.change(Admin::delete_group, request).await?;
            announce(change.validate_only(), Verb::Delete, &format!("group {id}"));
            context.output.show(
                &answer,
                Table::fields([("Revision", answer.revision.to_string())]),
            )
        }
    }
}

async fn list(context: &mut Context) -> Result<(), Error> {
    let request = v1::ListGroupsRequest::default();
    let answer = context.client.list_groups(request).await?;
    context.output.show(&answer, table(&answer.groups))?;
    context.output.note_if_empty(
        &answer.groups,
        "No groups yet: `sluice group create g1 --server HOST:PORT` makes one",
    );
    Ok(())
}

/// Asks for a group of these servers.
pub(crate) fn create_request(
    id: &GroupId,
    servers: &[ServerAddr],
    description: String,
    validate_only: bool,
) -> v1::CreateGroupRequest {
    v1::CreateGroupRequest {
        id: id.to_string(),
        description,
        servers: servers
            .iter()
            .map(|address| v1::ServerSpec {
                address: address.to_string(),
                zone: String::new(),
            })
            .collect(),
        validate_only,
        request_id: request_id(),
        take_over: false,
    }
}

/// Creates a group; `sluice dev` does the same.
pub(crate) async fn create(
    client: &mut Client,
    request: v1::CreateGroupRequest,
) -> Result<v1::Group, client::Error> {
    client.change(Admin::create_group, request).await
}

fn table(groups: &[v1::Group]) -> Table {
    Table::new(
        [
            "ID",
            "PRIMARY",
            "REPLICAS",
            "SLOTS",
            "REVISION",
            "DESCRIPTION",
        ],
        groups.iter().map(|group| {
            let (primaries, replicas): (Vec<_>, Vec<_>) = group
                .servers
                .iter()
                .partition(|server| server.role() == v1::server::Role::Primary);
            [
                group.id.clone(),
                or_dash(addresses(&primaries)),
                or_dash(addresses(&replicas)),
                group.slot_count.to_string(),
                group.revision.to_string(),
                or_dash(&group.description),
            ]
        }),
    )
}

fn addresses(servers: &[&v1::Server]) -> String {
    let addresses: Vec<&str> = servers.iter().map(|s| s.address.as_str()).collect();
    addresses.join(",")
}

fn detail(group: &v1::Group) -> Tables {
    let fields = Table::fields([
        ("Id", group.id.clone()),
        ("Description", or_dash(&group.description)),
        ("Slots", group.slot_count.to_string()),
        ("Revision", group.revision.to_string()),
    ]);
    let servers = Table::new(
        ["SERVER", "ROLE", "ZONE"],
        group.servers.iter().map(|server| {
            let role = super::server::role_name(server.role()).to_owned();
            [server.address.clone(), role, or_dash(&server.zone)]
        }),
    );
    Tables::from([fields, servers])
}

#[cfg(test)]
mod tests {
    use v1::server::Role;

    use super::*;

    fn group() -> v1::Group {
        let server = |address: &str, role: Role| v1::Server {
            address: address.to_owned(),
            group_id: "g1".to_owned(),
            role: role.into(),
            ..Default::default()
        };
        v1::Group {
            id: "g1".to_owned(),
            revision: 5,
            description: String::new(),
            servers: vec![
                server("10.0.0.1:6379", Role::Primary),
                server("10.0.0.2:6379", Role::Replica),
            ],
            slot_count: 512,
        }
    }

    #[test]
    fn tables() {
        insta::assert_snapshot!(table(&[group()]).render(None), @"
        ID   PRIMARY         REPLICAS        SLOTS   REVISION   DESCRIPTION
        g1   10.0.0.1:6379   10.0.0.2:6379   512     5          -
        ");
        insta::assert_snapshot!(detail(&group()).render(None), @"
        Id:            g1
        Description:   -
        Slots:         512
        Revision:      5

        SERVER          ROLE      ZONE
        10.0.0.1:6379   primary   -
        10.0.0.2:6379   replica   -
        ");
    }

    /// Programs read it: it may grow, never change.
    #[test]
    fn json_is_the_protos() {
        let json = serde_json::to_string(&group()).unwrap();
        insta::assert_snapshot!(json, @r#"{"id":"g1","revision":"5","servers":[{"address":"10.0.0.1:6379","groupId":"g1","role":"PRIMARY"},{"address":"10.0.0.2:6379","groupId":"g1","role":"REPLICA"}],"slotCount":512}"#);
    }
}
