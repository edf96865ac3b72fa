//! The change feed of an index: see [`crate::wire::index_feed`] for what it
//! promises to its followers.
//!
//! Only the newest change of each object is kept, so a follower that begins
//! from nothing reads the present state. The deletion of an object is kept too,
//! as a tombstone, for followers that saw it alive. Of tombstones there are at
//! most [`TOMBSTONES_MAX`]: past that the older half is forgotten, and whoever
//! has not read beyond them begins again. To keep that rule from hitting a
//! follower in the middle of its first reading, what is alive and older than
//! the forgotten tombstones gets a new revision.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
};

use crate::{
    runtime::pack::pack,
    wire::index_feed::{FeedEntry, FeedKind, FeedPage, FeedQuery, PAGE_ENTRIES_MAX},
};

/// Deletions that are remembered at most; some 2 MiB.
pub const TOMBSTONES_MAX: usize = 10_000;

/// Names an object; namesakes that follow one another are one object here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ObjectKey {
    pub(super) kind: FeedKind,
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
}

/// The state of an object after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// This generation is in use.
    Used(i64),
    /// This generation cannot be used.
    Refused(i64, Arc<str>),
    /// The object is not in the index any more.
    Gone,
}

#[derive(Clone, Debug)]
struct Change {
    key: Arc<ObjectKey>,
    uid: Arc<str>,
    state: State,
}

/// The newest change of each object, in the order of their revisions.
#[derive(Debug)]
pub(super) struct Feed {
    instance: Box<str>,
    /// Of the last change.
    revision: u64,
    changes: BTreeMap<u64, Change>,
    newest: HashMap<Arc<ObjectKey>, u64>,
    /// Revisions of the tombstones among the changes.
    tombstones: BTreeSet<u64>,
    /// Tombstones up to this revision may have been forgotten; every change that
    /// is kept is newer.
    forgotten: u64,
}

impl Feed {
    pub(super) fn new(instance: &str) -> Self {
        Self {
            instance: instance.into(),
            revision: 0,
            changes: BTreeMap::new(),
            newest: HashMap::new(),
            tombstones: BTreeSet::new(),
            forgotten: 0,
        }
    }

    pub(super) fn instance(&self) -> &str {
        &self.instance
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Notes the newest state of an object.
    pub(super) fn record(&mut self, key: ObjectKey, uid: Arc<str>, state: State) {
        self.bump();
        // The key that is known already, so that there is one copy of it.
        let known = self.newest.get_key_value(&key).map(|(known, _)| Arc::clone(known));
        let key = known.unwrap_or_else(|| key.into());
        if let Some(old) = self.newest.insert(Arc::clone(&key), self.revision) {
            self.changes.remove(&old);
            self.tombstones.remove(&old);
        }
        if state == State::Gone {
            self.tombstones.insert(self.revision);
        }
        self.changes.insert(self.revision, Change { key, uid, state });
        if self.tombstones.len() > TOMBSTONES_MAX {
            self.forget_tombstones();
        }
    }

    /// What was told last of an object.
    pub(super) fn newest(&self, key: &ObjectKey) -> Option<(&Arc<str>, &State)> {
        let change = self.changes.get(self.newest.get(key)?)?;
        Some((&change.uid, &change.state))
    }

    /// A revision without a change of an object: wakes every follower.
    pub(super) fn bump(&mut self) {
        self.revision += 1;
    }

    /// Gives back room that changes in a row left; for the end of a first listing.
    pub(super) fn pack(&mut self) {
        pack(&mut self.changes);
    }

    fn forget_tombstones(&mut self) {
        let Some(&last) = self.tombstones.iter().nth(TOMBSTONES_MAX / 2) else { return };
        self.forgotten = last;
        self.tombstones = self.tombstones.split_off(&(last + 1));
        let newer = self.changes.split_off(&(last + 1));
        for change in std::mem::replace(&mut self.changes, newer).into_values() {
            if change.state == State::Gone {
                self.newest.remove(&change.key);
            } else {
                self.bump();
                self.newest.insert(Arc::clone(&change.key), self.revision);
                self.changes.insert(self.revision, change);
            }
        }
    }

    /// What came after the query's revision.
    pub(super) fn page(&self, query: &FeedQuery, synced: bool) -> FeedPage {
        let reset = *query.instance != *self.instance || !(self.forgotten..=self.revision).contains(&query.after);
        let after = if reset { 0 } else { query.after };
        let mut changes = self.changes.range((Bound::Excluded(after), Bound::Unbounded)).peekable();
        let mut entries = Vec::new();
        let mut revision = self.revision;
        while let Some((number, change)) = changes.next() {
            entries.push(change.to_entry());
            if entries.len() == PAGE_ENTRIES_MAX && changes.peek().is_some() {
                revision = *number;
                break;
            }
        }
        FeedPage {
            instance: self.instance.to_string(),
            reset,
            synced,
            revision,
            more: revision != self.revision,
            entries,
        }
    }
}

impl Change {
    fn to_entry(&self) -> FeedEntry {
        let (generation, error) = match &self.state {
            State::Used(generation) => (Some(*generation), None),
            State::Refused(generation, error) => (Some(*generation), Some(error.to_string())),
            State::Gone => (None, None),
        };
        FeedEntry {
            kind: self.key.kind,
            namespace: self.key.namespace.to_string(),
            name: self.key.name.to_string(),
            uid: self.uid.to_string(),
            generation,
            error,
        }
    }
}
