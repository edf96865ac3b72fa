//! The plugin as a process against an API server double: outputs and exit codes.

use std::{path::PathBuf, process::Output, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, process::Command, sync::Mutex};

/// What the double does with the Webhook `shop/billing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scenario {
    /// Acts upon a request for a check at once, with this state and reason.
    Answers(&'static str, Option<&'static str>),
    /// Nobody acts upon it.
    Silent,
    /// The user may not do anything.
    Forbidden,
    /// The kinds are not there.
    NotInstalled,
    /// Everything is broken.
    Broken,
}

struct ApiServer {
    scenario: Scenario,
    requested: Mutex<Option<String>>,
}

type Answer = (StatusCode, Json<Value>);

impl ApiServer {
    fn refusal(&self) -> Option<Answer> {
        let (code, reason) = match self.scenario {
            Scenario::Answers(..) | Scenario::Silent => return None,
            Scenario::Forbidden => (403, "Forbidden"),
            Scenario::NotInstalled => (404, "NotFound"),
            Scenario::Broken => (500, "InternalError"),
        };
        Some(failure(code, reason))
    }

    async fn webhook(&self) -> Value {
        let requested = self.requested.lock().await.clone();
        let mut status = json!({"observedGeneration": 1, "endpoint": "https://pay.example"});
        if let (Scenario::Answers(state, reason), Some(requested)) = (self.scenario, &requested) {
            status["verification"] = json!({
                "state": state, "reason": reason, "lastRequested": requested,
                "attempts": reason.map(|_| 1), "message": reason.map(|_| "The answer was another.")
            });
        }
        json!({
            "apiVersion": "posthorn.dev/v1alpha1", "kind": "Webhook",
            "metadata": {"name": "billing", "namespace": "shop", "generation": 1},
            "spec": {"url": "https://pay.example/hook"},
            "status": status
        })
    }
}

fn failure(code: u16, reason: &str) -> Answer {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "The double says no.",
        "reason": reason, "code": code
    });
    (StatusCode::from_u16(code).unwrap(), Json(status))
}

async fn list(State(server): State<Arc<ApiServer>>) -> Answer {
    if let Some(refusal) = server.refusal() {
        return refusal;
    }
    let items = [server.webhook().await];
    let list = json!({"apiVersion": "posthorn.dev/v1alpha1", "kind": "WebhookList", "metadata": {}, "items": items});
    (StatusCode::OK, Json(list))
}

async fn read(State(server): State<Arc<ApiServer>>, Path(name): Path<String>) -> Answer {
    if let Some(refusal) = server.refusal() {
        return refusal;
    }
    if name == "billing" { (StatusCode::OK, Json(server.webhook().await)) } else { failure(404, "NotFound") }
}

async fn patch(State(server): State<Arc<ApiServer>>, Json(patch): Json<Value>) -> Answer {
    let annotations = patch["metadata"]["annotations"].as_object().unwrap();
    assert_eq!(annotations.len(), 1, "{patch}");
    let value = annotations["posthorn.dev/verify-requested-at"].as_str().unwrap();
    *server.requested.lock().await = Some(value.to_owned());
    (StatusCode::OK, Json(server.webhook().await))
}

/// Runs the plugin with these arguments against the double.
async fn plugin(scenario: Scenario, arguments: &[&str]) -> (Option<i32>, String, String) {
    let server = Arc::new(ApiServer { scenario, requested: Mutex::default() });
    let base = "/apis/posthorn.dev/v1alpha1";
    let router = Router::new()
        .route(&format!("{base}/webhooks"), get(list))
        .route(&format!("{base}/namespaces/shop/webhooks"), get(list))
        // axum's Json takes no merge patch by its media type, so the double reads the text.
        .route(&format!("{base}/namespaces/shop/webhooks/{{name}}"), get(read).patch(patch_text))
        .route("/version", get(async || Json(json!({"major": "1", "minor": "35", "gitVersion": "v1.35.4", "buildDate": "", "compiler": "", "gitCommit": "", "gitTreeState": "", "goVersion": "", "platform": ""}))))
        .route("/apis", get(async || Json(json!({"kind": "APIGroupList", "groups": [{"name": "posthorn.dev", "versions": [{"groupVersion": "posthorn.dev/v1alpha1", "version": "v1alpha1"}]}]}))))
        .with_state(server);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = kubeconfig(&folder, &format!("http://{address}"));
    let output = run(&kubeconfig, arguments).await;
    serving.abort();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

async fn patch_text(state: State<Arc<ApiServer>>, body: String) -> Answer {
    patch(state, Json(serde_json::from_str(&body).unwrap())).await
}

fn kubeconfig(folder: &tempfile::TempDir, server: &str) -> PathBuf {
    let path = folder.path().join("config");
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "double",
        "contexts": [{"name": "double", "context": {"cluster": "double", "user": "double", "namespace": "shop"}}],
        "clusters": [{"name": "double", "cluster": {"server": server}}],
        "users": [{"name": "double", "user": {}}]
    });
    std::fs::write(&path, text.to_string()).unwrap();
    path
}

async fn run(kubeconfig: &std::path::Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kubectl-posthorn"))
        .args(arguments)
        .env("KUBECONFIG", kubeconfig)
        .kill_on_drop(true)
        .output()
        .await
        .unwrap()
}

async fn check(scenario: Scenario, arguments: &[&str], code: i32, stdout: &str, stderr: &str) {
    let (given, out, err) = plugin(scenario, arguments).await;
    assert_eq!(given, Some(code), "{scenario:?} {arguments:?}\n{out}\n{err}");
    assert!(out.contains(stdout), "{scenario:?} {arguments:?}: {out}");
    assert!(err.contains(stderr), "{scenario:?} {arguments:?}: {err}");
}

const WANTED: Scenario = Scenario::Answers("Verified", None);
const PENDING: Scenario = Scenario::Answers("Pending", Some("BodyMismatch"));

#[tokio::test]
async fn looking_is_done_whatever_it_sees() {
    check(WANTED, &["status"], 0, "billing   https://pay.example   Unverified", "").await;
    check(WANTED, &["status", "billing", "-o", "json"], 0, "\"endpoint\": \"https://pay.example\"", "").await;
    check(WANTED, &["status", "-A"], 0, "shop        billing", "").await;
    check(WANTED, &["version"], 0, "Kubernetes:  v1.35.4\nPosthorn:    posthorn.dev v1alpha1\n", "").await;
}

#[tokio::test]
async fn a_check_ends_with_yes_no_or_the_time_out() {
    check(WANTED, &["verify", "billing"], 0, "√ billing is verified", "Asked for a check of shop/billing").await;
    let explained = "kubectl posthorn explain BodyMismatch";
    check(PENDING, &["verify", "billing"], 1, "✗ billing is not verified: The answer was another.", explained).await;
    let still = Scenario::Answers("Verified", Some("BodyMismatch"));
    check(still, &["verify", "billing"], 1, "still verified, but this check failed", "").await;
    check(Scenario::Silent, &["verify", "billing", "--timeout", "50ms"], 5, "", "No answer within 50ms").await;
    check(Scenario::Silent, &["verify", "billing", "--wait=false"], 0, "", "Asked for a check").await;
}

#[tokio::test]
async fn each_kind_of_failure_has_its_exit_code() {
    check(WANTED, &["stauts"], 2, "", "status").await;
    check(WANTED, &["status", "--context", "nowhere"], 2, "", "name one with --context").await;
    check(WANTED, &["status", "--kubeconfig", "/nonexistent"], 2, "", "cannot use the kubeconfig /nonexistent").await;
    check(WANTED, &["status", "biling"], 3, "", "no Webhook shop/biling; did you mean billing?").await;
    check(WANTED, &["verify", "biling"], 3, "", "no Webhook shop/biling; did you mean billing?").await;
    check(Scenario::Forbidden, &["status"], 4, "", "you may not list Webhooks in shop: The double says no.").await;
    check(Scenario::NotInstalled, &["status"], 6, "", "Posthorn is not installed").await;
    check(Scenario::NotInstalled, &["status", "billing"], 6, "", "Posthorn is not installed").await;
    check(Scenario::Broken, &["status"], 6, "", "the API server does not answer").await;
}

#[tokio::test]
async fn an_api_server_that_is_away_is_told_as_such() {
    // A port that was free a moment ago and that nobody listens on.
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let output = run(&kubeconfig(&folder, &format!("http://{address}")), &["status"]).await;
    assert_eq!(output.status.code(), Some(6));
}

#[tokio::test]
async fn explain_and_the_own_version_need_no_cluster() {
    for (arguments, code) in
        [(["explain", "BodyMismatch"], 0), (["explain", "BodyMissmatch"], 3), (["version", "--client"], 0)]
    {
        let output = run(std::path::Path::new("/nonexistent"), &arguments).await;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    }
}
