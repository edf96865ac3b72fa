//! The key of fingerprints from the folder of keys, followed when it changes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use zeroize::Zeroizing;

use super::run_dir::{FINGERPRINT_KEY_BYTES, RunDir};
use crate::{runtime::health::ComponentHealth, verify::fingerprint::FingerprintKey};

/// Time between two looks at the file.
pub const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// Name of the file.
pub const FILE: &str = "fingerprint";

type Key = Zeroizing<[u8; FINGERPRINT_KEY_BYTES]>;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
enum KeyFileError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not {FINGERPRINT_KEY_BYTES} bytes long")]
    Length { path: PathBuf },
}

/// Follows the key until the receiver is dropped. `health` is ready once there is
/// one; without a file the key of the time before a restart is used, and a file
/// that cannot be used leaves the old key in place.
pub fn follow(
    folder: &Path,
    run_dir: Option<Arc<RunDir>>,
    health: ComponentHealth,
) -> watch::Receiver<Option<FingerprintKey>> {
    let (sender, receiver) = watch::channel(None);
    let path = folder.join(FILE);
    tokio::spawn(async move {
        let mut polls = interval(POLL_INTERVAL);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut known: Option<Key> = None;
        loop {
            tokio::select! { _ = polls.tick() => {}, () = sender.closed() => return }
            // Files of a Secret lie in memory: reading them does not block.
            let key = match read(&path) {
                Ok(key) => {
                    if known.as_ref() != Some(&key) {
                        keep(run_dir.as_deref(), &key);
                    }
                    key
                }
                Err(_) if known.is_some() => continue,
                Err(error) => {
                    let Some(kept) = run_dir.as_deref().and_then(kept) else {
                        health.not_ready(error.to_string());
                        continue;
                    };
                    kept
                }
            };
            if known.as_ref() != Some(&key) {
                tracing::info!("the key of fingerprints was loaded");
                sender.send_replace(Some(FingerprintKey::new(*key)));
                known = Some(key);
                health.ready();
            }
        }
    });
    receiver
}

fn read(path: &Path) -> Result<Key, KeyFileError> {
    let bytes = fs::read(path).map(Zeroizing::new);
    let bytes = bytes.map_err(|source| KeyFileError::Read { path: path.to_owned(), source })?;
    let key = bytes.as_slice().try_into().map_err(|_| KeyFileError::Length { path: path.to_owned() })?;
    Ok(Zeroizing::new(key))
}

fn kept(run_dir: &RunDir) -> Option<Key> {
    match run_dir.fingerprint_key() {
        Ok(key) => key.map(Zeroizing::new),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the kept key of fingerprints cannot be used");
            None
        }
    }
}

fn keep(run_dir: Option<&RunDir>, key: &Key) {
    if let Some(Err(error)) = run_dir.map(|run_dir| run_dir.keep_fingerprint_key(key)) {
        tracing::warn!(error = &error as &dyn std::error::Error, "the key of fingerprints is not kept over a restart");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::health::Health;

    fn same(a: &watch::Receiver<Option<FingerprintKey>>, key: [u8; 32]) -> bool {
        let id = |key: &FingerprintKey| {
            let bound = crate::verify::fingerprint::Bound {
                uid: "u",
                endpoint: "e",
                method: crate::api::webhook::VerificationMethod::None,
                http_method: crate::api::webhook::ChallengeHttpMethod::Post,
                verified_time: None,
                valid_until: None,
            };
            key.fingerprint(bound)
        };
        a.borrow().as_ref().map(id) == Some(id(&FingerprintKey::new(key)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_waited_for_followed_and_kept_over_a_restart() {
        let (folder, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let open = || Some(Arc::new(RunDir::open(run.path()).unwrap()));
        let health = Health::default();
        let mut keys = follow(folder.path(), open(), health.component("keys"));
        tokio::time::sleep(POLL_INTERVAL / 2).await;
        assert!(health.unready().unwrap().contains("cannot read"));
        for bytes in [31, 33] {
            fs::write(folder.path().join(FILE), vec![1; bytes]).unwrap();
            tokio::time::sleep(POLL_INTERVAL * 2).await;
            assert!(health.unready().unwrap().contains("is not 32 bytes long"));
        }
        fs::write(folder.path().join(FILE), [1; 32]).unwrap();
        keys.changed().await.unwrap();
        assert!(same(&keys, [1; 32]) && health.unready().is_none());
        fs::write(folder.path().join(FILE), [2; 32]).unwrap();
        keys.changed().await.unwrap();
        assert!(same(&keys, [2; 32]));
        fs::remove_file(folder.path().join(FILE)).unwrap();
        tokio::time::sleep(POLL_INTERVAL * 2).await;
        assert!(same(&keys, [2; 32]) && health.unready().is_none());

        let mut again = follow(folder.path(), open(), health.component("keys"));
        again.changed().await.unwrap();
        assert!(same(&again, [2; 32]));
    }
}
