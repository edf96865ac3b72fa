//! Bringing the write-ahead log back into the database without holding up
//! commits: a thread copies what it can while the writer goes on (PASSIVE); when
//! little is left, the writer copies the rest between two transactions and lets
//! the log begin anew (RESTART).

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use rusqlite::{Connection, Result};

use super::open::PAGE_BYTES;

/// Bytes of the log at which nothing more is accepted, in a store that is large
/// enough.
pub const WAL_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// The same, as a part of a smaller store's size: the log has to fit beside the
/// database, on a volume that is a ninth larger.
const WAL_PART: u64 = 16;
/// The same, at least: some transactions.
const WAL_BYTES_MIN: u64 = 4 * 1024 * 1024;

/// Pages of the log that are worth a restart at most: 32 MiB.
const RESTART_PAGES_MAX: u64 = 4096;

/// At how many pages of the log what is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    /// Not yet in the database: a background checkpoint.
    passive: u64,
    /// A restart.
    restart: u64,
    /// Left to be copied by the writer itself for a restart, at most.
    restart_left: u64,
    /// The writer copies all there is.
    force: u64,
    /// Nothing more is accepted.
    full: u64,
}

impl Bounds {
    /// Of a store of this size.
    fn of(size_bytes: u64) -> Self {
        let full = (size_bytes / WAL_PART).clamp(WAL_BYTES_MIN, WAL_BYTES_MAX) / PAGE_BYTES;
        let restart = (full / 4).min(RESTART_PAGES_MAX);
        let passive = restart / 4;
        Self { passive, restart, restart_left: 2 * passive, force: full / 2, full }
    }
}

/// How long the writer waits for readers to let go of a log that is far too
/// long. Reads end within this time.
const READERS_WAIT: Duration = Duration::from_millis(250);
/// How long it waits for a lock otherwise: only a tool beside it holds one.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// What is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Log {
    /// Pages in it.
    pages: u64,
    /// Of them: not yet in the database.
    left: u64,
    /// A checkpoint did less than it was asked for, because of readers.
    is_held: bool,
}

impl Log {
    fn run(db: &Connection, sql: &str) -> Result<Self> {
        db.prepare_cached(sql)?.query_row([], |row| {
            let number = |index| Ok::<_, rusqlite::Error>(u64::try_from(row.get::<_, i64>(index)?).unwrap_or_default());
            let (pages, copied) = (number(1)?, number(2)?);
            Ok(Self { pages, left: pages.saturating_sub(copied), is_held: row.get(0)? })
        })
    }
}

/// The background thread, and what the writer knows of it.
pub(super) struct Checkpointer {
    ask: SyncSender<()>,
    state: Arc<State>,
    /// After a restart that readers prevented: pages at which it is tried again.
    again_at: u64,
    bounds: Bounds,
}

#[derive(Default)]
struct State {
    is_running: AtomicBool,
    has_failed: AtomicBool,
}

impl Checkpointer {
    /// Starts the thread on a connection of its own; it ends with the value.
    pub(super) fn start(db: Connection, size_bytes: u64) -> io::Result<Self> {
        let (ask, asked) = sync_channel(1);
        let state = Arc::new(State::default());
        let shared = state.clone();
        thread::Builder::new().name("checkpoint".to_owned()).spawn(move || serve(&db, &asked, &shared))?;
        Ok(Self { ask, state, again_at: 0, bounds: Bounds::of(size_bytes) })
    }

    /// The store has another size from now on.
    pub(super) fn configure(&mut self, size_bytes: u64) {
        self.bounds = Bounds::of(size_bytes);
    }

    /// After each commit, outside a transaction. True if the log is too long to
    /// accept more.
    pub(super) fn after_commit(&mut self, db: &Connection) -> Result<bool> {
        if self.state.has_failed.load(Ordering::Acquire) {
            return Err(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR),
                Some("a checkpoint failed".to_owned()),
            ));
        }
        let log = Log::run(db, "PRAGMA wal_checkpoint(NOOP)")?;
        let is_running = self.state.is_running.load(Ordering::Acquire);
        match decide(log, self.bounds, is_running, self.again_at) {
            Decision::Nothing => {}
            Decision::Passive => {
                self.state.is_running.store(true, Ordering::Release);
                if self.ask.try_send(()).is_err() {
                    self.state.is_running.store(false, Ordering::Release);
                }
            }
            Decision::Restart => {
                if !restart(db, Duration::ZERO)? {
                    self.again_at = log.pages + self.bounds.passive;
                } else {
                    self.again_at = 0;
                    return Ok(false);
                }
            }
            Decision::Force => {
                self.again_at = log.pages + self.bounds.passive;
                if restart(db, READERS_WAIT)? {
                    self.again_at = 0;
                    return Ok(false);
                }
            }
        }
        Ok(log.pages >= self.bounds.full)
    }
}

/// Copies what is left and lets the log begin anew; false if readers prevent it.
fn restart(db: &Connection, readers_wait: Duration) -> Result<bool> {
    db.busy_timeout(readers_wait)?;
    let log = Log::run(db, "PRAGMA wal_checkpoint(RESTART)");
    db.busy_timeout(LOCK_WAIT)?;
    Ok(!log?.is_held)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Nothing,
    Passive,
    Restart,
    /// The same, and wait for readers.
    Force,
}

/// Only one checkpoint runs at a time.
fn decide(log: Log, bounds: Bounds, is_running: bool, again_at: u64) -> Decision {
    let Log { pages, left, .. } = log;
    match () {
        () if is_running => Decision::Nothing,
        () if pages >= bounds.force && pages >= again_at => Decision::Force,
        () if pages >= bounds.restart && pages >= again_at && left <= bounds.restart_left => Decision::Restart,
        () if left >= bounds.passive => Decision::Passive,
        () => Decision::Nothing,
    }
}

fn serve(db: &Connection, asked: &Receiver<()>, state: &State) {
    while asked.recv().is_ok() {
        if let Err(error) = Log::run(db, "PRAGMA wal_checkpoint(PASSIVE)") {
            // The writer ends the store; a failed sync is never tried again.
            tracing::error!(error = %error, "a checkpoint of the store failed");
            state.has_failed.store(true, Ordering::Release);
        }
        state.is_running.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_copied_in_the_background_and_restarted_when_little_is_left() {
        let bounds = Bounds::of(10 << 30);
        assert_eq!(bounds, Bounds { passive: 1024, restart: 4096, restart_left: 2048, force: 16_384, full: 32_768 });
        let check = |pages, left, is_running, expected| {
            let log = Log { pages, left, is_held: false };
            assert_eq!(decide(log, bounds, is_running, 0), expected, "{pages} pages, {left} left");
        };
        check(1023, 1023, false, Decision::Nothing);
        check(1024, 1024, false, Decision::Passive);
        check(1024, 1024, true, Decision::Nothing);
        check(4096, 2049, false, Decision::Passive);
        check(4096, 2048, false, Decision::Restart);
        check(16_384, 16_384, false, Decision::Force);
        let held = Log { pages: 4096, left: 0, is_held: true };
        assert_eq!(decide(held, bounds, false, 4097), Decision::Nothing, "not at every commit");
    }

    #[test]
    fn the_log_of_a_small_store_fits_beside_it() {
        let bytes = |size| Bounds::of(size).full * PAGE_BYTES;
        assert_eq!(bytes(4 << 30), WAL_BYTES_MAX);
        assert_eq!(bytes((4 << 30) - 16 * PAGE_BYTES), WAL_BYTES_MAX - PAGE_BYTES);
        // The smallest that a pool may have: 90 % of 256 MiB.
        assert_eq!(bytes(240_000_000), 240_000_000 / WAL_PART / PAGE_BYTES * PAGE_BYTES);
        assert_eq!(bytes(1 << 20), WAL_BYTES_MIN);
    }

    #[test]
    fn a_reader_holds_the_log_up_but_not_the_writer() {
        let folder = tempfile::tempdir().unwrap();
        let database = super::super::open::lock(folder.path()).unwrap();
        let writer = database.writer().unwrap();
        writer.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)").unwrap();
        let reader = database.reader().unwrap();
        let transaction = reader.unchecked_transaction().unwrap();
        transaction.query_row("SELECT count(*) FROM t", [], |_| Ok(())).unwrap();
        writer.execute_batch("INSERT INTO t VALUES (2)").unwrap();
        let log = Log::run(&writer, "PRAGMA wal_checkpoint(NOOP)").unwrap();
        assert!(log.pages > 0 && log.left == log.pages, "{log:?}");
        assert!(!restart(&writer, Duration::ZERO).unwrap());
        drop(transaction);
        assert!(restart(&writer, Duration::ZERO).unwrap());
        writer.execute_batch("INSERT INTO t VALUES (3)").unwrap();
        assert_eq!(Log::run(&writer, "PRAGMA wal_checkpoint(NOOP)").unwrap().pages, 1);
    }
}
