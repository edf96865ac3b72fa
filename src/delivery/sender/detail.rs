//! What is kept of an attempt for its history: pure. No secret is in it: of the
//! request only the values that Posthorn wrote and that sign nothing, of the URL
//! only scheme and host, and wherever the answer repeats a secret that was sent,
//! it is masked.

use std::borrow::Cow;

use http::{
    HeaderMap, HeaderName, StatusCode,
    header::{CONTENT_TYPE, SET_COOKIE},
};

use crate::{
    api::webhook::Scheme,
    egress::{Destination, EgressAnswer},
    store::AttemptDetail,
};

/// Bytes of the text of all headers at most.
const HEAD_BYTES_MAX: usize = 4 * 1024;
/// Bytes of one header's value at most.
const VALUE_BYTES_MAX: usize = 256;
/// Bytes of the answer's body at most.
const BODY_BYTES_MAX: usize = 1024;
/// What stands in place of a secret.
const MASK: &str = "***";
/// Shorter texts are not looked for in answers: they would be found everywhere.
const SECRET_BYTES_MIN: usize = 4;
/// Bytes of a usual text: one allocation is enough.
const HEAD_BYTES_USUAL: usize = 1024;

/// The text of an attempt, begun with its request and ended with its answer.
pub(super) struct Head(String);

impl Head {
    /// The request. Values that are marked as sensitive are not shown.
    pub(super) fn new(destination: &Destination, headers: &HeaderMap) -> Self {
        let mut head = String::with_capacity(HEAD_BYTES_USUAL);
        let scheme = match destination.scheme() {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        for part in ["> POST ", scheme, "://"] {
            head.push_str(part);
        }
        head.push_str(&String::from_utf8_lossy(destination.host_header().as_bytes()));
        head.push('\n');
        for (name, value) in headers {
            let value = if value.is_sensitive() { MASK.as_bytes() } else { value.as_bytes() };
            line(&mut head, '>', name, value, &[]);
        }
        Self(head)
    }

    /// What is kept if there is an answer; `secrets` are masked in it.
    pub(super) fn answered(mut self, answer: &EgressAnswer, secrets: &[&str]) -> Box<AttemptDetail> {
        let head = &mut self.0;
        status_line(head, answer.status);
        for (name, value) in &answer.headers {
            // A session of the receiver is none of ours to show.
            let value = if name == SET_COOKIE { MASK.as_bytes() } else { value.as_bytes() };
            line(head, '<', name, value, secrets);
        }
        self.end(body(answer, secrets))
    }

    /// What is kept if there is none.
    pub(super) fn unanswered(mut self, why: &str) -> Box<AttemptDetail> {
        for part in ["! ", why, "\n"] {
            self.0.push_str(part);
        }
        self.end(String::new())
    }

    fn end(self, body: String) -> Box<AttemptDetail> {
        let Self(mut head) = self;
        head.truncate(cut(&head, HEAD_BYTES_MAX).len());
        Box::new(AttemptDetail { head: head.into(), body: body.into() })
    }
}

fn status_line(head: &mut String, status: StatusCode) {
    head.push_str("< ");
    head.push_str(status.as_str());
    head.push('\n');
}

fn line(head: &mut String, direction: char, name: &HeaderName, value: &[u8], secrets: &[&str]) {
    if head.len() >= HEAD_BYTES_MAX {
        return;
    }
    // No value of a header has a line break: there is no other end of a line.
    let value = String::from_utf8_lossy(value);
    let value = mask(&value, secrets);
    let value = clean(&value);
    head.push(direction);
    for part in [" ", name.as_str(), ": ", cut(&value, VALUE_BYTES_MAX), "\n"] {
        head.push_str(part);
    }
}

/// The beginning of the body, if it is text.
fn body(answer: &EgressAnswer, secrets: &[&str]) -> String {
    let content_type = answer.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if answer.body.is_empty() || !content_type.is_none_or(is_text) {
        return String::new();
    }
    let text = match std::str::from_utf8(&answer.body) {
        Ok(text) => text,
        // A character that the limit of reading cut is still text.
        Err(error) if answer.body_truncated && error.error_len().is_none() => {
            std::str::from_utf8(&answer.body[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return String::new(),
    };
    // Masked before it is cut: half a secret is one too.
    cut(&clean(cut(&mask(text, secrets), BODY_BYTES_MAX)), BODY_BYTES_MAX).to_owned()
}

fn is_text(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.starts_with("text/")
        || crate::dialect::payload::is_json(&essence)
        || ["application/xml", "application/x-www-form-urlencoded"].contains(&&*essence)
        || essence.ends_with("+xml")
}

/// Without the secrets, as they are or in an encoding in which an endpoint may
/// show them. A text is changed only if it has one.
fn mask<'a>(text: &'a str, secrets: &[&str]) -> Cow<'a, str> {
    let mut masked = hide(text, secrets);
    for (sign, decode) in [('\\', unescaped as Decode), ('%', percent_decoded)] {
        if masked.contains(sign) && !secrets.is_empty() {
            let decoded = decoded(&masked, sign, decode);
            if let Cow::Owned(hidden) = hide(&decoded, secrets) {
                masked = Cow::Owned(hidden);
            }
        }
    }
    masked
}

/// What a text that begins with an escape stands for, and how many bytes that
/// escape has.
type Decode = fn(&str) -> Option<(char, usize)>;

/// A text with every escape that `decode` knows replaced.
fn decoded(text: &str, sign: char, decode: Decode) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(sign) {
        plain.push_str(&rest[..at]);
        let (character, bytes) = decode(&rest[at..]).unwrap_or((sign, sign.len_utf8()));
        plain.push(character);
        rest = &rest[at + bytes..];
    }
    plain.push_str(rest);
    plain
}

/// JSON: `\\/` and `\\u002b` among others, which base64 is made of.
fn unescaped(text: &str) -> Option<(char, usize)> {
    let after = text.strip_prefix('\\')?;
    match after.chars().next()? {
        simple @ ('/' | '"' | '\\') => Some((simple, 2)),
        'u' => Some((ascii(after.get(1..5)?)?, 6)),
        _ => None,
    }
}

/// URLs and forms: `%2F`.
fn percent_decoded(text: &str) -> Option<(char, usize)> {
    Some((ascii(text.get(1..3)?)?, 3))
}

/// The visible ASCII character of a hexadecimal number.
fn ascii(digits: &str) -> Option<char> {
    let number = u8::from_str_radix(digits, 16).ok()?;
    Some(char::from(number)).filter(char::is_ascii_graphic)
}

/// Without the secrets as they are. Most texts have none, which costs no copy.
fn hide<'a>(text: &'a str, secrets: &[&str]) -> Cow<'a, str> {
    let mut masked = Cow::Borrowed(text);
    for secret in secrets.iter().filter(|secret| secret.len() >= SECRET_BYTES_MIN) {
        if masked.contains(secret) {
            masked = Cow::Owned(masked.replace(secret, MASK));
        }
    }
    masked
}

/// Without characters that act on a terminal or turn the direction of writing.
fn clean(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n' | b'\t')) {
        return Cow::Borrowed(text);
    }
    let is_harmful = |c: char| {
        (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if is_harmful(c) { '\u{fffd}' } else { c }).collect()
}

/// Its beginning, to the last character that fits.
fn cut(text: &str, bytes_max: usize) -> &str {
    // 0 is a boundary of every text.
    let end = (0..=bytes_max.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    &text[..end]
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;
    use crate::policy::egress::{ClusterNetworks, EgressPolicy, parse_url};

    fn destination() -> Destination {
        let policy = EgressPolicy::compile(None, &ClusterNetworks::default()).unwrap();
        parse_url("https://a.example/hooks/hunter2?token=hunter2", &policy).unwrap()
    }

    fn answer(content_type: &str, body: impl Into<Bytes>) -> EgressAnswer {
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::try_from(content_type) {
            headers.insert(CONTENT_TYPE, value);
        }
        EgressAnswer { status: StatusCode::OK, headers, body: body.into(), body_truncated: false }
    }

    fn of(answer: &EgressAnswer) -> AttemptDetail {
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", HeaderValue::from_static("evt_1"));
        let mut secret = HeaderValue::from_static("hunter2");
        secret.set_sensitive(true);
        headers.insert("x-api-key", secret);
        *Head::new(&destination(), &headers).answered(answer, &["hunter2", "a", ""])
    }

    #[test]
    fn headers_are_told_and_what_is_secret_is_masked_wherever_it_comes_back() {
        let mut answer = answer("text/plain", "you sent hunter2\u{7}\u{202e}\n");
        answer.headers.insert("x-echo", HeaderValue::from_static("hunter2hunter2"));
        answer.headers.insert("set-cookie", HeaderValue::from_static("session=1"));
        let detail = of(&answer);
        assert_eq!(
            &*detail.head,
            "> POST https://a.example\n> webhook-id: evt_1\n> x-api-key: ***\n< 200\n< content-type: text/plain\n< x-echo: ******\n< set-cookie: ***\n"
        );
        assert_eq!(&*detail.body, "you sent ***\u{fffd}\u{fffd}\n");
    }

    #[test]
    fn a_secret_that_was_escaped_is_masked_and_other_escapes_stay() {
        let check = |text: &str, expected: &str| {
            assert_eq!(mask(text, &["ab/cd+ef==", "say \"hi\""]), expected, "{text}");
        };
        check(r#"{"a":"ab\/cd+ef==","b":"\"x\""}"#, r#"{"a":"***","b":""x""}"#);
        check(r#"{"a":"ab\u002fcd\u002Bef\u003d\u003D"}"#, r#"{"a":"***"}"#);
        check("token=ab%2Fcd%2bef%3D%3D&x=%20", "token=***&x=%20");
        check(r#"{"a":"say \"hi\""}"#, r#"{"a":"***"}"#);
        check(r#"{"a":"\"quoted\" \/ \u0041"}"#, r#"{"a":"\"quoted\" \/ \u0041"}"#);
        check("100% \\ %", "100% \\ %");
        check("\\u00", "\\u00");
        check("\\uü%ü", "\\uü%ü");
    }

    #[test]
    fn a_body_is_kept_if_it_is_text_and_to_its_first_kibibyte() {
        let check = |content_type: &str, body: &[u8], expected: usize| {
            assert_eq!(of(&answer(content_type, body.to_vec())).body.len(), expected, "{content_type}");
        };
        check("text/html; charset=utf-8", b"<p>", 3);
        check("application/problem+json", b"{}", 2);
        check("\n", b"no type", 7);
        check("image/png", b"text", 0);
        check("text/plain", b"\xff\xfe", 0);
        check("text/plain", &[b'x'; 1024], 1024);
        check("text/plain", &[b'x'; 1025], 1024);
        check("text/plain", "é".repeat(1000).as_bytes(), 1024);
        check("text/plain", format!("{}hunter2", "x".repeat(1020)).as_bytes(), 1023);
        let mut truncated = answer("text/plain", &b"abc\xc3"[..]);
        assert_eq!(&*of(&truncated).body, "");
        truncated.body_truncated = true;
        assert_eq!(&*of(&truncated).body, "abc");
    }

    #[test]
    fn headers_have_a_limit_each_and_in_all() {
        let mut answer = answer("text/plain", "");
        for n in 0..100 {
            let name = HeaderName::try_from(format!("x-{n}")).unwrap();
            answer.headers.insert(name, HeaderValue::try_from("v".repeat(300)).unwrap());
        }
        let head = of(&answer).head;
        assert_eq!(head.len(), HEAD_BYTES_MAX);
        assert!(head.contains(&format!(": {}\n", "v".repeat(VALUE_BYTES_MAX))));
    }

    proptest! {
        #[test]
        fn whatever_is_escaped_nothing_panics(text in r#"([a-zé/"\\\\%u0-9]|hunter2){0,60}"#) {
            prop_assert!(!mask(&text, &["hunter2", "/u00"]).contains("hunter2"));
        }

        #[test]
        fn whatever_comes_back_is_clean_and_short(body: Vec<u8>, value in "[ -~]{0,400}", truncated: bool) {
            let mut answer = answer("text/plain", body);
            answer.body_truncated = truncated;
            answer.headers.insert("x-a", HeaderValue::try_from(value).unwrap());
            let detail = of(&answer);
            prop_assert!(detail.body.len() <= BODY_BYTES_MAX && detail.head.len() <= HEAD_BYTES_MAX);
            prop_assert!(!detail.body.chars().any(|c| c.is_control() && c != '\n' && c != '\t'));
            prop_assert!(!detail.head.contains("hunter2"));
        }
    }
}
