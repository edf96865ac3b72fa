//! Tests of validate and plan together: YAML-like objects in, conditions out.

use std::sync::Arc;

use k8s_openapi::{ByteString, api::core::v1::Secret, jiff::Timestamp};
use serde_json::{Value, json};

use super::*;
use crate::{
    api::{DeliveryPoolSpec, Webhook},
    controller::{
        key::ObjectKey,
        webhook::{material::Reading, validate::validate},
    },
    dialect::{SigningKey, SigningKeys},
    runtime::secret::SecretBytes,
    verify::challenge::Verdict,
    wire::deliveries::DeliveriesEntry,
};

const T0: i64 = 1_795_435_200;

fn fingerprint_key() -> FingerprintKey {
    FingerprintKey::new([7; 32])
}

fn keys(value: &str) -> SigningKeys {
    let secret: Secret = Secret {
        data: Some([("secret".to_owned(), ByteString(value.as_bytes().to_vec()))].into()),
        ..Secret::default()
    };
    let value = secret.data.unwrap()["secret"].0.clone();
    let key = SigningKey::parse(crate::api::webhook::Dialect::StandardWebhooks, SecretBytes::new(value)).unwrap();
    SigningKeys::new(key, None)
}

fn reading(key: &str) -> Reading {
    let material = Material { keys: keys(key), url: None, headers: Vec::new(), tls: None };
    Reading { material: Ok(material), url: None, secret_name: Some("orders-signing".into()) }
}

/// What surrounds one Webhook, as a test changes it.
struct World {
    webhook: Value,
    pool: Option<Value>,
    reading: Reading,
    indexed: Indexed,
    probe: ProbeView,
    told: Option<DeliveriesEntry>,
    seconds: i64,
}

impl World {
    fn new() -> Self {
        Self {
            webhook: json!({
                "apiVersion": "posthorn.dev/v1alpha1", "kind": "Webhook",
                "metadata": { "name": "orders", "namespace": "shop", "uid": "u-1", "generation": 1 },
                "spec": { "url": "https://hooks.example.com/secret-path?token=hunter2" },
                "status": { "observedGeneration": -1 }
            }),
            pool: Some(json!({})),
            reading: reading("a key of twenty-four bytes or more"),
            indexed: Indexed::No,
            probe: ProbeView::None,
            told: None,
            seconds: 0,
        }
    }

    fn gathered(&self) -> Gathered {
        let webhook: Webhook = serde_json::from_value(self.webhook.clone()).unwrap();
        let pool: Option<DeliveryPoolSpec> = self.pool.clone().map(|pool| serde_json::from_value(pool).unwrap());
        Gathered {
            key: ObjectKey::new("shop", "orders"),
            uid: webhook.metadata.uid.clone().unwrap(),
            generation: webhook.metadata.generation.unwrap(),
            webhook,
            pool_name: "default".into(),
            maybe_pool: pool.map(Arc::new),
            reading: Arc::new(self.reading.clone()),
            reading_left: None,
            indexed: self.indexed.clone(),
            probe: self.probe.clone(),
            told: self.told.clone().map(Arc::new),
            now: Timestamp::from_second(T0 + self.seconds).unwrap(),
            chance: 0.5,
        }
    }

    fn plan(&self) -> Plan {
        let gathered = self.gathered();
        plan(&gathered, &validate(&gathered), &fingerprint_key())
    }

    /// One reconcile after which the status is as planned.
    fn settle(&mut self) -> Plan {
        let plan = self.plan();
        if !plan.is_held {
            // Through text, as the API server keeps it.
            self.webhook["status"] = serde_json::from_str(&serde_json::to_string(&plan.status).unwrap()).unwrap();
            if plan.uses_outcome {
                self.probe = ProbeView::None;
            }
        }
        plan
    }

    /// The probe that is due now ends with this verdict.
    fn answer(&mut self, verdict: Verdict) -> Plan {
        self.end_probe(verdict);
        self.settle()
    }

    fn end_probe(&mut self, verdict: Verdict) {
        let ProbeOrder { id, begun, .. } = self.plan().probe.expect("a probe is due");
        self.probe = ProbeView::Judged { id, verdict, begun };
    }

    /// Somebody asks for a check.
    fn annotate(&mut self, requested: &str) {
        self.webhook["metadata"]["annotations"] = json!({ VERIFY_REQUESTED_ANNOTATION: requested });
    }

    fn state(&self) -> Value {
        self.webhook["status"]["verification"]["state"].clone()
    }

    /// Checks fail until the Webhook is Failed.
    fn failed() -> Self {
        let mut world = Self::new();
        world.indexed = Indexed::Yes;
        while world.state() != "Failed" {
            world.answer(refused());
            while world.plan().probe.is_none() {
                world.seconds += 5;
            }
        }
        world.seconds -= 60;
        assert!(world.plan().probe.is_none());
        world
    }

    fn verified(mut self) -> Self {
        self.indexed = Indexed::Yes;
        self.answer(Verdict::Wanted);
        self
    }
}

fn shown(plan: &Plan) -> String {
    let conditions = plan.status.conditions.iter().map(|c| format!("{}={}:{}", c.type_, c.status, c.reason));
    conditions.collect::<Vec<_>>().join(" ")
}

fn refused() -> Verdict {
    Verdict::NotWanted { reason: Reason::BodyMismatch, message: "The answer was not the challenge.".into() }
}

#[test]
fn a_fresh_webhook_is_asked_before_anything_is_written() {
    let plan = World::new().plan();
    assert!(plan.is_held && plan.probe.is_some());
    assert_eq!(plan.requeue, HOLD);
}

#[test]
fn a_quick_answer_makes_one_write_of_two() {
    let mut world = World::new();
    world.indexed = Indexed::Yes;
    let plan = world.answer(Verdict::Wanted);
    assert_eq!(shown(&plan), "Ready=True:Ready Verified=True:Verified Programmed=True:Programmed");
    assert_eq!(plan.status.endpoint.as_deref(), Some("https://hooks.example.com"));
    assert_eq!(plan.status.secret_name.as_deref(), Some("orders-signing"));
    assert_eq!(plan.status.keys.len(), 1);
    assert_eq!(plan.notices.iter().map(|n| n.reason).collect::<Vec<_>>(), [Reason::Verified]);
}

#[test]
fn a_slow_answer_is_awaited_a_second_and_then_told_as_work_in_progress() {
    let mut world = World::new();
    let id = world.plan().probe.unwrap().id;
    let running =
        |millis| ProbeView::Running { id: id.clone(), time: Duration::from_millis(millis), after_no_pod: false };
    world.probe = running(400);
    let waiting = world.plan();
    assert!(waiting.is_held && waiting.probe.is_none());
    assert_eq!(waiting.requeue, Duration::from_millis(600));
    world.probe = running(1000);
    let told = world.settle();
    assert!(!told.is_held && told.probe.is_none());
    assert_eq!(
        shown(&told),
        "Ready=False:Unverified Verified=False:Unverified Programmed=False:NotProgrammed Reconciling=True:Unverified"
    );
    assert!(told.notices.is_empty());
}

#[test]
fn a_settled_webhook_causes_no_write_and_no_probe() {
    let mut world = World::new().verified();
    let before = world.webhook["status"].clone();
    for seconds in [1, 60, 3600] {
        world.seconds = seconds;
        let plan = world.plan();
        assert_eq!(serde_json::to_value(&plan.status).unwrap(), before, "{seconds}");
        assert!(plan.probe.is_none() && plan.notices.is_empty() && !plan.is_held);
    }
}

#[test]
fn a_failed_check_is_no_event_and_failing_for_too_long_is_one() {
    let mut world = World::new();
    let mut reasons = Vec::new();
    for _ in 0..40 {
        let plan = world.answer(refused());
        reasons.extend(plan.notices.iter().map(|n| n.reason));
        assert!(plan.probe.is_none());
        world.seconds += i64::try_from(plan.requeue.as_secs()).unwrap() + 1;
        while world.plan().probe.is_none() {
            world.seconds += 60;
        }
        if reasons.len() == 1 {
            break;
        }
    }
    assert_eq!(reasons, [Reason::VerificationFailed]);
    assert!((900..1500).contains(&world.seconds) || world.seconds > 1500, "{}", world.seconds);
}

#[test]
fn another_url_ends_verified_at_once_and_an_outcome_for_the_old_one_is_worth_nothing() {
    let mut world = World::new().verified();
    world.seconds = 100;
    world.annotate("now");
    world.end_probe(Verdict::Wanted);
    world.webhook["spec"]["url"] = json!("https://evil.example/");
    world.webhook["metadata"]["generation"] = json!(2);
    let plan = world.plan();
    assert!(!plan.uses_outcome && plan.probe.is_some());
    assert_eq!(plan.status.verification.as_ref().unwrap().state, VerificationState::Unverified);
    assert_eq!(plan.status.verification.unwrap().verified_time, None);
}

#[test]
fn a_missing_secret_holds_the_webhook_and_leaves_it_verified() {
    let mut world = World::new().verified();
    world.seconds = 400;
    let missing = Problem::new(Reason::SecretNotFound, "Secret orders-signing does not exist.".into());
    world.reading.material = Err(missing);
    let plan = world.settle();
    assert_eq!(
        shown(&plan),
        "Ready=False:SecretNotFound Verified=True:Verified Programmed=True:Programmed Reconciling=True:SecretNotFound"
    );
    assert_eq!(plan.status.keys.len(), 1, "what was known of the keys stands");
    assert_eq!(plan.notices.iter().map(|n| n.reason).collect::<Vec<_>>(), [Reason::SecretNotFound]);
    assert!(world.settle().notices.is_empty(), "told once");
    world.reading = reading("a key of twenty-four bytes or more");
    assert!(shown(&world.settle()).starts_with("Ready=True:Ready"));
}

#[test]
fn a_changed_key_starts_a_check_and_does_not_end_verified() {
    let mut world = World::new().verified();
    world.seconds = 400;
    world.reading = reading("another key of twenty-four bytes or more");
    let plan = world.plan();
    assert!(plan.probe.is_some());
    assert_eq!(plan.status.verification.as_ref().unwrap().state, VerificationState::Verified);
    let before = plan.status.keys.clone();
    let after = world.answer(Verdict::Wanted);
    assert_ne!(after.status.keys, before);
    assert!(shown(&after).starts_with("Ready=True"));
    assert!(world.plan().probe.is_none());
}

#[test]
fn a_pod_that_does_not_answer_costs_no_attempt() {
    let mut world = World::new();
    let id = world.plan().probe.unwrap().id;
    world.probe = ProbeView::NoPod { id: id.clone(), left: Duration::from_secs(7) };
    let plan = world.settle();
    assert!(shown(&plan).starts_with("Ready=False:PoolNotReady") && shown(&plan).contains("Reconciling=True"));
    assert_eq!(plan.status.verification.as_ref().unwrap().attempts, None);
    assert_eq!((plan.requeue, plan.probe.is_none()), (Duration::from_secs(7), true));
    world.probe = ProbeView::NoPod { id: id.clone(), left: Duration::ZERO };
    assert!(world.plan().probe.is_some());
    world.probe = ProbeView::Running { id, time: Duration::ZERO, after_no_pod: true };
    let again = world.plan();
    assert_eq!(serde_json::to_value(&again.status).unwrap(), world.webhook["status"], "no flapping while it is tried");
}

#[test]
fn a_verified_webhook_stays_ready_while_its_pool_restarts() {
    let mut world = World::new().verified();
    world.seconds = 30 * 3600;
    let id = world.plan().probe.expect("the daily check is due").id;
    world.probe = ProbeView::NoPod { id, left: Duration::from_secs(7) };
    assert!(shown(&world.plan()).starts_with("Ready=True:Ready"));
}

#[test]
fn a_controller_that_just_began_takes_nothing_back() {
    let mut world = World::new().verified();
    world.indexed = Indexed::Unknown;
    assert!(shown(&world.plan()).starts_with("Ready=True:Ready"));
    world.webhook["metadata"]["generation"] = json!(2);
    assert!(shown(&world.plan()).starts_with("Ready=False:NotProgrammed"));
}

#[test]
fn a_suspended_webhook_is_not_asked() {
    let mut world = World::new();
    world.webhook["spec"]["suspend"] = json!(true);
    let plan = world.plan();
    assert!(plan.probe.is_none() && !plan.is_held);
    assert!(shown(&plan).starts_with("Ready=False:Suspended") && shown(&plan).ends_with("Stalled=True:Suspended"));
}

#[test]
fn what_the_pool_does_not_allow_is_refused_before_anything_is_sent() {
    let check = |change: &dyn Fn(&mut World), expected: &str| {
        let mut world = World::new();
        change(&mut world);
        let plan = world.plan();
        assert!(plan.probe.is_none(), "{expected}");
        let shown = shown(&plan);
        assert!(shown.starts_with(&format!("Ready=False:{expected}")), "{shown}");
    };
    check(&|w| w.pool = None, "PoolNotFound");
    check(&|w| w.pool = Some(json!({ "verification": { "methods": ["SignedChallenge"] } })), "MethodNotAllowed");
    check(&|w| w.webhook["spec"]["url"] = json!("http://a.example/"), "HttpNotAllowed");
    check(&|w| w.webhook["spec"]["url"] = json!("https://user:hunter2@a.example/"), "InvalidUrl");
    check(&|w| w.webhook["spec"]["url"] = json!("ftp://a.example/"), "InvalidUrl");
    let mut allowed = World::new();
    allowed.webhook["spec"]["url"] = json!("http://a.example/");
    allowed.pool = Some(json!({ "egress": { "schemes": ["http", "https"] } }));
    assert!(allowed.plan().probe.is_some());
}

#[test]
fn a_service_by_http_gets_no_secret_unless_the_pool_allows_http() {
    let mut world = World::new();
    world.webhook["spec"] = json!({ "serviceRef": { "name": "shop", "port": 8080 } });
    assert!(world.plan().probe.is_some(), "a signature is no secret");
    if let Ok(material) = &mut world.reading.material {
        material.headers.push(("authorization".into(), SecretString::from("Bearer hunter2")));
    }
    let plan = world.plan();
    assert!(shown(&plan).starts_with("Ready=False:HttpNotAllowed") && plan.probe.is_none());
    assert_eq!(plan.status.endpoint.as_deref(), Some("http://shop.shop.svc"));
}

#[test]
fn a_status_never_holds_path_query_or_key() {
    let mut world = World::new();
    let mut texts = Vec::new();
    for verdict in [refused(), Verdict::Wanted] {
        texts.push(serde_json::to_string(&world.answer(verdict).status).unwrap());
        world.seconds += 600;
    }
    for text in texts {
        for secret in ["hunter2", "secret-path", "twenty-four"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

#[path = "plan_change_tests.rs"]
mod changes;

fn told(delivered: u64) -> DeliveriesEntry {
    serde_json::from_value(json!({
        "namespace": "shop", "name": "orders", "uid": "u-1", "delivered": delivered, "failed": 3, "pending": 2,
        "deadLetters": 1, "overflow": 0, "lastTime": "2026-11-23T12:00:00.7Z", "lastStatusCode": 503,
        "health": { "failing": { "reason": "CircuitOpen", "message": "It failed 20 times in a row.", "since": "2026-11-23T12:00:00Z" } },
    }))
    .unwrap()
}

fn verified_world() -> World {
    let mut world = World { indexed: Indexed::Yes, ..World::new() };
    world.settle();
    world.answer(Verdict::Wanted);
    world.settle();
    world
}

#[test]
fn an_endpoint_that_is_down_is_not_healthy_and_stays_ready() {
    let mut world = verified_world();
    world.told = Some(told(40));
    let status = world.settle().status;
    let shown = |type_| condition::find(&status.conditions, type_).map(|c| format!("{} {}", c.status, c.reason));
    assert_eq!(shown(ConditionType::Ready).as_deref(), Some("True Ready"));
    assert_eq!(shown(ConditionType::Healthy).as_deref(), Some("False CircuitOpen"));
    assert_eq!(shown(ConditionType::DeadLetterOverflow), None);
    let delivery = serde_json::to_value(status.delivery.unwrap()).unwrap();
    assert_eq!(
        delivery,
        json!({ "delivered": 40, "failed": 3, "pending": 2, "deadLetters": 1, "lastTime": "2026-11-23T12:00:00Z", "lastStatusCode": 503 })
    );
}

#[test]
fn what_was_told_stands_while_nobody_knows_better() {
    let mut world = verified_world();
    world.told = Some(DeliveriesEntry { overflow: 1, ..told(40) });
    let before = world.settle().status;
    world.told = None;
    world.seconds += 60;
    assert_eq!(world.plan().status, before, "a controller that just began takes nothing back");
}

#[test]
fn a_410_to_an_event_takes_verified_and_ready_away() {
    let mut world = verified_world();
    let at = Timestamp::from_second(T0 + 30).unwrap();
    world.seconds = 60;
    world.told = Some(DeliveriesEntry { gone_since: Some(Time(at)), ..told(1) });
    let plan = world.settle();
    assert_eq!(plan.status.verification.as_ref().unwrap().state, VerificationState::Gone);
    let ready = condition::find(&plan.status.conditions, ConditionType::Ready).unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "Gone"));
    assert!(condition::is_true(&plan.status.conditions, ConditionType::Stalled));
    assert_eq!(plan.notices.len(), 1);
    assert!(plan.probe.is_none(), "it is asked in half an hour");
    assert_eq!(world.plan().status, plan.status, "settled");
}
