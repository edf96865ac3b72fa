//! `Retry-After` (RFC 9110 §10.2.3): how long an endpoint wants to be left alone.

use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::Timestamp;

/// The longest wait that an endpoint can ask for. A longer one counts as this:
/// it may have meant it, or counted in milliseconds.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

/// How long the value of the header asks to wait from now on: seconds or a date
/// of HTTP, at most [`RETRY_AFTER_MAX`]. A date that has passed asks for nothing
/// more than now. None for anything else: what cannot be understood changes
/// nothing.
pub fn parse(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim_ascii();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // All digits: what does not fit is only too large.
        let seconds = value.parse().unwrap_or(u64::MAX);
        return Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(SystemTime::from(now)).unwrap_or_default().min(RETRY_AFTER_MAX))
}

/// What several headers ask for together: the longest wait, and what cannot be
/// understood is passed over.
pub fn longest<'a>(values: impl IntoIterator<Item = &'a str>, now: Timestamp) -> Option<Duration> {
    values.into_iter().filter_map(|value| parse(value, now)).max()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> Timestamp {
        "1994-11-06T08:49:37Z".parse().unwrap()
    }

    fn check(value: &str, expected: Option<u64>) {
        assert_eq!(parse(value, now()).map(|wait| wait.as_secs()), expected, "{value:?}");
    }

    #[test]
    fn seconds_and_the_three_kinds_of_dates_are_read() {
        check("0", Some(0));
        check("120", Some(120));
        check(" 007 ", Some(7));
        check("Sun, 06 Nov 1994 08:51:37 GMT", Some(120));
        check("Sunday, 06-Nov-94 08:51:37 GMT", Some(120));
        check("Sun Nov  6 08:51:37 1994", Some(120));
    }

    #[test]
    fn a_date_that_has_passed_asks_for_nothing_and_a_far_one_for_a_day() {
        check("Sun, 06 Nov 1994 08:49:36 GMT", Some(0));
        check("Thu, 01 Jan 1970 00:00:00 GMT", Some(0));
        check("Fri, 31 Dec 9999 23:59:59 GMT", Some(86_400));
    }

    #[test]
    fn a_wait_of_more_than_a_day_is_a_day() {
        check("86400", Some(86_400));
        check("86401", Some(86_400));
        check(&u64::MAX.to_string(), Some(86_400));
        check(&"9".repeat(5_000), Some(86_400));
    }

    #[test]
    fn what_is_neither_is_passed_over() {
        for value in [
            "",
            " ",
            "-1",
            "+1",
            "1.5",
            "1e3",
            "120s",
            "soon",
            "0x10",
            "१२०",
            "2026-11-23T09:00:00Z",
            "Sun, 06 Nov 1994",
        ] {
            check(value, None);
        }
    }

    #[test]
    fn of_several_the_longest_counts() {
        let check = |values: &[&str], expected: Option<u64>| {
            assert_eq!(longest(values.iter().copied(), now()).map(|wait| wait.as_secs()), expected);
        };
        check(&[], None);
        check(&["soon"], None);
        check(&["5", "soon", "30", "10"], Some(30));
    }

    proptest! {
        #[test]
        fn no_value_makes_it_panic_or_wait_for_longer_than_a_day(value: String, seconds in -377_705_023_201_i64..253_402_207_200) {
            let wait = parse(&value, Timestamp::from_second(seconds).unwrap());
            prop_assert!(wait.is_none_or(|wait| wait <= RETRY_AFTER_MAX));
        }
    }
}
