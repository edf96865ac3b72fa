//! The change feed: who follows it ends with what the index has.

use std::{collections::BTreeMap, ops::Range, sync::Arc, time::Duration};

use posthorn::{
    routing::index::{Index, SharedIndex, TOMBSTONES_MAX, WatchedKind},
    wire::index_feed::{FeedEntry, FeedKind, FeedPage, FeedQuery, PAGE_ENTRIES_MAX},
};
use proptest::prelude::*;

use crate::index::{ALL, Cluster, POOL, Step, as_set, content, steps, webhook};

/// Follows as the documentation of the feed says.
#[derive(Default)]
struct Follower {
    instance: String,
    after: u64,
    objects: BTreeMap<(u8, String, String), FeedEntry>,
    resets: usize,
}

impl Follower {
    fn query(&self) -> FeedQuery {
        FeedQuery { instance: self.instance.clone(), after: self.after }
    }

    fn take(&mut self, page: FeedPage) {
        if page.reset {
            self.objects.clear();
            self.resets += 1;
        }
        for entry in page.entries {
            let key = (entry.kind as u8, entry.namespace.clone(), entry.name.clone());
            if entry.generation.is_some() {
                self.objects.insert(key, entry)
            } else {
                self.objects.remove(&key)
            };
        }
        self.instance = page.instance;
        self.after = page.revision;
    }

    fn catch_up(&mut self, index: &Index) {
        while {
            let page = index.page(&self.query());
            let more = page.more;
            self.take(page);
            more
        } {}
    }
}

proptest! {
    #[test]
    fn a_follower_that_polls_at_any_time_ends_with_the_index(
        steps in steps(),
        polls in prop::collection::vec(any::<bool>(), 60),
    ) {
        let mut cluster = Cluster::new();
        let mut follower = Follower::default();
        for (step, poll) in steps.iter().zip(polls) {
            cluster.step(step);
            if poll {
                follower.take(cluster.index.page(&follower.query()));
                prop_assert_eq!(as_set(follower.objects.values()), as_set(&content(&cluster.index)));
            }
        }
        ALL.into_iter().for_each(|kind| cluster.relist(kind));
        follower.catch_up(&cluster.index);
        prop_assert_eq!(as_set(follower.objects.values()), cluster.expected());
        prop_assert!(follower.resets <= 1, "only the first page resets");
    }
}

fn index_with(webhooks: usize) -> Index {
    let mut index = Index::new(POOL, "one");
    index.apply_namespace("n0", "uid0", None);
    (0..webhooks).for_each(|i| index.apply_webhook(&webhook("n0", &format!("w{i}"), 1)));
    index
}

#[test]
fn a_page_has_its_limit_and_says_that_more_waits() {
    let first = |webhooks: usize| index_with(webhooks).page(&FeedQuery { instance: String::new(), after: 0 });
    let full = first(PAGE_ENTRIES_MAX);
    assert_eq!((full.entries.len(), full.more), (PAGE_ENTRIES_MAX, false));
    let over = first(PAGE_ENTRIES_MAX + 1);
    assert_eq!((over.entries.len(), over.more), (PAGE_ENTRIES_MAX, true));
    assert!(over.revision < PAGE_ENTRIES_MAX as u64 + 1);
}

#[test]
fn another_instance_and_a_revision_from_the_future_begin_again() {
    let index = index_with(1);
    let check = |instance: &str, after: u64, expected: bool| {
        let page = index.page(&FeedQuery { instance: instance.to_owned(), after });
        assert_eq!(
            (page.reset, page.entries.len()),
            (expected, usize::from(expected || after == 0)),
            "{instance} {after}"
        );
    };
    check("one", 0, false);
    check("one", 1, false);
    check("one", 2, true);
    check("one", u64::MAX, true);
    check("two", 1, true);
    check("", 0, true);
}

fn delete_many(index: &mut Index, numbers: Range<usize>) {
    for i in numbers {
        let name = format!("short-lived-{i}");
        index.apply_webhook(&webhook("n0", &name, 1));
        index.delete(FeedKind::Webhook, "n0", &name);
    }
}

#[test]
fn forgotten_deletions_reset_those_who_missed_them_and_nobody_else() {
    let mut index = index_with(2);
    let (mut absent, mut present) = (Follower::default(), Follower::default());
    absent.catch_up(&index);
    present.catch_up(&index);
    delete_many(&mut index, 0..TOMBSTONES_MAX);
    present.catch_up(&index);
    absent.catch_up(&index);
    assert_eq!((absent.resets, present.resets), (1, 1), "at the limit everything is remembered");

    delete_many(&mut index, TOMBSTONES_MAX..TOMBSTONES_MAX * 3 / 2);
    present.catch_up(&index);
    delete_many(&mut index, TOMBSTONES_MAX * 3 / 2..TOMBSTONES_MAX * 2);
    present.catch_up(&index);
    absent.catch_up(&index);
    assert_eq!((absent.resets, present.resets), (2, 1));
    for follower in [&absent, &present] {
        assert_eq!(as_set(follower.objects.values()), as_set(&content(&index)));
    }
}

#[test]
fn who_begins_after_deletions_were_forgotten_reads_all_pages_without_another_reset() {
    let mut index = index_with(PAGE_ENTRIES_MAX * 2 + 1);
    delete_many(&mut index, 0..TOMBSTONES_MAX + 1);
    let mut follower = Follower::default();
    follower.catch_up(&index);
    assert_eq!((follower.resets, follower.objects.len()), (1, PAGE_ENTRIES_MAX * 2 + 1));
}

#[tokio::test(start_paused = true)]
async fn a_poll_without_news_waits_until_there_is_some() {
    let index = Arc::new(SharedIndex::new(index_with(1)));
    let mut follower = Follower::default();
    follower.take(index.page_or_wait(&follower.query(), std::future::pending()).await);

    let waiting = tokio::spawn({
        let (index, query) = (Arc::clone(&index), follower.query());
        async move { index.page_or_wait(&query, std::future::pending()).await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    index.update(|index| index.apply_webhook(&webhook("n0", "w0", 2)));
    assert_eq!(waiting.await.unwrap().entries[0].generation, Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_gives_up_is_answered_with_an_empty_page() {
    let index = SharedIndex::new(index_with(1));
    let query = FeedQuery { instance: "one".to_owned(), after: 1 };
    let page = index.page_or_wait(&query, tokio::time::sleep(Duration::from_secs(25))).await;
    assert_eq!((page.reset, page.revision, page.entries.len()), (false, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_first_listing_wakes_a_poll() {
    let index = Arc::new(SharedIndex::new(Index::new(POOL, "one")));
    let waiting = tokio::spawn({
        let index = Arc::clone(&index);
        let query = FeedQuery { instance: "one".to_owned(), after: 0 };
        async move { index.page_or_wait(&query, std::future::pending()).await }
    });
    for kind in [WatchedKind::Namespace, WatchedKind::Webhook, WatchedKind::Subscription] {
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        index.update(|index| {
            index.begin_list(kind);
            index.end_list(kind);
        });
    }
    assert!(waiting.await.unwrap().synced);
    index.until_synced().await;
}

#[test]
fn a_namesake_made_later_is_told_as_another_object() {
    let mut cluster = Cluster::new();
    cluster.step(&Step::Namespace(0, true));
    cluster.step(&Step::Object(FeedKind::Webhook, 0, 0));
    let mut follower = Follower::default();
    follower.catch_up(&cluster.index);
    let mut namesake = webhook("n0", "o0", 1);
    namesake.metadata.uid = Some("another".to_owned());
    cluster.index.apply_webhook(&namesake);
    let page = cluster.index.page(&follower.query());
    assert_eq!((page.entries.len(), page.entries[0].uid.as_str()), (1, "another"));
}
