//! Hands events in as a service of the cluster does: at the pool's ingest
//! Service, with the token of a ServiceAccount. The tests run on the node, so
//! they reach Service addresses.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::{
    pods::token_of,
    support::{RELEASE_NAMESPACE, Scope},
};

/// Audience of the tokens that ingest takes.
pub const AUDIENCE: &str = "posthorn";
/// How long a right that was just granted may take to count: the API server
/// learns of it by a watch, and ingest keeps a refusal for 5 s.
pub const GRANT_LIMIT: Duration = Duration::from_secs(30);
/// Time between two tries while waiting for the right.
pub const GRANT_POLL: Duration = Duration::from_millis(500);

/// A ServiceAccount that publishes.
pub struct Publisher {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl Publisher {
    /// The ServiceAccount `publisher` of the test's namespace, which may publish
    /// every type there, at the pool `default`.
    pub async fn new(scope: &Scope) -> Self {
        let publisher = Self::of(scope, "publisher", &ingest_url(&scope.client).await).await;
        grant(scope, "publisher", "ClusterRole", "posthorn-publisher").await;
        publisher.until_allowed(&scope.namespace, "test.granted").await;
        publisher
    }

    /// A ServiceAccount of the test's namespace, made here, without any right.
    pub async fn of(scope: &Scope, account: &str, url: &str) -> Self {
        scope.apply(&format!("{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: {account}}}}}")).await;
        let token = token_of(&scope.client, &scope.namespace, account, AUDIENCE).await;
        Self::with_token(url, &token)
    }

    /// Whoever has this token.
    pub fn with_token(url: &str, token: &str) -> Self {
        Self { http: reqwest::Client::new(), url: url.to_owned(), token: token.to_owned() }
    }

    /// Waits until an event of this type is taken; let nobody subscribe to it.
    pub async fn until_allowed(&self, namespace: &str, type_: &str) {
        let start = Instant::now();
        loop {
            let answer = self.publish(namespace, &json!({"type": type_, "data": {}})).await;
            if answer.0 == 202 {
                return;
            }
            assert!(start.elapsed() < GRANT_LIMIT, "not allowed within {GRANT_LIMIT:?}: {answer:?}");
            tokio::time::sleep(GRANT_POLL).await;
        }
    }

    /// Publishes one event; the status and body of the answer.
    pub async fn publish(&self, namespace: &str, event: &Value) -> (u16, Value) {
        let url = format!("{}/v1/namespaces/{namespace}/events", self.url);
        let answer = self.http.post(url).bearer_auth(&self.token).json(event).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap_or(Value::Null))
    }

    /// Publishes an event that must be accepted; its id.
    pub async fn accepted(&self, namespace: &str, type_: &str, data: Value) -> String {
        let (status, answer) = self.publish(namespace, &json!({"type": type_, "data": data})).await;
        assert_eq!(status, 202, "{answer}");
        answer["events"][0]["id"].as_str().unwrap().to_owned()
    }
}

/// Binds a ClusterRole, or a Role of the test's namespace, to a ServiceAccount of it.
pub async fn grant(scope: &Scope, account: &str, kind: &str, role: &str) {
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": account},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": scope.namespace}],
        "roleRef": {"kind": kind, "name": role, "apiGroup": "rbac.authorization.k8s.io"}
    });
    scope.apply_one(binding).await.unwrap();
}

/// Where the pool `default` takes events.
pub async fn ingest_url(client: &Client) -> String {
    service_url(client, RELEASE_NAMESPACE, "posthorn-default").await
}

/// A Service by its address: the machine does not ask the cluster's DNS.
pub async fn service_url(client: &Client, namespace: &str, name: &str) -> String {
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let address = services.get(name).await.unwrap().spec.unwrap().cluster_ip.unwrap();
    format!("http://{address}")
}
