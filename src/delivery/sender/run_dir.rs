//! What a pod remembers of Secrets over a restart of its container: files in
//! memory (an `emptyDir` of medium Memory), never on the volume of the store.
//! While the API server is away, a container that starts again signs with them.
//!
//! # Files
//! `fingerprint`: the 32 bytes of the key of fingerprints. `secrets-<hex>`, 256
//! of them by the hash of the Webhook: JSON, Webhook → values that its Secrets
//! had when they were read last. Each is written to a temporary file, mode 0600,
//! and renamed. There is no sync: memory knows none.
//!
//! # Limits
//! [`RUN_BYTES_MAX`] in all, [`WEBHOOK_BYTES_MAX`] a Webhook. What has no room is
//! not kept: its Webhook is held after such a restart until the API server is back.

use std::{
    collections::BTreeMap,
    fs, io,
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::{
    runtime::secret::{SecretBytes, SecretString},
    secrets::{ReadValue, Use},
};

/// Bytes of all files at most: the volume has 16 MiB, and a new file stands
/// beside the old one for a moment.
pub const RUN_BYTES_MAX: u64 = 12 * 1024 * 1024;
/// Bytes of one Webhook's values at most, as JSON: three PEM files of the
/// longest kind fit.
pub const WEBHOOK_BYTES_MAX: usize = 320 * 1024;
/// Bytes of the key of fingerprints.
pub const FINGERPRINT_KEY_BYTES: usize = 32;

const FINGERPRINT_FILE: &str = "fingerprint";
const SECRETS_PREFIX: &str = "secrets-";
const TEMPORARY_FILE: &str = "new";
/// Readable by us alone.
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;

/// A file could not be read or written. Names the file, never what is in it.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// The folder cannot be used.
    #[error("the folder {path} cannot be used")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no room.
    #[error("the values of this Webhook have no room: {bytes} bytes")]
    Full {
        /// Bytes that were to be kept.
        bytes: usize,
    },
}

/// The folder. Reading and writing do not block: it lies in memory.
#[derive(Debug)]
pub struct RunDir {
    folder: PathBuf,
    /// Bytes of all files of values; whoever holds it may change files.
    bytes: Mutex<u64>,
}

/// Webhook (namespace and UID) → what its Secrets held.
type Shard = BTreeMap<String, Vec<KeptValue>>;

#[derive(Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct KeptValue {
    name: String,
    key: String,
    used_as: Use,
    /// Base64.
    value: SecretString,
}

impl RunDir {
    /// Takes a folder into use, and makes it if it is missing.
    ///
    /// # Errors
    /// If it cannot be made or listed.
    pub fn open(folder: &Path) -> Result<Self, RunDirError> {
        let failed = |source| RunDirError::Folder { path: folder.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder).map_err(failed)?;
        let mut bytes = 0;
        for entry in fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_string_lossy().starts_with(SECRETS_PREFIX) {
                bytes += entry.metadata().map_err(failed)?.len();
            }
        }
        Ok(Self { folder: folder.to_owned(), bytes: Mutex::new(bytes) })
    }

    /// The key of fingerprints, if one was kept.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn fingerprint_key(&self) -> Result<Option<[u8; FINGERPRINT_KEY_BYTES]>, RunDirError> {
        let read = read(&self.folder.join(FINGERPRINT_FILE))?;
        Ok(read.and_then(|bytes| bytes.as_slice().try_into().ok()))
    }

    /// Keeps the key of fingerprints.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn keep_fingerprint_key(&self, key: &[u8; FINGERPRINT_KEY_BYTES]) -> Result<(), RunDirError> {
        let _writing = self.lock();
        self.write(FINGERPRINT_FILE, key)
    }

    /// What the Secrets of a Webhook held when they were read last; none if
    /// nothing was kept, or what was kept cannot be read.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn values(&self, namespace: &str, uid: &str) -> Result<Option<Vec<ReadValue>>, RunDirError> {
        let owner = owner(namespace, uid);
        let mut shard = self.shard(&shard_file(&owner))?;
        let Some(values) = shard.remove(&owner) else { return Ok(None) };
        let decode = |kept: KeptValue| {
            let value = STANDARD.decode(kept.value.expose()).ok()?;
            let KeptValue { name, key, used_as, value: _ } = kept;
            Some(ReadValue { name, key, used_as, value: SecretBytes::new(value) })
        };
        Ok(values.into_iter().map(decode).collect())
    }

    /// Keeps what the Secrets of a Webhook hold now. Writes nothing if it is the same.
    ///
    /// # Errors
    /// If there is no room, or the file cannot be read or written. Then nothing
    /// is kept of this Webhook: an older value is worth less than none.
    pub fn keep(&self, namespace: &str, uid: &str, values: &[ReadValue]) -> Result<(), RunDirError> {
        let encode = |read: &ReadValue| KeptValue {
            name: read.name.clone(),
            key: read.key.clone(),
            used_as: read.used_as,
            value: SecretString::new(STANDARD.encode(read.value.expose())),
        };
        let values: Vec<_> = values.iter().map(encode).collect();
        let length = |kept: &KeptValue| kept.value.expose().len() + kept.name.len() + kept.key.len();
        let bytes: usize = values.iter().map(length).sum();
        if bytes > WEBHOOK_BYTES_MAX {
            self.forget(namespace, uid)?;
            return Err(RunDirError::Full { bytes });
        }
        let kept = self.change(&owner(namespace, uid), Some(values));
        if kept.is_err() {
            self.forget(namespace, uid)?;
        }
        kept
    }

    /// Forgets a Webhook.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn forget(&self, namespace: &str, uid: &str) -> Result<(), RunDirError> {
        self.change(&owner(namespace, uid), None)
    }

    /// Forgets the Webhooks that are not known; `is_known` gets namespace and UID.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn sweep(&self, is_known: impl Fn(&str, &str) -> bool) -> Result<(), RunDirError> {
        for number in 0..=u8::MAX {
            let file = format!("{SECRETS_PREFIX}{number:02x}");
            let mut total = self.lock();
            let mut shard = self.shard(&file)?;
            let before = shard.len();
            shard.retain(|owner, _| owner.split_once('/').is_some_and(|(namespace, uid)| is_known(namespace, uid)));
            if shard.len() < before {
                self.write_shard(&mut total, &file, &shard)?;
            }
        }
        Ok(())
    }

    fn change(&self, owner: &str, values: Option<Vec<KeptValue>>) -> Result<(), RunDirError> {
        let file = shard_file(owner);
        let mut total = self.lock();
        let mut shard = self.shard(&file)?;
        if shard.get(owner) == values.as_ref() {
            return Ok(());
        }
        match values {
            Some(values) => shard.insert(owner.to_owned(), values),
            None => shard.remove(owner),
        };
        self.write_shard(&mut total, &file, &shard)
    }

    fn write_shard(&self, total: &mut u64, file: &str, shard: &Shard) -> Result<(), RunDirError> {
        let path = self.folder.join(file);
        let failed = |source| RunDirError::Write { path: path.clone(), source };
        let text = Zeroizing::new(serde_json::to_vec(shard).map_err(|error| failed(error.into()))?);
        let old = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        let after = total.saturating_sub(old) + text.len() as u64;
        if after > RUN_BYTES_MAX && text.len() as u64 > old {
            return Err(RunDirError::Full { bytes: text.len() });
        }
        self.write(file, &text)?;
        *total = after;
        Ok(())
    }

    /// What a file of values holds; nothing if it is missing or damaged, which it
    /// is only by another's hand.
    fn shard(&self, file: &str) -> Result<Shard, RunDirError> {
        let text = read(&self.folder.join(file))?;
        Ok(text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default())
    }

    fn write(&self, file: &str, content: &[u8]) -> Result<(), RunDirError> {
        let (path, temporary) = (self.folder.join(file), self.folder.join(TEMPORARY_FILE));
        let failed = |source| RunDirError::Write { path: path.clone(), source };
        let mut new = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(FILE_MODE)
            .open(&temporary)
            .map_err(failed)?;
        new.write_all(content).map_err(failed)?;
        fs::rename(&temporary, &path).map_err(failed)
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        // A panic elsewhere leaves the files whole: each change is one rename.
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn owner(namespace: &str, uid: &str) -> String {
    format!("{namespace}/{uid}")
}

fn shard_file(owner: &str) -> String {
    format!("{SECRETS_PREFIX}{:02x}", Sha256::digest(owner)[0])
}

fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, RunDirError> {
    let failed = |source| RunDirError::Read { path: path.to_owned(), source };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut content = Zeroizing::new(Vec::new());
    file.take(RUN_BYTES_MAX).read_to_end(&mut content).map_err(failed)?;
    Ok(Some(content))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn value(name: &str, bytes: usize) -> ReadValue {
        ReadValue { name: name.into(), key: "k".into(), used_as: Use::Signing, value: SecretBytes::new(vec![7; bytes]) }
    }

    #[test]
    fn what_was_kept_is_there_after_a_restart_and_only_for_its_webhook() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let first = RunDir::open(&path).unwrap();
        first.keep("shop", "u1", &[value("a", 32), value("b", 3)]).unwrap();
        first.keep("shop", "u2", &[value("c", 1)]).unwrap();
        first.keep_fingerprint_key(&[9; 32]).unwrap();
        let again = RunDir::open(&path).unwrap();
        assert_eq!(again.values("shop", "u1").unwrap(), Some(vec![value("a", 32), value("b", 3)]));
        assert_eq!(again.values("shop", "u3").unwrap(), None);
        assert_eq!(again.values("bank", "u1").unwrap(), None);
        assert_eq!(again.fingerprint_key().unwrap(), Some([9; 32]));
        again.forget("shop", "u1").unwrap();
        assert_eq!(again.values("shop", "u1").unwrap(), None);
        again.sweep(|_, uid| uid == "u2").unwrap();
        assert!(again.values("shop", "u2").unwrap().is_some());
        again.sweep(|_, _| false).unwrap();
        assert_eq!(again.values("shop", "u2").unwrap(), None);
    }

    #[test]
    fn every_file_is_ours_alone_and_none_is_left_half_written() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::open(folder.path()).unwrap();
        run.keep("shop", "u1", &[value("a", 32)]).unwrap();
        run.keep_fingerprint_key(&[9; 32]).unwrap();
        let mut names = Vec::new();
        for entry in fs::read_dir(folder.path()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, FILE_MODE);
            names.push(entry.file_name().into_string().unwrap());
        }
        assert!(names.iter().all(|name| name != TEMPORARY_FILE) && names.len() == 2, "{names:?}");
    }

    #[test]
    fn a_damaged_file_holds_nothing_and_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::open(folder.path()).unwrap();
        let file = folder.path().join(shard_file(&owner("shop", "u1")));
        fs::write(&file, "{").unwrap();
        fs::write(folder.path().join(FINGERPRINT_FILE), "short").unwrap();
        assert_eq!((run.values("shop", "u1").unwrap(), run.fingerprint_key().unwrap()), (None, None));
        run.keep("shop", "u1", &[value("a", 1)]).unwrap();
        assert!(run.values("shop", "u1").unwrap().is_some());
    }

    #[test]
    fn what_has_no_room_is_not_kept_and_neither_is_what_was_there_before() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::open(folder.path()).unwrap();
        run.keep("shop", "u1", &[value("a", 32)]).unwrap();
        let error = run.keep("shop", "u1", &[value("a", WEBHOOK_BYTES_MAX)]).unwrap_err();
        assert!(matches!(error, RunDirError::Full { .. }));
        assert_eq!(run.values("shop", "u1").unwrap(), None);
        *run.lock() = RUN_BYTES_MAX - 10;
        assert!(matches!(run.keep("shop", "u1", &[value("a", 32)]), Err(RunDirError::Full { .. })));
        *run.lock() = 0;
        assert!(run.keep("shop", "u1", &[value("a", 32)]).is_ok());
    }
}
