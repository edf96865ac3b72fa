//! The index of a delivery pod: whatever the order of what the watches bring,
//! it holds what the cluster has.

use std::collections::{BTreeMap, BTreeSet};

use kube::api::ObjectMeta;
use posthorn::{
    api::{Subscription, Webhook},
    routing::index::{Counts, Index, Match, Responsibility, WatchedKind},
    wire::index_feed::{FeedEntry, FeedKind, FeedQuery},
};
use proptest::prelude::*;
use serde_json::{Value, json};

pub(crate) const POOL: &str = "default";
pub(crate) const ALL: [WatchedKind; 3] = [WatchedKind::Namespace, WatchedKind::Webhook, WatchedKind::Subscription];

pub(crate) fn webhook(namespace: &str, name: &str, generation: i64) -> Webhook {
    webhook_with(namespace, name, generation, json!({ "url": "https://hooks.example.com/in" }))
}

pub(crate) fn webhook_with(namespace: &str, name: &str, generation: i64, spec: Value) -> Webhook {
    serde_json::from_value(json!({
        "apiVersion": "posthorn.dev/v1alpha1", "kind": "Webhook",
        "metadata": metadata("w", namespace, name, generation),
        "spec": spec,
    }))
    .unwrap()
}

pub(crate) fn subscription(namespace: &str, name: &str, generation: i64, spec: Value) -> Subscription {
    serde_json::from_value(json!({
        "apiVersion": "posthorn.dev/v1alpha1", "kind": "Subscription",
        "metadata": metadata("s", namespace, name, generation),
        "spec": spec,
    }))
    .unwrap()
}

pub(crate) fn to_webhook(name: &str, events: &[&str]) -> Value {
    json!({ "webhookRef": { "name": name }, "events": events })
}

fn metadata(kind: &str, namespace: &str, name: &str, generation: i64) -> Value {
    json!({ "namespace": namespace, "name": name, "uid": format!("{kind}-{namespace}-{name}"), "generation": generation })
}

fn index_with_namespace() -> Index {
    let mut index = Index::new(POOL, "test");
    index.apply_namespace("shop", "ns-1", None);
    index
}

#[test]
fn a_namespace_is_ours_or_of_another_pool_or_unknown_once_they_were_listed() {
    let mut index = Index::new(POOL, "test");
    assert_eq!(index.responsibility("shop"), Responsibility::NotListed);
    index.begin_list(WatchedKind::Namespace);
    index.apply_namespace("shop", "ns-1", None);
    index.apply_namespace("bank", "ns-2", Some("secure"));
    index.apply_webhook(&webhook("later", "w", 1));
    assert_eq!(index.responsibility("shop"), Responsibility::Ours { name: "shop".into(), uid: "ns-1".into() });
    assert_eq!(index.responsibility("bank"), Responsibility::Other("secure".into()));
    assert_eq!(index.responsibility("later"), Responsibility::NotListed);
    index.end_list(WatchedKind::Namespace);
    assert_eq!(index.responsibility("later"), Responsibility::Unknown);
    assert_eq!(index.responsibility("none"), Responsibility::Unknown);
    index.apply_namespace("shop", "ns-1", Some("secure"));
    assert_eq!(index.responsibility("shop"), Responsibility::Other("secure".into()));
}

/// Everything that a follower who begins from nothing reads, in a stable order.
pub(crate) fn content(index: &Index) -> Vec<FeedEntry> {
    let mut query = FeedQuery { instance: String::new(), after: 0 };
    let mut objects = BTreeMap::new();
    loop {
        let page = index.page(&query);
        for entry in page.entries {
            let key = (entry.kind as u8, entry.namespace.clone(), entry.name.clone());
            if entry.generation.is_some() {
                objects.insert(key, entry)
            } else {
                objects.remove(&key)
            };
        }
        query = FeedQuery { instance: page.instance, after: page.revision };
        if !page.more {
            return objects.into_values().collect();
        }
    }
}

fn names(matches: &[Match]) -> Vec<(&str, Vec<&str>)> {
    matches.iter().map(|found| (&*found.webhook.name, found.subscriptions.iter().map(|s| &*s.name).collect())).collect()
}

#[test]
fn an_event_is_for_a_webhook_once_and_the_oldest_subscription_leads() {
    let mut index = index_with_namespace();
    index.apply_webhook(&webhook("shop", "b", 1));
    index.apply_webhook(&webhook("shop", "a", 1));
    for (name, spec, created) in [
        ("young", to_webhook("a", &["order.*"]), "2026-02-01T00:00:00Z"),
        ("old", to_webhook("a", &["*"]), "2026-01-01T00:00:00Z"),
        ("alike", to_webhook("a", &["order.paid"]), "2026-01-01T00:00:00Z"),
        ("other", to_webhook("b", &["order.paid"]), "2026-01-01T00:00:00Z"),
        ("none", to_webhook("b", &[]), "2026-01-01T00:00:00Z"),
        ("dangling", to_webhook("gone", &["*"]), "2026-01-01T00:00:00Z"),
    ] {
        let mut object = subscription("shop", name, 1, spec);
        object.metadata.creation_timestamp = Some(serde_json::from_value(json!(created)).unwrap());
        index.apply_subscription(&object);
    }
    let found = index.matches("shop", "order.paid", "/shop");
    assert_eq!(names(&found), [("a", vec!["alike", "old", "young"]), ("b", vec!["other"])]);
    assert!(index.matches("elsewhere", "order.paid", "/shop").is_empty());
}

#[test]
fn source_and_suspend_narrow_what_matches() {
    let mut index = index_with_namespace();
    index.apply_webhook(&webhook("shop", "a", 1));
    let mut check = |extra: Value, source: &str, expected: bool| {
        let mut spec = to_webhook("a", &["*"]);
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        index.apply_subscription(&subscription("shop", "s", 1, spec));
        assert_eq!(!index.matches("shop", "order.paid", source).is_empty(), expected, "{extra} {source}");
    };
    check(json!({}), "/shop", true);
    check(json!({ "source": "/shop" }), "/shop", true);
    check(json!({ "source": "/shop" }), "/shop/2", false);
    check(json!({ "suspend": true }), "/shop", false);
    check(json!({ "suspend": false }), "/shop", true);
}

#[test]
fn a_suspended_webhook_is_owed_events_all_the_same() {
    let mut index = index_with_namespace();
    index.apply_webhook(&webhook_with("shop", "a", 1, json!({ "url": "https://a.example", "suspend": true })));
    index.apply_subscription(&subscription("shop", "s", 1, to_webhook("a", &["*"])));
    let found = index.matches("shop", "order.paid", "/");
    assert!(found[0].webhook.suspended);
}

#[test]
fn objects_of_a_namespace_come_and_go_with_its_pool() {
    let mut index = Index::new("fast", "test");
    index.apply_webhook(&webhook("shop", "a", 3));
    assert!(content(&index).is_empty(), "the namespace is not known yet");
    index.apply_namespace("shop", "ns-1", None);
    assert!(content(&index).is_empty(), "no label means the pool default");
    index.apply_namespace("shop", "ns-1", Some("fast"));
    assert_eq!(content(&index)[0].generation, Some(3));
    assert_eq!(index.namespace_uid("shop").map(|uid| &**uid), Some("ns-1"));
    index.apply_namespace("shop", "ns-1", Some("slow"));
    assert!(content(&index).is_empty());
    index.apply_namespace("shop", "ns-1", Some("fast"));
    index.delete_namespace("shop");
    assert!(content(&index).is_empty());
    assert_eq!(index.counts(), Counts::default());
}

#[test]
fn a_generation_that_cannot_be_used_is_told_and_none_of_it_kept() {
    let mut index = index_with_namespace();
    index.apply_webhook(&webhook("shop", "a", 1));
    let mut check = |spec: Value, expected: &str| {
        index.apply_webhook(&webhook_with("shop", "a", 2, spec));
        let entry = content(&index).remove(0);
        assert_eq!(entry.generation, Some(2));
        let error = entry.error.unwrap();
        assert!(error.contains(expected), "{error}");
        assert!(index.webhook("shop", "a").is_none(), "the generation before is not used either");
    };
    check(json!({}), "exactly one of url, urlFrom and serviceRef");
    check(json!({ "url": "https://a.example/secret", "serviceRef": { "name": "s", "port": 80 } }), "exactly one");
    for port in [0, -1, 65_536] {
        check(json!({ "serviceRef": { "name": "s", "port": port } }), "from 1 to 65535");
    }
    index.apply_subscription(&subscription("shop", "s", 1, to_webhook("a", &["a..b"])));
    assert!(content(&index)[1].error.as_ref().unwrap().contains("a..b"));
    assert_eq!(index.counts(), Counts { namespaces: 1, refused: 2, ..Counts::default() });
}

#[test]
fn an_object_that_does_not_parse_is_told_without_what_the_parser_said() {
    let mut index = index_with_namespace();
    let metadata: ObjectMeta = serde_json::from_value(metadata("w", "shop", "a", 7)).unwrap();
    index.apply_unreadable(FeedKind::Webhook, &metadata);
    let entry = content(&index).remove(0);
    assert_eq!((entry.generation, entry.uid.as_str()), (Some(7), "w-shop-a"));
    assert!(entry.error.unwrap().contains("older than its schema"));
}

#[test]
fn status_writes_are_no_news_to_followers_and_yet_seen() {
    let mut index = index_with_namespace();
    let mut object = webhook("shop", "a", 1);
    index.apply_webhook(&object);
    let revision = index.revision();
    object.status = Some(serde_json::from_value(json!({ "verification": { "state": "Verified" } })).unwrap());
    index.apply_webhook(&object);
    assert_eq!(index.revision(), revision);
    let state = index.webhook("shop", "a").unwrap().verification.state;
    assert_eq!(state, posthorn::api::webhook::VerificationState::Verified);
}

#[test]
fn the_index_is_synced_when_every_kind_was_listed_and_that_is_news() {
    let mut index = Index::new(POOL, "test");
    for kind in ALL {
        assert!(!index.synced());
        index.begin_list(kind);
        index.end_list(kind);
    }
    assert!(index.synced());
    assert_eq!(index.revision(), 1, "a follower that polls is woken");
    index.begin_list(WatchedKind::Webhook);
    assert!(index.synced(), "a later listing takes nothing back");
}

#[test]
fn entries_are_slim() {
    // With texts of some 200 bytes and the feed's own entry an idle Webhook and
    // its Subscription stay far below the 4 KiB that a pod may spend on them.
    assert!(size_of::<posthorn::routing::index::WebhookEntry>() <= 224);
    assert!(size_of::<posthorn::routing::index::SubscriptionEntry>() <= 160);
}

/// What may happen in a cluster, in few names so that things collide.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Namespace(u8, bool),
    DeleteNamespace(u8),
    Object(FeedKind, u8, u8),
    Delete(FeedKind, u8, u8),
    /// The watch broke and lists anew; what went meanwhile is not told.
    Relist(usize),
    /// A deletion that the watch misses until the next listing.
    MissedDelete(FeedKind, u8, u8),
}

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop_oneof![Just(FeedKind::Webhook), Just(FeedKind::Subscription)];
    let object = || (kind.clone(), 0..3_u8, 0..3_u8);
    let step = prop_oneof![
        2 => (0..3_u8, any::<bool>()).prop_map(|(n, ours)| Step::Namespace(n, ours)),
        1 => (0..3_u8).prop_map(Step::DeleteNamespace),
        6 => object().prop_map(|(k, n, o)| Step::Object(k, n, o)),
        3 => object().prop_map(|(k, n, o)| Step::Delete(k, n, o)),
        1 => object().prop_map(|(k, n, o)| Step::MissedDelete(k, n, o)),
        1 => (0..3_usize).prop_map(Step::Relist),
    ];
    prop::collection::vec(step, 0..60)
}

/// The cluster as it is, beside the index that watches it.
pub(crate) struct Cluster {
    pub(crate) index: Index,
    namespaces: BTreeMap<u8, bool>,
    /// Namespaces that were deleted under each name: a new one has another UID.
    predecessors: BTreeMap<u8, u32>,
    objects: BTreeMap<(u8, u8, u8), i64>,
    generation: i64,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        Self {
            index: Index::new(POOL, "test"),
            namespaces: BTreeMap::new(),
            predecessors: BTreeMap::new(),
            objects: BTreeMap::new(),
            generation: 0,
        }
    }

    pub(crate) fn step(&mut self, step: &Step) {
        match *step {
            Step::Namespace(n, ours) => {
                self.namespaces.insert(n, ours);
                self.apply_namespace(n, ours);
            }
            Step::DeleteNamespace(n) => {
                // Its objects went before it, but on another watch.
                self.objects.retain(|(_, of, _), _| *of != n);
                if self.namespaces.remove(&n).is_some() {
                    *self.predecessors.entry(n).or_default() += 1;
                }
                self.index.delete_namespace(&format!("n{n}"));
            }
            Step::Object(kind, n, o) => {
                self.generation += 1;
                self.objects.insert((kind as u8, n, o), self.generation);
                self.apply_object(kind as u8, n, o, self.generation);
            }
            Step::Delete(kind, n, o) => {
                self.objects.remove(&(kind as u8, n, o));
                self.index.delete(kind, &format!("n{n}"), &format!("o{o}"));
            }
            Step::MissedDelete(kind, n, o) => {
                self.objects.remove(&(kind as u8, n, o));
            }
            Step::Relist(kind) => self.relist(ALL[kind]),
        }
    }

    pub(crate) fn relist(&mut self, kind: WatchedKind) {
        self.index.begin_list(kind);
        match kind {
            WatchedKind::Namespace => {
                self.namespaces.clone().into_iter().for_each(|(n, ours)| self.apply_namespace(n, ours));
            }
            WatchedKind::Webhook => self.relist_objects(FeedKind::Webhook),
            WatchedKind::Subscription => self.relist_objects(FeedKind::Subscription),
        }
        self.index.end_list(kind);
    }

    fn relist_objects(&mut self, kind: FeedKind) {
        for ((of, n, o), generation) in self.objects.clone() {
            if of == kind as u8 {
                self.apply_object(of, n, o, generation);
            }
        }
    }

    fn apply_namespace(&mut self, n: u8, ours: bool) {
        let pool = if ours { None } else { Some("other") };
        let uid = self.namespace_uid(n);
        self.index.apply_namespace(&format!("n{n}"), &uid, pool);
    }

    pub(crate) fn namespace_uid(&self, n: u8) -> String {
        format!("uid{n}-{}", self.predecessors.get(&n).unwrap_or(&0))
    }

    fn apply_object(&mut self, kind: u8, n: u8, o: u8, generation: i64) {
        let (namespace, name) = (format!("n{n}"), format!("o{o}"));
        if kind == FeedKind::Webhook as u8 {
            self.index.apply_webhook(&webhook(&namespace, &name, generation));
        } else {
            let mut spec = to_webhook(&name, &["*"]);
            spec["start"] = json!("Now");
            self.index.apply_subscription(&subscription(&namespace, &name, generation, spec));
        }
    }

    /// What the index must hold: kind, namespace, name, generation.
    pub(crate) fn expected(&self) -> BTreeSet<(u8, String, String, i64)> {
        let ours = |n: &u8| self.namespaces.get(n) == Some(&true);
        self.objects
            .iter()
            .filter(|((_, n, _), _)| ours(n))
            .map(|((kind, n, o), generation)| (*kind, format!("n{n}"), format!("o{o}"), *generation))
            .collect()
    }
}

pub(crate) fn as_set<'a>(entries: impl IntoIterator<Item = &'a FeedEntry>) -> BTreeSet<(u8, String, String, i64)> {
    entries
        .into_iter()
        .filter_map(|e| Some((e.kind as u8, e.namespace.clone(), e.name.clone(), e.generation?)))
        .collect()
}

proptest! {
    #[test]
    fn after_a_listing_the_index_holds_what_the_cluster_has(steps in steps()) {
        let mut cluster = Cluster::new();
        steps.iter().for_each(|step| cluster.step(step));
        ALL.into_iter().for_each(|kind| cluster.relist(kind));
        let expected = cluster.expected();
        prop_assert_eq!(as_set(&content(&cluster.index)), expected.clone());
        let counts = cluster.index.counts();
        prop_assert_eq!(counts.webhooks + counts.subscriptions, expected.len() as u64);
    }

    #[test]
    fn the_order_of_the_three_watches_does_not_matter(steps in steps(), first in 0..3_usize, second in 0..2_usize) {
        let mut cluster = Cluster::new();
        steps.iter().for_each(|step| cluster.step(step));
        let mut fresh = Cluster { index: Index::new(POOL, "test"), ..cluster };
        let mut kinds = ALL.to_vec();
        let mut order = vec![kinds.remove(first)];
        order.push(kinds.remove(second));
        order.append(&mut kinds);
        order.into_iter().for_each(|kind| fresh.relist(kind));
        prop_assert_eq!(as_set(&content(&fresh.index)), fresh.expected());
    }
}
