//! The server's certificate from a folder (`tls.crt`, `tls.key`), loaded again
//! when the files change: the kubelet renews a mounted Secret in place.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use sha2::{Digest, Sha256};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use super::health::ComponentHealth;

/// Time between two looks at the files. A renewed certificate overlaps the old
/// one by days.
pub const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// Bytes of a file at most.
pub const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Why there is no certificate. The texts name files, never what is in them.
#[derive(Debug, thiserror::Error)]
pub enum TlsFilesError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is longer than any certificate.
    #[error("{path} is longer than {FILE_BYTES_MAX} bytes")]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// No PEM, or not of this kind.
    #[error("{path} holds no PEM block of the right kind")]
    Pem {
        /// The file.
        path: PathBuf,
    },
    /// Key and certificate do not belong together, or cannot be used.
    #[error("the certificate and key in {folder} cannot be used together")]
    Pair {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// Follows the files of a folder until the receiver is dropped. `health` is ready
/// once there is a certificate; a pair that cannot be used later (half a renewal)
/// leaves the old one in place.
pub fn follow(folder: PathBuf, health: ComponentHealth) -> watch::Receiver<Option<Arc<ServerConfig>>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        let mut polls = interval(POLL_INTERVAL);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut files = TlsFiles { folder, loaded: None };
        let mut last_error = None;
        loop {
            tokio::select! { _ = polls.tick() => {}, () = sender.closed() => return }
            // Files of a Secret lie in memory: reading them does not block.
            match files.load_if_changed() {
                Ok(None) => last_error = None,
                Ok(Some(config)) => {
                    tracing::info!(folder = %files.folder.display(), "the TLS certificate was loaded");
                    last_error = None;
                    health.ready();
                    sender.send_replace(Some(Arc::new(config)));
                }
                Err(error) => {
                    let text = error.to_string();
                    if sender.borrow().is_none() {
                        health.not_ready(text.clone());
                    }
                    if last_error.as_ref() != Some(&text) {
                        tracing::warn!(error = &error as &dyn std::error::Error, "the TLS certificate is tried again");
                        last_error = Some(text);
                    }
                }
            }
        }
    });
    receiver
}

struct TlsFiles {
    folder: PathBuf,
    /// Hash of the files in use.
    loaded: Option<[u8; 32]>,
}

impl TlsFiles {
    fn load_if_changed(&mut self) -> Result<Option<ServerConfig>, TlsFilesError> {
        let (certificate_path, key_path) = (self.folder.join("tls.crt"), self.folder.join("tls.key"));
        let (certificate, key) = (read(&certificate_path)?, zeroize::Zeroizing::new(read(&key_path)?));
        let hash: [u8; 32] =
            Sha256::new().chain_update(Sha256::digest(&certificate)).chain_update(&*key).finalize().into();
        if self.loaded == Some(hash) {
            return Ok(None);
        }
        let chain = CertificateDer::pem_slice_iter(&certificate)
            .collect::<Result<Vec<_>, _>>()
            .ok()
            .filter(|chain| !chain.is_empty())
            .ok_or(TlsFilesError::Pem { path: certificate_path })?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| TlsFilesError::Pem { path: key_path })?;
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|source| TlsFilesError::Pair { folder: self.folder.clone(), source })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        self.loaded = Some(hash);
        Ok(Some(config))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsFilesError> {
    let failed = |source| TlsFilesError::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
        return Err(TlsFilesError::TooLong { path: path.to_owned() });
    }
    fs::read(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{health::Health, tls::install_provider};

    fn write_pair(folder: &Path) {
        let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        fs::write(folder.join("tls.crt"), pair.cert.pem()).unwrap();
        fs::write(folder.join("tls.key"), pair.signing_key.serialize_pem()).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_is_waited_for_renewed_and_kept_while_its_successor_is_broken() {
        install_provider();
        let folder = tempfile::tempdir().unwrap();
        let health = Health::default();
        let mut configs = follow(folder.path().to_owned(), health.component("tls"));
        tokio::time::sleep(POLL_INTERVAL / 2).await;
        let unready = health.unready().unwrap();
        assert!(unready.starts_with("tls: cannot read ") && unready.ends_with("tls.crt\n"), "{unready}");

        write_pair(folder.path());
        configs.changed().await.unwrap();
        assert_eq!(health.unready(), None);
        let first = configs.borrow_and_update().clone().unwrap();

        fs::write(folder.path().join("tls.crt"), "half a renewal").unwrap();
        tokio::time::sleep(POLL_INTERVAL * 3).await;
        assert!(!configs.has_changed().unwrap());
        assert_eq!(health.unready(), None);

        write_pair(folder.path());
        configs.changed().await.unwrap();
        assert!(!Arc::ptr_eq(&first, configs.borrow().as_ref().unwrap()));
    }

    #[test]
    fn a_key_of_another_certificate_and_a_file_too_long_are_refused() {
        install_provider();
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write_pair(folder.path());
        write_pair(other.path());
        fs::copy(other.path().join("tls.key"), folder.path().join("tls.key")).unwrap();
        let load = || TlsFiles { folder: folder.path().to_owned(), loaded: None }.load_if_changed();
        assert!(matches!(load(), Err(TlsFilesError::Pair { .. })));
        let fill =
            |bytes: u64| fs::write(folder.path().join("tls.key"), vec![b'x'; usize::try_from(bytes).unwrap()]).unwrap();
        fill(FILE_BYTES_MAX);
        assert!(matches!(load(), Err(TlsFilesError::Pem { .. })));
        fill(FILE_BYTES_MAX + 1);
        assert!(matches!(load(), Err(TlsFilesError::TooLong { .. })));
    }
}
