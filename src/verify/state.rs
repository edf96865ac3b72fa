//! The states of a verification: when to ask an endpoint, and what its answer
//! means for the Webhook.
//!
//! | state | entered | left |
//! |---|---|---|
//! | Unverified | created; endpoint or method changed; the status does not fit | first failed check → Pending, right answer → Verified |
//! | Pending | a failed check; a failed check on request | right answer → Verified; `fail_after` of failures → Failed |
//! | Verified | right answer; method None | 3 failed checks in a row → Failed; `validUntil` → Expired; 410 to an event → Gone |
//! | Failed, Gone, Expired | | right answer → Verified; a failed check on news → Pending |
//!
//! A 410 counts if it is not older than `verifiedTime`, and every later
//! `verifiedTime` is newer than it: the pods compare the two, and send nothing
//! on a verification from before.
//!
//! News is a request, a changed key or another generation of the spec: each is
//! checked at once, in every state.
//! Every state asks again by itself but a Verified of the method None, which
//! asks nothing and is given and taken by what the pool allows ([`Consent`]);
//! after a 410 it is given again by news. Any state becomes Unverified when endpoint or method change.
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

/// Whether the method None may stand for an answer. It asks nothing, so what
/// keeps another method from being asked must keep this one from being granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consent {
    /// Nothing speaks against it.
    Given,
    /// Something holds the Webhook for now, such as a missing Secret: what was
    /// granted stands, and nothing is granted anew.
    OnHold,
    /// The pool does not allow it: what was granted is taken back.
    Refused,
}

/// All that a decision depends on.
#[derive(Clone, Copy)]
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
    /// Whether the method None may be granted; the others have to ask.
    pub consent: Consent,
    /// The key of fingerprints.
    pub key: &'a FingerprintKey,
    /// Time between two checks of a verified endpoint.
    pub interval: Duration,
    /// How long a Pending endpoint may give no right answer.
    pub fail_after: Duration,
    /// The status as it stands; none if there is none yet.
    pub previous: Option<&'a VerificationStatus>,
    /// The annotation `posthorn.dev/verify-requested-at`; with `checked`, as it
    /// was when that check began.
    pub requested: Option<&'a str>,
    /// Generation of the spec; with `checked`, as it was when that check began.
    pub generation: i64,
    /// The signing keys are not those of the last check; with `checked`, those
    /// of that check are not those of the one before.
    pub keys_changed: bool,
    /// When the endpoint last answered an event with 410, if it ever did.
    pub gone_since: Option<Timestamp>,
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

/// What stands of a status while it cannot be known where the endpoint is:
/// Verified is only what may still be about the same one and has not run out.
/// There is nothing to bind a new status to, so what changes here fits no
/// endpoint, and the next [`decide`] begins anew.
pub fn unlocated(previous: &VerificationStatus, may_stand: bool, now: Timestamp) -> VerificationStatus {
    if previous.state != VerificationState::Verified {
        return previous.clone();
    }
    if !may_stand {
        let last_requested = previous.last_requested.clone();
        return VerificationStatus { last_requested, ..VerificationStatus::default() };
    }
    if has_run_out(previous, now) {
        return expired(previous.clone());
    }
    previous.clone()
}

/// The previous status if it was made for this endpoint, else that of a new one.
fn starting_point(situation: &Situation<'_>) -> VerificationStatus {
    let last_requested = situation.previous.and_then(|p| p.last_requested.clone());
    match situation.previous {
        Some(previous) if situation.key.fits(previous, bound(situation, previous)) => {
            if is_withdrawn(situation, previous) { gone(situation, previous) } else { previous.clone() }
        }
        _ => VerificationStatus { last_requested, ..VerificationStatus::default() },
    }
}

/// Whether the endpoint said after its verification that it wants no events.
fn is_withdrawn(situation: &Situation<'_>, status: &VerificationStatus) -> bool {
    let is_older = |gone| status.verified_time.as_ref().is_none_or(|verified| verified.0 <= gone);
    status.state == VerificationState::Verified && situation.gone_since.is_some_and(is_older)
}

/// An endpoint that said 410: it is asked, slowly, whether it wants events again.
fn gone(situation: &Situation<'_>, previous: &VerificationStatus) -> VerificationStatus {
    let is_asked = situation.method != VerificationMethod::None;
    let next = after(situation.now, jittered(SLOW_INTERVAL, situation.chance));
    VerificationStatus {
        state: VerificationState::Gone,
        next_time: is_asked.then_some(Time(next)),
        reason: Some(Reason::Gone.as_str().to_owned()),
        message: is_asked.then(|| GONE.to_owned()),
        last_requested: previous.last_requested.clone(),
        checked_generation: previous.checked_generation,
        ..VerificationStatus::default()
    }
}

const GONE: &str = "The endpoint answered an event with 410: it wants no events any more. What is owed stays owed.";

/// A `verifiedTime` that is newer than the last 410, however the clocks of pods
/// and controller differ.
fn after_gone(situation: &Situation<'_>, time: Timestamp) -> Timestamp {
    situation.gone_since.map_or(time, |gone| time.max(after(gone, Duration::from_secs(1))))
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

/// The method None: verified at once and for good, if nothing speaks against it.
fn not_required(situation: &Situation<'_>, start: VerificationStatus) -> VerificationStatus {
    match situation.consent {
        Consent::Given => {}
        Consent::OnHold => return start,
        Consent::Refused => {
            return VerificationStatus { last_requested: start.last_requested, ..VerificationStatus::default() };
        }
    }
    if start.state == VerificationState::Gone && !has_news(situation) {
        return start;
    }
    let since = || Time(after_gone(situation, whole_seconds(situation.now)));
    let forever = Timestamp::from_second(VALID_FOREVER_SECONDS).unwrap_or(Timestamp::MAX);
    VerificationStatus {
        state: VerificationState::Verified,
        verified_time: Some(start.verified_time.unwrap_or_else(since)),
        valid_until: Some(Time(forever)),
        reason: Some(Reason::NotRequired.as_str().to_owned()),
        last_requested: requested(situation).or(start.last_requested),
        checked_generation: Some(situation.generation),
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
        verified_time: Some(Time(after_gone(situation, since.map_or(now, |since| since.min(now))))),
        valid_until: Some(Time(after(now, valid))),
        next_time: Some(Time(after(situation.now, jittered(situation.interval, situation.chance)))),
        last_requested: requested(situation).or(start.last_requested),
        checked_generation: Some(situation.generation),
        ..VerificationStatus::default()
    }
}

/// A wrong answer, or none.
fn failed(situation: &Situation<'_>, start: VerificationStatus, reason: Reason, message: &str) -> VerificationStatus {
    let now = whole_seconds(situation.now);
    let expired = is_expired(situation, &start);
    let state = if expired { VerificationState::Expired } else { start.state };
    // News is a new beginning: who asks or edits has mended something, and the
    // receiver may need some tries to come up.
    let restart = has_news(situation)
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
        checked_generation: Some(situation.generation),
    }
}

/// No check ended: only time may have changed something.
fn unchecked(situation: &Situation<'_>, start: VerificationStatus) -> VerificationStatus {
    if is_expired(situation, &start) {
        return expired(start);
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

fn expired(start: VerificationStatus) -> VerificationStatus {
    VerificationStatus {
        state: VerificationState::Expired,
        verified_time: None,
        valid_until: None,
        next_time: None,
        failing_since: None,
        attempts: None,
        reason: None,
        message: None,
        ..start
    }
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
    if situation.checked.is_none() && has_news(situation) {
        return Step::Probe;
    }
    let wait = status.next_time.as_ref().and_then(|next| Duration::try_from(next.0.duration_since(situation.now)).ok());
    match wait {
        Some(wait) if !wait.is_zero() => Step::Wait(wait),
        _ => Step::Probe,
    }
}

fn is_expired(situation: &Situation<'_>, status: &VerificationStatus) -> bool {
    has_run_out(status, situation.now)
}

fn has_run_out(status: &VerificationStatus, now: Timestamp) -> bool {
    status.state == VerificationState::Verified && status.valid_until.as_ref().is_some_and(|until| now > until.0)
}

/// Whether something calls for a check before its time.
fn has_news(situation: &Situation<'_>) -> bool {
    let checked = situation.previous.and_then(|p| p.checked_generation);
    situation.keys_changed || is_requested(situation) || checked.is_some_and(|checked| checked != situation.generation)
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
    let chance = if chance.is_nan() { 0.5 } else { chance.clamp(0.0, 1.0) };
    with_jitter(wait, chance)
}

fn with_jitter(wait: Duration, chance: f64) -> Duration {
    let seconds = wait.as_secs_f64() * (1.0 - JITTER + 2.0 * JITTER * chance);
    Duration::try_from_secs_f64(seconds).unwrap_or(wait)
}

/// `time` + `wait` in whole seconds; past the end of time, that.
fn after(time: Timestamp, wait: Duration) -> Timestamp {
    let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
    let end = time.checked_add(wait).unwrap_or(Timestamp::MAX);
    whole_seconds(end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: i64 = 1_800_000_000;
    const MINUTE: u64 = 60;
    const HOUR: u64 = 3600;
    const DAY: i64 = 24 * 3600;

    fn wrong() -> Verdict {
        Verdict::NotWanted { reason: Reason::BodyMismatch, message: "The body was another.".to_owned() }
    }

    /// A Webhook, its clock and its last decision.
    #[derive(Clone)]
    struct World {
        now: Timestamp,
        chance: f64,
        endpoint: &'static str,
        method: VerificationMethod,
        consent: Consent,
        interval: Duration,
        fail_after: Duration,
        key: FingerprintKey,
        status: Option<VerificationStatus>,
        requested: Option<&'static str>,
        generation: i64,
        keys_changed: bool,
        gone_since: Option<Timestamp>,
    }

    impl World {
        fn new() -> Self {
            Self {
                now: Timestamp::from_second(START).unwrap(),
                chance: 0.5,
                endpoint: "https://hooks.example.com/a",
                method: VerificationMethod::Challenge,
                consent: Consent::Given,
                interval: Duration::from_secs(24 * HOUR),
                fail_after: Duration::from_secs(15 * MINUTE),
                key: FingerprintKey::new([7; 32]),
                status: None,
                requested: None,
                generation: 1,
                keys_changed: false,
                gone_since: None,
            }
        }

        /// The endpoint answers an event with 410, this long after now.
        fn say_gone(&mut self, milliseconds: i64) -> &mut Self {
            self.gone_since = Some(self.now.checked_add(SignedDuration::from_millis(milliseconds)).unwrap());
            self
        }

        fn pass(&mut self, seconds: i64) -> &mut Self {
            self.now = self.now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
            self
        }

        fn look(&self, checked: Option<&Verdict>) -> Decision {
            decide(&Situation {
                now: self.now,
                chance: self.chance,
                uid: "uid-1",
                endpoint: self.endpoint,
                method: self.method,
                http_method: ChallengeHttpMethod::Post,
                consent: self.consent,
                key: &self.key,
                interval: self.interval,
                fail_after: self.fail_after,
                previous: self.status.as_ref(),
                requested: self.requested,
                generation: self.generation,
                keys_changed: self.keys_changed,
                gone_since: self.gone_since,
                checked,
            })
        }

        /// Decides and stores the status, as the controller does.
        fn decide(&mut self, checked: Option<&Verdict>) -> Decision {
            let decision = self.look(checked);
            self.status = Some(decision.status.clone());
            decision
        }

        /// Decides with this verdict after the last wait is over.
        fn check_when_due(&mut self, verdict: &Verdict) -> Decision {
            if let Step::Wait(wait) = self.look(None).step {
                self.now = self.now.checked_add(SignedDuration::try_from(wait).unwrap()).unwrap();
            }
            assert_eq!(self.look(None).step, Step::Probe, "what is due is checked");
            self.decide(Some(verdict))
        }

        fn state(&self) -> VerificationState {
            self.status.as_ref().map_or(VerificationState::Unverified, |s| s.state)
        }

        fn until_failed(&mut self) -> &mut Self {
            while self.state() != VerificationState::Failed {
                self.check_when_due(&wrong());
            }
            self
        }

        /// A Webhook in this state, reached by what leads there.
        fn in_state(state: VerificationState) -> Self {
            let mut world = Self::new();
            match state {
                VerificationState::Unverified => {
                    world.decide(None);
                }
                VerificationState::Pending => {
                    world.decide(Some(&wrong()));
                }
                VerificationState::Verified => {
                    world.decide(Some(&Verdict::Wanted));
                }
                VerificationState::Failed => {
                    world.until_failed();
                }
                VerificationState::Expired => {
                    world.decide(Some(&Verdict::Wanted));
                    world.pass(5 * DAY).decide(None);
                }
                VerificationState::Gone => {
                    world.decide(Some(&Verdict::Wanted));
                    world.pass(1).say_gone(0).decide(None);
                }
            }
            assert_eq!(world.state(), state);
            world
        }
    }

    const STATES: [VerificationState; 6] = [
        VerificationState::Unverified,
        VerificationState::Pending,
        VerificationState::Verified,
        VerificationState::Failed,
        VerificationState::Gone,
        VerificationState::Expired,
    ];

    fn seconds(time: Option<&Time>) -> i64 {
        time.unwrap().0.as_second()
    }

    #[test]
    fn a_new_webhook_is_unverified_and_asked_at_once() {
        let decision = World::new().decide(None);
        assert_eq!(decision.status.state, VerificationState::Unverified);
        assert_eq!((decision.step, decision.transition), (Step::Probe, None));
    }

    #[test]
    fn the_first_wrong_answer_makes_it_pending_and_the_right_one_verified() {
        let mut world = World::in_state(VerificationState::Unverified);
        let pending = world.decide(Some(&wrong()));
        assert_eq!(pending.transition, Some((VerificationState::Unverified, VerificationState::Pending)));
        assert_eq!(pending.status.attempts, Some(1));
        assert_eq!(pending.status.reason.as_deref(), Some("BodyMismatch"));
        assert_eq!(pending.step, Step::Wait(BACKOFF_FIRST));
        let verified = world.check_when_due(&Verdict::Wanted);
        assert_eq!(verified.transition, Some((VerificationState::Pending, VerificationState::Verified)));
        assert_eq!((verified.status.attempts, verified.status.reason, verified.status.message), (None, None, None));
    }

    #[test]
    fn pending_backs_off_to_five_minutes_and_fails_at_the_deadline() {
        let mut world = World::new();
        let mut waits = Vec::new();
        loop {
            let decision = world.check_when_due(&wrong());
            if decision.status.state == VerificationState::Failed {
                break;
            }
            let Step::Wait(wait) = decision.step else { panic!("{:?}", decision.step) };
            waits.push(wait.as_secs());
        }
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 300, 285]);
        assert_eq!(world.now.as_second() - START, 15 * 60);
    }

    #[test]
    fn a_short_deadline_is_kept_too() {
        let mut world = World { fail_after: Duration::from_secs(10), ..World::new() };
        world.until_failed();
        assert_eq!(world.now.as_second() - START, 10);
    }

    #[test]
    fn failed_is_asked_every_half_hour_for_ever_and_can_come_right() {
        let mut world = World::in_state(VerificationState::Failed);
        for _ in 0..100 {
            let decision = world.check_when_due(&wrong());
            assert_eq!((decision.status.state, decision.step), (VerificationState::Failed, Step::Wait(SLOW_INTERVAL)));
        }
        let decision = world.check_when_due(&Verdict::Wanted);
        assert_eq!(decision.transition, Some((VerificationState::Failed, VerificationState::Verified)));
    }

    #[test]
    fn a_re_check_renews_and_keeps_the_verified_time() {
        let mut world = World::in_state(VerificationState::Verified);
        let first = world.status.clone().unwrap();
        let second = world.check_when_due(&Verdict::Wanted);
        assert_eq!(second.transition, None);
        assert_eq!(second.status.verified_time, first.verified_time);
        assert_eq!(seconds(second.status.valid_until.as_ref()), world.now.as_second() + 4 * DAY);
        assert_eq!(second.step, Step::Wait(world.interval));
    }

    #[test]
    fn three_failed_re_checks_in_a_row_end_verified() {
        let mut world = World::in_state(VerificationState::Verified);
        let due = world.now.as_second() + DAY;
        for attempts in 1..RECHECK_FAILURES_MAX {
            let decision = world.check_when_due(&wrong());
            assert_eq!(
                (decision.status.state, decision.status.attempts),
                (VerificationState::Verified, Some(attempts))
            );
        }
        let decision = world.check_when_due(&wrong());
        assert_eq!(decision.transition, Some((VerificationState::Verified, VerificationState::Failed)));
        assert_eq!((decision.status.verified_time, decision.status.valid_until), (None, None));
        assert_eq!(world.now.as_second() - due, 45 * 60, "an outage of minutes is forgiven");
    }

    #[test]
    fn a_right_answer_between_failed_re_checks_forgives_them() {
        let mut world = World::in_state(VerificationState::Verified);
        for verdict in [wrong(), wrong(), Verdict::Wanted, wrong(), wrong()] {
            world.check_when_due(&verdict);
        }
        assert_eq!((world.state(), world.status.unwrap().attempts), (VerificationState::Verified, Some(2)));
    }

    #[test]
    fn re_checks_of_a_short_interval_retry_quickly() {
        let mut world = World { interval: Duration::from_secs(60), ..World::new() };
        world.decide(Some(&Verdict::Wanted));
        let due = world.now.as_second() + 60;
        world.until_failed();
        assert_eq!(world.now.as_second() - due, 45);
    }

    #[test]
    fn a_verification_that_nobody_renewed_expires_and_is_asked_at_once() {
        let mut world = World::in_state(VerificationState::Verified);
        let until = seconds(world.status.as_ref().unwrap().valid_until.as_ref());
        world.now = Timestamp::from_second(until).unwrap();
        assert_eq!(world.look(None).status.state, VerificationState::Verified, "the last second counts");
        let decision = world.pass(1).decide(None);
        assert_eq!(decision.transition, Some((VerificationState::Verified, VerificationState::Expired)));
        assert_eq!(decision.step, Step::Probe);
        let failed = world.decide(Some(&wrong()));
        assert_eq!((failed.status.state, failed.step), (VerificationState::Expired, Step::Wait(SLOW_INTERVAL)));
        let verified = world.check_when_due(&Verdict::Wanted);
        assert_eq!(seconds(verified.status.verified_time.as_ref()), world.now.as_second(), "it was interrupted");
    }

    #[test]
    fn a_check_that_ends_after_expiry_starts_a_new_verification() {
        let mut world = World::in_state(VerificationState::Verified);
        world.pass(5 * DAY);
        let late = world.look(Some(&Verdict::Wanted));
        assert_eq!(seconds(late.status.verified_time.as_ref()), world.now.as_second());
        assert_eq!(world.look(Some(&wrong())).status.state, VerificationState::Expired);
    }

    #[test]
    fn gone_is_left_by_a_right_answer_and_kept_by_a_wrong_one() {
        let mut world = World::in_state(VerificationState::Gone);
        assert_eq!(world.check_when_due(&wrong()).status.state, VerificationState::Gone);
        assert_eq!(world.check_when_due(&Verdict::Wanted).status.state, VerificationState::Verified);
    }

    #[test]
    fn a_410_ends_verified_until_the_endpoint_wants_events_again() {
        let mut world = World::in_state(VerificationState::Verified);
        let verified = seconds(world.status.as_ref().unwrap().verified_time.as_ref());
        world.pass(60).say_gone(500);
        let gone = world.pass(1).decide(None);
        assert_eq!(gone.transition, Some((VerificationState::Verified, VerificationState::Gone)));
        assert_eq!((&gone.status.verified_time, &gone.status.valid_until), (&None, &None));
        assert_eq!(gone.step, Step::Wait(SLOW_INTERVAL));
        assert_eq!(world.decide(None).status, gone.status, "settled");
        let again = world.check_when_due(&Verdict::Wanted);
        assert_eq!(again.status.state, VerificationState::Verified);
        assert!(seconds(again.status.verified_time.as_ref()) > verified + 60);
        assert_eq!(world.pass(5).decide(None).transition, None, "the old 410 does not count any more");
    }

    #[test]
    fn a_410_from_before_the_verification_means_nothing() {
        let mut world = World::new();
        world.say_gone(-1000).decide(Some(&Verdict::Wanted));
        assert_eq!(world.pass(1).decide(None).transition, None);
        assert_eq!(world.state(), VerificationState::Verified);
    }

    #[test]
    fn news_asks_a_gone_endpoint_at_once() {
        let mut world = World::in_state(VerificationState::Gone);
        world.requested = Some("now");
        assert_eq!(world.look(None).step, Step::Probe);
        world.requested = None;
        world.generation = 2;
        assert_eq!(world.look(None).step, Step::Probe);
        world.generation = 1;
        world.endpoint = "https://hooks.example.com/b";
        let moved = world.decide(None);
        assert_eq!((moved.status.state, moved.step), (VerificationState::Unverified, Step::Probe));
    }

    #[test]
    fn a_verification_after_a_410_is_newer_than_it_whatever_the_clocks_say() {
        for ahead_ms in [0, 1, 999, 1000, 3 * DAY * 1000] {
            let mut world = World::in_state(VerificationState::Verified);
            world.say_gone(ahead_ms).decide(None);
            assert_eq!(world.state(), VerificationState::Gone, "{ahead_ms}");
            for _ in 0..2 {
                world.check_when_due(&Verdict::Wanted);
                let verified = world.status.as_ref().unwrap().verified_time.as_ref().unwrap().0;
                assert!(Some(verified) > world.gone_since, "{ahead_ms}");
                assert_eq!(world.decide(None).status.state, VerificationState::Verified, "{ahead_ms}");
            }
        }
    }

    #[test]
    fn the_method_none_is_gone_until_there_is_news() {
        let mut world = World { method: VerificationMethod::None, ..World::new() };
        world.decide(None);
        world.pass(5).say_gone(0);
        let gone = world.pass(5).decide(None);
        assert_eq!((gone.status.state, gone.step), (VerificationState::Gone, Step::Rest));
        assert_eq!(world.pass(DAY).decide(None).status, gone.status);
        world.requested = Some("again");
        assert_eq!(world.decide(None).status.state, VerificationState::Verified);
        assert_eq!(world.pass(5).decide(None).transition, None);
    }

    #[test]
    fn every_state_is_left_by_each_of_its_inputs() {
        for state in STATES {
            let mut changed = World::in_state(state);
            changed.endpoint = "https://hooks.example.com/b";
            let decision = changed.decide(None);
            assert_eq!(
                (decision.status.state, decision.step),
                (VerificationState::Unverified, Step::Probe),
                "{state:?}"
            );

            let mut changed = World::in_state(state);
            changed.method = VerificationMethod::SignedChallenge;
            assert_eq!(changed.decide(None).status.state, VerificationState::Unverified, "{state:?}");

            let mut changed = World::in_state(state);
            changed.method = VerificationMethod::None;
            assert_eq!(changed.decide(None).status.state, VerificationState::Verified, "{state:?}");

            let mut right = World::in_state(state);
            assert_eq!(right.decide(Some(&Verdict::Wanted)).status.state, VerificationState::Verified, "{state:?}");

            let mut asked = World::in_state(state);
            asked.requested = Some("2027-01-15T08:00:00Z");
            assert_eq!(asked.decide(None).step, Step::Probe, "{state:?}");
            let after = asked.decide(Some(&wrong())).status.state;
            let expected = match state {
                VerificationState::Verified => VerificationState::Verified,
                _ => VerificationState::Pending,
            };
            assert_eq!(after, expected, "{state:?}");
            assert!(matches!(asked.decide(None).step, Step::Wait(_)), "a request is acted upon once: {state:?}");
        }
    }

    #[test]
    fn another_spec_or_key_is_checked_at_once_in_every_state_and_begins_anew() {
        let changes: [fn(&mut World); 2] = [|world| world.generation += 1, |world| world.keys_changed = true];
        for (state, change) in STATES.into_iter().flat_map(|state| changes.map(|change| (state, change))) {
            let mut world = World::in_state(state);
            change(&mut world);
            // Gone was stored by a pod, which knows of no check.
            world.status.as_mut().unwrap().checked_generation.get_or_insert(1);
            let before = world.status.clone().unwrap();
            let decision = world.decide(None);
            assert_eq!((decision.step, &decision.status), (Step::Probe, &before), "{state:?}");
            let after = world.decide(Some(&wrong())).status;
            let expected = match state {
                VerificationState::Verified => VerificationState::Verified,
                _ => VerificationState::Pending,
            };
            assert_eq!((after.state, after.verified_time), (expected, before.verified_time), "{state:?}");
            world.keys_changed = false;
            assert!(matches!(world.decide(None).step, Step::Wait(_)), "it is acted upon once: {state:?}");
        }
    }

    #[test]
    fn a_status_that_does_not_tell_what_was_checked_causes_no_check() {
        let mut world = World::in_state(VerificationState::Verified);
        world.status.as_mut().unwrap().checked_generation = None;
        assert!(matches!(world.decide(None).step, Step::Wait(_)), "an update of Posthorn asks no endpoint");
    }

    #[test]
    fn a_request_is_kept_until_a_check_ended() {
        let mut world = World::in_state(VerificationState::Failed);
        world.requested = Some("now");
        for _ in 0..3 {
            let decision = world.decide(None);
            assert_eq!((decision.step, decision.status.last_requested), (Step::Probe, None));
        }
        assert_eq!(world.decide(Some(&wrong())).status.last_requested.as_deref(), Some("now"));
        world.requested = None;
        assert_eq!(world.decide(None).status.last_requested.as_deref(), Some("now"));
    }

    #[test]
    fn a_request_longer_than_the_schema_allows_is_acted_upon_once() {
        let mut world = World::in_state(VerificationState::Verified);
        let text: &'static str = "ü".repeat(REQUESTED_CHARS_MAX + 1).leak();
        world.requested = Some(text);
        assert_eq!(world.decide(None).step, Step::Probe);
        let status = world.decide(Some(&Verdict::Wanted)).status;
        assert_eq!(status.last_requested.unwrap().chars().count(), REQUESTED_CHARS_MAX);
        assert!(matches!(world.decide(None).step, Step::Wait(_)));
    }

    #[test]
    fn a_changed_key_is_checked_at_once_and_does_not_end_verified() {
        let mut world = World::in_state(VerificationState::Verified);
        let before = world.status.clone().unwrap();
        world.keys_changed = true;
        let decision = world.decide(None);
        assert_eq!((decision.step, &decision.status), (Step::Probe, &before));
        let decision = world.decide(Some(&wrong()));
        assert_eq!(decision.status.state, VerificationState::Verified);
        assert_eq!(decision.status.verified_time, before.verified_time);
    }

    #[test]
    fn the_method_none_is_verified_at_once_and_never_written_again() {
        let mut world = World { method: VerificationMethod::None, ..World::new() };
        let first = world.decide(None);
        assert_eq!(first.transition, Some((VerificationState::Unverified, VerificationState::Verified)));
        assert_eq!((first.step, first.status.reason.as_deref()), (Step::Rest, Some("NotRequired")));
        assert_eq!(first.status.valid_until.as_ref().unwrap().0.to_string(), "9999-01-01T00:00:00Z");
        world.keys_changed = true;
        for _ in 0..100 {
            let later = world.pass(300 * DAY).decide(None);
            assert_eq!((later.status, later.step), (first.status.clone(), Step::Rest));
        }
        world.requested = Some("now");
        assert_eq!(world.decide(None).status.last_requested.as_deref(), Some("now"), "so that who asked can see it");
    }

    #[test]
    fn the_method_none_is_granted_by_consent_only() {
        for consent in [Consent::OnHold, Consent::Refused] {
            let mut world = World { method: VerificationMethod::None, consent, ..World::new() };
            let decision = world.decide(None);
            assert_eq!((decision.status.state, decision.step), (VerificationState::Unverified, Step::Rest));
            assert_eq!((decision.status.verified_time, decision.status.valid_until), (None, None), "{consent:?}");
            world.consent = Consent::Given;
            assert_eq!(world.decide(None).status.state, VerificationState::Verified, "{consent:?}");
        }
    }

    #[test]
    fn a_grant_of_the_method_none_outlives_a_hold_and_ends_with_a_refusal() {
        let mut world = World { method: VerificationMethod::None, ..World::new() };
        let granted = world.decide(None).status;
        world.consent = Consent::OnHold;
        assert_eq!(world.decide(None).status, granted);
        world.consent = Consent::Refused;
        let refused = world.decide(None);
        assert_eq!(refused.transition, Some((VerificationState::Verified, VerificationState::Unverified)));
        assert_eq!((&refused.status.verified_time, &refused.status.valid_until), (&None, &None));
        assert_eq!(world.decide(None).status, refused.status, "and then nothing is written");
    }

    #[test]
    fn a_status_that_was_forged_or_copied_is_worth_nothing() {
        let real = World::in_state(VerificationState::Verified);
        let check = |change: fn(&mut VerificationStatus)| {
            let mut world = real.clone();
            change(world.status.as_mut().unwrap());
            let decision = world.decide(None);
            assert_eq!((decision.status.state, decision.step), (VerificationState::Unverified, Step::Probe));
        };
        check(|s| s.fingerprint = None);
        check(|s| s.fingerprint = Some("v1.".to_owned()));
        check(|s| s.valid_until = Some(Time(Timestamp::from_second(START + 100 * DAY).unwrap())));
        check(|s| s.verified_time = Some(Time(Timestamp::from_second(START - DAY).unwrap())));
        check(|s| s.valid_until = None);

        // Another state's status, with only the state changed.
        for state in STATES {
            let mut world = World::in_state(state);
            if state != VerificationState::Verified {
                world.status.as_mut().unwrap().state = VerificationState::Verified;
                assert_eq!(world.decide(None).status.state, VerificationState::Unverified, "{state:?}");
            }
        }
        // The status of a Webhook under another key.
        let mut world = real;
        world.key = FingerprintKey::new([8; 32]);
        assert_eq!(world.decide(None).status.state, VerificationState::Unverified);
    }

    #[test]
    fn clocks_that_jump_three_days_do_no_lasting_harm() {
        for state in STATES {
            for jump in [3 * DAY, -3 * DAY] {
                let mut world = World::in_state(state);
                world.pass(jump);
                let longest = longest_wait_in(&world);
                if let Step::Wait(wait) = world.decide(None).step {
                    assert!(wait <= longest, "{state:?} {jump}: waits {wait:?}");
                }
                for _ in 0..3 {
                    world.check_when_due(&Verdict::Wanted);
                }
                assert_eq!(world.state(), VerificationState::Verified);
                let status = world.status.as_ref().unwrap();
                // Not in the future, but newer than a 410.
                let latest =
                    world.gone_since.map_or(world.now, |gone| after(gone, Duration::from_secs(1)).max(world.now));
                assert!(seconds(status.verified_time.as_ref()) <= latest.as_second());
                assert!(seconds(status.valid_until.as_ref()) > world.now.as_second());
            }
        }
    }

    fn longest_wait_in(world: &World) -> Duration {
        with_jitter(world.interval, 1.0)
    }

    #[test]
    fn a_run_of_failures_that_began_in_the_future_begins_now() {
        let mut world = World::in_state(VerificationState::Pending);
        world.pass(-3 * DAY);
        let status = world.decide(Some(&wrong())).status;
        assert_eq!(seconds(status.failing_since.as_ref()), world.now.as_second());
    }

    #[test]
    fn a_next_time_beyond_the_longest_wait_is_drawn_anew_once() {
        let mut world = World::in_state(VerificationState::Verified);
        world.status.as_mut().unwrap().next_time = Some(Time(Timestamp::from_second(START + 9000 * DAY).unwrap()));
        let first = world.decide(None);
        assert_eq!(first.step, Step::Wait(world.interval));
        world.chance = 0.9;
        assert_eq!(world.pass(1).decide(None).status, first.status);
    }

    #[test]
    fn a_shorter_interval_counts_at_once() {
        let mut world = World::in_state(VerificationState::Verified);
        world.interval = Duration::from_secs(60);
        assert_eq!(world.decide(None).step, Step::Wait(Duration::from_secs(60)));
    }

    #[test]
    fn waits_spread_by_a_tenth_either_way() {
        for (chance, expected) in [(0.0, 0.9), (0.5, 1.0), (1.0, 1.1), (f64::NAN, 1.0), (7.0, 1.1), (-7.0, 0.9)] {
            let wait = jittered(Duration::from_secs(1000), chance).as_secs_f64();
            assert!((wait - 1000.0 * expected).abs() < 1e-6, "{chance}: {wait}");
        }
        assert_eq!(jittered(Duration::MAX, 1.0), Duration::MAX, "nothing overflows");
    }

    #[test]
    fn a_long_message_is_cut_to_what_the_schema_takes() {
        let mut world = World::new();
        let verdict = Verdict::NotWanted { reason: Reason::Internal, message: "ä".repeat(MESSAGE_CHARS_MAX + 1) };
        let status = world.decide(Some(&verdict)).status;
        assert_eq!(status.message.unwrap().chars().count(), MESSAGE_CHARS_MAX);
    }

    #[derive(Clone, Debug)]
    enum Input {
        Pass(i64),
        Right,
        Wrong,
        Request(&'static str),
        Edit,
        Keys(bool),
        Endpoint(&'static str),
        Method(VerificationMethod),
    }

    fn inputs() -> impl Strategy<Value = Vec<Input>> {
        let one = prop_oneof![
            3 => (-4 * DAY..5 * DAY).prop_map(Input::Pass),
            3 => (0..7200_i64).prop_map(Input::Pass),
            2 => Just(Input::Right),
            4 => Just(Input::Wrong),
            1 => prop_oneof![Just("a"), Just("b")].prop_map(Input::Request),
            1 => Just(Input::Edit),
            1 => any::<bool>().prop_map(Input::Keys),
            1 => prop_oneof![Just("https://a.example"), Just("https://b.example")].prop_map(Input::Endpoint),
            1 => prop_oneof![Just(VerificationMethod::Challenge), Just(VerificationMethod::None)].prop_map(Input::Method),
        ];
        proptest::collection::vec(one, 1..40)
    }

    fn is_whole(time: Option<&Time>) -> bool {
        time.is_none_or(|t| t.0.subsec_nanosecond() == 0)
    }

    fn laws(world: &World, decision: &Decision) {
        let status = &decision.status;
        let VerificationStatus { verified_time, valid_until, next_time, failing_since, .. } = status;
        for time in [verified_time, valid_until, next_time, failing_since] {
            assert!(is_whole(time.as_ref()), "{status:?}");
        }
        assert_eq!(status.state == VerificationState::Verified, verified_time.is_some() && valid_until.is_some());
        // Its own status, fed back without news before nextTime, changes nothing.
        let mut again = world.clone();
        again.status = Some(status.clone());
        again.chance = 0.123;
        let expired = valid_until.as_ref().is_some_and(|until| world.now > until.0);
        if !expired {
            let second = again.look(None);
            assert_eq!((&second.status, second.transition), (status, None));
        }
        // Every state asks again within its longest wait, but None.
        match decision.step {
            Step::Probe => assert_ne!(world.method, VerificationMethod::None),
            Step::Wait(wait) => assert!(!wait.is_zero() && wait <= longest_wait_in(world).max(SLOW_INTERVAL * 2)),
            Step::Rest => assert_eq!(world.method, VerificationMethod::None),
        }
    }

    proptest! {
        #[test]
        fn whatever_happens_the_laws_of_a_decision_hold(inputs in inputs(), chance in 0.0..1.0, nanos in 0..1_000_000_000_i64) {
            let mut world = World { chance, ..World::new() };
            world.now = world.now.checked_add(SignedDuration::from_nanos(nanos)).unwrap();
            for input in inputs {
                let mut checked = None;
                match input {
                    Input::Pass(seconds) => { world.pass(seconds); }
                    Input::Right => checked = Some(Verdict::Wanted),
                    Input::Wrong => checked = Some(wrong()),
                    Input::Request(value) => world.requested = Some(value),
                    Input::Edit => world.generation += 1,
                    Input::Keys(changed) => world.keys_changed = changed,
                    Input::Endpoint(endpoint) => world.endpoint = endpoint,
                    Input::Method(method) => world.method = method,
                }
                let before = world.status.clone();
                let decision = world.decide(checked.as_ref());
                laws(&world, &decision);
                let from = before.map_or(VerificationState::Unverified, |s| s.state);
                prop_assert_eq!(decision.transition, (from != world.state()).then_some((from, world.state())));
            }
            // And every state can be left for Verified.
            world.decide(Some(&Verdict::Wanted));
            prop_assert_eq!(world.state(), VerificationState::Verified);
        }
    }
}
