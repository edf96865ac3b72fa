//! Ingest over HTTP, before a store and an API server that say what they are
//! told to.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderMap, Request},
    response::Response,
};
use http_body_util::BodyExt;
use posthorn::{
    access::{KubeAuthorizer, KubeTokenReviewer, publish::PublishAccess},
    event::EVENT_BYTES_MAX,
    ingest::{
        Authentication, Door, EventRate, IngestApi, IngestMetrics, IngestParts, IngestSettings,
        limits::{BODY_TIMEOUT, REQUESTS_PER_NAMESPACE_MAX, TYPES_ASKED_MAX},
        parse::BATCH_BYTES_MAX,
        serve,
    },
    routing::index::{Index, SharedIndex},
    runtime::{connections::Answer as _, metrics::MetricsRegistry, reachability::Reachability},
    store::{AcceptError, Accepted, Space},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use crate::{
    access::token,
    fake_api::{self, Answer},
    fake_ingest::{FakeIngest, Verdict, id},
    index,
};

const PUBLISHER: &str = "system:serviceaccount:shop:checkout";
/// Far in the future: these tests run on the real clock.
const NEVER: i64 = 32_503_680_000;
const EVENTS: &str = "/v1/namespaces/shop/events";

/// What the API server says.
#[derive(Default)]
struct Cluster {
    is_away: bool,
    /// Tokens are not valid.
    refuses: bool,
    /// Namespaces with the type, or `*` for all.
    rights: BTreeSet<(String, String)>,
    /// What it was asked.
    asked: Vec<String>,
}

fn answer(cluster: &mut Cluster, path: &str, body: &Value) -> Answer {
    if cluster.is_away {
        return Answer::Json(500, json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500 }));
    }
    let (kind, group, status) = if path.contains("tokenreviews") {
        cluster.asked.push("token".to_owned());
        assert_eq!(body["spec"]["audiences"], json!(["posthorn"]));
        let user = json!({ "username": PUBLISHER, "uid": "7", "groups": ["system:serviceaccounts"] });
        let status = json!({ "authenticated": !cluster.refuses, "audiences": ["posthorn"], "user": user });
        ("TokenReview", "authentication", status)
    } else {
        let attributes = &body["spec"]["resourceAttributes"];
        let expected =
            json!({ "verb": "create", "group": "posthorn.dev", "resource": "eventtypes", "subresource": "events" });
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(&attributes[name], value, "{attributes}");
        }
        assert_eq!((&body["spec"]["user"], &body["spec"]["uid"]), (&json!(PUBLISHER), &json!("7")));
        let text = |name: &str| attributes[name].as_str().unwrap_or("*").to_owned();
        let right = (text("namespace"), text("name"));
        cluster.asked.push(format!("{} {}", right.0, right.1));
        ("SubjectAccessReview", "authorization", json!({ "allowed": cluster.rights.contains(&right) }))
    };
    let api_version = format!("{group}.k8s.io/v1");
    Answer::Json(201, json!({ "apiVersion": api_version, "kind": kind, "metadata": {}, "spec": {}, "status": status }))
}

/// A pod that takes events in.
struct Pod {
    door: Door,
    api: IngestApi,
    store: Arc<FakeIngest>,
    cluster: Arc<Mutex<Cluster>>,
    settings: watch::Sender<IngestSettings>,
    index: Arc<SharedIndex>,
    registry: MetricsRegistry,
}

impl Pod {
    fn new(settings: IngestSettings) -> Self {
        let cluster = Arc::new(Mutex::new(Cluster::default()));
        let client = {
            let cluster = Arc::clone(&cluster);
            fake_api::client(move |_, path, body| answer(&mut cluster.lock().unwrap(), path, &body))
        };
        let reviewer = Arc::new(KubeTokenReviewer::new(client.clone()));
        let access = PublishAccess::new(reviewer, Arc::new(KubeAuthorizer::new(client)), None, Reachability::default());
        let (store, (settings, newest)) = (Arc::new(FakeIngest::default()), watch::channel(settings));
        let index = Arc::new(SharedIndex::new(Index::new(index::POOL, "one")));
        let mut registry = MetricsRegistry::new("test");
        let api = IngestApi::new(IngestParts {
            store: Arc::clone(&store) as _,
            namespaces: Arc::clone(&index),
            access,
            settings: newest,
            metrics: IngestMetrics::register(&mut registry),
            service_of: Box::new(|pool| format!("posthorn-{pool}.posthorn-system.svc")),
        });
        Self { door: api.clone().door(), api, store, cluster, settings, index, registry }
    }

    /// A pod with its namespaces, and a publisher who may publish all in `shop`.
    fn ready() -> Self {
        let pod = Self::new(IngestSettings::default());
        pod.index.update(|index| {
            index::ALL.into_iter().for_each(|kind| index.begin_list(kind));
            index.apply_namespace("shop", "uid-shop", None);
            index.apply_namespace("depot", "uid-depot", None);
            index.apply_namespace("bank", "uid-bank", Some("secure"));
            index::ALL.into_iter().for_each(|kind| index.end_list(kind));
        });
        pod.grant("shop", "*");
        pod
    }

    fn grant(&self, namespace: &str, event_type: &str) {
        self.cluster.lock().unwrap().rights.insert((namespace.to_owned(), event_type.to_owned()));
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.cluster.lock().unwrap().asked)
    }

    async fn send(&self, request: Request<Body>) -> Reply {
        Reply::of(self.door.clone().answer(request).await).await
    }

    /// Publishes with a good token.
    async fn post(&self, path: &str, content_type: &str, body: impl Into<Body>) -> Reply {
        self.send(request(path, content_type, body)).await
    }

    async fn publish(&self, body: &Value) -> Reply {
        self.post(EVENTS, "application/json", body.to_string()).await
    }

    fn answer_next(&self, answer: Result<Vec<Verdict>, AcceptError>) {
        self.store.answers.lock().unwrap().push_back(answer);
    }

    fn accepted(&self) -> usize {
        self.store.batches.lock().unwrap().iter().map(Vec::len).sum()
    }
}

fn request(path: &str, content_type: &str, body: impl Into<Body>) -> Request<Body> {
    let bearer = format!("Bearer {}", token(PUBLISHER, "posthorn", NEVER).expose());
    let request = Request::post(path).header("authorization", bearer).header("content-type", content_type);
    request.body(body.into()).unwrap()
}

#[derive(Debug)]
struct Reply {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Reply {
    async fn of(response: Response) -> Self {
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&body).unwrap_or_default();
        Self { status: head.status.as_u16(), headers: head.headers, body }
    }

    /// A problem in good form, of this status.
    fn check(&self, status: u16, detail: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert_eq!(self.body["status"], status);
        assert!(self.body["detail"].as_str().unwrap().contains(detail), "{self:?}");
        assert!(!self.body["title"].as_str().unwrap().is_empty() && self.body["type"].is_string());
        assert_eq!(self.headers.contains_key("retry-after"), matches!(status, 429 | 503));
        assert_eq!(self.headers.contains_key("www-authenticate"), status == 401);
    }

    /// One field is wrong, here.
    fn check_field(&self, status: u16, place: &str, detail: &str) {
        self.check(status, "");
        let error = &self.body["errors"][0];
        let found = error["pointer"].as_str().or(error["header"].as_str()).unwrap();
        assert_eq!(found, place, "{self:?}");
        assert!(error["detail"].as_str().unwrap().contains(detail), "{self:?}");
    }
}

fn event() -> Value {
    json!({ "type": "order.paid", "data": { "n": 1 } })
}

#[tokio::test]
async fn every_format_is_accepted_and_answered_with_ids_in_order() {
    let pod = Pod::ready();
    let cloud = json!({ "specversion": "1.0", "id": "c", "source": "/s", "type": "a.b", "data": [1] });
    let reply = pod.publish(&event()).await;
    assert_eq!((reply.status, &reply.body), (202, &json!({ "events": [{ "id": id(0).to_string() }] })));
    assert_eq!(reply.headers["content-type"], "application/json");
    let reply = pod.publish(&json!([event(), event()])).await;
    assert_eq!(reply.body, json!({ "events": [{ "id": id(1).to_string() }, { "id": id(2).to_string() }] }));
    assert_eq!(pod.post(EVENTS, "application/cloudevents+json", cloud.to_string()).await.status, 202);
    let batch = json!([cloud]).to_string();
    assert_eq!(pod.post(EVENTS, "application/cloudevents-batch+json", batch).await.status, 202);
    let mut binary = request(EVENTS, "text/plain", "hi");
    for (name, value) in [("ce-specversion", "1.0"), ("ce-id", "b"), ("ce-source", "/s"), ("ce-type", "a.b")] {
        binary.headers_mut().insert(name, value.parse().unwrap());
    }
    assert_eq!(pod.send(binary).await.status, 202);
    assert_eq!(pod.publish(&json!([])).await.body, json!({ "events": [] }));

    let batches = pod.store.batches.lock().unwrap();
    assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 1, 1, 1]);
    let last = &batches[4][0];
    assert_eq!((&*last.namespace, &*last.namespace_uid, &last.data[..]), ("shop", "uid-shop", &b"hi"[..]));
    assert_eq!((last.head.given_id.as_deref(), last.head.content_type.as_deref()), (Some("b"), Some("text/plain")));
}

#[tokio::test]
async fn requests_that_cannot_be_used_are_told_why() {
    let pod = Pod::ready();
    pod.publish(&json!({ "data": 1 })).await.check_field(400, "/type", "is missing");
    pod.post(EVENTS, "text/xml", "<a/>").await.check_field(415, "content-type", "application/json");
    let mut gzip = request(EVENTS, "application/json", event().to_string());
    gzip.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
    let reply = pod.send(gzip).await;
    reply.check_field(415, "content-encoding", "not taken");
    assert_eq!(reply.headers["accept-encoding"], "identity");
    let data = json!({ "type": "a", "data": "x".repeat(EVENT_BYTES_MAX) });
    pod.publish(&data).await.check_field(413, "/data", "1048576");

    pod.grant("none", "*");
    pod.grant("bank", "*");
    let at = async |path: &str| pod.post(path, "application/json", event().to_string()).await;
    at("/v1/namespaces/none/events").await.check(404, "no namespace none");
    at("/v1/namespaces/-/events").await.check(404, "must name a namespace");
    at("/v1/namespaces/%ff/events").await.check(404, "must name a namespace");
    at("/v1/namespaces/bank/events").await.check(421, "http://posthorn-secure.posthorn-system.svc");
    at("/v1/events").await.check(404, "does not exist");
    let reply = pod.send(Request::get(EVENTS).body(Body::empty()).unwrap()).await;
    reply.check(405, "no such method");
    assert_eq!(reply.headers["allow"], "POST");
    assert_eq!(pod.accepted(), 0);
}

#[tokio::test]
async fn bodies_are_read_up_to_their_limit_announced_or_not() {
    let pod = Pod::ready();
    let check = async |mut request: Request<Body>, announced: Option<usize>, status: u16| {
        if let Some(bytes) = announced {
            request.headers_mut().insert("content-length", bytes.into());
        }
        assert_eq!(pod.send(request).await.status, status, "{announced:?}");
    };
    let binary = |bytes: usize, frames: usize| {
        let frame = axum::body::Bytes::from(vec![b'x'; bytes / frames]);
        let stream = futures::stream::iter(vec![Ok::<_, std::convert::Infallible>(frame); frames]);
        let mut request = request(EVENTS, "text/plain", Body::from_stream(stream));
        for (name, value) in [("ce-specversion", "1.0"), ("ce-id", "b"), ("ce-source", "/s"), ("ce-type", "a.b")] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        request
    };
    check(binary(EVENT_BYTES_MAX, 4), None, 202).await;
    assert_eq!(pod.store.batches.lock().unwrap()[0][0].data.len(), EVENT_BYTES_MAX);
    check(binary(EVENT_BYTES_MAX + 4, 4), None, 413).await;
    check(binary(4, 4), Some(EVENT_BYTES_MAX + 1), 413).await;
    let plain = |bytes: usize| request(EVENTS, "application/json", format!("{}{}", event(), " ".repeat(bytes)));
    let length = event().to_string().len();
    check(plain(BATCH_BYTES_MAX - length), None, 202).await;
    check(plain(BATCH_BYTES_MAX + 1 - length), None, 413).await;
}

#[tokio::test]
async fn nobody_publishes_without_a_valid_token_of_our_audience() {
    let pod = Pod::ready();
    let send = async |value: &str| {
        let request = Request::post(EVENTS).header("content-type", "application/json").header("authorization", value);
        pod.send(request.body(event().to_string().into()).unwrap()).await
    };
    let bare = Request::post(EVENTS).body(Body::empty()).unwrap();
    let reply = pod.send(bare).await;
    reply.check(401, "no token");
    assert_eq!(reply.headers["www-authenticate"], "Bearer");
    send("Basic YTpi").await.check(401, "no token");
    let foreign = token(PUBLISHER, "posthorn-internal", NEVER);
    let over = token(PUBLISHER, "posthorn", 1_000);
    for bad in ["a.b.c", foreign.expose(), over.expose()] {
        let reply = send(&format!("Bearer {bad}")).await;
        reply.check(401, "malformed, over, or not for the audience posthorn");
        assert_eq!(reply.headers["www-authenticate"], "Bearer error=\"invalid_token\"");
    }
    assert_eq!(pod.asked(), Vec::<String>::new(), "all of these are refused without a question");
    pod.cluster.lock().unwrap().refuses = true;
    pod.publish(&event()).await.check(401, "does not accept the token");
    assert_eq!(pod.accepted(), 0);
}

#[tokio::test]
async fn a_known_publisher_costs_no_question_and_while_the_api_server_is_away_nobody_is_refused() {
    let pod = Pod::ready();
    assert_eq!(pod.publish(&event()).await.status, 202);
    assert_eq!(pod.asked(), ["token", "shop *"]);
    pod.cluster.lock().unwrap().is_away = true;
    assert_eq!(pod.publish(&event()).await.status, 202);
    pod.post("/v1/namespaces/depot/events", "application/json", event().to_string()).await.check(503, "API server");

    let fresh = Pod::ready();
    fresh.cluster.lock().unwrap().is_away = true;
    fresh.publish(&event()).await.check(503, "later");
    assert_eq!(fresh.accepted(), 0);
}

#[tokio::test]
async fn who_may_publish_some_types_is_asked_about_for_each_once() {
    let pod = Pod::ready();
    pod.grant("depot", "order.paid");
    let send = async |body: Value| pod.post("/v1/namespaces/depot/events", "application/json", body.to_string()).await;
    let other = json!({ "type": "order.gone", "data": 1 });
    assert_eq!(send(json!([event(), event(), event()])).await.status, 202);
    assert_eq!(pod.asked(), ["token", "depot *", "depot order.paid"]);
    let reply = send(json!([event(), other, other])).await;
    reply.check(403, "system:serviceaccount:shop:checkout may not publish");
    reply.check_field(403, "/1/type", "order.gone");
    assert_eq!(pod.accepted(), 3);
    pod.asked();

    let types = |count: usize| (0..count).map(|i| json!({ "type": format!("t{i}"), "data": 1 })).collect::<Value>();
    send(types(TYPES_ASKED_MAX + 1)).await.check(403, "32 different ones");
    assert_eq!(pod.asked(), Vec::<String>::new());
    send(json!([])).await.check(403, "may not publish");
    // Who may not publish somewhere does not learn whether it exists.
    let nowhere = pod.post("/v1/namespaces/none/events", "application/json", event().to_string()).await;
    nowhere.check(403, "may not publish");
}

#[tokio::test]
async fn conflicts_are_told_with_what_became_of_the_others() {
    let pod = Pod::ready();
    let conflict = || -> Verdict { Box::new(|_| Accepted::Conflict(id(77))) };
    pod.answer_next(Ok(vec![Box::new(Accepted::New), conflict(), Box::new(|_| Accepted::Duplicate(id(78)))]));
    let reply = pod.publish(&json!([event(), event(), event()])).await;
    reply.check(409, "1 of 3 events");
    reply.check_field(409, "/1/id", "other content");
    let expected = json!([
        { "id": id(0).to_string() },
        { "id": id(77).to_string(), "conflict": true },
        { "id": id(78).to_string(), "duplicate": true },
    ]);
    assert_eq!(reply.body["events"], expected);

    pod.answer_next(Ok(vec![Box::new(|_| Accepted::Duplicate(id(78)))]));
    let reply = pod.publish(&event()).await;
    let expected = json!({ "events": [{ "id": id(78).to_string(), "duplicate": true }] });
    assert_eq!((reply.status, reply.body), (202, expected));

    let text = pod.registry.encode().unwrap();
    for (outcome, count) in [("Accepted", 1), ("Duplicate", 2), ("Conflict", 1)] {
        let line = format!("posthorn_ingest_events_total{{outcome=\"{outcome}\"}} {count}\n");
        assert!(text.contains(&line), "{text}");
    }
    assert!(text.contains("posthorn_ingest_refused_total{reason=\"Conflict\",code=\"409\"} 1\n"), "{text}");
}

#[tokio::test]
async fn what_the_store_cannot_take_is_told_with_when_to_come_back() {
    let pod = Pod::ready();
    let check = async |error: AcceptError, status: u16, detail: &str, retry_after: Option<&str>| {
        pod.answer_next(Err(error));
        let reply = pod.publish(&event()).await;
        reply.check(status, detail);
        assert_eq!(reply.headers.get("retry-after").map(|value| value.to_str().unwrap()), retry_after);
    };
    let busy = AcceptError::Busy { retry_after: Duration::from_millis(2_500) };
    check(busy, 429, "more events wait", Some("3")).await;
    check(AcceptError::Full, 507, "no room", None).await;
    check(AcceptError::NotStored, 503, "nothing was accepted", Some("5")).await;
    check(AcceptError::Unknown, 503, "not known whether", Some("5")).await;
    // A store that breaks its contract: who knows what it has.
    pod.answer_next(Ok(Vec::new()));
    pod.publish(&event()).await.check(503, "not known whether");
    for (space, detail) in [(Space::NamespaceFull, "no room for the namespace"), (Space::StoreFull, "no room until")] {
        *pod.store.space.lock().unwrap() = space;
        // The body never comes, and nobody waits for it.
        let endless = Body::from_stream(futures::stream::pending::<Result<axum::body::Bytes, std::io::Error>>());
        pod.post(EVENTS, "application/json", endless).await.check(507, detail);
    }
}

#[tokio::test]
async fn before_the_namespaces_are_listed_publishers_are_told_to_come_back() {
    let pod = Pod::new(IngestSettings { authentication: Authentication::None, ..IngestSettings::default() });
    pod.publish(&event()).await.check(503, "does not know the namespaces");
    pod.index.update(|index| index.apply_namespace("shop", "1", None));
    let bare = Request::post(EVENTS).header("content-type", "application/json");
    assert_eq!(pod.send(bare.body(event().to_string().into()).unwrap()).await.status, 202);
    assert_eq!(pod.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn a_rate_holds_from_the_moment_it_is_set() {
    let pod = Pod::ready();
    assert_eq!(pod.publish(&json!([event(), event()])).await.status, 202);
    let rate = EventRate { events_per_second: 1, burst: 2 };
    pod.settings.send_modify(|settings| settings.rate = Some(rate));
    assert_eq!(pod.publish(&json!([event(), event()])).await.status, 202);
    let reply = pod.publish(&event()).await;
    reply.check(429, "than its DeliveryPool allows");
    assert_eq!(reply.headers["retry-after"], "1");
    pod.settings.send_modify(|settings| settings.rate = None);
    assert_eq!(pod.publish(&event()).await.status, 202);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_drips_is_given_up_in_time() {
    let pod = Pod::ready();
    let drips = futures::stream::unfold((), async |()| {
        tokio::time::sleep(BODY_TIMEOUT / 4).await;
        Some((Ok::<_, std::io::Error>(axum::body::Bytes::from_static(b" ")), ()))
    });
    let started = tokio::time::Instant::now();
    pod.post(EVENTS, "application/json", Body::from_stream(drips)).await.check(408, "nothing was accepted");
    assert_eq!(started.elapsed(), BODY_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_given_up_and_nobody_is_told_that_nothing_was_stored() {
    let pod = Pod::ready();
    pod.store.turns.forget_permits(usize::MAX);
    pod.publish(&event()).await.check(503, "not known whether the events were accepted");
}

#[tokio::test]
async fn a_namespace_with_its_share_under_way_leaves_the_rest_to_others() {
    let pod = Arc::new(Pod::ready());
    pod.grant("depot", "*");
    pod.store.turns.forget_permits(usize::MAX);
    let tasks: Vec<_> = (0..REQUESTS_PER_NAMESPACE_MAX)
        .map(|_| {
            let pod = Arc::clone(&pod);
            tokio::spawn(async move { pod.publish(&event()).await.status })
        })
        .collect();
    while pod.accepted() < REQUESTS_PER_NAMESPACE_MAX {
        tokio::task::yield_now().await;
    }
    pod.publish(&event()).await.check(429, "512 requests");
    let depot = pod.post("/v1/namespaces/depot/events", "application/json", event().to_string());
    pod.store.turns.add_permits(REQUESTS_PER_NAMESPACE_MAX + 1);
    assert_eq!(depot.await.status, 202);
    for task in tasks {
        assert_eq!(task.await.unwrap(), 202);
    }
}

#[tokio::test]
async fn a_shutdown_answers_what_is_under_way_and_takes_nothing_more() {
    let pod = Pod::ready();
    pod.store.turns.forget_permits(usize::MAX);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(serve(listener, pod.api.clone(), shutdown.clone()));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let (bearer, body) = (token(PUBLISHER, "posthorn", NEVER), event().to_string());
    let request = format!(
        "POST {EVENTS} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        bearer.expose(),
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    while pod.accepted() == 0 {
        tokio::task::yield_now().await;
    }
    shutdown.cancel();
    pod.store.turns.add_permits(1);
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 202 ") && text.contains(&id(0).to_string()), "{text}");
    server.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn the_description_is_served_and_all_its_references_lead_somewhere() {
    let pod = Pod::ready();
    let reply = pod.send(Request::get("/openapi.json").body(Body::empty()).unwrap()).await;
    assert_eq!((reply.status, reply.body["openapi"].as_str()), (200, Some("3.1.0")));
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str));
                members.values().for_each(|value| references(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let paths: Vec<_> = reply.body["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(paths, ["/openapi.json", "/v1/namespaces/{namespace}/events"]);
    let mut found = Vec::new();
    references(&reply.body, &mut found);
    assert!(found.len() > 4, "{found:?}");
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(reply.body.pointer(pointer).is_some_and(Value::is_object), "{reference}");
    }
}
