//! The rules that the schema's CEL states for a Subscription, once more in Rust.
//!
//! The API server holds them at every write. Whoever acts on a Subscription
//! checks them again: an object may be older than a rule, or have come in while
//! the CRD had none. Pure; the index of the delivery pods and the controller
//! use the same function, so they never differ about what is well formed.

use k8s_openapi::jiff::Timestamp;

use super::SubscriptionSpec;

/// Patterns in `events` at most.
pub const EVENTS_MAX: usize = 100;
/// Bytes of one entry of `events` at most.
pub const EVENT_BYTES_MAX: usize = 253;
/// Bytes of `source` at most.
pub const SOURCE_BYTES_MAX: usize = 1024;
/// Bytes of a bad entry that a message repeats at most.
const SHOWN_CHARS_MAX: usize = 64;

/// What is wrong with a Subscription, in a sentence for its status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubscriptionError {
    /// `events` is too long.
    #[error("spec.events has {count} entries; at most {EVENTS_MAX} are allowed: use a prefix such as 'order.*'")]
    TooManyEvents {
        /// Entries that there are.
        count: usize,
    },
    /// An entry of `events` is no pattern.
    #[error(
        "spec.events has the entry '{shown}'; every entry must be '*', an event type such as 'order.paid', or a prefix such as 'order.*', of at most {EVENT_BYTES_MAX} bytes"
    )]
    BadEvent {
        /// The entry, shortened.
        shown: String,
    },
    /// An entry of `events` is there twice.
    #[error("spec.events names '{shown}' twice: remove one of the two")]
    DuplicateEvent {
        /// The entry, shortened.
        shown: String,
    },
    /// `source` is empty or too long.
    #[error("spec.source must have 1 to {SOURCE_BYTES_MAX} bytes")]
    BadSource,
    /// `start` is neither a word nor a time.
    #[error("spec.start must be Verification, Now, Earliest or a time such as 2026-11-23T12:00:00Z")]
    BadStart,
}

/// Checks what the schema's rules say about a Subscription.
///
/// # Errors
/// The first rule that is broken.
pub fn check(spec: &SubscriptionSpec) -> Result<(), SubscriptionError> {
    let SubscriptionSpec { webhook_ref: _, events, source, start, suspend: _ } = spec;
    if events.len() > EVENTS_MAX {
        return Err(SubscriptionError::TooManyEvents { count: events.len() });
    }
    let mut seen = std::collections::BTreeSet::new();
    for event in events {
        if !is_pattern(event) {
            return Err(SubscriptionError::BadEvent { shown: shown(event) });
        }
        if !seen.insert(event) {
            return Err(SubscriptionError::DuplicateEvent { shown: shown(event) });
        }
    }
    if source.as_ref().is_some_and(|s| s.is_empty() || s.len() > SOURCE_BYTES_MAX) {
        return Err(SubscriptionError::BadSource);
    }
    if start.as_ref().is_some_and(|s| !is_start(s)) {
        return Err(SubscriptionError::BadStart);
    }
    Ok(())
}

/// Whether a text is `*`, an event type, or a prefix that ends in `.*`.
pub fn is_pattern(text: &str) -> bool {
    if text == "*" {
        return true;
    }
    let words = text.strip_suffix(".*").unwrap_or(text);
    text.len() <= EVENT_BYTES_MAX && words.split('.').all(is_word)
}

fn is_word(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

fn is_start(text: &str) -> bool {
    // A time zone in brackets is RFC 9557, not RFC 3339, and the schema refuses it.
    matches!(text, "Verification" | "Now" | "Earliest")
        || (text.len() <= 40
            && text.as_bytes().get(10) == Some(&b'T')
            && !text.contains('[')
            && text.parse::<Timestamp>().is_ok())
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS_MAX).filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn verdict(events: serde_json::Value, start: Option<&str>) -> Result<(), SubscriptionError> {
        let spec = json!({ "webhookRef": { "name": "w" }, "events": events, "start": start });
        check(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn exact_types_prefixes_and_the_star_are_patterns_and_others_are_not() {
        for good in ["*", "order.paid", "order.*", "a", "A-b_c.d.*", &"x".repeat(253)] {
            assert!(is_pattern(good), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "a*", "*.a", "a.*.b", "**", "a b", "ä", ".*", &"x".repeat(254)] {
            assert!(!is_pattern(bad), "{bad}");
        }
    }

    #[test]
    fn the_empty_list_is_legal_and_means_none() {
        assert_eq!(verdict(json!([]), None), Ok(()));
    }

    #[test]
    fn a_hundred_entries_pass_and_one_more_does_not() {
        let entries = |n| (0..n).map(|i| format!("e{i}")).collect::<Vec<_>>();
        assert_eq!(verdict(json!(entries(100)), None), Ok(()));
        assert_eq!(verdict(json!(entries(101)), None), Err(SubscriptionError::TooManyEvents { count: 101 }));
    }

    #[test]
    fn an_entry_that_is_there_twice_is_named() {
        let error = verdict(json!(["a", "b", "a"]), None).unwrap_err();
        assert!(error.to_string().contains("'a' twice"), "{error}");
    }

    #[test]
    fn start_is_a_word_or_a_time() {
        for good in ["Verification", "Now", "Earliest", "2026-11-23T12:00:00Z", "2026-11-23T12:00:00.5+01:00"] {
            assert_eq!(verdict(json!([]), Some(good)), Ok(()), "{good}");
        }
        for bad in ["", "now", "yesterday", "2026-11-23", "2026-13-23T12:00:00Z", "2026-11-23 12:00:00Z"] {
            assert_eq!(verdict(json!([]), Some(bad)), Err(SubscriptionError::BadStart), "{bad}");
        }
    }
}
