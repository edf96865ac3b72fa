//! What the rest of the pod holds of the dispatcher.

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};

use super::{HealthPage, HookHealth, HookView, health::HealthBoard};
use crate::store::HookId;

/// What the dispatcher is told from outside.
#[derive(Debug)]
pub(super) enum Command {
    Set(Box<HookView>),
    Remove(HookId),
    Reload(HookId),
    Shutdown(Duration),
}

/// Tells the dispatcher of Webhooks and reads how their endpoints do. Clones
/// share one dispatcher. Calls return at once; they take effect in their order.
#[derive(Clone, Debug)]
pub struct DispatcherHandle {
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) health: Arc<HealthBoard>,
}

impl DispatcherHandle {
    /// A Webhook is new or changed. Ends a hold that waited for a change, and
    /// with a new generation also a pause and an open circuit.
    ///
    /// `notes` count only the first time that a hook is set: from then on the
    /// dispatcher knows better than anybody.
    pub fn set_hook(&self, view: HookView) {
        self.send(Command::Set(Box::new(view)));
    }

    /// A Webhook is unknown from now on. Running attempts end by themselves;
    /// what is owed stays in the store.
    pub fn remove_hook(&self, hook: HookId) {
        self.send(Command::Remove(hook));
    }

    /// Somebody asked for it (`posthorn.dev/reload`): ends a pause that the
    /// endpoint asked for, and a hold.
    pub fn reload(&self, hook: HookId) {
        self.send(Command::Reload(hook));
    }

    /// How an endpoint does; none before the first attempt.
    pub fn health_of(&self, hook: HookId) -> Option<HookHealth> {
        self.health.get(hook)
    }

    /// Endpoints whose health changed behind the revision `after` (0: all),
    /// oldest change first, at most `limit`.
    pub fn health(&self, after: u64, limit: usize) -> HealthPage {
        self.health.page(after, limit)
    }

    /// The newest revision of [`health`](Self::health).
    pub fn health_changes(&self) -> watch::Receiver<u64> {
        self.health.changes()
    }

    /// Starts no attempt any more, gives running ones `grace` to end, hands the
    /// rest back (they stay owed) and flushes outcomes; then
    /// [`Dispatcher::run`](super::Dispatcher::run) returns.
    pub fn shutdown(&self, grace: Duration) {
        self.send(Command::Shutdown(grace));
    }

    /// A dispatcher that has ended needs to know nothing.
    fn send(&self, command: Command) {
        self.commands.send(command).unwrap_or_default();
    }
}
