//! The store on one disk: SQLite, one writer.
//!
//! # Flow
//! Calls put what they want into a queue ([`queue`]); one thread makes everything
//! that waits one transaction ([`writer`]): outcomes ([`outcomes`]), what is known
//! of Webhooks and Subscriptions ([`register`]), events ([`accept`]), a step of
//! what the store does by itself ([`maintenance`]). When that is durable, callers
//! get their answers and the dispatcher its news. Reads go around the writer, on
//! connections of their own ([`readers`]).
//!
//! # Guarantees
//! A call that returned without an error is on stable storage; outcomes survive
//! the end of the process at once, and that of the machine from the next such
//! call on. Nothing is tried again after an error of the disk, but that it is full
//! ([`stuck`], [`volume`]).

mod accept;
mod backup;
mod checkpoint;
mod effects;
mod filters;
mod history;
mod maintenance;
mod metrics;
mod open;
mod outcomes;
mod pending;
mod queue;
mod read;
mod readers;
mod recent;
mod register;
mod rows;
mod slack;
mod space;
mod stuck;
mod tally;
#[cfg(test)]
mod tests;
mod time;
mod told;
mod verify;
mod volume;
mod writer;

use std::{
    collections::HashMap,
    fs::File,
    sync::{Arc, atomic::Ordering},
    thread::{self, JoinHandle},
    time::Duration,
};

use rusqlite::Connection;
use tokio::sync::{oneshot, watch};

pub use backup::{BackupError, backup, restore};
pub use checkpoint::WAL_BYTES_MAX;
pub use metrics::StoreMetrics;
pub use open::{ACCEPT_NEW, DATABASE_FILE, OpenError, SCHEMA_VERSION, SqliteConfig, begin_epoch};
pub use queue::WAITING_BYTES_MAX;
pub use time::{Clock, STOP_MAX, SystemClock};
pub use verify::{Problem, Verification, verify};

use self::{
    checkpoint::Checkpointer,
    filters::Filters,
    open::{Database, Opened},
    queue::{Ask, Command},
    readers::Readers,
    recent::RecentIds,
    rows::Epochs,
    slack::Slack,
    space::{Room, Usage},
    tally::Ledger,
    volume::Volume,
    writer::{Shared, State, Writer},
};
use crate::{
    event::{Pos, StoreTime},
    store::{
        AcceptError, Accepted, Answer, AttemptId, AttemptRow, BlockedKey, CardMark, CardQuery, DeadRow, DeliveryState,
        History, HookId, HookNote, Ingest, Known, KnownNamespace, NewEvent, NewsSender, OrderKey, Outcome, OwedPage,
        OwedRow, Partition, RecordTicket, Register, Registered, ReplayIdentity, ReplayOrder, ReplayRun, Router, Space,
        StoreError, StoreLimits, StoredEvent, TallyPage, TallyRevision, Totals, WaitingPage,
    },
};
use futures::{FutureExt, future::BoxFuture};

/// A store on one disk. Dropped without [`Partition::close`] it ends as in a
/// crash: what was not durable is lost, what was is there.
pub struct SqliteStore {
    shared: Arc<Shared>,
    store_id: Arc<str>,
    epochs: Arc<Epochs>,
    /// For the dispatcher, so that people's questions do not hold it up.
    refills: Readers,
    /// For everybody else.
    questions: Readers,
    thread: Option<JoinHandle<()>>,
    /// See [`volume::begin_log`].
    _index: File,
    /// Holds the lock for as long as anything of the store is open: dropped last.
    _database: Database,
}

impl SqliteStore {
    /// Opens the store, or makes it.
    ///
    /// # Guarantees
    /// The router knows everything that the store knows when this returns.
    /// Reads the disk for as long as recovery takes: not to be called on a thread
    /// that must not block.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was changed then.
    pub fn open(config: SqliteConfig, mut router: Box<dyn Router>, news: NewsSender) -> Result<Arc<Self>, OpenError> {
        let opened = open::open(&config)?;
        let fail = OpenError::database(&config.folder);
        let volume = Volume::new(&config.folder, config.limits);
        let limits = *volume.limits();
        let loaded = Loaded::read(&opened, &limits).map_err(&fail)?;
        let pending = |hook| loaded.ledger.tallies.pending(hook);
        router.apply(&register::route_changes(register::known(&opened.db, pending).map_err(&fail)?));
        let refills = Readers::open(&opened.database).map_err(&fail)?;
        let questions = Readers::open(&opened.database).map_err(&fail)?;
        let io_fail = |source| OpenError::Io { folder: config.folder.clone(), source };
        let copier = opened.database.writer().map_err(&fail)?;
        for db in [&opened.db, &copier] {
            volume::grow_in_chunks(db, limits.size_bytes).map_err(&fail)?;
        }
        let index = volume::begin_log(&config.folder, limits.size_bytes).map_err(io_fail)?;
        let checkpointer = Checkpointer::start(copier, limits.size_bytes).map_err(io_fail)?;
        let store_id = Arc::from(opened.store_id);
        let epochs = Arc::new(opened.epochs);
        let Loaded { ledger, room, usage, ids, first_buckets } = loaded;
        let shared = Arc::new(Shared {
            queue: queue::Queue::default(),
            clock: opened.clock,
            usage,
            tallies: ledger.tallies.clone(),
            recorded: watch::Sender::new(RecordTicket::default()),
            told: told::Told::default(),
            is_behind: false.into(),
            #[cfg(test)]
            breaks: stuck::Breaks::default(),
        });
        let state = State {
            next: opened.next,
            next_attempt: opened.next_attempt,
            epochs: epochs.clone(),
            limits,
            namespaces: HashMap::new(),
            ids,
            first_buckets,
            targets: Vec::new(),
        };
        let mut writer = Writer {
            shared: shared.clone(),
            db: opened.db,
            router,
            news,
            state,
            room,
            ledger,
            successes: outcomes::Successes::default(),
            rounds: maintenance::Rounds::default(),
            checkpointer,
            volume,
            stuck: None,
            metrics: config.metrics,
            due: StoreTime(0),
            is_upkeep_spare: false,
            awaited_took: Duration::ZERO,
            is_full_sync: true,
            slack: Slack::new(crate::runtime::clock::monotonic()),
        };
        writer.look_at_volume().map_err(&fail)?;
        let thread = thread::Builder::new().name("store".to_owned()).spawn(move || writer.run());
        let thread = Some(thread.map_err(io_fail)?);
        let (_index, _database) = (index, opened.database);
        Ok(Arc::new(Self { shared, store_id, epochs, refills, questions, thread, _index, _database }))
    }

    /// The random id of this store, given at its birth.
    pub fn store_id(&self) -> &str {
        &self.store_id
    }

    fn read<'a, T: Send + 'static>(
        &self,
        readers: &'a Readers,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Answer<'a, T> {
        match self.shared.queue.ended() {
            Some(error) => async move { Err(error) }.boxed(),
            None => readers.read(query).boxed(),
        }
    }

    /// An answer to the dispatcher: not before the news of what it shows.
    fn read_told<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Answer<'_, T> {
        let answer = self.read(&self.refills, query);
        async move {
            let answer = answer.await?;
            self.shared.told.caught_up().await;
            Ok(answer)
        }
        .boxed()
    }

    fn command<T: Send + 'static>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Command,
    ) -> Answer<'_, T> {
        let answer = self.shared.queue.command(make);
        async move { answer.await.unwrap_or_else(|_| Err(self.lost())) }.boxed()
    }

    /// Why an answer did not come.
    fn lost(&self) -> StoreError {
        self.shared.queue.ended().unwrap_or_else(|| StoreError::Failed(Arc::from("its writer ended")))
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.shared.queue.abandon();
        if let Some(thread) = self.thread.take() {
            // It ended by itself if it panicked; there is nobody left to tell.
            drop(thread.join());
        }
    }
}

/// What is counted at a start.
struct Loaded {
    ledger: Ledger,
    room: Room,
    usage: Arc<Usage>,
    ids: RecentIds,
    first_buckets: HashMap<HookId, i64>,
}

impl Loaded {
    fn read(opened: &Opened, limits: &StoreLimits) -> rusqlite::Result<Self> {
        let db = &opened.db;
        let usage = Arc::new(Usage::default());
        let mut hooks = db.prepare("SELECT id, first_bucket FROM hook WHERE first_bucket IS NOT NULL")?;
        let first_buckets = hooks.query_map([], |row| Ok((HookId(row.get(0)?), row.get(1)?)))?;
        Ok(Self {
            ledger: Ledger::load(db)?,
            room: Room::load(db, usage.clone(), limits)?,
            usage,
            ids: RecentIds::load(db, recent::ROUND_IDS, Filters::new(filters::FILTERS_BYTES_MAX))?,
            first_buckets: first_buckets.collect::<rusqlite::Result<_>>()?,
        })
    }
}

impl Ingest for SqliteStore {
    fn accept(&self, events: Vec<NewEvent>) -> BoxFuture<'_, Result<Vec<Accepted>, AcceptError>> {
        let answer = self.shared.queue.accept(events, self.shared.is_behind.load(Ordering::Relaxed));
        async move { answer?.await.unwrap_or(Err(AcceptError::Unknown)) }.boxed()
    }

    fn space(&self, namespace_uid: &str) -> Space {
        self.shared.usage.space(namespace_uid)
    }
}

impl Partition for SqliteStore {
    fn register(&self, changes: Vec<Register>) -> Answer<'_, Vec<Registered>> {
        self.command(|reply| Command::Register(Ask::new(changes, reply)))
    }

    fn known(&self) -> Answer<'_, Known> {
        let tallies = self.shared.tallies.clone();
        self.read(&self.questions, move |db| register::known(db, |hook| tallies.pending(hook)))
    }

    fn namespaces(&self) -> Answer<'_, Vec<KnownNamespace>> {
        self.read(&self.questions, register::namespaces)
    }

    fn owed(&self, hook: HookId, after: Pos, limit: usize) -> Answer<'_, OwedPage> {
        self.read_told(move |db| read::owed(db, hook, after, limit))
    }

    fn waiting(&self, hook: HookId, now: StoreTime, limit: usize) -> Answer<'_, WaitingPage> {
        self.read_told(move |db| read::waiting(db, hook, now, limit))
    }

    fn blocked_keys(&self, hook: HookId, dead_blocks: bool, limit: usize) -> Answer<'_, Vec<BlockedKey>> {
        self.read_told(move |db| read::blocked_keys(db, hook, dead_blocks, limit))
    }

    fn parked(&self, hook: HookId, key: OrderKey, limit: usize) -> Answer<'_, Vec<OwedRow>> {
        self.read_told(move |db| read::parked(db, hook, key, limit))
    }

    fn bodies(&self, positions: Vec<Pos>) -> Answer<'_, Vec<StoredEvent>> {
        let epochs = self.epochs.clone();
        self.read(&self.refills, move |db| read::bodies(db, &epochs, &positions))
    }

    fn record(&self, outcomes: Vec<Outcome>) -> RecordTicket {
        self.shared.queue.record(outcomes)
    }

    fn recorded(&self) -> watch::Receiver<RecordTicket> {
        self.shared.recorded.subscribe()
    }

    fn note(&self, hook: HookId, note: HookNote) -> Answer<'_, ()> {
        self.command(|reply| Command::Note(Ask::new((hook, note), reply)))
    }

    fn tallies(&self, after: TallyRevision, limit: usize) -> Answer<'_, TallyPage> {
        let page = self.shared.tallies.page(after, limit);
        async move { self.shared.queue.ended().map_or(Ok(page), Err) }.boxed()
    }

    fn cards(&self, query: CardQuery) -> Answer<'_, Vec<DeadRow>> {
        let epochs = self.epochs.clone();
        self.read(&self.questions, move |db| maintenance::cards(db, &epochs, &query))
    }

    fn mark_cards(&self, marks: Vec<CardMark>) -> Answer<'_, ()> {
        self.command(|reply| Command::MarkCards(Ask::new(marks, reply)))
    }

    fn replay(&self, order: ReplayOrder) -> Answer<'_, ReplayRun> {
        self.command(|reply| Command::Replay(Ask::new(order, reply)))
    }

    fn replay_run(&self, identity: ReplayIdentity) -> Answer<'_, Option<ReplayRun>> {
        self.read(&self.questions, move |db| maintenance::replay_run(db, &identity))
    }

    fn cancel_replay(&self, identity: ReplayIdentity) -> Answer<'_, Option<ReplayRun>> {
        self.command(|reply| Command::CancelReplay(Ask::new(identity, reply)))
    }

    fn configure(&self, limits: StoreLimits) {
        self.shared.queue.configure(limits);
    }

    fn store_now(&self) -> StoreTime {
        self.shared.clock.now()
    }

    fn close(&self) -> Answer<'_, ()> {
        let answer = self.shared.queue.close();
        async move { answer.await.unwrap_or_else(|_| Err(self.lost())) }.boxed()
    }
}

impl History for SqliteStore {
    fn attempts(&self, hook: HookId, before: Option<AttemptId>, limit: usize) -> Answer<'_, Vec<AttemptRow>> {
        self.read(&self.questions, move |db| history::attempts(db, hook, before, limit))
    }

    fn attempts_of(&self, pos: Pos, limit: usize) -> Answer<'_, Vec<AttemptRow>> {
        self.read(&self.questions, move |db| history::attempts_of(db, pos, limit))
    }

    fn states_of(&self, pos: Pos) -> Answer<'_, Vec<(HookId, DeliveryState)>> {
        self.read(&self.questions, move |db| history::states_of(db, pos))
    }

    fn totals(&self) -> Answer<'_, Totals> {
        self.read(&self.questions, history::totals)
    }
}
