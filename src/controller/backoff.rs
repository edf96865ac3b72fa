//! Waits that grow, with jitter. Pure.

use std::time::Duration;

/// Share of a wait that chance decides: many that failed together do not come
/// back together.
const JITTER: f64 = 0.5;

/// The waits between tries of one thing.
#[derive(Clone, Debug, PartialEq)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits from `first` to `max`, doubling.
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, failures: 0 }
    }

    /// The wait after one more failure; `chance` in [0, 1).
    pub fn next(&mut self, chance: f64) -> Duration {
        let wait = wait(self.first, self.max, self.failures, chance);
        self.failures = self.failures.saturating_add(1);
        wait
    }

    /// It worked: the next failure is the first one again.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since it last worked.
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

/// `first` × 2^`failures`, at most `max`; of that, the upper half is decided by chance.
pub fn wait(first: Duration, max: Duration, failures: u32, chance: f64) -> Duration {
    let whole = first.saturating_mul(1 << failures.min(20)).min(max);
    whole.mul_f64(1.0 - JITTER * chance.clamp(0.0, 1.0))
}

/// `length` shortened by up to a tenth, so that things that began together do
/// not recur together.
pub fn spread(length: Duration, chance: f64) -> Duration {
    length.mul_f64(1.0 - 0.1 * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_anew_after_success() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
        let waits: Vec<_> = (0..6).map(|_| backoff.next(0.0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 10, 10]);
        backoff.reset();
        assert_eq!(backoff.next(0.0).as_secs(), 1);
    }

    #[test]
    fn chance_takes_up_to_half_of_a_wait() {
        let seconds = |chance| wait(Duration::from_secs(60), Duration::from_secs(60), 90, chance).as_secs();
        assert_eq!((seconds(0.0), seconds(0.5), seconds(1.0)), (60, 45, 30));
        assert_eq!(spread(Duration::from_secs(300), 1.0).as_secs(), 270);
    }
}
