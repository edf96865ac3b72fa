//! The values of the Secrets that a Webhook names, read in one go; and the
//! Secret that the controller makes for a Webhook that names no signing key.

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

use crate::{
    api::{
        Reason, SecretKeyRef, WEBHOOK_LABEL, Webhook,
        defaults::{SIGNING_SECRET_KEY, SIGNING_SECRET_TYPE, signing_secret_name},
        webhook::{Dialect, Tls},
    },
    controller::{
        names::{MANAGED_BY, MANAGED_BY_LABEL},
        secrets::{
            HEADER_VALUE_BYTES_MAX, SecretError, SecretReader, URL_BYTES_MAX, Use, is_adoptable, pem_of, problem,
            text_of,
        },
    },
    dialect::{SigningKey, SigningKeys},
    runtime::{clock, secret::SecretString},
    verify::conditions::Problem,
    wire::probe::TlsMaterial,
};

/// Annotation of a made Secret: what it is, for whoever finds it.
const ABOUT_ANNOTATION: &str = "posthorn.dev/about";

/// What the Secrets of a Webhook say.
#[derive(Clone)]
pub struct Material {
    /// The keys that sign.
    pub keys: SigningKeys,
    /// The URL of `urlFrom`; none without `urlFrom`.
    pub url: Option<SecretString>,
    /// Headers from Secrets.
    pub headers: Vec<(String, SecretString)>,
    /// TLS settings; none if there are none to make.
    pub tls: Option<TlsMaterial>,
}

/// What came of reading: everything, or the first thing that is wrong. The URL
/// is told even then, if it could be read: whether an endpoint changed must be
/// known while a key is missing.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The values.
    pub material: Result<Material, Problem>,
    /// The URL of `urlFrom`, if it could be read.
    pub url: Option<SecretString>,
    /// The Secret with the signing key.
    pub secret_name: Option<String>,
}

/// Not derived: nothing of it is for the eye.
impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Material")
    }
}

/// Whether a Webhook gets a Secret made for it.
pub fn wants_made_secret(webhook: &Webhook) -> bool {
    !webhook.spec.is_unsigned() && webhook.spec.signing.as_ref().is_none_or(|signing| signing.secret_ref.is_none())
}

/// Whether a Webhook needs any Secret.
pub fn needs_secrets(webhook: &Webhook) -> bool {
    let spec = &webhook.spec;
    let tls = spec.tls.as_ref().is_some_and(|tls| tls.ca_ref.is_some() || tls.client_certificate_ref.is_some());
    !spec.is_unsigned() || spec.url_from.is_some() || !spec.headers_from.is_empty() || tls
}

/// Reads everything that a Webhook names, and makes its signing Secret if that
/// is ours to make and missing.
///
/// # Errors
/// If the API server did not answer. What users can mend is in the reading.
pub async fn read(client: &Client, webhook: &Webhook) -> Result<Reading, kube::Error> {
    let namespace = webhook.metadata.namespace.as_deref().unwrap_or_default();
    let mut reader = SecretReader::new(client.clone(), namespace);
    let url = match &webhook.spec.url_from {
        None => Ok(None),
        Some(reference) => tell(url(&mut reader, reference).await.map(Some))?,
    };
    let known_url = url.as_ref().ok().cloned().flatten();
    let secret_name = signing_reference(webhook).map(|reference| reference.name);
    let material = match url {
        Err(problem) => Err(problem),
        Ok(url) => tell(rest(client, &mut reader, webhook, url).await)?,
    };
    Ok(Reading { material, url: known_url, secret_name })
}

/// Parts what users can mend from what the API server did not say.
fn tell<T>(result: Result<T, SecretError>) -> Result<Result<T, Problem>, kube::Error> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(SecretError::Problem(problem)) => Ok(Err(problem)),
        Err(SecretError::Api(error)) => Err(error),
    }
}

async fn rest(
    client: &Client,
    reader: &mut SecretReader,
    webhook: &Webhook,
    url: Option<SecretString>,
) -> Result<Material, SecretError> {
    if wants_made_secret(webhook) {
        make_if_absent(client, reader, webhook).await?;
    }
    let keys = signing_keys(reader, webhook).await?;
    let mut headers = Vec::new();
    for header in &webhook.spec.headers_from {
        let value = reader.value(&header.secret_ref, Use::Header).await?;
        let value = text_of(&value, &header.secret_ref, HEADER_VALUE_BYTES_MAX).map_err(SecretError::Problem)?;
        headers.push((header.name.clone(), value));
    }
    let tls = match &webhook.spec.tls {
        None => None,
        Some(tls) => Some(tls_material(reader, tls).await?),
    };
    Ok(Material { keys, url, headers, tls })
}

async fn url(reader: &mut SecretReader, reference: &SecretKeyRef) -> Result<SecretString, SecretError> {
    let value = reader.value(reference, Use::Url).await?;
    text_of(&value, reference, URL_BYTES_MAX).map_err(SecretError::Problem)
}

fn signing_reference(webhook: &Webhook) -> Option<SecretKeyRef> {
    if webhook.spec.is_unsigned() {
        return None;
    }
    let named = webhook.spec.signing.as_ref().and_then(|signing| signing.secret_ref.clone());
    Some(named.unwrap_or_else(|| SecretKeyRef {
        name: signing_secret_name(webhook.metadata.name.as_deref().unwrap_or_default()),
        key: SIGNING_SECRET_KEY.to_owned(),
    }))
}

async fn signing_keys(reader: &mut SecretReader, webhook: &Webhook) -> Result<SigningKeys, SecretError> {
    let Some(reference) = signing_reference(webhook) else { return Ok(SigningKeys::none()) };
    let dialect = webhook.spec.effective_dialect();
    let current = signing_key(reader, &reference, dialect).await?;
    let previous = match webhook.spec.signing.as_ref().and_then(|signing| signing.previous_secret_ref.as_ref()) {
        None => None,
        Some(reference) => Some(signing_key(reader, reference, dialect).await?),
    };
    Ok(SigningKeys::new(current, previous))
}

async fn signing_key(
    reader: &mut SecretReader,
    reference: &SecretKeyRef,
    dialect: Dialect,
) -> Result<SigningKey, SecretError> {
    let value = reader.value(reference, Use::Signing).await?;
    SigningKey::parse(dialect, value).map_err(|error| {
        let SecretKeyRef { name, key } = reference;
        SecretError::Problem(problem(error.reason(), format!("Secret {name}, key {key}: {error}.")))
    })
}

async fn tls_material(reader: &mut SecretReader, tls: &Tls) -> Result<TlsMaterial, SecretError> {
    let mut material =
        TlsMaterial { ca_pem: None, client_certificate_pem: None, client_key_pem: None, min_version: tls.min_version };
    if let Some(reference) = &tls.ca_ref {
        let value = reader.value(reference, Use::Authorities).await?;
        let pem = pem_of(&value, &reference.name, &reference.key).map_err(SecretError::Problem)?;
        material.ca_pem = Some(pem.expose().to_owned());
    }
    if let Some(reference) = &tls.client_certificate_ref {
        let mut part = async |key: &str| {
            let of = SecretKeyRef { name: reference.name.clone(), key: key.to_owned() };
            let value = reader.value(&of, Use::ClientCertificate).await?;
            pem_of(&value, &of.name, key).map_err(SecretError::Problem)
        };
        material.client_certificate_pem = Some(part("tls.crt").await?.expose().to_owned());
        material.client_key_pem = Some(part("tls.key").await?);
    }
    Ok(material)
}

/// Makes the Secret `<webhook>-signing` unless one stands there. A fresh Webhook
/// has none, so for it the create comes first and its conflict is the exception;
/// a known one has it, so for that it is read first.
async fn make_if_absent(client: &Client, reader: &mut SecretReader, webhook: &Webhook) -> Result<(), SecretError> {
    let name = signing_secret_name(webhook.metadata.name.as_deref().unwrap_or_default());
    let is_known = webhook.status.as_ref().is_some_and(|status| status.secret_name.as_deref() == Some(&name));
    if is_known && let Some(secret) = reader.maybe_get(&name).await? {
        return adopt(&secret, &name);
    }
    let secret = made_secret(webhook, &name, &SigningKey::generate(clock::random_bytes()));
    let namespace = webhook.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    match api.create(&PostParams::default(), &secret).await {
        Ok(_) => {
            tracing::info!(namespace, webhook = webhook.metadata.name, secret = name, "made a signing Secret");
            reader.assume(&name, secret);
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 409 => {
            // A reading from before the create would say that there is none.
            *reader = SecretReader::new(client.clone(), namespace);
            match reader.maybe_get(&name).await? {
                Some(secret) => adopt(&secret, &name),
                // Deleted between the two calls: the next try makes it.
                None => Ok(()),
            }
        }
        Err(kube::Error::Api(status)) if status.code == 403 => Err(SecretError::Problem(problem(
            Reason::SecretNotReadable,
            format!(
                "Posthorn could not make Secret {name}: the API server refused it. Give its controller the right to create Secrets here, see whether a quota is used up, or name a Secret of yours in signing.secretRef."
            ),
        ))),
        Err(error) => Err(SecretError::Api(error)),
    }
}

fn adopt(secret: &Secret, name: &str) -> Result<(), SecretError> {
    if is_adoptable(secret) {
        return Ok(());
    }
    let type_ = secret.type_.as_deref().unwrap_or_default();
    Err(SecretError::Problem(problem(
        Reason::SecretTypeForbidden,
        format!(
            "Secret {name} stands where the signing key of this Webhook is kept, and is of type {type_}. Delete it, or name another Secret in signing.secretRef."
        ),
    )))
}

fn made_secret(webhook: &Webhook, name: &str, value: &SecretString) -> Secret {
    let webhook_name = webhook.metadata.name.clone().unwrap_or_default();
    let about = format!(
        "Signing key of Webhook {webhook_name}. Deleted 24 hours after the Webhook; a Webhook of the same name takes it up again."
    );
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: webhook.metadata.namespace.clone(),
            labels: Some(
                [(WEBHOOK_LABEL.to_owned(), webhook_name), (MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned())].into(),
            ),
            annotations: Some([(ABOUT_ANNOTATION.to_owned(), about)].into()),
            ..ObjectMeta::default()
        },
        type_: Some(SIGNING_SECRET_TYPE.to_owned()),
        data: Some([(SIGNING_SECRET_KEY.to_owned(), ByteString(value.expose().as_bytes().to_vec()))].into()),
        ..Secret::default()
    }
}

#[cfg(test)]
#[path = "material_tests.rs"]
mod tests;
