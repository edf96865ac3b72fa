//! `Subscription`: which events a Webhook gets.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::schema;

/// A Subscription joins event types to a Webhook of the same namespace.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "posthorn.dev",
    version = "v1alpha1",
    kind = "Subscription",
    namespaced,
    status = "SubscriptionStatus",
    shortname = "whsub",
    category = "posthorn",
    derive = "PartialEq",
    doc = "A Subscription joins event types to a Webhook of the same namespace.",
    selectable = ".spec.webhookRef.name",
    printcolumn(name = "Webhook", type_ = "string", json_path = ".spec.webhookRef.name"),
    printcolumn(name = "Events", type_ = "string", priority = "1", json_path = ".spec.events"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 63").message("metadata.name must be at most 63 characters: it becomes a label value")
)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionSpec {
    /// The Webhook that gets the events.
    pub webhook_ref: WebhookRef,
    /// The types of events: exact (`order.paid`), by prefix (`order.*`) or all
    /// (`*`, which does not include `posthorn.*`). The empty list means none.
    #[schemars(length(max = 100), inner(length(min = 1, max = 253)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(e, e == '*' || e.matches('^[A-Za-z0-9_-]+([.][A-Za-z0-9_-]+)*([.][*])?$'))").message("every entry of events must be '*', an event type such as 'order.paid', or a prefix such as 'order.*'")
    )]
    pub events: Vec<String>,
    /// Only events with exactly this `source`. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub source: Option<String>,
    /// From when on events are owed: `Verification` (accepted since the endpoint
    /// was verified), `Now` (since this object was created), `Earliest` (as far
    /// as retention reaches) or a time in RFC 3339. Default: Verification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 40))]
    #[x_kube(validation = Rule::new("self in ['Verification', 'Now', 'Earliest'] || self.matches('^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$')").message("start must be Verification, Now, Earliest or a time such as 2026-11-23T12:00:00Z"))]
    pub start: Option<String>,
    /// Match no new events until it is false again. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
}

/// A Webhook of the same namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct WebhookRef {
    /// Name of the Webhook.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')").message("name must be the name of a Webhook of this namespace"))]
    pub name: String,
}

/// What the controller knows about a Subscription. Written by the controller alone.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionStatus {
    /// The generation of the spec that this status speaks of; -1 until the
    /// controller has seen the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Accepted, WebhookFound, WebhookVerified, Programmed; Reconciling
    /// and Stalled as kstatus reads them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}
