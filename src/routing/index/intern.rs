//! Values that many objects have in common, kept once.

use std::sync::{Arc, Weak};

/// Different values that are looked through at most; with more, the next ones
/// are not shared.
const VALUES_MAX: usize = 64;

/// Gives equal values one place in memory.
///
/// A list and not a map: nearly all Webhooks of a cluster are alike, and what is
/// looked for is found in front.
#[derive(Debug)]
pub(super) struct Interner<T>(Vec<Weak<T>>);

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: PartialEq> Interner<T> {
    /// The one copy of a value.
    pub(super) fn share(&mut self, value: T) -> Arc<T> {
        let known = self.0.iter().enumerate().find_map(|(place, weak)| {
            let known = weak.upgrade().filter(|known| **known == value)?;
            Some((place, known))
        });
        if let Some((place, known)) = known {
            self.0.swap(place, place / 2);
            return known;
        }
        let new = Arc::new(value);
        if self.0.len() == VALUES_MAX {
            self.0.retain(|weak| weak.strong_count() > 0);
        }
        if self.0.len() < VALUES_MAX {
            self.0.push(Arc::downgrade(&new));
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_share_their_memory_and_others_do_not() {
        let mut interner = Interner::default();
        let (a, b) = (interner.share("a"), interner.share("b"));
        assert!(Arc::ptr_eq(&a, &interner.share("a")) && Arc::ptr_eq(&b, &interner.share("b")));
        assert!(!Arc::ptr_eq(&a, &b));
    }

    #[test]
    fn past_the_limit_values_are_not_shared_until_others_are_gone() {
        let mut interner = Interner::default();
        let mut kept: Vec<_> = (0..VALUES_MAX).map(|n| interner.share(n)).collect();
        let over = interner.share(VALUES_MAX);
        assert!(!Arc::ptr_eq(&over, &interner.share(VALUES_MAX)));
        assert!(Arc::ptr_eq(&kept[7], &interner.share(7)));
        kept.pop();
        let new = interner.share(VALUES_MAX);
        assert!(Arc::ptr_eq(&new, &interner.share(VALUES_MAX)));
        assert!(interner.0.len() <= VALUES_MAX);
    }
}
