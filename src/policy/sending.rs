//! What the spec of a Webhook says of its requests, beside where they go: the
//! same text for the controller, which verifies with it, and for the delivery
//! pods, which send with it.

use std::{
    fmt,
    sync::{Arc, LazyLock},
};

use serde::{Deserialize, Serialize};

use crate::api::{
    SecretKeyRef, WebhookSpec,
    defaults::{SIGNING_SECRET_KEY, signing_secret_name},
    webhook::{ChallengeHttpMethod, Dialect, Header, HeaderFrom, Tls},
};

/// How requests to a Webhook are made. The store keeps it in this form for times
/// without the API server: a new field needs a `serde(default)`.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SendingSpec {
    /// What the receiver speaks.
    pub dialect: Dialect,
    /// HTTP method of the challenge: the fingerprint binds it.
    pub http_method: ChallengeHttpMethod,
    /// Where the keys are that sign.
    pub signing: SigningSource,
    /// Literal headers.
    pub headers: Box<[Header]>,
    /// Headers whose values are in Secrets.
    pub headers_from: Box<[HeaderFrom]>,
    /// TLS settings.
    pub tls: Option<Box<Tls>>,
}

/// Where the keys are that sign.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SigningSource {
    /// Nowhere: requests go out unsigned.
    Unsigned,
    /// In the Secret that the controller makes.
    Made {
        /// The key before it, which signs too.
        previous: Option<Box<SecretKeyRef>>,
    },
    /// In a Secret that the spec names.
    Named {
        /// The current key.
        current: Box<SecretKeyRef>,
        /// The key before it, which signs too.
        previous: Option<Box<SecretKeyRef>>,
    },
}

/// Most Webhooks say nothing special: they share one of these.
static PLAIN: LazyLock<[Arc<SendingSpec>; 5]> = LazyLock::new(|| {
    [Dialect::StandardWebhooks, Dialect::CloudEvents, Dialect::Improvado, Dialect::Analytics, Dialect::Impira]
        .map(|dialect| Arc::new(SendingSpec::plain(dialect)))
});

impl SendingSpec {
    /// What a spec says. Equal plain specs share their memory.
    pub fn compile(spec: &WebhookSpec) -> Arc<Self> {
        let compiled = Self {
            dialect: spec.effective_dialect(),
            http_method: spec.effective_http_method(),
            signing: signing(spec),
            headers: spec.headers.clone().into(),
            headers_from: spec.headers_from.clone().into(),
            tls: spec.tls.clone().map(Box::new),
        };
        compiled.shared()
    }

    /// Puts a spec on the heap; equal plain specs share their memory.
    pub fn shared(self) -> Arc<Self> {
        let plain = PLAIN.iter().find(|plain| ***plain == self);
        plain.map_or_else(|| Arc::new(self), Arc::clone)
    }

    /// A spec that says nothing but its dialect.
    pub fn plain(dialect: Dialect) -> Self {
        Self {
            dialect,
            http_method: ChallengeHttpMethod::Post,
            signing: SigningSource::Made { previous: None },
            headers: Box::default(),
            headers_from: Box::default(),
            tls: None,
        }
    }
}

/// Not derived: values of headers are not for logs.
impl fmt::Debug for SendingSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (headers, from) = (self.headers.len(), self.headers_from.len());
        write!(f, "SendingSpec({:?}, {:?}, {headers}+{from} headers)", self.dialect, self.signing)
    }
}

fn signing(spec: &WebhookSpec) -> SigningSource {
    if spec.is_unsigned() {
        return SigningSource::Unsigned;
    }
    let signing = spec.signing.as_ref();
    let previous = signing.and_then(|signing| signing.previous_secret_ref.clone()).map(Box::new);
    match signing.and_then(|signing| signing.secret_ref.clone()) {
        Some(current) => SigningSource::Named { current: Box::new(current), previous },
        None => SigningSource::Made { previous },
    }
}

impl SigningSource {
    /// Where the current key of the Webhook of this name is.
    pub fn current(&self, webhook_name: &str) -> Option<SecretKeyRef> {
        match self {
            Self::Unsigned => None,
            Self::Made { .. } => {
                Some(SecretKeyRef { name: signing_secret_name(webhook_name), key: SIGNING_SECRET_KEY.to_owned() })
            }
            Self::Named { current, .. } => Some((**current).clone()),
        }
    }

    /// Whether there is a key at all.
    pub fn is_signed(&self) -> bool {
        !matches!(self, Self::Unsigned)
    }

    /// Where the previous key is.
    pub fn previous(&self) -> Option<&SecretKeyRef> {
        match self {
            Self::Unsigned => None,
            Self::Made { previous } | Self::Named { previous, .. } => previous.as_deref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn compile(extra: Value) -> Arc<SendingSpec> {
        let mut spec = json!({ "url": "https://a.example/" });
        for (key, value) in extra.as_object().unwrap() {
            spec[key] = value.clone();
        }
        SendingSpec::compile(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn specs_that_say_nothing_special_share_their_memory() {
        assert!(Arc::ptr_eq(&compile(json!({})), &compile(json!({ "dialect": "StandardWebhooks" }))));
        assert!(Arc::ptr_eq(&compile(json!({ "dialect": "Impira" })), &compile(json!({ "dialect": "Impira" }))));
        assert!(!Arc::ptr_eq(&compile(json!({})), &compile(json!({ "dialect": "Impira" }))));
        let special = || compile(json!({ "headers": [{ "name": "a", "value": "hunter2" }] }));
        assert!(!Arc::ptr_eq(&special(), &special()));
        assert!(!format!("{:?}", special()).contains("hunter2"));
    }

    #[test]
    fn a_key_is_named_made_or_not_wanted() {
        let named = json!({ "name": "n", "key": "k" });
        let old = json!({ "name": "o", "key": "k" });
        let current = |extra: Value| compile(extra).signing.current("orders").map(|r| format!("{}/{}", r.name, r.key));
        assert_eq!(current(json!({})).as_deref(), Some("orders-signing/secret"));
        assert_eq!(current(json!({ "signing": { "secretRef": named } })).as_deref(), Some("n/k"));
        assert_eq!(current(json!({ "signing": { "none": true }, "dialect": "Impira" })), None);
        let both = compile(json!({ "signing": { "secretRef": named, "previousSecretRef": old } }));
        assert_eq!(both.signing.previous().unwrap().name, "o");
    }
}
