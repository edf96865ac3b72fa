//! What the API server said about tokens lately. Pure: time comes in as an
//! argument.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::jiff::Timestamp;

/// Time for which a caller is let in without another review.
pub const POSITIVE_TTL: Duration = Duration::from_secs(60);
/// Time for which a refusal holds.
pub const NEGATIVE_TTL: Duration = Duration::from_secs(5);
/// Time since the last review for which a known caller is let in while the API
/// server is away.
pub const GRACE: Duration = Duration::from_secs(5 * 60);
/// Tokens that are remembered at most.
pub const ENTRIES_MAX: usize = 1_024;

/// SHA-256 of a token: the cache holds no token.
pub(super) type TokenHash = [u8; 32];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Allowed,
    /// Not a token that the API server accepts for us.
    Refused,
    /// A token of someone who may not call.
    NotAllowed,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    Decided(Verdict),
    Undecided,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    verdict: Verdict,
    reviewed: Timestamp,
    expires: Timestamp,
}

impl Entry {
    /// Whether the review is at most so old. One from the future is not: the
    /// clock was set back, and its age cannot be told.
    fn is_within(&self, age_max: Duration, now: Timestamp) -> bool {
        let age = now.duration_since(self.reviewed);
        !age.is_negative() && age.unsigned_abs() < age_max
    }

    fn holds(&self, now: Timestamp) -> bool {
        match self.verdict {
            Verdict::Allowed => now < self.expires && self.is_within(POSITIVE_TTL, now),
            Verdict::Refused | Verdict::NotAllowed => self.is_within(NEGATIVE_TTL, now),
        }
    }

    fn has_grace(&self, now: Timestamp) -> bool {
        self.verdict == Verdict::Allowed && now < self.expires && self.is_within(GRACE, now)
    }
}

/// Verdicts and the reviews under way; `R` is the handle of one.
#[derive(Debug)]
pub(super) struct Cache<R> {
    entries: HashMap<TokenHash, Entry>,
    reviews: HashMap<TokenHash, R>,
}

impl<R> Default for Cache<R> {
    fn default() -> Self {
        Self { entries: HashMap::new(), reviews: HashMap::new() }
    }
}

impl<R: Clone> Cache<R> {
    pub(super) fn lookup(&self, hash: &TokenHash, now: Timestamp) -> Lookup {
        match self.entries.get(hash) {
            Some(entry) if entry.holds(now) => Lookup::Decided(entry.verdict),
            _ => Lookup::Undecided,
        }
    }

    /// Whether the caller is let in although nobody can be asked.
    pub(super) fn has_grace(&self, hash: &TokenHash, now: Timestamp) -> bool {
        self.entries.get(hash).is_some_and(|entry| entry.has_grace(now))
    }

    /// The review of this token that is under way, or the one that `begin` makes.
    pub(super) fn join_review(&mut self, hash: TokenHash, begin: impl FnOnce() -> R) -> R {
        // A review ends within its time-out, so only a flood fills this; then some
        // tokens are reviewed twice.
        if self.reviews.len() >= ENTRIES_MAX {
            self.reviews.clear();
        }
        self.reviews.entry(hash).or_insert_with(begin).clone()
    }

    /// A review ended; none if it brought no verdict. `reviewed` is when it began.
    pub(super) fn end_review(
        &mut self,
        hash: TokenHash,
        verdict: Option<Verdict>,
        expires: Timestamp,
        reviewed: Timestamp,
    ) {
        self.reviews.remove(&hash);
        let Some(verdict) = verdict else { return };
        if self.entries.len() >= ENTRIES_MAX && !self.entries.contains_key(&hash) {
            self.evict(reviewed);
        }
        self.entries.insert(hash, Entry { verdict, reviewed, expires });
    }

    /// Makes room: what is of no use any more, else the oldest refusal, else the
    /// oldest. A flood of bad tokens must not push out the callers that are known.
    fn evict(&mut self, now: Timestamp) {
        self.entries.retain(|_, entry| entry.holds(now) || entry.has_grace(now));
        if self.entries.len() < ENTRIES_MAX {
            return;
        }
        let age = |entry: &Entry| (entry.verdict == Verdict::Allowed, entry.reviewed);
        let oldest = self.entries.iter().min_by_key(|(_, entry)| age(entry)).map(|(hash, _)| *hash);
        oldest.and_then(|hash| self.entries.remove(&hash));
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::SignedDuration;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap() + SignedDuration::from_secs(seconds)
    }

    fn hash(number: usize) -> TokenHash {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&(number as u64).to_le_bytes());
        hash
    }

    fn cache_with(verdict: Verdict, expires: i64) -> Cache<()> {
        let mut cache = Cache::default();
        cache.end_review(hash(1), Some(verdict), at(expires), at(0));
        cache
    }

    fn check(cache: &Cache<()>, seconds: i64, expected: Lookup, grace: bool) {
        assert_eq!(cache.lookup(&hash(1), at(seconds)), expected, "at {seconds}");
        assert_eq!(cache.has_grace(&hash(1), at(seconds)), grace, "grace at {seconds}");
    }

    #[test]
    fn a_known_caller_is_let_in_for_a_minute_and_has_grace_for_five() {
        let cache = cache_with(Verdict::Allowed, 3600);
        check(&cache, 0, Lookup::Decided(Verdict::Allowed), true);
        check(&cache, 59, Lookup::Decided(Verdict::Allowed), true);
        check(&cache, 60, Lookup::Undecided, true);
        check(&cache, 299, Lookup::Undecided, true);
        check(&cache, 300, Lookup::Undecided, false);
    }

    #[test]
    fn nobody_is_let_in_past_the_end_of_the_token() {
        let cache = cache_with(Verdict::Allowed, 30);
        check(&cache, 29, Lookup::Decided(Verdict::Allowed), true);
        check(&cache, 30, Lookup::Undecided, false);
    }

    #[test]
    fn a_refusal_holds_for_five_seconds_and_has_no_grace() {
        for verdict in [Verdict::Refused, Verdict::NotAllowed] {
            let cache = cache_with(verdict, 3600);
            check(&cache, 4, Lookup::Decided(verdict), false);
            check(&cache, 5, Lookup::Undecided, false);
        }
    }

    #[test]
    fn a_clock_that_was_set_back_ends_what_was_known() {
        check(&cache_with(Verdict::Allowed, 3600), -1, Lookup::Undecided, false);
    }

    #[test]
    fn a_flood_of_refusals_pushes_out_refusals_and_no_known_caller() {
        let mut cache = cache_with(Verdict::Allowed, 3600);
        for number in 2..2 * ENTRIES_MAX {
            cache.end_review(hash(number), Some(Verdict::Refused), at(3600), at(1));
        }
        assert_eq!(cache.entries.len(), ENTRIES_MAX);
        check(&cache, 2, Lookup::Decided(Verdict::Allowed), true);
    }

    #[test]
    fn a_review_without_a_verdict_leaves_what_was_known() {
        let mut cache = cache_with(Verdict::Allowed, 3600);
        cache.join_review(hash(1), || ());
        cache.end_review(hash(1), None, at(3600), at(100));
        assert!(cache.reviews.is_empty());
        check(&cache, 100, Lookup::Undecided, true);
    }

    #[test]
    fn who_asks_about_the_same_token_joins_the_review_under_way() {
        let mut cache = Cache::default();
        assert_eq!(cache.join_review(hash(1), || "first"), "first");
        assert_eq!(cache.join_review(hash(1), || "second"), "first");
        assert_eq!(cache.join_review(hash(2), || "other"), "other");
    }
}
