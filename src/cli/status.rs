//! `kubectl posthorn status`: Webhooks as a table, and below it what those need
//! that are not ready.

use clap::ValueEnum;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use serde::Serialize;

use super::{CliError, Connection, Exit, connect, text};
use crate::{
    api::{
        ConditionType, Reason, Webhook, condition,
        webhook::{VerificationState, VerificationStatus},
    },
    runtime::clock,
};

#[derive(clap::Args, Debug)]
pub(super) struct StatusArguments {
    /// Name of one Webhook. Default: all of the namespace.
    webhook: Option<String>,
    /// All namespaces.
    #[arg(short = 'A', long, conflicts_with_all = ["webhook", "namespace"])]
    all_namespaces: bool,
    /// Format of the output.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

pub(super) async fn run(connection: Connection, arguments: StatusArguments) -> Result<Exit, CliError> {
    let cluster = connection.connect().await?;
    let place = if arguments.all_namespaces { "all namespaces" } else { &cluster.namespace };
    let webhooks = match &arguments.webhook {
        Some(name) => vec![cluster.get(name).await?],
        None if arguments.all_namespaces => connect::list(&Api::all(cluster.client.clone()), place).await?,
        None => connect::list(&cluster.webhooks(), place).await?,
    };
    let now = clock::now();
    let mut rows: Vec<Row> = webhooks.iter().map(|webhook| Row::of(webhook, now)).collect();
    rows.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    match arguments.output {
        Output::Json => {
            let list = serde_json::json!({ "webhooks": rows });
            text::print(&format!("{}\n", serde_json::to_string_pretty(&list).map_err(CliError::Json)?));
        }
        Output::Table if rows.is_empty() => text::talk(&format!(
            "No Webhooks in {place} yet. A Webhook says where events go: kubectl apply -f webhook.yaml makes one."
        )),
        Output::Table => text::print(&render(&rows, arguments.all_namespaces)),
    }
    Ok(Exit::Done)
}

/// A Webhook in one row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    namespace: String,
    name: String,
    endpoint: String,
    status: String,
    ready: String,
    reason: String,
    /// Why it is not ready and what to do; none if it is ready or nobody need act.
    message: Option<String>,
    /// What happens next, and who must act.
    next: String,
}

impl Row {
    pub(super) fn of(webhook: &Webhook, now: Timestamp) -> Self {
        let status = webhook.status.as_ref();
        let conditions = status.map(|s| s.conditions.as_slice()).unwrap_or_default();
        let verification = status.and_then(|s| s.verification.as_ref());
        let ready = condition::find(conditions, ConditionType::Ready);
        let current = is_current(webhook);
        let stalled = condition::is_true(conditions, ConditionType::Stalled);
        let shown = |text: &str| if text.is_empty() { "-".to_owned() } else { text::clean(text) };
        let state = verification.map_or(VerificationState::Unverified, |v| v.state);
        let reason = ready.map(|c| reason(&c.reason, verification)).unwrap_or_default();
        let needs_user = ready.is_some_and(|c| c.status != "True") && (stalled || !comes_by_itself(&reason));
        Self {
            namespace: webhook.metadata.namespace.clone().unwrap_or_default(),
            name: webhook.metadata.name.clone().unwrap_or_default(),
            endpoint: shown(status.and_then(|s| s.endpoint.as_deref()).unwrap_or_default()),
            status: format!("{state:?}"),
            ready: ready.filter(|_| current).map_or_else(|| "Unknown".to_owned(), |c| text::clean(&c.status)),
            reason: shown(&reason),
            message: ready.filter(|_| current && needs_user).map(|c| text::clean(&c.message)),
            next: next(current, stalled, ready.map(|c| c.reason.as_str()), verification, now),
        }
    }
}

/// Whether the controller has looked at this generation.
pub(super) fn is_current(webhook: &Webhook) -> bool {
    let observed = webhook.status.as_ref().and_then(|s| s.observed_generation);
    observed.is_some() && observed == webhook.metadata.generation
}

/// The reason of Ready; if verification is what is missing, the reason why the
/// last check failed, which says more.
fn reason(ready: &str, verification: Option<&VerificationStatus>) -> String {
    let missing = [Reason::VerificationPending, Reason::VerificationFailed].iter().any(|r| r.as_str() == ready);
    let told = verification.and_then(|v| v.reason.clone());
    told.filter(|_| missing).unwrap_or_else(|| ready.to_owned())
}

/// Whether this passes within moments and nobody need act.
fn comes_by_itself(reason: &str) -> bool {
    [Reason::Unverified, Reason::NotProgrammed, Reason::PodsStarting].iter().any(|r| r.as_str() == reason)
}

fn next(
    current: bool,
    stalled: bool,
    ready: Option<&str>,
    verification: Option<&VerificationStatus>,
    now: Timestamp,
) -> String {
    if !current {
        return "controller: read the spec".to_owned();
    }
    if ready == Some(Reason::Suspended.as_str()) {
        return "you: set spec.suspend to false".to_owned();
    }
    if ready == Some(Reason::NotProgrammed.as_str()) {
        return "pods: read the spec".to_owned();
    }
    let check = verification.and_then(|v| v.next_time.as_ref()).map(|t| text::until(now, t.0));
    match (stalled, check) {
        (true, Some(wait)) => format!("you; check in {wait}").replace("in now", "now"),
        (true, None) => "you".to_owned(),
        (false, Some(wait)) => format!("check in {wait}").replace("in now", "now"),
        (false, None) => "-".to_owned(),
    }
}

fn render(rows: &[Row], with_namespace: bool) -> String {
    let header = ["WEBHOOK", "ENDPOINT", "STATUS", "READY", "REASON", "NEXT"].map(str::to_owned);
    let cells = |row: &Row| {
        let Row { name, endpoint, status, ready, reason, next, .. } = row.clone();
        [name, endpoint, status, ready, reason, next]
    };
    let mut text = if with_namespace {
        let wide = |namespace: String, [a, b, c, d, e, f]: [String; 6]| [namespace, a, b, c, d, e, f];
        let mut table = vec![wide("NAMESPACE".to_owned(), header)];
        table.extend(rows.iter().map(|row| wide(row.namespace.clone(), cells(row))));
        text::table(&table)
    } else {
        let mut table = vec![header];
        table.extend(rows.iter().map(cells));
        text::table(&table)
    };
    for row in rows {
        if let Some(message) = &row.message {
            let name = if with_namespace { format!("{}/{}", row.namespace, row.name) } else { row.name.clone() };
            text.push_str(&format!("  {name}: {message}  → {}\n", command(row)));
        }
    }
    text
}

/// The command that helps next.
fn command(row: &Row) -> String {
    let failing = ["Pending", "Failed", "Gone", "Expired"].contains(&row.status.as_str());
    let about_secret_or_spec = row.reason.starts_with("Secret") || row.reason == Reason::InvalidSpec.as_str();
    let suspended = row.reason == Reason::Suspended.as_str();
    if failing && !about_secret_or_spec && !suspended {
        format!("kubectl posthorn verify {} -n {}", row.name, row.namespace)
    } else {
        format!("kubectl posthorn explain {}", row.reason)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: &str = "2026-11-23T12:00:00Z";

    fn webhook(name: &str, verification: Value, ready: (&str, &str, &str), other: Option<&str>) -> Webhook {
        let time = "2026-11-23T11:00:00Z";
        let condition = |type_: &str, status: &str, reason: &str, message: &str| json!({"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": time});
        let mut conditions = vec![condition("Ready", ready.0, ready.1, ready.2)];
        conditions.extend(other.map(|other| condition(other, "True", ready.1, ready.2)));
        let host = format!("https://{name}.example");
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop", "generation": 2},
            "spec": {"url": format!("{host}/hook?token=hunter2")},
            "status": {"observedGeneration": 2, "endpoint": host, "verification": verification, "conditions": conditions}
        }))
        .unwrap()
    }

    fn rows(webhooks: &[Webhook]) -> Vec<Row> {
        webhooks.iter().map(|w| Row::of(w, NOW.parse().unwrap())).collect()
    }

    #[test]
    fn the_table_says_what_is_next_and_who_must_act() {
        let webhooks = [
            webhook(
                "orders",
                json!({"state": "Verified", "nextTime": "2026-11-24T11:12:00Z"}),
                ("True", "Ready", "All is well."),
                None,
            ),
            webhook(
                "billing",
                json!({"state": "Pending", "nextTime": "2026-11-23T12:04:51Z", "reason": "BodyMismatch", "attempts": 3}),
                ("False", "VerificationPending", "The endpoint answered 200, but not with the challenge."),
                Some("Reconciling"),
            ),
            webhook(
                "crm",
                json!({"state": "Failed", "nextTime": "2026-11-23T11:59:00Z", "reason": "ConnectTimedOut", "attempts": 9}),
                ("False", "VerificationFailed", "No connection came about within 5 s."),
                Some("Stalled"),
            ),
            webhook(
                "held",
                json!({"state": "Unverified"}),
                ("False", "Suspended", "spec.suspend is true."),
                Some("Stalled"),
            ),
            webhook(
                "keyless",
                json!({"state": "Unverified"}),
                ("False", "SecretNotFound", "Secret shop/key does not exist."),
                Some("Reconciling"),
            ),
            webhook("new", json!({"state": "Unverified"}), ("False", "Unverified", "Wait."), Some("Reconciling")),
            webhook("soon", json!({"state": "Verified"}), ("False", "NotProgrammed", "Wait."), Some("Reconciling")),
        ];
        let expected = "\
WEBHOOK   ENDPOINT                  STATUS       READY   REASON            NEXT
orders    https://orders.example    Verified     True    Ready             check in 23h12m
billing   https://billing.example   Pending      False   BodyMismatch      check in 4m51s
crm       https://crm.example       Failed       False   ConnectTimedOut   you; check now
held      https://held.example      Unverified   False   Suspended         you: set spec.suspend to false
keyless   https://keyless.example   Unverified   False   SecretNotFound    -
new       https://new.example       Unverified   False   Unverified        -
soon      https://soon.example      Verified     False   NotProgrammed     pods: read the spec
  billing: The endpoint answered 200, but not with the challenge.  → kubectl posthorn verify billing -n shop
  crm: No connection came about within 5 s.  → kubectl posthorn verify crm -n shop
  held: spec.suspend is true.  → kubectl posthorn explain Suspended
  keyless: Secret shop/key does not exist.  → kubectl posthorn explain SecretNotFound
";
        assert_eq!(render(&rows(&webhooks), false), expected);
    }

    #[test]
    fn all_namespaces_have_a_column_of_their_own() {
        let webhook = webhook(
            "crm",
            json!({"state": "Failed", "reason": "NameNotResolved"}),
            ("False", "VerificationFailed", "No such name."),
            Some("Stalled"),
        );
        let expected = "\
NAMESPACE   WEBHOOK   ENDPOINT              STATUS   READY   REASON            NEXT
shop        crm       https://crm.example   Failed   False   NameNotResolved   you
  shop/crm: No such name.  → kubectl posthorn verify crm -n shop
";
        assert_eq!(render(&rows(&[webhook]), true), expected);
    }

    #[test]
    fn what_the_controller_has_not_seen_is_unknown() {
        let mut changed = webhook("a", json!({"state": "Verified"}), ("True", "Ready", "All is well."), None);
        changed.metadata.generation = Some(3);
        let row = Row::of(&changed, NOW.parse().unwrap());
        assert_eq!((row.ready.as_str(), row.next.as_str()), ("Unknown", "controller: read the spec"));
        let mut fresh = changed;
        fresh.status = None;
        let row = Row::of(&fresh, NOW.parse().unwrap());
        assert_eq!((row.status.as_str(), row.ready.as_str(), row.endpoint.as_str()), ("Unverified", "Unknown", "-"));
    }

    #[test]
    fn the_path_and_query_of_a_url_are_not_shown() {
        let webhook = webhook("a", json!({"state": "Verified"}), ("True", "Ready", "All is well."), None);
        let json = serde_json::to_string(&rows(&[webhook])).unwrap();
        assert!(!json.contains("hunter2"));
        assert!(json.starts_with(
            r#"[{"namespace":"shop","name":"a","endpoint":"https://a.example","status":"Verified","ready":"True""#
        ));
    }
}
