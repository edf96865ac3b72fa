//! Reading answers: what a body is, in our words, and where a challenge may
//! stand in it. Bodies are at most 8 KiB, and serde_json refuses nesting
//! deeper than 128, so reading is bounded.

use serde_json::Value;
use subtle::ConstantTimeEq;

use crate::{
    api::Reason,
    verify::challenge::Verdict,
    wire::probe::{PROBE_BODY_BYTES_MAX, ProbeAnswer},
};

/// The body without the one line break that many frameworks end a text with.
pub(super) fn text(answer: &ProbeAnswer) -> &str {
    let body = answer.body.as_str();
    let body = body.strip_suffix('\n').unwrap_or(body);
    body.strip_suffix('\r').unwrap_or(body)
}

/// A member of a JSON object or of a form.
pub(super) fn member(answer: &ProbeAnswer, name: &str) -> Option<String> {
    if let Ok(Value::Object(members)) = serde_json::from_str::<Value>(&answer.body) {
        return members.get(name).and_then(Value::as_str).map(str::to_owned);
    }
    let mut pairs = url::form_urlencoded::parse(text(answer).as_bytes());
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

/// Compares in constant time.
pub(super) fn same(given: &str, expected: &str) -> bool {
    given.as_bytes().ct_eq(expected.as_bytes()).into()
}

/// The verdict on a body that was not read to its end.
pub(super) fn too_long() -> Verdict {
    Verdict::refused(
        Reason::BodyTooLong,
        format!(
            "The endpoint's answer was longer than {PROBE_BODY_BYTES_MAX} bytes. Make the receiver answer with the challenge alone."
        ),
    )
}

/// The verdict on a body that is not the challenge.
pub(super) fn mismatch(answer: &ProbeAnswer, challenge: &str, wanted: &str) -> Verdict {
    let hint = if answer.body.trim_matches(['"', ' ', '\t', '\r', '\n']) == challenge {
        "the challenge in quotes or with white space around it".to_owned()
    } else if answer.body.contains(challenge) {
        "the challenge among other text".to_owned()
    } else {
        describe(answer)
    };
    Verdict::refused(
        Reason::BodyMismatch,
        format!(
            "The endpoint answered {}, but not with the challenge: expected {wanted}, got {hint}. Make the receiver answer with exactly the challenge that it was sent.",
            answer.status
        ),
    )
}

/// What a body is, in our own words: nothing of what the endpoint sent.
pub(super) fn describe(answer: &ProbeAnswer) -> String {
    let bytes = answer.body.len();
    if bytes == 0 {
        return "an empty body".to_owned();
    }
    let start = answer.body.trim_start();
    let content_type = answer.header("content-type").unwrap_or_default().to_ascii_lowercase();
    let kind = if content_type.contains("html") || start.starts_with('<') {
        "an HTML page"
    } else if start.starts_with(['{', '[']) {
        "JSON"
    } else {
        "another text"
    };
    let unit = if bytes == 1 { "byte" } else { "bytes" };
    format!("{kind} ({bytes} {unit})")
}
