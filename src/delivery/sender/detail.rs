//! What is kept of an attempt for its history: pure. No secret is in it: of the
//! request only the values that Posthorn wrote and that sign nothing, of the URL
//! only scheme and host, and wherever the answer repeats a secret that was sent,
//! it is masked.

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

/// What was sent, for the text.
pub(super) struct Sent<'a> {
    pub(super) destination: &'a Destination,
    pub(super) headers: &'a HeaderMap,
    /// Names whose values are shown: those that Posthorn itself set.
    pub(super) shown: &'a dyn Fn(&HeaderName) -> bool,
    /// Texts that must not be in what is kept.
    pub(super) secrets: &'a [&'a str],
}

/// What is kept of an attempt; `end` is the answer, or why there is none.
pub(super) fn detail(sent: &Sent<'_>, end: Result<&EgressAnswer, &str>) -> Box<AttemptDetail> {
    let mut head = String::with_capacity(512);
    let scheme = match sent.destination.scheme() {
        Scheme::Http => "http",
        Scheme::Https => "https",
    };
    for part in ["> POST ", scheme, "://"] {
        head.push_str(part);
    }
    head.push_str(&String::from_utf8_lossy(sent.destination.host_header().as_bytes()));
    head.push('\n');
    for (name, value) in sent.headers {
        let value = if (sent.shown)(name) { value.as_bytes() } else { MASK.as_bytes() };
        line(&mut head, '>', name, value, &[]);
    }
    let body = match end {
        Ok(answer) => {
            status_line(&mut head, answer.status);
            for (name, value) in &answer.headers {
                // A session of the receiver is none of ours to show.
                let value = if name == SET_COOKIE { MASK.as_bytes() } else { value.as_bytes() };
                line(&mut head, '<', name, value, sent.secrets);
            }
            body(answer, sent.secrets)
        }
        Err(why) => {
            head.push_str("! ");
            head.push_str(why);
            head.push('\n');
            String::new()
        }
    };
    cut(&mut head, HEAD_BYTES_MAX);
    Box::new(AttemptDetail { head: head.into(), body: body.into() })
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
    let mut value = clean(&mask(&String::from_utf8_lossy(value), secrets));
    cut(&mut value, VALUE_BYTES_MAX);
    for part in [" ", name.as_str(), ": ", &value.replace('\n', " ")] {
        if part == " " {
            head.push(direction);
        }
        head.push_str(part);
    }
    head.push('\n');
}

/// The beginning of the body, if it is text.
fn body(answer: &EgressAnswer, secrets: &[&str]) -> String {
    let content_type = answer.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !content_type.is_none_or(is_text) {
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
    let mut text = clean(&mask(text, secrets));
    cut(&mut text, BODY_BYTES_MAX);
    text
}

fn is_text(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.starts_with("text/")
        || crate::dialect::payload::is_json(&essence)
        || ["application/xml", "application/x-www-form-urlencoded"].contains(&&*essence)
        || essence.ends_with("+xml")
}

fn mask(text: &str, secrets: &[&str]) -> String {
    let mut masked = text.to_owned();
    for secret in secrets.iter().filter(|secret| secret.len() >= SECRET_BYTES_MIN) {
        if masked.contains(secret) {
            masked = masked.replace(secret, MASK);
        }
    }
    masked
}

/// Without characters that act on a terminal or turn the direction of writing.
fn clean(text: &str) -> String {
    let is_harmful = |c: char| {
        (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if is_harmful(c) { '\u{fffd}' } else { c }).collect()
}

fn cut(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        // 0 is a boundary of every text.
        let end = (0..=bytes_max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        text.truncate(end);
    }
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
        headers.insert("x-api-key", HeaderValue::from_static("hunter2"));
        let shown = |name: &HeaderName| name == "webhook-id";
        let sent =
            Sent { destination: &destination(), headers: &headers, shown: &shown, secrets: &["hunter2", "a", ""] };
        *detail(&sent, Ok(answer))
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
