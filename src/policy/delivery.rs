//! `Webhook.spec.delivery`, with its defaults filled in.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::api::webhook::{Dialect, WebhookSpec};

/// How a Webhook wants to be delivered to. The store keeps it in this form for
/// times without the API server: a new field needs a `serde(default)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliverySettings {
    /// Time that one attempt may take in all.
    pub timeout: Duration,
    /// When failed attempts are repeated.
    pub retry: RetryPlan,
    /// Random part of every interval, from 0 to 0.5.
    pub jitter: f64,
    /// How many requests may start in a period.
    pub rate: Option<Rate>,
    /// How many requests may run at once.
    pub concurrency: u16,
    /// Failures in a row that open the circuit; 0: it never opens.
    pub circuit_failures: u16,
    /// How long an event is owed.
    pub max_age: Duration,
    /// Status codes that are not worth a retry.
    pub dead_on: Vec<u16>,
    /// Deliveries with the same key go one after the other.
    pub is_ordered: bool,
    /// A dead Delivery blocks its key until it is replayed or dismissed.
    pub blocks_on_dead: bool,
    /// Cards at most.
    pub cards_max: u16,
    /// How long a card is kept.
    pub card_ttl: Duration,
}

/// When failed attempts are repeated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RetryPlan {
    /// After these intervals.
    Schedule(Vec<Duration>),
    /// After intervals that grow by a factor.
    Backoff {
        /// The first interval.
        initial: Duration,
        /// What each is multiplied by to give the next.
        factor: u32,
        /// The longest interval.
        max: Duration,
        /// Attempts in all, the first one included.
        attempts: u16,
    },
}

/// So many requests in a period.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Requests.
    pub requests: u32,
    /// The period.
    pub per: Duration,
}

impl DeliverySettings {
    /// The settings of a Webhook. What the schema would refuse is brought into
    /// its limits.
    pub fn compile(spec: &WebhookSpec) -> Self {
        let dialect = spec.effective_dialect();
        Self {
            timeout: Duration::from_secs(15),
            retry: RetryPlan::Schedule([60, 300, 900].map(Duration::from_secs).into()),
            jitter: 0.1,
            rate: None,
            concurrency: 8,
            circuit_failures: if dialect == Dialect::Analytics { 0 } else { 20 },
            max_age: Duration::from_secs(72 * 3600),
            dead_on: if dialect == Dialect::CloudEvents { vec![415] } else { Vec::new() },
            is_ordered: false,
            blocks_on_dead: false,
            cards_max: 100,
            card_ttl: Duration::from_secs(168 * 3600),
        }
    }
}
