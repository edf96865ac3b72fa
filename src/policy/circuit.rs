//! The circuit of a Webhook: when to stop knocking at an endpoint that is down,
//! when to look again, and how to come back.
//!
//! - **Closed**: failures in a row are counted. It opens at the limit if they come
//!   from at least [`DELIVERIES_MIN`] Deliveries over at least [`SPAN_MIN`]: one
//!   event that an endpoint cannot digest, or one bad second, opens nothing.
//! - **Open**: nothing is sent but a probe after 30 s × 2ⁿ, at most 5 min.
//! - **Closing**: after a probe that succeeded, 1, 2, 4, 8 requests may run at
//!   once; each step takes as many successes. A failure opens it again, and the
//!   waits go on where they were.
//!
//! Only failures that speak of the endpoint count ([`counts`], and what never
//! came to an answer); another answer neither counts nor ends the row.

use std::{fmt::Write, time::Duration};

/// Deliveries that must have failed at least.
pub const DELIVERIES_MIN: usize = 5;
/// Time that the failures must span at least: 1 min.
pub const SPAN_MIN: Duration = Duration::from_secs(60);
/// Wait before the first probe: 30 s.
pub const PROBE_FIRST: Duration = Duration::from_secs(30);
/// Wait before a probe at most: 5 min.
pub const PROBE_MAX: Duration = Duration::from_secs(300);
/// With this many at once the circuit closes.
pub const RAMP_LAST: u16 = 8;

/// Whether a status code other than 2xx speaks of the endpoint, not of one event.
pub const fn counts(code: u16) -> bool {
    matches!(code, 408 | 429 | 500..=599)
}

/// A circuit. Times are milliseconds of the store's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Circuit {
    /// Failures in a row that count.
    Closed(Row),
    /// Nothing is sent before the next probe.
    Open {
        /// Probes that failed since it opened first.
        failed_probes: u8,
        /// When the next one may be made.
        probe_at_ms: i64,
    },
    /// On the way back.
    Closing {
        /// As in `Open`, in case that it opens again.
        failed_probes: u8,
        /// Requests that may run at once.
        at_once: u16,
        /// Successes of this step.
        successes: u16,
    },
}

/// Failures in a row.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Row {
    failures: u16,
    first_ms: i64,
    /// Different Deliveries, as far as they need to be told apart.
    deliveries: [u64; DELIVERIES_MIN],
    different: u8,
}

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Nothing that needs to be stored.
    None,
    /// Into or inside Open, into Closing, or into Closed: store it.
    Changed,
}

impl Default for Circuit {
    fn default() -> Self {
        Self::Closed(Row::default())
    }
}

impl Circuit {
    /// A failure that counts, of this Delivery. `limit` 0: it never opens.
    pub fn failed(&mut self, delivery: u64, now_ms: i64, limit: u16) -> Transition {
        match self {
            Self::Closed(row) => {
                row.add(delivery, now_ms);
                if limit == 0 || !row.is_enough(now_ms, limit) {
                    return Transition::None;
                }
                *self = Self::open(0, now_ms);
            }
            // Of an attempt that began before it opened: known already.
            Self::Open { .. } => return Transition::None,
            Self::Closing { failed_probes, .. } => {
                *self = Self::open(failed_probes.saturating_add(1), now_ms);
            }
        }
        Transition::Changed
    }

    /// The probe failed.
    pub fn probe_failed(&mut self, now_ms: i64) -> Transition {
        let Self::Open { failed_probes, .. } = self else { return Transition::None };
        *self = Self::open(failed_probes.saturating_add(1), now_ms);
        Transition::Changed
    }

    /// An attempt succeeded; a probe among them.
    pub fn succeeded(&mut self) -> Transition {
        match self {
            Self::Closed(row) => {
                if row.failures > 0 {
                    *row = Row::default();
                }
                Transition::None
            }
            Self::Open { failed_probes, .. } => {
                *self = Self::Closing { failed_probes: *failed_probes, at_once: 1, successes: 0 };
                Transition::Changed
            }
            Self::Closing { at_once, successes, .. } => {
                *successes += 1;
                if *successes < *at_once {
                    return Transition::None;
                }
                if *at_once >= RAMP_LAST {
                    *self = Self::default();
                    return Transition::Changed;
                }
                (*at_once, *successes) = (*at_once * 2, 0);
                Transition::None
            }
        }
    }

    /// Requests that may run at once; none: no limit by the circuit.
    pub const fn at_once(&self) -> Option<u16> {
        match self {
            Self::Closed(_) => None,
            Self::Open { .. } => Some(0),
            Self::Closing { at_once, .. } => Some(*at_once),
        }
    }

    /// When the next probe may be made, if it is open.
    pub const fn probe_at_ms(&self) -> Option<i64> {
        match self {
            Self::Open { probe_at_ms, .. } => Some(*probe_at_ms),
            Self::Closed(_) | Self::Closing { .. } => None,
        }
    }

    /// Whether nothing needs to be remembered.
    pub fn is_fresh(&self) -> bool {
        matches!(self, Self::Closed(row) if row.failures == 0)
    }

    /// For the store; none: closed.
    ///
    /// # Format
    /// `open <failed probes> <time of the next one>` or `closing <failed probes>`.
    pub fn to_text(&self) -> Option<String> {
        let mut text = String::new();
        let written = match self {
            Self::Closed(_) => return None,
            Self::Open { failed_probes, probe_at_ms } => write!(text, "open {failed_probes} {probe_at_ms}"),
            Self::Closing { failed_probes, .. } => write!(text, "closing {failed_probes}"),
        };
        written.ok().map(|()| text)
    }

    /// From the store. What it does not understand, for instance of another
    /// version, is a closed circuit.
    pub fn from_text(text: &str) -> Self {
        let mut words = text.split(' ');
        match (words.next(), words.next().and_then(|n| n.parse().ok()), words.next()) {
            (Some("open"), Some(failed_probes), Some(at)) => {
                at.parse().map_or_else(|_| Self::default(), |probe_at_ms| Self::Open { failed_probes, probe_at_ms })
            }
            (Some("closing"), Some(failed_probes), None) => Self::Closing { failed_probes, at_once: 1, successes: 0 },
            _ => Self::default(),
        }
    }

    fn open(failed_probes: u8, now_ms: i64) -> Self {
        let doubled = PROBE_FIRST.saturating_mul(1 << failed_probes.min(8));
        let wait_ms = i64::try_from(doubled.min(PROBE_MAX).as_millis()).unwrap_or(i64::MAX);
        Self::Open { failed_probes, probe_at_ms: now_ms.saturating_add(wait_ms) }
    }
}

impl Row {
    fn add(&mut self, delivery: u64, now_ms: i64) {
        if self.failures == 0 {
            self.first_ms = now_ms;
        }
        self.failures = self.failures.saturating_add(1);
        let known = usize::from(self.different);
        if self.deliveries.iter().take(known).all(|known| *known != delivery)
            && let Some(free) = self.deliveries.get_mut(known)
        {
            *free = delivery;
            self.different += 1;
        }
    }

    fn is_enough(&self, now_ms: i64, limit: u16) -> bool {
        let span_ms = u128::try_from(now_ms.saturating_sub(self.first_ms)).unwrap_or_default();
        self.failures >= limit && usize::from(self.different) >= DELIVERIES_MIN && span_ms >= SPAN_MIN.as_millis()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn opened_at(now_ms: i64) -> Circuit {
        let mut circuit = Circuit::default();
        for delivery in 0..20 {
            circuit.failed(delivery, now_ms - 60_000, 20);
        }
        assert_eq!(circuit.failed(99, now_ms, 20), Transition::Changed);
        circuit
    }

    #[test]
    fn it_opens_at_the_limit_of_failures_deliveries_and_time_and_not_before() {
        // (failures, different Deliveries, span in ms) and whether it is open.
        for (failures, different, span_ms, expected) in
            [(20, 5, 60_000, true), (19, 5, 60_000, false), (20, 4, 60_000, false), (20, 5, 59_999, false)]
        {
            let mut circuit = Circuit::default();
            for n in 0..failures - 1 {
                circuit.failed(n % different, 1_000, 20);
            }
            circuit.failed(0, 1_000 + span_ms, 20);
            assert_eq!(circuit.probe_at_ms().is_some(), expected, "{failures} {different} {span_ms}");
        }
    }

    #[test]
    fn a_success_begins_the_row_anew_and_limit_0_never_opens() {
        let mut circuit = Circuit::default();
        for delivery in 0..1_000 {
            circuit.failed(delivery, i64::try_from(delivery).unwrap() * 1_000, 0);
        }
        assert_eq!(circuit.at_once(), None);
        circuit.succeeded();
        assert!(circuit.is_fresh());
    }

    #[test]
    fn probes_come_after_30_s_doubled_up_to_5_minutes() {
        let mut circuit = opened_at(100_000);
        let mut now_ms = 100_000;
        for wait_s in [30, 60, 120, 240, 300, 300, 300] {
            assert_eq!(circuit.probe_at_ms(), Some(now_ms + wait_s * 1_000));
            now_ms += wait_s * 1_000;
            assert_eq!(circuit.probe_failed(now_ms), Transition::Changed);
        }
    }

    #[test]
    fn closing_ramps_up_1_2_4_8() {
        let mut circuit = opened_at(100_000);
        assert_eq!((circuit.at_once(), circuit.succeeded()), (Some(0), Transition::Changed));
        for (step, last) in [(1, false), (2, false), (4, false), (8, true)] {
            for success in 1..=step {
                assert_eq!(circuit.at_once(), Some(step));
                let ends = last && success == step;
                assert_eq!(circuit.succeeded(), if ends { Transition::Changed } else { Transition::None });
            }
        }
        assert!(circuit.is_fresh());
    }

    #[test]
    fn a_failure_while_closing_opens_again_and_waits_longer() {
        let mut circuit = opened_at(0);
        circuit.probe_failed(30_000);
        circuit.succeeded();
        assert_eq!(circuit.failed(1, 100_000, 20), Transition::Changed);
        assert_eq!(circuit.probe_at_ms(), Some(100_000 + 120_000));
    }

    #[test]
    fn only_answers_that_speak_of_the_endpoint_count() {
        for (code, expected) in
            [(408, true), (429, true), (500, true), (599, true), (400, false), (410, false), (301, false), (600, false)]
        {
            assert_eq!(counts(code), expected, "{code}");
        }
    }

    proptest! {
        #[test]
        fn texts_of_the_store_come_back_and_others_are_closed(text: String, probes: u8, at: i64) {
            for circuit in [
                Circuit::Open { failed_probes: probes, probe_at_ms: at },
                Circuit::Closing { failed_probes: probes, at_once: 1, successes: 0 },
            ] {
                prop_assert_eq!(Circuit::from_text(&circuit.to_text().unwrap()), circuit);
            }
            if !text.starts_with("open ") && !text.starts_with("closing ") {
                prop_assert!(Circuit::from_text(&text).is_fresh());
            }
        }

        #[test]
        fn an_open_circuit_always_has_a_probe_within_5_minutes(events in prop::collection::vec(0u8..3, 0..200)) {
            let (mut circuit, mut now_ms) = (Circuit::default(), 0);
            for (n, event) in (0u64..).zip(events) {
                now_ms += 10_000;
                match event {
                    0 => circuit.failed(n, now_ms, 3),
                    1 => circuit.succeeded(),
                    _ => circuit.probe_failed(now_ms),
                };
                if let Some(at) = circuit.probe_at_ms() {
                    prop_assert!(at <= now_ms + 300_000);
                }
            }
        }
    }
}
