//! Sends one request to an endpoint on behalf of the controller.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use crate::{
    api::Reason,
    egress::{Budgets, Clients, Destination, EgressAnswer, EgressRequest, ServiceResolver, ServiceTarget},
    policy::egress::parse_url,
    runtime::{clock, secret::SecretString},
    wire::probe::{PROBE_BODY_BYTES_MAX, ProbeAnswer, ProbeOutcome, ProbeRequest, ProbeResponse, ProbeTarget},
};

/// Shortest time for a probe.
pub const TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// Longest time for a probe.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(30);

/// Share of a probe's time that finding where it goes may take: what is left is
/// enough that a time-out afterwards tells of the endpoint.
const LOOK_UP_SHARE: f64 = 0.5;

/// Sends probes under the newest egress policy of the pool.
#[derive(Clone)]
pub struct Prober {
    clients: watch::Receiver<Option<Arc<Clients>>>,
    services: Arc<ServiceResolver>,
}

/// The rules of the pool are not known yet, so nothing may be dialed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pod does not know the egress rules of its DeliveryPool yet")]
pub struct NoPolicy;

/// Why there is no answer, for the tenant.
struct Failed {
    reason: Reason,
    message: String,
}

impl Prober {
    /// Sends with the newest clients of the channel.
    pub fn new(clients: watch::Receiver<Option<Arc<Clients>>>, services: ServiceResolver) -> Self {
        Self { clients, services: Arc::new(services) }
    }

    /// Sends the request. The time-out is taken into the range from
    /// [`TIMEOUT_MIN`] to [`TIMEOUT_MAX`] and covers everything.
    ///
    /// # Errors
    /// [`NoPolicy`] soon after the start of the pod. That an endpoint does not
    /// answer is no error but an outcome.
    pub async fn probe(&self, request: &ProbeRequest) -> Result<ProbeResponse, NoPolicy> {
        let clients = self.clients.borrow().clone().ok_or(NoPolicy)?;
        let started = clock::monotonic();
        let outcome = match self.send(&clients, request).await {
            Ok(answer) => ProbeOutcome::Answer(to_wire(&answer)),
            Err(Failed { reason, message }) => ProbeOutcome::Failure { reason, message },
        };
        let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(ProbeResponse { duration_ms, outcome })
    }

    async fn send(&self, clients: &Clients, request: &ProbeRequest) -> Result<EgressAnswer, Failed> {
        let total = clamp_timeout(request.timeout_ms);
        let started = Instant::now();
        let headers = request.headers.iter().map(|(name, value)| (name.as_str(), value.expose()));
        let parsed = EgressRequest::parse(&request.method, headers, request.body.clone().into_bytes())
            .map_err(|error| Failed { reason: Reason::InvalidHeader, message: error.to_string() })?;
        let client = clients
            .client(&request.namespace, request.tls.as_ref())
            .map_err(|error| Failed { reason: error.reason(), message: error.message() })?;
        let destination = timeout(total.mul_f64(LOOK_UP_SHARE), self.destination(clients, request));
        let destination = destination.await.unwrap_or_else(|_elapsed| Err(look_up_timed_out(&request.target)))?;
        // Finding the Pods of a Service takes of the same time.
        let budgets = Budgets { total: total.saturating_sub(started.elapsed()), body_bytes_max: PROBE_BODY_BYTES_MAX };
        client.send(&destination, parsed, budgets).await.map_err(|error| {
            // In full for the operator, who may see which address a name has.
            tracing::info!(
                namespace = request.namespace,
                webhook = request.name,
                error = &error as &dyn std::error::Error,
                "a probe got no answer"
            );
            Failed { reason: error.reason(), message: error.message() }
        })
    }

    async fn destination(&self, clients: &Clients, request: &ProbeRequest) -> Result<Destination, Failed> {
        match &request.target {
            ProbeTarget::Url(url) => parse(url, clients, request),
            ProbeTarget::Service { name, port, path, scheme } => {
                let target = ServiceTarget { namespace: request.namespace.clone(), name: name.clone(), port: *port };
                let resolved = self.services.resolve(&target, *scheme, path, clients.policy()).await;
                resolved.map_err(|error| {
                    if error.reason() == Reason::Internal {
                        tracing::warn!(error = &error as &dyn std::error::Error, "a Service could not be read");
                    }
                    Failed { reason: error.reason(), message: error.message() }
                })
            }
        }
    }
}

/// Never the endpoint's fault: nothing was dialed.
fn look_up_timed_out(target: &ProbeTarget) -> Failed {
    let message = match target {
        ProbeTarget::Service { name, .. } => {
            format!("Posthorn could not look up the Service {name} in time; it is tried again")
        }
        ProbeTarget::Url(_) => "Posthorn could not read the URL in time; it is tried again".to_owned(),
    };
    Failed { reason: Reason::Internal, message }
}

fn parse(url: &SecretString, clients: &Clients, request: &ProbeRequest) -> Result<Destination, Failed> {
    parse_url(url.expose(), clients.policy()).map_err(|refusal| {
        tracing::info!(
            namespace = request.namespace,
            webhook = request.name,
            error = &refusal as &dyn std::error::Error,
            "a probe was not sent"
        );
        Failed { reason: refusal.reason(), message: refusal.message() }
    })
}

fn clamp_timeout(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds).clamp(TIMEOUT_MIN, TIMEOUT_MAX)
}

fn to_wire(answer: &EgressAnswer) -> ProbeAnswer {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ProbeAnswer {
        status: answer.status.as_u16(),
        headers: answer.headers.iter().map(|(name, value)| (name.to_string(), text(value.as_bytes()))).collect(),
        body: text(&answer.body),
        body_truncated: answer.body_truncated,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use futures::future::BoxFuture;
    use serde_json::json;

    use super::*;
    use crate::{
        egress::{Resolve, ResolveError},
        policy::egress::{ClusterNetworks, EgressPolicy},
    };

    struct NoNames;

    impl Resolve for NoNames {
        fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, ResolveError>> {
            Box::pin(async { Err(ResolveError::Other("a test resolves no names")) })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_cannot_be_looked_up_in_time_is_no_fault_of_the_endpoint() {
        crate::runtime::tls::install_provider();
        let egress = serde_json::from_value(json!({ "allow": [{ "namespaces": ["shop"] }] })).unwrap();
        let policy = EgressPolicy::compile(Some(&egress), &ClusterNetworks::default()).unwrap();
        let roots = Arc::new(rustls::RootCertStore::empty());
        let clients = Clients::new(Arc::new(policy), Arc::new(NoNames), roots).unwrap();
        let hangs = tower::service_fn(|_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, std::convert::Infallible>>()
        });
        let services = ServiceResolver::new(kube::Client::new(hangs, "default"));
        let (_sender, newest) = watch::channel(Some(Arc::new(clients)));
        let request = serde_json::from_value(json!({
            "namespace": "shop", "name": "orders", "method": "POST", "headers": [], "body": "", "timeoutMs": 2000,
            "target": { "service": { "name": "inbox", "port": 80, "path": "/", "scheme": "http" } },
        }))
        .unwrap();
        let began = Instant::now();
        let outcome = Prober::new(newest, services).probe(&request).await.unwrap().outcome;
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        let ProbeOutcome::Failure { reason, message } = outcome else { panic!("{outcome:?}") };
        assert_eq!(reason, Reason::Internal);
        assert!(message.contains("could not look up the Service inbox in time"), "{message}");
    }

    #[test]
    fn the_time_for_a_probe_is_from_one_to_thirty_seconds() {
        let check = |milliseconds, expected| assert_eq!(clamp_timeout(milliseconds).as_millis(), expected);
        check(0, 1_000);
        check(999, 1_000);
        check(1_001, 1_001);
        check(30_000, 30_000);
        check(30_001, 30_000);
        check(u64::MAX, 30_000);
    }
}
