//! Bringing the write-ahead log back into the database without holding up
//! commits: a thread copies what it can while the writer goes on (PASSIVE); when
//! little is left, the writer copies the rest between two transactions and lets
//! the log begin anew (RESTART).
//!
//! # How long the log gets
//! [`Bounds::full`] and one transaction more ([`TransactionMost`]), however slow the
//! disk is: a log of that length makes the writer wait for the thread and copy the
//! rest. Only a reader that holds the log for longer than [`READERS_WAIT`], such as
//! a backup, lets it grow further, and then by outcomes alone.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rusqlite::{Connection, Result};

use super::{open::PAGE_BYTES, volume::is_full};
use crate::runtime::clock;

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
/// How long nothing is copied after the volume had no room for it.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(250);

/// Bytes of events in one transaction at most, but for its first batch.
const TRANSACTION_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Outcomes in one transaction at most, and at least.
const TRANSACTION_OUTCOMES: (u64, u64) = (32, 4096);
/// Pages that an outcome writes, roughly: its row in one table and the next, its
/// attempt with two indexes, its detail.
const OUTCOME_PAGES: u64 = 8;
/// Steps of upkeep in one transaction at most.
const TRANSACTION_STEPS_MAX: u64 = 64;
/// Pages that a step of upkeep writes, roughly.
const STEP_PAGES: u64 = 256;
/// Bytes that a transaction adds to the log at most, roughly: the largest batch.
pub(super) const TRANSACTION_LOG_BYTES: u64 = 8 * 1024 * 1024;

/// How much one transaction may hold, so that it is never more than a part of the
/// log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TransactionMost {
    pub(super) outcomes: usize,
    /// Of events, but for the first batch.
    pub(super) batch_bytes: usize,
    /// Of upkeep.
    pub(super) steps: usize,
}

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
        Self::up_to(full_bytes(size_bytes) / PAGE_BYTES)
    }

    /// Of a log of so many pages.
    fn up_to(full: u64) -> Self {
        let restart = (full / 4).min(RESTART_PAGES_MAX);
        let passive = restart / 4;
        Self { passive, restart, restart_left: 2 * passive, force: full / 2, full }
    }

    fn most(self) -> TransactionMost {
        let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let (least, most) = TRANSACTION_OUTCOMES;
        TransactionMost {
            outcomes: number((self.full / OUTCOME_PAGES).clamp(least, most)),
            batch_bytes: number((self.full * PAGE_BYTES / 2).min(TRANSACTION_BYTES_MAX)),
            steps: number((self.full / STEP_PAGES).clamp(1, TRANSACTION_STEPS_MAX)),
        }
    }
}

/// Bytes of the log at which nothing more is accepted, in a store of this size.
pub(super) fn full_bytes(size_bytes: u64) -> u64 {
    (size_bytes / WAL_PART).clamp(WAL_BYTES_MIN, WAL_BYTES_MAX)
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
    /// None at the end.
    ask: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    /// After a restart that readers prevented: pages at which it is tried again.
    again_at: u64,
    /// Nothing is copied before.
    paused_until: Option<Instant>,
    size_bytes: u64,
    bounds: Bounds,
}

/// What the thread says.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    is_done: Condvar,
}

#[derive(Clone, Copy, Default)]
struct State {
    is_running: bool,
    /// The volume had no room for what was to be copied.
    had_no_room: bool,
    has_failed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) {
        drop(self.is_done.wait_while(self.lock(), |state| state.is_running).unwrap_or_else(PoisonError::into_inner));
    }
}

impl Checkpointer {
    /// Starts the thread on a connection of its own; it ends with the value.
    pub(super) fn start(db: Connection, size_bytes: u64) -> io::Result<Self> {
        let (ask, asked) = sync_channel(1);
        let shared = Arc::new(Shared::default());
        let thread_shared = shared.clone();
        let thread = thread::Builder::new().name("checkpoint".to_owned());
        let thread = thread.spawn(move || serve(&db, &asked, &thread_shared))?;
        Ok(Self {
            ask: Some(ask),
            thread: Some(thread),
            shared,
            again_at: 0,
            paused_until: None,
            size_bytes,
            bounds: Bounds::of(size_bytes),
        })
    }

    /// The store has another size from now on.
    pub(super) fn configure(&mut self, size_bytes: u64) {
        self.size_bytes = size_bytes;
        self.bounds = Bounds::of(size_bytes);
    }

    /// The log must not grow beyond so many bytes, because there is no room on the
    /// volume; none: as far as it may.
    pub(super) fn confine(&mut self, log_bytes: Option<u64>) {
        let most = Bounds::of(self.size_bytes);
        self.bounds = log_bytes.map_or(most, |bytes| Bounds::up_to((bytes / PAGE_BYTES).min(most.full)));
    }

    /// How much a transaction may hold.
    pub(super) fn most(&self) -> TransactionMost {
        self.bounds.most()
    }

    /// After each commit, outside a transaction. True if the log is too long to
    /// accept more.
    pub(super) fn after_commit(&mut self, db: &Connection) -> Result<bool> {
        loop {
            let state = self.look()?;
            let log = Log::run(db, "PRAGMA wal_checkpoint(NOOP)")?;
            let is_full = log.pages >= self.bounds.full;
            if self.paused_until.is_some() {
                return Ok(is_full);
            }
            match decide(log, self.bounds, state.is_running, self.again_at) {
                Decision::Nothing => {}
                Decision::Wait => {
                    self.shared.wait();
                    continue;
                }
                Decision::Passive => self.start_passive(),
                Decision::Restart => {
                    if self.restart(db, log, Duration::ZERO)? {
                        return Ok(false);
                    }
                }
                Decision::Force => {
                    if self.restart(db, log, READERS_WAIT)? {
                        return Ok(false);
                    }
                }
            }
            return Ok(is_full);
        }
    }

    /// Copies all there is and lets the log begin anew, if the volume and readers
    /// let it.
    pub(super) fn empty(&mut self, db: &Connection) -> Result<()> {
        self.shared.wait();
        self.look()?;
        let log = Log::run(db, "PRAGMA wal_checkpoint(NOOP)")?;
        self.restart(db, log, READERS_WAIT).map(drop)
    }

    fn look(&mut self) -> Result<State> {
        let mut state = self.shared.lock();
        if state.has_failed {
            return Err(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR),
                Some("a checkpoint failed".to_owned()),
            ));
        }
        let now = clock::monotonic();
        if std::mem::take(&mut state.had_no_room) {
            self.paused_until = Some(now + NO_ROOM_PAUSE);
        }
        self.paused_until = self.paused_until.filter(|until| *until > now);
        Ok(*state)
    }

    fn start_passive(&self) {
        self.shared.lock().is_running = true;
        if self.ask.as_ref().is_none_or(|ask| ask.try_send(()).is_err()) {
            self.shared.lock().is_running = false;
        }
    }

    /// Copies what is left and lets the log begin anew; false if readers or the
    /// volume prevent it.
    fn restart(&mut self, db: &Connection, log: Log, readers_wait: Duration) -> Result<bool> {
        let is_done = match restart(db, readers_wait) {
            Err(error) if is_full(&error) => {
                self.paused_until = Some(clock::monotonic() + NO_ROOM_PAUSE);
                false
            }
            done => done?,
        };
        self.again_at = if is_done { 0 } else { log.pages + self.bounds.passive };
        Ok(is_done)
    }
}

/// What is closed leaves no file open.
impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.ask = None;
        if let Some(thread) = self.thread.take() {
            // It ended by itself if it panicked; there is nobody left to tell.
            drop(thread.join());
        }
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
    /// Until the one that runs has ended; then decide again.
    Wait,
    Passive,
    Restart,
    /// The same, and wait for readers.
    Force,
}

/// Only one checkpoint runs at a time.
fn decide(log: Log, bounds: Bounds, is_running: bool, again_at: u64) -> Decision {
    let Log { pages, left, .. } = log;
    let is_full = pages >= bounds.full;
    match () {
        () if is_running => {
            if is_full {
                Decision::Wait
            } else {
                Decision::Nothing
            }
        }
        () if pages >= bounds.force && pages >= again_at => Decision::Force,
        // A log that is full may not grow to where it would be tried again.
        () if pages >= bounds.restart && (pages >= again_at || is_full) && left <= bounds.restart_left => {
            Decision::Restart
        }
        () if left >= bounds.passive => Decision::Passive,
        () => Decision::Nothing,
    }
}

fn serve(db: &Connection, asked: &Receiver<()>, shared: &Shared) {
    while asked.recv().is_ok() {
        let copied = Log::run(db, "PRAGMA wal_checkpoint(PASSIVE)");
        let mut state = shared.lock();
        match copied {
            Ok(_) => {}
            // Nothing is lost: the log has it all, until there is room.
            Err(error) if is_full(&error) => state.had_no_room = true,
            Err(error) => {
                // The writer ends the store; a failed sync is never tried again.
                tracing::error!(error = %error, "a checkpoint of the store failed");
                state.has_failed = true;
            }
        }
        state.is_running = false;
        drop(state);
        shared.is_done.notify_all();
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
        check(32_767, 32_767, true, Decision::Nothing);
        check(32_768, 32_768, true, Decision::Wait);
        check(4096, 2049, false, Decision::Passive);
        check(4096, 2048, false, Decision::Restart);
        check(16_384, 16_384, false, Decision::Force);
        let held = Log { pages: 4096, left: 0, is_held: true };
        assert_eq!(decide(held, bounds, false, 4097), Decision::Nothing, "not at every commit");
        let full = Log { pages: 32_768, left: 0, is_held: true };
        assert_eq!(decide(full, bounds, false, 40_000), Decision::Restart, "nothing may come that makes it longer");
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
    fn a_transaction_is_a_part_of_the_log() {
        let most = |size| Bounds::of(size).most();
        assert_eq!(most(10 << 30), TransactionMost { outcomes: 4096, batch_bytes: 4 << 20, steps: 64 });
        assert_eq!(most(64 << 20), TransactionMost { outcomes: 64, batch_bytes: 2 << 20, steps: 2 });
        assert_eq!(Bounds::up_to(8).most(), TransactionMost { outcomes: 32, batch_bytes: 32 << 10, steps: 1 });
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
