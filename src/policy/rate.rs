//! How many requests may start in a period: exactly.
//!
//! A bucket of `requests` tokens; a token that is spent comes back one period
//! later. So no window of one period, wherever it begins, holds more than
//! `requests` starts. (A bucket that is refilled evenly would let twice as many
//! through after a quiet time, and receivers answer that with 429.)
//!
//! Tokens come back in [`SLOTS`] portions, up to a sixteenth of a period late:
//! so the memory is constant whatever the number of requests.

use std::time::Duration;

use super::delivery::Rate;

/// Portions of a period in which tokens come back.
pub const SLOTS: usize = 16;

/// Counts the starts of one Webhook. Times are milliseconds of any clock that
/// never goes backwards.
#[derive(Clone, Debug, PartialEq)]
pub struct RateLimiter {
    requests: u32,
    slot_ms: i64,
    /// Number of the newest slot: time divided by `slot_ms`.
    newest: i64,
    /// Starts by slot: the newest and those that still lie in the period.
    starts: [u32; SLOTS + 1],
    sum: u32,
}

impl RateLimiter {
    /// A limiter with all its tokens.
    pub fn new(rate: Rate) -> Self {
        let period_ms = i64::try_from(rate.per.as_millis()).unwrap_or(i64::MAX).max(1);
        // Rounded up: slots that cover more than the period only limit more.
        let slot_ms = (period_ms.saturating_add(SLOTS_MS - 1)) / SLOTS_MS;
        Self { requests: rate.requests.max(1), slot_ms, newest: i64::MIN, starts: [0; SLOTS + 1], sum: 0 }
    }

    /// Spends a token.
    ///
    /// # Errors
    /// When the next one comes back, if there is none.
    pub fn take(&mut self, now_ms: i64) -> Result<(), Duration> {
        self.advance(now_ms.div_euclid(self.slot_ms));
        if self.sum < self.requests {
            let at = Self::place(self.newest);
            if let Some(count) = self.starts.get_mut(at) {
                *count += 1;
                self.sum += 1;
            }
            return Ok(());
        }
        Err(self.next(now_ms))
    }

    /// Gives back the token of a start that did not happen.
    pub fn give_back(&mut self) {
        let at = Self::place(self.newest);
        if let Some(count) = self.starts.get_mut(at).filter(|count| **count > 0) {
            *count -= 1;
            self.sum -= 1;
        }
    }

    /// Whether this is a limiter of that rate: a changed one begins anew.
    pub fn is_of(&self, rate: Rate) -> bool {
        let fresh = Self::new(rate);
        self.requests == fresh.requests && self.slot_ms == fresh.slot_ms
    }

    fn advance(&mut self, slot: i64) {
        if self.newest == i64::MIN || slot.saturating_sub(self.newest) > SLOTS_MS {
            self.starts = [0; SLOTS + 1];
            self.sum = 0;
            self.newest = slot;
        }
        while self.newest < slot {
            self.newest += 1;
            if let Some(count) = self.starts.get_mut(Self::place(self.newest)) {
                self.sum -= *count;
                *count = 0;
            }
        }
    }

    /// Time until the oldest portion with starts leaves the period.
    fn next(&self, now_ms: i64) -> Duration {
        let oldest = (0..=SLOTS_MS)
            .rev()
            .map(|age| self.newest - age)
            .find(|slot| self.starts.get(Self::place(*slot)).is_some_and(|count| *count > 0))
            .unwrap_or(self.newest);
        let at_ms = (oldest + SLOTS_MS + 1).saturating_mul(self.slot_ms);
        Duration::from_millis(u64::try_from(at_ms - now_ms).unwrap_or(1).max(1))
    }

    fn place(slot: i64) -> usize {
        usize::try_from(slot.rem_euclid(SLOTS_MS + 1)).unwrap_or_default()
    }
}

/// [`SLOTS`] for arithmetic with times.
const SLOTS_MS: i64 = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limiter(requests: u32, per_ms: u64) -> RateLimiter {
        RateLimiter::new(Rate { requests, per: Duration::from_millis(per_ms) })
    }

    #[test]
    fn a_full_bucket_starts_all_at_once_and_then_waits_for_the_period() {
        let mut limiter = limiter(10, 1_600);
        for _ in 0..10 {
            assert_eq!(limiter.take(5), Ok(()));
        }
        assert_eq!(limiter.take(5), Err(Duration::from_millis(1_695)));
        assert_eq!(limiter.take(1_699), Err(Duration::from_millis(1)));
        assert_eq!(limiter.take(1_700), Ok(()));
    }

    #[test]
    fn a_token_given_back_can_be_spent_at_once() {
        let mut limiter = limiter(1, 1_000);
        assert_eq!(limiter.take(0), Ok(()));
        limiter.give_back();
        assert_eq!(limiter.take(0), Ok(()));
        assert!(limiter.take(0).is_err());
    }

    #[test]
    fn who_starts_whenever_he_may_gets_nearly_the_whole_rate() {
        let mut limiter = limiter(100, 1_000);
        let started = (0..60_000).filter(|now| limiter.take(*now).is_ok()).count();
        assert!((5_500..=6_000).contains(&started), "{started}");
    }

    proptest! {
        #[test]
        fn no_period_holds_more_starts_than_allowed(
            requests in 1u32..40, per_ms in 1u64..5_000, steps in prop::collection::vec(0i64..800, 1..400),
        ) {
            let mut limiter = limiter(requests, per_ms);
            let (mut now, mut starts) = (0, Vec::new());
            for step in steps {
                now += step;
                match limiter.take(now) {
                    Ok(()) => starts.push(now),
                    Err(wait) => {
                        // What it says is true: then, and not before.
                        let at = now + i64::try_from(wait.as_millis()).unwrap();
                        prop_assert!(limiter.clone().take(at - 1).is_err() || at - 1 == now);
                        prop_assert!(limiter.clone().take(at).is_ok());
                    }
                }
            }
            for (first, last) in starts.iter().zip(starts.iter().skip(requests as usize)) {
                prop_assert!(last - first >= i64::try_from(per_ms).unwrap(), "{first} {last}");
            }
        }
    }
}
