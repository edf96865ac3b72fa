//! What becomes of events that cannot be delivered, on a real API server: cards,
//! Replays, and what deleting a card means.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use posthorn::api::{ConditionType, DeadLetter, Replay, ReplayStatus, Webhook, condition};
use serde_json::{Value, json};

use crate::{
    control_plane::{ControlPlane, Posthorn},
    delivery::received,
    publisher::{Publisher, grant},
    support::{Scope, WAIT, in_namespace, is_true, kubectl, repository},
};

/// How long counters may take to come into a status: they are written every 15 s
/// at most, and less often when many Webhooks have traffic.
const COUNTERS_LIMIT: Duration = Duration::from_secs(90);
/// Time between two looks.
const POLL: Duration = Duration::from_millis(200);

/// A Webhook with its Subscription that needs no handshake, whose endpoint fails
/// at first and whose retries end within a second.
fn failing(endpoint: &Value) -> [Value; 2] {
    let mut spec = json!({
        "verification": {"method": "None"},
        "delivery": {"retry": {"schedule": ["200ms", "300ms"]}, "circuit": {"failures": 0}}
    });
    spec.as_object_mut().unwrap().extend(endpoint.as_object().unwrap().clone());
    [
        json!({"apiVersion": "posthorn.dev/v1alpha1", "kind": "Webhook", "metadata": {"name": "hook"}, "spec": spec}),
        json!({
            "apiVersion": "posthorn.dev/v1alpha1", "kind": "Subscription", "metadata": {"name": "hook"},
            "spec": {"webhookRef": {"name": "hook"}, "events": ["order.*"]}
        }),
    ]
}

/// The receiver, the Webhook `hook` on a path of it that fails, and a publisher.
async fn set_up(scope: &Scope) -> Publisher {
    scope.start_inbox(&[]).await;
    for object in failing(&json!({"serviceRef": {"name": "inbox", "port": 80, "path": "/status/503"}})) {
        scope.apply_one(object).await.unwrap();
    }
    scope.ready("hook").await;
    Publisher::new(scope).await
}

async fn publish(scope: &Scope, publisher: &Publisher, count: usize) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    for number in 0..count {
        ids.insert(publisher.accepted(&scope.namespace, "order.paid", json!({"order": number})).await);
    }
    ids
}

async fn repair(scope: &Scope) {
    let patch = Patch::Merge(json!({"spec": {"serviceRef": {"path": "/repaired"}}}));
    scope.api::<Webhook>().patch("hook", &PatchParams::default(), &patch).await.unwrap();
    scope.ready("hook").await;
}

/// Waits until this many cards of the Webhook stand, and returns them.
async fn cards(scope: &Scope, count: usize) -> Vec<DeadLetter> {
    let start = Instant::now();
    let of_hook = ListParams::default().fields("spec.webhookRef.name=hook");
    loop {
        let cards = scope.api::<DeadLetter>().list(&of_hook).await.map(|list| list.items);
        if let Ok(cards) = &cards
            && cards.len() == count
        {
            return cards.clone();
        }
        assert!(start.elapsed() < WAIT, "not {count} cards within {WAIT:?}: {cards:#?}");
        tokio::time::sleep(POLL).await;
    }
}

fn event_id(card: &DeadLetter) -> String {
    card.spec.event.as_ref().unwrap().id.clone()
}

async fn make_replay(scope: &Scope, name: &str, what: Value) {
    let mut spec = json!({"webhookRef": {"name": "hook"}});
    spec.as_object_mut().unwrap().extend(what.as_object().unwrap().clone());
    let replay: Replay = serde_json::from_value(json!({
        "apiVersion": "posthorn.dev/v1alpha1", "kind": "Replay", "metadata": {"name": name}, "spec": spec
    }))
    .unwrap();
    scope.api::<Replay>().create(&PostParams::default(), &replay).await.unwrap();
}

fn is_complete(replay: &Replay) -> bool {
    replay.status.as_ref().is_some_and(|s| condition::is_true(&s.conditions, ConditionType::Complete))
}

/// Makes a Replay and waits until it is complete.
async fn replay(scope: &Scope, name: &str, what: Value) -> ReplayStatus {
    make_replay(scope, name, what).await;
    scope.wait(name, "Complete", is_complete).await.status.unwrap()
}

/// Matched, reopened, delivered, dead.
fn counts(status: &ReplayStatus) -> [Option<i64>; 4] {
    [status.matched, status.reopened, status.delivered, status.dead]
}

fn at_repaired(ids: impl IntoIterator<Item = String>) -> BTreeSet<(String, String)> {
    ids.into_iter().map(|id| ("/repaired".to_owned(), id)).collect()
}

#[test]
fn what_is_given_up_gets_a_card_and_a_replay_by_name_delivers_it() {
    in_namespace("dead", |scope| async move {
        let publisher = set_up(&scope).await;
        let ids = publish(&scope, &publisher, 3).await;
        let standing = cards(&scope, 3).await;
        assert_eq!(standing.iter().map(event_id).collect::<BTreeSet<_>>(), ids);
        for card in &standing {
            let spec = &card.spec;
            assert_eq!((spec.attempts, spec.last_status_code), (3, Some(503)), "{spec:?}");
            assert_eq!(spec.reason.as_str(), "Exhausted");
            assert!(spec.first_time <= spec.last_time, "{spec:?}");
        }
        let shown = kubectl(&["get", "deadletters", "-n", &scope.namespace]).await;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        let rows: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["NAME", "WEBHOOK", "EVENT", "TYPE", "REASON", "CODE", "ATTEMPTS", "AGE"], "{shown}");
        assert_eq!(rows[1][1..6], ["hook", "order.paid", "Exhausted", "503", "3"], "{shown}");
        let is_counted = |webhook: &Webhook| {
            let told = webhook.status.as_ref().and_then(|s| s.delivery.as_ref());
            told.is_some_and(|d| (d.dead_letters, d.failed, d.last_status_code) == (3, 9, Some(503)))
        };
        scope.wait_for("hook", "told of in its status", COUNTERS_LIMIT, is_counted).await;

        repair(&scope).await;
        let chosen = &standing[1];
        let name = chosen.metadata.name.clone().unwrap();
        let status = replay(&scope, "by-name", json!({"deadLetters": {"names": [name]}})).await;
        assert_eq!(counts(&status), [Some(1), Some(1), Some(1), Some(0)], "{status:?}");
        assert!(status.start_time.is_some() && status.completion_time.is_some(), "{status:?}");
        received(&scope, &at_repaired([event_id(chosen)])).await;
        let left: BTreeSet<_> = cards(&scope, 2).await.iter().map(event_id).collect();
        assert!(!left.contains(&event_id(chosen)), "its card goes");
    });
}

#[test]
fn a_replay_tells_how_far_it_is() {
    in_namespace("progress", |scope| async move {
        let publisher = set_up(&scope).await;
        let ids = publish(&scope, &publisher, 12).await;
        cards(&scope, 12).await;
        repair(&scope).await;
        make_replay(&scope, "slow", json!({"deadLetters": {"all": true}, "rate": 1})).await;
        let is_under_way = |replay: &Replay| {
            let delivered = replay.status.as_ref().and_then(|s| s.delivered).unwrap_or(0);
            !is_complete(replay) && (1..12).contains(&delivered)
        };
        let status = scope.wait("slow", "under way", is_under_way).await.status.unwrap();
        assert_eq!(status.matched, Some(12), "{status:?}");
        assert!(condition::is_true(&status.conditions, ConditionType::Reconciling), "{status:?}");
        let status = scope.wait("slow", "Complete", is_complete).await.status.unwrap();
        assert_eq!(counts(&status), [Some(12), Some(12), Some(12), Some(0)], "{status:?}");
        received(&scope, &at_repaired(ids)).await;
        cards(&scope, 0).await;
        scope.api::<Replay>().delete("slow", &DeleteParams::default()).await.unwrap();
        let again = replay(&scope, "slow", json!({"deadLetters": {"all": true}, "rate": 1})).await;
        let complete = condition::find(&again.conditions, ConditionType::Complete).unwrap();
        assert_eq!((complete.reason.as_str(), again.delivered), ("AlreadyRun", Some(12)), "{again:?}");
    });
}

#[test]
fn whoever_deletes_a_card_dismisses_its_delivery() {
    in_namespace("dismiss", |scope| async move {
        let publisher = set_up(&scope).await;
        publish(&scope, &publisher, 2).await;
        let standing = cards(&scope, 2).await;
        let (dismissed, kept) = (event_id(&standing[0]), event_id(&standing[1]));
        let name = standing[0].metadata.name.as_deref().unwrap();
        scope.api::<DeadLetter>().delete(name, &DeleteParams::default()).await.unwrap();
        repair(&scope).await;
        let start = Instant::now();
        for number in 0.. {
            let what = json!({"deadLetters": {"all": true}, "dryRun": true});
            let status = replay(&scope, &format!("dry-{number}"), what).await;
            if status.matched == Some(1) {
                break;
            }
            assert!(start.elapsed() < WAIT, "not dismissed within {WAIT:?}: {status:?}");
        }
        let status = replay(&scope, "all", json!({"deadLetters": {"all": true}})).await;
        assert_eq!(counts(&status), [Some(1), Some(1), Some(1), Some(0)], "{status:?}");
        received(&scope, &at_repaired([kept])).await;
        cards(&scope, 0).await;
        let status = replay(&scope, "by-id", json!({"events": {"ids": [dismissed]}})).await;
        assert_eq!(counts(&status), [Some(1), Some(1), Some(1), Some(0)], "its payload is kept: {status:?}");
        received(&scope, &at_repaired([dismissed])).await;
    });
}

/// Removes the kind DeadLetter with all cards, and installs it again.
async fn reinstall_crd(plane: &ControlPlane) {
    let crds: Api<CustomResourceDefinition> = Api::all(plane.client().await);
    let name = "deadletters.posthorn.dev";
    crds.delete(name, &DeleteParams::default()).await.unwrap();
    let start = Instant::now();
    while crds.get_opt(name).await.unwrap().is_some() {
        assert!(start.elapsed() < WAIT, "the CRD does not go within {WAIT:?}");
        tokio::time::sleep(POLL).await;
    }
    let text = std::fs::read_to_string(repository().join("crds/deadletters.yaml")).unwrap();
    let crd: CustomResourceDefinition = serde_yaml::from_str(&text).unwrap();
    crds.create(&PostParams::default(), &crd).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn cards_come_back_after_their_kind_was_removed_and_installed_again() {
    let plane = ControlPlane::up("cards").await;
    let mut posthorn = Posthorn::start(&plane, &plane.kubeconfig).await;
    let scope = plane.tenant().await;
    for object in failing(&json!({"url": format!("http://{}/status/503", posthorn.receiver)})) {
        scope.apply_one(object).await.unwrap();
    }
    scope.ready("hook").await;
    let publisher = Publisher::of(&scope, "publisher", &posthorn.ingest_url).await;
    // The chart's ClusterRole is not there.
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "publisher"},
        "rules": [{"apiGroups": ["posthorn.dev"], "resources": ["eventtypes/events"], "verbs": ["create"]}]
    });
    scope.apply_one(role).await.unwrap();
    grant(&scope, "publisher", "Role", "publisher").await;
    publisher.until_allowed(&scope.namespace, "test.granted").await;
    let ids = publish(&scope, &publisher, 3).await;
    cards(&scope, 3).await;
    reinstall_crd(&plane).await;
    let back: BTreeSet<_> = cards(&scope, 3).await.iter().map(event_id).collect();
    assert_eq!(back, ids);
    assert!(posthorn.is_running());
    let hook = scope.api::<Webhook>().get("hook").await.unwrap();
    assert!(is_true(&hook, ConditionType::Ready), "the endpoint's failures are not the Webhook's: {hook:#?}");
}
