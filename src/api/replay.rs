//! `Replay`: send Deliveries of a Webhook again.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, LabelSelectorRequirement, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{schema, subscription::WebhookRef};

/// Names in `deadLetters.names` at most.
pub const REPLAY_NAMES_MAX: usize = 500;
/// Ids in `events.ids` at most.
pub const REPLAY_IDS_MAX: usize = 500;

/// A Replay sends Deliveries of a Webhook again, with the same ids.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "posthorn.dev",
    version = "v1alpha1",
    kind = "Replay",
    namespaced,
    status = "ReplayStatus",
    shortname = "whreplay",
    category = "posthorn",
    derive = "PartialEq",
    doc = "A Replay sends Deliveries of a Webhook again, with the same ids: a receiver can tell what it has. It runs once for its namespace, name and spec: applied again after it was deleted, it shows the first run's counts unless runId is another one.",
    selectable = ".spec.webhookRef.name",
    printcolumn(name = "Webhook", type_ = "string", json_path = ".spec.webhookRef.name"),
    printcolumn(name = "Complete", type_ = "string", json_path = ".status.conditions[?(@.type==\"Complete\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Complete\")].reason"),
    printcolumn(name = "Matched", type_ = "integer", json_path = ".status.matched"),
    printcolumn(name = "Delivered", type_ = "integer", json_path = ".status.delivered"),
    printcolumn(name = "Dead", type_ = "integer", json_path = ".status.dead", description = "Given up again"),
    printcolumn(name = "Dry run", type_ = "boolean", priority = "1", json_path = ".spec.dryRun"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 63").message("metadata.name must be at most 63 characters")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.deadLetters), has(self.events), has(self.since)].filter(x, x).size() == 1").message("set exactly one of deadLetters, events and since: they say what is sent again"),
    validation = Rule::new("!has(self.until) || has(self.since)").message("until needs since: they are the two ends of a time").field_path(".until"),
    validation = Rule::new("!has(self.until) || !has(self.since) || self.since < self.until").message("since must be before until").field_path(".until"),
    validation = Rule::new("has(self.deadLetters) == has(oldSelf.deadLetters) && has(self.events) == has(oldSelf.events) && has(self.since) == has(oldSelf.since) && has(self.until) == has(oldSelf.until) && has(self.rate) == has(oldSelf.rate) && has(self.dryRun) == has(oldSelf.dryRun) && has(self.runId) == has(oldSelf.runId)").message("spec cannot be changed, but for cancel: make another Replay, or delete this one and apply it anew"),
    validation = Rule::new("!oldSelf.?cancel.orValue(false) || self.?cancel.orValue(false)").message("cancel cannot be taken back: make another Replay").field_path(".cancel")
)]
pub struct ReplaySpec {
    /// The Webhook that gets the events. It must be verified, else they are owed
    /// until it is.
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec cannot be changed, but for cancel: make another Replay, or delete this one and apply it anew"))]
    pub webhook_ref: WebhookRef,
    /// Deliveries that were given up. Set exactly one of `deadLetters`, `events`
    /// and `since`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec cannot be changed, but for cancel: make another Replay, or delete this one and apply it anew"))]
    pub dead_letters: Option<ReplayDeadLetters>,
    /// Events by their ids, whatever became of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec cannot be changed, but for cancel: make another Replay, or delete this one and apply it anew"))]
    pub events: Option<ReplayEvents>,
    /// Events accepted at this time or later that a present Subscription of the
    /// Webhook wants, as far as retention reaches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec cannot be changed, but for cancel: make another Replay, or delete this one and apply it anew"))]
    pub since: Option<Time>,
    /// Events accepted before this time. Default: when the Replay begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec cannot be changed, but for cancel: make another Replay, or delete this one and apply it anew"))]
    pub until: Option<Time>,
    /// Deliveries that are owed again a second at most, 1 to 10000. Default: no
    /// limit but those of the Webhook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec cannot be changed, but for cancel: make another Replay, or delete this one and apply it anew"))]
    pub rate: Option<i32>,
    /// Only count what would be sent. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec cannot be changed, but for cancel: make another Replay, or delete this one and apply it anew"))]
    pub dry_run: Option<bool>,
    /// Tells two runs of one name and spec apart: with another value it runs
    /// again after it was deleted and applied anew. Default: empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$')").message("runId must consist of letters, digits, '-', '_' and '.', beginning and ending with a letter or digit"),
        validation = Rule::new("self == oldSelf").message("spec cannot be changed, but for cancel: make another Replay, or delete this one and apply it anew")
    )]
    pub run_id: Option<String>,
    /// End the Replay: what is not owed again yet stays as it is. It cannot be
    /// taken back. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel: Option<bool>,
}

/// Deliveries that were given up.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.names), has(self.selector), has(self.all)].filter(x, x).size() == 1").message("set exactly one of names, selector and all"),
    validation = Rule::new("!has(self.all) || self.all").message("all must be true, or left out").field_path(".all")
)]
pub struct ReplayDeadLetters {
    /// Names of DeadLetters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 500), inner(length(min = 1, max = 253)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub names: Option<Vec<String>>,
    /// DeadLetters by their labels: posthorn.dev/reason, posthorn.dev/event-type,
    /// posthorn.dev/code. Only of those that have a card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<CardSelector>,
    /// Every Delivery of the Webhook that was given up, with or without a
    /// DeadLetter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all: Option<bool>,
}

/// A selector of labels; all of its parts must hold.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.matchLabels) || has(self.matchExpressions)").message("a selector has matchLabels or matchExpressions; for every DeadLetter write all: true"))]
pub struct CardSelector {
    /// Labels and their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "match_labels")]
    pub match_labels: BTreeMap<String, String>,
    /// Conditions on labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 8))]
    pub match_expressions: Vec<CardRequirement>,
}

/// A condition on a label.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(self.operator in ['In', 'NotIn']) == has(self.values)").message("In and NotIn need values; Exists and DoesNotExist have none"))]
pub struct CardRequirement {
    /// The label.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// How its value is compared.
    pub operator: CardOperator,
    /// The values of In and NotIn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(length(max = 63)))]
    pub values: Vec<String>,
}

/// How the value of a label is compared.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CardOperator {
    /// It is one of the values.
    In,
    /// It is none of the values, or there is no such label.
    NotIn,
    /// There is such a label.
    Exists,
    /// There is no such label.
    DoesNotExist,
}

/// Events by their ids.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ReplayEvents {
    /// The ids, as `evt_01K5…`.
    #[schemars(length(min = 1, max = 500), inner(length(min = 30, max = 30)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(id, id.matches('^evt_[0-7][0-9A-HJKMNP-TV-Z]{25}$'))").message("every entry of ids must be the id of an event: evt_ and 26 characters of 0-9 and A-Z")
    )]
    pub ids: Vec<String>,
}

fn match_labels(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "minProperties": 1,
        "maxProperties": 8,
        "additionalProperties": { "type": "string", "maxLength": 63 }
    })
}

/// For the matching that every client of Kubernetes has.
impl From<&CardSelector> for LabelSelector {
    fn from(selector: &CardSelector) -> Self {
        let CardSelector { match_labels, match_expressions } = selector;
        let requirement = |requirement: &CardRequirement| LabelSelectorRequirement {
            key: requirement.key.clone(),
            operator: requirement.operator.as_str().to_owned(),
            values: Some(requirement.values.clone()).filter(|values| !values.is_empty()),
        };
        Self {
            match_labels: Some(match_labels.clone()).filter(|labels| !labels.is_empty()),
            match_expressions: Some(match_expressions.iter().map(requirement).collect::<Vec<_>>())
                .filter(|expressions| !expressions.is_empty()),
        }
    }
}

impl CardOperator {
    /// The text in `operator`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::In => "In",
            Self::NotIn => "NotIn",
            Self::Exists => "Exists",
            Self::DoesNotExist => "DoesNotExist",
        }
    }
}

impl ReplaySpec {
    /// Whether it only counts.
    pub fn is_dry_run(&self) -> bool {
        self.dry_run.unwrap_or(false)
    }

    /// Whether it shall end.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.unwrap_or(false)
    }
}

/// How a Replay stands. Written by the delivery pods alone.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ReplayStatus {
    /// The generation of the spec that this status speaks of; -1 until a
    /// delivery pod has seen the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Complete: True when everything that matched has ended, or the Replay was
    /// cancelled or ran before; Reconciling and Stalled as kstatus reads them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// Deliveries that matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub matched: Option<i64>,
    /// Of them: owed again. What was owed already is matched and left as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub reopened: Option<i64>,
    /// Of the re-opened: delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub delivered: Option<i64>,
    /// Of the re-opened: given up again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub dead: Option<i64>,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub start_time: Option<Time>,
    /// When everything that matched had ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub completion_time: Option<Time>,
}

#[cfg(test)]
mod tests {
    use kube::core::{Selector, SelectorExt};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_selector_matches_as_every_label_selector_does() {
        let selector: CardSelector = serde_json::from_value(json!({
            "matchLabels": { "posthorn.dev/reason": "Exhausted" },
            "matchExpressions": [{ "key": "posthorn.dev/code", "operator": "NotIn", "values": ["404"] }],
        }))
        .unwrap();
        let selector = Selector::try_from(LabelSelector::from(&selector)).unwrap();
        let matches = |reason: &str, code: &str| {
            let labels = [("posthorn.dev/reason", reason), ("posthorn.dev/code", code)];
            selector.matches(&labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
        };
        assert!(matches("Exhausted", "503"));
        assert!(!matches("Exhausted", "404"));
        assert!(!matches("DeadOn", "503"));
    }
}
