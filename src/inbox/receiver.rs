//! What a good receiver answers: pure, from a request to a reply.

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, Method, StatusCode};
use k8s_openapi::jiff::Timestamp;
use subtle::ConstantTimeEq;

use crate::{
    api::webhook::Dialect,
    dialect::{
        SigningKey, SigningKeys, scheme,
        sign::{self, NotAuthentic},
    },
    runtime::secret::SecretBytes,
    verify::challenge::{
        ALLOWED_ORIGIN_HEADER, CHALLENGE_HEADER, IMPROVADO_CHALLENGE_HEADER, IMPROVADO_TOKEN_HEADER,
        REQUEST_ORIGIN_HEADER, VERIFICATION_TYPE,
    },
};

/// Dialects whose signature is looked for, by its header.
const SIGNED: [Dialect; 4] = [Dialect::StandardWebhooks, Dialect::Improvado, Dialect::Analytics, Dialect::Impira];

/// A request that was read to its end.
pub struct Received<'a> {
    /// HTTP method.
    pub method: &'a Method,
    /// Headers.
    pub headers: &'a HeaderMap,
    /// The body as it came.
    pub body: &'a [u8],
}

/// An answer, and what to print about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Status code.
    pub status: StatusCode,
    /// Names and values of headers.
    pub headers: Vec<(&'static str, String)>,
    /// Body.
    pub body: String,
    /// What the request was and what became of it, in our own words.
    pub what: String,
}

impl Reply {
    /// An answer without body.
    pub fn empty(status: StatusCode, what: impl Into<String>) -> Self {
        Self { status, headers: Vec::new(), body: String::new(), what: what.into() }
    }

    /// An answer of plain text.
    pub fn text(status: StatusCode, body: impl Into<String>, what: impl Into<String>) -> Self {
        let headers = vec![("content-type", "text/plain; charset=utf-8".to_owned())];
        Self { status, headers, body: body.into(), what: what.into() }
    }

    /// An answer of JSON.
    pub fn json(status: StatusCode, body: &serde_json::Value, what: impl Into<String>) -> Self {
        let headers = vec![("content-type", "application/json".to_owned())];
        Self { status, headers, body: body.to_string(), what: what.into() }
    }
}

/// Answers a request. `secret` is the value of the Webhook's Secret.
pub fn answer(secret: Option<&SecretBytes>, request: &Received<'_>, now: Timestamp) -> Reply {
    if let Some(origin) = header(request, REQUEST_ORIGIN_HEADER).filter(|_| request.method == Method::OPTIONS) {
        return consent(origin);
    }
    if let Some(challenge) = header(request, IMPROVADO_CHALLENGE_HEADER) {
        return improvado(secret, request, challenge);
    }
    if request.method != Method::POST {
        let mut reply = Reply::text(
            StatusCode::METHOD_NOT_ALLOWED,
            "This is a Posthorn inbox: it takes POST, and GET /requests shows what came.\n",
            "neither a handshake nor an event",
        );
        reply.headers.push(("allow", "POST, OPTIONS".to_owned()));
        return reply;
    }
    let signature = check_signature(secret, request, now);
    if let Signature::Wrong(error) = &signature {
        let what = format!("refused: signature wrong ({error})");
        return Reply::text(StatusCode::UNAUTHORIZED, "The signature is wrong.\n", what);
    }
    match challenge_of(request) {
        Some(challenge) => standard_webhooks(&challenge, &signature),
        None => Reply::empty(StatusCode::NO_CONTENT, format!("event, {}", signature.describe())),
    }
}

/// A header as text.
fn header<'a>(request: &Received<'a>, name: &str) -> Option<&'a str> {
    request.headers.get(name).and_then(|value| value.to_str().ok())
}

/// The CloudEvents handshake: the sender may send, at any rate.
fn consent(origin: &str) -> Reply {
    let headers = vec![
        ("allow", "POST, OPTIONS".to_owned()),
        (ALLOWED_ORIGIN_HEADER, origin.to_owned()),
        ("WebHook-Allowed-Rate", "*".to_owned()),
    ];
    let what = "CloudEvents handshake, answered".to_owned();
    Reply { status: StatusCode::OK, headers, body: String::new(), what }
}

/// Improvado's handshake: the challenge as plain text, if the token is ours.
fn improvado(secret: Option<&SecretBytes>, request: &Received<'_>, challenge: &str) -> Reply {
    let token = header(request, IMPROVADO_TOKEN_HEADER).unwrap_or_default();
    let token_fits = secret.is_none_or(|secret| secret.expose().ct_eq(token.as_bytes()).into());
    if token_fits {
        let checked = if secret.is_some() { "token ok" } else { "token not checked" };
        Reply::text(StatusCode::OK, challenge, format!("Improvado challenge, answered, {checked}"))
    } else {
        Reply::text(StatusCode::FORBIDDEN, "The token is wrong.\n", "Improvado challenge, refused: token wrong")
    }
}

/// The challenge of the shape of Standard Webhooks, if this is one.
fn challenge_of(request: &Received<'_>) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(request.body).ok()?;
    if body.get("type")?.as_str()? != VERIFICATION_TYPE {
        return None;
    }
    let challenge = body.get("challenge")?.as_str()?;
    header(request, CHALLENGE_HEADER).is_none_or(|h| h == challenge).then(|| challenge.to_owned())
}

/// The proof is given only to who signed: else anybody could have this receiver
/// sign what he likes.
fn standard_webhooks(challenge: &str, signature: &Signature) -> Reply {
    match signature {
        Signature::Right(key) => {
            let proof = STANDARD.encode(key.mac(&[challenge.as_bytes()]));
            let body = serde_json::json!({ "challenge": challenge, "proof": proof });
            Reply::json(StatusCode::OK, &body, "challenge, answered with proof, signature ok")
        }
        other => {
            let body = serde_json::json!({ "challenge": challenge });
            Reply::json(StatusCode::OK, &body, format!("challenge, answered, {}", other.describe()))
        }
    }
}

enum Signature {
    /// There is no secret to check with.
    Unchecked,
    /// The request has none.
    Absent,
    /// Made with this key.
    Right(SigningKey),
    Wrong(NotAuthentic),
}

impl Signature {
    const fn describe(&self) -> &'static str {
        match self {
            Self::Unchecked => "signature not checked",
            Self::Absent => "unsigned",
            Self::Right(_) => "signature ok",
            Self::Wrong(_) => "signature wrong",
        }
    }
}

fn check_signature(secret: Option<&SecretBytes>, request: &Received<'_>, now: Timestamp) -> Signature {
    let Some(secret) = secret else { return Signature::Unchecked };
    let carries =
        |dialect: &Dialect| scheme::of(*dialect).is_some_and(|scheme| request.headers.contains_key(scheme.header));
    let Some(dialect) = SIGNED.into_iter().find(carries) else { return Signature::Absent };
    let Ok(key) = SigningKey::parse(dialect, secret.clone()) else {
        return Signature::Wrong(NotAuthentic::Mismatch);
    };
    let keys = SigningKeys::new(key.clone(), None);
    match sign::authenticate(dialect, &keys, |name| header(request, name), request.body, now) {
        Ok(()) => Signature::Right(key),
        Err(error) => Signature::Wrong(error),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    const SECRET: &[u8] = b"a-secret-of-the-inbox-under-test";

    fn check(headers: &[(&'static str, &str)], body: &str, status: u16, what: &str) {
        let headers: HeaderMap =
            headers.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_str(v).unwrap())).collect();
        let request = Received { method: &Method::POST, headers: &headers, body: body.as_bytes() };
        let reply = answer(Some(&SecretBytes::new(SECRET.to_vec())), &request, Timestamp::UNIX_EPOCH);
        assert_eq!((reply.status.as_u16(), reply.what.as_str()), (status, what));
    }

    #[test]
    fn what_came_is_named_and_only_what_is_wrong_is_refused() {
        let challenge = r#"{"type":"webhook.verification","challenge":"abc"}"#;
        check(&[], "{}", 204, "event, unsigned");
        check(&[("impira-signature", "00")], "{}", 401, "refused: signature wrong (the signature does not fit)");
        check(
            &[("webhook-signature", "v1,x")],
            challenge,
            401,
            "refused: signature wrong (the header webhook-timestamp is missing)",
        );
        check(&[], challenge, 200, "challenge, answered, unsigned");
        check(&[("webhook-challenge", "abc")], challenge, 200, "challenge, answered, unsigned");
        check(&[("webhook-challenge", "other")], challenge, 204, "event, unsigned");
        check(&[("x-improvado-challenge", "abc")], "", 403, "Improvado challenge, refused: token wrong");
    }

    #[test]
    fn a_proof_is_given_only_to_who_signed() {
        let body = br#"{"type":"webhook.verification","challenge":"abc"}"#;
        let secret = SecretBytes::new(SECRET.to_vec());
        let keys = SigningKeys::new(SigningKey::parse(Dialect::Impira, secret.clone()).unwrap(), None);
        let message = sign::Message { id: "chk_1", time: Timestamp::UNIX_EPOCH, body };
        let signature = sign::sign(Dialect::Impira, &keys, &message).remove(0).1;
        let mut headers = HeaderMap::new();
        let ask = |headers: &HeaderMap, secret: Option<&SecretBytes>| {
            answer(secret, &Received { method: &Method::POST, headers, body }, Timestamp::UNIX_EPOCH).body
        };
        assert!(!ask(&headers, Some(&secret)).contains("proof"));
        headers.insert("impira-signature", signature.parse().unwrap());
        assert!(ask(&headers, Some(&secret)).contains("proof"));
        assert!(!ask(&headers, None).contains("proof"));
    }

    proptest! {
        #[test]
        fn no_request_makes_it_panic_or_print_what_it_sent(
            method in "POST|GET|OPTIONS|PUT",
            values in proptest::collection::vec("[ -~]{0,40}", 12),
            body in prop_oneof![any::<Vec<u8>>(), "\\{\"type\":\"webhook.verification\",\"challenge\":\"[a-z]*\"\\}".prop_map(String::into_bytes)],
        ) {
            let names = [
                "webhook-id", "webhook-timestamp", "webhook-signature", "webhook-challenge", "x-improvado-signature",
                "x-improvado-challenge", "x-improvado-verify-token", "x-webhook-signature", "impira-signature",
                "webhook-request-origin", "content-type", "x-other",
            ];
            let values = values.iter().map(|v| HeaderValue::from_str(&format!("zq7canary{v}")).unwrap());
            let headers: HeaderMap = names.map(HeaderName::from_static).into_iter().zip(values).collect();
            let method: Method = method.parse().unwrap();
            let request = Received { method: &method, headers: &headers, body: &body };
            for secret in [None, Some(SecretBytes::new(SECRET.to_vec())), Some(SecretBytes::new(vec![1]))] {
                let reply = answer(secret.as_ref(), &request, Timestamp::UNIX_EPOCH);
                prop_assert!(!reply.what.is_empty() && !reply.what.contains("zq7canary"));
            }
        }
    }
}
