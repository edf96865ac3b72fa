//! The command line of the role.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::Config;
use crate::runtime::secret::SecretBytes;

/// Arguments of `posthorn inbox`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Address to listen on.
    #[arg(long, env = "POSTHORN_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// PEM certificate chain: serve HTTPS.
    #[arg(long, env = "POSTHORN_TLS_CERT", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// PEM key of the certificate.
    #[arg(long, env = "POSTHORN_TLS_KEY", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    #[command(flatten)]
    secret: SecretArguments,
}

/// Where the signing secret comes from. Not Debug: it may hold the value.
#[derive(clap::Args)]
#[group(multiple = false)]
struct SecretArguments {
    /// The signing secret itself. Everyone who may list processes sees it; use
    /// one of the other two for a secret that matters.
    #[arg(long, value_name = "VALUE")]
    secret: Option<String>,
    /// Name of the environment variable that holds the signing secret.
    #[arg(long, value_name = "VARIABLE")]
    secret_env: Option<String>,
    /// File that holds the signing secret, such as a mounted Secret.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

impl std::fmt::Debug for SecretArguments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

/// Why the arguments cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArgumentError {
    /// A file cannot be read.
    #[error("cannot read {path}: see whether it exists and is readable")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The variable is not set.
    #[error("the environment variable {0} is not set: set it or name another one with --secret-env")]
    VariableMissing(String),
    /// Not PEM.
    #[error("{path} holds no PEM {what}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key cannot be used.
    #[error("the certificate and key cannot be used for TLS")]
    Tls(#[source] rustls::Error),
}

impl Arguments {
    /// Reads the files and variables that the arguments name.
    ///
    /// # Errors
    /// If one is absent or cannot be used.
    pub fn into_config(self) -> Result<Config, ArgumentError> {
        let tls = match (self.tls_cert, self.tls_key) {
            (Some(certificate), Some(key)) => Some(Arc::new(tls(certificate, key)?)),
            _ => None,
        };
        Ok(Config { secret: self.secret.read()?, tls, print: true })
    }
}

impl SecretArguments {
    fn read(self) -> Result<Option<SecretBytes>, ArgumentError> {
        if let Some(variable) = self.secret_env {
            let value = std::env::var(&variable).map_err(|_| ArgumentError::VariableMissing(variable))?;
            return Ok(Some(SecretBytes::new(value.into_bytes())));
        }
        if let Some(path) = self.secret_file {
            let value = std::fs::read(&path).map_err(|source| ArgumentError::Read { path, source })?;
            return Ok(Some(SecretBytes::new(value)));
        }
        Ok(self.secret.map(|value| SecretBytes::new(value.into_bytes())))
    }
}

fn tls(certificate_path: PathBuf, key_path: PathBuf) -> Result<rustls::ServerConfig, ArgumentError> {
    let read =
        |path: &PathBuf| std::fs::read(path).map_err(|source| ArgumentError::Read { path: path.clone(), source });
    let (certificate, key) = (read(&certificate_path)?, read(&key_path)?);
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&certificate)
        .collect::<Result<_, _>>()
        .map_err(|source| ArgumentError::Pem { path: certificate_path, what: "certificate", source })?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|source| ArgumentError::Pem {
        path: key_path,
        what: "key",
        source,
    })?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(ArgumentError::Tls)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn config(arguments: &[&str]) -> Result<Config, String> {
        let command = Command::try_parse_from(["inbox"].iter().chain(arguments)).map_err(|e| e.kind().to_string())?;
        command.arguments.into_config().map_err(|e| e.to_string())
    }

    #[test]
    fn the_secret_comes_from_one_place_and_is_not_printed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, "hunter2").unwrap();
        let file = file.to_str().unwrap();
        for arguments in [["--secret", "hunter2"], ["--secret-file", file]] {
            let config = config(&arguments).unwrap();
            assert_eq!(config.secret.as_ref().unwrap().expose(), b"hunter2");
            assert!(!format!("{config:?}").contains("hunter2"));
        }
        let parsed = Command::try_parse_from(["inbox", "--secret", "hunter2"]).unwrap();
        assert!(!format!("{:?}", parsed.arguments).contains("hunter2"));
        assert!(config(&[]).unwrap().secret.is_none());
        // A variable that every process of a test run has.
        assert!(config(&["--secret-env", "PATH"]).unwrap().secret.is_some());
        config(&["--secret", "a", "--secret-file", "b"]).unwrap_err();
        let missing = config(&["--secret-env", "POSTHORN_NO_SUCH_VARIABLE"]).unwrap_err();
        assert!(missing.contains("POSTHORN_NO_SUCH_VARIABLE is not set"), "{missing}");
        let absent = config(&["--secret-file", "/nonexistent"]).unwrap_err();
        assert!(absent.contains("cannot read /nonexistent"), "{absent}");
    }

    #[test]
    fn certificate_and_key_belong_together_and_are_pem() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let made = rcgen::generate_simple_self_signed(vec!["inbox.example".to_owned()]).unwrap();
        let certificate = write("tls.crt", &made.cert.pem());
        let key = write("tls.key", &made.signing_key.serialize_pem());
        let other = rcgen::generate_simple_self_signed(vec!["other.example".to_owned()]).unwrap();
        let other_key = write("other.key", &other.signing_key.serialize_pem());
        let both = |certificate: &str, key: &str| config(&["--tls-cert", certificate, "--tls-key", key]);
        assert!(both(&certificate, &key).unwrap().tls.is_some());
        assert!(both(&certificate, &certificate).unwrap_err().contains("tls.crt holds no PEM key"));
        assert!(both(&certificate, &other_key).unwrap_err().contains("cannot be used for TLS"));
        assert!(both(&key, &key).unwrap_err().contains("cannot be used for TLS"));
        config(&["--tls-cert", &certificate]).unwrap_err();
    }
}
