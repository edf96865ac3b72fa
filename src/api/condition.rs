//! Conditions as metav1 and kstatus read them.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use super::Reason;

/// The types of conditions that Posthorn writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConditionType {
    /// All is well; `kubectl wait --for=condition=Ready` waits for it.
    Ready,
    /// Webhook: the endpoint wants events.
    Verified,
    /// The delivery pods have this generation in their index.
    Programmed,
    /// Webhook: deliveries to the endpoint succeed.
    Healthy,
    /// Webhook: more Deliveries are dead than there are DeadLetters for.
    DeadLetterOverflow,
    /// Subscription, EventType: the spec is well formed.
    Accepted,
    /// Subscription: its Webhook exists.
    WebhookFound,
    /// Subscription: its Webhook is verified.
    WebhookVerified,
    /// Replay: everything that matched has ended.
    Complete,
    /// kstatus: work is under way.
    Reconciling,
    /// kstatus: nothing will change without help.
    Stalled,
}

impl ConditionType {
    /// The text in `type`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Verified => "Verified",
            Self::Programmed => "Programmed",
            Self::Healthy => "Healthy",
            Self::DeadLetterOverflow => "DeadLetterOverflow",
            Self::Accepted => "Accepted",
            Self::WebhookFound => "WebhookFound",
            Self::WebhookVerified => "WebhookVerified",
            Self::Complete => "Complete",
            Self::Reconciling => "Reconciling",
            Self::Stalled => "Stalled",
        }
    }
}

/// The status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Not known yet.
    Unknown,
}

impl fmt::Display for ConditionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        })
    }
}

/// A condition as it should be, before its transition time is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedCondition {
    /// Which condition.
    pub type_: ConditionType,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, in one word.
    pub reason: Reason,
    /// What it means and what to do, in a sentence or two.
    pub message: String,
}

/// The conditions to write: `wanted` in its order, each with the transition
/// time of its predecessor unless its status changed. What is not wanted any
/// more disappears.
pub fn merge(
    existing: &[Condition],
    wanted: &[WantedCondition],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    wanted.iter().map(|w| to_condition(existing, w, generation, now)).collect()
}

fn to_condition(
    existing: &[Condition],
    wanted: &WantedCondition,
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    let status = wanted.status.to_string();
    let same = find(existing, wanted.type_).filter(|old| old.status == status);
    Condition {
        type_: wanted.type_.as_str().to_owned(),
        last_transition_time: same.map_or_else(|| Time(whole_seconds(now)), |old| old.last_transition_time.clone()),
        status,
        reason: wanted.reason.as_str().to_owned(),
        message: wanted.message.clone(),
        observed_generation: generation,
    }
}

/// The condition of this type, if there is one.
pub fn find(conditions: &[Condition], type_: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|c| c.type_ == type_.as_str())
}

/// Whether the condition of this type is True.
pub fn is_true(conditions: &[Condition], type_: ConditionType) -> bool {
    find(conditions, type_).is_some_and(|c| c.status == "True")
}

/// metav1.Time has a resolution of one second: what is written with more reads
/// back different and looks like a change.
pub fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(status: ConditionStatus) -> WantedCondition {
        WantedCondition { type_: ConditionType::Ready, status, reason: Reason::Verified, message: "m".into() }
    }

    #[test]
    fn the_transition_time_moves_only_when_the_status_changes() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let first = merge(&[], &[wanted(ConditionStatus::False)], Some(1), at(10));
        let second = merge(&first, &[wanted(ConditionStatus::False)], Some(2), at(20));
        let third = merge(&second, &[wanted(ConditionStatus::True)], Some(2), at(30));
        let times: Vec<_> = [&first, &second, &third].map(|c| c[0].last_transition_time.0.as_second()).into();
        assert_eq!(times, [10, 10, 30]);
        assert_eq!(second[0].observed_generation, Some(2));
    }

    #[test]
    fn what_is_not_wanted_any_more_disappears() {
        let at = Timestamp::from_second(0).unwrap();
        let first = merge(&[], &[wanted(ConditionStatus::False)], Some(1), at);
        assert!(merge(&first, &[], Some(1), at).is_empty());
    }
}
