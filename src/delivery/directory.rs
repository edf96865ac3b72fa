//! Who is who: from the numbers of the store to Webhooks and back.

use std::sync::Arc;

use crate::{policy::delivery::DeliverySettings, store::HookId};

/// A Webhook behind a number of the store.
#[derive(Clone, Debug)]
pub struct HookInfo {
    /// Its number.
    pub id: HookId,
    /// Name of its namespace.
    pub namespace: Arc<str>,
    /// UID of its namespace.
    pub namespace_uid: Arc<str>,
    /// Name of the Webhook.
    pub name: Arc<str>,
    /// UID of the Webhook.
    pub uid: Arc<str>,
    /// How it wants to be delivered to.
    pub settings: Arc<DeliverySettings>,
}

/// Knows every Webhook that the pod holds.
pub trait Directory: Send + Sync {
    /// By its number; none if it is gone.
    fn hook(&self, id: HookId) -> Option<HookInfo>;

    /// By its name.
    fn find(&self, namespace: &str, name: &str) -> Option<HookInfo>;
}
