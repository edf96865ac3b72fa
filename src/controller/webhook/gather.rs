//! Gather: everything that a decision about a Webhook depends on. Reads, and
//! makes the signing Secret if it is missing; decides nothing.

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use kube::Resource;

use super::{
    desk::{Begun, Desk, KeptReading, Probe, reading_lasts},
    material::{self, Reading},
};
use crate::{
    api::{DeliveryPoolSpec, RELOAD_ANNOTATION, VERIFY_REQUESTED_ANNOTATION, Webhook},
    controller::{
        backoff,
        cache::Cached,
        context::{Context, ReconcileError},
        feed::Indexed,
        key::ObjectKey,
    },
    dialect::SigningKeys,
    runtime::clock,
    secrets::Material,
    verify::challenge::Verdict,
    wire::{deliveries::DeliveriesEntry, index_feed::FeedKind},
};

/// First wait before a Secret with a problem is read again.
pub const SECRET_BACKOFF_FIRST: Duration = Duration::from_secs(5);
/// Longest wait before a Secret with a problem is read again.
pub const SECRET_BACKOFF_MAX: Duration = Duration::from_secs(60);

/// Everything that a decision depends on.
pub struct Gathered {
    /// Its namespace and name.
    pub key: ObjectKey,
    /// The object, with the newest status that is known.
    pub webhook: Webhook,
    /// UID of the object.
    pub uid: String,
    /// Generation of the spec.
    pub generation: i64,
    /// The pool of the namespace.
    pub pool_name: String,
    /// That pool's spec; none if there is no such pool. Its coming wakes the Webhook.
    pub maybe_pool: Option<Arc<DeliveryPoolSpec>>,
    /// What the Secrets say.
    pub reading: Arc<Reading>,
    /// When they are read again.
    pub reading_left: Option<Duration>,
    /// What the pool's index has.
    pub indexed: Indexed,
    /// The last probe.
    pub probe: ProbeView,
    /// What the pool's pod told of its Deliveries, as far as it may be written;
    /// none while nobody knows.
    pub told: Option<Arc<DeliveriesEntry>>,
    /// The time.
    pub now: Timestamp,
    /// A number in [0, 1).
    pub chance: f64,
}

/// The last probe, as a decision sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ProbeView {
    /// None, or its outcome is in the status.
    #[default]
    None,
    /// On its way.
    Running {
        /// Fingerprint of endpoint and method.
        id: String,
        /// For how long.
        time: Duration,
        /// Whether no pod took the one before.
        after_no_pod: bool,
    },
    /// The endpoint was asked.
    Judged {
        /// As above.
        id: String,
        /// What its answer means.
        verdict: Verdict,
        /// What it began with.
        begun: Begun,
    },
    /// No pod took it.
    NoPod {
        /// As above.
        id: String,
        /// Time until the next try.
        left: Duration,
    },
}

/// Reads everything.
///
/// # Errors
/// If the object cannot be read, or the API server did not answer.
pub async fn gather(context: &Context, cached: &Cached<Webhook>) -> Result<Gathered, ReconcileError> {
    let key = ObjectKey::of(cached);
    let mut webhook = cached.object()?;
    let uid = cached.meta().uid.clone().unwrap_or_default();
    let generation = cached.generation().unwrap_or_default();
    let version = cached.meta().resource_version.as_deref();
    let (kept, written, probe) = context.desks.at(&key, &uid, |desk| {
        desk.written = desk.written.take().filter(|written| written.is_ahead_of(version));
        (desk.reading.clone(), desk.written.clone(), view(desk))
    });
    if let Some(written) = written {
        webhook.status = Some(written.status);
    }
    if material::wants_made_secret(&webhook) {
        context.made.record(&key);
    }
    let (reading, reading_left) = read_secrets(context, &key, &uid, &webhook, kept).await?;
    let pool_name = context.views.pool_of(&key.namespace);
    let maybe_pool = context.views.pool(&pool_name);
    let indexed = context.feeds.indexed(&pool_name, FeedKind::Webhook, &key, &uid, generation);
    let told = context.deliveries.released(&key, &uid);
    Ok(Gathered {
        key,
        webhook,
        uid,
        generation,
        pool_name,
        maybe_pool,
        reading,
        reading_left,
        indexed,
        probe,
        told,
        now: clock::now(),
        chance: clock::chance(),
    })
}

fn view(desk: &Desk) -> ProbeView {
    let now = clock::monotonic();
    match &desk.probe {
        None => ProbeView::None,
        // It ended without an outcome: a defect of ours, which must not hold a Webhook for ever.
        Some(Probe::Running { task, .. }) if task.is_finished() => ProbeView::None,
        Some(Probe::Running { id, since, no_pod, task: _ }) => ProbeView::Running {
            id: id.clone(),
            time: now.saturating_duration_since(*since),
            after_no_pod: *no_pod > 0,
        },
        Some(Probe::Judged { id, verdict, begun }) => {
            ProbeView::Judged { id: id.clone(), verdict: verdict.clone(), begun: begun.clone() }
        }
        Some(Probe::NoPod { id, failures: _, retry_at }) => {
            ProbeView::NoPod { id: id.clone(), left: retry_at.saturating_duration_since(now) }
        }
    }
}

/// What the Secrets say, from memory while that is fresh; and how long it stays so.
async fn read_secrets(
    context: &Context,
    key: &ObjectKey,
    uid: &str,
    webhook: &Webhook,
    kept: Option<KeptReading>,
) -> Result<(Arc<Reading>, Option<Duration>), ReconcileError> {
    if !material::needs_secrets(webhook) {
        let nothing = Material { keys: SigningKeys::none(), url: None, headers: Vec::new(), tls: tls_only(webhook) };
        return Ok((Arc::new(Reading { material: Ok(nothing), url: None, secret_name: None }), None));
    }
    let occasion = occasion(webhook);
    let now = clock::monotonic();
    let kept = kept.filter(|kept| kept.occasion == occasion);
    let verification = webhook.status.as_ref().and_then(|status| status.verification.as_ref());
    let time = clock::now();
    if let Some(kept) = &kept
        && kept.is_fresh(verification, now, time)
    {
        return Ok((Arc::clone(&kept.reading), Some(kept.until - now)));
    }
    let reading = Arc::new(material::read(&context.client, webhook).await?);
    let (lasts, failures) = match &reading.material {
        Ok(_) => (backoff::spread(reading_lasts(context.webhooks.len()), clock::chance()), 0),
        Err(_) => {
            let failures = kept.map_or(0, |kept| kept.failures);
            (backoff::wait(SECRET_BACKOFF_FIRST, SECRET_BACKOFF_MAX, failures, clock::chance()), failures + 1)
        }
    };
    let kept = KeptReading { reading: Arc::clone(&reading), until: now + lasts, time, occasion, failures };
    context.desks.at(key, uid, |desk| desk.reading = Some(kept));
    Ok((reading, Some(lasts)))
}

/// TLS settings that need no Secret.
fn tls_only(webhook: &Webhook) -> Option<crate::wire::probe::TlsMaterial> {
    let min_version = webhook.spec.tls.as_ref()?.min_version;
    Some(crate::wire::probe::TlsMaterial {
        ca_pem: None,
        client_certificate_pem: None,
        client_key_pem: None,
        min_version,
    })
}

/// Changes whenever the Secrets should be read at once.
fn occasion(webhook: &Webhook) -> String {
    let annotation = |name| webhook.metadata.annotations.as_ref().and_then(|all| all.get(name)).map_or("", |v| v);
    let generation = webhook.metadata.generation.unwrap_or_default();
    format!("{generation}\n{}\n{}", annotation(RELOAD_ANNOTATION), annotation(VERIFY_REQUESTED_ANNOTATION))
}
