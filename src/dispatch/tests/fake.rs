//! A store in memory, as small as may be: tables and compare-and-set.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::jiff::Timestamp;

use crate::{
    api::webhook::{Dialect, VerificationMethod},
    dispatch::{
        HookView,
        asking::{Probe, choose_probe},
        hook::Origin,
        questions::{Question, Reply},
    },
    event::{Event, EventHead, EventId, Pos, StoreTime},
    policy::delivery::DeliverySettings,
    routing::index::{EndpointSource, VerificationEntry, WebhookEntry},
    store::{
        BlockedKey, DeadReason, HookId, HookNotes, Next, OrderKey, Outcome, OwedPage, OwedRow, StoredEvent, SubId,
        WaitingPage,
    },
};

type Key = (HookId, Pos);

#[derive(Debug, Default)]
pub(super) struct FakeStore {
    pub(super) next: u64,
    pub(super) events: BTreeMap<Pos, StoredEvent>,
    pub(super) owed: BTreeMap<Key, OwedRow>,
    pub(super) retry: BTreeMap<Key, (StoreTime, OwedRow)>,
    pub(super) parked: BTreeMap<Key, OwedRow>,
    pub(super) dead: BTreeMap<Key, (DeadReason, OwedRow)>,
    pub(super) delivered: BTreeMap<Key, u32>,
    /// Outcomes that did not fit.
    pub(super) ignored: u32,
}

impl FakeStore {
    /// Takes an event of so many bytes in, owed to nobody.
    pub(super) fn accept(&mut self, now: StoreTime, bytes: usize) -> (Pos, Arc<Event>) {
        self.next += 1;
        let pos = Pos(self.next);
        let event = Arc::new(Event {
            id: EventId { time_ms: 0, epoch: 1, partition: 0, pos },
            at: now,
            accepted: Timestamp::UNIX_EPOCH,
            namespace: "team".into(),
            namespace_uid: "uid".into(),
            head: EventHead { event_type: "a.b".into(), source: "s".into(), ..EventHead::default() },
            data: vec![0; bytes].into(),
        });
        self.events.insert(pos, StoredEvent::Event(Arc::clone(&event)));
        (pos, event)
    }

    pub(super) fn owe(&mut self, hook: HookId, pos: Pos, key: Option<OrderKey>) {
        self.owed.insert((hook, pos), OwedRow { pos, sub: SubId(1), key, tries: 0, shape: None });
    }

    /// Compare-and-set on `tries`.
    pub(super) fn apply(&mut self, outcome: &Outcome) {
        let at = (outcome.hook, outcome.pos);
        let found = [self.owed.get(&at), self.retry.get(&at).map(|(_, row)| row), self.parked.get(&at)];
        let Some(mut row) = found.into_iter().flatten().find(|row| row.tries == outcome.tries).copied() else {
            self.ignored += 1;
            return;
        };
        if outcome.next == Next::Back {
            return;
        }
        self.owed.remove(&at);
        self.retry.remove(&at);
        self.parked.remove(&at);
        row.tries += u16::from(outcome.attempt.is_some());
        match outcome.next {
            Next::Done => *self.delivered.entry(at).or_default() += 1,
            Next::At(due) => {
                row.shape = outcome.attempt.as_ref().map(|attempt| attempt.shape);
                self.retry.insert(at, (due, row));
            }
            Next::Dead(reason) => {
                self.dead.insert(at, (reason, row));
            }
            Next::Park => {
                self.parked.insert(at, row);
            }
            Next::Back => {}
        }
    }

    pub(super) fn owed_page(&self, hook: HookId, after: Pos, limit: usize) -> OwedPage {
        let behind = (hook, Pos(after.0 + 1))..=(hook, Pos(u64::MAX));
        let rows: Vec<OwedRow> = self.owed.range(behind).map(|(_, row)| *row).take(limit).collect();
        let covered = if rows.len() < limit { Pos(self.next) } else { rows.last().map_or(after, |row| row.pos) };
        OwedPage { rows, covered }
    }

    pub(super) fn waiting_page(&self, hook: HookId, now: StoreTime, limit: usize) -> WaitingPage {
        let mut rows: Vec<(StoreTime, OwedRow)> =
            self.retry.iter().filter(|((of, _), _)| *of == hook).map(|(_, row)| *row).collect();
        rows.sort_by_key(|(due, row)| (*due, row.pos));
        let count = rows.iter().take_while(|(due, _)| *due <= now).count().min(limit);
        WaitingPage {
            next_due: rows.get(count).map(|(due, _)| *due),
            rows: rows.into_iter().take(count).map(|(_, row)| row).collect(),
        }
    }

    /// Keys with a row that waits first, then those with parked rows, then those
    /// with dead ones alone.
    pub(super) fn blocked_keys(&self, hook: HookId, dead_blocks: bool, limit: usize) -> Vec<BlockedKey> {
        let of = |at: &Key, row: &OwedRow| (at.0 == hook).then_some(row.key?).map(|key| (key, at.1));
        let waiting: BTreeMap<_, _> = self.retry.iter().rev().filter_map(|(at, (_, row))| of(at, row)).collect();
        let parked: BTreeMap<_, _> = self.parked.iter().rev().filter_map(|(at, row)| of(at, row)).collect();
        let dead = self.dead.iter().rev().filter(|_| dead_blocks);
        let dead: BTreeMap<_, _> = dead.filter_map(|(at, (_, row))| of(at, row)).collect();
        let mut known = BTreeSet::new();
        let keys = waiting.keys().chain(parked.keys()).chain(dead.keys()).filter(|key| known.insert(**key));
        let by = |key: &OrderKey| BlockedKey {
            key: *key,
            is_waiting: waiting.contains_key(key),
            parked: parked.get(key).copied(),
            dead: dead.get(key).copied(),
        };
        keys.take(limit).map(by).collect()
    }

    /// A dead Delivery is owed again, as a Replay does it.
    pub(super) fn reopen(&mut self, hook: HookId, pos: Pos, is_ordered: bool) {
        let (_, row) = self.dead.remove(&(hook, pos)).unwrap();
        let is_parked = is_ordered && row.key.is_some();
        let rows = if is_parked { &mut self.parked } else { &mut self.owed };
        rows.insert((hook, pos), OwedRow { tries: 0, shape: None, ..row });
    }

    /// What is pending of a hook before `pos`, with this key.
    pub(super) fn pending_before(&self, hook: HookId, pos: Pos, key: OrderKey) -> impl Iterator<Item = Pos> {
        let before = (hook, Pos(0))..(hook, pos);
        let retry = self.retry.range(before.clone()).map(|(at, (_, row))| (at, row));
        let all = self.owed.range(before.clone()).chain(retry).chain(self.parked.range(before));
        all.filter(move |(_, row)| row.key == Some(key)).map(|(at, _)| at.1)
    }

    pub(super) fn parked_rows(&self, hook: HookId, key: OrderKey, limit: usize) -> Vec<OwedRow> {
        let rows = self.parked.iter().filter(|((of, _), row)| *of == hook && row.key == Some(key));
        rows.map(|(_, row)| *row).take(limit).collect()
    }

    pub(super) fn bodies(&self, positions: &[Pos]) -> Vec<StoredEvent> {
        positions.iter().map(|pos| self.events.get(pos).cloned().unwrap_or(StoredEvent::Missing)).collect()
    }

    /// As `asking::ask` does it, in one instant.
    pub(super) fn answer(&self, hook: HookId, question: &Question) -> Reply {
        match question {
            Question::Owed { after, limit } => Reply::Owed(self.owed_page(hook, *after, *limit)),
            Question::Waiting { now, limit } => Reply::Waiting(self.waiting_page(hook, *now, *limit)),
            Question::Keys { blocks_on_dead } => Reply::Keys(self.blocked_keys(hook, *blocks_on_dead, 1_025)),
            Question::Parked { key, limit } => Reply::Parked(self.parked_rows(hook, *key, *limit)),
            Question::Bodies { positions } => Reply::Bodies(self.bodies(positions)),
            Question::Probe { blocks_on_dead } => {
                let owed = self.owed_page(hook, Pos(0), 64).rows;
                let waiting = self.waiting_page(hook, StoreTime(i64::MAX), 64).rows;
                let blocked = self.blocked_keys(hook, *blocks_on_dead, 1_025);
                let found = choose_probe(&owed, &waiting, &blocked).map(|probe| match probe {
                    Probe::Row(row, origin) => (row, origin),
                    Probe::FirstParked(key) => (self.parked_rows(hook, key, 1)[0], Origin::Parked),
                });
                Reply::Probe(found.map(|(row, origin)| (row, origin, self.bodies(&[row.pos])[0].clone())))
            }
        }
    }
}

/// A Webhook as the index has it.
pub(super) fn entry(generation: i64, suspended: bool) -> Arc<WebhookEntry> {
    Arc::new(WebhookEntry {
        name: "hook".into(),
        uid: "hook-uid".into(),
        generation,
        endpoint: EndpointSource::Url("https://hooks.example.com".into()),
        dialect: Dialect::StandardWebhooks,
        method: VerificationMethod::None,
        suspended,
        verification: VerificationEntry::default(),
        settings: Arc::default(),
        sending: crate::policy::sending::SendingSpec::plain(Dialect::StandardWebhooks).shared(),
        reload: None,
    })
}

pub(super) fn view(hook: i64, settings: &DeliverySettings) -> HookView {
    HookView {
        id: HookId(hook),
        namespace: "team".into(),
        webhook: Some(entry(1, false)),
        settings: Arc::new(settings.clone()),
        notes: HookNotes::default(),
        has_backlog: false,
    }
}
