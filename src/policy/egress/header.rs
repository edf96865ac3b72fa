//! Which headers a tenant may add to requests. The same rules stand in the
//! schema of Webhook; here they hold for values from Secrets too, which the API
//! server cannot see, and for objects that were written around it.

use http::{HeaderName, HeaderValue};

/// Headers that a tenant may add in all.
pub const HEADERS_MAX: usize = 20;
/// Bytes of all names and values together.
pub const HEADER_BYTES_MAX: usize = 4 * 1024;
/// Bytes of one name.
pub const HEADER_NAME_BYTES_MAX: usize = 128;

/// Set by HTTP or by Posthorn, or read by metadata services.
const RESERVED: [&str; 14] = [
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "transfer-encoding",
    "connection",
    "te",
    "trailer",
    "upgrade",
    "keep-alive",
    "expect",
    "forwarded",
    "cookie",
    "metadata-flavor",
];

/// Families of headers that are set by Posthorn or proxies, or that would sign
/// or open something in the name of someone else.
const RESERVED_PREFIXES: [&str; 11] = [
    "proxy-",
    "x-forwarded-",
    "webhook-",
    "ce-",
    "svix-",
    "x-amz-",
    "x-goog-",
    "x-aws-ec2-metadata-token",
    "x-improvado-",
    "x-webhook-signature",
    "impira-signature",
];

/// Why a header cannot be sent. Values are never repeated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderRefusal {
    /// The name is no header name.
    #[error("a header's name is not a token of letters, digits and -!#$%&*+.^_`|~ with at most 128 characters")]
    Name,
    /// The name is reserved.
    #[error(
        "the header {name} is set by HTTP, by Posthorn or is reserved for cloud metadata services: choose another name"
    )]
    Reserved {
        /// Its name in lower case.
        name: String,
    },
    /// The value cannot stand in a header.
    #[error(
        "the value of the header {name} is not printable ASCII without leading and trailing spaces and without line breaks"
    )]
    Value {
        /// Its name in lower case.
        name: String,
    },
    /// Too many headers.
    #[error("more than {HEADERS_MAX} headers")]
    TooMany,
    /// Too many bytes.
    #[error("the headers are longer than {HEADER_BYTES_MAX} bytes in all")]
    TooLong,
}

/// Judges one header of a tenant.
///
/// # Errors
/// [`HeaderRefusal`]: why it cannot be sent.
pub fn check_header(name: &str, value: &str) -> Result<(), HeaderRefusal> {
    // An apostrophe is a token in HTTP, but not in the schema of Webhook.
    if name.len() > HEADER_NAME_BYTES_MAX || name.contains('\'') {
        return Err(HeaderRefusal::Name);
    }
    let parsed = HeaderName::try_from(name).map_err(|_| HeaderRefusal::Name)?;
    let lower = parsed.as_str();
    if RESERVED.contains(&lower) || RESERVED_PREFIXES.iter().any(|prefix| lower.starts_with(prefix)) {
        return Err(HeaderRefusal::Reserved { name: lower.to_owned() });
    }
    let is_printable = value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if !is_printable || value.trim() != value || HeaderValue::try_from(value).is_err() {
        return Err(HeaderRefusal::Value { name: lower.to_owned() });
    }
    Ok(())
}

/// Judges all headers of a tenant together.
///
/// # Errors
/// [`HeaderRefusal`]: why they cannot be sent.
pub fn check_headers<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(), HeaderRefusal> {
    let mut bytes = 0;
    for (index, (name, value)) in headers.into_iter().enumerate() {
        if index >= HEADERS_MAX {
            return Err(HeaderRefusal::TooMany);
        }
        check_header(name, value)?;
        bytes += name.len() + value.len();
        if bytes > HEADER_BYTES_MAX {
            return Err(HeaderRefusal::TooLong);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, value: &str, expected: Result<(), HeaderRefusal>) {
        assert_eq!(check_header(name, value), expected, "{name:?}: {value:?}");
    }

    fn reserved(name: &str) -> Result<(), HeaderRefusal> {
        Err(HeaderRefusal::Reserved { name: name.to_lowercase() })
    }

    #[test]
    fn ordinary_headers_pass() {
        check("Authorization", "Bearer abc", Ok(()));
        check("x-api-key", "", Ok(()));
        check("X_Custom.1", "a b", Ok(()));
        check(&"a".repeat(HEADER_NAME_BYTES_MAX), "x", Ok(()));
    }

    #[test]
    fn names_that_are_no_names_are_refused() {
        for name in ["", "a b", "a:b", "a\r\nb", "ä", "a\0", "it's", &"a".repeat(HEADER_NAME_BYTES_MAX + 1)] {
            check(name, "x", Err(HeaderRefusal::Name));
        }
    }

    #[test]
    fn reserved_names_are_refused_in_any_case() {
        for name in RESERVED {
            check(name, "x", reserved(name));
            check(&name.to_uppercase(), "x", reserved(name));
        }
        for prefix in RESERVED_PREFIXES {
            let name = format!("{prefix}x");
            check(&name.to_uppercase(), "x", reserved(&name));
        }
        check("X-aws-ec2-metadata-token-ttl-seconds", "1", reserved("X-aws-ec2-metadata-token-ttl-seconds"));
        check("Content-Length", "0", reserved("content-length"));
    }

    #[test]
    fn values_that_could_break_the_message_are_refused_and_not_repeated() {
        for value in ["a\r\nHost: b", "a\n", "\0", "ä", " a", "a ", "\t", "a\x7f"] {
            let refusal = check_header("x-a", value).unwrap_err();
            assert_eq!(refusal, HeaderRefusal::Value { name: "x-a".into() }, "{value:?}");
        }
    }

    #[test]
    fn number_and_length_of_all_headers_have_limits() {
        let many = vec![("x-a", "1"); HEADERS_MAX];
        assert_eq!(check_headers(many.iter().copied()), Ok(()));
        assert_eq!(check_headers(many.iter().copied().chain([("x-a", "1")])), Err(HeaderRefusal::TooMany));
        let value = "v".repeat(HEADER_BYTES_MAX - 3);
        assert_eq!(check_headers([("x-a", value.as_str())]), Ok(()));
        let value = format!("{value}v");
        assert_eq!(check_headers([("x-a", value.as_str())]), Err(HeaderRefusal::TooLong));
    }
}
