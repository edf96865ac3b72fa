//! The index between the tasks of a pod: watches write, the internal API reads
//! and waits for news.

use std::sync::{PoisonError, RwLock};

use tokio::sync::watch;

use super::Index;
use crate::wire::index_feed::{FeedPage, FeedQuery};

/// An [`Index`] that several tasks use.
#[derive(Debug)]
pub struct SharedIndex {
    index: RwLock<Index>,
    revision: watch::Sender<u64>,
    /// As [`Index::marks`].
    marks: watch::Sender<u64>,
}

impl SharedIndex {
    /// Shares an index.
    pub fn new(index: Index) -> Self {
        let revision = watch::Sender::new(index.revision());
        let marks = watch::Sender::new(index.marks());
        Self { index: RwLock::new(index), revision, marks }
    }

    /// Changes the index and wakes who waits for news. `change` must not panic.
    pub fn update(&self, change: impl FnOnce(&mut Index)) {
        let (revision, marks) = {
            // A panic in a change is a defect; the index it leaves is used on,
            // because a pod that delivers with it is better than none.
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            change(&mut index);
            (index.revision(), index.marks())
        };
        self.revision.send_if_modified(|known| std::mem::replace(known, revision) != revision);
        self.marks.send_if_modified(|known| std::mem::replace(known, marks) != marks);
    }

    /// Reads the index.
    pub fn read<R>(&self, look: impl FnOnce(&Index) -> R) -> R {
        look(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until every kind has been listed at least once.
    pub async fn until_synced(&self) {
        self.until(Index::synced).await;
    }

    /// Waits until everything was listed and recorded: see
    /// [`Index::is_complete`].
    pub async fn until_complete(&self) {
        self.until(Index::is_complete).await;
    }

    /// Waits until there is anything to route and deliver with: see
    /// [`Index::is_usable`].
    pub async fn until_usable(&self) {
        self.until(Index::is_usable).await;
    }

    /// The end of a listing, what is restored and what is acknowledged change
    /// one of the two numbers.
    async fn until(&self, reached: fn(&Index) -> bool) {
        let (mut revision, mut marks) = (self.revision.subscribe(), self.marks.subscribe());
        while !self.read(reached) {
            // The senders live as long as self.
            tokio::select! {
                _changed = revision.changed() => {}
                _changed = marks.changed() => {}
            }
        }
    }

    /// Tells when there is something to record: its value changes then.
    pub fn marks(&self) -> watch::Receiver<u64> {
        self.marks.subscribe()
    }

    /// The feed's answer to a follower: at once if there is news, else when there
    /// is, or when `give_up` ends.
    pub async fn page_or_wait(&self, query: &FeedQuery, give_up: impl Future<Output = ()>) -> FeedPage {
        let mut revision = self.revision.subscribe();
        tokio::pin!(give_up);
        loop {
            revision.mark_unchanged();
            let page = self.read(|index| index.page(query));
            if page.reset || page.revision != query.after {
                return page;
            }
            tokio::select! {
                // The sender lives as long as self.
                _changed = revision.changed() => {}
                () = &mut give_up => return page,
            }
        }
    }
}
