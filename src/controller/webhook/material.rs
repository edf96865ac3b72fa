//! The values of the Secrets that a Webhook names, read in one go; and the
//! Secret that the controller makes for a Webhook that names no signing key.
//! Reading itself is `crate::secrets`, which the pods share.

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

use crate::{
    api::{
        Problem, Reason, WEBHOOK_LABEL, Webhook,
        defaults::{SIGNING_SECRET_KEY, SIGNING_SECRET_TYPE, signing_secret_name},
    },
    controller::names::{MANAGED_BY, MANAGED_BY_LABEL},
    dialect::SigningKey,
    policy::sending::SendingSpec,
    runtime::{clock, secret::SecretString},
    secrets::{Material, SecretError, SecretReader, material},
};

/// Annotation of a made Secret: what it is, for whoever finds it.
const ABOUT_ANNOTATION: &str = "posthorn.dev/about";

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
        Some(reference) => tell(material::url(&mut reader, reference).await.map(Some))?,
    };
    let known_url = url.as_ref().ok().cloned().flatten();
    let spec = SendingSpec::compile(&webhook.spec);
    let name = webhook.metadata.name.as_deref().unwrap_or_default();
    let secret_name = spec.signing.current(name).map(|reference| reference.name);
    let material = match url {
        Err(problem) => Err(problem),
        Ok(url) => tell(rest(client, &mut reader, webhook, &spec, url).await)?,
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
    spec: &SendingSpec,
    url: Option<SecretString>,
) -> Result<Material, SecretError> {
    if wants_made_secret(webhook) {
        make_if_absent(client, reader, webhook).await?;
    }
    material::rest(reader, spec, webhook.metadata.name.as_deref().unwrap_or_default(), url).await
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
        Err(kube::Error::Api(status)) if status.code == 403 => Err(SecretError::Problem(Problem::new(
            Reason::SecretNotReadable,
            format!(
                "Posthorn could not make Secret {name}: the API server refused it. Give its controller the right to create Secrets here, see whether a quota is used up, or name a Secret of yours in signing.secretRef."
            ),
        ))),
        Err(error) => Err(SecretError::Api(error)),
    }
}

/// Whether a Secret that stands under the name of a made one may be taken for it.
fn is_adoptable(secret: &Secret) -> bool {
    matches!(secret.type_.as_deref(), None | Some("Opaque" | SIGNING_SECRET_TYPE))
}

fn adopt(secret: &Secret, name: &str) -> Result<(), SecretError> {
    if is_adoptable(secret) {
        return Ok(());
    }
    let type_ = secret.type_.as_deref().unwrap_or_default();
    Err(SecretError::Problem(Problem::new(
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
