//! The status of a pool: what it says (pure), and the write.

use k8s_openapi::{
    api::{apps::v1::StatefulSet, core::v1::Pod},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{apply, validate::Invalid};
use crate::{
    api::{
        ACCEPT_STORE_ANNOTATION, ConditionStatus, ConditionType, DeliveryPool, DeliveryPoolStatus, Reason,
        STATUS_FIELD_MANAGER,
        condition::{self, WantedCondition},
        pool::StoreStatus,
    },
    controller::{internal, names},
    policy::store_identity::{self, StoreVerdict},
    wire::index_feed::{Counters, StoreProblem},
};

/// Longest text of the API server that goes into a message.
const DETAIL_CHARS_MAX: usize = 512;

/// What a reconcile came to.
pub(super) enum Outcome<'a> {
    /// The spec cannot work.
    Invalid(&'a Invalid),
    /// The certificate or the keys could not be had.
    Untrusted(&'a internal::Error),
    /// The API server refused a part.
    NotApplied(&'a apply::Error),
    /// Everything is applied.
    Applied { maybe_stateful_set: Option<&'a StatefulSet>, pods: &'a [Pod], store: PodStore },
}

/// What the pool's pod says of its store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PodStore {
    /// Nothing: it cannot be asked, or it opens it just now.
    Untold,
    /// It has the store of this id.
    Open(String),
    /// It does not open what it found.
    Refused(StoreProblem),
}

impl PodStore {
    /// What the pod's counters say.
    pub(super) fn told(counters: Counters) -> Self {
        match (counters.store_id, counters.store_problem) {
            (Some(id), _) if store_identity::is_store_id(&id) => Self::Open(id),
            (None, Some(problem)) => Self::Refused(problem),
            _ => Self::Untold,
        }
    }
}

/// Whether the pod does not open what it found.
pub(super) const fn is_refused(outcome: &Outcome<'_>) -> bool {
    matches!(outcome, Outcome::Applied { store: PodStore::Refused(_), .. })
}

/// The status of a pool could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the status of DeliveryPool {name}")]
pub struct Error {
    name: String,
    source: Box<kube::Error>,
}

/// Writes the status, if it is not so already.
pub(super) async fn write(client: &Client, pool: &DeliveryPool, wanted: DeliveryPoolStatus) -> Result<(), Error> {
    if pool.status.as_ref() == Some(&wanted) {
        return Ok(());
    }
    let name = pool.name_any();
    let patch = json!({
        "apiVersion": DeliveryPool::api_version(&()),
        "kind": DeliveryPool::kind(&()),
        // The UID keeps a slow write from reaching a pool made later under the same name.
        "metadata": { "name": name, "uid": pool.metadata.uid },
        "status": wanted,
    });
    Api::<DeliveryPool>::all(client.clone())
        .patch_status(&name, &PatchParams::apply(STATUS_FIELD_MANAGER).force(), &Patch::Apply(&patch))
        .await
        .map(drop)
        .map_err(|source| Error { name, source: Box::new(source) })
}

/// The status that the outcome calls for.
pub(super) fn wanted(
    pool: &DeliveryPool,
    outcome: &Outcome<'_>,
    release_namespace: &str,
    now: Timestamp,
) -> DeliveryPoolStatus {
    let existing = pool.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let generation = pool.metadata.generation;
    let ready_replicas = match outcome {
        Outcome::Applied { maybe_stateful_set, .. } => Some(maybe_stateful_set.map_or(0, ready_replicas)),
        _ => pool.status.as_ref().and_then(|status| status.ready_replicas),
    };
    DeliveryPoolStatus {
        observed_generation: generation,
        conditions: condition::merge(existing, &conditions(pool, outcome), generation, now),
        service: Some(names::service_host(&pool.name_any(), release_namespace)),
        ready_replicas,
        stores: stores(pool, outcome),
    }
}

/// The recorded stores, with one that is seen for the first time or was accepted.
fn stores(pool: &DeliveryPool, outcome: &Outcome<'_>) -> Vec<StoreStatus> {
    let mut stores = pool.status.as_ref().map(|status| status.stores.clone()).unwrap_or_default();
    let Outcome::Applied { store: PodStore::Open(id), .. } = outcome else { return stores };
    let pod = names::pod(&pool.name_any());
    if store_identity::judge(pool, &pod, id).is_news() {
        stores.retain(|store| store.pod != pod);
        stores.push(StoreStatus { pod, id: id.clone() });
    }
    stores
}

/// A pod whose volume has another store than the recorded one: it does not open
/// it, or it did so before one was recorded.
fn refused(pool: &DeliveryPool, outcome: &Outcome<'_>) -> Option<(Reason, String)> {
    let Outcome::Applied { store, .. } = outcome else { return None };
    let pod = names::pod(&pool.name_any());
    let id = match store {
        PodStore::Untold => return None,
        PodStore::Refused(StoreProblem { reason, message }) => {
            return Some((*reason, format!("Pod {pod} does not open its store: {}.", clean(message))));
        }
        PodStore::Open(id) => id,
    };
    let StoreVerdict::Mismatch { recorded } = store_identity::judge(pool, &pod, id) else { return None };
    let message = format!(
        "The volume of pod {pod} has the store {id}, and {recorded} is recorded for it: the volume was emptied or swapped. Bring the right volume back, or restore a backup. To go on with this store, set the annotation {ACCEPT_STORE_ANNOTATION} to {id}; what the other one owes is then not delivered."
    );
    Some((Reason::StoreMismatch, message))
}

fn conditions(pool: &DeliveryPool, outcome: &Outcome<'_>) -> Vec<WantedCondition> {
    let (ready, maybe_why, reason, message) = match refused(pool, outcome) {
        Some((reason, message)) => (ConditionStatus::False, Some(ConditionType::Stalled), reason, message),
        None => judge(outcome),
    };
    let condition = |type_, status| WantedCondition { type_, status, reason, message: message.clone() };
    let mut conditions = vec![condition(ConditionType::Ready, ready)];
    conditions.extend(maybe_why.map(|type_| condition(type_, ConditionStatus::True)));
    conditions
}

/// Whether the pool is ready; if not, whether that will change by itself.
fn judge(outcome: &Outcome<'_>) -> (ConditionStatus, Option<ConditionType>, Reason, String) {
    use ConditionStatus::{False, True};
    match outcome {
        Outcome::Invalid(invalid) => {
            (False, Some(ConditionType::Stalled), Reason::InvalidSpec, format!("The spec cannot be used: {invalid}."))
        }
        Outcome::Untrusted(error) => judge_untrusted(error),
        Outcome::NotApplied(error) => {
            let Some(source) = error.maybe_kube() else {
                return (False, Some(ConditionType::Reconciling), Reason::PodsStarting, format!("{error}."));
            };
            (False, Some(lasting(source)), Reason::ApplyFailed, format!("{error}: {}", detail(source)))
        }
        Outcome::Applied { maybe_stateful_set: Some(stateful_set), .. } if is_rolled_out(stateful_set) => {
            (True, None, Reason::PodsReady, "All pods of the pool are ready.".to_owned())
        }
        Outcome::Applied { pods, .. } => {
            (False, Some(ConditionType::Reconciling), Reason::PodsStarting, starting(pods))
        }
    }
}

fn judge_untrusted(error: &internal::Error) -> (ConditionStatus, Option<ConditionType>, Reason, String) {
    use ConditionStatus::False;
    match error {
        internal::Error::Damaged { .. } => {
            (False, Some(ConditionType::Stalled), Reason::SecretInvalid, format!("{error}."))
        }
        internal::Error::Certificate { .. } => {
            (False, Some(ConditionType::Reconciling), Reason::Internal, format!("{error}."))
        }
        internal::Error::Read { source, .. } => {
            (False, Some(lasting(source)), Reason::SecretNotReadable, format!("{error}: {}", detail(source)))
        }
        internal::Error::Write { source, .. } => {
            (False, Some(lasting(source)), Reason::ApplyFailed, format!("{error}: {}", detail(source)))
        }
    }
}

/// What the API server will go on to refuse needs help.
fn lasting(error: &kube::Error) -> ConditionType {
    match error {
        kube::Error::Api(status) if status.is_invalid() || status.is_forbidden() => ConditionType::Stalled,
        _ => ConditionType::Reconciling,
    }
}

/// The API server's own words, which name objects of the release's namespace
/// only; of other failures just that there was one, because they name addresses.
fn detail(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => clean(&status.message),
        _ => "the API server did not answer as it should; the controller's log has more.".to_owned(),
    }
}

fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(DETAIL_CHARS_MAX).collect()
}

fn ready_replicas(stateful_set: &StatefulSet) -> i32 {
    stateful_set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0)
}

/// Whether all pods are ready and of the newest template.
fn is_rolled_out(stateful_set: &StatefulSet) -> bool {
    let Some(status) = &stateful_set.status else { return false };
    let wanted = stateful_set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    stateful_set.metadata.deletion_timestamp.is_none()
        && status.observed_generation >= stateful_set.metadata.generation
        && status.ready_replicas.unwrap_or(0) >= wanted
        && status.updated_replicas.unwrap_or(0) >= wanted
        && status.current_revision == status.update_revision
}

/// Says which pod waits for what, as far as the API server knows.
fn starting(pods: &[Pod]) -> String {
    let waiting: Vec<String> =
        pods.iter().filter_map(|pod| Some(format!("{} waits: {}.", pod.name_any(), waits_for(pod)?))).collect();
    if waiting.is_empty() { "The pods are being made or replaced.".to_owned() } else { waiting.join(" ") }
}

fn waits_for(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let unscheduled = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if let Some(condition) = unscheduled {
        let reason = condition.reason.as_deref().unwrap_or("NotScheduled");
        return Some(format!("{reason}, {}", clean(condition.message.as_deref().unwrap_or("no node fits"))));
    }
    let container = status.container_statuses.iter().flatten().find(|container| !container.ready)?;
    let state = container.state.as_ref()?;
    let restarts = container.restart_count;
    match (&state.waiting, &state.running) {
        (Some(waiting), _) => Some(format!(
            "{} ({restarts} restarts)",
            clean(waiting.reason.as_deref().unwrap_or("its container is being made"))
        )),
        (None, Some(_)) => Some(format!("it runs and is not ready yet ({restarts} restarts), its log says why")),
        (None, None) => Some(format!("its container ended ({restarts} restarts)")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn pool() -> DeliveryPool {
        serde_json::from_value(json!({
            "apiVersion": "posthorn.dev/v1alpha1", "kind": "DeliveryPool",
            "metadata": { "name": "sturdy", "generation": 7 }, "spec": {}, "status": { "readyReplicas": 1 },
        }))
        .unwrap()
    }

    fn stateful_set(status: Value) -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": { "generation": 3 }, "spec": { "replicas": 1, "selector": {}, "template": {} }, "status": status,
        }))
        .unwrap()
    }

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "posthorn-sturdy-0" }, "status": status })).unwrap()
    }

    fn api_error(code: u16, reason: &str) -> kube::Error {
        kube::Error::Api(kube::core::Status::failure("the\nwords", reason).with_code(code).boxed())
    }

    /// Conditions as `type=status reason`, then the message.
    fn check(outcome: &Outcome<'_>, expected: &[&str], message: &str) {
        let status = wanted(&pool(), outcome, "mail", Timestamp::from_second(1_800_000_000).unwrap());
        let got: Vec<_> = status.conditions.iter().map(|c| format!("{}={} {}", c.type_, c.status, c.reason)).collect();
        assert_eq!(got, expected);
        assert!(status.conditions.iter().all(|c| c.message == message), "{}", status.conditions[0].message);
        assert_eq!(
            (status.observed_generation, status.service.as_deref()),
            (Some(7), Some("posthorn-sturdy.mail.svc"))
        );
    }

    fn rolled_out() -> Value {
        json!({
            "observedGeneration": 3, "replicas": 1, "readyReplicas": 1, "updatedReplicas": 1,
            "currentRevision": "a", "updateRevision": "a",
        })
    }

    #[test]
    fn a_pool_is_ready_when_every_pod_is_ready_and_new() {
        let ready = stateful_set(rolled_out());
        let outcome = Outcome::Applied { maybe_stateful_set: Some(&ready), pods: &[], store: PodStore::Untold };
        check(&outcome, &["Ready=True PodsReady"], "All pods of the pool are ready.");
    }

    #[test]
    fn a_pool_is_not_ready_while_anything_is_old_or_missing() {
        for (field, value) in [
            ("observedGeneration", json!(2)),
            ("readyReplicas", json!(0)),
            ("updatedReplicas", json!(0)),
            ("updateRevision", json!("b")),
        ] {
            let mut status = rolled_out();
            status[field] = value;
            let stateful_set = stateful_set(status);
            let outcome =
                Outcome::Applied { maybe_stateful_set: Some(&stateful_set), pods: &[], store: PodStore::Untold };
            check(
                &outcome,
                &["Ready=False PodsStarting", "Reconciling=True PodsStarting"],
                "The pods are being made or replaced.",
            );
        }
    }

    #[test]
    fn a_store_is_recorded_once_and_another_one_stalls_the_pool_until_it_is_accepted() {
        let ready = stateful_set(rolled_out());
        let told = |pool: &DeliveryPool, id: &str| {
            let outcome =
                Outcome::Applied { maybe_stateful_set: Some(&ready), pods: &[], store: PodStore::Open(id.into()) };
            let status = wanted(pool, &outcome, "mail", Timestamp::from_second(1_800_000_000).unwrap());
            let reasons: Vec<_> =
                status.conditions.iter().map(|c| format!("{}={} {}", c.type_, c.status, c.reason)).collect();
            (status.stores.iter().map(|s| format!("{} {}", s.pod, s.id)).collect::<Vec<_>>(), reasons, status)
        };
        let mut pool = pool();
        let (stores, reasons, status) = told(&pool, "a1");
        assert_eq!((stores, reasons), (vec!["posthorn-sturdy-0 a1".into()], vec!["Ready=True PodsReady".into()]));
        pool.status = Some(status);

        let (stores, reasons, status) = told(&pool, "b2");
        assert_eq!(stores, ["posthorn-sturdy-0 a1"]);
        assert_eq!(reasons, ["Ready=False StoreMismatch", "Stalled=True StoreMismatch"]);
        let message = &status.conditions[0].message;
        assert!(
            message.contains("has the store b2, and a1 is recorded") && message.contains("accept-store to b2"),
            "{message}"
        );

        pool.annotations_mut().insert(ACCEPT_STORE_ANNOTATION.into(), "b2".into());
        let (stores, reasons, _) = told(&pool, "b2");
        assert_eq!((stores, reasons), (vec!["posthorn-sturdy-0 b2".into()], vec!["Ready=True PodsReady".into()]));
    }

    #[test]
    fn a_pod_that_does_not_open_its_volume_stalls_the_pool_with_its_own_words() {
        let problem = json!({
            "reason": "StoreMismatch",
            "message": "the volume in /data is empty,\nbut DeliveryPool sturdy has store a1; mount it",
        });
        let counters = json!({
            "instance": "i", "revision": 1, "webhooks": 0, "subscriptions": 0, "probes": 0, "storeProblem": problem,
        });
        let store = PodStore::told(serde_json::from_value(counters).unwrap());
        // Whatever the API server says of the pod just now.
        let ready = stateful_set(rolled_out());
        let outcome = Outcome::Applied { maybe_stateful_set: Some(&ready), pods: &[], store };
        check(
            &outcome,
            &["Ready=False StoreMismatch", "Stalled=True StoreMismatch"],
            "Pod posthorn-sturdy-0 does not open its store: the volume in /data is empty, but DeliveryPool sturdy has store a1; mount it.",
        );
        assert!(is_refused(&outcome));
        let recorded = wanted(&pool(), &outcome, "mail", Timestamp::from_second(1_800_000_000).unwrap()).stores;
        assert_eq!(recorded, []);
    }

    #[test]
    fn the_message_says_what_a_pod_waits_for() {
        let check_pod = |status: Value, message: &str| {
            let pods = [pod(status)];
            let outcome = Outcome::Applied { maybe_stateful_set: None, pods: &pods, store: PodStore::Untold };
            check(&outcome, &["Ready=False PodsStarting", "Reconciling=True PodsStarting"], message);
        };
        check_pod(
            json!({ "conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available"
            }]}),
            "posthorn-sturdy-0 waits: Unschedulable, 0/1 nodes are available.",
        );
        let container = |state: Value| {
            json!({ "containerStatuses": [{
                "name": "delivery", "image": "a", "imageID": "", "ready": false, "restartCount": 2, "state": state
            }]})
        };
        check_pod(
            container(
                json!({ "waiting": { "reason": "ImagePullBackOff", "message": "https://registry.test/secret" } }),
            ),
            "posthorn-sturdy-0 waits: ImagePullBackOff (2 restarts).",
        );
        check_pod(
            container(json!({ "running": {} })),
            "posthorn-sturdy-0 waits: it runs and is not ready yet (2 restarts), its log says why.",
        );
    }

    #[test]
    fn a_refusal_that_will_last_is_stalled_and_another_is_tried_again() {
        let apply = |source| apply::Error::Apply { kind: "Service", name: "a".into(), source: Box::new(source) };
        for (code, reason, last) in
            [(422, "Invalid", "Stalled"), (403, "Forbidden", "Stalled"), (500, "InternalError", "Reconciling")]
        {
            let error = apply(api_error(code, reason));
            let second = format!("{last}=True ApplyFailed");
            check(
                &Outcome::NotApplied(&error),
                &["Ready=False ApplyFailed", &second],
                "cannot apply Service a: the words",
            );
        }
    }

    #[test]
    fn a_spec_that_cannot_work_and_a_damaged_secret_are_stalled() {
        let invalid = Invalid::NotASize { size: "x".into() };
        check(
            &Outcome::Invalid(&invalid),
            &["Ready=False InvalidSpec", "Stalled=True InvalidSpec"],
            "The spec cannot be used: store.size is x, which is not a size such as 10Gi.",
        );
        let damaged = internal::Error::Damaged {
            namespace: "mail".into(),
            name: "posthorn-keys".into(),
            problem: "it has no fingerprint",
            cure: "Restore it",
        };
        check(
            &Outcome::Untrusted(&damaged),
            &["Ready=False SecretInvalid", "Stalled=True SecretInvalid"],
            "Secret mail/posthorn-keys is damaged: it has no fingerprint. Restore it.",
        );
    }
}
