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

use crate::{api::DeliveryPool, runtime::secret::SecretBytes};

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
/// does nothing while the certificate is good for long enough. The Secret goes
/// when the pool goes.
///
/// # Errors
/// If the API server refuses, or if a Secret is damaged.
pub async fn ensure_serving_certificate(
    client: &Client,
    release_namespace: &str,
    pool: &DeliveryPool,
    now: Timestamp,
) -> Result<(), Error> {
    let secrets = secrets::Secrets::new(client, release_namespace);
    let authority = secrets.ensure_authority(now).await?;
    secrets.ensure_serving_certificate(&authority, pool, now).await
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::{Arc, Mutex},
    };

    use http::{Method, Request, Response, StatusCode};
    use http_body_util::BodyExt;
    use k8s_openapi::{ByteString, api::core::v1::Secret};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    /// The Secrets of an API server, and what was asked of it.
    #[derive(Clone, Default)]
    struct Server {
        secrets: Arc<Mutex<BTreeMap<String, Secret>>>,
        /// Secrets that another controller makes between a read and a create.
        raced: Arc<Mutex<BTreeMap<String, Secret>>>,
        writes: Arc<Mutex<Vec<String>>>,
    }

    impl Server {
        fn client(&self) -> Client {
            let server = self.clone();
            let service = tower::service_fn(move |request: Request<Body>| {
                let server = server.clone();
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    let name = parts.uri.path().rsplit('/').next().unwrap().to_owned();
                    let (status, answer) = server.answer(&parts.method, &name, &body);
                    let answer = Body::from(serde_json::to_vec(&answer).unwrap());
                    Ok::<_, tower::BoxError>(Response::builder().status(status).body(answer).unwrap())
                }
            });
            Client::new(service, "mail")
        }

        fn answer(&self, method: &Method, name: &str, body: &[u8]) -> (StatusCode, Value) {
            let mut secrets = self.secrets.lock().unwrap();
            let status = |code: StatusCode, reason: &str| {
                (code, json!({ "status": "Failure", "reason": reason, "code": code.as_u16(), "message": reason }))
            };
            if method == Method::GET {
                return match secrets.get(name) {
                    Some(secret) => (StatusCode::OK, serde_json::to_value(secret).unwrap()),
                    None => status(StatusCode::NOT_FOUND, "NotFound"),
                };
            }
            let secret: Secret = serde_json::from_slice(body).unwrap();
            let name = secret.metadata.name.clone().unwrap();
            if let Some(faster) = self.raced.lock().unwrap().remove(&name) {
                secrets.insert(name, faster);
                return status(StatusCode::CONFLICT, "AlreadyExists");
            }
            self.writes.lock().unwrap().push(format!("{method} {name}"));
            secrets.insert(name, secret);
            (StatusCode::OK, serde_json::from_slice(body).unwrap())
        }

        fn data(&self, secret: &str, key: &str) -> Vec<u8> {
            self.secrets.lock().unwrap()[secret].data.as_ref().unwrap()[key].0.clone()
        }

        fn change(&self, secret: &str, change: impl FnOnce(&mut Secret)) {
            change(self.secrets.lock().unwrap().get_mut(secret).unwrap());
        }

        fn set_data(&self, secret: &str, key: &str, value: &[u8]) {
            self.change(secret, |s| {
                s.data.as_mut().unwrap().insert(key.into(), ByteString(value.to_vec()));
            });
        }

        fn take_writes(&self) -> Vec<String> {
            std::mem::take(&mut self.writes.lock().unwrap())
        }

        async fn ensure_all(&self, now: Timestamp) -> Result<InternalMaterial, Error> {
            let material = ensure(&self.client(), "mail", now).await?;
            ensure_serving_certificate(&self.client(), "mail", &pool(), now).await?;
            Ok(material)
        }
    }

    fn pool() -> DeliveryPool {
        let mut pool = DeliveryPool::new("sturdy", Default::default());
        pool.metadata.uid = Some("6d1c".into());
        pool
    }

    fn start() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    #[tokio::test]
    async fn everything_is_made_once_and_then_left_alone() {
        let server = Server::default();
        let first = server.ensure_all(start()).await.unwrap();
        let made = ["POST posthorn-internal-ca", "POST posthorn-keys", "POST posthorn-sturdy-tls"];
        assert_eq!(server.take_writes(), made);
        let second = server.ensure_all(start()).await.unwrap();
        assert_eq!(server.take_writes(), Vec::<String>::new());
        assert_eq!((&first.ca_pem, &first.fingerprint_key), (&second.ca_pem, &second.fingerprint_key));
    }

    #[tokio::test]
    async fn the_slower_of_two_controllers_takes_what_the_faster_one_made() {
        let (slow, fast) = (Server::default(), Server::default());
        let made = fast.ensure_all(start()).await.unwrap();
        *slow.raced.lock().unwrap() = fast.secrets.lock().unwrap().clone();
        let taken = slow.ensure_all(start()).await.unwrap();
        assert_eq!((taken.ca_pem, taken.fingerprint_key), (made.ca_pem, made.fingerprint_key));
        assert_eq!(slow.data("posthorn-sturdy-tls", "tls.crt"), fast.data("posthorn-sturdy-tls", "tls.crt"));
    }

    #[tokio::test]
    async fn a_certificate_is_renewed_before_its_end_and_after_a_new_authority() {
        let server = Server::default();
        server.ensure_all(start()).await.unwrap();
        let later = start().checked_add(certificate::SERVING_LIFE).unwrap();
        server.take_writes();
        server.ensure_all(later).await.unwrap();
        assert_eq!(server.take_writes(), ["PUT posthorn-sturdy-tls"]);
        server.secrets.lock().unwrap().remove(CA_SECRET);
        server.ensure_all(later).await.unwrap();
        assert_eq!(server.take_writes(), ["POST posthorn-internal-ca", "PUT posthorn-sturdy-tls"]);
        assert_eq!(server.data("posthorn-sturdy-tls", "ca.crt"), server.data(CA_SECRET, "ca.crt"));
    }

    #[tokio::test]
    async fn a_damaged_key_is_never_overwritten() {
        let server = Server::default();
        server.ensure_all(start()).await.unwrap();
        server.take_writes();
        for wrong in [&b""[..], &[7; 31], &[7; 33]] {
            server.set_data(KEYS_SECRET, FINGERPRINT_KEY, wrong);
            let error = server.ensure_all(start()).await.unwrap_err();
            assert!(error.to_string().contains("Restore it"), "{error}");
            assert_eq!(server.data(KEYS_SECRET, FINGERPRINT_KEY), wrong);
        }
        assert_eq!(server.take_writes(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_damaged_authority_is_an_error_that_says_what_to_do() {
        for key in ["ca.crt", "ca.key"] {
            let server = Server::default();
            server.ensure_all(start()).await.unwrap();
            server.set_data(CA_SECRET, key, b"-----BEGIN");
            let error = server.ensure_all(start()).await.unwrap_err();
            assert!(matches!(error, Error::Damaged { .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn what_an_admin_gave_is_used_and_not_written() {
        let server = Server::default();
        server.ensure_all(start()).await.unwrap();
        for secret in [CA_SECRET, "posthorn-sturdy-tls"] {
            server.change(secret, |s| s.metadata.labels = None);
        }
        server.take_writes();
        server.ensure_all(start()).await.unwrap();
        let later = start().checked_add(certificate::SERVING_LIFE * 2).unwrap();
        let error = server.ensure_all(later).await.unwrap_err();
        assert!(error.to_string().contains("It was given"), "{error}");
        server.secrets.lock().unwrap().remove("posthorn-sturdy-tls");
        let error = server.ensure_all(start()).await.unwrap_err();
        assert!(error.to_string().contains("has to be given as well"), "{error}");
        assert_eq!(server.take_writes(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn the_certificate_goes_with_its_pool() {
        let server = Server::default();
        server.ensure_all(start()).await.unwrap();
        let secrets = server.secrets.lock().unwrap();
        let owner = &secrets["posthorn-sturdy-tls"].metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!((owner.kind.as_str(), owner.name.as_str(), owner.uid.as_str()), ("DeliveryPool", "sturdy", "6d1c"));
    }
}
