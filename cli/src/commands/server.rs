//! `sluice server`: the Redis and Valkey processes of the groups.

use std::slice;

use clap::Subcommand;
use proto::{GroupId, ServerAddr, v1};
use v1::server::Role;

use super::{Context, Verb, announce};
use crate::{
    args::{ChangeFlags, TakeOver},
    client::{Admin, request_id},
    error::Error,
    output::{self, Table, or_dash, thousands},
};

/// What to do with servers.
#[derive(Subcommand)]
pub(crate) enum ServerCommand {
    /// List the servers and how they are
    #[command(
        visible_alias = "ls",
        after_long_help = "Example:\n  sluice server list --group g1\n\n\
            RPC: AdminService.ListServers"
    )]
    List {
        /// Only the servers of this group
        #[arg(long, value_name = "GROUP")]
        group: Option<GroupId>,
    },
    /// Show a server and how it is
    #[command(
        alias = "show",
        alias = "describe",
        after_long_help = "Example:\n  sluice server get 10.0.0.1:6379\n\n\
            RPC: AdminService.GetServer"
    )]
    Get {
        /// The server
        #[arg(value_name = "HOST:PORT")]
        address: ServerAddr,
    },
    /// Add a replica to a group
    ///
    /// The server must run already, and follow the group's primary.
    #[command(
        alias = "create",
        after_long_help = "Example:\n  \
            redis-cli -h 10.0.0.2 REPLICAOF 10.0.0.1 6379\n  \
            sluice server add 10.0.0.2:6379 --group g1 --zone east\n\n\
            RPC: AdminService.CreateServer"
    )]
    Add {
        /// The server
        #[arg(value_name = "HOST:PORT")]
        address: ServerAddr,
        /// The group it joins
        #[arg(long, value_name = "GROUP")]
        group: GroupId,
        /// The failure zone it runs in
        #[arg(
            long,
            value_name = "ZONE",
            default_value = "",
            hide_default_value = true
        )]
        zone: String,
        #[command(flatten)]
        take_over: TakeOver,
        #[command(flatten)]
        change: ChangeFlags,
    },
    /// Change the zone of a server
    #[command(after_long_help = "Example:\n  \
        sluice server update 10.0.0.2:6379 --zone west\n\n\
        RPC: AdminService.UpdateServer")]
    Update {
        /// The server
        #[arg(value_name = "HOST:PORT")]
        address: ServerAddr,
        /// The failure zone it runs in; empty: not said
        #[arg(long, value_name = "ZONE")]
        zone: String,
        #[command(flatten)]
        change: ChangeFlags,
    },
    /// Remove a replica from its group; it runs on
    #[command(
        visible_alias = "rm",
        alias = "delete",
        after_long_help = "Example:\n  sluice server remove 10.0.0.2:6379\n\n\
            RPC: AdminService.DeleteServer"
    )]
    Remove {
        /// The server
        #[arg(value_name = "HOST:PORT")]
        address: ServerAddr,
        #[command(flatten)]
        change: ChangeFlags,
    },
}

/// Does it.
pub(crate) async fn run(context: &mut Context, command: ServerCommand) -> Result<(), Error> {
    match command {
        ServerCommand::List { group } => list(context, group).await,
        ServerCommand::Get { address } => {
            let request = v1::GetServerRequest {
                address: address.into(),
            };
            let server = context.client.read(Admin::get_server, request).await?;
            context.output.show(&server, detail(&server))
        }
        ServerCommand::Add {
            address,
            group,
            zone,
            take_over,
            change,
        } => {
            let what = format!("server {address} to group {group}");
            let request = v1::CreateServerRequest {
                group_id: group.into(),
                server: Some(v1::ServerSpec {
                    address: address.into(),
                    zone,
                }),
                validate_only: change.validate_only(),
                expected_revision: change.expected_revision,
                request_id: request_id(),
                take_over: take_over.take_over,
            };
            let server = context.client.change(Admin::create_server, request).await?;
            announce(change.validate_only(), Verb::Add, &what);
            context
                .output
                .show(&server, table(slice::from_ref(&server)))
        }
        ServerCommand::Update {
            address,
            zone,
            change,
        } => {
            let what = format!("server {address}");
            let request = v1::UpdateServerRequest {
                address: address.into(),
                zone,
                validate_only: change.validate_only(),
                expected_revision: change.expected_revision,
                request_id: request_id(),
            };
            let server = context.client.change(Admin::update_server, request).await?;
            announce(change.validate_only(), Verb::Update, &what);
            context
                .output
                .show(&server, table(slice::from_ref(&server)))
        }
        ServerCommand::Remove { address, change } => {
            let what = format!("server {address}");
            let request = v1::DeleteServerRequest {
                address: address.into(),
                validate_only: change.validate_only(),
                expected_revision: change.expected_revision,
                request_id: request_id(),
            };
            let answer = context.client.change(Admin::delete_server, request).await?;
            announce(change.validate_only(), Verb::Remove, &what);
            context.output.show(
                &answer,
                Table::fields([("Revision", answer.revision.to_string())]),
            )
        }
    }
}

async fn list(context: &mut Context, group: Option<GroupId>) -> Result<(), Error> {
    let request = v1::ListServersRequest {
        group_id: group.map(String::from).unwrap_or_default(),
        ..Default::default()
    };
    let answer = context.client.list_servers(request).await?;
    context.output.show(&answer, table(&answer.servers))?;
    context.output.note_if_empty(
        &answer.servers,
        "No servers yet: `sluice group create g1 --server HOST:PORT` brings the first",
    );
    Ok(())
}

/// How a server is, by the controller's last probe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Health {
    /// Never probed.
    Unknown,
    /// It does not answer.
    Down,
    /// It is not what the cluster has it for, a primary or a replica.
    WrongRole,
    /// A replica that has lost its primary.
    LinkDown,
    /// All is as it should be.
    Up,
}

/// Judges a server.
pub(crate) fn health(server: &v1::Server) -> Health {
    let Some(observed) = &server.observed else {
        return Health::Unknown;
    };
    if !observed.reachable {
        Health::Down
    } else if observed.role() != server.role() {
        Health::WrongRole
    } else if server.role() == Role::Replica && !observed.primary_link_up {
        Health::LinkDown
    } else {
        Health::Up
    }
}

impl Health {
    fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Down => "down",
            Self::WrongRole => "wrong role",
            Self::LinkDown => "link down",
            Self::Up => "up",
        }
    }
}

/// `primary` or `replica`.
pub(crate) fn role_name(role: Role) -> &'static str {
    match role {
        Role::Unspecified => "-",
        Role::Primary => "primary",
        Role::Replica => "replica",
    }
}

fn table(servers: &[v1::Server]) -> Table {
    Table::new(
        [
            "ADDRESS", "GROUP", "ROLE", "STATUS", "VERSION", "KEYS", "MEMORY", "LATENCY", "ZONE",
        ],
        servers.iter().map(|server| {
            let show = |text: fn(&v1::ServerObservation) -> String| answered(server, text);
            [
                server.address.clone(),
                server.group_id.clone(),
                role_name(server.role()).to_owned(),
                health(server).name().to_owned(),
                show(software),
                show(|o| thousands(o.keys)),
                show(|o| output::bytes(o.used_memory_bytes)),
                show(latency),
                or_dash(&server.zone),
            ]
        }),
    )
}

fn detail(server: &v1::Server) -> Table {
    let observed = server.observed.clone().unwrap_or_default();
    let link = match (server.role(), observed.primary_link_up) {
        (Role::Replica, true) => "up",
        (Role::Replica, false) if observed.reachable => "down",
        (Role::Replica | Role::Primary | Role::Unspecified, _) => "-",
    };
    let show = |text: fn(&v1::ServerObservation) -> String| answered(server, text);
    Table::fields([
        ("Address", server.address.clone()),
        ("Group", server.group_id.clone()),
        ("Role", role_name(server.role()).to_owned()),
        ("Zone", or_dash(&server.zone)),
        ("Revision", server.revision.to_string()),
        ("Status", health(server).name().to_owned()),
        ("Error", or_dash(&observed.error)),
        ("Probed", output::rfc3339(observed.time.as_ref())),
        ("Says it is", role_name(observed.role()).to_owned()),
        ("Follows", or_dash(&observed.primary_address)),
        ("Link", link.to_owned()),
        ("Software", show(software)),
        ("Run id", or_dash(&observed.run_id)),
        ("Keys", show(|o| thousands(o.keys))),
        ("Memory", show(|o| output::bytes(o.used_memory_bytes))),
        ("Latency", show(latency)),
    ])
}

/// What a server said of itself, `-` if it did not answer.
fn answered(server: &v1::Server, text: fn(&v1::ServerObservation) -> String) -> String {
    let observed = server.observed.as_ref().filter(|o| o.reachable);
    or_dash(observed.map_or(String::new(), text))
}

fn software(observed: &v1::ServerObservation) -> String {
    format!("{} {}", observed.flavor, observed.version)
        .trim()
        .to_owned()
}

fn latency(observed: &v1::ServerObservation) -> String {
    format!("{:.1}ms", observed.latency_us as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(role: Role, observed: Option<v1::ServerObservation>) -> v1::Server {
        v1::Server {
            address: "10.0.0.1:6379".to_owned(),
            group_id: "g1".to_owned(),
            role: role.into(),
            observed,
            ..Default::default()
        }
    }

    fn observed(role: Role) -> v1::ServerObservation {
        v1::ServerObservation {
            reachable: true,
            role: role.into(),
            flavor: "redis".to_owned(),
            version: "7.0.15".to_owned(),
            keys: 12_345,
            used_memory_bytes: 1_500_000,
            latency_us: 420,
            ..Default::default()
        }
    }

    #[test]
    fn health_follows_the_probe() {
        fn check(server: v1::Server, expected: Health) {
            assert_eq!(health(&server), expected);
        }
        check(server(Role::Primary, None), Health::Unknown);
        check(
            server(Role::Primary, Some(Default::default())),
            Health::Down,
        );
        check(
            server(Role::Primary, Some(observed(Role::Primary))),
            Health::Up,
        );
        check(
            server(Role::Primary, Some(observed(Role::Replica))),
            Health::WrongRole,
        );
        let mut replica = observed(Role::Replica);
        check(
            server(Role::Replica, Some(replica.clone())),
            Health::LinkDown,
        );
        replica.primary_link_up = true;
        check(server(Role::Replica, Some(replica)), Health::Up);
    }

    #[test]
    fn tables() {
        let servers = [
            server(Role::Primary, Some(observed(Role::Primary))),
            server(Role::Replica, None),
        ];
        insta::assert_snapshot!(table(&servers).render(None), @"
        ADDRESS         GROUP   ROLE      STATUS    VERSION        KEYS     MEMORY    LATENCY   ZONE
        10.0.0.1:6379   g1      primary   up        redis 7.0.15   12,345   1.4 MiB   0.4ms     -
        10.0.0.1:6379   g1      replica   unknown   -              -        -         -         -
        ");
        insta::assert_snapshot!(detail(&servers[0]).render(None), @"
        Address:      10.0.0.1:6379
        Group:        g1
        Role:         primary
        Zone:         -
        Revision:     0
        Status:       up
        Error:        -
        Probed:       -
        Says it is:   primary
        Follows:      -
        Link:         -
        Software:     redis 7.0.15
        Run id:       -
        Keys:         12,345
        Memory:       1.4 MiB
        Latency:      0.4ms
        ");
        let unknown = detail(&servers[1]).render(None);
        let dashes = ["Link:         -", "Keys:         -", "Latency:      -"];
        assert!(dashes.iter().all(|d| unknown.contains(d)), "{unknown}");
    }
}
