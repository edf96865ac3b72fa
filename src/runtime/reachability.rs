//! Whether a server that everything is learned from answers, as far as those who
//! watch it know. Who has to ask it something then need not wait long.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What the watches on a server know of it. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Reachability {
    /// By name of the watch: whether it works.
    watches: Arc<Mutex<BTreeMap<&'static str, bool>>>,
}

impl Reachability {
    /// A watch says whether it works.
    pub fn report(&self, watch: &'static str, works: bool) {
        self.lock().insert(watch, works);
    }

    /// Whether no watch works. One that fails alone tells of a right or a kind
    /// that is missing, not of the server. Without any, nothing is known.
    pub fn is_away(&self) -> bool {
        let watches = self.lock();
        !watches.is_empty() && watches.values().all(|works| !works)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, bool>> {
        // Every change is a single insert: what a panicked thread left is whole.
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_away_when_no_watch_works() {
        let reachability = Reachability::default();
        assert!(!reachability.is_away(), "nobody has said anything");
        reachability.report("Webhook", true);
        reachability.report("Namespace", false);
        assert!(!reachability.is_away(), "one kind may not be listed");
        reachability.report("Webhook", false);
        assert!(reachability.is_away());
        reachability.clone().report("Namespace", true);
        assert!(!reachability.is_away());
    }
}
