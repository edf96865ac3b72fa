//! One request to an endpoint on behalf of the controller, and what came back.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    api::{
        Reason,
        webhook::{Scheme, TlsVersion},
    },
    runtime::secret::SecretString,
};

/// Bytes of an answer's body that a probe reads at most. A challenge has fewer
/// than 100; what is longer is not an answer to one.
pub const PROBE_BODY_BYTES_MAX: usize = 8 * 1024;
/// Bytes of PEM text in one field of [`TlsMaterial`] at most; the largest chains
/// have a tenth.
pub const PEM_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a [`ProbeRequest`] as JSON at most: three fields of PEM, of which
/// JSON makes twice as many bytes if every one is a line break or a quotation
/// mark, and 64 KiB for URL, headers and body, which have some 10 KiB.
pub const PROBE_REQUEST_BYTES_MAX: usize = 3 * 2 * PEM_BYTES_MAX + 64 * 1024;

/// What to send where. Made by the controller, sent by a delivery pod, so that
/// verification and delivery have one network identity and one egress policy.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProbeRequest {
    /// Namespace of the Webhook: decides which Services it may call, and is
    /// named in logs.
    pub namespace: String,
    /// Name of the Webhook, for logs.
    pub name: String,
    /// Where to.
    pub target: ProbeTarget,
    /// `POST`, `GET` or `OPTIONS`.
    pub method: String,
    /// Header names and values; values may be secrets.
    pub headers: Vec<(String, SecretString)>,
    /// The body; empty for none.
    pub body: String,
    /// Time for the whole exchange, the body of the answer included.
    pub timeout_ms: u64,
    /// Settings of the connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsMaterial>,
}

/// Not derived: headers, body and path may hold secrets.
impl fmt::Debug for ProbeRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProbeRequest({}/{} {})", self.namespace, self.name, self.method)
    }
}

/// Where a probe goes.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProbeTarget {
    /// A URL as the user wrote it; the pod parses and judges it.
    Url(SecretString),
    /// A Service of the Webhook's namespace.
    Service {
        /// Name of the Service.
        name: String,
        /// Number of its port.
        port: u16,
        /// Path and query.
        path: String,
        /// http or https.
        scheme: Scheme,
    },
}

/// TLS settings with the contents of the Secrets that `spec.tls` names.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsMaterial {
    /// PEM certificates of the authorities to trust instead of the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// PEM certificate chain of the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_pem: Option<String>,
    /// PEM key of the client certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_key_pem: Option<SecretString>,
    /// Lowest version of TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_version: Option<TlsVersion>,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeResponse {
    /// Time from the start of the exchange to its end.
    pub duration_ms: u64,
    /// An answer, or why there is none.
    pub outcome: ProbeOutcome,
}

/// An answer, or why there is none.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProbeOutcome {
    /// The endpoint answered, whatever it said.
    Answer(ProbeAnswer),
    /// No complete answer. The reason is fit for a tenant's eyes: it never tells
    /// which address a name has.
    Failure {
        /// Why, in one word.
        reason: Reason,
        /// Why, in a sentence for the status of the Webhook. Holds no secret, no
        /// path, no address, and nothing that the endpoint chose.
        message: String,
    },
}

/// An endpoint's answer.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeAnswer {
    /// Status code.
    pub status: u16,
    /// Headers; values that are not UTF-8 are replaced lossily.
    pub headers: Vec<(String, String)>,
    /// The body as text, at most [`PROBE_BODY_BYTES_MAX`]; not UTF-8: lossy.
    pub body: String,
    /// Whether the body was longer than what was read.
    pub body_truncated: bool,
}

impl ProbeAnswer {
    /// The first header of this name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
}

/// Not derived: an answer may repeat the secrets that it was sent.
impl fmt::Debug for ProbeOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(answer) => write!(f, "{answer:?}"),
            Self::Failure { reason, message } => write!(f, "Failure({reason}: {message})"),
        }
    }
}

/// Not derived: an answer may repeat the secrets that it was sent.
impl fmt::Debug for ProbeAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answer({}, {} bytes)", self.status, self.body.len())
    }
}
