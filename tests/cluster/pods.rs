//! Talks to a delivery pod's internal API as the controller does: with the
//! controller's token, over the pod's own TLS. The tests run on the node, so
//! they reach pod addresses.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{Pod, Secret, ServiceAccount},
};
use kube::{Api, Client};
use posthorn::wire::{
    INDEX_PATH, INTERNAL_AUDIENCE, INTERNAL_PORT,
    index_feed::{FeedKind, FeedPage},
};

use crate::support::RELEASE_NAMESPACE;

/// Reads the index of the pool `default`.
pub struct IndexReader {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl IndexReader {
    pub async fn new(client: &Client) -> Self {
        let pods: Api<Pod> = Api::namespaced(client.clone(), RELEASE_NAMESPACE);
        let pod = pods.get("posthorn-default-0").await.unwrap();
        let address: IpAddr = pod.status.unwrap().pod_ip.unwrap().parse().unwrap();
        let host = format!("posthorn-default-0.posthorn-default-pods.{RELEASE_NAMESPACE}.svc");
        let secrets: Api<Secret> = Api::namespaced(client.clone(), RELEASE_NAMESPACE);
        let authority = secrets.get("posthorn-internal-ca").await.unwrap().data.unwrap()["ca.crt"].clone();
        let http = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(&authority.0).unwrap()])
            .resolve(&host, SocketAddr::new(address, INTERNAL_PORT))
            .build()
            .unwrap();
        Self {
            http,
            base: format!("https://{host}:{INTERNAL_PORT}"),
            token: token(client, "posthorn-controller", INTERNAL_AUDIENCE).await,
        }
    }

    /// Asks with a token, or with none.
    pub async fn status(&self, path: &str, token: Option<&str>) -> u16 {
        let mut request = self.http.get(format!("{}{path}", self.base));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        request.send().await.unwrap().status().as_u16()
    }

    /// The generations of the Webhook and the Subscription of this name.
    pub async fn generations(&self, namespace: &str, name: &str) -> (Option<i64>, Option<i64>) {
        let (mut webhook, mut subscription) = (None, None);
        let (mut instance, mut after) = (String::new(), 0);
        loop {
            let query = format!("{}{INDEX_PATH}?instance={instance}&after={after}", self.base);
            let answer = self.http.get(query).bearer_auth(&self.token).send().await.unwrap();
            let page: FeedPage = answer.error_for_status().unwrap().json().await.unwrap();
            for entry in page.entries.iter().filter(|e| e.namespace == namespace && e.name == name) {
                match entry.kind {
                    FeedKind::Webhook => webhook = entry.generation,
                    FeedKind::Subscription => subscription = entry.generation,
                }
            }
            if !page.more {
                return (webhook, subscription);
            }
            (instance, after) = (page.instance, page.revision);
        }
    }
}

/// A token of a ServiceAccount of the release, for an audience.
pub async fn token(client: &Client, account: &str, audience: &str) -> String {
    token_of(client, RELEASE_NAMESPACE, account, audience).await
}

/// A token of a ServiceAccount, for an audience.
pub async fn token_of(client: &Client, namespace: &str, account: &str, audience: &str) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![audience.to_owned()],
            expiration_seconds: Some(600),
            ..Default::default()
        },
        ..Default::default()
    };
    accounts.create_token_request(account, &Default::default(), &request).await.unwrap().status.unwrap().token
}
