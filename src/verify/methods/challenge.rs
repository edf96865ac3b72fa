//! `Challenge`: the answer must be the random text that was sent.
//!
//! Improvado has headers of its own and wants plain text. Every other dialect
//! gets the shape of Standard Webhooks: a signed POST of
//! `{"type":"webhook.verification","challenge":C}` with the header
//! `webhook-challenge: C`, answered by C as plain text, or by JSON or a form
//! with a member `challenge`.

use super::answer;
use crate::{
    api::webhook::{ChallengeHttpMethod, Dialect, VerificationMethod},
    dialect::sign::{self, Message},
    runtime::secret::SecretString,
    verify::challenge::{Handshake, HandshakeRequest, Verdict},
    wire::probe::ProbeAnswer,
};

/// Header of the challenge in the shape of Standard Webhooks.
pub const CHALLENGE_HEADER: &str = "webhook-challenge";
/// `type` of the request's body in the shape of Standard Webhooks.
pub const VERIFICATION_TYPE: &str = "webhook.verification";
/// Header of the challenge in Improvado's handshake.
pub const IMPROVADO_CHALLENGE_HEADER: &str = "X-Improvado-Challenge";
/// Header of the endpoint's secret in Improvado's handshake.
pub const IMPROVADO_TOKEN_HEADER: &str = "X-Improvado-Verify-Token";

/// Whether the request carries the key itself.
pub(in crate::verify) fn sends_token(handshake: &Handshake<'_>) -> bool {
    handshake.method == VerificationMethod::Challenge
        && handshake.dialect == Dialect::Improvado
        && handshake.keys.current().is_some_and(|key| key.expose_text().is_some())
}

pub(in crate::verify) fn request(handshake: &Handshake<'_>) -> HandshakeRequest {
    match handshake.dialect {
        Dialect::Improvado => improvado_request(handshake),
        _ => signed_request(handshake),
    }
}

fn improvado_request(handshake: &Handshake<'_>) -> HandshakeRequest {
    let mut headers = vec![(IMPROVADO_CHALLENGE_HEADER.to_owned(), SecretString::from(handshake.challenge))];
    if let Some(token) = handshake.keys.current().and_then(|key| key.expose_text()) {
        headers.push((IMPROVADO_TOKEN_HEADER.to_owned(), token.clone()));
    }
    let method = match handshake.http_method {
        ChallengeHttpMethod::Post => "POST",
        ChallengeHttpMethod::Get => "GET",
    };
    HandshakeRequest { method, headers, body: String::new() }
}

/// The request in the shape of Standard Webhooks, signed like a delivery.
pub(super) fn signed_request(handshake: &Handshake<'_>) -> HandshakeRequest {
    let body = serde_json::json!({ "type": VERIFICATION_TYPE, "challenge": handshake.challenge }).to_string();
    let message = Message { id: handshake.message_id, time: handshake.now, body: body.as_bytes() };
    let mut headers = vec![
        ("content-type".to_owned(), SecretString::from("application/json")),
        (CHALLENGE_HEADER.to_owned(), SecretString::from(handshake.challenge)),
    ];
    let signature = sign::sign(handshake.dialect, handshake.keys, &message);
    headers.extend(signature.into_iter().map(|(name, value)| (name.to_owned(), SecretString::new(value))));
    HandshakeRequest { method: "POST", headers, body }
}

pub(in crate::verify) fn judge(handshake: &Handshake<'_>, given: &ProbeAnswer) -> Verdict {
    if given.body_truncated {
        return answer::too_long();
    }
    let plain = answer::same(answer::text(given), handshake.challenge);
    let fits = match handshake.dialect {
        Dialect::Improvado => plain,
        _ => plain || answer::member(given, "challenge").is_some_and(|c| answer::same(&c, handshake.challenge)),
    };
    if fits {
        return Verdict::Wanted;
    }
    let length = handshake.challenge.len();
    let wanted = match handshake.dialect {
        Dialect::Improvado => format!("its {length} characters as plain text"),
        _ => format!("its {length} characters as text, or JSON or a form with the member challenge"),
    };
    answer::mismatch(given, handshake.challenge, &wanted)
}
