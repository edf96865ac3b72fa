//! Opening a store: lock, identity, schema, pragmas.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, config::DbConfig, types::FromSql,
};

use super::{
    metrics::StoreMetrics,
    rows::Epochs,
    time::{Clock, StoreClock, StoredClock},
};
use crate::{event::Pos, runtime::clock, store::StoreLimits};

/// What a store is opened with.
pub struct SqliteConfig {
    /// Where its files are. Made if it is not there.
    pub folder: PathBuf,
    /// Name of the DeliveryPool.
    pub pool: String,
    /// The id of the store that this pool had before: another one, or an empty
    /// folder, is refused.
    pub expected_store: Option<String>,
    /// The id of a store that may be taken over though it is not the expected
    /// one; [`ACCEPT_NEW`] for an empty folder.
    pub accept_store: Option<String>,
    /// Limits and retention.
    pub limits: StoreLimits,
    /// Where the time is read.
    pub clock: Arc<dyn Clock>,
    /// What it counts.
    pub metrics: StoreMetrics,
}

/// The word in `accept_store` that lets an empty folder become a new store.
pub const ACCEPT_NEW: &str = crate::api::ACCEPT_NEW_STORE;
/// The version of the schema that this program writes.
pub const SCHEMA_VERSION: u32 = 2;

/// From each version of the schema to the next; the first makes it from nothing.
const MIGRATIONS: [&str; SCHEMA_VERSION as usize] = [include_str!("schema.sql"), include_str!("schema-2.sql")];
/// Name of the database in the folder of a store.
pub const DATABASE_FILE: &str = "store.db";
const LOCK_FILE: &str = "store.lock";
/// Bytes of a page.
pub(super) const PAGE_BYTES: u64 = 8192;
/// KiB of page cache of the writer.
const WRITER_CACHE_KIB: u32 = 8 * 1024;
/// KiB of page cache of a reader.
const READER_CACHE_KIB: u32 = 2 * 1024;
/// Bytes that the write-ahead log keeps on disk after it was emptied.
const WAL_KEPT_BYTES: u64 = 64 * 1024 * 1024;
/// Prepared statements that a connection keeps.
const STATEMENTS_KEPT: usize = 128;

/// Why a store was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the store in {} is in use by another process; only one pod may use a volume: end the other one first", folder.display())]
    Locked {
        /// Its folder.
        folder: PathBuf,
    },
    /// It is another pool's, or not the one that this pool had.
    #[error(
        "the volume in {} holds store {found_store} of DeliveryPool {found_pool}, not {} of DeliveryPool {expected_pool}; mount the right volume, or take this one over with the annotation posthorn.dev/accept-store: {found_store}",
        folder.display(), expected_store.as_deref().unwrap_or("a store")
    )]
    Foreign {
        /// Its folder.
        folder: PathBuf,
        /// The pool that opens it.
        expected_pool: String,
        /// The id that was expected.
        expected_store: Option<String>,
        /// The pool that made it.
        found_pool: String,
        /// Its id.
        found_store: String,
    },
    /// There is no store though this pool had one.
    #[error(
        "the volume in {} is empty, but DeliveryPool {pool} has store {expected_store}; mount the volume of that store, or begin a new one with the annotation posthorn.dev/accept-store: new",
        folder.display()
    )]
    Empty {
        /// Its folder.
        folder: PathBuf,
        /// The pool that opens it.
        pool: String,
        /// The id that was expected.
        expected_store: String,
    },
    /// A newer program wrote it.
    #[error(
        "the store in {} has schema version {found}, and this program knows up to {SCHEMA_VERSION}; run the newer version again",
        folder.display()
    )]
    Newer {
        /// Its folder.
        folder: PathBuf,
        /// The version of its schema.
        found: u32,
    },
    /// Its structure is damaged.
    #[error("the store in {} is damaged; restore a backup as docs/operations.md tells", folder.display())]
    Damaged {
        /// Its folder.
        folder: PathBuf,
        /// What SQLite found; none: what is recorded of it makes no sense.
        source: Option<rusqlite::Error>,
    },
    /// The database cannot be used.
    #[error("the store in {} cannot be opened; check the volume", folder.display())]
    Database {
        /// Its folder.
        folder: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// A file cannot be used.
    #[error("the store's folder {} cannot be used; check the volume and its permissions", folder.display())]
    Io {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl OpenError {
    /// Whether the volume is not the one of this pool: reason `StoreMismatch`.
    pub const fn is_mismatch(&self) -> bool {
        matches!(self, Self::Foreign { .. } | Self::Empty { .. })
    }

    pub(super) fn database(folder: &Path) -> impl Fn(rusqlite::Error) -> Self + use<> {
        let folder = folder.to_owned();
        move |source| match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Damaged { folder: folder.clone(), source: Some(source) }
            }
            _ => Self::Database { folder: folder.clone(), source },
        }
    }
}

/// A store that is locked and has its schema.
pub(super) struct Opened {
    pub(super) database: Database,
    pub(super) db: Connection,
    pub(super) store_id: String,
    pub(super) epochs: Epochs,
    pub(super) clock: StoreClock,
    pub(super) next: Pos,
    pub(super) next_attempt: i64,
}

/// The files of a store.
#[derive(Clone, Debug)]
pub(super) struct Database {
    path: PathBuf,
    /// Held as long as the store is open; shared with everything that uses it.
    _lock: Arc<File>,
}

impl Database {
    /// A connection that only reads.
    pub(super) fn reader(&self) -> rusqlite::Result<Connection> {
        let db = Connection::open_with_flags(
            &self.path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        db.pragma_update(None, "cache_size", -i64::from(READER_CACHE_KIB))?;
        db.pragma_update(None, "mmap_size", 0)?;
        keep_plans(&db)?;
        Ok(db)
    }

    /// A connection that writes, to an existing file or a new one.
    pub(super) fn writer(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&self.path, flags)?;
        // Without effect on an existing file.
        db.pragma_update(None, "page_size", PAGE_BYTES.cast_signed())?;
        db.pragma_update(None, "journal_mode", "wal")?;
        db.pragma_update(None, "synchronous", "full")?;
        db.pragma_update(None, "wal_autocheckpoint", 0)?;
        db.pragma_update(None, "journal_size_limit", WAL_KEPT_BYTES.cast_signed())?;
        db.pragma_update(None, "cache_size", -i64::from(WRITER_CACHE_KIB))?;
        db.pragma_update(None, "mmap_size", 0)?;
        db.pragma_update(None, "temp_store", "memory")?;
        keep_plans(&db)?;
        Ok(db)
    }
}

/// Compiles each statement once. Without the second setting (query planner
/// stability guarantee) SQLite compiles one anew whenever a value is bound that
/// it compared with the condition of a partial index.
fn keep_plans(db: &Connection) -> rusqlite::Result<()> {
    db.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

/// Locks, recovers, checks whose it is, brings the schema up to date.
pub(super) fn open(config: &SqliteConfig) -> Result<Opened, OpenError> {
    let folder = &config.folder;
    let database = lock(folder)?;
    let fail = OpenError::database(folder);
    if !database.path.exists() {
        // Before a file is made: `posthorn store restore` wants none, and this is
        // where a backup is restored.
        refuse_empty(config)?;
    }
    let mut db = database.writer().map_err(&fail)?;
    let is_new = !has_table(&db, "meta").map_err(&fail)?;
    if is_new {
        refuse_empty(config)?;
    } else {
        check_identity(config, &db)?;
    }
    migrate(config, &mut db)?;
    let (store_id, epochs) = identify(config, &db)
        .map_err(&fail)?
        .ok_or_else(|| OpenError::Damaged { folder: folder.clone(), source: None })?;
    // What the log of the last process held is in the database before anything
    // is read; it may be large, and readers are faster without it.
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(&fail)?;
    File::open(folder).and_then(|file| file.sync_all()).map_err(|source| io_error(folder, source))?;
    let store = meta(&db, "clock_ms").map_err(&fail)?;
    let wall_ms = meta(&db, "wall_ms").map_err(&fail)?;
    let stored =
        store.zip(wall_ms).map(|(store, wall_ms)| StoredClock { store: crate::event::StoreTime(store), wall_ms });
    let next: Option<i64> = meta(&db, "next_seq").map_err(&fail)?;
    let next_attempt = meta(&db, "next_attempt").map_err(&fail)?.unwrap_or(1);
    Ok(Opened {
        database,
        store_id,
        epochs,
        clock: StoreClock::start(config.clock.clone(), stored),
        next: Pos(next.and_then(|next| u64::try_from(next).ok()).unwrap_or(1)),
        next_attempt,
        db,
    })
}

fn io_error(folder: &Path, source: io::Error) -> OpenError {
    OpenError::Io { folder: folder.to_owned(), source }
}

pub(super) fn lock(folder: &Path) -> Result<Database, OpenError> {
    fs::create_dir_all(folder).map_err(|source| io_error(folder, source))?;
    let file = File::create(folder.join(LOCK_FILE)).map_err(|source| io_error(folder, source))?;
    match file.try_lock() {
        Ok(()) => Ok(Database { path: folder.join(DATABASE_FILE), _lock: Arc::new(file) }),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { folder: folder.to_owned() }),
        Err(TryLockError::Error(source)) => Err(io_error(folder, source)),
    }
}

fn refuse_empty(config: &SqliteConfig) -> Result<(), OpenError> {
    let Some(expected) = &config.expected_store else { return Ok(()) };
    if config.accept_store.as_deref() == Some(ACCEPT_NEW) {
        return Ok(());
    }
    Err(OpenError::Empty { folder: config.folder.clone(), pool: config.pool.clone(), expected_store: expected.clone() })
}

/// Before anything is written.
fn check_identity(config: &SqliteConfig, db: &Connection) -> Result<(), OpenError> {
    let fail = OpenError::database(&config.folder);
    let damaged = || OpenError::Damaged { folder: config.folder.clone(), source: None };
    let found: u32 = meta(db, "schema").map_err(&fail)?.ok_or_else(damaged)?;
    if found > SCHEMA_VERSION {
        return Err(OpenError::Newer { folder: config.folder.clone(), found });
    }
    let found_pool: String = meta(db, "pool").map_err(&fail)?.ok_or_else(damaged)?;
    let found_store: String = meta(db, "store").map_err(&fail)?.ok_or_else(damaged)?;
    let is_expected = config.expected_store.as_ref().is_none_or(|expected| *expected == found_store);
    if (is_expected && found_pool == config.pool) || config.accept_store.as_ref() == Some(&found_store) {
        return Ok(());
    }
    Err(OpenError::Foreign {
        folder: config.folder.clone(),
        expected_pool: config.pool.clone(),
        expected_store: config.expected_store.clone(),
        found_pool,
        found_store,
    })
}

/// Brings the tables from one version of the schema, 0 for none, to another.
pub(super) fn bring_over(db: &Connection, from: u32, to: u32) -> rusqlite::Result<()> {
    let steps = MIGRATIONS.iter().take(to as usize).skip(from as usize);
    steps.into_iter().try_for_each(|migration| db.execute_batch(migration))
}

/// Each step in a transaction of its own, so that a crash repeats one step only.
fn migrate(config: &SqliteConfig, db: &mut Connection) -> Result<(), OpenError> {
    let fail = OpenError::database(&config.folder);
    loop {
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&fail)?;
        let version: u32 = match has_table(&transaction, "meta").map_err(&fail)? {
            true => meta(&transaction, "schema").map_err(&fail)?.unwrap_or_default(),
            false => 0,
        };
        if version >= SCHEMA_VERSION {
            return Ok(());
        }
        bring_over(&transaction, version, version + 1).map_err(&fail)?;
        if version == 0 {
            let id: String = clock::random_bytes::<8>().iter().map(|byte| format!("{byte:02x}")).collect();
            set_meta(&transaction, "store", id).map_err(&fail)?;
            set_meta(&transaction, "pool", &config.pool).map_err(&fail)?;
            set_meta(&transaction, "epochs", Epochs::first().text()).map_err(&fail)?;
        }
        set_meta(&transaction, "schema", version + 1).map_err(&fail)?;
        transaction.commit().map_err(&fail)?;
    }
}

/// The store's id and epochs; the pool becomes this one if it was taken over.
fn identify(config: &SqliteConfig, db: &Connection) -> rusqlite::Result<Option<(String, Epochs)>> {
    // A start writes nothing that it need not: the volume may be full.
    if meta::<String>(db, "pool")?.as_deref() != Some(&config.pool) {
        set_meta(db, "pool", &config.pool)?;
    }
    let store: Option<String> = meta(db, "store")?;
    let epochs: Option<String> = meta(db, "epochs")?;
    Ok(store.zip(epochs.as_deref().and_then(Epochs::parse)))
}

fn has_table(db: &Connection, name: &str) -> rusqlite::Result<bool> {
    db.prepare("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1")?.exists([name])
}

/// A value of `meta`.
pub(super) fn meta<T: FromSql>(db: &Connection, key: &str) -> rusqlite::Result<Option<T>> {
    db.prepare_cached("SELECT v FROM meta WHERE k = ?1")?.query_row([key], |row| row.get(0)).optional()
}

/// Sets a value of `meta`.
pub(super) fn set_meta(db: &Connection, key: &str, value: impl rusqlite::ToSql) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT INTO meta (k, v) VALUES (?1, ?2) ON CONFLICT (k) DO UPDATE SET v = excluded.v")?
        .execute((key, value))?;
    Ok(())
}

/// Begins a new epoch: to be called on a copy that was restored from a backup,
/// before it is opened, so that its events get no id that was given out already.
///
/// # Errors
/// Errors of SQLite; [`rusqlite::Error::QueryReturnedNoRows`] if this is no store.
pub fn begin_epoch(db: &Connection) -> rusqlite::Result<()> {
    let text: Option<String> = meta(db, "epochs")?;
    let mut epochs = text.as_deref().and_then(Epochs::parse).ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    let next: i64 = meta(db, "next_seq")?.unwrap_or(1);
    epochs.begin(super::rows::pos_of(next));
    set_meta(db, "epochs", epochs.text())
}
