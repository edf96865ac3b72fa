//! What users and GitOps tools read about a Webhook: the conditions Ready,
//! Verified, Programmed, and Reconciling or Stalled as kstatus reads them.
//!
//! kstatus takes `Ready=False` alone for work in progress and only
//! `Stalled=True` for failed. So: what may still come right by itself is
//! Reconciling, what waits for somebody is Stalled, and never are both set.
//!
//! | first that holds | Ready | kstatus |
//! |---|---|---|
//! | suspended | False, Suspended | Stalled: nothing happens until somebody changes the spec |
//! | a problem that may pass, of what is verified and programmed | True | – (a flap must not turn every app red) |
//! | a problem of something that may still be applied, such as a missing Secret | False | Reconciling |
//! | a problem of a wrong value | False | Stalled |
//! | Unverified, Pending | False | Reconciling |
//! | Failed, Gone | False | Stalled |
//! | Expired | False | Reconciling until it was asked again and failed, then Stalled |
//! | not programmed | False, NotProgrammed | Reconciling |
//! | the pods refuse the spec | False, InvalidSpec | Stalled |
//! | verified and programmed | True | – |

use crate::api::{
    ConditionStatus, ConditionType, Problem, Reason,
    condition::WantedCondition,
    webhook::{VerificationState, VerificationStatus},
};

/// Whether the delivery pods have this generation of the Webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Programmed {
    /// They do.
    Yes,
    /// Not yet.
    No,
    /// They cannot use it; the message says why.
    Refused(String),
}

/// What the conditions are made from.
pub struct Facts<'a> {
    /// Where the verification stands; none before the first decision.
    pub verification: Option<&'a VerificationStatus>,
    /// Whether the pods have this generation.
    pub programmed: &'a Programmed,
    /// `spec.suspend`.
    pub suspended: bool,
    /// What blocks the Webhook, if something does.
    pub problem: Option<&'a Problem>,
}

/// Which way a Webhook that is not ready looks to kstatus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Done,
    Reconciling,
    Stalled,
}

/// The conditions of a Webhook, in the order of the status.
pub fn conditions(facts: &Facts<'_>) -> Vec<WantedCondition> {
    let (progress, reason, message) = summary(facts);
    let ready = if progress == Progress::Done { ConditionStatus::True } else { ConditionStatus::False };
    let mut wanted = vec![
        condition(ConditionType::Ready, ready, reason, message.clone()),
        verified(facts.verification),
        programmed(facts.programmed),
    ];
    match progress {
        Progress::Done => {}
        Progress::Reconciling => {
            wanted.push(condition(ConditionType::Reconciling, ConditionStatus::True, reason, message));
        }
        Progress::Stalled => wanted.push(condition(ConditionType::Stalled, ConditionStatus::True, reason, message)),
    }
    wanted
}

fn condition(type_: ConditionType, status: ConditionStatus, reason: Reason, message: String) -> WantedCondition {
    WantedCondition { type_, status, reason, message }
}

/// The first of: suspended, blocked, not verified, not programmed, ready.
fn summary(facts: &Facts<'_>) -> (Progress, Reason, String) {
    if facts.suspended {
        let message = "spec.suspend is true: nothing is verified and nothing is sent until it is false.";
        return (Progress::Stalled, Reason::Suspended, message.to_owned());
    }
    let state = state(facts.verification);
    let in_use = state == VerificationState::Verified && *facts.programmed == Programmed::Yes;
    if let Some(problem) = facts.problem.filter(|problem| !(in_use && passes(problem.reason))) {
        let progress = if comes_by_itself(problem.reason) { Progress::Reconciling } else { Progress::Stalled };
        return (progress, problem.reason, problem.message.clone());
    }
    if state != VerificationState::Verified {
        let (reason, message) = not_verified(facts.verification);
        return (progress_of(state, facts.verification), reason, message);
    }
    match facts.programmed {
        Programmed::Yes => {
            let message = "The endpoint is verified and the delivery pods know it.";
            (Progress::Done, Reason::Ready, message.to_owned())
        }
        Programmed::No => (Progress::Reconciling, Reason::NotProgrammed, NOT_PROGRAMMED.to_owned()),
        Programmed::Refused(message) => (Progress::Stalled, Reason::InvalidSpec, message.clone()),
    }
}

const NOT_PROGRAMMED: &str = "The delivery pods do not have this generation of the Webhook yet. If it lasts, see the DeliveryPool's condition Ready.";

fn state(verification: Option<&VerificationStatus>) -> VerificationState {
    verification.map_or(VerificationState::Unverified, |v| v.state)
}

fn progress_of(state: VerificationState, verification: Option<&VerificationStatus>) -> Progress {
    match state {
        VerificationState::Verified => Progress::Done,
        VerificationState::Unverified | VerificationState::Pending => Progress::Reconciling,
        VerificationState::Failed | VerificationState::Gone => Progress::Stalled,
        // It ended because nobody asked; that is not the endpoint's failure
        // until it was asked and failed.
        VerificationState::Expired if verification.is_none_or(|v| v.attempts.unwrap_or(0) == 0) => {
            Progress::Reconciling
        }
        VerificationState::Expired => Progress::Stalled,
    }
}

/// Whether a problem comes and goes without anybody's doing: it does not take
/// Ready from a Webhook that has it.
const fn passes(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::ServiceWithoutPods
            | Reason::PoolNotReady
            | Reason::PodsStarting
            | Reason::NotProgrammed
            | Reason::Internal
    )
}

/// Whether a problem may end without a change of this Webhook: it passes, or
/// what is missing comes later in the same apply. A wrong value does not.
const fn comes_by_itself(reason: Reason) -> bool {
    passes(reason)
        || matches!(
            reason,
            Reason::SecretNotFound | Reason::SecretKeyMissing | Reason::ServiceNotFound | Reason::PoolNotFound
        )
}

fn verified(verification: Option<&VerificationStatus>) -> WantedCondition {
    if state(verification) == VerificationState::Verified {
        let not_required = verification.and_then(|v| v.reason.as_deref()) == Some(Reason::NotRequired.as_str());
        let (reason, message) = if not_required {
            (Reason::NotRequired, "This way of verification asks the endpoint nothing.".to_owned())
        } else {
            let failing = verification.filter(|v| v.attempts.unwrap_or(0) > 0).and_then(|v| v.message.as_deref());
            (Reason::Verified, verified_message(failing))
        };
        return condition(ConditionType::Verified, ConditionStatus::True, reason, message);
    }
    let (reason, message) = not_verified(verification);
    condition(ConditionType::Verified, ConditionStatus::False, reason, message)
}

fn verified_message(failing: Option<&str>) -> String {
    match failing {
        None => "The endpoint proved that it wants events.".to_owned(),
        Some(message) => format!("The endpoint proved that it wants events, but its last check failed: {message}"),
    }
}

fn not_verified(verification: Option<&VerificationStatus>) -> (Reason, String) {
    let reason = match state(verification) {
        VerificationState::Verified => Reason::Verified,
        VerificationState::Unverified => Reason::Unverified,
        VerificationState::Pending => Reason::VerificationPending,
        VerificationState::Failed => Reason::VerificationFailed,
        VerificationState::Gone => Reason::Gone,
        VerificationState::Expired => Reason::VerificationExpired,
    };
    let explanation = reason.explanation();
    let message = match (verification.and_then(|v| v.message.as_deref()), reason) {
        (None, _) => format!("{} {}", explanation.meaning, explanation.cure),
        (Some(told), Reason::VerificationPending) => format!("{told} {ASKED_AGAIN}"),
        (Some(told), _) => format!("{told} {ASKED_SLOWLY}"),
    };
    (reason, message)
}

const ASKED_AGAIN: &str = "The endpoint is asked again by itself.";
const ASKED_SLOWLY: &str = "The endpoint is asked again every 30 minutes, and at once when the annotation posthorn.dev/verify-requested-at gets a new value.";

fn programmed(programmed: &Programmed) -> WantedCondition {
    let (status, reason, message) = match programmed {
        Programmed::Yes => (
            ConditionStatus::True,
            Reason::Programmed,
            "The delivery pods have this generation of the Webhook.".to_owned(),
        ),
        Programmed::No => (ConditionStatus::False, Reason::NotProgrammed, NOT_PROGRAMMED.to_owned()),
        Programmed::Refused(message) => (ConditionStatus::False, Reason::InvalidSpec, message.clone()),
    };
    condition(ConditionType::Programmed, status, reason, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [VerificationState; 6] = [
        VerificationState::Unverified,
        VerificationState::Pending,
        VerificationState::Verified,
        VerificationState::Failed,
        VerificationState::Gone,
        VerificationState::Expired,
    ];

    /// `Type=Status(Reason)` of every condition but Programmed, in one line.
    fn line(facts: &Facts<'_>) -> String {
        let wanted = conditions(facts);
        let shown = wanted.iter().filter(|c| c.type_ != ConditionType::Programmed);
        shown.map(|c| format!("{}={}({})", c.type_.as_str(), c.status, c.reason)).collect::<Vec<_>>().join(" ")
    }

    fn status(state: VerificationState) -> VerificationStatus {
        let failed = state != VerificationState::Verified && state != VerificationState::Unverified;
        VerificationStatus {
            state,
            attempts: failed.then_some(2),
            reason: failed.then(|| Reason::BodyMismatch.as_str().to_owned()),
            message: failed.then(|| "The body was another.".to_owned()),
            ..VerificationStatus::default()
        }
    }

    #[test]
    fn every_combination_reads_as_the_table_says() {
        let kinds = ["none", "passing", "missing", "wrong"];
        let problem = |kind: &str| {
            let reason = match kind {
                "passing" => Reason::PoolNotReady,
                "missing" => Reason::SecretNotFound,
                "wrong" => Reason::SecretTooShort,
                _ => return None,
            };
            Some(Problem { reason, message: "A problem.".to_owned() })
        };
        let refused = Programmed::Refused("The path is wrong.".to_owned());
        let mut rows = 0;
        for state in STATES {
            for programmed in [Programmed::Yes, Programmed::No, refused.clone()] {
                for kind in kinds {
                    for suspended in [false, true] {
                        let verified = match state {
                            VerificationState::Unverified => "Verified=False(Unverified)",
                            VerificationState::Pending => "Verified=False(VerificationPending)",
                            VerificationState::Verified => "Verified=True(Verified)",
                            VerificationState::Failed => "Verified=False(VerificationFailed)",
                            VerificationState::Gone => "Verified=False(Gone)",
                            VerificationState::Expired => "Verified=False(VerificationExpired)",
                        };
                        let in_use = state == VerificationState::Verified && programmed == Programmed::Yes;
                        let (reason, progress) = match (suspended, kind, state, &programmed) {
                            (true, ..) => ("Suspended", "Stalled"),
                            (_, "passing", ..) if !in_use => ("PoolNotReady", "Reconciling"),
                            (_, "missing", ..) => ("SecretNotFound", "Reconciling"),
                            (_, "wrong", ..) => ("SecretTooShort", "Stalled"),
                            (_, _, VerificationState::Unverified, _) => ("Unverified", "Reconciling"),
                            (_, _, VerificationState::Pending, _) => ("VerificationPending", "Reconciling"),
                            (_, _, VerificationState::Failed, _) => ("VerificationFailed", "Stalled"),
                            (_, _, VerificationState::Gone, _) => ("Gone", "Stalled"),
                            (_, _, VerificationState::Expired, _) => ("VerificationExpired", "Stalled"),
                            (_, _, VerificationState::Verified, Programmed::No) => ("NotProgrammed", "Reconciling"),
                            (_, _, VerificationState::Verified, Programmed::Refused(_)) => ("InvalidSpec", "Stalled"),
                            (_, _, VerificationState::Verified, Programmed::Yes) => ("Ready", ""),
                        };
                        let expected = match progress {
                            "" => format!("Ready=True(Ready) {verified}"),
                            _ => format!("Ready=False({reason}) {verified} {progress}=True({reason})"),
                        };
                        let verification = status(state);
                        let problem = problem(kind);
                        let facts = Facts {
                            verification: Some(&verification),
                            programmed: &programmed,
                            suspended,
                            problem: problem.as_ref(),
                        };
                        assert_eq!(line(&facts), expected, "{state:?} {programmed:?} {kind} suspended={suspended}");
                        rows += 1;
                    }
                }
            }
        }
        assert_eq!(rows, 144);
    }

    #[test]
    fn the_order_is_fixed_and_programmed_always_there() {
        for (programmed, expected) in [
            (Programmed::Yes, "True(Programmed)"),
            (Programmed::No, "False(NotProgrammed)"),
            (Programmed::Refused("x".to_owned()), "False(InvalidSpec)"),
        ] {
            let facts = Facts { verification: None, programmed: &programmed, suspended: false, problem: None };
            let wanted = conditions(&facts);
            let types: Vec<_> = wanted.iter().map(|c| c.type_.as_str()).collect();
            assert_eq!(types, ["Ready", "Verified", "Programmed", "Reconciling"]);
            assert_eq!(format!("{}({})", wanted[2].status, wanted[2].reason), expected);
        }
    }

    #[test]
    fn what_expired_unasked_is_still_under_way() {
        let verification = VerificationStatus { state: VerificationState::Expired, ..VerificationStatus::default() };
        let programmed = Programmed::Yes;
        let facts =
            Facts { verification: Some(&verification), programmed: &programmed, suspended: false, problem: None };
        assert!(line(&facts).ends_with("Reconciling=True(VerificationExpired)"));
    }

    #[test]
    fn a_webhook_that_needs_no_handshake_says_so() {
        let verification = VerificationStatus {
            state: VerificationState::Verified,
            reason: Some("NotRequired".to_owned()),
            ..VerificationStatus::default()
        };
        let programmed = Programmed::Yes;
        let facts =
            Facts { verification: Some(&verification), programmed: &programmed, suspended: false, problem: None };
        assert_eq!(line(&facts), "Ready=True(Ready) Verified=True(NotRequired)");
    }

    #[test]
    fn every_message_is_a_sentence_and_says_what_happens_next() {
        let check = |state: VerificationState, expected: &str| {
            let verification = status(state);
            let programmed = Programmed::Yes;
            let facts =
                Facts { verification: Some(&verification), programmed: &programmed, suspended: false, problem: None };
            let wanted = conditions(&facts);
            assert!(wanted.iter().all(|c| c.message.ends_with('.') && !c.message.contains('!')), "{wanted:?}");
            assert!(wanted[0].message.contains(expected), "{state:?}: {}", wanted[0].message);
        };
        check(VerificationState::Unverified, "the first check follows by itself");
        check(VerificationState::Pending, "The body was another. The endpoint is asked again by itself.");
        check(VerificationState::Failed, "every 30 minutes, and at once when the annotation");
        check(VerificationState::Gone, "every 30 minutes, and at once when the annotation");
        check(VerificationState::Expired, "every 30 minutes, and at once when the annotation");
        check(VerificationState::Verified, "verified and the delivery pods know it");
    }

    #[test]
    fn a_failed_re_check_is_told_while_verified_lasts() {
        let verification = VerificationStatus {
            state: VerificationState::Verified,
            attempts: Some(1),
            message: Some("The endpoint answered 503 instead of 2xx.".to_owned()),
            reason: Some("UnexpectedStatus".to_owned()),
            ..VerificationStatus::default()
        };
        let programmed = Programmed::Yes;
        let facts =
            Facts { verification: Some(&verification), programmed: &programmed, suspended: false, problem: None };
        let wanted = conditions(&facts);
        assert_eq!(wanted[1].status, ConditionStatus::True);
        assert!(wanted[1].message.contains("its last check failed: The endpoint answered 503"));
    }
}
