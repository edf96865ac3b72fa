//! `DeadLetter`: the card of a Delivery that was given up.
//!
//! A card only shows; the truth is in the store, so the number of cards is
//! capped and a card may be missing. It has a `spec` and no status: the delivery
//! pod that alone writes it needs one request for it, and a card is as it is,
//! nothing about it has to be reached. No payload, and of what the endpoint
//! answered only the status code.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{schema, subscription::WebhookRef};

/// Bytes of a card as JSON at most, metadata included.
pub const CARD_BYTES_MAX: usize = 4 * 1024;
/// Bytes of `error` at most.
pub const CARD_ERROR_BYTES_MAX: usize = 256;
/// Bytes of `event.type` at most.
pub const CARD_TYPE_BYTES_MAX: usize = 253;
/// Bytes of `event.source` and of `event.givenId` at most: publishers may give
/// longer ones, a card shows their beginning.
pub const CARD_TEXT_BYTES_MAX: usize = 200;
/// Label of a card: its reason.
pub const CARD_REASON_LABEL: &str = "posthorn.dev/reason";
/// Label of a card: the type of its event, if it can be the value of a label.
pub const CARD_EVENT_TYPE_LABEL: &str = "posthorn.dev/event-type";
/// Label of a card: the last status code, if there was an answer.
pub const CARD_CODE_LABEL: &str = "posthorn.dev/code";

/// A DeadLetter shows a Delivery that Posthorn gave up: which event, which
/// Webhook, and why. Deleting it discards the Delivery; a Replay sends it again.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "posthorn.dev",
    version = "v1alpha1",
    kind = "DeadLetter",
    namespaced,
    shortname = "whdl",
    category = "posthorn",
    derive = "PartialEq",
    doc = "A DeadLetter shows a Delivery that Posthorn gave up: which event, which Webhook, and why. Deleting it discards the Delivery; a Replay sends it again. Written by delivery pods alone, and capped: the store has them all.",
    selectable = ".spec.webhookRef.name",
    selectable = ".spec.reason",
    printcolumn(name = "Webhook", type_ = "string", json_path = ".spec.webhookRef.name"),
    printcolumn(name = "Event type", type_ = "string", json_path = ".spec.event.type"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".spec.reason"),
    printcolumn(
        name = "Code",
        type_ = "integer",
        json_path = ".spec.lastStatusCode",
        description = "Status code of the last answer"
    ),
    printcolumn(name = "Attempts", type_ = "integer", json_path = ".spec.attempts"),
    printcolumn(name = "Event", type_ = "string", priority = "1", json_path = ".spec.event.id"),
    printcolumn(name = "Error", type_ = "string", priority = "1", json_path = ".spec.error"),
    printcolumn(name = "Age", type_ = "date", json_path = ".spec.lastTime", description = "When it was given up")
)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetterSpec {
    /// The Webhook that the event was owed to.
    pub webhook_ref: WebhookRef,
    /// The event; absent if it is damaged on disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<DeadEvent>,
    /// Why the Delivery was given up.
    pub reason: DeadLetterReason,
    /// Status code of the last answer; absent if none came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 599))]
    pub last_status_code: Option<i32>,
    /// Why the last attempt failed; never what the endpoint sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub error: Option<String>,
    /// Attempts that were made.
    #[schemars(range(min = 0))]
    pub attempts: i32,
    /// Since when the event was owed.
    #[schemars(schema_with = "schema::time")]
    pub first_time: Time,
    /// When the Delivery was given up.
    #[schemars(schema_with = "schema::time")]
    pub last_time: Time,
}

/// An event, without its data.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DeadEvent {
    /// Its id, the same in every attempt and in a replay: `evt_…`.
    #[schemars(length(max = 30))]
    pub id: String,
    /// Its type; of a longer one the first 253 bytes.
    #[serde(rename = "type")]
    #[schemars(length(max = 253))]
    pub type_: String,
    /// Its source; of a longer one the first 200 bytes.
    #[schemars(length(max = 200))]
    pub source: String,
    /// The id that the publisher gave, if any; of a longer one the first 200 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 200))]
    pub given_id: Option<String>,
    /// When it was accepted.
    #[schemars(schema_with = "schema::time")]
    pub time: Time,
    /// Bytes of its data.
    #[schemars(range(min = 0))]
    pub size: i64,
    /// SHA-256 of its data, in hexadecimal.
    #[schemars(length(max = 64))]
    pub sha256: String,
}

/// Why a Delivery was given up.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeadLetterReason {
    /// Every attempt of the schedule failed.
    Exhausted,
    /// The answer is one of `delivery.deadOn`.
    DeadOn,
    /// Owed for longer than `delivery.maxAge`.
    Expired,
    /// The backlog of the Webhook was full.
    BacklogFull,
    /// The event was damaged on disk.
    Corrupt,
    /// The event cannot be brought into the form that the Webhook wants.
    Unrenderable,
}

impl DeadLetterReason {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Exhausted, Self::DeadOn, Self::Expired, Self::BacklogFull, Self::Corrupt, Self::Unrenderable];

    /// The word in `reason`; [`super::Reason`] explains it under the same word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "Exhausted",
            Self::DeadOn => "DeadOn",
            Self::Expired => "Expired",
            Self::BacklogFull => "BacklogFull",
            Self::Corrupt => "Corrupt",
            Self::Unrenderable => "Unrenderable",
        }
    }
}

/// A text fit for a card: control characters become spaces, and of more than
/// `bytes_max` bytes the beginning stays.
pub fn clean(text: &str, bytes_max: usize) -> String {
    let mut clean = String::with_capacity(text.len().min(bytes_max));
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if clean.len() + c.len_utf8() > bytes_max {
            break;
        }
        clean.push(c);
    }
    clean
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::api::{DeadLetter, Reason, WEBHOOK_LABEL};

    #[test]
    fn texts_are_cut_between_characters_and_lose_control_characters() {
        assert_eq!(clean("a\r\n\u{1b}[2Jb", 256), "a   [2Jb");
        assert_eq!(clean("ééé", 5), "éé");
        assert_eq!(clean(&"x".repeat(256), 256).len(), 256);
        assert_eq!(clean(&"x".repeat(257), 256).len(), 256);
    }

    #[test]
    fn the_fullest_card_keeps_to_its_limit() {
        // JSON makes two bytes of it. What it makes six of are control characters,
        // which `clean` takes out.
        let longest = "\"".repeat(CARD_TEXT_BYTES_MAX);
        let time = || Time(Timestamp::from_second(1_795_000_000).unwrap());
        let spec = DeadLetterSpec {
            webhook_ref: WebhookRef { name: "w".repeat(63) },
            event: Some(DeadEvent {
                id: "e".repeat(30),
                type_: "\"".repeat(CARD_TYPE_BYTES_MAX),
                source: longest.clone(),
                given_id: Some(longest.clone()),
                time: time(),
                size: 1 << 20,
                sha256: "0".repeat(64),
            }),
            reason: DeadLetterReason::Unrenderable,
            last_status_code: Some(599),
            error: Some("\"".repeat(CARD_ERROR_BYTES_MAX)),
            attempts: 100,
            first_time: time(),
            last_time: time(),
        };
        let mut card = DeadLetter::new(&"n".repeat(100), spec);
        card.metadata.namespace = Some("n".repeat(63));
        let labels = [WEBHOOK_LABEL, CARD_REASON_LABEL, CARD_EVENT_TYPE_LABEL, CARD_CODE_LABEL];
        card.metadata.labels = Some(labels.map(|name| (name.to_owned(), "v".repeat(63))).into());
        let bytes = serde_json::to_vec(&card).unwrap().len();
        // The API server adds UID, times and managed fields: less than 1 KiB.
        assert!(bytes + 1024 <= CARD_BYTES_MAX, "{bytes}");
    }

    #[test]
    fn every_reason_of_a_card_is_explained() {
        for reason in DeadLetterReason::ALL {
            assert!(Reason::ALL.iter().any(|r| r.as_str() == reason.as_str()), "{reason:?}");
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
    }
}
