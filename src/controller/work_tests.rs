//! The whole of the leader's work against an API server and a pod that are made
//! up: from objects that were applied to statuses that are Ready.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::{Mutex, MutexGuard},
};

use axum::{Json, Router, extract::State, routing};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};

use super::*;
use crate::{
    api::condition,
    controller::pods::PodAddress,
    runtime::metrics::MetricsRegistry,
    wire::{INDEX_PATH, PROBE_PATH, probe::ProbeRequest},
};

/// Time that a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(20);

/// An API server: keeps objects, answers lists, sends changes to watches.
#[derive(Clone, Default)]
struct ApiServer {
    state: Arc<Mutex<ApiState>>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct ApiState {
    version: u64,
    /// Resource (`webhooks`) → `namespace/name` → object.
    objects: BTreeMap<String, BTreeMap<String, Value>>,
    watches: Vec<(String, mpsc::UnboundedSender<Bytes>)>,
    /// Writes, as `METHOD resource`.
    writes: Vec<String>,
    /// Status codes for the next status writes.
    refusals: Vec<u16>,
    probes: HashMap<String, usize>,
    /// How often the list of Webhooks is still refused.
    refused_webhook_lists: usize,
    /// Watches from before this version must list anew.
    compacted: u64,
}

impl ApiServer {
    fn lock(&self) -> MutexGuard<'_, ApiState> {
        self.state.lock().unwrap()
    }

    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        Client::new(service, "default")
    }

    fn apply(&self, resource: &str, kind: &str, name: &str, spec: Value) {
        let mut state = self.lock();
        let key = format!("shop/{name}");
        let generation = state
            .objects
            .get(resource)
            .and_then(|all| all.get(&key))
            .map_or(1, |old| old["metadata"]["generation"].as_i64().unwrap() + 1);
        let object = json!({
            "apiVersion": "posthorn.dev/v1alpha1", "kind": kind,
            "metadata": {
                "name": name, "namespace": "shop", "uid": format!("uid-{name}"), "generation": generation,
                "creationTimestamp": condition::whole_seconds(clock::now())
            },
            "spec": spec,
            "status": state.objects.get(resource).and_then(|all| all.get(&key)).map_or(json!({ "observedGeneration": -1 }), |old| old["status"].clone()),
        });
        state.put(resource, key, object);
    }

    async fn answer(&self, request: Request<Body>) -> Response<BoxBody<Bytes, Infallible>> {
        let (parts, body) = request.into_parts();
        let path: Vec<&str> = parts.uri.path().trim_matches('/').split('/').collect();
        let start = if path[0] == "api" { 2 } else { 3 };
        let rest = &path[start..];
        let (namespace, rest) =
            if rest.first() == Some(&"namespaces") && rest.len() > 2 { (rest[1], &rest[2..]) } else { ("", rest) };
        let sent: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap_or_default();
        let query = parts.uri.query().unwrap_or_default();
        let since = query.split('&').find_map(|part| part.strip_prefix("resourceVersion=")?.parse().ok()).unwrap_or(0);
        let is_watch = query.contains("watch=true");
        let answer = match (parts.method.as_str(), rest) {
            ("GET", [resource]) if is_watch => return self.watch(resource, since),
            ("GET", ["webhooks"]) if self.lock().refuses_webhook_list() => (500, json!({})),
            ("GET", [resource]) => self.lock().list(resource),
            ("GET", [resource, name]) => self.lock().get(resource, &format!("{namespace}/{name}")),
            (method, [resource, ..]) => self.lock().write(method, resource, namespace, rest.get(1).copied(), sent),
            _ => (404, json!({})),
        };
        self.changed.notify_waiters();
        let (code, mut body) = answer;
        if code >= 400 {
            body = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": "x", "message": "no" });
        }
        let bytes = Bytes::from(serde_json::to_vec(&body).unwrap());
        Response::builder().status(code).body(Full::new(bytes).boxed()).unwrap()
    }

    fn watch(&self, resource: &str, since: u64) -> Response<BoxBody<Bytes, Infallible>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.lock();
        if since < state.compacted {
            let gone = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old" });
            sender.send(line("ERROR", &gone)).unwrap();
        } else {
            for object in state.objects.get(resource).into_iter().flat_map(|all| all.values()) {
                if object["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap() > since {
                    sender.send(line("MODIFIED", object)).unwrap();
                }
            }
            state.watches.push((resource.to_owned(), sender));
        }
        drop(state);
        let frames = stream_of(receiver).map(|bytes| Ok(hyper::body::Frame::data(bytes)));
        Response::new(BodyExt::boxed(StreamBody::new(SyncStream(Mutex::new(frames.boxed())))))
    }

    /// Waits until something holds of the state.
    async fn until(&self, what: &str, holds: impl Fn(&ApiState) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if holds(&self.lock()) {
                    return;
                }
                tokio::select! { () = changed => {}, () = tokio::time::sleep(Duration::from_millis(20)) => {} }
            }
        };
        if timeout(PATIENCE, wait).await.is_err() {
            let state = self.lock();
            panic!("{what} did not come: {:#?}\n{:?}", state.objects.get("webhooks"), state.writes);
        }
    }
}

/// A boxed body must be `Sync`; streams of ours are not.
struct SyncStream<S>(Mutex<S>);

impl<S: Stream + Unpin> Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        self.0.lock().unwrap().poll_next_unpin(context)
    }
}

impl ApiState {
    fn put(&mut self, resource: &str, key: String, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let is_new = self.objects.entry(resource.to_owned()).or_default().insert(key, object.clone()).is_none();
        self.tell(resource, if is_new { "ADDED" } else { "MODIFIED" }, &object);
        object
    }

    fn tell(&mut self, resource: &str, type_: &str, object: &Value) {
        let line = line(type_, object);
        self.watches.retain(|(of, sender)| of != resource || sender.send(line.clone()).is_ok());
    }

    fn refuses_webhook_list(&mut self) -> bool {
        let refuses = self.refused_webhook_lists > 0;
        self.refused_webhook_lists = self.refused_webhook_lists.saturating_sub(1);
        refuses
    }

    fn list(&self, resource: &str) -> (u16, Value) {
        let items: Vec<_> = self.objects.get(resource).into_iter().flat_map(|all| all.values().cloned()).collect();
        let version = self.version.to_string();
        (200, json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": version }, "items": items }))
    }

    fn get(&self, resource: &str, key: &str) -> (u16, Value) {
        self.objects.get(resource).and_then(|all| all.get(key)).map_or((404, json!({})), |object| (200, object.clone()))
    }

    fn write(
        &mut self,
        method: &str,
        resource: &str,
        namespace: &str,
        name: Option<&str>,
        sent: Value,
    ) -> (u16, Value) {
        self.writes.push(format!("{method} {resource}"));
        if method == "POST" {
            let key = format!("{namespace}/{}", sent["metadata"]["name"].as_str().unwrap_or_default());
            if self.get(resource, &key).0 == 200 {
                return (409, json!({}));
            }
            return (201, self.put(resource, key, sent));
        }
        let key = format!("{namespace}/{}", name.unwrap_or_default());
        let (200, mut object) = self.get(resource, &key) else {
            // The ledger's ConfigMaps are made by apply.
            return if resource == "configmaps" { (200, self.put(resource, key, sent)) } else { (404, json!({})) };
        };
        if let Some(code) = self.refusals.pop() {
            return (code, json!({}));
        }
        object["status"] = sent["status"].clone();
        (200, self.put(resource, key, object))
    }

    fn condition(&self, resource: &str, name: &str, type_: &str) -> String {
        let (_, object) = self.get(resource, &format!("shop/{name}"));
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().find(|condition| condition["type"] == type_).cloned().unwrap_or_default();
        format!("{}:{}", found["status"].as_str().unwrap_or("-"), found["reason"].as_str().unwrap_or("-"))
    }

    fn is_ready(&self, resource: &str, name: &str) -> bool {
        self.condition(resource, name, "Ready") == "True:Ready"
    }

    fn count(&self, write: &str) -> usize {
        self.writes.iter().filter(|w| *w == write).count()
    }
}

/// A pod that has every object in its index and whose endpoints answer a challenge
/// unless their Webhook is called `mute`.
async fn pod(server: ApiServer) -> String {
    let index = async |State(server): State<ApiServer>, query: axum::extract::Query<HashMap<String, String>>| {
        let after: u64 = query["after"].parse().unwrap();
        let server_ = server.clone();
        let has_news = move |state: &ApiState| state.version > after;
        timeout(Duration::from_secs(2), server_.until("news", has_news)).await.ok();
        let state = server.lock();
        let mut entries = Vec::new();
        for (resource, kind) in [("webhooks", "Webhook"), ("subscriptions", "Subscription")] {
            for object in state.objects.get(resource).into_iter().flat_map(|all| all.values()) {
                let metadata = &object["metadata"];
                entries.push(json!({ "kind": kind, "namespace": "shop", "name": metadata["name"], "uid": metadata["uid"], "generation": metadata["generation"] }));
            }
        }
        Json(
            json!({ "instance": "i", "reset": query["instance"].is_empty(), "synced": true, "revision": state.version, "more": false, "entries": entries }),
        )
    };
    let probe = async |State(server): State<ApiServer>, Json(request): Json<ProbeRequest>| {
        *server.lock().probes.entry(request.name.clone()).or_default() += 1;
        let challenge =
            request.headers.iter().find(|(name, _)| name == "webhook-challenge").unwrap().1.expose().to_owned();
        let body = if request.name == "mute" { String::new() } else { challenge };
        let answer = json!({ "status": 200, "headers": [], "body": body, "bodyTruncated": false });
        Json(json!({ "durationMs": 1, "outcome": { "answer": answer } }))
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router =
        Router::new().route(INDEX_PATH, routing::get(index)).route(PROBE_PATH, routing::post(probe)).with_state(server);
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

fn line(type_: &str, object: &Value) -> Bytes {
    let mut line = serde_json::to_vec(&json!({ "type": type_, "object": object })).unwrap();
    line.push(b'\n');
    Bytes::from(line)
}

struct Cluster {
    server: ApiServer,
    shutdown: CancellationToken,
    work: tokio::task::JoinHandle<()>,
    _token: tempfile::NamedTempFile,
}

impl Cluster {
    async fn start(server: ApiServer) -> Self {
        crate::runtime::tls::install_provider();
        let pool = json!({ "apiVersion": "posthorn.dev/v1alpha1", "kind": "DeliveryPool", "metadata": { "name": "default", "uid": "p" }, "spec": {} });
        server.lock().put("deliverypools", "/default".into(), pool);
        let template = pod(server.clone()).await;
        let token = tempfile::NamedTempFile::new().unwrap();
        let authority = rcgen::generate_simple_self_signed(["pod".to_owned()]).unwrap().cert.pem();
        let address = PodAddress { template, namespace: "posthorn-system".into() };
        let leadership = Leadership {
            client: server.client(),
            namespace: "posthorn-system".into(),
            identity: "test".into(),
            fingerprint_key: FingerprintKey::new([1; 32]),
            pods: PodClient::new(&authority, address, token.path().to_owned()).unwrap(),
            metrics: Metrics::register(&mut MetricsRegistry::new("controller")),
        };
        let shutdown = CancellationToken::new();
        let work = tokio::spawn(run(leadership, shutdown.clone()));
        Self { server, shutdown, work, _token: token }
    }

    async fn stop(self) -> ApiServer {
        self.shutdown.cancel();
        timeout(PATIENCE, self.work).await.expect("the work ends at shutdown").unwrap();
        self.server
    }
}

fn url() -> Value {
    json!({ "url": "https://hooks.example.com/x" })
}

fn to(webhook: &str) -> Value {
    json!({ "webhookRef": { "name": webhook }, "events": ["order.*"] })
}

#[tokio::test]
async fn what_is_applied_becomes_ready_with_few_writes_and_a_restart_adds_none() {
    let server = ApiServer::default();
    server.apply("webhooks", "Webhook", "early", url());
    let cluster = Cluster::start(server.clone()).await;
    server.apply("subscriptions", "Subscription", "orders", to("late"));
    server.apply("webhooks", "Webhook", "late", url());
    server
        .until("readiness", |s| {
            s.is_ready("webhooks", "early") && s.is_ready("webhooks", "late") && s.is_ready("subscriptions", "orders")
        })
        .await;
    {
        let state = server.lock();
        assert_eq!(state.count("POST secrets"), 2);
        assert_eq!(state.count("POST events"), 2);
        let (hooks, subscriptions) = (state.count("PATCH webhooks"), state.count("PATCH subscriptions"));
        assert!(hooks <= 6 && subscriptions <= 2, "{hooks} {subscriptions}");
        assert_eq!(state.probes, [("early".to_owned(), 1), ("late".to_owned(), 1)].into());
    }
    let server = cluster.stop().await;
    let writes = server.lock().writes.len();
    let cluster = Cluster::start(server).await;
    // The new life works: it does something new, and nothing over again.
    cluster.server.apply("webhooks", "Webhook", "third", url());
    cluster.server.until("readiness", |s| s.is_ready("webhooks", "third")).await;
    let server = cluster.stop().await;
    let state = server.lock();
    let again: Vec<_> = state.writes[writes..].iter().filter(|w| !w.ends_with("configmaps")).collect();
    assert!(again.len() <= 5, "{again:?}");
    assert_eq!((state.probes["early"], state.probes["late"]), (1, 1));
}

#[tokio::test]
async fn a_restart_whose_list_of_webhooks_comes_late_takes_nothing_back() {
    let server = ApiServer::default();
    server.apply("webhooks", "Webhook", "early", url());
    server.apply("subscriptions", "Subscription", "orders", to("early"));
    let cluster = Cluster::start(server).await;
    cluster.server.until("readiness", |s| s.is_ready("subscriptions", "orders")).await;
    let server = cluster.stop().await;
    let writes = {
        let mut state = server.lock();
        state.refused_webhook_lists = 1;
        state.writes.len()
    };
    let cluster = Cluster::start(server).await;
    cluster.server.apply("webhooks", "Webhook", "third", url());
    cluster.server.until("readiness", |s| s.is_ready("webhooks", "third")).await;
    let server = cluster.stop().await;
    let state = server.lock();
    assert_eq!(state.refused_webhook_lists, 0, "the list was late");
    let again: Vec<_> = state.writes[writes..].iter().filter(|w| w.ends_with("subscriptions")).collect();
    assert!(again.is_empty(), "{again:?}");
}

#[tokio::test]
async fn refused_writes_are_tried_again_until_all_is_well() {
    let server = ApiServer::default();
    server.lock().refusals = vec![500, 409, 429];
    server.apply("webhooks", "Webhook", "orders", url());
    let cluster = Cluster::start(server.clone()).await;
    server.until("readiness", |s| s.is_ready("webhooks", "orders")).await;
    assert_eq!(cluster.stop().await.lock().probes["orders"], 1, "a refused write asks nobody a second time");
}

#[tokio::test]
async fn a_bad_object_stops_nobody_and_a_wrong_answer_is_told() {
    let server = ApiServer::default();
    server.apply("webhooks", "Webhook", "bad", json!({ "url": 7 }));
    server.apply("webhooks", "Webhook", "mute", url());
    server.apply("webhooks", "Webhook", "good", url());
    let cluster = Cluster::start(server.clone()).await;
    server.until("readiness", |s| s.is_ready("webhooks", "good")).await;
    server.until("a verdict", |s| s.condition("webhooks", "mute", "Verified") == "False:VerificationPending").await;
    cluster.stop().await;
}

#[tokio::test]
async fn watches_that_are_cut_lose_nothing() {
    let server = ApiServer::default();
    let cluster = Cluster::start(server.clone()).await;
    server.apply("webhooks", "Webhook", "one", url());
    server.until("readiness", |s| s.is_ready("webhooks", "one")).await;
    server.lock().watches.clear();
    server.apply("webhooks", "Webhook", "two", url());
    server.until("readiness", |s| s.is_ready("webhooks", "two")).await;
    cluster.stop().await;
}

#[tokio::test]
async fn what_was_deleted_while_the_watch_was_too_old_is_noticed_after_the_list() {
    let server = ApiServer::default();
    let cluster = Cluster::start(server.clone()).await;
    server.apply("webhooks", "Webhook", "one", url());
    server.apply("subscriptions", "Subscription", "s", to("one"));
    server.until("readiness", |s| s.is_ready("subscriptions", "s")).await;
    {
        let mut state = server.lock();
        state.objects.get_mut("webhooks").unwrap().remove("shop/one");
        state.version += 1;
        state.compacted = state.version;
        state.watches.clear();
    }
    server
        .until("the loss of the Webhook", |s| s.condition("subscriptions", "s", "Ready") == "False:WebhookNotFound")
        .await;
    cluster.stop().await;
}
