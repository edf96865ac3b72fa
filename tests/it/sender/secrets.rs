//! Secrets: when they are read, and what holds while they cannot be.

use std::time::Duration;

use futures::future::join_all;
use posthorn::{
    api::Reason,
    delivery::sender::{
        Pace,
        secret_cache::{READ_TIMEOUT, READINGS_MAX},
    },
};
use serde_json::{Value, json};
use tokio::time::{Instant, advance, pause};

use super::{
    Endpoint, KEY, OLD_KEY, Rig, SIGNING,
    endpoint::answer,
    entry, merged, object,
    vault::{Mood, Vault},
    verified,
};

/// Lets a part of the time pass for which values are fresh or doubtful, without
/// a timer of the client firing on the way.
pub(super) async fn pass(duration: Duration) {
    pause();
    advance(duration).await;
    tokio::time::resume();
}

fn signature_of(request: &super::endpoint::Received) -> String {
    request.header("impira-signature").unwrap().to_owned()
}

/// Impira signs the body alone, so one key always makes one signature.
fn impira(endpoint: &Endpoint) -> Value {
    json!({ "url": endpoint.url("/hook"), "dialect": "Impira" })
}

#[tokio::test]
async fn a_secret_is_read_once_and_again_after_five_minutes() {
    let endpoint = Endpoint::code(200).await;
    let rig = Rig::new();
    let webhook = verified(&impira(&endpoint));
    for _ in 0..20 {
        rig.code(&webhook).await;
    }
    assert_eq!(rig.vault.gets(), [SIGNING]);
    rig.vault.put(SIGNING, json!({ "secret": OLD_KEY }));
    // Wide apart: a machine that is busy lets some real time pass as well.
    pass(Pace::default().fresh - Duration::from_secs(60)).await;
    rig.code(&webhook).await;
    assert_eq!(rig.vault.gets().len(), 1, "still fresh");
    pass(Duration::from_secs(60)).await;
    rig.code(&webhook).await;
    let requests = endpoint.requests();
    assert_eq!(rig.vault.gets().len(), 2);
    assert_ne!(signature_of(&requests[21]), signature_of(&requests[20]), "signed with the new key");
    assert_eq!(signature_of(&requests[20]), signature_of(&requests[0]));
}

#[tokio::test]
async fn attempts_at_once_share_one_reading() {
    let endpoint = Endpoint::code(200).await;
    let rig = Rig::new();
    let webhook = verified(&impira(&endpoint));
    let codes = join_all((0..32).map(|_| rig.code(&webhook))).await;
    assert!(codes.iter().all(|code| *code == 200));
    assert_eq!(rig.vault.gets(), [SIGNING]);
}

#[tokio::test]
async fn an_answer_401_or_403_has_the_secret_read_once_and_not_in_a_loop() {
    for code in [401, 403] {
        let endpoint = Endpoint::code(code).await;
        let rig = Rig::new();
        let webhook = verified(&impira(&endpoint));
        for _ in 0..10 {
            assert_eq!(rig.code(&webhook).await, code);
        }
        assert_eq!(rig.vault.gets().len(), 1, "{code}: not within {:?} of the last reading", Pace::default().distrust);
        for (round, times) in [(2, 1), (3, 2), (4, 4)] {
            for part in 1..=times {
                pass(Pace::default().distrust).await;
                for _ in 0..10 {
                    rig.code(&webhook).await;
                }
                let expected = round - usize::from(part < times);
                assert_eq!(
                    rig.vault.gets().len(),
                    expected,
                    "{code}: one reading however many attempts, and ever rarer"
                );
            }
        }
    }
    let endpoint = Endpoint::code(404).await;
    let rig = Rig::new();
    let webhook = verified(&impira(&endpoint));
    for _ in 0..3 {
        assert_eq!(rig.code(&webhook).await, 404);
        pass(Pace::default().distrust).await;
    }
    assert_eq!(rig.vault.gets().len(), 1, "other answers say nothing of the Secret");
}

#[tokio::test]
async fn a_key_that_was_rotated_at_both_ends_is_found_after_one_refusal() {
    let endpoint = Endpoint::new(|request| {
        let expected = "whsec_ZmVkY2Jh";
        answer(if request.header("x-token").unwrap().starts_with(expected) { 200 } else { 401 }, "", "")
    })
    .await;
    let rig = Rig::new();
    rig.vault.put("token", json!({ "t": KEY }));
    let from = json!({ "headersFrom": [{ "name": "x-token", "secretRef": { "name": "token", "key": "t" } }] });
    let webhook = verified(&merged(impira(&endpoint), &from));
    assert_eq!(rig.code(&webhook).await, 401);
    rig.vault.put("token", json!({ "t": OLD_KEY }));
    pass(Pace::default().distrust).await;
    assert_eq!(rig.code(&webhook).await, 200);
}

#[tokio::test]
async fn a_secret_that_is_deleted_holds_the_webhook_without_using_a_try() {
    let endpoint = Endpoint::code(200).await;
    let rig = Rig::new();
    let webhook = verified(&impira(&endpoint));
    assert_eq!(rig.code(&webhook).await, 200);
    rig.vault.delete(SIGNING);
    pass(Pace::default().fresh).await;
    let hold = rig.hold(&webhook).await;
    assert_eq!(hold.reason, Reason::SecretNotFound);
    assert!(hold.message.contains(SIGNING) && hold.retry_after <= Some(Pace::default().backoff_first), "{hold:?}");
    assert_eq!(endpoint.requests().len(), 1);
    rig.hold(&webhook).await;
    assert_eq!(rig.vault.gets().len(), 2, "it is not asked for at every attempt");
    rig.vault.put(SIGNING, json!({ "secret": KEY }));
    pass(Pace::default().backoff_first).await;
    assert_eq!(rig.code(&webhook).await, 200);
}

#[tokio::test]
async fn what_cannot_be_used_holds_with_its_own_reason() {
    let endpoint = Endpoint::code(200).await;
    let check = async |type_: &str, values: Value, expected: Reason| {
        let vault = Vault::default();
        vault.put_as(SIGNING, type_, &values);
        let rig = Rig::with(vault, None);
        let hold = rig.hold(&verified(&impira(&endpoint))).await;
        assert_eq!(hold.reason, expected, "{type_}");
        assert!(!hold.message.contains("hunter2"), "{}", hold.message);
    };
    check("Opaque", json!({ "other": "hunter2hunter2hunter2" }), Reason::SecretKeyMissing).await;
    check("Opaque", json!({ "secret": "" }), Reason::SecretEmpty).await;
    check("Opaque", json!({ "secret": "hunter2" }), Reason::SecretTooShort).await;
    check("Opaque", json!({ "secret": "hunter2hunter2hunter2\n" }), Reason::SecretInvalid).await;
    for type_ in [
        "kubernetes.io/service-account-token",
        "kubernetes.io/dockerconfigjson",
        "kubernetes.io/tls",
        "helm.sh/release.v1",
    ] {
        check(type_, json!({ "secret": "hunter2hunter2hunter2" }), Reason::SecretTypeForbidden).await;
    }
    endpoint.check_silence().await;
    let rig = Rig::new();
    rig.vault.set(Mood::Code(403));
    assert_eq!(rig.hold(&verified(&impira(&endpoint))).await.reason, Reason::SecretNotReadable);
    endpoint.check_silence().await;
}

#[tokio::test]
async fn while_the_api_server_is_away_known_values_serve_for_hours() {
    let endpoint = Endpoint::code(200).await;
    let rig = Rig::new();
    let webhook = verified(&impira(&endpoint));
    rig.code(&webhook).await;
    rig.vault.set(Mood::Code(503));
    for _ in 0..12 {
        pass(Duration::from_secs(3600)).await;
        assert_eq!(rig.code(&webhook).await, 200);
    }
    assert_eq!(rig.vault.gets().len(), 13, "it is asked from time to time");
    for _ in 0..20 {
        assert_eq!(rig.code(&webhook).await, 200);
    }
    assert_eq!(rig.vault.gets().len(), 13, "and not at every attempt");
}

#[tokio::test]
async fn without_known_values_the_webhook_is_held_until_the_api_server_is_back() {
    let endpoint = Endpoint::code(200).await;
    let rig = Rig::new();
    let webhook = verified(&impira(&endpoint));
    rig.vault.set(Mood::Code(500));
    let hold = rig.hold(&webhook).await;
    assert_eq!(hold.reason, Reason::SecretUnavailable);
    assert!(hold.retry_after.is_some_and(|after| after <= Pace::default().backoff_first));
    endpoint.check_silence().await;
    rig.vault.set(Mood::Up);
    pass(Pace::default().backoff_first).await;
    assert_eq!(rig.code(&webhook).await, 200);
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_hangs_costs_five_seconds_and_no_try() {
    let endpoint = Endpoint::code(200).await;
    let rig = Rig::new();
    rig.vault.set(Mood::Hangs);
    let webhook = verified(&impira(&endpoint));
    let start = Instant::now();
    assert_eq!(rig.hold(&webhook).await.reason, Reason::SecretUnavailable);
    assert!(start.elapsed() >= READ_TIMEOUT && start.elapsed() < READ_TIMEOUT * 2, "{:?}", start.elapsed());
    assert_eq!(rig.hold(&webhook).await.reason, Reason::SecretUnavailable);
    assert!(start.elapsed() < READ_TIMEOUT * 2, "the next attempt does not wait for it again");
    assert_eq!(rig.vault.gets().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn many_webhooks_ask_few_at_a_time() {
    let rig = Rig::new();
    rig.vault.set(Mood::Hangs);
    let webhooks: Vec<_> = (0..READINGS_MAX * 4)
        .map(|number| {
            let spec = json!({ "urlFrom": { "name": format!("s{number}"), "key": "u" } });
            let mut object = object(&spec, &super::verification(&spec, ""));
            object["metadata"]["uid"] = json!(format!("uid-{number}"));
            object["status"]["verification"]["state"] = json!("Verified");
            entry(&object)
        })
        .collect();
    let asked = join_all(webhooks.iter().map(|webhook| rig.cache.get(super::NAMESPACE, webhook)));
    let all = asked.await;
    assert!(all.iter().all(|result| result.as_ref().is_err_and(|hold| hold.reason == Reason::SecretUnavailable)));
    assert_eq!(rig.vault.gets().len(), READINGS_MAX, "those that had no turn gave up without asking");
}

#[tokio::test]
async fn a_restart_without_the_api_server_signs_with_the_values_of_before() {
    let endpoint = Endpoint::code(200).await;
    let folder = tempfile::tempdir().unwrap();
    let vault = Vault::default();
    vault.put(SIGNING, json!({ "secret": KEY }));
    let webhook = verified(&impira(&endpoint));
    assert_eq!(Rig::with(vault.clone(), Some(folder.path())).code(&webhook).await, 200);

    vault.set(Mood::Code(503));
    assert_eq!(Rig::with(vault.clone(), Some(folder.path())).code(&webhook).await, 200);
    let requests = endpoint.requests();
    assert_eq!(signature_of(&requests[0]), signature_of(&requests[1]));

    let other = merged(impira(&endpoint), &json!({ "signing": { "secretRef": { "name": "other", "key": "k" } } }));
    let held = Rig::with(vault.clone(), Some(folder.path())).hold(&verified(&other)).await;
    assert_eq!(held.reason, Reason::SecretUnavailable, "values of another Secret are no substitute");

    vault.set(Mood::Up);
    vault.delete(SIGNING);
    assert_eq!(Rig::with(vault.clone(), Some(folder.path())).hold(&webhook).await.reason, Reason::SecretNotFound);
    vault.set(Mood::Code(503));
    let held = Rig::with(vault, Some(folder.path())).hold(&webhook).await;
    assert_eq!(held.reason, Reason::SecretUnavailable, "what was revoked does not come back");
    assert_eq!(endpoint.requests().len(), 2);
}

#[tokio::test]
async fn a_webhook_that_is_gone_leaves_nothing_in_memory_or_in_the_folder() {
    let endpoint = Endpoint::code(200).await;
    let folder = tempfile::tempdir().unwrap();
    let vault = Vault::default();
    vault.put(SIGNING, json!({ "secret": KEY }));
    let rig = Rig::with(vault.clone(), Some(folder.path()));
    let webhook = verified(&impira(&endpoint));
    rig.code(&webhook).await;
    rig.cache.forget(super::NAMESPACE, &webhook.uid);
    vault.set(Mood::Code(503));
    assert_eq!(rig.hold(&webhook).await.reason, Reason::SecretUnavailable);
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(!text.contains("orders"), "{text}");
    }
}

#[tokio::test]
async fn the_annotation_has_it_read_at_once() {
    let endpoint = Endpoint::code(200).await;
    let rig = Rig::new();
    let spec = impira(&endpoint);
    let with = |reload: &str| {
        let mut object = object(&spec, &super::verification(&spec, &endpoint.url("/hook")));
        object["metadata"]["annotations"] = json!({ "posthorn.dev/reload": reload });
        entry(&object)
    };
    for (reload, gets) in [("1", 1), ("1", 1), ("2", 2), ("2", 2), ("3", 3)] {
        assert_eq!(rig.code(&with(reload)).await, 200);
        assert_eq!(rig.vault.gets().len(), gets, "{reload}");
    }
}
