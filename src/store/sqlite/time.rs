//! The store's time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;

use crate::{event::StoreTime, runtime::clock};

/// How far the store's time moves over a stop at most. A wall clock that is
/// wrong at a start expires at most that much.
pub const STOP_MAX: Duration = Duration::from_secs(3600);

/// Where the store reads the time. Tests drive their own.
pub trait Clock: Send + Sync {
    /// Wall time.
    fn wall(&self) -> Timestamp;
    /// Monotonic time.
    fn monotonic(&self) -> Instant;
}

/// The clocks of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn wall(&self) -> Timestamp {
        clock::now()
    }

    fn monotonic(&self) -> Instant {
        clock::monotonic()
    }
}

/// What was stored of the clocks with the last commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoredClock {
    pub(super) store: StoreTime,
    pub(super) wall_ms: i64,
}

/// Store time: from where the last commit left it, driven by the monotonic clock.
pub(super) struct StoreClock {
    clock: Arc<dyn Clock>,
    began: StoreTime,
    began_monotonic: Instant,
}

impl StoreClock {
    pub(super) fn start(clock: Arc<dyn Clock>, stored: Option<StoredClock>) -> Self {
        let began = start_time(stored, clock.wall().as_millisecond());
        let began_monotonic = clock.monotonic();
        Self { clock, began, began_monotonic }
    }

    pub(super) fn now(&self) -> StoreTime {
        let passed = self.clock.monotonic().saturating_duration_since(self.began_monotonic);
        self.began.plus_ms(i64::try_from(passed.as_millis()).unwrap_or(i64::MAX))
    }

    pub(super) fn wall(&self) -> Timestamp {
        self.clock.wall()
    }
}

/// A new store begins with wall time; another one goes on by what the wall clock
/// says has passed, but neither backwards nor by more than [`STOP_MAX`].
fn start_time(stored: Option<StoredClock>, wall_ms: i64) -> StoreTime {
    let Some(stored) = stored else { return StoreTime(wall_ms) };
    let stop_max = i64::try_from(STOP_MAX.as_millis()).unwrap_or(i64::MAX);
    stored.store.plus_ms(wall_ms.saturating_sub(stored.wall_ms).clamp(0, stop_max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_moves_the_time_by_what_has_passed_but_at_most_an_hour_and_never_back() {
        let day = 24 * 3_600_000;
        let stored = Some(StoredClock { store: StoreTime(5_000), wall_ms: 10 * day });
        let check = |wall_ms, expected| assert_eq!(start_time(stored, wall_ms), StoreTime(expected));
        check(10 * day + 1_000, 6_000);
        check(10 * day + 3_600_000, 3_605_000);
        check(10 * day + 3_600_001, 3_605_000);
        check(13 * day, 3_605_000);
        check(7 * day, 5_000);
        assert_eq!(start_time(None, 77), StoreTime(77));
    }
}
