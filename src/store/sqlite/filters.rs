//! Which publishers' ids are certainly not in a bucket of `dedup`: Bloom filters.
//!
//! Nearly every id is new, and a look for it in the table would read a page for
//! each bucket of the window. The filters say "not there" without. They are
//! memory only: a bucket that had rows when the process began has none and is
//! asked in the table until its window is over.

use std::collections::BTreeMap;

use fastbloom::BloomFilter;

use super::rows::{KEY_BYTES, part};

/// Bytes that all filters may take: those of some 20 million ids. When they are
/// used up, the oldest bucket's filters go.
pub(super) const FILTERS_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bits for an id: one of 300 that are not there is looked up in vain.
const ID_BITS: usize = 12;
/// Ids that the first filter of a bucket is made for.
const FIRST_IDS: usize = 1024;
/// A filter that is full is followed by one for so many times its ids…
const GROWTH: usize = 4;
/// … and at most for these.
const IDS_MAX: usize = 2 * 1024 * 1024;

/// Filters by bucket.
pub(super) struct Filters {
    buckets: BTreeMap<i64, Stack>,
    bytes: usize,
    bytes_max: usize,
}

/// The filters of a bucket, the last one of which is not full.
#[derive(Default)]
struct Stack {
    filters: Vec<BloomFilter>,
    /// Ids that the last one is made for, and that it has.
    last_ids: usize,
    last_has: usize,
}

impl Filters {
    /// Without any bucket; `bytes_max`: [`FILTERS_BYTES_MAX`].
    pub(super) const fn new(bytes_max: usize) -> Self {
        Self { buckets: BTreeMap::new(), bytes: 0, bytes_max }
    }

    /// Begins with a bucket that has no ids yet.
    pub(super) fn begin(&mut self, bucket: i64) {
        self.buckets.entry(bucket).or_default();
    }

    /// Adds an id, unless the bucket has no filters.
    pub(super) fn add(&mut self, bucket: i64, key: &[u8; KEY_BYTES]) {
        let Some(stack) = self.buckets.get_mut(&bucket) else { return };
        self.bytes += stack.add(hash(key));
        while self.bytes > self.bytes_max
            && let Some((_, oldest)) = self.buckets.pop_first()
        {
            self.bytes -= oldest.bytes();
        }
    }

    /// Whether the id can be in the bucket: always, if that has no filters.
    pub(super) fn may_have(&self, bucket: i64, key: &[u8; KEY_BYTES]) -> bool {
        let hash = hash(key);
        self.buckets.get(&bucket).is_none_or(|stack| stack.filters.iter().any(|filter| filter.contains_hash(hash)))
    }

    /// Buckets before this one are asked no more.
    pub(super) fn forget_before(&mut self, first: i64) {
        let kept = self.buckets.split_off(&first);
        self.buckets = kept;
        self.bytes = self.buckets.values().map(Stack::bytes).sum();
    }
}

impl Stack {
    /// Bytes that it takes more.
    fn add(&mut self, hash: u64) -> usize {
        let mut more = 0;
        if self.last_has == self.last_ids {
            self.last_ids = if self.filters.is_empty() { FIRST_IDS } else { (self.last_ids * GROWTH).min(IDS_MAX) };
            self.last_has = 0;
            // The seed does not matter: what comes in is a hash already.
            let filter = BloomFilter::with_num_bits(self.last_ids * ID_BITS).seed(&0).expected_items(self.last_ids);
            more = bytes_of(&filter);
            self.filters.push(filter);
        }
        if let Some(filter) = self.filters.last_mut() {
            filter.insert_hash(hash);
            self.last_has += 1;
        }
        more
    }

    fn bytes(&self) -> usize {
        self.filters.iter().map(bytes_of).sum()
    }
}

fn bytes_of(filter: &BloomFilter) -> usize {
    filter.num_bits() / 8
}

/// The key is a part of a SHA-256: any 8 bytes of it are as good as a hash.
fn hash(key: &[u8; KEY_BYTES]) -> u64 {
    u64::from_le_bytes(part(key, 0))
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    fn key(n: usize) -> [u8; KEY_BYTES] {
        part(&Sha256::digest(n.to_le_bytes()), 0)
    }

    #[test]
    fn an_id_that_was_added_is_found_and_few_others_are() {
        let mut filters = Filters::new(FILTERS_BYTES_MAX);
        filters.begin(7);
        let ids = FIRST_IDS * (1 + GROWTH + GROWTH * GROWTH);
        for n in 0..ids {
            assert!(n % 100 != 0 || filters.buckets[&7].filters.len() <= 3);
            filters.add(7, &key(n));
        }
        assert_eq!(filters.buckets[&7].filters.len(), 3);
        assert!((0..ids).all(|n| filters.may_have(7, &key(n))));
        let wrong = (ids..ids * 2).filter(|n| filters.may_have(7, &key(*n))).count();
        assert!(wrong * 50 < ids, "{wrong} of {ids}");
        assert!(filters.bytes * 8 / ids <= ID_BITS + 1, "{} bytes for {ids} ids", filters.bytes);
        assert!(filters.may_have(6, &key(0)), "a bucket without filters may have any id");
    }

    #[test]
    fn when_their_memory_is_used_up_the_oldest_go_and_nothing_is_denied_that_was_added() {
        let first_bytes = FIRST_IDS * ID_BITS / 8;
        let mut filters = Filters::new(first_bytes * 2);
        for bucket in 1..=3 {
            filters.begin(bucket);
            filters.add(bucket, &key(1));
        }
        assert_eq!((filters.buckets.keys().copied().collect::<Vec<_>>(), filters.bytes), (vec![2, 3], first_bytes * 2));
        assert!(filters.may_have(1, &key(2)) && !filters.may_have(2, &key(2)));
        filters.forget_before(3);
        assert_eq!((filters.buckets.len(), filters.bytes), (1, first_bytes));
        // Its second filter is more than all may take.
        for n in 0..=FIRST_IDS {
            filters.add(3, &key(n));
        }
        assert_eq!((filters.buckets.len(), filters.bytes), (0, 0));
        assert!(filters.may_have(3, &key(FIRST_IDS)));
    }
}
