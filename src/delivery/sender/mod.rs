//! Makes attempts: gate → Secrets → payload → signature → egress → report.
//!
//! Nothing is dialed before the gate has let the attempt through: the Webhook is
//! not suspended, its verification is Verified, newer than the last 410 and not
//! run out, and its fingerprint is ours for exactly this endpoint (for `urlFrom`
//! the URL that the Secret holds now).
//!
//! What is no answer of the endpoint ends an attempt like this:
//!
//! | what | the attempt | asked again |
//! |---|---|---|
//! | the gate is closed | not sent | see [`gate`] |
//! | a Secret is missing, may not be read or cannot be used | not sent, the Secret's reason | 5 s to 60 s, or the reload annotation |
//! | the API server is away, values are known or kept | sent with them | |
//! | the API server is away, nothing is known | not sent, SecretUnavailable | 5 s to 60 s |
//! | certificates or headers of Secrets cannot be used | not sent | 60 s |
//! | the rules of the pool are not known yet | not sent, PodsStarting | 5 s |
//! | the API server does not tell of the Service | not sent, Internal: an old address may be another Pod's by now | 5 s |
//! | the rules do not allow the destination | failed, DestinationNotAllowed, kind Other | on the schedule |
//! | the URL cannot be used (any more) | failed, kind Other | on the schedule |
//! | no Service, no Pod behind it, no name, no connection, no TLS, no answer in time | failed, kind Endpoint | on the schedule |
//! | the answer has too many headers, or a mistake of ours | failed, kind Other | on the schedule |
//! | the event has no form in this dialect | unrenderable | never |
//!
//! A failed attempt uses up a try, since the schedule is what users see; what is
//! not sent uses up none, since nobody could have taken it. A destination that
//! is not allowed fails: the tenant chose it, and a hold that no change of his
//! Webhook ends would hide that until `maxAge`.

mod detail;
mod failure;
pub mod fingerprint_key;
pub mod gate;
mod prepared;
mod recent;
mod request;
pub mod run_dir;
mod sampling;
pub mod secret_cache;
pub mod secret_state;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use futures::future::BoxFuture;
use http::StatusCode;
use k8s_openapi::jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use self::{
    detail::Head,
    failure::{NotMade, not_allowed},
    gate::{STARTING_RETRY, hold},
    prepared::{Kept, Prepared, Target},
    recent::Recent,
    request::Composer,
    sampling::{OF_POD, OF_WEBHOOK, Taken},
};
pub use self::{run_dir::RunDir, secret_cache::SecretCache, secret_state::Pace};
use crate::{
    api::Reason,
    dialect::Shape,
    dispatch::{AttemptEnd, AttemptJob, AttemptReport, AttemptSender},
    egress::{Budgets, Clients, Destination, EgressAnswer, Failure, ServiceResolver},
    policy::retry_after,
    routing::index::WebhookEntry,
    runtime::{clock, secret::SecretString},
    secrets::Material,
    store::AttemptDetail,
    verify::fingerprint::FingerprintKey,
};

/// Bytes of an answer's body that are read; then the connection is closed.
pub const ANSWER_BODY_BYTES_MAX: usize = 16 * 1024;
/// Webhooks for which everything is kept ready at most.
pub const PREPARED_MAX: usize = 16_384;
/// Share of an attempt's time that may pass before the request goes out: what
/// is left is enough that a time-out afterwards tells of the endpoint.
const LOOK_UP_SHARE: f64 = 0.5;

/// Makes attempts under the newest egress rules of the pool. Cheap to clone.
#[derive(Clone)]
pub struct Sender(Arc<Inner>);

struct Inner {
    clients: watch::Receiver<Option<Arc<Clients>>>,
    services: ServiceResolver,
    secrets: SecretCache,
    fingerprint: watch::Receiver<Option<FingerprintKey>>,
    composer: Composer,
    /// By UID of the Webhook.
    prepared: Mutex<Recent<Arc<str>, Arc<Kept>>>,
    /// Since when successes are counted whose detail is kept.
    begin: Instant,
    sampled: Taken,
}

impl Sender {
    /// A sender. `fingerprint` comes from [`fingerprint_key::follow`]; `origin` is
    /// [`crate::verify::challenge::request_origin`].
    pub fn new(
        clients: watch::Receiver<Option<Arc<Clients>>>,
        services: ServiceResolver,
        secrets: SecretCache,
        fingerprint: watch::Receiver<Option<FingerprintKey>>,
        origin: &str,
    ) -> Self {
        let prepared = Mutex::new(Recent::new(PREPARED_MAX));
        let composer = Composer::new(origin);
        let (begin, sampled) = (Instant::now(), Taken::default());
        Self(Arc::new(Inner { clients, services, secrets, fingerprint, composer, prepared, begin, sampled }))
    }
}

impl AttemptSender for Sender {
    fn attempt(&self, job: AttemptJob) -> BoxFuture<'static, AttemptReport> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            let (at, started) = (clock::now(), Instant::now());
            let shape = shape_of(&job);
            let (end, detail) = inner.attempt(&job, shape, at, started).await;
            AttemptReport { at, duration: started.elapsed(), shape: shape.code(), end, detail }
        })
    }
}

/// The shape of the first attempt. One that only a later version of Posthorn
/// knows cannot be made here: better the event in another form than never.
fn shape_of(job: &AttemptJob) -> Shape {
    job.shape.and_then(Shape::from_code).unwrap_or_else(|| Shape::of(job.webhook.dialect))
}

type Made = (AttemptEnd, Option<Box<AttemptDetail>>);

impl Inner {
    async fn attempt(&self, job: &AttemptJob, shape: Shape, at: Timestamp, started: Instant) -> Made {
        let total = job.webhook.settings.timeout;
        let ready = timeout(total.mul_f64(LOOK_UP_SHARE), self.ready(job, at)).await;
        let (prepared, destination) = match ready {
            Ok(Ok(ready)) => ready,
            Ok(Err(not_made)) => return told(not_made),
            Err(_elapsed) => return told(NotMade::Held(slow_look_up())),
        };
        let destination = match &destination {
            Some(pods) => pods,
            None => match &prepared.target {
                Target::Url(destination) => destination,
                // A Service always has Pods here.
                Target::Service { .. } => return told(NotMade::Held(slow_look_up())),
            },
        };
        self.send(job, &prepared, destination, shape, at, total.saturating_sub(started.elapsed())).await
    }

    /// Everything up to the request: nothing has been dialed.
    async fn ready(&self, job: &AttemptJob, now: Timestamp) -> Result<(Arc<Prepared>, Option<Destination>), NotMade> {
        let webhook = &job.webhook;
        gate::standing(webhook, job.withdrawn, now)?;
        let Some(key) = self.fingerprint.borrow().clone() else { return Err(gate::no_key().into()) };
        let kept = self.kept(webhook, &key);
        let identity = gate::identity(webhook);
        if kept.is_none()
            && let Some(identity) = &identity
        {
            gate::fingerprint(webhook, identity, &key, now)?;
        }
        let clients = self.clients.borrow().clone().ok_or_else(|| {
            let message = "The delivery pod does not know the egress rules of its DeliveryPool yet; it waits for them.";
            hold(Reason::PodsStarting, message, Some(STARTING_RETRY))
        })?;
        let material = self.secrets.get(&job.namespace, webhook).await?;
        let kept = kept.filter(|kept| kept.has(&material));
        if kept.is_none() && identity.is_none() {
            let url = material.url.as_ref().map(|url| url.expose()).unwrap_or_default();
            gate::fingerprint(webhook, url, &key, now)?;
        }
        let prepared = match kept.filter(|kept| kept.is_under(&clients)) {
            Some(kept) => kept.made.clone()?,
            None => self.prepare(job, material, &clients, key)?,
        };
        let pods = match &prepared.target {
            Target::Url(_) => None,
            Target::Service { target, scheme, path } => {
                let resolved = self.services.resolve(target, *scheme, path, clients.policy()).await;
                Some(resolved.map_err(|error| NotMade::from(&error))?)
            }
        };
        Ok((prepared, pods))
    }

    /// What was made of this Webhook when its fingerprint fitted by this key.
    fn kept(&self, webhook: &Arc<WebhookEntry>, key: &FingerprintKey) -> Option<Arc<Kept>> {
        self.lock().get(&webhook.uid).filter(|kept| kept.is_of(webhook, key)).cloned()
    }

    /// Makes everything ready, if another attempt has not done it meanwhile.
    fn prepare(
        &self,
        job: &AttemptJob,
        material: Arc<Material>,
        clients: &Arc<Clients>,
        key: FingerprintKey,
    ) -> Result<Arc<Prepared>, NotMade> {
        let webhook = &job.webhook;
        let kept = self.kept(webhook, &key).filter(|kept| kept.has(&material) && kept.is_under(clients));
        let kept = kept.unwrap_or_else(|| {
            let kept = Arc::new(Kept::new(&job.namespace, webhook, material, clients, key));
            self.lock().insert(Arc::clone(&webhook.uid), Arc::clone(&kept));
            kept
        });
        kept.made.clone()
    }

    async fn send(
        &self,
        job: &AttemptJob,
        prepared: &Prepared,
        destination: &Destination,
        shape: Shape,
        at: Timestamp,
        left: Duration,
    ) -> Made {
        let compose = || self.composer.compose(&job.webhook, prepared, &job.event, shape, at);
        let composed = match compose() {
            Ok(composed) => composed,
            Err(not_made) => return told(not_made),
        };
        // Made before the request goes out, so that nothing of it has to be copied.
        let head = self.samples(prepared).then(|| Head::new(destination, &composed.request.headers));
        let budgets = Budgets { total: left, body_bytes_max: ANSWER_BODY_BYTES_MAX };
        let answer = prepared.client.send(destination, composed.request, budgets).await;
        if let Ok(answer) = &answer
            && answer.status.is_success()
            && head.is_none()
        {
            return (ended(answer), None);
        }
        // A failure that would not have been kept as a success: made of the same at
        // the same time, its request has the same headers.
        let head = head.unwrap_or_else(|| {
            Head::new(destination, &compose().map(|again| again.request.headers).unwrap_or_default())
        });
        match answer {
            Ok(answer) => {
                if matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                    self.secrets.distrust(&job.webhook);
                }
                let masks = prepared.masks.iter().map(SecretString::expose);
                let secrets: Vec<&str> =
                    masks.chain(composed.signatures.iter().flat_map(|s| request::signatures_in(s))).collect();
                (ended(&answer), Some(head.answered(&answer, &secrets)))
            }
            Err(error) => {
                if matches!(error.failure(), Failure::NotAllowed | Failure::Internal)
                    && !prepared.has_told.swap(true, Ordering::Relaxed)
                {
                    not_allowed(&job.namespace, &job.webhook.name, &error);
                }
                let (end, message) = NotMade::from(&error).into_end();
                (end, Some(head.unanswered(message.as_deref().unwrap_or_default())))
            }
        }
    }

    /// Whether the detail of the next success is kept.
    fn samples(&self, prepared: &Prepared) -> bool {
        let now_us = i64::try_from(self.begin.elapsed().as_micros()).unwrap_or(i64::MAX);
        prepared.sampled.take(OF_WEBHOOK, now_us) && self.sampled.take(OF_POD, now_us)
    }

    fn lock(&self) -> MutexGuard<'_, Recent<Arc<str>, Arc<Kept>>> {
        // A panic elsewhere leaves the map whole: every change is one operation.
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ended(answer: &EgressAnswer) -> AttemptEnd {
    AttemptEnd::Answered { code: answer.status.as_u16(), retry_after: retry_after(answer) }
}

fn retry_after(answer: &EgressAnswer) -> Option<Duration> {
    let values = answer.headers.get_all(http::header::RETRY_AFTER).iter().filter_map(|value| value.to_str().ok());
    retry_after::longest(values, clock::now())
}

/// An attempt of which nothing went out.
fn told(not_made: NotMade) -> Made {
    let (end, message) = not_made.into_end();
    let detail =
        message.map(|message| Box::new(AttemptDetail { head: format!("! {message}\n").into(), body: "".into() }));
    (end, detail)
}

fn slow_look_up() -> crate::dispatch::Hold {
    let message = "Posthorn could not look up in time what it needs for this Webhook; it is tried again.";
    hold(Reason::Internal, message, Some(STARTING_RETRY))
}

#[cfg(test)]
mod testing {
    //! Webhooks as the index has them.

    use std::sync::Arc;

    use serde_json::{Value, json};

    use crate::routing::index::{Index, WebhookEntry};

    pub(super) fn entry(spec: &Value, annotations: &Value, verification: &Value) -> Arc<WebhookEntry> {
        let webhook = json!({
            "apiVersion": "posthorn.dev/v1alpha1", "kind": "Webhook",
            "metadata": { "name": "orders", "namespace": "shop", "uid": "u", "generation": 1, "annotations": annotations },
            "spec": spec,
            "status": verification.as_object().filter(|v| !v.is_empty()).map(|v| json!({ "verification": v })),
        });
        let mut index = Index::new("default", "i");
        index.apply_namespace("shop", "n", None);
        index.apply_webhook(&serde_json::from_value(webhook).unwrap());
        Arc::clone(index.webhook("shop", "orders").unwrap())
    }
}
