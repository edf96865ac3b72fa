//! Whose counters and health may be written when. Pure: time is an argument.
//!
//! All Webhooks together get [`WRITES_PER_SECOND`]. What people and tools act
//! upon goes first; counters follow, the longest waiting first, each Webhook's at
//! most every [`COUNTER_INTERVAL`]. So the interval stretches by itself with the
//! number of Webhooks that have traffic, and without traffic nothing is written.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use super::told::{Difference, Told};
use crate::{controller::key::ObjectKey, wire::deliveries::DeliveriesEntry};

/// Writes a second in the whole cluster.
pub const WRITES_PER_SECOND: f64 = 5.0;
/// Writes at once after a time without any.
pub const WRITES_BURST: f64 = 5.0;
/// Shortest time between two writes of a Webhook's counters.
pub const COUNTER_INTERVAL: Duration = Duration::from_secs(15);
/// Shortest time between two writes of a Webhook's transitions: one that flaps
/// must not use up what others need.
pub const TRANSITION_INTERVAL: Duration = Duration::from_secs(5);
/// For so long the counters of a Webhook that was quiet wait for more.
pub const COUNTER_DELAY: Duration = Duration::from_secs(1);

/// Which queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Transitions,
    Counters,
}

/// A Webhook that a pod told of.
#[derive(Debug)]
struct Slot {
    newest: Arc<DeliveriesEntry>,
    /// What may be written; none until it is known to differ from the status.
    released: Option<Arc<DeliveriesEntry>>,
    /// What the status tells, once the released entry is written.
    told: Told,
    released_at: Option<Instant>,
    waits: Option<(Lane, Instant)>,
}

/// The queues.
#[derive(Debug, Default)]
pub struct Schedule {
    slots: HashMap<ObjectKey, Slot>,
    transitions: BTreeSet<(Instant, ObjectKey)>,
    counters: BTreeSet<(Instant, ObjectKey)>,
    budget: Option<Budget>,
}

/// Writes that are left.
#[derive(Clone, Copy, Debug)]
struct Budget {
    writes: f64,
    at: Instant,
}

impl Schedule {
    /// Takes in what a pod told. `status` is what the Webhook's status tells, and
    /// is asked only for a Webhook that is not known yet.
    pub fn offer(&mut self, key: ObjectKey, entry: DeliveriesEntry, status: impl FnOnce() -> Told, now: Instant) {
        let known = self.take(&key).filter(|slot| slot.newest.uid == entry.uid);
        let newest = Arc::new(entry);
        let told_newest = Told::of_entry(&newest);
        let (told, mut released, released_at, waited) = match known {
            Some(Slot { newest: _, released, told, released_at, waits }) => (told, released, released_at, waits),
            None => (status(), None, None, None),
        };
        let earliest = |interval: Duration| released_at.map_or(now, |at: Instant| (at + interval).max(now));
        let waits = match told.difference(&told_newest) {
            Difference::None => {
                released = Some(Arc::clone(&newest));
                None
            }
            Difference::Transition => Some((Lane::Transitions, earliest(TRANSITION_INTERVAL))),
            Difference::Counters => Some((Lane::Counters, earliest(COUNTER_INTERVAL).max(now + COUNTER_DELAY))),
        };
        // What waits already does not begin to wait anew.
        let waits = waits.map(|(lane, due)| match waited {
            Some((before, since)) if before == lane => (lane, due.min(since)),
            _ => (lane, due),
        });
        if let Some((lane, due)) = waits {
            self.lane(lane).insert((due, key.clone()));
        }
        self.slots.insert(key, Slot { newest, released, told, released_at, waits });
    }

    /// The Webhooks whose newest state may be written now.
    pub fn release(&mut self, now: Instant) -> Vec<ObjectKey> {
        let mut writes = self.budget.map_or(WRITES_BURST, |budget| {
            let gained = now.saturating_duration_since(budget.at).as_secs_f64() * WRITES_PER_SECOND;
            (budget.writes + gained).min(WRITES_BURST)
        });
        let mut released = Vec::new();
        while writes >= 1.0
            && let Some(key) = pop_due(&mut self.transitions, now).or_else(|| pop_due(&mut self.counters, now))
        {
            writes -= 1.0;
            if let Some(slot) = self.slots.get_mut(&key) {
                slot.told = Told::of_entry(&slot.newest);
                slot.released = Some(Arc::clone(&slot.newest));
                slot.released_at = Some(now);
                slot.waits = None;
            }
            released.push(key);
        }
        self.budget = Some(Budget { writes, at: now });
        released
    }

    /// What may be written of this Webhook.
    pub fn released(&self, key: &ObjectKey, uid: &str) -> Option<Arc<DeliveriesEntry>> {
        self.slots.get(key)?.released.clone().filter(|entry| entry.uid == uid)
    }

    /// Forgets a Webhook.
    pub fn forget(&mut self, key: &ObjectKey) {
        self.take(key);
    }

    /// Takes a Webhook out of everything.
    fn take(&mut self, key: &ObjectKey) -> Option<Slot> {
        let slot = self.slots.remove(key)?;
        if let Some((lane, due)) = slot.waits {
            self.lane(lane).remove(&(due, key.clone()));
        }
        Some(slot)
    }

    fn lane(&mut self, lane: Lane) -> &mut BTreeSet<(Instant, ObjectKey)> {
        match lane {
            Lane::Transitions => &mut self.transitions,
            Lane::Counters => &mut self.counters,
        }
    }

    /// Forgets the Webhooks that do not exist.
    pub fn sweep(&mut self, exists: impl Fn(&ObjectKey) -> bool) {
        let gone: Vec<_> = self.slots.keys().filter(|key| !exists(key)).cloned().collect();
        gone.iter().for_each(|key| self.forget(key));
    }
}

fn pop_due(queue: &mut BTreeSet<(Instant, ObjectKey)>, now: Instant) -> Option<ObjectKey> {
    if queue.first().is_none_or(|(due, _)| *due > now) {
        return None;
    }
    queue.pop_first().map(|(_, key)| key)
}

#[cfg(test)]
mod tests {
    use super::{
        super::told::tests::{entry, failing},
        *,
    };
    use crate::runtime::clock;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("n", name)
    }

    struct World {
        schedule: Schedule,
        start: Instant,
        now: Duration,
    }

    impl World {
        fn new() -> Self {
            Self { schedule: Schedule::default(), start: clock::monotonic(), now: Duration::ZERO }
        }

        fn offer(&mut self, entry: DeliveriesEntry) {
            self.schedule.offer(key(&entry.name.clone()), entry, Told::default, self.start + self.now);
        }

        fn release(&mut self) -> Vec<String> {
            let released = self.schedule.release(self.start + self.now);
            released.into_iter().map(|key| key.name.into_string()).collect()
        }

        fn pass(&mut self, milliseconds: u64) -> &mut Self {
            self.now += Duration::from_millis(milliseconds);
            self
        }
    }

    /// A status that tells of `a` as `entry` does.
    fn settled(entry: &DeliveriesEntry) -> World {
        let mut world = World::new();
        let told = Told::of_entry(entry);
        world.schedule.offer(key("a"), entry.clone(), || told, world.start);
        world
    }

    #[test]
    fn what_the_status_tells_already_causes_no_write() {
        let mut world = settled(&entry("a", 5));
        assert!(world.pass(60_000).release().is_empty());
        world.offer(entry("a", 5));
        assert!(world.pass(60_000).release().is_empty());
        assert_eq!(world.schedule.released(&key("a"), "u").unwrap().delivered, 5);
    }

    #[test]
    fn counters_of_a_webhook_are_written_every_fifteen_seconds_at_most() {
        let mut world = settled(&entry("a", 0));
        let mut times = Vec::new();
        for step in 0..400 {
            world.offer(entry("a", step + 1));
            if !world.pass(100).release().is_empty() {
                times.push(world.now.as_millis());
            }
        }
        assert_eq!(times, [1_000, 16_000, 31_000]);
    }

    #[test]
    fn counters_that_are_as_they_were_are_not_written_any_more() {
        let mut world = settled(&entry("a", 0));
        world.offer(entry("a", 1));
        world.offer(entry("a", 0));
        assert!(world.pass(60_000).release().is_empty());
    }

    #[test]
    fn a_transition_is_told_at_once_and_a_flap_every_five_seconds_at_most() {
        let mut world = settled(&entry("a", 0));
        world.offer(failing("a", 0));
        assert_eq!(world.release(), ["a"]);
        world.pass(100).offer(entry("a", 0));
        assert!(world.release().is_empty());
        assert_eq!(world.pass(4_900).release(), ["a"]);
        assert_eq!(world.schedule.released(&key("a"), "u").unwrap().health, entry("a", 0).health);
    }

    #[test]
    fn transitions_go_before_counters() {
        let mut world = World::new();
        for n in 0..20 {
            let name = format!("counter-{n}");
            let told = Told::of_entry(&entry(&name, 0));
            world.schedule.offer(key(&name), entry(&name, 1), || told, world.start);
        }
        world.pass(2_000).offer(failing("down", 0));
        let released = world.release();
        assert_eq!((released.len(), released[0].as_str()), (5, "down"));
    }

    #[test]
    fn ten_thousand_busy_webhooks_get_five_writes_a_second_and_each_its_turn() {
        let mut world = World::new();
        for n in 0..10_000 {
            world.offer(entry(&n.to_string(), 1));
        }
        let mut told = HashMap::<String, u32>::new();
        for step in 0..20_000 {
            for name in world.pass(200).release() {
                // It goes on at once, like all the others.
                world.offer(entry(&name, 2 + step));
                *told.entry(name).or_default() += 1;
            }
        }
        let writes: u32 = told.values().sum();
        assert!((19_900..=20_005).contains(&writes), "{writes} writes in 4,000 s");
        assert_eq!(told.len(), 10_000, "nobody starves");
        assert!(told.values().all(|count| *count <= 3), "the interval stretches for all alike");
    }

    #[test]
    fn a_long_silence_does_not_save_up_writes() {
        let mut world = World::new();
        world.release();
        world.pass(3_600_000);
        for n in 0..50 {
            world.offer(failing(&n.to_string(), 1));
        }
        assert_eq!(world.release().len(), 5);
        assert_eq!(world.pass(1_000).release().len(), 5);
    }

    #[test]
    fn a_namesake_begins_with_its_own_status() {
        let mut world = settled(&entry("a", 5));
        let second = DeliveriesEntry { uid: "v".into(), ..entry("a", 5) };
        world.offer(second);
        assert!(world.schedule.released(&key("a"), "u").is_none());
        assert!(world.schedule.released(&key("a"), "v").is_none(), "its status tells nothing yet");
        assert_eq!(world.pass(1_000).release(), ["a"]);
        assert_eq!(world.schedule.released(&key("a"), "v").unwrap().delivered, 5);
    }

    #[test]
    fn what_is_forgotten_leaves_nothing_behind() {
        let mut world = World::new();
        world.offer(entry("a", 1));
        world.offer(failing("b", 1));
        world.schedule.forget(&key("a"));
        world.schedule.sweep(|_| false);
        let Schedule { slots, transitions, counters, budget: _ } = &world.schedule;
        assert!(slots.is_empty() && transitions.is_empty() && counters.is_empty());
        assert!(world.pass(60_000).release().is_empty());
    }
}
