//! What stands on a card. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::api::ObjectMeta;
use sha2::{Digest, Sha256};

use crate::{
    api::{
        DeadLetter, DeadLetterReason, DeadLetterSpec, POOL_LABEL, WEBHOOK_LABEL,
        dead_letter::{
            CARD_CODE_LABEL, CARD_ERROR_BYTES_MAX, CARD_EVENT_TYPE_LABEL, CARD_REASON_LABEL, CARD_TEXT_BYTES_MAX,
            CARD_TYPE_BYTES_MAX, DeadEvent, clean,
        },
        subscription::WebhookRef,
    },
    delivery::directory::HookInfo,
    dialect::sign::hex,
    event::Pos,
    store::{DeadReason, DeadRow, EventSummary},
};

/// Bytes of a hash in a card's name: enough that no two of a Webhook meet.
const NAME_HASH_BYTES: usize = 8;
/// Longest value of a label.
const LABEL_BYTES_MAX: usize = 63;

/// The name of a Delivery's card: the same whenever it is computed.
pub(super) fn name(store_id: &str, hook: &HookInfo, pos: Pos) -> String {
    let mut hash = Sha256::new();
    for part in [store_id, &hook.namespace_uid, &hook.name] {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    hash.update(pos.0.to_be_bytes());
    format!("{}-{}", hook.name, hex(&hash.finalize()[..NAME_HASH_BYTES]))
}

/// The labels of a card, by which a Replay can select.
pub(super) fn labels(row: &DeadRow, hook: &HookInfo, pool: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        (POOL_LABEL.to_owned(), pool.to_owned()),
        (WEBHOOK_LABEL.to_owned(), hook.name.to_string()),
        (CARD_REASON_LABEL.to_owned(), row.reason.as_str().to_owned()),
    ]);
    if let Some(event) = row.event.as_ref().filter(|event| is_label_value(&event.event_type)) {
        labels.insert(CARD_EVENT_TYPE_LABEL.to_owned(), event.event_type.to_string());
    }
    if let Some(code) = row.code {
        labels.insert(CARD_CODE_LABEL.to_owned(), code.to_string());
    }
    labels
}

fn is_label_value(text: &str) -> bool {
    let is_end = |c: char| c.is_ascii_alphanumeric();
    text.len() <= LABEL_BYTES_MAX
        && text.starts_with(is_end)
        && text.ends_with(is_end)
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// The card of a dead Delivery.
pub(super) fn build(row: &DeadRow, hook: &HookInfo, pool: &str, store_id: &str) -> DeadLetter {
    let spec = DeadLetterSpec {
        webhook_ref: WebhookRef { name: hook.name.to_string() },
        event: row.event.as_ref().map(event),
        reason: reason(row.reason),
        last_status_code: row.code.map(i32::from),
        error: row.error.as_deref().map(|text| clean(text, CARD_ERROR_BYTES_MAX)),
        attempts: i32::from(row.tries),
        first_time: time(row.first_ms),
        last_time: time(row.last_ms),
    };
    let metadata = ObjectMeta {
        name: Some(name(store_id, hook, row.pos)),
        namespace: Some(hook.namespace.to_string()),
        labels: Some(labels(row, hook, pool)),
        ..ObjectMeta::default()
    };
    DeadLetter { metadata, spec }
}

fn event(event: &EventSummary) -> DeadEvent {
    DeadEvent {
        id: event.id.to_string(),
        type_: clean(&event.event_type, CARD_TYPE_BYTES_MAX),
        source: clean(&event.source, CARD_TEXT_BYTES_MAX),
        given_id: event.given_id.as_deref().map(|id| clean(id, CARD_TEXT_BYTES_MAX)),
        time: Time(event.accepted),
        size: i64::try_from(event.data_bytes).unwrap_or(i64::MAX),
        sha256: hex(&event.data_sha256),
    }
}

const fn reason(reason: DeadReason) -> DeadLetterReason {
    match reason {
        DeadReason::Exhausted => DeadLetterReason::Exhausted,
        DeadReason::DeadOn => DeadLetterReason::DeadOn,
        DeadReason::Expired => DeadLetterReason::Expired,
        DeadReason::BacklogFull => DeadLetterReason::BacklogFull,
        DeadReason::Corrupt => DeadLetterReason::Corrupt,
        DeadReason::Unrenderable => DeadLetterReason::Unrenderable,
    }
}

/// A time outside of what a Timestamp holds is shown as 1970: the store is not
/// trusted to be undamaged.
fn time(milliseconds: i64) -> Time {
    Time(Timestamp::from_millisecond(milliseconds).unwrap_or_default())
}

#[cfg(test)]
pub(in crate::delivery) mod tests {
    use super::*;
    use crate::{
        api::webhook::WebhookSpec,
        event::{EventId, StoreTime},
        policy::delivery::DeliverySettings,
        store::{CardState, HookId},
    };

    pub(in crate::delivery) fn hook(id: i64, name: &str) -> HookInfo {
        let spec: WebhookSpec = serde_json::from_value(serde_json::json!({ "url": "https://a.example/" })).unwrap();
        HookInfo {
            id: HookId(id),
            namespace: "shop".into(),
            namespace_uid: "uid-shop".into(),
            name: name.into(),
            uid: format!("uid-{name}").into(),
            settings: DeliverySettings::compile(&spec).into(),
        }
    }

    pub(in crate::delivery) fn row(hook: i64, pos: u64) -> DeadRow {
        DeadRow {
            hook: HookId(hook),
            pos: Pos(pos),
            event: Some(EventSummary {
                id: EventId { time_ms: 1_795_000_000_000, epoch: 1, partition: 0, pos: Pos(pos) },
                event_type: "order.paid".into(),
                given_id: None,
                source: "/shop".into(),
                accepted: Timestamp::from_second(1_795_000_000).unwrap(),
                data_bytes: 12,
                data_sha256: [0xab; 32],
            }),
            reason: DeadReason::Exhausted,
            code: Some(503),
            error: Some("UnexpectedStatus".into()),
            tries: 4,
            first_ms: 1_795_000_000_000,
            last_ms: 1_795_000_900_000,
            at: StoreTime(1_795_000_900_000),
            card: CardState::Wanted,
        }
    }

    #[test]
    fn a_card_says_which_event_was_given_up_and_why() {
        let card = build(&row(1, 42), &hook(1, "orders"), "default", "store-a");
        let spec = serde_json::to_value(&card.spec).unwrap();
        assert_eq!(spec["webhookRef"]["name"], "orders");
        assert_eq!(spec["event"]["type"], "order.paid");
        assert_eq!(spec["event"]["sha256"], "ab".repeat(32));
        assert_eq!(spec["reason"], "Exhausted");
        assert_eq!(spec["lastStatusCode"], 503);
        assert_eq!(spec["attempts"], 4);
        let labels = card.metadata.labels.unwrap();
        assert_eq!(labels[CARD_EVENT_TYPE_LABEL], "order.paid");
        assert_eq!(labels[CARD_CODE_LABEL], "503");
        assert_eq!(labels[POOL_LABEL], "default");
    }

    #[test]
    fn a_name_is_the_same_each_time_and_another_for_each_delivery_webhook_and_store() {
        let (one, two) = (hook(1, "orders"), hook(2, "refunds"));
        let first = name("a", &one, Pos(1));
        assert_eq!(first, name("a", &one, Pos(1)));
        assert!(first.starts_with("orders-") && first.len() == 7 + 2 * NAME_HASH_BYTES);
        for other in [name("a", &one, Pos(2)), name("b", &one, Pos(1)), name("a", &two, Pos(1))] {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn what_cannot_be_a_label_is_left_out_and_a_damaged_event_has_a_card_all_the_same() {
        let mut row = row(1, 1);
        row.event.as_mut().unwrap().event_type = "x".repeat(64).into();
        assert!(!labels(&row, &hook(1, "orders"), "p").contains_key(CARD_EVENT_TYPE_LABEL));
        row.event = None;
        row.first_ms = i64::MAX;
        let card = build(&row, &hook(1, "orders"), "p", "s");
        assert_eq!(card.spec.event, None);
        assert_eq!(card.spec.first_time.0, Timestamp::UNIX_EPOCH);
    }
}
