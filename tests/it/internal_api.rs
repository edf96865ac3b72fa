//! The internal API of a delivery pod over real TLS on loopback.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Bytes, http::HeaderMap, routing::any};
use futures::future::BoxFuture;
use posthorn::{
    access::{Access, Caller, Review, ReviewError, TokenReviewer},
    api::{Reason, pool::Egress},
    delivery::{
        internal_api::{BODY_BYTES_MAX, InternalApi},
        probe::Prober,
        slots::PROBES_PER_NAMESPACE_MAX,
    },
    egress::{Clients, Resolve, ResolveError, ServiceResolver},
    policy::egress::{ClusterNetworks, EgressPolicy},
    routing::index::{Index, SharedIndex},
    runtime::{
        connections::{ServerOptions, Transport, serve},
        health::Health,
        metrics::MetricsRegistry,
        secret::SecretString,
        server, tls, tls_files,
    },
    wire::{
        COUNTERS_PATH, INDEX_PATH, PROBE_PATH,
        index_feed::{Counters, FeedPage},
        probe::{PROBE_BODY_BYTES_MAX, ProbeOutcome, ProbeResponse},
    },
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{access, fake_api, index};

/// Far in the future: these tests run on the real clock.
const NEVER: i64 = 32_503_680_000;

/// Says of every token what it is told to; none means that it is away.
#[derive(Default)]
struct FakeReviewer {
    review: Mutex<Option<Review>>,
    asked: Notify,
}

impl TokenReviewer for FakeReviewer {
    fn review<'a>(&'a self, _: &'a SecretString, _: &'a str) -> BoxFuture<'a, Result<Review, ReviewError>> {
        self.asked.notify_one();
        let review = self.review.lock().unwrap().clone().ok_or_else(|| ReviewError("away".into()));
        Box::pin(async move { review })
    }
}

struct NoNames;

impl Resolve for NoNames {
    fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, ResolveError>> {
        Box::pin(async { Err(ResolveError::Other("a test resolves no names")) })
    }
}

/// A delivery pod without an API server.
struct Pod {
    url: String,
    http: reqwest::Client,
    index: Arc<SharedIndex>,
    clients: watch::Sender<Option<Arc<Clients>>>,
    reviewer: Arc<FakeReviewer>,
    shutdown: CancellationToken,
    _tls_files: tempfile::TempDir,
}

impl Pod {
    async fn start() -> Self {
        tls::install_provider();
        let index = Arc::new(SharedIndex::new(Index::new(index::POOL, "one")));
        let (clients, newest) = watch::channel(None);
        let reviewer = Arc::new(FakeReviewer::default());
        let access = Access::new(Arc::clone(&reviewer) as Arc<dyn TokenReviewer>, &[access::controller()]);
        let services = ServiceResolver::new(fake_api::client(|_, _, _| fake_api::Answer::Never));
        let shutdown = CancellationToken::new();
        let api = InternalApi::new(access, Arc::clone(&index), Prober::new(newest, services), shutdown.clone());

        let pair = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tls.crt"), pair.cert.pem()).unwrap();
        std::fs::write(folder.path().join("tls.key"), pair.signing_key.serialize_pem()).unwrap();
        let mut configs = tls_files::follow(folder.path().to_owned(), Health::default().component("tls"));
        configs.wait_for(Option::is_some).await.unwrap();

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let options =
            ServerOptions { transport: Transport::Tls(configs), connections_max: 64, grace: Duration::from_secs(5) };
        tokio::spawn(serve(listener, api.router(), options, shutdown.clone()));
        let root = reqwest::Certificate::from_pem(pair.cert.pem().as_bytes()).unwrap();
        let http = reqwest::Client::builder().tls_certs_only([root]).no_proxy().build().unwrap();
        Self { url, http, index, clients, reviewer, shutdown, _tls_files: folder }
    }

    /// A pod whose index is complete, that knows its rules, and a caller that may call.
    async fn ready() -> Self {
        let pod = Self::start().await;
        pod.vouch_for(&access::controller().username());
        pod.index.update(|index| {
            index::ALL.into_iter().for_each(|kind| {
                index.begin_list(kind);
                index.end_list(kind);
            });
            index.apply_namespace("shop", "1", None);
        });
        pod.allow_loopback();
        pod
    }

    fn vouch_for(&self, username: &str) {
        let audiences = vec!["posthorn-internal".to_owned()];
        *self.reviewer.review.lock().unwrap() = Some(Review {
            authenticated: true,
            audiences,
            caller: Caller { username: username.to_owned(), ..Caller::default() },
        });
    }

    fn allow_loopback(&self) {
        let egress: Egress = serde_json::from_value(json!({ "schemes": ["http", "https"] })).unwrap();
        let policy = EgressPolicy::compile(Some(&egress), &ClusterNetworks::default()).unwrap().allow_loopback();
        let clients = Clients::new(Arc::new(policy), Arc::new(NoNames), Arc::new(rustls::RootCertStore::empty()));
        self.clients.send_replace(Some(Arc::new(clients.unwrap())));
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let token = access::token(&access::controller().username(), "posthorn-internal", NEVER);
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(token.expose())
    }

    async fn probe(&self, request: &Value) -> reqwest::Response {
        self.request(Method::POST, PROBE_PATH).json(request).send().await.unwrap()
    }

    async fn outcome(&self, request: &Value) -> ProbeOutcome {
        let response = self.probe(request).await;
        assert_eq!(response.status(), StatusCode::OK);
        response.json::<ProbeResponse>().await.unwrap().outcome
    }
}

fn probe_of(url: &str) -> Value {
    json!({
        "namespace": "shop", "name": "orders", "target": { "url": url }, "method": "POST",
        "headers": [["x-challenge", "abc"]], "body": "ping", "timeoutMs": 5000,
    })
}

async fn endpoint(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let options = ServerOptions { transport: Transport::Plain, connections_max: 256, grace: Duration::from_secs(1) };
    tokio::spawn(serve(listener, router, options, CancellationToken::new()));
    address
}

async fn check_problem(response: reqwest::Response, status: u16, detail: &str) {
    assert_eq!(response.status().as_u16(), status);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let wants_retry = matches!(status, 429 | 503);
    assert_eq!(response.headers().contains_key("retry-after"), wants_retry);
    assert_eq!(response.headers().contains_key("www-authenticate"), status == 401);
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["status"], status);
    assert!(body["detail"].as_str().unwrap().contains(detail), "{body}");
}

#[tokio::test]
async fn every_route_asks_who_calls() {
    let pod = Pod::ready().await;
    for (method, path) in [
        (Method::POST, PROBE_PATH),
        (Method::GET, INDEX_PATH),
        (Method::GET, COUNTERS_PATH),
        (Method::DELETE, COUNTERS_PATH),
        (Method::GET, "/"),
        (Method::GET, "/metrics"),
    ] {
        let response = pod.http.request(method, format!("{}{path}", pod.url)).send().await.unwrap();
        check_problem(response, 401, "no bearer token").await;
    }
    for value in ["Bearer", "Bearer ", "Bearer a.b.c", "Basic YTpi", "bearer\tx"] {
        let request = pod.http.get(format!("{}{COUNTERS_PATH}", pod.url)).header("authorization", value);
        check_problem(request.send().await.unwrap(), 401, "no bearer token").await;
    }
}

#[tokio::test]
async fn strangers_are_refused_and_nobody_is_while_the_api_server_is_away() {
    let pod = Pod::start().await;
    check_problem(pod.request(Method::GET, COUNTERS_PATH).send().await.unwrap(), 503, "try again").await;
    pod.vouch_for("system:serviceaccount:posthorn-system:default");
    check_problem(pod.request(Method::GET, COUNTERS_PATH).send().await.unwrap(), 403, "not one that may").await;
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems() {
    let pod = Pod::ready().await;
    check_problem(pod.request(Method::GET, "/").send().await.unwrap(), 404, "does not exist").await;
    check_problem(pod.request(Method::GET, PROBE_PATH).send().await.unwrap(), 405, "no such method").await;
    check_problem(pod.request(Method::GET, "/internal/v1/index?after=x").send().await.unwrap(), 400, "query").await;
}

#[tokio::test]
async fn a_probe_brings_back_what_the_endpoint_said() {
    let pod = Pod::ready().await;
    let (seen, mut requests) = mpsc::unbounded_channel();
    let address = endpoint(Router::new().fallback(any(async move |headers: HeaderMap, body: Bytes| {
        seen.send((headers, body)).unwrap();
        (StatusCode::IM_A_TEAPOT, [("x-answer", "yes")], "x".repeat(PROBE_BODY_BYTES_MAX + 1))
    })))
    .await;
    let outcome = pod.outcome(&probe_of(&format!("http://{address}/in?token=1"))).await;
    let ProbeOutcome::Answer(answer) = outcome else { panic!("{outcome:?}") };
    assert_eq!((answer.status, answer.header("X-Answer")), (418, Some("yes")));
    assert_eq!((answer.body.len(), answer.body_truncated), (PROBE_BODY_BYTES_MAX, true));
    let (headers, body) = requests.recv().await.unwrap();
    assert_eq!((headers["x-challenge"].to_str().unwrap(), &body[..]), ("abc", &b"ping"[..]));

    let counters: Counters = pod.request(Method::GET, COUNTERS_PATH).send().await.unwrap().json().await.unwrap();
    assert_eq!((counters.probes, counters.instance.as_str()), (1, "one"));
}

#[tokio::test]
async fn a_probe_that_gets_no_answer_says_why_in_one_word() {
    let pod = Pod::ready().await;
    let check = async |change: Value, expected: Reason| {
        let mut request = probe_of("https://127.0.0.1:1/in");
        request.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let outcome = pod.outcome(&request).await;
        let ProbeOutcome::Failure { reason, message } = outcome else { panic!("{outcome:?}") };
        assert_eq!(reason, expected, "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    };
    let url = |url: &str| json!({ "target": { "url": url } });
    check(url("https://10.0.0.1/hunter2"), Reason::DestinationNotAllowed).await;
    check(url("https://user:hunter2@a.example/"), Reason::InvalidUrl).await;
    check(url("https://a.example/hunter2"), Reason::NameNotResolved).await;
    check(json!({ "headers": [["host", "hunter2"]] }), Reason::InvalidHeader).await;
    check(json!({ "headers": [["content-length", "2"]] }), Reason::InvalidHeader).await;
    check(json!({ "headers": [["a b", "hunter2"]] }), Reason::InvalidHeader).await;
    check(json!({ "headers": [["a", "hunter2\r\nb: c"]] }), Reason::InvalidHeader).await;
    check(json!({ "tls": { "caPem": "hunter2" } }), Reason::SecretInvalid).await;
    let service = json!({ "service": { "name": "s", "port": 80, "path": "/hunter2", "scheme": "http" } });
    check(json!({ "target": service }), Reason::DestinationNotAllowed).await;

    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    check(url(&format!("http://{free}/hunter2")), Reason::ConnectionRefused).await;
}

#[tokio::test]
async fn nothing_is_dialed_before_the_pod_knows_its_pool() {
    let pod = Pod::start().await;
    pod.vouch_for(&access::controller().username());
    let request = probe_of("https://127.0.0.1:1/");
    check_problem(pod.probe(&request).await, 503, "index").await;
    pod.index.update(|index| index.apply_namespace("shop", "1", None));
    check_problem(pod.probe(&request).await, 503, "egress rules").await;
    pod.index.update(|index| {
        index.apply_namespace("shop", "1", Some("other"));
        index::ALL.into_iter().for_each(|kind| {
            index.begin_list(kind);
            index.end_list(kind);
        });
    });
    check_problem(pod.probe(&request).await, 421, "not responsible for the namespace shop").await;
}

#[tokio::test]
async fn a_body_is_read_up_to_its_limit_and_what_is_no_request_is_not_repeated() {
    let pod = Pod::ready().await;
    let send = async |body: String| pod.request(Method::POST, PROBE_PATH).body(body).send().await.unwrap();
    check_problem(send("x".repeat(BODY_BYTES_MAX)).await, 400, "line 1, column 1").await;
    check_problem(send("x".repeat(BODY_BYTES_MAX + 1)).await, 413, "458752 bytes").await;
    let response = send(r#"{"target": {"hunter2": 1}}"#.to_owned()).await;
    assert!(!response.text().await.unwrap().contains("hunter2"));
}

#[tokio::test]
async fn a_namespace_with_all_its_probes_under_way_is_told_to_come_back() {
    let pod = Arc::new(Pod::ready().await);
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    let hold = CancellationToken::new();
    let release = hold.clone();
    let address = endpoint(Router::new().fallback(any(async move || {
        arrived.send(()).unwrap();
        hold.cancelled().await;
    })))
    .await;
    let request = Arc::new(probe_of(&format!("http://{address}/")));
    let probes: Vec<_> = (0..PROBES_PER_NAMESPACE_MAX)
        .map(|_| {
            let (pod, request) = (Arc::clone(&pod), Arc::clone(&request));
            tokio::spawn(async move { pod.outcome(&request).await })
        })
        .collect();
    for _ in 0..PROBES_PER_NAMESPACE_MAX {
        arrivals.recv().await.unwrap();
    }
    check_problem(pod.probe(&request).await, 429, "32 of this namespace").await;
    release.cancel();
    for probe in probes {
        assert!(matches!(probe.await.unwrap(), ProbeOutcome::Answer(_)));
    }
    assert!(matches!(pod.outcome(&request).await, ProbeOutcome::Answer(_)));
}

#[tokio::test]
async fn the_feed_is_followed_by_long_polls_and_a_shutdown_ends_them() {
    let pod = Pod::ready().await;
    let poll = async |instance: &str, after: u64| -> FeedPage {
        let path = format!("{INDEX_PATH}?instance={instance}&after={after}");
        pod.request(Method::GET, &path).send().await.unwrap().json().await.unwrap()
    };
    let first: FeedPage = pod.request(Method::GET, INDEX_PATH).send().await.unwrap().json().await.unwrap();
    assert_eq!((first.reset, first.synced, first.entries.len()), (true, true, 0));
    let (page, ()) = tokio::join!(poll(&first.instance, first.revision), async {
        pod.index.update(|index| index.apply_webhook(&index::webhook("shop", "a", 4)));
    });
    assert_eq!((page.reset, page.entries[0].generation), (false, Some(4)));

    // Another token is reviewed again: that tells when the request has come in.
    pod.reviewer.asked.notified().await;
    let token = access::token(&access::controller().username(), "posthorn-internal", NEVER + 1);
    let query = format!("instance={}&after={}", page.instance, page.revision);
    let request = pod.http.get(format!("{}{INDEX_PATH}?{query}", pod.url)).bearer_auth(token.expose());
    let (last, ()) = tokio::join!(request.send(), async {
        pod.reviewer.asked.notified().await;
        pod.shutdown.cancel();
    });
    let last: FeedPage = last.unwrap().json().await.unwrap();
    assert_eq!((last.reset, last.revision, last.entries.len()), (false, page.revision, 0));
}

#[tokio::test]
async fn health_and_metrics_are_served_to_everyone() {
    let health = Health::default();
    let index_health = health.component("index");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(server::serve(listener, health, MetricsRegistry::new("test"), shutdown.clone()));
    tls::install_provider();
    let http = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    let get = async |path: &str| {
        let response = http.get(format!("{url}{path}")).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    assert_eq!(get("/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(get("/readyz").await, (503, "index: starting\n".to_owned()));
    index_health.ready();
    assert_eq!(get("/readyz").await, (200, "ok\n".to_owned()));
    let (status, text) = get("/metrics").await;
    assert!(status == 200 && text.contains("process_resident_memory_bytes"), "{text}");
    assert_eq!(get("/").await.0, 404);
    shutdown.cancel();
    server.await.unwrap();
}
