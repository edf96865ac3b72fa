//! `kubectl posthorn verify`: ask for a check by the annotation, wait until the
//! controller acted upon it, and tell what came of it.

use std::time::Duration;

use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::{CliError, Connection, Exit, connect::Cluster, status::is_current, text};
use crate::{
    api::{
        ConditionType, Gep2257Duration, Reason, VERIFY_REQUESTED_ANNOTATION, Webhook, condition,
        webhook::{VerificationState, VerificationStatus},
    },
    runtime::clock,
};

/// Pause between two looks at the Webhook.
const POLL: Duration = Duration::from_millis(500);

#[derive(clap::Args, Debug)]
pub(super) struct VerifyArguments {
    /// Name of the Webhook.
    webhook: String,
    /// How long to wait for the answer, such as 30s or 5m.
    #[arg(long, default_value = "2m", value_parser = positive)]
    timeout: Gep2257Duration,
    /// Wait for the answer.
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    wait: bool,
}

fn positive(text: &str) -> Result<Gep2257Duration, String> {
    let duration: Gep2257Duration =
        text.parse().map_err(|e: crate::api::duration::ParseDurationError| e.to_string())?;
    if duration.as_std().is_zero() { Err("the time must be longer than 0s".to_owned()) } else { Ok(duration) }
}

pub(super) async fn run(connection: Connection, arguments: VerifyArguments) -> Result<Exit, CliError> {
    let cluster = connection.connect().await?;
    let name = arguments.webhook.as_str();
    let webhook = cluster.get(name).await?;
    let requested = clock::now().to_string();
    request(&cluster, name, &requested).await?;
    let endpoint = webhook.status.as_ref().and_then(|s| s.endpoint.as_deref()).unwrap_or("its endpoint");
    text::talk(&text::clean(&format!("Asked for a check of {}/{name} at {endpoint}.", cluster.namespace)));
    if !arguments.wait {
        return Ok(Exit::Done);
    }
    let mut last = None;
    match timeout(arguments.timeout.as_std(), follow(&cluster, name, &requested, &mut last)).await {
        Ok(exit) => exit,
        Err(_elapsed) => {
            text::talk(&timed_out(name, arguments.timeout, last.as_deref()));
            Ok(Exit::TimedOut)
        }
    }
}

async fn request(cluster: &Cluster, name: &str, value: &str) -> Result<(), CliError> {
    let patch = json!({ "metadata": { "annotations": { VERIFY_REQUESTED_ANNOTATION: value } } });
    let patched = cluster.webhooks().patch_metadata(name, &PatchParams::default(), &Patch::Merge(&patch)).await;
    patched.map(drop).map_err(|error| CliError::from_api(error, "patch", &cluster.namespace))
}

/// Looks until there is an answer; prints what changed meanwhile.
async fn follow(cluster: &Cluster, name: &str, requested: &str, last: &mut Option<String>) -> Result<Exit, CliError> {
    loop {
        let webhook = cluster.get(name).await?;
        match progress(&webhook, requested) {
            Progress::Verified(line) => {
                text::print(&format!("√ {line}\n"));
                return Ok(Exit::Done);
            }
            Progress::Refused { line, next } => {
                text::print(&format!("✗ {line}\n"));
                text::talk(&next);
                return Ok(Exit::No);
            }
            Progress::Waiting(line) => {
                if line.is_some() && *last != line {
                    text::talk(line.as_deref().unwrap_or_default());
                }
                *last = line;
            }
        }
        sleep(POLL).await;
    }
}

/// How far a request is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Progress {
    /// No check has ended yet; perhaps something keeps it from beginning.
    Waiting(Option<String>),
    /// The endpoint wants events.
    Verified(String),
    /// It does not, or cannot be asked.
    Refused {
        /// What happened.
        line: String,
        /// What happens next, and what to do.
        next: String,
    },
}

fn progress(webhook: &Webhook, requested: &str) -> Progress {
    let name = webhook.metadata.name.as_deref().unwrap_or_default();
    let status = webhook.status.as_ref();
    let ready = status.and_then(|s| condition::find(&s.conditions, ConditionType::Ready));
    if ready.is_some_and(|c| c.reason == Reason::Suspended.as_str()) || webhook.spec.is_suspended() {
        return Progress::Refused {
            line: format!("{name} is suspended, so its endpoint is not asked."),
            next: "Set spec.suspend to false; the check is made then.".to_owned(),
        };
    }
    let verification = status.and_then(|s| s.verification.as_ref());
    let acted_upon = verification.filter(|v| v.last_requested.as_deref() == Some(requested) && is_current(webhook));
    match acted_upon {
        Some(verification) => judge(name, verification),
        None => {
            // Conditions of before the request tell what keeps the check from
            // beginning, unless they only tell how the last check ended.
            let blocking = ready.filter(|c| c.status != "True" && !is_about_checks(&c.reason));
            Progress::Waiting(blocking.map(|c| text::clean(&format!("Waiting: {}", c.message))))
        }
    }
}

fn is_about_checks(reason: &str) -> bool {
    [
        Reason::Unverified,
        Reason::VerificationPending,
        Reason::VerificationFailed,
        Reason::VerificationExpired,
        Reason::Gone,
        Reason::NotProgrammed,
    ]
    .iter()
    .any(|r| r.as_str() == reason)
}

fn judge(name: &str, verification: &VerificationStatus) -> Progress {
    let verified = verification.state == VerificationState::Verified;
    if verified && verification.attempts.unwrap_or(0) == 0 {
        let not_required = verification.reason.as_deref() == Some(Reason::NotRequired.as_str());
        let how = if not_required {
            "its way of verification asks the endpoint nothing"
        } else {
            "the endpoint wants events"
        };
        return Progress::Verified(format!("{name} is verified: {how}."));
    }
    let message = verification.message.as_deref().unwrap_or("The check failed.");
    let state = if verified { "still verified, but this check failed" } else { "not verified" };
    let reason = verification.reason.as_deref().unwrap_or_default();
    let next =
        verification.next_time.as_ref().map_or_else(String::new, |t| format!("Next check by itself at {}. ", t.0));
    Progress::Refused {
        line: text::clean(&format!("{name} is {state}: {message}")),
        next: text::clean(&format!("{next}More about it: kubectl posthorn explain {reason}")),
    }
}

fn timed_out(name: &str, limit: Gep2257Duration, last: Option<&str>) -> String {
    match last {
        Some(line) => format!("No answer within {limit}; the request stays. {line}"),
        None => format!(
            "No answer within {limit}; the request stays. See whether Posthorn's controller runs, and kubectl describe webhook {name}."
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn check(status: Value, expected: &Progress) {
        let webhook: Webhook = serde_json::from_value(json!({
            "metadata": {"name": "billing", "generation": 1},
            "spec": {"url": "https://pay.example/hook"},
            "status": status
        }))
        .unwrap();
        assert_eq!(progress(&webhook, "now"), *expected);
    }

    fn ready(reason: &str, message: &str) -> Value {
        json!([{"type": "Ready", "status": "False", "reason": reason, "message": message, "lastTransitionTime": "2026-11-23T11:00:00Z"}])
    }

    #[test]
    fn an_answer_from_before_the_request_does_not_count() {
        for last in [json!(null), json!("before")] {
            let verification = json!({"state": "Verified", "lastRequested": last});
            check(json!({"observedGeneration": 1, "verification": verification}), &Progress::Waiting(None));
        }
        let verification = json!({"state": "Verified", "lastRequested": "now"});
        check(json!({"observedGeneration": 0, "verification": verification}), &Progress::Waiting(None));
        let conditions = ready("VerificationFailed", "The last check failed.");
        check(json!({"observedGeneration": 1, "conditions": conditions}), &Progress::Waiting(None));
    }

    #[test]
    fn what_keeps_a_check_from_beginning_is_told() {
        let conditions = ready("SecretNotFound", "Secret shop/key does not exist.");
        let line = "Waiting: Secret shop/key does not exist.".to_owned();
        check(json!({"observedGeneration": 1, "conditions": conditions}), &Progress::Waiting(Some(line)));
    }

    #[test]
    fn a_right_answer_is_told_as_such() {
        let verification = json!({"state": "Verified", "lastRequested": "now"});
        let line = "billing is verified: the endpoint wants events.".to_owned();
        check(json!({"observedGeneration": 1, "verification": verification}), &Progress::Verified(line));
        let verification = json!({"state": "Verified", "reason": "NotRequired", "lastRequested": "now"});
        let line = "billing is verified: its way of verification asks the endpoint nothing.".to_owned();
        check(json!({"observedGeneration": 1, "verification": verification}), &Progress::Verified(line));
    }

    #[test]
    fn a_refusal_says_what_happened_and_what_comes_next() {
        for (state, words) in [
            ("Pending", "not verified"),
            ("Failed", "not verified"),
            ("Verified", "still verified, but this check failed"),
        ] {
            let verification = json!({
                "state": state, "lastRequested": "now", "attempts": 1, "reason": "BodyMismatch",
                "message": "The endpoint answered 200, but not with the challenge.", "nextTime": "2026-11-23T12:04:51Z"
            });
            let expected = Progress::Refused {
                line: format!("billing is {words}: The endpoint answered 200, but not with the challenge."),
                next:
                    "Next check by itself at 2026-11-23T12:04:51Z. More about it: kubectl posthorn explain BodyMismatch"
                        .to_owned(),
            };
            check(json!({"observedGeneration": 1, "verification": verification}), &expected);
        }
    }

    #[test]
    fn a_suspended_webhook_is_not_waited_for() {
        let conditions = ready("Suspended", "spec.suspend is true.");
        let expected = Progress::Refused {
            line: "billing is suspended, so its endpoint is not asked.".to_owned(),
            next: "Set spec.suspend to false; the check is made then.".to_owned(),
        };
        check(json!({"observedGeneration": 1, "conditions": conditions}), &expected);
    }

    #[test]
    fn a_time_out_says_what_it_waited_for() {
        let limit = Gep2257Duration::from_secs(120);
        assert!(
            timed_out("a", limit, None)
                .contains("within 2m; the request stays. See whether Posthorn's controller runs")
        );
        assert!(timed_out("a", limit, Some("Waiting: x.")).ends_with("Waiting: x."));
    }
}
