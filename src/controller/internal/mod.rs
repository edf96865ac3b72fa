//! What Posthorn's parts need to trust each other: an authority of their own, a
//! serving certificate for the pods of each pool, the key of the fingerprints.
//!
//! Everything is kept in Secrets of the release's namespace. A Secret that
//! stands there without the label `app.kubernetes.io/managed-by:
//! posthorn-controller` was given by an admin: it is used and never written.
//! Two controllers that start at once meet at the API server: the second one's
//! create is refused, and it takes what the first one made.

mod certificate;
mod secrets;

use k8s_openapi::jiff::Timestamp;
use kube::Client;

use crate::runtime::secret::SecretBytes;

pub use secrets::Error;

/// Name of the Secret that holds the authority: `ca.crt`, `ca.key`.
pub const CA_SECRET: &str = "posthorn-internal-ca";
/// Name of the Secret that holds the key of the fingerprints.
pub const KEYS_SECRET: &str = "posthorn-keys";
/// Key of [`KEYS_SECRET`] under which the fingerprint key lies.
pub const FINGERPRINT_KEY: &str = "fingerprint";
/// Length of the fingerprint key.
pub const FINGERPRINT_KEY_BYTES: usize = 32;

/// What the controller needs to talk to delivery pods and to judge fingerprints.
#[derive(Clone, Debug)]
pub struct InternalMaterial {
    /// PEM certificates of the authorities that sign the pods' certificates.
    pub ca_pem: String,
    /// The key of the fingerprints, [`FINGERPRINT_KEY_BYTES`] long.
    pub fingerprint_key: SecretBytes,
}

/// Name of the Secret that holds the serving certificate of a pool's pods:
/// `tls.crt`, `tls.key`, `ca.crt`.
pub fn tls_secret_name(pool: &str) -> String {
    format!("posthorn-{pool}-tls")
}

/// The name in the certificate that every pod of a pool shows, and how to dial
/// pod `ordinal`: `posthorn-P-0.posthorn-P-pods.NAMESPACE.svc`.
pub fn pod_host(pool: &str, ordinal: u32, release_namespace: &str) -> String {
    format!("posthorn-{pool}-{ordinal}.posthorn-{pool}-pods.{release_namespace}.svc")
}

/// Makes what is missing of the authority and the fingerprint key, and returns
/// both. May be repeated at any time and by several processes at once.
///
/// # Errors
/// If the API server refuses, or if a Secret is damaged. The fingerprint key is
/// never overwritten: with a new one every Webhook would have to be verified again.
pub async fn ensure(client: &Client, release_namespace: &str, now: Timestamp) -> Result<InternalMaterial, Error> {
    let secrets = secrets::Secrets::new(client, release_namespace);
    let authority = secrets.ensure_authority(now).await?;
    let fingerprint_key = secrets.ensure_fingerprint_key().await?;
    Ok(InternalMaterial { ca_pem: authority.ca_pem, fingerprint_key })
}

/// Makes or renews the serving certificate of a pool's pods. To be repeated: it
/// does nothing while the certificate is good for long enough.
///
/// # Errors
/// If the API server refuses, or if a Secret is damaged.
pub async fn ensure_serving_certificate(
    client: &Client,
    release_namespace: &str,
    pool: &str,
    now: Timestamp,
) -> Result<(), Error> {
    let secrets = secrets::Secrets::new(client, release_namespace);
    let authority = secrets.ensure_authority(now).await?;
    secrets.ensure_serving_certificate(&authority, pool, now).await
}
