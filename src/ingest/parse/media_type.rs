//! Media types, as far as ingest looks at them.

/// A media type: `type/subtype` in lower case and its charset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MediaType<'a> {
    essence: &'a str,
    charset: Option<&'a str>,
}

impl<'a> MediaType<'a> {
    /// None if it is no media type.
    pub(super) fn parse(value: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok().filter(|text| text.is_ascii())?;
        let mut parts = text.split(';').map(str::trim);
        let essence = parts.next()?;
        let (kind, sub) = essence.split_once('/')?;
        if !is_token(kind) || !is_token(sub) {
            return None;
        }
        let mut charset = None;
        for parameter in parts.filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=')?;
            if name.trim().eq_ignore_ascii_case("charset") {
                charset = Some(value.trim().trim_matches('"'));
            }
        }
        Some(Self { essence, charset })
    }

    /// Whether it is this one, given in lower case.
    pub(super) fn is(&self, essence: &str) -> bool {
        self.essence.eq_ignore_ascii_case(essence)
    }

    /// Whether it begins so, given in lower case.
    pub(super) fn starts_with(&self, prefix: &str) -> bool {
        self.essence.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    }

    /// Whether its text is UTF-8, as far as it says.
    pub(super) fn is_utf8(&self) -> bool {
        self.charset
            .is_none_or(|charset| charset.eq_ignore_ascii_case("utf-8") || charset.eq_ignore_ascii_case("us-ascii"))
    }

    /// Whether data of this type is JSON.
    pub(super) fn is_json(&self) -> bool {
        let suffix = self.essence.len().checked_sub(5).and_then(|at| self.essence.get(at..));
        self.is("application/json")
            || self.is("text/json")
            || suffix.is_some_and(|suffix| suffix.eq_ignore_ascii_case("+json"))
    }
}

/// RFC 9110 §5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_told_by_its_name_or_its_suffix() {
        let check = |text: &str, expected| {
            assert_eq!(MediaType::parse(text.as_bytes()).map(|media_type| media_type.is_json()), expected, "{text}");
        };
        check("application/json", Some(true));
        check("Application/JSON; charset=UTF-8", Some(true));
        check("application/vnd.github+JSON;v=3", Some(true));
        check("text/json", Some(true));
        check("a/+json", Some(true));
        check("text/plain", Some(false));
        check("a/b", Some(false));
        for text in ["", "json", "/", "a/", "/b", "a/b c", "a/b; c", "ä/b", "a//b"] {
            check(text, None);
        }
    }

    #[test]
    fn only_utf8_is_utf8() {
        let check = |text: &str, expected| {
            assert_eq!(MediaType::parse(text.as_bytes()).unwrap().is_utf8(), expected, "{text}");
        };
        check("application/json", true);
        check("application/json; charset=\"utf-8\"", true);
        check("application/json;charset=UTF-8;", true);
        check("application/json; charset=utf-16", false);
        check("application/json; charset=", false);
    }
}
