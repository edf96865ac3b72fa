//! What a Webhook's status tells of its Deliveries. Pure.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use crate::{
    api::{
        ConditionStatus, ConditionType, Reason, WebhookStatus,
        condition::{self, WantedCondition, whole_seconds},
        webhook_delivery::DeliveryStatus,
    },
    controller::text::clipped,
    wire::deliveries::{DeliveriesEntry, DeliveriesHealth},
};

/// Bytes of a pod's message that are kept.
pub const MESSAGE_BYTES_MAX: usize = 512;
/// The conditions that tell of Deliveries.
const TYPES: [ConditionType; 2] = [ConditionType::Healthy, ConditionType::DeadLetterOverflow];

/// How much two tellings differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Not at all.
    None,
    /// In numbers and words.
    Counters,
    /// In something that people and tools act upon.
    Transition,
}

/// What is told, in a form that can be compared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    delivery: Option<DeliveryStatus>,
    /// Type, status, reason and message of each condition.
    conditions: Vec<[String; 4]>,
    gone_since: Option<Timestamp>,
}

impl Told {
    /// What a status tells. It does not say which 410 it knows: that of an entry
    /// is news once.
    pub fn of_status(status: &WebhookStatus) -> Self {
        let conditions = of_deliveries(&status.conditions);
        let text = |c: &Condition| [c.type_.clone(), c.status.clone(), c.reason.clone(), c.message.clone()];
        Self { delivery: status.delivery.clone(), conditions: conditions.map(text).collect(), gone_since: None }
    }

    /// What the status of this entry would tell.
    pub fn of_entry(entry: &DeliveriesEntry) -> Self {
        let text = |c: WantedCondition| {
            [c.type_.as_str().to_owned(), c.status.to_string(), c.reason.as_str().to_owned(), c.message]
        };
        Self {
            delivery: Some(delivery_status(entry)),
            conditions: conditions(entry).into_iter().map(text).collect(),
            gone_since: entry.gone_since.as_ref().map(|time| time.0),
        }
    }

    /// How much `newer` differs from this.
    pub fn difference(&self, newer: &Self) -> Difference {
        let judged = |told: &Self| {
            let without_words = told
                .conditions
                .iter()
                .map(|[type_, status, reason, _]| (type_.clone(), status.clone(), reason.clone()));
            (without_words.collect::<Vec<_>>(), told.gone_since)
        };
        if judged(self) != judged(newer) {
            Difference::Transition
        } else if self != newer {
            Difference::Counters
        } else {
            Difference::None
        }
    }
}

/// The conditions of a status that tell of Deliveries, in their order.
pub fn of_deliveries(conditions: &[Condition]) -> impl Iterator<Item = &Condition> {
    TYPES.into_iter().filter_map(|type_| condition::find(conditions, type_))
}

/// The counters, within the bounds of the schema.
pub fn delivery_status(entry: &DeliveriesEntry) -> DeliveryStatus {
    let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    DeliveryStatus {
        delivered: count(entry.delivered),
        failed: count(entry.failed),
        pending: count(entry.pending),
        dead_letters: count(entry.dead_letters),
        last_time: entry.last_time.as_ref().map(|time| Time(whole_seconds(time.0))),
        last_status_code: entry.last_status_code.filter(|code| (100..=599).contains(code)).map(i32::from),
    }
}

/// Healthy, and DeadLetterOverflow while there is one.
pub fn conditions(entry: &DeliveriesEntry) -> Vec<WantedCondition> {
    let (status, reason, message) = match &entry.health {
        DeliveriesHealth::Unknown => {
            (ConditionStatus::Unknown, Reason::NothingSent, "Nothing was sent to the endpoint yet.".to_owned())
        }
        DeliveriesHealth::Healthy => {
            (ConditionStatus::True, Reason::Healthy, "The endpoint takes what it is sent.".to_owned())
        }
        DeliveriesHealth::Failing { reason, message, since: _ } => {
            (ConditionStatus::False, *reason, clipped(message.clone(), MESSAGE_BYTES_MAX))
        }
    };
    let healthy = WantedCondition { type_: ConditionType::Healthy, status, reason, message };
    let overflow = (entry.overflow > 0).then(|| WantedCondition {
        type_: ConditionType::DeadLetterOverflow,
        status: ConditionStatus::True,
        reason: Reason::CardLimitReached,
        message: format!(
            "{} of {} Deliveries that were given up have no DeadLetter. They are kept all the same: a Replay with deadLetters.all sends them again.",
            entry.overflow, entry.dead_letters
        ),
    });
    [healthy].into_iter().chain(overflow).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn entry(name: &str, delivered: u64) -> DeliveriesEntry {
        DeliveriesEntry {
            namespace: "n".into(),
            name: name.into(),
            uid: "u".into(),
            delivered,
            failed: 0,
            pending: 0,
            dead_letters: 0,
            overflow: 0,
            last_time: None,
            last_status_code: Some(204),
            health: DeliveriesHealth::Healthy,
            gone_since: None,
        }
    }

    pub(in super::super) fn failing(name: &str, delivered: u64) -> DeliveriesEntry {
        let since = Time(Timestamp::from_second(1_795_000_000).unwrap());
        let health = DeliveriesHealth::Failing { reason: Reason::CircuitOpen, message: "down".into(), since };
        DeliveriesEntry { health, ..entry(name, delivered) }
    }

    fn check(old: &DeliveriesEntry, new: &DeliveriesEntry, expected: Difference) {
        assert_eq!(Told::of_entry(old).difference(&Told::of_entry(new)), expected);
    }

    #[test]
    fn what_people_act_upon_is_a_transition_and_numbers_are_not() {
        let old = entry("a", 1);
        check(&old, &old, Difference::None);
        check(&old, &entry("a", 2), Difference::Counters);
        check(&old, &failing("a", 1), Difference::Transition);
        let overflow = |overflow| DeliveriesEntry { overflow, dead_letters: 200, ..entry("a", 1) };
        check(&overflow(0), &overflow(1), Difference::Transition);
        check(&overflow(1), &overflow(2), Difference::Counters);
        let gone = DeliveriesEntry { gone_since: Some(Time(Timestamp::from_second(9).unwrap())), ..entry("a", 1) };
        check(&old, &gone, Difference::Transition);
    }

    #[test]
    fn a_status_that_tells_it_already_does_not_differ() {
        for entry in [entry("a", 7), failing("a", 7), DeliveriesEntry { overflow: 3, dead_letters: 5, ..entry("a", 7) }]
        {
            let now = Timestamp::from_second(1_795_000_000).unwrap();
            let status = WebhookStatus {
                conditions: condition::merge(&[], &conditions(&entry), Some(1), now),
                delivery: Some(delivery_status(&entry)),
                ..WebhookStatus::default()
            };
            assert_eq!(Told::of_status(&status).difference(&Told::of_entry(&entry)), Difference::None);
        }
    }

    #[test]
    fn what_a_pod_says_is_brought_into_the_bounds_of_the_schema() {
        let wild = DeliveriesEntry {
            delivered: u64::MAX,
            last_status_code: Some(999),
            last_time: Some(Time(Timestamp::from_millisecond(1_999).unwrap())),
            health: DeliveriesHealth::Failing {
                reason: Reason::CircuitOpen,
                message: "é".repeat(600),
                since: Time(Timestamp::UNIX_EPOCH),
            },
            ..entry("a", 0)
        };
        let status = delivery_status(&wild);
        assert_eq!((status.delivered, status.last_status_code), (i64::MAX, None));
        assert_eq!(status.last_time.unwrap().0, Timestamp::from_second(1).unwrap());
        assert_eq!(conditions(&wild)[0].message.len(), MESSAGE_BYTES_MAX);
    }
}
