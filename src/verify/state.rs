//! The states of a verification: when to ask an endpoint, and what its answer
//! means for the Webhook.
//!
//! | state | entered | left |
//! |---|---|---|
//! | Unverified | created; endpoint or method changed; the status does not fit | first failed check → Pending, right answer → Verified |
//! | Pending | a failed check; a failed check on request | right answer → Verified; `fail_after` of failures → Failed |
//! | Verified | right answer; method None | 3 failed checks in a row → Failed; `validUntil` → Expired |
//! | Failed, Gone, Expired | | right answer → Verified; a failed check on request → Pending |
//!
//! Every state asks again by itself but a Verified of the method None, which
//! asks nothing. Any state becomes Unverified when endpoint or method change.
//!
//! [`decide`] is idempotent: its own status, fed back without news before
//! `nextTime`, comes out unchanged, so a settled Webhook causes no writes. All
//! times that it writes are whole seconds, the resolution of metav1.Time. Clocks
//! may jump: a `nextTime` beyond the longest wait is drawn anew, a run of
//! failures that began in the future begins now, and what is due is due.

use std::time::Duration;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};

use super::{
    challenge::Verdict,
    fingerprint::{Bound, FingerprintKey},
};
use crate::api::{
    Reason,
    condition::whole_seconds,
    webhook::{ChallengeHttpMethod, VerificationMethod, VerificationState, VerificationStatus},
};

/// Wait after the first failed check of an endpoint that is not verified.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(5);
/// Longest wait between checks of an endpoint that is Pending.
pub const BACKOFF_MAX: Duration = Duration::from_secs(5 * 60);
/// Longest wait after the first failed re-check of a verified endpoint. Not
/// [`BACKOFF_FIRST`]: a receiver that is being replaced must not lose its
/// verification within seconds.
pub const RECHECK_BACKOFF_FIRST_MAX: Duration = Duration::from_secs(15 * 60);
/// Wait between the slow checks of an endpoint that is Failed, Gone or Expired.
pub const SLOW_INTERVAL: Duration = Duration::from_secs(30 * 60);
/// Failed checks in a row that end Verified.
pub const RECHECK_FAILURES_MAX: i32 = 3;
/// Every wait is drawn from its length ± this share, so that endpoints verified
/// together are not asked together for ever.
pub const JITTER: f64 = 0.1;
/// `validUntil` allows for this many missed re-checks …
pub const VALID_INTERVALS: u32 = 3;
/// … and this much on top, for a controller that is away.
pub const VALID_GRACE: Duration = Duration::from_secs(24 * 3600);
/// `validUntil` of the method None, in Unix seconds: 9999-01-01T00:00:00Z. What
/// asks nothing has nothing to renew; a nearer time would cost a write at every
/// interval, an absent one would make readers treat absence as consent.
pub const VALID_FOREVER_SECONDS: i64 = 253_370_764_800;
/// Characters of the annotation `verify-requested-at` that are kept and
/// compared: as many as the schema of `lastRequested` takes.
pub const REQUESTED_CHARS_MAX: usize = 256;
/// Characters of a message that are kept: as many as the schema takes.
pub const MESSAGE_CHARS_MAX: usize = 1024;

/// All that a decision depends on.
pub struct Situation<'a> {
    /// The time.
    pub now: Timestamp,
    /// A number in [0, 1) for jitter.
    pub chance: f64,
    /// UID of the Webhook.
    pub uid: &'a str,
    /// The endpoint in full; see [`Bound::endpoint`].
    pub endpoint: &'a str,
    /// The handshake.
    pub method: VerificationMethod,
    /// HTTP method of the challenge.
    pub http_method: ChallengeHttpMethod,
    /// The key of fingerprints.
    pub key: &'a FingerprintKey,
    /// Time between two checks of a verified endpoint.
    pub interval: Duration,
    /// How long a Pending endpoint may give no right answer.
    pub fail_after: Duration,
    /// The status as it stands; none if there is none yet.
    pub previous: Option<&'a VerificationStatus>,
    /// The annotation `posthorn.dev/verify-requested-at`.
    pub requested: Option<&'a str>,
    /// The signing keys are not those of the last check.
    pub keys_changed: bool,
    /// The verdict of a check of this very endpoint that just ended, if one did.
    pub checked: Option<&'a Verdict>,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Check the endpoint now.
    Probe,
    /// Decide again after this time, or when something changed.
    Wait(Duration),
    /// Nothing, until something changed.
    Rest,
}

/// The status to have, and what to do next.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The status as it should be; equal to the previous one if nothing changed.
    pub status: VerificationStatus,
    /// What to do next.
    pub step: Step,
    /// From which state to which, if the state changed.
    pub transition: Option<(VerificationState, VerificationState)>,
}

/// Decides what a verification's status is and what to do next.
pub fn decide(situation: &Situation<'_>) -> Decision {
    let start = starting_point(situation);
    let status = match (situation.method, situation.checked) {
        (VerificationMethod::None, _) => not_required(situation, start),
        (_, Some(Verdict::Wanted)) => succeeded(situation, start),
        (_, Some(Verdict::NotWanted { reason, message })) => failed(situation, start, *reason, message),
        (_, None) => unchecked(situation, start),
    };
    let status = seal(situation, status);
    let from = situation.previous.map_or(VerificationState::Unverified, |p| p.state);
    let transition = (from != status.state).then_some((from, status.state));
    Decision { step: next_step(situation, &status), status, transition }
}

/// The previous status if it was made for this endpoint, else that of a new one.
fn starting_point(situation: &Situation<'_>) -> VerificationStatus {
    let last_requested = situation.previous.and_then(|p| p.last_requested.clone());
    match situation.previous {
        Some(previous) if situation.key.fits(previous, bound(situation, previous)) => previous.clone(),
        _ => VerificationStatus { last_requested, ..VerificationStatus::default() },
    }
}

fn bound<'a>(situation: &Situation<'a>, status: &VerificationStatus) -> Bound<'a> {
    Bound {
        uid: situation.uid,
        endpoint: situation.endpoint,
        method: situation.method,
        http_method: situation.http_method,
        verified_time: status.verified_time.as_ref().map(|t| t.0),
        valid_until: status.valid_until.as_ref().map(|t| t.0),
    }
}

/// The method None: verified at once and for good.
fn not_required(situation: &Situation<'_>, start: VerificationStatus) -> VerificationStatus {
    let forever = Timestamp::from_second(VALID_FOREVER_SECONDS).unwrap_or(Timestamp::MAX);
    VerificationStatus {
        state: VerificationState::Verified,
        verified_time: Some(start.verified_time.unwrap_or_else(|| Time(whole_seconds(situation.now)))),
        valid_until: Some(Time(forever)),
        reason: Some(Reason::NotRequired.as_str().to_owned()),
        last_requested: requested(situation).or(start.last_requested),
        ..VerificationStatus::default()
    }
}

/// A right answer. `verifiedTime` says since when without interruption, so a
/// re-check keeps it.
fn succeeded(situation: &Situation<'_>, start: VerificationStatus) -> VerificationStatus {
    let now = whole_seconds(situation.now);
    let interrupted = is_expired(situation, &start);
    let since = start.verified_time.map(|t| t.0).filter(|_| !interrupted);
    let valid = situation.interval.saturating_mul(VALID_INTERVALS).saturating_add(VALID_GRACE);
    VerificationStatus {
        state: VerificationState::Verified,
        // A clock that ran ahead must not date the verification into the future.
        verified_time: Some(Time(since.map_or(now, |since| since.min(now)))),
        valid_until: Some(Time(after(now, valid))),
        next_time: Some(Time(after(situation.now, jittered(situation.interval, situation.chance)))),
        last_requested: requested(situation).or(start.last_requested),
        ..VerificationStatus::default()
    }
}

/// A wrong answer, or none.
fn failed(situation: &Situation<'_>, start: VerificationStatus, reason: Reason, message: &str) -> VerificationStatus {
    let now = whole_seconds(situation.now);
    let expired = is_expired(situation, &start);
    let state = if expired { VerificationState::Expired } else { start.state };
    // A request is a new beginning: who asks has mended something, and the
    // receiver may need some tries to come up.
    let restart = is_requested(situation)
        && matches!(state, VerificationState::Failed | VerificationState::Gone | VerificationState::Expired);
    let begun = start.failing_since.as_ref().map(|t| t.0).filter(|since| !restart && *since <= now);
    let since = begun.unwrap_or(now);
    let attempts = if restart { 1 } else { start.attempts.unwrap_or(0).max(0).saturating_add(1) };
    let deadline = after(since, situation.fail_after);
    let state = match state {
        VerificationState::Verified if attempts >= RECHECK_FAILURES_MAX => VerificationState::Failed,
        VerificationState::Verified => VerificationState::Verified,
        VerificationState::Unverified | VerificationState::Pending if now >= deadline => VerificationState::Failed,
        VerificationState::Unverified | VerificationState::Pending => VerificationState::Pending,
        _ if restart => VerificationState::Pending,
        VerificationState::Failed | VerificationState::Gone | VerificationState::Expired => state,
    };
    let delay = jittered(wait_after_failure(situation, state, attempts), situation.chance);
    let mut next = after(situation.now, delay);
    if state == VerificationState::Pending && next > deadline {
        // The last check before Failed comes at the deadline, not minutes after it.
        next = deadline.max(after(now, Duration::from_secs(1)));
    }
    let holds = state == VerificationState::Verified;
    VerificationStatus {
        state,
        fingerprint: None,
        verified_time: start.verified_time.filter(|_| holds),
        valid_until: start.valid_until.filter(|_| holds),
        next_time: Some(Time(next)),
        failing_since: Some(Time(since)),
        attempts: Some(attempts),
        reason: Some(reason.as_str().to_owned()),
        message: Some(message.chars().take(MESSAGE_CHARS_MAX).collect()),
        last_requested: requested(situation).or(start.last_requested),
    }
}

/// No check ended: only time may have changed something.
fn unchecked(situation: &Situation<'_>, start: VerificationStatus) -> VerificationStatus {
    if is_expired(situation, &start) {
        return VerificationStatus {
            state: VerificationState::Expired,
            verified_time: None,
            valid_until: None,
            next_time: None,
            ..start
        };
    }
    let next_time = start.next_time.clone().map(|next| {
        let longest = with_jitter(longest_wait(situation, start.state), 1.0);
        if next.0 <= after(situation.now, longest) {
            return next;
        }
        Time(after(situation.now, jittered(longest_wait(situation, start.state), situation.chance)))
    });
    VerificationStatus { next_time, ..start }
}

/// Makes the status unforgeable.
fn seal(situation: &Situation<'_>, status: VerificationStatus) -> VerificationStatus {
    let fingerprint = Some(situation.key.fingerprint(bound(situation, &status)));
    VerificationStatus { fingerprint, ..status }
}

fn next_step(situation: &Situation<'_>, status: &VerificationStatus) -> Step {
    if situation.method == VerificationMethod::None {
        return Step::Rest;
    }
    let news = situation.keys_changed || is_requested(situation);
    if situation.checked.is_none() && news {
        return Step::Probe;
    }
    let wait = status.next_time.as_ref().and_then(|next| Duration::try_from(next.0.duration_since(situation.now)).ok());
    match wait {
        Some(wait) if !wait.is_zero() => Step::Wait(wait),
        _ => Step::Probe,
    }
}

fn is_expired(situation: &Situation<'_>, status: &VerificationStatus) -> bool {
    status.state == VerificationState::Verified
        && status.valid_until.as_ref().is_some_and(|until| situation.now > until.0)
}

/// Whether somebody asked for a check that has not been made yet.
fn is_requested(situation: &Situation<'_>) -> bool {
    let last = situation.previous.and_then(|p| p.last_requested.as_deref());
    requested(situation).is_some_and(|requested| Some(requested.as_str()) != last)
}

fn requested(situation: &Situation<'_>) -> Option<String> {
    situation.requested.map(|text| text.chars().take(REQUESTED_CHARS_MAX).collect())
}

fn wait_after_failure(situation: &Situation<'_>, state: VerificationState, attempts: i32) -> Duration {
    match state {
        VerificationState::Unverified | VerificationState::Pending => doubled(BACKOFF_FIRST, attempts).min(BACKOFF_MAX),
        VerificationState::Verified => doubled(recheck_backoff_first(situation), attempts).min(situation.interval),
        VerificationState::Failed | VerificationState::Gone | VerificationState::Expired => SLOW_INTERVAL,
    }
}

/// A quarter of the interval, within bounds.
fn recheck_backoff_first(situation: &Situation<'_>) -> Duration {
    (situation.interval / 4).clamp(BACKOFF_FIRST, RECHECK_BACKOFF_FIRST_MAX)
}

fn longest_wait(situation: &Situation<'_>, state: VerificationState) -> Duration {
    match state {
        VerificationState::Unverified | VerificationState::Pending => BACKOFF_MAX,
        VerificationState::Verified => situation.interval,
        VerificationState::Failed | VerificationState::Gone | VerificationState::Expired => SLOW_INTERVAL,
    }
}

/// `first` × 2^(`attempts` − 1).
fn doubled(first: Duration, attempts: i32) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(0).min(16);
    first.saturating_mul(1 << doublings)
}

/// The wait ± [`JITTER`], by chance.
fn jittered(wait: Duration, chance: f64) -> Duration {
    // Also turns a NaN into a number.
    with_jitter(wait, chance.max(0.0).min(1.0))
}

fn with_jitter(wait: Duration, chance: f64) -> Duration {
    wait.mul_f64(1.0 - JITTER + 2.0 * JITTER * chance)
}

/// A time in whole seconds, at least one second after `time` for a wait that is
/// not zero; at the end of time, that.
fn after(time: Timestamp, wait: Duration) -> Timestamp {
    let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
    let end = time.checked_add(wait).unwrap_or(Timestamp::MAX);
    whole_seconds(end)
}
