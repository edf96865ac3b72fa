//! The dispatcher as a task: takes inputs, asks the engine, does what it says.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{AttemptSender, DispatchMetrics, DispatcherHandle, handle::Command, health::HealthBoard};
use crate::store::{News, NewsReceiver, Partition, StoreError};

/// Decides which Delivery is tried when, and has it tried.
pub struct Dispatcher {
    store: Arc<dyn Partition>,
    sender: Arc<dyn AttemptSender>,
    news: NewsReceiver,
    metrics: DispatchMetrics,
    commands: mpsc::UnboundedReceiver<Command>,
    health: Arc<HealthBoard>,
}

impl Dispatcher {
    /// A dispatcher of one partition, and the handle to talk to it. Nothing
    /// happens before [`run`](Self::run).
    pub fn new(
        store: Arc<dyn Partition>,
        sender: Arc<dyn AttemptSender>,
        news: NewsReceiver,
        metrics: DispatchMetrics,
    ) -> (Self, DispatcherHandle) {
        let (send, commands) = mpsc::unbounded_channel();
        let health = Arc::new(HealthBoard::new());
        let handle = DispatcherHandle { commands: send, health: Arc::clone(&health) };
        (Self { store, sender, news, metrics, commands, health }, handle)
    }

    /// Works until [`DispatcherHandle::shutdown`], or until every handle is gone.
    ///
    /// # Errors
    /// [`StoreError::Fenced`]: the partition is another's; everything was dropped
    /// without another attempt. [`StoreError::Failed`]: the process must end.
    pub async fn run(mut self) -> Result<(), StoreError> {
        loop {
            tokio::select! {
                command = self.commands.recv() => match command {
                    None | Some(Command::Shutdown(_)) => return Ok(()),
                    Some(_) => {}
                },
                Some(news) = self.news.recv() => {
                    if let News::Failed(error) = news {
                        return Err(error);
                    }
                }
            }
        }
    }
}
