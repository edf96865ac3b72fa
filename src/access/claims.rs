//! What a token says of itself, read without believing it: enough to refuse what
//! cannot be one of ours before the API server is asked.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;

use super::AccessError;

/// Bytes of a token at most; those of ServiceAccounts have some 1,200.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// How far a token may be past its end before it is refused without a question:
/// our clock may run ahead of the API server's.
const CLOCK_SKEW: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
struct Claims {
    aud: Audience,
    exp: i64,
    #[serde(default)]
    iss: String,
    sub: String,
}

/// What a token that may be one of ours says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Screened {
    /// Who made it.
    pub(super) issuer: String,
    /// Whose it is.
    pub(super) subject: String,
    /// When it ends.
    pub(super) expires: Timestamp,
}

/// RFC 7519 §4.1.3: one text or a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    fn contains(&self, wanted: &str) -> bool {
        match self {
            Self::One(one) => one == wanted,
            Self::Many(many) => many.iter().any(|one| one == wanted),
        }
    }
}

/// Refuses a token that by its own claims is not for this audience, or is over.
pub(super) fn screen(token: &str, audience: &str, now: Timestamp) -> Result<Screened, AccessError> {
    let Claims { aud, exp, iss, sub } = read(token).ok_or(AccessError::NoUsableToken)?;
    let expires = Timestamp::from_second(exp).map_err(|_| AccessError::NoUsableToken)?;
    let is_over = expires.checked_add(CLOCK_SKEW).is_ok_and(|end| end <= now);
    if is_over || !aud.contains(audience) {
        return Err(AccessError::NoUsableToken);
    }
    Ok(Screened { issuer: iss, subject: sub, expires })
}

/// Who made a token; the pod's own tells whose tokens its API server makes.
pub fn issuer(token: &str) -> Option<String> {
    read(token).map(|claims| claims.iss).filter(|issuer| !issuer.is_empty())
}

fn read(token: &str) -> Option<Claims> {
    if token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let mut parts = token.split('.');
    let (_header, payload, _signature, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn check(payload: &Value, expected: Result<i64, AccessError>) {
        let token = format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(payload.to_string()));
        check_text(&token, expected);
    }

    fn check_text(token: &str, expected: Result<i64, AccessError>) {
        let verdict = screen(token, "posthorn-internal", Timestamp::from_second(NOW).unwrap());
        assert_eq!(verdict.map(|screened| screened.expires.as_second()), expected, "{token}");
    }

    fn claims(aud: Value, exp: i64) -> Value {
        json!({ "aud": aud, "exp": exp, "sub": "system:serviceaccount:posthorn-system:posthorn-controller" })
    }

    #[test]
    fn a_token_for_us_that_has_not_ended_may_be_reviewed() {
        check(&claims(json!(["posthorn-internal"]), NOW + 1), Ok(NOW + 1));
        check(&claims(json!("posthorn-internal"), NOW + 1), Ok(NOW + 1));
        check(&claims(json!(["other", "posthorn-internal"]), NOW - 9), Ok(NOW - 9));
    }

    #[test]
    fn ended_foreign_and_malformed_tokens_are_refused_without_a_question() {
        let refused = Err(AccessError::NoUsableToken);
        check(&claims(json!(["posthorn-internal"]), NOW - 10), refused);
        check(&claims(json!(["posthorn"]), NOW + 1), refused);
        check(&claims(json!([]), NOW + 1), refused);
        check(&claims(json!(["posthorn-internal"]), i64::MAX), refused);
        check(&claims(json!(["posthorn-internal"]), i64::MIN), refused);
        check(&json!({ "aud": "posthorn-internal" }), refused);
        check(&json!([]), refused);
        for text in ["", ".", "..", "a.b", "a.b.c.d", "a.!.c", "a..c", "\u{0}.\u{0}.\u{0}"] {
            check_text(text, refused);
        }
    }

    #[test]
    fn a_token_is_read_up_to_its_limit_and_not_beyond() {
        let payload = BASE64_URL_SAFE_NO_PAD.encode(claims(json!("posthorn-internal"), NOW + 1).to_string());
        let signature = |bytes: usize| "s".repeat(bytes - payload.len() - 2);
        check_text(&format!(".{payload}.{}", signature(TOKEN_BYTES_MAX)), Ok(NOW + 1));
        check_text(&format!(".{payload}.{}", signature(TOKEN_BYTES_MAX + 1)), Err(AccessError::NoUsableToken));
    }

    #[test]
    fn the_issuer_of_a_token_is_read_without_a_look_at_the_rest() {
        let token = |payload: Value| format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(payload.to_string()));
        let mut payload = claims(json!("other"), 0);
        assert_eq!(issuer(&token(payload.clone())), None);
        payload["iss"] = json!("https://kubernetes.default.svc");
        assert_eq!(issuer(&token(payload)).as_deref(), Some("https://kubernetes.default.svc"));
        assert_eq!(issuer("x"), None);
    }
}
