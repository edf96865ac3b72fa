//! The API server as the sender sees it: it gives Secrets, or it does not.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use kube::Client;
use serde_json::{Value, json};

use super::NAMESPACE;
use crate::fake_api::{self, Answer};

/// How the API server does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mood {
    #[default]
    Up,
    /// Every request gets this status code.
    Code(u16),
    /// No request gets an answer.
    Hangs,
}

#[derive(Default)]
struct State {
    mood: Mood,
    /// By name, in the namespace of the tests.
    secrets: BTreeMap<String, Value>,
    gets: Vec<String>,
}

/// Secrets, and a note of every request. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Vault(Arc<Mutex<State>>);

impl Vault {
    /// Makes or changes a Secret of type Opaque.
    pub(super) fn put(&self, name: &str, values: Value) {
        self.put_as(name, "Opaque", &values);
    }

    pub(super) fn put_as(&self, name: &str, type_: &str, values: &Value) {
        let encode = |(key, value): (&String, &Value)| (key.clone(), STANDARD.encode(value.as_str().unwrap()).into());
        let data: serde_json::Map<String, Value> = values.as_object().unwrap().iter().map(encode).collect();
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": type_, "data": data,
            "metadata": { "name": name, "namespace": NAMESPACE },
        });
        self.0.lock().unwrap().secrets.insert(name.to_owned(), secret);
    }

    pub(super) fn delete(&self, name: &str) {
        self.0.lock().unwrap().secrets.remove(name);
    }

    pub(super) fn set(&self, mood: Mood) {
        self.0.lock().unwrap().mood = mood;
    }

    /// Requests so far, all of which were for one Secret of the namespace.
    pub(super) fn gets(&self) -> Vec<String> {
        self.0.lock().unwrap().gets.clone()
    }

    pub(super) fn client(&self) -> Client {
        let state = Arc::clone(&self.0);
        fake_api::client(move |method, path, _| {
            let mut state = state.lock().unwrap();
            let prefix = format!("/api/v1/namespaces/{NAMESPACE}/secrets/");
            let name = path.strip_prefix(&prefix).filter(|_| method == "GET").map(|name| name.trim_end_matches('?'));
            let name = name.unwrap_or_else(|| panic!("Secrets are read by get alone: {method} {path}"));
            state.gets.push(name.to_owned());
            match state.mood {
                Mood::Hangs => Answer::Never,
                Mood::Code(code) => status(code),
                Mood::Up => {
                    state.secrets.get(name).map_or_else(|| status(404), |secret| Answer::Json(200, secret.clone()))
                }
            }
        })
    }
}

fn status(code: u16) -> Answer {
    let body = json!({ "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": "X", "message": "no" });
    Answer::Json(code, body)
}
