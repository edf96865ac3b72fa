//! Calls of the delivery pods' internal API. The one thing that the controller
//! dials beside the API server.
//!
//! Trusts nothing but Posthorn's own authority, follows no redirect, uses no
//! proxy, reads no answer past a limit. The token is a projected one that the
//! kubelet replaces, so its file is read at each call.

use std::{path::PathBuf, sync::Arc, time::Duration};

use reqwest::{Certificate, StatusCode, redirect};
use serde::de::DeserializeOwned;

use crate::{
    runtime::secret::SecretString,
    wire::{
        COUNTERS_PATH, DELIVERIES_PATH, INDEX_PATH, PROBE_PATH,
        deliveries::{DeliveriesPage, DeliveriesQuery},
        index_feed::{Counters, FeedPage, FeedQuery, POLL_SECONDS_MAX},
        probe::{PROBE_BODY_BYTES_MAX, ProbeRequest, ProbeResponse},
    },
};

/// Time for a connection to a pod.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for a call beyond what the pod itself may take for it.
pub const CALL_SLACK: Duration = Duration::from_secs(5);
/// Bytes of an answer to a probe: the body of an endpoint may grow sixfold by
/// JSON's escapes, and its headers are bounded by the pod.
pub const PROBE_ANSWER_BYTES_MAX: usize = 6 * PROBE_BODY_BYTES_MAX + 128 * 1024;
/// Bytes of a page of the index feed, 2,000 entries of 1 kB, or of Deliveries,
/// 1,000 entries of 2 kB.
pub const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of a pod's counters.
pub const COUNTERS_BYTES_MAX: usize = 16 * 1024;

/// Calls the pods of all pools. Clones share their connections.
#[derive(Clone)]
pub struct PodClient {
    http: reqwest::Client,
    address: Arc<PodAddress>,
    token_file: Arc<PathBuf>,
}

/// Where the pod of a pool is: a template with `{pool}` and `{namespace}`.
#[derive(Clone, Debug)]
pub struct PodAddress {
    /// The template.
    pub template: String,
    /// Posthorn's own namespace.
    pub namespace: String,
}

/// The pod gave no usable answer. Never the endpoint's fault.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// The certificates of the authority cannot be used.
    #[error("the internal authority's certificate cannot be used")]
    Authority(#[source] reqwest::Error),
    /// The token cannot be read.
    #[error("cannot read the token file {path}")]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No answer.
    #[error("pool {pool} does not answer")]
    Call {
        /// The pool.
        pool: String,
        /// Why. Without the URL.
        source: reqwest::Error,
    },
    /// An answer that says no.
    #[error("pool {pool} answered {status}")]
    Status {
        /// The pool.
        pool: String,
        /// The status code.
        status: StatusCode,
    },
    /// More than any answer should have.
    #[error("pool {pool} answered with more than {limit} bytes")]
    TooLong {
        /// The pool.
        pool: String,
        /// The limit.
        limit: usize,
    },
    /// Not what was agreed.
    #[error("pool {pool} answered with something that is not understood: another version of Posthorn may run there")]
    Format {
        /// The pool.
        pool: String,
        /// What is wrong.
        source: serde_json::Error,
    },
}

impl PodAddress {
    fn url(&self, pool: &str, path: &str) -> String {
        let base = self.template.replace("{pool}", pool).replace("{namespace}", &self.namespace);
        format!("{}{path}", base.trim_end_matches('/'))
    }
}

impl PodClient {
    /// A client that trusts the authority in `ca_pem`.
    ///
    /// # Errors
    /// If that is no certificate.
    pub fn new(ca_pem: &str, address: PodAddress, token_file: PathBuf) -> Result<Self, PodError> {
        let roots = Certificate::from_pem_bundle(ca_pem.as_bytes()).map_err(PodError::Authority)?;
        let http = reqwest::Client::builder()
            .tls_certs_only(roots)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .build()
            .map_err(PodError::Authority)?;
        Ok(Self { http, address: Arc::new(address), token_file: Arc::new(token_file) })
    }

    /// Has the pool's pod send one request to an endpoint.
    ///
    /// # Errors
    /// If the pod gave no usable answer; the endpoint was then perhaps asked, perhaps not.
    pub async fn probe(&self, pool: &str, request: &ProbeRequest) -> Result<ProbeResponse, PodError> {
        let time = Duration::from_millis(request.timeout_ms) + CALL_SLACK;
        let call = self.http.post(self.address.url(pool, PROBE_PATH)).timeout(time).json(request);
        self.call(pool, call, PROBE_ANSWER_BYTES_MAX).await
    }

    /// Asks for the next page of the pool's index feed.
    ///
    /// # Errors
    /// If the pod gave no usable answer.
    pub async fn index(&self, pool: &str, query: &FeedQuery) -> Result<FeedPage, PodError> {
        let time = Duration::from_secs(POLL_SECONDS_MAX) + CALL_SLACK;
        let FeedQuery { instance, after } = query;
        let url = self.page_url(pool, INDEX_PATH, instance, *after);
        self.call(pool, self.http.get(url).timeout(time), PAGE_BYTES_MAX).await
    }

    /// Asks for the next page of what became of Deliveries.
    ///
    /// # Errors
    /// If the pod gave no usable answer.
    pub async fn deliveries(&self, pool: &str, query: &DeliveriesQuery) -> Result<DeliveriesPage, PodError> {
        let DeliveriesQuery { instance, after } = query;
        let url = self.page_url(pool, DELIVERIES_PATH, instance, *after);
        self.call(pool, self.http.get(url).timeout(CALL_SLACK), PAGE_BYTES_MAX).await
    }

    /// Asks for the pod's counters, its store's id among them.
    ///
    /// # Errors
    /// If the pod gave no usable answer.
    pub async fn counters(&self, pool: &str) -> Result<Counters, PodError> {
        let url = self.address.url(pool, COUNTERS_PATH);
        self.call(pool, self.http.get(url).timeout(CALL_SLACK), COUNTERS_BYTES_MAX).await
    }

    fn page_url(&self, pool: &str, path: &str, instance: &str, after: u64) -> String {
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("instance", instance)
            .append_pair("after", &after.to_string())
            .finish();
        format!("{}?{query}", self.address.url(pool, path))
    }

    async fn call<T: DeserializeOwned>(
        &self,
        pool: &str,
        request: reqwest::RequestBuilder,
        limit: usize,
    ) -> Result<T, PodError> {
        let failed = |source: reqwest::Error| PodError::Call { pool: pool.to_owned(), source: source.without_url() };
        let token = self.token().await?;
        let mut answer = request.bearer_auth(token.expose()).send().await.map_err(failed)?;
        if !answer.status().is_success() {
            return Err(PodError::Status { pool: pool.to_owned(), status: answer.status() });
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > limit {
                return Err(PodError::TooLong { pool: pool.to_owned(), limit });
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).map_err(|source| PodError::Format { pool: pool.to_owned(), source })
    }

    async fn token(&self) -> Result<SecretString, PodError> {
        let path = self.token_file.as_path();
        let text = tokio::fs::read_to_string(path).await;
        let text = text.map_err(|source| PodError::Token { path: path.to_owned(), source })?;
        Ok(SecretString::from(text.trim()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_names_pool_and_namespace() {
        let address = PodAddress {
            template: "https://posthorn-{pool}-0.posthorn-{pool}-pods.{namespace}.svc:8444/".into(),
            namespace: "posthorn-system".into(),
        };
        assert_eq!(
            address.url("eu", PROBE_PATH),
            "https://posthorn-eu-0.posthorn-eu-pods.posthorn-system.svc:8444/internal/v1/probe"
        );
    }
}
