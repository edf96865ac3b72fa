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
}

impl SharedIndex {
    /// Shares an index.
    pub fn new(index: Index) -> Self {
        let revision = watch::Sender::new(index.revision());
        Self { index: RwLock::new(index), revision }
    }

    /// Changes the index and wakes who waits for news. `change` must not panic.
    pub fn update(&self, change: impl FnOnce(&mut Index)) {
        let revision = {
            // A panic in a change is a defect; the index it leaves is used on,
            // because a pod that delivers with it is better than none.
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            change(&mut index);
            index.revision()
        };
        self.revision.send_if_modified(|known| std::mem::replace(known, revision) != revision);
    }

    /// Reads the index.
    pub fn read<R>(&self, look: impl FnOnce(&Index) -> R) -> R {
        look(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until every kind has been listed at least once.
    pub async fn until_synced(&self) {
        let mut revision = self.revision.subscribe();
        while !self.read(Index::synced) {
            // The sender lives as long as self. The last listing to end is news.
            revision.changed().await.ok();
        }
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
