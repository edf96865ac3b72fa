//! `CloudEvents`: the abuse protection of the CloudEvents HTTP WebHook
//! specification. OPTIONS with `WebHook-Request-Origin`; the answer's header
//! `WebHook-Allowed-Origin` is the consent, never the status code alone. No rate
//! is asked for, so none has to be granted.

use super::answer;
use crate::{
    api::Reason,
    runtime::secret::SecretString,
    verify::challenge::{Handshake, HandshakeRequest, Verdict},
    wire::probe::ProbeAnswer,
};

/// Header in which the sender names itself.
pub const REQUEST_ORIGIN_HEADER: &str = "WebHook-Request-Origin";
/// Header in which the receiver consents.
pub const ALLOWED_ORIGIN_HEADER: &str = "WebHook-Allowed-Origin";

/// The DNS name under which the Posthorn of a release introduces itself, in
/// handshakes and in every delivery after them.
pub fn request_origin(release_namespace: &str) -> String {
    format!("posthorn.{release_namespace}.svc")
}

pub(in crate::verify) fn request(handshake: &Handshake<'_>) -> HandshakeRequest {
    let headers = vec![(REQUEST_ORIGIN_HEADER.to_owned(), SecretString::from(handshake.origin))];
    HandshakeRequest { method: "OPTIONS", headers, body: String::new() }
}

pub(in crate::verify) fn judge(handshake: &Handshake<'_>, given: &ProbeAnswer) -> Verdict {
    let allowed = given.header(ALLOWED_ORIGIN_HEADER).map(str::trim);
    // Origins are DNS names: their case means nothing.
    let fits = allowed
        .is_some_and(|a| a == "*" || answer::same(&a.to_ascii_lowercase(), &handshake.origin.to_ascii_lowercase()));
    if fits {
        return Verdict::Wanted;
    }
    let what = if allowed.is_some() { "allows another origin" } else { "carries no WebHook-Allowed-Origin" };
    Verdict::refused(
        Reason::OriginNotAllowed,
        format!(
            "The endpoint answered {} to OPTIONS, but its answer {what}. Make the receiver answer with WebHook-Allowed-Origin: {} or *.",
            given.status, handshake.origin
        ),
    )
}
