//! Kubernetes Events: told once at a transition, for people who look at an
//! object with `kubectl describe`. An Event lives an hour and is no record; one
//! that cannot be written is counted and forgotten.
//!
//! Not kube's Recorder: it keeps every Event of the last six minutes to fold
//! repeats, and at a transition there are none to fold.

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

use super::{metrics::Metrics, text::clipped};
use crate::api::{Reason, VERSION};

/// Bytes of a note at most; the API server refuses more.
pub const NOTE_BYTES_MAX: usize = 1024;
/// Who reports.
const REPORTER: &str = "posthorn.dev/controller";

/// What is told, before it is known of which object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Whether people should look at it.
    pub is_warning: bool,
    /// Why, in one word.
    pub reason: Reason,
    /// What happened. Without secrets.
    pub note: String,
}

/// Writes Events.
#[derive(Clone)]
pub struct EventWriter {
    client: Client,
    instance: String,
    metrics: Metrics,
}

impl EventWriter {
    /// A writer that reports as `instance`, the name of the pod.
    pub fn new(client: Client, instance: String, metrics: Metrics) -> Self {
        Self { client, instance, metrics }
    }

    /// Writes one Event about an object.
    pub async fn write(&self, notice: &Notice, object: ObjectReference, now: Timestamp) {
        let namespace = object.namespace.clone().unwrap_or_default();
        let event = event(notice, object, &self.instance, now);
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        if let Err(error) = api.create(&PostParams::default(), &event).await {
            self.metrics.events_failed.inc();
            tracing::debug!(namespace, reason = %notice.reason, %error, "an Event could not be written");
        }
    }
}

/// The reference of an object of one of our kinds.
pub fn reference(kind: &str, metadata: &ObjectMeta) -> ObjectReference {
    ObjectReference {
        api_version: Some(format!("{}/{VERSION}", crate::api::GROUP)),
        kind: Some(kind.to_owned()),
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        uid: metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

fn event(notice: &Notice, object: ObjectReference, instance: &str, now: Timestamp) -> Event {
    let note = clipped(notice.note.clone(), NOTE_BYTES_MAX);
    let name = object.name.as_deref().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            namespace: object.namespace.clone(),
            ..ObjectMeta::default()
        },
        action: Some("Verify".to_owned()),
        event_time: Some(MicroTime(now)),
        note: Some(note),
        reason: Some(notice.reason.to_string()),
        regarding: Some(object),
        reporting_controller: Some(REPORTER.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        type_: Some(if notice.is_warning { "Warning" } else { "Normal" }.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_cut_at_the_limit_between_characters() {
        let notice = Notice { is_warning: true, reason: Reason::SecretNotFound, note: "é".repeat(600) };
        let event = event(&notice, ObjectReference::default(), "pod", Timestamp::UNIX_EPOCH);
        assert_eq!(event.note.unwrap().len(), NOTE_BYTES_MAX);
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        assert_eq!(event.reason.as_deref(), Some("SecretNotFound"));
    }
}
