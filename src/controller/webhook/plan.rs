//! Plan: what a Webhook's status should be, whether to ask its endpoint now,
//! what to tell people, when to look again. Pure.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    desk::Begun,
    gather::{Gathered, ProbeView},
    validate::{Endpoint, Validated},
};
use crate::{
    api::{
        ConditionType, Problem, Reason, VERIFY_REQUESTED_ANNOTATION, WebhookStatus, condition,
        webhook::{KeyRole, KeyStatus, VerificationMethod, VerificationState, VerificationStatus},
    },
    controller::{deliveries::told, events::Notice, feed::Indexed},
    runtime::secret::SecretString,
    secrets::Material,
    verify::{
        conditions::{Facts, Programmed, conditions},
        fingerprint::{Bound, FingerprintKey},
        state::{Consent, Decision, Situation, Step, decide, unlocated},
    },
};

/// For so long a status waits for the outcome of a probe that was just started:
/// most endpoints answer within it, and two writes become one.
pub const HOLD: Duration = Duration::from_secs(1);
/// A Webhook that waits for something that wakes it is looked at this often
/// all the same.
pub const SAFETY_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// What to do about a Webhook.
pub struct Plan {
    /// The status that it should have.
    pub status: WebhookStatus,
    /// Whether to write that now if it differs; else the outcome of a probe is due in a moment.
    pub is_held: bool,
    /// The endpoint to ask now, under the id that its outcome will have.
    pub probe: Option<ProbeOrder>,
    /// Whether the outcome of a probe is in the status.
    pub uses_outcome: bool,
    /// What to tell people once the status is written.
    pub notices: Vec<Notice>,
    /// When to look again without news.
    pub requeue: Duration,
}

/// An endpoint to ask.
pub struct ProbeOrder {
    /// Fingerprint of endpoint and method.
    pub id: String,
    /// The endpoint.
    pub endpoint: Endpoint,
    /// What it begins with.
    pub begun: Begun,
}

/// What the verification came to in this reconcile.
struct Verification {
    status: Option<VerificationStatus>,
    maybe_problem: Option<Problem>,
    transition: Option<(VerificationState, VerificationState)>,
    probe: Option<ProbeOrder>,
    wait: Option<Duration>,
    is_held: bool,
    uses_outcome: bool,
    keys: Vec<KeyStatus>,
}

/// Makes the plan.
pub fn plan(gathered: &Gathered, validated: &Validated<'_>, key: &FingerprintKey) -> Plan {
    let previous = gathered.webhook.status.clone().unwrap_or_default();
    let verification = verification(gathered, validated, key, &previous);
    let programmed = match &gathered.indexed {
        Indexed::Yes => Programmed::Yes,
        Indexed::Unknown if was_programmed(&previous.conditions, gathered.generation) => Programmed::Yes,
        Indexed::No | Indexed::Unknown => Programmed::No,
        Indexed::Refused(error) => Programmed::Refused(format!("The delivery pods cannot use this Webhook: {error}")),
    };
    let problem = validated.maybe_problem.as_ref().or(verification.maybe_problem.as_ref());
    let facts = Facts {
        verification: verification.status.as_ref(),
        programmed: &programmed,
        suspended: gathered.webhook.spec.is_suspended(),
        problem,
    };
    let mut wanted = conditions(&facts);
    wanted.extend(gathered.told.iter().flat_map(|told| told::conditions(told)));
    let mut conditions = condition::merge(&previous.conditions, &wanted, Some(gathered.generation), gathered.now);
    if gathered.told.is_none() {
        // Nobody knows how the endpoint does now: what was said stands.
        conditions.extend(told::of_deliveries(&previous.conditions).cloned());
    }
    let notices = notices(&previous, &verification, validated.maybe_problem.as_ref());
    let status = WebhookStatus {
        observed_generation: Some(gathered.generation),
        conditions,
        endpoint: validated.maybe_endpoint.as_ref().map(|endpoint| endpoint.shown.clone()).or_else(|| {
            // A Secret that cannot be read for a moment does not move the endpoint.
            gathered.webhook.spec.url_from.as_ref().and(previous.endpoint)
        }),
        verification: verification.status,
        delivery: gathered.told.as_ref().map(|told| told::delivery_status(told)).or(previous.delivery),
        secret_name: gathered.reading.secret_name.clone(),
        keys: verification.keys,
    };
    let waits = [
        verification.wait,
        gathered.reading_left,
        Some(SAFETY_INTERVAL.max(gathered.reading_left.unwrap_or_default())),
    ];
    Plan {
        status,
        is_held: verification.is_held,
        probe: verification.probe,
        uses_outcome: verification.uses_outcome,
        notices,
        requeue: waits.into_iter().flatten().min().unwrap_or(SAFETY_INTERVAL),
    }
}

fn verification(
    gathered: &Gathered,
    validated: &Validated<'_>,
    key: &FingerprintKey,
    previous: &WebhookStatus,
) -> Verification {
    let Some(endpoint) = &validated.maybe_endpoint else {
        return without_endpoint(gathered, validated, previous);
    };
    let id = probe_id(gathered, validated, endpoint, key);
    let verdict = match &gathered.probe {
        ProbeView::Judged { id: of, verdict, begun } if *of == id => Some((verdict, begun)),
        _ => None,
    };
    let now = begun_now(gathered, validated, key, previous);
    let base = situation(gathered, validated, endpoint, key, &now);
    let before = previous.verification.as_ref();
    // A verdict is judged by what its check began with; what is newer than that
    // is news afterwards, and gets a check of its own.
    let judged = verdict.map(|(verdict, begun)| {
        decide(&Situation {
            previous: before,
            requested: begun.requested.as_deref(),
            generation: begun.generation,
            keys_changed: keys_changed(before, &previous.keys, &begun.keys),
            checked: Some(verdict),
            ..base
        })
    });
    let before = judged.as_ref().map(|judged| &judged.status).or(before);
    let checked_keys = verdict.map_or(&previous.keys, |(_, begun)| &begun.keys);
    let keys_changed = keys_changed(before, checked_keys, &now.keys);
    let decision = decide(&Situation { previous: before, keys_changed, ..base });
    let is_checkable = validated.maybe_problem.is_none() && !gathered.webhook.spec.is_suspended();
    let next = next_probe(gathered, &decision, &id, is_checkable);
    // Changed keys are told once the endpoint was asked with them: until then they
    // are the reason to ask.
    let waits_for_check = keys_changed && !matches!(decision.step, Step::Rest);
    let keys = if waits_for_check { checked_keys } else { &now.keys }.clone();
    let no_pod = next.lacks_pod && decision.status.state != VerificationState::Verified;
    Verification {
        maybe_problem: no_pod.then(|| no_pod_problem(&gathered.pool_name)),
        transition: judged.and_then(|judged| judged.transition).or(decision.transition),
        probe: next.is_due.then(|| ProbeOrder { id, endpoint: endpoint.clone(), begun: now }),
        wait: next.wait,
        is_held: next.is_held,
        uses_outcome: verdict.is_some(),
        keys,
        status: Some(decision.status),
    }
}

/// Where the endpoint is cannot be known now, so it cannot be asked. What is
/// known of the one before stands only while the spec, and the Secret of its
/// URL, give no reason to take it for another.
fn without_endpoint(gathered: &Gathered, validated: &Validated<'_>, previous: &WebhookStatus) -> Verification {
    let is_of_this_spec = |verification: &VerificationStatus| {
        let checked = verification.checked_generation.or(previous.observed_generation);
        checked == Some(gathered.generation)
    };
    // A URL that was read and is no endpoint is not the one that was.
    let is_readable = gathered.reading.url.is_some();
    let refused = validated.method == VerificationMethod::None && consent(gathered, validated) == Consent::Refused;
    let status = previous.verification.as_ref().map(|verification| {
        let may_stand = is_of_this_spec(verification) && !is_readable && !refused;
        unlocated(verification, may_stand, gathered.now)
    });
    let states = previous.verification.as_ref().zip(status.as_ref()).map(|(from, to)| (from.state, to.state));
    let left = |until: &Time| Duration::try_from(until.0.duration_since(gathered.now)).ok();
    let expires = status.as_ref().and_then(|status| status.valid_until.as_ref()).and_then(left);
    Verification {
        status,
        maybe_problem: None,
        transition: states.filter(|(from, to)| from != to),
        probe: None,
        // The last second counts, so it expires a second later.
        wait: expires.map(|left| left + Duration::from_secs(1)),
        is_held: false,
        uses_outcome: false,
        keys: previous.keys.clone(),
    }
}

#[derive(Default)]
struct NextProbe {
    is_due: bool,
    is_held: bool,
    lacks_pod: bool,
    wait: Option<Duration>,
}

fn next_probe(gathered: &Gathered, decision: &Decision, id: &str, is_checkable: bool) -> NextProbe {
    if !is_checkable {
        return NextProbe::default();
    }
    match (decision.step, &gathered.probe) {
        (Step::Rest, _) => NextProbe::default(),
        (Step::Wait(wait), _) => NextProbe { wait: Some(wait), ..NextProbe::default() },
        // The status with this outcome is written first, lest the outcome be lost.
        (Step::Probe, ProbeView::Judged { id: of, .. }) if of == id => {
            NextProbe { wait: Some(Duration::ZERO), ..NextProbe::default() }
        }
        (Step::Probe, ProbeView::Running { id: of, time, after_no_pod }) if of == id => {
            let left = HOLD.saturating_sub(*time);
            // After the moment of waiting, the outcome wakes the Webhook.
            let wait = (!left.is_zero()).then_some(left);
            NextProbe { is_due: false, is_held: !left.is_zero() && !after_no_pod, lacks_pod: *after_no_pod, wait }
        }
        (Step::Probe, ProbeView::NoPod { id: of, left }) if of == id => {
            NextProbe { is_due: left.is_zero(), is_held: false, lacks_pod: true, wait: Some(*left.max(&HOLD)) }
        }
        (Step::Probe, _) => NextProbe { is_due: true, is_held: true, lacks_pod: false, wait: Some(HOLD) },
    }
}

fn situation<'a>(
    gathered: &'a Gathered,
    validated: &Validated<'_>,
    endpoint: &'a Endpoint,
    key: &'a FingerprintKey,
    now: &'a Begun,
) -> Situation<'a> {
    Situation {
        now: gathered.now,
        chance: gathered.chance,
        uid: &gathered.uid,
        endpoint: endpoint.identity.expose(),
        method: validated.method,
        http_method: validated.http_method,
        consent: consent(gathered, validated),
        key,
        interval: validated.interval,
        fail_after: validated.fail_after,
        previous: None,
        requested: now.requested.as_deref(),
        generation: now.generation,
        keys_changed: false,
        gone_since: gathered.told.as_ref().and_then(|told| told.gone_since.as_ref()).map(|time| time.0),
        checked: None,
    }
}

/// What a probe would begin with now. Keys that cannot be read have not changed.
fn begun_now(gathered: &Gathered, validated: &Validated<'_>, key: &FingerprintKey, previous: &WebhookStatus) -> Begun {
    let annotations = gathered.webhook.metadata.annotations.as_ref();
    let keys = validated.maybe_material.map(|material| key_statuses(&gathered.uid, material, key));
    Begun {
        generation: gathered.generation,
        requested: annotations.and_then(|all| all.get(VERIFY_REQUESTED_ANNOTATION)).cloned(),
        keys: keys.unwrap_or_else(|| previous.keys.clone()),
    }
}

/// Whether keys are others than those of the last check. Before the first one
/// there are none to differ from, but what is verified was checked.
fn keys_changed(verification: Option<&VerificationStatus>, checked: &[KeyStatus], now: &[KeyStatus]) -> bool {
    let is_verified = verification.is_some_and(|v| v.state == VerificationState::Verified);
    (is_verified || !checked.is_empty()) && checked != now
}

/// Whether the method None may be granted.
fn consent(gathered: &Gathered, validated: &Validated<'_>) -> Consent {
    match validated.maybe_problem.as_ref().map(|problem| problem.reason) {
        Some(Reason::PoolNotFound | Reason::MethodNotAllowed | Reason::HttpNotAllowed) => Consent::Refused,
        Some(_) => Consent::OnHold,
        None if gathered.webhook.spec.is_suspended() => Consent::OnHold,
        None => Consent::Given,
    }
}

/// Whether these conditions say that the pods have this generation.
pub fn was_programmed(conditions: &[Condition], generation: i64) -> bool {
    let told = condition::find(conditions, ConditionType::Programmed);
    told.is_some_and(|told| told.status == "True" && told.observed_generation == Some(generation))
}

/// What tells the outcome for one endpoint and method from that for another.
fn probe_id(gathered: &Gathered, validated: &Validated<'_>, endpoint: &Endpoint, key: &FingerprintKey) -> String {
    key.fingerprint(Bound {
        uid: &gathered.uid,
        endpoint: endpoint.identity.expose(),
        method: validated.method,
        http_method: validated.http_method,
        verified_time: None,
        valid_until: None,
    })
}

fn key_statuses(uid: &str, material: &Material, key: &FingerprintKey) -> Vec<KeyStatus> {
    let roles = [(material.keys.current(), KeyRole::Current), (material.keys.previous(), KeyRole::Previous)];
    roles.into_iter().filter_map(|(signing, role)| Some(KeyStatus { id: key.key_id(uid, signing?), role })).collect()
}

fn no_pod_problem(pool: &str) -> Problem {
    Problem::new(
        Reason::PoolNotReady,
        format!(
            "No pod of DeliveryPool {pool} answers, so the endpoint cannot be asked. It is asked as soon as one does; see the DeliveryPool's condition Ready."
        ),
    )
}

/// What is told: a verification that came or went, and a Secret that became a problem.
fn notices(previous: &WebhookStatus, verification: &Verification, problem: Option<&Problem>) -> Vec<Notice> {
    let mut notices = Vec::new();
    if let Some((_, state)) = verification.transition {
        notices.extend(notice_of(state, verification.status.as_ref()));
    }
    if let Some(problem) = problem.filter(|problem| is_about_secrets(problem.reason)) {
        let ready = condition::find(&previous.conditions, ConditionType::Ready);
        if ready.is_none_or(|ready| ready.reason != problem.reason.as_str()) {
            notices.push(Notice { is_warning: true, reason: problem.reason, note: problem.message.clone() });
        }
    }
    notices
}

fn notice_of(state: VerificationState, status: Option<&VerificationStatus>) -> Option<Notice> {
    let (is_warning, reason) = match state {
        VerificationState::Unverified | VerificationState::Pending => return None,
        VerificationState::Verified => (false, Reason::Verified),
        VerificationState::Failed => (true, Reason::VerificationFailed),
        VerificationState::Gone => (true, Reason::Gone),
        VerificationState::Expired => (true, Reason::VerificationExpired),
    };
    let told = status.and_then(|status| status.message.clone());
    Some(Notice { is_warning, reason, note: told.unwrap_or_else(|| reason.explanation().meaning.to_owned()) })
}

const fn is_about_secrets(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::SecretNotFound
            | Reason::SecretKeyMissing
            | Reason::SecretEmpty
            | Reason::SecretTooShort
            | Reason::SecretTooLong
            | Reason::SecretTypeForbidden
            | Reason::SecretInvalid
            | Reason::SecretNotReadable
    )
}

/// The headers of every request to the endpoint: literal ones, then those from Secrets.
pub fn own_headers(gathered: &Gathered, validated: &Validated<'_>) -> Vec<(String, SecretString)> {
    let literal = gathered.webhook.spec.headers.iter();
    let mut headers: Vec<_> =
        literal.map(|header| (header.name.clone(), SecretString::from(header.value.as_str()))).collect();
    headers.extend(validated.maybe_material.into_iter().flat_map(|material| material.headers.iter().cloned()));
    headers
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
