//! What users and GitOps tools read about a Webhook: the conditions Ready,
//! Verified, Programmed, and Reconciling or Stalled as kstatus reads them.
//!
//! kstatus takes `Ready=False` alone for work in progress and only
//! `Stalled=True` for failed. So: what may still come right by itself is
//! Reconciling, what waits for somebody is Stalled, and never are both set.

use crate::api::{
    ConditionStatus, ConditionType, Reason,
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

/// Something that keeps a Webhook from being verified or used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What it is, in one word.
    pub reason: Reason,
    /// What it is and what to do.
    pub message: String,
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
    if let Some(problem) = facts.problem {
        let progress = if comes_by_itself(problem.reason) { Progress::Reconciling } else { Progress::Stalled };
        return (progress, problem.reason, problem.message.clone());
    }
    let state = state(facts.verification);
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

/// Whether what is missing often comes later in the same apply, or comes back
/// without the user. A wrong value does not.
const fn comes_by_itself(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::SecretNotFound
            | Reason::SecretKeyMissing
            | Reason::ServiceNotFound
            | Reason::ServiceWithoutPods
            | Reason::PoolNotFound
            | Reason::PoolNotReady
            | Reason::PodsStarting
            | Reason::NotProgrammed
            | Reason::Internal
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
    let told = verification.and_then(|v| v.message.clone());
    let message = told.unwrap_or_else(|| {
        let explanation = reason.explanation();
        format!("{} {}", explanation.meaning, explanation.cure)
    });
    (reason, message)
}

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
