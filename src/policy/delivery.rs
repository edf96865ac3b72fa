//! `Webhook.spec.delivery`, with its defaults filled in.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::api::{
    duration::Gep2257Duration,
    webhook::{Dialect, WebhookSpec},
    webhook_delivery::{Backoff, Circuit, DeadLetterPolicy, DeliveryOrder, DeliveryPolicy, OnDead, RateLimit, Retry},
};

/// How a Webhook wants to be delivered to. The store keeps it in this form for
/// times without the API server: a new field needs a `serde(default)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliverySettings {
    /// Time that one attempt may take in all.
    pub timeout: Duration,
    /// When failed attempts are repeated.
    pub retry: RetryPlan,
    /// Random part of every interval, from 0 to 0.5.
    pub jitter: f64,
    /// How many requests may start in a period.
    pub rate: Option<Rate>,
    /// How many requests may run at once.
    pub concurrency: u16,
    /// Failures in a row that open the circuit; 0: it never opens.
    pub circuit_failures: u16,
    /// How long an event is owed.
    pub max_age: Duration,
    /// Status codes that are not worth a retry.
    pub dead_on: Vec<u16>,
    /// Deliveries with the same key go one after the other.
    pub is_ordered: bool,
    /// A dead Delivery blocks its key until it is replayed or dismissed.
    pub blocks_on_dead: bool,
    /// Cards at most.
    pub cards_max: u16,
    /// How long a card is kept.
    pub card_ttl: Duration,
}

/// When failed attempts are repeated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RetryPlan {
    /// After these intervals.
    Schedule(Vec<Duration>),
    /// After intervals that grow by a factor.
    Backoff {
        /// The first interval.
        initial: Duration,
        /// What each is multiplied by to give the next.
        factor: u32,
        /// The longest interval.
        max: Duration,
        /// Attempts in all, the first one included.
        attempts: u16,
    },
}

/// So many requests in a period.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Requests.
    pub requests: u32,
    /// The period.
    pub per: Duration,
}

impl Default for DeliverySettings {
    fn default() -> Self {
        Self {
            timeout: TIMEOUT_DEFAULT,
            retry: RetryPlan::Schedule(SCHEDULE_DEFAULT.into()),
            jitter: f64::from(JITTER_PERCENT_DEFAULT) / 100.0,
            rate: None,
            concurrency: CONCURRENCY_DEFAULT,
            circuit_failures: CIRCUIT_FAILURES_DEFAULT,
            max_age: MAX_AGE_DEFAULT,
            dead_on: Vec::new(),
            is_ordered: false,
            blocks_on_dead: false,
            cards_max: CARDS_MAX,
            card_ttl: CARD_TTL_DEFAULT,
        }
    }
}

impl DeliverySettings {
    /// The settings of a Webhook. What the schema would refuse is brought into
    /// its limits: objects may be older than a rule.
    pub fn compile(spec: &WebhookSpec) -> Self {
        let dialect = spec.effective_dialect();
        let mut settings = Self::default();
        match dialect {
            Dialect::Analytics => settings.circuit_failures = 0,
            Dialect::CloudEvents => settings.dead_on = vec![CLOUD_EVENTS_DEAD_ON],
            _ => {}
        }
        if let Some(policy) = &spec.delivery {
            settings.apply(policy);
        }
        if let Some(DeadLetterPolicy { limit, ttl }) = &spec.dead_letter {
            settings.cards_max = limit.map_or(settings.cards_max, |limit| within(limit, 0, CARDS_MAX));
            settings.card_ttl = ttl.map_or(settings.card_ttl, |ttl| ttl.as_std().clamp(MINUTE, MONTH));
        }
        settings
    }

    /// The settings of a Webhook, shared: Webhooks with the settings of their
    /// dialect have one copy for all, others one of their own.
    pub fn shared(spec: &WebhookSpec) -> Arc<Self> {
        static COMMON: LazyLock<[Arc<DeliverySettings>; 3]> = LazyLock::new(|| {
            let plain = DeliverySettings::default();
            let analytics = DeliverySettings { circuit_failures: 0, ..plain.clone() };
            let cloud_events = DeliverySettings { dead_on: vec![CLOUD_EVENTS_DEAD_ON], ..plain.clone() };
            [plain, analytics, cloud_events].map(Arc::new)
        });
        let settings = Self::compile(spec);
        COMMON.iter().find(|common| ***common == settings).map_or_else(|| Arc::new(settings), Arc::clone)
    }

    fn apply(&mut self, policy: &DeliveryPolicy) {
        let DeliveryPolicy {
            timeout,
            retry,
            jitter_percent,
            rate_limit,
            concurrency,
            order,
            on_dead,
            circuit,
            max_age,
            dead_on,
        } = policy;
        self.is_ordered = *order == Some(DeliveryOrder::Key);
        self.blocks_on_dead = self.is_ordered && *on_dead == Some(OnDead::Block);
        if let Some(timeout) = timeout {
            self.timeout = timeout.as_std().clamp(SECOND, TIMEOUT_MAX);
        }
        if let Some(plan) = retry.as_ref().and_then(RetryPlan::compile) {
            self.retry = plan;
        }
        if let Some(percent) = jitter_percent {
            self.jitter = f64::from(within(*percent, 0, JITTER_PERCENT_MAX)) / 100.0;
        }
        if let Some(RateLimit { rate, per }) = rate_limit {
            let requests = u32::try_from(*rate).unwrap_or_default().clamp(1, RATE_MAX);
            self.rate = Some(Rate { requests, per: per.as_std().clamp(SECOND, HOUR) });
        }
        if let Some(concurrency) = concurrency {
            self.concurrency = within(*concurrency, 1, CONCURRENCY_MAX);
        }
        if let Some(Circuit { failures }) = circuit {
            self.circuit_failures = within(*failures, 0, CIRCUIT_FAILURES_MAX);
        }
        if let Some(max_age) = max_age {
            self.max_age = max_age.as_std().clamp(MINUTE, MONTH);
        }
        if !dead_on.is_empty() {
            self.dead_on = dead_on.iter().filter_map(|code| u16::try_from(*code).ok()).take(DEAD_ON_MAX).collect();
        }
    }
}

impl RetryPlan {
    /// None if nothing is written.
    fn compile(retry: &Retry) -> Option<Self> {
        let interval = |duration: &Gep2257Duration| duration.as_std().clamp(INTERVAL_MIN, DAY);
        match (&retry.schedule, &retry.backoff) {
            (Some(schedule), _) => Some(Self::Schedule(schedule.iter().take(SCHEDULE_MAX).map(interval).collect())),
            (None, Some(Backoff { initial, factor, max, attempts })) => Some(Self::Backoff {
                initial: interval(initial),
                factor: factor.map_or(FACTOR_DEFAULT, |factor| within(factor, 1, FACTOR_MAX).into()),
                max: interval(max).max(interval(initial)),
                attempts: within(*attempts, 1, ATTEMPTS_MAX),
            }),
            (None, None) => None,
        }
    }
}

fn within(number: i32, least: u16, most: u16) -> u16 {
    u16::try_from(number.max(0)).unwrap_or(u16::MAX).clamp(least, most)
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const MONTH: Duration = Duration::from_secs(720 * 3600);

const TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);
const TIMEOUT_MAX: Duration = Duration::from_secs(30);
const SCHEDULE_DEFAULT: [Duration; 3] = [MINUTE, Duration::from_secs(300), Duration::from_secs(900)];
/// Intervals of a schedule at most.
const SCHEDULE_MAX: usize = 32;
const INTERVAL_MIN: Duration = Duration::from_millis(100);
const FACTOR_DEFAULT: u32 = 2;
const FACTOR_MAX: u16 = 10;
/// Attempts of a back-off at most.
const ATTEMPTS_MAX: u16 = 100;
const JITTER_PERCENT_DEFAULT: u16 = 10;
const JITTER_PERCENT_MAX: u16 = 50;
/// Requests of a period at most.
const RATE_MAX: u32 = 100_000;
const CONCURRENCY_DEFAULT: u16 = 8;
/// Requests of one Webhook that run at once at most.
pub const CONCURRENCY_MAX: u16 = 64;
const CIRCUIT_FAILURES_DEFAULT: u16 = 20;
const CIRCUIT_FAILURES_MAX: u16 = 1_000;
const MAX_AGE_DEFAULT: Duration = Duration::from_secs(72 * 3600);
/// Status codes in `deadOn` at most.
const DEAD_ON_MAX: usize = 32;
/// A receiver of CloudEvents says so that it does not understand the format.
const CLOUD_EVENTS_DEAD_ON: u16 = 415;
/// Cards of a Webhook at most, and by default.
const CARDS_MAX: u16 = 100;
const CARD_TTL_DEFAULT: Duration = Duration::from_secs(168 * 3600);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn spec(mut fields: serde_json::Value) -> WebhookSpec {
        fields["url"] = "https://hooks.example.com".into();
        serde_json::from_value(fields).unwrap()
    }

    #[test]
    fn without_a_word_the_defaults_of_the_dialect_count() {
        let plain = DeliverySettings::compile(&spec(json!({})));
        assert_eq!(plain, DeliverySettings::default());
        assert_eq!(plain.retry, RetryPlan::Schedule([60, 300, 900].map(Duration::from_secs).into()));
        assert_eq!((plain.concurrency, plain.circuit_failures, plain.cards_max), (8, 20, 100));
        assert_eq!(DeliverySettings::compile(&spec(json!({"dialect": "Analytics"}))).circuit_failures, 0);
        assert_eq!(DeliverySettings::compile(&spec(json!({"dialect": "CloudEvents"}))).dead_on, [415]);
    }

    #[test]
    fn what_is_written_counts() {
        let settings = DeliverySettings::compile(&spec(json!({
            "delivery": {
                "timeout": "5s", "jitterPercent": 50, "concurrency": 64, "maxAge": "1m", "deadOn": [400, 422],
                "retry": {"backoff": {"initial": "1s", "max": "10s", "attempts": 4}},
                "rateLimit": {"rate": 10, "per": "1m"}, "circuit": {"failures": 0},
            },
            "deadLetter": {"limit": 3, "ttl": "2m"},
        })));
        let second = Duration::from_secs(1);
        assert_eq!(settings.timeout, 5 * second);
        assert_eq!(settings.retry, RetryPlan::Backoff { initial: second, factor: 2, max: 10 * second, attempts: 4 });
        assert_eq!(settings.rate, Some(Rate { requests: 10, per: 60 * second }));
        assert_eq!((settings.jitter, settings.concurrency, settings.circuit_failures), (0.5, 64, 0));
        assert_eq!((settings.max_age, settings.dead_on), (60 * second, vec![400, 422]));
        assert_eq!((settings.cards_max, settings.card_ttl), (3, 120 * second));
    }

    #[test]
    fn equal_defaults_are_one_copy() {
        for fields in [json!({}), json!({"dialect": "Analytics"}), json!({"dialect": "CloudEvents"})] {
            let written = {
                let mut fields = fields.clone();
                fields["delivery"] = json!({"concurrency": 8});
                fields
            };
            let (one, other) = (DeliverySettings::shared(&spec(fields)), DeliverySettings::shared(&spec(written)));
            assert!(Arc::ptr_eq(&one, &other));
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_ends_within_the_limits(
            number in -5i32..200_000, duration_s in 0u64..99_999_999, factor: i32,
        ) {
            let duration = Gep2257Duration::from_secs(duration_s);
            let mut spec = spec(json!({}));
            spec.delivery = Some(DeliveryPolicy {
                timeout: Some(duration),
                retry: Some(Retry {
                    schedule: None,
                    backoff: Some(Backoff { initial: duration, factor: Some(factor), max: duration, attempts: number }),
                }),
                jitter_percent: Some(number),
                rate_limit: Some(RateLimit { rate: number, per: duration }),
                concurrency: Some(number),
                order: None,
                on_dead: None,
                circuit: Some(Circuit { failures: number }),
                max_age: Some(duration),
                dead_on: vec![number; 40],
            });
            let settings = DeliverySettings::compile(&spec);
            prop_assert!(settings.timeout >= SECOND && settings.timeout <= TIMEOUT_MAX);
            prop_assert!((0.0..=0.5).contains(&settings.jitter));
            prop_assert!((1..=CONCURRENCY_MAX).contains(&settings.concurrency));
            prop_assert!(settings.max_age >= MINUTE && settings.max_age <= MONTH);
            prop_assert!(settings.dead_on.len() <= DEAD_ON_MAX);
            prop_assert!(settings.rate.is_some_and(|r| (1..=RATE_MAX).contains(&r.requests) && r.per >= SECOND));
        }
    }
}
