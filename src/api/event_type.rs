//! `EventType`: an entry of the catalogue of event types.
//!
//! It documents; nothing is matched or checked by it, and types without an entry
//! are accepted.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::schema;

/// An EventType describes a type of events in the catalogue of its namespace.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "posthorn.dev",
    version = "v1alpha1",
    kind = "EventType",
    namespaced,
    status = "EventTypeStatus",
    shortname = "whtype",
    category = "posthorn",
    derive = "PartialEq",
    doc = "An EventType describes a type of events in the catalogue of its namespace. It documents: events of types without one are accepted as well.",
    selectable = ".spec.type",
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Category", type_ = "string", json_path = ".spec.category"),
    printcolumn(name = "Description", type_ = "string", priority = "1", json_path = ".spec.description"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct EventTypeSpec {
    /// The type, as events bear it, such as `order.paid`. It cannot be changed.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(
        validation = Rule::new("!self.matches('[\\\\x00-\\\\x1f\\\\x7f]') && self == self.trim()").message("type must not have control characters, nor spaces at its ends"),
        validation = Rule::new("!self.startsWith('posthorn.')").message("types that begin with 'posthorn.' are those of Posthorn itself: choose another name"),
        validation = Rule::new("self == oldSelf").message("type cannot be changed: make another EventType")
    )]
    pub type_: String,
    /// What it belongs to, such as `Orders`: the catalogue is grouped by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub category: Option<String>,
    /// When such an event is published and what it means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub description: Option<String>,
    /// The data of such an event, any JSON value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::any_json")]
    pub example: Option<Value>,
}

/// What the controller knows about an EventType. Written by the controller alone.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct EventTypeStatus {
    /// The generation of the spec that this status speaks of; -1 until the
    /// controller has seen the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Accepted; Stalled as kstatus reads it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}
