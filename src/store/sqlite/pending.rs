//! Outcomes that wait for the writer, in their order, and the tickets that tell
//! when they are durable.

use std::collections::VecDeque;

use crate::store::{Outcome, RecordTicket};

/// Outcomes that are not durable yet, but for those of the transaction under way.
#[derive(Default)]
pub(super) struct Pending {
    outcomes: VecDeque<Outcome>,
    /// Tickets that are not durable, each with the number of the outcome behind
    /// its last one.
    ends: VecDeque<(RecordTicket, u64)>,
    ticket: RecordTicket,
    /// How many there were ever, and how many of them are durable.
    pushed: u64,
    durable: u64,
}

impl Pending {
    /// Puts outcomes behind the others.
    pub(super) fn push(&mut self, outcomes: Vec<Outcome>) -> RecordTicket {
        self.ticket.0 += 1;
        self.pushed += outcomes.len() as u64;
        self.outcomes.extend(outcomes);
        self.ends.push_back((self.ticket, self.pushed));
        self.ticket
    }

    /// Takes the first ones.
    pub(super) fn take(&mut self, most: usize) -> Vec<Outcome> {
        let count = most.min(self.outcomes.len());
        self.outcomes.drain(..count).collect()
    }

    /// What was taken last was rolled back: it is first again. What an endpoint
    /// answered in detail is dropped of all that waits, so that many can wait.
    pub(super) fn put_back(&mut self, outcomes: Vec<Outcome>) {
        for outcome in outcomes.into_iter().rev() {
            self.outcomes.push_front(outcome);
        }
        for attempt in self.outcomes.iter_mut().filter_map(|outcome| outcome.attempt.as_mut()) {
            attempt.detail = None;
        }
    }

    /// So many of those that were taken are durable; gives the last ticket that is,
    /// if it is another one than before.
    pub(super) fn recorded(&mut self, count: usize) -> Option<RecordTicket> {
        self.durable += count as u64;
        let mut last = None;
        while let Some((ticket, _)) = self.ends.front().copied().filter(|(_, end)| *end <= self.durable) {
            self.ends.pop_front();
            last = Some(ticket);
        }
        last
    }

    /// The end: nothing of them is recorded any more.
    pub(super) fn clear(&mut self) {
        self.outcomes.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.outcomes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::Pos,
        store::{HookId, Next},
    };

    fn outcome(pos: u64) -> Outcome {
        Outcome { hook: HookId(1), pos: Pos(pos), tries: 0, attempt: None, next: Next::Done }
    }

    fn positions(outcomes: &[Outcome]) -> Vec<u64> {
        outcomes.iter().map(|outcome| outcome.pos.0).collect()
    }

    #[test]
    fn a_ticket_is_durable_when_the_last_of_its_outcomes_is() {
        let mut pending = Pending::default();
        let first = pending.push((0..3).map(outcome).collect());
        let second = pending.push((3..5).map(outcome).collect());
        let empty = pending.push(Vec::new());
        assert_eq!(positions(&pending.take(2)), [0, 1]);
        assert_eq!(pending.recorded(2), None);
        assert_eq!(positions(&pending.take(2)), [2, 3]);
        assert_eq!(pending.recorded(2), Some(first));
        assert_eq!(positions(&pending.take(2)), [4]);
        assert_eq!(pending.recorded(1), Some(empty), "and with it {second:?}");
        assert_eq!(pending.recorded(0), None);
    }

    #[test]
    fn what_was_rolled_back_is_first_again() {
        let mut pending = Pending::default();
        let ticket = pending.push((0..4).map(outcome).collect());
        let taken = pending.take(3);
        pending.put_back(taken);
        assert_eq!(pending.recorded(0), None);
        assert_eq!(positions(&pending.take(9)), [0, 1, 2, 3]);
        assert_eq!(pending.recorded(4), Some(ticket));
        assert!(pending.is_empty());
    }
}
