//! The documents that a store keeps of Webhooks and Subscriptions, so that a pod
//! works while the API server is away.
//!
//! # Format
//! One JSON object in UTF-8 with short names, without blanks:
//!
//! | field | of | means |
//! |---|---|---|
//! | `v` | both | version of the format, [`VERSION`] |
//! | `standing` | both | `served` if absent; `refused`; or `{"moved": pool}` |
//! | `generation` | both | of the spec |
//! | the other fields | both | those of [`WebhookEntry`] and [`SubscriptionEntry`]; absent if `standing` is `refused` |
//!
//! Name, UID, namespace and time of creation are not in it: the store has them
//! beside the document. A Secret's value is never in it; names of Secrets are.
//!
//! # Changes
//! A new field is optional and means what was before it when it is absent;
//! fields that are not known are ignored. So either version reads the other's
//! documents, and a downgrade costs nothing. `v` grows only if that is not
//! possible; documents of a newer `v` are not read.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    EndpointSource, EventPattern, Start, SubscriptionEntry, VerificationEntry, WebhookEntry, intern::Interner,
};
use crate::{
    api::webhook::{Dialect, VerificationMethod},
    policy::{delivery::DeliverySettings, sending::SendingSpec},
};

/// Version of the format.
pub const VERSION: u32 = 1;

/// How an object stands to this pool.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Standing {
    /// This pool serves it.
    #[default]
    Served,
    /// Its generation cannot be used. Nothing is sent, nothing new matches; what
    /// is owed stays owed.
    Refused,
    /// Its namespace belongs to this pool now: nothing new matches here, and what
    /// is owed here is still sent.
    Moved(Box<str>),
}

/// Why a document cannot be used. Says nothing of its content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Written by a newer version of Posthorn.
    #[error("its document has the format {found}; this version of Posthorn reads formats up to {VERSION}")]
    Version {
        /// The version that it has.
        found: u32,
    },
    /// Not the JSON that it should be.
    #[error("its document cannot be read: line {line}, column {column}")]
    Malformed {
        /// Where the parser stopped.
        line: usize,
        /// Where the parser stopped.
        column: usize,
    },
}

/// What a document tells of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Restored<T> {
    /// How it stood to this pool.
    pub standing: Standing,
    /// The object; none if it was refused.
    pub entry: Option<T>,
}

#[derive(Deserialize)]
struct VersionOnly {
    v: u32,
}

#[derive(Serialize, Deserialize)]
struct Head {
    v: u32,
    #[serde(default, skip_serializing_if = "is_default")]
    standing: Standing,
    generation: i64,
}

#[derive(Serialize)]
struct Document<T> {
    #[serde(flatten)]
    head: Head,
    #[serde(flatten)]
    body: Option<T>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WebhookBody {
    endpoint: EndpointSource,
    dialect: Dialect,
    method: VerificationMethod,
    #[serde(default, skip_serializing_if = "is_default")]
    suspended: bool,
    #[serde(default)]
    verification: VerificationEntry,
    settings: DeliverySettings,
    sending: SendingSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reload: Option<Box<str>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SubscriptionBody {
    events: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<Box<str>>,
    start: Start,
    #[serde(default, skip_serializing_if = "is_default")]
    suspended: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The document of a Webhook that can be used.
pub fn of_webhook(webhook: &WebhookEntry, standing: Standing) -> Arc<str> {
    let WebhookEntry {
        name: _,
        uid: _,
        generation,
        endpoint,
        dialect,
        method,
        suspended,
        verification,
        settings,
        sending,
        reload,
    } = webhook;
    let body = WebhookBody {
        endpoint: endpoint.clone(),
        dialect: *dialect,
        method: *method,
        suspended: *suspended,
        verification: verification.clone(),
        settings: (**settings).clone(),
        sending: (**sending).clone(),
        reload: reload.clone(),
    };
    write(standing, *generation, Some(body))
}

/// The document of a Subscription that can be used.
pub fn of_subscription(subscription: &SubscriptionEntry, standing: Standing) -> Arc<str> {
    let SubscriptionEntry { name: _, uid: _, generation, created: _, webhook: _, events, source, start, suspended } =
        subscription;
    let body = SubscriptionBody {
        events: events.iter().map(ToString::to_string).collect(),
        source: source.clone(),
        start: *start,
        suspended: *suspended,
    };
    write(standing, *generation, Some(body))
}

/// The document of an object whose generation cannot be used.
pub fn of_refused(generation: i64) -> Arc<str> {
    write(Standing::Refused, generation, None::<SubscriptionBody>)
}

/// Reads the document of a Webhook.
///
/// # Errors
/// [`DocumentError`]. Any text may come in.
pub(super) fn read_webhook(
    name: &Arc<str>,
    uid: &Arc<str>,
    document: &str,
    shared: &mut Interner<DeliverySettings>,
) -> Result<Restored<WebhookEntry>, DocumentError> {
    let (Head { v: _, standing, generation }, body) = read::<WebhookBody>(document)?;
    let entry = body.map(|body| {
        let WebhookBody { endpoint, dialect, method, suspended, verification, settings, sending, reload } = body;
        WebhookEntry {
            name: Arc::clone(name),
            uid: Arc::clone(uid),
            generation,
            endpoint,
            dialect,
            method,
            suspended,
            verification,
            settings: shared.share(settings),
            sending: sending.shared(),
            reload,
        }
    });
    Ok(Restored { standing, entry })
}

/// What a store has of a Subscription beside its document.
#[derive(Clone, Copy, Debug)]
pub struct SubscriptionFacts<'a> {
    /// Name of the object.
    pub name: &'a Arc<str>,
    /// UID of the object.
    pub uid: &'a Arc<str>,
    /// When it was made.
    pub created: Timestamp,
    /// Name of its Webhook.
    pub webhook: &'a str,
}

/// Reads the document of a Subscription.
///
/// # Errors
/// [`DocumentError`]. Any text may come in.
pub fn read_subscription(
    facts: SubscriptionFacts<'_>,
    document: &str,
) -> Result<Restored<SubscriptionEntry>, DocumentError> {
    let (Head { v: _, standing, generation }, body) = read::<SubscriptionBody>(document)?;
    let entry = body.map(|SubscriptionBody { events, source, start, suspended }| SubscriptionEntry {
        name: Arc::clone(facts.name),
        uid: Arc::clone(facts.uid),
        generation,
        created: facts.created,
        webhook: facts.webhook.into(),
        // Patterns that only a newer version knows match nothing here.
        events: events.iter().filter_map(|text| EventPattern::parse(text)).collect(),
        source,
        start,
        suspended,
    });
    Ok(Restored { standing, entry })
}

fn write<T: Serialize>(standing: Standing, generation: i64, body: Option<T>) -> Arc<str> {
    let document = Document { head: Head { v: VERSION, standing, generation }, body };
    // Every key is a text and no value refuses to be written.
    serde_json::to_string(&document).expect("a document is always JSON").into()
}

/// Head and body; no body if the object was refused.
fn read<T: DeserializeOwned>(text: &str) -> Result<(Head, Option<T>), DocumentError> {
    let malformed = |error: serde_json::Error| DocumentError::Malformed { line: error.line(), column: error.column() };
    let VersionOnly { v: found } = serde_json::from_str(text).map_err(malformed)?;
    if found > VERSION {
        return Err(DocumentError::Version { found });
    }
    let head: Head = serde_json::from_str(text).map_err(malformed)?;
    let body = match head.standing {
        Standing::Refused => None,
        Standing::Served | Standing::Moved(_) => Some(serde_json::from_str(text).map_err(malformed)?),
    };
    Ok((head, body))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::routing::index::Index;

    fn entries() -> (WebhookEntry, SubscriptionEntry) {
        let mut index = Index::new("default", "test");
        index.apply_namespace("shop", "ns", None);
        let metadata = json!({ "namespace": "shop", "name": "a", "uid": "w", "generation": 3,
            "annotations": { "posthorn.dev/reload": "7" } });
        let spec = json!({
            "url": "https://a.example/in", "dialect": "Improvado", "suspend": true,
            "verification": { "httpMethod": "GET" },
            "signing": { "secretRef": { "name": "n", "key": "k" }, "previousSecretRef": { "name": "o", "key": "k" } },
            "headers": [{ "name": "x-a", "value": "1" }],
            "headersFrom": [{ "name": "x-b", "secretRef": { "name": "h", "key": "k" } }],
            "tls": { "caRef": { "name": "ca", "key": "ca.crt" }, "minVersion": "TLS1.3" },
        });
        let verification = json!({ "state": "Verified", "fingerprint": "v1.x",
            "verifiedTime": "2026-11-23T12:00:00Z", "validUntil": "2026-11-27T12:00:00Z" });
        let webhook = json!({ "apiVersion": "posthorn.dev/v1alpha1", "kind": "Webhook", "metadata": metadata,
            "spec": spec, "status": { "verification": verification } });
        index.apply_webhook(&serde_json::from_value(webhook).unwrap());
        let subscription = json!({ "apiVersion": "posthorn.dev/v1alpha1", "kind": "Subscription",
            "metadata": { "namespace": "shop", "name": "s", "uid": "s", "generation": 2 },
            "spec": { "webhookRef": { "name": "a" }, "events": ["a.b", "a.*", "*"], "source": "/shop",
                "start": "2026-11-23T12:00:00Z", "suspend": true } });
        index.apply_subscription(&serde_json::from_value(subscription).unwrap());
        let webhook = index.webhook("shop", "a").unwrap();
        let (_, super::super::Seen::Used(subscription)) = index.look_subscription("shop", "s") else { panic!() };
        ((**webhook).clone(), (*subscription).clone())
    }

    fn back(document: &str) -> Result<Restored<WebhookEntry>, DocumentError> {
        read_webhook(&"a".into(), &"w".into(), document, &mut Interner::default())
    }

    fn facts<'a>(name: &'a Arc<str>, webhook: &'a str) -> SubscriptionFacts<'a> {
        SubscriptionFacts { name, uid: name, created: Timestamp::UNIX_EPOCH, webhook }
    }

    #[test]
    fn every_field_comes_back() {
        let (webhook, subscription) = entries();
        for standing in [Standing::Served, Standing::Moved("other".into())] {
            let restored = back(&of_webhook(&webhook, standing.clone())).unwrap();
            assert_eq!(restored, Restored { standing: standing.clone(), entry: Some(webhook.clone()) });
            let document = of_subscription(&subscription, standing.clone());
            let restored = read_subscription(facts(&"s".into(), "a"), &document).unwrap();
            assert_eq!(restored, Restored { standing, entry: Some(subscription.clone()) });
        }
        assert_eq!(back(&of_refused(3)).unwrap(), Restored { standing: Standing::Refused, entry: None });
    }

    /// What earlier versions wrote must be read for ever.
    #[test]
    fn documents_of_this_version_stay_readable() {
        let document = r#"{"v":1,"generation":1,"endpoint":{"url":"https://a.example/in"},"dialect":"StandardWebhooks","method":"Challenge","verification":{"state":"Pending","fingerprint":null,"verifiedTime":null,"validUntil":null},"settings":{"timeout":{"secs":15,"nanos":0},"retry":{"schedule":[{"secs":60,"nanos":0}]},"jitter":0.1,"rate":null,"concurrency":8,"circuitFailures":20,"maxAge":{"secs":259200,"nanos":0},"deadOn":[],"isOrdered":false,"blocksOnDead":false,"cardsMax":100,"cardTtl":{"secs":604800,"nanos":0}},"sending":{"dialect":"StandardWebhooks","httpMethod":"POST","signing":{"made":{"previous":null}},"headers":[],"headersFrom":[],"tls":null}}"#;
        let entry = back(document).unwrap().entry.unwrap();
        assert_eq!(&*of_webhook(&entry, Standing::Served), document);
        let document = r#"{"v":1,"generation":1,"events":["a.*"],"start":"verification"}"#;
        let entry = read_subscription(facts(&"s".into(), "a"), document).unwrap().entry.unwrap();
        assert_eq!(&*of_subscription(&entry, Standing::Served), document);
    }

    #[test]
    fn a_newer_format_is_told_from_a_damaged_document_and_neither_is_repeated() {
        assert_eq!(back(r#"{"v":2,"standing":"asleep"}"#), Err(DocumentError::Version { found: 2 }));
        let error = back(r#"{"v":1,"generation":1,"endpoint":"hunter2"}"#).unwrap_err();
        assert!(matches!(error, DocumentError::Malformed { .. }));
        assert!(!error.to_string().contains("hunter2"));
    }

    proptest! {
        #[test]
        fn any_text_may_be_a_document(text in ".*", cut in 0..900_usize) {
            let whole = of_webhook(&entries().0, Standing::Served);
            let cut: String = whole.chars().take(cut).collect();
            prop_assert!(back(&text).is_err());
            prop_assert!(cut.len() >= whole.len() || back(&cut).is_err());
            prop_assert!(read_subscription(facts(&"s".into(), "a"), &text).is_err());
        }
    }
}
