//! Objects in memory, smaller than they are.
//!
//! The watch cache keeps metadata without managedFields and foreign annotations,
//! and the rest as the bytes of its JSON: 2.0 KiB for a verified Webhook, where
//! the parsed object takes 2.7 (10,000 of each, measured). A reconcile parses it
//! again, which takes microseconds. An object that cannot be parsed is kept with
//! the reason, so that one bad object never stops a watch.

use std::{borrow::Cow, fmt, marker::PhantomData};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Resource,
    core::{DeserializeGuard, error_boundary::InvalidObject},
};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};

use super::text::clipped;
use crate::api::{RELOAD_ANNOTATION, VERIFY_REQUESTED_ANNOTATION};

/// Bytes of a parser's complaint that are kept.
const ERROR_BYTES_MAX: usize = 512;

/// An object of kind `K` as the watch cache keeps it.
pub struct Cached<K> {
    meta: ObjectMeta,
    body: Result<Box<[u8]>, Box<str>>,
    kind: PhantomData<fn() -> K>,
}

/// The object does not fit its own type: it is older than a rule of the schema,
/// or came in while the schema was another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the object cannot be read: {0}")]
pub struct Unreadable(String);

impl<K: Resource + Serialize + DeserializeOwned> Cached<K> {
    /// The whole object.
    ///
    /// # Errors
    /// If it could not be read when it came in.
    pub fn object(&self) -> Result<K, Unreadable> {
        let bytes = self.body.as_ref().map_err(|reason| Unreadable(reason.to_string()))?;
        let mut object: K = serde_json::from_slice(bytes).map_err(|e| Unreadable(e.to_string()))?;
        *object.meta_mut() = self.meta.clone();
        Ok(object)
    }

    fn new(mut object: K) -> Self {
        let meta = slim(std::mem::take(object.meta_mut()));
        let body = serde_json::to_vec(&object).map(Vec::into_boxed_slice).map_err(|e| e.to_string().into_boxed_str());
        Self { meta, body, kind: PhantomData }
    }

    fn invalid(object: InvalidObject) -> Self {
        let reason = clipped(object.error, ERROR_BYTES_MAX);
        Self { meta: slim(object.metadata), body: Err(reason.into_boxed_str()), kind: PhantomData }
    }
}

impl<K> Cached<K> {
    /// Generation of the spec.
    pub fn generation(&self) -> Option<i64> {
        self.meta.generation
    }

    /// Bytes that the body takes.
    pub fn body_bytes(&self) -> usize {
        self.body.as_ref().map_or_else(|reason| reason.len(), |bytes| bytes.len())
    }
}

/// What a decision may need of the metadata.
fn slim(meta: ObjectMeta) -> ObjectMeta {
    let ObjectMeta {
        name,
        namespace,
        uid,
        resource_version,
        generation,
        creation_timestamp,
        deletion_timestamp,
        annotations,
        ..
    } = meta;
    let annotations = annotations.map(|mut all| {
        all.retain(|name, _| name == VERIFY_REQUESTED_ANNOTATION || name == RELOAD_ANNOTATION);
        all
    });
    ObjectMeta {
        name,
        namespace,
        uid,
        resource_version,
        generation,
        creation_timestamp,
        deletion_timestamp,
        annotations: annotations.filter(|all| !all.is_empty()),
        ..ObjectMeta::default()
    }
}

impl<'de, K: Resource + Serialize + DeserializeOwned> Deserialize<'de> for Cached<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let DeserializeGuard(object) = DeserializeGuard::<K>::deserialize(deserializer)?;
        Ok(object.map_or_else(Self::invalid, Self::new))
    }
}

impl<K> Clone for Cached<K> {
    fn clone(&self) -> Self {
        Self { meta: self.meta.clone(), body: self.body.clone(), kind: PhantomData }
    }
}

/// Not derived: the body would be a list of numbers.
impl<K> fmt::Debug for Cached<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cached({:?}/{:?})", self.meta.namespace, self.meta.name)
    }
}

impl<K: Resource> Resource for Cached<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::Webhook;

    fn cached(spec: serde_json::Value) -> Cached<Webhook> {
        serde_json::from_value(json!({
            "apiVersion": "posthorn.dev/v1alpha1", "kind": "Webhook",
            "metadata": {
                "name": "orders", "namespace": "shop", "uid": "u", "generation": 3,
                "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "{}", "posthorn.dev/reload": "1" },
                "managedFields": [{ "manager": "kubectl" }], "labels": { "team": "a" }
            },
            "spec": spec,
            "status": { "observedGeneration": 2 }
        }))
        .unwrap()
    }

    #[test]
    fn an_object_comes_back_as_it_was_without_the_ballast() {
        let webhook = cached(json!({ "url": "https://a.example/x", "suspend": true })).object().unwrap();
        assert_eq!(webhook.spec.url.as_deref(), Some("https://a.example/x"));
        assert_eq!(webhook.status.unwrap().observed_generation, Some(2));
        let annotations: Vec<_> = webhook.metadata.annotations.unwrap().into_keys().collect();
        assert_eq!(annotations, ["posthorn.dev/reload"]);
        assert_eq!((webhook.metadata.generation, webhook.metadata.managed_fields), (Some(3), None));
    }

    #[test]
    fn an_object_that_cannot_be_parsed_keeps_its_name_and_says_why() {
        let bad = cached(json!({ "url": 7 }));
        assert_eq!(bad.meta().name.as_deref(), Some("orders"));
        let error = bad.object().unwrap_err().to_string();
        assert!(error.contains("cannot be read") && error.contains("string"), "{error}");
    }
}
