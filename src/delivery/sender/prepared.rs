//! What is made of a Webhook and its Secrets once and used for every attempt:
//! where to, with which client, which headers. Made anew when the Webhook, a
//! value of its Secrets or the rules of the pool change.

use std::sync::{Arc, atomic::AtomicBool};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    failure::{NotMade, not_allowed},
    gate::hold,
    sampling::Taken,
    secret_state::is_signed,
};
use crate::{
    api::{Reason, webhook::Scheme},
    dispatch::FailureKind,
    egress::{Client, Clients, Destination, ServiceTarget, TlsError},
    policy::egress::{check_headers, parse_url},
    routing::index::{EndpointSource, WebhookEntry},
    runtime::secret::SecretString,
    secrets::Material,
    verify::fingerprint::FingerprintKey,
};

/// When a Webhook is looked at again whose Secrets hold what cannot be used.
const UNUSABLE_RETRY: std::time::Duration = std::time::Duration::from_secs(60);
/// Shortest piece of a path or query that is looked for in answers, in bytes.
const PIECE_BYTES_MIN: usize = 8;

/// What was made of a Webhook and its Secrets under some rules, or why nothing
/// can be. Both hold until one of the three changes, and the log is told once.
/// It is made of nothing but Webhooks whose fingerprint fits, so as long as Webhook
/// and key are the same it need not be computed again.
pub(super) struct Kept {
    key: FingerprintKey,
    webhook: Arc<WebhookEntry>,
    material: Arc<Material>,
    clients: Arc<Clients>,
    /// What was made.
    pub(super) made: Result<Arc<Prepared>, NotMade>,
}

impl Kept {
    /// Makes everything ready, if that can be done.
    pub(super) fn new(
        namespace: &str,
        webhook: &Arc<WebhookEntry>,
        material: Arc<Material>,
        clients: &Arc<Clients>,
        key: FingerprintKey,
    ) -> Self {
        let made = Prepared::new(namespace, webhook, Arc::clone(&material), clients).map(Arc::new);
        Self { key, webhook: Arc::clone(webhook), material, clients: Arc::clone(clients), made }
    }

    /// Whether the fingerprint of this Webhook was found to fit by this key. If a
    /// Secret has the URL, that holds for the same Secrets alone.
    pub(super) fn is_of(&self, webhook: &Arc<WebhookEntry>, key: &FingerprintKey) -> bool {
        Arc::ptr_eq(&self.webhook, webhook) && self.key.is_clone_of(key)
    }

    /// Whether it was made of these Secrets.
    pub(super) fn has(&self, material: &Arc<Material>) -> bool {
        Arc::ptr_eq(&self.material, material)
    }

    /// Whether it was made under these rules.
    pub(super) fn is_under(&self, clients: &Arc<Clients>) -> bool {
        Arc::ptr_eq(&self.clients, clients)
    }
}

/// What every attempt for a Webhook has in common.
pub(super) struct Prepared {
    /// What its Secrets say.
    pub(super) material: Arc<Material>,
    /// The client with its TLS settings.
    pub(super) client: Client,
    /// Where to.
    pub(super) target: Target,
    /// The headers of the tenant.
    pub(super) headers: HeaderMap,
    /// Texts that are masked in what is kept of answers.
    pub(super) masks: Vec<SecretString>,
    /// The operator's log was told why nothing can be dialed.
    pub(super) has_told: AtomicBool,
    /// Successes whose detail was kept.
    pub(super) sampled: Taken,
}

/// Where requests go.
pub(super) enum Target {
    /// To a host.
    Url(Destination),
    /// To the Pods of a Service, which are looked up for each attempt.
    Service {
        /// Which Service.
        target: ServiceTarget,
        /// http or https.
        scheme: Scheme,
        /// Path and query.
        path: Box<str>,
    },
}

impl Prepared {
    /// Makes everything ready.
    ///
    /// # Errors
    /// Why no attempt can be made.
    fn new(
        namespace: &str,
        webhook: &WebhookEntry,
        material: Arc<Material>,
        clients: &Clients,
    ) -> Result<Self, NotMade> {
        let client = clients.client(namespace, material.tls.as_ref()).map_err(|error| tls(&error))?;
        let (target, path) = target(namespace, webhook, &material, clients)?;
        let headers = headers(webhook, &material)?;
        let masks = masks(webhook, &material, &path);
        let (has_told, sampled) = (AtomicBool::default(), Taken::default());
        Ok(Self { material, client, target, headers, masks, has_told, sampled })
    }
}

fn tls(error: &TlsError) -> NotMade {
    NotMade::Held(hold(error.reason(), format!("{}.", error.message()), Some(UNUSABLE_RETRY)))
}

/// Where to, and the path with the query.
fn target(
    namespace: &str,
    webhook: &WebhookEntry,
    material: &Material,
    clients: &Clients,
) -> Result<(Target, SecretString), NotMade> {
    let url = match &webhook.endpoint {
        EndpointSource::Url(url) => url,
        EndpointSource::UrlFrom { .. } => material.url.as_ref().map(SecretString::expose).unwrap_or_default(),
        EndpointSource::Service(service) => {
            let name = service.name.to_string();
            let target = ServiceTarget { namespace: namespace.to_owned(), name, port: service.port };
            let path = service.path.clone();
            let masked = SecretString::from(&*path);
            return Ok((Target::Service { target, scheme: service.scheme, path }, masked));
        }
    };
    let destination = parse_url(url, clients.policy()).map_err(|refusal| {
        let reason = refusal.reason();
        if reason == Reason::DestinationNotAllowed {
            not_allowed(namespace, &webhook.name, &refusal);
        }
        NotMade::Failed { reason, kind: FailureKind::Other, message: refusal.message() }
    })?;
    let path = destination.uri().path_and_query().map_or("", |path| path.as_str());
    let path = SecretString::from(path);
    Ok((Target::Url(destination), path))
}

fn headers(webhook: &WebhookEntry, material: &Material) -> Result<HeaderMap, NotMade> {
    let refused = |why: String| NotMade::Held(hold(Reason::InvalidHeader, why, Some(UNUSABLE_RETRY)));
    let literal = webhook.sending.headers.iter().map(|header| (header.name.as_str(), header.value.as_str()));
    let from = material.headers.iter().map(|(name, value)| (name.as_str(), value.expose()));
    let all = || literal.clone().chain(from.clone());
    check_headers(all()).map_err(|refusal| refused(format!("A header of the Webhook cannot be sent: {refusal}.")))?;
    let mut headers = HeaderMap::new();
    for (name, value) in all() {
        // Both were checked.
        let (Ok(name), Ok(mut value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) else {
            return Err(refused("A header of the Webhook cannot be sent.".to_owned()));
        };
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

/// Everything that the request holds and the history must not: an endpoint that
/// shows what it got would bring it there.
fn masks(webhook: &WebhookEntry, material: &Material, path: &SecretString) -> Vec<SecretString> {
    let mut masks: Vec<SecretString> = material.headers.iter().map(|(_, value)| value.clone()).collect();
    masks.extend(webhook.sending.headers.iter().map(|header| SecretString::from(header.value.as_str())));
    if is_signed(webhook) {
        masks.extend(material.keys.iter().filter_map(|key| key.expose_text().cloned()));
    }
    // `Bearer abc` comes back as `abc` too.
    let words: Vec<SecretString> = masks
        .iter()
        .flat_map(|value| value.expose().split(' ').filter(|word| word.len() >= PIECE_BYTES_MIN))
        .map(SecretString::from)
        .collect();
    masks.extend(words);
    if path.expose().len() >= PIECE_BYTES_MIN {
        masks.push(path.clone());
    }
    let pieces = path.expose().split(['/', '?', '&', '=']).filter(|piece| piece.len() >= PIECE_BYTES_MIN);
    masks.extend(pieces.map(SecretString::from));
    masks
}
