//! How many events a namespace may hand in: a token bucket each.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::EventRate;

/// Namespaces whose buckets are kept before full ones are let go.
const BUCKETS_MAX: usize = 4_096;
/// The longest time that a publisher is told to wait.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Parts of an event that a bucket counts in.
const MICRO: i64 = 1_000_000;

/// The buckets by UID of the namespace.
#[derive(Debug, Default)]
pub(super) struct Buckets(Mutex<HashMap<Arc<str>, Bucket>>);

impl Buckets {
    /// Whether the namespace could hand in an event now; else when it can.
    pub(super) fn peek(&self, uid: &Arc<str>, rate: EventRate, now: Instant) -> Result<(), Duration> {
        self.with(uid, rate, now, |bucket| bucket.check(rate, 1))
    }

    /// Takes so many events; else tells when they can be taken.
    pub(super) fn take(&self, uid: &Arc<str>, rate: EventRate, events: usize, now: Instant) -> Result<(), Duration> {
        let events = i64::try_from(events).unwrap_or(i64::MAX);
        self.with(uid, rate, now, |bucket| {
            bucket.check(rate, events)?;
            bucket.level = bucket.level.saturating_sub(events.saturating_mul(MICRO));
            Ok(())
        })
    }

    fn with<R>(&self, uid: &Arc<str>, rate: EventRate, now: Instant, act: impl FnOnce(&mut Bucket) -> R) -> R {
        // The arithmetic under the lock cannot panic.
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= BUCKETS_MAX && !buckets.contains_key(uid) {
            buckets.retain(|_, bucket| {
                bucket.refill(rate, now);
                bucket.level < capacity(rate)
            });
        }
        let bucket = buckets.entry(Arc::clone(uid)).or_insert(Bucket { level: capacity(rate), at: now });
        bucket.refill(rate, now);
        act(bucket)
    }
}

/// Events that may come in at once, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    level: i64,
    at: Instant,
}

impl Bucket {
    fn refill(&mut self, rate: EventRate, now: Instant) {
        // Microseconds times events a second are millionths of events.
        let passed = i64::try_from(now.saturating_duration_since(self.at).as_micros()).unwrap_or(i64::MAX);
        let gained = passed.saturating_mul(i64::from(rate.events_per_second));
        self.level = self.level.saturating_add(gained).min(capacity(rate));
        self.at = self.at.max(now);
    }

    /// A batch larger than the burst passes when the bucket is full, and leaves
    /// it in debt: else it never could.
    fn check(&self, rate: EventRate, events: i64) -> Result<(), Duration> {
        let needed = events.saturating_mul(MICRO).min(capacity(rate));
        let lacking = u64::try_from(needed.saturating_sub(self.level)).unwrap_or(0);
        if lacking == 0 {
            return Ok(());
        }
        let wait = lacking.checked_div(u64::from(rate.events_per_second)).map(Duration::from_micros);
        Err(wait.unwrap_or(WAIT_MAX).min(WAIT_MAX))
    }
}

fn capacity(rate: EventRate) -> i64 {
    i64::from(rate.burst.max(1)) * MICRO
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::runtime::clock;

    const RATE: EventRate = EventRate { events_per_second: 10, burst: 5 };

    #[test]
    fn a_burst_passes_at_once_and_then_as_many_as_the_rate_allows() {
        let (buckets, start, uid) = (Buckets::default(), clock::monotonic(), Arc::from("1"));
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        for _ in 0..5 {
            assert_eq!(buckets.take(&uid, RATE, 1, at(0)), Ok(()));
        }
        assert_eq!(buckets.peek(&uid, RATE, at(0)), Err(Duration::from_millis(100)));
        assert_eq!(buckets.take(&uid, RATE, 1, at(99)), Err(Duration::from_millis(1)));
        assert_eq!(buckets.take(&uid, RATE, 1, at(100)), Ok(()));
        assert_eq!(buckets.take(&"2".into(), RATE, 5, at(100)), Ok(()));
        assert_eq!(buckets.take(&uid, RATE, 5, at(599)), Err(Duration::from_millis(1)));
        assert_eq!(buckets.take(&uid, RATE, 5, at(600)), Ok(()));
    }

    #[test]
    fn a_batch_beyond_the_burst_passes_a_full_bucket_and_is_paid_back() {
        let (buckets, start, uid) = (Buckets::default(), clock::monotonic(), Arc::from("1"));
        assert_eq!(buckets.take(&uid, RATE, 25, start), Ok(()));
        assert_eq!(buckets.peek(&uid, RATE, start), Err(Duration::from_millis(2_100)));
        assert_eq!(buckets.peek(&uid, RATE, start + Duration::from_millis(2_100)), Ok(()));
    }

    #[test]
    fn a_rate_of_zero_and_a_changed_rate_hold_at_once() {
        let (buckets, start, uid) = (Buckets::default(), clock::monotonic(), Arc::from("1"));
        let zero = EventRate { events_per_second: 0, burst: 0 };
        assert_eq!(buckets.take(&uid, RATE, 4, start), Ok(()));
        assert_eq!(buckets.take(&uid, zero, 1, start), Ok(()));
        assert_eq!(buckets.take(&uid, zero, 1, start + WAIT_MAX), Err(WAIT_MAX));
        assert_eq!(buckets.take(&uid, RATE, 5, start + WAIT_MAX + Duration::from_millis(500)), Ok(()));
    }

    #[test]
    fn buckets_that_are_full_again_are_let_go() {
        let (buckets, start) = (Buckets::default(), clock::monotonic());
        for number in 0..2 * BUCKETS_MAX {
            let now = start + Duration::from_secs(number as u64);
            assert_eq!(buckets.take(&number.to_string().into(), RATE, 1, now), Ok(()));
        }
        assert!(buckets.0.lock().unwrap().len() <= BUCKETS_MAX);
    }

    proptest! {
        #[test]
        fn no_second_brings_more_than_rate_and_burst(steps in prop::collection::vec((0_u64..300, 1_usize..8), 1..200)) {
            let (buckets, start, uid) = (Buckets::default(), clock::monotonic(), Arc::from("1"));
            let (mut milliseconds, mut taken) = (0, 0_u64);
            for (pause, events) in steps {
                milliseconds += pause;
                if buckets.take(&uid, RATE, events.min(5), start + Duration::from_millis(milliseconds)).is_ok() {
                    taken += events.min(5) as u64;
                }
                prop_assert!(taken * 1_000 <= 5_000 + milliseconds * 10);
            }
        }
    }
}
