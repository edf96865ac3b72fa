//! A control plane of its own (API server, etcd, controllers; no nodes) with
//! Posthorn's processes beside it, for tests that break something.

use std::{
    fs::File,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{Namespace, Secret, ServiceAccount},
};
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::support::{RELEASE_NAMESPACE, Scope, repository};

/// How long a Secret of the controller may take to appear.
const SECRET_LIMIT: Duration = Duration::from_secs(60);

/// A control plane that goes with the value.
pub struct ControlPlane {
    binary: String,
    name: String,
    pub kubeconfig: PathBuf,
    pub folder: tempfile::TempDir,
}

impl ControlPlane {
    /// Starts one and installs the CRDs.
    pub async fn up(name: &str) -> Self {
        rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
        let binary = std::env::var("CLUSTER_BINARY").expect("CLUSTER_BINARY is not set: run `make test-cluster`");
        let name = format!("{name}-{}", std::process::id());
        let output = Command::new(&binary).args(["up", "--api-only", "--name", &name]).output().await.unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        let kubeconfig = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
        let this = Self { binary, name, kubeconfig, folder: tempfile::tempdir().unwrap() };
        let crds = repository().join("crds");
        let output = Command::new(&this.binary)
            .args(["kubectl", "apply", "--kubeconfig"])
            .arg(&this.kubeconfig)
            .arg("-f")
            .arg(crds)
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        this
    }

    pub async fn client(&self) -> Client {
        let file = Kubeconfig::read_from(&self.kubeconfig).unwrap();
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
        Client::try_from(config).unwrap()
    }

    /// A namespace for a tenant.
    pub async fn tenant(&self) -> Scope {
        let client = self.client().await;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tenant"}});
        namespaces.create(&PostParams::default(), &serde_json::from_value(body).unwrap()).await.unwrap();
        Scope { client, namespace: "tenant".to_owned() }
    }

    /// Takes a component away, or brings it back.
    pub async fn component(&self, verb: &str, component: &str) {
        let output = Command::new(&self.binary).args([verb, "--name", &self.name, component]).output().await.unwrap();
        assert!(output.status.success(), "{verb} {component}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        std::process::Command::new(&self.binary).args(["down", "--name", &self.name]).output().ok();
    }
}

/// The processes of Posthorn, and a receiver in this process.
pub struct Posthorn {
    controller: Child,
    delivery: Option<Child>,
    folder: PathBuf,
    pub receiver: std::net::SocketAddr,
    /// Where the delivery pod takes events.
    pub ingest_url: String,
    stop_receiver: CancellationToken,
}

impl Posthorn {
    /// Starts controller and delivery pod against the API server of `kubeconfig`
    /// (which may be a proxy's); `plane` is the way around the proxy.
    pub async fn start(plane: &ControlPlane, kubeconfig: &Path) -> Self {
        let client = plane.client().await;
        let folder = plane.folder.path().to_owned();
        let (receiver, stop_receiver) = receiver().await;
        prepare(&client, &folder, receiver.port()).await;
        let port = free_port();
        let controller = Command::new(env!("CARGO_BIN_EXE_posthorn"))
            .args([
                "controller",
                "--namespace",
                RELEASE_NAMESPACE,
                "--identity",
                "test",
                "--health-listen",
                "127.0.0.1:0",
            ])
            .args(["--delivery-url", &format!("https://localhost:{port}"), "--delivery-image", "posthorn:dev"])
            .arg("--token-file")
            .arg(folder.join("token"))
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::null())
            .stderr(File::create(folder.join("controller.log")).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let ingest = free_port();
        let ingest_url = format!("http://127.0.0.1:{ingest}");
        let mut this = Self { controller, delivery: None, folder, receiver, ingest_url, stop_receiver };
        secret_files(&client, "posthorn-default-tls", &this.folder.join("tls")).await;
        secret_files(&client, "posthorn-keys", &this.folder.join("keys")).await;
        this.delivery = Some(delivery(&this.folder, port, ingest, kubeconfig));
        this
    }

    /// Whether both processes still run.
    pub fn is_running(&mut self) -> bool {
        let delivery = self.delivery.as_mut().is_some_and(|d| d.try_wait().unwrap().is_none());
        self.controller.try_wait().unwrap().is_none() && delivery
    }

    /// The ends of the logs, for the evidence of a failure.
    pub fn logs(&self) -> String {
        let tail = |name: &str| {
            let text = std::fs::read_to_string(self.folder.join(name)).unwrap_or_default();
            let lines: Vec<_> = text.lines().rev().take(60).collect();
            format!("--- {name}\n{}\n", lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
        };
        tail("controller.log") + &tail("delivery.log")
    }

    /// A Webhook at a path of the receiver, with a Subscription.
    pub fn pair(&self, name: &str, path: &str) -> String {
        format!(
            "{{apiVersion: posthorn.dev/v1alpha1, kind: Webhook, metadata: {{name: {name}}}, spec: {{url: 'http://{}{path}'}}}}\n---\n{{apiVersion: posthorn.dev/v1alpha1, kind: Subscription, metadata: {{name: {name}}}, spec: {{webhookRef: {{name: {name}}}, events: ['*']}}}}",
            self.receiver
        )
    }
}

impl Drop for Posthorn {
    fn drop(&mut self) {
        self.stop_receiver.cancel();
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

/// What the chart and the cluster would bring: namespace, ServiceAccounts, a
/// pool that allows the receiver, and the controller's token.
async fn prepare(client: &Client, folder: &Path, receiver_port: u16) {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": RELEASE_NAMESPACE}});
    namespaces.create(&PostParams::default(), &serde_json::from_value(body).unwrap()).await.unwrap();
    let release = Scope { client: client.clone(), namespace: RELEASE_NAMESPACE.to_owned() };
    for account in ["posthorn-controller", "posthorn-delivery"] {
        release.apply(&format!("{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: {account}}}}}")).await;
    }
    let pools: Api<posthorn::api::DeliveryPool> = Api::all(client.clone());
    let pool = json!({
        "apiVersion": "posthorn.dev/v1alpha1", "kind": "DeliveryPool", "metadata": {"name": "default"},
        "spec": {"egress": {"schemes": ["http", "https"], "ports": [receiver_port]}}
    });
    pools.create(&PostParams::default(), &serde_json::from_value(pool).unwrap()).await.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), RELEASE_NAMESPACE);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec!["posthorn-internal".into()],
            expiration_seconds: Some(3600),
            ..Default::default()
        },
        ..Default::default()
    };
    let token = accounts.create_token_request("posthorn-controller", &PostParams::default(), &request).await.unwrap();
    std::fs::write(folder.join("token"), token.status.unwrap().token).unwrap();
}

fn delivery(folder: &Path, port: u16, ingest: u16, kubeconfig: &Path) -> Child {
    for made in ["data", "run"] {
        std::fs::create_dir_all(folder.join(made)).unwrap();
    }
    Command::new(env!("CARGO_BIN_EXE_posthorn"))
        .args(["delivery", "--pool", "default", "--namespace", RELEASE_NAMESPACE, "--health-listen", "127.0.0.1:0"])
        .args(["--internal-listen", &format!("127.0.0.1:{port}"), "--insecure-allow-loopback"])
        .args(["--ingest-listen", &format!("127.0.0.1:{ingest}"), "--pod-name", "posthorn-default-0"])
        .arg("--data-dir")
        .arg(folder.join("data"))
        .arg("--run-dir")
        .arg(folder.join("run"))
        .args(["--controller-service-account", &format!("{RELEASE_NAMESPACE}/posthorn-controller")])
        .arg("--tls-dir")
        .arg(folder.join("tls"))
        .arg("--keys-dir")
        .arg(folder.join("keys"))
        .env("KUBECONFIG", kubeconfig)
        .stdin(Stdio::null())
        .stderr(File::create(folder.join("delivery.log")).unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Waits for a Secret of the controller and writes its values as files, as a
/// volume would show them.
async fn secret_files(client: &Client, name: &str, folder: &Path) {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), RELEASE_NAMESPACE);
    let start = Instant::now();
    let data = loop {
        if let Some(data) = secrets.get_opt(name).await.unwrap().and_then(|s| s.data) {
            break data;
        }
        assert!(start.elapsed() < SECRET_LIMIT, "the controller made no Secret {name}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    std::fs::create_dir_all(folder).unwrap();
    for (key, value) in data {
        std::fs::write(folder.join(key), value.0).unwrap();
    }
}

/// The project's own receiver in this process.
async fn receiver() -> (std::net::SocketAddr, CancellationToken) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(posthorn::inbox::run(posthorn::inbox::Config::default(), listener, stop.clone()));
    (address, stop)
}

/// A port that was free a moment ago: the process that gets it binds it itself.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
