//! What the Secrets of a Webhook say, read piece by piece.

use crate::{
    api::{
        Problem, SecretKeyRef,
        webhook::{Dialect, HeaderFrom, Tls},
    },
    dialect::{SigningKey, SigningKeys},
    policy::sending::SendingSpec,
    runtime::secret::SecretString,
    secrets::reader::{HEADER_VALUE_BYTES_MAX, SecretError, SecretReader, URL_BYTES_MAX, Use, pem_of, text_of},
    wire::probe::TlsMaterial,
};

/// What the Secrets of a Webhook say.
#[derive(Clone, PartialEq, Eq)]
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

/// Not derived: nothing of it is for the eye.
impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Material")
    }
}

/// The URL of `urlFrom`.
///
/// # Errors
/// If there is no usable value, or the API server did not answer.
pub async fn url(reader: &mut SecretReader, reference: &SecretKeyRef) -> Result<SecretString, SecretError> {
    let value = reader.value(reference, Use::Url).await?;
    text_of(&value, reference, URL_BYTES_MAX).map_err(SecretError::Problem)
}

/// The keys that sign the requests to the Webhook of this name.
///
/// # Errors
/// As [`url`].
pub async fn keys(
    reader: &mut SecretReader,
    spec: &SendingSpec,
    webhook_name: &str,
) -> Result<SigningKeys, SecretError> {
    let Some(reference) = spec.signing.current(webhook_name) else { return Ok(SigningKeys::none()) };
    let current = key(reader, &reference, spec.dialect).await?;
    let previous = match spec.signing.previous() {
        None => None,
        Some(reference) => Some(key(reader, reference, spec.dialect).await?),
    };
    Ok(SigningKeys::new(current, previous))
}

async fn key(reader: &mut SecretReader, reference: &SecretKeyRef, dialect: Dialect) -> Result<SigningKey, SecretError> {
    let value = reader.value(reference, Use::Signing).await?;
    SigningKey::parse(dialect, value).map_err(|error| {
        let SecretKeyRef { name, key } = reference;
        SecretError::Problem(Problem::new(error.reason(), format!("Secret {name}, key {key}: {error}.")))
    })
}

/// The headers of `headersFrom`.
///
/// # Errors
/// As [`url`].
pub async fn headers(
    reader: &mut SecretReader,
    from: &[HeaderFrom],
) -> Result<Vec<(String, SecretString)>, SecretError> {
    let mut headers = Vec::with_capacity(from.len());
    for header in from {
        let value = reader.value(&header.secret_ref, Use::Header).await?;
        let value = text_of(&value, &header.secret_ref, HEADER_VALUE_BYTES_MAX).map_err(SecretError::Problem)?;
        headers.push((header.name.clone(), value));
    }
    Ok(headers)
}

/// The TLS settings with what their Secrets hold.
///
/// # Errors
/// As [`url`].
pub async fn tls(reader: &mut SecretReader, tls: &Tls) -> Result<TlsMaterial, SecretError> {
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

/// Everything but the URL, which is told even when the rest cannot be read.
///
/// # Errors
/// As [`url`].
pub async fn rest(
    reader: &mut SecretReader,
    spec: &SendingSpec,
    webhook_name: &str,
    url: Option<SecretString>,
) -> Result<Material, SecretError> {
    let keys = keys(reader, spec, webhook_name).await?;
    let headers = headers(reader, &spec.headers_from).await?;
    let tls = match &spec.tls {
        None => None,
        Some(settings) => Some(tls(reader, settings).await?),
    };
    Ok(Material { keys, url, headers, tls })
}
