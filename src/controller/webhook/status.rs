//! Status: written when it differs, by server-side apply.

use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use crate::{
    api::{GROUP, STATUS_FIELD_MANAGER, VERSION},
    controller::key::ObjectKey,
};

/// Applies the status of an object and returns its new version.
///
/// The uid goes along: a namesake that was made meanwhile answers with a
/// conflict and does not get the status of its predecessor.
///
/// # Errors
/// If the API server refuses or does not answer.
pub async fn write<K>(
    client: &Client,
    key: &ObjectKey,
    uid: &str,
    status: &impl Serialize,
) -> Result<Option<String>, kube::Error>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let api: Api<K> = Api::namespaced(client.clone(), &key.namespace);
    let body = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": K::kind(&()),
        "metadata": { "name": key.name, "namespace": key.namespace, "uid": uid },
        "status": status,
    });
    let parameters = PatchParams::apply(STATUS_FIELD_MANAGER).force();
    let written = api.patch_status(&key.name, &parameters, &Patch::Apply(&body)).await?;
    Ok(written.meta().resource_version.clone())
}
