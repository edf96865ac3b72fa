//! What the API server said lately: of tokens, and of rights. Pure: time comes
//! in as an argument.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::jiff::Timestamp;

/// Time for which a yes holds without another review.
pub const POSITIVE_TTL: Duration = Duration::from_secs(60);
/// Age of a yes at which it is reviewed again while it still holds, so that
/// nobody waits for the review.
pub const REFRESH_AFTER: Duration = Duration::from_secs(45);
/// Time for which a no holds.
pub const NEGATIVE_TTL: Duration = Duration::from_secs(5);

/// SHA-256 of what was asked: the cache holds no token.
pub(super) type Key = [u8; 32];

/// What the API server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict<V> {
    /// Yes, and what goes with it.
    Yes(V),
    /// No.
    No,
}

/// What the cache knows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lookup<V> {
    /// It holds.
    Decided(Verdict<V>),
    /// It holds, and is to be reviewed again meanwhile.
    Aging(V),
    /// It does not hold any more, but nobody can be asked: good enough, and to
    /// be reviewed again meanwhile.
    Grace(V),
    /// Somebody must be asked.
    Undecided,
}

#[derive(Clone, Debug)]
struct Entry<V> {
    verdict: Verdict<V>,
    reviewed: Timestamp,
    expires: Timestamp,
}

impl<V> Entry<V> {
    /// Whether the review is at most so old. One from the future is not: the
    /// clock was set back, and its age cannot be told.
    fn is_within(&self, age_max: Duration, now: Timestamp) -> bool {
        let age = now.duration_since(self.reviewed);
        !age.is_negative() && age.unsigned_abs() < age_max
    }

    fn holds(&self, now: Timestamp) -> bool {
        match self.verdict {
            Verdict::Yes(_) => now < self.expires && self.is_within(POSITIVE_TTL, now),
            Verdict::No => self.is_within(NEGATIVE_TTL, now),
        }
    }

    fn has_grace(&self, grace: Duration, now: Timestamp) -> bool {
        matches!(self.verdict, Verdict::Yes(_)) && now < self.expires && self.is_within(grace, now)
    }
}

/// Verdicts and the reviews under way; `R` is the handle of one.
#[derive(Debug)]
pub(super) struct Cache<V, R> {
    entries: HashMap<Key, Entry<V>>,
    entries_max: usize,
    reviews: HashMap<Key, R>,
    /// The last review that ended brought no verdict.
    is_away: bool,
}

impl<V: Clone, R: Clone> Cache<V, R> {
    /// Remembers so many verdicts.
    pub(super) fn new(entries_max: usize) -> Self {
        Self { entries: HashMap::new(), entries_max, reviews: HashMap::new(), is_away: false }
    }

    pub(super) fn lookup(&self, key: &Key, grace: Duration, now: Timestamp) -> Lookup<V> {
        let Some(entry) = self.entries.get(key) else { return Lookup::Undecided };
        match &entry.verdict {
            Verdict::Yes(value) if entry.holds(now) => {
                if entry.is_within(REFRESH_AFTER, now) {
                    Lookup::Decided(Verdict::Yes(value.clone()))
                } else {
                    Lookup::Aging(value.clone())
                }
            }
            Verdict::No if entry.holds(now) => Lookup::Decided(Verdict::No),
            Verdict::Yes(value) if self.is_away && entry.has_grace(grace, now) => Lookup::Grace(value.clone()),
            _ => Lookup::Undecided,
        }
    }

    /// Whether the last review brought no verdict.
    pub(super) fn is_away(&self) -> bool {
        self.is_away
    }

    /// What holds although nobody can be asked.
    pub(super) fn graced(&self, key: &Key, grace: Duration, now: Timestamp) -> Option<V> {
        match self.entries.get(key).filter(|entry| entry.has_grace(grace, now)).map(|entry| &entry.verdict) {
            Some(Verdict::Yes(value)) => Some(value.clone()),
            _ => None,
        }
    }

    /// The review under way of this key, or the one that `begin` makes.
    pub(super) fn join_review(&mut self, key: Key, begin: impl FnOnce() -> R) -> R {
        // A review ends within its time-out, so only a flood fills this; then some
        // keys are reviewed twice.
        if self.reviews.len() >= self.entries_max {
            self.reviews.clear();
        }
        self.reviews.entry(key).or_insert_with(begin).clone()
    }

    /// A review ended; none if it brought no verdict. `reviewed` is when it began.
    pub(super) fn end_review(
        &mut self,
        key: Key,
        verdict: Option<Verdict<V>>,
        expires: Timestamp,
        reviewed: Timestamp,
    ) {
        self.reviews.remove(&key);
        self.is_away = verdict.is_none();
        let Some(verdict) = verdict else { return };
        if self.entries.len() >= self.entries_max && !self.entries.contains_key(&key) {
            self.evict(reviewed);
        }
        self.entries.insert(key, Entry { verdict, reviewed, expires });
    }

    /// Makes room: what is over, else the oldest refusal, else the oldest. A
    /// flood of bad tokens must not push out the callers that are known.
    fn evict(&mut self, now: Timestamp) {
        self.entries.retain(|_, entry| match entry.verdict {
            Verdict::Yes(_) => now < entry.expires,
            Verdict::No => entry.holds(now),
        });
        if self.entries.len() < self.entries_max {
            return;
        }
        let age = |entry: &Entry<V>| (matches!(entry.verdict, Verdict::Yes(_)), entry.reviewed);
        let oldest = self.entries.iter().min_by_key(|(_, entry)| age(entry)).map(|(key, _)| *key);
        oldest.and_then(|key| self.entries.remove(&key));
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::SignedDuration;

    use super::*;

    const GRACE: Duration = Duration::from_secs(300);
    const ENTRIES_MAX: usize = 64;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap() + SignedDuration::from_secs(seconds)
    }

    fn key(number: usize) -> Key {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&(number as u64).to_le_bytes());
        key
    }

    fn cache_with(verdict: Verdict<u8>, expires: i64) -> Cache<u8, ()> {
        let mut cache = Cache::new(ENTRIES_MAX);
        cache.end_review(key(1), Some(verdict), at(expires), at(0));
        cache
    }

    fn check(cache: &Cache<u8, ()>, seconds: i64, expected: Lookup<u8>, grace: bool) {
        assert_eq!(cache.lookup(&key(1), GRACE, at(seconds)), expected, "at {seconds}");
        assert_eq!(cache.graced(&key(1), GRACE, at(seconds)).is_some(), grace, "grace at {seconds}");
    }

    #[test]
    fn a_yes_holds_for_a_minute_is_refreshed_before_and_has_grace_as_long_as_it_is_given() {
        let cache = cache_with(Verdict::Yes(7), 3600);
        check(&cache, 0, Lookup::Decided(Verdict::Yes(7)), true);
        check(&cache, 44, Lookup::Decided(Verdict::Yes(7)), true);
        check(&cache, 45, Lookup::Aging(7), true);
        check(&cache, 59, Lookup::Aging(7), true);
        check(&cache, 60, Lookup::Undecided, true);
        check(&cache, 299, Lookup::Undecided, true);
        check(&cache, 300, Lookup::Undecided, false);
        assert_eq!(cache.graced(&key(1), Duration::ZERO, at(0)), None);
    }

    #[test]
    fn nothing_holds_past_the_end_of_the_token() {
        let mut cache = cache_with(Verdict::Yes(7), 30);
        check(&cache, 29, Lookup::Decided(Verdict::Yes(7)), true);
        check(&cache, 30, Lookup::Undecided, false);
        cache.end_review(key(2), None, at(30), at(1));
        check(&cache, 30, Lookup::Undecided, false);
    }

    #[test]
    fn a_no_holds_for_five_seconds_and_has_no_grace() {
        let cache = cache_with(Verdict::No, 3600);
        check(&cache, 4, Lookup::Decided(Verdict::No), false);
        check(&cache, 5, Lookup::Undecided, false);
    }

    #[test]
    fn after_a_review_without_a_verdict_nobody_with_grace_waits_for_another() {
        let mut cache = cache_with(Verdict::Yes(7), 3600);
        cache.join_review(key(1), || ());
        cache.end_review(key(1), None, at(3600), at(100));
        assert!(cache.reviews.is_empty());
        check(&cache, 100, Lookup::Grace(7), true);
        check(&cache, 299, Lookup::Grace(7), true);
        check(&cache, 300, Lookup::Undecided, false);
        cache.end_review(key(2), Some(Verdict::No), at(3600), at(110));
        check(&cache, 110, Lookup::Undecided, true);
    }

    #[test]
    fn a_clock_that_was_set_back_ends_what_was_known() {
        check(&cache_with(Verdict::Yes(7), 3600), -1, Lookup::Undecided, false);
    }

    #[test]
    fn a_flood_of_refusals_pushes_out_refusals_and_no_known_caller() {
        let mut cache = cache_with(Verdict::Yes(7), 3600);
        for number in 2..2 * ENTRIES_MAX {
            cache.end_review(key(number), Some(Verdict::No), at(3600), at(1));
        }
        assert_eq!(cache.entries.len(), ENTRIES_MAX);
        check(&cache, 2, Lookup::Decided(Verdict::Yes(7)), true);
    }

    #[test]
    fn who_asks_about_the_same_key_joins_the_review_under_way() {
        let mut cache = Cache::<u8, _>::new(ENTRIES_MAX);
        assert_eq!(cache.join_review(key(1), || "first"), "first");
        assert_eq!(cache.join_review(key(1), || "second"), "first");
        assert_eq!(cache.join_review(key(2), || "other"), "other");
    }
}
