//! What a pod knows of the Secrets of one Webhook, and when it reads them again.
//! Pure: time comes as an argument.
//!
//! | known | used | read again |
//! |---|---|---|
//! | values | yes | after [`Pace::fresh`]; at once after another value of `posthorn.dev/reload` |
//! | values, and the endpoint answered 401 or 403 | yes | at once; as long as that brings the same values, after twice the time of before, from [`Pace::distrust`] to [`Pace::fresh`] |
//! | values, and the API server was away when they should have been read again | yes | after a back-off |
//! | a Secret is missing or cannot be used | the Webhook is held | after a back-off, or at once for another value of `posthorn.dev/reload` |
//! | nothing, and the API server is away | the Webhook is held | after a back-off |
//! | values for another spec | no | at once |

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::gate::hold;
use crate::{
    api::{Problem, Reason},
    dispatch::Hold,
    routing::index::{EndpointSource, WebhookEntry},
    secrets::Material,
};

/// How often Secrets are read.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Time for which values are used without a look.
    pub fresh: Duration,
    /// Least time between two readings because of wrong answers. An endpoint
    /// that refuses everything for ever must not have us ask for ever.
    pub distrust: Duration,
    /// First wait after a reading that brought nothing.
    pub backoff_first: Duration,
    /// Longest wait after a reading that brought nothing.
    pub backoff_max: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            fresh: Duration::from_secs(5 * 60),
            distrust: Duration::from_secs(5),
            backoff_first: Duration::from_secs(5),
            backoff_max: Duration::from_secs(60),
        }
    }
}

/// How a reading ended.
pub(super) enum Reading {
    /// The API server gave everything.
    Read(Arc<Material>),
    /// It did not answer, and these values were kept from before.
    Kept(Arc<Material>),
    /// Somebody has to mend something.
    Problem(Problem),
    /// The API server did not answer.
    Away,
}

/// What is to be done for an attempt.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Use these.
    Use(Arc<Material>),
    /// Nothing can be sent.
    Hold(Hold),
    /// Read; if that takes too long, use these.
    Read(Option<Arc<Material>>),
}

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Known(Option<Last>);

#[derive(Debug)]
struct Last {
    /// The Webhook for which was read.
    webhook: Arc<WebhookEntry>,
    outcome: Outcome,
    tried: Instant,
    /// Read again from then on.
    again: Instant,
    /// Readings in a row that brought nothing.
    failures: u32,
    /// Readings in a row because of wrong answers that brought nothing new.
    doubts: u32,
    is_distrusted: bool,
}

#[derive(Clone, Debug)]
enum Outcome {
    Material(Arc<Material>),
    Problem(Problem),
}

impl Known {
    /// What is to be done for an attempt.
    pub(super) fn step(&self, webhook: &Arc<WebhookEntry>, now: Instant, pace: &Pace) -> Step {
        let Some(last) = self.0.as_ref().filter(|last| names_the_same(&last.webhook, webhook)) else {
            return Step::Read(None);
        };
        let is_asked = !Arc::ptr_eq(&last.webhook, webhook) && last.webhook.reload != webhook.reload;
        let is_due = now >= last.again || is_asked;
        match &last.outcome {
            Outcome::Problem(_) if is_due => Step::Read(None),
            Outcome::Problem(problem) => Step::Hold(problem_hold(problem, last.again - now)),
            Outcome::Material(material) => {
                let is_distrusted =
                    last.is_distrusted && now >= last.tried + doubled(pace.distrust, last.doubts, pace.fresh);
                let material = Arc::clone(material);
                if is_due || is_distrusted { Step::Read(Some(material)) } else { Step::Use(material) }
            }
        }
    }

    /// What holds right after a reading; none if that was for another spec.
    pub(super) fn after_reading(&self, webhook: &WebhookEntry, now: Instant) -> Option<Result<Arc<Material>, Hold>> {
        let last = self.0.as_ref().filter(|last| names_the_same(&last.webhook, webhook))?;
        Some(match &last.outcome {
            Outcome::Material(material) => Ok(Arc::clone(material)),
            Outcome::Problem(problem) => Err(problem_hold(problem, last.again.saturating_duration_since(now))),
        })
    }

    /// Notes how a reading ended.
    pub(super) fn note(&mut self, webhook: Arc<WebhookEntry>, reading: Reading, now: Instant, pace: &Pace) {
        let before = self.0.take().filter(|last| names_the_same(&last.webhook, &webhook));
        let failures = before.as_ref().map_or(0, |last| last.failures);
        let doubts = before.as_ref().filter(|last| last.is_distrusted).map_or(0, |last| last.doubts.saturating_add(1));
        let (outcome, failures, doubts) = match (reading, before.map(|last| last.outcome)) {
            (Reading::Read(material), Some(Outcome::Material(old))) if *old == *material => {
                // The same values keep their place: what was made of them stays good.
                (Outcome::Material(old), 0, doubts)
            }
            (Reading::Read(material), _) => (Outcome::Material(material), 0, 0),
            (Reading::Problem(problem), _) => (Outcome::Problem(problem), failures + 1, 0),
            (Reading::Kept(_) | Reading::Away, Some(Outcome::Material(old))) => {
                (Outcome::Material(old), failures + 1, doubts)
            }
            (Reading::Kept(material), _) => (Outcome::Material(material), failures + 1, 0),
            (Reading::Away, _) => (Outcome::Problem(away()), failures + 1, 0),
        };
        let wait = if failures == 0 { pace.fresh } else { backoff(failures, pace) };
        self.0 = Some(Last { webhook, outcome, tried: now, again: now + wait, failures, doubts, is_distrusted: false });
    }

    /// The endpoint did not accept what was made with the values.
    pub(super) fn distrust(&mut self) {
        if let Some(last) = &mut self.0 {
            last.is_distrusted = true;
        }
    }
}

fn backoff(failures: u32, pace: &Pace) -> Duration {
    doubled(pace.backoff_first, failures - 1, pace.backoff_max)
}

/// A wait that was doubled so many times.
fn doubled(first: Duration, times: u32, max: Duration) -> Duration {
    first.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX)).min(max)
}

fn problem_hold(problem: &Problem, left: Duration) -> Hold {
    hold(problem.reason, problem.message.clone(), Some(left))
}

fn away() -> Problem {
    let message = "The API server did not give the Secrets of this Webhook; they are asked for again by themselves.";
    Problem::new(Reason::SecretUnavailable, message.to_owned())
}

/// Whether two states of a Webhook read the same keys of the same Secrets for
/// the same use.
fn names_the_same(a: &WebhookEntry, b: &WebhookEntry) -> bool {
    fn url(webhook: &WebhookEntry) -> Option<(&str, &str)> {
        match &webhook.endpoint {
            EndpointSource::UrlFrom { secret, key } => Some((secret, key)),
            EndpointSource::Url(_) | EndpointSource::Service(_) => None,
        }
    }
    std::ptr::eq(a, b)
        || (a.uid == b.uid && (Arc::ptr_eq(&a.sending, &b.sending) || a.sending == b.sending) && url(a) == url(b))
}

/// Whether a Webhook needs any Secret to be sent to.
pub(super) fn needs_secrets(webhook: &WebhookEntry) -> bool {
    let spec = &webhook.sending;
    matches!(webhook.endpoint, EndpointSource::UrlFrom { .. })
        || !spec.headers_from.is_empty()
        || is_signed(webhook)
        || spec.tls.as_ref().is_some_and(|tls| tls.ca_ref.is_some() || tls.client_certificate_ref.is_some())
}

/// Whether deliveries carry a signature: a dialect without one needs its key for
/// handshakes at most, and a missing key must not hold what is never signed.
pub(super) fn is_signed(webhook: &WebhookEntry) -> bool {
    crate::dialect::scheme::of(webhook.sending.dialect).is_some() && webhook.sending.signing.is_signed()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{delivery::sender::testing::entry, dialect::SigningKeys, runtime::secret::SecretString};

    const PACE: Pace = Pace {
        fresh: Duration::from_secs(300),
        distrust: Duration::from_secs(5),
        backoff_first: Duration::from_secs(5),
        backoff_max: Duration::from_secs(60),
    };

    fn webhook(spec: &Value) -> Arc<WebhookEntry> {
        entry(spec, &json!({}), &json!({}))
    }

    fn material(value: &str) -> Arc<Material> {
        let headers = vec![("a".to_owned(), SecretString::from(value))];
        Arc::new(Material { keys: SigningKeys::none(), url: None, headers, tls: None })
    }

    fn problem() -> Reading {
        Reading::Problem(Problem::new(Reason::SecretNotFound, "Secret s does not exist.".to_owned()))
    }

    /// The step as text: what is used, what is held for how long, what is read.
    fn told(step: &Step) -> String {
        let value = |material: &Material| material.headers[0].1.expose().to_owned();
        match step {
            Step::Use(material) => format!("use {}", value(material)),
            Step::Hold(hold) => format!("hold {} {:?}", hold.reason, hold.retry_after.unwrap_or_default()),
            Step::Read(None) => "read".to_owned(),
            Step::Read(Some(material)) => format!("read or {}", value(material)),
        }
    }

    struct Desk {
        known: Known,
        start: Instant,
    }

    impl Desk {
        fn new() -> Self {
            Self { known: Known::default(), start: Instant::now() }
        }

        fn note(&mut self, webhook: &Arc<WebhookEntry>, second: u64, reading: Reading) {
            self.known.note(Arc::clone(webhook), reading, self.start + Duration::from_secs(second), &PACE);
        }

        fn check(&self, webhook: &Arc<WebhookEntry>, second: u64, expected: &str) {
            let step = self.known.step(webhook, self.start + Duration::from_secs(second), &PACE);
            assert_eq!(told(&step), expected, "at {second} s");
        }
    }

    #[test]
    fn values_are_used_for_five_minutes_and_then_read_again() {
        let (mut desk, hook) = (Desk::new(), webhook(&json!({ "url": "https://a.example/" })));
        desk.check(&hook, 0, "read");
        desk.note(&hook, 0, Reading::Read(material("one")));
        desk.check(&hook, 299, "use one");
        desk.check(&hook, 300, "read or one");
        desk.note(&hook, 300, Reading::Read(material("two")));
        desk.check(&hook, 599, "use two");
    }

    #[test]
    fn the_same_values_stay_where_they_are() {
        let (mut desk, hook) = (Desk::new(), webhook(&json!({ "url": "https://a.example/" })));
        let first = material("one");
        desk.note(&hook, 0, Reading::Read(Arc::clone(&first)));
        desk.note(&hook, 300, Reading::Read(material("one")));
        let Step::Use(second) = desk.known.step(&hook, desk.start + Duration::from_secs(301), &PACE) else {
            panic!("read at 300 s")
        };
        assert!(Arc::ptr_eq(&first, &second));
    }

    #[test]
    fn a_refusal_of_the_endpoint_has_them_read_at_once_but_not_all_the_time() {
        let (mut desk, hook) = (Desk::new(), webhook(&json!({ "url": "https://a.example/" })));
        desk.note(&hook, 0, Reading::Read(material("one")));
        desk.known.distrust();
        desk.check(&hook, 4, "use one");
        desk.check(&hook, 5, "read or one");
        desk.note(&hook, 5, Reading::Read(material("one")));
        desk.check(&hook, 20, "use one");
    }

    #[test]
    fn an_endpoint_that_refuses_everything_has_them_read_less_and_less_often() {
        let (mut desk, hook) = (Desk::new(), webhook(&json!({ "url": "https://a.example/" })));
        desk.note(&hook, 0, Reading::Read(material("one")));
        let mut read = 0;
        for wait in [5, 10, 20, 40, 80, 160, 300, 300] {
            desk.known.distrust();
            desk.check(&hook, read + wait - 1, "use one");
            desk.check(&hook, read + wait, "read or one");
            read += wait;
            desk.note(&hook, read, Reading::Read(material("one")));
        }
        // A reading that nobody's answer asked for ends it, and so do new values.
        desk.note(&hook, read, Reading::Read(material("one")));
        desk.known.distrust();
        desk.check(&hook, read + 5, "read or one");
        desk.note(&hook, read + 5, Reading::Read(material("two")));
        desk.known.distrust();
        desk.check(&hook, read + 10, "read or two");
    }

    #[test]
    fn another_value_of_the_annotation_has_them_read_once() {
        let hook = |reload: &str| {
            let annotations = json!({ "posthorn.dev/reload": reload });
            entry(&json!({ "url": "https://a.example/" }), &annotations, &json!({}))
        };
        let (mut desk, first, second) = (Desk::new(), hook("1"), hook("2"));
        desk.note(&first, 0, Reading::Read(material("one")));
        desk.check(&second, 1, "read or one");
        desk.note(&second, 1, problem());
        desk.check(&second, 2, "hold SecretNotFound 4s");
        desk.check(&hook("3"), 2, "read");
    }

    #[test]
    fn while_the_api_server_is_away_known_values_serve_and_it_is_asked_less_and_less() {
        let (mut desk, hook) = (Desk::new(), webhook(&json!({ "url": "https://a.example/" })));
        desk.note(&hook, 0, Reading::Read(material("one")));
        desk.note(&hook, 300, Reading::Away);
        desk.check(&hook, 304, "use one");
        desk.check(&hook, 305, "read or one");
        desk.note(&hook, 305, Reading::Kept(material("older")));
        desk.check(&hook, 314, "use one");
        desk.check(&hook, 315, "read or one");
        for _ in 0..40 {
            desk.note(&hook, 400, Reading::Away);
        }
        desk.check(&hook, 459, "use one");
        desk.check(&hook, 460, "read or one");
    }

    #[test]
    fn without_values_the_webhook_is_held_until_the_api_server_is_back_or_kept_ones_serve() {
        let (mut desk, hook) = (Desk::new(), webhook(&json!({ "url": "https://a.example/" })));
        desk.note(&hook, 0, Reading::Away);
        desk.check(&hook, 2, "hold SecretUnavailable 3s");
        desk.check(&hook, 5, "read");
        desk.note(&hook, 5, Reading::Kept(material("kept")));
        desk.check(&hook, 14, "use kept");
        desk.check(&hook, 15, "read or kept");
    }

    #[test]
    fn a_secret_that_is_gone_holds_the_webhook_with_a_back_off_of_5_to_60_seconds() {
        let (mut desk, hook) = (Desk::new(), webhook(&json!({ "url": "https://a.example/" })));
        desk.note(&hook, 0, Reading::Read(material("one")));
        for wait in [5, 10, 20, 40, 60, 60] {
            desk.note(&hook, 0, problem());
            desk.check(&hook, 0, &format!("hold SecretNotFound {wait}s"));
            desk.check(&hook, wait, "read");
        }
        desk.note(&hook, 60, Reading::Away);
        desk.check(&hook, 60, "hold SecretUnavailable 60s");
        desk.note(&hook, 60, Reading::Read(material("two")));
        desk.check(&hook, 61, "use two");
    }

    #[test]
    fn values_of_another_spec_are_never_used() {
        let from = |name: &str| json!({ "urlFrom": { "name": name, "key": "u" } });
        let (mut desk, old, new) = (Desk::new(), webhook(&from("a")), webhook(&from("b")));
        desk.note(&old, 0, Reading::Read(material("one")));
        desk.check(&new, 1, "read");
        desk.note(&new, 1, Reading::Away);
        desk.check(&new, 2, "hold SecretUnavailable 4s");
        assert!(desk.known.after_reading(&old, desk.start).is_none());
        let same = webhook(&from("b"));
        desk.check(&same, 2, "hold SecretUnavailable 4s");
    }

    #[test]
    fn a_dialect_without_signature_needs_no_key() {
        let needs = |extra: Value| {
            let mut spec = json!({ "url": "https://a.example/" });
            spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            needs_secrets(&webhook(&spec))
        };
        let of = json!({ "name": "s", "key": "k" });
        assert!(needs(json!({})));
        assert!(!needs(json!({ "dialect": "CloudEvents" })));
        assert!(needs(json!({ "dialect": "CloudEvents", "headersFrom": [{ "name": "a", "secretRef": of }] })));
        assert!(!needs(json!({ "dialect": "Impira", "signing": { "none": true } })));
        assert!(needs(json!({ "dialect": "Impira", "signing": { "none": true }, "tls": { "caRef": of } })));
        assert!(!needs(json!({ "dialect": "CloudEvents", "tls": { "minVersion": "TLS1.3" } })));
    }
}
