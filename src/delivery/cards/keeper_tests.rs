//! The keeper of cards before a store that holds dead Deliveries alone.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use super::*;
use crate::{
    api::webhook::WebhookSpec,
    delivery::{
        cards::card::tests::{hook, row},
        directory::HookInfo,
    },
    event::{Pos, StoreTime},
    policy::delivery::DeliverySettings,
    store::{
        Answer, BlockedKey, HookNote, Known, KnownNamespace, OrderKey, Outcome, OwedPage, OwedRow, RecordTicket,
        Register, Registered, ReplayIdentity, ReplayOrder, ReplayRun, StoreLimits, StoredEvent, TallyPage,
        TallyRevision, WaitingPage,
    },
};

/// Dead Deliveries and nothing else.
struct Dead(Mutex<Vec<DeadRow>>);

impl Dead {
    fn count(&self, state: CardState) -> usize {
        self.rows().iter().filter(|row| row.card == state).count()
    }

    fn rows(&self) -> std::sync::MutexGuard<'_, Vec<DeadRow>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unused<T: Send + 'static>() -> Answer<'static, T> {
    Box::pin(async { Err(StoreError::Failed("not of this test".into())) })
}

impl Partition for Dead {
    fn register(&self, _: Vec<Register>) -> Answer<'_, Vec<Registered>> {
        unused()
    }
    fn known(&self) -> Answer<'_, Known> {
        unused()
    }
    fn namespaces(&self) -> Answer<'_, Vec<KnownNamespace>> {
        unused()
    }
    fn owed(&self, _: HookId, _: Pos, _: usize) -> Answer<'_, OwedPage> {
        unused()
    }
    fn waiting(&self, _: HookId, _: StoreTime, _: usize) -> Answer<'_, WaitingPage> {
        unused()
    }
    fn blocked_keys(&self, _: HookId, _: bool, _: usize) -> Answer<'_, Vec<BlockedKey>> {
        unused()
    }
    fn parked(&self, _: HookId, _: OrderKey, _: usize) -> Answer<'_, Vec<OwedRow>> {
        unused()
    }
    fn bodies(&self, _: Vec<Pos>) -> Answer<'_, Vec<StoredEvent>> {
        unused()
    }
    fn record(&self, _: Vec<Outcome>) -> RecordTicket {
        RecordTicket::default()
    }
    fn recorded(&self) -> watch::Receiver<RecordTicket> {
        watch::channel(RecordTicket::default()).1
    }
    fn note(&self, _: HookId, _: HookNote) -> Answer<'_, ()> {
        unused()
    }
    fn tallies(&self, _: TallyRevision, _: usize) -> Answer<'_, TallyPage> {
        unused()
    }
    fn cards(&self, query: CardQuery) -> Answer<'_, Vec<DeadRow>> {
        assert_eq!((query.hook, query.after), (None, None));
        let wanted = |row: &&DeadRow| Some(row.card) == query.state;
        let page = self.rows().iter().filter(wanted).take(query.limit).cloned().collect();
        Box::pin(async { Ok(page) })
    }
    fn mark_cards(&self, marks: Vec<CardMark>) -> Answer<'_, ()> {
        let mut rows = self.rows();
        for mark in marks {
            let at = rows.binary_search_by_key(&mark.pos, |row| row.pos).unwrap();
            rows[at].card = mark.state;
        }
        Box::pin(async { Ok(()) })
    }
    fn replay(&self, _: ReplayOrder) -> Answer<'_, ReplayRun> {
        unused()
    }
    fn replay_run(&self, _: ReplayIdentity) -> Answer<'_, Option<ReplayRun>> {
        unused()
    }
    fn cancel_replay(&self, _: ReplayIdentity) -> Answer<'_, Option<ReplayRun>> {
        unused()
    }
    fn configure(&self, _: StoreLimits) {}
    fn store_now(&self) -> StoreTime {
        StoreTime(0)
    }
    fn close(&self) -> Answer<'_, ()> {
        unused()
    }
}

/// One Webhook, with no room for any card.
struct NoRoom;

impl Directory for NoRoom {
    fn hook(&self, id: HookId) -> Option<HookInfo> {
        let spec = serde_json::json!({ "url": "https://a.example/", "deadLetter": { "limit": 0 } });
        let spec: WebhookSpec = serde_json::from_value(spec).unwrap();
        Some(HookInfo { settings: DeliverySettings::compile(&spec).into(), ..hook(id.0, "orders") })
    }

    fn find(&self, _: &str, _: &str) -> Option<HookInfo> {
        None
    }
}

#[tokio::test]
async fn what_has_no_room_is_counted_by_many_pages_a_look_and_costs_no_request() {
    /// Dead Deliveries a second that a pod may make of endpoints that are down.
    const RATE: u128 = 10_000;
    let in_one_look = PAGES_MAX * WANTED_MAX;
    assert!(in_one_look as u128 * 1_000 >= RATE * PERIOD.as_millis(), "a backlog of cards would grow");
    let rows = (1..=in_one_look as u64 + 1).map(|pos| row(1, pos)).collect();
    let store = Arc::new(Dead(Mutex::new(rows)));
    let refuses = tower::service_fn(|_: http::Request<kube::client::Body>| async {
        Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("nothing is to be asked here"))
    });
    let (client, metrics) = (Client::new(refuses, "default"), CardMetrics::default());
    let cards = Cards::new("store", "default");
    let mut keeper = CardKeeper::new(store.clone(), Arc::new(NoRoom), client, cards, metrics.clone());
    keeper.work().await.unwrap();
    assert_eq!((store.count(CardState::Overflow), store.count(CardState::Wanted)), (in_one_look, 1));
    assert_eq!(metrics.overflow.get(), in_one_look as u64);
    assert_eq!(metrics.writes.get_or_create(&WriteLabel { outcome: "failed" }).get(), 0);
    keeper.work().await.unwrap();
    assert_eq!((store.count(CardState::Overflow), store.count(CardState::Wanted)), (in_one_look + 1, 0));
}

#[test]
fn a_card_that_goes_with_its_kind_is_wanted_again_and_one_that_somebody_deletes_is_not() {
    let at = |second| Some(Timestamp::from_second(second).unwrap());
    assert_eq!(Kind::Since(at(100)).meaning_of(at(101)), CardState::Dismissed);
    assert_eq!(Kind::Since(at(100)).meaning_of(at(100)), CardState::Wanted, "the kind was installed again");
    assert_eq!(Kind::Gone.meaning_of(at(101)), CardState::Wanted, "the kind is being removed");
    assert_eq!(Kind::Since(None).meaning_of(None), CardState::Dismissed);
}
