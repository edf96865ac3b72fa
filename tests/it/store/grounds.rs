//! The stores that the suite runs on.

use std::sync::{Arc, Mutex};

use futures::{FutureExt, future::BoxFuture};

use super::{
    clock::TestClock,
    model::{Disk, ModelStore, State},
    router::PatternRouter,
    world::{Ground, Opened},
};

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
