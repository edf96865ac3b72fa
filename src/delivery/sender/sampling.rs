//! Of which successes the full detail is kept: of all that a Webhook has in usual
//! traffic, of some a second under load, where 50 of them would last for
//! milliseconds and cost a fifth of the store's time. See docs/decisions/0006.

use std::sync::atomic::{AtomicI64, Ordering};

/// Of one Webhook: as many at once as the store keeps, then one a second.
pub(super) const OF_WEBHOOK: Sampling = Sampling { burst: 50, every_us: 1_000_000 };
/// Of a pod: 4,096 at once, then 256 a second.
pub(super) const OF_POD: Sampling = Sampling { burst: 4_096, every_us: 1_000_000 / 256 };

/// So many at once, then one in so many microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sampling {
    burst: i64,
    every_us: i64,
}

/// What was taken of a [`Sampling`]: the generic cell rate algorithm (ITU-T
/// I.371), whose whole state is the time at which everything is there again.
#[derive(Debug, Default)]
pub(super) struct Taken(AtomicI64);

impl Taken {
    /// Takes one; false if there is none at this time, in microseconds of any
    /// clock that never goes backwards and begins at zero.
    pub(super) fn take(&self, sampling: Sampling, now_us: i64) -> bool {
        let Sampling { burst, every_us } = sampling;
        let after = |full: i64| {
            let after = full.max(now_us) + every_us;
            (after - now_us <= burst * every_us).then_some(after)
        };
        // Nothing else depends on what another thread sees of it, or when.
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_burst_then_one_each_period_and_all_again_after_a_quiet_time() {
        let sampling = Sampling { burst: 3, every_us: 10 };
        let taken = Taken::default();
        let count = |now_us| (0..10).filter(|_| taken.take(sampling, now_us)).count();
        assert_eq!(count(0), 3);
        assert_eq!(count(9), 0);
        assert_eq!(count(10), 1);
        assert_eq!(count(25), 1);
        assert_eq!(count(30), 1);
        assert_eq!(count(1_000), 3);
    }

    #[test]
    fn a_webhook_in_usual_traffic_keeps_every_success_and_one_under_load_some() {
        let of_a_minute = |every_us: i64| {
            let taken = Taken::default();
            (0..60_000_000 / every_us).filter(|n| taken.take(OF_WEBHOOK, n * every_us)).count()
        };
        assert_eq!(of_a_minute(1_000_000), 60);
        assert_eq!(of_a_minute(100), 50 + 59);
    }
}
