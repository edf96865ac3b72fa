//! Apply, for a probe: builds the handshake, has a pod send it, judges the
//! answer and leaves the verdict on the Webhook's desk.

use std::{sync::Arc, time::Duration};

use reqwest::StatusCode;

use super::{
    desk::{Begun, Probe},
    gather::Gathered,
    plan::{ProbeOrder, own_headers},
    validate::Validated,
};
use crate::{
    api::{
        Reason,
        webhook::{ChallengeHttpMethod, Dialect, VerificationMethod},
    },
    controller::{backoff, context::Context, key::ObjectKey, pods::PodError},
    dialect::SigningKeys,
    runtime::clock,
    verify::challenge::{self, Handshake, Verdict, new_challenge},
    wire::probe::{ProbeOutcome, ProbeRequest, ProbeResponse},
};

/// First wait after no pod took a probe.
const NO_POD_BACKOFF_FIRST: Duration = Duration::from_secs(2);
/// Longest wait after no pod took a probe.
const NO_POD_BACKOFF_MAX: Duration = Duration::from_secs(30);

/// A handshake that is under way, with all that judging it takes.
struct Under {
    dialect: Dialect,
    method: VerificationMethod,
    http_method: ChallengeHttpMethod,
    challenge: String,
    message_id: String,
    keys: SigningKeys,
    origin: String,
    now: k8s_openapi::jiff::Timestamp,
    begun: Begun,
}

impl Under {
    fn handshake(&self) -> Handshake<'_> {
        Handshake {
            dialect: self.dialect,
            method: self.method,
            http_method: self.http_method,
            challenge: &self.challenge,
            keys: &self.keys,
            message_id: &self.message_id,
            now: self.now,
            origin: &self.origin,
        }
    }
}

/// Starts a probe and returns. Its outcome wakes the Webhook.
pub(super) fn start(context: &Arc<Context>, gathered: &Gathered, validated: &Validated<'_>, order: ProbeOrder) {
    let Some(material) = validated.maybe_material else { return };
    let under = Under {
        dialect: gathered.webhook.spec.effective_dialect(),
        method: validated.method,
        http_method: validated.http_method,
        challenge: new_challenge(clock::random_bytes()),
        message_id: format!("msg_{}", new_challenge(clock::random_bytes())),
        keys: material.keys.clone(),
        origin: challenge::request_origin(&context.namespace),
        now: clock::now(),
        begun: order.begun,
    };
    let Some(sent) = under.handshake().request() else { return };
    let mut headers = sent.headers;
    for (name, value) in own_headers(gathered, validated) {
        // The handshake's own headers are what is being tested.
        if !headers.iter().any(|(own, _)| own.eq_ignore_ascii_case(&name)) {
            headers.push((name, value));
        }
    }
    let request = ProbeRequest {
        namespace: gathered.key.namespace.to_string(),
        name: gathered.key.name.to_string(),
        target: order.endpoint.target,
        method: sent.method.to_owned(),
        headers,
        body: sent.body,
        timeout_ms: u64::try_from(validated.timeout.as_millis()).unwrap_or(u64::MAX),
        tls: material.tls.clone(),
    };
    let (key, uid, id) = (gathered.key.clone(), gathered.uid.clone(), order.id);
    context.desks.at(&key.clone(), &uid.clone(), |desk| {
        let no_pod = match &desk.probe {
            Some(Probe::NoPod { id: of, failures, .. }) if *of == id => *failures,
            _ => 0,
        };
        let work = run(Arc::clone(context), gathered.pool_name.clone(), key, uid, id.clone(), no_pod, under, request);
        let task = tokio::spawn(work).abort_handle();
        desk.probe = Some(Probe::Running { id, since: clock::monotonic(), no_pod, task });
    });
}

#[allow(clippy::too_many_arguments, reason = "the parts of one task, named once")]
async fn run(
    context: Arc<Context>,
    pool: String,
    key: ObjectKey,
    uid: String,
    id: String,
    no_pod: u32,
    under: Under,
    request: ProbeRequest,
) {
    let answer = context.prober.send(&pool, &request).await;
    let outcome = match verdict_of(&under.handshake(), &answer) {
        Some(verdict) => {
            let reason = match &verdict {
                Verdict::Wanted => None,
                Verdict::NotWanted { reason, .. } => Some(reason.as_str()),
            };
            let duration_ms = answer.ok().map(|response| response.duration_ms);
            tracing::info!(namespace = %key.namespace, webhook = %key.name, reason, duration_ms, "asked the endpoint");
            Probe::Judged { id, verdict, begun: under.begun }
        }
        None => {
            let wait = backoff::wait(NO_POD_BACKOFF_FIRST, NO_POD_BACKOFF_MAX, no_pod, clock::chance());
            tracing::debug!(namespace = %key.namespace, webhook = %key.name, pool, error = answer.err().map(tracing::field::display), "no pod took the probe");
            Probe::NoPod { id, failures: no_pod.saturating_add(1), retry_at: clock::monotonic() + wait }
        }
    };
    context.desks.at_existing(&key, &uid, |desk| desk.end_probe(outcome));
    context.triggers.webhook(&key);
}

/// What an answer of a pod means for the endpoint; nothing if the endpoint was
/// not asked for a reason of our own: no attempt of its is used up by that.
fn verdict_of(handshake: &Handshake<'_>, answer: &Result<ProbeResponse, PodError>) -> Option<Verdict> {
    match answer {
        Ok(ProbeResponse { outcome: ProbeOutcome::Failure { reason: Reason::Internal, .. }, .. }) => None,
        Ok(ProbeResponse { outcome, .. }) => Some(handshake.judge(outcome)),
        // To ask again would not help, and a pod did answer.
        Err(PodError::Status { status: StatusCode::PAYLOAD_TOO_LARGE, .. }) => Some(Verdict::NotWanted {
            reason: Reason::Internal,
            message:
                "The request is longer than a delivery pod takes. Shorten the certificates and headers of the Webhook."
                    .to_owned(),
        }),
        // A 400 too: it comes of another version of Posthorn while one is replaced.
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(answer: Result<ProbeOutcome, u16>) -> Option<Verdict> {
        let under = Under {
            dialect: Dialect::StandardWebhooks,
            method: VerificationMethod::Challenge,
            http_method: ChallengeHttpMethod::Post,
            challenge: "c".into(),
            message_id: "m".into(),
            keys: SigningKeys::none(),
            origin: "o".into(),
            now: k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
            begun: Begun { generation: 1, requested: None, keys: Vec::new() },
        };
        let answer = match answer {
            Ok(outcome) => Ok(ProbeResponse { duration_ms: 1, outcome }),
            Err(code) => Err(PodError::Status { pool: "p".into(), status: StatusCode::from_u16(code).unwrap() }),
        };
        verdict_of(&under.handshake(), &answer)
    }

    #[test]
    fn a_failure_of_posthorn_itself_is_no_verdict_on_the_endpoint() {
        let failure = |reason| Ok(ProbeOutcome::Failure { reason, message: "m".into() });
        assert_eq!(verdict(failure(Reason::Internal)), None);
        assert_eq!(verdict(Err(503)), None);
        assert_eq!(verdict(Err(400)), None);
        let refused = verdict(failure(Reason::ConnectTimedOut));
        assert!(matches!(refused, Some(Verdict::NotWanted { reason: Reason::ConnectTimedOut, .. })), "{refused:?}");
    }

    #[test]
    fn a_request_that_is_too_long_for_a_pod_is_told_as_such() {
        let Some(Verdict::NotWanted { reason, message }) = verdict(Err(413)) else { panic!("no verdict") };
        assert_eq!(reason, Reason::Internal);
        assert!(message.contains("longer than a delivery pod takes"), "{message}");
    }
}
