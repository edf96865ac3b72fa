//! `examples/`: each manifest says only what the kinds know, every Webhook has
//! a Subscription, and each way of verification that exists is shown.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use posthorn::api::{Replay, Subscription, Webhook};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

/// What `make demo` applies at first.
fn documents() -> Vec<Value> {
    let folder = folder();
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with(|c: char| c.is_ascii_digit()));
    paths.sort();
    let texts: Vec<String> = paths.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    texts
        .iter()
        .flat_map(|text| serde_yaml::Deserializer::from_str(text).map(|d| Value::deserialize(d).unwrap()))
        .collect()
}

fn of_kind<K: DeserializeOwned + Serialize>(kind: &str) -> Vec<K> {
    let documents: Vec<Value> = documents().into_iter().filter(|d| d["kind"] == kind).collect();
    assert!(!documents.is_empty());
    documents
        .into_iter()
        .map(|document| {
            let object: K = serde_json::from_value(document.clone()).unwrap();
            assert_eq!(serde_json::to_value(&object).unwrap(), document, "a field that the kind does not know");
            object
        })
        .collect()
}

#[test]
fn every_example_says_only_what_the_kinds_know() {
    of_kind::<Webhook>("Webhook");
    of_kind::<Subscription>("Subscription");
}

#[test]
fn every_webhook_of_the_examples_has_a_subscription() {
    let webhooks: BTreeSet<_> = of_kind::<Webhook>("Webhook").into_iter().map(|w| w.metadata.name.unwrap()).collect();
    let named: BTreeSet<_> =
        of_kind::<Subscription>("Subscription").into_iter().map(|s| s.spec.webhook_ref.name).collect();
    assert_eq!(webhooks, named);
}

#[test]
fn the_example_of_a_replay_says_only_what_the_kind_knows_and_names_a_webhook() {
    let text = fs::read_to_string(folder().join("replay.yaml")).unwrap();
    let document: Value = serde_yaml::from_str(&text).unwrap();
    let replay: Replay = serde_json::from_value(document.clone()).unwrap();
    let mut known = serde_json::to_value(&replay).unwrap();
    // Only the API server writes a status.
    known.as_object_mut().unwrap().remove("status");
    assert_eq!(known, document, "a field that the kind does not know");
    let webhooks = of_kind::<Webhook>("Webhook");
    assert!(webhooks.iter().any(|w| w.metadata.name.as_deref() == Some(&replay.spec.webhook_ref.name)));
}

#[test]
fn every_way_of_verification_has_an_example() {
    let shown: BTreeSet<String> =
        of_kind::<Webhook>("Webhook").iter().map(|w| format!("{:?}", w.spec.effective_method())).collect();
    let schema = serde_json::to_value(schemars::schema_for!(posthorn::api::webhook::VerificationMethod)).unwrap();
    let choices = schema["oneOf"].as_array().unwrap().iter().map(|c| c["const"].as_str().unwrap().to_owned());
    assert_eq!(shown, choices.collect());
}
