//! What the store tells the dispatcher, and the channel that it takes.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use smallvec::SmallVec;
use tokio::sync::mpsc;

use super::{HookId, StoreError, Target};
use crate::event::{Event, Pos};

/// Bytes of events that are in memory between commit and dispatcher at most.
pub const HANDED_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What the store tells the dispatcher, in the order of its commits.
#[derive(Debug)]
pub enum News {
    /// An event is durable and owed to these hooks. Without the event if too
    /// many bytes are on their way: read it from the store.
    Owed {
        /// Its position.
        pos: Pos,
        /// The event.
        event: Option<Arc<Event>>,
        /// Who gets it.
        targets: SmallVec<[Target; 4]>,
    },
    /// An event that was accepted before is owed to these hooks now (fan-out). The
    /// event is absent as in `Owed`, or because it is damaged.
    Late {
        /// Its position.
        pos: Pos,
        /// The event.
        event: Option<Arc<Event>>,
        /// Who gets it.
        targets: SmallVec<[Target; 4]>,
    },
    /// Deliveries of events that were accepted before are owed to a hook (backfill):
    /// nothing else changed, and it reads again from `from`.
    Added {
        /// Whose.
        hook: HookId,
        /// The lowest position concerned.
        from: Pos,
    },
    /// Rows of a hook changed behind the dispatcher's back (replay, expiry,
    /// dismissal): what it knows of them is worth nothing from `from` on, nor what
    /// it knows of the hook's ordering keys.
    Changed {
        /// Whose.
        hook: HookId,
        /// The lowest position concerned.
        from: Pos,
    },
    /// The store failed and takes nothing more: the process must end.
    Failed(StoreError),
}

impl News {
    /// Bytes of the event in it.
    fn event_bytes(&self) -> usize {
        match self {
            Self::Owed { event: Some(event), .. } | Self::Late { event: Some(event), .. } => event.memory_bytes(),
            _ => 0,
        }
    }
}

/// A channel for [`News`]. Never full: beyond [`HANDED_BYTES_MAX`] of events
/// that were not received yet, positions travel alone.
pub fn news_channel() -> (NewsSender, NewsReceiver) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    (NewsSender { sender, waiting: waiting.clone() }, NewsReceiver { receiver, waiting })
}

/// Where [`News`] goes.
#[derive(Clone, Debug)]
pub struct NewsSender {
    sender: mpsc::UnboundedSender<News>,
    waiting: Arc<AtomicUsize>,
}

impl NewsSender {
    /// Sends, and takes the event out if too many bytes wait already. Without a
    /// receiver nothing happens: whoever comes later reads the store.
    pub fn send(&self, mut news: News) {
        let bytes = news.event_bytes();
        if self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes > HANDED_BYTES_MAX {
            self.waiting.fetch_sub(bytes, Ordering::Relaxed);
            if let News::Owed { event, .. } | News::Late { event, .. } = &mut news {
                *event = None;
            }
        }
        if let Err(mpsc::error::SendError(unsent)) = self.sender.send(news) {
            self.waiting.fetch_sub(unsent.event_bytes(), Ordering::Relaxed);
        }
    }
}

/// Where [`News`] comes from.
#[derive(Debug)]
pub struct NewsReceiver {
    receiver: mpsc::UnboundedReceiver<News>,
    waiting: Arc<AtomicUsize>,
}

impl NewsReceiver {
    /// The next one; none when the store is gone. Cancel safe.
    pub async fn recv(&mut self) -> Option<News> {
        let news = self.receiver.recv().await?;
        self.waiting.fetch_sub(news.event_bytes(), Ordering::Relaxed);
        Some(news)
    }

    /// Appends what waits, at most `limit`, and waits for the first; 0 when the
    /// store is gone. Cancel safe.
    pub async fn recv_many(&mut self, buffer: &mut Vec<News>, limit: usize) -> usize {
        let count = self.receiver.recv_many(buffer, limit).await;
        let bytes = buffer.iter().rev().take(count).map(News::event_bytes).sum();
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        count
    }

    /// Whether the store is gone and everything was received.
    pub fn is_done(&self) -> bool {
        self.receiver.is_closed() && self.receiver.is_empty()
    }

    /// The next one if it is there.
    ///
    /// # Errors
    /// Nothing is there, or the store is gone.
    pub fn try_recv(&mut self) -> Result<News, mpsc::error::TryRecvError> {
        let news = self.receiver.try_recv()?;
        self.waiting.fetch_sub(news.event_bytes(), Ordering::Relaxed);
        Ok(news)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::event::{EventHead, EventId, StoreTime};

    fn owed(bytes: usize) -> News {
        let event = Event {
            id: EventId { time_ms: 0, epoch: 0, partition: 0, pos: Pos(1) },
            at: StoreTime(0),
            accepted: Timestamp::UNIX_EPOCH,
            namespace: "shop".into(),
            namespace_uid: "1".into(),
            head: EventHead::default(),
            data: vec![0; bytes].into(),
        };
        News::Owed { pos: Pos(1), event: Some(Arc::new(event)), targets: SmallVec::new() }
    }

    fn has_event(news: &News) -> bool {
        matches!(news, News::Owed { event: Some(_), .. })
    }

    #[tokio::test]
    async fn beyond_the_limit_positions_travel_alone_until_events_were_received() {
        let (sender, mut receiver) = news_channel();
        let half = HANDED_BYTES_MAX / 2;
        for _ in 0..2 {
            sender.send(owed(half));
        }
        assert!(has_event(&receiver.recv().await.unwrap()));
        assert!(!has_event(&receiver.recv().await.unwrap()), "both and their heads are more than the limit");
        sender.send(owed(half));
        assert!(has_event(&receiver.try_recv().unwrap()));
        assert_eq!(sender.waiting.load(Ordering::Relaxed), 0);
    }
}
