//! Namespace and name: how the controller's maps find an object.

use std::fmt;

use kube::{Resource, ResourceExt};
use kube_runtime::reflector::ObjectRef;

/// Namespace and name of an object of a namespaced kind. The kind is known from
/// where the key is used.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Namespace of the object.
    pub namespace: Box<str>,
    /// Name of the object.
    pub name: Box<str>,
}

impl ObjectKey {
    /// The key of these two.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object.
    pub fn of(object: &impl Resource) -> Self {
        Self::new(object.meta().namespace.as_deref().unwrap_or_default(), &object.name_any())
    }

    /// What the controller's queue calls the object.
    pub fn object_ref<K>(&self) -> ObjectRef<K>
    where
        K: Resource<DynamicType = ()>,
    {
        ObjectRef::new(&self.name).within(&self.namespace)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
