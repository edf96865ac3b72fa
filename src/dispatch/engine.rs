//! The engine: what the dispatcher decides, without time, tasks or network.
//!
//! Inputs come in as calls with `now`: news of the store, Webhooks, ends of
//! attempts, answers of the store, what became durable. Then [`Engine::step`]
//! fires timers and starts what may start; what is to be done stands in
//! [`Engine::take_actions`] and [`Engine::take_outcomes`].
//!
//! Whatever happened to a hook, [`Globals::settle`] brings it in order
//! afterwards: held or not, timer, questions, a place in the ring. No step looks
//! at hooks that nothing happened to.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    num::NonZeroU64,
    sync::Arc,
};

use k8s_openapi::jiff::Timestamp;

use super::{
    AttemptJob, DispatchMetrics, HookHealth, HookView,
    hook::{Closed, Hook, Item, Origin, Trust},
    pace::Pace,
    questions::Question,
    turns::Rings,
};
use crate::{
    event::{Event, Pos, StoreTime},
    policy::delivery::DeliverySettings,
    store::{HookId, HookNote, News, Outcome, OwedRow, RecordTicket, Target},
};

/// Attempts that run at once in all.
pub(super) const IN_FLIGHT_MAX: usize = 1_024;
/// Attempts at once to all suspect hooks together.
pub(super) const SUSPECTS_MAX: usize = 256;
/// Outcomes that are not durable, at most: beyond it no attempt is started.
pub(super) const UNRECORDED_MAX: usize = 16_384;
/// Bytes of events in memory that wait for their turn: 16 MiB.
pub(super) const CACHED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Rows of one hook in memory.
pub(super) const WINDOW_ROWS: usize = 1_024;
/// The same while many rows are in memory in all.
pub(super) const WINDOW_ROWS_CROWDED: usize = 8;
/// From here on it is crowded.
pub(super) const ROWS_CROWDED: usize = 32 * 1_024;
/// Both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) store: StoreTime,
    pub(super) wall: Timestamp,
}

/// What the shell is to do.
#[derive(Debug)]
pub(super) enum Action {
    Attempt(u64, Box<AttemptJob>),
    Ask { hook: HookId, serial: NonZeroU64, question: Question },
    Note(HookId, HookNote),
    Health(HookHealth),
    Forget(HookId),
}

/// An attempt that runs.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) hook: HookId,
    pub(super) row: OwedRow,
    pub(super) origin: Origin,
    pub(super) is_probe: bool,
    pub(super) is_suspect: bool,
    pub(super) is_late: bool,
    /// As they were when it began; see [`Hook`].
    pub(super) view: u32,
    pub(super) endpoint: u32,
}

/// Everything that hooks share.
pub(super) struct Globals {
    pub(super) rings: Rings,
    pub(super) suspect_ring: VecDeque<HookId>,
    pub(super) questions: VecDeque<HookId>,
    pub(super) fetch_ring: VecDeque<HookId>,
    pub(super) timers: BTreeSet<(StoreTime, HookId)>,
    pub(super) flights: HashMap<u64, Flight>,
    /// Of them: of hooks in the ring of late ones.
    pub(super) late_flights: usize,
    pub(super) late_pace: Pace,
    pub(super) last_flight: u64,
    pub(super) last_serial: NonZeroU64,
    pub(super) suspects: usize,
    pub(super) open_questions: usize,
    pub(super) open_bodies: usize,
    pub(super) rows: usize,
    pub(super) bytes: usize,
    /// [`WINDOW_ROWS`]; tests have smaller ones.
    pub(super) window: usize,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) unrecorded: VecDeque<(RecordTicket, HookId)>,
    pub(super) actions: Vec<Action>,
    pub(super) is_stopping: bool,
    pub(super) chance: Box<dyn FnMut() -> f64 + Send>,
    pub(super) metrics: DispatchMetrics,
}

/// Every hook that is known. Boxed: a map that has grown has room for twice as many.
pub(super) type Hooks = HashMap<HookId, Box<Hook>>;

/// The dispatcher without a shell.
pub(super) struct Engine {
    pub(super) hooks: Hooks,
    pub(super) globals: Globals,
}

impl Engine {
    pub(super) fn new(metrics: DispatchMetrics, chance: Box<dyn FnMut() -> f64 + Send>, processors: usize) -> Self {
        let globals = Globals {
            rings: Rings::default(),
            suspect_ring: VecDeque::new(),
            questions: VecDeque::new(),
            fetch_ring: VecDeque::new(),
            timers: BTreeSet::new(),
            flights: HashMap::new(),
            late_flights: 0,
            late_pace: Pace::new(processors),
            last_flight: 0,
            last_serial: NonZeroU64::MIN,
            suspects: 0,
            open_questions: 0,
            open_bodies: 0,
            rows: 0,
            bytes: 0,
            window: WINDOW_ROWS,
            outcomes: Vec::new(),
            unrecorded: VecDeque::new(),
            actions: Vec::new(),
            is_stopping: false,
            chance,
            metrics,
        };
        Self { hooks: HashMap::new(), globals }
    }

    /// A Webhook is new or changed.
    pub(super) fn set_hook(&mut self, view: HookView, now: Now) {
        let Self { hooks, globals } = self;
        let hook = hooks.entry(view.id).or_insert_with(|| Hook::unknown(view.id, Pos(0)));
        if view.settings.is_ordered && hook.keys.is_none() {
            // What is in memory was read without regard to keys.
            globals.unload(hook);
            hook.keys = Some(Box::default());
        }
        let order = |settings: &DeliverySettings| (settings.is_ordered, settings.blocks_on_dead);
        if order(&view.settings) != order(&hook.settings) {
            globals.reload_keys(hook);
        }
        let is_other = hook.take_view(view);
        hook.hold = None;
        if is_other {
            globals.forget_endpoint(hook);
        }
        globals.settle(hook, now);
        globals.metrics.hooks.set(i64::try_from(hooks.len()).unwrap_or(i64::MAX));
    }

    /// A Webhook is unknown from now on.
    pub(super) fn remove_hook(&mut self, id: HookId, now: Now) {
        let Some(hook) = self.hooks.get_mut(&id) else { return };
        hook.forget_webhook();
        self.globals.settle(hook, now);
        self.globals.actions.push(Action::Forget(id));
        self.drop_if_removed(id);
    }

    /// Somebody wants a hold or a pause to end now.
    pub(super) fn reload(&mut self, id: HookId, now: Now) {
        let Some(hook) = self.hooks.get_mut(&id) else { return };
        hook.hold = None;
        if hook.paused_until.take().is_some() {
            self.globals.actions.push(Action::Note(id, HookNote::HeldUntil(None)));
        }
        self.globals.settle(hook, now);
    }

    /// The store tells of commits.
    pub(super) fn news(&mut self, news: News, now: Now) {
        match news {
            News::Owed { pos, event, targets } => {
                for target in targets {
                    self.owed(pos, event.as_ref(), target, now);
                }
            }
            News::Late { pos, event, targets } => {
                for target in targets {
                    self.late(pos, event.as_ref(), target, now);
                }
            }
            News::Added { hook: id, from } => self.rows_changed(id, from, now, Globals::read_again),
            News::Changed { hook: id, from } => self.rows_changed(id, from, now, Globals::changed),
            // The shell ends before it comes here.
            News::Failed(_) => {}
        }
    }

    fn rows_changed(&mut self, id: HookId, from: Pos, now: Now, take: fn(&mut Globals, &mut Hook, Pos)) {
        let before = Pos(from.0.saturating_sub(1));
        let hook = self.hooks.entry(id).or_insert_with(|| Hook::unknown(id, before));
        take(&mut self.globals, hook, from);
        hook.probe_not_before = None;
        self.globals.settle(hook, now);
    }

    /// An event is owed: into the window if there is room, else the hook is
    /// spilled.
    fn owed(&mut self, pos: Pos, event: Option<&Arc<Event>>, target: Target, now: Now) {
        let Self { hooks, globals } = self;
        let id = target.hook;
        let hook = hooks.entry(id).or_insert_with(|| Hook::unknown(id, Pos(pos.0.saturating_sub(1))));
        if pos <= hook.cursor {
            // An answer of the store was faster than the news.
            return;
        }
        if !globals.takes_in(hook, target) {
            hook.is_spilled = true;
            hook.spilled_to = hook.spilled_to.max(pos);
            if hook.probe_not_before.take().is_some() || (hook.closed.is_none() && hook.is_known) {
                globals.settle(hook, now);
            }
            return;
        }
        globals.take_in(hook, pos, event, target);
        hook.only_late = false;
        globals.mark_ready(hook);
    }

    /// An event that was accepted before is owed: into the window at its place, if
    /// the window reaches that far, else it is read again from there.
    fn late(&mut self, pos: Pos, event: Option<&Arc<Event>>, target: Target, now: Now) {
        let Self { hooks, globals } = self;
        match hooks.get_mut(&target.hook) {
            // No answer was faster than the news: it is not in memory.
            Some(hook) if globals.takes_in(hook, target) => {
                hook.only_late |= hook.queue.is_empty();
                globals.take_in(hook, pos, event, target);
                globals.mark_ready(hook);
            }
            _ => self.rows_changed(target.hook, pos, now, Globals::read_again),
        }
    }

    /// Fires what is due and starts what may start.
    pub(super) fn step(&mut self, now: Now) {
        while let Some((at, id)) = self.globals.timers.first().copied().filter(|(at, _)| *at <= now.store) {
            self.globals.timers.remove(&(at, id));
            if let Some(hook) = self.hooks.get_mut(&id) {
                hook.timer = None;
                self.globals.settle(hook, now);
            }
        }
        if !self.globals.is_stopping {
            self.ask_questions(now);
            self.serve_rings(now);
        }
        let globals = &self.globals;
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        globals.metrics.in_flight.set(count(globals.flights.len()));
        globals.metrics.window_rows.set(count(globals.rows));
        globals.metrics.window_bytes.set(count(globals.bytes));
        globals.metrics.unrecorded.set(count(globals.unrecorded.len()));
    }

    /// When the next step is due though nothing comes in.
    pub(super) fn next_wake(&self) -> Option<StoreTime> {
        let timer = self.globals.timers.first().map(|(at, _)| *at);
        [timer, self.next_late()].into_iter().flatten().min()
    }

    pub(super) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.globals.actions)
    }

    /// Outcomes to hand to the store; the ticket of that comes back with
    /// [`Engine::handed`].
    pub(super) fn take_outcomes(&mut self) -> Vec<Outcome> {
        std::mem::take(&mut self.globals.outcomes)
    }

    /// These outcomes of hooks, in this order, were handed to the store.
    pub(super) fn handed(&mut self, ticket: RecordTicket, hooks: impl Iterator<Item = HookId>) {
        self.globals.unrecorded.extend(hooks.map(|hook| (ticket, hook)));
    }

    /// Starts nothing any more.
    pub(super) fn stop(&mut self) {
        self.globals.is_stopping = true;
    }

    pub(super) fn flights(&self) -> usize {
        self.globals.flights.len()
    }

    pub(super) fn drop_if_removed(&mut self, id: HookId) {
        let is_over = |hook: &Hook| hook.is_removed && hook.flying.is_empty() && hook.recording.is_empty();
        if self.hooks.get(&id).is_some_and(|hook| is_over(hook))
            && let Some(mut hook) = self.hooks.remove(&id)
        {
            self.globals.unload(&mut hook);
            if let Some(at) = hook.timer {
                self.globals.timers.remove(&(at, id));
            }
            self.globals.count_closed(hook.closed, None);
            self.globals.metrics.hooks.set(i64::try_from(self.hooks.len()).unwrap_or(i64::MAX));
        }
    }
}

impl Globals {
    /// Whether rows that the store tells of go straight into a hook's window: all
    /// up to its cursor is there, it has room, and the store alone knows the
    /// numbers of ordering keys.
    fn takes_in(&self, hook: &Hook, target: Target) -> bool {
        let is_open = hook.closed.is_none() && hook.is_known && !hook.is_spilled && !self.is_stopping;
        is_open && hook.queue.len() < self.window_rows() && hook.keys.is_none() && !target.is_ordered
    }

    /// Takes a row into the window, with its event if there is room for it.
    fn take_in(&mut self, hook: &mut Hook, pos: Pos, event: Option<&Arc<Event>>, target: Target) {
        let row = OwedRow { pos, sub: target.sub, key: None, tries: 0, shape: None };
        let mut item = Item::new(row, Origin::Owed);
        if hook.trust != Trust::Suspect
            && let Some(event) = event
            && self.bytes.saturating_add(event.memory_bytes()) <= CACHED_BYTES_MAX
        {
            item.event = Some(Arc::clone(event));
        }
        hook.cursor = hook.cursor.max(pos);
        self.count_in(&item);
        let at = hook.queue.partition_point(|other| other.row.pos < pos);
        hook.queue.insert(at, item);
    }

    /// Brings a hook in order after whatever happened to it.
    pub(super) fn settle(&mut self, hook: &mut Hook, now: Now) {
        if hook.hold.as_ref().is_some_and(|hold| hold.until.is_some_and(|until| until <= now.store)) {
            hook.hold = None;
        }
        hook.paused_until = hook.paused_until.filter(|until| *until > now.store);
        hook.rate_at = hook.rate_at.filter(|at| *at > now.store);
        let closed = hook.judge_closed(now.store);
        if closed != hook.closed {
            if closed.is_some() {
                self.unload(hook);
            }
            self.count_closed(hook.closed, closed);
            hook.closed = closed;
        }
        if hook.keys.as_ref().is_some_and(|keys| keys.wants_reload()) {
            self.unload(hook);
        }
        if hook.is_known && !hook.settings.is_ordered && hook.keys.as_ref().is_some_and(|keys| keys.is_over()) {
            hook.keys = None;
        }
        self.refresh_health(hook, now);
        if !hook.in_questions && !self.is_stopping && super::questions::wanted(self, hook, now.store).is_some() {
            hook.in_questions = true;
            self.questions.push_back(hook.id);
        }
        self.mark_ready(hook);
        // What is due already was taken up above, or waits for something that
        // settles the hook again.
        self.set_timer(hook, hook.next_timer().filter(|at| *at > now.store));
    }

    /// Starts an attempt. What has been owed for too long is the store's matter:
    /// it alone knows since when a replayed Delivery is owed.
    pub(super) fn start(&mut self, hook: &mut Hook, item: Item, is_probe: bool, now: Now) {
        let Item { row, event, origin, .. } = item;
        let (Some(event), Some(webhook)) = (event, hook.webhook.clone()) else {
            self.reread(hook, row.pos, origin);
            return;
        };
        if row.tries == 0 && !is_probe {
            let waited = f64::from(u32::try_from(now.store.0 - event.at.0).unwrap_or_default());
            self.metrics.first_attempt_seconds.observe(waited / 1_000.0);
        }
        let (is_suspect, is_late) = (hook.trust == Trust::Suspect, hook.is_late());
        self.suspects += usize::from(is_suspect);
        self.late_flights += usize::from(is_late);
        if is_late {
            self.late_pace.late_started()
        } else {
            self.late_pace.live_started(now.store)
        }
        self.last_flight += 1;
        hook.flying.push(row.pos);
        let (view, endpoint) = (hook.view, hook.endpoint);
        let flight = Flight { hook: hook.id, row, origin, is_probe, is_suspect, is_late, view, endpoint };
        self.flights.insert(self.last_flight, flight);
        let (namespace, withdrawn) = (Arc::clone(&hook.namespace), hook.withdrawn);
        let job = AttemptJob { hook: hook.id, namespace, webhook, withdrawn, event, shape: row.shape };
        self.actions.push(Action::Attempt(self.last_flight, Box::new(job)));
    }

    /// Takes everything of a hook that is not in flight out of memory.
    pub(super) fn unload(&mut self, hook: &mut Hook) {
        let freed = hook.unload();
        self.free(freed);
    }

    pub(super) fn count_in(&mut self, item: &Item) {
        self.rows += 1;
        self.bytes += item.bytes();
    }

    pub(super) fn count_out(&mut self, item: &Item) {
        self.free((1, item.bytes()));
    }

    pub(super) fn free(&mut self, (rows, bytes): (usize, usize)) {
        self.rows -= rows;
        self.bytes -= bytes;
    }

    /// Rows that a hook may have in its queue.
    pub(super) const fn window_rows(&self) -> usize {
        if self.rows < ROWS_CROWDED { self.window } else { WINDOW_ROWS_CROWDED }
    }

    pub(super) fn unrecorded_len(&self) -> usize {
        self.unrecorded.len() + self.outcomes.len()
    }

    fn set_timer(&mut self, hook: &mut Hook, at: Option<StoreTime>) {
        if hook.timer == at {
            return;
        }
        if let Some(old) = hook.timer {
            self.timers.remove(&(old, hook.id));
        }
        if let Some(at) = at {
            self.timers.insert((at, hook.id));
        }
        hook.timer = at;
    }

    fn count_closed(&self, old: Option<Closed>, new: Option<Closed>) {
        for (closed, change) in [(old, -1), (new, 1)] {
            if let Some(closed) = closed {
                self.metrics.held.get_or_create(&closed.label()).inc_by(change);
            }
        }
    }
}

/// A store time and a duration; saturates.
pub(super) fn plus(time: StoreTime, duration: std::time::Duration) -> StoreTime {
    time.plus_ms(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX))
}
