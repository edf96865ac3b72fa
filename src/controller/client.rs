//! The client of the API server: with time-outs on everything but watches, and
//! with a count of what is read and written.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use futures::future::{BoxFuture, FutureExt};
use http::{Method, Request, Response};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder},
};
use tower_layer::Layer;
use tower_service::Service;

use super::metrics::Metrics;

/// Time for the headers of an answer of the API server, watches included: a
/// watch answers at once and then sends events.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for a connection to the API server.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What comes out of the stack of kube's client below our layer.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The API server did not answer.
#[derive(Debug, thiserror::Error)]
#[error("the API server did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
pub struct AnswerTimeout;

/// There is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Neither a ServiceAccount nor a kubeconfig.
    #[error("cannot find out how to reach the API server: run inside a cluster or set KUBECONFIG")]
    Config(#[source] kube::config::InferConfigError),
    /// The configuration cannot be used.
    #[error("cannot set up the client of the API server")]
    Build(#[source] kube::Error),
}

/// The client of this process: in a cluster by its ServiceAccount, else by KUBECONFIG.
///
/// # Errors
/// If there is no usable configuration.
pub async fn connect(metrics: &Metrics) -> Result<Client, ClientError> {
    let mut config = Config::infer().await.map_err(ClientError::Config)?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    let builder = ClientBuilder::try_from(config).map_err(ClientError::Build)?;
    Ok(builder.with_layer(&Watched { metrics: metrics.clone() }).build())
}

/// Adds the time-out and the counts.
struct Watched {
    metrics: Metrics,
}

impl<S> Layer<S> for Watched {
    type Service = WatchedService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        WatchedService { inner, metrics: self.metrics.clone() }
    }
}

#[derive(Clone)]
struct WatchedService<S> {
    inner: S,
    metrics: Metrics,
}

impl<S, B> Service<Request<Body>> for WatchedService<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<B>, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let metrics = self.metrics.clone();
        let (resource, is_single) = resource_of(request.uri().path());
        let verb = verb_of(request.method());
        let answer = self.inner.call(request);
        async move {
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
            let answer = answer.map_err(|_elapsed| BoxError::from(AnswerTimeout)).and_then(|a| a.map_err(Into::into));
            match verb {
                Some(verb) => {
                    let code = answer.as_ref().map_or_else(|_| "none".to_owned(), |a| a.status().as_str().to_owned());
                    metrics.api_write(resource, verb, code);
                }
                None if is_single => metrics.api_read(resource),
                None => {}
            }
            answer
        }
        .boxed()
    }
}

fn verb_of(method: &Method) -> Option<&'static str> {
    match method.as_str() {
        "POST" => Some("create"),
        "PUT" => Some("update"),
        "PATCH" => Some("patch"),
        "DELETE" => Some("delete"),
        _ => None,
    }
}

/// The plural of a path of the API server with its subresource, and whether one
/// object is meant: `/apis/G/V/namespaces/N/webhooks/x/status` → `webhooks/status`.
fn resource_of(path: &str) -> (String, bool) {
    let mut parts = path.trim_matches('/').split('/');
    let to_skip = if parts.next() == Some("api") { 1 } else { 2 };
    let rest: Vec<&str> = parts.skip(to_skip).collect();
    let rest = match rest.as_slice() {
        ["namespaces", _namespace, tail @ ..] if !tail.is_empty() => tail,
        all => all,
    };
    match rest {
        [plural, _name, subresource] => (format!("{plural}/{subresource}"), true),
        [plural, _name] => ((*plural).to_owned(), true),
        [plural] => ((*plural).to_owned(), false),
        _ => ("other".to_owned(), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_tells_its_resource() {
        let check =
            |path, resource: &str, single| assert_eq!(resource_of(path), (resource.to_owned(), single), "{path}");
        check("/apis/posthorn.dev/v1alpha1/namespaces/n/webhooks/w/status", "webhooks/status", true);
        check("/apis/posthorn.dev/v1alpha1/webhooks", "webhooks", false);
        check("/api/v1/namespaces/n/secrets/s", "secrets", true);
        check("/api/v1/namespaces/n/secrets", "secrets", false);
        check("/api/v1/namespaces/n", "namespaces", true);
        check("/api/v1/namespaces", "namespaces", false);
        check("/apis/coordination.k8s.io/v1/namespaces/p/leases/l", "leases", true);
        check("/version", "other", false);
    }
}
