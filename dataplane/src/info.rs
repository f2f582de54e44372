//! What the proxy says of itself in `INFO`; what the groups say is put around it by [`crate::fanout`].

use std::time::{SystemTime, UNIX_EPOCH};

use proto::{Slot, Topology};

use crate::{
    client::Client,
    fanout::{Asked, Own},
    local::REDIS_VERSION,
    metrics::Proxy,
    resp::Request,
};

/// Whether a request asks for a section.
fn asks_for(request: &Request<'_>, section: &str) -> bool {
    let several = ["all", "default", "everything"];
    let is = |name: &[u8], known: &str| name.eq_ignore_ascii_case(known.as_bytes());
    request.argc() == 1
        || request
            .args_from(1)
            .any(|name| is(name, section) || several.iter().any(|several| is(name, several)))
}

/// Whether no group has to be asked.
pub(crate) fn concerns_proxy_alone(request: &Request<'_>) -> bool {
    let is_own = |name: &[u8]| name.eq_ignore_ascii_case(b"Server");
    request.argc() > 1 && request.args_from(1).all(is_own)
}

/// Those of the proxy's own sections that a request asks for.
pub(crate) fn sections(
    request: &Request<'_>,
    client: &Client,
    proxy: &Proxy,
    topology: Option<&Topology>,
) -> Vec<Own> {
    let all = [
        server(client, proxy),
        clients(proxy),
        stats(proxy),
        sluice(proxy, topology),
    ];
    let asked = all.into_iter().filter(|own| asks_for(request, own.name));
    asked.collect()
}

/// A group as the section `Sluice` names it.
pub(crate) fn group(topology: &Topology, index: u16, is_down: bool) -> Asked {
    let group = &topology.groups()[usize::from(index)];
    let owns = |slot: &Slot| topology.route(*slot).group == Some(index);
    Asked {
        name: group.id.to_string(),
        slots: Slot::all().filter(owns).count(),
        primary: group.primary.to_string(),
        is_down,
    }
}

fn server(client: &Client, proxy: &Proxy) -> Own {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let uptime = proxy.started.elapsed().as_secs();
    let text = str::to_owned;
    Own {
        name: "Server",
        is_whole: true,
        fields: vec![
            ("redis_version", text(REDIS_VERSION)),
            ("redis_git_sha1", text("00000000")),
            ("redis_git_dirty", text("0")),
            ("redis_build_id", text("0")),
            ("redis_mode", text("standalone")),
            (
                "os",
                format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            ),
            ("arch_bits", usize::BITS.to_string()),
            ("multiplexing_api", text("epoll")),
            ("process_id", std::process::id().to_string()),
            ("process_supervised", text("no")),
            ("run_id", proxy.incarnation.clone()),
            ("tcp_port", client.identity.local.port().to_string()),
            ("server_time_usec", now.as_micros().to_string()),
            ("uptime_in_seconds", uptime.to_string()),
            ("uptime_in_days", (uptime / 86_400).to_string()),
            ("config_file", String::new()),
            ("io_threads_active", text("0")),
        ],
        more: None,
    }
}

/// How many are blocked by a command the servers know; who waits in a pause waits here. Of those that
/// track keys they know the proxies' connections.
fn clients(proxy: &Proxy) -> Own {
    let totals = proxy.totals();
    Own {
        name: "Clients",
        is_whole: false,
        fields: vec![
            ("connected_clients", totals.sessions.to_string()),
            ("cluster_connections", "0".to_owned()),
            ("maxclients", proxy.max_clients.to_string()),
            ("tracking_clients", totals.tracking_sessions.to_string()),
        ],
        more: Some(("blocked_clients", totals.paused)),
    }
}

/// What has become of clients' connections; the servers' own are proxies'.
fn stats(proxy: &Proxy) -> Own {
    Own {
        name: "Stats",
        is_whole: false,
        fields: vec![
            (
                "total_connections_received",
                proxy.totals().sessions_opened.to_string(),
            ),
            (
                "rejected_connections",
                proxy.sessions_rejected().to_string(),
            ),
        ],
        more: None,
    }
}

fn sluice(proxy: &Proxy, topology: Option<&Topology>) -> Own {
    let totals = proxy.totals();
    let mut fields = vec![
        ("sluice_version", env!("CARGO_PKG_VERSION").to_owned()),
        ("proxy_id", proxy.id.to_string()),
        ("proxy_workers", proxy.workers.len().to_string()),
        ("proxy_requests", totals.requests.to_string()),
        ("proxy_errors", totals.errors.to_string()),
        ("proxy_client_in_bytes", totals.client_bytes_in.to_string()),
        (
            "proxy_client_out_bytes",
            totals.client_bytes_out.to_string(),
        ),
        (
            "proxy_server_connections",
            totals.server_connections.to_string(),
        ),
        (
            "proxy_server_connections_refused",
            totals.connections_refused.to_string(),
        ),
        ("proxy_memory", proxy.memory.held().to_string()),
        ("proxy_memory_limit", proxy.memory.limit().to_string()),
    ];
    if let Some(topology) = topology {
        fields.extend([
            ("cluster_id", topology.cluster_id().to_string()),
            ("topology_version", topology.version().to_string()),
            ("groups", topology.groups().len().to_string()),
        ]);
    }
    Own {
        name: "Sluice",
        is_whole: true,
        fields,
        more: None,
    }
}
