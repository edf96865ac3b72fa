//! A clock that tests move.

use std::{
    sync::atomic::{AtomicI64, Ordering::SeqCst},
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use posthorn::store::sqlite::Clock;

/// 2026-11-18: any time will do.
const BEGIN_MS: i64 = 1_795_000_000_000;

/// Wall and monotonic time, which can part.
#[derive(Debug)]
pub struct TestClock {
    wall_ms: AtomicI64,
    monotonic_ms: AtomicI64,
    began: Instant,
}

impl TestClock {
    pub fn new() -> Self {
        Self { wall_ms: AtomicI64::new(BEGIN_MS), monotonic_ms: AtomicI64::new(0), began: Instant::now() }
    }

    pub fn wall_ms(&self) -> i64 {
        self.wall_ms.load(SeqCst)
    }

    pub fn wall(&self) -> Timestamp {
        Timestamp::from_millisecond(self.wall_ms()).unwrap()
    }

    pub fn monotonic_ms(&self) -> i64 {
        self.monotonic_ms.load(SeqCst)
    }

    /// Time passes.
    pub fn advance(&self, by: Duration) {
        let by_ms = i64::try_from(by.as_millis()).unwrap();
        self.wall_ms.fetch_add(by_ms, SeqCst);
        self.monotonic_ms.fetch_add(by_ms, SeqCst);
    }

    /// Somebody sets the wall clock.
    pub fn jump_wall_ms(&self, by_ms: i64) {
        self.wall_ms.fetch_add(by_ms, SeqCst);
    }
}

impl Clock for TestClock {
    fn wall(&self) -> Timestamp {
        self.wall()
    }

    fn monotonic(&self) -> Instant {
        self.began + Duration::from_millis(self.monotonic_ms().cast_unsigned())
    }
}
