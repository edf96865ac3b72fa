//! What each pool's pod has in its index, as far as the controller knows.
//!
//! [`FeedState`] is pure; [`follower`] asks the pods. A pod that restarted begins
//! with an empty index. What it told before stays true for readers until the
//! pod says that it has everything again: the pod listed the same objects from
//! its store, and flipping ten thousand Webhooks to not Ready and back at each
//! restart would help nobody.

pub mod follower;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{key::ObjectKey, text::clipped};
use crate::wire::index_feed::{FeedEntry, FeedKind, FeedPage, FeedQuery};

/// Bytes of a pod's complaint about an object that are kept.
const ERROR_BYTES_MAX: usize = 512;

/// The answer to "does the pool have this generation?".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Indexed {
    /// It has.
    Yes,
    /// It has not, or not yet.
    No,
    /// Nobody knows: the pool has not told its whole index since this controller
    /// began. What a status said before stands.
    Unknown,
    /// It cannot use it, for this reason.
    Refused(String),
}

/// What the index has of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    uid: Box<str>,
    generation: i64,
    error: Option<Box<str>>,
}

type Entries = HashMap<(FeedKind, ObjectKey), Entry>;

/// What is known of one pool's index.
#[derive(Debug, Default)]
pub struct FeedState {
    instance: String,
    revision: u64,
    entries: Entries,
    /// The entries of the pod's former life, until its new one is complete.
    former: Option<Entries>,
    /// Whether the whole index was told at least once.
    is_known: bool,
}

/// What a page changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// What the index has of this object.
    Object(FeedKind, ObjectKey),
    /// The whole index of this pool is known for the first time.
    Pool(String),
}

impl FeedState {
    /// What to ask for next.
    pub fn query(&self) -> FeedQuery {
        FeedQuery { instance: self.instance.clone(), after: self.revision }
    }

    /// Takes in a page. Returns the objects about which something changed.
    pub fn apply(&mut self, page: FeedPage) -> Vec<(FeedKind, ObjectKey)> {
        let FeedPage { instance, reset, synced, revision, more, entries } = page;
        if reset || instance != self.instance {
            let left = std::mem::take(&mut self.entries);
            // Of two restarts in a row the older life was complete, the newer knew better.
            self.former.get_or_insert_default().extend(left);
        }
        self.instance = instance;
        self.revision = revision;
        let mut changed: Vec<_> = entries.into_iter().filter_map(|entry| self.put(entry)).collect();
        if synced && !more {
            self.is_known = true;
            // What the new life told left `former`; the rest it does not have.
            changed.extend(self.former.take().into_iter().flatten().map(|(id, _)| id));
        }
        changed
    }

    fn put(&mut self, entry: FeedEntry) -> Option<(FeedKind, ObjectKey)> {
        let FeedEntry { kind, namespace, name, uid, generation, error } = entry;
        let id = (kind, ObjectKey::new(&namespace, &name));
        let before = self.find(&id).cloned();
        let after = generation.map(|generation| Entry {
            uid: uid.into_boxed_str(),
            generation,
            error: error.map(|text| clipped(text, ERROR_BYTES_MAX).into_boxed_str()),
        });
        let is_changed = before != after;
        if let Some(former) = &mut self.former {
            former.remove(&id);
        }
        match after {
            Some(after) => self.entries.insert(id.clone(), after),
            None => self.entries.remove(&id),
        };
        is_changed.then_some(id)
    }

    /// Whether the index has this generation of this object.
    pub fn indexed(&self, kind: FeedKind, key: &ObjectKey, uid: &str, generation: i64) -> Indexed {
        match self.find(&(kind, key.clone())) {
            Some(entry) if *entry.uid == *uid && entry.generation >= generation => match &entry.error {
                None => Indexed::Yes,
                Some(error) => Indexed::Refused(error.to_string()),
            },
            None if !self.is_known => Indexed::Unknown,
            _ => Indexed::No,
        }
    }

    fn find(&self, id: &(FeedKind, ObjectKey)) -> Option<&Entry> {
        self.entries.get(id).or_else(|| self.former.as_ref()?.get(id))
    }
}

/// The states of all pools, shared between followers and reconciles.
#[derive(Clone, Debug, Default)]
pub struct Feeds {
    pools: Arc<Mutex<HashMap<String, FeedState>>>,
}

impl Feeds {
    /// Whether the pool's index has this generation of this object.
    pub fn indexed(&self, pool: &str, kind: FeedKind, key: &ObjectKey, uid: &str, generation: i64) -> Indexed {
        self.lock().get(pool).map_or(Indexed::Unknown, |state| state.indexed(kind, key, uid, generation))
    }

    fn query(&self, pool: &str) -> FeedQuery {
        self.lock().entry(pool.to_owned()).or_default().query()
    }

    fn apply(&self, pool: &str, page: FeedPage) -> Vec<Change> {
        let mut pools = self.lock();
        let state = pools.entry(pool.to_owned()).or_default();
        let was_known = state.is_known;
        let changed = state.apply(page);
        if state.is_known && !was_known {
            return vec![Change::Pool(pool.to_owned())];
        }
        changed.into_iter().map(|(kind, key)| Change::Object(kind, key)).collect()
    }

    fn forget(&self, pool: &str) {
        self.lock().remove(pool);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, FeedState>> {
        // A page is taken in without a place to panic at.
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn page(instance: &str, flags: &str, revision: u64, entries: &[(&str, Option<i64>)]) -> FeedPage {
        FeedPage {
            instance: instance.into(),
            reset: flags.contains("reset"),
            synced: !flags.contains("syncing"),
            revision,
            more: flags.contains("more"),
            entries: entries
                .iter()
                .map(|(name, generation)| {
                    let entry = json!({ "kind": "Webhook", "namespace": "n", "name": name, "uid": "u", "generation": generation });
                    serde_json::from_value(entry).unwrap()
                })
                .collect(),
        }
    }

    fn names(changed: Vec<(FeedKind, ObjectKey)>) -> Vec<String> {
        let mut names: Vec<_> = changed.into_iter().map(|(_, key)| key.name.to_string()).collect();
        names.sort();
        names
    }

    fn check(state: &FeedState, name: &str, uid: &str, generation: i64, expected: Indexed) {
        assert_eq!(state.indexed(FeedKind::Webhook, &ObjectKey::new("n", name), uid, generation), expected, "{name}");
    }

    #[test]
    fn an_object_is_programmed_by_its_generation_and_uid() {
        let mut state = FeedState::default();
        assert_eq!(names(state.apply(page("i", "reset", 5, &[("a", Some(2))]))), ["a"]);
        check(&state, "a", "u", 2, Indexed::Yes);
        check(&state, "a", "u", 3, Indexed::No);
        check(&state, "a", "another", 2, Indexed::No);
        check(&state, "b", "u", 1, Indexed::No);
        assert_eq!(state.query(), FeedQuery { instance: "i".into(), after: 5 });
    }

    #[test]
    fn before_the_whole_index_was_told_nobody_knows_what_it_lacks() {
        let mut state = FeedState::default();
        state.apply(page("i", "reset syncing", 1, &[("a", Some(1))]));
        check(&state, "a", "u", 1, Indexed::Yes);
        check(&state, "a", "u", 2, Indexed::No);
        check(&state, "b", "u", 1, Indexed::Unknown);
        state.apply(page("i", "more", 2, &[]));
        check(&state, "b", "u", 1, Indexed::Unknown);
        state.apply(page("i", "", 3, &[]));
        check(&state, "b", "u", 1, Indexed::No);
    }

    #[test]
    fn what_did_not_change_wakes_nobody() {
        let mut state = FeedState::default();
        state.apply(page("i", "reset", 5, &[("a", Some(2))]));
        assert!(state.apply(page("i", "", 6, &[("a", Some(2))])).is_empty());
        assert_eq!(names(state.apply(page("i", "", 7, &[("a", None)]))), ["a"]);
        check(&state, "a", "u", 2, Indexed::No);
    }

    #[test]
    fn a_refused_object_tells_why() {
        let mut state = FeedState::default();
        let mut told = page("i", "reset", 1, &[("a", Some(1))]);
        told.entries[0].error = Some("é".repeat(600));
        state.apply(told);
        let Indexed::Refused(error) = state.indexed(FeedKind::Webhook, &ObjectKey::new("n", "a"), "u", 1) else {
            panic!("not refused")
        };
        assert_eq!(error.len(), ERROR_BYTES_MAX);
    }

    #[test]
    fn a_restarted_pod_unsettles_nothing_until_it_has_everything_again() {
        let mut state = FeedState::default();
        state.apply(page("old", "reset", 9, &[("same", Some(1)), ("gone", Some(1)), ("newer", Some(1))]));
        assert!(state.apply(page("new", "reset syncing", 0, &[])).is_empty());
        check(&state, "same", "u", 1, Indexed::Yes);
        let changed = state.apply(page("new", "syncing more", 2, &[("same", Some(1)), ("newer", Some(2))]));
        assert_eq!(names(changed), ["newer"], "the one that is the same wakes nobody");
        check(&state, "gone", "u", 1, Indexed::Yes);
        assert_eq!(names(state.apply(page("new", "", 3, &[]))), ["gone"]);
        check(&state, "gone", "u", 1, Indexed::No);
        check(&state, "same", "u", 1, Indexed::Yes);
        check(&state, "newer", "u", 2, Indexed::Yes);
    }

    #[test]
    fn two_restarts_in_a_row_keep_the_last_complete_life() {
        let mut state = FeedState::default();
        state.apply(page("1", "reset", 9, &[("a", Some(1)), ("b", Some(1))]));
        state.apply(page("2", "reset syncing", 1, &[("a", Some(1))]));
        state.apply(page("3", "reset syncing", 0, &[]));
        check(&state, "b", "u", 1, Indexed::Yes);
        assert_eq!(names(state.apply(page("3", "", 2, &[("a", Some(1)), ("b", Some(1))]))), Vec::<String>::new());
    }
}
