//! The controller's HTTP: `/livez`, `/readyz`, `/metrics`.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use proto::Slot;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    metrics::{Levels, Metrics},
    prober::Observations,
    registry::Registry,
    snapshot::Snapshot,
    store::Store,
};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the pages are made of.
pub struct Pages {
    /// Counts and renders.
    pub metrics: Metrics,
    /// How far it is.
    pub store: Store,
    /// Who is connected.
    pub registry: Registry,
    /// Which servers answer.
    pub observations: watch::Receiver<Observations>,
    /// Cancelled: not ready any more.
    pub stopping: CancellationToken,
}

/// The routes.
pub fn routes(pages: Pages) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Arc::new(pages))
}

async fn ready(State(pages): State<Arc<Pages>>) -> impl IntoResponse {
    if pages.stopping.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n")
    } else {
        (StatusCode::OK, "ok\n")
    }
}

async fn metrics(State(pages): State<Arc<Pages>>) -> impl IntoResponse {
    let levels = levels(
        &pages.store.snapshot(),
        &pages.registry,
        &pages.observations.borrow(),
    );
    let text = pages.metrics.render(levels);
    ([(header::CONTENT_TYPE, OPEN_METRICS)], text)
}

fn levels(now: &Snapshot, registry: &Registry, observations: &Observations) -> Levels {
    let proxies = registry.proxies();
    let connected = || proxies.values().filter(|live| live.connected);
    let newest = Some(now.version());
    Levels {
        revision: now.head.revision,
        leader_term: now.head.leader_term,
        groups: now.groups.len(),
        servers: now.servers().count(),
        servers_unreachable: observations.values().filter(|o| o.outcome.is_err()).count(),
        slots_unowned: Slot::all()
            .filter(|slot| now.slots.owner(*slot).is_none())
            .count(),
        proxies_connected: connected().count(),
        proxies_behind: connected().filter(|live| live.acked < newest).count(),
    }
}
