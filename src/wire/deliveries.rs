//! What a delivery pod tells the controller of its Deliveries, for the status of
//! Webhooks: counters, health, withdrawals. Followed by polling, coarse.
//!
//! A pod numbers the changes and answers at once with what came after `after`,
//! each Webhook at most once, as it is now. To a query of another `instance`, or
//! with a revision that it does not know any more, it tells everything from the
//! beginning. A Webhook that was never sent anything and is owed nothing need
//! not be told; one that is gone is not told any more.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};

use crate::api::Reason;

/// Entries in one page at most.
pub const DELIVERIES_PAGE_MAX: usize = 1_000;

/// What the controller has already.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeliveriesQuery {
    /// The start of the pod that `after` belongs to; empty at first.
    #[serde(default)]
    pub instance: String,
    /// The revision up to which the controller has everything.
    #[serde(default)]
    pub after: u64,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveriesPage {
    /// This start of the pod.
    pub instance: String,
    /// Ask again with this.
    pub revision: u64,
    /// More wait behind this page.
    pub more: bool,
    /// The newest state of each Webhook that changed.
    pub entries: Vec<DeliveriesEntry>,
}

/// The Deliveries of one Webhook.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveriesEntry {
    /// Namespace of the Webhook.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Deliveries that were delivered.
    pub delivered: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Deliveries that are owed.
    pub pending: u64,
    /// Deliveries that were given up and not dismissed, with or without a card.
    pub dead_letters: u64,
    /// Of them: those without a card for want of room.
    pub overflow: u64,
    /// When the last attempt was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_time: Option<Time>,
    /// The status code of its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_status_code: Option<u16>,
    /// How the endpoint does.
    pub health: DeliveriesHealth,
    /// The endpoint said 410 at this time: it wants no events any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_since: Option<Time>,
}

/// How an endpoint does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DeliveriesHealth {
    /// Nothing was sent yet.
    Unknown,
    /// It takes what it is sent.
    Healthy,
    /// It does not, or nothing can be sent to it.
    Failing {
        /// Why, in one word.
        reason: Reason,
        /// Why, in a sentence for the status. Holds no secret, no path, no
        /// address, and nothing that the endpoint chose.
        message: String,
        /// Since when.
        since: Time,
    },
}
