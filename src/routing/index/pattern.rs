//! Patterns of event types: `order.paid`, `order.*`, `*`.

use std::fmt;

use crate::api::subscription_rules::is_pattern;

/// Types that begin with this are Posthorn's own; `*` does not include them.
const OWN_TYPES_PREFIX: &str = "posthorn.";

/// One entry of `spec.events`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventPattern {
    /// Every type but Posthorn's own.
    All,
    /// Every type that begins with this text, whose last byte is a dot.
    Prefix(Box<str>),
    /// Exactly this type.
    Exact(Box<str>),
}

impl EventPattern {
    /// Reads an entry as the schema of Subscriptions allows it; none for others.
    pub fn parse(text: &str) -> Option<Self> {
        if !is_pattern(text) {
            return None;
        }
        Some(match text.strip_suffix('*') {
            Some("") => Self::All,
            Some(prefix) => Self::Prefix(prefix.into()),
            None => Self::Exact(text.into()),
        })
    }

    /// Whether an event of this type is meant.
    pub fn matches(&self, event_type: &str) -> bool {
        match self {
            Self::All => !event_type.starts_with(OWN_TYPES_PREFIX),
            Self::Prefix(prefix) => event_type.starts_with(prefix.as_ref()),
            Self::Exact(exact) => event_type == exact.as_ref(),
        }
    }
}

/// As in `spec.events`.
impl fmt::Display for EventPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
            Self::Exact(exact) => f.write_str(exact),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, event_type: &str, expected: bool) {
        let parsed = EventPattern::parse(pattern).unwrap();
        assert_eq!(parsed.matches(event_type), expected, "{pattern} on {event_type}");
        assert_eq!(parsed.to_string(), pattern);
    }

    #[test]
    fn patterns_mean_exactly_one_type_a_prefix_of_whole_words_or_all_but_our_own() {
        check("order.paid", "order.paid", true);
        check("order.paid", "order.paid.late", false);
        check("order.paid", "Order.paid", false);
        check("order.*", "order.paid", true);
        check("order.*", "order.paid.late", true);
        check("order.*", "order", false);
        check("order.*", "orders.paid", false);
        check("*", "order.paid", true);
        check("*", "posthorn.test", false);
        check("*", "posthorns.test", true);
        check("posthorn.*", "posthorn.test", true);
        check("posthorn.test", "posthorn.test", true);
    }
}
