//! What the end of an attempt means.

use std::time::Duration;

use super::{AttemptEnd, FailureKind, Hold};
use crate::{
    api::Reason,
    policy::{circuit, delivery::DeliverySettings, retry},
    store::DeadReason,
};

/// Too many requests: may hold the whole endpoint.
const TOO_MANY: u16 = 429;
/// The endpoint wants no events any more.
const GONE: u16 = 410;

/// What becomes of the Delivery.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    /// Delivered.
    Done,
    /// Again after this time.
    Again(Duration),
    /// Given up.
    Dead(DeadReason),
    /// The endpoint withdrew: the hook is held, the Delivery stays owed.
    Gone,
    /// Nothing was sent: the hook is held, the Delivery stays owed.
    Held(Hold),
}

/// The end of an attempt, judged.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Judged {
    pub(super) verdict: Verdict,
    /// Why it failed.
    pub(super) failure: Option<Reason>,
    pub(super) code: Option<u16>,
    /// It speaks of the endpoint, not of this event.
    pub(super) is_of_endpoint: bool,
    /// Nothing shall be sent to the endpoint for so long.
    pub(super) pause: Option<Duration>,
}

/// Judges an attempt: the `tries`th of its Delivery.
pub(super) fn judge(end: &AttemptEnd, settings: &DeliverySettings, tries: u16, chance: f64) -> Judged {
    match end {
        AttemptEnd::Answered { code, retry_after } => judge_answer(*code, *retry_after, settings, tries, chance),
        AttemptEnd::Failed { reason, kind } => Judged {
            verdict: again(settings, tries, chance, None),
            failure: Some(*reason),
            code: None,
            is_of_endpoint: *kind == FailureKind::Endpoint,
            pause: None,
        },
        AttemptEnd::NotSent(hold) => without_answer(Verdict::Held(hold.clone())),
        AttemptEnd::Unrenderable => without_answer(Verdict::Dead(DeadReason::Unrenderable)),
    }
}

fn judge_answer(
    code: u16,
    retry_after: Option<Duration>,
    settings: &DeliverySettings,
    tries: u16,
    chance: f64,
) -> Judged {
    let verdict = match code {
        200..=299 => Verdict::Done,
        GONE => Verdict::Gone,
        _ if settings.dead_on.contains(&code) => Verdict::Dead(DeadReason::DeadOn),
        _ => again(settings, tries, chance, retry_after),
    };
    let failure = match code {
        200..=299 => None,
        300..=399 => Some(Reason::RedirectRefused),
        GONE => Some(Reason::Gone),
        _ => Some(Reason::UnexpectedStatus),
    };
    Judged {
        verdict,
        failure,
        code: Some(code),
        is_of_endpoint: circuit::counts(code),
        pause: retry_after.filter(|_| code == TOO_MANY).map(|asked| asked.min(retry::RETRY_AFTER_MAX)),
    }
}

fn again(settings: &DeliverySettings, tries: u16, chance: f64, retry_after: Option<Duration>) -> Verdict {
    retry::next_wait(&settings.retry, settings.jitter, tries, chance, retry_after)
        .map_or(Verdict::Dead(DeadReason::Exhausted), Verdict::Again)
}

fn without_answer(verdict: Verdict) -> Judged {
    Judged { verdict, failure: None, code: None, is_of_endpoint: false, pause: None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn settings() -> DeliverySettings {
        DeliverySettings { jitter: 0.0, dead_on: vec![422], ..DeliverySettings::default() }
    }

    fn answer(code: u16, retry_after: Option<Duration>, tries: u16) -> Judged {
        judge(&AttemptEnd::Answered { code, retry_after }, &settings(), tries, 0.5)
    }

    #[test]
    fn each_answer_has_its_verdict() {
        use Verdict::{Again, Dead, Done, Gone};
        for (code, tries, expected) in [
            (200, 1, Done),
            (299, 4, Done),
            (301, 1, Again(MINUTE)),
            (400, 2, Again(5 * MINUTE)),
            (503, 3, Again(15 * MINUTE)),
            (503, 4, Dead(DeadReason::Exhausted)),
            (422, 1, Dead(DeadReason::DeadOn)),
            (410, 1, Gone),
            (410, 4, Gone),
            (100, 1, Again(MINUTE)),
        ] {
            assert_eq!(answer(code, None, tries).verdict, expected, "{code} {tries}");
        }
    }

    #[test]
    fn a_429_that_says_when_pauses_the_endpoint_for_a_day_at_most() {
        assert_eq!(answer(429, None, 1).pause, None);
        let judged = answer(429, Some(2 * MINUTE), 1);
        assert_eq!((judged.pause, judged.verdict), (Some(2 * MINUTE), Verdict::Again(2 * MINUTE)));
        assert_eq!(answer(429, Some(Duration::MAX), 4).pause, Some(retry::RETRY_AFTER_MAX));
        assert_eq!(answer(503, Some(2 * MINUTE), 1).pause, None);
        assert_eq!(answer(503, Some(2 * MINUTE), 1).verdict, Verdict::Again(2 * MINUTE));
    }

    #[test]
    fn nothing_sent_uses_up_nothing_and_what_cannot_be_rendered_is_dead() {
        let hold = Hold { reason: Reason::SecretNotFound, message: "".into(), retry_after: None };
        let judged = judge(&AttemptEnd::NotSent(hold.clone()), &settings(), 4, 0.5);
        assert_eq!((judged.verdict, judged.is_of_endpoint), (Verdict::Held(hold), false));
        let judged = judge(&AttemptEnd::Unrenderable, &settings(), 1, 0.5);
        assert_eq!(judged.verdict, Verdict::Dead(DeadReason::Unrenderable));
    }

    proptest! {
        #[test]
        fn only_2xx_delivers_and_any_answer_is_judged(code: u16, seconds: Option<u64>, tries in 1u16..50, chance in 0.0f64..1.0) {
            let end = AttemptEnd::Answered { code, retry_after: seconds.map(Duration::from_secs) };
            let judged = judge(&end, &settings(), tries, chance);
            prop_assert_eq!(judged.verdict == Verdict::Done, (200..300).contains(&code));
            prop_assert_eq!(judged.failure.is_none(), judged.verdict == Verdict::Done);
        }
    }
}
