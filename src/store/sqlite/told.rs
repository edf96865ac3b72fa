//! Keeps answers behind the news of what they show.
//!
//! A reader may see a commit before the writer has told of it. For what is owed
//! by the accept that does not matter: nobody has read past a position that was
//! not given out. Deliveries that come later, by a fan-out or a Replay, stand at
//! positions that the dispatcher may have read past: it must hear of them before
//! it is shown anything younger.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

/// Which transactions with such news have begun to commit, and which were told.
#[derive(Debug)]
pub(super) struct Told {
    begun: AtomicU64,
    told: watch::Sender<u64>,
}

impl Default for Told {
    fn default() -> Self {
        Self { begun: AtomicU64::new(0), told: watch::Sender::new(0) }
    }
}

impl Told {
    /// A transaction is about to commit: from now on readers may see it. For the
    /// writer alone.
    pub(super) fn begin(&self) {
        self.begun.fetch_add(1, Ordering::SeqCst);
    }

    /// The news of it were sent, or it was rolled back.
    pub(super) fn done(&self) {
        let begun = self.begun.load(Ordering::SeqCst);
        self.told.send_if_modified(|told| std::mem::replace(told, begun) != begun);
    }

    /// The writer tells nothing any more.
    pub(super) fn end(&self) {
        self.told.send_replace(u64::MAX);
    }

    /// Waits until everything was told that a reader may have seen by now.
    pub(super) async fn caught_up(&self) {
        let seen = self.begun.load(Ordering::SeqCst);
        let mut told = self.told.subscribe();
        // The sender is here: the wait cannot fail.
        let _told = told.wait_for(|told| *told >= seen).await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_reader_waits_for_the_news_of_what_it_may_have_seen_and_for_nothing_else() {
        let told = Told::default();
        assert_eq!(told.caught_up().now_or_never(), Some(()));
        told.begin();
        let mut waits = std::pin::pin!(told.caught_up());
        assert_eq!(waits.as_mut().now_or_never(), None);
        told.done();
        assert_eq!(waits.now_or_never(), Some(()));
        told.begin();
        assert_eq!(told.caught_up().now_or_never(), None);
        told.end();
        assert_eq!(told.caught_up().now_or_never(), Some(()), "nobody waits for a writer that has ended");
    }
}
