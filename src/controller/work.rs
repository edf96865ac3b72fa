//! What the leader does: the watches, and the two queues that they feed.
//!
//! Each kind is watched once. A watch that fails begins again with growing
//! waits; its errors are told and never end anything. Reconciles begin when
//! namespaces and pools were listed once, so that no Webhook is told for a
//! moment that its pool does not exist.

use std::{fmt::Debug, future::ready, sync::Arc, time::Duration};

use futures::{FutureExt, Stream, StreamExt};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, Resource, core::PartialObjectMeta};
use kube_runtime::{
    Controller, WatchStreamExt,
    controller::{self, Action},
    reflector::{self, Store},
    watcher::{self, Event, watcher},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    cache::Cached,
    context::{Context, Failures, RECONCILE_TIMEOUT, ReconcileError, Triggers, error_policy, stream_of},
    deliveries::Deliveries,
    events::EventWriter,
    feed::{
        Change, Feeds,
        follower::{Followers, Told},
    },
    key::ObjectKey,
    made_secrets::{Keeper, MadeSecrets},
    metrics::Metrics,
    pods::PodClient,
    prober::Prober,
    run::with_causes,
    subscription::{self, WrittenStatuses},
    views::Views,
    webhook::{self, desk::Desks},
};
use crate::{
    api::{DeliveryPool, POOL_LABEL, Subscription, Webhook},
    runtime::clock,
    verify::fingerprint::FingerprintKey,
    wire::index_feed::FeedKind,
};

/// Reconciles at once, for each kind.
const CONCURRENCY: u16 = 64;
/// Time between two sweeps of what is remembered of objects that are gone.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// Time between two looks at whose counters may be written.
const RELEASE_INTERVAL: Duration = Duration::from_millis(200);
/// Objects in one page of a list: bounds what a list takes in memory.
const PAGE_SIZE: u32 = 500;

/// What the elected controller works with.
pub(super) struct Leadership {
    /// The API server.
    pub(super) client: Client,
    /// Posthorn's own namespace.
    pub(super) namespace: String,
    /// Name of this replica.
    pub(super) identity: String,
    /// The key of fingerprints.
    pub(super) fingerprint_key: FingerprintKey,
    /// The delivery pods.
    pub(super) pods: PodClient,
    /// Counts.
    pub(super) metrics: Metrics,
}

/// Keeps every Webhook and Subscription until `shutdown`; reconciles under way
/// end first.
pub(super) async fn run(leadership: Leadership, shutdown: CancellationToken) {
    let Leadership { client, namespace, identity, fingerprint_key, pods, metrics } = leadership;
    let (webhooks, webhook_writer) = reflector::store::<Cached<Webhook>>();
    let (subscriptions, subscription_writer) = reflector::store::<Cached<Subscription>>();
    let (triggers, woken) = Triggers::new();
    let made = MadeSecrets::default();
    let context = Arc::new(Context {
        client: client.clone(),
        namespace: namespace.clone(),
        fingerprint_key,
        webhooks: webhooks.clone(),
        views: Views::default(),
        feeds: Feeds::default(),
        deliveries: Deliveries::default(),
        prober: Prober::new(pods.clone(), metrics.clone()),
        desks: Desks::default(),
        written: WrittenStatuses::default(),
        made: made.clone(),
        events: EventWriter::new(client.clone(), identity, metrics.clone()),
        metrics: metrics.clone(),
        triggers,
        failures: Failures::default(),
    });
    let scope = Arc::new(Scope {
        context: Arc::clone(&context),
        webhooks: webhooks.clone(),
        subscriptions: subscriptions.clone(),
    });
    let mut background = JoinSet::new();
    let (namespaces_listed, pools_listed) = (watch::channel(false), watch::channel(false));
    background.spawn(watch_namespaces(Arc::clone(&scope), namespaces_listed.0));
    background.spawn(watch_pools(Arc::clone(&scope), pods, pools_listed.0));
    let mut listed = [namespaces_listed.1, pools_listed.1];
    let all_listed = async {
        for listed in &mut listed {
            // The sender is gone only if the watch is, at shutdown.
            listed.wait_for(|listed| *listed).await.ok();
        }
    };
    if shutdown.run_until_cancelled(all_listed).await.is_none() {
        return;
    }
    let keeper = Keeper::new(client.clone(), &namespace, made);
    background.spawn(keep_made_secrets(keeper, webhooks.clone()));
    background.spawn(sweep(Arc::clone(&scope)));
    background.spawn(release_deliveries(Arc::clone(&context)));
    let webhook_events = webhook_events(&scope, webhook_writer);
    let subscription_events = subscription_events(&scope, subscription_writer);
    let of_webhooks =
        queue("Webhook", webhook_events, webhooks, stream_of(woken.webhooks), webhook::reconcile, &context, &shutdown);
    let webhooks_listed = context.webhooks.clone();
    let of_subscriptions = queue(
        "Subscription",
        subscription_events,
        subscriptions,
        stream_of(woken.subscriptions),
        subscription::reconcile,
        &context,
        &shutdown,
    );
    let of_subscriptions = async {
        // Before the Webhooks were listed, every Subscription would seem to lack
        // its own, and a restart would write as many statuses twice.
        if let Some(Ok(())) = shutdown.run_until_cancelled(webhooks_listed.wait_until_ready()).await {
            of_subscriptions.await;
        }
    };
    tokio::join!(of_webhooks, of_subscriptions);
}

/// The objects of both kinds, for whoever must wake many.
struct Scope {
    context: Arc<Context>,
    webhooks: Store<Cached<Webhook>>,
    subscriptions: Store<Cached<Subscription>>,
}

impl Scope {
    /// Wakes every object in the namespaces of which `concerned` says so.
    fn wake(&self, concerned: impl Fn(&str) -> bool) {
        let triggers = &self.context.triggers;
        let keys = |key: &ObjectKey| concerned(&key.namespace);
        self.webhooks.state().iter().map(|o| ObjectKey::of(o.as_ref())).filter(keys).for_each(|k| triggers.webhook(&k));
        let subscriptions = self.subscriptions.state();
        subscriptions.iter().map(|o| ObjectKey::of(o.as_ref())).filter(keys).for_each(|k| triggers.subscription(&k));
    }

    fn wake_pool(&self, pool: &str) {
        self.wake(|namespace| self.context.views.pool_of(namespace) == pool);
    }
}

/// One watch of a kind, for ever: errors are told and left out.
fn events_of<K>(client: &Client, config: watcher::Config) -> impl Stream<Item = Event<K>> + Send + 'static
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let watched = watcher(Api::<K>::all(client.clone()), config.page_size(PAGE_SIZE)).default_backoff();
    watched.filter_map(|event| ready(told(event)))
}

fn told<K: Resource<DynamicType = ()>>(event: watcher::Result<Event<K>>) -> Option<Event<K>> {
    event.inspect_err(|error| tracing::warn!(kind = %K::plural(&()), error = %with_causes(error), "a watch was cut; it begins again")).ok()
}

async fn watch_namespaces(scope: Arc<Scope>, listed: watch::Sender<bool>) {
    let config = watcher::Config::default().labels(POOL_LABEL);
    let mut events = events_of::<PartialObjectMeta<Namespace>>(&scope.context.client, config).boxed();
    while let Some(event) = events.next().await {
        for namespace in scope.context.views.on_namespace(&event) {
            // Its new pool may have told of it before, and was not believed.
            scope.context.deliveries.forget_pool(&scope.context.views.pool_of(&namespace));
            scope.wake(|of| *of == *namespace);
        }
        if matches!(event, Event::InitDone) {
            listed.send_replace(true);
        }
    }
}

async fn watch_pools(scope: Arc<Scope>, pods: PodClient, listed: watch::Sender<bool>) {
    let woken = Arc::clone(&scope);
    let on_change = Arc::new(move |change| match change {
        Change::Object(FeedKind::Webhook, key) => woken.context.triggers.webhook(&key),
        Change::Object(FeedKind::Subscription, key) => woken.context.triggers.subscription(&key),
        Change::Pool(pool) => woken.wake_pool(&pool),
    });
    let context = &scope.context;
    let told = Arc::clone(&scope);
    let on_deliveries = Arc::new(move |pool: &str, page| {
        let of_pool = |namespace: &str| told.context.views.pool_of(namespace) == pool;
        let status = |key: &ObjectKey| told.webhooks.get(&key.object_ref())?.object().ok()?.status;
        told.context.deliveries.apply(pool, page, of_pool, status, clock::monotonic());
    });
    let mut followers = Followers::new(
        context.feeds.clone(),
        context.deliveries.clone(),
        pods,
        context.metrics.clone(),
        Told { on_change, on_deliveries },
    );
    let mut events = events_of::<Cached<DeliveryPool>>(&context.client, watcher::Config::default()).boxed();
    while let Some(event) = events.next().await {
        for (pool, exists) in context.views.on_pool(&event) {
            if exists {
                followers.follow(&pool)
            } else {
                followers.forget(&pool)
            }
            scope.wake_pool(&pool);
        }
        if matches!(event, Event::InitDone) {
            listed.send_replace(true);
        }
    }
}

async fn keep_made_secrets(keeper: Keeper, webhooks: Store<Cached<Webhook>>) {
    // Before that, every Webhook would seem to be gone.
    if webhooks.wait_until_ready().await.is_ok() {
        keeper.run(|key| webhooks.get(&key.object_ref()).is_some()).await;
    }
}

/// Once a minute forgets what reconciles left behind after their object was
/// gone; desks hold keys.
async fn sweep(scope: Arc<Scope>) {
    let Scope { context, webhooks, subscriptions } = &*scope;
    if webhooks.wait_until_ready().await.is_err() || subscriptions.wait_until_ready().await.is_err() {
        return;
    }
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let is_webhook = |key: &ObjectKey| webhooks.get(&key.object_ref()).is_some();
        let is_subscription = |key: &ObjectKey| subscriptions.get(&key.object_ref()).is_some();
        context.desks.sweep(is_webhook);
        context.deliveries.sweep(is_webhook);
        context.written.sweep(is_subscription);
        context.failures.sweep("Webhook", is_webhook);
        context.failures.sweep("Subscription", is_subscription);
    }
}

/// Wakes the Webhooks whose counters or health may be written now.
async fn release_deliveries(context: Arc<Context>) {
    let mut ticks = tokio::time::interval(RELEASE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let released = context.deliveries.release(clock::monotonic());
        released.iter().for_each(|key| context.triggers.webhook(key));
    }
}

/// The changes of Webhooks, after cache and excerpts took them in.
fn webhook_events(
    scope: &Arc<Scope>,
    writer: reflector::store::Writer<Cached<Webhook>>,
) -> impl Stream<Item = Event<Cached<Webhook>>> + Send + 'static {
    let events = events_of::<Cached<Webhook>>(&scope.context.client, watcher::Config::default());
    let scope = Arc::clone(scope);
    reflected(events, writer).inspect(move |event| {
        let context = &scope.context;
        for (key, exists) in context.views.on_webhook(event) {
            if !exists {
                context.desks.forget(&key);
                context.deliveries.forget(&key);
                context.failures.clear("Webhook", &key);
            }
            context.views.subscriptions_of(&key).iter().for_each(|key| context.triggers.subscription(key));
        }
        if matches!(event, Event::InitDone) {
            scope.webhooks.state().iter().for_each(|o| context.triggers.webhook(&ObjectKey::of(o.as_ref())));
        }
    })
}

/// The changes of Subscriptions, after cache and excerpts took them in.
fn subscription_events(
    scope: &Arc<Scope>,
    writer: reflector::store::Writer<Cached<Subscription>>,
) -> impl Stream<Item = Event<Cached<Subscription>>> + Send + 'static {
    let events = events_of::<Cached<Subscription>>(&scope.context.client, watcher::Config::default());
    let scope = Arc::clone(scope);
    reflected(events, writer).inspect(move |event| {
        let context = &scope.context;
        for key in context.views.on_subscription(event) {
            context.written.forget(&key);
            context.failures.clear("Subscription", &key);
        }
        if matches!(event, Event::InitDone) {
            scope.subscriptions.state().iter().for_each(|o| context.triggers.subscription(&ObjectKey::of(o.as_ref())));
        }
    })
}

fn reflected<K>(
    events: impl Stream<Item = Event<K>> + Send + 'static,
    mut writer: reflector::store::Writer<K>,
) -> impl Stream<Item = Event<K>> + Send + 'static
where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    events.inspect(move |event| writer.apply_watcher_event(event))
}

/// The queue of one kind: single changes wake their object, a list wakes all
/// once the cache has it.
async fn queue<K, R>(
    kind: &'static str,
    events: impl Stream<Item = Event<Cached<K>>> + Send + 'static,
    store: Store<Cached<K>>,
    woken: impl Stream<Item = reflector::ObjectRef<Cached<K>>> + Send + 'static,
    reconcile: impl Fn(Arc<Cached<K>>, Arc<Context>) -> R + Clone + Send + Sync + 'static,
    context: &Arc<Context>,
    shutdown: &CancellationToken,
) where
    K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Send + Sync + 'static,
    R: Future<Output = Result<Action, ReconcileError>> + Send + 'static,
{
    let applied = events.filter_map(|event| {
        ready(match event {
            Event::Apply(object) => Some(Ok(object)),
            _ => None,
        })
    });
    Controller::for_stream(applied, store)
        .with_config(controller::Config::default().concurrency(CONCURRENCY))
        .reconcile_on(woken)
        .graceful_shutdown_on(shutdown.clone().cancelled_owned())
        .run(
            move |object, context| timed(kind, reconcile(Arc::clone(&object), Arc::clone(&context)), object, context),
            move |object, error, context| error_policy(kind, object.as_ref(), error, &context, clock::chance()),
            Arc::clone(context),
        )
        // Outcomes were counted and told where they arose.
        .for_each(|_outcome| ready(()))
        .await;
}

/// A reconcile with its time-out, counted and told.
async fn timed<K: Resource>(
    kind: &'static str,
    work: impl Future<Output = Result<Action, ReconcileError>>,
    object: Arc<K>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let began = clock::monotonic();
    let result = timeout(RECONCILE_TIMEOUT, work).map(|done| done.unwrap_or(Err(ReconcileError::TimedOut))).await;
    let took: Duration = clock::monotonic().saturating_duration_since(began);
    let key = ObjectKey::of(object.as_ref());
    match &result {
        Ok(_) => {
            context.failures.clear(kind, &key);
            context.metrics.reconciled(kind, "ok", took);
        }
        Err(error) => {
            context.metrics.reconciled(kind, error.outcome(), took);
            tracing::warn!(kind, namespace = %key.namespace, name = %key.name, error = %with_causes(error), "a reconcile failed");
        }
    }
    result
}

#[cfg(test)]
#[path = "work_tests.rs"]
mod tests;
