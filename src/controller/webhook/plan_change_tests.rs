//! Tests of what ends a verification, and of what calls for a check before its time.

use super::*;
use crate::{
    api::Subscription,
    controller::{subscription, views::WebhookFacts},
};

type Change = fn(&mut World);

/// What a Subscription of this Webhook says of itself.
fn subscription_of(webhook: &Plan) -> String {
    let subscription: Subscription = serde_json::from_value(json!({
        "apiVersion": "posthorn.dev/v1alpha1", "kind": "Subscription",
        "metadata": { "name": "s", "namespace": "shop", "uid": "u-2", "generation": 1 },
        "spec": { "webhookRef": { "name": "orders" }, "events": ["*"] }
    }))
    .unwrap();
    let facts = subscription::plan::Facts {
        generation: 1,
        webhook: Some(WebhookFacts {
            is_verified: condition::is_true(&webhook.status.conditions, ConditionType::Verified),
        }),
        indexed: Indexed::Yes,
        now: Timestamp::from_second(T0).unwrap(),
    };
    let subscription::plan::Plan::Write(status) = subscription::plan::plan(&subscription, &facts) else {
        return "settled".to_owned();
    };
    let ready = condition::find(&status.conditions, ConditionType::Ready).unwrap();
    format!("Ready={}:{}", ready.status, ready.reason)
}

/// What keeps a Webhook of the method None from being granted, and whether it ends a grant.
const AGAINST_NONE: [(Change, &str, bool); 5] = [
    (|w| w.pool = None, "PoolNotFound", true),
    (|w| w.pool = Some(json!({ "verification": { "methods": ["Challenge"] } })), "MethodNotAllowed", true),
    (|w| w.pool = Some(json!({ "egress": { "schemes": ["https"] } })), "HttpNotAllowed", true),
    (
        |w| {
            w.reading.material =
                Err(Problem::new(Reason::SecretNotFound, "Secret orders-signing does not exist.".into()))
        },
        "SecretNotFound",
        false,
    ),
    (|w| w.webhook["spec"]["suspend"] = json!(true), "Suspended", false),
];

fn without_handshake() -> World {
    let mut world = World::new();
    world.indexed = Indexed::Yes;
    world.pool = Some(json!({ "egress": { "schemes": ["http", "https"] } }));
    world.webhook["spec"] = json!({ "url": "http://a.example/", "verification": { "method": "None" } });
    world
}

#[test]
fn the_method_none_grants_nothing_that_is_not_allowed() {
    let plan = without_handshake().plan();
    assert!(shown(&plan).starts_with("Ready=True:Ready Verified=True:NotRequired"));
    assert_eq!(subscription_of(&plan), "Ready=True:Ready");
    for (change, expected, _) in AGAINST_NONE {
        let mut world = without_handshake();
        change(&mut world);
        let plan = world.settle();
        assert!(shown(&plan).starts_with(&format!("Ready=False:{expected} Verified=False:Unverified")), "{expected}");
        assert_eq!(subscription_of(&plan), "Ready=False:WebhookNotVerified", "{expected}");
        let status = plan.status.verification.unwrap();
        assert_eq!((status.verified_time, status.valid_until), (None, None), "{expected}");
        assert_eq!(world.plan().status, world.settle().status, "{expected}: written once");
    }
}

#[test]
fn what_the_pool_no_longer_allows_ends_the_method_none_and_what_passes_does_not() {
    for (change, reason, ends) in AGAINST_NONE {
        let mut world = without_handshake();
        world.settle();
        change(&mut world);
        let plan = world.settle();
        let status = plan.status.verification.clone().unwrap();
        assert_eq!(status.state == VerificationState::Unverified, ends, "{reason}");
        assert_eq!(status.valid_until.is_none(), ends, "{reason}");
        let expected = if ends { "Ready=False:WebhookNotVerified" } else { "Ready=True:Ready" };
        assert_eq!(subscription_of(&plan), expected, "{reason}");
    }
}

/// A verified Webhook whose URL stands in a Secret that is gone now.
fn without_its_url() -> World {
    let mut world = World::new();
    world.webhook["spec"] = json!({ "urlFrom": { "name": "url", "key": "url" } });
    world.reading.url = Some(SecretString::from("https://hooks.example.com/"));
    let mut world = world.verified();
    assert_eq!(world.state(), "Verified");
    world.seconds = 400;
    world.reading.url = None;
    world.reading.material = Err(Problem::new(Reason::SecretNotFound, "Secret url does not exist.".into()));
    world
}

#[test]
fn a_url_that_cannot_be_read_leaves_verified_what_was_not_edited() {
    let mut world = without_its_url();
    let before = world.webhook["status"]["verification"].clone();
    for seconds in [400, 3600] {
        world.seconds = seconds;
        let plan = world.settle();
        assert!(shown(&plan).starts_with("Ready=False:SecretNotFound Verified=True:Verified"));
        assert_eq!(world.webhook["status"]["verification"], before);
    }
}

#[test]
fn a_url_that_cannot_be_read_after_an_edit_is_not_verified() {
    for is_told in [true, false] {
        let mut world = without_its_url();
        if !is_told {
            // Written before statuses told what was checked.
            world.webhook["status"]["verification"].as_object_mut().unwrap().remove("checkedGeneration");
        }
        world.webhook["metadata"]["generation"] = json!(2);
        let plan = world.settle();
        assert!(shown(&plan).starts_with("Ready=False:SecretNotFound Verified=False:Unverified"), "{}", shown(&plan));
        assert_eq!(plan.status.verification.unwrap().valid_until, None);
        assert_eq!(world.plan().status, world.settle().status, "written once");
        world.reading = reading("a key of twenty-four bytes or more");
        world.reading.url = Some(SecretString::from("https://hooks.example.com/"));
        world.answer(Verdict::Wanted);
        assert_eq!(world.state(), "Verified");
    }
}

#[test]
fn a_url_that_was_read_and_is_none_is_not_verified() {
    let mut world = without_its_url();
    world.reading = reading("a key of twenty-four bytes or more");
    world.reading.url = Some(SecretString::from("no URL"));
    assert!(shown(&world.plan()).starts_with("Ready=False:InvalidUrl Verified=False:Unverified"));
}

#[test]
fn a_verification_runs_out_even_while_the_url_cannot_be_read() {
    let mut world = without_its_url();
    let until = world.plan().status.verification.unwrap().valid_until.unwrap().0.as_second();
    world.seconds = until - T0;
    let last = world.settle();
    assert_eq!((world.state(), last.requeue), (json!("Verified"), Duration::from_secs(1)), "the last second counts");
    world.seconds += 1;
    let plan = world.settle();
    assert_eq!(world.state(), "Expired");
    assert_eq!(plan.notices.iter().map(|n| n.reason).collect::<Vec<_>>(), [Reason::VerificationExpired]);
    assert!(world.settle().notices.is_empty(), "told once");
}

/// What a user does to mend a Webhook without another endpoint or method.
const NEWS: [(&str, Change); 3] = [
    ("spec", |w| {
        w.webhook["spec"]["timeout"] = json!("20s");
        w.webhook["metadata"]["generation"] = json!(w.webhook["metadata"]["generation"].as_i64().unwrap() + 1);
    }),
    ("key", |w| w.reading = reading("another key of twenty-four bytes or more")),
    ("request", |w| w.annotate("2027-01-15T08:00:00Z")),
];

#[test]
fn a_failed_webhook_is_asked_at_once_after_any_change_even_if_that_was_observed() {
    for (name, change) in NEWS {
        let mut world = World::failed();
        change(&mut world);
        let id = world.plan().probe.unwrap_or_else(|| panic!("{name}")).id;
        // Told before the answer came.
        world.probe = ProbeView::Running { id, time: HOLD, after_no_pod: false };
        let told = world.settle();
        assert_eq!(told.status.observed_generation, world.webhook["metadata"]["generation"].as_i64());
        world.probe = ProbeView::None;
        world.answer(refused());
        assert_eq!(world.state(), "Pending", "{name}: it begins anew");
        assert!(world.plan().probe.is_none(), "{name}: once");
    }
}

#[test]
fn a_verified_webhook_is_re_checked_at_once_after_any_change_and_stays_verified() {
    for (name, change) in NEWS {
        let mut world = World::new().verified();
        world.seconds = 400;
        change(&mut world);
        assert!(world.plan().probe.is_some(), "{name}");
        let since = world.webhook["status"]["verification"]["verifiedTime"].clone();
        world.answer(refused());
        assert_eq!((world.state(), world.plan().probe.is_none()), (json!("Verified"), true), "{name}");
        assert_eq!(world.webhook["status"]["verification"]["verifiedTime"], since, "{name}");
    }
}

#[test]
fn what_changed_while_the_endpoint_was_asked_gets_a_check_of_its_own() {
    for (name, change) in NEWS {
        for verdict in [refused(), Verdict::Wanted] {
            let mut world = World::new();
            world.end_probe(verdict);
            let ProbeView::Judged { begun, .. } = world.probe.clone() else { unreachable!("it just ended") };
            change(&mut world);
            let plan = world.settle();
            assert!(plan.uses_outcome && !plan.is_held && plan.probe.is_none(), "{name}: the outcome is written first");
            assert_eq!(plan.requeue, Duration::ZERO, "{name}");
            let told = plan.status.verification.unwrap();
            assert_eq!((told.last_requested, told.checked_generation), (begun.requested, Some(begun.generation)));
            assert_eq!(plan.status.keys, begun.keys, "{name}");
            world.answer(Verdict::Wanted);
            assert!(world.plan().probe.is_none(), "{name}: once");
            assert_eq!(world.plan().status, world.settle().status, "{name}");
        }
    }
}
