//! Handshakes: the request that asks an endpoint whether it wants events, and
//! the verdict on its answer.
//!
//! Each method is a file in `methods`; a further one is one more file and one
//! more arm in [`Handshake::request`] and [`Handshake::judge`]. What all have in
//! common is here: an answer counts only with a status of 2xx, redirects are
//! not followed, and no message quotes what the endpoint sent.
//!
//! A plain challenge proves that somebody at the endpoint answers on purpose,
//! or that a page echoes its input. `SignedChallenge` proves that the receiver
//! holds the key. (Its receiver must check the signature of the request before
//! it computes a proof, or it would sign whatever a stranger sends.)

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::jiff::Timestamp;

use super::methods::{challenge, cloud_events, signed_challenge};
use crate::{
    api::{
        Reason,
        webhook::{ChallengeHttpMethod, Dialect, VerificationMethod},
    },
    dialect::{SigningKeys, scheme},
    runtime::secret::SecretString,
    wire::probe::ProbeOutcome,
};

/// One handshake with an endpoint.
pub struct Handshake<'a> {
    /// What the receiver speaks.
    pub dialect: Dialect,
    /// The handshake.
    pub method: VerificationMethod,
    /// HTTP method of the challenge.
    pub http_method: ChallengeHttpMethod,
    /// The challenge, from [`new_challenge`]; used once.
    pub challenge: &'a str,
    /// The keys of the Webhook.
    pub keys: &'a SigningKeys,
    /// The id of the request, for signatures that cover one.
    pub message_id: &'a str,
    /// The time of the request.
    pub now: Timestamp,
    /// The DNS name under which this Posthorn introduces itself.
    pub origin: &'a str,
}

/// The request of a handshake, without the URL.
#[derive(Clone, PartialEq, Eq)]
pub struct HandshakeRequest {
    /// `POST`, `GET` or `OPTIONS`.
    pub method: &'static str,
    /// Names and values; values may be secrets.
    pub headers: Vec<(String, SecretString)>,
    /// The body; empty for none.
    pub body: String,
}

/// Not derived: the challenge is in it.
impl std::fmt::Debug for HandshakeRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HandshakeRequest({}, {} headers)", self.method, self.headers.len())
    }
}

/// Whether the endpoint wants events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does.
    Wanted,
    /// It did not say so.
    NotWanted {
        /// Why, in one word.
        reason: Reason,
        /// What happened and what to do, for the status. Quotes nothing that the
        /// endpoint sent.
        message: String,
    },
}

impl Verdict {
    pub(super) fn refused(reason: Reason, message: impl Into<String>) -> Self {
        Self::NotWanted { reason, message: message.into() }
    }
}

impl Handshake<'_> {
    /// What to send; none for the method None, which asks nothing.
    pub fn request(&self) -> Option<HandshakeRequest> {
        match self.method {
            VerificationMethod::Challenge => Some(challenge::request(self)),
            VerificationMethod::SignedChallenge => Some(signed_challenge::request(self)),
            VerificationMethod::CloudEvents => Some(cloud_events::request(self)),
            VerificationMethod::None => None,
        }
    }

    /// What the answer means. Never panics, whatever came back.
    pub fn judge(&self, outcome: &ProbeOutcome) -> Verdict {
        let answer = match outcome {
            ProbeOutcome::Answer(answer) => answer,
            ProbeOutcome::Failure { reason, message } => return Verdict::refused(*reason, message.clone()),
        };
        if let Some(refusal) = judge_status(answer.status) {
            return refusal;
        }
        match self.method {
            VerificationMethod::Challenge => challenge::judge(self, answer),
            VerificationMethod::SignedChallenge => signed_challenge::judge(self, answer),
            VerificationMethod::CloudEvents => cloud_events::judge(self, answer),
            VerificationMethod::None => Verdict::Wanted,
        }
    }

    /// Whether the request carries a secret: it may then go out by https only,
    /// unless the pool allows http.
    pub fn sends_secret(&self) -> bool {
        challenge::sends_token(self)
    }
}

fn judge_status(status: u16) -> Option<Verdict> {
    match status {
        200..=299 => None,
        300..=399 => Some(Verdict::refused(
            Reason::RedirectRefused,
            format!(
                "The endpoint answered {status}, a redirect, and redirects are never followed. Put the final URL into the Webhook."
            ),
        )),
        410 => Some(Verdict::refused(
            Reason::UnexpectedStatus,
            "The endpoint answered 410: it wants no events. Mend the receiver, or delete the Webhook.",
        )),
        _ => Some(Verdict::refused(
            Reason::UnexpectedStatus,
            format!("The endpoint answered {status} instead of 2xx. See the log of the receiver for this request."),
        )),
    }
}

/// Whether a Webhook of this dialect and method can work without any key.
pub const fn needs_key(dialect: Dialect, method: VerificationMethod) -> bool {
    matches!(method, VerificationMethod::SignedChallenge) || scheme::of(dialect).is_some()
}

/// A challenge of 256 random bits: 43 characters of base64url, which pass
/// through headers, URLs, forms and JSON unchanged.
pub fn new_challenge(random: [u8; 32]) -> String {
    URL_SAFE_NO_PAD.encode(random)
}
