//! What every role serves on [`crate::wire::HEALTH_PORT`]: `/healthz` (the
//! process runs), `/readyz` (it is ready, or what is not) and `/metrics`.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    connections::{self, ServerOptions, Transport},
    health::Health,
    metrics::{MetricsRegistry, OPENMETRICS_CONTENT_TYPE},
};

/// Connections at a time: the kubelet, some scrapers, people.
const CONNECTIONS_MAX: usize = 64;
/// Time for a scrape under way to end.
const GRACE: Duration = Duration::from_secs(1);

/// Serves health and metrics until `shutdown`. Cancel that token last, so that
/// `/readyz` can say "shutting down" and the last counts can be scraped.
pub async fn serve(listener: TcpListener, health: Health, metrics: MetricsRegistry, shutdown: CancellationToken) {
    let options = ServerOptions { transport: Transport::Plain, connections_max: CONNECTIONS_MAX, grace: GRACE };
    connections::serve(listener, router(health, metrics), options, shutdown).await;
}

fn router(health: Health, metrics: MetricsRegistry) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz).with_state(health))
        .route("/metrics", get(scrape).with_state(Arc::new(metrics)))
}

async fn readyz(State(health): State<Health>) -> Response {
    match health.unready() {
        None => "ok\n".into_response(),
        Some(what) => (StatusCode::SERVICE_UNAVAILABLE, what).into_response(),
    }
}

async fn scrape(State(metrics): State<Arc<MetricsRegistry>>) -> Response {
    match metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS_CONTENT_TYPE)], text).into_response(),
        Err(_fmt) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
