//! The task that keeps cards in step with the store.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::{apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition, jiff::Timestamp};
use kube::{
    Api, Client, CustomResourceExt, ResourceExt,
    api::{DeleteParams, PartialObjectMeta, PostParams},
};
use kube_runtime::{
    WatchStreamExt,
    watcher::{Event, watcher},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{Budget, Cards, card, places::Standing};
use crate::{
    api::{DeadLetter, POOL_LABEL},
    delivery::directory::{Directory, HookInfo},
    routing::watch::{self, Outage},
    runtime::metrics::MetricsRegistry,
    store::{CardMark, CardQuery, CardState, DeadRow, HookId, Partition, StoreError},
};

/// Time between two looks into the store.
const PERIOD: Duration = Duration::from_millis(500);
/// Dead Deliveries that are looked at in one look.
const WANTED_MAX: usize = 256;
/// Such pages in one period at most.
const PAGES_MAX: usize = 40;
/// Webhooks whose cards are compared with the store in one look.
const COMPARED_MAX: usize = 20;
/// How long after a card was deleted its Delivery counts as dismissed: when the
/// whole kind is removed, or the namespace, every card is deleted as well, and
/// that dismisses nothing.
pub const DISMISS_DELAY: Duration = Duration::from_secs(5);
/// Pause after the API server refused or did not answer.
const PAUSE: Duration = Duration::from_secs(5);

/// A write of cards.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WriteLabel {
    /// `created`, `deleted` or `failed`.
    pub outcome: &'static str,
}

/// Keeps cards. Made once, runs for ever.
pub struct CardKeeper {
    store: Arc<dyn Partition>,
    directory: Arc<dyn Directory>,
    client: Client,
    cards: Cards,
    budget: Budget,
    listed: BTreeSet<(String, String)>,
    dismissals: VecDeque<Deletion>,
    unwanted: VecDeque<(String, String)>,
    compared: usize,
    paused_until: Option<Instant>,
    metrics: CardMetrics,
}

/// What is counted of cards. Clones share their counts.
#[derive(Clone, Debug, Default)]
pub struct CardMetrics {
    standing: Gauge,
    overflow: Counter,
    writes: Family<WriteLabel, Counter>,
}

impl CardMetrics {
    /// Counts that the registry shows.
    pub fn register(registry: &mut MetricsRegistry) -> Self {
        let metrics = Self::default();
        registry.register("dead_letters_standing", "DeadLetter cards that stand", metrics.standing.clone());
        let help = "Dead Deliveries without a card for want of room";
        registry.register("dead_letters_overflow", help, metrics.overflow.clone());
        registry.register("dead_letter_writes", "Writes of DeadLetter cards by outcome", metrics.writes.clone());
        metrics
    }
}

/// A card that somebody deleted.
struct Deletion {
    due: Instant,
    card_made: Option<Timestamp>,
    standing: Standing,
}

/// The kind DeadLetter in the API server.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// It is not there, or being removed with all its cards.
    Gone,
    /// It is there since then.
    Since(Option<Timestamp>),
}

impl Kind {
    /// What the deletion of a card means. A card that is not younger than its kind,
    /// in whole seconds, went with the kind that was there before.
    fn meaning_of(self, card_made: Option<Timestamp>) -> CardState {
        match self {
            Self::Gone => CardState::Wanted,
            Self::Since(since) if since.zip(card_made).is_some_and(|(since, made)| made <= since) => CardState::Wanted,
            Self::Since(_) => CardState::Dismissed,
        }
    }
}

/// What became of a wish for a card.
enum Made {
    Stands,
    NoRoom,
    Later,
}

impl CardKeeper {
    /// Keeps the cards of a store.
    pub fn new(
        store: Arc<dyn Partition>,
        directory: Arc<dyn Directory>,
        client: Client,
        cards: Cards,
        metrics: CardMetrics,
    ) -> Self {
        let budget = Budget::new(store.store_now());
        Self {
            store,
            directory,
            client,
            cards,
            budget,
            listed: BTreeSet::new(),
            dismissals: VecDeque::new(),
            unwanted: VecDeque::new(),
            compared: 0,
            paused_until: None,
            metrics,
        }
    }

    /// Keeps cards until the store fails; drop the future to end.
    ///
    /// # Errors
    /// What the store said.
    pub async fn run(mut self) -> Result<(), StoreError> {
        self.load().await?;
        let api = Api::<PartialObjectMeta<DeadLetter>>::all(self.client.clone());
        let config = watch::config().labels(&format!("{POOL_LABEL}={}", self.cards.pool));
        let mut events = std::pin::pin!(watcher(api, config).default_backoff());
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut outage = Outage::of("DeadLetter");
        loop {
            tokio::select! {
                // A watch with back-off does not end.
                event = events.next() => match event.map(|event| outage.hear(event)) {
                    Some(Some(event)) => self.see(event).await?,
                    Some(None) => {}
                    None => return Ok(()),
                },
                _tick = ticks.tick() => self.work().await?,
            }
        }
    }

    /// What the store says stands.
    async fn load(&mut self) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let query = CardQuery { hook: None, state: Some(CardState::Made), after, limit: WANTED_MAX };
            let rows = self.store.cards(query).await?;
            for row in &rows {
                if let Some(hook) = self.directory.hook(row.hook) {
                    self.note_standing(&hook, row);
                }
            }
            match rows.last() {
                Some(last) if rows.len() == WANTED_MAX => after = Some((last.hook, last.pos)),
                _ => return Ok(()),
            }
        }
    }

    fn note_standing(&self, hook: &HookInfo, row: &DeadRow) {
        let name = self.cards.name(hook, row.pos);
        self.cards.places().take(&hook.namespace, name, Standing { hook: row.hook, pos: row.pos });
    }

    async fn see(&mut self, event: Event<PartialObjectMeta<DeadLetter>>) -> Result<(), StoreError> {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(card) => {
                self.listed.insert((card.namespace().unwrap_or_default(), card.name_any()));
            }
            Event::InitDone => self.compare_with_listing().await?,
            // Nobody but this task may write cards; what stands on one is only shown.
            Event::Apply(_) => {}
            Event::Delete(card) => {
                let (namespace, name) = (card.namespace().unwrap_or_default(), card.name_any());
                let gone = self.cards.places().leave(&namespace, &name);
                // One that this task deleted has left before.
                if let Some(standing) = gone {
                    let card_made = card.metadata.creation_timestamp.map(|time| time.0);
                    self.dismissals.push_back(Deletion { due: Instant::now() + DISMISS_DELAY, card_made, standing });
                }
            }
        }
        Ok(())
    }

    /// After a gap: what is missing is written again, what should not be is deleted.
    async fn compare_with_listing(&mut self) -> Result<(), StoreError> {
        let listed = std::mem::take(&mut self.listed);
        let mut missing = Vec::new();
        {
            let mut places = self.cards.places();
            for (namespace, name, standing) in places.iter() {
                if !listed.contains(&(namespace.to_string(), name.to_owned())) {
                    missing.push((Arc::clone(namespace), name.to_owned(), standing.clone()));
                }
            }
            for (namespace, name, _) in &missing {
                places.leave(namespace, name);
            }
            for (namespace, name) in listed {
                if !places.contains(&namespace.as_str().into(), &name) {
                    self.unwanted.push_back((namespace, name));
                }
            }
        }
        let marks =
            missing.into_iter().map(|(_, _, Standing { hook, pos })| CardMark { hook, pos, state: CardState::Wanted });
        self.mark(marks.collect()).await
    }

    async fn mark(&self, marks: Vec<CardMark>) -> Result<(), StoreError> {
        if marks.is_empty() { Ok(()) } else { self.store.mark_cards(marks).await }
    }

    async fn work(&mut self) -> Result<(), StoreError> {
        if self.paused_until.is_some_and(|until| Instant::now() < until) {
            return Ok(());
        }
        self.paused_until = None;
        self.dismiss().await?;
        self.compare_with_store().await?;
        // What is only counted costs no request: a dead endpoint under load makes
        // more of it than one page a period.
        for _ in 0..PAGES_MAX {
            if !self.make().await? {
                break;
            }
        }
        self.remove().await;
        self.metrics.standing.set(i64::try_from(self.cards.places().len()).unwrap_or(i64::MAX));
        Ok(())
    }

    /// Deliveries whose cards somebody deleted a while ago.
    async fn dismiss(&mut self) -> Result<(), StoreError> {
        let now = Instant::now();
        if self.dismissals.front().is_none_or(|first| first.due > now) {
            return Ok(());
        }
        let Some(kind) = self.kind().await else {
            self.paused_until = Some(now + PAUSE);
            return Ok(());
        };
        let mut marks = Vec::new();
        let due = self.dismissals.iter().take(WANTED_MAX).take_while(|deletion| deletion.due <= now).count();
        for deletion in self.dismissals.drain(..due) {
            let Standing { hook, pos } = deletion.standing;
            // The namespace or the Webhook went: that is counted under its own name.
            if self.directory.hook(hook).is_some() {
                marks.push(CardMark { hook, pos, state: kind.meaning_of(deletion.card_made) });
            }
        }
        self.mark(marks).await
    }

    /// The kind DeadLetter; none if the API server does not say.
    async fn kind(&self) -> Option<Kind> {
        let api = Api::<CustomResourceDefinition>::all(self.client.clone());
        match api.get_metadata_opt(DeadLetter::crd_name()).await {
            Ok(None) => Some(Kind::Gone),
            Ok(Some(definition)) if definition.metadata.deletion_timestamp.is_some() => Some(Kind::Gone),
            Ok(Some(definition)) => Some(Kind::Since(definition.metadata.creation_timestamp.map(|time| time.0))),
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "the kind DeadLetter could not be read");
                None
            }
        }
    }

    /// Cards whose Delivery is not dead any more, or whose time is over.
    async fn compare_with_store(&mut self) -> Result<(), StoreError> {
        let hooks = self.cards.places().hooks();
        let now = self.store.store_now();
        for n in 0..hooks.len().min(COMPARED_MAX) {
            let hook = hooks[(self.compared + n) % hooks.len()];
            let query = CardQuery { hook: Some(hook), state: Some(CardState::Made), after: None, limit: WANTED_MAX };
            let rows = self.store.cards(query).await?;
            let ttl = self.directory.hook(hook).map(|info| info.settings.card_ttl);
            let is_over = |row: &DeadRow| {
                ttl.is_some_and(|ttl| row.at.plus_ms(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX)) <= now)
            };
            let (over, kept): (Vec<_>, Vec<_>) = rows.into_iter().partition(is_over);
            let marks = over.iter().map(|row| CardMark { hook, pos: row.pos, state: CardState::Expired });
            self.mark(marks.collect()).await?;
            self.drop_others(hook, &kept);
        }
        self.compared = self.compared.wrapping_add(COMPARED_MAX);
        Ok(())
    }

    /// Of a Webhook's cards only those of these Deliveries stay.
    fn drop_others(&mut self, hook: HookId, kept: &[DeadRow]) {
        let mut places = self.cards.places();
        let gone: Vec<_> = places
            .iter()
            .filter(|(_, _, standing)| standing.hook == hook && !kept.iter().any(|row| row.pos == standing.pos))
            .map(|(namespace, name, _)| (namespace.to_string(), name.to_owned()))
            .collect();
        for (namespace, name) in gone {
            places.leave(&namespace, &name);
            self.unwanted.push_back((namespace, name));
        }
    }

    /// Makes cards while there are room and budget; what has no room is counted.
    /// True if there may be more of that.
    async fn make(&mut self) -> Result<bool, StoreError> {
        let query = CardQuery { hook: None, state: Some(CardState::Wanted), after: None, limit: WANTED_MAX };
        let mut reserved = HashMap::<HookId, usize>::new();
        let mut marks = Vec::new();
        let mut is_spent = false;
        let rows = self.store.cards(query).await?;
        let wanted = rows.len();
        for row in rows {
            let Some(hook) = self.directory.hook(row.hook) else { continue };
            let places_left = usize::from(hook.settings.cards_max).saturating_sub(self.cards.of_hook(row.hook));
            let reserved = reserved.entry(row.hook).or_default();
            let has_room = *reserved < places_left && self.cards.places().has_room(&hook);
            let state = if !has_room {
                self.metrics.overflow.inc();
                CardState::Overflow
            } else if is_spent || self.paused_until.is_some() {
                *reserved += 1;
                continue;
            } else {
                match self.make_one(&hook, &row).await {
                    Made::Stands => CardState::Made,
                    Made::NoRoom => {
                        self.metrics.overflow.inc();
                        CardState::Overflow
                    }
                    Made::Later => {
                        is_spent = true;
                        *reserved += 1;
                        continue;
                    }
                }
            };
            marks.push(CardMark { hook: row.hook, pos: row.pos, state });
        }
        let may_be_more = wanted == WANTED_MAX && !marks.is_empty();
        self.mark(marks).await?;
        Ok(may_be_more)
    }

    async fn make_one(&mut self, hook: &HookInfo, row: &DeadRow) -> Made {
        if !self.budget.take(self.store.store_now()) {
            return Made::Later;
        }
        let card = card::build(row, hook, &self.cards.pool, &self.cards.store_id);
        let api = Api::<DeadLetter>::namespaced(self.client.clone(), &hook.namespace);
        // Before the request: the watch may tell of the card before the answer does.
        self.note_standing(hook, row);
        let outcome = match api.create(&PostParams::default(), &card).await {
            Ok(_) => Made::Stands,
            Err(kube::Error::Api(status)) => match status.code {
                409 => Made::Stands,
                // A quota, or a namespace that ends. 422 would be a defect of ours.
                403 | 422 => {
                    tracing::info!(
                        namespace = &*hook.namespace,
                        webhook = &*hook.name,
                        code = status.code,
                        reason = status.reason,
                        "a DeadLetter was refused and is only counted"
                    );
                    Made::NoRoom
                }
                _ => self.pause(status.code),
            },
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "a DeadLetter could not be written");
                self.pause(0)
            }
        };
        if matches!(outcome, Made::Stands) {
            self.count("created");
        } else {
            self.count("failed");
            let name = self.cards.name(hook, row.pos);
            self.cards.places().leave(&hook.namespace, &name);
        }
        outcome
    }

    fn pause(&mut self, code: u16) -> Made {
        tracing::debug!(code, "writing DeadLetters pauses");
        self.paused_until = Some(Instant::now() + PAUSE);
        Made::Later
    }

    fn count(&self, outcome: &'static str) {
        self.metrics.writes.get_or_create(&WriteLabel { outcome }).inc();
    }

    /// Deletes cards that should not stand, as far as the budget goes.
    async fn remove(&mut self) {
        while let Some((namespace, name)) = self.unwanted.front().cloned() {
            if self.paused_until.is_some() || !self.budget.take(self.store.store_now()) {
                return;
            }
            let api = Api::<DeadLetter>::namespaced(self.client.clone(), &namespace);
            match api.delete(&name, &DeleteParams::default()).await {
                Ok(_) => self.count("deleted"),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "a DeadLetter could not be deleted");
                    self.pause(0);
                    return;
                }
            }
            self.unwanted.pop_front();
        }
    }
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
