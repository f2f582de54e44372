//! `sluice proxy`: the proxies that registered, and how they are.

use std::time::SystemTime;

use clap::Subcommand;
use proto::{ProxyId, Version, v1};

use super::{Context, Verb, announce};
use crate::{
    args::ChangeFlags,
    client::{Admin, request_id},
    error::Error,
    output::{self, Table, or_dash, thousands},
};

/// What to do with proxies.
#[derive(Subcommand)]
pub(crate) enum ProxyCommand {
    /// List the proxies and how they are
    #[command(
        visible_alias = "ls",
        after_long_help = "Example:\n  sluice proxy list\n\nRPC: AdminService.ListProxies"
    )]
    List,
    /// Show a proxy and how it is
    #[command(
        alias = "show",
        alias = "describe",
        after_long_help = "Example:\n  sluice proxy get p1\n\nRPC: AdminService.GetProxy"
    )]
    Get {
        /// The proxy
        #[arg(value_name = "PROXY")]
        id: ProxyId,
    },
    /// Forget a proxy that is gone for good
    ///
    /// A proxy registers by itself when it starts; one that is connected cannot be removed. What it still
    /// has open at the servers is killed first. The controller's --proxy-expiry removes by itself who was
    /// gone for that long.
    #[command(
        visible_alias = "rm",
        alias = "delete",
        after_long_help = "Example:\n  sluice proxy remove p1\n\nRPC: AdminService.DeleteProxy"
    )]
    Remove {
        /// The proxy
        #[arg(value_name = "PROXY")]
        id: ProxyId,
        #[command(flatten)]
        change: ChangeFlags,
    },
}

/// Does it.
pub(crate) async fn run(context: &mut Context, command: ProxyCommand) -> Result<(), Error> {
    match command {
        ProxyCommand::List => list(context).await,
        ProxyCommand::Get { id } => {
            let request = v1::GetProxyRequest { id: id.into() };
            let proxy = context.client.read(Admin::get_proxy, request).await?;
            context.output.show(&proxy, detail(&proxy))
        }
        ProxyCommand::Remove { id, change } => {
            let request = v1::DeleteProxyRequest {
                id: id.to_string(),
                validate_only: change.validate_only(),
                expected_revision: change.expected_revision,
                request_id: request_id(),
            };
            let answer = context.client.change(Admin::delete_proxy, request).await?;
            announce(change.validate_only(), Verb::Remove, &format!("proxy {id}"));
            for server in &answer.unreached_servers {
                output::note(&format!(
                    "Server {server} was not reached: connections of the proxy may be open there"
                ));
            }
            context.output.show(
                &answer,
                Table::fields([("Revision", answer.revision.to_string())]),
            )
        }
    }
}

async fn list(context: &mut Context) -> Result<(), Error> {
    let request = v1::ListProxiesRequest::default();
    let answer = context.client.list_proxies(request).await?;
    let table = table(&answer.proxies, SystemTime::now());
    context.output.show(&answer, table)?;
    let hint = format!(
        "No proxies yet: `sluice-proxy --id p1 --controller {}` starts one",
        context.client.endpoint()
    );
    context.output.note_if_empty(&answer.proxies, &hint);
    Ok(())
}

fn table(proxies: &[v1::Proxy], now: SystemTime) -> Table {
    Table::new(
        [
            "ID", "ADDRESS", "STATUS", "TOPOLOGY", "LAG", "SESSIONS", "REQ/S", "SEEN", "VERSION",
            "ZONE",
        ],
        proxies.iter().map(|proxy| {
            let sessions = proxy.stats.as_ref().map(|stats| thousands(stats.sessions));
            [
                proxy.id.clone(),
                proxy.address.clone(),
                status(proxy).to_owned(),
                acked(proxy),
                lag(proxy),
                or_dash(sessions.unwrap_or_default()),
                rate(proxy.requests_per_second),
                output::age(proxy.last_seen.as_ref(), now),
                or_dash(&proxy.build_version),
                or_dash(&proxy.zone),
            ]
        }),
    )
}

fn detail(proxy: &v1::Proxy) -> Table {
    let stats = proxy.stats.unwrap_or_default();
    Table::fields([
        ("Id", proxy.id.clone()),
        ("Address", proxy.address.clone()),
        ("Admin", or_dash(&proxy.admin_address)),
        ("Zone", or_dash(&proxy.zone)),
        ("Version", or_dash(&proxy.build_version)),
        ("Incarnation", proxy.incarnation.clone()),
        ("Status", status(proxy).to_owned()),
        ("Topology", acked(proxy)),
        ("Lag", lag(proxy)),
        ("Refused", or_dash(&proxy.nack_reason)),
        ("Seen", output::rfc3339(proxy.last_seen.as_ref())),
        ("Sessions", thousands(stats.sessions)),
        ("Requests", thousands(stats.requests_total)),
        ("Errors", thousands(stats.errors_total)),
        ("Requests/s", rate(proxy.requests_per_second)),
        ("Revision", proxy.revision.to_string()),
    ])
}

fn status(proxy: &v1::Proxy) -> &'static str {
    match (proxy.connected, proxy.nack_reason.is_empty()) {
        (false, _) => "disconnected",
        (true, true) => "connected",
        (true, false) => "refusing",
    }
}

fn acked(proxy: &v1::Proxy) -> String {
    or_dash(
        proxy
            .acked_version
            .as_ref()
            .map_or(String::new(), |version| Version::from(version).to_string()),
    )
}

/// How many epochs it is behind.
fn lag(proxy: &v1::Proxy) -> String {
    let lag = proxy.acked_version.map(|_| thousands(proxy.epochs_behind));
    or_dash(lag.unwrap_or_default())
}

/// Requests per second, whole.
pub(crate) fn rate(per_second: f64) -> String {
    // Casting saturates: whatever was sent, a number results.
    thousands(per_second.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables() {
        let healthy = v1::Proxy {
            id: "p1".to_owned(),
            incarnation: "00ff".to_owned(),
            address: "10.0.0.9:19000".to_owned(),
            build_version: "0.1.0".to_owned(),
            connected: true,
            acked_version: Some(v1::Version {
                leader_term: 1,
                epoch: 12,
            }),
            last_seen: Some(pbjson_types::Timestamp {
                seconds: 1_000,
                nanos: 0,
            }),
            stats: Some(v1::ProxyStats {
                sessions: 50,
                requests_total: 1_000_000,
                errors_total: 3,
            }),
            requests_per_second: 120_345.6,
            epochs_behind: 2,
            ..Default::default()
        };
        let gone = v1::Proxy {
            id: "p2".to_owned(),
            address: "10.0.0.8:19000".to_owned(),
            ..Default::default()
        };
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_001);
        insta::assert_snapshot!(table(&[healthy.clone(), gone], now).render(None), @"
        ID   ADDRESS          STATUS         TOPOLOGY   LAG   SESSIONS   REQ/S     SEEN   VERSION   ZONE
        p1   10.0.0.9:19000   connected      1.12       2     50         120,346   1s     0.1.0     -
        p2   10.0.0.8:19000   disconnected   -          -     -          0         -      -         -
        ");
        insta::assert_snapshot!(detail(&healthy).render(None), @"
        Id:            p1
        Address:       10.0.0.9:19000
        Admin:         -
        Zone:          -
        Version:       0.1.0
        Incarnation:   00ff
        Status:        connected
        Topology:      1.12
        Lag:           2
        Refused:       -
        Seen:          1970-01-01T00:16:40.000Z
        Sessions:      50
        Requests:      1,000,000
        Errors:        3
        Requests/s:    120,346
        Revision:      0
        ");
    }

    #[test]
    fn a_rate_is_a_number_whatever_was_sent() {
        fn check(sent: f64, expected: &str) {
            assert_eq!(rate(sent), expected);
        }
        check(0.4, "0");
        check(1234.5, "1,235");
        check(-1.0, "0");
        check(f64::NAN, "0");
    }
}
