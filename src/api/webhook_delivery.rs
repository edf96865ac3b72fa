//! `Webhook.spec.delivery` and `.deadLetter`: time-outs, retries and limits; and
//! `Webhook.status.delivery`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{duration::Gep2257Duration, schema};

/// Time-outs, retries and limits of deliveries to an endpoint.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.onDead) || self.onDead != 'Block' || (has(self.order) && self.order == 'Key')").message("onDead Block needs order Key: without an order nothing waits behind a dead Delivery").field_path(".onDead"))]
pub struct DeliveryPolicy {
    /// Time that one attempt may take in all, the body of the answer included,
    /// 1s to 30s. Default: 15s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('30s')").message("timeout must be from 1s to 30s"))]
    pub timeout: Option<Gep2257Duration>,
    /// When failed attempts are repeated. Default: schedule [1m, 5m, 15m].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Random part of every retry interval, in percent, 0 to 50. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 50))]
    pub jitter_percent: Option<i32>,
    /// How many requests may start in a period. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// How many requests may run at once, 1 to 64. Default: 8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub concurrency: Option<i32>,
    /// In which order events are sent: `None`, or `Key`: events with the same
    /// key one after the other, in the order in which they were accepted. The
    /// publisher gives the key (`key`, or `partitionkey` of a CloudEvent); events
    /// without one are not ordered. Default: None.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<DeliveryOrder>,
    /// What a Delivery that is given up means for those behind it with the same
    /// key: `Continue` sends them, `Block` holds them until it is replayed or
    /// discarded. Default: Continue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_dead: Option<OnDead>,
    /// When sending pauses because the endpoint is down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit: Option<Circuit>,
    /// How long an event is owed before it is given up, 1m to 720h.
    /// Default: 72h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('720h')").message("maxAge must be from 1m to 720h"))]
    pub max_age: Option<Gep2257Duration>,
    /// Status codes of answers that are not worth a retry. Default: none
    /// (CloudEvents: 415).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(range(min = 300, max = 599)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub dead_on: Vec<i32>,
}

/// In which order events are sent.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum DeliveryOrder {
    /// As they come; retries do not hold others up.
    #[default]
    None,
    /// Events with the same key one after the other.
    Key,
}

/// What a Delivery that is given up means for those behind it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum OnDead {
    /// They are sent.
    #[default]
    Continue,
    /// They wait until it is replayed or discarded.
    Block,
}

/// When failed attempts are repeated.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.schedule) != has(self.backoff)").message("set exactly one of schedule and backoff"))]
pub struct Retry {
    /// The intervals before the second, third, … attempt, 100ms to 24h each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("self.all(d, duration(d) >= duration('100ms') && duration(d) <= duration('24h'))").message("every interval of schedule must be from 100ms to 24h"))]
    pub schedule: Option<Vec<Gep2257Duration>>,
    /// Intervals that grow by a factor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
}

/// Intervals that grow by a factor.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.initial) <= duration(self.max)").message("initial must not be longer than max"))]
pub struct Backoff {
    /// The first interval, 100ms to 24h.
    #[x_kube(validation = Rule::new("duration(self) >= duration('100ms') && duration(self) <= duration('24h')").message("initial must be from 100ms to 24h"))]
    pub initial: Gep2257Duration,
    /// What each interval is multiplied by to give the next, 1 to 10. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10))]
    pub factor: Option<i32>,
    /// The longest interval, 100ms to 24h.
    #[x_kube(validation = Rule::new("duration(self) >= duration('100ms') && duration(self) <= duration('24h')").message("max must be from 100ms to 24h"))]
    pub max: Gep2257Duration,
    /// Attempts in all, the first one included, 1 to 100.
    #[schemars(range(min = 1, max = 100))]
    pub attempts: i32,
}

/// How many requests may start in a period.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// Requests per period.
    #[schemars(range(min = 1, max = 100000))]
    pub rate: i32,
    /// The period, 1s to 1h.
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('1h')").message("per must be from 1s to 1h"))]
    pub per: Gep2257Duration,
}

/// When sending pauses because the endpoint is down.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Circuit {
    /// Failures in a row after which sending pauses; 0 switches it off.
    /// Default: 20 (Analytics: 0).
    #[schemars(range(min = 0, max = 1000))]
    pub failures: i32,
}

/// How many DeadLetter cards are kept for a Webhook, and how long.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetterPolicy {
    /// Cards at most, 0 to 100. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub limit: Option<i32>,
    /// How long a card is kept, 1m to 720h. Default: 168h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('720h')").message("ttl must be from 1m to 720h"))]
    pub ttl: Option<Gep2257Duration>,
}

/// What became of the events for a Webhook. Coarse: written at most every 15
/// seconds, and less often where many Webhooks have traffic. Metrics are exact.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryStatus {
    /// Deliveries that were delivered since the Webhook is known.
    #[schemars(range(min = 0))]
    pub delivered: i64,
    /// Attempts that failed since the Webhook is known.
    #[schemars(range(min = 0))]
    pub failed: i64,
    /// Deliveries that are owed.
    #[schemars(range(min = 0))]
    pub pending: i64,
    /// Deliveries that were given up and neither replayed nor discarded, with or
    /// without a DeadLetter.
    #[schemars(range(min = 0))]
    pub dead_letters: i64,
    /// When the last attempt was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub last_time: Option<Time>,
    /// Status code of its answer; absent if none came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 599))]
    pub last_status_code: Option<i32>,
}
