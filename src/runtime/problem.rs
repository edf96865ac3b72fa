//! Errors of our HTTP servers as RFC 9457 problem details.

use std::{borrow::Cow, time::Duration};

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

/// Media type of a problem.
pub const PROBLEM_CONTENT_TYPE: &str = "application/problem+json";
/// When to come back after a 429 or 503, unless the problem knows better.
pub const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);
/// What a 401 asks for, unless the problem says more.
const CHALLENGE_DEFAULT: &str = "Bearer";
/// The problem is what its status says, and no more.
const BLANK: &str = "about:blank";

/// Why a request got no result. Boxed: it travels as the error of many a
/// `Result`, and is rare.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem(Box<Content>);

#[derive(Clone, Debug, PartialEq)]
struct Content {
    status: StatusCode,
    kind: &'static str,
    title: Option<&'static str>,
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    members: Map<String, Value>,
    retry_after: Duration,
    challenge: &'static str,
}

/// What is wrong with one field of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FieldError {
    /// Where in the body: a JSON pointer (RFC 6901).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// In which header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// What is wrong, and what to do.
    pub detail: String,
}

/// The members of RFC 9457.
#[derive(Serialize)]
struct Members<'a> {
    r#type: &'a str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [FieldError],
    #[serde(flatten)]
    more: &'a Map<String, Value>,
}

impl Problem {
    /// A problem that is what its status says.
    pub fn new(status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Content {
            status,
            kind: BLANK,
            title: None,
            detail: detail.into(),
            errors: Vec::new(),
            members: Map::new(),
            retry_after: RETRY_AFTER_DEFAULT,
            challenge: CHALLENGE_DEFAULT,
        }))
    }

    /// Gives it a type that programs can tell from others of this status.
    #[must_use]
    pub fn kind(mut self, kind: &'static str, title: &'static str) -> Self {
        self.0.kind = kind;
        self.0.title = Some(title);
        self
    }

    /// Says which fields are wrong.
    #[must_use]
    pub fn errors(mut self, errors: Vec<FieldError>) -> Self {
        self.0.errors = errors;
        self
    }

    /// Adds a member of its own.
    #[must_use]
    pub fn member(mut self, name: &str, value: Value) -> Self {
        self.0.members.insert(name.to_owned(), value);
        self
    }

    /// When to come back; for a 429 or 503.
    #[must_use]
    pub fn retry_after(mut self, time: Duration) -> Self {
        self.0.retry_after = time;
        self
    }

    /// What a 401 asks for.
    #[must_use]
    pub fn challenge(mut self, challenge: &'static str) -> Self {
        self.0.challenge = challenge;
        self
    }

    /// The status of its answer.
    pub fn status(&self) -> StatusCode {
        self.0.status
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let content = *self.0;
        let title = content.title.or(content.status.canonical_reason()).unwrap_or_default();
        let members = Members {
            r#type: content.kind,
            title,
            status: content.status.as_u16(),
            detail: &content.detail,
            errors: &content.errors,
            more: &content.members,
        };
        // Texts and numbers under keys that are texts: they always serialize.
        let body = serde_json::to_vec(&members).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = content.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_CONTENT_TYPE));
        match content.status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(content.challenge));
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds_up(content.retry_after)));
            }
            _ => {}
        }
        response
    }
}

/// Whole seconds, rounded up: who comes back that late does not come too early.
fn seconds_up(time: Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_told_to_come_back_never_comes_too_early() {
        let check = |milliseconds, expected| assert_eq!(seconds_up(Duration::from_millis(milliseconds)), expected);
        check(0, 1);
        check(1, 1);
        check(1_000, 1);
        check(1_001, 2);
        assert_eq!(seconds_up(Duration::MAX), u64::MAX);
    }

    #[tokio::test]
    async fn a_problem_names_its_fields_and_a_plain_one_has_no_list() {
        let check = async |problem: Problem, expected: Value| {
            let response = problem.into_response();
            assert_eq!(response.headers()["content-type"], PROBLEM_CONTENT_TYPE);
            let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
            assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), expected);
        };
        let plain = Problem::new(StatusCode::NOT_FOUND, "gone");
        let mut expected =
            serde_json::json!({ "type": "about:blank", "title": "Not Found", "status": 404, "detail": "gone" });
        check(plain.clone(), expected.clone()).await;
        let field = FieldError { pointer: Some("/type".to_owned()), header: None, detail: "missing".to_owned() };
        expected["type"] = "urn:x".into();
        expected["title"] = "X".into();
        expected["errors"] = serde_json::json!([{ "pointer": "/type", "detail": "missing" }]);
        expected["events"] = serde_json::json!([]);
        check(plain.kind("urn:x", "X").errors(vec![field]).member("events", serde_json::json!([])), expected).await;
    }
}
