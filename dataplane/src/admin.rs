//! The admin HTTP: is it alive, is it ready, what does it count, what does it route by.

use std::{net::TcpListener, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use proto::{Topology, Version, v1};
use tokio::{sync::watch, time::Instant};

/// What the pages show.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) registry: Arc<Registry>,
    pub(crate) topology: watch::Receiver<Option<Arc<Topology>>>,
    /// What all workers route by.
    pub(crate) switched: watch::Receiver<Option<Version>>,
    pub(crate) drain: watch::Receiver<Option<Instant>>,
}

impl Admin {
    /// Serves until the task is dropped.
    pub(crate) async fn run(self, listener: TcpListener) -> std::io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let routes = Router::new()
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .route("/topology", get(topology))
            .with_state(self);
        axum::serve(listener, routes).await
    }
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let (status, text) = if admin.drain.borrow().is_some() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else if admin.switched.borrow().is_none() {
        (StatusCode::SERVICE_UNAVAILABLE, "no topology yet\n")
    } else {
        (StatusCode::OK, "ok\n")
    };
    (status, text).into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &admin.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}

async fn topology(State(admin): State<Admin>) -> Response {
    let newest = admin.topology.borrow().clone();
    match newest {
        Some(topology) => Json(v1::Topology::from(&*topology)).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "no topology yet\n").into_response(),
    }
}
