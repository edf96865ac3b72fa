//! Secrets that a Webhook names: read by `get` alone, in its own namespace
//! alone, judged by type and content. Messages name a Secret and its key and
//! never hold a part of a value.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use serde::{Deserialize, Serialize};

use crate::{
    api::{Problem, Reason, SecretKeyRef},
    policy::egress::header::HEADER_BYTES_MAX,
    runtime::secret::{SecretBytes, SecretString},
    wire::probe::PEM_BYTES_MAX,
};

/// Longest value of a header from a Secret, in bytes: as long as all headers together may be.
pub const HEADER_VALUE_BYTES_MAX: usize = HEADER_BYTES_MAX;
/// Longest URL from a Secret, in bytes: as long as `spec.url` may be.
pub const URL_BYTES_MAX: usize = 2048;

/// Type of Secrets without a purpose of their own.
const OPAQUE_TYPE: &str = "Opaque";
/// Prefix of the types that are ours.
const OWN_TYPE_PREFIX: &str = "posthorn.dev/";
/// Type of certificates with their keys.
const TLS_TYPE: &str = "kubernetes.io/tls";

/// What a Secret is used for; decides which types may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Use {
    /// A signing key.
    Signing,
    /// The value of a header.
    Header,
    /// The URL of the endpoint.
    Url,
    /// Certificates of authorities.
    Authorities,
    /// A client certificate with its key.
    ClientCertificate,
}

/// Why a Secret could not be had.
#[derive(Debug)]
pub enum SecretError {
    /// The Secret, or Posthorn's right to read it, needs a change by somebody.
    Problem(Problem),
    /// The API server did not say.
    Api(kube::Error),
}

/// A value that was read, to be kept for times without the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadValue {
    /// Name of the Secret.
    pub name: String,
    /// Key in it.
    pub key: String,
    /// What it was read for: its type was judged for this use alone.
    pub used_as: Use,
    /// The value.
    pub value: SecretBytes,
}

/// Reads the Secrets of one namespace, each at most once.
pub struct SecretReader {
    /// None: there is nothing but `values`.
    maybe_api: Option<Api<Secret>>,
    read: Vec<(String, Result<Secret, Problem>)>,
    values: Vec<ReadValue>,
}

impl SecretReader {
    /// A reader for one namespace. There is no way to name another one.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { maybe_api: Some(Api::namespaced(client, namespace)), read: Vec::new(), values: Vec::new() }
    }

    /// A reader of values that another one read. What is not among them does
    /// not exist to it.
    pub fn kept(values: Vec<ReadValue>) -> Self {
        Self { maybe_api: None, read: Vec::new(), values }
    }

    /// Every value that was read.
    pub fn into_values(self) -> Vec<ReadValue> {
        self.values
    }

    /// Takes a Secret as read, because it was just made.
    pub fn assume(&mut self, name: &str, secret: Secret) {
        self.read.retain(|(read, _)| read != name);
        self.values.retain(|read| read.name != name);
        self.read.push((name.to_owned(), Ok(secret)));
    }

    /// The Secret of this name, if there is one.
    ///
    /// # Errors
    /// If it may not be read, or the API server did not answer.
    pub async fn maybe_get(&mut self, name: &str) -> Result<Option<Secret>, SecretError> {
        match self.get(name).await {
            Ok(secret) => Ok(Some(secret)),
            Err(SecretError::Problem(problem)) if problem.reason == Reason::SecretNotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One value of a Secret.
    ///
    /// # Errors
    /// If there is no usable value, or the API server did not answer.
    pub async fn value(&mut self, reference: &SecretKeyRef, used_as: Use) -> Result<SecretBytes, SecretError> {
        let SecretKeyRef { name, key } = reference;
        let is_wanted = |read: &&ReadValue| read.name == *name && read.key == *key && read.used_as == used_as;
        if let Some(known) = self.values.iter().find(is_wanted) {
            return Ok(known.value.clone());
        }
        let secret = self.get(name).await?;
        let value = value_of(&secret, name, key, used_as).map_err(SecretError::Problem)?;
        self.values.push(ReadValue { name: name.clone(), key: key.clone(), used_as, value: value.clone() });
        Ok(value)
    }

    async fn get(&mut self, name: &str) -> Result<Secret, SecretError> {
        if let Some((_, known)) = self.read.iter().find(|(read, _)| read == name) {
            return known.clone().map_err(SecretError::Problem);
        }
        let Some(api) = &self.maybe_api else { return Err(SecretError::Problem(absent(name, 404))) };
        let result = match api.get(name).await {
            Ok(secret) => Ok(secret),
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => Err(absent(name, status.code)),
            Err(error) => return Err(SecretError::Api(error)),
        };
        self.read.push((name.to_owned(), result.clone()));
        result.map_err(SecretError::Problem)
    }
}

fn absent(name: &str, code: u16) -> Problem {
    if code == 403 {
        return Problem::new(
            Reason::SecretNotReadable,
            format!(
                "Posthorn may not read Secret {name}. Give its ServiceAccounts the right to get this Secret; the chart's value rbac.secrets decides where they may read."
            ),
        );
    }
    Problem::new(
        Reason::SecretNotFound,
        format!("Secret {name} does not exist in this namespace. Make it; it is looked for again by itself."),
    )
}

/// One value of a Secret, if its type and content allow the use.
///
/// # Errors
/// What is wrong with the Secret.
pub fn value_of(secret: &Secret, name: &str, key: &str, used_as: Use) -> Result<SecretBytes, Problem> {
    let type_ = secret.type_.as_deref().unwrap_or(OPAQUE_TYPE);
    if !is_type_allowed(type_, used_as) {
        let wanted = if used_as == Use::ClientCertificate { TLS_TYPE } else { "Opaque or posthorn.dev/*" };
        return Err(Problem::new(
            Reason::SecretTypeForbidden,
            format!("Secret {name} is of type {type_}, which must not be used here. Use a Secret of type {wanted}."),
        ));
    }
    let Some(value) = secret.data.as_ref().and_then(|data| data.get(key)) else {
        return Err(Problem::new(
            Reason::SecretKeyMissing,
            format!("Secret {name} has no key {key}. Add it to the Secret's data, or name another key."),
        ));
    };
    if value.0.iter().all(u8::is_ascii_whitespace) {
        return Err(Problem::new(
            Reason::SecretEmpty,
            format!("The key {key} of Secret {name} is empty. Put a value into it."),
        ));
    }
    Ok(SecretBytes::new(value.0.clone()))
}

fn is_type_allowed(type_: &str, used_as: Use) -> bool {
    match used_as {
        Use::ClientCertificate => type_ == TLS_TYPE,
        Use::Signing | Use::Header | Use::Url | Use::Authorities => {
            type_ == OPAQUE_TYPE || type_.starts_with(OWN_TYPE_PREFIX)
        }
    }
}

/// A value as printable text without the line break that editors add.
///
/// # Errors
/// If it is too long or not printable ASCII.
pub fn text_of(value: &SecretBytes, reference: &SecretKeyRef, bytes_max: usize) -> Result<SecretString, Problem> {
    let SecretKeyRef { name, key } = reference;
    let trimmed = value.expose().trim_ascii();
    if trimmed.len() > bytes_max {
        return Err(Problem::new(
            Reason::SecretTooLong,
            format!(
                "The value of key {key} in Secret {name} has {} bytes; at most {bytes_max} are allowed.",
                trimmed.len()
            ),
        ));
    }
    let text = std::str::from_utf8(trimmed).ok().filter(|t| t.bytes().all(|b| matches!(b, b' '..=b'~')));
    text.map(SecretString::from).ok_or_else(|| {
        Problem::new(
            Reason::SecretInvalid,
            format!("The value of key {key} in Secret {name} must be printable ASCII on one line."),
        )
    })
}

/// A value as PEM text.
///
/// # Errors
/// If it is too long or not text. Control characters are none: as JSON each
/// would have six bytes on its way to the pod.
pub fn pem_of(value: &SecretBytes, name: &str, key: &str) -> Result<SecretString, Problem> {
    if value.expose().len() > PEM_BYTES_MAX {
        return Err(Problem::new(
            Reason::SecretTooLong,
            format!("The value of key {key} in Secret {name} is longer than {PEM_BYTES_MAX} bytes."),
        ));
    }
    let is_text = |byte: u8| byte >= b' ' || matches!(byte, b'\n' | b'\r' | b'\t');
    let text = std::str::from_utf8(value.expose()).ok();
    let text = text.filter(|text| text.contains("-----BEGIN ") && text.bytes().all(is_text));
    text.map(SecretString::from).ok_or_else(|| {
        Problem::new(Reason::SecretInvalid, format!("The value of key {key} in Secret {name} is not PEM."))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::wire::probe::{PROBE_REQUEST_BYTES_MAX, ProbeRequest, ProbeTarget, TlsMaterial};

    fn secret(type_: &str, value: &str) -> Secret {
        let mut secret: Secret = serde_json::from_value(json!({ "type": type_ })).unwrap();
        let value = k8s_openapi::ByteString(value.as_bytes().to_vec());
        secret.data = Some([("token".to_owned(), value)].into());
        secret
    }

    fn verdict(type_: &str, value: &str, key: &str, used_as: Use) -> String {
        match value_of(&secret(type_, value), "s", key, used_as) {
            Ok(_) => "ok".into(),
            Err(Problem { reason, message }) => {
                assert!(message.contains("Secret s"), "{message}");
                assert!(!message.contains("hunter2"), "{message}");
                reason.to_string()
            }
        }
    }

    #[test]
    fn only_types_without_a_purpose_of_their_own_are_read() {
        for good in ["Opaque", "posthorn.dev/signing", "posthorn.dev/x"] {
            assert_eq!(verdict(good, "hunter2", "token", Use::Header), "ok", "{good}");
        }
        for bad in [
            "kubernetes.io/service-account-token",
            "kubernetes.io/dockerconfigjson",
            "kubernetes.io/tls",
            "bootstrap.kubernetes.io/token",
            "example.com/x",
        ] {
            for used_as in [Use::Signing, Use::Header, Use::Url, Use::Authorities] {
                assert_eq!(verdict(bad, "hunter2", "token", used_as), "SecretTypeForbidden", "{bad}");
            }
        }
        assert_eq!(verdict("kubernetes.io/tls", "x", "token", Use::ClientCertificate), "ok");
        assert_eq!(verdict("Opaque", "x", "token", Use::ClientCertificate), "SecretTypeForbidden");
    }

    #[test]
    fn a_missing_key_and_an_empty_value_have_their_own_reasons() {
        assert_eq!(verdict("Opaque", "hunter2", "other", Use::Signing), "SecretKeyMissing");
        assert_eq!(verdict("Opaque", " \n", "token", Use::Signing), "SecretEmpty");
        assert_eq!(absent("s", 404).reason, Reason::SecretNotFound);
        assert_eq!(absent("s", 403).reason, Reason::SecretNotReadable);
    }

    #[test]
    fn a_text_loses_its_last_line_break_and_has_a_limit() {
        let reference = SecretKeyRef { name: "s".into(), key: "k".into() };
        let text = |value: &str, max| {
            text_of(&SecretBytes::new(value.as_bytes().to_vec()), &reference, max).map(|t| t.expose().to_owned())
        };
        assert_eq!(text("Bearer x\n", 8), Ok("Bearer x".to_owned()));
        assert_eq!(text("Bearer xy", 8).unwrap_err().reason, Reason::SecretTooLong);
        assert_eq!(text("a\nb", 8).unwrap_err().reason, Reason::SecretInvalid);
        assert_eq!(text("é", 8).unwrap_err().reason, Reason::SecretInvalid);
    }

    #[test]
    fn a_pem_bundle_is_as_long_as_a_pod_takes_it_and_no_longer() {
        let pem = |bytes: usize| {
            let text = format!("-----BEGIN {}", "x".repeat(bytes - 11));
            pem_of(&SecretBytes::new(text.into_bytes()), "s", "ca.crt").map(|text| text.expose().len())
        };
        assert_eq!(pem(64 * 1024), Ok(64 * 1024));
        assert_eq!(pem(64 * 1024 + 1).unwrap_err().reason, Reason::SecretTooLong);
    }

    #[test]
    fn the_longest_request_that_the_limits_allow_is_one_that_a_pod_takes() {
        let pem = |filler: char| format!("-----BEGIN {}", filler.to_string().repeat(PEM_BYTES_MAX - 11));
        let check =
            |text: String| pem_of(&SecretBytes::new(text.into_bytes()), "s", "k").map(|_| ()).map_err(|p| p.reason);
        for filler in ['\n', '"', '\\', '\t'] {
            assert_eq!(check(pem(filler)), Ok(()));
        }
        assert_eq!(check(pem('\u{1}')), Err(Reason::SecretInvalid));
        let request = ProbeRequest {
            namespace: "n".repeat(63),
            name: "w".repeat(253),
            target: ProbeTarget::Url(SecretString::new("\"".repeat(URL_BYTES_MAX))),
            method: "OPTIONS".into(),
            headers: vec![("a".into(), SecretString::new("\"".repeat(HEADER_BYTES_MAX))); 2],
            body: "\"".repeat(HEADER_BYTES_MAX),
            timeout_ms: 30_000,
            tls: Some(TlsMaterial {
                ca_pem: Some(pem('\n')),
                client_certificate_pem: Some(pem('\n')),
                client_key_pem: Some(SecretString::new(pem('\n'))),
                min_version: None,
            }),
        };
        let bytes = serde_json::to_vec(&request).unwrap().len();
        assert!(bytes <= PROBE_REQUEST_BYTES_MAX, "{bytes}");
    }
}
