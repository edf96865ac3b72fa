//! What a delivery pod has in its index, as a feed that the controller follows
//! by long polling.
//!
//! A pod numbers the changes of its index. The controller asks for what came
//! after the number that it has; the pod answers at once if there is something,
//! else when there is or after [`POLL_SECONDS_MAX`]. A pod that started anew has
//! another `instance`, and the controller begins again from nothing.

use serde::{Deserialize, Serialize};

use crate::api::Reason;

/// Longest time that a pod holds a poll without news.
pub const POLL_SECONDS_MAX: u64 = 25;
/// Entries in one page at most.
pub const PAGE_ENTRIES_MAX: usize = 2_000;

/// What the controller has already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FeedQuery {
    /// The instance that `after` belongs to; empty at first.
    #[serde(default)]
    pub instance: String,
    /// The revision up to which the controller has everything.
    #[serde(default)]
    pub after: u64,
}

/// The changes after a revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FeedPage {
    /// This start of the pod.
    pub instance: String,
    /// True if the query's instance was another one, or its revision is not
    /// known any more: forget everything, then apply `entries`.
    pub reset: bool,
    /// The pod has listed every kind at least once since it started.
    pub synced: bool,
    /// The revision of the last entry; ask again with it.
    pub revision: u64,
    /// More entries wait behind this page.
    pub more: bool,
    /// The newest state of each object that changed, oldest change first.
    pub entries: Vec<FeedEntry>,
}

/// The kinds that the index holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FeedKind {
    /// A Webhook.
    Webhook,
    /// A Subscription.
    Subscription,
}

/// The state of one object in the index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FeedEntry {
    /// Which kind.
    pub kind: FeedKind,
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// UID of the object: a namesake made later is another object.
    pub uid: String,
    /// The generation in the index; none if the object is not in it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// Why the index cannot use this generation. It then keeps none of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Counters of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// This start of the pod.
    pub instance: String,
    /// Revision of the index.
    pub revision: u64,
    /// Webhooks in the index.
    pub webhooks: u64,
    /// Subscriptions in the index.
    pub subscriptions: u64,
    /// Probes that were sent.
    pub probes: u64,
    /// Id of the pod's store, once it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_id: Option<String>,
    /// Why the pod does not open the store that it found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_problem: Option<StoreProblem>,
}

/// Why a pod does not open the store on its volume, until an admin helps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreProblem {
    /// Why, in one word.
    pub reason: Reason,
    /// What was found, and what to do, for the status of the DeliveryPool.
    pub message: String,
}
