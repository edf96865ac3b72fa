//! The task that runs Replays.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::StreamExt;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    core::DeserializeGuard,
};
use kube_runtime::{
    WatchStreamExt,
    watcher::{Event, watcher},
};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::plan::{self, Standing};
use crate::{
    api::{GROUP, Replay, VERSION},
    delivery::{
        cards::Cards,
        directory::{Directory, HookInfo},
    },
    routing::watch::{self, Outage},
    runtime::clock,
    store::{CardQuery, CardState, Partition, ReplayIdentity, ReplayOrder, ReplayRun, StoreError},
};

/// Field manager of the status of Replays.
const FIELD_MANAGER: &str = "posthorn-delivery-status";
/// Time between two looks at the Replays under way.
const PERIOD: Duration = Duration::from_secs(1);
/// Time between two writes of a status that only tells of progress.
const PROGRESS_PERIOD: Duration = Duration::from_secs(5);
/// Replays that are looked at in one look.
const LOOKED_AT_MAX: usize = 16;
/// Cards that names and selectors choose from: as many as a Webhook has at most.
const CARDS_READ_MAX: usize = 100;

type Key = (String, String);
/// UID of a namespace of this pool.
type NamespaceUid = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

struct Tracked {
    replay: Replay,
    written: Option<Instant>,
}

/// Runs Replays. Made once, runs for ever.
pub struct ReplayRunner {
    store: Arc<dyn Partition>,
    directory: Arc<dyn Directory>,
    client: Client,
    cards: Cards,
    /// Whether a namespace is one of this pool, and its UID.
    namespace_uid: NamespaceUid,
    open: BTreeMap<Key, Tracked>,
    listed: BTreeMap<Key, Replay>,
    next: usize,
}

impl ReplayRunner {
    /// Runs the Replays of the namespaces for which `namespace_uid` knows a UID.
    pub fn new(
        store: Arc<dyn Partition>,
        directory: Arc<dyn Directory>,
        client: Client,
        cards: Cards,
        namespace_uid: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        let namespace_uid = Box::new(namespace_uid);
        let (open, listed) = (BTreeMap::new(), BTreeMap::new());
        Self { store, directory, client, cards, namespace_uid, open, listed, next: 0 }
    }

    /// Runs Replays until the store fails; drop the future to end.
    ///
    /// # Errors
    /// What the store said.
    pub async fn run(mut self) -> Result<(), StoreError> {
        let api = Api::<DeserializeGuard<Replay>>::all(self.client.clone());
        let mut events = std::pin::pin!(watcher(api, watch::config()).default_backoff());
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut outage = Outage::of("Replay");
        loop {
            tokio::select! {
                // A watch with back-off does not end.
                event = events.next() => match event.map(|event| outage.hear(event)) {
                    Some(Some(event)) => self.see(event),
                    Some(None) => {}
                    None => return Ok(()),
                },
                _tick = ticks.tick() => self.look().await?,
            }
        }
    }

    fn see(&mut self, event: Event<DeserializeGuard<Replay>>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(DeserializeGuard(Ok(replay))) => {
                self.listed.insert(key(&replay), replay);
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                self.open.retain(|key, _| listed.contains_key(key));
                listed.into_values().for_each(|replay| self.track(replay));
            }
            Event::Apply(DeserializeGuard(Ok(replay))) => self.track(replay),
            Event::Delete(replay) => {
                self.open.remove(&(replay.namespace().unwrap_or_default(), replay.name_any()));
            }
            // One that this version cannot read is left to the version that can.
            Event::InitApply(_) | Event::Apply(_) => {}
        }
    }

    fn track(&mut self, replay: Replay) {
        let key = key(&replay);
        if plan::is_settled(&replay) {
            self.open.remove(&key);
            return;
        }
        let same = |tracked: &Tracked| tracked.replay.metadata.uid == replay.metadata.uid;
        let written = self.open.get(&key).filter(|tracked| same(tracked)).and_then(|tracked| tracked.written);
        self.open.insert(key, Tracked { replay, written });
    }

    async fn look(&mut self) -> Result<(), StoreError> {
        let keys: Vec<Key> = self.open.keys().cloned().collect();
        for n in 0..keys.len().min(LOOKED_AT_MAX) {
            let key = &keys[(self.next + n) % keys.len()];
            self.look_at(key).await?;
        }
        self.next = self.next.wrapping_add(LOOKED_AT_MAX);
        Ok(())
    }

    async fn look_at(&mut self, key: &Key) -> Result<(), StoreError> {
        let Some(uid) = (self.namespace_uid)(&key.0) else { return Ok(()) };
        let Some(tracked) = self.open.get(key) else { return Ok(()) };
        let replay = tracked.replay.clone();
        let standing = self.advance(&replay, &uid).await?;
        let now = clock::now();
        let status = plan::status(&replay, &standing, now);
        let old = replay.status.as_ref();
        let is_transition = old.is_none_or(|old| {
            old.observed_generation != status.observed_generation
                || old.conditions.iter().map(|c| &c.reason).ne(status.conditions.iter().map(|c| &c.reason))
        });
        let is_due = tracked.written.is_none_or(|at| at.elapsed() >= PROGRESS_PERIOD);
        if old == Some(&status) || !(is_transition || is_due) {
            return Ok(());
        }
        self.write(key, &replay, &status).await;
        Ok(())
    }

    /// Begins the run, or ends it, or sees how it stands.
    async fn advance(&self, replay: &Replay, namespace_uid: &str) -> Result<Standing, StoreError> {
        let spec = &replay.spec;
        let identity = ReplayIdentity {
            namespace_uid: namespace_uid.into(),
            name: replay.name_any().into(),
            spec_hash: plan::spec_hash(spec).into(),
        };
        let known = self.store.replay_run(identity.clone()).await?;
        let run = match known {
            Some(run) => run,
            None => {
                let namespace = replay.namespace().unwrap_or_default();
                let Some(hook) = self.directory.find(&namespace, &spec.webhook_ref.name) else {
                    return Ok(Standing::WebhookNotFound);
                };
                match self.begin(replay, &hook, identity.clone()).await? {
                    Ok(run) => run,
                    Err(problem) => return Ok(Standing::Invalid(problem)),
                }
            }
        };
        if spec.is_cancelled() && !plan::is_over(&run) {
            return Ok(Standing::Run(self.store.cancel_replay(identity).await?.unwrap_or(run)));
        }
        Ok(Standing::Run(run))
    }

    async fn begin(
        &self,
        replay: &Replay,
        hook: &HookInfo,
        identity: ReplayIdentity,
    ) -> Result<Result<ReplayRun, String>, StoreError> {
        let spec = &replay.spec;
        let rows = if plan::needs_cards(spec) {
            let state = Some(CardState::Made);
            let query = CardQuery { hook: Some(hook.id), state, after: None, limit: CARDS_READ_MAX };
            self.store.cards(query).await?
        } else {
            Vec::new()
        };
        let what = match plan::what(spec, hook, &rows, &self.cards) {
            Ok(what) => what,
            Err(problem) => return Ok(Err(problem)),
        };
        let order = ReplayOrder {
            identity,
            hook: hook.id,
            what,
            per_second: spec.rate.and_then(|rate| u32::try_from(rate).ok()),
            is_dry_run: spec.is_dry_run(),
        };
        let namespace = replay.namespace().unwrap_or_default();
        tracing::info!(namespace, replay = replay.name_any(), webhook = &*hook.name, "a Replay begins");
        self.store.replay(order).await.map(Ok)
    }

    /// What cannot be written now is written at a later look.
    async fn write(&mut self, key: &Key, replay: &Replay, status: &crate::api::ReplayStatus) {
        let api = Api::<Replay>::namespaced(self.client.clone(), &key.0);
        // The uid goes along: a namesake that was made meanwhile answers with a conflict.
        let body = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"), "kind": "Replay",
            "metadata": { "name": key.1, "namespace": key.0, "uid": replay.metadata.uid },
            "status": status,
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        match api.patch_status(&key.1, &parameters, &Patch::Apply(&body)).await {
            Ok(written) => {
                self.track(written);
                if let Some(tracked) = self.open.get_mut(key) {
                    tracked.written = Some(Instant::now());
                }
            }
            Err(error) => {
                tracing::debug!(
                    namespace = key.0,
                    replay = key.1,
                    error = &error as &dyn std::error::Error,
                    "the status of a Replay could not be written"
                );
            }
        }
    }
}

fn key(replay: &Replay) -> Key {
    (replay.namespace().unwrap_or_default(), replay.name_any())
}
