//! Patterns of event types: `order.paid`, `order.*`, `*`.

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
        if text == "*" {
            return Some(Self::All);
        }
        let (words, pattern) = match text.strip_suffix(".*") {
            Some(words) => (words, Self::Prefix(format!("{words}.").into())),
            None => (text, Self::Exact(text.into())),
        };
        words.split('.').all(is_word).then_some(pattern)
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

fn is_word(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, event_type: &str, expected: bool) {
        assert_eq!(EventPattern::parse(pattern).unwrap().matches(event_type), expected, "{pattern} on {event_type}");
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

    #[test]
    fn what_the_schema_refuses_is_no_pattern() {
        for wrong in ["", ".", ".*", "**", "a..b", "a*", "*.a", "a.*.b", "a.", "a b", "a.*.*", "é"] {
            assert_eq!(EventPattern::parse(wrong), None, "{wrong:?}");
        }
    }
}
