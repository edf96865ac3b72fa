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
pub use super::methods::{
    challenge::{CHALLENGE_HEADER, IMPROVADO_CHALLENGE_HEADER, IMPROVADO_TOKEN_HEADER, VERIFICATION_TYPE},
    cloud_events::{ALLOWED_ORIGIN_HEADER, REQUEST_ORIGIN_HEADER, request_origin},
};
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

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        dialect::SigningKey,
        runtime::secret::SecretBytes,
        wire::probe::{PROBE_BODY_BYTES_MAX, ProbeAnswer},
    };

    const CHALLENGE: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
    const KEY: &str = "demo-signing-secret-of-ours";
    const ORIGIN: &str = "posthorn.example.com";

    fn key(text: &str) -> SigningKey {
        SigningKey::parse(Improvado, SecretBytes::new(text.into())).unwrap()
    }

    fn with<T>(dialect: Dialect, method: VerificationMethod, use_it: impl FnOnce(&Handshake<'_>) -> T) -> T {
        let keys = SigningKeys::new(key(KEY), Some(key("the-key-before-the-current")));
        use_it(&Handshake {
            dialect,
            method,
            http_method: ChallengeHttpMethod::Post,
            challenge: CHALLENGE,
            keys: &keys,
            message_id: "chk_1",
            now: Timestamp::from_second(1_700_000_000).unwrap(),
            origin: ORIGIN,
        })
    }

    fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> ProbeOutcome {
        ProbeOutcome::Answer(ProbeAnswer {
            status,
            headers: headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            body: body.to_owned(),
            body_truncated: false,
        })
    }

    /// The reason of the verdict; none for Wanted.
    fn check(dialect: Dialect, method: VerificationMethod, outcome: &ProbeOutcome, expected: Option<Reason>) {
        let verdict = with(dialect, method, |handshake| handshake.judge(outcome));
        let reason = match &verdict {
            Verdict::Wanted => None,
            Verdict::NotWanted { reason, .. } => Some(*reason),
        };
        assert_eq!(reason, expected, "{dialect:?} {method:?}: {verdict:?}");
    }

    fn message(dialect: Dialect, method: VerificationMethod, outcome: &ProbeOutcome) -> String {
        match with(dialect, method, |handshake| handshake.judge(outcome)) {
            Verdict::Wanted => panic!("it was wanted"),
            Verdict::NotWanted { message, .. } => message,
        }
    }

    fn headers(request: &HandshakeRequest) -> Vec<(&str, &str)> {
        request.headers.iter().map(|(name, value)| (name.as_str(), value.expose())).collect()
    }

    use Dialect::{CloudEvents, Impira, Improvado, StandardWebhooks};
    use VerificationMethod::{Challenge, SignedChallenge};

    #[test]
    fn the_challenge_of_standard_webhooks_is_a_signed_post_without_a_secret() {
        with(StandardWebhooks, Challenge, |handshake| {
            let request = handshake.request().unwrap();
            assert_eq!(request.method, "POST");
            assert_eq!(request.body, format!(r#"{{"challenge":"{CHALLENGE}","type":"webhook.verification"}}"#));
            let names: Vec<_> = headers(&request).iter().map(|(name, _)| *name).collect();
            assert_eq!(
                names,
                ["content-type", "webhook-challenge", "webhook-id", "webhook-timestamp", "webhook-signature"]
            );
            assert_eq!(headers(&request)[1].1, CHALLENGE);
            assert!(!handshake.sends_secret());
            assert!(!format!("{:?}", headers(&request)).contains(KEY));
        });
    }

    #[test]
    fn the_challenge_of_improvado_carries_the_token_by_post_or_get() {
        for (http_method, expected) in [(ChallengeHttpMethod::Post, "POST"), (ChallengeHttpMethod::Get, "GET")] {
            with(Improvado, Challenge, |handshake| {
                let handshake = Handshake { http_method, ..*handshake };
                let request = handshake.request().unwrap();
                assert_eq!((request.method, request.body.as_str()), (expected, ""));
                assert_eq!(
                    headers(&request),
                    [("X-Improvado-Challenge", CHALLENGE), ("X-Improvado-Verify-Token", KEY)]
                );
                assert!(handshake.sends_secret());
                assert!(!format!("{request:?}").contains(CHALLENGE));
            });
        }
    }

    #[test]
    fn a_signed_challenge_of_improvado_sends_no_secret() {
        with(Improvado, SignedChallenge, |handshake| {
            assert!(!handshake.sends_secret());
            assert!(headers(&handshake.request().unwrap()).iter().all(|(_, value)| *value != KEY));
        });
    }

    #[test]
    fn cloud_events_asks_by_options_and_none_asks_nothing() {
        with(CloudEvents, VerificationMethod::CloudEvents, |handshake| {
            let request = handshake.request().unwrap();
            assert_eq!((request.method, request.body.as_str()), ("OPTIONS", ""));
            assert_eq!(headers(&request), [("WebHook-Request-Origin", ORIGIN)]);
        });
        with(Impira, VerificationMethod::None, |handshake| assert!(handshake.request().is_none()));
    }

    #[test]
    fn the_challenge_is_taken_as_text_json_or_form() {
        let json = format!(r#"{{"ok":true,"challenge":"{CHALLENGE}"}}"#);
        let form = format!("a=b&challenge={CHALLENGE}");
        for body in [CHALLENGE, json.as_str(), form.as_str()] {
            for end in ["", "\n", "\r", "\r\n"] {
                let outcome = answer(200, &[], &format!("{body}{end}"));
                check(StandardWebhooks, Challenge, &outcome, None);
                let plain = (body != CHALLENGE).then_some(Reason::BodyMismatch);
                check(Improvado, Challenge, &outcome, plain);
            }
        }
        for status in [200, 201, 202, 204, 299] {
            check(Improvado, Challenge, &answer(status, &[], CHALLENGE), None);
        }
    }

    #[test]
    fn what_is_not_exactly_the_challenge_is_refused() {
        for body in [
            String::new(),
            format!(" {CHALLENGE}"),
            format!("{CHALLENGE} "),
            format!("{CHALLENGE}\n\n"),
            format!("{CHALLENGE}\n\r"),
            format!("\"{CHALLENGE}\""),
            CHALLENGE[1..].to_owned(),
            CHALLENGE.to_lowercase(),
            format!(r#"{{"challenge":["{CHALLENGE}"]}}"#),
            format!(r#"[{{"challenge":"{CHALLENGE}"}}]"#),
            format!("<html>{CHALLENGE}</html>"),
            "[".repeat(PROBE_BODY_BYTES_MAX),
            r#"{"challenge":"#.repeat(600),
        ] {
            check(StandardWebhooks, Challenge, &answer(200, &[], &body), Some(Reason::BodyMismatch));
            check(Improvado, Challenge, &answer(200, &[], &body), Some(Reason::BodyMismatch));
        }
    }

    #[test]
    fn only_2xx_counts_whatever_the_body_says() {
        for (status, reason) in [
            (100, Reason::UnexpectedStatus),
            (199, Reason::UnexpectedStatus),
            (300, Reason::RedirectRefused),
            (307, Reason::RedirectRefused),
            (399, Reason::RedirectRefused),
            (404, Reason::UnexpectedStatus),
            (410, Reason::UnexpectedStatus),
            (500, Reason::UnexpectedStatus),
            (0, Reason::UnexpectedStatus),
            (u16::MAX, Reason::UnexpectedStatus),
        ] {
            let outcome = answer(status, &[("WebHook-Allowed-Origin", "*")], CHALLENGE);
            for (dialect, method) in [
                (StandardWebhooks, Challenge),
                (Improvado, Challenge),
                (CloudEvents, VerificationMethod::CloudEvents),
                (StandardWebhooks, SignedChallenge),
            ] {
                check(dialect, method, &outcome, Some(reason));
                assert!(message(dialect, method, &outcome).contains(&status.to_string()));
            }
        }
    }

    #[test]
    fn a_body_that_was_cut_is_refused_where_the_body_counts() {
        let ProbeOutcome::Answer(mut cut) = answer(200, &[("webhook-allowed-origin", "*")], CHALLENGE) else {
            panic!()
        };
        cut.body_truncated = true;
        let cut = ProbeOutcome::Answer(cut);
        check(StandardWebhooks, Challenge, &cut, Some(Reason::BodyTooLong));
        check(StandardWebhooks, SignedChallenge, &cut, Some(Reason::BodyTooLong));
        check(CloudEvents, VerificationMethod::CloudEvents, &cut, None);
    }

    #[test]
    fn a_failure_to_ask_passes_its_reason_and_message_on() {
        let failure = ProbeOutcome::Failure { reason: Reason::ConnectTimedOut, message: "No connection.".to_owned() };
        check(Improvado, Challenge, &failure, Some(Reason::ConnectTimedOut));
        assert_eq!(message(Improvado, Challenge, &failure), "No connection.");
    }

    #[test]
    fn a_signed_challenge_needs_the_proof_of_either_key() {
        let proof = |text: &str| STANDARD.encode(key(text).mac(&[CHALLENGE.as_bytes()]));
        let json = |proof: &str| format!(r#"{{"challenge":"{CHALLENGE}","proof":"{proof}"}}"#);
        let check = |body: &str, expected| check(StandardWebhooks, SignedChallenge, &answer(200, &[], body), expected);
        check(&json(&proof(KEY)), None);
        check(&json(&proof("the-key-before-the-current")), None);
        check(&json(&STANDARD_NO_PAD.encode(key(KEY).mac(&[CHALLENGE.as_bytes()]))), None);
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("challenge", CHALLENGE).append_pair("proof", &proof(KEY));
        check(&form.finish(), None);
        check(&json(&proof("another-key-of-somebody")), Some(Reason::ProofMismatch));
        check(&json(""), Some(Reason::ProofMismatch));
        check(CHALLENGE, Some(Reason::ProofMissing));
        check(&format!(r#"{{"challenge":"{CHALLENGE}"}}"#), Some(Reason::ProofMissing));
        check(&format!(r#"{{"proof":"{}"}}"#, proof(KEY)), Some(Reason::BodyMismatch));
        let unsigned = Handshake {
            dialect: StandardWebhooks,
            method: SignedChallenge,
            http_method: ChallengeHttpMethod::Post,
            challenge: CHALLENGE,
            keys: &SigningKeys::none(),
            message_id: "chk_1",
            now: Timestamp::UNIX_EPOCH,
            origin: ORIGIN,
        };
        assert_ne!(unsigned.judge(&answer(200, &[], &json(&proof(KEY)))), Verdict::Wanted, "no key, no proof");
    }

    #[test]
    fn the_consent_of_cloud_events_is_the_header_and_not_the_status() {
        let check = |headers: &[(&str, &str)], expected| {
            check(CloudEvents, VerificationMethod::CloudEvents, &answer(200, headers, ""), expected);
        };
        check(&[("WebHook-Allowed-Origin", ORIGIN)], None);
        check(&[("webhook-allowed-origin", "Posthorn.Example.COM")], None);
        check(&[("WEBHOOK-ALLOWED-ORIGIN", "*")], None);
        check(&[], Some(Reason::OriginNotAllowed));
        check(&[("WebHook-Allowed-Origin", "")], Some(Reason::OriginNotAllowed));
        check(&[("WebHook-Allowed-Origin", "evil.example")], Some(Reason::OriginNotAllowed));
        check(&[("WebHook-Allowed-Origin", "*.example.com")], Some(Reason::OriginNotAllowed));
        check(&[("WebHook-Allowed-Rate", "*")], Some(Reason::OriginNotAllowed));
    }

    #[test]
    fn messages_say_what_came_in_our_own_words() {
        let check = |headers: &[(&str, &str)], body: &str, expected: &str| {
            let text = message(StandardWebhooks, Challenge, &answer(200, headers, body));
            assert!(text.contains(expected), "{text}");
        };
        check(&[], "", "got an empty body.");
        check(&[], "<!doctype html><p>welcome", "got an HTML page (25 bytes).");
        check(&[("Content-Type", "text/html")], "welcome", "got an HTML page (7 bytes).");
        check(&[], r#"{"ok":true}"#, "got JSON (11 bytes).");
        check(&[], "x", "got another text (1 byte).");
        check(&[], &format!("\"{CHALLENGE}\""), "got the challenge in quotes or with white space around it.");
        check(&[], &format!("hello {CHALLENGE}"), "got the challenge among other text.");
        let improvado = message(Improvado, Challenge, &answer(200, &[], "<p>hello"));
        assert_eq!(
            improvado,
            "The endpoint answered 200, but not with the challenge: expected its 43 characters as plain text, got an HTML page (8 bytes). Make the receiver answer with exactly the challenge that it was sent."
        );
    }

    #[test]
    fn a_challenge_has_256_bits_in_43_characters_that_pass_everywhere() {
        let challenge = new_challenge(std::array::from_fn(|i| u8::try_from(i).unwrap()));
        assert_eq!(challenge, CHALLENGE);
        let extreme = new_challenge([0xff; 32]);
        assert_eq!(extreme.len(), 43);
        assert!(extreme.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
    }

    #[test]
    fn a_key_is_needed_where_something_is_signed() {
        assert!(needs_key(StandardWebhooks, VerificationMethod::None));
        assert!(needs_key(CloudEvents, SignedChallenge));
        assert!(!needs_key(CloudEvents, VerificationMethod::CloudEvents));
    }

    fn any_outcome() -> impl Strategy<Value = ProbeOutcome> {
        let canary = "zq7canary";
        let body = prop_oneof![
            any::<String>(),
            Just(format!("{canary}{CHALLENGE}")),
            "[\\[{\":,a-z=&%\r\n\u{0}é]{0,200}".prop_map(|s| format!("{s}zq7canary")),
        ];
        let header = ("[a-zA-Z-]{1,30}", any::<String>());
        (any::<u16>(), proptest::collection::vec(header, 0..4), any::<String>(), body, any::<bool>()).prop_map(
            move |(status, mut headers, content_type, body, body_truncated)| {
                headers.push(("Content-Type".to_owned(), format!("{content_type}{canary}")));
                headers.push(("WebHook-Allowed-Origin".to_owned(), format!("{canary}{content_type}")));
                let status = if status % 2 == 0 { 200 + status % 100 } else { status };
                ProbeOutcome::Answer(ProbeAnswer { status, headers, body, body_truncated })
            },
        )
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic_or_quote_the_endpoint(outcome in any_outcome()) {
            for dialect in [StandardWebhooks, CloudEvents, Improvado, Dialect::Analytics, Impira] {
                for method in [Challenge, SignedChallenge, VerificationMethod::CloudEvents] {
                    let verdict = with(dialect, method, |handshake| handshake.judge(&outcome));
                    let Verdict::NotWanted { message, .. } = verdict else { panic!("{outcome:?} was wanted") };
                    prop_assert!(!message.contains("zq7canary") && !message.contains(CHALLENGE));
                    prop_assert!(message.ends_with('.') && message.len() <= 512, "{}", message);
                    prop_assert!(!message.contains(char::is_control));
                }
            }
        }
    }
}
