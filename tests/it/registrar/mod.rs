//! The registrar between index and store: what is registered when, what the
//! dispatcher and the controller are told, and that nothing is missed between.

mod world;

use posthorn::{
    delivery::registrar::DRAIN_LOOK_INTERVAL,
    routing::index::Responsibility,
    store::{KnownNamespace, StoreError},
    wire::index_feed::{FeedKind, FeedQuery},
};
use proptest::prelude::*;
use serde_json::json;
use tokio::time::advance;

use self::world::{World, hook, now_sub, sub, verified};
use crate::index::{ALL, Cluster, as_set, steps, webhook_with};

#[tokio::test(start_paused = true)]
async fn a_generation_is_told_after_it_is_durable_and_routed() {
    let world = World::with_namespace().await;
    world.close_gate();
    world.apply_webhook(&hook("a", 1));
    world.apply_sub(&now_sub("s", 1, "a"));
    world.settle().await;
    assert!(world.told().is_empty());
    assert!(world.publish("ns-1", "order.paid").is_empty());
    world.open_gate();
    world.settle().await;
    assert_eq!(world.told(), ["a 1", "s 1"]);
    assert_eq!(world.publish("ns-1", "order.paid"), ["w-shop-a"]);
    assert_eq!(world.log(), ["hook w-shop-a", "sub s-shop-s 1970-01-01T00:00:50Z"]);
    let view = world.view(1);
    assert!(!view.has_backlog, "nothing can be owed to a new one");
    assert_eq!((&*view.namespace, view.webhook.unwrap().generation), ("shop", 1));
}

#[tokio::test(start_paused = true)]
async fn what_changes_while_it_is_recorded_is_told_as_it_was_recorded() {
    let world = World::with_namespace().await;
    world.close_gate();
    world.apply_webhook(&hook("a", 1));
    world.settle().await;
    world.apply_webhook(&hook("a", 2));
    world.store.disk().log.clear();
    assert!(world.told().is_empty());
    world.open_gate();
    for _ in 0..100 {
        let told = world.told();
        let stored = world.store.disk().hooks.get(&1).map(|hook| hook.definition.document.to_string());
        for told in told {
            let generation = told.strip_prefix("a ").unwrap();
            let stored = stored.as_ref().unwrap();
            assert!(stored.contains(&format!("\"generation\":{generation}")) || stored.contains("\"generation\":2"));
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(world.told(), ["a 2"]);
}

#[tokio::test(start_paused = true)]
async fn each_start_has_its_time() {
    let world = World::with_namespace().await;
    world.apply_webhook(&verified(hook("a", 1), 200));
    world.apply_sub(&sub("verification", 1, "a", &json!({})));
    world.apply_sub(&sub("now", 1, "a", &json!({ "start": "Now" })));
    world.apply_sub(&sub("earliest", 1, "a", &json!({ "start": "Earliest" })));
    world.apply_sub(&sub("time", 1, "a", &json!({ "start": "1970-01-01T00:00:07Z" })));
    world.settle().await;
    assert_eq!(
        world.log()[1..],
        [
            "sub s-shop-verification 1970-01-01T00:03:20Z",
            "sub s-shop-now 1970-01-01T00:00:50Z",
            "sub s-shop-earliest earliest",
            "sub s-shop-time 1970-01-01T00:00:07Z",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn nothing_is_owed_before_the_endpoint_is_verified_and_everything_after_whatever_comes() {
    let world = World::with_namespace().await;
    world.apply_webhook(&hook("a", 1));
    world.apply_sub(&sub("s", 1, "a", &json!({})));
    world.settle().await;
    assert_eq!(world.told(), ["a 1"], "a Subscription without a record is not told");
    let mut forged = verified(hook("a", 1), 100);
    forged.status.as_mut().unwrap().verification.as_mut().unwrap().verified_time =
        Some(serde_json::from_value(json!("1970-01-01T00:00:01Z")).unwrap());
    world.apply_webhook(&forged);
    world.settle().await;
    assert!(world.publish("ns-1", "a").is_empty(), "a status that somebody else wrote is worth nothing");
    world.apply_webhook(&verified(hook("a", 1), 100));
    world.settle().await;
    assert_eq!(world.told(), ["a 1", "s 1"]);
    assert!(world.log().contains(&"sub s-shop-s 1970-01-01T00:01:40Z".to_owned()));
    let mut failed = hook("a", 2);
    failed.status =
        Some(serde_json::from_value(json!({ "verification": { "state": "Failed", "fingerprint": "x" } })).unwrap());
    world.apply_webhook(&failed);
    world.apply_sub(&sub("s", 2, "a", &json!({})));
    world.settle().await;
    assert_eq!(world.publish("ns-1", "a"), ["w-shop-a"]);
    assert_eq!(world.told(), ["a 2", "s 2"]);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_only_a_secret_tells_is_believed_by_its_status() {
    let world = World::with_namespace().await;
    let from = webhook_with("shop", "a", 1, json!({ "urlFrom": { "name": "hook", "key": "url" } }));
    world.apply_webhook(&verified(from, 100));
    world.apply_sub(&sub("s", 1, "a", &json!({})));
    world.settle().await;
    assert_eq!(world.publish("ns-1", "a"), ["w-shop-a"]);
}

#[tokio::test(start_paused = true)]
async fn without_a_key_nothing_is_believed_until_it_comes() {
    let world = World::with_namespace().await;
    world.key.send(None).unwrap();
    world.apply_webhook(&verified(hook("a", 1), 100));
    world.apply_sub(&sub("s", 1, "a", &json!({})));
    world.settle().await;
    assert!(world.publish("ns-1", "a").is_empty());
    world.key.send(Some(world::key())).unwrap();
    world.settle().await;
    assert_eq!(world.publish("ns-1", "a"), ["w-shop-a"]);
    assert_eq!(world.told(), ["a 1", "s 1"]);
}

#[tokio::test(start_paused = true)]
async fn the_three_watches_may_come_in_any_order() {
    let world = World::new();
    world.apply_sub(&now_sub("s", 1, "a"));
    world.settle().await;
    world.index.update(|index| index.apply_namespace("shop", "ns-1", None));
    world.settle().await;
    assert!(world.log().is_empty());
    world.apply_webhook(&hook("a", 1));
    world.settle().await;
    assert_eq!(world.publish("ns-1", "a"), ["w-shop-a"]);
}

/// A pod with a Webhook, a Subscription and an owed event.
async fn with_backlog() -> World {
    let world = World::with_namespace().await;
    world.apply_webhook(&verified(hook("a", 1), 100));
    world.apply_sub(&now_sub("s", 1, "a"));
    world.settle().await;
    assert_eq!(world.publish("ns-1", "a"), ["w-shop-a"]);
    world.log();
    world
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_starts_while_the_api_server_is_away_routes_delivers_and_tells_what_it_has() {
    let old = with_backlog().await;
    let world = old.restart();
    world.index.until_usable().await;
    world.settle().await;
    let view = world.view(1);
    assert!(view.has_backlog);
    assert_eq!(view.notes.circuit.as_deref(), Some("notes of 1"));
    let entry = view.webhook.unwrap();
    let before = old.index.read(|index| index.webhook("shop", "a").cloned()).unwrap();
    assert_eq!(entry, before, "nothing of a Webhook is lost over a restart");
    assert_eq!(world.told(), ["a 1", "s 1"]);
    assert!(!world.index.read(|index| index.page(&FeedQuery { instance: "test".into(), after: 0 })).synced);
    assert!(matches!(world.index.read(|index| index.responsibility("shop")), Responsibility::Ours { .. }));
    assert_eq!(world.publish("ns-1", "a"), ["w-shop-a"]);
    assert!(world.log().is_empty(), "nothing is written for what is known");
    let listed = old.index.read(|index| index.counts());
    world.list(|index| {
        index.apply_webhook(&verified(hook("a", 1), 100));
        index.apply_subscription(&now_sub("s", 1, "a"));
    });
    world.settle().await;
    assert!(world.log().is_empty());
    assert_eq!(world.index.read(|index| index.counts()), listed);
    assert!(world.index.read(|index| index.page(&FeedQuery { instance: "test".into(), after: 0 })).synced);
}

#[tokio::test(start_paused = true)]
async fn only_a_complete_listing_takes_something_away() {
    let world = with_backlog().await.restart();
    world.settle().await;
    for kind in ALL {
        world.index.update(|index| index.begin_list(kind));
    }
    world.settle().await;
    assert_eq!(world.publish("ns-1", "a"), ["w-shop-a"], "a listing that began and broke says nothing");
    assert!(world.log().is_empty());
    world.list(|_| {});
    world.settle().await;
    let mut log = world.log();
    log.sort();
    assert_eq!(log, ["hook gone a", "sub gone s-shop-s"]);
    assert!(world.told().is_empty());
    assert!(world.hooks.told().views.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_at_the_start_is_known_when_it_is_listed() {
    let old = with_backlog().await;
    old.store.disk().hooks.get_mut(&1).unwrap().definition.document = r#"{"v":99}"#.into();
    old.store.disk().subs.get_mut(&1).unwrap().definition.document = "damaged".into();
    let world = old.restart();
    world.settle().await;
    assert!(world.hooks.told().views.is_empty(), "nothing is sent to what is not known");
    assert!(world.told().is_empty());
    world.list(|index| {
        index.apply_webhook(&verified(hook("a", 1), 100));
        index.apply_subscription(&now_sub("s", 1, "a"));
    });
    world.settle().await;
    assert_eq!(world.log(), ["hook w-shop-a", "sub s-shop-s again"]);
    assert!(world.view(1).has_backlog);
    assert_eq!(world.told(), ["a 1", "s 1"]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_and_is_not_listed_is_gone() {
    let old = with_backlog().await;
    old.store.disk().hooks.get_mut(&1).unwrap().definition.document = "damaged".into();
    old.store.disk().subs.get_mut(&1).unwrap().definition.document = "damaged".into();
    let world = old.restart();
    world.list(|_| {});
    world.settle().await;
    assert_eq!(world.log(), ["hook gone a", "sub gone s-shop-s"]);
}

#[tokio::test(start_paused = true)]
async fn a_webhook_that_is_made_anew_takes_the_backlog_and_the_subscriptions_up() {
    let world = with_backlog().await;
    world.index.update(|index| index.delete(FeedKind::Webhook, "shop", "a"));
    world.settle().await;
    assert_eq!(world.log(), ["hook gone a"]);
    assert!(world.hooks.told().views.is_empty());
    assert!(world.publish("ns-1", "a").is_empty());
    assert_eq!(world.told(), ["s 1"]);
    let mut anew = hook("a", 1);
    anew.metadata.uid = Some("w-another".into());
    world.apply_webhook(&anew);
    world.settle().await;
    assert_eq!(world.log(), ["hook w-another"]);
    let view = world.view(1);
    assert!(view.has_backlog);
    assert!(view.webhook.unwrap().verification.verified_time.is_none(), "the sender holds it until it is verified");
    assert_eq!(world.publish("ns-1", "a"), ["w-another"]);
}

#[tokio::test(start_paused = true)]
async fn a_subscription_that_is_made_anew_is_another_one() {
    let world = with_backlog().await;
    let mut anew = now_sub("s", 1, "a");
    anew.metadata.uid = Some("s-another".into());
    world.apply_sub(&anew);
    world.settle().await;
    assert_eq!(world.log(), ["sub gone s-shop-s", "sub s-another 1970-01-01T00:00:50Z"]);
    world.index.update(|index| index.delete(FeedKind::Subscription, "shop", "s"));
    world.settle().await;
    assert_eq!(world.log(), ["sub gone s-another"]);
    assert!(world.publish("ns-1", "a").is_empty());
    assert_eq!(world.told(), ["a 1"]);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_not_responsible_any_more_drains_what_it_owes_and_takes_nothing_new() {
    let world = with_backlog().await;
    world.index.update(|index| index.apply_namespace("shop", "ns-1", Some("other")));
    world.settle().await;
    assert_eq!(world.log(), ["hook w-shop-a", "sub s-shop-s again"]);
    assert!(world.publish("ns-1", "a").is_empty());
    assert!(world.told().is_empty());
    assert!(world.view(1).webhook.is_some(), "what is owed is still sent from here");
    advance(3 * DRAIN_LOOK_INTERVAL).await;
    world.settle().await;
    assert!(world.hooks.told().views.contains_key(&1), "something is owed still");

    let world = world.restart();
    world.settle().await;
    assert!(world.view(1).webhook.is_some() && world.view(1).has_backlog);
    assert!(world.publish("ns-1", "a").is_empty());
    assert_eq!(world.index.read(|index| index.responsibility("shop")), Responsibility::Other("other".into()));

    world.store.disk().owed.clear();
    for _ in 0..3 {
        advance(DRAIN_LOOK_INTERVAL).await;
        world.settle().await;
    }
    assert!(world.hooks.told().views.is_empty());
    world.list(|index| {
        index.apply_webhook(&verified(hook("a", 1), 100));
        index.apply_subscription(&now_sub("s", 1, "a"));
    });
    world.settle().await;
    assert_eq!(world.log(), ["hook w-shop-a", "sub s-shop-s again"], "it came back: no second backfill");
    assert_eq!(world.publish("ns-1", "a"), ["w-shop-a"]);
    assert_eq!(world.view(1).notes.circuit.as_deref(), Some("notes of 1"));
    assert_eq!(world.told(), ["a 1", "s 1"]);
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_comes_back_is_ours_when_its_subscriptions_are_served_again() {
    let is_ours =
        |world: &World| matches!(world.index.read(|index| index.responsibility("shop")), Responsibility::Ours { .. });
    let world = with_backlog().await;
    world.index.update(|index| index.apply_namespace("shop", "ns-1", Some("other")));
    world.settle().await;
    world.close_gate();
    world.index.update(|index| index.apply_namespace("shop", "ns-1", None));
    world.settle().await;
    assert!(!is_ours(&world), "an event that came now would be missed");
    world.open_gate();
    world.settle().await;
    assert!(is_ours(&world));

    // It goes, the pod ends, and the watch tells that it is back before the
    // registrar has read the store.
    world.index.update(|index| index.apply_namespace("shop", "ns-1", Some("other")));
    world.settle().await;
    let world = world.restart();
    world.index.update(|index| index.apply_namespace("shop", "ns-1", None));
    world.close_gate();
    world.settle().await;
    assert!(world.told().is_empty() && !is_ours(&world));
    world.open_gate();
    world.settle().await;
    assert!(is_ours(&world));
    assert_eq!(world.told(), ["a 1", "s 1"]);
    assert_eq!(world.publish("ns-1", "a"), ["w-shop-a"]);
}

#[tokio::test(start_paused = true)]
async fn objects_of_another_pool_are_not_registered() {
    let world = World::with_namespace().await;
    world.index.update(|index| index.apply_namespace("shop", "ns-1", Some("other")));
    world.apply_webhook(&verified(hook("a", 1), 100));
    world.apply_sub(&now_sub("s", 1, "a"));
    world.settle().await;
    assert!(world.log().is_empty());
    assert!(world.told().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_is_made_anew_sees_nothing_of_its_predecessor() {
    let world = with_backlog().await;
    world.index.update(|index| {
        index.delete(FeedKind::Subscription, "shop", "s");
        index.delete_namespace("shop");
        index.apply_namespace("shop", "ns-2", None);
    });
    world.settle().await;
    assert!(world.log().contains(&"namespace gone ns-1".to_owned()));
    assert!(world.store.disk().owed.is_empty());
    assert!(world.publish("ns-1", "a").is_empty() && world.publish("ns-2", "a").is_empty());

    let world = world.restart();
    for kind in ALL {
        world.index.update(|index| {
            index.begin_list(kind);
            index.apply_namespace("shop", "ns-3", None);
            index.end_list(kind);
        });
    }
    world.settle().await;
    assert!(world.log().contains(&"namespace gone ns-2".to_owned()), "found though it went while the pod was away");
    assert!(world.hooks.told().views.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_left_nothing_but_events_is_found_gone_after_a_complete_listing() {
    let old = World::with_namespace().await;
    let left = KnownNamespace { name: "left".into(), uid: "ns-left".into() };
    let stays = KnownNamespace { name: "shop".into(), uid: "ns-1".into() };
    old.store.disk().namespaces_with_events.extend([left, stays]);
    let world = old.restart();
    world.settle().await;
    assert_eq!(world.log(), <[&str; 0]>::default(), "the API server was not heard of");
    world.list(|_| {});
    world.settle().await;
    assert_eq!(world.log(), ["namespace gone ns-left"]);
}

#[tokio::test(start_paused = true)]
async fn a_generation_that_cannot_be_used_holds_what_is_owed_and_is_told() {
    let world = with_backlog().await;
    world.apply_webhook(&webhook_with("shop", "a", 2, json!({})));
    world.settle().await;
    assert!(world.view(1).webhook.is_none(), "nothing is sent");
    assert_eq!(world.publish("ns-1", "a"), ["w-shop-a"], "events are owed all the same");
    assert!(world.content()[0].error.is_some());
    let again = world.restart();
    again.settle().await;
    assert!(again.hooks.told().views.is_empty(), "also after a restart nothing is sent");
    again.list(|index| {
        index.apply_webhook(&verified(hook("a", 3), 100));
        index.apply_subscription(&sub("s", 2, "a", &json!({ "events": ["a..b"] })));
    });
    again.settle().await;
    assert_eq!(again.view(1).webhook.unwrap().generation, 3);
    assert!(again.view(1).has_backlog);
    assert!(again.publish("ns-1", "a").is_empty(), "a Subscription that cannot be read matches nothing");
    assert!(again.content()[1].error.is_some());
    again.log();
    again.apply_sub(&now_sub("s", 3, "a"));
    again.settle().await;
    assert_eq!(again.log(), ["sub s-shop-s again"]);
    assert_eq!(again.publish("ns-1", "a"), ["w-shop-a"]);
}

#[tokio::test(start_paused = true)]
async fn a_subscription_follows_its_reference() {
    let world = with_backlog().await;
    world.apply_sub(&now_sub("s", 2, "b"));
    world.settle().await;
    assert!(world.publish("ns-1", "a").is_empty(), "the Webhook that it names is not there");
    assert_eq!(world.told(), ["a 1", "s 1"], "the new generation has no record");
    let mut other = hook("b", 1);
    other.spec.suspend = Some(true);
    world.apply_webhook(&other);
    world.settle().await;
    assert_eq!(world.publish("ns-1", "a"), ["w-shop-b"]);
    assert_eq!(world.told(), ["a 1", "b 1", "s 2"]);
}

#[tokio::test(start_paused = true)]
async fn the_annotation_reload_is_passed_on_once() {
    let world = with_backlog().await;
    let mut webhook = verified(hook("a", 1), 100);
    webhook.metadata.annotations = Some([("posthorn.dev/reload".to_owned(), "1".to_owned())].into());
    world.apply_webhook(&webhook);
    world.apply_webhook(&webhook);
    world.settle().await;
    assert_eq!(world.hooks.told().reloads, [1]);
    assert_eq!(world.view(1).webhook.unwrap().reload.as_deref(), Some("1"));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_ends_the_registrar_and_nothing_is_told() {
    for error in [StoreError::Fenced, StoreError::Failed("disk".into())] {
        let mut world = World::with_namespace().await;
        world.store.disk().error = Some(error.clone());
        world.apply_webhook(&hook("a", 1));
        assert_eq!((&mut world.run).await.unwrap(), Err(error));
        assert!(world.told().is_empty());
        assert!(world.hooks.told().views.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_listing_of_many_objects_goes_in_batches() {
    let world = World::new();
    world.list(|index| {
        for n in 0..1_000 {
            index.apply_webhook(&hook(&format!("h{n}"), 1));
            index.apply_subscription(&now_sub(&format!("s{n}"), 1, &format!("h{n}")));
        }
    });
    world.settle().await;
    assert_eq!(world.publish("ns-1", "a").len(), 1_000);
    assert_eq!(world.told().len(), 2_000);
    let again = world.restart();
    again.settle().await;
    assert_eq!(again.told().len(), 2_000);
    again.list(|_| {});
    again.settle().await;
    assert!(again.told().is_empty(), "what is missing goes in batches too");
}

/// What the store holds under a name, if it is served: the document.
fn record(world: &World, cluster: &Cluster, kind: u8, namespace: &str, name: &str) -> Option<String> {
    let disk = world.store.disk();
    if kind == FeedKind::Webhook as u8 {
        let hook = disk.hooks.values().filter(|hook| !hook.is_gone).map(|hook| &hook.definition);
        let mut hook = hook.filter(|hook| *hook.namespace == *namespace && *hook.name == *name);
        return hook.next().map(|hook| hook.document.to_string());
    }
    let uid = cluster.namespace_uid(namespace[1..].parse().unwrap());
    let mut subs = disk.subs.values().map(|sub| &sub.definition);
    subs.find(|sub| *sub.namespace_uid == *uid && *sub.name == *name).map(|sub| sub.document.to_string())
}

/// Nothing is told that is not durable, and who was told misses nothing.
fn check(world: &World, cluster: &Cluster) {
    let expected = cluster.expected();
    let told = as_set(&world.content());
    for (kind, namespace, name, generation) in &told {
        let document = record(world, cluster, *kind, namespace, name);
        // The record may be that of a later change, which is told next.
        let is_present = expected.contains(&(*kind, namespace.clone(), name.clone(), *generation));
        if is_present {
            let document = document.unwrap_or_else(|| panic!("{namespace}/{name} is told and not in the store"));
            assert!(document.contains(&format!("\"generation\":{generation}")), "{document} {generation}");
        }
    }
    let present: std::collections::BTreeSet<_> = told.intersection(&expected).cloned().collect();
    for (kind, namespace, name, _) in present.iter().filter(|entry| entry.0 == FeedKind::Subscription as u8) {
        // As ingest does.
        let responsibility = world.index.read(|index| index.responsibility(namespace));
        let Responsibility::Ours { uid, .. } = responsibility else { continue };
        let is_hook =
            |entry: &&(u8, String, String, i64)| entry.0 != *kind && entry.1 == *namespace && entry.2 == *name;
        if present.iter().any(|entry| is_hook(&entry)) {
            let owed = world.publish(&uid, "a");
            assert!(owed.contains(&format!("w-{namespace}-{name}")), "{namespace}/{name} is told and misses an event");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn whatever_happens_when_nothing_is_told_that_is_not_durable_and_who_was_told_misses_nothing(
        steps in prop::collection::vec((steps(), 0..12_usize, prop::bool::weighted(0.2)), 1..8)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (mut world, mut cluster) = (World::new(), Cluster::new());
            let drive = |world: &World, cluster: &mut Cluster, act: &dyn Fn(&mut Cluster)| {
                world.index.update(|index| {
                    std::mem::swap(index, &mut cluster.index);
                    act(cluster);
                    std::mem::swap(index, &mut cluster.index);
                });
            };
            for (steps, turns, restarts) in steps {
                for step in &steps {
                    drive(&world, &mut cluster, &|cluster| cluster.step(step));
                    for _ in 0..turns {
                        tokio::task::yield_now().await;
                        check(&world, &cluster);
                    }
                }
                if restarts {
                    world = world.restart();
                    // A watch lists before it tells of changes.
                    for kind in ALL {
                        drive(&world, &mut cluster, &|cluster| cluster.relist(kind));
                        for _ in 0..turns {
                            tokio::task::yield_now().await;
                            check(&world, &cluster);
                        }
                    }
                }
            }
            for kind in ALL {
                drive(&world, &mut cluster, &|cluster| cluster.relist(kind));
            }
            world.settle().await;
            check(&world, &cluster);
            let expected = cluster.expected();
            // A Subscription without its Webhook waits and is not told.
            let expected: std::collections::BTreeSet<_> = expected
                .iter()
                .filter(|(kind, namespace, name, _)| {
                    let is_hook = |entry: &(u8, String, String, i64)| {
                        entry.0 == FeedKind::Webhook as u8 && entry.1 == *namespace && entry.2 == *name
                    };
                    *kind == FeedKind::Webhook as u8 || expected.iter().any(is_hook)
                })
                .cloned()
                .collect();
            let told = as_set(&world.content());
            let (missing, extra): (Vec<_>, Vec<_>) =
                (expected.difference(&told).collect(), told.difference(&expected).collect());
            assert!(missing.is_empty(), "{missing:?} are not told");
            // A Subscription that was served and whose Webhook went stays told.
            assert!(extra.iter().all(|entry| entry.0 == FeedKind::Subscription as u8), "{extra:?} are told");
        });
    }
}
