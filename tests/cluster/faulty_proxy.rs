//! A proxy before the API server that misbehaves as API servers do: every fifth
//! write is answered 409, 429 or 500, and every watch is cut after two seconds.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    response::Response,
};
use futures::StreamExt;
use kube::config::Kubeconfig;
use serde_json::json;

use crate::control_plane::ControlPlane;

/// One write in so many fails.
const FAULT_EVERY: usize = 5;
/// How long a watch lives.
const WATCH_LIFE: Duration = Duration::from_secs(2);
/// Largest request body that is passed on.
const BODY_BYTES_MAX: usize = 4 << 20;

struct Upstream {
    client: reqwest::Client,
    server: String,
    writes: AtomicUsize,
    faults: AtomicUsize,
}

/// A running proxy; its kubeconfig leads through it.
pub struct FaultyProxy {
    pub kubeconfig: PathBuf,
    upstream: Arc<Upstream>,
    serving: tokio::task::JoinHandle<()>,
}

impl FaultyProxy {
    pub async fn start(plane: &ControlPlane) -> Self {
        let file = Kubeconfig::read_from(&plane.kubeconfig).unwrap();
        let config = kube::Config::from_custom_kubeconfig(file, &Default::default()).await.unwrap();
        let pem = |data: Option<Vec<u8>>| data.expect("the kubeconfig holds certificates");
        let authority = config.root_cert.clone().unwrap().remove(0);
        let identity = config.auth_info.client_certificate_data.clone().map(decode);
        let key = config.auth_info.client_key_data.clone().map(|k| decode(secrecy(&k)));
        let identity = [pem(identity), pem(key)].concat();
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([reqwest::Certificate::from_der(&authority).unwrap()])
            .identity(reqwest::Identity::from_pem(&identity).unwrap())
            .build()
            .unwrap();
        let upstream = Arc::new(Upstream {
            client,
            server: config.cluster_url.to_string().trim_end_matches('/').to_owned(),
            writes: AtomicUsize::new(0),
            faults: AtomicUsize::new(0),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let kubeconfig = plane.folder.path().join("proxy.kubeconfig");
        std::fs::write(&kubeconfig, through(listener.local_addr().unwrap())).unwrap();
        let router = Router::new().fallback(handle).with_state(upstream.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { kubeconfig, upstream, serving }
    }

    /// How many faults it made.
    pub fn faults(&self) -> usize {
        self.upstream.faults.load(Ordering::Relaxed)
    }
}

impl Drop for FaultyProxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn decode(text: impl AsRef<[u8]>) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

fn secrecy(secret: &secrecy::SecretString) -> String {
    use secrecy::ExposeSecret;
    secret.expose_secret().to_owned()
}

fn through(address: std::net::SocketAddr) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
        "clusters": [{"name": "proxy", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "proxy", "user": {}}],
        "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}]
    })
    .to_string()
}

/// The fault for this write, if it is its turn.
fn fault(upstream: &Upstream) -> Option<Response> {
    let number = upstream.writes.fetch_add(1, Ordering::Relaxed) + 1;
    if !number.is_multiple_of(FAULT_EVERY) {
        return None;
    }
    let turn = upstream.faults.fetch_add(1, Ordering::Relaxed);
    let (code, reason) = [(409, "Conflict"), (429, "TooManyRequests"), (500, "InternalError")][turn % 3];
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": "a fault of the test"});
    let response =
        Response::builder().status(code).header("content-type", "application/json").header("retry-after", "1");
    Some(response.body(Body::from(status.to_string())).unwrap())
}

async fn handle(State(upstream): State<Arc<Upstream>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let is_watch = parts.uri.query().is_some_and(|q| q.contains("watch=true") || q.contains("watch=1"));
    if parts.method != "GET"
        && let Some(fault) = fault(&upstream)
    {
        return fault;
    }
    let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    let mut forward = upstream.client.request(parts.method, format!("{}{path}", upstream.server));
    for name in ["accept", "content-type"] {
        if let Some(value) = parts.headers.get(name) {
            forward = forward.header(name, value);
        }
    }
    let bytes = to_bytes(body, BODY_BYTES_MAX).await.unwrap();
    let answer = match forward.body(bytes).send().await {
        Ok(answer) => answer,
        Err(error) => return Response::builder().status(502).body(Body::from(error.to_string())).unwrap(),
    };
    let mut response = Response::builder().status(answer.status());
    if let Some(kind) = answer.headers().get("content-type") {
        response = response.header("content-type", kind);
    }
    let stream = answer.bytes_stream();
    let life = if is_watch { WATCH_LIFE } else { Duration::from_secs(60) };
    response.body(Body::from_stream(stream.take_until(tokio::time::sleep(life)))).unwrap()
}
