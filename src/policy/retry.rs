//! When a failed attempt is repeated.

use std::time::Duration;

use super::delivery::RetryPlan;

/// A `Retry-After` counts up to this: 24 h.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

impl RetryPlan {
    /// The interval after so many attempts that were used up; none: that was the
    /// last one.
    pub fn interval(&self, tries: u16) -> Option<Duration> {
        let index = u32::from(tries).checked_sub(1)?;
        match self {
            Self::Schedule(intervals) => intervals.get(usize::try_from(index).ok()?).copied(),
            Self::Backoff { initial, factor, max, attempts } => {
                if tries >= *attempts {
                    return None;
                }
                let grown = factor.checked_pow(index).and_then(|grown| initial.checked_mul(grown));
                Some(grown.unwrap_or(*max).min(*max))
            }
        }
    }
}

/// How long to wait after `tries` attempts that were used up; none: the last
/// one was it.
///
/// `jitter` of the interval is random, around the interval, so that Deliveries
/// that failed together do not come back together; `chance` is in [0, 1). The
/// later of that and of what the endpoint asked for counts.
pub fn next_wait(
    plan: &RetryPlan,
    jitter: f64,
    tries: u16,
    chance: f64,
    retry_after: Option<Duration>,
) -> Option<Duration> {
    let wait = spread(plan.interval(tries)?, jitter, chance);
    Some(retry_after.map_or(wait, |asked| wait.max(asked.min(RETRY_AFTER_MAX))))
}

/// An interval, `jitter` of it random around it.
pub fn spread(interval: Duration, jitter: f64, chance: f64) -> Duration {
    let jitter = jitter.clamp(0.0, 0.5);
    interval.mul_f64(1.0 + jitter * (2.0 * chance.clamp(0.0, 1.0) - 1.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(seconds: &[u64]) -> RetryPlan {
        RetryPlan::Schedule(seconds.iter().map(|s| Duration::from_secs(*s)).collect())
    }

    fn check(plan: &RetryPlan, expected: &[u64]) {
        let expected: Vec<Option<Duration>> =
            expected.iter().map(|s| Some(Duration::from_secs(*s))).chain([None, None]).collect();
        let found: Vec<Option<Duration>> =
            (1..).take(expected.len()).map(|tries| next_wait(plan, 0.0, tries, 0.7, None)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_schedule_ends_with_its_last_interval() {
        check(&seconds(&[60, 300, 900]), &[60, 300, 900]);
    }

    #[test]
    fn a_backoff_grows_up_to_its_longest_interval_and_ends_with_its_attempts() {
        let second = Duration::from_secs(1);
        let plan = RetryPlan::Backoff { initial: second, factor: 3, max: 10 * second, attempts: 6 };
        check(&plan, &[1, 3, 9, 10, 10]);
        check(&RetryPlan::Backoff { initial: second, factor: 2, max: second, attempts: 1 }, &[]);
    }

    #[test]
    fn the_endpoint_is_heard_up_to_a_day() {
        let wait = |asked: u64| next_wait(&seconds(&[60]), 0.0, 1, 0.0, Some(Duration::from_secs(asked)));
        assert_eq!(wait(0), Some(Duration::from_secs(60)));
        assert_eq!(wait(61), Some(Duration::from_secs(61)));
        assert_eq!(wait(86_400), Some(RETRY_AFTER_MAX));
        assert_eq!(wait(86_401), Some(RETRY_AFTER_MAX));
        assert_eq!(wait(u64::MAX), Some(RETRY_AFTER_MAX));
    }

    proptest! {
        #[test]
        fn jitter_stays_around_the_interval(
            interval_ms in 1u64..90_000_000, jitter in 0.0f64..=0.5, chance in 0.0f64..1.0, tries in 1u16..200,
        ) {
            let interval = Duration::from_millis(interval_ms);
            let plan = RetryPlan::Backoff { initial: interval, factor: 10, max: interval, attempts: 100 };
            match next_wait(&plan, jitter, tries, chance, None) {
                Some(wait) => {
                    prop_assert!(tries < 100);
                    let slack = Duration::from_nanos(1);
                    prop_assert!(wait + slack >= interval.mul_f64(1.0 - jitter));
                    prop_assert!(wait <= interval.mul_f64(1.0 + jitter) + slack);
                }
                None => prop_assert!(tries >= 100),
            }
        }

        #[test]
        fn nothing_overflows(factor in 1u32..=10, attempts: u16, tries: u16, asked: u64) {
            let day = Duration::from_secs(86_400);
            let plan = RetryPlan::Backoff { initial: day, factor, max: day, attempts };
            if let Some(wait) = next_wait(&plan, 0.5, tries, 0.999, Some(Duration::from_secs(asked))) {
                prop_assert!(wait <= day.mul_f64(1.5));
            }
        }
    }
}
