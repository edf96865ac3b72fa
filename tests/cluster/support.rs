//! What every cluster test needs: a namespace of its own, objects from YAML,
//! waiting with a limit, and the evidence when something fails.

use std::{
    future::Future,
    path::PathBuf,
    process::Output,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, LogParams, Patch, PatchParams},
    core::{DynamicObject, GroupVersionKind, NamespaceResourceScope},
    discovery,
};
use posthorn::api::{ConditionType, RELOAD_ANNOTATION, Webhook, condition};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Namespace of the chart's release, as `make test-cluster` installs it.
pub const RELEASE_NAMESPACE: &str = "posthorn-system";
/// The longest that one test may take.
const TEST_SECONDS_MAX: u64 = 180;
/// How long a wait may take unless a test says otherwise.
pub const WAIT: Duration = Duration::from_secs(60);
/// Time between two looks while waiting.
const POLL: Duration = Duration::from_millis(150);

/// A namespace for one test.
pub struct Scope {
    pub client: Client,
    pub namespace: String,
}

/// Runs one test in a namespace of its own; a panic or the time-out prints the
/// evidence before it fails the test. The namespace goes with the test.
pub fn in_namespace<F, Fut>(name: &str, test: F)
where
    F: FnOnce(Scope) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    in_namespace_within(Duration::from_secs(TEST_SECONDS_MAX), name, test);
}

/// As [`in_namespace`], with a time-out of its own.
pub fn in_namespace_within<F, Fut>(limit: Duration, name: &str, test: F)
where
    F: FnOnce(Scope) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let name = name.to_owned();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async move {
        let client = client().await;
        let namespace = unique(&name);
        make_namespace(&client, &namespace).await;
        let scope = Scope { client: client.clone(), namespace: namespace.clone() };
        let running = tokio::spawn(test(scope));
        let abort = running.abort_handle();
        let outcome = tokio::time::timeout(limit, running).await;
        let failed = !matches!(outcome, Ok(Ok(())));
        if failed {
            abort.abort();
            print_evidence(&client, &namespace).await;
        }
        let namespaces: Api<Namespace> = Api::all(client);
        namespaces.delete(&namespace, &DeleteParams::background()).await.ok();
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Ok(Err(error)) => panic!("{error}"),
            Err(_) => panic!("the test took longer than {limit:?}"),
        }
    });
}

/// A client for the cluster of `KUBECONFIG`.
pub async fn client() -> Client {
    assert!(std::env::var_os("KUBECONFIG").is_some(), "KUBECONFIG is not set: run `make test-cluster`");
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    Client::try_default().await.expect("a client for the cluster of KUBECONFIG")
}

/// A client that acts as somebody else.
pub async fn client_as(user: &str) -> Client {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let mut config = kube::Config::infer().await.unwrap();
    config.auth_info.impersonate = Some(user.to_owned());
    Client::try_from(config).unwrap()
}

fn unique(name: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("t-{name}-{}-{number}", std::process::id())
}

async fn make_namespace(client: &Client, name: &str) {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let body = serde_json::json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": name, "labels": { "posthorn.dev/test": "true" } }
    });
    namespaces.create(&Default::default(), &serde_json::from_value(body).unwrap()).await.unwrap();
}

impl Scope {
    /// Objects of a kind in this namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Applies every document of a YAML text in this namespace.
    pub async fn apply(&self, yaml: &str) {
        for document in documents(yaml) {
            self.apply_one(document).await.unwrap_or_else(|e| panic!("{e}\n{yaml}"));
        }
    }

    /// Applies one object in this namespace.
    pub async fn apply_one(&self, document: Value) -> kube::Result<DynamicObject> {
        let object: DynamicObject = serde_json::from_value(document).expect("an object");
        let types = object.types.clone().expect("apiVersion and kind");
        let gvk = GroupVersionKind::try_from(&types).expect("a kind");
        let (resource, _) = discovery::pinned_kind(&self.client, &gvk).await?;
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &self.namespace, &resource);
        api.patch(&object.name_any(), &PatchParams::apply("posthorn-tests").force(), &Patch::Apply(&object)).await
    }

    /// Waits until an object fulfils a condition and returns it.
    pub async fn wait<K>(&self, name: &str, what: &str, condition: impl Fn(&K) -> bool) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        self.wait_for(name, what, WAIT, condition).await
    }

    /// As [`Scope::wait`], with a limit of its own.
    pub async fn wait_for<K>(&self, name: &str, what: &str, limit: Duration, condition: impl Fn(&K) -> bool) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let api = self.api::<K>();
        let start = Instant::now();
        loop {
            let object = api.get_opt(name).await.unwrap();
            if let Some(object) = object.as_ref().filter(|o| condition(o)) {
                return object.clone();
            }
            assert!(start.elapsed() < limit, "{name} was not {what} within {limit:?}: {object:#?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until the Webhook is Ready.
    pub async fn ready(&self, webhook: &str) -> Webhook {
        self.wait(webhook, "Ready", |w: &Webhook| is_true(w, ConditionType::Ready)).await
    }

    /// Waits until the condition Verified of the Webhook has this reason.
    pub async fn verified_reason(&self, webhook: &str, reason: &str) -> Webhook {
        self.wait(webhook, &format!("with reason {reason}"), |w: &Webhook| {
            reason_of(w, ConditionType::Verified) == reason
        })
        .await
    }

    /// Has Posthorn read the Secrets of the Webhook again at once.
    pub async fn reload(&self, webhook: &str, value: &str) {
        let patch = serde_json::json!({"metadata": {"annotations": {RELOAD_ANNOTATION: value}}});
        self.api::<Webhook>().patch(webhook, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    }

    /// Starts the receiver with a certificate from a Secret.
    pub async fn start_inbox_with_tls(&self, secret: &str) {
        let mut documents = documents(&inbox_manifest(&["--tls-cert", "/tls/tls.crt", "--tls-key", "/tls/tls.key"]));
        let pod = &mut documents[0]["spec"]["template"]["spec"];
        pod["volumes"] = serde_json::json!([{"name": "tls", "secret": {"secretName": secret}}]);
        pod["containers"][0]["volumeMounts"] =
            serde_json::json!([{"name": "tls", "mountPath": "/tls", "readOnly": true}]);
        pod["containers"][0]["readinessProbe"]["httpGet"]["scheme"] = "HTTPS".into();
        for document in documents {
            self.apply_one(document).await.unwrap();
        }
        self.inbox_available().await;
    }

    /// Starts the project's own receiver as Deployment and Service `inbox`.
    pub async fn start_inbox(&self, arguments: &[&str]) {
        self.apply(&inbox_manifest(arguments)).await;
        self.inbox_available().await;
    }

    async fn inbox_available(&self) {
        self.wait::<k8s_openapi::api::apps::v1::Deployment>("inbox", "available", |d| {
            d.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0) > 0
        })
        .await;
    }
}

/// The receiver as Deployment and Service `inbox`, port 80.
fn inbox_manifest(arguments: &[&str]) -> String {
    let arguments: String = arguments.iter().map(|a| format!(", {}", serde_json::json!(a))).collect();
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: inbox}}
spec:
  selector: {{matchLabels: {{app: inbox}}}}
  template:
    metadata: {{labels: {{app: inbox}}}}
    spec:
      terminationGracePeriodSeconds: 1
      automountServiceAccountToken: false
      containers:
      - name: inbox
        image: {image}
        imagePullPolicy: Never
        args: [inbox, --listen, "0.0.0.0:8080"{arguments}]
        readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: inbox}}
spec:
  selector: {{app: inbox}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
"#,
        image = image()
    )
}

/// The image under test.
pub fn image() -> String {
    std::env::var("POSTHORN_IMAGE").unwrap_or_else(|_| "posthorn:dev".to_owned())
}

/// The documents of a YAML text as JSON.
pub fn documents(yaml: &str) -> Vec<Value> {
    serde_yaml::Deserializer::from_str(yaml)
        .map(|d| <Value as serde::Deserialize>::deserialize(d).unwrap_or_else(|e| panic!("{e}\n{yaml}")))
        .filter(|v| !v.is_null())
        .collect()
}

/// Whether a condition of the Webhook is True for its present generation.
pub fn is_true(webhook: &Webhook, type_: ConditionType) -> bool {
    let status = webhook.status.as_ref();
    status.is_some_and(|s| {
        s.observed_generation == webhook.metadata.generation && condition::is_true(&s.conditions, type_)
    })
}

/// The reason of a condition of the Webhook for its present generation, or nothing.
pub fn reason_of(webhook: &Webhook, type_: ConditionType) -> String {
    let status = webhook.status.as_ref().filter(|s| s.observed_generation == webhook.metadata.generation);
    status.and_then(|s| condition::find(&s.conditions, type_)).map(|c| c.reason.clone()).unwrap_or_default()
}

/// Runs kubectl and returns what it printed.
pub async fn kubectl(arguments: &[&str]) -> Output {
    let command = std::env::var("KUBECTL").unwrap_or_else(|_| "kubectl".to_owned());
    let mut words = command.split_whitespace();
    let program = words.next().expect("KUBECTL names a command");
    tokio::process::Command::new(program).args(words).args(arguments).kill_on_drop(true).output().await.unwrap()
}

/// The folder of the repository.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Prints what a person would look at first.
async fn print_evidence(client: &Client, namespace: &str) {
    for kind in ["webhooks,subscriptions,deadletters,replays", "pods,events.events.k8s.io"] {
        let output =
            kubectl(&["get", kind, "-n", namespace, "-o", if kind.starts_with("web") { "yaml" } else { "wide" }]).await;
        eprintln!(
            "--- {kind} in {namespace}\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    for namespace in [namespace, RELEASE_NAMESPACE] {
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        for pod in pods.list(&ListParams::default()).await.map(|l| l.items).unwrap_or_default() {
            let parameters = LogParams { tail_lines: Some(60), ..LogParams::default() };
            let log = pods.logs(&pod.name_any(), &parameters).await.unwrap_or_else(|e| e.to_string());
            eprintln!("--- log of {namespace}/{}\n{log}", pod.name_any());
        }
    }
}
