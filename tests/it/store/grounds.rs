//! The stores that the suite runs on.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use posthorn::store::{
    StoreLimits, news_channel,
    sqlite::{OpenError, SqliteConfig, SqliteStore, StoreMetrics},
};
use tempfile::TempDir;

use super::{
    clock::TestClock,
    model::{Disk, ModelStore, State},
    router::PatternRouter,
    world::{Ground, Opened},
};

/// How long the lock of a store that was dropped may stay.
const LOCK_LEFT_WITHIN: Duration = Duration::from_secs(10);

/// The model in memory.
pub struct ModelGround {
    clock: Arc<TestClock>,
    disk: Disk,
}

impl ModelGround {
    pub fn new(clock: Arc<TestClock>) -> Self {
        Self { disk: Arc::new(Mutex::new(State::new(clock.clone()))), clock }
    }

    pub fn fresh() -> Self {
        Self::new(Arc::new(TestClock::new()))
    }
}

impl Ground for ModelGround {
    fn open(&mut self) -> BoxFuture<'_, Opened> {
        let (store, news) = ModelStore::open(&self.disk, Box::new(PatternRouter::default()));
        let store = Arc::new(store);
        async { Opened { ingest: store.clone(), partition: store.clone(), history: store, news } }.boxed()
    }

    fn crash(&mut self, opened: Opened) -> BoxFuture<'_, ()> {
        drop(opened);
        async {}.boxed()
    }

    fn clock(&self) -> Arc<TestClock> {
        self.clock.clone()
    }
}

/// SQLite in a folder in memory: what a sync is good for is shown by the tests
/// of faults, and the suite need not wait for a disk.
pub struct SqliteGround {
    clock: Arc<TestClock>,
    folder: TempDir,
}

impl SqliteGround {
    pub fn fresh() -> Self {
        let memory = std::path::Path::new("/dev/shm");
        let folder = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
        Self { clock: Arc::new(TestClock::new()), folder: folder.unwrap() }
    }

    pub fn config(&self) -> SqliteConfig {
        SqliteConfig {
            folder: self.folder.path().join("store"),
            pool: "default".to_owned(),
            expected_store: None,
            accept_store: None,
            limits: StoreLimits::default(),
            clock: self.clock.clone(),
            metrics: StoreMetrics::default(),
        }
    }
}

impl Ground for SqliteGround {
    fn open(&mut self) -> BoxFuture<'_, Opened> {
        async {
            let begun = Instant::now();
            let (store, news) = loop {
                let (sender, news) = news_channel();
                match SqliteStore::open(self.config(), Box::new(PatternRouter::default()), sender) {
                    Ok(store) => break (store, news),
                    // Another test of this process starts a program: until that is
                    // loaded, it has every file of the parent open, this lock too.
                    Err(OpenError::Locked { .. }) if begun.elapsed() < LOCK_LEFT_WITHIN => {
                        tokio::task::yield_now().await
                    }
                    Err(error) => panic!("{error}"),
                }
            };
            Opened { ingest: store.clone(), partition: store.clone(), history: store, news }
        }
        .boxed()
    }

    /// The last handle of a store ends its writer where it is.
    fn crash(&mut self, opened: Opened) -> BoxFuture<'_, ()> {
        drop(opened);
        async {}.boxed()
    }

    fn clock(&self) -> Arc<TestClock> {
        self.clock.clone()
    }
}
