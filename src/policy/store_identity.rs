//! Whether a pod may use the store that it found on its volume.
//!
//! A store has a random id from the moment it was made; the pool's status keeps
//! the id of each pod's store. A volume that came up empty, or was swapped for
//! another, has another id: to go on silently would lose every event that the
//! recorded store owes. The pod asks this before it takes events, the controller
//! before it records an id, so they never differ.

use crate::api::{ACCEPT_NEW_STORE, ACCEPT_STORE_ANNOTATION, DeliveryPool};

/// Characters of a store's id at most.
pub const STORE_ID_CHARS_MAX: usize = 64;

/// What a pod's store is to its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreVerdict<'a> {
    /// None is recorded yet: this one is.
    First,
    /// It is the recorded one.
    Known,
    /// It is another one, and an admin said that it shall be used.
    Accepted,
    /// It is another one: the pod must not become ready.
    Mismatch {
        /// The recorded one.
        recorded: &'a str,
    },
}

impl StoreVerdict<'_> {
    /// Whether the pod may use the store.
    pub const fn is_usable(self) -> bool {
        !matches!(self, Self::Mismatch { .. })
    }

    /// Whether the store is to be recorded.
    pub const fn is_news(self) -> bool {
        matches!(self, Self::First | Self::Accepted)
    }
}

/// Judges the store `id` of this pod. A pod whose volume came up empty must have
/// seen its DeliveryPool before it asks: without it, every store is the first.
pub fn judge<'a>(pool: &'a DeliveryPool, pod: &str, id: &str) -> StoreVerdict<'a> {
    let stores = pool.status.as_ref().map(|status| status.stores.as_slice()).unwrap_or_default();
    let annotations = pool.metadata.annotations.as_ref();
    let accepted = annotations.and_then(|all| all.get(ACCEPT_STORE_ANNOTATION)).map(|id| id.trim());
    match stores.iter().find(|store| store.pod == pod) {
        None => StoreVerdict::First,
        Some(store) if store.id == id => StoreVerdict::Known,
        // A pod that may begin a new store does so on an empty volume only.
        Some(_) if accepted.is_some_and(|word| word == id || word == ACCEPT_NEW_STORE) => StoreVerdict::Accepted,
        Some(store) => StoreVerdict::Mismatch { recorded: &store.id },
    }
}

/// Whether a text can be the id of a store.
pub fn is_store_id(text: &str) -> bool {
    (1..=STORE_ID_CHARS_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pool(stores: serde_json::Value, accepted: &str) -> DeliveryPool {
        serde_json::from_value(json!({
            "apiVersion": "posthorn.dev/v1alpha1", "kind": "DeliveryPool",
            "metadata": { "name": "eu", "annotations": { ACCEPT_STORE_ANNOTATION: accepted } },
            "spec": {}, "status": { "stores": stores },
        }))
        .unwrap()
    }

    #[test]
    fn the_first_store_is_recorded_and_another_one_needs_an_admins_word() {
        let recorded = json!([{ "pod": "posthorn-eu-0", "id": "a1" }]);
        let judged = |stores, accepted, id| {
            let pool = pool(stores, accepted);
            let verdict = judge(&pool, "posthorn-eu-0", id);
            (verdict.is_usable(), verdict.is_news())
        };
        assert_eq!(judged(json!([]), "", "a1"), (true, true), "the first");
        assert_eq!(judged(json!([{ "pod": "posthorn-eu-1", "id": "z" }]), "", "a1"), (true, true), "another pod's");
        assert_eq!(judged(recorded.clone(), "", "a1"), (true, false), "known");
        assert_eq!(judged(recorded.clone(), "", "b2"), (false, false), "foreign, or a new one on an empty volume");
        assert_eq!(judged(recorded.clone(), "a1", "b2"), (false, false), "another one was accepted");
        assert_eq!(judged(recorded.clone(), " b2 ", "b2"), (true, true), "accepted");
        assert_eq!(judged(recorded.clone(), "new", "b2"), (true, true), "a new one was allowed");
        assert_eq!(judged(recorded, "new", "a1"), (true, false), "known all the same");
    }

    #[test]
    fn ids_fit_the_schema() {
        assert!(is_store_id("01KAQ7-abc") && is_store_id(&"a".repeat(64)));
        assert!(!is_store_id("") && !is_store_id(&"a".repeat(65)) && !is_store_id("a b"));
    }
}
