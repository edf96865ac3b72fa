//! The sender against endpoints on loopback and a double of the API server:
//! gate, Secrets, signatures, budgets, connections, and what is told of it all.

mod budgets;
mod canary;
mod connections;
mod endpoint;
mod gate;
mod history;
mod secrets;
mod signatures;
mod tls;
mod vault;

use std::{
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex},
};

use futures::future::BoxFuture;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use posthorn::{
    api::Reason,
    delivery::sender::{Pace, RunDir, SecretCache, Sender},
    dispatch::{AttemptEnd, AttemptJob, AttemptReport, AttemptSender, Hold},
    egress::{Clients, Resolve, ResolveError, ServiceResolver},
    event::{Event, EventHead, EventId, Pos, StoreTime},
    policy::egress::{ClusterNetworks, EgressPolicy},
    routing::index::{Index, WebhookEntry},
    runtime::clock,
    store::HookId,
    verify::fingerprint::{Bound, FingerprintKey},
};
use rustls::RootCertStore;
use serde_json::{Value, json};
use tokio::sync::watch;

use self::{endpoint::Endpoint, vault::Vault};

const NAMESPACE: &str = "shop";
/// A key that is one in every dialect.
const KEY: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
/// Another one.
const OLD_KEY: &str = "whsec_ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=";
/// Name of the Secret that the controller makes for the Webhook `orders`.
const SIGNING: &str = "orders-signing";

/// Name servers of the test: what they say can be changed.
#[derive(Clone)]
struct Names(Arc<Mutex<Vec<IpAddr>>>);

impl Names {
    fn set(&self, addresses: &[&str]) {
        *self.0.lock().unwrap() = addresses.iter().map(|address| address.parse().unwrap()).collect();
    }
}

impl Resolve for Names {
    fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, ResolveError>> {
        let addresses = self.0.lock().unwrap().clone();
        Box::pin(async move { Ok(addresses) })
    }
}

/// http and https; private addresses are refused, loopback is not.
fn policy() -> Arc<EgressPolicy> {
    let egress = serde_json::from_value(json!({ "schemes": ["https", "http"] })).unwrap();
    Arc::new(EgressPolicy::compile(Some(&egress), &ClusterNetworks::default()).unwrap().allow_loopback())
}

/// A sender and all that it asks.
struct Rig {
    sender: Sender,
    cache: SecretCache,
    vault: Vault,
    names: Names,
    clients: watch::Sender<Option<Arc<Clients>>>,
    key: watch::Sender<Option<FingerprintKey>>,
}

impl Rig {
    /// With the key of the Webhook `orders` in its Secret.
    fn new() -> Self {
        let vault = Vault::default();
        vault.put(SIGNING, json!({ "secret": KEY }));
        Self::with(vault, None)
    }

    fn with(vault: Vault, run_dir: Option<&Path>) -> Self {
        let names = Names(Arc::default());
        names.set(&["127.0.0.1"]);
        let resolver: Arc<dyn Resolve> = Arc::new(names.clone());
        let clients = Clients::new(policy(), resolver, Arc::new(RootCertStore::empty())).unwrap();
        let (clients, of_pool) = watch::channel(Some(Arc::new(clients)));
        let (key, of_pod) = watch::channel(Some(fingerprint_key()));
        let run_dir = run_dir.map(|folder| Arc::new(RunDir::open(folder).unwrap()));
        let cache = SecretCache::new(vault.client(), run_dir, Pace::default());
        let services = ServiceResolver::new(vault.client());
        let sender = Sender::new(of_pool, services, cache.clone(), of_pod, "posthorn.example");
        Self { sender, cache, vault, names, clients, key }
    }

    async fn attempt(&self, webhook: &Arc<WebhookEntry>) -> AttemptReport {
        self.sender.attempt(job(webhook)).await
    }

    /// An attempt that got an answer: its status code.
    async fn code(&self, webhook: &Arc<WebhookEntry>) -> u16 {
        match self.attempt(webhook).await.end {
            AttemptEnd::Answered { code, .. } => code,
            end => panic!("no answer: {end:?}"),
        }
    }

    /// An attempt of which nothing went out and that used up no try: why.
    async fn hold(&self, webhook: &Arc<WebhookEntry>) -> Hold {
        match self.attempt(webhook).await.end {
            AttemptEnd::NotSent(hold) => hold,
            end => panic!("not held: {end:?}"),
        }
    }

    /// An attempt that failed: why.
    async fn failure(&self, webhook: &Arc<WebhookEntry>) -> Reason {
        match self.attempt(webhook).await.end {
            AttemptEnd::Failed { reason, .. } => reason,
            end => panic!("no failure: {end:?}"),
        }
    }
}

fn fingerprint_key() -> FingerprintKey {
    FingerprintKey::new([7; 32])
}

fn job(webhook: &Arc<WebhookEntry>) -> AttemptJob {
    job_with(webhook, event(None, r#"{"n":1}"#))
}

fn job_with(webhook: &Arc<WebhookEntry>, event: Event) -> AttemptJob {
    AttemptJob {
        hook: HookId(1),
        namespace: Arc::from(NAMESPACE),
        webhook: Arc::clone(webhook),
        withdrawn: None,
        event: Arc::new(event),
        shape: None,
    }
}

fn event(content_type: Option<&str>, data: impl Into<bytes::Bytes>) -> Event {
    Event {
        id: EventId { time_ms: 1_795_000_000_000, epoch: 1, partition: 0, pos: Pos(42) },
        at: StoreTime(0),
        accepted: "2026-11-23T09:00:00.123Z".parse().unwrap(),
        namespace: Arc::from(NAMESPACE),
        namespace_uid: Arc::from("uid-shop"),
        head: EventHead {
            event_type: "load_completed".into(),
            source: "shop".into(),
            content_type: content_type.map(Into::into),
            ..EventHead::default()
        },
        data: data.into(),
    }
}

fn seconds(n: i64) -> Timestamp {
    Timestamp::from_second(clock::now().as_second() + n).unwrap()
}

/// The object of the Webhook `orders`.
fn object(spec: &Value, verification: &Value) -> Value {
    json!({
        "apiVersion": "posthorn.dev/v1alpha1", "kind": "Webhook",
        "metadata": { "name": "orders", "namespace": NAMESPACE, "uid": "uid-orders", "generation": 1 },
        "spec": spec,
        "status": { "observedGeneration": 1, "verification": verification },
    })
}

/// A Webhook as a pod has it in its index.
fn entry(object: &Value) -> Arc<WebhookEntry> {
    let mut index = Index::new("default", "i");
    index.apply_namespace(NAMESPACE, "uid-shop", None);
    index.apply_webhook(&serde_json::from_value(object.clone()).unwrap());
    Arc::clone(index.webhook(NAMESPACE, "orders").expect("a Webhook that this version can read"))
}

/// The status that the controller writes when it has verified an endpoint.
fn verification(spec: &Value, endpoint: &str) -> Value {
    verification_of("uid-orders", spec, endpoint)
}

fn verification_of(uid: &str, spec: &Value, endpoint: &str) -> Value {
    let webhook = entry(&object(spec, &json!({ "state": "Unverified" })));
    let bound = Bound {
        uid,
        endpoint,
        method: webhook.method,
        http_method: webhook.sending.http_method,
        verified_time: Some(seconds(-60)),
        valid_until: Some(seconds(3600)),
    };
    json!({
        "state": "Verified",
        "fingerprint": fingerprint_key().fingerprint(bound),
        "verifiedTime": bound.verified_time.map(Time),
        "validUntil": bound.valid_until.map(Time),
    })
}

/// A Webhook whose endpoint is verified; for `urlFrom` the URL of the Secret.
fn verified_at(spec: &Value, endpoint: &str) -> Arc<WebhookEntry> {
    entry(&object(spec, &verification(spec, endpoint)))
}

/// A Webhook with a verified `spec.url`.
fn verified(spec: &Value) -> Arc<WebhookEntry> {
    verified_at(spec, spec["url"].as_str().unwrap())
}

fn merged(mut one: Value, two: &Value) -> Value {
    one.as_object_mut().unwrap().extend(two.as_object().unwrap().clone());
    one
}
