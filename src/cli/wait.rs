//! `posthorn wait`: waits until a Webhook has a condition and says meanwhile
//! what is missing. For `helm test`, whose image has no shell and no kubectl.

use std::{fmt::Display, time::Duration};

use kube::{Api, Client};
use tokio::time::{sleep, timeout};

use crate::api::{Gep2257Duration, Webhook};

/// Time between two looks.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Flags of `posthorn wait`.
#[derive(clap::Args, Clone, Debug)]
pub struct WaitArguments {
    /// Name of the Webhook.
    #[arg(long)]
    pub webhook: String,
    /// Namespace of the Webhook.
    #[arg(long, short, env = "POSTHORN_NAMESPACE")]
    pub namespace: String,
    /// The condition that has to be True.
    #[arg(long = "for", default_value = "Ready")]
    pub condition: String,
    /// How long to wait, such as 60s.
    #[arg(long, default_value = "60s")]
    pub timeout: Gep2257Duration,
}

/// The condition did not come.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// The API server could not be asked.
    #[error("cannot read Webhook {namespace}/{name}")]
    Read {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What the API server said.
        source: Box<kube::Error>,
    },
    /// The time is over.
    #[error(
        "Webhook {namespace}/{name} is not {condition} after {timeout}; see `kubectl describe webhook {name} -n {namespace}`"
    )]
    TimedOut {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What was waited for.
        condition: String,
        /// How long.
        timeout: Gep2257Duration,
    },
}

/// Waits until the Webhook has the condition. Calls `say` whenever what is
/// missing changes, and at the end.
///
/// # Errors
/// When the time is over, or when the API server refuses the question.
pub async fn wait(client: Client, arguments: &WaitArguments, say: impl FnMut(&dyn Display)) -> Result<(), WaitError> {
    let WaitArguments { webhook, namespace, condition, timeout: limit } = arguments;
    match timeout(limit.as_std(), look_until(client, arguments, say)).await {
        Ok(result) => result,
        Err(_) => Err(WaitError::TimedOut {
            namespace: namespace.clone(),
            name: webhook.clone(),
            condition: condition.clone(),
            timeout: *limit,
        }),
    }
}

async fn look_until(
    client: Client,
    arguments: &WaitArguments,
    mut say: impl FnMut(&dyn Display),
) -> Result<(), WaitError> {
    let WaitArguments { webhook: name, namespace, condition, timeout: _ } = arguments;
    let api = Api::<Webhook>::namespaced(client, namespace);
    let mut said = String::new();
    loop {
        let webhook = api.get_opt(name).await.map_err(|source| WaitError::Read {
            namespace: namespace.clone(),
            name: name.clone(),
            source: Box::new(source),
        })?;
        let progress = judge(webhook.as_ref(), condition);
        if let Progress::Missing(missing) = &progress
            && *missing != said
        {
            say(&format_args!("{namespace}/{name}: {missing}"));
            said.clone_from(missing);
        }
        if progress == Progress::Met {
            say(&format_args!("{namespace}/{name}: {condition}"));
            return Ok(());
        }
        sleep(POLL_INTERVAL).await;
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Progress {
    Met,
    Missing(String),
}

/// Whether the Webhook has the condition for its present generation.
fn judge(maybe_webhook: Option<&Webhook>, condition: &str) -> Progress {
    let Some(webhook) = maybe_webhook else { return Progress::Missing("there is no such Webhook".to_owned()) };
    let status = webhook.status.as_ref().filter(|status| status.observed_generation == webhook.metadata.generation);
    let Some(status) = status else {
        return Progress::Missing("Posthorn's controller has not looked at it yet".to_owned());
    };
    match status.conditions.iter().find(|c| c.type_ == condition) {
        Some(found) if found.status == "True" => Progress::Met,
        Some(found) => Progress::Missing(format!("not {condition} ({}): {}", found.reason, found.message)),
        None => Progress::Missing(format!("it has no condition {condition}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn webhook(generation: i64, status: Value) -> Webhook {
        serde_json::from_value(json!({
            "apiVersion": "posthorn.dev/v1alpha1", "kind": "Webhook",
            "metadata": { "name": "hook", "generation": generation },
            "spec": { "url": "https://hooks.example.com/" }, "status": status,
        }))
        .unwrap()
    }

    fn ready(status: &str) -> Value {
        json!({ "observedGeneration": 2, "conditions": [{
            "type": "Ready", "status": status, "reason": "VerificationPending", "message": "It is being asked.",
            "lastTransitionTime": "2027-01-15T08:00:00Z",
        }]})
    }

    fn check(webhook: Option<&Webhook>, condition: &str, missing: Option<&str>) {
        let expected = missing.map_or(Progress::Met, |text| Progress::Missing(text.to_owned()));
        assert_eq!(judge(webhook, condition), expected);
    }

    #[test]
    fn a_condition_counts_for_the_present_generation_only() {
        check(Some(&webhook(2, ready("True"))), "Ready", None);
        let unseen = Some("Posthorn's controller has not looked at it yet");
        check(Some(&webhook(3, ready("True"))), "Ready", unseen);
        check(Some(&webhook(1, json!({ "observedGeneration": -1 }))), "Ready", unseen);
    }

    #[test]
    fn what_is_missing_is_said() {
        check(None, "Ready", Some("there is no such Webhook"));
        let pending = "not Ready (VerificationPending): It is being asked.";
        check(Some(&webhook(2, ready("False"))), "Ready", Some(pending));
        check(Some(&webhook(2, ready("True"))), "Verified", Some("it has no condition Verified"));
    }

    /// An API server whose Webhook becomes ready at the third look.
    fn client() -> Client {
        let looks = std::sync::atomic::AtomicU32::new(0);
        Client::new(
            tower::service_fn(move |_: http::Request<kube::client::Body>| {
                let look = looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let status = if look < 2 { ready("False") } else { ready("True") };
                let body = serde_json::to_vec(&webhook(2, status)).unwrap();
                async { Ok::<_, tower::BoxError>(http::Response::new(kube::client::Body::from(body))) }
            }),
            "shop",
        )
    }

    async fn run(condition: &str) -> (Result<(), WaitError>, Vec<String>) {
        let arguments = WaitArguments {
            webhook: "hook".into(),
            namespace: "shop".into(),
            condition: condition.into(),
            timeout: Gep2257Duration::from_secs(60),
        };
        let mut said = Vec::new();
        let result = wait(client(), &arguments, |text| said.push(text.to_string())).await;
        (result, said)
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_says_each_thing_once_and_ends_with_the_condition() {
        let (result, said) = run("Ready").await;
        result.unwrap();
        assert_eq!(said, ["shop/hook: not Ready (VerificationPending): It is being asked.", "shop/hook: Ready"]);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_with_its_time() {
        let (result, _) = run("Verified").await;
        assert!(matches!(result, Err(WaitError::TimedOut { .. })));
    }
}
