//! What a Subscription's status should be. Pure.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use crate::{
    api::{
        ConditionStatus, ConditionType, Reason, Subscription, SubscriptionStatus,
        condition::{self, WantedCondition},
        subscription_rules,
    },
    controller::{feed::Indexed, views::WebhookFacts, webhook::plan::was_programmed},
};

/// For so long after its creation a Subscription's first status waits for its
/// Webhook to be verified: applied together, both are ready within that time,
/// and two writes become one.
pub const FIRST_STATUS_HOLD: Duration = Duration::from_secs(2);

const PROGRAMMED: &str = "The delivery pods have this generation of the Subscription.";

/// What the status depends on beside the object.
pub struct Facts {
    /// Generation of the spec.
    pub generation: i64,
    /// The Webhook that is named; none if it does not exist.
    pub webhook: Option<WebhookFacts>,
    /// What the pool's index has.
    pub indexed: Indexed,
    /// The time.
    pub now: Timestamp,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// Nothing.
    Settled,
    /// Look again after this time.
    Hold(Duration),
    /// Write this status.
    Write(SubscriptionStatus),
}

/// Which way a Subscription that is not ready looks to kstatus.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Reconciling,
    Stalled,
}

/// Makes the plan.
pub fn plan(subscription: &Subscription, facts: &Facts) -> Plan {
    let previous = subscription.status.clone().unwrap_or_default();
    let (wanted, is_ready) = conditions(subscription, facts);
    let status = SubscriptionStatus {
        observed_generation: Some(facts.generation),
        conditions: condition::merge(&previous.conditions, &wanted, Some(facts.generation), facts.now),
    };
    if status == previous {
        return Plan::Settled;
    }
    let is_first = previous.conditions.is_empty();
    match hold(subscription, facts.now) {
        Some(left) if is_first && !is_ready => Plan::Hold(left),
        _ => Plan::Write(status),
    }
}

/// The rest of the time that a first status waits.
fn hold(subscription: &Subscription, now: Timestamp) -> Option<Duration> {
    let created = subscription.metadata.creation_timestamp.as_ref()?.0;
    // A creation in the future is a clock that is wrong: no reason to wait.
    let age = Duration::try_from(now.duration_since(created)).ok()?;
    FIRST_STATUS_HOLD.checked_sub(age).filter(|left| !left.is_zero())
}

fn conditions(subscription: &Subscription, facts: &Facts) -> (Vec<WantedCondition>, bool) {
    let parts = [
        accepted(subscription),
        webhook_found(subscription, facts),
        webhook_verified(subscription, facts),
        programmed(subscription, facts),
    ];
    let blocker = parts.iter().find(|part| part.status != ConditionStatus::True);
    let suspended = subscription.spec.suspend.unwrap_or(false);
    let (ready, progress) = match blocker {
        _ if suspended => {
            let message = "spec.suspend is true: no new events are matched until it is false.";
            (ready(ConditionStatus::False, Reason::Suspended, message.to_owned()), Some(Progress::Stalled))
        }
        Some(part) => {
            let progress = if part.reason == Reason::InvalidSpec { Progress::Stalled } else { Progress::Reconciling };
            (ready(ConditionStatus::False, part.reason, part.message.clone()), Some(progress))
        }
        None => {
            let message = "Matching events are delivered to the Webhook.";
            (ready(ConditionStatus::True, Reason::Ready, message.to_owned()), None)
        }
    };
    let progress = progress.map(|progress| WantedCondition {
        type_: if progress == Progress::Stalled { ConditionType::Stalled } else { ConditionType::Reconciling },
        status: ConditionStatus::True,
        ..ready.clone()
    });
    let is_ready = progress.is_none();
    ([ready].into_iter().chain(parts).chain(progress).collect(), is_ready)
}

fn ready(status: ConditionStatus, reason: Reason, message: String) -> WantedCondition {
    WantedCondition { type_: ConditionType::Ready, status, reason, message }
}

fn accepted(subscription: &Subscription) -> WantedCondition {
    match subscription_rules::check(&subscription.spec) {
        Ok(()) => holds(ConditionType::Accepted, Reason::Accepted, "The spec is well formed."),
        Err(error) => fails(ConditionType::Accepted, Reason::InvalidSpec, format!("{error}.")),
    }
}

fn webhook_found(subscription: &Subscription, facts: &Facts) -> WantedCondition {
    if facts.webhook.is_some() {
        return holds(ConditionType::WebhookFound, Reason::WebhookFound, "The Webhook exists.");
    }
    let name = &subscription.spec.webhook_ref.name;
    let message = format!("Webhook {name} does not exist in this namespace. Make it, or name another one.");
    fails(ConditionType::WebhookFound, Reason::WebhookNotFound, message)
}

fn webhook_verified(subscription: &Subscription, facts: &Facts) -> WantedCondition {
    let name = &subscription.spec.webhook_ref.name;
    match &facts.webhook {
        Some(webhook) if webhook.is_verified => {
            holds(ConditionType::WebhookVerified, Reason::Verified, "The Webhook is verified.")
        }
        Some(_) => {
            let message =
                format!("Webhook {name} is not verified, so nothing is sent yet. See its condition Verified.");
            fails(ConditionType::WebhookVerified, Reason::WebhookNotVerified, message)
        }
        None => {
            let message = format!("Webhook {name} does not exist.");
            fails(ConditionType::WebhookVerified, Reason::WebhookNotFound, message)
        }
    }
}

fn programmed(subscription: &Subscription, facts: &Facts) -> WantedCondition {
    let told = subscription.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    match &facts.indexed {
        Indexed::Unknown if was_programmed(told, facts.generation) => {
            holds(ConditionType::Programmed, Reason::Programmed, PROGRAMMED)
        }
        Indexed::Yes => holds(ConditionType::Programmed, Reason::Programmed, PROGRAMMED),
        Indexed::No | Indexed::Unknown => {
            let message = "The delivery pods do not have this generation of the Subscription yet. If it lasts, see the DeliveryPool's condition Ready.";
            fails(ConditionType::Programmed, Reason::NotProgrammed, message.to_owned())
        }
        Indexed::Refused(error) => {
            let message = format!("The delivery pods cannot use this Subscription: {error}");
            fails(ConditionType::Programmed, Reason::InvalidSpec, message)
        }
    }
}

fn holds(type_: ConditionType, reason: Reason, message: &str) -> WantedCondition {
    WantedCondition { type_, status: ConditionStatus::True, reason, message: message.to_owned() }
}

fn fails(type_: ConditionType, reason: Reason, message: String) -> WantedCondition {
    WantedCondition { type_, status: ConditionStatus::False, reason, message }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn subscription(events: serde_json::Value, extra: serde_json::Value) -> Subscription {
        let mut spec = json!({ "webhookRef": { "name": "orders" }, "events": events });
        for (name, value) in extra.as_object().unwrap() {
            spec[name] = value.clone();
        }
        serde_json::from_value(json!({
            "apiVersion": "posthorn.dev/v1alpha1", "kind": "Subscription",
            "metadata": { "namespace": "n", "name": "s", "generation": 2, "creationTimestamp": "2026-11-23T12:00:00Z" },
            "spec": spec, "status": { "observedGeneration": -1 }
        }))
        .unwrap()
    }

    fn facts(webhook: Option<bool>, indexed: Indexed, seconds: i64) -> Facts {
        let created: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
        Facts {
            generation: 2,
            webhook: webhook.map(|is_verified| WebhookFacts { is_verified }),
            indexed,
            now: Timestamp::from_second(created.as_second() + seconds).unwrap(),
        }
    }

    fn shown(plan: &Plan) -> String {
        let Plan::Write(status) = plan else { return format!("{plan:?}") };
        assert_eq!(status.observed_generation, Some(2));
        let conditions = status.conditions.iter().map(|c| format!("{}={}:{}", c.type_, c.status, c.reason));
        conditions.collect::<Vec<_>>().join(" ")
    }

    fn check(subscription: &Subscription, facts: &Facts, expected: &str) {
        assert_eq!(shown(&plan(subscription, facts)), expected);
    }

    #[test]
    fn ready_when_found_verified_and_programmed() {
        let ready = "Ready=True:Ready Accepted=True:Accepted WebhookFound=True:WebhookFound WebhookVerified=True:Verified Programmed=True:Programmed";
        check(&subscription(json!(["order.*"]), json!({})), &facts(Some(true), Indexed::Yes, 0), ready);
    }

    #[test]
    fn what_is_missing_is_in_progress_and_what_is_wrong_is_stalled() {
        let fine = subscription(json!([]), json!({}));
        check(
            &fine,
            &facts(None, Indexed::Yes, 9),
            "Ready=False:WebhookNotFound Accepted=True:Accepted WebhookFound=False:WebhookNotFound WebhookVerified=False:WebhookNotFound Programmed=True:Programmed Reconciling=True:WebhookNotFound",
        );
        check(
            &fine,
            &facts(Some(false), Indexed::No, 9),
            "Ready=False:WebhookNotVerified Accepted=True:Accepted WebhookFound=True:WebhookFound WebhookVerified=False:WebhookNotVerified Programmed=False:NotProgrammed Reconciling=True:WebhookNotVerified",
        );
        check(
            &subscription(json!(["a b"]), json!({})),
            &facts(Some(true), Indexed::Refused("no".into()), 9),
            "Ready=False:InvalidSpec Accepted=False:InvalidSpec WebhookFound=True:WebhookFound WebhookVerified=True:Verified Programmed=False:InvalidSpec Stalled=True:InvalidSpec",
        );
    }

    #[test]
    fn a_suspended_subscription_says_so_first() {
        let suspended = subscription(json!([]), json!({ "suspend": true }));
        let shown = shown(&plan(&suspended, &facts(Some(true), Indexed::Yes, 9)));
        assert!(shown.starts_with("Ready=False:Suspended") && shown.ends_with("Stalled=True:Suspended"), "{shown}");
    }

    #[test]
    fn the_first_status_waits_two_seconds_for_a_webhook_that_is_being_verified() {
        let fresh = subscription(json!([]), json!({}));
        let wait = |seconds| plan(&fresh, &facts(Some(false), Indexed::Yes, seconds));
        assert_eq!(wait(0), Plan::Hold(Duration::from_secs(2)));
        assert_eq!(wait(1), Plan::Hold(Duration::from_secs(1)));
        assert!(matches!(wait(2), Plan::Write(_)));
        assert!(matches!(wait(-60), Plan::Write(_)), "a wrong clock is no reason to wait");
    }

    #[test]
    fn a_controller_that_just_began_takes_nothing_back() {
        let mut settled = subscription(json!(["a"]), json!({}));
        let Plan::Write(status) = plan(&settled, &facts(Some(true), Indexed::Yes, 5)) else { panic!() };
        settled.status = Some(status);
        assert_eq!(plan(&settled, &facts(Some(true), Indexed::Unknown, 500)), Plan::Settled);
        let next_generation = Facts { generation: 3, ..facts(Some(true), Indexed::Unknown, 500) };
        let Plan::Write(status) = plan(&settled, &next_generation) else { panic!() };
        assert!(!condition::is_true(&status.conditions, ConditionType::Programmed));
    }

    #[test]
    fn a_settled_subscription_causes_no_write() {
        let mut settled = subscription(json!(["a"]), json!({}));
        let Plan::Write(status) = plan(&settled, &facts(Some(true), Indexed::Yes, 5)) else { panic!() };
        settled.status = Some(serde_json::from_str(&serde_json::to_string(&status).unwrap()).unwrap());
        assert_eq!(plan(&settled, &facts(Some(true), Indexed::Yes, 500)), Plan::Settled);
    }
}
