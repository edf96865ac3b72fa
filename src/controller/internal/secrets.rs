//! The Secrets of the internal trust: read, made if absent, renewed.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret, jiff::Timestamp};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ObjectMeta, PostParams},
};

use super::{
    CA_SECRET, FINGERPRINT_KEY, FINGERPRINT_KEY_BYTES, KEYS_SECRET,
    certificate::{self, Pair, Verdict},
    pod_host, tls_secret_name,
};
use crate::{
    api::{DeliveryPool, FIELD_MANAGER, POOL_LABEL},
    controller::names,
    runtime::{
        clock,
        secret::{SecretBytes, SecretString},
    },
};

/// Key of the authority's certificate in a Secret.
const CA_CERTIFICATE: &str = "ca.crt";
/// Key of the authority's key in a Secret.
const CA_KEY: &str = "ca.key";
/// Key of a certificate in a Secret of type [`TLS_TYPE`].
const TLS_CERTIFICATE: &str = "tls.crt";
/// Key of a certificate's key in a Secret of type [`TLS_TYPE`].
const TLS_KEY: &str = "tls.key";
const TLS_TYPE: &str = "kubernetes.io/tls";
const OPAQUE_TYPE: &str = "Opaque";

/// Why the internal trust could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A Secret could not be read.
    #[error("cannot read Secret {namespace}/{name}")]
    Read {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What the API server said.
        source: Box<kube::Error>,
    },
    /// A Secret could not be made or renewed.
    #[error("cannot write Secret {namespace}/{name}")]
    Write {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What the API server said.
        source: Box<kube::Error>,
    },
    /// A Secret does not hold what it must.
    #[error("Secret {namespace}/{name} is damaged: {problem}. {cure}")]
    Damaged {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
        /// What to do about it.
        cure: &'static str,
    },
    /// A key or a certificate could not be made.
    #[error("cannot make the certificate for Secret {namespace}/{name}")]
    Certificate {
        /// Namespace of the Secret.
        namespace: String,
        /// Name of the Secret.
        name: String,
        /// What the library said.
        source: rcgen::Error,
    },
}

/// The authority as it stands in its Secret.
pub(super) struct Authority {
    pub(super) ca_pem: String,
    /// None where an admin gave the authority's certificate without its key,
    /// or an authority that is not of our making.
    maybe_key: Option<SecretString>,
}

/// The Secrets of the release's namespace.
pub(super) struct Secrets<'a> {
    api: Api<Secret>,
    namespace: &'a str,
}

impl<'a> Secrets<'a> {
    pub(super) fn new(client: &Client, namespace: &'a str) -> Self {
        Self { api: Api::namespaced(client.clone(), namespace), namespace }
    }

    pub(super) async fn ensure_authority(&self, now: Timestamp) -> Result<Authority, Error> {
        let secret = match self.maybe_get(CA_SECRET).await? {
            Some(secret) => secret,
            None => {
                let made = certificate::make_authority(now).map_err(|source| self.cannot_make(CA_SECRET, source))?;
                let data =
                    [(CA_CERTIFICATE, made.certificate_pem.as_bytes()), (CA_KEY, made.key_pem.expose().as_bytes())];
                self.create_or_take(new_secret(CA_SECRET, OPAQUE_TYPE, None, data)).await?
            }
        };
        read_authority(&secret).map_err(|problem| self.damaged(CA_SECRET, problem, CURE_AUTHORITY))
    }

    pub(super) async fn ensure_fingerprint_key(&self) -> Result<SecretBytes, Error> {
        let secret = match self.maybe_get(KEYS_SECRET).await? {
            Some(secret) => secret,
            None => {
                let key = SecretBytes::new(clock::random_bytes::<FINGERPRINT_KEY_BYTES>().to_vec());
                self.create_or_take(new_secret(KEYS_SECRET, OPAQUE_TYPE, None, [(FINGERPRINT_KEY, key.expose())]))
                    .await?
            }
        };
        read_fingerprint_key(&secret).map_err(|problem| self.damaged(KEYS_SECRET, problem, CURE_KEYS))
    }

    pub(super) async fn ensure_serving_certificate(
        &self,
        authority: &Authority,
        pool: &DeliveryPool,
        now: Timestamp,
    ) -> Result<(), Error> {
        let pool_name = pool.name_any();
        let name = tls_secret_name(&pool_name);
        let existing = self.maybe_get(&name).await?;
        let verdict = existing.as_ref().map(|secret| judge_serving(secret, authority, &pool_name, self.namespace, now));
        if verdict == Some(Verdict::Good) {
            return Ok(());
        }
        if existing.as_ref().is_some_and(|secret| !is_ours(secret)) {
            return self.judge_given(&name, verdict);
        }
        let Some(key) = &authority.maybe_key else {
            return Err(self.damaged(&name, "it is absent or about to end", CURE_GIVEN_AUTHORITY));
        };
        tracing::info!(secret = %name, reason = ?verdict, "making the serving certificate of a pool");
        let made = certificate::make_serving(key, &serving_names(&pool_name, self.namespace), now)
            .map_err(|source| self.cannot_make(&name, source))?;
        let data = [
            (TLS_CERTIFICATE, made.certificate_pem.as_bytes()),
            (TLS_KEY, made.key_pem.expose().as_bytes()),
            (CA_CERTIFICATE, authority.ca_pem.as_bytes()),
        ];
        let wanted = new_secret(&name, TLS_TYPE, Some(pool), data);
        match existing {
            None => self.create_or_take(wanted).await.map(drop),
            Some(existing) => self.renew(&name, existing, wanted).await,
        }
    }

    /// A certificate that an admin gave is theirs to renew: near its end it is
    /// still good, refused it is an error that says so.
    fn judge_given(&self, name: &str, verdict: Option<Verdict>) -> Result<(), Error> {
        match verdict {
            Some(Verdict::Ending) => {
                tracing::warn!(secret = name, "a given certificate ends soon: renew it");
                Ok(())
            }
            _ => Err(self.damaged(name, "clients would refuse its certificate", CURE_GIVEN_CERTIFICATE)),
        }
    }

    async fn maybe_get(&self, name: &str) -> Result<Option<Secret>, Error> {
        self.api.get_opt(name).await.map_err(|source| self.cannot_read(name, source))
    }

    /// Creates the Secret; if another controller was faster, takes its Secret.
    async fn create_or_take(&self, secret: Secret) -> Result<Secret, Error> {
        let name = secret.name_any();
        match self.api.create(&post_params(), &secret).await {
            Ok(created) => Ok(created),
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                self.api.get(&name).await.map_err(|source| self.cannot_read(&name, source))
            }
            Err(source) => Err(self.cannot_write(&name, source)),
        }
    }

    /// Replaces the data of a Secret; if another controller was faster, leaves
    /// it to that one: its certificate is as good.
    async fn renew(&self, name: &str, mut existing: Secret, wanted: Secret) -> Result<(), Error> {
        existing.data = wanted.data;
        existing.metadata.owner_references = wanted.metadata.owner_references;
        existing.metadata.managed_fields = None;
        match self.api.replace(name, &post_params(), &existing).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(()),
            Err(source) => Err(self.cannot_write(name, source)),
        }
    }

    fn damaged(&self, name: &str, problem: &'static str, cure: &'static str) -> Error {
        Error::Damaged { namespace: self.namespace.to_owned(), name: name.to_owned(), problem, cure }
    }

    fn cannot_read(&self, name: &str, source: kube::Error) -> Error {
        Error::Read { namespace: self.namespace.to_owned(), name: name.to_owned(), source: Box::new(source) }
    }

    fn cannot_write(&self, name: &str, source: kube::Error) -> Error {
        Error::Write { namespace: self.namespace.to_owned(), name: name.to_owned(), source: Box::new(source) }
    }

    fn cannot_make(&self, name: &str, source: rcgen::Error) -> Error {
        Error::Certificate { namespace: self.namespace.to_owned(), name: name.to_owned(), source }
    }
}

const CURE_AUTHORITY: &str = "Restore it from a backup, or delete it: Posthorn then makes a new authority and new \
                              certificates for its pods";
const CURE_KEYS: &str = "Restore it from a backup. If there is none, delete it: Posthorn then makes a new key, and \
                         every Webhook is verified again";
const CURE_GIVEN_AUTHORITY: &str = "The authority in Secret posthorn-internal-ca was given without a key that \
                                    Posthorn may use, so the certificate has to be given as well: tls.crt and \
                                    tls.key for *.posthorn-<pool>-pods.<namespace>.svc";
const CURE_GIVEN_CERTIFICATE: &str = "It was given, so Posthorn does not change it. Give a certificate that is \
                                      valid, for *.posthorn-<pool>-pods.<namespace>.svc, and signed by the \
                                      authority in Secret posthorn-internal-ca; or delete it and Posthorn makes one";

/// DNS names in the certificate of a pool's pods; `localhost` serves people who
/// forward a port, and tests.
fn serving_names(pool: &str, namespace: &str) -> Vec<String> {
    let service = format!("{}.{namespace}.svc", names::pods_service(pool));
    vec![format!("*.{service}"), service, "localhost".to_owned()]
}

fn read_authority(secret: &Secret) -> Result<Authority, &'static str> {
    let ca_pem = text(secret, CA_CERTIFICATE).ok_or("it has no ca.crt")?;
    if !certificate::is_authority(&ca_pem) {
        return Err("its ca.crt is not a PEM certificate");
    }
    if !is_ours(secret) {
        return Ok(Authority { ca_pem, maybe_key: None });
    }
    let key = SecretString::new(text(secret, CA_KEY).ok_or("it has no ca.key")?);
    if !certificate::is_key_of(&ca_pem, &key) {
        return Err("its ca.key does not belong to its ca.crt");
    }
    Ok(Authority { ca_pem, maybe_key: Some(key) })
}

fn read_fingerprint_key(secret: &Secret) -> Result<SecretBytes, &'static str> {
    match secret.data.as_ref().and_then(|data| data.get(FINGERPRINT_KEY)) {
        None => Err("it has no fingerprint"),
        Some(ByteString(key)) if key.len() != FINGERPRINT_KEY_BYTES => Err("its fingerprint is not 32 bytes long"),
        Some(ByteString(key)) => Ok(SecretBytes::new(key.clone())),
    }
}

fn judge_serving(secret: &Secret, authority: &Authority, pool: &str, namespace: &str, now: Timestamp) -> Verdict {
    let (Some(certificate_pem), Some(key_pem)) = (text(secret, TLS_CERTIFICATE), text(secret, TLS_KEY)) else {
        return Verdict::Damaged;
    };
    if is_ours(secret) && text(secret, CA_CERTIFICATE).as_deref() != Some(authority.ca_pem.as_str()) {
        return Verdict::Refused;
    }
    let pair = Pair { certificate_pem, key_pem: SecretString::new(key_pem) };
    certificate::judge(&authority.ca_pem, &pair, &pod_host(pool, 0, namespace), now)
}

fn is_ours(secret: &Secret) -> bool {
    secret.labels().get(names::MANAGED_BY_LABEL).is_some_and(|by| by == names::MANAGED_BY)
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    let ByteString(bytes) = secret.data.as_ref()?.get(key)?;
    String::from_utf8(bytes.clone()).ok()
}

fn new_secret<'a>(
    name: &str,
    type_: &str,
    maybe_pool: Option<&DeliveryPool>,
    data: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> Secret {
    let mut labels = BTreeMap::from([
        (names::NAME_LABEL.to_owned(), names::NAME.to_owned()),
        (names::MANAGED_BY_LABEL.to_owned(), names::MANAGED_BY.to_owned()),
    ]);
    labels.extend(maybe_pool.map(|pool| (POOL_LABEL.to_owned(), pool.name_any())));
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels),
            owner_references: maybe_pool.and_then(|pool| pool.controller_owner_ref(&())).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        type_: Some(type_.to_owned()),
        data: Some(data.into_iter().map(|(key, value)| (key.to_owned(), ByteString(value.to_vec()))).collect()),
        ..Secret::default()
    }
}

fn post_params() -> PostParams {
    PostParams { dry_run: false, field_manager: Some(FIELD_MANAGER.to_owned()) }
}
