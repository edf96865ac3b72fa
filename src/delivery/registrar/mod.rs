//! Brings the index into the store: which Webhooks and Subscriptions there are,
//! and from when on their events are owed.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    dispatch::HookView,
    routing::index::SharedIndex,
    store::{HookId, Partition, StoreError},
    verify::fingerprint::FingerprintKey,
};

/// Who is told of Webhooks: the dispatcher.
pub trait Hooks: Send + Sync {
    /// A Webhook is known, or changed. `notes` and `has_backlog` count only if
    /// the hook is not known yet: whoever sends knows better afterwards.
    fn set_hook(&self, view: HookView);

    /// Nothing is owed to a hook any more, and nothing will be: forget it.
    fn remove_hook(&self, hook: HookId);
}

/// The task that brings the index into a partition of the store.
pub struct Registrar {
    index: Arc<SharedIndex>,
    partition: Arc<dyn Partition>,
    hooks: Arc<dyn Hooks>,
    key: watch::Receiver<Option<FingerprintKey>>,
}

impl Registrar {
    /// A registrar that has done nothing yet. Without a key no verification is
    /// believed.
    pub fn new(
        index: Arc<SharedIndex>,
        partition: Arc<dyn Partition>,
        hooks: Arc<dyn Hooks>,
        key: watch::Receiver<Option<FingerprintKey>>,
    ) -> Self {
        Self { index, partition, hooks, key }
    }

    /// Works for ever; drop the future to end.
    ///
    /// # Errors
    /// The store failed, or the partition is another process's now. Nothing
    /// is told to the controller any more.
    pub async fn run(self) -> Result<(), StoreError> {
        let Self { index: _, partition, hooks: _, key: _ } = self;
        partition.known().await?;
        std::future::pending().await
    }
}
