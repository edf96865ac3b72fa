//! The routing table of the store, against a matcher that looks at everything.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::jiff::Timestamp;
use posthorn::{
    event::Pos,
    routing::{
        index::{
            Change, EventPattern, Index, Object, Seen, Start, SubscriptionEntry,
            document::{self, Standing},
        },
        table::RoutingTable,
    },
    store::{From, HookDefinition, HookId, RouteChange, RouteKey, Router, SubDefinition, SubId, Target},
};
use proptest::prelude::*;
use serde_json::json;

use crate::index::{POOL, subscription, webhook_with};

const TYPES: [&str; 8] =
    ["order.paid", "order.paid.late", "order", "orders.paid", "a", "posthorn.test", "order.", "a.b.c.d"];
const PATTERNS: [&str; 9] =
    ["order.paid", "order.*", "order.paid.*", "*", "a", "posthorn.*", "a.b.*", "a.b.c.d", "posthorn.test"];
const SOURCES: [&str; 2] = ["/shop", "/bank"];
const NAMESPACES: [&str; 2] = ["ns-1", "ns-2"];

/// A Subscription as the naive matcher keeps it.
#[derive(Clone, Debug)]
struct Sub {
    hook: i64,
    namespace: usize,
    live_from: u64,
    standing: Standing,
    entry: SubscriptionEntry,
}

#[derive(Clone, Debug)]
enum Step {
    Hook(i64, bool),
    HookGone(i64),
    Sub(i64, Sub),
    SubGone(i64),
}

fn sub() -> impl Strategy<Value = Sub> {
    let standing = prop_oneof![
        8 => Just(Standing::Served),
        1 => Just(Standing::Moved("other".into())),
        1 => Just(Standing::Refused),
    ];
    let what = (
        prop::sample::subsequence(PATTERNS.to_vec(), 0..4),
        prop::option::of(prop::sample::select(SOURCES.to_vec())),
        prop::bool::weighted(0.1),
    );
    (1..6_i64, 0..2_usize, 0..4_u64, standing, what, 0..3_i64, 0..3_u8).prop_map(
        |(hook, namespace, live_from, standing, (events, source, suspended), created, name)| Sub {
            hook,
            namespace,
            live_from,
            standing,
            entry: SubscriptionEntry {
                name: format!("s{name}").into(),
                uid: "uid".into(),
                generation: 1,
                created: Timestamp::from_second(created).unwrap(),
                webhook: format!("h{hook}").into(),
                events: events.iter().filter_map(|text| EventPattern::parse(text)).collect(),
                source: source.map(Into::into),
                start: Start::Now,
                suspended,
            },
        },
    )
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1..6_i64, any::<bool>()).prop_map(|(id, ordered)| Step::Hook(id, ordered)),
        1 => (1..6_i64).prop_map(Step::HookGone),
        6 => (1..12_i64, sub()).prop_map(|(id, sub)| Step::Sub(id, sub)),
        2 => (1..12_i64).prop_map(Step::SubGone),
    ];
    prop::collection::vec(step, 0..50)
}

fn change(step: &Step) -> RouteChange {
    match step {
        Step::Hook(id, ordered) => hook_change(*id, *ordered),
        Step::HookGone(id) => RouteChange::HookGone(HookId(*id)),
        Step::SubGone(id) => RouteChange::SubGone(SubId(*id)),
        Step::Sub(id, sub) => {
            let document = match &sub.standing {
                Standing::Refused => document::of_refused(1),
                standing => document::of_subscription(&sub.entry, standing.clone()),
            };
            sub_change(*id, sub.hook, NAMESPACES[sub.namespace], sub.live_from, &sub.entry, document)
        }
    }
}

fn hook_change(id: i64, is_ordered: bool) -> RouteChange {
    let hook = HookDefinition {
        namespace: "shop".into(),
        namespace_uid: "ns-1".into(),
        name: format!("h{id}").into(),
        uid: "uid".into(),
        max_age_ms: 1,
        is_ordered,
        document: "never read here".into(),
    };
    RouteChange::Hook { id: HookId(id), hook }
}

fn sub_change(
    id: i64,
    hook: i64,
    namespace_uid: &str,
    live_from: u64,
    entry: &SubscriptionEntry,
    document: Arc<str>,
) -> RouteChange {
    let sub = SubDefinition {
        namespace_uid: namespace_uid.into(),
        webhook: (&*entry.webhook).into(),
        name: Arc::clone(&entry.name),
        uid: Arc::clone(&entry.uid),
        created: entry.created,
        from: From::Earliest,
        document,
    };
    RouteChange::Sub { id: SubId(id), hook: HookId(hook), live_from: Pos(live_from), sub }
}

/// Looks at every Subscription.
#[derive(Default)]
struct Naive {
    /// Ordered or not, and gone or not.
    hooks: BTreeMap<i64, (bool, bool)>,
    subs: BTreeMap<i64, Sub>,
}

impl Naive {
    fn apply(&mut self, step: &Step) {
        match step {
            Step::Hook(id, ordered) => drop(self.hooks.insert(*id, (*ordered, false))),
            Step::HookGone(id) => drop(self.hooks.get_mut(id).map(|hook| hook.1 = true)),
            Step::Sub(id, sub) => drop(self.subs.insert(*id, sub.clone())),
            Step::SubGone(id) => drop(self.subs.remove(id)),
        }
    }

    fn route(&self, pos: u64, event: RouteKey<'_>) -> Vec<Target> {
        let matches = |sub: &Sub| {
            sub.standing == Standing::Served
                && sub.live_from <= pos
                && NAMESPACES[sub.namespace] == event.namespace_uid
                && sub.entry.matches(event.event_type, event.source)
        };
        let hooks = self.hooks.iter().filter(|(_, (_, is_gone))| !is_gone);
        hooks
            .filter_map(|(id, (is_ordered, _))| {
                let own = self.subs.iter().filter(|(_, sub)| sub.hook == *id && matches(sub));
                let oldest = own.min_by_key(|(sub_id, sub)| (sub.entry.created, sub.entry.name.clone(), **sub_id))?;
                Some(Target { hook: HookId(*id), sub: SubId(*oldest.0), is_ordered: *is_ordered })
            })
            .collect()
    }

    fn wants(&self, id: i64, event: RouteKey<'_>) -> bool {
        self.subs.get(&id).is_some_and(|sub| {
            sub.standing != Standing::Refused
                && NAMESPACES[sub.namespace] == event.namespace_uid
                && sub.entry.matches(event.event_type, event.source)
        })
    }
}

/// All targets, read in pages.
fn route_in_pages(table: &RoutingTable, pos: u64, event: RouteKey<'_>, limit: usize) -> Vec<Target> {
    let mut all = Vec::new();
    let mut after = HookId::default();
    loop {
        let before = all.len();
        let more = table.route(Pos(pos), event, after, limit, &mut all);
        assert!(all.len() - before <= limit);
        assert!(!more || all.len() - before == limit, "a page that is not full is the last one");
        if !more {
            return all;
        }
        after = all.last().unwrap().hook;
    }
}

proptest! {
    #[test]
    fn the_table_routes_as_a_matcher_that_looks_at_everything(steps in steps(), limit in 1..4_usize) {
        let (mut table, mut naive) = (RoutingTable::new(), Naive::default());
        for step in &steps {
            table.apply(&[change(step)]);
            naive.apply(step);
        }
        for (event_type, source, namespace_uid, pos) in all_events() {
            let event = RouteKey { namespace_uid, event_type, source };
            let expected = naive.route(pos, event);
            prop_assert_eq!(&route_in_pages(&table, pos, event, limit), &expected, "{:?}", event);
            prop_assert_eq!(&route_in_pages(&table, pos, event, 100), &expected);
            for id in 1..12 {
                prop_assert_eq!(table.wants(SubId(id), event), naive.wants(id, event), "{} {:?}", id, event);
            }
        }
    }

    #[test]
    fn nothing_is_left_of_what_is_gone(steps in steps()) {
        let mut table = RoutingTable::new();
        steps.iter().for_each(|step| table.apply(&[change(step)]));
        (1..12).for_each(|id| table.apply(&[RouteChange::SubGone(SubId(id))]));
        (1..6).for_each(|id| table.apply(&[RouteChange::HookGone(HookId(id))]));
        prop_assert_eq!(format!("{table:?}"), format!("{:?}", RoutingTable::new()));
    }

    #[test]
    fn any_text_may_be_the_document_of_a_subscription(text in ".*", v in any::<u32>(), rest in ".*") {
        let mut table = RoutingTable::new();
        let entry = plain("s", "order.paid");
        for text in [text, format!("{{\"v\":{v}{rest}}}"), format!("{{\"v\":{v},\"generation\":1,\"events\":[]}}")] {
            table.apply(&[hook_change(1, false), sub_change(1, 1, "ns-1", 0, &entry, text.into())]);
            let event = RouteKey { namespace_uid: "ns-1", event_type: "order.paid", source: "/" };
            prop_assert!(route_in_pages(&table, 9, event, 9).is_empty());
        }
    }
}

fn all_events() -> impl Iterator<Item = (&'static str, &'static str, &'static str, u64)> {
    TYPES.iter().flat_map(|event_type| {
        SOURCES.iter().flat_map(move |source| {
            NAMESPACES.iter().flat_map(move |namespace| (0..4).map(move |pos| (*event_type, *source, *namespace, pos)))
        })
    })
}

fn plain(name: &str, pattern: &str) -> SubscriptionEntry {
    SubscriptionEntry {
        name: name.into(),
        uid: format!("uid-{name}").into(),
        generation: 1,
        created: Timestamp::UNIX_EPOCH,
        webhook: "h".into(),
        events: [EventPattern::parse(pattern).unwrap()].into(),
        source: None,
        start: Start::Now,
        suspended: false,
    }
}

#[test]
fn a_document_of_a_newer_format_is_left_out_and_what_is_readable_is_not() {
    let mut table = RoutingTable::new();
    let entry = plain("s", "*");
    let newer = r#"{"v":2,"generation":1,"events":["*"],"start":"now"}"#;
    table.apply(&[
        hook_change(1, false),
        sub_change(1, 1, "ns-1", 0, &entry, newer.into()),
        sub_change(2, 1, "ns-1", 0, &entry, document::of_subscription(&entry, Standing::Served)),
    ]);
    let event = RouteKey { namespace_uid: "ns-1", event_type: "order.paid", source: "/" };
    assert_eq!(route_in_pages(&table, 9, event, 9)[0].sub, SubId(2));
}

#[test]
fn fields_of_a_newer_version_are_ignored() {
    let mut table = RoutingTable::new();
    let known = r#"{"v":1,"generation":1,"events":["a","?newer?"],"start":"now","filter":{"cel":"true"}}"#;
    table.apply(&[hook_change(1, false), sub_change(1, 1, "ns-1", 0, &plain("s", "*"), known.into())]);
    let event = RouteKey { namespace_uid: "ns-1", event_type: "a", source: "/" };
    assert_eq!(route_in_pages(&table, 9, event, 9).len(), 1);
}

#[test]
fn one_type_among_ten_thousand_webhooks_is_found_without_looking_at_the_others() {
    let mut table = RoutingTable::new();
    for id in 1..=10_000 {
        let entry = plain(&format!("s{id}"), &format!("type.t{id}"));
        let document = document::of_subscription(&entry, Standing::Served);
        table.apply(&[hook_change(id, false), sub_change(id, id, "ns-1", 0, &entry, document)]);
    }
    // Looking at everything would take some 10^9 steps here.
    let mut targets = Vec::new();
    for id in 1..=100_000_i64 {
        let event_type = format!("type.t{}", id % 10_000 + 1);
        let event = RouteKey { namespace_uid: "ns-1", event_type: &event_type, source: "/" };
        targets.clear();
        assert!(!table.route(Pos(1), event, HookId(0), 64, &mut targets));
        assert_eq!(targets[0].hook, HookId(id % 10_000 + 1));
        assert_eq!(targets.len(), 1);
    }
}

/// Set in the process that measures itself.
const MEASURES: &str = "POSTHORN_TEST_MEASURES_MEMORY";
/// Webhooks with a Subscription each.
const MEASURED: i64 = 10_000;
/// Index, its feed and routing table, a Webhook and its Subscription together.
const BYTES_EACH_MAX: u64 = 2_560;

/// What this process has in memory.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    1024 * line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
}

/// Alone in a process: other tests allocate as well.
#[test]
fn idle_webhooks_cost_little_memory() {
    if std::env::var_os(MEASURES).is_some() {
        measure();
        return;
    }
    let mut own = std::process::Command::new(std::env::current_exe().unwrap());
    let arguments = ["--exact", "table::idle_webhooks_cost_little_memory", "--nocapture"];
    let output = own.args(arguments).env(MEASURES, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let bytes: u64 = text.split("bytes each: ").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    assert!((500..=BYTES_EACH_MAX).contains(&bytes), "{bytes} bytes for a Webhook and its Subscription");
}

fn measure() {
    let mut index = Index::recorded(POOL, "test");
    index.apply_namespace("shop", "0b9dd5a9-7ff5-4c3d-8d0c-1f2f3c4d5e6f", None);
    let mut table = RoutingTable::new();
    add(&mut index, &mut table, 0);
    let before = resident_bytes();
    (1..=MEASURED).for_each(|n| add(&mut index, &mut table, n));
    let each = (resident_bytes() - before) / MEASURED.unsigned_abs();
    assert_eq!(index.counts().subscriptions, MEASURED.unsigned_abs() + 1);
    println!("bytes each: {each} ");
}

/// A verified Webhook with a Subscription to one type of events, as the
/// registrar brings it in.
fn add(index: &mut Index, table: &mut RoutingTable, n: i64) {
    let (name, uid) = (format!("customer-webhook-{n}"), format!("0b9dd5a9-7ff5-4c3d-8d0c-{n:012}"));
    let mut webhook =
        webhook_with("shop", &name, 1, json!({ "url": format!("https://hooks.example.com/in/{n}/events") }));
    webhook.metadata.uid = Some(uid.clone());
    let verification = json!({
        "state": "Verified", "fingerprint": "v1.nBoujX33zLvy0ZLM9ixpnj4japVem-1M7rYCzAMXKsE",
        "verifiedTime": "2026-11-23T12:00:00Z", "validUntil": "2026-11-27T12:00:00Z",
    });
    webhook.status = Some(serde_json::from_value(json!({ "verification": verification })).unwrap());
    index.apply_webhook(&webhook);
    let spec = json!({ "webhookRef": { "name": name }, "events": [format!("customer.changed.{n}")] });
    let mut object = subscription("shop", &name, 1, spec);
    object.metadata.uid = Some(uid);
    index.apply_subscription(&object);
    for change in index.take_changes(9).changes {
        index.acknowledge(&change);
        if let Change::Subscription(Object { seen: Seen::Used(entry), .. }) = change {
            let document = document::of_subscription(&entry, Standing::Served);
            table.apply(&[hook_change(n + 1, false), sub_change(n + 1, n + 1, "ns-1", 0, &entry, document)]);
        }
    }
}
