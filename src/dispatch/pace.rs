//! How fast Deliveries of fan-outs start. Pure.
//!
//! An event for thousands would take every processor for as long as it lasts, and
//! whatever else happens meanwhile stands in line for one at each of its steps:
//! with 32 at once the p99 of single events was three times what it is alone. So
//! beside other Deliveries they start at a pace that leaves most of the processors
//! free, which grows with their number; by themselves they start as fast as these can.

use crate::event::StoreTime;

/// Starts in a millisecond for each processor while others start too.
const BESIDE_LIVE: u32 = 3;
/// The same while nothing else does: more than a processor can make.
const ALONE: u32 = 24;
/// For so long after a start of another Delivery fan-outs are beside it.
const LIVE_MS: i64 = 100;
/// Starts of so many milliseconds may come at once, since timers are late.
const BURST_MS: i64 = 2;

/// A bucket of starts.
#[derive(Debug)]
pub(super) struct Pace {
    processors: u32,
    left: u32,
    filled_at: StoreTime,
    live_at: Option<StoreTime>,
}

impl Pace {
    /// The pace on a machine with so many processors.
    pub(super) fn new(processors: usize) -> Self {
        let processors = u32::try_from(processors).unwrap_or(u32::MAX).clamp(1, 1_024);
        Self { processors, left: 0, filled_at: StoreTime(i64::MIN), live_at: None }
    }

    /// Adds what time brought.
    pub(super) fn fill(&mut self, now: StoreTime) {
        let is_beside = self.live_at.is_some_and(|at| now.0.saturating_sub(at.0) < LIVE_MS);
        let per_ms = self.processors * if is_beside { BESIDE_LIVE } else { ALONE };
        let passed = now.0.saturating_sub(self.filled_at.0).clamp(0, BURST_MS);
        let filled = i64::from(self.left) + passed * i64::from(per_ms);
        self.left = u32::try_from(filled.min(BURST_MS * i64::from(per_ms))).unwrap_or(u32::MAX);
        self.filled_at = now;
    }

    /// Whether a Delivery of a fan-out may start.
    pub(super) const fn has_left(&self) -> bool {
        self.left > 0
    }

    /// When there is some left again.
    pub(super) fn next(&self) -> StoreTime {
        self.filled_at.plus_ms(1)
    }

    /// One started.
    pub(super) const fn late_started(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// Another Delivery started.
    pub(super) const fn live_started(&mut self, now: StoreTime) {
        self.live_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(pace: &mut Pace, from: i64, until: i64) -> usize {
        (from..until)
            .map(|at| {
                pace.fill(StoreTime(at));
                let before = pace.left;
                while pace.has_left() {
                    pace.late_started();
                }
                before as usize
            })
            .sum()
    }

    #[test]
    fn beside_others_fan_outs_start_slowly_and_by_themselves_fast() {
        let mut pace = Pace::new(2);
        assert_eq!(starts(&mut pace, 0, 1_000), 48 * 1_001, "two milliseconds at once at first");
        pace.live_started(StoreTime(999));
        assert_eq!(starts(&mut pace, 1_000, 1_099), 6 * 99);
        assert_eq!(starts(&mut pace, 1_099, 1_199), 48 * 100, "the others have ended");
        assert_eq!(starts(&mut Pace::new(8), 0, 1_000), 4 * 48 * 1_001);
    }

    #[test]
    fn what_was_not_used_is_lost_but_for_a_burst() {
        let mut pace = Pace::new(1);
        pace.live_started(StoreTime(0));
        pace.fill(StoreTime(0));
        pace.live_started(StoreTime(10_000));
        pace.fill(StoreTime(10_000));
        assert_eq!(pace.left, 6);
        pace.fill(StoreTime(9_000));
        assert_eq!(pace.left, 6, "a clock that went back brings nothing");
    }
}
