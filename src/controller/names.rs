//! Names and labels of what belongs to a pool. `ARCHITECTURE.md`, "Names in a
//! cluster", is the contract.

/// Label: which product.
pub const NAME_LABEL: &str = "app.kubernetes.io/name";
/// Value of [`NAME_LABEL`].
pub const NAME: &str = "posthorn";
/// Label: which part of the product.
pub const COMPONENT_LABEL: &str = "app.kubernetes.io/component";
/// Value of [`COMPONENT_LABEL`] on delivery pods and what belongs to them.
pub const DELIVERY: &str = "delivery";
/// Value of [`COMPONENT_LABEL`] on the controller.
pub const CONTROLLER: &str = "controller";
/// Label: who made and keeps the object.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY_LABEL`] on everything that the controller makes.
pub const MANAGED_BY: &str = "posthorn-controller";
/// ServiceAccount of delivery pods; the chart makes it.
pub const DELIVERY_SERVICE_ACCOUNT: &str = "posthorn-delivery";
/// Name of the volume claim template.
pub const STORE_VOLUME: &str = "store";

/// Name of a pool's StatefulSet, ingest Service, PodDisruptionBudget and NetworkPolicy.
pub fn base(pool: &str) -> String {
    format!("posthorn-{pool}")
}

/// Name of the headless Service that gives the pods their DNS names.
pub fn pods_service(pool: &str) -> String {
    format!("posthorn-{pool}-pods")
}

/// Name of the only pod.
pub fn pod(pool: &str) -> String {
    format!("posthorn-{pool}-0")
}

/// Name of the volume claim of the only pod.
pub fn store_claim(pool: &str) -> String {
    format!("{STORE_VOLUME}-posthorn-{pool}-0")
}

/// DNS name of the ingest Service.
pub fn service_host(pool: &str, release_namespace: &str) -> String {
    format!("{}.{release_namespace}.svc", base(pool))
}
