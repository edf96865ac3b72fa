//! A map that forgets what was used longest ago.

use std::{collections::HashMap, hash::Hash};

/// Share of the entries that is forgotten at once when the map is full: looking
/// for the oldest costs a pass over all, so it is done rarely.
const FORGOTTEN_SHARE: usize = 8;

/// Values by key, the most recently used ones.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    entries: HashMap<K, (V, u64)>,
    /// Calls so far: the clock of use.
    calls: u64,
    entries_max: usize,
}

impl<K: Eq + Hash, V> Recent<K, V> {
    pub(super) fn new(entries_max: usize) -> Self {
        Self { entries: HashMap::new(), calls: 0, entries_max }
    }

    pub(super) fn get<Q>(&mut self, key: &Q) -> Option<&V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.calls += 1;
        let (value, used) = self.entries.get_mut(key)?;
        *used = self.calls;
        Some(value)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        self.calls += 1;
        if self.entries.len() >= self.entries_max && !self.entries.contains_key(&key) {
            self.forget_oldest();
        }
        self.entries.insert(key, (value, self.calls));
    }

    pub(super) fn retain(&mut self, mut keep: impl FnMut(&K) -> bool) {
        self.entries.retain(|key, _| keep(key));
    }

    fn forget_oldest(&mut self) {
        let mut uses: Vec<u64> = self.entries.values().map(|(_, used)| *used).collect();
        if uses.is_empty() {
            return;
        }
        let count = uses.len() / FORGOTTEN_SHARE;
        let (_, newest_forgotten, _) = uses.select_nth_unstable(count);
        let limit = *newest_forgotten;
        self.entries.retain(|_, (_, used)| *used > limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_stays_and_the_number_is_bounded() {
        let mut recent = Recent::new(16);
        for n in 0..16 {
            recent.insert(n, n);
        }
        assert_eq!(recent.get(&0), Some(&0));
        recent.insert(16, 16);
        assert!(recent.entries.len() <= 16);
        let mut check = |key: i32, expected: Option<i32>| assert_eq!(recent.get(&key).copied(), expected);
        check(0, Some(0));
        check(1, None);
        check(16, Some(16));
        for n in 0..1_000 {
            recent.insert(n, n);
            assert!(recent.entries.len() <= 16);
            assert_eq!(recent.get(&n), Some(&n));
        }
    }

    #[test]
    fn one_place_is_enough() {
        let mut recent = Recent::new(1);
        recent.insert("a", 1);
        recent.insert("a", 2);
        assert_eq!(recent.get("a"), Some(&2));
        recent.insert("b", 3);
        assert_eq!(recent.get("a"), None);
        assert_eq!(recent.get("b"), Some(&3));
    }
}
