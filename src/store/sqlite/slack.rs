//! Memory that a store keeps for work which has ended.

use std::time::{Duration, Instant};

use rusqlite::{Connection, Result};

/// How long there was nothing to do before a store gives memory back.
const GIVE_BACK_AFTER: Duration = Duration::from_secs(5);

/// What the page cache of a connection has grown by.
pub(super) struct Slack {
    busy_at: Instant,
    is_given_back: bool,
}

impl Slack {
    pub(super) const fn new(now: Instant) -> Self {
        Self { busy_at: now, is_given_back: false }
    }

    /// There was something to do.
    pub(super) const fn busy(&mut self, now: Instant) {
        (self.busy_at, self.is_given_back) = (now, false);
    }

    /// There was nothing to do: pages that nobody uses are freed, once. Whoever
    /// needs them again reads them from the system's cache. True if it was done.
    pub(super) fn idle(&mut self, db: &Connection, now: Instant) -> Result<bool> {
        if self.is_given_back || now.saturating_duration_since(self.busy_at) < GIVE_BACK_AFTER {
            return Ok(false);
        }
        db.execute_batch("PRAGMA shrink_memory")?;
        self.is_given_back = true;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock;

    #[test]
    fn memory_is_given_back_once_after_each_time_of_work() {
        let db = Connection::open_in_memory().unwrap();
        let begin = clock::monotonic();
        let mut slack = Slack::new(begin);
        let idle = |slack: &mut Slack, after| slack.idle(&db, begin + after).unwrap();
        assert!(!idle(&mut slack, GIVE_BACK_AFTER - Duration::from_millis(1)));
        assert!(idle(&mut slack, GIVE_BACK_AFTER));
        assert!(!idle(&mut slack, 2 * GIVE_BACK_AFTER), "nothing has grown since");
        slack.busy(begin + 2 * GIVE_BACK_AFTER);
        assert!(!idle(&mut slack, 2 * GIVE_BACK_AFTER));
        assert!(idle(&mut slack, 3 * GIVE_BACK_AFTER));
    }
}
