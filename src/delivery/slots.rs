//! How many probes may be under way: in all, and for one namespace, so that
//! slow endpoints of one tenant cannot keep the others from being verified.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Probes under way in all.
pub const PROBES_MAX: usize = 256;
/// Probes under way for one namespace.
pub const PROBES_PER_NAMESPACE_MAX: usize = 32;

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_namespace: HashMap<String, usize>,
}

/// Counts the probes under way. Clones share the count.
#[derive(Clone, Debug, Default)]
pub(super) struct ProbeSlots(Arc<Mutex<Counts>>);

/// The right to one probe; given back when dropped.
#[derive(Debug)]
pub(super) struct ProbeSlot {
    slots: ProbeSlots,
    namespace: String,
}

impl ProbeSlots {
    /// A slot, or none if all are taken.
    pub(super) fn take(&self, namespace: &str) -> Option<ProbeSlot> {
        let mut counts = self.lock();
        let of_namespace = counts.by_namespace.get(namespace).copied().unwrap_or(0);
        if counts.all >= PROBES_MAX || of_namespace >= PROBES_PER_NAMESPACE_MAX {
            return None;
        }
        counts.all += 1;
        counts.by_namespace.insert(namespace.to_owned(), of_namespace + 1);
        Some(ProbeSlot { slots: self.clone(), namespace: namespace.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // The arithmetic under the lock cannot panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ProbeSlot {
    fn drop(&mut self) {
        let mut counts = self.slots.lock();
        counts.all = counts.all.saturating_sub(1);
        if let Some(count) = counts.by_namespace.get_mut(&self.namespace) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.by_namespace.remove(&self.namespace);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_its_share_and_leaves_the_rest_to_others() {
        let slots = ProbeSlots::default();
        let taken: Vec<_> = (0..PROBES_PER_NAMESPACE_MAX).map(|_| slots.take("a").unwrap()).collect();
        assert!(slots.take("a").is_none());
        assert!(slots.take("b").is_some());
        drop(taken);
        assert!(slots.take("a").is_some());
        assert!(slots.lock().by_namespace.is_empty(), "an idle namespace takes no memory");
    }

    #[test]
    fn all_namespaces_together_have_a_limit() {
        let slots = ProbeSlots::default();
        let mut taken: Vec<_> = (0..PROBES_MAX).map(|i| slots.take(&format!("n{i}")).unwrap()).collect();
        assert!(slots.take("one-more").is_none());
        taken.pop();
        assert!(slots.take("one-more").is_some());
    }
}
