//! Brings the index into the store: which Webhooks and Subscriptions there are,
//! and from when on their events are owed.
//!
//! [`plan`] decides and [`ledger`] remembers, both pure; [`Registrar::run`] takes
//! changes from the index, registers them, tells the dispatcher, and lets the
//! feed tell the controller: in this order, so that whoever waits for
//! `Programmed` and publishes then misses nothing.

mod ledger;
mod plan;
mod proof;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Interval, MissedTickBehavior},
};

use self::{ledger::Ledger, plan::Plan};
use crate::{
    dispatch::HookView,
    routing::index::{Change, Changes, Index, NamespaceRecord, ObjectRecord, SharedIndex},
    store::{HookId, Known, Partition, Register, StoreError},
    verify::fingerprint::FingerprintKey,
};

/// Changes that are planned, and records that are registered, at a time.
pub const BATCH_MAX: usize = 256;
/// Time between two looks whether Webhooks of namespaces that moved to another
/// pool have anything left to send.
pub const DRAIN_LOOK_INTERVAL: Duration = Duration::from_secs(600);

/// Who is told of Webhooks: the dispatcher.
pub trait Hooks: Send + Sync {
    /// A Webhook is known, or changed. `notes` and `has_backlog` count only if
    /// the hook is not known yet: whoever sends knows better afterwards.
    fn set_hook(&self, view: HookView);

    /// Somebody asked to read Secrets anew, and to end a pause that the endpoint
    /// asked for (`posthorn.dev/reload`). Comes behind `set_hook`.
    fn reload_hook(&self, hook: HookId);

    /// Nothing is to be sent to a hook any more: forget it.
    fn remove_hook(&self, hook: HookId);
}

/// What the dispatcher is told.
#[derive(Debug)]
enum HookAction {
    Set(Box<HookView>),
    Reload(HookId),
    Remove(HookId),
}

/// The task that brings the index into a partition of the store.
pub struct Registrar {
    index: Arc<SharedIndex>,
    partition: Arc<dyn Partition>,
    hooks: Arc<dyn Hooks>,
    key: watch::Receiver<Option<FingerprintKey>>,
}

impl Registrar {
    /// A registrar that has done nothing yet. `index` must be a
    /// [recorded](Index::recorded) one, and no other registrar may take from it.
    /// Without a key no verification is believed.
    pub fn new(
        index: Arc<SharedIndex>,
        partition: Arc<dyn Partition>,
        hooks: Arc<dyn Hooks>,
        key: watch::Receiver<Option<FingerprintKey>>,
    ) -> Self {
        Self { index, partition, hooks, key }
    }

    /// Works for ever; drop the future to end.
    ///
    /// # Flow
    /// Fill the index with what the store knows → tell the dispatcher → for ever:
    /// take changes, register them, tell the dispatcher, acknowledge them.
    ///
    /// # Guarantees
    /// Nothing is forgotten because a watch failed: only what a watch tells to be
    /// deleted, or a complete listing has not, is gone. What is gone is told to
    /// the store, never deleted here.
    ///
    /// # Errors
    /// The store failed, or the partition is another process's now. Nothing
    /// is told to the controller any more.
    pub async fn run(mut self) -> Result<(), StoreError> {
        let mut ledger = self.restore().await?;
        let mut marks = self.index.marks();
        let (mut is_compared, mut is_told) = (false, false);
        let mut looks = tokio::time::interval(DRAIN_LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            marks.mark_unchanged();
            let Changes { mut changes, is_complete } = self.take();
            if is_complete && changes.is_empty() && !is_compared {
                changes = self.index.read(|index| ledger.missing(index));
                is_compared = true;
            }
            if self.key.has_changed().unwrap_or(false) {
                self.key.mark_unchanged();
                changes.extend(self.index.read(|index| plan::all_waiting(&ledger, index)));
            }
            let is_idle = changes.is_empty();
            self.record(&mut ledger, changes).await?;
            if is_complete && is_compared && !is_told {
                self.index.update(Index::acknowledge_complete);
                ledger.pack();
                is_told = true;
            }
            if is_idle {
                self.wait(&mut ledger, &mut marks, &mut looks).await?;
            }
        }
    }

    async fn restore(&self) -> Result<Ledger, StoreError> {
        let known = self.partition.known().await?;
        self.index.update(|index| restore_index(index, &known));
        let mut ledger = Ledger::restore(&known, &self.partition.namespaces().await?);
        let actions = self.index.read(|index| ledger.show_restored(&known, index));
        tracing::info!(webhooks = known.hooks.len(), subscriptions = known.subs.len(), "the store was read");
        self.tell(actions);
        Ok(ledger)
    }

    fn take(&self) -> Changes {
        let mut taken = Changes::default();
        self.index.update(|index| taken = index.take_changes(BATCH_MAX));
        taken
    }

    async fn record(&self, ledger: &mut Ledger, changes: Vec<Change>) -> Result<(), StoreError> {
        let key = self.key.borrow().clone();
        let Plan { steps, mut told } = self.index.read(|index| plan::plan(ledger, changes, index, key.as_ref()));
        let mut steps = steps.into_iter().peekable();
        while steps.peek().is_some() {
            let batch: Vec<_> = steps.by_ref().take(BATCH_MAX).collect();
            let registers: Vec<Register> = batch.iter().map(|step| step.register.clone()).collect();
            let answers = self.partition.register(registers).await?;
            for (step, answer) in batch.into_iter().zip(answers) {
                let (actions, change) = plan::settle(ledger, step, answer);
                self.tell(actions);
                told.extend(change);
            }
        }
        if !told.is_empty() {
            self.index.update(|index| told.iter().for_each(|change| index.acknowledge(change)));
        }
        Ok(())
    }

    /// Until there is news; looks after what drains meanwhile.
    async fn wait(
        &mut self,
        ledger: &mut Ledger,
        marks: &mut watch::Receiver<u64>,
        looks: &mut Interval,
    ) -> Result<(), StoreError> {
        let key_changed = async {
            if self.key.changed().await.is_err() {
                // The last key stays.
                std::future::pending::<()>().await;
            }
            self.key.mark_changed();
        };
        tokio::select! {
            // The sender lives as long as the index.
            _changed = marks.changed() => {}
            () = key_changed => {}
            _tick = looks.tick(), if ledger.drains() => {
                let known = self.partition.known().await?;
                let actions = ledger.drained(&known);
                self.tell(actions);
            }
        }
        Ok(())
    }

    fn tell(&self, actions: Vec<HookAction>) {
        for action in actions {
            match action {
                HookAction::Set(view) => self.hooks.set_hook(*view),
                HookAction::Reload(hook) => self.hooks.reload_hook(hook),
                HookAction::Remove(hook) => self.hooks.remove_hook(hook),
            }
        }
    }
}

/// What cannot be read is left out: it is known when the API server has listed it.
fn restore_index(index: &mut Index, known: &Known) {
    let mut names = std::collections::HashMap::new();
    for hook in &known.hooks {
        let definition = &hook.hook;
        names.insert(&definition.namespace_uid, &definition.namespace);
        if hook.gone_at.is_some() {
            continue;
        }
        let namespace = NamespaceRecord { name: &definition.namespace, uid: &definition.namespace_uid };
        let (name, uid, document) = (&definition.name, &definition.uid, &*definition.document);
        if let Err(error) = index.restore_webhook(ObjectRecord { namespace, name, uid, document }) {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(namespace = %namespace.name, webhook = %name, error, "a Webhook in the store cannot be used until the API server is heard of");
        }
    }
    for sub in &known.subs {
        let definition = &sub.sub;
        let Some(namespace) = names.get(&definition.namespace_uid) else { continue };
        let namespace = NamespaceRecord { name: namespace, uid: &definition.namespace_uid };
        let (name, uid, document) = (&definition.name, &definition.uid, &*definition.document);
        let record = ObjectRecord { namespace, name, uid, document };
        if let Err(error) = index.restore_subscription(record, definition.created, &definition.webhook) {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(namespace = %namespace.name, subscription = %name, error, "a Subscription in the store cannot be used until the API server is heard of");
        }
    }
    index.end_restore();
}
