//! Brings the cluster's state into the index, and the pool's own spec to whoever
//! wants it.
//!
//! Four watches: Namespaces (metadata only), Webhooks, Subscriptions, and the
//! pod's own DeliveryPool. They never end: errors are counted, logged once per
//! outage, and tried again with back-off. While the API server is away, the index
//! stays as it was.

use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, Resource, ResourceExt, api::PartialObjectMeta, core::DeserializeGuard};
use kube_runtime::{
    WatchStreamExt,
    watcher::{self, Config, Event, watcher},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::index::{Index, SharedIndex, WatchedKind};
use crate::{
    api::{DeliveryPool, DeliveryPoolSpec, POOL_LABEL, Subscription, Webhook},
    runtime::reachability::Reachability,
    wire::index_feed::FeedKind,
};

/// Objects that one answer to a list holds at most: what a listing may take of
/// memory at a time.
pub const PAGE_OBJECTS: u32 = 500;

/// What is known of the pod's own DeliveryPool.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum PoolView {
    /// The API server has not been heard of yet.
    #[default]
    NotSeen,
    /// There is no such pool.
    Missing,
    /// This version cannot parse it.
    Unreadable,
    /// Its spec.
    Spec(Arc<DeliveryPoolSpec>),
}

/// The kind that a watch error is counted for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    /// The kind, as in its manifest.
    pub kind: &'static str,
}

/// Errors of watches by kind; clones share their counts.
pub type WatchErrors = Family<KindLabel, Counter>;

/// What the watches need.
#[derive(Clone)]
pub struct Watches {
    /// The API server.
    pub client: Client,
    /// Name of the pod's DeliveryPool.
    pub pool: String,
    /// Where objects go.
    pub index: Arc<SharedIndex>,
    /// Counts what fails.
    pub errors: WatchErrors,
    /// Is told whether the API server answers.
    pub api_server: Reachability,
}

impl Watches {
    /// Watches for ever; drop the future to end.
    pub async fn run(self, pool: watch::Sender<PoolView>) {
        tokio::join!(self.namespaces(), self.webhooks(), self.subscriptions(), self.pool(pool));
    }

    async fn namespaces(&self) {
        let api = Api::<PartialObjectMeta<Namespace>>::all(self.client.clone());
        let take = |event| {
            self.index.update(|index| apply_event(index, WatchedKind::Namespace, event, apply_namespace));
        };
        self.follow(api, config(), "Namespace", take).await;
    }

    async fn webhooks(&self) {
        let api = Api::<DeserializeGuard<Webhook>>::all(self.client.clone());
        let take = |event| {
            self.index.update(|index| apply_event(index, WatchedKind::Webhook, event, apply_webhook));
        };
        self.follow(api, config(), "Webhook", take).await;
    }

    async fn subscriptions(&self) {
        let api = Api::<DeserializeGuard<Subscription>>::all(self.client.clone());
        let take = |event| {
            self.index.update(|index| apply_event(index, WatchedKind::Subscription, event, apply_subscription));
        };
        self.follow(api, config(), "Subscription", take).await;
    }

    async fn pool(&self, sender: watch::Sender<PoolView>) {
        let api = Api::<DeserializeGuard<DeliveryPool>>::all(self.client.clone());
        let config = config().fields(&format!("metadata.name={}", self.pool));
        let mut listed = PoolView::Missing;
        let take = |event| {
            if let Some(view) = pool_view(&mut listed, event) {
                sender.send_if_modified(|known| std::mem::replace(known, view.clone()) != view);
            }
        };
        self.follow(api, config, "DeliveryPool", take).await;
    }

    /// Feeds every event of a watch to `take`, for ever.
    async fn follow<K>(&self, api: Api<K>, config: Config, kind: &'static str, mut take: impl FnMut(Event<K>))
    where
        K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
    {
        let mut outage = Outage::of(kind);
        self.api_server.report(kind, true);
        // The back-off has no end, so neither has the stream; were it to end, the
        // watch would begin anew.
        loop {
            let mut events = std::pin::pin!(watcher(api.clone(), config.clone()).default_backoff());
            while let Some(event) = events.next().await {
                if event.is_err() {
                    self.errors.get_or_create(&KindLabel { kind }).inc();
                }
                let event = outage.hear(event);
                self.api_server.report(kind, !outage.is_failing);
                if let Some(event) = event {
                    take(event);
                }
            }
        }
    }
}

/// Every object, in pages of [`PAGE_OBJECTS`].
pub fn config() -> Config {
    Config::default().page_size(PAGE_OBJECTS)
}

/// Tells of the failures of a watch, once per outage.
#[derive(Debug)]
pub struct Outage {
    kind: &'static str,
    is_failing: bool,
}

impl Outage {
    /// Of the watch of a kind, which works as far as is known.
    pub const fn of(kind: &'static str) -> Self {
        Self { kind, is_failing: false }
    }

    /// Logs what is new about the watch; the event, if it is none of failure.
    pub fn hear<K>(&mut self, event: Result<Event<K>, watcher::Error>) -> Option<Event<K>> {
        let kind = self.kind;
        match event {
            Ok(event) => {
                // `Init` comes before the API server has said anything.
                if self.is_failing && !matches!(event, Event::Init) {
                    self.is_failing = false;
                    tracing::info!(kind, "the watch works again");
                }
                Some(event)
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                if std::mem::replace(&mut self.is_failing, true) {
                    tracing::debug!(kind, error, "the watch still fails");
                } else {
                    tracing::warn!(kind, error, "the watch failed and is tried again");
                }
                None
            }
        }
    }
}

/// An object came, or went.
enum Change<'a, K> {
    Applied(&'a K),
    Deleted(&'a K),
}

fn apply_event<K>(index: &mut Index, kind: WatchedKind, event: Event<K>, apply: fn(&mut Index, Change<'_, K>)) {
    match event {
        Event::Init => index.begin_list(kind),
        Event::InitApply(object) | Event::Apply(object) => apply(index, Change::Applied(&object)),
        Event::InitDone => index.end_list(kind),
        Event::Delete(object) => apply(index, Change::Deleted(&object)),
    }
}

fn apply_namespace(index: &mut Index, change: Change<'_, PartialObjectMeta<Namespace>>) {
    match change {
        Change::Applied(namespace) => {
            let (name, uid) = (namespace.name_any(), namespace.uid().unwrap_or_default());
            index.apply_namespace(&name, &uid, namespace.labels().get(POOL_LABEL).map(String::as_str));
        }
        Change::Deleted(namespace) => index.delete_namespace(&namespace.name_any()),
    }
}

fn apply_webhook(index: &mut Index, change: Change<'_, DeserializeGuard<Webhook>>) {
    match change {
        Change::Applied(DeserializeGuard(Ok(webhook))) => index.apply_webhook(webhook),
        Change::Applied(unreadable) => index.apply_unreadable(FeedKind::Webhook, unreadable.meta()),
        Change::Deleted(webhook) => delete(index, FeedKind::Webhook, webhook),
    }
}

fn apply_subscription(index: &mut Index, change: Change<'_, DeserializeGuard<Subscription>>) {
    match change {
        Change::Applied(DeserializeGuard(Ok(subscription))) => index.apply_subscription(subscription),
        Change::Applied(unreadable) => index.apply_unreadable(FeedKind::Subscription, unreadable.meta()),
        Change::Deleted(subscription) => delete(index, FeedKind::Subscription, subscription),
    }
}

fn delete(index: &mut Index, kind: FeedKind, object: &impl ResourceExt) {
    index.delete(kind, &object.namespace().unwrap_or_default(), &object.name_any());
}

/// What an event tells of the pool; none while a listing is not complete.
fn pool_view(listed: &mut PoolView, event: Event<DeserializeGuard<DeliveryPool>>) -> Option<PoolView> {
    let view_of = |pool: DeserializeGuard<DeliveryPool>| match pool.0 {
        Ok(pool) => PoolView::Spec(Arc::new(pool.spec)),
        Err(_unreadable) => PoolView::Unreadable,
    };
    match event {
        Event::Init => {
            *listed = PoolView::Missing;
            None
        }
        Event::InitApply(pool) => {
            *listed = view_of(pool);
            None
        }
        Event::InitDone => Some(listed.clone()),
        Event::Apply(pool) => Some(view_of(pool)),
        Event::Delete(_) => Some(PoolView::Missing),
    }
}
