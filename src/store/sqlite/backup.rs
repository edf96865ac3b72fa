//! A copy of a store in one file, and back.
//!
//! # A restored store is another store
//! It gets a new id and a new epoch. The old volume may still exist; two stores
//! of one id could take each other's place unnoticed. So the pod refuses the
//! restored one (`StoreMismatch`) until somebody names its id in the annotation
//! `posthorn.dev/accept-store`. Ids of events that are in the backup stay as they
//! are; the new epoch keeps ids that were given out after the backup from being
//! made twice. What was delivered after the backup is delivered again.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rusqlite::{
    Connection, OpenFlags,
    backup::{Backup, StepResult},
};

use super::{
    open::{self, DATABASE_FILE, OpenError, SCHEMA_VERSION, begin_epoch, bring_over, set_meta},
    verify::{Problem, Verification, verify, verify_database},
};

/// Pages that are copied before progress is told: 8 MiB.
const STEP_PAGES: i32 = 1024;
/// What a copy is called until it is whole.
const PARTIAL: &str = "partial";

/// Why a backup was not made or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is something already.
    #[error("{} exists already; nothing was changed: name another one, or move it away first", .0.display())]
    Exists(PathBuf),
    /// There is no store.
    #[error("there is no store in {}; name the folder that holds {DATABASE_FILE}", .0.display())]
    NoStore(PathBuf),
    /// The backup is worth nothing.
    #[error("{} cannot be restored: {problem}", file.display())]
    Unusable {
        /// The backup.
        file: PathBuf,
        /// What is wrong with it.
        problem: Problem,
    },
    /// The folder cannot be used.
    #[error(transparent)]
    Folder(#[from] OpenError),
    /// A file cannot be used.
    #[error("{} cannot be used", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A database cannot be read or written.
    #[error("{} cannot be copied", file.display())]
    Database {
        /// The file.
        file: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
}

/// Copies a store, also while it is in use, as it is at one moment. Its log
/// grows until the copy is done, so the volume of the copy should be as fast as
/// that of the store.
///
/// # Guarantees
/// `file` appears when it is whole and on stable storage, or not at all.
///
/// # Errors
/// [`BackupError`].
pub fn backup(folder: &Path, file: &Path) -> Result<(), BackupError> {
    let database = folder.join(DATABASE_FILE);
    if !database.exists() {
        return Err(BackupError::NoStore(folder.to_owned()));
    }
    refuse_existing(file)?;
    let partial = Partial::of(file)?;
    let source = read_only(&database)?;
    copy(&source, &partial.0).map_err(|source| BackupError::Database { file: partial.0.clone(), source })?;
    partial.publish(file)
}

/// Makes a store of a backup, which may be of an older version. Tells what is in
/// it, under its new id.
///
/// # Guarantees
/// The folder holds a whole store afterwards, or none.
///
/// # Errors
/// [`BackupError`]; a folder that holds a store is refused, a backup whose
/// structure is damaged too.
pub fn restore(file: &Path, folder: &Path, pool: &str, store_id: &str) -> Result<Verification, BackupError> {
    // Held until the store is whole, so that no pod begins a new one meanwhile.
    let _lock = open::lock(folder)?;
    let database = folder.join(DATABASE_FILE);
    refuse_existing(&database)?;
    if !file.exists() {
        let source = io::ErrorKind::NotFound.into();
        return Err(BackupError::Io { file: file.to_owned(), source });
    }
    let broken = |source| BackupError::Database { file: file.to_owned(), source };
    let found = verify(file).map_err(broken)?;
    let is_fatal = |p: &&Problem| matches!(p, Problem::Structure(_) | Problem::NoStore | Problem::Schema(_));
    if let Some(problem) = found.problems.iter().find(is_fatal) {
        return Err(BackupError::Unusable { file: file.to_owned(), problem: problem.clone() });
    }
    let partial = Partial::of(&database)?;
    let source = read_only(file)?;
    let renew = || -> rusqlite::Result<Verification> {
        copy(&source, &partial.0)?;
        let mut copied = Connection::open(&partial.0)?;
        let transaction = copied.transaction()?;
        bring_over(&transaction, found.schema, SCHEMA_VERSION)?;
        set_meta(&transaction, "schema", SCHEMA_VERSION)?;
        begin_epoch(&transaction)?;
        set_meta(&transaction, "store", store_id)?;
        set_meta(&transaction, "pool", pool)?;
        transaction.commit()?;
        verify_database(&copied)
    };
    let restored = renew().map_err(|source| BackupError::Database { file: partial.0.clone(), source })?;
    partial.publish(&database)?;
    Ok(restored)
}

fn refuse_existing(file: &Path) -> Result<(), BackupError> {
    if file.exists() { Err(BackupError::Exists(file.to_owned())) } else { Ok(()) }
}

fn read_only(file: &Path) -> Result<Connection, BackupError> {
    Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .map_err(|source| BackupError::Database { file: file.to_owned(), source })
}

/// A read transaction keeps the copy at one moment: else each commit of the
/// store would make it begin anew.
fn copy(source: &Connection, to: &Path) -> rusqlite::Result<()> {
    let snapshot = source.unchecked_transaction()?;
    snapshot.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    let mut target = Connection::open(to)?;
    let backup = Backup::new(&snapshot, &mut target)?;
    while backup.step(STEP_PAGES)? != StepResult::Done {}
    drop(backup);
    // One file, without a log beside it.
    target.pragma_update(None, "synchronous", "full")?;
    target.query_row("PRAGMA journal_mode = delete", [], |_| Ok(()))
}

/// A file that is not whole yet; removed if it never is.
struct Partial(PathBuf);

impl Partial {
    fn of(file: &Path) -> Result<Self, BackupError> {
        let mut name = file.as_os_str().to_owned();
        name.push(".");
        name.push(PARTIAL);
        let partial = Self(name.into());
        // Of an attempt that was interrupted.
        match fs::remove_file(&partial.0) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(BackupError::Io { file: partial.0.clone(), source })
            }
            _ => Ok(partial),
        }
    }

    fn publish(self, file: &Path) -> Result<(), BackupError> {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let publish = || {
            File::open(&self.0)?.sync_all()?;
            fs::rename(&self.0, file)?;
            File::open(folder)?.sync_all()
        };
        publish().map_err(|source| BackupError::Io { file: file.to_owned(), source })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Renamed, or of no use; an error leaves a file that the next one removes.
        drop(fs::remove_file(&self.0));
    }
}
