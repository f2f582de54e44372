//! `sluice fence`: the records on the servers that say who may use them.

use std::slice;

use clap::Subcommand;
use proto::{ServerAddr, v1};
use v1::fence::State;

use super::{Context, Verb, announce, server::role_name};
use crate::{
    args::{DryRun, TakeOver},
    client::Admin,
    error::Error,
    output::{Table, or_dash},
};

/// What to do with fence records.
#[derive(Subcommand)]
pub(crate) enum FenceCommand {
    /// Show the fence records, as the servers have them now
    ///
    /// Every server has a record of the cluster, the leader's term and the topology's epoch by which it may
    /// be used, and of the process it was written to. Proxies that route by an older epoch are kept out.
    #[command(
        visible_alias = "ls",
        alias = "list",
        alias = "get",
        after_long_help = "Examples:\n  sluice fence show\n  \
            sluice fence show --server 10.0.0.1:6379\n  \
            sluice fence show -o json | jq '.fences[] | select(.state != \"RAISED\")'\n\n\
            RPC: AdminService.ListFences, AdminService.GetFence"
    )]
    Show {
        /// Only the record of this server
        #[arg(long, value_name = "HOST:PORT")]
        server: Option<ServerAddr>,
    },
    /// Write the record of a primary anew, and close what does not route by it
    ///
    /// The controller that leads does so by itself, within a second, wherever it is needed. What it never
    /// does is to take over the record of another cluster.
    #[command(after_long_help = "Examples:\n  sluice fence repair 10.0.0.1:6379\n  \
            sluice fence repair 10.0.0.1:6379 --take-over\n\n\
            RPC: AdminService.RepairFence")]
    Repair {
        /// The server
        #[arg(value_name = "HOST:PORT")]
        server: ServerAddr,
        #[command(flatten)]
        take_over: TakeOver,
        #[command(flatten)]
        dry_run: DryRun,
    },
}

/// Does it.
pub(crate) async fn run(context: &mut Context, command: FenceCommand) -> Result<(), Error> {
    match command {
        FenceCommand::Show { server: None } => {
            let request = v1::ListFencesRequest::default();
            let answer = context.client.list_fences(request).await?;
            context.output.show(&answer, table(&answer.fences))?;
            context.output.note_if_empty(
                &answer.fences,
                "No servers yet: `sluice group create g1 --server HOST:PORT` brings the first",
            );
            Ok(())
        }
        FenceCommand::Show {
            server: Some(server),
        } => {
            let request = v1::GetFenceRequest {
                server: server.into(),
            };
            let fence = context.client.read(Admin::get_fence, request).await?;
            context.output.show(&fence, detail(&fence))
        }
        FenceCommand::Repair {
            server,
            take_over,
            dry_run,
        } => {
            let what = format!("the fence record of server {server}");
            let request = v1::RepairFenceRequest {
                server: server.into(),
                take_over: take_over.take_over,
                validate_only: dry_run.dry_run,
            };
            let fence = context.client.change(Admin::repair_fence, request).await?;
            announce(dry_run.dry_run, Verb::Repair, &what);
            context.output.show(&fence, table(slice::from_ref(&fence)))
        }
    }
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Unspecified => "-",
        State::Raised => "raised",
        State::Inherited => "its primary's",
        State::Missing => "missing",
        State::Damaged => "damaged",
        State::Restarted => "restarted",
        State::Low => "too low",
        State::High => "above the store",
        State::OtherCluster => "another cluster's",
        State::Unreachable => "unreachable",
    }
}

/// Whether the record is of the process that is there. A replica's is its primary's process's.
fn process(fence: &v1::Fence) -> &'static str {
    match fence.state() {
        _ if fence.run_id.is_empty() || fence.server_run_id.is_empty() => "-",
        _ if fence.run_id == fence.server_run_id => "same",
        State::Inherited => "primary",
        State::Unspecified
        | State::Raised
        | State::Missing
        | State::Damaged
        | State::Restarted
        | State::Low
        | State::High
        | State::OtherCluster
        | State::Unreachable => "other",
    }
}

/// A number that is 0 where there is no record.
fn number(number: u64) -> String {
    match number {
        0 => "-".to_owned(),
        number => number.to_string(),
    }
}

fn table(fences: &[v1::Fence]) -> Table {
    Table::new(
        [
            "SERVER",
            "GROUP",
            "ROLE",
            "STATE",
            "CLUSTER",
            "TERM",
            "EPOCH",
            "PROCESS",
            "PROXIES",
            "MOVERS",
            "CONTROLLERS",
        ],
        fences.iter().map(|fence| {
            [
                fence.server.clone(),
                fence.group_id.clone(),
                role_name(fence.role()).to_owned(),
                state_name(fence.state()).to_owned(),
                or_dash(&fence.cluster_id),
                number(fence.leader_term),
                number(fence.epoch),
                process(fence).to_owned(),
                fence.proxy_connections.to_string(),
                fence.mover_connections.to_string(),
                fence.controller_connections.to_string(),
            ]
        }),
    )
}

fn detail(fence: &v1::Fence) -> Table {
    Table::fields([
        ("Server", fence.server.clone()),
        ("Group", fence.group_id.clone()),
        ("Role", role_name(fence.role()).to_owned()),
        ("State", state_name(fence.state()).to_owned()),
        ("Error", or_dash(&fence.error)),
        ("Cluster", or_dash(&fence.cluster_id)),
        ("Term", number(fence.leader_term)),
        ("Epoch", number(fence.epoch)),
        ("Of process", or_dash(&fence.run_id)),
        ("Process there", or_dash(&fence.server_run_id)),
        ("Proxies", fence.proxy_connections.to_string()),
        ("Movers", fence.mover_connections.to_string()),
        ("Controllers", fence.controller_connections.to_string()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_shown_in_words() {
        let fence = |state: State, run_id: &str, server_run_id: &str| v1::Fence {
            server: "10.0.0.1:6379".to_owned(),
            group_id: "g1".to_owned(),
            role: v1::server::Role::Primary.into(),
            state: state.into(),
            cluster_id: "c1".to_owned(),
            leader_term: 3,
            epoch: 40,
            run_id: run_id.to_owned(),
            server_run_id: server_run_id.to_owned(),
            proxy_connections: 4,
            ..v1::Fence::default()
        };
        let fences = [
            fence(State::Raised, "a", "a"),
            fence(State::Inherited, "a", "b"),
            fence(State::Restarted, "a", "b"),
            v1::Fence {
                cluster_id: String::new(),
                leader_term: 0,
                epoch: 0,
                ..fence(State::Missing, "", "b")
            },
        ];
        insta::assert_snapshot!(table(&fences).render(None), @"
        SERVER          GROUP   ROLE      STATE           CLUSTER   TERM   EPOCH   PROCESS   PROXIES   MOVERS   CONTROLLERS
        10.0.0.1:6379   g1      primary   raised          c1        3      40      same      4         0        0
        10.0.0.1:6379   g1      primary   its primary's   c1        3      40      primary   4         0        0
        10.0.0.1:6379   g1      primary   restarted       c1        3      40      other     4         0        0
        10.0.0.1:6379   g1      primary   missing         -         -      -       -         4         0        0
        ");
    }
}
