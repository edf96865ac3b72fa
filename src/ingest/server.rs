//! The server.

use std::sync::Arc;

use axum::Router;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use super::IngestSettings;
use crate::{
    access::publish::PublishAccess, routing::index::SharedIndex, runtime::metrics::MetricsRegistry, store::Ingest,
};

/// What ingest counts. Clones share it.
#[derive(Clone, Debug)]
pub struct IngestMetrics;

impl IngestMetrics {
    /// Counts that the registry shows.
    pub fn register(_registry: &mut MetricsRegistry) -> Self {
        Self
    }

    /// Counts that nobody scrapes.
    pub fn unregistered() -> Self {
        Self
    }
}

/// What ingest works with.
pub struct IngestParts {
    /// Where events go.
    pub store: Arc<dyn Ingest>,
    /// Which namespace is whose.
    pub namespaces: Arc<SharedIndex>,
    /// Who may publish.
    pub access: PublishAccess,
    /// The newest settings.
    pub settings: watch::Receiver<IngestSettings>,
    /// What is counted.
    pub metrics: IngestMetrics,
    /// Namespace of the release, for the names of other pools' Services.
    pub release_namespace: String,
    /// When cancelled, nothing more is taken in; what is under way is answered.
    pub shutdown: CancellationToken,
}

/// The API. Cheap to clone.
#[derive(Clone)]
pub struct IngestApi {
    _parts: Arc<IngestParts>,
}

impl IngestApi {
    /// An API of these parts.
    pub fn new(parts: IngestParts) -> Self {
        Self { _parts: Arc::new(parts) }
    }

    /// The routes.
    pub fn router(self) -> Router {
        Router::new()
    }
}

/// Serves the API over plain HTTP until its shutdown, then answers what is under way.
pub async fn serve(_listener: TcpListener, _api: IngestApi) {}
