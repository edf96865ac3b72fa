//! How often a pool may write cards. Pure.

use crate::event::StoreTime;

/// Cards that are written or deleted a second, over a longer time.
pub const CARD_WRITES_PER_SECOND: i64 = 5;
/// Cards that are written at once after a quiet time.
pub const CARD_WRITES_BURST: i64 = 20;

/// Thousandths of a write.
const WRITE: i64 = 1_000;

/// A bucket of writes that fills with time.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    thousandths: i64,
    filled: StoreTime,
}

impl Budget {
    /// A full one.
    pub const fn new(now: StoreTime) -> Self {
        Self { thousandths: CARD_WRITES_BURST * WRITE, filled: now }
    }

    /// Takes one write; false if there is none.
    pub fn take(&mut self, now: StoreTime) -> bool {
        let passed = now.0.saturating_sub(self.filled.0).max(0);
        self.filled = now;
        let more = passed.saturating_mul(CARD_WRITES_PER_SECOND);
        self.thousandths = self.thousandths.saturating_add(more).min(CARD_WRITES_BURST * WRITE);
        if self.thousandths < WRITE {
            return false;
        }
        self.thousandths -= WRITE;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_at_once_then_five_a_second() {
        let mut budget = Budget::new(StoreTime(0));
        let taken = |budget: &mut Budget, now| (0..100).take_while(|_| budget.take(StoreTime(now))).count();
        assert_eq!(taken(&mut budget, 0), 20);
        assert_eq!(taken(&mut budget, 199), 0);
        assert_eq!(taken(&mut budget, 200), 1);
        assert_eq!(taken(&mut budget, 1_200), 5);
        assert_eq!(taken(&mut budget, 1_000_000), 20);
        // A clock that goes back gives nothing and takes nothing.
        assert_eq!(taken(&mut budget, 0), 0);
    }
}
