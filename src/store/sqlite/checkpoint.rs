//! Bringing the write-ahead log back into the database without holding up
//! commits: a thread copies what it can while the writer goes on (PASSIVE); when
//! little is left, the writer copies the rest between two transactions and lets
//! the log begin anew (RESTART).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use rusqlite::{Connection, Result};

use super::open::{Database, PAGE_BYTES};

/// Bytes of the log at which nothing more is accepted.
pub const WAL_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Pages of the log that are worth a background checkpoint.
const PASSIVE_PAGES: u64 = 1024;
/// Pages of the log that are worth a restart: 32 MiB.
const RESTART_PAGES: u64 = 4096;
/// Pages that the writer copies itself for a restart at most.
const RESTART_LEFT_MAX: u64 = 2 * PASSIVE_PAGES;
/// Pages of the log at which the writer copies all there is.
const FORCE_PAGES: u64 = WAL_BYTES_MAX / PAGE_BYTES / 2;

/// What is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Log {
    /// Pages in it.
    pages: u64,
    /// Of them: not yet in the database.
    left: u64,
}

impl Log {
    fn run(db: &Connection, sql: &str) -> Result<Self> {
        db.prepare_cached(sql)?.query_row([], |row| {
            let number = |index| Ok::<_, rusqlite::Error>(u64::try_from(row.get::<_, i64>(index)?).unwrap_or_default());
            let (pages, copied) = (number(1)?, number(2)?);
            Ok(Self { pages, left: pages.saturating_sub(copied) })
        })
    }
}

/// The background thread, and what the writer knows of it.
pub(super) struct Checkpointer {
    ask: SyncSender<()>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    is_running: AtomicBool,
    has_failed: AtomicBool,
}

impl Checkpointer {
    /// Starts the thread; it ends with the value.
    pub(super) fn start(database: &Database) -> Result<Self> {
        let db = database.writer()?;
        let (ask, asked) = sync_channel(1);
        let state = Arc::new(State::default());
        let shared = state.clone();
        thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || serve(&db, &asked, &shared))
            .map_err(|_| rusqlite::Error::InvalidQuery)?;
        Ok(Self { ask, state })
    }

    /// After each commit, outside a transaction. True if the log is too long to
    /// accept more.
    pub(super) fn after_commit(&self, db: &Connection) -> Result<bool> {
        if self.state.has_failed.load(Ordering::Acquire) {
            return Err(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR),
                Some("a checkpoint failed".to_owned()),
            ));
        }
        let log = Log::run(db, "PRAGMA wal_checkpoint(NOOP)")?;
        let is_running = self.state.is_running.load(Ordering::Acquire);
        match decide(log, is_running) {
            Decision::Nothing => {}
            Decision::Passive => {
                self.state.is_running.store(true, Ordering::Release);
                if self.ask.try_send(()).is_err() {
                    self.state.is_running.store(false, Ordering::Release);
                }
            }
            Decision::Restart => {
                Log::run(db, "PRAGMA wal_checkpoint(RESTART)")?;
            }
        }
        Ok(log.pages * PAGE_BYTES >= WAL_BYTES_MAX)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Nothing,
    Passive,
    Restart,
}

/// Only one checkpoint runs at a time.
fn decide(log: Log, is_running: bool) -> Decision {
    match log {
        _ if is_running => Decision::Nothing,
        Log { pages, left } if pages >= RESTART_PAGES && left <= RESTART_LEFT_MAX => Decision::Restart,
        Log { pages, .. } if pages >= FORCE_PAGES => Decision::Restart,
        Log { left, .. } if left >= PASSIVE_PAGES => Decision::Passive,
        Log { .. } => Decision::Nothing,
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
        let check = |pages, left, is_running, expected| {
            assert_eq!(decide(Log { pages, left }, is_running), expected, "{pages} pages, {left} left");
        };
        check(PASSIVE_PAGES - 1, PASSIVE_PAGES - 1, false, Decision::Nothing);
        check(PASSIVE_PAGES, PASSIVE_PAGES, false, Decision::Passive);
        check(PASSIVE_PAGES, PASSIVE_PAGES, true, Decision::Nothing);
        check(RESTART_PAGES, RESTART_LEFT_MAX + 1, false, Decision::Passive);
        check(RESTART_PAGES, RESTART_LEFT_MAX, false, Decision::Restart);
        check(FORCE_PAGES, FORCE_PAGES, false, Decision::Restart);
    }
}
