//! The volume that the store is on, which others may fill.
//!
//! # What is taken ahead of need
//! The database grows in chunks that the file system gives before they are needed:
//! at least [`AHEAD_BYTES`] more than is in use, so what is in the log can be copied
//! though the volume is full. The log begins with zeros where its first
//! transactions will be. The log's index, which is memory on a file, is given whole:
//! a page of it for which there is no block ends the process with SIGBUS. Events are
//! accepted as long as that is so, and as long as the volume has room for the log to
//! become as long as it may: then outcomes and what the store does by itself have
//! room when others have taken the rest.
//!
//! # When there is no room all the same
//! See [`super::stuck`].

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use rusqlite::{Connection, FileControl, MAIN_DB, ffi};
use rustix::fs::FallocateFlags;

use super::{
    checkpoint::{TRANSACTION_LOG_BYTES, full_bytes},
    open::{DATABASE_FILE, PAGE_BYTES},
};
use crate::store::{AcceptError, StoreLimits};

/// Bytes that the database has ahead of what is in use: the largest transaction,
/// and what [`kept_bytes`] says.
const AHEAD_BYTES: u64 = 32 * 1024 * 1024;
/// Bytes by which its file grows, as a part of the store's size; at most, and at
/// least.
const CHUNK_PART: u64 = 16;
const CHUNK_BYTES: (u64, u64) = (64 * 1024, 8 * 1024 * 1024);
/// Bytes of the log that are written with zeros at a start.
const LOG_ZEROED_BYTES: u64 = 8 * 1024 * 1024;
/// Bytes of them at once.
const ZEROS_BYTES: usize = 64 * 1024;
/// The index of the log grows by so many bytes for so many pages.
const INDEX_PART_BYTES: u64 = 32 * 1024;
const INDEX_PART_PAGES: u64 = 4096;
/// Bytes of the volume for the index of the log, and for what the file system needs
/// itself.
const SPARE_BYTES: u64 = 1024 * 1024;
/// Part of the log's file that is used when it cannot grow: a transaction fits
/// behind it.
const CONFINED_PART: (u64, u64) = (3, 4);

/// What a volume has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VolumeRoom {
    /// Events may be accepted.
    pub(super) for_events: bool,
    /// Bytes that the database may grow to without more of the volume.
    pub(super) database: u64,
    /// Bytes of these that are not for events.
    pub(super) kept: u64,
}

/// The volume of a store.
pub(super) struct Volume {
    folder: PathBuf,
    /// As they were configured; the size may be more than the volume has.
    configured: StoreLimits,
    limits: StoreLimits,
    room: VolumeRoom,
    /// Bytes of the log's file.
    log_bytes: u64,
}

impl Volume {
    /// The volume of a folder.
    pub(super) fn new(folder: &Path, configured: StoreLimits) -> Self {
        let room = VolumeRoom { for_events: true, database: u64::MAX, kept: 0 };
        let mut volume = Self { folder: folder.to_owned(), configured, limits: configured, room, log_bytes: 0 };
        volume.configure(configured);
        volume
    }

    /// Takes limits over; gives them with a size that fits the volume.
    pub(super) fn configure(&mut self, configured: StoreLimits) -> StoreLimits {
        self.configured = configured;
        let size_bytes = match Space::of(&self.folder) {
            Ok(space) => fitting(configured.size_bytes, space.capacity),
            Err(_) => configured.size_bytes,
        };
        if size_bytes < configured.size_bytes && size_bytes != self.limits.size_bytes {
            let wanted = configured.size_bytes;
            tracing::warn!(wanted, size_bytes, "the volume is too small for the store, which uses less of it");
        }
        self.limits = StoreLimits { size_bytes, ..configured };
        self.limits
    }

    /// Limits that fit the volume as of now.
    pub(super) const fn limits(&self) -> &StoreLimits {
        &self.limits
    }

    /// What it has room for, as of the last look.
    pub(super) const fn room(&self) -> VolumeRoom {
        self.room
    }

    /// Bytes that the log may have while the volume is full.
    pub(super) fn confined_log(&self) -> Option<u64> {
        (!self.room.for_events).then_some(self.log_bytes / CONFINED_PART.1 * CONFINED_PART.0)
    }

    /// Looks how full it is, and takes what will be needed soon; `used` bytes of
    /// the database are in use. Gives new limits if the volume has another size
    /// than before.
    pub(super) fn look(&mut self, db: &Connection, used: u64) -> Option<StoreLimits> {
        let size_bytes = self.limits.size_bytes;
        self.log_bytes = length(&self.folder.join(format!("{DATABASE_FILE}-wal")));
        let database = self.folder.join(DATABASE_FILE);
        let wanted = (used + AHEAD_BYTES).min(size_bytes);
        let mut held = length(&database);
        let mut is_held = true;
        if held < wanted {
            let mut hint = i64::try_from(wanted).unwrap_or(i64::MAX);
            is_held = db.file_control(Some(MAIN_DB), FileControl::SizeHint(&mut hint)).is_ok();
            held = length(&database);
        }
        // Without an answer of the file system there is nothing to refuse for.
        let Ok(space) = Space::of(&self.folder) else { return None };
        let log = (full_bytes(size_bytes) + TRANSACTION_LOG_BYTES).saturating_sub(self.log_bytes);
        // A file system that gives nothing ahead has to have it free.
        let ahead = if is_held { 0 } else { wanted.saturating_sub(held) };
        self.room = VolumeRoom {
            for_events: space.available >= log + ahead + SPARE_BYTES,
            database: if is_held { held } else { held.saturating_add(space.available) },
            kept: kept_bytes(size_bytes),
        };
        let fits = fitting(self.configured.size_bytes, space.capacity);
        (fits.abs_diff(size_bytes) >= chunk_bytes(size_bytes)).then(|| self.configure(self.configured))
    }

    /// Whether nothing at all can be written any more.
    pub(super) fn is_exhausted(&self) -> bool {
        Space::of(&self.folder).is_ok_and(|space| space.available < PAGE_BYTES)
    }
}

/// What a file system says of itself, for those who are not root.
struct Space {
    /// Bytes that its files may have in all.
    capacity: u64,
    /// Bytes that are free.
    available: u64,
}

impl Space {
    fn of(folder: &Path) -> io::Result<Self> {
        let found = rustix::fs::statvfs(folder)?;
        let reserved = found.f_bfree.saturating_sub(found.f_bavail);
        Ok(Self {
            capacity: found.f_blocks.saturating_sub(reserved).saturating_mul(found.f_frsize),
            available: found.f_bavail.saturating_mul(found.f_frsize),
        })
    }
}

/// What of a store's size fits a volume, beside its log. Some file systems tell no
/// capacity.
fn fitting(size_bytes: u64, capacity: u64) -> u64 {
    let beside = full_bytes(size_bytes) + TRANSACTION_LOG_BYTES + chunk_bytes(size_bytes) + SPARE_BYTES;
    if capacity == 0 { size_bytes } else { size_bytes.min(capacity.saturating_sub(beside).max(PAGE_BYTES)) }
}

/// Bytes by which the file of a database grows.
fn chunk_bytes(size_bytes: u64) -> u64 {
    let (least, most) = CHUNK_BYTES;
    (size_bytes / CHUNK_PART / PAGE_BYTES * PAGE_BYTES).clamp(least, most)
}

/// Bytes of what is taken ahead that are for outcomes and upkeep.
fn kept_bytes(size_bytes: u64) -> u64 {
    chunk_bytes(size_bytes)
}

/// Lets the file of a database grow in chunks. For each connection that writes to
/// it: one that knows nothing of chunks would give back what was taken.
pub(super) fn grow_in_chunks(db: &Connection, size_bytes: u64) -> rusqlite::Result<()> {
    let mut chunk = i32::try_from(chunk_bytes(size_bytes)).unwrap_or(i32::MAX);
    db.file_control(Some(MAIN_DB), FileControl::ChunkSize(&mut chunk))
}

/// Gives the log, which is empty, zeros for its first transactions. Recovery ends
/// where a frame does not belong to the log, so zeros mean nothing to it. They are
/// overwritten in place: a commit changes no size of a file and needs no room.
fn zero_log(folder: &Path, size_bytes: u64) -> io::Result<()> {
    let mut log = OpenOptions::new().append(true).open(folder.join(format!("{DATABASE_FILE}-wal")))?;
    let zeros = vec![0; ZEROS_BYTES];
    let mut left = LOG_ZEROED_BYTES.min(size_bytes);
    while left > 0 {
        let count = usize::try_from(left).map_or(zeros.len(), |left| left.min(zeros.len()));
        match log.write_all(&zeros[..count]) {
            // As many as there is room for.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
            written => written?,
        }
        left -= count as u64;
    }
    File::sync_all(&log)
}

/// Makes the files of the log as they shall be; gives the index, which is to be kept
/// as [`hold_index`] says.
pub(super) fn begin_log(folder: &Path, size_bytes: u64) -> io::Result<File> {
    zero_log(folder, size_bytes)?;
    hold_index(folder, size_bytes)
}

/// Has the file system give the index of the log as much as it will ever need.
/// SQLite itself touches one byte of each 4 KiB, which is too little where blocks
/// are smaller.
///
/// The file has to be kept until no connection of this process is open: to close it
/// gives up every lock that the process has on the index.
fn hold_index(folder: &Path, size_bytes: u64) -> io::Result<File> {
    let index = OpenOptions::new().read(true).write(true).open(folder.join(format!("{DATABASE_FILE}-shm")))?;
    let pages = (full_bytes(size_bytes) + TRANSACTION_LOG_BYTES) / PAGE_BYTES;
    // The first part tells of fewer pages than the others: one part more.
    let bytes = (pages / INDEX_PART_PAGES + 2) * INDEX_PART_BYTES;
    if let Err(error) = rustix::fs::fallocate(&index, FallocateFlags::empty(), 0, bytes) {
        tracing::debug!(error = %error, "the file system gives nothing ahead for the index of the log");
    }
    Ok(index)
}

fn length(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |found| found.len())
}

/// Whether an error says that there was no room. Nothing of the transaction is
/// stored then, and it may be tried again. A failed sync is another error.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    extended_code(error) == Some(ffi::SQLITE_FULL)
}

/// What publishers of a transaction hear that had no room; none if the error is
/// another one, which ends the store.
pub(super) fn refusal(error: &rusqlite::Error, volume: &Volume) -> Option<AcceptError> {
    match extended_code(error)? {
        ffi::SQLITE_FULL => Some(AcceptError::Full),
        // SQLite knows one of the words that file systems have for it; quotas have
        // others.
        ffi::SQLITE_IOERR_WRITE if volume.is_exhausted() => Some(AcceptError::Full),
        // The index of the log grows when a commit is in the log already: it is not
        // stored unless the process ends at once.
        ffi::SQLITE_IOERR_SHMSIZE => Some(AcceptError::Unknown),
        _ => None,
    }
}

fn extended_code(error: &rusqlite::Error) -> Option<i32> {
    match error {
        rusqlite::Error::SqliteFailure(error, _) => Some(error.extended_code),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn a_store_and_its_log_fit_their_volume() {
        // 90 % of a volume of 10 GiB, of which the file system takes 2 %.
        assert_eq!(fitting(9_216 * MIB, 10_035 * MIB), 9_216 * MIB);
        // The same of 64 MiB, as ext4 has it: 4 MiB of log, a transaction behind it,
        // a chunk, and what is spare.
        let chunk = chunk_bytes(57 * MIB);
        assert_eq!(fitting(57 * MIB, 52 * MIB), 52 * MIB - 4 * MIB - TRANSACTION_LOG_BYTES - chunk - SPARE_BYTES);
        assert_eq!(fitting(57 * MIB, 0), 57 * MIB, "no capacity is told");
        assert_eq!(fitting(57 * MIB, MIB), PAGE_BYTES);
    }

    #[test]
    fn chunks_are_whole_pages_and_a_part_of_the_store() {
        let chunks = [MIB, 57 * MIB, 128 * MIB, 9_216 * MIB].map(chunk_bytes);
        assert_eq!(chunks, [64 * 1024, 456 * PAGE_BYTES, 8 * MIB, 8 * MIB]);
    }

    #[test]
    fn only_want_of_room_is_no_end() {
        let folder = tempfile::tempdir().unwrap();
        let volume = Volume::new(folder.path(), StoreLimits::default());
        let check = |code, expected| {
            let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
            assert_eq!(refusal(&error, &volume), expected, "{code}");
        };
        check(ffi::SQLITE_FULL, Some(AcceptError::Full));
        check(ffi::SQLITE_IOERR_SHMSIZE, Some(AcceptError::Unknown));
        for code in [ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_IOERR, ffi::SQLITE_CORRUPT] {
            check(code, None);
        }
        assert_eq!(refusal(&rusqlite::Error::InvalidQuery, &volume), None);
    }

    #[test]
    fn the_database_has_room_ahead_of_what_is_used_up_to_its_size() {
        let folder = tempfile::tempdir().unwrap();
        let check = |size_bytes, used, expected| {
            let database = super::super::open::lock(folder.path()).unwrap();
            let db = database.writer().unwrap();
            grow_in_chunks(&db, size_bytes).unwrap();
            let mut volume = Volume::new(folder.path(), StoreLimits { size_bytes, ..StoreLimits::default() });
            assert_eq!(volume.look(&db, used), None);
            assert_eq!(
                volume.room(),
                VolumeRoom { for_events: true, database: expected, kept: chunk_bytes(size_bytes) }
            );
            // What is taken is still there when the log was copied.
            db.execute_batch("CREATE TABLE IF NOT EXISTS t (x); INSERT INTO t VALUES (1)").unwrap();
            db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
            volume.look(&db, used);
            assert_eq!(volume.room().database, expected);
        };
        check(MIB, 0, MIB);
        check(1024 * MIB, 0, 32 * MIB);
        check(1024 * MIB, 3 * MIB, 40 * MIB);
        check(1024 * MIB, 8 * MIB, 40 * MIB);
    }

    #[test]
    fn the_index_of_the_log_has_its_blocks_from_the_begin() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let database = super::super::open::lock(folder.path()).unwrap();
        let db = database.writer().unwrap();
        db.execute_batch("CREATE TABLE t (x)").unwrap();
        let index = hold_index(folder.path(), 10_240 * MIB).unwrap();
        let found = index.metadata().unwrap();
        // 264 MiB of log.
        assert_eq!(found.len(), 10 * INDEX_PART_BYTES);
        assert!(found.blocks() * 512 >= found.len(), "{} blocks", found.blocks());
        db.execute_batch("INSERT INTO t VALUES (1)").unwrap();
        let reader = database.reader().unwrap();
        assert_eq!(reader.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)), Ok(1));
        drop((reader, db, index));
    }

    #[test]
    fn a_log_begins_with_zeros_and_a_store_opens_on_them() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join(format!("{DATABASE_FILE}-wal"));
        let begin = |size_bytes, expected| {
            let database = super::super::open::lock(folder.path()).unwrap();
            let db = database.writer().unwrap();
            db.execute_batch("CREATE TABLE IF NOT EXISTS t (x)").unwrap();
            db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
            zero_log(folder.path(), size_bytes).unwrap();
            assert_eq!(length(&log), expected);
            db.execute_batch("INSERT INTO t VALUES (1)").unwrap();
            assert_eq!(length(&log), expected, "it is overwritten in place");
            db
        };
        let db = begin(MIB, MIB);
        // As a crash leaves it, zeros behind the last frame.
        let copy = tempfile::tempdir().unwrap();
        for name in [DATABASE_FILE.to_owned(), format!("{DATABASE_FILE}-wal")] {
            fs::copy(folder.path().join(&name), copy.path().join(&name)).unwrap();
        }
        let crashed = Connection::open(copy.path().join(DATABASE_FILE)).unwrap();
        assert_eq!(crashed.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)), Ok(1));
        drop(db);
        drop(begin(1024 * MIB, LOG_ZEROED_BYTES));
    }
}
