//! TLS settings of connections to endpoints.
//!
//! The public roots are loaded once and shared; a configuration with its own
//! authority or client certificate costs some kilobytes and is cached by
//! [`super::Clients`] under the hash of its material.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    version::{TLS12, TLS13},
};
use sha2::{Digest, Sha256};

use crate::{
    api::{Reason, webhook::TlsVersion},
    wire::probe::{PEM_BYTES_MAX, TlsMaterial},
};

/// Certificates in one field at most.
pub const CERTIFICATES_MAX: usize = 64;

const ONLY_TLS13: &[&SupportedProtocolVersion] = &[&TLS13];
const TLS12_AND_TLS13: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

/// Why the material of `spec.tls` cannot be used. The texts name the field and
/// never repeat its value.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Too long.
    #[error("{field} is longer than {PEM_BYTES_MAX} bytes or has more than {CERTIFICATES_MAX} certificates")]
    TooLong {
        /// The field.
        field: &'static str,
    },
    /// No PEM in it, or not of this kind.
    #[error("{field} has no PEM block of the right kind: it must hold {expected}")]
    Pem {
        /// The field.
        field: &'static str,
        /// What must be there.
        expected: &'static str,
    },
    /// A certificate that cannot be read.
    #[error("{field} has a certificate that cannot be read")]
    Certificate {
        /// The field.
        field: &'static str,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// Certificate without key or the other way round.
    #[error("{CERTIFICATE_FIELD} needs both tls.crt and tls.key")]
    Incomplete,
    /// The key is not that of the certificate, or of a kind that is not known.
    #[error("the key in {CERTIFICATE_FIELD} cannot be used with its certificate")]
    Key(#[source] rustls::Error),
    /// The versions do not fit the library: a mistake of ours.
    #[error("the versions of TLS cannot be set")]
    Versions(#[source] rustls::Error),
}

const CA_FIELD: &str = "spec.tls.caRef";
const CERTIFICATE_FIELD: &str = "spec.tls.clientCertificateRef";

impl TlsError {
    /// The reason in the status of the Webhook.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Versions(_) => Reason::Internal,
            _ => Reason::SecretInvalid,
        }
    }

    /// The sentence in the status of the Webhook.
    pub fn message(&self) -> String {
        self.to_string()
    }
}

/// The authorities of the system, or Mozilla's list where the system has none
/// (an image from scratch). Reads files: call it once.
pub fn public_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "a part of the system's certificate authorities cannot be read");
    }
    let (_, ignored) = roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        tracing::info!(ignored, "the system has no certificate authorities: using the built-in list");
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

/// Identifies material without keeping it.
pub(super) fn fingerprint(material: &TlsMaterial) -> [u8; 32] {
    let TlsMaterial { ca_pem, client_certificate_pem, client_key_pem, min_version } = material;
    let mut hash = Sha256::new();
    let key = client_key_pem.as_ref().map(|key| key.expose());
    for part in [ca_pem.as_deref(), client_certificate_pem.as_deref(), key] {
        // The length keeps the parts apart; absent is not empty.
        hash.update(part.map_or(u64::MAX, |part| part.len() as u64).to_be_bytes());
        hash.update(part.unwrap_or_default());
    }
    hash.update([match min_version {
        None => 0,
        Some(TlsVersion::Tls12) => 12,
        Some(TlsVersion::Tls13) => 13,
    }]);
    hash.finalize().into()
}

/// The configuration for material: its authority instead of the public roots,
/// its client certificate, its lowest version.
///
/// # Errors
/// [`TlsError`], which names the field.
pub fn configure(material: Option<&TlsMaterial>, roots: &Arc<RootCertStore>) -> Result<ClientConfig, TlsError> {
    let none = TlsMaterial { ca_pem: None, client_certificate_pem: None, client_key_pem: None, min_version: None };
    let TlsMaterial { ca_pem, client_certificate_pem, client_key_pem, min_version } = material.unwrap_or(&none);
    let versions = match min_version {
        Some(TlsVersion::Tls13) => ONLY_TLS13,
        Some(TlsVersion::Tls12) | None => TLS12_AND_TLS13,
    };
    let roots = match ca_pem {
        Some(pem) => Arc::new(read_authorities(pem)?),
        None => roots.clone(),
    };
    let provider: Arc<CryptoProvider> = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions);
    let builder = builder.map_err(TlsError::Versions)?.with_root_certificates(roots);
    let mut config = match (client_certificate_pem, client_key_pem) {
        (None, None) => builder.with_no_client_auth(),
        (Some(certificate), Some(key)) => {
            let chain = read_certificates(certificate, CERTIFICATE_FIELD)?;
            let key = read_key(key.expose())?;
            builder.with_client_auth_cert(chain, key).map_err(TlsError::Key)?
        }
        _ => return Err(TlsError::Incomplete),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn read_authorities(pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(pem, CA_FIELD)? {
        roots.add(certificate).map_err(|source| TlsError::Certificate { field: CA_FIELD, source })?;
    }
    Ok(roots)
}

fn read_certificates(pem: &str, field: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = TlsError::Pem { field, expected: "one or more certificates (BEGIN CERTIFICATE)" };
    if pem.len() > PEM_BYTES_MAX {
        return Err(TlsError::TooLong { field });
    }
    let Ok(certificates) = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>() else {
        return Err(wrong);
    };
    match certificates.len() {
        0 => Err(wrong),
        1..=CERTIFICATES_MAX => Ok(certificates),
        _ => Err(TlsError::TooLong { field }),
    }
}

fn read_key(pem: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    if pem.len() > PEM_BYTES_MAX {
        return Err(TlsError::TooLong { field: CERTIFICATE_FIELD });
    }
    let expected = "an unencrypted private key (BEGIN PRIVATE KEY)";
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| TlsError::Pem { field: CERTIFICATE_FIELD, expected })
}
